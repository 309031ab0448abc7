"""What has not changed is not done again; what has, is, with all that rests on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.run.made import ANSWERS, Shell, read, results, strict, tiny, votes, write
from tiebreak.records import InputError

LOOP = [
    "import",
    "train.sft",
    "sample",
    "judge",
    "audit",
    "curate",
    "train.reward",
    "train.policy",
    "evaluate",
    "export",
]


def done(tiebreak: Shell, *words: str) -> set[str]:
    """Return the stages that a run carried out."""
    said = strict(tiebreak.fine("run", *words, "--json").out)
    return set(said["stages"]) - set(said["skipped"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished small loop, to be copied."""
    from tiebreak.recipe import build_recipe
    from tiebreak.run import run

    folder = tmp_path_factory.mktemp("finished")
    ran = run(build_recipe(tiny(project=f"{folder}/tiny"), where=""))
    assert set(ran.manifests) == set(LOOP)
    return folder / "tiny"


@pytest.fixture
def recipe(finished: Path, here: Path) -> str:
    """The recipe of a small loop that is finished in this folder."""
    import shutil

    shutil.copytree(finished, here / "runs" / "tiny")
    return write("r.yaml", tiny())


AFTER_SFT = set(LOOP) - {"import", "train.sft"}
AFTER_JUDGE = {"audit", "curate", "train.reward", "train.policy", "evaluate", "export"}


@pytest.mark.parametrize(
    ("setting", "redone"),
    [
        ("judge.concurrency=3", set()),
        ("evaluate.win_rate.judge.concurrency=3", set()),
        ("train.sft.log_every=1", set()),
        ("train.policy.checkpoint_every=7", set()),
        ("audit.checks=[length]", {"audit"}),
        ("export.shape=unpaired", {"export"}),
        ("evaluate.examples=2", {"evaluate"}),
        ("train.policy.beta=0.2", {"train.policy", "evaluate"}),
        ("train.reward.learning_rate=2e-3", {"train.reward", "evaluate"}),
        ("curate=[soft_label]", {"curate", "train.reward", "train.policy", "evaluate", "export"}),
        ("judge.sharpness=3", {"judge", *AFTER_JUDGE}),
    ],
)
def test_a_changed_knob_redoes_its_section_and_what_rests_on_it(
    setting: str, redone: set[str], recipe: str, tiebreak: Shell
) -> None:
    forecast = strict(tiebreak.fine("run", recipe, setting, "--dry-run", "--json").out)["stages"]
    assert {stage["stage"] for stage in forecast if stage["to_do"]} == redone
    if not redone & {"train.reward", "train.policy", "evaluate"}:
        assert done(tiebreak, recipe, setting) == redone
        assert done(tiebreak, recipe, setting) == set()


@pytest.mark.parametrize(
    ("setting", "kept"),
    [
        ("seed=2", set()),
        ("import.n=90", set()),
        ("train.sft.epochs=2", {"import"}),
        ("sample.top_k=5", {"import", "train.sft"}),
    ],
)
def test_a_change_at_the_beginning_redoes_the_rest(setting: str, kept: set[str], recipe: str, tiebreak: Shell) -> None:
    forecast = strict(tiebreak.fine("run", recipe, setting, "--dry-run", "--json").out)["stages"]
    assert {stage["stage"] for stage in forecast if not stage["to_do"]} == kept


def test_a_finished_run_does_nothing_and_says_the_same(recipe: str, tiebreak: Shell) -> None:
    before = results("runs/tiny")
    assert done(tiebreak, recipe) == set()
    assert results("runs/tiny") == before


def test_a_lost_summary_comes_back(recipe: str, tiebreak: Shell) -> None:
    before = results("runs/tiny")
    Path("runs/tiny/summary.json").unlink()
    assert done(tiebreak, recipe) == set()
    assert results("runs/tiny") == before


def test_an_edited_input_redoes_the_import(tiebreak: Shell) -> None:
    recipe = write("r.yaml", ANSWERS)
    write("votes.jsonl", votes(40))
    assert len(done(tiebreak, recipe)) == 5
    Path("votes.jsonl").touch()
    assert done(tiebreak, recipe) == set()
    write("votes.jsonl", votes(41))
    assert done(tiebreak, recipe) == {"import", "judge", "audit", "curate", "export"}
    assert read("runs/votes/import/manifest.json")["counts"]["prompts"] == 41


def test_an_edited_mapping_or_rubric_counts_as_a_change(here: Path) -> None:
    from tiebreak.recipe import build_recipe
    from tiebreak.run.plan import marks, plan

    Path("votes.jsonl").write_text("{}")
    Path("m.yaml").write_text("a: 1")
    Path("rubric.txt").write_text("one")
    raw: dict[str, Any] = {
        "import": {"format": "table", "path": "votes.jsonl", "mapping": "m.yaml"},
        "judge": {"by": "pairwise", "model": "m", "endpoint": "http://x", "rubric": "rubric.txt"},
    }
    before = [marks(stage) for stage in plan(build_recipe(raw, where=""))]
    assert [set(found) for found in before] == [{"votes.jsonl", "m.yaml"}, {"rubric.txt"}]
    Path("rubric.txt").write_text("two")
    after = [marks(stage) for stage in plan(build_recipe(raw, where=""))]
    assert [a == b for a, b in zip(after, before, strict=True)] == [True, False]


def test_a_model_folder_counts_by_what_is_in_it(here: Path) -> None:
    from tiebreak.recipe import build_recipe
    from tiebreak.run.plan import marks, plan

    Path("m").mkdir()
    Path("m/config.json").write_text("{}")
    Path("m/model.safetensors").write_bytes(b"one")
    raw = {"import": {"format": "world"}, "sample": {"model": "./m"}}
    before = marks(plan(build_recipe(raw, where=""))[1])
    Path("m/model.safetensors").write_bytes(b"two")
    assert marks(plan(build_recipe(raw, where=""))[1]) != before


def test_two_runs_in_two_folders_are_equal_to_the_byte(tiebreak: Shell) -> None:
    write("votes.jsonl", votes(60))
    recipe = write("r.yaml", ANSWERS)
    for project in ("one", "two"):
        tiebreak.fine("run", recipe, f"project={project}")
    for name in ("curate/pairs.jsonl", "export/pairs.jsonl", "audit/findings.json", "curate/funnel.json"):
        assert (Path("runs/one") / name).read_bytes() == (Path("runs/two") / name).read_bytes()
    assert results("runs/one") == results("runs/two")


def test_a_second_loop_in_another_folder_is_equal_to_the_byte(recipe: str, tiebreak: Shell) -> None:
    tiebreak.fine("run", recipe, "project=again")
    names = ["curate/pairs.jsonl", "export/pairs.jsonl", "audit/findings.json"]
    names += [f"train/{name}/model/model.safetensors" for name in ("sft", "reward", "policy")]
    for name in names:
        assert (Path("runs/tiny") / name).read_bytes() == (Path("runs/again") / name).read_bytes(), name
    assert results("runs/tiny") == results("runs/again")


def test_threads_are_set_for_models_alone_and_given_back() -> None:
    import torch

    from tiebreak.recipe import Recipe
    from tiebreak.run.run import _machine

    before = torch.get_num_threads()
    with _machine(Recipe(threads=1)):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
    with _machine(Recipe()):
        assert torch.get_num_threads() == before


def test_a_device_that_is_not_here_is_one_sentence_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from tiebreak.recipe import Recipe
    from tiebreak.run.run import _machine

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with (
        pytest.raises(InputError, match=r"device is 'cuda'.*no CUDA device.*set device=cpu"),
        _machine(Recipe(device="cuda")),
    ):
        pass
