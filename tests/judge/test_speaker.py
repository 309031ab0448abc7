"""Who speaks for a judge: mistakes are told at the door, torch waits for the first chat."""

from __future__ import annotations

import inspect
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.invariants.test_imports import HEAVY
from tests.models.tiny import ENCODERS, causal
from tiebreak.judge.local import Local
from tiebreak.judge.speaker import LOCAL, SERVED, WHO, speaker
from tiebreak.models.load import build_encoder, save_model, to_reward
from tiebreak.models.maker import maker_of
from tiebreak.records import InputError

URL = "http://localhost:8000/v1"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of a language model, a reward model and an encoder."""
    where, loaded = tmp_path_factory.mktemp("models"), causal("llama")
    save_model(loaded.model, loaded.tokenizer, where / "sft" / "model")
    save_model(to_reward(loaded.model, loaded.tokenizer, seed=1), loaded.tokenizer, where / "reward")
    encoder = build_encoder({"model_type": "bert", **ENCODERS["bert"]}, loaded.tokenizer, seed=1)
    save_model(encoder.model, encoder.tokenizer, where / "encoder")
    return where


def test_the_knobs_are_those_of_the_function() -> None:
    parameters = inspect.signature(speaker).parameters
    assert {name: parameter.default for name, parameter in parameters.items()} == WHO
    assert {*SERVED, *LOCAL} == set(WHO) - {"endpoint", "model", "revision"}


def test_a_server_speaks_where_there_is_an_address() -> None:
    served = speaker(endpoint=URL, model="m", key_env=None, retries=2)
    assert served.by == "model:m@localhost"
    assert served.client is not None
    assert served.client.model == "m"
    assert speaker(endpoint=URL, model="m", revision="7").by == "model:m@7"


def test_a_folder_speaks_for_itself_under_the_hash_of_its_content(models: Path) -> None:
    folder = models / "sft" / "model"
    local = speaker(model=str(folder), batch=3, window=99)
    assert isinstance(local, Local)
    assert (local.client, local.batch, local.window, local.device) == (None, 3, 99, "cpu")
    assert local.by == f"model:{maker_of('sft', folder)}"
    assert local.by.startswith("model:sft@")


def test_without_a_model_nobody_speaks() -> None:
    for who in ({}, {"endpoint": URL}):
        with pytest.raises(InputError, match="there is no model"):
            speaker(**who)


@pytest.mark.parametrize(
    ("name", "value"),
    {
        "price_in": 1.0,
        "price_out": 2.0,
        "rpm": 60,
        "tpm": 1000,
        "timeout": 5.0,
        "retries": 0,
        "key_env": "OTHER_KEY",
        "device": "cuda",
        "batch": 32,
        "window": 512,
    }.items(),
)
def test_a_knob_that_would_do_nothing_is_refused(name: str, value: Any, models: Path) -> None:
    who = {"model": str(models / "sft" / "model")} if name in SERVED else {"endpoint": URL, "model": "m"}
    with pytest.raises(InputError, match=f"{name} does nothing for"):
        speaker(**who, **{name: value})


@pytest.mark.parametrize("name", ["batch", "window"])
def test_there_is_room_for_something(name: str, models: Path) -> None:
    with pytest.raises(InputError, match=f"{name} is 0; expected 1 or more"):
        speaker(model=str(models / "sft" / "model"), **{name: 0})


def test_a_folder_that_cannot_chat_is_refused_at_the_door(models: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("[1", encoding="utf-8")
    (tmp_path / "file").write_text("", encoding="utf-8")
    for folder, said in {
        models / "reward": "is a reward model, which has no words to give; by=reward",
        models / "encoder": "is a reward model",
        tmp_path / "empty": "has no config.json",
        tmp_path / "adapter": "merge the adapter into its base",
        tmp_path / "broken": "is no configuration of a model",
        tmp_path / "file": "there is no model folder",
        tmp_path / "nothing": "there is no model folder",
        Path("runs/absent/model"): "there is no model folder",
    }.items():
        with pytest.raises(InputError, match=said):
            speaker(model=str(folder))


def test_a_masked_language_model_is_an_encoder(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "encoder", tmp_path / "masked")
    config = json.loads((tmp_path / "masked" / "config.json").read_text(encoding="utf-8"))
    config["architectures"] = ["BertForMaskedLM"]
    (tmp_path / "masked" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(InputError, match="BertForMaskedLM\\) is an encoder"):
        speaker(model=str(tmp_path / "masked"))


def test_a_folder_has_no_revision(models: Path) -> None:
    with pytest.raises(InputError, match="is a folder, which has none"):
        speaker(model=str(models / "sft" / "model"), revision="main")


def test_a_hub_name_is_not_looked_up_before_it_speaks() -> None:
    assert isinstance(speaker(model="somebody/some-model", revision="main"), Local)


def test_torch_waits_for_the_first_chat(models: Path) -> None:
    code = (
        "import sys\n"
        "from tiebreak.judge.speaker import speaker\n"
        f"local = speaker(model={str(models / 'sft' / 'model')!r})\n"
        "assert local.by.startswith('model:sft@')\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()).isdisjoint(HEAVY)
