"""Fused twins of pieces that transformers writes out in Python: the same numbers in one pass over memory.

A twin stands in while a forest runs and leaves with it, so the model stays as it was. The unfused tanh-GELU of GPT-2
costs a fifth of a training step by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn
from torch.nn.functional import gelu
from transformers.activations import FastGELUActivation, NewGELUActivation

TWINS: Mapping[type[nn.Module], Callable[[Tensor], Tensor]] = {
    NewGELUActivation: partial(gelu, approximate="tanh"),
    FastGELUActivation: partial(gelu, approximate="tanh"),
}


@contextmanager
def fused(*models: nn.Module) -> Iterator[None]:
    """Let fused twins stand in for the pieces of ``models`` that have one; they leave whatever happens inside."""
    changed = [module for model in models for module in model.modules() if type(module) in TWINS]
    for module in changed:
        module.forward = TWINS[type(module)]
    try:
        yield
    finally:
        for module in changed:
            del module.forward
