"""What every reader hands over: entries and refused rows, and the small checks that turn a cell into text.

A reader yields one ``Entry`` or one ``Refused`` for each row of its file, so that rows in = entries + refused and
nothing disappears. A bad row is refused and counted; a file that cannot be what it claims to be is an InputError.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tiebreak.records import InputError, Judgment, Prompt, Response

EXAMPLE_LENGTH = 200
"""Characters of a row that a report shows: enough to find it, too few to fill a screen."""


class Entry(NamedTuple):
    """One row of a source as records.

    ``where`` is ``file:line`` (or ``file:row n``). ``notes`` are remarks that a report counts. ``keeps`` names guards
    (``empty_response``, ``equal_responses``) that only remark on this entry instead of refusing it, for sources where
    such a row is a real event: somebody did judge an empty answer.
    """

    where: str
    prompt: Prompt
    responses: tuple[Response, ...]
    judgments: tuple[Judgment, ...]
    notes: tuple[str, ...] = ()
    keeps: tuple[str, ...] = ()


class Refused(NamedTuple):
    """A row that became no record: where it stands, why, and the beginning of what it said."""

    where: str
    reason: str
    example: str


class RowProblem(Exception):
    """A row that cannot be used; a reader turns it into ``Refused`` and goes on with the next row."""


def excerpt(value: object) -> str:
    """Return the beginning of a row or a text as one line, for reports and messages."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = " ".join(text.split())
    return text if len(text) <= EXAMPLE_LENGTH else text[: EXAMPLE_LENGTH - 1] + "…"


def text_cell(row: Mapping[str, Any], column: str, where: str) -> str:
    """Return the text in ``column`` with every byte kept, leading and trailing spaces included.

    Raises:
        RowProblem: the column is missing or null.
        InputError: the column holds something else than text.
    """
    value = row.get(column)
    if value is None:
        raise RowProblem(f"missing {column}")
    if not isinstance(value, str):
        raise wrong_type(where, column, value, "text")
    return value


def wrong_type(where: str, column: str, found: object, expected: str) -> InputError:
    """Return the InputError for a cell of the wrong type; the type of one row tells about the whole column."""
    return InputError(
        f"{where}: column {column!r} holds {excerpt(found)} ({type(found).__name__}); expected {expected}; "
        "correct the file, or read it with format=table and a mapping that turns the column into text."
    )


def number_cell(row: Mapping[str, Any], column: str, where: str) -> float | None:
    """Return the number in ``column``, or None when it is missing or null."""
    value = row.get(column)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong_type(where, column, value, "a number or null")
    return float(value)


def source_name(path: Path) -> str:
    """Return the file's name without its endings: the name of a source that nobody named."""
    return path.name.split(".")[0] or path.name


def pair_entry(
    where: str,
    prompt: Prompt,
    chosen: Response,
    rejected: Response,
    *,
    by: str,
    fields: Mapping[str, Any],
    probability: float | None = None,
    strength: float | None = None,
) -> Entry:
    """Return the entry of a source that only says which of two responses is better.

    The order in which they were shown is unknown, so the chosen one fills the first slot by convention and the judgment
    stays out of every position-bias figure. A probability of exactly 1/2 is a tie.
    """
    tie = probability == 0.5
    judgment = Judgment(
        prompt_id=prompt.id,
        slots=(chosen.id, rejected.id),
        verdict="tie" if tie else "slot",
        winner=None if tie else 0,
        by=by,
        order_known=False,
        probability=probability,
        strength=strength,
        fields=fields,
    )
    return Entry(where, prompt, (chosen, rejected), (judgment,))
