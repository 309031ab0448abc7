"""What a run would do, before it does it: stages, calls, price and memory."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from math import ceil, comb, prod
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tiebreak.curate.table import settle
from tiebreak.data.table import Entry
from tiebreak.judge.table import JUDGES
from tiebreak.recipe import Judge, Recipe, Stage, pace_of, reference_of, rollout_of, row_knobs, voices_of
from tiebreak.records import InputError, Prompt
from tiebreak.run.folder import StageFolder
from tiebreak.run.plan import plan, rows_of
from tiebreak.run.run import stage_key
from tiebreak.run.stages import read_entries, split
from tiebreak.train.footprint import estimate
from tiebreak.train.methods import loop_of
from tiebreak.train.objectives.presets import HEADS

WORDS_PER_TOKEN = 0.75
"""English prose under common tokenizers; a forecast needs no better."""


def forecast(recipe: Recipe) -> dict[str, Any]:
    """Return the stages and whether they are done, the judge's calls and price, and each training's steps and memory.

    Reads the import's file once to count; loads no model and calls nobody.
    """
    rows = _count(recipe)
    manifests: dict[str, dict[str, Any]] = {}
    stages = []
    for stage in plan(recipe):
        home = StageFolder(recipe.folder, stage.name)
        key = stage_key(stage, recipe, manifests) if all(need in manifests for need in stage.needs) else ""
        asked = stage.section == "collect"  # its key rests on what people say, which a forecast does not read
        done = bool(key) and (home.manifest is not None if asked else home.done(key))
        if done and (manifest := home.manifest):
            manifests[stage.name] = manifest
        stages.append({"stage": stage.name, "needs": list(stage.needs), "to_do": not done})
    found: dict[str, Any] = {"project": str(recipe.folder), "stages": stages, "rows": rows}
    if recipe.sample:
        found["sample"] = _samples(recipe, rows)
    if recipe.collect:
        pairs = min(_pairs(recipe, rows), recipe.collect.limit or _pairs(recipe, rows))
        found["collect"] = {"comparisons": pairs, "votes": pairs * recipe.collect.votes}
    if recipe.judge:
        found["judge"] = _calls(recipe.judge, _pairs(recipe, rows), rows["words"])
    found["train"] = {name: _training(recipe, name, rows) for name in recipe.train}
    return found


def _count(recipe: Recipe) -> dict[str, Any]:
    section = recipe.import_
    if section is None:
        return {"rows": 0, "prompts": 0, "pairs": 0, "judgments": 0, "words": 0.0, "sets": {}}
    prompts: dict[str, Prompt] = {}
    responses: Counter[str] = Counter()
    rows = judgments = pairs = words = 0
    for entry in read_entries(section, recipe.seed):
        rows += 1
        if isinstance(entry, Entry):
            prompts[entry.prompt.id] = entry.prompt
            responses[entry.prompt.id] += len(entry.responses)
            judgments += len(entry.judgments)
            pairs += comb(len(entry.responses), 2)
            words += len(entry.prompt.plain.split()) + sum(len(r.text.split()) for r in entry.responses)
    sets = split(list(prompts.values()), section.split, recipe.seed) | {"all": list(prompts)}
    return {
        "rows": rows,
        "prompts": len(prompts),
        "pairs": pairs,
        "judgments": judgments,
        "words": words / max(1, rows),
        "sets": {name: len(ids) for name, ids in sets.items()},
        "responses": {name: sum(responses[i] for i in ids) for name, ids in sets.items()},
        "references": {name: sum(bool(prompts[i].reference) for i in ids) for name, ids in sets.items()},
    }


def _samples(recipe: Recipe, rows: Mapping[str, Any]) -> dict[str, int]:
    assert recipe.sample is not None
    prompts = rows["sets"].get(recipe.sample.prompts, rows["prompts"])
    prompts = min(prompts, recipe.sample.limit or prompts)
    return {"prompts": prompts, "responses": prompts * recipe.sample.n}


def _pairs(recipe: Recipe, rows: Mapping[str, Any]) -> int:
    if recipe.sample:
        kept = (recipe.sample.keep or 1) if recipe.sample.strategy == "best_of_n" else recipe.sample.n
        return _samples(recipe, rows)["prompts"] * comb(kept, 2)
    return int(rows["pairs"])


def _training(recipe: Recipe, name: str, rows: Mapping[str, Any]) -> dict[str, Any]:
    """Rows, or prompts and answers, and steps at most (before anything is dropped or held out), and memory."""
    stage = recipe.train[name]
    kind, pace = rows_of(stage), pace_of(stage)
    sizes = {"pairs": _pairs(recipe, rows), "prompts": rows["sets"].get(stage.prompts, rows["prompts"])}
    most = sizes[kind] if kind in sizes else rows.get(kind, {}).get("train", 0)
    most *= _grows(recipe, stage) if kind == "pairs" else 1
    most = min(most, stage.limit or most)
    steps = stage.steps or (max(1, round(ceil(most / pace["batch"]) * pace["epochs"])) if most else 0)
    found = {"rows_at_most": most, "steps_at_most": steps, "memory_gib": _memory(recipe, name, rows)}
    if loop_of(stage.method) == "online":
        found["answers"] = steps * min(pace["batch"], most) * rollout_of(stage)["n"]
    elif loop_of(stage.method) == "rounds":
        found["answers"] = stage.knobs.get("rounds", 3) * most * rollout_of(stage)["n"]
    return found


GROWS: Mapping[str, Callable[[Mapping[str, Any]], int]] = {
    "unpair": lambda knobs: 2,
    "attributes": lambda knobs: 2,
    "goal_conditioned": lambda knobs: 2,
    "constraints": lambda knobs: 2,
    "few_shot_user": lambda knobs: int(knobs["times"]),
}
"""Curate steps that make several rows of a pair -> how many at most, from their knobs."""


def _grows(recipe: Recipe, stage: Stage) -> int:
    """Return how many rows the steps of a stage's list make of one pair, at most."""
    settled = (settle(step) for step in recipe.curations.get(stage.curated, ()))
    return prod(GROWS[name](knobs) for name, knobs in settled if name in GROWS)


def _calls(judge: Judge, pairs: int, words: float) -> dict[str, Any]:
    """Questions, calls to servers, tokens and price (None where a model's is not known); re-asks come on top."""
    pairs = min(pairs, judge.limit or pairs)
    questions = pairs * (2 if judge.orders == "both" else 1) * judge.attempts
    calls = tokens_in = tokens_out = 0.0
    prices: list[float | None] = []
    for by, given in voices_of(judge.by, judge.knobs):
        knobs = row_knobs(JUDGES[by], given, "judge")
        if by not in CALLS or not knobs["endpoint"]:
            continue
        asked, written = (questions * number for number in CALLS[by](knobs))
        read = asked * (words / WORDS_PER_TOKEN + 250)
        calls, tokens_in, tokens_out = calls + asked, tokens_in + read, tokens_out + written
        prices.append(_price(knobs, read, written))
    known = [price for price in prices if price is not None]
    return {
        "pairs": pairs,
        "questions": questions,
        "calls": round(calls),
        "tokens_in": round(tokens_in),
        "tokens_out": round(tokens_out),
        "price_usd": round(sum(known), 2) if len(known) == len(prices) else None,
    }


def _price(knobs: Mapping[str, Any], read: float, written: float) -> float | None:
    """Return US dollars by the knobs' prices per million tokens, else by the published ones."""
    from tiebreak.endpoint.cost import Price, price_of

    given = knobs["price_in"], knobs["price_out"]
    host = urlsplit(str(knobs["endpoint"])).hostname or ""
    price = price_of(str(knobs["model"]), host) if None in given else Price(*given)
    return price and price.of(round(read), round(written))


RATIONALE, RATING = 100, 60
"""Tokens of a rationale, and of one rating with its reason, as models write them."""


def _pairwise(knobs: Mapping[str, Any]) -> tuple[float, float]:
    steps = 2 if knobs["rationale"] and knobs["steps"] == 2 else 1
    return knobs["samples"] * steps, knobs["samples"] * (knobs["verdict_tokens"] + RATIONALE * knobs["rationale"])


def _aspects(knobs: Mapping[str, Any]) -> tuple[float, float]:
    from tiebreak.judge.rubric import read_words, shipped
    from tiebreak.judge.scheme import parse_scheme

    rubric = str(knobs["rubric"])
    aspects = len(parse_scheme(read_words(rubric, shipped("[scheme]\n")), where=rubric).aspects)
    return 1 if knobs["together"] else aspects, 2 * aspects * RATING


CALLS: Mapping[str, Callable[[Mapping[str, Any]], tuple[float, float]]] = {
    "pairwise": _pairwise,
    "score": lambda knobs: (1, 2),
    "aspects": _aspects,
    "debate": lambda knobs: (2 * knobs["rounds"] + 1, 2 * knobs["rounds"] * knobs["turn_tokens"]),
}
"""Judges that ask a model -> calls and tokens written for a question, from their knobs."""


def _memory(recipe: Recipe, name: str, rows: Mapping[str, Any]) -> float | None:
    """GiB at the peak of a training; None where the model is not here yet or there is no torch to count it with."""
    stage = recipe.train[name]
    root, model = stage, stage.model
    while isinstance(model, str) and model in recipe.train and recipe.train[model] is not root:
        root, model = recipe.train[model], recipe.train[model].model
    if find_spec("transformers") is None:
        return None
    config: dict[str, Any] = {}
    if isinstance(model, dict):
        config = model
    elif (Path(model) / "config.json").is_file():
        config = json.loads((Path(model) / "config.json").read_text())
    if not config:
        return None
    words = rows["words"] / WORDS_PER_TOKEN
    tokens: float = stage.batch_tokens or pace_of(stage)["batch"] * min(words, 2 * stage.window)
    if isinstance(stage.tokens, int):
        tokens = min(tokens, stage.tokens)
    sizes: dict[str, Any] = {
        "vocabulary": config.get("vocab_size", root.vocabulary),
        "precision": stage.precision,
        "checkpointing": stage.checkpointing,
        "tokens": max(1, round(tokens)),
        "predicted": 0 if stage.method in HEADS else max(1, round(tokens / 2)),
        "optimizer": stage.optimizer,
        "reference_in_step": reference_of(stage)["compute"] == "step",
    }
    try:
        found = estimate(config, **sizes)
        if (
            stage.adapter
        ):  # two matrices of rank r stand for one of width d, so about 2 r / d of the weights are trained
            weights = found.weights / (2 if stage.precision == "bfloat16_weights" else 4)
            width = config.get("hidden_size", config.get("n_embd", 768))
            found = estimate(config, **sizes, trained=weights * min(1.0, 2 * stage.adapter.rank / width))
    except InputError:
        return None
    return round(found.total / 2**30, 3)


def told(found: Mapping[str, Any]) -> list[str]:
    """Return a forecast as lines for a person."""
    lines = ["stages", *(f"  {'to do    ' if s['to_do'] else 'unchanged'}  {s['stage']}" for s in found["stages"])]
    rows = found["rows"]
    sets = ", ".join(f"{size:,} {name}" for name, size in rows["sets"].items() if name != "all")
    prompts = f"{rows['prompts']:,} prompts ({sets or 'none'})"
    lines.append(f"import: {rows['rows']:,} rows, {prompts}, {rows['judgments']:,} judgments")
    if sampled := found.get("sample"):
        lines.append(f"sample: {sampled['responses']:,} responses to {sampled['prompts']:,} prompts")
    if asked := found.get("collect"):
        lines.append(f"collect: {asked['votes']:,} votes of people on {asked['comparisons']:,} comparisons")
    if judged := found.get("judge"):
        price = judged.get("price_usd")
        cost = "price unknown: give price_in and price_out per million tokens"
        cost = cost if price is None else f"about {price:.2f} USD"
        asked = f"{judged['questions']:,} questions on {judged['pairs']:,} pairs"
        lines.append(f"judge: {asked}, {judged['calls']:,} calls, {cost}")
    for name, need in found["train"].items():
        size = need["memory_gib"]
        memory = "unknown, the model is not here yet" if size is None else f"about {max(size, 0.01):.2f} GiB"
        steps = f"at most {need['steps_at_most']:,} steps on {need['rows_at_most']:,} rows"
        if "answers" in need:
            steps = f"{need['steps_at_most']:,} steps, {need['answers']:,} answers to {need['rows_at_most']:,} prompts"
        lines.append(f"train.{name}: {steps}; memory {memory}")
    return lines
