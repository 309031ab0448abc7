"""What a step takes of memory, found by trying: the budget of tokens that fits, before the start and after a failure.

A forest's tokens are the one knob that trades memory for passes and leaves the result as it is, so everything here
speaks of it. What a configuration alone tells is in :mod:`tiebreak.train.footprint`. torch is imported inside the
functions, so that a forecast can read this module anywhere.
"""

from __future__ import annotations

import errno
import gc
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tiebreak.records import InputError
from tiebreak.train.footprint import MOMENTS, Laid, Memory, estimate, memory_of, sized
from tiebreak.train.pack import fill

if TYPE_CHECKING:
    from tiebreak.train.learner import Learner
    from tiebreak.train.rows import Example

__all__ = ["Memory", "available", "estimate", "find_tokens", "is_out_of_memory", "largest_fit", "out_of_memory"]

GRAIN = 256
"""Multiple that a budget found before the start is rounded to, in tokens."""

HEAP = 1.5
"""Bytes that a processor's heap takes for one in use, freed pieces lying between others; measured at up to 1.4."""

SAID = ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory", "bad_alloc")
"""What torch's allocators say, in small letters: CUDA and MPS, Linux, Windows and macOS, the system, C++."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory could not be had, on a device or on the host."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, RuntimeError):
        from torch import OutOfMemoryError

        return isinstance(error, OutOfMemoryError) or any(words in str(error).lower() for words in SAID)
    return isinstance(error, MemoryError)


def out_of_memory(
    learner: Learner, rows: Sequence[Example], error: BaseException, *, data: Sequence[Example] | None = None
) -> InputError:
    """Return the sentence for a step that ran out of memory: which budget of tokens fits, or what else helps.

    A sixteenth of what fits is left for memory that lies in pieces. What ``error`` holds of the failed step is freed.

    Args:
        learner: inside or outside :meth:`~tiebreak.train.learner.Learner.ready`.
        rows: the batch of the step.
        error: what :func:`is_out_of_memory` is true of.
        data: all rows of the training, for the budget has to hold the largest of them; ``rows`` when missing.
    """
    _let_go(error)
    failed = max(sum(rows[i].tree.size for i in part) for part in _packed(rows, learner.compute.tokens))
    every = data or rows
    fit = largest_fit(learner, every, most=failed - 1, grain=max(1, failed // 64))
    if fit is None:
        return InputError(f"{_too_large(learner, every)} The last checkpoint is kept.")
    budget = max(_most(every), fit - fit // 16)
    return InputError(
        f"A forest of {failed} tokens does not fit into the memory, and the largest that does has {fit}; set tokens: "
        f"{budget}, the result stays the same. The last checkpoint is kept."
    )


def largest_fit(
    learner: Learner, rows: Sequence[Example], *, most: int | None = None, grain: int = 1, spare: int = 0
) -> int | None:
    """Return the largest token budget with which forward and backward pass, None if not even the largest row does.

    Found by bisection over forests of the largest rows, the last of them cut, beside the memory that gradients and
    moments will take. Nothing is updated: gradients are dropped, and weights, moments and random numbers stay.

    Args:
        learner: computes from its current weights; its ``compute`` is as before afterwards.
        rows: of the training.
        most: budget to look up to, in tokens; the largest batch when missing.
        grain: how far below the largest the answer may lie, in tokens.
        spare: bytes to leave free.
    """
    import torch

    compute, moments = learner.compute, _moments(learner)
    beside = round(max(0, moments.whole - moments.taken)) + spare
    most = _largest_batch(learner, rows) if most is None else most
    learner.compute = replace(compute, tokens=None)
    try:
        with _ready(learner), torch.random.fork_rng(range(torch.cuda.device_count())):
            _drop(learner)
            return _largest(lambda size: _passes(learner, _of_size(rows, size), beside), _most(rows), most, grain)
    finally:
        _drop(learner)
        learner.compute = compute


def find_tokens(learner: Learner, rows: Sequence[Example], *, room: float = 0.9) -> int:
    """Return the token budget for ``tokens: auto``, before the first step; never below the largest row.

    A processor's memory is promised before it is there, so trying could end the process: the estimate decides. Any
    other device is tried. The budget is a multiple of 256 unless the largest row is larger.

    Args:
        learner: with everything beside it that will stay in memory, such as a moving average.
        rows: of the training.
        room: share of the free memory to use.

    Raises:
        InputError: not even the largest row fits on the device, or nothing says how much memory is free.
    """
    least, most = _most(rows), _largest_batch(learner, rows)
    if learner.model.device.type == "cpu":
        free = available()
        if free is None:
            raise InputError("How much memory is free cannot be read on this machine; give tokens as a number.")
        need = _needed(learner, rows)
        found = _largest(lambda size: HEAP * need(size) <= room * free, least, most, 1) or least
    else:
        found = _by_trying(learner, rows, most, room)
    whole = found >= most
    return max(least, (found + GRAIN - 1 if whole else found) // GRAIN * GRAIN)


def _by_trying(learner: Learner, rows: Sequence[Example], most: int, room: float) -> int:
    found = largest_fit(learner, rows, most=most, grain=GRAIN, spare=round((1 - room) * _free_on(learner)))
    if found is None:
        raise InputError(_too_large(learner, rows))
    return found


def _largest(fits: Callable[[int], bool], low: int, high: int, grain: int) -> int | None:
    """Return the largest size from ``low`` to ``high`` that fits, less than ``grain`` too small; None if none does."""
    if high < low or not fits(low):
        return None
    if high == low or fits(high):
        return high
    while high - low > grain:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _passes(learner: Learner, rows: Sequence[Example], beside: int) -> bool:
    """Whether one forest of ``rows`` can be computed ``beside`` so many bytes, and again beside its own gradients."""
    passed = True
    try:
        _compute(learner, rows, beside)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        passed = False
    if not passed:  # outside of the clause, which holds the error and with it the tensors of its frames
        gc.collect()
    _drop(learner)
    return passed


def _compute(learner: Learner, rows: Sequence[Example], beside: int) -> None:
    import torch

    held = torch.empty(beside, dtype=torch.uint8, device=learner.model.device)
    references = torch.zeros(len(rows), 2) if learner.compares else None
    for _ in range(2):
        learner._learn_from(rows, references)
    del held


def _drop(learner: Learner) -> None:
    """Give back gradients and what the device's allocator keeps of them."""
    import torch

    for parameter in learner.trained:
        parameter.grad = None
    if empty := getattr(torch.get_device_module(learner.model.device), "empty_cache", None):
        empty()


@contextmanager
def _ready(learner: Learner) -> Iterator[None]:
    """Enter the learner's state unless it is in it already, which leaving would end too early."""
    from tiebreak.models.attention import NAME
    from tiebreak.models.heads import is_encoder

    model = learner.model  # an encoder keeps its own attention
    if model.training if is_encoder(model) else model.config._attn_implementation == NAME:
        yield
    else:
        with learner.ready():
            yield


def _let_go(error: BaseException | None) -> None:
    """Empty the frames of ``error`` and of what it came from: they hold the activations of the failed step."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _too_large(learner: Learner, rows: Sequence[Example]) -> str:
    from tiebreak.models.adapters import has_adapter

    compute = learner.compute
    cures = {
        "set checkpointing: true": not compute.checkpointing,
        "set precision: bfloat16": compute.precision == "float32",
        "train an adapter": not has_adapter(learner.model),
        "lower window": True,
    }
    cure = ", or ".join(name for name, open_ in cures.items() if open_)
    return f"Not even one row fits into the memory: the largest has {_most(rows)} tokens; {cure}."


def _most(rows: Sequence[Example]) -> int:
    return max(row.tree.size for row in rows)


def _packed(rows: Sequence[Example], budget: int | None) -> list[list[int]]:
    return fill([row.tree.size for row in rows], budget)


def _largest_batch(learner: Learner, rows: Sequence[Example]) -> int:
    """Return the most tokens that a step can hold."""
    pace = learner.pace
    most = _most(rows)
    sizes = sorted((row.tree.size for row in rows), reverse=True)
    return max(most, pace.batch_tokens + most if pace.batch_tokens else sum(sizes[: pace.batch]))


def _of_size(rows: Sequence[Example], size: int) -> list[Example]:
    """Return the largest of ``rows``, over and over if need be, ``size`` tokens in all; the last of them is cut."""
    ordered = sorted(rows, key=lambda row: -row.tree.size)
    some: list[Example] = []
    while size > 0:
        row = ordered[len(some) % len(ordered)]
        floor = 1 + len(row.tree.branches)
        if size < floor and some:
            before = some.pop()
            size += before.tree.size - floor
            some += [_cut(before, size), _cut(row, floor)]
            break
        some.append(_cut(row, size))
        size -= some[-1].tree.size
    return some


def _cut(row: Example, size: int) -> Example:
    """Return ``row`` with at most ``size`` tokens, the trunk cut first and then the branches; all of them learned."""
    tree = row.tree
    if tree.size <= size:
        return row
    trunk = tree.trunk[: max(1, size - sum(map(len, tree.branches)))]
    left, branches = size - len(trunk), []
    for later, branch in zip(reversed(range(len(tree.branches))), tree.branches, strict=True):
        branches.append(branch[: max(1, left - later)])
        left -= len(branches[-1])
    return row._replace(tree=tree._replace(trunk=trunk, branches=tuple(branches), taught=()))


def _needed(learner: Learner, rows: Sequence[Example]) -> Callable[[int], float]:
    """Return how many bytes a training on forests of a size takes beyond those that it has taken already."""
    from tiebreak.models.attention import SMALL
    from tiebreak.models.heads import is_encoder

    model, compute, sizes = learner.model, learner.compute, [row.tree.size for row in rows]
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    shape = sized(model.config.get_text_config(), model.get_input_embeddings().num_embeddings, shapes)
    learned = sum(weight.numel() for weight in learner.trained)
    trained = None if learned == sum(map(prod, shapes.values())) else learned
    share = 0.0 if learner.head else max(sum(row.lengths) / row.tree.size for row in rows)
    small = [size for size in sizes if size <= SMALL]
    laid = Laid(max(small) * len(small) / sum(small), max(small)) if 2 * sum(small) > sum(sizes) else None
    depths = [len(row.tree.trunk) + len(branch) for row in rows for branch in row.tree.branches]
    copies = max(depths) * len(depths) / sum(sizes) if is_encoder(model) else 1.0  # padded, each behind its own prompt
    moments = _moments(learner)
    taken = moments.taken + moments.copies + sum(w.grad.nbytes for w in learner.trained if w.grad is not None)
    each = moments.whole / learned

    def need(size: int) -> float:
        settings = compute.precision, compute.checkpointing, round(copies * size), round(share * size)
        found = memory_of(shape, *settings, moments=each, trained=trained, laid=laid)
        return float(found.total - found.weights - taken)

    return need


class _Moments(NamedTuple):
    """Bytes that the optimizer's moments take in the end and by now, and those of its wide copies of weights."""

    whole: float
    taken: int
    copies: int


def _moments(learner: Learner) -> _Moments:
    inner = learner.optimizer
    while hasattr(inner, "inner"):
        inner = inner.inner
    name = type(inner).__name__.lower()
    each = next((size for known, size in MOMENTS.items() if known.replace("_", "") == name), MOMENTS["adamw"])
    if name == "sgd" and not inner.param_groups[0]["momentum"]:
        each = 0
    taken = {"master": 0}
    for values in learner.optimizer.state_dict()["state"].values():
        for key, value in values.items():
            taken[key] = taken.get(key, 0) + getattr(value, "nbytes", 0)
    copies = taken.pop("master")
    return _Moments(each * sum(weight.numel() for weight in learner.trained), sum(taken.values()), copies)


def _free_on(learner: Learner) -> int:
    """Return the bytes that are free on the learner's device, those among them that its allocator holds for later."""
    import torch

    device = learner.model.device
    module = torch.get_device_module(device)
    if not hasattr(module, "mem_get_info"):
        return available() or 0
    return int(module.mem_get_info(device)[0] + module.memory_reserved(device) - module.memory_allocated(device))


def available(root: Path = Path("/")) -> int | None:
    """Return the bytes that this process may still take of the machine, its control groups and its own limit.

    None where nothing says so. ``root`` holds ``proc`` and ``sys``.
    """
    lines = [line.split() for line in _read(root / "proc/meminfo").splitlines()]
    found = [int(line[1]) * 1024 for line in lines if line[0] == "MemAvailable:"]
    if not found and find_spec("psutil"):
        found.append(int(import_module("psutil").virtual_memory().available))
    if find_spec("resource"):
        resource = import_module("resource")
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        used = (_read(root / "proc/self/statm") or "0").split()[0]
        if limit != resource.RLIM_INFINITY:
            found.append(max(0, limit - int(used) * resource.getpagesize()))
    return min([*found, *_of_groups(root)], default=None)


def _of_groups(root: Path) -> Iterator[int]:
    """Yield what is left to each control group above this process; file pages that can be dropped count as free."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, kinds, path = line.split(":", 2)
        home, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        if kinds:
            home, names = home / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        if kinds and "memory" not in kinds.split(","):
            continue
        parts = Path(path).parts[1:]
        for folder in (home.joinpath(*parts[:depth]) for depth in range(len(parts) + 1)):
            limit, used = (_read(folder / name).strip() for name in names[:2])
            if limit.isdigit() and used.isdigit():
                kept = dict(row.split() for row in _read(folder / "memory.stat").splitlines())
                yield max(0, int(limit) - int(used) + int(kept.get(names[2], 0)))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
