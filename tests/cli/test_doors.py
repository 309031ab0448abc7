"""The command line as a door: help, JSON, logs, forecasts, Ctrl-C, and a user's own code."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest

from tests.run.made import ANSWERS, MODEL, Shell, count, finish, read, start, strict, tiny, votes, write
from tiebreak.cli import TABLES, VERBS
from tiebreak.recipe import Recipe
from tiebreak.registry import load_object

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def test_help_names_every_verb(tiebreak: Shell) -> None:
    said = tiebreak("--help")
    assert said.code == 0
    assert all(verb in said.out for verb in (*VERBS, "run", "ls", "doctor"))
    bare = tiebreak()
    assert "Usage: tiebreak" in bare.out
    assert bare.err == ""


@pytest.mark.parametrize("section", VERBS)
def test_help_of_a_verb_tells_its_keys_with_defaults_and_meaning(section: str, tiebreak: Shell) -> None:
    said = tiebreak(section, "--help").out
    flat = " ".join(said.split())
    field = next(f for name, f in Recipe.model_fields.items() if section in (name, f.alias))
    for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
        for name, key in getattr(kind, "model_fields", {}).items():
            assert re.search(rf"\b{name}\b", said)
            assert str(key.description) in flat
    rows = {"import": "data", "judge": "judge", "train": "objectives", "curate": "curate"}
    for row in load_object(":".join(TABLES[rows[section]]), what=section) if section in rows else ():
        assert row.name in said
        assert all(knob in said for knob in row.settle({}, where=""))


def test_everything_with_json_is_json_and_nothing_else(tiebreak: Shell) -> None:
    recipe = write("r.yaml", ANSWERS)
    write("votes.jsonl", votes())
    asked = [["ls"], ["doctor"], ["run", recipe, "--dry-run"], ["run", recipe], ["run", recipe, "--dry-run"]]
    asked += [["ls", name] for name in TABLES]
    asked += [[verb, recipe] for verb in ("import", "judge", "audit", "curate", "export")]
    for words in asked:
        said = tiebreak(*words, "--json")
        assert said.code == 0, said.err
        assert strict(said.out), words


def test_a_second_run_is_told_as_skipped(tiebreak: Shell) -> None:
    recipe = write("r.yaml", ANSWERS)
    write("votes.jsonl", votes())
    first = strict(tiebreak.fine("run", recipe, "--json").out)
    second = strict(tiebreak.fine("run", recipe, "--json").out)
    assert first["skipped"] == []
    assert second["skipped"] == ["import", "judge", "audit", "curate", "export"]
    assert second["stages"] == first["stages"]
    assert second["summary"] == first["summary"]


def test_a_log_has_no_control_characters() -> None:
    recipe = write("r.yaml", ANSWERS)
    write("votes.jsonl", votes())
    said = finish(start("run", recipe))
    assert said.code == 0, said.err
    assert CONTROL.search(said.err + said.out) is None
    assert all(re.match(r"\d\d:\d\d:\d\d [a-z]", line) for line in said.err.splitlines())


def test_a_forecast_tells_steps_calls_price_and_memory(tiebreak: Shell) -> None:
    recipe = write("r.yaml", tiny())
    found = strict(tiebreak.fine("run", recipe, "--dry-run", "--json").out)
    assert found["rows"]["sets"] == {"test": 16, "train": 96, "all": 112}
    assert found["sample"] == {"prompts": 64, "responses": 128}
    assert (found["judge"]["pairs"], found["judge"]["questions"], found["judge"]["calls"]) == (64, 128, 0)
    assert {name: (t["rows_at_most"], t["steps_at_most"]) for name, t in found["train"].items()} == {
        "sft": (96, 6),
        "reward": (64, 4),
        "policy": (64, 4),
    }
    assert found["train"]["sft"]["memory_gib"] is not None
    assert [stage["to_do"] for stage in found["stages"]] == [True] * 10
    assert not Path("runs").exists()
    told = tiebreak.fine("run", recipe, "--dry-run").out
    assert "project: tiny\nseed: 1\n" in told
    assert "at most 6 steps on 96 rows" in told


def test_a_forecast_of_a_paid_judge_counts_calls_and_price(tiebreak: Shell) -> None:
    write("votes.jsonl", votes(40))
    judge = {"by": "pairwise", "endpoint": "http://127.0.0.1:9/v1", "model": "m", "price_in": 1.0, "price_out": 2.0}
    recipe = write("r.yaml", ANSWERS | {"judge": judge})
    judged = strict(tiebreak.fine("run", recipe, "--dry-run", "--json").out)["judge"]
    assert (judged["questions"], judged["calls"]) == (80, 160)
    assert judged["price_usd"] > 0
    assert "price unknown" in tiebreak.fine("run", recipe, "judge.price_in=null", "--dry-run").out


def test_a_forecast_agrees_with_what_is_done(tiebreak: Shell) -> None:
    write("votes.jsonl", votes(40))
    recipe = write("r.yaml", ANSWERS)
    foreseen = strict(tiebreak.fine("run", recipe, "--dry-run", "--json").out)
    done = strict(tiebreak.fine("run", recipe, "--json").out)["stages"]
    assert foreseen["judge"]["questions"] == done["judge"]["counts"]["judgments"]
    assert foreseen["rows"]["prompts"] == done["import"]["counts"]["prompts"]
    assert {f"prompts {n}": c for n, c in foreseen["rows"]["sets"].items() if n != "all"}.items() <= done["import"][
        "counts"
    ].items()
    again = strict(tiebreak.fine("run", recipe, "--dry-run", "--json").out)
    assert [stage["to_do"] for stage in again["stages"]] == [False] * 5


SLOW_RULE = """
import time, pathlib
def rule(prompt, text):
    pathlib.Path("asked").touch()
    time.sleep(0.05)
    return float(len(text))
"""


def test_ctrl_c_says_one_line_and_keeps_what_was_done() -> None:
    Path("mine.py").write_text(SLOW_RULE)
    write("votes.jsonl", votes(400))
    recipe = write("r.yaml", ANSWERS | {"judge": {"by": "rule", "rule": "mine:rule"}})
    process = start("run", recipe, "--json")
    while count("runs/votes", "judgments") < 420 and process.poll() is None:
        os.sched_yield()
    process.send_signal(signal.SIGINT)
    said = finish(process)
    assert said.code == 130
    assert said.out == ""
    assert said.last == "tiebreak: stopped; run the same command to go on from here."
    assert "Traceback" not in said.err
    assert 400 < count("runs/votes", "judgments") < 400 + 800


OWN = """
from tiebreak.records import Finding, Judgment, Prompt, Response
from tiebreak.data.table import pair_entry
from tiebreak.curate.table import Step

def rule(prompt, text):
    return float(text.count("number"))

class Judge:
    by, rubric, instant = "rule:mine", "r", True
    def __init__(self, winner): self.winner = winner
    async def ask(self, question):
        slots = tuple(slot.id for slot in question.slots)
        return Judgment(prompt_id=question.prompt.id, slots=slots, verdict="slot", winner=self.winner, by=self.by,
                        rubric=self.rubric, attempt=question.attempt)
    async def close(self): pass

def judge(winner=0):
    return Judge(winner)

def check(view, factor=2.0):
    return [Finding(check="mine", subject="all", sentence="It is so.", value=factor * len(view.ids))]

def keep(rows, *, share=0.5):
    kept = list(rows.rows)[: int(share * len(rows.rows))]
    return Step(kept, {"not mine": len(rows.rows) - len(kept)})

def read(path, rows=30):
    for n in range(rows):
        prompt = Prompt(text=f"question {n}")
        sides = [Response(prompt_id=prompt.id, text=f"{t} {n}") for t in ("a number", "nothing")]
        yield pair_entry(f"mine:{n}", prompt, *sides, by="human:me", fields={})
"""


def test_a_users_own_code_works_in_every_place(tiebreak: Shell, monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    Path("own_things.py").write_text(OWN)
    recipe = {
        "import": {"format": "own_things:read", "rows": 20},
        "judge": {"by": "own_things:judge", "winner": 1},
        "audit": {"checks": ["own_things:check"], "knobs": {"own_things:check": {"factor": 3}}},
        "curate": ["plurality", {"own_things:keep": {"share": 0.25}}],
    }
    for judge, pairs in ((recipe["judge"], 5), ({"by": "rule", "rule": "own_things:rule"}, 5)):
        said = finish(start("run", write("r.yaml", recipe | {"judge": judge}), "--json"))
        assert said.code == 0, said.err
        done = strict(said.out)["stages"]
        assert done["import"]["counts"]["rows"] == 20
        assert done["judge"]["counts"]["judgments"] == 40
        assert done["curate"]["counts"]["pairs"] == pairs
        assert done["curate"]["dropped"] == {"not mine": 15}
        assert read("runs/tiebreak/audit/findings.json")[0]["value"] == 120.0
    monkeypatch.syspath_prepend(here)
    wrong = tiebreak("run", write("r.yaml", recipe | {"judge": {"by": "own_things:judge", "wnner": 1}}))
    assert "has no knob 'wnner'; it has winner. Did you mean 'winner'?" in wrong.last


def test_an_edited_rule_is_asked_anew() -> None:
    Path("own_rule.py").write_text("def rule(prompt, text):\n    return float(len(text))\n")
    write("votes.jsonl", votes())
    recipe = write("r.yaml", ANSWERS | {"judge": {"by": "rule", "rule": "own_rule:rule"}})
    assert finish(start("run", recipe)).code == 0
    Path("own_rule.py").write_text("def rule(prompt, text):\n    return -float(len(text))\n")
    said = finish(start("run", recipe, "--json"))
    assert strict(said.out)["skipped"] == ["import"]


def test_the_verbs_compose_without_a_recipe(tiebreak: Shell) -> None:
    write("votes.jsonl", votes(60))
    tiebreak.fine("import", "path=votes.jsonl", "by=human:ann")
    tiebreak.fine("judge", "by=rule", "rule=longer", "sharpness=inf")
    assert "position bias" in tiebreak.fine("audit").out
    tiebreak.fine("curate", "curate=[soft_label, {drop: ties}]")
    exported = tiebreak.fine("export").out.strip().removeprefix("Written: ")
    assert len(Path(exported).read_text().splitlines()) > 0
    assert read("runs/tiebreak/recipe.json")["judge"]["sharpness"] == "inf"


def test_a_stale_result_is_told(tiebreak: Shell) -> None:
    write("votes.jsonl", votes(60))
    recipe = write("r.yaml", ANSWERS)
    tiebreak.fine("run", recipe)
    assert "other knobs" not in tiebreak.fine("judge", recipe, "rule=shorter").err
    said = tiebreak.fine("export", recipe, "judge.rule=shorter")
    assert said.last == (
        "tiebreak: curate was made with other knobs or inputs; `tiebreak run` redoes what has changed."
    )
    tiebreak.fine("run", recipe, "judge.rule=shorter")
    assert "other knobs" not in tiebreak.fine("export", "project=votes").err


def test_doctor_tells_what_is_missing(tiebreak: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    from tiebreak.run import doctor

    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    said = tiebreak.fine("doctor")
    assert "pip install 'tiebreak[train]'" in said.out
    assert {check["what"] for check in strict(tiebreak.fine("doctor", "--json").out)} >= {"Python", "disk", "[train]"}


def test_the_small_model_of_the_tests_is_as_small_as_it_says(tiebreak: Shell) -> None:
    recipe = write("r.yaml", tiny())
    found = strict(tiebreak.fine("run", recipe, "--dry-run", "--json").out)
    assert found["train"]["sft"]["memory_gib"] < 0.01
    assert MODEL["hidden_size"] == 32


def test_curate_steps_are_words_of_the_command_line(tiebreak: Shell) -> None:
    rows = [{"prompt": f"p{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(4)]
    Path("prefs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert tiebreak("import", "path=prefs.jsonl", "project=mine").code == 0
    said = tiebreak("curate", "soft_label", "drop=ties", "first=3", "project=mine", "--json")
    assert strict(said.out)["stages"]["curate"]["counts"]["pairs"] == 3


def test_a_project_that_is_not_there_is_named_with_the_nearest(tiebreak: Shell) -> None:
    Path("runs/mine").mkdir(parents=True)
    Path("runs/mine/recipe.json").write_text("{}")
    said = tiebreak("audit", "project=min")
    assert said.code != 0
    assert "There is no project runs/min" in said.err
    assert "Did you mean 'mine'?" in said.err
