"""The slot bias in log-odds: by hand, and planted in a judge whose labels are then recovered or not."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.judge.made import Pair, judge_at, ledger_with
from tests.judge.server import Script, Server
from tiebreak.audit.run import audit, measure
from tiebreak.audit.table import view
from tiebreak.judge.run import judge_pairs
from tiebreak.judge.verdict import EDGE, soft_label
from tiebreak.records import Finding, Judgment, Prompt, Response

BY = "model:judge@1"
BIAS = 1.5


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def said(prompt: str, slots: str, p: float | None, **more: Any) -> Judgment:
    """A judgment of the answers a and b in the order of ``slots``."""
    ids = tuple(f"{prompt}{slot}" for slot in slots)
    kind = {"verdict": "slot", "winner": int((p or 0) < 0.5)} if "verdict" not in more else {}
    return Judgment(prompt_id=prompt, slots=ids, by=BY, probability=p, **{**kind, **more})


def deltas(judgments: list[Judgment]) -> list[Finding]:
    return [f for f in measure(view(judgments), checks=["position"]) if f.check == "position.delta"]


def test_delta_is_half_the_sum_of_the_log_odds_of_the_first_slot() -> None:
    odds = {"p": (2.0, 1.0), "q": (-0.5, 1.5), "r": (0.0, 0.0)}
    judgments = [
        said(p, slots, sigmoid(x)) for p, two in odds.items() for slots, x in zip(("ab", "ba"), two, strict=True)
    ]
    (found,) = deltas(judgments)
    values = np.array([1.5, 0.5, 0.0])
    assert (found.subject, found.n, found.verdict) == (BY, 3, "fine")
    assert found.value == pytest.approx(values.mean())
    half = 4.302653 * values.std(ddof=1) / math.sqrt(3)
    assert (found.low, found.high) == (pytest.approx(values.mean() - half), pytest.approx(values.mean() + half))
    assert "adds 0.67 to the log-odds of the first slot (95 % interval" in found.sentence


def test_prompts_with_several_items_are_one_cluster() -> None:
    def item(prompt: str, one: str, other: str, delta: float) -> list[Judgment]:
        return [said(prompt, slots, sigmoid(delta)) for slots in (one + other, other + one)]

    judgments = [*item("p", "a", "b", 1.0), *item("p", "c", "d", 1.0), *item("q", "a", "b", 0.0)]
    (found,) = deltas(judgments)
    assert (found.n, found.value) == (3, pytest.approx(2 / 3))
    se = math.sqrt(2 * ((2 / 3) ** 2 + (2 / 3) ** 2)) / 3
    assert found.high is not None
    assert found.value is not None
    assert found.high - found.value == pytest.approx(12.7062 * se, rel=1e-4)


def test_an_item_without_a_probability_in_an_order_says_nothing_about_delta() -> None:
    both = [said("p", slots, 0.7) for slots in ("ab", "ba")]
    text = [said("q", "ab", 0.7), said("q", "ba", None, verdict="slot", winner=0)]
    lost = [said("r", "ab", 0.7), said("r", "ba", None, verdict="invalid", fields={"mass": 0.1})]
    single = [said("s", "ab", 0.7)]
    (found,) = deltas([*both, *text, *lost, *single])
    assert (found.n, found.value) == (1, pytest.approx(math.log(0.7 / 0.3)))
    assert "n = 1 items with probabilities in both orders, 2 without" in found.sentence
    assert deltas([*text, *lost, *single]) == []


def test_certainty_is_cut_where_soft_labels_cut_it() -> None:
    judgments = [said("p", "ab", 1.0), said("p", "ba", 1.0), said("q", "ab", 0.0), said("q", "ba", 1.0)]
    (found,) = deltas(judgments)
    assert found.value == pytest.approx(math.log((1 - EDGE) / EDGE) / 2)


def graded_pairs(n: int) -> list[Pair]:
    """Pairs whose texts state their quality; half of them are shown with the worse answer first."""
    rng = np.random.default_rng(0)
    made = []
    for i in range(n):
        prompt = Prompt(text=f"question {i}")
        texts = [f"of {quality:.6f} quality" for quality in rng.normal(size=2)]
        first, second = (Response(prompt_id=prompt.id, text=text) for text in texts)
        made.append((prompt, first, second))
    return made


def quality(text: str) -> float:
    return float(text.split()[1])


def biased(bias: dict[frozenset[str], float]) -> Script:
    """An oracle: the log-odds of the first slot are the difference in quality plus the pair's slot bias."""
    return Script(
        prefer=lambda first, second: sigmoid(quality(first) - quality(second) + bias[frozenset((first, second))])
    )


def test_a_planted_bias_is_measured_and_taken_out_and_one_order_is_wrong(tmp_path: Path) -> None:
    """Log-odds recover every label, soft and hard. One order has the label wrong wherever the bias outweighs quality.

    A mean of probabilities keeps the side, by algebra, but shrinks the label: it is off by more than 0.05 for most.
    """
    made = graded_pairs(400)
    drawn = np.random.default_rng(1).normal(BIAS, 0.5, size=len(made))
    bias = {frozenset((a.text, b.text)): float(x) for (_, a, b), x in zip(made, drawn, strict=True)}
    with ledger_with(tmp_path / "l.db", made) as ledger, Server(biased(bias)) as server:
        judged = judge_pairs(ledger, judge_at(server), made, concurrency=64)
        found = ledger.judgments(judged.judgment_ids)
        report = {f.check: f for f in audit(ledger, checks=["position"])}
    delta = report["position.delta"]
    assert delta.low is not None
    assert delta.high is not None
    assert delta.low < BIAS < delta.high
    assert delta.value == pytest.approx(drawn.mean())
    assert delta.n == len(made)

    truth = [sigmoid(quality(a.text) - quality(b.text)) for _, a, b in made]
    rows = list(zip(made, found[::2], found[1::2], strict=True))
    labels = [[soft_label(two, a.id, b.id, how=how) for (_, a, b), *two in rows] for how in ("logit", "probability")]
    logit, mean = ([label.p for label in each if label is not None] for each in labels)
    assert logit == pytest.approx(truth)
    assert [p > 0.5 for p in logit] == [p > 0.5 for p in truth]
    assert [p > 0.5 for p in mean] == [p > 0.5 for p in truth]
    assert all(abs(p - 0.5) < abs(q - 0.5) for p, q in zip(mean, truth, strict=True))
    assert np.mean(np.abs(np.array(mean) - truth) > 0.05) > 0.5

    single = [j.p_better(a.id) for (_, a, _), j in zip(made, found[::2], strict=True)]
    wrong = np.mean([(p is not None and p > 0.5) != (q > 0.5) for p, q in zip(single, truth, strict=True)])
    outweighed = np.mean([abs(math.log(q / (1 - q))) < b and q < 0.5 for q, b in zip(truth, drawn, strict=True)])
    assert wrong == pytest.approx(outweighed)
    assert wrong > 0.25
