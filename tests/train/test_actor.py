"""The nets of policy gradient: sharing prompts, splitting batches and keeping log-probs change nothing."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tests.models.tiny import ids
from tests.train.acting import TOKENS, VALUES, gradients, own_logps, prompts, start, value_net
from tiebreak.models.adapters import Adapter, adapt
from tiebreak.models.attention import forest_mode
from tiebreak.models.forest import Tree, plant
from tiebreak.models.heads import token_values
from tiebreak.models.logprobs import padded_logps
from tiebreak.train.actor import Actor, Batch
from tiebreak.train.offline import Compute, Pace
from tiebreak.train.policy_gradient.kl import FULL
from tiebreak.train.policy_gradient.switches import AGGREGATIONS, Bounds, policy_gradient
from tiebreak.train.reference import Reference, frozen_copy
from tiebreak.train.rollouts import Local, Rollout, roll

PACE = Pace(learning_rate=1e-3)
TRUNKS = (5, 1, 9)
SHAPE = ((7, 3, 5), (4, 1, 2), (6, 6, 2))
"""Tokens of three completions of each of three prompts."""
LORA = Adapter(rank=4, alpha=8.0)
LOSS: dict[str, Any] = {
    "ratio": "token",
    "clip": "clip",
    "aggregation": "token_mean",
    "bounds": Bounds(),
    "constant": 8.0,
    "kl": "k3",
    "kl_in": "loss",
    "beta": 0.1,
    "entropy": 0.01,
    "value": 0.5,
}


def grove(seed: int = 0) -> list[Tree]:
    draw = random.Random(seed)
    return [
        Tree(ids(draw, trunk), tuple(ids(draw, size) for size in sizes))
        for trunk, sizes in zip((5, 1, 9), SHAPE, strict=True)
    ]


def alone(trees: list[Tree]) -> list[Tree]:
    """Each completion behind a prompt of its own."""
    return [Tree(tree.trunk, (branch,)) for tree in trees for branch in tree.branches]


def flat(trees: list[Tree], seed: int = 1) -> dict[str, Tensor]:
    """Numbers as a batch has them, of a policy that is a little off the one that drew."""
    count = sum(len(branch) for tree in trees for branch in tree.branches)
    draw = torch.Generator().manual_seed(seed)
    near = own_logps(start(), trees)

    def noise(scale: float) -> Tensor:
        return scale * torch.randn(count, generator=draw)

    sizes = torch.tensor([len(branch) for tree in trees for branch in tree.branches])
    kept = torch.ones(len(sizes))
    kept[3:4] = 0.0
    return {
        "advantages": noise(1.0),
        "kept": kept.repeat_interleave(sizes),
        "old": near + noise(0.1),
        "reference": near + noise(0.2),
        "old_values": noise(0.5),
        "returns": noise(1.0),
    }


def made(value: str = "separate", compute: Compute | None = None, **more: Any) -> Actor:
    policy = start()
    critic = value_net(policy, value) if value else None
    if isinstance(critic, nn.Linear):
        nn.init.normal_(critic.weight, generator=torch.Generator().manual_seed(3))
    return Actor(policy, PACE, compute, critic=critic, **more)


def gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("value", VALUES)
def test_a_prompt_shared_by_its_completions_gives_the_loss_and_gradient_of_one_each(value: str) -> None:
    trees, numbers = grove(), flat(grove())
    loss = partial(policy_gradient, **LOSS)
    shared = gradients(made(value), Batch(trees, numbers), loss)
    single = gradients(made(value), Batch(alone(trees), numbers), loss)
    assert shared[0] == pytest.approx(single[0], rel=1e-5)
    assert gap(shared[1], single[1]) < 1e-5


@pytest.mark.parametrize("value", VALUES)
def test_a_prompt_shared_by_its_completions_gives_their_log_probs_values_and_reference(value: str) -> None:
    trees = grove()
    found = []
    for some in (trees, alone(trees)):
        actor = made(value, reference=start(seed=7), kl="k1", temperature=0.7)
        with actor.ready():
            found.append(actor.look(some, old=True))
    for shared, single in zip(*found, strict=True):
        torch.testing.assert_close(shared, single, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("tokens", [1, 12, 25, 40])
def test_the_token_budget_changes_neither_what_is_seen_nor_the_gradient(value: str, tokens: int) -> None:
    trees, numbers = grove(), flat(grove())
    loss, seen, learned = partial(policy_gradient, **LOSS), [], []
    for compute in (Compute(), Compute(tokens=tokens)):
        actor = made(value, compute, reference=start(seed=7), kl="k3")
        with actor.ready():
            seen.append(actor.look(trees, old=True))
        learned.append(gradients(actor, Batch(trees, numbers), loss))
    for whole, split in zip(*seen, strict=True):
        torch.testing.assert_close(split, whole, atol=1e-5, rtol=1e-5)
    assert learned[1][0] == pytest.approx(learned[0][0], rel=1e-5)
    assert gap(learned[1][1], learned[0][1]) < 1e-5


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("ratio", ["token", "sequence_mean", "sequence_sum"])
def test_parts_of_a_batch_add_up_to_it_whatever_the_aggregation(aggregation: str, ratio: str) -> None:
    """Normalised by the whole: parts of other sizes and lengths, one of them with a masked completion."""
    trees, numbers = grove(), flat(grove())
    loss = partial(policy_gradient, **{**LOSS, "aggregation": aggregation, "ratio": ratio})
    whole = gradients(made(), Batch(trees, numbers), loss)
    parts = gradients(made(compute=Compute(tokens=1)), Batch(trees, numbers), loss)
    assert parts[0] == pytest.approx(whole[0], rel=1e-5)
    assert gap(parts[1], whole[1]) < 1e-5


def test_a_mean_over_the_batch_weighs_a_token_alike_in_every_minibatch() -> None:
    """DAPO: minibatches of unequal length sum to as many times the batch's mean as there are minibatches."""
    trees, numbers = grove(), flat(grove())
    loss = partial(policy_gradient, **{**LOSS, "aggregation": "batch_token_mean", "value": 0.0})
    batch = Batch(trees, numbers)
    whole = gradients(made(), batch, loss)
    parts = [gradients(made(), batch, loss, rows=[row], minibatches=len(trees)) for row in range(len(trees))]
    assert sum(part[0] for part in parts) == pytest.approx(len(trees) * whole[0], rel=1e-5)
    assert gap(sum((part[1] for part in parts), torch.zeros_like(whole[1])), len(trees) * whole[1]) < 1e-5


def test_numbers_of_some_trees_are_theirs_in_any_order() -> None:
    trees = grove()
    batch = Batch(trees, {"numbers": torch.arange(sum(map(sum, SHAPE)))})
    assert batch.starts == [0, 15, 22, 36]
    assert batch.of([2, 0])["numbers"].tolist() == [*range(22, 36), *range(15)]


def test_masked_completions_do_not_count_in_what_a_minibatch_is_divided_by() -> None:
    trees = grove()
    kept = torch.ones(36)
    kept[15:19] = 0.0  # the first completion of the second tree
    batch = Batch(trees, {"kept": kept})
    assert batch.whole([0, 1], 2) == (5.0, 18.0, 16.0)
    assert batch.whole([1], 1) == (2.0, 3.0, 32.0)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3", "gemma2"])
def test_log_probs_kept_from_sampling_are_those_of_the_trainer_and_of_the_plain_model(
    kind: str, temperature: float
) -> None:
    model = start(kind)
    how = Rollout(n=3, max_new_tokens=6, temperature=temperature)
    actor = Actor(model, PACE, temperature=temperature)
    with actor.ready():
        source = Local(model, TOKENS, how, seed=0, precision="float32")
        drawn = roll(source, TOKENS, prompts(4), n=3, temperature=temperature, turn="0")
        looked = actor.look([one.tree for one in drawn], old=True)
    sampled = torch.cat([one.sampled for one in drawn])
    assert looked.old is not None
    assert float((sampled - looked.old).abs().max()) < 1e-4
    if temperature == 1.0:
        with torch.no_grad():
            plain = padded_logps(model, [one.tree for one in drawn], pad=TOKENS.pad_token_id)
        assert float((sampled - plain).abs().max()) < 1e-4


def test_the_reference_is_tempered_as_the_policy_is() -> None:
    trees, other = grove(), start(seed=7)
    actor = made("", reference=other, kl="k1", temperature=0.7)
    with actor.ready():
        looked = actor.look(trees, old=True)
    assert looked.reference is not None
    torch.testing.assert_close(looked.reference, own_logps(other, trees, 0.7), atol=1e-5, rtol=1e-5)
    assert float((looked.reference - own_logps(other, trees)).abs().max()) > 0.05


def test_under_an_adapter_the_base_is_the_reference_also_when_the_policy_has_moved() -> None:
    trees, policy = grove(), adapt(start(), LORA, seed=0)
    actor = Actor(policy, PACE, reference=frozen_copy(policy, Reference()), kl="k1")
    with torch.no_grad():
        for parameter in actor.trained:
            parameter.add_(0.05)
    with actor.ready():
        looked = actor.look(trees, old=True)
    assert looked.old is not None
    assert looked.reference is not None
    torch.testing.assert_close(looked.reference, own_logps(start(), trees), atol=1e-5, rtol=1e-5)
    assert float((looked.old - looked.reference).abs().max()) > 0.01


def test_values_are_read_where_a_token_is_about_to_be_chosen() -> None:
    trees, actor = grove(), made("separate")
    assert isinstance(actor.critic, PreTrainedModel)
    with actor.ready():
        looked = actor.look(trees, old=False)
    assert looked.old is None
    assert looked.reference is None
    with torch.no_grad(), forest_mode(actor.critic):
        expected = torch.cat([token_values(actor.critic, plant([tree])) for tree in alone(trees)])
    assert looked.values is not None
    torch.testing.assert_close(looked.values, expected, atol=1e-5, rtol=1e-5)
    first = [0, 15, 22]
    one = Tree(trees[0].trunk, ((5, 6),))
    with torch.no_grad(), forest_mode(actor.critic):
        assert float(token_values(actor.critic, plant([one]))[0]) == pytest.approx(float(looked.values[0]), abs=1e-5)
    assert len({round(float(looked.values[i]), 4) for i in first}) == 3


@pytest.mark.parametrize("value", ["", *VALUES])
def test_at_the_start_the_policy_is_its_reference(value: str) -> None:
    actor = made(value, reference=start(), kl="k1", temperature=0.7)
    with actor.ready():
        looked = actor.look(grove(), old=True)
    assert looked.old is not None
    assert looked.reference is not None
    assert float((looked.old - looked.reference).abs().max()) < 1e-6


def test_the_whole_vocabularys_distance_is_that_of_the_plain_distributions() -> None:
    trees, other = grove(), start(seed=7)
    actor, numbers = made("", reference=other, kl=FULL), flat(grove())
    seen: list[Tensor] = []

    def loss(acted: Any) -> Any:
        seen.append(acted.distance.detach())
        return policy_gradient(acted, **{**LOSS, "kl": FULL, "value": 0.0})

    of_policy = {name: values for name, values in numbers.items() if name not in ("old_values", "returns")}
    gradients(actor, Batch(trees, of_policy), loss)
    found, expected = seen[0], []
    with torch.no_grad():
        for tree in alone(trees):
            row = torch.tensor([tree.trunk + tree.branches[0]])
            own, ref = (m(row).logits[0].float().log_softmax(-1) for m in (start(), other))
            expected.append((own.exp() * (own - ref)).sum(-1)[len(tree.trunk) - 1 : -1])
    torch.testing.assert_close(found, torch.cat(expected), atol=1e-4, rtol=1e-4)


def test_tokens_that_are_not_taught_carry_no_loss() -> None:
    """A tool's words in the middle of a completion: what follows sees them, and nothing is learned of them."""
    taught = ((True, False, False, True, True), (True, True))
    branches = ((4, 5, 6, 7, 8), (9, 10))
    tree, other = Tree((2, 3), branches, taught), Tree((2, 3), branches)
    mask = torch.tensor([flag for row in taught for flag in row])
    numbers = flat([other])
    numbers["kept"] = torch.ones(7)
    loss = partial(policy_gradient, **{**LOSS, "entropy": 0.0})
    batch = Batch([tree], {name: values[mask] for name, values in numbers.items()})
    masked = Batch([other], {**numbers, "kept": mask.float()})
    assert batch.whole([0], 1) == (2.0, 5.0, 5.0)
    found, expected = gradients(made(), batch, loss), gradients(made(), masked, loss)
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    assert gap(found[1], expected[1]) < 1e-5


def test_the_value_net_alone_learns_from_the_value_loss() -> None:
    """And a head on the policy's states moves the policy too, which is why the separate net is the default."""
    trees, numbers = grove(), flat(grove())
    still = replace(Batch(trees, {**numbers, "advantages": torch.zeros(36)}))
    loss = partial(policy_gradient, **{**LOSS, "beta": 0.0, "entropy": 0.0})
    for value, moves in (("separate", False), ("shared", True)):
        actor = made(value)
        with actor.ready():
            actor.gradient(still, [0, 1, 2], loss, minibatches=1)
            size = sum(float(p.grad.abs().sum()) for p in actor.policy.parameters() if p.grad is not None)
        assert (size > 0) == moves
        assert actor.critic is not None
        assert all(p.grad is not None for p in actor.critic.parameters())
