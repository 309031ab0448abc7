"""The table of paid replies: written by one thread, looked up by any other, a few microseconds each."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from itertools import islice
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from tiebreak.store.tables import replies

CHUNK = 500
"""Replies per insert statement. They carry log-probabilities, so they are larger than other rows."""


class StoredReply(NamedTuple):
    """One row of ``replies``; ``reply`` is JSON that the ledger does not look into."""

    key: str
    identity: str
    reply: str
    tokens_in: int | None
    tokens_out: int | None
    price: float | None
    latency: float


class Totals(NamedTuple):
    """Sums over replies; ``usd`` is None where none of them has a price."""

    calls: int
    usd: float | None
    tokens_in: int
    tokens_out: int


class ReplyTable:
    """The rows of ``replies`` in one database, from any thread.

    Look-ups have a connection of their own outside of any transaction, so each sees what was committed last and none
    waits for a writer. ``alone`` says that the database has one connection in all, as one in memory has; then
    readers and writers take turns.
    """

    def __init__(self, engine: sa.Engine, *, alone: bool) -> None:
        self._engine = engine
        self._writer = engine.execution_options(tiebreak_writes=True)
        self._alone = alone
        self._turn = threading.Lock()
        self._held: sa.PoolProxiedConnection | None = None
        self._errors: type[Exception] = engine.dialect.loaded_dbapi.Error
        named = "%s" if engine.dialect.name == "postgresql" else "?"
        self._find = f"SELECT {', '.join(StoredReply._fields)} FROM replies WHERE key = {named}"

    def find(self, key: str) -> StoredReply | None:
        """Return the row under ``key``."""
        with self._turn:
            try:
                row = self._reader().execute(self._find, (key,)).fetchone()
            except self._errors:
                # An ordinary query works again, as after a server's restart, or says in its own words what is wrong.
                self._let_go()
                with self._engine.connect() as connection:
                    row = connection.exec_driver_sql(self._find, (key,)).fetchone()
        return None if row is None else StoredReply(*row)

    def add(self, rows: Iterable[StoredReply]) -> tuple[int, int]:
        """Write rows in one transaction; the first under a key stays. Returns how many were new and how many came."""
        make = postgresql.insert if self._engine.dialect.name == "postgresql" else sqlite.insert
        statement = make(replies).on_conflict_do_nothing(index_elements=["key"])
        statement = statement.execution_options(preserve_rowcount=True)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        made = ({**row._asdict(), "created_at": now} for row in rows)
        new = came = 0
        with self._turn if self._alone else nullcontext(), self._writer.begin() as connection:
            while chunk := list(islice(made, CHUNK)):
                new += connection.execute(statement, chunk).rowcount
                came += len(chunk)
        return new, came

    def totals(self, identity: str) -> Totals:
        """Sum up the rows of one identity, from the index alone."""
        columns = replies.c
        query = sa.select(
            sa.func.count(),
            sa.func.sum(columns.price),
            sa.func.coalesce(sa.func.sum(columns.tokens_in), 0),
            sa.func.coalesce(sa.func.sum(columns.tokens_out), 0),
        ).where(columns.identity == identity)
        with self._turn if self._alone else nullcontext(), self._engine.connect() as connection:
            calls, usd, tokens_in, tokens_out = connection.execute(query).one()
        return Totals(calls, usd, int(tokens_in), int(tokens_out))

    def close(self) -> None:
        """Close the connection for look-ups; the next one opens it again."""
        with self._turn:
            self._let_go()

    def _reader(self) -> Any:
        if self._held is None:
            self._held = self._engine.raw_connection()
            if not self._alone:
                self._held.detach()
            if self._engine.dialect.name == "postgresql":
                self._held.dbapi_connection.autocommit = True  # type: ignore[union-attr]
        return self._held.dbapi_connection

    def _let_go(self) -> None:
        held, self._held = self._held, None
        if held is not None and not self._alone:
            with suppress(self._errors):
                held.close()
