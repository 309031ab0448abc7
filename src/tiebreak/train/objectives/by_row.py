"""Methods whose rows are no pairs: one completion that is good or bad, or a graded list of completions.

rho(y) = log pi(y|x) - log pi_ref(y|x), lp(y) = log pi(y|x), S(z) = -log sigmoid(z), r the grades. Loads no torch.
"""

from __future__ import annotations

from functools import partial

from tiebreak.registry import Row
from tiebreak.train.objectives.row import method

_row = partial(method, target=None)

_ALONE = [
    _row(
        "kto",
        "good and bad completions as gains and losses around what other prompts' completions are worth",
        "good: w_d (1 - sigmoid(beta (rho - z0))); bad: w_u (1 - sigmoid(beta (z0 - rho))); "
        "z0 = max(0, mean rho of mismatched completions)",
        "thumbs up and down without pairs, and labels that may be wrong: extreme rows teach nothing; set the weights "
        "so that w_d n_good / (w_u n_bad) is between 1 and 4/3",
        "Ethayarajh et al. 2024, arXiv 2402.01306",
        score="log_ratio",
        link="kto",
        beta=0.1,
        desirable_weight=1.0,
        undesirable_weight=1.0,
    ),
    _row(
        "apo_zero_unpaired",
        "good completions become likelier than under the reference and bad ones less likely",
        "good: w_d (1 - sigmoid(beta rho)); bad: w_u sigmoid(beta rho)",
        "thumbs up and down, where the good completions are better than what the model writes; KTO without mismatched "
        "completions, so half the compute",
        "D'Oosterlinck et al. 2024, arXiv 2408.06266",
        score="log_ratio",
        link="apo_zero_alone",
        beta=0.1,
        desirable_weight=1.0,
        undesirable_weight=1.0,
    ),
    _row(
        "bco",
        "a classifier of good and bad completions whose logit is the implicit reward minus a running midpoint",
        "good: S(beta rho - delta); bad: S(delta - beta rho); delta = midpoint of the two sides' mean beta rho",
        "thumbs up and down with clean labels; where the sides' prompts differ, weight the bad rows by p/(1-p) of a "
        "classifier of prompts",
        "Jung et al. 2024, arXiv 2404.04656",
        score="log_ratio",
        link="bco",
        beta=0.1,
        delta_of="classes",
        delta_memory=1.0,
    ),
    _row(
        "nbpo",
        "labels of which a known share of the good ones went missing, learned through that noise",
        "good: -log((1-g) p); bad: -log(1 - (1-g) p); p = sigmoid(beta rho), g = missed",
        "implicit feedback, where no vote is not a bad vote; the paper learns its rate with the model, here missed is "
        "given and 0.3 stands for nothing but itself: set it, or take the one with the least held-out loss",
        "Yu and Qin 2020, arXiv 2007.07204",
        score="log_ratio",
        link="noise_channel",
        beta=0.1,
        missed=0.3,
        false_alarm=0.0,
    ),
    _row(
        "canonical_examples",
        "raise the likelihood of good examples and lower that of bad ones, down to a floor",
        "good: -lp/|y|; bad: max(lp/|y|, floor)",
        "edits from one example a case, with adapters, stopped when the loss on general text has risen by 1e-5 to 1e-3 "
        "of itself; the floor is ours, the paper bounds bad examples by that stop alone",
        "Hewitt et al. 2024, arXiv 2402.06155",
        score="mean_log_prob",
        link="likelihood",
        beta=1.0,
        likelihood_floor=-10.0,
    ),
]

_LISTS = [
    _row(
        "plackett_luce",
        "DPO on a whole ranking: each completion has to be picked before all that are ranked below it",
        "sum_i log(1 + sum_{j below i} exp(beta (rho_j - rho_i)))",
        "rankings of three or more; with two it is DPO; completions with equal grades are not compared",
        "Rafailov et al. 2023, arXiv 2305.18290, appendix A.3",
        score="log_ratio",
        link="plackett_luce",
        beta=0.1,
    ),
    _row(
        "best_of_list",
        "DPO on a choice: the best of the list has to be picked from all of it",
        "-log softmax(beta rho) of the best",
        "a winner is known and the order of the others is not; with two it is DPO",
        "Plackett 1975, doi 10.2307/2346567 (the first step of a ranking); Rafailov et al. 2023, arXiv 2305.18290",
        score="log_ratio",
        link="best_of_list",
        beta=0.1,
    ),
    _row(
        "infonca",
        "the choice among a list has to be that of the softmax of its grades",
        "-sum_i softmax(r / grade_temperature)_i log softmax(beta rho)_i",
        "grades whose size means something, as a reward model's; with the released temperature the best of grades 1 "
        "to 10 takes all, so raise it until the softmax of your grades is what you would choose by",
        "Chen et al. 2024, arXiv 2402.05369",
        score="log_ratio",
        link="list_choice",
        beta=0.01,
        grade_temperature=1e-4,
    ),
    _row(
        "nca_list",
        "each completion of a list is told apart from the reference, by the softmax of the grades",
        "sum_i [softmax(r / grade_temperature)_i S(beta rho_i) + S(-beta rho_i) / K]",
        "as infonca, and the best must not become less likely; grade_temperature as there",
        "Chen et al. 2024, arXiv 2402.05369",
        score="log_ratio",
        link="list_noise_contrast",
        beta=0.01,
        grade_temperature=1e-4,
    ),
    _row(
        "rrhf",
        "a token's mean log-probability has to rank a list as its grades do, and the best is imitated; no reference",
        "sum_{r_i < r_j} max(0, lp_i/|y_i| - lp_j/|y_j|) - nll mean_t log p_t(best)",
        "completions from many sources with a reward each; both weights are 1 as in the paper, and beta is that of "
        "the ranking",
        "Yuan et al. 2023, arXiv 2304.05302",
        score="mean_log_prob",
        link="rrhf",
        beta=1.0,
        nll=1.0,
    ),
    _row(
        "steerlm2",
        "match the policy that writes for given attributes to what an attribute model makes of the answers drawn",
        "KL(w || b), w = softmax(r - log pi_ref), b = softmax(rho), r = log P(a|x,y) + log P(y|x)",
        "a policy steered by attributes in its prompt; the reference is the policy that drew the answers, two rounds",
        "Wang et al. 2024, arXiv 2406.08673",
        score="log_ratio",
        link="steerlm2",
        beta=1.0,
        per_token=False,
    ),
    _row(
        "gpo",
        "each completion's log-ratio is regressed on how often it wins against the list",
        "mean_i (rho_i - (r_i - even) / beta)^2, r_i = mean_j P(i beats j)",
        "preferences with cycles, as a general preference model judges them, over three rounds of five answers; for "
        "preference scores in place of probabilities set even to 0",
        "Zhang et al. 2024, arXiv 2410.02197",
        score="log_ratio",
        link="gpo",
        beta=1e-3,
        even=0.5,
    ),
]

ROWS: list[Row] = [*_ALONE, *_LISTS]

PACES: dict[str, dict[str, str | float | int]] = {
    "kto": {"learning_rate": 5e-6, "epochs": 1.0, "batch": 32, "decay": "constant"},
    "apo_zero_unpaired": {"learning_rate": 2e-7, "epochs": 1.0, "batch": 64, "decay": "constant"},
    "bco": {"learning_rate": 5e-7, "epochs": 1.0, "batch": 128, "decay": "constant"},
    "nbpo": {"learning_rate": 5e-7, "epochs": 1.0, "batch": 128, "decay": "constant"},
    "canonical_examples": {"learning_rate": 1e-5, "epochs": 10.0, "batch": 5, "decay": "cosine"},
    "plackett_luce": {"learning_rate": 1e-6, "epochs": 1.0, "batch": 64, "decay": "constant"},
    "best_of_list": {"learning_rate": 1e-6, "epochs": 1.0, "batch": 64, "decay": "constant"},
    "infonca": {"learning_rate": 5e-6, "epochs": 1.0, "batch": 32, "decay": "cosine"},
    "nca_list": {"learning_rate": 5e-6, "epochs": 1.0, "batch": 32, "decay": "cosine"},
    "rrhf": {"learning_rate": 2e-5, "epochs": 3.0, "batch": 64, "decay": "cosine"},
    "steerlm2": {"learning_rate": 6e-6, "epochs": 1.0, "batch": 128, "decay": "constant"},
    "gpo": {"learning_rate": 5e-7, "epochs": 1.0, "batch": 64, "decay": "linear"},
}
"""Published pace of each method.

KTO: its authors' configuration (HALOs). APO and BCO: as their losses of pairs. NBPO is published for matrix
factorisation alone and takes BCO's. Canonical examples: 10 epochs and batches of 5 in the authors' code, which searches
learning rates from 3e-9 to 1e-2 for each model; 1e-5 is within. Rankings take DPO's. InfoNCA and NCA: the released
configuration, of low-rank adapters. RRHF: train.sh, on eight devices. SteerLM 2.0: the guide of NeMo-Aligner. GPO: the
authors' pipeline, with RMSprop.
"""
