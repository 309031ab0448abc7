"""A reward model's scores are those plain transformers gives, and centring changes them by a constant."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.models.tiny import ENCODERS, causal, ids, tokenizer
from tiebreak.models.encode import encode_tree
from tiebreak.models.forest import Tree
from tiebreak.models.load import Loaded, build_encoder, context_of, load_reward, save_model, to_reward
from tiebreak.models.score import score
from tiebreak.records import InputError, Prompt, Response
from tiebreak.rewards.model import centre, centre_on

PROMPTS = [Prompt(text=f"POST: My cat number {i} left home.\n\nTL;DR:") for i in range(5)]
ANSWERS = (" A cat left.", " Cats.", " It left home and was missed by everybody.")


def reward_model(kind: str) -> Loaded:
    if kind in ENCODERS:
        return build_encoder({"model_type": kind, **ENCODERS[kind]}, tokenizer(), seed=1)
    loaded = causal(kind)
    return Loaded(to_reward(loaded.model, loaded.tokenizer, seed=1), loaded.tokenizer)


def rows() -> list[tuple[Prompt, list[Response]]]:
    return [(prompt, [Response(prompt_id=prompt.id, text=text) for text in ANSWERS[: 1 + i % 3]])
            for i, prompt in enumerate(PROMPTS)]  # fmt: skip


def plainly(folder: Path, sequences: list[tuple[int, ...]]) -> list[float]:
    """Scores of sequences by the library alone, one at a time."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return [float(model(input_ids=torch.tensor([sequence])).logits[0, 0]) for sequence in sequences]


def sequences(loaded: Loaded) -> list[tuple[int, ...]]:
    trees = [encode_tree(loaded.tokenizer, prompt, answers, window=100)[0] for prompt, answers in rows()]
    return [tree.trunk + branch for tree in trees if tree for branch in tree.branches]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2", *ENCODERS])
def test_scores_are_the_saved_folders_alone_and_right_padded(kind: str, tmp_path: Path) -> None:
    loaded = reward_model(kind)
    save_model(loaded.model, loaded.tokenizer, tmp_path / "model")
    ours = [value for values in score(loaded, rows()) if values for value in values]
    every = sequences(loaded)
    torch.testing.assert_close(ours, plainly(tmp_path / "model", every), atol=1e-5, rtol=0)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    padded = tokenizer.pad({"input_ids": [list(s) for s in every]}, padding_side="right", return_tensors="pt")
    with torch.no_grad():
        together = model(**padded).logits[:, 0].tolist()
    torch.testing.assert_close(ours, together, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["llama", "bert", "modernbert"])
def test_scores_do_not_depend_on_the_batch_or_the_order(kind: str) -> None:
    loaded = reward_model(kind)
    whole, single = score(loaded, rows()), score(loaded, rows(), batch=1)
    backwards = score(loaded, rows()[::-1])[::-1]
    for one, other, third in zip(whole, single, backwards, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
        torch.testing.assert_close(one, third, atol=1e-5, rtol=0)


def test_a_row_with_too_long_an_answer_has_no_score_and_the_others_have_theirs() -> None:
    loaded = reward_model("llama")
    long = Response(prompt_id=PROMPTS[0].id, text=" word" * 200)
    mixed = [*rows(), (PROMPTS[0], [long])]
    assert score(loaded, mixed, window=64)[-1] is None
    assert all(values is not None for values in score(loaded, mixed, window=64)[:-1])


@pytest.mark.parametrize("kind", ["gpt2", "bert", "roberta"])
def test_a_model_reads_no_further_than_its_positions_go(kind: str) -> None:
    loaded, line = reward_model(kind), "A line of it.\n"
    long, short = Prompt(text=line * 300), Prompt(text=line * 3)
    answers = {prompt.id: [Response(prompt_id=prompt.id, text=" A cat left.")] for prompt in (long, short)}
    both = score(loaded, [(prompt, answers[prompt.id]) for prompt in (long, short)], window=1024)
    room = context_of(loaded.model)
    assert both == score(loaded, [(prompt, answers[prompt.id]) for prompt in (long, short)], window=room)
    assert both[0] is not None


def trees(count: int, branches: int, seed: int) -> list[Tree]:
    draw = random.Random(seed)
    return [Tree(ids(draw, 8), tuple((*ids(draw, draw.randrange(2, 9)), 0) for _ in range(branches)))
            for _ in range(count)]  # fmt: skip


def flat(some: list[Tree]) -> list[tuple[int, ...]]:
    return [tree.trunk + branch for tree in some for branch in tree.branches]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "gemma3_text", *ENCODERS])
def test_a_centred_folder_read_plainly_gives_reference_answers_a_mean_of_0(kind: str, tmp_path: Path) -> None:
    loaded, references, pairs = reward_model(kind), trees(20, 1, 1), trees(30, 2, 2)
    save_model(loaded.model, loaded.tokenizer, tmp_path / "before")
    done = centre_on(loaded, references, pairs)
    save_model(loaded.model, loaded.tokenizer, tmp_path / "after")
    was, now = (plainly(tmp_path / name, flat(references)) for name in ("before", "after"))
    assert abs(sum(now) / 20) < 2e-6
    assert done.before == pytest.approx(sum(was) / 20, abs=1e-5)
    assert done.after == pytest.approx(sum(now) / 20, abs=2e-6)
    gaps = [
        torch.tensor(plainly(tmp_path / name, flat(pairs))).view(-1, 2).diff(dim=1)[:, 0]
        for name in ("before", "after")
    ]
    moved = (gaps[1] - gaps[0]).abs()
    assert float(moved.max()) <= done.moved + 5e-6
    assert done.spread == pytest.approx(float(gaps[0].square().mean().sqrt()), rel=1e-3)
    assert done.exact == (kind in ("gpt2", "opt", *ENCODERS))
    if done.exact:
        assert done.moved == 0.0
    else:
        assert done.typical <= done.moved


def test_no_other_move_of_the_head_disturbs_differences_less() -> None:
    loaded = reward_model("llama")
    before = loaded.model.score.weight.detach().clone()
    draw = torch.Generator().manual_seed(0)
    references, gaps = torch.randn(50, 32, generator=draw) + 1, torch.randn(400, 32, generator=draw)
    done = centre(loaded.model, references, gaps)
    least = loaded.model.score.weight.detach() - before
    assert done.typical == pytest.approx(float((gaps @ least[0]).square().mean().sqrt()), rel=1e-4)
    mean = references.mean(0)
    for _ in range(20):
        other = least[0] + 0.1 * torch.randn(32, generator=draw)
        other -= mean * (mean @ (before[0] + other)) / mean.square().sum()  # centres too
        assert float(mean @ (before[0] + other)) == pytest.approx(0.0, abs=1e-5)
        assert float((gaps @ other).square().mean().sqrt()) > done.typical


def test_with_few_pairs_the_centring_still_holds(tmp_path: Path) -> None:
    for pairs in ([], trees(1, 2, 3), trees(3, 2, 3)):
        for kind in ("llama", "bert"):
            loaded, references = reward_model(kind), trees(20, 1, 1)
            done = centre_on(loaded, references, pairs)
            assert abs(done.after) < 1e-6
            assert done.moved < 10


def test_nothing_to_centre_on_is_said() -> None:
    with pytest.raises(InputError, match="no reference answer"):
        centre_on(reward_model("llama"), [], [])


@pytest.mark.parametrize("kind", ["qwen3", "bert", "roberta"])
def test_a_centred_model_is_loaded_by_the_house_to_the_same_scores(kind: str, tmp_path: Path) -> None:
    loaded = reward_model(kind)
    centre_on(loaded, trees(20, 1, 1), trees(30, 2, 2))
    save_model(loaded.model, loaded.tokenizer, tmp_path / "model")
    for one, other in zip(score(load_reward(tmp_path / "model"), rows()), score(loaded, rows()), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)
