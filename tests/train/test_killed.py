"""A training that is killed without warning, again and again, ends with the very weights and metrics of a calm one.

Lives are forks of one process that has only imported what it needs. Each ends by a SIGKILL that it sends to itself, so
nobody has to wait for the right moment, and nothing is tidied up.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.train.acting import act, lines, prompts
from tests.train.made import examples, start, train
from tiebreak.models.adapters import Adapter
from tiebreak.train import checkpoint, reference
from tiebreak.train.methods import loop_of
from tiebreak.train.offline import Pace, Reference, Trained
from tiebreak.train.rollouts import Rollout
from tiebreak.train.track import read_track
from tiebreak.train.update import Compute

ROOT = Path(__file__).resolve().parents[2]
PACE = Pace(epochs=4.0, batch=4, learning_rate=3e-3)
ROWS, STEPS, EVERY, KILLS = 22, 24, 3, 10
LORA = Adapter(rank=4, alpha=8.0)

RUNS: dict[str, dict[str, Any]] = {
    "sft": {"method": "sft"},
    "sft with LoRA": {"method": "sft", "adapter": LORA},
    "reward model, rows of like length": {
        "method": "bradley_terry",
        "pace": Pace(epochs=4.0, batch=4, learning_rate=3e-3, order="similar_length"),
    },
    "reward model with LoRA": {"method": "bradley_terry", "adapter": LORA},
    "dpo against a cached reference": {"method": "dpo", "kind": "gpt2"},
    "dpo with LoRA": {"method": "dpo", "adapter": LORA, "compute": Compute(tokens=40)},
    "dpo in bfloat16 with master weights": {"method": "dpo", "compute": Compute(precision="bfloat16_weights")},
    "dpo, averaged, behind a reference that follows, the best kept, with patience": {
        "method": "dpo",
        "knobs": {"beta": 0.3},
        "pace": Pace(epochs=4.0, batch=4, learning_rate=5e-4),
        "ema": 0.5,
        "reference": Reference(compute="step", sync_every=2, sync_mix=0.1),
        "held_out": examples("dpo", ROWS),  # its loss rises again when the reference catches up with the policy
        "evaluate_every": 2,
        "keep": "best",
        "patience": 3,
    },
}
"""Name of a run to what it is; ``method`` and ``kind`` say which model starts."""
RICHEST = list(RUNS)[-1]
ACTING: dict[str, dict[str, Any]] = {
    "ppo": {"method": "ppo", "rollout": Rollout(max_new_tokens=4, repeats=2), "knobs": {"kl_target": 0.1}},
    "grpo with LoRA": {"method": "grpo", "rollout": Rollout(n=3, max_new_tokens=4), "adapter": LORA},
}
"""Those that learn from the policy's own answers."""
EVERYONE = {**RUNS, **ACTING}


def begin(name: str) -> PreTrainedModel:
    return start(EVERYONE[name]["method"], EVERYONE[name].get("kind", "llama"))


def live(name: str, folder: Path, model: PreTrainedModel, **more: Any) -> Trained:
    """Train ``model`` as the run ``name`` says, from what lies in ``folder``."""
    asked = {"pace": PACE, "checkpoint_every": EVERY, **EVERYONE[name], **more}
    method = asked.pop("method")
    asked.pop("kind", None)
    if loop_of(method) == "online":
        return act(method, folder, model, asked=prompts(ROWS), **asked)
    return train(method, folder, model, rows=examples(method, ROWS), **asked)


def state_of(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_at(step: int, seen: Path) -> Any:
    """Note each step and die at ``step``, after the update and before its checkpoint."""

    def progress(done: int, steps: int, shown: object) -> None:
        with seen.open("a") as file:
            file.write(f"{done}\n")
        if done == step:
            die()

    return progress


def die_at_write(number: int) -> None:
    """From here on die in place of the ``number``-th change of the disk: a file, a removal or a move."""
    left = [number]

    def counted(change: Callable[..., Any]) -> Callable[..., Any]:
        def changed(*args: Any, **more: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                die()
            return change(*args, **more)

        return changed

    os.replace = counted(os.replace)
    Path.write_text = counted(Path.write_text)  # type: ignore[method-assign]
    checkpoint.shutil.rmtree = counted(checkpoint.shutil.rmtree)
    checkpoint.save_file = counted(checkpoint.save_file)
    reference.save_file = counted(reference.save_file)


class Lives:
    """The other end of :func:`serve`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def spend(self, name: str, folder: Path, *, step: int = 0, write: int = 0) -> int:
        """Train in a process of its own and return the signal that ended it, 0 where it came to its end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        asked = {"name": name, "folder": str(folder), "step": step, "write": write}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        status = int(self._process.stdout.readline())
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the training failed; its own words are above"
        return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def serve() -> None:
    """Spend the lives that standard input asks for, one at a time."""
    for slow in ("peft", "peft.functional"):
        import_module(slow)  # once, not in each life
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if not child:
            try:
                folder = Path(asked["folder"])
                if asked["write"]:
                    die_at_write(asked["write"])
                progress = killed_at(asked["step"], folder.with_name("seen"))
                live(asked["name"], folder, begin(asked["name"]), progress=progress)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        sys.stdout.write(f"{os.waitpid(child, 0)[1]}\n")
        sys.stdout.flush()


@pytest.fixture(scope="module")
def lives() -> Iterator[Lives]:
    command = [sys.executable, "-m", "tests.train.test_killed"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    with subprocess.Popen(command, **pipes) as process:
        yield Lives(process)


@pytest.mark.parametrize("name", EVERYONE)
def test_killed_ten_times_in_a_row_it_ends_with_the_weights_and_metrics_of_a_calm_run(
    name: str, lives: Lives, tmp_path: Path
) -> None:
    calm = begin(name)
    done = live(name, tmp_path / "calm", calm)
    assert done.stopped == (name == RICHEST)
    kills = sorted(random.Random(name).sample(range(1, done.steps + 1), KILLS))
    place = tmp_path / "killed"
    for step in kills:
        assert lives.spend(name, place, step=step) == signal.SIGKILL
    again = begin(name)
    again_done = live(name, place, again)
    assert same(state_of(again), state_of(calm))
    assert again_done._replace(seconds=0) == done._replace(seconds=0)
    for track in ("metrics.jsonl", "samples.jsonl"):
        assert lines(place, track) == lines(tmp_path / "calm", track)
    restored = [0, *((step - 1) // EVERY * EVERY for step in kills)]
    expected = [step for first, last in zip(restored, kills, strict=False) for step in range(first + 1, last + 1)]
    assert [int(line) for line in (tmp_path / "seen").read_text().split()] == expected, "only lost steps come again"


@pytest.mark.parametrize("name", ["dpo against a cached reference", RICHEST])
def test_killed_before_any_change_of_the_disk_it_ends_with_the_same_weights(
    name: str, lives: Lives, tmp_path: Path
) -> None:
    """Each life is killed one write later than the one before, so every gap between two writes gets its turn."""
    calm = begin(name)
    done = live(name, tmp_path / "calm", calm)
    place, seen, spent, lived = tmp_path / "killed", tmp_path / "seen", 1, []
    seen.touch()
    while lives.spend(name, place, write=spent) == signal.SIGKILL:
        lived.append(seen.read_text().split())
        seen.write_text("")
        spent += 1
    writes_of_a_checkpoint = 8
    assert spent > writes_of_a_checkpoint + 4
    firsts = [int(steps[0]) for steps in lived if steps]
    assert firsts == sorted(firsts), "a checkpoint that was there once is never lost"
    assert firsts[-1] > firsts[0]
    again = begin(name)
    again_done = live(name, place, again)
    assert same(state_of(again), state_of(calm))
    assert again_done._replace(seconds=0) == done._replace(seconds=0)
    assert (place / "metrics.jsonl").read_bytes() == (tmp_path / "calm" / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("name", RUNS)
def test_the_runs_that_are_killed_learn_something(name: str, tmp_path: Path) -> None:
    """Or equal weights would say nothing."""
    done = live(name, tmp_path, begin(name))
    losses = [row["loss"] for row in read_track(tmp_path / "metrics.jsonl") if "loss" in row]
    assert min(losses[-6:]) < min(losses[:6])
    assert done.steps == len(losses)
    assert (done.steps, done.stopped) == (STEPS, False) or (name == RICHEST and done.best < done.steps < STEPS)


@pytest.mark.parametrize("name", ACTING)
def test_the_runs_that_are_killed_while_they_act_move_the_policy(name: str, tmp_path: Path) -> None:
    model = begin(name)
    assert live(name, tmp_path, model).steps == STEPS
    distance = [abs(row["objective/kl"]) for row in lines(tmp_path)]
    assert distance[0] < 1e-5 < 1e-2 < max(distance)
    assert len({row["episodes"] for row in lines(tmp_path)}) == STEPS


if __name__ == "__main__":
    serve()
