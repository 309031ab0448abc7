"""ArmoRM's head: shares that sum to 1, a gate that is all one mark, and marks freed of what goes along with another."""

from __future__ import annotations

import pytest
import torch

from tiebreak.models.gated import Gated
from tiebreak.records import InputError


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def head(**more: float) -> Gated:
    made = Gated(5, 3, hidden=(6,), dropout=0.0, seed=1, **more)
    made.mark(drawn(3, 5, seed=2), drawn(3, seed=3))
    made.calibrate(drawn(20, 5), drawn(20, 5, seed=4))
    return made.eval()


def test_a_score_is_the_mean_of_marks_by_shares_that_sum_to_1() -> None:
    values, prompts = drawn(9, 5, seed=5), drawn(9, 5, seed=6)
    made = head()
    shares = made.shares(prompts)
    assert torch.allclose(shares.sum(1), torch.ones(9))
    assert bool((shares > 0).all())
    expected = (shares * (values @ drawn(3, 5, seed=2).T + drawn(3, seed=3))).sum(1)
    assert torch.allclose(made(values, None, prompts), expected, atol=1e-6)
    assert torch.allclose(shares, torch.softmax(made.gate(prompts) / 10.0, 1))


def test_a_gate_for_one_mark_is_that_mark() -> None:
    values, prompts = drawn(9, 5, seed=5), drawn(9, 5, seed=6)
    made = head()
    with torch.no_grad():
        made.gate.last.bias[1] += 1e4
    assert torch.allclose(made(values, None, prompts), made.marks(values)[:, 1], atol=1e-5)


def test_no_mark_goes_along_with_one_that_was_taken_out() -> None:
    values = drawn(200, 5, seed=7) + 2.0
    made = head()
    before = made.marks(values)
    made.without(2, values)
    after = made.marks(values)
    apart = before[:, 2] - before[:, 2].mean()
    assert torch.allclose(((after - after.mean(0)) * apart[:, None]).mean(0), torch.zeros(3), atol=1e-4)
    assert torch.allclose(after[:, 2], torch.zeros(200), atol=1e-4)
    length = torch.corrcoef(torch.stack([made(values, None, drawn(1, 5).expand(200, 5)).detach(), before[:, 2]]))[0, 1]
    assert float(length.abs()) < 1e-4


def test_what_cannot_be_gated_is_refused() -> None:
    with pytest.raises(InputError, match="mixes 1 marks"):
        Gated(5, 1)
    with pytest.raises(InputError, match="reads the prompt"):
        head()(drawn(2, 5))
    with pytest.raises(InputError, match="has 3 marks, from 0, and none numbered 3"):
        head().without(3, drawn(9, 5))
    with pytest.raises(InputError, match="the same for all completions"):
        head().without(0, torch.ones(9, 5))
