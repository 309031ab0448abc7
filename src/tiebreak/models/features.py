"""Features of completions, computed once with a frozen model and kept on disk, and the plain heads that read them.

A backbone that stays as it is gives the same numbers for the same text whatever the labels are. So a head on them is
trained in seconds on a laptop, and again for every vote that comes in, while the backbone ran once.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from tiebreak.models.attention import forest_mode
from tiebreak.models.forest import Forest, Tree, plant, roots
from tiebreak.models.heads import head_of, hidden_last, is_encoder, scores
from tiebreak.records import InputError, Progress, quiet
from tiebreak.registry import nearest

FEW = 8
"""Completions that share one prompt in a forest: enough to save most of its cost, and bounded memory."""
TOKENS = 16 * 1024
"""Tokens that are computed at once; a tree is never split, so one that is larger is computed alone."""


class Features(NamedTuple):
    """Features of N different completions, ``values`` (N, width), in float32 on the processor.

    ``place`` (B,) says which of them belongs to each branch of the trees asked about, in their order; a completion
    that many users voted on is there once. ``read`` says that they were on disk already.
    """

    values: Tensor
    place: Tensor
    read: bool = False

    @property
    def each(self) -> Tensor:
        """The features of each branch, (B, width)."""
        return self.values[self.place]


def features(
    model: PreTrainedModel,
    trees: Sequence[Tree],
    *,
    cache: Path | None = None,
    tokens: int = TOKENS,
    progress: Progress = quiet,
) -> Features:
    """Return what the last layer of the reward head is given for each completion of ``trees``.

    Of a causal model that is the final hidden state at the completion's last token, of an encoder what its own layers
    before the last one make of it; a linear layer on these features can be put into the model by
    :func:`put_in`, and scores stay the same to rounding.

    Args:
        model: a sequence classifier; nothing in it changes.
        trees: prompts with their completions. Equal completions of equal prompts are computed once.
        cache: folder to keep them in, under a hash of the weights below the head, the token ids and the precision.
        tokens: computed at once.
        progress: called with completions done and completions in all.

    Raises:
        InputError: a model that cannot run a forest or has no head, or features that cannot be written.
    """
    asked = sorted({(tree.trunk, branch) for tree in trees for branch in tree.branches})
    at = {pair: i for i, pair in enumerate(asked)}
    place = torch.tensor([at[tree.trunk, branch] for tree in trees for branch in tree.branches], dtype=torch.long)
    grown = _grown(asked)

    def compute() -> Tensor:
        return _computed(model, [(tree, tree.size, len(tree.branches)) for tree in grown], plant, tokens, progress)

    values, read = _kept(model, "completions", asked, cache, compute)
    return Features(values, place, read)


def prompt_features(
    model: PreTrainedModel,
    trees: Sequence[Tree],
    *,
    cache: Path | None = None,
    tokens: int = TOKENS,
    progress: Progress = quiet,
) -> Features:
    """Return the features of the prompts of ``trees`` read alone; ``place`` (T,) says which belongs to each tree.

    They are those of :func:`features` at the prompt's last token, before any answer.
    """
    asked = sorted({tree.trunk for tree in trees})
    at = {trunk: i for i, trunk in enumerate(asked)}
    place = torch.tensor([at[tree.trunk] for tree in trees], dtype=torch.long)

    def compute() -> Tensor:
        return _computed(model, [(trunk, len(trunk), 1) for trunk in asked], roots, tokens, progress)

    values, read = _kept(model, "prompts", asked, cache, compute)
    return Features(values, place, read)


def given(model: PreTrainedModel, forest: Forest) -> Tensor:
    """Return what the last layer of the head is given for each branch, (B, width). Run inside ``forest_mode``."""
    if not is_encoder(model):
        return hidden_last(model, forest)
    kept: dict[str, Tensor] = {}

    def keep(_module: object, inputs: tuple[Tensor, ...]) -> None:
        kept["inputs"] = inputs[0]

    hook = head_of(model).register_forward_pre_hook(keep)
    try:
        scores(model, forest)
    finally:
        hook.remove()
    return kept["inputs"]


def weights_mark(model: PreTrainedModel) -> str:
    """Return a hash of the weights that features depend on: all but the head's last layer, which reads them.

    Of each tensor its sum and up to 4096 evenly spaced numbers are read: enough to tell two models apart.
    """
    last = head_of(model)
    digest = hashlib.blake2b(type(model).__name__.encode(), digest_size=16)
    for parameter in model.parameters():
        if parameter is last.weight or parameter is last.bias:
            continue
        flat = parameter.detach().flatten()
        digest.update(f"{parameter.dtype}{tuple(parameter.shape)}".encode())
        digest.update(flat[:: max(1, len(flat) // 4096)].float().cpu().numpy().tobytes())
        digest.update(flat.sum(dtype=torch.float64).cpu().numpy().tobytes())
    return digest.hexdigest()


def _grown(asked: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]) -> list[Tree]:
    """Return the trees of sorted (prompt, completion) pairs: at most :data:`FEW` branches on a trunk."""
    trees: list[Tree] = []
    for trunk, branch in asked:
        if trees and trees[-1].trunk == trunk and len(trees[-1].branches) < FEW:
            trees[-1] = Tree(trunk, (*trees[-1].branches, branch))
        else:
            trees.append(Tree(trunk, (branch,)))
    return trees


def _computed(
    model: PreTrainedModel,
    items: Sequence[tuple[Any, int, int]],
    pack: Callable[[Sequence[Any]], Forest],
    tokens: int,
    progress: Progress,
) -> Tensor:
    """Return the features of ``items`` (what to pack, its tokens, how many features it has), in their order."""
    starts = np.cumsum([0, *(count for *_, count in items)])
    out: Tensor | None = None
    done, training = 0, model.training
    model.eval()
    try:
        with torch.no_grad(), forest_mode(model):
            for part in _batches([size for _, size, _ in items], tokens):
                found = given(model, pack([items[i][0] for i in part]).to(model.device)).float().cpu()
                if out is None:
                    out = torch.empty(int(starts[-1]), found.shape[1])
                out[np.concatenate([np.arange(starts[i], starts[i + 1]) for i in part])] = found
                done += len(found)
                progress(done, int(starts[-1]), {})
    finally:
        model.train(training)
    return torch.zeros(0, head_of(model).in_features) if out is None else out


def _batches(sizes: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Yield indices of items of like size, at most ``tokens`` a batch; the largest first, where memory would run out.

    Raises:
        InputError: no token may be computed.
    """
    if tokens < 1:
        raise InputError(f"Features are computed {tokens} tokens at once; give at least 1.")
    part: list[int] = []
    held = 0
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        if part and held + sizes[i] > tokens:
            yield part
            part, held = [], 0
        part.append(i)
        held += sizes[i]
    if part:
        yield part


def _kept(
    model: PreTrainedModel, what: str, asked: Sequence[Any], cache: Path | None, compute: Callable[[], Tensor]
) -> tuple[Tensor, bool]:
    """Return features from disk, or compute them and put them there in one move; and whether they were there."""
    if cache is None:
        return compute(), False
    digest = hashlib.blake2b(f"{what} {weights_mark(model)}".encode(), digest_size=16)
    for ids in asked:
        digest.update(repr(ids).encode())
    path = cache / f"{digest.hexdigest()}.safetensors"
    with suppress(OSError, SafetensorError, KeyError):  # not there, or cut short by a crash: computed again
        return load_file(path)["features"], True
    values = compute()
    partial = path.with_suffix(".partial")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        save_file({"features": values.contiguous()}, partial)
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"The features cannot be written to {path}: {error}; free some space.") from error
    return values, False


class Standard(nn.Module):  # type: ignore[misc]
    """Features as a head takes them: divided by their spread over the training's completions, what is missing is 0.

    Hidden states differ in scale from one backbone to the next, so without it no learning rate would fit two of them.
    With ``centred`` their mean is taken off first; a linear head that has no bias needs them as they are.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, width: int, *, centred: bool = True) -> None:
        super().__init__()
        self.centred = centred
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("spread", torch.ones(width))

    def fit(self, values: Tensor) -> None:
        """Take mean and spread of ``values`` (N, width), NaN left out; a feature that never differs keeps its size."""
        known = ~torch.isnan(values)
        count = known.sum(0).clamp_min(1)
        wide = torch.where(known, values.double(), 0.0)
        mean = wide.sum(0) / count if self.centred else torch.zeros(values.shape[1], dtype=torch.float64)
        spread = (torch.where(known, values.double() - mean, 0.0).square().sum(0) / count).sqrt()
        self.mean.copy_(mean)
        self.spread.copy_(torch.where(spread > 1e-8 * (1.0 + mean.abs()), spread, 1.0))

    def forward(self, values: Tensor) -> Tensor:
        """Return ``values`` (B, width) standardised."""
        return torch.where(torch.isnan(values), 0.0, (values - self.mean) / self.spread)


class LinearHead(nn.Module):  # type: ignore[misc]
    """A linear map of the features to k outputs; it can stand where the classifier's last layer stands.

    Args:
        width: of the features.
        outputs: k.
        bias: as the layer has one that it will be put into; a causal model's classifier has none.
        seed: draws the weights from N(0, 1/(width+1)), as the head of a reward model that is trained whole.
    """

    kind = "linear"
    faster: Mapping[str, float] = {}

    def __init__(self, width: int, outputs: int = 1, *, bias: bool = False, seed: int = 0) -> None:
        super().__init__()
        self.settings = {"width": width, "outputs": outputs, "bias": bias}
        self.standard = Standard(width, centred=bias)
        self.layer = nn.Linear(width, outputs, bias=bias)
        drawn = torch.randn(outputs, width, generator=torch.Generator().manual_seed(seed))
        self.layer.weight.data.copy_(drawn * (width + 1) ** -0.5)
        if bias:
            nn.init.zeros_(self.layer.bias)

    def calibrate(self, values: Tensor, prompts: Tensor | None = None) -> None:
        """Take the scale of the features."""
        self.standard.fit(values)

    def forward(self, values: Tensor, users: Tensor | None = None, prompts: Tensor | None = None) -> Tensor:
        """Return scores (B,), or (B, k) of more than one output."""
        return flat(self.layer(self.standard(values)))

    def folded(self) -> tuple[Tensor, Tensor | None]:
        """Return weight (k, width) and bias (k,) of the same map on features as they are."""
        weight = self.layer.weight.detach().double() / self.standard.spread.double()
        if self.layer.bias is None:
            return weight.float(), None
        bias = self.layer.bias.detach().double() - weight @ self.standard.mean.double()
        return weight.float(), bias.float()


class FeedForward(nn.Module):  # type: ignore[misc]
    """A small feed-forward network on the features.

    Args:
        width: of the features.
        outputs: numbers it gives.
        hidden: widths of its layers before the last, one at least.
        activation: relu, gelu or tanh.
        dropout: of the hidden layers, while it learns.
        masked: features may be missing (NaN): the network is told which ones are, beside their mean in their place.
        seed: draws the weights.
    """

    kind = "feed_forward"
    faster: Mapping[str, float] = {}

    def __init__(
        self,
        width: int,
        outputs: int = 1,
        *,
        hidden: Sequence[int] = (32,),
        activation: str = "relu",
        dropout: float = 0.0,
        masked: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not hidden or min(hidden) < 1:
            raise InputError(f"A feed-forward head has hidden layers {list(hidden)}; give one width or more, as [32].")
        self.settings = {"width": width, "outputs": outputs, "hidden": list(hidden), "activation": activation}
        self.settings |= {"dropout": dropout, "masked": masked}
        self.masked = masked
        self.standard = Standard(width)
        sizes = [2 * width if masked else width, *hidden]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers = [
                module
                for a, b in itertools.pairwise(sizes)
                for module in (nn.Linear(a, b), activation_of(activation), nn.Dropout(dropout))
            ]
            self.body = nn.Sequential(*layers)
            self.last = nn.Linear(sizes[-1], outputs)

    def calibrate(self, values: Tensor, prompts: Tensor | None = None) -> None:
        """Take mean and spread of the features."""
        self.standard.fit(values)

    def hidden(self, values: Tensor) -> Tensor:
        """Return what the last layer is given, (B, hidden).

        Raises:
            InputError: a feature is missing, and none was while it learned.
        """
        known = self.standard(values)
        if self.masked:
            known = torch.cat([known, torch.isnan(values).to(known.dtype)], dim=1)
        elif bool(torch.isnan(values).any()):
            raise InputError("A feature is missing, and the head learned from rows that have them all; fill it in.")
        found: Tensor = self.body(known)
        return found

    def forward(self, values: Tensor, users: Tensor | None = None, prompts: Tensor | None = None) -> Tensor:
        """Return scores (B,), or (B, k) of more than one output."""
        return flat(self.last(self.hidden(values)))


def activation_of(name: str) -> nn.Module:
    """Return the activation called ``name``.

    Raises:
        InputError: there is none.
    """
    known: Mapping[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}
    if name not in known:
        raise InputError(f"There is no activation {name!r}; there are {', '.join(known)}.{nearest(name, known)}")
    return known[name]()


def put_in(head: LinearHead, model: PreTrainedModel) -> None:
    """Put a linear head into the classifier whose features it learned on, so that the saved folder is a plain one.

    Raises:
        InputError: the classifier's last layer has another shape, or no bias where the head has one.
    """
    layer = head_of(model)
    weight, bias = head.folded()
    if layer.weight.shape != weight.shape:
        (k, width), (has, wide) = weight.shape, layer.weight.shape
        raise InputError(
            f"The head gives {k} numbers from {width} features and the classifier's last layer {has} from {wide}; "
            f"start the classifier with {k} labels."
        )
    if bias is not None and layer.bias is None:
        raise InputError(f"{type(model).__name__} has a last layer without a bias; train the head with bias: false.")
    with torch.no_grad():
        layer.weight.copy_(weight)
        if layer.bias is not None:
            layer.bias.copy_(torch.zeros_like(layer.bias) if bias is None else bias)


def flat(scores: Tensor) -> Tensor:
    """Return scores (B, k) as they are, or (B,) of one output."""
    return scores[:, 0] if scores.shape[1] == 1 else scores
