"""Prompts kept once: the plain route's numbers whatever comes, goes and moves, and no token computed twice."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from tests.models.test_generate import PAD, ending_often, logps, prompts, sample, texts, trees
from tests.models.tiny import REFUSED, RUNS, causal, ids
from tiebreak.models import decode, generate
from tiebreak.models.attention import forest_mode
from tiebreak.models.decode import decode_attention
from tiebreak.models.forest import roots
from tiebreak.models.logprobs import padded_logps
from tiebreak.models.pick import pick, pick_scored
from tiebreak.records import InputError


def plainly(model: Any, some: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch, **more: Any) -> Any:
    """Sample by the route of models that cannot share prompts."""
    with monkeypatch.context() as patch:
        patch.setattr(generate, "_can_share", lambda model: False)
        return sample(model, some, **more)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("kind", RUNS)
def test_shared_prompts_change_nothing(kind: str, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sliding windows, soft-capping, grouped heads, one-token prompts, EOS as the first token, the limit."""
    model, some = causal(kind).model.eval(), prompts(12)
    with ending_often(model):
        plain = plainly(model, some, monkeypatch, n=n)
        shared = sample(model, some, n=n)
    assert texts(shared) == texts(plain)
    assert (logps(shared) - logps(plain)).abs().max() < 1e-4
    assert n == 1 or {one.finish for draws in shared for one in draws} == {"stop", "length"}
    assert n == 1 or any(one.ids == () for draws in shared for one in draws)


@pytest.mark.parametrize("kind", REFUSED)
def test_models_that_cannot_run_a_forest_take_the_plain_route(kind: str) -> None:
    model, some = causal(kind).model.eval(), prompts()
    assert not generate._can_share(model)
    assert len(sample(model, some, n=2)) == len(some)


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma2"])
@pytest.mark.parametrize(
    ("batch", "refill", "prefill", "room"),
    [(128, 4, 8192, 32), (9, 1, 8192, 32), (9, 100, 1, 1), (4, 4, 12, 16), (1, 1, 1, 1), (24, 3, 20, 1)],
)
def test_refill_budget_and_room_do_not_change_texts(
    kind: str, batch: int, refill: int, prefill: int, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows come and go at different ages, prompts move to other slots, and memory grows under them."""
    model = causal(kind).model.eval()
    draw = random.Random(3)
    some = [ids(draw, draw.choice([1, 2, 5, 17, 40])) for _ in range(15)]
    with ending_often(model, odds=2.5):
        whole = sample(model, some, n=3, batch=1000, max_new_tokens=40)
        monkeypatch.setattr(decode, "REFILL", refill)
        monkeypatch.setattr(decode, "PREFILL", prefill)
        monkeypatch.setattr(decode, "ROOM", room)
        parts = sample(model, some, n=3, batch=batch, max_new_tokens=40)
        expected = padded_logps(model, trees(some, parts), pad=PAD)
    assert texts(parts) == texts(whole)
    assert (logps(parts) - expected).abs().max() < 1e-4
    assert max(len(one.ids) for draws in whole for one in draws) > 20


def test_no_token_is_computed_twice_or_for_nothing() -> None:
    """A prompt runs once for all its draws; of a draw every token but the last. Nothing is padded."""
    model, some = causal("llama").model.eval(), prompts(10)
    seen = []
    hook = model.get_input_embeddings().register_forward_hook(lambda module, inputs, out: seen.append(out.shape[1]))
    with forest_mode(model):
        seen.clear()
    with ending_often(model):
        drawn = sample(model, some, n=4, batch=16)
    hook.remove()
    spent = sum(len(one.logps) - 1 for draws in drawn for one in draws)
    assert sum(seen) == sum(map(len, some)) + spent


def test_the_head_runs_on_live_rows_only() -> None:
    model, some = causal("gpt2").model.eval(), prompts(10)
    with forest_mode(model):
        pass
    rows = []
    hook = model.lm_head.register_forward_hook(lambda module, inputs, out: rows.append(out.shape[1]))
    drawn = sample(model, some, n=4, batch=16, temperature=2.0)
    hook.remove()
    spent = sum(len(one.logps) - 1 for draws in drawn for one in draws)
    assert sum(rows) == len(some) + spent


def test_prompts_run_together_up_to_a_budget_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "PREFILL", 20)
    model = causal("llama").model.eval()
    some = [ids(random.Random(i), size) for i, size in enumerate([3, 30, 4, 9, 1, 12, 8])]
    with forest_mode(model):
        pass
    packs = []
    hook = model.register_forward_pre_hook(
        lambda module, inputs, named: (
            packs.append([span.trunk for span in named["forest"].spans]) if "forest" in named else None
        ),
        with_kwargs=True,
    )
    sample(model, some, max_new_tokens=2)
    hook.remove()
    assert packs == [[1, 3, 4, 8], [9], [12], [30]]


def test_rows_stay_many_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """With refill the same samples take fewer steps than batch after batch would."""
    monkeypatch.setattr(decode, "REFILL", 16)
    model, some = causal("llama").model.eval(), prompts(64)
    with forest_mode(model):
        pass
    steps = []
    hook = model.register_forward_pre_hook(lambda module, inputs, named: steps.append(named), with_kwargs=True)
    with ending_often(model):
        drawn = sample(model, some, batch=16, max_new_tokens=30)
    hook.remove()
    lengths = [len(draws[0].logps) for draws in drawn]
    decoding = sum("forest" not in named for named in steps)
    assert decoding < sum(lengths) / 16 * 2
    order = sorted(range(64), key=lambda i: (len(some[i]), i))
    assert decoding < sum(max(lengths[i] for i in order[first : first + 16]) for first in range(0, 64, 16))


def test_roots_pack_bare_prompts() -> None:
    forest = roots([(5, 6, 7), (8,), (9, 10)])
    assert forest.ids.tolist() == [[5, 6, 7, 8, 9, 10]]
    assert forest.positions.tolist() == [[0, 1, 2, 0, 0, 1]]
    assert forest.owner.tolist() == [-1, -1, -1, -2, -3, -3]
    assert forest.last.tolist() == [2, 3, 5]
    assert forest.tree.tolist() == [0, 1, 2]
    assert [(span.start, span.trunk, span.size, span.depth) for span in forest.spans] == [
        (0, 3, 3, 3),
        (3, 1, 1, 1),
        (4, 2, 2, 2),
    ]
    assert len(forest.targets) == len(forest.predictors) == 0
    with pytest.raises(InputError, match="no tokens"):
        roots([(1,), ()])


@pytest.mark.parametrize("kind", RUNS)
def test_prompts_of_a_forest_are_computed_as_if_alone(kind: str) -> None:
    model, some = causal(kind).model.eval(), [*prompts(9, seed=4), ids(random.Random(1), 100)]
    forest = roots(some)
    with torch.no_grad(), forest_mode(model):
        out = model(input_ids=forest.ids, position_ids=forest.positions, use_cache=False, forest=forest)
    packed = out.logits[0, forest.last]
    with torch.no_grad():
        for prompt, logits in zip(some, packed, strict=True):
            assert (model(torch.tensor([prompt])).logits[0, -1] - logits).abs().max() < 1e-4


def test_attention_without_a_memory_or_with_sinks_is_refused() -> None:
    states = torch.zeros(1, 2, 3, 4)
    with pytest.raises(InputError, match="Linear does not pass extra arguments"):
        decode_attention(torch.nn.Linear(1, 1), states, states, states, None)
    memory = decode.Memory(1, 1, columns=1, size=1, steps=1)
    with pytest.raises(InputError, match="Linear has attention sinks"):
        decode_attention(torch.nn.Linear(1, 1), states, states, states, None, memory=memory, s_aux=states)


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


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (5, 0.6)])
@pytest.mark.parametrize("bars", [False, True])
def test_picks_are_scored_unfiltered_in_tiles_as_in_one(
    temperature: float, top_k: int, top_p: float, bars: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(50, 20, generator=generator) * 3
    uniform = torch.rand(50, generator=generator, dtype=torch.float64)
    barred = (torch.rand(50, 20, generator=generator) < 0.3) if bars else None
    whole = pick_scored(logits, uniform, temperature, top_p, top_k, barred)
    allowed = logits if barred is None else logits.masked_fill(barred, float("-inf"))
    assert whole.tokens.equal(pick(allowed, uniform, temperature, top_p, top_k))
    assert barred is None or not barred.gather(1, whole.tokens[:, None]).any()
    expected = (logits / (temperature or 1.0)).log_softmax(-1).gather(1, whole.tokens[:, None])[:, 0]
    assert whole.logps.dtype == torch.float32
    assert (whole.logps - expected).abs().max() < 1e-5
    monkeypatch.setattr("tiebreak.models.pick.TILE", 7 * 20)
    tiled = pick_scored(logits, uniform, temperature, top_p, top_k, barred)
    assert tiled.tokens.equal(whole.tokens)
    assert tiled.logps.equal(whole.logps)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_refused(temperature: float, wrong: float) -> None:
    logits = torch.tensor([[0.0, 1.0], [wrong, 1.0]])
    with pytest.raises(InputError, match="not finite"):
        pick_scored(logits, torch.tensor([0.5, 0.5]), temperature)
    assert pick_scored(torch.tensor([[float("-inf"), 1.0]]), torch.tensor([0.0]), temperature).tokens.tolist() == [1]


def test_a_barred_token_that_is_nearly_certain_leaves_the_others_their_shares() -> None:
    logits = torch.tensor([[900.0, 0.0, 0.0]]).expand(2, -1)
    barred = torch.tensor([[True, False, False]]).expand(2, -1)
    picked = pick_scored(logits, torch.tensor([0.25, 0.75]), 1.0, barred=barred)
    assert picked.tokens.tolist() == [1, 2]
    assert picked.logps.tolist() == [-900.0, -900.0]
