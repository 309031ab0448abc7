"""The mapping file of the ``table`` format: which column is which field, in a small YAML that is checked when read.

Texts are Jinja templates over the columns (``{{ title }}: {{ text }}``); a file joined as ``first`` gives
``{{ first.text }}``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tiebreak.data.guards import KEEPABLE
from tiebreak.records import InputError
from tiebreak.registry import nearest

PLACES = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
WORDS = ("tie", "both_bad", "skip", "invalid", "none")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileShape(_Part):
    """How a file is laid out where its ending and first line do not tell."""

    read_as: Literal["", "json", "jsonl", "csv", "tsv", "parquet"] = ""
    columns: tuple[str, ...] = ()
    skip_lines: int = Field(default=0, ge=0)
    quotes: bool | None = None


class Join(FileShape):
    """A second file: its row whose ``key`` column equals the template ``on`` (read for each row of the main file)."""

    file: str
    key: str
    on: str


class PromptPart(_Part):
    """The prompt: templates for its texts and names of the columns kept as its fields."""

    text: str
    context: str = ""
    reference: str = ""
    group: str = ""
    fields: tuple[str, ...] = ()


class ResponsePart(_Part):
    """One response: templates for its text and who made it."""

    text: str
    maker: str = ""


class Votes(_Part):
    """Judgments of a row: one for each column in ``columns``, or a constant ``verdict``."""

    columns: tuple[str, ...] = ()
    values: dict[str, str] = {}
    verdict: str = ""
    by: str
    strength: str = ""
    probability: str = ""
    rationale: str = ""
    fields: tuple[str, ...] = ()

    @field_validator("columns", mode="before")
    @classmethod
    def _one_or_many(cls, given: Any) -> Any:
        return (given,) if isinstance(given, str) else given

    @model_validator(mode="after")
    def _one_way(self) -> Votes:
        if bool(self.columns) == bool(self.verdict):
            raise ValueError("give either 'columns' with 'values', or one 'verdict' for every row")
        if bool(self.columns) != bool(self.values):
            raise ValueError("'columns' and 'values' belong together: which column, and which verdict each value means")
        for word in (*self.values.values(), *([self.verdict] if self.verdict else [])):
            if word not in PLACES and word not in WORDS:
                words = (*PLACES[:2], *WORDS)
                raise ValueError(f"{word!r} is no verdict; there are {', '.join(words)}.{nearest(word, words)}")
        return self


class Mapping(FileShape):
    """A whole mapping file; ``docs/import.md`` describes every key."""

    source: str
    licence: str = ""
    order: Literal["shown", "unknown"]
    keep: tuple[str, ...] = ()
    join: dict[str, Join] = {}
    prompt: PromptPart
    responses: tuple[ResponsePart, ...] = Field(min_length=1)
    votes: tuple[Votes, ...] = ()

    @field_validator("keep")
    @classmethod
    def _known_guards(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        for name in given:
            if name not in KEEPABLE:
                raise ValueError(f"{name!r} cannot be kept; these can: {', '.join(KEEPABLE)}.{nearest(name, KEEPABLE)}")
        return given

    @model_validator(mode="after")
    def _places_exist(self) -> Mapping:
        for votes in self.votes:
            for word in (*votes.values.values(), votes.verdict):
                if word in PLACES and PLACES.index(word) >= len(self.responses):
                    raise ValueError(f"a vote names the {word} response and there are {len(self.responses)}")
        return self


def cell_key(value: object) -> str:
    """Return a cell as the text that ``values`` of a mapping is looked up by.

    1, 1.0 and "1" are the same vote; null is the empty text; truth values are ``true`` and ``false``.
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value)


def load_mapping(path: Path) -> Mapping:
    """Read the mapping file at ``path``.

    Raises:
        InputError: no such file, broken YAML, an unknown key (with the nearest name) or a wrong value.
    """
    if not path.is_file():
        raise InputError(f"There is no mapping file at {path}; write one (see docs/import.md) or correct the path.")
    try:
        # BaseLoader keeps every scalar as written: YAML's own rules turn the keys on, yes and 01 into True, True and 1.
        told = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        said = " ".join(str(error).split())
        raise InputError(
            f"The mapping {path} is not YAML: {said}; quote texts that contain {{{{ or a colon."
        ) from error
    if not isinstance(told, dict):
        raise InputError(
            f"The mapping {path} holds a {type(told).__name__}; expected keys such as prompt and responses."
        )
    try:
        return Mapping.model_validate(told)
    except ValidationError as error:
        raise InputError(f"The mapping {path}: {_first_mistake(error)}") from error


def _first_mistake(error: ValidationError) -> str:
    mistakes = sorted(error.errors(), key=lambda mistake: mistake["type"] != "extra_forbidden")
    mistake = mistakes[0]
    place = ".".join(str(part) for part in mistake["loc"]) or "the file"
    if mistake["type"] == "extra_forbidden":
        known = _known_keys(mistake["loc"][:-1])
        return f"unknown key {place!r}; there are {', '.join(known)}.{nearest(str(mistake['loc'][-1]), known)}"
    if mistake["type"] == "missing":
        return f"the key {place!r} is missing; see docs/import.md."
    if mistake["type"] == "value_error":
        return f"{place}: {mistake['msg'].removeprefix('Value error, ')}"
    return f"{place}: {mistake['msg']}, found {mistake['input']!r}."


def _known_keys(place: tuple[int | str, ...]) -> list[str]:
    parts: dict[str, type[BaseModel]] = {"join": Join, "prompt": PromptPart, "responses": ResponsePart, "votes": Votes}
    return list(parts[str(place[0])].model_fields if place else Mapping.model_fields)
