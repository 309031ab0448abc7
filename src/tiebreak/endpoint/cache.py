"""Replies that were paid for, kept in the ledger under the hash of the whole request, so none is paid for twice.

A look-up is one indexed read. A reply counts as kept once it is committed; replies that come together are committed
together, on a thread, so that no event loop waits for a disk.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from tiebreak.endpoint.cost import Paid
from tiebreak.endpoint.shapes import Reply, Token
from tiebreak.records import InputError, content_id
from tiebreak.store import Added, Ledger
from tiebreak.store.replies import StoredReply

LINGER = 0.25
"""Seconds the writing thread stays without work: a program that never closes is held up by no more than that."""

COLUMNS = ("tokens_in", "tokens_out", "latency", "price", "cached")
"""Fields of a reply that have columns of their own, or that belong to the look-up."""


class _Waiting(NamedTuple):
    row: StoredReply
    loop: asyncio.AbstractEventLoop
    kept: asyncio.Future[None]


class Replies:
    """The replies of one ledger. Any number of event loops, threads and processes may share them.

    ``identity`` is the model with its revision or host. It is part of every key, so a model that moves to another
    address keeps its replies exactly if its identity stays. No key to a server gets here.

    Args:
        ledger: with the table; it stays open when this is closed.
        turn: above 0 for a run that does not take the answers of earlier ones: what is kept in one turn is known in
            that turn alone, so such a run can be killed and go on as well.
    """

    def __init__(self, ledger: Ledger, *, turn: int = 0) -> None:
        self.ledger, self.turn = ledger, turn
        self._change = threading.Condition()
        self._waiting: list[_Waiting] = []
        self._thread: threading.Thread | None = None
        self._closing = False

    def key_of(self, identity: str, path: str, body: Mapping[str, Any], attempt: int) -> str:
        """Return the hash of a whole request; ``attempt`` tells equal requests apart that want answers of their own."""
        return content_id("reply", identity, path.strip("/"), body, attempt, *[self.turn] * (self.turn > 0))

    def get(self, key: str) -> Reply | None:
        """Return the reply kept under ``key`` with ``cached`` set, None where there is none.

        Price and latency are those of the call that was paid for. It takes some ten microseconds, so an event loop may
        call it.
        """
        row = self.ledger.reply(key)
        if row is None:
            return None
        try:
            return _reply(row)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(
                f"The ledger {self.ledger.name} holds a reply that cannot be read, {key}; delete this row of the "
                "table replies, and it is asked for again."
            ) from error

    async def keep(self, key: str, identity: str, reply: Reply) -> None:
        """Return when ``reply`` is committed under ``key``. A caller that is called off leaves it to be written.

        Raises:
            InputError: the ledger refuses; every caller that waits for the same transaction is told.
        """
        loop = asyncio.get_running_loop()
        kept: asyncio.Future[None] = loop.create_future()
        with self._change:
            self._waiting.append(_Waiting(_row(key, identity, reply), loop, kept))
            if self._thread is None:
                # Not a daemon: a program that ends waits for what is still to be written.
                self._thread = threading.Thread(target=self._write, name="replies", daemon=False)
                self._thread.start()
            elif len(self._waiting) == 1:
                self._change.notify_all()
        await kept

    def keep_all(self, replies: Iterable[tuple[str, str, Reply]]) -> Added:
        """Write replies with their keys and identities in one transaction, here and now."""
        return self.ledger.add_replies(_row(*one) for one in replies)

    def paid(self, identity: str) -> Paid:
        """Return what ``identity`` was paid for so far, in this run and all before."""
        return Paid(*self.ledger.replies_to(identity))

    async def close(self) -> None:
        """Return when all is written; a later ``keep`` begins anew."""
        with self._change:
            thread = self._thread
            if thread is not None:
                self._closing = True
                self._change.notify_all()
        if thread is not None:
            await asyncio.to_thread(thread.join)

    def _write(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._waiting or self._closing, LINGER)
                if not self._waiting:
                    self._thread, self._closing = None, False
                    return
                # All that came during the last transaction; waiting for more would hold up the calls behind these.
                batch, self._waiting = self._waiting, []
            error: BaseException | None = None
            try:
                self.ledger.add_replies(waiting.row for waiting in batch)
            except BaseException as raised:  # whatever it is, somebody waits to hear of it
                error = raised
            _tell(batch, error)


def _tell(batch: Sequence[_Waiting], error: BaseException | None) -> None:
    """Wake every caller in its own event loop, once for each loop."""
    loops: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for waiting in batch:
        loops.setdefault(waiting.loop, []).append(waiting.kept)
    for loop, kept in loops.items():
        with suppress(RuntimeError):  # the loop has closed, nobody waits there
            loop.call_soon_threadsafe(_settle, kept, error)


def _settle(kept: Sequence[asyncio.Future[None]], error: BaseException | None) -> None:
    for future in kept:
        if future.done():
            continue
        if error is None:
            future.set_result(None)
        else:
            # An exception of its own for each, or their tracebacks grow together.
            future.set_exception(InputError(str(error)) if isinstance(error, InputError) else error)


def _row(key: str, identity: str, reply: Reply) -> StoredReply:
    defaults = Reply._field_defaults
    said = {
        name: value
        for name, value in zip(Reply._fields, reply, strict=True)
        if name not in COLUMNS and not (name in defaults and defaults[name] == value)
    }
    return StoredReply(
        key=key,
        identity=identity,
        reply=_compact(said),
        tokens_in=_count(reply.tokens_in),
        tokens_out=_count(reply.tokens_out),
        price=reply.price,
        latency=reply.latency,
    )


def _reply(row: StoredReply) -> Reply:
    said = json.loads(row.reply)
    said |= {"tokens_in": row.tokens_in, "tokens_out": row.tokens_out, "latency": row.latency}
    said |= {"price": row.price, "cached": True}
    if said["tokens"] is not None:
        said["tokens"] = tuple(Token(text, top) for text, top in said["tokens"])
    return Reply(**{name: value for name, value in said.items() if name in Reply._fields})


def _compact(said: Mapping[str, Any]) -> str:
    """Return JSON that every database holds; half a character, which a cut reply may end with, is written out."""
    text = json.dumps(said, ensure_ascii=False, separators=(",", ":"))
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(said, separators=(",", ":"))
    return text


def _count(tokens: object) -> int | None:
    """Return a count of tokens, None for whatever else a server may call one."""
    return tokens if isinstance(tokens, int) and 0 <= tokens < 2**53 else None
