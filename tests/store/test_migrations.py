"""A database remembers which migrations it has seen; each is applied once, in order."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import sqlalchemy as sa

from tiebreak import store
from tiebreak.records import InputError
from tiebreak.store import MIGRATIONS, Ledger


def versions(ledger: Ledger) -> list[int]:
    with ledger.read() as connection:
        return list(connection.execute(sa.text("SELECT version FROM schema_version ORDER BY version")).scalars())


def test_a_fresh_ledger_has_seen_them_all(ledger: Ledger) -> None:
    assert versions(ledger) == list(range(1, len(MIGRATIONS) + 1))


def test_opening_again_applies_nothing(ledger_url: str, world: Any) -> None:
    with Ledger(ledger_url) as first:
        world.fill(first)
        seen = versions(first)
    with Ledger(ledger_url) as second:
        assert versions(second) == seen
        assert second.counts()["responses"] == 2


def test_an_older_ledger_gets_only_what_it_lacks(ledger_url: str, world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with Ledger(ledger_url) as old:
        world.fill(old)
        old.add_judgments(world.judgments(3))
    applied: list[str] = []

    def remember(connection: sa.Connection) -> None:
        applied.append("remember")
        connection.execute(sa.text("CREATE TABLE remembered (id TEXT)"))

    monkeypatch.setattr(store, "MIGRATIONS", (*MIGRATIONS, remember))
    for _ in range(2):
        with Ledger(ledger_url) as newer:
            assert versions(newer)[-1] == len(MIGRATIONS) + 1
            assert newer.counts()["judgments"] == 3
    assert applied == ["remember"]


def test_a_failing_migration_leaves_the_ledger_as_it_was(ledger_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with Ledger(ledger_url) as old:
        seen = versions(old)

    def fail(connection: sa.Connection) -> None:
        connection.execute(sa.text("CREATE TABLE half (id TEXT)"))
        raise InputError("stop here")

    monkeypatch.setattr(store, "MIGRATIONS", (*MIGRATIONS, fail))
    with pytest.raises(InputError, match="stop here"):
        Ledger(ledger_url)
    monkeypatch.undo()
    with Ledger(ledger_url) as again, again.read() as connection:
        assert versions(again) == seen
        assert "half" not in sa.inspect(connection).get_table_names()


def test_a_ledger_of_a_newer_tiebreak_is_refused(ledger_url: str) -> None:
    with Ledger(ledger_url) as ledger:
        engine = sa.create_engine(ledger.url)
    with engine.begin() as connection:
        connection.execute(sa.text("INSERT INTO schema_version VALUES (99)"))
    engine.dispose()
    with pytest.raises(InputError, match=rf"schema version 99, this tiebreak knows {len(MIGRATIONS)}; use the newer"):
        Ledger(ledger_url)


OPEN = "import sys; from tiebreak.store import Ledger; sys.stdin.readline(); Ledger(sys.argv[1]).close()"


def test_many_processes_may_open_a_fresh_ledger_at_once(ledger_url: str) -> None:
    command = [sys.executable, "-c", OPEN, ledger_url]
    opening = [subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    said = [""] * len(opening)
    for process in opening:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    for i, process in enumerate(opening):
        said[i] = process.communicate(timeout=60)[1][-400:]
    assert [process.returncode for process in opening] == [0] * len(opening), said
    with Ledger(ledger_url) as ledger:
        assert versions(ledger) == list(range(1, len(MIGRATIONS) + 1))
