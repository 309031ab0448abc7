"""Scores of answers by a reward model, in batches: rows that belong together, or each answer for itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tiebreak.models.attention import forest_mode
from tiebreak.models.encode import Cut, encode_tree
from tiebreak.models.forest import Tree, plant
from tiebreak.models.heads import scores
from tiebreak.models.load import Loaded, context_of
from tiebreak.records import Progress, Prompt, Response, quiet

FEW = 8
"""Answers that share one prompt in :func:`score_each`: enough to save most of its cost, and bounded memory."""


def score(
    loaded: Loaded,
    rows: Sequence[tuple[Prompt, Sequence[Response]]],
    *,
    window: int = 1024,
    cut: Cut = "start",
    batch: int = 32,
    progress: Progress = quiet,
) -> list[list[float] | None]:
    """Return the reward of every response of every row, None for a row with a completion too long for ``window``.

    The answers of a row read the same prompt, cut so that the longest of them fits, as a pair does in training.
    ``window`` ends where the model's positions do, so that BERT reads at most 512 tokens.
    """
    room = room_of(loaded, window)
    trees = [encode_tree(loaded.tokenizer, p, answers, window=room, cut=cut)[0] for p, answers in rows]
    found = iter(tree_scores(loaded, [tree for tree in trees if tree is not None], batch=batch, progress=progress))
    return [None if tree is None else next(found) for tree in trees]


def score_each(
    loaded: Loaded,
    asked: Sequence[tuple[Prompt, Response]],
    *,
    window: int = 1024,
    cut: Cut = "start",
    batch: int = 32,
    progress: Progress = quiet,
) -> list[float | None]:
    """Return the reward of every answer as if it were alone, None for one too long for ``window``, or empty and cut.

    A score depends on prompt and answer only, never on the answers beside it: each has the prompt as it fits with that
    answer. Where that is the same for several, they still share its computation, and equal token ids have equal scores
    exactly. ``batch`` counts trees of at most :data:`FEW` answers; ``progress`` counts those trees.
    """
    room = room_of(loaded, window)
    places: dict[tuple[int, ...], dict[tuple[int, ...], list[int]]] = {}
    for i, (prompt, response) in enumerate(asked):
        tree, _ = encode_tree(loaded.tokenizer, prompt, [response], window=room, cut=cut)
        if tree is not None:
            places.setdefault(tree.trunk, {}).setdefault(tree.branches[0], []).append(i)
    trees = [
        Tree(trunk, tuple(branches)[start : start + FEW])
        for trunk, branches in places.items()
        for start in range(0, len(branches), FEW)
    ]
    out: list[float | None] = [None] * len(asked)
    for tree, values in zip(trees, tree_scores(loaded, trees, batch=batch, progress=progress), strict=True):
        for branch, value in zip(tree.branches, values, strict=True):
            for i in places[tree.trunk][branch]:
                out[i] = value
    return out


def tree_scores(
    loaded: Loaded, trees: Sequence[Tree], *, batch: int = 32, progress: Progress = quiet
) -> list[list[float]]:
    """Return the reward of every branch of every tree, ``batch`` trees of like size at a time."""
    order = sorted(range(len(trees)), key=lambda i: trees[i].size)
    out: list[list[float]] = [[] for _ in trees]
    with torch.no_grad(), forest_mode(loaded.model):
        for start in range(0, len(order), batch):
            part = order[start : start + batch]
            values = iter(scores(loaded.model, plant([trees[i] for i in part]).to(loaded.model.device)).tolist())
            for i in part:
                out[i] = [next(values) for _ in trees[i].branches]
            progress(min(start + batch, len(order)), len(order), {})
    return out


def room_of(loaded: Loaded, window: int) -> int:
    """Return how many tokens of prompt and answer are read: ``window``, or the model's positions where those end."""
    return min(window, context_of(loaded.model) or window)
