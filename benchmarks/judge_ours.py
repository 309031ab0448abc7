"""tiebreak's side of ``judge.py``: ``judge_pairs`` with the ``pairwise`` judge, into a ledger on disk."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from judge_work import MODEL, pair, rubric

from tiebreak.judge.run import Judged, judge_pairs
from tiebreak.judge.table import Judge, make_judge
from tiebreak.records import InputError, Prompt, Response
from tiebreak.store import Ledger

Pairs = list[tuple[Prompt, Response, Response]]


def main() -> None:
    """Judge the job's rows and write the answers."""
    job = json.loads(Path(sys.argv[1]).read_text())
    with tempfile.TemporaryDirectory() as spare:
        folder = Path(job.get("folder") or spare)
        found = growth(job, folder) if job.get("growth") else judge(job, folder)
    found["versions"] = {name: version(name) for name in ("tiebreak", "aiohttp", "sqlalchemy")}
    Path(sys.argv[2]).write_text(json.dumps(found))


def judge(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the answer to each row (None: lost, empty: unreadable), why those are, and the seconds they took."""
    given = pairs(job["rows"])
    with opened(folder, given) as ledger:
        began = time.monotonic()
        problems, judged = [], None
        for _ in range(job.get("starts", 1)):
            try:
                judged = ask(ledger, given, job, maker(job, folder))
                break
            except InputError as error:  # what was answered before it is kept, and a user would start it again
                problems.append(str(error))
        seconds = time.monotonic() - began
        found = answers(ledger, given)
        if job.get("again") and judged:
            who = maker(job, folder)
            once_more = judge_pairs(ledger, who, given, orders="both", concurrency=job["window"], again=("invalid",))
            found["again"] = {"unreadable": once_more.counts["invalid"], "asked": once_more.counts["asked"]}
    counts = dict(judged.counts) if judged else {}
    return {**found, "seconds": seconds, "problems": problems, "counts": counts}


def growth(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return seconds of a run that calls, of runs that know every judgment and of runs that know every reply."""
    given = pairs(job["rows"])
    times: dict[str, list[float]] = {"calls": [], "known": [], "replies": []}
    with opened(folder, given) as ledger:
        for what, words in [("calls", 0), *([("known", 0), ("replies", None)] * job["growth"])]:
            number = len(times["replies"]) + 1 if words is None else words
            began = time.monotonic()
            ask(ledger, given, job, maker(job, folder, number))
            times[what].append(time.monotonic() - began)
    return {"times": times}


def maker(job: dict[str, Any], folder: Path, number: int = 0) -> Judge:
    """Return the judge; with another ``number`` it is another judge that asks in the same words.

    A section that its settings leave unused is part of the rubric's hash, and is not sent.
    """
    words = folder / f"words{number}.txt"
    words.write_text(rubric() + (f"\n[rationale]\nUnused {number}\n" if number else ""))
    limit = {"timeout": job["timeout"]} if job.get("timeout") else {}
    return make_judge("pairwise", endpoint=job["url"], model=MODEL, rubric=str(words), rationale=False, **limit)


def ask(ledger: Ledger, given: Pairs, job: dict[str, Any], who: Judge) -> Judged:
    """Judge the pairs in both orders, as a recipe does."""
    return judge_pairs(ledger, who, given, orders="both", concurrency=job["window"])


def pairs(count: int) -> Pairs:
    """Return the pairs of the first ``count`` rows as records."""
    made = []
    for number in range(count // 2):
        row = pair(number)
        prompt = Prompt(text=row.prompt)
        first, second = (
            Response(prompt_id=prompt.id, text=text, draw=n) for n, text in enumerate((row.first, row.second))
        )
        made.append((prompt, first, second))
    return made


def opened(folder: Path, given: Pairs) -> Ledger:
    """Open the folder's ledger with the pairs in it."""
    ledger = Ledger(folder / "ledger.db")
    ledger.add_prompts(prompt for prompt, _, _ in given)
    ledger.add_responses(response for _, *both in given for response in both)
    return ledger


def answers(ledger: Ledger, given: Pairs) -> dict[str, Any]:
    """Return what the ledger holds on each row: the winner's number, empty with a reason where unreadable, or None."""
    said: dict[tuple[str, ...], str] = {}
    why: dict[str, int] = {}
    for judgment in ledger.judgments():
        said[judgment.slots] = str(judgment.winner + 1) if judgment.winner is not None else ""
        if judgment.verdict == "invalid":
            reason = str(judgment.fields.get("why") or f"the reply: {judgment.raw}")
            why[reason] = why.get(reason, 0) + 1
    found = []
    for _, first, second in given:
        found += [said.get((first.id, second.id)), said.get((second.id, first.id))]
    return {"answers": found, "reasons": why}


if __name__ == "__main__":
    main()
