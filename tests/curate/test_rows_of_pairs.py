"""Every step by name: its knobs are its function's, no order of judgments matters, and no row is lost uncounted."""

from __future__ import annotations

import inspect
from collections import Counter
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.curate.judgments import judged, said
from tiebreak.curate.lists import ranked_list
from tiebreak.curate.order import bands
from tiebreak.curate.pairs import soft_label
from tiebreak.curate.rows_of_pairs import BY_STRENGTH, FROM_JUDGMENTS, ROWS, THAT_LEAVE_OUT
from tiebreak.curate.strength import strength
from tiebreak.curate.table import Rows, Texts
from tiebreak.records import Graded, Judgment, Response
from tiebreak.registry import Row

ANSWERS = ("a", "bb", "ccc", "dd")
"""The answers of each prompt and also their texts; the same letters stand for other answers to another prompt."""
GIVEN: dict[str, dict[str, Any]] = {"agrees": {"by": "model:x"}}
"""Knobs without a default that would do."""
LISTS = ("all_pairs", "penalise_length")
"""Steps that take lists alone; the others that pair take pairs too."""
PRIMARY = [row for row in FROM_JUDGMENTS if row.name not in ("ranked_list", "attributes")]
"""First steps that give one row for an item."""

verdicts = st.sampled_from(["slot", "slot", "slot", "tie", "both_bad", "skip", "invalid"])
looks = st.lists(
    st.tuples(
        st.sampled_from("pqr"),
        st.permutations(ANSWERS),
        verdicts,
        st.integers(1, 19),
        st.sampled_from(["model:x", "human:ann"]),
        st.lists(st.one_of(st.none(), st.integers(1, 5)), min_size=4, max_size=4),
    ),
    min_size=1,
    max_size=25,
)


def judgments_of(looked: list[Any]) -> list[Judgment]:
    """Judgments with all that any step reads, after one that is fine so that every step has something to go by."""
    fine = ("p", ANSWERS, "slot", 15, "model:x", [4, 2, 5, 1])
    found = []
    for number, (prompt, answers, verdict, twentieths, by, ratings) in enumerate([fine, *looked]):
        more = {} if verdict == "slot" else {"verdict": verdict}
        found.append(
            said(
                {"slot": twentieths / 20, "tie": 0.5}.get(verdict),
                slots=tuple(f"{prompt}:{answer}" for answer in answers[:2]),
                prompt_id=prompt,
                by=by,
                attempt=number,
                ratings={"m": ratings[:2], "n": ratings[2:]},
                fields={"scores": [twentieths - 10.0, 0.0]},
                **more,
            )
        )
    return found


def texts() -> Texts:
    found = Texts()
    found.add([Response(prompt_id=p, text=text, id=f"{p}:{text}") for p in "pqr" for text in ANSWERS])
    return found


def before(row: Row, judgments: list[Judgment]) -> Rows:
    """What the step of ``row`` finds: judgments, pairs with margins and bands, or lists."""
    rows = Rows(judged(*judgments).items, None, texts())
    if row in FROM_JUDGMENTS:
        return rows
    if row.name in LISTS:
        return Rows(rows.items, ranked_list(rows).rows, rows.texts)
    for step in (soft_label, strength, bands):
        rows = Rows(rows.items, step(rows).rows, rows.texts)
    return rows


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(looks, st.randoms(use_true_random=False))
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_no_order_of_judgments_changes_what_a_step_makes(row: Row, looked: list[Any], chance: Any) -> None:
    judgments = judgments_of(looked)
    turned = judgments[:]
    chance.shuffle(turned)
    step = partial(row.load(), **GIVEN.get(row.name, {}))
    here, there = (step(before(row, one)) for one in (judgments, turned))
    assert sorted(map(repr, here.rows)) == sorted(map(repr, there.rows))
    assert Counter(dict(here.dropped)) == Counter(dict(there.dropped))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(looks)
@pytest.mark.parametrize("row", [*PRIMARY, *THAT_LEAVE_OUT, *BY_STRENGTH], ids=lambda row: row.name)
def test_what_goes_in_comes_out_or_is_counted(row: Row, looked: list[Any]) -> None:
    rows = before(row, judgments_of(looked))
    done = row.load()(rows, **GIVEN.get(row.name, {}))
    into = len(rows.items) if rows.rows is None else len(rows.rows)
    assert into == len(done.rows) + sum(done.dropped.values())
    assert all(count >= 0 for count in done.dropped.values())


@settings(max_examples=25, deadline=None)
@given(looks)
def test_two_answers_come_of_each_pair_that_is_no_tie(looked: list[Any]) -> None:
    row = next(row for row in ROWS if row.name == "unpair")
    rows = before(row, judgments_of(looked))
    done = row.load()(rows)
    assert len(done.rows) == 2 * (len(rows.rows or ()) - done.dropped["ties"])
    assert all(isinstance(one, Graded) and len(one.response_ids) == 1 for one in done.rows)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_knobs_of_a_row_are_its_functions_keywords(row: Row) -> None:
    named = [p for p in inspect.signature(row.load()).parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert dict(row.knobs or {}) == {p.name: p.default for p in named}


def test_names_are_unlike() -> None:
    assert max(Counter(row.name for row in ROWS).values()) == 1
