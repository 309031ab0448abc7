"""Preferences of single users: whose a pair is, and what a prompt shows of its user."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.curate.texts import Read, Told, question
from tiebreak.curate.shots import by_user, few_shot_user
from tiebreak.curate.table import Rows, Step, curate
from tiebreak.records import InputError, Pair, Prompt

STYLES = {"human:ann": ("short", "long"), "human:bob": ("long", "short")}


def household(questions: int = 8, users: dict[str, tuple[str, str]] | None = None) -> Told:
    """Users who judge the same answers to the same questions, each by a taste of their own."""
    told = Told()
    for number in range(questions):
        prompt = question(f"Q{number}?")
        short, long = (told.answer(prompt, f"{style} answer {number}") for style in ("short", "long"))
        for user, (better, _) in (users or STYLES).items():
            told.judged(prompt, short, long, winner=int(better == "long"), by=user)
    return told


def users_of(told: Told, **knobs: Any) -> tuple[Step, Step, Read]:
    """The pairs of each user, the same with shots, and how to read them."""
    own = by_user(told.seen(None))
    shown = few_shot_user(told.seen(own.rows), **knobs)
    return own, shown, Read(told, shown)


def test_opposite_users_give_opposite_pairs_on_the_same_question() -> None:
    told = household()
    done = told.first(by_user)
    assert len(done.rows) == 16
    sides = {(pair.user, pair.prompt_id): (pair.chosen_id, pair.rejected_id) for pair in done.rows}
    assert {user for user, _ in sides} == set(STYLES)
    for (user, prompt), pair in sides.items():
        assert user == "human:bob" or sides["human:bob", prompt] == pair[::-1]
    assert all(pair.n == 1 for pair in done.rows)


def test_a_users_pair_rests_on_their_judgments_alone_and_what_they_left_open_is_counted() -> None:
    told = household(1)
    (prompt, short, _, long) = told.records
    told.judged(prompt, long, short, winner=0, by="human:ann", attempt=1)
    told.judged(prompt, short, long, verdict="skip", winner=None, by="human:eve")
    done = told.first(by_user)
    assert [(pair.user, pair.p, pair.conflict) for pair in done.rows] == [
        ("human:ann", 0.5, True),
        ("human:bob", 1.0, False),
    ]
    assert done.dropped == {"no readable verdict": 1}
    assert {pair.user for pair in told.first(by_user, by="*:bob").rows} == {"human:bob"}
    with pytest.raises(InputError, match="by_user: no judgment is by 'human:bo'"):
        told.first(by_user, by="human:bo")
    with pytest.raises(InputError, match="averages 'median'"):
        told.first(by_user, average="median")
    with pytest.raises(InputError, match="has to be the first one"):
        by_user(told.seen(done.rows))


def test_every_shot_is_another_choice_of_the_same_user_and_no_answer_to_the_target() -> None:
    told = household()
    own, shown, read = users_of(told, k=3)
    whose = {pair.id: pair for pair in own.rows}
    targets = {pair.judgment_ids: pair for pair in own.rows}
    for pair in shown.rows:
        prompt = read.prompt(pair.prompt_id)
        target = targets[pair.judgment_ids]
        shots = [whose[key] for key in prompt.fields["shots"]]
        assert len(shots) == len({shot.id for shot in shots}) == 3
        assert {shot.user for shot in shots} == {pair.user} == {target.user}
        assert all(shot.prompt_id != target.prompt_id for shot in shots)
        assert not any(text in str(prompt.text) for text in read.sides(pair))
        for shot in shots:
            for side, title in zip(read.sides(shot), ("Preferred", "Other"), strict=True):
                assert f"### {title} answer\n\n{side}" in str(prompt.text)
        assert read.sides(pair) == read.sides(target)
        assert prompt.group == read.prompt(target.prompt_id).group
    assert len(shown.rows) == 2 * len(own.rows)
    assert not any(shown.dropped.values())


def test_a_prompt_of_the_same_group_is_no_example() -> None:
    told = Told()
    for number in range(4):
        told.pair(question(f"Q{number}?", group="one" if number < 3 else "two"), "a", f"b{number}", user="human:ann")
    done = told.later(few_shot_user, k=1, times=1)
    read = Read(told, done)
    shown = [read.prompt(pair.prompt_id).fields["shots"][0] for pair in done.rows]
    assert shown[:3] == [told.rows[3].id] * 3
    assert shown[3] in [pair.id for pair in told.rows[:3]]
    few = told.later(few_shot_user, k=2, times=1)
    assert few.dropped == {"too few other choices of the user": 3}


def test_no_shots_are_plain_training_with_the_user_set() -> None:
    told = household()
    own, shown, _ = users_of(told, k=0)
    assert shown.rows == own.rows
    assert shown.made == []
    told.rows = [Pair(prompt_id=p.prompt_id, chosen_id=p.chosen_id, rejected_id=p.rejected_id) for p in own.rows[:1]]
    assert told.later(few_shot_user, k=0).dropped == {"nobody's preference": 1}


def test_the_user_is_the_judge_unless_the_pair_says_whose_it_is() -> None:
    told = household(6)
    mixed = curate(told.judgments, ["soft_label"], told.texts)
    done = few_shot_user(told.seen(mixed.rows), k=0)
    assert done.dropped == {"the preference of several users": 6}
    single = [judgment for judgment in told.judgments if judgment.by == "human:ann"]
    pairs = curate(single, ["soft_label"], told.texts).rows
    assert {pair.user for pair in few_shot_user(told.seen(pairs), k=2).rows} == {"human:ann"}


def test_draws_are_the_same_each_time_and_of_another_seed_others() -> None:
    told = household(12)
    ids = [[pair.prompt_id for pair in users_of(told, k=4, seed=seed)[1].rows] for seed in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2]
    once = users_of(told, k=4, times=1)[1]
    assert len(once.rows) == 24


def test_equal_draws_count_once_and_ties_are_no_examples() -> None:
    told = Told()
    told.pair(question("A?"), "a", "b", user="u")
    told.pair(question("B?"), "c", "d", user="u", p=0.5)
    done = told.later(few_shot_user, k=1, times=5, rejected=False)
    assert done.dropped == {"too few other choices of the user": 1}
    (pair,) = done.rows
    read = Read(told, done)
    assert (pair.p, read.sides(pair)) == (0.5, ("c", "d"))
    assert "### Other answer" not in str(read.prompt(pair.prompt_id).text)


def test_a_split_may_hold_out_users() -> None:
    told = household()
    _, shown, read = users_of(told, k=2, group="user")
    groups = {(pair.user, read.prompt(pair.prompt_id).group) for pair in shown.rows}
    assert len(groups) == len({group for _, group in groups}) == 2


def reader(prompt: Prompt, sides: tuple[str, str], chance: random.Random) -> str:
    """Choose the side in the style that the prompt's shots prefer; by chance where they say nothing."""
    told = str(prompt.text)
    votes = {style: told.count(f"### Preferred answer\n\n{style}") for style in ("short", "long")}
    if votes["short"] == votes["long"]:
        return chance.choice(sides)
    style = max(votes, key=lambda name: votes[name])
    return next(side for side in sides if side.startswith(style))


def accuracy(told: Told, shown: Step) -> float:
    read, chance = Read(told, shown), random.Random(0)
    right = [
        reader(read.prompt(pair.prompt_id), tuple(sorted(read.sides(pair))), chance) == read.sides(pair)[0]
        for pair in shown.rows
    ]
    return sum(right) / len(right)


def test_a_stranger_is_known_by_their_shots_alone_and_not_by_shots_with_shuffled_labels() -> None:
    users = {f"human:{number}": tuple(STYLES.values())[number % 2] for number in range(40)}
    told = household(6, users)
    own, shown, _ = users_of(told, k=3)
    assert accuracy(told, shown) == 1.0
    assert accuracy(told, few_shot_user(told.seen(own.rows), k=0)) == pytest.approx(0.5, abs=0.1)
    chance = random.Random(1)
    mixed = [
        Pair(
            prompt_id=pair.prompt_id,
            chosen_id=pair.chosen_id if keep else pair.rejected_id,
            rejected_id=pair.rejected_id if keep else pair.chosen_id,
            user=pair.user,
            judgment_ids=pair.judgment_ids,
        )
        for pair in own.rows
        for keep in [chance.random() < 0.5]
    ]
    shuffled = few_shot_user(Rows(told.seen(None).items, mixed, told.texts), k=3)
    assert accuracy(told, shuffled) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"k": -1}, "k = -1"),
        ({"k": True}, "k = True"),
        ({"times": 0}, "times = 0"),
        ({"group": "users"}, r"group = 'users'.*Did you mean 'user'"),
    ],
)
def test_a_knob_that_is_none_is_refused(knobs: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        household(2).later(few_shot_user, **knobs)
