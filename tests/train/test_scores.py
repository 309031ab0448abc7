"""Score maps, comparisons and offsets: the formulas, where they stay finite, and what they refuse."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.train.seen_made import Double, lists, numbers, pairs
from tiebreak.records import InputError
from tiebreak.train.objectives.scores import COMPARES, OFFSETS, SCORES, SLACK, log1mexp
from tiebreak.train.objectives.seen import Seen
from tiebreak.train.objectives.switches import SWITCHES

PLAIN = {name for name, part in SCORES.items() if not part.reads}


def score(name: str, seen: Seen, **knobs: float) -> list[float]:
    found: list[float] = SCORES[name](seen, knobs=knobs).tolist()
    return found


def slope(
    name: str, values: list[float], *, dtype: torch.dtype = Double, length: int = 1, **knobs: float
) -> list[float]:
    """d score / d log-prob of branches of this length, against a reference of 0."""
    logps = torch.tensor(values, dtype=dtype, requires_grad=True)
    seen = Seen(
        lengths=torch.full((len(values),), length),
        weight=torch.ones(len(values), dtype=dtype),
        logps=logps,
        reference=torch.zeros(len(values), dtype=dtype),
    )
    (found,) = torch.autograd.grad(SCORES[name](seen, knobs=knobs).sum(), logps)
    assert torch.isfinite(found).all()
    listed: list[float] = found.tolist()
    return listed


SEEN = pairs(3, seed=7)
LOGPS, REFERENCE, LENGTHS = (getattr(SEEN, name).tolist() for name in ("logps", "reference", "lengths"))
RHO = [a - b for a, b in zip(LOGPS, REFERENCE, strict=True)]
MEAN = [a / n for a, n in zip(LOGPS, LENGTHS, strict=True)]


@pytest.mark.parametrize(
    ("name", "knobs", "expected"),
    [
        ("log_ratio", {}, RHO),
        ("log_prob", {}, LOGPS),
        ("mean_log_ratio", {}, [r / n for r, n in zip(RHO, LENGTHS, strict=True)]),
        ("mean_log_prob", {}, MEAN),
        ("log_odds", {}, [math.log(math.exp(m) / (1 - math.exp(m))) for m in MEAN]),
        ("power", {"power_alpha": 0.25}, [(1 - math.exp(m) ** -0.25) / 0.25 for m in MEAN]),
        ("power", {"power_alpha": -2.0}, [(math.exp(m) ** 2 - 1) / 2 for m in MEAN]),
        ("forward_kl", {}, [1 - math.exp(-r) for r in RHO]),
        ("jensen_shannon", {}, [math.log(2 / (1 + math.exp(-r))) for r in RHO]),
        ("alpha_divergence", {"divergence_alpha": 0.3}, [(math.exp(-0.7 * r) - 1) / -0.7 for r in RHO]),
        ("alpha_divergence", {"divergence_alpha": 2.0}, [math.exp(r) - 1 for r in RHO]),
    ],
)
def test_score_maps_are_their_formulas(name: str, knobs: dict[str, float], expected: list[float]) -> None:
    assert score(name, SEEN, **knobs) == pytest.approx(expected, rel=1e-12)


def test_a_part_of_the_tail_counts_under_policy_and_reference_alike() -> None:
    own, other = SEEN.readings["public"].tolist(), SEEN.compared["public"].tolist()
    for weight in (0.0, 0.3, 1.0):
        mine = [p + weight * (lp - p) for p, lp in zip(own, LOGPS, strict=True)]
        theirs = [p + weight * (lp - p) for p, lp in zip(other, REFERENCE, strict=True)]
        expected = [a - b for a, b in zip(mine, theirs, strict=True)]
        assert score("shared_length", SEEN, tail_weight=weight) == pytest.approx(expected, rel=1e-12)


def test_limits_of_the_shaped_scores() -> None:
    assert score("power", SEEN, power_alpha=0.0) == score("mean_log_prob", SEEN)
    assert score("power", SEEN, power_alpha=1e-9) == pytest.approx(MEAN, rel=1e-7)
    assert score("alpha_divergence", SEEN, divergence_alpha=1.0) == score("log_ratio", SEEN)
    assert score("alpha_divergence", SEEN, divergence_alpha=1 + 1e-9) == pytest.approx(RHO, rel=1e-7)
    assert score("alpha_divergence", SEEN, divergence_alpha=0.0) == score("forward_kl", SEEN)
    assert score("shared_length", SEEN, tail_weight=1.0) == pytest.approx(RHO, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("log_ratio", 1.0), ("forward_kl", 1.0), ("jensen_shannon", 0.5), ("alpha_divergence", 1.0)],
)
def test_at_the_reference_a_divergence_is_worth_nothing_and_rises_as_its_second_derivative(
    name: str, expected: float
) -> None:
    """f''(1) is 1 for KL both ways and for alpha-divergences, and 1/2 for Jensen-Shannon."""
    seen = pairs([0.0], [0.0])
    assert score(name, seen) == pytest.approx([0.0, 0.0], abs=1e-15)
    assert slope(name, [0.0]) == pytest.approx([expected], abs=1e-12)


@given(st.floats(-30, -1e-14))
def test_log_of_1_minus_e_to_the_x(x: float) -> None:
    found = float(log1mexp(torch.tensor(x, dtype=Double)))
    exact = math.log1p(-math.exp(x)) if x < -math.log(2) else math.log(-math.expm1(x))
    assert found == pytest.approx(exact, rel=1e-12, abs=1e-15)


def test_odds_are_of_the_mean_and_stay_exact_where_a_token_is_nearly_sure() -> None:
    """Summed, the log-probability of a long answer makes odds of e^-300; near 0, 1 - p loses all its digits."""
    near = replace(pairs([-1e-12], [-1e-6]), lengths=torch.tensor([1, 2]))
    assert score("log_odds", near) == pytest.approx([-math.log(1e-12), -math.log(5e-7)], rel=1e-6)
    long = replace(pairs([-300.0], [-300.0]), lengths=torch.tensor([300, 100]))
    assert score("log_odds", long)[0] == pytest.approx(-1 - math.log(1 - math.exp(-1)))
    for dtype in (torch.float32, Double):
        steep = slope("log_odds", [0.0, -1e-30, -1e-3, -1.0, -200.0], dtype=dtype)
        assert steep[2:] == pytest.approx([1 / -math.expm1(x) for x in (-1e-3, -1.0, -200.0)], rel=1e-3)


@pytest.mark.parametrize("name", [name for name, part in SCORES.items() if not {*part.reads} & {"scores", "public"}])
@pytest.mark.parametrize("dtype", [torch.float32, Double])
def test_every_score_map_is_finite_far_out(name: str, dtype: torch.dtype) -> None:
    seen = pairs([-200.0, 200.0], [200.0, -200.0])
    logps, reference = (value.detach().to(dtype) for value in (seen.logps, seen.reference) if value is not None)
    readings = {key: value.detach().to(dtype) for key, value in seen.readings.items()}
    where = logps.clamp_max(0) if name in PLAIN else logps  # a log-probability by itself is never above 0
    where.requires_grad_(True)
    found = SCORES[name](replace(seen, logps=where, reference=reference, readings=readings), knobs={})
    (gradient,) = torch.autograd.grad(found.sum(), where)
    assert torch.isfinite(found).all()
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("name", ["mean_log_ratio", "mean_log_prob", "log_odds", "power"])
def test_a_branch_without_learned_tokens_spoils_nobodys_gradient(name: str) -> None:
    """Only branches beside have none; their scores are computed and thrown away."""
    logps = numbers([-3.0, 0.0]).requires_grad_(True)
    seen = Seen(
        lengths=torch.tensor([2, 0]),
        weight=torch.ones(2, dtype=Double),
        logps=logps,
        reference=torch.zeros(2, dtype=Double),
    )
    (gradient,) = torch.autograd.grad(SCORES[name](seen, knobs={})[0], logps)
    assert torch.isfinite(gradient).all()
    assert gradient[1] == 0


def compare(name: str, chosen: list[list[float]], rejected: list[list[float]], **knobs: float) -> list[float]:
    found: list[float] = COMPARES[name](
        torch.tensor(chosen, dtype=Double), torch.tensor(rejected, dtype=Double), knobs=knobs
    ).tolist()
    return found


def test_three_answers_may_beat_each_other_in_a_circle() -> None:
    """Unit vectors at 120 degrees: 0.704 all the way round, which no single score can give."""
    turns = [[math.cos(a), math.sin(a)] for a in (0.0, 2 * math.pi / 3, 4 * math.pi / 3)]
    wins = compare("skew", turns, [*turns[1:], turns[0]], skew_tau=1.0)
    assert [1 / (1 + math.exp(-z)) for z in wins] == pytest.approx([0.70391] * 3, abs=1e-5)
    sharper = compare("skew", turns, [*turns[1:], turns[0]], skew_tau=0.1)
    assert sharper == pytest.approx([10 * z for z in wins])


@given(st.lists(st.floats(-5, 5), min_size=8, max_size=8), st.floats(-5, 5))
def test_skew_changes_its_sign_with_the_sides_and_grows_with_both_lengths(eight: list[float], factor: float) -> None:
    """p_ij + p_ji = 1 whatever the embeddings, and nothing is normalised: strength lies in the lengths."""
    one, two = [eight[:4]], [eight[4:]]
    here = compare("skew", one, two)
    assert here == [-z for z in compare("skew", two, one)]
    assert compare("skew", one, one) == [0.0]
    scaled = [[factor * x for x in one[0]]]
    assert compare("skew", scaled, two) == pytest.approx([factor * here[0]], abs=1e-9)


def test_skew_is_written_out_in_blocks_and_is_bradley_terry_beside_a_one() -> None:
    """The sign is + v_w[0] v_l[1] - v_w[1] v_l[0]."""
    expected = (1 * 6 - 2 * 5) + (3 * 8 - 4 * 7)
    assert compare("skew", [[1.0, 2.0, 3.0, 4.0]], [[5.0, 6.0, 7.0, 8.0]], skew_tau=1.0) == [expected]
    assert compare("skew", [[0.7, 1.0]], [[-0.4, 1.0]], skew_tau=1.0) == pytest.approx([1.1])


def test_only_the_chosen_side_pays_for_falling_below_the_reference() -> None:
    chosen, rejected = numbers([-2.0, 2.0, 0.0]).requires_grad_(True), numbers([-3.0, -3.0, -3.0]).requires_grad_(True)
    z = COMPARES["penalised"](chosen, rejected, knobs={"drop_penalty": 5.0})
    assert z.tolist() == pytest.approx([-2.0 - 5.0 * (2.0 - SLACK) + 3.0, 5.0, 3.0], abs=1e-12)
    down, up = torch.autograd.grad(z.sum(), [rejected, chosen])
    assert up.tolist() == [6.0, 1.0, 1.0]
    assert down.tolist() == [-1.0, -1.0, -1.0]


def test_a_reference_that_is_wrong_about_a_pair_counts_as_neutral() -> None:
    chosen, rejected = [[-5.0, -4.0], [-5.0, -9.0]], [[-7.0, -6.0], [-7.0, -6.0]]
    assert compare("optimistic", chosen, rejected) == [2.0 - 2.0, 2.0]


def test_divergence_of_the_rejected_side_counts_against_the_pair() -> None:
    """TDPO1 moves both divergences, TDPO2 the rejected one only; a higher one there makes z smaller in both."""
    chosen = numbers([3.0, 0.5]).reshape(1, 2).requires_grad_(True)
    rejected = numbers([1.0, 0.8]).reshape(1, 2).requires_grad_(True)
    both = COMPARES["sequence_kl"](chosen, rejected, knobs={})
    one = COMPARES["rejected_kl"](chosen, rejected, knobs={"token_kl_weight": 0.5})
    assert both.tolist() == pytest.approx([2 - (0.8 - 0.5)])
    assert one.tolist() == pytest.approx([2 - 0.5 * (0.8 - 0.5)])
    assert [g.tolist() for g in torch.autograd.grad(both.sum(), [chosen, rejected])] == [[[1.0, 1.0]], [[-1.0, -1.0]]]
    assert [g.tolist() for g in torch.autograd.grad(one.sum(), [chosen, rejected])] == [[[1.0, 0.0]], [[-1.0, -0.5]]]


@pytest.mark.parametrize(
    ("name", "width", "said"),
    [
        ("skew", 3, "even number of numbers .* gives 3"),
        ("skew", 0, "gives 1"),
        ("difference", 2, "one number .* gives 2; .*skew"),
        ("penalised", 2, "one number"),
        ("optimistic", 0, "log_prob_and_reference"),
        ("sequence_kl", 0, "log_ratio_and_kl"),
        ("rejected_kl", 3, "two numbers"),
    ],
)
def test_scores_of_the_wrong_width_are_refused_with_the_cure(name: str, width: int, said: str) -> None:
    values = torch.zeros((2, width) if width else 2)
    with pytest.raises(InputError, match=said):
        COMPARES[name](values, values, knobs={})


def offset(name: str, seen: Seen, **knobs: float) -> list[float]:
    found: list[float] = OFFSETS[name](seen, knobs=knobs).tolist()
    return found


def test_offsets_are_their_formulas() -> None:
    """A margin is subtracted; the length term is not: a longer chosen side needs less of a push."""
    seen = pairs(3, margin=[0.5, 2.0, 1.0], lengths=[4, 7, 9, 2, 5, 5])
    assert offset("gamma", seen, gamma=1.5) == [-1.5] * 3
    assert offset("margin", seen, margin_scale=2.0) == [-1.0, -4.0, -2.0]
    logs = [-0.3 * math.log(m) for m in (0.5, 2.0, 1.0)]
    assert offset("log_margin", seen, log_margin_scale=0.3) == pytest.approx(logs, rel=1e-12, abs=1e-15)
    assert offset("length", seen, length_penalty=0.1) == pytest.approx([-0.3, 0.7, 0.0], rel=1e-12)


def test_a_margin_turns_its_sign_with_the_pair() -> None:
    """A flipped pair has -m, so that its other side's lead is what is asked for."""
    here, flipped = pairs(1, margin=[0.8]), pairs(1, margin=[-0.8])
    assert offset("margin", here) == [-value for value in offset("margin", flipped)]


@pytest.mark.parametrize("margin", [0.0, -1.0, math.nan])
def test_the_logarithm_of_a_gap_that_is_none_is_refused(margin: float) -> None:
    with pytest.raises(InputError, match="drop pairs whose scores do not differ"):
        offset("log_margin", pairs(2, margin=[1.0, margin]))


def test_offsets_of_a_list_are_one_a_pair() -> None:
    seen = lists([[2.0, 1.0, 0.0], [1.0, 0.0]])
    for name, knobs in {"gamma": {"gamma": 1.0}, "margin": {}, "log_margin": {}, "length": {}}.items():
        assert len(offset(name, seen, **knobs)) == 4
    assert offset("margin", seen) == [-1.0, -2.0, -1.0, -1.0]


def test_the_names_of_the_switches_and_of_their_scalars() -> None:
    """One name means one thing: no two functions of different switches share a scalar's."""
    assert list(OFFSETS) == ["gamma", "margin", "log_margin", "length"]
    assert list(COMPARES) == ["difference", "skew", "penalised", "optimistic", "sequence_kl", "rejected_kl"]
    named = {name: {knob for part in table.values() for knob in part.knobs} for name, (_, table) in SWITCHES.items()}
    for (one, knobs), (two, others) in itertools.combinations(named.items(), 2):
        assert not knobs & others, (one, two, knobs & others)
