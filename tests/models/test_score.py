"""Each answer scored as if alone: what stands beside it changes nothing, and batches only save time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from tests.models.tiny import ENCODERS, causal, tokenizer
from tiebreak.models.encode import encode_tree
from tiebreak.models.load import Loaded, build_encoder, save_model, to_reward
from tiebreak.models.score import FEW, room_of, score, score_each, tree_scores
from tiebreak.records import Prompt, Response

PROMPTS = [Prompt(text=f"POST: My cat number {i} left home.\n\nTL;DR:") for i in range(4)]
TEXTS = (" A cat left.", " Cats.", " It left home and was missed by everybody.")
Asked = list[tuple[Prompt, Response]]


def reward_model(kind: str) -> Loaded:
    if kind in ENCODERS:
        return build_encoder({"model_type": kind, **ENCODERS[kind]}, tokenizer(), seed=1)
    loaded = causal(kind)
    return Loaded(to_reward(loaded.model, loaded.tokenizer, seed=1), loaded.tokenizer)


def asked(prompt: Prompt, *texts: str, finish: str = "stop") -> Asked:
    return [(prompt, Response(prompt_id=prompt.id, text=text, finish=finish)) for text in texts]


def everything() -> Asked:
    return [one for i, prompt in enumerate(PROMPTS) for one in asked(prompt, *TEXTS[: 1 + i % 3])]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "modernbert"])
def test_each_score_is_that_of_the_saved_folder_read_plainly(kind: str, tmp_path: Path) -> None:
    loaded = reward_model(kind)
    save_model(loaded.model, loaded.tokenizer, tmp_path / "model")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    plainly = []
    for prompt, answer in everything():
        tree, _ = encode_tree(loaded.tokenizer, prompt, [answer], window=100)
        assert tree is not None
        with torch.no_grad():
            plainly.append(float(model(input_ids=torch.tensor([tree.trunk + tree.branches[0]])).logits[0, 0]))
    torch.testing.assert_close(score_each(loaded, everything()), plainly, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_neither_batch_nor_order_nor_company_matters(kind: str) -> None:
    loaded = reward_model(kind)
    whole = score_each(loaded, everything())
    torch.testing.assert_close(score_each(loaded, everything(), batch=1), whole, atol=1e-5, rtol=0)
    torch.testing.assert_close(score_each(loaded, everything()[::-1])[::-1], whole, atol=1e-5, rtol=0)
    for one, value in zip(everything(), whole, strict=True):
        torch.testing.assert_close(score_each(loaded, [one]), [value], atol=1e-5, rtol=0)


def test_the_prompt_is_cut_for_each_answer_alone_and_for_a_row_together() -> None:
    loaded = reward_model("llama")
    long = Prompt(text="\n".join(f"Line {i} of a long post about a cat." for i in range(30)) + "\n\nTL;DR:")
    both = asked(long, TEXTS[1], TEXTS[2] * 3)
    each = score_each(loaded, both, window=100)
    torch.testing.assert_close(each[:1], score_each(loaded, both[:1], window=100), atol=1e-5, rtol=0)
    (together,) = score(loaded, [(long, [answer for _, answer in both])], window=100)
    assert together is not None
    assert each[0] is not None
    assert abs(together[0] - each[0]) > 1e-3
    torch.testing.assert_close(together[1:], each[1:], atol=1e-5, rtol=0)


def test_equal_tokens_have_equal_scores_to_the_last_bit() -> None:
    loaded = reward_model("gpt2")
    again = [(Prompt(text=prompt.text, tags=("other",), fields={"n": 1}), answer) for prompt, answer in everything()]
    scores = score_each(loaded, [*everything(), *again])
    assert scores[: len(again)] == scores[len(again) :]


def test_more_answers_than_share_one_prompt() -> None:
    loaded = reward_model("llama")
    many = asked(PROMPTS[0], *(f" Cat {i} left." for i in range(2 * FEW + 3)))
    seen: list[tuple[int, int]] = []
    scores = score_each(loaded, many, batch=1, progress=lambda done, total, shown: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert len(set(scores)) == len(many)
    torch.testing.assert_close(scores[-1:], score_each(loaded, many[-1:]), atol=1e-5, rtol=0)


def test_what_does_not_fit_or_says_nothing_has_no_score_and_its_neighbours_have_theirs() -> None:
    loaded = reward_model("llama")
    mixed = [
        *asked(PROMPTS[0], " Cats.", " word" * 200),
        *asked(PROMPTS[0], "", finish="length"),
        *asked(PROMPTS[0], ""),
    ]
    assert [value is None for value in score_each(loaded, mixed, window=64)] == [False, True, True, False]
    assert score_each(loaded, []) == []
    assert tree_scores(loaded, []) == []


@pytest.mark.parametrize("kind", ["gpt2", "roberta"])
def test_no_model_reads_further_than_its_positions_go(kind: str) -> None:
    loaded = reward_model(kind)
    room = room_of(loaded, 10**6)
    assert room <= 128
    assert room_of(loaded, 20) == 20
    long = asked(Prompt(text="A line of it.\n" * 300), TEXTS[0])
    assert score_each(loaded, long, window=1024) == score_each(loaded, long, window=room) != [None]
