"""What a model writes after its prompts, with the distribution at every place: a few tokens of many prompts at once.

Prompts that begin alike, such as one question in two orders, are read as one tree: what they share is computed once.
A reply depends on its own prompt alone, never on what else is in the batch, up to rounding.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedModel

from tiebreak.models.attention import forest_mode
from tiebreak.models.decode import NAME, PREFILL, Memory, Stand
from tiebreak.models.forest import Forest, Tree, plant
from tiebreak.models.pick import pick
from tiebreak.records import InputError

SHARED = 16
"""Tokens that prompts have in common below which they are not read together."""
_shares: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()


class Place(NamedTuple):
    """A token that was written, and log p of the likeliest tokens in its place, itself among them.

    They are those of the model itself, at temperature 1, whatever the token was drawn at.
    """

    token: int
    top: Mapping[int, float]


class Written(NamedTuple):
    """The places of a reply, EOS left out, and whether it ended by itself (``stop``) or at the limit (``length``)."""

    places: tuple[Place, ...]
    finish: str


Say = Callable[[Tensor, Sequence[int]], Tensor]
"""Choose and note a token for each row of logits (R, V), given the prompts' numbers; return the tokens (R,)."""


def write(
    model: PreTrainedModel,
    prompts: Sequence[tuple[int, ...]],
    keys: Sequence[str],
    *,
    steps: int,
    temperature: float,
    top: int,
    eos: int,
    wanted: Callable[[], bool] = lambda: True,
) -> list[Written]:
    """Return what ``model`` writes after each of ``prompts``; the model is left as it was found.

    Args:
        model: a causal language model in eval mode.
        prompts: token ids, at least two each.
        keys: hexadecimal numbers that seed each prompt's draws.
        steps: tokens of a reply at most.
        temperature: 0 takes the most likely token.
        top: how many of the likeliest tokens are noted at each place.
        eos: token id that ends a reply.
        wanted: whether anybody waits still; once nobody does, replies stay as short as they are.

    Raises:
        InputError: a prompt of fewer than two tokens, or logits that are not finite.
    """
    if any(len(prompt) < 2 for prompt in prompts):
        raise InputError("A prompt has fewer than two tokens, so it asks for nothing; give it text.")
    if not prompts:
        return []
    notes: list[list[Place]] = [[] for _ in prompts]
    uniforms = np.stack([np.random.Generator(np.random.Philox(int(key, 16))).random(steps) for key in keys])

    def say(logits: Tensor, rows: Sequence[int]) -> Tensor:
        drawn = torch.tensor([uniforms[row, len(notes[row])] for row in rows], device=logits.device)
        tokens = pick(logits, drawn, temperature)
        for row, place in zip(rows, _places(logits, tokens, top), strict=True):
            notes[row].append(place)
        return tokens

    with torch.no_grad():
        if _can_share(model):
            with forest_mode(model):
                model.set_attn_implementation(NAME)
                _together(model, prompts, say, wanted, steps=steps, eos=eos)
        else:
            for row, prompt in enumerate(prompts):
                _alone(model, prompt, partial(say, rows=(row,)), steps=steps, eos=eos)
    return [_written(places, eos) for places in notes]


def _written(places: list[Place], eos: int) -> Written:
    stop = places[-1].token == eos
    return Written(tuple(places[:-1] if stop else places), "stop" if stop else "length")


def _places(logits: Tensor, tokens: Tensor, top: int) -> Iterator[Place]:
    logps = logits.float().log_softmax(-1)
    said = logps.gather(-1, tokens[:, None])[:, 0]
    if not bool(said.isfinite().all()):
        raise InputError("The model's logits are not finite numbers (NaN or infinity); load other weights.")
    best, ids = logps.topk(min(top, logps.shape[-1]), -1)
    columns = (column.tolist() for column in (tokens, said, ids, best))
    for token, logp, near, values in zip(*columns, strict=True):
        yield Place(token, {token: logp} | dict(zip(near, values, strict=True)))


def _can_share(model: PreTrainedModel) -> bool:
    if model not in _shares:
        try:
            with forest_mode(model):
                _shares[model] = True
        except InputError:
            _shares[model] = False
    return _shares[model]


def grove(prompts: Sequence[tuple[int, ...]], *, least: int = SHARED) -> list[list[int]]:
    """Return the numbers of ``prompts`` in groups that share a beginning: the cut of their order that saves the most.

    In alphabetical order prompts that begin alike stand side by side. A beginning shorter than ``least`` is not shared,
    and each prompt keeps a last token of its own.
    """
    order = sorted(range(len(prompts)), key=lambda i: prompts[i])
    ordered = [prompts[i] for i in order]
    alike = [_alike(ordered[i - 1], ordered[i]) if i else 0 for i in range(len(ordered))]
    best, cut = [0] * (len(order) + 1), [0] * (len(order) + 1)
    for end in range(1, len(order) + 1):
        best[end], cut[end] = best[end - 1], end - 1
        common = len(ordered[end - 1])
        for start in range(end - 2, -1, -1):
            common = min(common, alike[start + 1])
            if common < least:
                break
            saved = best[start] + (end - start - 1) * common
            if saved > best[end]:
                best[end], cut[end] = saved, start
    groups, end = [], len(order)
    while end:
        groups.append(order[cut[end] : end])
        end = cut[end]
    return groups[::-1]


def _alike(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """Return how many tokens of both a trunk may hold: what they begin with, without a last token of either."""
    most = min(len(one), len(other)) - 1
    return next((i for i in range(most) if one[i] != other[i]), most)


def _tree(prompts: Sequence[tuple[int, ...]]) -> Tree:
    size = min([len(prompts[0]) - 1, *(_alike(prompts[0], other) for other in prompts[1:])])
    return Tree(prompts[0][:size], tuple(prompt[size:] for prompt in prompts))


def _slides(model: PreTrainedModel, longest: int) -> bool:
    """Whether a sliding window is shorter than the longest row: then the rows of a trunk have to keep in step."""
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    return window is not None and window < longest


@dataclass
class Roots:
    """Keeps the keys of a forest of trunks and branches for a pass: a trunk's in its slot, a branch's in its row.

    ``first`` is the row of the forest's first branch.
    """

    memory: Memory
    forest: Forest
    first: int

    def __post_init__(self) -> None:
        owner = self.forest.owner
        self.places = (owner >= 0).nonzero()[:, 0]
        branch = owner[self.places]
        trunks = torch.tensor([span.trunk for span in self.forest.spans], device=owner.device)
        self.rows = branch + self.first
        self.ages = self.forest.positions[0, self.places] - trunks[self.forest.tree[branch]]

    def keep(self, key: Tensor, value: Tensor, forest: Forest) -> None:
        """Keep a layer's ``key`` and ``value``, (1, K, N, D)."""
        number = self.memory.at
        self.memory.keep(key, value, forest)
        layer = self.memory.layers[number]
        for states, held in ((key, layer.keys), (value, layer.values)):
            held[self.rows, :, self.ages] = states[0].to(held.dtype).transpose(0, 1)[self.places]


class Forgetful:
    """Keeps nothing: where a single token is written nobody looks back."""

    def keep(self, key: Tensor, value: Tensor, forest: Forest) -> None:
        """Let the keys go."""


def _together(
    model: PreTrainedModel,
    prompts: Sequence[tuple[int, ...]],
    say: Say,
    wanted: Callable[[], bool],
    *,
    steps: int,
    eos: int,
) -> None:
    """Have all ``prompts`` answered at once. The model attends by the decoder's attention."""
    longest = max(map(len, prompts)) + steps
    groups = grove(prompts, least=longest if _slides(model, longest) else SHARED)
    trees = [_tree([prompts[i] for i in group]) for group in groups]
    numbers = [i for group in groups for i in group]
    tails = [len(branch) for tree in trees for branch in tree.branches]
    memory = Memory(
        slots=len(trees),
        rows=len(numbers),
        columns=max(map(len, groups)),
        size=max(len(tree.trunk) for tree in trees),
        steps=max(tails) + steps,
    )
    logits = torch.cat(list(_read(model, trees, memory, keeps=steps > 1)))
    whole: dict[str, Any] = {"device": model.device}
    sizes = torch.tensor([len(tree.trunk) for tree in trees], **whole)
    slot = torch.arange(len(trees), **whole).repeat_interleave(torch.tensor([len(group) for group in groups], **whole))
    column, age = (
        torch.tensor([i for group in groups for i in range(len(group))], **whole),
        torch.tensor(tails, **whole),
    )
    moved = True
    for step in range(steps):
        tokens = say(logits, numbers)
        going = tokens != eos
        if step + 1 == steps or not bool(going.any()) or not wanted():
            return
        if not bool(going.all()):
            keep = going.nonzero()[:, 0]
            memory.move(keep, torch.arange(len(keep), **whole))
            numbers = [numbers[i] for i in keep.tolist()]
            tokens, slot, column, age = (held[keep] for held in (tokens, slot, column, age))
            moved = True
        memory.reach(oldest=int(age.max()) + 1)
        # Where a window slides, the rows of a slot are of one age; elsewhere nobody asks for the slots' ages.
        ages = torch.zeros_like(sizes).index_copy_(0, slot, age)
        memory.begin(Stand(slot, column, age, sizes, ages), moved=moved)
        moved = False
        positions = (sizes[slot] + age)[None]
        logits = model(input_ids=tokens[None], position_ids=positions, use_cache=False, memory=memory).logits[0]
        age = age + 1


def _read(model: PreTrainedModel, trees: Sequence[Tree], memory: Memory, *, keeps: bool) -> Iterator[Tensor]:
    """Yield the logits behind the branches, (B, V), of portions of the trees; ``memory`` may keep their keys."""
    memory.reach(
        longest=max(len(tree.trunk) for tree in trees), oldest=max(len(b) for tree in trees for b in tree.branches) + 1
    )
    row = slot = 0
    while slot < len(trees):
        end, tokens = slot + 1, trees[slot].size
        while end < len(trees) and tokens + trees[end].size <= PREFILL:
            tokens += trees[end].size
            end += 1
        forest = plant(trees[slot:end]).to(model.device)
        memory.begin(torch.arange(slot, end, device=model.device))
        kept = Roots(memory, forest, row) if keeps else Forgetful()
        more: dict[str, Any] = {"logits_to_keep": forest.last, "forest": forest, "memory": kept}
        out = model(input_ids=forest.ids, position_ids=forest.positions, use_cache=False, **more)
        logits: Tensor = out.logits[0]
        yield logits if len(logits) == len(forest.last) else logits[forest.last]
        row, slot = row + len(forest.last), end


def _alone(
    model: PreTrainedModel, prompt: tuple[int, ...], say: Callable[[Tensor], Tensor], *, steps: int, eos: int
) -> None:
    """Have one prompt answered through the library's own generation, whatever the architecture keeps of the past."""

    def force(_ids: Tensor, logits: Tensor) -> Tensor:
        return torch.full_like(logits, float("-inf")).scatter_(1, say(logits)[:, None], 0.0)

    ids, own = torch.tensor([prompt], device=model.device), model.generation_config
    # What the settings leave open the library takes from the model's own, a repetition penalty for instance.
    model.generation_config = GenerationConfig(
        max_new_tokens=steps, do_sample=False, eos_token_id=eos, pad_token_id=eos
    )
    try:
        model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), logits_processor=LogitsProcessorList([force])
        )
    finally:
        model.generation_config = own
