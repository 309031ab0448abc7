"""Ask people in a terminal, and say how far everybody is."""

from __future__ import annotations

import getpass
from typing import Any

from tiebreak.recipe import Recipe
from tiebreak.records import InputError
from tiebreak.run.collecting import collection
from tiebreak.run.run import open_ledger


def ask(recipe: Recipe, annotator: str | None) -> int:
    """Ask somebody in this terminal until they quit or nothing is left for them; returns their answers of now.

    Args:
        recipe: of the project, see :func:`tiebreak.run.collecting.collection`.
        annotator: their name; the login name when None.

    Raises:
        InputError: there is nothing to ask, or the name cannot be one.
    """
    from rich.console import Console

    from tiebreak.collect.keyboard import Keyboard
    from tiebreak.collect.queue import person
    from tiebreak.collect.terminal import collect

    by = person(_login() if annotator is None else annotator)
    with open_ledger(recipe) as ledger, collection(recipe, ledger) as found:
        return collect(
            found.queue,
            by,
            question=found.question,
            keyboard=Keyboard(),
            console=Console(highlight=False),
            after=found.keep,
        )


def standing(recipe: Recipe) -> dict[str, Any]:
    """Return how far a collection is: comparisons, how many have their votes, and each person's answers."""
    with open_ledger(recipe) as ledger, collection(recipe, ledger) as found:
        people = [(by, found.queue.progress(by)) for by in found.queue.people()]
        return {
            "comparisons": len(found.queue),
            "judged": found.queue.judged(),
            "least": found.least,
            "people": [
                {
                    "name": by.removeprefix("human:"),
                    "answered": progress.done,
                    "left": progress.left,
                    "verdicts": dict(progress.verdicts),
                }
                for by, progress in people
            ],
            "saved": str(found.keep.path) if found.keep is not None and found.keep.path is not None else None,
        }


def _login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError) as error:  # a container may have no name for its user
        raise InputError("This machine has no login name for you; give --annotator NAME.") from error
