"""The nets of policy gradient: a policy that learns, a value net and a reference beside it where a method has them.

Everything runs on forests, so a prompt is computed once for all of its completions: when the batch is looked at, and in
every update.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tiebreak.models.adapters import adapter_off, has_adapter
from tiebreak.models.forest import Forest, Tree, plant
from tiebreak.models.fused import gradients_in_place
from tiebreak.models.heads import token_values
from tiebreak.models.logprobs import distributions, words
from tiebreak.train.objectives.switches import Outcome
from tiebreak.train.pace import Pace
from tiebreak.train.pack import fill
from tiebreak.train.policy_gradient.kl import FULL
from tiebreak.train.policy_gradient.switches import Acted, Totals
from tiebreak.train.update import Compute, Learned, Update

AT_ONCE = 16 * 1024
"""Tokens of a forest that is only looked at, where the recipe gives no budget."""


class Looked(NamedTuple):
    """What the nets say of the M tokens of some trees, (M,) each, before anything is updated; None: not asked."""

    old: Tensor | None
    reference: Tensor | None
    values: Tensor | None


@dataclass(frozen=True)
class Batch:
    """Trees to learn from, with numbers of each learned token in the trees' order, (M,) each.

    ``flat`` holds those fields of :class:`Acted` that do not change while the batch is learned from.
    """

    trees: Sequence[Tree]
    flat: Mapping[str, Tensor]

    @cached_property
    def starts(self) -> list[int]:
        """Where each tree's tokens begin in the flat numbers, and where the last one's end."""
        found = [0]
        for tree in self.trees:
            found.append(found[-1] + learned(tree))
        return found

    def of(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Return the numbers of some trees, in the order of ``rows``."""
        places = [slice(self.starts[row], self.starts[row + 1]) for row in rows]
        return {name: torch.cat([values[place] for place in places]) for name, values in self.flat.items()}

    def whole(self, rows: Sequence[int], minibatches: int) -> Totals:
        """Return what the loss of a minibatch is divided by; completions that are masked do not count."""
        kept, everything = self.of(rows)["kept"], self.flat["kept"]
        sizes = [size for row in rows for size in lengths_of(self.trees[row])]
        ends = torch.tensor(sizes, device=kept.device).cumsum(0) - 1
        heads = kept[ends[torch.tensor(sizes, device=kept.device) > 0]]
        return Totals(
            sequences=max(1.0, float(heads.sum())),
            tokens=max(1.0, float(kept.sum())),
            share=max(1.0, float(everything.sum()) / minibatches),
        )


def lengths_of(tree: Tree) -> list[int]:
    """Return how many tokens of each completion are learned."""
    return [sum(taught) for taught in tree.taught] or [len(branch) for branch in tree.branches]


def learned(tree: Tree) -> int:
    """Return how many tokens of all completions are learned."""
    return sum(lengths_of(tree))


class Actor(Update):
    """A policy with its optimizer, its value net and its reference.

    Args:
        policy: a causal model, or one with an adapter. Changed in place.
        pace: learning rate, weight decay and clipping.
        compute: precision and memory.
        critic: a classifier with one label that learns beside the policy, or a layer that reads the policy's states.
        reference: a frozen model; under an adapter the base is it.
        temperature: of the policy.
        entropy: whether the loss has a term of it; it is measured anyway.
        kl: the estimator of the distance, for ``full`` needs whole distributions.
        optimizer: name of a row of OPTIMIZERS.
        optimizer_knobs: its knobs.
    """

    def __init__(
        self,
        policy: PreTrainedModel,
        pace: Pace,
        compute: Compute | None = None,
        *,
        critic: nn.Module | None = None,
        reference: PreTrainedModel | None = None,
        temperature: float = 1.0,
        kl: str = "",
        optimizer: str = "adamw",
        optimizer_knobs: Mapping[str, Any] | None = None,
    ) -> None:
        models: dict[str, nn.Module] = {"policy": policy}
        super().__init__(
            models if critic is None else {**models, "value": critic},
            pace,
            compute,
            frozen=[] if reference is None else [reference],
            optimizer=optimizer,
            optimizer_knobs=optimizer_knobs,
        )
        self.policy, self.critic, self.reference = policy, critic, reference
        self.temperature, self.kl = temperature, kl

    @property
    def compares(self) -> bool:
        """Whether there is a reference to keep near to."""
        return bool(self.kl)

    def look(self, trees: Sequence[Tree], *, old: bool) -> Looked:
        """Ask all nets about ``trees`` without gradients; ``old`` whether for the policy's own log-probs too."""
        parts = fill([tree.size for tree in trees], self.compute.tokens or AT_ONCE)
        asked: dict[str, Callable[[Forest], Tensor]] = {}
        if old or isinstance(self.critic, nn.Linear):
            asked["policy"] = self._own_words
        if self.compares:
            asked["reference"] = self._reference_logps
        if isinstance(self.critic, PreTrainedModel):
            critic = self.critic
            asked["values"] = lambda forest: token_values(critic, forest)
        found: dict[str, list[Tensor]] = {name: [] for name in asked}
        with torch.no_grad(), self.precision():
            for part in parts:
                forest = plant([trees[i] for i in part]).to(self.policy.device)
                for name, ask in asked.items():
                    found[name].append(ask(forest))
        flat = {name: _in_order(parts, values, trees) for name, values in found.items()}
        both = flat.pop("policy", None)
        shared = isinstance(self.critic, nn.Linear) and both is not None
        return Looked(
            None if both is None or not old else both[:, 0],
            flat.get("reference"),
            both[:, 1] if shared and both is not None else flat.get("values"),
        )

    def gradient(
        self,
        batch: Batch,
        rows: Sequence[int],
        loss: Callable[[Acted], Outcome],
        *,
        minibatches: int,
    ) -> Learned:
        """Add the gradient of the minibatch ``rows`` of ``batch`` to the weights and return its numbers."""
        trees = [batch.trees[row] for row in rows]
        whole, numbers = batch.whole(rows, minibatches), dict[str, float]()
        for part in fill([tree.size for tree in trees], self.compute.tokens):
            forest = plant([trees[i] for i in part]).to(self.policy.device)
            with self.precision():
                acted = self._acted(forest, batch.of([rows[i] for i in part]), whole)
            outcome = loss(acted)
            with gradients_in_place() if forest.ids.device.type == "cpu" else nullcontext():
                outcome.loss.backward()
            for name, value in {"loss": outcome.loss, **outcome.metrics}.items():
                numbers[name] = numbers.get(name, 0.0) + float(value.detach())
        return Learned(numbers, sum(tree.size for tree in trees))

    def _acted(self, forest: Forest, flat: Mapping[str, Tensor], whole: Totals) -> Acted:
        found = words(self.policy, forest, temperature=self.temperature, entropy=True)
        seen: dict[str, Tensor] = dict(flat)
        if isinstance(self.critic, PreTrainedModel):
            seen["values"] = token_values(self.critic, forest)
        elif self.critic is not None:
            seen["values"] = self._own_values(found.states)
        if self.kl == FULL:
            seen["distance"] = self._distance(forest)
        old = seen.pop("old", None)
        return Acted(
            logps=found.logps,
            old=found.logps.detach() if old is None else old,
            branch=forest.branch,
            lengths=forest.lengths,
            entropy=found.entropy,
            whole=whole,
            **seen,
        )

    def _own_words(self, forest: Forest) -> Tensor:
        """Return the policy's log-probs and, where it has a value head of its own, its values: (M, 2)."""
        found = words(self.policy, forest, temperature=self.temperature)
        if isinstance(self.critic, nn.Linear):
            return torch.stack([found.logps, self._own_values(found.states)], 1)
        return torch.stack([found.logps, found.logps], 1)

    def _own_values(self, states: Tensor) -> Tensor:
        """Read values off the policy's states, (M, width) -> (M,), whatever the policy's precision."""
        assert isinstance(self.critic, nn.Linear)
        values: Tensor = self.critic(states.to(self.critic.weight.dtype))
        return values[:, 0].float()

    def _reference_logps(self, forest: Forest) -> Tensor:
        model, off = self._as_reference()
        with off:
            return words(model, forest, temperature=self.temperature).logps

    def _as_reference(self) -> tuple[PreTrainedModel, Any]:
        bare = self.reference is None and has_adapter(self.policy)
        return self.reference or self.policy, adapter_off(self.policy) if bare else nullcontext()

    def _distance(self, forest: Forest) -> Tensor:
        """KL(pi || ref) over the whole vocabulary at each token, (M,)."""
        own = distributions(self.policy, forest, temperature=self.temperature)
        model, off = self._as_reference()
        with torch.no_grad(), off:
            other = distributions(model, forest, temperature=self.temperature)
        return (own.exp() * (own - other)).sum(-1)


def _in_order(parts: Sequence[Sequence[int]], found: Sequence[Tensor], trees: Sequence[Tree]) -> Tensor:
    """Put the token numbers of forests back into the order of ``trees``."""
    pieces: dict[int, Tensor] = {}
    for part, values in zip(parts, found, strict=True):
        for tree, piece in zip(part, values.split([learned(trees[i]) for i in part]), strict=True):
            pieces[tree] = piece
    return torch.cat([pieces[i] for i in range(len(trees))])
