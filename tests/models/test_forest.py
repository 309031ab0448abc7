"""A forest gives what the plain padded computation gives, whatever the architecture, the packing and the order."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from tests.models.tiny import NO_CLASSIFIER, REFUSED, RUNS, causal, ids, tokenizer, trees
from tiebreak.models import attention
from tiebreak.models.attention import forest_mode
from tiebreak.models.forest import Forest, Tree, plant
from tiebreak.models.generate import generate
from tiebreak.models.heads import scores
from tiebreak.models.kernels import blocks
from tiebreak.models.load import to_reward
from tiebreak.models.logprobs import padded_logps, token_logps
from tiebreak.records import InputError


def logps(model: Any, some: list[Tree]) -> torch.Tensor:
    with forest_mode(model), torch.no_grad():
        return token_logps(model, plant(some))


def by_branch(forest: Forest, values: torch.Tensor) -> list[torch.Tensor]:
    return list(values.split(forest.lengths.tolist()))


@pytest.mark.parametrize("kind", RUNS)
def test_completion_log_probs_are_those_of_each_completion_behind_its_own_prompt(kind: str) -> None:
    loaded, some = causal(kind), trees()
    plain = padded_logps(loaded.model.eval(), some, pad=1).detach()
    assert plain.std() > 0.1
    torch.testing.assert_close(logps(loaded.model, some), plain, atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("kind", RUNS)
def test_the_kernel_of_graphics_cards_computes_the_same_log_probs(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention in its eager form, which has no backward pass on a processor."""
    loaded, some = causal(kind), trees()
    loaded.model.set_attn_implementation("eager")
    plain = padded_logps(loaded.model, some, pad=1).detach()
    monkeypatch.setattr(attention, "choose", lambda *_, **__: "flex")
    torch.testing.assert_close(logps(loaded.model, some), plain, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kernel", ["laid", "blocks"])
@pytest.mark.parametrize("kind", RUNS)
def test_every_kernel_computes_the_same_log_probs_and_gradients(
    kind: str, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks of 4 places, so that trunks and branches are cut in the middle."""
    if kernel == "laid" and {"sliding_window", "attn_logit_softcapping"} & set(RUNS[kind]):
        pytest.skip("padded rows are not used for sliding windows and soft-capped scores")
    monkeypatch.setattr(attention, "choose", lambda *_, **__: kernel)
    monkeypatch.setattr(blocks, "BLOCK", 4)
    some, gradients = trees(), []
    for plain in (True, False):
        model = causal(kind).model
        if plain:
            model.set_attn_implementation("eager")
            values = padded_logps(model, some, pad=1)
        else:
            with forest_mode(model):
                values = token_logps(model, plant(some))
        (values * torch.linspace(-1, 1, len(values))).sum().backward()
        gradients.append((values.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])))
    torch.testing.assert_close(gradients[1][0], gradients[0][0], atol=1e-5, rtol=0)
    assert (gradients[0][1] - gradients[1][1]).norm() < 1e-5 * gradients[0][1].norm()


@pytest.mark.parametrize("kind", [kind for kind in RUNS if kind not in NO_CLASSIFIER])
def test_scores_are_those_of_each_sequence_alone(kind: str) -> None:
    loaded, some = causal(kind), trees()
    model = to_reward(loaded.model, loaded.tokenizer, seed=1).eval()
    with forest_mode(model), torch.no_grad():
        forest = scores(model, plant(some))
    body = getattr(model, model.base_model_prefix)
    with torch.no_grad():
        alone = [
            model.score(body(input_ids=torch.tensor([tree.trunk + branch])).last_hidden_state[0, -1])
            for tree in some
            for branch in tree.branches
        ]
    torch.testing.assert_close(forest, torch.cat(alone), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral"])
def test_gradients_are_those_of_the_plain_computation(kind: str) -> None:
    some = trees()
    grads = []
    for plain in (True, False):
        model = causal(kind).model
        if plain:
            padded_logps(model, some, pad=1).sum().backward()
        else:
            with forest_mode(model):
                token_logps(model, plant(some)).sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert (grads[0] - grads[1]).norm() < 1e-5 * grads[0].norm()


@pytest.mark.parametrize("kind", REFUSED)
def test_a_model_that_would_compute_something_else_is_refused_in_a_sentence(kind: str) -> None:
    model = causal(kind).model
    before = model.config._attn_implementation
    with pytest.raises(InputError, match=REFUSED[kind][1]) as refused, forest_mode(model):
        pass
    assert "\n" not in str(refused.value)
    assert "Llama" in str(refused.value)
    assert model.config._attn_implementation == before


def test_a_model_that_mixes_positions_behind_our_back_is_found_by_trying(monkeypatch: pytest.MonkeyPatch) -> None:
    """No list of bad architectures is complete, so the numbers decide."""
    loaded = causal("llama")
    layer = loaded.model.model.layers[0]
    plain = type(layer).forward

    def leaky(self: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        out = plain(self, hidden_states, *args, **kwargs)
        return out + 0.1 * hidden_states.mean(1, keepdim=True)

    monkeypatch.setattr(type(layer), "forward", leaky)
    with pytest.raises(InputError, match="something else on a forest"), forest_mode(loaded.model):
        pass


def test_the_order_and_the_packing_of_trees_change_nothing() -> None:
    model, some = causal("llama").model, trees()
    together = by_branch(plant(some), logps(model, some))
    backwards = by_branch(plant(some[::-1]), logps(model, some[::-1]))
    flat = [tree for tree in some for _ in tree.branches]
    branches = [Tree(tree.trunk, (branch,)) for tree in some for branch in tree.branches]
    alone = [logps(model, [tree]) for tree in branches]
    assert len(flat) == len(together) == len(alone)
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    starts = [0, *torch.bincount(plant(some[::-1]).tree).cumsum(0).tolist()]
    regrouped = [part for i in reversed(range(len(some))) for part in backwards[starts[i] : starts[i + 1]]]
    for one, other in zip(together, regrouped, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


@pytest.mark.parametrize("count", range(1, 6))
def test_branches_never_see_each_other(count: int) -> None:
    """Changing every other branch of a tree leaves a branch's numbers as they are."""
    draw, model = random.Random(count), causal("llama").model
    trunk, branches = ids(draw, 6), [ids(draw, 4) for _ in range(count)]
    before = by_branch(plant([Tree(trunk, tuple(branches))]), logps(model, [Tree(trunk, tuple(branches))]))
    for kept in range(count):
        others = tuple(branch if i == kept else ids(draw, 7) for i, branch in enumerate(branches))
        after = by_branch(plant([Tree(trunk, others)]), logps(model, [Tree(trunk, others)]))
        torch.testing.assert_close(after[kept], before[kept], atol=1e-5, rtol=0)


def test_a_pass_repeats_to_the_bit() -> None:
    model = causal("llama").model
    assert torch.equal(logps(model, trees()), logps(model, trees()))


def test_what_a_forest_says_about_its_trees() -> None:
    forest = plant([Tree((5, 6), ((7, 8), (9,))), Tree((4,), ((3,),))])
    assert forest.ids.tolist() == [[5, 6, 7, 8, 9, 4, 3]]
    assert forest.positions.tolist() == [[0, 1, 2, 3, 2, 0, 1]]
    assert forest.predictors.tolist() == [1, 2, 1, 5]
    assert forest.targets.tolist() == [7, 8, 9, 3]
    assert forest.last.tolist() == [3, 4, 6]
    assert forest.tree.tolist() == [0, 0, 1]
    assert forest.sums(torch.tensor([1.0, 2.0, 3.0, 4.0])).tolist() == [3.0, 3.0, 4.0]


@pytest.mark.parametrize("tree", [Tree((), ((1,),)), Tree((1,), ((),)), Tree((1,), ())])
def test_an_empty_prompt_or_completion_is_refused(tree: Tree) -> None:
    with pytest.raises(InputError, match="empty"):
        plant([tree])


def test_a_models_own_attention_comes_back_even_after_an_error() -> None:
    model = causal("gpt2").model
    before = model.config._attn_implementation
    with pytest.raises(ZeroDivisionError), forest_mode(model):
        token_logps(model, plant(trees())).sum() / (1 // 0)
    assert model.config._attn_implementation == before
    out = generate(model, [(5, 6, 7)], ["a"], temperature=0, max_new_tokens=3, eos=0, pad=1)
    assert len(out[0][0].ids) <= 3


def test_two_models_can_run_forests_together() -> None:
    policy, reward = causal("llama").model, to_reward(causal("gpt2").model, tokenizer(), seed=0)
    with forest_mode(policy, reward), torch.no_grad():
        forest = plant(trees())
        assert len(token_logps(policy, forest)) == len(forest.targets)
        assert len(scores(reward, forest)) == len(forest.lengths)
