"""Heads that only compare answers: exchanging two changes a sign and nothing else; of more, all play each other."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from tests.models.tiny import ENCODERS, causal, tokenizer
from tiebreak.data.drafts import versus, with_draft
from tiebreak.models.attention import forest_mode
from tiebreak.models.encode import encode_tree
from tiebreak.models.forest import plant
from tiebreak.models.forms import Form
from tiebreak.models.heads import scores
from tiebreak.models.load import Loaded, build_encoder, to_reward
from tiebreak.models.score import score, score_columns, score_each, tree_scores
from tiebreak.records import InputError, Message, Prompt, Response

SKEW = Form(kind="skew", tau=0.1)
PAIRWISE, GAP = Form(kind="pairwise"), Form(kind="gap")
TEXTS = (" A cat left.", " Cats.", " It left home and was missed.", " Cats, cats.")
PROMPT = Prompt(text="POST: My cat left home.\n\nTL;DR:")
TALK = Prompt(text=(Message("user", "How is my cat?"), Message("assistant", "Well."), Message("user", "Sure?")))
KINDS = ["llama", "gpt2", "bert"]
FORMS = pytest.mark.parametrize("form", [SKEW, PAIRWISE, GAP], ids=lambda form: form.kind)


def made(kind: str, form: Form) -> Loaded:
    labels = 4 if form.kind == "skew" else 1
    if kind in ENCODERS:
        fields = {"model_type": kind, **ENCODERS[kind]}
        return build_encoder(fields, tokenizer(), seed=1, labels=labels, form=form)
    loaded = causal(kind)
    return Loaded(to_reward(loaded.model, loaded.tokenizer, seed=1, labels=labels, form=form), loaded.tokenizer, form)


def answers(*texts: str, prompt: Prompt = PROMPT) -> list[Response]:
    return [Response(prompt_id=prompt.id, text=text) for text in texts]


def one(loaded: Loaded, prompt: Prompt, text: str) -> float:
    """What the head gives one text behind a prompt."""
    tree = encode_tree(loaded.tokenizer, prompt, answers(text, prompt=prompt), window=128)[0]
    assert tree is not None
    with torch.no_grad(), forest_mode(loaded.model):
        return float(scores(loaded.model, plant([tree]))[0])


@FORMS
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompt", [PROMPT, TALK], ids=["plain", "conversation"])
def test_exchanging_two_answers_exchanges_their_scores_to_the_last_bit(kind: str, form: Form, prompt: Prompt) -> None:
    loaded = made(kind, form)
    first, second = answers(*TEXTS[:2], prompt=prompt)
    (there,), (back,) = score(loaded, [(prompt, [first, second])]), score(loaded, [(prompt, [second, first])])
    assert there is not None
    assert back is not None
    assert there[0] == -there[1] != 0.0
    both = (torch.sigmoid(torch.tensor(row[0] - row[1], dtype=torch.float64)) for row in (there, back))
    assert sum(map(float, both)) == pytest.approx(1.0, abs=1e-6)
    together = score(loaded, [(prompt, [first, second]), (prompt, [second, first])])
    assert together[0] == pytest.approx(there, abs=1e-5)
    assert together[1] == pytest.approx(back, abs=1e-5)


def test_a_pairwise_model_reads_both_orders_and_their_difference_is_the_logit() -> None:
    loaded = made("llama", PAIRWISE)
    (row,) = score(loaded, [(PROMPT, answers(*TEXTS[:2]))])
    assert row is not None
    there, back = (one(loaded, PROMPT, versus(*texts)) for texts in (TEXTS[:2], TEXTS[1::-1]))
    assert row[0] - row[1] == pytest.approx(there - back, abs=1e-5)
    assert abs(there - back) > 1e-3


def test_a_gap_model_reads_each_answer_behind_the_other_as_a_draft() -> None:
    loaded = made("llama", GAP)
    (row,) = score(loaded, [(PROMPT, answers(*TEXTS[:2]))])
    assert row is not None
    first, second = TEXTS[:2]
    better, worse = one(loaded, with_draft(PROMPT, second), first), one(loaded, with_draft(PROMPT, first), second)
    assert row[0] - row[1] == pytest.approx(better - worse, abs=1e-5)
    assert abs(better - worse) > 1e-3


@FORMS
def test_more_than_two_answers_have_the_mean_of_their_comparisons(form: Form) -> None:
    loaded = made("llama", form)
    (row,) = score(loaded, [(PROMPT, answers(*TEXTS))])
    logits = torch.zeros(4, 4, dtype=torch.float64)
    for i, j in combinations(range(4), 2):
        (pair,) = score(loaded, [(PROMPT, answers(TEXTS[i], TEXTS[j]))])
        assert pair is not None
        logits[i, j] = pair[0] - pair[1]
        logits[j, i] = -logits[i, j]
    assert row == pytest.approx(logits.mean(1).tolist(), abs=1e-5)
    assert sum(row or ()) == pytest.approx(0.0, abs=1e-5)
    (turned,) = score(loaded, [(PROMPT, answers(*TEXTS[::-1]))])
    assert turned == pytest.approx((row or [])[::-1], abs=1e-5)


@FORMS
def test_one_answer_alone_has_0_and_equal_answers_are_equal(form: Form) -> None:
    loaded = made("llama", form)
    alone, none, twice = score(loaded, [(PROMPT, answers(TEXTS[0])), (PROMPT, []), (PROMPT, answers("a", "a"))])
    assert alone == [0.0]
    assert none in ([], None)
    assert twice == pytest.approx([0.0, 0.0], abs=1e-4)


@FORMS
def test_a_row_that_does_not_fit_has_no_score_and_the_others_have_theirs(form: Form) -> None:
    loaded = made("llama", form)
    rows = [(PROMPT, answers(*TEXTS[:2])), (PROMPT, answers(" word" * 100, TEXTS[0])), (TALK, answers(*TEXTS[:3]))]
    found = score(loaded, rows)
    assert [row is None for row in found] == [False, True, False]
    assert found[0] == pytest.approx(score(loaded, rows[:1])[0], abs=1e-5)
    assert score(loaded, []) == []


def test_a_draft_that_would_be_cut_has_no_gap_and_a_long_prompt_has_a_comparison() -> None:
    long = Prompt(text="A line of it.\n" * 30 + "TL;DR:")
    rows = [(long, answers(*TEXTS[:2], prompt=long))]
    assert score(made("llama", GAP), rows) == [None]
    assert score(made("llama", PAIRWISE), rows) != [None]
    assert score(made("llama", SKEW), rows) != [None]


def test_progress_counts_what_is_read() -> None:
    seen: list[tuple[int, int]] = []
    rows = [(PROMPT, answers(*TEXTS[:3]))]
    score(made("llama", PAIRWISE), rows, batch=2, progress=lambda done, total, shown: seen.append((done, total)))
    assert seen == [(2, 3), (3, 3)]


@FORMS
def test_an_answer_by_itself_has_no_score_in_a_sentence(form: Form) -> None:
    loaded = made("llama", form)
    with pytest.raises(InputError, match=rf"kind {form.kind} compares answers, so one alone has no score; use score"):
        score_each(loaded, [(PROMPT, answers(TEXTS[0])[0])])


def test_outputs_are_given_of_embeddings_and_not_of_texts_that_hold_two_answers() -> None:
    loaded = made("llama", SKEW)
    (row,) = score_columns(loaded, [(PROMPT, answers(*TEXTS[:2]))])
    assert row is not None
    assert [len(outputs) for outputs in row] == [4, 4]
    assert score_columns(loaded, [(PROMPT, answers(" word" * 200))], window=64) == [None]
    for form in (PAIRWISE, GAP):
        with pytest.raises(InputError, match=f"kind {form.kind} gives nothing of one answer alone"):
            score_columns(made("llama", form), [(PROMPT, answers(*TEXTS[:2]))])


def test_of_texts_that_hold_two_answers_a_tree_has_what_the_head_gives() -> None:
    loaded = made("llama", PAIRWISE)
    texts = [versus(*TEXTS[:2]), versus(*TEXTS[1::-1])]
    tree = encode_tree(loaded.tokenizer, PROMPT, answers(*texts), window=128)[0]
    assert tree is not None
    (row,) = tree_scores(loaded, [tree])
    assert row == pytest.approx([one(loaded, PROMPT, text) for text in texts], abs=1e-5)
