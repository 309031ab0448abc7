"""One function of a switch, and how a user's own or a named one is found. Importing this loads no torch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

from tiebreak.records import InputError
from tiebreak.registry import load_object, nearest


class Part(NamedTuple):
    """A function of a switch, with what it asks of the engine and of the rows.

    ``reads`` names what has to be read of each branch besides log-probs or scores: ``reference`` (log-probs under the
    reference), ``public``, ``collision``, ``token_kl`` or ``extrapolated``. ``needs`` names fields of the rows:
    ``margin``, ``grades``, ``label``, ``ratings``, ``steps``, or the role of a branch beside. ``couples`` says that one
    row's loss depends on the other rows of the batch. ``keeps``, called as ``call`` is, returns by name what the next
    batch shall find in ``Seen.past``. ``sides`` says that a link looks at each side by itself, so that an offset of the
    comparison has no effect, and ``scores`` names the score maps that a part goes with, where not all do.
    """

    call: Callable[..., Any]
    reads: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    couples: bool = False
    keeps: Callable[..., Mapping[str, Any]] | None = None
    sides: bool = False
    scores: tuple[str, ...] = ()

    @property
    def knobs(self) -> dict[str, Any]:
        """Its scalars with their defaults: the keyword-only arguments of the function."""
        return dict(_keywords(self.call))

    def __call__(self, *seen: Any, knobs: Mapping[str, Any]) -> Any:
        """Call it with those of ``knobs`` that it takes."""
        return self.call(*seen, **self._own(knobs))

    def kept(self, *seen: Any, knobs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return what it keeps for the next batch."""
        return {} if self.keeps is None else self.keeps(*seen, **self._own(knobs))

    def _own(self, knobs: Mapping[str, Any]) -> dict[str, Any]:
        return {name: knobs[name] for name in _keywords(self.call) if name in knobs}


@cache
def _keywords(function: Callable[..., Any]) -> Mapping[str, Any]:
    """Return the keyword-only arguments of ``function`` with their defaults, None where one has to be given."""
    named = {name: p for name, p in inspect.signature(function).parameters.items() if p.kind is p.KEYWORD_ONLY}
    return {name: None if p.default is p.empty else p.default for name, p in named.items()}


def choose(switch: str, table: Mapping[str, Part], name: str) -> Part:
    """Return what ``switch`` is set to, a name of its table or a user's ``module:function``.

    A user's own function may look at everything: it gets the reference and is taken to couple rows.

    Raises:
        InputError: neither, with the nearest name.
    """
    if name in table:
        return table[name]
    if ":" in name:
        return Part(load_object(name, what=switch), reads=("reference",), couples=True)
    raise InputError(
        f"There is no {switch} {name!r}; there are {', '.join(table)}, or your own as module:function."
        f"{nearest(name, table)}"
    )


MADE_BY: Mapping[str, str] = {
    "margin": "the curate step score_pairs or strength makes it",
    "grades": "the curate step ranked_list makes rows that have one for each answer",
    "label": "the curate step unpair makes rows of one answer that have it",
    "ratings": "the curate step attributes makes rows of one answer that have them",
    "steps": "the curate step process makes rows that have them",
    "rationale": "the curate step rationale attaches it",
    "user": "the curate step by_user says whose a pair is",
    "band": "the curate step curriculum or bands numbers it",
    "drawn": "it is a response that the policy drew for the same prompt, Example.beside",
    "mismatched": "it is another prompt's answer behind this prompt, and a training of two rows or more makes it",
}
"""Fields of rows that only some objectives read, and what makes them."""


def made_by(field: str) -> str:
    """Return, as the end of a sentence, what makes ``field``."""
    return MADE_BY.get(field, f"give it with the row as {field}")
