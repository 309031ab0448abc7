"""The online loop, stopped at any step and run again: the same weights, metrics and samples, to the bit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.acting import (
    PACE,
    TOKENS,
    act,
    column,
    ending,
    lines,
    prompts,
    rewards,
    share,
    start,
    stop_at,
    value_net,
)
from tests.train.made import weights
from tiebreak.models.adapters import Adapter
from tiebreak.records import InputError
from tiebreak.rewards.table import Answered, Marks
from tiebreak.train import checkpoint
from tiebreak.train.offline import Compute, Pace, Reference
from tiebreak.train.rollouts import Local, Rollout, roll

MANY = Rollout(n=2, max_new_tokens=4, repeats=2, minibatches=2)
RUNS: dict[str, dict[str, Any]] = {
    "ppo": {"method": "ppo"},
    "ppo with a head on the policy": {"method": "ppo", "value": "shared"},
    "grpo with an adapter": {"method": "grpo", "adapter": Adapter(rank=4, alpha=8.0)},
    "rloo, averaged": {"method": "rloo", "ema": 0.9},
    "grpo behind an adaptive, following reference with running rewards": {
        "method": "grpo",
        "knobs": {"kl": "k1", "kl_in": "reward", "kl_target": 0.05, "kl_horizon": 50.0},
        "reference": Reference(compute="step", sync_every=2, sync_mix=0.5),
        "normalise": "running",
    },
    "dapo": {"method": "dapo"},
    "ppo, several updates a batch": {"method": "ppo", "rollout": MANY},
    "remax in bfloat16": {"method": "remax", "compute": Compute(precision="bfloat16_weights")},
    "a_star_po with running rewards": {"method": "a_star_po", "normalise": "running"},
    "grpo, the best kept": {
        "method": "grpo",
        "held_out": prompts(2),
        "evaluate_every": 1,
        "keep": "best",
        "pace": Pace(epochs=2.0, batch=3, learning_rate=1e-2, warmup=0.0),
    },
}


def live(name: str, folder: Path, **more: Any) -> tuple[torch.Tensor, Any]:
    """Train as the run ``name`` says from what lies in ``folder``; return the weights that learned, and what it did."""
    asked = {**RUNS[name], **more}
    method, kind = asked.pop("method"), asked.pop("value", "separate")
    model = ending()
    scored = rewards(share, normalise=asked.pop("normalise", "none"))
    critic = value_net(model, kind) if method == "ppo" else None
    done = act(method, folder, model, critic=critic, rewards=scored, **asked)
    learned = [weights(model), *([] if critic is None else [weights(critic)])]  # type: ignore[arg-type]
    return torch.cat(learned), done._replace(seconds=0.0)


@pytest.mark.parametrize("name", RUNS)
def test_stopped_at_any_step_it_ends_with_the_same_weights_metrics_and_samples(name: str, tmp_path: Path) -> None:
    calm, done = live(name, tmp_path / "calm")
    assert not torch.equal(calm[: len(weights(ending()))], weights(ending()))
    for step in range(1, done.steps + 1):
        folder = tmp_path / str(step)
        with pytest.raises(KeyboardInterrupt):
            live(name, folder, progress=stop_at(step), checkpoint_every=2)
        again, again_done = live(name, folder, checkpoint_every=2)
        assert torch.equal(again, calm), step
        assert again_done == done
        assert lines(folder) == lines(tmp_path / "calm")
        assert lines(folder, "samples.jsonl") == lines(tmp_path / "calm", "samples.jsonl")


def test_stopped_while_best_values_are_estimated_it_ends_with_the_same(tmp_path: Path) -> None:
    name = "a_star_po with running rewards"
    calm, done = live(name, tmp_path / "calm")
    for prompt in (3, 6):
        folder = tmp_path / str(prompt)
        with pytest.raises(KeyboardInterrupt):
            live(name, folder, progress=stop_at(prompt))
        again, again_done = live(name, folder)
        assert (folder / "optimal.jsonl").read_text() == (tmp_path / "calm" / "optimal.jsonl").read_text()
        assert torch.equal(again, calm), prompt
        assert again_done == done


@pytest.mark.parametrize(
    "change",
    [{"knobs": {"optimal_beta": 0.01}}, {"asked": prompts(5)}, {"seed": 2}, {"rollout": Rollout(max_new_tokens=3)}],
    ids=["knob", "prompts", "seed", "length"],
)
def test_best_values_of_another_run_are_estimated_anew(change: dict[str, Any], tmp_path: Path) -> None:
    other, fresh = tmp_path / "other", tmp_path / "fresh"
    act("a_star_po", other)
    checkpoint.discard(other / "checkpoint")
    act("a_star_po", other, **change)
    act("a_star_po", fresh, **change)
    assert (other / "optimal.jsonl").read_text() == (fresh / "optimal.jsonl").read_text()
    assert column(other, "loss/policy") == column(fresh, "loss/policy")


def test_a_finished_training_is_not_done_again(tmp_path: Path) -> None:
    first, done = live("ppo", tmp_path)
    steps: list[int] = []
    again, again_done = live("ppo", tmp_path, progress=lambda at, *_: steps.append(at))
    assert steps == []
    assert torch.equal(first, again)
    assert again_done == done


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 2},
        {"knobs": {"beta": 0.2}},
        {"pace": Pace(epochs=2.0, batch=3, learning_rate=1e-2)},
        {"rollout": Rollout(n=2, max_new_tokens=6)},
        {"asked": prompts(7)},
        {"value": "shared"},
        {"ema": 0.5},
        {"adapter": Adapter(rank=4, alpha=8.0)},
        {"reference": Reference(compute="step", sync_every=2)},
        {"compute": Compute(precision="bfloat16")},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_checkpoint_of_another_training_is_not_taken_up(change: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        act("ppo", tmp_path, progress=stop_at(3), checkpoint_every=1)
    with pytest.raises(InputError, match="another start, other rows, knobs or seed"):
        act("ppo", tmp_path, **change)


def test_other_held_out_prompts_are_another_training_where_they_choose_the_weights(tmp_path: Path) -> None:
    watched = {"evaluate_every": 1, "keep": "best"}
    with pytest.raises(KeyboardInterrupt):
        act("grpo", tmp_path, progress=stop_at(3), checkpoint_every=1, held_out=prompts(2), **watched)
    with pytest.raises(InputError, match="another start, other rows, knobs or seed"):
        act("grpo", tmp_path, held_out=prompts(3), **watched)


def test_other_rewards_are_another_training(tmp_path: Path) -> None:
    """Weights, clips and names of terms; a function's own code cannot be known."""
    with pytest.raises(KeyboardInterrupt):
        act("grpo", tmp_path, progress=stop_at(3), checkpoint_every=1)
    with pytest.raises(InputError):
        act("grpo", tmp_path, rewards=rewards(weight=-1.0))


@pytest.mark.parametrize(
    "cure",
    [
        {"compute": Compute(tokens=16)},
        {"compute": Compute(checkpointing=True)},
        {"rollout": Rollout(n=2, max_new_tokens=5, batch=2)},
    ],
    ids=["tokens", "checkpointing", "rollout.batch"],
)
def test_what_cures_a_lack_of_memory_may_change_on_the_way(cure: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        act("grpo", tmp_path, progress=stop_at(3), checkpoint_every=1)
    assert act("grpo", tmp_path, **cure).steps == 4


def test_faults_are_counted_over_all_lives(tmp_path: Path) -> None:
    def some(answered: Sequence[Answered]) -> Marks:
        return [[None if j else value for j, value in enumerate(row)] for row in share(answered)]

    calm = act("rloo", tmp_path / "calm", rewards=rewards(some))
    with pytest.raises(KeyboardInterrupt):
        act("rloo", tmp_path / "a", rewards=rewards(some), progress=stop_at(3), checkpoint_every=2)
    again = act("rloo", tmp_path / "a", rewards=rewards(some), checkpoint_every=2)
    assert again.faults == calm.faults
    assert sum(calm.faults.values()) == 12


def test_draws_depend_on_seed_prompt_and_turn_alone() -> None:
    how = Rollout(n=2, max_new_tokens=5)
    model = start()

    def texts(some: list[Any], seed: int = 0, turn: str = "0", batch: int = 256) -> dict[str, tuple[str, ...]]:
        one = Rollout(n=2, max_new_tokens=5, batch=batch)
        source = Local(model, TOKENS, one, seed=seed, precision="float32")
        drawn = roll(source, TOKENS, some, n=how.n, temperature=1.0, turn=turn)
        return {each.asked.prompt.id: each.texts for each in drawn}

    everyone = texts(prompts())
    assert texts(prompts()[::-1], batch=2) == everyone
    assert texts(prompts()[2:3]).items() <= everyone.items()
    assert texts(prompts(), turn="1") != everyone
    assert texts(prompts(), seed=1) != everyone


def test_a_checkpoint_holds_what_carries_over(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        live(
            "grpo behind an adaptive, following reference with running rewards",
            tmp_path,
            progress=stop_at(3),
            checkpoint_every=2,
        )
    state = json.loads((tmp_path / "checkpoint" / "state.json").read_text())
    assert (state["step"], state["episodes"]) == (2, 12)
    assert state["beta"] != 0.04
    assert state["rewards"]["running"]["planted"][0] == 12
    assert (tmp_path / "checkpoint" / "reference.safetensors").is_file()
    assert PACE.batch == 3
