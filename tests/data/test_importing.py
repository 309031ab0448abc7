"""Import into a ledger: guards, counts, repeats, contradictions."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiebreak.data.importing import CHUNK, import_records
from tiebreak.data.table import Entry, Refused, pair_entry
from tiebreak.records import InputError, Judgment, Prompt, Response
from tiebreak.store import Ledger


def pair(prompt: str = "p", chosen: str = "a", rejected: str = "b", *, by: str = "human:x", keeps=(), makers=("", "")):
    asked = Prompt(text=prompt)
    sides = [Response(prompt_id=asked.id, text=t, maker=m) for t, m in zip((chosen, rejected), makers, strict=True)]
    return pair_entry("f:1", asked, *sides, by=by, fields={})._replace(keeps=keeps)


def bring(*entries: Entry | Refused):
    with Ledger(":memory:") as ledger:
        return import_records(ledger, entries), ledger.counts()


def reasons(imported) -> dict[str, tuple[int, bool]]:
    return {remark.reason: (remark.count, remark.kept) for remark in imported.report}


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (pair(prompt=" \n"), "empty prompt"),
        (pair(chosen=""), "empty response"),
        (pair(rejected="\t "), "empty response"),
        (pair(chosen="same", rejected="same"), "equal responses"),
        (pair(chosen="same", rejected="same", makers=("m1", "m2")), "equal responses"),
        (pair(chosen="half \ud83d"), "text with half a surrogate pair, which no file can hold"),
    ],
)
def test_a_guard_refuses_counts_and_shows_an_example_a15(entry, reason):
    imported, stored = bring(pair(), entry, entry)
    assert imported.counts["rows"] == 3
    assert imported.counts["refused"] == imported.counts[f"refused: {reason}"] == 2
    (remark,) = imported.report
    assert (remark.reason, remark.count, remark.where, remark.kept) == (reason, 2, "f:1", False)
    assert stored["judgments"] == 1


def test_a_source_may_keep_empty_and_equal_responses_and_they_are_counted():
    equal = pair(chosen="same", rejected="same", makers=("m1", "m2"), keeps=("equal_responses",))
    empty = pair(chosen="", keeps=("empty_response",))
    imported, stored = bring(equal, empty)
    assert reasons(imported) == {"equal responses": (1, True), "empty response": (1, True)}
    assert imported.counts["refused"] == 0
    assert stored["judgments"] == 2


def test_the_same_response_on_both_sides_is_refused_whatever_the_source_keeps():
    imported, _ = bring(pair(), pair(chosen="s", rejected="s", keeps=("equal_responses",)))
    assert reasons(imported) == {"equal responses": (1, False)}


def test_contradicting_verdicts_of_one_judge_are_kept_and_counted():
    imported, stored = bring(pair(), pair(chosen="b", rejected="a"), pair(chosen="b", rejected="a", by="human:y"))
    assert reasons(imported) == {"contradicts an earlier verdict by the same judge": (1, True)}
    assert stored["judgments"] == 3


def test_identical_events_are_numbered_and_a_second_import_adds_nothing_a17():
    entries = [pair(), pair(), pair()]
    with Ledger(":memory:") as ledger:
        first = import_records(ledger, entries)
        second = import_records(ledger, entries)
        attempts = sorted(judgment.attempt for judgment in ledger.judgments())
    assert attempts == [0, 1, 2]
    assert first.judgment_ids == second.judgment_ids
    assert first.counts["judgments_new"] == second.counts["judgments_known"] == 3
    assert second.counts["judgments_new"] == second.counts["prompts_new"] == second.counts["responses_new"] == 0
    assert reasons(first) == {"the same event again, numbered as a further attempt": (2, True)}


def test_a_note_of_the_reader_is_counted():
    imported, _ = bring(pair()._replace(notes=("odd",)), Refused("f:2", "unreadable", "x"))
    assert reasons(imported) == {"odd": (1, True), "unreadable": (1, False)}


def test_an_empty_source_and_one_without_a_usable_row_are_errors():
    with pytest.raises(InputError, match="no rows"):
        bring()
    with pytest.raises(InputError, match=r"None of the 1 rows can be used; 1 have: missing chosen \(f:2: \{x\}\)"):
        bring(Refused("f:2", "missing chosen", "{x}"))


def test_a_response_without_a_judgment_comes_in():
    prompt = Prompt(text="p")
    imported, stored = bring(Entry("w:1", prompt, (Response(prompt_id=prompt.id, text="only"),), ()))
    assert stored == {"prompts": 1, "responses": 1, "judgments": 0, "runs": 0}
    assert imported.judgment_ids == []


def test_ids_stand_in_file_order_and_progress_is_told_by_the_chunk():
    told: list[tuple[int, float]] = []
    entries = [pair(prompt=f"p{number}") for number in range(CHUNK + 1)]
    with Ledger(":memory:") as ledger:
        imported = import_records(
            ledger, iter(entries), progress=lambda n, _t, shown: told.append((n, shown["refused"]))
        )
    assert imported.prompt_ids == [entry.prompt.id for entry in entries]
    assert told == [(CHUNK, 0), (CHUNK + 1, 0)]


texts = st.sampled_from(["a", "b", "", " ", "c"])


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(texts, texts, texts), min_size=1, max_size=12))
def test_rows_are_entries_plus_refused_and_the_ledger_holds_what_was_counted(rows):
    entries = [pair("ok"), *(pair(*row) for row in rows)]
    imported, stored = bring(*entries)
    counts = imported.counts
    assert counts["rows"] == len(entries) == counts["entries"] + counts["refused"]
    assert counts["refused"] == sum(remark.count for remark in imported.report if not remark.kept)
    assert stored["judgments"] == counts["entries"] == len(imported.judgment_ids)
    assert stored["responses"] == len(imported.response_ids)


def test_a_repeat_keeps_its_own_attempt_number():
    prompt = Prompt(text="p")
    sides = tuple(Response(prompt_id=prompt.id, text=text) for text in "ab")
    slots = tuple(side.id for side in sides)
    events = [Judgment(prompt_id=prompt.id, slots=slots, verdict="tie", by="human:x", attempt=n) for n in (1, 0, 0)]
    imported, stored = bring(*(Entry("f:1", prompt, sides, (event,)) for event in events))
    assert stored["judgments"] == 3
    assert len(set(imported.judgment_ids)) == 3
