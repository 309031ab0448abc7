"""For every method the rows it takes, a tiny model to learn by it, and its loss by a plain computation to compare with.

The plain computation runs each branch alone behind its prompt and makes every reading of whole logits.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.models.tiny import causal, ids
from tiebreak.models.forest import Tree
from tiebreak.models.load import Loaded, to_reward
from tiebreak.models.readings import OF_BOTH, READINGS
from tiebreak.train.learner import Learner, asked_of
from tiebreak.train.objectives.by_head import HEAD_ROWS
from tiebreak.train.objectives.presets import OBJECTIVES
from tiebreak.train.objectives.switches import kind_of, needs_of, objective, settled
from tiebreak.train.pace import Pace
from tiebreak.train.rows import Example, mismatched, see
from tiebreak.train.update import Compute

KNOBS = {row.name: settled(row.knobs or {}) for row in (*OBJECTIVES, *HEAD_ROWS)}
METHODS = tuple(KNOBS)
"""All that a language model learns by, and all that its reward head does."""
BATCH = 8
UNCLIPPED = Pace(batch=BATCH, learning_rate=1e-3, warmup=0.0, decay="constant", clip=1e9)
ASPECTS = 5


class Taken(NamedTuple):
    """What a step logged, the gradient it would have used and what it keeps for the next."""

    numbers: dict[str, float]
    gradient: Tensor
    past: dict[str, Tensor]


class Caught:
    """Stands in for the optimizer and keeps the gradient instead of stepping."""

    def __init__(self, trained: Sequence[Tensor]) -> None:
        self.trained = trained
        self.param_groups: list[dict[str, Any]] = [{}]
        self.gradient = torch.zeros(0)

    def step(self) -> None:
        """Copy the gradients, zeros where a weight got none."""
        given = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in self.trained]
        self.gradient = torch.cat([gradient.flatten() for gradient in given]).clone()


def rows_of(method: str, count: int = BATCH, seed: int = 0) -> list[Example]:
    """Rows of the shape that ``method`` takes, with all it reads, of different lengths and weights."""
    knobs = KNOBS[method]
    needs, kind = needs_of(knobs), kind_of(knobs["link"])
    draw = random.Random(seed)
    make = {"written": _written, "alone": _alone, "list": _list, "pairs": _pair}[kind]
    rows = [
        (_list if "grades" in needs or (kind == "pairs" and number % 4 == 3) else make)(draw)._replace(
            weight=draw.uniform(0.2, 3.0)
        )
        for number in range(count)
    ]
    if "ratings" in needs:
        rows = [row._replace(ratings=_ratings(draw), grades=()) for row in rows]
    if method == "process_reward":
        rows = [_in_steps(draw, row) for row in rows]
    for role in ("rationale", "drawn"):
        if role in needs:
            rows = [_with(row, role, _said(draw)) for row in rows]
    return mismatched(rows, None, seed) if "mismatched" in needs else rows


def _said(draw: random.Random) -> tuple[int, ...]:
    return (*ids(draw, draw.randrange(1, 8)), 0)


def _written(draw: random.Random, sides: int = 1) -> Example:
    return Example(Tree(ids(draw, draw.randrange(2, 9)), tuple(_said(draw) for _ in range(sides))))


def _alone(draw: random.Random) -> Example:
    return _written(draw)._replace(grades=(draw.choice((0.0, 1.0, 0.3)),))


def _pair(draw: random.Random) -> Example:
    return _written(draw, 2)._replace(p=draw.uniform(0.5, 0.95), margin=draw.uniform(0.1, 2.0))


def _list(draw: random.Random) -> Example:
    """Two to four answers, best first; some have grades in common."""
    grades = sorted((draw.randrange(4) / 2 for _ in range(draw.randrange(1, 4))), reverse=True)
    grades = [2.0, *grades]
    return _written(draw, len(grades))._replace(grades=tuple(grades))


def _ratings(draw: random.Random) -> tuple[float, ...]:
    return tuple(math.nan if draw.random() < 0.3 else draw.uniform(0, 4) for _ in range(ASPECTS))


def _in_steps(draw: random.Random, row: Example) -> Example:
    """The answer as steps, of which the last token is learned."""
    (branch,) = row.tree.branches
    ends = tuple(draw.random() < 0.4 or place == len(branch) - 1 for place in range(len(branch)))
    steps = tuple(draw.random() for end in ends if end)
    return row._replace(tree=row.tree._replace(taught=(ends,)), steps=steps, grades=())


def _with(row: Example, role: str, branch: tuple[int, ...]) -> Example:
    branches = (*row.tree.branches, branch)
    return row._replace(tree=row.tree._replace(branches=branches), beside=(*row.beside, role))


@cache
def _loaded(kind: str, seed: int) -> Loaded:
    return causal(kind, seed=seed)


def start(method: str, kind: str = "llama") -> PreTrainedModel:
    """The model that learns, with a head of as many columns as the method has."""
    loaded, knobs = _loaded(kind, 0), KNOBS[method]
    if knobs["score"] != "head":
        return copy.deepcopy(loaded.model)
    return to_reward(loaded.model, loaded.tokenizer, seed=2, labels=knobs["outputs"])


def another(method: str, kind: str = "llama") -> PreTrainedModel | None:
    """A reference that is not the policy, so that log-ratios differ from 0."""
    return None if KNOBS[method]["score"] == "head" else copy.deepcopy(_loaded(kind, 7).model)


def readings_of(method: str) -> tuple[str, ...]:
    """What the method reads of each branch besides log-probs or scores, in the engine's order."""
    reads = asked_of(objective, KNOBS[method])[1]
    return tuple(name for name in READINGS if name in reads)


def learner_of(method: str, kind: str = "llama", compute: Compute | None = None, **more: Any) -> Learner:
    given: dict[str, Any] = {"model": start(method, kind), "reference": another(method, kind), **more}
    return Learner(given.pop("model"), KNOBS[method], UNCLIPPED, compute, **given)


def taken(learner: Learner, *batches: Sequence[Example]) -> list[Taken]:
    """Take a step on each batch, past the first fifth of the training, with the updates caught."""
    caught = Caught(learner.trained)
    learner.optimizer = caught
    found = []
    with learner.ready():
        for number, rows in enumerate(batches, start=5):
            numbers = learner.step(rows, number, 10).numbers
            numbers = {name: value for name, value in numbers.items() if name not in ("grad_norm", "learning_rate")}
            found.append(Taken(numbers, caught.gradient, dict(learner.past)))
    return found


def plainly(method: str, kind: str, rows: Sequence[Example], past: Mapping[str, Tensor]) -> Taken:
    """The same step with each branch alone behind its prompt, in one batch."""
    knobs, model, reference = KNOBS[method], start(method, kind), another(method, kind)
    readings = readings_of(method)
    values = torch.cat([_read(model, reference, row, readings, knobs) for row in rows])
    compared = None
    if reference is not None:
        both = tuple(name for name in readings if name in OF_BOTH)
        with torch.no_grad():
            compared = torch.cat([_read(reference, None, row, both, knobs) for row in rows])
    head = knobs["score"] == "head"
    seen = see(
        rows, values, head=head, kind=kind_of(knobs["link"]), reference=compared, readings=readings, past={**past}
    )
    outcome = objective(seen, **knobs)
    outcome.loss.backward()
    weights = [p for p in model.parameters() if p.requires_grad]
    given = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
    numbers = {name: float(value.detach()) for name, value in {"loss": outcome.loss, **outcome.metrics}.items()}
    return Taken(numbers, torch.cat([gradient.flatten() for gradient in given]), dict(outcome.kept))


def _read(
    model: PreTrainedModel,
    other: PreTrainedModel | None,
    row: Example,
    readings: Sequence[str],
    knobs: Mapping[str, Any],
) -> Tensor:
    """What is read of each branch of a row."""
    trunk, branches = row.tree.trunk, row.tree.branches
    if knobs["score"] == "head":
        ends = [(branch, row.tree.taught[0] if row.steps else ()) for branch in branches]
        cuts = [branch[: place + 1] for branch, taught in ends for place, end in enumerate(taught) if end]
        said = [model(torch.tensor([trunk + branch])).logits for branch in (cuts if row.steps else branches)]
        return torch.cat(said) if knobs["outputs"] > 1 else torch.cat(said)[:, 0]
    shortest = min(len(branch) for branch in branches[: row.compared])
    lines = []
    for branch in branches:
        where = slice(len(trunk) - 1, -1)
        own = model(torch.tensor([trunk + branch])).logits[0, where]
        logps = own.log_softmax(-1).gather(1, torch.tensor(branch)[:, None])[:, 0]
        found = {"public": logps[:shortest].sum()}
        if "collision" in readings:
            found["collision"] = (2 * own.log_softmax(-1)).logsumexp(-1).sum().detach()
        if other is not None and {"token_kl", "extrapolated"}.intersection(readings):
            with torch.no_grad():
                base = other(torch.tensor([trunk + branch])).logits[0, where]
            found["token_kl"] = _kl(base.log_softmax(-1), own.log_softmax(-1))
            bold = (knobs.get("extrapolate", 1.0) * own + (1 - knobs.get("extrapolate", 1.0)) * base).detach()
            found["extrapolated"] = bold.log_softmax(-1).gather(1, torch.tensor(branch)[:, None]).sum()
        lines.append(torch.stack([logps.sum(), *(found[name] for name in readings)]))
    return torch.stack(lines) if readings else torch.stack(lines)[:, 0]


def _kl(first: Tensor, second: Tensor) -> Tensor:
    return (first.exp() * (first - second)).sum()


def assert_same(one: Taken, other: Taken, within: float = 1e-5) -> None:
    """Equal up to rounding: what a step logs, its gradient and what it keeps."""
    assert one.numbers.keys() == other.numbers.keys()
    for name, value in other.numbers.items():
        assert abs(one.numbers[name] - value) <= within * max(1.0, abs(value)), name
    assert float(other.gradient.norm()) > 1e-3
    assert float((one.gradient - other.gradient).norm()) <= within * float(other.gradient.norm())
    assert one.past.keys() == other.past.keys()
    for name, kept in other.past.items():
        assert torch.allclose(one.past[name], kept, rtol=within, atol=within), name
