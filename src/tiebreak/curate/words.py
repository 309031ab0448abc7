"""The words of pairs for steps that read or rewrite them, and the prompts and responses that such a step makes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from tiebreak.curate.table import Rows, pairs_of
from tiebreak.records import InputError, Judgment, Pair, Prompt, Response


class Words(NamedTuple):
    """Prompts and responses by id."""

    prompts: Mapping[str, Prompt]
    responses: Mapping[str, Response]


def words_of(rows: Rows, prompt_ids: Iterable[str], response_ids: Iterable[str]) -> Words:
    """Return the prompts and responses of these ids, each read once.

    Raises:
        InputError: one is nowhere.
    """
    prompts = rows.texts.prompts(list(dict.fromkeys(prompt_ids)))
    responses = rows.texts.responses(list(dict.fromkeys(response_ids)))
    return Words({prompt.id: prompt for prompt in prompts}, {response.id: response for response in responses})


def words_of_pairs(rows: Rows, pairs: Sequence[Pair]) -> Words:
    """Return the prompts of ``pairs`` and the responses of both sides."""
    sides = (side for pair in pairs for side in (pair.chosen_id, pair.rejected_id))
    return words_of(rows, (pair.prompt_id for pair in pairs), sides)


def pairs_of_one_prompt(rows: Rows, step: str) -> Sequence[Pair]:
    """Return the pairs a later step works on whose sides answer one prompt, which it will rewrite.

    Raises:
        InputError: no pairs yet, or a pair whose rejected side answers another prompt.
    """
    pairs = pairs_of(rows, step)
    if any(pair.rejected_prompt_id not in ("", pair.prompt_id) for pair in pairs):
        raise InputError(
            f"The curate step {step!r} rewrites the prompt of both sides, and in some pairs the rejected side answers "
            "another prompt; put it before constraints."
        )
    return pairs


def judgments_of(rows: Rows) -> dict[str, Judgment]:
    """Return all judgments by id, those of everybody."""
    return {
        one.id: one for known in (rows.heard or {}, rows.items) for judgments in known.values() for one in judgments
    }


class Made:
    """New records of a step, each once, in the order they were made."""

    def __init__(self) -> None:
        self._by_id: dict[str, Prompt | Response] = {}

    def prompt(self, prompt: Prompt) -> str:
        """Take in a prompt and return its id."""
        self._by_id.setdefault(prompt.id, prompt)
        return prompt.id

    def response(self, response: Response) -> str:
        """Take in a response and return its id."""
        self._by_id.setdefault(response.id, response)
        return response.id

    def behind(self, prompt: Prompt, response: Response) -> str:
        """Return the id of ``response`` behind ``prompt``: a copy with its maker, for a response has one prompt."""
        self.prompt(prompt)
        return self.response(replace(response, prompt_id=prompt.id, id=""))

    @property
    def records(self) -> list[Prompt | Response]:
        """All of them."""
        return list(self._by_id.values())
