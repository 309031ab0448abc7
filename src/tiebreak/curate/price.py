"""Grades that answers pay for, by what they are: their length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tiebreak.curate.knobs import check_number
from tiebreak.curate.marks import EXACT
from tiebreak.curate.table import Rows, Step, graded_of
from tiebreak.records import Graded, InputError


def penalise_length(rows: Rows, *, per_character: float = 0.001) -> Step:
    """Take from each grade a price for every character of the answer, and rank the answers anew.

    It is ``max_min_p`` of Dong et al. 2024 (arXiv 2405.07863) where ``best_worst`` follows; the price is in units of
    the grade, and the default is ours.

    Raises:
        InputError: a price that is no number, or rows without grades.
    """
    price = check_number("penalise_length", "per_character", per_character)
    lists = graded_of(rows, "penalise_length")
    if any(not row.grades for row in lists):
        raise InputError("penalise_length takes from grades, and some rows have none; put ranked_list before it.")
    sizes = {one.id: len(one.text) for one in rows.texts.responses([key for row in lists for key in row.response_ids])}
    return Step([_priced(row, price, sizes) for row in lists], {})


def _priced(row: Graded, price: float, sizes: Mapping[str, int]) -> Graded:
    grades = [round(grade - price * sizes[key], EXACT) for key, grade in zip(row.response_ids, row.grades, strict=True)]
    order = sorted(range(len(grades)), key=lambda i: (-grades[i], row.response_ids[i]))

    def turned(values: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(values[i] for i in order) if values else ()

    return replace(
        row,
        response_ids=turned(row.response_ids),
        grades=turned(tuple(grades)),
        ratings=turned(row.ratings),
        steps=turned(row.steps),
        prompt_ids=turned(row.prompt_ids),
        id="",
    )
