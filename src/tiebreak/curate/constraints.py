"""Demands on an answer that a machine can check, and pairs made of one answer behind two prompts."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from tiebreak.curate.knobs import check_count, check_number
from tiebreak.curate.table import Rows, Step
from tiebreak.curate.words import Made, pairs_of_one_prompt, words_of_pairs
from tiebreak.data.drafts import Demand, with_demands
from tiebreak.records import InputError, Pair, Prompt, Response
from tiebreak.registry import nearest

FEW = "an answer that too few demands fit"
"""Why :func:`constraints` makes no row; what is dropped is an answer, the pairs it comes from may stay."""

VIOLATE = ("one", "all")
SIDES = ("chosen", "rejected", "both")

_WORD = re.compile(r"[^\W\d_]+")
_BULLET = re.compile(r"^\s*[-*•]\s", re.MULTILINE)
_PARAGRAPH = re.compile(r"\n[ \t]*\n\s*")
_MARKS = {".": "a full stop", "!": "an exclamation mark", "?": "a question mark"}
_LEAST = 4
"""Letters of a word that is demanded or forbidden: shorter ones are mostly grammar."""


class Kind(NamedTuple):
    """A kind of demand: its sentence for a value, whether a text meets it, and values worth trying for a text.

    Values that a text meets and values that it violates are offered alike; the checker tells them apart, so a demand's
    label never rests on how it was made. ``offers`` sees the text and the pair's other answer.
    """

    says: Callable[[Any], str]
    holds: Callable[[Any, str], bool]
    offers: Callable[[str, str], Sequence[Any]]


def _words(text: str) -> list[str]:
    return [word.casefold() for word in _WORD.findall(text)]


def _length(text: str) -> int:
    """Count words: what stands between spaces and is not only punctuation, as a lone dash is."""
    return sum(any(letter.isalnum() for letter in word) for word in text.split())


def _paragraphs(text: str) -> int:
    return len(_PARAGRAPH.split(text.strip())) if text.strip() else 0


def _bullets(text: str) -> int:
    return len(_BULLET.findall(text))


def _bounds(text: str, _other: str) -> list[list[Any]]:
    count = _length(text)
    bounds = sorted({max(1, round(count * share)) for share in (0.5, 0.75, 1.25, 1.5)})
    return [[side, bound] for side in ("at most", "at least") for bound in bounds]


def _within(value: Sequence[Any], text: str) -> bool:
    side, bound = value
    count = _length(text)
    return bool(count <= bound if side == "at most" else count >= bound)


def _around(count: int, least: int) -> list[int]:
    return [number for number in range(count - 2, count + 3) if number >= least]


def _keywords(text: str, other: str) -> list[list[str]]:
    """Return words of either answer, without those that the kind ``first_word`` may demand."""
    taken = {*_first_words(text, other)}
    found = dict.fromkeys(word for word in _words(text) + _words(other) if len(word) >= _LEAST and word not in taken)
    return [[side, word] for word in found for side in ("with", "without")]


def _first_words(text: str, other: str) -> list[str]:
    return list(dict.fromkeys(_words(text)[:1] + _words(other)[:2]))


def _either(value: Sequence[Any], found: bool) -> bool:
    return found is (value[0] == "with")


def _plural(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


KINDS: Mapping[str, Kind] = {
    "words": Kind(lambda v: f"Use {v[0]} {_plural(v[1], 'word')}.", _within, _bounds),
    "paragraphs": Kind(
        lambda v: f"Write exactly {_plural(v, 'paragraph')}, with a blank line between any two.",
        lambda v, text: _paragraphs(text) == v,
        lambda text, _: _around(_paragraphs(text), 1),
    ),
    "bullets": Kind(
        lambda v: f"Write exactly {_plural(v, 'bullet point')}." if v else "Use no bullet points.",
        lambda v, text: _bullets(text) == v,
        lambda text, _: _around(_bullets(text), 0),
    ),
    "keyword": Kind(
        lambda v: f'Use the word "{v[1]}".' if v[0] == "with" else f'Do not use the word "{v[1]}".',
        lambda v, text: _either(v, v[1] in _words(text)),
        _keywords,
    ),
    "first_word": Kind(
        lambda v: f'Begin with the word "{v}".',
        lambda v, text: _words(text)[:1] == [v],
        _first_words,
    ),
    "ending": Kind(
        lambda v: f"{'End' if v[0] == 'with' else 'Do not end'} with {_MARKS[v[1]]}.",
        lambda v, text: _either(v, text.rstrip().endswith(v[1])),
        lambda *_: [[side, mark] for mark in _MARKS for side in ("with", "without")],
    ),
    "letters": Kind(
        lambda v: "Use small letters only." if v == "small" else "Use at least one capital letter.",
        lambda v, text: (text == text.lower()) == (v == "small"),
        lambda *_: ["small", "capital"],
    ),
    "digits": Kind(
        lambda v: "Use at least one digit." if v[0] == "with" else "Use no digits.",
        lambda v, text: _either(v, any(letter.isdecimal() for letter in text)),
        lambda *_: [["with"], ["without"]],
    ),
    "commas": Kind(
        lambda v: "Use at least one comma." if v[0] == "with" else "Use no commas.",
        lambda v, text: _either(v, "," in text),
        lambda *_: [["with"], ["without"]],
    ),
}
"""Kinds of demands by name. No two speak of the same thing, so that a prompt with a violated demand can be met as well.

A clash that no answer could meet would give the rejected prompt away without the answer being read.
"""


def holds(kind: str, value: Any, text: str) -> bool:
    """Whether ``text`` meets a demand, given as a prompt's field ``demands`` has it."""
    return KINDS[kind].holds(value, text)


class Twin(NamedTuple):
    """Demands that a text meets, all of them, and the same ones with some or all exchanged for what it violates."""

    met: list[Demand]
    violated: list[Demand]


def demands_of(
    text: str, other: str, *, n: int, violate: str, kinds: Sequence[str], chance: random.Random
) -> Twin | None:
    """Return ``n`` demands on ``text`` of different kinds in both versions, or None where fewer kinds fit.

    Both have the same kinds in the same order, so that neither is told by its length or its kinds.
    """
    met: list[Demand] = []
    violated: list[Demand] = []
    for kind in chance.sample(kinds, len(kinds)):
        if len(met) == n:
            break
        offers = KINDS[kind].offers(text, other)
        # The first of either sort in a random order is as likely as any other, and most offers need no check.
        tried = chance.sample(offers, len(offers))
        good = next((value for value in tried if holds(kind, value, text)), None)
        bad = next((value for value in tried if not holds(kind, value, text)), None)
        if good is not None and bad is not None:
            met.append(_demand(kind, good))
            violated.append(_demand(kind, bad))
    if len(met) < n:
        return None
    if violate == "one":
        one = chance.randrange(n)
        violated = [*met[:one], violated[one], *met[one + 1 :]]
    return Twin(met, violated)


def _demand(kind: str, value: Any) -> Demand:
    return Demand(kind, value, KINDS[kind].says(value))


def constraints(
    rows: Rows,
    *,
    n: int = 3,
    violate: str = "one",
    of: str = "both",
    kinds: Sequence[str] | None = None,
    keep: bool = True,
    weight: float = 1.0,
    seed: int = 0,
) -> Step:
    """Make of an answer a pair of prompts: with ``n`` demands that it meets, over the same with some that it violates.

    The intra-sample rows of MAPL, Sun et al. 2025, arXiv 2505.12845: both sides are the same answer, and a reward model
    learns to read the demands. ``violate`` says whether ``one`` of the demands or ``all`` are violated in the rejected
    prompt, ``of`` which answers of the pairs are used, each once, and ``kinds`` which demands (all of ``KINDS`` by
    default). Every demand is checked on the answer. With ``keep`` the pairs given stay in front; ``weight`` is that of
    the new rows. p is 1, and no judgment is behind it.

    Take it for reward models: under DPO the two prompts' partition functions do not cancel, which leaves
    beta * (log Z(met) - log Z(violated)) in the margin.

    Raises:
        InputError: a knob that is none of these.
    """
    _check(n, violate, of, weight)
    check_count("constraints", "seed", seed, 0)
    names = _kinds(kinds, n)
    pairs = pairs_of_one_prompt(rows, "constraints")
    words, made = words_of_pairs(rows, pairs), Made()
    answers: dict[str, tuple[Prompt, Response]] = {}
    for pair in pairs:
        for own, other in _uses((pair.chosen_id, pair.rejected_id), of):
            answers.setdefault(own, (words.prompts[pair.prompt_id], words.responses[other]))
    found: list[Pair] = []
    few = 0
    for own, (prompt, beside) in answers.items():
        response = words.responses[own]
        chance = random.Random(f"{seed} {own}")
        twin = demands_of(response.text, beside.text, n=n, violate=violate, kinds=names, chance=chance)
        if twin is None:
            few += 1
            continue
        good, bad = with_demands(prompt, twin.met), with_demands(prompt, twin.violated)
        found.append(
            Pair(
                prompt_id=good.id,
                chosen_id=made.behind(good, response),
                rejected_prompt_id=bad.id,
                rejected_id=made.behind(bad, response),
                weight=weight,
            )
        )
    return Step([*(pairs if keep else ()), *found], {FEW: few}, made.records)


def _uses(sides: tuple[str, str], of: str) -> list[tuple[str, str]]:
    """Return which sides of a pair are used, each with the other one."""
    both = [sides, sides[::-1]]
    return both if of == "both" else [both[SIDES.index(of)]]


def _check(n: int, violate: str, of: str, weight: float) -> None:
    check_count("constraints", "n", n, 1)
    for name, value, known in (("violate", violate, VIOLATE), ("of", of, SIDES)):
        if value not in known:
            raise InputError(
                f"constraints has {name} = {value!r}; expected {' or '.join(known)}.{nearest(str(value), known)}"
            )
    if check_number("constraints", "weight", weight, 0.0) == 0:
        raise InputError("constraints has weight = 0; leave the step out instead.")


def _kinds(kinds: Sequence[str] | None, n: int) -> list[str]:
    names = list(KINDS) if kinds is None else kinds
    if not isinstance(names, list | tuple):
        raise InputError(f"constraints has kinds = {kinds!r}; expected a list of {', '.join(KINDS)}.")
    for name in names:
        if not isinstance(name, str) or name not in KINDS:
            raise InputError(
                f"constraints does not know the kind {name!r}; there are {', '.join(KINDS)}.{nearest(str(name), KINDS)}"
            )
    if n > len(set(names)):
        raise InputError(f"constraints has n = {n} and {len(set(names))} kinds; each prompt gets one demand of a kind.")
    return list(dict.fromkeys(names))
