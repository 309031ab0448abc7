"""One task and one seed in one process: real pairs, one start, TRL's trainer and tiebreak's loop, each on its own.

Started by ``curves.py`` in TRL's environment with a JSON job; writes a JSON result. TRL gets text, as its users give
it, and every batch it makes of it is compared with the rows that the other side learned from.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import trl_side
from datasets import Dataset
from measure import machine, say
from our_side import METHODS, examples
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback
from workload import Row

from tiebreak.data.preferences import ASSISTANT, HUMAN, read_transcripts
from tiebreak.data.split import split_prompts
from tiebreak.data.table import Entry
from tiebreak.models.encode import encode_tree
from tiebreak.models.load import build_causal, start_reward, train_tokenizer
from tiebreak.records import InputError, Prompt
from tiebreak.train.learner import Learner
from tiebreak.train.objectives.presets import OFFLINE
from tiebreak.train.offline import Pace, Watch, fit
from tiebreak.train.order import Facts, Order
from tiebreak.train.track import read_track

MODEL = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}
VOCABULARY = 4096
RATES = {"dpo": 3e-4, "reward": 3e-4}
"""High enough for a model from scratch to learn something in the steps of a run, the same on both sides."""

SPLIT = 0
"""Seed of the split, the same for every seed of a run: seeds differ in start weights and order, not in the test."""


class Pairs(NamedTuple):
    """Rows with the opening question of each, which is what must not stand on both sides of a split."""

    rows: list[Row]
    openings: list[str]


class Material(NamedTuple):
    """What both sides get: a tokenizer, rows to learn from, rows held out, and how many rows went where."""

    tokenizer: PreTrainedTokenizerBase
    learned: Pairs
    held: Pairs
    counts: dict[str, int]


def material(job: dict[str, Any]) -> Material:
    """Read the pairs, hold out whole openings, train the tokenizer on the rest and encode.

    Raises:
        InputError: a broken file, or too few rows for one step.
    """
    found = list(read_transcripts(Path(job["data"])))
    entries = [entry for entry in found if isinstance(entry, Entry)]
    groups = {prompt.id: prompt for prompt in (Prompt(text=opening(entry.prompt)) for entry in entries)}
    drawn = split_prompts(list(groups.values()), {"held": job["held_out"], "learned": None}, seed=SPLIT)["held"]
    away = {groups[drawn_id].text for drawn_id in drawn}
    learned = [entry for entry in entries if opening(entry.prompt) not in away]
    texts = [text for e in learned for text in (e.prompt.plain, *(answer.text for answer in e.responses))]
    tokenizer = train_tokenizer(texts, vocabulary=VOCABULARY)
    counts = {"rows": len(found), "refused": len(found) - len(entries)}
    pairs = [
        encoded(tokenizer, some, job, counts)
        for some in (learned, [entry for entry in entries if opening(entry.prompt) in away])
    ]
    counts |= {"learned": len(pairs[0].rows), "held out": len(pairs[1].rows), "cut": counts.pop("cut", 0)}
    return Material(tokenizer, *pairs, counts)


def opening(prompt: Prompt) -> str:
    """Return the first question of a dialogue."""
    return prompt.plain.removeprefix(HUMAN).split(ASSISTANT)[0].strip()


def encoded(
    tokenizer: PreTrainedTokenizerBase, entries: Sequence[Entry], job: dict[str, Any], counts: dict[str, int]
) -> Pairs:
    """Return entries as rows of ids in whole batches, and count what is left out.

    A row is left out where TRL, which encodes prompt and answer in one, would find other tokens: the rows are to be the
    same. The last rows that fill no batch go too, so that a mean of batch means is the mean of the rows.
    """
    kept: list[tuple[Row, str]] = []
    for entry in entries:
        tree, cut = encode_tree(tokenizer, entry.prompt, entry.responses, window=job["window"])
        reason = "too long for the window"
        if tree is not None:
            row = Row(tree.trunk, *tree.branches)
            reason = "equal answers" if row.chosen == row.rejected else "other tokens as text"
            if row.chosen != row.rejected and same_as_text(tokenizer, row):
                kept.append((row, opening(entry.prompt)))
                counts["cut"] = counts.get("cut", 0) + cut
                continue
        counts[reason] = counts.get(reason, 0) + 1
    whole = len(kept) // job["batch"] * job["batch"]
    if not whole:
        raise InputError(f"{len(kept)} rows are left of {len(entries)}, too few for a step of {job['batch']}.")
    counts["fill no batch"] = counts.get("fill no batch", 0) + len(kept) - whole
    return Pairs([row for row, _ in kept[:whole]], [first for _, first in kept[:whole]])


def as_text(tokenizer: PreTrainedTokenizerBase, row: Row) -> dict[str, str]:
    """Return a row as the text its ids stand for, end-of-sequence written out."""
    return {name: tokenizer.decode(list(ids)) for name, ids in row._asdict().items()}


def same_as_text(tokenizer: PreTrainedTokenizerBase, row: Row) -> bool:
    """Whether the text of ``row``, prompt and answer in one piece, has the very tokens of ``row``."""
    text = as_text(tokenizer, row)
    wanted = {
        text["prompt"]: row.prompt,
        text["prompt"] + text["chosen"]: row.prompt + row.chosen,
        text["prompt"] + text["rejected"]: row.prompt + row.rejected,
    }
    return all(tuple(tokenizer(whole)["input_ids"]) == ids for whole, ids in wanted.items())


def start(job: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Return the start of a seed, the same whoever asks."""
    if job["task"] == "reward":
        return start_reward(MODEL, seed=job["seed"], tokenizer=tokenizer).model
    return build_causal(MODEL, tokenizer, seed=job["seed"]).model


def in_order(job: dict[str, Any], rows: Sequence[Row]) -> list[Row]:
    """Return the rows of all steps, one step after the other, in tiebreak's random order of this seed."""
    facts = Facts(tokens=[0] * len(rows), labels=[""] * len(rows), difficulty=[0.0] * len(rows))
    order = Order(facts, batch=job["batch"], seed=job["seed"])
    return [rows[i] for step in range(job["steps"]) for i in order.rows(step)]


def knobs(job: dict[str, Any]) -> dict[str, Any]:
    """Return the objective's published settings."""
    return dict(OFFLINE[METHODS[job["task"]]].knobs)


def margins(
    job: dict[str, Any], tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, rows: Pairs
) -> list[float]:
    """Return score(chosen) - score(rejected) of every row: rewards, or for DPO log-ratios to the start."""
    reference = start(job, tokenizer) if job["task"] == "dpo" else None
    learner = Learner(model, knobs(job), Pace(), reference=reference)
    some = examples(rows.rows, job["task"])
    with learner.ready():
        values = learner.values(some).view(-1, 2)
        if learner.compares:
            values = values - learner.reference_logps(some)
    return [float(value) for value in values[:, 0] - values[:, 1]]


def ours(job: dict[str, Any], given: Material, rows: Sequence[Row], folder: Path) -> dict[str, Any]:
    """Train by tiebreak's loop, with the reference computed once, as by default, and read the loss from its log."""
    model, began = start(job, given.tokenizer), time.monotonic()
    pace = Pace(
        batch=job["batch"],
        learning_rate=RATES[job["task"]],
        warmup=0.0,
        decay="constant",
        weight_decay=0.0,
        clip=1.0,
        order="given",
    )
    watch = Watch(log_every=1, checkpoint_every=job["steps"])
    fit(model, examples(rows, job["task"]), knobs(job), pace, seed=job["seed"], folder=folder, watch=watch)
    seconds = time.monotonic() - began
    losses = [step["loss"] for step in read_track(folder / "metrics.jsonl")]
    return {"loss": losses, "seconds": seconds, "margins": margins(job, given.tokenizer, model, given.held)}


def theirs(job: dict[str, Any], given: Material, rows: Sequence[Row], folder: Path) -> dict[str, Any]:
    """Let TRL's trainer train; its loss is what its own training step returns.

    Raises:
        RuntimeError: one of its batches held other rows than those it was to be compared on.
    """
    made = trainer(job, given.tokenizer, rows, folder)
    seen: list[trl_side.Seen] = []
    trl_side.Between(made, rows, then=seen.append, around=contextlib.nullcontext)
    began = time.monotonic()
    made.train()
    seconds = time.monotonic() - began
    batch = job["batch"]
    for number, step in enumerate(seen):
        if step.rows != list(rows[number * batch :][:batch]):
            raise RuntimeError(f"TRL's step {number + 1} held other rows than those given to it.")
    found = made.evaluate(eval_dataset=texts(given.tokenizer, given.held.rows))
    model = start(job, given.tokenizer)
    model.load_state_dict(made.model.state_dict())
    return {
        "loss": [step.loss for step in seen],
        "seconds": seconds,
        "margins": margins(job, given.tokenizer, model, given.held),
        "own_accuracy": found["eval_rewards/accuracies" if job["task"] == "dpo" else "eval_accuracy"],
    }


def texts(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]) -> Dataset:
    """Return rows as TRL takes them: prompt, chosen, rejected."""
    return Dataset.from_list([as_text(tokenizer, row) for row in rows])


def trainer(job: dict[str, Any], tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], folder: Path) -> Any:
    """Return TRL's trainer at the same pace; checkpointing, which costs time and changes nothing, is off."""
    make, config = trl_side.TRAINERS[job["task"]]
    args = config(
        output_dir=str(folder),
        per_device_train_batch_size=job["batch"],
        per_device_eval_batch_size=job["batch"],
        max_steps=job["steps"],
        learning_rate=RATES[job["task"]],
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        train_sampling_strategy="sequential",
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=job["seed"],
    )
    models = {"model": start(job, tokenizer)}
    if job["task"] == "dpo":
        models["ref_model"] = start(job, tokenizer)
    made = make(**models, args=args, train_dataset=texts(tokenizer, rows), processing_class=tokenizer)
    made.remove_callback(PrinterCallback)
    return made


def both(job: dict[str, Any]) -> dict[str, Any]:
    """Train the two sides one after the other and return what ``curves.py`` compares."""
    given = material(job)
    rows = in_order(job, given.learned.rows)
    numbers = {name: i for i, name in enumerate(sorted(set(given.held.openings)))}
    result: dict[str, Any] = {
        "rows": given.counts,
        "clusters": [numbers[name] for name in given.held.openings],
        "parameters": sum(weight.numel() for weight in start(job, given.tokenizer).parameters()),
        "machine": machine({"device": "cpu"}),
    }
    for side, name, train in (("trl", "TRL", theirs), ("ours", "tiebreak", ours)):
        with tempfile.TemporaryDirectory() as folder:
            result[side] = one = train(job, given, rows, Path(folder))
        say(f"{job['task']}, seed {job['seed']}: {name} took {one['seconds']:.0f} s, last loss {one['loss'][-1]:.5f}")
    return result


def main() -> None:
    """Read the job, quieten libraries, write the result; what the user can mend is a sentence in it."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    job = json.loads(sys.argv[1])
    try:
        result = both(job)
    except InputError as mistake:
        result = {"mistake": str(mistake)}
    Path(sys.argv[2]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
