"""Every shipped recipe is valid, can be forecast, and runs from end to end when its sizes are tiny."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from tiebreak.cli import app
from tiebreak.collect.queue import Said
from tiebreak.recipe import Recipe, load_recipe
from tiebreak.records import InputError
from tiebreak.run import plan, run
from tiebreak.run.cells import combinations_of
from tiebreak.run.collecting import collection
from tiebreak.run.run import open_ledger
from tiebreak.run.study import forecast, study

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
MAPPINGS = sorted((ROOT / "recipes" / "mappings").glob("*.yaml"))

TINY = (
    "hidden_size=32",
    "intermediate_size=64",
    "num_hidden_layers=1",
    "num_attention_heads=2",
    "num_key_value_heads=2",
)


def world(folder: Path) -> list[str]:
    return ["import.n=120", "import.held_out=24", "sample.limit=60"]


def votes(folder: Path) -> list[str]:
    """Four topics of three arguments; five workers vote on every pair."""
    arguments, cast = ["topic\targument_id\ttext"], ["topic\tpair_id\tworker\tvote"]
    for topic in range(4):
        for a in range(3):
            arguments.append(f"topic-{topic}\tt{topic}a{a}\tReason {a} on topic {topic}" + ", and why." * a)
        for a, b in ((0, 1), (1, 2), (0, 2)):
            cast += [f"topic-{topic}\tt{topic}a{a}_t{topic}a{b}\tw{w}\t{'a1' if w == 0 else 'a2'}" for w in range(5)]
    (folder / "arguments.tsv").write_text("\n".join(arguments) + "\n")
    (folder / "crowd_votes.tsv").write_text("\n".join(cast) + "\n")
    mapping = ROOT / "recipes" / "mappings" / "ukpconvarg1.yaml"
    return [f"import.path={folder / 'crowd_votes.tsv'}", f"import.mapping={mapping}"]


def posts(folder: Path) -> list[str]:
    """Forty posts with a reference summary, in the columns of the format judged_summaries."""
    rows = []
    for i in range(40):
        post = f"SUBREDDIT: r/advice\n\nTITLE: Neighbor {i}\n\nPOST: My neighbor plays tune {i} all night.\n\nTL;DR:"
        reference, ours = f" Neighbor plays tune {i} at night.", f" I hear tune {i}."
        rows.append({"post": post, "reference_summary": reference, "model_summary": ours})
    path = folder / "posts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [f"import.path={path}", "import.split.test=8"]


def labelled(folder: Path) -> list[str]:
    """Forty pairs, as the format preferences reads them."""
    rows = [
        {"prompt": f"Is sum {i} even?", "chosen": f" Yes, {2 * i} is even.", "rejected": f" I like {i}."}
        for i in range(40)
    ]
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [f"import.path={path}", "import.split.test=8"]


def few_posts(folder: Path) -> list[str]:
    return ["import.n=120", "import.held_out=24"]


def sums(folder: Path) -> list[str]:
    return ["import.n=80", "import.held_out=16"]


DATA: dict[str, Callable[[Path], list[str]]] = {
    "quickstart": world,
    "votes": votes,
    "tldr": posts,
    "pairs": labelled,
    "people": world,
    **dict.fromkeys(("rlhf", "rloo", "iterative_dpo", "raft"), world),
    "direct": few_posts,
    "arithmetic": sums,
    "study-objectives": world,
}
STUDIES = [recipe for recipe in RECIPES if "study" in yaml.safe_load(recipe.read_text())]


def tiny(recipe: Path, folder: Path) -> list[str]:
    """What makes a recipe small: little data, tiny models, one epoch."""
    settings = [f"project={folder / 'project'}", *DATA[recipe.stem](folder)]
    for name, stage in yaml.safe_load(recipe.read_text())["train"].items():
        settings += [f"train.{name}.epochs=1", f"train.{name}.batch=8"]
        if "steps" in stage:
            settings.append(f"train.{name}.steps=2")
        if "rounds" in stage:
            settings += [f"train.{name}.rounds=2", f"train.{name}.limit=16"]
        if isinstance(stage["model"], dict):
            settings += [f"train.{name}.model.{size}" for size in TINY] + [f"train.{name}.vocabulary=400"]
    return settings


def answer_all(recipe: Recipe) -> None:
    """Let somebody prefer the longer answer of every comparison."""
    with open_ledger(recipe) as ledger, collection(recipe, ledger) as found:
        while (shown := found.queue.next("human:ann")) is not None:
            longer = int(len(shown.slots[1].text) > len(shown.slots[0].text))
            found.queue.answer("human:ann", shown, Said("slot", longer))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_is_valid_and_has_an_order(recipe: Path) -> None:
    stages = [stage.name for stage in plan(load_recipe(recipe))]
    assert stages[0] == "import"
    assert stages[-1] == "report"


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_can_be_forecast(recipe: Path, tmp_path: Path) -> None:
    settings = [f"project={tmp_path / 'project'}", *DATA[recipe.stem](tmp_path)]
    for options in ([], ["--json"]):
        done = CliRunner().invoke(app, ["run", str(recipe), *settings, "--dry-run", *options])
        assert done.exit_code == 0, done.output
        assert all(f"train.{name}" in done.stdout for name in load_recipe(recipe).train)
    assert not (tmp_path / "project").exists()


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_runs_when_it_is_tiny(recipe: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    small = load_recipe(recipe, tiny(recipe, tmp_path))
    if small.collect:
        with pytest.raises(InputError, match="collect waits for people"):
            run(small)
        answer_all(small)
    done = run(small)
    assert (done.folder / "report.html").stat().st_size > 1_000
    if "reward" in load_recipe(recipe).train:
        assert done.summary["reward_accuracy_held_out"]["n"] > 0
    again = run(load_recipe(recipe, tiny(recipe, tmp_path)))
    assert set(again.skipped) == set(done.manifests)


@pytest.mark.parametrize("recipe", STUDIES, ids=lambda path: path.stem)
def test_every_cell_of_a_shipped_study_is_valid_and_learns_from_the_same_start(recipe: Path) -> None:
    read = load_recipe(recipe)
    assert read.study is not None
    made = forecast(read)["stages"]
    assert made["train.sft"] == made["sample"] == len(read.study.seeds)
    assert made["train.policy"] == made["evaluate"] == len(read.study.seeds) * len(combinations_of(read.study))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", STUDIES, ids=lambda path: path.stem)
def test_every_cell_of_a_shipped_study_runs_when_it_is_tiny(recipe: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    small = load_recipe(recipe, [*tiny(recipe, tmp_path), "study.seeds=[0]", "evaluate.win_rate.limit=8"])
    done = study(small)
    assert done.table["failed"] == 0, [row["failed"] for row in done.table["rows"] if row["failed"]]
    assert done.table["prompts"] == 8
    assert study(small)[2:] == (0, done.carried_out)


@pytest.mark.parametrize("mapping", MAPPINGS, ids=lambda path: path.stem)
def test_a_shipped_mapping_says_what_it_must(mapping: Path) -> None:
    read = yaml.safe_load(mapping.read_text())
    assert {"source", "licence", "order", "prompt", "responses", "votes"} <= set(read)
