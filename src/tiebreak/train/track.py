"""The metrics file: one JSON line per logged step, x being the optimizer step, always."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tiebreak.train.trackers import Tracker


class Track:
    """Appends to ``metrics.jsonl``; on resuming, lines past the restored step are dropped, for they will come again.

    Each of ``trackers`` gets a copy of what is written and is closed with the file.
    """

    def __init__(self, path: Path, *, after: int, trackers: Iterable[Tracker] = ()) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [row for row in read_track(path) if row["step"] <= after]
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in kept))
        os.replace(partial, path)
        self._open = ExitStack()
        self._file = self._open.enter_context(path.open("a"))
        self._trackers = tuple(trackers)
        for tracker in self._trackers:
            self._open.callback(tracker.close)

    def __enter__(self) -> Track:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Append the values of one optimizer step."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for tracker in self._trackers:
            tracker.write(step, values)

    def close(self) -> None:
        """Close the file and every tracker, whichever of them fails."""
        self._open.close()


def read_track(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics file; a last line cut short by a kill is left out."""
    rows: list[dict[str, Any]] = []
    if path.is_file():
        for line in path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return rows
