"""What the outputs of a head mean: read and written, made into scores, and where the steps of an answer end."""

from __future__ import annotations

import json
import math
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertTokenizer

from tests.models.tiny import tokenizer
from tiebreak.models.encode import encode_completion
from tiebreak.models.forest import Tree, plant
from tiebreak.models.forms import (
    AGGREGATES,
    FILE,
    SCALAR,
    Form,
    form_from,
    ratings_of,
    read_form,
    reward_of,
    skew,
    step_ends,
    step_marks,
    with_steps,
    write_form,
)
from tiebreak.records import InputError, Response

FORMS = (
    Form(kind="attributes", names=("helpful", "verbose"), weights=(0.65, -0.4)),
    Form(kind="skew", tau=0.1),
    Form(kind="steps", aggregate="geometric_mean", separator="\n\n"),
    Form(kind="pairwise"),
    Form(kind="gap"),
)


def siblings(*counts: int) -> Any:
    """A forest whose trees have that many branches of two tokens."""
    return plant([Tree((1, 2), tuple((3, 4 + i) for i in range(count))) for count in counts])


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.kind)
def test_a_form_comes_back_from_its_file(form: Form, tmp_path: Path) -> None:
    write_form(tmp_path, form)
    assert read_form(tmp_path / FILE) == form
    assert json.loads((tmp_path / FILE).read_text())["kind"] == form.kind
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_a_scalar_head_has_no_file_as_elsewhere(tmp_path: Path) -> None:
    write_form(tmp_path, FORMS[0])
    write_form(tmp_path, SCALAR)
    assert list(tmp_path.iterdir()) == []
    assert form_from({"kind": "scalar"}, "head") == SCALAR


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({}, "head has no key kind; expected one of scalar, attributes"),
        ({"kind": "scaler"}, r"has the kind 'scaler'; .* Did you mean 'scalar'"),
        ({"kind": "skew"}, "is of the kind skew and has no key 'tau'; it needs kind, tau"),
        ({"kind": "gap", "tau": 1.0}, "has the key 'tau'; a head of the kind gap has kind"),
        ({"kind": "skew", "tau": 0.0}, "tau 0.0; expected a number above 0"),
        ({"kind": "attributes", "names": ["a", "b"], "weights": [1.0]}, "1 weights; expected different names"),
        ({"kind": "attributes", "names": ["a", "a"], "weights": [1.0, 2.0]}, "expected different names"),
        ({"kind": "attributes", "names": [], "weights": []}, "expected different names"),
        ({"kind": "attributes", "names": ["a"], "weights": [math.inf]}, "expected finite numbers"),
        ({"kind": "attributes", "names": ["a"], "weights": ["much"]}, "head cannot be read: could not convert"),
        ({"kind": "steps", "aggregate": "mean_odds", "separator": "\n"}, r"no aggregate 'mean_odds'.* 'mean_logit'"),
        ({"kind": "steps", "aggregate": "min", "separator": ""}, "empty separator"),
    ],
)
def test_what_is_wrong_with_a_form_is_said_in_a_sentence(row: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        form_from(row, "head")


@pytest.mark.parametrize(("text", "words"), [("{", "cannot be read"), ("[1]", "holds no JSON object")])
def test_a_file_that_holds_no_form_is_named(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(InputError, match=rf"{FILE} {words}"):
        read_form(tmp_path / FILE)


@pytest.mark.parametrize(
    ("form", "columns", "words"),
    [
        (SCALAR, 2, "has 2 outputs, and a head of the kind scalar has 1; set outputs"),
        (FORMS[0], 3, "has 2, one for each of helpful, verbose"),
        (FORMS[1], 3, "kind skew has an even number"),
        (FORMS[1], 0, "kind skew has an even number"),
        (FORMS[3], 2, "kind pairwise has 1"),
    ],
)
def test_a_head_of_another_width_is_refused(form: Form, columns: int, words: str) -> None:
    with pytest.raises(InputError, match=f"It has {columns} .*|{words}") as told:
        form.check(columns, "It")
    assert words.split(",")[0] in str(told.value)


def test_marks_become_a_weighted_sum_in_which_verbosity_counts_against() -> None:
    values = torch.tensor([[2.0, 1.0], [0.5, -1.0], [0.0, 4.0]])
    found = reward_of(FORMS[0], values, siblings(2, 1))
    torch.testing.assert_close(found, torch.tensor([0.9, 0.725, -1.6]))
    one = Form(kind="attributes", names=("helpful",), weights=(2.0,))
    assert reward_of(one, torch.tensor([1.0, -3.0]), siblings(2)).tolist() == [2.0, -6.0]


@pytest.mark.parametrize("form", [SCALAR, *FORMS[3:]], ids=lambda form: form.kind)
def test_one_number_stays_what_it_is(form: Form) -> None:
    values = torch.randn(4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(reward_of(form, values, siblings(3, 1)), values)


def test_a_ratings_row_follows_the_names_and_misses_what_is_missing() -> None:
    found = ratings_of(FORMS[0], {"verbose": 3})
    assert math.isnan(found[0])
    assert found[1] == 3.0
    with pytest.raises(InputError, match=r"rated for 'helpfull', .* 0 to leave it out of the score. Did you mean"):
        ratings_of(FORMS[0], {"helpfull": 1.0})


def embeddings(count: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("width", [2, 4, 8])
def test_the_skew_product_is_that_of_the_matrix_and_antisymmetric_to_the_last_bit(width: int) -> None:
    vectors = embeddings(5, width)
    block = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    matrix = torch.block_diag(*[block] * (width // 2))
    table = skew(vectors)
    torch.testing.assert_close(table, vectors @ matrix @ vectors.T, atol=1e-5, rtol=0)
    assert torch.equal(table, -table.T)


def test_three_vectors_at_120_degrees_go_in_a_circle() -> None:
    """Each beats the next with p = 0.704, which no score could say of all three."""
    angles = torch.tensor([0.0, 120.0, 240.0], dtype=torch.float64).deg2rad()
    vectors = torch.stack([angles.cos(), angles.sin()], 1)
    for i, j in ((0, 1), (1, 2), (2, 0)):
        scores = reward_of(Form(kind="skew"), vectors[[i, j]], siblings(2))
        assert float(torch.sigmoid(scores[0] - scores[1])) == pytest.approx(0.704, abs=5e-4)
        back = reward_of(Form(kind="skew"), vectors[[j, i]], siblings(2))
        assert torch.equal(back, scores.flip(0))
    together = reward_of(Form(kind="skew"), vectors, siblings(3))
    torch.testing.assert_close(together, torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)


def test_with_second_numbers_of_1_an_embedding_is_a_score() -> None:
    scores = torch.tensor([0.5, -1.25, 3.0, 0.25, 2.0])
    found = reward_of(Form(kind="skew", tau=0.5), torch.stack([scores, torch.ones(5)], 1), siblings(4, 1))
    torch.testing.assert_close(found[:4], 2 * (scores[:4] - scores[:4].mean()))
    assert float(found[4]) == 0.0, "alone it has none"


def test_the_difference_of_two_siblings_is_their_comparison_over_tau() -> None:
    vectors, form = embeddings(2, 6), Form(kind="skew", tau=0.1)
    first, second = reward_of(form, vectors, siblings(2))
    assert float(first - second) == float(skew(vectors)[0, 1] / 0.1)
    apart = reward_of(form, torch.cat([vectors, embeddings(3, 6, 1)]), siblings(2, 3))
    assert torch.equal(apart[:2], torch.stack([first, second])), "other trees change nothing"


def test_the_order_of_siblings_changes_the_order_of_scores_only() -> None:
    vectors, form = embeddings(3, 4), Form(kind="skew")
    plainly = reward_of(form, vectors, siblings(3))
    for order in permutations(range(3)):
        torch.testing.assert_close(reward_of(form, vectors[list(order)], siblings(3)), plainly[list(order)])


def stepwise(*counts: int) -> Any:
    """A forest with one branch for each count, all of whose tokens end a step."""
    return plant([Tree((1,), (tuple(range(2, 2 + count)),)) for count in counts])


logits = st.lists(st.floats(-8, 8), min_size=1, max_size=7)


@given(logits)
def test_the_aggregates_are_in_their_known_order(steps: list[float]) -> None:
    found = {
        name: float(reward_of(Form(kind="steps", aggregate=name), torch.tensor(steps), stepwise(len(steps)))[0])
        for name in AGGREGATES
    }
    slack = 1e-12
    assert 0 <= found["product"] <= found["min"] + slack
    assert found["min"] <= found["geometric_mean"] + slack
    assert found["geometric_mean"] <= found["mean"] + slack
    assert found["mean"] <= found["max"] + slack
    assert found["min"] - slack <= found["mean_logit"] <= found["max"] + slack
    assert found["min"] - slack <= found["last"] <= found["max"] + slack <= 1 + slack


@given(st.floats(-30, 30))
def test_of_a_single_step_all_aggregates_are_its_probability(step: float) -> None:
    one = torch.tensor([step])
    for name in AGGREGATES:
        found = reward_of(Form(kind="steps", aggregate=name), one, stepwise(1))
        assert float(found[0]) == pytest.approx(float(torch.sigmoid(one.double())[0]), rel=1e-12)


def test_aggregates_by_hand_and_each_branch_by_itself() -> None:
    p = [0.9, 0.5, 0.8, 0.6]
    values = torch.tensor([math.log(x / (1 - x)) for x in p], dtype=torch.float64)
    by_hand = {
        "min": (0.5, 0.6),
        "product": (0.36, 0.6),
        "last": (0.8, 0.6),
        "mean": (2.2 / 3, 0.6),
        "geometric_mean": (0.36 ** (1 / 3), 0.6),
        "max": (0.9, 0.6),
        "mean_logit": (1 / (1 + (1 / 9 * 1 * 1 / 4) ** (1 / 3)), 0.6),
    }
    for name, expected in by_hand.items():
        found = reward_of(Form(kind="steps", aggregate=name), values, stepwise(3, 1))
        assert found.tolist() == pytest.approx(expected)


def test_the_product_of_many_steps_still_tells_answers_apart() -> None:
    steps = torch.cat([torch.full((300,), -0.8), torch.full((300,), -0.9)])
    first, second = reward_of(Form(kind="steps", aggregate="product"), steps, stepwise(300, 300))
    assert first > second > 0


def test_an_answer_without_a_step_is_refused() -> None:
    tree = Tree((1,), ((2, 3),), ((False, False),))
    with pytest.raises(InputError, match="has no step"):
        reward_of(Form(kind="steps"), torch.zeros(0), plant([tree]))


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("a\nb\nc", (1, 3, 5)),
        ("a\nb\n", (1, 3)),
        ("a\n\n  \nb", (1, 7)),
        ("\na", (2,)),
        ("a", (1,)),
        ("", (0,)),
        ("\n \n", (3,)),
    ],
)
def test_a_step_is_what_stands_before_a_separator(text: str, ends: tuple[int, ...]) -> None:
    assert step_ends(text) == ends


TEXT = " A cat left.\n It came back.\n\nDone: the cat\nis home."


def read_at(text: str, finish: str = "stop") -> list[str]:
    """The text up to each token at which a step is read."""
    words = tokenizer()
    ids = encode_completion(words, Response(prompt_id="p", text=text, finish=finish))
    tree = with_steps(words, Tree((1,), (ids,)), [text], "\n")
    assert tree.branches == (ids,), "marks change no token"
    return [words.decode(ids[: i + 1]) for i, taught in enumerate(tree.taught[0]) if taught]


def test_a_step_is_read_at_the_token_that_ends_its_separator() -> None:
    parts = read_at(TEXT)
    assert len(parts) == 4
    assert parts[0] == " A cat left.\n"
    assert parts[1] in (" A cat left.\n It came back.\n", " A cat left.\n It came back.\n\n")
    assert parts[2].endswith("Done: the cat\n")
    assert parts[3] == f"{TEXT}<|endoftext|>"
    assert read_at(TEXT, "length")[-1] == TEXT
    assert read_at(f"{TEXT}\n")[-1] == f"{TEXT}\n<|endoftext|>"
    assert read_at("") == ["<|endoftext|>"]


@given(st.text(alphabet="ab é\n.", max_size=12))
def test_there_is_a_step_for_each_end_or_fewer_and_never_none(text: str) -> None:
    words = tokenizer()
    ids = encode_completion(words, Response(prompt_id="p", text=text))
    marks = with_steps(words, Tree((1,), (ids,)), [text], "\n").taught[0]
    assert 1 <= sum(marks) <= len(step_ends(text))
    assert marks[-1]
    strict = step_marks(words, ids, text, step_ends(text))
    assert strict is None or strict == marks


def test_ends_that_labels_name_before_the_separator_are_read_where_scoring_reads() -> None:
    words = tokenizer()
    ids = encode_completion(words, Response(prompt_id="p", text=TEXT))
    ends = [i for i, letter in enumerate(TEXT) if letter == "\n" and TEXT[i - 1] != "\n"] + [len(TEXT)]
    assert step_marks(words, ids, TEXT, ends) == with_steps(words, Tree((1,), (ids,)), [TEXT], "\n").taught[0]
    only_first = step_marks(words, ids, TEXT, ends[:1])
    assert only_first is not None
    assert sum(only_first) == 1


def test_labels_that_share_a_token_or_lie_outside_drop_the_row() -> None:
    words = tokenizer()
    text = "a\n\n\nb"
    ids = encode_completion(words, Response(prompt_id="p", text=text))
    assert [words.decode([i]) for i in ids] == ["a", "\n\n", "\n", "b", "<|endoftext|>"]
    assert step_marks(words, ids, text, [1, 2]) is None, "one token holds both separators"
    assert step_marks(words, ids, text, [6]) is None
    assert step_marks(words, ids, text, [5, 1]) is None
    assert step_marks(words, ids, text, [1, 3, 5]) == (False, True, True, False, True)


def test_a_tokenizer_that_loses_case_and_line_breaks_finds_the_steps_too() -> None:
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "left", "home", "."]
    words = BertTokenizer(vocab={name: number for number, name in enumerate(names)})
    words.eos_token = "[SEP]"
    text = "A cat LEFT.\n\n Home\na cat"
    ids = encode_completion(words, Response(prompt_id="p", text=text))
    marks = step_marks(words, ids, text, step_ends(text))
    assert marks is not None
    shown = words.convert_ids_to_tokens(ids)
    assert [i for i, mark in enumerate(marks) if mark] == [shown.index("."), shown.index("home"), len(ids) - 1]
