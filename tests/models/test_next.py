"""What is written after a prompt, and the distribution at every place, are those of the plain model."""

from __future__ import annotations

import random
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from tests.models.tiny import REFUSED, RUNS, causal, ids
from tiebreak.models import next as following
from tiebreak.models.next import Written, grove, write
from tiebreak.records import InputError

NO_END = 10**6


def prompts(seed: int = 1) -> list[tuple[int, ...]]:
    """Prompts of unequal length: some begin alike, one begins another, two are equal."""
    draw = random.Random(seed)
    stem = ids(draw, 30)
    some = [ids(draw, 5), stem + ids(draw, 7), stem + ids(draw, 12), stem + ids(draw, 1), stem[:25] + ids(draw, 9)]
    return [*some, ids(draw, 20), some[1], ids(draw, 2), stem]


def keys(count: int) -> list[str]:
    return [f"{i:032x}" for i in range(count)]


def plain(model: PreTrainedModel, ids: tuple[int, ...]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].float()
    return found.log_softmax(-1)


def answer(model: PreTrainedModel, some: list[tuple[int, ...]], **more: object) -> list[Written]:
    settings = {"steps": 6, "temperature": 0.0, "top": 5, "eos": NO_END, **more}
    return write(model, some, keys(len(some)), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [*RUNS, *REFUSED])
def test_every_place_is_that_of_the_plain_model(kind: str) -> None:
    model, some = causal(kind).model.eval(), prompts()
    own = model.config._attn_implementation
    for prompt, written in zip(some, answer(model, some), strict=True):
        assert (len(written.places), written.finish) == (6, "length")
        for place in written.places:
            expected = plain(model, prompt)
            values, best = expected.topk(5)
            assert place.token == int(expected.argmax())
            assert list(place.top) == best.tolist()
            assert list(place.top.values()) == pytest.approx(values.tolist(), abs=1e-5)
            prompt = (*prompt, place.token)
    assert model.config._attn_implementation == own


@pytest.mark.parametrize("kind", ["llama", "mistral", "gpt2", "mamba"])
def test_a_reply_does_not_depend_on_its_batch(kind: str) -> None:
    model, some = causal(kind).model.eval(), prompts()
    for temperature in (0.0, 1.0):
        together = answer(model, some, temperature=temperature)
        turned = answer(model, some[::-1], temperature=temperature) if temperature == 0.0 else together[::-1]
        for i, (prompt, written) in enumerate(zip(some, together, strict=True)):
            (alone,) = write(model, [prompt], [keys(len(some))[i]], steps=6, temperature=temperature, top=5, eos=NO_END)
            for other in (alone, turned[-1 - i]):
                assert [place.token for place in other.places] == [place.token for place in written.places]
                for here, there in zip(written.places, other.places, strict=True):
                    assert here.top == pytest.approx(there.top, abs=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "falcon"])
def test_a_reply_ends_with_its_end_token_and_the_others_go_on(kind: str) -> None:
    model, some = causal(kind).model.eval(), prompts()
    whole = [[place.token for place in written.places] for written in answer(model, some)]
    end = whole[0][2]
    for tokens, written in zip(whole, answer(model, some, eos=end), strict=True):
        expected = tokens[: tokens.index(end)] if end in tokens else tokens
        assert [place.token for place in written.places] == expected
        assert written.finish == ("stop" if end in tokens else "length")
    assert end in whole[0]
    assert not all(end in tokens for tokens in whole)


def test_a_drawn_token_inverts_the_plain_distribution() -> None:
    model, some = causal("llama").model.eval(), prompts()
    for number, (prompt, written) in enumerate(zip(some, answer(model, some, temperature=0.7), strict=True)):
        uniforms = np.random.Generator(np.random.Philox(int(keys(len(some))[number], 16))).random(6)
        for uniform, place in zip(uniforms, written.places, strict=True):
            logps = plain(model, prompt)
            upto = (logps.double() / 0.7).softmax(-1).cumsum(-1)
            before = 0.0 if place.token == 0 else float(upto[place.token - 1])
            assert before - 1e-6 <= uniform <= float(upto[place.token]) + 1e-6
            assert place.top[place.token] == pytest.approx(float(logps[place.token]), abs=1e-5)
            prompt = (*prompt, place.token)


def test_the_token_itself_is_noted_however_unlikely_it_was() -> None:
    model, some = causal("llama").model.eval(), prompts()
    places = [place for written in answer(model, some, temperature=1.0, top=1) for place in written.places]
    assert all(place.token in place.top for place in places)
    assert {len(place.top) for place in places} == {1, 2}
    assert {len(p.top) for written in answer(model, some, top=10**6) for p in written.places} == {
        model.get_input_embeddings().num_embeddings
    }


def test_a_single_token_is_the_first_of_many() -> None:
    model, some = causal("llama").model.eval(), prompts()
    for one, many in zip(answer(model, some, steps=1), answer(model, some), strict=True):
        assert one.places[0].token == many.places[0].token
        assert one.places[0].top == pytest.approx(many.places[0].top, abs=1e-5)


@pytest.mark.parametrize("kind", ["llama", "falcon"])
def test_a_folders_own_settings_of_generation_change_nothing(kind: str) -> None:
    model, some = causal(kind).model.eval(), prompts()[:3]
    expected = answer(model, some)
    model.generation_config.update(repetition_penalty=3.0, no_repeat_ngram_size=1, top_k=2, do_sample=True)
    assert answer(model, some) == expected


def test_prompts_that_need_several_passes_get_the_same_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    model, some = causal("llama").model.eval(), prompts()
    expected = answer(model, some)
    monkeypatch.setattr(following, "PREFILL", 40)
    for one, other in zip(answer(model, some), expected, strict=True):
        assert [place.token for place in one.places] == [place.token for place in other.places]


def test_what_prompts_share_is_computed_once() -> None:
    model, draw = causal("llama").model.eval(), random.Random(3)
    answer(model, prompts())  # the model is tried once, on a forest of its own
    read: list[int] = []
    hook = model.get_input_embeddings().register_forward_pre_hook(lambda _, given: read.append(given[0].numel()))
    stem, first, second = ids(draw, 40), ids(draw, 6), ids(draw, 9)
    answer(model, [stem + first + second, stem + second + first], steps=1)
    hook.remove()
    assert read == [40 + 2 * 15]


def test_a_prompt_without_a_question_and_weights_that_are_no_numbers_are_refused() -> None:
    model = causal("llama").model.eval()
    with pytest.raises(InputError, match="fewer than two tokens"):
        answer(model, [(5,)])
    torch.nn.init.constant_(model.lm_head.weight, float("nan"))
    with pytest.raises(InputError, match="not finite"):
        answer(model, prompts())
    assert answer(model, []) == []


texts = st.lists(st.lists(st.integers(0, 1), min_size=2, max_size=6).map(tuple), min_size=1, max_size=6)


def saved(group: list[tuple[int, ...]], least: int) -> int:
    """Tokens that one trunk saves, 0 where it would be too short."""
    common = min(map(len, group)) - 1
    for one, other in combinations(group, 2):
        common = min(common, next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), common))
    return (len(group) - 1) * common if common >= least else 0


def cuts(order: list[int]) -> list[list[list[int]]]:
    """Every way to cut ``order`` into runs."""
    if not order:
        return [[]]
    return [[order[:size], *others] for size in range(1, len(order) + 1) for others in cuts(order[size:])]


@given(texts, st.integers(1, 3))
def test_no_other_cut_of_the_alphabetical_order_saves_more(some: list[tuple[int, ...]], least: int) -> None:
    def total(groups: list[list[int]]) -> int:
        return sum(saved([some[i] for i in group], least) for group in groups)

    groups, order = grove(some, least=least), sorted(range(len(some)), key=lambda i: some[i])
    assert [i for group in groups for i in group] == order
    assert all(len(group) == 1 or saved([some[i] for i in group], least) for group in groups)
    assert total(groups) == max(map(total, cuts(order)))
