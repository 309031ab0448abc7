"""The synthetic set: each label is the flaw that was put in, the numbers are right, and length gives nothing away."""

from __future__ import annotations

import datetime as dt
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from random import Random
from statistics import mean
from typing import Any, NamedTuple

import pytest

from tiebreak.data import sets, synthetic
from tiebreak.data.synthetic import LABELS, Made, make, quotas, sides
from tiebreak.records import InputError

EXAMPLES = Path(__file__).resolve().parents[2] / "data" / "rlhf" / "examples"
SCRIPT = EXAMPLES / "generate_large_synthetic_dataset.py"
SHIPPED = EXAMPLES.parent / "datasets" / "synthetic" / "large_synthetic_preferences.json"
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


def from_examples(name: str) -> Any:
    """A module beside the script, found as the script finds it."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(EXAMPLES))


DRAWS = from_examples("draws").DRAWS
MATERIAL = synthetic.load(EXAMPLES / "material", DRAWS)
MANY = make(MATERIAL, DRAWS, n=2000, seed=5)
HUNDRED = make(MATERIAL, DRAWS, n=100, seed=0)


def of(label: str, made: list[Made] = MANY) -> list[Made]:
    return [one for one in made if one.row["metadata"]["quality"] == label]


def rows(n: int, seed: int) -> list[dict[str, Any]]:
    return synthetic.generate(MATERIAL, DRAWS, n=n, seed=seed)


# The shipped file


def test_the_shipped_file_comes_back_to_the_byte_from_any_folder(tmp_path: Path) -> None:
    output = tmp_path / "again.json"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--output", str(output)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert output.read_bytes() == SHIPPED.read_bytes()
    assert str(output) in done.stdout
    assert re.search(r"chosen one in [\d.]+% of the rows \(95 % interval .* n = 100", done.stdout)
    assert [done.stdout.count(label) for label in LABELS] == [1, 1, 1, 1]


def test_the_shipped_file_has_the_rows_it_promises() -> None:
    shipped = sets.read(SHIPPED)
    assert shipped == [one.row for one in HUNDRED]
    assert list(synthetic.counts(shipped).values()) == [26, 31, 24, 19]
    assert len({row["prompt"] for row in shipped}) == 100
    assert len({row["chosen"] for row in shipped}) == 100
    assert len({row["rejected"] for row in shipped}) == 100


def test_most_shipped_rows_are_hand_written_and_each_topic_stands_once() -> None:
    topics = [one.source.texts["prompt"][0] for one in HUNDRED if not one.source.family]
    assert len(topics) == len(set(topics)) >= 60


def test_only_the_shipped_number_and_seed_go_to_the_shipped_file() -> None:
    door = from_examples(SCRIPT.stem)
    assert door.file_of(100, 0) == SHIPPED
    assert door.file_of(100, 1) == SHIPPED.with_name("synthetic_preferences_100_seed1.json")
    assert door.file_of(101, 0) == SHIPPED.with_name("synthetic_preferences_101_seed0.json")


def test_a_number_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--n", "0", "--output", str(tmp_path / "none.json")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip() == "n is 0; expected the number of rows to make, 1 or more."
    assert list(tmp_path.iterdir()) == []


# Any number, any seed


@pytest.mark.parametrize(
    ("n", "expected"),
    [(1, [0, 1, 0, 0]), (10, [3, 3, 2, 2]), (333, [87, 103, 80, 63]), (5000, [1300, 1550, 1200, 950])],
)
def test_labels_keep_their_proportions_by_largest_remainder(n: int, expected: list[int]) -> None:
    assert list(quotas(n).values()) == expected
    assert list(synthetic.counts(rows(n, 1)).values()) == expected


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_rows(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        sets.write(tmp_path / name, rows(150, seed))
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b != c
    assert {row["prompt"] for row in json.loads(a)} != {row["prompt"] for row in json.loads(c)}


def test_no_prompt_and_no_chosen_answer_occurs_twice() -> None:
    assert len({one.row["prompt"] for one in MANY}) == len(MANY)
    assert len({one.row["chosen"] for one in MANY}) == len(MANY)


def test_labels_are_mixed() -> None:
    first = {one.row["metadata"]["quality"] for one in MANY[:30]}
    assert first == set(LABELS)


def test_rows_have_the_form_of_a_set() -> None:
    for one in MANY:
        row = one.row
        assert list(row) == ["prompt", "chosen", "rejected", "metadata"]
        assert list(row["metadata"]) == ["category", "quality", "source"]
        assert row["metadata"]["source"] == "synthetic"
        assert row["metadata"]["category"] in ("instruction_following", "reasoning")
        assert re.search(r"[:?] $", row["prompt"])
        assert all(row[side] == row[side].strip() != "" for side in ("chosen", "rejected"))
        assert row["chosen"] != row["rejected"]


def test_no_slot_is_left_and_articles_and_plurals_fit() -> None:
    slip = re.compile(
        r"[{}]|\[\[|\]\]|  \S|\b[Aa] (?!one|or )[aeio]\w|\b[Aa]n [^aeioh8\W]"
        r"|(?<![.\d])1 (hours|minutes|weeks|days|months)\b"
    )
    for one in MANY:
        for side in ("prompt", "chosen", "rejected"):
            text = re.sub(r"^    .*$", "", one.row[side], flags=re.MULTILINE)
            assert not slip.search(text), (slip.search(text), text)


@pytest.mark.parametrize(("n", "seed"), [(100, 0), (100, 1), (100, 7), (101, 2), (333, 2), (1000, 9), (4000, 5)])
def test_length_does_not_tell_the_chosen_answer(n: int, seed: int) -> None:
    made = rows(n, seed)
    assert abs(sets.length_baseline(made).value - 0.5) <= 0.1
    chosen, rejected = (mean(sets.words(row[side]) for row in made) for side in ("chosen", "rejected"))
    assert abs(chosen - rejected) <= 0.25 * rejected


# Each label is the flaw it names


def content(text: str) -> set[str]:
    """The beginnings of its longer words, in which different forms of a word agree."""
    return {word[:4] for word in re.findall(r"[a-z]{4,}", text.lower())}


def numbers(text: str) -> set[str]:
    """The numbers of a text, without those that count the items of a list."""
    return set(re.findall(r"\d[\d,.:]*\d|\d", re.sub(r"^\d\. ", "", text, flags=re.MULTILINE)))


def runs(text: str, asked: str) -> set[tuple[str, ...]]:
    """Four words in a row, without those that the prompt has anyway."""
    known = set(re.findall(r"\w+", asked.lower()))
    found = [word for word in re.findall(r"\w+", text.lower()) if word not in known]
    return set(zip(found, found[1:], found[2:], found[3:], strict=False))


def test_a_brief_answer_is_under_a_third_and_says_nothing_else() -> None:
    for one in of("detailed_vs_brief"):
        row = one.row
        assert 3 * sets.words(row["rejected"]) < sets.words(row["chosen"]), row
        assert len(re.findall(r"[.?!](?= |$)", row["rejected"])) <= 2
        assert content(row["rejected"]) & content(row["prompt"] + row["chosen"])
        assert numbers(row["rejected"]) <= numbers(row["prompt"] + row["chosen"]), row
        assert re.search("step|expla|describe|why|how|walk|through|instructions|details|show", row["prompt"].lower())


def test_a_vague_answer_keeps_the_topic_and_nothing_to_act_on() -> None:
    for one in of("helpful_vs_vague"):
        row = one.row
        assert not re.search(r"\d|`|\"", row["rejected"]), row
        assert content(row["rejected"]) & content(row["prompt"]), row
        assert runs(row["rejected"], row["prompt"]).isdisjoint(runs(row["chosen"], row["prompt"])), row
        assert re.search(r"\d", row["chosen"]) or not one.source.family, "a plan has figures"


def test_a_vague_answer_may_be_longer_or_shorter_whatever_the_seed() -> None:
    for topic in MATERIAL["helpful_vs_vague"].topics:
        length = sets.words(topic.texts["chosen"][0])
        for longer in (True, False):
            kept = synthetic.cut(topic.texts["vague"], length, Random(0), longer=longer)
            assert (sets.words(" ".join(topic.texts["vague"][:kept])) > length) is longer
    longer_ones = sum(sets.words(one.row["rejected"]) > sets.words(one.row["chosen"]) for one in of("helpful_vs_vague"))
    assert longer_ones == 620 - 240


def test_an_incorrect_answer_is_the_right_one_but_for_what_is_marked() -> None:
    for one in of("accurate_vs_incorrect"):
        texts = [text.format_map(one.slots) if one.source.family else text for text in one.source.texts["text"]]
        assert (one.row["chosen"], one.row["rejected"]) in [sides(text) for text in texts]
        text = next(text for text in texts if sides(text)[0] == one.row["chosen"])
        shared = re.split(r"\[\[.*?\]\]", text)
        assert sum(map(sets.words, shared)) > 0.25 * sets.words(one.row["chosen"]), one.row
        assert abs(sets.words(one.row["chosen"]) - sets.words(one.row["rejected"])) <= 8


def test_a_rambling_answer_makes_the_same_points_out_of_order() -> None:
    for one in of("structured_vs_rambling"):
        chosen, rejected = one.row["chosen"], one.row["rejected"]
        keys = [key.format_map(one.slots) if one.source.family else key for key in one.source.texts["keys"]]
        places = [[side.lower().find(key.lower()) for key in keys] for side in (chosen, rejected)]
        assert min(map(min, places)) >= 0, one.row
        assert "\n" in chosen
        assert "\n" not in rejected
        assert len(re.findall(r"[.?!](?= |$)", rejected)) == 1, one.row
        assert numbers(chosen) == numbers(rejected), one.row
        order = [sorted(range(len(keys)), key=found.__getitem__) for found in places]
        assert order[0] != order[1], one.row
        assert sets.words(rejected) > sets.words(chosen)


# The numbers, computed a second time from the prompt alone


class Question(NamedTuple):
    """How a family asks, how its answers state the result, and the result."""

    asked: str
    stated: str
    solve: Callable[..., tuple[str, ...]]


def plain(value: Fraction | int) -> str:
    return f"{int(value):,}" if value == int(value) else f"{float(value):,.2f}"


def arrival(hour: str, minute: str, hours: str, minutes: str) -> tuple[str, ...]:
    start = dt.datetime(2024, 5, 6, int(hour), int(minute))
    end = start + dt.timedelta(hours=int(hours), minutes=int(minutes))
    return (f"{end.hour}:{end:%M}",)


def weekday(*found: str | None) -> tuple[str, ...]:
    first, ahead, later, second = found
    day, days = (first, ahead) if first else (second, later)
    monday = dt.date(2024, 1, 1)
    return (WEEKDAYS[(monday + dt.timedelta(days=WEEKDAYS.index(str(day)) + int(str(days)))).weekday()],)


def scaled(*found: str | None) -> tuple[str, ...]:
    base, grams, people = (found[0], found[1], found[2]) if found[0] else (found[4], found[5], found[3])
    return (plain(Fraction(int(str(grams)) * int(str(people)), int(str(base)))),)


def journey(distance: str, speed: str) -> tuple[str, ...]:
    hours, minutes = divmod(Fraction(int(distance) * 60, int(speed)), 60)
    return (str(hours), str(minutes))


def tallest(a: str, x: str, b: str, c: str, y: str, base: str, d: str, z: str, last: str) -> tuple[str, ...]:
    assert (base, last) == (b, c)
    heights = {b: 180, a: 180 + int(x), c: 180 - int(y), d: 180 - int(y) + int(z)}
    return tuple(sorted(heights, key=lambda name: heights[name], reverse=True)[:2])


def fence(length: str, width: str, gap: str, price: str) -> tuple[str, ...]:
    sides_of = (int(length), int(width), int(length), int(width))
    return (plain((sum(sides_of) - int(gap)) * int(price)),)


QUESTIONS: Mapping[str, Question] = {
    "split_bill": Question(
        r".*?(\d+) (?:friends|people).* bill of (\d+) euros.* tip of (\d+) %",
        r"(?:that is|Each pays) ([\d,.]+) euros",
        lambda people, bill, tip: (plain(Fraction(int(bill) * (100 + int(tip)), 100 * int(people))),),
    ),
    "unit_conversion": Question(
        r"(?=.*?(\d+) (?:kg|litres))(?=.*portions of (\d+) (?:g|ml))",
        r"[Tt]here are ([\d,]+)",
        lambda amount, portion: (plain(Fraction(int(amount) * 1000, int(portion))),),
    ),
    "elapsed_time": Question(
        r".* at (\d+):(\d\d).* (\d+) hours? and (\d+) minutes?", r"(?:then shows|It will be) (\d+:\d\d)", arrival
    ),
    "weekday_shift": Question(
        r"Today is (\w+)\. .* in (\d+) days|.* (\d+) days after a (\w+)", r"(?:later it is|will be a) (\w+)", weekday
    ),
    "recipe_scaling": Question(
        r"A recipe .* for (\d+) people needs (\d+) g .* for (\d+) people"
        r"|.* for (\d+) people, but the recipe is for (\d+) and asks for (\d+) g",
        r"(?:x \d+ =|Take) ([\d,]+) g",
        scaled,
    ),
    "travel_time": Question(
        r".* (\d+) km at an average.* (\d+) km/h", r"takes (\d+) hours? and (\d+) minutes", journey
    ),
    "order_by_height": Question(
        r"(\w+) is (\d+) cm taller than (\w+)\. (\w+) is (\d+) cm shorter than (\w+)\. "
        r"(\w+) is (\d+) cm taller than (\w+)",
        r"tallest is (\w+), and (\w+) comes second",
        tallest,
    ),
    "code_output": Question(
        r".*sum\(range\((\d+), (\d+), (\d+)\)\)",
        r"It gives (\d+)|the sum is (\d+)",
        lambda low, high, step: (str(sum(range(int(low), int(high), int(step)))),),
    ),
    "fence_length": Question(
        r".* (\d+) m by (\d+) m\D+(\d+) m.* (?:costs|at) (\d+) euros", r"costs? ([\d,]+) euros", fence
    ),
}


@pytest.mark.parametrize("family", [source.family for source in MATERIAL["accurate_vs_incorrect"].families])
def test_the_chosen_number_is_right_and_the_rejected_one_wrong(family: str) -> None:
    question = QUESTIONS[family]
    made = [one for one in MANY if one.source.family == family]
    assert len(made) > 40
    for one in made:
        asked = re.match(question.asked, one.row["prompt"])
        assert asked, one.row["prompt"]
        said = [re.search(question.stated, one.row[side]) for side in ("chosen", "rejected")]
        right, wrong = (tuple(part for part in found.groups() if part) for found in said if found)
        assert right == question.solve(*asked.groups()), one.row
        assert wrong != right, one.row


# The material


def spoiled(tmp_path: Path, label: str, old: str, new: str) -> Path:
    """A copy of the material in which one text of one label is replaced wherever it stands."""
    for source in (EXAMPLES / "material").glob("*.yaml"):
        text = source.read_text(encoding="utf-8")
        assert old in text or source.stem != label
        (tmp_path / source.name).write_text(text.replace(old, new) if source.stem == label else text, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("label", "old", "new", "said"),
    [
        ("detailed_vs_brief", "    brief:", "    breif:", r"topic 1 has no 'brief'"),
        ("detailed_vs_brief", "topics:", "topcis:", r"exactly the two lists topics and families"),
        ("detailed_vs_brief", "topics:", "topics: [", r"is not YAML"),
        ("helpful_vs_vague", "family: city_budget", "family: city_budgte", r"city_budgte.*city_budget"),
        ("helpful_vs_vague", "{city} has a lot", "{town} has a lot", r"city_budget has the text.*there are name"),
        ("accurate_vs_incorrect", "[[Canberra|Brisbane]]", "Canberra", r"mark what is wrong"),
        ("structured_vs_rambling", "category: reasoning", "category: logic", r"category 'logic'"),
        ("structured_vs_rambling", "keys: [30 g,", "keys: [30,", r"keys is \[30,"),
    ],
)
def test_a_slip_in_the_material_is_named(tmp_path: Path, label: str, old: str, new: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        synthetic.load(spoiled(tmp_path, label, old, new), DRAWS)


def test_a_missing_file_of_the_material_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"detailed_vs_brief\.yaml"):
        synthetic.load(tmp_path, DRAWS)


def test_material_that_is_used_up_says_so() -> None:
    family = MATERIAL["accurate_vs_incorrect"].families[0]
    stuck = {family.family: lambda rng: DRAWS[family.family](Random(0))}
    material = {**MATERIAL, "accurate_vs_incorrect": synthetic.Material((), (family,))}
    with pytest.raises(InputError, match="distinct rows of accurate_vs_incorrect; ask for fewer"):
        make(material, {**DRAWS, **stuck}, n=100, seed=0)


def test_a_vague_answer_that_is_too_short_says_so() -> None:
    with pytest.raises(InputError, match="cannot be made longer than 9 words; give it more sentences"):
        synthetic.cut(["It depends.", "Many factors matter."], 9, Random(0), longer=True)
