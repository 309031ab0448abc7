"""A mistake in a recipe, told in one sentence: where, what was found, what was expected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import shorten
from typing import Any

from pydantic import BaseModel, ValidationError

from tiebreak.recipe.sections import Recipe
from tiebreak.registry import nearest

EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "string": "text",
    "bool": "true or false",
    "list": "a list",
    "dict": "keys with values",
    "model": "keys with values",
}


def first_mistake(error: ValidationError, raw: Mapping[str, Any]) -> str:
    """Return the first thing that is wrong with ``raw``."""
    mistake = error.errors()[0]
    keys = _place(mistake["loc"], raw)
    place = ".".join(keys)
    if mistake["type"] == "extra_forbidden":
        return f"there is no key {place!r}.{nearest(keys[-1], _keys_at(keys[:-1]))}"
    if mistake["type"] == "missing":
        return _missing([*map(str, mistake["loc"])], raw)
    found = "empty" if mistake["input"] is None else shorten(repr(mistake["input"]), 60)
    return f"{place} is {found}; {_expected(mistake)}."


def _missing(keys: list[str], raw: Mapping[str, Any]) -> str:
    place = ".".join(keys)
    if len(keys) == 3 and keys[0] == "train":
        others = [name for name, stage in raw["train"].items() if isinstance(stage, dict) and keys[2] in stage]
        if near := nearest(keys[1], others):
            return f"train.{keys[1]} has no {keys[2]}; give it one.{near}"
    return f"{place!r} is missing; give {place}=..., `tiebreak {keys[0]} --help` tells what it may be."


def _expected(mistake: Any) -> str:
    kind, known = str(mistake["type"]), mistake.get("ctx", {})
    bounds = {
        "greater_than_equal": "{ge} or more",
        "greater_than": "more than {gt}",
        "less_than_equal": "{le} or less",
        "less_than": "less than {lt}",
        "literal_error": "{expected}",
        "finite_number": "a finite number",
        "string_too_short": "text",
    }
    if kind in bounds:
        near = nearest(str(mistake["input"]), str(known["expected"]).split("'")[1::2]) if "expected" in known else ""
        return "expected " + bounds[kind].format(**known) + near.rstrip("?").replace(" Did you mean", "; did you mean")
    if kind == "value_error":
        return str(known["error"])
    return f"expected {EXPECTED.get(kind.split('_')[0], mistake['msg'])}"


def _place(loc: Sequence[Any], raw: Any) -> list[str]:
    """Return the keys of ``loc`` that stand in the recipe; pydantic adds the names of types it tried."""
    keys = []
    for part in loc:
        if (isinstance(raw, dict) and part in raw) or (isinstance(raw, list) and isinstance(part, int)):
            raw = raw[part]
            keys.append(str(part))
        else:
            break
    return keys or [str(part) for part in loc]


def _keys_at(keys: Sequence[str]) -> list[str]:
    model: Any = Recipe
    for key in keys:
        field = next((f for n, f in model.model_fields.items() if key in (n, f.alias)), None)
        if field is None:  # a stage's own name under train:
            continue
        kinds = [kind for kind in _kinds(field.annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not kinds:
            return []
        model = kinds[0]
    return [field.alias or name for name, field in model.model_fields.items()]


def _kinds(annotation: Any) -> list[Any]:
    parts = getattr(annotation, "__args__", ())
    return [kind for part in parts for kind in _kinds(part)] if parts else [annotation]
