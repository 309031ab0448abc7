"""A study: every cell once, what they share once, the rest told in one table."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from tests.run.made import Shell, read, start, strict, write
from tests.run.studied import CELLS, HARD, VARY, lines, made, small
from tiebreak.recipe import build_recipe
from tiebreak.records import InputError
from tiebreak.run.cells import cells_of
from tiebreak.run.study import Studied, study
from tiebreak.stats.intervals import clustered_mean

MEASURES = ("win", "by_seed", "kl", "words")
TABLES = ("table.md", "table.json", "figure.svg")
ONCE = {"import": 2, "train.sft": 2, "sample": 2, "judge": 2, "curate": 4, "train.policy": 12, "evaluate": 12}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project folder of a finished study."""
    pytest.importorskip("torch")
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("studies") / "whole"
    done = study(build_recipe(small() | {"project": str(folder)}, where=""))
    assert (done.carried_out, done.known) == (CELLS, 0)
    return folder


@pytest.fixture
def project(finished: Path, here: Path) -> Path:
    """A copy of the finished study where the recipe of :func:`small` looks for it."""
    shutil.copytree(finished, here / "runs" / "tiny")
    return here / "runs" / "tiny"


def done(**changes: Any) -> Studied:
    return study(build_recipe(small(**changes), where=""))


def tables(home: Path) -> list[bytes]:
    return [(home / "study" / name).read_bytes() for name in TABLES]


def test_what_cells_share_is_made_once_and_a_cell_like_another_is_not_made_at_all(finished: Path) -> None:
    assert made(finished / "study") == ONCE
    same = [line for line in lines(finished / "study") if line["names"]["method"] == "same"]
    assert [line["made"] for line in same] == [{}] * 4


def test_the_table_has_a_row_for_each_combination_in_the_order_of_the_recipe(finished: Path) -> None:
    table = read(finished / "study" / "table.json")
    names = [(row["names"]["labels"], row["names"]["method"]) for row in table["rows"]]
    assert names == [(label, method) for label in ("soft", "hard") for method in VARY["method"]]
    assert (table["cells"], table["failed"], table["seeds"], table["prompts"]) == (CELLS, 0, [0, 1], 32)
    assert (table["of"], table["against"], table["measured_by"]) == ("policy", "sft", "the rule world")
    shown = (finished / "study" / "table.md").read_text()
    assert "16 cells, 2 seeds, 32 test prompts in all; measured by the rule world" in shown
    assert shown.count("\n| soft | ") == shown.count("\n| hard | ") == 4


def test_a_factor_without_effect_has_none_to_the_last_bit(finished: Path) -> None:
    rows = {tuple(row["names"].values()): row for row in read(finished / "study" / "table.json")["rows"]}
    for labels in ("soft", "hard"):
        assert rows["dpo", labels]["beside"] is None
        for name in ("again", "same"):
            found = rows[name, labels]
            assert found["beside"] == {"value": 0.0, "low": 0.0, "high": 0.0, "n": 32}
            assert [found[what] for what in MEASURES] == [rows["dpo", labels][what] for what in MEASURES]
    assert rows["sft", "hard"]["kl"] != rows["dpo", "hard"]["kl"]


def test_a_row_is_the_mean_of_what_the_cells_measured(finished: Path) -> None:
    cells = {(*line["names"].values(), line["seed"]): line for line in lines(finished / "study")}
    for row in read(finished / "study" / "table.json")["rows"]:
        mine = [cells[(*row["names"].values(), seed)] for seed in (0, 1)]
        assert row["by_seed"] == pytest.approx([line["win"]["value"] for line in mine])
        for name, values in (
            ("win", [line["win"]["value"] for line in mine]),
            ("kl", [line["kl"]["value"] for line in mine]),
            ("words", [line["words"]["policy"] for line in mine]),
        ):
            assert row[name]["value"] == pytest.approx(sum(values) / 2, abs=1e-4)
            assert row[name]["n"] == 32
        assert row["over_seeds"]["value"] == pytest.approx(row["win"]["value"])


def test_the_last_cell_of_a_seed_is_an_ordinary_run_whose_numbers_can_be_made_again_by_prompt(finished: Path) -> None:
    for seed in (0, 1):
        home = finished / f"seed-{seed}" / "evaluate"
        row = read(home / "results.json")["win_rates"][0]
        each = [json.loads(text) for text in (home / "wins.jsonl").read_text().splitlines()]
        assert [line["against"] for line in each] == ["sft"] * 16
        for name, value in (("judged", row["rate"]), ("true", row["true"]), ("kl", row["kl"])):
            mean = clustered_mean([line[name] for line in each], [line["group"] for line in each])
            assert mean.value == pytest.approx(value["value"], abs=1e-4), name
        assert sum(line["words"][0] for line in each) / 16 == row["mean_length"]["policy"]
        assert row["log_ratio"]["n"] == 16
        assert not (finished / f"seed-{seed}" / "report.html").exists()


def test_a_finished_study_does_nothing_and_says_the_same(project: Path) -> None:
    before = tables(project)
    for name in TABLES:
        (project / "study" / name).unlink()
    assert done()[2:] == (0, CELLS)
    assert tables(project) == before


@pytest.mark.slow
def test_seeds_side_by_side_give_the_same_table(finished: Path) -> None:
    assert done(jobs=2)[2:] == (CELLS, 0)
    assert made("runs/tiny/study") == ONCE
    assert tables(Path("runs/tiny")) == tables(finished)


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_killed_after_the_first_cell_and_run_again(jobs: int, finished: Path, tiebreak: Shell) -> None:
    recipe = write("r.yaml", small(jobs=jobs))
    home = Path("runs/tiny/study")
    process = start("study", recipe)
    while not lines(home):
        assert process.poll() is None, "the study ended before it could be killed"
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -9
    process.communicate()
    known = lines(home)
    assert 0 < len(known) < CELLS
    assert not (home / "table.md").exists()
    said = tiebreak.fine("study", recipe)
    assert f"{CELLS} cells, {len(known)} of them known" in said.err
    assert lines(home)[: len(known)] == known
    assert tables(Path("runs/tiny")) == tables(finished)


def test_a_changed_knob_redoes_its_cells_alone(project: Path) -> None:
    vary = VARY | {"method": VARY["method"] | {"sft": VARY["method"]["sft"] | {"train.policy.epochs": 1}}}
    assert done(vary=vary)[2:] == (4, CELLS - 4)
    assert len(lines(project / "study")) == CELLS + 4  # what was measured stays for going back
    assert done()[2:] == (0, CELLS)


def test_a_cell_that_fails_is_told_and_the_others_go_on(here: Path, tiebreak: Shell) -> None:
    vary = {"labels": {"soft": {}, "none": {"curate": ["soft_label", {"confident": 1.0}]}}, "method": VARY["method"]}
    recipe = write("r.yaml", small(seeds=[1], vary=vary))
    said = tiebreak.fine("study", recipe)
    table = read("runs/tiny/study/table.json")
    assert (table["cells"], table["failed"]) == (8, 4)
    for row in table["rows"]:
        assert (row["win"] is None) == (row["names"]["labels"] == "none")
        assert bool(row["failed"]) == (row["names"]["labels"] == "none")
    assert said.out.count("| failed |") == 4
    assert "none, dpo, seed 1: failed: " in said.err
    assert "- failed: none, dpo (1 seed); none, again (1 seed); none, same (1 seed); none, sft (1 seed): " in said.out
    assert "failed</text>" in Path("runs/tiny/study/figure.svg").read_text()
    assert done(seeds=[1], vary=vary)[2:] == (4, 4)  # what failed is tried again


def test_a_shared_stage_that_fails_is_tried_once(here: Path) -> None:
    vary = {"method": VARY["method"], "split": {"fine": {}, "wrong": {"import.split.test": "nowhere"}}}
    table = done(seeds=[1], vary=vary).table
    wrong = [line for line in lines("runs/tiny/study") if line["failed"]]
    assert len({line["failed"] for line in wrong}) == 1
    assert [line["at"] for line in wrong] == ["import", None, None, None]
    assert [row["win"] is None for row in table["rows"]] == [False] * 4 + [True] * 4


def test_without_a_truth_the_judge_of_the_win_rate_decides(here: Path) -> None:
    made = small(seeds=[1], vary={"method": {"dpo": {}}})
    del made["evaluate"]["truth"]
    made["evaluate"]["win_rate"] |= {"kl": False, "judge": {"by": "rule", "rule": "shorter"}}
    table = study(build_recipe(made, where="")).table
    row = read("runs/tiny/seed-1/evaluate/results.json")["win_rates"][0]
    assert table["measured_by"] == "rule:shorter"
    assert table["rows"][0]["win"]["value"] == pytest.approx(row["rate"]["value"])
    assert table["rows"][0]["kl"] is None
    assert "KL" not in Path("runs/tiny/study/table.md").read_text()


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": (
        {"vary": {"m": {"a": {"train.policy.betta": 1}}}},
        r"study.vary, the cell of m.a: .*'betta'.*'beta'",
    ),
    "unknown section": ({"vary": {"m": {"a": {"trian.policy.beta": 1}}}}, r"m.a: there is no key 'trian'.*'train'"),
    "unknown method": ({"vary": {"m": {"a": {"train.policy.method": "dppo"}}}}, r"m.a: .*no method called 'dppo'"),
    "wrong value": ({"vary": {"m": {"a": {"train.policy.epochs": "many"}}}}, r"m.a: train.policy.epochs is 'many'"),
    "a seed": ({"vary": {"m": {"a": {"seed": 1}}}}, r"study.vary.m.a sets seed.*give study.seeds"),
    "a project": ({"vary": {"m": {"a": {"project": "x"}}}}, r"study.vary.m.a sets project"),
    "two axes": (
        {"vary": {"m": {"a": {"train.policy.beta": 1}}, "n": {"b": {}, "c": {"train.policy": {}}}}},
        r"study.vary.m.a and study.vary.n.c both set train.policy.beta and train.policy; let one axis set it",
    ),
    "no cells": ({"vary": {"m": {}}}, r"study.vary.m has no cells"),
    "no axes": ({"vary": {}}, r"study.vary is"),
    "a seed twice": ({"seeds": [1, 1]}, r"each seed once"),
    "an unknown key of study": ({"sseeds": [1]}, r"there is no key 'study.sseeds'. Did you mean 'seeds'"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_study_is_one_sentence_before_anything_is_made(what: str, tiebreak: Shell) -> None:
    changes, sentence = WRONG[what]
    said = tiebreak("study", write("r.yaml", small(**changes)))
    assert said.code == 1
    assert len(said.err.strip().splitlines()) == 1
    with pytest.raises(InputError, match=sentence):
        raise InputError(said.last)
    assert not Path("runs").exists()


def test_a_recipe_that_is_no_study_is_told_what_it_lacks(tiebreak: Shell) -> None:
    without = {name: part for name, part in small().items() if name != "evaluate"}
    said = tiebreak("study", write("a.yaml", without))
    assert "a study compares win rates; add evaluate.win_rate" in said.last
    said = tiebreak("study", write("b.yaml", small() | {"collect": {}}))
    assert "a study does not wait for people" in said.last
    plain = {name: part for name, part in small().items() if name != "study"}
    assert "'study.vary' is missing" in tiebreak("study", write("c.yaml", plain)).last
    with pytest.raises(InputError, match="no study section"):
        cells_of(build_recipe(plain, where=""))


def test_a_distance_needs_sampled_answers_of_a_model(tiebreak: Shell) -> None:
    recipe = write("r.yaml", small())
    assert "kl is measured on sampled answers" in tiebreak("run", recipe, "evaluate.win_rate.temperature=0").last
    assert "kl is a model's" in tiebreak("run", recipe, "evaluate.win_rate.of=reference").last


def test_the_command_line_forecasts_and_takes_settings(project: Path, tiebreak: Shell) -> None:
    recipe = write("r.yaml", small())
    before = (project / "study" / "cells.jsonl").read_bytes()
    found = strict(tiebreak.fine("study", recipe, "seeds=[0, 1, 2]", "--dry-run", "--json").out)
    assert (found["cells"], found["known"]) == (24, CELLS)
    assert found["stages"] == {stage: count * 3 // 2 for stage, count in ONCE.items()}
    assert "16 cells, 16 known. Made: import 2, train.sft 2" in tiebreak.fine("study", recipe, "--dry-run").out
    assert (project / "study" / "cells.jsonl").read_bytes() == before
    said = tiebreak.fine("study", "project=tiny", "seeds=[1]", "jobs=2", "--json")
    assert strict(said.out)["cells"] == CELLS // 2
    assert read(project / "study" / "table.json") == strict(said.out)
    assert "axis -> cell" in tiebreak.fine("study", "--help").out


def test_a_broken_line_is_told_with_its_place(project: Path, tiebreak: Shell) -> None:
    with (project / "study" / "cells.jsonl").open("a") as file:
        file.write('{"key": ')
    assert f"cells.jsonl:{CELLS + 1} is not a line of a study" in tiebreak("study", write("r.yaml", small())).last


def test_cells_that_share_most_stand_together_whatever_the_order_of_the_axes() -> None:
    for axes in (("method", "labels"), ("labels", "method")):
        cells = cells_of(build_recipe(small(vary={axis: VARY[axis] for axis in axes}), where=""))
        shown = [(cell.seed, cell.names["labels"]) for cell in cells]
        assert shown == [(seed, label) for seed in (0, 1) for label in ("soft", "hard") for _ in range(4)]
    assert cells[-1].recipe.curate == HARD
