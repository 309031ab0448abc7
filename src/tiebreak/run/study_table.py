"""The table of a study: each combination of what was varied, its numbers pooled over the seeds.

A pooled number is the mean of the seeds' means, with a 95 % interval clustered by prompt group: it says how sure the
mean of these trainings is. What another seed would give is another question, which few seeds can hardly answer; so the
seeds' own values stand beside it, and the interval over seeds, with its few degrees of freedom, in ``over_seeds``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tiebreak.recipe.sections import Study
from tiebreak.run.cells import combinations_of
from tiebreak.run.folder import read_json
from tiebreak.stats.intervals import Estimate, Floats, as_dict, clustered_mean, rate

Line = Mapping[str, Any]
MEASURES = ("win", "kl", "words")


def table_of(section: Study, lines: Sequence[Line], home: Path) -> dict[str, Any]:
    """Return the table: what was varied and measured, and a row per combination, the first axis moving fastest.

    Args:
        section: names the axes and cells.
        lines: of all cells, as in ``cells.jsonl``.
        home: the study's folder, which holds the numbers of each prompt.
    """
    by_names: dict[tuple[str, ...], list[Line]] = {}
    for line in lines:
        by_names.setdefault(tuple(line["names"].values()), []).append(line)
    columns = {line["key"]: _columns(home, line["key"]) for line in lines if line["failed"] is None}
    first = next(iter(section.vary))
    baseline = next(iter(section.vary[first]))
    rows = []
    for names in combinations_of(section):
        beside = by_names[tuple((names | {first: baseline}).values())] if names[first] != baseline else []
        rows.append(_row(names, by_names[tuple(names.values())], beside, columns))
    fine = [line for line in lines if line["failed"] is None]
    return {
        "axes": {axis: list(cells) for axis, cells in section.vary.items()},
        "seeds": list(section.seeds),
        "baseline": baseline,
        "of": _one(line["of"] for line in fine),
        "against": _one(line["against"] for line in fine),
        "measured_by": _one(line["measured_by"] for line in fine),
        "prompts": len({group for found in columns.values() for group in found["group"]}),
        "words_against": _against(fine, columns),
        "cells": len(lines),
        "failed": len(lines) - len(fine),
        "rows": rows,
    }


def _row(
    names: Mapping[str, str], lines: Sequence[Line], beside: Sequence[Line], columns: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    fine = [line for line in lines if line["failed"] is None]
    found = [columns[line["key"]] for line in fine]
    values = [_mean(one["win"]) for one in found]
    over = clustered_mean(values) if values else None
    return {
        "names": dict(names),
        "seeds": [line["seed"] for line in fine],
        "win": _pooled(found, "win"),
        "by_seed": [round(value, 6) for value in values],
        "over_seeds": as_dict(over) if over else None,
        "beside": _difference(fine, beside, columns),
        "kl": _pooled(found, "kl") if all("kl" in one for one in found) else None,
        "words": _pooled(found, "words"),
        "failed": dict(Counter(line["failed"] for line in lines if line["failed"] is not None)),
    }


def _columns(home: Path, key: str) -> dict[str, Any]:
    found: dict[str, Any] = read_json(home / "prompts" / f"{key}.json")
    return found


def _numbers(values: Sequence[float | None]) -> Floats:
    """Return the values as an array, nan for a prompt without a readable verdict."""
    return np.array(values, dtype=np.float64)


def _mean(values: Sequence[float | None]) -> float:
    return float(np.nanmean(_numbers(values)))


def _pooled(found: Sequence[Mapping[str, Any]], measure: str) -> dict[str, Any] | None:
    """Return the mean over seeds of one measure; every seed counts alike, however many prompts it has."""
    if not found:
        return None
    parts = [_numbers(one[measure]) for one in found]
    values, groups, weights = _stacked(parts, [one["group"] for one in found])
    return as_dict((rate if measure == "win" else clustered_mean)(values, groups, weights=weights))


def _stacked(parts: Sequence[Floats], groups: Sequence[Sequence[str]]) -> tuple[Floats, list[str], Floats]:
    """Return the values of all seeds without nan, their clusters, and weights that give each seed the same share.

    Seeds that were asked the same prompts share clusters, for then their scores move together.
    """
    known = [~np.isnan(part) for part in parts]
    values = np.concatenate([part[keep] for part, keep in zip(parts, known, strict=True)])
    names = [
        name for some, keep in zip(groups, known, strict=True) for name, kept in zip(some, keep, strict=True) if kept
    ]
    sizes = [int(keep.sum()) for keep in known]
    even = sum(sizes) / len(sizes)  # equal seeds have weights of exactly 1
    weights = np.concatenate([np.full(size, even / max(1, size)) for size in sizes])
    return values, names, weights


def _difference(
    lines: Sequence[Line], beside: Sequence[Line], columns: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any] | None:
    """Return the mean of win minus the baseline's win on the same prompts of the same seed, None without any."""
    others = {line["seed"]: line for line in beside if line["failed"] is None}
    parts, groups = [], []
    for line in lines:
        other = others.get(line["seed"])
        if other is not None and other["asked"] == line["asked"]:
            ours, theirs = columns[line["key"]], columns[other["key"]]
            parts.append(_numbers(ours["win"]) - _numbers(theirs["win"]))
            groups.append(ours["group"])
    if not parts:
        return None
    values, names, weights = _stacked(parts, groups)
    found: Estimate = clustered_mean(values, names, weights=weights)
    return as_dict(found)


def _against(lines: Sequence[Line], columns: Mapping[str, Mapping[str, Any]]) -> float | None:
    """Return the mean length of the other side's answers; each distinct set of them counts once."""
    sets = {(line["seed"], line["asked"]): _mean(columns[line["key"]]["words_against"]) for line in lines}
    return round(sum(sets.values()) / len(sets), 4) if sets else None


def _one(values: Any) -> str:
    """Return what all say, or all that is said."""
    return ", ".join(dict.fromkeys(values))
