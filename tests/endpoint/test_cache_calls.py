"""An endpoint with a cache: killed and started again, in two processes at once, and with a key that stays out of it."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.judge.server import Script, Server
from tiebreak.endpoint import Endpoint, together
from tiebreak.endpoint.cache import Replies
from tiebreak.store import Ledger

KEY = "sk-very-secret-0123456789"
IN_FLIGHT = 8

CALLS = f"""
import asyncio, random, sys
from tiebreak.endpoint import Endpoint, together
from tiebreak.endpoint.cache import Replies
from tiebreak.store import Ledger

url, where, first, after = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])

async def work(endpoint):
    turns = [[{{"role": "user", "content": f"Say why {{i}}."}}] for i in range(first, after)]
    replies = await together(endpoint.chat(turn, max_tokens=100, temperature=0.0) for turn in turns)
    await endpoint.close()
    await endpoint.cache.close()
    print(sum(reply.cached for reply in replies))

with Ledger(where) as ledger:
    endpoint = Endpoint(url, "scripted", rng=random.Random(0), key_env=None, concurrency={IN_FLIGHT})
    endpoint.cache = Replies(ledger)
    asyncio.run(work(endpoint))
"""


def caller(server: Server, where: str, first: int, after: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CALLS, server.url, where, str(first), str(after)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def endpoint_with(ledger: Ledger, server: Server, **settings: Any) -> Endpoint:
    endpoint = Endpoint(server.url, "scripted", rng=random.Random(0), **{"key_env": None, **settings})
    endpoint.cache = Replies(ledger)
    return endpoint


def chat(endpoint: Endpoint, *words: str, **settings: Any) -> list[Any]:
    async def work() -> list[Any]:
        try:
            turns = [[{"role": "user", "content": word}] for word in words]
            knobs = {"max_tokens": 100, "temperature": 0.0, **settings}
            return await together(endpoint.chat(turn, **knobs) for turn in turns)
        finally:
            await endpoint.close()
            await endpoint.cache.close()

    return asyncio.run(work())


@pytest.mark.slow
def test_a_killed_caller_pays_again_for_no_more_than_was_in_flight(ledger_url: str) -> None:
    n, kills = 240, 3
    Ledger(ledger_url).close()
    with Server(Script(delay=0.01)) as server:
        for _ in range(kills):
            with Ledger(ledger_url) as ledger:
                left = n - Replies(ledger).paid("scripted@127.0.0.1").calls
            process = caller(server, ledger_url, 0, n)
            server.wait_for(len(server.log) + left // 2)
            process.send_signal(signal.SIGKILL)
            process.communicate(timeout=60)
        process = caller(server, ledger_url, 0, n)
        out, error = process.communicate(timeout=60)
        assert process.returncode == 0, error[-600:]
        paid = len(server.log)
        assert n - n // 2 <= int(out), "most of it was known by then"
        assert n <= paid <= n + kills * IN_FLIGHT
        again = caller(server, ledger_url, 0, n)
        assert again.communicate(timeout=60)[0].split() == [str(n)]
        assert len(server.log) == paid


@pytest.mark.slow
def test_two_processes_share_one_ledger(ledger_url: str) -> None:
    Ledger(ledger_url).close()
    with Server() as server:
        callers = [caller(server, ledger_url, first, first + 120) for first in (0, 60)]
        said = [process.communicate(timeout=60) for process in callers]
        assert [process.returncode for process in callers] == [0, 0], [error[-400:] for _, error in said]
        known = sum(int(out) for out, _ in said)
        assert len(server.log) == 240 - known
        with Ledger(ledger_url) as ledger:
            endpoint = endpoint_with(ledger, server)
            assert all(reply.cached for reply in chat(endpoint, *(f"Say why {i}." for i in range(180))))


def test_a_call_that_was_paid_for_is_answered_from_the_ledger(ledger: Ledger) -> None:
    with Server() as server:
        endpoint = endpoint_with(ledger, server)
        first, *_ = chat(endpoint, "Say why.")
        again, *_ = chat(endpoint, "Say why.")
        assert not first.cached
        assert again == first._replace(cached=True)
        assert len(server.log) == 1
        chat(endpoint, "Say why.", temperature=0.5)
        chat(endpoint, "Say why.", attempt=1)
        assert len(server.log) == 3
        assert endpoint.cache.paid(endpoint.identity).calls == 3


def test_a_failure_is_never_kept(ledger: Ledger) -> None:
    with Server(Script(faults=1.0, fault=500)) as server:
        endpoint = endpoint_with(ledger, server, backoff=0.001)
        chat(endpoint, "Say why.")
        assert [status for _, status in server.log] == [500, 200]
        assert endpoint.cache.paid(endpoint.identity).calls == 1


def test_no_key_gets_into_the_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    slots = "Summary 1 - long one\n\nSummary 2 - short\n\n"
    with Server(Script(reply=f"1, and your key is {KEY}")) as server, Ledger(tmp_path / "ledger.db") as ledger:
        endpoint = endpoint_with(ledger, server, key_env="MY_KEY")
        (reply,) = chat(endpoint, slots, max_tokens=5)
        assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
        assert KEY in json.dumps(server.script.reply)
        assert KEY not in reply.text
        held = b"".join(file.read_bytes() for file in tmp_path.glob("ledger.db*"))
        assert b"your key is" in held
        assert KEY.encode() not in held
