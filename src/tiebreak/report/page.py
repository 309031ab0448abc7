"""The page as data: sections with their figures and tables, ready for the template."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from markupsafe import Markup

from tiebreak.report import canvas, figures, flow, story, tables, words
from tiebreak.report.artefacts import Artefacts, Json


class Drawing(NamedTuple):
    """A figure for the page: drawn for a wide and a narrow screen, or one that serves both, and what it says."""

    wide: Markup
    narrow: Markup | None
    says: str
    caption: str


class Trained(NamedTuple):
    """One training stage on the page."""

    name: str
    method: str
    start: str
    facts: list[tuple[str, str]]
    panels: list[Drawing]
    last: list[str]
    samples: list[tuple[str, list[tuple[str, str]]]]


@dataclass(frozen=True)
class Artist:
    """Makes drawings where there is something to draw with, and nothing otherwise."""

    on: bool

    def both(self, name: str, draw: Callable[[str, int], str], says: str, caption: str = "") -> Drawing | None:
        """Draw for the wide and the narrow screen."""
        if not self.on:
            return None
        wide, narrow = draw(f"{name}-w", figures.WIDE), draw(f"{name}-n", figures.NARROW)
        return Drawing(Markup(wide), Markup(narrow), says, caption) if wide else None

    def one(self, draw: Callable[[], str], says: str, caption: str = "") -> Drawing | None:
        """Draw one panel, narrow enough for every screen."""
        return Drawing(Markup(draw()), None, says, caption) if self.on else None


def page(run: Artefacts, *, title: str, drawn: bool) -> dict[str, Any]:
    """Return what the template shows; a part that the run lacks is empty."""
    artist = Artist(drawn and canvas.available())
    headlines, steps = story.headlines(run), flow.steps(run)
    found = {
        "title": title,
        "date": words.date(run.finished_at),
        "statement": story.statement(run),
        "missing_pen": drawn and not artist.on,
        "stale": run.stale,
        "headlines": headlines,
        "steps": steps,
        "audit": tables.audit(run),
        "trained": _trained(run, artist),
        "reward": _reward(run, artist),
        "contests": tables.contests(run),
        "examples": _examples(run),
        "stages": tables.stages(run),
        "versions": tables.versions(run),
        "recipe": tables.recipe(run),
    }
    found["overview"] = _overview(headlines, artist)
    found["funnel"] = _funnel(steps, artist)
    found["orders"] = _orders(run, artist)
    found["wins"] = _wins(run, artist)
    found["seconds"] = words.duration(sum(float(stage.get("seconds") or 0) for stage in run.stages.values()))
    found["price"] = words.money(sum(float(stage.get("price") or 0) for stage in run.stages.values()))
    found["contents"] = _contents(found)
    return found


CONTENTS = (
    ("headlines", "results", "Results"),
    ("steps", "data", "Data"),
    ("audit", "judging", "Judging"),
    ("trained", "training", "Training"),
    ("reward", "reward", "Reward model"),
    ("contests", "wins", "Win rates"),
    ("examples", "answers", "Answers"),
    ("stages", "made", "How it was made"),
)


def _contents(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(anchor, name) for key, anchor, name in CONTENTS if found[key]]


def _overview(headlines: Sequence[story.Headline], artist: Artist) -> Drawing | None:
    marks = [mark for headline in headlines for mark in headline.marks if mark.row.get("value") is not None]
    if not marks:
        return None
    says = "; ".join(_spoken(mark) for mark in marks)
    caption = "Dots are measured values, bars their 95 % intervals; the broken line is chance, or no lean."
    if any(mark.planted is not None for mark in marks):
        caption += " The open diamond is what was planted in the judge."
    return artist.both("overview", lambda name, width: figures.forest(name, marks, width), says, caption)


def _spoken(mark: story.Mark) -> str:
    unit = "points" if mark.kind == "lean" else "%"
    shown = words.interval(mark.row, unit=unit)
    return f"{mark.label}: {words.percent(mark.row['value'], unit=unit)} ({shown})"


def _funnel(steps: Sequence[flow.Step], artist: Artist) -> Drawing | None:
    if not any(step.n for step in steps):
        return None
    says = "; ".join(f"{step.name}: {words.count(step.n)} {step.unit}" for step in steps)
    caption = "Each bar counts its own unit. The pale part was left behind at that step."
    return artist.both("funnel", lambda name, width: figures.funnel(name, steps, width), says, caption)


def _orders(run: Artefacts, artist: Artist) -> Drawing | None:
    judges: dict[str, dict[str, float]] = {}
    for finding in run.findings:
        check, _, what = str(finding.get("check")).partition(".")
        if check == "position" and finding.get("value") is not None:
            judges.setdefault(str(finding.get("subject")), {})[what] = float(finding["value"])
    rows = []
    for judge, values in judges.items():
        if {"orders", "primacy", "recency"} <= set(values):
            parts = [values["orders"], values["primacy"], values["recency"]]
            rows.append((judge, [*parts, max(0.0, 1 - sum(parts))]))
    if not rows:
        return None
    says = "; ".join(
        f"{judge}: same answer in both orders {words.percent(parts[0])}, first slot both times "
        f"{words.percent(parts[1])}, second slot both times {words.percent(parts[2])}"
        for judge, parts in rows
    )
    caption = "The same two answers, shown in both orders. Without position bias the two middle parts are equal."
    return artist.both("orders", lambda name, width: figures.orders(name, rows, width), says, caption)


CURVES = (
    ("loss", "Loss"),
    ("rewards/margins", "Reward margin"),
    ("rewards/accuracies", "Share ranked right"),
    ("objective/scores", "Score of its answers"),
    ("objective/kl", "KL to the start (nats)"),
    ("objective/entropy", "Entropy (nats)"),
    ("completions/mean_length", "Length (tokens)"),
    ("policy/clip_fraction", "Share clipped"),
    ("value/explained_variance", "Returns explained"),
    ("learning_rate", "Learning rate"),
)


def _trained(run: Artefacts, artist: Artist) -> list[Trained]:
    found = []
    for name in run.training:
        knobs, metrics = run.part(f"train.{name}", "knobs"), run.metrics.get(name, [])
        start = knobs.get("model")
        facts = tables.trained(run.counts(f"train.{name}"), run.stages[f"train.{name}"].get("seconds"))
        begun = "from scratch" if isinstance(start, Mapping) else f"from {start}" if start else ""
        panels = [_curve(name, key, title, metrics, artist) for key, title in CURVES]
        found.append(
            Trained(
                words.short(name),
                str(knobs.get("method") or ""),
                begun,
                facts,
                [panel for panel in panels if panel is not None],
                tables.last(metrics),
                tables.samples(run.samples.get(name, [])),
            )
        )
    return found


def _curve(stage: str, key: str, title: str, metrics: Sequence[Json], artist: Artist) -> Drawing | None:
    lines = []
    for name, dots in ((key, False), (f"eval/{key}", True)):
        rows = [row for row in metrics if name in row]
        if rows:
            lines.append(figures.Line(name, [row["step"] for row in rows], [row[name] for row in rows], dots))
    known = [value for line in lines for value in line.y if value is not None]
    if not known:
        return None
    ends = [value for value in lines[0].y if value is not None]
    says = f"{title} of {stage} over {words.count(max(max(line.x) for line in lines))} steps"
    if ends:
        says += f", from {words.number(ends[0], 3)} to {words.number(ends[-1], 3)}"
    slug = "".join(c if c.isascii() and c.isalnum() else "-" for c in f"{stage}-{key}")
    return artist.one(lambda: figures.curves(f"curve-{slug}", title, lines), says)


FIT = (("ece", "calibration error (ECE)"), ("brier", "Brier score"), ("nll", "negative log-likelihood"))


def _reward(run: Artefacts, artist: Artist) -> dict[str, Any]:
    reward = run.results.get("reward")
    if not isinstance(reward, Mapping):
        return {}
    fit, seen = reward.get("calibration") or {}, [m for m in reward.get("margins") or [] if m is not None]
    base = reward.get("length_baseline") or {}
    bins = [row for row in fit.get("bins") or [] if row.get("value") is not None]
    drawn = []
    if seen:
        wrong = sum(margin < 0 for margin in seen)
        says = f"Histogram of {words.count(len(seen))} margins, {words.count(wrong)} of them below zero"
        drawn.append(artist.one(lambda: figures.margins("margins", seen), says))
    if bins:
        says = f"Accuracy by confidence in {len(bins)} bins of equal size, beside the diagonal of perfect calibration"
        drawn.append(artist.one(lambda: figures.reliability("reliability", bins), says))
    return {
        "rates": [
            *tables.rate("By the truth", reward.get("truth")),
            *tables.rate("By the judgments", reward.get("held_out")),
            *tables.rate(f"Choosing the {base.get('direction', 'longer')} answer, by the judgments", base),
        ],
        "single_pairs": reward.get("interval_over") == "pairs",
        "too_long": reward.get("too_long") or 0,
        "excluded": (reward.get("truth") or {}).get("excluded") or 0,
        "fit": [(label, f"{fit[name]:.3f}") for name, label in FIT if fit.get(name) is not None],
        "bins": [(words.percent(row.get("confidence")), tables.rate("", row)[0]) for row in bins],
        "drawings": [drawing for drawing in drawn if drawing is not None],
    }


def _wins(run: Artefacts, artist: Artist) -> Drawing | None:
    kinds = (("true", "by the truth"), ("rate", "by the judge"), ("length_controlled", "at equal length"))
    rows = [
        (f"Against {words.short(str(row.get('against')))}", [(label, row[key]) for key, label in kinds if row.get(key)])
        for row in run.results.get("win_rates") or []
    ]
    if not any(row.get("value") is not None for _, measured in rows for _, row in measured):
        return None
    says = "; ".join(
        f"{against} {kind}: {words.percent(row.get('value'))} ({words.interval(row)})"
        for against, measured in rows
        for kind, row in measured
    )
    return artist.both("wins", lambda name, width: figures.win_rates(name, rows, width), says)


class Answer(NamedTuple):
    """One side's answer to an example prompt."""

    side: str
    text: str
    quality: str
    ours: bool


def _examples(run: Artefacts) -> list[tuple[str, list[Answer]]]:
    """Return prompts with their answers: where training started, what it made, what a person wrote."""
    ours = {str(row.get("of")) for row in run.results.get("win_rates") or []}
    found = []
    for row in run.results.get("examples") or []:
        answers = row.get("answers") or {}
        order = sorted(answers, key=lambda side: (side == "reference", side in ours))
        shown = [_answer(side, answers[side], side in ours) for side in order]
        found.append((str(row.get("prompt") or "").strip(), shown))
    return found


def _answer(side: str, row: Json, ours: bool) -> Answer:
    quality = row.get("quality")
    worth = "" if quality is None else words.number(float(quality), 3)
    return Answer(words.short(side), str(row.get("text") or "").strip(), worth, ours)
