"""How fast and how lean: training on a policy's own completions with tiebreak and with TRL, on the same prompts.

``python benchmarks/online.py --against trl [--quick] [--json FILE] [--chart FILE.svg]`` lets TRL's GRPO and RLOO train
and takes each of their steps again with tiebreak, in the same process: both sample as many tokens from the same
prompts, and tiebreak learns from the completions TRL drew. TRL 1.16 has no PPO; there our loop is compared with itself
when every completion has its own copy of the prompt. Speed is the median (and the lowest) of per-step ratios over warm
steps, with each step's parts beside it; memory is the peak of a process of its own for each side.
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
from online_results import copied, report, summary
from train import MODELS, SEED

TASKS = ("grpo", "rloo", "ppo")
PROMPTS = 2
"""Prompts a step."""

GENERATIONS = 4
"""Completions a prompt."""


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
    parser.add_argument("--model", default="gpt2", help="gpt2 (default), llama; with cuda gpt2-large, llama-1b")
    parser.add_argument("--prompts", type=int, default=PROMPTS, help=f"prompts a step (default: {PROMPTS})")
    parser.add_argument(
        "--generations", type=int, default=GENERATIONS, help=f"completions a prompt (default: {GENERATIONS})"
    )
    parser.add_argument("--steps", type=int, help="warm steps of each setting (default: 8; with --quick 3 or 2)")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    read = parser.parse_args(given)
    one_of("comparison with", read.against, ("trl",))
    one_of("device", read.device, tuple(MODELS))
    for task in read.task:
        one_of("task", task, TASKS)
    if read.device == "cpu" and read.model in MODELS["cuda"] and read.model not in MODELS["cpu"]:
        raise Mistake(f"{read.model} is too large to time on a processor; take gpt2 or llama, or --device cuda.")
    one_of("model", read.model, MODELS[read.device])
    for name, least in (("steps", 1), ("prompts", 1), ("generations", 2)):
        value = getattr(read, name)
        if value is not None and value < least:
            raise Mistake(f"--{name} is {value}; it has to be {least} or more.")
    for file in filter(None, (read.json, read.chart)):
        if not file.absolute().parent.is_dir():
            raise Mistake(f"{file} cannot be written, for {file.parent} is not a folder.")
    if read.chart and importlib.util.find_spec("matplotlib") is None:
        raise Mistake("--chart needs matplotlib, which is not installed; pip install 'tiebreak[report]' brings it.")
    if read.device == "cuda" and shutil.which("nvidia-smi") is None:
        raise Mistake("--device cuda needs an NVIDIA GPU, and this machine has none.")
    return read


def jobs(read: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the measurements in the order of their weight: speed, then memory, then our PPO against itself."""
    base = {"model": read.model, "shape": "tldr", "device": read.device, "seed": SEED, "precision": "bfloat16"}
    base |= {"prompts": read.prompts, "generations": read.generations}
    tasks, warm_up = list(dict.fromkeys(read.task)), _warm_up(read)
    compared = [task for task in tasks if task != "ppo"]
    for task in compared:
        phases = [_phase("like_for_like", 0, warm_up, read.steps or (3 if read.quick else 8))]
        if read.device == "cpu" and not (read.quick and task == "rloo"):
            after, steps = phases[0]["until"], read.steps or (2 if read.quick else 8)
            phases.append(_phase("head_equal", after, warm_up - 1, steps))
        yield base | {"what": "speed", "task": task, "phases": phases, "steps": phases[-1]["until"]}
    for task in compared:
        for side in ("trl", "ours"):
            yield base | {"what": "memory", "task": task, "side": side, "steps": 2}
    if "ppo" in tasks:
        steps = warm_up + (read.steps or (3 if read.quick else 8))
        yield base | {"what": "copies", "task": "ppo", "warm_up": warm_up, "steps": steps}
        for side in ("apart", "ours"):
            yield base | {"what": "memory", "task": "ppo", "side": side, "steps": 2}


def _warm_up(read: argparse.Namespace) -> int:
    """Return how many first steps are not timed; the heap still grows in them."""
    return 2 if read.quick else 3


def _phase(name: str, after: int, warm_up: int, steps: int) -> dict[str, Any]:
    """A stretch of a run: from step ``after``, ``warm_up`` steps that are not timed, then ``steps`` that are."""
    warm = after + warm_up
    return {"name": name, "warm_from": warm, "until": warm + steps, "labelled_head": name == "head_equal"}


def measure(interpreter: Path, job: Mapping[str, Any]) -> dict[str, Any]:
    """Run one job in a process of its own, show its progress, and return its result.

    Raises:
        RuntimeError: the process failed; its last lines are in the message.
    """
    retained, gpu = job["what"] != "memory", job["device"] == "cuda"
    return in_process(interpreter, "online_measure.py", job, title=_title(job), retain_heap=retained, gpu=gpu)


def file(result: dict[str, Any], job: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Put what one job found into its places in ``result``."""
    task = job["task"]
    if job["what"] == "memory":
        result["memory"].setdefault(task, {})[f"{job['side']}_mb"] = round(found["mb"], 1)
        sides = result["memory"][task]
        if len(sides) == 2:
            sides["ratio"] = sides["ours_mb"] / next(mb for side, mb in sides.items() if side != "ours_mb")
        return
    parts = copied(job, found) if job["what"] == "copies" else summary(job, found)
    for name, part in parts.items():
        result[name][task] = part


def _title(job: Mapping[str, Any]) -> str:
    if job["what"] == "machine":
        return "looking at the machine"
    if job["what"] == "copies":
        return f"{job['task']}: speed with shared prompts and with a copy for each completion"
    side = {"trl": " of TRL", "ours": " of tiebreak", "apart": " of tiebreak without sharing"}.get(
        job.get("side", ""), ""
    )
    return f"{job['task']}: {job['what']}{side}"


def run(read: argparse.Namespace) -> dict[str, Any]:
    """Measure everything and return it; what is there so far is written after every job."""
    began = time.monotonic()
    interpreter = python()
    result: dict[str, Any] = {
        "settings": {name: getattr(read, name) for name in ("model", "device", "quick", "prompts", "generations")}
        | {"shape": "tldr", "precision": "bfloat16", "tasks": list(dict.fromkeys(read.task)), "seed": SEED}
        | {"warm_up": _warm_up(read)},
        "machine": measure(interpreter, {"what": "machine", "device": read.device}),
    }
    result |= {part: {} for part in ("ratios", "seconds", "share", "parity", "memory")}
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
    from online_results import draw

    draw(result, path)


if __name__ == "__main__":
    sys.exit(main())
