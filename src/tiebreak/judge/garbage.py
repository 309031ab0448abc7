"""Fewer looks for garbage while thousands of small records are made, none of which is garbage."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

SELDOM = (10_000, 20, 20)
"""Thresholds of Python's collector; at its own, much of a busy run goes into walking what is all still in use."""


@contextmanager
def seldom() -> Iterator[None]:
    """Let the collector look seldom, and not at what is there already; afterwards all is as it was."""
    before, frozen = gc.get_threshold(), gc.get_freeze_count()
    gc.freeze()
    gc.set_threshold(*SELDOM)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        if not frozen:  # somebody else's frozen objects would be let go with ours
            gc.unfreeze()
