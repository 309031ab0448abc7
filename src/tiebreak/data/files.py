"""Rows out of files: JSON, JSONL, CSV, TSV and Parquet, packed with gzip or not.

A reader sees mappings and never a file. Lines are split at line feeds only and cells are never stripped, because a
leading space in a summary or a trailing one in a prompt moves a token boundary. A ``.tsv`` is read without quotes:
web texts contain stray ones, and a quote-aware parser then swallows whole rows.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from tiebreak.records import InputError
from tiebreak.registry import nearest

KINDS = ("json", "jsonl", "csv", "tsv", "parquet")
_ENDINGS = {".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}
_PARQUET_BATCH = 2_000


class RawRow(NamedTuple):
    """One row as found: where it stands, its cells, and what is wrong with it when it has none."""

    where: str
    cells: Mapping[str, Any]
    problem: str = ""


def read_rows(
    path: Path,
    *,
    kind: str = "",
    columns: Sequence[str] = (),
    skip_lines: int = 0,
    quotes: bool | None = None,
) -> Iterator[RawRow]:
    """Yield the rows of ``path`` in file order, in bounded memory except for a JSON array, which is read whole.

    Args:
        path: the file; ``.gz`` at its end unpacks it.
        kind: one of ``KINDS`` where the ending does not tell.
        columns: names for the columns of a CSV or TSV without a header line.
        skip_lines: lines before the header (or before the first row) of a CSV or TSV.
        quotes: whether double quotes wrap cells; by default they do in CSV and do not in TSV.

    Raises:
        InputError: no such file, unknown ending, broken JSON, not UTF-8, or pyarrow is missing for Parquet.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise InputError(f"{path} {what}; give the path of a data file.{nearest(path.name, beside)}")
    kind = kind or _kind(path)
    if kind == "parquet":
        yield from _parquet(path)
        return
    try:
        with _open(path) as stream:
            if kind == "json":
                yield from _json(stream, path)
            elif kind == "jsonl":
                yield from _jsonl(stream, path)
            else:
                quoted = kind == "csv" if quotes is None else quotes
                yield from _delimited(stream, path, "," if kind == "csv" else "\t", columns, skip_lines, quoted)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); convert it first."
        ) from error
    except (gzip.BadGzipFile, EOFError) as error:
        raise InputError(f"{path} ends in .gz but cannot be unpacked ({error}); fetch it again.") from error


def _kind(path: Path) -> str:
    endings = [ending.lower() for ending in path.suffixes]
    if endings and endings[-1] == ".gz":
        endings.pop()
    if not endings or endings[-1] not in _ENDINGS:
        raise InputError(
            f"{path} has no ending that tells its kind; expected {', '.join(_ENDINGS)} (with or without .gz); "
            "rename it, or name the kind as 'read_as' in a mapping."
        )
    return _ENDINGS[endings[-1]]


def _open(path: Path) -> TextIO:
    if path.suffix.lower() == ".gz":
        return io.TextIOWrapper(gzip.open(path), encoding="utf-8-sig", newline="\n")
    return open(path, encoding="utf-8-sig", newline="\n")


def _object(value: object, where: str) -> RawRow:
    if isinstance(value, dict):
        return RawRow(where, value)
    return RawRow(where, {"": value}, f"the row is a {type(value).__name__}, not an object with named columns")


def _constant(name: str) -> float | None:
    """Read NaN as null, which is what it stands for in such files; a database refuses it in JSON."""
    return None if name == "NaN" else float(name)


def _json(stream: TextIO, path: Path) -> Iterator[RawRow]:
    try:
        rows = json.load(stream, parse_constant=_constant)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}:{error.lineno}: broken JSON ({error.msg}, column {error.colno}); correct it there, "
            "or name the file .jsonl if it holds one object a line."
        ) from error
    if not isinstance(rows, list):
        raise InputError(f"{path} holds one {type(rows).__name__}; expected a JSON array of rows.")
    for number, row in enumerate(rows, start=1):
        yield _object(row, f"{path}:row {number}")


def _jsonl(stream: TextIO, path: Path) -> Iterator[RawRow]:
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, parse_constant=_constant)
        except json.JSONDecodeError as error:
            raise InputError(
                f"{path}:{number}: broken JSON ({error.msg}, column {error.colno}); correct or delete that line."
            ) from error
        yield _object(row, f"{path}:{number}")


def _delimited(
    stream: TextIO, path: Path, delimiter: str, columns: Sequence[str], skip_lines: int, quoted: bool
) -> Iterator[RawRow]:
    rows = _quoted(stream, delimiter, path, skip_lines) if quoted else _unquoted(stream, delimiter, skip_lines)
    header = list(columns)
    if not header:
        _, header = next(rows, (0, []))
        if twice := sorted({name for name in header if header.count(name) > 1}):
            raise InputError(f"{path} has two columns called {twice[0]!r}; name them by 'columns' in the mapping.")
    for number, cells in rows:
        where = f"{path}:{number}"
        if len(cells) != len(header):
            problem = f"{len(cells)} cells where the header has {len(header)}"
            yield RawRow(where, {str(i): cell for i, cell in enumerate(cells)}, problem)
        else:
            yield RawRow(where, dict(zip(header, cells, strict=True)))


def _unquoted(stream: TextIO, delimiter: str, skip_lines: int) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(islice(stream, skip_lines, None), start=skip_lines + 1):
        text = line.removesuffix("\n").removesuffix("\r")
        if text:
            yield number, text.split(delimiter)


def _quoted(stream: TextIO, delimiter: str, path: Path, skip_lines: int) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(sys.maxsize)
    for _ in islice(stream, skip_lines):
        pass
    reader = csv.reader(stream, delimiter=delimiter, strict=True)
    start = 1
    try:
        for cells in reader:
            if cells:
                yield skip_lines + start, cells
            start = reader.line_num + 1
    except csv.Error as error:
        raise InputError(
            f"{path}:{skip_lines + start}: a quoted cell is broken ({error}); correct it, "
            "or set 'quotes: false' in the mapping."
        ) from error


def _parquet(path: Path) -> Iterator[RawRow]:
    try:
        import pyarrow.parquet as pq
    except ModuleNotFoundError as error:
        raise InputError(f"{path}: Parquet needs pyarrow: pip install 'tiebreak[hub]'.") from error
    import pyarrow as pa

    try:
        with pq.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=_PARQUET_BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield RawRow(f"{path}:row {number}", {name: _plain(cell) for name, cell in row.items()})
    except pa.ArrowInvalid as error:
        raise InputError(f"{path} is not a readable Parquet file ({error}); fetch it again.") from error


def _plain(cell: Any) -> Any:
    """Return a Parquet cell as JSON can hold it: dates in ISO form, decimals as text, bytes in hex, NaN as null."""
    if isinstance(cell, dict):
        return {name: _plain(value) for name, value in cell.items()}
    if isinstance(cell, list | tuple):
        return [_plain(value) for value in cell]
    if isinstance(cell, bytes):
        return cell.hex()
    if cell is None or isinstance(cell, str | bool | int):
        return cell
    if isinstance(cell, float):
        return None if cell != cell else cell
    return cell.isoformat() if hasattr(cell, "isoformat") else str(cell)
