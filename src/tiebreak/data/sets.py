"""Preference sets: JSON arrays of prompt, chosen, rejected and metadata, by name or by path.

A set is read as it stands and written as it was: keys keep their order, unknown keys stay, and the space at the end of
a prompt is part of the data, because a tokenizer cuts ``": "`` and ``":"`` differently. Every length is counted in
words, that is, in stretches without white space.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tiebreak.data.arrays import kind, parse
from tiebreak.records import InputError, content_id
from tiebreak.registry import nearest
from tiebreak.stats.intervals import Estimate, rate

SETS: Mapping[str, str] = {
    "starter": "curated/preference_dataset_starter.json",
    "instruction": "curated/preferences_instruction_following.json",
    "safety": "curated/preferences_safety.json",
    "reasoning": "curated/preferences_reasoning.json",
    "synthetic": "synthetic/large_synthetic_preferences.json",
    "combined": "combined/combined_preference_dataset.json",
}
"""The registered sets: name -> path below the datasets folder."""

REMEDIES: Mapping[str, str] = {
    "curated": "write it with data/rlhf/examples/create_preference_dataset.py",
    "synthetic": "write it with data/rlhf/examples/generate_large_synthetic_dataset.py",
    "combined": "write it with data/rlhf/manage_data.py merge starter synthetic -o FILE",
}
"""How a registered set comes back, by the folder it belongs in."""

COLLECTED = "user_collected"
"""The folder below the datasets folder that holds what a user's own votes became."""

TEXTS = ("prompt", "chosen", "rejected")
NOT_GIVEN = "not given"
"""What a count calls the rows that do not name their category, quality or source."""

Row = Mapping[str, Any]


class Merged(NamedTuple):
    """One set out of several: its rows, how many were left out as duplicates, and the pairs of rows that disagree.

    ``contradictions`` counts rows from 1, as they stand in the merged set.
    """

    rows: list[dict[str, Any]]
    duplicates: int
    contradictions: list[tuple[int, int]]


class Split(NamedTuple):
    """The two sides, each in the order of the set, and what a reader should know about how they came out."""

    train: list[dict[str, Any]]
    val: list[dict[str, Any]]
    notes: list[str]


def find(name_or_path: str, datasets: Path) -> Path:
    """Return the file of a registered set, of a collected set by the name of its file, or of a path.

    Raises:
        InputError: nothing has that name, or the registered file is not there.
    """
    if name_or_path in SETS:
        path = datasets / SETS[name_or_path]
        if not path.is_file():
            raise InputError(f"The set {name_or_path!r} is missing: there is no {path}; {REMEDIES[path.parent.name]}.")
        return path
    path = Path(name_or_path)
    if path.is_file():
        return path
    collected = {file.stem: file for file in sorted((datasets / COLLECTED).glob("*.json"))}
    if (stem := name_or_path.removesuffix(".json")) in collected:
        return collected[stem]
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the path of a JSON file or one of {', '.join(SETS)}.")
    raise InputError(
        f"There is no set and no file {name_or_path!r}; there are {', '.join([*SETS, *collected])}, or give the "
        f"path of a JSON file.{nearest(name_or_path, [*SETS, *collected])}"
    )


def read(path: Path) -> list[dict[str, Any]]:
    """Return every row as it stands, with its keys in their order; nothing is stripped, renamed or filled in.

    Raises:
        InputError: no such file, not UTF-8, malformed JSON (with its line), not an array, or a row that is not an
            object or names a key twice, of which JSON would silently keep the last.
    """
    rows, lines, repeated = parse(path)
    for number, (row, line, twice) in enumerate(zip(rows, lines, repeated, strict=True), start=1):
        where = f"{path}: row {number} (line {line})"
        if not isinstance(row, dict):
            raise InputError(f"{where} is {kind(row)}; expected an object with {', '.join(TEXTS)}; correct it there.")
        if twice:
            raise InputError(f"{where} names {twice[0]!r} twice; keep one of them.")
    return rows


def write(path: Path, rows: Sequence[Row]) -> None:
    """Write ``rows`` as a set, whole or not at all; folders on the way are made.

    A reader sees the old file or the new one, never half of it, also when the machine stops in between.

    Raises:
        InputError: a row holds what JSON or UTF-8 cannot (a set, nan, half of a character), or ``path`` is a folder.
    """
    try:
        packed = (json.dumps(list(rows), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{path} cannot be written: a row holds what JSON cannot ({error}); correct that row."
        ) from None
    if path.is_dir():
        raise InputError(f"{path} is a folder; name the JSON file to write.")
    target = Path(os.path.realpath(path))  # a link stays a link, and what it points at is replaced
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with beside.open("wb") as stream:
            stream.write(packed)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)


def words(text: str) -> int:
    """Return the number of words, that is, of stretches without white space: the unit of every length of a set."""
    return len(text.split())


def prompts(path: Path) -> list[str]:
    """Return the prompts of a text file, one a line, each with the space at its end; blank lines are left out.

    Raises:
        InputError: no such file, not UTF-8, or no prompt in it.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"{path} is not a file; give a text file with one prompt a line.") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason}, byte {error.start}); convert it first.") from None
    found = [line for line in text.split("\n") if line.strip()]
    if not found:
        raise InputError(f"{path} holds no prompt; write one a line.")
    return found


def next_file(folder: Path) -> Path:
    """Return ``folder/user_preferences_NNN.json`` with the number after the highest one there; nothing is created.

    Raises:
        InputError: the number would have more than three digits.
    """
    taken = [int(m[1]) for p in folder.glob("*.json") if (m := re.fullmatch(r"user_preferences_(\d{3})\.json", p.name))]
    if (number := max(taken, default=0) + 1) > 999:
        raise InputError(f"{folder} holds user_preferences_999.json, the last number; merge the files into one.")
    return folder / f"user_preferences_{number:03d}.json"


def label(row: Row, name: str) -> str:
    """Return what ``row`` says of its ``category``, ``quality`` or ``source``, or ``not given``.

    A quality may also be called ``quality_type``; metadata that is null or missing says nothing.
    """
    metadata = row.get("metadata")
    told = metadata if isinstance(metadata, Mapping) else {}
    value = told.get(name)
    if value is None and name == "quality":
        value = told.get("quality_type")
    return NOT_GIVEN if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def voter(row: Row) -> str:
    """Return who gave the row's verdict, empty where nobody is named: two people's votes on one pair are two facts."""
    metadata = row.get("metadata")
    return str(metadata.get("annotator") or "") if isinstance(metadata, Mapping) else ""


def folded(prompt: str) -> str:
    """Return the prompt as it is compared: white space as single spaces, and case folded."""
    return " ".join(prompt.split()).casefold()


def length_baseline(rows: Sequence[Row]) -> Estimate:
    """Return how often the longer answer is the chosen one: the accuracy of a judge that only counts words.

    A tie counts half. The 95 % interval treats rows with one prompt as one cluster. Near 1/2 the labels say something
    besides length; nan where there are no rows.
    """
    gaps = [words(row["chosen"]) - words(row["rejected"]) for row in rows]
    return rate([0.5 if gap == 0 else float(gap > 0) for gap in gaps], [folded(row["prompt"]) for row in rows])


def merge(named: Sequence[tuple[str, Sequence[Row]]], *, mark: bool = False) -> Merged:
    """Return the rows of ``named`` (name, rows) one after the other, each vote once.

    Of rows with the same prompt, chosen and rejected the first stays, unless another annotator is named. A pair that
    stands both ways round is kept both ways: who is right is not for a merge to say. ``mark`` writes the set's name
    into ``metadata.original_source`` of rows that do not name one yet.
    """
    merged: list[dict[str, Any]] = []
    votes: set[tuple[str, ...]] = set()
    first: dict[tuple[str, str, str], int] = {}
    for name, rows in named:
        for row in rows:
            texts = (row["prompt"], row["chosen"], row["rejected"])
            if (*texts, voter(row)) not in votes:
                votes.add((*texts, voter(row)))
                merged.append(_marked(row, name) if mark else dict(row))
                first.setdefault(texts, len(merged))
    total = sum(len(rows) for _, rows in named)
    swapped = [(first[prompt, b, a], n) for (prompt, a, b), n in first.items() if first.get((prompt, b, a), n) < n]
    return Merged(merged, total - len(merged), swapped)


def _marked(row: Row, name: str) -> dict[str, Any]:
    metadata = dict(row.get("metadata") or {})
    metadata["original_source"] = metadata.get("original_source") or name
    return {**row, "metadata": metadata}


def filter_rows(
    rows: Sequence[Row],
    *,
    category: str | None = None,
    quality: str | None = None,
    source: str | None = None,
    min_length: int | None = None,
    max_length: int | None = None,
) -> list[dict[str, Any]]:
    """Return the rows that meet every condition given; lengths are words of the chosen answer, ends included.

    Raises:
        InputError: no condition, lengths that exclude each other, or nothing is left (with what there is to ask for).
    """
    asked = {k: v for k, v in (("category", category), ("quality", quality), ("source", source)) if v is not None}
    low, high = min_length, max_length
    if not asked and low is None and high is None:
        raise InputError("No condition is given; name a category, quality, source, min-length or max-length.")
    if low is not None and high is not None and low > high:
        raise InputError(f"No answer has at least {low} and at most {high} words; swap the two lengths.")
    for name, value in asked.items():
        there = list(dict.fromkeys(label(row, name) for row in rows))
        if value not in there:
            raise InputError(f"No row has the {name} {value!r}; there are {', '.join(there)}.{nearest(value, there)}")
    kept = [
        dict(row)
        for row in rows
        if all(label(row, name) == value for name, value in asked.items())
        and (low is None or words(row["chosen"]) >= low)
        and (high is None or words(row["chosen"]) <= high)
    ]
    if not kept:
        lengths = [words(row["chosen"]) for row in rows]
        told = f"; chosen answers have {min(lengths)} to {max(lengths)} words" if lengths else ""
        raise InputError(f"None of {len(rows)} rows meets every condition{told}; ask for less.")
    return kept


def split(rows: Sequence[Row], *, ratio: float = 0.8, seed: int = 0) -> Split:
    """Return two sides that share no prompt: about ``ratio`` of the prompts to train on, the rest to validate with.

    Prompts are compared after white space and case are folded. Each category is divided in the same proportion as far
    as whole prompts allow and always keeps one prompt to train on; a side is never empty where there are two prompts.
    The draw depends on the prompts and the seed, not on the order of the rows.

    Raises:
        InputError: a ratio outside 0 to 1, or fewer than two prompts.
    """
    if not 0.0 < ratio < 1.0:
        raise InputError(f"The ratio is {ratio:g}; expected a share between 0 and 1 to train on, such as 0.8.")
    category = {folded(row["prompt"]): label(row, "category") for row in reversed(rows)}
    if len(category) < 2:
        raise InputError(f"There is {len(category)} prompt; a split by prompt needs at least two.")
    groups: dict[str, list[str]] = {}
    for prompt in sorted(category, key=lambda text: content_id("split", seed, text)):
        groups.setdefault(category[prompt], []).append(prompt)
    sizes, notes = _validation_sizes({name: len(of) for name, of in groups.items()}, ratio)
    held = {prompt for name, size in sizes.items() for prompt in groups[name][:size]}
    train = [dict(row) for row in rows if folded(row["prompt"]) not in held]
    val = [dict(row) for row in rows if folded(row["prompt"]) in held]
    known = {row["chosen"].strip() for row in train}
    if leaked := sum(row["chosen"].strip() in known for row in val):
        notes.append(
            f"The chosen answers of {leaked} of {len(val)} rows in val are also chosen in train, word for word."
        )
    return Split(train, val, notes)


def _validation_sizes(prompts_of: Mapping[str, int], ratio: float) -> tuple[dict[str, int], list[str]]:
    """Return how many prompts of each category validate: largest remainder first, one of each stays to train on.

    Between equals the order of ``prompts_of`` decides, which is the order of the draw.
    """
    total = sum(prompts_of.values())
    wanted = min(max(total - int(ratio * total + 0.5), 1), total - 1)
    quota = {name: (1 - ratio) * n for name, n in prompts_of.items()}
    sizes = {name: min(int(quota[name] + 1e-9), n - 1) for name, n in prompts_of.items()}
    notes = [f"Category {name!r} has one prompt; it goes to train." for name, n in prompts_of.items() if n == 1]
    while sum(sizes.values()) < wanted:
        open_ = [name for name, n in prompts_of.items() if sizes[name] < n - 1]
        if not open_:
            break
        sizes[max(open_, key=lambda name: quota[name] - sizes[name])] += 1
    if not any(sizes.values()):
        drawn = next(iter(prompts_of))
        sizes[drawn] = 1
        notes = [f"Every category has one prompt; that of {drawn!r} was drawn for val, so that val is not empty."]
    elif (held := sum(sizes.values())) < wanted:
        notes.append(f"Val has {held} prompts where the ratio asks for {wanted}: each category keeps one to train on.")
    return sizes, notes
