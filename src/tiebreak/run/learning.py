"""The train section: texts to trees, trees to a trained model in a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from tiebreak.models.adapter_folder import load_adapter, save_adapter
from tiebreak.models.adapters import Adapter, merged, quantized_settings
from tiebreak.models.cards import ending, model_card
from tiebreak.models.encode import encode_tree
from tiebreak.models.forest import Tree
from tiebreak.models.heads import loads_plainly
from tiebreak.models.load import (
    Loaded,
    build_causal,
    context_of,
    load_causal,
    load_reward,
    save_model,
    start_reward,
    train_tokenizer,
)
from tiebreak.recipe import Stage, pace_of, reference_of
from tiebreak.records import InputError, Response
from tiebreak.rewards.model import centre_on
from tiebreak.run.aim import Aim, aim_of, is_scalar
from tiebreak.run.frozen import fit_frozen
from tiebreak.run.job import Job, Made
from tiebreak.run.rows import Rows
from tiebreak.train import checkpoint
from tiebreak.train.methods import METHODS, loop_of
from tiebreak.train.objectives.by_feature import READS_MARKS
from tiebreak.train.offline import Compute, Pace, Reference, Trained, Watch, fit
from tiebreak.train.rows import mismatched

REFERENCES = 512
"""Reference answers that centre a reward model: enough for a mean, few enough to cost nothing."""


def train(job: Job) -> Made:
    """Train one model of the train section, by the loop its method belongs to."""
    stage = job.recipe.train[job.name.partition(".")[2]]
    return _saved(job, stage, LOOPS[loop_of(stage.method)](job, stage))


class Learned(NamedTuple):
    """What a loop leaves: the model as trained, what the training did, counts, why rows went, trees to centre on.

    ``apart`` says that what learned is a head with a folder of its own, and the model stayed as it was.
    """

    loaded: Loaded
    done: Trained
    counts: dict[str, int | float]
    dropped: Mapping[str, int]
    notes: Sequence[str] = ()
    centre: Sequence[Tree] | None = None
    apart: bool = False


def _offline(job: Job, stage: Stage) -> Learned:
    """Learn from rows: pairs, lists or answers that stand alone."""
    aim = aim_of(stage, job.name)
    rows = Rows(job, stage, aim)
    loaded = _start(job, stage, aim, texts=rows.texts)
    encoded = rows.encode(loaded)
    taught, held_out, counts, _ = encoded
    centre = [row.tree for row in taught] if aim.form else None
    if aim.trainer is not None:
        done, apart = fit_frozen(job, stage, aim, loaded, encoded)
        return Learned(loaded, done, counts, rows.dropped, (), None if apart else centre, apart)
    if "mismatched" in aim.asked.needs:
        taught, held_out = (mismatched(some, context_of(loaded.model), job.recipe.seed) for some in (taught, held_out))
    done = fit(
        loaded.model,
        taught,
        aim.knobs,
        Pace(**pace_of(stage)),
        held_out=held_out,
        auto_tokens=stage.tokens == "auto",
        loss=aim.loss,
        cache=job.project / "train" / "references",
        **_how(job, stage),
    )
    return Learned(loaded, done, counts, rows.dropped, unbounded(aim, done.last), centre)


def unbounded(aim: Aim, last: Mapping[str, float]) -> list[str]:
    """Warn of a loss that went below 0 where it has no bound: margins then grow for as long as the training goes on."""
    fell = [value for name, value in last.items() if name in ("loss", "eval/loss") and value < 0]
    if aim.knobs.get("target") != "unbiased" or not fell:
        return []
    return [
        f"the loss fell to {min(fell):.3f}: with target unbiased it has no bound, and margins grow for as long as it "
        "trains; stop earlier, or lower the learning rate"
    ]


def _acting(job: Job, stage: Stage) -> Learned:
    """Learn from the policy's own answers, by policy gradient or in rounds."""
    from tiebreak.run.acting import ACTS

    if stage.tokens == "auto":
        raise InputError(f"{job.name}: tokens: auto is for rows; give a number, such as 4096, or leave it out.")
    loaded = _start(job, stage, None, texts=[prompt.plain for prompt in job.prompts(stage.prompts)])
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
    counts = learned.counts | {"steps": done.steps, "tokens": done.tokens}
    if learned.apart:
        path = str(job.home / "head")
        notes.append(f"the head stands apart: tiebreak.models.ideal.load_ideal({path!r})")
        return Made(counts, learned.dropped, notes, {"head": path, "last": done.last})
    trained = sum(parameter.numel() for parameter in loaded.model.parameters() if parameter.requires_grad)
    model = _plain(job, stage, loaded)
    reward = learned.centre is not None
    if learned.centre is not None and is_scalar(model.form):
        notes.append(_centre(job, stage, model, learned.centre))
    card = _card(job, stage, model, reward=reward)
    save_model(model.model, model.tokenizer, job.home / "model", form=model.form, card=card)
    checkpoint.discard(job.home / "checkpoint")
    (job.home / "best.safetensors").unlink(missing_ok=True)
    size = sum(parameter.numel() for parameter in model.model.parameters())
    counts["parameters"] = size
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
        save_adapter(
            loaded.model,
            loaded.tokenizer,
            job.home / "adapter",
            base=str(job.model(stage.model)[1]),
            form=loaded.form,
        )
        if stage.adapter.kind == "qlora":
            return loaded._replace(model=merged(load_adapter(job.home / "adapter").model))
    return loaded._replace(model=merged(loaded.model))


def _start(job: Job, stage: Stage, aim: Aim | None, *, texts: Sequence[str]) -> Loaded:
    head: dict[str, Any] = (
        {} if aim is None or aim.form is None else {"labels": aim.outputs, "form": aim.form, "seed": job.recipe.seed}
    )
    if isinstance(stage.model, dict):
        if not texts:
            raise InputError(
                f"{job.name} has no text to train a tokenizer on; the rows it should learn from are empty."
            )
        tokenizer = train_tokenizer(texts, vocabulary=stage.vocabulary)
        if head:
            return start_reward(stage.model, tokenizer=tokenizer, device=job.recipe.device, **head)
        return build_causal(stage.model, tokenizer=tokenizer, seed=job.recipe.seed, device=job.recipe.device)
    _, where = job.model(stage.model)
    if stage.method in READS_MARKS:
        return load_reward(where, device=job.recipe.device)
    if head:
        return start_reward(where, device=job.recipe.device, **head)
    quantized = stage.adapter is not None and stage.adapter.kind == "qlora"
    return load_causal(where, device=job.recipe.device, **(quantized_settings() if quantized else {}))


def _card(job: Job, stage: Stage, loaded: Loaded, *, reward: bool) -> str:
    """Return the model card of what ``stage`` trained."""
    row = METHODS[stage.method]
    base = stage.model if isinstance(stage.model, str) else str(stage.model.get("model_type", ""))
    return model_card(
        job.name.partition(".")[2],
        loaded.form if reward else None,
        base,
        stage.method,
        does=row.does,
        formula=row.formula,
        paper=row.paper,
        eos=ending(loaded.tokenizer),
        plain=not reward or loads_plainly(loaded.model, loaded.form),
    )


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
