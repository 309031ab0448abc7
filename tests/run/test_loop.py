"""The quickstart, shrunken: from posts to a win rate, with every claim of the run checked against its records."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from tests.run.made import MODEL, read
from tiebreak.data.world import quality
from tiebreak.judge.rule import RULES
from tiebreak.recipe import load_recipe
from tiebreak.records import Judgment, Pair, from_dict
from tiebreak.run import run
from tiebreak.run.run import Ran
from tiebreak.store import Ledger

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "quickstart.yaml"
SMALLER = [
    "import.n=400",
    "import.held_out=60",
    f"train.sft.model={json.dumps(MODEL)}",
    "train.sft.vocabulary=400",
    "train.sft.epochs=2",
    "train.reward.epochs=1",
    "train.policy.steps=3",
    "train.policy.rollout.max_new_tokens=16",
    "sample.max_new_tokens=16",
    "judge.attempts=2",
]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("loop")
    return run(load_recipe(RECIPE, [*SMALLER, f"project={folder}/quick"]))


@pytest.fixture(scope="module")
def ledger(ran: Ran) -> Ledger:
    return Ledger(ran.folder / "ledger.db", create=False)


@pytest.fixture(scope="module")
def pairs(ran: Ran) -> list[Pair]:
    lines = (ran.folder / "curate/pairs.jsonl").read_text().splitlines()
    return [from_dict(Pair, json.loads(line)) for line in lines]


def manifest(ran: Ran, stage: str) -> dict[str, Any]:
    return dict(ran.manifests[stage])


def members(ran: Ran, ledger: Ledger, stage: str, kind: str) -> list[str]:
    return ledger.get_set(f"{ran.manifests[stage]['key']}/{kind}")


def test_every_section_of_the_quickstart_is_carried_out(ran: Ran) -> None:
    recipe = load_recipe(RECIPE)
    sections = {name.partition(".")[0] for name in ran.manifests}
    assert sections == {"import", "sample", "judge", "audit", "curate", "train", "evaluate", "report"}
    assert {name for name in ran.manifests if name.startswith("train.")} == {f"train.{name}" for name in recipe.train}
    assert Path(manifest(ran, "report")["outputs"]["path"]).is_file()


def test_the_planted_slot_bias_lies_within_its_interval(ran: Ran) -> None:
    bias = ran.summary["position_bias"]
    assert bias["n"] >= 300
    assert bias["low"] < bias["planted"] < bias["high"]
    assert bias["planted"] == 0.2


def test_every_funnel_adds_up(ran: Ran, pairs: list[Pair]) -> None:
    imported, judged, curated = (manifest(ran, stage) for stage in ("import", "judge", "curate"))
    assert imported["counts"]["rows"] == imported["counts"]["prompts"] + sum(imported["dropped"].values()) == 460
    assert imported["counts"]["prompts train"] + imported["counts"]["prompts test"] == imported["counts"]["prompts"]
    counts = judged["counts"]
    assert manifest(ran, "sample")["counts"]["responses"] == 2 * manifest(ran, "sample")["counts"]["prompts"] == 800
    assert counts["judgments"] == 4 * (counts["pairs"] - sum(judged["dropped"].values()))
    assert counts["asked"] + counts["known"] == counts["judgments"] == curated["counts"]["judgments"]
    funnel = read(ran.folder / "curate/funnel.json")
    for line in funnel:
        assert line["rows_in"] == line["rows_out"] + sum(line["dropped"].values())
    assert all(before["rows_out"] == after["rows_in"] for before, after in itertools.pairwise(funnel))
    assert funnel[-1]["rows_out"] == len(pairs) == curated["counts"]["pairs"]
    reward, policy = manifest(ran, "train.reward"), manifest(ran, "train.policy")
    assert reward["counts"]["rows"] + reward["counts"]["held out"] + sum(reward["dropped"].values()) == len(pairs)
    assert policy["counts"]["prompts"] + policy["counts"]["held out"] == imported["counts"]["prompts train"]


def test_every_pair_rests_on_judgments_of_its_two_responses(ran: Ran, ledger: Ledger, pairs: list[Pair]) -> None:
    judged = set(members(ran, ledger, "judge", "judgments"))
    assert pairs
    for pair in pairs:
        found = ledger.judgments(list(pair.judgment_ids))
        assert {j.id for j in found} <= judged
        assert pair.n == len(found) == 4
        for judgment in found:
            assert set(judgment.slots) == {pair.chosen_id, pair.rejected_id}
            assert judgment.prompt_id == pair.prompt_id
        assert {r.prompt_id for r in ledger.responses([pair.chosen_id, pair.rejected_id])} == {pair.prompt_id}


def test_both_orders_are_used_and_joined_by_id_not_by_row(ledger: Ledger, pairs: list[Pair]) -> None:
    """Seed defects A4 and A17: p is the mean over both orders, whatever order the rows come in."""
    for pair in pairs:
        found = ledger.judgments(list(pair.judgment_ids))
        assert {j.slots for j in found} == {(pair.chosen_id, pair.rejected_id), (pair.rejected_id, pair.chosen_id)}
        said = [p for j in found if (p := j.p_better(pair.chosen_id)) is not None]
        assert pair.p == pytest.approx(sum(said) / len(said))


def test_soft_labels_reach_the_reward_model(ran: Ran, pairs: list[Pair]) -> None:
    """Seed defect A2: a soft label that training ignores would give the loss of hard labels."""
    assert any(0.5 < pair.p < 1 for pair in pairs)
    assert read(ran.folder / "train/reward/manifest.json")["knobs"]["method"] == "bradley_terry"
    first = json.loads((ran.folder / "train/reward/metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] > 0


def test_every_manifest_names_inputs_that_exist(ran: Ran) -> None:
    keys = {name: row["key"] for name, row in ran.manifests.items()}
    for name, row in ran.manifests.items():
        assert row["inputs"] == {need: keys[need] for need in row["inputs"]}, name
        assert (name == "import") == (row["inputs"] == {}), name
        assert row["versions"]["tiebreak"]
        assert read(ran.folder.joinpath(*name.split("."), "manifest.json")) == row


def test_each_stage_finds_what_the_one_before_has_written(ran: Ran) -> None:
    """Seed defect A20: every path that a manifest names is there, without a hand in between."""
    for row in ran.manifests.values():
        for what in ("model", "path", "results"):
            if what in row["outputs"]:
                assert Path(row["outputs"][what]).exists()
    assert manifest(ran, "evaluate")["inputs"].keys() >= {"train.policy", "train.sft", "train.reward", "curate"}


def test_no_training_sees_a_test_prompt_or_its_group(ran: Ran, ledger: Ledger, pairs: list[Pair]) -> None:
    """Seed defect A13."""
    tested = ledger.prompts(members(ran, ledger, "import", "prompts/test"))
    trained = ledger.prompts(members(ran, ledger, "import", "prompts/train"))
    assert len(tested) == 60
    assert {p.group for p in tested}.isdisjoint(p.group for p in trained)
    asked = {response.prompt_id for response in ledger.responses(members(ran, ledger, "sample", "responses"))}
    assert asked <= {p.id for p in trained}
    assert {pair.prompt_id for pair in pairs} <= asked
    held = {row["prompt_id"] for row in read(ran.folder / "train/reward/held_out.json")}
    assert held
    rows = len([pair for pair in pairs if pair.prompt_id not in held])
    assert manifest(ran, "train.reward")["counts"]["rows"] == rows


def test_no_checkpoint_is_chosen(ran: Ran) -> None:
    """Seed defect A13: the model that is measured is the last one, and no other is kept."""
    for name in ("sft", "reward", "policy"):
        folder = ran.folder / "train" / name
        assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == ["model"]
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert max(line["step"] for line in lines) == manifest(ran, f"train.{name}")["counts"]["steps"]


def test_every_win_rate_counts_all_prompts_and_tells_what_it_left_out(ran: Ran) -> None:
    """Seed defect A14: invalid verdicts are excluded and reported, never losses."""
    for row in read(ran.folder / "evaluate/results.json")["win_rates"]:
        assert row["wins"] + row["ties"] + row["losses"] + row["conflicts"] >= row["rate"]["n"]
        assert (row["invalid"], row["skipped"]) == (0, 0)
        assert row["prompts"] == 60
        assert row["rate"]["low"] <= row["rate"]["value"] <= row["rate"]["high"]


def test_the_true_win_rate_is_the_one_counted_by_hand(ran: Ran, ledger: Ledger) -> None:
    tested = {p.id: p for p in ledger.prompts(members(ran, ledger, "import", "prompts/test"))}
    row = next(r for r in read(ran.folder / "evaluate/results.json")["win_rates"] if r["against"] == "reference")
    answers = [r for r in ledger.responses() if r.prompt_id in tested and r.maker.startswith("policy@")]
    assert len(answers) == 60
    gaps = [quality(tested[r.prompt_id], r.text) - 4.0 for r in answers]
    assert row["true"]["value"] == pytest.approx(sum(0.5 if gap == 0 else float(gap > 0) for gap in gaps) / 60)
    assert row["true_quality"]["reference"] == 4.0
    assert RULES["world"].load() is quality


def evaluated(tmp_path: Path, texts: dict[str, tuple[str, str]]) -> tuple[list[Judgment], Any]:
    """Judge answers as the evaluate section does."""
    from tiebreak.evaluate.winrate import win_rate
    from tiebreak.recipe import build_recipe
    from tiebreak.records import Prompt, Response, quiet
    from tiebreak.run.evaluation import _judged
    from tiebreak.run.job import Job

    recipe = build_recipe({"judge": {"by": "rule", "rule": "longer", "sharpness": "inf"}}, where="")
    assert recipe.judge is not None
    with Ledger(tmp_path / "l.db") as ledger:
        job = Job("evaluate", "k", recipe, ledger, tmp_path, {}, quiet)
        rows = []
        for name, (ours, theirs) in texts.items():
            prompt = Prompt(text=name)
            a, b = (Response(prompt_id=prompt.id, text=t, maker=m) for t, m in ((ours, "a"), (theirs, "b")))
            ledger.add_prompts([prompt])
            ledger.add_responses([a, b])
            rows.append((prompt, a, b))
        judgments, _ = _judged(job, recipe.judge, rows)
    side = {a.id: "a" for _, a, _ in rows} | {b.id: "b" for _, _, b in rows}
    return judgments, win_rate(judgments, side, of="a", against="b", lengths=dict.fromkeys(side, 1))


def test_identical_answers_are_ties(tmp_path: Path) -> None:
    judgments, rate = evaluated(tmp_path, {"p": ("same", " same "), "q": ("longer one", "short")})
    assert [j.verdict for j in judgments if j.by == "rule:identical"] == ["tie", "tie"]
    assert (rate.prompts, rate.rate.value) == (2, 0.75)


def test_no_answer_loses_to_one(tmp_path: Path) -> None:
    judgments, rate = evaluated(tmp_path, {"p": ("", "words"), "q": ("words", "  "), "r": ("", " ")})
    assert {j.by for j in judgments} == {"rule:empty", "rule:identical"}
    assert (rate.prompts, rate.rate.value) == (3, 0.5)
    assert evaluated(tmp_path / "2", {"p": ("", "words")})[1].rate.value == 0.0
