"""A disk that fills up costs one sentence and nothing that was finished."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.run.made import Shell, count, ledger_is_sound, results, tiny, write


@pytest.fixture
def small_disk(here: Path) -> Iterator[Callable[[int], Path]]:
    """Mount a disk of so many KiB; calling again resizes it."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    place = here / "disk"
    place.mkdir()
    mounted = False

    def size(kib: int) -> Path:
        nonlocal mounted
        option = f"{'remount,' if mounted else ''}size={kib}k"
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", option, "tmpfs", str(place)], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
        mounted = True
        return place

    yield size
    if mounted:
        subprocess.run(["umount", "-l", str(place)], check=True)


def used(place: Path) -> int:
    disk = os.statvfs(place)
    return (disk.f_blocks - disk.f_bfree) * disk.f_frsize // 1024


def assert_full(tiebreak: Shell, *words: str) -> None:
    said = tiebreak("run", *words)
    assert said.code == 1, said.err
    assert said.out == ""
    assert "Traceback" not in said.err
    assert said.last.startswith("tiebreak: ")
    assert "free some space and run again" in said.last


def test_the_ledger_fills_the_disk(small_disk: Callable[[int], Path], tiebreak: Shell) -> None:
    disk = small_disk(2048)
    recipe = write("r.yaml", {"project": str(disk / "p"), "import": {"format": "world", "n": 20000}})
    assert_full(tiebreak, recipe)
    assert ledger_is_sound(disk / "p")
    kept = count(disk / "p", "prompts")
    assert 0 < kept < 20000
    small_disk(128 * 1024)
    tiebreak.fine("run", recipe)
    assert count(disk / "p", "prompts") == 20000


@pytest.mark.parametrize("stage", ["train/sft", "train/reward", "evaluate", "curate"])
def test_a_stage_fills_the_disk(stage: str, small_disk: Callable[[int], Path], tiebreak: Shell) -> None:
    disk = small_disk(64 * 1024)
    recipe = write("r.yaml", tiny(project=str(disk / "p")))
    calm = write("calm.yaml", tiny(project="./calm"))
    tiebreak.fine("run", calm)
    if stage == "train/sft":
        tiebreak.fine("import", recipe)
    else:
        tiebreak.fine("run", recipe)
        shutil.rmtree(disk / "p" / stage)
    small_disk(used(disk) + 8)
    assert_full(tiebreak, recipe)
    small_disk(64 * 1024)
    assert ledger_is_sound(disk / "p")
    tiebreak.fine("run", recipe)
    assert results(disk / "p") == results("calm")
