"""One async client for servers that speak as OpenAI does: vLLM, SGLang, llama.cpp, OpenAI itself and their like.

One keep-alive session, retries that wait as told, and errors that say what to do. The key comes from the environment
and goes into the request's header, nowhere else: not into a record, a message or a log.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, NamedTuple, TypeVar

import aiohttp
from yarl import URL

from tiebreak.records import InputError

Result = TypeVar("Result")

LONGEST_WAIT = 600.0
"""Seconds a server's Retry-After is obeyed at most; a longer one ends the run with the server's words."""

_BROKEN = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, asyncio.TimeoutError, ConnectionError)


class Token(NamedTuple):
    """One generated token with the log-probabilities of the likeliest tokens in its place, itself among them."""

    text: str
    top: Mapping[str, float]


class Reply(NamedTuple):
    """What the model wrote, what it cost in tokens and how long the answered call took, in seconds.

    ``tokens`` is None where the server gave no log-probabilities; ``finish`` is the server's finish reason.
    """

    text: str
    tokens: tuple[Token, ...] | None
    tokens_in: int | None
    tokens_out: int | None
    latency: float
    finish: str


class Endpoint:
    """One model on one server.

    ``url`` ends before ``/chat/completions`` and holds no password. ``key_env`` names the environment variable with
    the key; an unset one sends none. ``concurrency`` bounds the calls in flight, ``timeout`` is seconds for one call,
    ``retries`` how often a call is repeated after 429, 5xx, a timeout or a lost connection; the n-th wait is drawn
    from ``rng`` between half and all of ``backoff * 2**n`` seconds, at least Retry-After. ``close`` is not final: a
    later call opens a session again, also in another event loop.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        rng: random.Random,
        key_env: str | None = "OPENAI_API_KEY",
        concurrency: int = 1024,
        timeout: float = 120.0,
        retries: int = 6,
        backoff: float = 0.5,
    ) -> None:
        self.model = model
        self.host, self.name, self._query = _address(url)
        self._rng = rng
        self._key_env = key_env
        self._concurrency = concurrency
        self._timeout = timeout
        self._retries = retries
        self._backoff = backoff
        self._session: aiohttp.ClientSession | None = None
        self._free = asyncio.Semaphore(concurrency)
        self._answered = False

    async def close(self) -> None:
        """Close the connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        max_tokens: int,
        temperature: float,
        logprobs: bool = False,
        top_logprobs: int = 20,
        continue_final: bool = False,
    ) -> Reply:
        """Return the reply to ``messages``; ``continue_final`` has the server go on writing the last message.

        A call the server refuses, or one that fails after all retries, is an InputError in one sentence.
        """
        body: dict[str, Any] = {
            "model": self.model,
            "messages": list(messages),
            "max_tokens": max_tokens,
            "temperature": temperature,
        }
        if logprobs:
            body |= {"logprobs": True, "top_logprobs": top_logprobs}
        if continue_final:
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        return await self.post("chat/completions", body, _read)

    async def post(
        self,
        path: str,
        body: Mapping[str, Any],
        read: Callable[[str, float], Result | None],
        *,
        cure: str = "",
        kept: str = "what was answered so far is kept",
        retries: int | None = None,
    ) -> Result:
        """Return what ``read`` makes of the text of the answer and of the seconds it took.

        An answer of which it makes None, a ValueError, a KeyError or the like is asked for again.

        Args:
            path: below the address, or from the server's root where it begins with a slash.
            body: becomes JSON.
            read: takes the answer's text and the seconds; an InputError it raises ends the call.
            cure: what to do about a refusal, or a failure that stays.
            kept: what a run that is started again does not lose.
            retries: other than for all calls.

        Raises:
            InputError: a refusal, or a failure after all retries, in one sentence.
        """
        session, url, data = self._open(), self._at(path), json.dumps(body).encode()
        most = self._retries if retries is None else retries
        async with self._free:
            for attempt in range(most + 1):
                try:
                    status, text, wait, seconds = await self._once(session, url, data)
                except _BROKEN as error:
                    problem, told, wait = "cannot be reached: " + self._hide(_reason(error, self._timeout)), "", 0.0
                    if isinstance(error, aiohttp.ClientConnectorError) and not self._answered:
                        break
                else:
                    problem, told = f"answered {status}: {_said(text)}", cure
                    if status == HTTPStatus.OK:
                        problem = f"gave something else than was asked for: {_said(text)}"
                        with suppress(ValueError, KeyError, IndexError, TypeError, AttributeError):
                            if (found := read(text, seconds)) is not None:
                                return found
                    elif status != HTTPStatus.TOO_MANY_REQUESTS and status < 500:
                        raise InputError(f"The endpoint {self.name} {problem}; {self._cure(status, cure)}.")
                    elif wait > LONGEST_WAIT:
                        problem += f" (and asks to wait {wait:.0f} s)"
                        break
                if attempt < most:
                    await asyncio.sleep(max(wait, self._backoff * 2**attempt * self._rng.uniform(0.5, 1.0)))
        told = told or "check that the server runs and that the address is right"
        raise InputError(f"The endpoint {self.name} {problem}; {told}, then run again: {kept}.")

    async def _once(self, session: aiohttp.ClientSession, url: URL, data: bytes) -> tuple[int, str, float, float]:
        """Return the status, the text without the key, the wait that is asked for and the seconds it took."""
        started = time.perf_counter()
        async with session.post(url, data=data, allow_redirects=False) as response:
            text = self._hide(await response.text(errors="replace"))
            self._answered = True
            wait = _retry_after(response.headers.get("Retry-After", ""))
            return response.status, text, wait, time.perf_counter() - started

    def _at(self, path: str) -> URL:
        base = URL(self.name.removesuffix("/v1") if path.startswith("/") else self.name)
        full = base.joinpath(path.lstrip("/"))
        return full.with_query(self._query) if self._query else full

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            headers = {"Content-Type": "application/json"}
            if key := self._key():
                headers["Authorization"] = f"Bearer {key}"
            self._free = asyncio.Semaphore(self._concurrency)
            self._session = aiohttp.ClientSession(
                headers=headers,
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60),
                timeout=aiohttp.ClientTimeout(total=self._timeout),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session

    def _key(self) -> str:
        key = os.environ.get(self._key_env, "").strip() if self._key_env else ""
        if not (key.isascii() and (key.isprintable())):
            raise InputError(
                f"The environment variable {self._key_env} holds characters that no key has; set it to the key alone."
            )
        return key

    def _hide(self, text: str) -> str:
        """Take the key out of whatever the server or the transport says; placeholders like EMPTY are no secret."""
        key = self._key()
        return text.replace(key, "[key]") if len(key) >= 8 else text

    def _cure(self, status: int, cure: str) -> str:
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            where = f"set the environment variable {self._key_env}" if self._key_env else "name the variable in key_env"
            return f"{where} to a key this server accepts"
        if cure:
            return cure
        if status == HTTPStatus.NOT_FOUND:
            return f"check the model's name {self.model!r} and that the address ends before /chat/completions"
        return "correct what the server names"


def _address(url: str) -> tuple[str, str, str]:
    """Return host, a name fit for messages, and the query; a password in it is refused without repeating it."""
    try:
        parsed = URL(url.strip())
    except ValueError:
        parsed = URL()
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise InputError(f"endpoint: {url!r} is no address; expected something like http://localhost:8000/v1.")
    if parsed.user is not None or parsed.password is not None:
        raise InputError(
            f"endpoint: the address of {parsed.host} holds a password; "
            "put the key into an environment variable and name that in key_env."
        )
    base = parsed.with_path(parsed.path.rstrip("/").removesuffix("/chat/completions"))
    return parsed.host, str(base).rstrip("/"), parsed.query_string


def _read(text: str, latency: float) -> Reply | None:
    """Return the reply in a server's JSON, None where it is not a chat completion."""
    try:
        found = json.loads(text)
        choice = found["choices"][0]
        said = choice["message"].get("content") or ""
        usage = found.get("usage") or {}
        return Reply(
            text=said if isinstance(said, str) else json.dumps(said),
            tokens=_tokens(choice.get("logprobs")),
            tokens_in=usage.get("prompt_tokens"),
            tokens_out=usage.get("completion_tokens"),
            latency=latency,
            finish=choice.get("finish_reason") or "",
        )
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return None


def _tokens(logprobs: Mapping[str, Any] | None) -> tuple[Token, ...] | None:
    content = (logprobs or {}).get("content")
    if not content:
        return None
    tokens = []
    for entry in content:
        top: dict[str, float] = {}
        for near in entry.get("top_logprobs") or ():
            # Two token ids may decode to one text; their probabilities add up.
            known = top.get(near["token"])
            here = float(near["logprob"])
            top[near["token"]] = here if known is None else math.log(math.exp(known) + math.exp(here) or 5e-324)
        top.setdefault(entry["token"], float(entry["logprob"]))
        tokens.append(Token(entry["token"], top))
    return tuple(tokens)


def _said(text: str) -> str:
    """Return the server's message, from the shapes servers use, shortened to one line."""
    message: Any = text
    try:
        found = json.loads(text)
        error = found.get("error") or found.get("detail") or found.get("message") or text
        message = error.get("message", text) if isinstance(error, dict) else error
    except (ValueError, AttributeError):
        pass
    line = " ".join(str(message).split()) or "nothing"
    return line.rstrip(".") if len(line) <= 300 else line[:300] + "..."


def _retry_after(value: str) -> float:
    """Return the seconds a Retry-After header asks for, as a number or a date; 0 where it says neither."""
    try:
        seconds = float(value)
    except ValueError:
        try:
            when = parsedate_to_datetime(value)
        except ValueError:
            return 0.0
        when = when if when.tzinfo else when.replace(tzinfo=UTC)
        seconds = (when - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0


def _reason(error: BaseException, timeout: float) -> str:
    if isinstance(error, asyncio.TimeoutError):
        return f"no answer within {timeout:g} s"
    if isinstance(error, aiohttp.ClientConnectorError):
        return error.os_error.strerror or str(error.os_error) or "no connection"
    return str(error) or type(error).__name__


async def together(calls: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """Return what the calls give, in order; when one fails the others are called off before a connection is closed."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def finish(work: Coroutine[Any, Any, Result]) -> Result:
    """Run ``work`` to its end, in this thread or, where an event loop runs already (a notebook), in one beside it."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()
