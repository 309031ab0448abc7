"""What a run folder holds, read once and with patience: whatever is missing or cut short is simply absent."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tiebreak.records import InputError

Json = Mapping[str, Any]

SECTIONS = ("import", "sample", "collect", "judge", "audit", "curate", "train", "evaluate", "export")
"""The sections whose folders tell of a run, in the order in which a stage that could run is taken first."""


@dataclass(frozen=True)
class Artefacts:
    """One run as read from its folder.

    ``stages`` are the manifests in an order in which each stands after what it needs. ``metrics`` and
    ``samples`` are by training stage. Only sections of the current recipe count: a folder that an earlier recipe left
    behind tells of another run.
    """

    project: Path
    recipe: Json = field(default_factory=dict)
    stages: Mapping[str, Json] = field(default_factory=dict)
    remarks: Sequence[Json] = ()
    findings: Sequence[Json] = ()
    funnel: Sequence[Json] = ()
    results: Json = field(default_factory=dict)
    metrics: Mapping[str, Sequence[Json]] = field(default_factory=dict)
    samples: Mapping[str, Sequence[Json]] = field(default_factory=dict)

    def counts(self, stage: str) -> Json:
        """The counts of a stage; empty where it has not run."""
        return self.part(stage, "counts")

    def part(self, stage: str, name: str) -> Json:
        """One mapping of a stage's manifest; empty where it has not run."""
        found = self.stages.get(stage, {}).get(name)
        return found if isinstance(found, Mapping) else {}

    @property
    def training(self) -> list[str]:
        """The names of the training stages, in order."""
        return [name.partition(".")[2] for name in self.stages if name.startswith("train.")]

    @property
    def finished_at(self) -> str:
        """When the last stage was finished; the page's date, so that the same run gives the same page."""
        return max((str(stage.get("finished_at") or "") for stage in self.stages.values()), default="")

    @property
    def stale(self) -> list[tuple[str, str]]:
        """Stages with an input that has since been made anew, as (stage, input)."""
        return [
            (name, need)
            for name, stage in self.stages.items()
            for need, key in (stage.get("inputs") or {}).items()
            if need in self.stages and self.stages[need].get("key") != key
        ]


def read(project: Path) -> Artefacts:
    """Return what ``project`` holds; an InputError where there is no such folder."""
    if not project.is_dir():
        raise InputError(f"There is no run folder {project}; run a recipe first, or pass project=FOLDER.")
    recipe = _mapping(_json(project / "recipe.json"))
    stages = _ordered(_manifests(project, recipe))
    return Artefacts(
        project=project,
        recipe=recipe,
        stages=stages,
        remarks=_rows(project, "import", "report.json", stages),
        findings=_rows(project, "audit", "findings.json", stages),
        funnel=_rows(project, "curate", "funnel.json", stages),
        results=_mapping(_json(project / "evaluate" / "results.json")) if "evaluate" in stages else {},
        metrics=_of_training(project, stages, "metrics.jsonl"),
        samples=_of_training(project, stages, "samples.jsonl"),
    )


def _of_training(project: Path, stages: Mapping[str, Json], name: str) -> dict[str, list[Json]]:
    names = [stage for stage in stages if stage.startswith("train.")]
    return {stage.partition(".")[2]: _lines(project.joinpath(*stage.split(".")) / name) for stage in names}


def _manifests(project: Path, recipe: Json) -> dict[str, Json]:
    found: dict[str, Json] = {}
    for section in SECTIONS:
        if recipe and section not in recipe:
            continue
        if section != "train":
            names = [section]
        else:
            wanted = recipe.get("train") if recipe else None
            folders = sorted(path.parent.name for path in project.glob("train/*/manifest.json"))
            names = [f"train.{name}" for name in folders if not isinstance(wanted, Mapping) or name in wanted]
        for name in names:
            manifest = _mapping(_json(project.joinpath(*name.split(".")) / "manifest.json"))
            if manifest:
                found[name] = manifest
    return found


def _ordered(stages: Mapping[str, Json]) -> dict[str, Json]:
    """Put each stage after what it needs; a circle, which no run makes, falls back on the order of the sections."""
    left, placed = dict(stages), dict[str, Json]()
    while left:
        ready = [n for n, s in left.items() if not any(need in left for need in (s.get("inputs") or {}))]
        name = ready[0] if ready else next(iter(left))
        placed[name] = left.pop(name)
    return placed


def _rows(project: Path, section: str, name: str, stages: Mapping[str, Json]) -> list[Json]:
    found = _json(project / section / name) if section in stages else None
    return [row for row in found if isinstance(row, Mapping)] if isinstance(found, list) else []


def _mapping(value: Any) -> Json:
    return value if isinstance(value, Mapping) else {}


def _json(path: Path) -> Any:
    try:
        return _loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _lines(path: Path) -> list[Json]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return []
    found = []
    for line in lines:
        try:
            found.append(_mapping(_loads(line)))
        except ValueError:
            continue  # the last line of a run that was killed while it wrote
    return [row for row in found if "step" in row]


def _loads(text: str) -> Any:
    """Read JSON; NaN and the infinities, which nobody can draw, become None."""
    return json.loads(text, parse_constant=lambda name: None)
