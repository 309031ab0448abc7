"""The scripted model behind ``judge.py``: one process that speaks /v1/chat/completions and takes its time as told.

Whom it prefers, how long it takes and which fault it has depend on the message and on how often it was asked, nothing
else, so every side meets the same server. ``POST /RUN`` begins a run, ``/RUN/v1/chat/completions`` answers,
``GET /RUN`` tells what was counted. It ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import os
import signal
import sys
import time
from collections import Counter
from typing import Any

from aiohttp import web
from judge_work import TOP_LOGPROBS, first_is_better, key, shown

MEDIAN, SIGMA, CAP = 0.05, 1.0, 2.0
"""Seconds and spread of the heavy tail; fixed latency takes the median too."""

FAULTS = {"429": 0.02, "500": 0.01, "garbage": 0.01, "hang": 0.005, "reset": 0.002}
"""Shares of calls. Garbage is an answer without a verdict (``words``) or a body that is cut off (``broken``)."""

LONGEST_HANG = 600.0
SURE = 0.9


def _logprobs(first: float) -> dict[int, bytes]:
    """Return the log-probabilities in an answer by how many are asked for, 1 % of the mass outside the verdict."""
    near = sorted((("1", first * 0.99), ("2", (1 - first) * 0.99)), key=lambda entry: -entry[1])
    near += [(f"tok{n}", 0.01 * 0.5 ** (n + 1)) for n in range(TOP_LOGPROBS - 2)]
    top = [{"token": token, "logprob": math.log(p), "bytes": list(token.encode())} for token, p in near]
    return {
        n: json.dumps({"content": [{**top[0], "top_logprobs": top[:n]}], "refusal": None}).encode()
        for n in range(2, TOP_LOGPROBS + 1)
    }


LOGPROBS = {"1": _logprobs(SURE), "2": _logprobs(1 - SURE)}


def reply(text: str, asked: dict[str, Any], length: int) -> bytes:
    """Return the body of an answer."""
    logprobs = LOGPROBS[text][asked.get("top_logprobs") or 2] if asked.get("logprobs") and text in LOGPROBS else b"null"
    return (
        b'{"id":"chatcmpl-1","object":"chat.completion","created":1700000000,"model":"scripted","choices":[{"index":0,'
        b'"message":{"role":"assistant","content":"%b","refusal":null},"logprobs":%b,"finish_reason":"stop"}],"usage":'
        b'{"prompt_tokens":%d,"completion_tokens":1,"total_tokens":%d}}'
        % (text.encode(), logprobs, length // 4, length // 4 + 1)
    )


def draws(asked: str, times: int) -> tuple[float, float, float]:
    """Return three numbers in (0, 1) that belong to this call."""
    digest = hashlib.blake2b(asked.encode(), digest_size=24, salt=times.to_bytes(4, "big")).digest()
    a, b, c = (int.from_bytes(digest[start : start + 8], "big") for start in (0, 8, 16))
    return (a + 0.5) / 2**64, (b + 0.5) / 2**64, (c + 0.5) / 2**64


def wait(latency: str, a: float, b: float) -> float:
    """Return the seconds an answer takes."""
    if latency == "heavy_tail":
        normal = math.sqrt(-2.0 * math.log(a)) * math.cos(2.0 * math.pi * b)
        return min(CAP, MEDIAN * math.exp(SIGMA * normal))
    return MEDIAN if latency == "fixed" else 0.0


def fault(share: float) -> str:
    """Return the fault of a call, empty for none."""
    for name, part in FAULTS.items():
        share -= part
        if share < 0:
            return name
    return ""


class Run:
    """What is counted of one run; ``garbage`` is what garbage looks like, and empty where no call fails."""

    def __init__(self, latency: str, garbage: str) -> None:
        self.latency, self.garbage = latency, garbage
        self.received: Counter[str] = Counter()
        self.readable: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()
        self.sent: list[float] = []
        self.cpu: list[float] = []
        self.in_flight = self.peak = self.unknown = 0

    def told(self, *, whole: bool) -> dict[str, Any]:
        """Return the counts, with every call by its key where ``whole``."""
        found = {
            "received": sum(self.received.values()),
            "readable": sum(self.readable.values()),
            "in_flight": self.in_flight,
            "peak": self.peak,
            "unknown": self.unknown,
            "ends": dict(self.ends),
        }
        if whole:
            found |= {"sent": self.sent, "cpu": self.cpu, "asked": self.received, "answered": self.readable}
        return found

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one call."""
        body = await request.read()
        asked = json.loads(body)
        said = asked["messages"][-1]["content"].strip()
        name = key(said)
        self.received[name] += 1
        times = self.received[name]
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        try:
            a, b, c = draws(said, times)
            if seconds := wait(self.latency, a, b):
                await asyncio.sleep(seconds)
            what = fault(c) if self.garbage else ""
            self.ends[what or "readable"] += 1
            if what:
                return await self._fail(what, request, asked, len(body))
            try:
                text = "1" if first_is_better(*shown(said)) else "2"
            except ValueError:
                self.unknown += 1
                text = "none of the rows"
            self.readable[name] += 1
            if self.readable[name] == 1:
                self.sent.append(time.monotonic())
                self.cpu.append(time.process_time())
            return _json(reply(text, asked, len(body)))
        finally:
            self.in_flight -= 1

    async def _fail(self, what: str, request: web.BaseRequest, asked: dict[str, Any], size: int) -> web.StreamResponse:
        if what == "hang":
            for _ in range(int(LONGEST_HANG * 10)):
                await asyncio.sleep(0.1)
                if request.transport is None or request.transport.is_closing():
                    break
        if what in ("hang", "reset"):
            if request.transport is not None:
                request.transport.abort()
            return web.Response(status=500)
        if what == "garbage":
            cut = 90 if self.garbage == "broken" else None
            return _json(reply("I cannot say which of them it is", asked, size)[:cut])
        said = "Rate limit reached" if what == "429" else "The server had an error"
        headers = {"Retry-After": "1"} if what == "429" else {}
        return _json(json.dumps({"error": {"message": said}}).encode(), int(what), headers)


def _json(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(body=body, status=status, headers=headers, content_type="application/json")


RUNS: dict[str, Run] = {}


async def handle(request: web.BaseRequest) -> web.StreamResponse:
    """Begin a run, answer a call or tell what was counted, by the path."""
    name, _, rest = request.path.strip("/").partition("/")
    if rest == "v1/chat/completions" and name in RUNS:
        return await RUNS[name].answer(request)
    if request.method == "POST" and not rest:
        RUNS[name] = Run(**json.loads(await request.read()))
        return _json(b"{}")
    if name in RUNS and rest in ("", "short"):
        return _json(json.dumps(RUNS[name].told(whole=not rest)).encode())
    return _json(b'{"error":{"message":"no such run"}}', 404)


async def serve() -> None:
    """Serve until the standard input ends; the first line of output is the port."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        web.Server(handle, access_log=None, keepalive_timeout=3600), "127.0.0.1", 0, backlog=4096
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.buffer.read)
    os._exit(0)  # calls that hang would hold an orderly end up


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the benchmark, which then lets this end
    asyncio.run(serve())
