"""Choose the next token of many rows at once, say how likely the model itself held it, and keep what was chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tiebreak.records import InputError

TILE = 2**23
"""Logits looked at together: their probabilities take 64 MiB."""


class Picked(NamedTuple):
    """Tokens (R,), and log p of each under the tempered distribution over the whole vocabulary, in float32."""

    tokens: Tensor
    logps: Tensor


Choose = Callable[[Tensor, Tensor, Tensor], Picked]
"""Choose tokens from logits (R, V), uniforms (R,) and how many tokens each row has already (R,)."""
Stream = Callable[[str, int], np.ndarray]
"""Return the uniforms of a sample, one a token in float64, from its prompt's key and the number of the draw."""


class Group(NamedTuple):
    """Samples that share a prompt: its number, its token ids and its key, and the numbers of the draws."""

    number: int
    prompt: tuple[int, ...]
    key: str
    draws: range


class Ended(NamedTuple):
    """A finished sample: its group and its place in it, its tokens with EOS, and log p of each."""

    group: int
    place: int
    tokens: list[int]
    logps: list[float]


def pick_scored(
    logits: Tensor,
    uniform: Tensor,
    temperature: float,
    top_p: float = 1.0,
    top_k: int = 0,
    barred: Tensor | None = None,
) -> Picked:
    """Choose as :func:`pick` does, and score the choice under softmax(logits / temperature), unfiltered.

    A temperature of 0 is scored as 1. ``barred`` (R, V) is True where a token cannot be chosen; scores do not heed it.

    Raises:
        InputError: logits are not numbers, which is what broken weights give.
    """
    rows = max(1, TILE // logits.shape[-1])
    if len(logits) > rows:
        bars = [None] * len(logits) if barred is None else barred.split(rows)
        tiles = zip(logits.split(rows), uniform.split(rows), bars, strict=False)
        parts = [pick_scored(some, at, temperature, top_p, top_k, bar) for some, at, bar in tiles]
        return Picked(*(torch.cat(column) for column in zip(*parts, strict=True)))
    if temperature == 0.0 or barred is not None:
        scaled = logits.float() / (temperature or 1.0)
        total = scaled.logsumexp(-1)
        _assert_finite(total)
        allowed = logits if barred is None else logits.masked_fill(barred, float("-inf"))
        tokens = pick(allowed, uniform, temperature, top_p, top_k)
        return Picked(tokens, scaled.gather(-1, tokens[:, None])[:, 0] - total)
    probabilities = _probabilities(logits, temperature)
    tokens = _inverted(_filtered(probabilities, top_p, top_k), uniform)
    return Picked(tokens, probabilities.gather(-1, tokens[:, None])[:, 0].log().float())


def pick(logits: Tensor, uniform: Tensor, temperature: float, top_p: float = 1.0, top_k: int = 0) -> Tensor:
    """Choose one token per row of ``logits`` (R, V) by inverting the cumulative distribution at ``uniform`` (R,).

    ``top_k`` filters first and ``top_p`` what it leaves, renormalised, as transformers and vLLM do; of equal tokens the
    one with the smaller id is kept. Sums are in float64: in float32 they err by more than a rare token's probability.

    Raises:
        InputError: logits are not numbers, which is what broken weights give.
    """
    if temperature == 0.0:
        return logits.argmax(-1)
    return _inverted(_filtered(_probabilities(logits, temperature), top_p, top_k), uniform)


def _probabilities(logits: Tensor, temperature: float) -> Tensor:
    scaled = logits.double()
    return (scaled if temperature == 1.0 else scaled / temperature).softmax(-1)


def _filtered(probabilities: Tensor, top_p: float, top_k: int) -> Tensor:
    if top_p >= 1.0 and not 0 < top_k < probabilities.shape[-1]:
        return probabilities
    ranked, where = probabilities.sort(dim=-1, descending=True, stable=True)
    if top_k:
        ranked[:, top_k:] = 0.0
    before = ranked.cumsum(-1) - ranked
    ranked = ranked.masked_fill(before >= top_p * ranked.sum(-1, keepdim=True), 0.0)
    return torch.zeros_like(probabilities).scatter(-1, where, ranked)


def _inverted(probabilities: Tensor, uniform: Tensor) -> Tensor:
    totals = probabilities.cumsum(-1)
    whole = totals[:, -1:].contiguous()
    _assert_finite(whole)
    chosen = torch.searchsorted(totals, uniform.to(totals.dtype)[:, None] * whole, right=True)
    return torch.minimum(chosen, torch.searchsorted(totals, whole))[:, 0]


def _assert_finite(totals: Tensor) -> None:
    if not bool(totals.isfinite().all()):
        raise InputError("The model's logits are not finite numbers (NaN or infinity); load other weights.")


class Left(NamedTuple):
    """What a row that ended leaves: its slot and column, its tokens with EOS, and log p of each."""

    slot: int
    column: int
    tokens: list[int]
    logps: list[float]


class Rows:
    """Rows in flight, ``count`` of them: all about row r stands at place r of every buffer.

    ``slot``, ``column``, ``size``, ``born`` and ``last`` (B,) are the slot of its prompt, its number among the prompt's
    samples, the prompt's length, the step that gave it its first token, and its last token.
    """

    def __init__(self, places: int, steps: int, device: torch.device) -> None:
        whole: dict[str, Any] = {"dtype": torch.long, "device": device}
        self.count, self.places, self.device = 0, places, device
        self.slot, self.column, self.size, self.born, self.last = torch.zeros(5, places, **whole)
        self.tokens = torch.zeros(places, steps, **whole)
        self.logps = torch.zeros(places, steps, device=device)
        self.uniforms = torch.zeros(places, steps, dtype=torch.float64, device=device)

    def add(self, where: Sequence[tuple[int, int, int]], uniforms: np.ndarray, now: int) -> None:
        """Add rows behind the last: ``where`` has the slot, the column and the prompt's length of each."""
        new = slice(self.count, self.count + len(where))
        self.slot[new], self.column[new], self.size[new] = torch.tensor(where, device=self.device).T
        self.born[new] = now
        self.uniforms[new] = torch.from_numpy(uniforms).to(self.device)
        self.count += len(where)

    def extend(self, logits: Tensor, choose: Choose, *, now: int, eos: int) -> Tensor:
        """Give each row one more token from ``logits`` (R, V), and return which rows have ended with it."""
        rows = slice(self.count)
        age = (now - self.born[rows])[:, None]
        tokens, logps = choose(logits, self.uniforms[rows].gather(1, age)[:, 0], age[:, 0])
        self.tokens[rows].scatter_(1, age, tokens[:, None])
        self.logps[rows].scatter_(1, age, logps[:, None])
        self.last[rows] = tokens
        return ((tokens == eos) | (age[:, 0] + 1 == self.tokens.shape[1])).nonzero()[:, 0]

    def leave(self, over: Tensor, now: int) -> tuple[list[Left], Tensor, Tensor]:
        """Let the rows ``over`` go; return what they leave, and which rows moved to which places to close the gaps."""
        sizes = (now + 1 - self.born[over]).tolist()
        columns = (held[over].tolist() for held in (self.slot, self.column, self.tokens, self.logps))
        left = [
            Left(slot, column, tokens[:size], logps[:size])
            for slot, column, tokens, logps, size in zip(*columns, sizes, strict=True)
        ]
        gone = over.tolist()
        dead = set(gone)
        self.count -= len(gone)
        holes = [row for row in gone if row < self.count]
        tail = [row for row in range(self.count, self.count + len(gone)) if row not in dead]
        source, target = (torch.tensor(some, dtype=torch.long, device=self.device) for some in (tail, holes))
        for held in (self.slot, self.column, self.size, self.born, self.last, self.tokens, self.logps, self.uniforms):
            held.index_copy_(0, target, held.index_select(0, source))
        return left, source, target
