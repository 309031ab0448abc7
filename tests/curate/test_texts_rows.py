"""The rows of the steps on texts: knobs, names, and steps that follow one another."""

from __future__ import annotations

import inspect

import pytest

from tests.curate.texts import Told, question
from tiebreak.curate.goals import goal_conditioned
from tiebreak.curate.rows_of_texts import ROWS
from tiebreak.curate.table import Texts, curate
from tiebreak.data.drafts import without_goal
from tiebreak.records import InputError
from tiebreak.registry import Row

TARGET = {row.name: row.target for row in ROWS}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_names_its_function_with_its_knobs_and_says_what_it_is_for(row: Row) -> None:
    named = [p for p in inspect.signature(row.load()).parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert dict(row.knobs or {}) == {p.name: p.default for p in named}
    assert row.load().__name__ == row.name
    assert row.use
    assert row.paper or row.name == "by_user"


def test_steps_on_texts_follow_one_another_and_each_finds_the_words_of_the_one_before() -> None:
    told = Told()
    for number in range(3):
        prompt = question(f"Q{number}?")
        told.judged(prompt, *(told.answer(prompt, f"{text} {number}") for text in ("a", "b")), rationale="It is right.")
    steps = [
        TARGET["by_user"],
        TARGET["rationale"],
        {TARGET["few_shot_user"]: {"k": 2, "times": 1}},
        TARGET["drafts"],
        TARGET["process"],
    ]
    with pytest.raises(InputError, match=r"takes grades as P\(the answer is right\)"):
        curate(told.judgments, steps, told.texts)
    done = curate(told.judgments, [*steps[:-1]], told.texts)
    assert [(stage.unit, stage.rows_in, stage.rows_out) for stage in done.funnel] == [
        ("items", 3, 3),
        ("pairs", 3, 3),
        ("pairs", 3, 3),
        ("pairs", 3, 3),
    ]
    texts = Texts()
    texts.add([*told.records, *done.made])
    for row in done.rows:
        assert len(texts.responses(row.response_ids)) == len(texts.prompts(row.prompt_ids)) == 4
        assert all(set(p.fields) == {"own", "shots", "draft"} for p in texts.prompts(row.prompt_ids))
    assert len({record.id for record in done.made}) == len(done.made)


def test_goals_on_goals_are_refused_and_come_off_before_a_comparison() -> None:
    told = Told()
    told.pair(question("Q?"), "a", "b", scores=(2.0, 1.0))
    done = told.later(goal_conditioned)
    told.records += done.made
    told.rows = list(done.rows)
    with pytest.raises(InputError, match="has a field 'goal' already"):
        told.later(goal_conditioned)
    assert {without_goal(told.texts.prompts([row.prompt_id])[0]).id for row in done.rows} == {told.records[0].id}
