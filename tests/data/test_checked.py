"""The examination of a set: each planted fault is found where it is, and what is only strange is only told."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tiebreak.data import checked, sets
from tiebreak.records import InputError

GOOD = {"prompt": "Why? ", "chosen": "because", "rejected": "no idea"}
TOLD = {"category": "safety", "quality": "a_vs_b", "source": "curated"}


def good(n: int, **changes: Any) -> dict[str, Any]:
    """A row that differs from every other ``n``."""
    row = {"prompt": f"Why {n}? ", "chosen": f"because of {n}", "rejected": f"no idea of {n}", "metadata": dict(TOLD)}
    return row | changes


def without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in GOOD.items() if name not in names}


def notices(*rows: Any) -> dict[str, tuple[int, ...]]:
    report = checked.check(rows)
    assert report.problems == ()
    return {notice.kind: notice.rows for notice in report.notices}


def test_a_good_set_has_no_problem_and_no_notice():
    report = checked.check([good(n) for n in range(5)])
    assert (report.n, report.problems, report.notices) == (5, (), ())
    assert report.counts == {"category": {"safety": 5}, "quality": {"a_vs_b": 5}, "source": {"curated": 5}}
    assert report.words == {"chosen": 3.0, "rejected": 4.0}
    assert report.longer[::3] == (0.0, 5)


@pytest.mark.parametrize(
    ("row", "kind", "said"),
    [
        ("text", "not_an_object", "found a text; expected an object with prompt, chosen, rejected."),
        (None, "not_an_object", "found null; expected an object"),
        (without("prompt"), "missing", "'prompt' is missing; expected a text."),
        (without("chosen") | {"choosen": "yes"}, "missing", "'chosen' is missing; .* Did you mean 'choosen'?"),
        (GOOD | {"rejected": None}, "not_text", "'rejected' is null; expected a text."),
        (GOOD | {"chosen": ["a"]}, "not_text", r"'chosen' is an array \(\[\"a\"\]\); expected a text."),
        (GOOD | {"chosen": True}, "not_text", r"'chosen' is true or false \(true\)"),
        (GOOD | {"prompt": " \n"}, "blank", "'prompt' is blank; write the text or delete the row."),
        (GOOD | {"chosen": ""}, "blank", "'chosen' is blank"),
        (GOOD | {"rejected": "because"}, "same_answers", "chosen and rejected are the same text"),
        (
            GOOD | {"rejected": " because\n"},
            "same_answers",
            "chosen and rejected differ only in the white space around them",
        ),
        (GOOD | {"metadata": [1]}, "metadata", r"metadata is an array \(\[1\]\); expected an object or null."),
        (GOOD | {"chosen": "\ud83d"}, "broken_character", "'chosen' holds half of a character"),
    ],
)
def test_a_fault_of_a_row_is_a_problem_with_its_number(tmp_path, row, kind, said):
    report = checked.check([good(1), row, good(3)])
    assert [(problem.kind, problem.rows) for problem in report.problems] == [(kind, (2,))]
    assert re.match(f"row 2: {said}", report.problems[0].text)
    assert report.n == 3
    assert report.longer.n == 2
    path = tmp_path / "set.json"
    path.write_text(json.dumps([good(1), row]))
    with pytest.raises(InputError, match="row 2"):
        checked.usable(path)


def test_a_row_said_twice_and_a_row_said_the_other_way_round_are_problems():
    swapped = GOOD | {"chosen": GOOD["rejected"], "rejected": GOOD["chosen"]}
    report = checked.check([GOOD, good(2), GOOD | {"metadata": dict(TOLD)}, swapped])
    assert [problem[:2] for problem in report.problems] == [("duplicate", (3, 1)), ("contradiction", (4, 1))]
    assert report.problems[0].text == "row 3: it says the same as row 1; delete one of them."
    assert "row 4: it says the opposite of row 1" in report.problems[1].text


def test_two_people_may_say_the_same_and_a_disagreement_is_only_told():
    ann, ben, cleo = (GOOD | {"metadata": {"annotator": name}} for name in ("ann", "ben", "cleo"))
    assert "disagreement" not in notices(ann, ben)
    swapped = cleo | {"chosen": GOOD["rejected"], "rejected": GOOD["chosen"]}
    assert notices(ann, ben, swapped)["disagreement"] == (1, 2, 3)


def test_keys_given_twice_are_problems_with_the_line_of_the_row(tmp_path):
    path = tmp_path / "set.json"
    path.write_text(
        '[\n\n{"prompt": "a: ", "chosen": "b", "rejected": "c"},\n'
        '{"prompt": "d: ", "chosen": "e",\n "rejected": "f", "rejected": "g", "metadata": {"note": 1, "note": 2}}\n]'
    )
    report = checked.validate(path)
    assert [problem.text.split(" is ")[0] for problem in report.problems] == [
        "row 2 (line 4): 'rejected'",
        "row 2 (line 4): 'note'",
    ]


@pytest.mark.parametrize("text", ['[{"prompt": "a",}]', '{"prompt": 1}', "", "[NaN]"])
def test_a_file_that_is_no_set_is_a_problem_and_a_missing_one_a_mistake(tmp_path, text):
    path = tmp_path / "set.json"
    path.write_text(text)
    report = checked.validate(path)
    assert [problem.kind for problem in report.problems] == ["not_a_set"]
    assert report.as_json()["longer"] == {"value": None, "low": None, "high": None, "n": 0}
    assert path.read_text() == text
    with pytest.raises(InputError, match="does not exist"):
        checked.validate(tmp_path / "other.json")


def test_an_empty_set_is_a_problem(tmp_path):
    assert [problem.kind for problem in checked.check([]).problems] == ["empty"]
    sets.write(tmp_path / "set.json", [])
    with pytest.raises(InputError, match="holds no rows"):
        checked.usable(tmp_path / "set.json")


def test_null_metadata_is_told_and_never_crashes_b11():
    report = checked.check([GOOD | {"metadata": None}, good(2) | {"metadata": {}}, without() | {"prompt": "b? "}])
    assert report.problems == ()
    assert [notice[:2] for notice in report.notices if notice.kind == "no_metadata"] == [("no_metadata", (1, 3))]
    assert report.counts["category"] == {"not given": 3}


def test_quality_type_is_read_as_quality_and_told_b11():
    rows = [good(n, metadata={"source": "synthetic", "quality_type": "a_vs_b"}) for n in range(5)]
    assert notices(*rows) == {"quality_type": (1, 2, 3, 4, 5)}
    assert checked.check(rows).counts["quality"] == {"a_vs_b": 5}
    assert checked.check(rows).counts["source"] == {"synthetic": 5}
    assert notices(good(1, metadata=TOLD | {"quality_type": "other"})) == {"unknown_key": (1,)}


def test_unknown_keys_and_values_are_kept_and_told_with_the_nearest_known_one():
    strange = good(2, metadata={"categry": "safety", "category": "saftey", "source": "web"}, rank=1)
    report = checked.check([good(1), strange])
    assert {notice.kind for notice in report.notices} == {"unknown_key", "unknown_category", "unknown_source"}
    told = " ".join(notice.text for notice in report.notices)
    assert "'categry' in row 2 is not known; it is kept as it is. Did you mean 'category'?" in told
    assert "the category 'saftey' in row 2 is none of" in told
    assert "Did you mean 'safety'?" in told
    assert "the key 'rank' in row 2" in told
    assert report.counts["source"] == {"curated": 1, "web": 1}


def test_a_value_that_is_no_text_is_told_and_counted():
    report = checked.check([good(1, metadata={"category": ["safety"], "source": 3})])
    assert report.counts["category"] == {'["safety"]': 1}
    assert {notice.kind for notice in report.notices} == {"unknown_category", "unknown_source"}


def test_a_prompt_without_the_space_that_most_prompts_end_with_is_told_b10():
    rows = [good(n) for n in range(5)]
    assert notices(*rows, good(6, prompt="Bare?")) == {"prompt_end": (6,)}
    assert notices(*(good(n, prompt=f"Bare {n}?") for n in range(5))) == {}


def test_an_answer_that_stands_in_more_than_a_fifth_of_the_rows_is_told_b6():
    rows = [good(n) for n in range(8)]
    assert notices(*rows, good(8, chosen="canned"), good(9, rejected=" canned")) == {}
    assert notices(*rows[1:], good(8, chosen="canned"), good(9, rejected=" canned")) == {"repeated_answer": (8, 9)}
    assert notices(good(1)) == {}


def test_the_length_baseline_shows_labels_that_follow_length_b6():
    report = checked.check([good(n, chosen="three words here", rejected="one") for n in range(20)])
    assert report.longer.value == 1.0
    assert report.longer.low > 0.8


def test_a_listing_tells_what_is_missing_broken_and_collected_b11(tmp_path):
    sets.write(tmp_path / sets.SETS["starter"], [good(1)])
    sets.write(tmp_path / sets.COLLECTED / "user_preferences_001.json", [GOOD])
    (tmp_path / sets.COLLECTED / "broken.json").write_text("[")
    listed = {name: report for name, _, report in checked.listing(tmp_path)}
    assert list(listed) == [*sets.SETS, "broken", "user_preferences_001"]
    assert [name for name, report in listed.items() if report is None] == list(sets.SETS)[1:]
    assert [listed[name].n for name in ("starter", "broken", "user_preferences_001")] == [1, 0, 1]
    assert [problem.kind for problem in listed["broken"].problems] == ["not_a_set"]
