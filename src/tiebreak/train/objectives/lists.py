"""Links of lists: all completions of a prompt with a grade each, to one loss a row; shapes (T,).

A row has its branches best first, in order of their grades, so that the first branch of a row, which the term ``nll``
imitates, is the best one. No link here looks at the order, only at grades; branches beside, whose grade is NaN, take no
part. Two branches with equal grades are never a pair.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from tiebreak.train.objectives.part import Part
from tiebreak.train.objectives.seen import Listed


def plackett_luce(rows: Listed) -> Tensor:
    """-sum_i [v_i - log sum_{j from i on} exp v_j] down the ranking, v = beta rho (Rafailov et al. 2023, eq. 20).

    Each branch has to be picked before all with a lower grade. Without ties this is minus the log-probability of the
    ranking under Plackett and Luce; two branches are the logistic loss of their difference. Branches with equal grades
    are each picked before those below as if the others of the tie were not there, which Luce's axiom allows, and a row
    all of whose grades are equal costs 0.
    """
    seen = rows.seen
    assert seen.chosen is not None
    assert seen.rejected is not None
    behind = rows.values[seen.rejected] - rows.values[seen.chosen]
    stage, place = torch.unique(seen.chosen, return_inverse=True)
    lost = -logsigmoid(-_logsumexp(behind, place, len(stage)))
    return _sum(lost, *_rows(seen.tree, stage))


def best_of_list(rows: Listed) -> Tensor:
    """Cross-entropy of softmax(v) over the row with the branch of the highest grade; several of those share it evenly.

    It is the first step of :func:`plackett_luce`, and with two branches of different grades the logistic loss.
    """
    grades, values, row, count = _compared(rows)
    best = (grades == _max(grades, row, count)[row]).to(values)
    return _cross_entropy(best, values, row, count)


def list_choice(rows: Listed, *, grade_temperature: float) -> Tensor:
    """Cross-entropy of softmax(v) over the row with softmax(grades / grade_temperature) (Chen et al. 2024, InfoNCA).

    At its least v = grades / grade_temperature + a constant of the row, beta rho that of the optimal policy for a
    reward. A low temperature makes it :func:`best_of_list`.
    """
    grades, values, row, count = _compared(rows)
    return _cross_entropy(_softmax(grades / grade_temperature, row, count), values, row, count)


def list_noise_contrast(rows: Listed, *, grade_temperature: float) -> Tensor:
    """-sum_i [p_i log sigmoid(v_i) + 1/K log sigmoid(-v_i)], p = softmax(grades / temperature) (Chen et al. 2024, NCA).

    Every branch is told apart from the reference by itself, so v_i = log(K p_i) at its least: the best becomes likelier
    than under the reference and not only likelier than the others. A branch with next to no share falls without limit.
    """
    grades, values, row, count = _compared(rows)
    share = _softmax(grades / grade_temperature, row, count)
    size = _sum(torch.ones_like(values), row, count)
    return -_sum(share * logsigmoid(values) + logsigmoid(-values) / size[row], row, count)


def rrhf(rows: Listed) -> Tensor:
    """Sum over the row's pairs of max(0, v_worse - v_better), a hinge without margin (Yuan et al. 2023, eq. 2).

    v is the log-prob over the length to the power of a penalty, 1 in the paper: a mean per token. Pairs are summed and
    not averaged, so a longer list weighs more. Where v is ordered as the grades are nothing is learned; the paper adds
    the likelihood of the best branch, the term ``nll`` with weight 1, here a mean over real tokens.
    """
    seen = rows.seen
    assert seen.chosen is not None
    assert seen.rejected is not None
    short = (rows.values[seen.rejected] - rows.values[seen.chosen]).clamp_min(0)
    return _sum(short, *_rows(seen.tree, seen.chosen))


def steerlm2(rows: Listed, *, per_token: bool = False) -> Tensor:
    """KL(w || b), w = softmax(grade - log Q'(y)) and b = softmax(v) over the row, v = log Q(y) - log Q'(y).

    The grade is log P(a|x,y) + log P(y|x), Q' the reference, the model that drew the answers for attributes a. Its
    gradient is sum_i (w_i - b_i) grad NLL_i, the estimator of Wang et al. 2024 (HelpSteer2, SteerLM 2.0): weights that
    add up to 0 and vanish where Q is the target, and nothing at all for a row of one answer. ``per_token`` divides by
    the mean length of the row's answers, as their code does and their formula does not.
    """
    grades, values, row, count = _compared(rows)
    seen = rows.seen
    assert seen.reference is not None
    assert seen.grades is not None
    kept = ~seen.grades.isnan()
    target = _log_softmax(grades - seen.reference[kept], row, count)
    lost = _sum(target.exp() * (target - _log_softmax(values, row, count)), row, count)
    if not per_token:
        return lost
    sizes = _sum(torch.ones_like(values), row, count)
    return lost * sizes / _sum(seen.lengths[kept].to(values), row, count).clamp_min(1)


def gpo(rows: Listed, *, even: float = 0.5) -> Tensor:
    """Mean over the row of (rho_i - (grade_i - even) / beta)^2 (Zhang et al. 2024, eq. 5.3; Wu et al. 2024).

    The grade is a branch's mean win against the row: a probability, whose ``even`` is 1/2, which is SPPO, or a
    preference score that changes its sign when sides are swapped, whose ``even`` is 0. v = beta rho. The papers train
    on the best and the worst of five; a list of those two is theirs, and here all branches may take part.
    """
    grades, values, row, count = _compared(rows)
    missed = ((values - (grades - even)) / rows.beta).square()
    return _sum(missed, row, count) / _sum(torch.ones_like(values), row, count)


def _compared(rows: Listed) -> tuple[Tensor, Tensor, Tensor, int]:
    """Return grades, values and row of the compared branches, and how many rows there are."""
    seen = rows.seen
    assert seen.grades is not None
    kept = torch.nonzero(~seen.grades.isnan()).flatten()
    row, count = _rows(seen.tree, kept)
    return seen.grades[kept].to(rows.values), rows.values[kept], row, count


def _rows(tree: Tensor | None, branches: Tensor) -> tuple[Tensor, int]:
    """Return the place of the branches' rows in order of first branch, and how many rows there are."""
    assert tree is not None
    row = torch.unique_consecutive(tree, return_inverse=True)[1]
    return row[branches], int(row[-1]) + 1


def _sum(values: Tensor, row: Tensor, count: int) -> Tensor:
    return values.new_zeros(count).index_add(0, row, values)


def _max(values: Tensor, row: Tensor, count: int) -> Tensor:
    """Return the largest of each row, without gradient; a row without any has minus infinity."""
    lowest = values.new_full((count,), -torch.inf)
    return lowest.scatter_reduce(0, row, values.detach(), "amax")


def _logsumexp(values: Tensor, row: Tensor, count: int) -> Tensor:
    """Return log sum exp of each row, all of which have some."""
    top = _max(values, row, count)
    return top + _sum((values - top[row]).exp(), row, count).log()


def _log_softmax(values: Tensor, row: Tensor, count: int) -> Tensor:
    """Return log softmax within each row; the largest goes first, beside which the small digits would be lost."""
    below = values - _max(values, row, count)[row]
    return below - _sum(below.exp(), row, count).log()[row]


def _softmax(values: Tensor, row: Tensor, count: int) -> Tensor:
    return _log_softmax(values, row, count).exp()


def _cross_entropy(share: Tensor, values: Tensor, row: Tensor, count: int) -> Tensor:
    """Return -sum share log softmax(values) of each row, shares made to add up to 1."""
    share = share / _sum(share, row, count)[row]
    return -_sum(share * _log_softmax(values, row, count), row, count)


LISTS: Mapping[str, Part] = {
    "plackett_luce": Part(plackett_luce, needs=("grades",)),
    "best_of_list": Part(best_of_list, needs=("grades",)),
    "list_choice": Part(list_choice, needs=("grades",)),
    "list_noise_contrast": Part(list_noise_contrast, needs=("grades",)),
    "rrhf": Part(rrhf, needs=("grades",)),
    "steerlm2": Part(steerlm2, reads=("reference",), needs=("grades",)),
    "gpo": Part(gpo, needs=("grades",)),
}
