"""Sampling from a local model: a prompt's prefill is shared by its draws, and each draw has a random stream of its own.

A draw's stream depends on the seed, the prompt and the draw alone, so a resumed or reordered run gives the same text.
Rows leave the batch as they end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from tiebreak.models.load import context_of
from tiebreak.records import InputError, Progress, content_id, quiet


class Drawn(NamedTuple):
    """Token ids of one sample without EOS, and whether it ended by itself (``stop``) or at the limit (``length``)."""

    ids: tuple[int, ...]
    finish: str


def generate(
    model: PreTrainedModel,
    prompts: Sequence[tuple[int, ...]],
    keys: Sequence[str],
    *,
    n: int = 1,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    batch: int = 128,
    eos: int,
    pad: int,
    progress: Progress = quiet,
) -> list[list[Drawn]]:
    """Return ``n`` samples for each of ``prompts``, in their order.

    Args:
        model: a causal language model with its own attention in place.
        prompts: token ids of each prompt.
        keys: a name of each prompt, which seeds its streams.
        n: samples per prompt.
        max_new_tokens: the limit of each sample, in tokens.
        temperature: 0 takes the most likely token.
        top_p: sample from the smallest set of tokens with this much probability; 1 is all.
        top_k: sample from this many most likely tokens; 0 is all.
        seed: of all streams.
        batch: sequences decoded together.
        eos: token id that ends a sample.
        pad: token id that fills the left of shorter prompts.
        progress: called after each batch with prompts done and prompts in all.

    Raises:
        InputError: a prompt is empty, or a prompt with its sample needs more positions than the model has.
    """
    _check(model, prompts, max_new_tokens)
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    out: list[list[Drawn]] = [[] for _ in prompts]
    size = max(1, batch // n)
    for start in range(0, len(order), size):
        part = order[start : start + size]
        uniforms = np.stack([_stream(seed, keys[i], draw, max_new_tokens) for i in part for draw in range(n)])
        with torch.no_grad():
            drawn = _decode(
                model,
                [prompts[i] for i in part],
                torch.from_numpy(uniforms),
                n=n,
                temperature=temperature,
                top_p=top_p,
                top_k=top_k,
                eos=eos,
                pad=pad,
            )
        for row, i in enumerate(part):
            out[i] = drawn[row * n : (row + 1) * n]
        progress(min(start + size, len(order)), len(order), {})
    return out


def _check(model: PreTrainedModel, prompts: Sequence[tuple[int, ...]], max_new_tokens: int) -> None:
    if not all(prompts):
        raise InputError("A prompt has no tokens, so there is nothing to sample from; give it text or drop it.")
    most, context = max(map(len, prompts), default=0) + max_new_tokens, context_of(model)
    if context is not None and most > context:
        raise InputError(
            f"A prompt and its sample take {most} tokens and the model has {context} positions; lower window or "
            "max_new_tokens."
        )


def _stream(seed: int, key: str, draw: int, length: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(int(content_id("draw", seed, key, draw), 16))).random(length)


def _decode(
    model: PreTrainedModel,
    prompts: Sequence[tuple[int, ...]],
    uniforms: Tensor,
    *,
    n: int,
    temperature: float,
    top_p: float,
    top_k: int,
    eos: int,
    pad: int,
) -> list[Drawn]:
    device = model.device
    longest = max(map(len, prompts))
    ids = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    places = (mask.cumsum(1) - 1).clamp_min(0)
    cache = DynamicCache(config=model.config)
    out = model(
        input_ids=ids, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True, logits_to_keep=1
    )
    cache.batch_repeat_interleave(n)
    logits = out.logits[:, -1].repeat_interleave(n, 0)
    mask = mask.repeat_interleave(n, 0)
    place = places[:, -1].repeat_interleave(n, 0)
    alive = torch.arange(len(logits), device=device)
    taken: list[list[int]] = [[] for _ in range(len(logits))]
    finish = ["length"] * len(logits)
    limit = uniforms.shape[1]
    for step in range(limit):
        chosen = pick(logits, uniforms[alive.cpu(), step].to(device), temperature, top_p, top_k)
        going = chosen != eos
        for row, token in zip(alive.tolist(), chosen.tolist(), strict=True):
            if token == eos:
                finish[row] = "stop"
            else:
                taken[row].append(token)
        if step + 1 == limit or not bool(going.any()):
            break
        if not bool(going.all()):
            keep = going.nonzero().flatten()
            cache.batch_select_indices(keep)
            alive, chosen, mask, place = alive[keep], chosen[keep], mask[keep], place[keep]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        place = place + 1
        logits = model(
            input_ids=chosen[:, None],
            attention_mask=mask,
            position_ids=place[:, None],
            past_key_values=cache,
            use_cache=True,
        ).logits[:, -1]
    return [Drawn(tuple(tokens), how) for tokens, how in zip(taken, finish, strict=True)]


def pick(logits: Tensor, uniform: Tensor, temperature: float, top_p: float = 1.0, top_k: int = 0) -> Tensor:
    """Choose one token per row of ``logits`` (R, V) by inverting the cumulative distribution at ``uniform`` (R,).

    ``top_k`` filters first and ``top_p`` what it leaves, renormalised, as transformers and vLLM do; of equal tokens the
    one with the smaller id is kept. Sums are in float64: in float32 they err by more than a rare token's probability.
    """
    if temperature == 0.0:
        return logits.argmax(-1)
    probabilities = (logits.double() / temperature).softmax(-1)
    if 0 < top_k < logits.shape[-1] or top_p < 1.0:
        ranked, where = probabilities.sort(dim=-1, descending=True, stable=True)
        if top_k:
            ranked[:, top_k:] = 0.0
        before = ranked.cumsum(-1) - ranked
        ranked = ranked.masked_fill(before >= top_p * ranked.sum(-1, keepdim=True), 0.0)
        probabilities = torch.zeros_like(probabilities).scatter(-1, where, ranked)
    totals = probabilities.cumsum(-1)
    whole = totals[:, -1:].contiguous()
    chosen = torch.searchsorted(totals, uniform.to(totals.dtype)[:, None] * whole, right=True)
    return torch.minimum(chosen, torch.searchsorted(totals, whole))[:, 0]
