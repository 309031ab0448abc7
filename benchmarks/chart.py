"""The chart of a comparison: one bar a setting, the median of the per-step ratios, with a whisker down to the lowest.

``python benchmarks/chart.py OUT.svg RESULT.json [RESULT.json ...]`` draws several ``train.py --json`` in one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

COLOURS = {"like_for_like": "#3b6ea5", "defaults": "#7fa8d1", "precomputed": "#5a9e8f", "head_equal": "#c08a3e"}
TASKS = {"dpo": "DPO", "reward": "Reward model", "sft": "SFT"}


def title(result: Mapping[str, Any]) -> str:
    """Say what was measured on what, for no ratio means anything without it."""
    settings, machine = result["settings"], result["machine"]
    where = machine.get("gpu") or f"{machine['processor']}, {machine['threads']} threads"
    return f"{settings['model']}, {settings['shape']} lengths, {settings['precision']}, {where}"


def draw(results: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Draw one panel a result into an SVG file, the same bytes for the same numbers."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.hashsalt": "tiebreak", "svg.fonttype": "none", "font.size": 9})
    from matplotlib import pyplot

    bars = [
        [(task, name, one) for task, found in result["ratios"].items() for name, one in found.items()]
        for result in results
    ]
    heights = [0.34 * len(some) + 0.9 for some in bars]
    figure, axes = pyplot.subplots(
        len(results), 1, figsize=(7.5, sum(heights)), height_ratios=heights, squeeze=False, layout="constrained"
    )
    for panel, result, some in zip(axes[:, 0], results, bars, strict=True):
        for place, (_, name, one) in enumerate(some):
            panel.barh(place, one["median"], color=COLOURS[name], height=0.66)
            panel.plot([one["lowest"], one["median"]], [place, place], color="#222", linewidth=1.2)
            panel.plot([one["lowest"]], [place], marker="|", markersize=8, color="#222")
            panel.text(one["median"] + 0.06, place, f"{one['median']:.1f}x", va="center")
        panel.axvline(1, color="#222", linewidth=0.9, linestyle="--")
        panel.set_yticks(range(len(some)), [f"{TASKS[task]}: {name.replace('_', ' ')}" for task, name, _ in some])
        panel.invert_yaxis()
        panel.set_xlim(0, max([one["median"] for *_, one in some], default=1) * 1.12 + 0.2)
        panel.set_xlabel("times as fast as TRL: median of warm steps, whisker to the lowest")
        panel.set_title(title(result), loc="left", fontsize=9)
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, format="svg", metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("Name the chart to write and one result or more: chart.py OUT.svg RESULT.json ...")
    draw([json.loads(Path(name).read_text()) for name in sys.argv[2:]], Path(sys.argv[1]))
