"""TRL's offline trainers and our learner side by side: the same rows in, a loss and the gradient of every weight out.

Import it behind a check that TRL is there.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import trl
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer
from trl.experimental.tpo import TPOConfig, TPOTrainer

from tests.models.tiny import causal, ids
from tests.parity.test_trl_losses import BATCH, EPSILON, RATE, Taken, apart, words
from tests.train.made import examples, start
from tiebreak.models.forest import Tree
from tiebreak.train.learner import Learner
from tiebreak.train.objectives.by_head import HEAD_ROWS
from tiebreak.train.objectives.presets import OBJECTIVES
from tiebreak.train.objectives.switches import settled
from tiebreak.train.pace import Pace
from tiebreak.train.rows import Example
from tiebreak.train.update import Compute

TRAINERS: dict[str, tuple[Any, Any]] = {
    "dpo": (trl.DPOTrainer, trl.DPOConfig),
    "kto": (trl.KTOTrainer, trl.KTOConfig),
    "reward": (trl.RewardTrainer, trl.RewardConfig),
    "cpo": (CPOTrainer, CPOConfig),
    "orpo": (ORPOTrainer, ORPOConfig),
    "tpo": (TPOTrainer, TPOConfig),
}
SAME = 1e-5
"""How far numbers may be apart, relative: the rounding of float32 sums in another order."""
COMPARES = ("dpo", "kto")
"""Trainers with a reference."""
COLUMNS: dict[str, tuple[str, ...]] = {"kto": ("completion",), "tpo": ("chosen", "rejected", "reference")}
"""What the branches of a row are called, where that is not chosen and rejected."""


class Theirs(NamedTuple):
    """What TRL's trainer made of rows: loss and gradients, the rows as it took them, and the numbers it logs."""

    taken: Taken
    rows: list[Example]
    numbers: dict[str, float]


def pairs(count: int = BATCH, seed: int = 0) -> list[Example]:
    """Pairs of different lengths with hard labels, which is all that TRL has."""
    return [row._replace(p=1.0) for row in examples("dpo", count, seed)]


def strong(count: int = BATCH) -> list[Example]:
    """Pairs with a margin each, 0 and one below 0 among them."""
    draw = random.Random(3)
    margins = [0.0, -0.5, *(draw.uniform(0.1, 3.0) for _ in range(count - 2))]
    return [row._replace(margin=margin) for row, margin in zip(pairs(count), margins, strict=True)]


def brief(count: int = BATCH) -> list[Example]:
    """Pairs behind a prompt of one token, of which nothing is predicted."""
    return [row._replace(tree=row.tree._replace(trunk=row.tree.trunk[:1])) for row in pairs(count)]


def golden(count: int = BATCH) -> list[Example]:
    """Pairs with a written answer beside them, all of one length, so that a mean over rows is one over tokens."""
    draw = random.Random(4)
    return [
        row._replace(
            tree=row.tree._replace(branches=(*row.tree.branches, (*ids(draw, 5), 0))),
            beside=("rationale",),
        )
        for row in pairs(count)
    ]


def thumbs(count: int = BATCH, seed: int = 0) -> list[Example]:
    """Answers that stand alone, two in three of them good."""
    return [
        Example(Tree(row.tree.trunk, row.tree.branches[:1]), grades=(float(number % 3 != 0),))
        for number, row in enumerate(pairs(count, seed))
    ]


def start_of(trainer: str, kind: str) -> PreTrainedModel:
    """The model that learns, with a head where rewards are learned."""
    return start("bradley_terry" if trainer == "reward" else "dpo", kind)


def reference_of(trainer: str, kind: str) -> PreTrainedModel | None:
    """A reference that is not the policy, so that log-ratios differ from 0."""
    return causal(kind, seed=7).model if trainer in COMPARES else None


def dataset(trainer: str, rows: Sequence[Example]) -> Dataset:
    """The rows as text in the columns that TRL documents."""

    def text(tokens: tuple[int, ...]) -> str:
        return " ".join("<eos>" if token == 0 else str(token) for token in tokens)

    names = COLUMNS.get(trainer, ("chosen", "rejected"))
    made: list[dict[str, Any]] = [
        {"prompt": text(row.tree.trunk) + " ", **dict(zip(names, map(text, row.tree.branches), strict=True))}
        for row in rows
    ]
    for row, columns in zip(rows, made, strict=True):
        columns |= {} if row.margin is None else {"margin": row.margin}
        columns |= {"label": row.grades[0] > 0.5} if trainer == "kto" else {}
    return Dataset.from_list(made)


def trainer_of(trainer: str, kind: str, rows: Sequence[Example], folder: Path, **args: Any) -> Any:
    """TRL's trainer on the rows as they stand; what is not named is TRL's default."""
    make, config = TRAINERS[trainer]
    plain = {"gradient_checkpointing": False, "bf16": False, "use_cpu": True}
    quiet = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True}
    batch = {"per_device_train_batch_size": BATCH, "train_sampling_strategy": "sequential"}
    settings = config(output_dir=str(folder), **{**plain, **quiet, **batch, **args})
    model, reference = start_of(trainer, kind), reference_of(trainer, kind)
    models = {"model": model} | ({} if reference is None else {"ref_model": reference})
    tokenizer = words(model.config.vocab_size)
    return make(**models, args=settings, train_dataset=dataset(trainer, rows), processing_class=tokenizer)


def theirs(trainer: str, kind: str, rows: Sequence[Example], folder: Path, **args: Any) -> Theirs:
    """Loss and gradients by the trainer's own ``compute_loss`` on the batch its own loader makes."""
    made = trainer_of(trainer, kind, rows, folder, **args)
    inputs = made._prepare_inputs(next(iter(made.get_train_dataloader())))
    prefixes = ("chosen_", "rejected_") if trainer in ("cpo", "orpo") else ("",)
    given = [tokens for prefix in prefixes for tokens in _tokens(inputs, prefix)]
    sides = range(len(given) // len(rows))
    assert given == [row.tree.trunk + row.tree.branches[side] for side in sides for row in rows]
    strangers = _tokens(inputs, "KL_") if "KL_input_ids" in inputs else []
    took = [_beside(row, stranger) for row, stranger in zip(rows, strangers, strict=True)] if strangers else list(rows)
    made.model.train()
    loss = made.compute_loss(made.model, inputs)
    loss.backward()
    logged = {name: values[-1] for name, values in getattr(made, "_metrics", {"train": {}})["train"].items()}
    gradients = {name: weight.grad for name, weight in made.model.named_parameters()}
    return Theirs(Taken(loss.item(), gradients), took, logged)


def _tokens(inputs: Mapping[str, Tensor], prefix: str) -> list[tuple[int, ...]]:
    """The sequences of a batch without their padding."""
    held = inputs[f"{prefix}attention_mask"].bool()
    return [tuple(line[there].tolist()) for line, there in zip(inputs[f"{prefix}input_ids"], held, strict=True)]


def _beside(row: Example, stranger: tuple[int, ...]) -> Example:
    """The row with the completion that TRL has put behind its prompt to estimate a divergence with."""
    size = len(row.tree.trunk)
    assert stranger[:size] == row.tree.trunk
    assert stranger[size:] != row.tree.branches[0]
    branches = (*row.tree.branches, stranger[size:])
    return row._replace(tree=row.tree._replace(branches=branches), beside=("mismatched",))


def knobs_of(name: str, **changed: Any) -> dict[str, Any]:
    """The knobs of one of our methods, with some of them set."""
    known = next(row.knobs for row in (*OBJECTIVES, *HEAD_ROWS) if row.name == name)
    return settled({**(known or {}), **changed})


def learner_of(
    trainer: str,
    kind: str,
    knobs: Mapping[str, Any],
    compute: Compute | None = None,
) -> Learner:
    """Our learner on the weights and the reference that TRL's trainer gets, whose gradients are not cut."""
    pace = Pace(batch=BATCH, learning_rate=RATE, warmup=0.0, decay="constant", clip=1e9)
    return Learner(
        start_of(trainer, kind),
        knobs,
        pace,
        compute,
        optimizer_knobs={"epsilon": EPSILON[kind]},
        reference=reference_of(trainer, kind),
    )


def ours(
    trainer: str, kind: str, rows: Sequence[Example], knobs: Mapping[str, Any], compute: Compute | None = None
) -> Taken:
    """Loss and gradients of one step, which are read as the optimizer is about to use them."""
    learner = learner_of(trainer, kind, knobs, compute)
    found: dict[str, Tensor] = {}

    def keep(*_: Any) -> None:
        found.update({name: weight.grad.clone() for name, weight in learner.model.named_parameters()})

    learner.optimizer.register_step_pre_hook(keep)
    with learner.ready():
        loss = learner.step(rows, 0, 1).numbers["loss"]
    return Taken(loss, found)


def assert_same(found: Taken, expected: Taken) -> None:
    """Equal up to rounding, the loss and the gradient of each weight; some biases' gradients are rounding alone."""
    whole = torch.stack([given.norm() for given in expected.gradients.values()]).norm()
    assert whole > 1e-2
    assert abs(found.loss - expected.loss) <= SAME * abs(expected.loss)
    assert apart(found.gradients, expected.gradients) <= SAME
    for name, given in expected.gradients.items():
        assert (found.gradients[name] - given).norm() <= SAME * given.norm() + 1e-6 * whole, name
