"""Readings of a completion equal the plain computation over the whole vocabulary, gradients included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.models.tiny import RUNS, causal, trees
from tiebreak.models import logprobs
from tiebreak.models.adapters import Adapter, adapt
from tiebreak.models.attention import forest_mode
from tiebreak.models.forest import Tree, plant
from tiebreak.models.logprobs import distributions
from tiebreak.models.readings import OF_TWO, Other, read
from tiebreak.records import InputError

M = 1.7


def pair_of_models(kind: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    model, other = causal(kind).model, causal(kind).model
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in other.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=draw)
    return model, other


def plain(name: str, own: Tensor, others: Tensor, targets: Tensor) -> Tensor:
    if name == "token_kl":
        return (others.exp() * (others - own)).sum(-1)
    if name == "collision":
        return own.exp().square().sum(-1).log().detach()
    mixed = (M * own + (1 - M) * others).log_softmax(-1)
    return mixed.gather(1, targets[:, None])[:, 0].detach()


@pytest.mark.parametrize("name", ["token_kl", "collision", "extrapolated"])
@pytest.mark.parametrize("kind", RUNS)
def test_a_reading_is_the_formula_over_the_whole_vocabulary(
    kind: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprobs, "TILE", 1000)  # three positions a tile
    model, other = pair_of_models(kind)
    forest = plant(trees())
    with forest_mode(model, other):
        with torch.no_grad():
            others = distributions(other, forest)
        expected = forest.sums(plain(name, distributions(model, forest), others, forest.targets))
        weights = torch.linspace(-1, 1, len(expected))
        gradients = []
        found = read(model, forest, [name], other=Other(other), extrapolate=M)[:, 1]
        for values in (found, expected):
            model.zero_grad()
            if values.requires_grad:
                (values * weights).sum().backward()
                gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(found.detach(), expected.detach(), atol=2e-5, rtol=1e-4)
    if name == "token_kl":
        assert (gradients[0] - gradients[1]).norm() < 1e-4 * gradients[1].norm()
        assert all(weight.grad is None for weight in other.parameters())
        assert (found >= -1e-6).all()
    else:
        assert not gradients[0].any(), "no gradient flows through a yardstick"


def test_a_model_against_itself_diverges_nowhere_and_extrapolates_to_itself() -> None:
    model = causal("llama").model
    forest = plant(trees())
    with forest_mode(model), torch.no_grad():
        found = read(model, forest, OF_TWO, other=Other(model), extrapolate=M)
    torch.testing.assert_close(found[:, 1], torch.zeros(len(found)), atol=1e-6, rtol=0)
    torch.testing.assert_close(found[:, 2], found[:, 0], atol=1e-5, rtol=0)


def test_the_base_under_an_adapter_is_the_other_model() -> None:
    model = causal("llama").model
    forest = plant(trees())
    with forest_mode(model), torch.no_grad():
        before = distributions(model, forest)
    adapted = adapt(model, Adapter(rank=2), seed=0)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.05)
    with forest_mode(adapted), torch.no_grad():
        now = distributions(adapted, forest)
        found = read(adapted, forest, ["token_kl"], other=Other(adapted, off=True))[:, 1]
    torch.testing.assert_close(found, forest.sums((before.exp() * (before - now)).sum(-1)), atol=1e-5, rtol=1e-4)
    assert float(found.min()) > 0


def test_the_shared_length_counts_learned_tokens_of_compared_branches() -> None:
    model = causal("llama").model
    tree = Tree((5, 6), ((7, 8, 9), (10, 11, 12, 13, 14), (15,)))
    two = Tree((5,), ((9, 8), (7, 6)), ((False, True), (True, True)))
    forest = plant([tree, two])
    with forest_mode(model), torch.no_grad():
        tokens = logprobs.token_logps(model, forest).split(forest.lengths.tolist())
        found = read(model, forest, ["public"], [2, 2])[:, 1]
        every = read(model, forest, ["public"])[:, 1]
    expected = [tokens[0].sum(), tokens[1][:3].sum(), tokens[2].sum(), tokens[3].sum(), tokens[4][:1].sum()]
    torch.testing.assert_close(found, torch.stack(expected))
    torch.testing.assert_close(every[:3], torch.stack([part[:1].sum() for part in tokens[:3]]))


@pytest.mark.parametrize("kind", RUNS)
def test_a_tree_without_a_trunk_is_its_branches_by_themselves(kind: str) -> None:
    """Prompts that share no token: each is read in its own branch, and only the answer behind it is learned."""
    model = causal(kind).model
    sides = [((5, 6, 7), (8, 9)), ((10, 11), (12, 13, 14)), ((15,), (16,))]
    taught = tuple((False,) * len(prompt) + (True,) * len(answer) for prompt, answer in sides)
    together = Tree((), tuple(prompt + answer for prompt, answer in sides), taught)
    alone = [Tree(prompt, (answer,)) for prompt, answer in sides]
    found = []
    for rows in ([trees()[0], together, trees()[1]], [trees()[0], *alone, trees()[1]]):
        model.zero_grad()
        with forest_mode(model):
            values = logprobs.token_logps(model, plant(rows))
        (values * torch.linspace(-1, 1, len(values))).sum().backward()
        found.append((values.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])))
    torch.testing.assert_close(found[0][0], found[1][0], atol=1e-5, rtol=1e-4)
    assert (found[0][1] - found[1][1]).norm() < 1e-4 * found[1][1].norm()
    with pytest.raises(InputError, match="empty prompt"):
        plant([Tree((), ((5, 6),))])
