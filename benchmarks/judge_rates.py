"""The rates of ``judge.py``: which side runs with which setting at which latency, and what one run says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import median
from typing import Any, NamedTuple

from judge_watch import Server, Watched, at, watch
from judge_work import content, key, rows, truth

LATENCIES = ("zero", "fixed", "heavy_tail")
REPEATS = 3
"""Runs of each setting; with ``--quick`` there is one."""


class Setting(NamedTuple):
    """One way to run one side; ``rows`` at each latency are for ``--quick``, without it twice as many."""

    side: str
    name: str
    says: str
    job: Mapping[str, Any]
    rows: tuple[int, int, int]


SETTINGS = (
    Setting("ours", "tiebreak_64", "64 calls in flight", {"window": 64}, (16_000, 10_000, 6_000)),
    Setting("ours", "tiebreak_256", "256 calls in flight", {"window": 256}, (16_000, 20_000, 14_000)),
    Setting("distilabel", "distilabel_50", "batches of 50, as it ships", {"batch": 50}, (1_500, 1_500, 1_000)),
    Setting("distilabel", "distilabel_512", "batches of 512", {"batch": 512}, (2_560, 2_560, 2_560)),
    Setting(
        "alpaca_eval",
        "alpaca_eval_5",
        "5 threads, chunks of 128, as it ships",
        {"threads": 0, "reused": False, "one_chunk": False},
        (384, 384, 384),
    ),
    Setting(
        "alpaca_eval",
        "alpaca_eval_64",
        "64 threads, one chunk",
        {"threads": 64, "reused": False, "one_chunk": True},
        (384, 384, 384),
    ),
    Setting(
        "alpaca_eval",
        "alpaca_eval_64_reused",
        "64 threads, one chunk, its client made once by a patch of three lines",
        {"threads": 64, "reused": True, "one_chunk": True},
        (2_048, 3_072, 2_048),
    ),
)
PEERS = {
    "distilabel": ("distilabel_50", "distilabel_512"),
    "alpaca_eval": ("alpaca_eval_5", "alpaca_eval_64"),
    "alpaca_eval_reused": ("alpaca_eval_64_reused",),
}
"""What each ratio is taken against: the best of these."""


def jobs(sides: list[str], quick: bool) -> Iterator[tuple[str, Setting, int]]:
    """Yield latency, setting and rows; what is compared runs close together."""
    for _ in range(1 if quick else REPEATS):
        for latency, place in zip(("fixed", "heavy_tail", "zero"), (1, 2, 0), strict=True):
            for setting in SETTINGS:
                if setting.side in sides:
                    yield latency, setting, setting.rows[place] * (1 if quick else 2)


def measure(server: Server, interpreter: Any, latency: str, setting: Setting, count: int) -> dict[str, Any]:
    """Run one setting and return what it reached."""
    run = server.begin(latency)
    watched = watch(setting.side, interpreter, {**setting.job, "url": f"{run}/v1", "rows": count})
    named = {"latency": latency, "side": setting.side, "setting": setting.name, "rows": count}
    return named | summary(count, watched, server.counted(run))


def summary(count: int, watched: Watched, counted: Mapping[str, Any]) -> dict[str, Any]:
    """Return the figures of a run.

    The steady state is from the answer to a tenth of the rows to the answer to nine tenths, by the server's clock, so
    that starting and ending are left out. A row answered twice counts at its first answer.
    """
    assert watched.result is not None
    sent, cpu = counted["sent"], counted["cpu"]
    low, high = len(sent) // 10, len(sent) * 9 // 10
    thousands = max(high - low, 1) / 1_000
    steady = sent[high] - sent[low] if high > low else float("nan")
    of_tool = at(watched.cpu, sent[high]) - at(watched.cpu, sent[low]) if watched.cpu and high > low else float("nan")
    return {
        "per_second": (high - low) / steady,
        "steady_seconds": steady,
        "cpu_per_1000": of_tool / thousands,
        "cpu_per_1000_whole": watched.cpu[-1][1] / count * 1_000 if watched.cpu else float("nan"),
        "server_cpu_per_1000": (cpu[high] - cpu[low]) / thousands if high > low else float("nan"),
        "peak_mb": watched.peak_mb,
        "seconds": watched.result["seconds"],
        "process_seconds": watched.seconds,
        "most_in_flight": counted["peak"],
        "busy_elsewhere": watched.elsewhere,
        "versions": watched.result["versions"],
    } | ends(count, watched.result["answers"], counted)


def ends(count: int, answers: list[str | None], counted: Mapping[str, Any]) -> dict[str, Any]:
    """Return how rows ended, how many calls were paid for twice, and whether the calls were those of all sides."""
    right = wrong = unreadable = lost = 0
    wanted = set()
    for row, said in zip(rows(count), answers, strict=True):
        wanted.add(key(content(row)))
        right += said == truth(row)
        wrong += said in ("1", "2") and said != truth(row)
        unreadable += said == ""
        lost += said is None
    return {
        "right": right,
        "wrong": wrong,
        "unreadable": unreadable,
        "lost": lost,
        "calls": counted["received"],
        "paid_twice": sum(max(0, times - 1) for times in counted["answered"].values()),
        "same_calls": set(counted["asked"]) == wanted,
    }


def ratios(runs: list[dict[str, Any]], ours: str) -> dict[str, dict[str, float]]:
    """Return by latency how many times the best rate of each peer our setting reaches, medians of the runs."""
    found: dict[str, dict[str, float]] = {}
    for latency in LATENCIES:
        rate = {
            setting.name: median(each)
            for setting in SETTINGS
            if (each := [r["per_second"] for r in runs if (r["latency"], r["setting"]) == (latency, setting.name)])
        }
        if ours not in rate:
            continue
        for peer, names in PEERS.items():
            if best := max((rate[name] for name in names if name in rate), default=0.0):
                found.setdefault(latency, {})[peer] = rate[ours] / best
    return found
