"""Which weights a training ends with: the last or the best, averaged or not; and whether it is time to stop.

One for both loops: what differs is only what is evaluated. State is the loop's own dictionary, so that a checkpoint
holds it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from tiebreak.train import checkpoint
from tiebreak.train.optimizers import Ema

FRESH = {"stopped": False, "best": None, "best_step": 0, "worse": 0}
"""What a training that begins knows of evaluations."""


class Best:
    """Keeps the weights of the best evaluation where ``keep`` is best, and counts those without a better one."""

    def __init__(self, nets: nn.Module, folder: Path, *, keep: str, patience: int, average: Ema | None) -> None:
        self.nets, self.path, self.keep, self.patience = nets, folder / "best.safetensors", keep, patience
        self.average = average

    @contextmanager
    def weights(self) -> Iterator[None]:
        """Put the averaged weights into the nets, if there are any, for as long as the context lasts."""
        if self.average is None:
            yield
        else:
            with self.average.swapped(self.nets):
                yield

    def judge(self, state: dict[str, Any], measured: dict[str, float], loss: float) -> None:
        """Note an evaluation, the lower ``loss`` the better: keep the weights if it is the best, or lose patience."""
        state["latest"] = measured
        if math.isfinite(loss) and (state["best"] is None or loss < state["best"]):
            state |= {"best": loss, "best_step": state["step"], "worse": 0, "measured": measured}
            if self.keep == "best":
                with self.weights():
                    checkpoint.keep(self.path, self.nets)
        else:
            state["worse"] += 1
        state["stopped"] = bool(self.patience) and state["worse"] >= self.patience

    def finish(self, state: dict[str, Any]) -> dict[str, float]:
        """Leave in the nets what the training was to give, and return the evaluation of those weights, if any."""
        best = self.keep == "best" and state["best"] is not None
        if best:
            checkpoint.put_back(self.nets, checkpoint.kept(self.path))
        elif self.average is not None:
            checkpoint.put_back(self.nets, self.average.state())
        found: dict[str, float] = state.get("measured" if best else "latest", {})
        return found
