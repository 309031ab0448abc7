"""The public names: each loads, and none is hidden by the room of the same name."""

from __future__ import annotations

import pkgutil
import subprocess
import sys

import tiebreak


def test_every_public_name_loads_and_is_documented() -> None:
    for name in tiebreak.__all__:
        assert getattr(tiebreak, name).__doc__, name


def test_no_public_name_is_a_room() -> None:
    rooms = {module.name for module in pkgutil.iter_modules(tiebreak.__path__)}
    assert rooms.isdisjoint(tiebreak.__all__)


def test_a_public_name_stays_a_function_after_its_room_was_loaded() -> None:
    code = "import tiebreak, tiebreak.run, tiebreak.audit; print(callable(tiebreak.run_recipe))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
