"""The online loop: the policy answers, rewards score the answers, and the policy learns from its own.

PPO, RLOO, GRPO and their kin are rows of one table; the loop is the same: draw, score, credit, update. Draws, batches
and updates depend on the seed and the step alone, so a killed run that resumes ends with the same weights, bit for bit,
on one machine with one thread count.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tiebreak.models.adapters import Adapter, adapt
from tiebreak.models.forest import Tree
from tiebreak.models.heads import is_encoder
from tiebreak.models.heap import keep_freed_memory
from tiebreak.records import InputError, Progress, quiet
from tiebreak.rewards.combine import Rewards
from tiebreak.train import checkpoint
from tiebreak.train.actor import Actor, Batch
from tiebreak.train.best import FRESH, Best
from tiebreak.train.collect import Collector, Judged, shown
from tiebreak.train.credit import credit
from tiebreak.train.memory import is_out_of_memory
from tiebreak.train.offline import Trained, Watch
from tiebreak.train.optimizers import Ema
from tiebreak.train.order import Facts, Order
from tiebreak.train.pace import Pace
from tiebreak.train.policy_gradient.advantages import LEARNS_VALUES
from tiebreak.train.policy_gradient.kl import Leash
from tiebreak.train.policy_gradient.settle import settle
from tiebreak.train.policy_gradient.switches import Bounds, policy_gradient
from tiebreak.train.reference import Follower, Reference, frozen_copy
from tiebreak.train.rollouts import Asked, Local, Rollout, Source, minibatches
from tiebreak.train.rows import Example, mark_of
from tiebreak.train.track import Track
from tiebreak.train.trackers import opened
from tiebreak.train.update import Compute, Learned

SHOWN = 8
"""Samples kept of every logged step."""

NARROW_GAP = 0.2
"""Root mean square by which policy and reference may differ at the start: what bfloat16 leaves of equal log-probs."""

GAP = 0.02
"""Root mean square by which log-probs kept from sampling may differ from the trainer's in float32."""


def learn(  # noqa: D417 - fit tells the rest
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[Asked],
    rewards: Rewards,
    knobs: Mapping[str, Any],
    pace: Pace,
    rollout: Rollout,
    *,
    seed: int,
    folder: Path,
    critic: nn.Module | None = None,
    held_out: Sequence[Asked] = (),
    watch: Watch | None = None,
    compute: Compute | None = None,
    reference: Reference | None = None,
    adapter: Adapter | None = None,
    source: Source | None = None,
    optimizer: str = "adamw",
    optimizer_knobs: Mapping[str, Any] | None = None,
    ema: float = 0.0,
    progress: Progress = quiet,
) -> Trained:
    """Train ``model`` in place to answer ``asked`` so that ``rewards`` rise; a step is a batch of rollouts.

    Args:
        model: the start, a causal model, which is the reference too; a resumed run gets the same one again.
        tokenizer: of the model.
        asked: prompts with their token ids.
        rewards: what scores completions.
        knobs: switches and scalars of the method, see PLAIN; what is not given is its default there.
        pace: epochs, prompts a step, learning rate over all updates.
        rollout: completions a prompt, their temperature and length, updates a step.
        seed: orders the prompts and draws completions, minibatches and an adapter.
        folder: holds ``metrics.jsonl``, ``samples.jsonl`` and ``checkpoint/``.
        critic: the value net of advantages that learn one: a classifier with one label, or a layer on the policy.
        held_out: prompts that are answered greedily and scored when ``watch`` says so and at the end.
        reference: whether it follows the policy.
        source: who draws; the policy in this process when missing.

    Raises:
        InputError: what cannot be learned from, another run's checkpoint, numbers that are not finite, or no memory.
    """
    how, watch, follow = compute or Compute(), watch or Watch(), reference or Reference()
    whole = settle(knobs, draws=rollout.n)
    _check(asked, held_out, whole, watch, follow, critic, model.get_input_embeddings().num_embeddings)
    made = {"optimizer": optimizer, **(optimizer_knobs or {}), "ema": ema, "seed": seed, "adapter": repr(adapter)}
    made |= {"rewards": rewards.mark, "sync_every": follow.sync_every, "sync_mix": follow.sync_mix, **watch.chooses}
    rows = (*asked, *(held_out if watch.chooses else ()))
    run = _mark(model, critic, rows, [whole, asdict(pace), made], rollout, how)
    beside = _reference(model, adapter, follow if whole["kl"] else None, seed)
    chosen: dict[str, Any] = {"optimizer": optimizer, "optimizer_knobs": optimizer_knobs, "kl": whole["kl"]}
    actor = Actor(model, pace, how, critic=critic, reference=beside, temperature=rollout.temperature, **chosen)
    drawing = source or Local(model, tokenizer, rollout, seed=seed, precision=how.precision)
    collector = Collector(drawing, rewards, tokenizer, asked, rollout, whole)
    loop = _Loop(actor, collector, held_out, whole, watch, folder, run, seed)
    with actor.ready():
        return loop.carry(ema, follow).go(progress)


def _check(
    asked: Sequence[Asked],
    held_out: Sequence[Asked],
    knobs: Mapping[str, Any],
    watch: Watch,
    follow: Reference,
    critic: nn.Module | None,
    vocabulary: int,
) -> None:
    if not asked:
        raise InputError("There are no prompts to learn from: none was given or every one was dropped.")
    if (watch.patience or watch.keep == "best") and not held_out:
        raise InputError("keep: best and patience need held-out prompts; set held_out above 0.")
    if (knobs["advantage"] in LEARNS_VALUES) != (critic is not None):
        needs = "needs a value net" if critic is None else "learns no values"
        raise InputError(f"advantage: {knobs['advantage']} {needs}; give value or another method.")
    if isinstance(critic, PreTrainedModel):
        _check_critic(critic, vocabulary)
    if follow.sync_every and not knobs["kl"]:
        raise InputError("A reference that follows the policy needs a kl to be measured by; set kl, or sync_every 0.")


def _check_critic(critic: PreTrainedModel, vocabulary: int) -> None:
    """Refuse a net that cannot say what each token of the policy is worth."""
    name = type(critic).__name__
    if is_encoder(critic) or not isinstance(getattr(critic, "score", None), nn.Linear):
        raise InputError(
            f"{name} has no value before each token; let the value net start from a causal model: set value."
        )
    if critic.get_input_embeddings().num_embeddings < vocabulary:
        raise InputError(
            f"The value net ({name}) knows fewer tokens than the policy, so it has another tokenizer; set value to a "
            "model with the policy's, or to shared."
        )


def _reference(
    model: PreTrainedModel, adapter: Adapter | None, follow: Reference | None, seed: int
) -> PreTrainedModel | None:
    """Put the adapter into ``model``; return the frozen model it is compared with, None for its base or for none."""
    if adapter is not None:
        adapt(model, adapter, seed=seed)
    return None if follow is None else frozen_copy(model, follow)


def _mark(
    model: PreTrainedModel,
    critic: nn.Module | None,
    asked: Sequence[Asked],
    settings: Sequence[Mapping[str, Any]],
    rollout: Rollout,
    compute: Compute,
) -> str:
    """Return a hash of all that decides the result but the rewards' code; how a batch is split or kept does not."""
    drawn = {name: value for name, value in asdict(rollout).items() if name != "batch"}
    rows = [Example(Tree(one.ids, ()), label=one.prompt.id) for one in asked]
    nets = nn.ModuleList([model] if critic is None else [model, critic])
    return mark_of(nets, rows, *settings, drawn, {"precision": compute.precision})


@dataclass
class _Loop:
    """The nets with what they learn from, and their state on disk."""

    actor: Actor
    collector: Collector
    held_out: Sequence[Asked]
    knobs: Mapping[str, Any]
    watch: Watch
    folder: Path
    run: str
    seed: int

    def __post_init__(self) -> None:
        pace, knobs, asked = self.actor.pace, self.knobs, self.collector.asked
        facts = Facts(
            tokens=[len(one.ids) for one in asked],
            labels=[one.prompt.source for one in asked],
            difficulty=[0.0] * len(asked),
        )
        size = min(pace.batch, len(asked))
        self.order = Order(facts, batch=size, seed=self.seed, by=pace.order, mixture=pace.mixture)
        self.steps = self.order.steps(pace.epochs)
        self.rollout = self.collector.rollout
        self.leash = Leash(knobs["beta"], knobs["kl_target"], knobs["kl_horizon"])
        names = ("ratio", "clip", "aggregation", "kl", "kl_in", "entropy", "value", "value_clip")
        self.loss = partial(
            policy_gradient,
            **{name: knobs[name] for name in names},
            bounds=Bounds(knobs["low"], knobs["high"], knobs["most"], knobs["scale"]),
            constant=float(self.rollout.max_new_tokens),
        )
        own, narrow = self.collector.source.exact, self.actor.compute.precision != "float32"
        self.exact = own and not narrow
        self.looks_back = not own or (narrow and (self.rollout.updates > 1 or knobs["kl_in"] == "reward"))

    def carry(self, ema: float, follow: Reference) -> _Loop:
        """Take along from step to step what ``ema`` and ``follow`` ask for."""
        nets, beside, watch = self.actor.nets, self.actor.reference, self.watch
        self.average = Ema(nets, ema) if ema else None
        self.follower = Follower(beside, follow) if beside is not None and follow.sync_every else None
        self.best = Best(nets, self.folder, keep=watch.keep, patience=watch.patience, average=self.average)
        return self

    def go(self, progress: Progress) -> Trained:
        """Take all steps, or those a checkpoint has left."""
        started = time.monotonic()
        if self.actor.policy.device.type == "cpu":
            keep_freed_memory()
        if self.knobs["advantage"] == "optimal":
            draws, beta = self.knobs["optimal_draws"], self.knobs["optimal_beta"]
            path, batch = self.folder / "optimal.jsonl", self.actor.pace.batch
            self.collector.find_optimal(path, run=self.run, beta=beta, draws=draws, batch=batch, progress=progress)
        state = self._restore()
        settings = {**self.knobs, **asdict(self.actor.pace), **asdict(self.rollout)}
        after = state["step"]
        trackers = opened(self.watch.trackers, self.folder, run=self.run, settings=settings, after=after)
        with (
            Track(self.folder / "metrics.jsonl", after=after, trackers=trackers) as track,
            Track(self.folder / "samples.jsonl", after=after) as samples,
        ):
            while state["step"] < self.steps and not state["stopped"]:
                self._step(state, track, samples, progress)
                if state["step"] % self.watch.checkpoint_every == 0 and state["step"] < self.steps:
                    self._save(state)
            if "last" not in state:
                self._finish(state, track)
                self._save(state)
        kept = {name: state[name] for name in ("tokens", "last", "stopped", "faults")}
        return Trained(steps=state["step"], seconds=time.monotonic() - started, best=state["best_step"], **kept)

    def _step(self, state: dict[str, Any], track: Track, samples: Track, progress: Progress) -> None:
        """Draw, score, credit, update: one batch of rollouts."""
        number, watch, collector = state["step"], self.watch, self.collector
        collector.clock = dict.fromkeys(("time/sample", "time/score", "time/update"), 0.0)
        try:
            batches = partial(self._rows, number)
            judged = collector.collect(batches, str(number), number / self.steps)
            with collector.timed("time/score"):
                batch, numbers = self._credit(judged)
                if number == 0 and "reference" in batch.flat and "old" in batch.flat:
                    _assert_start(batch.flat["old"] - batch.flat["reference"])
            with collector.timed("time/update"):
                numbers |= self._learn(batch, number, state)
        except (RuntimeError, MemoryError, OSError) as error:
            if not is_out_of_memory(error):
                raise
            raise _out_of_memory(self.actor.compute) from error
        drawn = sum(len(one.scores) for one in judged)
        if "objective/kl" in numbers:
            self.leash.adapt(numbers["objective/kl"], drawn)
        if self.follower is not None:
            self.follower.follow(self.actor.policy, number + 1)
        state |= {"step": number + 1, "episodes": state["episodes"] + drawn, "numbers": numbers}
        if (number + 1) % watch.log_every == 0 or number + 1 in (1, self.steps):
            epoch = (number + 1) / self.steps * self.actor.pace.epochs
            track.write(number + 1, {"epoch": epoch, "episodes": state["episodes"], **numbers, **collector.clock})
            for row in shown(judged, SHOWN):
                samples.write(number + 1, row)
        due = watch.evaluate_every and (number + 1) % watch.evaluate_every == 0
        if due and self.held_out and number + 1 < self.steps:
            self._judge(state, track)
        told = ("objective/scores", "objective/kl", "completions/mean_length")
        progress(number + 1, self.steps, {name.rpartition("/")[2]: numbers[name] for name in told if name in numbers})

    def _rows(self, number: int, attempt: int) -> list[int]:
        """Return the prompts of an attempt at a step; those of later attempts are of later epochs of the order."""
        return self.order.rows(number + attempt * self.steps)

    def _credit(self, judged: Sequence[Judged]) -> tuple[Batch, dict[str, float]]:
        looked = self.actor.look([one.rolled.tree for one in judged], old=self.looks_back)
        batch, numbers = credit(
            judged,
            looked,
            knobs=self.knobs,
            beta=self.leash.beta,
            shape=self.collector.shape,
            own=self.collector.source.exact,
            exact=self.exact,
            device=self.actor.policy.device,
        )
        return batch, numbers | _by_term(judged, "rewards/") | {"objective/kl_coef": self.leash.beta}

    def _learn(self, batch: Batch, number: int, state: dict[str, Any]) -> dict[str, float]:
        """Take the updates of one batch and return the mean of their numbers."""
        how, rounds = self.rollout, []
        parts = min(how.minibatches, len(batch.trees))
        loss = partial(self.loss, beta=self.leash.beta)
        for update, rows in enumerate(minibatches(len(batch.trees), how, self.seed, number)):
            step = partial(self.actor.gradient, batch, rows, loss, minibatches=parts)
            if self.exact and not update:
                step = partial(_near, step)
            done = self.actor.take(number * how.updates + update, self.steps * how.updates, step)
            rounds.append(done.numbers)
            state["tokens"] += done.tokens
            if self.average is not None:
                self.average.update(self.actor.nets)
        return {name: math.fsum(found) / len(found) for name, found in _by_name(rounds).items()}

    def _judge(self, state: dict[str, Any], track: Track) -> None:
        """Answer the held-out prompts greedily, score the answers and note how good they are."""
        done = state["step"] / self.steps
        with self.best.weights():
            judged = self.collector.greedy(self.held_out, f"held out {state['step']}", done)
        scores = [score for one in judged for score in one.scores if score is not None]
        found = {"eval/objective/scores": math.fsum(scores) / len(scores)} if scores else {}
        lengths = [len(branch) for one in judged for branch in one.rolled.tree.branches]
        found |= _by_term(judged, "eval/rewards/") | {"eval/completions/mean_length": math.fsum(lengths) / len(lengths)}
        track.write(state["step"], found)
        self.best.judge(state, found, -found.get("eval/objective/scores", -math.inf))

    def _finish(self, state: dict[str, Any], track: Track) -> None:
        """Evaluate at the end, and leave in the nets what the training was to give."""
        if self.held_out and not state["stopped"]:
            self._judge(state, track)
            state["stopped"] = False
        state["last"] = {**state["numbers"], **self.best.finish(state)}

    def _extras(self) -> dict[str, checkpoint.Stateful]:
        carried = {"average": self.average, "reference": self.follower}
        return {name: extra for name, extra in carried.items() if extra is not None}

    def _restore(self) -> dict[str, Any]:
        at = self.folder / "checkpoint"
        state = checkpoint.load(at, self.actor.nets, self.actor.optimizer, run=self.run, extras=self._extras())
        if state is None:
            return {"run": self.run, **dict.fromkeys(("step", "tokens", "episodes"), 0), **FRESH, "faults": {}}
        self.leash.beta, self.collector.faults = state["beta"], state["faults"]
        self.collector.rewards.load(state["rewards"])
        return state

    def _save(self, state: dict[str, Any]) -> None:
        collector = self.collector
        state |= {"beta": self.leash.beta, "rewards": collector.rewards.state(), "faults": collector.faults}
        checkpoint.save(self.folder / "checkpoint", self.actor.nets, self.actor.optimizer, state, self._extras())


def _by_term(judged: Sequence[Judged], prefix: str) -> dict[str, float]:
    """Return the mean of each term of the reward over the completions it could score."""
    terms = {name: [v for one in judged for v in one.terms[name] if v is not None] for name in judged[0].terms}
    return {f"{prefix}{name}": math.fsum(values) / len(values) for name, values in terms.items() if values}


def _assert_start(distance: Tensor) -> None:
    """Refuse a reference that is not the start: other weights, dropout on, another precision."""
    gap = float(distance.square().mean().sqrt())
    if gap > NARROW_GAP:
        raise InputError(
            f"Before any update policy and reference differ by {gap:.3f} nats a token (root mean square, expected 0): "
            "dropout on, another precision, or not the same weights."
        )


def _by_name(rounds: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    names = {name: None for one in rounds for name in one}
    return {name: [one[name] for one in rounds if name in one] for name in names}


def _near(step: Callable[[], Learned]) -> Learned:
    """Take the gradient of the first update, in which log-probs kept from sampling have to be the trainer's."""
    learned = step()
    gap = math.sqrt(2 * learned.numbers["policy/approx_kl"])
    if gap > GAP:
        raise InputError(
            f"Log-probs kept from sampling differ from the trainer's by {gap:.3f} (root mean square; expected below "
            f"{GAP}), so ratios would be wrong; the model computes something else while sampling: use another model."
        )
    return learned._replace(numbers=learned.numbers | {"sampling/gap": gap})


def _out_of_memory(compute: Compute) -> InputError:
    now = f"below {compute.tokens}" if compute.tokens else "to a number, such as 4096"
    return InputError(
        f"Memory ran out in a step of policy gradient; set tokens {now}, which changes no result, lower rollout.batch, "
        "or set checkpointing: true. The last checkpoint is kept."
    )
