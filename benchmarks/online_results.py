"""From what the processes of ``online.py`` measured to the JSON, the table and the chart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import results
from results import spread, table

PARTS = ("step", "sampling", "scoring", "update")
TOO_SHORT = 0.05
"""Seconds below which a part is noise and its ratio says nothing, such as scoring without a reference."""

SAYS = {
    "like_for_like": "no checkpointing, one update a batch, TRL's default weight of the reference, on both sides",
    "head_equal": results.SAYS["head_equal"],
}
NAMES = {"trl": "TRL", "ours": "tiebreak", "apart": "a copy of the prompt each"}

Steps = Sequence[Mapping[str, Any]]


def ratios(steps: Steps, other: str) -> dict[str, Any]:
    """Return how many times as long the other side took, part by part: medians of per-step ratios.

    ``lowest`` is the lowest of the whole steps' ratios, ``lowest_of`` that of each part, ``learning`` all behind
    sampling. A part too short to time has none.
    """
    found: dict[str, Any] = {"lowest_of": {}, "each": {}}
    for name in (*PARTS, "learning"):
        pairs = [tuple(_seconds(step[side]["times"], name) for side in (other, "ours")) for step in steps]
        if min(map(min, pairs)) < TOO_SHORT:
            found[name] = None
            continue
        each = [theirs / ours for theirs, ours in pairs]
        found[name], found["lowest_of"][name] = median(each), min(each)
        found["each"][name] = [round(ratio, 4) for ratio in each]
    return found | {"lowest": found["lowest_of"].get("step"), "n": len(steps)}


def _seconds(times: Mapping[str, float], name: str) -> float:
    return times["scoring"] + times["update"] if name == "learning" else times[name]


def seconds(steps: Steps, side: str, samples: int) -> dict[str, Any]:
    """Return median and quartiles of a side's step and its parts, and completions a second."""
    found: dict[str, Any] = {part: spread([step[side]["times"][part] for step in steps]) for part in PARTS}
    return found | {"samples_per_second": median(samples / step[side]["times"]["step"] for step in steps)}


def summary(job: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a speed run says; the first phase stands at the top, others beside it under their names."""
    samples = job["prompts"] * job["generations"]
    ratio: dict[str, Any] = {}
    second: dict[str, Any] = {}
    for phase in job["phases"]:
        warm = [step for step in found["steps"] if step["phase"] == phase["name"] and step["warm"]]
        ratio[phase["name"]] = ratios(warm, "trl")
        second[phase["name"]] = {side: seconds(warm, side, samples) for side in ("trl", "ours")}
    first = job["phases"][0]["name"]
    others = {name: one for name, one in ratio.items() if name != first}
    return {
        "ratios": ratio[first] | others,
        "seconds": second[first] | {name: second[name] for name in others},
        "parity": parity(found["steps"]),
    } | ({"share": found["share"]} if found["share"] else {})


def parity(steps: Steps) -> dict[str, Any]:
    """Return the losses and the gradient norms of both sides in the first step, from equal weights."""
    first = steps[0]
    norms = {f"{side}_grad_norm": first[side]["grad_norm"] for side in ("trl", "ours")}
    losses = {f"{side}_loss": first[side]["loss"] for side in ("trl", "ours")}
    apart = abs(norms["trl_grad_norm"] - norms["ours_grad_norm"]) / norms["trl_grad_norm"]
    return losses | norms | {"grad_norm_relative_difference": apart}


def copied(job: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """Return what shared prompts are worth to a method of ours: the other side has a copy for each completion."""
    samples = job["prompts"] * job["generations"]
    warm = [step for step in found["steps"] if step["warm"]]
    return {
        "ratios": ratios(warm, "apart"),
        "seconds": {side: seconds(warm, side, samples) for side in ("apart", "ours")},
        "parity": {
            "largest_loss_difference": max(abs(step["apart"]["loss"] - step["ours"]["loss"]) for step in found["steps"])
        },
    }


def report(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of the terminal's report."""
    rows = [row for task, found in result["ratios"].items() for row in _rows(task, found, result["seconds"][task])]
    if rows:
        yield from table(("task", "setting", "part", "other s", "tiebreak s", "median", "lowest", "n"), rows)
        yield ""
    rows = [
        (task, NAMES[side], f"{one['samples_per_second']:.2f}")
        for task, sides in result["seconds"].items()
        for side, one in sides.items()
        if side in NAMES
    ]
    if rows:
        yield from table(("completions a second", "", ""), rows)
        yield ""
    rows = [
        (task, NAMES[side[:-3]], f"{mb:,.0f}", f"{sides['ratio']:.3f}" if side == "ours_mb" else "")
        for task, sides in result["memory"].items()
        if "ratio" in sides
        for side, mb in sides.items()
        if side != "ratio"
    ]
    if rows:
        yield from table(("peak memory", "", "MB", "of the other"), rows)
        yield ""
    for task, one in result["share"].items():
        yield (
            f"{task}: of our step {one['sampling']:.0%} is sampling, {one['matrix']:.0%} products of matrices behind "
            f"it, {one['neither']:.0%} neither."
        )
    for task, one in result["parity"].items():
        if "trl_grad_norm" in one:
            yield f"{task}, first step: gradient norm {one['trl_grad_norm']:.4f} (TRL), {one['ours_grad_norm']:.4f}."
    yield from _notes(result)


def _rows(task: str, found: Mapping[str, Any], times: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    if "apart" in times:
        yield from _parts(task, "copies against shared", found, times["apart"], times["ours"])
        return
    yield from _parts(task, "like_for_like", found, times["trl"], times["ours"])
    if "head_equal" in found:
        both = times["head_equal"]
        yield from _parts(task, "head_equal", found["head_equal"], both["trl"], both["ours"])


def _parts(
    task: str, name: str, found: Mapping[str, Any], theirs: Mapping[str, Any], ours: Mapping[str, Any]
) -> Iterator[tuple[str, ...]]:
    for part in PARTS:
        ratio = ("-", "-") if found[part] is None else (f"{found[part]:.2f}x", f"{found['lowest_of'][part]:.2f}x")
        spent = [f"{side[part]['median']:.2f}" for side in (theirs, ours)]
        yield (task, name, part, *spent, *ratio, str(found["n"]))


def _notes(result: Mapping[str, Any]) -> Iterator[str]:
    compared = [found for task, found in result["ratios"].items() if task != "ppo"]
    if not compared:
        return
    yield ""
    for name, says in SAYS.items():
        if name == "like_for_like" or any(name in found for found in compared):
            yield f"{name}: {says}."
    if result["settings"]["model"] != "llama":
        yield "TRL pads prompts on the left and gives no positions, so a model with absolute ones, as GPT-2, begins"
        yield "a shorter prompt at a later position there, and its gradient differs from ours for that."


def draw(result: Mapping[str, Any], file: Path) -> None:
    """Draw the median of the whole steps' ratios to TRL with the chart of ``train.py``."""
    import chart

    chart.TASKS.update({"grpo": "GRPO", "rloo": "RLOO"})
    bars: dict[str, dict[str, Any]] = {}
    for task, found in result["ratios"].items():
        if task in chart.TASKS:
            named = {"like_for_like": found} | {name: found[name] for name in SAYS if name in found}
            bars[task] = {name: {"median": one["step"], "lowest": one["lowest"]} for name, one in named.items()}
    chart.draw([dict(result) | {"ratios": bars}], file)
