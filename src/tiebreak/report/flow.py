"""The way of the data: from rows of a file to rows that trained a model, with what was left behind at each step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tiebreak.report import words
from tiebreak.report.artefacts import Artefacts, Json


@dataclass(frozen=True, kw_only=True)
class Step:
    """One bar: how many of which unit there are after a step, how many went, and why."""

    name: str
    unit: str
    n: int
    lost: int = 0
    why: tuple[tuple[str, int], ...] = ()
    notes: tuple[str, ...] = ()


def steps(run: Artefacts) -> list[Step]:
    """Return the steps that this run has, in order."""
    found: list[Step] = []
    for part in (_imported, _sampled, _collected, _judged, _curated, _trained):
        found += part(run)
    return found


def _why(dropped: Json) -> tuple[tuple[str, int], ...]:
    return tuple((str(reason), int(n)) for reason, n in dropped.items() if n)


def _whole(counts: Mapping[str, Any], name: str) -> int:
    return int(counts.get(name) or 0)


def _imported(run: Artefacts) -> list[Step]:
    counts, why = run.counts("import"), _why(run.part("import", "dropped"))
    if not counts:
        return []
    where = {str(r.get("reason")): str(r.get("where")) for r in run.remarks if not r.get("kept")}
    why = tuple((f"{reason}, first at {where[reason]}" if reason in where else reason, n) for reason, n in why)
    notes = tuple(_kept(remark) for remark in run.remarks if remark.get("kept"))
    lost = sum(n for _, n in why)
    found = [
        Step(
            name="Rows taken in",
            unit="rows",
            n=max(0, _whole(counts, "rows") - lost),
            lost=lost,
            why=why,
            notes=notes,
        )
    ]
    splits = run.part("import", "outputs").get("splits") or {}
    split = words.join([f"{words.count(n)} {name}" for name, n in sorted(splits.items(), key=lambda item: -item[1])])
    found.append(
        Step(
            name="Prompts",
            unit="prompts",
            n=_whole(counts, "prompts"),
            notes=(f"split into {split}",) if len(splits) > 1 else (),
        )
    )
    for name in ("responses", "judgments"):
        if counts.get(name):
            found.append(Step(name=f"{words.capital(name)} imported", unit=name, n=_whole(counts, name)))
    return found


def _kept(remark: Json) -> str:
    times = words.plural(remark.get("count"), "row")
    return f"{times} kept: {remark.get('reason', '')}, first at {remark.get('where', 'an unknown place')}"


def _sampled(run: Artefacts) -> list[Step]:
    counts, knobs = run.counts("sample"), run.part("sample", "knobs")
    if not counts:
        return []
    prompts, limit = _whole(counts, "prompts"), knobs.get("limit")
    pool = run.counts("import").get(f"prompts {knobs.get('prompts')}")
    rest = int(pool) - prompts if pool is not None else 0
    why = ((f"beyond the limit of {words.count(limit)} prompts", rest),) if rest > 0 and limit else ()
    source, warmth = words.model(str(knobs.get("model"))), words.number(knobs.get("temperature"))
    notes = [f"drawn from {source} at temperature {warmth}"]
    if counts.get("prompts cut"):
        notes.append(f"{words.plural(counts['prompts cut'], 'prompt')} cut to the window")
    if counts.get("share ended by EOS") is not None:
        notes.append(f"{words.percent(counts['share ended by EOS'], 2)} ended by themselves")
    return [
        Step(name="Prompts sampled", unit="prompts", n=prompts, lost=rest if why else 0, why=why),
        Step(
            name="Answers drawn",
            unit="responses",
            n=_whole(counts, "drawn" if "drawn" in counts else "responses"),
            notes=tuple(notes),
        ),
    ]


def _collected(run: Artefacts) -> list[Step]:
    counts, why = run.counts("collect"), _why(run.part("collect", "dropped"))
    if not counts:
        return []
    open_, lost = _whole(counts, "comparisons") - _whole(counts, "judged"), sum(n for _, n in why)
    silent = [f"{words.count(counts[name])} {said}" for name, said in _SILENT.items() if counts.get(name)]
    notes = (f"{words.plural(open_, 'comparison')} still open",) if open_ else ()
    return [
        Step(name="Pairs judged by people", unit="pairs", n=_whole(counts, "judged"), lost=lost, why=why, notes=notes),
        Step(
            name=f"Judgments of {words.plural(counts.get('people'), 'person', 'people')}",
            unit="judgments",
            n=_whole(counts, "judgments"),
            notes=tuple(silent),
        ),
    ]


_SILENT = {"tie": "ties", "both_bad": "with both bad", "skip": "skipped"}


def _judged(run: Artefacts) -> list[Step]:
    counts, why = run.counts("judge"), _why(run.part("judge", "dropped"))
    if not counts:
        return []
    lost = sum(n for _, n in why)
    silent = [f"{words.count(counts.get(name))} {name}" for name in ("invalid", "ties") if counts.get(name)]
    if counts.get("known") and counts.get("asked"):
        silent.append(f"{words.count(counts['known'])} were in the ledger already")
    return [
        Step(name="Pairs judged", unit="pairs", n=_whole(counts, "pairs") - lost, lost=lost, why=why),
        Step(name="Judgments", unit="judgments", n=_whole(counts, "judgments"), notes=tuple(silent)),
    ]


def _curated(run: Artefacts) -> list[Step]:
    counts, found = run.counts("curate"), []
    for row, after in pairwise([*run.funnel, {}]):
        out, why, name = _whole(row, "rows_out"), _why(row.get("dropped") or {}), str(row.get("step", "a step"))
        before, named, _ = name.rpartition(": ")  # the list of steps it stands in, where there are several
        last = after.get("unit", "items") == "items"  # the next one, if any, begins another list
        unit = str(row.get("unit_out") or ("rows" if last else after["unit"]))
        lost = sum(n for _, n in why)
        if unit == row.get("unit"):  # else these are other rows: fewer lists than pairs are no loss
            lost = max(lost, _whole(row, "rows_in") - out)
        notes = [f"{what} in {_rows(n, str(row.get('unit')))}" for what, n in _why(row.get("changed") or {})]
        if last and (ties := counts.get(f"{before}{named}ties kept")):
            notes.append(f"{words.plural(ties, 'tie')} kept")
        title = name if named else f"After {name}"
        found.append(Step(name=title, unit=unit, n=out, lost=lost, why=why, notes=tuple(notes)))
    return found


def rows_made(run: Artefacts) -> list[Step]:
    """Return the last step of each list of curate steps: what there is to learn from."""
    following = [*run.funnel[1:], {}]
    return [
        step for step, after in zip(_curated(run), following, strict=False) if after.get("unit", "items") == "items"
    ]


def _rows(n: int, unit: str) -> str:
    return words.plural(n, unit.removesuffix("s"), unit)


def _trained(run: Artefacts) -> list[Step]:
    found = []
    for name in run.training:
        counts, why = run.counts(f"train.{name}"), _why(run.part(f"train.{name}", "dropped"))
        notes = []
        if held := counts.get("held out"):
            notes.append(f"{words.count(held)} more held out")
        if cut := counts.get("prompts cut"):
            notes.append(f"{words.plural(cut, 'prompt')} cut to the window")
        found.append(
            Step(
                name=f"{words.short(name)} learns from",
                unit="rows",
                n=_whole(counts, "rows"),
                lost=sum(n for _, n in why),
                why=why,
                notes=tuple(notes),
            )
        )
    return found
