"""Where the losses are least: on a policy small enough to enumerate, with all pairs and their true probabilities."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.train.seen_made import Double
from tests.train.tabular import ANSWERS, REWARDS, Drawn, answer_logps, prefixes, slope, table
from tiebreak.train.objectives.by_score import ROWS
from tiebreak.train.objectives.seen import Seen
from tiebreak.train.objectives.switches import objective

BETA = 0.5
KNOBS: dict[str, dict[str, Any]] = {row.name: dict(row.knobs or {}) for row in ROWS}
LENGTHS = torch.tensor([len(answer) for answer in ANSWERS])
PAIRS = torch.tensor(list(itertools.combinations(range(len(ANSWERS)), 2))).T
REWARD = REWARDS[0]


def every_pair(logps: Tensor, reference: Tensor, reward: Tensor = REWARD, **more: Any) -> Seen:
    """All pairs of answers to one prompt, each better with the probability of Bradley and Terry."""
    chosen, rejected = PAIRS
    return Seen(
        lengths=LENGTHS,
        weight=torch.ones(len(ANSWERS), dtype=Double),
        logps=logps,
        reference=reference,
        chosen=chosen,
        rejected=rejected,
        p=torch.sigmoid(reward[chosen] - reward[rejected]),
        **more,
    )


def theta_of(logps: Tensor) -> Tensor:
    """Logits (1, 4, 3) of the policy with these log-probs of its answers: 0 alone, then 1 or 2 with a second word."""
    seconds = logps[1:].reshape(2, 3)
    first = torch.cat([logps[:1], seconds.logsumexp(1)])
    return torch.stack([first, torch.zeros(3, dtype=Double), *seconds]).unsqueeze(0).requires_grad_(True)


def pull_at(optimum: Tensor, reference: Tensor, knobs: dict[str, Any]) -> Tensor:
    """The gradient of the expected loss, in the policy's logits, at the policy with these log-probs."""
    theta = theta_of(optimum)
    logps = answer_logps(theta)
    assert torch.allclose(logps, optimum, atol=1e-12)
    return slope(objective(every_pair(logps, reference), **knobs).loss, theta)


REFERENCE = answer_logps(table(seed=3, prompts=1)).detach()


def tilted(by: Tensor) -> Tensor:
    """pi_ref exp(by) / Z."""
    return (REFERENCE + by).log_softmax(0)


def normalised(ratio: Callable[[float], Tensor], room: float) -> Tensor:
    """pi_ref u for the ratios u(c) that add up to 1 with it; they fall as c rises from the largest r/beta less room."""
    low, high = float(REWARD.max()) / BETA - room, 60.0
    for _ in range(200):
        middle = (low + high) / 2
        total = float((REFERENCE.exp() * ratio(middle)).sum())
        low, high = (middle, high) if total > 1 else (low, middle)
    return REFERENCE + ratio((low + high) / 2).log()


def forward_ratio(c: float) -> Tensor:
    """1 - 1/u = r/beta - c."""
    return 1 / (1 + c - REWARD / BETA)


def alpha_ratio(c: float) -> Tensor:
    """(u^-0.5 - 1)/(-0.5) = r/beta - c."""
    return (1 + 0.5 * (c - REWARD / BETA)) ** -2


OPTIMA: list[tuple[str, Tensor]] = [
    ("tr_dpo", tilted(REWARD / BETA)),
    ("r_dpo", tilted((REWARD - 0.3 * LENGTHS.double()) / BETA)),
    ("cpo", (REWARD / BETA).log_softmax(0)),
    ("forward_kl_dpo", normalised(forward_ratio, 1.0)),
    ("alpha_divergence_dpo", normalised(alpha_ratio, 2.0)),
]


@pytest.mark.parametrize(("name", "optimum"), OPTIMA, ids=[name for name, _ in OPTIMA])
def test_the_expected_gradient_is_zero_at_the_known_optimum(name: str, optimum: Tensor) -> None:
    own = {"length_penalty": 0.3} if name == "r_dpo" else {}
    knobs = {**KNOBS[name], "target": "soft", "beta": BETA, "nll": 0.0, **own}
    assert float(optimum.exp().sum()) == pytest.approx(1, abs=1e-12)
    assert float(pull_at(optimum, REFERENCE, knobs).abs().max()) < 1e-12
    assert float(pull_at(tilted(REWARD / BETA + 0.1 * REWARD**2), REFERENCE, knobs).abs().max()) > 1e-3


def test_minus_in_front_of_the_lengths_is_another_optimum() -> None:
    """With a minus the training itself would pay for length."""
    knobs = {**KNOBS["r_dpo"], "target": "soft", "beta": BETA, "length_penalty": 0.3}
    punished, paid = (tilted((REWARD - sign * 0.3 * LENGTHS.double()) / BETA) for sign in (1, -1))
    assert float(pull_at(punished, REFERENCE, knobs).abs().max()) < 1e-12
    assert float(pull_at(paid, REFERENCE, knobs).abs().max()) > 1e-2
    assert float(pull_at(paid, REFERENCE, {**knobs, "length_penalty": -0.3}).abs().max()) < 1e-12
    share = [float((logps.exp() * LENGTHS.double()).sum()) for logps in (punished, paid)]
    assert share[0] < share[1]


def test_jensen_shannon_is_least_where_its_reward_is() -> None:
    """log(2u/(1+u)) is at most log 2, so rewards far apart have no policy; this one is made to have one."""
    optimum = tilted(0.4 * REWARD)
    reward = BETA * torch.log(2 * torch.sigmoid(optimum - REFERENCE))
    theta = theta_of(optimum)
    seen = every_pair(answer_logps(theta), REFERENCE, reward)
    knobs = {**KNOBS["js_dpo"], "target": "soft", "beta": BETA}
    assert float(slope(objective(seen, **knobs).loss, theta).abs().max()) < 1e-12


def test_an_offset_moves_the_optimum_by_itself() -> None:
    """A margin asks for log-odds larger by it, whatever beta: z = beta D - m is least at logit p."""
    z = math.log(0.8 / 0.2)
    logps = torch.tensor([(z + 0.7) / BETA, 0.0], dtype=Double, requires_grad=True)
    fields = {"lengths": torch.tensor([3, 3]), "weight": torch.ones(2, dtype=Double), "logps": logps}
    pair = {"chosen": torch.tensor([0]), "rejected": torch.tensor([1]), "p": torch.tensor([0.8], dtype=Double)}
    seen = Seen(**fields, **pair, reference=torch.zeros(2, dtype=Double), margin=torch.tensor([0.7], dtype=Double))
    knobs = {**KNOBS["margin_dpo"], "target": "soft", "beta": BETA}
    assert float(slope(objective(seen, **knobs).loss, logps).abs().max()) < 1e-12


def test_one_answer_behind_two_prompts_leaves_both_normalisers_in_a_log_ratio() -> None:
    """At DPO's own optimum the comparison is off by beta (log Z(x_w) - log Z(x_l)); a head's is not.

    The other form, the same pair of answers behind both prompts, cancels both.
    """
    one, two = REWARDS
    other = answer_logps(table(seed=4, prompts=1)).detach()
    logz = [float((ref + reward / BETA).logsumexp(0)) for ref, reward in ((REFERENCE, one), (other, two))]
    policies = [(ref + reward / BETA).log_softmax(0) for ref, reward in ((REFERENCE, one), (other, two))]
    rho = [policy - ref for policy, ref in zip(policies, (REFERENCE, other), strict=True)]
    gap = BETA * (rho[0] - rho[1])
    assert torch.allclose(gap, one - two - BETA * (logz[0] - logz[1]), atol=1e-12)
    assert abs(BETA * (logz[0] - logz[1])) > 0.1
    between = BETA * ((rho[0][0] - rho[0][1]) - (rho[1][0] - rho[1][1]))
    assert float(between) == pytest.approx(float((one[0] - one[1]) - (two[0] - two[1])), abs=1e-12)

    scores = torch.stack([one, two], 1).flatten().requires_grad_(True)
    firsts = 2 * torch.arange(len(one))
    seen = Seen(
        lengths=LENGTHS.repeat_interleave(2),
        weight=torch.ones(2 * len(one), dtype=Double),
        scores=scores,
        chosen=firsts,
        rejected=firsts + 1,
        p=torch.sigmoid(one - two),
    )
    knobs = {**KNOBS["mapl_intra"], "target": "soft"}
    assert float(slope(objective(seen, **knobs).loss, scores).abs().max()) < 1e-15


def test_all_but_the_shaped_rows_do_not_see_a_constant_of_a_prompt_in_the_reference() -> None:
    """It cancels where rho enters as it is; divergences, DPO-Positive and means over unlike lengths do see it."""
    values = torch.tensor([-3.0, -5.0, -2.0, -2.5, -4.0, -1.0, -6.0], dtype=Double)
    readings = {"collision": -values.abs(), "token_kl": values.abs(), "public": values / 2}
    more = {"margin": torch.ones(PAIRS.shape[1], dtype=Double), "scores": values, "grades": REWARD}
    more |= {"tree": torch.zeros(7, dtype=torch.long), "share": None}
    losses = {
        name: [
            float(
                objective(
                    every_pair(
                        values, REFERENCE + c, readings=readings, compared={"public": REFERENCE / 2 + c}, **more
                    ),
                    **knobs,
                ).loss
            )
            for c in (0.0, 0.8)
        ]
        for name, knobs in KNOBS.items()
    }
    moved = {name for name, (here, there) in losses.items() if abs(here - there) > 1e-12}
    assert moved == {"forward_kl_dpo", "js_dpo", "alpha_divergence_dpo", "dpop", "length_normalised_dpo"}


LIKE_DPO = ("forward_kl_dpo", "alpha_divergence_dpo", "ld_dpo", "dpop", "tdpo1", "tdpo2", "wpo", "odpo", "curry_dpo")


@pytest.mark.parametrize(("name", "factor"), [("js_dpo", 0.5), *((name, 1.0) for name in LIKE_DPO)])
def test_dpo_like_rows_start_at_log_2_and_pull_as_dpo_does(name: str, factor: float) -> None:
    """At the reference the first step is DPO's, times the curvature of the divergence, whatever comes later."""
    theta = theta_of(REFERENCE)
    logps = answer_logps(theta)
    start = logps.detach()
    seen = every_pair(
        logps,
        start,
        readings={"token_kl": (logps - start) ** 2, "collision": start - 1.0, "public": logps},
        compared={"public": start},
        margin=torch.ones(PAIRS.shape[1], dtype=Double),
    )
    first, plain = (objective(seen, **{**KNOBS[row], "beta": 0.1}).loss for row in (name, "tr_dpo"))
    assert float(first.detach()) == pytest.approx(math.log(2), abs=1e-12)
    here, there = (torch.autograd.grad(loss, theta, retain_graph=True)[0] for loss in (first, plain))
    assert float(there.abs().max()) > 1e-3
    assert torch.allclose(here, factor * there, atol=1e-13)


def looked_at(theta: Tensor, start: Tensor) -> Seen:
    """All that can be read of the answers to one prompt under two policies; the shorter of any pair has one token."""
    prompt, row, token = prefixes([Drawn(0, answer) for answer in ANSWERS])
    own, other = (logits.log_softmax(-1)[prompt, row] for logits in (theta, start))
    branch = torch.arange(len(ANSWERS)).repeat_interleave(LENGTHS)
    first = torch.cat([torch.ones(1, dtype=torch.long), branch.diff()]) > 0

    def summed(values: Tensor) -> Tensor:
        return torch.zeros(len(ANSWERS), dtype=Double).index_add(0, branch, values)

    said, before = (both.gather(1, token[:, None])[:, 0] for both in (own, other))
    order = torch.where(REWARD[PAIRS[0]] > REWARD[PAIRS[1]], PAIRS, PAIRS.flip(0))
    margin = (REWARD[order[0]] - REWARD[order[1]]).clamp_min(1e-3)
    readings = {
        "token_kl": summed((other.exp() * (other - own)).sum(-1)),
        "collision": summed((2 * own).logsumexp(-1)).detach(),
        "public": said[first],
    }
    more = {"margin": margin, "grades": REWARD, "tree": torch.zeros(len(ANSWERS), dtype=torch.long)}
    more |= {
        "share": torch.full_like(margin, 1 / len(margin)),
        "readings": readings,
        "compared": {"public": before[first]},
    }
    seen = every_pair(summed(said), summed(before), **more)
    return replace(seen, chosen=order[0], rejected=order[1])


@pytest.mark.parametrize("name", [name for name, knobs in KNOBS.items() if knobs["score"] != "head"])
def test_every_row_learns_to_tell_good_answers_from_bad(name: str) -> None:
    """Fifty steps, and the better answer of a pair has gained on the worse."""
    start = table(seed=5, prompts=1).detach()
    theta = start.clone().requires_grad_(True)
    optimiser = torch.optim.Adam([theta], lr=0.02)
    gaps = []
    for _ in range(51):
        seen = looked_at(theta, start)
        outcome = objective(seen, **KNOBS[name])
        gaps.append(float(outcome.metrics["logps/chosen"] - outcome.metrics["logps/rejected"]))
        optimiser.zero_grad()
        outcome.loss.backward()
        optimiser.step()
    assert gaps[-1] > gaps[0] + 0.1
