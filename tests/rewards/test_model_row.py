"""The reward model as a row: its scores are those of the room's own ``score``, and the policy's ids are used or not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.models.tiny import ENCODERS, causal, tokenizer
from tests.rewards.made import asked
from tiebreak.models.attention import forest_mode
from tiebreak.models.encode import LEAST, encode_completion, encode_prompt
from tiebreak.models.forest import Tree, plant
from tiebreak.models.heads import scores
from tiebreak.models.load import Loaded, build_encoder, to_reward, train_tokenizer
from tiebreak.models.score import score
from tiebreak.records import InputError, Prompt, Response
from tiebreak.rewards.combine import Rewards, read_terms
from tiebreak.rewards.table import Answered, Scores

TEXTS = (" A cat left.", " Cats.", " It left home and was missed by everybody.", "")


def reward_model(kind: str) -> Loaded:
    if kind in ENCODERS:
        return build_encoder({"model_type": kind, **ENCODERS[kind]}, tokenizer(), seed=1)
    loaded = causal(kind)
    return Loaded(to_reward(loaded.model, loaded.tokenizer, seed=1), loaded.tokenizer)


def rate(loaded: Loaded, answered: list[Answered], **knobs: Any) -> Scores:
    terms = read_terms(
        {"model": {"model": "reward", **knobs}}, where="reward", model={"reward": loaded}.__getitem__, seed=0
    )
    return Rewards(terms)(answered).totals


def answers(count: int) -> list[Answered]:
    return [asked(*TEXTS[: 1 + n % 3], text=f"POST: My cat {n} left.\n\nTL;DR:") for n in range(count)]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "modernbert"])
@pytest.mark.parametrize("finish", ["stop", "length"])
def test_the_row_gives_the_scores_of_the_room(kind: str, finish: str) -> None:
    loaded = reward_model(kind)
    answered = [one._replace(finishes=(finish,) * len(one.texts)) for one in answers(5)]
    rows = [
        (one.prompt, [Response(prompt_id=one.prompt.id, text=text, finish=finish) for text in one.texts])
        for one in answered
    ]
    for ours, theirs in zip(rate(loaded, answered, batch=2), score(loaded, rows), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_what_does_not_fit_has_no_score_and_its_siblings_have_theirs() -> None:
    loaded = reward_model("llama")
    prompt, finishes = answers(1)[0].prompt, ("stop", "length", "stop", "stop")
    mixed = Answered(prompt, (" Cats.", "", " word" * 200, ""), finishes)
    done = Rewards(
        read_terms({"model": {"model": "reward", "window": 64}}, where="reward", model=lambda name: loaded, seed=0)
    )([mixed])
    assert [value is None for value in done.totals[0]] == [False, True, True, False]
    assert done.faults == {
        "reward model: the completion is empty and unfinished": 1,
        "reward model: the completion is too long for a window of 64 tokens": 1,
    }
    (alone,) = rate(loaded, [Answered(prompt, (" Cats.", ""), ("stop", "stop"))], window=64)
    torch.testing.assert_close([done.totals[0][0], done.totals[0][3]], alone, atol=1e-5, rtol=0)
    with pytest.raises(InputError, match="empty and unfinished; let the policy write more tokens"):
        rate(loaded, [Answered(prompt, ("",), ("length",))])


def test_a_window_of_hardly_anything_scores_nothing() -> None:
    with pytest.raises(InputError, match=f"too long for a window of {LEAST} tokens"):
        rate(reward_model("llama"), answers(1), window=LEAST)


def of_ids(loaded: Loaded, prompt: Prompt, branches: list[tuple[int, ...]]) -> list[float]:
    trunk = encode_prompt(loaded.tokenizer, prompt, room=1000).ids
    with torch.no_grad(), forest_mode(loaded.model):
        values: list[float] = scores(loaded.model, plant([Tree(trunk, tuple(branches))])).tolist()
    return values


def test_the_policys_own_ids_are_scored_where_they_are_the_text() -> None:
    loaded = reward_model("llama")
    words, eos = loaded.tokenizer, loaded.tokenizer.eos_token_id
    prompt = answers(1)[0].prompt
    letters = tuple(i for letter in TEXTS[0] for i in words.encode(letter, add_special_tokens=False))
    usual = encode_completion(words, Response(prompt_id=prompt.id, text=TEXTS[0], finish="length"))
    assert letters != usual
    both = Answered(prompt, (TEXTS[0],) * 2, ("stop", "length"), (), Tree((1,), ((*letters, eos), letters)))
    as_drawn, encoded = (
        of_ids(loaded, prompt, [(*letters, eos), letters]),
        of_ids(loaded, prompt, [(*usual, eos), usual]),
    )
    assert max(abs(a - b) for a, b in zip(as_drawn, encoded, strict=True)) > 1e-3
    assert rate(loaded, [both]) == [pytest.approx(as_drawn, abs=1e-5)]
    assert rate(loaded, [both._replace(trees=None)]) == [pytest.approx(encoded, abs=1e-5)]


def test_ids_that_are_not_the_text_are_not_scored() -> None:
    loaded = reward_model("llama")
    words, eos = loaded.tokenizer, loaded.tokenizer.eos_token_id
    one = answers(1)[0]
    usual = encode_completion(words, Response(prompt_id=one.prompt.id, text=TEXTS[0]))
    other = train_tokenizer(["abc cat home left"] * 4, vocabulary=280)
    foreign = encode_completion(other, Response(prompt_id=one.prompt.id, text=TEXTS[0], finish="length"))
    wrong = [
        (*usual[:-1], usual[-2], eos),  # another text
        usual[:-1],  # no end, though it stopped
        (words.pad_token_id, *usual),  # a control token in front
        (*usual[:-1], 10**6, eos),  # beyond the vocabulary
        (*foreign, eos),
        (),
    ]
    expected = pytest.approx(of_ids(loaded, one.prompt, [usual]), abs=1e-5)
    for branch in wrong:
        assert rate(loaded, [one._replace(trees=Tree((1,), (branch,)))]) == [expected]
