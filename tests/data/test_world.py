"""The small world: its truth is exact, its texts are what they claim to be, and it is the same everywhere."""

from __future__ import annotations

import hashlib
import itertools
import re
import statistics
from collections import Counter

import pytest

from tiebreak.data import world
from tiebreak.data.table import Entry
from tiebreak.data.world import FACTS, TARGET_SHARES, judge_quality, quality, read
from tiebreak.records import InputError, Prompt, content_id, to_dict

POST = Prompt(
    text="SUBREDDIT: r/family\n\nTITLE: t\n\nPOST: p\n\nTL;DR:",
    fields={"relation": "sister", "name": "Anna", "problem": "music", "question": "move"},
)
FULL = "My sister Anna plays loud music. Should I move out?"


def entries(n: int = 3000, held_out: int = 300, seed: int = 0) -> list[Entry]:
    return list(read(n=n, held_out=held_out, seed=seed))


WORLD = entries()
MEANS = {"complete": 4.0, "partial": 2.47, "wordy": 1.75, "hallucinating": 1.0}


def words_of(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9']+", text.lower()))


@pytest.mark.parametrize(
    ("text", "total", "covered", "invented", "words"),
    [
        (FULL, 4.0, 4, 0, 10),
        (f" {FULL}\n", 4.0, 4, 0, 10),
        (FULL.upper(), 4.0, 4, 0, 10),
        ("", 0.0, 0, 0, 0),
        ("Nobody did anything.", 0.0, 0, 0, 3),
        ("sister anna music move", 4.0, 4, 0, 4),
        ("sister sister sister", 1.0, 1, 0, 3),
        ("Anna plays music.", 2.0, 2, 0, 3),
        ("My brother Anna plays loud music. Should I move out?", 2.0, 3, 1, 10),
        ("My sister and brother Anna plays loud music. Should I move out?", 3.0, 4, 1, 12),
        ("brother brother boss", -2.0, 0, 2, 3),
        ("Annas musical sisterhood moved", 0.0, 0, 0, 4),
        (FULL + " so so so so", 4.0, 4, 0, 14),
        (FULL + " so so so so so", 3.9, 4, 0, 15),
        (FULL + " so" * 14, 3.0, 4, 0, 24),
        ("so " * 100, -8.6, 0, 0, 100),
    ],
)
def test_quality_is_counted_by_hand(text: str, total: float, covered: int, invented: int, words: int) -> None:
    assert judge_quality(POST, text) == (total, covered, invented, words)
    assert quality(POST, text) == total


def test_a_prompt_from_elsewhere_has_no_truth_here() -> None:
    with pytest.raises(InputError, match="was not made by format=world"):
        quality(Prompt(text="What is 2 + 2?"), "4")


def test_the_same_seed_gives_the_same_world_on_every_machine() -> None:
    ids = [(e.prompt.id, e.responses[0].id) for e in entries(200, 20, seed=7)]
    assert hashlib.sha256(str(ids).encode()).hexdigest()[:16] == "45c3bb40857ec9f1"
    assert entries(200, 20, seed=8)[0].prompt.id != ids[0][0]


def test_a_larger_world_begins_with_the_smaller_one() -> None:
    small, large = entries(50, 5), entries(80, 9)
    assert [to_dict(e.prompt) for e in small[:50]] == [to_dict(e.prompt) for e in large[:50]]
    assert [to_dict(e.prompt) for e in small[50:]] == [to_dict(e.prompt) for e in large[80:85]]


def test_targets_come_in_the_planned_shares() -> None:
    kinds = Counter(entry.responses[0].maker.removeprefix("human:") for entry in WORLD)
    assert set(kinds) == set(TARGET_SHARES)
    for kind, share in TARGET_SHARES.items():
        spread = (share * (1 - share) / len(WORLD)) ** 0.5
        assert abs(kinds[kind] / len(WORLD) - share) < 4 * spread, kind


def test_held_out_posts_pair_names_and_problems_that_training_never_shows() -> None:
    sides: dict[bool, set[tuple[str, str]]] = {True: set(), False: set()}
    for entry in WORLD:
        fields = entry.prompt.fields
        sides["held-out" in entry.prompt.tags].add((fields["name"], fields["problem"]))
    assert sides[True].isdisjoint(sides[False])
    assert {name for name, _ in sides[True]} <= {name for name, _ in sides[False]}
    assert {problem for _, problem in sides[True]} <= {problem for _, problem in sides[False]}
    assert len({e.prompt.id for e in WORLD}) == len(WORLD)
    assert len({e.prompt.group for e in WORLD}) == len(WORLD)


def test_every_reference_is_perfect_and_every_post_tells_its_facts() -> None:
    for entry in WORLD:
        assert judge_quality(entry.prompt, entry.prompt.reference or "")[:3] == (4.0, 4, 0)
        assert judge_quality(entry.prompt, entry.prompt.plain).covered == 4
        assert entry.prompt.plain.endswith("\n\nTL;DR:")
        assert re.match(r"SUBREDDIT: r/\w+\n\nTITLE: .+\n\nPOST: .+\n\nTL;DR:$", entry.prompt.plain)
        for text in (entry.prompt.reference or "", entry.responses[0].text):
            assert re.match(r" \S", text)
            assert text == text.rstrip()


def test_the_kinds_of_targets_are_as_good_as_they_should_be() -> None:
    scores: dict[str, list[float]] = {}
    for entry in WORLD:
        kind = entry.responses[0].maker.removeprefix("human:")
        scores.setdefault(kind, []).append(quality(entry.prompt, entry.responses[0].text))
    means = {kind: round(statistics.fmean(values), 2) for kind, values in scores.items()}
    assert set(scores["complete"]) == {4.0}
    assert means == MEANS
    assert means["complete"] > means["partial"] > means["wordy"] > means["hallucinating"]


def invented_by(text: str, fact: str, true: str) -> set[str]:
    """Key words of ``fact`` in ``text`` that are not its true value."""
    return (world._KEYS[fact] & words_of(text)) - {true.lower()}


@pytest.mark.parametrize("theme", [*world.PROBLEMS, *world.QUESTIONS], ids=lambda theme: theme.key)
def test_a_theme_speaks_of_itself_alone(theme: world.Theme) -> None:
    own = "problem" if theme in world.PROBLEMS else "question"
    for text in (*theme.told, *theme.short):
        assert theme.key in words_of(text), text
        for fact in FACTS:
            assert invented_by(text, fact, theme.key if fact == own else "") == set(), text


def test_no_template_around_the_facts_holds_a_key_word() -> None:
    """Distractors may: they stand in posts only, to mislead."""
    fixed = [*world.FILLERS, *world.SUMMARIES, *world.PARTIALS, *world.MEETINGS, *world.TELLINGS, *world.TITLES]
    for template in fixed:
        bare = re.sub(r"\{\w+\}", "", template)
        for fact in FACTS:
            assert invented_by(bare, fact, "") == set(), template


def test_no_combination_of_true_facts_counts_as_invented() -> None:
    for problem, question in itertools.product(world.PROBLEMS, world.QUESTIONS):
        truth = {"relation": "sister", "name": "Anna", "problem": problem.key, "question": question.key}
        prompt = Prompt(text="p", fields=truth)
        for template, short, ask in itertools.product(world.SUMMARIES, problem.short, question.short):
            text = template.format(relation="sister", name="Anna", short=short, ask=ask)
            for tail in ("", *world.FILLERS):
                found = judge_quality(prompt, f"{text} {tail}")
                assert (found.covered, found.invented) == (4, 0), f"{text} {tail}"
            assert quality(prompt, text) == 4.0, text


def test_names_and_relations_are_distinct_key_words() -> None:
    keys = [key for values in world._KEYS.values() for key in values]
    assert len(keys) == len(set(keys)) == 14 + 22 + 16 + 8
    assert all(re.fullmatch("[a-z]+", key) for key in keys)


def test_ids_do_not_depend_on_where_the_world_is_made() -> None:
    first = WORLD[0]
    assert first.prompt.id == content_id("prompt", first.prompt.text, "", first.prompt.reference, first.prompt.fields)
    assert first.responses[0].prompt_id == first.prompt.id
    assert (first.where, WORLD[-1].where) == ("world:post:1", "world:held-out:300")
