"""How fast and how long: the learning rate of each step, and how many steps there are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tiebreak.records import InputError
from tiebreak.registry import nearest

TAIL = 0.2
"""Share of the steps in which warmup_stable_decay falls, as Hägele et al. 2024 (arXiv 2405.18392) found enough."""

DECAYS: Mapping[str, Callable[[float], float]] = {
    "cosine": lambda left: 0.5 * (1 - math.cos(math.pi * left)),
    "linear": lambda left: left,
    "constant": lambda left: 1.0,
    "inverse_sqrt": lambda left: (1.0 + 9.0 * (1.0 - left)) ** -0.5,
    "warmup_stable_decay": lambda left: min(1.0, left / TAIL),
}
"""Factor of the learning rate by the share of steps that is left."""


@dataclass(frozen=True, kw_only=True)
class Pace:
    """AdamW with linear warm-up, then one of :data:`DECAYS`.

    ``warmup`` is a share of all steps; ``clip`` bounds the gradient's norm. ``batch`` counts rows; with
    ``batch_tokens`` a step takes rows until that many tokens are full instead. ``order`` is a name of ORDERS, and
    ``mixture`` gives datasets their shares of the rows.
    """

    epochs: float = 1.0
    batch: int = 32
    learning_rate: float = 1e-4
    warmup: float = 0.05
    decay: str = "cosine"
    weight_decay: float = 0.0
    clip: float = 1.0
    order: str = "random"
    batch_tokens: int | None = None
    mixture: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        if self.decay not in DECAYS:
            raise InputError(
                f"There is no decay {self.decay!r}; there are {', '.join(DECAYS)}.{nearest(self.decay, DECAYS)}"
            )
        for name in ("epochs", "batch", "learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} is {getattr(self, name)}; it has to be more than 0.")

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of ``step`` (from 0) of ``steps``."""
        warm = max(1, round(self.warmup * steps))
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        left = 1.0 - (step - warm) / max(1, steps - warm)
        return self.learning_rate * DECAYS[self.decay](left)
