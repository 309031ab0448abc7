"""What is done to rewards before they are credited: answers without an end, answers near the limit."""

from __future__ import annotations

import torch
from torch import Tensor

from tiebreak.records import InputError
from tiebreak.registry import nearest

MISSING_EOS = ("", "replace", "subtract")


def check_missing_eos(form: str) -> None:
    """Refuse an unknown form of the penalty."""
    if form not in MISSING_EOS:
        raise InputError(
            f"missing_eos is {form!r}; expected replace, subtract or nothing.{nearest(form, MISSING_EOS[1:])}"
        )


def with_missing_eos(rewards: Tensor, ended: Tensor, *, form: str, value: float) -> Tensor:
    """Return rewards (B,) in which an answer that never ended, ``ended`` (B,) False, pays for it.

    ``replace`` gives it ``value`` whatever it says (Huang et al. 2024, detail 23), which an unbounded reward cannot
    outweigh; ``subtract`` takes ``value`` from its reward, as TRL does.
    """
    if form == "replace":
        return torch.where(ended, rewards, torch.full_like(rewards, value))
    if form == "subtract":
        return rewards - value * (~ended).to(rewards.dtype)
    return rewards


def overlong(lengths: Tensor, *, limit: int, share: float) -> Tensor:
    """Return 0 up to limit - c tokens, then linearly down to -1 at the limit, c = share x limit (DAPO, eq. 13)."""
    buffer = share * limit
    if not buffer:
        return torch.zeros(len(lengths), device=lengths.device)
    return ((limit - buffer - lengths) / buffer).clamp(-1.0, 0.0)


def shaped(
    scores: Tensor,
    ended: Tensor,
    lengths: Tensor,
    *,
    missing_eos: str,
    missing_eos_value: float,
    share: float,
    limit: int,
) -> Tensor:
    """Return what scores (B,) are worth once missing ends and great length have been paid for."""
    rewards = with_missing_eos(scores, ended, form=missing_eos, value=missing_eos_value)
    return rewards + overlong(lengths, limit=limit, share=share)
