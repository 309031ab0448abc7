"""TRL's own data functions take every file we write: same dataset type, same rows after its preparation."""

from __future__ import annotations

import importlib.util

import pytest

from tiebreak.data.trl import SHAPES, export_pairs
from tiebreak.records import Pair, Prompt, Response

if importlib.util.find_spec("trl") is None:
    pytest.skip("trl is not installed; it is a peer to compare with, not a dependency", allow_module_level=True)

COLUMNS = {
    "preference": {"prompt", "chosen", "rejected"},
    "preference_implicit": {"chosen", "rejected"},
    "unpaired": {"prompt", "completion", "label"},
    "prompt_completion": {"prompt", "completion"},
}


@pytest.fixture
def load(tmp_path):
    datasets = pytest.importorskip("datasets")
    asked = [Prompt(text=f"What is {n} and one?") for n in range(4)]
    sides = [[Response(prompt_id=p.id, text=f" {n + k}.") for k in (1, 2)] for n, p in enumerate(asked)]
    pairs = [
        Pair(prompt_id=p.id, chosen_id=good.id, rejected_id=bad.id, p=0.9, margin=0.5)
        for p, (good, bad) in zip(asked, sides, strict=True)
    ]
    prompts = {p.id: p for p in asked}
    responses = {side.id: side for two in sides for side in two}

    def loaded(shape: str, conversational: bool):
        path = tmp_path / f"{shape}.jsonl"
        export_pairs(pairs, prompts, responses, path, shape=shape, conversational=conversational)
        return datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))

    return loaded


@pytest.mark.parametrize("conversational", [False, True], ids=["plain", "turns"])
@pytest.mark.parametrize("shape", SHAPES)
def test_trl_sees_the_columns_and_the_kind_of_each_shape(load, shape, conversational):
    from trl.data_utils import is_conversational

    rows = load(shape, conversational)
    assert set(rows.column_names) >= COLUMNS[shape]
    assert is_conversational({name: rows[0][name] for name in COLUMNS[shape]}) is conversational


def test_trl_extracts_the_implicit_prompt_of_a_conversation_as_we_write_it_out(load):
    from trl.data_utils import maybe_extract_prompt

    implicit, explicit = load("preference_implicit", True), load("preference", True)
    columns = sorted(COLUMNS["preference"])
    found = implicit.map(maybe_extract_prompt)
    assert found.select_columns(columns).to_list() == explicit.select_columns(columns).to_list()


@pytest.mark.parametrize("conversational", [False, True], ids=["plain", "turns"])
def test_trl_unpairs_our_pairs_into_our_unpaired_rows(load, conversational):
    from trl.data_utils import maybe_unpair_preference_dataset

    columns = ["completion", "label", "prompt"]
    theirs = maybe_unpair_preference_dataset(load("preference", conversational).remove_columns(["p", "margin"]))
    ours = load("unpaired", conversational)

    def rows(dataset) -> list[str]:
        return sorted(map(repr, dataset.select_columns(columns).to_list()))

    assert rows(theirs) == rows(ours)


@pytest.mark.parametrize("shape", SHAPES)
def test_trl_applies_a_chat_template_to_our_turns(load, shape):
    from trl.data_utils import maybe_apply_chat_template

    class Tokenizer:
        def apply_chat_template(self, turns, *, tokenize=False, add_generation_prompt=False, **_):
            text = "".join(f"<{turn['role']}>{turn['content']}" for turn in turns)
            return text + ("<assistant>" if add_generation_prompt else "")

    for row in load(shape, True):
        found = maybe_apply_chat_template(row, Tokenizer())
        assert all(isinstance(found[name], str) for name in COLUMNS[shape] - {"label"})
