"""Text to token ids, one way for training, scoring and sampling, so that prompt and answer meet at one boundary.

Prompt and completion are encoded apart: what the model saw while sampling is what it is trained on. A prompt that is
too long loses whole lines; a completion is never cut. What a user wrote never becomes a control token.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import partial
from itertools import takewhile
from typing import Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from tiebreak.models.chat import Chat, plain
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
        InputError: a conversation, and a tokenizer without a chat template or with one that refuses its roles or
            changes a content that holds the text of a control token.
    """
    if prompt.conversational:
        return _conversation(_chat(tokenizer, prompt), _turns(prompt), room=room, cut=cut)
    text = f"{prompt.context}\n\n{prompt.text}" if prompt.context else str(prompt.text)
    return _fit(text, lambda part: _front(tokenizer, part), _plain(tokenizer), room, cut)


def encode_completion(tokenizer: PreTrainedTokenizerBase, response: Response) -> tuple[int, ...]:
    """Encode an answer with one EOS behind it, none where sampling stopped at its length limit.

    A text that ends with the tokenizer's EOS written out, as some published data do, has ended: that is its one EOS.
    """
    text, ended = _ended(tokenizer, response)
    ids = plain(tokenizer, text)
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


def encode_sides(
    tokenizer: PreTrainedTokenizerBase,
    sides: Sequence[tuple[Prompt, Response]],
    *,
    window: int,
    cut: Cut = "start",
) -> tuple[Tree | None, bool]:
    """Return the tree of answers that need not answer the same prompt, and whether a prompt was cut.

    The trunk is what the prompts' tokens have in common from the start; the rest of each prompt opens its branch, where
    it is read and not learned. So the tree computes exactly what each answer behind its own prompt would be, and where
    prompts have not even their first token in common, the trunk is empty. None where one leaves no room in ``window``.
    """
    if len({prompt.id for prompt, _ in sides}) <= 1:
        prompt = sides[0][0] if sides else Prompt(text="")
        return encode_tree(tokenizer, prompt, [response for _, response in sides], window=window, cut=cut)
    found = [encode_tree(tokenizer, prompt, [response], window=window, cut=cut) for prompt, response in sides]
    trees = [tree for tree, _ in found if tree is not None]
    if len(trees) < len(found):
        return None, False
    shared = (len(set(ids)) == 1 for ids in zip(*(tree.trunk for tree in trees), strict=False))
    common = sum(1 for _ in takewhile(bool, shared))
    branches = tuple(tree.trunk[common:] + tree.branches[0] for tree in trees)
    taught = tuple((False,) * (len(tree.trunk) - common) + (True,) * len(tree.branches[0]) for tree in trees)
    return Tree(trees[0].trunk[:common], branches, taught), any(was_cut for _, was_cut in found)


def encode_dialogue(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message] | Prompt,
    response: Response | None,
    *,
    window: int,
    cut: Cut = "start",
) -> tuple[Tree | None, bool]:
    """Return the tree that teaches every assistant turn of a dialogue at once, and whether something was cut.

    The trunk is what a sampler sees before the first answer; one branch is all that follows, and ``taught`` marks in it
    the answers with their end-of-turn tokens. ``response`` is the last answer; without one the last assistant turn is,
    and turns behind it are left out. Where the dialogue is too long whole oldest turns go, then lines of the last
    question; the tree is None where the last answer leaves no room for that, or nothing is said. An assistant turn
    that opens a dialogue answers nothing and is not taught.

    Raises:
        InputError: as for :func:`encode_prompt`, or the template writes a turn differently once others follow.
    """
    if isinstance(messages, Prompt) and not messages.conversational:
        return encode_tree(tokenizer, messages, [response] if response else [], window=window, cut=cut)
    asked, answer = _parted(messages, response)
    if not asked or answer is None:
        return None, False
    chat = _chat(tokenizer, messages)
    text, ended = _ended(tokenizer, answer)
    last = Message("assistant", text)
    trunk, parts, flags = chat.dialogue([*asked, last], ended=ended)
    room = window - len(parts[-1])
    if room < LEAST or not parts[-1]:
        return None, False
    if _size((trunk, parts, flags)) <= window:
        return _dialogue(trunk, parts, flags), False
    fewer = [[*turns, last] for turns in _fewer(asked)]
    first = bisect_left(fewer, True, key=lambda turns: _size(chat.dialogue(turns, ended=ended)) <= window)
    if first < len(fewer):
        trunk, parts, flags = chat.dialogue(fewer[first], ended=ended)
        return _dialogue(trunk, parts, flags), True
    left = _conversation(chat, asked, room=room, cut=cut)
    return _dialogue(list(left.ids), parts[-1:], flags[-1:]), True


def _parted(messages: Sequence[Message] | Prompt, response: Response | None) -> tuple[list[Message], Response | None]:
    """Return the turns before the last answer, the prompt's context in the last question, and that answer."""
    turns = [Message(*turn) for turn in (messages.text if isinstance(messages, Prompt) else messages)]
    if response is None:
        while turns and turns[-1].role != "assistant":
            turns.pop()
        response = Response(prompt_id="", text=turns.pop().content) if turns else None
    return _within(turns, messages.context if isinstance(messages, Prompt) else ""), response


def _dialogue(trunk: list[int], parts: list[list[int]], flags: list[list[bool]]) -> Tree:
    """Join the parts into one branch; where all of it is taught there is nothing to mark."""
    branch, taught = (i for part in parts for i in part), tuple(flag for part in flags for flag in part)
    return Tree(tuple(trunk), (tuple(branch),), () if all(taught) else (taught,))


def _size(dialogue: tuple[list[int], list[list[int]], list[list[bool]]]) -> int:
    return len(dialogue[0]) + sum(map(len, dialogue[1]))


def _ended(tokenizer: PreTrainedTokenizerBase, response: Response) -> tuple[str, bool]:
    """Return what an answer says without an EOS written out, and whether it ended."""
    text = response.text.removesuffix(tokenizer.eos_token)
    return text, response.finish != "length" or text != response.text


def _chat(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message] | Prompt) -> Chat:
    return Chat(tokenizer, f"Prompt {messages.id}" if isinstance(messages, Prompt) else "The dialogue")


def _turns(prompt: Prompt) -> list[Message]:
    turns = [turn for turn in prompt.text if isinstance(turn, Message)]
    if not turns:
        raise InputError(f"Prompt {prompt.id} is a conversation without turns; give it one or drop it.")
    return _within(turns, prompt.context)


def _within(turns: list[Message], context: str) -> list[Message]:
    """Let ``context``, where there is one, open the last user turn, as in an exported row."""
    if context and turns:
        asked = max((i for i, turn in enumerate(turns) if turn.role == "user"), default=0)
        turns[asked] = turns[asked]._replace(content=f"{context}\n\n{turns[asked].content}")
    return turns


def _fewer(turns: list[Message]) -> list[list[Message]]:
    """Return what is left as whole oldest turns go: the system turn stays, and no answer comes first but a last one."""
    system = int(turns[0].role == "system")
    first = [i for i in range(system + 1, len(turns)) if turns[i].role != "assistant" or i == len(turns) - 1]
    return [[*turns[:system], *turns[i:]] for i in first]


def _conversation(chat: Chat, turns: list[Message], *, room: int, cut: Cut) -> Encoded:
    """Encode the turns that fit; the last turn loses lines only when it is alone (with the system turn) too long."""
    ids = chat.prompt(turns)
    if len(ids) <= room:
        return Encoded(tuple(ids), False)
    fewer = _fewer(turns) or [turns]
    first = bisect_left(fewer, True, key=lambda some: len(chat.prompt(some)) <= room)
    if first < len(fewer):
        return Encoded(tuple(chat.prompt(fewer[first])), True)
    *before, last = fewer[-1]
    frame, encode = len(chat.prompt([*before, last._replace(content="")])), _plain(chat.tokenizer)
    for spare in (0, 8, 32):
        content = _fit(last.content, encode, encode, max(1, room - frame - spare), cut).ids
        text = chat.tokenizer.decode(list(content), clean_up_tokenization_spaces=False)
        ids = chat.prompt([*before, last._replace(content=text)])
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
    return partial(plain, tokenizer)


def _front(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Encode with what the tokenizer puts in front (BOS) and without what it puts behind (EOS)."""
    ids: list[int] = tokenizer.encode(text, split_special_tokens=True)
    if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:
        ids = ids[:-1]
    bos = tokenizer.bos_token_id
    return ids or [tokenizer.eos_token_id if bos is None else bos]
