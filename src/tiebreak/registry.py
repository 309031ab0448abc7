"""One table mechanism for everything that has a name.

A row says what a thing is called, what it does, which knobs it has and where its code lives; the code is imported only
when the row is used, so listing a table stays light. A user's own thing joins by an entry point of the group
``tiebreak.<table>`` or is named in place as ``my_module:my_function``.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import entry_points
from typing import Any

from tiebreak.records import InputError


def nearest(name: str, names: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the known name closest to ``name``, or nothing when none is close."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def load_object(path: str, *, what: str) -> Any:
    """Import ``module:attribute``; an InputError says which half is missing."""
    module_name, _, attribute = path.partition(":")
    if not attribute or not module_name or module_name.startswith("."):
        raise InputError(f"{what} {path!r} is not of the form module:function.")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise InputError(
            f"{what} {path!r} cannot be loaded: there is no module {error.name!r} on the Python path; "
            "install it or start from the folder that holds it."
        ) from error
    if not hasattr(module, attribute):
        known = [name for name in vars(module) if not name.startswith("_")]
        raise InputError(f"{what} {path!r}: module {module_name!r} has no {attribute!r}.{nearest(attribute, known)}")
    return getattr(module, attribute)


class UnknownKnob(InputError):
    """A knob that a row does not have; ``knob`` is its name."""

    def __init__(self, knob: str, said: str) -> None:
        super().__init__(said)
        self.knob = knob


@dataclass(frozen=True, kw_only=True)
class Row:
    """One named thing: what it does in a line, its knobs with their defaults, where its code and its paper are.

    ``knobs`` of None are read off the keyword arguments of the code itself, which is how a user's own thing has knobs.
    ``formula`` is what it computes and ``use`` when to take it, where that is worth a line. ``more`` is the path of a
    function that settles knobs beyond those listed, for a row that is a combination of parts with knobs of their own.
    """

    name: str
    does: str
    target: str = ""
    knobs: Mapping[str, Any] | None = field(default_factory=dict)
    paper: str = ""
    formula: str = ""
    use: str = ""
    more: str = ""

    def load(self) -> Callable[..., Any]:
        """Import and return the code behind the row."""
        loaded: Callable[..., Any] = load_object(self.target, what=self.name)
        return loaded

    def settle(self, given: Mapping[str, Any], *, where: str) -> dict[str, Any]:
        """Return the defaults overridden by ``given``; an unknown knob is refused with the nearest name."""
        knobs = self.knobs if self.knobs is not None else _keywords(self.load())
        if self.more and not set(given) <= set(knobs):
            beyond: dict[str, Any] = load_object(self.more, what=self.name)({**knobs, **given}, where=where)
            return {name: beyond[name] for name in dict.fromkeys((*knobs, *given)) if name in beyond}
        for name in given:
            if name not in knobs:
                has = f"it has {', '.join(knobs)}" if knobs else "it has none"
                raise UnknownKnob(name, f"{where}: {self.name!r} has no knob {name!r}; {has}.{nearest(name, knobs)}")
        return {**knobs, **given}


def _keywords(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the arguments of ``function`` that have defaults."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


class Table:
    """The named rows of one kind, in the order they are written."""

    def __init__(self, name: str, singular: str, rows: Iterable[Row]) -> None:
        self.name = name
        self.singular = singular
        self._own = {row.name: row for row in rows}

    @cached_property
    def _rows(self) -> dict[str, Row]:
        found = dict(self._own)
        for point in entry_points(group=f"tiebreak.{self.name}"):
            found.setdefault(
                point.name, Row(name=point.name, does=f"from {point.value}", target=point.value, knobs=None)
            )
        return found

    def __getitem__(self, name: str) -> Row:
        if name in self._rows:
            return self._rows[name]
        if ":" in name:
            return Row(name=name, does="your own", target=name, knobs=None)
        raise InputError(
            f"There is no {self.singular} called {name!r}; there are {', '.join(self._rows)}, "
            f"or your own as module:function.{nearest(name, self._rows)}"
        )

    def __contains__(self, name: object) -> bool:
        return name in self._rows

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows.values())

    def __len__(self) -> int:
        return len(self._rows)


TOLD = ("name", "does", "knobs", "paper", "formula", "use")
"""What JSON holds of a row."""


def as_objects(tables: Mapping[str, Iterable[Row]]) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of each table as objects."""
    return {name: [{key: getattr(row, key) for key in TOLD} for row in rows] for name, rows in tables.items()}


def show(tables: Mapping[str, Iterable[Row]]) -> None:
    """Print the tables; rows that have a formula take a paragraph each, for they do not fit into columns."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    console = Console()
    for name, rows_of in tables.items():
        rows = list(rows_of)
        if any(row.formula for row in rows):
            console.print(Text(name, style="bold"))
            for row in rows:
                console.print(Text.assemble((row.name, "cyan"), "  ", row.does))
                for line in _lines(row, name):
                    console.print(Padding(line, (0, 0, 0, 4)))
                console.print()
            continue
        shown = Table(title=name, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
        for heading in ("name", "what it does", "knobs"):
            shown.add_column(heading, style="cyan" if heading == "name" else "", overflow="fold")
        for row in rows:
            shown.add_row(Text(row.name), Text(row.does), Text(_knobs(row, name)))
        console.print(shown)
        console.print()


def _lines(row: Row, table: str) -> list[Any]:
    """Return what is told of a row beneath its name."""
    from rich.text import Text

    told = (("formula", row.formula), ("use", row.use), ("knobs", _knobs(row, table)), ("paper", row.paper))
    return [Text.assemble((f"{what:<9}", "dim"), said) for what, said in told if said]


def _knobs(row: Row, table: str) -> str:
    settled = row.settle({}, where=table)
    return ", ".join(f"{name}={value}" for name, value in settled.items() if value != "" or not row.formula)
