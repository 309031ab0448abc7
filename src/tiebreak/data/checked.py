"""A preference set under examination: what is wrong with it, what is worth knowing, and what it holds.

A problem makes a row unusable or its label meaningless, and a set with one is refused. A notice is only told: the row
stays as it is. Neither changes a file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tiebreak.data.arrays import kind, parse
from tiebreak.data.sets import COLLECTED, NOT_GIVEN, SETS, TEXTS, label, length_baseline, read, voter, words
from tiebreak.data.table import excerpt
from tiebreak.records import InputError
from tiebreak.registry import nearest
from tiebreak.stats.intervals import NOTHING, Estimate, as_dict

CATEGORIES = ("instruction_following", "safety", "reasoning")
SOURCES = ("curated", "synthetic", "user_collected")
METADATA = ("category", "quality", "source", "original_source", "annotator", "confidence", "note", "judgment")
"""The metadata keys that something here reads or writes; others are kept and told."""

MOST_OF_ONE_ANSWER = 0.2
"""Above this share of rows one answer is learnt by heart instead of what makes it better."""

_SHOWN = 5


class Finding(NamedTuple):
    """One thing found: its kind, the rows it is about (from 1; none for the whole file), and a sentence."""

    kind: str
    rows: tuple[int, ...]
    text: str


class Report(NamedTuple):
    """What an examination found; ``counts`` is category, quality and source -> value -> rows.

    ``words`` are mean words of ``chosen`` and ``rejected``, None without rows; ``longer`` is the accuracy of always
    choosing the longer answer. Rows with a problem in their texts count in ``n`` alone.
    """

    n: int
    problems: tuple[Finding, ...]
    notices: tuple[Finding, ...]
    counts: Mapping[str, Mapping[str, int]]
    words: Mapping[str, float | None]
    longer: Estimate

    def as_json(self) -> dict[str, Any]:
        """Return the report as JSON-ready values."""
        found = {name: [f._asdict() for f in getattr(self, name)] for name in ("problems", "notices")}
        return {"n": self.n, "counts": self.counts, "words": self.words, "longer": as_dict(self.longer), **found}


class Listed(NamedTuple):
    """One set that has a name: where it is, and its report, or None where the file is missing."""

    name: str
    path: Path
    report: Report | None


def listing(datasets: Path) -> list[Listed]:
    """Return every registered set and every file in the folder of collected sets, the missing ones too."""
    paths = {name: datasets / below for name, below in SETS.items()}
    for path in sorted((datasets / COLLECTED).glob("*.json")):
        paths[str(path) if path.stem in SETS else path.stem] = path
    return [Listed(name, path, validate(path) if path.is_file() else None) for name, path in paths.items()]


def usable(path: Path) -> list[dict[str, Any]]:
    """Return the rows of ``path``, each with two different answers to a prompt and an object or nothing as metadata.

    Rows that repeat or contradict each other pass, since a merge and a split can handle them.

    Raises:
        InputError: the file cannot be read as a set, it holds no rows, or a row cannot be used (the first is named).
    """
    rows = read(path)
    for number, row in enumerate(rows, start=1):
        for problem in _row_problems(row, ()):
            raise InputError(f"{path}: row {number}: {problem.text} `validate` names every such row.")
    if not rows:
        raise InputError(f"{path} holds no rows; a set needs at least one.")
    return rows


def validate(path: Path) -> Report:
    """Return what is wrong with the set in ``path`` and what it holds; a file that is no set is one problem.

    Raises:
        InputError: there is no such file.
    """
    if not path.is_file():
        read(path)
    try:
        rows, lines, repeated = parse(path)
    except InputError as error:
        return _report([], [Finding("not_a_set", (), str(error))], [], [])
    return check(rows, lines=lines, repeated=repeated)


def check(rows: Sequence[Any], *, lines: Sequence[int] = (), repeated: Sequence[tuple[str, ...]] = ()) -> Report:
    """Return what is wrong with ``rows`` and what they hold.

    Args:
        rows: the elements of a set, of any type.
        lines: the line of each in its file, told beside the row number.
        repeated: the keys that each names twice in its file.
    """
    problems: list[Finding] = [] if rows else [Finding("empty", (), "the set holds no rows; it needs at least one.")]
    sound: dict[int, dict[str, Any]] = {}
    for number, row in enumerate(rows, start=1):
        found = list(_row_problems(row, repeated[number - 1] if repeated else ()))
        problems += (problem._replace(rows=(number,)) for problem in found)
        if not found:
            sound[number] = row
    problems += _between_rows(sound)
    problems = [_located(problem, lines) for problem in sorted(problems, key=lambda problem: problem.rows[:1])]
    objects = {number: row for number, row in enumerate(rows, start=1) if isinstance(row, dict)}
    notices = [*_about_keys(objects), *_about_values(objects), *_about_texts(sound)]
    return _report(list(rows), problems, notices, list(sound.values()))


def _report(
    rows: Sequence[Any],
    problems: Sequence[Finding],
    notices: Sequence[Finding],
    sound: Sequence[Mapping[str, Any]] = (),
) -> Report:
    counts = {name: dict(Counter(label(row, name) for row in sound)) for name in ("category", "quality", "source")}
    means = {side: sum(words(row[side]) for row in sound) / len(sound) if sound else None for side in TEXTS[1:]}
    longer = length_baseline(sound) if sound else NOTHING
    return Report(len(rows), tuple(problems), tuple(notices), counts, means, longer)


def _located(problem: Finding, lines: Sequence[int]) -> Finding:
    if not problem.rows:
        return problem
    number = problem.rows[0]
    line = f" (line {lines[number - 1]})" if lines else ""
    return problem._replace(text=f"row {number}{line}: {problem.text}")


def _row_problems(row: Any, repeated: Sequence[str]) -> Iterator[Finding]:
    """Yield what is wrong with one row, without its number."""
    if not isinstance(row, dict):
        yield Finding("not_an_object", (), f"found {kind(row)}; expected an object with {', '.join(TEXTS)}.")
        return
    for key in repeated:
        yield Finding("repeated_key", (), f"{key!r} is given twice, and JSON keeps only the last; delete one of them.")
    for name in TEXTS:
        yield from _text_problems(row, name)
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if isinstance(chosen, str) and isinstance(rejected, str) and chosen.strip() and chosen.strip() == rejected.strip():
        same = "are the same text" if chosen == rejected else "differ only in the white space around them"
        yield Finding("same_answers", (), f"chosen and rejected {same}; correct one or delete the row.")
    if not isinstance(row.get("metadata"), dict | None):
        found = excerpt(row["metadata"])
        yield Finding("metadata", (), f"metadata is {kind(row['metadata'])} ({found}); expected an object or null.")


def _text_problems(row: Mapping[str, Any], name: str) -> Iterator[Finding]:
    value = row.get(name)
    if name not in row:
        others = [key for key in row if key not in (*TEXTS, "metadata")]
        yield Finding("missing", (), f"{name!r} is missing; expected a text.{nearest(name, others)}")
    elif not isinstance(value, str):
        shown = "" if value is None else f" ({excerpt(value)})"
        yield Finding("not_text", (), f"{name!r} is {kind(value)}{shown}; expected a text.")
    elif not value.strip():
        yield Finding("blank", (), f"{name!r} is blank; write the text or delete the row.")
    elif any("\ud800" <= character <= "\udfff" for character in value):
        yield Finding("broken_character", (), f"{name!r} holds half of a character (\\ud800 to \\udfff); correct it.")


def _between_rows(sound: Mapping[int, Mapping[str, Any]]) -> Iterator[Finding]:
    """Yield rows that say again what one before them says, or the opposite; another person may say either."""
    said: dict[tuple[str, ...], int] = {}
    for number, row in sound.items():
        prompt, chosen, rejected = (row[name] for name in TEXTS)
        if (other := said.setdefault((prompt, chosen, rejected, voter(row)), number)) != number:
            text = f"it says the same as row {other}; delete one of them."
            yield Finding("duplicate", (number, other), text)
        elif other := said.get((prompt, rejected, chosen, voter(row)), 0):
            text = f"it says the opposite of row {other}, with chosen and rejected swapped; delete the wrong one."
            yield Finding("contradiction", (number, other), text)


def _about_keys(rows: Mapping[int, Mapping[str, Any]]) -> Iterator[Finding]:
    """Yield what is told about metadata that is not there and about keys that nothing here reads."""
    without = tuple(number for number, row in rows.items() if row.get("metadata") is None)
    if without:
        text = f"metadata is null or missing in {_rows(without)}; nothing is lost, they count as {NOT_GIVEN!r}."
        yield Finding("no_metadata", without, text)
    unknown: dict[tuple[str, str], list[int]] = {}
    called: list[int] = []
    for number, row in rows.items():
        metadata = row["metadata"] if isinstance(row.get("metadata"), dict) else {}
        if metadata.get("quality") is None and metadata.get("quality_type") is not None:
            called.append(number)
        for key in metadata:
            if key not in METADATA and not (key == "quality_type" and number in called[-1:]):
                unknown.setdefault(("metadata key", key), []).append(number)
        for key in row:
            if key not in (*TEXTS, "metadata"):
                unknown.setdefault(("key", key), []).append(number)
    if called:
        yield Finding("quality_type", tuple(called), f"'quality_type' is read as 'quality' in {_rows(called)}.")
    for (what, key), numbers in unknown.items():
        known = METADATA if what != "key" else (*TEXTS, "metadata")
        text = f"the {what} {key!r} in {_rows(numbers)} is not known; it is kept as it is.{nearest(key, known)}"
        yield Finding("unknown_key", tuple(numbers), text)


def _about_values(rows: Mapping[int, Mapping[str, Any]]) -> Iterator[Finding]:
    for name, known in (("category", CATEGORIES), ("source", SOURCES)):
        unknown: dict[str, list[int]] = {}
        for number, row in rows.items():
            if (value := label(row, name)) not in (*known, NOT_GIVEN):
                unknown.setdefault(value, []).append(number)
        for value, numbers in unknown.items():
            text = f"the {name} {value!r} in {_rows(numbers)} is none of {', '.join(known)}.{nearest(value, known)}"
            yield Finding(f"unknown_{name}", tuple(numbers), text)


def _about_texts(rows: Mapping[int, Mapping[str, Any]]) -> Iterator[Finding]:
    bare = tuple(number for number, row in rows.items() if row["prompt"] == row["prompt"].rstrip())
    if bare and len(bare) < len(rows) / 2:
        text = f"the prompt ends without a space in {_rows(bare)}; most prompts of the set have one. Nothing is added."
        yield Finding("prompt_end", bare, text)
    voted = {(row["prompt"], row["chosen"], row["rejected"]) for row in rows.values() if voter(row)}
    split = [n for n, row in rows.items() if voter(row) and (row["prompt"], row["rejected"], row["chosen"]) in voted]
    if split:
        yield Finding("disagreement", tuple(split), f"people disagree about one pair in {_rows(split)}; all are kept.")
    where: dict[str, list[int]] = {}
    for number, row in rows.items():
        for answer in dict.fromkeys((row["chosen"].strip(), row["rejected"].strip())):
            where.setdefault(answer, []).append(number)
    for answer, numbers in where.items():
        if len(numbers) > max(1, MOST_OF_ONE_ANSWER * len(rows)):
            text = f"one answer stands in {len(numbers)} of {len(rows)} rows: {excerpt(answer)!r}; write others."
            yield Finding("repeated_answer", tuple(numbers), text)


def _rows(numbers: Sequence[int]) -> str:
    """Return the row numbers in words, the first few of many."""
    if len(numbers) == 1:
        return f"row {numbers[0]}"
    shown = ", ".join(map(str, numbers[:_SHOWN]))
    return f"{len(numbers)} rows ({shown}{', …' if len(numbers) > _SHOWN else ''})"
