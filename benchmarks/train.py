"""How fast, how lean and how equal: training on preferences with tiebreak and with TRL, on the same rows.

``python benchmarks/train.py --against trl [--quick] [--json FILE] [--chart FILE.svg]`` makes TRL's environment itself,
lets TRL's own trainer run, and takes each of its steps again with tiebreak on the very same batch, in the same process.
Speed is the median (and the lowest) of per-step ratios over warm steps; memory is the peak of a process of its own for
each side; positions are counted as they go through the models. Speeds depend on the machine, positions do not.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from command import Arguments, carry_out, one_by_one, one_of
from environment import Mistake, in_process, python
from results import SAYS, SETTINGS, parity, positions, report, summary

HERE = Path(__file__).resolve().parent

TASKS = {
    "dpo": ("like_for_like", "defaults", "precomputed", "head_equal"),
    "reward": ("like_for_like", "defaults"),
    "sft": ("like_for_like", "defaults", "head_equal"),
}
"""What each task is compared in. A reward model's head is one number a position: like for like is head-equal there."""

MODELS = {"cpu": ("gpt2", "llama", "tiny"), "cuda": ("gpt2", "llama", "gpt2-large", "llama-1b", "tiny")}
PRECISIONS = ("bfloat16", "float32")
SHAPES = ("tldr", "long")
PAIRS = 4
"""Preference pairs of a step; supervised fine-tuning gets as many prompts with their chosen completions."""

SEED = 1


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line.

    Raises:
        Mistake: something in it does not exist or cannot be had.
    """
    parser = Arguments(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", default="trl", help="the other side: trl")
    parser.add_argument("--quick", action="store_true", help="fewer steps, an answer in under 15 minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers")
    parser.add_argument("--chart", type=Path, metavar="FILE.svg", help="draw the ratios")
    parser.add_argument("--task", nargs="+", default=list(TASKS), help=f"some of {', '.join(TASKS)} (default: all)")
    parser.add_argument("--shape", default="tldr", help="lengths: tldr (default) or long")
    parser.add_argument("--model", default="gpt2", help="gpt2 (default), llama; with cuda gpt2-large, llama-1b")
    parser.add_argument("--precision", default="bfloat16", help="bfloat16 (default) or float32")
    parser.add_argument("--steps", type=int, help="warm steps of each setting (default: 8; with --quick 5 or 3)")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    read = parser.parse_args(given)
    listed = {"device": tuple(MODELS), "shape": SHAPES, "precision": PRECISIONS}
    for name, names in listed.items():
        one_of(name, getattr(read, name), names)
    one_of("comparison with", read.against, ("trl",))
    for task in read.task:
        one_of("task", task, tuple(TASKS))
    if read.device == "cpu" and read.model in MODELS["cuda"] and read.model not in MODELS["cpu"]:
        raise Mistake(f"{read.model} is too large to time on a processor; take gpt2 or llama, or --device cuda.")
    one_of("model", read.model, MODELS[read.device])
    if read.steps is not None and read.steps < 1:
        raise Mistake(f"--steps is {read.steps}; at least one warm step has to be timed.")
    for file in filter(None, (read.json, read.chart)):
        if not file.absolute().parent.is_dir():
            raise Mistake(f"{file} cannot be written, for {file.parent} is not a folder.")
    if read.chart and importlib.util.find_spec("matplotlib") is None:
        raise Mistake("--chart needs matplotlib, which is not installed; pip install 'tiebreak[report]' brings it.")
    if read.device == "cuda" and shutil.which("nvidia-smi") is None:
        raise Mistake("--device cuda needs an NVIDIA GPU, and this machine has none.")
    return read


def jobs(read: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the measurements in the order of their weight: like for like and memory first, parity last."""
    base = {"model": read.model, "shape": read.shape, "device": read.device, "seed": SEED, "count": 0}
    tasks, quick = list(dict.fromkeys(read.task)), read.quick
    warm_up = _warm_up(read)
    for name in SETTINGS:
        if name == "defaults":
            yield from _memory_jobs(base, tasks, read.precision)
        for task in [task for task in tasks if name in TASKS[task]]:
            first = name == "like_for_like"
            phases = [_phase(name, 0, warm_up, read.steps or (8 if not quick else 5 if first else 3))]
            if first and "head_equal" in TASKS[task] and read.device == "cpu":
                phases.append(_phase("head_equal", phases[0]["until"], warm_up - 1, read.steps or (3 if quick else 8)))
            counted = {"count": warm_up if first and read.device == "cpu" else 0}
            yield base | _job("speed", task, name, read.precision, phases) | counted
    other = PRECISIONS[1 - PRECISIONS.index(read.precision)]
    for task in tasks:
        found = _job("parity", task, "like_for_like", other, [_phase("like_for_like", 0, 0, 1)])
        yield base | found | ({"pairs": 1} if quick else {})


def _warm_up(read: argparse.Namespace) -> int:
    """Return how many first steps are not timed; the heap still grows in them."""
    return 2 if read.quick else 3


def _memory_jobs(base: dict[str, Any], tasks: Sequence[str], precision: str) -> Iterator[dict[str, Any]]:
    """Yield the memory of each side alone, in processes of their own."""
    for task in tasks:
        for side in ("trl", "ours"):
            yield base | _job("memory", task, "like_for_like", precision, [_phase("", 0, 0, 2)]) | {"side": side}


def _phase(name: str, after: int, warm_up: int, steps: int) -> dict[str, Any]:
    """A stretch of a run: from step ``after``, ``warm_up`` steps that are not timed, then ``steps`` that are."""
    warm = after + warm_up
    return {"name": name, "warm_from": warm, "until": warm + steps, "labelled_head": name == "head_equal"}


def _job(what: str, task: str, name: str, precision: str, phases: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "what": what,
        "task": task,
        "name": name,
        "setting": SETTINGS[name],
        "precision": precision,
        "phases": phases,
        "steps": phases[-1]["until"],
        "pairs": PAIRS,
    }


def measure(interpreter: Path, job: Mapping[str, Any]) -> dict[str, Any]:
    """Run one job in a process of its own, show its progress, and return its result.

    Raises:
        RuntimeError: the process failed; its last lines are in the message.
    """
    title, retained, gpu = _title(job), job["what"] != "memory", job["device"] == "cuda"
    return in_process(interpreter, "measure.py", job, title=title, retain_heap=retained, gpu=gpu)


def file(result: dict[str, Any], job: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Put what one job found into its places in ``result``."""
    task, name = job["task"], job["name"]
    if job["what"] == "memory":
        result["memory"].setdefault(task, {})[f"{job['side']}_mb"] = round(found["mb"], 1)
        sides = result["memory"][task]
        if len(sides) == 2:
            sides["ratio"] = sides["ours_mb"] / sides["trl_mb"]
        return
    if name == "like_for_like":
        result["parity"].setdefault(task, {})[job["precision"]] = parity(found) | {"pairs": job["pairs"]}
    if job["what"] == "parity":
        return
    peak = result["machine"].get("bfloat16_teraflops") if job["precision"] == "bfloat16" else None
    for phase in job["phases"]:
        one = summary(job, phase["name"], found, peak)
        for part in ("ratios", "seconds"):
            result[part].setdefault(task, {})[phase["name"]] = one[part]
    for part in ("ratios", "seconds"):
        found_so_far = result[part][task]
        if name == "like_for_like" and (task == "reward" or job["device"] == "cuda"):
            found_so_far["head_equal"] = found_so_far["like_for_like"]
        result[part][task] = {name: found_so_far[name] for name in SAYS if name in found_so_far}
    if job["count"]:
        result["positions"][task] = positions(found, job["count"])
    if found["head_check"]:
        result["head_check"][task] = found["head_check"]


def _title(job: Mapping[str, Any]) -> str:
    if job["what"] == "machine":
        return "looking at the machine"
    side = {"trl": " of TRL", "ours": " of tiebreak"}.get(job.get("side", ""), "")
    names = ", ".join(phase["name"] for phase in job["phases"]) if job["what"] == "speed" else job["name"]
    return f"{job['task']}, {job['precision']}: {job['what']}{side}, {names}"


def run(read: argparse.Namespace) -> dict[str, Any]:
    """Measure everything and return it; what is there so far is written after every job."""
    began = time.monotonic()
    interpreter = python()
    result: dict[str, Any] = {
        "settings": {name: getattr(read, name) for name in ("model", "shape", "precision", "device", "quick")}
        | {"tasks": list(dict.fromkeys(read.task)), "pairs": PAIRS, "seed": SEED, "warm_up": _warm_up(read)},
        "machine": measure(interpreter, {"what": "machine", "device": read.device}),
    }
    result |= {part: {} for part in ("ratios", "seconds", "positions", "memory", "parity", "head_check")}
    if read.device == "cuda" and not result["machine"]["cuda"]:
        raise Mistake("--device cuda needs a GPU that PyTorch sees, and the torch of TRL's environment sees none.")
    one_by_one(
        result,
        list(jobs(read)),
        title=_title,
        measure=lambda job: file(result, job, measure(interpreter, job)),
        read=read,
        began=began,
    )
    return result


def main(given: Sequence[str] | None = None) -> int:
    """Run from the command line, see :func:`command.carry_out`."""
    return carry_out(given, arguments, run, report, draw=_draw)


def _draw(result: dict[str, Any], path: Path) -> None:
    from chart import draw

    draw([result], path)


if __name__ == "__main__":
    sys.exit(main())
