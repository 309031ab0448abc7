"""Training in rounds on what the policy draws: what is learned, from what, and against what."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from tests.models.tiny import causal
from tests.run.made import tiny
from tests.train.made import weights
from tests.train.made_rounds import ASKED, DPO, LORA, LOW, PACE, RAFT, ROLLOUT, drawn, lines, low, rewards, rounds
from tiebreak.models.forest import Tree
from tiebreak.recipe import Recipe, build_recipe
from tiebreak.records import InputError
from tiebreak.rewards.table import Answered
from tiebreak.run import run
from tiebreak.sample.choose import best, pair
from tiebreak.train.learner import Learner
from tiebreak.train.methods import METHODS, ROUNDS, loop_of
from tiebreak.train.objectives.presets import OBJECTIVES
from tiebreak.train.offline import Example, Pace, Reference, Watch, fit
from tiebreak.train.reference import frozen_copy
from tiebreak.train.rollouts import Rollout
from tiebreak.train.rounds import settle
from tiebreak.train.track import read_track


@pytest.mark.parametrize("knobs", [{"select": "best_worst"}, RAFT | {"select": "local"}, RAFT | {"select": "top"}])
def test_the_mean_reward_rises_from_round_to_round(knobs: dict[str, Any], tmp_path: Path) -> None:
    rate = 2e-2 if "objective" in knobs else 1e-2
    pace, rollout = Pace(epochs=8.0, batch=24, learning_rate=rate), Rollout(n=8, max_new_tokens=6)
    done = rounds(tmp_path, knobs | {"rounds": 3}, pace=pace, rollout=rollout, held_out=ASKED[:4])
    found = lines(tmp_path)
    means = [line["objective/scores"] for line in found]
    assert means == sorted(means)
    assert means[-1] - means[0] > 0.1
    assert all(line["objective/scores_chosen"] > line["objective/scores"] for line in found)
    assert all(0 <= line["eval/objective/scores"] <= 1 for line in found)
    assert done.steps == found[-1]["steps"] == sum(_steps(tmp_path, number) for number in (1, 2, 3))
    assert done.last["eval/objective/scores"] == found[-1]["eval/objective/scores"]


def _steps(folder: Path, number: int) -> int:
    return int(read_track(folder / f"round-{number}" / "metrics.jsonl")[-1]["step"])


def test_a_round_is_the_offline_loop_on_the_pairs_that_the_rule_makes(tmp_path: Path) -> None:
    model, other = causal("llama").model, causal("llama").model
    rounds(tmp_path / "rounds", DPO | {"rounds": 1}, model)
    rows = []
    for one in drawn(tmp_path / "rounds", 1):
        asked = ASKED[one["rows"]]
        branches = tuple(map(tuple, one["branches"]))
        assert one["scores"] == [sum(t < LOW for t in ids) / len(ids) for ids in branches]
        found = pair("best_worst", one["scores"], branches, seed=3, name=f"{asked.prompt.id}/round 1")
        if not isinstance(found, str):
            rows.append(Example(Tree(asked.ids, tuple(branches[place] for place in found)), label="cats"))
    done = fit(other, rows, OBJECTIVES["dpo"].knobs or {}, PACE, seed=4, folder=tmp_path / "fit")
    assert torch.equal(weights(model), weights(other))
    (line,) = lines(tmp_path / "rounds")
    assert (line["rows"], line["steps"]) == (len(rows), done.steps)
    assert line["prompts/covered"] == len(rows) / len(ASKED)
    assert line["loss"] == done.last["loss"]


def test_raft_imitates_the_best_of_each_prompt(tmp_path: Path) -> None:
    model, other = causal("llama").model, causal("llama").model
    rounds(tmp_path / "rounds", RAFT | {"rounds": 1}, model)
    rows = []
    for one in drawn(tmp_path / "rounds", 1):
        asked = ASKED[one["rows"]]
        (place,) = best(one["scores"], seed=3, name=f"{asked.prompt.id}/round 1")
        rows.append(Example(Tree(asked.ids, (tuple(one["branches"][place]),)), label="cats"))
    fit(other, rows, OBJECTIVES["sft"].knobs or {}, PACE, seed=4, folder=tmp_path / "fit")
    assert torch.equal(weights(model), weights(other))
    assert lines(tmp_path / "rounds")[0]["prompts/covered"] == 1.0


def test_alpha_of_one_keeps_everything(tmp_path: Path) -> None:
    rounds(tmp_path, RAFT | {"rounds": 1, "select": "top", "alpha": 1.0})
    (line,) = lines(tmp_path)
    assert line["rows"] == len(ASKED) * ROLLOUT.n
    assert line["objective/scores_chosen"] == line["objective/scores"]
    assert line["prompts/covered"] == 1.0


def test_top_starves_prompts_and_says_so(tmp_path: Path) -> None:
    easy = {one.prompt.id for one in ASKED[:12]}

    def half(answered: Sequence[Answered]) -> list[list[float]]:
        return [[float(one.prompt.id in easy)] * len(one.texts) for one in answered]

    rounds(tmp_path, RAFT | {"rounds": 1, "select": "top", "alpha": 0.5}, rewards=rewards(half))
    assert lines(tmp_path)[0]["prompts/covered"] == 0.5


def losses(folder: Path) -> list[float]:
    """The first loss of each round."""
    return [read_track(home / "metrics.jsonl")[0]["loss"] for home in sorted(folder.glob("round-*"))]


def test_the_reference_is_the_start_of_the_round_or_of_all_rounds(tmp_path: Path) -> None:
    pace = Pace(epochs=2.0, batch=64, learning_rate=3e-3)
    for compared, named in (("previous", [1.0, 2.0]), ("start", [1.0, 1.0])):
        rounds(tmp_path / compared, DPO | {"compared_with": compared}, pace=pace)
        assert [line["reference/round"] for line in lines(tmp_path / compared)] == named
    first, second = losses(tmp_path / "previous")
    assert (first, second) == (pytest.approx(math.log(2), abs=1e-5), pytest.approx(math.log(2), abs=1e-5))
    fixed, moved = losses(tmp_path / "start")
    assert fixed == pytest.approx(math.log(2), abs=1e-5)
    assert abs(moved - math.log(2)) > 1e-3, "the policy has left the start behind"


def pairs() -> list[Example]:
    return [Example(Tree(one.ids, ((5 + i, 9, 0), (200, 7 + i, 8))), label="cats") for i, one in enumerate(ASKED[:8])]


def test_a_model_to_compare_against_stands_for_the_start(tmp_path: Path) -> None:
    knobs = OBJECTIVES["dpo"].knobs or {}
    model, other = causal("llama").model, causal("llama").model
    fit(model, pairs(), knobs, PACE, seed=1, folder=tmp_path / "a", reference=Reference(compute="step"))
    fit(other, pairs(), knobs, PACE, seed=1, folder=tmp_path / "b", against=frozen_copy(other, Reference()))
    assert torch.equal(weights(model), weights(other)), "against a copy of the start it is the same training"
    apart, policy = causal("llama", seed=1).model.eval(), causal("llama").model
    watch = Watch(log_every=1)
    fit(policy, pairs(), knobs, Pace(batch=8), seed=1, folder=tmp_path / "c", against=apart, watch=watch)
    gap = logps(causal("llama").model) - logps(causal("llama", seed=1).model)
    expected = torch.nn.functional.softplus(-0.1 * (gap[:, 0] - gap[:, 1])).mean()
    assert losses_of(tmp_path / "c")[0] == pytest.approx(float(expected), rel=1e-5)
    assert torch.equal(weights(apart), weights(causal("llama", seed=1).model)), "it stays as it is"
    again = partial(fit, causal("llama").model, pairs(), pace=PACE, seed=1, against=apart)
    with pytest.raises(InputError, match="sync_every"):
        again(knobs=knobs, folder=tmp_path / "d", reference=Reference(compute="step", sync_every=2))
    with pytest.raises(InputError, match="another start"):
        again(knobs=knobs, folder=tmp_path / "a")
    with pytest.raises(InputError, match="no reference"):
        again(knobs={"nll": 1.0}, folder=tmp_path / "d")


def losses_of(folder: Path) -> list[float]:
    return [row["loss"] for row in read_track(folder / "metrics.jsonl")]


def logps(model: PreTrainedModel) -> torch.Tensor:
    learner = Learner(model, OBJECTIVES["dpo"].knobs or {}, PACE)
    with learner.ready():
        return learner.values(pairs()).view(-1, 2)


def test_under_an_adapter_the_base_is_the_reference(tmp_path: Path) -> None:
    model = causal("llama").model
    base = weights(model)
    pace = Pace(epochs=2.0, batch=64, learning_rate=1e-2)
    done = rounds(tmp_path, DPO | {"compared_with": "start"}, model, adapter=LORA, pace=pace)
    first, second = losses(tmp_path)
    assert first == pytest.approx(math.log(2), abs=1e-5)
    assert abs(second - math.log(2)) > 1e-3
    assert done.last["reference/round"] == 1.0
    frozen = torch.cat([p.detach().flatten() for n, p in model.named_parameters() if "lora" not in n])
    assert torch.equal(frozen, base)
    with pytest.raises(InputError, match="compared_with: start"):
        rounds(tmp_path / "x", DPO, adapter=LORA)


def test_prompts_that_give_no_pair_are_counted(tmp_path: Path) -> None:
    def flat(answered: Sequence[Answered]) -> list[list[float | None]]:
        tied = {one.prompt.id for one in ASKED[:5]}
        unknown = ASKED[5].prompt.id
        values = low(answered)
        return [
            [None] * len(row) if one.prompt.id == unknown else [1.0] * len(row) if one.prompt.id in tied else row
            for one, row in zip(answered, values, strict=True)
        ]

    done = rounds(tmp_path, DPO, rewards=rewards(flat))
    first, second = lines(tmp_path)
    assert first["prompts/tied"] >= 5
    assert first["prompts/covered"] == first["rows"] / len(ASKED) <= 18 / 24
    assert done.faults["prompts without a pair: equal scores"] == first["prompts/tied"] + second["prompts/tied"]
    assert done.faults["reward low: it gave None"] == 2 * ROLLOUT.n


def test_a_reward_that_tells_nothing_apart_ends_the_first_round(tmp_path: Path) -> None:
    def same(answered: Sequence[Answered]) -> list[list[float | None]]:
        return [[1.0] * len(one.texts) for one in answered]

    with pytest.raises(InputError, match="24 of them with equal scores"):
        rounds(tmp_path, DPO, rewards=rewards(same))


def test_a_later_round_without_pairs_is_passed_over(tmp_path: Path) -> None:
    asked: list[int] = []

    def tired(answered: Sequence[Answered]) -> list[list[float | None]]:
        asked.append(len(answered))
        return low(answered) if len(asked) == 1 else [[1.0] * len(one.texts) for one in answered]

    model = causal("llama").model
    done = rounds(tmp_path, DPO, model, rewards=rewards(tired))
    first, second = lines(tmp_path)
    assert (second["rows"], second["steps"], done.steps) == (0.0, first["steps"], first["steps"])


def test_the_rows_of_the_table_are_what_the_loop_takes() -> None:
    for row in ROUNDS:
        way = settle(row.knobs or {}, ROLLOUT, Reference(), None)
        assert (way.rounds, loop_of(row.name)) == (3, "rounds")
        assert METHODS[row.name] == row


@pytest.mark.parametrize(
    ("knobs", "more", "said"),
    [
        ({"objective": "bradley_terry"}, {}, "reward head"),
        ({"objective": "dpoo"}, {}, "dpo"),
        ({"select": "local"}, {}, "learns from pairs"),
        (RAFT | {"select": "best_worst"}, {}, "imitates"),
        ({"select": "best_wurst"}, {}, "best_worst"),
        ({"alpha": 0.5}, {}, "alpha"),
        (RAFT | {"alpha": 0.5}, {}, "alpha"),
        (RAFT | {"select": "top", "alpha": 0.0}, {}, "alpha is 0"),
        (RAFT | {"beta": 0.1}, {}, "beta has no effect"),
        ({"beta": 0.0}, {}, "above 0"),
        ({"rounds": 0}, {}, "rounds is 0"),
        ({"compared_with": "begin"}, {}, "previous, start"),
        (RAFT | {"compared_with": "start"}, {}, "no reference"),
        ({"compared_with": "start"}, {"reference": Reference(compute="step", sync_every=1)}, "sync_every"),
        ({"round": 3}, {}, "'rounds'"),
        ({}, {"rollout": Rollout(n=1)}, "2 or more"),
        ({}, {"rollout": Rollout(n=4, repeats=2)}, "repeats"),
        ({}, {"asked": []}, "no prompts"),
        ({}, {"watch": Watch(evaluate_every=1, keep="best")}, "held-out"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(
    knobs: dict[str, Any], more: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=said):
        rounds(tmp_path, knobs, **more)
    assert not (tmp_path / "round-1").exists(), "before anything is drawn"


def test_samples_are_the_first_answers_of_the_first_prompts(tmp_path: Path) -> None:
    rounds(tmp_path, DPO)
    shown = read_track(tmp_path / "samples.jsonl")
    assert [row["step"] for row in shown] == [1] * 8 + [2] * 8
    assert [row["prompt_id"] for row in shown[:8]] == [one.prompt.id for one in ASKED[:8]]
    assert [row["completion"] for row in shown[8:]] == [one["texts"][0] for one in drawn(tmp_path, 2)[:8]]
    assert json.dumps(shown[0]["terms"]) == json.dumps({"low": shown[0]["score"]})


def recipe(folder: Path, **policy: Any) -> Recipe:
    keys = {"window": 192, "batch": 16, "learning_rate": 1e-3}
    acting = {"model": "sft", "reward": {"length": {"unit": "characters", "most": 5}}, **keys}
    rollout = {"n": 3, "max_new_tokens": 8}
    raw = tiny(project=str(folder), sample=None, judge=None, audit=None, curate=None, evaluate=None, export=None)
    sft = raw["train"]["sft"]
    return build_recipe({**raw, "train": {"sft": sft, "policy": {**acting, "rollout": rollout, **policy}}}, where="")


@pytest.mark.parametrize(
    "policy",
    [
        {"method": "raft", "rounds": 2},
        {"method": "iterative_dpo", "rounds": 2, "compared_with": "start", "adapter": {"rank": 2}},
    ],
    ids=["raft", "iterative_dpo"],
)
def test_a_recipe_trains_in_rounds(policy: dict[str, Any], tmp_path: Path) -> None:
    done = run(recipe(tmp_path / "project", **policy))
    manifest, home = done.manifests["train.policy"], tmp_path / "project" / "train" / "policy"
    counts, found = manifest["counts"], lines(home)
    assert counts["held out"] > 0
    assert found[0]["rows"] == pytest.approx(found[0]["prompts/covered"] * counts["prompts"])
    assert [line["step"] for line in found] == [1, 2]
    assert counts["steps"] == found[-1]["steps"]
    assert manifest["outputs"]["last"]["eval/objective/scores"] == found[-1]["eval/objective/scores"]
    assert not list(home.rglob("checkpoint")), "the model is saved, so no checkpoint is needed"
    assert (home / "model" / "config.json").is_file()


def test_keys_without_effect_in_rounds_are_refused(tmp_path: Path) -> None:
    run(recipe(tmp_path / "project", method="raft"), only=["import", "train.sft"])
    for key in ({"steps": 3}, {"value": "shared"}):
        with pytest.raises(InputError, match="leave out value and steps"):
            run(recipe(tmp_path / "project", method="raft", **key), only=["train.policy"])
