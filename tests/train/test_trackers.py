"""Trackers: each gets what the metrics file gets, once, under the names it has there, and no key with it."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tiebreak.records import InputError
from tiebreak.train.track import Track, read_track
from tiebreak.train.trackers import HIDDEN, TRACKERS, public, run_id

SETTINGS = {"method": "dpo", "beta": 0.1, "batch": 8}
LINES: list[tuple[int, dict[str, float]]] = [
    (1, {"loss": 0.69, "rewards/chosen": 0.0, "learning_rate": 1e-4}),
    (2, {"loss": 0.6, "rewards/chosen": 0.1, "learning_rate": 2e-4}),
    (2, {"eval/loss": 0.65}),
    (3, {"loss": 0.5, "rewards/chosen": 0.2, "learning_rate": 1e-4}),
]
KEY = "0123456789abcdef0123456789abcdef01234567"


class Service:
    """The scripted package behind a tracker: keeps what it is told, over several starts, as a server does."""

    Error = RuntimeError

    def __init__(self) -> None:
        self.starts: list[dict[str, Any]] = []
        self.lines: list[tuple[int, dict[str, float]]] = []
        self.finished = 0

    def init(self, **asked: Any) -> Service:
        if asked["project"] == "no/such":
            raise RuntimeError("project name is not allowed")
        self.starts.append(asked)
        return self

    def log(self, values: Mapping[str, float], *, step: int) -> None:
        self.lines.append((step, dict(values)))

    def finish(self) -> None:
        self.finished += 1

    def get_logs(self, project: str, run: str) -> list[dict[str, Any]]:
        return [{"step": step, "timestamp": "now", **values} for step, values in self.lines]

    # what TensorBoard's writer has

    def SummaryWriter(self, folder: str, *, purge_step: int) -> Service:
        return self.init(project="", folder=folder, purge_step=purge_step)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.lines.append((step, {name: value}))

    def add_text(self, name: str, text: str, step: int) -> None:
        self.starts[-1][name] = json.loads(text)

    def flush(self) -> None:
        self.starts[-1]["flushed"] = len(self.lines)

    close = finish


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    """One scripted package in the place of all three, and an environment without keys."""
    scripted: Any = Service()
    for name in ("torch.utils.tensorboard", "wandb", "trackio", "trackio.sqlite_storage"):
        monkeypatch.setitem(sys.modules, name, scripted)
    scripted.SQLiteStorage = scripted
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    return scripted


def follow(name: str, folder: Path, *, after: int = 0, until: int = 3, **more: Any) -> None:
    """A training that logs LINES from one step to another."""
    asked: dict[str, Any] = {"project": "tldr", "run": "policy", "settings": SETTINGS, **more}
    tracker = TRACKERS[name].load()(folder, after=after, **asked)
    with Track(folder / "metrics.jsonl", after=after, trackers=[tracker]) as track:
        for step, values in LINES:
            if after < step <= until:
                track.write(step, values)


def flat(lines: list[tuple[int, dict[str, float]]]) -> list[tuple[int, str, float]]:
    return [(step, name, value) for step, values in lines for name, value in values.items()]


@pytest.mark.parametrize("name", [row.name for row in TRACKERS])
def test_a_tracker_gets_what_the_file_gets_under_the_same_names(name: str, service: Service, tmp_path: Path) -> None:
    follow(name, tmp_path)
    assert flat(service.lines) == flat(LINES)
    assert read_track(tmp_path / "metrics.jsonl") == [{"step": step, **values} for step, values in LINES]
    assert service.finished == 1


@pytest.mark.parametrize("row", TRACKERS, ids=lambda row: row.name)
def test_a_missing_package_is_one_sentence_with_its_pip_command(row: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("torch.utils.tensorboard", "wandb", "trackio"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf"^The tracker '{row.name}' needs its package: pip install {row.name}\.$"):
        row.load()(Path("nowhere"), project="p", run="r", settings={}, after=0)
    assert not Path("nowhere").exists()


def test_an_unknown_tracker_is_told_the_nearest() -> None:
    with pytest.raises(InputError, match=r"no tracker called 'tensorbord'.*Did you mean 'tensorboard'"):
        TRACKERS["tensorbord"]


def test_all_are_written_and_all_are_closed_even_if_one_fails(tmp_path: Path) -> None:
    class Failing(Service):
        def write(self, step: int, values: Mapping[str, float]) -> None:
            self.log(values, step=step)

        def close(self) -> None:
            self.finish()
            raise OSError("the disk is full")

    several = [Failing(), Failing()]
    track = Track(tmp_path / "metrics.jsonl", after=0, trackers=several)
    track.write(*LINES[0])
    with pytest.raises(OSError, match="disk is full"):
        track.close()
    assert [(one.lines, one.finished) for one in several] == [([LINES[0]], 1)] * 2


def test_wandb_stays_offline_without_a_key_in_the_environment(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, asked, mode in (
        ("", "", "offline"),
        ("", "online", "offline"),
        ("", "disabled", "disabled"),
        (KEY, "", "online"),
        (KEY, "offline", "offline"),
    ):
        monkeypatch.setenv("WANDB_API_KEY", key)
        monkeypatch.setenv("WANDB_MODE", asked)
        follow("wandb", tmp_path / "run")
        start = service.starts[-1]
        assert start["mode"] == mode, (key, asked)
        assert start["resume"] == ("allow" if mode == "online" else None)
        assert start["dir"] == str(tmp_path / "run")


def test_a_resumed_training_is_the_same_run_and_another_is_not(service: Service, tmp_path: Path) -> None:
    follow("wandb", tmp_path, until=2)
    follow("wandb", tmp_path, after=1)
    follow("wandb", tmp_path, settings={**SETTINGS, "beta": 0.2})
    follow("wandb", tmp_path, run="reward")
    first, again, *others = [start["id"] for start in service.starts]
    assert (
        first
        == again
        == run_id("tldr", "policy", SETTINGS)
        == run_id("tldr", "policy", dict(reversed(SETTINGS.items())))
    )
    assert len({first, *others}) == 3
    assert len(first) == 16


def test_trackio_is_not_told_again_what_it_has(service: Service, tmp_path: Path) -> None:
    """Killed at step 3 before its first line arrived, or between the two parts of step 2, and resumed after step 1."""
    for known in range(1, len(LINES) + 1):
        service.lines[:] = LINES[:known]
        follow("trackio", tmp_path, after=1)
        assert sorted(flat(service.lines)) == sorted(flat(LINES)), known
    service.lines[:] = LINES[:2]
    follow("trackio", tmp_path)
    assert sorted(flat(service.lines)) == sorted(flat(LINES))
    assert {(start["name"], start["resume"]) for start in service.starts} == {
        (f"policy-{run_id('tldr', 'policy', SETTINGS)[:8]}", "allow")
    }


def test_tensorboard_purges_what_comes_again_and_flushes_each_step(service: Service, tmp_path: Path) -> None:
    follow("tensorboard", tmp_path, until=2)
    follow("tensorboard", tmp_path, after=1)
    assert [start["purge_step"] for start in service.starts] == [0, 2]
    assert {start["folder"] for start in service.starts} == {str(tmp_path / "tensorboard")}
    assert service.starts[0]["settings"] == {"project": "tldr", "run": "policy", **SETTINGS}
    assert "settings" not in service.starts[1]
    assert service.starts[1]["flushed"] == len(service.lines)


@pytest.mark.parametrize("name", [row.name for row in TRACKERS])
def test_no_key_reaches_a_tracker(name: str, service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("SOME_TOKEN", "hf_abcdefgh")
    settings = {
        "judge": {"api_key": "sk-1", "key_env": "OPENAI_API_KEY", "headers": [f"Bearer {KEY}", "Accept"]},
        "hub": "https://user:pass@host/x",
        "note": "by hf_abcdefgh",
        "eos_token": "</s>",
        "folder": tmp_path,
    }
    follow(name, tmp_path, settings=settings)
    assert public(settings) == {
        "judge": {"api_key": HIDDEN, "key_env": "OPENAI_API_KEY", "headers": [HIDDEN, "Accept"]},
        "hub": f"https://user:{HIDDEN}@host/x",
        "note": HIDDEN,
        "eos_token": "</s>",
        "folder": str(tmp_path),
    }
    told = repr(service.starts) + "".join(p.read_text() for p in tmp_path.rglob("*") if p.is_file())
    for secret in (KEY, "sk-1", ":pass@", "hf_abcdefgh"):
        assert secret not in told
    assert "</s>" in told


def test_what_a_service_refuses_is_one_sentence(service: Service, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"^The tracker 'wandb' cannot start: project name is not allowed \(WANDB_MODE=off"
    ):
        follow("wandb", tmp_path, project="no/such")


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder))
    read.Reload()
    return {tag: [(event.step, round(event.value, 6)) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def test_tensorboard_shows_each_step_once_after_a_kill(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    follow("tensorboard", tmp_path / "calm")
    follow("tensorboard", tmp_path / "killed", until=2)
    follow("tensorboard", tmp_path / "killed", after=1)
    follow("tensorboard", tmp_path / "early", until=2)
    follow("tensorboard", tmp_path / "early")
    shown = [events(tmp_path / name / "tensorboard") for name in ("calm", "killed", "early")]
    assert shown[0]["rewards/chosen"] == [(1, 0.0), (2, 0.1), (3, 0.2)]
    assert set(shown[0]) == {name for _, name, _ in flat(LINES)}
    assert shown[0] == shown[1] == shown[2]
