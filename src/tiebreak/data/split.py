"""Prompts into disjoint sets: by group, exact, and the same on every machine for the same seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import floor

from tiebreak.records import InputError, Prompt, content_id

REST = "rest"
"""Name of what is left over when the shares do not cover everything and no name asks for the rest."""


def split_prompts(
    prompts: Sequence[Prompt], shares: Mapping[str, float | int | None], *, seed: int
) -> dict[str, list[str]]:
    """Return the prompt ids of each named set, in the order of ``prompts``.

    Whole groups move together, so no prompt (and no other prompt of its group) stands on two sides. The order of
    ``prompts`` does not decide who goes where; a grown dataset is split anew.

    Args:
        prompts: what to split; a prompt given twice counts once.
        shares: an int is a number of groups, a float a fraction of all groups (so 1 is one group and 1.0 is all), and
            None, for one name at most, takes what is left over. What nobody takes comes back as ``rest``.
        seed: another seed gives another split.

    Raises:
        InputError: shares that ask for more than there is, a set that would be empty, or a share of the wrong type.
    """
    groups: dict[str, list[str]] = {}
    for prompt in {prompt.id: prompt for prompt in prompts}.values():
        groups.setdefault(prompt.group, []).append(prompt.id)
    sizes = _sizes(shares, len(groups))
    order = sorted(groups, key=lambda group: content_id("split", seed, group))
    side: dict[str, str] = {}
    start = 0
    for name, size in sizes.items():
        side |= dict.fromkeys((prompt_id for group in order[start : start + size] for prompt_id in groups[group]), name)
        start += size
    found: dict[str, list[str]] = {name: [] for name in sizes}
    for prompt_id in dict.fromkeys(prompt.id for prompt in prompts):
        found[side[prompt_id]].append(prompt_id)
    return found


def _sizes(shares: Mapping[str, float | int | None], total: int) -> dict[str, int]:
    if not shares:
        raise InputError("A split names no sets; give shares such as test=0.1.")
    for name, share in shares.items():
        if isinstance(share, bool) or not isinstance(share, int | float | None):
            raise InputError(f"The share of {name!r} is {share!r}; expected a count, a fraction or null for the rest.")
        if share is not None and (share < 0 or (isinstance(share, float) and not share <= 1.0)):
            raise InputError(
                f"The share of {name!r} is {share!r}; a fraction lies in 0.0 to 1.0, a count is not negative."
            )
    open_ends = [name for name, share in shares.items() if share is None]
    if len(open_ends) > 1:
        raise InputError(f"{' and '.join(open_ends)} both ask for the rest; only one set can have it.")
    sizes = {name: share for name, share in shares.items() if isinstance(share, int)}
    sizes |= _apportion({name: share for name, share in shares.items() if isinstance(share, float)}, total)
    left = total - sum(sizes.values())
    if left < 0:
        raise InputError(
            f"The shares ask for {total - left} groups of prompts, there are {total}; ask for less, or use fractions."
        )
    rest = open_ends[0] if open_ends else REST
    if open_ends or left:
        sizes[rest] = sizes.get(rest, 0) + left
    for name in shares:
        if not sizes[name] and shares[name] != 0:
            raise InputError(f"The set {name!r} would be empty with {total} groups of prompts; give it a count.")
    return {name: sizes[name] for name in _ordered(shares, sizes)}


def _ordered(shares: Mapping[str, object], sizes: Mapping[str, int]) -> Iterable[str]:
    return [*shares, *(name for name in sizes if name not in shares)]


def _apportion(fractions: Mapping[str, float], total: int) -> dict[str, int]:
    """Round the fractions so that they add up: largest remainder first, ties by name."""
    quotas = {name: fraction * total for name, fraction in fractions.items()}
    sizes = {name: floor(quota + 1e-9) for name, quota in quotas.items()}
    missing = round(sum(quotas.values())) - sum(sizes.values())
    by_remainder = sorted(quotas, key=lambda name: (sizes[name] - quotas[name], name))
    for name in by_remainder[: max(missing, 0)]:
        sizes[name] += 1
    return sizes
