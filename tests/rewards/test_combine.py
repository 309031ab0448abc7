"""How terms become one number, by hand; what normalising keeps; and what happens to what is no number."""

from __future__ import annotations

import json
import math
import statistics
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.rewards.made import asked, batch, term
from tiebreak.records import InputError
from tiebreak.rewards.combine import Gate, Rewards, Schedule, Term
from tiebreak.rewards.table import Unscored

ROWS = ((1.0, 2.0, 4.0), (8.0, None))


def test_one_term_is_the_total() -> None:
    done = Rewards([term(*ROWS)])(batch(3, 2))
    assert done.totals == [[1.0, 2.0, 4.0], [8.0, None]]
    assert done.terms == {"made": done.totals}
    assert done.faults == {"reward made: it gave None": 1}


def test_sums_are_weighted_then_multiplied_then_gated() -> None:
    terms = [
        term((1.0, 2.0, 3.0), label="a", weight=2.0),
        term((10.0, 20.0, 30.0), label="b", weight=-0.5, clip=(0.0, 25.0)),
        term((1.0, 0.5, 2.0), label="c", role="product"),
        term((3.0, 3.0, 0.5), label="d", role="product"),
        term((1.0, 0.0, 1.0), label="e", role="gate", gate=Gate(least=1.0, otherwise=-1.0)),
        term((1.0, 0.0, 1.0), label="f", role="gate", gate=Gate(least=0.5, otherwise=-9.0)),
    ]
    done = Rewards(terms)(batch(3))
    assert done.totals == [[(2 - 5) * 3.0, -1.0, (6 - 12.5) * 1.0]]
    assert done.terms["b"] == [[10.0, 20.0, 30.0]]
    assert done.faults == {}


@pytest.mark.parametrize("role", ["sum", "product", "gate"])
def test_what_has_no_number_in_one_term_has_no_total(role: str) -> None:
    gate = Gate(0.0, -1.0) if role == "gate" else None
    done = Rewards([term((1.0, 1.0)), term((None, 2.0), label="other", role=role, gate=gate)])(batch(2))
    assert done.totals[0][0] is None
    assert done.totals[0][1] is not None
    assert done.faults == {"reward other: it gave None": 1}


def test_a_weight_goes_in_a_line_and_stays() -> None:
    rewards = Rewards([term((1.0,), weight=Schedule(start=1.0, end=0.2, over=0.5))])
    weights = [rewards(batch(1), done=done).totals[0][0] for done in (0.0, 0.25, 0.5, 1.0)]
    assert weights == pytest.approx([1.0, 0.6, 0.2, 0.2])


def test_a_schedule_that_ends_at_nothing_still_needs_a_number() -> None:
    gone = term((None, 1.0), label="gone", weight=Schedule(start=1.0, end=0.0))
    assert Rewards([term((1.0, 1.0)), gone])(batch(2), done=1.0).totals == [[None, 1.0]]


def known(totals: list[list[float | None]]) -> list[float]:
    return [value for row in totals for value in row if value is not None]


def test_whitening_keeps_the_mean_and_makes_the_variance_one() -> None:
    done = Rewards([term(*ROWS, normalise="whiten")])(batch(3, 2))
    values = known(done.totals)
    assert done.totals[1][1] is None
    assert statistics.mean(values) == pytest.approx(3.75)
    assert statistics.pvariance(values) == pytest.approx(1.0, abs=1e-6)
    white = torch.tensor([1.0, 2.0, 4.0, 8.0], dtype=torch.float64)
    shifted = (white - white.mean()) * torch.rsqrt(white.var(unbiased=False) + 1e-8) + white.mean()
    assert values == pytest.approx(shifted.tolist())


def test_whitening_equal_scores_leaves_them() -> None:
    assert Rewards([term((0.1, 0.1, 0.1), normalise="whiten")])(batch(3)).totals == [[0.1, 0.1, 0.1]]


def test_a_group_has_mean_0_and_spread_1_and_equal_scores_are_0() -> None:
    rows = ((1.0, 2.0, 6.0, None), (0.1, 0.1, 0.1, 0.1), (5.0, None, None, None))
    done = Rewards([term(*rows, normalise="group")])(batch(4, 4, 4)).totals
    first = known([done[0]])
    assert statistics.mean(first) == pytest.approx(0.0, abs=1e-12)
    assert statistics.pstdev(first) == pytest.approx(1.0)
    assert done[1] == [0.0, 0.0, 0.0, 0.0]
    assert done[2] == [0.0, None, None, None]


def test_running_statistics_are_those_of_all_values_so_far() -> None:
    rewards = Rewards([term((1.0, 2.0, 4.0), normalise="running")])
    assert rewards(batch(3)).totals[0] == pytest.approx([(x - 7 / 3) / statistics.pstdev([1, 2, 4]) for x in (1, 2, 4)])
    rewards = Rewards([term((1.0, 2.0, 4.0), (8.0, None), normalise="running")])
    for times in (1, 2, 3):
        last = rewards(batch(3, 2)).totals
        seen = [1.0, 2.0, 4.0, 8.0] * times
        mean, spread = statistics.mean(seen), statistics.pstdev(seen)
        assert known(last) == pytest.approx([(x - mean) / spread for x in seen[:4]])
        assert last[1][1] is None


def test_running_over_equal_scores_is_0() -> None:
    rewards = Rewards([term((0.1, 0.1), normalise="running")])
    for _ in range(5):
        assert rewards(batch(2)).totals == [[0.0, 0.0]]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30))
def test_normalising_never_breaks(values: list[float]) -> None:
    for how in ("whiten", "running", "group"):
        totals = known(Rewards([term(values, normalise=how)])(batch(len(values))).totals)
        assert len(totals) == len(values)
        assert all(map(math.isfinite, totals))
        order = sorted(range(len(values)), key=values.__getitem__)
        assert all(totals[a] <= totals[b] for a, b in pairwise(order))


def test_clipping_comes_before_normalising() -> None:
    done = Rewards([term((0.0, 1.0, 100.0), clip=(0.0, 1.0), normalise="group")])(batch(3))
    assert done.totals == Rewards([term((0.0, 1.0, 1.0), normalise="group")])(batch(3)).totals


def test_state_goes_through_json_and_the_run_goes_on() -> None:
    whole, first = (Rewards([term((1.0, 2.0, 4.5), normalise="running"), term((1.0,) * 3, label="b")]) for _ in "ab")
    for rewards in (whole, first):
        rewards(batch(3))
    second = Rewards([term((1.0, 2.0, 4.5), normalise="running"), term((1.0,) * 3, label="b")])
    second.load(json.loads(json.dumps(first.state())))
    assert second.state() == first.state() == whole.state()
    assert second(batch(3)) == whole(batch(3))


def test_a_state_of_other_terms_is_refused() -> None:
    saved = Rewards([term((1.0,), normalise="running")]).state()
    with pytest.raises(InputError, match="normalises made over the run, and the recipe nothing"):
        Rewards([term((1.0,))]).load(saved)


@pytest.mark.parametrize(
    ("given", "number", "fault"),
    [
        (True, 1.0, None),
        (False, 0.0, None),
        (3, 3.0, None),
        (Fraction(1, 2), 0.5, None),
        (np.float32(0.5), 0.5, None),
        (np.bool_(True), 1.0, None),
        (np.array(2.0), 2.0, None),
        (torch.tensor(0.25), 0.25, None),
        (float("nan"), None, "reward made: nan"),
        (torch.tensor(float("nan")), None, "reward made: nan"),
        (float("-inf"), None, "reward made: infinite"),
        (10**400, None, "reward made: infinite"),
        (None, None, "reward made: it gave None"),
        ("0.5", None, "reward made: it gave a str in place of a number: '0.5'"),
        ([0.5], None, "reward made: it gave a list in place of a number: [0.5]"),
        (torch.tensor([0.5]), None, "reward made: it gave a Tensor in place of a number: tensor([0.5000])"),
        (Unscored("asleep", "z\nz"), None, "reward made: asleep: z z"),
    ],
)
def test_what_a_reward_gives_is_a_number_or_a_fault(given: Any, number: float | None, fault: str | None) -> None:
    done = Rewards([term((given, 1.0))])(batch(2))
    assert done.totals == [[number, 1.0]]
    assert done.faults == ({fault: 1} if fault else {})


def test_a_kind_of_fault_is_one_line_for_the_whole_run() -> None:
    rewards = Rewards([term((Unscored("ValueError", "first"), Unscored("ValueError", "second"), 1.0))])
    for _ in range(2):
        assert rewards(batch(3)).faults == {"reward made: ValueError: first": 2}


def test_a_batch_without_a_single_number_stops_the_run() -> None:
    broken = term((Unscored("ValueError", "no such key.", "mend the function"), None), label="mine")
    with pytest.raises(InputError) as told:
        Rewards([term((1.0, 2.0)), broken])(batch(2))
    assert str(told.value) == (
        "No completion of this batch has a reward: 'mine' could not score 2 of 2, the first for this reason: "
        "ValueError: no such key; mend the function."
    )
    with pytest.raises(InputError, match="'a' could not score 1 of 2"):
        Rewards([term((None, 1.0), label="a"), term((1.0, None), label="b")])(batch(2))
    with pytest.raises(InputError, match="None of the 1 totals of this batch is finite"):
        Rewards([term((1e308,), weight=1e10)])(batch(1))


def test_nothing_asked_is_nothing_scored() -> None:
    assert Rewards([term()])([]).totals == []
    assert Rewards([term((), ())])([asked(), asked()]).totals == [[], []]


def test_a_total_beyond_numbers_is_a_fault() -> None:
    done = Rewards([term((1e308, 1.0), weight=1e10)])(batch(2))
    assert done.totals == [[None, 1e10]]
    assert done.faults == {"the total is not finite": 1}


def test_a_term_is_what_the_recipe_room_builds() -> None:
    made = Term(name="math", label="math", score=lambda answered: [[1.0] for _ in answered])
    assert Rewards([made])(batch(1, 1)).totals == [[1.0], [1.0]]
