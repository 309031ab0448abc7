"""A model's name in the records says which weights it had; of a hub name, which commit."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import constants

from tiebreak.models.maker import maker_of

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_a_folder_is_told_by_its_weights_and_tokenizer_alone(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    first = maker_of("reward", folder)
    assert first.startswith("reward@")
    (folder / "README.md").write_text("nothing that it says")
    assert maker_of("reward", folder) == first
    (folder / "model.safetensors").write_bytes(b"other weights")
    assert maker_of("reward", folder) != first


def test_a_hub_name_is_told_by_the_commit_in_the_cache_of_the_revision_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "models--ann--tiny"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "v2").write_text(COMMIT)
    (home / "snapshots" / COMMIT).mkdir(parents=True)
    (home / "snapshots" / COMMIT / "config.json").write_text("{}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert maker_of("tiny", "ann/tiny", revision="v2") == f"ann/tiny@{COMMIT[:12]}"
    assert maker_of("tiny", "ann/tiny", revision=COMMIT) == f"ann/tiny@{COMMIT[:12]}"
    assert maker_of("tiny", "ann/tiny", revision="v3") == "ann/tiny@v3"
    assert maker_of("tiny", "ann/tiny") == "ann/tiny@hub"
