"""Which rows a step gets: every row once an epoch, shares kept to the row, and the same again after a restart."""

from __future__ import annotations

import math
import time
from collections import Counter
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiebreak.records import InputError
from tiebreak.train.order import ORDERS, Facts, Order, shares

NAMES = [row.name for row in ORDERS]
LABELS = ["chat", "code", "maths"]


def facts(tokens: list[int], labels: list[str] | None = None, difficulty: list[float] | None = None) -> Facts:
    return Facts(tokens=tokens, labels=labels or ["all"] * len(tokens), difficulty=difficulty or [0.0] * len(tokens))


def made(rows: int) -> Facts:
    """Rows with many ties in each fact."""
    return facts(
        [1 + i * 7919 % 97 for i in range(rows)],
        [LABELS[min(i % 7, 2)] for i in range(rows)],
        [i * 31 % 11 / 10 for i in range(rows)],
    )


def flat(steps: list[list[int]]) -> list[int]:
    return list(chain.from_iterable(steps))


some_facts = st.lists(
    st.tuples(st.integers(0, 50), st.sampled_from(LABELS), st.sampled_from([0.0, 0.25, 1.0])), min_size=1, max_size=60
).map(lambda rows: Facts(tokens=[r[0] for r in rows], labels=[r[1] for r in rows], difficulty=[r[2] for r in rows]))
batches = st.integers(1, 70)
seeds = st.integers(0, 2**40)
epochs_seen = st.integers(0, 4)


@pytest.mark.parametrize("by", NAMES)
@given(some_facts, batches, seeds, epochs_seen)
@settings(max_examples=40, deadline=None)
def test_an_epoch_visits_every_row_once(by: str, rows: Facts, batch: int, seed: int, epoch: int) -> None:
    order = Order(rows, batch=batch, seed=seed, by=by)
    plan = order.plan(epoch)
    assert sorted(flat(plan)) == list(range(len(rows)))
    assert sorted(map(len, plan), reverse=True)[:-1] == [batch] * (len(plan) - 1)
    assert len(plan) == order.steps_per_epoch == math.ceil(len(rows) / batch)


@pytest.mark.parametrize("by", NAMES)
@given(some_facts, st.integers(1, 120), seeds, epochs_seen)
@settings(max_examples=40, deadline=None)
def test_a_token_budget_is_kept_and_drops_no_row(by: str, rows: Facts, most: int, seed: int, epoch: int) -> None:
    plan = Order(rows, batch=8, seed=seed, by=by, batch_tokens=most).plan(epoch)
    assert sorted(flat(plan)) == list(range(len(rows)))
    assert all(len(step) == 1 or sum(rows.tokens[i] for i in step) <= most for step in plan)
    if by != "similar_length":  # which shuffles full steps
        for step, following in pairwise(plan):
            assert sum(rows.tokens[i] for i in [*step, following[0]]) > most


@pytest.mark.parametrize("mixture", [None, {"chat": 1, "code": 2.5, "maths": 1}])
@pytest.mark.parametrize("batch_tokens", [None, 300])
@pytest.mark.parametrize("by", NAMES)
def test_a_restart_in_mid_epoch_gets_the_same_rows(by: str, batch_tokens: int | None, mixture: Any) -> None:
    def fresh() -> Order:
        return Order(made(100), batch=7, seed=3, by=by, batch_tokens=batch_tokens, mixture=mixture)

    whole = fresh()
    steps = whole.steps(2.5)
    through = [whole.rows(step) for step in range(steps)]
    assert [fresh().rows(step) for step in range(steps)] == through
    assert [whole.rows(step) for step in reversed(range(steps))] == through[::-1]


def test_what_a_caller_does_with_a_step_does_not_change_it() -> None:
    order = Order(made(10), batch=5, seed=0)
    before = order.rows(0)
    order.rows(0).clear()
    assert order.rows(0) == before


def test_the_random_order_of_a_seed_is_fixed_for_good() -> None:
    """Pinned, for a run that resumes after an upgrade has to get the rows it would have got."""
    order = Order(made(8), batch=3, seed=1)
    assert order.plan(0) == [[0, 2, 3], [1, 6, 4], [7, 5]]
    assert order.plan(1) == [[2, 3, 0], [5, 7, 4], [6, 1]]
    mixed = Order(made(8), batch=8, seed=1, mixture={"chat": 1, "code": 1, "maths": 2})
    assert mixed.rows(0) == [0, 7, 5, 6, 1, 4, 1, 2]


@pytest.mark.parametrize("by", ["random", "similar_length"])
def test_epochs_and_seeds_differ_where_chance_decides(by: str) -> None:
    order = Order(made(200), batch=7, seed=0, by=by)
    assert order.plan(0) != order.plan(1)
    assert order.plan(0) != Order(made(200), batch=7, seed=1, by=by).plan(0)


def test_the_first_place_goes_to_each_row_alike() -> None:
    firsts = Counter(Order(made(5), batch=5, seed=seed).rows(0)[0] for seed in range(1000))
    assert all(abs(firsts[row] - 200) < 5 * math.sqrt(1000 * 0.2 * 0.8) for row in range(5))


def test_given_keeps_the_rows_as_they_stand() -> None:
    assert Order(made(5), batch=2, seed=0, by="given").plan(3) == [[0, 1], [2, 3], [4]]


def test_lengths_sort_up_and_down_and_ties_stay_as_they_stand() -> None:
    rows = facts([5, 2, 9, 2, 9])
    assert flat(Order(rows, batch=2, seed=0, by="shortest_first").plan(0)) == [1, 3, 0, 2, 4]
    assert flat(Order(rows, batch=2, seed=0, by="longest_first").plan(0)) == [2, 4, 0, 1, 3]


@given(some_facts, seeds)
@settings(max_examples=40, deadline=None)
def test_a_curriculum_goes_from_easy_to_hard_the_same_every_epoch(rows: Facts, seed: int) -> None:
    order = Order(rows, batch=4, seed=seed, by="easiest_first")
    hard = [rows.difficulty[i] for i in flat(order.plan(0))]
    assert hard == sorted(hard)
    assert order.plan(0) == order.plan(3)


def test_a_curriculum_breaks_ties_by_the_seed() -> None:
    rows = facts([1] * 50)
    first, second = (Order(rows, batch=50, seed=seed, by="easiest_first").rows(0) for seed in (0, 1))
    assert first != second
    assert first != list(range(50))


@pytest.mark.parametrize("batch_tokens", [None, 16 * 500])
def test_similar_lengths_stand_in_one_step_and_the_steps_in_random_order(batch_tokens: int | None) -> None:
    tokens = [1 + i * 7919 % 1000 for i in range(4000)]
    order = Order(facts(tokens), batch=16, seed=0, by="similar_length", batch_tokens=batch_tokens)
    spread = [max(tokens[i] for i in step) - min(tokens[i] for i in step) for step in order.plan(0)]
    assert sum(spread) / len(spread) < 60  # a random step of 16 spans about 880
    means = [sum(tokens[i] for i in step) / len(step) for step in order.plan(0)]
    ups = sum(a < b for a, b in pairwise(means)) / len(means)
    assert 0.35 < ups < 0.65


def test_a_row_over_the_token_budget_is_a_step_of_its_own() -> None:
    order = Order(facts([3, 99, 4, 4, 3, 99]), batch=2, seed=0, by="given", batch_tokens=10)
    assert order.plan(0) == [[0], [1], [2, 3], [4], [5]]


@given(st.integers(1, 500), st.integers(1, 60), st.floats(0.01, 6))
@settings(max_examples=60, deadline=None)
def test_steps_of_rows_are_those_of_the_pace(rows: int, batch: int, epochs: float) -> None:
    assert Order(facts([1] * rows), batch=batch, seed=0).steps(epochs) == max(
        1, round(math.ceil(rows / batch) * epochs)
    )


def test_steps_and_places_follow_epochs_of_unlike_length() -> None:
    order = Order(made(60), batch=1, seed=5, batch_tokens=150)
    counts = [len(order.plan(epoch)) for epoch in range(6)]
    assert len(set(counts)) > 1
    assert order.steps_per_epoch == counts[0]
    assert order.steps(6) == sum(counts)
    assert order.steps(2.5) == round(counts[0] + counts[1] + counts[2] / 2)
    assert order.steps(1e-9) == 1
    places = [order.locate(step) for step in range(sum(counts))]
    assert places == [(epoch, place) for epoch, count in enumerate(counts) for place in range(count)]
    assert all(order.rows(step) == order.plan(epoch)[place] for step, (epoch, place) in enumerate(places))


@given(
    st.dictionaries(st.text(max_size=3), st.floats(1e-3, 1e3), min_size=1, max_size=8),
    st.integers(0, 1000),
)
def test_shares_add_up_and_are_off_by_less_than_a_row(weights: dict[str, float], rows: int) -> None:
    split = shares(weights, rows)
    assert sum(split.values()) == rows
    for name, weight in weights.items():
        assert abs(split[name] - rows * weight / sum(weights.values())) < 1 + 1e-9


def test_shares_go_by_largest_remainder_and_ties_by_name() -> None:
    assert shares({"a": 47, "b": 16, "c": 15.8, "d": 12, "e": 6.1, "f": 3.1}, 10) == dict(a=5, b=2, c=1, d=1, e=1, f=0)
    assert shares({"b": 1, "a": 1}, 3) == shares({"a": 1, "b": 1}, 3) == {"a": 2, "b": 1}
    assert shares({"a": 0.3, "b": 0.1}, 2) == {"a": 2, "b": 0}  # a tie as written, though not in binary


mixtures = st.lists(st.floats(0.2, 5), min_size=3, max_size=3)


@pytest.mark.parametrize("by", NAMES)
@given(mixtures, st.lists(st.integers(4, 15), min_size=3, max_size=3), seeds)
@settings(max_examples=15, deadline=None)
def test_a_mixture_keeps_its_shares_in_every_epoch(by: str, weights: list[float], sizes: list[int], seed: int) -> None:
    labels = [label for label, size in zip(LABELS, sizes, strict=True) for _ in range(size)]
    mixture = dict(zip(LABELS, [1 + w for w in weights], strict=True))
    rows = facts([1 + i % 5 for i in range(len(labels))], labels)
    order = Order(rows, batch=4, seed=seed, by=by, mixture=mixture)
    drawn: Counter[int] = Counter()
    for epoch in range(5):
        plan = order.plan(epoch)
        assert len(flat(plan)) == len(labels)
        assert Counter(labels[i] for i in flat(plan)) == shares(mixture, len(labels))
        drawn.update(flat(plan))
        for label in LABELS:
            times = [drawn[i] for i in range(len(labels)) if labels[i] == label]
            assert max(times) - min(times) <= 1


@given(mixtures, st.lists(st.integers(4, 9), min_size=3, max_size=3), seeds)
@settings(max_examples=30, deadline=None)
def test_a_random_mixture_uses_up_a_label_before_a_row_of_it_comes_again(
    weights: list[float], sizes: list[int], seed: int
) -> None:
    labels = [label for label, size in zip(LABELS, sizes, strict=True) for _ in range(size)]
    mixture = dict(zip(LABELS, [1 + w for w in weights], strict=True))
    order = Order(facts([1] * len(labels), labels), batch=5, seed=seed, mixture=mixture)
    run = [row for step in range(order.steps(6)) for row in order.rows(step)]
    for label in LABELS:
        own = [row for row in run if labels[row] == label]
        size = labels.count(label)
        for start in range(0, len(own) - size + 1, size):
            assert len(set(own[start : start + size])) == size


def test_a_mixture_keeps_the_order_of_what_it_draws() -> None:
    rows = made(50)
    order = Order(rows, batch=8, seed=0, by="longest_first", mixture={"chat": 3, "code": 1, "maths": 1})
    sizes = [rows.tokens[i] for i in flat(order.plan(2))]
    assert sizes == sorted(sizes, reverse=True)


def test_a_mixture_does_not_depend_on_the_order_of_its_keys() -> None:
    mixture = {"chat": 1, "code": 2, "maths": 4}
    turned = dict(reversed(mixture.items()))
    plans = [Order(made(50), batch=8, seed=0, mixture=given).plan(1) for given in (mixture, turned)]
    assert plans[0] == plans[1]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"mixture": {"chat": 1, "cod": 1, "maths": 1}}, r"names 'cod', which no row has.*Did you mean 'code'\?"),
        ({"mixture": {"chat": 1, "code": 0, "maths": 1}}, r"gives 'code' the weight 0;"),
        ({"mixture": {"chat": 1, "code": -1, "maths": 1}}, r"gives 'code' the weight -1;"),
        ({"mixture": {"chat": 1, "code": math.nan, "maths": 1}}, r"gives 'code' the weight nan;"),
        ({"mixture": {"chat": 1, "code": math.inf, "maths": 1}}, r"gives 'code' the weight inf;"),
        ({"mixture": {"chat": 1, "maths": 1}}, r"no weight for 'code', which rows have; give it one or drop its rows"),
        ({"mixture": {"chat": 1, "code": 1e-6, "maths": 1}}, r"gives 'code' none of the 20 rows of an epoch"),
        ({"by": "easyest_first"}, r"no order called 'easyest_first'.*Did you mean 'easiest_first'\?"),
        ({"batch": 0}, r"batch is 0; it has to be at least 1"),
        ({"batch_tokens": 0}, r"batch_tokens is 0; it has to be at least 1"),
    ],
)
def test_what_does_not_fit_is_refused_at_the_door(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Order(made(20), **{"batch": 4, "seed": 0, **given})


@pytest.mark.parametrize("epochs", [0, -1, math.nan, math.inf])
def test_epochs_that_are_no_number_above_zero_are_refused(epochs: float) -> None:
    with pytest.raises(InputError, match="more than 0"):
        Order(made(5), batch=2, seed=0).steps(epochs)


def test_a_step_before_the_first_is_refused() -> None:
    with pytest.raises(IndexError, match="no step -1"):
        Order(made(5), batch=2, seed=0).rows(-1)


def test_facts_that_do_not_belong_to_rows_are_refused() -> None:
    with pytest.raises(InputError, match="There are no rows"):
        Order(facts([]), batch=2, seed=0)
    with pytest.raises(InputError, match="There are 2 rows and 1 labels"):
        Facts(tokens=[1, 2], labels=["a"], difficulty=[0, 0])
    with pytest.raises(InputError, match="difficulty of row 1 is not a number"):
        Facts(tokens=[1, 2], labels=["a", "a"], difficulty=[0, math.nan])


OWN = """
def staged(facts, *, cut, batch, seed, epoch):
    hard = [i for i, d in enumerate(facts.difficulty) if d > 0.5]
    easy = [i for i, d in enumerate(facts.difficulty) if d <= 0.5]
    return cut(easy + hard) if epoch == 0 else cut(hard + easy)

def forgetful(facts, *, cut, batch, seed, epoch):
    return cut(range(len(facts) - 1))

def repeating(facts, *, cut, batch, seed, epoch):
    return cut([0, *range(len(facts) - 1)])

def hollow(facts, *, cut, batch, seed, epoch):
    return [*cut(range(len(facts))), []]

def greedy(facts, *, cut, batch, seed, epoch):
    return [list(range(len(facts)))]
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_orders.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("own")
def test_a_staged_curriculum_comes_as_a_function() -> None:
    rows = facts([1] * 4, difficulty=[0.9, 0.1, 0.8, 0.2])
    order = Order(rows, batch=2, seed=0, by="own_orders:staged")
    assert [order.plan(0), order.plan(1)] == [[[1, 3], [0, 2]], [[0, 2], [1, 3]]]


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("forgetful", "names 9, 9 of them different"),
        ("repeating", "names 10, 9 of them different"),
        ("hollow", "a step without rows"),
        ("greedy", r"makes 1 steps of up to 10 rows; expected 3 of up to 4"),
    ],
)
def test_an_own_order_that_loses_rows_is_refused(name: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Order(made(10), batch=4, seed=0, by=f"own_orders:{name}")


@pytest.mark.slow
def test_an_epoch_of_a_million_rows_is_planned_in_seconds() -> None:
    rows = made(1_000_000)
    mixture = {"chat": 1, "code": 2, "maths": 1}
    started = time.process_time()
    Order(rows, batch=32, seed=0, by="similar_length", mixture=mixture, batch_tokens=20_000)
    assert time.process_time() - started < 20  # about 2 on one core; the room is for slow machines
