"""Sums with a known answer: the truth is exact, slips are what they claim to be, and no problem is on both sides."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import Counter
from typing import Any

import pytest

from tiebreak.data.arithmetic import Problem, columns, exact, read, spaced, without_carry
from tiebreak.data.table import Entry
from tiebreak.records import InputError, Prompt, to_dict


def entries(n: int = 3000, held_out: int = 300, **knobs: Any) -> list[Entry]:
    return list(read(n=n, held_out=held_out, **knobs))


def kind_of(entry: Entry) -> str:
    return entry.responses[0].maker.removeprefix("human:")


def problem_of(entry: Entry) -> Problem:
    fields = entry.prompt.fields
    return Problem(fields["first"], fields["operation"], fields["second"])


def held_out(entry: Entry) -> bool:
    return "held-out" in entry.prompt.tags


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "steps": {"steps": True, "right": 0.4},
    "long": {"digits": 3, "operations": "+-"},
    "both": {"digits": 2, "operations": "+-", "steps": True},
}
TASKS = {name: entries(**knobs) for name, knobs in SETTINGS.items()}
every_task = pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (" 9 5", 1.0),
        ("95", 1.0),
        ("\n9 5 ", 1.0),
        (" 1 5 , 9 = 9 5", 1.0),
        (" 1 5 , 8 = 9 5", 1.0),
        (" 9 5 = 8 5", 0.0),
        (" 8 5", 0.0),
        (" 0 9 5", 0.0),
        (" 9 5 .", 0.0),
        (" 9 5 =", 0.0),
        (" 5", 0.0),
        ("", 0.0),
    ],
)
def test_an_answer_is_right_or_wrong(text: str, value: float) -> None:
    assert exact(Prompt(text="3 7 + 5 8 =", fields={"answer": 95}), text) == value


def test_a_prompt_from_elsewhere_has_no_truth_here() -> None:
    with pytest.raises(InputError, match="was not made by format=arithmetic"):
        exact(Prompt(text="What is 2 + 2?"), "4")


@pytest.mark.parametrize(
    ("problem", "worked", "forgotten"),
    [
        (Problem(37, "+", 58), [15, 9], 85),
        (Problem(58, "+", 67), [15, 12], 115),
        (Problem(40, "+", 59), [9, 9], 99),
        (Problem(746, "+", 966), [12, 11, 17], 1602),
        (Problem(999, "+", 101), [10, 10, 11], 1090),
        (Problem(52, "-", 37), [5, 1], 25),
        (Problem(329, "-", 254), [5, 7, 0], 175),
        (Problem(500, "-", 499), [1, 0, 0], 111),
        (Problem(9, "+", 4), [13], 13),
    ],
)
def test_columns_and_forgotten_carries_are_worked_by_hand(problem: Problem, worked: list[int], forgotten: int) -> None:
    assert columns(problem) == worked
    assert without_carry(problem) == forgotten


def test_columns_add_up_to_the_answer() -> None:
    for first, second in itertools.product(range(10, 100), repeat=2):
        for problem in (Problem(first, "+", second), Problem(max(first, second), "-", min(first, second))):
            units, tens = columns(problem)
            assert problem.answer == tens * 10 + units % 10


@every_task
def test_prompts_and_references_are_the_problem_and_its_answer_in_digits_apart(task: list[Entry]) -> None:
    for entry in task:
        problem = problem_of(entry)
        compact = entry.prompt.plain.replace(" ", "")
        assert compact == f"{problem.first}{problem.operation}{problem.second}="
        assert entry.prompt.fields["answer"] == problem.answer >= 0
        assert entry.prompt.reference == spaced(problem.answer)
        assert exact(entry.prompt, entry.prompt.reference) == 1.0
        for text in (entry.prompt.plain, entry.prompt.reference, *(r.text for r in entry.responses)):
            assert not re.search(r"\d\d", text), text
        for text in (entry.prompt.reference, *(r.text for r in entry.responses)):
            assert re.match(r" \S", text)
            assert text == text.rstrip()


@every_task
def test_no_problem_comes_twice_not_even_turned_round(task: list[Entry]) -> None:
    values = [(p.operation, frozenset((p.first, p.second))) for p in map(problem_of, task)]
    assert len(set(values)) == len(task) == 3300
    assert len({entry.prompt.group for entry in task}) == 3300
    assert Counter(map(held_out, task)) == {False: 3000, True: 300}


@every_task
def test_training_problems_have_one_written_answer_and_held_out_ones_none(task: list[Entry]) -> None:
    assert all(len(entry.responses) == (not held_out(entry)) for entry in task)


@pytest.mark.parametrize("name", TASKS)
def test_written_answers_are_right_as_often_as_planned_and_wrong_as_they_say(name: str) -> None:
    share = SETTINGS[name].get("right", 0.5)
    taught = [entry for entry in TASKS[name] if not held_out(entry)]
    kinds = Counter(map(kind_of, taught))
    assert set(kinds) == {"right", "carry", "ten", "swap"}
    assert abs(kinds["right"] / len(taught) - share) < 4 * (share * (1 - share) / len(taught)) ** 0.5
    for entry in taught:
        problem, kind = problem_of(entry), kind_of(entry)
        said = int(entry.responses[0].text.rpartition("=")[2].replace(" ", ""))
        assert exact(entry.prompt, entry.responses[0].text) == (kind == "right")
        assert (kind in ("ten", "swap")) <= (without_carry(problem) == problem.answer)
        if kind == "carry":
            assert said == without_carry(problem)
        elif kind == "ten":
            assert abs(said - problem.answer) == 10
        elif kind == "swap":
            assert sorted(str(said)) == sorted(str(problem.answer))


def test_steps_are_the_columns_that_the_writer_worked() -> None:
    for entry in TASKS["both"]:
        if held_out(entry):
            continue
        work, _, said = entry.responses[0].text.partition(" =")
        carrying = kind_of(entry) != "carry"
        assert [int(column.replace(" ", "")) for column in work.split(" ,")] == columns(
            problem_of(entry), carrying=carrying
        )
        assert said.count(" ") == len(said) / 2


@pytest.mark.parametrize(("share", "kinds"), [(0.0, {"carry", "ten", "swap"}), (1.0, {"right"})])
def test_all_or_none_of_the_written_answers_are_right(share: float, kinds: set[str]) -> None:
    assert {kind_of(entry) for entry in entries(200, 0, right=share)} == kinds


def test_the_same_seed_gives_the_same_problems_on_every_machine() -> None:
    ids = [(e.prompt.id, [r.id for r in e.responses]) for e in entries(200, 20, operations="+-", steps=True, seed=7)]
    assert hashlib.sha256(str(ids).encode()).hexdigest()[:16] == "571e7469761d3bd5"
    assert entries(200, 20, seed=8)[0].prompt.id != entries(200, 20, seed=7)[0].prompt.id


def test_a_larger_task_begins_with_the_smaller_one_and_has_the_same_test() -> None:
    small, large = entries(50, 9), entries(80, 9)
    assert [to_dict(e.prompt) for e in small[:50]] == [to_dict(e.prompt) for e in large[:50]]
    assert [e.responses for e in small[:50]] == [e.responses for e in large[:50]]
    assert small[50:] == large[80:]


def test_all_problems_there_are_can_be_asked_for() -> None:
    whole = entries(40, 5, digits=1)
    assert {problem_of(e).value for e in whole} == {("+", a, b) for a in range(1, 10) for b in range(a, 10)}


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"n": 41, "held_out": 5, "digits": 1}, "asks for 46 problems, and there are 45"),
        ({"digits": 0}, "digits is 0"),
        ({"digits": 10}, "digits is 10"),
        ({"operations": "*"}, r"operations is '\*'"),
        ({"operations": ""}, "operations is ''"),
        ({"right": 1.5}, "right is 1.5"),
        ({"right": float("nan")}, "right is nan"),
    ],
)
def test_what_cannot_be_made_is_refused(knobs: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        list(read(**knobs))


def test_a_trained_vocabulary_has_one_token_a_digit() -> None:
    pytest.importorskip("transformers")
    from tiebreak.models.load import train_tokenizer

    texts = [text for entry in TASKS["both"] for text in (entry.prompt.plain, *(r.text for r in entry.responses))]
    tokenizer = train_tokenizer(texts, vocabulary=2048)
    signs = {f" {sign}" for sign in "0123456789+-=,"}
    assert {tokenizer.decode([i]) for i in range(len(tokenizer))} >= signs
    for text in texts[:200]:
        assert len(tokenizer(text)["input_ids"]) == len(text.split())
