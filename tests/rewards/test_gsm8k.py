"""The verifier of mathematics on published model solutions, each marked right or wrong by who published them."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tiebreak.records import Prompt
from tiebreak.rewards.maths import bare, equal, final, number

SOLVERS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")
RIGHT = {"6b_finetuning": 177, "6b_verification": 322, "175b_finetuning": 274, "175b_verification": 461}
DRESSES = (
    "#### {}",
    "The answer is {}.",
    "**Final answer:** {}",
    r"So the total is $\boxed{{{}}}$.",
    "In the end it is ${}.",
    "That makes {} apples.",
    "The answer is ${}$ dollars!",
    r"Therefore, she pays \${}.",
)
"""Other ways to say the final answer; none of them may change a verdict."""


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def solved(shared_path: Callable[[str], Path]) -> list[dict[str, Any]]:
    return lines(shared_path("gsm8k/example_model_solutions.first800.jsonl"))


def verdict(solution: str, known: str, library: str = "never") -> bool:
    return equal(Prompt(text="Q", reference=known), solution, {}, library=library) == 1.0


def test_the_verifier_marks_3200_solutions_as_published(solved: list[dict[str, Any]]) -> None:
    assert len(solved) == 800
    for solver in SOLVERS:
        marks = [verdict(row[solver]["solution"], row["ground_truth"]) for row in solved]
        published = [row[solver]["is_correct"] for row in solved]
        differ = [n for n, (ours, theirs) in enumerate(zip(marks, published, strict=True)) if ours != theirs]
        assert (differ, sum(marks)) == ([], RIGHT[solver]), solver


@pytest.mark.parametrize("dress", DRESSES)
def test_how_the_answer_is_said_changes_no_verdict(dress: str, solved: list[dict[str, Any]]) -> None:
    for row in solved:
        known = str(final(row["ground_truth"]))
        for solver in SOLVERS:
            said = re.sub(
                r"^A: (.*)$", lambda found: dress.format(found[1]), row[solver]["solution"], flags=re.MULTILINE
            )
            assert verdict(said, known) == row[solver]["is_correct"]


def test_the_library_agrees(solved: list[dict[str, Any]]) -> None:
    pytest.importorskip("math_verify", reason="math-verify is not installed: pip install 'tiebreak[verify]'")
    for row in solved:
        for solver in SOLVERS:
            solution = row[solver]["solution"]
            assert verdict(solution, row["ground_truth"], library="always") == row[solver]["is_correct"]


def test_without_its_last_line_a_solution_is_judged_by_its_last_number(solved: list[dict[str, Any]]) -> None:
    """31 right ones end in another number ("18 more to complete the 72"); 5 are right but for a cut last line."""
    differ: Counter[str] = Counter()
    for row in solved:
        for solver in SOLVERS:
            solution, right = row[solver]["solution"], row[solver]["is_correct"]
            prose = re.sub(r"^A: .*$", "", solution, flags=re.MULTILINE).strip()
            if verdict(prose, row["ground_truth"]) and not right:
                known, written = (str(final(text)) for text in (row["ground_truth"], solution))
                differ["cut at the comma"] += known.startswith(written)
                differ["too kind"] += not known.startswith(written)
            differ["too strict"] += right and not verdict(prose, row["ground_truth"])
    assert differ == {"cut at the comma": 5, "too kind": 0, "too strict": 31}


def test_every_published_answer_is_a_number(shared_path: Callable[[str], Path]) -> None:
    rows = lines(shared_path("gsm8k/test.jsonl")) + lines(shared_path("gsm8k/train.first2500.jsonl"))
    assert len(rows) == 3819
    for row in rows:
        said = row["answer"].rpartition("#### ")[2]
        assert number(bare(str(final(row["answer"])))) == number(said) is not None
        assert verdict(row["answer"], said)


CHATS = ("mistralai/Mixtral-8x7B-Instruct-v0.1", "gpt-4-1106-preview")


def test_chat_answers_are_marked_as_published_but_for_what_was_looked_at(
    shared_path: Callable[[str], Path],
) -> None:
    """2 587 of 2 638 agree, and of the other 51 the marks here are right in 50.

    44 times the published marking holds that $7.00 is not 7. Of the seven that it alone takes for right, six are other
    numbers (-15 for 15, 0.5 for 5, 7.8 for 8); the seventh is right, in prose that ends with another number.
    """
    known = {row["question"].strip(): row["answer"] for row in lines(shared_path("gsm8k/test.jsonl"))}
    with shared_path("routellm-gsm8k/gsm8k_responses.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    kinder: list[str] = []
    stricter: dict[str, list[int]] = {chat: [] for chat in CHATS}
    for n, row in enumerate(rows):
        for chat in CHATS:
            said = row[f"{chat}_response"]
            ours, theirs = verdict(said, known[row["prompt"].strip()]), row[chat] == "True"
            kinder += [said] * (ours and not theirs)
            stricter[chat] += [n] * (theirs and not ours)
    assert len(rows) == 1319
    assert stricter == {CHATS[0]: [164, 191, 460, 808, 1241, 1269], CHATS[1]: [659]}
    assert len(kinder) == 44
    assert all(re.search(r"\.00\b", said) for said in kinder)
