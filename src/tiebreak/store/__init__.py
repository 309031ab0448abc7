"""The ledger: every prompt, response, judgment and run of a project in one database.

SQLite by default, PostgreSQL by URL, the same queries on both. Rows are named by the hash of their content, so writing
twice writes once; judgments cannot be changed or deleted, which the database itself enforces.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, OperationalError

from tiebreak.records import InputError, Judgment, Message, Prompt, Response
from tiebreak.store.replies import ReplyTable, StoredReply, Totals
from tiebreak.store.tables import MIGRATIONS, judgments, members, prompts, replies, responses, runs

CHUNK = 2_000
"""Rows per insert statement: bounds memory, and is far past the point where larger chunks are faster."""


class Added(NamedTuple):
    """How many rows an insert brought in and how many were there already."""

    new: int
    known: int


class Ledger:
    """One project's records. Open with a path or a URL; use as a context manager to close it.

    Args:
        where: a file path, ``sqlite:///path`` or ``postgresql://...``; ``:memory:`` keeps nothing.
        create: make the database when it is missing; otherwise a missing file is an InputError.
    """

    def __init__(self, where: str | Path, *, create: bool = True) -> None:
        self.url = _as_url(where)
        if not create and self.url.get_backend_name() == "sqlite" and self.url.database not in (None, ":memory:"):
            path = Path(str(self.url.database))
            if not path.exists():
                raise InputError(f"There is no ledger at {path}; import or run something first, or pass its path.")
        self._engine = _engine(self.url)
        self._writer = self._engine.execution_options(tiebreak_writes=True)
        # Threads of one process take turns here: SQLite has them sleep and try again, which costs milliseconds.
        self._writing: AbstractContextManager[Any] = (
            threading.RLock() if self.url.get_backend_name() == "sqlite" else nullcontext()
        )
        self._replies = _reply_table(self._engine)
        with translated(self.name):
            self._migrate()

    @property
    def name(self) -> str:
        """The ledger's address without its password."""
        if self.url.get_backend_name() == "sqlite":
            return str(self.url.database or ":memory:")
        return _shown(self.url)

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection."""
        self._replies.close()
        self._engine.dispose()

    def _migrate(self) -> None:
        with self._engine.connect() as connection:
            if self._version(connection) == len(MIGRATIONS):
                return
        with self._writer.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(hashtext('tiebreak schema'))"))
            done = self._version(connection)
            connection.execute(sa.text("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL)"))
            for version, migration in enumerate(MIGRATIONS[done:], start=done + 1):
                migration(connection)
                connection.execute(sa.text("INSERT INTO schema_version VALUES (:v)"), {"v": version})

    def _version(self, connection: sa.Connection) -> int:
        if not sa.inspect(connection).has_table("schema_version"):
            return 0
        done: int = connection.execute(sa.text("SELECT COALESCE(MAX(version), 0) FROM schema_version")).scalar_one()
        if done > len(MIGRATIONS):
            raise InputError(
                f"The ledger {self.name} has schema version {done}, this tiebreak knows {len(MIGRATIONS)}; "
                "use the newer tiebreak that wrote it."
            )
        return done

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A connection for queries."""
        with translated(self.name), self._engine.connect() as connection:
            yield connection

    # Writing

    def add_prompts(self, records: Iterable[Prompt]) -> Added:
        """Insert prompts; those already known are left as they are."""
        return self._add(prompts, (_prompt_row(record) for record in records))

    def add_responses(self, records: Iterable[Response]) -> Added:
        """Insert responses; their prompts must be in the ledger."""
        return self._add(responses, (_response_row(record) for record in records))

    def add_judgments(self, records: Iterable[Judgment]) -> Added:
        """Insert judgments; their prompts must be in the ledger. A missing time of creation becomes now."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return self._add(judgments, (_judgment_row(record, now) for record in records))

    def _add(self, table: sa.Table, rows: Iterator[dict[str, Any]]) -> Added:
        make = postgresql.insert if self._engine.dialect.name == "postgresql" else sqlite.insert
        statement = make(table).on_conflict_do_nothing(index_elements=["id"]).execution_options(preserve_rowcount=True)
        new = seen = 0
        chunk = list(islice(rows, CHUNK))  # made before anybody has to wait for this transaction
        with translated(self.name), self._writing, self._writer.begin() as connection:
            while chunk:
                new += connection.execute(statement, chunk).rowcount
                seen += len(chunk)
                chunk = list(islice(rows, CHUNK))
        return Added(new, seen - new)

    def put_set(self, name: str, record_ids: Iterable[str]) -> int:
        """Write the ordered set ``name``, replacing what it held; returns its size."""
        rows = ({"set": name, "position": i, "record_id": r} for i, r in enumerate(record_ids))
        size = 0
        with translated(self.name), self._writer.begin() as connection:
            connection.execute(members.delete().where(members.c.set == name))
            while chunk := list(islice(rows, CHUNK)):
                connection.execute(members.insert(), chunk)
                size += len(chunk)
        return size

    def add_run(self, run_id: str, section: str, manifest: Mapping[str, Any]) -> None:
        """Record that a section of a recipe was carried out."""
        row = {
            "id": run_id,
            "section": section,
            "manifest": json.loads(json.dumps(manifest)),
            "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self._add(runs, iter([row]))

    def add_replies(self, rows: Iterable[StoredReply]) -> Added:
        """Insert replies that were paid for, in one transaction and from any thread; the first under a key stays."""
        with translated(self.name), self._writing:
            new, came = self._replies.add(rows)
        return Added(new, came - new)

    # Reading

    def reply(self, key: str) -> StoredReply | None:
        """Return the reply kept under the hash of its request, None where there is none. From any thread."""
        with translated(self.name):
            return self._replies.find(key)

    def replies_to(self, identity: str) -> Totals:
        """Return how many replies of one model are kept and what they cost. From any thread."""
        with translated(self.name):
            return self._replies.totals(identity)

    def get_set(self, name: str) -> list[str]:
        """Return the record ids of the set ``name`` in order; empty when there is no such set."""
        query = sa.select(members.c.record_id).where(members.c.set == name).order_by(members.c.position)
        with self.read() as connection:
            return list(connection.execute(query).scalars())

    def sets(self) -> dict[str, int]:
        """Return the names of all sets with their sizes."""
        query = sa.select(members.c.set, sa.func.count()).group_by(members.c.set).order_by(members.c.set)
        with self.read() as connection:
            return {name: size for name, size in connection.execute(query)}

    def counts(self) -> dict[str, int]:
        """Return the number of rows of each kind."""
        with self.read() as connection:
            return {
                table.name: connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
                for table in (prompts, responses, judgments, runs)
            }

    def prompts(self, ids: Sequence[str] | None = None) -> list[Prompt]:
        """Return the prompts named by ``ids`` in that order, or all by id."""
        return [_to_prompt(row) for row in self._select(prompts, ids)]

    def responses(self, ids: Sequence[str] | None = None) -> list[Response]:
        """Return the responses named by ``ids`` in that order, or all by id."""
        return [Response(**row) for row in self._select(responses, ids)]

    def judgments(self, ids: Sequence[str] | None = None) -> list[Judgment]:
        """Return the judgments named by ``ids`` in that order, or all by id."""
        return [_to_judgment(row) for row in self._select(judgments, ids)]

    def responses_by(self, maker: str) -> Iterator[Response]:
        """Yield every response of one maker: what need not be sampled again."""
        query = sa.select(responses).where(responses.c.maker == maker).order_by(responses.c.id)
        with self.read() as connection:
            for row in connection.execute(query).mappings().yield_per(CHUNK):
                yield Response(**row)

    def judgments_by(self, by: str | None, rubric: str) -> Iterator[Judgment]:
        """Yield every judgment of one judge, or of anybody, under one rubric: what need not be asked again."""
        query = sa.select(judgments).where(judgments.c.rubric == rubric)
        if by is not None:
            query = query.where(judgments.c.by == by)
        with self.read() as connection:
            for row in connection.execute(query.order_by(judgments.c.id)).mappings().yield_per(CHUNK):
                yield _to_judgment(dict(row))

    def _select(self, table: sa.Table, ids: Sequence[str] | None) -> Iterator[dict[str, Any]]:
        with self.read() as connection:
            if ids is None:
                for row in connection.execute(sa.select(table).order_by(table.c.id)).mappings().yield_per(CHUNK):
                    yield dict(row)
                return
            for start in range(0, len(ids), CHUNK // 4):
                part = ids[start : start + CHUNK // 4]
                found = connection.execute(sa.select(table).where(table.c.id.in_(part))).mappings()
                by_id = {row["id"]: dict(row) for row in found}
                for record_id in part:
                    if record_id not in by_id:
                        raise InputError(
                            f"The ledger {self.name} has no {table.name[:-1]} {record_id}; "
                            "it belongs to another ledger."
                        )
                    yield by_id[record_id]


@contextmanager
def translated(name: str) -> Iterator[None]:
    """Turn the database's own complaints into one sentence each; what was committed before stays."""
    try:
        yield
    except UnicodeEncodeError as error:
        raise InputError(
            f"The ledger {name} cannot hold half a character ({error.object[error.start]!r}); "
            "replace it in the source, for example with \ufffd."
        ) from error
    except OperationalError as error:
        said = (str(error.orig).strip() or type(error.orig).__name__).splitlines()[0]
        if "disk is full" in said or "No space left" in said:
            cure = "free some space and run again, nothing that was saved is lost"
        elif "disk I/O error" in said:
            cure = "free some space and run again, for a full disk says this too, or see whether the disk is sound"
        elif "locked" in said:
            cure = "another process is writing; wait for it or stop it, then run again"
        else:
            cure = "check the address, that the server runs, and that you may write there"
        raise InputError(f"The ledger {name} cannot be used: {said}; {cure}.") from error
    except DBAPIError as error:
        said = (str(error.orig).strip() or type(error.orig).__name__).splitlines()[0]
        if "FOREIGN KEY" in said or "foreign key" in said:
            raise InputError(
                f"The ledger {name} refused a record whose prompt it does not hold; add the prompt first."
            ) from error
        raise InputError(f"The ledger {name} refused a change: {said}.") from error


def _as_url(where: str | Path) -> sa.URL:
    text = str(where)
    if text == ":memory:":
        return sa.make_url("sqlite://")
    if "://" not in text:
        return sa.URL.create("sqlite", database=text)
    try:
        url = sa.make_url(text)
    except (ValueError, sa.exc.ArgumentError) as error:
        raise InputError(
            "The address of the ledger cannot be read; expected a file, sqlite:///path or "
            "postgresql://user:password@host:port/database."
        ) from error
    if url.drivername in ("postgresql", "postgres"):
        return url.set(drivername="postgresql+psycopg")
    if url.get_backend_name() not in ("sqlite", "postgresql"):
        raise InputError(f"The ledger {_shown(url)} is neither a file, sqlite:/// nor postgresql://.")
    return url


def _shown(url: sa.URL) -> str:
    hidden = {key: "***" for key in url.query if "password" in key.lower()}
    return url.update_query_dict(hidden).render_as_string(hide_password=True)


def _engine(url: sa.URL) -> sa.Engine:
    if url.get_backend_name() == "postgresql":
        try:
            return sa.create_engine(url)
        except ModuleNotFoundError as error:
            raise InputError("A PostgreSQL ledger needs psycopg: pip install 'tiebreak[postgres]'.") from error
    if url.database and url.database != ":memory:":
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
        engine = sa.create_engine(url, connect_args={"timeout": 60})
    else:
        engine = sa.create_engine(url, poolclass=sa.StaticPool)

    @sa.event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: object) -> None:
        connection.isolation_level = None
        for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON"):
            connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        # A transaction that reads first cannot wait for another writer; one that will write says so at once.
        writes = connection.get_execution_options().get("tiebreak_writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _reply_table(engine: sa.Engine) -> ReplyTable:
    """The one connection of a ledger in memory belongs to one thread; its replies, which several use, are apart."""
    if isinstance(engine.pool, sa.StaticPool):
        engine = sa.create_engine("sqlite://", poolclass=sa.StaticPool, connect_args={"check_same_thread": False})
        replies.create(engine)
        return ReplyTable(engine, alone=True)
    return ReplyTable(engine, alone=False)


def _prompt_row(record: Prompt) -> dict[str, Any]:
    text = record.text if isinstance(record.text, str) else [list(turn) for turn in record.text]
    return {
        "id": record.id,
        "text": text,
        "context": record.context,
        "reference": record.reference,
        "fields": dict(record.fields),
        "tags": list(record.tags),
        "source": record.source,
        "licence": record.licence,
        "group": record.group,
    }


def _to_prompt(row: Mapping[str, Any]) -> Prompt:
    text = row["text"]
    return Prompt(**{**row, "text": text if isinstance(text, str) else tuple(Message(*turn) for turn in text)})


def _response_row(record: Response) -> dict[str, Any]:
    return asdict(record)


def _judgment_row(record: Judgment, now: str) -> dict[str, Any]:
    row = {name: getattr(record, name) for name in Judgment.__dataclass_fields__}
    row |= {"slots": list(record.slots), "item": record.item, "created_at": record.created_at or now}
    return row


def _to_judgment(row: Mapping[str, Any]) -> Judgment:
    return Judgment(**{key: value for key, value in row.items() if key != "item"})
