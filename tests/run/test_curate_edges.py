"""What a user sees of `tiebreak curate`: mistakes at the door, counts that add up, and whose judgments are heard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.run.made import ANSWERS, Shell, read, strict, votes, write
from tiebreak.run.display import counted

STAGE = {"method": "dpo", "model": "m"}


def begun(tiebreak: Shell, **changes: Any) -> str:
    """A recipe of written answers that a rule judged, carried out as far as its curate section."""
    recipe = write("r.yaml", {name: one for name, one in (ANSWERS | changes).items() if one is not None})
    write("votes.jsonl", votes())
    for verb in ("import", "judge"):
        tiebreak.fine(verb, recipe)
    return recipe


def curated(tiebreak: Shell, *words: str) -> Any:
    """The manifest of the curate section."""
    return strict(tiebreak.fine("curate", *words, "--json").out)["stages"]["curate"]


NO_STEPS = "has no steps; write a list such as [soft_label, drop: ties]. It begins with soft_label, plurality"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], f"curate {NO_STEPS}"),
        (["curate={}"], f"curate {NO_STEPS}"),
        (["curate=[]"], f"curate {NO_STEPS}"),
        (["curate={a: [soft_label], b: []}"], f"curate.b {NO_STEPS}"),
        (["curate=soft_label"], "curate is 'soft_label'; expected a list of steps, such as [soft_label]."),
        (["soft_label", "confident=x"], "confident has p = 'x'; expected a number from 0.5 to 1."),
        (["soft_label", "drop=tie"], "expected ties, conflicts or same_text. Did you mean 'ties'?"),
        (["drop=ties"], "'drop' has no pairs yet; begin with soft_label, plurality or score_pairs."),
        (
            ["soft_labl"],
            "There is no recipe soft_labl; pass the path of a YAML file. Did you mean the curate step 'sof",
        ),
        (["soft_label", "curate.x=1"], None),
    ],
)
def test_a_mistake_is_told_before_what_is_there_is_touched(words: list[str], said: str | None, tiebreak: Shell) -> None:
    write("votes.jsonl", votes())
    tiebreak.fine("import", "path=votes.jsonl", "project=mine")
    if words:
        tiebreak.fine("curate", "soft_label", "project=mine")
    home = Path("runs/mine/curate")
    before = {path.name: path.read_bytes() for path in home.glob("*")}
    wrong = tiebreak("curate", *words, "project=mine")
    assert wrong.code == 1
    assert "Traceback" not in wrong.err
    if said is not None:
        assert said in wrong.last
        assert {path.name: path.read_bytes() for path in home.glob("*")} == before


def test_two_steps_of_one_name_and_several_lists_are_counted_apart_and_summed(tiebreak: Shell) -> None:
    recipe = begun(tiebreak, export=None)
    spoilt: list[Any] = ["soft_label", {"drop": "ties"}, {"plant_flips": 0.5}]
    once = curated(tiebreak, recipe, f"curate={json.dumps(spoilt)}")["counts"]
    pairs = once["pairs"]
    assert once["sides exchanged by plant_flips"] == round(pairs / 2)
    twice = curated(tiebreak, recipe, f"curate={json.dumps([*spoilt, {'plant_flips': 1.0}])}")["counts"]
    assert twice["sides exchanged by plant_flips"] == round(pairs / 2) + pairs
    lists = json.dumps({"a": spoilt, "b": [*spoilt, "unpair"]})
    made = tiebreak.fine("curate", recipe, f"curate={lists}")
    half = round(pairs / 2)
    assert f"{pairs} pairs in a" in made.last
    assert f"{2 * pairs} answers in b" in made.last
    assert f"{half} sides exchanged by plant_flips in a, " in made.last
    funnel = read("runs/votes/curate/funnel.json")
    assert [row["changed"] for row in funnel if row["step"] == "b: plant_flips"] == [{"sides exchanged": half}]


def test_one_thing_is_counted_in_the_singular() -> None:
    counts = {
        "pairs": 1,
        "steps": 1,
        "rows": 2,
        "a: ties kept": 1,
        "pass": 1,
        "sides exchanged by flip": 1,
        "loss": 0.5,
    }
    assert counted({"counts": counts, "dropped": {"ties": 1}}) == (
        "1 pair, 1 step, 2 rows, 1 tie kept in a, 1 pass, 1 side exchanged by flip, loss 0.5, dropped 1 (ties)"
    )


def test_labels_of_people_are_mended_by_models_in_one_recipe(tiebreak: Shell) -> None:
    """Who is named is heard, wherever it spoke: the import's people, the judge, and the jurors of a panel."""
    jury = [{"by": "rule", "rule": "longer", "sharpness": 1}, {"by": "rule", "rule": "shorter", "sharpness": 1}]
    steps: list[Any] = [{"soft_label": {"by": "human:*"}}, {"strength": {"of": "logit", "by": "rule:*", "least": 2}}]
    recipe = begun(tiebreak, judge={"by": "panel", "jurors": jury}, curate=steps)
    made = curated(tiebreak, recipe)
    rows = [json.loads(line) for line in Path("runs/votes/curate/pairs.jsonl").read_text().splitlines()]
    assert len(rows) == made["counts"]["pairs"] > 30
    assert {(row["p"], row["n"]) for row in rows} == {(1.0, 1)}
    assert all(abs(row["margin"]) < 1e-9 < row["spread"] for row in rows), "one juror takes what the other leaves"
    own = curated(tiebreak, recipe, "curate=[soft_label]")
    assert own["counts"]["judgments"] == made["counts"]["judgments"] == 2 * len(votes())


def test_a_step_without_by_hears_whom_the_run_is_about(tiebreak: Shell) -> None:
    recipe = begun(tiebreak)
    by_rule = curated(tiebreak, recipe, "curate=[soft_label]")
    funnel = read("runs/votes/curate/funnel.json")
    assert funnel[0]["rows_in"] == funnel[0]["rows_out"] == by_rule["counts"]["pairs"]
    people = curated(tiebreak, recipe, "curate=[{soft_label: {by: 'human:*'}}]")
    funnel = read("runs/votes/curate/funnel.json")
    assert funnel[0]["rows_in"] == funnel[0]["rows_out"] + sum(funnel[0]["dropped"].values())
    assert people["counts"]["pairs"] == len(votes())
    wrong = tiebreak("curate", recipe, "curate=[{soft_label: {by: 'humans:*'}}]")
    assert "no judgment is by 'humans:*'" in wrong.last
