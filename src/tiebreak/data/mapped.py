"""The ``table`` format: any table of votes, read by a mapping file alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from collections.abc import Mapping as Cells
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import StrictUndefined, TemplateSyntaxError, UndefinedError, meta
from jinja2.sandbox import SandboxedEnvironment

from tiebreak.data.files import RawRow, read_rows
from tiebreak.data.mapping import PLACES, Join, Mapping, PromptPart, Votes, cell_key, load_mapping
from tiebreak.data.table import Entry, Refused, RowProblem, excerpt
from tiebreak.records import InputError, Judgment, Prompt, Response, Verdict
from tiebreak.registry import nearest

Render = Callable[[Cells[str, Any]], str]


def read(path: Path, *, mapping: str = "") -> Iterator[Entry | Refused]:
    """Yield the rows of ``path`` as the mapping file ``mapping`` tells.

    Numbers and truth values in a template are written as Python writes them (``2``, ``True``); null refuses the row.
    Files to join are looked for beside ``path`` and held in memory.

    Raises:
        InputError: no mapping, a mistake in it, a column that is not there (with those that are), or a broken file.
    """
    path = Path(path)
    if not mapping:
        raise InputError("format=table needs mapping=FILE.yaml, which says what the columns are; see docs/import.md.")
    told = load_mapping(Path(mapping))
    build = _builder(told, mapping)
    joins = {name: _joined(path.parent / join.file, join, mapping) for name, join in told.join.items()}
    ons = {name: _template(join.on, f"{mapping}: join.{name}.on") for name, join in told.join.items()}
    checked = False
    for where, row, problem in _rows(path, told):
        try:
            if problem:
                raise RowProblem(problem)
            if not checked:
                _check_columns(told, row, joins, mapping)
                checked = True
            cells = dict(row)
            for name, found in joins.items():
                key = ons[name](row)
                if key not in found:
                    raise RowProblem(f"no row in {told.join[name].file} whose {told.join[name].key} is that of {name}")
                cells[name] = found[key]
            yield build(where, cells)
        except RowProblem as refusal:
            yield Refused(where, str(refusal), excerpt(row))


def _rows(path: Path, told: Mapping | Join) -> Iterator[RawRow]:
    return read_rows(path, kind=told.read_as, columns=told.columns, skip_lines=told.skip_lines, quotes=told.quotes)


def _joined(path: Path, join: Join, mapping: str) -> dict[str, Cells[str, Any]]:
    found: dict[str, Cells[str, Any]] = {}
    for where, row, problem in _rows(path, join):
        if problem:
            raise InputError(f"{where}: {problem}; correct the row, since others may point to it.")
        if join.key not in row:
            raise _no_column(f"{mapping}: join key", join.key, row)
        key = cell_key(row[join.key])
        if key in found:
            raise InputError(
                f"{where}: {join.key} {key!r} stands there twice; a joined file needs one row for each key."
            )
        found[key] = row
    return found


class _NullCell(Exception):
    """A null met by a template."""


def _as_text(value: object) -> str:
    if value is None:
        raise _NullCell
    return value if isinstance(value, str) else str(value)


_JINJA = SandboxedEnvironment(
    undefined=StrictUndefined, keep_trailing_newline=True, newline_sequence="\n", finalize=_as_text, autoescape=False
)


_COLUMN = re.compile(r"\{\{\s*([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)\s*\}\}")


def _template(text: str, what: str) -> Render:
    """Return the renderer of one template; text with plain ``{{ column }}`` only goes without Jinja, for speed."""
    try:
        _JINJA.parse(text)
    except TemplateSyntaxError as error:
        raise InputError(
            f"{what} {text!r} is not a template: {error.message}; write columns as {{{{ name }}}}."
        ) from error
    parts = _COLUMN.split(text)
    plain = not any(mark in part for part in parts[::2] for mark in ("{{", "{%", "{#"))
    paths = [part.split(".") for part in parts[1::2]]
    literals = parts[::2]
    compiled = _JINJA.from_string(text)

    def joined(cells: Cells[str, Any]) -> str:
        pieces = [literals[0]]
        for path, literal in zip(paths, literals[1:], strict=True):
            value: Any = cells
            for name in path:
                value = value[name]
            pieces += (_as_text(value), literal)
        return "".join(pieces)

    def render(cells: Cells[str, Any]) -> str:
        try:
            return joined(cells) if plain else compiled.render(cells)
        except (UndefinedError, KeyError) as error:
            missing = f"{error.args[0]!r} is undefined" if isinstance(error, KeyError) else error.message
            raise RowProblem(f"missing column: {missing}") from error
        except _NullCell as error:
            raise RowProblem(f"null in {what.rpartition(': ')[2]}") from error

    return render


def _check_columns(told: Mapping, row: Cells[str, Any], joins: Cells[str, Cells[str, Any]], mapping: str) -> None:
    """Compare every column that the mapping names with those of the first row, before any record is made."""
    texts: list[tuple[str, str]] = [(f"prompt.{key}", getattr(told.prompt, key)) for key in _PROMPT_TEXTS]
    texts += [(f"responses.{i}", text) for i, part in enumerate(told.responses) for text in (part.text, part.maker)]
    texts += [(f"votes.{i}", text) for i, votes in enumerate(told.votes) for text in _vote_texts(votes)]
    texts += [(f"join.{name}.on", join.on) for name, join in told.join.items()]
    named = [("prompt.fields", name) for name in told.prompt.fields]
    named += [(f"votes.{i}", name) for i, votes in enumerate(told.votes) for name in (*votes.columns, *votes.fields)]
    for place, text in texts:
        if "is defined" not in text:
            named += [(place, name) for name in sorted(meta.find_undeclared_variables(_JINJA.parse(text)))]
    for place, name in named:
        vote_column = name == "column" and place.startswith("votes")
        if name not in row and name not in joins and not vote_column:
            raise _no_column(f"{mapping}: {place}", name, [*row, *joins])


_PROMPT_TEXTS = ("text", "context", "reference", "group")


def _vote_texts(votes: Votes) -> tuple[str, ...]:
    return (votes.by, votes.strength, votes.probability, votes.rationale)


def _no_column(what: str, name: str, there: Cells[str, Any] | list[str]) -> InputError:
    names = [str(column) for column in there]
    return InputError(
        f"{what} names the column {name!r}, which is not there; there are {', '.join(names)}.{nearest(name, names)}"
    )


class _Ballot(NamedTuple):
    votes: Votes
    by: Render
    strength: Render | None
    probability: Render | None
    rationale: Render | None


def _builder(told: Mapping, mapping: str) -> Callable[[str, dict[str, Any]], Entry]:
    """Compile every template once and return the function that turns a row into its entry."""

    def compiled(text: str, place: str) -> Render | None:
        return _template(text, f"{mapping}: {place}") if text else None

    def needed(text: str, place: str) -> Render:
        return _template(text, f"{mapping}: {place}")

    texts = {key: compiled(getattr(told.prompt, key), f"prompt.{key}") for key in _PROMPT_TEXTS}
    sides = [
        (needed(part.text, f"responses.{i}.text"), needed(part.maker, f"responses.{i}.maker"))
        for i, part in enumerate(told.responses)
    ]
    ballots = [
        _Ballot(
            votes,
            needed(votes.by, f"votes.{i}.by"),
            compiled(votes.strength, f"votes.{i}.strength"),
            compiled(votes.probability, f"votes.{i}.probability"),
            compiled(votes.rationale, f"votes.{i}.rationale"),
        )
        for i, votes in enumerate(told.votes)
    ]

    def build(where: str, cells: dict[str, Any]) -> Entry:
        prompt = _prompt(told, {key: render(cells) for key, render in texts.items() if render}, cells)
        responses = tuple(Response(prompt_id=prompt.id, text=text(cells), maker=maker(cells)) for text, maker in sides)
        slots = tuple(response.id for response in responses)
        judgments = tuple(
            judgment
            for ballot in ballots
            for judgment in _judgments(ballot, cells, prompt.id, slots, where, order_known=told.order == "shown")
        )
        return Entry(where, prompt, responses, judgments, (), told.keep)

    return build


def _prompt(told: Mapping, texts: dict[str, str], cells: dict[str, Any]) -> Prompt:
    part: PromptPart = told.prompt
    return Prompt(
        text=texts["text"],
        context=texts.get("context", ""),
        reference=texts.get("reference"),
        fields=_kept(part.fields, cells),
        group=texts.get("group", ""),
        source=told.source,
        licence=told.licence,
    )


def _kept(names: tuple[str, ...], cells: dict[str, Any]) -> dict[str, Any]:
    return {name: cells[name] for name in names if name in cells}


def _judgments(
    ballot: _Ballot, cells: dict[str, Any], prompt_id: str, slots: tuple[str, ...], where: str, *, order_known: bool
) -> Iterator[Judgment]:
    votes = ballot.votes
    for column in votes.columns or ("",):
        word = _word(votes, column, cells) if column else votes.verdict
        if word == "none":
            continue
        seen = cells | {"column": column} if column else cells
        probability = _number(ballot.probability, seen, "probability", where)
        if probability is not None and len(slots) != 2:
            raise RowProblem("a probability belongs to two responses")
        winner = PLACES.index(word) if word in PLACES else None
        verdict: Verdict = "slot" if winner is not None else word  # type: ignore[assignment]
        yield Judgment(
            prompt_id=prompt_id,
            slots=slots,
            verdict=verdict,
            winner=winner,
            by=ballot.by(seen),
            order_known=order_known,
            strength=_number(ballot.strength, seen, "strength", where),
            probability=probability,
            rationale=ballot.rationale(seen) if ballot.rationale else "",
            fields=_kept(votes.fields, cells),
        )


def _word(votes: Votes, column: str, cells: dict[str, Any]) -> str:
    if column not in cells:
        raise RowProblem(f"missing column: {column!r} is undefined")
    key = cell_key(cells[column])
    if key not in votes.values:
        raise RowProblem(f"the vote {key!r} in {column} is none of {', '.join(map(repr, votes.values))}")
    return votes.values[key]


def _number(render: Render | None, cells: dict[str, Any], what: str, where: str) -> float | None:
    if render is None:
        return None
    text = render(cells)
    if not text.strip():
        return None
    try:
        number = float(text)
    except ValueError as error:
        raise InputError(f"{where}: {what} is {excerpt(text)!r}; expected a number from 0 to 1 or nothing.") from error
    if not 0.0 <= number <= 1.0:
        raise RowProblem(f"{what} lies outside 0 to 1")
    return number
