"""Processes of ``judge.py``: the scripted server, and one side's process with an eye on its time and memory.

The tool has one processor core to itself and the server another, so neither slows the other; this process, which does
little, is on the server's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
SIDES = {"ours": "judge_ours.py", "distilabel": "judge_distilabel.py", "alpaca_eval": "judge_alpaca_eval.py"}
EVERY = 0.05
"""Seconds between two looks at a side's processor time; memory is looked at every fifth time."""

LONGEST = 900.0
"""Seconds after which a side's process is ended; none needs half of that."""

Seen = tuple[float, float]
"""When, and the seconds of processor time until then."""


class Watched(NamedTuple):
    """What a side's process gave; ``result`` is None where it was killed, ``cpu`` has what was seen on the way.

    ``elsewhere`` is how many cores were busy with neither side, server nor this process: how crowded the machine was.
    """

    result: dict[str, Any] | None
    cpu: list[Seen]
    peak_mb: float
    seconds: float
    elsewhere: float


class Failed(Exception):
    """A side's process ended without a result; its last lines are the message."""


class Server:
    """The scripted server in a process of its own; use as a context manager."""

    def __enter__(self) -> Server:
        pin()
        self._names = count(1)
        self._process = subprocess.Popen(
            [sys.executable, HERE / "judge_server.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        port = self._process.stdout.readline().strip()
        if not port:
            raise Failed("The scripted server did not start.")
        self.address = f"http://127.0.0.1:{port}"
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def begin(self, latency: str, *, garbage: str = "") -> str:
        """Begin a run and return its address; calls fail where ``garbage`` says how."""
        url = f"{self.address}/run{next(self._names)}"
        body = json.dumps({"latency": latency, "garbage": garbage}).encode()
        urllib.request.urlopen(urllib.request.Request(url, data=body, method="POST")).close()
        return url

    def counted(self, url: str, *, whole: bool = True) -> dict[str, Any]:
        """Return what was counted of a run so far, with every call where ``whole``."""
        with urllib.request.urlopen(url if whole else f"{url}/short") as answer:
            found: dict[str, Any] = json.loads(answer.read())
            return found


def cores() -> list[int]:
    """Return the processor cores this may use; empty where a system does not tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


ALLOWED = cores()


def pin() -> None:
    """Keep this process and those it starts on the server's core."""
    if len(ALLOWED) > 1:
        os.sched_setaffinity(0, {ALLOWED[-1]})


def watch(
    side: str, interpreter: Path, job: Mapping[str, Any], *, end: Callable[[float], bool] | None = None
) -> Watched:
    """Run a side's script on a job and watch it; where ``end`` turns true its process is killed outright.

    Raises:
        Failed: it ended otherwise without a result.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, out, said = Path(folder, "job.json"), Path(folder, "result.json"), Path(folder, "said.txt")
        given.write_text(json.dumps(job))
        began, busy = time.monotonic(), elsewhere()
        with (
            said.open("w") as log,
            subprocess.Popen(
                [interpreter, HERE / SIDES[side], given, out],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(side, folder),
                preexec_fn=(lambda: os.sched_setaffinity(0, {ALLOWED[0]})) if len(ALLOWED) > 1 else None,
            ) as process,
        ):
            cpu, peak, killed = _look(process, end)
        seconds = time.monotonic() - began
        others = max(0.0, elsewhere() - busy - (cpu[-1][1] if cpu else 0.0)) / seconds
        if killed:
            return Watched(None, cpu, peak, seconds, others)
        if process.returncode or not out.is_file():
            lines = said.read_text(errors="replace").splitlines()[-15:]
            raise Failed(f"{side} ended with {process.returncode}:\n" + "\n".join(lines))
        return Watched(json.loads(out.read_text()), cpu, peak, seconds, others)


def _environment(side: str, folder: str) -> dict[str, str]:
    """Return the variables of a side: this checkout's code for ours alone, and no key or proxy but the run's."""
    away = ("OPENAI_", "PYTHONPATH", "DISTILABEL_", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(away)}
    kept |= {
        "HF_HOME": folder,
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OPENAI_API_KEY": "scripted-key",
    }
    return kept | ({"PYTHONPATH": str(HERE.parent / "src")} if side == "ours" else {})


def _look(process: subprocess.Popen[bytes], end: Callable[[float], bool] | None) -> tuple[list[Seen], float, bool]:
    cpu: list[Seen] = []
    peak, began = 0.0, time.monotonic()
    for look in count():
        seconds = time.monotonic() - began
        if end is not None and end(seconds):
            process.kill()
            process.wait()
            return cpu, peak, True
        if seconds > LONGEST:
            _kill_tree(process.pid)
            raise Failed(f"It had not ended after {LONGEST:.0f} s.")
        alive = tree(process.pid)
        if (used := sum(map(_cpu, alive))) > 0:
            cpu.append((time.monotonic(), used))
        if look % 5 == 0:
            peak = max(peak, sum(map(_memory, alive)))
        try:
            process.wait(EVERY if end is None else EVERY / 10)
        except subprocess.TimeoutExpired:
            continue
        return cpu, peak, False
    raise AssertionError


def tree(root: int) -> list[int]:
    """Return a process and all below it that run now."""
    found = [root]
    for process in found:
        try:
            for task in Path(f"/proc/{process}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
        except OSError:
            continue
    return found


def _kill_tree(root: int) -> None:
    for process in reversed(tree(root)):
        try:
            os.kill(process, 9)
        except OSError:
            continue


def elsewhere() -> float:
    """Return processor seconds of the whole machine without this process and the server; 0 where it does not tell."""
    try:
        times = list(map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9]))
    except OSError:
        return 0.0
    idle = times[3] + times[4]
    return (sum(times) - idle) / os.sysconf("SC_CLK_TCK") - sum(map(_cpu_alone, tree(os.getpid())))


def _cpu_alone(process: int) -> float:
    try:
        times = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    except OSError:
        return 0.0
    return sum(map(int, times)) / os.sysconf("SC_CLK_TCK")


def _cpu(process: int) -> float:
    """Return processor seconds of a process and of its children that have ended; 0 where it cannot be read."""
    try:
        times = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:15]
    except OSError:
        return 0.0
    return sum(map(int, times)) / os.sysconf("SC_CLK_TCK")


def _memory(process: int) -> float:
    """Return megabytes of a process, pages that several share counted once in all."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def at(seen: list[Seen], when: float) -> float:
    """Return the processor seconds at a moment, on the line between the looks around it."""
    before = next((look for look in reversed(seen) if look[0] <= when), seen[0])
    after = next((look for look in seen if look[0] >= when), seen[-1])
    if after[0] <= before[0]:
        return before[1]
    return before[1] + (after[1] - before[1]) * (when - before[0]) / (after[0] - before[0])
