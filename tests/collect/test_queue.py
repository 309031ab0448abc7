"""The queue: order, slots, votes, undo and resume, with the ledger as its only memory."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.collect.made import ANN, BOB, RUBRIC, hold, pair
from tiebreak.collect.queue import Queue, Said, person, rows, rubric_of
from tiebreak.records import InputError, Judgment
from tiebreak.store import Ledger

FIRST, TIE, SKIP, BAD = Said("slot", 0), Said("tie"), Said("skip"), Said("both_bad")


def answered(queue: Queue, by: str, said: Said = FIRST) -> Judgment:
    """Let ``by`` answer their next comparison."""
    shown = queue.next(by)
    assert shown is not None
    return queue.answer(by, shown, said)


def drain(queue: Queue, by: str, said: Said = FIRST) -> list[str]:
    """Let ``by`` answer everything that is open for them; return the items in the order asked."""
    asked = []
    while (shown := queue.next(by)) is not None:
        queue.answer(by, shown, said)
        asked.append(shown.item)
    return asked


def test_everybody_sees_the_same_order_and_their_own_slots(ledger: Ledger) -> None:
    pairs = hold(ledger, [pair(n) for n in range(40)])
    orders, slots = [], []
    for by in (ANN, BOB):
        queue = Queue(ledger, pairs, rubric=RUBRIC, votes=2, seed=3)
        shown = {}
        while (one := queue.next(by)) is not None:
            shown[one.item] = one.slots[0].draw
            queue.answer(by, one, FIRST)
        orders.append(list(shown))
        slots.append(shown)
    assert orders[0] == orders[1]
    assert slots[0] != slots[1]
    assert all(8 < sum(seen.values()) < 32 for seen in slots), "either answer comes first about half of the time"


def test_another_seed_is_another_order_and_the_order_given_does_not_matter(ledger: Ledger) -> None:
    pairs = hold(ledger, [pair(n) for n in range(20)])

    def order(seed: int, given: list[object]) -> list[str]:
        queue = Queue(ledger, given, rubric=rubric_of(f"seed {seed} {len(given)}"), seed=seed)  # type: ignore[arg-type]
        return [shown.item for _ in range(len(queue)) if (shown := queue.next(ANN)) and queue.answer(ANN, shown, TIE)]

    turned = [(prompt, other, one) for prompt, one, other in reversed(pairs)]
    assert order(1, list(pairs)) != order(2, list(pairs))
    mine = Queue(ledger, pairs, rubric="r", seed=1)
    theirs = Queue(ledger, turned, rubric="r", seed=1)
    assert mine.next(ANN) == theirs.next(ANN)


def test_makers_are_not_part_of_what_decides_the_slots(ledger: Ledger) -> None:
    pairs = hold(ledger, [pair(n) for n in range(200)])
    queue = Queue(ledger, pairs, rubric=RUBRIC, votes=1)
    first = Counter()
    while (shown := queue.next(ANN)) is not None:
        first[shown.slots[0].draw] += 1
        queue.answer(ANN, shown, TIE)
    assert 70 <= first[0] <= 130


def test_a_judgment_tells_who_what_was_shown_where_and_how_sure(ledger: Ledger) -> None:
    pairs = hold(ledger, [pair(1)])
    queue = Queue(ledger, pairs, rubric=RUBRIC)
    shown = queue.next(ANN)
    assert shown is not None
    queue.answer(ANN, shown, Said("slot", 1, confidence=9, note="clearer", seconds=2.5))
    kept = ledger.judgments()[0]
    assert (kept.by, kept.slots, kept.winner) == ("human:ann", (shown.slots[0].id, shown.slots[1].id), 1)
    assert (kept.strength, kept.rationale, kept.latency) == (1.0, "clearer", 2.5)
    assert kept.fields == {"turn": 1, "confidence": 9}
    assert kept.order_known
    assert kept.created_at


@pytest.mark.parametrize(("confidence", "strength"), [(1, 0.0), (5, 0.5), (9, 1.0)])
def test_confidence_is_a_strength_from_0_to_1(ledger: Ledger, confidence: int, strength: float) -> None:
    queue = Queue(ledger, hold(ledger, [pair(1)]), rubric=RUBRIC)
    assert answered(queue, ANN, Said("tie", confidence=confidence)).strength == strength


@pytest.mark.parametrize("confidence", [0, 10, -1])
def test_a_confidence_off_the_scale_is_refused_and_nothing_is_written(ledger: Ledger, confidence: int) -> None:
    queue = Queue(ledger, hold(ledger, [pair(1)]), rubric=RUBRIC)
    with pytest.raises(InputError, match=r"1 \(a guess\) to 9"):
        answered(queue, ANN, Said("tie", confidence=confidence))
    assert ledger.judgments() == []


def test_each_comparison_is_asked_until_it_has_its_votes(ledger: Ledger) -> None:
    pairs = hold(ledger, [pair(n) for n in range(6)])
    queue = Queue(ledger, pairs, rubric=RUBRIC, votes=2)
    assert len(drain(queue, ANN)) == 6
    assert queue.judged() == 0
    assert len(drain(queue, BOB)) == 6
    assert queue.judged() == 6
    assert queue.next(person("cem")) is None


def test_a_skip_leaves_the_comparison_to_others(ledger: Ledger) -> None:
    queue = Queue(ledger, hold(ledger, [pair(1)]), rubric=RUBRIC)
    answered(queue, ANN, SKIP)
    assert queue.next(ANN) is None
    assert queue.judged() == 0
    answered(queue, BOB, BAD)
    assert queue.judged() == 1
    assert queue.progress(ANN) == (1, 0, Counter(skip=1))


def test_a_change_of_mind_revises_and_only_the_last_word_stands(ledger: Ledger) -> None:
    queue = Queue(ledger, hold(ledger, [pair(1), pair(2)]), rubric=RUBRIC)
    first = answered(queue, ANN)
    back = queue.back(ANN, 1)
    assert back is not None
    assert back.earlier == first
    second = queue.answer(ANN, back, TIE)
    assert second.revises == first.id
    assert queue.judgments() == [second]
    assert len(ledger.judgments()) == 2, "nothing is deleted"
    assert queue.progress(ANN).done == 1


def test_back_goes_over_answers_once_each_newest_first(ledger: Ledger) -> None:
    queue = Queue(ledger, hold(ledger, [pair(n) for n in range(3)]), rubric=RUBRIC)
    items = [answered(queue, ANN).item for _ in range(3)]
    assert [shown.item for steps in (1, 2, 3) if (shown := queue.back(ANN, steps))] == items[::-1]
    assert queue.back(ANN, 4) is None
    assert queue.back(ANN, 0) is None
    assert queue.back(BOB, 1) is None
    oldest = queue.back(ANN, 3)
    assert oldest is not None
    queue.answer(ANN, oldest, TIE)
    newest = queue.back(ANN, 1)
    assert newest is not None
    assert newest.item == items[0]


def test_a_queue_made_anew_goes_on_where_the_last_answer_was_written(ledger: Ledger) -> None:
    pairs = hold(ledger, [pair(n) for n in range(10)])
    one = Queue(ledger, pairs, rubric=RUBRIC)
    asked = [answered(one, ANN).item for _ in range(4)]
    again = Queue(ledger, pairs, rubric=RUBRIC)
    assert again.next(ANN) == one.next(ANN)
    assert again.judgments() == one.judgments()
    assert [shown.item for steps in range(1, 6) if (shown := again.back(ANN, steps))] == asked[::-1]
    assert len(drain(again, ANN)) == 6


def test_another_question_begins_anew_and_other_judges_are_not_counted(ledger: Ledger) -> None:
    pairs = hold(ledger, [pair(1)])
    prompt, one, other = pairs[0]
    model = Judgment(prompt_id=prompt.id, slots=(one.id, other.id), verdict="tie", by="model:m@1", rubric=RUBRIC)
    ledger.add_judgments([model])
    assert Queue(ledger, pairs, rubric=RUBRIC).next(ANN) is not None
    drain(Queue(ledger, pairs, rubric=RUBRIC), ANN)
    assert Queue(ledger, pairs, rubric=RUBRIC).next(ANN) is None
    assert Queue(ledger, pairs, rubric=rubric_of("Which is kinder?")).next(ANN) is not None
    assert rubric_of("Which  is\nkinder?") == rubric_of("Which is kinder?")


def test_equal_and_blank_answers_are_counted_and_never_asked(ledger: Ledger) -> None:
    pairs = hold(ledger, [pair(1, "Same.", "Same. "), pair(2, "  ", "Words."), pair(3)])
    queue = Queue(ledger, pairs, rubric=RUBRIC)
    assert len(queue) == 1
    assert queue.unfit == Counter(identical=1, empty=1)


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "x" * 65, "a\x1b[0m"])
def test_a_name_that_cannot_be_one_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="annotator's name"):
        person(name)


def test_winners_become_rows_of_a_preference_set_and_nothing_else_does(ledger: Ledger) -> None:
    pairs = hold(ledger, [pair(n) for n in range(4)])
    queue = Queue(ledger, pairs, rubric=RUBRIC)
    won = answered(queue, ANN, Said("slot", 1, confidence=7, note="kinder"))
    for said in (TIE, BAD, SKIP):
        answered(queue, ANN, said)
    made = rows(queue.judgments(), ledger)
    sides = {response.id: response.text for response in ledger.responses()}
    assert made == [
        {
            "prompt": next(p.text for p, *_ in pairs if p.id == won.prompt_id),
            "chosen": sides[won.slots[1]],
            "rejected": sides[won.slots[0]],
            "metadata": {
                "source": "user_collected",
                "annotator": "ann",
                "confidence": 7,
                "note": "kinder",
                "judgment": won.id,
            },
        }
    ]
    assert json.dumps(made)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from([FIRST, TIE, SKIP, BAD]), st.booleans()), max_size=20))
def test_whatever_people_do_a_fresh_queue_agrees_with_the_one_they_used(
    moves: list[tuple[str, Said, bool]],
) -> None:
    with Ledger(":memory:") as ledger:
        pairs = hold(ledger, [pair(n) for n in range(4)])
        queue = Queue(ledger, pairs, rubric=RUBRIC, votes=2)
        for name, said, undo in moves:
            by = person(name)
            shown = queue.back(by, 1) if undo else queue.next(by)
            if shown is not None:
                queue.answer(by, shown, said)
        again = Queue(ledger, pairs, rubric=RUBRIC, votes=2)
        assert [j.id for j in again.judgments()] == [j.id for j in queue.judgments()]
        assert [again.next(person(n)) for n in "ab"] == [queue.next(person(n)) for n in "ab"]
        assert [again.progress(person(n)) for n in "ab"] == [queue.progress(person(n)) for n in "ab"]
        assert all(again.back(person(n), k) == queue.back(person(n), k) for n in "ab" for k in range(1, 6))
