"""Do the two learn the same: real training on human preferences with tiebreak and with TRL, their curves overlaid.

``python benchmarks/curves.py --against trl [--task dpo reward] [--seeds 3] [--json FILE] [--chart FILE.svg]`` trains a
small Llama from scratch on HH-RLHF's harmlessness pairs, once with TRL's own trainer and once with tiebreak's loop:
the same start weights, the same rows in the same order, the same constant learning rate, AdamW and clipping. Then both
are asked about pairs that neither has seen. Each difference stands beside the spread that seeds have anyway.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from command import Arguments, carry_out
from environment import ROOT, Mistake, in_process, python
from results import table

HERE = Path(__file__).resolve().parent
DATA = ROOT.parent / "shared" / "data" / "hh-rlhf-harmless"
TASKS = {"dpo": "DPO", "reward": "Reward model"}
SIDES = {"trl": "TRL", "ours": "tiebreak"}
COLOURS = {"trl": "#c08a3e", "ours": "#3b6ea5"}
BATCH, WINDOW, HELD_OUT = 16, 192, 400
"""Pairs of a step, tokens of a sequence, and opening questions held out with all pairs that begin with them."""

WEIGHT = {"thin": 0.7, "thick": 2.2}
TINY = 1e-9
"""Differences of 0 are drawn here, for the scale is logarithmic."""


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line.

    Raises:
        Mistake: something in it does not exist or cannot be had.
    """
    parser = Arguments(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", default="trl", choices=["trl"], help="the other side: trl")
    parser.add_argument("--task", nargs="+", default=list(TASKS), choices=list(TASKS), help="dpo, reward or both")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of start weights and order (default: 3)")
    parser.add_argument("--steps", type=int, default=60, help=f"steps of {BATCH} pairs (default: 60)")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of hh-rlhf-harmless, or its .jsonl.gz")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers")
    parser.add_argument("--chart", type=Path, metavar="FILE.svg", help="draw the curves")
    read = parser.parse_args(given)
    for name in ("seeds", "steps"):
        if getattr(read, name) < 1:
            raise Mistake(f"--{name} is {getattr(read, name)}; it has to be at least 1.")
    for file in filter(None, (read.json, read.chart)):
        if not file.absolute().parent.is_dir():
            raise Mistake(f"{file} cannot be written, for {file.parent} is not a folder.")
    if importlib.util.find_spec("tiebreak") is None:
        raise Mistake("tiebreak, whose intervals are used, is not installed here; pip install -e . brings it.")
    if read.chart and importlib.util.find_spec("matplotlib") is None:
        raise Mistake("--chart needs matplotlib, which is not installed; pip install 'tiebreak[report]' brings it.")
    read.data = data_file(read.data)
    read.task = list(dict.fromkeys(read.task))
    return read


def data_file(where: Path) -> Path:
    """Return the file of pairs at ``where``.

    Raises:
        Mistake: there is none.
    """
    found = sorted(where.glob("*.jsonl.gz")) if where.is_dir() else [where]
    if not found or not found[0].is_file():
        raise Mistake(f"There are no pairs at {where}; name the folder of hh-rlhf-harmless or its .jsonl.gz in --data.")
    return found[0].resolve()


def measure(interpreter: Path, job: Mapping[str, Any]) -> dict[str, Any]:
    """Train both sides of one task and seed in a process of TRL's environment, and return what it found.

    Raises:
        Mistake: the data cannot be used.
        RuntimeError: the process failed; its last lines are in the message.
    """
    title = f"{job['task']}, seed {job['seed']},"
    result = in_process(interpreter, "curves_side.py", job, title=title, retain_heap=True)
    if "mistake" in result:
        raise Mistake(result["mistake"])
    return result


def run(read: argparse.Namespace) -> dict[str, Any]:
    """Train everything and return it; what is there so far is written after every seed."""
    began = time.monotonic()
    interpreter = python()
    settings = {"steps": read.steps, "batch": BATCH, "window": WINDOW, "held_out": HELD_OUT, "data": str(read.data)}
    result: dict[str, Any] = {"settings": settings | {"seeds": read.seeds}, "tasks": {}}
    for task in read.task:
        runs: list[dict[str, Any]] = []
        for seed in range(1, read.seeds + 1):
            found = measure(interpreter, settings | {"task": task, "seed": seed})
            result["machine"] = found.pop("machine")
            runs.append({"seed": seed} | found)
            result["tasks"][task] = compared(runs)
            result["settings"]["minutes"] = round((time.monotonic() - began) / 60, 2)
            if read.json:
                write(result, read.json)
    return result


def write(result: Mapping[str, Any], file: Path) -> None:
    """Write JSON in one move, so that a reader or a kill never meets half of it."""
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(partial, file)


def compared(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the runs of one task with what they say: differences, the spread of seeds, accuracies with intervals.

    All seeds are asked about the same held-out pairs, so an interval over seeds takes an opening question with all its
    pairs and all its seeds as one cluster.
    """
    from tiebreak.stats.intervals import as_dict, paired_difference

    for one in runs:
        apart = [abs(a - b) for a, b in zip(one["trl"]["loss"], one["ours"]["loss"], strict=True)]
        one["loss_difference"] = {"largest": max(apart), "mean": fmean(apart), "each": apart}
        for side in SIDES:
            one[side]["accuracy"] = accuracy(one[side]["margins"], one["clusters"])
    clusters = [cluster for one in runs for cluster in one["clusters"]]
    asked = {side: [margin for one in runs for margin in one[side]["margins"]] for side in SIDES}
    right = {side: [(margin > 0) + (margin == 0) / 2 for margin in margins] for side, margins in asked.items()}
    pooled = {side: accuracy(margins, clusters) for side, margins in asked.items()}
    return {
        "runs": list(runs),
        "largest_difference": max(one["loss_difference"]["largest"] for one in runs),
        "seed_spread": {side: spread([one[side]["loss"] for one in runs]) for side in SIDES},
        "accuracy": pooled | {"difference": as_dict(paired_difference(right["ours"], right["trl"], clusters))},
        "judged_differently": sum(a != b for a, b in zip(right["trl"], right["ours"], strict=True)),
    }


def accuracy(margins: Sequence[float], clusters: Sequence[int]) -> dict[str, Any]:
    """Return the share of margins above 0, equal scores as 1/2, with its interval and the number of equal ones."""
    from tiebreak.evaluate.reward import pair_accuracy
    from tiebreak.stats.intervals import Estimate, as_dict

    found = pair_accuracy(margins, clusters)
    return as_dict(Estimate(found.value, found.low, found.high, found.n)) | {"ties": found.ties}


def spread(losses: Sequence[Sequence[float]]) -> dict[str, float] | None:
    """Return the standard deviation of seeds at a step, its mean and extremes over steps; None with one seed."""
    if len(losses) < 2:
        return None
    each = [stdev(step) for step in zip(*losses, strict=True)]
    return {"mean": fmean(each), "smallest": min(each), "largest": max(each)}


def report(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of the terminal's report."""
    for task, found in result["tasks"].items():
        runs = found["runs"]
        counts = ", ".join(f"{name} {count:,}" for name, count in runs[0]["rows"].items())
        yield f"{TASKS[task]}: Llama with {runs[0]['parameters']:,} weights; pairs: {counts}"
        rows = [
            (f"{one['seed']}", "", *(f"{one[s]['loss'][i]:.5f}" for i in (0, -1) for s in SIDES), *_apart(one))
            for one in runs
        ]
        heads = ("seed", "", "TRL first", "tiebreak first", "TRL last", "tiebreak last", "largest difference", "mean")
        yield from table(heads, rows)
        yield from _spread(found)
        yield ""
        rows = [
            (f"seed {one['seed']}", SIDES[side], *_rate(one[side]["accuracy"]), _own(one[side]))
            for one in runs
            for side in SIDES
        ]
        rows += [("all seeds", SIDES[side], *_rate(found["accuracy"][side]), "") for side in SIDES]
        yield from table(("held out", "side", "accuracy", "95 % interval", "n", "ties", "by TRL itself"), rows)
        gap = found["accuracy"]["difference"]
        yield (
            f"tiebreak - TRL: {gap['value']:+.2%}{_ends(gap, '+.2%')} on the same pairs; of {gap['n']:,} answers "
            f"{found['judged_differently']:,} differ. Intervals cluster by opening question."
        )
        yield ""


def _apart(one: Mapping[str, Any]) -> tuple[str, str]:
    return f"{one['loss_difference']['largest']:.1e}", f"{one['loss_difference']['mean']:.1e}"


def _spread(found: Mapping[str, Any]) -> Iterator[str]:
    seeds = found["seed_spread"]
    if seeds["trl"] is None:
        yield "One seed has no spread; --seeds 3 gives the differences something to be compared with."
        return
    sides = ", ".join(f"{name} {seeds[side]['mean']:.1e}" for side, name in SIDES.items())
    smaller = seeds["trl"]["mean"] / max(found["largest_difference"], TINY)
    yield f"Standard deviation of seeds at a step, mean over steps: {sides}; {smaller:,.0f}x the largest difference."


def _rate(found: Mapping[str, Any]) -> tuple[str, str, str, str]:
    return f"{found['value']:.1%}", _ends(found, ".1%").strip(), f"{found['n']:,}", f"{found['ties']}"


def _ends(found: Mapping[str, Any], form: str) -> str:
    return " [not known]" if found["low"] is None else f" [{found['low']:{form}}, {found['high']:{form}}]"


def _own(side: Mapping[str, Any]) -> str:
    return f"{side['own_accuracy']:.1%}" if "own_accuracy" in side else ""


def draw(result: Mapping[str, Any], file: Path) -> None:
    """Draw one row a task: both losses, and how far they are apart beside the spread of seeds.

    Seeds are thin lines and their mean a thick one; tiebreak's is dashed, or it would hide TRL's.
    """
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "tiebreak", "svg.fonttype": "none", "font.size": 9})
    from matplotlib import pyplot

    tasks = result["tasks"]
    figure, axes = pyplot.subplots(len(tasks), 2, figsize=(9, 3.1 * len(tasks)), squeeze=False, layout="constrained")
    for (left, right), (task, found) in zip(axes, tasks.items(), strict=True):
        _losses(left, found)
        left.set_title(f"{TASKS[task]}: training loss", loc="left", fontsize=9)
        _differences(right, found)
        right.set_title("apart, and the spread of seeds", loc="left", fontsize=9)
        for panel in (left, right):
            panel.set_xlabel(f"step of {result['settings']['batch']} pairs")
            panel.spines[["top", "right"]].set_visible(False)
            panel.legend(frameon=False)
    figure.savefig(file, format="svg", metadata={"Date": None})
    pyplot.close(figure)


def _losses(panel: Any, found: Mapping[str, Any]) -> None:
    for side, name in SIDES.items():
        losses = [one[side]["loss"] for one in found["runs"]]
        steps, style = range(1, len(losses[0]) + 1), "--" if side == "ours" else "-"
        for loss in losses:
            panel.plot(steps, loss, color=COLOURS[side], linestyle=style, linewidth=WEIGHT["thin"], alpha=0.45)
        mean = [fmean(step) for step in zip(*losses, strict=True)]
        panel.plot(steps, mean, color=COLOURS[side], linestyle=style, linewidth=WEIGHT["thick"], label=name)


def _differences(panel: Any, found: Mapping[str, Any]) -> None:
    for number, one in enumerate(found["runs"]):
        apart = [max(difference, TINY) for difference in one["loss_difference"]["each"]]
        label = "|tiebreak - TRL|, each seed" if not number else None
        panel.plot(range(1, len(apart) + 1), apart, color="#222", linewidth=WEIGHT["thin"], label=label)
    if found["seed_spread"]["trl"]:
        steps = list(zip(*(one["trl"]["loss"] for one in found["runs"]), strict=True))
        noise = [max(stdev(step), TINY) for step in steps]
        panel.plot(
            range(1, len(noise) + 1), noise, color=COLOURS["trl"], linewidth=WEIGHT["thick"], label="seeds of TRL, s.d."
        )
    panel.set_yscale("log")


def main(given: Sequence[str] | None = None) -> int:
    """Run from the command line, see :func:`command.carry_out`."""
    return carry_out(given, arguments, run, report, draw=draw)


if __name__ == "__main__":
    sys.exit(main())
