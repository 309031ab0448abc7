"""Prompts alone, one on each line of a text file: what a model is to answer before anybody judges."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tiebreak.data import sets
from tiebreak.data.table import Entry, source_name
from tiebreak.records import Prompt


def read(path: Path, *, source: str = "", licence: str = "") -> Iterator[Entry]:
    """Yield an entry without answers for each line that is not blank.

    Spaces at the ends of a line are part of the prompt: one behind ``Answer:`` decides where the first token of an
    answer begins.

    Raises:
        InputError: no such file, not UTF-8, or no line with a prompt.
    """
    path = Path(path)
    for number, text in enumerate(sets.prompts(path), 1):
        prompt = Prompt(text=text, source=source or source_name(path), licence=licence)
        yield Entry(f"{path}: prompt {number}", prompt, (), ())
