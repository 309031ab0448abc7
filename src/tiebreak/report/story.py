"""The sentences: what was done, and what came out of it, in words that an annotation lead reads without a glossary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tiebreak.report import flow, words
from tiebreak.report.artefacts import Artefacts, Json


@dataclass(frozen=True, kw_only=True)
class Headline:
    """One result: the large figure, its sentence, what stands beside it, and the marks it puts into the figure."""

    figure: str
    sentence: str
    beside: str = ""
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One dot with its interval. A ``rate`` is read against one half, a ``lean`` against zero, points for points."""

    label: str
    row: Mapping[str, Any]
    kind: Literal["rate", "lean"] = "rate"
    planted: float | None = None


def headlines(run: Artefacts) -> list[Headline]:
    """Return the results in the order of interest: win rates, reward model, judge, position, the audit as a whole."""
    found = [_win(run, row) for row in run.results.get("win_rates") or []]
    if reward := run.results.get("reward"):
        found.append(_reward(run, reward))
    if judge := run.results.get("judge"):
        found.append(_judge(run, judge))
    found += [_bias(run, finding) for finding in run.findings if finding.get("check") == "position.bias"]
    if run.findings:
        found.append(_audit(run))
    return [headline for headline in found if headline is not None]


def truth(run: Artefacts) -> str:
    """Return by what the truth is known, as a sentence says it: ``the world's truth``."""
    section = run.recipe.get("evaluate") or {}
    named = section.get("truth") or run.part("evaluate", "knobs").get("truth")
    return f"the {named}'s truth" if named else "the truth"


def _win(run: Artefacts, row: Json) -> Headline | None:
    rate = row.get("true") or row.get("rate")
    if not rate or rate.get("value") is None:
        return None
    of, against = words.model(str(row.get("of"))), words.model(str(row.get("against")))
    judge = words.join([str(by) for by in row.get("judges") or []]) or "the judge"
    by = truth(run) if row.get("true") else judge
    digits = words.places(rate)
    ties = rate.get("ties") if row.get("true") else row.get("ties")
    half = f"; {words.plural(ties, 'tie counts', 'ties count')} half" if ties else ""
    sentence = (
        f"{words.capital(of)}'s answer is better than {against}'s on {words.percent(rate['value'], digits)} "
        f"of {_prompts(run, rate)} ({_range(rate, digits)}), by {by}{half}."
    )
    beside = [_reading(rate)]
    level = row.get("true_length_controlled") or row.get("length_controlled")
    if level and level.get("value") is not None:
        places = words.places(level)
        explained = (rate.get("low") or 0) > 0.5 >= (level.get("low") or 0)
        beside.append(
            f"At equal length it is {words.percent(level['value'], places)} "
            f"({words.interval(level, places)}), by {by if row.get('true_length_controlled') else judge}"
            + (": length explains the win." if explained else ".")
        )
    return Headline(
        figure=words.percent(rate["value"], digits),
        sentence=sentence,
        beside=" ".join(filter(None, beside)),
        marks=_win_marks(row, rate),
    )


def _win_marks(row: Json, rate: Json) -> tuple[Mark, ...]:
    pair = f"{words.short(str(row.get('of')))} against {words.short(str(row.get('against')))}"
    marks = [Mark(label=pair, row=rate)]
    level = row.get("true_length_controlled") or row.get("length_controlled")
    if level and level.get("value") is not None:
        marks.append(Mark(label=f"{pair}, at equal length", row=level))
    return tuple(marks)


def _prompts(run: Artefacts, rate: Json) -> str:
    section = (run.recipe.get("evaluate") or {}).get("win_rate") or {}
    return f"{words.count(rate.get('n'))} {section.get('prompts') or 'test'} prompts"


def _range(row: Json, digits: int, *, unit: str = "%") -> str:
    shown = words.interval(row, digits, unit=unit)
    return "no interval" if shown == "–" else f"95\u00a0% interval {shown}"


def _reading(rate: Json) -> str:
    low, high = rate.get("low"), rate.get("high")
    if low is None or high is None or not low <= 0.5 <= high:
        return ""
    return "The interval holds 50\u00a0%, so no difference is shown."


def _reward(run: Artefacts, reward: Json) -> Headline | None:
    held, base, known = reward.get("held_out"), reward.get("length_baseline"), reward.get("truth")
    best = known or held
    if not best or best.get("value") is None:
        return None
    digits = words.places(best)
    side = f"the better answer, by {truth(run)}," if known else "the answer that the judgments prefer"
    sentence = (
        f"The reward model scores {side} higher in {words.percent(best['value'], digits)} of "
        f"{words.count(best.get('n'))} pairs it never saw ({_range(best, digits)})."
    )
    beside, marks = [], []
    if known:
        marks.append(Mark(label="Reward model, by the truth", row=known))
    if held:
        marks.append(Mark(label="Reward model, by the judgments", row=held))
    if base and base.get("value") is not None:
        places = words.places(base)
        marks.append(Mark(label=f"Choosing the {base.get('direction', 'longer')} answer", row=base))
        mine = f"the model gets {words.percent((held or {}).get('value'), places)} and " if known and held else ""
        beside.append(
            f"On the judgments of {words.count(base.get('n'))} such pairs {mine}choosing the "
            f"{base.get('direction', 'longer')} answer gets {words.percent(base['value'], places)} "
            f"({words.interval(base, places)})."
        )
    return Headline(
        figure=words.percent(best["value"], digits), sentence=sentence, beside=" ".join(beside), marks=tuple(marks)
    )


def _judge(run: Artefacts, judge: Json) -> Headline | None:
    single, swapped, both = (judge.get(name) or {} for name in ("single_order", "both_orders_verdicts", "both_orders"))
    if not single or single.get("value") is None:
        return None
    digits = words.places(single)
    sentence = (
        f"A single verdict of the judge agrees with {truth(run)} in {words.percent(single['value'], digits)} of "
        f"{words.count(single.get('n'))} judgments ({_range(single, digits)})"
    )
    marks = [Mark(label="Judge, one verdict", row=single)]
    for row, text, label in (
        (swapped, "all verdicts on a pair averaged agree", "Judge, both orders' verdicts"),
        (both, "its probabilities averaged over both orders agree", "Judge, both orders' probabilities"),
    ):
        if row.get("value") is not None:
            places = words.places(row)
            sentence += (
                f"; {text} in {words.percent(row['value'], places)} of "
                f"{words.count(row.get('n'))} pairs ({words.interval(row, places)})"
            )
            marks.append(Mark(label=label, row=row))
    apart = single.get("excluded")
    beside = f"{words.count(apart)} judgments of answers that are equally good are left out." if apart else ""
    return Headline(
        figure=words.percent(single["value"], digits), sentence=f"{sentence}.", beside=beside, marks=tuple(marks)
    )


def planted(run: Artefacts, finding: Json) -> float | None:
    """Return the lean that the recipe gave its own judge, where this finding speaks of that judge."""
    value = run.part("judge", "knobs").get("slot_bias")
    return value if isinstance(value, int | float) and str(finding.get("subject")).startswith("rule:") else None


def _bias(run: Artefacts, finding: Json) -> Headline | None:
    value = finding.get("value")
    if value is None:
        return None
    digits, by = words.places(finding), str(finding.get("subject"))
    slot = "first" if value >= 0 else "second"
    side = {**finding, "value": abs(value)}
    if value < 0 and finding.get("low") is not None and finding.get("high") is not None:
        side |= {"low": -finding["high"], "high": -finding["low"]}
    low, high = finding.get("low"), finding.get("high")
    clear = low is not None and high is not None and not low <= 0 <= high
    told = f"{by} leans to the answer shown {slot} by" if clear else f"{by} shows no clear lean to a slot:"
    sentence = (
        f"{told} {words.percent(side['value'], digits, unit='points')} "
        f"({_range(side, digits, unit='points')}), over {words.count(finding.get('n'))} pairs shown in both orders."
    )
    known = planted(run, finding)
    beside = "The figure is the share of pairs won by the first slot both times, minus the second."
    if known is not None:
        beside = f"{words.number(100 * known, 3)} points were planted in this judge. {beside}"
    return Headline(
        figure=words.percent(side["value"], digits, unit="pts"),
        sentence=sentence,
        beside=beside,
        marks=(Mark(label=f"Lean to the first slot, {by}", row=finding, kind="lean", planted=known),),
    )


def _audit(run: Artefacts) -> Headline:
    worst = [f for f in run.findings if f.get("verdict") == "problem"]
    looks = [f for f in run.findings if f.get("verdict") == "notice"]
    judged = run.counts("audit").get("judgments")
    over = f" of {words.count(judged)} judgments" if judged is not None else ""
    sentence = (
        f"Of {words.plural(len(run.findings), 'measurement')}{over}, "
        f"{words.plural(len(worst), 'shows a problem', 'show a problem')} and "
        f"{words.plural(len(looks), 'deserves a look', 'deserve a look')}."
    )
    shown = [str(f.get("sentence", "")) for f in worst or looks if f.get("check") != "position.bias"]
    figure = f"{len(worst)}\u00a0of\u00a0{len(run.findings)}"
    return Headline(figure=figure, sentence=sentence, beside=words.tied(" ".join(shown[:3])))


def statement(run: Artefacts) -> str:
    """Return what was done, in one paragraph."""
    told = [_told_data(run), _told_judging(run), _told_training(run), _told_evaluation(run)]
    text = " ".join(filter(None, told))
    if not text:
        return "Nothing has been run in this folder yet."
    return f"{text} {_told_cost(run)}".strip()


def _told_data(run: Artefacts) -> str:
    counts = run.counts("import")
    if not counts:
        return ""
    text = f"The data are {words.plural(counts.get('prompts'), 'prompt')}"
    extra = [words.plural(counts[name], name[:-1]) for name in ("responses", "judgments") if counts.get(name)]
    return f"{text} with {words.join(extra)}." if extra else f"{text}."


def _told_judging(run: Artefacts) -> str:
    drawn, judged, rows = run.counts("sample"), run.counts("judge"), flow.rows_made(run)
    told = []
    if drawn:
        source = words.model(str(run.part("sample", "knobs").get("model") or "a model"))
        told.append(
            f"{words.capital(source)} wrote {words.plural(drawn.get('drawn', drawn.get('responses')), 'answer')} to "
            f"{words.plural(drawn.get('prompts'), 'prompt')}."
        )
    if asked := run.counts("collect"):
        people = words.plural(asked.get("people"), "person", "people")
        told.append(f"{words.capital(people)} gave {words.plural(asked.get('judgments'), 'judgment')}.")
    if judged:
        knobs = run.part("judge", "knobs")
        who = str(knobs.get("by") or "judge")
        kind = f"The rule “{knobs['rule']}”" if who == "rule" and knobs.get("rule") else f"A judge ({who})"
        orders = ", each pair in both orders" if knobs.get("orders") == "both" else ""
        told.append(f"{kind} gave {words.plural(judged.get('judgments'), 'judgment')}{orders}.")
    if rows:
        made = words.join([words.plural(step.n, _ROWS.get(step.unit, "training row")) for step in rows])
        told.append(f"The judgments became {made}.")
    elif (pairs := run.counts("curate").get("pairs")) is not None:
        told.append(f"The judgments became {words.plural(pairs, 'training pair')}.")
    return " ".join(told)


_ROWS = {"pairs": "training pair", "lists": "graded list", "answers": "graded answer"}


def _told_training(run: Artefacts) -> str:
    trained = []
    for name in run.training:
        method = str(run.part(f"train.{name}", "knobs").get("method") or "unknown")
        counts = run.counts(f"train.{name}")
        unit = "prompt" if "prompts" in counts else "row"
        on = words.plural(counts.get(f"{unit}s"), unit)
        trained.append(f"{words.short(name)} (by {method}, on {on})")
    if not trained:
        return ""
    noun = "models were" if trained[1:] else "model was"
    return f"{words.capital(words.few(len(trained)))} {noun} trained: {words.join(trained)}."


def _told_evaluation(run: Artefacts) -> str:
    rows = run.results.get("win_rates") or []
    if not rows:
        return ""
    against = words.join([words.model(str(row.get("against"))) for row in rows])
    of = words.capital(words.model(str(rows[0].get("of"))))
    return f"{of} was then compared with {against} on prompts kept apart."


def _told_cost(run: Artefacts) -> str:
    seconds = sum(float(stage.get("seconds") or 0) for stage in run.stages.values())
    price = words.money(sum(float(stage.get("price") or 0) for stage in run.stages.values()))
    return f"All of it took {words.duration(seconds)}{f' and cost {price}' if price else ''}."
