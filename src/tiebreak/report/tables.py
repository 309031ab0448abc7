"""The tables of the page: audit findings, training, win rates and how it was made, as rows of finished text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import yaml

from tiebreak.report import words
from tiebreak.report.artefacts import Artefacts, Json

IN_BRACKETS = re.compile(r" \((?:95 % interval|no interval)[^)]*\)")
PERCENT = re.compile(r"interval \S+ to \S+ %|^\D*\d[\d.,]* % \(")
CHECKS = {
    "verdicts": "What the verdicts are",
    "position": "Whether the place on the screen decides",
    "length": "Whether length decides",
    "agreement": "Whether annotators agree",
    "jury": "How many independent judges they are worth",
    "mass": "What models say beside the answers offered",
    "repeats": "Whether a judge repeats itself",
    "strength": "How strong votes lean",
    "identical": "Answers that are the same or empty",
    "cost": "What judging took",
}


class Finding(NamedTuple):
    """One line of the audit; ``figures`` says whether value and interval are shares in percent."""

    verdict: str
    sentence: str
    value: str
    interval: str
    n: str


class Group(NamedTuple):
    """The findings of one check, the worst verdict of them first in mind."""

    name: str
    worst: str
    findings: list[Finding]


def audit(run: Artefacts) -> list[Group]:
    """Return the findings grouped by check, in the order in which they were measured."""
    groups: dict[str, list[Json]] = {}
    for finding in run.findings:
        groups.setdefault(str(finding.get("check", "other")).partition(".")[0], []).append(finding)
    found = []
    for name, rows in groups.items():
        verdicts = [str(row.get("verdict")) for row in rows]
        worst = next((verdict for verdict in ("problem", "notice") if verdict in verdicts), "fine")
        found.append(Group(CHECKS.get(name, words.capital(name)), worst, [_finding(row) for row in rows]))
    return found


def _finding(row: Json) -> Finding:
    sentence = str(row.get("sentence") or "")
    share = bool(PERCENT.search(sentence))
    low, high = row.get("low"), row.get("high")
    if share:
        value, interval = words.percent(row.get("value")), words.interval(row)
    else:
        value = words.number(row.get("value"), 3)
        known = low is not None and high is not None
        interval = f"{words.number(low, 3)} to {words.number(high, 3)}" if known else "–"
    verdict = str(row.get("verdict"))
    return Finding(
        verdict if verdict in ("fine", "notice", "problem") else "fine",
        words.tied(IN_BRACKETS.sub("", sentence)),
        value,
        interval,
        words.count(row.get("n")),
    )


class Rate(NamedTuple):
    """One measured share as text."""

    name: str
    value: str
    interval: str
    n: str


def rate(name: str, row: Json | None) -> list[Rate]:
    """Return the row as one line, or none where it was not measured."""
    if not row or row.get("value") is None:
        return []
    return [Rate(name, words.percent(row["value"]), words.interval(row), words.count(row.get("n")))]


class Contest(NamedTuple):
    """One opponent: the shares, the counts behind them, and the lengths and true qualities of both sides."""

    of: str
    against: str
    judges: str
    rates: list[Rate]
    counted: list[tuple[str, str]]
    sides: list[tuple[str, str, str]]
    quality: bool


COUNTED = (
    ("wins", "won", True),
    ("ties", "tied", True),
    ("losses", "lost", True),
    ("invalid", "unreadable verdicts", True),
    ("skipped", "skipped", False),
    ("both_bad", "both bad", False),
    ("conflicts", "order conflicts", True),
    ("one_order", "readable in one order only", False),
    ("judgments", "judgments", True),
)


def contests(run: Artefacts) -> list[Contest]:
    """Return every opponent of the win rates."""
    found = []
    for row in run.results.get("win_rates") or []:
        of, against = str(row.get("of")), str(row.get("against"))
        quality, lengths = row.get("true_quality") or {}, row.get("mean_length") or {}
        judge = words.join([str(by) for by in row.get("judges") or []]) or "the judge"
        found.append(
            Contest(
                words.short(of),
                words.short(against),
                judge,
                [
                    *rate("By the truth", row.get("true")),
                    *rate("By the truth, at equal length", row.get("true_length_controlled")),
                    *rate("By the judge, ties half", row.get("rate")),
                    *rate("By the judge's probabilities, equal texts left out", row.get("soft")),
                    *rate("By the judge, at equal length", row.get("length_controlled")),
                    *rate("Same verdict in both orders", row.get("consistency")),
                ],
                [
                    (label, words.count(row[name]))
                    for name, label, always in COUNTED
                    if row.get(name) or (always and name in row)
                ],
                [
                    (words.short(side), words.fixed(lengths.get(side), 1), words.fixed(quality.get(side), 2))
                    for side in (of, against)
                    if lengths or quality
                ],
                bool(quality),
            )
        )
    return found


class Made(NamedTuple):
    """One stage as it was carried out."""

    name: str
    seconds: str
    price: str
    seed: str
    key: str
    finished: str
    counts: str
    notes: list[str]


def stages(run: Artefacts) -> list[Made]:
    """Return every stage with its time, cost, seed, key, counts and notes."""
    found = []
    for name, manifest in run.stages.items():
        counts = ", ".join(f"{words.count(value)} {key}" for key, value in run.counts(name).items() if value)
        found.append(
            Made(
                name,
                words.duration(manifest.get("seconds")),
                words.money(manifest.get("price")),
                str(manifest.get("seed", "")),
                str(manifest.get("key") or "")[:12],
                str(manifest.get("finished_at") or "").replace("T", " ").replace("+00:00", " UTC"),
                counts,
                [str(note) for note in manifest.get("notes") or []],
            )
        )
    return found


def versions(run: Artefacts) -> list[tuple[str, str]]:
    """Return packages and versions; two versions where stages were made with different ones."""
    found: dict[str, list[str]] = {}
    for manifest in run.stages.values():
        for package, version in (manifest.get("versions") or {}).items():
            known = found.setdefault(str(package), [])
            if str(version) not in known:
                known.append(str(version))
    return [(package, " and ".join(known)) for package, known in found.items()]


def recipe(run: Artefacts) -> str:
    """Return the resolved recipe as YAML, in its own order."""
    if not run.recipe:
        return ""
    return yaml.safe_dump(dict(run.recipe), sort_keys=False, allow_unicode=True, width=100)


def trained(counts: Json, seconds: Any) -> list[tuple[str, str]]:
    """Return the facts of one training stage."""
    names = ("rows", "prompts", "held out", "steps", "tokens", "parameters")
    facts = [(name, words.count(counts[name])) for name in names if counts.get(name)]
    return [*facts, ("time", words.duration(seconds))] if seconds is not None else facts


ENDS = (
    ("eval/loss", "held-out loss"),
    ("eval/rewards/margins", "held-out reward margin"),
    ("eval/rewards/accuracies", "held-out share ranked right"),
    ("eval/objective/scores", "held-out score"),
)


def last(metrics: Sequence[Json]) -> list[str]:
    """Return the last held-out values, or the loss of the last batches where nothing was held out.

    Single batches are too noisy to be quoted beside a measurement.
    """
    found = []
    for name, label in ENDS:
        values = [row[name] for row in metrics if row.get(name) is not None]
        if values:
            found.append(f"{label} {values[-1]:.3f}")
    losses = [row["loss"] for row in metrics if row.get("loss") is not None][-10:]
    if not found and losses:
        found.append(f"loss {sum(losses) / len(losses):.3f} over the last {words.plural(len(losses), 'log line')}")
    return found


def samples(rows: Sequence[Json]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return the first prompt of some steps with what the policy answered and what that scored.

    The steps are the first, the last and two between: enough to see where a policy went.
    """
    first: dict[Any, Json] = {}
    for row in rows:
        first.setdefault(row["step"], row)
    steps = sorted(first)
    chosen = sorted({steps[round(i * (len(steps) - 1) / 3)] for i in range(4)}) if steps else []
    return [(f"Step {step}", _sample(first[step])) for step in chosen]


def _sample(row: Json) -> list[tuple[str, str]]:
    said = [(name, str(row.get(key) or "").strip()) for name, key in (("prompt", "prompt"), ("answer", "completion"))]
    score = row.get("score")
    return [*said, ("score", "none" if score is None else words.number(float(score), 3))]
