"""The evaluate section: win rates, the reward model on pairs it never saw, and all of it against the truth if known."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from tiebreak.evaluate.divergence import Divergence, divergence
from tiebreak.evaluate.reward import agreement_with_truth
from tiebreak.evaluate.winrate import WinRate, win_rate
from tiebreak.judge.rule import RULES
from tiebreak.judge.run import judge_pairs
from tiebreak.judge.verdict import soft_label
from tiebreak.recipe import Judge
from tiebreak.recipe import WinRate as WinRateSection
from tiebreak.records import InputError, Judgment, Prompt, Response
from tiebreak.run.folder import write_json, write_text
from tiebreak.run.job import Job, Made
from tiebreak.run.stages import judge_of
from tiebreak.run.tested import Truth, reward
from tiebreak.stats.intervals import rate
from tiebreak.stats.length import length_controlled_win_rate

Answers = dict[str, dict[str, Response]]
"""Side -> prompt id -> its answer."""


class Slice(NamedTuple):
    """Part of the results, with what it cost."""

    results: dict[str, Any]
    price: float | None = None


def evaluate(job: Job) -> Made:
    """Measure what the recipe's evaluate section asks for and write ``results.json``."""
    section = job.recipe.evaluate
    assert section is not None
    truth: Truth | None = RULES[section.truth].load() if section.truth else None
    results: dict[str, Any] = {}
    price = None
    if truth and "judge" in job.before:
        results["judge"] = _judge_against_truth(job, truth)
    if section.reward:
        results["reward"] = reward(job, section.reward, truth)
    if section.win_rate:
        answers = _answers(job, section.win_rate)
        rates = _win_rates(job, section.win_rate, answers, truth)
        results |= rates.results
        price = rates.price
        results["examples"] = _examples(job, section.win_rate, answers, truth, section.examples)
    if not results:
        raise InputError("evaluate has nothing to do; give it win_rate:, reward: or truth: with a judge section.")
    write_json(job.home / "results.json", results)
    shown = {name: len(value) for name, value in results.items() if isinstance(value, list)}
    return Made(shown, outputs={"results": str(job.home / "results.json")}, price=price)


def _judge_against_truth(job: Job, truth: Truth) -> dict[str, Any]:
    """Accuracy where the truth prefers a side: of single verdicts, of all verdicts on a pair, and of its soft label.

    The second beside the first shows what asking again in the other order brings, the third what probabilities add.
    """
    judgments = [j for j in job.judgments() if len(j.slots) == 2]
    texts = {r.id: r for r in job.ledger.responses(sorted({slot for j in judgments for slot in j.slots}))}
    prompts = {p.id: p for p in job.ledger.prompts(sorted({j.prompt_id for j in judgments}))}
    worth = {key: truth(prompts[r.prompt_id], r.text) for key, r in texts.items()}
    single: list[tuple[float, float, str]] = []
    items: dict[str, list[Judgment]] = {}
    for judgment in judgments:
        items.setdefault(judgment.item, []).append(judgment)
        if judgment.verdict in ("slot", "tie"):
            said = 0.5 if judgment.winner is None else float(judgment.winner == 0)
            single.append((said, worth[judgment.slots[0]] - worth[judgment.slots[1]], judgment.prompt_id))
    averaged: dict[str, list[tuple[float, float, str]]] = {"both_orders_verdicts": [], "both_orders": []}
    for group in items.values():
        a, b = sorted(group[0].slots)
        plain = [replace(judgment, probability=None, id="") for judgment in group]
        for name, judged in (("both_orders_verdicts", plain), ("both_orders", group)):
            label = soft_label(judged, a, b)
            if label is not None:
                averaged[name].append((label.p, worth[a] - worth[b], group[0].prompt_id))
    return {"single_order": _agreement(single), **{name: _agreement(rows) for name, rows in averaged.items()}}


def _agreement(rows: Sequence[tuple[float, float, str]]) -> dict[str, Any]:
    said, gap, prompts = zip(*rows, strict=True) if rows else ((), (), ())
    return dict(agreement_with_truth(list(said), list(gap), list(prompts))._asdict())


def _answers(job: Job, section: WinRateSection) -> Answers:
    """Let every model answer the test prompts; ``reference`` is the prompts' own answer."""
    from tiebreak.models.load import load_causal
    from tiebreak.models.maker import maker_of
    from tiebreak.sample.draw import draw

    prompts = job.prompts(section.prompts, section.limit)
    answers: Answers = {}
    for side in (section.of, *section.against):
        if side == "reference":
            known = [p for p in prompts if p.reference]
            if not known:
                raise InputError(
                    "evaluate.win_rate compares with reference, and no test prompt has a reference answer."
                )
            made = [Response(prompt_id=p.id, text=p.reference or "", maker="reference") for p in known]
            job.ledger.add_responses(made)
        else:
            name, where = job.model(side)
            loaded, maker = load_causal(where, device=job.recipe.device), maker_of(name, where)
            how = _how(job, section)
            drawn = draw(job.ledger, loaded, prompts, maker=maker, n=1, progress=job.progress, **how)
            made = job.ledger.responses(drawn.response_ids)
        answers[side] = {response.prompt_id: response for response in made}
    return answers


def _how(job: Job, section: WinRateSection) -> dict[str, Any]:
    """Return how every side answers, so that what is drawn once more is the same."""
    sampled = job.recipe.sample
    return {
        "temperature": section.temperature,
        "max_new_tokens": section.max_new_tokens or (sampled.max_new_tokens if sampled else 64),
        "seed": job.recipe.seed,
        "batch": sampled.batch if sampled else 128,
        "window": sampled.window if sampled else 1024,
        "cut": sampled.cut if sampled else "start",
    }


def _win_rates(job: Job, section: WinRateSection, answers: Answers, truth: Truth | None) -> Slice:
    spec = section.judge or job.recipe.judge
    if spec is None:
        raise InputError("evaluate.win_rate has no judge; give it one, or add a judge section.")
    prompts = {p.id: p for p in job.ledger.prompts(sorted(answers[section.of]))}
    found, lines, spent = [], [], None
    for against in section.against:
        shared = [key for key in answers[section.of] if key in answers[against]]
        pairs = [(prompts[key], answers[section.of][key], answers[against][key]) for key in shared]
        judgments, price = _judged(job, spec, pairs)
        spent = price if spent is None else spent + (price or 0.0)
        side = {a.id: section.of for _, a, _ in pairs} | {b.id: against for _, _, b in pairs}
        lengths = {r.id: len(r.text.split()) for _, a, b in pairs for r in (a, b)}
        measured = win_rate(judgments, side, of=section.of, against=against, lengths=lengths)
        row = _rate_row(measured, sorted({j.by for j in judgments if j.by not in (IDENTICAL, EMPTY)}))
        said = _verdicts(judgments)
        by_prompt: list[dict[str, Any]] = [
            {"of": section.of, "against": against, "prompt_id": p.id, "group": p.group}
            | {"judged": said.get(a.id), "words": [lengths[a.id], lengths[b.id]]}
            for p, a, b in pairs
        ]
        if truth:
            gaps = [truth(p, a.text) - truth(p, b.text) for p, a, b in pairs]
            words = [lengths[a.id] for _, a, _ in pairs], [lengths[b.id] for _, _, b in pairs]
            row |= _true_rates(gaps, words, [p.group for p, _, _ in pairs])
            row["true_quality"] = {
                section.of: sum(truth(p, a.text) for p, a, _ in pairs) / len(pairs),
                against: sum(truth(p, b.text) for p, _, b in pairs) / len(pairs),
            }
            by_prompt = [line | {"true": _won(gap)} for line, gap in zip(by_prompt, gaps, strict=True)]
        if section.kl and against != "reference":
            far = _divergence(job, section, against, [p for p, _, _ in pairs])
            row |= {"kl": far.kl._asdict(), "log_ratio": far.ratio._asdict()}
            by_prompt = [line | {"kl": round(nats, 4)} for line, nats in zip(by_prompt, far.each, strict=True)]
        found.append(row)
        lines += by_prompt
    write_text(job.home / "wins.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    return Slice({"win_rates": found}, spent)


def _verdicts(judgments: Sequence[Judgment]) -> dict[str, float]:
    """Return how often each answer was judged the better of its pair, the orders averaged, a tie half."""
    items: dict[str, list[Judgment]] = {}
    for judgment in judgments:
        items.setdefault(judgment.item, []).append(replace(judgment, probability=None, id=""))
    found: dict[str, float] = {}
    for group in items.values():
        a, b = sorted(group[0].slots)
        if label := soft_label(group, a, b):
            found |= {a: label.p, b: 1 - label.p}
    return found


def _divergence(job: Job, section: WinRateSection, against: str, prompts: Sequence[Prompt]) -> Divergence:
    """Measure how far the policy is from another model, on the answers that are compared."""
    from tiebreak.models.load import load_causal

    one, other = (load_causal(job.model(side)[1], device=job.recipe.device) for side in (section.of, against))
    return divergence(one, other, prompts, progress=job.progress, **_how(job, section))


IDENTICAL, EMPTY = "rule:identical", "rule:empty"
"""Who settles what nobody needs to be asked about."""


def _judged(
    job: Job, spec: Judge, pairs: Sequence[tuple[Prompt, Response, Response]]
) -> tuple[list[Judgment], float | None]:
    """Judge the pairs; two equal answers are a tie and no answer loses to one, without asking anybody."""
    done = judge_pairs(
        job.ledger,
        judge_of(spec, job.recipe),
        pairs,
        orders=spec.orders,
        attempts=spec.attempts,
        concurrency=spec.concurrency,
        seed=job.recipe.seed,
        progress=job.progress,
    )
    settled = [
        judgment for p, a, b in pairs for first, second in ((a, b), (b, a)) for judgment in _free(p, first, second)
    ]
    job.ledger.add_judgments(settled)
    return job.ledger.judgments(done.judgment_ids) + settled, done.price


def _free(prompt: Prompt, first: Response, second: Response) -> list[Judgment]:
    texts, slots = (first.text.strip(), second.text.strip()), (first.id, second.id)
    if texts[0] == texts[1]:
        return [Judgment(prompt_id=prompt.id, slots=slots, verdict="tie", by=IDENTICAL)]
    if all(texts):
        return []
    return [Judgment(prompt_id=prompt.id, slots=slots, verdict="slot", winner=0 if texts[0] else 1, by=EMPTY)]


def _rate_row(measured: WinRate, judges: Sequence[str]) -> dict[str, Any]:
    def estimate(value: Any) -> dict[str, Any] | None:
        return None if value is None else {k: _number(v) for k, v in value._asdict().items()}

    counted = (
        "wins",
        "ties",
        "losses",
        "invalid",
        "skipped",
        "both_bad",
        "judgments",
        "prompts",
        "one_order",
        "conflicts",
    )
    return {
        "of": measured.of,
        "against": measured.against,
        "judges": list(judges),
        "rate": estimate(measured.rate),
        "soft": estimate(measured.soft),
        "length_controlled": estimate(measured.length_controlled),
        "consistency": estimate(measured.consistency),
        "mean_length": dict(measured.mean_length),
        **{name: getattr(measured, name) for name in counted},
    }


def _true_rates(gaps: Sequence[float], lengths: Sequence[Sequence[int]], groups: Sequence[str]) -> dict[str, Any]:
    """The share of prompts where the truth is on our side, equal quality being half; plainly and at equal length."""
    won = [_won(gap) for gap in gaps]
    level = length_controlled_win_rate(won, lengths[0], lengths[1], list(groups))
    plain = {k: _number(v) for k, v in rate(won, list(groups))._asdict().items()}
    return {
        "true": plain | {"ties": sum(gap == 0 for gap in gaps)},
        "true_length_controlled": {k: _number(v) for k, v in level._asdict().items()},
    }


def _won(gap: float) -> float:
    return 0.5 if gap == 0 else float(gap > 0)


def _number(value: float) -> float | None:
    return None if isinstance(value, float) and math.isnan(value) else value


def _examples(
    job: Job, section: WinRateSection, answers: Answers, truth: Truth | None, count: int
) -> list[dict[str, Any]]:
    """The same prompts answered by every side, the first ones of the test set: not chosen by how well they went."""
    chosen = [p for p in job.prompts(section.prompts, section.limit) if all(p.id in a for a in answers.values())][
        :count
    ]
    shown = []
    for prompt in chosen:
        row: dict[str, Any] = {"prompt": prompt.plain, "reference": prompt.reference, "answers": {}}
        for side, by_prompt in answers.items():
            text = by_prompt[prompt.id].text
            worth = truth(prompt, text) if truth else None
            row["answers"][side] = {"text": text, "quality": worth}
        shown.append(row)
    return shown
