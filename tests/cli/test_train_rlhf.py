"""The starter's command line: every command of data/rlhf/README.md as it is written, and what comes of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest

from tiebreak.data import sets
from tiebreak.store import Ledger

pytest.importorskip("torch")

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "data" / "rlhf" / "README.md").read_text(encoding="utf-8")
COMMANDS = [block for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) if ".venv" not in block]
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TERM": "xterm-256color",
}


def shell(place: Path, command: str) -> subprocess.CompletedProcess[str]:
    """Run a command in ``place`` as a reader of the page would."""
    run = ["bash", "-euc", command]
    return subprocess.run(run, cwd=place, env=ENVIRONMENT, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def fine(place: Path, command: str) -> str:
    done = shell(place, command)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def command_with(*words: str) -> str:
    """Return the one command of the page that has all of ``words``."""
    found = [command for command in COMMANDS if all(word in command for word in words)]
    assert len(found) == 1, (words, found)
    return found[0]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the page is about, with a tiny model made by its own command, in fewer steps."""
    place = tmp_path_factory.mktemp("clone")
    shutil.copy(ROOT / "train_rlhf.py", place)
    shutil.copytree(ROOT / "data", place / "data", ignore=shutil.ignore_patterns("__pycache__", "user_preferences_*"))
    fine(place, command_with("create_tiny_model").strip() + " --steps 30")
    return place


def collected(place: Path) -> list[Path]:
    return sorted((place / "data/rlhf/datasets/user_collected").glob("*.json"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "folder", "pairs"),
    [
        (("preference_dataset_starter.json",), "dpo-preference_dataset_starter", 8),
        (("combined_preference_dataset.json",), "dpo-combined_preference_dataset", 108),
        (("--method ppo",), "ppo-preference_dataset_starter", 8),
        (("--synthetic_preferences",), "dpo-synthetic", None),
    ],
)
def test_a_training_command_of_the_page_runs_as_written(
    clone: Path, words: tuple[str, ...], folder: str, pairs: int | None
) -> None:
    said = fine(clone, command_with(*words))
    run = clone / "runs/rlhf" / folder
    counts = json.loads((run / "curate/manifest.json").read_text())["counts"]
    assert counts["pairs"] == pairs if pairs else counts["pairs"] >= 15
    assert f"Policy: runs/rlhf/{folder}/policy" in said
    assert (run / "policy/model.safetensors").is_file()
    assert (run / "report.html").stat().st_size > 1_000
    again = shell(clone, command_with(*words))
    assert "train.policy unchanged, skipped" in again.stderr


@pytest.mark.slow
def test_the_commands_on_the_data_run_as_written(clone: Path) -> None:
    for command in COMMANDS:
        if "manage_data" in command or "generate_large" in command:
            fine(clone, command)
    assert {len(sets.read(clone / name)) for name in ("both.json",)} == {108}
    assert len(sets.read(clone / "splits/combined_preference_dataset_train.json")) > 80


@pytest.mark.slow
def test_collecting_at_a_terminal_saves_each_answer_survives_a_kill_and_trains(clone: Path) -> None:
    command = command_with("--collect_preferences").replace("\\\n", " ").split()
    before = len(collected(clone))

    def sit_down() -> pexpect.spawn[str]:
        words = [sys.executable, *command[1:], "--annotator", "ann"]
        return pexpect.spawn(
            words[0], words[1:], cwd=str(clone), env=ENVIRONMENT, encoding="utf-8", dimensions=(60, 120), timeout=300
        )

    person = sit_down()
    for number, key in enumerate("12", 1):
        person.expect("q save and quit")
        person.send(key)
        person.expect(f"{number} of 25 answered")
    person.expect("q save and quit")
    person.kill(signal.SIGKILL)
    person.expect(pexpect.EOF)
    (kept,) = collected(clone)[before:]
    assert re.fullmatch(r"user_preferences_\d{3}\.json", kept.name)
    assert len(sets.read(kept)) == 2
    person = sit_down()
    person.expect("2 of 25 answered")
    for key in "1212":
        person.expect("q save and quit")
        person.send(key)
    person.expect("6 of 25 answered")
    person.send("q")
    person.expect("Policy: runs/rlhf/dpo-collect/policy")
    person.expect(pexpect.EOF)
    person.close()
    assert person.exitstatus == 0
    rows = sets.read(kept)
    assert len(rows) == 6
    prompts = sets.prompts(clone / "data/rlhf/prompts/collection_prompts.txt")
    assert {row["prompt"] for row in rows} <= set(prompts), "prompts keep the space at their end"
    assert {row["metadata"]["source"] for row in rows} == {"user_collected"}
    with Ledger(clone / "runs/rlhf/dpo-collect/ledger.db") as ledger:
        said = ledger.judgments()
    assert {judgment.by for judgment in said} == {"human:ann"}
    assert all(judgment.order_known and judgment.created_at for judgment in said)
    fine(clone, f"python train_rlhf.py --model_path models/tiny/model.pth --preference_data {kept}")


@pytest.mark.slow
def test_a_policy_from_a_checkpoint_is_a_folder_for_plain_transformers_and_a_checkpoint_again(clone: Path) -> None:
    fine(
        clone,
        "python train_rlhf.py --model_path models/tiny/model.pth --dataset starter --save_pth --output out "
        "--learning_rate 1e-3",
    )
    plain = (
        "import json, sys, torch\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "model, tokenizer = (kind.from_pretrained('out/policy') for kind in (AutoModelForCausalLM, AutoTokenizer))\n"
        "ids = tokenizer('Why is the sky blue? ', return_tensors='pt').input_ids\n"
        "print(json.dumps([ids[0].tolist(), model(ids).logits[0, -1].tolist()]))\n"
        "assert 'tiebreak' not in sys.modules\n"
    )
    ids, logits = json.loads(fine(clone, f'python -c "{plain}"'))
    import torch

    from tiebreak.models.pth import read_pth

    ours = read_pth(clone / "out/pth/model.pth")
    assert ours.tokenizer("Why is the sky blue? ").input_ids == ids
    with torch.no_grad():
        here = ours.model(torch.tensor([ids])).logits[0, -1]
    torch.testing.assert_close(here, torch.tensor(logits), rtol=1e-4, atol=1e-4)
    start = read_pth(clone / "models/tiny/model.pth").model.state_dict()
    moved = [name for name, value in ours.model.state_dict().items() if not torch.equal(value, start[name])]
    assert len(moved) > len(start) / 2, "training reaches the whole model"


@pytest.mark.slow
def test_the_reward_model_of_ppo_learns_with_its_whole_body(clone: Path) -> None:
    from tiebreak.models.load import load_causal, load_reward

    fine(clone, command_with("--method ppo").strip() + " --output whole --learning_rate 1e-3")
    start = load_causal(clone / "whole/start").model.state_dict()
    reward = load_reward(clone / "whole/train/reward/model").model.state_dict()
    shared = [name for name in reward if name in start]
    assert len(shared) > 20
    assert sum(not reward[name].equal(start[name]) for name in shared) > len(shared) / 2
    metrics = [json.loads(line) for line in (clone / "whole/train/policy/metrics.jsonl").read_text().splitlines()]
    assert all(value == value for row in metrics for value in row.values() if isinstance(value, float)), "never NaN"


WRONG = {
    "": "There is nothing to learn from; give one of --preference_data",
    "--dataset startr": "Did you mean 'starter'?",
    "--dataset starter --collect_preferences": "--dataset and --collect_preferences do not go together",
    "--preference_data nowhere.json": "--preference_data is nowhere.json, which does not exist",
    "--preference_data broken.json": "broken.json: line 2, column 12: broken JSON",
    "--preference_data listed.json": "listed.json: row 1: metadata is an array",
    "--collect_preferences --prompts_file empty.txt": "empty.txt holds no prompt",
    "--dataset starter --device mps": "--device is mps",
    "--dataset starter --save_pth": "--save_pth writes what a .pth checkpoint began",
    "--dataset starter --prompts_file empty.txt": "--prompts_file names what ppo answers",
    "--dataset starter --reward_model r": "--reward_model ranks with --synthetic_preferences",
    "--dataset starter --annotator ann": "--annotator names who judges",
    "--dataset starter --methd ppo": "No such option: --methd",
    "--dataset starter --batch_size none": "Invalid value for '--batch_size'",
}


@pytest.mark.slow
@pytest.mark.parametrize("words", WRONG)
def test_a_mistake_is_one_sentence_and_nothing_is_made(words: str, tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text('[{"prompt": "a ", "chosen": "b", "rejected": "c"},\n{"prompt": oops}]')
    (tmp_path / "listed.json").write_text('[{"prompt": "a ", "chosen": "b", "rejected": "c", "metadata": [1]}]')
    (tmp_path / "empty.txt").write_text("\n")
    done = shell(tmp_path, f"python {ROOT / 'train_rlhf.py'} --model_path model {words}")
    assert done.returncode in (1, 2)
    assert WRONG[words] in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.json", "empty.txt", "listed.json"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("made", "told"),
    [
        ("nothing", "nowhere.pth"),
        ("object", "never runs code"),
        ("pickle", "not a file that torch.save wrote"),
        ("words", "model.pth"),
        ("alone", "tokenizer.json"),
    ],
)
def test_a_checkpoint_that_cannot_be_trusted_or_read_is_one_sentence(clone: Path, made: str, told: str) -> None:
    import pickle

    import torch

    place = clone / f"odd-{made}"
    place.mkdir()
    path = place / ("nowhere.pth" if made == "nothing" else "model.pth")
    if made == "pickle":
        path.write_bytes(pickle.dumps(Payload(str(place / "ran"))))
    elif made == "object":
        torch.save({"model_state_dict": {}, "config": Payload(str(place / "ran"))}, path)
    elif made == "words":
        path.write_text("not a checkpoint")
    elif made == "alone":
        shutil.copy(clone / "models/tiny/model.pth", path)
    done = shell(clone, f"python train_rlhf.py --model_path {path} --dataset starter --output odd")
    assert done.returncode == 1
    assert told in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (place / "ran").exists()


class Payload:
    """What a hostile checkpoint would do when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return (open, (self.path, "w"))


def test_the_page_names_every_file_of_the_folder_and_every_flag() -> None:
    listed = [path for path in (ROOT / "data/rlhf").rglob("*") if path.suffix in (".py", ".json", ".txt")]
    kept = [path for path in listed if path.parent.name != "user_collected" and "__pycache__" not in path.parts]
    assert [str(path) for path in kept if path.name not in PAGE and f"{path.parent.name}/" not in PAGE] == []
    flags = re.findall(r'_flag\("(\w+)"', (ROOT / "train_rlhf.py").read_text())
    assert len(flags) > 12
    assert [flag for flag in flags if f"`--{flag}`" not in PAGE] == []
