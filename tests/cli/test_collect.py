"""Collection on the command line: through a pipe, and through a real terminal that is killed."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pexpect
import pytest

from tests.run.made import Shell, heeding_ctrl_c, strict, write
from tiebreak.store import Ledger

PEOPLE: dict[str, Any] = {
    "project": "people",
    "import": {"path": "pairs.jsonl", "split": {"train": None}},
    "collect": {"save": "kept"},
    "curate": ["soft_label", {"drop": "ties"}],
}
KEYS = r"q save and quit"


def pairs(count: int = 4) -> list[dict[str, str]]:
    return [{"prompt": f"Question {n}: ", "chosen": f"Yes {n}.", "rejected": f"No {n}."} for n in range(count)]


@pytest.fixture
def project(tiebreak: Shell) -> str:
    """A project that waits for people."""
    write("pairs.jsonl", pairs())
    recipe = write("r.yaml", PEOPLE)
    said = tiebreak("run", recipe)
    assert said.code == 1
    assert "collect waits for people: 0 of 4" in said.err
    assert "tiebreak collect --terminal project=people" in said.err
    return recipe


def piped(monkeypatch: pytest.MonkeyPatch, keys: str) -> None:
    """Let standard input hold ``keys``, a line each."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{key}\n" for key in keys.split())))


def sat_down(*words: str) -> pexpect.spawn[str]:
    """Start the command in a terminal of its own, as a person would."""
    environment = {**os.environ, "TERM": "xterm-256color"}
    command = [sys.executable, "-m", "tiebreak.cli", "collect", "--terminal", "project=people", *words]
    size: dict[str, Any] = {"dimensions": (50, 120), "timeout": 60, "preexec_fn": heeding_ctrl_c}
    return pexpect.spawn(command[0], command[1:], env=environment, encoding="utf-8", **size)


def test_a_run_waits_goes_on_with_what_people_said_and_follows_what_they_add(
    project: str, tiebreak: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    piped(monkeypatch, "1 2 q")
    said = tiebreak.fine("collect", "--terminal", "project=people", "--annotator", "ann")
    assert "2 answered now, 2 left" in said.out
    first = strict(tiebreak.fine("run", project, "--json").out)
    assert first["stages"]["collect"]["counts"] == {
        "comparisons": 4,
        "judged": 2,
        "judgments": 2,
        "slot": 2,
        "people": 1,
    }
    assert first["stages"]["collect"]["notes"] == ["2 comparisons are still open"]
    assert first["stages"]["curate"]["counts"]["pairs"] == 2
    assert "curate" in strict(tiebreak.fine("run", project, "--json").out)["skipped"]
    piped(monkeypatch, "1 t")
    tiebreak.fine("collect", "--terminal", "project=people", "--annotator", "ann")
    more = strict(tiebreak.fine("run", project, "--json").out)
    assert "curate" not in more["skipped"]
    assert more["stages"]["curate"]["counts"]["pairs"] == 3
    assert more["stages"]["curate"]["dropped"] == {"ties": 1}


def test_without_terminal_the_command_says_how_far_everybody_is(
    project: str, tiebreak: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    piped(monkeypatch, "1 s q")
    tiebreak.fine("collect", "--terminal", "project=people", "--annotator", "ann")
    assert strict(tiebreak.fine("collect", "project=people", "--json").out) == {
        "comparisons": 4,
        "judged": 1,
        "least": 1,
        "people": [{"name": "ann", "answered": 2, "left": 2, "verdicts": {"slot": 1, "skip": 1}}],
        "saved": "kept/user_preferences_001.json",
    }
    said = tiebreak.fine("collect", "project=people").out
    assert "1 of 4 comparisons" in said
    assert "ann: 2 answered" in said


def test_people_and_a_judge_are_both_heard(project: str, tiebreak: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    piped(monkeypatch, "1 1 1 1")
    tiebreak.fine("collect", "--terminal", "project=people", "--annotator", "ann")
    both = write("both.yaml", {**PEOPLE, "judge": {"by": "rule", "rule": "longer"}})
    said = strict(tiebreak.fine("run", both, "--json").out)
    assert said["stages"]["curate"]["counts"]["judgments"] == 4 + 8


def test_the_preference_set_is_written_after_each_answer_and_takes_the_next_free_number(
    project: str, tiebreak: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("kept").mkdir()
    Path("kept/user_preferences_007.json").write_text("[]\n")
    piped(monkeypatch, "1 t q")
    tiebreak.fine("collect", "--terminal", "project=people", "--annotator", "ann")
    kept = json.loads(Path("kept/user_preferences_008.json").read_text())
    assert [row["metadata"]["annotator"] for row in kept] == ["ann"], "a tie has no place in a preference set"
    piped(monkeypatch, "2 2")
    tiebreak.fine("collect", "--terminal", "project=people", "--annotator", "ann")
    assert len(json.loads(Path("kept/user_preferences_008.json").read_text())) == 3
    assert sorted(path.name for path in Path("kept").iterdir()) == [
        "user_preferences_007.json",
        "user_preferences_008.json",
    ]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["project=nowhere"], "There is no project runs/nowhere"),
        (["project=people", "--annotator", ""], "annotator's name is ''"),
        (["project=people", "votes=0"], "collect.votes is 0"),
        (["project=people", "vote=2"], "no key 'collect.vote'. Did you mean 'votes'?"),
    ],
)
def test_a_mistake_is_one_sentence(project: str, tiebreak: Shell, words: list[str], told: str) -> None:
    said = tiebreak("collect", "--terminal", *words)
    assert said.code == 1
    assert told in said.err
    assert len(said.err.strip().splitlines()) == 1


def test_a_recipe_without_two_answers_to_a_prompt_says_so(tiebreak: Shell) -> None:
    write("pairs.jsonl", [{"prompt": "Why? ", "chosen": "Because.", "rejected": "Because. "}])
    said = tiebreak("run", write("r.yaml", PEOPLE))
    assert said.code == 1
    assert "no two different answers to one prompt (1 pairs have identical texts)" in said.err


def test_fewer_answers_than_the_recipe_wants_keep_it_waiting(tiebreak: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    write("pairs.jsonl", pairs())
    recipe = write("r.yaml", {**PEOPLE, "collect": {"least": 3}})
    assert tiebreak("run", recipe).code == 1
    piped(monkeypatch, "1 1 q")
    tiebreak.fine("collect", "--terminal", "project=people", "--annotator", "ann")
    assert "2 of 4 comparisons are judged and 3 are wanted" in tiebreak("run", recipe).err
    piped(monkeypatch, "1 q")
    tiebreak.fine("collect", "--terminal", "project=people", "--annotator", "ann")
    tiebreak.fine("run", recipe)


@pytest.mark.slow
def test_a_person_at_a_terminal_is_killed_comes_back_and_has_lost_nothing(project: str) -> None:
    person = sat_down("--annotator", "ann")
    person.expect(KEYS)
    person.send("1")
    person.expect("1 of 4 answered")
    person.expect(KEYS)
    person.send("2")
    person.expect("2 of 4 answered")
    person.expect(KEYS)
    person.kill(signal.SIGKILL)
    person.expect(pexpect.EOF)
    with Ledger("runs/people/ledger.db") as ledger:
        assert [j.by for j in ledger.judgments() if j.by == "human:ann"] == ["human:ann"] * 2
    assert len(json.loads(Path("kept/user_preferences_001.json").read_text())) == 2
    person = sat_down("--annotator", "ann")
    person.expect("2 of 4 answered")
    person.expect(KEYS)
    person.send("u")
    person.expect("You said before: answer 2 is better")
    person.expect(KEYS)
    person.send("c9t")
    person.expect("  a tie")
    person.expect(KEYS)
    person.sendcontrol("c")
    person.expect("stopped; run the same command")
    person.expect(pexpect.EOF)
    person.close()
    assert person.exitstatus == 130
    with Ledger("runs/people/ledger.db") as ledger:
        said = sorted((j for j in ledger.judgments() if j.by == "human:ann"), key=lambda j: j.fields["turn"])
    assert [(j.verdict, j.fields.get("confidence")) for j in said] == [("slot", None), ("slot", None), ("tie", 9)]
    assert said[2].revises == said[1].id
