"""The run folder: one folder a stage, each with a manifest that says what made it, and files written in one move."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tiebreak.records import InputError, Pair, from_dict, to_dict

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
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write ``text`` in one move."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise InputError(
            f"{path} cannot be written: {error.strerror}; free some space or choose another project."
        ) from error


def read_json(path: Path) -> Any:
    """Return the JSON in ``path``, or None when the file is missing or cut short."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None


class StageFolder:
    """The folder of one stage. It counts as done when its manifest carries the key of the stage as it is now."""

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
        return manifest is not None and manifest["key"] == key

    def begin(self, key: str) -> None:
        """Make the folder ready: what another key left behind goes, what this key began stays to be resumed."""
        started = read_json(self.path / "started.json")
        if started is None or started["key"] != key:
            shutil.rmtree(self.path, ignore_errors=True)
        write_json(self.path / "started.json", {"key": key})

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Write the manifest, which makes the stage done."""
        write_json(self.path / "manifest.json", manifest)


def write_pairs(path: Path, pairs: Iterable[Pair]) -> None:
    """Write training pairs as JSON lines."""
    write_text(path, "".join(json.dumps(to_dict(pair), ensure_ascii=False) + "\n" for pair in pairs))


def read_pairs(path: Path) -> list[Pair]:
    """Return the pairs in a file of :func:`write_pairs`."""
    if not path.is_file():
        raise InputError(f"There are no training pairs at {path}; run the curate section first.")
    return [from_dict(Pair, json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
