"""Matplotlib as a pen for inline SVG: one pixel a unit, colours that follow the page, the same bytes every time.

Colours are placeholders that become CSS variables, so one drawing serves the light, the dark and the printed page.
Text stays text in the page's own font. Matplotlib is imported when something is drawn and its state is left as it was.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

INK, QUIET, LINE, ACCENT, SECOND, THIRD, SOFT, PAPER = (f"#{n:02x}0{n:x}0{n:x}" for n in range(1, 9))
"""Placeholders: text, quiet text, rules, three colours of data, a pale fill, the page."""

VARIABLES = {
    INK: "var(--ink)",
    QUIET: "var(--quiet)",
    LINE: "var(--line)",
    ACCENT: "var(--accent)",
    SECOND: "var(--second)",
    THIRD: "var(--third)",
    SOFT: "var(--soft)",
    PAPER: "var(--paper)",
}

SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "tiebreak",
    "svg.image_inline": True,
    "text.parse_math": False,
    "axes.unicode_minus": True,
    "font.family": ["DejaVu Sans"],
    "font.size": 12,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": QUIET,
    "axes.labelsize": 12,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 1,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": QUIET,
    "ytick.labelcolor": QUIET,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "path.simplify": True,
}


def available() -> bool:
    """Whether there is a pen: matplotlib is installed."""
    try:
        return find_spec("matplotlib") is not None and find_spec("matplotlib.figure") is not None
    except (ImportError, ValueError):
        return False


class Sheet:
    """One drawing of ``width`` times ``height`` pixels; ``svg`` is set when its ``with`` block ends."""

    def __init__(self, figure: Any, name: str) -> None:
        self.figure, self.name, self.svg = figure, name, ""

    def axes(self, left: float, top: float, right: float, bottom: float, *, width: float, height: float) -> Any:
        """Return axes with these margins, in pixels, in a box of ``width`` and ``height`` at the top left."""
        whole_width, whole_height = 72 * self.figure.get_figwidth(), 72 * self.figure.get_figheight()
        box = [
            left / whole_width,
            1 - (height - bottom) / whole_height,
            (width - left - right) / whole_width,
            (height - top - bottom) / whole_height,
        ]
        return self.figure.add_axes(box)


@contextmanager
def sheet(name: str, width: float, height: float) -> Iterator[Sheet]:
    """Draw on a transparent sheet; ``name`` is unique on the page and keeps the ids of drawings apart."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a glyph that matplotlib's own font lacks: the browser has another one
        figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        figure.patch.set_alpha(0)
        drawn = Sheet(figure, name)
        yield drawn
        for axes in figure.axes:
            axes.patch.set_alpha(0)
        out = io.StringIO()
        FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
        drawn.svg = _inline(out.getvalue(), name, width, height)


def _inline(text: str, name: str, width: float, height: float) -> str:
    """Turn a stand-alone SVG file into an element of a page: no prologue, no style of its own, ids of its own."""
    body = text[text.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.S)
    body = re.sub(r"<style[^>]*>.*?</style>", "", body, flags=re.S)
    body = re.sub(r"<!--.*?-->", "", body, flags=re.S)
    size = f'viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}"'
    head = f'<svg {size} aria-hidden="true" focusable="false">'
    body = head + body[body.index(">") + 1 :]
    body = body.replace("xlink:href", "href")
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", body)
    body = re.sub(rf'<g id="{name}-[a-z0-9]+_?[0-9.]*(?:_[0-9]+)?">', "<g>", body)
    body = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", body)
    for placeholder, variable in VARIABLES.items():
        body = body.replace(placeholder, variable)
    body = re.sub(r">\s+<", "><", body)
    return re.sub(r"[ \t]*\n[ \t]*", " ", body).strip()
