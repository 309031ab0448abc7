"""What a run would do, before it does it: stages, calls, price and memory."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from importlib.util import find_spec
from math import ceil, comb
from pathlib import Path
from typing import Any

from tiebreak.data.table import Entry
from tiebreak.judge.table import JUDGES
from tiebreak.recipe import Judge, Recipe, pace_of, rollout_of, row_knobs
from tiebreak.records import InputError, Prompt
from tiebreak.run.folder import StageFolder
from tiebreak.run.plan import plan, rows_of
from tiebreak.run.run import stage_key
from tiebreak.run.stages import read_entries, split
from tiebreak.train.footprint import estimate
from tiebreak.train.methods import loop_of

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
    most = min(most, stage.limit or most)
    steps = stage.steps or (max(1, round(ceil(most / pace["batch"]) * pace["epochs"])) if most else 0)
    found = {"rows_at_most": most, "steps_at_most": steps, "memory_gib": _memory(recipe, name, rows)}
    if loop_of(stage.method) == "online":
        found["answers"] = steps * min(pace["batch"], most) * rollout_of(stage)["n"]
    elif loop_of(stage.method) == "rounds":
        found["answers"] = stage.knobs.get("rounds", 3) * most * rollout_of(stage)["n"]
    return found


def _calls(judge: Judge, pairs: int, words: float) -> dict[str, Any]:
    pairs = min(pairs, judge.limit or pairs)
    questions = pairs * (2 if judge.orders == "both" else 1) * judge.attempts
    if judge.by != "pairwise":
        return {"pairs": pairs, "questions": questions, "calls": 0, "price_usd": 0.0}
    knobs = row_knobs(JUDGES[judge.by], judge.knobs, "judge")
    per_question = 2 if knobs["rationale"] else 1
    tokens_in = questions * per_question * (words / WORDS_PER_TOKEN + 250)
    tokens_out = questions * (knobs["verdict_tokens"] + (100 if knobs["rationale"] else 0))
    price = None
    if knobs["price_in"] is not None and knobs["price_out"] is not None:
        price = round((tokens_in * knobs["price_in"] + tokens_out * knobs["price_out"]) / 1e6, 2)
    return {
        "pairs": pairs,
        "questions": questions,
        "calls": questions * per_question,
        "tokens_in": round(tokens_in),
        "tokens_out": round(tokens_out),
        "price_usd": price,
    }


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
        "predicted": 0 if stage.method == "bradley_terry" else max(1, round(tokens / 2)),
        "optimizer": stage.optimizer,
        "reference_in_step": stage.reference.compute == "step",
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
