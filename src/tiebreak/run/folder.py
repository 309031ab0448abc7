"""The run folder: one folder a stage, each with a manifest that says what made it, and files written in one move."""

from __future__ import annotations

import errno
import json
import math
import os
import platform
import shutil
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tiebreak.records import Graded, InputError, Pair, from_dict, to_dict

PACKAGES = ("tiebreak", "numpy", "sqlalchemy", "torch", "transformers", "tokenizers")


def versions() -> dict[str, str]:
    """Return what the results depend on: Python and the packages that compute, as far as they are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def write_json(path: Path, value: object) -> None:
    """Write ``value`` as JSON in one move; a full disk or no permission is an InputError and leaves the old file."""
    write_text(path, as_json(value) + "\n")


def as_json(value: object) -> str:
    """Return ``value`` as JSON that every language reads: a number that is none or without end is null."""
    return json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_text(path: Path, text: str) -> None:
    """Write ``text`` in one move."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise unwritable(path, error) from error


def unwritable(path: Path, error: OSError) -> InputError:
    """Return the mistake that a refused write is, with its cure."""
    cures = {
        errno.ENOSPC: "free some space and run again, what was finished is kept",
        errno.EDQUOT: "free some space and run again, what was finished is kept",
        errno.EACCES: "choose a project folder that you may write to",
        errno.EROFS: "choose a project folder that you may write to",
        errno.ENOTDIR: "a part of the path is a file; choose another project",
        errno.EEXIST: "a part of the path is a file; choose another project",
    }
    cure = cures.get(error.errno or 0, "choose another project")
    return InputError(f"{path} cannot be written: {error.strerror}; {cure}.")


def read_json(path: Path) -> Any:
    """Return the JSON in ``path``, or None when the file is missing or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


class StageFolder:
    """The folder of one stage. It counts as done when its manifest carries the key of the stage as it is now.

    ``started.json`` names the key the folder's content belongs to; a folder without it was not written by a run, and
    is never emptied.
    """

    def __init__(self, project: Path, name: str) -> None:
        self.path = project.joinpath(*name.split("."))

    @property
    def manifest(self) -> dict[str, Any] | None:
        """What the last finished run of the stage says, or None."""
        found: dict[str, Any] | None = read_json(self.path / "manifest.json")
        return found

    def done(self, key: str) -> bool:
        """Whether the stage was finished with exactly this key."""
        manifest = self.manifest
        return manifest is not None and manifest.get("key") == key

    def begin(self, key: str) -> None:
        """Make the folder ready: what another key left behind goes, what this key began stays to be resumed.

        Raises:
            InputError: the folder holds something that no run has written, or it cannot be emptied.
        """
        old = self.path.with_name(f".{self.path.name}.old")
        started = read_json(self.path / "started.json")
        try:
            shutil.rmtree(old, ignore_errors=True)
            if started is not None and started.get("key") != key:
                # In one move, so that a kill leaves no half-emptied folder that would pass for this key's.
                os.replace(self.path, old)
                shutil.rmtree(old, ignore_errors=True)
            elif started is None and self.path.is_dir() and any(not _ours(p) for p in self.path.iterdir()):
                raise InputError(
                    f"{self.path} holds files that no run has written; move them away or choose another project."
                )
        except OSError as error:
            raise unwritable(self.path, error) from error
        write_json(self.path / "started.json", {"key": key})

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest, which makes the stage done."""
        write_json(self.path / "manifest.json", manifest)


def _ours(path: Path) -> bool:
    return path.name == ".started.json.partial"


def write_rows(path: Path, rows: Iterable[Pair | Graded]) -> None:
    """Write training rows as JSON lines; what a row does not say is left out."""
    write_text(path, "".join(json.dumps(_said(row), ensure_ascii=False) + "\n" for row in rows))


def _said(row: Pair | Graded) -> dict[str, Any]:
    """Return a row's fields without those that are empty."""
    return {name: value for name, value in to_dict(row).items() if value not in (None, "", [], {}, ())}


def read_rows(path: Path) -> list[Pair | Graded]:
    """Return the rows in a file of :func:`write_rows`."""
    if not path.is_file():
        raise InputError(f"There are no training rows at {path}; run the curate section first.")
    rows = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return [from_dict(Graded, row) if "response_ids" in row else from_dict(Pair, row) for row in rows]


def read_pairs(path: Path) -> list[Pair]:
    """Return the pairs in a file of :func:`write_rows`; an InputError where it holds other rows."""
    rows = read_rows(path)
    pairs = [row for row in rows if isinstance(row, Pair)]
    if len(pairs) < len(rows):
        raise InputError(f"{path} holds graded answers where pairs are needed; name a list of curate steps for pairs.")
    return pairs
