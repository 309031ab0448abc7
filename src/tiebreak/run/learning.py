"""The train section: texts to trees, trees to a trained model in a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from tiebreak.models.adapter_folder import load_adapter, save_adapter
from tiebreak.models.adapters import Adapter, merged, quantized_settings
from tiebreak.models.encode import Cut, encode_dialogue, encode_tree
from tiebreak.models.forest import Tree
from tiebreak.models.load import Loaded, build_causal, load_causal, save_model, start_reward, train_tokenizer
from tiebreak.recipe import Stage, pace_of, row_knobs
from tiebreak.records import InputError, Pair, Prompt, Response, content_id, to_dict
from tiebreak.rewards.model import centre_on
from tiebreak.run.folder import read_pairs, write_json
from tiebreak.run.job import Job, Made
from tiebreak.run.plan import rows_of
from tiebreak.train import checkpoint
from tiebreak.train.methods import loop_of
from tiebreak.train.objectives.presets import OBJECTIVES
from tiebreak.train.offline import Compute, Example, Pace, Reference, Trained, Watch, fit, settle

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
    loss = OBJECTIVES[stage.method].load()
    knobs = settle(loss, row_knobs(OBJECTIVES[stage.method], stage.knobs, job.name))
    rows = _Rows(job, stage, knobs.get("target", ""))
    head = knobs["score"] == "head"
    loaded = _start(job, stage, head=head, texts=rows.texts)
    taught, held_out, counts = rows.encode(loaded)
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
    return Learned(loaded, done, counts, rows.dropped, rows.notes, [row.tree for row in taught] if head else None)


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
        "reference": Reference(**stage.reference.model_dump()),
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


class _Rows:
    """The rows of one stage as records, split into those to learn from and those held out, and why others went."""

    def __init__(self, job: Job, stage: Stage, target: str) -> None:
        self.stage = stage
        self.target = target
        self.dropped: dict[str, int] = {}
        self.notes: list[str] = []
        kind = rows_of(stage)
        if kind in ("pairs", "chosen"):
            self.rows, self.held = self._pairs(job)
            if kind == "chosen":
                self.rows, self.held = (
                    [(p, answers[:1], 1.0, w) for p, answers, _, w in r] for r in (self.rows, self.held)
                )
        else:
            self.rows, self.held = self._written(job, kind), []
        self.rows = self.rows[: stage.limit]

    @property
    def texts(self) -> list[str]:
        """All texts to learn from, for a tokenizer that has to be trained."""
        return [text for prompt, answers, *_ in self.rows for text in (prompt.plain, *(a.text for a in answers))]

    def _written(self, job: Job, kind: str) -> list[tuple[Prompt, list[Response], float, float]]:
        prompts = job.prompts("train")
        if kind == "references":
            known = [p for p in prompts if p.reference]
            if len(known) < len(prompts):
                self.dropped["no reference answer"] = len(prompts) - len(known)
            return [(p, [Response(prompt_id=p.id, text=p.reference or "")], 1.0, 1.0) for p in known]
        by_id = {prompt.id: prompt for prompt in prompts}
        written = job.ledger.responses(job.set_of("import", "responses"))
        return [(by_id[r.prompt_id], [r], 1.0, 1.0) for r in written if r.prompt_id in by_id]

    def _pairs(self, job: Job) -> tuple[list[Any], list[Any]]:
        pairs = read_pairs(job.project / "curate" / "pairs.jsonl")
        prompts = {p.id: p for p in job.ledger.prompts(sorted({pair.prompt_id for pair in pairs}))}
        ids = sorted({side for pair in pairs for side in (pair.chosen_id, pair.rejected_id)})
        texts = {response.id: response for response in job.ledger.responses(ids)}
        usable = [pair for pair in pairs if pair.p > 0.5 or self.target != "hard"]
        if len(usable) < len(pairs):
            self.dropped["ties, which a hard target cannot use"] = len(pairs) - len(usable)
        taught, held = held_out(usable, prompts, self._tested(job), self.stage.held_out, job.recipe.seed)

        def rows(some: Sequence[Pair]) -> list[Any]:
            return [(prompts[p.prompt_id], [texts[p.chosen_id], texts[p.rejected_id]], p.p, p.weight) for p in some]

        write_json(job.home / "held_out.json", [to_dict(pair) for pair in held])
        return rows(taught), rows(held)

    def _tested(self, job: Job) -> set[str]:
        if "import" not in job.before or "test" not in job.before["import"]["outputs"]["splits"]:
            return set()
        return set(job.set_of("import", "prompts/test"))

    def encode(self, loaded: Loaded) -> tuple[list[Example], list[Example], dict[str, int | float]]:
        """Turn the rows into trees; a row whose completion does not fit is dropped whole and counted."""
        cut = 0
        out: list[list[Example]] = []
        for rows in (self.rows, self.held):
            examples = []
            for prompt, answers, p, weight in rows:
                encode = self._dialogue if self.stage.loss_on == "assistant" else encode_tree
                tree, was_cut = encode(loaded.tokenizer, prompt, answers, window=self.stage.window, cut=self.stage.cut)
                cut += was_cut
                if tree is None:
                    reason = "completion longer than the window"
                    self.dropped[reason] = self.dropped.get(reason, 0) + 1
                elif len(tree.branches) == 2 and tree.branches[0] == tree.branches[1]:
                    reason = "equal completions"
                    self.dropped[reason] = self.dropped.get(reason, 0) + 1
                else:
                    learned = self._whole(tree) if self.stage.loss_on == "all" else tree
                    examples.append(Example(learned, p, weight, prompt.source))
            out.append(examples)
        counts: dict[str, int | float] = {"rows": len(out[0]), "held out": len(out[1]), "prompts cut": cut}
        return out[0], out[1], counts

    def _dialogue(
        self, tokenizer: Any, prompt: Prompt, answers: Sequence[Response], *, window: int, cut: Cut
    ) -> tuple[Tree | None, bool]:
        return encode_dialogue(tokenizer, prompt, answers[0], window=window, cut=cut)

    def _whole(self, tree: Tree) -> Tree:
        """With the loss on all tokens the prompt's first token is the trunk and the rest one branch."""
        return Tree(tree.trunk[:1], (tree.trunk[1:] + tree.branches[0],))


def held_out(
    pairs: Sequence[Pair], prompts: dict[str, Prompt], tested: set[str], share: float, seed: int
) -> tuple[list[Pair], list[Pair]]:
    """Split pairs into those to learn from and those held out, whole prompt groups at a time.

    Pairs of the test prompts are the held-out ones; where there are none, ``share`` of the prompt groups is drawn.
    """
    if not any(pair.prompt_id in tested for pair in pairs):
        groups = sorted({prompts[pair.prompt_id].group for pair in pairs}, key=lambda g: content_id("held", seed, g))
        away = set(groups[: round(share * len(groups))])
        tested = {pair.prompt_id for pair in pairs if prompts[pair.prompt_id].group in away}
    learn = [pair for pair in pairs if pair.prompt_id not in tested]
    return learn, [pair for pair in pairs if pair.prompt_id in tested]


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
