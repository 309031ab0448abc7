"""Sampling: the library's greedy text, streams that depend on nothing but their name, and the right distribution."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from tests.models.tiny import WINDOW, causal, ids
from tiebreak.models.generate import Drawn, generate
from tiebreak.models.pick import pick
from tiebreak.records import InputError

EOS, PAD = 0, 1


def prompts(count: int = 7, seed: int = 0) -> list[tuple[int, ...]]:
    draw = random.Random(seed)
    return [ids(draw, 1 if i == 0 else draw.randrange(2, 12)) for i in range(count)]


def sample(model: Any, some: list[tuple[int, ...]], **more: Any) -> list[list[Drawn]]:
    keys = [str(prompt) for prompt in some]
    return generate(model, some, keys, **{"max_new_tokens": 12, "eos": EOS, "pad": PAD, **more})


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral", "gemma3_text"])
def test_greedy_text_is_the_librarys_token_by_token(kind: str) -> None:
    assert WINDOW < 12
    model, some = causal(kind).model.eval(), prompts()
    for prompt, (drawn,) in zip(some, sample(model, some, temperature=0.0), strict=True):
        out = model.generate(
            torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=EOS, pad_token_id=PAD
        )[0, len(prompt) :].tolist()
        assert list(drawn.ids) == [token for token in out if token != EOS]
        assert drawn.finish == ("stop" if EOS in out else "length")


def test_a_draw_depends_on_its_seed_prompt_and_number_alone() -> None:
    """Not on the batch, the order of the prompts, or how many draws there are."""
    model, some = causal("llama").model.eval(), prompts()
    whole = sample(model, some, n=3)
    assert sample(model, some, n=3, batch=3) == whole
    assert sample(model, some[::-1], n=3)[::-1] == whole
    assert sample(model, some[2:4], n=2) == [draws[:2] for draws in whole[2:4]]
    assert sample(model, some, n=3, seed=1) != whole
    assert all(len({draw.ids for draw in draws}) > 1 for draws in whole)


def test_rows_end_by_themselves_or_at_the_limit_and_eos_is_left_out() -> None:
    model = causal("llama").model.eval()
    likely_end = lambda m, i, out: setattr(out, "logits", _raised(out.logits))  # noqa: E731
    hook = model.register_forward_hook(likely_end)
    drawn = [draw for draws in sample(model, prompts(20), n=2) for draw in draws]
    hook.remove()
    assert {draw.finish for draw in drawn} == {"stop", "length"}
    for draw in drawn:
        assert EOS not in draw.ids
        assert (len(draw.ids) == 12) == (draw.finish == "length")
    assert any(draw.ids == () for draw in drawn)


def _raised(logits: torch.Tensor) -> torch.Tensor:
    out = logits.clone()
    out[..., EOS] = out.logsumexp(-1) - 1.5
    return out


def test_too_long_or_empty_prompts_are_refused() -> None:
    model = causal("llama").model
    with pytest.raises(InputError, match="128 positions"):
        sample(model, [tuple(range(2, 122))])
    with pytest.raises(InputError, match="no tokens"):
        sample(model, [(5, 6), ()])
    assert sample(model, []) == []


def brute_force(p: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """Keep the k most likely, then of these the smallest set with mass p, then renormalise."""
    kept = torch.zeros_like(p)
    order = sorted(range(len(p)), key=lambda i: (-float(p[i]), i))[: top_k or len(p)]
    whole, mass = sum(float(p[i]) for i in order), 0.0
    for i in order:
        if mass >= top_p * whole:
            break
        kept[i] = p[i]
        mass += float(p[i])
    return kept / kept.sum()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (5, 1.0), (0, 0.7), (6, 0.8), (1, 1.0), (0, 1e-9), (99, 1.0)])
def test_pick_inverts_the_filtered_distribution_exactly(temperature: float, top_k: int, top_p: float) -> None:
    """At an even grid of uniforms each token comes up its probability times the grid, to one cell."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(20, generator=generator) * 2
    grid = 20_000
    uniform = (torch.arange(grid, dtype=torch.float64) + 0.5) / grid
    chosen = pick(logits.expand(grid, -1), uniform, temperature, top_p, top_k)
    expected = brute_force((logits.double() / temperature).softmax(-1), top_k, top_p)
    shares = torch.bincount(chosen, minlength=20) / grid
    assert (shares - expected).abs().max() <= 2 / grid
    assert not shares[expected == 0].any()


def test_the_last_uniform_never_reaches_a_token_that_was_filtered_out() -> None:
    edge = torch.tensor([1.0 - 2.0**-53])
    for _ in range(20):
        logits = torch.randn(1, 50)
        allowed = brute_force(logits[0].double().softmax(-1), 3, 1.0) > 0
        assert allowed[pick(logits, edge.double(), 1.0, 1.0, 3)]


def test_greedy_takes_the_most_likely_token() -> None:
    assert pick(torch.tensor([[0.0, 3.0, 1.0]]), torch.tensor([0.9]), 0.0).tolist() == [1]
