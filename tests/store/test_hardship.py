"""Many rows, many writers, a killed writer, a full disk: what was saved stays, what was not is told."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tiebreak.records import InputError
from tiebreak.store import CHUNK, Added, Ledger

WRITER = """
import sys
from tiebreak.records import Judgment, Prompt
from tiebreak.store import Ledger

where, by, start, n, batch = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
prompt = Prompt(text="written by several")

def stream(first, count):
    for attempt in range(first, first + count):
        if attempt % 5_000 == 4_999:
            print(attempt, flush=True)
        yield Judgment(prompt_id=prompt.id, slots=("a", "b"), verdict="tie", by=by, attempt=attempt)

with Ledger(where) as ledger:
    ledger.add_prompts([prompt])
    new = sum(ledger.add_judgments(stream(first, batch)).new for first in range(start, start + n, batch))
    print("new", new, flush=True)
"""


def writer(where: str, by: str, start: int, n: int, batch: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, where, by, str(start), str(n), str(batch)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_hundred_thousand_judgments_stream_through_bounded_memory(ledger: Ledger, world: Any) -> None:
    world.fill(ledger)
    ledger.add_judgments(world.judgments(2 * CHUNK, by="rule:warm"))
    tracemalloc.start()
    added = ledger.add_judgments(world.judgments(100_000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert added == Added(100_000, 0)
    assert peak < 48 * 2**20, f"{peak / 2**20:.0f} MiB for chunks of {CHUNK}"


@pytest.mark.slow
def test_two_writers_lose_nothing(ledger_url: str) -> None:
    with Ledger(ledger_url):
        writers = [writer(ledger_url, by, 0, 1_500, 10) for by in ("rule:one", "rule:two")]
        said = [process.communicate(timeout=180) for process in writers]
    assert [out.split()[-2:] for out, _ in said] == [["new", "1500"]] * 2, [error[-400:] for _, error in said]
    with Ledger(ledger_url) as ledger:
        assert ledger.counts()["judgments"] == 3_000


@pytest.mark.slow
def test_two_writers_of_the_same_rows_count_each_row_once(ledger_url: str) -> None:
    with Ledger(ledger_url):
        writers = [writer(ledger_url, "rule:same", 0, 1_500, 10) for _ in range(2)]
        said = [process.communicate(timeout=180) for process in writers]
    assert [process.returncode for process in writers] == [0, 0], [error[-400:] for _, error in said]
    assert sum(int(out.split()[-1]) for out, _ in said) == 1_500
    with Ledger(ledger_url) as ledger:
        assert ledger.counts()["judgments"] == 1_500


@pytest.mark.slow
def test_a_killed_writer_leaves_whole_chunks_or_nothing(ledger_url: str) -> None:
    with Ledger(ledger_url):
        process = writer(ledger_url, "rule:killed", 0, 1_000_000, 1_000_000)
    assert process.stdout
    for line in process.stdout:
        if int(line) >= 9_999:
            break
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    with Ledger(ledger_url) as ledger:
        deadline = time.monotonic() + 30
        while ledger.counts()["judgments"] % CHUNK and time.monotonic() < deadline:
            time.sleep(0.1)
        kept = ledger.counts()["judgments"]
        assert kept % CHUNK == 0
        assert len(ledger.judgments()) == kept
    again = writer(ledger_url, "rule:killed", 0, 3_000, 3_000)
    out, error = again.communicate(timeout=60)
    assert out.split()[-2:] == ["new", str(max(0, 3_000 - kept))], error[-400:]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder that holds 3 MiB and no more."""
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("mounting a small disk needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this machine does not allow mounting a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_is_a_sentence_and_the_ledger_is_intact(small_disk: Path, world: Any) -> None:
    with Ledger(small_disk / "ledger.db") as ledger:
        world.fill(ledger)
        ledger.add_judgments(world.judgments(100))
        kept = ledger.judgments()
        with pytest.raises(InputError, match="full; free some space and run again, nothing that was saved is lost"):
            ledger.add_judgments(world.judgments(50_000, by="rule:flood"))
        assert ledger.judgments() == kept
    with Ledger(small_disk / "ledger.db") as ledger:
        assert ledger.judgments() == kept
        assert ledger.add_judgments(world.judgments(10, start=100)) == Added(10, 0)
