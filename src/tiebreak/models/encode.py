"""Text to token ids, one way for training, scoring and sampling, so that prompt and answer meet at one boundary.

Prompt and completion are encoded apart: what the model saw while sampling is what it is trained on. A prompt that is
too long loses whole lines; a completion is never cut. What a user wrote never becomes a control token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from tiebreak.models.forest import Tree
from tiebreak.records import InputError, Message, Prompt, Response

Cut = Literal["start", "end"]
Encode = Callable[[str], list[int]]

PLAIN_CHAT = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
"""The chat template given to tokenizers trained here; a loaded tokenizer keeps its own."""

LEAST = 8
"""Tokens of prompt below which an answer says nothing about it."""


class Encoded(NamedTuple):
    """Prompt ids and whether something was cut to make them fit."""

    ids: tuple[int, ...]
    cut: bool


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, *, room: int, cut: Cut = "start") -> Encoded:
    """Encode ``prompt`` into at most ``room`` tokens, special tokens as the tokenizer wants them in front.

    ``cut`` says which end loses lines: ``start`` drops the oldest ones (conversations: whole turns first, the system
    turn stays), ``end`` drops the last ones before the final line, which holds the cue to answer (a long post before
    its ``TL;DR:``) and is kept with the blank lines above it. A line is cut inside only where dropping it whole would
    leave more than half of the room empty. An empty prompt is one token, BOS or else EOS.

    Raises:
        InputError: a conversation, and a tokenizer without a chat template.
    """
    if prompt.conversational:
        return _conversation(tokenizer, prompt, room=room, cut=cut)
    text = f"{prompt.context}\n\n{prompt.text}" if prompt.context else str(prompt.text)
    return _fit(text, lambda part: _front(tokenizer, part), _plain(tokenizer), room, cut)


def encode_completion(tokenizer: PreTrainedTokenizerBase, response: Response) -> tuple[int, ...]:
    """Encode an answer with one EOS behind it, none where sampling stopped at its length limit.

    A text that ends with the tokenizer's EOS written out, as some published data do, has ended: that is its one EOS.
    """
    text = response.text.removesuffix(tokenizer.eos_token)
    ids = _plain(tokenizer)(text)
    ended = response.finish != "length" or text != response.text
    return (*ids, tokenizer.eos_token_id) if ended else tuple(ids)


def encode_tree(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    responses: Sequence[Response],
    *,
    window: int,
    cut: Cut = "start",
) -> tuple[Tree | None, bool]:
    """Return the tree of ``prompt`` with ``responses`` and whether the prompt was cut.

    The tree is None when some completion leaves no room for a prompt in ``window`` tokens, or is empty and unfinished:
    the row is dropped whole and counted by the caller, for a pair with one side missing teaches the wrong thing.
    """
    branches = tuple(encode_completion(tokenizer, response) for response in responses)
    room = window - max(map(len, branches), default=window)
    if room < LEAST or not all(branches):
        return None, False
    trunk = encode_prompt(tokenizer, prompt, room=room, cut=cut)
    return Tree(trunk.ids, branches), trunk.cut


def _conversation(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, *, room: int, cut: Cut) -> Encoded:
    """Render the turns that fit; the last turn loses lines only when it is alone (with the system turn) too long.

    The prompt's context, where there is one, opens the last user turn, as in an exported row.
    """
    if not tokenizer.chat_template:
        raise InputError(
            f"Prompt {prompt.id} is a conversation and the tokenizer has no chat template; set one on the tokenizer."
        )
    turns = [turn for turn in prompt.text if isinstance(turn, Message)]
    if prompt.context:
        asked = max((i for i, turn in enumerate(turns) if turn.role == "user"), default=0)
        turns[asked] = turns[asked]._replace(content=f"{prompt.context}\n\n{turns[asked].content}")

    def render(last: str | None = None) -> list[int]:
        shown = [{"role": turn.role, "content": turn.content} for turn in turns]
        if last is not None:
            shown[-1]["content"] = last
        text = tokenizer.apply_chat_template(shown, add_generation_prompt=True, tokenize=False)
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
        return ids

    ids = render()
    if len(ids) <= room:
        return Encoded(tuple(ids), False)
    system = int(turns[0].role == "system")
    while len(ids) > room and len(turns) > system + 1:
        del turns[system]
        while len(turns) > system + 1 and turns[system].role == "assistant":
            del turns[system]
        ids = render()
    if len(ids) <= room:
        return Encoded(tuple(ids), True)
    frame = len(render(""))
    plain = _plain(tokenizer)
    for spare in (0, 8, 32):
        content = _fit(turns[-1].content, plain, plain, max(1, room - frame - spare), cut).ids
        ids = render(tokenizer.decode(list(content), clean_up_tokenization_spaces=False))
        if len(ids) <= room:
            return Encoded(tuple(ids), True)
    return Encoded((*ids[:1], *ids[len(ids) - room + 1 :]), True)


def _fit(text: str, encode: Encode, plain: Encode, room: int, cut: Cut) -> Encoded:
    """Encode ``text``, without some of its lines where it is longer than ``room``; ``plain`` adds nothing in front."""
    ids = encode(text)
    if len(ids) <= room:
        return Encoded(tuple(ids), False)
    lines = text.split("\n")
    cue = len(lines) - 1
    while cut == "end" and cue > 0 and not lines[cue - 1].strip():
        cue -= 1

    def without(count: int) -> str:
        return "\n".join(lines[count:] if cut == "start" else [*lines[: cue - count], *lines[cue:]])

    few, many = 1, max(1, cue)
    while few < many:
        middle = (few + many) // 2
        few, many = (few, middle) if len(encode(without(middle))) <= room else (middle + 1, many)
    ids = encode(without(few)) if cue else ids
    if room // 2 <= len(ids) <= room:
        return Encoded(tuple(ids), True)
    whole = encode(without(few - 1))
    if cut == "start":
        front = len(whole) - len(plain(without(few - 1)))
        return Encoded((*whole[:front], *whole[len(whole) - room + front :]), True)
    tail = plain("\n" + "\n".join(lines[cue:]))[-room:] if cue else []
    head = encode("\n".join(lines[: cue - few + 1])) if cue else whole
    return Encoded((*head[: room - len(tail)], *tail), True)


def _plain(tokenizer: PreTrainedTokenizerBase) -> Encode:
    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        return ids

    return encode


def _front(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Encode with what the tokenizer puts in front (BOS) and without what it puts behind (EOS)."""
    ids: list[int] = tokenizer.encode(text, split_special_tokens=True)
    if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:
        ids = ids[:-1]
    bos = tokenizer.bos_token_id
    return ids or [tokenizer.eos_token_id if bos is None else bos]
