"""Methods that train a reward head, whatever its form: the score of an answer, marks, an embedding, steps.

s is the head's score and d = s_w - s_l, w the chosen side and l the rejected one; S(z) = -log sigmoid(z); x is the
prompt, y an answer, q P(the chosen side is better) and m the row's margin. Loads no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tiebreak.registry import Row
from tiebreak.train.objectives.row import method

PLAIN: dict[str, Any] = {"score": "head", "target": "soft", "beta": 1.0, "outputs": 1}
"""What Bradley-Terry changes of DPO's switches; ``outputs``, the head's columns, is no knob of the objective."""


def _row(name: str, does: str, formula: str, use: str, paper: str, **knobs: Any) -> Row:
    """Return a row whose knobs are Bradley-Terry's with ``knobs`` over them."""
    return method(name, does, formula, use, paper, **{**PLAIN, **knobs})


_OF_PAIRS = [
    _row(
        "bradley_terry",
        "a reward head whose score difference is the log-odds of the (soft) preference",
        "q S(d) + (1-q) S(-d)",
        "the reward model to begin with; q is the judgments' probability, or 1 with target: hard",
        "Stiennon et al. 2020, arXiv 2009.01325; soft labels: Lee et al. 2023, arXiv 2309.00267",
    ),
    _row(
        "bt_margin",
        "Bradley-Terry where strong preferences have to be far apart",
        "S(d - m)",
        "pairs with a strength, which Llama 2 writes as 1, 2/3, 1/3 and 0, or 3, 2, 1 and 0; with the mean gap of an "
        "ensemble as m it is the adaptive margin of Wang et al. 2024, arXiv 2401.06080",
        "Touvron et al. 2023, arXiv 2307.09288, eq. 2",
        offset="margin",
        target="hard",
        margin_scale=1.0,
    ),
    _row(
        "bt_scaled",
        "Bradley-Terry where a pair counts as much as its preference is strong",
        "|m| S(d)",
        "pairs with a strength of 1, 2 or 3: a strong one counts like as many, and no gap is asked for; the paper "
        "does best with a head that has learned ratings first",
        "Wang et al. 2024, arXiv 2410.01257",
        weight="strength",
        target="hard",
    ),
    _row(
        "bt_centred",
        "Bradley-Terry whose scores are held around 0 while it learns",
        "q S(d) + (1-q) S(-d) + centring (s_w + s_l)^2",
        "scores that are compared across prompts or mixed with other rewards, and no reference answers to centre on",
        "Eisenstein et al. 2023, arXiv 2312.09244",
        centring=0.01,
    ),
    _row(
        "bt_smoothed",
        "Bradley-Terry with labels that are wrong at a known rate",
        "(1-e) S(d) + e S(-d), e = smoothing",
        "labels of people or rules without a probability, some of them wrong; the paper smooths pairs whose strength "
        "says nothing or everything, so learn from such a band; its share is not published, 0.1 is a usual one",
        "Wang et al. 2024, arXiv 2401.06080",
        target="smoothed",
        smoothing=0.1,
    ),
    _row(
        "context_aware",
        "Bradley-Terry on prompts that say by what to judge, so that another context may turn the preference",
        "q S(d) + (1-q) S(-d), d = s(x, c, y_w) - s(x, c, y_l), c a criterion or a scenario in the prompt",
        "preferences that depend on who asks or on what counts; mix in pairs without a context, and test that both of "
        "two opposed contexts are right",
        "Pitis et al. 2024, arXiv 2407.14916",
    ),
    _row(
        "gpm",
        "an embedding of each answer, by which preferences may go in circles, at one reading an answer",
        "q S(z) + (1-q) S(-z), z = v_w^T R v_l / skew_tau, R skew-symmetric in blocks of two",
        "preferences that no single score explains, such as several tastes or rock-paper-scissors; outputs are two a "
        "block, 4 to 8 in the paper; swapping two answers changes the sign of z and nothing else",
        "Zhang et al. 2024, arXiv 2410.02197",
        compare="skew",
        skew_tau=0.1,
        outputs=6,
    ),
    _row(
        "pairwise_preference",
        "a model that reads a prompt and both answers at once, in both orders, and says which is better",
        "q S(z) + (1-q) S(-z), z = s(x, y_w versus y_l) - s(x, y_l versus y_w)",
        "answers that can only be judged side by side; n answers cost n (n-1) readings; rows come from the curate step "
        "versus; the paper asks a language model for the letter, here a head gives the logit",
        "Dong et al. 2024, arXiv 2405.07863",
    ),
    _row(
        "gap",
        "a score of how much an answer improves on a draft that stands in the prompt (PIT)",
        "mean of S(r_wl - r_lw), S(r_wl - r_ww), S(r_wl - r_ll), S(r_ww - r_lw), S(r_ll - r_lw), r_ab = s(x with "
        "draft b, a)",
        "the reward of a policy that learns to improve drafts; rows come from the curate step drafts",
        "Wang et al. 2023, arXiv 2310.00898",
        target="hard",
    ),
]

_ALONE = [
    _row(
        "regression",
        "a head with an output for each attribute that answers are rated on",
        "mean over rated attributes of (s_k - rating_k)^2",
        "ratings by aspect, some of them missing; attribute_weights make the score of them, below 0 for what is not "
        "wanted; outputs is how many attributes there are",
        "Wang et al. 2024, arXiv 2406.08673",
        link="squared",
        target=None,
        outputs=5,
    ),
    _row(
        "outcome_reward",
        "the probability that an answer is right, read at its end",
        "-[p log sigmoid(s) + (1-p) log sigmoid(-s)], p = P(right)",
        "answers that a checker, votes or roll-outs label one by one",
        "Cobbe et al. 2021, arXiv 2110.14168",
        link="cross_entropy",
        target=None,
    ),
    _row(
        "process_reward",
        "the probability that a step is right, read at the end of each step of an answer",
        "mean over steps of -[p log sigmoid(s) + (1-p) log sigmoid(-s)], p = P(the step is right)",
        "reasoning with a label a step: people's, or the share of roll-outs from there that end well; aggregate makes "
        "a score of an answer's steps, and which one changes what is best",
        "Lightman et al. 2023, arXiv 2305.20050; soft labels: Jiang et al. 2025, arXiv 2501.12051",
        link="cross_entropy",
        target=None,
    ),
]

HEAD_ROWS: list[Row] = [*_OF_PAIRS, *_ALONE]

HELPSTEER2 = {"helpfulness": 0.65, "correctness": 0.8, "coherence": 0.45, "complexity": 0.55, "verbosity": -0.4}
"""Weights of the attributes in the score of HelpSteer2's Llama 3 70B (appendix H); verbosity is not wanted."""

FORMS: dict[str, dict[str, Any]] = {
    **{row.name: {"kind": "scalar"} for row in HEAD_ROWS},
    "gpm": {"kind": "skew"},
    "pairwise_preference": {"kind": "pairwise"},
    "gap": {"kind": "gap"},
    "regression": {"kind": "attributes", "attribute_weights": HELPSTEER2},
    "process_reward": {"kind": "steps", "aggregate": "min", "separator": "\n"},
}
"""What each method's head is, with the defaults of the knobs that belong to its form and not to the objective."""


def form_knobs(method: str) -> dict[str, Any]:
    """Return the knobs of the form of ``method``'s head with their defaults; a user's own method has a scalar head."""
    return {name: value for name, value in FORMS.get(method, {}).items() if name != "kind"}


def form_row(method: str, knobs: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return what head.json says of a head that ``method`` trains.

    Args:
        method: name of a row; any other has a scalar head.
        knobs: settled knobs of the objective, whose ``skew_tau`` and ``beta`` scale the comparison of a skew head.
        own: settled knobs of the form.
    """
    kind = FORMS.get(method, {"kind": "scalar"})["kind"]
    if kind == "attributes":
        weights = own["attribute_weights"]
        return {"kind": kind, "names": list(weights), "weights": list(weights.values())}
    if kind == "skew":
        return {"kind": kind, "tau": knobs["skew_tau"] / knobs["beta"] ** 2}
    return {"kind": kind, **own}


_BRADLEY_TERRY = {"learning_rate": 1.5e-5, "epochs": 1.0, "batch": 64, "decay": "cosine"}

PACES: dict[str, dict[str, Any]] = {
    **{row.name: dict(_BRADLEY_TERRY) for row in HEAD_ROWS},
    "bt_margin": {"learning_rate": 1e-5, "epochs": 1.0, "batch": 512, "decay": "cosine"},
    "regression": {"learning_rate": 2e-6, "epochs": 2.0, "batch": 128, "decay": "constant"},
    "gpm": {"learning_rate": 2e-6, "epochs": 2.0, "batch": 32, "decay": "cosine"},
    "pairwise_preference": {"learning_rate": 5e-6, "epochs": 1.0, "batch": 128, "decay": "cosine"},
}
"""Published paces: Stiennon et al.'s, which also stands where a publication gives none; Llama 2's below 70B; that of
HelpSteer2's Llama 3 70B; and the released settings of the general preference model and of the pairwise model.
"""


def settled(knobs: Mapping[str, Any], *, where: str = "The objective") -> dict[str, Any]:
    """Return all knobs of a row: the objective's with the defaults of its functions, and those of the head's form.

    Raises:
        InputError: a knob that neither has.
    """
    from tiebreak.train.objectives.switches import settled as of_objective

    own = {name: value for name, value in knobs.items() if name in OF_FORMS}
    return {**of_objective({name: value for name, value in knobs.items() if name not in own}, where=where), **own}


OF_FORMS = frozenset(name for method in FORMS for name in form_knobs(method))
"""Knobs of heads' forms."""


def with_form(row: Row) -> Row:
    """Return ``row`` with the knobs of its head's form beside those of its objective."""
    return replace(row, knobs={**(row.knobs or {}), **form_knobs(row.name)}, more=f"{__name__}:settled")
