"""What ``judge.py`` prints: plain tables and the sentences that belong to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import median
from typing import Any

from judge_rates import LATENCIES, SETTINGS
from results import table

TOLD = {"zero": "0 ms", "fixed": "50 ms", "heavy_tail": "50 ms, heavy tail"}


def report(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of the terminal's report."""
    if result["runs"]:
        yield from _rates(result)
    if result["faults"]:
        yield from _faults(result["faults"])
    if result["growth"]:
        yield from _growth(result)
    if result["kill"]:
        heads = ("killed", "", "answered", "in flight", "at the server", "calls beyond one a row", "right", "lost")
        names = ("answered_at_kill", "in_flight_at_kill", "open_at_server", "calls_beyond_one_a_row", "right", "lost")
        rows = [(f"{one['rows']:,} rows", "", *(f"{one[name]:,}" for name in names)) for one in result["kill"]]
        yield from table(heads, rows)
        window = result["kill"][0]["window"]
        yield f"A call is in flight until the ledger has its answer; the window is {window}."
        yield ""
    yield from (f"Left out: {reason}" for reason in result["left_out"])
    others = [run["busy_elsewhere"] for run in result["runs"]]
    if others and max(others) > 0.2:
        yield f"Other work on this machine kept {median(others):.1f} cores busy (at most {max(others):.1f}): run again."


def _rates(result: Mapping[str, Any]) -> Iterator[str]:
    heads = ("latency", "side", "per second", "CPU s per 1,000", "with start", "server's", "peak MB", "right", "rows")
    rows = []
    for latency in LATENCIES:
        for setting in SETTINGS:
            runs = [r for r in result["runs"] if (r["latency"], r["setting"]) == (latency, setting.name)]
            if runs:
                rate, tool, whole, server, peak = (
                    median(run[name] for run in runs)
                    for name in ("per_second", "cpu_per_1000", "cpu_per_1000_whole", "server_cpu_per_1000", "peak_mb")
                )
                cells = (f"{rate:,.0f}", f"{tool:.2f}", f"{whole:.2f}", f"{server:.2f}", f"{peak:,.0f}")
                counts = (f"{sum(run['right'] for run in runs):,}", f"{sum(run['rows'] for run in runs):,}")
                rows.append((TOLD[latency], setting.name, *cells, *counts))
    yield from table(heads, rows)
    yield ""
    shown = {setting.name: setting.says for setting in SETTINGS if any(row[1] == setting.name for row in rows)}
    yield from (f"{name}: {says}." for name, says in shown.items())
    yield "Per second and CPU: from a tenth to nine tenths of the rows; 'with start' is the whole process."
    yield ""
    rows = [
        (TOLD[latency], peer, f"{times:.1f}x", f"{result['ratios_at_64'][latency][peer]:.1f}x")
        for latency, found in result["ratios"].items()
        for peer, times in found.items()
    ]
    if rows:
        yield from table(("latency", "times the best of", "256 in flight", "64 in flight"), rows)
        yield ""
    if any(not run["same_calls"] for run in result["runs"]):
        yield "Not every run made the same calls; see same_calls in the JSON."


def _faults(found: list[Mapping[str, Any]]) -> Iterator[str]:
    heads = ("faults", "garbage", "rows", "right", "wrong", "unreadable", "lost", "calls", "paid twice", "errors", "s")
    names = ("rows", "right", "wrong", "unreadable", "lost", "calls", "paid_twice")
    rows = []
    for one in found:
        counts = (f"{one[name]:,}" for name in names)
        rows.append((one["side"], one["garbage"], *counts, str(len(one["problems"])), f"{one['seconds']:.1f}"))
    yield from table(heads, rows)
    for one in found:
        yield from (f"{one['side']}, {times} rows: {reason}" for reason, times in one.get("reasons", {}).items())
        if one.get("again"):
            yield f"{one['side']}, unreadable ones asked again: {one['again']['unreadable']} remain."
        if one["problems"]:
            yield f"{one['side']}, {one['garbage']}: {one['problems'][-1]}"
    yield ""


def _growth(result: Mapping[str, Any]) -> Iterator[str]:
    heads = ("rows", "", "called for", "judgments known", "replies known", "calls", "peak MB")
    names = ("calls_per_second", "known_per_second", "replies_per_second", "calls", "peak_mb")
    yield from table(
        heads, [(f"{one['rows']:,}", "", *(f"{one[name]:,.0f}" for name in names)) for one in result["growth"]]
    )
    yield "Rows a second; the most over the fewest: " + ", ".join(
        f"{name} {times:.2f}" for name, times in result["flatness"].items()
    )
    if any(one["calls"] > one["rows"] for one in result["growth"]):
        yield "Replies are not kept here: what should have been known was called for again."
    yield ""
