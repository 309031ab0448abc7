"""ArmoRM's head: marks by attribute on the features of a frozen model, mixed by a gate that reads the prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tiebreak.models.features import FeedForward
from tiebreak.records import InputError


class Gated(nn.Module):  # type: ignore[misc]
    """s = scale * sum_k g_k(x) m_k(e), marks m linear in a completion's features and g = softmax(network(prompt) / t).

    The marks are learned before, from ratings, and stay; the gate and the scale are learned from pairs (Wang et al.
    2024, arXiv 2406.12845; temperature and network are those of the released code).

    Args:
        width: of the features.
        outputs: k, two or more.
        hidden: widths of the gate's hidden layers.
        dropout: of them, while it learns.
        temperature: t.
        seed: draws the gate.
    """

    kind = "gated"
    faster: Mapping[str, float] = {}
    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        width: int,
        outputs: int,
        *,
        hidden: Sequence[int] = (1024, 1024, 1024),
        dropout: float = 0.2,
        temperature: float = 10.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if outputs < 2 or not temperature > 0:
            raise InputError(
                f"A gate mixes {outputs} marks at temperature {temperature}; it needs two marks or more, such as those "
                "of a model trained by regression, and a temperature above 0."
            )
        self.settings: dict[str, Any] = {"width": width, "outputs": outputs, "hidden": list(hidden)}
        self.settings |= {"dropout": dropout, "temperature": temperature}
        self.temperature = temperature
        self.gate = FeedForward(width, outputs, hidden=hidden, dropout=dropout, seed=seed)
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("weight", torch.zeros(outputs, width))
        self.register_buffer("bias", torch.zeros(outputs))

    def calibrate(self, values: Tensor, prompts: Tensor | None = None) -> None:
        """Take mean and spread of the prompts' features."""
        self.gate.calibrate(_told(prompts))

    def mark(self, weight: Tensor, bias: Tensor | None) -> None:
        """Take the marks: weight (k, width) and bias (k,) of a linear head on features as they are."""
        self.weight.copy_(weight)
        self.bias.copy_(torch.zeros_like(self.bias) if bias is None else bias)

    def marks(self, values: Tensor) -> Tensor:
        """Return the marks of completions, (B, k)."""
        return values @ self.weight.T + self.bias

    def shares(self, prompts: Tensor) -> Tensor:
        """Return how much each mark counts behind a prompt, (B, k): none below 0, and 1 in sum."""
        return torch.softmax(self.gate(prompts) / self.temperature, dim=1)

    def forward(self, values: Tensor, users: Tensor | None = None, prompts: Tensor | None = None) -> Tensor:
        """Return what completions are worth behind their prompts, (B,)."""
        return self.scale * (self.shares(_told(prompts)) * self.marks(values)).sum(1)

    def without(self, unwanted: int, values: Tensor) -> None:
        """Take out of every mark what goes along with mark ``unwanted``, such as verbosity, over ``values`` (N, width).

        m_k becomes m_k - l_k m_v with l_k = cov(m_k, m_v) / var(m_v), so that no mark is correlated with m_v over these
        completions, and m_v itself counts nothing. The release looks for the least l_k on a grid from which on
        Spearman's correlation is below 0.03; this one is exact, for Pearson's.

        Raises:
            InputError: there is no such mark, or it is the same for all completions.
        """
        if not 0 <= unwanted < len(self.weight):
            raise InputError(f"The head has {len(self.weight)} marks, from 0, and none numbered {unwanted}.")
        found = self.marks(values.float()).double()
        apart = found - found.mean(0)
        spread = apart[:, unwanted].square().sum()
        if not float(spread) > 0.0:
            raise InputError(f"Mark {unwanted} is the same for all completions, so nothing goes along with it.")
        along = (apart * apart[:, unwanted : unwanted + 1]).sum(0) / spread
        self.weight.copy_(self.weight.double() - along[:, None] * self.weight[unwanted].double())
        self.bias.copy_(self.bias.double() - along * self.bias[unwanted].double())


def _told(prompts: Tensor | None) -> Tensor:
    if prompts is None:
        raise InputError("A gate reads the prompt; give the prompts' features.")
    return prompts
