"""Sums whose answer is known exactly: the smallest task that a verifier can teach, in minutes on two cores.

A prompt is a problem such as ``3 7 + 5 8 =``. Digits stand apart, so that each is one token whatever vocabulary a
tokenizer learns from these texts: runs of digits would merge into pieces such as ``37`` and ``58``, of which a small
model has to learn thousands of sums by heart.

Written answers are right with a planted probability. Where digits carry, who errs forgets to carry; elsewhere the
answer is ten off or has two digits swapped. So a model trained on them learns to add and to forget: where forgetting is
the more frequent, its likeliest answer is wrong, while the right one stays within reach of sampling.

Held-out problems (tag ``held-out``) occur in no other prompt, commuted ones included, so memorising does not help.

Not modelled: negative numbers, operands of unequal length, slips that depend on the writer.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

from tiebreak.data.table import Entry
from tiebreak.records import InputError, Prompt, Response

OPERATIONS = "+-"
MOST_DIGITS = 9


class Problem(NamedTuple):
    """Two operands and what is to be done with them; the second of a difference is not the larger one."""

    first: int
    operation: str
    second: int

    @property
    def answer(self) -> int:
        """The exact result, never negative."""
        return self.first + self.second if self.operation == "+" else self.first - self.second

    @property
    def value(self) -> tuple[str, int, int]:
        """What two problems share that are one by commuting."""
        return (self.operation, min(self.first, self.second), max(self.first, self.second))


def spaced(number: int) -> str:
    """Return ``number`` as prompts and answers write it: each digit behind a space."""
    return "".join(f" {digit}" for digit in str(number))


def exact(prompt: Prompt, text: str) -> float:
    """Return 1.0 if what ``text`` says after its last ``=`` is the exact answer to ``prompt``, else 0.0.

    White space does not count; a text without ``=`` is all answer. Worked steps are not looked at.

    Raises:
        InputError: the prompt does not come from this task.
    """
    if "answer" not in prompt.fields:
        raise InputError(
            f"The exact answer needs the field 'answer', which prompt {prompt.id} has not; it was not made by "
            "format=arithmetic, use another rule or reward."
        )
    return float("".join(text.rpartition("=")[2].split()) == str(prompt.fields["answer"]))


def read(
    path: object = None,
    *,
    n: int = 2000,
    held_out: int = 0,
    digits: int = 2,
    operations: str = "+",
    steps: bool = False,
    right: float = 0.5,
    seed: int = 0,
) -> Iterator[Entry]:
    """Yield ``n`` problems with one written answer each, then ``held_out`` problems of the tag ``held-out`` without.

    All problems differ, commuted ones included. The reference is the right answer as a completion writes it, the
    field ``answer`` is its number; a written answer's maker is ``human:KIND`` with KIND ``right``, ``carry``, ``ten``
    or ``swap``. The same seed gives the same problems on every machine, and a larger ``n`` only adds to them; ``path``
    is not used.

    Args:
        path: nothing is read.
        n: problems to train on.
        held_out: problems to test on.
        digits: of each operand.
        operations: signs of OPERATIONS to draw from.
        steps: write what each column gives before the answer, units first: `` 1 5 , 9 = 9 5`` for 3 7 + 5 8.
        right: share of the written answers that are right.
        seed: of all draws.

    Raises:
        InputError: a knob out of range, or fewer different problems than asked for.
    """
    count, tested = max(0, n), max(0, held_out)
    _check(count + tested, digits, operations, right)
    drawn = _problems(random.Random(f"{seed}/problems"), digits, operations)
    problems = [next(drawn) for _ in range(tested + count)]
    for number, problem in enumerate(problems[tested:], 1):
        rng = random.Random(f"{seed}/answer/{number}")
        kind = "right" if rng.random() < right else _kind(rng, problem)
        prompt = _prompt(problem)
        text = spaced(_said(rng, problem, kind))
        if steps:
            worked = columns(problem, carrying=kind != "carry")
            text = f"{' ,'.join(map(spaced, worked))} ={text}"
        yield Entry(
            f"arithmetic:problem:{number}",
            prompt,
            (Response(prompt_id=prompt.id, text=text, maker=f"human:{kind}"),),
            (),
        )
    for number, problem in enumerate(problems[:tested], 1):
        yield Entry(f"arithmetic:held-out:{number}", _prompt(problem, "held-out"), (), ())


def _check(count: int, digits: int, operations: str, right: float) -> None:
    if not 1 <= digits <= MOST_DIGITS:
        raise InputError(f"import.digits is {digits}; expected a whole number from 1 to {MOST_DIGITS}.")
    if not operations or set(operations) - set(OPERATIONS):
        raise InputError(f"import.operations is {operations!r}; expected one or more of the signs {OPERATIONS!r}.")
    if not 0.0 <= right <= 1.0:
        raise InputError(f"import.right is {right}; expected a share from 0 to 1.")
    numbers = 9 * 10 ** (digits - 1)
    there = len(set(operations)) * numbers * (numbers + 1) // 2
    if count > there:
        raise InputError(
            f"import asks for {count} problems, and there are {there} different ones with digits={digits} and "
            f"operations={operations!r}; lower n or held_out, or raise digits."
        )


def _problems(rng: random.Random, digits: int, operations: str) -> Iterator[Problem]:
    """Draw problems without end, each value once."""
    low, high = 10 ** (digits - 1), 10**digits
    seen: set[tuple[str, int, int]] = set()
    while True:
        first, second = rng.randrange(low, high), rng.randrange(low, high)
        operation = rng.choice(operations)
        if operation == "-" and first < second:
            first, second = second, first
        problem = Problem(first, operation, second)
        if problem.value not in seen:
            seen.add(problem.value)
            yield problem


def _prompt(problem: Problem, *tags: str) -> Prompt:
    return Prompt(
        text=f"{spaced(problem.first)} {problem.operation}{spaced(problem.second)} =".lstrip(),
        reference=spaced(problem.answer),
        fields={**problem._asdict(), "answer": problem.answer},
        tags=tags,
        source="tiebreak arithmetic",
        licence="Apache-2.0",
    )


def _kind(rng: random.Random, problem: Problem) -> str:
    """Return what goes wrong: carrying, wherever there is something to carry."""
    if without_carry(problem) != problem.answer:
        return "carry"
    return rng.choice(["ten", "swap"] if _swaps(problem.answer) else ["ten"])


def _said(rng: random.Random, problem: Problem, kind: str) -> int:
    """Return the number that an answer of this kind says; none but ``right`` is the right one."""
    if kind == "carry":
        return without_carry(problem)
    if kind == "ten":
        return problem.answer + (10 if problem.answer < 10 else rng.choice((-10, 10)))
    if kind == "swap":
        return rng.choice(_swaps(problem.answer))
    return problem.answer


def columns(problem: Problem, *, carrying: bool = True) -> list[int]:
    """Return what each column of digits gives, units first; without ``carrying`` nothing moves to the next column.

    A column of a sum is written whole (7 + 8 gives 15), one of a difference as the digit that stays.
    """
    found, carry = [], 0
    for a, b in zip(reversed(str(problem.first)), reversed(str(problem.second)), strict=True):
        total = int(a) + int(b) + carry if problem.operation == "+" else int(a) - int(b) - carry
        carry = int(carrying and not 0 <= total < 10)
        found.append(total if problem.operation == "+" else total % 10)
    return found


def without_carry(problem: Problem) -> int:
    """Return the answer of somebody who never carries or borrows; a sum's first column is written whole all the same.

    5 8 + 6 7 gives 1 1 5.
    """
    *rest, first = columns(problem, carrying=False)
    return int(str(first) + "".join(str(column % 10) for column in reversed(rest)))


def _swaps(answer: int) -> list[int]:
    """Return what swapping two neighbouring digits makes of ``answer``, a leading zero and no change left out."""
    digits = str(answer)
    swapped = (digits[:i] + digits[i + 1] + digits[i] + digits[i + 2 :] for i in range(len(digits) - 1))
    return [int(text) for text in swapped if text != digits and text[0] != "0"]
