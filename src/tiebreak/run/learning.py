"""The train section: texts to trees, trees to a trained model in a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from tiebreak.models.adapter_folder import load_adapter, save_adapter
from tiebreak.models.adapters import Adapter, merged, quantized_settings
from tiebreak.models.encode import encode_tree
from tiebreak.models.forest import Tree
from tiebreak.models.load import (
    Loaded,
    build_causal,
    context_of,
    load_causal,
    save_model,
    start_reward,
    train_tokenizer,
)
from tiebreak.recipe import Stage, pace_of, reference_of, row_knobs
from tiebreak.records import InputError, Response
from tiebreak.rewards.model import centre_on
from tiebreak.run.job import Job, Made
from tiebreak.run.rows import Rows
from tiebreak.train import checkpoint
from tiebreak.train.methods import loop_of
from tiebreak.train.objectives.presets import OFFLINE
from tiebreak.train.objectives.switches import needs_of, objective
from tiebreak.train.objectives.targets import BELIEVES
from tiebreak.train.offline import Compute, Pace, Reference, Trained, Watch, fit, settle
from tiebreak.train.rows import mismatched

REFERENCES = 512
"""Reference answers that centre a reward model: enough for a mean, few enough to cost nothing."""


def train(job: Job) -> Made:
    """Train one model of the train section, by the loop its method belongs to."""
    stage = job.recipe.train[job.name.partition(".")[2]]
    return _saved(job, stage, LOOPS[loop_of(stage.method)](job, stage))


class Learned(NamedTuple):
    """What a loop leaves: the model as trained, what the training did, counts, why rows went, trees to centre on."""

    loaded: Loaded
    done: Trained
    counts: dict[str, int | float]
    dropped: Mapping[str, int]
    notes: Sequence[str] = ()
    centre: Sequence[Tree] | None = None


def _offline(job: Job, stage: Stage) -> Learned:
    """Learn from rows: written answers or pairs."""
    loss = OFFLINE[stage.method].load()
    knobs = settle(loss, row_knobs(OFFLINE[stage.method], stage.knobs, job.name))
    rows = Rows(job, stage, ties=knobs.get("target") not in BELIEVES)
    head = knobs["score"] == "head"
    loaded = _start(job, stage, head=head, texts=rows.texts)
    taught, held_out, counts = rows.encode(loaded)
    if loss is objective and "mismatched" in needs_of(knobs):
        taught, held_out = (mismatched(some, context_of(loaded.model), job.recipe.seed) for some in (taught, held_out))
    done = fit(
        loaded.model,
        taught,
        knobs,
        Pace(**pace_of(stage)),
        held_out=held_out,
        auto_tokens=stage.tokens == "auto",
        loss=loss,
        cache=job.project / "train" / "references",
        **_how(job, stage),
    )
    return Learned(loaded, done, counts, rows.dropped, (), [row.tree for row in taught] if head else None)


def _acting(job: Job, stage: Stage) -> Learned:
    """Learn from the policy's own answers, by policy gradient or in rounds."""
    from tiebreak.run.acting import ACTS

    if stage.tokens == "auto":
        raise InputError(f"{job.name}: tokens: auto is for rows; give a number, such as 4096, or leave it out.")
    loaded = _start(job, stage, head=False, texts=[prompt.plain for prompt in job.prompts(stage.prompts)])
    done, counts = ACTS[loop_of(stage.method)](job, stage, loaded, **_how(job, stage))
    return Learned(loaded, done, counts, done.faults)


LOOPS: Mapping[str, Callable[[Job, Stage], Learned]] = {"offline": _offline, "online": _acting, "rounds": _acting}


def _how(job: Job, stage: Stage) -> dict[str, Any]:
    """Return what every loop takes of a stage."""
    return {
        "seed": job.recipe.seed,
        "folder": job.home,
        "watch": _watch(stage),
        "compute": Compute(
            precision=stage.precision,
            checkpointing=stage.checkpointing,
            tokens=None if stage.tokens == "auto" else stage.tokens,
        ),
        "reference": Reference(**reference_of(stage)),
        "adapter": _adapter(stage),
        "optimizer": stage.optimizer,
        "optimizer_knobs": stage.optimizer_knobs,
        "ema": stage.ema,
        "progress": job.progress,
    }


def _saved(job: Job, stage: Stage, learned: Learned) -> Made:
    """Save the model as a folder that plain transformers loads, and say what came of the stage."""
    loaded, done = learned.loaded, learned.done
    notes = [*learned.notes, *_notes(stage, done)]
    trained = sum(parameter.numel() for parameter in loaded.model.parameters() if parameter.requires_grad)
    model = _plain(job, stage, loaded)
    if learned.centre is not None:
        notes.append(_centre(job, stage, model, learned.centre))
    save_model(model.model, model.tokenizer, job.home / "model")
    checkpoint.discard(job.home / "checkpoint")
    (job.home / "best.safetensors").unlink(missing_ok=True)
    size = sum(parameter.numel() for parameter in model.model.parameters())
    counts = learned.counts | {"steps": done.steps, "tokens": done.tokens, "parameters": size}
    if stage.adapter:
        counts["trained parameters"] = trained
    return Made(counts, learned.dropped, notes, {"model": str(job.home / "model"), "last": done.last})


def _watch(stage: Stage) -> Watch:
    return Watch(
        evaluate_every=stage.evaluate_every,
        checkpoint_every=stage.checkpoint_every,
        log_every=stage.log_every,
        keep=stage.keep,
        patience=stage.patience,
        trackers=tuple(stage.trackers),
    )


def _adapter(stage: Stage) -> Adapter | None:
    if stage.adapter is None:
        return None
    targets = stage.adapter.targets
    named = targets if isinstance(targets, str) else tuple(targets)
    return Adapter(**{**stage.adapter.model_dump(), "targets": named})


def _notes(stage: Stage, done: Trained) -> list[str]:
    """Return what a reader of the manifest should know about which weights these are."""
    notes = []
    if done.stopped:
        notes.append(
            f"stopped after {done.steps:,} steps: {stage.patience} evaluations without a better held-out result"
        )
    if stage.keep == "best":
        notes.append(f"the weights are those after step {done.best:,}, which had the best held-out result")
    if stage.ema:
        notes.append(f"the weights are a moving average with decay {stage.ema:g}")
    return notes


def _plain(job: Job, stage: Stage, loaded: Loaded) -> Loaded:
    """Return a model without adapter modules; the adapter alone goes into a folder of its own if its base has one."""
    if stage.adapter is None:
        return loaded
    if isinstance(stage.model, str):
        save_adapter(loaded.model, loaded.tokenizer, job.home / "adapter", base=str(job.model(stage.model)[1]))
        if stage.adapter.kind == "qlora":
            return Loaded(merged(load_adapter(job.home / "adapter").model), loaded.tokenizer)
    return Loaded(merged(loaded.model), loaded.tokenizer)


def _start(job: Job, stage: Stage, *, head: bool, texts: Sequence[str]) -> Loaded:
    if isinstance(stage.model, dict):
        if not texts:
            raise InputError(
                f"{job.name} has no text to train a tokenizer on; the rows it should learn from are empty."
            )
        tokenizer = train_tokenizer(texts, vocabulary=stage.vocabulary)
        make = start_reward if head else build_causal
        return make(stage.model, tokenizer=tokenizer, seed=job.recipe.seed, device=job.recipe.device)
    _, where = job.model(stage.model)
    if head:
        return start_reward(where, seed=job.recipe.seed, device=job.recipe.device)
    quantized = stage.adapter is not None and stage.adapter.kind == "qlora"
    return load_causal(where, device=job.recipe.device, **(quantized_settings() if quantized else {}))


def _centre(job: Job, stage: Stage, loaded: Loaded, pairs: Sequence[Tree]) -> str:
    prompts = job.prompts("train") if "import" in job.before else []
    known = [prompt for prompt in prompts if prompt.reference][:REFERENCES]
    trees = [
        tree
        for prompt in known
        if (
            tree := encode_tree(
                loaded.tokenizer,
                prompt,
                [Response(prompt_id=prompt.id, text=prompt.reference or "")],
                window=stage.window,
                cut=stage.cut,
            )[0]
        )
    ]
    if not trees:
        return "not centred: the prompts have no reference answers"
    done = centre_on(loaded, trees, pairs)
    moved = (
        "differences of pairs unchanged"
        if done.exact
        else f"differences of training pairs, {done.spread:.2g} wide, moved by at most {done.moved:.1e}"
    )
    return f"centred on {len(trees)} reference answers: mean {done.before:.4f} before, {done.after:.1e} after; {moved}"
