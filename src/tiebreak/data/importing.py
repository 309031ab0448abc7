"""Entries into the ledger, a few thousand at a time, with guards at the door and a count for everything.

Rows in = entries + refused, always. Importing the same file twice adds nothing, because ids are hashes of content and
repeats are numbered in file order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import NamedTuple

from tiebreak.data.guards import check_entry
from tiebreak.data.table import Entry, Refused, excerpt
from tiebreak.records import InputError, Judgment, Progress, Prompt, Response, quiet
from tiebreak.store import Ledger

CHUNK = 2_000
"""Rows between two writes: bounds memory to the records of one chunk plus the ids seen."""


@dataclass(frozen=True, slots=True)
class Remark:
    """One line of the report: why, how many rows, the first of them, and whether they went in all the same."""

    reason: str
    count: int
    where: str
    example: str
    kept: bool


class Imported(NamedTuple):
    """What an import brought: unique ids in file order, counts and the report.

    ``counts`` has ``rows``, ``entries``, ``refused``, one ``refused: REASON`` each, and for each kind of record
    ``prompts_new`` and ``prompts_known`` (already in the ledger before), likewise ``responses_`` and ``judgments_``.
    """

    prompt_ids: list[str]
    response_ids: list[str]
    judgment_ids: list[str]
    counts: dict[str, int]
    report: list[Remark]


class _Report:
    """Counts remarks by reason and keeps the first row of each; the one mutable thing of an import."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, bool]] = Counter()
        self.first: dict[tuple[str, bool], tuple[str, str]] = {}

    def add(self, reason: str, where: str, example: str, *, kept: bool) -> None:
        self.counts[reason, kept] += 1
        self.first.setdefault((reason, kept), (where, example))

    def remarks(self) -> list[Remark]:
        return [
            Remark(reason, count, *self.first[reason, kept], kept)
            for (reason, kept), count in self.counts.most_common()
        ]


class _Seen:
    """The ids met so far, in file order, and who said what about which item."""

    def __init__(self) -> None:
        self.prompts: dict[str, None] = {}
        self.responses: dict[str, None] = {}
        self.judgments: dict[str, None] = {}
        self.winners: dict[tuple[str, str], str] = {}


def import_records(ledger: Ledger, entries: Iterable[Entry | Refused], *, progress: Progress = quiet) -> Imported:
    """Write ``entries`` into ``ledger`` and return what came in, what was known and what was refused and why.

    Memory holds one chunk of records and the ids of all. A broken file ends the import with an InputError; the chunks
    before it stay, and importing the corrected file adds only what is missing.

    Args:
        ledger: where to.
        entries: what a reader of ``FORMATS`` yields.
        progress: called with (rows so far, 0, {"refused": n}) after each chunk; the total is not known.

    Raises:
        InputError: there are no rows, or every row was refused.
    """
    report, seen = _Report(), _Seen()
    counts: Counter[str] = Counter()
    rows = iter(entries)
    while chunk := list(islice(rows, CHUNK)):
        good = list(_through_the_door(chunk, report))
        counts["rows"] += len(chunk)
        counts["entries"] += len(good)
        _write(ledger, good, seen, counts, report)
        progress(counts["rows"], 0, {"refused": counts["rows"] - counts["entries"]})
    remarks = report.remarks()
    refused = [remark for remark in remarks if not remark.kept]
    if not counts["rows"]:
        raise InputError("The source has no rows; give a file that holds at least one.")
    if not counts["entries"]:
        raise InputError(
            f"None of the {counts['rows']} rows can be used; {refused[0].count} have: {refused[0].reason} "
            f"({refused[0].where}: {refused[0].example}). Check that the format fits the file."
        )
    told = {"rows": 0, "entries": 0, "refused": counts["rows"] - counts["entries"]}
    told |= {f"refused: {remark.reason}": remark.count for remark in refused} | dict(counts)
    return Imported(list(seen.prompts), list(seen.responses), list(seen.judgments), told, remarks)


def _through_the_door(chunk: Iterable[Entry | Refused], report: _Report) -> Iterator[Entry]:
    for entry in chunk:
        if isinstance(entry, Refused):
            report.add(entry.reason, entry.where, entry.example, kept=False)
            continue
        alarms = list(check_entry(entry))
        fatal = next((alarm for alarm in alarms if not alarm.kept), None)
        if fatal:
            report.add(fatal.reason, entry.where, _shown(entry), kept=False)
            continue
        for reason in (*(alarm.reason for alarm in alarms), *entry.notes):
            report.add(reason, entry.where, _shown(entry), kept=True)
        yield entry


def _shown(entry: Entry) -> str:
    return excerpt(" | ".join(response.text for response in entry.responses) or entry.prompt.plain)


def _write(ledger: Ledger, entries: list[Entry], seen: _Seen, counts: Counter[str], report: _Report) -> None:
    prompts: dict[str, Prompt] = {}
    responses: dict[str, Response] = {}
    judgments: list[Judgment] = []
    for entry in entries:
        if entry.prompt.id not in seen.prompts:
            prompts[entry.prompt.id] = entry.prompt
            seen.prompts[entry.prompt.id] = None
        for response in entry.responses:
            if response.id not in seen.responses:
                responses[response.id] = response
                seen.responses[response.id] = None
        judgments += [_numbered(judgment, entry, seen, report) for judgment in entry.judgments]
    for kind, added in (
        ("prompts", ledger.add_prompts(prompts.values())),
        ("responses", ledger.add_responses(responses.values())),
        ("judgments", ledger.add_judgments(judgments)),
    ):
        counts[f"{kind}_new"] += added.new
        counts[f"{kind}_known"] += added.known


def _numbered(judgment: Judgment, entry: Entry, seen: _Seen, report: _Report) -> Judgment:
    if judgment.id in seen.judgments:
        report.add("the same event again, numbered as a further attempt", entry.where, _shown(entry), kept=True)
    while judgment.id in seen.judgments:
        judgment = replace(judgment, attempt=judgment.attempt + 1, id="")
    seen.judgments[judgment.id] = None
    if judgment.winner is not None:
        winner = judgment.slots[judgment.winner]
        said = seen.winners.setdefault((judgment.item, judgment.by), winner)
        if said != winner:
            report.add("contradicts an earlier verdict by the same judge", entry.where, _shown(entry), kept=True)
    return judgment
