"""The trainer of heads on features: any objective that reads a head, in seconds, since nothing below it is computed.

A step is plain AdamW on a batch of rows; what a kind of head adds to that (a term beside the loss, another gradient)
comes in as a function. Batches and weights depend on the seed and the step alone.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tiebreak.models.features import FeedForward, LinearHead, features, prompt_features
from tiebreak.models.forest import Tree
from tiebreak.models.heads import head_of
from tiebreak.records import InputError, Progress, quiet
from tiebreak.train.frozen import Batch, FeatureRows, Shifted, rows_on
from tiebreak.train.objectives.seen import NOTHING, Outcome
from tiebreak.train.objectives.switches import kind_of, needs_of, objective, of_pairs, parts_of
from tiebreak.train.offline import settle
from tiebreak.train.order import Facts, Order
from tiebreak.train.pace import Pace
from tiebreak.train.rows import Example, Loss

Beside = Callable[[Any, Batch], Mapping[str, Tensor]]
"""Terms to add to the loss of a batch, weighted, by name: a head and a batch to scalars."""
Gradient = Callable[[nn.Module, Callable[[], Outcome], int], Outcome]
"""What puts a gradient into a head's weights: the head, what computes its loss on the batch, and the step's number."""

FASTEST = 0.1
"""The most that ``faster`` makes of a learning rate, whatever rate it is a multiple of: that of PAL's scale."""


class Fitted(NamedTuple):
    """A trained head, the steps it took, its last numbers (``eval/`` of held-out rows), and why it ended.

    ``best`` is the step whose weights were kept; ``stopped`` says that held-out rows got no better before the end.
    """

    head: Any
    steps: int
    last: dict[str, float]
    best: int
    stopped: bool = False


def backward(head: nn.Module, look: Callable[[], Outcome], number: int) -> Outcome:
    """Put the plain gradient of the loss into the weights."""
    outcome = look()
    outcome.loss.backward()
    return outcome


def fit_head(
    head: nn.Module,
    rows: FeatureRows,
    knobs: Mapping[str, Any],
    pace: Pace,
    *,
    seed: int,
    held_out: FeatureRows | None = None,
    patience: int = 0,
    loss: Loss = objective,
    beside: Beside | None = None,
    gradient: Gradient = backward,
    progress: Progress = quiet,
) -> Fitted:
    """Train ``head`` in place on ``rows`` with the objective that ``knobs`` name.

    Args:
        head: called with features (B, width), users' numbers and prompts' features; gives scores (B,) or (B, k).
        rows: what to learn from.
        knobs: switches and scalars of ``loss``; its score map is ``head``.
        pace: as for whole models. What a head names in ``faster`` has that many times the learning rate, up to
            :data:`FASTEST`, and no decay.
        seed: orders the rows and draws dropout.
        held_out: rows that are never learned from, measured at the end.
        patience: stop after that many epochs without a lower held-out loss, and keep the best weights; 0: never.
        loss: the switches, or a function of that shape.
        beside: terms to add to the loss.
        gradient: what puts the gradient into the weights.
        progress: called after each step with steps done, steps in all and the loss.

    Raises:
        InputError: an objective that reads words, fields the rows do not have, an unknown user, or numbers that are not
            finite.
    """
    whole = _checked(head, rows, knobs, loss)
    if held_out is not None:
        _checked(head, held_out, knobs, loss)
    elif patience:
        raise InputError("patience needs held-out rows; set held_out above 0.")
    order = _order(rows, pace, seed)
    steps, turn = order.steps(pace.epochs), order.steps_per_epoch
    run = _Run(head, rows, whole, loss, beside, pace)
    best: dict[str, Any] = {"loss": math.inf, "step": 0, "waited": 0, "state": {}}
    number = 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for number in range(1, steps + 1):
            shown = run.step(order.rows(number - 1), number - 1, steps, gradient)
            progress(number, steps, shown)
            if held_out is not None and patience and number % turn == 0:
                _judge(best, head, measure(head, held_out, whole, loss=loss)["loss"], number)
                if best["waited"] >= patience:
                    break
    if best["state"]:
        head.load_state_dict(best["state"])
    head.eval()
    last = run.numbers
    if held_out is not None:
        last |= {f"eval/{name}": value for name, value in measure(head, held_out, whole, loss=loss).items()}
    return Fitted(head, number, last, best["step"] or number, bool(patience) and best["waited"] >= patience)


def _order(rows: FeatureRows, pace: Pace, seed: int) -> Order:
    facts = Facts(tokens=rows.tokens, labels=rows.labels or [""] * len(rows), difficulty=rows.difficulty)
    return Order(
        facts, batch=pace.batch, seed=seed, by=pace.order, mixture=pace.mixture, batch_tokens=pace.batch_tokens
    )


class _Run:
    """A head with its rows, its optimizer and what the objective keeps from step to step."""

    def __init__(
        self,
        head: nn.Module,
        rows: FeatureRows,
        knobs: Mapping[str, Any],
        loss: Loss,
        beside: Beside | None,
        pace: Pace,
    ) -> None:
        self.head, self.rows, self.knobs, self.loss, self.beside, self.pace = head, rows, knobs, loss, beside, pace
        self.codes = _codes(head, rows)
        self.optimizer = torch.optim.AdamW(_groups(head, pace.weight_decay), lr=pace.learning_rate, fused=True)
        self.trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
        self.past: Mapping[str, Tensor] = NOTHING
        self.progress = 0.0
        self.latest: Outcome | None = None

    def step(self, rows: Sequence[int], number: int, total: int, gradient: Gradient) -> dict[str, float]:
        """Take one step and return the loss to show."""
        self.head.train()
        batch, self.progress = self.rows.take(rows), number / total
        outcome = gradient(self.head, partial(self.look, batch), number)
        value = float(outcome.loss.detach())
        norm = float(nn.utils.clip_grad_norm_(self.trained, self.pace.clip))
        if not math.isfinite(value) or not math.isfinite(norm):
            raise InputError(
                f"The loss at step {number + 1} is {value} and the gradient's norm {norm}; lower the learning rate or "
                "look for features that are not finite."
            )
        rate = self.pace.rate(number, total)
        for group in self.optimizer.param_groups:
            group["lr"] = min(group["factor"] * rate, max(rate, FASTEST))
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.past, self.latest = outcome.kept, outcome
        return {"loss": value}

    @property
    def numbers(self) -> dict[str, float]:
        """The numbers of the latest step."""
        if self.latest is None:
            return {}
        found = {"loss": self.latest.loss.detach(), **self.latest.metrics}
        return {name: float(value) for name, value in found.items()}

    def look(self, batch: Batch) -> Outcome:
        """Return the loss of a batch, the terms beside it included."""
        values = score(self.head, batch, self.codes)
        past = {**self.past, "progress": torch.tensor(self.progress)}
        outcome = self.loss(replace(batch.seen, scores=values, past=past), **self.knobs)
        terms = {} if self.beside is None else self.beside(self.head, batch)
        metrics = outcome.metrics | {name: term.detach() for name, term in terms.items()}
        return outcome._replace(loss=sum(terms.values(), start=outcome.loss), metrics=metrics)


def score(head: nn.Module, batch: Batch, codes: Tensor | None = None) -> Tensor:
    """Return what ``head`` gives of a batch; ``codes`` (T,) are the numbers of the rows' users."""
    found: Tensor = head(batch.values, None if codes is None else codes[batch.row], batch.prompts)
    return found


def scores(head: nn.Module, rows: FeatureRows) -> Tensor:
    """Return the score of every branch of ``rows``, (B,) or (B, k), without gradients."""
    with torch.no_grad():
        return score(head.eval(), rows.take(range(len(rows))), _codes(head, rows))


def measure(
    head: nn.Module, rows: FeatureRows, knobs: Mapping[str, Any], *, loss: Loss = objective
) -> dict[str, float]:
    """Return loss and metrics of all ``rows`` at once, which is no mean of means."""
    whole = _checked(head, rows, knobs, loss)
    with torch.no_grad():
        outcome = loss(replace(rows.take(range(len(rows))).seen, scores=scores(head, rows)), **whole)
    return {name: float(value) for name, value in {"loss": outcome.loss, **outcome.metrics}.items()}


def importance(
    head: nn.Module, rows: FeatureRows, knobs: Mapping[str, Any], *, seed: int, draws: int = 5
) -> dict[str, list[float]]:
    """Return for each feature the ``accuracy`` lost and the ``loss`` added where completions exchange it at random.

    Pairs that the head did not learn from tell best; the mean over ``draws`` exchanges is returned.
    """
    known = measure(head, rows, knobs)
    drawn = torch.Generator().manual_seed(seed)
    found: dict[str, list[float]] = {"accuracy": [], "loss": []}
    for column in range(rows.width):
        lost = added = 0.0
        for _ in range(draws):
            values = rows.values.clone()
            values[:, column] = values[torch.randperm(len(values), generator=drawn), column]
            spoilt = measure(head, replace(rows, values=values), knobs)
            lost += (known["rewards/accuracies"] - spoilt["rewards/accuracies"]) / draws
            added += (spoilt["loss"] - known["loss"]) / draws
        found["accuracy"].append(lost)
        found["loss"].append(added)
    return found


def _judge(best: dict[str, Any], head: nn.Module, value: float, number: int) -> None:
    """Note how good the head is, and keep its weights where it was never better."""
    if value < best["loss"]:
        state = {name: weight.clone() for name, weight in head.state_dict().items()}
        best |= {"loss": value, "step": number, "waited": 0, "state": state}
    else:
        best["waited"] += 1


def _checked(head: nn.Module, rows: FeatureRows, knobs: Mapping[str, Any], loss: Loss) -> dict[str, Any]:
    """Return all knobs of the objective, once it is sure that these rows have what it reads."""
    whole = settle(loss, of_pairs(knobs))
    if whole["score"] != "head":
        raise InputError(f"A head on features gives scores only, so score has to be head, not {whole['score']}.")
    if not len(rows):
        raise InputError("There is nothing to train on: every row was dropped or none was given; look at the funnel.")
    _codes(head, rows)
    if loss is not objective:
        return whole
    kind = kind_of(whole["link"])
    if missing := sorted({name for part in parts_of(whole).values() for name in part.reads} - {"scores"}):
        raise InputError(f"The objective reads {missing[0]} of the whole model, which features do not have.")
    has = {name for name in ("margin", "grades", "label", "ratings") if getattr(rows.seen, name) is not None}
    for need in needs_of(whole):
        if need not in has | set(rows.seen.beside):
            raise InputError(f"The rows have no {need}, which the objective reads; give it, or take another objective.")
    if (rows.seen.alone is None) == (kind == "alone"):
        raise InputError(f"The objective takes rows of the kind {kind}, and these are others.")
    return whole


def _codes(head: nn.Module, rows: FeatureRows) -> Tensor | None:
    """Return the number of each row's user, for heads that have users; an unknown one raises."""
    if not hasattr(head, "users"):
        return None
    if not rows.users:
        raise InputError("The head scores for users, and the rows do not say whose they are; give users.")
    found: Tensor = head.users.codes(rows.users)
    return found


def _groups(head: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the trained weights by learning rate and decay, which pulls on matrices only."""
    faster = getattr(head, "faster", {})
    found: dict[tuple[float, float], list[Tensor]] = {}
    for name, parameter in head.named_parameters():
        if parameter.requires_grad:
            factor = faster.get(name.partition(".")[0], 1.0)
            decay = weight_decay if parameter.ndim >= 2 and factor == 1.0 else 0.0
            found.setdefault((factor, decay), []).append(parameter)
    if not found:
        raise InputError("No weight of the head is trained: requires_grad is off for all of them.")
    return [{"params": some, "factor": factor, "weight_decay": decay} for (factor, decay), some in found.items()]


def fit_examples(
    model: PreTrainedModel,
    trainer: Callable[..., Fitted],
    taught: Sequence[Example],
    knobs: Mapping[str, Any],
    pace: Pace,
    *,
    seed: int,
    held_out: Sequence[Example] = (),
    users: Sequence[str] = (),
    prompts: bool = False,
    shifted: Sequence[Tree] = (),
    patience: int = 0,
    cache: Path | None = None,
    progress: Progress = quiet,
) -> Fitted:
    """Compute the features of examples with a frozen ``model`` and train a head on them.

    Args:
        model: a classifier; it stays as it is, see :func:`tiebreak.models.features.put_in`.
        trainer: what a row of the table of heads points to; :func:`fit_linear` for objectives of whole models.
        taught: as the trainer of whole models takes them.
        knobs: of the objective and of the trainer.
        pace: learning rate and length.
        seed: of the training.
        held_out: examples that are never learned from.
        users: whose each example is, those of ``taught`` first, then those of ``held_out``.
        prompts: compute the prompts' features too, which PAL-B and a gate read.
        shifted: prompts with responses of the policy, for MetaRM.
        patience: epochs without a lower held-out loss.
        cache: folder where features are kept.
        progress: called with completions done, then with steps done.
    """
    both = [*taught, *held_out]
    trees = [row.tree for row in both]
    found = features(model, [*trees, *shifted], cache=cache, progress=progress)
    branches = sum(len(tree.branches) for tree in trees)
    rows = rows_on(
        both,
        found._replace(place=found.place[:branches]),
        kind=kind_of(knobs["link"]),
        users=users,
        prompts=prompt_features(model, trees, cache=cache) if prompts else None,
    )
    given: dict[str, Any] = {"seed": seed, "patience": patience, "progress": progress}
    if held_out:
        given["held_out"] = rows.part(range(len(taught), len(both)))
    if shifted:
        counts = torch.tensor([len(tree.branches) for tree in shifted])
        given["shifted"] = Shifted(found.each[branches:], torch.arange(len(shifted)).repeat_interleave(counts))
    if "marks" in inspect.signature(trainer).parameters:
        given["marks"] = head_of(model)
    if trainer is fit_linear:
        given["bias"] = head_of(model).bias is not None
    return fit_as(trainer, rows.part(range(len(taught))), knobs, pace, **given)


def fit_as(
    trainer: Callable[..., Fitted], rows: FeatureRows, knobs: Mapping[str, Any], pace: Pace, **given: Any
) -> Fitted:
    """Call a trainer of heads with those of ``knobs`` that are its own; the rest are the objective's.

    Args:
        trainer: what a row of the table of heads points to.
        rows: what to learn from.
        knobs: of the row, the objective's and the trainer's together.
        pace: learning rate and length.
        given: ``seed`` and what else the trainer takes, such as ``held_out``, ``patience`` and ``progress``.
    """
    own = {name for name, p in inspect.signature(trainer).parameters.items() if p.kind is p.KEYWORD_ONLY}
    mine = {name: value for name, value in knobs.items() if name in own}
    return trainer(rows, {name: value for name, value in knobs.items() if name not in own}, pace, **mine, **given)


def fit_linear(
    rows: FeatureRows,
    knobs: Mapping[str, Any],
    pace: Pace,
    *,
    seed: int,
    held_out: FeatureRows | None = None,
    patience: int = 0,
    progress: Progress = quiet,
    outputs: int = 1,
    bias: bool = False,
) -> Fitted:
    """Train a linear head with ``outputs`` numbers, for :func:`tiebreak.models.features.put_in`."""
    head = LinearHead(rows.width, outputs, bias=bias, seed=seed)
    head.calibrate(rows.own)
    return fit_head(head, rows, knobs, pace, seed=seed, held_out=held_out, patience=patience, progress=progress)


def fit_feed_forward(
    rows: FeatureRows,
    knobs: Mapping[str, Any],
    pace: Pace,
    *,
    seed: int,
    held_out: FeatureRows | None = None,
    patience: int = 0,
    progress: Progress = quiet,
    outputs: int = 1,
    hidden: Sequence[int] = (32,),
    activation: str = "relu",
    dropout: float = 0.0,
) -> Fitted:
    """Train a small network; it is told which features are missing where some are."""
    masked = bool(torch.isnan(rows.values).any())
    shape: dict[str, Any] = {"hidden": hidden, "activation": activation, "dropout": dropout}
    head = FeedForward(rows.width, outputs, **shape, masked=masked, seed=seed)
    head.calibrate(rows.own)
    return fit_head(head, rows, knobs, pace, seed=seed, held_out=held_out, patience=patience, progress=progress)
