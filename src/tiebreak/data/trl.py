"""Pairs out of the house in the four shapes that TRL and most trainers read, as JSONL or Parquet.

Texts go out byte for byte. Ties never become a hard pair, and two equal texts teach nothing: both are left out and
counted. ``p`` (P(chosen is better)) and ``margin`` travel in columns of their own.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from tiebreak.records import InputError, Message, Pair, Prompt, Response
from tiebreak.registry import nearest

Shape = Literal["preference", "preference_implicit", "unpaired", "prompt_completion"]
SHAPES: tuple[Shape, ...] = get_args(Shape)
ENDINGS = (".jsonl", ".parquet")


class Exported(NamedTuple):
    """What an export wrote: rows, pairs behind them, and the pairs left out by reason."""

    rows: int
    pairs: int
    ties: int
    equal_texts: int


class Sorted(NamedTuple):
    """Pairs that can train, and how many of the others there are by reason."""

    hard: list[Pair]
    ties: int
    equal_texts: int


def hard_pairs(pairs: Iterable[Pair], responses: Mapping[str, Response]) -> Sorted:
    """Return the pairs with a winner between two different texts, in order, and count the others."""
    hard: list[Pair] = []
    ties = equal = 0
    for pair in pairs:
        if pair.p == 0.5:
            ties += 1
        elif _text(responses, pair.chosen_id) == _text(responses, pair.rejected_id):
            equal += 1
        else:
            hard.append(pair)
    return Sorted(hard, ties, equal)


def to_trl(
    pairs: Sequence[Pair],
    prompts: Mapping[str, Prompt],
    responses: Mapping[str, Response],
    *,
    shape: Shape = "preference",
    conversational: bool = False,
) -> Iterator[dict[str, Any]]:
    """Yield the training rows of ``pairs``; ties and equal texts yield none (``hard_pairs`` counts them).

    A prompt's context goes before its text, a blank line between. ``margin`` is a column as soon as one pair has one,
    null where a pair has none; TRL's reward trainer wants it in every row.

    Args:
        pairs: the pairs, in the order of the rows.
        prompts: the pairs' prompts by id.
        responses: their responses by id.
        shape: ``preference`` (prompt, chosen, rejected), ``preference_implicit`` (chosen and rejected begin with the
            prompt), ``unpaired`` (prompt, completion, label; two rows a pair), ``prompt_completion`` (the chosen only).
        conversational: turns with role and content; a prompt in plain text becomes one user turn.

    Raises:
        InputError: an unknown shape, a record that is not given, or a conversation that shall become plain text.
    """
    if shape not in SHAPES:
        raise InputError(f"There is no shape {shape!r}; there are {', '.join(SHAPES)}.{nearest(shape, SHAPES)}")
    hard = hard_pairs(pairs, responses).hard
    with_margin = any(pair.margin is not None for pair in hard)
    for pair in hard:
        if pair.prompt_id not in prompts:
            raise InputError(f"The pair {pair.id} belongs to the prompt {pair.prompt_id}, which was not given.")
        head = _head(prompts[pair.prompt_id], conversational)
        chosen = _side(_text(responses, pair.chosen_id), conversational)
        rejected = _side(_text(responses, pair.rejected_id), conversational)
        beside: dict[str, Any] = {"p": float(pair.p)} | ({"margin": pair.margin} if with_margin else {})
        for row in _SHAPERS[shape](head, chosen, rejected):
            yield row | beside


Text = str | list[dict[str, str]]


def _preference(head: Any, chosen: Any, rejected: Any) -> tuple[dict[str, Any], ...]:
    return ({"prompt": head, "chosen": chosen, "rejected": rejected},)


def _implicit(head: Any, chosen: Any, rejected: Any) -> tuple[dict[str, Any], ...]:
    return ({"chosen": head + chosen, "rejected": head + rejected},)


def _unpaired(head: Any, chosen: Any, rejected: Any) -> tuple[dict[str, Any], ...]:
    return (
        {"prompt": head, "completion": chosen, "label": True},
        {"prompt": head, "completion": rejected, "label": False},
    )


def _completion(head: Any, chosen: Any, _rejected: Any) -> tuple[dict[str, Any], ...]:
    return ({"prompt": head, "completion": chosen},)


_SHAPERS: dict[Shape, Callable[[Any, Any, Any], tuple[dict[str, Any], ...]]] = {
    "preference": _preference,
    "preference_implicit": _implicit,
    "unpaired": _unpaired,
    "prompt_completion": _completion,
}


def _text(responses: Mapping[str, Response], response_id: str) -> str:
    if response_id not in responses:
        raise InputError(f"A pair names the response {response_id}, which was not given.")
    return responses[response_id].text


def _head(prompt: Prompt, conversational: bool) -> Text:
    before = f"{prompt.context}\n\n" if prompt.context else ""
    if isinstance(prompt.text, str):
        text = before + prompt.text
        return [{"role": "user", "content": text}] if conversational else text
    if not conversational:
        raise InputError(
            f"The prompt {prompt.id} is a conversation and has no plain text without a chat template; "
            "export it with conversational=true."
        )
    turns = [turn if isinstance(turn, Message) else Message(*turn) for turn in prompt.text]
    last = max((i for i, turn in enumerate(turns) if turn.role == "user"), default=0)
    return [
        {"role": turn.role, "content": before + turn.content if i == last else turn.content}
        for i, turn in enumerate(turns)
    ]


def _side(text: str, conversational: bool) -> Text:
    return [{"role": "assistant", "content": text}] if conversational else text


def export_pairs(
    pairs: Sequence[Pair],
    prompts: Mapping[str, Prompt],
    responses: Mapping[str, Response],
    path: Path,
    *,
    shape: Shape = "preference",
    conversational: bool = False,
) -> Exported:
    """Write ``pairs`` to ``path`` as ``to_trl`` shapes them and return how many went out and how many did not.

    Raises:
        InputError: nothing is left to write, or what ``to_trl`` and ``write_rows`` refuse.
    """
    if apart := next((pair for pair in pairs if pair.rejected_prompt_id not in ("", pair.prompt_id)), None):
        raise InputError(
            f"The sides of the pair {apart.id} answer different prompts, and no shape of TRL's holds that; export a "
            "list of curate steps whose pairs have one prompt."
        )
    kept = hard_pairs(pairs, responses)
    if not kept.hard:
        raise InputError(
            f"There is no pair to export: {kept.ties} ties and {kept.equal_texts} pairs of equal texts were left out."
        )
    rows = write_rows(to_trl(kept.hard, prompts, responses, shape=shape, conversational=conversational), path)
    return Exported(rows, len(kept.hard), kept.ties, kept.equal_texts)


def write_rows(rows: Iterable[Mapping[str, Any]], path: Path) -> int:
    """Write ``rows`` to a ``.jsonl`` or ``.parquet`` file and return their number.

    The file appears whole or not at all: it is written beside its place and then moved there. JSONL is written row by
    row; Parquet holds all rows in memory.

    Raises:
        InputError: another ending, a folder that is not there, or pyarrow is missing for Parquet.
    """
    path = Path(path)
    if path.suffix not in ENDINGS:
        raise InputError(f"{path} ends in {path.suffix or 'nothing'!r}; expected {' or '.join(ENDINGS)}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        count = (_write_jsonl if path.suffix == ".jsonl" else _write_parquet)(rows, Path(name))
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return count


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _write_jsonl(rows: Iterable[Mapping[str, Any]], path: Path) -> int:
    count = 0
    with open(path, "w", encoding="utf-8", newline="\n") as stream:
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
        stream.flush()
        os.fsync(stream.fileno())
    return count


def _write_parquet(rows: Iterable[Mapping[str, Any]], path: Path) -> int:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError as error:
        raise InputError("Writing Parquet needs pyarrow: pip install 'tiebreak[hub]'.") from error
    held = [dict(row) for row in rows]
    pq.write_table(pa.Table.from_pylist(held), path)
    return len(held)
