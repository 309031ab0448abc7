"""A recipe that acts: rewards that are a stage, a row of the table or one's own function; and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.run.made import MODEL, TINY
from tests.train.acting import lines
from tiebreak.models.load import load_causal, load_reward
from tiebreak.recipe import build_recipe, row_knobs
from tiebreak.records import InputError, quiet
from tiebreak.run import run
from tiebreak.run.acting import critic
from tiebreak.run.job import Job
from tiebreak.train.methods import METHODS

SFT = {"method": "sft", "rows": "responses", "model": MODEL, "vocabulary": 400, "learning_rate": 3e-3, "window": 192}
POLICY: dict[str, Any] = {
    "method": "grpo",
    "model": "sft",
    "batch": 4,
    "steps": 3,
    "learning_rate": 1e-4,
    "window": 192,
    "log_every": 1,
    "rollout": {"n": 2, "max_new_tokens": 6},
}
SUMS = {"format": "arithmetic", "n": 48, "held_out": 8, "split": {"test": "held-out", "train": None}}


def made(policy: dict[str, Any], **sections: Any) -> dict[str, Any]:
    recipe = {"project": "./acting", "seed": 1, "import": SUMS, "train": {"sft": SFT, "policy": {**POLICY, **policy}}}
    return recipe | sections


def done(policy: dict[str, Any], **sections: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Run it here and return the policy's manifest and its metrics."""
    ran = run(build_recipe(made(policy, **sections), where="test"))
    folder = ran.folder / "train" / "policy"
    assert load_causal(folder / "model").model.config.hidden_size == MODEL["hidden_size"]
    return dict(ran.manifests["train.policy"]), lines(folder)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_verifier_as_the_reward() -> None:
    manifest, rows = done({"reward": {"math": {}}})
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3]
    assert rows[0]["objective/kl"] == pytest.approx(0.0, abs=1e-5)
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert {"rewards/math", "eval/objective/scores"} <= set().union(*rows)
    assert manifest["counts"]["steps"] == 3
    assert manifest["counts"]["prompts"] + manifest["counts"]["held out"] == 48


def test_ones_own_function_with_a_knob_beside_a_length(here: Path) -> None:
    (here / "my_reward.py").write_text(
        "def digits(prompt, completion, fields, worth=1.0):\n"
        "    return worth * sum(letter.isdigit() for letter in completion)\n"
    )
    own = [{"my_reward:digits": {"worth": 2.0}}, {"length": {"most": 3, "weight": 0.1}}]
    _, rows = done({"reward": own, "method": "rloo"})
    assert {"rewards/digits", "rewards/length"} <= set(rows[0])
    mean = rows[0]["rewards/digits"] + 0.1 * rows[0]["rewards/length"]
    assert rows[0]["objective/scores"] == pytest.approx(mean, abs=1e-6)


@pytest.mark.parametrize("value", [None, "shared"])
def test_ppo_with_a_reward_model_that_is_a_stage(value: str | None) -> None:
    """The value net starts from the reward model, unless it is told otherwise."""
    sections = {name: TINY[name] for name in ("import", "sample", "judge", "curate")}
    train = {"sft": {**SFT, "batch": 16}, "reward": TINY["train"]["reward"]}
    train["policy"] = {**POLICY, "method": "ppo", "reward": "reward", **({"value": value} if value else {})}
    _, rows = done({}, **sections, train=train)
    if value is None:
        recipe = build_recipe(made({}, **sections, train=train), where="test")
        job = Job("train.policy", "", recipe, None, Path("acting"), {}, quiet)  # type: ignore[arg-type]
        stage, sft = recipe.train["policy"], load_causal("acting/train/sft/model")
        net = critic(job, stage, row_knobs(METHODS["ppo"], stage.knobs, "policy"), sft)
        begun = load_reward("acting/train/reward/model").model
        assert net is not None
        assert all(torch.equal(a, b) for a, b in zip(net.parameters(), begun.parameters(), strict=True))
    first = rows[0]
    assert first["policy/clip_fraction"] == 0.0
    assert first["objective/kl"] == pytest.approx(0.0, abs=1e-5)
    assert first["objective/scores"] == pytest.approx(first["rewards/model"], abs=1e-6)
    assert "value/explained_variance" in first


def test_a_second_run_does_nothing_and_another_reward_begins_anew() -> None:
    done({"reward": "ends"})
    before = Path("acting/train/policy/manifest.json").read_text()
    done({"reward": "ends"})
    assert Path("acting/train/policy/manifest.json").read_text() == before
    _, rows = done({"reward": {"length": {"most": 2}}})
    assert "rewards/length" in rows[0]
    assert "rewards/ends" not in rows[0]


def test_samples_are_shown_and_their_scores_add_up() -> None:
    done({"reward": "ends"})
    found = [json.loads(line) for line in Path("acting/train/policy/samples.jsonl").read_text().splitlines()]
    assert {row["step"] for row in found} == {1, 2, 3}
    assert all(row["score"] == row["terms"]["ends"] for row in found)
    assert all(row["score"] == (row["finish"] == "stop") for row in found)


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ({"reward": "maths"}, "Did you mean 'math'"),
        ({"reward": "polcy"}, "neither a stage of train:"),
        ({"reward": {"math": {"answr": "x"}}}, "Did you mean 'answer'"),
        ({}, "has no reward"),
        ({"method": "dpo", "reward": "ends"}, "reward"),
        ({"method": "grop", "reward": "ends"}, "Did you mean 'grpo'"),
        ({"reward": "ends", "betta": 0.1}, "Did you mean 'beta'"),
        ({"reward": "ends", "rollout": {"n": 2, "temprature": 1.0}}, "temperature"),
        ({"reward": "ends", "rollout": {"n": 1}}, "rollout.n is 1"),
        ({"reward": "ends", "value": "sft"}, "learns no values"),
        ({"reward": "ends", "kl": "k1"}, "k1 in the loss teaches nothing"),
        ({"reward": "ends", "tokens": "auto"}, "tokens: auto"),
        ({"reward": "ends", "batch_tokens": 100}, "batch_tokens"),
        ({"reward": "ends", "window": 16, "rollout": {"n": 2, "max_new_tokens": 16}}, "leaves no room"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_one_sentence(policy: dict[str, Any], said: str) -> None:
    """And is said before a model is trained for it, so nothing is made but what stands before."""
    with pytest.raises(InputError, match=said) as error:
        done(policy)
    assert "\n" not in str(error.value)
    assert not Path("acting/train").exists(), "the first stage was trained before the recipe was refused"
