"""Copies of the metrics for TensorBoard, Weights & Biases and trackio; ``metrics.jsonl`` stays the record.

Each package is imported when its tracker is opened. Names and numbers pass through untouched. Nothing leaves the
machine unless the environment says so, and no key reaches a file.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from tiebreak.records import InputError, content_id
from tiebreak.registry import Row, Table

TRACKERS = Table(
    "trackers",
    "tracker",
    [
        Row(
            name="tensorboard",
            does="event files in the folder's tensorboard/",
            target="tiebreak.train.trackers:tensorboard",
        ),
        Row(
            name="wandb",
            does="a Weights & Biases run, offline in the folder's wandb/ unless WANDB_API_KEY is set",
            target="tiebreak.train.trackers:wandb",
        ),
        Row(
            name="trackio",
            does="a trackio run in trackio's own folder, or where TRACKIO_SPACE_ID or TRACKIO_SERVER_URL says",
            target="tiebreak.train.trackers:trackio",
        ),
    ],
)

SECRET_NAME = re.compile(r"(?i)(api_?key|password|secret|(access|auth|hf|hub)_token)$")
SECRET_VARIABLE = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD)$")
IN_ADDRESS = re.compile(r"(://[^:/@\s]*):[^@/\s]*@")
HIDDEN = "***"


class Tracker(Protocol):
    """What gets a copy of the metrics."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Take the values of one optimizer step; a step may come in parts."""
        ...

    def close(self) -> None:
        """Let what is under way arrive."""
        ...


def opened(names: Sequence[str], folder: Path, *, run: str, settings: Mapping[str, Any], after: int) -> list[Tracker]:
    """Open trackers by name for the training in ``folder``; ``run`` tells two trainings of one name apart."""
    where = {"project": folder.parent.name, "run": f"{folder.name}-{run[:8]}"}
    made: list[Any] = [TRACKERS[name].load()(folder, **where, settings=settings, after=after) for name in names]
    return made


class TensorBoard:
    """Writes event files; each step is flushed, for a checkpoint may rest on it."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add one scalar per value."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


class Run:
    """Logs to a run of W&B or trackio, leaving out what the run has from before a kill."""

    def __init__(self, run: Any, there: frozenset[tuple[int, str]] = frozenset()) -> None:
        self._run = run
        self._there = there

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log the values at their own step."""
        missing = {name: value for name, value in values.items() if (step, name) not in self._there}
        if missing:
            self._run.log(missing, step=step)

    def close(self) -> None:
        """Finish the run, which sends what is left."""
        self._run.finish()


def tensorboard(folder: Path, *, project: str, run: str, settings: Mapping[str, Any], after: int) -> TensorBoard:
    """Open ``folder``/tensorboard; steps past ``after``, the restored one, are purged, for they will come again."""
    try:
        module = import_module("torch.utils.tensorboard")
    except ImportError as error:
        raise _missing("tensorboard") from error
    writer = module.SummaryWriter(str(folder / "tensorboard"), purge_step=after + 1 if after else 0)
    if not after:
        shown = {"project": project, "run": run, **public(settings)}
        writer.add_text("settings", "    " + json.dumps(shown, indent=2).replace("\n", "\n    "), 0)
    return TensorBoard(writer)


def wandb(folder: Path, *, project: str, run: str, settings: Mapping[str, Any], after: int) -> Run:
    """Open the W&B run of this content, online where WANDB_API_KEY is set and WANDB_MODE does not say otherwise.

    A resumed training goes on in the same run: the server keeps the steps it has and leaves out those that come again.
    Offline each start has a folder of its own under one id; ``wandb sync --append`` joins them.
    """
    try:
        package = import_module("wandb")
    except ImportError as error:
        raise _missing("wandb") from error
    asked = os.environ.get("WANDB_MODE") or "online"
    mode = asked if os.environ.get("WANDB_API_KEY") or asked == "disabled" else "offline"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        opened = package.init(
            project=project,
            id=run_id(project, run, settings),
            name=run,
            dir=str(folder),
            config=public(settings),
            mode=mode,
            resume="allow" if mode == "online" else None,
            reinit="create_new",  # a run the caller has open is another one
            settings={"console": "off"},
        )
    except package.Error as error:
        raise InputError(f"The tracker 'wandb' cannot start: {error} (WANDB_MODE=offline needs no server).") from error
    return Run(opened)


def trackio(folder: Path, *, project: str, run: str, settings: Mapping[str, Any], after: int) -> Run:
    """Open the trackio run of this content, named by ``run`` and its id; what it has past ``after`` is not sent again.

    It stays in trackio's own folder (TRACKIO_DIR), where ``trackio show`` looks: trackio reads that once a process,
    and the trainings of a recipe share one. What a Space or a server has cannot be seen, so steps may double there.
    """
    try:
        package = import_module("trackio")
    except ImportError as error:
        raise _missing("trackio") from error
    name = f"{run}-{run_id(project, run, settings)[:8]}"
    try:
        opened = package.init(project=project, name=name, config=public(settings), resume="allow")
    except ValueError as error:
        raise InputError(f"The tracker 'trackio' cannot start: {error}") from error
    rows = import_module("trackio.sqlite_storage").SQLiteStorage.get_logs(project, name)
    return Run(opened, frozenset((row["step"], key) for row in rows if row["step"] > after for key in row))


def run_id(project: str, run: str, settings: Mapping[str, Any]) -> str:
    """Return the id under which a tracker knows a training: the same for the same content, so that it resumes."""
    return content_id("tracker", project, run, public(settings))[:16]


def public(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as JSON has them, without keys: those so named, the environment's, and passwords in addresses."""
    keys = [value for name, value in os.environ.items() if SECRET_VARIABLE.search(name) and len(value) >= 8]

    def shown(value: Any, name: str) -> Any:
        if isinstance(value, Mapping):
            return {str(inner): shown(part, str(inner)) for inner, part in value.items()}
        if isinstance(value, list | tuple):
            return [shown(part, name) for part in value]
        if value is None or isinstance(value, bool | int | float):
            return value
        text = str(value)
        secret = SECRET_NAME.search(name) or any(key in text for key in keys)
        return HIDDEN if secret else IN_ADDRESS.sub(rf"\1:{HIDDEN}@", text)

    return {str(name): shown(value, str(name)) for name, value in settings.items()}


def _missing(package: str) -> InputError:
    return InputError(f"The tracker {package!r} needs its package: pip install {package}.")
