"""How fast, how lean and how safe: pairwise judging with tiebreak, distilabel and alpaca_eval, on the same calls.

``python benchmarks/judge.py --against distilabel --against alpaca_eval [--quick] [--json FILE]`` makes the other sides'
environments itself and has each side judge the same pairs in the same words, one call a judgment, at one scripted
server that has a processor core of its own; the tool has another. Every label can be checked, for the server's
preference is known. Parts: ``--rates`` (also without any flag), ``--faults``, ``--growth``, ``--kill``; the last two
are about tiebreak alone. Speeds depend on the machine, ratios less.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import judge_parts
from command import QUICK_SECONDS, Arguments, carry_out, keep, one_of
from environment import Mistake
from judge_environment import PEERS, python
from judge_rates import jobs, measure, ratios
from judge_results import report
from judge_watch import ALLOWED, Failed, Server
from judge_work import SEED

PARTS = ("rates", "faults", "growth", "kill")
"""After this, ``--quick`` starts no further run of the rates; none takes a minute."""


def arguments(given: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line.

    Raises:
        Mistake: something in it does not exist or cannot be had.
    """
    parser = Arguments(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--against", action="append", default=[], metavar="NAME", help=f"{', '.join(PEERS)}; repeatable"
    )
    parser.add_argument("--quick", action="store_true", help="fewer rows, one run each, an answer in under 15 minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers")
    parser.add_argument("--rates", action="store_true", help="judgments a second, processor time, memory (the default)")
    parser.add_argument("--faults", action="store_true", help="what becomes of rows when calls fail")
    parser.add_argument("--growth", action="store_true", help="rates as the ledger fills")
    parser.add_argument("--kill", action="store_true", help="what a kill in the middle costs")
    read = parser.parse_args(given)
    for name in read.against:
        one_of("comparison with", name, tuple(PEERS))
    if read.json and not read.json.absolute().parent.is_dir():
        raise Mistake(f"{read.json} cannot be written, for {read.json.parent} is not a folder.")
    if missing := [name for name in ("aiohttp", "sqlalchemy") if importlib.util.find_spec(name) is None]:
        raise Mistake(f"{sys.executable} lacks {missing[0]}; run this with the Python that tiebreak is installed in.")
    if ALLOWED and len(ALLOWED) < 2:
        raise Mistake("This needs two processor cores, one for the tool and one for the server, and may use one.")
    return read


def machine() -> dict[str, Any]:
    """Return what the numbers were measured on."""
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text().splitlines() if listed.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": len(ALLOWED) or os.cpu_count(),
        "pinned": len(ALLOWED) > 1,
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_average": os.getloadavg() if hasattr(os, "getloadavg") else None,
    }


def interpreters(wanted: Sequence[str], left_out: list[str]) -> dict[str, Path]:
    """Return the Python of each side; a side that cannot be had is left out, in a sentence."""
    found = {"ours": Path(sys.executable)}
    for name in PEERS:
        if name in wanted:
            try:
                found[name] = python(name)
            except Mistake as mistake:
                print(mistake, flush=True)
                left_out.append(str(mistake))
    return found


def run(read: argparse.Namespace) -> dict[str, Any]:
    """Measure everything and return it; what is there so far is written after every run."""
    parts = [part for part in PARTS if getattr(read, part)] or ["rates"]
    left_out: list[str] = []
    compared = read.against if {"rates", "faults"} & set(parts) else []
    sides = interpreters(compared, left_out)
    began = time.monotonic()
    result: dict[str, Any] = {
        "settings": {"against": read.against, "quick": read.quick, "parts": parts, "seed": SEED},
        "machine": machine(),
        "versions": {},
    }
    result |= {"ratios": {}, "ratios_at_64": {}, "runs": [], "faults": [], "growth": [], "flatness": {}, "kill": []}
    result["left_out"] = left_out

    with Server() as server:
        if "rates" in parts:
            for found in _rates(server, sides, read.quick, began, left_out):
                result["versions"] |= found.pop("versions")
                result["runs"].append(found)
                result["ratios"] = ratios(result["runs"], "tiebreak_256")
                result["ratios_at_64"] = ratios(result["runs"], "tiebreak_64")
                keep(result, read.json, began)
        for part in parts:
            if part == "rates":
                continue
            print(f"[{time.monotonic() - began:.0f} s] {part}", flush=True)
            given = sides if part == "faults" else sides["ours"]
            for found in getattr(judge_parts, part)(server, given, read.quick):
                result[part].append(found)
                if part == "growth":
                    result["flatness"] = judge_parts.flatness(result["growth"])
                keep(result, read.json, began)
    return result


def _rates(server: Server, sides: dict[str, Path], quick: bool, began: float, left_out: list[str]) -> Any:
    todo = list(jobs(list(sides), quick))
    for number, (latency, setting, count) in enumerate(todo, 1):
        spent = time.monotonic() - began
        if quick and spent > QUICK_SECONDS:
            left_out.append(f"{setting.name} at {latency}, to answer in time.")
            continue
        try:
            found = measure(server, sides[setting.side], latency, setting, count)
        except Failed as failure:
            if setting.side == "ours":
                raise
            left_out.append(f"{setting.name} at {latency}: {str(failure).splitlines()[-1]}")
            print(f"Left out: {left_out[-1]}", flush=True)
            continue
        print(
            f"[{number}/{len(todo)}, {spent:.0f} s] {latency}, {setting.name}: {found['per_second']:,.0f} a second, "
            f"{found['cpu_per_1000']:.2f} CPU s per 1,000, {found['peak_mb']:,.0f} MB, "
            f"{found['right']:,} of {count:,} right",
            flush=True,
        )
        yield found


def main(given: Sequence[str] | None = None) -> int:
    """Run from the command line, see :func:`command.carry_out`."""
    return carry_out(given, arguments, run, report, failure=Failed)


if __name__ == "__main__":
    sys.exit(main())
