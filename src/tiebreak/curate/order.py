"""Pairs put into bands, by how far their sides are apart: parts of a curriculum, or of an order by strength."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from tiebreak.curate.gaps import NO_GAP, gaps
from tiebreak.curate.knobs import check_bands, check_count, is_number
from tiebreak.curate.marks import EXACT
from tiebreak.curate.table import Rows, Step, pairs_of
from tiebreak.records import InputError, Pair

WITHIN = ("prompt", "all")


def bands(rows: Rows, *, edges: Sequence[float] = (0.2, 0.4, 0.9), of: str = "margin") -> Step:
    """Number the pairs by strength: band 0 is the weakest part, and each edge begins the next one.

    The edges are shares of the pairs in the order of their signed strength. The default makes the four parts of Wang et
    al. 2024 (arXiv 2401.06080): 0 is the lowest 20 %, whose labels are likely wrong, 1 goes to 40 % and is ambiguous, 2
    is ordinary, and 3 is the strongest 10 %, which alone overfits. Equal strengths are told apart by id. A pair without
    a strength is dropped and counted.

    Args:
        rows: pairs.
        edges: rising shares between 0 and 1.
        of: ``margin``, ``scores`` or ``p``.

    Raises:
        InputError: edges that are none, or pairs of which not one has a margin.
    """
    if not (isinstance(edges, list | tuple) and edges and all(is_number(edge) and 0 < edge < 1 for edge in edges)):
        raise InputError(f"bands has edges = {edges!r}; expected shares between 0 and 1, such as [0.2, 0.4, 0.9].")
    if list(edges) != sorted(set(edges)):
        raise InputError(f"bands has edges = {list(edges)!r}; expected each to be above the one before.")
    pairs = pairs_of(rows, "bands")
    found = gaps(pairs, of, "bands")
    known = sorted(((gap, pair) for gap, pair in zip(found, pairs, strict=True) if gap is not None), key=_by_gap)
    ends = [round(edge * len(known), EXACT) for edge in edges]
    numbered = [replace(pair, band=sum(place >= end for end in ends)) for place, (_, pair) in enumerate(known)]
    return Step(numbered, _without(found, of))


def curriculum(rows: Rows, *, bands: int = 3, within: str = "prompt", of: str = "margin") -> Step:
    """Number the pairs by difficulty, and put them in that order: band 0 is the easiest, with the widest gaps.

    Curri-DPO trains one stage per band, easy first (Pattnaik et al. 2024, arXiv 2403.07230). The gap is taken without
    its sign. Equal gaps are told apart by id.

    Args:
        rows: pairs.
        bands: how many.
        within: ``prompt`` numbers the pairs of each prompt by the rank of their gap, and the last band takes the rest;
            ``all`` cuts all pairs into parts of one size, as prompts with one pair each need.
        of: ``margin``, ``scores`` or ``p``.

    Raises:
        InputError: a knob out of range, or pairs of which not one has a margin.
    """
    check_count("curriculum", "bands", bands, 1)
    if within not in WITHIN:
        raise InputError(f"curriculum has within = {within!r}; expected {' or '.join(WITHIN)}.")
    pairs = pairs_of(rows, "curriculum")
    found = gaps(pairs, of, "curriculum")
    known = sorted(((-abs(gap), pair) for gap, pair in zip(found, pairs, strict=True) if gap is not None), key=_by_gap)
    seen: Counter[str] = Counter()
    numbered: list[Pair] = []
    for place, (_, pair) in enumerate(known):
        band = min(seen[pair.prompt_id], bands - 1) if within == "prompt" else place * bands // len(known)
        seen[pair.prompt_id] += 1
        numbered.append(replace(pair, band=band))
    # The sort keeps the order of gaps inside a band.
    return Step(sorted(numbered, key=lambda pair: pair.band or 0), _without(found, of))


def band(rows: Rows, *, keep: int | Sequence[int] = 0) -> Step:
    """Keep the pairs of one band, or of several.

    Raises:
        InputError: no number of a band, one that no pair is in, or a pair without a band.
    """
    wanted = check_bands("band", "keep", keep)
    pairs = pairs_of(rows, "band")
    found = bands_of(pairs, "band")
    if pairs and (empty := sorted(wanted.difference(found))):
        raise InputError(f"band has keep = {empty[0]}, and the rows have {', '.join(map(str, sorted(set(found))))}.")
    kept = [pair for pair, number in zip(pairs, found, strict=True) if number in wanted]
    others = sorted(Counter(number for number in found if number not in wanted).items())
    return Step(kept, {f"band {number}": count for number, count in others})


def bands_of(pairs: Sequence[Pair], step: str) -> list[int]:
    """Return the band of each pair.

    Raises:
        InputError: a pair has none.
    """
    found = [pair.band for pair in pairs if pair.band is not None]
    if len(found) < len(pairs):
        raise InputError(f"{step} reads the band of pairs, and some have none; put bands or curriculum before it.")
    return found


def _by_gap(known: tuple[float, Pair]) -> tuple[float, str]:
    gap, pair = known
    return gap, pair.id


def _without(found: Sequence[float | None], of: str) -> dict[str, int]:
    return {NO_GAP[of]: sum(gap is None for gap in found)} if of in NO_GAP else {}
