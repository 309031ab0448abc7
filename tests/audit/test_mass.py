"""The mass a judge leaves to the answers that were offered: by hand, and planted in a server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.judge.made import judge_at, ledger_with, pairs
from tests.judge.server import Server
from tests.judge.spoken import Spoken, saying
from tiebreak.audit.run import audit, measure
from tiebreak.audit.table import view
from tiebreak.judge.run import judge_pairs
from tiebreak.records import Finding, Judgment

BY = "model:judge@1"


def said(i: int, mass: Any, verdict: str = "slot") -> Judgment:
    winner = 0 if verdict == "slot" else None
    fields = {} if mass is None else {"mass": mass}
    return Judgment(
        prompt_id=f"p{i}",
        slots=("a", "b"),
        verdict=verdict,
        winner=winner,
        by=BY,
        fields=fields,  # type: ignore[arg-type]
    )


def look(judgments: list[Judgment], **knobs: Any) -> dict[str, Finding]:
    return {f.check: f for f in measure(view(judgments), checks=["mass"], knobs={"mass": knobs})}


def test_missing_mass_is_the_mean_of_what_is_left() -> None:
    judgments = [said(0, 0.9), said(1, 0.7), said(2, 0.2, "invalid"), said(3, None), said(4, None, "invalid")]
    found = look(judgments)
    assert found["mass.missing"].value == pytest.approx((0.1 + 0.3 + 0.8) / 3)
    assert found["mass.missing"].n == found["mass.invalid"].n == 3
    assert found["mass.invalid"].value == pytest.approx(1 / 3)
    assert found["mass.missing"].examples[0] == found["mass.invalid"].examples[0] == judgments[2].id
    assert "unreadable because offered answers have too little probability" in found["mass.invalid"].sentence


def test_a_judge_that_keeps_to_the_answers_is_fine_and_one_that_does_not_is_a_problem() -> None:
    fine, bad = ([said(i, mass) for i in range(40)] for mass in (0.98, 0.6))
    assert {f.verdict for f in look(fine).values()} == {"fine"}
    assert look(bad)["mass.missing"].verdict == "problem"
    assert look(bad, max_missing=0.5)["mass.missing"].verdict == "fine"


def test_judgments_without_token_probabilities_say_nothing() -> None:
    assert look([said(0, None), said(1, "much"), said(2, 7.0)]) == {}


def test_a_planted_loss_is_found(tmp_path: Path) -> None:
    """Half of the questions have 0.7 on the two digits, the others 0.05 on one: the other digit could have won."""

    def speak(asked: dict[str, Any]) -> Spoken:
        vague = "Summary 1 - A cat." in asked["messages"][0]["content"]
        return [("1", {"1": 0.05, "Both": 0.2} if vague else {"1": 0.5, "2": 0.2, "Both": 0.3})]

    made = pairs(30)
    with ledger_with(tmp_path / "l.db", made) as ledger, Server(saying(speak)) as server:
        judge_pairs(ledger, judge_at(server, reask=0), made)
        found = {f.check: f for f in audit(ledger, checks=["mass"])}
    assert found["mass.missing"].value == pytest.approx((0.3 + 0.95) / 2)
    assert found["mass.missing"].n == 60
    assert found["mass.invalid"].value == pytest.approx(1 / 2)
    assert found["mass.invalid"].verdict == found["mass.missing"].verdict == "problem"
