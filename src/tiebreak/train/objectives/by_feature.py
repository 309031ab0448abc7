"""Heads on the features of a frozen backbone, or on a matrix of features: a reward model in seconds on a laptop.

s is the head's score and d = s_w - s_l, w the chosen side and l the rejected one; S(z) = -log sigmoid(z); e are the
features of an answer, x is the prompt, u the user. A target is the trainer, which takes the row's own knobs; the others
are the objective's. Loads no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tiebreak.registry import Row

PLAIN: dict[str, Any] = {"score": "head", "link": "logistic", "target": "soft", "beta": 1.0, "nll": 0.0}
"""The knobs of Bradley-Terry, which a row changes and adds its own to."""
SETTLES = "tiebreak.train.objectives.by_feature:settled"
IDEAL: dict[str, Any] = {"prototypes": 2, "space": 0, "layers": 2}


def _row(name: str, trainer: str, does: str, formula: str, use: str, paper: str, **own: Any) -> Row:
    switches = {name: own.get(name, value) for name, value in PLAIN.items()}
    knobs = {**switches, **{name: value for name, value in own.items() if name not in PLAIN}}
    target = f"tiebreak.train.{trainer}"
    return Row(name=name, does=does, target=target, knobs=knobs, paper=paper, formula=formula, use=use, more=SETTLES)


ROWS: list[Row] = [
    _row(
        "feature_linear",
        "heads:fit_linear",
        "a linear head on features that were computed once",
        "q S(d) + (1-q) S(-d), s = w . e",
        "a laptop, and votes that keep coming: the backbone runs once a text, and the saved folder is a plain sequence "
        "classifier; any objective of pairs, lists or single answers fits",
        "Stiennon et al. 2020, arXiv 2009.01325; on a frozen backbone the pace is ours",
        outputs=1,
    ),
    _row(
        "feature_network",
        "heads:fit_feed_forward",
        "a small feed-forward network on features, of a backbone or measured by aspect",
        "q S(d) + (1-q) S(-d), s = FFN(e)",
        "hundreds of labels and a handful of features that a domain knows, such as coverage, relevance and "
        "faithfulness, some of them missing; importance says which ones count; the network's size is ours",
        "Nath et al. 2024, arXiv 2402.15473",
        outputs=1,
        hidden=[32],
        activation="relu",
        dropout=0.0,
    ),
    _row(
        "pal_a",
        "personal:fit_pal_a",
        "one reward for each user: nearness to an ideal point that is a mixture of few shared ones",
        "max(0, 1 - z), z = ||f(e_l) - a_u|| - ||f(e_w) - a_u||, a_u = f(P w_u), w_u in the simplex over k prototypes",
        "users with different tastes, each pair with its user; a new user needs about ten votes, by fit_user",
        "Chen et al. 2024, arXiv 2406.08469, model A",
        link="hinge",
        target="hard",
        hinge_margin=1.0,
        **IDEAL,
        activation="relu",
        mix="f(Pw)",
        even=False,
        bound=0.0,
    ),
    _row(
        "pal_b",
        "personal:fit_pal_b",
        "one reward for each user, whose ideal point depends on the prompt",
        "S(d), s = c cos(f(e), sum_k w_uk g_k(x)), c learned from 1/0.07 up to 100",
        "as pal_a, where what a user likes differs from prompt to prompt; more to learn, so more pairs",
        "Chen et al. 2024, arXiv 2406.08469, model B",
        target="hard",
        **IDEAL,
        activation="gelu",
        even=False,
    ),
    _row(
        "ensemble_reward",
        "ensemble:fit_ensemble",
        "the mean of linear heads trained in different orders, and how strongly they prefer each pair",
        "s = mean_m w_m . e; strength u = mean_m d_m, spread = sqrt(mean_m (d_m - u)^2), out of fold",
        "labels that may be wrong: pairs with a low strength, which the curate steps bands and flips read, are where "
        "the errors are",
        "Wang et al. 2024, arXiv 2401.06080",
        models=10,
    ),
    _row(
        "contrastive_reward",
        "contrast:fit_contrastive",
        "a network whose view of an answer stays while features are dropped, beside Bradley-Terry",
        "q S(d) + (1-q) S(-d) - contrast_weight mean_i log softmax_j(cos(h_i, h'_j) / contrast_temperature)_i",
        "noisy pairs and a wish for scores that generalise; contrast_of difference contrasts h(y_w) - h(y_l); the "
        "weight is ours, for the publication's was not to be had",
        "Wang et al. 2024, arXiv 2401.06080",
        hidden=[64],
        activation="relu",
        contrast_of="responses",
        contrast_weight=0.1,
        contrast_temperature=0.05,
        feature_dropout=0.1,
    ),
    _row(
        "meta_reward",
        "meta:fit_meta",
        "each step learns from the pairs as seen from weights that tell the policy's responses apart better (MetaRM)",
        "theta <- theta - a grad L(theta + eta grad J(theta)), J = 2/k^2 sum_{i<j} sigmoid(|s_i - s_j|)",
        "a policy that has moved away from the labelled answers, whose responses need no labels; it draws scores "
        "together where labels do not hold them apart, so check it on shifted pairs; eta is ours",
        "Dou et al. 2024, arXiv 2405.00438",
        eta=1.0,
        shifted_batch=16,
    ),
    _row(
        "gated_reward",
        "gating:fit_gated",
        "marks by attribute, mixed by a gate that reads the prompt (ArmoRM)",
        "S(d), s = c sum_k g_k(x) m_k(e), g = softmax(FFN(x) / gate_temperature); m_k - l_k m_v for unwanted v",
        "ratings by attribute and pairs: start from a model trained by regression, whose marks stay; the shares say "
        "why an answer is liked, and unwanted takes verbosity out of every mark",
        "Wang et al. 2024, arXiv 2406.12845",
        target="hard",
        hidden=[1024, 1024, 1024],
        dropout=0.2,
        gate_temperature=10.0,
        unwanted=-1,
    ),
]
FEATURE_ROWS = ROWS
READS_USERS = frozenset({"pal_a", "pal_b"})
READS_PROMPTS = frozenset({"pal_b", "gated_reward"})
READS_SHIFTED = frozenset({"meta_reward"})
READS_MARKS = frozenset({"gated_reward"})
"""Methods whose rows need a user, whose trainers need the prompts' features, responses of the policy, or the marks of
the head they start from.
"""

OWN = frozenset(name for row in ROWS for name in row.knobs or {}) - {*PLAIN, "hinge_margin"}
"""Knobs of the trainers; all others are the objective's."""

_OURS: dict[str, Any] = {"learning_rate": 1e-2, "epochs": 20.0, "batch": 64, "decay": "cosine"}
_PAL: dict[str, Any] = {"learning_rate": 1e-4, "epochs": 1.0, "batch": 4, "decay": "constant"}

PACES: dict[str, dict[str, Any]] = {
    **{row.name: dict(_OURS) for row in ROWS},
    "feature_network": {**_OURS, "learning_rate": 3e-3},
    "contrastive_reward": {**_OURS, "learning_rate": 3e-3},
    "pal_a": dict(_PAL),
    "pal_b": dict(_PAL),
    "gated_reward": {"learning_rate": 1e-3, "epochs": 20.0, "batch": 1024, "decay": "cosine"},
}
"""The released paces of PAL, for some 100,000 pairs, and of ArmoRM's gate, about; no publication trains the others on
fixed features.
"""


def settled(knobs: Mapping[str, Any], *, where: str = "The objective") -> dict[str, Any]:
    """Return all knobs of a row and of the functions that its switches name.

    Raises:
        InputError: a knob that neither the trainer nor the objective has.
    """
    from tiebreak.train.objectives.switches import of_pairs
    from tiebreak.train.objectives.switches import settled as of_objective

    own = {name: value for name, value in knobs.items() if name in OWN}
    rest = of_pairs({name: value for name, value in knobs.items() if name not in OWN})
    return {**of_objective(rest, where=where), **own}
