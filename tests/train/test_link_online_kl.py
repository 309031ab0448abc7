"""The KL on answers of the policy's own: its gradient is right on average, and look-alikes' are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.train.seen_made import Double, numbers
from tests.train.tabular import ANSWERS, ONE_STEP, Drawn, divergence, expected, slope, table, token_logps
from tiebreak.train.objectives.seen import Seen
from tiebreak.train.objectives.switches import objective
from tiebreak.train.objectives.terms import TERMS


def drawn_by(theta: Tensor, reference: Tensor, drawn: list[Drawn], weight: Tensor | None = None) -> Seen:
    """Rows that have nothing but an answer that was drawn."""
    lengths = torch.tensor([len(one.answer) for one in drawn])
    rows = torch.arange(len(drawn))

    def summed(logits: Tensor) -> Tensor:
        return torch.zeros(len(drawn), dtype=Double).index_add(
            0, rows.repeat_interleave(lengths), token_logps(logits, drawn)
        )

    return Seen(
        lengths=lengths,
        weight=torch.ones(len(drawn), dtype=Double) if weight is None else weight,
        logps=summed(theta),
        reference=summed(reference),
        tree=rows,
        beside={"drawn": rows},
    )


@pytest.mark.parametrize("answers", [ONE_STEP, ANSWERS], ids=["one step", "two steps"])
@pytest.mark.parametrize("prompts", [[0], [0, 1], [0, 0, 1]], ids=str)
def test_the_online_kl_pulls_as_the_kl_does(answers: Any, prompts: list[int]) -> None:
    """On average over answers of the policy: its gradient and its value are those of KL(pi || ref), to 1e-10."""
    theta, reference = table(0), table(1).detach()
    exact = sum(divergence(theta, reference, prompt, answers) for prompt in prompts) / len(prompts)

    def loss(drawn: list[Drawn]) -> Tensor:
        made: Tensor = TERMS["online_kl"](drawn_by(theta, reference, drawn), knobs={})
        return made

    found = expected(theta, prompts, loss, answers=answers, by=theta)
    assert float((found - slope(exact, theta)).abs().max()) < 1e-10


def wrong_ways(theta: Tensor, reference: Tensor, prompts: list[int]) -> dict[str, Callable[[list[Drawn]], Tensor]]:
    """Surrogates that look alike and are not: each token by itself, a mean with the answer in it, the plain value."""

    def by_token(drawn: list[Drawn]) -> Tensor:
        logps, other = token_logps(theta, drawn), token_logps(reference, drawn)
        return ((logps - other).detach() * logps).sum() / len(prompts)

    def own_mean(drawn: list[Drawn]) -> Tensor:
        seen = drawn_by(theta, reference, drawn)
        rho = (seen.logps - seen.reference).detach()  # type: ignore[operator]
        return ((rho - rho.mean()) * seen.logps).mean()

    def plain(drawn: list[Drawn]) -> Tensor:
        seen = drawn_by(theta, reference, drawn)
        return (seen.logps - seen.reference).mean()  # type: ignore[operator]

    return {"by token": by_token, "own mean": own_mean, "plain value": plain}


def test_surrogates_that_look_alike_do_not() -> None:
    theta, reference, prompts = table(0), table(1).detach(), [0, 1]
    exact = slope(sum(divergence(theta, reference, prompt) for prompt in prompts) / 2, theta)  # type: ignore[arg-type]
    ways = wrong_ways(theta, reference, prompts)
    found = {name: expected(theta, prompts, loss, by=theta) for name, loss in ways.items()}
    assert float((found["by token"] - exact).abs().max()) > 0.01
    assert float((found["own mean"] - exact / 2).abs().max()) < 1e-10
    assert float(found["plain value"].abs().max()) < 1e-10


def test_the_online_kl_of_weighted_rows_is_their_weighted_mean() -> None:
    theta, reference, weight = table(0), table(1).detach(), numbers([3.0, 1.0])
    exact = (3 * divergence(theta, reference, 0) + divergence(theta, reference, 1)) / 4

    def loss(drawn: list[Drawn]) -> Tensor:
        made: Tensor = TERMS["online_kl"](drawn_by(theta, reference, drawn, weight), knobs={})
        return made

    assert float((expected(theta, [0, 1], loss, by=theta) - slope(exact, theta)).abs().max()) < 1e-10


@pytest.mark.parametrize(("weight", "left"), [(0.0, 0.99), (1.0, 0.5)])
def test_hypo_holds_what_no_pair_mentions(weight: float, left: float) -> None:
    """Three arms on one feature, pairs of the first two only: raising 1 over 0 gives all to the arm that has 2."""
    feature, reference = numbers([1.0, 0.0, 2.0]), numbers([0.4, 0.4, 0.2]).log()
    theta = numbers([0.0]).requires_grad_(True)
    for _ in range(300):
        logps = (reference + theta * feature).log_softmax(0)
        pair = Seen(
            lengths=torch.ones(2),
            weight=torch.ones(2, dtype=Double),
            logps=logps[:2],
            reference=reference[:2],
            chosen=torch.tensor([0]),
            rejected=torch.tensor([1]),
            p=torch.ones(1, dtype=Double),
        )
        loss = objective(pair, score="log_ratio", link="logistic", beta=1.0).loss
        for arm in range(3):
            held = TERMS["online_kl"](one_of(logps, reference, arm), knobs={})
            loss = loss + weight * logps[arm].detach().exp() * held
        (down,) = torch.autograd.grad(loss, theta)
        theta = (theta - down).detach().requires_grad_(True)
    share = float((reference + theta * feature).softmax(0)[2].detach())
    assert share > left if weight == 0 else 0.2 < share < left


def one_of(logps: Tensor, reference: Tensor, arm: int) -> Seen:
    """A row whose drawn answer is this arm."""
    return Seen(
        lengths=torch.ones(1),
        weight=torch.ones(1, dtype=Double),
        logps=logps[arm : arm + 1],
        reference=reference[arm : arm + 1],
        tree=torch.zeros(1, dtype=torch.long),
        beside={"drawn": torch.zeros(1, dtype=torch.long)},
    )
