"""How one request gets its answer: its turn, its tries, what it costs, and when it is given up.

A call that fails by itself is ``Unanswered``; a server that is down, a wrong key and a reached budget stop all.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Generic, NamedTuple, TypeVar

from tiebreak.endpoint.cost import Bill, Budget, Price
from tiebreak.endpoint.pace import Breaker, Gate, Limits, Mark, Window
from tiebreak.endpoint.shapes import Manners, Reply, out_of_money, said, too_long, unwelcome
from tiebreak.endpoint.wire import Answer, Silence, Wire, cure_of
from tiebreak.records import InputError

Result = TypeVar("Result")

LONGEST_WAIT = 600.0
"""Seconds a server's Retry-After is obeyed at most; a longer one ends the run with the server's words."""

SHORT = 100
"""Characters of why a call has no answer."""

UNREADABLE = 3
"""How often an answer that is none is asked for again at most: each may have been paid for."""

REFUSED_ALL = (HTTPStatus.UNAUTHORIZED, HTTPStatus.PAYMENT_REQUIRED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND)
"""Statuses that mean every call: the key, the account, the model or the address is wrong."""
PASSING = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT, HTTPStatus.TOO_EARLY)
"""Statuses below 500 that another try may mend."""


class Unanswered(InputError):
    """One call has no answer and none is to be had, while the server is well; ``why`` says it in a few words."""

    def __init__(self, message: str, why: str) -> None:
        super().__init__(message)
        self.why = why


@dataclass(slots=True)
class Call(Generic[Result]):
    """One request on its way through all its tries; ``data`` is ``body`` as it is sent, ``keep`` what is done first."""

    path: str
    body: Mapping[str, Any]
    data: bytes
    read: Callable[[str, float], Result | None]
    retries: int
    cure: str = ""
    kept: str = "what was answered so far is kept"
    keep: Callable[[Result], Awaitable[None]] | None = None


class _Found(NamedTuple, Generic[Result]):
    """What a try gave."""

    result: Result


class _Failed(NamedTuple):
    """A try that failed: how, in whose words, what to do, and whether any other call fails as well."""

    kind: str
    problem: str
    cure: str = ""
    wait: float = 0.0
    final: bool = False


class Asker:
    """Everything between a request and its answer, for one model on one server."""

    def __init__(
        self,
        wire: Wire,
        model: str,
        price: Price | None,
        *,
        rng: random.Random,
        concurrency: int,
        timeout: float,
        retries: int,
        backoff: float,
        limits: Limits,
    ) -> None:
        self._wire, self._model, self._price = wire, model, price
        self._rng, self._backoff = rng, backoff
        self._window = Window(concurrency, patience=timeout)
        self._gate = Gate(self._window)
        self._breaker = Breaker(backoff * (2**retries - 1))
        self._limits, self._manners = limits, Manners()
        self._answered: set[tuple[str, ...]] = set()
        self.budget: Budget | None = None
        self.notes: list[str] = []

    async def ask(self, call: Call[Result]) -> Result:
        """Try until there is an answer, no retry is left, or the server is down."""
        gate = self._open()
        mark, own, unreadable = self._breaker.mark(), 0, 0
        for attempt in range(call.retries + 1):
            number = await gate.enter(first=attempt > 0)
            try:
                tried = await self._try(call, number, mark)
                if not isinstance(tried, _Failed):
                    return tried.result
                own += tried.kind != "busy"
                unreadable += tried.kind == "unreadable"
                # Before the room goes to the next, who would only find out the same.
                if tried.final or self._breaker.down():
                    raise self._stop(call, tried)
                if attempt == call.retries or unreadable > UNREADABLE:
                    raise self._given_up(call, tried, mark, own, attempt + 1)
            finally:
                gate.leave()
            await gate.nap(max(tried.wait, self._backoff * 2**attempt * self._rng.uniform(0.5, 1.0)))
        raise AssertionError("the last try returns or raises")

    def _open(self) -> Gate:
        """Return the gate; where no session was, a new one, and a careful one where the server was down before."""
        fresh, down = self._wire.open(), self._gate.error is not None
        if fresh or (down and not self._window.in_flight):
            self._gate.shut()
            self._gate = Gate(self._window)
            self._limits.fresh()
            if down:
                self._window.alone()
                self._breaker.probe()
        return self._gate

    async def _try(self, call: Call[Result], number: int, mark: Mark) -> _Found[Result] | _Failed:
        """Send the request as this server takes it, again at once where it has just told what it does not take."""
        while True:
            sent = self._manners.fit(call.body)
            data = call.data if sent is call.body else json.dumps(sent).encode()
            tokens = _estimate(sent, data)
            await self._limits.wait(tokens, self._gate.nap)
            bill = await self._reserve(sent, data)
            try:
                got = await self._wire.post(call.path, data)
                bill.known(paid=_is_paid(got))
                tried = self._take_in(call, got, number, mark, sent)
                if isinstance(tried, _Found):
                    if isinstance(tried.result, Reply):
                        bill.cost(tried.result.price)
                        self._limits.correct(tokens, tried.result.tokens_in, tried.result.tokens_out)
                    if call.keep is not None:
                        await call.keep(tried.result)
            finally:
                bill.settle()
            if tried is not None:
                return tried

    async def _reserve(self, sent: Mapping[str, Any], data: bytes) -> Bill:
        """Reserve the most that the request can cost. No token is shorter than a byte, so bytes bound what is read."""
        if self.budget is None:
            return Bill(None, 0.0)
        most = None if self._price is None else self._price.of(len(data), _most(sent))
        return await self.budget.hold(most or 0.0)

    def _take_in(
        self, call: Call[Result], got: Answer | Silence, number: int, mark: Mark, sent: Mapping[str, Any]
    ) -> _Found[Result] | _Failed | None:
        """Return what was answered, how the try failed, or None where the server told what it does not take."""
        if isinstance(got, Silence):
            self._window.bad(number)
            self._breaker.bad()
            nobody = got.kind == "refused" and not self._wire.answered
            return _Failed(got.kind, got.why, final=nobody)
        status, text, wait, seconds = got
        if status == HTTPStatus.OK:
            self._window.good(number, seconds, (call.path, sent.get("max_tokens")))
            with suppress(ValueError, KeyError, IndexError, TypeError, AttributeError):
                if (result := call.read(text, seconds)) is not None:
                    self._breaker.good()
                    self._answered.add((call.path, *sent))
                    return _Found(result)
            self._breaker.bad()
            return _Failed("unreadable", f"gave something else than was asked for: {said(text)}", call.cure)
        problem = f"answered {status}: {said(text)}"
        if status == HTTPStatus.TOO_MANY_REQUESTS:
            self._window.bad(number, min(wait, LONGEST_WAIT))
            if wait > LONGEST_WAIT:
                problem += f" (and asks to wait {wait:.0f} s)"
            return _Failed("busy", problem, call.cure, wait, final=wait > LONGEST_WAIT or out_of_money(text))
        if (status >= 500 or status in PASSING) and not too_long(text):
            self._window.bad(number)
            self._breaker.bad()
            return _Failed("broken", problem, call.cure, wait, final=wait > LONGEST_WAIT)
        if self._learns(status, text, sent):
            return None
        raise self._refusal(call, got, mark, sent)

    def _learns(self, status: int, text: str, sent: Mapping[str, Any]) -> bool:
        """Return whether a refusal tells of something that can be left out; it is said once."""
        if status not in (HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY) or too_long(text):
            return False
        known = set(self._manners.refused)
        name = self._manners.learn(text, sent)
        if name and name not in known:
            done = "goes by max_completion_tokens" if name == "max_tokens" else "is left out"
            note = (
                f"The endpoint {self._wire.name} does not take {name} for {self._model!r}, so it {done}: {said(text)}."
            )
            self.notes.append(note)
            logging.getLogger(__name__).warning("%s", note)
        return bool(name)

    def _refusal(self, call: Call[Any], got: Answer, mark: Mark, sent: Mapping[str, Any]) -> InputError:
        """Return the error of a request that the server refuses: of this one alone, or of all."""
        status, text = got.status, got.text
        words = f"The endpoint {self._wire.name} answered {status}: {said(text)}"
        if too_long(text) or status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            cure = call.cure or "shorten it, ask for fewer tokens, or serve the model with a longer context"
            return Unanswered(
                f"{words}; the request is longer than the model's context: {cure}.", "longer than the context"
            )
        if status in REFUSED_ALL and not _names_logprobs(text, sent):
            by_key = status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
            cure = self._wire.cure_of_key() if by_key else call.cure
            return InputError(f"{words}; {cure or cure_of(status, said(text), sent, self._model)}.")
        if unwelcome(text):
            self._breaker.good()
            return Unanswered(
                f"{words}; the server will not answer this text: leave it out.", "refused by the server's filter"
            )
        self._breaker.bad()
        whole = f"{words}; {call.cure or cure_of(status, said(text), sent, self._model)}."
        # Only where requests with the same fields were answered can it be the texts of this one.
        known = (call.path, *sent) in self._answered
        if not known or status < 400 or self._breaker.gave_up(mark, 1):
            return InputError(whole)
        return Unanswered(whole, f"answered {status}")

    def _stop(self, call: Call[Any], tried: _Failed) -> InputError:
        """End the waiting of all calls with one sentence."""
        cure = tried.cure or "check that the server runs and that the address is right"
        error = InputError(f"The endpoint {self._wire.name} {tried.problem}; {cure}, then run again: {call.kept}.")
        self._gate.stop(error)
        return error

    def _given_up(self, call: Call[Any], tried: _Failed, mark: Mark, own: int, times: int) -> InputError:
        """Return the error of a call without retries left: its own, or that of a server that is down."""
        alone = self._breaker.answered_since(mark)
        if not alone and (tried.kind in ("refused", "busy") or self._breaker.gave_up(mark, own)):
            return self._stop(call, tried)
        often = f", {times} times for one request" if times > 1 else ""
        cure = f"{tried.cure}, then run again" if tried.cure else "run again"
        words = f"The endpoint {self._wire.name} {tried.problem}{often}; {cure}: {call.kept}."
        return Unanswered(words, tried.problem[:SHORT])


def _is_paid(got: Answer | Silence) -> bool:
    """Return whether a call may have to be paid for: where it was answered, or was perhaps and nobody heard."""
    return got.status == HTTPStatus.OK if isinstance(got, Answer) else got.kind != "refused"


def _most(sent: Mapping[str, Any]) -> int:
    return int(sent.get("max_tokens") or sent.get("max_completion_tokens") or 0)


def _estimate(sent: Mapping[str, Any], data: bytes) -> float:
    """Return about how many tokens a request will be: a quarter of its characters, and all it may write."""
    turns = sent.get("messages")
    characters = sum(len(turn["content"]) for turn in turns) if turns else len(data)
    return characters / 4 + _most(sent)


def _names_logprobs(text: str, sent: Mapping[str, Any]) -> bool:
    return "logprobs" in sent and "logprobs" in said(text)
