"""The offline loop: killed anywhere it ends with the same weights, and what would teach something wrong is refused."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.made import METHODS, ROWS, STEPS, examples, start, train, weights
from tiebreak.models.attention import forest_mode
from tiebreak.models.forest import Tree
from tiebreak.records import InputError
from tiebreak.train import checkpoint
from tiebreak.train.objectives.switches import Outcome, Seen
from tiebreak.train.offline import Example, Pace
from tiebreak.train.track import read_track


def stop_at(step: int) -> Any:
    def progress(done: int, steps: int, shown: object) -> None:
        if done == step:
            raise KeyboardInterrupt

    return progress


def logged(folder: Path) -> Counter[float]:
    return Counter(row["step"] for row in read_track(folder / "metrics.jsonl") if "loss" in row)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("every", [1, 2, 5])
def test_stopped_at_any_step_and_resumed_it_ends_with_the_same_weights(method: str, every: int, tmp_path: Path) -> None:
    calm = start(method)
    train(method, tmp_path / "calm", calm, held_out=examples(method, 3, seed=9), evaluate_every=2)
    for step in range(1, STEPS + 1):
        folder = tmp_path / str(step)
        knobs: dict[str, Any] = {
            "held_out": examples(method, 3, seed=9),
            "evaluate_every": 2,
            "checkpoint_every": every,
        }
        with pytest.raises(KeyboardInterrupt):
            train(method, folder, progress=stop_at(step), **knobs)
        again = start(method)
        done = train(method, folder, again, **knobs)
        assert torch.equal(weights(again), weights(calm)), step
        assert done.steps == STEPS
        assert (folder / "metrics.jsonl").read_text() == (tmp_path / "calm" / "metrics.jsonl").read_text()
    assert logged(tmp_path / "calm") == Counter(range(1, STEPS + 1))


@pytest.mark.parametrize("method", METHODS)
def test_killed_without_warning_and_resumed_it_ends_with_the_same_weights(method: str, tmp_path: Path) -> None:
    calm = start(method)
    train(method, tmp_path / "calm", calm)
    place = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-m", "tests.train.made", method, str(place)])
    until = time.monotonic() + 60
    while len(read_track(place / "metrics.jsonl")) < 3 and time.monotonic() < until:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -9
    state = json.loads((place / "checkpoint" / "state.json").read_text())
    assert 1 <= state["step"] < STEPS
    again = start(method)
    train(method, place, again)
    assert torch.equal(weights(again), weights(calm))
    assert logged(place) == Counter(range(1, STEPS + 1))


def test_a_finished_training_is_not_done_again_until_its_checkpoint_is_discarded(tmp_path: Path) -> None:
    first = start("dpo")
    done = train("dpo", tmp_path, first, held_out=examples("dpo", 3, seed=9))
    again, steps = start("dpo"), []
    once_more = train(
        "dpo", tmp_path, again, held_out=examples("dpo", 3, seed=9), progress=lambda at, *_: steps.append(at)
    )
    assert steps == []
    assert torch.equal(weights(first), weights(again))
    assert once_more._replace(seconds=0) == done._replace(seconds=0)
    checkpoint.discard(tmp_path / "checkpoint")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "reference"]


def test_half_written_checkpoints_are_ignored(tmp_path: Path) -> None:
    calm = start("sft")
    train("sft", tmp_path / "calm", calm)
    with pytest.raises(KeyboardInterrupt):
        train("sft", tmp_path / "a", progress=stop_at(4), checkpoint_every=2)
    partial = tmp_path / "a" / ".checkpoint.partial"
    partial.mkdir()
    (partial / "weights.safetensors").write_bytes(b"half")
    again = start("sft")
    train("sft", tmp_path / "a", again)
    assert torch.equal(weights(again), weights(calm))
    # killed between moving the old one away and the new one in
    with pytest.raises(KeyboardInterrupt):
        train("sft", tmp_path / "b", progress=stop_at(4), checkpoint_every=2)
    (tmp_path / "b" / "checkpoint").rename(tmp_path / "b" / ".checkpoint.old")
    again, seen = start("sft"), []
    train("sft", tmp_path / "b", again, progress=lambda done, *_: seen.append(done))
    assert seen[0] > 1
    assert torch.equal(weights(again), weights(calm))


@pytest.mark.parametrize("change", [{"seed": 2}, {"knobs": {"beta": 0.2}}, {"pace": Pace(batch=5)}, {"rows": None}])
def test_a_checkpoint_of_another_training_is_not_taken_up(change: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train("dpo", tmp_path, progress=stop_at(3), checkpoint_every=1)
    if "rows" in change:
        change = {"rows": examples("dpo", seed=5)}
    with pytest.raises(InputError, match="another start, other rows, knobs or seed"):
        train("dpo", tmp_path, **change)


def test_a_resumed_run_refuses_another_start_for_it_is_the_reference(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train("dpo", tmp_path, progress=stop_at(3), checkpoint_every=1)
    other = start("dpo")
    with torch.no_grad():
        next(other.parameters()).mul_(1.01)
    with pytest.raises(InputError, match="another start"):
        train("dpo", tmp_path, other)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_dpo_starts_at_ln_2_with_any_batch(kind: str, tmp_path: Path) -> None:
    for batch in (1, 3, ROWS):
        train("dpo", tmp_path / str(batch), start("dpo", kind), pace=Pace(batch=batch, learning_rate=1e-4))
        first = read_track(tmp_path / str(batch) / "metrics.jsonl")[0]
        assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_dropout_of_the_configuration_is_switched_off_for_training(tmp_path: Path) -> None:
    """Seed defect B8: GPT-2's configuration says 0.1 everywhere."""
    model = start("dpo", "gpt2", attn_pdrop=0.1, resid_pdrop=0.1, embd_pdrop=0.1)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1  # as from_pretrained would leave it
    train("dpo", tmp_path, model, pace=Pace(batch=ROWS, learning_rate=1e-4))
    assert read_track(tmp_path / "metrics.jsonl")[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_a_policy_that_is_not_its_reference_at_the_start_is_refused(tmp_path: Path) -> None:
    model = start("dpo")
    noise = model.get_input_embeddings().register_forward_hook(
        lambda m, i, out: out + 0.1 * torch.randn_like(out) if torch.is_grad_enabled() else out
    )
    with pytest.raises(InputError, match="should be ln 2"):
        train("dpo", tmp_path, model)
    noise.remove()
    train("dpo", tmp_path, start("dpo"), pace=Pace(batch=ROWS, learning_rate=1e-4))


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_numbers_that_are_not_finite_stop_the_training_and_the_checkpoint_stays(broken: str, tmp_path: Path) -> None:
    model = start("sft")

    def spoil(done: int, steps: int, shown: object) -> None:
        if done == 3 and broken == "loss":
            model.get_input_embeddings().register_forward_hook(lambda m, i, out: out * float("nan"))
        if done == 3 and broken == "gradient":
            next(model.parameters()).register_hook(lambda gradient: gradient * float("inf"))

    with pytest.raises(InputError, match=f"The {broken}.*at step 4 is .*checkpoint is kept"):
        train("sft", tmp_path, model, progress=spoil, checkpoint_every=1)
    assert json.loads((tmp_path / "checkpoint" / "state.json").read_text())["step"] == 3
    again, calm = start("sft"), start("sft")
    train("sft", tmp_path, again)
    train("sft", tmp_path / "calm", calm)
    assert torch.equal(weights(again), weights(calm))


@pytest.mark.parametrize("method", METHODS)
def test_a_weight_of_two_is_the_row_twice(method: str, tmp_path: Path) -> None:
    rows, models = examples(method, 3), []
    for name, some in (("a", [rows[0]._replace(weight=2.0), *rows[1:]]), ("b", [rows[0], *rows])):
        models.append(start(method))
        train(method, tmp_path / name, models[-1], rows=some, pace=Pace(batch=9, epochs=1))
    moved = [weights(model) - weights(start(method)) for model in models]
    assert float(moved[0].norm()) > 0
    assert float((moved[0] - moved[1]).norm()) < 2e-3 * float(moved[0].norm())


def test_soft_labels_change_what_is_learned(tmp_path: Path) -> None:
    """Seed defect A2, through the loop."""
    ends = []
    for p in (0.6, 1.0):
        model = start("bradley_terry")
        train("bradley_terry", tmp_path / str(p), model, rows=[e._replace(p=p) for e in examples("bradley_terry")])
        ends.append(weights(model))
    assert not torch.equal(ends[0], ends[1])


def test_the_seed_orders_the_rows(tmp_path: Path) -> None:
    ends = []
    for seed in (1, 2):
        model = start("sft")
        train("sft", tmp_path / str(seed), model, seed=seed)
        ends.append(weights(model))
    assert not torch.equal(ends[0], ends[1])


def test_it_learns_what_the_pairs_say(tmp_path: Path) -> None:
    rows = [row._replace(p=1.0) for row in examples("bradley_terry", 16)]
    for method in ("bradley_terry", "dpo"):
        done = train(
            method, tmp_path / method, rows=rows, held_out=rows, pace=Pace(epochs=20, batch=8, learning_rate=3e-3)
        )
        assert done.last["eval/rewards/accuracies"] > 0.95
        assert done.last["eval/loss"] < math.log(2)


def test_evaluation_is_one_mean_over_all_rows_whatever_the_batch(tmp_path: Path) -> None:
    held = examples("sft", 7, seed=3)
    found = [
        train("sft", tmp_path / str(batch), held_out=held, pace=Pace(batch=batch, learning_rate=1e-30)).last[
            "eval/loss"
        ]
        for batch in (1, 3, 7)
    ]
    assert found == pytest.approx([found[0]] * 3, rel=1e-6)
    tokens = sum(len(row.tree.branches[0]) for row in held)
    assert tokens > 0


def test_rows_that_cannot_be_trained_on_are_refused_at_the_door(tmp_path: Path) -> None:
    one = Example(Tree((2, 3), ((4, 0),)))
    wrong = [
        ([], "nothing to train on"),
        ([one], "1 completions; a pair objective needs 2"),
        ([examples("dpo")[0]._replace(p=1.5)], "p = 1.5"),
        ([examples("dpo")[0]._replace(weight=0.0)], "weight 0.0"),
        ([Example(Tree(tuple(range(2, 125)), ((4, 0), (5, 6, 7, 8, 9, 0))))], "129 tokens and the model 128"),
    ]
    for rows, said in wrong:
        with pytest.raises(InputError, match=said):
            train("dpo", tmp_path, rows=rows)
    with pytest.raises(InputError, match="nll has to be 0"):
        train("bradley_terry", tmp_path, knobs={"nll": 1.0})
    with pytest.raises(InputError, match=r"no knob 'betta'.*Did you mean 'beta'"):
        train("dpo", tmp_path, knobs={"betta": 1.0})
    assert not list(tmp_path.iterdir())


def margin_loss(seen: Seen, *, score: str = "log_prob", gap: float = 1.0) -> Outcome:
    """A loss of one's own: chosen answers are more likely than rejected ones by a gap."""
    assert seen.logps is not None
    d = seen.logps[seen.chosen] - seen.logps[seen.rejected]
    return Outcome((gap - d).clamp_min(0).mean(), {"gap": d.mean().detach()})


def test_a_loss_of_ones_own_takes_the_place_of_the_switches(tmp_path: Path) -> None:
    from tests.train.made import PACE
    from tiebreak.train.offline import fit

    model = start("dpo")
    done = fit(model, examples("dpo"), {"gap": 2.0}, PACE, seed=0, folder=tmp_path, loss=margin_loss)
    assert done.steps == STEPS
    assert "gap" in read_track(tmp_path / "metrics.jsonl")[0]
    with pytest.raises(InputError, match="no knob score"):
        fit(model, examples("dpo"), {}, PACE, seed=0, folder=tmp_path / "b", loss=lambda seen, *, gap=1.0: seen)


def test_the_model_is_left_as_it_came_but_for_its_weights(tmp_path: Path) -> None:
    model = start("dpo").eval()
    before = model.config._attn_implementation
    with pytest.raises(KeyboardInterrupt):
        train("dpo", tmp_path, model, progress=stop_at(2))
    assert model.config._attn_implementation == before
    with forest_mode(model):
        assert model.config._attn_implementation != before
    train("dpo", tmp_path / "b", model)
    assert not model.training


def test_a_disk_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / ".checkpoint.partial").write_text("in the way")
    model = start("sft")
    optimizer = torch.optim.AdamW(model.parameters())
    with pytest.raises(InputError, match=r"checkpoint .* cannot be written"):
        checkpoint.save(tmp_path / "checkpoint", model, optimizer, {})
