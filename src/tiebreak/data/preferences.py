"""Rows that say which of two responses is better: prompt, chosen, rejected, as text or as turns.

Such files never tell in which order the two were shown, so ``order_known`` is False and the chosen one stands first by
convention. Every column that is not a text is kept in the judgment's fields.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tiebreak.data.files import read_rows
from tiebreak.data.table import (
    Entry,
    Refused,
    RowProblem,
    excerpt,
    number_cell,
    pair_entry,
    source_name,
    text_cell,
    wrong_type,
)
from tiebreak.records import Message, Prompt, Response

SOFT_LABELS = ("p", "soft_label", "soft_label_chosen")
"""Columns read as P(chosen is better), the first one present."""

ROLES = {"human": "user", "gpt": "assistant"}
"""ShareGPT's names of the roles."""

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


class Sides(NamedTuple):
    """A row taken apart: the prompt and the two responses."""

    prompt: str | tuple[Message, ...]
    chosen: str
    rejected: str


def read(
    path: Path, *, source: str = "", by: str = "", licence: str = "", split_at: str = ""
) -> Iterator[Entry | Refused]:
    """Yield the rows of a preference file.

    Args:
        path: JSON array, JSONL or Parquet with ``chosen`` and ``rejected``, and ``prompt`` unless it is implicit.
        source: name of the source; the file's name by default.
        by: who judged; ``human:SOURCE`` by default.
        licence: licence of the texts.
        split_at: for implicit prompts in plain text, the mark that ends the prompt (``TL;DR:``). Without it the
            prompt is the longest shared beginning, cut back to a whole word, which also eats words that both responses
            begin with.

    Raises:
        InputError: a missing or broken file, or a column that is neither text nor turns.
    """
    path = Path(path)
    source = source or source_name(path)
    for where, row, problem in read_rows(path):
        try:
            if problem:
                raise RowProblem(problem)
            sides = _take_apart(row, where, split_at)
            yield _entry(sides, row, where, source=source, by=by or f"human:{source}", licence=licence)
        except RowProblem as refusal:
            yield Refused(where, str(refusal), excerpt(row))


def _entry(sides: Sides, row: Mapping[str, Any], where: str, *, source: str, by: str, licence: str) -> Entry:
    prompt = Prompt(text=sides.prompt, source=source, licence=licence)
    margin = number_cell(row, "margin", where)
    return pair_entry(
        where,
        prompt,
        Response(prompt_id=prompt.id, text=sides.chosen),
        Response(prompt_id=prompt.id, text=sides.rejected),
        by=by,
        fields=_fields(row, where),
        probability=_probability(row, where),
        strength=margin if margin is not None and 0.0 <= margin <= 1.0 else None,
    )


def _fields(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    fields = {key: value for key, value in row.items() if key not in ("prompt", "chosen", "rejected", "conversations")}
    metadata = row.get("metadata")
    if metadata is not None and not isinstance(metadata, Mapping):
        raise wrong_type(where, "metadata", metadata, "an object or null")
    told = {key: value for key, value in (metadata or {}).items() if value is not None}
    quality = told.get("quality", told.get("quality_type"))
    for key, value in (("category", told.get("category")), ("quality", quality)):
        if value is not None:
            fields.setdefault(key, value)
    return fields


def _probability(row: Mapping[str, Any], where: str) -> float | None:
    column = next((name for name in SOFT_LABELS if row.get(name) is not None), "")
    p = number_cell(row, column, where) if column else None
    if p is None:
        return None
    if not 0.0 <= p <= 1.0:
        raise RowProblem(f"{column} lies outside 0 to 1")
    if p < 0.5:
        raise RowProblem(f"{column} is below 1/2, so it contradicts the chosen side")
    return p


def _take_apart(row: Mapping[str, Any], where: str, split_at: str) -> Sides:
    chosen, rejected = (_side(row, name, where) for name in ("chosen", "rejected"))
    prompt = _side(
        row, "conversations" if "prompt" not in row and "conversations" in row else "prompt", where, lax=True
    )
    if isinstance(chosen, str) and isinstance(rejected, str):
        if prompt is not None:
            return Sides(prompt, chosen, rejected)
        return _implicit_text(chosen, rejected, split_at)
    if isinstance(chosen, str) or isinstance(rejected, str) or chosen is None or rejected is None:
        raise RowProblem("one response is text and the other is turns")
    given = (Message("user", prompt),) if isinstance(prompt, str) else prompt
    heads = {name: _head(turns, given) for name, turns in (("chosen", chosen), ("rejected", rejected))}
    if heads["chosen"] != heads["rejected"]:
        raise RowProblem("prompts differ")
    if not heads["chosen"]:
        raise RowProblem("missing prompt")
    return Sides(heads["chosen"], _answer(chosen), _answer(rejected))


def _head(turns: tuple[Message, ...], given: tuple[Message, ...] | None) -> tuple[Message, ...]:
    before = turns[:-1]
    if given is None:
        return before
    if before and before != given:
        raise RowProblem("the turns before the answer differ from the prompt")
    return given


def _answer(turns: tuple[Message, ...]) -> str:
    if turns[-1].role != "assistant":
        raise RowProblem(f"the last turn of a response is from {turns[-1].role!r}, not from the assistant")
    return turns[-1].content


def _implicit_text(chosen: str, rejected: str, split_at: str) -> Sides:
    shared = _shared_length(chosen, rejected)
    if split_at:
        found = chosen.rfind(split_at, 0, shared)
        if found < 0:
            raise RowProblem(f"prompts differ: no {split_at!r} in what both sides begin with")
        shared = found + len(split_at)
    else:
        while shared and not _word_ends(chosen, rejected, shared):
            shared -= 1
        while shared and chosen[shared - 1] == " ":
            shared -= 1
    if not shared:
        raise RowProblem("prompts differ: the two sides share no beginning")
    return Sides(chosen[:shared], chosen[shared:], rejected[shared:])


def _shared_length(one: str, other: str) -> int:
    for position, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return position
    return min(len(one), len(other))


def _word_ends(chosen: str, rejected: str, at: int) -> bool:
    return chosen[at - 1].isspace() or (chosen[at : at + 1].isspace() and rejected[at : at + 1].isspace())


def _side(row: Mapping[str, Any], column: str, where: str, *, lax: bool = False) -> str | tuple[Message, ...] | None:
    value = row.get(column)
    if value is None:
        if lax:
            return None
        raise RowProblem(f"missing {column}")
    if isinstance(value, str):
        return value
    turns = [value] if isinstance(value, Mapping) else value
    if not isinstance(turns, Sequence) or not all(isinstance(turn, Mapping) for turn in turns):
        raise wrong_type(where, column, value, "text or a list of turns with role and content")
    if not turns:
        raise RowProblem(f"missing {column}")
    return tuple(_turn(turn, column, where) for turn in turns)


def _turn(turn: Mapping[str, Any], column: str, where: str) -> Message:
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if not isinstance(role, str) or not isinstance(content, str):
        raise wrong_type(where, column, turn, "turns with a role and a content, both text")
    return Message(ROLES.get(role, role), content)


def read_transcripts(
    path: Path, *, source: str = "hh-rlhf", by: str = "", licence: str = "MIT", conversational: bool = False
) -> Iterator[Entry | Refused]:
    r"""Yield HH-RLHF rows: two whole dialogues that must be equal up to the last ``\n\nAssistant:``.

    As text the prompt ends with that mark and the response keeps its leading space. With ``conversational`` the marks
    and the one space after each become roles. Some published rows differ before the last assistant turn (one side has
    a turn more); they are refused as ``prompts differ``, since a comparison of two questions teaches nothing.
    """
    path = Path(path)
    for where, row, problem in read_rows(path):
        try:
            if problem:
                raise RowProblem(problem)
            sides = _split_dialogues(text_cell(row, "chosen", where), text_cell(row, "rejected", where))
            if conversational:
                sides = Sides(
                    _turns(str(sides.prompt)), sides.chosen.removeprefix(" "), sides.rejected.removeprefix(" ")
                )
            yield _entry(sides, row, where, source=source, by=by or f"human:{source}", licence=licence)
        except RowProblem as refusal:
            yield Refused(where, str(refusal), excerpt(row))


def _split_dialogues(chosen: str, rejected: str) -> Sides:
    cuts = [text.rfind(ASSISTANT) for text in (chosen, rejected)]
    if min(cuts) < 0:
        raise RowProblem("no assistant turn")
    ends = [cut + len(ASSISTANT) for cut in cuts]
    if chosen[: ends[0]] != rejected[: ends[1]]:
        raise RowProblem("prompts differ")
    return Sides(chosen[: ends[0]], chosen[ends[0] :], rejected[ends[1] :])


def _turns(prompt: str) -> tuple[Message, ...]:
    turns: list[Message] = []
    rest = prompt.removesuffix(ASSISTANT)
    while rest:
        role, mark = ("user", HUMAN) if rest.startswith(HUMAN) else ("assistant", ASSISTANT)
        if not rest.startswith(mark):
            raise RowProblem("the dialogue does not begin with a Human or an Assistant turn")
        rest = rest.removeprefix(mark)
        ends = [end for end in (rest.find(HUMAN), rest.find(ASSISTANT)) if end >= 0]
        cut = min(ends, default=len(rest))
        turns.append(Message(role, rest[:cut].removeprefix(" ")))
        rest = rest[cut:]
    return tuple(turns)
