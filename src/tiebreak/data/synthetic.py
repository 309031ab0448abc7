"""Synthetic preference pairs whose label is the one flaw that was put into the rejected answer.

Each of the four labels names a flaw, and the rejected answer of a row has that flaw and no other: the detail that was
asked for is left out, everything one could act on is missing, a statement is wrong, or the order is lost. A judge that
learns from such rows learns the four flaws and not an accident of how the rows were made, as long as length does not
give the choice away. Left to themselves, brief answers lose by being short and rambling ones by being long; vague
answers are therefore cut longer or shorter than their counterpart, in the proportion that makes
"the longer one" right in half of all rows, and wrong answers are as long as right ones.

The texts are material that is passed in: per label one YAML file of hand-written ``topics``, each used at most once in
a set, and of ``families``, whose slots are filled with drawn quantities and which give as many rows as are asked for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import yaml

from tiebreak.data.sets import words
from tiebreak.records import InputError
from tiebreak.registry import nearest

LABELS: Mapping[str, int] = {
    "detailed_vs_brief": 26,
    "helpful_vs_vague": 31,
    "accurate_vs_incorrect": 24,
    "structured_vs_rambling": 19,
}
"""The labels and their rows of each hundred."""

SHORTER_VAGUE = Fraction(12, 31)
"""The share of vague answers that are shorter than the helpful one: 26 detailed, 12 helpful and half of 24 accurate
answers make 50 of a hundred rows in which the longer answer is the better one."""

WRITTEN = Fraction(3, 4)
"""The share of a label's rows that come from hand-written topics as long as there are enough of them."""

SOURCE = "synthetic"
CATEGORIES = ("instruction_following", "safety", "reasoning")
FIELDS: Mapping[str, tuple[str, ...]] = {
    "detailed_vs_brief": ("chosen", "brief"),
    "helpful_vs_vague": ("chosen", "vague"),
    "accurate_vs_incorrect": ("text",),
    "structured_vs_rambling": ("chosen", "rambling", "keys"),
}
"""What the material gives per label, besides the prompt; ``text`` holds both answers, see ``sides``."""

TRIES = 20
"""Draws from one family that may repeat a prompt or an answer of the set before the next family is asked."""

Draw = Callable[[Random], Mapping[str, object]]
_MARKED = re.compile(r"\[\[(.*?)\|(.*?)\]\]", re.DOTALL)


class Source(NamedTuple):
    """A topic or a family of the material: its prompt and the texts of ``FIELDS``, each in one or more wordings.

    ``family`` is empty for a hand-written topic, whose texts are taken as they stand. ``vague`` is the sentences of one
    answer instead of wordings, and ``keys`` are what both answers of a structured_vs_rambling row say.
    """

    family: str
    category: str
    texts: Mapping[str, tuple[str, ...]]


class Material(NamedTuple):
    """The hand-written topics and the families of one label."""

    topics: tuple[Source, ...]
    families: tuple[Source, ...]


class Made(NamedTuple):
    """A row with what it was made from; ``slots`` is empty for a hand-written topic."""

    row: dict[str, Any]
    source: Source
    slots: Mapping[str, object]


def quotas(n: int, weights: Mapping[str, int] = LABELS) -> dict[str, int]:
    """Return ``n`` divided in proportion to ``weights``: whole parts first, the rest by largest remainder.

    Between equal remainders the order of ``weights`` decides.

    Raises:
        InputError: ``n`` is below 1.
    """
    if n < 1:
        raise InputError(f"n is {n}; expected the number of rows to make, 1 or more.")
    total = sum(weights.values())
    counts = {name: n * weight // total for name, weight in weights.items()}
    by_remainder = sorted(weights, key=lambda name: -(n * weights[name] % total))
    for name in by_remainder[: n - sum(counts.values())]:
        counts[name] += 1
    return counts


def sides(text: str) -> tuple[str, str]:
    """Return the right and the wrong version of a text in which ``[[right|wrong]]`` marks where they part."""
    return _MARKED.sub(lambda found: found[1], text), _MARKED.sub(lambda found: found[2], text)


def cut(sentences: Sequence[str], length: int, rng: Random, *, longer: bool) -> int:
    """Return how many of ``sentences``, from the first, make a text longer, or shorter, than ``length`` words.

    Shorter is as near below as it goes; longer has the sentence that passes ``length`` and up to two more.

    Raises:
        InputError: no number of them is longer, or the first alone is not shorter.
    """
    ends = [words(" ".join(sentences[: k + 1])) for k in range(len(sentences))]
    fits = [k for k, end in enumerate(ends, 1) if (end > length if longer else end < length)]
    if not fits:
        raise InputError(
            f"The vague answer {sentences[0]!r} cannot be made {'longer' if longer else 'shorter'} than {length} "
            f"words; give it {'more' if longer else 'shorter'} sentences."
        )
    return rng.choice(fits[:3]) if longer else fits[-1]


def load(folder: Path, draws: Mapping[str, Draw]) -> dict[str, Material]:
    """Return the material of ``folder``, one file ``LABEL.yaml`` per label.

    Raises:
        InputError: a file is missing or not YAML, an entry lacks a field or has an unknown one, a ``text`` marks
            nothing as wrong, or a family has no function in ``draws`` or a slot that its function does not fill.
    """
    return {label: _material(folder / f"{label}.yaml", FIELDS[label], draws) for label in LABELS}


def _material(path: Path, fields: tuple[str, ...], draws: Mapping[str, Draw]) -> Material:
    try:
        read = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"There is no {path}; the material needs one file for each of {', '.join(LABELS)}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML ({' '.join(str(error).split())}); correct it there.") from None
    if not isinstance(read, dict) or set(read) != {"topics", "families"} or not all(map(_is_list, read.values())):
        raise InputError(f"{path} must hold exactly the two lists topics and families; correct it there.")
    topics = [_source(entry, f"{path}: topic {k}", fields) for k, entry in enumerate(read["topics"], 1)]
    families = [_source(e, f"{path}: family {k}", ("family", *fields)) for k, e in enumerate(read["families"], 1)]
    if not families:
        raise InputError(f"{path} has no families, and topics come to an end; add a family.")
    for source in families:
        if source.family not in draws:
            raise InputError(f"{path}: nothing draws for {source.family!r}.{nearest(source.family, draws)}")
        slots = draws[source.family](Random(0))
        for text in (text for texts in source.texts.values() for text in texts):
            try:
                text.format_map(slots)
            except (KeyError, IndexError, ValueError) as error:
                raise InputError(
                    f"{path}: {source.family} has the text {text!r}, whose slots cannot be filled ({error}); there are "
                    f"{', '.join(slots)}."
                ) from None
    return Material(tuple(topics), tuple(families))


def _is_list(value: object) -> bool:
    return isinstance(value, list)


def _source(entry: object, where: str, fields: tuple[str, ...]) -> Source:
    wanted = ("prompt", *fields)
    if not isinstance(entry, dict):
        raise InputError(f"{where} is {entry!r}; expected the fields {', '.join(wanted)}.")
    if missing := [name for name in wanted if name not in entry]:
        raise InputError(f"{where} has no {missing[0]!r}; expected the fields {', '.join(wanted)}.")
    if unknown := [name for name in entry if name not in (*wanted, "category")]:
        raise InputError(f"{where} has the unknown field {unknown[0]!r}.{nearest(str(unknown[0]), wanted)}")
    category = str(entry.get("category", CATEGORIES[0]))
    if category not in CATEGORIES:
        raise InputError(f"{where} has the category {category!r}; expected one of {', '.join(CATEGORIES)}.")
    texts = {name: _texts(entry[name], f"{where}, {name}") for name in wanted if name != "family"}
    if unmarked := [text for text in texts.get("text", ()) if len(set(sides(text))) == 1]:
        raise InputError(f"{where} has the text {unmarked[0]!r}; mark what is wrong in it as [[right|wrong]].")
    return Source(str(entry.get("family", "")), category, texts)


def _texts(value: object, where: str) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(one, str) and one.strip() for one in texts):
        raise InputError(f"{where} is {value!r}; expected a text, or a list of texts, none of them empty.")
    return tuple(one.strip() for one in texts)


def make(material: Mapping[str, Material], draws: Mapping[str, Draw], *, n: int, seed: int) -> list[Made]:
    """Return ``n`` rows in a seeded order, with what each was made from; the same seed gives the same rows anywhere.

    Labels keep the proportions of ``LABELS``. No prompt and no chosen answer occurs twice, and no topic either.

    Raises:
        InputError: ``n`` is below 1, or the families have no further row that differs from all others.
    """
    made: list[Made] = []
    seen: set[str] = set()
    for label, count in quotas(n).items():
        made += _rows(label, material[label], draws, seen, count=count, seed=seed)
    Random(f"{seed}/order").shuffle(made)
    return made


def generate(material: Mapping[str, Material], draws: Mapping[str, Draw], *, n: int, seed: int) -> list[dict[str, Any]]:
    """Return the rows of :func:`make` as a set holds them."""
    return [one.row for one in make(material, draws, n=n, seed=seed)]


def counts(rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Return the rows of each label, in the order of ``LABELS``."""
    found = dict.fromkeys(LABELS, 0)
    for row in rows:
        found[row["metadata"]["quality"]] += 1
    return found


def _rows(label: str, of: Material, draws: Mapping[str, Draw], seen: set[str], *, count: int, seed: int) -> list[Made]:
    """Return the rows of one label: hand-written topics first, drawn without repetition, then the families in turn.

    ``seen`` holds the prompts and chosen answers of the set so far, and those of these rows afterwards.
    """
    rng = Random(f"{seed}/{label}")
    written = min(len(of.topics), -(-count * WRITTEN.numerator // WRITTEN.denominator))
    shorter = round(count * SHORTER_VAGUE)
    longer = [number >= shorter for number in range(count)]
    rng.shuffle(longer)
    made = [
        _made(label, topic, {}, Random(f"{seed}/{label}/topic/{number}"), longer=longer[number])
        for number, topic in enumerate(rng.sample(of.topics, written))
    ]
    families = rng.sample(of.families, len(of.families))
    seen.update(one.row[side] for one in made for side in ("prompt", "chosen"))
    for number in range(written, count):
        made.append(_fresh(label, families, draws, seen, f"{seed}/{label}/{number}", number, longer=longer[number]))
        seen.update(made[-1].row[side] for side in ("prompt", "chosen"))
    return made


def _fresh(
    label: str,
    families: Sequence[Source],
    draws: Mapping[str, Draw],
    seen: set[str],
    name: str,
    number: int,
    *,
    longer: bool,
) -> Made:
    """Return a row whose prompt and chosen answer are not in ``seen``, of the family whose turn it is if it has one."""
    for attempt in range(TRIES * len(families)):
        family = families[(number + attempt // TRIES) % len(families)]
        rng = Random(f"{name}/{attempt}")
        one = _made(label, family, draws[family.family](rng), rng, longer=longer)
        if one.row["prompt"] not in seen and one.row["chosen"] not in seen:
            return one
    raise InputError(
        f"The material gives no more than about {number} distinct rows of {label}; ask for fewer rows, or add "
        "families or wider draws."
    )


def _made(label: str, source: Source, slots: Mapping[str, object], rng: Random, *, longer: bool) -> Made:
    """Return the row of ``source`` with its slots filled in; ``longer`` is what a vague answer is to be."""

    def filled(text: str) -> str:
        return text.format_map(slots) if source.family else text

    prompt = filled(rng.choice(source.texts["prompt"]))
    if label == "accurate_vs_incorrect":
        chosen, rejected = sides(filled(rng.choice(source.texts["text"])))
    else:
        chosen, flawed = filled(rng.choice(source.texts["chosen"])), source.texts[FIELDS[label][1]]
        if label == "helpful_vs_vague":
            rest = range(1, len(flawed))
            order = [0, *(rng.sample(rest, len(rest)) if source.family else rest)]
            sentences = [filled(flawed[k]) for k in order]
            kept = order[: cut(sentences, words(chosen), rng, longer=longer)]
            rejected = " ".join(filled(flawed[k]) for k in sorted(kept))
        else:
            rejected = filled(rng.choice(flawed))
    metadata = {"category": source.category, "quality": label, "source": SOURCE}
    row = {"prompt": prompt + " ", "chosen": chosen, "rejected": rejected, "metadata": metadata}
    return Made(row, source, slots)
