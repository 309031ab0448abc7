"""Scores of answers by a reward model, in batches: rows that belong together, or each answer for itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from tiebreak.data.drafts import versus, with_draft
from tiebreak.models.attention import forest_mode
from tiebreak.models.encode import Cut, encode_tree
from tiebreak.models.forest import Forest, Tree, plant
from tiebreak.models.forms import reward_of, tournament, with_steps
from tiebreak.models.heads import scores, step_scores
from tiebreak.models.load import Loaded, context_of
from tiebreak.records import InputError, Progress, Prompt, Response, quiet

FEW = 8
"""Answers that share one prompt in :func:`score_each`: enough to save most of its cost, and bounded memory."""

Row = tuple[Prompt, Sequence[Response]]
Read = TypeVar("Read")


def score(
    loaded: Loaded,
    rows: Sequence[Row],
    *,
    window: int = 1024,
    cut: Cut = "start",
    batch: int = 32,
    progress: Progress = quiet,
) -> list[list[float] | None]:
    """Return the reward of every response of every row, None for a row with a completion too long for ``window``.

    The answers of a row read the same prompt, cut so that the longest of them fits, as a pair does in training.
    ``window`` ends where the model's positions do, so that BERT reads at most 512 tokens.

    A head that only compares answers (forms ``skew``, ``pairwise`` and ``gap``) gives an answer the mean over all of
    its row, itself included, of the logit that it is the better of two. So of two answers the difference is that logit,
    and exchanging them changes its sign and nothing else; one alone has 0.
    """
    room = room_of(loaded, window)
    if loaded.form.reads_texts:
        return _compared(loaded, rows, room=room, cut=cut, batch=batch, progress=progress)
    trees = [_tree(loaded, row, room, cut) for row in rows]
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

    Raises:
        InputError: a head that only compares answers.
    """
    if loaded.form.relative:
        raise InputError(
            f"A head of the kind {loaded.form.kind} compares answers, so one alone has no score; use score."
        )
    room = room_of(loaded, window)
    places: dict[tuple[int, ...], dict[tuple[tuple[int, ...], tuple[bool, ...]], list[int]]] = {}
    for i, (prompt, response) in enumerate(asked):
        tree = _tree(loaded, (prompt, [response]), room, cut)
        if tree is not None:
            taught = tree.taught[0] if tree.taught else ()
            places.setdefault(tree.trunk, {}).setdefault((tree.branches[0], taught), []).append(i)
    trees, keys = [], []
    for trunk, branches in places.items():
        for start in range(0, len(branches), FEW):
            few = tuple(branches)[start : start + FEW]
            marks = tuple(taught for _, taught in few)
            trees.append(Tree(trunk, tuple(ids for ids, _ in few), marks if marks[0] else ()))
            keys.append(few)
    out: list[float | None] = [None] * len(asked)
    found = tree_scores(loaded, trees, batch=batch, progress=progress)
    for tree, few, values in zip(trees, keys, found, strict=True):
        for key, value in zip(few, values, strict=True):
            for i in places[tree.trunk][key]:
                out[i] = value
    return out


def score_columns(
    loaded: Loaded,
    rows: Sequence[Row],
    *,
    window: int = 1024,
    cut: Cut = "start",
    batch: int = 32,
    progress: Progress = quiet,
) -> list[list[tuple[float, ...]] | None]:
    """Return what the head itself gives every response of every row, None as in :func:`score`.

    Of a head of attributes those are the marks by name, in the order of ``loaded.form.names``; of a head of steps the
    logits of the answer's steps in their order.

    Raises:
        InputError: a head that reads two answers in one text.
    """
    if loaded.form.reads_texts:
        raise InputError(f"A head of the kind {loaded.form.kind} gives nothing of one answer alone; use score.")
    trees = [_tree(loaded, row, room_of(loaded, window), cut) for row in rows]
    some = [tree for tree in trees if tree is not None]

    def columns(values: Tensor, forest: Forest) -> list[tuple[float, ...]]:
        if loaded.form.kind == "steps":
            return [tuple(steps.tolist()) for steps in values.split(forest.lengths.tolist())]
        return [tuple(row) for row in values.reshape(len(values), -1).tolist()]

    found = iter(_spread(loaded, some, columns, batch, progress))
    return [None if tree is None else next(found) for tree in trees]


def tree_scores(
    loaded: Loaded, trees: Sequence[Tree], *, batch: int = 32, progress: Progress = quiet
) -> list[list[float]]:
    """Return the reward of every branch of every tree, ``batch`` trees of like size at a time.

    Of the forms ``pairwise`` and ``gap``, which read texts of their own, it is what the head gives.

    Raises:
        InputError: scores are of steps, and a tree has no marks where they end.
    """

    def rewards(values: Tensor, forest: Forest) -> list[float]:
        found: list[float] = reward_of(loaded.form, values, forest).tolist()
        return found

    return _spread(loaded, trees, rewards, batch, progress)


def _spread(
    loaded: Loaded,
    trees: Sequence[Tree],
    read: Callable[[Tensor, Forest], list[Read]],
    batch: int,
    progress: Progress,
) -> list[list[Read]]:
    """Return what ``read`` makes of the head's outputs for each branch of each tree."""
    steps = loaded.form.kind == "steps"
    if steps and not all(tree.taught for tree in trees):
        raise InputError("The model scores steps, and a tree has no marks where they end; mark them with with_steps.")
    order = sorted(range(len(trees)), key=lambda i: trees[i].size)
    out: list[list[Read]] = [[] for _ in trees]
    with torch.no_grad(), forest_mode(loaded.model):
        for start in range(0, len(order), batch):
            part = order[start : start + batch]
            forest = plant([trees[i] for i in part]).to(loaded.model.device)
            values = iter(read((step_scores if steps else scores)(loaded.model, forest), forest))
            for i in part:
                out[i] = [next(values) for _ in trees[i].branches]
            progress(min(start + batch, len(order)), len(order), {})
    return out


def _tree(loaded: Loaded, row: Row, room: int, cut: Cut) -> Tree | None:
    """Return the tree of a row, with the ends of its steps where those have the scores, None where it does not fit."""
    prompt, answers = row
    tree = encode_tree(loaded.tokenizer, prompt, answers, window=room, cut=cut)[0]
    if tree is None or loaded.form.kind != "steps":
        return tree
    return with_steps(loaded.tokenizer, tree, [answer.text for answer in answers], loaded.form.separator)


class _Asked(NamedTuple):
    """Answers i and j of row ``number``: ``there`` is the tree and branch of s(i, j), ``back`` that of s(j, i)."""

    number: int
    i: int
    j: int
    there: tuple[int, int]
    back: tuple[int, int]


def _compared(
    loaded: Loaded, rows: Sequence[Row], *, room: int, cut: Cut, batch: int, progress: Progress
) -> list[list[float] | None]:
    """Return the mean logit of each answer against all of its row; s(i, j) - s(j, i) is the logit that i is better."""
    trees: list[Tree] = []
    asked: list[_Asked] = []
    out: list[list[float] | None] = []
    for number, row in enumerate(rows):
        made = list(_texts(loaded, row, room, cut))
        fits = all(tree is not None for tree, _ in made)
        out.append([0.0] * len(row[1]) if fits else None)
        if fits:
            at = {
                pair: (len(trees) + n, place) for n, (_, pairs) in enumerate(made) for place, pair in enumerate(pairs)
            }
            trees += [tree for tree, _ in made if tree is not None]
            asked += [_Asked(number, i, j, at[i, j], at[j, i]) for i, j in combinations(range(len(row[1])), 2)]
    found = tree_scores(loaded, trees, batch=batch, progress=progress)
    logits = {number: torch.zeros(len(row[1]), len(row[1]), dtype=torch.float64) for number, row in enumerate(rows)}
    for number, i, j, there, back in asked:
        gap = found[there[0]][there[1]] - found[back[0]][back[1]]
        logits[number][i, j], logits[number][j, i] = gap, -gap
    return [None if row is None else tournament(logits[number]).tolist() for number, row in enumerate(out)]


def _texts(loaded: Loaded, row: Row, room: int, cut: Cut) -> Iterator[tuple[Tree | None, list[tuple[int, int]]]]:
    """Give the trees that compare the answers of a row, None where one does not fit, with what each branch compares.

    A prompt with a draft has to fit whole, for what would be cut first is the draft.
    """
    prompt, answers = row
    if loaded.form.kind == "pairwise":
        for i, j in combinations(range(len(answers)), 2):
            orders = [(i, j), (j, i)]
            texts = [versus(answers[a].text, answers[b].text) for a, b in orders]
            both = [Response(prompt_id=prompt.id, text=text) for text in texts]
            yield encode_tree(loaded.tokenizer, prompt, both, window=room, cut=cut)[0], orders
        return
    for j, draft in enumerate(answers):
        others = [i for i in range(len(answers)) if i != j]
        if others:
            asked, some = with_draft(prompt, draft.text), [answers[i] for i in others]
            tree, was_cut = encode_tree(loaded.tokenizer, asked, some, window=room, cut=cut)
            yield None if was_cut else tree, [(i, j) for i in others]


def room_of(loaded: Loaded, window: int) -> int:
    """Return how many tokens of prompt and answer are read: ``window``, or the model's positions where those end."""
    return min(window, context_of(loaded.model) or window)
