"""Budgets of tokens: found before the start, and named where a step ran out of memory, with nothing updated."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification

from tests.models.tiny import ids, tokenizer
from tests.train.made import start
from tiebreak.models.adapters import Adapter, adapt
from tiebreak.models.forest import Tree
from tiebreak.models.heap import keep_freed_memory
from tiebreak.models.load import build_causal
from tiebreak.records import InputError
from tiebreak.train import memory
from tiebreak.train.learner import Learner
from tiebreak.train.memory import available, find_tokens, is_out_of_memory, largest_fit, out_of_memory
from tiebreak.train.objectives.presets import OFFLINE
from tiebreak.train.objectives.switches import objective
from tiebreak.train.offline import Pace, settle
from tiebreak.train.rows import Example
from tiebreak.train.update import PRECISIONS, Compute

LINUX = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"
)
WORDS = len(tokenizer())
SIZES: dict[str, dict[str, Any]] = {
    "llama": {
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
    },
    "gpt2": {"n_embd": 64, "n_layer": 6, "n_head": 4, "n_positions": 512},
}


def rows(count: int, trunk: int, branch: int, *, sides: int = 2, more: int = 0) -> list[Example]:
    """Rows of trunk + sides x branch tokens, each ``more`` tokens longer than the one before."""
    draw = random.Random(0)
    return [
        Example(Tree(ids(draw, trunk + more * i), tuple(ids(draw, branch) for _ in range(sides)))) for i in range(count)
    ]


def learner(
    model: Any = None, method: str = "dpo", *, batch: int = 4, optimizer: str = "adamw", **more: Any
) -> Learner:
    knobs = settle(objective, OFFLINE[method].knobs)
    pace = Pace(batch=batch, learning_rate=1e-3)
    return Learner(start(method) if model is None else model, knobs, pace, Compute(**more), optimizer=optimizer)


def built(kind: str, **more: Any) -> Any:
    return build_causal({"model_type": kind, **SIZES[kind], **more}, tokenizer(), seed=0).model


def kept(taught: Learner, some: Sequence[Example]) -> int:
    """Return the bytes that a forward pass leaves for the backward pass: unique storages, those of weights apart."""
    weights = {weight.untyped_storage().data_ptr() for weight in taught.model.parameters()}
    found: dict[int, int] = {}
    alive: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with taught.ready():
        taught.values(some)  # what is tried once per model is not part of a step
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            taught._look(some, taught.model, ())
    return sum(found.values())


def test_a_forecast_loads_no_torch() -> None:
    code = "import sys, tiebreak.train.memory; sys.stdout.write(' '.join(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"torch", "transformers"}.isdisjoint(loaded)


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (torch.OutOfMemoryError("no room"), True),
        (RuntimeError(f"{LINUX} 4800000 bytes. Error code 12 (Cannot allocate memory)"), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4800000 bytes."), True),
        (RuntimeError("std::bad_alloc"), True),
        (MemoryError(), True),
        (OSError(12, "Cannot allocate memory"), True),
        (OSError(28, "No space left on device"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (InputError("The loss at step 4 is nan"), False),
        (KeyboardInterrupt(), False),
    ],
    ids=repr,
)
def test_a_lack_of_memory_is_told_from_other_errors(error: BaseException, is_one: bool) -> None:
    assert is_out_of_memory(error) is is_one


class Bounded(Learner):
    """A learner on a device with memory for forests of so many tokens."""

    limit = 10**9
    seen: weakref.ref[Tensor] | None = None

    def _look(self, rows: Sequence[Example], model: Any, readings: Sequence[str] = ()) -> Tensor:
        size = sum(row.tree.size for row in rows)
        if size > self.limit and torch.is_grad_enabled():
            activations = torch.zeros(size)
            self.seen = weakref.ref(activations)
            raise RuntimeError(f"{LINUX} {size} bytes. Error code 12 (Cannot allocate memory)")
        return super()._look(rows, model, readings)


def bounded(limit: int, model: Any = None, *, batch: int = 4, **more: Any) -> Bounded:
    knobs = settle(objective, OFFLINE["dpo"].knobs)
    pace = Pace(batch=batch, learning_rate=1e-3)
    found = Bounded(start("dpo") if model is None else model, knobs, pace, Compute(**more))
    found.limit = limit
    return found


@pytest.mark.parametrize("limit", [34, 35, 36, 50, 67, 101, 102, 103, 117])
def test_the_planted_limit_is_found_to_the_token(limit: int) -> None:
    taught = bounded(limit, batch=4, tokens=60, checkpointing=limit % 2 == 0)
    asked = taught.compute
    assert largest_fit(taught, rows(6, 9, 10, more=1)) == limit
    assert taught.compute is asked


def test_the_search_ends_at_the_largest_batch_and_below_the_largest_row() -> None:
    some = rows(6, 9, 10, more=1)
    assert largest_fit(bounded(10**6, batch=4), some) == 34 + 33 + 32 + 31
    assert largest_fit(bounded(33), some) is None
    assert largest_fit(bounded(100), some, most=90) == 90
    assert largest_fit(bounded(100), some, most=30) is None
    assert 80 < (largest_fit(bounded(100), some, grain=16) or 0) <= 100


def test_a_forest_to_try_has_exactly_its_size() -> None:
    for size in range(34, 140):
        some = memory._of_size(rows(4, 9, 10, more=1), size)
        assert sum(row.tree.size for row in some) == size
        assert all(len(row.tree.branches) == 2 and all(row.tree.branches) and row.tree.trunk for row in some)


def everything(taught: Learner) -> list[Tensor]:
    state = taught.optimizer.state_dict()["state"]
    moments = [value for values in state.values() for value in values.values()]
    return [value.clone() for value in (*taught.model.parameters(), *moments, torch.get_rng_state())]


@pytest.mark.parametrize("precision", list(PRECISIONS))
@pytest.mark.parametrize("inside", [True, False])
def test_the_search_updates_nothing(precision: str, inside: bool) -> None:
    some, calm, searched = rows(4, 9, 10), bounded(80, precision=precision), bounded(80, precision=precision)
    for taught in (calm, searched):
        taught.compute = Compute(precision=precision, tokens=60)
        with taught.ready():
            taught.step(some, 0, 4)
    before = everything(searched)
    if inside:
        with searched.ready():
            assert largest_fit(searched, some) == 80
            assert searched.model.training
    else:
        assert largest_fit(searched, some) == 80
        assert not searched.model.training
    assert all(torch.equal(a, b) for a, b in zip(before, everything(searched), strict=True))
    assert all(weight.grad is None for weight in searched.model.parameters())
    for taught in (calm, searched):
        with taught.ready():
            taught.step(some, 1, 4)
    assert all(torch.equal(a, b) for a, b in zip(everything(calm), everything(searched), strict=True))


def failing(taught: Bounded, some: Sequence[Example], data: Sequence[Example] | None = None) -> tuple[str, Any]:
    with taught.ready():
        try:
            taught.step(some, 0, 4)
        except RuntimeError as error:
            said = str(out_of_memory(taught, some, error, data=data))
            return said, error
    raise AssertionError("the step should have failed")


def test_the_sentence_names_a_budget_that_fits_and_frees_the_failed_step() -> None:
    some = rows(6, 9, 10)
    taught = bounded(120)
    said, error = failing(taught, some)
    assert said == (
        "A forest of 174 tokens does not fit into the memory, and the largest that does has 119; set tokens: 112, the "
        "result stays the same. The last checkpoint is kept."
    )
    assert error.__traceback__ is not None
    assert taught.seen is not None
    assert taught.seen() is None
    budget = int(re.search(r"tokens: (\d+)", said)[1])  # type: ignore[index]
    taught.compute = Compute(tokens=budget)
    with taught.ready():
        assert taught.step(some, 0, 4).tokens == 174


def test_the_budget_holds_the_largest_row_of_all_data() -> None:
    said, _ = failing(bounded(60), rows(4, 9, 10), [*rows(4, 9, 10), *rows(1, 38, 10)])
    assert "has 60; set tokens: 58," in said
    said, _ = failing(bounded(60), rows(4, 9, 10), [*rows(4, 9, 10), *rows(1, 48, 10)])
    assert said == (
        "Not even one row fits into the memory: the largest has 68 tokens; set checkpointing: true, or set precision: "
        "bfloat16, or train an adapter, or lower window. The last checkpoint is kept."
    )


def test_cures_in_use_are_not_named() -> None:
    model = adapt(start("dpo"), Adapter(rank=2), seed=0)
    said, _ = failing(bounded(5, model, checkpointing=True, precision="bfloat16"), rows(4, 9, 10))
    assert "tokens; lower window." in said


def test_what_is_no_lack_of_memory_passes_through() -> None:
    taught = learner()
    taught.loss = lambda *_, **__: 1 / 0
    with pytest.raises(ZeroDivisionError):
        largest_fit(taught, rows(4, 9, 10))
    assert taught.compute == Compute()


@pytest.mark.parametrize("method", ["dpo", "bradley_terry"])
@pytest.mark.parametrize("optimizer", ["adamw", "adafactor", "sgd"])
def test_on_a_processor_the_estimate_decides(method: str, optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    some, taught = rows(40, 200, 60), learner(None, method, batch=30, optimizer=optimizer)
    need = memory._needed(taught, some)
    for free in (10e6, 30e6, 50e6):
        monkeypatch.setattr(memory, "available", lambda free=free: free)
        found = find_tokens(taught, some, room=0.8)
        assert found % 256 == 0
        assert memory.HEAP * need(found) <= 0.8 * free < memory.HEAP * need(found + 256)
    monkeypatch.setattr(memory, "available", lambda: 1000)
    assert find_tokens(taught, some) == 320
    monkeypatch.setattr(memory, "available", lambda: 10**12)
    assert find_tokens(taught, some) == 9728  # 30 rows of 320 tokens, up to a multiple of 256
    monkeypatch.setattr(memory, "available", lambda: None)
    with pytest.raises(InputError, match="give tokens as a number"):
        find_tokens(taught, some)


def encoder_of(kind: str) -> Any:
    sizes = {name: size for name, size in SIZES["llama"].items() if "key_value" not in name}
    config = AutoConfig.for_model(kind, **sizes, vocab_size=WORDS, num_labels=1)
    return AutoModelForSequenceClassification.from_config(config)


def test_rows_of_any_length_are_kept_room_for() -> None:
    """Short rows are padded inside attention, and an encoder reads each branch behind its own prompt."""
    taught, encoder = learner(built("llama")), learner(encoder_of("bert"), "bradley_terry")
    for trained, some in ((taught, rows(6, 4, 10, more=20)), (encoder, rows(6, 40, 10, more=5))):
        need = memory._needed(trained, some)
        measured = kept(trained, some)
        assert measured < need(sum(row.tree.size for row in some)) - need(0) < 1.8 * measured


def test_by_trying_a_multiple_is_kept_free() -> None:
    some = rows(12, 150, 60)
    assert 1000 - memory.GRAIN < memory._by_trying(bounded(1000), some, 2000, 0.9) <= 1000
    with pytest.raises(InputError, match=r"largest has 270 tokens.*lower window\.$"):
        memory._by_trying(bounded(200), some, 2000, 0.9)


@pytest.mark.parametrize("precision", list(PRECISIONS))
def test_what_is_there_already_is_not_counted_twice(precision: str) -> None:
    some, taught = rows(4, 200, 60), learner(precision=precision)
    size = sum(weight.numel() for weight in taught.trained)
    before = memory._needed(taught, some)(2000)
    with taught.ready():
        taught.step(some, 0, 4)
    steps = 4 * len(taught.trained)  # AdamW counts the steps of each weight
    assert before - memory._needed(taught, some)(2000) == 8 * size + steps


def test_free_memory_is_the_least_of_machine_and_control_groups(tmp_path: Path) -> None:
    def write(files: dict[str, str]) -> Path:
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return tmp_path

    meminfo = "MemTotal:       2000000 kB\nMemFree:         100000 kB\nMemAvailable:    1000000 kB\n"
    assert available(write({"proc/meminfo": meminfo, "proc/self/cgroup": ""})) == 1_024_000_000
    second = {"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "max\n"}
    second |= {"sys/fs/cgroup/a/b/memory.current": "5\n", "sys/fs/cgroup/a/memory.max": "900000\n"}
    second |= {"sys/fs/cgroup/a/memory.current": "300000\n", "sys/fs/cgroup/a/memory.stat": "inactive_file 50000\n"}
    assert available(write(second)) == 650_000
    first = {"proc/self/cgroup": "4:cpu,memory:/x\n1:cpu:/\n0::/\n"}
    first |= {
        "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "9000",
        "sys/fs/cgroup/memory/x/memory.usage_in_bytes": "10000",
    }
    assert available(write(first)) == 0
    assert available() is not None


def in_a_process(*words: object) -> dict[str, Any]:
    run = [sys.executable, "-m", "tests.train.test_memory", *map(str, words)]
    done = subprocess.run(run, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads and bounds address space as Linux does")
def test_where_a_step_really_runs_out_of_memory_the_budget_it_names_passes() -> None:
    done = in_a_process(0)
    assert "alloc" in done["error"]
    for _ in range(2):  # address space is cut up a little differently in each process, so a second word may be needed
        budget = int(re.search(r"set tokens: (\d+)", done["said"])[1])  # type: ignore[index]
        assert 300 <= budget < 3600
        done = in_a_process(budget)
        if "error" not in done:
            break
    assert done == {"steps": 3}
    assert in_a_process(-1)["steps"] == 3


def train_in_little_memory(tokens: int) -> dict[str, Any]:
    """Take three steps with a budget of tokens (0: none, below 0: the one that is found) and 96 MiB to take them in."""
    import resource

    sizes = {**SIZES["llama"], "hidden_size": 128, "intermediate_size": 384}
    some = rows(12, 180, 60)
    assert keep_freed_memory()  # as a training does
    warm = learner(built("llama"))
    with warm.ready():
        warm.step(some[:1], 0, 3)
    model = build_causal({"model_type": "llama", **sizes}, tokenizer(), seed=0).model
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 96 * 2**20, resource.RLIM_INFINITY))
    taught = learner(model, batch=12, tokens=tokens if tokens > 0 else None)
    if tokens < 0:
        taught.compute = Compute(tokens=find_tokens(taught, some))
    with taught.ready():
        for step in range(3):
            try:
                taught.step(some, step, 3)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                return {"error": str(error), "said": str(out_of_memory(taught, some, error))}
    return {"steps": 3}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(train_in_little_memory(int(sys.argv[1]))))
