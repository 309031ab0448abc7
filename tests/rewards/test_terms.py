"""What a recipe may write under a reward, what is refused at the door, and what a user's own function may do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.rewards.made import asked
from tiebreak.judge.table import JUDGES
from tiebreak.models.load import Loaded
from tiebreak.records import InputError
from tiebreak.rewards.combine import Gate, Rewards, Schedule, Term, check_terms, read_terms
from tiebreak.rewards.table import REWARDS
from tiebreak.rewards.terms import ENTERS

WHERE = "train.policy.reward"

OWN = """
import functools, math

def polite(prompt, completion, fields):
    return "please" in completion

def short(prompt, completion, fields, scale=1.0, *, unit="word"):
    return -scale * len(completion.split() if unit == "word" else completion)

def needs(prompt, completion, fields, *, gold):
    return float(fields[gold] == completion)

def first(prompt, completion, fields):
    return {"good": 1.0, "none": None, "nan": math.nan, "text": "1"}.get(completion) if completion else 1 / 0

def two(prompt, completion):
    return 1.0

def rest(*args):
    return 1.0

def taken(prompt, completion, fields, weight=1.0):
    return weight

async def late(prompt, completion, fields):
    return 1.0

class Kind:
    def __init__(self, prompt, completion, fields): ...

class Counts:
    def __call__(self, prompt, completion, fields, *, by=1):
        return len(completion) * by

counts = Counts()
half = functools.partial(short, scale=0.5)
NUMBER = 3
"""


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_rewards.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_rewards", raising=False)


def no_model(name: str) -> Loaded:
    raise AssertionError(f"nobody asked for the model {name}")


def read(written: Any) -> list[Term]:
    return read_terms(written, where=WHERE, model=no_model, seed=7)


def totals(written: Any, *texts: str, **prompt: Any) -> list[float | None]:
    return Rewards(read(written))([asked(*texts, **prompt)]).totals[0]


@pytest.mark.parametrize(
    "written",
    ["exact", ["exact"], {"exact": None}, {"exact": {}}, {"exact": {"answer": ""}}, {"exact": ""}, [{"exact": {}}]],
)
def test_a_reward_is_written_in_several_ways(written: Any) -> None:
    assert totals(written, "Paris.", "Rome", reference="paris") == [1.0, 0.0]


def test_a_value_alone_is_the_first_knob() -> None:
    assert totals({"rule": "longer"}, "four") == [4.0]
    assert totals({"regex": "^a"}, "ab", "ba") == [1.0, 0.0]
    assert totals({"exact": "gold"}, "b", reference="a", fields={"gold": "b"}) == [1.0]


def test_terms_say_how_they_enter() -> None:
    exact, length, f1, ends = read(
        [
            {"exact": {"weight": 2, "clip": [0, 0.5], "normalise": "group"}},
            {"length": {"most": 5, "weight": {"from": 0, "to": 1, "over": 0.5}}},
            {"f1": {"as": "product"}},
            {"ends": {"gate": {"least": 1, "otherwise": -1}}},
        ]
    )
    assert (exact.weight, exact.clip, exact.normalise, exact.role) == (2.0, (0.0, 0.5), "group", "sum")
    assert length.weight == Schedule(start=0.0, end=1.0, over=0.5)
    assert (f1.role, f1.gate) == ("product", None)
    assert (ends.role, ends.gate) == ("gate", Gate(1.0, -1.0))


def test_the_whole_way_from_a_recipe_to_a_number() -> None:
    written = [
        {"exact": {"weight": 10}},
        {"length": {"unit": "words", "most": 2, "weight": {"from": 0.0, "to": 1.0}}},
        {"ends": {"as": "gate", "gate": {"least": 1, "otherwise": -10}}},
    ]
    rewards = Rewards(read(written))
    answered = [asked("the end", "a b c d", reference="end"), asked("x", finish="length", reference="x")]
    assert rewards(answered, done=0.0).totals == [[10.0, 0.0], [-10.0]]
    assert rewards(answered, done=1.0).totals == [[10.0, -2.0], [-10.0]]


def test_two_terms_of_one_name_have_two_labels() -> None:
    labels = [term.label for term in read([{"regex": "a"}, {"regex": "b"}, "own_rewards:polite", {"regex": "c"}])]
    assert labels == ["regex", "regex-2", "polite", "regex-3"]


REFUSED: list[tuple[Any, str]] = [
    ("exakt", "Did you mean 'exact'"),
    ([], "names no reward"),
    (3, "expected a name or one name with its knobs"),
    ([["exact"]], "expected a name or one name with its knobs"),
    ({"exact": {}, "f1": {}}, "expected a name or one name with its knobs"),
    ({"ends": 3}, "'ends' has no knobs"),
    ({"exact": {"anser": "x"}}, r"train.policy.reward.exact has no knob 'anser'.*Did you mean 'answer'"),
    ({"exact": {"wieght": 2}}, "Did you mean 'weight'"),
    ({"exact": {"answer": 3}}, "answer is 3; expected text"),
    ({"exact": {"answer": None}}, "answer is None; expected text"),
    ({"exact": {"normalise": "yes"}}, "normalise is 'yes'; expected none, whiten, running, group"),
    ({"exact": {"literal": "yes"}}, "literal is 'yes'; expected true or false"),
    ({"exact": {"normalise": "runing"}}, "Did you mean 'running'"),
    ({"regex": {"pattern": "a", "whole": 1}}, "whole is 1; expected true or false"),
    ({"exact": {"weight": "2"}}, "weight is '2'; expected a number"),
    ({"exact": {"weight": True}}, "weight is True; expected a number"),
    ({"exact": {"weight": float("nan")}}, "weight is nan"),
    ({"exact": {"weight": float("inf")}}, "expected a finite number"),
    ({"exact": {"weight": {"from": 1}}}, "from: a, to: b"),
    ({"exact": {"weight": {"from": 1, "to": 2, "until": 3}}}, "from: a, to: b"),
    ({"exact": {"weight": {"from": 1, "to": 2, "over": 0}}}, "above 0 and up to 1"),
    ({"exact": {"clip": 3}}, r"expected \[low, high\]"),
    ({"exact": {"clip": [1, 0]}}, "the lower bound first"),
    ({"exact": {"as": "summ"}}, "expected sum, product, or gate"),
    (["f1", {"exact": {"as": "gate"}}], "expected sum, product, or gate"),
    (["f1", {"exact": {"as": "sum", "gate": {"least": 1, "otherwise": 0}}}], "beside a gate"),
    (["f1", {"exact": {"gate": 1}}], "expected {least"),
    (["f1", {"exact": {"gate": {"least": 1}}}], "expected {least"),
    (["f1", {"exact": {"as": "product", "weight": 2}}], "only what is added up has one"),
    ({"exact": {"as": "product"}}, "nothing to add up"),
    ("rule", "'rule' needs a rule"),
    ({"rule": "longest"}, "Did you mean 'longer'"),
    ("regex", "needs a pattern"),
    ({"regex": "("}, "no regular expression"),
    ({"choice": {"letters": "A"}}, "the letters to choose from"),
    ({"choice": {"letters": "1234"}}, "the letters to choose from"),
    ({"json": {"keys": ["a"]}}, "expected keys with values"),
    ({"json": {"keys": {"a": "sting"}}}, "Did you mean 'string'"),
    ({"math": {"library": "no"}}, "expected auto, never, always"),
    ("length", "neither least nor most"),
    ("model", "names no model"),
    ({"model": {"model": "rm", "cut": "middle"}}, "cut: start or end"),
    ({"model": {"model": "rm", "batch": 0}}, "a batch of 1 or more"),
    ({"model": {"model": "rm", "batch": 2.5}}, "expected a whole number"),
    ("judge_score", "endpoint is missing"),
    ({"judge_score": {"endpoint": "http://localhost:1/v1", "model": "m", "rubric": "tldrr"}}, "Did you mean 'tldr'"),
    ({"judge_score": {"endpoint": "http://localhost:1/v1", "model": "m", "ten": "three"}}, "expected auto, one, two"),
    ({"judge_score": {"endpoint": "http://localhost:1/v1", "model": "m", "concurrency": 0}}, "expected 1 or more"),
    ("judge_against", "needs endpoint"),
    ({"judge_against": {"by": "pairwize"}}, "Did you mean 'pairwise'"),
    ({"judge_against": {"by": "rule", "rule": "longer", "sharpnes": 1}}, "Did you mean 'sharpness'"),
    ({"judge_against": {"by": "rule", "rule": "longer", "slot_bias": 2.0}}, "slot_bias is 2.0"),
    ("own_rewards", "Did you mean|There is no reward"),
    ("own_rewards:polit", "Did you mean 'polite'"),
    ("nowhere_at_all:polite", "no module 'nowhere_at_all'"),
    ({"own_rewards:polite": {"scale": 2}}, "has no knob 'scale'"),
    ({"own_rewards:short": {"scale": "big"}}, "scale is 'big'; expected a number"),
    ("own_rewards:needs", "needs the knob 'gold'"),
    ("own_rewards:two", "takes 2 arguments"),
    ("own_rewards:taken", "a word of the recipe; rename it"),
    ("own_rewards:late", "no plain function"),
    ("own_rewards:Kind", "no plain function"),
    ("own_rewards:NUMBER", "no plain function"),
]


@pytest.mark.parametrize(("written", "said"), REFUSED, ids=lambda value: str(value)[:60])
def test_what_is_wrong_is_refused_at_the_door(written: Any, said: str) -> None:
    for door in (lambda: check_terms(written, where=WHERE), lambda: read(written)):
        with pytest.raises(InputError, match=said):
            door()


def test_your_own_function_is_a_reward() -> None:
    assert totals("own_rewards:polite", "please", "now") == [1.0, 0.0]
    assert totals({"own_rewards:short": {"scale": 2.0, "unit": "letter"}}, "ab c") == [-8.0]
    assert totals({"own_rewards:short": 3.0}, "ab c") == [-6.0]
    assert totals({"own_rewards:needs": {"gold": "g"}}, "x", fields={"g": "x"}) == [1.0]
    assert totals({"own_rewards:needs": "g"}, "x", fields={"g": "x"}) == [1.0]
    assert totals("own_rewards:rest", "x") == [1.0]
    assert totals({"own_rewards:counts": {"by": 2}}, "abc") == [6.0]
    assert totals("own_rewards:half", "ab c") == [-1.0]


def test_what_your_own_function_does_wrong_costs_one_completion_and_is_counted() -> None:
    done = Rewards(read("own_rewards:first"))([asked("good", "none", "nan", "text", "", "", "good")])
    assert done.totals == [[1.0, None, None, None, None, None, 1.0]]
    assert done.faults == {
        "reward first: it gave None": 1,
        "reward first: nan": 1,
        "reward first: it gave a str in place of a number: '1'": 1,
        "reward first: ZeroDivisionError: division by zero": 2,
    }


def test_when_every_completion_fails_the_run_stops_with_the_first_error() -> None:
    with pytest.raises(InputError, match=r"'needs' could not score 2 of 2.*KeyError: 'gone'; mend the function"):
        totals({"own_rewards:needs": {"gold": "gone"}}, "a", "b")


def test_a_missing_answer_is_counted_and_named() -> None:
    with_one, without = asked("a", reference="a", text="1"), asked("a", "b", text="2")
    done = Rewards(read("exact"))([with_one, without])
    assert done.totals == [[1.0], [None, None]]
    assert done.faults == {"reward exact: the prompt has no reference": 2}
    with pytest.raises(InputError, match="no known answer in the field 'gold'; name the field that holds"):
        totals({"exact": "gold"}, "a", reference="a")


def test_what_a_verifier_refuses_is_a_fault_too() -> None:
    done = Rewards(read({"rule": "overlap"}))([asked("a", reference="a", text="1"), asked("a", text="2")])
    assert done.totals == [[0.5], [None]]
    (reason,) = done.faults
    assert reason.startswith("reward rule: InputError: The rule 'overlap' compares with a reference")


def test_checking_asks_for_no_model_and_waits_for_an_address_from_the_environment() -> None:
    check_terms({"model": {"model": "reward", "weight": 2}}, where=WHERE)
    check_terms({"judge_score": {"endpoint": "${JUDGE_URL}", "model": "m"}}, where=WHERE)
    check_terms({"judge_against": {"endpoint": "${JUDGE_URL}", "model": "m"}}, where=WHERE)
    with pytest.raises(InputError, match="has no knob 'modle'"):
        check_terms({"judge_score": {"endpoint": "${JUDGE_URL}", "modle": "m"}}, where=WHERE)


def test_every_shipped_reward_can_be_checked() -> None:
    needs: dict[str, dict[str, Any]] = {
        "model": {"model": "reward"},
        "rule": {"rule": "world"},
        "judge_score": {"endpoint": "http://localhost:1/v1", "model": "m"},
        "judge_against": {"by": "rule", "rule": "world"},
        "regex": {"pattern": "."},
        "length": {"most": 5},
    }
    for row in REWARDS:
        check_terms({row.name: needs.get(row.name, {})}, where=WHERE)
    assert set(needs) <= {row.name for row in REWARDS}


def test_no_reward_has_a_knob_that_means_how_a_term_enters() -> None:
    assert not {knob for row in REWARDS for knob in row.knobs or ()} & set(ENTERS)
    assert not {knob for row in JUDGES for knob in row.knobs or ()} & set(ENTERS)


@pytest.mark.parametrize("module", ["table", "combine", "terms", "verify", "maths", "judged"])
def test_reading_and_checking_rewards_loads_nothing_heavy(module: str) -> None:
    code = (
        f"import sys, tiebreak.rewards.{module}\n"
        "from tiebreak.rewards.combine import check_terms\n"
        "check_terms([{'model': 'rm'}, 'math', {'rule': 'world'}], where='x')\n"
        "print(sorted({'torch', 'transformers', 'sympy', 'math_verify', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
