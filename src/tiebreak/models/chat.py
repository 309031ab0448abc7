"""A conversation as the chat template writes it, in ids whose control tokens are all the template's own.

The template is rendered twice, with the contents and with placeholders, so that every character is known to be the
template's or a turn's. Ids are those of the whole text, as every server makes them, with two cuts around each answer:
behind the cue to answer and behind what was said. Sampling stops and starts there, so no token may span them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from tiebreak.records import InputError, Message

MARK = re.compile(r"(?=.*\w)(?=.*[^\w\s]).+")
"""What an added token that is not special looks like where it is a template's mark, and not a word or some blanks."""


class Span(NamedTuple):
    """Where the content of turn number ``turn`` stands in a rendered text."""

    start: int
    stop: int
    turn: int


class Answer(NamedTuple):
    """Where an answer stands: from the cue's end to the end of what was said, and the id that ends the turn, if any."""

    start: int
    stop: int
    end: int | None


class Shown(NamedTuple):
    """A rendered conversation; ``said`` is empty where contents hold no control text and cannot be told apart.

    ``answers`` are those assistant turns before which the text is what the template gives when the answer is asked for.
    """

    text: str
    said: tuple[Span, ...]
    answers: tuple[Answer, ...]


def plain(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Encode ``text`` with nothing in front or behind and no special token in it."""
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    return ids


@dataclass(frozen=True)
class Chat:
    """The chat template of ``tokenizer``; ``name`` says in messages whose turns they are.

    Control texts are the special tokens and those added tokens the template writes: some models' role marks are not
    marked special. An answer may hold the latter (``<think>``), for they are a model's own words; a user may not.
    """

    tokenizer: PreTrainedTokenizerBase
    name: str

    def __post_init__(self) -> None:
        if not self.tokenizer.chat_template:
            raise InputError(
                f"{self.name} is a conversation and the tokenizer has no chat template; set one on the tokenizer."
            )

    @cached_property
    def special(self) -> dict[str, int]:
        """Special tokens' texts and ids."""
        return {str(token): i for i, token in self.tokenizer.added_tokens_decoder.items() if token.special}

    @cached_property
    def controls(self) -> dict[str, int]:
        """Texts and ids of all tokens that only the template may write; words and blanks are not among them."""
        template, added = str(self.tokenizer.chat_template), self.tokenizer.added_tokens_decoder.items()
        written = {str(token): i for i, token in added if MARK.fullmatch(str(token)) and str(token) in template}
        return written | self.special

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Matches control texts, the longest first, with the blanks they swallow."""
        tokens = sorted(self.tokenizer.added_tokens_decoder.values(), key=lambda token: -len(str(token)))
        ways = [
            r"\s*" * token.lstrip + re.escape(str(token)) + r"\s*" * token.rstrip
            for token in tokens
            if str(token) in self.controls
        ]
        return re.compile("|".join(ways) or "(?!)")

    def show(self, turns: Sequence[Message], *, cue: bool, strict: bool = False) -> Shown:
        """Render ``turns``, with the cue to answer where ``cue``; ``strict`` wants every answer but an opening one.

        Raises:
            InputError: the template refuses the turns, changes contents that hold control text, or (``strict``) writes
                a turn differently once others follow, as those do that take out earlier thinking.
        """
        text = self._render(turns, cue)
        found = self._locate(turns, cue, text)
        for turn in turns:
            if any(name in turn.role for name in self.special) or (found is None and self._wild(turn)):
                raise InputError(
                    f"{self.name} has a {turn.role} turn with the text of a control token, and the chat template does "
                    "not write it as it is; take that text out, or set a template that writes contents unchanged."
                )
        answers = []
        for number, turn in enumerate(turns):
            if turn.role != "assistant" or not number:
                continue
            answer = self._answer(turns, number, text, found)
            if answer is not None:
                answers.append(answer)
            elif strict:
                raise InputError(
                    f"The template does not write turn {number + 1} of {self.name} as it does when that answer is "
                    "asked for, so training would not match sampling; set a template that leaves earlier turns and "
                    "their thinking as they are, or give one answer a row, each with the turns before it as its prompt."
                )
        return Shown(text, found or (), tuple(answers))

    def ids(self, turns: Sequence[Message], shown: Shown, start: int, stop: int) -> list[int]:
        """Encode a part of ``shown``: as the tokenizer would, where it takes no word of a turn for a control token."""
        text = shown.text
        said = [span for span in shown.said if span.start < stop and start < span.stop]
        edges = [start, *(min(max(edge, start), stop) for span in said for edge in span[:2]), stop]
        marks: dict[tuple[int, int], int | None] = {}
        for left, right in zip(edges[::2], edges[1::2], strict=True):
            marks |= {match.span(): self._id(match) for match in self.pattern.finditer(text, left, right)}
        own = [span for span in said if turns[span.turn].role == "assistant"]
        wild = [
            match
            for match in self.pattern.finditer(text, start, stop)
            if match.span() not in marks
            and not (self._loose(match) and any(s.start <= match.start() and match.end() <= s.stop for s in own))
        ]
        if not wild:
            return self.tokenizer.encode(text[start:stop], add_special_tokens=False) if start < stop else []
        breaks = (match.start() + 1 for match in wild if self._loose(match))
        ids: list[int] = []
        at = start
        for (left, right), token in sorted((marks | {(place, place): None for place in breaks}).items()):
            ids += plain(self.tokenizer, text[at:left]) if at < left else []
            ids += [] if token is None else [token]
            at = right
        return ids + (plain(self.tokenizer, text[at:stop]) if at < stop else [])

    def prompt(self, turns: Sequence[Message]) -> list[int]:
        """Encode ``turns`` with the cue to answer, cut around each answer as a dialogue is for training."""
        shown = self.show(turns, cue=True)
        edges = [0, *(edge for answer in shown.answers for edge in answer[:2]), len(shown.text)]
        return [i for k in range(len(edges) - 1) for i in self.ids(turns, shown, edges[k], edges[k + 1])]

    def dialogue(self, turns: Sequence[Message], *, ended: bool) -> tuple[list[int], list[list[int]], list[list[bool]]]:
        """Encode ``turns``, of which the last, but not only, is an answer: the trunk, then each answer up to the next.

        The flags mark what an answer says, its end-of-turn token included. The last one stops there, with one EOS where
        it has ``ended``: a template's end-of-turn token that is not EOS stands before it, as the model learned it.
        """
        shown = self.show(turns, cue=False, strict=True)
        parts, flags = [], []
        starts = [*(answer.start for answer in shown.answers), len(shown.text)]
        for answer, following in zip(shown.answers, starts[1:], strict=True):
            said = self.ids(turns, shown, answer.start, answer.stop)
            rest = self.ids(turns, shown, answer.stop, following)
            closing = 0 if answer.end is None else rest.index(answer.end) + 1
            if answer is shown.answers[-1]:
                eos = self.tokenizer.eos_token_id
                rest = [i for i in rest[:closing] if i != eos] + [eos] if ended else []
                closing = len(rest)
            parts.append(said + rest)
            flags.append([True] * (len(said) + closing) + [False] * (len(rest) - closing))
        return self.ids(turns, shown, 0, starts[0]), parts, flags

    def _render(self, turns: Sequence[Message], cue: bool) -> str:
        shown = [{"role": turn.role, "content": turn.content} for turn in turns]
        try:
            text: str = self.tokenizer.apply_chat_template(shown, add_generation_prompt=cue, tokenize=False)
        except (TemplateError, TypeError, ValueError) as error:
            said = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            raise InputError(
                f"The tokenizer's chat template refuses {self.name}: {said}; mend the roles or set another template."
            ) from error
        return text

    def _try(self, turns: Sequence[Message], cue: bool) -> str | None:
        try:
            return self._render(turns, cue)
        except InputError:
            return None

    def _locate(self, turns: Sequence[Message], cue: bool, text: str) -> tuple[Span, ...] | None:
        """Find the contents in ``text``, None where the template does more to them than trim them.

        A placeholder is one word of letters and digits, so that no template has reason to change it.
        """
        taken, salt = f"{self.tokenizer.chat_template}{list(turns)}", 0
        while f"Slot{salt}x" in taken:
            salt += 1
        marks = {f"Slot{salt}x{number}x": number for number in range(len(turns))}
        framed = [turn._replace(content=mark) for mark, turn in zip(marks, turns, strict=True)]
        frame = self._try([new if old.content else old for new, old in zip(framed, turns, strict=True)], cue)
        if frame is None:
            return None
        ways: dict[int, tuple[Span, ...]] = {0: ()}
        for part in re.split(f"(Slot{salt}x\\d+x)", frame):
            further: dict[int, tuple[Span, ...]] = {}
            number = marks.get(part)
            for at, spans in ways.items():
                for way in (part,) if number is None else _trimmed(turns[number].content):
                    if text.startswith(way, at):
                        span = () if number is None else (Span(at, at + len(way), number),)
                        further.setdefault(at + len(way), (*spans, *span))
            ways = further
        return ways.get(len(text))

    def _answer(
        self, turns: Sequence[Message], number: int, text: str, found: tuple[Span, ...] | None
    ) -> Answer | None:
        """Find an answer by what the template writes before and after it; None where that is not how ``text`` goes."""
        before, after = self._try(turns[:number], True), self._try(turns[: number + 1], False)
        if before is None or after is None or not (after.startswith(before) and text.startswith(after)):
            return None
        start = stop = len(before)
        if turns[number].content:
            if found is None:
                end = self._closing(text, start, len(after))
                return None if end is None else Answer(start, end.start(), self._id(end))
            mine = [span for span in found if span.turn == number]
            if len(mine) != 1 or mine[0].start < start:
                return None
            stop = mine[0].stop
        end = self._closing(text, stop, len(after))
        return Answer(start, stop, None if end is None else self._id(end))

    def _closing(self, text: str, start: int, stop: int) -> re.Match[str] | None:
        """Return the first special token behind an answer, or else the first other token that ends its turn."""
        found = list(self.pattern.finditer(text, start, stop))
        return next((match for match in found if not self._loose(match)), found[-1] if found else None)

    def _wild(self, turn: Message) -> bool:
        """Whether a turn's content holds control text that its author may not write."""
        matches = self.pattern.finditer(turn.content)
        return any(turn.role != "assistant" or not self._loose(match) for match in matches)

    def _id(self, match: re.Match[str]) -> int:
        text = match.group()
        return self.controls[text if text in self.controls else text.strip()]

    def _loose(self, match: re.Match[str]) -> bool:
        """Whether a control text is an added token that is not special, so that plain encoding does not split it."""
        return match.group() not in self.special and match.group().strip() not in self.special


def _trimmed(content: str) -> list[str]:
    """Return what templates make of a content: itself, or without blanks or line ends on either side."""
    blank, line = (content.lstrip(), content.rstrip(), content.strip()), "\n"
    return list(dict.fromkeys((content, *blank, content.lstrip(line), content.rstrip(line), content.strip(line))))
