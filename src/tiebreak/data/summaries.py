"""Published summarisation judgments: people comparing two summaries, and a model judging summary against reference.

Texts keep the leading space they come with; the prompt ends in ``TL;DR:`` without one. Posts are never cut at a
``TL;DR:`` of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tiebreak.data.files import read_rows
from tiebreak.data.table import Entry, Refused, RowProblem, excerpt, number_cell, text_cell, wrong_type
from tiebreak.records import InputError, Judgment, Prompt, Response

POST_QUERY = "SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:"
NEWS_QUERY = "Article:\n{article}\n\nTL;DR:\n"


def bipolar_strength(confidence: float) -> float:
    """Return how sure a rater is, from 0 to 1, for a ``confidence`` from 1 (surely the first) to 9 (surely the second).

    The scale has two strong ends: 1 and 9 are equally sure and 5 is undecided. A filter on strength therefore keeps
    both choices, where a filter on the raw number would keep the votes for one side only.
    """
    return abs(confidence - 5.0) / 4.0


def read_comparisons(
    path: Path,
    *,
    source: str = "summarize_from_feedback",
    licence: str = "",
    order: str = "unknown",
    min_strength: float = 0.0,
) -> Iterator[Entry | Refused]:
    """Yield the comparisons of summarize-from-feedback; ``choice`` names the better of two ``summaries``.

    Worker, batch, split, policies, notes and the raw confidence are kept in the judgment's fields.

    Args:
        path: JSONL (``batchN.json`` files need the ending ``.jsonl``) or Parquet.
        source: name of the source.
        licence: licence of the texts.
        order: ``shown`` if you know that ``summaries`` are listed as they were shown; the release does not say.
        min_strength: refuse weaker votes; 0.75 keeps the confidences 1, 2, 8 and 9, of both choices. Above 0 a vote
            without a confidence is refused too.
    """
    if order not in ("shown", "unknown"):
        raise InputError(f"order is {order!r}; expected 'shown' or 'unknown'.")
    if not 0.0 <= min_strength <= 1.0:
        raise InputError(f"min_strength is {min_strength}; expected a number from 0 (all votes) to 1 (only 1 and 9).")
    for where, row, problem in read_rows(Path(path)):
        try:
            if problem:
                raise RowProblem(problem)
            yield _comparison(row, where, source, licence, order == "shown", min_strength)
        except RowProblem as refusal:
            yield Refused(where, str(refusal), excerpt(row))


def _comparison(
    row: Mapping[str, Any], where: str, source: str, licence: str, order_known: bool, min_strength: float
) -> Entry:
    prompt = _query(_object(row, "info", where), where, source, licence)
    summaries = row.get("summaries")
    if summaries is None:
        raise RowProblem("missing summaries")
    if not isinstance(summaries, list) or len(summaries) != 2 or not all(isinstance(s, Mapping) for s in summaries):
        raise wrong_type(where, "summaries", summaries, "a list of two objects with a text")
    responses = tuple(
        Response(prompt_id=prompt.id, text=text_cell(summary, "text", where), maker=_maker(summary.get("policy")))
        for summary in summaries
    )
    choice = row.get("choice")
    if choice is None:
        raise RowProblem("missing choice")
    if isinstance(choice, bool) or choice not in (0, 1):
        raise RowProblem("choice is neither 0 nor 1")
    confidence = number_cell(_object(row, "extra", where, empty=True), "confidence", where)
    strength = _strength(confidence, min_strength)
    judgment = Judgment(
        prompt_id=prompt.id,
        slots=tuple(response.id for response in responses),
        verdict="slot",
        winner=int(choice),
        by=f"human:{row.get('worker') or source}",
        order_known=order_known,
        strength=strength,
        fields=_facts(row, summaries, confidence),
    )
    against = confidence is not None and (confidence - 5) * (choice - 0.5) < 0
    return Entry(where, prompt, responses, (judgment,), ("confidence points to the other choice",) if against else ())


def _strength(confidence: float | None, min_strength: float) -> float | None:
    if confidence is None:
        if min_strength > 0:
            raise RowProblem("no confidence, and min_strength asks for one")
        return None
    if not 1 <= confidence <= 9:
        raise RowProblem("confidence lies outside 1 to 9")
    strength = bipolar_strength(confidence)
    if strength < min_strength:
        raise RowProblem(f"weaker than min_strength {min_strength:g}")
    return strength


def _query(info: Mapping[str, Any], where: str, source: str, licence: str) -> Prompt:
    if info.get("post") is not None:
        cells = {name: text_cell(info, name, where) for name in ("subreddit", "title", "post")}
        text, kept = POST_QUERY.format(**cells), ("id", "subreddit", "title", "post")
    elif info.get("article") is not None:
        text, kept = NEWS_QUERY.format(article=text_cell(info, "article", where)), ("id", "site", "title", "article")
    else:
        raise RowProblem("missing post or article")
    fields = {name: info[name] for name in kept if info.get(name) is not None}
    return Prompt(text=text, fields=fields, source=source, licence=licence)


def _facts(row: Mapping[str, Any], summaries: list[Mapping[str, Any]], confidence: float | None) -> dict[str, Any]:
    extra = row.get("extra") or {}
    facts = {key: value for key, value in row.items() if key not in ("info", "summaries", "choice", "extra")}
    facts |= {key: value for key, value in extra.items() if key != "confidence"}
    facts["confidence"] = confidence
    facts["policies"] = [summary.get("policy") for summary in summaries]
    facts["notes"] = [summary.get("note") for summary in summaries]
    return facts


def _maker(policy: object) -> str:
    return "human:reference" if policy == "ref" else str(policy or "")


def _object(row: Mapping[str, Any], column: str, where: str, *, empty: bool = False) -> Mapping[str, Any]:
    value = row.get(column)
    if value is None:
        if empty:
            return {}
        raise RowProblem(f"missing {column}")
    if not isinstance(value, Mapping):
        raise wrong_type(where, column, value, "an object")
    return value


def read_judged(
    path: Path,
    *,
    source: str = "tldr-judged",
    licence: str = "",
    model: str = "oai1b",
    by: str = "model:gpt-4",
) -> Iterator[Entry | Refused]:
    """Yield posts with a model's summary and a reference, and the judge's verdict where there is one.

    ``order`` 0 shows the model's summary as A (first slot), 1 shows the reference as A. That is how the judging script
    of summarize_from_feedback_details indexes its list ``[model, reference]``, and the explanations agree: of those
    that begin with "Summary A" or "Summary B", 603 of 626 begin with the side that this reading makes the winner.
    A verdict without an explanation is ``invalid``: that script drew such verdicts at random. The judge saw both texts
    stripped; the records keep them as published.

    Args:
        path: JSONL with ``post``, ``model_summary``, ``reference_summary``, ``judge_preferred``, ``order``.
        source: name of the source.
        licence: licence of the texts.
        model: who made ``model_summary``.
        by: who judged.
    """
    for where, row, problem in read_rows(Path(path)):
        try:
            if problem:
                raise RowProblem(problem)
            yield _judged(row, where, source, licence, model, by)
        except RowProblem as refusal:
            yield Refused(where, str(refusal), excerpt(row))


def _judged(row: Mapping[str, Any], where: str, source: str, licence: str, model: str, by: str) -> Entry:
    reference = text_cell(row, "reference_summary", where)
    used = ("post", "model_summary", "reference_summary", "judge_preferred", "judge_explanation", "order")
    fields = {key: value for key, value in row.items() if key not in used}
    prompt = Prompt(
        text=text_cell(row, "post", where), reference=reference, fields=fields, source=source, licence=licence
    )
    ours = Response(prompt_id=prompt.id, text=text_cell(row, "model_summary", where), maker=model)
    theirs = Response(prompt_id=prompt.id, text=reference, maker="human:reference")
    preferred = row.get("judge_preferred")
    if preferred is None:
        return Entry(where, prompt, (ours, theirs), ())
    if preferred not in ("ours", "reference"):
        raise RowProblem("judge_preferred is neither 'ours' nor 'reference'")
    order = row.get("order")
    if order is None or isinstance(order, bool) or order not in (0, 1):
        raise RowProblem("order is neither 0 nor 1")
    slots = (ours, theirs) if order == 0 else (theirs, ours)
    explanation = row.get("judge_explanation") or ""
    winner = slots.index(ours if preferred == "ours" else theirs)
    judgment = Judgment(
        prompt_id=prompt.id,
        slots=tuple(response.id for response in slots),
        verdict="slot" if explanation.strip() else "invalid",
        winner=winner if explanation.strip() else None,
        by=by,
        rationale=explanation,
    )
    return Entry(where, prompt, (ours, theirs), (judgment,))
