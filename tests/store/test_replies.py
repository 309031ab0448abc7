"""Paid replies: once under a key, summed up by who was paid, in old ledgers too, and never with anything secret."""

from __future__ import annotations

import sqlite3
import threading
from typing import Any

import pytest
import sqlalchemy as sa

from tiebreak import store
from tiebreak.records import InputError
from tiebreak.store import Added, Ledger
from tiebreak.store.replies import StoredReply, Totals


def row(key: str, identity: str = "model:a@host", **changes: Any) -> StoredReply:
    made = StoredReply(key, identity, '{"text":"1"}', tokens_in=10, tokens_out=1, price=0.25, latency=0.5)
    return made._replace(**changes)


def test_a_reply_is_found_under_its_key_and_nowhere_else(ledger: Ledger) -> None:
    kept = row("k1", reply='{"text":"größer \\u0000 \\ud83d"}', tokens_in=None, price=None)
    assert ledger.add_replies([kept, row("k2")]) == Added(2, 0)
    assert ledger.reply("k1") == kept
    assert ledger.reply("k3") is None
    assert ledger.add_replies([row("k2", reply="{}"), row("k3")]) == Added(1, 1)
    assert ledger.reply("k2") == row("k2"), "the first reply that was paid for stays"


def test_a_look_up_sees_what_another_connection_committed_since(ledger_url: str) -> None:
    with Ledger(ledger_url) as one, Ledger(ledger_url) as other:
        for i in range(8):  # past the point where a driver prepares the statement
            assert one.reply(f"k{i}") is None
            other.add_replies([row(f"k{i}")])
            assert one.reply(f"k{i}") == row(f"k{i}")


def test_what_one_model_was_paid_is_summed_up_from_the_index(ledger: Ledger) -> None:
    assert ledger.replies_to("model:a@host") == Totals(0, None, 0, 0)
    ledger.add_replies([row("k1"), row("k2", price=None, tokens_out=None), row("k3", "model:b@host")])
    assert ledger.replies_to("model:a@host") == Totals(2, 0.25, 20, 1)
    if ledger.url.get_backend_name() == "sqlite":
        with ledger.read() as connection:
            query = "EXPLAIN QUERY PLAN SELECT count(*), sum(price), sum(tokens_in), sum(tokens_out) FROM replies "
            plan = connection.execute(sa.text(query + "WHERE identity = 'model:a@host'")).all()
            found = connection.execute(sa.text(f"EXPLAIN QUERY PLAN {ledger._replies._find[:-1]}'k1'")).all()
        assert "USING COVERING INDEX replies_by_identity" in str(plan)
        assert "USING INDEX sqlite_autoindex_replies_1 (key=?)" in str(found)


def test_a_ledger_from_before_gets_the_table_and_keeps_its_records(
    ledger_url: str, world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as before:
        before.setattr(store, "MIGRATIONS", store.MIGRATIONS[:3])
        with Ledger(ledger_url) as old:
            world.fill(old)
            old.add_judgments(world.judgments(3))
            with old._writer.begin() as connection:
                connection.execute(sa.text("DROP TABLE replies"))
            held = old.judgments()
    for _ in range(2):
        with Ledger(ledger_url) as newer:
            assert newer.judgments() == held
            newer.add_replies([row("k1")])
            assert newer.reply("k1") == row("k1")
            with newer.read() as connection:
                indexes = [index["name"] for index in sa.inspect(connection).get_indexes("replies")]
            assert indexes == ["replies_by_identity"]


@pytest.mark.parametrize("where", ["memory", "database"])
def test_threads_write_and_look_up_beside_an_open_query(where: str, ledger_url: str, world: Any) -> None:
    with Ledger(":memory:" if where == "memory" else ledger_url) as ledger:
        world.fill(ledger)
        ledger.add_judgments(world.judgments(10))
        found: list[object] = []

        def work(name: str) -> None:
            for i in range(50):
                ledger.add_replies([row(f"{name}{i}")])
                found.append(ledger.reply(f"{name}{i}"))
                ledger.replies_to("model:a@host")

        threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
        judgments = ledger.judgments_by("rule:coin", "")
        next(judgments)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(list(judgments)) == 9
        assert len(found) == 200
        assert None not in found
        assert ledger.replies_to("model:a@host").calls == 200


def test_a_closed_ledger_can_be_looked_into_again(ledger_url: str) -> None:
    ledger = Ledger(ledger_url)
    ledger.add_replies([row("k1")])
    assert ledger.reply("k1") == row("k1")
    ledger.close()
    assert ledger.reply("k1") == row("k1")
    ledger.close()


def test_a_lost_connection_is_taken_up_again(ledger: Ledger) -> None:
    ledger.add_replies([row("k1")])
    assert ledger.reply("k1") == row("k1")
    ledger._replies._reader().close()
    assert [ledger.reply("k1") for _ in range(2)] == [row("k1")] * 2


def test_a_ledger_that_another_holds_locked_says_so(tmp_path: Any) -> None:
    with Ledger(tmp_path / "ledger.db") as ledger:
        with ledger.read() as connection:
            connection.exec_driver_sql("PRAGMA busy_timeout = 20")
        other = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(InputError, match="locked; another process is writing"):
            ledger.add_replies([row("k1")])
        assert ledger.reply("k1") is None, "who reads does not wait"
        other.execute("ROLLBACK")
        other.close()
        assert ledger.add_replies([row("k1")]) == Added(1, 0)
