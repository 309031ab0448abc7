"""The other parts of ``judge.py``: a server with faults, a ledger that grows, and a process that is killed."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any

from judge_rates import ends
from judge_watch import Server, watch

TIMEOUT = 5
"""Seconds a side waits for an answer where some never come; the sides' own are two minutes and more."""

STARTS = 10
"""How often a side that ends with an error is started at most, as a user would."""

FAULTY = {
    "ours": ({"window": 64}, 20_000, 2_000),
    "distilabel": ({"batch": 50}, 2_000, 1_000),
    "alpaca_eval": ({"threads": 64, "reused": True, "one_chunk": False}, 2_000, 1_000),
}
"""Settings, rows and rows with ``--quick``; alpaca_eval runs in chunks, so that an error leaves it what came before."""

SIZES = {1_000: 5, 10_000: 3, 100_000: 1, 200_000: 1}
"""Rows in the ledger, and how often the runs that make no call are timed."""

KILLS = 3


def faults(server: Server, interpreters: dict[str, Path], quick: bool) -> Iterator[dict[str, Any]]:
    """Yield what becomes of each side's rows on the server with faults; every call may meet one."""
    for garbage in ("words", "broken"):
        for side, interpreter in interpreters.items():
            job, *counts = FAULTY[side]
            count = counts[quick]
            run = server.begin("fixed", garbage=garbage)
            job = {**job, "url": f"{run}/v1", "rows": count, "timeout": TIMEOUT, "starts": STARTS, "again": True}
            watched = watch(side, interpreter, job)
            assert watched.result is not None
            counted = server.counted(run)
            kept = ("seconds", "problems", "reasons", "again")
            yield (
                {
                    "side": side,
                    "garbage": garbage,
                    "rows": count,
                    "replies": counted["ends"],
                }
                | ends(count, watched.result["answers"], counted)
                | {name: watched.result[name] for name in kept if name in watched.result}
            )


def growth(server: Server, interpreter: Path, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield rates by the rows in the ledger: when each is called for, is known, or has a reply that is known."""
    for size, times in SIZES.items():
        if quick and size == max(SIZES):
            continue
        run = server.begin("zero")
        watched = watch("ours", interpreter, {"url": f"{run}/v1", "rows": size, "window": 64, "growth": times})
        assert watched.result is not None
        rates = {f"{what}_per_second": size / median(each) for what, each in watched.result["times"].items()}
        calls = server.counted(run, whole=False)["received"]
        yield {"rows": size} | rates | {"calls": calls, "peak_mb": watched.peak_mb, "times": watched.result["times"]}


def flatness(found: list[dict[str, Any]]) -> dict[str, float]:
    """Return the rate at the most rows over that at the fewest, for each kind of run."""
    names = ("calls_per_second", "known_per_second", "replies_per_second")
    return {name.removesuffix("_per_second"): found[-1][name] / found[0][name] for name in names}


def kill(server: Server, interpreter: Path, quick: bool) -> Iterator[dict[str, Any]]:
    """Yield what a kill at half of the rows costs: calls beyond one a row, beside those in flight when it came.

    A call is in flight from its sending until the ledger has its answer; some of them are still open at the server.
    """
    count, window = (4_000 if quick else 20_000), 64
    for _ in range(KILLS):
        run = server.begin("fixed")
        with tempfile.TemporaryDirectory() as folder:
            job = {"url": f"{run}/v1", "rows": count, "window": window, "folder": folder}

            def half(_: float, run: str = run) -> bool:
                return bool(server.counted(run, whole=False)["readable"] >= count // 2)

            watch("ours", interpreter, job, end=half)
            cut = server.counted(run, whole=False)
            kept = _kept(Path(folder, "ledger.db"))
            watched = watch("ours", interpreter, job)
        assert watched.result is not None
        counted = server.counted(run)
        yield {
            "rows": count,
            "window": window,
            "answered_at_kill": cut["readable"],
            "in_flight_at_kill": cut["received"] - kept,
            "open_at_server": cut["in_flight"],
            "known_after_kill": watched.result["counts"].get("known"),
            "calls_beyond_one_a_row": counted["received"] - count,
        } | ends(count, watched.result["answers"], counted)


def _kept(ledger: Path) -> int:
    """Return how many answers a ledger has: replies that were kept, or judgments where no replies are."""
    with closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)) as connection:
        try:
            counted = connection.execute("SELECT COUNT(*) FROM replies").fetchone()[0]
        except sqlite3.OperationalError:
            counted = 0
        return int(counted or connection.execute("SELECT COUNT(*) FROM judgments").fetchone()[0])
