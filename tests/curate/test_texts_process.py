"""Labels at the ends of steps: exact places in the text, whatever is between the steps."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.curate.texts import Told, question
from tiebreak.curate.process import line_ends, process, stepwise
from tiebreak.records import Graded, InputError, Pair, Prompt

ASKED = Prompt(text="2 + 2 * 3?")


def test_steps_end_behind_their_last_character() -> None:
    """Card 87 and TRL's shape: a prompt, a list of completions, a label for each."""
    done = stepwise(ASKED, ["2 * 3 = 6.", "2 + 6 = 9.", "So 9."], [True, False, False])
    assert done.response.text == "2 * 3 = 6.\n2 + 6 = 9.\nSo 9."
    assert done.row.steps == (((10, 1.0), (21, 0.0), (27, 0.0)),)
    assert (done.row.prompt_id, done.row.response_ids, done.row.grades) == (ASKED.id, (done.response.id,), (0.0,))
    assert done.response.prompt_id == done.prompt.id == ASKED.id


steps = st.lists(st.tuples(st.text(min_size=1, max_size=6), st.floats(0, 1)), min_size=1, max_size=6)


@settings(max_examples=100, deadline=None)
@given(steps, st.sampled_from(["\n", "\n\n", "", " ки\n"]))
def test_the_text_before_an_end_is_the_steps_up_to_it(some: list[tuple[str, float]], separator: str) -> None:
    parts, labels = [part for part, _ in some], [label for _, label in some]
    done = stepwise(ASKED, parts, labels, separator=separator)
    (ends,) = done.row.steps
    assert len(ends) == len(parts)
    assert [done.response.text[:end] for end, _ in ends] == [
        separator.join(parts[: number + 1]) for number in range(len(parts))
    ]
    assert [p for _, p in ends] == labels
    assert done.row.grades == (min(labels),)


@pytest.mark.parametrize(
    ("completions", "labels", "words"),
    [
        ([], [], "0 completions and 0 labels"),
        (["a"], [1, 0], "1 completions and 2 labels"),
        (["a", ""], [1, 1], "Step 1 of a stepwise row is ''"),
        (["a"], [1.5], "Step 0 .* label 1.5"),
    ],
)
def test_a_stepwise_row_that_is_none_is_refused(completions: list[str], labels: list[float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        stepwise(ASKED, completions, labels)


def graded(*answers: tuple[str, float], errors: Any = ()) -> Told:
    """A row that stands alone for each answer; ``errors`` are what judgments say of their first wrong lines."""
    told = Told()
    for number, (text, grade) in enumerate(answers):
        prompt = question(f"Q{number}?")
        own, other = told.answer(prompt, text), told.answer(prompt, "other")
        said = [
            told.judged(prompt, *(own, other)[:: -1 if attempt else 1], attempt=attempt, fields={"first_error": error})
            for attempt, error in enumerate(errors)
        ]
        ids = tuple(judgment.id for judgment in said)
        told.rows.append(Graded(prompt_id=prompt.id, response_ids=(own.id,), grades=(grade,), judgment_ids=ids))
    return told


def test_every_line_end_has_the_grade_of_its_answer() -> None:
    text = "one\n\n  two \n \nthree\n"
    told = graded((text, 0.75), (" \n\n", 1.0), ("whole", 0.0))
    done = told.later(process)
    assert line_ends(text) == [3, 11, 19]
    assert [row.steps for row in done.rows] == [(((3, 0.75), (11, 0.75), (19, 0.75)),), (((5, 0.0),),)]
    assert [row.grades for row in done.rows] == [(0.75,), (0.0,)]
    assert dict(done.dropped) == {"an answer without a line": 1}
    assert [row.id for row in done.rows] != [row.id for row in told.rows if row.grades != (1.0,)]


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([[1, None]], [(3, 1.0), (7, 0.0)]),
        ([[0, 0]], [(3, 0.0)]),
        ([[-1, 0]], [(3, 1.0), (7, 1.0), (13, 1.0)]),
        ([[2, None], [None, -1]], [(3, 1.0), (7, 1.0), (13, 0.5)]),
        ([[0, None], [None, 1]], [(3, 0.5), (7, 0.0)]),
        ([[0, None], [0, None]], [(3, 0.0)]),
    ],
)
def test_lines_before_the_first_wrong_one_are_right_and_those_behind_it_are_open(
    errors: list[Any], expected: list[tuple[int, float]]
) -> None:
    told = graded(("one\ntwo\nthree", 1.0), errors=errors)
    done = told.later(process, supervision="first_error")
    assert done.rows[0].steps == (tuple(expected),)


def test_an_answer_of_which_nobody_tells_the_first_error_goes() -> None:
    for errors in ([], [[None, 1]], [None]):
        done = graded(("one\ntwo", 1.0), errors=errors).later(process, supervision="first_error")
        assert list(done.rows) == []
        assert dict(done.dropped) == {"no judgment tells the first wrong line": 1}


def test_lists_are_labelled_answer_by_answer() -> None:
    told = Told()
    prompt = question("Q?")
    ids = tuple(told.answer(prompt, text).id for text in ("a\nb", "c"))
    told.rows = [Graded(prompt_id=prompt.id, response_ids=ids, grades=(1.0, 0.25))]
    assert told.later(process).rows[0].steps == (((1, 1.0), (3, 1.0)), ((1, 0.25),))


@pytest.mark.parametrize(
    ("told", "knobs", "words"),
    [
        (graded(("a", 3.0)), {}, r"has \[3.0\]; put unpair before it"),
        (graded(("a", 1.0)), {"supervision": "first error"}, r"Did you mean 'first_error'"),
        (graded(("a", 1.0), errors=[[1, 0]]), {"supervision": "first_error"}, "line 1 of an answer with 1 lines"),
        (graded(("a", 1.0), errors=[[0]]), {"supervision": "first_error"}, r"first_error \[0\]; expected for each"),
        (graded(("a", 1.0), errors=[0]), {"supervision": "first_error"}, "first_error 0; expected for each"),
        (graded(("a", 1.0), errors=[["0", 0]]), {"supervision": "first_error"}, "expected for each answer"),
        (graded(("a", 1.0), errors=[[-2, 0]]), {"supervision": "first_error"}, "-1 where none is wrong"),
    ],
)
def test_what_is_no_grade_or_no_line_is_refused(told: Told, knobs: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        told.later(process, **knobs)


def test_pairs_have_no_steps_to_label() -> None:
    told = Told()
    told.pair(question("Q?"), "a", "b")
    assert isinstance(told.rows[0], Pair)
    with pytest.raises(InputError, match="works on graded answers"):
        told.later(process)
