"""Heads of every form learn planted preferences by the one training loop, and their folders say so when read again."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from tests.models.tiny import ENCODERS, RUNS, tokenizer
from tiebreak.models.attention import forest_mode
from tiebreak.models.forest import Tree, plant
from tiebreak.models.forms import Form, form_from
from tiebreak.models.heads import step_scores
from tiebreak.models.load import Loaded, load_reward, save_model, start_reward
from tiebreak.models.score import tree_scores
from tiebreak.train.objectives.by_head import HEAD_ROWS, form_knobs, form_row
from tiebreak.train.objectives.switches import settled
from tiebreak.train.offline import Compute, Example, Pace, fit

ROWS = {row.name: row for row in HEAD_ROWS}
GOOD, BAD, EOS = 11, 12, 0


def learned(
    method: str, kind: str, rows: list[Example], folder: Path, *, compute: Compute | None = None, **own: Any
) -> Loaded:
    """Train ``method`` on ``rows``, save it, and load what was saved."""
    row = ROWS[method]
    outputs = own.pop("outputs", row.knobs["outputs"])
    knobs = settled({name: value for name, value in row.knobs.items() if name != "outputs"})
    form = form_from(form_row(method, knobs, {**form_knobs(method), **own}), method)
    fields = {"model_type": kind, **(ENCODERS[kind] if kind in ENCODERS else RUNS[kind]), "initializer_range": 0.05}
    start = start_reward(fields, seed=0, tokenizer=tokenizer(), labels=outputs, form=form)
    pace = Pace(epochs=30.0, batch=8, learning_rate=3e-3)
    fit(start.model, rows, knobs, pace, seed=0, folder=folder, compute=compute or Compute())
    save_model(start.model, start.tokenizer, folder / "model", form=form)
    loaded = load_reward(folder / "model")
    assert loaded.form == form
    return loaded


def words(draw: random.Random, count: int) -> tuple[int, ...]:
    """Words that say nothing about what is to be learned."""
    return tuple(draw.randrange(30, 40) for _ in range(count))


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_a_process_reward_model_learns_which_steps_are_right(kind: str, tmp_path: Path) -> None:
    draw, rows = random.Random(0), []
    for _ in range(16):
        marks = [draw.choice((GOOD, BAD)) for _ in range(3)]
        branch = tuple(token for mark in marks for token in (20, 21, mark))
        labels = tuple(0.9 if mark == GOOD else 0.1 for mark in marks)
        taught = tuple(i % 3 == 2 for i in range(9))
        rows.append(Example(Tree(words(draw, 5), (branch,), (taught,)), steps=labels))
    loaded = learned("process_reward", kind, rows, tmp_path, compute=Compute(tokens=60), aggregate="product")
    plain = AutoModelForTokenClassification.from_pretrained(tmp_path / "model").eval()
    for row in rows:
        sequence = torch.tensor([row.tree.trunk + row.tree.branches[0]])
        with torch.no_grad(), forest_mode(loaded.model):
            p = plain(input_ids=sequence).logits.softmax(-1)[0, [len(row.tree.trunk) + i for i in (2, 5, 8)], 1]
            ours = torch.sigmoid(step_scores(loaded.model, plant([row.tree])))
        torch.testing.assert_close(ours, p, atol=1e-5, rtol=0)
        torch.testing.assert_close(p, torch.tensor(row.steps), atol=0.05, rtol=0)
        assert tree_scores(loaded, [row.tree]) == [[pytest.approx(float(p.double().prod()), abs=1e-5)]]


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_a_regression_learns_each_attribute_where_it_was_rated(kind: str, tmp_path: Path) -> None:
    draw, rows = random.Random(0), []
    for number in range(24):
        mark = (GOOD, BAD)[number % 2]
        ratings = (1.0, 0.0) if mark == GOOD else (0.0, 1.0)
        missing = tuple(float("nan") if number % 3 == k else rating for k, rating in enumerate(ratings))
        rows.append(Example(Tree(words(draw, 5), ((*words(draw, 2), mark, EOS),)), ratings=missing))
    weights = {"good": 1.0, "bad": -0.5}
    loaded = learned("regression", kind, rows, tmp_path, outputs=2, attribute_weights=weights)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    for number, row in enumerate(rows):
        with torch.no_grad():
            marks = plain(input_ids=torch.tensor([row.tree.trunk + row.tree.branches[0]])).logits[0]
        expected = torch.tensor([1.0, 0.0] if number % 2 == 0 else [0.0, 1.0])
        torch.testing.assert_close(marks, expected, atol=0.25, rtol=0)
        assert tree_scores(loaded, [row.tree]) == [[pytest.approx(float(marks[0] - 0.5 * marks[1]), abs=1e-5)]]


@pytest.mark.parametrize("compute", [Compute(), Compute(tokens=60)])
def test_a_general_preference_model_learns_a_circle(compute: Compute, tmp_path: Path) -> None:
    """Rock, paper, scissors: each mark beats the next, whatever the words around it."""
    draw, hands = random.Random(0), (11, 12, 14)
    pairs = [(hands[n % 3], hands[(n + 1) % 3]) for n in range(24)]
    rows = [Example(Tree(words(draw, 4), ((20, first), (20, second)))) for first, second in pairs]
    loaded = learned("gpm", "llama", rows, tmp_path, compute=compute)
    assert loaded.form == Form(kind="skew", tau=0.1)
    for first, second in tree_scores(loaded, [row.tree for row in rows]):
        assert first - second > 3.0
