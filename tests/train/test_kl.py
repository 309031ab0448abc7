"""The distance to a reference: values and gradients on a policy that can be enumerated, and on tiny models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.tiny import causal, trees
from tests.train.tabular import (
    ANSWERS,
    ONE_STEP,
    Double,
    Drawn,
    acted,
    answer_logps,
    divergence,
    expected,
    prefixes,
    rewarded,
    slope,
    table,
    token_distance,
    token_logps,
)
from tiebreak.models import logprobs
from tiebreak.models.attention import forest_mode
from tiebreak.models.forest import Tree, plant
from tiebreak.models.logprobs import distributions, entropies, words
from tiebreak.records import InputError
from tiebreak.train.policy_gradient.advantages import ADVANTAGES, Settings
from tiebreak.train.policy_gradient.kl import ESTIMATORS, Leash, check_kl
from tiebreak.train.policy_gradient.switches import policy_gradient

THETA, OTHER = table(0, prompts=1), table(1, prompts=1).detach()
SHAPES = {"one token": ONE_STEP, "one or two tokens": ANSWERS}


def close(found: Tensor, wanted: Tensor, atol: float = 1e-12) -> None:
    torch.testing.assert_close(found, wanted, atol=atol, rtol=0)


def pull(kl: str, answers: Sequence[tuple[int, ...]]) -> Tensor:
    """The expected gradient of a loss that is the distance alone, summed over the tokens of each answer."""

    def loss(drawn: list[Drawn]) -> Tensor:
        nothing = torch.zeros(sum(len(one.answer) for one in drawn), dtype=Double)
        seen = acted(
            THETA,
            drawn,
            nothing,
            reference=token_logps(OTHER, drawn),
            distance=token_distance(THETA, OTHER, drawn),
        )
        switches = {"ratio": "token", "clip": "clip", "aggregation": "sequence_sum"}
        return policy_gradient(seen, **switches, kl=kl, kl_in="loss", beta=1.0).loss

    return expected(THETA, [0], loss, answers=answers)


def by_prefix(forward: bool) -> Tensor:
    """The gradient of each step's own divergence, prefixes being as likely as the policy makes them now."""
    drawn = [Drawn(0, answer) for answer in ANSWERS]
    prompt, row, _ = prefixes(drawn)
    own, other = THETA.log_softmax(-1)[prompt, row], OTHER.log_softmax(-1)[prompt, row]
    steps = (other.exp() * (other - own) if forward else own.exp() * (own - other)).sum(-1)
    lengths = torch.tensor([len(answer) for answer in ANSWERS])
    chances = answer_logps(THETA).exp().detach().repeat_interleave(lengths)
    return slope((chances * steps).sum(), THETA)


@pytest.mark.parametrize("answers", SHAPES.values(), ids=SHAPES)
def test_k1_and_k3_are_unbiased_and_k2_is_not(answers: Sequence[tuple[int, ...]]) -> None:
    own, other = answer_logps(THETA, answers=answers), answer_logps(OTHER, answers=answers)
    exact = divergence(THETA, OTHER, answers=answers)
    mean = {name: (own.exp() * estimate(own - other)).sum() for name, estimate in ESTIMATORS.items()}
    close(mean["k1"], exact)
    close(mean["k3"], exact)
    assert abs(float((mean["k2"] - exact).detach())) > 1e-2
    assert bool((ESTIMATORS["k3"](own - other) >= 0).all())
    assert {name: float(estimate(torch.tensor(0.5))) for name, estimate in ESTIMATORS.items()} == pytest.approx(
        {"k1": 0.5, "k2": 0.125, "k3": math.exp(-0.5) - 0.5}
    )


@pytest.mark.parametrize("answers", SHAPES.values(), ids=SHAPES)
def test_of_whole_answers_k1_teaches_nothing_k2_the_distance_and_k3_its_reverse(
    answers: Sequence[tuple[int, ...]],
) -> None:
    """Estimates of the sum of an answer's log-ratios: exact for sequences too."""
    wanted = {
        "k1": torch.zeros_like(THETA),
        "k2": slope(divergence(THETA, OTHER, answers=answers), THETA),
        "k3": slope(divergence(OTHER, THETA, answers=answers), THETA),
    }
    for name, estimate in ESTIMATORS.items():

        def loss(drawn: list[Drawn], estimate: Any = estimate) -> Tensor:
            far: Tensor = (token_logps(THETA, drawn) - token_logps(OTHER, drawn)).sum()
            return estimate(far)

        close(expected(THETA, [0], loss, answers=answers), wanted[name])


def test_in_the_loss_of_one_token_answers_k2_and_full_are_the_distance_and_k3_its_reverse() -> None:
    backward = slope(divergence(THETA, OTHER, answers=ONE_STEP), THETA)
    close(pull("k1", ONE_STEP), torch.zeros_like(THETA))
    close(pull("k2", ONE_STEP), backward)
    close(pull("full", ONE_STEP), backward)
    close(pull("k3", ONE_STEP), slope(divergence(OTHER, THETA, answers=ONE_STEP), THETA))


def test_in_the_loss_of_longer_answers_each_token_sees_its_own_step_alone() -> None:
    """Token by token, what a token does to the distance of later ones is left out, so only the reward has it all."""
    close(pull("k1", ANSWERS), torch.zeros_like(THETA))
    close(pull("k2", ANSWERS), by_prefix(forward=False))
    close(pull("full", ANSWERS), by_prefix(forward=False))
    close(pull("k3", ANSWERS), by_prefix(forward=True))
    whole = slope(divergence(THETA, OTHER), THETA)
    assert (by_prefix(forward=False) - whole).norm() > 0.1 * whole.norm()


def test_the_whole_vocabulary_needs_no_estimate() -> None:
    """The chain rule: the expected sum of each step's distance is that of whole answers, in value."""
    mean = sum(
        logp.exp() * token_distance(THETA, OTHER, [Drawn(0, answer)]).sum()
        for logp, answer in zip(answer_logps(THETA), ANSWERS, strict=True)
    )
    assert isinstance(mean, Tensor)
    close(mean, divergence(THETA, OTHER))


def paid(kl: str, advantage: str, draws: int = 1, gamma: float = 1.0) -> Tensor:
    """The expected gradient where the distance is paid in a reward that is otherwise nothing."""

    def loss(drawn: list[Drawn]) -> Tensor:
        far = (token_logps(THETA, drawn) - token_logps(OTHER, drawn)).detach()
        seen = rewarded(
            drawn,
            torch.zeros(len(drawn), dtype=Double),
            penalties=-ESTIMATORS[kl](far),
            values=0.3 + torch.zeros_like(far),
            baseline=torch.ones(1, dtype=Double),
        )
        found = ADVANTAGES[advantage](seen, Settings(gamma=gamma, lam=1.0)).advantages
        switches = {"ratio": "token", "clip": "clip", "aggregation": "sequence_sum"}
        return policy_gradient(acted(THETA, drawn, found), **switches, kl=kl, kl_in="reward", beta=1.0).loss

    return expected(THETA, [0] * draws, loss)


@pytest.mark.parametrize(
    ("advantage", "draws"), [("greedy", 1), ("whitened", 1), ("reinforce", 1), ("gae", 1), ("rloo", 2)]
)
def test_k1_in_the_reward_is_the_gradient_of_the_distance(advantage: str, draws: int) -> None:
    """Of whole answers, whether a token is credited with all of it or with what comes from it on."""
    close(paid("k1", advantage, draws), slope(divergence(THETA, OTHER), THETA))


def test_a_token_that_pays_for_itself_alone_leaves_out_what_it_leads_to() -> None:
    close(paid("k1", "whitened", gamma=0.0), by_prefix(forward=False))


def test_k3_in_the_reward_pulls_only_where_the_two_directions_differ() -> None:
    """KL(pi || ref) - KL(ref || pi), which near the reference has no gradient: nothing holds the policy there."""

    def loss(drawn: list[Drawn]) -> Tensor:
        far = token_logps(THETA, drawn).sum() - token_logps(OTHER, drawn).sum()
        return ESTIMATORS["k3"](far).detach() * token_logps(THETA, drawn).sum()

    difference = divergence(THETA, OTHER) - divergence(OTHER, THETA)
    close(expected(THETA, [0], loss), slope(difference, THETA))


@pytest.mark.parametrize(
    ("kl", "kl_in", "beta", "said"),
    [
        ("k1", "loss", 0.1, "expected gradient of log pi.* is zero.*k2 or full"),
        ("k1", "loss", 0.0, "expected gradient"),
        ("full", "reward", 0.1, "full is a term of the loss"),
        ("k2", "reward", 0.1, "kl: k2 in the reward.*use k1"),
        ("k3", "reward", 0.1, "kl: k3 in the reward.*use k1"),
        ("k4", "loss", 0.1, "There is no kl 'k4'; there are k1, k2, k3, full"),
        ("ful", "loss", 0.1, "Did you mean 'full'"),
        ("k2", "los", 0.1, "kl_in is 'los'; expected reward or loss. Did you mean 'loss'"),
        ("k2", "", 0.1, "kl_in is ''; expected reward or loss"),
        ("k2", "loss", -0.1, "beta is -0.1.*0 or more"),
        ("k2", "loss", math.nan, "beta is nan"),
        ("", "loss", 0.1, "kl is empty, so no distance would be paid"),
        ("", "", 0.1, "kl is empty, so no distance would be paid"),
    ],
)
def test_a_distance_that_makes_no_sense_is_refused_with_the_reason(kl: str, kl_in: str, beta: float, said: str) -> None:
    with pytest.raises(InputError, match=said):
        check_kl(kl, kl_in, beta)


@pytest.mark.parametrize(("kl", "kl_in"), [("k1", "reward"), ("k2", "loss"), ("k3", "loss"), ("full", "loss")])
def test_a_distance_that_makes_sense_is_taken(kl: str, kl_in: str) -> None:
    assert [check_kl(*given) for given in ((kl, kl_in, 0.1), (kl, kl_in, 0.0), ("", "", 0.0))] == [None] * 3


def test_the_leash_tightens_and_loosens_by_the_formula() -> None:
    leash = Leash(0.1, target=6.0, horizon=1000.0)
    leash.adapt(6.6, 50)  # 10 % too far
    assert leash.beta == pytest.approx(0.1 * (1 + 0.1 * 0.05), abs=1e-12)
    leash.adapt(5.7, 100)  # 5 % too near
    assert leash.beta == pytest.approx(0.1005 * (1 - 0.05 * 0.1), abs=1e-12)
    for distance, error in ((60.0, 0.2), (0.0, -0.2), (-3.0, -0.2)):
        leash = Leash(0.1, target=6.0, horizon=1000.0)
        leash.adapt(distance, 100)
        assert leash.beta == pytest.approx(0.1 * (1 + error * 0.1), abs=1e-12)


def test_without_a_target_the_leash_stays_as_it_is() -> None:
    leash = Leash(0.1)
    leash.adapt(1e9, 10_000)
    assert leash.beta == 0.1


ROWS = trees()
KINDS = ("llama", "gemma2", "cohere", "granite")
"""Plain logits, soft-capped ones, and logits with a factor before the temperature."""


def full_rows(model: Any, grown: Sequence[Tree], temperature: float) -> Tensor:
    """Log-probs of the whole vocabulary at each completion token, each branch run by itself, (M, V)."""
    rows = []
    for tree in grown:
        for branch in tree.branches:
            logits = model(input_ids=torch.tensor([tree.trunk + branch])).logits[0].float()
            rows.append((logits[len(tree.trunk) - 1 : -1] / temperature).log_softmax(-1))
    return torch.cat(rows)


def gradients(model: Any) -> Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("terms", ["log-probs", "entropy", "both"])
@pytest.mark.parametrize("route", ["tiled", "plain"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_temperature_divides_logits_after_all_that_the_model_does_to_them(
    kind: str, route: str, terms: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Log-probs, entropies and their gradients are those of the model's own logits / T."""
    monkeypatch.setattr(logprobs, "TILE", 1000)  # three positions a tile
    if route == "plain":
        monkeypatch.setattr(logprobs, "head_of", lambda _: None)
    forest = plant(ROWS)
    push = torch.linspace(-1, 1, len(forest.targets))
    lean = push.square() - 0.3

    def told(logps: Tensor, entropy: Tensor) -> Tensor:
        own, spread = (logps * push).sum(), (entropy * lean).sum()
        return {"log-probs": own, "entropy": spread, "both": own + spread}[terms]

    plain = causal(kind).model
    rows = full_rows(plain, ROWS, 0.6)
    picked, spread = rows.gather(1, forest.targets[:, None])[:, 0], -(rows.exp() * rows).sum(-1)
    told(picked, spread).backward()
    model = causal(kind).model
    with forest_mode(model):
        found = words(model, forest, temperature=0.6, entropy=True)
        assert found.entropy is not None
        told(found.logps, found.entropy).backward()
    if route == "tiled":
        assert logprobs._tried[model], f"the head of {kind} is not run in tiles"
    close(found.logps, picked, atol=2e-5)
    close(found.entropy, spread, atol=2e-5)
    assert (gradients(model) - gradients(plain)).norm() < 2e-5 * gradients(plain).norm()


@pytest.mark.parametrize("route", ["tiled", "plain"])
def test_the_whole_distribution_agrees_with_the_words_and_sums_to_one(
    route: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if route == "plain":
        monkeypatch.setattr(logprobs, "head_of", lambda _: None)
    for kind in KINDS:
        model, forest = causal(kind).model, plant(ROWS)
        with forest_mode(model), torch.no_grad():
            rows = distributions(model, forest, temperature=1.7)
            found = words(model, forest, temperature=1.7, entropy=True)
            bare = words(model, forest, temperature=1.7)
            body = getattr(model, model.base_model_prefix)
            states = body(input_ids=forest.ids, position_ids=forest.positions, use_cache=False, forest=forest)
        close(rows.exp().sum(-1), torch.ones(len(forest.targets)), atol=1e-6)
        close(rows, full_rows(model, ROWS, 1.7).detach(), atol=2e-5)
        close(found.logps, rows.gather(1, forest.targets[:, None])[:, 0], atol=2e-5)
        assert found.entropy is not None
        close(found.entropy, entropies(rows), atol=2e-5)
        close(found.states, states.last_hidden_state[0][forest.predictors], atol=2e-5)
        assert bare.entropy is None
        close(bare.logps, found.logps, atol=1e-6)


def test_the_entropy_of_equal_chances_is_the_logarithm_of_their_number() -> None:
    assert entropies(torch.zeros(2, 8).log_softmax(-1)).tolist() == pytest.approx([math.log(8)] * 2)
    model, forest = causal("llama").model, plant(ROWS)
    with forest_mode(model), torch.no_grad():
        found = words(model, forest, temperature=1e6, entropy=True)
    assert found.entropy is not None
    close(found.entropy, torch.full_like(found.entropy, math.log(model.config.vocab_size)), atol=1e-5)
