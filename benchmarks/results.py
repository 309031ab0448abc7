"""From what the processes measured to the JSON and the table: medians of per-step ratios, never ratios of medians."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median, quantiles
from typing import Any

SETTINGS: dict[str, dict[str, Any]] = {
    "like_for_like": {
        "trl_checkpointing": False,
        "trl_precompute": False,
        "ours_cached": False,
        "says": "no checkpointing, the reference in the step, on both sides",
    },
    "defaults": {
        "trl_checkpointing": None,
        "trl_precompute": False,
        "ours_cached": True,
        "says": "TRL's defaults (checkpointing, reference in the step) against ours (neither)",
    },
    "precomputed": {
        "trl_checkpointing": False,
        "trl_precompute": True,
        "ours_cached": True,
        "says": "the reference computed once, before training, on both sides",
    },
}
"""What is compared with what. ``None`` leaves TRL its default."""

SAYS = {name: setting["says"] for name, setting in SETTINGS.items()} | {
    "head_equal": "like for like, with TRL's vocabulary head made to do no more than on a GPU"
}

Steps = Sequence[Mapping[str, Any]]


def ratios(steps: Steps) -> dict[str, Any]:
    """Return how many times as long TRL took: the median and the lowest of the per-step ratios, and how many."""
    each = [step["trl"]["seconds"] / step["ours"]["seconds"] for step in steps]
    return {"median": median(each), "lowest": min(each), "n": len(each), "each": [round(ratio, 4) for ratio in each]}


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return the median and the quartiles."""
    low, middle, high = quantiles(values, n=4, method="inclusive") if len(values) > 1 else (values[0],) * 3
    return {"median": middle, "quartiles": [low, high], "n": len(values)}


def summary(job: Mapping[str, Any], phase: str, found: Mapping[str, Any], peak: float | None) -> dict[str, Any]:
    """Return what one phase of a speed run says: ratios, seconds, tokens a second, the share of the GPU's peak."""
    warm = [step for step in found["steps"] if step["phase"] == phase and step["warm"]]
    sides: dict[str, Any] = {}
    for side in ("trl", "ours"):
        seconds = [step[side]["seconds"] for step in warm]
        tokens = [step["trl"]["rows"]["all"] for step in warm]
        sides[side] = spread(seconds) | {"reference_pass": found["reference_pass"][side]}
        sides[side]["tokens_per_second"] = median(t / s for t, s in zip(tokens, seconds, strict=True))
        if peak:
            done = [_operations(step["trl"]["rows"], job, side, found["parameters"]) for step in warm]
            sides[side]["share_of_peak"] = median(d / s for d, s in zip(done, seconds, strict=True)) / (peak * 1e12)
    return {"ratios": ratios(warm), "seconds": sides}


def _operations(rows: Mapping[str, int], job: Mapping[str, Any], side: str, weights: Mapping[str, int]) -> float:
    """Return floating-point operations of a step: 2 a weight and position forward, twice that backward.

    Positions are those a side computes (TRL pads, tiebreak stores a prompt once), and computing again for checkpoints
    counts; attention's own products are left out, so true shares are a little higher.
    """
    setting, task = job["setting"], job["task"]
    positions = rows["padded" if side == "trl" else "shared"]
    forward = 2.0 * weights["body"] * positions
    head = 2.0 * weights["head"] * rows["completion"] if task != "reward" else 0.0
    again = side == "trl" and setting["trl_checkpointing"] is None
    apart = setting["trl_precompute"] if side == "trl" else setting["ours_cached"]
    reference = forward + head if task == "dpo" and not apart else 0.0
    return (4 if again else 3) * forward + 3 * head + reference


def parity(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return how far the losses and gradient norms of the two sides are apart in the first step, from equal weights."""
    first = found["steps"][0]
    own, ours = first["trl"], first["ours"]
    later = [abs(step["trl"]["loss"] - step["ours"]["loss"]) for step in found["steps"]]
    return {
        "trl_loss": own["loss"],
        "ours_loss": ours["loss"],
        "loss_difference": abs(own["loss"] - ours["loss"]),
        "grad_norm_relative_difference": abs(own["grad_norm"] - ours["grad_norm"]) / own["grad_norm"],
        "largest_loss_difference": max(later),
        "steps": len(later),
    }


def positions(found: Mapping[str, Any], until: int) -> dict[str, Any]:
    """Return positions a step through body and head, and tiebreak's as a share of TRL's policy forward.

    Bodies are counted in all steps but the first, heads in the warm-up steps between it and step ``until``, so the
    completion tokens beside them are those steps' too.
    """
    counted, rows = found["positions"], [step["trl"]["rows"]["completion"] for step in found["steps"][1:until]]
    theirs, ours = counted["trl"]["policy"], counted["ours"]["policy"]
    return counted | {
        "completion_tokens": sum(rows) / len(rows),
        "body_ratio": ours["body"] / theirs["body"],
        "head_ratio": ours["head"] / theirs["head"],
        "body_steps": len(found["steps"]) - 1,
        "head_steps": len(rows),
    }


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield lines of a plain table: the first two columns to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    for row in (heads, ["-" * width for width in widths], *rows):
        cells = [cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        yield "  ".join(cells).rstrip()


def report(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of the terminal's report."""
    yield from _speeds(result)
    yield ""
    rows = []
    for task, one in result["positions"].items():
        for side in ("trl", "ours"):
            for name, counts in one[side].items():
                rows.append((task, f"{_side(side)} {name}", f"{counts['body']:,.0f}", f"{counts['head']:,.0f}"))
        rows.append((task, "completion tokens", "", f"{one['completion_tokens']:,.0f}"))
        rows.append((task, "tiebreak / TRL, policy", f"{one['body_ratio']:.3f}", f"{one['head_ratio']:.3f}"))
    if rows:
        yield from table(("positions a step", "forward of", "body", "head"), rows)
        some = next(iter(result["positions"].values()))
        yield f"Means over {some['body_steps']} steps (body) and over {some['head_steps']} of the warm-up steps (head)."
        yield ""
    rows = [
        (task, "", f"{one['trl_mb']:,.0f}", f"{one['ours_mb']:,.0f}", f"{one['ratio']:.3f}")
        for task in result["settings"]["tasks"]
        for one in [result["memory"].get(task, {})]
        if "ratio" in one
    ]
    if rows:
        yield from table(("peak memory", "", "TRL MB", "tiebreak MB", "ratio"), rows)
        yield ""
    rows = [
        (task, precision, f"{one['trl_loss']:.6f}", f"{one['loss_difference']:.1e}", f"{grad:.1e}")
        for task, both in result["parity"].items()
        for precision, one in both.items()
        for grad in [one["grad_norm_relative_difference"]]
    ]
    if rows:
        yield from table(("first step", "precision", "TRL's loss", "difference", "gradient norm, relative"), rows)
    for task, one in result["head_check"].items():
        yield f"{task}: TRL's loss with its own head and with the labelled one differs by {one['difference']:.1e}."


def _speeds(result: Mapping[str, Any]) -> Iterator[str]:
    rows = []
    for task, found in result["ratios"].items():
        for name, one in found.items():
            seconds = result["seconds"][task][name]
            cells = [f"{seconds[side]['median']:.2f}" for side in ("trl", "ours")]
            speeds = [f"{seconds[side]['tokens_per_second']:,.0f}" for side in ("trl", "ours")]
            shares = [
                f"{seconds[side]['share_of_peak']:.1%}" if "share_of_peak" in seconds[side] else "-"
                for side in ("trl", "ours")
            ]
            rows.append((task, name, *cells, f"{one['median']:.2f}x", f"{one['lowest']:.2f}x", f"{one['n']}"))
            rows[-1] += (*speeds, *(shares if any(share != "-" for share in shares) else ()))
    heads = ("task", "setting", "TRL s", "tiebreak s", "median", "lowest", "n", "TRL tokens/s", "tiebreak tokens/s")
    if rows and len(rows[0]) > len(heads):
        heads += ("TRL of peak", "tiebreak of peak")
    if rows:
        yield from table(heads, rows)
        yield ""
    for name, says in SAYS.items():
        if any(name in found for found in result["ratios"].values()):
            yield f"{name}: {says}."
    if result["settings"]["device"] == "cpu":
        yield "On a processor TRL projects every position onto the vocabulary, on a GPU only labelled ones: head_equal"
        yield "is the part that carries over to a GPU."


def _side(side: str) -> str:
    return "TRL" if side == "trl" else "tiebreak"
