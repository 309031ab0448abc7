"""Judges against known answers, against themselves and against each other, on ledgers small enough to count."""

from __future__ import annotations

import math

import pytest

from tiebreak.evaluate.judges import (
    Answers,
    accuracy,
    as_markdown,
    judge_table,
    judges_of,
    kappa,
    known_answers,
    leave_one_out,
)
from tiebreak.records import InputError, Judgment, Prompt, Response, Verdict
from tiebreak.stats.agreement import cohen_kappa
from tiebreak.stats.intervals import rate, wilson

JUDGE, GOLD = "model:judge", "human:gold"


def said(n: int, word: str, *, by: str = JUDGE, swapped: bool = False, **more: object) -> Judgment:
    """What ``by`` says of item n, whose better answer is ``good{n}``: ``good``, ``poor`` or a verdict's word."""
    slots = (f"poor{n}", f"good{n}") if swapped else (f"good{n}", f"poor{n}")
    side = f"{word}{n}"
    verdict: Verdict = "slot" if side in slots else word  # type: ignore[assignment]
    winner = slots.index(side) if side in slots else None
    return Judgment(prompt_id=f"p{n}", slots=slots, verdict=verdict, winner=winner, by=by, **more)  # type: ignore[arg-type]


def both(n: int, one: str, two: str, **more: object) -> list[Judgment]:
    return [said(n, one, **more), said(n, two, swapped=True, **more)]


def truth(n: int) -> Answers:
    return known_answers(said(i, "good", by=GOLD, order_known=False) for i in range(n))


def test_the_known_answer_is_what_is_said_most_often():
    votes = [said(0, word, by=f"human:{who}") for who, word in (("a", "good"), ("b", "good"), ("c", "poor"))]
    votes += [said(1, word, by=f"human:{who}") for who, word in (("a", "tie"), ("b", "tie"), ("c", "good"))]
    votes += [said(2, word, by=f"human:{who}") for who, word in (("a", "good"), ("b", "poor"), ("c", "tie"))]
    votes += [said(3, "skip"), said(3, "invalid"), said(4, "both_bad")]
    found = known_answers(votes)
    assert found.labels == {votes[0].item: "good0", votes[3].item: "tie", said(4, "tie").item: "both_bad"}
    assert found.undecided == 1


def test_accuracy_is_over_judgments_with_the_prompt_as_cluster():
    given = both(0, "good", "good") + both(1, "good", "poor") + both(2, "poor", "poor") + both(3, "good", "good")
    found = accuracy(given, truth(4))
    assert found.rate == rate([1, 1, 1, 0, 0, 0, 1, 1], [0, 0, 1, 1, 2, 2, 3, 3])
    assert found.rate.value == 5 / 8
    assert found.rate.n == 8


def test_one_order_gives_wilsons_interval():
    given = [said(n, "good" if n < 7 else "poor") for n in range(10)]
    assert accuracy(given, truth(10)).rate == wilson(7, 10)


@pytest.mark.parametrize(("unanswered", "value", "n"), [("wrong", 0.3, 5), ("half", 0.6, 5), ("left_out", 0.75, 2)])
def test_what_is_no_answer_is_counted_as_told_and_said(unanswered, value, n):
    given = [said(i, word) for i, word in enumerate(("good", "tie", "invalid", "skip", "both_bad"))]
    found = accuracy(given, truth(5), unanswered=unanswered)
    assert (found.rate.value, found.rate.n) == (pytest.approx(value, abs=1e-15), n)
    assert (found.ties, found.invalid, found.skipped, found.both_bad) == (1, 1, 1, 1)
    assert "1 ties count half and 1 unreadable, 1 skipped and 1 both-bad ones" in found.sentence


def test_ties_are_half_or_a_class_of_their_own():
    answers = known_answers(
        [said(0, "good"), said(1, "tie"), said(2, "tie"), said(3, "both_bad"), said(4, "good"), said(5, "good")]
    )
    given = [said(i, word) for i, word in enumerate(("good", "tie", "good", "both_bad", "tie", "both_bad"))]
    half = accuracy(given, answers)
    assert (half.rate.value, half.rate.n, half.even) == (1.5 / 3, 3, 3)
    assert "not among them are 3 on items that are even" in half.sentence
    whole = accuracy(given, answers, ties="class")
    assert (whole.rate.value, whole.rate.n, whole.even, whole.ties, whole.both_bad) == (3 / 6, 6, 0, 1, 0)
    assert "1 ties count as wrong" in whole.sentence


def test_items_without_an_answer_and_replies_made_up_for_are_left_out():
    given = [said(0, "good"), said(9, "good"), said(1, "invalid"), said(1, "good", attempt=1)]
    given += [said(2, "invalid"), said(2, "good", swapped=True)]
    found = accuracy(given, truth(3))
    assert (found.rate.value, found.rate.n) == (3 / 4, 4)
    assert (found.unknown, found.retried, found.invalid) == (1, 1, 1)


def test_a_revised_judgment_gives_way():
    wrong = said(0, "poor")
    assert accuracy([wrong, said(0, "good", revises=wrong.id)], truth(1)).rate.value == 1.0


def test_an_answer_out_of_three_is_right_or_wrong():
    given = Judgment(prompt_id="p", slots=("a", "b", "c"), verdict="slot", winner=2, by=JUDGE)
    assert accuracy([given], Answers({given.item: "c"}, 0)).rate.value == 1.0
    assert accuracy([given], Answers({given.item: "a"}, 0)).rate.value == 0.0


def test_a_wrong_word_is_told():
    with pytest.raises(InputError, match="ties is 'whole' and unanswered 'wrong'; expected 'half' or 'class'"):
        accuracy([said(0, "good")], truth(1), ties="whole")  # type: ignore[arg-type]


def test_the_table_has_a_row_for_each_judge_and_rubric():
    given = []
    for n in range(8):
        given += both(n, "good", "poor", by="model:first")  # whatever is shown first
        given += both(n, "good", "good", by="model:right")
        given += both(n, "poor", "poor" if n else "invalid", by="model:right", rubric="opposite")
    rows = judge_table(given, truth(8))
    assert [row.judge for row in rows] == ["model:right (rubric none)", "model:first", "model:right (rubric opposite)"]
    best, slot, worst = rows
    assert (best.accuracy and best.accuracy.rate.value, best.position.consistent.value) == (1.0, 1.0)
    assert (slot.accuracy and slot.accuracy.rate.value, slot.position.primacy.value) == (0.5, 1.0)
    assert (slot.position.consistent.value, slot.position.recency.value, slot.position.p) == (
        0,
        0,
        pytest.approx(2 / 2**8),
    )
    assert (worst.accuracy and worst.accuracy.rate.value, worst.position.n, worst.position.unreadable) == (0.0, 7, 1)
    assert worst.invalid.value == 1 / 16
    assert (worst.judgments, worst.items) == (16, 8)
    assert "the first slot both times for 100.0 % (67.6 to 100.0)" in slot.sentence


def test_without_answers_the_most_consistent_judge_comes_first():
    given = both(0, "good", "poor", by="model:a") + both(0, "good", "good", by="model:b") + [said(0, "good", by="m:c")]
    rows = judge_table(given)
    assert [row.judge for row in rows] == ["model:b", "model:a", "m:c"]
    assert rows[0].accuracy is None
    assert rows[2].sentence.endswith("no item was judged readably in both orders.")
    lines = as_markdown(rows).splitlines()
    assert len(lines) == 5
    assert lines[2].startswith("| model:b | - | - | 0.0 (no interval) | 100.0 (20.7 to 100.0) | 0.0 (0.0 to 79.3) |")
    assert lines[4] == "| m:c | - | - | 0.0 (0.0 to 79.3) | - | - | - | 0 |"


def test_a_ledger_is_measured_against_a_name_or_a_kind(ledger):
    for n in range(4):
        prompt = Prompt(text=f"question {n}")
        good, poor = (Response(prompt_id=prompt.id, text=text) for text in ("good", "poor"))
        ledger.add_prompts([prompt])
        ledger.add_responses([good, poor])
        slots = (good.id, poor.id)
        winners = {"human:ann": 0, "human:bob": 0, "human:cat": n % 2, JUDGE: int(n == 3)}
        ledger.add_judgments(
            Judgment(prompt_id=prompt.id, slots=slots, verdict="slot", winner=winner, by=by)
            for by, winner in winners.items()
        )
    (row,) = judges_of(ledger, "human")
    assert (row.judge, row.accuracy and row.accuracy.rate.value) == (JUDGE, 0.75)
    rows = judges_of(ledger, ["human:ann", "human:bob"])
    assert {r.judge: r.accuracy and r.accuracy.rate.value for r in rows} == {JUDGE: 0.75, "human:cat": 0.5}
    assert [r.accuracy for r in judges_of(ledger)] == [None] * 4
    with pytest.raises(InputError, match=r"Nobody called 'human:an' judged anything.*Did you mean 'human:ann'"):
        judges_of(ledger, "human:an")
    with pytest.raises(InputError, match="no judgments to measure"):
        judges_of(ledger, ["human", "model"])


def test_each_person_is_measured_by_the_others():
    words = {"a": "good good good good", "b": "good good good poor", "c": "good good poor poor"}
    given = [said(n, word, by=f"human:{who}") for who, row in words.items() for n, word in enumerate(row.split())]
    found = leave_one_out(given)
    assert {name: (a.rate.value, a.rate.n, a.unknown) for name, a in found.items()} == {
        "human:a": (2 / 3, 3, 1),  # b and c agree on three items, on the last one against a
        "human:b": (1.0, 2, 2),
        "human:c": (2 / 3, 3, 1),
    }
    with pytest.raises(InputError, match="2 judges are not enough"):
        leave_one_out([said(0, "good", by="human:a"), said(0, "good", by="human:b")])


def test_kappa_is_that_of_the_votes():
    table = {("good", "good"): 20, ("good", "poor"): 5, ("poor", "good"): 10, ("poor", "poor"): 15}
    pairs = [pair for pair, times in table.items() for _ in range(times)]
    given = [said(n, word, by=by) for n, pair in enumerate(pairs) for by, word in zip("ab", pair, strict=True)]
    found = kappa(given, "a", "b", sides="shown")
    assert found.kappa.value == pytest.approx(0.4, abs=1e-12)  # (0.7 - 0.5) / (1 - 0.5), Cohen's textbook table
    assert found.same == wilson(35, 50)
    assert found.kappa.low < 0.4 < found.kappa.high
    assert found.kappa.n == 50
    balanced = kappa(given, "a", "b").kappa.value
    assert balanced == pytest.approx((0.7 - 0.5) / (1 - 0.5), abs=1e-12)  # two sides, seen from both: chance is 1/2


def test_kappa_takes_a_tie_for_a_class_and_an_order_conflict_for_a_tie():
    given = both(0, "good", "poor", by="a") + both(1, "good", "good", by="a") + both(2, "tie", "tie", by="a")
    given += [said(0, "tie", by="b"), said(1, "good", by="b"), said(2, "poor", by="b"), said(3, "good", by="b")]
    given += [said(4, "invalid", by="a"), said(4, "good", by="b")]
    found = kappa(given, "a", "b", sides="shown")
    assert (found.same.value, found.kappa.n) == (2 / 3, 3)
    assert found.kappa.value == cohen_kappa(["tie", "good", "tie"], ["tie", "good", "poor"], draws=0).value


def test_kappa_from_both_sides_does_not_care_which_answer_stands_first():
    words = ("good good", "good poor", "tie good", "poor poor", "good good", "tie tie", "poor good")
    plain = [said(n, w, by=by) for n, ws in enumerate(words) for by, w in zip("ab", ws.split(), strict=True)]
    mixed = [
        said(n, w, by=by, swapped=bool(n % 2))
        for n, ws in enumerate(words)
        for by, w in zip("ab", ws.split(), strict=True)
    ]
    assert kappa(plain, "a", "b").kappa == kappa(mixed, "a", "b").kappa
    assert kappa(plain, "a", "b", sides="shown").kappa.value != kappa(mixed, "a", "b", sides="shown").kappa.value


def test_kappa_of_a_file_that_puts_the_chosen_one_first_needs_both_sides():
    chosen = [said(n, "good", by="a", order_known=False) for n in range(12)]
    given = chosen + [said(n, "good" if n < 9 else "poor", by="b") for n in range(12)]
    assert kappa(given, "a", "b", sides="shown").kappa.value == 0.0
    assert kappa(given, "a", "b").kappa.value == pytest.approx(0.5, abs=1e-12)


def test_two_judges_who_always_say_tie_agree_on_nothing_beyond_chance():
    found = kappa([said(n, "tie", by=by) for n in range(4) for by in "ab"], "a", "b")
    assert math.isnan(found.kappa.value)
    assert found.same.value == 1.0


def test_kappa_names_a_judge_that_is_not_there():
    with pytest.raises(InputError, match=r"no judge 'model:judg' among these.*Did you mean 'model:judge'"):
        kappa([said(0, "good")], "model:judg", JUDGE)
    with pytest.raises(InputError, match="sides is 'left'; expected 'balanced' or 'shown'"):
        kappa([said(0, "good")], JUDGE, JUDGE, sides="left")  # type: ignore[arg-type]
