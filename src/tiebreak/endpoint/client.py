"""One async client for servers that speak as OpenAI does: vLLM, SGLang, llama.cpp, OpenAI itself and their like.

One keep-alive session, a window of calls that finds its size, retries that wait as told, and errors that say what to
do. The key comes from the environment and goes into the request's header, nowhere else: not into a record, a message
or a log.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Coroutine, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol, TypeVar

from tiebreak.endpoint.asking import Asker, Call, Unanswered
from tiebreak.endpoint.cost import Budget, Price, price_of
from tiebreak.endpoint.pace import Limits
from tiebreak.endpoint.shapes import Reply, Token, as_schema, read_chat
from tiebreak.endpoint.wire import Wire
from tiebreak.records import InputError

__all__ = ["Cache", "Endpoint", "Reply", "Token", "Unanswered", "clients_of", "finish", "together"]

Result = TypeVar("Result")

CHAT = "chat/completions"


class Cache(Protocol):
    """Where replies are kept that were paid for."""

    def key_of(self, identity: str, path: str, body: Mapping[str, Any], attempt: int) -> str:
        """Return the hash of a whole request."""
        ...

    def get(self, key: str) -> Reply | None:
        """Return the reply kept under ``key``."""
        ...

    async def keep(self, key: str, identity: str, reply: Reply) -> None:
        """Return when ``reply`` is committed."""
        ...


class Endpoint:
    """One model on one server.

    ``url`` ends before ``/chat/completions`` and holds no password. ``key_env`` names the environment variable with
    the key; an unset one sends none. ``concurrency`` bounds the calls in flight; below it their number grows and backs
    off by itself. ``timeout`` is seconds for one call, ``retries`` how often a call is repeated after 429, 5xx, a
    timeout or a lost connection; the n-th wait is drawn from ``rng`` between half and all of ``backoff * 2**n``
    seconds, at least Retry-After. ``rpm`` and ``tpm`` bound requests and tokens a minute. ``close`` is not final: a
    later call opens a session again, also in another event loop.

    ``identity`` names the model with its ``revision``, else its host: what replies are kept under. ``price`` is made of
    ``price_in`` and ``price_out`` (US dollars per million tokens), else the published one, else None. ``cache`` holds
    replies, so that none is paid for twice. ``notes`` are sentences about what this server does not take.
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
        revision: str = "",
        price_in: float | None = None,
        price_out: float | None = None,
        rpm: float | None = None,
        tpm: float | None = None,
    ) -> None:
        for name, value in (("concurrency", concurrency), ("timeout", timeout), ("rpm", rpm), ("tpm", tpm)):
            if value is not None and not value > 0:
                raise InputError(f"endpoint: {name} is {value}; expected more than 0.")
        for name, value in (("price_in", price_in), ("price_out", price_out), ("retries", retries)):
            if value is not None and not value >= 0:
                raise InputError(f"endpoint: {name} is {value}; expected 0 or more.")
        self._wire = Wire(url, key_env=key_env, timeout=timeout)
        self.model, self.host, self.name = model, self._wire.host, self._wire.name
        self.identity = f"{model}@{revision or self.host}"
        given = price_in is not None or price_out is not None
        self.price = Price(price_in or 0.0, price_out or 0.0) if given else price_of(model, self.host)
        self.cache: Cache | None = None
        self._retries = retries
        self._asker = Asker(
            self._wire,
            model,
            self.price,
            rng=rng,
            concurrency=concurrency,
            timeout=timeout,
            retries=retries,
            backoff=backoff,
            limits=Limits(rpm, tpm),
        )
        self._asked: dict[Hashable, asyncio.Future[Reply]] = {}

    @property
    def notes(self) -> Sequence[str]:
        """What this server does not take and is not sent, a sentence each."""
        return self._asker.notes

    @property
    def budget(self) -> Budget | None:
        """The cap on what calls may cost; one in US dollars needs a price."""
        return self._asker.budget

    @budget.setter
    def budget(self, budget: Budget | None) -> None:
        if budget is not None and budget.usd is not None and self.price is None:
            raise InputError(
                f"budget: no price of {self.model!r} at {self.host} is known, so US dollars cannot be counted; set "
                "price_in and price_out (US dollars per million tokens, 0 for a server of your own)."
            )
        self._asker.budget = budget

    async def close(self) -> None:
        """Close the connections."""
        await self._wire.close()

    async def chat(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        max_tokens: int,
        temperature: float,
        logprobs: bool = False,
        top_logprobs: int = 20,
        continue_final: bool = False,
        schema: Mapping[str, Any] | None = None,
        attempt: int = 0,
    ) -> Reply:
        """Return the reply to ``messages``, from the cache where it was paid for before, with what was paid then.

        Equal requests in flight are asked once; ``attempt`` tells apart those that want answers of their own.

        Args:
            messages: the turns, each with ``role`` and ``content``.
            max_tokens: of the reply, a thought included.
            temperature: of sampling; not sent to a model that takes none.
            logprobs: whether to ask for log-probabilities.
            top_logprobs: of how many tokens in each place.
            continue_final: have the server go on writing the last message.
            schema: a JSON schema to hold the answer to; a server that cannot is asked without.
            attempt: part of what the reply is kept under, and of no request.

        Raises:
            Unanswered: this call has no answer, though the server is well.
            BudgetReached: it could pass the budget.
            InputError: the server is down, or refuses the key, the model or the request.
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
        if schema is not None:
            body["response_format"] = as_schema(schema)
        data = json.dumps(body).encode()
        call = Call(CHAT, body, data, self._read, self._retries)
        if (cache := self.cache) is None:
            return await self._once((data, attempt), call)
        key = cache.key_of(self.identity, CHAT, body, attempt)
        if (found := cache.get(key)) is not None:
            return found._replace(cached=True)
        call.keep = partial(cache.keep, key, self.identity)
        return await self._once(key, call)

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
        most = self._retries if retries is None else retries
        return await self._asker.ask(Call(path, body, json.dumps(body).encode(), read, most, cure, kept))

    def _read(self, text: str, seconds: float) -> Reply | None:
        reply = read_chat(text, seconds)
        if reply is None or self.price is None:
            return reply
        return reply._replace(price=self.price.of(reply.tokens_in, reply.tokens_out))

    async def _once(self, same: Hashable, call: Call[Reply]) -> Reply:
        """Ask, or wait for the equal request in flight; when that is called off, one of those who wait asks."""
        while (other := self._asked.get(same)) is not None:
            try:
                return _unpaid(await asyncio.shield(other))
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if not other.cancelled() or (task is not None and task.cancelling()):
                    raise
        answer = self._asked[same] = asyncio.get_running_loop().create_future()
        try:
            reply = await self._asker.ask(call)
        except Exception as error:
            answer.set_exception(error)
            answer.exception()  # nobody has to wait for it
            raise
        except BaseException:
            answer.cancel()
            raise
        finally:
            del self._asked[same]
        answer.set_result(reply)
        return reply


def _unpaid(reply: Reply) -> Reply:
    """Return a reply that somebody else paid for."""
    return reply._replace(cached=True, price=None if reply.price is None else 0.0)


def clients_of(asker: object) -> tuple[Endpoint, ...]:
    """Return the connections that somebody asks through, each once: their ``clients``, or else their one ``client``.

    A rule has none, a judge that is a model one, a panel those of its jurors.
    """
    found = getattr(asker, "clients", None) or (getattr(asker, "client", None),)
    return tuple(dict.fromkeys(client for client in found if client is not None))


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
