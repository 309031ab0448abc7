"""Methods of policy gradient: expected gradients on a policy that can be enumerated, and rows that become one another.

All updates here are the first of their batch, so ratios are 1, unless a policy that drew is named.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.train.tabular import (
    ANSWERS,
    REWARDS,
    Double,
    Drawn,
    acted,
    answer_logps,
    expected,
    learn,
    rewarded,
    rewards_of,
    slope,
    table,
    token_logps,
    value_of,
)
from tiebreak.records import InputError
from tiebreak.train.policy_gradient.advantages import ADVANTAGES, Credit, Settings, optimal_value, whiten
from tiebreak.train.policy_gradient.presets import PACES, PLAIN, POLICY_GRADIENT
from tiebreak.train.policy_gradient.switches import (
    Bounds,
    Totals,
    check,
    policy_gradient,
)

THETA, START = table(0), table(1).detach()
LENGTHS = torch.tensor([len(answer) for answer in ANSWERS], dtype=Double)
SUM = {"ratio": "token", "clip": "none", "aggregation": "sequence_sum"}
"""The plain policy gradient: A log pi of whole answers."""


def close(found: Tensor, wanted: Tensor, atol: float = 1e-12) -> None:
    torch.testing.assert_close(found, wanted, atol=atol, rtol=0)


def objective(prompt: int = 0, rewards: Tensor | None = None) -> Tensor:
    """The gradient of E[r], which losses of policy gradient go down against."""
    return slope(value_of(THETA, REWARDS[prompt] if rewards is None else rewards, prompt), THETA)


def credited(name: str, drawn: Sequence[Drawn], *, lam: float = 1.0, **more: Any) -> Tensor:
    return ADVANTAGES[name](rewarded(drawn, **more), Settings(lam=lam)).advantages


def over_answers(advantages: Any, **switches: str) -> Tensor:
    """The expected gradient of a loss on single answers to the first prompt."""
    return expected(THETA, [0], lambda drawn: policy_gradient(acted(THETA, drawn, advantages(drawn)), **switches).loss)


def plain_reward(drawn: Sequence[Drawn]) -> Tensor:
    return rewards_of(drawn).repeat_interleave(torch.tensor([len(one.answer) for one in drawn]))


@pytest.mark.parametrize("clip", ["none", "clip", "dual", "two_sided"])
@pytest.mark.parametrize(
    ("ratio", "aggregation"),
    [("token", "sequence_sum"), ("sequence_mean", "sequence_sum"), ("sequence_sum", "sequence_mean")],
)
def test_the_first_update_follows_the_exact_gradient_of_the_expected_reward(
    ratio: str, aggregation: str, clip: str
) -> None:
    """One ratio of a whole answer is its log-probability already, so its mean over tokens is the sum of the others."""
    close(over_answers(plain_reward, ratio=ratio, clip=clip, aggregation=aggregation), -objective())


def test_cispo_follows_it_too() -> None:
    close(over_answers(plain_reward, ratio="token", clip="cispo", aggregation="sequence_sum"), -objective())


@pytest.mark.parametrize(
    ("ratio", "aggregation", "power"),
    [
        ("token", "sequence_mean", -1),
        ("sequence_mean", "sequence_mean", -1),
        ("token", "token_mean", -1),
        ("sequence_sum", "sequence_sum", 1),
    ],
)
def test_others_weigh_an_answer_by_a_power_of_its_length(ratio: str, aggregation: str, power: int) -> None:
    """The reason for Dr. GRPO's constant, and for one mean over tokens with one ratio of an answer."""
    chances = answer_logps(THETA).exp().detach()
    weighted = slope((chances * REWARDS[0] * LENGTHS**power * answer_logps(THETA)).sum(), THETA)
    close(over_answers(plain_reward, ratio=ratio, clip="none", aggregation=aggregation), -weighted)


def test_answers_of_another_policy_are_corrected_by_the_ratio_of_whole_answers() -> None:
    """Exact for the product of the tokens' ratios; single tokens' ratios leave the prefix as it was drawn."""

    def drawn_elsewhere(ratio: str, aggregation: str) -> Tensor:
        def loss(drawn: list[Drawn]) -> Tensor:
            seen = acted(THETA, drawn, plain_reward(drawn), old=token_logps(START, drawn))
            return policy_gradient(seen, ratio=ratio, clip="none", aggregation=aggregation).loss

        return expected(THETA, [0], loss, by=START)

    close(drawn_elsewhere("sequence_sum", "sequence_mean"), -objective())
    assert (drawn_elsewhere("token", "sequence_sum") + objective()).norm() > 0.05


@pytest.mark.parametrize("baseline", [0.0, 0.8, -5.0])
def test_what_is_known_of_a_prompt_beforehand_leaves_the_expected_gradient(baseline: float) -> None:
    """ReMax and A*-PO subtract a number that does not depend on the answer."""
    known = torch.tensor([baseline], dtype=Double)
    close(over_answers(lambda drawn: credited("greedy", drawn, baseline=known), **SUM), -objective())


def values_before(drawn: Sequence[Drawn]) -> Tensor:
    """The exact expected reward before each token."""
    chances, found = answer_logps(THETA).exp().detach(), []
    for one in drawn:
        for place in range(len(one.answer)):
            here = torch.tensor([answer[:place] == one.answer[:place] for answer in ANSWERS])
            found.append((chances * REWARDS[0])[here].sum() / chances[here].sum())
    return torch.stack(found)


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_generalised_advantages_follow_it_with_exact_values_and_with_lambda_one_with_any(lam: float) -> None:
    close(over_answers(lambda d: credited("gae", d, lam=lam, values=values_before(d)), **SUM), -objective())
    wrong = over_answers(lambda d: credited("gae", d, lam=lam, values=values_before(d).sin() + 2), **SUM)
    assert ((wrong + objective()).norm() < 1e-12) == (lam == 1.0)


@pytest.mark.parametrize("draws", [2, 3])
@pytest.mark.parametrize("advantage", ["rloo", "group_mean"])
def test_leaving_one_out_is_unbiased_and_the_group_mean_shrinks(advantage: str, draws: int) -> None:
    """Over all groups of draws: the mean of a group holds the answer's own reward, which costs (G - 1) / G."""

    def loss(drawn: list[Drawn]) -> Tensor:
        return policy_gradient(acted(THETA, drawn, credited(advantage, drawn)), **SUM).loss

    share = 1.0 if advantage == "rloo" else (draws - 1) / draws
    close(expected(THETA, [0] * draws, loss), -share * objective())


def test_prompts_share_a_batch_and_not_a_baseline() -> None:
    """Two draws for the first prompt beside two answers that are given for the second."""
    beside = [Drawn(1, (1, 0)), Drawn(1, (0,))]

    def loss(drawn: list[Drawn]) -> Tensor:
        return policy_gradient(acted(THETA, drawn, credited("rloo", drawn)), **SUM).loss

    mixed = expected(THETA, [0, 0], lambda drawn: loss([drawn[0], *beside, drawn[1]]))
    close(mixed, (slope(loss(beside), THETA) - objective()) / 2)


BATCH = [Drawn(0, (1, 0)), Drawn(1, (0,)), Drawn(0, (0,)), Drawn(1, (2, 2)), Drawn(0, (2, 1)), Drawn(1, (1, 1))]
"""Three answers to each of two prompts, mixed."""


def test_whitening_changes_a_baseline_and_a_scale_and_nothing_else() -> None:
    raw = credited("whitened", BATCH)
    kept = torch.ones(len(raw), dtype=torch.bool)
    found, plain, ones = (
        slope(policy_gradient(acted(THETA, BATCH, a), **SUM).loss, THETA)
        for a in (whiten(raw, kept), raw, torch.ones_like(raw))
    )
    close(found, (plain - raw.mean() * ones) / (raw.var() + 1e-8).sqrt())


def test_at_the_best_policy_the_square_loss_and_its_gradient_are_nothing() -> None:
    """Every single answer sits at pi = ref exp(r / beta) / Z, where beta log(pi / ref) = r - V*."""
    beta, row = 0.7, POLICY_GRADIENT["a_star_po"].knobs
    assert row is not None
    best = [(answer_logps(START, prompt) + REWARDS[prompt] / beta).softmax(0) for prompt in range(2)]
    theta = table_of(best).requires_grad_(True)
    exact = [
        beta * (answer_logps(START, prompt).exp() * (REWARDS[prompt] / beta).exp()).sum().log() for prompt in range(2)
    ]
    for shift in (0.0, 5.0):
        for prompt in range(2):
            for answer in ANSWERS:
                drawn = [Drawn(prompt, answer)]
                advantages = credited(
                    "optimal", drawn, rewards=rewards_of(drawn) + shift, baseline=torch.stack(exact) + shift
                )
                seen = acted(theta, drawn, advantages, reference=token_logps(START, drawn))
                loss = learn(seen, {**row, "scale": beta}).loss
                assert float(loss.detach()) == pytest.approx(0.0, abs=1e-24)
                close(slope(loss, theta), torch.zeros_like(theta))


def table_of(chances: Sequence[Tensor]) -> Tensor:
    """Logits whose answers have these chances, (7,) for each prompt."""
    rows = []
    for own in chances:
        firsts = torch.stack([own[[a[0] == token for a in ANSWERS]].sum() for token in range(3)])
        seconds = [own[[a[0] == token for a in ANSWERS]] / firsts[token] for token in (1, 2)]
        rows.append(torch.stack([firsts, torch.ones_like(firsts), *seconds]).log())
    return torch.stack(rows).detach()


def test_the_best_value_of_many_draws_of_the_start_is_the_exact_one() -> None:
    """Every answer as often as the start gives it: beta log mean exp(r / beta) is beta log Z."""
    beta, counts = 0.5, torch.tensor([1, 2, 3, 1, 1, 1, 1])
    chances = counts.to(Double) / counts.sum()
    exact = beta * (chances * (REWARDS[0] / beta).exp()).sum().log()
    close(optimal_value(REWARDS[0].repeat_interleave(counts), beta), exact)


def first_update(row: str, drawn: Sequence[Drawn] = BATCH, **changes: Any) -> Tensor:
    """The gradient of a row's loss in the first update of a batch."""
    knobs = {**(POLICY_GRADIENT[row].knobs or {}), "kl": "", "kl_in": "", "beta": 0.0, **changes}
    advantages = credit(knobs, drawn).advantages
    return slope(learn(acted(THETA, drawn, advantages), knobs, constant=5.0).loss, THETA)


def values_of(drawn: Sequence[Drawn]) -> Tensor:
    """What a value net might say before each token."""
    return 2 * token_logps(START, drawn).sin()


def credit(knobs: Any, drawn: Sequence[Drawn]) -> Credit:
    seen = rewarded(drawn, values=values_of(drawn), baseline=torch.tensor([0.4, 0.9], dtype=Double))
    found = ADVANTAGES[knobs["advantage"]](seen, Settings(knobs["gamma"], knobs["lam"], knobs["epsilon"]))
    if not knobs["whiten"]:
        return found
    return found._replace(advantages=whiten(found.advantages, torch.ones(len(seen.branch), dtype=torch.bool)))


def test_with_two_answers_grpo_goes_where_rloo_goes() -> None:
    """Standardised, only the sign of the difference is left; of equal lengths the mean over tokens is a factor."""
    two = [Drawn(0, (1, 0)), Drawn(0, (2, 1))]
    near = float((rewards_of(two)[0] - rewards_of(two)[1]).abs())
    scale = 1 / 2 / (near * math.sqrt(0.5) + 1e-4)  # per token, by the spread
    close(first_update("grpo", two), first_update("rloo", two) * scale / 2)


def test_dr_grpo_is_rloo_but_for_its_constant() -> None:
    """(G - 1) / G by the constant length, of any lengths."""
    close(first_update("dr_grpo"), first_update("rloo") * (2 / 3) / 5.0)


def test_of_one_token_answers_gspo_is_grpo() -> None:
    short = [Drawn(0, (0,)), Drawn(1, (0,)), Drawn(0, (0,)), Drawn(1, (0,))]
    rewards = torch.tensor([1.0, -1.0, 0.5, 2.0], dtype=Double)
    advantages = credited("group", short, rewards=rewards)
    moved = token_logps(THETA, short).detach() - torch.tensor([0.5, -0.5, 0.1, 0.2], dtype=Double)
    grpo, gspo = (POLICY_GRADIENT[name].knobs or {} for name in ("grpo", "gspo"))
    one, other = (
        learn(acted(THETA, short, advantages, old=moved), {**grpo, "beta": 0.0, "ratio": row["ratio"]}).loss
        for row in (grpo, gspo)
    )
    close(one, other)
    close(slope(one, THETA), slope(other, THETA))


def test_in_one_minibatch_bnpo_is_dapos_mean_over_tokens() -> None:
    close(first_update("bnpo"), first_update("dapo"))
    close(first_update("bnpo", clip="cispo"), first_update("cispo"))


def test_two_minibatches_of_dapo_add_up_to_the_batch_where_bnpos_do_not() -> None:
    """A token counts the same in each, whatever its minibatch holds; each minibatch is a step, so two halves."""
    advantages = credited("group", BATCH)
    lengths = torch.tensor([len(one.answer) for one in BATCH]).tolist()
    parts = [BATCH[:2], BATCH[2:]]
    for aggregation, equal in (("batch_token_mean", True), ("token_mean", False)):
        knobs = {**SUM, "aggregation": aggregation}
        whole = slope(policy_gradient(acted(THETA, BATCH, advantages), **knobs).loss, THETA)
        total = torch.zeros_like(whole)
        for part, own in zip(parts, advantages.split([sum(lengths[:2]), sum(lengths[2:])]), strict=True):
            seen = acted(THETA, part, own, whole=Totals(len(part), len(own), len(advantages) / 2))
            total += slope(policy_gradient(seen, **knobs).loss, THETA) / 2
        assert bool((total - whole).norm() < 1e-12) == equal


def test_the_first_update_of_ppo_is_the_policy_gradient_with_its_advantages() -> None:
    advantages = credit(POLICY_GRADIENT["ppo"].knobs, BATCH).advantages
    mean = -(token_logps(THETA, BATCH) * advantages).mean()
    close(first_update("ppo"), slope(mean, THETA))


def test_without_whitening_reinforce_plus_plus_is_reinforce_without_values() -> None:
    seen = rewarded(BATCH, penalties=torch.linspace(-1, 0, 10, dtype=Double), values=torch.zeros(10, dtype=Double))
    for gamma in (1.0, 0.9):
        one, other = (ADVANTAGES[name](seen, Settings(gamma=gamma)) for name in ("whitened", "reinforce"))
        close(one.advantages, other.advantages)
    changes = {"whiten": False, "aggregation": "sequence_sum", "clip": "none"}
    zeros = credited("reinforce", BATCH, values=torch.zeros(10, dtype=Double))
    close(first_update("reinforce++", **changes), slope(policy_gradient(acted(THETA, BATCH, zeros), **SUM).loss, THETA))


def test_reinforce_plus_plus_with_a_baseline_is_the_group_mean_whitened() -> None:
    centred = credited("group_mean", BATCH)
    standard = whiten(centred, torch.ones(10, dtype=torch.bool))
    close(credit(POLICY_GRADIENT["reinforce++_baseline"].knobs, BATCH).advantages, standard)


def beside(found: Credit, drawn: Sequence[Drawn]) -> dict[str, Tensor]:
    """What a loss sees of a value net, where the method has one."""
    if found.returns is None:
        return {}
    values = values_of(drawn)
    return {"values": values + 0.3, "old_values": values, "returns": found.returns}


@pytest.mark.parametrize("row", POLICY_GRADIENT, ids=lambda row: row.name)
def test_a_row_makes_better_answers_likelier(row: Any) -> None:
    """At the start, where no reference pulls, each token goes up where its advantage is above 0, down where below."""
    knobs = row.settle({}, where="test")
    found = credit(knobs, BATCH)
    logps = token_logps(THETA, BATCH).detach().requires_grad_(True)
    seen = acted(THETA, BATCH, found.advantages, logps=logps, reference=logps.detach(), **beside(found, BATCH))
    outcome = learn(seen, knobs, constant=5.0)
    assert math.isfinite(float(outcome.loss.detach()))
    assert all(math.isfinite(float(value)) for value in outcome.metrics.values())
    assert found.advantages.abs().min() > 1e-3
    assert slope(-outcome.loss, logps).sign().tolist() == found.advantages.sign().tolist()


@pytest.mark.parametrize("row", POLICY_GRADIENT, ids=lambda row: row.name)
def test_a_row_does_not_see_the_order_of_completions(row: Any) -> None:
    """Advantages, loss and gradient, away from the start and with an entropy bonus."""
    found = []
    for places in (range(6), [3, 5, 0, 1, 4, 2]):
        drawn = [BATCH[place] for place in places]
        credits, far = credit(row.knobs, drawn), token_logps(START, drawn)
        seen = acted(THETA, drawn, credits.advantages, old=far, reference=far.cos() - 2, **beside(credits, drawn))
        seen = replace(seen, entropy=seen.logps.square())
        loss = learn(seen, {**row.knobs, "entropy": 0.1}, constant=5.0).loss
        found.append((loss, slope(loss, THETA)))
    for one, other in zip(*found, strict=True):
        close(one, other)


@pytest.mark.parametrize("row", POLICY_GRADIENT, ids=lambda row: row.name)
def test_a_row_passes_its_own_check_and_names_what_its_function_takes(row: Any) -> None:
    assert set(row.knobs) == set(PLAIN)
    check(**row.knobs, draws=PACES[row.name]["n"])
    assert row.paper
    taken = {name for name, p in inspect.signature(row.load()).parameters.items() if p.kind is p.KEYWORD_ONLY}
    assert taken - {"bounds", "constant"} < set(row.knobs)
    assert set(Bounds._fields) < set(row.knobs)
    assert set(PACES) == {one.name for one in POLICY_GRADIENT}


@pytest.mark.parametrize(
    ("wrong", "draws", "said"),
    [
        ({"advantage": "grup"}, 8, "There is no advantage 'grup'.*'group'"),
        ({"ratio": "tokn"}, 8, "There is no ratio 'tokn'.*'token'"),
        ({"clip": "cipso"}, 8, "There is no clip 'cipso'.*'cispo'"),
        ({"aggregation": "token_men"}, 8, "There is no aggregation 'token_men'.*'token_mean'"),
        ({}, 1, "compares the completions of one prompt, and rollout.n is 1"),
        ({"clip": "square"}, 8, "go together, as in A.-PO"),
        ({"ratio": "reference_sum"}, 8, "go together, as in A.-PO"),
        ({"ratio": "reference_sum", "clip": "square", "kl": "", "beta": 0.0}, 8, "name an estimator"),
        ({"kl": "k1"}, 8, "expected gradient of log pi"),
        ({"ratio": "sequence_sum", "aggregation": "token_mean"}, 8, "sequence_sum .* aggregation: sequence_mean"),
        ({"advantage": "gae"}, 8, "advantage: gae learns a value net, and value is 0.0"),
        ({"value": 0.1}, 8, "value is 0.1, and advantage: group learns no value net"),
        ({"dynamic": 4, "advantage": "greedy"}, 1, "dynamic .* rollout.n is 1"),
        ({"kl_target": 6.0, "beta": 0.0}, 8, "kl_target .* beta is 0.0"),
        ({"low": 1.5}, 8, "low is 1.5; expected 0 to 1"),
        ({"high": -0.2}, 8, "high is -0.2; expected 0 or more"),
        ({"most": math.nan}, 8, "most is nan; expected 1 or more"),
        ({"gamma": 1.1}, 8, "gamma is 1.1; expected 0 to 1"),
        ({"lam": -0.1}, 8, "lam is -0.1; expected 0 to 1"),
        ({"epsilon": 0.0}, 8, "epsilon is 0.0; expected more than 0"),
        ({"value_clip": -1.0}, 8, "value_clip is -1.0; expected 0 or more"),
        ({"kl_horizon": 0.0}, 8, "kl_horizon is 0.0; expected more than 0"),
        ({"optimal_beta": 0.0}, 8, "optimal_beta is 0.0; expected more than 0"),
        ({"optimal_draws": 0}, 8, "optimal_draws is 0; expected 1 or more"),
        ({"scale": 0.0}, 8, "scale is 0.0; expected more than 0"),
        ({"trust": 0.0}, 8, "trust is 0.0; expected more than 0"),
    ],
)
def test_switches_that_do_not_exist_or_do_not_go_together_are_refused(
    wrong: dict[str, Any], draws: int, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        check(**{**(POLICY_GRADIENT["grpo"].knobs or {}), **wrong}, draws=draws)
