"""Judgments become pairs: averaged before they are decided, with every item accounted for."""

from __future__ import annotations

import inspect
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.curate.judgments import A, B, said
from tiebreak.curate.table import STEPS, Rows, curate, settle
from tiebreak.records import InputError, Judgment, Pair


def one(*judgments: Judgment, steps: list[Any] | None = None) -> Pair:
    (pair,), *_ = curate(judgments, steps or ["soft_label"])
    return pair


def test_probabilities_are_averaged_and_then_decided() -> None:
    """Trap 29: averaging decisions would call 0.9 against 0.4 a tie."""
    pair = one(said(0.9), said(0.6, slots=(B, A)))
    assert (pair.chosen_id, pair.rejected_id) == (A, B)
    assert pair.p == pytest.approx(0.65)
    assert pair.conflict
    assert pair.n == 2


def test_a_position_bias_cancels_to_a_tie_that_favours_nobody() -> None:
    """Seed defect A8: ties went to whatever was called a."""
    for low, high in ((A, B), ("z", "y")):
        pair = one(said(0.8, slots=(low, high)), said(0.8, slots=(high, low)))
        assert pair.p == 0.5
        assert [pair.chosen_id, pair.rejected_id] == sorted((low, high))
    pairs, funnel, *_ = curate([said(0.8), said(0.8, slots=(B, A))], ["soft_label", {"drop": "ties"}])
    assert pairs == []
    assert funnel[1].dropped == {"ties": 1}


def test_what_nobody_could_read_is_dropped_and_counted_never_a_side() -> None:
    """Seed defect A8: unanswered rows were trained as wins of a."""
    silent = [said(verdict="invalid"), said(verdict="skip", attempt=1), said(verdict="both_bad", attempt=2)]
    for step in ("soft_label", "plurality"):
        pairs, (stage,), *_ = curate(silent, [step])
        assert pairs == []
        assert stage.dropped == {"no readable verdict": 1}


def test_a_pair_names_the_judgments_it_rests_on_and_no_others() -> None:
    told, silent = said(0.9), said(verdict="invalid", attempt=1)
    for step in ("soft_label", "plurality"):
        pair = one(told, silent, steps=[step])
        assert pair.judgment_ids == (told.id,)
        assert pair.n == 1


def test_orders_weigh_the_same_however_often_each_was_asked() -> None:
    often = [said(0.9, attempt=i) for i in range(3)]
    assert one(*often, said(0.5, slots=(B, A))).p == pytest.approx((0.9 + 0.5) / 2)


def test_logits_cancel_a_slot_bias_that_is_additive_in_them() -> None:
    biased = [said(0.9), said(0.5, slots=(B, A))]  # content +1.1, bias +1.1 in log-odds
    assert one(*biased, steps=[{"soft_label": "logit"}]).p == pytest.approx(0.75, abs=1e-9)
    assert one(*biased).p == pytest.approx(0.7)
    with pytest.raises(InputError, match="no logit to average"):
        one(said(winner=0), steps=[{"soft_label": "logit"}])


def test_the_clamp_bounds_the_average_and_not_its_parts() -> None:
    clamped = {"soft_label": {"clamp": [0.4, 0.6]}}
    assert one(said(0.99), said(0.01, slots=(B, A)), steps=[clamped]).p == 0.6
    assert one(said(0.99), said(0.5, slots=(B, A)), steps=[clamped]).p == 0.6
    assert one(said(0.55), steps=[clamped]).p == 0.55
    low = one(said(0.01), steps=[clamped])
    assert (low.chosen_id, low.p) == (B, 0.6)


@pytest.mark.parametrize("clamp", [0.4, [0.4], [0.3, 0.6], ["a", "b"], "ab", [0.6, 0.4]])
def test_a_clamp_that_is_none_is_refused(clamp: Any) -> None:
    with pytest.raises(InputError, match="clamp"):
        one(said(0.9), steps=[{"soft_label": {"clamp": clamp}}])


def test_votes_and_means_can_disagree() -> None:
    """Two votes that are hardly sure against one that is."""
    votes = [said(0.55, attempt=0), said(0.55, attempt=1), said(0.01, attempt=2)]
    assert one(*votes, steps=["plurality"]).chosen_id == A
    mean = one(*votes)
    assert mean.chosen_id == B
    assert mean.p == pytest.approx(1 - (0.55 + 0.55 + 0.01) / 3)


def test_a_plurality_of_ties_or_of_nobody_is_a_tie() -> None:
    assert one(said(0.9), said(0.9, slots=(B, A)), steps=["plurality"]).p == 0.5
    assert one(said(0.5), said(0.5, attempt=1), said(0.9, attempt=2), steps=["plurality"]).p == 0.5
    assert one(said(0.9), said(0.5, attempt=1), said(0.8, attempt=2), steps=["plurality"]).p == 1.0
    assert not one(said(0.9), said(0.5, attempt=1), said(0.8, attempt=2), steps=["plurality"]).conflict


def test_a_strength_counts_against_the_side_it_was_not_given_for() -> None:
    """Trap 19: the sign follows the vote."""
    agree = one(said(winner=0, strength=0.8), said(winner=1, slots=(B, A), strength=0.4))
    assert agree.margin == pytest.approx(0.6)
    votes = [
        said(winner=0, strength=0.8),
        said(winner=0, strength=0.2, attempt=1),
        said(winner=1, strength=0.4, attempt=2),
    ]
    assert one(*votes).margin == pytest.approx((0.8 + 0.2 - 0.4) / 3)
    assert one(said(0.9)).margin is None


def test_a_revised_judgment_gives_way() -> None:
    first = said(winner=0)
    second = said(winner=1, revises=first.id, attempt=1)
    pair = one(first, second)
    assert (pair.chosen_id, pair.n) == (B, 1)
    third = said(verdict="skip", revises=second.id, attempt=2)
    assert curate([first, second, third], ["soft_label"])[0] == []


def test_a_judgment_of_three_answers_is_no_pair() -> None:
    three = Judgment(prompt_id="p", slots=(A, B, "c"), verdict="slot", winner=0, by="human:x")
    pairs, (stage,), *_ = curate([three], ["soft_label"])
    assert pairs == []
    assert stage.dropped == {"not a pair of responses": 1}


def items(count: int) -> list[Judgment]:
    return [said(0.5 + 0.04 * (i % 13), prompt_id=f"p{i}", slots=(f"x{i}", f"y{i}")) for i in range(count)]


def test_the_first_pairs_are_the_same_ones_in_any_order() -> None:
    there, *_ = curate(items(20), ["soft_label", {"first": 5}])
    back, *_ = curate(items(20)[::-1], ["soft_label", {"first": 5}])
    assert there == back
    assert len(there) == 5


written = st.sampled_from(
    [
        {"drop": "ties"},
        {"drop": ["ties", "conflicts"]},
        {"confident": 0.7},
        {"first": 3},
        "drop",
        {"confident": {"p": 0.55}},
        "best_worst",
    ]
)
verdict = st.sampled_from(["slot", "tie", "invalid", "skip", "both_bad"])
judged = st.lists(st.tuples(st.integers(0, 6), st.booleans(), st.floats(0, 1), verdict), min_size=1, max_size=30)


@settings(max_examples=80, deadline=None)
@given(judged, st.sampled_from(["soft_label", "plurality"]), st.lists(written, max_size=3))
def test_every_item_is_a_pair_or_counted_as_dropped(rows: list[Any], first: str, later: list[Any]) -> None:
    judgments = []
    for i, (item, flipped, p, what) in enumerate(rows):
        slots = (f"y{item}", f"x{item}") if flipped else (f"x{item}", f"y{item}")
        known = {"winner": 0} if what == "slot" else {}
        judgments.append(
            Judgment(prompt_id=f"p{item}", slots=slots, verdict=what, by="rule:x", attempt=i, probability=p, **known)
        )
    pairs, funnel, *_ = curate(judgments, [first, *later])
    assert funnel[0].rows_in == len({row[0] for row in rows})
    assert [stage.unit for stage in funnel] == ["items", *["pairs"] * len(later)]
    for stage in funnel:
        assert stage.rows_in == stage.rows_out + sum(stage.dropped.values())
        assert all(stage.dropped.values())
    for before, after in pairwise(funnel):
        assert after.rows_in == before.rows_out
    assert len(pairs) == funnel[-1].rows_out
    assert all(0.5 <= pair.p <= 1 for pair in pairs)


@pytest.mark.parametrize("row", STEPS, ids=lambda row: row.name)
def test_the_knobs_of_a_row_are_its_functions_keywords(row: Any) -> None:
    named = [p for p in inspect.signature(row.load()).parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert dict(row.knobs) == {p.name: p.default for p in named}


def test_a_step_is_written_in_three_ways() -> None:
    assert settle("soft_label") == ("soft_label", {"average": "probability", "clamp": None, "by": None})
    assert settle({"drop": "conflicts"}) == ("drop", {"what": "conflicts"})
    assert settle({"confident": {"p": 0.8}}) == ("confident", {"p": 0.8})
    assert settle({"best_worst": None}) == ("best_worst", {})


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        (["soft_lable"], "'soft_lable'.*Did you mean 'soft_label'"),
        ([{"soft_lable": "logit"}], "'soft_lable'.*Did you mean 'soft_label'"),
        (["drop"], "no pairs yet; begin with soft_label"),
        (["best_worst"], "no pairs yet; begin with soft_label"),
        (["soft_label", {"best_worst": 2}], "has no knobs"),
        ([], "no steps"),
        (["soft_label", "plurality"], "'plurality' derives rows.*first"),
        (["soft_label", {"drop": "tie"}], "'tie'.*Did you mean 'ties'"),
        (["soft_label", {"drop": 3}], "drop is given 3; expected ties, conflicts or same_text, or a list of them"),
        (["soft_label", {"drop": []}], "drop is given \\[\\]"),
        (
            ["soft_label", {"drop": [["ties"]]}],
            "drop does not know \\['ties'\\]; expected ties, conflicts or same_text",
        ),
        (["soft_label", "process"], "graded answers; put unpair, ranked_list or attributes before it"),
        (["nowhere:step"], "^The curate step 'nowhere:step' cannot be loaded: there is no module 'nowhere'"),
        ([{"attributes": ["a", "b"]}], "^attributes reads ratings, and no judgment has any"),
        ([{"attributes": [1]}], "aspects = \\[1\\]; expected the name of an aspect, or a list of them"),
        (["soft_label", {"unpair": 1}], "curate: unpair has soft = 1; expected true or false"),
        (["soft_label", {"drop": {"waht": "ties"}}], "'waht'.*Did you mean 'what'"),
        ([{"soft_label": "median"}], "'median'; expected probability or logit"),
        ([{"plurality": 3}], "by = 3; expected the name of a judge"),
        (["soft_label", {"confident": "much"}], "'much'; expected a number from 0.5 to 1"),
        (["soft_label", {"first": 0}], "n = 0"),
        ([{"soft_label": "logit", "drop": "ties"}], "one name with its knobs"),
        ([["soft_label"]], "expected a name"),
    ],
)
def test_a_list_of_steps_that_cannot_run_is_refused_in_a_sentence(steps: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        curate([said(0.9)], steps)


def test_no_judgments_is_said() -> None:
    with pytest.raises(InputError, match="no judgments"):
        curate([], ["soft_label"])


def test_a_step_of_ones_own_has_its_keywords_as_knobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_step.py").write_text(
        "from tiebreak.curate.table import Step\n"
        "def every(rows, *, nth=2):\n"
        "    kept = list(rows.rows)[::nth]\n"
        "    return Step(kept, {'not the nth': len(rows.rows) - len(kept)})\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    pairs, funnel, *_ = curate(items(9), ["soft_label", {"own_step:every": 3}])
    assert len(pairs) == 3
    assert funnel[1].dropped == {"not the nth": 6}
    with pytest.raises(InputError, match=r"'nht'.*Did you mean 'nth'"):
        settle({"own_step:every": {"nht": 3}})


def test_a_step_sees_judgments_and_rows() -> None:
    rows = Rows({"i": [said(0.9)]})
    assert rows.rows is None
    (pair,) = STEPS["soft_label"].load()(rows).rows
    assert pair.p == pytest.approx(0.9)
