"""Methods that differ from DPO by the link, by the target or by terms beside the comparison.

rho(y) = log pi(y|x) - log pi_ref(y|x), D = rho(y_w) - rho(y_l), r = beta rho, lp(y) = log pi(y|x), S(z) = -log
sigmoid(z), w is the chosen side and l the rejected one. Loads no torch.
"""

from __future__ import annotations

from typing import Any

from tiebreak.registry import Row
from tiebreak.train.objectives.row import method

_WRONG_LABELS = [
    method(
        "cdpo",
        "conservative DPO: labels that may be wrong are believed less",
        "(1 - smoothing) S(beta D) + smoothing S(-beta D)",
        "doubtful labels; margins settle at logit(1 - smoothing)/beta, they do not come out as without the flips",
        "Mitchell 2023, A note on DPO with noisy preferences (ericmitchell.ai/cdpo.pdf)",
        target="smoothed",
        smoothing=0.1,
    ),
    method(
        "robust_dpo",
        "DPO whose mean over labels flipped at a known rate is the loss of the right labels (rDPO)",
        "((1 - flip_rate) S(beta D) - flip_rate S(-beta D))/(1 - 2 flip_rate)",
        "labels flipped at random at a rate that is known; unbounded below, so watch margins and stop early",
        "Chowdhury et al. 2024, arXiv 2403.00409",
        target="unbiased",
        flip_rate=0.1,
    ),
    method(
        "osp",
        "DPO on soft labels: the probability of the judgments is what the policy should answer",
        "p S(beta D) + (1 - p) S(-beta D)",
        "pairs with a probability, such as those a model judged itself; how OSP pairs its answers is left to sampling",
        "Zhai et al. 2024, arXiv 2405.14103",
        target="soft",
    ),
    method(
        "spa",
        "DPO that softens the labels a bolder copy of the policy doubts (SPA, once Selfie)",
        "q S(beta D) + (1 - q) S(-beta D), q = 1 - smoothing where extrapolated D is among the lowest, else 1",
        "pairs that the policy labelled itself; reads both models' whole vocabulary, so it costs time; the moving "
        "threshold and extrapolate 1.5 are ours",
        "Kim et al. 2024, arXiv 2406.04412",
        target="noise_aware",
        smoothing=0.1,
        doubted=0.1,
        extrapolate=1.5,
        trusting=0.2,
    ),
]

_SQUARES_AND_HINGES = [
    method(
        "ipo_sum",
        "the gap of summed log-ratios is held at 1/(2 tau) (identity preference optimisation as in the paper)",
        "(D - 1/(2 tau))^2",
        "certain labels, on which DPO has no optimum; tau is not that of ipo_mean, the two differ by the length",
        "Azar et al. 2023, arXiv 2310.12036",
        link="square",
        beta=1.0,
        tau=0.1,
    ),
    method(
        "ipo_mean",
        "the gap of log-ratios per token is held at 1/(2 tau) (IPO as in TRL, where beta is tau)",
        "(rho_w/|y_w| - rho_l/|y_l| - 1/(2 tau))^2",
        "as ipo_sum, with sides of different lengths; 1/(2 tau) is in nats a token, so 0.1 asks for a lot",
        "Azar et al. 2023, arXiv 2310.12036; per token as its authors told TRL",
        score="mean_log_ratio",
        link="square",
        beta=1.0,
        tau=0.1,
    ),
    method(
        "hinge",
        "pairs that are apart by 1 say nothing more (hinge-norm of RSO)",
        "max(0, hinge_margin - beta D)",
        "against margins that grow for ever; RSO also samples its pairs by rejection. TRL files it under SLiC",
        "Liu et al. 2023, arXiv 2309.06657",
        link="hinge",
        beta=0.05,
        hinge_margin=1.0,
    ),
    method(
        "slic",
        "calibration of log-probabilities by a hinge, with the likelihood of the chosen side; no reference",
        "max(0, hinge_margin - lp_w + lp_l) - nll lp_w",
        "no memory for a reference; the paper's likelihood is of the SFT targets, here of the chosen side, as in HALOs",
        "Zhao et al. 2023, arXiv 2305.10425",
        score="log_prob",
        link="hinge",
        beta=1.0,
        hinge_margin=1.0,
        nll_over="sum",
        nll=0.1,
    ),
]

_DISTANCES = [
    method(
        "exo",
        "the policy's share of a pair moves to the smoothed label by reverse KL (EXO for pairs)",
        "s log(s/(1-smoothing)) + (1-s) log((1-s)/smoothing), s = sigmoid(beta D)",
        "a mode-seeking DPO; smoothing has to be above 0, where the loss is infinite",
        "Ji et al. 2024, arXiv 2402.00856",
        link="reverse_kl",
        target="smoothed",
        smoothing=1e-3,
    ),
    method(
        "rpo_backward",
        "the policy's share of a pair matches what the gap of rewards stands for (reward-aware RPO, NeMo's bwd_kl)",
        "KL(q || s), q = sigmoid(gap_scale margin), s = sigmoid(beta D)",
        "pairs with a gap of rewards on a scale that can be trusted; gap_scale times the gap has to stay below 36",
        "Sun et al. 2025, arXiv 2502.00203",
        link="forward_kl",
        target="gap",
        beta=0.2,
        gap_scale=1.0,
    ),
    method(
        "rpo_forward",
        "as rpo_backward, with the policy first in the divergence (NeMo's fwd_kl)",
        "KL(s || q), q = sigmoid(gap_scale margin), s = sigmoid(beta D)",
        "as rpo_backward, seeking modes; the names are NeMo's, where forward begins at the policy",
        "Sun et al. 2025, arXiv 2502.00203",
        link="reverse_kl",
        target="gap",
        beta=0.2,
        gap_scale=1.0,
    ),
    method(
        "rpo_square",
        "the gap of log-ratios is regressed on the gap of rewards (NeMo's sq)",
        "(beta D - gap_scale margin)^2",
        "as rpo_backward, where large gaps should keep counting",
        "Sun et al. 2025, arXiv 2502.00203",
        link="square_logit",
        target="gap",
        beta=0.2,
        gap_scale=1.0,
    ),
]

_SIDES = [
    method(
        "nca",
        "each side against noise, so that the chosen side's likelihood does not fall (NCA for pairs)",
        "S(r_w) + S(-r_w)/2 + S(-r_l)/2",
        "where DPO lowers both sides; the rejected side is pushed down without limit",
        "Chen et al. 2024, arXiv 2402.05369",
        link="nca",
        beta=0.01,
    ),
    method(
        "sppo",
        "each side's log-ratio is held at its win probability, a step of self-play towards a Nash equilibrium",
        "(rho_w - (p - 1/2)/beta)^2 + (rho_l - (1/2 - p)/beta)^2",
        "rounds on the policy's own answers, judged pair against pair; p is P(chosen beats rejected), target: hard is "
        "TRL's sppo_hard; published with RMSprop",
        "Wu et al. 2024, arXiv 2405.00675",
        link="sppo",
        target="soft",
        beta=1e-3,
    ),
    method(
        "apo_zero",
        "anchored: the chosen side becomes likelier and the rejected one less likely, each by itself",
        "1 - sigmoid(r_w) + sigmoid(r_l)",
        "chosen answers that are better than the policy's own",
        "D'Oosterlinck et al. 2024, arXiv 2408.06266",
        link="apo_zero",
    ),
    method(
        "apo_down",
        "anchored: both sides become less likely, the rejected one more so",
        "sigmoid(r_w) + 1 - sigmoid(r_w - r_l)",
        "chosen answers that are worse than the policy's own",
        "D'Oosterlinck et al. 2024, arXiv 2408.06266",
        link="apo_down",
    ),
    method(
        "bco_pair",
        "each side is a thumb up or down of its own (BCO on pairs, without the running mean)",
        "S(r_w) + S(-r_l)",
        "pairs, where bco takes rows of one answer; its loss bounds DPO's from above",
        "Jung et al. 2024, arXiv 2404.04656",
        link="bco_pair",
        beta=0.01,
    ),
]

_WHOLE_BATCH = [
    method(
        "aot",
        "the policy's gaps, sorted, against the reference's, sorted: dominance of distributions, not of each pair",
        "S(beta (gap_(i) - gap_ref_(i))), gap = lp_w - lp_l, (i) the i-th smallest of the batch",
        "large batches; a batch of one row is DPO",
        "Melnyk et al. 2024, arXiv 2406.05882",
        link="aot",
    ),
    method(
        "aot_unpaired",
        "rewards of chosen answers, sorted, against those of rejected ones, sorted",
        "S(r_w(i) - r_l(i)), (i) the i-th smallest of the batch",
        "large batches whose two sides do not belong together",
        "Melnyk et al. 2024, arXiv 2406.05882",
        link="aot_unpaired",
    ),
]

_FOUND = [
    method(
        "discopop",
        "a blend of logistic and exponential loss that a language model found (LRML)",
        "(1 - m) S(z) + m exp(-z), m = sigmoid(z/sharpness), z = beta D",
        "out of curiosity: it pulls the wrong way for z between -0.12 and 0.07",
        "Lu et al. 2024, arXiv 2406.08414",
        link="discopop",
        beta=0.05,
        sharpness=0.05,
    ),
]

_WITH_TERMS = [
    method(
        "rpo_nll",
        "DPO and the likelihood of the chosen side, each row by its own length (iterative RPO; not reward-aware RPO)",
        "S(beta D) - nll lp_w/|y_w|",
        "chains of reasoning, where DPO alone lowers the right answer too; target: smoothed and others go with it",
        "Pang et al. 2024, arXiv 2404.19733",
        nll_over="rows",
        nll=1.0,
    ),
    method(
        "rationale_dpo",
        "DPO that also learns to say why the chosen side is better",
        "S(beta D) - rationale mean_t log p_t(why | x, y_w, y_l)",
        "few pairs that carry a rationale; the paper's form, the released code's is rationale_link: logsigmoid with "
        "rationale_scale 0.1",
        "Just et al. 2024, arXiv 2407.14477",
        rationale=1.0,
        rationale_link="nll",
        rationale_scale=0.1,
    ),
    method(
        "rationale_orpo",
        "ORPO that also learns to say why the chosen side is better",
        "-mean_t log p_t(y_w) + pair_weight S(log odds_w - log odds_l) - rationale mean_t log p_t(why | x, y_w, y_l)",
        "as rationale_dpo, without a reference and from the base model",
        "Just et al. 2024, arXiv 2407.14477",
        score="log_odds",
        weight="constant",
        beta=1.0,
        pair_weight=0.1,
        rationale=1.0,
        rationale_link="nll",
        rationale_scale=0.1,
        nll=1.0,
    ),
    method(
        "hypo_online_kl",
        "DPO on given pairs, held to the reference on what the policy itself says (HyPO, the hybrid one)",
        "S(beta D) + online_kl KL(pi || pi_ref), the KL from one drawn answer a row",
        "pairs that do not cover what the policy may say; the answers have to be drawn anew as it learns. The weight "
        "is ours, try 1e-5 to 1e-2",
        "Song et al. 2024, arXiv 2406.01462",
        online_kl=1e-4,
    ),
    method(
        "selm",
        "DPO with a bonus for leaving what the policy says by habit (self-exploring)",
        "S(beta D) + optimism rho(y_drawn), optimism = alpha beta",
        "rounds of drawing, ranking and training; alpha is 0.001, so another beta wants another optimism",
        "Zhang et al. 2024, arXiv 2405.19332",
        beta=0.01,
        optimism=1e-5,
    ),
    method(
        "xpo",
        "online DPO with a bonus for exploring: answers of the reference become less likely",
        "S(beta D) + optimism lp(y_drawn), optimism = alpha",
        "rounds with one answer of the policy and one of the reference; as selm but for what the weight is called",
        "Xie et al. 2024, arXiv 2405.21046",
        optimism=1e-5,
    ),
]

ROWS: list[Row] = [
    *_WRONG_LABELS,
    *_SQUARES_AND_HINGES,
    *_DISTANCES,
    *_SIDES,
    *_WHOLE_BATCH,
    *_FOUND,
    *_WITH_TERMS,
]

_DPO: dict[str, Any] = {"learning_rate": 1e-6, "epochs": 1.0, "batch": 64, "decay": "constant"}
_RECIPES: dict[str, dict[str, Any]] = {
    "spa": {"learning_rate": 5e-7},
    "nca": {"learning_rate": 5e-6, "batch": 32, "decay": "cosine"},
    "sppo": {"learning_rate": 5e-7, "decay": "linear"},
    "apo_zero": {"learning_rate": 2e-7},
    "apo_down": {"learning_rate": 2e-7},
    "bco_pair": {"learning_rate": 5e-7, "batch": 128},
    "discopop": {"learning_rate": 5e-7, "epochs": 2.0, "decay": "cosine"},
    "rpo_nll": {"learning_rate": 7e-7, "batch": 16},
    "rationale_dpo": {"learning_rate": 5e-7},
    "rationale_orpo": {"learning_rate": 5e-7},
    "selm": {"learning_rate": 5e-7, "decay": "cosine"},
    "xpo": {"learning_rate": 5e-7, "decay": "linear"},
}
PACES: dict[str, dict[str, Any]] = {row.name: {**_DPO, **_RECIPES.get(row.name, {})} for row in ROWS}
"""Pace of each method, from its paper or the authors' configuration; what neither says is as in the DPO paper.

Four papers name a pace that does not carry over to a language model of which all weights learn, and those methods have
DPO's: IPO's is of a bandit (1e-2, 90 rows), robust DPO's of adapters (1e-3, 16 rows), SLiC's of T5 with Adafactor
(1e-4, 512 rows), and RSO's likewise. EXO's is DPO's own. NCA's is of adapters. ``xpo`` has TRL's.
"""
