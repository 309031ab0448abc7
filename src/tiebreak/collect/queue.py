"""Which comparison comes next for whom, and what was said of it: one queue behind every face that asks people.

The ledger is its only memory. A queue made anew, after a kill or by another process, goes on where the last answer was
written, shows everybody the same slots as before, and asks nothing twice.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from tiebreak.records import InputError, Judgment, Prompt, Response, Verdict, content_id
from tiebreak.store import Ledger

VOTES: frozenset[Verdict] = frozenset({"slot", "tie", "both_bad"})
"""Verdicts that count as somebody's vote; a skip leaves the comparison to others."""

SUREST = 9
"""The end of the scale of confidence, which begins at 1."""


class Shown(NamedTuple):
    """A comparison as one person sees it: answers in the order of their slots; ``earlier`` is what they said before."""

    item: str
    prompt: Prompt
    slots: tuple[Response, Response]
    earlier: Judgment | None = None


class Said(NamedTuple):
    """What a person said of a comparison: ``confidence`` from 1 (a guess) to 9 (certain), ``seconds`` they took."""

    verdict: Verdict
    winner: int | None = None
    confidence: int | None = None
    note: str = ""
    seconds: float | None = None


class Progress(NamedTuple):
    """How far one person is: comparisons answered, left for them, and the answers by verdict."""

    done: int
    left: int
    verdicts: Counter[str]


def person(name: str) -> str:
    """Return ``human:NAME`` for somebody's name as they gave it.

    Raises:
        InputError: an empty name, or one with control characters or more than 64 characters.
    """
    kept = name.strip()
    if not kept or len(kept) > 64 or not kept.isprintable():
        raise InputError(f"The annotator's name is {name!r}; expected 1 to 64 printable characters, for example ann.")
    return f"human:{kept}"


def rubric_of(question: str) -> str:
    """Return the hash of all that people are told; under another question they are asked anew."""
    return content_id("rubric", "collect", re.sub(r"\s+", " ", question).strip())


class Queue:
    """Comparisons of two answers, in a seeded order, each asked until enough people have voted on it.

    Args:
        ledger: holds prompts and responses, and receives the judgments.
        pairs: what is compared; a pair with equal or blank texts is never asked and counted in ``unfit``.
        rubric: see :func:`rubric_of`.
        votes: people wanted for each comparison.
        seed: of the order of the comparisons and of the slots, which also depend on the person.
    """

    def __init__(
        self,
        ledger: Ledger,
        pairs: Iterable[tuple[Prompt, Response, Response]],
        *,
        rubric: str,
        votes: int = 1,
        seed: int = 0,
    ) -> None:
        self._ledger, self._rubric, self._votes, self._seed = ledger, rubric, votes, seed
        self.unfit: Counter[str] = Counter()
        items = dict(item for pair in pairs if (item := self._item(*pair)) is not None)
        self._items = dict(sorted(items.items(), key=lambda item: content_id("turn", seed, item[0])))
        self._standing: dict[str, dict[str, Judgment]] = {item: {} for item in self._items}
        self._history: dict[str, list[str]] = {}
        found = [j for j in ledger.judgments_by(None, rubric) if j.item in self._items and j.by.startswith("human:")]
        for judgment in sorted(found, key=lambda j: (j.fields.get("turn", 0), j.created_at)):
            self._remember(judgment)

    def __len__(self) -> int:
        return len(self._items)

    def next(self, by: str) -> Shown | None:
        """Return the comparison that ``by`` is to answer now, None where nothing is left for them."""
        return next((self._shown(item, by) for item in self._items if self._open(item, by)), None)

    def back(self, by: str, steps: int) -> Shown | None:
        """Return the comparison that ``by`` answered ``steps`` answers ago (1 is the last), None before the first."""
        before = list(dict.fromkeys(reversed(self._history.get(by, []))))
        return self._shown(before[steps - 1], by) if 0 < steps <= len(before) else None

    def answer(self, by: str, shown: Shown, said: Said) -> Judgment:
        """Write what ``by`` said; where they had answered before, the new judgment revises the old one.

        Raises:
            InputError: a confidence off its scale, or the ledger cannot be written.
        """
        if said.confidence is not None and not 1 <= said.confidence <= SUREST:
            raise InputError(f"The confidence is {said.confidence}; expected 1 (a guess) to {SUREST} (certain).")
        earlier = self._standing[shown.item].get(by)
        sure = {} if said.confidence is None else {"confidence": said.confidence}
        judgment = Judgment(
            prompt_id=shown.prompt.id,
            slots=(shown.slots[0].id, shown.slots[1].id),
            verdict=said.verdict,
            winner=said.winner,
            by=by,
            rubric=self._rubric,
            strength=None if said.confidence is None else (said.confidence - 1) / (SUREST - 1),
            rationale=said.note,
            fields={"turn": len(self._history.get(by, [])) + 1, **sure},
            latency=said.seconds,
            created_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            revises=earlier.id if earlier else None,
        )
        self._ledger.add_judgments([judgment])
        self._remember(judgment)
        return judgment

    def progress(self, by: str) -> Progress:
        """Return how far ``by`` is."""
        said = [standing[by].verdict for standing in self._standing.values() if by in standing]
        left = sum(self._open(item, by) for item in self._items)
        return Progress(len(said), left, Counter(said))

    def people(self) -> list[str]:
        """Return who has answered anything, by name."""
        return sorted(self._history)

    def judged(self) -> int:
        """Return how many comparisons have all the votes they want."""
        return sum(self._count(item) >= self._votes for item in self._items)

    def judgments(self) -> list[Judgment]:
        """Return the judgments that stand, in the order of the comparisons and then by name."""
        return [standing[by] for standing in self._standing.values() for by in sorted(standing)]

    def _item(
        self, prompt: Prompt, one: Response, other: Response
    ) -> tuple[str, tuple[Prompt, Response, Response]] | None:
        texts = one.text.strip(), other.text.strip()
        if not all(texts):
            self.unfit["empty"] += 1
        elif texts[0] == texts[1]:
            self.unfit["identical"] += 1
        else:
            low, high = sorted((one, other), key=lambda response: response.id)
            return content_id("item", prompt.id, [low.id, high.id]), (prompt, low, high)
        return None

    def _shown(self, item: str, by: str) -> Shown:
        """Return an item in the slots this person sees, the same each time."""
        prompt, low, high = self._items[item]
        coin = int(content_id("slots", self._seed, item, by), 16) & 1
        return Shown(item, prompt, (low, high) if coin else (high, low), self._standing[item].get(by))

    def _open(self, item: str, by: str) -> bool:
        return by not in self._standing[item] and self._count(item) < self._votes

    def _count(self, item: str) -> int:
        return sum(judgment.verdict in VOTES for judgment in self._standing[item].values())

    def _remember(self, judgment: Judgment) -> None:
        """Let a judgment stand in place of the same person's earlier one; they come in the order they were made."""
        self._standing[judgment.item][judgment.by] = judgment
        self._history.setdefault(judgment.by, []).append(judgment.item)


def rows(judgments: Sequence[Judgment], ledger: Ledger) -> list[dict[str, object]]:
    """Return judgments that name a winner as rows of a preference set; ties and the like have no place in one."""
    won = [judgment for judgment in judgments if judgment.winner is not None and len(judgment.slots) == 2]
    prompts = {prompt.id: prompt for prompt in ledger.prompts(sorted({judgment.prompt_id for judgment in won}))}
    sides = {r.id: r for r in ledger.responses(sorted({slot for judgment in won for slot in judgment.slots}))}
    return [_row(judgment, prompts[judgment.prompt_id], sides) for judgment in won]


def _row(judgment: Judgment, prompt: Prompt, sides: dict[str, Response]) -> dict[str, object]:
    assert judgment.winner is not None
    told = {
        "source": "user_collected",
        "annotator": judgment.by.removeprefix("human:"),
        "confidence": judgment.fields.get("confidence"),
        "note": judgment.rationale or None,
        "judgment": judgment.id,
    }
    return {
        "prompt": prompt.plain,
        "chosen": sides[judgment.slots[judgment.winner]].text,
        "rejected": sides[judgment.slots[1 - judgment.winner]].text,
        "metadata": {name: value for name, value in told.items() if value is not None},
    }
