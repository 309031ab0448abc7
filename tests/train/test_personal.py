"""PAL on planted tastes: two groups come back, and a user who was not there is known from ten votes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tiebreak.models.ideal import IdealPoint
from tiebreak.records import InputError
from tiebreak.train.frozen import FeatureRows, pairs_on
from tiebreak.train.heads import fit_as, fit_linear, measure, scores
from tiebreak.train.objectives.by_feature import PLAIN, ROWS
from tiebreak.train.objectives.seen import Seen
from tiebreak.train.objectives.switches import objective
from tiebreak.train.pace import Pace
from tiebreak.train.personal import fit_pal_a, fit_pal_b, fit_user

KNOBS = {row.name: dict(row.knobs or {}) for row in ROWS}
HINGE = {name: KNOBS["pal_a"][name] for name in (*PLAIN, "hinge_margin")}
PACE = Pace(epochs=10, batch=32, learning_rate=3e-3, weight_decay=0.01)
OLD, NEW, VOTES = 24, 5, 50


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def world(seed: int, *, width: int = 8, by_prompt: bool = False) -> FeatureRows:
    """Votes of users of two groups, even and odd, who want the very opposite; with ``by_prompt`` it turns with it.

    Every user votes on pairs of their own. Prompts have a feature that says which way round they are.
    """
    draw = drawn(seed)
    users = OLD + NEW
    values = torch.randn(600, width, generator=draw)
    taste = values @ torch.nn.functional.normalize(torch.randn(width, generator=draw), dim=0)
    one = torch.randint(0, 600, (users * VOTES,), generator=draw)
    two = (one + torch.randint(1, 600, (users * VOTES,), generator=draw)) % 600
    whose = torch.arange(users).repeat_interleave(VOTES)
    prompts = torch.randn(40, width, generator=draw)
    prompt = torch.randint(0, 40, (users * VOTES,), generator=draw)
    sign = 1.0 - 2.0 * (whose % 2)
    if by_prompt:
        sign = sign * prompts[prompt, 0].sign()
    first = (taste[one] - taste[two]) * sign > 0
    return pairs_on(
        values,
        torch.where(first, one, two),
        torch.where(first, two, one),
        users=[f"user-{number}" for number in whose.tolist()],
        prompts=prompts,
        prompt=prompt,
    )


def of(rows: FeatureRows, *users: int) -> FeatureRows:
    names = {f"user-{number}" for number in users}
    return rows.part([i for i, name in enumerate(rows.users) if name in names])


def accuracy(head: Any, rows: FeatureRows) -> float:
    return measure(head, rows, PLAIN)["rewards/accuracies"]


def test_pal_finds_two_planted_groups_where_one_reward_model_cannot() -> None:
    rows = world(1)
    learned = of(rows, *range(OLD))
    one = fit_linear(learned, PLAIN, Pace(epochs=20, batch=64, learning_rate=1e-2), seed=0).head
    assert accuracy(one, learned) < 0.6
    head = fit_as(fit_pal_a, learned, KNOBS["pal_a"], PACE, seed=0).head
    assert accuracy(head, learned) > 0.95

    shares = head.users.shares(torch.arange(OLD))[:, 0].detach()
    odd = torch.tensor([int(name.partition("-")[2]) % 2 for name in head.users.names], dtype=torch.bool)
    low, high = sorted([shares[odd], shares[~odd]], key=lambda group: float(group.mean()))
    assert float(low.max()) < 0.5 < float(high.min())

    found = []
    for number in range(OLD, OLD + NEW):
        votes = of(rows, number)
        known = fit_user(head, votes.part(range(10)), HINGE, name=f"user-{number}")
        found.append(accuracy(known, votes.part(range(10, VOTES))))
    assert sum(found) / NEW > 0.9


def test_pal_b_learns_a_taste_that_turns_with_the_prompt() -> None:
    rows = world(2, by_prompt=True)
    learned = of(rows, *range(OLD))
    nearest = fit_pal_a(learned, PLAIN, PACE, seed=0).head
    head = fit_as(fit_pal_b, learned, KNOBS["pal_b"], Pace(epochs=22, batch=32, learning_rate=3e-3), seed=0).head
    assert accuracy(nearest, learned) < 0.7
    assert accuracy(head, learned) > 0.9
    votes = of(rows, OLD)
    known = fit_user(head, votes.part(range(10)), PLAIN, name=f"user-{OLD}")
    assert accuracy(known, votes.part(range(10, VOTES))) > 0.85


def test_a_new_user_moves_nothing_but_their_own_weights() -> None:
    rows = world(3)
    learned, votes = of(rows, *range(4)), of(rows, OLD).part(range(10))
    head = fit_pal_a(learned, PLAIN, Pace(epochs=1, batch=32, learning_rate=3e-3), seed=0).head
    before = {name: value.clone() for name, value in head.state_dict().items()}
    known = fit_user(head, votes, PLAIN, name=f"user-{OLD}")
    assert all(torch.equal(before[name], value) for name, value in head.state_dict().items())
    assert head.users.names == tuple(f"user-{number}" for number in range(4))
    assert known.users.names == (*head.users.names, f"user-{OLD}")
    for name, value in known.state_dict().items():
        kept = value[:-1] if name == "users.weight" else value
        assert torch.equal(kept, before[name])
    assert torch.equal(scores(known, learned), scores(head, learned))
    assert (
        measure(known, votes, PLAIN)["loss"]
        < measure(fit_user(head, votes, PLAIN, name="x", steps=0), votes_of("x", votes), PLAIN)["loss"]
    )


def votes_of(name: str, rows: FeatureRows) -> FeatureRows:
    return pairs_on(rows.values, rows.branch[0::2], rows.branch[1::2], users=[name] * len(rows))


def test_a_user_without_votes_is_refused_and_so_is_one_that_is_known() -> None:
    rows = world(3)
    head = fit_pal_a(of(rows, 0, 1), PLAIN, Pace(epochs=1, batch=32), seed=0).head
    with pytest.raises(InputError, match="no votes of 'new'"):
        fit_user(head, rows.part([]), PLAIN, name="new")
    with pytest.raises(InputError, match="knows a user 'user-1' already"):
        fit_user(head, of(rows, 1), PLAIN, name="user-1")
    with pytest.raises(InputError, match="does not know the user 'user-2'"):
        scores(head, of(rows, 2))
    with pytest.raises(InputError, match="do not say whose they are"):
        scores(head, pairs_on(rows.values, [0], [1]))
    with pytest.raises(InputError, match="the rows do not say it; give users"):
        fit_pal_a(pairs_on(rows.values, [0], [1]), PLAIN, PACE, seed=0)
    with pytest.raises(InputError, match="PAL-B looks at the prompt"):
        fit_pal_b(pairs_on(rows.values, [0], [1], users=["a"]), PLAIN, PACE, seed=0)


def test_held_out_rows_of_an_unknown_user_are_refused() -> None:
    rows = world(3)
    with pytest.raises(InputError, match="does not know the user 'user-5'"):
        fit_pal_a(of(rows, 0, 1), PLAIN, Pace(epochs=1, batch=32), seed=0, held_out=of(rows, 5))


def test_the_hinge_prefers_what_is_nearer_and_is_flat_beyond_its_margin() -> None:
    """The loser's distance less the winner's: the other sign would learn to prefer what is far."""
    head = IdealPoint(2, ["ann"], prototypes=1, mix="Pw", seed=0)
    with torch.no_grad():
        for parameter in head.project.body.parameters():
            parameter.zero_()
        head.prototypes.zero_()
    for near, far, expected in ((1.0, 1.5, 0.5), (1.0, 3.0, 0.0), (1.5, 1.0, 1.5)):
        rows = pairs_on(torch.tensor([[near, 0.0], [0.0, far]]), [0], [1], users=["ann"])
        found = head(rows.values, torch.tensor([0, 0]))
        assert found.tolist() == pytest.approx([-near, -far])
        loss = objective(Seen(**{**vars(rows.take([0]).seen), "scores": found}), **HINGE).loss
        assert float(loss.detach()) == pytest.approx(expected)
        (slope,) = torch.autograd.grad(loss, found)
        assert slope.tolist() == ([-1.0, 1.0] if expected else [0.0, 0.0])


def test_users_have_the_published_learning_rates() -> None:
    """1e-4 for the projector and 5e-3 for prototypes and users: the first step of Adam is as long as its rate."""
    rows = of(world(3), 0, 1)
    slow = Pace(epochs=0.01, batch=16, learning_rate=1e-4, decay="constant")
    assert IdealPoint.faster == {"users": 50.0, "prototypes": 50.0}
    head = fit_pal_a(rows, PLAIN, slow, seed=0).head
    start = IdealPoint(8, sorted(set(rows.users)), seed=0)
    moved = {name: (value - start.state_dict()[name]).abs().max() for name, value in head.state_dict().items()}
    assert float(moved["prototypes"]) == pytest.approx(5e-3, rel=1e-2)
    assert float(moved["users.weight"]) == pytest.approx(5e-3, rel=1e-2)
    assert float(moved["project.body.0.weight"]) == pytest.approx(1e-4, rel=1e-2)


def test_even_users_and_bounded_points_change_what_is_learned() -> None:
    rows = world(3)
    some = rows.part([i for i, name in enumerate(rows.users) if name == "user-0" or i % 7 == 0])
    quick = Pace(epochs=2, batch=32, learning_rate=3e-3)
    plain, even, bound = (
        fit_pal_a(some, PLAIN, quick, seed=0, **more) for more in ({}, {"even": True}, {"bound": 0.5})
    )
    assert not torch.equal(plain.head.prototypes, even.head.prototypes)
    everybody = torch.arange(len(plain.head.users.names))
    long, short = (one.head.points(everybody).norm(dim=1).mean().item() for one in (plain, bound))
    assert bound.last["bound"] == pytest.approx(max(short - 0.5, 0.0), abs=0.2)
    assert short < long
