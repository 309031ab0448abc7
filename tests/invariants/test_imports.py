"""A room imports only rooms above it, nothing goes in circles, and what is heavy is loaded late."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "tiebreak"
# fmt: off
ORDER = [
    "records", "registry", "stats", "store", "data", "models", "endpoint", "collect", "judge", "audit", "curate",
    "rewards", "sample", "train", "evaluate", "report", "control", "recipe", "run", "cli",
]
# fmt: on
HEAVY = ("torch", "transformers", "datasets", "fastapi", "matplotlib")
TENSOR_ROOMS = ("models", "train", "control")
LIGHT_IN_TRAIN = ("presets", "table", "tables")


class Import(NamedTuple):
    """One imported name: the dotted path, its line, and whether it runs when the module is imported."""

    name: str
    line: int
    at_import: bool


def module_of(path: Path) -> str:
    parts = ["tiebreak", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def room_of(module: str) -> str:
    return [*module.split("."), ""][1]


def _names(node: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    inside = [f"{node.module}.{alias.name}" for alias in node.names]
    return [name if name in MODULES else str(node.module) for name in inside]


def _walk(nodes: list[ast.stmt], at_import: bool) -> Iterator[Import]:
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from (Import(name, node.lineno, at_import) for name in _names(node))
            continue
        deeper = at_import and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            yield from _walk(node.body, False)
            yield from _walk(node.orelse, deeper)
            continue
        for inner in ast.iter_child_nodes(node):
            if isinstance(inner, ast.stmt):
                yield from _walk([inner], deeper)
            elif isinstance(inner, ast.ExceptHandler | ast.match_case):
                yield from _walk(inner.body, deeper)


@functools.cache
def imports(module: str) -> tuple[Import, ...]:
    return tuple(_walk(ast.parse(MODULES[module].read_text(encoding="utf-8")).body, True))


def test_every_folder_and_file_is_a_room() -> None:
    rooms = {room_of(module) for module in MODULES} - {"", "__main__"}
    assert rooms <= set(ORDER), "a room needs a place in the order: " + ", ".join(sorted(rooms - set(ORDER)))


@pytest.mark.parametrize("room", ORDER)
def test_a_room_imports_only_rooms_above_it(room: str) -> None:
    wrong = [
        f"{module}:{line} imports {name}"
        for module in MODULES
        if room_of(module) == room
        for name, line, _ in imports(module)
        if name.startswith("tiebreak.") and ORDER.index(room_of(name)) > ORDER.index(room)
    ]
    assert wrong == []


def find_circle(graph: dict[str, set[str]]) -> list[str]:
    """Return the modules of one circle in ``graph``, first and last the same, or nothing."""
    finished: set[str] = set()

    def visit(module: str, trail: list[str]) -> list[str]:
        if module in trail:
            return [*trail[trail.index(module) :], module]
        if module in finished:
            return []
        for other in sorted(graph[module]):
            if circle := visit(other, [*trail, module]):
                return circle
        finished.add(module)
        return []

    return next((circle for module in graph if (circle := visit(module, []))), [])


def test_the_files_of_a_room_import_each_other_in_one_direction() -> None:
    graph = {
        module: {name for name, *_ in imports(module) if name in MODULES and room_of(name) == room_of(module)}
        for module in MODULES
    }
    assert find_circle(graph) == []


def test_a_circle_would_be_found() -> None:
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert find_circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def holds_tensors(module: str) -> bool:
    path = MODULES[module]
    if module == "tiebreak.rewards.model":
        return True
    light = room_of(module) == "train" and (path.stem in LIGHT_IN_TRAIN or path.name == "__init__.py")
    return room_of(module) in TENSOR_ROOMS and not light


def test_torch_and_transformers_are_imported_where_tensors_live_and_late_elsewhere() -> None:
    early = [
        f"{module}:{line} imports {name} at import time"
        for module in MODULES
        if not holds_tensors(module)
        for name, line, at_import in imports(module)
        if at_import and name.split(".")[0] in ("torch", "transformers")
    ]
    assert early == []


def loaded_by(code: str) -> set[str]:
    code = f"import sys\n{code}\nsys.stdout.write(' '.join(sys.modules))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize(
    "module",
    ["tiebreak", "tiebreak.records", "tiebreak.registry", "tiebreak.store", "tiebreak.recipe", "tiebreak.cli"],
)
def test_importing_the_front_doors_loads_nothing_heavy(module: str) -> None:
    if module not in MODULES:
        pytest.skip(f"{module} is not part of this version")
    assert loaded_by(f"import {module}").isdisjoint(HEAVY)


def test_loading_the_names_of_the_objectives_loads_no_torch() -> None:
    module = "tiebreak.train.objectives.presets"
    if module not in MODULES:
        pytest.skip(f"{module} is not part of this version")
    assert loaded_by(f"import {module}").isdisjoint(HEAVY)
