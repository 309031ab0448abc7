"""Pairs decided by who made an answer: a teacher over a model that says otherwise, a better model over a worse one.

These steps come first and read the answers that were judged together, two to an item; what was said of them is not
read, so judging them with a rule is enough. No judgment is behind the pairs, and p is 1.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tiebreak.curate.knobs import Lacking
from tiebreak.curate.pairs import NO_PAIR
from tiebreak.curate.table import Rows, Step, at_first
from tiebreak.curate.words import words_of
from tiebreak.records import InputError, Pair, Response

EQUAL = "equal answers"
NOT_BOTH = "not one answer of each maker"
"""Why :func:`model_contrast` drops an item; :func:`structured_mismatch` has the second reason too."""

SAME = "the same in every field"
TEACHER = "the teacher's reply lacks fields or cannot be read"
"""Why :func:`structured_mismatch` drops an item."""

UNREADABLE, LACKING = "unreadable", "lacks fields"

_NAME = re.compile(r"[^\W\d][\w ]*")
_MARKUP = " \t*_#>-"
"""What surrounds a field's name or value where a reply is written as a list or in bold letters."""

_FENCE = re.compile(r"\s*```(?:json)?\s*\n(.*)\n\s*```\s*", re.DOTALL)


def model_contrast(rows: Rows, *, chosen: str | None = None, rejected: str | None = None) -> Step:
    """Prefer the answers of the maker ``chosen`` to those of the maker ``rejected``, where the two differ.

    Self-reinforcement, Tong et al. 2024, arXiv 2405.04086: a fine-tuned model against the base it came from. It holds
    only where the chosen maker is the better one, which nothing here can know: compare both on held-out data first.

    Raises:
        InputError: a maker that is not named, or of whom no answer was judged.
    """
    better, worse = _makers("model_contrast", {"chosen": chosen, "rejected": rejected})
    found: list[Pair] = []
    dropped: Counter[str] = Counter()
    for two in _answers(rows, "model_contrast", (better, worse), dropped):
        by = {response.maker: response for response in two}
        if {*by} != {better, worse}:
            dropped[NOT_BOTH] += 1
        elif by[better].text.split() == by[worse].text.split():
            dropped[EQUAL] += 1
        else:
            found.append(_pair(by[better], by[worse]))
    return Step(found, dropped)


def structured_mismatch(rows: Rows, *, fields: Sequence[str] = (), teacher: str | None = None) -> Step:
    """Prefer the teacher's reply to a model's that cannot be read, lacks fields, or differs in one of them.

    Sonkar et al. 2024, arXiv 2402.05000, whose fields are evaluation, action and subproblem state. ``teacher`` is the
    maker of the replies to go by; whoever made the other answer of an item is the model. ``fields`` are those that
    count, the most important first (:func:`mismatch`); a model that agrees in all of them gives no pair, whatever else
    it says.

    Raises:
        InputError: no fields, or a teacher who is not named or of whom no answer was judged.
    """
    (by,) = _makers("structured_mismatch", {"teacher": teacher})
    names = [fields] if isinstance(fields, str) else list(fields or ())
    if not names or not all(isinstance(name, str) and name.strip() for name in names):
        raise InputError(
            f"structured_mismatch has fields = {fields!r}; expected the names of the fields that count, such as "
            "[evaluation, action, state]."
        )
    found: list[Pair] = []
    dropped: Counter[str] = Counter()
    for two in _answers(rows, "structured_mismatch", (by,), dropped):
        replies = {response.maker == by: response for response in two}
        if len(replies) != 2:
            dropped[NOT_BOTH] += 1
        elif mismatch(replies[True].text, replies[True].text, names):
            dropped[TEACHER] += 1
        elif mismatch(replies[True].text, replies[False].text, names):
            found.append(_pair(replies[True], replies[False]))
        else:
            dropped[SAME] += 1
    return Step(found, dropped)


def mismatch(teacher: str, model: str, fields: Sequence[str]) -> str:
    """Return what is wrong with a model's reply, "" where it agrees with the teacher's in all ``fields``.

    ``unreadable``, ``lacks fields``, or the name of the first field, in the order given, whose value differs; values
    are compared without case and with single spaces. A teacher's reply that is wrong itself disagrees with itself.
    """
    said, wanted = parse_fields(model), parse_fields(teacher)
    if said is None or wanted is None:
        return UNREADABLE
    keys = [_key(name) for name in fields]
    if any(key not in reply for key in keys for reply in (said, wanted)):
        return LACKING
    return next((name for name, key in zip(fields, keys, strict=True) if said[key] != wanted[key]), "")


def parse_fields(text: str) -> Mapping[str, str] | None:
    """Return the fields of a structured reply by name, None where it is none or says a field twice.

    A reply is one JSON object, a fence around it or not, or lines ``name: value``; a line without a colon goes on with
    the value before it. Names have neither case nor spaces.
    """
    fenced = _FENCE.fullmatch(text)
    body = (fenced[1] if fenced else text).strip()
    try:
        pairs = _json(body) if body.startswith(("{", "[")) else list(_lines(body))
    except (ValueError, RecursionError):
        return None
    found = {_key(name): " ".join(value.split()).casefold() for name, value in pairs}
    return found if found and len(found) == len(pairs) else None


def _json(body: str) -> list[tuple[str, str]]:
    found = json.loads(body, object_pairs_hook=_once)
    if not isinstance(found, dict):
        raise ValueError("a list has no fields")
    return [
        (name, value if isinstance(value, str) else json.dumps(value, sort_keys=True)) for name, value in found.items()
    ]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice")
    return found


def _lines(body: str) -> Iterator[tuple[str, str]]:
    name, value = "", ""
    for line in body.splitlines():
        before, colon, after = line.partition(":")
        before = before.strip(_MARKUP)
        if colon and _NAME.fullmatch(before):
            if name:
                yield name, value
            name, value = before, after.strip(_MARKUP)
        else:
            value = f"{value} {line}"
    if name:
        yield name, value


def _key(name: str) -> str:
    return "_".join(name.replace("_", " ").split()).casefold()


def _makers(step: str, named: Mapping[str, str | None]) -> tuple[str, ...]:
    """Return the makers that these knobs name, or refuse the step."""
    found: list[str] = []
    for knob, maker in named.items():
        if not isinstance(maker, str) or not maker:
            raise InputError(f"{step} has {knob} = {maker!r}; expected the maker of answers, such as model@revision.")
        if maker in found:
            raise InputError(f"{step} has {maker!r} as {' and '.join(named)}; name two makers.")
        found.append(maker)
    return tuple(found)


def _answers(
    rows: Rows, step: str, makers: Sequence[str], dropped: Counter[str]
) -> Iterator[tuple[Response, Response]]:
    """Yield the two answers of each item; items of more are counted as dropped.

    Raises:
        InputError: a maker of whom no answer was judged.
    """
    items = [judgments[0].slots for judgments in at_first(rows, step).items.values()]
    words = words_of(rows, (), (slot for slots in items for slot in slots))
    there = sorted({response.maker for response in words.responses.values()})
    for maker in makers:
        if maker not in there:
            raise Lacking(f"{step}: no judged answer is by {maker!r}; there are answers by {', '.join(there)}.")
    for slots in items:
        if len(set(slots)) == len(slots) == 2:
            yield words.responses[slots[0]], words.responses[slots[1]]
        else:
            dropped[NO_PAIR] += 1


def _pair(chosen: Response, rejected: Response) -> Pair:
    return Pair(prompt_id=chosen.prompt_id, chosen_id=chosen.id, rejected_id=rejected.id)
