"""Rejected answers that nobody judged: hidden context, another maker, fields that differ."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.curate.texts import Read, Told, question
from tiebreak.curate.contrast import mismatch, model_contrast, parse_fields, structured_mismatch
from tiebreak.curate.corrupt import corrupted_negatives, mask_context, similarity
from tiebreak.records import InputError, Prompt

FACTS = "Ada lives in Oslo. She has two dogs.\nHer brother, Per, lives in\nRome! Nobody lives in OSLO?"


def home(reference: str | None = "Oslo", context: str = FACTS) -> Told:
    told = Told()
    told.pair(question("Where does Ada live?", context=context, reference=reference), "She lives in Oslo.", "In Rome.")
    return told


def test_the_sentences_that_hold_the_reference_are_hidden_and_no_others() -> None:
    told = home()
    done = told.later(mask_context)
    (masked,) = done.made
    assert masked.context == "She has two dogs.\nHer brother, Per, lives in\nRome!"
    assert masked.fields["masked"] == told.records[0].id
    assert masked.text == told.records[0].text
    assert done.rows == told.rows


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        (home(context="  "), "no context to hide"),
        (home(reference=None), "no answer to look for in the context"),
        (home(reference="..."), "no answer to look for in the context"),
        (home(reference="Slo"), "no sentence of the context holds the answer"),
        (home(reference="Oslo Rome"), "no sentence of the context holds the answer"),
    ],
)
def test_a_prompt_that_hides_nothing_goes(told: Told, reason: str) -> None:
    done = told.later(mask_context)
    assert (list(done.rows), done.made, dict(done.dropped)) == ([], [], {reason: 1})


def test_without_a_reference_the_sentence_most_like_the_answer_is_hidden() -> None:
    told = home(reference=None, context="Ada lives in Oslo. She has a dog that she loves. Oslo is cold.")
    (masked,) = told.later(mask_context, by="answer").made
    assert masked.context == "She has a dog that she loves. Oslo is cold."
    with pytest.raises(InputError, match=r"by = 'answers'.*Did you mean 'answer'"):
        told.later(mask_context, by="answers")


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from(["It is Oslo.", "No!", "Dogs bark\n", "oslo?!", "Yes. ", "\n"]), min_size=1, max_size=6)
)
def test_what_is_not_hidden_is_left_as_it_was(parts: list[str]) -> None:
    context = " ".join(parts)
    made = home(context=context).later(mask_context).made
    if made:
        assert "oslo" in context.casefold()
        assert "oslo" not in made[0].context.casefold()
        left = " ".join(part for part in parts if "oslo" not in part.casefold())
        assert made[0].context.split() == left.split()


def masked(told: Told, *texts: str) -> Prompt:
    """Sample these answers to the prompt with hidden context and have a rule judge them."""
    (prompt,) = told.later(mask_context).made
    drawn = [
        told.answer(prompt, text, draw=draw, maker="model:m", settings={"seed": 1}) for draw, text in enumerate(texts)
    ]
    for one, other in pairwise(drawn):
        told.judged(prompt, one, other, by="rule:length")
    return prompt


def test_the_first_answer_that_differs_enough_is_rejected_behind_the_true_prompt() -> None:
    told = home()
    prompt = masked(told, "She lives in oslo", "She lives in Paris!", "In Bergen")
    done = told.later(corrupted_negatives, below=0.75)
    (pair,) = done.rows
    assert Read(told, done).sides(pair) == ("She lives in Oslo.", "In Bergen")
    assert pair.prompt_id == told.rows[0].prompt_id
    (moved,) = done.made
    assert (moved.maker, dict(moved.settings), moved.draw) == ("model:m", {"seed": 1, "masked": prompt.id}, 2)
    assert Read(told, higher := told.later(corrupted_negatives, below=0.8)).sides(higher.rows[0])[1] == (
        "She lives in Paris!"
    )


def test_where_nothing_that_matters_was_hidden_every_answer_is_too_similar() -> None:
    """Card 22: a sampler that loses nothing says the same again, in whatever order and case."""
    told = home()
    masked(told, "She lives in Oslo.", "she lives in Oslo", "in Oslo she lives")
    done = told.later(corrupted_negatives, below=1.0)
    assert list(done.rows) == []
    assert dict(done.dropped) == {"every such answer is too similar to the chosen one": 1}


def test_a_reader_that_knows_only_its_context_is_wrong_without_the_sentence() -> None:
    """Card 22 on a toy: the reader names a town of the context, the first that somebody lives in."""

    def read(prompt: Prompt) -> str:
        return next((town for town in ("Oslo", "Rome", "Bonn") if town in prompt.context), "nowhere")

    wrong = 0
    for number in range(20):
        other = ("Rome", "Bonn")[number % 2]
        told = home(context=f"Ada{number} lives in Oslo. Per lives in {other}.")
        masked(told, *[read(told.later(mask_context).made[0])] * 2)
        done = told.later(corrupted_negatives)
        assert read(told.records[0]) == "Oslo"
        wrong += Read(told, done).sides(done.rows[0])[1] == other
    assert wrong == 20


def test_each_chosen_answer_gets_one_pair_and_the_others_are_counted() -> None:
    told = home()
    prompt = told.records[0]
    told.pair(prompt, "She lives in Oslo.", "In Bonn.")
    hidden = masked(told, "In Rome", "In Bonn")
    told.pair(hidden, "In Rome", "In Bonn")
    told.pair(question("Another?"), "yes", "no")
    done = told.later(corrupted_negatives)
    assert len(done.rows) == 1
    assert dict(done.dropped) == {
        "the chosen answer has its pair already": 1,
        "answers to a prompt with hidden context": 1,
        "no answer to its prompt with hidden context": 1,
    }
    assert told.later(mask_context).dropped["answers to a prompt with hidden context"] == 1
    with pytest.raises(InputError, match="below = 2"):
        told.later(corrupted_negatives, below=2)


def test_similarity_is_the_share_of_common_words() -> None:
    assert similarity("In Oslo.", "in OSLO") == 1.0
    assert similarity("a b c", "a b d e") == pytest.approx(4 / 7)
    assert similarity("a a b", "a") == pytest.approx(2 / 4)
    assert similarity("a", "b") == similarity("a", "") == 0.0
    assert similarity("", "!") == 1.0


def class_of(*sides: tuple[str, str], extra: tuple[str, str] | None = None) -> Told:
    """Items of a good and a bad answer, by makers of these names."""
    told = Told()
    for number, (better, worse) in enumerate(sides):
        prompt = question(f"Q{number}?")
        two = told.answer(prompt, better, maker="sft"), told.answer(prompt, worse, maker="base")
        told.judged(prompt, *two[:: 1 - 2 * (number % 2)], by="rule:length")
    if extra:
        prompt = question("Extra?")
        told.judged(prompt, *(told.answer(prompt, text, maker="base") for text in extra))
    return told


def test_the_answers_of_one_maker_are_chosen_where_they_differ() -> None:
    told = class_of(("4", "5"), ("7 ", "7\n"), ("yes", "no"), extra=("a", "b"))
    done = told.first(model_contrast, chosen="sft", rejected="base")
    assert [Read(told, done).sides(pair) for pair in done.rows] == [("4", "5"), ("yes", "no")]
    assert dict(done.dropped) == {"equal answers": 1, "not one answer of each maker": 1}
    assert all((pair.p, pair.n, pair.judgment_ids) == (1.0, 0, ()) for pair in done.rows)
    turned = told.first(model_contrast, chosen="base", rejected="sft")
    assert [Read(told, turned).sides(pair) for pair in turned.rows] == [("5", "4"), ("no", "yes")]


def test_a_model_that_is_its_own_base_gives_no_pair() -> None:
    """Card 24."""
    done = class_of(*[(f"{n}", f"{n}") for n in range(9)]).first(model_contrast, chosen="sft", rejected="base")
    assert list(done.rows) == []
    assert dict(done.dropped) == {"equal answers": 9}


@pytest.mark.parametrize(
    ("step", "knobs", "words"),
    [
        (model_contrast, {}, "chosen = None; expected the maker"),
        (model_contrast, {"chosen": "sft"}, "rejected = None; expected the maker"),
        (model_contrast, {"chosen": "sft", "rejected": "sft"}, "name two makers"),
        (model_contrast, {"chosen": "dpo", "rejected": "base"}, "no judged answer is by 'dpo'; there are .* base, sft"),
        (structured_mismatch, {"fields": ["a"]}, "teacher = None"),
        (structured_mismatch, {"teacher": "sft"}, "fields = \\(\\)"),
        (structured_mismatch, {"teacher": "sft", "fields": [1]}, "fields = \\[1\\]"),
        (structured_mismatch, {"teacher": "gold", "fields": ["a"]}, "by 'gold'"),
    ],
)
def test_makers_and_fields_have_to_be_named(step: Any, knobs: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        class_of(("4", "5")).first(step, **knobs)


FIELDS = ["evaluation", "action", "state"]
TEACHER = '{"evaluation": "b", "action": 1, "State": "y", "tutor": "What is 2 + 2?"}'
BRANCHES = {
    "unreadable": ["I think that the student is right.", '{"evaluation": "b", ', "[1, 2]", "", '{"a": 1, "a": 2}'],
    "lacks fields": ['{"evaluation": "b", "action": 1}', "evaluation: b\nstate: y", '{"evaluation": "a"}'],
    "evaluation": ['{"evaluation": "a", "action": 2, "state": "x"}', "evaluation: a\naction: 1\nstate: y"],
    "action": ['{"evaluation": "b", "action": 2, "state": "x"}', "Evaluation: B\nAction: 11\nState: y"],
    "state": ['{"evaluation": "b", "action": 1, "state": "x"}'],
    "": [
        TEACHER,
        '```json\n{"state": "y", "action": 1, "evaluation": "B", "tutor": "Go on."}\n```',
        "- **Evaluation:** b\n- **Action:** 1\n- **State:**  Y\n\nTutor: Go\non.",
    ],
}


@pytest.mark.parametrize(("wrong", "reply"), [(wrong, reply) for wrong, some in BRANCHES.items() for reply in some])
def test_each_reply_hits_its_branch_and_the_first_mismatch_wins(wrong: str, reply: str) -> None:
    assert mismatch(TEACHER, reply, FIELDS) == wrong


def test_pairs_are_what_the_branches_say_and_a_matching_reply_gives_none() -> None:
    replies = [reply for some in BRANCHES.values() for reply in some]
    told = class_of(*((TEACHER, reply) for reply in replies), ("no fields", replies[0]), extra=("a", "b"))
    done = told.first(structured_mismatch, fields=FIELDS, teacher="sft")
    wrong = [reply for name, some in BRANCHES.items() if name for reply in some]
    assert [Read(told, done).sides(pair) for pair in done.rows] == [(TEACHER, reply) for reply in wrong]
    assert dict(done.dropped) == {
        "the same in every field": 3,
        "the teacher's reply lacks fields or cannot be read": 1,
        "not one answer of each maker": 1,
    }


def test_the_accuracy_of_a_field_is_what_a_hand_counts() -> None:
    replies = [parse_fields(reply) for some in BRANCHES.values() for reply in some]
    wanted = parse_fields(TEACHER)
    assert wanted is not None
    right = {name: sum(reply is not None and reply.get(name) == wanted[name] for reply in replies) for name in FIELDS}
    assert right == {"evaluation": 8, "action": 6, "state": 6}


@pytest.mark.parametrize(
    "text", ["__import__('os').system('true')", "{'evaluation': 'b'}", "{1: 2}", "[" * 20000, '{"a":' * 20000]
)
def test_a_reply_is_read_as_json_and_never_run(text: str) -> None:
    assert parse_fields(text) is None


def test_a_value_may_go_on_over_lines_and_nested_values_are_compared_whole() -> None:
    assert parse_fields("Tutor text: One\n two,\nthree.\nstate : y") == {"tutor_text": "one two, three.", "state": "y"}
    assert parse_fields('{"state": {"b": 1, "a": [1]}}') == parse_fields('{"state": {"a": [1], "b": 1}}')
    assert parse_fields("state: x\nstate: y") is None
