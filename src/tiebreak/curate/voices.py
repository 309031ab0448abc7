"""Whose judgments a step goes by: labels may come from people and strengths from reward models, in one ledger."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeGuard

from tiebreak.curate.knobs import Lacking
from tiebreak.curate.table import Rows
from tiebreak.records import InputError, Judgment
from tiebreak.registry import nearest

By = str | Sequence[str] | None
"""Names of judges as judgments record them, such as ``human:ann`` or ``model:*`` with a star; None is everybody."""


def heard(rows: Rows, by: By, step: str) -> Mapping[str, Sequence[Judgment]]:
    """Return of each item the judgments of those whom ``by`` names; an item that they left out has none.

    Whoever is named may be anybody of whom judgments are known; without a name, those speak that this is about.

    Raises:
        InputError: ``by`` is no name nor a list of names, or nobody has one of them.
    """
    items = rows.said(by)
    if by is None:
        return items
    named = [by] if isinstance(by, str) else by
    if not _is_names(named):
        raise InputError(f"{step} has by = {by!r}; expected the name of a judge, such as human:*, or a list of them.")
    judges = sorted({judgment.by for judgments in items.values() for judgment in judgments})
    for name in named:
        if not any(fnmatchcase(judge, name) for judge in judges):
            raise Lacking(f"{step}: no judgment is by {name!r}; there are {_some(judges)}.{nearest(name, judges)}")
    wanted = {judge for judge in judges if any(fnmatchcase(judge, name) for name in named)}
    return {key: [one for one in judgments if one.by in wanted] for key, judgments in items.items()}


def by_prompt(judgments: Iterable[Judgment]) -> dict[str, list[Judgment]]:
    """Return the judgments of each prompt."""
    found: dict[str, list[Judgment]] = {}
    for judgment in judgments:
        found.setdefault(judgment.prompt_id, []).append(judgment)
    return found


def ids_of(judgments: Iterable[Judgment]) -> tuple[str, ...]:
    """Return the ids of ``judgments``, sorted, as a row records them."""
    return tuple(sorted({judgment.id for judgment in judgments}))


def _is_names(named: object) -> TypeGuard[Sequence[str]]:
    return isinstance(named, list | tuple) and bool(named) and all(isinstance(one, str) for one in named)


def _some(judges: Sequence[str], most: int = 8) -> str:
    more = len(judges) - most
    return ", ".join(judges[:most]) + (f" and {more} more" if more > 0 else "")
