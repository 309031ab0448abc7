"""Looks after the preference sets: list, validate, merge, split, filter.

Runs from any folder. A set is named as `list` names it (starter, synthetic, ...) or by the path of its file.
A mistake is one sentence and exit code 1, and no file is touched.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

try:
    import typer
    from rich.console import Console
    from rich.table import Table

    from tiebreak.cli import leave
    from tiebreak.data import checked, sets
    from tiebreak.records import InputError
    from tiebreak.stats.intervals import Estimate
except ModuleNotFoundError as error:
    sys.exit(
        f"manage_data.py: this needs {error.name}; install the project: pip install -e {Path(__file__).parents[2]}"
    )

HERE = Path(__file__).resolve().parent
DATASETS = HERE / "datasets"
PROMPTS = HERE / "prompts" / "collection_prompts.txt"
MOST_PROBLEMS = 20

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

Name = Annotated[str, typer.Argument(metavar="SET", help="A name that `list` shows, or the path of a JSON file.")]
Names = Annotated[list[str], typer.Argument(metavar="SET...", help="Names that `list` shows, or paths of JSON files.")]
Out = Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The JSON file to write.")]
AsJson = Annotated[bool, typer.Option("--json", help="Write one JSON object to standard output.")]


@app.command("list")
def list_command(as_json: AsJson = False) -> None:
    """Show every set: its rows, what they are about, and how far length alone tells the chosen answer."""
    listed = checked.listing(DATASETS)
    n_prompts = _prompts()
    if as_json:
        told = [{"name": s.name, "path": s.path, "report": s.report and s.report.as_json()} for s in listed]
        _print_json({"sets": told, "prompts": {"path": PROMPTS, "n": n_prompts}})
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("set")
    table.add_column("rows", justify="right")
    table.add_column("what it holds", overflow="fold")
    for name, path, report in listed:
        table.add_row(name, "-" if report is None else str(report.n), "\n".join(_holds(name, path, report)) + "\n")
    _console().print(table)
    _say(f"{'missing:' if n_prompts is None else f'{n_prompts} prompts in'} {_near(PROMPTS)}")


@app.command("validate")
def validate_command(name: Name, as_json: AsJson = False) -> None:
    """Say what is wrong with a set and what it holds; exit code 1 where something is wrong."""
    path = sets.find(name, DATASETS)
    report = checked.validate(path)
    if as_json:
        _print_json({"path": path, **report.as_json()})
    else:
        _say(f"{_near(path)}: {_count(report.n, 'row')}" if report.n else f"{_near(path)}")
        for problem in report.problems[:MOST_PROBLEMS]:
            _say(f"  problem: {problem.text}", style="red")
        if (more := len(report.problems) - MOST_PROBLEMS) > 0:
            _say(f"  … and {more} more; --json names them all.", style="red")
        for notice in report.notices:
            _say(f"  notice: {notice.text}", style="yellow")
        for line in _contents(report):
            _say(f"  {line}")
        verdict = "Correct them; the file is as it was." if report.problems else "The set can be used."
        found = f"{_count(len(report.problems), 'problem')}, {_count(len(report.notices), 'notice')}"
        _say(f"{found.capitalize()}. {verdict}")
    if report.problems:
        raise typer.Exit(1)


@app.command("merge")
def merge_command(
    names: Names,
    output: Out,
    mark: Annotated[bool, typer.Option("--mark", help="Write each row's set into metadata.original_source.")] = False,
    as_json: AsJson = False,
) -> None:
    """Join sets in the order given; of rows that say the same the first stays."""
    _writable(output)
    paths = [sets.find(name, DATASETS) for name in names]
    merged = sets.merge([(path.stem, checked.usable(path)) for path in paths], mark=mark)
    sets.write(output, merged.rows)
    if as_json:
        swapped = merged.contradictions
        _print_json({"path": output, "n": len(merged.rows), "duplicates": merged.duplicates, "contradictions": swapped})
        return
    for one, other in merged.contradictions:
        _say(f"notice: rows {one} and {other} say the opposite of each other; both are kept, decide.", style="yellow")
    _say(f"{_count(len(merged.rows), 'row')} in {_near(output)}; {_count(merged.duplicates, 'duplicate')} left out.")


@app.command("split")
def split_command(
    name: Name,
    ratio: Annotated[float, typer.Option(help="Share of the prompts to train on.")] = 0.8,
    seed: Annotated[int, typer.Option(help="Another seed draws another split.")] = 0,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FOLDER", help="Where the two files go; beside the set.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Divide a set by prompt, in each category alike, into SET_train.json and SET_val.json."""
    path = sets.find(name, DATASETS)
    sides = sets.split(checked.usable(path), ratio=ratio, seed=seed)
    written: dict[str, Any] = {}
    for side, rows in (("train", sides.train), ("val", sides.val)):
        target = (output or path.parent) / f"{path.stem}_{side}.json"
        sets.write(target, rows)
        written[side] = {"path": target, "n": len(rows), "counts": checked.check(rows).counts}
    if as_json:
        _print_json({**written, "ratio": ratio, "seed": seed, "notes": sides.notes})
        return
    for note in sides.notes:
        _say(f"notice: {note}", style="yellow")
    for side in written.values():
        _say(f"{_count(side['n'], 'row')} in {_near(side['path'])} ({_sum(side['counts']['category'])})")


@app.command("filter")
def filter_command(
    name: Name,
    output: Out,
    category: Annotated[str | None, typer.Option(help="Keep this category, such as safety.")] = None,
    quality: Annotated[str | None, typer.Option(help="Keep this quality, such as helpful_vs_vague.")] = None,
    source: Annotated[str | None, typer.Option(help="Keep this source, such as curated.")] = None,
    min_length: Annotated[int | None, typer.Option(help="Fewest words of the chosen answer.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Most words of the chosen answer.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write the rows of a set that meet every condition given."""
    _writable(output)
    path = sets.find(name, DATASETS)
    if output.exists() and output.samefile(path):
        raise InputError(f"{output} is the set itself, and what is not kept would be lost; name another file.")
    rows = checked.usable(path)
    kept = sets.filter_rows(
        rows, category=category, quality=quality, source=source, min_length=min_length, max_length=max_length
    )
    sets.write(output, kept)
    if as_json:
        _print_json({"path": output, "kept": len(kept), "dropped": len(rows) - len(kept)})
        return
    _say(f"{_count(len(kept), 'row')} in {_near(output)}; {len(rows) - len(kept)} of {len(rows)} dropped.")


def _prompts() -> int | None:
    try:
        return len(sets.prompts(PROMPTS))
    except InputError:
        return None


def _holds(name: str, path: Path, report: checked.Report | None) -> list[str]:
    if report is None:
        return [f"missing: {path.relative_to(DATASETS)}", sets.REMEDIES[path.parent.name]]
    wrong = f"{_count(len(report.problems), 'problem')}: see `validate {name}`"
    return [*([wrong] if report.problems else []), *(_contents(report) if report.n else [])]


def _contents(report: checked.Report) -> list[str]:
    """Return what the rows that can be read hold, a line each."""
    read = report.longer.n
    lines = [f"{read} of {report.n} rows can be read:"] if read < report.n else []
    lines += [f"{name:<9} {_sum(counts)}" for name, counts in report.counts.items() if counts]
    if read:
        lines.append(f"words     {report.words['chosen']:.1f} chosen, {report.words['rejected']:.1f} rejected (mean)")
        lines.append(f"length    longer answer wins {_share(report.longer)}")
    return lines


def _sum(counts: Mapping[str, int]) -> str:
    """Return counts as a sum; where many values occur once they are only counted."""
    once = [value for value, n in counts.items() if n == 1]
    if len(once) <= 3:
        return " + ".join(f"{n} {value}" for value, n in counts.items())
    told = [f"{n} {value}" for value, n in counts.items() if n > 1]
    return " + ".join([*told, f"{len(once)} {'others' if told else 'kinds'}, one row each"])


def _share(estimate: Estimate) -> str:
    value, low, high = (f"{100 * number:.0f}" for number in estimate[:3])
    interval = "too few prompts for an interval" if estimate.low != estimate.low else f"95 % {low} to {high} %"
    return f"{value} % ({interval}, n = {estimate.n})"


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n or 'no'} {what}s"


def _writable(output: Path) -> None:
    if output.suffix != ".json":
        raise InputError(f"{output} does not end in .json; name the file to write, such as {output.stem}.json.")


def _near(path: Path) -> Path:
    """Return the path from here where it lies below, and as it is elsewhere."""
    full, here = path.resolve(), Path.cwd()
    return full.relative_to(here) if full.is_relative_to(here) else path


def _console() -> Console:
    return Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else 120)


def _say(text: str, *, style: str = "") -> None:
    _console().print(text, style=style, soft_wrap=True)


def _print_json(value: Mapping[str, Any]) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


if __name__ == "__main__":
    leave(app, "manage_data.py")
