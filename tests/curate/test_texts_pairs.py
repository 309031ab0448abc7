"""Steps that give each pair other words: goals, rationales, drafts, two orders, contexts."""

from __future__ import annotations

from collections import Counter
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.curate.texts import Read, Told, question
from tiebreak.curate.contexts import in_context
from tiebreak.curate.drafts import drafts, versus
from tiebreak.curate.goals import goal_conditioned
from tiebreak.curate.rationale import rationale
from tiebreak.data.drafts import versus as versus_text
from tiebreak.data.drafts import with_draft, without_goal
from tiebreak.records import InputError, Message, Pair

scored = st.lists(st.tuples(st.integers(0, 4), st.floats(-5, 5), st.floats(-5, 5)), min_size=1, max_size=12)


@settings(max_examples=80, deadline=None)
@given(scored)
def test_each_pair_becomes_two_and_stripping_the_goals_gives_the_pairs_back(
    rows: list[tuple[int, float, float]],
) -> None:
    told = Told()
    for i, (number, one, other) in enumerate(rows):
        told.pair(question(f"Q{number}?"), f"good {i}", f"bad {i}", scores=(one, other), margin=0.5, p=0.8)
    done = told.later(goal_conditioned)
    read = Read(told, done)
    used = [pair for pair in told.rows if round(pair.scores[0], 2) > round(pair.scores[1], 2)]
    assert len(done.rows) == 2 * len(used)
    assert sum(done.dropped.values()) == len(rows) - len(used)
    there = Counter(
        ((without_goal(read.prompt(pair.prompt_id)).id, *read.sides(pair)[:: 1 - 2 * (n % 2)]))
        for n, pair in enumerate(done.rows)
    )
    assert there == Counter({(pair.prompt_id, *read.sides(pair)): 2 for pair in used})
    assert all((pair.margin, pair.p) == (0.5, 0.8) for pair in done.rows)


def test_asked_for_the_lower_score_the_other_answer_wins() -> None:
    """Trap 25: the copy that asks for less has its sides exchanged."""
    told = Told()
    talk = question((Message("system", "Be brief."), Message("user", "2+2?")))
    told.pair(talk, "four", "five", scores=(9.0, 2.5), beside={"drawn": "x", "rationale": "y"}, user="human:ann")
    done = goal_conditioned(told.seen(told.rows))
    read = Read(told, done)
    high, low = done.rows
    assert (read.prompt(high.prompt_id).fields["goal"], read.sides(high)) == (9.0, ("four", "five"))
    assert (read.prompt(low.prompt_id).fields["goal"], read.sides(low)) == (2.5, ("five", "four"))
    assert read.prompt(low.prompt_id).text[0].content == "Be brief.\n\nWrite an answer that scores 2.5."
    assert (high.scores, low.scores) == ((9.0, 2.5), (2.5, 9.0))
    assert (dict(high.beside), dict(low.beside)) == ({"drawn": "x", "rationale": "y"}, {"drawn": "x"})
    assert high.user == low.user == "human:ann"


def test_under_each_goal_the_answer_nearest_to_it_wins_all_its_comparisons() -> None:
    told = Told()
    answers = {"low": 1.0, "middle": 5.0, "high": 9.0}
    for one, other in permutations(answers, 2):
        if answers[one] > answers[other]:
            told.pair(question("Q?"), one, other, scores=(answers[one], answers[other]))
    done = told.later(goal_conditioned)
    read = Read(told, done)
    for pair in done.rows:
        assert answers[read.sides(pair)[0]] == read.prompt(pair.prompt_id).fields["goal"]
    assert len(done.rows) == 6
    assert len({pair.prompt_id for pair in done.rows}) == 3


def test_scores_that_are_equal_as_they_are_written_are_a_contradiction_and_go() -> None:
    told = Told()
    told.pair(question("A?"), "a", "b", scores=(3.001, 3.004))
    told.pair(question("B?"), "a", "b", scores=(2.0, 2.0))
    told.pair(question("C?"), "a", "b", scores=(1.0, 2.0))
    done = told.later(goal_conditioned)
    assert done.rows == []
    assert done.dropped == {"equal scores": 2, "the rejected side has the higher score": 1}
    near = Told()
    near.pair(question("A?"), "a", "b", scores=(3.004, 3.001))
    assert near.later(goal_conditioned).dropped == {"equal scores": 1}
    assert len(near.later(goal_conditioned, digits=3).rows) == 2


def _fields(pair: Pair) -> dict[str, object]:
    return {name: getattr(pair, name) for name in Pair.__dataclass_fields__}


def test_goals_need_scores_and_one_prompt() -> None:
    told = Told()
    told.pair(question("A?"), "a", "b", scores=(2.0, 1.0))
    told.pair(question("B?"), "a", "b")
    with pytest.raises(InputError, match="1 of 2 pairs have none; begin with score_pairs"):
        told.later(goal_conditioned)
    with pytest.raises(InputError, match="digits = -1"):
        told.later(goal_conditioned, digits=-1)
    apart = [Pair(**{**_fields(told.rows[0]), "rejected_prompt_id": told.rows[1].prompt_id})]
    for step in (goal_conditioned, rationale, drafts, versus, in_context):
        with pytest.raises(InputError, match="answers another prompt; put it before constraints"):
            step(told.seen(apart))
        with pytest.raises(InputError, match="has no pairs yet"):
            step(told.seen(None))


def explained(*said: tuple[int, str]) -> tuple[Told, Pair]:
    """A pair of a and b with judgments behind it: the winning slot and the reason; every second one shows b first."""
    told = Told()
    prompt = question("2+2?")
    sides = [told.answer(prompt, text) for text in ("four", "five")]
    for attempt, (winner, why) in enumerate(said):
        shown = sides[:: 1 - 2 * (attempt % 2)]
        told.judged(prompt, *shown, winner=winner, rationale=why, attempt=attempt)
    ids = tuple(judgment.id for judgment in told.judgments)
    told.rows.append(Pair(prompt_id=prompt.id, chosen_id=sides[0].id, rejected_id=sides[1].id, judgment_ids=ids))
    return told, told.rows[0]


def test_a_rationale_explains_behind_the_answers_in_the_order_its_judge_saw_them() -> None:
    told, pair = explained((1, "five is prime"), (1, " Response 2 is right. "))
    done = told.later(rationale)
    (new,) = done.rows
    read = Read(told, done)
    said = read.text(new.beside["rationale"])
    assert said == "Response 2 is right."
    asked = next(read.prompt(one.prompt_id) for one in done.made if one.id == new.beside["rationale"])
    assert "Response 1:\nfive\n\nResponse 2:\nfour" in asked.text
    assert (new.id, new.chosen_id, new.rejected_id) == (pair.id, pair.chosen_id, pair.rejected_id)
    assert [one.maker for one in done.made if one.id == new.beside["rationale"]] == ["human:ann"]


def test_of_several_rationales_one_is_taken_as_told() -> None:
    told, _ = explained((0, "short"), (1, "the longest of all"), (0, "middling"))
    texts = {
        which: Read(told, done).text(done.rows[0].beside["rationale"])
        for which in ("first", "longest", "shortest")
        for done in [told.later(rationale, which=which)]
    }
    first = min(told.judgments, key=lambda judgment: judgment.id).rationale
    assert texts == {"first": first, "longest": "the longest of all", "shortest": "short"}
    with pytest.raises(InputError, match=r"which = 'longes'.*Did you mean 'longest'"):
        told.later(rationale, which="longes")


@pytest.mark.parametrize("said", [(), ((1, "for the other side"),), ((0, "  "),), ((0, ""), (0, "other side"))])
def test_a_pair_that_nothing_explains_goes_or_stays_as_it_is(said: tuple[tuple[int, str], ...]) -> None:
    told, pair = explained(*said)
    done = told.later(rationale)
    assert (list(done.rows), done.made) == ([], [])
    assert done.dropped == {"no rationale supports the chosen side": 1}
    kept = told.later(rationale, keep=True)
    assert kept.rows == [pair]
    assert not any(kept.dropped.values())


def test_drafts_order_a_pair_in_exactly_five_ways() -> None:
    """Card 18: (w, l) > {(w, w), (l, l)} > (l, w), written as what came of which draft."""
    told = Told()
    prompt = question("2+2?")
    told.pair(prompt, "w", "l", weight=2.0, user="human:ann", judgment_ids=("j",))
    done = told.later(drafts)
    (row,) = done.rows
    read = Read(told, done)
    branches = list(zip(row.prompt_ids, row.response_ids, row.grades, strict=True))
    named = {grade: [] for grade in (0.0, 1.0, 2.0)}
    for asked, key, grade in branches:
        named[grade].append((read.text(key), read.prompt(asked).fields["draft"]))
    assert named == {2.0: [("w", "l")], 1.0: [("w", "w"), ("l", "l")], 0.0: [("l", "w")]}
    assert {read.prompt(key).id for key in row.prompt_ids} == {with_draft(prompt, text).id for text in "wl"}
    better = {(a[1], b[1]) for a, b in permutations(branches, 2) if a[2] > b[2]}
    assert len(better) == 5
    assert (row.prompt_id, row.weight, row.user, row.judgment_ids) == (prompt.id, 2.0, "human:ann", ("j",))


@pytest.mark.parametrize("quality", [{"w": 2.0, "l": 1.0}, {"w": 1.0, "l": 2.0}, {"w": 1.0, "l": 1.0}])
def test_an_antisymmetric_reward_meets_the_five_orderings_just_where_it_prefers_the_better_answer(
    quality: dict[str, float],
) -> None:
    told = Told()
    told.pair(question("2+2?"), "w", "l")
    done = told.later(drafts)
    (row,), read = done.rows, Read(told, done)
    gaps = [
        quality[read.text(key)] - quality[read.prompt(asked).fields["draft"]]
        for asked, key in zip(row.prompt_ids, row.response_ids, strict=True)
    ]
    met = [gaps[i] > gaps[j] for i in range(4) for j in range(4) if row.grades[i] > row.grades[j]]
    assert all(met) == (quality["w"] > quality["l"])


def test_ties_and_equal_texts_improve_nothing() -> None:
    told = Told()
    told.pair(question("A?"), "a", "b", p=0.5)
    prompt = question("B?")
    sides = [told.answer(prompt, "same", draw=draw).id for draw in (0, 1)]
    told.rows.append(Pair(prompt_id=prompt.id, chosen_id=sides[0], rejected_id=sides[1]))
    done = told.later(drafts)
    assert list(done.rows) == []
    assert done.dropped == {"ties": 1, "equal texts": 1}
    orders = told.later(versus)
    assert [pair.p for pair in orders.rows] == [0.5]
    assert orders.dropped == {"equal texts": 1}


def test_the_better_answer_stands_first_in_the_order_that_is_chosen() -> None:
    told = Told()
    pair = told.pair(question("2+2?"), "four", "five", p=0.8, margin=0.3, judgment_ids=("j",), beside={"drawn": "x"})
    done = told.later(versus)
    (new,) = done.rows
    assert Read(told, done).sides(new) == (versus_text("four", "five"), versus_text("five", "four"))
    assert (new.prompt_id, new.p, new.margin, new.judgment_ids) == (pair.prompt_id, 0.8, 0.3, ("j",))
    assert not new.beside


def test_contexts_are_kept_and_reversals_are_counted() -> None:
    told = Told()
    brief, whole, plain = (question("Explain tides.", context=context) for context in ("Brief.", "Whole.", ""))
    told.pair(brief, "moon", "moon and sun")
    told.pair(whole, "moon and sun", "moon")
    told.pair(plain, "moon", "moon and sun")
    told.pair(question("Other?", context="Brief."), "moon", "moon and sun")
    told.pair(question("Other?", context="Whole."), "moon", "moon and sun")
    told.pair(question("Tie?", context="Brief."), "a", "b", p=0.5)
    told.pair(question("Tie?", context="Whole."), "b", "a")
    done = told.later(in_context)
    assert done.rows == [told.rows[0], told.rows[1], *told.rows[3:]]
    assert done.dropped["no context"] == 1
    turned = told.later(in_context, reversal=True)
    assert turned.rows == told.rows[:2]
    assert dict(turned.dropped) == {"no context": 1, "no other context reverses it": 4}


def test_a_model_that_is_blind_to_the_context_is_right_half_of_the_time_and_never_for_both() -> None:
    """Card 58 on the pairs that are left: one score for each answer, whatever the context."""
    told = Told()
    for number in range(5):
        told.pair(question(f"Q{number}?", context="Brief."), "moon", "moon and sun")
        told.pair(question(f"Q{number}?", context="Whole."), "moon and sun", "moon")
    done = told.later(in_context, reversal=True)
    read = Read(told, done)
    right: dict[str, list[bool]] = {}
    for pair in done.rows:
        chosen, rejected = read.sides(pair)
        right.setdefault(str(read.prompt(pair.prompt_id).text), []).append(len(chosen) > len(rejected))
    assert [sum(both) for both in right.values()] == [1] * 5


def test_the_same_context_does_not_reverse_itself() -> None:
    told = Told()
    told.pair(question("Q?", context="Brief."), "a", "b", judgment_ids=("ann",))
    told.pair(question("Q?", context="Brief."), "b", "a", judgment_ids=("bob",))
    assert told.later(in_context, reversal=True).dropped["no other context reverses it"] == 2
