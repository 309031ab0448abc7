"""How many token positions go forward through a model's body and through its head, read off the models at work.

Whatever a trainer does (padding, tiles, packed rows), the body looks every position up in the input embeddings, which a
hook sees, and the head multiplies every position it scores by its weight. That product is found among all operations by
the weight's storage, whose copies, casts and slices are followed: one counter serves both sides, neither has to help.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
SAME = {aten._to_copy, aten.slice, aten.t, aten.transpose, aten.view, aten._unsafe_view, aten.clone, aten.detach}
SAME |= {aten.alias, aten.permute, aten.reshape, aten.as_strided, aten.copy_}
PRODUCTS = {aten.mm, aten.addmm, aten.linear, aten.bmm, aten.matmul}


class Positions(TorchDispatchMode):
    """Counts forward passes; what a backward pass computes again for checkpoints or tiles is left out.

    Bodies are counted all the time, heads inside :meth:`heads`, which slows a step and is for warm-up steps.
    """

    def __init__(self, models: Mapping[str, Any]) -> None:
        super().__init__()
        self.models = models
        self.body: Counter[str] = Counter()
        self.head: Counter[str] = Counter()
        self.steps = 0
        self._known: dict[int, tuple[str, int]] = {}
        self._held: list[Any] = []
        for name, model in models.items():
            model.get_input_embeddings().register_forward_pre_hook(partial(self._look_up, name))

    def _look_up(self, name: str, _: Any, inputs: Any) -> None:
        self.body[name] += inputs[0].numel()

    def forget(self) -> None:
        """Start anew: a first step may hold what is done once, such as trying a model on a small forest."""
        self.body.clear()
        self.head.clear()
        self.steps = 0

    @contextlib.contextmanager
    def heads(self) -> Iterator[None]:
        """Count the heads' positions of one step."""
        for name, model in self.models.items():
            head = getattr(model, "score", None) or model.get_output_embeddings()
            self._known[_place(head.weight)] = name, len(head.weight)
        try:
            with self:
                yield
        finally:
            self.steps += 1
            self._known, self._held = {}, []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if torch._C._current_graph_task_id() != -1:
            return out
        packet = func.overloadpacket
        if packet in SAME:
            self._follow(out, args)
        elif packet in PRODUCTS:
            self._multiply(out, args)
        return out

    def _follow(self, out: Any, args: Any) -> None:
        for source in args:
            known = self._known.get(_place(source)) if isinstance(source, torch.Tensor) else None
            if known is not None:
                self._known[_place(out)] = known
                self._held.append(out)  # so that nothing else gets the same address

    def _multiply(self, out: torch.Tensor, args: Any) -> None:
        for factor in args:
            known = self._known.get(_place(factor)) if isinstance(factor, torch.Tensor) else None
            if known is not None:
                name, rows = known
                self.head[name] += out.numel() / rows
                return

    def means(self, steps: int) -> dict[str, dict[str, float]]:
        """Return positions a step, by model, through the body (over all ``steps``) and through the head."""
        return {
            name: {"body": self.body[name] / steps, "head": round(self.head[name] / max(self.steps, 1), 3)}
            for name in self.models
        }


def _place(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
