"""The online loop: every method runs and learns, settings are those used, and the first update begins at the start."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.acting import (
    PACE,
    ROLLOUT,
    STEPS,
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
)
from tests.train.made import weights
from tiebreak.models.adapters import Adapter
from tiebreak.recipe.sections import Rollout as RolloutKeys
from tiebreak.rewards.table import Answered, Marks
from tiebreak.train.offline import Compute, Pace, Reference
from tiebreak.train.policy_gradient.advantages import LEARNS_VALUES
from tiebreak.train.policy_gradient.presets import PLAIN, POLICY_GRADIENT
from tiebreak.train.rollouts import Local, Rollout, roll

LORA = Adapter(rank=4, alpha=8.0)
PAGE = Path(__file__).resolve().parents[2] / "docs" / "online.md"
METRICS = {
    *("step", "epoch", "episodes", "loss", "loss/policy", "grad_norm", "learning_rate"),
    *("objective/scores", "objective/scores_std", "objective/rlhf_reward", "objective/kl_coef", "objective/entropy"),
    *("policy/ratio", "policy/approx_kl", "policy/clip_fraction", "sampling/gap", "groups/mixed"),
    *("completions/mean_length", "completions/eos_share", "completions/unscored", "rewards/planted"),
}
FAST = Pace(epochs=10.0, batch=6, learning_rate=1e-2, warmup=0.0, decay="constant")


def knobs(method: str) -> dict[str, Any]:
    return dict(POLICY_GRADIENT[method].knobs or {})


@pytest.mark.parametrize("method", [row.name for row in POLICY_GRADIENT])
def test_every_method_runs_with_finite_numbers_under_their_names(method: str, tmp_path: Path) -> None:
    model = ending()
    before = weights(model).clone()
    done = act(method, tmp_path, model, rollout=Rollout(n=3, max_new_tokens=5))
    names = set(METRICS)
    if knobs(method)["kl"]:
        names.add("objective/kl")
    if knobs(method)["advantage"] in LEARNS_VALUES:
        names |= {"loss/value", "value/explained_variance"}
    rows = lines(tmp_path)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert all(set(row) == names for row in rows)
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert max(column(tmp_path, "sampling/gap")) < 1e-4
    assert done.steps == STEPS
    assert done.tokens > 0
    assert not torch.equal(weights(model), before)


@pytest.mark.parametrize("method", ["grpo", "rloo", "ppo", "cispo", "reinforce++", "a_star_po"])
def test_what_is_rewarded_is_written_more_often(method: str, tmp_path: Path) -> None:
    act(method, tmp_path, pace=FAST, rollout=Rollout(n=8, max_new_tokens=5))
    scores = column(tmp_path, "objective/scores")
    assert scores[0] < 0.3
    assert sum(scores[-3:]) / 3 > sum(scores[:3]) / 3 + 0.2, scores


@pytest.mark.parametrize(
    "asked",
    [{"value": "separate"}, {"value": "shared"}, {"adapter": LORA}, {"adapter": LORA, "value": "shared"}],
    ids=["separate value net", "shared", "adapter", "adapter with a shared head"],
)
def test_the_first_update_of_ppo_starts_from_its_reference_at_ratio_1(asked: dict[str, Any], tmp_path: Path) -> None:
    act("ppo", tmp_path, rollout=Rollout(n=2, max_new_tokens=5, temperature=0.7), **asked)
    first = lines(tmp_path)[0]
    assert first["policy/ratio"] == pytest.approx(1.0, abs=1e-5)
    assert first["policy/approx_kl"] == pytest.approx(0.0, abs=1e-9)
    assert first["policy/clip_fraction"] == 0.0
    assert first["objective/kl"] == pytest.approx(0.0, abs=1e-5)
    assert first["objective/kl_coef"] == 0.05
    assert first["objective/rlhf_reward"] == pytest.approx(first["objective/scores"], abs=1e-5)
    assert abs(lines(tmp_path)[-1]["objective/kl"]) > 1e-3


@pytest.mark.parametrize("kl", ["k1", "k2", "k3"])
def test_the_reference_stays_the_start_whatever_pays_for_it(kl: str, tmp_path: Path) -> None:
    """With no learning rate to speak of the policy stays too, and so the distance stays 0."""
    place = "reward" if kl == "k1" else "loss"
    still = Pace(epochs=2.0, batch=3, learning_rate=1e-12)
    act("grpo", tmp_path, pace=still, knobs={"kl": kl, "kl_in": place, "beta": 0.5})
    assert column(tmp_path, "objective/kl") == pytest.approx([0.0] * STEPS, abs=1e-5)


class Heard:
    """A reward that remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Answered] = []

    def __call__(self, answered: Sequence[Answered]) -> Marks:
        self.asked += answered
        return share(answered)


def test_settings_named_are_settings_used(tmp_path: Path) -> None:
    """Seed defect A11: a sampling configuration that nobody read."""
    heard = Heard()
    how = Rollout(n=3, max_new_tokens=4, temperature=0.7)
    act("ppo", tmp_path, ending(0.02), rollout=how, rewards=rewards(heard), pace=PACE)
    assert all(len(one.texts) == 3 and max(one.lengths) <= 4 for one in heard.asked)
    ends = [end for one in heard.asked for end in zip(one.finishes, one.lengths, strict=True)]
    assert {length for finish, length in ends if finish == "length"} == {4}
    assert "stop" in dict(ends)
    assert {one.trees.trunk for one in heard.asked if one.trees} == {one.ids for one in prompts()}
    assert max(column(tmp_path, "sampling/gap")) < 1e-4, "sampling, old, reference and update at one temperature"
    assert column(tmp_path, "objective/kl")[0] == pytest.approx(0.0, abs=1e-5)


def test_the_temperature_is_that_of_draws_and_of_their_log_probs() -> None:
    model = start()
    entropies = []
    for temperature in (0.2, 0.7, 1.5):
        how = Rollout(n=16, max_new_tokens=4, temperature=temperature)
        source = Local(model, TOKENS, how, seed=0, precision="float32")
        drawn = roll(source, TOKENS, prompts(4), n=16, temperature=temperature, turn="0")
        entropies.append(-float(torch.cat([one.sampled for one in drawn]).mean()))
    assert entropies == sorted(entropies)
    assert entropies[0] < 0.6 * entropies[2]


def test_an_empty_completion_is_one_end_of_sequence(tmp_path: Path) -> None:
    heard = Heard()
    act("rloo", tmp_path, ending(0.9), rewards=rewards(heard), rollout=Rollout(n=4, max_new_tokens=3))
    empty = [one for one in heard.asked if one.trees and (TOKENS.eos_token_id,) in one.trees.branches]
    assert empty
    assert all("" in one.texts and 1 in one.lengths for one in empty)
    assert min(column(tmp_path, "completions/eos_share")) > 0.5


def test_least_new_tokens_hold_the_end_back(tmp_path: Path) -> None:
    heard = Heard()
    how = Rollout(n=4, max_new_tokens=4, min_new_tokens=3)
    act("rloo", tmp_path, ending(0.9), rewards=rewards(heard), rollout=how)
    assert {length for one in heard.asked for length in one.lengths} == {4}, "three tokens and the end"


def test_prompts_differ_from_step_to_step_and_all_come_once_an_epoch(tmp_path: Path) -> None:
    """Seed defect B4: the same first prompts at every step."""
    heard = Heard()
    act("rloo", tmp_path, rewards=rewards(heard))
    steps = [[one.prompt.id for one in heard.asked[i : i + 3]] for i in range(0, 12, 3)]
    everyone = sorted(one.prompt.id for one in prompts())
    assert sorted(steps[0] + steps[1]) == sorted(steps[2] + steps[3]) == everyone
    assert steps[0] != steps[2]


def test_a_prompt_that_comes_again_is_answered_anew(tmp_path: Path) -> None:
    heard = Heard()
    act("rloo", tmp_path, rewards=rewards(heard), pace=Pace(epochs=2.0, batch=6, learning_rate=1e-12))
    texts = {one.prompt.id: one.texts for one in heard.asked[:6]}
    assert all(texts[one.prompt.id] != one.texts for one in heard.asked[6:])


def test_repeats_and_minibatches_are_the_updates_of_a_batch(tmp_path: Path) -> None:
    how = Rollout(n=2, max_new_tokens=5, repeats=3, minibatches=2)
    act("ppo", tmp_path / "many", rollout=how)
    act("ppo", tmp_path / "one", rollout=Rollout(n=2, max_new_tokens=5))
    many, one = lines(tmp_path / "many"), lines(tmp_path / "one")
    assert many[0]["objective/scores"] == one[0]["objective/scores"]
    assert one[0]["policy/approx_kl"] < 1e-9 < many[0]["policy/approx_kl"]
    assert len(many) == len(one) == STEPS


@pytest.mark.parametrize("method", ["cispo", "dapo", "grpo", "ppo"])
def test_more_minibatches_than_prompts_are_as_many_as_prompts(method: str, tmp_path: Path) -> None:
    """A last batch may be short, and one by dynamic sampling too; its loss is not multiplied by what is missing."""
    ends, single = [], Pace(epochs=1.0, batch=1, learning_rate=1e-3, warmup=0.0, decay="constant")
    for parts in (1, 4):
        model, how = ending(), Rollout(n=3, max_new_tokens=5, minibatches=parts)
        act(method, tmp_path / str(parts), model, pace=single, rollout=how)
        ends.append(column(tmp_path / str(parts), "loss/policy"))
    assert ends[1] == pytest.approx(ends[0], abs=1e-6)


@pytest.mark.parametrize("method", ["ppo", "grpo"])
def test_the_token_budget_and_how_many_are_decoded_together_change_no_result(method: str, tmp_path: Path) -> None:
    ends = []
    for name, compute, batch in (("a", Compute(), 256), ("b", Compute(tokens=1), 2)):
        model = start()
        how = Rollout(n=2, max_new_tokens=5, batch=batch)
        act(method, tmp_path / name, model, compute=compute, rollout=how, optimizer="sgd")
        ends.append(weights(model))
    moved = float((ends[0] - weights(start())).norm())
    assert moved > 0
    assert float((ends[0] - ends[1]).norm()) < 2e-3 * moved


def mixed_for_some(answered: Sequence[Answered]) -> Marks:
    """Return scores that differ within the group of every other prompt alone."""
    kind = {one.prompt.id: n % 2 for n, one in enumerate(prompts())}
    return [[float(kind[one.prompt.id] and j) for j, _ in enumerate(one.texts)] for one in answered]


def test_dynamic_sampling_takes_further_prompts_and_keeps_mixed_groups_alone(tmp_path: Path) -> None:
    once = Pace(epochs=1.0, batch=3, learning_rate=1e-4)
    act("grpo", tmp_path / "plain", rewards=rewards(mixed_for_some), pace=once)
    assert min(column(tmp_path / "plain", "groups/mixed")) < 1.0
    act("grpo", tmp_path, rewards=rewards(mixed_for_some), pace=once, knobs={"dynamic": 6})
    assert column(tmp_path, "groups/mixed") == [1.0, 1.0]
    assert [row["episodes"] for row in lines(tmp_path)] == [6, 12]
    good = {one.prompt.id for n, one in enumerate(prompts()) if n % 2}
    assert {row["prompt_id"] for row in lines(tmp_path, "samples.jsonl")} <= good


def test_without_any_mixed_group_the_last_prompts_stand_in(tmp_path: Path) -> None:
    act("grpo", tmp_path, rewards=rewards(lambda a: [[1.0] * len(one.texts) for one in a]), knobs={"dynamic": 2})
    assert column(tmp_path, "groups/mixed") == [0.0] * STEPS
    assert column(tmp_path, "loss/policy") == [0.0] * STEPS


def test_the_baseline_of_remax_is_the_greedy_answers_reward(tmp_path: Path) -> None:
    """A policy that only has its greedy answer to give has the advantage 0, whatever that is worth."""
    model = start()
    heard = Heard()
    cold = Rollout(n=2, max_new_tokens=5, temperature=1e-4)
    act("remax", tmp_path, model, rewards=rewards(heard), rollout=cold, knobs={"beta": 0.0})
    assert [len(one.texts) for one in heard.asked] == [2, 2, 2, 1, 1, 1] * STEPS
    for step in range(STEPS):
        drawn, greedy = heard.asked[6 * step : 6 * step + 3], heard.asked[6 * step + 3 : 6 * step + 6]
        assert [one.texts for one in drawn] == [one.texts * 2 for one in greedy]
    assert column(tmp_path, "loss/policy") == pytest.approx([0.0] * STEPS, abs=1e-7)
    assert torch.equal(weights(model), weights(start()))


@pytest.mark.parametrize("form", [{"missing_eos": "replace"}, {"missing_eos": "subtract"}, {"overlong": 0.8}], ids=str)
def test_the_greedy_answer_pays_what_others_pay(form: dict[str, Any], tmp_path: Path) -> None:
    """Or an answer would be better than itself."""
    cold = Rollout(n=2, max_new_tokens=5, temperature=1e-4)
    act("remax", tmp_path, rollout=cold, knobs={"beta": 0.0, **form})
    assert column(tmp_path, "loss/policy") == pytest.approx([0.0] * STEPS, abs=1e-7)


def test_the_best_values_are_estimated_once_of_what_is_learned_from(tmp_path: Path) -> None:
    heard = Heard()
    settings = {"rewards": rewards(heard), "knobs": {"optimal_draws": 4, "optimal_beta": 0.5}}
    with pytest.raises(KeyboardInterrupt):
        act("a_star_po", tmp_path, progress=stop_at(3), **settings)  # after the first three prompts
    assert len(heard.asked) == 3
    act("a_star_po", tmp_path, **settings)
    asked = Counter(len(one.texts) for one in heard.asked)
    assert asked == {4: 6, 2: 3 * STEPS}, "four draws of each prompt, once"
    known = [value for row in map(json.loads, (tmp_path / "optimal.jsonl").open()) for value in row["values"]]
    scores = [share([one])[0] for one in heard.asked[:6]]
    expected = [0.5 * math.log(math.fsum(math.exp(float(s) / 0.5) for s in row) / 4) for row in scores]  # type: ignore[arg-type]
    assert known == pytest.approx(expected, abs=1e-6)


def test_the_adaptive_weight_moves_by_the_published_formula(tmp_path: Path) -> None:
    """Seed defect B14: a controller that moved by a fifth of a ten-thousandth. Ziegler et al. 2019, section 2.2."""
    act("ppo", tmp_path, pace=FAST, knobs={"kl_target": 0.05, "kl_horizon": 100.0, "beta": 0.2})
    rows, beta = lines(tmp_path), 0.2
    for before, row in zip([0, *(row["episodes"] for row in rows)], rows, strict=False):
        assert row["objective/kl_coef"] == pytest.approx(beta, rel=1e-9)
        error = min(0.2, max(-0.2, row["objective/kl"] / 0.05 - 1))
        beta *= 1 + error * (row["episodes"] - before) / 100.0
    assert len({row["objective/kl_coef"] for row in rows}) > 5


def test_a_reference_that_follows_at_once_is_never_far(tmp_path: Path) -> None:
    follow = Reference(compute="step", sync_every=1)
    act("grpo", tmp_path, reference=follow)
    assert column(tmp_path, "objective/kl") == pytest.approx([0.0] * STEPS, abs=1e-5)


def test_ended_early_with_the_best_weights_by_held_out_score(tmp_path: Path) -> None:
    """The held-out score falls from the second evaluation on, whatever is learned."""
    falling = iter([0.5, 0.9, 0.4, 0.3, 0.2, 0.1, 0.0])

    def score(answered: Sequence[Answered]) -> Marks:
        if len(answered[0].texts) == 1:  # greedy answers are the held-out ones here
            worth = next(falling)
            return [[worth] for _ in answered]
        return share(answered)

    path: list[torch.Tensor] = []
    model = start()
    done = act(
        "grpo",
        tmp_path,
        model,
        rewards=rewards(score),
        held_out=prompts(2),
        evaluate_every=1,
        keep="best",
        patience=2,
        pace=FAST,
        progress=lambda *_: path.append(weights(model).clone()),
    )
    assert (done.stopped, done.steps, done.best) == (True, 4, 2)
    assert done.last["eval/objective/scores"] == 0.9
    assert torch.equal(weights(model), path[1])


def test_held_out_answers_are_greedy_and_leave_running_rewards_alone(tmp_path: Path) -> None:
    ends = []
    for name, more in (("calm", {}), ("watched", {"held_out": prompts(2), "evaluate_every": 1})):
        model = start()
        act("grpo", tmp_path / name, model, rewards=rewards(normalise="running"), **more)
        ends.append(weights(model))
    assert torch.equal(ends[0], ends[1])
    assert len(column(tmp_path / "watched", "eval/objective/scores")) == STEPS


def test_the_average_is_the_result(tmp_path: Path) -> None:
    path, model = [], start()
    act("rloo", tmp_path, model, ema=0.5, progress=lambda *_: path.append(weights(model).clone()))
    expected = weights(start()).clone()
    for one in path:
        expected.lerp_(one, 0.5)
    torch.testing.assert_close(weights(model), expected, atol=1e-6, rtol=1e-5)


def test_the_page_names_every_method_knob_and_key() -> None:
    text = PAGE.read_text(encoding="utf-8")
    names = [*(row.name for row in POLICY_GRADIENT), *PLAIN, *RolloutKeys.model_fields, *METRICS - {"rewards/planted"}]
    assert [name for name in names if f"`{name}`" not in text] == []
    for row in POLICY_GRADIENT:
        for number in (word for word in row.paper.replace(";", " ").split() if word[:4].isdigit() and "." in word):
            assert number in text, row.name
    assert ROLLOUT.n == 2
