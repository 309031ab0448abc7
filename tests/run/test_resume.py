"""A run that is killed, wherever it strikes, ends as one that was left alone."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.run.made import Shell, count, ledger_is_sound, read, results, start, strict, tiny, write

SLOW = """
import time
from tiebreak.data.world import quality
def slow(prompt, text):
    time.sleep(0.002)
    return quality(prompt, text)
"""
TESTED = 16
POSTS = 5000
QUESTIONS = 600


def recipe() -> dict[str, Any]:
    """A loop in which every stage leaves marks while it works."""
    made = tiny()
    made["import"] |= {"n": POSTS, "held_out": TESTED}
    made["train"]["sft"] |= {"limit": 64, "epochs": 12, "checkpoint_every": 1}
    made["sample"]["limit"] = QUESTIONS // 2
    made["judge"] |= {"rule": "slow_rule:slow"}
    return made


def kill_when(happened: Callable[[], bool], *words: str) -> None:
    """Start a run and kill it, without warning, as soon as ``happened``; it must not have come to its end."""
    process = start("run", *words)
    while not happened():
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -9
    process.communicate()


@pytest.mark.slow
def test_killed_in_every_stage_and_run_again(tiebreak: Shell) -> None:
    Path("slow_rule.py").write_text(SLOW)
    path = write("r.yaml", recipe())
    home = Path("runs/tiny")
    imported = POSTS + TESTED
    kill_when(lambda: count(home, "prompts") >= 1, path)
    assert 0 < count(home, "prompts") < imported
    assert not (home / "import/manifest.json").exists()
    kill_when(lambda: (home / "train/sft/checkpoint/state.json").exists(), path)
    assert count(home, "prompts") == imported
    kill_when(lambda: count(home, "responses") > imported, path)
    assert count(home, "responses") < imported + 2 * (QUESTIONS // 2)
    kill_when(lambda: count(home, "judgments") > 0, path)
    answered = count(home, "judgments")
    assert ledger_is_sound(home)

    said = strict(tiebreak.fine("run", path, "--json").out)
    assert said["skipped"] == ["import", "train.sft", "sample"]
    judged = said["stages"]["judge"]["counts"]
    assert judged["known"] == answered
    assert judged["asked"] == judged["judgments"] - answered
    assert read(home / "sample/manifest.json")["counts"]["known"] > 0

    calm = write("calm.yaml", recipe() | {"project": "calm"})
    tiebreak.fine("run", calm)
    assert results("runs/calm") == results(home)
    for name in ("sft", "reward", "policy"):
        weights = f"train/{name}/model/model.safetensors"
        assert (home / weights).read_bytes() == (Path("runs/calm") / weights).read_bytes(), name
    assert (home / "curate/pairs.jsonl").read_bytes() == Path("runs/calm/curate/pairs.jsonl").read_bytes()
    assert all(count(home, table) == count("runs/calm", table) for table in ("prompts", "responses", "judgments"))


def test_a_killed_training_with_other_knobs_begins_anew(tiebreak: Shell) -> None:
    made = tiny(sample=None, judge=None, audit=None, curate=None, evaluate=None, export=None)
    made["train"] = {"sft": made["train"]["sft"] | {"epochs": 20, "checkpoint_every": 1}}
    path = write("r.yaml", made)
    home = Path("runs/tiny/train/sft")
    kill_when(lambda: (home / "checkpoint/state.json").exists(), path)
    tiebreak.fine("run", path, "train.sft.epochs=1")
    steps = [row["step"] for row in map(strict, (home / "metrics.jsonl").read_text().splitlines())]
    assert steps[0] == 1
    weights = (home / "model/model.safetensors").read_bytes()
    shutil.rmtree("runs/tiny")
    tiebreak.fine("run", path, "train.sft.epochs=1")
    assert (home / "model/model.safetensors").read_bytes() == weights
