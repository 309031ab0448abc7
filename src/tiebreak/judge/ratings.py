"""The forms in which a judge is asked for ratings, and how what it wrote is read: strictly, and never by a guess.

A rating that is missing, off its scale, said twice or not a whole number is no rating, and the mark says why. An answer
with another number of blocks than responses gives no rating at all, for nobody knows which block is about which.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from tiebreak.endpoint import Reply, Token
from tiebreak.judge.scheme import Aspect
from tiebreak.judge.verdict import SPACES

Form = Literal["json", "lines", "bare"]

SLOTS = ("first", "second")
BLOCKS = len(SLOTS)
CUT = "the reply was cut off"

_LINES = """\
Answer in exactly this form and write nothing else. RATING is a whole number on the scale of the aspect{n_a}; REASON \
is one short sentence.

{blocks}"""
_JSON = """\
Answer with one JSON object of exactly this form and write nothing else. "first" is about Response 1, "second" about \
Response 2. RATING is a whole number on the scale of the aspect{n_a}; REASON is one short sentence.

{object}"""
_BARE = """\
Answer with two whole numbers on the scale and nothing else: the rating of Response 1, a space, the rating of \
Response 2.{n_a}"""

_AS_SPACE = str.maketrans(dict.fromkeys(SPACES, " "))
_FENCE = re.compile(r"\s*```(?:json)?\s*\n(.*)\n\s*```\s*", re.DOTALL)
_HEAD = re.compile(r"[\s*_#>-]*response\s+([0-9]+)[\s*_]*:?[\s*_]*", re.IGNORECASE)
_LINE = re.compile(r"[\s*_#>-]*([A-Za-z][A-Za-z0-9_ -]*?)[\s*]*:[\s*]*(.*?)\s*")
_RATED = re.compile(r"(.*?)\**(?:\s+[-\u2013\u2014]+\s*(.*))?", re.DOTALL)
_RANGE = re.compile(r"[0-9]+\s*(?:[-\u2013\u2014].*)?")
"""What follows the dash in "4 - 5", where it is another number and no reason."""
_TWO = re.compile(r"\s*([0-9]+|n/a)\s*[\s,;]\s*([0-9]+|n/a)\s*", re.IGNORECASE)


class Mark(NamedTuple):
    """What was said of one answer on one aspect.

    ``rating`` is None where the aspect does not apply, and where the rating is lost; ``lost`` says why it is. ``mass``
    is the probability that the ratings on the scale had together where the rating is their expectation.
    """

    rating: float | None = None
    why: str = ""
    lost: str = ""
    mass: float | None = None


Marks = dict[str, tuple[Mark, Mark]]
"""By aspect, the marks of the first answer and of the second."""


def form_text(aspects: Sequence[Aspect], form: Form) -> str:
    """Return the sentence that asks for ratings of ``aspects`` in this form."""
    n_a = ""
    if any(aspect.optional for aspect in aspects):
        n_a = {
            "json": ', or "n/a" where its scale has that and it does not apply',
            "lines": ", or n/a where its scale has that and it does not apply",
            "bare": " Where the aspect does not apply to a response, write n/a for its number.",
        }[form]
    if form == "bare":
        return _BARE.format(n_a=n_a)
    if form == "json":
        shape = {slot: {a.name: {"why": "REASON", "rating": "RATING"} for a in aspects} for slot in SLOTS}
        return _JSON.format(n_a=n_a, object=json.dumps(shape, indent=1).replace('"RATING"', "RATING"))
    lines = "\n".join(f"{aspect.name}: RATING - REASON" for aspect in aspects)
    return _LINES.format(n_a=n_a, blocks=f"Response 1\n{lines}\n\nResponse 2\n{lines}")


def schema(aspects: Sequence[Aspect]) -> dict[str, Any]:
    """Return the JSON schema of the form ``json``; the reason comes first, so that the rating rests on it."""
    return _object({slot: _object({aspect.name: _marked(aspect) for aspect in aspects}) for slot in SLOTS})


def _marked(aspect: Aspect) -> dict[str, Any]:
    rating: dict[str, Any] = {"type": "integer", "enum": [*range(aspect.low, aspect.high + 1)]}
    if aspect.optional:
        rating = {"anyOf": [rating, {"type": "string", "enum": ["n/a"]}]}
    return _object({"why": {"type": "string"}, "rating": rating})


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def read_ratings(reply: Reply, aspects: Sequence[Aspect], form: Form) -> Marks:
    """Return the marks of every aspect in ``reply``; those that cannot be read are lost and say why."""
    if form == "json":
        return _read_json(reply.text, aspects, cut=reply.finish == "length")
    if form == "bare":
        return {aspects[0].name: _read_bare(reply, aspects[0])}
    return _read_lines(reply.text, aspects, cut=reply.finish == "length")


def all_lost(aspects: Sequence[Aspect], why: str) -> Marks:
    """Return marks without a rating, each for the same reason."""
    return {aspect.name: (Mark(lost=why), Mark(lost=why)) for aspect in aspects}


def _blocks(found: int) -> str:
    return f"{found} block{'s' * (found != 1)} instead of {BLOCKS}"


def _read_json(text: str, aspects: Sequence[Aspect], *, cut: bool) -> Marks:
    fenced = _FENCE.fullmatch(text)
    try:
        said = json.loads(fenced[1] if fenced else text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        why = CUT if cut else "a key stands twice" if isinstance(error, _Twice) else "not a JSON object"
        return all_lost(aspects, why)
    if not isinstance(said, dict):
        return all_lost(aspects, "not a JSON object")
    if set(said) != set(SLOTS):
        return all_lost(aspects, _blocks(len(said)) if len(said) != BLOCKS else "other blocks than first and second")
    return {aspect.name: (_entry(said["first"], aspect), _entry(said["second"], aspect)) for aspect in aspects}


class _Twice(ValueError):
    """A key stands twice in one object, so which value is meant is not known."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _Twice
    return found


def _entry(block: object, aspect: Aspect) -> Mark:
    entry = block.get(aspect.name) if isinstance(block, dict) else None
    if not isinstance(entry, dict) or "rating" not in entry:
        return Mark(lost="missing")
    why = entry.get("why", "")
    return _mark(entry["rating"], aspect, " ".join(why.split()) if isinstance(why, str) else "")


def _read_lines(text: str, aspects: Sequence[Aspect], *, cut: bool) -> Marks:
    heads: list[str] = []
    said: list[dict[str, list[list[str]]]] = []
    last: list[str] = []
    named = {aspect.name for aspect in aspects}
    for line in text.splitlines():
        if head := _HEAD.fullmatch(line):
            heads.append(head[1])
            said.append({})
            last = []
            continue
        found = _LINE.fullmatch(line)
        name = re.sub(r"[ -]+", "_", found[1].strip().lower()) if found else ""
        if found and name in named and said:
            last = [found[2]]
            said[-1].setdefault(name, []).append(last)
        elif last and line.strip():
            last.append(line.strip())
    if heads != ["1", "2"]:
        why = _blocks(len(heads)) if len(heads) != BLOCKS else "other blocks than Response 1 and Response 2"
        return all_lost(aspects, CUT if cut else why)
    if cut and last:
        last[0] = CUT
    first, second = said
    return {a.name: (_line(first.get(a.name, []), a), _line(second.get(a.name, []), a)) for a in aspects}


def _line(said: Sequence[Sequence[str]], aspect: Aspect) -> Mark:
    if len(said) != 1:
        return Mark(lost="said twice" if said else "missing")
    if said[0][0] == CUT:
        return Mark(lost=CUT)
    rated = _RATED.fullmatch(said[0][0])
    assert rated is not None, "the pattern takes every text"
    why = " ".join(part for part in (rated[2] or "", *said[0][1:]) if part)
    value = rated[1].strip()
    if _RANGE.fullmatch(rated[2] or ""):
        value = said[0][0]
    return _mark(int(value) if re.fullmatch("[0-9]{1,3}", value) else value, aspect, why)


def _mark(value: object, aspect: Aspect, why: str) -> Mark:
    """Return the mark of a rating that was given; whole numbers only, for 4.5 or 4/5 says something else."""
    if isinstance(value, str) and value.lower() == "n/a":
        return Mark(why=why) if aspect.optional else Mark(why=why, lost="n/a, which it cannot be")
    if type(value) is not int:
        return Mark(why=why, lost=f"not a whole number: {str(value)[:20]!r}")
    if not aspect.low <= value <= aspect.high:
        return Mark(why=why, lost=f"off the scale: {value}")
    return Mark(value, why)


def _read_bare(reply: Reply, aspect: Aspect) -> tuple[Mark, Mark]:
    text = reply.text.translate(_AS_SPACE)
    found = _TWO.fullmatch(text)
    if found is None:
        count = len(re.findall(r"[0-9]+", text))
        lost = Mark(lost="not two bare numbers" if count == BLOCKS else _blocks(count).replace("block", "number"))
        return lost, lost
    places = _places(text, reply.tokens or (), found)
    first, second = (
        _expected(_mark(int(said) if said.isdigit() else said, aspect, ""), aspect, place)
        for said, place in zip(found.groups(), places, strict=True)
    )
    return first, second


def _places(text: str, tokens: Sequence[Token], found: re.Match[str]) -> tuple[Token | None, Token | None]:
    """Return the tokens that are the two numbers, None where one is fused with other text.

    Token texts need not add up to the reply (markers, stripped spaces); then the numbers are taken in order.
    """
    if "".join(_plain(token.text) for token in tokens) == text:
        starts: dict[int, Token] = {}
        at = 0
        for token in tokens:
            plain = _plain(token.text)
            starts[at + len(plain) - len(plain.lstrip())] = token
            at += len(plain)
        one, two = starts.get(found.start(1)), starts.get(found.start(2))
    else:
        lone = [token for token in tokens if _plain(token.text).strip().isdigit()]
        one, two = (lone[0], lone[1]) if len(lone) == BLOCKS else (None, None)
    return (
        one if one and _plain(one.text).strip() == found[1] else None,
        two if two and _plain(two.text).strip() == found[2] else None,
    )


def _expected(mark: Mark, aspect: Aspect, token: Token | None) -> Mark:
    """Return the mark with the expectation over the ratings that could have stood there, renormalised."""
    if mark.rating is None or token is None:
        return mark
    chances: dict[int, list[float]] = {}
    for said, logprob in token.top.items():
        digits = _plain(said).strip()
        if re.fullmatch("[0-9]", digits) and aspect.low <= int(digits) <= aspect.high:
            chances.setdefault(int(digits), []).append(math.exp(logprob))
    mass = math.fsum(chance for some in chances.values() for chance in some)
    if not mass:
        return mark
    rating = math.fsum(level * chance for level, some in chances.items() for chance in some) / mass
    return mark._replace(rating=min(max(rating, aspect.low), aspect.high), mass=min(1.0, mass))


def _plain(token: str) -> str:
    return token.translate(_AS_SPACE)
