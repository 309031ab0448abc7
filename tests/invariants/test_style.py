"""Short files, short functions, nothing unfinished, and tests that test."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("src", "tests", "benchmarks", "data")
FILES = sorted(
    path
    for path in (*ROOT.glob("*.py"), *(found for folder in FOLDERS for found in (ROOT / folder).rglob("*.py")))
    if "__pycache__" not in path.parts
)
OURS = [path for path in FILES if ROOT / "src" in path.parents]
TESTS = [path for path in FILES if ROOT / "tests" in path.parents]

MOST_LINES_OF_A_FILE = 400
MOST_LINES_OF_A_FUNCTION = 60
UNFINISHED = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "NotImplemented" + "Error")) + r")\b")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def where(path: Path) -> str:
    return str(path.relative_to(ROOT))


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", FILES, ids=where)
def test_a_file_is_one_thing(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MOST_LINES_OF_A_FILE, f"{where(path)} has {lines} lines; is it one thing or two?"


@pytest.mark.parametrize("path", FILES, ids=where)
def test_a_function_fits_a_screen(path: Path) -> None:
    long = [
        f"{where(path)}:{f.lineno} {f.name}: {length} lines"
        for f in functions(parsed(path))
        if (length := (f.end_lineno or f.lineno) - f.lineno + 1) > MOST_LINES_OF_A_FUNCTION
    ]
    assert long == []


@pytest.mark.parametrize("path", FILES, ids=where)
def test_nothing_is_marked_unfinished(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [f"{where(path)}:{n} {line.strip()}" for n, line in enumerate(lines, 1) if UNFINISHED.search(line)] == []


def is_empty(function: Function) -> bool:
    """Whether nothing is done; a docstring alone will do only where the function says that it returns None."""
    body = function.body
    told = bool(ast.get_docstring(function))
    rest = body[1:] if told else body
    silent = all(
        isinstance(node, ast.Pass) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        for node in rest
    )
    returns_none = isinstance(function.returns, ast.Constant) and function.returns.value is None
    return silent and not (told and not rest and returns_none)


def declared_only(tree: ast.AST) -> set[Function]:
    """The methods of protocols, and what is overloaded or abstract: declarations, whose body is elsewhere."""
    found: set[Function] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and any("Protocol" in ast.dump(base) for base in node.bases):
            found.update(functions(node))
        if isinstance(node, Function) and any(
            word in ast.dump(mark) for mark in node.decorator_list for word in ("overload", "abstractmethod")
        ):
            found.add(node)
    return found


@pytest.mark.parametrize("path", OURS, ids=where)
def test_a_function_does_something(path: Path) -> None:
    tree = parsed(path)
    allowed = declared_only(tree)
    assert [f"{where(path)}:{f.lineno} {f.name}" for f in functions(tree) if f not in allowed and is_empty(f)] == []


def called(function: Function) -> set[str]:
    calls = (node.func for node in ast.walk(function) if isinstance(node, ast.Call))
    return {c.attr if isinstance(c, ast.Attribute) else getattr(c, "id", "") for c in calls}


def asserts(function: Function) -> bool:
    """Whether the function checks by itself: an assert, ``pytest.raises``, or somebody's ``assert_...``."""
    return any(isinstance(node, ast.Assert) for node in ast.walk(function)) or any(
        name in ("raises", "warns") or name.startswith(("assert_", "expect")) for name in called(function)
    )


@pytest.mark.parametrize("path", TESTS, ids=where)
def test_a_test_asserts(path: Path) -> None:
    every = list(functions(parsed(path)))
    checking = {f.name for f in every if asserts(f)}
    idle = [f for f in every if f.name.startswith("test_") and f.name not in checking and not called(f) & checking]
    assert [f"{where(path)}:{f.lineno} {f.name} asserts nothing" for f in idle] == []


def function_of(source: str) -> Function:
    return next(functions(ast.parse(source)))


@pytest.mark.parametrize(
    ("source", "empty"),
    [
        ("def f(): pass", True),
        ("def f(): ...", True),
        ("def f() -> int:\n  'Return a number.'", True),
        ("def f() -> None:\n  'Do something.'\n  pass", True),
        ("def f() -> None:\n  'Do nothing, on purpose.'", False),
        ("def f(): return 1", False),
    ],
)
def test_an_empty_body_is_told_from_a_quiet_one(source: str, empty: bool) -> None:
    assert is_empty(function_of(source)) is empty


def test_a_check_is_told_from_a_mere_call() -> None:
    assert asserts(function_of("def test_x(): assert 1"))
    assert asserts(function_of("def test_x():\n  with pytest.raises(E): f()"))
    assert asserts(function_of("def test_x(): np.testing.assert_allclose(a, b)"))
    assert not asserts(function_of("def test_x(): f()"))
