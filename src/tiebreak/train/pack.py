"""How the rows of one batch share forward passes: forests of at most so many tokens, as few as first-fit finds."""

from __future__ import annotations

from collections.abc import Sequence

from tiebreak.records import InputError

__all__ = ["fill"]


def fill(sizes: Sequence[int], budget: int | None) -> list[list[int]]:
    """Split trees into forests of at most ``budget`` tokens, so that a batch takes few passes and fits the memory.

    First-fit decreasing: each tree, the largest first and equal ones as they stand, goes into the first forest with
    room. That takes at most 11/9 of the fewest forests plus 6/9 (Dósa et al. 2013, doi:10.1016/j.tcs.2013.09.007). The
    forest of the largest tree comes first, so a lack of memory shows at once. A tree larger than ``budget`` gets a
    forest of its own: whether it fits is for the caller to check.

    Args:
        sizes: tokens of each tree.
        budget: most tokens of a forest; None puts all trees into one.

    Returns:
        Indices into ``sizes``, each exactly once, ascending inside a forest; no forests where there are no trees.
    """
    if budget is not None and budget < 1:
        raise InputError(f"The budget of a forest is {budget} tokens; it has to be at least 1, or None for no bound.")
    if budget is None or not sizes:
        return [list(range(len(sizes)))] if sizes else []
    forests: list[list[int]] = []
    room: list[int] = []
    for tree in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        size = sizes[tree]
        place = next((i for i, left in enumerate(room) if left >= size), len(room))
        if place == len(room):
            forests.append([])
            room.append(budget)
        forests[place].append(tree)
        room[place] -= size
    return [sorted(forest) for forest in forests]
