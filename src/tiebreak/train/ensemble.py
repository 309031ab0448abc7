"""How strongly an ensemble of heads prefers the chosen side of a pair that none of them has learned from.

Pairs with a low or negative strength are likely to be labelled the wrong way round. A head that has learned a pair
knows its label by heart, error included, so each head judges only what was left out of its own training.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from tiebreak.models.features import LinearHead
from tiebreak.records import InputError, Judgment, Pair, Progress, content_id, quiet
from tiebreak.stats.intervals import Estimate, z_quantile
from tiebreak.train.frozen import FeatureRows
from tiebreak.train.heads import Fitted, fit_linear, measure, scores
from tiebreak.train.pace import Pace


class Strength(NamedTuple):
    """What M heads say of P pairs, each of what it did not learn from.

    ``sides`` (M, P, 2) are the scores of the chosen and the rejected side. Of their differences d ``mean`` is the
    strength u and ``spread`` the standard deviation over all M (Wang et al. 2024, arXiv 2401.06080, section 2.1).
    """

    sides: Tensor

    @property
    def gaps(self) -> Tensor:
        """The differences, (M, P)."""
        return self.sides[..., 0] - self.sides[..., 1]

    @property
    def mean(self) -> Tensor:
        """The strength of each pair, (P,); below 0 the ensemble favours the rejected side."""
        return self.gaps.mean(0)

    @property
    def spread(self) -> Tensor:
        """How much the heads differ about each pair, (P,)."""
        return self.gaps.std(0, correction=0)


def strength(
    rows: FeatureRows,
    knobs: Mapping[str, Any],
    pace: Pace,
    *,
    seed: int,
    models: int = 10,
    folds: int = 5,
    progress: Progress = quiet,
) -> Strength:
    """Return how strongly ``models`` linear heads prefer the chosen sides, out of fold.

    Each of them has folds and an order of its own. Rows of one group, such as one prompt, are in one fold, for an
    answer that was learned in another pair would give its label away too.

    Args:
        rows: pairs.
        knobs: of the objective.
        pace: of each training.
        seed: decides folds, orders and first weights.
        models: M.
        folds: parts; each head is trained ``folds`` times, on all parts but one.
        progress: called after each training with trainings done and in all.

    Raises:
        InputError: fewer than 2 folds, more folds than groups, no model, or rows that are no pairs.
    """
    chosen, rejected, tree = rows.seen.chosen, rows.seen.rejected, rows.seen.tree
    if chosen is None or rejected is None or tree is None:
        raise InputError("Strength is of pairs, and these rows have none; give pairs.")
    groups: Sequence[Hashable] = rows.groups or range(len(rows))
    if models < 1 or not 2 <= folds <= len(set(groups)):
        raise InputError(
            f"Strength is asked of {models} models in {folds} folds over {len(set(groups))} groups of rows; it needs "
            "one model or more, and from 2 folds up to as many as there are groups."
        )
    sides = torch.zeros(models, len(chosen), 2)
    for model in range(models):
        parts = _parts(groups, folds, _number("folds", seed, model))
        for fold in range(folds):
            learned = torch.nonzero(parts != fold).flatten().tolist()
            number = _number("head", seed, model, fold)
            head = fit_linear(rows.part(learned), knobs, pace, seed=number).head
            out = parts[tree[chosen]] == fold
            values = scores(head, rows)
            sides[model, out] = torch.stack([values[chosen[out]], values[rejected[out]]], 1)
            progress(model * folds + fold + 1, models * folds, {})
    return Strength(sides)


def fit_ensemble(
    rows: FeatureRows,
    knobs: Mapping[str, Any],
    pace: Pace,
    *,
    seed: int,
    held_out: FeatureRows | None = None,
    patience: int = 0,
    progress: Progress = quiet,
    models: int = 10,
) -> Fitted:
    """Train ``models`` linear heads in different orders and return their mean, which is a linear head itself.

    ``last["spread"]`` is the root mean square of how much they differ about a pair.
    """
    if models < 1:
        raise InputError(f"An ensemble of {models} heads says nothing; give models 1 or more.")
    found: list[Fitted] = []
    for model in range(models):
        number = _number("ensemble", seed, model)
        found.append(fit_linear(rows, knobs, pace, seed=number, held_out=held_out, patience=patience))
        progress(model + 1, models, {"loss": found[-1].last["loss"]})
    head = mean_of([one.head for one in found])
    last = measure(head, rows, knobs)
    if rows.seen.chosen is not None and rows.seen.rejected is not None:
        each = torch.stack([scores(one.head, rows) for one in found])
        gaps = each[:, rows.seen.chosen] - each[:, rows.seen.rejected]
        last["spread"] = float(gaps.var(0, correction=0).mean().sqrt())
    if held_out is not None:
        last |= {f"eval/{name}": value for name, value in measure(head, held_out, knobs).items()}
    return Fitted(head, sum(one.steps for one in found), last, max(one.best for one in found))


def mean_of(heads: Sequence[LinearHead]) -> LinearHead:
    """Return the head whose scores are the mean of those of ``heads``, which read the same features."""
    first = heads[0]
    made = LinearHead(first.settings["width"], first.settings["outputs"], bias=bool(first.settings["bias"]))
    folded = [head.folded() for head in heads]
    with torch.no_grad():
        made.layer.weight.copy_(torch.stack([weight.double() for weight, _ in folded]).mean(0))
        if made.layer.bias is not None:
            made.layer.bias.copy_(torch.stack([bias.double() for _, bias in folded if bias is not None]).mean(0))
    made.eval()
    return made


def with_strength(pairs: Sequence[Pair], found: Strength) -> list[Pair]:
    """Return the pairs with the strength as margin and its spread; the curate steps for bands and flips read them."""
    _assert_as_many(pairs, found)
    return [
        replace(pair, margin=float(margin), spread=float(spread))
        for pair, margin, spread in zip(pairs, found.mean, found.spread, strict=True)
    ]


def judgments(pairs: Sequence[Pair], found: Strength, *, name: str = "ensemble") -> list[Judgment]:
    """Return what each head said of each pair as a judgment of ``model:name-m``, with the scores of both sides.

    The curate step ``strength`` reads such judgments, whoever made them.
    """
    _assert_as_many(pairs, found)
    made: list[Judgment] = []
    for model, sides in enumerate(found.sides.double().tolist()):
        for pair, (first, second) in zip(pairs, sides, strict=True):
            gap = first - second
            made.append(
                Judgment(
                    prompt_id=pair.prompt_id,
                    slots=(pair.chosen_id, pair.rejected_id),
                    verdict="slot" if gap else "tie",
                    winner=int(gap < 0) if gap else None,
                    order_known=False,
                    probability=0.5 * (1 + math.tanh(gap / 2)),
                    by=f"model:{name}-{model}",
                    fields={"scores": [first, second]},
                )
            )
    return made


def separation(values: npt.ArrayLike, wrong: npt.ArrayLike, *, level: float = 0.95) -> Estimate:
    """Return P(a right pair is stronger than a wrong one), ties as 1/2: the area under the curve, with its interval.

    The standard error is that of DeLong et al. 1988: the variance of how each right pair stands among the wrong ones
    over their number, and the other way round. The interval is normal, cut to [0, 1].

    Args:
        values: strength of each pair, (P,).
        wrong: which pairs are known to be labelled the wrong way round, (P,).
        level: of the interval.

    Raises:
        InputError: no wrong pair, or no right one.
    """
    known, marked = np.asarray(values, dtype=np.float64), np.asarray(wrong, dtype=bool)
    low, high = np.sort(known[marked]), np.sort(known[~marked])
    if len(low) < 2 or len(high) < 2:
        raise InputError(
            f"Separation needs two pairs or more of each kind; there are {len(low)} wrong, {len(high)} right."
        )
    below = (np.searchsorted(low, high, "left") + np.searchsorted(low, high, "right")) / (2 * len(low))
    above = 1 - (np.searchsorted(high, low, "left") + np.searchsorted(high, low, "right")) / (2 * len(high))
    area = float(below.mean())
    half = z_quantile(level) * math.sqrt(below.var(ddof=1) / len(below) + above.var(ddof=1) / len(above))
    return Estimate(area, max(0.0, area - half), min(1.0, area + half), len(known))


def _parts(groups: Sequence[Hashable], folds: int, seed: int) -> Tensor:
    """Return the fold of each row, (T,): groups in a drawn order, dealt out in turn."""
    names = list(dict.fromkeys(groups))
    drawn = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    fold = {names[i]: place % folds for place, i in enumerate(drawn)}
    return torch.tensor([fold[group] for group in groups])


def _number(*key: object) -> int:
    return int(content_id(*map(str, key))[:12], 16)


def _assert_as_many(pairs: Sequence[Pair], found: Strength) -> None:
    if len(pairs) != found.sides.shape[1]:
        raise InputError(
            f"There are {len(pairs)} pairs and the strength of {found.sides.shape[1]}; give the same ones."
        )
