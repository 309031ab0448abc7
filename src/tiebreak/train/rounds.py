"""The offline loop in rounds: the policy answers, a rule chooses among its answers, and the policy learns from those.

Iterative DPO makes pairs of the answers, RAFT imitates the best; all else is :func:`tiebreak.train.offline.fit`. Draws,
choices and updates depend on the seed and the round alone, so a killed run that resumes ends with the same weights, bit
for bit, on one machine with one thread count. On disk are the weights after the last finished round, the checkpoint of
the round at work, and of each round its draws and metrics.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tiebreak.models.adapters import Adapter, adapt
from tiebreak.models.forest import Tree
from tiebreak.records import InputError, Progress, quiet
from tiebreak.registry import nearest
from tiebreak.rewards.combine import Rewards
from tiebreak.sample.choose import ALIKE, PAIRS, SINGLES, check_rule, coverage, pair, singles
from tiebreak.train import checkpoint
from tiebreak.train.best import FRESH, Best
from tiebreak.train.collect import Collector
from tiebreak.train.draws import Answers, answers_of, averages, draw, mean, samples
from tiebreak.train.objectives.presets import OFFLINE
from tiebreak.train.offline import Trained, Watch, fit
from tiebreak.train.offline import settle as settle_objective
from tiebreak.train.pace import Pace
from tiebreak.train.reference import Reference, frozen_copy
from tiebreak.train.rollouts import Asked, Local, Rollout
from tiebreak.train.rows import Example, Loss, mark_of
from tiebreak.train.track import Track
from tiebreak.train.trackers import opened
from tiebreak.train.update import Compute, Update

SHOWN = 8
"""Samples kept of every round."""

SHARE = 0.2
"""Share of all answers that the rule ``top`` keeps, as published (Dong et al. 2023)."""

COMPARED = ("previous", "start")
"""The reference of a round: the policy it began with, or the one the first round began with."""

KNOBS = ("objective", "rounds", "select", "compared_with", "beta", "alpha")


class Way(NamedTuple):
    """What each round does: the rule that chooses, and the objective with its knobs.

    ``share`` is what the rule ``top`` keeps; ``pairs`` says that the objective learns from pairs, ``compares`` that it
    has a reference, ``stays`` that this is the start in every round.
    """

    rounds: int
    select: str
    share: float
    loss: Loss
    knobs: Mapping[str, Any]
    pairs: bool
    compares: bool
    stays: bool


def repeat(
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
    held_out: Sequence[Asked] = (),
    watch: Watch | None = None,
    compute: Compute | None = None,
    reference: Reference | None = None,
    adapter: Adapter | None = None,
    optimizer: str = "adamw",
    optimizer_knobs: Mapping[str, Any] | None = None,
    ema: float = 0.0,
    progress: Progress = quiet,
) -> Trained:
    """Train ``model`` in place, in rounds, on those of its own answers to ``asked`` that ``rewards`` favour.

    What is not said here is as in :func:`tiebreak.train.online.learn`. ``knobs`` are those of a row of ROUNDS. Every
    round answers all prompts ``rollout.n`` times and is a training of its own, with ``pace`` from its beginning, a
    fresh optimizer and its own average of the weights (``ema``). ``held_out`` prompts are answered after each round;
    in ``watch`` evaluations and patience count rounds (``evaluate_every`` of 0 is each round), and so does
    ``metrics.jsonl``, where ``reference/round`` names the round whose start was the reference: with an adapter the
    first one, for the base is the reference. ``folder`` holds ``round-K/`` with the draws and metrics of each round.
    ``progress`` counts prompts, each once when it is answered and once when it is learned from, in every round.

    Raises:
        InputError: no prompts, knobs that do not go together, another run's checkpoint or draws, rewards that say
            nothing, a first round with nothing to choose, or what :func:`~tiebreak.train.offline.fit` refuses.
    """
    watch, follow, computing = watch or Watch(), reference or Reference(), compute or Compute()
    way = settle(knobs, rollout, follow, adapter)
    _check(asked, held_out, watch)
    made: dict[str, Any] = {"optimizer": optimizer, "optimizer_knobs": optimizer_knobs, "ema": ema}
    told = made | watch.chooses | {"seed": seed, "adapter": repr(adapter)}
    run = _mark(model, asked, way, pace, rollout, computing, follow, told)
    _ready(model, adapter, computing, seed)
    start = frozen_copy(model, Reference()) if way.stays and adapter is None else None
    made |= {"compute": computing, "reference": follow, "against": start, "loss": way.loss}
    return _Loop(
        model=model,
        collector=_collector(model, tokenizer, asked, rewards, rollout, seed, computing),
        held_out=held_out,
        way=way,
        train=partial(fit, model, knobs=way.knobs, pace=pace, watch=_inner(watch), **made),
        settings={**asdict(pace), **asdict(rollout), **way.knobs, **knobs},
        watch=watch,
        folder=folder,
        run=run,
        seed=seed,
    ).go(progress)


def settle(knobs: Mapping[str, Any], rollout: Rollout, follow: Reference, adapter: Adapter | None) -> Way:
    """Return what ``knobs`` ask for and refuse those that do not go together.

    Raises:
        InputError: an unknown knob, objective or rule, or one without effect.
    """
    for name in knobs:
        if name not in KNOBS:
            raise InputError(f"Rounds have no knob {name!r}; they have {', '.join(KNOBS)}.{nearest(name, KNOBS)}")
    loss, whole = _objective(str(knobs.get("objective", "dpo")), knobs.get("beta"))
    rounds, pairs = knobs.get("rounds", 3), bool(whole["score"])
    compares = whole["score"] not in ("", "log_prob")
    if rounds < 1 or rollout.updates > 1:
        raise InputError(
            f"rounds is {rounds} and a rollout has {rollout.updates} updates; expected 1 round or more, and repeats "
            "and minibatches of 1: epochs and batch say how often a round's rows are learned from."
        )
    stays = _stays(str(knobs.get("compared_with", "previous")), compares, adapter)
    if follow.sync_every and (stays or not compares):
        raise InputError("A reference that follows the policy needs compared_with: previous; set sync_every to 0.")
    select = str(knobs.get("select", "best_worst" if pairs else "local"))
    share = _share(select, knobs.get("alpha"), pairs=pairs, n=rollout.n)
    return Way(rounds, select, share, loss, whole, pairs, compares, stays)


def _objective(name: str, beta: Any) -> tuple[Loss, dict[str, Any]]:
    """Return the loss of each round and all its knobs."""
    row = OFFLINE[name]
    loss: Loss = row.load()
    if beta is not None and (isinstance(beta, bool) or not isinstance(beta, int | float) or not beta > 0):
        raise InputError(f"beta is {beta!r}; expected a number above 0, or leave it out for the objective's own.")
    whole = settle_objective(loss, row.settle({}, where=name) | ({} if beta is None else {"beta": beta}))
    if whole["score"] == "head":
        raise InputError(f"objective is {name!r}, which trains a reward head; expected one that trains a policy.")
    if beta is not None and not whole["score"]:
        raise InputError(f"beta has no effect on {name}, which learns from single answers; leave it out.")
    return loss, whole


def _stays(compared: str, compares: bool, adapter: Adapter | None) -> bool:
    """Whether the reference is the start in every round."""
    check_rule(compared, COMPARED, where="compared_with")
    if compares and adapter is not None and compared == "previous":
        raise InputError(
            "Under an adapter the base is the reference in every round; write compared_with: start, or leave out "
            "adapter to compare with the policy that a round began with."
        )
    if compared == "start" and not compares:
        raise InputError("The objective has no reference to compare with; leave out compared_with.")
    return compared == "start"


def _share(select: str, alpha: Any, *, pairs: bool, n: int) -> float:
    """Check the rule that chooses, and return the share of answers that ``top`` keeps."""
    fits, other = (tuple(PAIRS), SINGLES) if pairs else (SINGLES, tuple(PAIRS))
    if select in other:
        what = "single answers and the objective learns from pairs" if pairs else "pairs and the objective imitates"
        raise InputError(f"select: {select} chooses {what}; expected {', '.join(fits)}.")
    check_rule(select, fits)
    if n < 2 and select != "top":
        raise InputError(f"select: {select} chooses among answers to one prompt; set rollout.n to 2 or more.")
    if alpha is not None and select != "top":
        raise InputError(f"alpha is the share that select: top keeps, and select is {select}; leave it out.")
    if alpha is not None and not (isinstance(alpha, int | float) and 0 < alpha <= 1):
        raise InputError(f"alpha is {alpha!r}; expected a share of the answers to keep, above 0 and up to 1.")
    return SHARE if alpha is None else float(alpha)


def _check(asked: Sequence[Asked], held_out: Sequence[Asked], watch: Watch) -> None:
    if not asked:
        raise InputError("There are no prompts to learn from: none was given or every one was dropped.")
    if (watch.patience or watch.keep == "best") and not held_out:
        raise InputError("keep: best and patience need held-out prompts; set held_out above 0.")


def _mark(
    model: PreTrainedModel,
    asked: Sequence[Asked],
    way: Way,
    pace: Pace,
    rollout: Rollout,
    compute: Compute,
    follow: Reference,
    made: Mapping[str, Any],
) -> str:
    """Return a hash of all that decides the result but the rewards' code; how a batch is split does not."""
    computed = {name: value for name, value in asdict(compute).items() if name != "tokens"}
    chosen = {**way._asdict(), "loss": f"{way.loss.__module__}:{way.loss.__qualname__}"}
    rows = [Example(Tree(one.ids, ()), label=one.prompt.id) for one in asked]
    return mark_of(model, rows, chosen, asdict(pace), asdict(rollout), asdict(follow), {**made, **computed})


def _ready(model: PreTrainedModel, adapter: Adapter | None, compute: Compute, seed: int) -> None:
    """Add the adapter and round the weights as each round's training would, so that the first draws see them so."""
    if adapter is not None:
        adapt(model, adapter, seed=seed)
    if compute.precision == "bfloat16_weights":
        Update({"model": model}, Pace(), compute)


def _inner(watch: Watch) -> Watch:
    """Return how a round's training is watched: it evaluates nothing, and its metrics are a file of its own."""
    return replace(watch, evaluate_every=0, keep="last", patience=0, trackers=())


def _collector(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[Asked],
    rewards: Rewards,
    rollout: Rollout,
    seed: int,
    compute: Compute,
) -> Collector:
    source = Local(model, tokenizer, rollout, seed=seed, precision=compute.precision)
    drawing: dict[str, Any] = {"source": source, "tokenizer": tokenizer, "asked": asked, "rollout": rollout}
    return Collector(rewards=rewards, **drawing)


@dataclass(kw_only=True)
class _Loop:
    """The policy with what it answers and how it learns, and the state on disk."""

    model: PreTrainedModel
    collector: Collector
    held_out: Sequence[Asked]
    way: Way
    train: Callable[..., Trained]
    settings: Mapping[str, Any]
    watch: Watch
    folder: Path
    run: str
    seed: int

    def go(self, progress: Progress) -> Trained:
        """Go through all rounds, or those a checkpoint has left."""
        started, watch = time.monotonic(), self.watch
        self.best = Best(self.model, self.folder, keep=watch.keep, patience=watch.patience, average=None)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.bare = torch.optim.SGD(trained)  # between rounds no optimizer remembers anything
        state = self._restore()
        after = state["round"]
        trackers = opened(watch.trackers, self.folder, run=self.run, settings=self.settings, after=after)
        with (
            Track(self.folder / "metrics.jsonl", after=after, trackers=trackers) as track,
            Track(self.folder / "samples.jsonl", after=after) as shown,
        ):
            while state["round"] < self.way.rounds and not state["stopped"]:
                self._round(state, track, shown, progress)
                self._save(state)
        if "last" not in state:
            state["last"] = {**state["numbers"], **self.best.finish(state)}
            self._save(state)
        kept = {name: state[name] for name in ("tokens", "last", "stopped", "faults")}
        return Trained(steps=state["step"], seconds=time.monotonic() - started, best=state["best_step"], **kept)

    def _round(self, state: dict[str, Any], track: Track, shown: Track, progress: Progress) -> None:
        """Draw, score, choose, train, evaluate."""
        number = state["round"] + 1
        self.collector.clock = dict.fromkeys(("time/sample", "time/score", "time/update"), 0.0)
        answers = self._draw(number, progress)
        rows, numbers = self._choose(answers, number)
        if rows:
            home, told = self.folder / f"round-{number}", self._told(number, 1, progress)
            with self.collector.timed("time/update"):
                done = self.train(rows, seed=self.seed + number, folder=home, progress=told)
            state |= {"step": state["step"] + done.steps, "tokens": state["tokens"] + done.tokens}
            numbers = done.last | numbers
        elif number == 1:
            raise InputError(
                f"The first round has nothing to learn from: select: {self.way.select} found nothing among the answers "
                f"to {len(answers)} prompts, {numbers['prompts/tied']:.0f} of them with equal scores; draw more or "
                "longer answers, or take a reward that tells them apart."
            )
        state |= {"round": number, "numbers": numbers, "stopped": False}
        track.write(number, {"steps": state["step"], **numbers, **self.collector.clock})
        for row in samples(answers, SHOWN):
            shown.write(number, row)
        if self.held_out and (number % (self.watch.evaluate_every or 1) == 0 or number == self.way.rounds):
            self._judge(state, track)
            state["stopped"] &= number < self.way.rounds
        each = 2 * len(self.collector.asked)
        progress(number * each, self.way.rounds * each, {"scores": numbers["objective/scores"]})

    def _draw(self, number: int, progress: Progress) -> list[Answers]:
        """Return the policy's scored answers to all prompts, those on disk as they are."""
        return draw(
            self.collector,
            self.folder / f"round-{number}" / "draws.jsonl",
            turn=f"round {number}",
            done=(number - 1) / self.way.rounds,
            run=self.run,
            progress=self._told(number, 0, progress),
        )

    def _told(self, number: int, half: int, progress: Progress) -> Progress:
        """Return what a half of a round, drawing (0) or learning (1), calls with its progress."""
        count = len(self.collector.asked)

        def told(done: int, total: int, numbers: Mapping[str, float]) -> None:
            progress((2 * (number - 1) + half) * count + count * done // total, 2 * self.way.rounds * count, numbers)

        return told

    def _choose(self, answers: Sequence[Answers], number: int) -> tuple[list[Example], dict[str, float]]:
        """Return the rows of a round and the numbers that describe what was drawn and chosen."""
        way, lost = self.way, Counter[str]()
        names = [f"{one.asked.prompt.id}/round {number}" for one in answers]
        kept: list[list[int]] = []
        if way.pairs:
            for one, name in zip(answers, names, strict=True):
                found = pair(way.select, one.scores, one.branches, seed=self.seed, name=name)
                lost.update([found] if isinstance(found, str) else [])
                kept.append([] if isinstance(found, str) else [*found])
        else:
            kept = singles(way.select, [one.scores for one in answers], share=way.share, seed=self.seed, names=names)
        for reason, count in lost.items():
            told = f"prompts without a pair: {reason}"
            self.collector.faults[told] = self.collector.faults.get(told, 0) + count
        rows, scores = [], []
        for one, places in zip(answers, kept, strict=True):
            sides = [places] if way.pairs and places else [[place] for place in places]
            rows += [Example(one.tree(side), label=one.asked.prompt.source) for side in sides]
            scores += [one.scores[side[0]] for side in sides]
        numbers = averages(answers) | {
            "objective/scores_chosen": mean(scores),
            "prompts/covered": coverage(kept) * len(kept) / len(self.collector.asked),
            "prompts/tied": float(lost[ALIKE]),
            "rows": float(len(rows)),
        }
        if way.compares:
            numbers["reference/round"] = 1.0 if way.stays else float(number)
        return rows, numbers

    def _judge(self, state: dict[str, Any], track: Track) -> None:
        """Answer the held-out prompts greedily, score the answers and note how good they are."""
        judged = self.collector.greedy(self.held_out, f"held out {state['round']}", state["round"] / self.way.rounds)
        found = {f"eval/{name}": value for name, value in averages([answers_of(one) for one in judged]).items()}
        track.write(state["round"], found)
        self.best.judge(state, found, -found.get("eval/objective/scores", -math.inf))

    def _restore(self) -> dict[str, Any]:
        collector = self.collector
        state = checkpoint.load(self.folder / "checkpoint", self.model, self.bare, run=self.run)
        if state is None:
            rewards, numbers = collector.rewards.state(), dict.fromkeys(("round", "step", "tokens"), 0)
            return {"run": self.run, **numbers, **FRESH, "numbers": {}, "faults": {}, "rewards": rewards}
        collector.faults = state["faults"]
        collector.rewards.load(state["rewards"])
        self._forget(state["round"])
        return state

    def _save(self, state: dict[str, Any]) -> None:
        """Keep the weights; the checkpoint of the training that made them is not needed any more."""
        state |= {"faults": self.collector.faults, "rewards": self.collector.rewards.state()}
        checkpoint.save(self.folder / "checkpoint", self.model, self.bare, state)
        self._forget(state["round"])

    def _forget(self, number: int) -> None:
        checkpoint.discard(self.folder / f"round-{number}" / "checkpoint")
