import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiebreak.judge.scales import BINARY, GRADED, SCALES, TIES
from tiebreak.judge.verdict import (
    NO_JSON,
    NO_MASS,
    NO_VERDICT,
    OPEN,
    find_verdict,
    mean_reading,
    read_json,
    read_reply,
    read_token,
    soft_label,
)
from tiebreak.records import InputError, Judgment


def logs(**top):
    return {token: math.log(p) for token, p in top.items()}


@pytest.mark.parametrize(
    ("text", "winner"),
    [
        ("1", 0),
        ("2", 1),
        (" 2", 1),
        ("1.", 0),
        ("**2**", 1),
        ("Summary 2", 1),
        ("Preferred Summary=1", 0),
        ("Summary 2 is better than Summary 1", 1),
        ("\u01202", 1),
        ("\u25811", 0),
        ("I read the 10 points; 2", 1),
        ("(1)", 0),
        ("2, not 1", 1),
    ],
)
def test_a_verdict_is_read_from_text(text, winner):
    reading = read_reply(text)
    assert (reading.verdict, reading.winner, reading.probability) == ("slot", winner, None)


@pytest.mark.parametrize(
    "text", ["", "neither", "12", "10", "21", "1.5", "0.2", "1st", "2nd", "x1", "1/2", "0", "\u0661"]
)
def test_what_is_no_verdict_is_invalid_and_never_a_side(text):
    reading = read_reply(text)
    assert (reading.verdict, reading.winner, reading.probability) == ("invalid", None, None)


def test_a6_the_first_verdict_counts_whichever_digit_it_is():
    tokens = [("2", logs(**{"2": 0.8, "1": 0.2})), (" over", {}), (" 1", logs(**{" 1": 0.9, " 2": 0.1}))]
    assert read_reply("2 over 1").winner == 1
    reading = read_reply("2 over 1", tokens)
    assert reading.winner == 1
    assert reading.probability == pytest.approx(0.2)


def test_a7_a_digit_outside_the_returned_tokens_is_bounded_by_the_mass_they_leave():
    reading = read_token(logs(**{"1": 0.9, "The": 0.06}))
    assert reading.winner == 0
    assert reading.bounded
    assert reading.probability == pytest.approx(0.9 / 0.94)
    assert reading.mass == pytest.approx(0.9)


def test_a7_a_missing_digit_that_could_still_win_is_invalid():
    assert read_token(logs(**{"1": 0.3, "The": 0.3})).verdict == "invalid"
    assert read_token(logs(The=0.7, A=0.2)).verdict == "invalid"


def test_a7_a_reply_whose_digit_is_not_among_the_returned_tokens_is_invalid():
    assert read_reply("2", [("2", logs(The=0.7, A=0.2))]).verdict == "invalid"


def test_a8_probabilities_are_renormalised_and_the_mass_is_kept():
    reading = read_token(logs(**{"1": 0.3, "2": 0.1, "The": 0.6}))
    assert (reading.winner, reading.bounded) == (0, False)
    assert reading.probability == pytest.approx(0.75)
    assert reading.mass == pytest.approx(0.4)


def test_a8_even_probabilities_are_a_tie():
    reading = read_token(logs(**{"1": 0.5, "2": 0.5}))
    assert (reading.verdict, reading.winner, reading.probability) == ("tie", None, 0.5)


def test_a10_variants_with_spaces_and_markers_add_up():
    top = logs(**{"1": 0.1, " 1": 0.2, "\u01201": 0.1, "\u25812": 0.3, "2\n": 0.1, "12": 0.1})
    reading = read_token(top)
    assert reading.probability == pytest.approx(0.5)
    assert reading.mass == pytest.approx(0.8)


def test_the_token_that_carries_the_verdict_is_found_behind_other_tokens():
    tokens = [("Summary", logs(Summary=1.0)), (" 2", logs(**{" 2": 0.7, " 1": 0.3})), (".", {})]
    assert read_reply("Summary 2.", tokens).probability == pytest.approx(0.3)


def test_tokens_that_do_not_add_up_to_the_text_are_searched():
    tokens = [("\u0120Summary", {}), ("\u01202", logs(**{"\u01202": 0.6, "\u01201": 0.4}))]
    assert read_reply("Summary 2", tokens).probability == pytest.approx(0.4)


def test_a_verdict_fused_with_other_text_is_read_without_a_probability():
    reading = read_reply("=2", [("=2", logs(**{"=2": 1.0}))])
    assert (reading.winner, reading.probability) == (1, None)


def test_a_tie_is_read_only_where_it_is_allowed():
    assert read_reply("0", scale=TIES).verdict == "tie"
    assert find_verdict("0 or 2") == 5
    reading = read_token(logs(**{"1": 0.3, "2": 0.1, "0": 0.6}), scale=TIES)
    assert (reading.verdict, reading.winner) == ("tie", None)
    assert reading.probability == pytest.approx(0.6)
    assert reading.tie == pytest.approx(0.6)


@given(st.text(max_size=40), st.sampled_from(list(SCALES.values())), st.booleans())
def test_any_text_is_a_verdict_or_invalid(text, scale, last):
    reading = read_reply(text, scale=scale, last=last)
    assert (reading.why != "") == (reading.verdict == "invalid")
    assert (reading.winner is None) == (reading.verdict != "slot")
    assert reading.verdict in ("slot", "tie", "invalid")


tops = st.dictionaries(
    st.sampled_from(["1", " 1", "2", "\u25812", "0", "3", "4", "5", "The", "12"]), st.floats(-1000, 0), max_size=9
)


@given(tops, st.sampled_from(list(SCALES.values())))
def test_any_top_tokens_give_a_probability_in_range_or_none(top, scale):
    reading = read_token(top, scale=scale)
    assert reading.probability is None or 0 <= reading.probability <= 1
    assert reading.strength is None or 0 <= reading.strength <= 1
    if reading.winner is not None:
        assert (reading.probability > 0.5) == (reading.winner == 0) or reading.probability == 0.5


# Scales


def test_five_levels_are_read_by_their_definition():
    chances = {"1": 0.1, "2": 0.4, "3": 0.2, "4": 0.1, "5": 0.05}
    total = sum(chances.values())
    reading = read_token(logs(**chances, The=0.15), scale=GRADED)
    assert (reading.verdict, reading.winner) == ("slot", 0)
    assert reading.probability == pytest.approx((0.1 + 0.4 + 0.2 / 2) / total)
    assert reading.strength == pytest.approx(sum(p * abs(int(i) - 3) for i, p in chances.items()) / total / 2)
    assert reading.tie == pytest.approx(0.2 / total)
    assert (reading.mass, reading.bounded) == (pytest.approx(total), False)
    assert reading.shares == pytest.approx([p / total for p in chances.values()])


@pytest.mark.parametrize(
    ("said", "verdict", "winner", "strength"),
    [("1", "slot", 0, 1), ("2", "slot", 0, 0.5), ("3", "tie", None, 0), ("4", "slot", 1, 0.5), ("5", "slot", 1, 1)],
)
def test_a_level_alone_is_its_row_of_the_table(said, verdict, winner, strength):
    for reading in (read_reply(said, scale=GRADED), read_token(logs(**{said: 1.0}), scale=GRADED)):
        assert (reading.verdict, reading.winner, reading.strength) == (verdict, winner, strength)


def test_a_level_that_was_not_returned_is_bounded_or_makes_it_invalid_and_is_never_zero():
    """What 4 and 5 can have at most, 0.1, goes to 4; so does what 3 can have: the label errs towards 1/2."""
    reading = read_token(logs(**{"1": 0.6, "2": 0.2, "The": 0.1}), scale=GRADED)
    assert reading.bounded
    assert reading.probability == pytest.approx((0.8 + 0.1 / 2) / (0.8 + 0.1 + 0.1))
    assert reading.strength == pytest.approx((0.6 + 0.2 / 2 + 0.1 * 0 + 0.1 / 2) / 1.0)
    for top in ({"1": 0.3, "3": 0.2, "The": 0.1}, {"3": 0.4, "4": 0.3}, {"The": 0.9}):
        assert read_token(logs(**top), scale=GRADED).verdict == "invalid"
    assert read_token(logs(**{"3": 0.4, "4": 0.3}), scale=GRADED).why == OPEN
    assert read_token(logs(The=0.9), scale=GRADED).why == NO_MASS


def test_a_reversed_scale_gives_the_other_side_and_nothing_else_changes():
    top = logs(**{"1": 0.6, "2": 0.1, "3": 0.1, "4": 0.15, "5": 0.05})
    one, other = read_token(top, scale=GRADED), read_token(top, scale=GRADED.reversed())
    assert (one.winner, other.winner) == (0, 1)
    assert one.probability + other.probability == pytest.approx(1)
    assert (one.strength, one.tie, one.mass) == (other.strength, other.tie, other.mass)
    assert read_reply("1", scale=BINARY.reversed()).winner == 1
    assert read_reply("0", scale=TIES.reversed()).verdict == "tie"


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("4", 0),
        (" **4**", 3),
        ("4.", 0),
        ("4 - summary 2 is better", 0),
        ("Grade: 4", 7),
        ("4\nbecause", 0),
        ("(4)", 1),
    ],
)
def test_a_level_begins_the_reply(text, at):
    assert find_verdict(text, scale=GRADED) == at


@pytest.mark.parametrize(
    "text", ["2 is much better", "Summary 2 is better", "2-3", "4/5", "4 to 5", "0", "6", "3.5", "45", "second", ""]
)
def test_a_number_that_may_mean_a_slot_is_no_level(text):
    assert read_reply(text, scale=GRADED) == read_reply("", scale=GRADED)
    assert read_reply(text, scale=GRADED).why == NO_VERDICT


def test_behind_a_rationale_the_last_line_alone_counts():
    tokens = [("1", logs(**{"1": 1.0})), (" is short.\n", {}), ("2", logs(**{"2": 0.7, "1": 0.3})), ("\n", {})]
    reading = read_reply("1 is short.\n2\n", tokens, last=True)
    assert (reading.winner, reading.probability) == (1, pytest.approx(0.3))
    for text in ("Why 1.\n\n**2**", "So:\nPreferred Summary=2", "1 or 2?\nAnswer: 2.", "More Harmful Response=2"):
        assert read_reply(text, last=True).winner == 1
    for text in ("2\nis my answer", "I prefer 2", "1 and 2", "Both: 1, 2", ""):
        assert read_reply(text, last=True).verdict == "invalid"


def test_json_is_read_by_its_key_and_nothing_else_is():
    tokens = [('{"verdict": "', {}), ("2", logs(**{"2": 0.8, "1": 0.2})), ('"}', {})]
    reading, why = read_json('{"verdict": "2"}', tokens)
    assert (reading.winner, reading.probability, why) == (1, pytest.approx(0.2), "")
    reading, why = read_json('```json\n{"rationale": "1 is \\"1\\"", "verdict": 2}\n```')
    assert (reading.winner, reading.probability, why) == (1, None, '1 is "1"')
    assert read_json('{"verdict": "4"}', scale=GRADED)[0].strength == 0.5
    for text in ("1", '"1"', "[1]", "{}", '{"answer": "1"}', "null", '{"verdict": "1"', 'My answer: {"verdict": "1"}'):
        assert read_json(text)[0] == read_json("")[0]
        assert read_json(text)[0].why == NO_JSON
    for text in ('{"verdict": "A"}', '{"verdict": true}', '{"verdict": null}', '{"verdict": "12"}', '{"verdict": [1]}'):
        assert read_json(text)[0].why == NO_VERDICT


def test_the_mean_of_draws_is_the_mean_of_their_shares():
    tokens = [read_token(logs(**{"1": p, "2": 1 - p})) for p in (0.9, 0.2, 0.1)]
    mean = mean_reading([*tokens, read_reply("?")], BINARY)
    assert (mean.verdict, mean.winner, mean.mass) == ("slot", 1, pytest.approx(1))
    assert mean.probability == pytest.approx(0.4)
    assert mean_reading([read_reply("1"), read_reply("1"), read_reply("2")], BINARY).probability == pytest.approx(2 / 3)
    assert mean_reading([read_reply("?"), read_json("?")[0]], BINARY).why == NO_VERDICT


def test_tokens_with_more_than_the_text_are_aligned_from_their_end():
    thought = [("1", logs(**{"1": 0.9, "2": 0.1})), (" is short.\n", {})]
    verdict = [("1", logs(**{"1": 0.6, "2": 0.4})), ("<|end|>", {})]
    assert read_reply("1", [*thought, *verdict]).probability == pytest.approx(0.6)


# Soft labels


def said(slots, p=None, verdict="slot", attempt=0, **more):
    winner = None if verdict != "slot" else int((0.5 if p is None else p) < 0.5)
    return Judgment(
        prompt_id="q", slots=slots, verdict=verdict, winner=winner, by="model:m", probability=p, attempt=attempt, **more
    )


def test_probabilities_are_averaged_over_the_two_orders():
    label = soft_label([said("ab", 0.9), said("ba", 0.6)], "a", "b")
    assert label.p == pytest.approx((0.9 + 0.4) / 2)
    assert (label.n, label.orders, label.conflict) == (2, 2, True)


def test_a8_two_orders_that_contradict_each_other_stay_at_one_half():
    label = soft_label([said("ab", 1.0), said("ba", 1.0)], "a", "b", clamp=(0.4, 0.6))
    assert (label.p, label.conflict) == (0.5, True)
    tie = soft_label([said("ab", None, "tie"), said("ba", None, "tie")], "a", "b")
    assert (tie.p, tie.ties, tie.conflict) == (0.5, 2, False)


def test_a8_unanswered_judgments_are_excluded_and_counted_not_made_half():
    label = soft_label(
        [said("ab", 0.8), said("ba", None, "invalid"), said("ba", None, "skip"), said("ba", None, "both_bad")],
        "a",
        "b",
    )
    assert (label.p, label.n, label.orders, label.excluded) == (0.8, 1, 1, 3)
    assert soft_label([said("ab", None, "invalid")], "a", "b") is None
    assert soft_label([], "a", "b") is None


def test_a_bias_that_is_additive_in_logits_cancels_exactly():
    quality, bias = 0.8, 1.7

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    seen = [said("ab", sigmoid(quality + bias)), said("ba", sigmoid(-quality + bias))]
    assert soft_label(seen, "a", "b", how="logit").p == pytest.approx(sigmoid(quality))
    assert soft_label(seen, "a", "b").p < sigmoid(quality)


def test_the_orders_weigh_the_same_whatever_the_attempts():
    seen = [said("ab", 0.9, attempt=i) for i in range(3)] + [said("ba", 0.5)]
    assert soft_label(seen, "a", "b").p == pytest.approx((0.9 + 0.5) / 2)


def test_the_clamp_is_applied_after_averaging():
    seen = [said("ab", 0.95), said("ba", 0.25)]
    assert soft_label(seen, "a", "b").p == pytest.approx(0.85)
    assert soft_label(seen, "a", "b", clamp=(0.4, 0.6)).p == 0.6
    assert soft_label(seen, "b", "a", clamp=(0.4, 0.6)).p == 0.4


def test_a_revised_judgment_no_longer_counts():
    old = said("ab", 0.9)
    label = soft_label([old, said("ab", 0.2, revises=old.id)], "a", "b")
    assert (label.p, label.n, label.excluded) == (0.2, 1, 1)


def test_hard_verdicts_make_the_known_five_values():
    first, second = said("ab", None), said("ba", None)
    assert soft_label([first], "a", "b").p == 1.0
    assert soft_label([first, second], "a", "b").p == 0.5
    assert soft_label([first, said("ba", None, "tie")], "a", "b").p == 0.75


@given(
    st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=1, max_size=6),
    st.sampled_from(["probability", "logit"]),
)
def test_swapping_the_names_gives_the_complement(seen, how):
    judgments = [said("ab" if forth else "ba", p, attempt=i) for i, (forth, p) in enumerate(seen)]
    ours, theirs = (soft_label(judgments, *names, how=how).p for names in ("ab", "ba"))
    assert ours + theirs == pytest.approx(1)


def test_wrong_use_is_refused():
    with pytest.raises(InputError, match="other responses"):
        soft_label([said("ac", 0.9)], "a", "b")
    with pytest.raises(InputError, match="no probability"):
        soft_label([said("ab", None)], "a", "b", how="logit")
    with pytest.raises(InputError, match="clamp"):
        soft_label([said("ab", 0.9)], "a", "b", clamp=(0.4, 0.7))
    with pytest.raises(InputError, match="how"):
        soft_label([said("ab", 0.9)], "a", "b", how="median")
