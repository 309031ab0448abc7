"""Small sets of questions with answers, and what must hold of every step that rewrites their words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tiebreak.curate.table import Rows, Step, Texts
from tiebreak.records import Graded, Judgment, Pair, Prompt, Response


def question(text: Any, **more: Any) -> Prompt:
    """A prompt with everything that a copy has to keep."""
    told = {"reference": "known", "tags": ("t",), "source": "s", "licence": "CC0", "fields": {"own": 1}}
    return Prompt(text=text, **{**told, **more})


@dataclass
class Told:
    """Prompts, responses, judgments and pairs that belong together, as a step sees them."""

    records: list[Prompt | Response] = field(default_factory=list)
    judgments: list[Judgment] = field(default_factory=list)
    rows: list[Any] = field(default_factory=list)

    def answer(self, prompt: Prompt, text: str, **more: Any) -> Response:
        """Put an answer behind ``prompt``."""
        response = Response(prompt_id=prompt.id, text=text, **more)
        self.records += [prompt, response]
        return response

    def pair(self, prompt: Prompt, better: str, worse: str, **more: Any) -> Pair:
        """Add a pair of two answers in these words."""
        sides = [self.answer(prompt, text).id for text in (better, worse)]
        self.rows.append(Pair(prompt_id=prompt.id, chosen_id=sides[0], rejected_id=sides[1], **more))
        return self.rows[-1]

    def judged(self, prompt: Prompt, first: Response, second: Response, **more: Any) -> Judgment:
        """Add a judgment, of the first slot by default."""
        said = {"verdict": "slot", "winner": 0, "by": "human:ann", **more}
        self.judgments.append(Judgment(prompt_id=prompt.id, slots=(first.id, second.id), **said))
        return self.judgments[-1]

    @property
    def texts(self) -> Texts:
        """The words of all records."""
        known = Texts()
        known.add(self.records)
        return known

    def seen(self, rows: Sequence[Pair] | Sequence[Graded] | None) -> Rows:
        """What a step sees when it gets ``rows``."""
        items: dict[str, list[Judgment]] = {}
        for judgment in self.judgments:
            items.setdefault(judgment.item, []).append(judgment)
        return Rows(items, rows, self.texts)

    def later(self, step: Callable[..., Step], **knobs: Any) -> Step:
        """Run a step on the pairs, and see that what it made is whole."""
        done = step(self.seen(self.rows), **knobs)
        assert_whole(done, self.records)
        return done

    def first(self, step: Callable[..., Step], **knobs: Any) -> Step:
        """Run a step on the judgments alone."""
        done = step(self.seen(None), **knobs)
        assert_whole(done, self.records)
        return done


class Read:
    """The words of rows after a step."""

    def __init__(self, told: Told, done: Step) -> None:
        texts = told.texts
        texts.add(done.made)
        self._texts = texts

    def prompt(self, key: str) -> Prompt:
        """The prompt of this id."""
        return self._texts.prompts([key])[0]

    def text(self, key: str) -> str:
        """The words of the response of this id."""
        return self._texts.responses([key])[0].text

    def sides(self, pair: Pair) -> tuple[str, str]:
        """The words of the chosen and of the rejected side."""
        return self.text(pair.chosen_id), self.text(pair.rejected_id)


def assert_whole(done: Step, records: Sequence[Prompt | Response]) -> None:
    """Each response of a row answers the row's prompt, and each prompt made keeps what belongs to its question."""
    known = {record.id: record for record in (*records, *done.made)}
    for row in done.rows:
        if isinstance(row, Pair):
            assert known[row.chosen_id].prompt_id == row.prompt_id
            assert known[row.rejected_id].prompt_id == (row.rejected_prompt_id or row.prompt_id)
            asked = [row.prompt_id, row.rejected_prompt_id or row.prompt_id]
            assert all(known[key].prompt_id in known for key in row.beside.values())
        else:
            asked = list(row.prompt_ids) or [row.prompt_id] * len(row.response_ids)
            assert [known[key].prompt_id for key in row.response_ids] == asked
        assert all(isinstance(known[key], Prompt) for key in asked)
    assert len({row.id for row in done.rows}) == len(done.rows)
    old = [record for record in records if isinstance(record, Prompt)]
    kept = {(p.reference, p.source, p.licence, p.tags, p.group, p.fields.get("own")) for p in old}
    for prompt in done.made:
        if isinstance(prompt, Prompt):
            told = (prompt.reference, prompt.source, prompt.licence, prompt.tags, prompt.group, prompt.fields["own"])
            assert told in kept
            assert set(prompt.fields) > {"own"}, "a prompt that was made says what was done"
