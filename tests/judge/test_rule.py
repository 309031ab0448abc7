import asyncio
import itertools
import math

import pytest

from tests.judge.made import ask, ledger_with, pair, pairs
from tiebreak.judge.rule import first_probability, make, overlap
from tiebreak.judge.run import judge_pairs
from tiebreak.judge.table import Question
from tiebreak.records import InputError, Prompt, Response


def signed(judgments):
    """(first wins - second wins) / presentations, with the half-width of its 95 % interval."""
    values = [{0: 1, 1: -1}.get(judgment.winner, 0) for judgment in judgments]
    mean = sum(values) / len(values)
    return mean, 1.96 * math.sqrt((1 - mean**2) / len(values))


def both_orders(judge, made):
    async def all_of_them():
        return [await judge.ask(Question(prompt, slots)) for prompt, a, b in made for slots in ((a, b), (b, a))]

    return asyncio.run(all_of_them())


@pytest.mark.parametrize("slot_bias", [0.0, 0.2, -0.35])
def test_a_planted_slot_bias_is_recovered_in_its_interval(slot_bias):
    made = pairs(4000)
    judge = make(rule="overlap", sharpness=3.0, noise=0.5, slot_bias=slot_bias, seed=4)
    mean, half = signed(both_orders(judge, made))
    assert abs(mean - slot_bias) < half


def test_over_both_orders_the_expectation_is_the_slot_bias_exactly():
    for bias, sharpness, opinion in itertools.product([-1, -0.3, 0, 0.25, 1], [0, 0.7, math.inf], [-2.0, 0.0, 0.4]):
        p = sum(first_probability(o, sharpness=sharpness, slot_bias=bias) for o in (opinion, -opinion)) / 2
        assert p - (1 - p) == pytest.approx(bias)


def test_the_recorded_probability_is_the_share_of_verdicts():
    made = pairs(4000)
    judgments = both_orders(make(rule="longer", sharpness=0.02, noise=40.0, slot_bias=0.1), made)
    wins = sum(judgment.winner == 0 for judgment in judgments)
    expected = sum(judgment.probability for judgment in judgments)
    spread = math.sqrt(sum(judgment.probability * (1 - judgment.probability) for judgment in judgments))
    assert abs(wins - expected) < 1.96 * spread


def test_noise_is_an_error_of_the_item_and_the_same_in_both_orders():
    judgments = both_orders(make(rule="longer", sharpness=1.0, noise=30.0), pairs(200))
    for forth, back in zip(judgments[::2], judgments[1::2], strict=True):
        assert forth.probability == pytest.approx(1 - back.probability)
    again = both_orders(make(rule="longer", sharpness=1.0, noise=30.0, seed=1), pairs(200))
    assert [j.probability for j in judgments] != [j.probability for j in again]


def test_noise_is_standard_normal_times_the_knob():
    judgments = both_orders(
        make(rule="shorter", sharpness=0.01, noise=20.0), [pair(i, "aa", "bb") for i in range(4000)]
    )
    errors = [math.log(j.probability / (1 - j.probability)) / 0.01 for j in judgments[::2]]
    mean = sum(errors) / len(errors)
    spread = math.sqrt(sum((e - mean) ** 2 for e in errors) / len(errors))
    assert abs(mean) < 3.29 * 20 / math.sqrt(4000)
    assert abs(spread - 20) < 3.29 * 20 / math.sqrt(2 * 4000)


def test_attempts_are_separate_draws_of_the_same_probability():
    judge = make(rule="longer", sharpness=0.0)
    answers = [ask(judge, pair(), attempt) for attempt in range(40)]
    assert {answer.probability for answer in answers} == {0.5}
    assert {answer.winner for answer in answers} == {0, 1}
    assert ask(judge, pair(), 7) == answers[7]


def test_an_infinitely_sharp_judge_decides_and_equal_qualities_are_a_tie():
    judge = make(rule="longer", sharpness=math.inf)
    assert (ask(judge, pair(0)).winner, ask(judge, pair(0)).probability) == (0, 1.0)
    assert (ask(judge, pair(1)).winner, ask(judge, pair(1)).probability) == (1, 0.0)
    tie = ask(judge, pair(0, "one two", "two one"))
    assert (tie.verdict, tie.winner, tie.probability) == ("tie", None, 0.5)


def test_an_extreme_opinion_neither_overflows_nor_leaves_the_unit_interval():
    for opinion in (-1e308, 1e308, -5e-324, 0.0):
        assert 0 <= first_probability(opinion, sharpness=1e300, slot_bias=0.3) <= 1


def test_overlap_is_unigram_and_bigram_f1_with_the_reference():
    prompt = Prompt(text="?", reference="The cat left home.")
    assert overlap(prompt, "the cat LEFT home") == 1.0
    assert overlap(prompt, "a dog") == 0.0
    # unigrams 2 of 2 and 2 of 4, bigrams 1 of 1 and 1 of 3
    assert overlap(prompt, "the cat") == pytest.approx((2 * 2 / 6 + 2 * 1 / 4) / 2)
    with pytest.raises(InputError, match="reference"):
        overlap(Prompt(text="?"), "the cat")


def test_everything_that_steers_is_in_the_rubric():
    base = {"rule": "longer", "sharpness": 1.0, "noise": 0.0, "slot_bias": 0.0, "seed": 0}
    changed = [
        {},
        {"rule": "shorter"},
        {"sharpness": 2.0},
        {"sharpness": math.inf},
        {"noise": 0.1},
        {"slot_bias": 0.1},
        {"seed": 1},
    ]
    assert len({make(**(base | change)).rubric for change in changed}) == len(changed)
    assert make(**base).by == "rule:longer"


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({}, "needs a rule"),
        ({"rule": "longr"}, "'longer'"),
        ({"rule": "longer", "sharpness": -1}, "sharpness"),
        ({"rule": "longer", "noise": math.inf}, "noise"),
        ({"rule": "longer", "slot_bias": 1.5}, "slot_bias"),
    ],
)
def test_a_wrong_knob_is_refused_with_the_cure(knobs, said):
    with pytest.raises(InputError, match=said):
        make(**knobs)


def test_a_users_own_rule_judges():
    judge = make(rule="tests.judge.test_rule:vowels", sharpness=math.inf)
    assert judge.by == "rule:tests.judge.test_rule:vowels"
    assert ask(judge, pair(0, "xyz", "aei")).winner == 1


def vowels(prompt, text):
    return sum(letter in "aeiou" for letter in text)


def test_a_rule_without_a_number_is_an_input_error():
    with pytest.raises(InputError, match="finite"):
        ask(make(rule="tests.judge.test_rule:nothing"), pair())


def nothing(prompt, text):
    return math.nan


def test_the_world_rule_judges_what_the_world_says(tmp_path):
    from tiebreak.data import world

    entries = list(world.read(n=30, seed=1))
    made = []
    for entry in entries:
        prompt = entry.prompt
        made.append(
            (prompt, Response(prompt_id=prompt.id, text=prompt.reference), Response(prompt_id=prompt.id, text="no"))
        )
    with ledger_with(tmp_path / "ledger.db", made) as ledger:
        judged = judge_pairs(ledger, make(rule="world", sharpness=math.inf), made)
        for judgment in ledger.judgments(judged.judgment_ids):
            shown = {response.id: response.text for _, *both in made for response in both}
            assert shown[judgment.slots[judgment.winner]] != "no"
