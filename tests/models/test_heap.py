"""Freed memory stays with a process that asked for it, so a step does not fault its pages in again."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import resource
from tiebreak.models.heap import keep_freed_memory
kept = {kept} and keep_freed_memory()
import torch
torch.set_num_threads(1)
faults = []
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(40_000_000)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(kept, max(faults[2:]))
"""


def faults(kept: bool) -> tuple[str, int]:
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(kept=kept)], capture_output=True, text=True, check=True
    ).stdout.split()
    return found[0], int(found[1])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc's allocator can be told to keep memory")
def test_a_second_tensor_of_the_same_size_costs_no_fresh_pages() -> None:
    told, warm = faults(kept=True)
    if told != "True":
        pytest.skip("the allocator of this system is not glibc's")
    assert warm < 50
    assert faults(kept=False)[1] > 50
