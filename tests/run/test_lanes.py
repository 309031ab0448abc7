"""Work side by side: every item once, a queue in its order, and nobody left behind."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.run.made import start
from tiebreak.records import InputError
from tiebreak.run.lanes import side_by_side

QUEUES = [[1, 2, 3], [], [10, 20], [100]]

WORK = """
import os
from pathlib import Path
def work(item):
    Path(f"pid-{item}").write_text(str(os.getpid()))
    while True:
        pass
"""
BEGIN = """
import sys
sys.path.append("")
from endless import work
from tiebreak.run.lanes import side_by_side
list(side_by_side(work, [[1], [2]], 2))
"""


def double(item: int) -> int:
    return 2 * item


def whose(item: int) -> tuple[int, int]:
    return item, os.getpid()


def wrong(item: int) -> int:
    raise InputError(f"{item} is wrong; expected another.")


def dead(item: int) -> int:
    os._exit(3)


@pytest.mark.parametrize("jobs", [1, 2, 9])
def test_each_item_is_worked_on_once_and_a_queue_in_its_order(jobs: int) -> None:
    found = list(side_by_side(double, QUEUES, jobs))
    assert dict(found) == {item: 2 * item for queue in QUEUES for item in queue}
    assert len(found) == 6
    for queue in QUEUES:
        assert [item for item, _ in found if item in queue] == queue


def test_a_queue_stays_in_one_process_that_is_not_this_one() -> None:
    found = [where for _, where in side_by_side(whose, QUEUES, 3)]
    for queue in QUEUES:
        assert len({pid for item, pid in found if item in queue}) <= 1
    assert os.getpid() not in {pid for _, pid in found}


def test_what_is_known_is_not_handed_out() -> None:
    found = list(side_by_side(double, QUEUES, 2, lambda item: -item if item > 1 else None))
    assert dict(found) == {1: 2, 2: -2, 3: -3, 10: -10, 20: -20, 100: -100}
    assert list(side_by_side(double, [], 2)) == []


def test_a_mistake_comes_back_as_its_sentence_and_a_lost_process_as_one() -> None:
    with pytest.raises(InputError, match=r"1 is wrong; expected another\."):
        list(side_by_side(wrong, [[1]], 2))
    with pytest.raises(InputError, match=r"came to its end by itself.*fewer jobs"):
        list(side_by_side(dead, [[1], [2]], 2))


def gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has waited for is a zombie, which works no more."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state in "ZX"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks /proc")
def test_a_process_ends_with_the_one_that_started_it(here: Path) -> None:
    (here / "endless.py").write_text(WORK)
    process = start(code=BEGIN)
    while not all(Path(f"pid-{item}").exists() and Path(f"pid-{item}").read_text() for item in (1, 2)):
        assert process.poll() is None, "the work ended before it could be killed"
        time.sleep(0.005)
    process.kill()
    process.communicate()
    while not all(gone(int(Path(f"pid-{item}").read_text())) for item in (1, 2)):
        time.sleep(0.005)
    assert process.returncode == -9
