"""A local model that answers chats as a server does: turns in, text and the tokens that could have stood there out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch

from tiebreak.models.chat import Chat, plain
from tiebreak.models.encode import PLAIN_CHAT
from tiebreak.models.load import Loaded, context_of, load_causal
from tiebreak.models.next import Place, write
from tiebreak.records import InputError, Message

BLANK = "\u2581"
"""What a SentencePiece token has in front where a word begins; decoded alone it loses that."""


class Said(NamedTuple):
    """A reply: its text, each token with the log-probs of the likeliest by their texts, its length, how it ended."""

    text: str
    tokens: tuple[tuple[str, Mapping[str, float]], ...]
    size: int
    finish: str


class Voice:
    """A loaded model with its chat template; a tokenizer without one gets the plain template."""

    def __init__(self, loaded: Loaded) -> None:
        self.model, self.tokenizer = loaded.model, loaded.tokenizer
        if not self.tokenizer.chat_template:
            self.tokenizer.chat_template = PLAIN_CHAT
        self.model.eval()
        self.chat = Chat(self.tokenizer, "The chat")
        self.text_of = cache(self._text_of)

    def room(self, window: int) -> int:
        """Return how many tokens of chat and reply there are: ``window``, or the model's positions if they are less."""
        return min(window, context_of(self.model) or window)

    def encode(self, turns: Sequence[Message], *, go_on: bool) -> tuple[int, ...]:
        """Return the ids of ``turns`` with the cue to answer; ``go_on`` leaves the last turn, an answer, open instead.

        Raises:
            InputError: the template refuses the turns, or there is no answer to go on with.
        """
        if not go_on:
            return tuple(self.chat.prompt(turns))
        if not turns or turns[-1].role != "assistant":
            raise InputError("A chat whose last turn is to be continued has to end with a turn of the assistant.")
        *before, last = turns
        if not last.content:
            return tuple(self.chat.prompt(before))
        shown = self.chat.show(turns, cue=False)
        if not shown.answers or len(turns) < 2:
            return (*self.chat.prompt(before), *plain(self.tokenizer, last.content))
        edges = [0, *(edge for answer in shown.answers for edge in answer[:2])]
        return tuple(i for k in range(len(edges) - 1) for i in self.chat.ids(turns, shown, edges[k], edges[k + 1]))

    def fits(self, turns: Sequence[Message], *, go_on: bool) -> bool:
        """Whether the template takes these roles in this order, whatever they say."""
        try:
            self.encode([turn._replace(content="x") for turn in turns], go_on=go_on)
        except InputError:
            return False
        return True

    def answer(
        self,
        prompts: Sequence[tuple[int, ...]],
        keys: Sequence[str],
        *,
        steps: int,
        temperature: float,
        top: int,
        wanted: Callable[[], bool] = lambda: True,
    ) -> list[Said]:
        """Return a reply of at most ``steps`` tokens to each of ``prompts``, see :func:`tiebreak.models.next.write`."""
        more: dict[str, Any] = {"eos": self.tokenizer.eos_token_id, "wanted": wanted}
        try:
            written = write(self.model, prompts, keys, steps=steps, temperature=temperature, top=top, **more)
        except torch.OutOfMemoryError as error:
            size, device = max(map(len, prompts)), self.model.device
            raise InputError(
                f"{len(prompts)} chats of up to {size} tokens need more memory than {device} has; lower batch or "
                "window."
            ) from error
        return [
            Said(
                text=self.tokenizer.decode([place.token for place in places], skip_special_tokens=True),
                tokens=tuple((self.text_of(place.token), self._by_text(place)) for place in places),
                size=len(places) + (finish == "stop"),
                finish=finish,
            )
            for places, finish in written
        ]

    def _by_text(self, place: Place) -> dict[str, float]:
        """Return log-probs by text, the likeliest first; of ids that read the same the probabilities add up."""
        found: dict[str, float] = {}
        for token, logp in sorted(place.top.items(), key=lambda item: (-item[1], item[0])):
            text = self.text_of(token)
            known = found.get(text)
            found[text] = logp if known is None else known + math.log1p(math.exp(logp - known))
        return found

    def _text_of(self, token: int) -> str:
        text: str = self.tokenizer.decode([token], clean_up_tokenization_spaces=False)
        written = self.tokenizer.convert_ids_to_tokens(token)
        begins = isinstance(written, str) and written.startswith(BLANK) and not text.startswith(" ")
        return f" {text}" if begins else text


def load_voice(where: str, *, device: str = "cpu", revision: str | None = None) -> Voice:
    """Load the model at ``where`` to answer chats; what it raises is what :func:`load_causal` raises."""
    return Voice(load_causal(where, device=device, revision=revision))
