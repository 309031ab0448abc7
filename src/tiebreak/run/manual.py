"""What a section may say, for ``tiebreak SECTION --help``: read off the recipe's models and the tables."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from tiebreak.curate.table import STEPS
from tiebreak.data.formats import FORMATS
from tiebreak.judge.table import JUDGES
from tiebreak.recipe import Judge, Recipe
from tiebreak.registry import Row
from tiebreak.train.methods import METHODS

WIDTH = 100
TABLES = {"import": ("format", FORMATS), "judge": ("by", JUDGES), "train": ("method", METHODS)}


def manual(section: str) -> str:
    """Return the keys of a section with their defaults and meaning, and the knobs of the rows it can name."""
    lines = [f"Keys, given as KEY=VALUE or under {section}: in a recipe", ""]
    if section == "curate":
        lines = ["Steps, in the order of the list under curate:", ""]
        return "\n".join([*lines, *(line for row in STEPS for line in _row(row, row.name))])
    model = _model(section)
    prefix = "NAME." if section == "train" else ""
    lines += _fields(model, prefix)
    if section in TABLES:
        key, table = TABLES[section]
        for row in table:
            lines += ["", *_row(row, f"{prefix}{key}={row.name}")]
    return "\n".join(lines)


def _model(section: str) -> type[BaseModel]:
    found = _inner(next(f for name, f in Recipe.model_fields.items() if section in (name, f.alias)))
    assert found is not None
    return found


def _inner(field: FieldInfo) -> type[BaseModel] | None:
    """Return the model of a section that stands in ``field``, if one does."""
    kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _fields(model: type[BaseModel], prefix: str) -> list[str]:
    """Return the lines of a section's keys, those of sections inside it after them (a judge has a page of its own)."""
    names: Mapping[str, FieldInfo] = model.model_fields
    lines = [line for name, field in names.items() for line in _line(prefix + name, field)]
    for name, field in names.items():
        inner = _inner(field)
        if inner is not None and inner is not Judge:
            lines += _fields(inner, f"{prefix}{name}.")
    return lines


def _line(name: str, field: FieldInfo) -> Iterable[str]:
    if field.is_required() or isinstance(field.default, BaseModel):
        value = "needed" if field.is_required() else "its keys below"
    elif field.default is None or field.default == "":
        value = ""
    else:
        value = f"default {_shown(field.default)}"
    kinds = [field.annotation, *getattr(field.annotation, "__args__", ())]
    words = [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
    told = (field.description or "") + (f": {', '.join(words)}" if words else "")
    text = f"{told}; {value}" if value else told
    return textwrap.wrap(f"  {name:<24} {text}", WIDTH, subsequent_indent=" " * 27)


def _row(row: Row, name: str) -> list[str]:
    knobs = ", ".join(f"{key}={_shown(value)}" for key, value in row.settle({}, where=row.name).items())
    lines = textwrap.wrap(f"  {name:<24} {row.does}", WIDTH, subsequent_indent=" " * 27)
    return lines + textwrap.wrap(knobs, WIDTH, initial_indent=" " * 27, subsequent_indent=" " * 27)


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(value) if value != "" else "''"
