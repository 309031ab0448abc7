"""Write the page: one HTML file with all of its style and figures inside, made from what the run folder holds."""

from __future__ import annotations

import os
from pathlib import Path

from tiebreak.records import InputError
from tiebreak.report.artefacts import read
from tiebreak.report.page import page


def build(project: Path, *, title: str, figures: bool = True) -> Path:
    """Write ``report.html`` into ``project`` and return its path.

    Parts the run does not have are left out, figures are left out where matplotlib is not installed, and the same
    run gives the same bytes: the date is that of the run.

    Args:
        project: the run folder.
        title: the page's title.
        figures: whether to draw; the tables hold every number either way.

    Raises:
        InputError: there is no such folder, or the page cannot be written.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader("tiebreak.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown = page(read(project), title=title, drawn=figures)
    text = templates.get_template("template.html.j2").render(**shown)
    path = project / "report.html"
    partial = path.with_name(".report.html.partial")
    try:
        partial.write_bytes(text.encode("utf-8", "replace"))
        os.replace(partial, path)
    except OSError as error:
        cure = "free some space or mend the permissions"
        raise InputError(f"{path} cannot be written: {error.strerror}; {cure}.") from error
    return path
