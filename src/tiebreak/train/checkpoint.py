"""Training state on disk: tensors as safetensors, numbers as JSON, one move to make it the current one.

Nothing is pickled, so loading a checkpoint cannot run code.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from tiebreak.records import InputError


class Stateful(Protocol):
    """What else a training carries from step to step: an average of the weights, a reference that follows."""

    def state(self) -> dict[str, torch.Tensor]:
        """Return its tensors by name."""
        ...

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take back what :meth:`state` returned."""
        ...


def save(
    folder: Path,
    model: nn.Module,
    optimizer: Any,
    state: dict[str, Any],
    extras: Mapping[str, Stateful] | None = None,
) -> None:
    """Write trained weights, the optimizer's moments and ``state``; a kill leaves the old checkpoint or the new one.

    Raises:
        InputError: the disk is full or may not be written; the old checkpoint stays.
    """
    partial, old = _beside(folder)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file(_own(trained(model)), partial / "weights.safetensors")
        for name, extra in (extras or {}).items():
            save_file(_own(extra.state()), partial / f"{name}.safetensors")
        moments = {
            f"{number}.{name}": value
            for number, values in optimizer.state_dict()["state"].items()
            for name, value in values.items()
        }
        save_file(_own(moments), partial / "optimizer.safetensors")
        (partial / "state.json").write_text(json.dumps(state))
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            os.replace(folder, old)
        os.replace(partial, folder)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"The checkpoint {folder} cannot be written: {error}; free some space and run again."
        ) from error


def load(
    folder: Path,
    model: nn.Module,
    optimizer: Any,
    *,
    run: str | None = None,
    extras: Mapping[str, Stateful] | None = None,
) -> dict[str, Any] | None:
    """Restore what :func:`save` wrote into ``model`` and ``optimizer`` and return its state, or None without one.

    Raises:
        InputError: the checkpoint is of another run, where ``run`` is given and differs from the state's.
    """
    _, old = _beside(folder)
    if not folder.exists() and old.exists():
        os.replace(old, folder)
    if not (folder / "state.json").is_file():
        return None
    state: dict[str, Any] = json.loads((folder / "state.json").read_text())
    if run is not None and state.get("run") != run:
        raise InputError(
            f"{folder} is the checkpoint of a training with another start, other rows, knobs or seed; remove it or "
            "train in another folder."
        )
    for name, extra in (extras or {}).items():
        extra.load(load_file(folder / f"{name}.safetensors"))
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in load_file(folder / "optimizer.safetensors").items():
        number, name = key.split(".", 1)
        moments.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    put_back(model, load_file(folder / "weights.safetensors"))  # last: a finished training's are not the optimizer's
    return state


def trained(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the weights that training changes: under an adapter a small part of all."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def put_back(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Set trained weights to those :func:`trained` returned once."""
    with torch.no_grad():
        for name, parameter in trained(model).items():
            parameter.copy_(weights[name])


def keep(path: Path, model: nn.Module) -> None:
    """Write the trained weights alone, in one move."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        save_file(_own(trained(model)), partial)
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"The best weights cannot be written to {path}: {error}; free some space.") from error


def kept(path: Path) -> dict[str, torch.Tensor]:
    """Return what :func:`keep` wrote."""
    found: dict[str, torch.Tensor] = load_file(path)
    return found


def discard(folder: Path) -> None:
    """Remove a checkpoint that is not needed any more, the model being saved."""
    for path in (folder, *_beside(folder)):
        shutil.rmtree(path, ignore_errors=True)


def _beside(folder: Path) -> tuple[Path, Path]:
    return folder.with_name(f".{folder.name}.partial"), folder.with_name(f".{folder.name}.old")


def _own(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Give each tensor a memory of its own, as the file format wants (tied weights share one)."""
    return {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
