"""One more method is one row, and a function where no switch has what it needs."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.train.made import PACE, examples, start
from tiebreak.registry import Row, Table
from tiebreak.train.objectives.part import Part
from tiebreak.train.objectives.presets import LOSS, OBJECTIVES, SETTLES
from tiebreak.train.objectives.row import method
from tiebreak.train.objectives.seen import Compared
from tiebreak.train.objectives.switches import ALL_LINKS, LINKS
from tiebreak.train.offline import fit
from tiebreak.train.track import read_track


def trained(row: Row, folder: Path) -> list[float]:
    table = Table("objectives", "method", [*OBJECTIVES, row])
    knobs = table[row.name].settle({}, where="here")
    fit(start("dpo"), examples("dpo"), knobs, PACE, seed=0, folder=folder)
    return [line["loss"] for line in read_track(folder / "metrics.jsonl")]


def test_a_combination_of_what_there_is_takes_one_row(tmp_path: Path) -> None:
    mine = method(
        "cautious",
        "labels believed with 0.9, and the chosen side held likely",
        "0.9 S(z) + 0.1 S(-z) + 0.1 NLL",
        "here",
        "this file",
        target="smoothed",
        smoothing=0.1,
        nll=0.1,
    )
    assert (mine.target, mine.more) == (LOSS, SETTLES)
    losses = trained(mine, tmp_path)
    assert losses[-1] < losses[0]


def test_a_loss_that_is_not_there_takes_one_function_and_one_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def arc(pair: Compared, *, steepness: float = 2.0) -> Tensor:
        """pi/2 - atan(steepness z): bounded on both sides."""
        return math.pi / 2 - torch.atan(steepness * pair.z)

    for table in (LINKS, ALL_LINKS):
        monkeypatch.setitem(table, "arc", Part(arc))  # type: ignore[arg-type]
    mine = method("arc_dpo", "a bounded link", "pi/2 - atan(2 z)", "here", "this file", link="arc")
    losses = trained(mine, tmp_path)
    assert losses[0] == pytest.approx(math.pi / 2, abs=1e-4)
    assert losses[-1] < losses[0]
    table = Table("objectives", "method", [mine])
    assert table["arc_dpo"].settle({"steepness": 3.0}, where="here")["steepness"] == 3.0
