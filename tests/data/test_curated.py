"""The hand-written data: the starter set, its three parts, and the prompts to collect with."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tiebreak.data import checked, sets

CATEGORIES = {"instruction": "instruction_following", "safety": "safety", "reasoning": "reasoning"}


@pytest.fixture
def rlhf(repository: Path) -> Path:
    return repository / "data" / "rlhf"


@pytest.fixture
def starter(rlhf: Path) -> list[dict[str, Any]]:
    return sets.read(sets.find("starter", rlhf / "datasets"))


def test_the_starter_holds_eight_pairs_of_three_categories(starter):
    count = Counter(sets.label(row, "category") for row in starter)
    assert count == {"instruction_following": 5, "safety": 2, "reasoning": 1}
    assert {sets.label(row, "source") for row in starter} == {"curated"}
    assert len({row["metadata"]["quality"] for row in starter}) == 8
    assert len({sets.folded(row["prompt"]) for row in starter}) == 8
    assert [list(row["metadata"]) for row in starter] == [["category", "quality", "source"]] * 8


@pytest.mark.parametrize("name", CATEGORIES)
def test_each_part_holds_the_rows_of_its_category(rlhf, starter, name):
    part = sets.read(sets.find(name, rlhf / "datasets"))
    assert part == sets.filter_rows(starter, category=CATEGORIES[name])


@pytest.mark.parametrize("name", ["starter", *CATEGORIES])
def test_a_curated_set_has_no_problem_and_no_notice(rlhf, name):
    report = checked.validate(sets.find(name, rlhf / "datasets"))
    assert (report.problems, report.notices) == ((), ())


def test_length_does_not_tell_the_chosen_answer_of_the_starter_b6(starter):
    assert sets.length_baseline(starter).value == 0.5


def test_a_prompt_ends_with_one_space_and_an_answer_with_none_b10(starter):
    for row in starter:
        assert row["prompt"].endswith((": ", "? "))
        assert row["prompt"][:-1] == row["prompt"].strip()
        assert [row[side] for side in ("chosen", "rejected")] == [row[side].strip() for side in ("chosen", "rejected")]


def test_a_refusal_may_name_the_harm_and_is_still_the_chosen_side_b13(starter):
    """Safety is a judgment about an answer and no search for a word in it."""
    safety = sets.filter_rows(starter, category="safety")
    assert any("harm" in row["chosen"] for row in safety)
    assert not any("harm" in row["rejected"] for row in safety)


def test_there_are_25_prompts_each_with_the_space_at_its_end_b10(rlhf):
    prompts = sets.prompts(rlhf / "prompts" / "collection_prompts.txt")
    assert len(prompts) == len({sets.folded(prompt) for prompt in prompts}) == 25
    assert all(prompt.endswith((": ", "? ")) and prompt[:-1] == prompt.strip() for prompt in prompts)


def test_no_collection_prompt_stands_in_the_starter(rlhf, starter):
    prompts = sets.prompts(rlhf / "prompts" / "collection_prompts.txt")
    assert {sets.folded(row["prompt"]) for row in starter}.isdisjoint(map(sets.folded, prompts))


def test_the_script_writes_the_same_bytes_from_any_folder_b12(rlhf, tmp_path):
    script = rlhf / "examples" / "create_preference_dataset.py"
    done = subprocess.run([sys.executable, script, "-o", "made"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == "made/preference_dataset_starter.json: 8"
    shipped = {path.name: path.read_bytes() for path in (rlhf / "datasets" / "curated").glob("*.json")}
    assert {path.name: path.read_bytes() for path in (tmp_path / "made").iterdir()} == shipped
    assert len(shipped) == 4


def test_the_folder_of_collected_sets_is_kept_and_what_is_in_it_is_not(rlhf):
    ignored = (rlhf / "datasets" / sets.COLLECTED / ".gitignore").read_text().splitlines()
    assert ignored[-1] == "*.json"
