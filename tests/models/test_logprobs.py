"""The tiled head gives what the model's own head gives, and leaves gradients where they belong."""

from __future__ import annotations

import pytest
import torch

from tests.models.tiny import RUNS, causal, trees
from tiebreak.models import logprobs
from tiebreak.models.attention import forest_mode
from tiebreak.models.forest import Tree, plant
from tiebreak.models.fused import gradients_in_place
from tiebreak.models.logprobs import head_of, plain_logps, token_logps


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("kind", RUNS)
def test_tiles_give_the_log_probs_and_gradients_of_the_models_own_head(
    kind: str, in_place: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprobs, "TILE", 1000)  # three positions a tile
    found = []
    for route in (plain_logps, token_logps):
        model = causal(kind).model
        with forest_mode(model):
            values = route(model, plant(trees()))
            if in_place:
                with gradients_in_place():
                    (values * torch.linspace(-1, 1, len(values))).sum().backward()
            else:
                (values * torch.linspace(-1, 1, len(values))).sum().backward()
        found.append((values.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])))
    assert logprobs._tried[model], f"the head of {kind} is not run in tiles"
    torch.testing.assert_close(found[1][0], found[0][0], atol=1e-5, rtol=0)
    assert (found[1][1] - found[0][1]).norm() < 1e-5 * found[0][1].norm()


def test_a_head_with_something_behind_it_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scale that no configuration tells of: the numbers decide, so the model's own head is used."""
    model = causal("llama").model
    monkeypatch.setattr(logprobs, "head_of", lambda m: head_of(m)._replace(factor=2.0))
    with forest_mode(model), torch.no_grad():
        torch.testing.assert_close(token_logps(model, plant(trees())), plain_logps(model, plant(trees())))


def test_only_learned_tokens_of_a_dialogue_are_predicted() -> None:
    """A branch whose middle is the user's turn: its tokens are context for what follows and are not learned."""
    model, tree = causal("llama").model, Tree((5, 6, 7), ((8, 9, 10, 11, 12), (13, 14)))
    mask = ((True, True, False, False, True), (False, True))
    with forest_mode(model), torch.no_grad():
        everything = token_logps(model, plant([tree]))
        forest = plant([tree._replace(taught=mask)])
        some = token_logps(model, forest)
    keep = torch.tensor([learned for branch in mask for learned in branch])
    torch.testing.assert_close(some, everything[keep])
    assert forest.lengths.tolist() == [3, 1]
    assert forest.last.tolist() == plant([tree]).last.tolist()
    torch.testing.assert_close(forest.sums(some), torch.stack((some[:3].sum(), some[3])))
