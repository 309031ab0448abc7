"""The online loop under hardship: rewards that fail, settings that make no sense, numbers that break, odd prompts."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.tiny import ENCODERS, RUNS
from tests.train.acting import (
    STEPS,
    TOKENS,
    act,
    column,
    ending,
    lines,
    prompts,
    refused,
    rewards,
    share,
    start,
    value_net,
)
from tests.train.made import weights
from tiebreak.models.adapters import Adapter
from tiebreak.models.load import build_causal, build_encoder, to_reward, train_tokenizer
from tiebreak.records import InputError, Prompt
from tiebreak.rewards.combine import Rewards
from tiebreak.rewards.table import Answered, Marks, Unscored
from tiebreak.rewards.terms import read_terms
from tiebreak.train.offline import Compute, Pace, Reference
from tiebreak.train.rollouts import Asked, Rollout

ONCE = Pace(epochs=1.0, batch=3, learning_rate=1e-3)


def spoiled(value: Any, which: Callable[[int], bool] = lambda number: number % 3 == 0) -> Rewards:
    """The planted reward with ``value`` in place of some."""
    count = itertools.count()

    def score(answered: Sequence[Answered]) -> Marks:
        return [[value if which(next(count)) else mark for mark in row] for row in share(answered)]

    return rewards(score)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (math.nan, "nan"),
        (math.inf, "infinite"),
        (None, "None"),
        ("good", "str"),
        (10**400, "infinite"),
        (Unscored("too long", "it had 9 words"), "too long"),
    ],
    ids=str,
)
@pytest.mark.parametrize("method", ["grpo", "ppo"])
def test_scores_that_are_no_numbers_teach_nothing_and_are_counted(
    method: str, value: Any, said: str, tmp_path: Path
) -> None:
    done = act(method, tmp_path, rewards=spoiled(value))
    assert all(math.isfinite(value) for row in lines(tmp_path) for value in row.values())
    assert sum(done.faults.values()) == 8
    (fault,) = done.faults
    assert said in fault
    assert column(tmp_path, "completions/unscored") == pytest.approx([1 / 3] * STEPS, abs=1e-6)


def test_a_group_without_any_score_is_left_out_of_its_step(tmp_path: Path) -> None:
    done = act("rloo", tmp_path, rewards=spoiled(None, lambda number: number % 6 < 2))
    assert column(tmp_path, "completions/unscored") == [0.0] * STEPS
    assert [row["episodes"] for row in lines(tmp_path)] == [4, 8, 12, 16]
    assert sum(done.faults.values()) == 8


@pytest.mark.parametrize("value", [None, math.nan, math.inf, "good"])
def test_no_score_at_all_is_one_sentence_with_the_reason(value: Any, tmp_path: Path) -> None:
    said = refused(tmp_path, rewards=spoiled(value, lambda _: True))
    assert "No completion of this batch has a reward" in said
    assert "'planted' could not score 6 of 6" in said


def written(function: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Rewards:
    """A user's own function, as a recipe names it."""
    import sys
    from types import ModuleType

    module = ModuleType("my_rewards")
    module.mine = function  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_rewards", module)

    def no_model(name: str) -> Any:
        raise AssertionError(name)

    return Rewards(read_terms("my_rewards:mine", where="reward", model=no_model, seed=0))


def test_what_a_function_raises_is_that_completions_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    count = itertools.count()

    def mine(prompt: Prompt, completion: str, fields: Any) -> float:
        if next(count) % 4 == 0:
            raise ZeroDivisionError("nothing to divide by")
        return float(len(completion))

    done = act("rloo", tmp_path, rewards=written(mine, monkeypatch))
    assert done.faults == {"reward mine: ZeroDivisionError: nothing to divide by": 6}
    assert done.steps == STEPS


def test_a_function_that_always_raises_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def mine(prompt: Prompt, completion: str, fields: Any) -> float:
        raise KeyError("reference")

    said = refused(tmp_path, rewards=written(mine, monkeypatch))
    assert "'mine' could not score 6 of 6" in said
    assert "KeyError" in said
    assert "reference" in said


def test_where_no_greedy_answer_and_no_draw_of_one_prompt_is_scored_it_is_one_sentence(tmp_path: Path) -> None:
    def crossed(answered: Sequence[Answered]) -> Marks:
        greedy = len(answered[0].texts) == 1
        return [[1.0 if (i == 0) == greedy else None for _ in one.texts] for i, one in enumerate(answered)]

    said = refused(tmp_path, "remax", rewards=rewards(crossed))
    assert "nan" not in said


@pytest.mark.parametrize("worth", [1e30, 1e39, 1e300])
def test_rewards_beyond_what_training_computes_in_are_blamed_on_the_reward(worth: float, tmp_path: Path) -> None:
    done = act("grpo", tmp_path, rewards=spoiled(worth))
    assert all(math.isfinite(value) for value in column(tmp_path, "loss"))
    assert any("not finite" in reason for reason in done.faults) == (worth > 1e38)


@pytest.mark.parametrize("method", ["ppo", "grpo", "reinforce++", "dapo"])
def test_answers_that_end_at_once(method: str, tmp_path: Path) -> None:
    act(method, tmp_path, ending(0.999), rollout=Rollout(n=2, max_new_tokens=4))
    assert column(tmp_path, "completions/mean_length")[0] == pytest.approx(1.0, abs=0.2)
    assert all(math.isfinite(value) for row in lines(tmp_path) for value in row.values())


@pytest.mark.parametrize("method", ["ppo", "grpo"])
def test_one_token_of_answer_is_enough(method: str, tmp_path: Path) -> None:
    act(method, tmp_path, rollout=Rollout(n=2, max_new_tokens=1))
    assert column(tmp_path, "completions/mean_length") == [1.0] * STEPS


@pytest.mark.parametrize("method", ["ppo", "rloo"])
def test_a_prompt_of_one_token_and_one_prompt_alone(method: str, tmp_path: Path) -> None:
    one = [Asked(Prompt(text="a"), (70,))]
    done = act(method, tmp_path, asked=one, pace=Pace(epochs=3.0, batch=8, learning_rate=1e-3))
    assert done.steps == 3
    assert [row["episodes"] for row in lines(tmp_path)] == [2, 4, 6]


def test_a_single_draw_of_a_single_prompt_has_no_nan(tmp_path: Path) -> None:
    """Seed defect B4: one element cannot be standardised."""
    one, alone = prompts(1), Rollout(n=1, max_new_tokens=1)
    act("ppo", tmp_path, asked=one, rollout=alone, pace=Pace(epochs=2.0, batch=1, learning_rate=1e-3))
    assert all(math.isfinite(value) for row in lines(tmp_path) for value in row.values())


def test_more_prompts_a_batch_than_there_are_is_all_of_them(tmp_path: Path) -> None:
    act("rloo", tmp_path, pace=Pace(epochs=2.0, batch=100, learning_rate=1e-3))
    assert [row["episodes"] for row in lines(tmp_path)] == [12, 24]


def test_the_same_prompt_twice_is_answered_twice(tmp_path: Path) -> None:
    act("rloo", tmp_path, asked=[*prompts(2), *prompts(2)], pace=Pace(batch=4, learning_rate=1e-3))
    assert [row["episodes"] for row in lines(tmp_path)] == [8]


def test_too_long_a_prompt_is_one_sentence(tmp_path: Path) -> None:
    said = refused(tmp_path, asked=[Asked(Prompt(text="long"), tuple(range(2, 127)))])
    assert "130 tokens and the model has 128 positions" in said


@pytest.mark.parametrize("method", ["grpo", "rloo", "dr_grpo", "dapo", "gspo", "cispo", "bnpo", "reinforce++_baseline"])
def test_a_group_of_one_is_refused(method: str, tmp_path: Path) -> None:
    said = refused(tmp_path, method, rollout=Rollout(n=1))
    assert "compares the completions of one prompt, and rollout.n is 1; set it to 2 or more" in said


def test_values_and_nets_belong_together(tmp_path: Path) -> None:
    assert "advantage: gae needs a value net" in refused(tmp_path, "ppo", critic=None)
    assert "advantage: group learns no values" in refused(tmp_path, "grpo", critic=value_net(start()))


@pytest.mark.parametrize("kind", ["an encoder", "another tokenizer's model"])
def test_a_value_net_that_cannot_read_the_policys_tokens_is_refused(kind: str, tmp_path: Path) -> None:
    if kind == "an encoder":
        net = build_encoder({"model_type": "bert", **ENCODERS["bert"]}, TOKENS, seed=0).model
    else:
        other = train_tokenizer(["abc"], vocabulary=300)
        net = to_reward(build_causal({"model_type": "llama", **RUNS["llama"]}, other, seed=0).model, other, seed=0)
    assert "value" in refused(tmp_path, "ppo", critic=net)


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"betta": 1.0}, r"no knob 'betta'.*Did you mean 'beta'"),
        ({"advantage": "gea"}, r"no advantage 'gea'.*Did you mean 'gae'"),
        ({"ratio": "tokens"}, "Did you mean 'token'"),
        ({"clip": "clipp"}, "Did you mean 'clip'"),
        ({"aggregation": "token_men"}, "Did you mean 'token_mean'"),
        ({"kl": "k4"}, "Did you mean"),
        ({"kl": "k1"}, "k1 in the loss teaches nothing: the expected gradient"),
        ({"kl": "full", "kl_in": "reward"}, "full is a term of the loss"),
        ({"kl_in": "los"}, "Did you mean 'loss'"),
        ({"missing_eos": "replaced"}, "Did you mean 'replace'"),
        ({"truncated": "drop"}, "expected keep or mask"),
        ({"overlong": 1.0}, "overlong is 1.0"),
        ({"beta": -0.1}, "beta is -0.1"),
        ({"ratio": "reference_sum"}, "go together"),
        ({"kl": "", "kl_in": "", "beta": 0.1}, "beta"),
        ({"dynamic": -1}, "dynamic"),
        ({"dynamic": 2.5}, "dynamic"),
        ({"kl_target": 6.0, "kl_horizon": 0.0}, "kl_horizon"),
        ({"kl_target": -1.0}, "kl_target"),
        ({"epsilon": -1.0}, "epsilon"),
        ({"low": -0.1}, "low"),
        ({"gamma": 1.5}, "gamma"),
        ({"lam": -0.5}, "lam"),
        ({"beta": math.nan}, "beta"),
        ({"beta": "x"}, "beta"),
        ({"missing_eos": "replace", "missing_eos_value": math.nan}, "missing_eos_value"),
        ({"whiten": "no"}, "whiten"),
    ],
    ids=str,
)
def test_knobs_that_make_no_sense_are_refused_before_anything_is_drawn(
    knobs: dict[str, Any], said: str, tmp_path: Path
) -> None:
    model = start()
    with pytest.raises(InputError, match=said):
        act("grpo", tmp_path, model, knobs=knobs)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("knobs", [{"optimal_draws": 0}, {"optimal_beta": 0.0}, {"optimal_beta": -1.0}], ids=str)
def test_best_values_need_draws_and_a_temperature(knobs: dict[str, Any], tmp_path: Path) -> None:
    assert next(iter(knobs)) in refused(tmp_path, "a_star_po", knobs=knobs)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"asked": []}, "no prompts"),
        ({"keep": "best", "evaluate_every": 1}, "held_out above 0"),
        ({"patience": 2, "evaluate_every": 1}, "held_out above 0"),
        ({"method": "dr_grpo", "reference": Reference(compute="step", sync_every=1)}, "needs a kl"),
        (
            {"adapter": Adapter(rank=4, alpha=8.0), "reference": Reference(compute="step", sync_every=1)},
            "full training",
        ),
        ({"optimizer": "adamm"}, "Did you mean 'adamw'"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_settings_that_do_not_go_together_are_one_sentence(asked: dict[str, Any], said: str, tmp_path: Path) -> None:
    assert said in refused(tmp_path, **asked)


@pytest.mark.parametrize("name", ["n", "max_new_tokens", "repeats", "minibatches", "batch"])
def test_rollouts_of_nothing_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"{name} is 0"):
        Rollout(**{name: 0})


@pytest.mark.parametrize("wrong", [{"temperature": 0.0}, {"temperature": math.nan}, {"min_new_tokens": -1}], ids=str)
def test_rollouts_that_cannot_be_drawn_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        Rollout(**wrong)


@pytest.mark.parametrize("method", ["ppo", "grpo"])
@pytest.mark.parametrize("precision", ["bfloat16", "bfloat16_weights"])
@pytest.mark.parametrize("value", ["separate", "shared"])
def test_less_precision_trains_too(method: str, precision: str, value: str, tmp_path: Path) -> None:
    done = act(method, tmp_path, compute=Compute(precision=precision), **({"value": value} if method == "ppo" else {}))
    assert all(math.isfinite(value) for row in lines(tmp_path) for value in row.values())
    assert done.steps == STEPS


def test_activation_checkpointing_changes_nothing(tmp_path: Path) -> None:
    ends = []
    for again in (False, True):
        model = start()
        act("ppo", tmp_path / str(again), model, compute=Compute(checkpointing=again))
        ends.append(weights(model))
    assert torch.equal(*ends)


def test_weights_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    model = start()
    with torch.no_grad():
        model.model.embed_tokens.weight[3] = math.nan
    assert "not finite numbers" in refused(tmp_path, model=model)


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_numbers_that_break_leave_the_weights_and_the_checkpoint(broken: str, tmp_path: Path) -> None:
    model = start()
    critic, seen = value_net(model), []

    def spoil(done: int, steps: int, shown: object) -> None:
        seen.append(weights(model).clone())
        if done == 2 and broken == "loss":
            critic.score.register_forward_hook(lambda module, given, out: out * math.nan)  # type: ignore[union-attr, operator]
        if done == 2 and broken == "gradient":
            next(model.parameters()).register_hook(lambda gradient: gradient * math.inf)

    with pytest.raises(InputError, match=f"The {broken}.* is nan|The {broken}.* is inf"):
        act("ppo", tmp_path, model, critic=critic, progress=spoil, checkpoint_every=1)
    assert torch.equal(weights(model), seen[-1])
    assert json.loads((tmp_path / "checkpoint" / "state.json").read_text())["step"] == 2
    again, calm = start(), start()
    act("ppo", tmp_path, again)
    act("ppo", tmp_path / "calm", calm)
    assert torch.equal(weights(again), weights(calm))


def test_a_model_that_samples_otherwise_than_it_learns_is_refused(tmp_path: Path) -> None:
    model = start()
    model.get_input_embeddings().register_forward_hook(
        lambda module, given, out: out + 0.3 if torch.is_grad_enabled() else out
    )
    said = refused(tmp_path, model=model)
    assert "Log-probs kept from sampling differ" in said
    assert torch.equal(weights(model), weights(start())), "nothing was learned from wrong ratios"


def test_a_policy_that_is_not_its_reference_at_the_start_is_refused(tmp_path: Path) -> None:
    """Something that changes with the copy, such as a hook, would pay a distance nobody went."""
    model = start()
    embeddings = model.get_input_embeddings()
    embeddings.register_forward_hook(lambda module, given, out: out + 0.3 if module is embeddings else out)
    assert "reference" in refused(tmp_path, "ppo", model=model)


def test_a_run_that_ran_out_of_memory_says_what_to_do(tmp_path: Path) -> None:
    def full(answered: Sequence[Answered]) -> Marks:
        raise torch.OutOfMemoryError("out of memory")

    said = refused(tmp_path, rewards=rewards(full), pace=ONCE)
    assert "Memory ran out in a step of policy gradient; set tokens to a number" in said


def test_held_out_prompts_that_no_reward_can_score_stop_nothing(tmp_path: Path) -> None:
    """An evaluation that fails at the end would cost the training before it."""

    def score(answered: Sequence[Answered]) -> Marks:
        return [[None] for _ in answered] if len(answered[0].texts) == 1 else share(answered)

    done = act("grpo", tmp_path, rewards=rewards(score), held_out=prompts(2), evaluate_every=2)
    assert done.steps == STEPS
    assert "eval/objective/scores" not in done.last


def test_the_model_is_left_as_it_came_but_for_its_weights(tmp_path: Path) -> None:
    model = start().eval()
    before = model.config._attn_implementation
    act("ppo", tmp_path, model)
    assert model.config._attn_implementation == before
    assert not model.training
    assert not any(module._forward_hooks for module in model.modules())
