"""The run folder: what a key began is resumed by that key alone, and nothing that is not ours is deleted."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tiebreak.records import InputError
from tiebreak.run import folder as folder_module
from tiebreak.run.folder import StageFolder, read_json, write_json


def begun(path: Path, key: str) -> StageFolder:
    home = StageFolder(path, "train.sft")
    home.begin(key)
    return home


def test_the_same_key_finds_its_checkpoint_and_another_does_not(tmp_path: Path) -> None:
    home = begun(tmp_path, "one")
    (home.path / "checkpoint").mkdir()
    begun(tmp_path, "one")
    assert (home.path / "checkpoint").is_dir()
    begun(tmp_path, "two")
    assert sorted(path.name for path in home.path.iterdir()) == ["started.json"]
    assert read_json(home.path / "started.json") == {"key": "two"}


def test_a_checkpoint_that_cannot_be_removed_is_not_taken_for_another_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = begun(tmp_path, "one")
    (home.path / "checkpoint").mkdir()

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(folder_module.os, "replace", refuse)
    with pytest.raises(InputError, match="Permission denied"):
        begun(tmp_path, "two")
    monkeypatch.undo()
    assert read_json(home.path / "started.json") == {"key": "one"}


def test_a_kill_while_the_old_is_swept_away_leaves_nothing_to_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = begun(tmp_path, "one")
    (home.path / "checkpoint").mkdir()
    real = shutil.rmtree

    def killed(path: Path, **extra: bool) -> None:
        if os.path.exists(path):
            raise KeyboardInterrupt
        real(path, **extra)

    monkeypatch.setattr(folder_module.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        begun(tmp_path, "two")
    monkeypatch.undo()
    assert not home.path.exists()
    begun(tmp_path, "two")
    assert not (home.path / "checkpoint").exists()
    assert not home.path.with_name(".sft.old").exists()


def test_a_folder_that_no_run_has_written_is_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / "train" / "sft" / "thesis.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("years of work")
    with pytest.raises(InputError, match="holds files that no run has written"):
        begun(tmp_path, "one")
    assert mine.read_text() == "years of work"


def test_done_means_finished_with_this_very_key(tmp_path: Path) -> None:
    home = begun(tmp_path, "one")
    assert not home.done("one")
    home.finish({"key": "one"})
    assert home.done("one")
    assert not home.done("two")


@pytest.mark.parametrize("content", [b"", b'{"key": "on', b"\xff\xfe", b"[]x"])
def test_a_broken_manifest_counts_as_none(content: bytes, tmp_path: Path) -> None:
    home = begun(tmp_path, "one")
    (home.path / "manifest.json").write_bytes(content)
    assert not home.done("one")


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(tmp_path / "x.json", {"a": 1})

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(InputError, match="No space left on device; free some space and run again"):
        write_json(tmp_path / "x.json", {"a": 2})
    assert read_json(tmp_path / "x.json") == {"a": 1}
