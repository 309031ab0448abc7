"""The judge that rates aspects: planted ratings come back in both orders, and what is malformed is lost and counted."""

from __future__ import annotations

import dataclasses
import importlib
import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.judge.made import Pair, ask, ledger_with
from tiebreak.curate.table import curate
from tiebreak.endpoint import Reply, Token, Unanswered
from tiebreak.judge.aspects import AspectsJudge, make
from tiebreak.judge.calls import number_of
from tiebreak.judge.run import judge_pairs
from tiebreak.judge.scheme import Scheme
from tiebreak.records import InputError, Judgment, Prompt, Response

SCHEMES = ("ultrafeedback", "helpsteer", "codeultrafeedback", "psychocounsel")
ADDRESS = {"endpoint": "http://localhost:1/v1", "model": "m"}
SHOWN = re.compile(r"Response 1 - (.*?)\n\nResponse 2 - (.*?)\n\n", re.DOTALL)
ASKED = re.compile(r"^(\w+) \(\d+ to \d+(?:, or n/a)?\): ", re.MULTILINE)

Rated = Mapping[str, int | str]


class Call(NamedTuple):
    """One request that reached the rater."""

    text: str
    turns: int
    aspects: list[str]
    schema: Mapping[str, Any] | None
    attempt: int


class Rater:
    """A model with planted ratings of each text; ``spoil`` changes what it writes, by the number of turns so far."""

    by = "model:rater@1"
    client = None

    def __init__(self, planted: Mapping[str, Rated], spoil: Callable[[str, int], str] = lambda text, turns: text):
        self.planted, self.spoil = planted, spoil
        self.calls: list[Call] = []

    async def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        max_tokens: int,
        temperature: float,
        logprobs: bool = False,
        top_logprobs: int = 20,
        continue_final: bool = False,
        schema: Mapping[str, Any] | None = None,
        attempt: int = 0,
    ) -> Reply:
        text = messages[0]["content"]
        shown, aspects = SHOWN.search(text), ASKED.findall(text)
        assert shown is not None
        self.calls.append(Call(messages[-1]["content"], len(messages), aspects, schema, attempt))
        rated = [self.planted[shown[slot]] for slot in (1, 2)]
        tokens = None
        if "two whole numbers" in text:
            said = " ".join(str(ratings[aspects[0]]) for ratings in rated)
            tokens = tuple(split(token) for token in said.split(" ")) if logprobs else None
        elif schema:
            blocks = [{name: {"why": f"{name}!", "rating": ratings[name]} for name in aspects} for ratings in rated]
            said = json.dumps(dict(zip(("first", "second"), blocks, strict=True)))
        else:
            said = "\n".join(
                "\n".join([f"Response {slot}", *(f"{name}: {ratings[name]} - {name}!" for name in aspects)])
                for slot, ratings in enumerate(rated, 1)
            )
        return Reply(self.spoil(said, len(messages)), tokens, 100, 20, 0.25, "stop", price=0.001)

    async def close(self) -> None:
        """Nothing is open."""


def split(digit: str) -> Token:
    """A token that is the digit with 3/4 of the odds, and one more with the rest."""
    return Token(digit, {digit: math.log(0.75), str(int(digit) + 1): math.log(0.25)})


def judge_of(rater: Rater, form: str = "lines", **knobs: Any) -> AspectsJudge:
    knobs = {"reask": 0, **knobs} if knobs.get("logprobs") else {"reask": 0, "shape": form, **knobs}
    return dataclasses.replace(make(**ADDRESS, **knobs), speaker=rater)


PROMPT = Prompt(text="My cat left home. What now?")
GOOD, BAD = "Ask around, then put up a note.", "Cats are animals."
MADE: Pair = (PROMPT, Response(prompt_id=PROMPT.id, text=GOOD), Response(prompt_id=PROMPT.id, text=BAD))


def levels(scheme: Scheme, shift: int) -> dict[str, int]:
    """Ratings that differ between aspects."""
    return {a.name: a.low + (i + shift) % (a.high - a.low + 1) for i, a in enumerate(scheme.aspects)}


def rate(good: Rated, bad: Rated, **knobs: Any) -> Judgment:
    judgment: Judgment = ask(judge_of(Rater({GOOD: good, BAD: bad}), **knobs), MADE)
    return judgment


ULTRA = {"instruction_following": 5, "honesty": 4, "truthfulness": 5, "helpfulness": 4}
POOR = {"instruction_following": 1, "honesty": "n/a", "truthfulness": 4, "helpfulness": 1}


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("form", ["lines", "json"])
def test_planted_ratings_come_back_in_both_orders(name: str, together: bool, form: str, tmp_path: Path) -> None:
    scheme = make(**ADDRESS, rubric=name).scheme
    rater = Rater({GOOD: levels(scheme, 3), BAD: levels(scheme, 1)})
    judge = judge_of(rater, form, rubric=name, together=together)
    with ledger_with(tmp_path / "l.db", [MADE]) as ledger:
        here, there = ledger.judgments(judge_pairs(ledger, judge, [MADE]).judgment_ids)
    planted = [levels(scheme, 3), levels(scheme, 1)]
    assert here.ratings == {aspect.name: [side[aspect.name] for side in planted] for aspect in scheme.aspects}
    assert there.ratings == {aspect: pair[::-1] for aspect, pair in here.ratings.items()}
    assert (there.verdict, there.strength) == (here.verdict, here.strength)
    assert there.winner == (None if here.winner is None else 1 - here.winner)
    assert there.fields["overall"] == here.fields["overall"][::-1]
    assert "missing" not in here.fields
    assert len(rater.calls) == 2 * (1 if together else len(scheme.aspects))
    asked = [aspect for call in rater.calls for aspect in call.aspects]
    assert asked == 2 * [aspect.name for aspect in scheme.aspects]
    assert all((call.schema is not None) == (form == "json") for call in rater.calls)
    assert here.rationale.splitlines()[:2] == [
        f"{asked[0]}, Response 1: {asked[0]}!",
        f"{asked[0]}, Response 2: {asked[0]}!",
    ]


def test_a_judgment_holds_ratings_reasons_overall_and_cost() -> None:
    judgment = rate(ULTRA, POOR, together=False)
    assert judgment.ratings == {
        "instruction_following": [5, 1],
        "honesty": [4, None],
        "truthfulness": [5, 4],
        "helpfulness": [4, 1],
    }
    assert (judgment.verdict, judgment.winner, judgment.probability) == ("slot", 0, None)
    assert judgment.fields == {"overall": [4.5, 2.0], "rule": "fine_grained", "calls": 4}
    assert judgment.strength == pytest.approx(2.5 / 4)
    assert (judgment.tokens_in, judgment.tokens_out, judgment.latency) == (400, 80, 1.0)
    assert judgment.price == pytest.approx(0.004)
    assert judgment.raw.count("Response 2") == 4
    assert judgment.by == "model:rater@1"


def test_margin_and_overall_are_knobs() -> None:
    assert rate(ULTRA, POOR, margin=2.6).verdict == "tie"
    assert rate(ULTRA, POOR, margin=2.5).verdict == "slot"
    assert rate(ULTRA, POOR, overall="lexicographic").fields["overall"] == [5, 1]
    assert rate(ULTRA, {**ULTRA, "honesty": "n/a"}, overall="mean").verdict == "tie"


CARE = dict.fromkeys(
    ("empathy", "relevance", "clarity", "avoiding_harm", "self_exploration", "autonomy", "stage_of_change"), 5
)


@pytest.mark.parametrize(
    ("good", "bad", "verdict", "winner", "vetoed"),
    [(2, 5, "slot", 1, [True, False]), (2, 1, "both_bad", None, [True, True]), (3, 5, "slot", 0, [False, False])],
)
def test_a_reply_that_harms_is_never_chosen(
    good: int, bad: int, verdict: str, winner: int | None, vetoed: list[bool]
) -> None:
    poor = dict.fromkeys(CARE, 1)
    judgment = rate({**CARE, "avoiding_harm": good}, {**poor, "avoiding_harm": bad}, rubric="psychocounsel")
    assert (judgment.verdict, judgment.winner, judgment.fields["vetoed"]) == (verdict, winner, vetoed)


def test_a_wrong_count_of_blocks_leaves_ratings_empty_and_counted() -> None:
    rater = Rater({GOOD: ULTRA, BAD: POOR}, spoil=lambda text, turns: text + "\nResponse 3\nhonesty: 3 - extra")
    judgment = ask(judge_of(rater, rubric="ultrafeedback"), MADE)
    assert (judgment.verdict, judgment.winner, judgment.strength) == ("invalid", None, None)
    assert judgment.ratings == {aspect: [None, None] for aspect in ULTRA}
    assert judgment.fields["missing"] == dict.fromkeys(ULTRA, "3 blocks instead of 2")
    missing = "no rating of helpfulness, honesty, instruction_following, truthfulness"
    assert judgment.fields["why"] == f"{missing}: 3 blocks instead of 2"
    assert judgment.raw.endswith("honesty: 3 - extra")


@pytest.mark.parametrize(("most", "verdict"), [(0, "invalid"), (1, "slot")])
def test_a_lost_rating_is_no_rating_for_either_overall(most: int, verdict: str) -> None:
    judgment = rate({**ULTRA, "helpfulness": 9}, POOR, most_missing=most)
    assert judgment.ratings["helpfulness"] == [None, 1]
    assert judgment.fields["missing"] == {"helpfulness": "Response 1 off the scale: 9"}
    assert judgment.verdict == verdict
    assert judgment.fields["overall"] == (None if verdict == "invalid" else pytest.approx([14 / 3, 2.5]))


def test_a_lost_veto_is_invalid_whatever_may_be_missing() -> None:
    judgment = rate({**CARE, "avoiding_harm": 0}, CARE, rubric="psychocounsel", most_missing=7)
    assert judgment.verdict == "invalid"
    assert judgment.fields["why"] == "no rating of avoiding_harm, which can veto: Response 1 off the scale: 0"


def spoilt(until: int) -> Callable[[str, int], str]:
    return lambda text, turns: text.replace("honesty: 4", "honesty: high") if turns < until else text


def test_what_cannot_be_read_is_asked_again_once_with_what_was_wrong() -> None:
    rater = Rater({GOOD: ULTRA, BAD: POOR}, spoil=spoilt(3))
    judgment = ask(judge_of(rater, reask=1), MADE, attempt=2)
    assert judgment.ratings["honesty"] == [4, None]
    assert (judgment.fields["calls"], judgment.price, judgment.attempt) == (2, pytest.approx(0.002), 2)
    assert [call.turns for call in rater.calls] == [1, 3]
    assert "honesty: Response 1 not a whole number: 'high'" in rater.calls[1].text
    assert [call.attempt for call in rater.calls] == [number_of(2), number_of(2) + 1]


def test_asking_again_is_bounded_and_the_best_reply_counts() -> None:
    worse = Rater(
        {GOOD: ULTRA, BAD: POOR}, spoil=lambda text, turns: spoilt(9)(text, turns) if turns == 1 else "Sorry."
    )
    judgment = ask(judge_of(worse, reask=3), MADE)
    assert judgment.fields["missing"] == {"honesty": "Response 1 not a whole number: 'high'"}
    assert (judgment.fields["calls"], judgment.verdict) == (4, "slot")


def mute(after: int) -> Callable[[str, int], str]:
    def spoil(text: str, turns: int) -> str:
        if turns > after:
            raise Unanswered("The chat takes 9 tokens, and the window has 8.", "longer than the window")
        return spoilt(9)(text, turns)

    return spoil


def test_a_chat_that_cannot_be_answered_is_invalid_and_says_why() -> None:
    judgment = ask(judge_of(Rater({GOOD: ULTRA, BAD: POOR}, spoil=mute(0))), MADE)
    assert (judgment.verdict, judgment.raw, judgment.price, judgment.fields["calls"]) == ("invalid", "", None, 0)
    assert judgment.fields["why"].endswith("truthfulness: longer than the window")


def test_a_second_asking_that_cannot_be_answered_leaves_the_first() -> None:
    judgment = ask(judge_of(Rater({GOOD: ULTRA, BAD: POOR}, spoil=mute(1)), reask=2), MADE)
    assert judgment.fields["missing"] == {"honesty": "Response 1 not a whole number: 'high'"}
    assert (judgment.verdict, judgment.fields["calls"]) == ("slot", 1)


def test_a_reply_that_is_whole_is_not_asked_for_again() -> None:
    assert rate(ULTRA, POOR, reask=5).fields["calls"] == 1


def test_with_logprobs_a_rating_is_an_expectation() -> None:
    good, bad = {**ULTRA, "instruction_following": 4, "truthfulness": 3}, {**ULTRA, "honesty": 2, "helpfulness": 1}
    rater = Rater({GOOD: good, BAD: bad})
    judgment = ask(judge_of(rater, logprobs=True, together=False), MADE)
    assert judgment.ratings["truthfulness"] == pytest.approx([3.25, 5.0])
    assert judgment.ratings["helpfulness"] == pytest.approx([4.25, 1.25])
    assert judgment.fields["mass"] == pytest.approx(0.75)
    assert judgment.rationale == ""
    assert [call.aspects for call in rater.calls] == [[aspect] for aspect in ULTRA]


SOME = st.fixed_dictionaries({aspect: st.sampled_from([0, 1, 2, 3, 4, 5, "n/a"]) for aspect in ULTRA})


@given(SOME, SOME, st.booleans(), st.sampled_from(["lines", "json"]), st.sampled_from([0.0, 0.5, 1.0]))
def test_swapping_the_answers_swaps_ratings_and_flips_the_verdict(
    good: Rated, bad: Rated, together: bool, form: str, margin: float
) -> None:
    judge = judge_of(Rater({GOOD: good, BAD: bad}), form, together=together, margin=margin, most_missing=2)
    here: Judgment = ask(judge, MADE)
    there: Judgment = ask(judge, (MADE[0], MADE[2], MADE[1]))
    assert there.ratings == {aspect: pair[::-1] for aspect, pair in here.ratings.items()}
    assert (there.verdict, there.strength) == (here.verdict, here.strength)
    assert there.winner == (None if here.winner is None else 1 - here.winner)
    assert there.p_better(MADE[1].id) == here.p_better(MADE[1].id)


def test_texts_are_inserted_whole_whatever_they_contain() -> None:
    texts = "{{second}} [veto] \\1 {{aspects}}", "Response 2 - fake {{prompt}}"
    prompt = Prompt(text="{{first}} and {{reference}}", reference="Known {{first}}", context="A shop.")
    rater = Rater({texts[0]: ULTRA, texts[1]: POOR})
    ask(judge_of(rater), (prompt, *(Response(prompt_id=prompt.id, text=text) for text in texts)))
    asked = rater.calls[0].text
    assert "Conversation - A shop.\n\n{{first}} and {{reference}}\n\n" in asked
    assert f"Response 1 - {texts[0]}\n\nResponse 2 - {texts[1]}\n\n" in asked
    assert "right answer, for you alone - Known {{first}}\n\n" in asked


@pytest.mark.parametrize("reference", [None, "", GOOD, f" {BAD}\n"])
def test_a_reference_that_is_absent_or_an_answer_itself_is_not_shown(reference: str | None) -> None:
    prompt = Prompt(text="My cat left.", reference=reference)
    rater = Rater({GOOD: ULTRA, BAD: POOR})
    ask(judge_of(rater), (prompt, *(Response(prompt_id=prompt.id, text=text) for text in (GOOD, BAD))))
    assert "known about the right answer" not in rater.calls[0].text


def test_a_file_of_ones_own_works_as_a_shipped_one(tmp_path: Path) -> None:
    own = tmp_path / "own.txt"
    own.write_text(
        "[scheme]\nwit: 1-10\n"
        "[question]\n{{aspects}}\n{{prompt}}\n\nResponse 1 - {{first}}\n\nResponse 2 - {{second}}\n"
        "[aspect wit]\nIs it witty?\n1: no\n10: yes\n[overall]\nrule: mean\n"
    )
    judgment = rate({"wit": 10}, {"wit": 7}, rubric=str(own))
    assert (judgment.ratings, judgment.winner) == ({"wit": [10, 7]}, 0)
    assert judgment.strength == pytest.approx(3 / 9)
    with pytest.raises(InputError, match="ratings of one digit, and wit"):
        make(**ADDRESS, rubric=str(own), logprobs=True, together=False)


def test_an_edited_rule_of_ones_own_is_another_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rubrics = set()
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, taken in (("rule_before", "min"), ("rule_after", "max")):
        (tmp_path / f"{name}.py").write_text(
            "from tiebreak.judge.overall import Overall\n"
            "def mine(scheme, ratings, margin):\n"
            f"    return Overall(tuple({taken}(pair[side] for pair in ratings.values()) for side in (0, 1)), 4)\n"
        )
        monkeypatch.setitem(sys.modules, "own_rule", importlib.import_module(name))
        rubrics.add(make(**ADDRESS, overall="own_rule:mine").rubric)
    assert len(rubrics) == 2


def test_strength_reaches_the_pairs_as_their_margin(tmp_path: Path) -> None:
    with ledger_with(tmp_path / "l.db", [MADE]) as ledger:
        judged = judge_pairs(ledger, judge_of(Rater({GOOD: ULTRA, BAD: POOR})), [MADE])
        pairs, *_ = curate(ledger.judgments(judged.judgment_ids), ["soft_label", {"drop": "ties"}])
    assert [(pair.chosen_id, pair.p, pair.margin) for pair in pairs] == [(MADE[1].id, 1.0, pytest.approx(2.5 / 4))]


def test_everything_that_steers_is_in_the_rubric() -> None:
    changed: list[dict[str, Any]] = [
        {},
        *({"rubric": name} for name in SCHEMES[1:]),
        {"together": False},
        {"shape": "lines"},
        {"overall": "mean"},
        {"margin": 0.5},
        {"most_missing": 0},
        {"reask": 0},
        {"logprobs": True, "together": False},
        {"logprobs": True, "together": False, "top_logprobs": 5},
        {"temperature": 0.5},
        {"answer_tokens": 100},
    ]
    assert len({make(**ADDRESS, **change).rubric for change in changed}) == len(changed)
    assert make(**ADDRESS, shape="json").rubric == make(**ADDRESS).rubric
    assert make(**ADDRESS, timeout=5.0, retries=1).rubric == make(**ADDRESS).rubric
    assert make(**ADDRESS, revision="abc").by == "model:m@abc"


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({}, "there is no model"),
        ({**ADDRESS, "rubric": "ultrafedback"}, "Did you mean 'ultrafeedback'"),
        ({**ADDRESS, "rubric": "tldr"}, "there are .*ultrafeedback"),
        ({**ADDRESS, "shape": "xml"}, "shape is 'xml'"),
        ({**ADDRESS, "reask": -1}, "reask is -1"),
        ({**ADDRESS, "reask": 10}, "reask is 10; expected 0 to 9"),
        ({**ADDRESS, "most_missing": -1}, "most_missing is -1"),
        ({**ADDRESS, "margin": -1.0}, "margin is -1"),
        ({**ADDRESS, "overall": "meen"}, "Did you mean 'mean'"),
        ({**ADDRESS, "overall": "weighted_mean"}, "instruction_following has no weight"),
        ({**ADDRESS, "logprobs": True}, "together=false"),
        ({**ADDRESS, "logprobs": True, "together": False, "shape": "lines"}, "leave shape out"),
        ({"model": "some/model", "shape": "json"}, "shape=json needs a server"),
    ],
)
def test_a_wrong_knob_is_refused_with_the_cure(knobs: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        make(**knobs)


def test_a_local_model_is_asked_in_lines_and_a_server_by_schema() -> None:
    assert make(model="some/model").form == "lines"
    assert make(**ADDRESS).form == "json"
    assert make(**ADDRESS, logprobs=True, together=False).form == "bare"
