"""A local model behind the calls of a server: what waits at one moment is computed as one batch, on a thread.

The event loop stays free, any number of loops may ask, and a reply does not depend on what it was computed with. Torch
is imported with the first chat.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, NamedTuple

from tiebreak.endpoint import Endpoint, Reply, Unanswered
from tiebreak.endpoint.shapes import read_chat
from tiebreak.records import InputError, Message, content_id

if TYPE_CHECKING:
    from tiebreak.models.voice import Said, Voice


class _Kind(NamedTuple):
    """What the chats of a batch have in common."""

    steps: int
    temperature: float
    top: int


@dataclass(eq=False)
class _Asked:
    """A chat that waits, and who waits for it."""

    kind: _Kind
    turns: tuple[Message, ...]
    go_on: bool
    attempt: int
    loop: asyncio.AbstractEventLoop
    reply: asyncio.Future[Reply]

    def hear(self, found: Reply | BaseException) -> None:
        """Take the reply, or what went wrong; called in the loop that waits."""
        if self.reply.done():
            return
        if isinstance(found, BaseException):
            self.reply.set_exception(found)
        else:
            self.reply.set_result(found)


@dataclass(eq=False, kw_only=True)
class Local:
    """A causal language model of Hugging Face that answers chats in this process.

    ``model`` is a folder or a hub name, ``revision`` of the latter. At most ``batch`` chats are computed together; a
    chat and its reply have ``window`` tokens, or as many as the model has positions.
    """

    model: str
    revision: str | None = None
    device: str = "cpu"
    batch: int = 8
    window: int = 4096
    _waiting: list[_Asked] = field(default_factory=list, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)
    _thread: ThreadPoolExecutor | None = field(default=None, init=False, repr=False)
    _busy: bool = field(default=False, init=False, repr=False)

    @property
    def client(self) -> Endpoint | None:
        """None: there is no server."""
        return None

    @cached_property
    def by(self) -> str:
        """``model:NAME@REVISION``; of a folder, the revision is a hash of its weights and tokenizer."""
        from tiebreak.models.maker import called, maker_of

        return f"model:{maker_of(called(self.model), self.model, revision=self.revision)}"

    async def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        max_tokens: int,
        temperature: float,
        logprobs: bool = False,
        top_logprobs: int = 20,
        continue_final: bool = False,
        schema: Mapping[str, Any] | None = None,
        attempt: int = 0,
    ) -> Reply:
        """Return the reply to ``messages``; ``continue_final`` goes on writing the last message.

        A temperature above 0 draws by a stream that belongs to request and ``attempt``, so equal requests have equal
        replies. Log-probabilities are those at temperature 1.

        Raises:
            Unanswered: the chat is longer than the window, or has text that the template cannot write.
            InputError: the model cannot be loaded or its template takes no such turns, or a schema is asked for.
        """
        if schema is not None:
            raise InputError(f"judge: the local model {self.model} cannot be held to a schema; ask a server for that.")
        if max_tokens < 1 or temperature < 0:
            raise InputError(
                f"judge: max_tokens is {max_tokens} and temperature {temperature}; expected 1 or more and 0 or more."
            )
        loop = asyncio.get_running_loop()
        asked = _Asked(
            kind=_Kind(max_tokens, float(temperature), top_logprobs if logprobs else 0),
            turns=tuple(Message(turn["role"], turn["content"]) for turn in messages),
            go_on=continue_final,
            attempt=attempt,
            loop=loop,
            reply=loop.create_future(),
        )
        with self._lock:
            self._waiting.append(asked)
        loop.call_soon(self._wake)  # behind all that ask in this breath, so that they are one batch
        return await asked.reply

    async def close(self) -> None:
        """Let the thread go once it has finished; the model stays, and a later chat has a thread again."""
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.shutdown(wait=False)

    def _wake(self) -> None:
        with self._lock:
            if self._busy or not self._waiting:
                return
            self._busy = True
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, thread_name_prefix="judge model")
            self._thread.submit(self._work)

    def _work(self) -> None:
        while batch := self._next():
            found: list[Reply | BaseException]
            try:
                found = self._answer(batch)
            except BaseException as error:  # handed over, to be raised where it is waited for
                found = [error] * len(batch)
            _tell(batch, found)

    def _next(self) -> list[_Asked]:
        """Take what waits and can be computed together, the longest waiting first; nothing ends the work."""
        with self._lock:
            waiting = [asked for asked in self._waiting if not asked.reply.done()]
            batch = [asked for asked in waiting if asked.kind == waiting[0].kind][: self.batch]
            self._waiting = [asked for asked in waiting if asked not in batch]
            self._busy = bool(batch)
            return batch

    def _answer(self, batch: list[_Asked]) -> list[Reply | BaseException]:
        started = time.perf_counter()
        kind, prompts = batch[0].kind, [self._encode(asked) for asked in batch]
        ready = [(ids, asked.attempt) for ids, asked in zip(prompts, batch, strict=True) if isinstance(ids, tuple)]
        said = self._voice.answer(
            [ids for ids, _ in ready],
            [content_id("chat", ids, *kind[:2], attempt) for ids, attempt in ready],
            steps=kind.steps,
            temperature=kind.temperature,
            top=kind.top,
            wanted=lambda: not all(asked.reply.done() for asked in batch),
        )
        replies, seconds = iter(said), (time.perf_counter() - started) / len(batch)
        return [_reply(next(replies), ids, kind.top > 0, seconds) if isinstance(ids, tuple) else ids for ids in prompts]

    def _encode(self, asked: _Asked) -> tuple[int, ...] | InputError:
        """Return the ids of a chat, or why it cannot be asked."""
        try:
            ids = self._voice.encode(asked.turns, go_on=asked.go_on)
        except InputError as error:
            if not self._voice.fits(asked.turns, go_on=asked.go_on):
                return error
            return Unanswered(str(error), "has text that the chat template cannot write")
        steps, room = asked.kind.steps, self._voice.room(self.window)
        if steps >= room:
            return InputError(
                f"judge: a reply of {steps} tokens leaves no room for a question in the {room} tokens that "
                f"{self.model} reads and writes; ask for fewer, or take a model with more positions."
            )
        if (size := len(ids) + steps) > room:
            return Unanswered(
                f"A chat and its reply take {size} tokens, and the window of {self.model} has {room}; shorten the "
                "texts, ask for fewer tokens, or widen window if the model has more positions.",
                "longer than the window",
            )
        return ids

    @cached_property
    def _voice(self) -> Voice:
        from tiebreak.models.voice import load_voice

        return load_voice(self.model, device=self.device, revision=self.revision)


def _reply(said: Said, ids: tuple[int, ...], logprobs: bool, seconds: float) -> Reply:
    """Return the reply, read as a server's is, so that a thought is told from an answer in one way."""
    tokens = [
        {"token": text, "top_logprobs": [{"token": near, "logprob": logp} for near, logp in top.items()]}
        for text, top in said.tokens
    ]
    choice = {
        "message": {"content": said.text},
        "finish_reason": said.finish,
        "logprobs": {"content": tokens} if logprobs else None,
    }
    usage = {"prompt_tokens": len(ids), "completion_tokens": said.size}
    reply = read_chat(json.dumps({"choices": [choice], "usage": usage}), seconds)
    if reply is None:
        raise InputError(f"judge: the local model's reply cannot be read: {said.text[:60]!r}.")
    return reply


def _tell(batch: list[_Asked], found: Sequence[Reply | BaseException]) -> None:
    """Hand all that is found to the loops that wait, each at once, so that what they ask next is one batch again."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Callable[[], None]]] = {}
    for asked, one in zip(batch, found, strict=True):
        by_loop.setdefault(asked.loop, []).append(partial(asked.hear, one))
    for loop, calls in by_loop.items():
        with suppress(RuntimeError):  # a loop that is closed waits no more
            loop.call_soon_threadsafe(_all, calls)


def _all(calls: Sequence[Callable[[], None]]) -> None:
    for call in calls:
        call()
