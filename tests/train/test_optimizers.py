"""Optimizers: what is decayed, what a resumed run gets back, and what half precision loses without master copies."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Trainer

from tests.models.tiny import RUNS, causal
from tests.train.made import start, weights
from tiebreak.records import InputError
from tiebreak.train import checkpoint
from tiebreak.train.optimizers import OPTIMIZERS, Ema, Master, Plain, make_optimizer, parameter_groups

HERE = ("adamw", "adafactor", "sgd")
"""The optimizers that run on any machine."""
RATE: dict[str, Any] = {"learning_rate": 1e-2, "weight_decay": 0.1}


class Toy(torch.nn.Module):
    """An embedding, a matrix with its bias, a norm, and a matrix that is not trained."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.table = torch.nn.Embedding(5, 4)
        self.map = torch.nn.Linear(4, 3)
        self.norm = torch.nn.LayerNorm(3)
        self.frozen = torch.nn.Linear(3, 2).requires_grad_(False)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=draw))
        self.to(dtype)


def learn(model: torch.nn.Module, optimizer: Any, steps: int, *, seed: int = 0) -> None:
    """Steps from gradients that depend on the seed and the step alone."""
    for step in range(steps):
        draw = torch.Generator().manual_seed(1000 * seed + step)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.randn(parameter.shape, generator=draw).to(parameter.dtype)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def through_a_file(optimizer: Any, path: Path) -> dict[str, Any]:
    """The state as a checkpoint keeps it."""
    state = optimizer.state_dict()["state"]
    save_file({f"{n}.{name}": value.clone() for n, values in state.items() for name, value in values.items()}, path)
    read: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in load_file(path).items():
        number, name = key.split(".", 1)
        read.setdefault(int(number), {})[name] = value
    return {"state": read, "param_groups": optimizer.state_dict()["param_groups"]}


def test_the_table_is_listed_without_torch() -> None:
    code = (
        "import sys; from tiebreak.train.optimizers import OPTIMIZERS; print(len(OPTIMIZERS), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["5", "False"]


def test_an_unknown_name_knob_or_value_is_refused() -> None:
    for name, knobs, said in (
        ("adamm", {}, r"no optimizer called 'adamm'.*Did you mean 'adamw'"),
        ("adamw", {"beta3": 0.9}, r"no knob 'beta3'"),
        ("adamw", {"beta1": 1.5}, r"'adamw' cannot be set up so: Invalid beta"),
    ):
        with pytest.raises(InputError, match=said):
            make_optimizer(Toy(), name, knobs, **RATE)
    with pytest.raises(InputError, match="No weight of the model is trained"):
        make_optimizer(Toy().requires_grad_(False), "adamw", {}, **RATE)


def signs(groups: list[dict[str, Any]], *, learning_rate: float, weight_decay: float, scale: float = 1.0) -> Any:
    """An optimizer of one's own."""
    return torch.optim.Rprop(groups, lr=learning_rate * scale)


def test_ones_own_optimizer_is_named_in_place() -> None:
    optimizer = make_optimizer(Toy(), "tests.train.test_optimizers:signs", {"scale": 2.0}, **RATE)
    assert optimizer.param_groups[0]["lr"] == 2e-2


@pytest.mark.parametrize("master", [False, True])
@pytest.mark.parametrize("name", HERE)
def test_weight_decay_does_not_touch_biases_norms_and_frozen_weights(name: str, master: bool) -> None:
    model = Toy(torch.bfloat16 if master else torch.float32)
    before = copy.deepcopy(model.state_dict())
    optimizer = make_optimizer(model, name, {}, learning_rate=0.1, weight_decay=0.5, master=master)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    for key, value in model.state_dict().items():
        if key in ("table.weight", "map.weight"):
            torch.testing.assert_close(value, (before[key].float() * 0.95).to(value.dtype))
        else:
            assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("kind", RUNS)
def test_what_is_decayed_is_what_the_trainer_of_transformers_decays(kind: str) -> None:
    model = causal(kind).model
    theirs = set(Trainer.get_decay_parameter_names(None, model))
    decayed = {id(p) for group in parameter_groups(model, 0.1) if group["weight_decay"] for p in group["params"]}
    assert {name for name, p in model.named_parameters() if id(p) in decayed} == {
        name for name, _ in model.named_parameters() if name in theirs
    }


def test_adamw_is_fused_where_the_device_has_it() -> None:
    for device, fused in (("cpu", True), ("meta", False)):
        optimizer = make_optimizer(Toy().to(device), "adamw", {}, **RATE)
        assert {(g["fused"], g["foreach"]) for g in optimizer.param_groups} == {(fused, not fused)}


def test_adamw_is_the_one_of_torch() -> None:
    ours, theirs = Toy(), Toy()
    knobs = {"beta1": 0.8, "beta2": 0.95, "epsilon": 1e-6}
    learn(ours, make_optimizer(ours, "adamw", knobs, learning_rate=1e-2, weight_decay=0.0), 5)
    trained = [p for p in theirs.parameters() if p.requires_grad]
    learn(theirs, torch.optim.AdamW(trained, lr=1e-2, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.0), 5)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", HERE)
def test_the_learning_rate_is_set_through_the_groups(name: str) -> None:
    for master in (False, True):
        model = Toy(torch.bfloat16)
        optimizer = make_optimizer(model, name, {}, **RATE, master=master)
        before = copy.deepcopy(model.state_dict())
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        learn(model, optimizer, 2)
        torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("master", [False, True])
@pytest.mark.parametrize("name", [*HERE, "sgd with momentum"])
def test_a_resumed_optimizer_goes_on_bit_for_bit(name: str, master: bool, dtype: torch.dtype, tmp_path: Path) -> None:
    knobs = {"momentum": 0.9} if "momentum" in name else {}
    calm, again = Toy(dtype), Toy(dtype)
    first = make_optimizer(calm, name.split()[0], knobs, **RATE, master=master)
    learn(calm, first, 3)
    again.load_state_dict(calm.state_dict())
    second = make_optimizer(again, name.split()[0], knobs, **RATE, master=master)
    second.load_state_dict(through_a_file(first, tmp_path / "a"))
    learn(calm, first, 3, seed=1)
    learn(again, second, 3, seed=1)
    torch.testing.assert_close(again.state_dict(), calm.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(
        through_a_file(second, tmp_path / "b")["state"], through_a_file(first, tmp_path / "c")["state"], rtol=0, atol=0
    )


def test_a_checkpoint_holds_master_copies_and_gives_them_back(tmp_path: Path) -> None:
    calm, again = (start("sft").to(torch.bfloat16) for _ in range(2))
    first, second = (make_optimizer(model, "adamw", {}, **RATE, master=True) for model in (calm, again))
    learn(calm, first, 2)
    checkpoint.save(tmp_path / "checkpoint", calm, first, {"step": 2})
    assert checkpoint.load(tmp_path / "checkpoint", again, second) == {"step": 2}
    learn(calm, first, 2, seed=1)
    learn(again, second, 2, seed=1)
    assert torch.equal(weights(again), weights(calm))
    copies = [values["master"] for values in second.state_dict()["state"].values()]
    assert all(value.dtype == torch.float32 for value in copies)
    assert any(not torch.equal(value, value.bfloat16().float()) for value in copies)


def test_a_state_without_master_copies_is_refused() -> None:
    model = Toy(torch.bfloat16)
    plain = make_optimizer(model, "adamw", {}, **RATE)
    learn(model, plain, 1)
    with pytest.raises(InputError, match="0 fp32 master copies and 5 weights need one"):
        make_optimizer(model, "adamw", {}, **RATE, master=True).load_state_dict(plain.state_dict())


def test_updates_too_small_for_bfloat16_add_up_in_the_master_copies() -> None:
    """1.0 plus 100 updates of 1e-4 is 1.01; next to 1.0 bfloat16 has only 1.0078, so alone it stays where it is."""
    ends = {}
    for master in (False, True):
        model = torch.nn.Linear(1, 1, bias=False).to(torch.bfloat16)
        torch.nn.init.ones_(model.weight)
        optimizer = make_optimizer(model, "sgd", {}, learning_rate=1e-4, weight_decay=0.0, master=master)
        for _ in range(100):
            model.weight.grad = -torch.ones_like(model.weight)
            optimizer.step()
        ends[master] = model.weight.item()
    assert ends[False] == 1.0
    assert ends[True] == torch.tensor(1.01).bfloat16().item() == 1.0078125
    assert optimizer.state_dict()["state"][0]["master"].item() == pytest.approx(1.01, abs=1e-5)


def test_master_copies_follow_fp32_within_the_rounding_of_bfloat16() -> None:
    half = Toy(torch.bfloat16)
    whole = Toy()
    whole.load_state_dict(half.state_dict())
    optimizers = [
        make_optimizer(m, "adamw", {}, learning_rate=1e-3, weight_decay=0.1, master=True) for m in (half, whole)
    ]
    for step in range(50):
        draw = torch.Generator().manual_seed(step)
        for narrow, wide in zip(half.parameters(), whole.parameters(), strict=True):
            if narrow.requires_grad:
                narrow.grad = torch.randn(narrow.shape, generator=draw).bfloat16()
                wide.grad = narrow.grad.float()
        for optimizer in optimizers:
            optimizer.step()
    for narrow, wide in zip(half.parameters(), whole.parameters(), strict=True):
        assert torch.equal(narrow, wide.bfloat16())
    assert all("master" not in values for values in optimizers[1].state_dict()["state"].values())


def test_a_weight_without_a_gradient_is_left_alone() -> None:
    model = Toy(torch.bfloat16)
    optimizer = make_optimizer(model, "adamw", {}, learning_rate=0.5, weight_decay=0.5, master=True)
    before = copy.deepcopy(model.state_dict())
    model.map.weight.grad = torch.ones_like(model.map.weight)
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    assert not model.map.weight.grad.any()
    assert [k for k, v in model.state_dict().items() if not torch.equal(v, before[k])] == ["map.weight"]


@pytest.mark.parametrize("name", ["adamw_8bit", "paged_adamw_8bit"])
def test_8_bits_say_in_one_sentence_what_is_missing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=rf"^'{name}' needs .* CUDA .* on cpu; use adamw[^.]*\.$"):
        make_optimizer(Toy(), name, {}, **RATE)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    on_cuda = SimpleNamespace(device=torch.device("cuda"))
    with pytest.raises(InputError, match=rf"^'{name}' needs bitsandbytes: pip install bitsandbytes;"):
        OPTIMIZERS[name].load()([{"params": [on_cuda]}], **RATE, **OPTIMIZERS[name].knobs)


class Nested(torch.optim.SGD):
    """Keeps its state as bitsandbytes does: a number that counts, moments of their own precision, one dict deeper."""

    def get_state_buffer(self, parameter: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return torch.zeros_like(parameter, dtype=dtype)

    def __init__(self, groups: Any, lr: float, betas: Any, eps: float, weight_decay: float) -> None:
        super().__init__(groups, lr=lr, weight_decay=weight_decay)

    def step(self) -> None:
        for parameter in (p for group in self.param_groups for p in group["params"]):
            state = self.state[parameter]
            if not state:
                state.update(step=0, state1=torch.zeros(parameter.shape, dtype=torch.uint8))
            state["step"] += 1
            state["state1"] += state["step"]

    def state_dict(self) -> dict[str, Any]:
        whole = super().state_dict()
        return {**whole, "state": {n: {"nested": values} for n, values in whole["state"].items()}}


def test_8_bit_moments_go_through_a_file_and_embeddings_keep_32(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    scripted = ModuleType("bitsandbytes.optim")
    scripted.AdamW8bit = scripted.PagedAdamW8bit = Nested  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bitsandbytes", ModuleType("bitsandbytes"))
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", scripted)
    monkeypatch.setattr(torch.Tensor, "device", SimpleNamespace(type="cuda"), raising=False)
    model = Toy()
    first = make_optimizer(model, "adamw_8bit", {}, **RATE)
    second = make_optimizer(model, "adamw_8bit", {}, **RATE)
    monkeypatch.undo()
    assert isinstance(first, Plain)
    first.step()
    first.step()
    second.load_state_dict(through_a_file(first, tmp_path / "a"))
    assert [value["step"] for value in second.inner.state.values()] == [2] * 5
    assert {type(value["step"]) for value in second.inner.state.values()} == {int}
    precision = {id(p): value["state1"].dtype for p, value in second.inner.state.items()}
    assert precision[id(model.table.weight)] == torch.float32
    assert precision[id(model.map.weight)] == torch.uint8
    for optimizer in (first, second):
        optimizer.step()
    states = [optimizer.state_dict()["state"] for optimizer in (first, second)]
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


def test_the_average_of_constant_weights_is_the_closed_form() -> None:
    model, decay, k = Toy(torch.bfloat16), 0.9, 20
    begin = {name: p.detach().float() for name, p in model.named_parameters()}
    ema = Ema(model, decay)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(2.0)
    for _ in range(k):
        ema.update(model)
    assert set(ema.state()) == {name for name, p in model.named_parameters() if p.requires_grad}
    for name, average in ema.state().items():
        assert average.dtype == torch.float32
        torch.testing.assert_close(average, 2.0 + (begin[name] - 2.0) * decay**k, rtol=1e-5, atol=1e-5)


def test_the_average_is_lent_and_the_weights_come_back_bit_for_bit() -> None:
    model = Toy(torch.bfloat16)
    ema = Ema(model, 0.5)
    learn(model, make_optimizer(model, "sgd", {}, learning_rate=1.0, weight_decay=0.0), 1)
    ema.update(model)
    with torch.no_grad():
        model.map.bias[0] = float("nan")
    own = {name: value.clone().view(torch.int16) for name, value in model.state_dict().items()}

    def lent() -> None:
        with ema.swapped(model):
            for name, parameter in model.named_parameters():
                if parameter.requires_grad:
                    assert torch.equal(parameter, ema.state()[name].bfloat16())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lent()
    for name, value in model.state_dict().items():
        assert torch.equal(value.view(torch.int16), own[name]), name


def test_the_average_goes_through_a_file_and_refuses_another_training(tmp_path: Path) -> None:
    model = Toy()
    first, second = Ema(model, 0.5), Ema(model, 0.5)
    learn(model, make_optimizer(model, "sgd", {}, learning_rate=1.0, weight_decay=0.0), 1)
    first.update(model)
    save_file(first.state(), tmp_path / "ema.safetensors")
    second.load(load_file(tmp_path / "ema.safetensors"))
    torch.testing.assert_close(second.state(), first.state(), rtol=0, atol=0)
    second.update(model)
    assert not torch.equal(second.state()["map.bias"], first.state()["map.bias"])
    with pytest.raises(InputError, match="other names or shapes"):
        second.load({**first.state(), "map.bias": torch.zeros(1)})
    with pytest.raises(InputError, match="decay of the moving average is 1"):
        Ema(model, 1.0)


def test_master_takes_the_inner_optimizer_as_a_function() -> None:
    model = Toy(torch.bfloat16)
    master = Master(parameter_groups(model, 0.0), lambda groups: torch.optim.SGD(groups, lr=1.0))
    learn(model, master, 1)
    assert [len(group["params"]) for group in master.param_groups] == [1, 1, 3]
