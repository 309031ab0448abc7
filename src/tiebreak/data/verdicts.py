"""Published verdicts of judges: LLMBar in both orders, and reviews that score two answers.

What a judge said is kept as it said it: a reply nobody could read is ``invalid``, equal scores are a tie, and answers
that were scored one at a time have no order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tiebreak.data.files import read_rows
from tiebreak.data.table import Entry, Refused, RowProblem, excerpt, source_name, text_cell, wrong_type
from tiebreak.records import InputError, Judgment, Prompt, Response

EXPERTS = "human:experts"
"""Who gave the labels of LLMBar: its authors, who kept the pairs they agree on."""

UNREAD = "no verdict could be read from the reply"
UNSCORED = "no score could be read for an answer"


class _Pair(NamedTuple):
    """One pair of LLMBar: its records and the label, as the place (0 or 1) of the better output."""

    prompt: Prompt
    first: Response
    second: Response
    label: int


class _Said(NamedTuple):
    """What one judge said of one pair: an output's number as text in each order, or two scores; what it replied."""

    by: str
    subset: str
    item: int
    winners: tuple[str, str] | None
    scores: tuple[float | None, float | None] | None
    raws: tuple[str, str] = ("", "")


def read_llmbar(path: Path, *, source: str = "llmbar", licence: str = "MIT") -> Iterator[Entry | Refused]:
    """Yield LLMBar's pairs with what a judge said of them (Zeng et al. 2023, arXiv 2310.07641).

    ``path`` is a ``result.json`` of the LLMBar repository, whose folders tell subset, judge and strategy
    (``.../Adversarial/Manual/evaluators/GPT-4/CoT/result.json``), or a table of all of them: a CSV with ``subset``,
    ``item`` (from 0), ``judge``, ``strategy``, ``human_label``, ``winner_order_ab``, ``winner_order_ba`` (both as the
    number of an output, empty where nothing was readable), ``score_1``, ``score_2``, beside the pairs as
    ``SUBSET.json``.

    A verdict in each order is a judgment each, by ``model:JUDGE/STRATEGY``, its slots as shown. A ``Rating`` strategy
    scored each output alone, so it is one judgment without an order: ratings, and the verdict by comparing them. The
    published table instead writes opposite winners in "both orders" for equal or unreadable scores. The label is a
    judgment by ``human:experts``, of unknown order, once for each pair. Subset and item are in the verdicts' fields.
    """
    path = Path(path)
    read = _results if path.suffix.lower() == ".json" else _table
    labelled: set[tuple[str, int]] = set()
    for where, row, found in read(path, source, licence):
        if isinstance(found, str):
            yield Refused(where, found, excerpt(row))
            continue
        pair, said = found
        judgments = list(_verdicts(pair, said))
        if (said.subset, said.item) not in labelled:
            labelled.add((said.subset, said.item))
            judgments.insert(0, _label(pair))
        yield Entry(where, pair.prompt, (pair.first, pair.second), tuple(judgments))


_Found = Iterator[tuple[str, Mapping[str, Any], tuple[_Pair, _Said] | str]]


def _table(path: Path, source: str, licence: str) -> _Found:
    """Each row of the CSV with its pair, or the reason why it has none."""
    subsets: dict[str, list[_Pair | str]] = {}
    for where, row, problem in read_rows(path, kind="csv"):
        try:
            if problem:
                raise RowProblem(problem)
            subset = text_cell(row, "subset", where)
            if subset not in subsets:
                beside = path.parent / f"{subset.replace('/', '-')}.json"
                subsets[subset] = [_pair(cells, at, source, licence) for at, cells, _ in read_rows(beside)]
            item = text_cell(row, "item", where)
            if not item.isdecimal() or int(item) >= len(subsets[subset]):
                raise RowProblem(f"item is not one of the pairs of {subset}, which count from 0")
            pair = subsets[subset][int(item)]
            if isinstance(pair, str):
                raise RowProblem(f"its pair: {pair}")
            if text_cell(row, "human_label", where) != str(pair.label + 1):
                raise RowProblem("human_label is not the label of its pair")
            yield where, row, (pair, _row_said(row, subset, int(item), where))
        except RowProblem as refusal:
            yield where, row, str(refusal)


def _row_said(row: Mapping[str, Any], subset: str, item: int, where: str) -> _Said:
    strategy = text_cell(row, "strategy", where)
    by = f"model:{text_cell(row, 'judge', where)}/{strategy}"
    if strategy.startswith("Rating"):
        scores = (_score(row.get("score_1")), _score(row.get("score_2")))
        return _Said(by, subset, item, None, scores)
    winners = (text_cell(row, "winner_order_ab", where), text_cell(row, "winner_order_ba", where))
    return _Said(by, subset, item, winners, None)


def _results(path: Path, source: str, licence: str) -> _Found:
    """Each row of a ``result.json`` with its pair, or the reason why it has none."""
    parts = path.resolve().parts
    if "evaluators" not in parts or len(parts) < parts.index("evaluators") + 4:
        raise InputError(
            f"{path} does not lie in SUBSET/evaluators/JUDGE/STRATEGY, which tells who judged; "
            "keep the folders of the LLMBar repository."
        )
    at = parts.index("evaluators")
    subset = "/".join(parts[at - 2 : at] if parts[at - 2] == "Adversarial" else parts[at - 1 : at])
    by = f"model:{parts[at + 1]}/{parts[at + 2]}"
    for item, (where, row, problem) in enumerate(read_rows(path)):
        pair = problem or _pair(row, where, source, licence)
        results = row.get("results")
        last = results[-1] if isinstance(results, list) and results else None
        if isinstance(pair, str):
            yield where, row, pair
        elif not isinstance(last, Mapping):
            yield where, row, "missing results"
        elif "score_1" in last:
            raws = (_reply(last.get("score_1")), _reply(last.get("score_2")))
            yield where, row, (pair, _Said(by, subset, item, None, (_score(raws[0]), _score(raws[1])), raws))
        else:
            orders = [last.get(f"swap = {swap}") or {} for swap in (False, True)]
            said = tuple(str(order.get("winner") or "") for order in orders)
            raws = (_reply(orders[0].get("completion")), _reply(orders[1].get("completion")))
            yield where, row, (pair, _Said(by, subset, item, (said[0], said[1]), None, raws))


def _reply(value: object) -> str:
    """The reply of ``[reply, why it ended]``."""
    return str(value[0]) if isinstance(value, list) and value else ""


def _score(value: object) -> float | None:
    """A whole number as the judge wrote it, or None where it wrote anything else."""
    try:
        return float(int(str(value)))
    except ValueError:
        return None


def _pair(row: Mapping[str, Any], where: str, source: str, licence: str) -> _Pair | str:
    """The records of one pair, or the reason why there are none."""
    try:
        prompt = Prompt(text=text_cell(row, "input", where), source=source, licence=licence)
        first, second = (
            Response(prompt_id=prompt.id, text=text_cell(row, name, where)) for name in ("output_1", "output_2")
        )
    except RowProblem as refusal:
        return str(refusal)
    label = row.get("label")
    return _Pair(prompt, first, second, int(label) - 1) if label in (1, 2) else "label is neither 1 nor 2"


def _label(pair: _Pair) -> Judgment:
    slots = (pair.first.id, pair.second.id)
    return Judgment(
        prompt_id=pair.prompt.id, slots=slots, verdict="slot", winner=pair.label, by=EXPERTS, order_known=False
    )


def _verdicts(pair: _Pair, said: _Said) -> Iterator[Judgment]:
    """A judgment for each order shown, or one for the two scores."""
    slots = (pair.first.id, pair.second.id)
    fields = {"subset": said.subset, "item": said.item}
    if said.winners is None:
        raw = "\n".join(said.raws).strip()
        yield _scored(pair.prompt.id, slots, said.scores, by=said.by, fields=fields, raw=raw, order_known=False)
        return
    for swapped, (winner, raw) in enumerate(zip(said.winners, said.raws, strict=True)):
        read = winner in ("1", "2")
        yield Judgment(
            prompt_id=pair.prompt.id,
            slots=slots[::-1] if swapped else slots,
            verdict="slot" if read else "invalid",
            winner=(int(winner) - 1) ^ swapped if read else None,
            by=said.by,
            raw=raw,
            fields=fields if read else fields | {"why": UNREAD},
        )


def _scored(
    prompt_id: str,
    slots: tuple[str, str],
    scores: tuple[float | None, float | None] | None,
    *,
    by: str,
    fields: Mapping[str, Any],
    raw: str = "",
    rationale: str = "",
    order_known: bool = True,
) -> Judgment:
    """The judgment of a scored pair: the higher score wins, equal ones tie, a missing one makes it unreadable."""
    first, second = scores or (None, None)
    unread = first is None or second is None
    tie = first == second
    return Judgment(
        prompt_id=prompt_id,
        slots=slots,
        verdict="invalid" if unread else "tie" if tie else "slot",
        winner=None if first is None or second is None or tie else int(second > first),
        by=by,
        order_known=order_known,
        ratings={"score": [first, second]},
        rationale=rationale,
        raw=raw,
        fields={**fields, "why": UNSCORED} if unread else fields,
    )


def read_reviews(
    path: Path,
    *,
    source: str = "",
    licence: str = "",
    by: str = "",
    questions: str = "question.jsonl",
    answers: str = "answer*.jsonl",
) -> Iterator[Entry | Refused]:
    """Yield a judge's reviews of two answers to a question, with a score for each, as FastChat wrote them.

    A review has ``question_id``, ``answer1_id``, ``answer2_id`` (shown first and second), ``score`` (two numbers;
    a negative one says that none could be read), ``text`` and ``reviewer_id``. The scores are kept as
    ``ratings["score"]``; the higher one wins and equal ones tie. The first line of the text is taken off the
    rationale where it is the scores, and the whole reply is in ``raw``.

    Args:
        path: the reviews, JSONL.
        source: name of the source; the file's name without endings when empty.
        licence: licence of the texts.
        by: who judged; ``model:REVIEWER_ID`` when empty.
        questions: the questions (``question_id``, ``text``, ``category``), from the folder of ``path``.
        answers: a pattern for the files of answers (``answer_id``, ``question_id``, ``model_id``, ``text``).

    Raises:
        InputError: no such files, an id that stands twice, or a column of the wrong type.
    """
    path = Path(path)
    source = source or source_name(path)
    files = sorted(path.parent.glob(answers))
    if not files:
        raise InputError(f"No file in {path.parent} is called {answers}; name the files of answers as answers=PATTERN.")
    asked = _keyed([path.parent / questions], "question_id")
    given = _keyed(files, "answer_id")
    for where, row, problem in read_rows(path):
        try:
            if problem:
                raise RowProblem(problem)
            yield _review(row, where, asked, given, source, licence, by)
        except RowProblem as refusal:
            yield Refused(where, str(refusal), excerpt(row))


def _keyed(files: Iterable[Path], key: str) -> dict[Any, Mapping[str, Any]]:
    """All rows of ``files`` by their ``key``."""
    found: dict[Any, Mapping[str, Any]] = {}
    for path in files:
        for where, row, problem in read_rows(path):
            if problem or not isinstance(row.get(key), int | str):
                raise InputError(f"{where}: {problem or f'there is no {key}'}; correct the row, others point to it.")
            if row[key] in found:
                raise InputError(f"{where}: {key} {row[key]!r} stands there twice; ids must be unique.")
            found[row[key]] = row
    return found


def _review(
    row: Mapping[str, Any],
    where: str,
    asked: Mapping[Any, Mapping[str, Any]],
    given: Mapping[Any, Mapping[str, Any]],
    source: str,
    licence: str,
    by: str,
) -> Entry:
    number, sides = row.get("question_id"), (row.get("answer1_id"), row.get("answer2_id"))
    if number not in asked:
        raise RowProblem("no question has its question_id")
    if not all(side in given and given[side].get("question_id") == number for side in sides):
        raise RowProblem("an answer id is that of no answer to its question")
    question = asked[number]
    kept = {"category": question["category"]} if question.get("category") is not None else {}
    prompt = Prompt(text=text_cell(question, "text", where), fields=kept, source=source, licence=licence)
    responses = tuple(
        Response(
            prompt_id=prompt.id,
            text=text_cell(given[side], "text", where),
            maker=str(given[side].get("model_id") or ""),
        )
        for side in sides
    )
    text, reviewer = text_cell(row, "text", where), row.get("reviewer_id")
    if reviewer is None and not by:
        raise RowProblem("missing reviewer_id, and by names nobody")
    scores = _two_scores(row, where)
    judgment = _scored(
        prompt.id,
        (responses[0].id, responses[1].id),
        scores,
        by=by or f"model:{reviewer}",
        fields={name: row[name] for name in ("question_id", "review_id", "reviewer_id") if row.get(name) is not None},
        raw=text,
        rationale=_reasons(text, scores),
    )
    return Entry(where, prompt, responses, (judgment,), keeps=("empty_response",))


def _two_scores(row: Mapping[str, Any], where: str) -> tuple[float | None, float | None]:
    scores = row.get("score")
    if scores is None:
        raise RowProblem("missing score")
    good = isinstance(scores, list) and len(scores) == 2
    if not good or any(isinstance(s, bool) or not isinstance(s, int | float | None) for s in scores):
        raise wrong_type(where, "score", scores, "two numbers")
    first, second = (None if score is None or score < 0 else float(score) for score in scores)
    return first, second


def _reasons(text: str, scores: tuple[float | None, float | None]) -> str:
    """The review without a first line that only says the scores."""
    head, _, rest = text.partition("\n")
    try:
        said = tuple(float(word) for word in head.replace(",", " ").split())
    except ValueError:
        return text
    return rest.strip() if said == scores else text
