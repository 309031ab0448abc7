"""What import looks at before a row enters the ledger: empty texts, equal responses, text that is no Unicode.

A row refused here never reaches a trainer as a zero-signal pair; a row that is only remarked on is counted with an
example, so that nothing odd goes in unseen.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tiebreak.data.table import Entry

KEEPABLE = ("empty_response", "equal_responses")
"""Guards that a source may turn into remarks."""


class Alarm(NamedTuple):
    """What one guard says about one entry: its name, the reason, and whether the entry goes in all the same."""

    guard: str
    reason: str
    kept: bool


def check_entry(entry: Entry) -> Iterator[Alarm]:
    """Yield what is odd about ``entry``; one alarm that is not kept refuses the whole row.

    Two equal texts by different makers (or draws) are two responses, so a source may keep them: raters who still
    prefer one show their noise. The same response in both slots is always refused.
    """
    texts = [response.text for response in entry.responses]
    if not entry.prompt.plain.strip() and not entry.prompt.context.strip():
        yield Alarm("empty_prompt", "empty prompt", False)
    if not all(text.strip() for text in texts):
        yield Alarm("empty_response", "empty response", "empty_response" in entry.keeps)
    if len({response.id for response in entry.responses}) < len(texts):
        yield Alarm("same_response", "equal responses", False)
    elif len(set(texts)) < len(texts):
        yield Alarm("equal_responses", "equal responses", "equal_responses" in entry.keeps)
    if not all(_writable(text) for text in _texts(entry)):
        yield Alarm("unicode", "text with half a surrogate pair, which no file can hold", False)


def _texts(entry: Entry) -> Iterator[str]:
    prompt = entry.prompt
    yield from (prompt.plain, prompt.context, prompt.reference or "", prompt.group)
    for response in entry.responses:
        yield from (response.text, response.maker)
    for judgment in entry.judgments:
        yield from (judgment.by, judgment.rationale, judgment.raw)


def _writable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
