"""A study's table as Markdown, and its figure as an SVG file that stands alone.

The figure has a panel for each combination of what was varied besides the first axis: win rates with their intervals,
and below them how far each policy went for its win rate.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from itertools import product
from statistics import median
from typing import Any

from tiebreak.report import words
from tiebreak.report.canvas import ACCENT, INK, QUIET, SECOND, sheet

Table = Mapping[str, Any]
Row = Mapping[str, Any]

LETTER = 7.5
"""About the width of a letter of a name."""
GAP = 26
"""Between two panels, so that the last number below one stays clear of the first below the next."""
WIDTH, NAMES, LINE, SQUARE, ACROSS = 900, 150, 22, 250, 3
"""Pixels of the whole, of the names at its left, of a line and of a lower panel; panels side by side."""


SPREAD = 8
"""So many times the median distance is far enough for a scale of roots."""


def markdown(table: Table) -> str:
    """Return the table with what it measures in front, and what failed and how to read it behind."""
    rows, axes = table["rows"], list(table["axes"])
    far = any(row["kl"] for row in rows)
    others = len(table["axes"][axes[0]]) > 1
    heads = [*reversed(axes), "win rate", "seeds", *([f"beside {table['baseline']}"] if others else [])]
    heads += [*(["KL, nats"] if far else []), "words"]
    lines = [f"# {_title(table)}", "", _measured(table), "", _line(heads), _line(["---"] * len(heads))]
    for row in rows:
        names = [row["names"][axis] for axis in reversed(axes)]
        if row["win"] is None:
            lines.append(_line([*names, "failed", *[""] * (len(heads) - len(names) - 1)]))
            continue
        cells = [*names, _percent(row["win"]), _span(row)]
        cells += [_points(row["beside"])] if others else []
        cells += [*([_number(row["kl"])] if far else []), _number(row["words"])]
        lines.append(_line(cells))
    return "\n".join([*lines, "", *_failures(rows), *_reading(table, others, far)]) + "\n"


def _title(table: Table) -> str:
    return f"{' and '.join(table['axes'])}: win rate against {table['against'] or 'nothing'}".capitalize()


def _measured(table: Table) -> str:
    seeds = words.plural(len(table["seeds"]), "seed")
    asked = words.plural(table["prompts"], "test prompt")
    told = f"{words.plural(table['cells'], 'cell')}, {seeds}, {asked} in all"
    if table["words_against"] is not None:
        told += f"; measured by {table['measured_by']}; answers of {table['against']} have "
        told += f"{table['words_against']:.1f} words"
    return told + "."


def _reading(table: Table, others: bool, far: bool) -> list[str]:
    """Say what the numbers are, and what they are not."""
    count = len(table["seeds"])
    told = [
        "- **win rate**: mean over the seeds, a tie half, with its 95 % interval over prompts. It is about these "
        f"{words.few(count)} trainings; what another seed gives is as far off as **seeds**, their lowest and highest, "
        "suggests."
        if count > 1
        else "- **win rate**: a tie half, with its 95 % interval over prompts. It is about this one training."
    ]
    if others:
        compared = words.count(sum(row["beside"] is not None for row in table["rows"]))
        told.append(
            f"- **beside {table['baseline']}**: difference in points on the same prompts and seeds, with its interval. "
            f"One in twenty such intervals misses the truth by chance, and this table has {compared}."
        )
    if far:
        told.append(f"- **KL**: of the policy from {table['against']}, whole answers, on its own samples.")
    return [*told, "- **words**: mean length of an answer."]


def _failures(rows: Sequence[Row]) -> list[str]:
    """Name each failure once, with where it struck."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for why, count in row["failed"].items():
            found.setdefault(why, []).append(f"{', '.join(row['names'].values())} ({words.plural(count, 'seed')})")
    lines = [f"- failed: {'; '.join(where)}: {why}" for why, where in found.items()]
    return [*lines, ""] if lines else []


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _percent(row: Row) -> str:
    digits = words.places(row)
    value, interval = words.percent(row["value"], digits), words.interval(row, digits, unit="")
    return f"{value} ({interval.strip()})"


def _span(row: Row) -> str:
    values = row["by_seed"]
    return f"{100 * min(values):.0f} to {100 * max(values):.0f}" if len(values) > 1 else ""


def _points(row: Row | None) -> str:
    if row is None:
        return ""
    if row["low"] is None or row["high"] is None:
        return f"{100 * row['value']:+.1f}".replace("-", "−")
    return f"{100 * row['value']:+.1f} ({100 * row['low']:+.1f} to {100 * row['high']:+.1f})".replace("-", "−")


def _number(row: Row) -> str:
    """Return a number with as many decimals as its interval bears."""
    if row["low"] is None or row["high"] is None:
        return f"{row['value']:.1f}"
    digits = 1 if row["high"] - row["low"] >= 0.1 else 2
    return f"{row['value']:.{digits}f} ({row['low']:.{digits}f} to {row['high']:.{digits}f})"


def figure(table: Table) -> str:
    """Return the figure as the text of an SVG file, light and dark as the reader's screen is."""
    first, *rest = table["axes"]
    panels = [
        (", ".join(names), [row for row in table["rows"] if [row["names"][axis] for axis in rest] == list(names)])
        for names in product(*(table["axes"][axis] for axis in rest))
    ]
    far = any(row["kl"] for row in table["rows"])
    labels = [f"{number}  {name}" for number, name in enumerate(table["axes"][first], 1)]
    rates, squares = LINE * len(labels) + 74, SQUARE + 74 if far else 0
    across = min(ACROSS, len(panels))
    bands = -(-len(panels) // across)
    height = bands * (rates + squares)
    names = max(NAMES, LETTER * max(map(len, labels)) + 24)
    wide = (WIDTH - names) / across
    with sheet("study", WIDTH, height) as drawn:
        for place, (title, rows) in enumerate(panels):
            left, top = names + wide * (place % across), (rates + squares) * (place // across)
            box = {"width": left + wide, "height": top + rates}
            axes = drawn.axes(left + 8, top + 34, GAP, 40, **box)
            _rates(axes, rows, table, title)
            if place % across == 0:
                for y, label in enumerate(labels):
                    axes.text(
                        -14 / (wide - GAP - 8), y, label, transform=axes.get_yaxis_transform(), ha="right", va="center"
                    )
            if far:
                box = {"width": left + wide, "height": top + rates + squares}
                _distances(drawn.axes(left + 8, top + rates + 20, GAP, 54, **box), rows, table, place % across == 0)
    return _alone(drawn.svg, f"{_title(table)}. The numbers are in table.md.")


def _rates(axes: Any, rows: Sequence[Row], table: Table, title: str) -> None:
    """Win rates: a dot with its interval for the mean, small rings for the seeds."""
    axes.set_title(title, color=INK, pad=10)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(*_limits(table["rows"]))
    axes.set_yticks(range(len(rows)), [""] * len(rows))
    axes.spines["left"].set_visible(False)
    axes.axvline(0.5, color=QUIET, linewidth=1.2, dashes=(4, 3))
    for y, row in enumerate(rows):
        if row["win"] is None:
            axes.text(0.5, y, "failed", transform=axes.get_yaxis_transform(), ha="center", va="center", color=SECOND)
            continue
        ring = {"markerfacecolor": "none", "markeredgecolor": QUIET, "markeredgewidth": 0.8}
        axes.plot(row["by_seed"], [y] * len(row["by_seed"]), linestyle="", marker="o", markersize=4, **ring)
        _bar(axes, [row["win"]["low"], row["win"]["high"]], [y, y])
        axes.plot([row["win"]["value"]], [y], marker="o", markersize=6, color=ACCENT)
    _in_percent(axes.xaxis)
    axes.set_xlabel(f"win rate against {table['against']}, percent")


def _distances(axes: Any, rows: Sequence[Row], table: Table, outermost: bool) -> None:
    """How far each policy went and what it won: the number is that of the line above."""
    axes.set_ylim(*_limits(table["rows"]))
    known = [row["kl"] for row in table["rows"] if row["kl"]]
    most = max(row["high"] or row["value"] for row in known)
    wide = most > SPREAD * median(row["value"] for row in known)
    if wide:  # one that went very far would press the others together
        axes.set_xscale("function", functions=(lambda x: abs(x) ** 0.5, lambda x: x**2))
    axes.set_xlim(0, most * 1.08 or 1)
    axes.axhline(0.5, color=QUIET, linewidth=1.2, dashes=(4, 3))
    for number, row in enumerate(rows, 1):
        if row["kl"] is None:
            continue
        x, y = row["kl"]["value"], row["win"]["value"]
        low = row["kl"]["low"]
        _bar(axes, [None if low is None else max(0.0, low), row["kl"]["high"]], [y, y])
        _bar(axes, [x, x], [row["win"]["low"], row["win"]["high"]])
        axes.plot([x], [y], marker="o", markersize=4, color=ACCENT)
        axes.annotate(str(number), (x, y), textcoords="offset points", xytext=(4, 3), color=INK, fontsize=10)
    _in_percent(axes.yaxis)
    axes.set_xlabel(f"KL from {table['against']}, nats{' (root scale)' if wide else ''}")
    if outermost:
        axes.set_ylabel("win rate, percent")
    else:
        axes.tick_params(labelleft=False)


def _bar(axes: Any, x: Sequence[float | None], y: Sequence[float | None]) -> None:
    if None not in (*x, *y):
        axes.plot(x, y, color=ACCENT, linewidth=2, alpha=0.5)


def _in_percent(axis: Any) -> None:
    axis.set_major_formatter(lambda value, _: f"{100 * value:.0f}")


def _limits(rows: Sequence[Row]) -> tuple[float, float]:
    """Return the ends of a scale of shares that holds all intervals and one half."""
    seen = [0.5]
    for row in rows:
        if row["win"]:
            seen += [row["win"]["value"], *row["by_seed"], *(row["win"][end] for end in ("low", "high"))]
    known = [value for value in seen if value is not None]
    return max(-0.02, min(known) - 0.04), min(1.02, max(known) + 0.04)


def _alone(svg: str, says: str) -> str:
    """Make a file of a drawing that was meant for the report's page: with its colours, a ground and a title."""
    style = files("tiebreak.report").joinpath("style.css").read_text(encoding="utf-8")
    colours = re.match(r":root \{.*?\n\}\n@media .*?\n\}\n", style, re.DOTALL)
    assert colours is not None
    font = "text { font-family: system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif; }"
    size = re.match(r'<svg (viewBox="[^"]*" width="[^"]*" height="[^"]*")[^>]*>', svg)
    assert size is not None
    told = says.replace("&", "&amp;").replace("<", "&lt;")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size[1]} role="img"><title>{told}</title>'
        f'<style>{colours[0]}{font}</style><rect width="100%" height="100%" fill="var(--paper)"/>'
        f"{svg[size.end() :]}\n"
    )
