"""The line of Python in a model card is run as it stands there, and gives the numbers that the house gives."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.models.tiny import ENCODERS, RUNS, causal, tokenizer
from tiebreak.models.cards import ending, model_card
from tiebreak.models.forms import SCALAR, Form
from tiebreak.models.heads import loads_plainly
from tiebreak.models.load import Loaded, save_model, start_reward
from tiebreak.models.score import score, score_columns
from tiebreak.records import Prompt, Response

MARKS = Form(kind="attributes", names=("helpful", "verbose"), weights=(0.65, -0.4))
FORMS = [
    SCALAR,
    MARKS,
    Form(kind="skew", tau=0.1),
    Form(kind="steps", aggregate="product"),
    Form(kind="pairwise"),
    Form(kind="gap"),
]
PROMPT = Prompt(text="POST: My cat left home.\n\nTL;DR:")
TEXTS = (" A cat left.", " Cats.")
ANSWERS = [Response(prompt_id=PROMPT.id, text=text) for text in TEXTS]


def saved(kind: str, form: Form, folder: Path) -> Loaded:
    fields = {"model_type": kind, **(ENCODERS[kind] if kind in ENCODERS else RUNS[kind])}
    labels = {"attributes": 2, "skew": 4}.get(form.kind, 1)
    loaded = start_reward(fields, seed=1, tokenizer=tokenizer(), labels=labels, form=form)
    card = model_card(
        str(folder), form, "base", "a_method", plain=loads_plainly(loaded.model, form), eos=ending(loaded.tokenizer)
    )
    save_model(loaded.model, loaded.tokenizer, folder, form=form, card=card)
    return loaded


def told(folder: Path, **names: Any) -> Any:
    """What the card's code gives: its last line is an expression."""
    (code,) = re.findall(r"```python\n(.*?)\n```", (folder / "README.md").read_text(), re.S)
    *imports, line = code.splitlines()
    exec("\n".join(imports), names)
    return eval(line, names)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_the_line_of_a_reward_model_gives_its_score(kind: str, tmp_path: Path) -> None:
    loaded = saved(kind, SCALAR, tmp_path / "model")
    (row,) = score(loaded, [(PROMPT, ANSWERS)])
    assert row is not None
    for text, expected in zip(TEXTS, row, strict=True):
        (found,) = told(tmp_path / "model", prompt=PROMPT.text, response=text)[:1]
        found = found[0] if isinstance(found, list) else found
        assert found["label"] == "reward"
        assert found["score"] == pytest.approx(expected, abs=1e-5)


def test_the_line_of_attributes_gives_each_mark_by_name(tmp_path: Path) -> None:
    loaded = saved("llama", MARKS, tmp_path / "model")
    ((marks, _),) = score_columns(loaded, [(PROMPT, ANSWERS)])
    found = told(tmp_path / "model", prompt=PROMPT.text, response=TEXTS[0])
    found = found[0] if isinstance(found[0], list) else found
    assert {one["label"]: one["score"] for one in found} == pytest.approx(
        dict(zip(MARKS.names, marks, strict=True)), abs=1e-5
    )


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_the_line_of_steps_ends_with_the_last_steps_probability(kind: str, tmp_path: Path) -> None:
    loaded = saved(kind, FORMS[3], tmp_path / "model")
    (((*_, last), _),) = score_columns(loaded, [(PROMPT, ANSWERS)])
    found = told(tmp_path / "model", prompt=PROMPT.text, response=TEXTS[0])
    assert float(found[-1].detach()) == pytest.approx(float(torch.sigmoid(torch.tensor(last))), abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "form"),
    [*(("llama", form) for form in FORMS if form.relative), ("opt", FORMS[3])],
    ids=lambda value: getattr(value, "kind", value),
)
def test_the_line_of_a_head_that_needs_the_house_calls_it(kind: str, form: Form, tmp_path: Path) -> None:
    loaded = saved(kind, form, tmp_path / "model")
    found = told(tmp_path / "model", prompt=PROMPT, responses=ANSWERS)
    assert found[0] == pytest.approx(score(loaded, [(PROMPT, ANSWERS)])[0], abs=1e-5)


def test_the_line_of_a_policy_writes(tmp_path: Path) -> None:
    loaded = causal("llama")
    save_model(
        loaded.model, loaded.tokenizer, tmp_path / "model", card=model_card(str(tmp_path / "model"), None, "", "")
    )
    assert told(tmp_path / "model", prompt="The cat")[0]["generated_text"].startswith("The cat")


@pytest.mark.parametrize("form", [None, *FORMS], ids=lambda form: form.kind if form else "policy")
def test_a_card_says_what_it_is_what_it_comes_from_and_under_which_licence(form: Form | None) -> None:
    text = model_card(
        "mine",
        form,
        "org/base",
        "a_method",
        does="learns",
        formula="S(d)",
        paper="Author et al. 2024",
        licence="Apache-2.0, the data CC-BY-4.0.",
    )
    front = yaml.safe_load(text.split("---")[1])
    assert front["base_model"] == "org/base"
    assert front["library_name"] == "transformers"
    assert front["pipeline_tag"].startswith("text-" if form is None or form.kind != "steps" else "token-")
    assert "a_method" in front["tags"]
    for words in ("# mine", "`org/base`", "`a_method`, learns", "`S(d)`", "Author et al. 2024", "## Use"):
        assert words in text
    assert text.endswith("## Licence\n\nApache-2.0, the data CC-BY-4.0.\n")
    if form is not None:
        assert "- Score: " in text


def test_a_card_says_nothing_it_was_not_told_and_no_folder_is_a_hub_name() -> None:
    text = model_card("mine", SCALAR, "./sft/model", "bradley_terry")
    assert "base_model" not in text
    assert "Licence" not in text
    assert "Paper" not in text
    assert "None" not in text.replace("top_k=None", "")
    assert "``" not in model_card("mine", SCALAR, "", "").replace("```", "")
    assert "product of the steps' probabilities" in model_card("mine", FORMS[3], "", "process_reward")
    assert "0.65 helpful, -0.4 verbose" in model_card("mine", MARKS, "", "regression")
