"""What is kept of a training and when it ends: the best weights, patience, averages, and copies of the metrics."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.train.made import STEPS, examples, start, train, weights
from tiebreak.models.adapters import Adapter
from tiebreak.records import InputError
from tiebreak.train.learner import Learner
from tiebreak.train.objectives.presets import OFFLINE
from tiebreak.train.offline import Pace, Trained, Watch
from tiebreak.train.optimizers import Ema
from tiebreak.train.rows import Example
from tiebreak.train.track import read_track

METHOD = "bradley_terry"
SURE = [row._replace(p=1.0) for row in examples(METHOD, 12)]
"""What is trained on: the chosen side is better for certain, so margins grow and grow."""
UNSURE = [row._replace(p=0.8) for row in SURE]
"""What is held out: the same pairs at 4 to 1, so the loss falls until the margins are ln 4 and rises behind that."""
OPPOSITE = [row._replace(p=0.0) for row in SURE]
"""Held-out rows that every step makes worse."""
PACE = Pace(epochs=8.0, batch=6, learning_rate=1e-3, warmup=0.0, decay="constant")
EVERY, ALL = 2, 16


class Seen:
    """Keeps the weights after every step, and an average of its own that runs alongside."""

    def __init__(self, model: PreTrainedModel, decay: float = 0.0) -> None:
        self.model = model
        self.after: dict[int, Tensor] = {}
        self.average = Ema(model, decay)
        self.averages: dict[int, Tensor] = {}

    def __call__(self, done: int, steps: int, shown: object) -> None:
        self.after[done] = weights(self.model).clone()
        self.average.update(self.model)
        with self.average.swapped(self.model):
            self.averages[done] = weights(self.model).clone()


def watched(folder: Path, model: PreTrainedModel | None = None, **more: Any) -> Trained:
    asked: dict[str, Any] = {"rows": SURE, "held_out": UNSURE, "pace": PACE, "evaluate_every": EVERY, **more}
    return train(METHOD, folder, model or start(METHOD), **asked)


def evaluated(folder: Path) -> dict[int, float]:
    """Held-out losses by step."""
    rows = read_track(folder / "metrics.jsonl")
    return {int(row["step"]): row["eval/loss"] for row in rows if "eval/loss" in row}


def held_out_loss(model: PreTrainedModel, rows: list[Example]) -> float:
    learner = Learner(model, OFFLINE[METHOD].knobs, PACE)
    with learner.ready():
        return float(learner.outcome(rows, learner.values(rows), None).loss)


def test_best_weights_are_those_of_the_lowest_held_out_loss(tmp_path: Path) -> None:
    model = start(METHOD)
    seen = Seen(model)
    done = watched(tmp_path, model, keep="best", progress=seen)
    found = evaluated(tmp_path)
    best = min(found, key=lambda step: found[step])
    assert list(found) == list(range(EVERY, ALL + 1, EVERY))
    assert EVERY < best < ALL - EVERY, "an optimum in the middle, or the test would say nothing"
    assert done.best == best
    assert done.steps == ALL
    assert not done.stopped
    assert torch.equal(weights(model), seen.after[best])
    assert done.last["eval/loss"] == found[best]
    assert held_out_loss(model, UNSURE) == pytest.approx(found[best], abs=1e-6)


def test_last_weights_are_kept_where_nothing_else_is_asked_for(tmp_path: Path) -> None:
    model = start(METHOD)
    seen = Seen(model)
    done = watched(tmp_path, model, progress=seen)
    assert torch.equal(weights(model), seen.after[ALL])
    assert done.last["eval/loss"] == evaluated(tmp_path)[ALL]
    assert not (tmp_path / "best.safetensors").exists()


def test_watching_changes_nothing_of_what_is_learned(tmp_path: Path) -> None:
    plain, often = start(METHOD), start(METHOD)
    train(METHOD, tmp_path / "plain", plain, rows=SURE, pace=PACE)
    watched(tmp_path / "often", often, evaluate_every=1, checkpoint_every=1)
    assert torch.equal(weights(plain), weights(often))


def test_the_best_of_an_adapter_is_kept_on_its_base(tmp_path: Path) -> None:
    model, base = start(METHOD), start(METHOD)
    seen: dict[int, Tensor] = {}

    def note(done: int, steps: int, shown: object) -> None:
        seen[done] = weights(model).clone()

    fast = Pace(epochs=8.0, batch=6, learning_rate=1e-2, warmup=0.0, decay="constant")
    lora = Adapter(rank=4, alpha=8.0)
    done = watched(tmp_path, model, adapter=lora, keep="best", pace=fast, progress=note)
    assert 0 < done.best < ALL
    assert torch.equal(weights(model), seen[done.best])
    found = evaluated(tmp_path)
    assert found[done.best] == min(found.values())
    tied = {name: value for name, value in model.named_parameters() if name.endswith("base_layer.weight")}
    assert tied
    for name, value in tied.items():
        assert torch.equal(value, base.get_parameter(name.replace(".base_layer", "")))


@pytest.mark.parametrize("patience", [1, 2, 3])
def test_patience_ends_the_training_after_exactly_that_many_worse_evaluations(patience: int, tmp_path: Path) -> None:
    free = watched(tmp_path / "free")
    losses = evaluated(tmp_path / "free")
    best = min(losses, key=lambda step: losses[step])
    assert best + EVERY * 3 <= free.steps
    done = watched(tmp_path / "patient", patience=patience)
    assert done.stopped
    assert done.steps == best + EVERY * patience
    assert done.best == best
    assert evaluated(tmp_path / "patient") == {step: losses[step] for step in losses if step <= done.steps}


@pytest.mark.parametrize("keep", ["last", "best"])
def test_a_training_that_was_ended_by_patience_leaves_what_was_asked_for(keep: str, tmp_path: Path) -> None:
    model = start(METHOD)
    seen = Seen(model)
    done = watched(tmp_path, model, patience=2, keep=keep, progress=seen)
    assert done.stopped
    kept = done.best if keep == "best" else done.steps
    assert torch.equal(weights(model), seen.after[kept])
    assert done.last["eval/loss"] == evaluated(tmp_path)[kept]


def test_the_first_evaluation_is_the_best_where_every_step_makes_it_worse(tmp_path: Path) -> None:
    model = start(METHOD)
    seen = Seen(model)
    done = watched(tmp_path, model, held_out=OPPOSITE, keep="best", patience=3, evaluate_every=1, progress=seen)
    assert (done.best, done.steps, done.stopped) == (1, 4, True)
    assert torch.equal(weights(model), seen.after[1])


def test_a_lower_loss_renews_the_patience(tmp_path: Path) -> None:
    """Held-out loss falls at every evaluation of a training that is slow enough, so it is never ended."""
    slow = Pace(epochs=8.0, batch=6, learning_rate=1e-4, warmup=0.0, decay="constant")
    done = watched(tmp_path, pace=slow, patience=1, evaluate_every=1)
    assert not done.stopped
    assert done.steps == done.best == ALL


def test_worse_evaluations_count_only_in_a_row(tmp_path: Path) -> None:
    """Rows one at a time, so the held-out loss goes up and down on its way to the optimum."""
    restless = Pace(epochs=4.0, batch=1, learning_rate=3e-3, warmup=0.0, decay="constant")
    asked: dict[str, Any] = {"pace": restless, "evaluate_every": 1}
    watched(tmp_path / "free", **asked)
    losses = evaluated(tmp_path / "free")
    lows = {step for step in losses if losses[step] == min(losses[before] for before in range(1, step + 1))}
    expected = next(step for step in losses if step > 3 and not lows & {step - 2, step - 1, step})
    worse = [step for step in range(1, expected + 1) if step not in lows]
    assert len(worse) > 3, "worse ones before the last low, or the test would say nothing"
    assert watched(tmp_path / "patient", patience=3, **asked).steps == expected


def test_a_training_that_was_ended_is_not_taken_up_again(tmp_path: Path) -> None:
    first, again, steps = start(METHOD), start(METHOD), []
    done = watched(tmp_path, first, patience=2, keep="best")
    lines = (tmp_path / "metrics.jsonl").read_text()
    once_more = watched(tmp_path, again, patience=2, keep="best", progress=lambda at, *_: steps.append(at))
    assert steps == []
    assert once_more._replace(seconds=0) == done._replace(seconds=0)
    assert torch.equal(weights(first), weights(again))
    assert (tmp_path / "metrics.jsonl").read_text() == lines


@pytest.mark.parametrize("decay", [0.5, 0.9])
def test_the_average_is_the_result_and_that_of_one_run_alongside(decay: float, tmp_path: Path) -> None:
    """average_n = d^n w_0 + sum over k of (1 - d) d^(n - k) w_k."""
    model = start(METHOD)
    begin, seen = weights(model).clone().double(), Seen(model, decay)
    watched(tmp_path, model, ema=decay, progress=seen)
    assert torch.equal(weights(model), seen.averages[ALL])
    expected = decay**ALL * begin
    for k in range(1, ALL + 1):
        expected += (1 - decay) * decay ** (ALL - k) * seen.after[k].double()
    torch.testing.assert_close(weights(model).double(), expected, atol=1e-6, rtol=0)
    assert float((weights(model) - seen.after[ALL]).abs().max()) > 1e-4
    assert evaluated(tmp_path)[ALL] == pytest.approx(held_out_loss(model, UNSURE), abs=1e-6)


def test_averaging_leaves_the_steps_themselves_as_they_are(tmp_path: Path) -> None:
    paths = []
    for ema in (0.0, 0.9):
        model = start(METHOD)
        seen = Seen(model)
        watched(tmp_path / str(ema), model, ema=ema, progress=seen)
        paths.append(seen.after)
    assert all(torch.equal(paths[0][step], paths[1][step]) for step in range(1, ALL + 1))


def test_the_best_of_an_averaged_training_is_an_average(tmp_path: Path) -> None:
    """Evaluations look at the averages too, so their losses are those of what is kept."""
    model = start(METHOD)
    seen = Seen(model, 0.5)
    done = watched(tmp_path, model, ema=0.5, keep="best", progress=seen)
    found = evaluated(tmp_path)
    assert done.best == min(found, key=lambda step: found[step])
    assert done.best < ALL
    assert torch.equal(weights(model), seen.averages[done.best])
    assert not torch.equal(weights(model), seen.after[done.best])
    assert held_out_loss(model, UNSURE) == pytest.approx(found[done.best], abs=1e-6)


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_the_average_of_an_adapter_leaves_its_base_alone(method: str, tmp_path: Path) -> None:
    model = start(method)
    before = weights(model).clone()
    train(method, tmp_path, model, adapter=Adapter(rank=4, alpha=8.0), ema=0.5)
    base = torch.cat([value.detach().flatten() for name, value in model.named_parameters() if "lora_" not in name])
    assert torch.equal(base, before)
    assert any(float(value.detach().abs().max()) for name, value in model.named_parameters() if "lora_B" in name)


@pytest.mark.parametrize("asked", [{"keep": "best"}, {"patience": 2}])
def test_to_choose_by_held_out_rows_that_are_missing_is_one_sentence(asked: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="need held-out rows; set held_out above 0") as said:
        train(METHOD, tmp_path, evaluate_every=1, **asked)
    assert "\n" not in str(said.value)
    with pytest.raises(InputError, match="need evaluations on the way; set evaluate_every") as said:
        Watch(**asked)
    assert "\n" not in str(said.value)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_kept_is_one_sentence() -> None:
    with pytest.raises(InputError, match="keep is 'first'; expected last or best"):
        Watch(keep="first", evaluate_every=1)


def test_without_evaluations_on_the_way_held_out_rows_are_evaluated_at_the_end(tmp_path: Path) -> None:
    done = watched(tmp_path, evaluate_every=0)
    assert list(evaluated(tmp_path)) == [ALL]
    assert done.last["eval/loss"] == evaluated(tmp_path)[ALL]


def test_lines_are_logged_at_the_first_the_last_and_every_asked_step(tmp_path: Path) -> None:
    watched(tmp_path, log_every=5, evaluate_every=6)
    rows = read_track(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == [1, 5, 10, 15, 16]
    assert [row["step"] for row in rows if "eval/loss" in row] == [6, 12, 16]
    assert [row["epoch"] for row in rows if "loss" in row] == pytest.approx([0.5, 2.5, 5.0, 7.5, 8.0])


class Scripted:
    """A tracker that keeps what it is told, and how it was opened."""

    def __init__(self) -> None:
        self.opened: list[dict[str, Any]] = []
        self.lines: list[dict[str, float]] = []
        self.closed = 0

    def open(self, folder: Path, *, project: str, run: str, settings: Mapping[str, Any], after: int) -> Scripted:
        self.opened.append({"folder": folder, "project": project, "run": run, "settings": settings, "after": after})
        self.lines = [line for line in self.lines if line["step"] <= after]  # as a service that resumes does
        return self

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self.lines.append({"step": step, **values})

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    """A tracker of the user's own, which a run names as ``my_tracker:open``."""
    tracker, module = Scripted(), ModuleType("my_tracker")
    module.open = tracker.open  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_tracker", module)
    return tracker


def test_a_tracker_gets_exactly_the_lines_of_the_metrics_file(scripted: Scripted, tmp_path: Path) -> None:
    watched(tmp_path / "run" / "reward", trackers=("my_tracker:open",), keep="best", patience=2, log_every=3)
    lines = [json.loads(line) for line in (tmp_path / "run" / "reward" / "metrics.jsonl").read_text().splitlines()]
    assert scripted.lines == lines
    assert any("eval/loss" in line for line in lines)
    assert any("loss" in line for line in lines)
    assert scripted.closed == 1
    (opened,) = scripted.opened
    assert (opened["project"], opened["after"]) == ("run", 0)
    assert opened["run"].startswith("reward-")
    assert opened["settings"]["score"] == "head"
    assert opened["settings"]["batch"] == PACE.batch


def test_a_tracker_of_a_resumed_run_is_told_where_it_goes_on(scripted: Scripted, tmp_path: Path) -> None:
    def stop(done: int, steps: int, shown: object) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train("sft", tmp_path, trackers=("my_tracker:open",), checkpoint_every=2, progress=stop)
    assert scripted.closed == 1, "closed whatever happens"
    train("sft", tmp_path, trackers=("my_tracker:open",), checkpoint_every=2)
    assert [opened["after"] for opened in scripted.opened] == [0, 4]
    assert len({opened["run"] for opened in scripted.opened}) == 1
    assert scripted.lines == read_track(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in scripted.lines] == list(range(1, STEPS + 1))


def test_every_tracker_gets_the_lines(scripted: Scripted, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other, module = Scripted(), ModuleType("my_other_tracker")
    module.open = other.open  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_other_tracker", module)
    train("dpo", tmp_path, trackers=("my_tracker:open", "my_other_tracker:open"))
    assert scripted.lines == other.lines == read_track(tmp_path / "metrics.jsonl")


def test_a_tracker_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no tracker called 'tensorbord'.*Did you mean 'tensorboard'"):
        train("sft", tmp_path, trackers=("tensorbord",))
