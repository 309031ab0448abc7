"""A training in rounds that is killed ends as a calm one does: the same weights, metrics, samples and draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.tiny import causal
from tests.train.made import weights
from tests.train.made_rounds import ASKED, DPO, LORA, RAFT, drawn, lines, low, rewards, rounds
from tiebreak.records import InputError
from tiebreak.rewards.table import Answered
from tiebreak.train import checkpoint, draws
from tiebreak.train.offline import Compute, Pace, Trained, Watch
from tiebreak.train.track import read_track

FEW, SHORT = ASKED[:9], Pace(epochs=1.0, batch=3, learning_rate=1e-2)


def picky(answered: Sequence[Answered]) -> list[list[float | None]]:
    """The planted reward, which has nothing to say of one answer in five."""
    return [
        [None if one.trees and one.trees.branches[j][0] % 5 == 0 else value for j, value in enumerate(row)]
        for one, row in zip(answered, low(answered), strict=True)
    ]


RUNS: dict[str, dict[str, Any]] = {
    "dpo": {"knobs": DPO},
    "dpo against the start, a reward that is normalised over the run and leaves some out": {
        "knobs": DPO | {"compared_with": "start", "select": "best_random"},
        "rewards": {"normalise": "running"},
        "score": picky,
    },
    "raft with an average, the best round kept": {
        "knobs": RAFT | {"rounds": 3},
        "ema": 0.5,
        "watch": {"evaluate_every": 1, "keep": "best", "patience": 2, "checkpoint_every": 1},
    },
    "dpo with LoRA": {"knobs": DPO | {"compared_with": "start"}, "adapter": LORA},
    "dpo in bfloat16 with master weights": {"knobs": DPO, "compute": Compute(precision="bfloat16_weights")},
}
"""Name of a run to what it is."""
RICHEST = list(RUNS)[1]


def live(
    folder: Path, name: str, progress: Any = None, score: Callable[..., Any] | None = None
) -> tuple[Trained, torch.Tensor]:
    """Begin the run anew, or go on with what lies in ``folder``; return the weights it ends with."""
    run = dict(RUNS[name])
    model = causal("llama").model
    own = run.pop("score", low)
    watch = Watch(**{"checkpoint_every": 2, "log_every": 1, **run.pop("watch", {})})
    scored = rewards(score or own, **run.pop("rewards", {}))
    more: dict[str, Any] = {"asked": FEW, "held_out": FEW[:3], "watch": watch, "rewards": scored, "pace": SHORT}
    if progress is not None:
        more["progress"] = progress
    done = rounds(folder, run.pop("knobs"), model, **run, **more)
    return done, weights(model).float()


def struck(folder: Path, name: str, strike: Callable[[], None]) -> tuple[Trained, torch.Tensor]:
    """Live with ``strike`` called whenever answers are about to be scored and whenever progress is told."""
    score = RUNS[name].get("score", low)

    def scored(answered: Sequence[Answered]) -> Any:
        strike()
        return score(answered)

    return live(folder, name, lambda done, total, shown: strike(), scored)


def told(folder: Path) -> list[Any]:
    samples = read_track(folder / "samples.jsonl")
    inner = [[row for row in read_track(home / "metrics.jsonl")] for home in sorted(folder.glob("round-*"))]
    return [lines(folder), samples, inner, drawn(folder, 1), drawn(folder, 2)]


@pytest.mark.parametrize("name", RUNS)
def test_a_killed_run_goes_on_to_the_same_weights(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draws, "CHUNK", 4)
    moments: list[int] = []
    calm, end = struck(tmp_path / "calm", name, lambda: moments.append(1))
    for last in range(0, len(moments), 1 if name == RICHEST else 3):
        left = [last]

        def kill(left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt

        folder = tmp_path / f"life {last}"
        with pytest.raises(KeyboardInterrupt):
            struck(folder, name, kill)
        done, weighed = live(folder, name)
        assert torch.equal(weighed, end), f"killed at moment {last} of {len(moments)}"
        assert done._replace(seconds=0.0) == calm._replace(seconds=0.0)
        assert told(folder) == told(tmp_path / "calm")


def test_progress_counts_each_prompt_twice_a_round(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    live(tmp_path, "dpo", lambda done, total, shown: calls.append((done, total)))
    assert calls == sorted(calls)
    assert calls[-1] == (2 * 2 * len(FEW), 2 * 2 * len(FEW))


def test_a_run_killed_again_and_again_asks_the_reward_for_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draws, "CHUNK", 4)
    paid: list[int] = []

    def dear(answered: Sequence[Answered]) -> list[list[float | None]]:
        paid.append(len(answered))
        return low(answered)

    _, end = live(tmp_path / "calm", "dpo", score=dear)
    once = [*paid]
    paid.clear()
    steps: set[tuple[int, ...]] = set()

    def killed(done: int, total: int, shown: object) -> None:
        if (done,) not in steps:
            steps.add((done,))
            raise KeyboardInterrupt

    for _ in range(200):
        try:
            _, last = live(tmp_path / "lives", "dpo", killed, dear)
            break
        except KeyboardInterrupt:
            continue
    assert torch.equal(last, end)
    assert [count for count in paid if count != 3] == [count for count in once if count != 3], "3 are held out"
    assert len(steps) > 8


def test_a_kill_between_a_round_and_the_next_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, end = live(tmp_path / "calm", "dpo")
    with monkeypatch.context() as patched:

        def killed(folder: Path) -> None:
            raise KeyboardInterrupt

        patched.setattr(checkpoint, "discard", killed)  # the round is kept, its training's checkpoint still lies there
        with pytest.raises(KeyboardInterrupt):
            live(tmp_path / "killed", "dpo")
    assert (tmp_path / "killed" / "round-1" / "checkpoint").is_dir()
    _, last = live(tmp_path / "killed", "dpo")
    assert torch.equal(last, end)
    assert not list((tmp_path / "killed").glob("round-*/checkpoint")), "one checkpoint stays, that of the run"
    done, again = live(tmp_path / "killed", "dpo", lambda *_: pytest.fail("there is nothing left to do"))
    assert torch.equal(again, end)
    assert done.steps > 0


def test_what_another_run_left_behind_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draws, "CHUNK", 4)

    def killed(done: int, total: int, shown: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        live(tmp_path, "dpo", killed)
    with pytest.raises(InputError, match="another start"):
        rounds(tmp_path, DPO, seed=5)
    live(tmp_path, "dpo")
    with pytest.raises(InputError, match="another start"):
        rounds(tmp_path, DPO, seed=5)
