"""Log-probabilities of completions: only positions that predict a completion token reach the vocabulary head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from tiebreak.models.forest import Forest, Tree


def token_logps(model: PreTrainedModel, forest: Forest) -> Tensor:
    """Return log p of every completion token of ``forest``, shape (M,), in float32. Run inside ``forest_mode``."""
    out = model(
        input_ids=forest.ids,
        position_ids=forest.positions,
        logits_to_keep=forest.predictors,
        use_cache=False,
        forest=forest,
    )
    return -cross_entropy(out.logits[0].float(), forest.targets, reduction="none")


def padded_logps(model: PreTrainedModel, trees: Sequence[Tree], *, pad: int) -> Tensor:
    """Return the same numbers as :func:`token_logps` by the plain route: each branch behind its own copy of the prompt.

    Right-padded, one row a branch, the whole vocabulary at every position: the yardstick of the forest, gradients
    included.
    """
    rows = [(tree.trunk, branch) for tree in trees for branch in tree.branches]
    longest = max(len(trunk) + len(branch) for trunk, branch in rows)
    ids = torch.full((len(rows), longest), pad)
    mask = torch.zeros_like(ids)
    for i, (trunk, branch) in enumerate(rows):
        size = len(trunk) + len(branch)
        ids[i, :size] = torch.tensor(trunk + branch)
        mask[i, :size] = 1
    logps = model(input_ids=ids, attention_mask=mask).logits.float().log_softmax(-1)
    return torch.cat(
        [
            logps[i, len(trunk) - 1 : len(trunk) + len(branch) - 1].gather(1, torch.tensor(branch)[:, None])[:, 0]
            for i, (trunk, branch) in enumerate(rows)
        ]
    )
