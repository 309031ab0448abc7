"""A scripted server that speaks /v1/chat/completions over real HTTP, with planted taste, bias and faults.

What it does to a request depends on the request's hash alone, so a run can be repeated and a fault can be counted.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import re
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

SHOWN = re.compile(r"(?:Summary|Response) 1 - (.*?)\n\n(?:Summary|Response) 2 - (.*?)\n\n", re.DOTALL)


def longer(first: str, second: str) -> float:
    """P(first is better) of a judge that likes length."""
    return 0.9 if len(first) > len(second) else 0.1


@dataclass(frozen=True, kw_only=True)
class Script:
    """What the server does.

    ``prefer`` gives P(first) by content; with probability ``abs(slot_bias)`` the favoured slot wins instead.
    ``garbage`` is the share of verdict requests answered without a verdict, ``faults`` the share of requests whose
    first try gets ``fault``. ``reply`` overrides text, ``status`` answers every request with an error. ``capacity``
    turns requests away with 429 while so many are in flight. ``answer`` takes over whatever it wants: from the request
    and how often it has come it makes status and payload (a string is sent as it is), or None.
    """

    prefer: Callable[[str, str], float] = longer
    slot_bias: float = 0.0
    logprobs: bool = True
    garbage: float = 0.0
    faults: float = 0.0
    fault: int = 500
    retry_after: str = ""
    delay: float = 0.0
    reply: str = ""
    status: int = 200
    message: str = "scripted"
    spoken: tuple[str, str] = ("1", "2")
    capacity: int = 0
    location: str = ""
    answer: Callable[[dict[str, Any], int], tuple[int, Any] | None] | None = None


def share(body: bytes, what: str) -> float:
    """A number in [0, 1) that belongs to this request."""
    return int.from_bytes(hashlib.blake2b(body + what.encode(), digest_size=7).digest(), "big") / 2**56


def is_garbage(body: bytes, script: Script) -> bool:
    return share(body, "garbage") < script.garbage


@dataclass
class Server:
    """The running server; ``log`` has (request body, status) of every request in order of arrival."""

    script: Script = field(default_factory=Script)
    log: list[tuple[bytes, int]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    in_flight: int = 0
    peak: int = 0
    arrived: threading.Condition = field(default_factory=threading.Condition)

    def __enter__(self) -> Server:
        started = threading.Event()
        self._tries: Counter[bytes] = Counter()

        async def serve() -> None:
            self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
            app = web.Application()
            app.router.add_post("/v1/chat/completions", self._answer)
            runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
            started.set()
            await self._over.wait()
            await runner.cleanup()

        self._thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
        self._thread.start()
        started.wait()
        return self

    def __exit__(self, *exc: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    def wait_for(self, requests: int) -> None:
        """Return once that many requests have arrived."""
        with self.arrived:
            self.arrived.wait_for(lambda: len(self.log) >= requests)

    async def _answer(self, request: web.Request) -> web.Response:
        body = await request.read()
        full = 0 < self.script.capacity <= self.in_flight
        status, payload = self._decide(body, request, full)
        self.headers.append(dict(request.headers))
        if full:
            return web.json_response(payload, status=status)
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        try:
            if self.script.delay:
                await asyncio.sleep(self.script.delay)
        finally:
            self.in_flight -= 1
        headers = {"Retry-After": self.script.retry_after} if self.script.retry_after and status == 429 else {}
        headers |= {"Location": self.script.location} if 300 <= status < 400 else {}
        if isinstance(payload, str):
            return web.Response(text=payload, content_type="text/html", status=status, headers=headers)
        return web.json_response(payload, status=status, headers=headers)

    def _decide(self, body: bytes, request: web.Request, full: bool) -> tuple[int, Any]:
        script = self.script
        self._tries[body] += 1
        status = script.status
        if script.answer and not full and (taken := script.answer(json.loads(body), self._tries[body])):
            with self.arrived:
                self.log.append((body, taken[0]))
                self.arrived.notify_all()
            return taken
        if full:
            status = 429
        if share(body, "fault") < script.faults and self._tries[body] == 1:
            status = script.fault
        with self.arrived:
            self.log.append((body, status))
            self.arrived.notify_all()
        if status != 200:
            message = script.message.format(authorization=request.headers.get("Authorization", ""))
            return status, {"error": {"message": message}}
        return 200, completion(json.loads(body), body, script)


def completion(asked: dict[str, Any], body: bytes, script: Script) -> dict[str, Any]:
    """The answer to one request: a rationale for a long reply, otherwise a verdict."""
    wants_logprobs = bool(asked.get("logprobs"))
    if asked["max_tokens"] > 16:
        text, logprobs = "The first covers more, the second is shorter.", None
    elif is_garbage(body, script):
        text, logprobs = "I cannot say", None
    elif script.reply:
        text, logprobs = script.reply, None
    else:
        p = chance(asked, script)
        said = p >= 0.5 if script.logprobs and wants_logprobs else share(body, "verdict") < p
        text = script.spoken[0 if said else 1]
        logprobs = top(p, text, script.spoken) if script.logprobs and wants_logprobs else None
    usage = {"prompt_tokens": len(body) // 4, "completion_tokens": max(1, len(text) // 4)}
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": logprobs}
    return {"choices": [choice], "usage": usage}


def chance(asked: dict[str, Any], script: Script) -> float:
    """P(first) of the scripted judge for the slots in the request."""
    shown = SHOWN.search(asked["messages"][0]["content"])
    assert shown is not None
    content = script.prefer(shown[1], shown[2])
    return (1 - abs(script.slot_bias)) * content + max(script.slot_bias, 0.0)


def top(p: float, text: str, spoken: tuple[str, str]) -> dict[str, Any]:
    """Log-probabilities of one token, 1 % of the mass elsewhere."""
    near = [
        {"token": token, "logprob": math.log(max(chance * 0.99, 1e-30))}
        for token, chance in zip(spoken, (p, 1 - p), strict=True)
    ]
    near.append({"token": "The", "logprob": math.log(0.01)})
    mine = next(entry for entry in near if entry["token"] == text)
    return {"content": [{**mine, "top_logprobs": sorted(near, key=lambda entry: -entry["logprob"])}]}
