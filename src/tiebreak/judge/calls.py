"""The calls behind one judgment: how they are told apart, what they cost, and how several wait for the same one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from tiebreak.endpoint import Reply

Result = TypeVar("Result")

MOST_SAMPLES = 1000
MOST_TRIES = 10
"""How many draws a question and how many tries an answer may have."""


def number_of(attempt: int, draw: int = 0) -> int:
    """Return the number of the first try of a draw; later tries count on from it.

    Equal requests with one number get one answer, so every draw and every try of every attempt has its own.
    """
    return (attempt * MOST_SAMPLES + draw) * MOST_TRIES


class Spent(NamedTuple):
    """Tokens, US dollars and seconds; None where no reply told them."""

    tokens_in: int | None
    tokens_out: int | None
    price: float | None
    latency: float


def spent(replies: Sequence[Reply]) -> Spent:
    """Add up what ``replies`` cost.

    One that was kept counts with what was paid for it, so a run that goes on after a kill, or after a batch, records
    the same price as one that was never stopped.
    """
    tokens_in = [reply.tokens_in for reply in replies if reply.tokens_in is not None]
    tokens_out = [reply.tokens_out for reply in replies if reply.tokens_out is not None]
    prices = [reply.price for reply in replies if reply.price is not None]
    return Spent(
        sum(tokens_in) if tokens_in else None,
        sum(tokens_out) if tokens_out else None,
        sum(prices) if prices else None,
        sum(reply.latency for reply in replies),
    )


class Once(Generic[Result]):
    """Work that many ask for and that is done once; what it gave is kept, an error is not.

    Somebody who is called off does not call off the work, for others may wait for it; ``close`` does.
    """

    def __init__(self) -> None:
        self._known: dict[Hashable, Result] = {}
        self._running: dict[Hashable, asyncio.Task[Result]] = {}

    async def get(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, Result]]) -> tuple[Result, bool]:
        """Return what the work of this key gave, and whether it was begun for this caller."""
        if key in self._known:
            return self._known[key], False
        task = self._running.get(key)
        # A task of a loop that has ended will never be done.
        mine = task is None or task.get_loop() is not asyncio.get_running_loop()
        if task is None or mine:
            task = self._running[key] = asyncio.ensure_future(work())
        try:
            found = self._known[key] = await asyncio.shield(task)
        finally:
            if task.done() and self._running.get(key) is task:
                del self._running[key]
        return found, mine

    def forget(self, which: Callable[[Result], bool]) -> None:
        """Drop what was found where ``which`` says so, so that it is done again when it is asked for."""
        self._known = {key: found for key, found in self._known.items() if not which(found)}

    async def close(self) -> None:
        """Call off what is still running here."""
        loop = asyncio.get_running_loop()
        running = [task for task in self._running.values() if task.get_loop() is loop]
        self._running.clear()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
