"""How the numbers of a study are pooled: seeds alike, prompts as clusters, differences on the same prompts."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tiebreak.recipe.sections import Study
from tiebreak.run.folder import write_json
from tiebreak.run.study_table import table_of
from tiebreak.stats.intervals import as_dict, clustered_mean, paired_difference, rate


def line(home: Path, method: str, seed: int, win: list[float | None], **more: Any) -> dict[str, Any]:
    """A finished cell with what it says of each prompt."""
    key = f"{method}-{seed}"
    columns = {
        "group": more.pop("group", [f"{seed}-{n}" for n in range(len(win))]),
        "win": win,
        "words": more.pop("words", [10] * len(win)),
        "words_against": [12] * len(win),
    }
    write_json(home / "prompts" / f"{key}.json", columns | more.pop("columns", {}))
    told = {"of": "policy", "against": "sft", "measured_by": "the rule world", "asked": f"asked-{seed}"}
    return {"key": key, "seed": seed, "names": {"method": method}, "failed": None, "seconds": 1.0} | told | more


def failed(method: str, seed: int) -> dict[str, Any]:
    return {"key": f"{method}-{seed}", "seed": seed, "names": {"method": method}, "failed": "It is wrong."}


def scores(seed: int, n: int = 50, better: float = 0.5) -> list[float | None]:
    draw = random.Random(seed)
    return [1.0 if draw.random() < better else draw.choice((0.0, 0.5)) for _ in range(n)]


def table(home: Path, lines: list[dict[str, Any]]) -> dict[str, Any]:
    methods = {one["names"]["method"]: {} for one in lines}
    return table_of(Study(seeds=sorted({one["seed"] for one in lines}), vary={"method": methods}), lines, home)


def test_equal_seeds_pool_to_the_clustered_rate_of_all_prompts(tmp_path: Path) -> None:
    parts = [scores(seed) for seed in range(3)]
    row = table(tmp_path, [line(tmp_path, "dpo", seed, part) for seed, part in enumerate(parts)])["rows"][0]
    every = [value for part in parts for value in part]
    assert row["win"] == pytest.approx(as_dict(rate(every)))
    assert row["by_seed"] == pytest.approx([sum(part) / 50 for part in parts])
    assert row["over_seeds"] == pytest.approx(as_dict(clustered_mean(row["by_seed"])))


def test_seeds_count_alike_however_many_prompts_they_have(tmp_path: Path) -> None:
    lines = [line(tmp_path, "dpo", 0, [1.0] * 10), line(tmp_path, "dpo", 1, [0.0] * 90)]
    assert table(tmp_path, lines)["rows"][0]["win"]["value"] == pytest.approx(0.5)


def test_certain_wins_keep_an_interval(tmp_path: Path) -> None:
    row = table(tmp_path, [line(tmp_path, "dpo", seed, [1.0] * 30) for seed in range(3)])["rows"][0]
    assert row["win"] == as_dict(rate([1.0] * 90))
    assert row["win"]["low"] < 1


def test_the_same_prompts_in_every_seed_are_no_more_prompts(tmp_path: Path) -> None:
    win, groups = scores(1), [str(n) for n in range(50)]
    once = table(tmp_path, [line(tmp_path, "dpo", 0, win, group=groups)])
    thrice = table(tmp_path, [line(tmp_path, "dpo", seed, win, group=groups) for seed in range(3)])
    assert (once["prompts"], thrice["prompts"]) == (50, 50)
    assert thrice["rows"][0]["win"] == pytest.approx(once["rows"][0]["win"] | {"n": 150})


def test_a_difference_is_paired_and_much_surer_than_the_two_rates(tmp_path: Path) -> None:
    base = [scores(seed) for seed in range(2)]
    better = [[1.0 if n % 10 == 0 else value for n, value in enumerate(part)] for part in base]
    lines = [line(tmp_path, "dpo", seed, part) for seed, part in enumerate(base)]
    lines += [line(tmp_path, "ipo", seed, part) for seed, part in enumerate(better)]
    found = table(tmp_path, lines)
    assert found["baseline"] == "dpo"
    first, second = found["rows"]
    assert first["beside"] is None
    flat = [[value for part in parts for value in part] for parts in (better, base)]
    assert second["beside"] == pytest.approx(as_dict(paired_difference(*flat)))
    assert second["beside"]["value"] == pytest.approx(second["win"]["value"] - first["win"]["value"])
    wide, narrow = (row["high"] - row["low"] for row in (second["win"], second["beside"]))
    assert narrow < wide / 2


def test_there_is_no_difference_of_other_prompts_or_of_what_failed(tmp_path: Path) -> None:
    lines = [line(tmp_path, "dpo", 0, scores(0)), failed("dpo", 1)]
    lines += [line(tmp_path, "ipo", 0, scores(1), asked="others"), line(tmp_path, "ipo", 1, scores(2))]
    row = table(tmp_path, lines)["rows"][1]
    assert row["beside"] is None
    assert row["seeds"] == [0, 1]


def test_a_failure_is_counted_and_the_other_seeds_are_pooled(tmp_path: Path) -> None:
    lines = [line(tmp_path, "dpo", 0, [1.0, 0.0, 1.0, 1.0]), failed("dpo", 1), failed("ipo", 0), failed("ipo", 1)]
    found = table(tmp_path, lines)
    dpo, ipo = found["rows"]
    assert (dpo["seeds"], dpo["win"]["value"], dpo["failed"]) == ([0], 0.75, {"It is wrong.": 1})
    assert dpo["over_seeds"] == {"value": 0.75, "low": None, "high": None, "n": 1}
    assert (ipo["win"], ipo["kl"], ipo["words"], ipo["by_seed"]) == (None, None, None, [])
    assert (found["cells"], found["failed"]) == (4, 3)
    nothing = table(tmp_path, [failed("dpo", 0)])
    assert (nothing["against"], nothing["prompts"], nothing["words_against"]) == ("", 0, None)


def test_a_prompt_without_a_readable_verdict_is_in_no_rate(tmp_path: Path) -> None:
    win = [1.0, None, 0.0, 1.0]
    lines = [line(tmp_path, "dpo", 0, win), line(tmp_path, "ipo", 0, [None, 1.0, 1.0, 1.0])]
    dpo, ipo = table(tmp_path, lines)["rows"]
    assert (dpo["win"]["value"], dpo["win"]["n"], dpo["words"]["n"]) == (pytest.approx(2 / 3), 3, 4)
    assert (ipo["beside"]["value"], ipo["beside"]["n"]) == (0.5, 2)


def test_distances_are_pooled_where_every_cell_has_them(tmp_path: Path) -> None:
    far = {"columns": {"kl": [0.5, 1.5]}}
    lines = [line(tmp_path, "dpo", 0, [1.0, 0.0], **far), line(tmp_path, "ipo", 0, [1.0, 0.0])]
    dpo, ipo = table(tmp_path, lines)["rows"]
    assert dpo["kl"] == pytest.approx(as_dict(clustered_mean([0.5, 1.5])))
    assert ipo["kl"] is None
