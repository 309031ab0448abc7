"""A study's table and figure: what they show, what failed, and that both can stand alone."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest

from tiebreak.report.study import figure, markdown

SVG = "{http://www.w3.org/2000/svg}"


def estimate(value: float, half: float | None, n: int = 1200) -> dict[str, Any]:
    ends = (None, None) if half is None else (value - half, value + half)
    return {"value": value, "low": ends[0], "high": ends[1], "n": n}


def row(names: dict[str, str], win: float | None = 0.65, **more: Any) -> dict[str, Any]:
    if win is None:
        empty = dict.fromkeys(("win", "over_seeds", "beside", "kl", "words"))
        return {"names": names, "seeds": [], "by_seed": [], "failed": {"It is | wrong.": 3}, **empty}
    found = {
        "names": names,
        "seeds": [0, 1, 2],
        "win": estimate(win, 0.02),
        "by_seed": [win - 0.03, win, win + 0.03],
        "over_seeds": estimate(win, 0.07, 3),
        "beside": None,
        "kl": estimate(1.25, 0.2),
        "words": estimate(11.24, 0.31),
        "failed": {},
    }
    return found | more


def table(rows: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    axes: dict[str, dict[str, None]] = {}
    for one in rows:
        for axis, name in one["names"].items():
            axes.setdefault(axis, {})[name] = None
    told = {"seeds": [0, 1, 2], "baseline": "dpo", "of": "policy", "against": "sft", "measured_by": "the rule world"}
    counts = {"prompts": 1200, "words_against": 12.46, "cells": 3 * len(rows), "failed": 0}
    return {"axes": {axis: list(names) for axis, names in axes.items()}, **told, **counts, "rows": rows} | more


def cross(labels: list[str], methods: list[str]) -> list[dict[str, Any]]:
    return [row({"method": method, "labels": label}) for label in labels for method in methods]


def test_the_table_says_what_was_measured_and_each_number_with_its_interval() -> None:
    rows = cross(["hard", "soft"], ["dpo", "ipo"])
    rows[1] |= {"beside": estimate(-0.012, 0.005)}
    shown = markdown(table(rows)).splitlines()
    assert shown[0] == "# Method and labels: win rate against sft"
    assert shown[2] == (
        "12 cells, 3 seeds, 1,200 test prompts in all; measured by the rule world; answers of sft have 12.5 words."
    )
    assert shown[4] == "| labels | method | win rate | seeds | beside dpo | KL, nats | words |"
    plain = "65\u00a0% (63 to 67) | 62 to 68 |"
    assert shown[6] == f"| hard | dpo | {plain}  | 1.2 (1.1 to 1.4) | 11.2 (10.9 to 11.6) |"
    assert shown[7] == f"| hard | ipo | {plain} −1.2 (−1.7 to −0.7) | 1.2 (1.1 to 1.4) | 11.2 (10.9 to 11.6) |"
    assert sum(line.startswith("| soft | ") for line in shown) == 2
    assert "It is about these three trainings" in shown[-4]
    assert "this table has 1." in shown[-3]


def test_one_seed_one_axis_and_no_distance_leave_out_what_they_do_not_have() -> None:
    only = row({"method": "dpo"}, kl=None, by_seed=[0.65], words=estimate(11.2, None))
    shown = markdown(table([only], seeds=[0], words_against=None))
    assert "| method | win rate | seeds | words |" in shown
    assert "| dpo | 65\u00a0% (63 to 67) |  | 11.2 |" in shown
    assert "It is about this one training" in shown
    assert "KL" not in shown
    assert "beside" not in shown


def test_what_failed_is_named_once_and_cannot_break_the_table() -> None:
    rows = [
        row({"method": "dpo|x"}),
        row({"method": "kto"}, None),
        row({"method": "ipo"}, failed={"It is | wrong.": 1}),
    ]
    shown = markdown(table(rows))
    assert "| dpo\\|x | 65" in shown
    assert "| kto | failed |  |  |  |  |" in shown
    assert "- failed: kto (3 seeds); ipo (1 seed): It is | wrong." in shown


@pytest.mark.parametrize(
    ("labels", "methods"), [(["hard"], ["dpo"]), (["a", "b"], ["dpo", "ipo"]), (list("abcde"), ["m", "n"])]
)
def test_the_figure_stands_alone_and_names_every_panel_and_method(labels: list[str], methods: list[str]) -> None:
    pytest.importorskip("matplotlib")
    drawn = figure(table(cross(labels, methods)))
    root = ElementTree.fromstring(drawn)
    assert root.tag == f"{SVG}svg"
    texts = ["".join(text.itertext()).strip() for text in root.iter(f"{SVG}text")]
    for label in labels:
        assert label in texts
    for number, method in enumerate(methods, 1):
        assert any(text.split() == [str(number), method] for text in texts)
    assert texts.count("KL from sft, nats") == len(labels)
    assert "prefers-color-scheme: dark" in drawn
    for variable in ("--paper", "--ink", "--quiet", "--line", "--accent"):
        assert f"{variable}:" in drawn
    assert drawn == figure(table(cross(labels, methods)))


def test_the_figure_shows_failures_and_one_that_went_far_does_not_press_the_others_together() -> None:
    pytest.importorskip("matplotlib")
    rows = [row({"method": str(n)}) for n in range(3)] + [row({"method": "kto"}, None)]
    assert "failed</text>" in figure(table(rows))
    assert "root scale" not in figure(table(rows))
    rows[0]["kl"] = estimate(80.0, 5.0)
    assert "KL from sft, nats (root scale)" in figure(table(rows))
    for one in rows:
        one["kl"] = None
    assert "KL from" not in figure(table(rows))


def test_the_figure_takes_numbers_without_intervals() -> None:
    pytest.importorskip("matplotlib")
    rows = [row({"method": "dpo"}, win=0.5, kl=estimate(0.0, None))]
    rows[0]["win"] = estimate(0.5, None)
    assert ElementTree.fromstring(figure(table(rows))).tag == f"{SVG}svg"
