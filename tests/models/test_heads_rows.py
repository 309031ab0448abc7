"""The table of reward heads: each row's loss against its formula written out, and each head's form."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from tiebreak.models.forest import Tree, plant
from tiebreak.models.forms import Form, form_from, reward_of
from tiebreak.train.objectives.by_head import FORMS, HEAD_ROWS, HELPSTEER2, PACES, form_knobs, form_row
from tiebreak.train.objectives.seen import Seen
from tiebreak.train.objectives.switches import kind_of, needs_of, objective, settled
from tiebreak.train.pace import Pace

ROWS = {row.name: row for row in HEAD_ROWS}
Double = torch.float64
P, M, W = [0.9, 0.6, 1.0], [1.0, -2.0, 0.5], [1.0, 2.0, 0.5]


def knobs(name: str, **own: Any) -> dict[str, Any]:
    """What the objective is called with: all knobs but those of the head."""
    return settled({key: value for key, value in {**ROWS[name].knobs, **own}.items() if key != "outputs"})


def pairs(width: int = 0, *, grades: list[float] | None = None) -> Seen:
    """Three pairs, or one list of four answers, of which every two with different grades are a pair."""
    count = 6 if grades is None else 4
    source = torch.Generator().manual_seed(width)
    scores = torch.randn(*((count, width) if width else (count,)), dtype=Double, generator=source)
    made: dict[str, Any] = {"scores": scores.requires_grad_(True), "lengths": torch.full((count,), 3)}
    if grades is None:
        first = torch.tensor([0, 2, 4])
        made |= {"chosen": first, "rejected": first + 1, "tree": torch.arange(3).repeat_interleave(2)}
        made |= {"p": torch.tensor(P, dtype=Double), "margin": torch.tensor(M, dtype=Double)}
        return Seen(**made, weight=torch.tensor(W, dtype=Double).repeat_interleave(2))
    better = [(i, j) for i in range(4) for j in range(4) if grades[i] > grades[j]]
    made |= {"chosen": torch.tensor([i for i, _ in better]), "rejected": torch.tensor([j for _, j in better])}
    made |= {"p": torch.ones(len(better), dtype=Double), "share": torch.full((len(better),), 1 / len(better))}
    grade = torch.tensor(grades, dtype=Double)
    return Seen(**made, weight=torch.ones(4, dtype=Double), tree=torch.zeros(4, dtype=torch.long), grades=grade)


def alone(**more: Any) -> Seen:
    count = len(next(iter(more.values())))
    fields = {"alone": torch.arange(count), "tree": torch.arange(count), "lengths": torch.full((count,), 3)}
    return Seen(**fields, weight=torch.ones(count, dtype=Double), **more)


def softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def soft(p: float, z: float) -> float:
    return p * softplus(-z) + (1 - p) * softplus(z)


def mean(losses: list[float]) -> float:
    return sum(w * loss for w, loss in zip(W, losses, strict=True)) / sum(W)


def gaps(seen: Seen) -> list[float]:
    assert seen.scores is not None
    values = seen.scores.tolist()
    return [values[2 * i] - values[2 * i + 1] for i in range(3)]


OF_PAIRS = {
    "bradley_terry": lambda d, s: mean([soft(p, x) for p, x in zip(P, d, strict=True)]),
    "context_aware": lambda d, s: mean([soft(p, x) for p, x in zip(P, d, strict=True)]),
    "pairwise_preference": lambda d, s: mean([soft(p, x) for p, x in zip(P, d, strict=True)]),
    "bt_margin": lambda d, s: mean([softplus(m - x) for m, x in zip(M, d, strict=True)]),
    "bt_scaled": lambda d, s: mean([abs(m) * softplus(-x) for m, x in zip(M, d, strict=True)]),
    "bt_smoothed": lambda d, s: mean([soft(0.9, x) for x in d]),
    "bt_centred": lambda d, s: mean(
        [soft(p, x) + 0.01 * (s[2 * i] + s[2 * i + 1]) ** 2 for i, (p, x) in enumerate(zip(P, d, strict=True))]
    ),
    "gap": lambda d, s: mean([softplus(-x) for x in d]),
}


@pytest.mark.parametrize("name", OF_PAIRS)
def test_a_row_of_pairs_computes_its_formula(name: str) -> None:
    seen = pairs()
    assert seen.scores is not None
    found = objective(seen, **knobs(name)).loss
    assert float(found.detach()) == pytest.approx(OF_PAIRS[name](gaps(seen), seen.scores.tolist()), rel=1e-12)


def test_rows_reduce_to_bradley_terry() -> None:
    seen = pairs()
    plain = objective(seen, **knobs("bradley_terry", target="hard")).loss
    assert objective(seen, **knobs("bt_margin", margin_scale=0.0)).loss == plain
    assert objective(seen, **knobs("bt_smoothed", smoothing=0.0)).loss == plain
    ones = Seen(**{**vars(seen), "margin": torch.tensor([1.0, -1.0, 1.0], dtype=Double)})
    assert objective(ones, **knobs("bt_scaled")).loss == plain
    soft_one = objective(seen, **knobs("bradley_terry")).loss
    assert objective(seen, **knobs("bt_centred", centring=0.0)).loss == soft_one
    assert objective(seen, **knobs("context_aware")).loss == soft_one


def test_only_centring_sees_a_constant_added_to_all_scores() -> None:
    seen = pairs()
    assert seen.scores is not None
    moved = Seen(**{**vars(seen), "scores": seen.scores + 3.0})
    for name in OF_PAIRS:
        here, there = (float(objective(one, **knobs(name)).loss) for one in (seen, moved))
        assert (here == pytest.approx(there, rel=1e-12)) == (name != "bt_centred")


def test_gap_prefers_the_five_orderings_of_an_answer_and_a_draft() -> None:
    """Answers w behind draft l, w behind w, l behind l, l behind w have grades 2, 1, 1, 0."""
    seen = pairs(grades=[2.0, 1.0, 1.0, 0.0])
    assert seen.scores is not None
    wl, ww, ll, lw = seen.scores.tolist()
    five = [wl - lw, wl - ww, wl - ll, ww - lw, ll - lw]
    loss = objective(seen, **knobs("gap")).loss
    assert float(loss) == pytest.approx(sum(softplus(-x) for x in five) / 5, rel=1e-6)


def test_the_loss_of_gpm_is_the_surprise_of_the_form_it_is_saved_with() -> None:
    seen = pairs(6)
    assert seen.scores is not None
    form = form_from(form_row("gpm", knobs("gpm"), form_knobs("gpm")), "gpm")
    assert form == Form(kind="skew", tau=0.1)
    forest = plant([Tree((1,), ((2,), (3,)))] * 3)
    scores = reward_of(form, seen.scores, forest).tolist()
    z = [scores[2 * i] - scores[2 * i + 1] for i in range(3)]
    expected = mean([soft(p, x) for p, x in zip(P, z, strict=True)])
    assert float(objective(seen, **knobs("gpm")).loss) == pytest.approx(expected, rel=1e-12)
    scaled = knobs("gpm", beta=2.0, skew_tau=1.0)
    form = form_from(form_row("gpm", scaled, {}), "gpm")
    scores = reward_of(form, seen.scores, forest).tolist()
    expected = mean([soft(p, scores[2 * i] - scores[2 * i + 1]) for i, p in enumerate(P)])
    assert float(objective(seen, **scaled).loss) == pytest.approx(expected, rel=1e-12)


def test_gpm_learns_rock_paper_scissors_and_bradley_terry_cannot() -> None:
    wins = [(0, 1), (1, 2), (2, 0)] * 2

    def fitted(name: str, width: int) -> tuple[Tensor, float]:
        start = torch.randn(3, width, dtype=Double, generator=torch.Generator().manual_seed(0))
        table = start.squeeze(1) if width == 1 else start
        table.requires_grad_(True)
        optimizer = torch.optim.Adam([table], lr=0.05)
        flat = torch.tensor([i for pair in wins for i in pair])
        first = torch.arange(0, len(flat), 2)
        for _ in range(300):
            seen = Seen(
                scores=table[flat],
                lengths=torch.ones(len(flat)),
                weight=torch.ones(len(flat), dtype=Double),
                chosen=first,
                rejected=first + 1,
                p=torch.ones(len(first), dtype=Double),
            )
            loss = objective(seen, **knobs(name)).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return table.detach(), float(loss.detach())

    vectors, loss = fitted("gpm", 2)
    assert loss < 0.01
    forest = plant([Tree((1,), ((2,), (3,)))])
    for i, j in wins:
        first, second = reward_of(Form(kind="skew", tau=0.1), vectors[[i, j]], forest)
        assert first > second
    assert fitted("bradley_terry", 1)[1] == pytest.approx(math.log(2), abs=1e-6)


def test_regression_leaves_out_what_was_not_rated() -> None:
    scores = torch.tensor([[1.0, 2.0, 3.0], [0.0, -1.0, 4.0]], dtype=Double, requires_grad=True)
    ratings = torch.tensor([[2.0, math.nan, 0.0], [1.0, math.nan, math.nan]], dtype=Double)
    loss = objective(alone(ratings=ratings, scores=scores), **knobs("regression")).loss
    loss.backward()
    assert float(loss) == pytest.approx(((1 + 9) / 2 + 1) / 2)
    assert scores.grad is not None
    assert scores.grad[:, 1].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("name", ["outcome_reward", "process_reward"])
def test_a_label_is_the_probability_at_which_the_loss_is_least(name: str) -> None:
    label = torch.tensor([0.25, 0.9, 0.5], dtype=Double)
    scores = torch.logit(label).requires_grad_(True)
    loss = objective(alone(label=label, scores=scores), **knobs(name)).loss
    loss.backward()
    entropy = [-(p * math.log(p) + (1 - p) * math.log(1 - p)) for p in label.tolist()]
    assert float(loss) == pytest.approx(sum(entropy) / 3)
    assert scores.grad is not None
    torch.testing.assert_close(scores.grad, torch.zeros(3, dtype=Double), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ROWS)
def test_a_row_says_all_there_is_to_say_and_names_switches_that_exist(name: str) -> None:
    row = ROWS[name]
    assert all((row.does, row.formula, row.use, row.paper))
    assert "arXiv" in row.paper
    whole = knobs(name)
    assert set(row.knobs) - {"outputs"} <= set(whole)
    assert row.knobs["score"] == "head"
    assert row.knobs["nll"] == 0.0
    needs = {"bt_margin": ("margin",), "bt_scaled": ("margin",), "regression": ("ratings",)}
    assert needs_of(whole) == needs.get(name, () if kind_of(whole["link"]) == "pairs" else ("label",))
    assert Pace(**PACES[name]).rate(0, 1) > 0


@pytest.mark.parametrize("name", ROWS)
def test_a_heads_form_fits_its_outputs(name: str) -> None:
    own = form_knobs(name)
    assert set(own) == set(FORMS[name]) - {"kind"}
    form_from(form_row(name, knobs(name), own), name).check(ROWS[name].knobs["outputs"], name)


def test_the_forms_that_are_not_scalar() -> None:
    forms = {name: form_from(form_row(name, knobs(name), form_knobs(name)), name) for name in ROWS}
    assert {name: form.kind for name, form in forms.items() if form.kind != "scalar"} == {
        "gpm": "skew",
        "pairwise_preference": "pairwise",
        "gap": "gap",
        "regression": "attributes",
        "process_reward": "steps",
    }
    assert dict(zip(forms["regression"].names, forms["regression"].weights, strict=True)) == HELPSTEER2
    last = form_row("process_reward", {}, {"aggregate": "last", "separator": "\n\n"})
    assert form_from(last, "p") == Form(kind="steps", aggregate="last", separator="\n\n")
    own = form_row("regression", {}, {"attribute_weights": {"fun": 1, "length": -2}})
    assert form_from(own, "r") == Form(kind="attributes", names=("fun", "length"), weights=(1, -2))
    assert form_row("my_module:loss", {}, form_knobs("my_module:loss")) == {"kind": "scalar"}


def test_the_table_loads_no_torch() -> None:
    code = "import sys, tiebreak.train.objectives.by_head; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
