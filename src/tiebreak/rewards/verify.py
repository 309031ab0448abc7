"""Verifiers: what a completion has to be is known, so the reward is a computation and cannot be talked round.

Each takes ``(prompt, completion, fields)`` and gives a number, or None where there is nothing to compare with. What is
known stands in the field that ``answer`` names, or in the prompt's reference; a list there holds answers that are all
right, of which the best counts. The last two, ``length`` and ``ends``, need what sampling knows of a completion, so
they are made of their knobs and score whole batches.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from tiebreak.judge.rule import RULES
from tiebreak.records import InputError, Prompt
from tiebreak.registry import nearest
from tiebreak.rewards.table import Answered, Marks, Reward, Unscored

Fields = Mapping[str, Any]

TYPES: Mapping[str, type | tuple[type, ...]] = {
    "string": str,
    "number": (int, float),
    "integer": int,
    "boolean": bool,
    "array": list,
    "object": dict,
    "null": type(None),
    "any": object,
}
"""The types of JSON by their names in JSON Schema, and ``any``."""

UNITS = ("words", "characters", "tokens")


def known(prompt: Prompt, fields: Fields, answer: str) -> tuple[str, ...]:
    """Return the known answers as text: of the field ``answer``, or of the prompt's reference; empty without one.

    Raises:
        InputError: the field holds something that is no text, number or list of those.
    """
    value = fields.get(answer) if answer else prompt.reference
    values = list(value) if isinstance(value, list | tuple) else [value]
    for one in values:
        if not isinstance(one, str | int | float | None):
            raise InputError(
                f"The field {answer!r} of prompt {prompt.id} holds a {type(one).__name__} where text, a number or a "
                "list of those is expected as the known answer."
            )
    return tuple(text for one in values if one is not None and (text := str(one).strip()))


def rule(prompt: Prompt, completion: str, fields: Fields, *, rule: str = "") -> float | None:
    """Return the quality that ``rule``, a row of the rules or a ``module:function``, gives the completion."""
    quality = RULES[rule].load()
    return float(quality(prompt, completion))


def choice(
    prompt: Prompt, completion: str, fields: Fields, *, answer: str = "", letters: str = "ABCDE"
) -> float | None:
    """Return 1 where the completion chooses the known letter, else 0; a whole number as known answer counts from 0.

    The choice is, in this order: what is boxed; the letter after the last "answer is" or "Answer:" (also option,
    choice); the only letter that begins a line, as in "B. Paris", or stands in brackets; the letter it ends with. Two
    letters with "or" between them are no choice.
    """
    place = fields.get(answer) if answer else None
    if isinstance(place, int) and not isinstance(place, bool) and 0 <= place < len(letters):
        wanted: tuple[str, ...] = (letters[place],)
    else:
        wanted = known(prompt, fields, answer)
    if not wanted:
        return None
    right = {_letter(text, letters) for text in wanted}
    if "" in right:
        raise InputError(
            f"The known answer {wanted[0]!r} of prompt {prompt.id} begins with none of the letters {letters}."
        )
    return float(_chosen(completion, letters) in right)


def _letter(text: str, letters: str) -> str:
    """Return the letter that stands for ``text``: "B", "(b)", "**B**", "B. Paris"; nothing where there is none."""
    bare = re.sub(r"\\text(?:bf)?\{([^{}]*)\}", r"\1", text)
    found = re.match(r"[\s(\[*$\"']*([A-Za-z])(?:[\s)\]*$\"'.]*$|\s*[.):\]]\s*\S)", bare)
    letter = found[1].upper() if found else ""
    return letter if letter in letters.upper() else ""


@lru_cache(maxsize=64)
def _choices(letters: str) -> tuple[re.Pattern[str], ...]:
    """Return the patterns of a choice: boxed, said to be the answer, leading a line, in brackets, at the end."""
    one = f"([{re.escape(letters.upper())}])"
    alone = rf"{one}(?![\w'])(?!\W{{0,3}}\s(?:or|and)\s+\W?{one}\b|\s*[/,&]\s*{one}\b)"
    return (
        re.compile(r"\\boxed\{\s*(?:\\text(?:bf)?\{)?\s*\(?\s*" + one + r"\s*[)}.]"),
        re.compile(rf"(?i:\b(?:answer|option|choice)\s*(?:is|:|=)\s*(?:option\b|choice\b|:)?)[\s(\[*$\"']*{alone}"),
        re.compile(rf"^[ \t(\[*\"']*{alone}(?=[\s)\]*\"'.]*\Z|\s*[.):\]]|[ \t]*$)", re.MULTILINE),
        re.compile(rf"[(\[*]{one}[)\]*]"),
        re.compile(rf"(?<!\bor\s)(?<!\band\s)(?<!\bor\s\()(?<!\band\s\()(?<![\w'/&]){one}[\s.)\]*\"']*\Z"),
    )


def _chosen(completion: str, letters: str) -> str:
    if len(completion.strip(" \n\t()[]*$\"'.")) == 1:
        return _letter(completion, letters)
    boxed, said, leading, bracketed, last = (
        [found[1] for found in pattern.finditer(completion)] for pattern in _choices(letters)
    )
    shown = {*leading, *bracketed}  # several of them are the options told once more
    return next((found[-1] for found in (boxed, said, [*shown] if len(shown) == 1 else [], last) if found), "")


def exact(prompt: Prompt, completion: str, fields: Fields, *, answer: str = "", literal: bool = False) -> float | None:
    """Return 1 where the completion is a known answer, else 0.

    Case, punctuation, articles and spaces are set aside as SQuAD does, but the point and the sign of a number stay: 3.5
    is not 35, and -2 is not 2. With ``literal`` only spaces at the ends are set aside.
    """
    wanted = known(prompt, fields, answer)
    if not wanted:
        return None
    if literal:
        return float(completion.strip() in wanted)
    return float(
        any(words(completion) == words(text) if words(text) else completion.strip() == text for text in wanted)
    )


def f1(prompt: Prompt, completion: str, fields: Fields, *, answer: str = "") -> float | None:
    """Return the F1 of the words shared with the best of the known answers, each word as often as both have it."""
    wanted = known(prompt, fields, answer)
    if not wanted:
        return None
    said = Counter(words(completion))
    return max(_f1((said & other).total(), said.total(), other.total()) for other in map(_counted, wanted))


def _counted(text: str) -> Counter[str]:
    return Counter(words(text))


def _f1(shared: int, said: int, wanted: int) -> float:
    return 2 * shared / (said + wanted) if shared else 0.0


_MARK = re.compile(r"(?P<kept>(?<=\d)\.(?=\d)|(?<!\w)-(?=\.?\d))|[^\w\s]|_")


def words(text: str) -> list[str]:
    """Return the words of ``text`` as SQuAD compares them, but numbers keep point and sign and lose thousands' commas.

    A text of articles alone keeps them: the answer "A" is not nothing.
    """
    plain = unicodedata.normalize("NFKC", text).casefold().replace("\u2212", "-")
    plain = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", plain)
    plain = _MARK.sub(lambda mark: mark["kept"] or ("" if unicodedata.category(mark[0])[0] in "PS" else mark[0]), plain)
    return re.sub(r"\b(?:a|an|the)\b", " ", plain).split() or plain.split()


def rouge(prompt: Prompt, completion: str, fields: Fields, *, answer: str = "") -> float | None:
    """Return ROUGE-L, the F1 of the longest common subsequence of words, with the best of the known answers.

    Words are runs of letters and digits in lower case, unstemmed; precision and recall weigh the same.
    """
    wanted = known(prompt, fields, answer)
    if not wanted:
        return None
    said = _runs(completion)
    return max(_f1(common(said, other), len(said), len(other)) for other in map(_runs, wanted))


def _runs(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def common(a: Sequence[str], b: Sequence[str]) -> int:
    """Return the length of the longest common subsequence, a row of the table at a time as one whole number.

    The bits that are 0 mark where the row grows, so a long completion costs one addition per word (Hyyrö 2004).
    """
    places: dict[str, int] = {}
    for place, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << place
    every = (1 << len(a)) - 1
    row = every
    for word in b:
        match = row & places.get(word, 0)
        row = ((row + match) | (row - match)) & every
    return len(a) - row.bit_count()


def regex(prompt: Prompt, completion: str, fields: Fields, *, pattern: str = "", whole: bool = False) -> float | None:
    """Return 1 where ``pattern`` is found in the completion, or with ``whole`` matches all of it, else 0."""
    compiled = _compiled(pattern)
    return float(bool(compiled.fullmatch(completion) if whole else compiled.search(completion)))


@lru_cache(maxsize=64)
def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise InputError(f"The pattern {pattern!r} is no regular expression: {error}.") from error


_FENCE = re.compile(r"\s*```(?:json)?[ \t]*\n(.*?)\n?```\s*", re.DOTALL | re.IGNORECASE)


def parses(
    prompt: Prompt,
    completion: str,
    fields: Fields,
    *,
    keys: Mapping[str, str] | None = None,
    fence: bool = False,
) -> float | None:
    """Return 1 where the whole completion is JSON and an object with these ``keys`` of these types, else 0.

    Types are those of JSON Schema, such as string or integer, or ``any``; further keys are allowed. Without ``keys``
    any JSON value will do. NaN and Infinity are not JSON. ``fence`` allows a fence of three backticks around it.
    """
    fenced = _FENCE.fullmatch(completion) if fence else None
    try:
        value = json.loads(fenced[1] if fenced else completion, parse_constant=_refused)
    except (ValueError, RecursionError):
        return 0.0
    if not keys:
        return 1.0
    return float(isinstance(value, dict) and all(k in value and _is(value[k], t) for k, t in keys.items()))


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _is(value: Any, kind: str) -> bool:
    """Whether ``value`` is of the JSON type; true is no number, and 2.0 is an integer, as JSON Schema has it."""
    if isinstance(value, bool):
        return kind in ("boolean", "any")
    return isinstance(value, TYPES[kind]) or (kind == "integer" and isinstance(value, float) and value.is_integer())


def make_length(
    unit: str = "words", least: int | None = None, most: int | None = None, buffer: int | None = None
) -> Reward:
    """Make the reward for length: minus how many units a completion is short of ``least`` or beyond ``most``.

    With ``buffer`` it is DAPO's soft punishment (arXiv 2503.14476, eq. 13): 0 up to ``most - buffer``, from there in a
    line to -1 at ``most``, and -1 beyond. Characters and words are those of the text, tokens the ones sampled.
    """
    if unit not in UNITS:
        raise InputError(f"length: unit is {unit!r}; expected {', '.join(UNITS)}.{nearest(unit, UNITS)}")
    for name, value in (("least", least), ("most", most), ("buffer", buffer)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
            raise InputError(f"length: {name} is {value!r}; expected a whole number of {unit}, 0 or more.")
    if least is None and most is None:
        raise InputError(f"length: there is neither least nor most; give one of them, in {unit}.")
    if least is not None and most is not None and least > most:
        raise InputError(f"length: least is {least} and most is {most}; expected least to be the smaller one.")
    if buffer is not None and (most is None or least is not None or not 0 < buffer <= most):
        raise InputError(
            "length: buffer is the stretch before most in which the punishment grows; give it with most alone, "
            "and no longer than that."
        )

    def of(count: int) -> float:
        if buffer is not None and most is not None:
            return -min(1.0, max(0.0, (count - (most - buffer)) / buffer))
        short = max(0, least - count) if least is not None else 0
        beyond = max(0, count - most) if most is not None else 0
        return -float(short + beyond)

    def length(answered: Sequence[Answered]) -> Marks:
        unknown = Unscored("the number of tokens is not known", cure="measure words or characters")
        return [[unknown if n is None else of(n) for n in _counts(one, unit)] for one in answered]

    return length


def _counts(answered: Answered, unit: str) -> list[int | None]:
    if unit == "tokens":
        branches = answered.trees.branches if answered.trees else ()
        sizes = answered.lengths or tuple(map(len, branches))
        return list(sizes) if sizes else [None] * len(answered.texts)
    return [len(text.split()) if unit == "words" else len(text) for text in answered.texts]


def make_ends() -> Reward:
    """Make the reward that is 1 for a completion that ended by itself and 0 for one that ran into the limit.

    As a gate it is the EOS trick: ``gate: {least: 1, otherwise: -1}`` puts -1 in place of the whole reward.
    """
    unknown = Unscored("whether it ended is not known", cure="sample the completions, which notes it")
    marks: dict[str, float | Unscored] = {"stop": 1.0, "length": 0.0}

    def ends(answered: Sequence[Answered]) -> Marks:
        return [[marks.get(finish, unknown) for finish in one.finishes] for one in answered]

    return ends


def check(name: str, knobs: Mapping[str, Any], *, where: str) -> None:
    """Refuse knobs that a verifier cannot work with, before anything is sampled.

    Raises:
        InputError: no or an unknown rule, no pattern or none that compiles, letters or types that are none.
    """
    if name == "rule":
        if not knobs["rule"]:
            raise InputError(f"{where}: 'rule' needs a rule; there are {', '.join(row.name for row in RULES)}.")
        RULES[knobs["rule"]].load()
    elif name == "regex":
        if not knobs["pattern"]:
            raise InputError(f"{where}: 'regex' needs a pattern, for instance pattern: '^Yes'.")
        _compiled(knobs["pattern"])
    elif name == "choice" and not (len(knobs["letters"]) > 1 and re.fullmatch("[A-Za-z]+", knobs["letters"])):
        raise InputError(f"{where}: letters is {knobs['letters']!r}; expected the letters to choose from, as in ABCD.")
    elif name == "json":
        for key, kind in knobs["keys"].items():
            if kind not in TYPES:
                raise InputError(
                    f"{where}: the key {key!r} has the type {kind!r}; expected {', '.join(TYPES)}."
                    f"{nearest(str(kind), TYPES)}"
                )
