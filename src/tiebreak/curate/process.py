"""Rows with a label at the end of each step of an answer, for reward models that score the way and not only the end."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import fsum
from typing import NamedTuple

from tiebreak.curate.table import Rows, Step, graded_of
from tiebreak.curate.words import judgments_of, words_of
from tiebreak.records import Graded, InputError, Judgment, Prompt, Response
from tiebreak.registry import nearest

EMPTY = "an answer without a line"
UNTOLD = "no judgment tells the first wrong line"
"""Why :func:`process` drops a row."""

SUPERVISION = ("outcome", "first_error")

_LINE = re.compile(r"[^\n]*\S[^\n]*")


class Stepwise(NamedTuple):
    """One answer in steps as records: its prompt, itself, and the row that trains on it."""

    prompt: Prompt
    response: Response
    row: Graded


def stepwise(
    prompt: Prompt, completions: Sequence[str], labels: Sequence[float], *, separator: str = "\n", maker: str = ""
) -> Stepwise:
    """Turn a row of TRL's stepwise shape into records: the steps joined by ``separator`` are one answer.

    ``labels`` are P(the step is right), or True and False. A step ends behind its last character, before the separator:
    ``text[:end]`` ends with the step, so the token to label is the one with that character in it, whatever the
    tokenizer makes of the separator. The row's grade is the smallest label: no answer is surer than its worst step.

    Raises:
        InputError: no steps, an empty one, another number of labels than steps, or a label outside 0 to 1.
    """
    if not completions or len(completions) != len(labels):
        raise InputError(
            f"A stepwise row has {len(completions)} completions and {len(labels)} labels; expected a label for each, "
            "and one or more."
        )
    ends: list[tuple[int, float]] = []
    text = ""
    for number, (step, label) in enumerate(zip(completions, labels, strict=True)):
        if not step or not 0.0 <= label <= 1.0:
            raise InputError(
                f"Step {number} of a stepwise row is {step!r} with the label {label!r}; expected a text and a label "
                "from 0 to 1."
            )
        text += (separator if number else "") + step
        ends.append((len(text), float(label)))
    response = Response(prompt_id=prompt.id, text=text, maker=maker)
    grade = min(label for _, label in ends)
    row = Graded(prompt_id=prompt.id, response_ids=(response.id,), grades=(grade,), steps=(tuple(ends),))
    return Stepwise(prompt, response, row)


def process(rows: Rows, *, supervision: str = "outcome") -> Step:
    """Label the end of each line that is not blank in the answers of graded rows.

    ``outcome`` gives every line of an answer its grade, P(it is right): cheap, and wrong about lines before an error
    (Uesato et al. 2022, arXiv 2211.14275). ``first_error`` reads the judgments behind the row, whose field
    ``first_error`` has for each answer shown the number of its first wrong line among those not blank, from 0, or -1
    where none is wrong: lines before it are right, it is wrong, and those behind it have no label (Lightman et al.
    2023, arXiv 2305.20050). Judges who disagree are averaged line by line.

    Raises:
        InputError: an unknown supervision, grades outside 0 to 1 for ``outcome``, or a first error that is no line.
    """
    if supervision not in SUPERVISION:
        raise InputError(
            f"process has supervision = {supervision!r}; expected {' or '.join(SUPERVISION)}."
            f"{nearest(str(supervision), SUPERVISION)}"
        )
    graded, known = graded_of(rows, "process", "unpair, ranked_list or attributes"), judgments_of(rows)
    responses = words_of(rows, (), (key for row in graded for key in row.response_ids)).responses
    dropped: Counter[str] = Counter()
    found: list[Graded] = []
    for row in graded:
        lines = [line_ends(responses[key].text) for key in row.response_ids]
        if not all(lines):
            dropped[EMPTY] += 1
            continue
        if supervision == "outcome":
            steps = [[(end, grade) for end in ends] for ends, grade in zip(lines, _grades(row), strict=True)]
        else:
            judgments = [known[key] for key in row.judgment_ids if key in known]
            steps = [_until(ends, _errors(judgments, key)) for ends, key in zip(lines, row.response_ids, strict=True)]
        if all(steps):
            found.append(replace(row, steps=tuple(tuple(of_one) for of_one in steps), id=""))
        else:
            dropped[UNTOLD] += 1
    return Step(found, dropped)


def line_ends(text: str) -> list[int]:
    """Return where each line of ``text`` that is not blank ends, before its line break."""
    return [line.end() for line in _LINE.finditer(text)]


def _grades(row: Graded) -> Sequence[float]:
    if len(row.grades) != len(row.response_ids) or not all(0.0 <= grade <= 1.0 for grade in row.grades):
        raise InputError(
            f"process takes grades as P(the answer is right), and the row {row.id} has {list(row.grades)}; put unpair "
            "before it, or take supervision = first_error."
        )
    return row.grades


def _errors(judgments: Sequence[Judgment], response_id: str) -> dict[str, int]:
    """Return the first wrong line of an answer by judgment, of those that tell it."""
    found: dict[str, int] = {}
    for judgment in judgments:
        said = judgment.fields.get("first_error")
        if said is None or response_id not in judgment.slots:
            continue
        told = said if isinstance(said, list | tuple) else [said]
        if len(told) != len(judgment.slots) or not all(
            line is None or (isinstance(line, int) and not isinstance(line, bool) and line >= -1) for line in told
        ):
            raise InputError(
                f"The judgment {judgment.id} has first_error {said!r}; expected for each answer shown the number of a "
                "line from 0, -1 where none is wrong, or null."
            )
        line = told[judgment.slots.index(response_id)]
        if line is not None:
            found[judgment.id] = line
    return found


def _until(ends: Sequence[int], errors: Mapping[str, int]) -> list[tuple[int, float]]:
    """Return the ends that some judgment labels, each with the mean of what they say of it."""
    if late := [key for key, line in errors.items() if line >= len(ends)]:
        raise InputError(
            f"The judgment {late[0]} has its first error in line {errors[late[0]]} of an answer with {len(ends)} lines "
            "that are not blank; they count from 0."
        )
    found: list[tuple[int, float]] = []
    for number, end in enumerate(ends):
        said = [float(line != number) for line in errors.values() if line == -1 or number <= line]
        if said:
            found.append((end, round(fsum(said) / len(said), 12)))
    return found
