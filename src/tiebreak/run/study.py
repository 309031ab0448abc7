"""A study: one recipe in many cells, measured alike, kept one by one, and told in one table and one figure.

Each cell is an ordinary run. Its numbers are on disk before the next cell begins, so a study that was killed goes on
with the cells that are missing; one that fails by a mistake is told in the table, and the others go on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from tiebreak.recipe import Recipe
from tiebreak.records import InputError, Progress, content_id, quiet
from tiebreak.run.cells import Cell, cells_of, shared_stages
from tiebreak.run.folder import as_json, read_json, write_json, write_text
from tiebreak.run.lanes import side_by_side
from tiebreak.run.run import Display, Silent, remembered, run
from tiebreak.run.study_table import table_of

Line = dict[str, Any]
"""What ``cells.jsonl`` says of a cell."""


class Studied(NamedTuple):
    """What a study did: its folder, the table, how many cells were carried out now and how many were known."""

    folder: Path
    table: Mapping[str, Any]
    carried_out: int
    known: int


def study(
    recipe: Recipe, *, display: Display | None = None, tell: Callable[[str], None] = lambda _text: None
) -> Studied:
    """Carry out every cell that is missing, then write ``table.md``, ``table.json`` and ``figure.svg``.

    Args:
        recipe: with a study section, see :func:`tiebreak.recipe.load_recipe`.
        display: shows stages that several cells share, where the cells run in this process (``study.jobs`` is 1).
        tell: called with a line of text for each finished cell.

    Raises:
        InputError: the study is not one that can be carried out; a mistake inside a cell is told in the table.
    """
    section = recipe.study
    cells = cells_of(recipe)
    assert section is not None
    home = recipe.folder / "study"
    write_json(recipe.folder / "recipe.json", remembered(recipe))
    lines = read_lines(home)
    todo = [cell for cell in cells if not _done(lines.get(cell.key), home)]
    clock = _Clock(len(cells), len(cells) - len(todo), section.jobs)
    tell(f"{len(cells):,} cells, {clock.done:,} of them known")
    for cell, line in _carried_out(cells, todo, home, section.jobs, display or Silent()):
        lines[cell.key] = line
        write_text(home / "cells.jsonl", "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in lines.values()))
        tell(clock.told(cell, line))
    table = table_of(section, [lines[cell.key] for cell in cells], home)
    write(home, table)
    return Studied(home, table, len(todo), len(cells) - len(todo))


def write(home: Path, table: Mapping[str, Any]) -> None:
    """Write the table in both forms, and the figure where matplotlib is installed and some cell has numbers."""
    from tiebreak.report import canvas
    from tiebreak.report.study import figure, markdown

    write_json(home / "table.json", table)
    write_text(home / "table.md", markdown(table))
    if canvas.available() and any(row["win"] for row in table["rows"]):
        write_text(home / "figure.svg", figure(table))


def read_lines(home: Path) -> dict[str, Line]:
    """Return the lines of ``cells.jsonl`` by key, none where there is no file.

    Raises:
        InputError: a line is not one that a study has written.
    """
    path = home / "cells.jsonl"
    found: dict[str, Line] = {}
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines() if path.is_file() else [], 1):
        try:
            line = json.loads(text)
            found[line["key"]] = line
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}:{number} is not a line of a study; mend it, or delete it to redo.") from error
    return found


def prompts_file(home: Path, key: str) -> Path:
    """Return where a cell's numbers of each prompt are."""
    return home / "prompts" / f"{key}.json"


def _done(line: Line | None, home: Path) -> bool:
    """Whether a cell has its numbers; one that failed is tried again."""
    return line is not None and line["failed"] is None and prompts_file(home, line["key"]).is_file()


def forecast(recipe: Recipe) -> dict[str, Any]:
    """Return how many cells there are and are known, and how often each stage will be made over all of them."""
    cells = cells_of(recipe)
    lines = read_lines(recipe.folder / "study")
    stages: dict[str, set[str]] = {}
    for cell in cells:
        for name, key in cell.stages.items():
            stages.setdefault(name, set()).add(key)
    return {
        "cells": len(cells),
        "known": sum(_done(lines.get(cell.key), recipe.folder / "study") for cell in cells),
        "stages": {name: len(keys) for name, keys in stages.items()},
    }


def said(recipe: Recipe, *, dry_run: bool, as_object: bool) -> str:
    """Carry out a study for the command line, or forecast it, and return what it prints."""
    if dry_run:
        found = forecast(recipe)
        made = ", ".join(f"{name} {count:,}" for name, count in found["stages"].items())
        return as_json(found) if as_object else f"{found['cells']:,} cells, {found['known']:,} known. Made: {made}."
    from tiebreak.report.study import markdown
    from tiebreak.run.display import display

    show = display()
    try:
        done = study(recipe, display=show, tell=lambda text: print(text, file=sys.stderr, flush=True))  # noqa: T201
    finally:
        if hasattr(show, "close"):
            show.close()
    return as_json(done.table) if as_object else f"{markdown(done.table)}\nWritten: {done.folder / 'table.md'}"


class _Watch:
    """Shows the stages that several cells share, and remembers what was made and where a run stood."""

    def __init__(self, show: Display, shown: Collection[str]) -> None:
        self.show, self.shown = show, shown
        self.at: str | None = None
        self.made: dict[str, float] = {}

    def begin(self, stage: str) -> Progress:
        """Take note of the stage that is worked on."""
        self.at = stage
        return self.show.begin(stage) if stage in self.shown else quiet

    def end(self, stage: str, manifest: Mapping[str, Any], skipped: bool) -> None:
        """Take note of what it took."""
        self.at = None
        if not skipped:
            self.made[stage] = manifest["seconds"]
            if stage in self.shown:
                self.show.end(stage, manifest, False)


def carry_out(cell: Cell, *, home: Path, shared: Collection[str], show: Display) -> Line:
    """Run one cell and return its line; a mistake of the user's is its sentence, and the stage it was in."""
    from tiebreak.run.stages import Waits

    watch = _Watch(show, [name for name, key in cell.stages.items() if key in shared])
    try:
        ran = run(cell.recipe, display=watch)
    except Waits:
        raise
    except InputError as error:
        return _line(cell, failed=str(error), at=watch.at, made=watch.made)
    own = sum(seconds for name, seconds in watch.made.items() if cell.stages[name] not in shared)
    measured = _measured(cell, ran.folder / "evaluate", home)
    return _line(cell, made=watch.made) | {"seconds": round(own, 3)} | measured


def _line(
    cell: Cell, *, failed: str | None = None, at: str | None = None, made: Mapping[str, float] | None = None
) -> Line:
    """Return the beginning of a cell's line, which is all of it where the cell ``failed`` in the stage ``at``."""
    known = {"key": cell.key, "seed": cell.seed, "names": dict(cell.names)}
    return known | {"failed": failed, "at": at, "made": dict(made or {})}


def _measured(cell: Cell, evaluated: Path, home: Path) -> Line:
    """Keep what the first win rate of a run says, by prompt in a file of its own, and return the means."""
    row = read_json(evaluated / "results.json")["win_rates"][0]
    every = [json.loads(line) for line in (evaluated / "wins.jsonl").read_text(encoding="utf-8").splitlines()]
    lines = [line for line in every if line["against"] == row["against"]]
    by = "true" if "true" in row else "judged"
    columns = {
        "group": [line["group"] for line in lines],
        "win": [line[by] for line in lines],
        "words": [line["words"][0] for line in lines],
        "words_against": [line["words"][1] for line in lines],
    }
    if "kl" in row:
        columns["kl"] = [line["kl"] for line in lines]
    write_text(prompts_file(home, cell.key), json.dumps(columns) + "\n")
    section = cell.recipe.evaluate
    return {
        "of": row["of"],
        "against": row["against"],
        "measured_by": f"the rule {section.truth}" if section and by == "true" else ", ".join(row["judges"]),
        "asked": content_id("asked", [line["prompt_id"] for line in lines]),
        "win": {name: row["true" if by == "true" else "rate"][name] for name in ("value", "low", "high", "n")},
        "kl": row.get("kl"),
        "words": row["mean_length"],
    }


class _Clock:
    """Says how far a study is and about how long it still takes, by the cells of this call."""

    def __init__(self, total: int, done: int, jobs: int) -> None:
        self.total, self.done, self.jobs = total, done, jobs
        self.seconds: list[float] = []

    def told(self, cell: Cell, line: Line) -> str:
        """Count a cell and return the line about it; stages made for several cells are not in the estimate."""
        self.done += 1
        place = f"[{self.done:>{len(str(self.total))}}/{self.total}] {cell.label}: "
        if line["failed"] is not None:
            return place + f"failed: {line['failed']}"
        self.seconds.append(line["seconds"])
        left = (self.total - self.done) * sum(self.seconds) / len(self.seconds) / self.jobs
        numbers = [f"{100 * line['win']['value']:.1f} % win", f"{line['words'][line['of']]:.1f} words"]
        if line["kl"]:
            numbers.append(f"{line['kl']['value']:.2f} nats")
        return f"{place}{', '.join(numbers)}; {line['seconds']:.1f} s, about {_minutes(left)} left"


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _carried_out(
    cells: Sequence[Cell], todo: Sequence[Cell], home: Path, jobs: int, show: Display
) -> Iterator[tuple[Cell, Line]]:
    """Yield each cell with its line as it ends; what shares a stage that failed is not tried."""
    work = partial(carry_out, home=home, shared=shared_stages(cells))
    failed: dict[str, str] = {}

    def known(cell: Cell) -> Line | None:
        why = next((failed[key] for key in cell.stages.values() if key in failed), None)
        return None if why is None else _line(cell, failed=why)

    ended: Iterator[tuple[Cell, Line]]
    if jobs == 1:
        ended = ((cell, known(cell) or work(cell, show=show)) for cell in todo)
    else:
        by_seed = [[cell for cell in todo if cell.seed == seed] for seed in {cell.seed: None for cell in todo}]
        ended = side_by_side(partial(work, show=Silent()), by_seed, jobs, known)
    for cell, line in ended:
        if line["at"] is not None:
            failed[cell.stages[line["at"]]] = line["failed"]
        yield cell, line
