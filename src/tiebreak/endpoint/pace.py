"""How fast a server is asked: a window of calls that finds its size, limits a minute, and what tells that it is down.

All here is told the time by a clock, so that it can be tried without waiting; only ``Gate`` knows an event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Hashable
from typing import NamedTuple

Clock = Callable[[], float]

START = 16
"""Calls in flight before anything is known about the server: a handful that any takes or queues."""

TOLERATED, WEATHER, FEW = 0.1, 0.05, 20
"""The share of failed answers that is weather, not load, and the answers it is taken of at least.

A server that fails one call in a hundred whatever the load must not be asked one call at a time; one that turns calls
away has a tenth of them turned away as soon as the window is a tenth too large.
"""

NEAR, CALM = 0.9, 16
"""After a window without a fault the size goes back to this share of the one that failed; just below that one it grows
this many times slower, so that most of the time is spent where the server is busy and turns nobody away."""

SWELL, RECENT = 6.0, 16
"""How many times its best a latency may be, and the answers it is averaged over.

Servers that batch answer more calls a second although each takes longer, so a doubled latency is no reason to slow
down. Six times the best is a queue.
"""

EASE, SAME = 0.75, 0.88
"""What is left of a window whose calls queue; the answers a second after it, in shares of those before, if they did."""


class _Pulse:
    """The latency of one kind of call: its recent mean and the best that mean has been."""

    __slots__ = ("best", "mean", "seen")

    def __init__(self) -> None:
        self.mean, self.best, self.seen = 0.0, float("inf"), 0

    def beat(self, seconds: float) -> None:
        self.seen += 1
        self.mean += (seconds - self.mean) / min(self.seen, RECENT)
        if self.seen >= RECENT and self.mean < self.best:
            self.best = self.mean


class _Eased:
    """What was before the window was made smaller because its calls queue, and how it goes since."""

    __slots__ = ("limit", "pulse", "rate", "seen", "since", "start")

    def __init__(self, pulse: _Pulse, rate: float, limit: float, since: int) -> None:
        self.pulse, self.rate, self.limit, self.since = pulse, rate, limit, since
        self.seen, self.start = 0, 0.0


class Window:
    """How many calls may be in flight: as many as the server answers well, at most ``most``.

    It starts at a few and doubles with each window of good answers. Once a tenth of a window has failed, or latency
    swells, it grows by one a window. A failed tenth halves it, once for all calls that were in flight then; a window
    without a fault brings it back near the size that failed. It never falls below one, and it grows only while
    it is full, so calls that nobody makes prove nothing.

    Args:
        most: calls in flight at most.
        patience: seconds after which a call is given up; a latency near it counts as swollen sooner.
        clock: gives the time in seconds.
    """

    def __init__(self, most: int, *, patience: float = float("inf"), clock: Clock = time.monotonic) -> None:
        self.most, self.in_flight = most, 0
        self.limit = float(min(START, most))
        self._patience, self._clock = patience, clock
        self._pulses: dict[Hashable, _Pulse] = {}
        self._doubling, self._slowed, self._ceiling, self._first = True, False, 0.0, 0.0
        self._started = self._cut = self._answers = self._faults = self._well = 0
        self._eased: _Eased | None = None
        self._until, self._peak = 0.0, 0
        self._begin_block()

    @property
    def pause(self) -> float:
        """Seconds that no call may begin, because a server that turned a tenth away asked for it."""
        return max(0.0, self._until - self._clock()) if self._until else 0.0

    def free(self) -> bool:
        """Return whether a call may begin."""
        return self.in_flight < int(self.limit) and not (self._until and self.pause)

    def begin(self) -> int:
        """Count a call in and return its number."""
        self.in_flight += 1
        self._peak = max(self._peak, self.in_flight)
        self._started += 1
        return self._started

    def end(self) -> None:
        """Count a call out."""
        self.in_flight -= 1

    def alone(self) -> None:
        """Begin again from one call in flight, as with a server that was down."""
        self.limit, self._doubling, self._until = 1.0, True, 0.0

    def good(self, number: int, seconds: float, kind: Hashable = None) -> None:
        """Take in that call ``number`` was answered after ``seconds``; only those of one ``kind`` are compared."""
        pulse = self._pulses.get(kind)
        if pulse is None:
            pulse = self._pulses[kind] = _Pulse()
        pulse.beat(seconds)
        if self._eased is not None:
            self._compare(self._eased, number)
        if number <= self._cut:
            return
        self._well += 1
        if self.in_flight >= int(self.limit) and self._eased is None:
            self._grow()
        self._answers += 1
        if self._answers >= self._size:
            self._ease(pulse)
            self._begin_block()

    def bad(self, number: int, wait: float = 0.0) -> None:
        """Take in that call ``number`` was turned away, failed or timed out; ``wait`` is what Retry-After asks for.

        Calls that began before the last halving tell nothing about the size since.
        """
        if number <= self._cut:
            return
        self._faults += 1
        if self._faults == 1:
            self._first = self.limit
        expected = TOLERATED * self._size
        if self._faults > expected + expected**0.5:
            self._ceiling = self._first
            self.limit = max(1.0, min(self.limit, self._peak) / 2)
            self._doubling, self._slowed, self._eased = False, False, None
            self._cut, self._well = self._started, 0
            self._until = self._clock() + wait if wait else 0.0
            self._begin_block()

    def _begin_block(self) -> None:
        """Begin to count a window of answers."""
        self._answers, self._faults, self._block = 0, 0, self._clock()
        self._size, self._peak = max(self.limit, float(FEW)), self.in_flight

    def _grow(self) -> None:
        if self._doubling or (self._well > self.limit and self.limit + 1 <= NEAR * self._ceiling):
            self.limit += 1.0
        elif self._faults <= WEATHER * self._size:
            self.limit += 1.0 / self.limit / (CALM if self._ceiling - 1 <= self.limit < self._ceiling else 1)
        self.limit = min(float(self.most), self.limit)

    def _ease(self, pulse: _Pulse) -> None:
        """Make the window smaller where latency says that its calls queue; let it double again once that is over."""
        if self._slowed and self._eased is None and pulse.mean < 2 * pulse.best:
            self._doubling, self._slowed = True, False
        swollen = max(2 * pulse.best, min(SWELL * pulse.best, self._patience / 3))
        if self._eased is None and pulse.seen >= RECENT and pulse.mean > swollen and self.limit > 1:
            rate = self._answers / max(self._clock() - self._block, 1e-9)
            self._eased = _Eased(pulse, rate, self.limit, self._started)
            self._doubling, self._slowed, self.limit = False, True, max(1.0, EASE * self.limit)

    def _compare(self, eased: _Eased, number: int) -> None:
        """Undo an easing that cost answers: nothing queued, the work is slow, and that is its best from here on."""
        if number > eased.since and not eased.start:
            eased.start = self._clock()
        elif eased.start:
            eased.seen += 1
            if eased.seen >= max(3 * self.limit, 3 * FEW):
                self._eased = None
                if eased.seen / max(self._clock() - eased.start, 1e-9) < SAME * eased.rate:
                    eased.pulse.best, self.limit = eased.pulse.mean, max(self.limit, eased.limit)


class Gate:
    """Where calls wait for their turn in a window, the oldest first, and where they rest before a repetition.

    ``stop`` ends the waiting of all with one error. A gate belongs to one event loop.
    """

    def __init__(self, window: Window) -> None:
        self.window, self._shut = window, False
        self.error: Exception | None = None
        self._line: deque[asyncio.Future[int]] = deque()
        self._naps: set[asyncio.Future[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def enter(self, *, first: bool = False) -> int:
        """Wait until the window has room and return the call's number; ``first`` goes before those who wait."""
        if self.error is not None:
            raise _fresh(self.error)
        if self.window.free() and (first or not self._line):
            return self.window.begin()
        turn: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        (self._line.appendleft if first else self._line.append)(turn)
        self._admit()
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self.leave()  # the turn had come in the same moment
            elif not turn.done():
                turn.cancel()
            raise

    def leave(self) -> None:
        """Give the room of a call to the next."""
        if not self._shut:
            self.window.end()
            self._admit()

    def shut(self) -> None:
        """Forget the calls that are in flight: another gate has the window now."""
        self._shut, self.window.in_flight = True, 0

    async def nap(self, seconds: float) -> None:
        """Rest, outside of the window, unless all are stopped meanwhile."""
        if self.error is not None:
            raise _fresh(self.error)
        loop = asyncio.get_running_loop()
        rest: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(seconds, _wake, rest)
        self._naps.add(rest)
        try:
            await rest
        finally:
            timer.cancel()
            self._naps.discard(rest)

    def stop(self, error: Exception) -> None:
        """End the waiting and resting of all calls with ``error``; calls in flight go on."""
        self.error = error
        for turn in self._line:
            if not turn.done():
                turn.set_exception(_fresh(error))
        for rest in self._naps:
            if not rest.done():
                rest.set_exception(_fresh(error))
        self._line.clear()

    def _admit(self) -> None:
        while self._line and self.window.free():
            turn = self._line.popleft()
            if not turn.done():
                turn.set_result(self.window.begin())
        if self._line and self._timer is None and (pause := self.window.pause):
            self._timer = asyncio.get_running_loop().call_later(pause, self._after_pause)

    def _after_pause(self) -> None:
        self._timer = None
        self._admit()


def _fresh(error: Exception) -> Exception:
    """Return the same error anew, for one that is raised a thousand times gathers a thousand tracebacks."""
    return type(error)(*error.args)


def _wake(rest: asyncio.Future[None]) -> None:
    if not rest.done():
        rest.set_result(None)


class Bucket:
    """A token bucket: at most ``per_minute`` in any minute, evenly, with a reserve of ``burst`` for a moment.

    The rate is a little below ``per_minute`` so that the reserve counts too. An amount above the reserve begins when
    that is full and is paid off before the next.
    """

    def __init__(self, per_minute: float, burst: float = 1.0, *, clock: Clock = time.monotonic) -> None:
        self._burst = max(1.0, min(burst, per_minute))
        self._rate = max(per_minute + 1.0 - self._burst, 1e-9) / 60.0
        self._clock, self._level, self._at = clock, self._burst, clock()

    def due(self, amount: float = 1.0) -> float:
        """Return the seconds until ``amount`` may begin."""
        now = self._clock()
        self._level, self._at = min(self._burst, self._level + (now - self._at) * self._rate), now
        missing = min(amount, self._burst) - self._level
        return missing / self._rate if missing > 1e-9 * self._burst else 0.0

    def take(self, amount: float = 1.0) -> None:
        """Take ``amount`` out."""
        self._level -= amount

    def give(self, amount: float) -> None:
        """Put back what was taken too much; a negative amount takes what was taken too little."""
        self._level = min(self._burst, self._level + amount)


class Limits:
    """Requests and tokens a minute: calls begin one after the other, each when both buckets have room for it."""

    def __init__(self, rpm: float | None, tpm: float | None, *, clock: Clock = time.monotonic) -> None:
        self._requests = None if rpm is None else Bucket(rpm, rpm / 600, clock=clock)
        self._tokens = None if tpm is None else Bucket(tpm, tpm / 20, clock=clock)
        self._turn = asyncio.Lock()

    def fresh(self) -> None:
        """Begin in another event loop."""
        self._turn = asyncio.Lock()

    async def wait(self, tokens: float, nap: Callable[[float], Awaitable[None]]) -> None:
        """Return when a call of ``tokens`` may begin; ``nap`` does the waiting."""
        if self._requests is None and self._tokens is None:
            return
        async with self._turn:
            while due := max(
                self._requests.due() if self._requests else 0.0, self._tokens.due(tokens) if self._tokens else 0.0
            ):
                await nap(due)
            if self._requests:
                self._requests.take()
            if self._tokens:
                self._tokens.take(tokens)

    def correct(self, estimated: float, tokens_in: int | None, tokens_out: int | None) -> None:
        """Put right what a call took by what it used, where the server counted."""
        if self._tokens and tokens_in is not None:
            self._tokens.give(estimated - tokens_in - (tokens_out or 0))


ROW = 10
"""Failed calls in an unbroken row after which a server is down, once the row is as old as one call's patience."""

OTHERS, STRIKES = 3, 3
"""Failures of other calls beside one that failed for good, and calls that failed for good alone, without any answer."""


class Mark(NamedTuple):
    """How many calls had been answered and had failed when a call began."""

    goods: int
    bads: int


class Breaker:
    """Tells a server that is down from a call that fails by itself.

    A call that fails for good while others are answered has only itself to blame. Where nothing was answered all the
    while and other calls failed too, the server is down. ``patience`` is the seconds that one call rests in all its
    repetitions; an unbroken row of failures that is older need not wait for one to give up.
    """

    def __init__(self, patience: float, *, clock: Clock = time.monotonic) -> None:
        self._patience, self._clock = patience, clock
        self._goods = self._bads = self._row = self._strikes = 0
        self._since = 0.0
        self.probing = False
        """Whether the next call only tries if a server that was down is up again."""

    def mark(self) -> Mark:
        """Return where things stand when a call begins."""
        return Mark(self._goods, self._bads)

    def good(self) -> None:
        """Take in that a call was answered."""
        self._goods += 1
        self._row = self._strikes = 0
        self.probing = False

    def probe(self) -> None:
        """Begin again with a server that was down: the next failure ends it, the next answer makes it whole."""
        self.probing, self._row, self._strikes = True, 0, 0

    def bad(self) -> None:
        """Take in that a try of a call failed."""
        self._bads += 1
        self._row += 1
        if self._row == 1:
            self._since = self._clock()

    def answered_since(self, mark: Mark) -> bool:
        """Return whether any call was answered since ``mark``."""
        return self._goods > mark.goods

    def down(self) -> bool:
        """Return whether the failures so far say that the server is down, whatever retries are left."""
        return (self.probing and self._row > 0) or (self._row >= ROW and self._clock() - self._since >= self._patience)

    def gave_up(self, mark: Mark, own: int) -> bool:
        """Return whether a call that failed for good, ``own`` times since ``mark``, means that the server is down."""
        if self.answered_since(mark):
            return False
        self._strikes += 1
        return self._bads - mark.bads - own >= OTHERS or self._strikes >= STRIKES
