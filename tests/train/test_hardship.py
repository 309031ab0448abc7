"""Trainings under hardship: full disks, broken numbers, files cut short, settings that change on the way."""

from __future__ import annotations

import math
import os
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.made import examples, start, train, weights
from tests.train.test_learner import another, batch, made, taken
from tests.train.test_reference import cached, losses
from tests.train.test_step import found_in
from tests.train.test_watch import watched
from tiebreak.models.adapters import Adapter, adapt
from tiebreak.records import InputError
from tiebreak.train import checkpoint
from tiebreak.train.objectives.seen import Compared
from tiebreak.train.offline import Pace, Reference, Watch
from tiebreak.train.update import Compute

LORA = Adapter(rank=4, alpha=8.0)
NARROW = Compute(precision="bfloat16_weights")


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_log_2_with_weights_in_bfloat16_and_the_reference_in_the_step(kind: str, tmp_path: Path) -> None:
    train("dpo", tmp_path, start("dpo", kind), reference=Reference(compute="step"), compute=NARROW)
    assert losses(tmp_path)[0] == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("asked", [{"ema": 0.9}, {"keep": "best", "patience": 2}], ids=str)
def test_a_finished_training_in_bfloat16_weights_gives_its_result_again(asked: dict[str, Any], tmp_path: Path) -> None:
    fast = Pace(epochs=8.0, batch=6, learning_rate=3e-3, warmup=0.0, decay="constant")
    first, again = start("bradley_terry"), start("bradley_terry")
    watched(tmp_path, first, compute=NARROW, pace=fast, **asked)
    watched(tmp_path, again, compute=NARROW, pace=fast, **asked)
    assert torch.equal(weights(first), weights(again))


@pytest.mark.parametrize("adapter", [False, True])
def test_given_back_after_checkpointing(adapter: bool) -> None:
    model = start("sft").eval()
    if adapter:
        adapt(model, LORA, seed=0).eval()
    before = found_in(model)
    learner = made("sft", Compute(checkpointing=True), model=model)
    with learner.ready():
        learner.step(batch("sft"), 0, 1)
    assert found_in(model) == before


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(InputError, match=r"reference's log-probs cannot be written") as said:
        cached(tmp_path / "cache")
    assert "\n" not in str(said.value)


def test_a_cache_file_cut_short_is_written_anew(tmp_path: Path) -> None:
    """A machine that lost power after the move: the name is there and the content is not."""
    first, _ = cached(tmp_path)
    (whole,) = tmp_path.iterdir()
    content = whole.read_bytes()
    whole.write_bytes(content[: len(content) // 2])
    again, _ = cached(tmp_path)
    assert torch.equal(again.logps, first.logps)
    assert whole.read_bytes() == content


@pytest.mark.parametrize("what", ["checkpoint", "best", "cache"])
def test_a_full_disk_is_one_sentence(what: str, tmp_path: Path) -> None:
    """A limit on the size of a file stands for the disk; in a child, for it stays."""
    model = start("sft")
    read, write = os.pipe()
    child = os.fork()
    if not child:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000 if what != "cache" else 10, resource.RLIM_INFINITY))
        try:
            if what == "checkpoint":
                checkpoint.save(tmp_path / "checkpoint", model, torch.optim.AdamW(model.parameters()), {})
            elif what == "best":
                checkpoint.keep(tmp_path / "best.safetensors", model)
            else:
                cached(tmp_path)
            os.write(write, b"nothing was raised")
        except BaseException as error:
            os.write(write, f"{type(error).__name__}: {error}".encode())
        os._exit(0)
    os.waitpid(child, 0)
    said = os.read(read, 1000).decode()
    assert said.startswith("InputError"), said


@pytest.mark.parametrize("asked", [{"checkpoint_every": 0}, {"log_every": 0}, {"evaluate_every": -1}, {"patience": -1}])
def test_intervals_below_one_are_one_sentence(asked: dict[str, int]) -> None:
    with pytest.raises(InputError):
        Watch(**{"evaluate_every": 1, **asked})


def coupled(pair: Compared) -> torch.Tensor:
    """A link of one's own that measures each margin from the batch's mean."""
    return (pair.z - pair.z.mean() - 1).square()


def test_a_link_of_ones_own_that_couples_rows_has_one_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    from types import ModuleType

    module = ModuleType("my_link")
    module.coupled = coupled  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_link", module)
    rows, found = batch("dpo"), []
    for tokens in (None, 1):
        found.append(
            taken(made("dpo", Compute(tokens=tokens), knobs={"link": "my_link:coupled"}, reference=another()), rows)
        )
    gap = float((found[1].gradient - found[0].gradient).norm() / found[0].gradient.norm())
    assert gap < 1e-5, gap


def test_other_labels_under_a_mixture_are_another_training(tmp_path: Path) -> None:
    def stop(done: int, *_: object) -> None:
        if done == 3:
            raise KeyboardInterrupt

    pace = Pace(epochs=2.0, batch=4, learning_rate=3e-3, mixture={"a": 3, "b": 1})
    rows = [row._replace(label="ab"[i % 2]) for i, row in enumerate(examples("sft"))]
    swapped = [row._replace(label="ba"[i % 2]) for i, row in enumerate(examples("sft"))]
    with pytest.raises(KeyboardInterrupt):
        train("sft", tmp_path, rows=rows, pace=pace, checkpoint_every=1, progress=stop)
    with pytest.raises(InputError, match="another start, other rows"):
        train("sft", tmp_path, rows=swapped, pace=pace)


def test_other_held_out_rows_are_another_training_where_they_choose_the_weights(tmp_path: Path) -> None:
    def stop(done: int, *_: object) -> None:
        if done == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watched(tmp_path, keep="best", checkpoint_every=1, progress=stop)
    with pytest.raises(InputError, match="another start, other rows"):
        watched(tmp_path, keep="best", held_out=examples("bradley_terry", 5, seed=77))


def test_an_evaluation_that_is_not_a_number_is_never_the_best(tmp_path: Path) -> None:
    from tiebreak.train.offline import _Training

    done_at = iter([math.nan, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1])
    original = _Training._measure
    try:
        _Training._measure = lambda self: {"eval/loss": next(done_at)}  # type: ignore[method-assign]
        done = watched(tmp_path, keep="best")
    finally:
        _Training._measure = original  # type: ignore[method-assign]
    assert done.best == 4


def test_an_adapter_asked_for_on_an_adapted_model_is_not_ignored(tmp_path: Path) -> None:
    model = adapt(start("sft"), LORA, seed=0)
    with pytest.raises(InputError):
        train("sft", tmp_path, model, adapter=Adapter(rank=32, alpha=1.0))


def test_a_refused_start_leaves_the_weights(tmp_path: Path) -> None:
    model = start("dpo")
    before = weights(model).clone()
    model.get_input_embeddings().register_forward_hook(
        lambda m, i, out: out + 0.1 * torch.randn_like(out) if torch.is_grad_enabled() else out
    )
    with pytest.raises(InputError, match="should be ln 2"):
        train("dpo", tmp_path, model)
    assert torch.equal(weights(model), before)


def test_weights_that_are_not_numbers_are_named_as_that() -> None:
    model = start("sft")
    with torch.no_grad():
        model.model.embed_tokens.weight[3] = math.nan
    with pytest.raises(InputError) as said, made("sft", model=model).ready():
        pass
    assert "computes something else" not in str(said.value), str(said.value)


def test_a_follower_of_bfloat16_weights_moves_by_small_shares_too(tmp_path: Path) -> None:
    """ref_n = (1 - a)^n w_0 + ...; in bfloat16 a step of 1 % of a small difference is rounded away."""
    model, path, share = start("dpo"), [], 0.01
    path.append(weights(model).clone())
    follow = Reference(compute="step", sync_every=1, sync_mix=share)
    steady = Pace(epochs=20.0, batch=4, learning_rate=3e-4, warmup=0.0, decay="constant")
    train(
        "dpo",
        tmp_path,
        model,
        reference=follow,
        compute=NARROW,
        pace=steady,
        progress=lambda *_: path.append(weights(model).float().clone()),
    )
    from tests.train.test_reference import end_of_reference

    expected = path[0].clone().to(torch.bfloat16).float()
    for policy in path[1:]:
        expected.lerp_(policy, share)
    moved = expected - path[0].to(torch.bfloat16).float()
    off = end_of_reference(tmp_path, model).float() - expected
    assert float(off.norm()) < 0.1 * float(moved.norm()), float(off.norm() / moved.norm())
