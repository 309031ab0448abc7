"""One keep-alive session to one server: requests out, answers in, and the key in a header and nowhere else."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from math import isfinite
from typing import Literal, NamedTuple
from urllib.parse import quote

import aiohttp
from yarl import URL

from tiebreak.records import InputError

_BROKEN = (aiohttp.ClientError, asyncio.TimeoutError, ConnectionError)
_SCARCE = (errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS)
"""This machine has no more connections to give: fewer calls in flight help."""


class Answer(NamedTuple):
    """A status, the text without the key, the seconds that Retry-After asks for, and those that the call took."""

    status: int
    text: str
    wait: float
    seconds: float


class Silence(NamedTuple):
    """No answer, and what the server did instead: it took no connection, was too slow, or broke the connection."""

    kind: Literal["refused", "late", "lost"]
    why: str


class Wire:
    """The connection to the server at ``url``, opened when it is used and again after ``close``.

    ``name`` is the address as messages may show it, ``answered`` whether anything ever came back.
    """

    def __init__(self, url: str, *, key_env: str | None, timeout: float) -> None:
        self.host, self.name, self._query = _address(url)
        self.answered = False
        self._key_env, self._timeout = key_env, timeout
        self._session: aiohttp.ClientSession | None = None
        self._hidden: tuple[str, ...] = ()
        self._urls: dict[str, URL] = {}

    def open(self) -> bool:
        """Open the session where there is none; return whether it was opened now.

        Raises:
            InputError: the key is none that a header could hold.
        """
        if self._session is not None and not self._session.closed:
            return False
        headers = {"Content-Type": "application/json"}
        key = self._key()
        if key:
            headers["Authorization"] = f"Bearer {key}"
        # Placeholders like EMPTY are no secret, and taking them out would garble texts.
        self._hidden = tuple({key, quote(key, safe=""), key.replace("/", "\\/")}) if len(key) >= 8 else ()
        self._session = aiohttp.ClientSession(
            headers=headers,
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60),
            timeout=aiohttp.ClientTimeout(total=self._timeout),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return True

    async def close(self) -> None:
        """Close the connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def post(self, path: str, data: bytes) -> Answer | Silence:
        """Send ``data`` to ``path``, below the address or with a slash from the server's root; no redirect is followed.

        A redirect could carry the key to another host.
        """
        assert self._session is not None, "open() comes first"
        started = time.perf_counter()
        try:
            async with self._session.post(self._at(path), data=data, allow_redirects=False) as response:
                raw = await response.read()
                self.answered = True
                wait = response.headers.get("Retry-After")
                text = self.hide(raw.decode(errors="replace"))
                return Answer(response.status, text, retry_after(wait) if wait else 0.0, time.perf_counter() - started)
        except _BROKEN as error:
            return self._silence(error)

    def hide(self, text: str) -> str:
        """Take the key out of whatever the server or the transport says."""
        for secret in self._hidden:
            text = text.replace(secret, "[key]")
        return text

    def cure_of_key(self) -> str:
        """Return what to do where the key is refused."""
        where = f"set the environment variable {self._key_env}" if self._key_env else "name the variable in key_env"
        return f"{where} to a key this server accepts"

    def _silence(self, error: BaseException) -> Silence:
        if isinstance(error, asyncio.TimeoutError):
            return Silence("late", f"gave no answer within {self._timeout:g} s")
        if isinstance(error, aiohttp.ClientResponseError):  # its words may hold the headers that were sent
            return Silence("lost", "gave something that is no HTTP")
        if isinstance(error, aiohttp.ClientConnectorError):
            cause = getattr(error, "_os_error", None)
            scarce = isinstance(cause, OSError) and cause.errno in _SCARCE
            why = (cause.strerror or str(cause)) if isinstance(cause, OSError) else str(error)
            why = self.hide(why) or "no connection"
            return Silence("lost" if scarce else "refused", f"cannot be reached: {why}")
        return Silence("lost", f"broke the connection: {self.hide(str(error)) or type(error).__name__}")

    def _at(self, path: str) -> URL:
        url = self._urls.get(path)
        if url is None:
            base = URL(self.name.removesuffix("/v1") if path.startswith("/") else self.name)
            full = base.joinpath(path.lstrip("/"))
            url = self._urls[path] = full.with_query(self._query) if self._query else full
        return url

    def _key(self) -> str:
        key = os.environ.get(self._key_env, "").strip() if self._key_env else ""
        if not (key.isascii() and key.isprintable()):
            raise InputError(
                f"The environment variable {self._key_env} holds characters that no key has; set it to the key alone."
            )
        return key


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


def retry_after(value: str) -> float:
    """Return the seconds a Retry-After header asks for, as a number or a date; 0 where it says neither."""
    try:
        seconds = float(value)
    except ValueError:
        when = None
        with suppress(ValueError):
            when = parsedate_to_datetime(value)
        if when is None:
            return 0.0
        when = when if when.tzinfo else when.replace(tzinfo=UTC)
        seconds = (when - datetime.now(UTC)).total_seconds()
    return max(0.0, seconds) if isfinite(seconds) else 0.0


def cure_of(status: int, message: str, sent: Mapping[str, object], model: str) -> str:
    """Return what to do about a refusal, by its status and by what the server names."""
    named = [name for name in ("continue_final_message", "add_generation_prompt") if name in message]
    if "continue_final_message" in sent and (named or "assistant" in message):
        return "this server does not go on with a begun answer: set prefill=false"
    if "logprobs" in sent and "logprobs" in message:
        return "set logprobs=false, or a smaller top_logprobs if that is what it names"
    if status == HTTPStatus.NOT_FOUND:
        return f"check the model's name {model!r} and that the address ends before /chat/completions"
    if 300 <= status < 400:
        return "give the address that it redirects to; a key is not sent on to another"
    return "correct what the server names"
