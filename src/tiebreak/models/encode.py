"""Text to token ids, one way for training, scoring and sampling, so that the boundary between prompt and answer is one.

Prompt and completion are encoded apart: what the model saw while sampling is what it is trained on. A prompt that is too
long loses whole lines; a completion is never cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from transformers import PreTrainedTokenizerBase

from tiebreak.models.forest import Tree
from tiebreak.records import InputError, Prompt, Response

Cut = Literal["start", "end"]

PLAIN_CHAT = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
"""The chat template given to tokenizers trained here; a loaded tokenizer keeps its own."""


class Encoded(NamedTuple):
    """Prompt ids and how many lines and tokens were cut to make them fit."""

    ids: tuple[int, ...]
    cut: bool


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, *, room: int, cut: Cut = "start") -> Encoded:
    """Encode ``prompt`` into at most ``room`` tokens, special tokens as the tokenizer wants them in front.

    ``cut`` says which end loses lines: ``start`` drops the oldest ones (conversations), ``end`` drops the last lines
    before the final one, which holds the cue to answer (a long post before its ``TL;DR:``).
    """
    if prompt.conversational:
        if not tokenizer.chat_template:
            raise InputError(
                f"Prompt {prompt.id} is a conversation and the tokenizer has no chat template; set one on the tokenizer."
            )
        turns = [{"role": turn.role, "content": turn.content} for turn in prompt.text]
        text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        encode = lambda part: tokenizer.encode(part, add_special_tokens=False)  # noqa: E731
    else:
        text = f"{prompt.context}\n\n{prompt.text}" if prompt.context else str(prompt.text)
        encode = lambda part: _front(tokenizer, part)  # noqa: E731
    ids = encode(text)
    if len(ids) <= room:
        return Encoded(tuple(ids), False)
    lines = text.split("\n")
    while len(ids) > room and len(lines) > 2:
        del lines[0 if cut == "start" else -2]
        ids = encode("\n".join(lines))
    return Encoded(tuple(ids[-room:]), True)


def encode_completion(tokenizer: PreTrainedTokenizerBase, response: Response) -> tuple[int, ...]:
    """Encode an answer with EOS behind it, except where sampling stopped at its length limit."""
    ids = tokenizer.encode(response.text, add_special_tokens=False)
    if response.finish != "length" and (not ids or ids[-1] != tokenizer.eos_token_id):
        ids = [*ids, tokenizer.eos_token_id]
    return tuple(ids)


def encode_tree(
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    responses: Sequence[Response],
    *,
    window: int,
    cut: Cut = "start",
) -> tuple[Tree | None, bool]:
    """Return the tree of ``prompt`` with ``responses`` and whether the prompt was cut.

    The tree is None when some completion leaves no room for a prompt in ``window`` tokens: the row is dropped whole and
    counted by the caller, for a pair with one side missing teaches the wrong thing.
    """
    branches = tuple(encode_completion(tokenizer, response) for response in responses)
    room = window - max(map(len, branches))
    if room < 8:
        return None, False
    trunk = encode_prompt(tokenizer, prompt, room=room, cut=cut)
    return Tree(trunk.ids, branches), trunk.cut


def _front(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids = tokenizer.encode(text)
    return ids[:-1] if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id else ids
