"""What `tiebreak ls` shows: every table as people read it, or as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tiebreak.registry import Row

TOLD = ("name", "does", "knobs", "paper", "formula", "use")
"""What JSON holds of a row."""


def as_objects(tables: Mapping[str, Sequence[Row]]) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of each table as objects."""
    return {name: [{key: getattr(row, key) for key in TOLD} for row in rows] for name, rows in tables.items()}


def show(tables: Mapping[str, Sequence[Row]]) -> None:
    """Print the tables; rows that have a formula take a paragraph each, for they do not fit into columns."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    console = Console()
    for name, rows in tables.items():
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
