"""Every preference loss of TRL's offline trainers is a row of ours: the same loss, the same gradient of every weight.

What a case does not set is our row's default. Where two conventions exist, the line above the case says which one ours
is and how TRL's is written in it. TRL 1.16 has no trainer for BCO on single answers, process rewards, XPO or Nash-MD
any more, and its online DPO is a loop around losses that stand here.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, NamedTuple

import pytest

if importlib.util.find_spec("trl") is None:
    pytest.skip("trl is not installed; it is a peer to compare with, not a dependency", allow_module_level=True)

import torch
from transformers import PreTrainedModel

from tests.models.tiny import causal
from tests.parity.test_trl_losses import BATCH, EPSILON, RATE, UPDATE, Taken, apart
from tests.parity.trl_made import (
    TRAINERS,
    assert_same,
    brief,
    golden,
    knobs_of,
    learner_of,
    ours,
    pairs,
    strong,
    theirs,
    thumbs,
    trainer_of,
)
from tiebreak.models.forest import Tree
from tiebreak.train.reference import Follower, Reference
from tiebreak.train.rows import Example
from tiebreak.train.update import Compute

KIND = pytest.mark.parametrize("kind", ["llama", "gpt2"])


class Case(NamedTuple):
    """One of our methods with knobs, the trainer of TRL with arguments that is the same, and rows to see it on."""

    method: str
    knobs: Mapping[str, Any]
    trainer: str
    args: Mapping[str, Any]
    rows: Callable[[], list[Example]] = pairs


def dpo(method: str, loss_type: str, *, knobs: Mapping[str, Any] | None = None, beta: float = 0.5, **args: Any) -> Case:
    """A loss of the DPO trainer whose beta is ours, large enough that the sizes of the log-ratios matter."""
    named = {"loss_type": [loss_type], "beta": beta, **args}
    return Case(method, {"beta": beta, **(knobs or {})}, "dpo", named)


DPO: dict[str, Case] = {
    "dpo": dpo("dpo", "sigmoid"),
    # TRL has no cDPO: its sigmoid does not read label_smoothing, and neither does ours without target: smoothed
    "dpo, with label_smoothing": dpo("dpo", "sigmoid", label_smoothing=0.2),
    "hinge": dpo("hinge", "hinge"),
    # TRL divides by length and calls tau beta; ours has tau and leaves beta 1
    "ipo_mean": dpo("ipo_mean", "ipo", beta=0.7, knobs={"beta": 1.0, "tau": 0.7}),
    "exo": dpo("exo", "exo_pair", label_smoothing=1e-3),
    "nca": dpo("nca", "nca_pair"),
    "robust_dpo": dpo("robust_dpo", "robust", label_smoothing=0.2, knobs={"flip_rate": 0.2}),
    "bco_pair": dpo("bco_pair", "bco_pair"),
    # TRL's P is 1, which is target: hard; both take the sum over the two sides
    "sppo, hard": dpo("sppo", "sppo_hard", knobs={"target": "hard"}),
    "sppo, hard, far away": dpo("sppo", "sppo_hard", beta=1e-3, knobs={"target": "hard"}),
    "aot": dpo("aot", "aot"),
    "aot, smoothed": dpo("aot", "aot", label_smoothing=0.2, knobs={"target": "smoothed", "smoothing": 0.2}),
    "aot_unpaired": dpo("aot_unpaired", "aot_unpaired"),
    "aot_unpaired, smoothed": dpo(
        "aot_unpaired", "aot_unpaired", label_smoothing=0.2, knobs={"target": "smoothed", "smoothing": 0.2}
    ),
    "apo_zero": dpo("apo_zero", "apo_zero"),
    "apo_down": dpo("apo_down", "apo_down"),
    "discopop": dpo("discopop", "discopop", beta=0.1, discopop_tau=0.07, knobs={"sharpness": 0.07}),
    "length_normalised_dpo": dpo("length_normalised_dpo", "sigmoid_norm", beta=5.0),
    # TRL's likelihood is a mean over all tokens of the batch; the paper's, our default, over each row's own
    "rpo_nll": Case(
        "rpo_nll",
        {"beta": 0.5, "nll": 0.7, "nll_over": "tokens"},
        "dpo",
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.7], "beta": 0.5},
    ),
    "forward_kl_dpo": dpo("forward_kl_dpo", "sigmoid", beta=0.01, f_divergence_type="forward_kl"),
    "js_dpo": dpo("js_dpo", "sigmoid", f_divergence_type="js_divergence"),
    "alpha_divergence_dpo": dpo(
        "alpha_divergence_dpo",
        "sigmoid",
        f_divergence_type="alpha_divergence",
        f_alpha_divergence_coef=0.3,
        knobs={"divergence_alpha": 0.3},
    ),
    "alpha_divergence_dpo, at 1": dpo(
        "alpha_divergence_dpo",
        "sigmoid",
        f_divergence_type="alpha_divergence",
        f_alpha_divergence_coef=1.0,
        knobs={"divergence_alpha": 1.0},
    ),
    "hinge of js": dpo(
        "hinge", "hinge", beta=1.5, f_divergence_type="js_divergence", knobs={"score": "jensen_shannon"}
    ),
    "exo of js": dpo(
        "exo",
        "exo_pair",
        label_smoothing=0.01,
        f_divergence_type="js_divergence",
        knobs={"score": "jensen_shannon", "smoothing": 0.01},
    ),
    "robust_dpo of alpha": dpo(
        "robust_dpo",
        "robust",
        label_smoothing=0.1,
        f_divergence_type="alpha_divergence",
        knobs={"score": "alpha_divergence"},
    ),
    "discopop of js": dpo("discopop", "discopop", f_divergence_type="js_divergence", knobs={"score": "jensen_shannon"}),
    "ld_dpo": dpo("ld_dpo", "sigmoid", ld_alpha=0.3, knobs={"tail_weight": 0.3}),
    "ld_dpo, shared tokens alone": dpo("ld_dpo", "sigmoid", ld_alpha=0.0, knobs={"tail_weight": 0.0}),
    "hinge of ld": dpo("hinge", "hinge", ld_alpha=0.3, knobs={"score": "shared_length", "tail_weight": 0.3}),
    # the weights of these rows are below 1, where ours are cut
    "wpo": dpo("wpo", "sigmoid", use_weighting=True),
    "exo, weighted": dpo("exo", "exo_pair", label_smoothing=1e-3, use_weighting=True, knobs={"weight": "policy"}),
}
ALONE: dict[str, Case] = {
    "kto": Case(
        "kto",
        {"beta": 0.5, "desirable_weight": 1.3, "undesirable_weight": 0.6},
        "kto",
        {"beta": 0.5, "desirable_weight": 1.3, "undesirable_weight": 0.6},
        thumbs,
    ),
    "kto, drifted": Case("kto", {}, "kto", {}, lambda: thumbs(seed=DRIFTED)),
    "apo_zero_unpaired": Case(
        "apo_zero_unpaired",
        {"beta": 0.5, "desirable_weight": 1.3, "undesirable_weight": 0.6},
        "kto",
        {"loss_type": "apo_zero_unpaired", "beta": 0.5, "desirable_weight": 1.3, "undesirable_weight": 0.6},
        thumbs,
    ),
}
DRIFTED = 2
"""Rows on which the policy is on average likelier than the reference behind other prompts, so that KTO's z0 counts."""

WITHOUT_REFERENCE: dict[str, Case] = {
    "cpo": Case("cpo", {"beta": 0.3, "nll": 0.7}, "cpo", {"beta": 0.3, "cpo_alpha": 0.7}),
    "cpo, smoothed": Case(
        "cpo", {"target": "smoothed", "smoothing": 0.2}, "cpo", {"label_smoothing": 0.2, "cpo_alpha": 1.0}
    ),
    # TRL's hinge has a margin of 1 after beta, SLiC's a beta of 1; its likelihood is a mean over tokens, SLiC's a sum
    "slic": Case(
        "slic",
        {"beta": 0.3, "nll": 0.7, "nll_over": "tokens"},
        "cpo",
        {"loss_type": "hinge", "beta": 0.3, "cpo_alpha": 0.7},
    ),
    # TRL calls tau beta, and averages over tokens here too
    "ipo without a reference": Case(
        "cpo",
        {"score": "mean_log_prob", "link": "square", "beta": 1.0, "tau": 0.7},
        "cpo",
        {"loss_type": "ipo", "beta": 0.7},
    ),
    # simpo_gamma is the margin itself on both sides, for TRL divides it by beta and multiplies it back
    "simpo": Case(
        "simpo",
        {"beta": 2.0, "gamma": 0.9},
        "cpo",
        {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.9, "cpo_alpha": 0},
    ),
    # what cpo_alpha is unless it is set
    "simpo_nll": Case(
        "simpo_nll", {"beta": 2.0, "gamma": 0.9}, "cpo", {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.9}
    ),
    "alphapo": Case(
        "alphapo",
        {"beta": 0.5, "power_alpha": 0.2, "gamma": 0.4},
        "cpo",
        {"loss_type": "alphapo", "beta": 0.5, "alpha": 0.2, "simpo_gamma": 0.4},
    ),
    # TRL's likelihood counts the prompt too, of which nothing is predicted here; it calls pair_weight beta
    "orpo": Case("orpo", {"pair_weight": 0.3}, "orpo", {"beta": 0.3}, brief),
    # three answers: ours learns the written one as a rationale is learned, a mean over rows where TRL's is over tokens
    "triple": Case("cpo", {"beta": 0.3, "nll": 0.0, "rationale": 0.7}, "tpo", {"beta": 0.3, "tpo_alpha": 0.7}, golden),
    "triple, hinge": Case(
        "cpo",
        {"link": "hinge", "beta": 0.3, "nll": 0.0, "rationale": 1.0},
        "tpo",
        {"loss_type": "hinge", "beta": 0.3},
        golden,
    ),
    "triple, ipo": Case(
        "cpo",
        {"score": "mean_log_prob", "link": "square", "beta": 1.0, "tau": 0.7, "nll": 0.0, "rationale": 1.0},
        "tpo",
        {"beta": 0.7, "loss_type": "ipo"},
        golden,
    ),
    "triple, by length": Case(
        "simpo",
        {"beta": 2.0, "gamma": 0.9, "rationale": 1.0},
        "tpo",
        {"beta": 2.0, "loss_type": "tpo-l", "tpo_l_gamma": 0.9},
        golden,
    ),
}
REWARDS: dict[str, Case] = {
    "bradley_terry": Case("bradley_terry", {}, "reward", {}),
    "bt_margin": Case("bt_margin", {}, "reward", {}, strong),
    "bt_centred": Case("bt_centred", {"centring": 0.2}, "reward", {"center_rewards_coefficient": 0.2}),
}
CASES = {**DPO, **ALONE, **WITHOUT_REFERENCE, **REWARDS}


@KIND
@pytest.mark.parametrize("name", CASES)
def test_loss_and_every_gradient_are_trls_in_one_forest_and_in_several(name, kind, tmp_path):
    case = CASES[name]
    expected = theirs(case.trainer, kind, case.rows(), tmp_path, **case.args)
    knobs = knobs_of(case.method, **case.knobs)
    for tokens in (None, sum(row.tree.size for row in expected.rows) // 3):
        found = ours(case.trainer, kind, expected.rows, knobs, Compute(tokens=tokens))
        assert_same(found, expected.taken)


def losses_of(config: Any) -> set[str]:
    """The names that TRL's configuration says ``loss_type`` may have."""
    said = next(field.metadata for field in fields(config) if field.name == "loss_type")
    return set(said["choices"]) if "choices" in said else set(re.findall(r"`'(\w+)'`", said["help"]))


@pytest.mark.parametrize("trainer", ["dpo", "kto", "cpo", "tpo"])
def test_every_loss_that_trl_names_is_in_the_table(trainer):
    config = TRAINERS[trainer][1]
    plain = config(output_dir="unused", use_cpu=True, bf16=False).loss_type
    found: set[str] = set()
    for case in CASES.values():
        if case.trainer == trainer:
            taken = case.args.get("loss_type", plain)
            found |= {taken} if isinstance(taken, str) else set(taken)
    assert found == losses_of(config)


@KIND
def test_ktos_batches_see_a_divergence_and_one_that_is_cut_at_0(kind, tmp_path):
    found = [theirs("kto", kind, thumbs(seed=seed), tmp_path / str(seed)).numbers["kl"] for seed in (DRIFTED, 0)]
    assert found[0] > 0.1
    assert found[1] == 0


@KIND
def test_orpos_likelihood_of_prompt_and_completion_in_trl_is_orpo_without_it_and_sft_on_both(kind, tmp_path):
    """Behind longer prompts TRL's is another loss than the paper's, and it is these two of ours together."""
    rows = pairs()
    expected = theirs("orpo", kind, rows, tmp_path, beta=0.3).taken
    written = [Example(Tree(row.tree.trunk[:1], (row.tree.trunk[1:] + row.tree.branches[0],))) for row in rows]
    odds = ours("orpo", kind, rows, knobs_of("orpo", pair_weight=0.3, nll=0.0))
    both = ours("orpo", kind, written, knobs_of("sft"))
    added = {name: odds.gradients[name] + both.gradients[name] for name in odds.gradients}
    assert_same(Taken(odds.loss + both.loss, added), expected)
    paper = ours("orpo", kind, rows, knobs_of("orpo", pair_weight=0.3))
    assert abs(paper.loss - expected.loss) > 0.01


def likeliest(model: PreTrainedModel, trunk: tuple[int, ...], length: int) -> tuple[int, ...]:
    """What the model itself would say, of ordinary tokens."""
    said = list(trunk)
    with torch.no_grad():
        for _ in range(length):
            said.append(int(model(torch.tensor([said])).logits[0, -1, 2:250].argmax()) + 2)
    return (*said[len(trunk) :], 0)


@KIND
def test_the_weight_of_a_pair_the_policy_would_write_is_1_and_more_in_trl(kind, tmp_path):
    model, rows = causal(kind).model, pairs()
    for number, row in enumerate(rows):
        branches = (likeliest(model, row.tree.trunk, 12), likeliest(model, row.tree.trunk, 8))
        rows[number] = row._replace(tree=row.tree._replace(branches=branches))
    weighted = ours("dpo", kind, rows, knobs_of("wpo", beta=0.5))
    plain = ours("dpo", kind, rows, knobs_of("dpo", beta=0.5))
    assert_same(weighted, plain)
    assert theirs("dpo", kind, rows, tmp_path, beta=0.5, use_weighting=True).taken.loss > 1.5 * weighted.loss


@KIND
def test_weights_after_steps_behind_a_reference_that_follows_are_trls(kind, tmp_path):
    """TR-DPO: every second step the reference becomes 0.6 of the policy and 0.4 of itself."""
    steps, every, mix = 5, 2, 0.6
    rows = pairs(BATCH * steps)
    args = {"max_steps": steps, "learning_rate": RATE, "adam_epsilon": EPSILON[kind], "max_grad_norm": 1e9}
    args |= {"lr_scheduler_type": "constant", "beta": 0.5}
    follows = {"sync_ref_model": True, "ref_model_sync_steps": every, "ref_model_mixup_alpha": mix}
    trainer = trainer_of("dpo", kind, rows, tmp_path, **args, **follows)
    before = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    moved = [{name: weight.detach() - before[name] for name, weight in trainer.model.named_parameters()}]
    for moves in (True, False):
        learner = learner_of("dpo", kind, knobs_of("tr_dpo", beta=0.5))
        follower = Follower(learner.reference, Reference(compute="step", sync_every=every, sync_mix=mix))
        with learner.ready():
            for number in range(steps):
                learner.step(rows[number * BATCH :][:BATCH], number, steps)
                if moves:
                    follower.follow(learner.model, number + 1)
        moved.append({name: weight.detach() - before[name] for name, weight in learner.model.named_parameters()})
    assert apart(moved[1], moved[0]) < UPDATE
    assert apart(moved[2], moved[0]) > 10 * UPDATE
