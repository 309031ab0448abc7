"""Preference sets: what is read is what was written, and merging, splitting and filtering lose nothing silently."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiebreak.data import sets
from tiebreak.records import InputError


def row(
    prompt: str = "Why? ", chosen: str = "because of this", rejected: str = "no idea", **told: Any
) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "metadata": told or None}


def rows_of(**prompts_of: int) -> list[dict[str, Any]]:
    """Rows with so many prompts of each category."""
    return [
        row(f"{name} {i}? ", f"because of {name} {i}", category=name)
        for name, n in prompts_of.items()
        for i in range(n)
    ]


texts = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(
    ["नमस्ते ", "你好？ ", "مرحبا: ", "😀👩‍👩‍👧", "tab\there", "\r\n", "\u2028", '"\\', " ends with a space "]
)
values = st.recursive(
    texts | st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


@given(st.lists(st.dictionaries(texts, values, max_size=5), max_size=5))
def test_what_is_written_is_read_back_with_unknown_keys_in_their_order(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("sets") / "set.json"
    sets.write(path, rows)
    again = sets.read(path)
    assert again == rows
    assert [list(one) for one in again] == [list(one) for one in rows]
    before = path.read_bytes()
    sets.write(path, again)
    assert path.read_bytes() == before


def test_a_file_is_indented_text_with_one_newline_at_its_end(tmp_path):
    sets.write(tmp_path / "deeper" / "set.json", [{"prompt": "Pourquoi ? ", "chosen": "Été 😀", "rejected": "n"}])
    text = (tmp_path / "deeper" / "set.json").read_text(encoding="utf-8")
    assert text == ('[\n  {\n    "prompt": "Pourquoi ? ",\n    "chosen": "Été 😀",\n    "rejected": "n"\n  }\n]\n')
    assert [path.name for path in (tmp_path / "deeper").iterdir()] == ["set.json"]


def test_a_set_that_cannot_be_written_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "set.json"
    sets.write(path, [row()])
    before = path.read_bytes()
    for broken in ({"prompt": {1, 2}}, {"prompt": math.nan}, {"prompt": "\ud83d"}):
        with pytest.raises(InputError, match=r"set\.json cannot be written"):
            sets.write(path, [broken])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(InputError, match="is a folder"):
        sets.write(tmp_path, [row()])


def test_a_link_to_a_set_stays_a_link(tmp_path):
    sets.write(tmp_path / "set.json", [row()])
    os.symlink(tmp_path / "set.json", tmp_path / "link.json")
    sets.write(tmp_path / "link.json", [row(chosen="other")])
    assert (tmp_path / "link.json").is_symlink()
    assert sets.read(tmp_path / "set.json") == [row(chosen="other")]


def test_no_space_at_the_end_of_a_prompt_is_ever_stripped_b10(tmp_path):
    sets.write(tmp_path / "set.json", [row("Question: "), row("Question:\t \n")])
    assert [one["prompt"] for one in sets.read(tmp_path / "set.json")] == ["Question: ", "Question:\t \n"]
    (tmp_path / "prompts.txt").write_bytes(b"One: \r\n\r\n  Two? \n")
    assert sets.prompts(tmp_path / "prompts.txt") == ["One: ", "  Two? "]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[\n{"prompt": "a",}\n]', "line 2, column 1"),
        ('{"prompt": "a"}', "holds an object; expected an array"),
        ('[\n{},\n"a"]', r"row 2 \(line 3\) is a text; expected an object"),
        ('[{"a": 1, "b": {"c": 1, "c": 2}}]', r"row 1 \(line 1\) names 'c' twice"),
        ('[{"a": NaN}]', "a number that JSON cannot hold"),
        ("[" * 100_000, "too deeply"),
        ("", "line 1, column 1: broken JSON"),
    ],
)
def test_a_file_that_is_no_set_is_refused_with_the_place(tmp_path, text, said):
    (tmp_path / "set.json").write_text(text)
    with pytest.raises(InputError, match=said):
        sets.read(tmp_path / "set.json")


def test_a_byte_order_mark_is_no_part_of_the_data_and_latin_1_is_refused(tmp_path):
    (tmp_path / "marked.json").write_bytes(b"\xef\xbb\xbf" + json.dumps([row()]).encode())
    assert sets.read(tmp_path / "marked.json") == [row()]
    (tmp_path / "latin.json").write_bytes('["é"]'.encode("latin-1"))
    with pytest.raises(InputError, match="not UTF-8"):
        sets.read(tmp_path / "latin.json")


def test_a_set_is_found_by_name_by_path_and_by_the_name_of_a_collected_file(tmp_path):
    starter = tmp_path / sets.SETS["starter"]
    mine = tmp_path / sets.COLLECTED / "user_preferences_001.json"
    for path in (starter, mine):
        sets.write(path, [row()])
    assert sets.find("starter", tmp_path) == starter
    assert sets.find(str(mine), tmp_path) == sets.find("user_preferences_001", tmp_path) == mine
    with pytest.raises(InputError, match="Did you mean 'starter'"):
        sets.find("startr", tmp_path)
    with pytest.raises(InputError, match="is a folder"):
        sets.find(str(tmp_path), tmp_path)


@pytest.mark.parametrize("name", sets.SETS)
def test_a_registered_set_that_is_missing_is_told_with_its_remedy_b11(tmp_path, name):
    with pytest.raises(InputError, match=f"The set '{name}' is missing: .* write it with data/rlhf/"):
        sets.find(name, tmp_path)


def test_collected_files_are_numbered_onward(tmp_path):
    assert sets.next_file(tmp_path / "none_yet").name == "user_preferences_001.json"
    for name in ("user_preferences_007.json", "user_preferences_1.json", "mine.json", "user_preferences_0999.json"):
        (tmp_path / name).touch()
    assert sets.next_file(tmp_path) == tmp_path / "user_preferences_008.json"
    (tmp_path / "user_preferences_999.json").touch()
    with pytest.raises(InputError, match="the last number"):
        sets.next_file(tmp_path)


def test_a_quality_may_be_called_quality_type_and_null_metadata_says_nothing_b11():
    assert sets.label(row(quality_type="a_vs_b"), "quality") == "a_vs_b"
    assert sets.label(row(quality="c_vs_d", quality_type="a_vs_b"), "quality") == "c_vs_d"
    for bare in (row(), {"prompt": "p"}, row(category=None, x=1)):
        assert sets.label(bare, "category") == "not given"


def test_the_length_baseline_counts_words_and_halves_ties():
    longer, shorter, tie = row("a? ", "one  two", "one"), row("b? ", "x", "a-very-long-word and"), row("c? ", "x", "y")
    assert sets.length_baseline([longer, longer | {"prompt": "d? "}, shorter, tie])[::3] == (2.5 / 4, 4)
    assert sets.length_baseline([longer, shorter]).low > 0
    assert math.isnan(sets.length_baseline([]).value)


def test_a_merge_keeps_the_order_and_drops_what_is_said_twice():
    a, b = row("a? ", source="curated", colour="kept"), row("b? ")
    merged = sets.merge([("one", [a, b]), ("two", [row("a? "), row("c? "), row("a?")])])
    assert merged.rows == [a, b, row("c? "), row("a?")]
    assert (merged.duplicates, merged.contradictions) == (1, [])


def test_a_merge_keeps_a_contradiction_and_tells_it():
    swapped = row(chosen="no idea", rejected="because of this")
    merged = sets.merge([("one", [row(), row("b? ")]), ("two", [swapped, swapped])])
    assert merged == ([row(), row("b? "), swapped], 1, [(1, 3)])


def test_a_merge_keeps_the_votes_of_two_people_on_one_pair():
    ann, ben = row(annotator="ann"), row(annotator="ben")
    assert sets.merge([("one", [ann, ben, ann])]) == ([ann, ben], 1, [])


def test_a_merge_marks_where_rows_come_from_only_when_asked():
    rows = [row(), row("b? ", source="curated"), row("c? ", original_source="first")]
    assert sets.merge([("two", rows)]).rows == rows
    marked = sets.merge([("two", rows)], mark=True).rows
    assert [one["metadata"]["original_source"] for one in marked] == ["two", "two", "first"]
    assert rows[0]["metadata"] is None


def test_the_only_reasoning_prompt_is_trained_on_and_that_is_said_b7():
    rows = rows_of(instruction_following=5, safety=2, reasoning=1)
    for seed in range(20):
        train, val, notes = sets.split(rows, seed=seed)
        assert [one["metadata"]["category"] for one in val] == ["instruction_following", "safety"]
        assert len(train) == 6
        assert notes == ["Category 'reasoning' has one prompt; it goes to train."]


def test_a_split_is_seeded_stratified_and_in_the_order_of_the_set_b7():
    rows = rows_of(safety=20, reasoning=80)
    train, val, notes = sets.split(rows)
    count = [sum(one["metadata"]["category"] == "safety" for one in side) for side in (train, val)]
    assert (count, len(val), notes) == ([16, 4], 20, [])
    assert train == [one for one in rows if one not in val]
    assert sets.split(rows[::-1]).val == val[::-1]
    assert sets.split(rows, seed=1).val != val
    assert val != rows[-20:]


def test_a_split_never_leaves_a_side_empty_where_there_are_two_prompts():
    train, val, notes = sets.split(rows_of(a=1, b=1))
    assert (len(train), len(val)) == (1, 1)
    assert "was drawn for val" in notes[0]
    assert {sets.split(rows_of(a=1, b=1), seed=seed).val[0]["prompt"] for seed in range(20)} == {"a 0? ", "b 0? "}
    train, val, notes = sets.split(rows_of(a=5, b=2, c=1), ratio=0.1)
    assert (len(train), len(val)) == (3, 5)
    assert "Val has 5 prompts where the ratio asks for 7" in notes[-1]


def test_a_split_tells_chosen_answers_that_stand_on_both_sides_b6():
    canned = [row(f"{n}? ", "canned" if n < 8 else f"answer {n}") for n in range(10)]
    _, val, notes = sets.split(canned, ratio=0.5)
    leaked = sum(one["chosen"] == "canned" for one in val)
    assert notes == [f"The chosen answers of {leaked} of 5 rows in val are also chosen in train, word for word."]
    assert sets.split([one | {"chosen": f"answer to {one['prompt']}"} for one in canned]).notes == []


def test_a_split_that_cannot_be_made_is_refused():
    with pytest.raises(InputError, match="needs at least two"):
        sets.split([row("Why? "), row(" why?  ", "other")])
    for ratio in (0.0, 1.0, 80.0, math.nan):
        with pytest.raises(InputError, match="between 0 and 1"):
            sets.split(rows_of(a=5), ratio=ratio)


@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from(["x", "y", None])), min_size=2, max_size=40),
    st.floats(0.01, 0.99),
    st.integers(),
)
def test_no_prompt_stands_on_both_sides_and_no_row_is_lost(drawn, ratio, seed):
    written = [f"{'  ' * (n % 2)}{letter.upper() if n % 3 else letter}? " for n, (letter, _) in enumerate(drawn)]
    rows = [
        row(prompt, f"answer {n}", category=name)
        for n, (prompt, (_, name)) in enumerate(zip(written, drawn, strict=True))
    ]
    if len({letter for letter, _ in drawn}) < 2:
        with pytest.raises(InputError):
            sets.split(rows, ratio=ratio, seed=seed)
        return
    train, val, _ = sets.split(rows, ratio=ratio, seed=seed)
    sides = [{sets.folded(one["prompt"]) for one in side} for side in (train, val)]
    assert sides[0].isdisjoint(sides[1])
    assert all(sides)
    assert sorted(one["chosen"] for one in train + val) == sorted(one["chosen"] for one in rows)
    assert (train, val) == sets.split(rows, ratio=ratio, seed=seed)[:2]


def test_a_filter_keeps_what_meets_every_condition():
    rows = [
        row("a? ", "one", category="safety", source="curated"),
        row("b? ", "one two", category="safety", quality_type="a_vs_b"),
        row("c? ", "one two three", category="reasoning"),
        row("d? ", "one two three"),
    ]

    def prompts(**conditions: Any) -> str:
        return "".join(one["prompt"][0] for one in sets.filter_rows(rows, **conditions))

    assert prompts(category="safety") == "ab"
    assert prompts(quality="a_vs_b") == "b"
    assert prompts(category="safety", source="curated") == "a"
    assert prompts(min_length=2, max_length=2) == "b"
    assert prompts(min_length=3) == "cd"
    assert prompts(category="not given") == "d"


@pytest.mark.parametrize(
    ("conditions", "said"),
    [
        ({}, "No condition is given"),
        ({"category": "saftey"}, "No row has the category 'saftey'; there are safety. Did you mean 'safety'"),
        ({"min_length": 9}, "None of 1 rows meets every condition; chosen answers have 3 to 3 words"),
        ({"min_length": 3, "max_length": 2}, "swap the two lengths"),
    ],
)
def test_a_filter_that_keeps_nothing_says_why(conditions, said):
    with pytest.raises(InputError, match=said):
        sets.filter_rows([row(category="safety")], **conditions)


def test_a_missing_or_empty_prompts_file_is_one_sentence(tmp_path: Path):
    with pytest.raises(InputError, match="is not a file"):
        sets.prompts(tmp_path / "none.txt")
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(InputError, match="holds no prompt"):
        sets.prompts(tmp_path / "empty.txt")
