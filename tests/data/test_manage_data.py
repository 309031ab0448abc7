"""The command that looks after the sets, called as a user calls it: from another folder, by name and by path."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tiebreak.data import sets

GOOD = {"prompt": "Why? ", "chosen": "because", "rejected": "no idea", "metadata": {"category": "safety"}}


class Said(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def manage(repository: Path, tmp_path: Path) -> Callable[..., Said]:
    """The shipped command, from an empty folder."""

    def call(*words: object, script: Path = repository / "data" / "rlhf" / "manage_data.py") -> Said:
        line = [sys.executable, str(script), *map(str, words)]
        done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True)
        return Said(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture
def copied(repository: Path, tmp_path: Path) -> Path:
    """The command beside a data folder of its own, in which sets may be missing."""
    home = tmp_path / "data"
    shutil.copytree(repository / "data" / "rlhf" / "datasets" / "curated", home / "datasets" / "curated")
    shutil.copy(repository / "data" / "rlhf" / "manage_data.py", home)
    return home / "manage_data.py"


def test_the_list_shows_what_is_shipped_from_any_folder_b11_b12(manage):
    found = manage("list", "--json").json
    listed = {one["name"]: one["report"] for one in found["sets"]}
    assert found["prompts"]["n"] == 25
    assert listed["starter"]["counts"]["category"] == {"instruction_following": 5, "safety": 2, "reasoning": 1}
    assert [listed[name]["n"] for name in sets.SETS] == [8, 5, 2, 1, 100, 108]
    assert listed["synthetic"]["counts"]["quality"] == {
        "detailed_vs_brief": 26,
        "helpful_vs_vague": 31,
        "accurate_vs_incorrect": 24,
        "structured_vs_rambling": 19,
    }
    assert listed["combined"]["counts"]["source"] == {"curated": 8, "synthetic": 100}
    shown = manage("list").out
    for told in ("5 instruction_following + 2 safety + 1 reasoning", "31 helpful_vs_vague", "25 prompts in "):
        assert told in shown


def test_every_shipped_set_is_valid(manage):
    for name in sets.SETS:
        assert manage("validate", name).code == 0, name


def test_the_combined_set_is_the_merge_of_starter_and_synthetic(manage, repository, tmp_path):
    said = manage("merge", "starter", "synthetic", "-o", "combined.json")
    assert (said.code, said.out) == (0, "108 rows in combined.json; no duplicates left out.\n")
    shipped = repository / "data" / "rlhf" / "datasets" / sets.SETS["combined"]
    assert (tmp_path / "combined.json").read_bytes() == shipped.read_bytes()


def test_a_missing_set_is_listed_as_missing_with_its_remedy_b11(manage, copied):
    sets.write(copied.parent / "datasets" / sets.COLLECTED / "user_preferences_001.json", [GOOD | {"metadata": None}])
    (copied.parent / "datasets" / sets.COLLECTED / "broken.json").write_text("[")
    said = manage("list", script=copied)
    assert (said.code, said.err) == (0, "")
    assert "missing: synthetic/large_synthetic_preferences.json" in said.out
    assert "generate_large_synthetic_dataset.py" in said.out
    assert "1 problem: see `validate broken`" in said.out
    assert "1 not given" in said.out
    assert "missing: " in said.out.splitlines()[-1]
    listed = {one["name"]: one["report"] for one in manage("list", "--json", script=copied).json["sets"]}
    assert listed["synthetic"] is None
    assert listed["user_preferences_001"]["n"] == 1
    said = manage("validate", "synthetic", script=copied)
    assert (said.code, said.out) == (1, "")
    assert said.err.startswith("manage_data.py: The set 'synthetic' is missing")


def test_validate_names_each_fault_and_leaves_the_file_alone(manage, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([GOOD, GOOD, {"prompt": "[bold]b[/bold]? ", "chosen": "[red]"}], indent=1))
    before = path.read_bytes()
    said = manage("validate", "mine.json")
    assert (said.code, said.err) == (1, "")
    assert said.out.splitlines()[:3] == [
        "mine.json: 3 rows",
        "  problem: row 2 (line 10): it says the same as row 1; delete one of them.",
        "  problem: row 3 (line 18): 'rejected' is missing; expected a text.",
    ]
    assert "2 problems, 3 notices. Correct them; the file is as it was." in said.out
    told = manage("validate", "mine.json", "--json")
    assert (told.code, [one["rows"] for one in told.json["problems"]]) == (1, [[2, 1], [3]])
    assert path.read_bytes() == before


def test_validate_only_tells_null_metadata_b11(manage, tmp_path):
    sets.write(tmp_path / "collected.json", [GOOD | {"metadata": None}])
    said = manage("validate", "collected.json")
    assert said.code == 0
    assert "notice: metadata is null or missing in row 1" in said.out
    assert "No problems, 1 notice. The set can be used." in said.out


def test_merge_counts_duplicates_tells_contradictions_and_marks_on_request(manage, tmp_path):
    swapped = GOOD | {"chosen": GOOD["rejected"], "rejected": GOOD["chosen"]}
    sets.write(tmp_path / "one.json", [GOOD])
    sets.write(tmp_path / "two.json", [GOOD, swapped])
    said = manage("merge", "one.json", "two.json", "-o", "both.json", "--mark")
    assert said.code == 0
    assert "notice: rows 1 and 2 say the opposite of each other" in said.out
    assert "2 rows in both.json; 1 duplicate left out." in said.out
    origins = [row["metadata"]["original_source"] for row in sets.read(tmp_path / "both.json")]
    assert origins == ["one", "two"]
    told = manage("merge", "one.json", "two.json", "-o", "both.json", "--json").json
    assert told == {"path": "both.json", "n": 2, "duplicates": 1, "contradictions": [[1, 2]]}
    assert [row["metadata"] for row in sets.read(tmp_path / "both.json")] == [{"category": "safety"}] * 2


def test_split_writes_two_files_beside_the_set_or_into_a_folder_b7(manage, copied, tmp_path):
    said = manage("split", "starter", script=copied)
    curated = copied.parent / "datasets" / "curated"
    assert said.out.splitlines()[0] == "notice: Category 'reasoning' has one prompt; it goes to train."
    sides = [sets.read(curated / f"preference_dataset_starter_{side}.json") for side in ("train", "val")]
    assert [len(side) for side in sides] == [6, 2]
    told = manage("split", "starter", "--ratio", 0.5, "--seed", 3, "-o", "halves", "--json").json
    assert (told["train"]["n"], told["val"]["n"], told["seed"]) == (4, 4, 3)
    assert told["train"]["path"] == "halves/preference_dataset_starter_train.json"
    assert len(sets.read(tmp_path / told["val"]["path"])) == 4


def test_filter_keeps_what_is_asked_for_and_says_what_it_drops(manage, tmp_path):
    said = manage("filter", "starter", "--category", "safety", "-o", "safe.json")
    assert (said.code, said.out) == (0, "2 rows in safe.json; 6 of 8 dropped.\n")
    told = manage("filter", "starter", "--min-length", 60, "--max-length", 80, "-o", "mid.json", "--json").json
    assert told["kept"] + told["dropped"] == 8
    assert all(60 <= sets.words(row["chosen"]) <= 80 for row in sets.read(tmp_path / "mid.json"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("filter starter --category poetry -o x.json", "No row has the category 'poetry'; there are instruction_follo"),
        ("filter starter --min-length 5000 -o x.json", "None of 8 rows meets every condition"),
        ("filter starter -o x.json", "No condition is given"),
        ("filter mine.json --category safety -o mine.json", "is the set itself"),
        ("merge starter -o x", "x does not end in .json"),
        ("merge starter nothing.json -o x.json", "There is no set and no file 'nothing.json'"),
        ("merge starter broken.json -o x.json", "row 2: 'prompt' is blank"),
        ("merge starter -o mine.json/x.json", "cannot be used"),
        ("split reasoning -o sides", "needs at least two"),
        ("split starter --ratio 80 -o sides", "between 0 and 1"),
        ("validate startr", "Did you mean 'starter'?"),
        ("merge starter", "Missing option '-o'"),
        ("valdate starter", "No such command 'valdate'"),
    ],
)
def test_a_mistake_is_one_sentence_and_no_file_is_written(manage, tmp_path, words, said):
    sets.write(tmp_path / "mine.json", [GOOD])
    sets.write(tmp_path / "broken.json", [GOOD, GOOD | {"prompt": " "}])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    done = manage(*words.split())
    assert done.code > 0
    assert done.out == ""
    assert said in done.err
    assert len(done.err.splitlines()) == 1
    assert done.err.startswith("manage_data.py: ")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
