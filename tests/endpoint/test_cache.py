"""Replies that were paid for: kept once committed, found again whole, shared by loops, threads and processes."""

from __future__ import annotations

import asyncio
import math
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest

from tiebreak.endpoint import Reply, Token, finish
from tiebreak.endpoint.cache import Paid, Replies
from tiebreak.records import InputError
from tiebreak.store import Ledger

WHO = "model:scripted@host"


@pytest.fixture
def replies(ledger: Ledger) -> Replies:
    return Replies(ledger)


def reply(text: str = "1", **changes: Any) -> Reply:
    tokens = (Token("1", {"1": -0.1, "2": -2.3025850929940455}), Token(" ", {" ": -0.0, "\u00e9": -math.inf}))
    made = Reply(text=text, tokens=tokens, tokens_in=12, tokens_out=2, latency=0.125, finish="stop")
    return made._replace(**changes)


def as_found(one: Reply) -> Reply:
    return one._replace(cached=True)


def keep(replies: Replies, *kept: tuple[str, Reply]) -> None:
    async def work() -> None:
        try:
            await asyncio.gather(*(replies.keep(key, WHO, one) for key, one in kept))
        finally:
            await replies.close()

    finish(work())


def slip(ledger: Ledger, pragma: str) -> None:
    """Have the one pooled connection of a SQLite ledger, which writes, behave differently."""
    with ledger.read() as connection:
        connection.exec_driver_sql(f"PRAGMA {pragma}")


def test_a_reply_comes_back_whole_and_marked(replies: Replies) -> None:
    kept = reply()
    keep(replies, ("k1", kept))
    found = replies.get("k1")
    assert found == as_found(kept)
    assert isinstance(found.tokens[0], Token)
    assert list(found.tokens[0].top) == ["1", "2"], "in the server's order"
    assert replies.get("k2") is None


@pytest.mark.parametrize(
    "kept",
    [
        reply("", tokens=None, tokens_in=None, tokens_out=None, finish=""),
        reply("größer 猫 \ud83d", finish="length"),
        reply("a\x00b\n\u2028"),
        reply("1", price=0.00125),
    ],
    ids=["bare", "half a character", "control characters", "priced"],
)
def test_what_servers_really_send_comes_back_too(replies: Replies, kept: Reply) -> None:
    keep(replies, ("k1", kept))
    assert replies.get("k1") == as_found(kept)


def test_a_count_of_tokens_that_is_none_is_left_out(replies: Replies) -> None:
    keep(replies, ("k1", reply(tokens_in="many", tokens_out=2**80)))
    found = replies.get("k1")
    assert (found.tokens_in, found.tokens_out) == (None, None)


def test_the_key_is_a_hash_of_the_whole_request() -> None:
    replies = Replies(Ledger(":memory:"))
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "temperature": 0.0}
    key = replies.key_of(WHO, "chat/completions", body, 0)
    assert replies.key_of(WHO, "/chat/completions", dict(reversed(body.items())), 0) == key
    others = {
        replies.key_of("model:other@host", "chat/completions", body, 0),
        replies.key_of(WHO, "completions", body, 0),
        replies.key_of(WHO, "chat/completions", body, 1),
        *(replies.key_of(WHO, "chat/completions", {**body, name: 1.0}, 0) for name in body),
        replies.key_of(WHO, "chat/completions", {**body, "seed": 1}, 0),
    }
    turns = {Replies(replies.ledger, turn=turn).key_of(WHO, "chat/completions", body, 0) for turn in range(3)}
    assert key in turns
    assert len(turns) == 3
    assert key not in others
    assert len(others) == 7


def test_kept_means_committed(ledger_url: str) -> None:
    with Ledger(ledger_url) as ledger, Ledger(ledger_url) as other:
        replies, elsewhere = Replies(ledger), Replies(other)

        async def one_by_one() -> None:
            for i in range(20):
                await replies.keep(f"k{i}", WHO, reply(str(i)))
                assert elsewhere.get(f"k{i}").text == str(i)
            await replies.close()

        asyncio.run(one_by_one())


def test_replies_that_come_together_share_a_transaction(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    add = ledger.add_replies

    def counted(rows: Any) -> Any:
        rows = list(rows)
        sizes.append(len(rows))
        return add(rows)

    monkeypatch.setattr(ledger, "add_replies", counted)
    keep(Replies(ledger), *((f"k{i}", reply(str(i))) for i in range(300)))
    assert sum(sizes) == 300
    assert len(sizes) <= 3


def test_loops_threads_and_a_notebook_share_it(replies: Replies) -> None:
    def work(name: str) -> None:
        keep(replies, *((f"{name}{i}", reply(f"{name}{i}")) for i in range(40)))

    async def notebook() -> None:
        threads = [threading.Thread(target=work, args=(name,)) for name in "abc"]
        for thread in threads:
            thread.start()
        work("d")  # finish() finds this loop running and takes another thread
        await replies.keep("e", WHO, reply("e"))
        for thread in threads:
            await asyncio.to_thread(thread.join)

    asyncio.run(notebook())
    assert all(replies.get(f"{name}{i}").text == f"{name}{i}" for name in "abcd" for i in range(40))
    assert replies.paid(WHO).calls == 161


def test_what_was_paid_is_told_for_each_model(replies: Replies) -> None:
    assert replies.paid(WHO) == Paid(0, None, 0, 0)
    priced = [(f"k{i}", reply(price=0.25)) for i in range(3)]
    keep(replies, *priced, ("k3", reply(tokens_in=None)))
    keep(replies, *priced)
    assert replies.paid(WHO) == Paid(4, 0.75, 36, 8)
    assert replies.paid("model:other@host") == Paid(0, None, 0, 0)


def test_a_caller_that_is_called_off_leaves_its_reply(replies: Replies) -> None:
    async def called_off() -> None:
        task = asyncio.ensure_future(replies.keep("k1", WHO, reply()))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await replies.close()

    asyncio.run(called_off())
    assert replies.get("k1") == as_found(reply())


def test_a_loop_that_ends_at_once_leaves_its_reply(replies: Replies) -> None:
    async def cut_short() -> None:
        asyncio.ensure_future(replies.keep("k1", WHO, reply()))  # noqa: RUF006
        await asyncio.sleep(0)

    asyncio.run(cut_short())
    finish(replies.close())
    assert replies.get("k1") == as_found(reply())
    finish(replies.close())


def test_the_writing_thread_goes_away_by_itself(replies: Replies) -> None:
    asyncio.run(replies.keep("k1", WHO, reply()))
    thread = replies._thread
    assert thread is not None
    thread.join()
    assert replies._thread is None
    keep(replies, ("k2", reply()))
    assert replies.get("k2") is not None


@pytest.mark.parametrize(
    ("pragma", "said"),
    [("max_page_count = 1", "full; free some space"), ("busy_timeout = 5", "locked; another process is writing")],
    ids=["full", "locked"],
)
def test_every_caller_is_told_when_the_ledger_refuses(tmp_path: Path, pragma: str, said: str) -> None:
    with Ledger(tmp_path / "ledger.db") as ledger:
        replies = Replies(ledger)
        slip(ledger, pragma)
        holder = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
        if "busy" in pragma:
            holder.execute("BEGIN IMMEDIATE")

        async def work() -> list[Any]:
            long = reply("long " * 2000)
            waiting = [replies.keep(f"k{i}", WHO, long) for i in range(30)]
            return await asyncio.gather(*waiting, return_exceptions=True)

        told = asyncio.run(work())
        assert len({id(error) for error in told}) == 30
        assert all(isinstance(error, InputError) and said in str(error) for error in told)
        holder.close()
        slip(ledger, "max_page_count = 100000")
        keep(replies, ("k0", reply()))
        assert replies.get("k0") == as_found(reply()), "and it goes on once there is room"


def test_a_reply_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.db") as ledger:
        replies = Replies(ledger)
        keep(replies, ("k1", reply()))
        database = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
        database.execute("UPDATE replies SET reply = 'torn'")
        database.close()
        with pytest.raises(InputError, match="cannot be read, k1; delete this row"):
            replies.get("k1")


def test_a_ledger_in_memory_has_a_cache_as_well() -> None:
    with Ledger(":memory:") as ledger:
        replies = Replies(ledger)
        keep(replies, ("k1", reply()))
        assert replies.get("k1") == as_found(reply())
        assert replies.paid(WHO).calls == 1


def test_a_batch_of_replies_is_written_at_once(replies: Replies) -> None:
    made = [(f"k{i}", WHO, reply(str(i))) for i in range(1200)]
    assert replies.keep_all(iter(made)) == (1200, 0)
    assert replies.keep_all(made[:10]) == (0, 10)
    assert replies.get("k1199").text == "1199"
