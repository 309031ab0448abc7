"""The cells of a study: every combination of what it varies, with each seed, as recipes of their own.

Cells of one seed share a project folder. A stage is skipped where its key is the one that its folder has, so the cells
stand in an order in which all that share a stage follow each other, and what they share is made once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, product
from typing import Any, NamedTuple

import yaml

from tiebreak.recipe import Recipe, build_recipe, resolved
from tiebreak.recipe.sections import Study
from tiebreak.records import InputError, content_id
from tiebreak.run.plan import plan
from tiebreak.run.run import stage_key

OF_THE_WHOLE = ("project", "seed", "study", "report", "export")
"""Parts of the recipe that a cell has of its own, or does without."""

FIXED = ("project", "seed", "study", "ledger", "collect")
"""What no cell may set."""


class Cell(NamedTuple):
    """One run of a study: its seed, its name on each axis, its recipe, and the key of each of its stages."""

    seed: int
    names: Mapping[str, str]
    recipe: Recipe
    stages: Mapping[str, str]

    @property
    def key(self) -> str:
        """A hash of all that shapes its numbers."""
        return content_id("cell", self.seed, dict(self.names), dict(self.stages))

    @property
    def label(self) -> str:
        """Its names and its seed, as a person reads them."""
        return f"{', '.join(self.names.values())}, seed {self.seed}"


def cells_of(recipe: Recipe) -> list[Cell]:
    """Return all cells in the order in which they are carried out.

    Raises:
        InputError: there is no study section, a cell's recipe is wrong, it measures no win rate or waits for people, or
            two axes set the same key.
    """
    section = recipe.study
    if section is None:
        raise InputError("The recipe has no study section; give it one with vary: and seeds:, see docs/study.md.")
    _check(section)
    base = {name: part for name, part in resolved(recipe).items() if name not in OF_THE_WHOLE}
    found = []
    for seed in section.seeds:
        shared = {**base, "seed": seed, "project": f"{recipe.folder}/seed-{seed}"}
        found += [_cell(section, shared, seed, names) for names in combinations_of(section)]
    return _together(found)


def combinations_of(section: Study) -> list[dict[str, str]]:
    """Return axis -> cell for every combination, as a table lists them: the first axis moves fastest."""
    axes = list(section.vary)
    slowest_first = product(*(section.vary[axis] for axis in reversed(axes)))
    return [dict(zip(axes, reversed(names), strict=True)) for names in slowest_first]


def shared_stages(cells: Sequence[Cell]) -> set[str]:
    """Return the keys of stages that several cells have."""
    return {key for key, count in _counts(cells).items() if count > 1}


def _cell(section: Study, base: Mapping[str, Any], seed: int, names: Mapping[str, str]) -> Cell:
    settings = [
        f"{key}={yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**9)}"
        for axis, name in names.items()
        for key, value in section.vary[axis][name].items()
    ]
    try:
        made = build_recipe(base, settings, where="")
        if made.collect:
            raise InputError("a study does not wait for people; import what they said")
        if made.evaluate is None or made.evaluate.win_rate is None:
            raise InputError("a study compares win rates; add evaluate.win_rate")
        return Cell(seed, dict(names), made, _keys(made))
    except InputError as error:
        told = " and ".join(f"{axis}.{name}" for axis, name in names.items())
        raise InputError(f"study.vary, the cell of {told}: {error}") from error


def _keys(recipe: Recipe) -> dict[str, str]:
    """Return the key of each stage, which rests on the keys of its inputs and not on what they made."""
    manifests: dict[str, dict[str, str]] = {}
    for stage in plan(recipe):
        manifests[stage.name] = {"key": stage_key(stage, recipe, manifests)}
    return {name: manifest["key"] for name, manifest in manifests.items()}


def _together(cells: Sequence[Cell]) -> list[Cell]:
    """Sort the cells by what most of them share, then by what fewer share; else in the order of the recipe."""
    counts = _counts(cells)
    first: dict[str, int] = {}
    for cell in cells:
        for key in cell.stages.values():
            first.setdefault(key, len(first))
    return sorted(cells, key=lambda cell: sorted((-counts[key], first[key]) for key in cell.stages.values()))


def _counts(cells: Sequence[Cell]) -> Counter[str]:
    return Counter(key for cell in cells for key in cell.stages.values())


def _check(section: Study) -> None:
    """Refuse keys that belong to the whole study, and those that two axes set, where one would win unseen."""
    for axis, name, key in _set_keys(section):
        if key.split(".")[0] in FIXED:
            cure = "give study.seeds" if key == "seed" else "write it outside of study"
            raise InputError(f"study.vary.{axis}.{name} sets {key}, which is the same for all cells; {cure}.")
    for (axis, name, key), (other, beside, second) in combinations(_set_keys(section), 2):
        if axis != other and f"{key}.".startswith(f"{second}.") | f"{second}.".startswith(f"{key}."):
            both = key if key == second else f"{key} and {second}"
            raise InputError(
                f"study.vary.{axis}.{name} and study.vary.{other}.{beside} both set {both}; let one axis set it."
            )


def _set_keys(section: Study) -> Iterator[tuple[str, str, str]]:
    for axis, cells in section.vary.items():
        for name, settings in cells.items():
            for key in settings:
                yield axis, name, key
