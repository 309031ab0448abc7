"""TRL's own trainers are the reference: same weights and rows give the same loss, gradient and weights after steps.

Tolerances are those of float32 sums in another order. TRL's default is no weight decay; where it decays, it leaves out
biases and norms, as we do, so both cases are compared.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

if importlib.util.find_spec("trl") is None:
    pytest.skip("trl is not installed; it is a peer to compare with, not a dependency", allow_module_level=True)

import torch
import trl
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.models.tiny import causal
from tests.train.made import METHODS, examples, start
from tiebreak.train.learner import Learner
from tiebreak.train.objectives.presets import OFFLINE
from tiebreak.train.pace import Pace
from tiebreak.train.rows import Example
from tiebreak.train.update import Compute

TRAINERS: dict[str, tuple[Any, Any]] = {
    "sft": (trl.SFTTrainer, trl.SFTConfig),
    "bradley_terry": (trl.RewardTrainer, trl.RewardConfig),
    "dpo": (trl.DPOTrainer, trl.DPOConfig),
}
LOSS, GRADIENT, UPDATE = 2e-5, 5e-5, 1e-3
BATCH, STEPS, RATE = 8, 3, 1e-3
CLIP = 0.5
"""Below the norms of these gradients, so that clipping has something to do."""
EPSILON = {"llama": 1e-8, "gpt2": 1e-6}
"""Adam's, on both sides. Some biases of GPT-2 (the keys') have gradients of mere rounding, which 1e-8 would blow up."""

METHOD = pytest.mark.parametrize("method", METHODS)
KIND = pytest.mark.parametrize("kind", ["llama", "gpt2"])


class Taken(NamedTuple):
    """The loss of a batch and the gradient of every weight by its name."""

    loss: float
    gradients: dict[str, Tensor]


def rows_of(method: str, count: int) -> list[Example]:
    """Rows of different lengths, without soft labels, which TRL does not have."""
    return [row._replace(p=1.0) for row in examples(method, count)]


def other(method: str, kind: str) -> PreTrainedModel | None:
    """A reference that is not the policy, so that log-ratios differ from 0."""
    return causal(kind, seed=7).model if method == "dpo" else None


def words(size: int) -> PreTrainedTokenizerFast:
    """A tokenizer whose words are the ids, so that TRL, which takes text, trains on the very same tokens."""
    plain = Tokenizer(WordLevel({"<eos>": 0, "<pad>": 1} | {str(i): i for i in range(2, size)}, unk_token="<pad>"))
    plain.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<eos>", pad_token="<pad>")


def dataset(rows: Sequence[Example]) -> Dataset:
    """The rows as text in the columns TRL documents: prompt and completion, or prompt, chosen and rejected."""

    def text(ids: tuple[int, ...]) -> str:
        return " ".join("<eos>" if i == 0 else str(i) for i in ids)

    names = ("completion",) if len(rows[0].tree.branches) == 1 else ("chosen", "rejected")
    texts = [dict(zip(names, map(text, row.tree.branches), strict=True)) for row in rows]
    return Dataset.from_list(
        [{"prompt": text(row.tree.trunk) + " ", **new} for row, new in zip(rows, texts, strict=True)]
    )


def trainer_of(method: str, kind: str, rows: Sequence[Example], folder: Path, **more: Any) -> Any:
    """TRL's trainer on the rows as they stand; what is not named is TRL's default."""
    make, config = TRAINERS[method]
    args = config(
        output_dir=str(folder),
        per_device_train_batch_size=BATCH,
        train_sampling_strategy="sequential",
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **more,
    )
    model = start(method, kind)
    models = {"model": model} | ({"ref_model": other(method, kind)} if method == "dpo" else {})
    return make(**models, args=args, train_dataset=dataset(rows), processing_class=words(model.config.vocab_size))


def theirs(method: str, kind: str, rows: Sequence[Example], folder: Path) -> Taken:
    """Loss and gradients by the trainer's own ``compute_loss`` on the batch its own loader makes."""
    trainer = trainer_of(method, kind, rows, folder)
    inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    given = [
        tuple(ids[held.bool()].tolist())
        for ids, held in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
    ]
    sides = range(len(rows[0].tree.branches))
    assert given == [row.tree.trunk + row.tree.branches[side] for side in sides for row in rows]
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    return Taken(loss.item(), {name: weight.grad for name, weight in trainer.model.named_parameters()})


def learner_of(method: str, kind: str, compute: Compute | None = None, **pace: Any) -> Learner:
    return Learner(
        start(method, kind),
        OFFLINE[method].knobs,
        Pace(batch=BATCH, learning_rate=RATE, warmup=0.0, decay="constant", **pace),
        compute,
        optimizer_knobs={"epsilon": EPSILON[kind]},
        reference=other(method, kind),
    )


def ours(method: str, kind: str, rows: Sequence[Example], compute: Compute | None = None) -> Taken:
    """Loss and gradients of one step, which are read as the optimizer is about to use them."""
    learner = learner_of(method, kind, compute, clip=1e9)
    found: dict[str, Tensor] = {}

    def keep(*_: Any) -> None:
        found.update({name: weight.grad.clone() for name, weight in learner.model.named_parameters()})

    learner.optimizer.register_step_pre_hook(keep)
    with learner.ready():
        loss = learner.step(rows, 0, 1).numbers["loss"]
    return Taken(loss, found)


def apart(one: dict[str, Tensor], another: dict[str, Tensor]) -> float:
    """The L2 norm of the difference, relative to that of ``another``."""
    assert one.keys() == another.keys()
    differences = torch.stack([(one[name] - another[name]).norm() for name in one])
    return float(differences.norm() / torch.stack([given.norm() for given in another.values()]).norm())


@KIND
@METHOD
def test_loss_and_every_gradient_are_trls_in_one_forest_and_in_several(method, kind, tmp_path):
    rows = rows_of(method, BATCH)
    expected = theirs(method, kind, rows, tmp_path)
    whole = torch.stack([given.norm() for given in expected.gradients.values()]).norm()
    assert whole > 1e-2
    for tokens in (None, sum(row.tree.size for row in rows) // 3):
        found = ours(method, kind, rows, Compute(tokens=tokens))
        assert abs(found.loss - expected.loss) <= LOSS * max(1.0, abs(expected.loss))
        assert apart(found.gradients, expected.gradients) <= GRADIENT
        for name, given in expected.gradients.items():
            difference = (found.gradients[name] - given).norm()
            assert difference <= GRADIENT * given.norm() + 1e-6 * whole, name


@pytest.mark.parametrize("decay", [0.0, 0.1], ids=["no decay", "decay"])
@KIND
@METHOD
def test_weights_after_steps_of_clipped_adamw_are_trls(method, kind, decay, tmp_path):
    rows = rows_of(method, BATCH * STEPS)
    given = {"max_steps": STEPS, "learning_rate": RATE, "adam_epsilon": EPSILON[kind], "max_grad_norm": CLIP}
    trainer = trainer_of(method, kind, rows, tmp_path, lr_scheduler_type="constant", weight_decay=decay, **given)
    before = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    learner = learner_of(method, kind, clip=CLIP, weight_decay=decay)
    with learner.ready():
        taken = [learner.step(rows[i * BATCH :][:BATCH], i, STEPS).numbers for i in range(STEPS)]
    assert min(numbers["grad_norm"] for numbers in taken) > CLIP
    moved = [
        {name: weight.detach() - before[name] for name, weight in model.named_parameters()}
        for model in (learner.model, trainer.model)
    ]
    assert apart(*moved) < UPDATE


def test_trl_decays_nothing_unless_asked():
    for _, config in TRAINERS.values():
        assert config(output_dir="unused", use_cpu=True, bf16=False).weight_decay == 0.0
