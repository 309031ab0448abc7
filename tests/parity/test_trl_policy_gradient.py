"""TRL's GRPO and RLOO trainers are the reference: same weights, completions and rewards, same loss and gradient.

The policy moves between drawing and learning, so ratios differ from 1 and some are cut. TRL makes advantages, log-probs
before the move and those of the reference itself; only the completions are put into its hands.
"""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

if importlib.util.find_spec("trl") is None:
    pytest.skip("trl is not installed; it is a peer to compare with, not a dependency", allow_module_level=True)

import torch
import trl
from datasets import Dataset
from transformers import PreTrainedModel

from tests.models.tiny import causal, ids
from tests.parity.test_trl_losses import Taken, apart, words
from tiebreak.models.forest import Tree
from tiebreak.records import Prompt
from tiebreak.train.actor import Actor
from tiebreak.train.collect import Judged
from tiebreak.train.credit import credit
from tiebreak.train.pace import Pace
from tiebreak.train.policy_gradient.presets import POLICY_GRADIENT
from tiebreak.train.policy_gradient.switches import Bounds, policy_gradient
from tiebreak.train.rollouts import Asked, Rolled
from tiebreak.train.update import Compute

SAME = 1e-5
DRIFT = 0.02
"""How far each weight moves, at most, between drawing and learning."""
PROMPTS, DRAWS, LIMIT = 3, 4, 9
BETA = 0.04
GROUPED: Mapping[str, Any] = {"kl": "", "kl_in": "", "beta": 0.0, "overlong": 0.0, "truncated": "keep"}
"""What TRL does by default and a preset may say otherwise: no reference, rewards as they are, every answer counts."""

LOSSES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "grpo": ({}, {}),
    "dr_grpo": ({"scale_rewards": "none"}, {}),
    "dapo": ({"epsilon_high": 0.28}, {"high": 0.28}),
    "bnpo": ({}, {}),
    "cispo": ({"epsilon_high": 1.1}, {"most": 1.1}),
}
"""TRL's settings of each loss and ours; both name CISPO's cap itself."""
LEVELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "token": ({}, {"ratio": "token"}),
    "sequence": ({"epsilon": 0.03, "epsilon_high": 0.04}, {"ratio": "sequence_mean", "low": 0.03, "high": 0.04}),
}
"""A mean over a completion stays nearer to 1 than its tokens' ratios, so it is cut nearer to 1."""
KIND = pytest.mark.parametrize("kind", ["llama", "gpt2"])


class Drawn(NamedTuple):
    """Completions of one prompt, the last of which may have been cut at the limit, and their rewards."""

    tree: Tree
    ended: tuple[bool, ...]
    rewards: tuple[float, ...]


def drawn(kind: str, seed: int = 0) -> list[Drawn]:
    """Prompts and completions of different lengths; some end with EOS and some at the limit.

    TRL pads prompts on the left and leaves positions to the model, so where those are absolute a short prompt would
    begin at a later one; GPT-2's prompts are of one length.
    """
    draw, found = random.Random(seed), []
    for _ in range(PROMPTS):
        ended = [draw.random() < 0.6 for _ in range(DRAWS)]
        answers = tuple((*ids(draw, draw.randrange(1, LIMIT)), 0) if end else ids(draw, LIMIT) for end in ended)
        rewards = tuple(draw.uniform(-2, 2) for _ in answers)
        length = 7 if kind == "gpt2" else draw.randrange(2, 9)
        found.append(Drawn(Tree(ids(draw, length), answers), tuple(ended), rewards))
    return found


def move(model: PreTrainedModel) -> None:
    """Add the same small noise to the weights of either side."""
    chance = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, weight in sorted(model.named_parameters()):
            weight.add_(DRIFT * (2 * torch.rand(weight.shape, generator=chance) - 1))


def gradients(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: weight.grad.clone() for name, weight in model.named_parameters()}


def theirs(trainer: Any, config: Any, kind: str, rows: Sequence[Drawn], folder: Path, **given: Any) -> Taken:
    """Loss and gradient by the trainer's own methods, from the completions on."""
    model, reference = causal(kind).model, causal(kind, seed=7).model
    reference.save_pretrained(folder / "reference")
    model.config._name_or_path = str(folder / "reference")
    args = config(
        output_dir=str(folder),
        per_device_train_batch_size=PROMPTS * DRAWS,
        num_generations=DRAWS,
        max_completion_length=LIMIT,
        disable_dropout=True,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to="none",
        **given,
    )
    answers = [list(branch) for row in rows for branch in row.tree.branches]
    texts = [{"prompt": " ".join(map(str, row.tree.trunk)) + " "} for row in rows]
    made = trainer(
        model=model,
        reward_funcs=lambda completion_ids, **_: [reward for row in rows for reward in row.rewards],
        args=args,
        train_dataset=Dataset.from_list(texts),
        processing_class=words(model.config.vocab_size),
    )
    made._generate_single_turn = lambda *_: (answers, None) if trainer is trl.GRPOTrainer else answers
    made.current_gradient_accumulation_steps = 1
    made.model.train()
    inputs = made._generate_and_score_completions([text for text in texts for _ in range(DRAWS)])
    move(made.model)
    loss = made.compute_loss(made.model, inputs)
    loss.backward()
    return Taken(loss.item(), gradients(made.model))


def judged(rows: Sequence[Drawn]) -> list[Judged]:
    found = []
    for number, row in enumerate(rows):
        asked = Asked(Prompt(text=f"prompt {number}"), row.tree.trunk)
        finishes = tuple("stop" if end else "length" for end in row.ended)
        nothing = torch.zeros(sum(map(len, row.tree.branches)))
        rolled = Rolled(asked, row.tree, tuple("" for _ in finishes), finishes, nothing)
        found.append(Judged(rolled, row.rewards, {}))
    return found


def ours(method: str, kind: str, rows: Sequence[Drawn], *, tokens: int | None = None, **changed: Any) -> Taken:
    """Loss and gradient of one minibatch by the method's row, with the knobs that are ``changed``."""
    knobs = {**POLICY_GRADIENT[method].knobs, **changed}
    actor = Actor(
        causal(kind).model,
        Pace(),
        Compute(tokens=tokens),
        reference=causal(kind, seed=7).model if knobs["kl"] else None,
        kl=knobs["kl"],
    )
    trees = [row.tree for row in rows]
    with actor.ready():
        looked = actor.look(trees, old=True)
        given = {"beta": knobs["beta"], "own": True, "exact": True, "device": torch.device("cpu")}
        batch, _ = credit(judged(rows), looked, knobs=knobs, shape=lambda scores, ended, lengths: scores, **given)
        move(actor.policy)
        loss = partial(
            policy_gradient,
            bounds=Bounds(knobs["low"], knobs["high"], knobs["most"]),
            constant=LIMIT,
            **{name: knobs[name] for name in ("ratio", "clip", "aggregation", "kl", "kl_in", "beta")},
        )
        numbers = actor.gradient(batch, range(len(trees)), loss, minibatches=1).numbers
    if knobs["clip"] == "clip":
        assert 0.0 < numbers["policy/clip_fraction"] < 1.0
    return Taken(numbers["loss"], gradients(actor.policy))


def assert_same(expected: Taken, found: Callable[..., Taken], rows: Sequence[Drawn]) -> None:
    """In one forest and in several."""
    assert max(float(given.norm()) for given in expected.gradients.values()) > 1e-2
    for tokens in (None, sum(row.tree.size for row in rows) // PROMPTS):
        one = found(tokens=tokens)
        assert abs(one.loss - expected.loss) <= SAME * max(1.0, abs(expected.loss))
        assert apart(one.gradients, expected.gradients) <= SAME


@pytest.mark.parametrize("beta", [0.0, BETA])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("method", LOSSES)
@KIND
def test_a_group_relative_loss_is_trls(kind, method, level, beta, tmp_path):
    rows = drawn(kind)
    their, our = ({**one, **another} for one, another in zip(LEVELS[level], LOSSES[method], strict=True))
    expected = theirs(
        trl.GRPOTrainer,
        trl.GRPOConfig,
        kind,
        rows,
        tmp_path,
        loss_type=method,
        importance_sampling_level=level,
        beta=beta,
        use_bias_correction_kl=False,
        num_iterations=2,
        **their,
    )
    near = {"kl": "k3", "kl_in": "loss", "beta": beta} if beta else {}
    assert_same(expected, partial(ours, method, kind, rows, **{**GROUPED, **our, **near}), rows)


@pytest.mark.parametrize(
    ("their", "our"),
    [
        ({"delta": 1.3}, {"clip": "two_sided", "most": 1.3}),
        ({"mask_truncated_completions": True}, {"truncated": "mask"}),
        ({"scale_rewards": "none"}, {"advantage": "group_mean"}),
    ],
    ids=["two-sided clip", "truncated answers masked", "rewards not scaled"],
)
@KIND
def test_its_variants_are_trls(kind, their, our, tmp_path):
    rows = drawn(kind)
    given = {"loss_type": "dapo", "epsilon_high": 0.28, "num_iterations": 2, **their}
    expected = theirs(trl.GRPOTrainer, trl.GRPOConfig, kind, rows, tmp_path, **given)
    assert_same(expected, partial(ours, "dapo", kind, rows, **{**GROUPED, **our}), rows)


@pytest.mark.parametrize("beta", [0.0, 0.05])
@KIND
def test_leave_one_out_is_trls(kind, beta, tmp_path):
    rows = drawn(kind)
    expected = theirs(trl.RLOOTrainer, trl.RLOOConfig, kind, rows, tmp_path, beta=beta)
    near = {"kl": "k1", "kl_in": "reward", "beta": beta} if beta else GROUPED
    assert_same(expected, partial(ours, "rloo", kind, rows, **near), rows)
