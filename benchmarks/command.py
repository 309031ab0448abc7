"""What the benchmarks' command lines share: reading flags, one job after the other, and how a run ends."""

from __future__ import annotations

import argparse
import difflib
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from environment import Mistake

QUICK_SECONDS = 13 * 60
"""After this, ``--quick`` starts no further measurement; none takes two minutes, even on a busy machine."""


class Arguments(argparse.ArgumentParser):
    """Says what is wrong in one sentence, without a page of usage."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing usage."""
        raise Mistake(f"{message[:1].upper()}{message[1:]}; --help lists what there is.")


def one_of(what: str, name: str, names: Sequence[str]) -> None:
    """Refuse a name that there is not, with the nearest one."""
    if name not in names:
        near = difflib.get_close_matches(name, names, 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise Mistake(f"There is no {what} {name!r}; there is {', '.join(n for n in names if n != 'tiny')}.{hint}")


def one_by_one(
    result: dict[str, Any],
    todo: Sequence[Mapping[str, Any]],
    *,
    title: Callable[[Mapping[str, Any]], str],
    measure: Callable[[Mapping[str, Any]], None],
    read: argparse.Namespace,
    began: float,
) -> None:
    """Carry out jobs in order, into ``result``, written after each; a quick run leaves out what comes too late."""
    result["left_out"] = []
    for number, job in enumerate(todo, 1):
        spent = time.monotonic() - began
        if read.quick and spent > QUICK_SECONDS:
            result["left_out"].append(title(job))
            print(f"Left out, to answer in time: {title(job)}.", flush=True)
            continue
        print(f"[{number}/{len(todo)}, {spent:.0f} s] {title(job)}", flush=True)
        measure(job)
        keep(result, read.json, began)


def keep(result: dict[str, Any], path: Path | None, began: float) -> None:
    """Note the minutes since ``began``, and write what there is so far where it is wanted."""
    result["settings"]["minutes"] = round((time.monotonic() - began) / 60, 2)
    if path:
        path.write_text(json.dumps(result, indent=1) + "\n")


def carry_out(
    given: Sequence[str] | None,
    arguments: Callable[[Sequence[str] | None], argparse.Namespace],
    run: Callable[[argparse.Namespace], dict[str, Any]],
    report: Callable[[dict[str, Any]], Iterable[str]],
    *,
    draw: Callable[[dict[str, Any], Path], None] | None = None,
    failure: type[Exception] = RuntimeError,
) -> int:
    """Run from the command line: 0 when measured, 1 when a process failed, 2 for a mistake of the user."""
    try:
        read = arguments(given)
        result = run(read)
    except Mistake as mistake:
        print(mistake, file=sys.stderr)
        return 2
    except failure as failed:
        print(failed, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print()
    for line in report(result):
        print(line)
    print(f"Took {result['settings']['minutes']:.1f} minutes.")
    if draw is not None and read.chart:
        draw(result, read.chart)
    return 0
