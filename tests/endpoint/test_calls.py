"""Equal calls are asked once, a reply is kept before anybody sees it, and limits hold."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest

from tests.endpoint.made import SLOTS, ask, client
from tests.judge.server import Script, Server
from tiebreak.endpoint import Budget, BudgetReached, Reply
from tiebreak.endpoint.client import Endpoint
from tiebreak.records import InputError


class Shelf:
    """A cache in memory that tells what was done to it."""

    def __init__(self) -> None:
        self.kept: dict[str, Reply] = {}
        self.open = asyncio.Event()
        self.waiting = 0

    def key_of(self, identity: str, path: str, body: Mapping[str, Any], attempt: int) -> str:
        return json.dumps([identity, path, body, attempt], sort_keys=True)

    def get(self, key: str) -> Reply | None:
        return self.kept.get(key)

    async def keep(self, key: str, identity: str, reply: Reply) -> None:
        self.waiting += 1
        await self.open.wait()
        self.waiting -= 1
        self.kept[key] = reply


def shelf(*, full: bool = False) -> Shelf:
    made = Shelf()
    if not full:
        made.open.set()
    return made


def turn(text: str = "0") -> list[dict[str, str]]:
    return [{"role": "user", "content": SLOTS + text}]


async def chat(endpoint: Endpoint, text: str = "0", **settings: Any) -> Reply:
    return await endpoint.chat(turn(text), **{"max_tokens": 5, "temperature": 0.0, **settings})


def test_a_reply_that_is_kept_is_not_asked_or_paid_for_again() -> None:
    with Server(Script(reply="1", delay=0.01)) as server:
        cache = shelf()
        for _ in range(2):
            endpoint = client(server.url, price_in=1.0, revision="abc")
            endpoint.cache = cache
            replies = ask(endpoint, n=5)
        assert len(server.log) == 5
    assert {(reply.cached, reply.price) for reply in replies} == {(True, 3.7e-05)}
    assert all(reply.latency >= 0.01 and reply.text == "1" for reply in replies)
    assert all(reply.price > 0 and not reply.cached for reply in cache.kept.values())
    assert {json.loads(key)[0] for key in cache.kept} == {"scripted@abc"}


def test_the_key_is_of_what_was_wanted_and_not_of_what_the_server_takes() -> None:
    def strict(asked: dict[str, Any], tries: int) -> tuple[int, Any] | None:
        refused = {"error": {"message": "'temperature' is not supported", "param": "temperature"}}
        return (400, refused) if "temperature" in asked else None

    with Server(Script(answer=strict)) as server:
        endpoint = client(server.url)
        endpoint.cache = cache = shelf()
        ask(endpoint)
        ask(endpoint)
        assert len(server.log) == 2
    (key,) = cache.kept
    assert json.loads(key)[2]["temperature"] == 0.0


def test_a_reply_is_kept_before_it_is_handed_out_and_before_its_room_is_free() -> None:
    async def run(endpoint: Endpoint, cache: Shelf, server: Server) -> None:
        calls = [asyncio.ensure_future(chat(endpoint, str(i))) for i in range(5)]
        while cache.waiting < 2:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        assert len(server.log) == 2, "both rooms are taken by replies that are not kept yet"
        assert not any(call.done() for call in calls)
        cache.open.set()
        await asyncio.gather(*calls)
        await endpoint.close()

    with Server() as server:
        endpoint = client(server.url, concurrency=2)
        endpoint.cache = cache = shelf(full=True)
        asyncio.run(run(endpoint, cache, server))
    assert len(cache.kept) == 5


def test_no_failure_is_kept() -> None:
    with Server(Script(status=400)) as server:
        endpoint = client(server.url)
        endpoint.cache = cache = shelf()
        ask(endpoint, n=3, errors=True)
    assert cache.kept == {}


def test_a_budget_does_not_stop_what_is_known() -> None:
    with Server() as server:
        cache = shelf()
        first = client(server.url)
        first.cache = cache
        ask(first, n=3)
        second = client(server.url)
        second.cache, second.budget = cache, Budget(calls=1)
        answers = ask(second, n=5, errors=True)
    assert [type(answer) for answer in answers].count(BudgetReached) == 1
    assert [answer.cached for answer in answers if isinstance(answer, Reply)] == [True] * 3 + [False]


def test_equal_requests_in_flight_are_asked_once_and_paid_once() -> None:
    with Server(Script(reply="1", delay=0.02)) as server:
        endpoint = client(server.url, price_in=1.0)
        replies = ask(endpoint, n=50, same=True)
        assert len(server.log) == 1
        ask(endpoint, same=True)
        assert len(server.log) == 2, "nothing is remembered without a cache"
    assert [reply.cached for reply in replies].count(False) == 1
    assert sum(reply.price > 0 for reply in replies) == 1
    assert {reply.text for reply in replies} == {"1"}


def test_attempts_are_asked_each_and_the_body_does_not_tell() -> None:
    async def run(endpoint: Endpoint) -> None:
        await asyncio.gather(*(chat(endpoint, attempt=attempt) for attempt in (0, 1, 2, 0)))
        await endpoint.close()

    with Server(Script(reply="1", delay=0.02)) as server:
        endpoint = client(server.url)
        endpoint.cache = cache = shelf()
        asyncio.run(run(endpoint))
        assert len(server.log) == len(cache.kept) == 3
        assert len({body for body, _ in server.log}) == 1


def test_a_shared_call_that_fails_fails_for_all() -> None:
    with Server(Script(status=401, delay=0.01)) as server:
        answers = ask(client(server.url), n=10, same=True, errors=True)
        assert len(server.log) == 1
    assert all(isinstance(answer, InputError) for answer in answers)


def test_when_the_one_that_asks_is_called_off_another_asks() -> None:
    async def run(endpoint: Endpoint, server: Server) -> list[Any]:
        calls = [asyncio.ensure_future(chat(endpoint)) for _ in range(3)]
        while not server.log:
            await asyncio.sleep(0.001)
        calls[0].cancel()
        answers = await asyncio.gather(*calls, return_exceptions=True)
        await endpoint.close()
        return answers

    with Server(Script(reply="1", delay=0.05)) as server:
        first, second, third = asyncio.run(run(client(server.url), server))
        assert len(server.log) == 2
    assert isinstance(first, asyncio.CancelledError)
    assert (second.cached, third.cached) == (False, True)


def test_one_who_waits_may_be_called_off_and_the_others_have_their_answer() -> None:
    async def run(endpoint: Endpoint, server: Server) -> list[Any]:
        calls = [asyncio.ensure_future(chat(endpoint)) for _ in range(3)]
        while not server.log:
            await asyncio.sleep(0.001)
        calls[1].cancel()
        answers = await asyncio.gather(*calls, return_exceptions=True)
        await endpoint.close()
        return answers

    with Server(Script(reply="1", delay=0.05)) as server:
        first, second, third = asyncio.run(run(client(server.url), server))
        assert len(server.log) == 1
    assert isinstance(second, asyncio.CancelledError)
    assert (first.text, third.text) == ("1", "1")


def test_calls_that_are_called_off_leave_their_room() -> None:
    async def run(endpoint: Endpoint, server: Server) -> None:
        for _ in range(3):
            calls = [asyncio.ensure_future(chat(endpoint, str(i))) for i in range(20)]
            seen = len(server.log)
            while len(server.log) < seen + 4:
                await asyncio.sleep(0.001)
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
        assert (await chat(endpoint, "last")).text == "1"
        await endpoint.close()

    with Server(Script(reply="1", delay=0.05)) as server:
        asyncio.run(run(client(server.url, concurrency=4), server))


def test_requests_a_minute_are_kept() -> None:
    with Server() as server:
        ask(client(server.url, rpm=1200), n=1)
        endpoint = client(server.url, rpm=1200)

        async def run() -> float:
            began = asyncio.get_running_loop().time()
            await asyncio.gather(*(chat(endpoint, str(i)) for i in range(8)))
            await endpoint.close()
            return asyncio.get_running_loop().time() - began

        assert asyncio.run(run()) >= 6 * 60 / 1200


@pytest.mark.parametrize(
    "wrong",
    [{"rpm": 0}, {"tpm": -1}, {"concurrency": 0}, {"timeout": 0.0}, {"price_in": -1.0}, {"retries": -1}],
)
def test_a_knob_that_means_nothing_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        client("http://localhost:1/v1", **wrong)


def test_the_identity_is_model_and_revision_or_host() -> None:
    assert client("http://localhost:8000/v1").identity == "scripted@localhost"
    assert client("http://localhost:8000/v1", revision="r1").identity == "scripted@r1"
