"""The metrics file: one JSON line per logged step, x being the optimizer step, always."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path


class Track:
    """Appends to ``metrics.jsonl``; on resuming, lines past the restored step are dropped, for they will come again."""

    def __init__(self, path: Path, *, after: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [row for row in read_track(path) if row["step"] <= after]
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in kept))
        os.replace(partial, path)
        self._file = path.open("a")

    def __enter__(self) -> Track:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append the values of one optimizer step."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_track(path: Path) -> list[dict[str, float]]:
    """Return the lines of a metrics file; a last line cut short by a kill is left out."""
    rows: list[dict[str, float]] = []
    if path.is_file():
        for line in path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return rows
