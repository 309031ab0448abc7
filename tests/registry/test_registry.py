"""Names, knobs, and the three doors through which a user's own thing comes in."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from tiebreak import registry
from tiebreak.records import InputError
from tiebreak.registry import Row, Table, load_object, nearest

ROWS = [
    Row(name="pairwise", does="asks which is better", target="json:dumps", knobs={"orders": "both", "rubric": ""}),
    Row(name="rubric", does="grades each alone", target="json:loads"),
]


@pytest.fixture
def judges() -> Table:
    return Table("judge", "judge", ROWS)


def test_a_table_lists_its_rows_in_the_order_written(judges: Table) -> None:
    assert [row.name for row in judges] == ["pairwise", "rubric"]
    assert len(judges) == 2
    assert "rubric" in judges
    assert "panel" not in judges


def test_a_row_loads_the_code_it_names(judges: Table) -> None:
    assert judges["pairwise"].load()([1]) == "[1]"


def test_listing_imports_nothing() -> None:
    table = Table("judge", "judge", [Row(name="far", does="", target="no_such_module_at_all:f")])
    assert [row.name for row in table] == ["far"]


def test_an_unknown_name_is_told_the_nearest(judges: Table) -> None:
    with pytest.raises(InputError, match=r"no judge called 'pairwse'; .*Did you mean 'pairwise'"):
        judges["pairwse"]


def test_a_name_like_nothing_gets_no_guess(judges: Table) -> None:
    with pytest.raises(InputError) as refused:
        judges["zzzzzz"]
    assert "Did you mean" not in str(refused.value)
    assert nearest("zzzzzz", ["pairwise"]) == ""


def test_knobs_are_the_defaults_overridden_by_what_is_given(judges: Table) -> None:
    settled = judges["pairwise"].settle({"rubric": "tldr"}, where="judge")
    assert settled == {"orders": "both", "rubric": "tldr"}
    assert judges["pairwise"].knobs["rubric"] == ""


def test_an_unknown_knob_is_refused_with_the_nearest(judges: Table) -> None:
    with pytest.raises(InputError, match=r"judge: 'pairwise' has no knob 'order'; .*Did you mean 'orders'"):
        judges["pairwise"].settle({"order": "one"}, where="judge")
    with pytest.raises(InputError, match="it has none"):
        judges["rubric"].settle({"x": 1}, where="judge")


def test_a_users_own_function_is_named_in_place(judges: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_judge_of_a_test.py").write_text("def shortest(rows):\n    return min(rows, key=len)\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert judges["own_judge_of_a_test:shortest"].load()(["bb", "a"]) == "a"
    with pytest.raises(InputError, match=r"has no 'shortst'.*Did you mean 'shortest'"):
        judges["own_judge_of_a_test:shortst"].load()


@pytest.mark.parametrize("path", ["no_such_module_at_all:f", "json.no_such_part:f"])
def test_a_missing_module_says_what_to_do(path: str) -> None:
    with pytest.raises(InputError, match=r"judge .*no module .*start from the folder that holds it"):
        load_object(path, what="judge")


@pytest.mark.parametrize("path", [":f", "json:", ".json:dumps", "json"])
def test_half_a_path_is_refused_in_a_sentence(path: str) -> None:
    with pytest.raises(InputError):
        load_object(path, what="judge")


def test_an_installed_package_adds_rows_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def points(*, group: str) -> list[EntryPoint]:
        asked.append(group)
        return [
            EntryPoint("theirs", "json:dumps", group),
            EntryPoint("pairwise", "json:loads", group),
        ]

    monkeypatch.setattr(registry, "entry_points", points)
    table = Table("judge", "judge", ROWS)
    assert table["theirs"].load()([1]) == "[1]"
    assert table["theirs"].does == "from json:dumps"
    assert asked == ["tiebreak.judge"]


def test_an_entry_point_does_not_replace_a_row_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "entry_points", lambda *, group: [EntryPoint("pairwise", "json:loads", group)])
    table = Table("judge", "judge", ROWS)
    assert table["pairwise"].target == "json:dumps"
    assert len(table) == 2
