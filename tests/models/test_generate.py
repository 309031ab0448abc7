"""Sampling: the library's greedy text, the trainer's log-probs, streams that depend on nothing but their name."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from tests.models.tiny import REFUSED, RUNS, WINDOW, causal, ids
from tiebreak.models import generate as room
from tiebreak.models.adapters import Adapter, adapt, adapted, adapter_off
from tiebreak.models.forest import Tree, plant
from tiebreak.models.generate import Drawn, generate
from tiebreak.models.logprobs import padded_logps, token_logps
from tiebreak.records import InputError

EOS, PAD = 0, 1
SHOWN = ["llama", "gpt2", "mistral", "gemma2", "gemma3_text"]


def prompts(count: int = 7, seed: int = 0) -> list[tuple[int, ...]]:
    draw = random.Random(seed)
    return [ids(draw, 1 if i == 0 else draw.randrange(2, 12)) for i in range(count)]


def sample(model: Any, some: list[tuple[int, ...]], **more: Any) -> list[list[Drawn]]:
    keys = [str(prompt) for prompt in some]
    return generate(model, some, keys, **{"max_new_tokens": 12, "eos": EOS, "pad": PAD, **more})


def texts(drawn: list[list[Drawn]]) -> list[list[tuple[tuple[int, ...], str]]]:
    return [[(one.ids, one.finish) for one in draws] for draws in drawn]


def logps(drawn: list[list[Drawn]]) -> torch.Tensor:
    return torch.tensor([number for draws in drawn for one in draws for number in one.logps])


def trees(some: list[tuple[int, ...]], drawn: list[list[Drawn]]) -> list[Tree]:
    """What a trainer makes of samples: EOS is learned where it was drawn."""
    return [
        Tree(prompt, tuple(one.ids + (EOS,) * (one.finish == "stop") for one in draws))
        for prompt, draws in zip(some, drawn, strict=True)
    ]


@contextmanager
def ending_often(model: Any, *, odds: float = 1.5) -> Iterator[None]:
    """Let EOS have about exp(-odds) of the probability at every place."""

    def raised(_module: Any, _inputs: Any, out: Any) -> None:
        out.logits = out.logits.clone()
        out.logits[..., EOS] = out.logits.logsumexp(-1) - odds

    hook = model.register_forward_hook(raised)
    try:
        yield
    finally:
        hook.remove()


@pytest.mark.parametrize("kind", [*RUNS, *REFUSED])
def test_greedy_text_is_the_librarys_token_by_token(kind: str) -> None:
    """Of models that share prompts and of those that cannot; windows are shorter than the sequences."""
    assert WINDOW < 12
    model, some = causal(kind).model.eval(), prompts()
    for prompt, (drawn,) in zip(some, sample(model, some, temperature=0.0), strict=True):
        out = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=EOS,
            pad_token_id=PAD,
        )[0, len(prompt) :].tolist()
        assert list(drawn.ids) == [token for token in out if token != EOS]
        assert drawn.finish == ("stop" if EOS in out else "length")


@pytest.mark.parametrize("kind", [*RUNS, "falcon", "gpt_oss"])
def test_log_probs_are_the_trainers(kind: str) -> None:
    model, some = causal(kind).model.eval(), prompts()
    drawn = sample(model, some, n=3)
    expected = padded_logps(model, trees(some, drawn), pad=PAD)
    assert (logps(drawn) - expected).abs().max() < 1e-4
    if kind in SHOWN:
        with room.forest_mode(model):
            assert (logps(drawn) - token_logps(model, plant(trees(some, drawn)))).abs().max() < 1e-4


@pytest.mark.parametrize(("temperature", "filters"), [(0.5, {}), (2.0, {}), (1.0, {"top_p": 0.5}), (0.7, {"top_k": 5})])
def test_log_probs_are_of_the_tempered_distribution_over_the_whole_vocabulary(
    temperature: float, filters: dict[str, Any]
) -> None:
    model, some = causal("llama").model.eval(), prompts()
    drawn = sample(model, some, n=2, temperature=temperature, **filters)
    for prompt, draws in zip(some, drawn, strict=True):
        for one in draws:
            said = one.ids + (EOS,) * (one.finish == "stop")
            logits = model(torch.tensor([prompt + said])).logits[0, len(prompt) - 1 : -1]
            expected = (logits / temperature).log_softmax(-1).gather(1, torch.tensor(said)[:, None])[:, 0]
            assert (torch.tensor(one.logps) - expected).abs().max() < 1e-4


def test_greedy_log_probs_are_those_of_temperature_one() -> None:
    model, some = causal("llama").model.eval(), prompts()
    drawn = sample(model, some, temperature=0.0)
    assert (logps(drawn) - padded_logps(model, trees(some, drawn), pad=PAD)).abs().max() < 1e-4


@pytest.mark.parametrize("kind", ["llama", "falcon"])
def test_eos_has_a_log_prob_and_no_place_among_the_ids(kind: str) -> None:
    model = causal(kind).model.eval()
    with ending_often(model):
        drawn = [one for draws in sample(model, prompts(20), n=2) for one in draws]
    assert {one.finish for one in drawn} == {"stop", "length"}
    for one in drawn:
        assert EOS not in one.ids
        assert (len(one.ids) == 12) == (one.finish == "length")
        assert len(one.logps) == len(one.ids) + (one.finish == "stop")
    assert any(one.ids == () and len(one.logps) == 1 for one in drawn)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "falcon"])
def test_a_draw_depends_on_its_seed_prompt_and_number_alone(kind: str) -> None:
    """Not on the batch, the order of the prompts, or how many draws there are."""
    model, some = causal(kind).model.eval(), prompts()
    whole = sample(model, some, n=3)
    for same in (
        sample(model, some, n=3, batch=3),
        sample(model, some, n=3, batch=2),
        sample(model, some[::-1], n=3)[::-1],
    ):
        assert texts(same) == texts(whole)
        assert (logps(same) - logps(whole)).abs().max() < 1e-5
    assert texts(sample(model, some[2:4], n=2)) == texts([draws[:2] for draws in whole[2:4]])
    assert sample(model, some, n=3) == whole
    assert texts(sample(model, some, n=3, seed=1)) != texts(whole)
    assert all(len({one.ids for one in draws}) > 1 for draws in whole)


@pytest.mark.parametrize("kind", ["llama", "falcon"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_least_length_bars_eos_and_leaves_log_probs_alone(kind: str, temperature: float) -> None:
    model, some = causal(kind).model.eval(), prompts()
    with ending_often(model):
        drawn = sample(model, some, n=2, temperature=temperature, min_new_tokens=6)
        expected = padded_logps(model, trees(some, drawn), pad=PAD)
    assert all(len(one.ids) >= 6 for draws in drawn for one in draws)
    assert temperature == 0.0 or any(one.finish == "stop" for draws in drawn for one in draws)
    assert (logps(drawn) - expected).abs().max() < 1e-4
    with ending_often(model):
        forced = sample(model, some, min_new_tokens=12, temperature=temperature)
    assert {(len(one.ids), one.finish) for draws in forced for one in draws} == {(12, "length")}


def test_weights_are_read_anew_in_every_call() -> None:
    model, other, some = causal("llama").model.eval(), causal("llama", seed=1).model.eval(), prompts()
    first = sample(model, some)
    model.load_state_dict(other.state_dict())
    assert texts(sample(model, some)) == texts(sample(other, some)) != texts(first)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_bfloat16_stays_near_and_casts_each_weight_once(
    kind: str, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether or not weights want a gradient, and with kernels of their own layout or without."""
    if not packed:
        monkeypatch.setattr(room, "PACKED", 0)
    model, some = causal(kind).model.eval(), prompts()
    model.requires_grad_(False)
    model.get_input_embeddings().weight.requires_grad_(True)
    wanted = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    sample(model, some, max_new_tokens=1)
    with torch.profiler.profile(record_shapes=True) as profile:
        drawn = sample(model, some, n=2, precision="bfloat16")
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == wanted
    matrices = [tuple(p.shape) for p in model.parameters() if p.ndim == 2]
    shapes = [tuple(event.input_shapes[0]) for event in profile.events() if event.name == "aten::_to_copy"]
    for shape in {*matrices}:
        assert 1 <= shapes.count(shape) <= matrices.count(shape) + 1  # a tied table is the head too
    expected = padded_logps(model, trees(some, drawn), pad=PAD)
    assert 1e-4 < (logps(drawn) - expected).abs().max() < 0.3
    assert (logps(drawn) - expected).abs().mean() < 0.05


@pytest.mark.parametrize("packed", [True, False])
def test_gradients_still_flow_in_an_outer_autocast_region(packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cast made without gradients must not be found by the training step behind it."""
    if not packed:
        monkeypatch.setattr(room, "PACKED", 0)
    model, some = causal("llama").model, prompts()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = model(torch.tensor([some[3]])).logits.float().sum()
        drawn = sample(model, some, precision="bfloat16")
        after = model(torch.tensor([some[3]])).logits.float().sum()
        plain = sample(model, some)
    for loss in (before, after):
        model.zero_grad()
        loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
    assert len(drawn) == len(some)
    assert texts(plain) == texts(sample(model, some))


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_an_adapter_is_sampled_from_and_stays_as_it_was(kind: str, precision: str) -> None:
    model, some = causal("llama").model.eval(), prompts()
    base = sample(model, some, precision=precision)
    adapt(model, Adapter(kind=kind), seed=0)
    for _, part in adapted(model):
        torch.nn.init.normal_(part.lora_B["default"].weight, std=0.2)
    wanted = [parameter.requires_grad for parameter in model.parameters()]
    drawn = sample(model, some, n=2, precision=precision)
    assert [parameter.requires_grad for parameter in model.parameters()] == wanted
    assert texts(drawn) != texts(base)
    gap = (logps(drawn) - padded_logps(model, trees(some, drawn), pad=PAD)).abs()
    assert gap.max() < 1e-4 if precision == "float32" else gap.mean() < 0.05
    with adapter_off(model):
        assert texts(sample(model, some, precision=precision)) == texts(base)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "falcon"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_model_is_left_as_it_was_found_even_after_an_error(kind: str, precision: str) -> None:
    model = causal(kind).model.train()
    layer = next(model.children())
    layer.eval()
    next(layer.parameters()).requires_grad_(False)

    def state() -> list[Any]:
        flags = [(module.training, "forward" in vars(module)) for module in model.modules()]
        return [model.config._attn_implementation, *flags, *(p.requires_grad for p in model.parameters())]

    before = state()

    def stopped(done: int, total: int, shown: object) -> None:
        assert state() != before
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        sample(model, prompts(), progress=stopped, precision=precision)
    assert caught.traceback
    assert state() == before
    sample(model, prompts(), precision=precision)
    assert state() == before


def test_dropout_is_off_while_sampling() -> None:
    model, some = causal("gpt2", attn_pdrop=0.5, resid_pdrop=0.5).model, prompts()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    drawn = sample(model.train(), some)
    assert sample(model, some) == drawn
    assert model.training
    assert (logps(drawn) - padded_logps(model.eval(), trees(some, drawn), pad=PAD)).abs().max() < 1e-4


def test_progress_counts_finished_prompts_up_to_all() -> None:
    seen: list[tuple[int, int]] = []
    model = causal("llama").model
    with ending_often(model):
        sample(model, prompts(20), n=2, batch=8, progress=lambda done, total, shown: seen.append((done, total)))
    counts = [done for done, _ in seen]
    assert counts == sorted(counts)
    assert len({*counts}) > 2
    assert seen[-1] == (20, 20)


def test_what_cannot_be_sampled_is_refused() -> None:
    model = causal("llama").model
    with pytest.raises(InputError, match="128 positions"):
        sample(model, [tuple(range(2, 122))])
    with pytest.raises(InputError, match="no tokens"):
        sample(model, [(5, 6), ()])
    with pytest.raises(InputError, match="no precision 'half'; there are float32 and bfloat16"):
        sample(model, [(5, 6)], precision="half")
    for name in ("n", "batch", "max_new_tokens"):
        with pytest.raises(InputError, match=f"{name} of 0; expected 1 or more"):
            sample(model, [(5, 6)], **{name: 0})
    assert sample(model, []) == []


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_broken_weights_are_named(temperature: float) -> None:
    model = causal("llama").model
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    with pytest.raises(InputError, match="not finite"):
        sample(model, prompts(), temperature=temperature)
