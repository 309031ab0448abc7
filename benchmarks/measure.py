"""One measurement in one process: a JSON job in, a JSON result out. Started by ``train.py`` in TRL's environment.

Jobs: ``speed`` and ``parity`` (both sides, interleaved), ``memory`` (one side alone), ``machine`` (what this is).
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from workload import count, draw

MARK = "> "
MEGABYTE = 1024 * 1024
DENSE_BF16_TERAFLOPS = {
    "H200": 989,
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H100": 989,
    "A100": 312,
    "L40S": 362,
    "L4": 121,
}
"""Published dense bfloat16 peaks, without sparsity; the first name found in the device's name counts."""


def say(text: str) -> None:
    """Print a line of progress; the mark tells it from what libraries print."""
    print(f"{MARK}{text}", flush=True)


def speed(job: dict[str, Any]) -> dict[str, Any]:
    """Let TRL train and take each of its steps again on the tiebreak side, on the same rows, phase after phase."""
    import trl_side
    from our_side import Ours
    from positions import Positions

    phases, total = job["phases"], job["steps"]
    rows = draw(job["shape"], job["pairs"] * total, model=job["model"], seed=job["seed"])
    with contextlib.ExitStack() as held:
        folder = held.enter_context(tempfile.TemporaryDirectory())
        passes = held.enter_context(trl_side.timed_references(job["device"]))
        trainer = trl_side.make(job, rows, folder)
        labelled = any(phase["labelled_head"] for phase in phases)
        checked = trl_side.patched_against_own(trainer) if labelled else None
        ours = Ours(job)
        cached = ours.cache_references(rows)
        named = {"policy": trainer.model} | ({"reference": trainer.ref_model} if job["task"] == "dpo" else {})
        counts = {"trl": Positions(named), "ours": Positions(ours.models())} if job["count"] else {}
        steps: list[dict[str, Any]] = []

        def heads(side: str) -> contextlib.AbstractContextManager[None]:
            counted = counts and 1 <= len(steps) < job["count"]
            return counts[side].heads() if counted else contextlib.nullcontext()

        def around() -> contextlib.AbstractContextManager[None]:
            phase = _phase(phases, len(steps))
            return trl_side.labelled_head() if phase["labelled_head"] else heads("trl")

        def then(seen: Any) -> None:
            phase = _phase(phases, len(steps))
            with heads("ours"):
                taken = ours.step(seen.rows)
            step = {"phase": phase["name"], "warm": len(steps) >= phase["warm_from"], "ours": taken._asdict()}
            step["trl"] = seen._asdict() | {"rows": count(seen.rows, job["task"])._asdict()}
            steps.append(step)
            if len(steps) == 1:
                for one in counts.values():
                    one.forget()
            title = f"{job['task']} {phase['name']} {job['precision']}, step {len(steps)}/{total}"
            say(
                f"{title}: TRL {seen.seconds:.2f} s, tiebreak {taken.seconds:.2f} s, "
                f"{seen.seconds / taken.seconds:.2f}x, loss {seen.loss:.5f} and {taken.loss:.5f}"
                f"{'' if step['warm'] else ' (warm-up, not timed)'}"
            )

        trl_side.Between(trainer, rows, then=then, around=around)
        trainer.train()
    return {
        "steps": steps,
        "positions": {side: one.means(total - 1) for side, one in counts.items()},
        "head_check": checked,
        "reference_pass": {"trl": sorted(passes)[len(passes) // 2] if passes else 0.0, "ours": cached},
        "parameters": sizes(ours.model),
    }


def _phase(phases: list[dict[str, Any]], step: int) -> dict[str, Any]:
    """Return the phase of a step, counted from 0."""
    return next(phase for phase in phases if step < phase["until"])


def sizes(model: Any) -> dict[str, int]:
    """Return the weights a position is multiplied by in the body, and in the head."""
    head = getattr(model, "score", None) or model.get_output_embeddings()
    tables = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    tables.add(id(head.weight))
    body = sum(weight.numel() for weight in model.parameters() if id(weight) not in tables)
    return {"body": body, "head": head.weight.numel()}


def memory(job: dict[str, Any]) -> dict[str, Any]:
    """Return the peak memory of one side alone, libraries included on a processor, allocated on a GPU."""
    pairs = job["pairs"]
    rows = draw(job["shape"], pairs * job["steps"], model=job["model"], seed=job["seed"])
    if job["side"] == "trl":
        import trl_side

        with tempfile.TemporaryDirectory() as folder:
            trl_side.make(job, rows, folder).train()
    else:
        from our_side import Ours

        ours = Ours(job)
        ours.cache_references(rows)
        for start in range(0, len(rows), pairs):
            ours.step(rows[start : start + pairs])
    if job["device"] == "cuda":
        return {"mb": torch.cuda.max_memory_allocated() / MEGABYTE}
    unit = 1 if sys.platform == "darwin" else 1024
    return {"mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MEGABYTE}


def machine(job: dict[str, Any]) -> dict[str, Any]:
    """Return what the numbers were measured on."""
    import transformers
    import trl

    found: dict[str, Any] = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "trl": trl.__version__,
        "cuda": torch.cuda.is_available(),
    }
    if job["device"] == "cuda" and torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        found["gpu"] = name
        peaks = (peak for part, peak in DENSE_BF16_TERAFLOPS.items() if part in name)
        found["bfloat16_teraflops"] = next(peaks, None)
    return found


def _processor() -> str:
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text().splitlines() if listed.is_file() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def main() -> None:
    """Read the job, quieten libraries, write the result."""
    job = json.loads(sys.argv[1])
    if job["what"] != "machine":
        from transformers.utils import logging

        logging.set_verbosity_error()
    result = {"speed": speed, "parity": speed, "memory": memory, "machine": machine}[job["what"]](job)
    Path(sys.argv[2]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
