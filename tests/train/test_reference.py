"""The reference of a policy: the same numbers from disk, from a frozen copy and from under an adapter, at log 2."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from tests.models.tiny import causal
from tests.train.made import ROWS, STEPS, examples, start, train, weights
from tiebreak.models.adapters import Adapter, adapt
from tiebreak.records import InputError
from tiebreak.train.learner import Learner
from tiebreak.train.objectives.presets import OBJECTIVES
from tiebreak.train.offline import Pace
from tiebreak.train.reference import Cached, Follower, Reference, cached_logps, frozen_copy
from tiebreak.train.rows import Example
from tiebreak.train.track import read_track
from tiebreak.train.update import Compute

LORA = Adapter(rank=4, alpha=8.0)
SLOW = Pace(epochs=2.0, batch=4, learning_rate=1e-4)
KINDS = pytest.mark.parametrize("kind", ["llama", "gpt2"])


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in read_track(folder / "metrics.jsonl") if "loss" in row]


@contextmanager
def forwards(model: PreTrainedModel) -> Iterator[list[int]]:
    """Count the tokens of every pass through the model's body."""
    seen: list[int] = []
    body = getattr(model, model.base_model_prefix)

    def note(module: object, given: object, asked: dict[str, Any]) -> None:
        seen.append(asked["input_ids"].numel())

    hook = body.register_forward_pre_hook(note, with_kwargs=True)
    yield seen
    hook.remove()


def cached(
    folder: Path,
    *,
    model: PreTrainedModel | None = None,
    rows: list[Example] | None = None,
    compute: Compute | None = None,
) -> tuple[Cached, list[int]]:
    """Ask for the log-probs of rows before any update, and say which passes that took."""
    learner = Learner(model or start("dpo"), OBJECTIVES["dpo"].knobs, Pace(), compute)
    with learner.ready():
        learner.values(examples("dpo", 1))  # what is tried once for each model
        with forwards(learner.model) as seen:
            return cached_logps(learner, rows or examples("dpo"), folder), seen


@KINDS
@pytest.mark.parametrize("adapter", [None, LORA])
def test_a_cached_reference_gives_the_losses_of_one_in_the_step(
    kind: str, adapter: Adapter | None, tmp_path: Path
) -> None:
    found = []
    for compute in ("cached", "step"):
        folder = tmp_path / compute
        reference = Reference(compute=compute)
        train("dpo", folder, start("dpo", kind), reference=reference, adapter=adapter, pace=SLOW)
        found.append(losses(folder))
    assert found[0] == pytest.approx(found[1], abs=1e-6)
    assert len(found[0]) == STEPS
    assert found[0][-1] != found[0][0]


def test_a_frozen_copy_is_not_moved_by_the_training(tmp_path: Path) -> None:
    """With all rows in one batch and no step that changes anything, every loss is log 2; with real steps it falls."""
    still = Pace(epochs=3.0, batch=ROWS, learning_rate=1e-30)
    moving = Pace(epochs=3.0, batch=ROWS, learning_rate=1e-3)
    for name, pace in (("still", still), ("moving", moving)):
        train("dpo", tmp_path / name, reference=Reference(compute="step"), pace=pace)
    assert losses(tmp_path / "still") == pytest.approx([math.log(2)] * 3, abs=1e-6)
    first, second, third = losses(tmp_path / "moving")
    assert first > second > third


def test_a_second_training_reads_what_the_first_has_computed(tmp_path: Path) -> None:
    tokens = sum(row.tree.size for row in examples("dpo"))
    cache, passes, models = tmp_path / "cache", [], []
    for name in ("first", "second"):
        models.append(start("dpo"))
        with forwards(models[-1]) as seen:
            train("dpo", tmp_path / name, models[-1], cache=cache)
        passes.append(sum(seen))
    assert passes[0] - passes[1] == tokens
    assert len(list(cache.iterdir())) == 1
    assert not (tmp_path / "first" / "reference").exists()
    assert torch.equal(weights(models[0]), weights(models[1]))
    assert losses(tmp_path / "first") == losses(tmp_path / "second")


def test_what_is_read_is_what_was_computed_and_takes_no_pass(tmp_path: Path) -> None:
    first, passes = cached(tmp_path)
    again, none = cached(tmp_path)
    assert (first.read, again.read) == (False, True)
    assert sum(passes) == sum(row.tree.size for row in examples("dpo"))
    assert none == []
    assert torch.equal(first.logps, again.logps)
    assert first.logps.shape == (ROWS, 2)


def trained_on_words() -> list[Example]:
    """The rows with one token of each branch that is not learned."""
    rows = []
    for row in examples("dpo"):
        taught = tuple((*(True,) * (len(branch) - 1), False) for branch in row.tree.branches)
        rows.append(row._replace(tree=row.tree._replace(taught=taught)))
    return rows


OTHERS: dict[str, Callable[[], dict[str, Any]]] = {
    "weights": lambda: {"model": causal("llama", seed=5).model},
    "one weight": lambda: {"model": nudged()},
    "architecture": lambda: {"model": start("dpo", "gpt2")},
    "rows": lambda: {"rows": examples("dpo", seed=4)},
    "fewer rows": lambda: {"rows": examples("dpo")[:-1]},
    "another order of rows": lambda: {"rows": examples("dpo")[::-1]},
    "learned tokens": lambda: {"rows": trained_on_words()},
    "precision": lambda: {"compute": Compute(precision="bfloat16")},
    "precision of weights": lambda: {"compute": Compute(precision="bfloat16_weights")},
}


def nudged() -> PreTrainedModel:
    model = start("dpo")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] += 1e-3
    return model


@pytest.mark.parametrize("what", OTHERS)
def test_the_cache_is_not_read_for_another_reference(what: str, tmp_path: Path) -> None:
    first, _ = cached(tmp_path)
    other, passes = cached(tmp_path, **OTHERS[what]())
    assert not other.read
    assert sum(passes) > 0
    assert not torch.equal(first.logps, other.logps)
    assert len(list(tmp_path.iterdir())) == 2


SHARED: dict[str, dict[str, Any]] = {
    "probabilities": {"rows": [row._replace(p=0.5) for row in examples("dpo")]},
    "weights of rows": {"rows": [row._replace(weight=3.0) for row in examples("dpo")]},
    "labels": {"rows": [row._replace(label="chat") for row in examples("dpo")]},
    "token budget": {"compute": Compute(tokens=30)},
    "checkpointing": {"compute": Compute(checkpointing=True)},
}


@pytest.mark.parametrize("what", SHARED)
def test_the_cache_is_shared_where_the_reference_is_the_same(what: str, tmp_path: Path) -> None:
    cached(tmp_path)
    again, passes = cached(tmp_path, **SHARED[what])
    assert again.read
    assert passes == []


def test_the_cache_is_shared_by_seeds_and_learning_rates_and_objectives(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for number, more in enumerate(({}, {"seed": 8}, {"pace": SLOW}, {"knobs": {"beta": 0.3, "nll": 1.0}})):
        train("dpo", tmp_path / str(number), cache=cache, **more)
    assert len(list(cache.iterdir())) == 1


def test_a_file_half_written_by_a_killed_run_is_written_anew(tmp_path: Path) -> None:
    first, _ = cached(tmp_path)
    (whole,) = tmp_path.iterdir()
    content = whole.read_bytes()
    whole.unlink()
    whole.with_suffix(".partial").write_bytes(content[: len(content) // 2])
    again, passes = cached(tmp_path)
    assert not again.read
    assert passes
    assert torch.equal(again.logps, first.logps)
    assert [path.name for path in tmp_path.iterdir()] == [whole.name]
    assert whole.read_bytes() == content


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("adapter", [None, LORA, Adapter(kind="dora", rank=4, alpha=8.0)])
@pytest.mark.parametrize("compute", ["cached", "step"])
@KINDS
def test_the_first_loss_is_log_2_wherever_the_reference_comes_from(
    kind: str, compute: str, adapter: Adapter | None, precision: str, tmp_path: Path
) -> None:
    """Also where forests of the step are not those that the reference was computed in."""
    for batch in (1, 4, ROWS):
        train(
            "dpo",
            tmp_path / str(batch),
            start("dpo", kind),
            reference=Reference(compute=compute),
            adapter=adapter,
            compute=Compute(precision=precision, tokens=40),
            pace=Pace(epochs=0.1, batch=batch, learning_rate=1e-4),
        )
        assert losses(tmp_path / str(batch))[0] == pytest.approx(math.log(2), abs=1e-3)
        if precision == "float32":
            assert losses(tmp_path / str(batch))[0] == pytest.approx(math.log(2), abs=2e-6)


@pytest.mark.parametrize(
    ("adapter", "compute"), [(None, "cached"), (LORA, "cached"), (LORA, "step")], ids=["full", "LoRA", "LoRA in step"]
)
@KINDS
def test_the_first_loss_is_log_2_with_weights_in_bfloat16(
    kind: str, adapter: Adapter | None, compute: str, tmp_path: Path
) -> None:
    reference, narrow = Reference(compute=compute), Compute(precision="bfloat16_weights")
    train("dpo", tmp_path, start("dpo", kind), reference=reference, adapter=adapter, compute=narrow)
    assert losses(tmp_path)[0] == pytest.approx(math.log(2), abs=1e-6)


@KINDS
def test_under_an_adapter_the_reference_stays_the_base_while_the_policy_moves(kind: str) -> None:
    rows, base = examples("dpo"), start("dpo", kind)
    before = Learner(base, OBJECTIVES["dpo"].knobs, Pace())
    with before.ready():
        expected = before.values(rows).view(-1, 2)
    learner = Learner(adapt(start("dpo", kind), LORA, seed=0), OBJECTIVES["dpo"].knobs, Pace(learning_rate=3e-3))
    with learner.ready():
        for number in range(4):
            learner.step(rows, number, 4)
        assert torch.equal(learner.reference_logps(rows), expected)
        assert float((learner.values(rows).view(-1, 2) - expected).abs().max()) > 0.1


def snapshots(kept: list[Tensor]) -> Any:
    """Hand out a callback that keeps the weights after every step."""

    def start_of(model: PreTrainedModel) -> Any:
        kept.append(weights(model).clone())
        return lambda done, steps, shown: kept.append(weights(model).clone())

    return start_of


def end_of_reference(folder: Path, model: PreTrainedModel) -> Tensor:
    """The weights of the reference in the last checkpoint, in the order of the policy's."""
    saved = load_file(folder / "checkpoint" / "reference.safetensors")
    return torch.cat([saved[name].flatten() for name, _ in model.named_parameters()])


@pytest.mark.parametrize("share", [0.1, 0.5])
@KINDS
def test_a_reference_that_follows_each_step_is_the_moving_average_of_the_policy(
    kind: str, share: float, tmp_path: Path
) -> None:
    """ref_n = (1 - a)^n w_0 + sum over k of a (1 - a)^(n - k) w_k."""
    model, path = start("dpo", kind), []
    follow = Reference(compute="step", sync_every=1, sync_mix=share)
    train("dpo", tmp_path, model, reference=follow, progress=snapshots(path)(model))
    n = len(path) - 1
    assert n == STEPS
    factors = [(1 - share) ** n] + [share * (1 - share) ** (n - k) for k in range(1, n + 1)]
    expected = sum(factor * weights_.double() for factor, weights_ in zip(factors, path, strict=True))
    torch.testing.assert_close(end_of_reference(tmp_path, model).double(), expected, atol=1e-6, rtol=0)
    assert float((path[-1] - path[0]).abs().max()) > 1e-3


def test_a_whole_share_every_few_steps_copies_the_policy(tmp_path: Path) -> None:
    model, path, every = start("dpo"), [], 4
    follow = Reference(compute="step", sync_every=every)
    train("dpo", tmp_path, model, reference=follow, progress=snapshots(path)(model))
    assert STEPS // every == 1
    assert torch.equal(end_of_reference(tmp_path, model), path[every])
    assert not torch.equal(path[every], path[STEPS])
    found = losses(tmp_path)
    at_log_2 = [abs(loss - math.log(2)) < 1e-6 for loss in found]
    assert at_log_2 == [step % every == 0 for step in range(STEPS)], "policy and reference are equal after a copy"


def test_between_two_copies_the_reference_stays(tmp_path: Path) -> None:
    """As long as it has not been copied to, a reference that will follow gives the losses of one that stays."""
    found = []
    for name, follow in (("stays", Reference(compute="step")), ("follows", Reference(compute="step", sync_every=4))):
        train("dpo", tmp_path / name, reference=follow)
        found.append(losses(tmp_path / name))
    assert found[0][:4] == found[1][:4]
    assert found[0][4] != found[1][4]


def test_a_follower_moves_by_its_share_and_comes_back_from_its_state() -> None:
    policy, other = start("dpo"), causal("llama", seed=3).model
    before, towards = weights(other).clone(), weights(policy)
    follower = Follower(other, Reference(compute="step", sync_every=3, sync_mix=0.25))
    for done in (1, 2):
        follower.follow(policy, done)
        assert torch.equal(weights(other), before)
    follower.follow(policy, 3)
    torch.testing.assert_close(weights(other), 0.75 * before + 0.25 * towards, atol=1e-7, rtol=0)
    again = Follower(causal("llama", seed=4).model, follower.settings)
    again.load({name: tensor.clone() for name, tensor in follower.state().items()})
    assert torch.equal(weights(again.model), weights(other))


def test_a_frozen_copy_shares_nothing_with_the_policy() -> None:
    policy = start("dpo")
    copy = frozen_copy(policy, Reference(compute="step"))
    assert copy is not None
    assert not copy.training
    assert not any(parameter.requires_grad for parameter in copy.parameters())
    before = weights(copy).clone()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(1.0)
    assert torch.equal(weights(copy), before)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"sync_every": 1}, "follows the policy cannot be cached; set reference compute to step"),
        ({"compute": "disk"}, "computed 'disk'; expected cached or step"),
        ({"compute": "step", "sync_every": -1}, "sync_every -1"),
        ({"compute": "step", "sync_every": 1, "sync_mix": 0.0}, "sync_mix 0.0"),
        ({"compute": "step", "sync_every": 1, "sync_mix": 1.5}, "sync_mix 1.5"),
        ({"compute": "step", "sync_every": 1, "sync_mix": math.nan}, "sync_mix nan"),
    ],
)
def test_a_reference_that_cannot_be_is_one_sentence(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as refused:
        Reference(**asked)
    assert "\n" not in str(refused.value)


def test_a_reference_that_follows_an_adapter_is_one_sentence(tmp_path: Path) -> None:
    follow = Reference(compute="step", sync_every=1)
    with pytest.raises(InputError, match="needs full training; leave out adapter, or set sync_every to 0") as refused:
        train("dpo", tmp_path, reference=follow, adapter=LORA)
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_objectives_that_compare_with_nothing_compute_no_reference(tmp_path: Path) -> None:
    for method in ("sft", "bradley_terry"):
        train(method, tmp_path / method)
        assert not (tmp_path / method / "reference").exists()
