"""One measurement of ``online.py`` in one process: a JSON job in, a JSON result out.

Jobs: ``speed`` (both sides, interleaved), ``copies`` (ours with shared prompts and with a copy for each completion,
interleaved), ``memory`` (one side alone), ``machine`` (what this is).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from measure import MEGABYTE, machine, say
from online_work import Times, Turn, prompts

ARENAS = -8
"""The name of glibc's setting for how many heaps it keeps, from its malloc.h."""


def speed(job: dict[str, Any]) -> dict[str, Any]:
    """Let TRL train and take each of its steps again on the tiebreak side: same prompts, completions and rewards."""
    import online_trl
    import trl_side
    from online_ours import Ours, shares

    phases, total, given = job["phases"], job["steps"], prompts(job, more=1)
    steps: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        trainer = online_trl.make(job, given, folder)
        ours = Ours(job, given, folder)

        def around() -> contextlib.AbstractContextManager[None]:
            labelled = _phase(phases, len(steps))["labelled_head"]
            return trl_side.labelled_head() if labelled else contextlib.nullcontext()

        def then(turn: Turn) -> None:
            phase, taken = _phase(phases, len(steps)), ours.step(turn.groups)
            warm = len(steps) >= phase["warm_from"]
            steps.append({"phase": phase["name"], "warm": warm, "trl": _plain(turn), "ours": _plain(taken)})
            say(
                f"{job['task']} {phase['name']}, step {len(steps)}/{total}: TRL {_told(turn.times)}, "
                f"tiebreak {_told(taken.times)}, {turn.times.step / taken.times.step:.2f}x, gradient "
                f"{turn.grad_norm:.4f} and {taken.grad_norm:.4f}{'' if warm else ' (warm-up, not timed)'}"
            )

        online_trl.Clock(trainer, then=then, around=around)
        trainer.train()
        share = shares(ours) if job["device"] == "cpu" else None
    return {"steps": steps, "share": share}


def copies(job: dict[str, Any]) -> dict[str, Any]:
    """Take each step twice: with each prompt computed once, and with a copy of it for each completion."""
    from online_ours import Ours

    given, steps = prompts(job), []
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        shared, apart = Ours(job, given, one), Ours(job, given, other, shared=False)
        for number in range(job["steps"]):
            first = shared.step()
            second = apart.step(first.groups)
            warm = number >= job["warm_up"]
            steps.append({"warm": warm, "apart": _plain(second), "ours": _plain(first)})
            say(
                f"{job['task']}, step {number + 1}/{job['steps']}: a prompt for each completion "
                f"{_told(second.times)}, shared {_told(first.times)}, {second.times.step / first.times.step:.2f}x, "
                f"loss {second.loss:.5f} and {first.loss:.5f}{'' if warm else ' (warm-up, not timed)'}"
            )
    return {"steps": steps}


def memory(job: dict[str, Any]) -> dict[str, Any]:
    """Return the peak memory of one side alone, libraries included on a processor, allocated on a GPU."""
    given = prompts(job)
    with tempfile.TemporaryDirectory() as folder:
        if job["side"] == "trl":
            import online_trl

            online_trl.make(job, given, folder).train()
        else:
            from online_ours import Ours

            Ours(job, given, folder, shared=job["side"] == "ours").run()
    if job["device"] == "cuda":
        return {"mb": torch.cuda.max_memory_allocated() / MEGABYTE}
    unit = 1 if sys.platform == "darwin" else 1024
    return {"mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MEGABYTE}


def _phase(phases: list[dict[str, Any]], step: int) -> dict[str, Any]:
    """Return the phase of a step, counted from 0."""
    return next(phase for phase in phases if step < phase["until"])


def _plain(turn: Turn) -> dict[str, Any]:
    return {"times": turn.times._asdict(), "loss": turn.loss, "grad_norm": turn.grad_norm}


def _told(times: Times) -> str:
    return f"{times.step:.2f} s ({times.sampling:.2f} + {times.scoring:.2f} + {times.update:.2f})"


def main() -> None:
    """Read the job, quieten libraries, write the result."""
    job = json.loads(sys.argv[1])
    if job["what"] in ("speed", "copies") and sys.platform.startswith("linux"):
        ctypes.CDLL(None).mallopt(ARENAS, 1)  # our loop is a thread here, and threads would have heaps of their own
    if job["what"] != "machine":
        from transformers.utils import logging

        logging.set_verbosity_error()
    result = {"speed": speed, "copies": copies, "memory": memory, "machine": machine}[job["what"]](job)
    Path(sys.argv[2]).write_text(json.dumps(result))
    sys.stdout.flush()
    os._exit(0)  # our loop's thread waits for a batch that never comes, and torch's own threads abort a plain exit


if __name__ == "__main__":
    main()
