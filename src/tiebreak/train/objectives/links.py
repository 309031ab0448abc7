"""Links of pairs: from how two sides compare, and which should win, to a loss, shapes (P,)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn.functional import logsigmoid

from tiebreak.train.objectives.part import Part
from tiebreak.train.objectives.seen import Compared


def logistic(pair: Compared) -> Tensor:
    """-[q log sigmoid(z) + (1-q) log sigmoid(-z)]; q = 1 is the hard label, minimised at z = logit q."""
    return -(pair.q * logsigmoid(pair.z) + (1 - pair.q) * logsigmoid(-pair.z))


LINKS: Mapping[str, Part] = {"logistic": Part(logistic)}
