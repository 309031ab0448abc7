"""Heads of every form as a reward: marks weighted, steps aggregated, and completions compared with their siblings."""

from __future__ import annotations

from typing import Any

import pytest

from tests.models.tiny import ENCODERS, causal, tokenizer, trees
from tests.rewards.made import asked
from tiebreak.models.encode import encode_completion
from tiebreak.models.forest import Tree
from tiebreak.models.forms import Form
from tiebreak.models.load import Loaded, build_encoder, to_reward
from tiebreak.models.score import score
from tiebreak.records import InputError, Response
from tiebreak.rewards.combine import Rewards, read_terms
from tiebreak.rewards.model import centre_on
from tiebreak.rewards.table import Answered

FORMS = [
    (Form(kind="attributes", names=("good", "long"), weights=(1.0, -0.5)), 2),
    (Form(kind="steps", aggregate="mean"), 1),
    (Form(kind="skew", tau=0.1), 4),
    (Form(kind="pairwise"), 1),
    (Form(kind="gap"), 1),
]
EVERY = pytest.mark.parametrize(("form", "labels"), FORMS, ids=lambda value: getattr(value, "kind", ""))
RELATIVE = pytest.mark.parametrize(("form", "labels"), FORMS[2:], ids=lambda value: getattr(value, "kind", ""))
TEXTS = (" A cat left.\nIt came back.", " Cats.", " It left home.\nDone")


def made(kind: str, form: Form, labels: int) -> Loaded:
    if kind in ENCODERS:
        fields = {"model_type": kind, **ENCODERS[kind]}
        return build_encoder(fields, tokenizer(), seed=1, labels=labels, form=form)
    loaded = causal(kind)
    return Loaded(to_reward(loaded.model, loaded.tokenizer, seed=1, labels=labels, form=form), loaded.tokenizer, form)


def rewards(loaded: Loaded, **knobs: Any) -> Rewards:
    return Rewards(
        read_terms(
            {"model": {"model": "reward", **knobs}}, where="reward", model={"reward": loaded}.__getitem__, seed=0
        )
    )


def responses(answered: Answered) -> list[Response]:
    pairs = zip(answered.texts, answered.finishes, strict=True)
    return [Response(prompt_id=answered.prompt.id, text=text, finish=finish) for text, finish in pairs]


@EVERY
@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_the_row_gives_the_scores_of_the_room(kind: str, form: Form, labels: int) -> None:
    loaded = made(kind, form, labels)
    answered = [asked(*TEXTS[:count], text=f"POST: My cat {count} left.\n\nTL;DR:") for count in (2, 3)]
    found = rewards(loaded, batch=2)(answered).totals
    for ours, theirs in zip(found, score(loaded, [(one.prompt, responses(one)) for one in answered]), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
    assert len(set(found[1])) == 3


def test_the_policys_own_ids_are_cut_into_steps() -> None:
    loaded = made("llama", *FORMS[1])
    one = asked(TEXTS[0])
    words = loaded.tokenizer
    letters = tuple(i for letter in TEXTS[0] for i in words.encode(letter, add_special_tokens=False))
    usual = encode_completion(words, responses(one)[0])
    drawn = one._replace(trees=Tree((1,), ((*letters, words.eos_token_id),)))
    (as_drawn,), (encoded,) = (rewards(loaded)([answered]).totals[0] for answered in (drawn, one))
    same = one._replace(trees=Tree((1,), (usual,)))
    assert rewards(loaded)([same]).totals[0] == pytest.approx([encoded], abs=1e-6)
    assert as_drawn is not None
    assert 0 < as_drawn < 1
    assert as_drawn != pytest.approx(encoded, abs=1e-4)


@RELATIVE
def test_a_completion_without_siblings_has_no_score(form: Form, labels: int) -> None:
    loaded = made("llama", form, labels)
    alone, both = asked(TEXTS[0]), asked(*TEXTS[:2], text="POST: A cat.\n\nTL;DR:")
    done = rewards(loaded)([alone, both])
    assert done.totals[0] == [None]
    assert None not in done.totals[1]
    assert done.faults == {"reward model: the completion has no sibling to be compared with": 1}
    cure = "no sibling to be compared with; draw two or more completions of each prompt"
    with pytest.raises(InputError, match=cure):
        rewards(loaded)([alone])


@RELATIVE
def test_what_cannot_be_scored_is_left_out_of_the_comparison(form: Form, labels: int) -> None:
    loaded = made("llama", form, labels)
    one = asked(*TEXTS[:2])
    mixed = Answered(one.prompt, (TEXTS[0], "", TEXTS[1]), ("stop", "length", "stop"))
    (found,), (plainly,) = rewards(loaded)([mixed]).totals, rewards(loaded)([one]).totals
    assert found[1] is None
    assert [found[0], found[2]] == pytest.approx(plainly, abs=1e-5)


def test_two_completions_that_do_not_fit_into_one_text_are_unscored_together() -> None:
    loaded = made("llama", *FORMS[3])
    long = asked(" word" * 12, " cat" * 12)
    short = asked(*TEXTS[1:], text="POST: A cat.\n\nTL;DR:")
    done = rewards(loaded, window=70)([long, short])
    assert done.totals[0] == [None, None]
    assert None not in done.totals[1]
    assert done.faults == {"reward model: two completions in one text are too long for a window of 70 tokens": 2}


@EVERY
def test_only_a_scalar_head_is_centred(form: Form, labels: int) -> None:
    with pytest.raises(InputError, match=f"kind {form.kind} has no zero to move"):
        centre_on(made("llama", form, labels), trees()[:1], trees()[1:2])


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_lists_and_single_answers_say_which_moves_disturb_too(kind: str) -> None:
    loaded = made(kind, Form(), 1)
    done = centre_on(loaded, trees()[:2], trees())
    assert abs(done.after) < 1e-6
    assert done.spread > 0
    assert centre_on(made(kind, Form(), 1), trees()[:2], trees()[1:2]).spread == 0.0
