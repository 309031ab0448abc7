"""Memory that a training frees stays with the process: on a virtual machine fresh pages cost more than the arithmetic.

A step allocates and frees the same gigabytes as the one before. Given back to the system each time, they are faulted in
page by page again, which was measured at up to half of a step.
"""

from __future__ import annotations

import ctypes
import os
import sys

TRIM_THRESHOLD, MMAP_MAX = -1, -4
"""Names of glibc's settings, from its malloc.h."""


def ask_for_large_pages() -> None:
    """Have torch ask for large pages. Only before torch allocates for the first time; a user's own setting stays."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def keep_freed_memory() -> bool:
    """Tell the allocator to keep what is freed, and whether it could be told (glibc alone can)."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        tell = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(tell(MMAP_MAX, 0)) and bool(tell(TRIM_THRESHOLD, 2**31 - 1))
