"""A JSON array out of a file, with what a plain reader forgets: the line of each element and keys given twice."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from tiebreak.records import InputError


class Parsed(NamedTuple):
    """The elements of an array, the line on which each begins, and the keys that an object of each names twice."""

    rows: list[Any]
    lines: list[int]
    repeated: list[tuple[str, ...]]


class _Object(dict[str, Any]):
    """A JSON object that remembers the keys it was given twice."""

    repeated: tuple[str, ...] = ()


def parse(path: Path) -> Parsed:
    """Return the elements of the JSON array in ``path``, whatever they are.

    Raises:
        InputError: the file cannot be read, or is not one JSON array.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"{path} {what}; give the path of a JSON file with an array of preferences.")
    try:
        text = path.read_bytes().decode("utf-8-sig")
        found = json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant)
        if not isinstance(found, list):
            raise InputError(f"{path} holds {kind(found)}; expected an array of rows, so put [ and ] around them.")
        return Parsed([_plain(row) for row in found], _lines(text, len(found)), [_repeated(row) for row in found])
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason}, byte {error.start}); convert it first.") from None
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}: line {error.lineno}, column {error.colno}: broken JSON ({error.msg}); correct it there."
        ) from None
    except RecursionError:
        raise InputError(f"{path} nests its brackets too deeply to be a set of preferences; check the file.") from None
    except ValueError as error:
        raise InputError(f"{path} holds a number that JSON cannot hold ({error}); write it as text or null.") from None


def kind(value: object) -> str:
    """Return what a JSON value is, in words for a message."""
    names = ((dict, "an object"), (list, "an array"), (str, "a text"), (bool, "true or false"), (type(None), "null"))
    return next((name for type_, name in names if isinstance(value, type_)), "a number")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = _Object(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        found.repeated = tuple(key for key in found if keys.count(key) > 1)
    return found


def _repeated(value: object) -> tuple[str, ...]:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    own = value.repeated if isinstance(value, _Object) else ()
    return tuple(dict.fromkeys([*own, *(key for item in inside for key in _repeated(item))]))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _no_constant(name: str) -> float:
    raise ValueError(name)


def _lines(text: str, n: int) -> list[int]:
    """Return the line on which each of the ``n`` elements of the array in ``text`` begins; the JSON is known good."""
    decoder, between = json.JSONDecoder(), re.compile(r"[\s,]*")
    place = text.index("[") + 1
    line, found = text.count("\n", 0, place) + 1, []
    for _ in range(n):
        match = between.match(text, place)
        start = match.end() if match else place
        _, end = decoder.raw_decode(text, start)
        line += text.count("\n", place, start)
        found.append(line)
        line += text.count("\n", start, end)
        place = end
    return found
