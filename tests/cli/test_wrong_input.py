"""Whatever is wrong, the user gets one sentence: what, where, what was expected, what to do."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.run.made import ANSWERS, Said, Shell, count, finish, ledger_is_sound, read, start, tiny, votes, write

SFT = {"method": "sft", "rows": "responses"}


def assert_one_sentence(said: Said, words: str) -> None:
    assert said.code not in (0, 130)
    assert said.out == ""
    assert "Traceback" not in said.err
    complaints = [line for line in said.err.splitlines() if line.startswith("tiebreak: ")]
    assert complaints == [said.last]
    assert words in said.last


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rn"], "No such command 'rn'. Did you mean 'run'?"),
        (["run", "--dryrun"], "No such option: --dryrun"),
        (["run", "nope.yaml"], "There is no recipe nope.yaml"),
        (["run", "a", "b"], "'b' is neither the recipe nor key=value"),
        (["run"], "There is no project runs/tiebreak"),
        (["run", "project=.."], "expected a name"),
        (["judge"], "'judge.by' is missing"),
        (["judge", "by=rule", "rule=world"], "There is no project runs/tiebreak"),
        (["run", "jugde.by=rule"], "there is no key 'jugde'. Did you mean 'judge'?"),
        (["import", "path=nope.jsonl"], "import.path is nope.jsonl, which does not exist"),
        (["import", "path=."], "which is a folder"),
        (["import"], "reads a file; add path=FILE"),
        (["import", "format=world", "n=ten"], "import.n is 'ten'; expected a whole number"),
        (["import", "format=world", "n=0"], "The source has no rows"),
        (["import", "format=world", "n=-3"], "The source has no rows"),
        (["import", "format=world", "n=5", "limit=0"], "import.limit is 0; expected 1 or more"),
        (["import", "format=world", "n=5", "split.test=9"], "The shares ask for 9 groups of prompts, there are 5"),
        (["import", "format=world", "n=5", "split.test=-1"], "The share of 'test' is -1"),
        (["import", "format=world", "n=5", "split.test=held"], "no prompt has it"),
        (["import", "format=world", "n=5", "split={a: null, b: null}"], "both ask for the rest"),
        (["import", "format=mymodule:read"], "there is no module 'mymodule'"),
        (["ls", "judges"], "There is no table 'judges'; there are data, judge"),
        (["export"], "There is no project runs/tiebreak"),
        (["import", "format=world", "export.shape=unpaired"], "export needs the section curate"),
    ],
    ids=" ".join,
)
def test_wrong_words(words: list[str], said: str, tiebreak: Shell) -> None:
    assert_one_sentence(tiebreak(*words), said)
    assert_one_sentence(tiebreak(*words, *(["--json"] if words[0] != "rn" else [])), said)


ROWS: dict[str, tuple[Any, str]] = {
    "a column of the wrong type": ([{"prompt": 3, "chosen": "a", "rejected": "b"}], "column 'prompt' holds 3 (int)"),
    "no row": ([], "The source has no rows"),
    "no row that can be used": ([{"prompt": "p", "chosen": "a", "rejected": "a"}], "None of the 1 rows can be used"),
    "another column": ([{"question": "p", "chosen": "a", "rejected": "b"}], "prompt"),
}


@pytest.mark.parametrize("kind", ROWS)
def test_wrong_rows(kind: str, tiebreak: Shell) -> None:
    rows, words = ROWS[kind]
    assert_one_sentence(tiebreak("import", f"path={write('rows.jsonl', rows)}"), words)


def test_wrong_bytes(tiebreak: Shell) -> None:
    Path("rows.jsonl").write_bytes(b'{"prompt": "p", "chosen": "a", "rejected": "b"}\n{"prompt": \xff\n')
    assert_one_sentence(tiebreak("import", "path=rows.jsonl"), "rows.jsonl")
    Path("rows.xls").write_bytes(b"PK\x03\x04")
    assert_one_sentence(tiebreak("import", "path=rows.xls"), "rows.xls")


def test_a_missing_or_broken_mapping(tiebreak: Shell) -> None:
    write("rows.jsonl", votes(3))
    table = ["import", "format=table", "path=rows.jsonl"]
    assert_one_sentence(tiebreak(*table), "needs mapping=FILE.yaml")
    assert_one_sentence(tiebreak(*table, "mapping=nope.yaml"), "no mapping file at nope.yaml")
    Path("m.yaml").write_text("- a\n")
    assert_one_sentence(tiebreak(*table, "mapping=m.yaml"), "m.yaml")


def test_a_wrong_word_after_good_ones_is_forgotten_with_what_it_belongs_to(tiebreak: Shell) -> None:
    write("rows.jsonl", votes(3))
    assert tiebreak("import", "format=table", "path=rows.jsonl", "mapping=nope.yaml").code == 1
    assert tiebreak("import", "n=9", "format=world", "--json").code == 0
    assert read("runs/tiebreak/recipe.json")["import"]["n"] == 9


def test_earlier_rows_survive_a_later_mistake(tiebreak: Shell) -> None:
    recipe = write("r.yaml", ANSWERS)
    write("votes.jsonl", votes(40))
    tiebreak.fine("run", recipe)
    before = {table: count("runs/votes", table) for table in ("prompts", "responses", "judgments")}
    write("votes.jsonl", [*votes(2500), {"prompt": 1, "chosen": "a", "rejected": "b"}])
    assert_one_sentence(tiebreak("run", recipe), "votes.jsonl:2501")
    assert ledger_is_sound("runs/votes")
    assert all(count("runs/votes", table) >= rows for table, rows in before.items())
    write("votes.jsonl", votes(2500))
    tiebreak.fine("run", recipe)
    assert count("runs/votes", "prompts") == 2500


STAGES: dict[str, tuple[dict[str, Any], str]] = {
    "from itself": ({"x": {**SFT, "model": "x"}}, "train.x starts from itself"),
    "from each other": ({"x": {**SFT, "model": "y"}, "y": {**SFT, "model": "x"}}, "wait for each other"),
    "from a misspelt stage": (
        {"first": {**SFT, "model": "./m"}, "second": {**SFT, "model": "frist"}},
        "Did you mean 'first'?",
    ),
}


@pytest.mark.parametrize("kind", STAGES)
def test_stages_that_cannot_begin(kind: str, tiebreak: Shell) -> None:
    stages, words = STAGES[kind]
    recipe = write("r.yaml", {"import": {"format": "world", "n": 9}, "train": stages})
    assert_one_sentence(tiebreak("run", recipe), words)
    assert_one_sentence(tiebreak("run", recipe, "--dry-run"), words)
    assert not Path("runs/tiebreak/ledger.db").exists()


def test_a_model_trained_on_what_itself_has_judged_is_a_circle(tiebreak: Shell) -> None:
    recipe = write("r.yaml", tiny(sample={"model": "policy"}))
    assert_one_sentence(tiebreak("run", recipe), "wait for each other")


def no_tokenizer(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}))


def no_model(folder: Path) -> None:
    (folder / "notes.txt").write_text("nothing here")


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def no_weights(folder: Path) -> None:
    from tiebreak.models.load import train_tokenizer

    train_tokenizer(["a few words"], vocabulary=300).save_pretrained(folder)
    no_tokenizer(folder)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (no_model, "no config.json"),
        (no_tokenizer, "has no tokenizer"),
        (broken_config, "cannot be loaded"),
        (no_weights, "cannot be loaded"),
    ],
)
def test_a_folder_that_is_no_model(make: Callable[[Path], None], words: str, tiebreak: Shell) -> None:
    Path("m").mkdir()
    make(Path("m"))
    tiebreak.fine("import", "format=world", "n=9")
    assert_one_sentence(tiebreak("sample", "model=./m"), words)
    assert_one_sentence(tiebreak("train", "train.x.method=sft", "train.x.model=./m", "train.x.rows=responses"), words)
    assert ledger_is_sound("runs/tiebreak")


def test_a_reward_model_asked_to_talk(tiebreak: Shell) -> None:
    Path("m").mkdir()
    no_weights(Path("m"))
    write("m/config.json", {"model_type": "gpt2", "architectures": ["GPT2ForSequenceClassification"], "num_labels": 1})
    tiebreak.fine("import", "format=world", "n=9")
    assert_one_sentence(tiebreak("sample", "model=./m"), "is a reward model")


def test_a_dead_endpoint(tiebreak: Shell) -> None:
    write("votes.jsonl", votes(5))
    tiebreak.fine("import", "path=votes.jsonl", "by=human:ann")
    dead = ["judge", "by=pairwise", "endpoint=http://127.0.0.1:9/v1", "model=m", "retries=0", "limit=2"]
    assert_one_sentence(tiebreak(*dead), "127.0.0.1:9")
    assert count("runs/tiebreak", "judgments") == 5
    assert ledger_is_sound("runs/tiebreak")


def test_a_judge_that_cannot_be_made_is_noticed_before_the_first_stage(tiebreak: Shell) -> None:
    recipe = write("r.yaml", tiny())
    assert_one_sentence(tiebreak("run", recipe, "judge.slot_bias=7"), "slot_bias is 7")
    assert_one_sentence(tiebreak("run", recipe, "evaluate.win_rate.judge.sharpness=-1"), "sharpness is -1")
    assert_one_sentence(tiebreak("run", recipe, "judge.by=pairwise"), "'pairwise' needs endpoint")
    assert not Path("runs/tiny").exists()


def test_evaluate_without_test_prompts(tiebreak: Shell) -> None:
    tiebreak.fine("import", "format=world", "n=9", "split={train: null}")
    asked = ["evaluate", "win_rate.of=./m", "win_rate.against=[reference]", "win_rate.judge={by: rule, rule: world}"]
    assert_one_sentence(tiebreak(*asked), "wants the prompts 'test'; the import has train and all")


def test_evaluate_with_nothing_to_measure(tiebreak: Shell) -> None:
    tiebreak.fine("import", "format=world", "n=9")
    assert_one_sentence(tiebreak("evaluate"), "evaluate has nothing to do")


def test_a_verb_before_the_one_it_needs(tiebreak: Shell) -> None:
    write("votes.jsonl", votes(5))
    recipe = write("r.yaml", ANSWERS)
    assert_one_sentence(tiebreak("judge", recipe), "judge needs import, which has not been run")
    assert_one_sentence(tiebreak("export", recipe), "export needs curate, which has not been run")


def test_a_project_folder_that_is_a_file(tiebreak: Shell) -> None:
    Path("runs").mkdir()
    Path("runs/p").touch()
    assert_one_sentence(tiebreak("import", "format=world", "n=9", "project=p"), "File exists; choose another")
    assert_one_sentence(tiebreak("import", "format=world", "n=9", "project=runs/p/q"), "choose another")


def test_a_folder_of_the_users_own_is_not_emptied(tiebreak: Shell) -> None:
    Path("import").mkdir()
    Path("import/thesis.txt").write_text("years of work")
    said = tiebreak("import", "format=world", "n=9", "project=./")
    assert_one_sentence(said, "holds files that no run has written")
    assert Path("import/thesis.txt").read_text() == "years of work"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission(tiebreak: Shell) -> None:
    Path("shut").mkdir(mode=0o500)
    assert_one_sentence(tiebreak("import", "format=world", "n=9", "project=shut/p"), "Permission denied")


@pytest.mark.parametrize(
    ("ledger", "words"),
    [
        ("r.yaml/x.db", "cannot be made"),
        ("r.yaml", "not a database"),
        ("mysql://u:hunter2@host/db", "neither a file"),
        ("postgresql://u:hunter2@127.0.0.1:1/db", "cannot be used"),
        ("${NO_SUCH_LEDGER}", "environment variable NO_SUCH_LEDGER"),
    ],
)
def test_a_ledger_that_cannot_be_used(ledger: str, words: str, tiebreak: Shell) -> None:
    write("r.yaml", [{"a": 1}] * 200)
    said = tiebreak("import", "format=world", "n=9", f"ledger={ledger}")
    assert_one_sentence(said, words)
    assert "hunter2" not in said.err


def test_a_password_reaches_no_file_and_no_screen(tiebreak: Shell) -> None:
    address = "postgresql://u:hunter2@127.0.0.1:1/db"
    tiebreak("run", "import.format=world", "import.n=9", f"ledger={address}")
    assert read("runs/tiebreak/recipe.json")["ledger"] == "postgresql://u:***@127.0.0.1:1/db"
    assert "hunter2" not in tiebreak("run", "--dry-run", f"ledger={address}", "import.format=world", "import.n=9").out
    assert_one_sentence(tiebreak("import"), "needs its password again")


@pytest.mark.usefixtures("postgres_url")
def test_a_wrong_password(postgres_url: str, tiebreak: Shell) -> None:
    import sqlalchemy as sa

    wrong = sa.make_url(postgres_url).set(password="no-such-password", username="no_such_user")
    said = tiebreak("import", "format=world", "n=9", f"ledger={wrong.render_as_string(hide_password=False)}")
    assert_one_sentence(said, "cannot be used")
    assert "no-such-password" not in said.err


def test_a_real_process_ends_the_same_way() -> None:
    said = finish(start("run", "nope.yaml", "--json"))
    assert said == Said(1, "", "tiebreak: There is no recipe nope.yaml; pass the path of a YAML file.\n")
