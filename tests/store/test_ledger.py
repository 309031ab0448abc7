"""What goes into a ledger comes out equal, once, and in order; on SQLite and on PostgreSQL."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tiebreak.records import InputError, Judgment, Message, Prompt
from tiebreak.store import CHUNK, Added, Ledger


def test_records_come_back_equal(ledger: Ledger, world: Any) -> None:
    chat = Prompt(text=(Message("user", "Hé"), Message("assistant", "日本")), context="c", reference="r", licence="MIT")
    world.fill(ledger)
    ledger.add_prompts([chat])
    judgment = Judgment(
        prompt_id=chat.id,
        slots=("a", "b", "c"),
        verdict="slot",
        winner=2,
        by="model:judge@3",
        order_known=False,
        probability=0.25,
        strength=0.5,
        ratings={"a": {"helpful": 4}},
        rationale="short",
        rubric="abc",
        raw="[[C]]",
        fields={"page": 1},
        tokens_in=10,
        tokens_out=2,
        price=0.001,
        latency=0.5,
        attempt=2,
        revises="older",
        created_at="2024-01-01T00:00:00+00:00",
    )
    ledger.add_judgments([judgment])
    assert ledger.prompts([chat.id, world.prompt.id]) == [chat, world.prompt]
    assert ledger.responses([r.id for r in world.responses]) == list(world.responses)
    assert ledger.judgments() == [judgment]


def test_writing_twice_writes_once(ledger: Ledger, world: Any) -> None:
    assert ledger.add_prompts([world.prompt, world.prompt]) == Added(new=1, known=1)
    assert ledger.add_responses(world.responses) == Added(2, 0)
    assert ledger.add_responses(world.responses) == Added(0, 2)
    assert ledger.add_judgments(world.judgments(5)) == Added(5, 0)
    assert ledger.add_judgments(world.judgments(7)) == Added(2, 5)
    assert ledger.counts() == {"prompts": 1, "responses": 2, "judgments": 7, "runs": 0}


def test_nothing_to_add_adds_nothing(ledger: Ledger) -> None:
    assert ledger.add_judgments([]) == Added(0, 0)
    assert ledger.judgments() == []


def test_the_first_telling_stays(ledger: Ledger, world: Any) -> None:
    world.fill(ledger)
    ledger.add_prompts([replace(world.prompt, source="elsewhere")])
    assert ledger.prompts() == [world.prompt]


def test_a_judgment_gets_a_time_of_creation_when_it_has_none(ledger: Ledger, world: Any) -> None:
    world.fill(ledger)
    (said,) = world.judgments(1)
    ledger.add_judgments([said])
    (kept,) = ledger.judgments()
    assert kept.id == said.id
    assert kept.created_at.endswith("+00:00")


def test_ids_are_answered_in_the_order_asked(ledger: Ledger, world: Any) -> None:
    world.fill(ledger)
    ids = [j.id for j in world.judgments(1_200)]
    ledger.add_judgments(world.judgments(1_200))
    asked = [*reversed(ids), ids[0]]
    assert [j.id for j in ledger.judgments(asked)] == asked
    assert [j.id for j in ledger.judgments()] == sorted(ids)


def test_an_id_of_another_ledger_is_refused(ledger: Ledger) -> None:
    with pytest.raises(InputError, match=r"has no judgment feed; it belongs to another ledger"):
        ledger.judgments(["feed"])


def test_one_judge_under_one_rubric(ledger: Ledger, world: Any) -> None:
    world.fill(ledger)
    mine = [replace(j, id="", rubric="r1") for j in world.judgments(3, by="model:a")]
    other = [replace(j, id="", rubric="r2") for j in world.judgments(2, by="model:a")]
    ledger.add_judgments([*mine, *other, *world.judgments(2, by="model:b")])
    assert {j.id for j in ledger.judgments_by("model:a", "r1")} == {j.id for j in mine}


def test_a_set_keeps_its_order_and_replaces_what_it_held(ledger: Ledger) -> None:
    ids = [f"{(i * 7919) % 10_007:05d}" for i in range(CHUNK + 5)]
    assert ledger.put_set("train", ids) == CHUNK + 5
    assert ledger.get_set("train") == ids
    assert ledger.put_set("train", ["b", "a", "b"]) == 3
    assert ledger.get_set("train") == ["b", "a", "b"]
    ledger.put_set("heldout", ["c"])
    assert ledger.sets() == {"heldout": 1, "train": 3}
    assert ledger.get_set("no such set") == []


def test_a_run_is_recorded_once(ledger: Ledger) -> None:
    ledger.add_run("r1", "judge", {"seed": 1, "counts": {"in": 3}})
    ledger.add_run("r1", "judge", {"seed": 1, "counts": {"in": 3}})
    assert ledger.counts()["runs"] == 1


def test_a_record_without_its_prompt_is_refused_and_nothing_is_kept(ledger: Ledger, world: Any) -> None:
    with pytest.raises(InputError, match="whose prompt it does not hold; add the prompt first"):
        ledger.add_judgments(world.judgments(3))
    with pytest.raises(InputError, match="add the prompt first"):
        ledger.add_responses(world.responses)
    assert ledger.counts()["judgments"] == ledger.counts()["responses"] == 0


def test_a_failing_source_of_rows_leaves_the_ledger_as_it_was(ledger: Ledger, world: Any) -> None:
    world.fill(ledger)

    def stream() -> Any:
        yield from world.judgments(10)
        raise InputError("line 11 is not JSON")

    with pytest.raises(InputError, match="line 11"):
        ledger.add_judgments(stream())
    assert ledger.counts()["judgments"] == 0
    assert ledger.add_judgments(world.judgments(10)) == Added(10, 0)


def test_half_a_character_is_refused_in_a_sentence(ledger: Ledger) -> None:
    with pytest.raises(InputError, match=r"ledger .* half a character"):
        ledger.add_prompts([Prompt(text="q", context="\ud800")])
    assert ledger.counts()["prompts"] == 0


def test_a_null_character_is_kept_or_refused_in_a_sentence(ledger: Ledger) -> None:
    prompt = Prompt(text="q", context="a\x00b")
    if ledger.url.get_backend_name() == "sqlite":
        ledger.add_prompts([prompt])
        assert ledger.prompts() == [prompt]
    else:
        with pytest.raises(InputError, match=r"refused a change: .*NUL"):
            ledger.add_prompts([prompt])


def test_memory_keeps_nothing(world: Any) -> None:
    with Ledger(":memory:") as first:
        world.fill(first)
        assert first.counts()["responses"] == 2
        assert first.name == ":memory:"
    with Ledger(":memory:") as second:
        assert second.counts()["responses"] == 0


def test_the_folder_of_a_ledger_is_made(tmp_path: Path) -> None:
    with Ledger(tmp_path / "a" / "b" / "ledger.db") as ledger:
        assert ledger.name == str(tmp_path / "a" / "b" / "ledger.db")
    with Ledger(f"sqlite:///{tmp_path}/a/b/ledger.db", create=False) as again:
        assert again.counts()["prompts"] == 0
