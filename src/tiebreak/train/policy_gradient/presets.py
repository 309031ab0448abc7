"""Published methods of policy gradient as rows: which switches they set, with the paper's scalars. Loads no torch."""

from __future__ import annotations

from typing import Any

from tiebreak.registry import Row, Table

TARGET = "tiebreak.train.policy_gradient.switches:policy_gradient"

PLAIN: dict[str, Any] = {
    "advantage": "group",
    "ratio": "token",
    "clip": "clip",
    "aggregation": "token_mean",
    "low": 0.2,
    "high": 0.2,
    "most": 3.0,
    "whiten": False,
    "gamma": 1.0,
    "lam": 0.95,
    "epsilon": 1e-4,
    "kl": "",
    "kl_in": "",
    "beta": 0.0,
    "kl_target": 0.0,
    "kl_horizon": 10_000.0,
    "entropy": 0.0,
    "value": 0.0,
    "value_clip": 0.2,
    "missing_eos": "",
    "missing_eos_value": 1.0,
    "truncated": "keep",
    "overlong": 0.0,
    "dynamic": 0,
    "optimal_beta": 0.5,
    "optimal_draws": 8,
    "scale": 1.0,
    "trust": 2.0,
}
"""Every knob with what it is where a method says nothing of it; docs/online.md tells what each does."""


def _row(name: str, does: str, paper: str, **knobs: Any) -> Row:
    return Row(name=name, does=does, target=TARGET, paper=paper, knobs={**PLAIN, **knobs})


_PPO = {"advantage": "gae", "whiten": True, "kl": "k1", "kl_in": "reward", "beta": 0.05, "value": 0.1}
_GROUP = {"aggregation": "sequence_mean"}

POLICY_GRADIENT = Table(
    "policy_gradient",
    "method",
    [
        _row(
            "ppo",
            "clipped ratios, generalised advantages from a value net, KL to the start paid in the reward",
            "Schulman et al. 2017, arXiv 1707.06347; Ziegler et al. 2019, arXiv 1909.08593",
            **_PPO,
        ),
        _row(
            "ppo_summarize",
            "PPO as for summaries: an answer without EOS scores -1 whatever it says, drawn at temperature 0.7",
            "Stiennon et al. 2020, arXiv 2009.01325; Huang et al. 2024, arXiv 2403.17031",
            **_PPO,
            missing_eos="replace",
            missing_eos_value=-1.0,
        ),
        _row(
            "reinforce",
            "REINFORCE with a learned baseline; beta is 0.05 / 0.95 of (1 - 0.05) reward - 0.05 KL",
            "Lee et al. 2023, arXiv 2309.00267",
            advantage="reinforce",
            clip="none",
            aggregation="sequence_sum",
            kl="k1",
            kl_in="reward",
            beta=0.05 / 0.95,
            value=0.5,
            value_clip=0.0,
        ),
        _row(
            "rloo",
            "each completion's baseline is the mean reward of the prompt's others; one ratio a completion",
            "Ahmadian et al. 2024, arXiv 2402.14740",
            advantage="rloo",
            ratio="sequence_sum",
            aggregation="sequence_mean",
            kl="k1",
            kl_in="reward",
            beta=0.05,
        ),
        _row(
            "remax",
            "REINFORCE whose baseline is the reward of the greedy answer",
            "Li et al. 2023, arXiv 2310.10505",
            advantage="greedy",
            clip="none",
            aggregation="sequence_sum",
            kl="k1",
            kl_in="reward",
            beta=0.1,
        ),
        _row(
            "reinforce++",
            "PPO's clip on returns whitened over the batch, without a value net",
            "Hu 2025, arXiv 2501.03262",
            advantage="whitened",
            whiten=True,
            kl="k1",
            kl_in="reward",
            beta=0.01,
        ),
        _row(
            "reinforce++_baseline",
            "rewards minus their group's mean, whitened over the batch",
            "Hu 2025, arXiv 2501.03262",
            advantage="group_mean",
            whiten=True,
            kl="k2",
            kl_in="loss",
            beta=0.01,
        ),
        _row(
            "grpo",
            "rewards standardised within the group; KL as a term of the loss, which pulls along KL(ref || pi)",
            "Shao et al. 2024, arXiv 2402.03300",
            **_GROUP,
            kl="k3",
            kl_in="loss",
            beta=0.04,
        ),
        _row(
            "dr_grpo",
            "GRPO without its two biases: no division by the spread, and a constant length divides",
            "Liu et al. 2025, arXiv 2503.20783",
            advantage="group_mean",
            aggregation="constant",
        ),
        _row(
            "dapo",
            "clip-higher, a mean over the batch's tokens, no truncated answers, a soft limit, only mixed groups",
            "Yu et al. 2025, arXiv 2503.14476",
            aggregation="batch_token_mean",
            high=0.28,
            truncated="mask",
            overlong=0.2,
            dynamic=4,
        ),
        _row("bnpo", "GRPO with a mean over the minibatch's tokens", "Xiao et al. 2025, arXiv 2506.02864"),
        _row(
            "gspo",
            "one ratio a completion, the geometric mean of its tokens', cut very near 1",
            "Zheng et al. 2025, arXiv 2507.18071",
            **_GROUP,
            ratio="sequence_mean",
            low=3e-4,
            high=4e-4,
        ),
        _row(
            "cispo",
            "the ratio is a capped weight without gradient, so no token is cut out",
            "MiniMax 2025, arXiv 2506.13585",
            clip="cispo",
            most=5.0,
            aggregation="batch_token_mean",
        ),
        _row(
            "a_star_po",
            "regress the log-ratio to the start on reward - V*, V* being estimated from the start's own answers",
            "Brantley et al. 2025, arXiv 2505.20686",
            advantage="optimal",
            ratio="reference_sum",
            clip="square",
            aggregation="sequence_mean",
            kl="k1",
            kl_in="reward",
            scale=1e-3,
        ),
    ],
)
"""Knobs are the switches and scalars that :mod:`tiebreak.train.online` reads."""

_RATES: dict[str, dict[str, Any]] = {
    "ppo": {"learning_rate": 1e-5, "batch": 128, "repeats": 4, "decay": "linear"},
    "ppo_summarize": {"learning_rate": 1.5e-5, "batch": 512, "repeats": 4, "decay": "linear", "temperature": 0.7},
    "reinforce": {"learning_rate": 1e-5, "batch": 128, "temperature": 0.9},
    "rloo": {"n": 4, "batch": 128},
    "remax": {"batch": 128},
    "reinforce++": {"batch": 128},
    "reinforce++_baseline": {"n": 8, "batch": 16},
    "dapo": {"n": 16, "batch": 512, "minibatches": 16},
    "gspo": {"n": 8, "minibatches": 4},
    "cispo": {"n": 8, "minibatches": 16},
    "a_star_po": {"batch": 128},
}
PACES: dict[str, dict[str, Any]] = {
    row.name: {
        "learning_rate": 1e-6,
        "epochs": 1.0,
        "batch": 16,
        "decay": "constant",
        "n": 1 if row.name in _RATES else 8,
        "repeats": 1,
        "minibatches": 1,
        "temperature": 1.0,
        **_RATES.get(row.name, {}),
    }
    for row in POLICY_GRADIENT
}
"""Pace of each method: prompts a batch, completions a prompt, times through a batch of rollouts, learning rate."""
