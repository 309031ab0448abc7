"""What an annotator reads and which key does what, through a file of keys."""

from __future__ import annotations

import io
import os
import pty

import pytest

from tests.collect.made import ANN, BOB, RUBRIC, ask, hold, pair
from tiebreak.collect.keyboard import END, Keyboard
from tiebreak.collect.queue import Queue
from tiebreak.collect.terminal import KEYS, VERDICTS
from tiebreak.store import Ledger


@pytest.fixture
def ledger() -> Ledger:
    """An empty ledger in memory."""
    return Ledger(":memory:")


def queue_of(ledger: Ledger, count: int = 3, **settings: int) -> Queue:
    """Return a queue over so many pairs."""
    return Queue(ledger, hold(ledger, [pair(n) for n in range(count)]), rubric=RUBRIC, **settings)


@pytest.mark.parametrize("key", VERDICTS)
def test_each_verdict_has_its_key(ledger: Ledger, key: str) -> None:
    queue = queue_of(ledger)
    assert ask(queue, f"{key}\nq\n")[0] == 1
    verdict, winner, told = VERDICTS[key]
    assert [(j.verdict, j.winner) for j in ledger.judgments()] == [(verdict, winner)]
    assert told in ask(queue, "u\nq\n")[1]


def test_every_key_is_told_on_screen(ledger: Ledger) -> None:
    _, screen = ask(queue_of(ledger), "q\n")
    assert all(line in screen for line in KEYS.splitlines())
    assert {*VERDICTS, "u", "c", "n", "q"} == {word for word in KEYS.split() if len(word) == 1}


def test_makers_and_files_are_not_shown(ledger: Ledger) -> None:
    _, screen = ask(queue_of(ledger), "1\n2\nt\n")
    assert "model@1" not in screen
    assert "Good answer" in screen
    assert "Poor answer" in screen


def test_an_answer_is_in_the_ledger_before_the_next_comparison_is_shown(ledger: Ledger) -> None:
    queue = queue_of(ledger)
    seen = []

    class Watching(io.StringIO):
        def readline(self, *size: int) -> str:  # type: ignore[override]
            seen.append(len(ledger.judgments()))
            return super().readline(*size)

    from rich.console import Console

    from tiebreak.collect.terminal import collect

    collect(queue, ANN, question="?", keyboard=Keyboard(Watching("1\n2\nt\n")), console=Console(file=io.StringIO()))
    assert seen == [0, 1, 2]


def test_confidence_and_note_belong_to_the_comparison_on_screen(ledger: Ledger) -> None:
    queue = queue_of(ledger)
    _, screen = ask(queue, "c\n7\nn\nshorter and right\n1\n2\nq\n")
    first, second = sorted(ledger.judgments(), key=lambda judgment: judgment.fields["turn"])
    assert (first.fields["confidence"], first.rationale) == (7, "shorter and right")
    assert "confidence" not in second.fields
    assert second.rationale == ""
    assert "confidence 7 of 9" in screen
    assert "note: shorter and right" in screen


@pytest.mark.parametrize("sure", ["0", "x", "+"])
def test_a_confidence_off_the_scale_is_told_and_asked_again(ledger: Ledger, sure: str) -> None:
    given, screen = ask(queue_of(ledger), f"c\n{sure}\n1\nq\n")
    assert given == 1
    assert "not on the scale" in screen
    assert "confidence" not in ledger.judgments()[0].fields


def test_undo_shows_the_last_answer_and_a_verdict_takes_its_place(ledger: Ledger) -> None:
    queue = queue_of(ledger)
    _, screen = ask(queue, "c\n8\n1\nu\nt\nq\n")
    assert "You said before: answer 1 is better" in screen
    stands = queue.judgments()
    assert [(j.verdict, j.fields["confidence"]) for j in stands] == [("tie", 8)], "confidence is kept unless said anew"
    assert len(ledger.judgments()) == 2


def test_undo_goes_back_as_far_as_answers_go_and_quitting_there_keeps_them(ledger: Ledger) -> None:
    queue = queue_of(ledger)
    _, screen = ask(queue, "1\n2\nu\nu\nu\nq\n")
    assert screen.count("You said before") == 3
    assert "no earlier answer of yours" in screen
    assert sorted(j.winner for j in queue.judgments() if j.winner is not None) == [0, 1]


def test_an_unknown_key_is_told_and_costs_nothing(ledger: Ledger) -> None:
    given, screen = ask(queue_of(ledger), "x\n1\nq\n")
    assert given == 1
    assert "'x' is not a key here" in screen


def test_the_end_of_the_input_saves_and_says_what_is_left(ledger: Ledger) -> None:
    given, screen = ask(queue_of(ledger), "1\n")
    assert given == 1
    assert "1 answered now, 2 left" in screen


def test_collection_resumes_and_says_when_nothing_is_left(ledger: Ledger) -> None:
    queue = queue_of(ledger)
    ask(queue, "1\nq\n")
    given, screen = ask(queue_of(ledger), "1\n1\n")
    assert given == 2
    assert "ann: 1 of 3 answered" in screen
    assert "none left for you" in screen
    assert ask(queue_of(ledger), "1\n")[0] == 0


def test_two_people_each_have_their_own_progress(ledger: Ledger) -> None:
    queue = queue_of(ledger, votes=2)
    ask(queue, "1\n1\n1\n", by=ANN)
    _, screen = ask(queue, "2\nq\n", by=BOB)
    assert "bob: 0 of 3 answered" in screen


def test_what_a_model_wrote_cannot_steer_the_terminal(ledger: Ledger) -> None:
    nasty = "\x1b[2Jgone \x07\x9b31m \u202eesrever [bold]plain[/bold]\ttab 👩\u200d🚀"
    pairs = hold(ledger, [pair(1, nasty, "fine")])
    _, screen = ask(Queue(ledger, pairs, rubric=RUBRIC), "q\n", width=120)
    assert not any(c in screen for c in "\x1b\x07\x9b\u202e")
    assert "\\x1b[2Jgone \\x07\\x9b31m \\x202eesrever [bold]plain[/bold]" in screen
    assert "👩\u200d🚀" in screen


def test_answers_stand_side_by_side_on_a_wide_terminal(ledger: Ledger) -> None:
    _, narrow = ask(queue_of(ledger), "q\n", width=80)
    _, wide = ask(queue_of(ledger), "q\n", width=140)

    def together(screen: str) -> bool:
        return any("Good answer" in line and "Poor answer" in line for line in screen.splitlines())

    assert together(wide)
    assert not together(narrow)


def test_a_key_on_a_real_terminal_needs_no_enter_and_leaves_it_as_it_was() -> None:
    import termios

    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "r", encoding="utf-8", buffering=1) as stream:
        before = termios.tcgetattr(theirs)
        os.write(ours, b"T2")
        keyboard = Keyboard(stream)
        assert keyboard.live
        assert (keyboard.key(), keyboard.key()) == ("t", "2")
        assert termios.tcgetattr(theirs) == before
        os.write(ours, b"a note\n")
        assert keyboard.line() == "a note"
    os.close(ours)


def test_a_file_of_keys_is_read_a_line_at_a_time_and_ends() -> None:
    keyboard = Keyboard(io.StringIO("1\n\n  T  \nnote here\n"))
    assert not keyboard.live
    assert [keyboard.key(), keyboard.key()] == ["1", "t"]
    assert keyboard.line() == "note here"
    assert keyboard.key() == END
    assert keyboard.line() == ""
