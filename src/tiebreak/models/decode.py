"""Decoding with each prompt computed and kept once, however many samples follow it.

Prompts run as a forest without branches, and their keys and values stay, one copy a prompt. Then every row in flight
adds one token a step: attention sees the prompt's keys, which its samples share, and the row's own. The model's code
is untouched; attention alone knows of it. A row that ends leaves at once, and others take the room.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

from tiebreak.models.attention import CURE, forest_attention
from tiebreak.models.forest import Forest, roots
from tiebreak.models.pick import Choose, Ended, Group, Rows, Stream
from tiebreak.records import InputError

NAME = "tiebreak_decode"
PREFILL = 8192
"""Tokens of prompts that run together."""
REFILL = 4
"""New rows come in when one in so many places is free: a prefill for each row that ends costs more than it fills."""
ROOM = 32
"""Tokens that there is room for at first. Attention runs over all the room, masked: gaps between rows cost more."""


@dataclass
class Layer:
    """Keys and values of a layer: of S prompts (S, K, L, D), and of B rows since their prompts (B, K, T, D)."""

    prompt_keys: Tensor
    prompt_values: Tensor
    keys: Tensor
    values: Tensor


class Stand(NamedTuple):
    """Where the rows of a step stand: ``slot``, ``column``, ``age`` (R,); ``sizes``, ``ages`` (S,) of the slots in use.

    A row belongs to a slot (its prompt) and a column (its place among the prompt's samples). Its age is the number of
    its own tokens in memory, the same for all rows of a slot.
    """

    slot: Tensor
    column: Tensor
    age: Tensor
    sizes: Tensor
    ages: Tensor


@dataclass
class Memory:
    """Keys and values of all layers in the order in which a pass calls them, and where the present pass stands.

    There is room for ``slots`` prompts of ``longest`` tokens, ``columns`` rows each, and for ``rows`` rows of
    ``oldest`` tokens; it grows as it is needed, to ``size`` and ``steps`` tokens at most.
    """

    slots: int
    rows: int
    columns: int
    size: int
    steps: int
    longest: int = 0
    oldest: int = 0
    layers: list[Layer] = field(default_factory=list)
    at: int = 0
    stand: Any = None
    notes: dict[Any, Any] = field(default_factory=dict)

    def reach(self, *, longest: int = 0, oldest: int = 1) -> None:
        """Make room for prompts of ``longest`` tokens and for rows of ``oldest``."""
        if longest > self.longest:
            self.longest = _enough(longest, self.longest, self.size)
            for layer in self.layers:
                layer.prompt_keys = _longer(layer.prompt_keys, self.longest)
                layer.prompt_values = _longer(layer.prompt_values, self.longest)
        if oldest > self.oldest:
            self.oldest = _enough(oldest, self.oldest, self.steps)
            for layer in self.layers:
                layer.keys, layer.values = _longer(layer.keys, self.oldest), _longer(layer.values, self.oldest)

    def begin(self, stand: Stand | Tensor, *, moved: bool = True) -> None:
        """Start a pass: over rows that stand so, or over prompts that go to these slots.

        ``moved`` says that rows or prompts came, went or moved since the last pass.
        """
        self.at, self.stand = 0, stand
        self.notes = {} if moved else {key: note for key, note in self.notes.items() if key[0] == "ways"}

    def keep(self, key: Tensor, value: Tensor, forest: Forest) -> None:
        """Keep a layer's ``key`` and ``value`` (1, K, N, D) of a forest of prompts in the slots of this pass.

        Places behind a prompt's end get what is finite: they are never seen, but nothing times NaN is NaN.
        """
        if self.at == len(self.layers):
            room = [(self.slots, self.longest), (self.rows, self.oldest)]
            shapes = [(n, like.shape[1], long, like.shape[3]) for n, long in room for like in (key, value)]
            self.layers.append(Layer(*(value.new_zeros(shape) for shape in shapes)))
        layer = self.layers[self.at]
        self.at += 1
        if ("laid",) not in self.notes:
            self.notes["laid",] = _laid(forest, self.longest)
        for states, held in ((key, layer.prompt_keys), (value, layer.prompt_values)):
            tokens = states[0].to(held.dtype).transpose(0, 1).index_select(0, self.notes["laid",])
            held.index_copy_(0, self.stand, tokens.view(-1, self.longest, *tokens.shape[1:]).transpose(1, 2))

    def move(self, source: Tensor, target: Tensor, *, prompts: bool = False) -> None:
        """Move what is kept of the rows ``source`` to the places ``target``, or of the prompts from slot to slot."""
        for layer in self.layers if len(source) else ():
            pair = (layer.prompt_keys, layer.prompt_values) if prompts else (layer.keys, layer.values)
            for held in pair:
                held.index_copy_(0, target, held.index_select(0, source))

    def _unseen(self, heads: int, window: int | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return what to add to scores: of prompts (S * K, 1, L) and of rows' own keys (R * K, 1, T).

        It is -inf behind a prompt's or a row's end, and from ``window`` tokens back.
        """
        if ("unseen", heads, window, dtype) not in self.notes:
            _, _, age, sizes, ages = self.stand
            place, step = (torch.arange(end, device=age.device) for end in (self.longest, self.oldest))
            hidden, later = place >= sizes[:, None], step > age[:, None]
            if window is not None:
                hidden |= (sizes + ages)[:, None] - place >= window
                later |= age[:, None] - step >= window
            self.notes["unseen", heads, window, dtype] = tuple(
                torch.zeros(mask.shape, dtype=dtype, device=mask.device)
                .masked_fill_(mask, float("-inf"))
                .repeat_interleave(heads, 0)[:, None]
                for mask in (hidden, later)
            )
        found: tuple[Tensor, Tensor] = self.notes["unseen", heads, window, dtype]
        return found

    def _ways(self, heads: int) -> tuple[Tensor, Tensor]:
        """Return the ways from rows (R * K) to the grid of slots, key heads and columns (S * K * C) and back."""
        if ("ways", heads) not in self.notes:
            slot, column, _, sizes, _ = self.stand
            head = torch.arange(heads, device=slot.device)
            back = ((slot[:, None] * heads + head) * self.columns + column[:, None]).flatten()
            there = back.new_zeros(len(sizes) * heads * self.columns)
            there[back] = torch.arange(len(back), device=slot.device)
            self.notes["ways", heads] = there, back
        found: tuple[Tensor, Tensor] = self.notes["ways", heads]
        return found

    def _add(self, key: Tensor, value: Tensor, layer: Layer) -> None:
        """Write the new token's ``key`` and ``value`` (1, K, R, D) behind each row's last."""
        heads, rows = key.shape[1:3]
        if ("ends", heads) not in self.notes:
            first = torch.arange(0, rows * heads * self.oldest, self.oldest, device=key.device)
            self.notes["ends", heads] = first + self.stand.age.repeat_interleave(heads)
        for states, held in ((key, layer.keys), (value, layer.values)):
            tokens, size = states[0].to(held.dtype).transpose(0, 1), held.shape[-1]
            held.view(-1, size).index_copy_(0, self.notes["ends", heads], tokens.reshape(-1, size))

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None, cap: float | None
    ) -> Tensor:
        """Attend from one new token a row. ``query`` (1, H, R, D), ``key``, ``value`` (1, K, R, D); out (R, H, D)."""
        layer, slots = self.layers[self.at], len(self.stand.sizes)
        self.at += 1
        self._add(key, value, layer)
        (heads, rows), groups = query.shape[1:3], key.shape[1]
        each, wide = heads // groups, self.columns * heads // groups
        there, back = self._ways(groups)
        hidden, later = self._unseen(groups, window, value.dtype)
        near = query[0].transpose(0, 1).to(value.dtype).reshape(rows * groups, each, -1)
        far = near.index_select(0, there).view(slots * groups, wide, -1)
        far = _scores(far, layer.prompt_keys[:slots].flatten(0, 1), hidden, scale, cap)
        far = far.view(-1, each, self.longest).index_select(0, back)
        near = _scores(near, layer.keys[:rows].flatten(0, 1), later, scale, cap)
        weights = torch.cat((far, near), -1).softmax(-1, dtype=torch.float32).to(value.dtype)
        far = weights[..., : self.longest].index_select(0, there).view(slots * groups, wide, self.longest)
        far = torch.bmm(far, layer.prompt_values[:slots].flatten(0, 1))
        far = far.view(-1, each, far.shape[-1]).index_select(0, back)
        mixed = torch.baddbmm(far, weights[..., self.longest :], layer.values[:rows].flatten(0, 1))
        return mixed.view(rows, heads, -1)


def _scores(query: Tensor, key: Tensor, unseen: Tensor, scale: float, cap: float | None) -> Tensor:
    """Return scores (X, Q, L) of ``query`` (X, Q, D) against ``key`` (X, L, D); ``unseen`` (X, 1, L) is added."""
    if cap is None:
        return torch.baddbmm(unseen, query, key.transpose(1, 2), alpha=scale)
    return torch.bmm(query, key.transpose(1, 2)).mul_(scale / cap).tanh_().mul_(cap).add_(unseen)


def _enough(needed: int, room: int, most: int) -> int:
    """Return room for ``needed`` tokens, or a quarter more than before, up to ``most``: each growth is a copy."""
    return max(ROOM, -(-min(most, max(needed, room + room // 4)) // 16) * 16)


def _longer(held: Tensor, room: int) -> Tensor:
    longer = held.new_zeros(*held.shape[:2], room, held.shape[3])
    longer[:, :, : held.shape[2]] = held
    return longer


def _laid(forest: Forest, longest: int) -> Tensor:
    """Return which token of the row lies at each place of the prompts, (T * L,); behind a prompt's end the first."""
    starts, sizes = (
        torch.tensor(some, device=forest.ids.device)[:, None]
        for some in ([span.start for span in forest.spans], [span.trunk for span in forest.spans])
    )
    place = torch.arange(longest, device=forest.ids.device)[None]
    return torch.where(place < sizes, starts + place, 0).flatten()


def decode_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    *,
    forest: Forest | None = None,
    memory: Memory | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Attend within a forest of prompts and keep their keys, or from one new token a row to what is kept.

    Raises:
        InputError: the model did not hand the memory to its attention layers, or has attention sinks.
    """
    name = type(module).__name__
    if memory is None:
        raise InputError(f"{name} does not pass extra arguments to its attention, so prompts cannot be shared; {CURE}")
    if s_aux is not None:
        raise InputError(f"{name} has attention sinks, which shared prompts do not compute; {CURE}")
    if forest is None:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        return memory.attend(query, key, value, scale, sliding_window, softcap)[None], None
    memory.keep(key, value, forest)
    bounds: dict[str, Any] = {"sliding_window": sliding_window, "softcap": softcap}
    return forest_attention(module, query, key, value, None, scaling=scaling, forest=forest, **bounds)


AttentionInterface.register(NAME, decode_attention)


@dataclass
class Resident:
    """A prompt in a slot: its group, its length, the step that took it in, and how many of its rows are alive."""

    group: int
    size: int
    born: int
    rows: int


class Flight:
    """The rows in flight, the prompts they go on from, and the groups that wait for room. The model attends by NAME.

    ``groups`` come best sorted by length: prompts in memory take as much room as the longest. ``steps`` is the most
    tokens of a sample, ``batch`` the most rows, though those of one group are never parted.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        groups: Sequence[Group],
        choose: Choose,
        stream: Stream,
        *,
        steps: int,
        batch: int,
        eos: int,
    ) -> None:
        self.model, self.groups, self.choose, self.stream, self.eos = model, groups, choose, stream, eos
        wide = max(len(group.draws) for group in groups)
        places = min(max(batch, wide), sum(len(group.draws) for group in groups))
        slots = min(len(groups), places, 2 * -(-places // wide))
        longest = max(len(group.prompt) for group in groups)
        self.rows = Rows(places, steps, model.device)
        self.memory = Memory(slots, places, columns=wide, size=longest, steps=steps)
        self.waiting, self.free = list(range(len(groups)))[::-1], list(range(slots))[::-1]
        self.residents: dict[int, Resident] = {}
        self.now, self.moved = 0, True

    def step(self) -> list[Ended]:
        """Give every row one token, after taking in new rows where there is room; return the samples that ended."""
        rows = self.rows
        logits = [self._forward()] if rows.count else []
        if self.waiting and (not rows.count or (rows.places - rows.count) * REFILL >= rows.places):
            logits += self._take_in()
        whole = logits[0] if len(logits) == 1 else torch.cat(logits)
        over = rows.extend(whole, self.choose, now=self.now, eos=self.eos)
        ended = self._leave(over) if len(over) else []
        self.now += 1
        return ended

    def _forward(self) -> Tensor:
        """Return the logits (R, V) behind the last token of each row."""
        live, rows = slice(self.rows.count), self.rows
        if self.moved:
            present = [self.residents.get(slot, Resident(0, 1, 0, 0)) for slot in range(max(self.residents) + 1)]
            self.sizes, self.births = torch.tensor([[one.size, one.born] for one in present], device=rows.device).T
        before = self.now - 1
        age = before - rows.born[live]
        stand = Stand(rows.slot[live], rows.column[live], age, self.sizes, before - self.births)
        self.memory.reach(oldest=self.now - min(one.born for one in self.residents.values()))
        self.memory.begin(stand, moved=self.moved)
        self.moved = False
        ids, positions = rows.last[None, live], (rows.size[live] + age)[None]
        out = self.model(input_ids=ids, position_ids=positions, use_cache=False, memory=self.memory)
        logits: Tensor = out.logits[0]
        return logits

    def _take_in(self) -> list[Tensor]:
        """Fill free places with the next groups; return the logits (R', V) behind their prompts."""
        taken: list[int] = []
        where: list[tuple[int, int, int]] = []
        uniforms = []
        while self.waiting and self.free:
            group = self.groups[self.waiting[-1]]
            wide, size = len(group.draws), len(group.prompt)
            if self.rows.count + len(where) + wide > self.rows.places:
                break
            slot = self.free.pop()
            taken.append(slot)
            self.residents[slot] = Resident(self.waiting.pop(), size, self.now, wide)
            where += [(slot, column, size) for column in range(wide)]
            uniforms += [self.stream(group.key, draw) for draw in group.draws]
        if taken:
            self.rows.add(where, np.stack(uniforms), self.now)
            self.moved = True
        return [self._prefill(some) for some in _portions(taken, [self.residents[slot].size for slot in taken])]

    def _prefill(self, slots: list[int]) -> Tensor:
        """Run the prompts of ``slots``; return the logits behind them, one row for each of their samples."""
        groups, device = [self.groups[self.residents[slot].group] for slot in slots], self.rows.device
        forest = roots([group.prompt for group in groups]).to(device)
        self.memory.reach(longest=max(len(group.prompt) for group in groups))
        self.memory.begin(torch.tensor(slots, device=device))
        more: dict[str, Any] = {"logits_to_keep": forest.last, "forest": forest, "memory": self.memory}
        out = self.model(input_ids=forest.ids, position_ids=forest.positions, use_cache=False, **more)
        wide = torch.tensor([len(group.draws) for group in groups], device=device)
        logits: Tensor = out.logits[0] if len(out.logits[0]) == len(slots) else out.logits[0][forest.last]
        return logits.repeat_interleave(wide, 0)

    def _leave(self, over: Tensor) -> list[Ended]:
        """Let the rows ``over`` go, and prompts with their last row."""
        left, source, target = self.rows.leave(over, self.now)
        self.memory.move(source, target)
        self.moved = True
        ended = []
        for slot, column, tokens, logps in left:
            resident = self.residents[slot]
            ended.append(Ended(resident.group, column, tokens, logps))
            resident.rows -= 1
            if not resident.rows:
                del self.residents[slot]
                self.free.append(slot)
        self.free.sort(reverse=True)
        if self.residents and max(self.residents) >= 2 * len(self.residents):
            self._close_up()
        return ended

    def _close_up(self) -> None:
        """Move prompts from high slots to low ones, for attention runs over all slots up to the highest."""
        count = len(self.residents)
        high, low = [slot for slot in self.residents if slot >= count], [slot for slot in self.free if slot < count]
        source, target = (torch.tensor(some, device=self.rows.device) for some in (high, low))
        self.memory.move(source, target, prompts=True)
        place = torch.arange(self.memory.slots, device=self.rows.device).index_copy_(0, source, target)
        live = slice(self.rows.count)
        self.rows.slot[live] = place[self.rows.slot[live]]
        for old, slot in zip(high, low, strict=True):
            self.residents[slot] = self.residents.pop(old)
        self.free = [slot for slot in range(self.memory.slots) if slot not in self.residents][::-1]


def _portions(slots: Sequence[int], sizes: Sequence[int]) -> Iterator[list[int]]:
    """Yield runs of ``slots`` with at most PREFILL tokens, or one that has more."""
    run: list[int] = []
    tokens = 0
    for slot, size in zip(slots, sizes, strict=True):
        if run and tokens + size > PREFILL:
            yield run
            run, tokens = [], 0
        run.append(slot)
        tokens += size
    if run:
        yield run
