"""The figures: each takes plain numbers and returns an inline SVG of the width asked for.

Every figure has its numbers in a table or a sentence beside it; a drawing is never the only place of a result.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from tiebreak.report import words
from tiebreak.report.artefacts import Json
from tiebreak.report.canvas import ACCENT, INK, PAPER, QUIET, SECOND, SOFT, THIRD, sheet
from tiebreak.report.flow import Step
from tiebreak.report.story import Mark

WIDE, NARROW, PANEL, SQUARE = 900, 330, 232, 400
"""Widths in pixels: of the column, of a telephone, of one of four panels in the column, of one of two."""


class Line(NamedTuple):
    """One curve of a panel; ``dots`` marks measured points instead of drawing a line."""

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    dots: bool = False


def forest(name: str, marks: Sequence[Mark], width: int) -> str:
    """Dots with 95 % intervals: rates against one half, and below them leans against zero on an axis of their own."""
    rates = [mark for mark in marks if mark.kind == "rate"]
    leans = [mark for mark in marks if mark.kind == "lean"]
    row = 32 if width == WIDE else 48
    parts = [part for part in (rates, leans) if part]
    heights = [row * len(part) + 52 for part in parts]
    with sheet(name, width, sum(heights)) as drawn:
        top = 0
        for part, height in zip(parts, heights, strict=True):
            _forest_part(drawn, part, width, top, row)
            top += height
    return drawn.svg


def _forest_part(drawn: Any, marks: Sequence[Mark], width: int, top: int, row: int) -> None:
    wide, lean = width == WIDE, marks[0].kind == "lean"
    left, right = (300, 100) if wide else (10, 10)
    axes = drawn.axes(left, top + 8, right, 44, width=width, height=top + row * len(marks) + 52)
    low, high = _lean_limits(marks) if lean else (0.0, 1.0)
    axes.set_xlim(low, high)
    axes.set_ylim(len(marks) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_yticks([])
    axes.axvline(0.0 if lean else 0.5, color=QUIET, linewidth=1.2, dashes=(4, 3))
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}".replace("-", "−"))
    axes.set_xlabel("points; 0 is no lean" if lean else "percent; 50 is chance")
    place = axes.get_yaxis_transform()
    for y, mark in enumerate(marks):
        value = mark.row["value"]
        digits = words.places(mark.row)
        line = y if wide else y + 0.2
        if mark.planted is not None:
            ring = {"markeredgecolor": SECOND, "markeredgewidth": 1.6}
            axes.plot([mark.planted], [line], marker="D", markersize=11, color=PAPER, **ring)
        _error(axes, mark.row, line, ACCENT)
        axes.plot([value], [line], marker="o", markersize=7, color=ACCENT, clip_on=False)
        shown = words.percent(value, digits, unit="pts" if lean else "%")
        if wide:
            axes.text(-0.022, y, _cut(mark.label, 42), transform=place, ha="right", va="center", color=INK)
            axes.text(1.02, y, shown, transform=place, va="center", color=INK, fontweight="bold")
        else:
            clear = {"facecolor": PAPER, "edgecolor": "none", "pad": 2}  # no rule runs through the label
            axes.text(0, y - 0.2, _cut(mark.label, 38), transform=place, va="center", color=INK, bbox=clear)
            axes.text(1, y - 0.2, shown, transform=place, ha="right", va="center", color=INK, fontweight="bold")


def _lean_limits(marks: Sequence[Mark]) -> tuple[float, float]:
    seen = [v for m in marks for v in (m.row["value"], m.row.get("low"), m.row.get("high"), m.planted)]
    values = [value for value in seen if value is not None]
    reach = max(0.1, *(abs(value) for value in values)) * 1.2
    return (-reach if min(values) < 0 else -reach / 4), reach


def _error(axes: Any, row: Any, y: float, colour: str) -> None:
    if row.get("low") is not None and row.get("high") is not None:
        axes.plot([row["low"], row["high"]], [y, y], color=colour, linewidth=2.4, alpha=0.55, clip_on=False)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def funnel(name: str, steps: Sequence[Step], width: int) -> str:
    """One bar a step, as long as it has rows; what was left behind is the pale part."""
    wide = width == WIDE
    row = 30 if wide else 44
    left, right = (200, 90) if wide else (4, 4)
    with sheet(name, width, row * len(steps) + 10) as drawn:
        axes = drawn.axes(left, 4, right, 6, width=width, height=row * len(steps) + 10)
        axes.set_xlim(0, max(1, *(step.n + step.lost for step in steps)))
        axes.set_ylim(len(steps) - 0.5, -0.5)
        axes.set_axis_off()
        place = axes.get_yaxis_transform()
        for y, step in enumerate(steps):
            line, thick = (y, 0.56) if wide else (y + 0.2, 0.34)
            axes.barh(line, step.n, height=thick, color=ACCENT)
            if step.lost:
                axes.barh(line, step.lost, left=step.n, height=thick, color=SOFT, edgecolor=ACCENT, linewidth=0.6)
            unit = "" if step.unit in step.name.lower() else f" {step.unit}"
            if wide:
                axes.text(-0.02, y, _cut(step.name, 28), transform=place, ha="right", va="center")
                end = (step.n + step.lost) / axes.get_xlim()[1]
                axes.text(end + 0.012, y, words.count(step.n), transform=place, va="center", color=INK)
            else:
                axes.text(0, y - 0.2, _cut(step.name, 34), transform=place, va="center")
                axes.text(1, y - 0.2, words.count(step.n) + unit, transform=place, ha="right", va="center", color=QUIET)
    return drawn.svg


def orders(name: str, rows: Sequence[tuple[str, Sequence[float]]], width: int) -> str:
    """One stacked bar a judge: same answer in both orders, first slot twice, second slot twice, the rest."""
    labels = ("same answer both times", "first slot both times", "second slot both times", "ties and the rest")
    colours = (ACCENT, SECOND, THIRD, SOFT)
    wide = width == WIDE
    row, head = 46, 30 if wide else 92
    with sheet(name, width, head + row * len(rows) + 40) as drawn:
        axes = drawn.axes(4, head, 14, 36, width=width, height=head + row * len(rows) + 40)
        axes.set_xlim(0, 1)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.grid(visible=False)
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}")
        axes.set_xlabel("percent of pairs shown in both orders")
        for y, (judge, parts) in enumerate(rows):
            axes.text(0, y - 0.3, _cut(judge, 90 if wide else 40), va="center", color=INK)
            start = 0.0
            for part, colour in zip(parts, colours, strict=True):
                axes.barh(y + 0.14, part, left=start, height=0.44, color=colour, edgecolor=PAPER, linewidth=1)
                if part * (width - 18) > 34 and colour != SOFT:
                    middle = {"ha": "center", "va": "center", "fontweight": "bold"}
                    axes.text(start + part / 2, y + 0.15, f"{100 * part:.0f}", color=PAPER, **middle)
                start += part
        for i, (label, colour) in enumerate(zip(labels, colours, strict=True)):
            at = (4 + i * 205, 12) if wide else (4, 12 + i * 20)
            _key(drawn, at, label, colour)
    return drawn.svg


def _key(drawn: Any, at: tuple[float, float], label: str, colour: str) -> None:
    from matplotlib.patches import Rectangle

    figure = drawn.figure
    width, height = 72 * figure.get_figwidth(), 72 * figure.get_figheight()
    x, y = at[0] / width, 1 - at[1] / height
    box = Rectangle((x, y - 5 / height), 10 / width, 10 / height, facecolor=colour, transform=figure.transFigure)
    figure.add_artist(box)
    figure.text(x + 16 / width, y, label, va="center", color=QUIET, fontsize=11)


def curves(name: str, title: str, lines: Sequence[Line]) -> str:
    """One small panel of curves over optimizer steps; held-out values are dots of the second colour."""
    with sheet(name, PANEL, 180) as drawn:
        axes = drawn.axes(46, 30, 12, 40, width=PANEL, height=180)
        axes.set_title(title, color=INK, pad=10)
        axes.set_xlabel("step")
        axes.yaxis.set_major_formatter(lambda value, _: _tick(value))
        axes.locator_params(axis="y", nbins=5)
        axes.locator_params(axis="x", nbins=4, integer=True)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        palette = iter((ACCENT, THIRD, SECOND))
        for line in lines:
            y = [float("nan") if value is None else value for value in line.y]
            if line.dots:
                joined = "-" if len(y) > 1 else ""
                axes.plot(line.x, y, linestyle=joined, linewidth=1, marker="o", markersize=6, color=SECOND)
            else:
                axes.plot(line.x, y, color=next(palette))
        axes.set_xlim(left=0)
        axes.margins(y=0.12)
    return drawn.svg


def _tick(value: float) -> str:
    if value and abs(value) < 1e-3:
        figures, power = f"{value:.1e}".split("e")
        return f"{figures.removesuffix('.0')}e{int(power)}".replace("-", "−")
    return f"{value:,.4g}".replace("-", "−")


def margins(name: str, values: Sequence[float]) -> str:
    """Histogram of score(chosen) minus score(rejected); what lies left of zero is ranked the wrong way round."""
    import numpy as np

    seen = np.asarray(values, dtype=float)
    low, high = min(0.0, *np.quantile(seen, [0.002])), max(0.0, *np.quantile(seen, [0.998]))
    step = max((high - low) / 32, 1e-9)
    edges = np.arange(np.floor(low / step), np.ceil(high / step) + 2) * step
    counts, edges = np.histogram(np.clip(seen, edges[0], edges[-1]), bins=edges)
    with sheet(name, SQUARE, 270) as drawn:
        axes = drawn.axes(50, 32, 14, 46, width=SQUARE, height=270)
        axes.set_title("Margins on held-out pairs", color=INK, pad=10)
        right = edges[:-1] >= -step / 2
        for mask, colour in ((right, ACCENT), (~right, SECOND)):
            shown = {"color": colour, "edgecolor": PAPER, "linewidth": 0.5}
            axes.bar(edges[:-1][mask], counts[mask], width=step, align="edge", **shown)
        axes.axvline(0, color=QUIET, linewidth=1.2, dashes=(4, 3))
        axes.grid(axis="x", visible=False)
        axes.set_xlabel("score of the preferred answer minus the other")
        axes.locator_params(axis="y", nbins=5, integer=True)
    return drawn.svg


def reliability(name: str, bins: Sequence[Json]) -> str:
    """How sure the model is against how often it is right, in bins of equal size; on the line it is calibrated."""
    with sheet(name, SQUARE, 270) as drawn:
        axes = drawn.axes(50, 32, 14, 46, width=SQUARE, height=270)
        axes.set_title("Right how often when how sure", color=INK, pad=10)
        axes.plot([0.5, 1], [0.5, 1], color=QUIET, linewidth=1.2, dashes=(4, 3))
        for row in bins:
            if row.get("value") is None or row.get("confidence") is None:
                continue
            if row.get("low") is not None and row.get("high") is not None:
                axes.plot([row["confidence"]] * 2, [row["low"], row["high"]], color=ACCENT, linewidth=2.2, alpha=0.5)
            axes.plot([row["confidence"]], [row["value"]], marker="o", markersize=6, color=ACCENT)
        axes.set_xlim(0.48, 1.02)
        lowest = min([0.4, *(row["low"] for row in bins if row.get("low") is not None)])
        axes.set_ylim(lowest - 0.03, 1.03)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda value, _: f"{100 * value:.0f}")
        axes.set_xlabel("confidence, percent")
        axes.set_ylabel("right, percent", labelpad=2)
    return drawn.svg


def win_rates(name: str, rows: Sequence[tuple[str, Sequence[tuple[str, Json]]]], width: int) -> str:
    """For each opponent one dot a measure, against the line of one half."""
    marks = [
        Mark(label=f"{against}: {kind}", row=row)
        for against, kinds in rows
        for kind, row in kinds
        if row.get("value") is not None
    ]
    return forest(name, marks, width) if marks else ""
