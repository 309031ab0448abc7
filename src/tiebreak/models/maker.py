"""Who a model is, as records name it. Loads no tensors."""

from __future__ import annotations

import hashlib
from pathlib import Path

MARKS = ("*.safetensors", "*.bin", "tokenizer.json", "head.json")
"""Files of a model folder that decide what it says."""


def called(model: str | Path) -> str:
    """Return a folder's name; that of a training stage's ``model`` is its parent's, for all of them are called so."""
    folder = Path(model).resolve()
    return folder.parent.name if folder.name == "model" else folder.name


def maker_of(name: str, where: str | Path, *, revision: str | None = None) -> str:
    """Return ``name@revision``: retraining makes a new maker, so nothing old is taken for its work.

    For a folder the revision is a hash of its weights and tokenizer; for a hub name the whole name counts, for two
    organisations may call their models the same, with the commit of the snapshot in the local cache where there is one.

    Args:
        name: what a folder's model is called.
        where: the folder or hub name.
        revision: branch, tag or commit of a hub name.
    """
    folder = Path(where)
    if not folder.is_dir():
        return f"{where}@{_commit(str(where), revision) or revision or 'hub'}"
    digest = hashlib.blake2b(digest_size=6)
    for path in sorted(path for pattern in MARKS for path in folder.glob(pattern)):
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return f"{name}@{digest.hexdigest()}"


def _commit(where: str, revision: str | None) -> str | None:
    """Return the start of the commit that the local cache holds for a hub model, None where it holds none."""
    from huggingface_hub import try_to_load_from_cache

    if where.count("/") > 1:
        return None
    found = try_to_load_from_cache(where, "config.json", revision=revision)
    return Path(found).parent.name[:12] if isinstance(found, str) else None
