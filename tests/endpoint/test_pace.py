"""The window, the limits and the breaker, against servers that exist only in a clock."""

from __future__ import annotations

import asyncio
import heapq
import random
from collections.abc import Callable
from typing import NamedTuple

import pytest

from tiebreak.endpoint.pace import SWELL, Breaker, Bucket, Gate, Limits, Window

LATENCY = 0.05


class Clock:
    """A clock that is told the time."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Ran(NamedTuple):
    """What a window did at a simulated server, the first quarter left out: answers a second, its sizes, its faults."""

    rate: float
    sizes: list[float]
    faults: float
    full_after: float | None


Server = Callable[[float, int], tuple[float, bool]]
"""From the time and the calls in flight before this one: the seconds it takes, and whether it is answered well."""


def queueing(slots: int) -> Server:
    """As many at a time as there are slots; the others wait."""
    free = [0.0] * slots

    def serve(now: float, in_flight: int) -> tuple[float, bool]:
        end = max(heapq.heappop(free), now) + LATENCY
        heapq.heappush(free, end)
        return end - now, True

    return serve


def turning_away(slots: int) -> Server:
    """As many at a time as there are slots; the others are turned away at once."""
    busy: list[float] = []

    def serve(now: float, in_flight: int) -> tuple[float, bool]:
        while busy and busy[0] <= now:
            heapq.heappop(busy)
        if len(busy) >= slots:
            return 0.005, False
        heapq.heappush(busy, now + LATENCY)
        return LATENCY, True

    return serve


def failing(share: float, seed: int = 0) -> Server:
    """Room for all, and a share of failures that has nothing to do with the load."""
    rng = random.Random(seed)
    return lambda now, in_flight: (0.005, False) if rng.random() < share else (LATENCY, True)


def run(
    server: Server, *, most: int = 256, seconds: float = 30.0, scale: Callable[[float], float] | None = None
) -> Ran:
    """Keep a window full at a server, the clock going from answer to answer."""
    clock = Clock()
    window = Window(most, clock=clock)
    events: list[tuple[float, int, float, bool]] = []
    answered: list[float] = []
    sizes: list[tuple[float, float]] = []
    faults = 0
    while clock.now < seconds:
        while window.free():
            number = window.begin()
            took, well = server(clock.now, window.in_flight - 1)
            took *= scale(clock.now) if scale else 1.0
            heapq.heappush(events, (clock.now + took, number, clock.now, well))
        clock.now, number, began, well = heapq.heappop(events)
        if well:
            window.good(number, clock.now - began)
            answered.append(clock.now)
        else:
            window.bad(number)
            faults += 1
        window.end()
        sizes.append((clock.now, window.limit))
    late = seconds / 4
    return Ran(
        rate=sum(time > late for time in answered) / (seconds - late),
        sizes=[size for time, size in sizes if time > late],
        faults=faults / (len(answered) + faults),
        full_after=next((time for time, size in sizes if size >= most), None),
    )


@pytest.mark.parametrize("slots", [1, 2, 4, 8, 16, 64, 200])
@pytest.mark.parametrize("server", [queueing, turning_away])
def test_throughput_is_within_a_tenth_of_the_capacity(server: Callable[[int], Server], slots: int) -> None:
    assert run(server(slots)).rate >= 0.9 * slots / LATENCY


@pytest.mark.parametrize(("slots", "most"), [(4, 0.15), (16, 0.04), (64, 0.03)])
def test_few_calls_are_turned_away_at_the_ceiling(slots: int, most: float) -> None:
    assert run(turning_away(slots)).faults <= most


@pytest.mark.parametrize("most", [64, 256])
def test_the_window_is_full_in_a_second_where_the_server_has_room(most: int) -> None:
    ran = run(queueing(10_000), most=most, seconds=4.0)
    assert ran.full_after is not None
    assert ran.full_after <= 1.0
    assert ran.rate == pytest.approx(most / LATENCY, rel=0.03)


@pytest.mark.parametrize("share", [0.01, 0.035])
def test_weather_does_not_slow_a_server_that_has_room(share: float) -> None:
    assert run(failing(share), most=64).rate >= 0.9 * 64 / LATENCY


def test_a_queue_is_kept_short() -> None:
    """Without latency in view the window would be 256: sixteen times what the server works on."""
    sizes = run(queueing(16)).sizes
    assert max(sizes) <= 1.2 * SWELL * 16
    assert min(sizes) >= 16


def test_slow_work_is_no_queue() -> None:
    """Texts that grow ten times longer make every call slower, and a smaller window makes none faster."""
    ran = run(queueing(10_000), most=64, seconds=120.0, scale=lambda now: 10.0 if now > 20 else 1.0)
    assert ran.rate >= 0.95 * 64 / (10 * LATENCY)
    assert sum(size == 64 for size in ran.sizes) > 0.9 * len(ran.sizes)


def test_a_stall_is_soon_forgotten() -> None:
    ran = run(queueing(10_000), most=64, scale=lambda now: 100.0 if 10 < now < 10.2 else 1.0)
    assert ran.rate >= 0.7 * 64 / LATENCY
    assert ran.sizes[-1] == 64


def test_a_server_that_recovers_is_used_again() -> None:
    good, bad = turning_away(64), turning_away(4)
    ran = run(lambda now, n: (bad if now < 20 else good)(now, n), seconds=60.0)
    assert max(ran.sizes) > 60


def test_doubling_then_one_a_window_then_half() -> None:
    clock = Clock()
    window = Window(1000, clock=clock)
    begun = [window.begin() for _ in range(int(window.limit))]
    start = window.limit
    for number in begun:
        window.good(number, LATENCY)
        window.end()
        window.begin()
        window.begin()
    assert window.limit == 2 * start
    calls = list(range(1 + len(begun), 1 + len(begun) + int(window.limit)))
    before = window.limit
    for number in calls:
        window.bad(number)
    assert window.limit == before / 2, "once for all the calls that were in flight"


def test_one_window_grows_by_one_after_trouble() -> None:
    window = Window(1000, clock=Clock())
    for number in [window.begin() for _ in range(16)]:
        window.bad(number)
        window.end()
    size = window.limit
    assert size == 8
    for _ in range(200):
        while window.free():
            last = window.begin()
        window.good(last, LATENCY)
        window.end()
    assert size < window.limit < size + 200 / size + 16


def test_the_window_never_falls_below_one_and_never_grows_unused() -> None:
    window = Window(64, clock=Clock())
    for _ in range(500):
        window.bad(window.begin())
        window.end()
    assert window.limit == 1.0
    idle = Window(64, clock=Clock())
    start = idle.limit
    for _ in range(500):
        idle.good(idle.begin(), LATENCY)
        idle.end()
    assert idle.limit == start


def test_a_wait_that_is_asked_for_holds_back_all() -> None:
    clock = Clock()
    window = Window(64, clock=clock)
    for number in [window.begin() for _ in range(16)]:
        window.bad(number, wait=3.0)
        window.end()
    assert window.pause == 3.0
    assert not window.free()
    clock.now = 3.0
    assert window.free()


def test_calls_of_different_kinds_are_not_compared() -> None:
    """A rationale takes a hundred times as long as a verdict; that is no queue."""
    window = Window(64, clock=Clock())
    for turn in range(2000):
        while window.free():
            last = window.begin()
        window.good(last, *((5.0, 512) if turn % 2 else (0.05, 5)))
        window.end()
    assert window.limit == 64


def test_calls_wait_in_order_and_a_repetition_goes_first() -> None:
    async def wait() -> list[str]:
        gate = Gate(Window(1))
        said: list[str] = []

        async def call(name: str, first: bool) -> None:
            await gate.enter(first=first)
            said.append(name)
            gate.leave()

        await gate.enter()
        calls = [asyncio.ensure_future(call(name, name == "again")) for name in ("a", "b", "c", "again")]
        await asyncio.sleep(0)
        calls[1].cancel()
        gate.leave()
        await asyncio.gather(*calls, return_exceptions=True)
        assert gate.window.in_flight == 0
        return said

    assert asyncio.run(wait()) == ["again", "a", "c"]


def test_a_call_that_is_called_off_as_its_turn_comes_leaves_its_room() -> None:
    async def wait() -> int:
        gate = Gate(Window(1))
        await gate.enter()
        late = asyncio.ensure_future(gate.enter())
        await asyncio.sleep(0)
        gate.leave()
        late.cancel()
        await asyncio.gather(late, return_exceptions=True)
        return gate.window.in_flight

    assert asyncio.run(wait()) == 0


def test_stopping_ends_all_who_wait_or_rest_with_one_error() -> None:
    async def wait() -> list[object]:
        gate = Gate(Window(1))
        await gate.enter()
        calls = [asyncio.ensure_future(one) for one in (gate.enter(), gate.nap(1e6), gate.enter())]
        await asyncio.sleep(0)
        gate.stop(ValueError("down"))
        return await asyncio.gather(*calls, gate.enter(), gate.nap(0), return_exceptions=True)

    assert [str(error) for error in asyncio.run(wait())] == ["down"] * 5


def begun(bucket: Bucket, clock: Clock, amounts: list[float]) -> list[float]:
    """When calls of these amounts begin, each as soon as it may."""
    times = []
    for amount in amounts:
        while due := bucket.due(amount):
            clock.now += due
        bucket.take(amount)
        times.append(clock.now)
    return times


def test_sixty_a_minute_are_one_a_second_exactly() -> None:
    clock = Clock()
    assert begun(Bucket(60, clock=clock), clock, [1.0] * 5) == pytest.approx([0, 1, 2, 3, 4])


@pytest.mark.parametrize("per_minute", [1, 3, 60, 500, 6000])
def test_no_minute_has_more_requests_than_allowed_and_nearly_all_are_used(per_minute: int) -> None:
    clock = Clock()
    times = begun(Bucket(per_minute, per_minute / 600, clock=clock), clock, [1.0] * (3 * per_minute))
    assert all(late - early >= 60 - 1e-6 for early, late in zip(times, times[per_minute:], strict=False))
    assert times[-1] <= 181


def test_tokens_are_counted_by_amount_and_corrected() -> None:
    clock = Clock()
    bucket = Bucket(6000, 300, clock=clock)
    rate = (6000 + 1 - 300) / 60
    assert begun(bucket, clock, [300.0]) == [0.0]
    assert bucket.due(100) == pytest.approx(100 / rate)
    bucket.give(100)
    assert bucket.due(100) == 0.0
    bucket.give(-50)
    assert bucket.due(100) == pytest.approx(50 / rate)


def test_an_amount_above_the_reserve_is_paid_off_before_the_next() -> None:
    clock = Clock()
    bucket = Bucket(6000, 300, clock=clock)
    rate = (6000 + 1 - 300) / 60
    assert begun(bucket, clock, [1000.0, 10.0]) == pytest.approx([0.0, 710 / rate])


def test_both_limits_hold_at_once() -> None:
    clock = Clock()

    async def calls() -> list[float]:
        limits, times = Limits(60, 600, clock=clock), []

        async def nap(seconds: float) -> None:
            clock.now += seconds

        for tokens in (30, 1, 1, 40):
            await limits.wait(tokens, nap)
            times.append(clock.now)
        limits.correct(40, 1, None)
        return times

    rate = (600 + 1 - 30) / 60
    assert asyncio.run(calls()) == pytest.approx([0, 1, 2, 2 + (30 - (2 * rate - 2)) / rate], abs=1e-6)


def test_a_call_that_fails_while_others_are_answered_fails_alone() -> None:
    breaker = Breaker(30.0, clock=Clock())
    mark = breaker.mark()
    for _ in range(7):
        breaker.bad()
        breaker.good()
    assert not breaker.gave_up(mark, 7)
    assert not breaker.down()


def test_a_server_that_fails_all_is_down_when_the_first_call_gives_up() -> None:
    breaker = Breaker(30.0, clock=Clock())
    breaker.good()
    mark = breaker.mark()
    for _ in range(7 + 3):
        breaker.bad()
    assert breaker.gave_up(mark, 7)


def test_calls_that_fail_one_after_the_other_are_a_server_that_is_down_at_the_third() -> None:
    breaker = Breaker(30.0, clock=Clock())
    told = []
    for _ in range(3):
        mark = breaker.mark()
        breaker.bad()
        told.append(breaker.gave_up(mark, 1))
    assert told == [False, False, True]


def test_an_old_unbroken_row_of_failures_is_enough() -> None:
    clock = Clock()
    breaker = Breaker(30.0, clock=clock)
    for _ in range(20):
        breaker.bad()
    assert not breaker.down()
    clock.now = 30.0
    assert breaker.down()
    breaker.good()
    assert not breaker.down()


def test_after_an_outage_one_failure_ends_the_probe() -> None:
    breaker = Breaker(30.0, clock=Clock())
    breaker.probe()
    assert not breaker.down()
    breaker.bad()
    assert breaker.down()
    breaker.good()
    breaker.bad()
    assert not breaker.down()
