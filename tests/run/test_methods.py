"""Every method that learns from rows trains from a recipe, on the rows its curate steps make."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.run.made import MODEL, Shell, tiny, write
from tiebreak.recipe import Stage
from tiebreak.records import Prompt, Response
from tiebreak.run.aim import aim_of
from tiebreak.run.learning import unbounded
from tiebreak.train.objectives.by_feature import ROWS as ON_FEATURES
from tiebreak.train.objectives.by_head import OF_FORMS
from tiebreak.train.objectives.presets import HEADS, OBJECTIVES
from tiebreak.train.objectives.switches import kind_of, needs_of

OWN_STEPS = '''
from dataclasses import replace

from tiebreak.curate.table import Step, pairs_of
from tiebreak.data.drafts import explaining
from tiebreak.records import Graded, Response


def rated(rows):
    """A row of each answer with two ratings, one of them missing where the answer is short."""
    made = []
    for pair in pairs_of(rows, "rated"):
        for answer in rows.texts.responses([pair.chosen_id, pair.rejected_id]):
            marks = {"length": float(len(answer.text) % 5), "vowels": None if len(answer.text) < 9 else 2.0}
            made.append(Graded(prompt_id=answer.prompt_id, response_ids=[answer.id], ratings=[marks]))
    return Step(made, {})


def explained(rows):
    """Pairs with a reason beside them."""
    kept, made = [], []
    for pair in pairs_of(rows, "explained"):
        (prompt,) = rows.texts.prompts([pair.prompt_id])
        chosen, rejected = rows.texts.responses([pair.chosen_id, pair.rejected_id])
        asked = explaining(prompt, chosen.text, rejected.text)
        why = Response(prompt_id=asked.id, text=" It is shorter.", maker="human:ann")
        made += [asked, why]
        kept.append(replace(pair, beside={"rationale": why.id}))
    return Step(kept, {}, made)


def drawn(rows):
    """Pairs with a further answer of the model beside them."""
    pairs = pairs_of(rows, "drawn")
    return Step([replace(pair, beside={"drawn": pair.chosen_id}) for pair in pairs], {})
'''
BEGIN: list[Any] = ["soft_label", {"drop": ["ties", "same_text"]}]
CURATE: dict[str, list[Any]] = {
    "pairs": BEGIN,
    "margin": [*BEGIN, {"strength": {"of": "logit"}}, {"margin": {"least": 1e-6}}],
    "grades": ["ranked_list"],
    "label": [*BEGIN, "unpair"],
    "ratings": [*BEGIN, "own_steps:rated"],
    "steps": [*BEGIN, "unpair", "process"],
    "rationale": [*BEGIN, "own_steps:explained"],
    "drawn": [*BEGIN, "own_steps:drawn"],
    "goals": ["score_pairs"],
    "band": [*BEGIN, {"strength": {"of": "logit"}}, {"curriculum": {"bands": 2, "within": "all"}}],
    "versus": [*BEGIN, "versus"],
    "drafts": [*BEGIN, "drafts"],
}
SPECIAL: dict[str, dict[str, Any]] = {
    "process_reward": {"curated": "steps"},
    "regression": {"curated": "ratings", "attribute_weights": {"length": 1.0, "vowels": -0.5}},
    "curry_dpo": {"curated": "band", "band": 1},
    "pairwise_preference": {"curated": "versus"},
    "gap": {"curated": "drafts"},
    "sft": {"rows": "chosen"},
}
MADE = ("margin", "grades", "ratings", "label", "rationale", "drawn")
EVERY = [row for row in (*OBJECTIVES, *HEADS) if row not in ON_FEATURES and row.name != "sft"]
APART = ("feature_network", "pal_a", "pal_b", "contrastive_reward", "gated_reward")
QUICK: dict[str, Any] = {"window": 192, "batch": 16, "learning_rate": 1e-4, "epochs": 1, "limit": 32}


def stage(row: Any) -> dict[str, Any]:
    """Return the stage that trains with a row, on the rows that it needs."""
    needs = needs_of({name: value for name, value in row.knobs.items() if name not in OF_FORMS})
    named = next(
        (name for name in MADE if name in needs), "grades" if kind_of(row.knobs["link"]) == "list" else "pairs"
    )
    return {"method": row.name, "model": "sft", "curated": named, **QUICK, **SPECIAL.get(row.name, {})}


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a project whose rows are made."""
    folder = tmp_path_factory.mktemp("methods")
    (folder / "own_steps.py").write_text(OWN_STEPS)
    return folder


def test_every_method_trains_from_a_recipe(started: Path, tiebreak: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(started)
    monkeypatch.syspath_prepend(str(started))
    sft = {"method": "sft", "rows": "responses", "model": MODEL, "vocabulary": 400, **QUICK}
    curate = {name: steps for name, steps in CURATE.items() if name != "goals"}
    stages = {row.name: stage(row) for row in EVERY}
    recipe = tiny(threads=1, curate=curate, train={"sft": sft, **stages}, evaluate=None, audit=None, export=None)
    tiebreak.fine("run", write("every.yaml", recipe))
    for row in EVERY:
        home = started / "runs/tiny/train" / row.name
        lines = [json.loads(line) for line in (home / "metrics.jsonl").read_text().splitlines()]
        assert lines, row.name
        assert all(math.isfinite(line["loss"]) for line in lines if "loss" in line), row.name
        card = (home / "model/README.md").read_text()
        assert row.name in card
        assert row.paper in card
        form = home / "model/head.json"
        assert form.is_file() == (row.name in ("gpm", "regression", "process_reward", "pairwise_preference", "gap"))


def test_every_head_trains_on_a_frozen_backbone(
    started: Path, tiebreak: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(started)
    monkeypatch.syspath_prepend(str(started))
    frozen = {**QUICK, "epochs": 2, "learning_rate": 1e-2}
    sft = {"method": "sft", "rows": "responses", "model": MODEL, "vocabulary": 400, **QUICK}
    rated = {"method": "regression", "model": "sft", "backbone": "frozen", **frozen, **SPECIAL["regression"]}
    stages = {row.name: {"method": row.name, "model": "sft", **frozen} for row in ON_FEATURES}
    stages |= {name: {**stages[name], "curated": "users"} for name in ("pal_a", "pal_b")}
    stages["gated_reward"] |= {"model": "marks"}
    linear = {
        name: {"method": name, "model": "sft", "backbone": "frozen", **frozen} for name in ("bradley_terry", "gpm")
    }
    curate = {"pairs": BEGIN, "ratings": CURATE["ratings"], "users": ["by_user", {"drop": "ties"}]}
    train = {"sft": sft, "marks": rated, **stages, **linear}
    evaluate = {"truth": "world", "reward": "bradley_terry"}
    recipe = tiny(project="frozen", threads=1, curate=curate, train=train, evaluate=evaluate, audit=None, export=None)
    tiebreak.fine("run", write("frozen.yaml", recipe))
    for name in train:
        home = started / "runs/frozen/train" / name
        assert (home / "head/feature_head.json").is_file() == (name in APART), name
        assert (home / "model/config.json").is_file() == (name not in APART), name
        card = home / ("head" if name in APART else "model") / "README.md"
        assert stages.get(name, {"method": ""})["method"] in card.read_text()
    from tiebreak.models.ideal import load_ideal

    reader = load_ideal(started / "runs/frozen/train/feature_network/head")
    asked = Prompt(text="Is rain wet?")
    found = reader.scores([(asked, [Response(prompt_id=asked.id, text=text) for text in (" Yes.", " No.")])])
    assert len(found[0] or ()) == 2
    assert json.loads((started / "runs/frozen/evaluate/results.json").read_text())["reward"]["held_out"]["n"] > 0


def test_a_policy_learns_from_a_head_that_only_compares(tiebreak: Shell) -> None:
    """The value net then starts from the policy: an embedding of two answers' contest is no start for a value."""
    sft = {"method": "sft", "rows": "responses", "model": MODEL, "vocabulary": 400, **QUICK}
    reward = {"method": "gpm", "model": "sft", **QUICK}
    policy = {"method": "ppo", "model": "sft", "reward": "reward", "steps": 1, "window": 192, "batch": 8}
    policy["rollout"] = {"n": 2, "max_new_tokens": 8}
    train = {"sft": sft, "reward": reward, "policy": policy}
    tiebreak.fine("run", write("ppo.yaml", tiny(threads=1, train=train, evaluate=None, audit=None, export=None)))
    assert json.loads(Path("runs/tiny/train/reward/model/head.json").read_text())["kind"] == "skew"
    assert Path("runs/tiny/train/policy/model/config.json").is_file()


def test_a_loss_without_a_bound_is_warned_of_once_it_is_below_0() -> None:
    """Rows that can be told apart pull the margins of robust DPO ever wider; the others' losses stop at 0."""
    robust, plain = (aim_of(Stage(method=name, model="sft"), "here") for name in ("robust_dpo", "dpo"))
    assert unbounded(robust, {"loss": 0.3, "eval/loss": -0.2}) != []
    assert unbounded(robust, {"loss": 0.3, "eval/loss": 0.2}) == []
    assert unbounded(plain, {"loss": -0.1}) == []


def unless(stage: str) -> Any:
    """Loading as it is, but for ``stage``, whose rows have to be refused before."""
    from tiebreak.run import learning

    load = learning._start

    def start(job: Any, *given: Any, **named: Any) -> Any:
        assert job.name != f"train.{stage}", "a model was loaded before the rows were looked at"
        return load(job, *given, **named)

    return start


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("margin_dpo", "no margin.*curate step score_pairs or strength"),
        ("plackett_luce", "0 grades; the curate step ranked_list"),
        ("kto", "2 completions and should stand alone; the curate step unpair"),
        ("regression", "should stand alone"),
        ("rationale_dpo", "no rationale.*curate step rationale"),
        ("process_reward", "should stand alone"),
        ("curry_dpo", "no band; the curate step curriculum or bands"),
    ],
)
def test_rows_that_lack_something_are_refused_with_the_step_that_makes_it(
    method: str, said: str, tiebreak: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sft = {"method": "sft", "rows": "responses", "model": MODEL, "vocabulary": 400, **QUICK}
    more = {"band": 0} if method == "curry_dpo" else {}
    stages = {"sft": sft, "other": {"method": method, "model": "sft", **QUICK, **more}}
    monkeypatch.setattr("tiebreak.run.learning._start", unless("other"))
    recipe = tiny(threads=1, curate=BEGIN, train=stages, evaluate=None, audit=None, export=None)
    told = tiebreak("run", write("lacks.yaml", recipe))
    assert told.code == 1
    import re

    assert re.search(said, told.last), told.last
