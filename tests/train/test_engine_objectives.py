"""Every method has one loss and one gradient, however its batch is split, and one end, however often it is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from tests.train.engine_made import (
    KNOBS,
    METHODS,
    assert_same,
    learner_of,
    plainly,
    readings_of,
    rows_of,
    start,
    taken,
)
from tests.train.made import weights
from tiebreak.models.adapters import Adapter, adapt
from tiebreak.train.objectives.switches import parts_of
from tiebreak.train.offline import Pace, Reference, Trained, Watch, fit
from tiebreak.train.track import read_track
from tiebreak.train.update import Compute

ROOT = Path(__file__).resolve().parents[2]
EACH_READING = ("sft", "dpo", "ld_dpo", "tdpo2", "wpo", "spa", "kto", "lambda_dpo", "rationale_dpo", "process_reward")
"""One method of each reading and of each shape of rows."""
CACHED = [method for method in METHODS if KNOBS[method]["score"] not in ("", "head")]
KEEPING = ("bco", "spa")
"""Methods of which each batch leaves something to the next."""
STEPS, EVERY = 6, 2


@pytest.mark.parametrize(
    ("method", "kind"), [*((method, "llama") for method in METHODS), *((method, "gpt2") for method in EACH_READING)]
)
def test_a_step_is_the_plain_computation_in_one_forest_and_in_several(method: str, kind: str) -> None:
    """The second of two steps is compared, so that what the first kept counts."""
    batches = [rows_of(method, seed=seed) for seed in (0, 1)]
    first, whole = taken(learner_of(method, kind), *batches)
    past = {**first.past, "progress": torch.tensor(0.6)}
    assert_same(whole, plainly(method, kind, batches[1], past))
    tokens = sum(row.tree.size for row in batches[1]) // 3 if kind == "llama" else 1
    found = taken(learner_of(method, kind, Compute(tokens=tokens)), *batches)
    assert_same(found[0], first)
    assert_same(found[1], whole)


def test_the_readings_and_what_is_kept_are_all_among_the_methods() -> None:
    read = {reading for method in METHODS for reading in readings_of(method)}
    assert read == {"public", "collision", "token_kl", "extrapolated"}
    keeping = {method for method in METHODS if any(part.keeps for part in parts_of(KNOBS[method]).values())}
    assert keeping == set(KEEPING)


def moved_adapter() -> PreTrainedModel:
    """A policy that is an adapter, with weights that make it differ from its base."""
    model = adapt(start("dpo"), Adapter(rank=4, alpha=8.0), seed=0)
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=source))
    return model


@pytest.mark.parametrize("method", ["dpo", "ld_dpo", "tdpo2", "spa", "kto", "hypo_online_kl"])
def test_under_an_adapter_the_base_is_the_reference(method: str) -> None:
    batches = [rows_of(method, seed=seed) for seed in (0, 1)]
    first, whole = taken(learner_of(method, model=moved_adapter(), reference=start("dpo")), *batches)
    for tokens in (None, 1):
        found = taken(
            learner_of(method, compute=Compute(tokens=tokens), model=moved_adapter(), reference=None), *batches
        )
        assert_same(found[0], first)
        assert_same(found[1], whole)


def learn(method: str, folder: Path, model: PreTrainedModel | None = None, **more: Any) -> Trained:
    """Train on twelve rows for two epochs; names of :class:`Watch` become one."""
    pace = Pace(epochs=2.0, batch=4, learning_rate=3e-3)
    given: dict[str, Any] = {"seed": 1, "watch": Watch(checkpoint_every=EVERY, log_every=1), "pace": pace, **more}
    model = start(method) if model is None else model
    return fit(model, rows_of(method, 12), KNOBS[method], folder=folder, **given)


@pytest.mark.parametrize("method", CACHED)
def test_the_first_step_against_the_reference_on_disk_is_that_against_the_one_in_memory(
    method: str, tmp_path: Path
) -> None:
    """The reference is the start, so a log-prob that stood with another row or branch would show at once."""
    found = []
    for place in ("cached", "step"):
        pace = Pace(epochs=0.3, batch=4, learning_rate=1e-3)
        learn(method, tmp_path / place, pace=pace, reference=Reference(compute=place), held_out=rows_of(method, 5, 9))
        found.append(read_track(tmp_path / place / "metrics.jsonl")[0])
    assert found[0]["loss"] == pytest.approx(found[1]["loss"], rel=1e-4, abs=1e-4)


def stop_at(step: int) -> Any:
    def progress(done: int, steps: int, shown: object) -> None:
        if done == step:
            raise KeyboardInterrupt

    return progress


def die_at(step: int) -> Any:
    def progress(done: int, steps: int, shown: object) -> None:
        if done == step:
            os.kill(os.getpid(), signal.SIGKILL)

    return progress


@pytest.mark.parametrize("method", KEEPING)
def test_what_a_batch_leaves_to_the_next_outlives_a_stop_at_any_step(method: str, tmp_path: Path) -> None:
    calm = start(method)
    assert learn(method, tmp_path / "calm", calm, held_out=rows_of(method, 3, 9)).steps == STEPS
    for step in range(1, STEPS + 1):
        folder, again = tmp_path / str(step), start(method)
        with pytest.raises(KeyboardInterrupt):
            learn(method, folder, held_out=rows_of(method, 3, 9), progress=stop_at(step))
        learn(method, folder, again, held_out=rows_of(method, 3, 9))
        assert torch.equal(weights(again), weights(calm)), step
        assert (folder / "metrics.jsonl").read_text() == (tmp_path / "calm" / "metrics.jsonl").read_text()


@pytest.mark.parametrize("method", KEEPING)
def test_killed_without_warning_and_resumed_it_ends_with_the_same_weights(method: str, tmp_path: Path) -> None:
    calm, again, place = start(method), start(method), tmp_path / "killed"
    learn(method, tmp_path / "calm", calm)
    command = [sys.executable, "-m", "tests.train.test_engine_objectives", method, str(place), "3"]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    state = json.loads((place / "checkpoint" / "state.json").read_text())
    assert state["step"] == EVERY
    assert state["past"]
    learn(method, place, again)
    assert torch.equal(weights(again), weights(calm))
    assert (place / "metrics.jsonl").read_text() == (tmp_path / "calm" / "metrics.jsonl").read_text()


@pytest.mark.parametrize("method", KEEPING)
def test_a_run_that_forgot_what_batches_leave_would_end_elsewhere(method: str, tmp_path: Path) -> None:
    """Or equal weights would say nothing."""
    calm, again = start(method), start(method)
    learn(method, tmp_path / "calm", calm)
    with pytest.raises(KeyboardInterrupt):
        learn(method, tmp_path / "stopped", progress=stop_at(EVERY + 1))
    file = tmp_path / "stopped" / "checkpoint" / "state.json"
    file.write_text(json.dumps({name: value for name, value in json.loads(file.read_text()).items() if name != "past"}))
    learn(method, tmp_path / "stopped", again)
    assert not torch.equal(weights(again), weights(calm))


if __name__ == "__main__":
    learn(sys.argv[1], Path(sys.argv[2]), progress=die_at(int(sys.argv[3])))
