"""The words a judge is asked with: a prompt file, cut into sections, with worked examples where it has some.

Nothing here knows a model. Texts are inserted whole and in one pass, so a marker inside a text is just text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from tiebreak.judge.table import Question
from tiebreak.records import InputError, Prompt
from tiebreak.registry import nearest

PLACES = ("prompt", "first", "second")
FOUNDING = ("question", "rationale", "verdict", "ties", "prefill rationale", "prefill verdict")
SECTIONS = (*FOUNDING, "graded", "prefill graded", "one step", "structured", "examples", "after examples")
NOTES = ("asks for", "examples of")
"""Sections that say something about the file itself: which response a verdict names, whose examples it borrows."""

ASKS = ("better", "worse")

PLACE = re.compile(r"\{\{\s*(.*?)\s*\}\}")
"""A place in a template, for the text of that name."""

_HEADING = re.compile(r"^\[([a-z ]+|example [0-9]+)\][ \t]*\r?\n", re.MULTILINE)
_EXAMPLE = re.compile(r"example [0-9]+")
_PART = re.compile(r"^([a-z]+):[ \t]*", re.MULTILINE)
_PARTS = ("prompt", "first", "second", "rationale", "verdict", "graded")


class Example(NamedTuple):
    """A worked example: what is shown, why one is better, and the answer by the section that asks for it."""

    prompt: str
    first: str
    second: str
    rationale: str
    answers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Rubric:
    """A prompt file: its sections, its worked examples, and whether a verdict names the worse response."""

    name: str
    sections: Mapping[str, str]
    examples: tuple[Example, ...] = ()
    worse: bool = False

    @property
    def founding(self) -> dict[str, str]:
        """The sections that every rubric's hash holds, whether they are used or not."""
        return {name: self.sections[name] for name in FOUNDING}

    def must_have(self, names: Sequence[str]) -> None:
        """Refuse a file without one of the sections, which a knob uses."""
        if missing := [name for name in names if not self.sections[name]]:
            raise InputError(
                f"The rubric {self.name} has no section [{missing[0]}], which these knobs use; add it."
                f"{_takes(missing[0])}"
            )


def _takes(section: str) -> str:
    return " docs/judge.md says what belongs into it." if section not in FOUNDING else ""


def load_rubric(rubric: str, shots: int = 0) -> Rubric:
    """Return the rubric of a name or path with its first ``shots`` worked examples.

    Raises:
        InputError: no such file, one that cannot be used, or fewer examples than ``shots``.
    """
    text = read_rubric(rubric)
    sections, notes = parse_rubric(text, where=rubric), _notes(text, rubric)
    if shots < 0:
        raise InputError(f"judge: shots is {shots}; expected 0 or more.")
    source = notes["examples of"] if shots else ""
    examples = parse_examples(read_rubric(source) if source else text, where=source or rubric) if shots else ()
    if shots > len(examples):
        raise InputError(
            f"judge: shots is {shots}, and the rubric {rubric} has {len(examples) or 'no'} worked examples; take "
            f"{'at most ' + str(len(examples)) if examples else 'shots=0'}, or add sections [example "
            f"{len(examples) + 1}] to a file of your own."
        )
    return Rubric(rubric, sections, examples[:shots], notes["asks for"] == "worse")


def shipped(holds: str, *, prefix: str = "") -> dict[str, str]:
    """Return name and text of the prompt files of this kind: whose name begins with ``prefix`` and text has ``holds``.

    The prefix is no part of the name that is returned.
    """
    folder = resources.files("tiebreak.judge") / "prompts"
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".txt"))
    texts = {name: (folder / name).read_text(encoding="utf-8") for name in names if name.startswith(prefix)}
    return {name.removeprefix(prefix).removesuffix(".txt"): text for name, text in texts.items() if holds in text}


def read_rubric(rubric: str) -> str:
    """Return the text of a rubric that ships with tiebreak, or of the user's file at that path."""
    return read_words(rubric, shipped("\n[prefill verdict]\n"))


def read_words(rubric: str, ours: Mapping[str, str], where: str = "") -> str:
    """Return the text of ``rubric``, one of ``ours`` or a file at that path; ``where`` begins the refusal."""
    if rubric in ours:
        return ours[rubric]
    try:
        return Path(rubric).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise InputError(
            f"{where}{'there' if where else 'There'} is no rubric {rubric!r}; there are {', '.join(ours)}, or the path "
            f"of your own prompt file.{nearest(rubric, ours)}"
        ) from error


def parse_rubric(text: str, *, where: str) -> dict[str, str]:
    """Split a prompt file into its sections and check its places; a section that is missing is empty.

    Sections begin with a line like ``[question]``; places are ``{{prompt}}``, ``{{first}}`` and ``{{second}}``.
    Worked examples and notes are no sections, see :func:`parse_examples` and :func:`load_rubric`.
    """
    before, *parts = _HEADING.split(text)
    sections = dict.fromkeys(SECTIONS, "")
    known = (*SECTIONS, *NOTES, "example 1")
    for name, body in zip(parts[::2], parts[1::2], strict=True):
        if name in sections:
            sections[name] = body.strip()
        elif name not in NOTES and not _EXAMPLE.fullmatch(name):
            raise InputError(
                f"The rubric {where} has a section [{name}]; expected {', '.join(f'[{s}]' for s in known)}."
                f"{nearest(name, known)}"
            )
    if before.strip() or not (sections["question"] and sections["verdict"]):
        raise InputError(
            f"The rubric {where} needs a line [question] with the question below it and a line [verdict] with what to "
            "answer; text before the first of these lines belongs to neither."
        )
    found = PLACE.findall(sections["question"])
    if unknown := [place for place in found if place not in PLACES]:
        raise InputError(
            f"The rubric {where} has a place {{{{{unknown[0]}}}}}; expected {{{{prompt}}}}, {{{{first}}}} and "
            f"{{{{second}}}}.{nearest(unknown[0], PLACES)}"
        )
    if missing := [place for place in PLACES if place not in found]:
        raise InputError(f"The rubric {where} never shows {{{{{missing[0]}}}}}; put it into [question].")
    return sections


def _notes(text: str, where: str) -> dict[str, str]:
    """Return what a file says about itself, the usual where it says nothing."""
    _, *parts = _HEADING.split(text)
    bodies = dict(zip(parts[::2], parts[1::2], strict=True))
    said = bodies.get("asks for", ASKS[0]).strip()
    if said not in ASKS:
        raise InputError(
            f"The rubric {where} says under [asks for] {said!r}; expected better or worse, that is which of the two "
            "responses the answer names."
        )
    return {"asks for": said, "examples of": bodies.get("examples of", "").strip()}


def parse_examples(text: str, *, where: str) -> tuple[Example, ...]:
    """Return the worked examples of a prompt file, in the order of their numbers.

    Each is a section ``[example 1]`` of parts that begin a line: ``prompt:``, ``first:``, ``second:``, ``rationale:``
    and ``verdict:``, with ``graded:`` where the five levels are wanted; a part goes on until the next one begins.
    """
    _, *parts = _HEADING.split(text)
    found: dict[int, Example] = {}
    for name, body in zip(parts[::2], parts[1::2], strict=True):
        if _EXAMPLE.fullmatch(name):
            found[int(name.split()[1])] = _example(body, f"[{name}] of the rubric {where}")
    if sorted(found) != list(range(1, len(found) + 1)):
        raise InputError(
            f"The rubric {where} numbers its examples {', '.join(map(str, sorted(found)))}; expected 1 to {len(found)}."
        )
    return tuple(found[number] for number in sorted(found))


def _example(body: str, where: str) -> Example:
    """Read one worked example. A line that begins with another word and a colon is part of a text."""
    here = [found for found in _PART.finditer(body) if found[1] in _PARTS]
    ends = [found.start() for found in here[1:]] + [len(body)]
    said = {found[1]: body[found.end() : end].strip() for found, end in zip(here, ends, strict=True)}
    needed = [part for part in _PARTS if part != "graded"]
    if missing := [part for part in needed if not said.get(part)]:
        raise InputError(f"The section {where} has no line that begins with {missing[0]}: ; write one.")
    if len(said) < len(here):
        raise InputError(f"The section {where} has two lines that begin with the same part; write each part once.")
    answers = {part: said[part] for part in ("verdict", "graded") if part in said}
    return Example(said["prompt"], said["first"], said["second"], said["rationale"], answers)


def fill(template: str, question: Question) -> str:
    """Put the texts of ``question`` into the template."""
    return fill_places(template, texts_of(question))


def texts_of(question: Question) -> dict[str, str]:
    """Return what the places of a question stand for."""
    first, second = question.slots
    return {"prompt": asked(question.prompt), "first": first.text.strip(), "second": second.text.strip()}


def asked(prompt: Prompt) -> str:
    """Return the prompt as a judge reads it, its context in front."""
    return (f"{prompt.context}\n\n{prompt.plain}" if prompt.context else prompt.plain).strip()


def fill_places(template: str, texts: Mapping[str, str]) -> str:
    """Put ``texts`` into the places of their names in one pass, so that a marker inside a text is just text."""
    return PLACE.sub(lambda place: texts[place[1]], template)


def places(template: str) -> list[str]:
    """Return the names of the places in the template, in order."""
    return [str(name) for name in PLACE.findall(template)]


def join(*parts: str) -> str:
    """Put paragraphs together; an empty one leaves no gap."""
    return "\n\n".join(part for part in parts if part)
