import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiebreak.evaluate.winrate import win_rate
from tiebreak.records import InputError, Judgment
from tiebreak.stats.intervals import rate, wilson

JUDGE = "model:judge@1"
SIDES = {f"{side}{i}": side for side in ("new", "old") for i in range(400)}
LENGTHS = {name: 10 for name in SIDES}


def said(i, score, *, swap=False, **more):
    """``score`` is for "new": 1, 1/2, 0 or the name of another verdict; shown second when ``swap``."""
    slots = (f"old{i}", f"new{i}") if swap else (f"new{i}", f"old{i}")
    kind = {1: ("slot", int(swap)), 0: ("slot", 1 - swap), 0.5: ("tie", None)}.get(score, (score, None))
    return Judgment(
        prompt_id=more.pop("prompt", f"p{i}"), slots=slots, verdict=kind[0], winner=kind[1], **{"by": JUDGE, **more}
    )


def measure(judgments, *, of="new", against="old", sides=SIDES, lengths=LENGTHS):
    return win_rate(judgments, sides, of=of, against=against, lengths=lengths)


def test_both_orders_make_one_item_and_a_conflict_a_tie():
    scores = [(1, 1), (0, 0), (1, 0), (0.5, 1), (0.5, 0.5)]
    found = measure([said(i, s, swap=bool(k)) for i, row in enumerate(scores) for k, s in enumerate(row)])
    assert found.rate.value == pytest.approx((1 + 0 + 0.5 + 0.75 + 0.5) / 5)
    assert (found.wins, found.ties, found.losses, found.conflicts) == (2, 2, 1, 1)
    assert (found.judgments, found.items, found.prompts, found.one_order) == (10, 5, 5, 0)
    assert (found.consistency.value, found.consistency.n) == (0.6, 5)


def test_unreadable_replies_are_counted_and_are_never_losses():
    """The seed scores a reply it cannot read as a loss: 6 of 10 instead of 6 of 8."""
    judgments = [said(i, s) for i, s in enumerate([1] * 6 + [0] * 2 + ["invalid"] * 2)]
    found = measure(judgments)
    assert found.rate == wilson(6, 8)
    assert (found.invalid, found.unjudged, found.losses, found.judgments) == (2, 2, 2, 10)
    assert "2 unreadable" in found.sentence
    assert "2 items without a verdict" in found.sentence


def test_one_readable_order_counts_and_is_counted():
    found = measure([said(0, 1), said(0, "invalid", swap=True), said(1, 0), said(1, 0, swap=True)])
    assert (found.rate.value, found.one_order, found.invalid, found.consistency.n) == (0.5, 1, 1, 1)


def test_skips_and_both_bad_favour_nobody():
    found = measure([said(0, 1), said(1, "skip"), said(2, "both_bad")])
    assert (found.rate.value, found.items, found.skipped, found.both_bad) == (1.0, 1, 1, 1)


def test_an_always_first_judge_says_nothing_in_both_orders():
    found = measure([said(i, 1 - k, swap=bool(k)) for i in range(50) for k in (0, 1)])
    assert (found.rate.value, found.ties, found.consistency.value) == (0.5, 50, 0.0)


@given(st.lists(st.tuples(*[st.sampled_from([0, 0.5, 1, "invalid"])] * 2), min_size=1, max_size=25))
def test_the_other_side_has_the_rest(scores):
    judgments = [said(i, s, swap=bool(k)) for i, row in enumerate(scores) for k, s in enumerate(row)]
    here, there = measure(judgments), measure(judgments, of="old", against="new")
    assert (here.wins, here.ties, here.invalid) == (there.losses, there.ties, there.invalid)
    if here.items:
        assert here.rate.value + there.rate.value == pytest.approx(1)
        assert here.length_controlled.value + there.length_controlled.value == pytest.approx(1)
    assert measure(judgments[::-1]).rate == pytest.approx(here.rate, nan_ok=True)


def test_probabilities_are_averaged_over_orders_before_anything_is_decided():
    judgments = [said(0, 1, probability=0.9), said(0, 0, swap=True, probability=0.6), said(1, 1)]
    found = measure(judgments)
    assert found.soft.value == pytest.approx((0.9 + 0.4) / 2)
    assert found.soft.n == 1
    assert found.rate.value == 0.75
    assert measure([said(0, 1)]).soft is None


def test_prompts_are_the_clusters():
    rng = np.random.default_rng(0)
    scores = np.repeat(rng.integers(0, 2, size=20), 5)
    found = measure([said(i, int(s), prompt=f"p{i // 5}") for i, s in enumerate(scores)])
    assert found.rate == pytest.approx(rate(scores, np.arange(100) // 5))
    assert (found.items, found.prompts) == (100, 20)
    assert found.rate.low < wilson(scores.sum(), 100).low


def test_consistency_is_each_judges_own():
    """Two judges that contradict each other but never themselves are consistent, and their item is a tie."""
    judgments = [said(0, s, swap=k, by=by) for by, s in (("human:a", 1), ("human:b", 0)) for k in (False, True)]
    found = measure(judgments)
    assert (found.rate.value, found.conflicts, found.judges) == (0.5, 1, ("human:a", "human:b"))
    assert (found.consistency.value, found.consistency.n) == (1.0, 2)


def test_an_order_asked_more_often_weighs_no_more():
    found = measure([said(0, 1, attempt=k) for k in range(3)] + [said(0, 0, swap=True)])
    assert found.rate.value == 0.5


def test_a_length_judge_loses_its_win_rate_at_equal_length():
    rng = np.random.default_rng(1)
    new, old = rng.integers(40, 120, size=400), rng.integers(20, 100, size=400)
    lengths = {f"new{i}": int(n) for i, n in enumerate(new)} | {f"old{i}": int(n) for i, n in enumerate(old)}
    likes = 1 / (1 + np.exp(-(new - old) / 25))
    found = measure([said(i, int(rng.random() < likes[i])) for i in range(400)], lengths=lengths)
    assert found.rate.low > 0.5
    assert found.length_controlled.low < 0.5 < found.length_controlled.high
    assert found.mean_length["new"] == pytest.approx(new.mean())


def test_a_revision_replaces_what_it_revises():
    old = said(0, 0, by="human:ann")
    found = measure([old, said(0, 1, by="human:ann", revises=old.id)])
    assert (found.rate.value, found.judgments) == (1.0, 1)


def test_an_unknown_order_counts_without_posing_as_one():
    found = measure([said(0, 1, order_known=False), said(1, 0, order_known=False)])
    assert (found.rate.value, found.one_order, found.consistency.n) == (0.5, 0, 0)


def test_other_sides_are_passed_over():
    sides = {**SIDES, "third": "third"}
    other = Judgment(prompt_id="p0", slots=("new0", "third"), verdict="slot", winner=0, by=JUDGE)
    assert measure([other, said(0, 0)], sides=sides).judgments == 1


def test_nothing_readable_is_nan_and_says_so():
    found = measure([said(0, "invalid"), said(1, "skip")])
    assert math.isnan(found.rate.value)
    assert found.rate.n == 0
    assert "no readable verdict in 2 judgments" in found.sentence


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"of": "nwe"}, "Did you mean 'new'"),
        ({"of": "old"}, "compares two sides"),
        ({"lengths": {"new0": 3}}, "no response old0"),
    ],
)
def test_mistakes_are_told(options, expected):
    with pytest.raises(InputError, match=expected):
        measure([said(0, 1)], **options)


def test_the_sentence_carries_every_number():
    judgments = [said(i, s, swap=bool(k)) for i, s in enumerate([1] * 60 + [0] * 40) for k in (0, 1)]
    sentence = measure(judgments).sentence
    for part in ("new beats old in 60.0 % (50.2 to 69.1) on 100 prompts", "60 wins, 0 ties, 40 losses", "equal length"):
        assert part in sentence
