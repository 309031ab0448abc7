"""Steps that exchange the sides of pairs: to mend labels, and to spoil them on purpose in a study.

To exchange the sides is to say that the label was wrong. What has a side follows: margin and scores change theirs, and
``flipped`` toggles. What has none stays: ``p`` is as sure of the other side as it was of this one, and the band and the
judgments behind the pair remain. Doing it twice is doing nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from tiebreak.curate.gaps import gaps
from tiebreak.curate.knobs import check_bands, check_count, check_number
from tiebreak.curate.order import bands_of
from tiebreak.curate.table import Rows, Step, pairs_of
from tiebreak.curate.voices import By, heard
from tiebreak.judge.verdict import soft_label
from tiebreak.records import InputError, Judgment, Pair, content_id

FLIPPED = "sides exchanged"
"""What these steps change."""

UNSURE = "the judge is not sure"
DISAGREES = "the judge disagrees"
UNJUDGED = "not judged by it"
"""Why :func:`agrees` drops a pair."""


def exchange(pair: Pair) -> Pair:
    """Return the pair with its sides exchanged; the margin m becomes -m, for it is in favour of the chosen side.

    Raises:
        InputError: a rationale goes with the pair, and it argues for one side.
    """
    if "rationale" in pair.beside:
        raise InputError(
            f"The pair {pair.id} has a rationale, which argues for its chosen side; exchange sides before rationale."
        )
    return replace(
        pair,
        prompt_id=pair.rejected_prompt_id or pair.prompt_id,
        chosen_id=pair.rejected_id,
        rejected_id=pair.chosen_id,
        rejected_prompt_id=pair.prompt_id if pair.rejected_prompt_id else "",
        margin=None if pair.margin is None else 0.0 - pair.margin,
        scores=None if pair.scores is None else pair.scores[::-1],
        flipped=not pair.flipped,
        id="",
    )


def flip(rows: Rows, *, what: int | str | Sequence[int] = 0) -> Step:
    """Exchange the sides of pairs whose label is likely wrong (Wang et al. 2024, arXiv 2401.06080).

    ``what`` is the number of a band or a list of them, 0 for the weakest of ``bands``; or ``negative`` for the pairs
    whose margin is below 0, those that an ensemble judges the other way. The strength of a flipped pair is that of its
    new sides, -u. By bands, flipping twice is doing nothing; by ``negative``, the second time finds none.

    Raises:
        InputError: no band, or no margin, to go by.
    """
    pairs = pairs_of(rows, "flip")
    if what == "negative":
        goes = [gap is not None and gap < 0 for gap in gaps(pairs, "margin", "flip")]
    elif isinstance(what, str):
        raise InputError(f"flip has what = {what!r}; expected the number of a band, a list of them, or negative.")
    else:
        wanted = check_bands("flip", "what", what)
        goes = [band in wanted for band in bands_of(pairs, "flip")]
    kept = [exchange(pair) if gone else pair for pair, gone in zip(pairs, goes, strict=True)]
    return Step(kept, {}, changed={FLIPPED: sum(goes)})


def plant_flips(rows: Rows, *, share: float = 0.2, seed: int = 0) -> Step:
    """Spoil labels on purpose: exchange the sides of ``share`` of the pairs, to study what noise does.

    Exactly round(share n) pairs are exchanged, and their ``flipped`` toggles, so they can be counted and found again.
    Which ones hangs on the seed and on their ids, and on no order of rows.

    Raises:
        InputError: a share that is not between 0 and 1.
    """
    check_number("plant_flips", "share", share, 0.0, 1.0)
    check_count("plant_flips", "seed", seed, 0)
    pairs = pairs_of(rows, "plant_flips")
    drawn = sorted(range(len(pairs)), key=lambda i: content_id("plant_flips", seed, pairs[i].id))
    goes = set(drawn[: round(share * len(pairs))])
    kept = [exchange(pair) if i in goes else pair for i, pair in enumerate(pairs)]
    return Step(kept, {}, changed={FLIPPED: len(goes)})


def agrees(rows: Rows, *, by: By = None, p: float = 0.6, recycle: bool = False) -> Step:
    """Keep pairs that another judge agrees with: its P(chosen is better), over both orders, is at least ``p``.

    The second stage of Skywork-Reward-V2's curation (Liu et al. 2025, arXiv 2507.01352), with one judge. A pair that
    it puts at 1 - p or below is dropped, or flipped where ``recycle`` is true; one in between is dropped, and so
    is a tie, which has no side to agree with.

    Args:
        rows: pairs.
        by: the judge, such as ``model:reward@*``; what several say is averaged.
        p: how sure it has to be.
        recycle: flip pairs it surely disagrees with.

    Raises:
        InputError: no judge is named or known by that name, or a ``p`` outside 1/2 to 1.
    """
    check_number("agrees", "p", p, 0.5, 1.0)
    pairs = pairs_of(rows, "agrees")
    if by is None:
        raise InputError("agrees needs by, the judge that pairs are held against, such as by: model:reward@*.")
    if not isinstance(recycle, bool):
        raise InputError(f"agrees has recycle = {recycle!r}; expected true or false.")
    said_of = {said[0].item: said for said in heard(rows, by, "agrees").values() if said}
    kept: list[Pair] = []
    dropped: Counter[str] = Counter()
    flipped = 0
    for pair in pairs:
        if pair.p == 0.5:
            dropped["ties"] += 1
            continue
        said = _says(said_of.get(content_id("item", pair.prompt_id, sorted((pair.chosen_id, pair.rejected_id)))), pair)
        if said is None:
            dropped[UNJUDGED] += 1
        elif said >= p:
            kept.append(pair)
        elif said > round(1 - p, 12):
            dropped[UNSURE] += 1
        elif recycle:
            kept.append(exchange(pair))
            flipped += 1
        else:
            dropped[DISAGREES] += 1
    return Step(kept, dropped, changed={FLIPPED: flipped})


def _says(judgments: Sequence[Judgment] | None, pair: Pair) -> float | None:
    """Return P(the chosen side is better) by ``judgments``, None where they say nothing."""
    label = soft_label(judgments, pair.chosen_id, pair.rejected_id) if judgments else None
    return None if label is None else round(label.p, 12)
