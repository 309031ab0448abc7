"""A .pth checkpoint comes in and goes out to the same numbers, runs no code, and says what is wrong with it."""

from __future__ import annotations

import importlib
import json
import math
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.test_headwise import described, logits, made, some_ids
from tests.models.tiny import TEXTS, causal, tokenizer
from tiebreak.models.adapters import Adapter, adapt
from tiebreak.models.encode import encode_completion, encode_tree
from tiebreak.models.hex_tokenizer import read_hex, train_hex, write_hex
from tiebreak.models.load import EOS, PAD, Loaded, load_causal, save_model, to_reward
from tiebreak.models.pth import convert, is_pth, read_pth, write_pth
from tiebreak.records import InputError, Prompt, Response
from tiebreak.train.objectives.presets import OBJECTIVES
from tiebreak.train.offline import Example, Pace, fit

ROWS, WIDTH, HEADS, SHARED, INNER, LAYERS = 300, 32, 4, 2, 256, 2
SIZES = {"n_embd": WIDTH, "n_head": HEADS, "n_layer": LAYERS, "block_size": 64, "n_kv_head": SHARED}
LEFT_OUT = object()


def weights(rows: int = ROWS) -> dict[str, Tensor]:
    """The weights of such a file by their own names, at random."""
    draw = torch.Generator().manual_seed(0)

    def new(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw) * 0.2 + (1.0 if len(shape) == 1 else 0.0)

    found = {"token_embedding.weight": new(rows, WIDTH), "norm.weight": new(WIDTH)}
    for block in (f"blocks.{i}." for i in range(LAYERS)):
        size = WIDTH // HEADS
        found |= {block + "attention_norm.weight": new(WIDTH), block + "ffn_norm.weight": new(WIDTH)}
        for name, many in (("q", HEADS), ("k", SHARED), ("v", SHARED), ("o", HEADS)):
            found[f"{block}attention.{name}_proj.weight"] = new(many * size, WIDTH)
        found |= {f"{block}attention.{name}_norm.weight": new(size) for name in "qk"}
        found |= {f"{block}feed_forward.{name}_proj.weight": new(INNER, WIDTH) for name in ("gate", "up", "expand")}
        found |= {f"{block}feed_forward.down_proj.weight": new(WIDTH, INNER), f"{block}feed_forward.alpha": new()}
    return found | {"lm_head.weight": found["token_embedding.weight"]}


def checkpoint(folder: Path, ids: int = ROWS, change: dict[str, Any] | None = None, **more: Any) -> Path:
    """A checkpoint as such a trainer leaves it, with a tokenizer of ``ids`` ids that has no EOS and no padding."""
    folder.mkdir(exist_ok=True)
    write_hex(train_hex(TEXTS * 4, vocabulary=ids), folder / "tokenizer.json")
    whole = json.loads((folder / "tokenizer.json").read_text())
    whole["vocab"] = {key: value for key, value in whole["vocab"].items() if int(key) < ids}
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    config = {**SIZES, "dropout": 0.1, "vocab_size": 50257, "attention_type": "gqa", "seed": 1337} | (change or {})
    config = {key: value for key, value in config.items() if value is not LEFT_OUT}
    kept = {"optimizer_state_dict": {"state": {0: {"exp_avg": torch.zeros(3)}}}, "step": 7, "best_loss": math.inf}
    torch.save({"model_state_dict": weights(), "config": config, **kept, **more}, folder / "model.pth")
    return folder / "model.pth"


def ours(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Their names as the reference computation takes them."""
    changes = {
        "token_embedding": "embed_tokens",
        "blocks": "layers",
        "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "attention.": "self_attn.",
        "feed_forward": "mlp",
    }
    named = {}
    for name, value in theirs.items():
        for old, new in changes.items():
            name = name.replace(old, new)
        named[name] = value
    return named


def same(first: Loaded, second: Loaded) -> bool:
    one, other = first.model.state_dict(), second.model.state_dict()
    equal = one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    return equal and first.tokenizer.get_vocab() == second.tokenizer.get_vocab()


def test_the_logits_of_a_checkpoint_are_those_of_its_description(tmp_path: Path) -> None:
    loaded, ids = read_pth(checkpoint(tmp_path, vocab_size=ROWS)), some_ids()
    expected = described(ours(weights()), ids, HEADS, SHARED)
    torch.testing.assert_close(logits(loaded.model, ids)[..., :ROWS], expected, atol=2e-5, rtol=0)
    assert loaded.model.config.max_position_embeddings == 64
    assert loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight
    assert all(weight.requires_grad and not weight.is_meta for weight in loaded.model.parameters())


@pytest.mark.parametrize("ids", [280, ROWS - 1, ROWS])
def test_end_and_padding_get_mean_rows_behind_the_tokenizers(ids: int, tmp_path: Path) -> None:
    """B9: neither is a byte. Rows that no id leads to stay where they are."""
    loaded, table = read_pth(checkpoint(tmp_path, ids)), weights()["token_embedding.weight"]
    rows = loaded.model.model.embed_tokens.weight.detach()
    assert (loaded.tokenizer.eos_token_id, loaded.tokenizer.pad_token_id) == (ids, ids + 1)
    assert (loaded.model.config.eos_token_id, loaded.model.config.pad_token_id) == (ids, ids + 1)
    assert loaded.model.generation_config.eos_token_id == ids
    assert len(rows) == loaded.model.config.vocab_size == max(ROWS, ids + 2)
    assert torch.equal(rows[:ids], table[:ids])
    assert torch.equal(rows[ids : ids + 2], table[:ids].mean(0).expand(2, -1))
    assert torch.equal(rows[ids + 2 :], table[ids + 2 :])
    answer = Response(prompt_id="x", text="The cat came back.")
    assert encode_completion(loaded.tokenizer, answer)[-1] == ids


@pytest.mark.parametrize("ids", [280, ROWS - 1, ROWS])
def test_what_is_written_is_read_back_to_the_bit(ids: int, tmp_path: Path) -> None:
    first = read_pth(checkpoint(tmp_path / "first", ids))
    write_pth(first, tmp_path / "second" / "model.pth")
    again = read_pth(tmp_path / "second" / "model.pth")
    assert same(first, again)
    assert again.model.config.to_dict() == first.model.config.to_dict()
    assert sorted(path.name for path in (tmp_path / "second").iterdir()) == ["model.pth", "tokenizer.json"]
    whole = torch.load(tmp_path / "second" / "model.pth", weights_only=True)
    held, theirs = whole["model_state_dict"], weights()
    assert held.keys() == theirs.keys()
    assert all(torch.equal(held[name], theirs[name]) for name in held if name.startswith(("blocks", "norm")))
    assert held["lm_head.weight"].data_ptr() == held["token_embedding.weight"].data_ptr()
    assert whole["config"]["vocab_size"] == whole["vocab_size"] == len(held["lm_head.weight"])
    assert SIZES.items() <= whole["config"].items()
    write_pth(again, tmp_path / "second" / "model.pth")
    assert same(first, read_pth(tmp_path / "second" / "model.pth"))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module."])
def test_what_training_puts_in_front_of_names_is_left_out(prefix: str, tmp_path: Path) -> None:
    named = OrderedDict((prefix + name, value) for name, value in weights().items())
    del named[prefix + "lm_head.weight"]  # it is the embedding
    assert same(read_pth(checkpoint(tmp_path, model_state_dict=named)), read_pth(checkpoint(tmp_path / "plain")))


def test_what_does_not_change_the_numbers_is_accepted(tmp_path: Path) -> None:
    plain = read_pth(checkpoint(tmp_path / "plain"))
    wide = {"attention_type": "swa", "sliding_window_size": 64, "head_dim": WIDTH // HEADS, "use_moe": False}
    few = {"attention_type": LEFT_OUT, "seed": LEFT_OUT, "position_encoding_type": "rope"}
    for name, change in (("wide", wide), ("few", few)):
        assert same(plain, read_pth(checkpoint(tmp_path / name, change=change, beta=0.1)))
    low = {name: value.to(torch.bfloat16) for name, value in weights().items()}
    low["blocks.0.feed_forward.alpha"] = low["blocks.0.feed_forward.alpha"][None]
    half = read_pth(checkpoint(tmp_path / "half", model_state_dict=low)).model
    assert {weight.dtype for weight in half.parameters()} == {torch.float32}
    for name, value in half.state_dict().items():
        torch.testing.assert_close(value, plain.model.state_dict()[name], atol=0.02, rtol=0)


def test_key_heads_that_are_not_given_are_a_quarter(tmp_path: Path) -> None:
    change = {"n_kv_head": None, "n_head": 8}
    theirs = weights()
    for name, value in theirs.items():
        if "attention.q_norm" in name or "attention.k_norm" in name:
            theirs[name] = value[:4]
        if "attention.k_proj" in name or "attention.v_proj" in name:
            theirs[name] = value[:8]
    loaded = read_pth(checkpoint(tmp_path, change=change, model_state_dict=theirs))
    assert loaded.model.config.num_key_value_heads == 2
    expected = described(ours(theirs), some_ids(), 8, 2)
    torch.testing.assert_close(logits(loaded.model, some_ids())[..., :ROWS], expected, atol=2e-5, rtol=0)


class Payload:
    """What a file can carry: unpickled plainly it would run a command."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.place}",)


def test_loading_never_runs_code_from_a_file(tmp_path: Path) -> None:
    """B15."""
    proof, path = tmp_path / "ran", checkpoint(tmp_path, optimizer_state_dict=Payload(tmp_path / "ran"))
    with pytest.raises(InputError, match=r"needs the object posix.system to load, and loading here never runs code"):
        read_pth(path)
    path.write_bytes(pickle.dumps({"config": Payload(proof)}))
    with pytest.raises(InputError, match="cannot be read"):
        read_pth(path)
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(InputError, match=r"needs the object torch.nn.modules.linear.Linear .* save .*plain tensors"):
        read_pth(path)
    assert not proof.exists()


@pytest.mark.parametrize("content", [b"", b"not a model", b"<html>404</html>", b"PK\x03\x04" + b"x" * 300, "half"])
def test_a_file_that_is_broken_is_said_to_be(content: Any, tmp_path: Path) -> None:
    path = checkpoint(tmp_path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content == "half" else content)
    with pytest.raises(InputError, match=rf"{path} cannot be read: it is cut off or not a file that torch.save wrote"):
        read_pth(path)


def test_a_file_that_is_not_there_is_said_not_to_be(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing.pth cannot be opened: No such file"):
        read_pth(tmp_path / "nothing.pth")
    with pytest.raises(InputError, match=r"cannot be opened: Is a directory"):
        read_pth(tmp_path)
    path = checkpoint(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"There is no tokenizer .*tokenizer.json"):
        read_pth(path)


def without(name: str) -> dict[str, Tensor]:
    return {key: value for key, value in weights().items() if key != name}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            {"model_state_dict": None},
            r"is not a checkpoint: expected .* found a dictionary with model_state_dict, config",
        ),
        ({"model_state_dict": {"a": 1}}, "is not a checkpoint"),
        ({"config": None}, "has no config, so the sizes"),
        ({"config": {}}, "has no n_embd; expected a whole number"),
        (
            {"model_state_dict": {"backbone.norm.weight": torch.ones(2)}},
            "is a reward model, which has no words to give",
        ),
        ({"model_state_dict": weights() | {"value_head.0.weight": torch.ones(2)}}, "is a reward model"),
        ({"model_state_dict": without("norm.weight")}, "has no weights norm.weight"),
        ({"model_state_dict": without("token_embedding.weight")}, "has no weights token_embedding.weight"),
        (
            {"model_state_dict": without("blocks.1.feed_forward.alpha")},
            r"has no weights blocks\.1\.feed_forward\.alpha",
        ),
        (
            {"model_state_dict": weights() | {"blocks.1.attention.k_proj.weight": torch.ones(32, 32)}},
            r"blocks\.1\.attention\.k_proj\.weight has the shape \(32, 32\) .* makes it \(16, 32\)",
        ),
        ({"model_state_dict": weights() | {"norm.weight": torch.ones(32).long()}}, r"norm.weight .* torch.int64"),
        ({"model_state_dict": weights() | {"position.weight": torch.ones(2)}}, r"has weights position\.weight, which"),
        ({"model_state_dict": weights() | {"lm_head.weight": torch.ones(ROWS, WIDTH)}}, "an lm_head that differs"),
        ({"vocab_size": ROWS + 1}, "has vocab_size 301, but 300 rows"),
    ],
)
def test_what_is_wrong_with_a_checkpoint_is_said_in_a_sentence(more: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = checkpoint(tmp_path, **more)
    with pytest.raises(InputError, match=said) as caught:
        read_pth(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"n_embd": 64}, r"token_embedding.weight has the shape \(300, 32\) .* makes it \(300, 64\)"),
        ({"n_embd": "32"}, "has n_embd: '32'; expected a whole number above 0"),
        ({"n_head": 0}, "has n_head: 0"),
        ({"n_head": 3}, "n_embd 32, n_head 3; expected heads of the even size"),
        ({"head_dim": 9}, "n_head 4 and head_dim 9; expected"),
        ({"n_kv_head": 3}, "does not add up: 4 heads cannot share 3 key heads evenly"),
        ({"n_kv_head": True}, "has n_kv_head: True"),
        ({"n_kv_head": 1}, r"blocks.0.attention.k_proj.weight has the shape \(16, 32\) .* makes it \(8, 32\)"),
        ({"n_layer": 3}, "has n_layer 3, but there are weights of 2 blocks"),
        ({"block_size": LEFT_OUT}, "has no block_size"),
        ({"attention_type": "mla"}, "has attention_type 'mla'; only gqa"),
        ({"attention_type": "swa", "sliding_window_size": 63}, "sliding_window_size 63, below its block_size 64"),
        ({"attention_type": "swa", "block_size": 8192}, "sliding_window_size 4096, below its block_size 8192"),
        ({"position_encoding_type": "cope"}, "has position_encoding_type 'cope'; only rope"),
        ({"use_moe": True}, "has use_moe"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_in_a_sentence(
    change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=said) as caught:
        read_pth(checkpoint(tmp_path, change=change))
    assert "\n" not in str(caught.value)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tokenizer.json has 310 ids, but model.pth has 300 rows"):
        read_pth(checkpoint(tmp_path, 310))
    path = checkpoint(tmp_path)
    tokenizer().backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(InputError, match="is a Hugging Face tokenizer, which goes with a model folder"):
        read_pth(path)


def test_a_converted_checkpoint_is_a_model_folder(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "theirs")
    convert(path, tmp_path / "folder")
    convert(path, tmp_path / "plain", plain=True)
    first, again, plain = read_pth(path), load_causal(tmp_path / "folder"), load_causal(tmp_path / "plain")
    assert same(first, again)
    assert plain.model.config.model_type == "qwen3"
    torch.testing.assert_close(logits(plain.model, some_ids()), logits(first.model, some_ids()), atol=2e-5, rtol=0)
    write_pth(again, tmp_path / "back" / "model.pth")
    assert same(first, read_pth(tmp_path / "back" / "model.pth"))
    convert(path, tmp_path / "folder")
    for folder in (tmp_path / "theirs", tmp_path, path, tmp_path / "back"):
        with pytest.raises(InputError, match="holds something else than a model; name a new one"):
            convert(path, folder)
    assert path.exists()


def test_a_folder_is_told_from_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "folder.pth").mkdir()
    assert is_pth("models/model.pth")
    assert is_pth(Path("MODEL.PTH"))
    assert not is_pth(tmp_path / "folder.pth")
    assert not is_pth("Qwen/Qwen3-8B")


def test_what_the_format_cannot_hold_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "model.pth"
    loaded = read_pth(checkpoint(tmp_path / "theirs"))
    reward = Loaded(to_reward(loaded.model, loaded.tokenizer, seed=0), loaded.tokenizer)
    for other, name in ((causal("llama"), "LlamaForCausalLM"), (reward, "HeadwiseForSequenceClassification")):
        with pytest.raises(InputError, match=f"{name} cannot be written as a .pth checkpoint"):
            write_pth(other, path)
    with pytest.raises(InputError, match="does more than merge the bytes"):
        write_pth(made(), path)
    adapt(loaded.model, Adapter(rank=2), seed=0)
    with pytest.raises(InputError, match="adapter has to be merged"):
        write_pth(loaded, path)
    assert not path.exists()
    assert not any((tmp_path / "new").glob("*"))


def test_another_checkpoints_tokenizer_is_not_overwritten(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "theirs")
    loaded, before = read_pth(path), (tmp_path / "theirs" / "tokenizer.json").read_bytes()
    with pytest.raises(InputError, match=r"tokenizer.json belongs to model.pth and differs .* a folder of its own"):
        write_pth(loaded, tmp_path / "theirs" / "trained.pth")
    assert (tmp_path / "theirs" / "tokenizer.json").read_bytes() == before
    assert sorted(found.name for found in (tmp_path / "theirs").iterdir()) == ["model.pth", "tokenizer.json"]
    write_pth(loaded, path)
    write_pth(loaded, tmp_path / "theirs" / "trained.pth")
    assert same(read_pth(path), read_pth(tmp_path / "theirs" / "trained.pth"))
    save_model(loaded.model, loaded.tokenizer, tmp_path / "folder")
    with pytest.raises(InputError, match="belongs to the model folder it is in"):
        write_pth(loaded, tmp_path / "folder" / "model.pth")


def test_it_learns_from_pairs_and_goes_back_as_a_checkpoint(tmp_path: Path) -> None:
    """B8: the first loss is ln 2, though the file says that dropout was 0.1."""
    loaded, losses = read_pth(checkpoint(tmp_path / "theirs")), []
    prompt = Prompt(text="The cat ")
    answers = [Response(prompt_id=prompt.id, text=text) for text in ("came back. 🐈", "left\thome.")]
    tree = encode_tree(loaded.tokenizer, prompt, answers, window=64)[0]
    assert tree is not None
    rows, how = [Example(tree)] * 4, {"seed": 0, "folder": tmp_path / "run"}
    heard = {"progress": lambda done, steps, numbers: losses.append(numbers["loss"])}
    fit(loaded.model, rows, OBJECTIVES["dpo"].knobs, Pace(batch=2, learning_rate=1e-3), **how, **heard)
    assert abs(losses[0] - math.log(2)) < 1e-6
    assert losses[1] < losses[0]
    write_pth(loaded, tmp_path / "trained" / "final_model.pth")
    again = read_pth(tmp_path / "trained" / "final_model.pth")
    assert same(loaded, again)
    assert [again.tokenizer.eos_token, again.tokenizer.pad_token] == [EOS, PAD]
    assert read_hex(tmp_path / "trained" / "tokenizer.json").ids == ROWS + 2


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "data" / "rlhf" / "examples")
    return importlib.import_module("create_tiny_model")


def test_the_tiny_model_is_made_the_same_every_time(
    script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        script.create(tmp_path / name, seed=seed, steps=2)
    first, again, other = (read_pth(tmp_path / name / "model.pth") for name in ("first", "again", "other"))
    assert same(first, again)
    assert not same(first, other)
    assert first.tokenizer.get_vocab() == other.tokenizer.get_vocab()
    said = capsys.readouterr()
    assert f"{tmp_path / 'first' / 'model.pth'} and tokenizer.json beside it: 802 ids" in said.out
    assert "Next: python " in said.out
    assert "2 steps" in said.err


def test_a_tiny_model_without_its_data_or_place_is_refused(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "taken.pth").touch()
    with pytest.raises(SystemExit, match=r"holds taken.pth, which belongs to another model; name a folder of its own"):
        script.create(tmp_path, seed=0, steps=2)
    monkeypatch.setattr(script, "DATA", tmp_path)
    with pytest.raises(SystemExit, match=r"The set 'starter' is missing"):
        script.create(tmp_path / "new", seed=0, steps=2)
    assert not (tmp_path / "new").exists()
