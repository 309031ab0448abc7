"""Sampling from a local model: a prompt is computed once for all draws, and each draw has a random stream of its own.

A draw's stream depends on the seed, the prompt and the draw alone, so a resumed or reordered run gives the same text.
Rows leave the batch as they end. Models that can run a forest keep each prompt once and take in new rows where others
ended (:mod:`tiebreak.models.decode`); the rest decode batch by batch from the library's own cache.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tiebreak.models.attention import forest_mode
from tiebreak.models.decode import NAME, Flight
from tiebreak.models.load import context_of
from tiebreak.models.pick import Choose, Ended, Group, Picked, Stream, pick_scored
from tiebreak.records import InputError, Progress, content_id, quiet

PRECISIONS = ("float32", "bfloat16")
CACHES = ("past_key_values", "cache_params")
PACKED = 2**32
"""Bytes of weights that may be copied for the time of a call."""


class Drawn(NamedTuple):
    """Token ids of one sample without EOS, and whether it ended by itself (``stop``) or at the limit (``length``).

    ``logps`` has log p of each of ``ids``, and of the EOS behind them where there is one, under
    softmax(logits / temperature) over the whole vocabulary: what a trainer computes for these tokens.
    """

    ids: tuple[int, ...]
    finish: str
    logps: tuple[float, ...]


def generate(
    model: PreTrainedModel,
    prompts: Sequence[tuple[int, ...]],
    keys: Sequence[str],
    *,
    n: int = 1,
    max_new_tokens: int = 64,
    min_new_tokens: int = 0,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    batch: int = 128,
    precision: str = "float32",
    eos: int,
    pad: int,
    progress: Progress = quiet,
) -> list[list[Drawn]]:
    """Return ``n`` samples for each of ``prompts``, in their order.

    Args:
        model: a causal language model with its own attention in place; it is left as it was found.
        prompts: token ids of each prompt.
        keys: a name of each prompt, which seeds its streams.
        n: samples per prompt.
        max_new_tokens: the limit of each sample, in tokens.
        min_new_tokens: EOS is not chosen before so many tokens; it keeps its part of the log-probs.
        temperature: 0 takes the most likely token; log-probs are those of 1 then.
        top_p: sample from the smallest set of tokens with this much probability; 1 is all.
        top_k: sample from this many most likely tokens; 0 is all.
        seed: of all streams.
        batch: sequences decoded together.
        precision: ``float32``, or ``bfloat16`` for autocast; logits and log-probs are float32 in both.
        eos: token id that ends a sample.
        pad: token id that fills the left of shorter prompts.
        progress: called now and then with prompts done and prompts in all, last with all of them.

    Raises:
        InputError: a prompt is empty, a prompt with its sample needs more positions than the model has, a number or the
            precision makes no sense, or the model's logits are not finite.
    """
    _check(model, prompts, precision, n=n, max_new_tokens=max_new_tokens, batch=batch)
    if not prompts:
        return []
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    parts = [range(first, min(first + batch, n)) for first in range(0, n, batch)]
    groups = [Group(i, prompts[i], keys[i], draws) for i in order for draws in parts]
    choose = partial(_choose, temperature=temperature, top_p=top_p, top_k=top_k, eos=eos, least=min_new_tokens)
    stream = partial(_stream, seed, length=max_new_tokens)
    with _ready(model, precision) as run:
        samples = run(groups, choose, stream, steps=max_new_tokens, batch=batch, eos=eos, pad=pad)
        found = _collected(samples, groups, eos, progress)
    return [[found[i, draw] for draw in range(n)] for i in range(len(prompts))]


def _collected(
    samples: Iterator[list[Ended]], groups: Sequence[Group], eos: int, progress: Progress
) -> dict[tuple[int, int], Drawn]:
    """Return all samples by prompt and draw."""
    found: dict[tuple[int, int], Drawn] = {}
    left: Counter[int] = Counter()
    for group in groups:
        left[group.number] += len(group.draws)
    whole = len(left)
    for ended in samples:
        for one in ended:
            group, stop = groups[one.group], one.tokens[-1] == eos
            ids = tuple(one.tokens[:-1] if stop else one.tokens)
            found[group.number, group.draws[one.place]] = Drawn(ids, "stop" if stop else "length", tuple(one.logps))
            left[group.number] -= 1
            if not left[group.number]:
                del left[group.number]
        if ended:
            progress(whole - len(left), whole, {})
    return found


def _choose(
    logits: Tensor,
    uniform: Tensor,
    ages: Tensor,
    *,
    temperature: float,
    top_p: float,
    top_k: int,
    eos: int,
    least: int,
) -> Picked:
    barred = None
    if least:
        barred = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
        barred[:, eos] = ages < least
    return pick_scored(logits, uniform, temperature, top_p, top_k, barred)


@contextmanager
def _ready(model: PreTrainedModel, precision: str) -> Iterator[Callable[..., Iterator[list[Ended]]]]:
    """Make ``model`` ready and give the function to sample with; everything is as before on leaving.

    It is in eval mode, without gradients, in ``precision``, on packed weights, and shares prompts if it can.
    """
    flags = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.autocast(model.device.type, enabled=False):
            shares = _can_share(model)
        with torch.no_grad(), _cast(model, precision), _packed(model, precision), ExitStack() as stack:
            if shares:
                stack.enter_context(forest_mode(model))
                model.set_attn_implementation(NAME)
            yield partial(_shared if shares else _plain, model)
    finally:
        for module, flag in flags:
            module.training = flag


def _can_share(model: PreTrainedModel) -> bool:
    try:
        with forest_mode(model):
            return True
    except InputError:
        return False


@contextmanager
def _cast(model: PreTrainedModel, precision: str) -> Iterator[None]:
    """Compute in ``precision``, each weight cast once.

    Autocast keeps the cast of a weight only where the weight wants a gradient, so for this while all of them do. An
    outer region may hold casts of weights as they were, and would keep these, which carry no gradient: both go.
    """
    low = precision == "bfloat16"
    frozen = [p for p in model.parameters() if low and p.dtype == torch.float32 and p.is_leaf and not p.requires_grad]
    try:
        for parameter in frozen:
            parameter.requires_grad_(True)
        if low:
            torch.clear_autocast_cache()
        with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=low):
            yield
    finally:
        if low:
            torch.clear_autocast_cache()
        for parameter in frozen:
            parameter.requires_grad_(False)


@contextmanager
def _packed(model: PreTrainedModel, precision: str) -> Iterator[None]:
    """Let matrix products run on weights laid out once for the processor's kernels; all is as before on leaving.

    A token step reads every weight for a few rows, and a kernel that finds them in its own layout reads them two to
    three times as fast. The copies are of ``model``'s weights at this moment and live as long as the call.
    """
    changed, left = [], PACKED
    kernels = torch.ops.mkldnn
    if torch.backends.mkldnn.is_available() and hasattr(kernels, "_linear_pointwise"):
        kinds = [torch.float32] + [torch.bfloat16] * kernels._is_mkldnn_bf16_supported()
        for module in model.modules():
            weight = module.weight if type(module) in (torch.nn.Linear, Conv1D) else None
            if weight is None or "forward" in vars(module) or weight.device.type != "cpu":
                continue
            kind = torch.bfloat16 if precision == "bfloat16" and weight.dtype == torch.float32 else weight.dtype
            left -= weight.numel() * kind.itemsize
            if left >= 0 and kind in kinds:
                changed.append((module, _twin(module, kind)))
    try:
        for module, forward in changed:
            module.forward = forward
        yield
    finally:
        for module, _ in changed:
            del module.forward


def _twin(module: torch.nn.Module, kind: torch.dtype) -> Callable[[Tensor], Tensor]:
    matrix = module.weight.detach().to(kind)
    weight = torch.ops.mkldnn._reorder_linear_weight((matrix.T if isinstance(module, Conv1D) else matrix).contiguous())
    bias = None if module.bias is None else module.bias.detach().to(kind)

    def forward(states: Tensor) -> Tensor:
        found: Tensor = torch.ops.mkldnn._linear_pointwise(states.to(kind), weight, bias, "none", [], "")
        return found

    return forward


def _check(
    model: PreTrainedModel, prompts: Sequence[tuple[int, ...]], precision: str, *, max_new_tokens: int, **counts: int
) -> None:
    for name, count in {**counts, "max_new_tokens": max_new_tokens}.items():
        if count < 1:
            raise InputError(f"Sampling has {name} of {count}; expected 1 or more.")
    if precision not in PRECISIONS:
        raise InputError(f"There is no precision {precision!r}; there are {' and '.join(PRECISIONS)}.")
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


def _shared(
    model: PreTrainedModel,
    groups: Sequence[Group],
    choose: Choose,
    stream: Stream,
    *,
    steps: int,
    batch: int,
    eos: int,
    pad: int,
) -> Iterator[list[Ended]]:
    """Yield samples as they end; nothing is padded."""
    flight = Flight(model, groups, choose, stream, steps=steps, batch=batch, eos=eos)
    while flight.waiting or flight.rows.count:
        yield flight.step()


def _plain(
    model: PreTrainedModel,
    groups: Sequence[Group],
    choose: Choose,
    stream: Stream,
    *,
    steps: int,
    batch: int,
    eos: int,
    pad: int,
) -> Iterator[list[Ended]]:
    """Yield samples batch by batch through the library's cache, each row with a copy of its prompt's keys."""
    size = max(1, batch // len(groups[0].draws))
    for first in range(0, len(groups), size):
        some = groups[first : first + size]
        uniforms = torch.from_numpy(np.stack([stream(g.key, draw) for g in some for draw in g.draws]))
        rows = [Ended(first + i, place, [], []) for i, group in enumerate(some) for place in range(len(group.draws))]
        source = torch.tensor([row.group - first for row in rows], device=model.device)
        prompts = [group.prompt for group in some]
        _fill(model, prompts, source, uniforms.to(model.device), choose, rows, eos=eos, pad=pad)
        yield rows


def _fill(
    model: PreTrainedModel,
    prompts: Sequence[tuple[int, ...]],
    source: Tensor,
    uniforms: Tensor,
    choose: Choose,
    rows: Sequence[Ended],
    *,
    eos: int,
    pad: int,
) -> None:
    """Write tokens and log-probs into ``rows``: row r goes on from prompt ``source[r]`` with ``uniforms[r]``."""
    device, longest, steps = model.device, max(map(len, prompts)), uniforms.shape[1]
    ids = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    cache, name = DynamicCache(config=model.config), _cache_name(model)
    # Recurrent states cannot be told apart by row: there each row runs its own prompt, and stays after its end.
    movable = all(hasattr(layer, "batch_select_indices") for layer in cache.layers)
    if not movable:
        ids, mask, source = ids[source], mask[source], torch.arange(len(source), device=device)
    places = (mask.cumsum(1) - 1).clamp_min(0)
    more: dict[str, Any] = {name: cache, "use_cache": True}
    out = model(input_ids=ids, attention_mask=mask, position_ids=places, logits_to_keep=1, **more)
    if movable:
        cache.batch_select_indices(source)
    logits, mask, place = out.logits[:, -1][source], mask[source], places[source, -1]
    alive = torch.arange(len(rows), device=device)
    going = torch.ones_like(alive, dtype=torch.bool)
    for step in range(steps):
        chosen, logps = choose(logits, uniforms[alive, step], torch.full_like(alive, step))
        columns = (column.tolist() for column in (alive[going], chosen[going], logps[going]))
        for row, token, logp in zip(*columns, strict=True):
            rows[row].tokens.append(token)
            rows[row].logps.append(logp)
        going = going & (chosen != eos)
        if step + 1 == steps or not bool(going.any()):
            return
        if movable and not bool(going.all()):
            keep = going.nonzero().flatten()
            cache.batch_select_indices(keep)
            alive, chosen, mask, place, going = (held[keep] for held in (alive, chosen, mask, place, going))
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        place = place + 1
        seen = mask if name == CACHES[0] else None  # purely recurrent layers would spread it over one token
        out = model(input_ids=chosen[:, None], attention_mask=seen, position_ids=place[:, None], **more)
        logits = out.logits[:, -1]


def _cache_name(model: PreTrainedModel) -> str:
    """Return the argument by which the model takes the library's cache; it would ignore one that it does not know."""
    taken = inspect.signature(model.forward).parameters
    for name in CACHES:
        if name in taken:
            return name
    raise InputError(f"{type(model).__name__} takes no cache of transformers, so it cannot sample; use another model.")
