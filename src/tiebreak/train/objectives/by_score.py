"""Methods that differ from DPO by what a branch is worth, what is added to a comparison or how much a pair counts.

rho(y) = log pi(y|x) - log pi_ref(y|x), D = rho(y_w) - rho(y_l), lp(y) = log pi(y|x), S(z) = -log sigmoid(z), w is the
chosen side and l the rejected one. Loads no torch.
"""

from __future__ import annotations

from typing import Any

from tiebreak.registry import Row
from tiebreak.train.objectives.row import method

_WITHOUT_REFERENCE = [
    method(
        "simpo",
        "the mean log-probability of a token is the reward, and the chosen side has to win by a margin; no reference",
        "S(beta (lp_w/|y_w| - lp_l/|y_l|) - gamma)",
        "no memory for a reference; gamma is the margin itself, so a published ratio gamma/beta has to be multiplied "
        "by beta",
        "Meng et al. 2024, arXiv 2405.14734",
        score="mean_log_prob",
        offset="gamma",
        beta=10.0,
        gamma=3.0,
    ),
    method(
        "simpo_nll",
        "SimPO and the likelihood of the chosen side, which keeps long answers likely",
        "S(beta (lp_w/|y_w| - lp_l/|y_l|) - gamma) - nll mean_t log p_t(y_w)",
        "long outputs, where SimPO alone lets the chosen side's probability fall; the paper leaves the weights open, "
        "here they are SimPO's and 1",
        "Weng et al. 2024, arXiv 2411.00816",
        score="mean_log_prob",
        offset="gamma",
        beta=10.0,
        gamma=3.0,
        nll=1.0,
    ),
    method(
        "cpo",
        "DPO with a uniform reference, and the likelihood of the chosen side",
        "S(beta (lp_w - lp_l)) - nll mean_t log p_t(y_w)",
        "translation and other tasks where the chosen side is worth imitating; published for adapters, so lower "
        "learning_rate where all weights learn",
        "Xu et al. 2024, arXiv 2401.08417",
        score="log_prob",
        nll=1.0,
    ),
    method(
        "orpo",
        "fine-tuning on the chosen side, with the odds of both sides compared beside it; no reference, one stage",
        "-mean_t log p_t(y_w) + pair_weight S(log odds_w - log odds_l), odds = p/(1-p), p = exp(lp/|y|)",
        "instead of SFT and DPO one after the other; pair_weight is the paper's lambda (TRL calls it beta), and beta "
        "scales the odds",
        "Hong et al. 2024, arXiv 2403.07691",
        score="log_odds",
        weight="constant",
        beta=1.0,
        pair_weight=0.1,
        nll=1.0,
    ),
    method(
        "alphapo",
        "SimPO with a reward of another shape, a power of the mean probability in place of its logarithm",
        "S(beta (r_w - r_l) - gamma), r = (1 - p^-power_alpha)/power_alpha, p = exp(lp/|y|)",
        "against the likelihood of both sides falling under SimPO, which power_alpha 0 is",
        "Gupta et al. 2025, arXiv 2501.03884",
        score="power",
        offset="gamma",
        beta=2.5,
        power_alpha=0.25,
        gamma=0.25,
    ),
]

_BY_LENGTH = [
    method(
        "length_normalised_dpo",
        "DPO on log-ratios per token",
        "S(beta (rho_w/|y_w| - rho_l/|y_l|))",
        "sides of very different lengths; beta is about 5, since a mean is smaller than a sum by the length",
        "Lambert et al. 2024 (Tulu 3), arXiv 2411.15124",
        score="mean_log_ratio",
        beta=5.0,
    ),
    method(
        "r_dpo",
        "length-regularised DPO: a longer chosen side is pushed less (not robust DPO)",
        "S(beta D + length_penalty (|y_w| - |y_l|))",
        "judges that like length; length_penalty is per token and has to be tuned with beta",
        "Park et al. 2024, arXiv 2403.19159",
        offset="length",
        length_penalty=0.01,
    ),
    method(
        "ld_dpo",
        "DPO where tokens beyond the shorter side's length count for less",
        "S(beta (rho'_w - rho'_l)), rho' = rho of the first min|y| tokens + tail_weight rho of the rest",
        "against verbosity without a penalty; tail_weight 1 is DPO, and the paper tunes it for each model",
        "Liu et al. 2024, arXiv 2409.06411",
        score="shared_length",
        tail_weight=0.5,
    ),
]

_DIVERGENCES = [
    method(
        "forward_kl_dpo",
        "f-DPO held to its reference by KL(ref || policy), which covers all the reference does",
        "S(beta (f'_w - f'_l)), f' = 1 - exp(-rho)",
        "most diversity, least reward",
        "Wang et al. 2023, arXiv 2309.16240",
        score="forward_kl",
    ),
    method(
        "js_dpo",
        "f-DPO held to its reference by the Jensen-Shannon divergence",
        "S(beta (f'_w - f'_l)), f' = log 2 + log sigmoid(rho)",
        "between DPO and forward_kl_dpo",
        "Wang et al. 2023, arXiv 2309.16240",
        score="jensen_shannon",
    ),
    method(
        "alpha_divergence_dpo",
        "f-DPO held to its reference by an alpha-divergence (not AlphaDPO)",
        "S(beta (f'_w - f'_l)), f' = (exp((a-1) rho) - 1)/(a-1), a = divergence_alpha",
        "to choose between DPO (1) and forward_kl_dpo (0); the paper's own alpha is 1 less this",
        "Wang et al. 2023, arXiv 2309.16240",
        score="alpha_divergence",
        divergence_alpha=0.5,
    ),
]

_BY_REFERENCE = [
    method(
        "tr_dpo",
        "DPO whose reference follows the policy",
        "S(beta D), pi_ref <- 0.6 pi + 0.4 pi_ref every 512 steps",
        "trainings long enough to leave the reference far behind; how it follows is said under the stage's reference",
        "Gorbatovski et al. 2024, arXiv 2404.09656",
    ),
    method(
        "dpo_ref_clip",
        "DPO that takes the reference as neutral where it prefers the rejected side (Hybrid-DPO, one of two HyPOs)",
        "S(beta ((lp_w - lp_l) - max(0, lp_ref_w - lp_ref_l)))",
        "pairs that the reference ranks wrongly, on which DPO stops before the policy ranks them right",
        "Yuan et al. 2026, arXiv 2602.11902",
        score="log_prob_and_reference",
        compare="optimistic",
    ),
    method(
        "dpop",
        "DPO-Positive: it costs to make the chosen side less likely than the reference does",
        "S(beta (D - drop_penalty max(0, -rho_w)))",
        "sides that differ in few words, where DPO lowers both; drop_penalty 5 to 50",
        "Pal et al. 2024, arXiv 2402.13228",
        compare="penalised",
        beta=0.3,
        drop_penalty=50.0,
    ),
    method(
        "tdpo1",
        "token-level DPO: the divergence from the reference along both sides is compared too",
        "S(beta (D - (KL_l - KL_w))), KL = sum_t KL(ref || policy) over the vocabulary",
        "a bound on divergence at each token; reads both models' whole vocabulary, so it costs time",
        "Zeng et al. 2024, arXiv 2404.11999",
        score="log_ratio_and_kl",
        compare="sequence_kl",
    ),
    method(
        "tdpo2",
        "token-level DPO that lowers the rejected side's divergence to the chosen side's level (the paper's default)",
        "S(beta (D - token_kl_weight (KL_l - sg[KL_w])))",
        "rather than tdpo1; token_kl_weight 0 is DPO",
        "Zeng et al. 2024, arXiv 2404.11999",
        score="log_ratio_and_kl",
        compare="rejected_kl",
        token_kl_weight=0.5,
    ),
]

_BY_STRENGTH = [
    method(
        "odpo",
        "DPO with an offset: the gap has to exceed the logarithm of the gap of scores",
        "S(beta D - log_margin_scale log(margin))",
        "pairs with a positive gap of scores; gaps below 1 ask for less than DPO does",
        "Amini et al. 2024, arXiv 2402.10571",
        offset="log_margin",
        log_margin_scale=1.0,
    ),
    method(
        "margin_dpo",
        "DPO where a pair has to be apart by its own margin",
        "S(beta D - margin_scale margin)",
        "pairs with a strength; of a margin made by a judge only the order may mean something, then take odpo",
        "Touvron et al. 2023 (Llama 2's margin), arXiv 2307.09288; in DPO: Amini et al. 2024, arXiv 2402.10571",
        offset="margin",
        margin_scale=1.0,
    ),
    method(
        "wpo",
        "DPO where a pair counts as much as the policy would be likely to write it",
        "sg[min(1, w_w w_l)] S(beta D), w = exp(mean_t(log p_t - log sum_v p_v^2))",
        "pairs that other models wrote",
        "Zhou et al. 2024, arXiv 2406.11827",
        weight="policy",
        beta=0.01,
    ),
    method(
        "lambda_dpo",
        "RankDPO for text: all pairs of a graded list, weighted by what exchanging them would cost in DCG "
        "(not the multi-objective lambda-DPO)",
        "sum_{i over j} w_ij S(beta (rho_i - rho_j)), w = |2^psi_i - 2^psi_j| |1/log(1+tau_i) - 1/log(1+tau_j)|",
        "lists of answers with grades; ranks: scores ranks by the policy's own scores, as LiPO-lambda does",
        "Karthik et al. 2024, arXiv 2410.18013",
        weight="dcg",
        ranks="labels",
    ),
]

_BY_DATA = [
    method(
        "curry_dpo",
        "DPO on one band of a curriculum, a stage for each band",
        "S(beta D) on rows of one band",
        "several ranked answers a prompt: the curate step curriculum numbers each row's band from easy to hard; give "
        "each stage its band, and as its model, which is its reference too, the stage before",
        "Pattnaik et al. 2024, arXiv 2403.07230",
    ),
    method(
        "reward_augmented_dpo",
        "DPO on prompts that name the score to aim at, both ways round",
        "(1 - smoothing) S(beta D) + smoothing S(-beta D)",
        "pairs with scores: the curate step makes two rows of each, with the sides exchanged under the lower goal; "
        "ask for the highest score when answering",
        "Zhang et al. 2024, arXiv 2410.08067",
        target="smoothed",
        beta=0.01,
        smoothing=0.3,
    ),
    method(
        "fspo",
        "IPO on sums of log-ratios, behind a few of the same user's choices",
        "(D - 1/(2 tau))^2",
        "people who differ: rows whose prompt begins with labelled examples of their user; tau is the paper's beta",
        "Singh et al. 2025, arXiv 2502.19312",
        link="square",
        beta=1.0,
        tau=0.01,
    ),
    method(
        "mapl_intra",
        "a reward head on one answer behind two prompts, of which it fulfils all of one and not all of the other",
        "S(s(x_w, y) - s(x_l, y))",
        "prompts with several constraints, mixed with ordinary pairs; for a reward model only, since with log-ratios "
        "beta (log Z(x_w) - log Z(x_l)) does not cancel between two prompts and biases what is learned",
        "Sun et al. 2025, arXiv 2505.12845",
        score="head",
        beta=1.0,
    ),
]

ROWS: list[Row] = [
    *_WITHOUT_REFERENCE,
    *_BY_LENGTH,
    *_DIVERGENCES,
    *_BY_REFERENCE,
    *_BY_STRENGTH,
    *_BY_DATA,
]

_DPO: dict[str, Any] = {"learning_rate": 1e-6, "epochs": 1.0, "batch": 64, "decay": "constant"}
_RECIPES: dict[str, dict[str, Any]] = {
    "simpo": {"batch": 128, "decay": "cosine"},
    "simpo_nll": {"batch": 128, "decay": "cosine"},
    "cpo": {"learning_rate": 1e-4, "batch": 128, "decay": "inverse_sqrt"},
    "orpo": {"learning_rate": 5e-6, "epochs": 5.0, "batch": 32, "decay": "inverse_sqrt"},
    "alphapo": {"learning_rate": 7e-7, "batch": 128, "decay": "cosine"},
    "length_normalised_dpo": {"learning_rate": 5e-7, "batch": 128, "decay": "linear"},
    "tr_dpo": {"reference": {"compute": "step", "sync_every": 512, "sync_mix": 0.6}},
    "tdpo1": {"learning_rate": 5e-6},
    "tdpo2": {"learning_rate": 5e-6},
    "odpo": {"learning_rate": 5e-7},
    "wpo": {"epochs": 2.0, "batch": 128, "decay": "cosine"},
    "reward_augmented_dpo": {"learning_rate": 5e-7, "batch": 128, "decay": "cosine"},
    "mapl_intra": {"learning_rate": 1.5e-5, "decay": "cosine"},
}
PACES: dict[str, dict[str, Any]] = {row.name: {**_DPO, **_RECIPES.get(row.name, {})} for row in ROWS}
"""Pace of each method, from its paper or the authors' configuration; what neither says is as in the DPO paper.

``cpo`` was published for adapters. ``mapl_intra`` learns as the reward model ``bradley_terry`` does. ``reference`` says
how a stage's reference follows the policy.
"""
