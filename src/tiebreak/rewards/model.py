"""A reward model as a reward, and how it is centred on reference answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import LayerNorm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tiebreak.models.attention import forest_mode
from tiebreak.models.encode import LEAST, Cut, encode_completion, encode_prompt
from tiebreak.models.forest import Forest, Tree, plant
from tiebreak.models.forms import with_steps
from tiebreak.models.heads import CURE, head_of, hidden_last, is_encoder, states
from tiebreak.models.load import Loaded
from tiebreak.models.score import room_of, score, tree_scores
from tiebreak.records import InputError, Response
from tiebreak.rewards.table import Answered, Marks, Reward, Unscored

PAIRS = 4096
"""Pairs that say which moves of the head disturb differences: enough for a width of thousands, and bounded memory."""
WIDER = "raise window or sample less"
SIBLINGS = "draw two or more completions of each prompt, or take a reward model that scores one alone"


class Centred(NamedTuple):
    """What centring did: the mean reference score before and after, and how far it moved score differences of pairs.

    ``moved`` is the largest move and ``typical`` its root mean square; ``spread`` is the root mean square of the
    differences themselves, to compare with. ``exact`` says that no difference moved at all (beyond rounding).
    """

    before: float
    after: float
    moved: float
    typical: float = 0.0
    spread: float = 0.0
    exact: bool = False


def final_norm(model: PreTrainedModel, forest: Forest) -> LayerNorm | None:
    """Return the layer norm with a bias whose output is what the head reads, if there is one. Run in ``forest_mode``.

    It is found by what it gives, not by its name, which differs from one architecture to the next.
    """
    given: dict[int, LayerNorm] = {}

    def keep(module: LayerNorm, _inputs: object, output: Tensor) -> None:
        given[output.data_ptr()] = module

    norms = [m for m in model.modules() if isinstance(m, LayerNorm) and m.bias is not None]
    hooks = [norm.register_forward_hook(keep) for norm in norms]
    try:
        with torch.no_grad():
            found = states(model, forest)
    finally:
        for hook in hooks:
            hook.remove()
    return given.get(found.data_ptr())


def centre(
    model: PreTrainedModel, references: Tensor, differences: Tensor, *, norm: LayerNorm | None = None
) -> Centred:
    """Shift the head so that reference answers average 0, in a folder plain transformers reads back to the same scores.

    A sequence classifier's head has no bias, so the shift goes where the architecture allows. ``norm``, a final layer
    norm with a bias, takes it exactly. Otherwise (RMSNorm has no bias) the head moves by the multiple of C^-1 m that
    makes its product with the mean reference state m vanish, C being the second moment of the state differences of
    pairs, lightly shrunk: of all moves of the head that centre it, this one disturbs score differences least in the
    mean square. The mean is then 0 up to float32; how far differences moved is returned.

    Args:
        model: a sequence classifier with one label.
        references: final states of reference answers, shape (R, width).
        differences: chosen minus rejected final states of pairs, shape (P, width).
        norm: what :func:`final_norm` found.
    """
    head = model.score.weight.detach()
    weight = head[0].double().cpu()
    gaps = differences.detach().double().cpu()
    mean = references.detach().double().cpu().mean(0)
    before = float(mean @ weight)
    spread = float((gaps @ weight).square().mean().sqrt()) if len(gaps) else 0.0
    if norm is not None:
        old = norm.bias.detach().double().cpu()
        norm.bias.data.copy_(old - before * weight / weight.square().sum())
        shift = norm.bias.detach().double().cpu() - old
        return Centred(before, float((mean + shift) @ weight), 0.0, spread=spread, exact=True)
    direction = _least_disturbing(gaps, mean)
    if not float(mean @ direction) > 0.0:
        raise InputError("The reference answers have no state to centre on (all zero or not finite); check the model.")
    for _ in range(2):  # the second time takes back what rounding to float32 left
        now = head[0].double().cpu()
        head[0] = (now - direction * (mean @ now) / (mean @ direction)).to(head.device, head.dtype)
    moves = gaps @ (head[0].double().cpu() - weight) if len(gaps) else torch.zeros(1)
    after = float(mean @ head[0].double().cpu())
    return Centred(before, after, float(moves.abs().max()), float(moves.square().mean().sqrt()), spread)


def centre_bias(model: PreTrainedModel, references: Tensor, differences: Tensor) -> Centred:
    """Shift the bias of an encoder's head so that reference answers average 0; no score difference moves.

    Args:
        model: an encoder classifier with one label.
        references: scores of reference answers, shape (R,).
        differences: chosen minus rejected scores of pairs, shape (P,).
    """
    bias = head_of(model).bias
    if bias is None:
        raise InputError(f"The head of {type(model).__name__} has no bias to centre with; {CURE}")
    old, before = bias.detach().double().cpu(), float(references.double().mean())
    spread = float(differences.double().square().mean().sqrt()) if len(differences) else 0.0
    bias.data.copy_(old - before)
    shift = float(bias.detach().double().cpu() - old)
    return Centred(before, before + shift, 0.0, spread=spread, exact=True)


def _least_disturbing(gaps: Tensor, mean: Tensor) -> Tensor:
    """Return C^-1 m; C is shrunk towards its mean variance by width / pairs x 1e-4, so it is positive definite."""
    width = len(mean)
    second = gaps.T @ gaps / max(len(gaps), 1)
    ridge = second.diagonal().mean().clamp_min(1e-12) * 1e-4 * max(1e-4, min(1.0, width / max(len(gaps), 1)))
    factor = torch.linalg.cholesky(second + ridge * torch.eye(width, dtype=torch.float64))
    return torch.cholesky_solve(mean[:, None], factor)[:, 0]


def centre_on(loaded: Loaded, references: Sequence[Tree], pairs: Sequence[Tree], *, batch: int = 32) -> Centred:
    """Centre the model so that ``references`` average 0, moving differences within ``pairs`` least.

    An encoder's head has a bias, which takes the shift exactly. Of more than :data:`PAIRS` trees, that many are taken
    at equal steps; in each, the first branch is compared with every other one.

    Raises:
        InputError: there is no reference answer to centre on, or the head's form is not ``scalar``, whose zero means
            something or does not exist.
    """
    if loaded.form.kind != "scalar":
        raise InputError(f"A head of the kind {loaded.form.kind} has no zero to move; only a scalar one is centred.")
    if not references:
        raise InputError("There is no reference answer to centre the reward model on; import prompts with references.")
    some = pairs[:: max(1, -(-len(pairs) // PAIRS))]
    if is_encoder(loaded.model):
        marks, values = (_flat(loaded, trees, batch) for trees in (references, some))
        return centre_bias(loaded.model, marks, _gaps(values, some))
    with torch.no_grad(), forest_mode(loaded.model):
        norm = final_norm(loaded.model, plant(references[:1]).to(loaded.model.device))
        marks, values = (_states(loaded, trees, batch) for trees in (references, some))
    return centre(loaded.model, marks, _gaps(values, some), norm=norm)


def _gaps(values: Tensor, trees: Sequence[Tree]) -> Tensor:
    """Return the first branch's value less that of each other branch of its tree."""
    parts = values.split([len(tree.branches) for tree in trees])
    return torch.cat([part[:1] - part[1:] for part in parts]) if parts else values[:0]


def _states(loaded: Loaded, trees: Sequence[Tree], batch: int) -> Tensor:
    parts = [
        hidden_last(loaded.model, plant(trees[start : start + batch]).to(loaded.model.device))
        for start in range(0, len(trees), batch)
    ]
    return torch.cat(parts) if parts else torch.zeros(0, loaded.model.score.in_features)


def _flat(loaded: Loaded, trees: Sequence[Tree], batch: int) -> Tensor:
    return torch.tensor([value for values in tree_scores(loaded, trees, batch=batch) for value in values])


def make(model: Loaded, *, window: int = 1024, cut: Cut = "start", batch: int = 32) -> Reward:
    """Make the reward that is the score of a loaded reward model.

    The prompt is encoded as in training the reward model. Where it reads the policy's ids of a completion as the very
    text, those ids are scored, which is exactly what was sampled; else the text is encoded anew. A completion that is
    empty and unfinished, or leaves no room for a prompt in ``window``, has no score; its siblings have theirs.

    A head that only compares answers scores a completion against its siblings, see :func:`tiebreak.models.score.score`;
    one without any has no score. Where two completions stand in one text, they are encoded anew, and all siblings are
    unscored where two of them do not fit.
    """
    room = room_of(model, window)

    def reward(answered: Sequence[Answered]) -> Marks:
        marks: list[list[float | Unscored | None]] = []
        kept: list[tuple[int, _Kept]] = []
        for i, one in enumerate(answered):
            branches = [_branch(model.tokenizer, one, j) for j in range(len(one.texts))]
            marks.append([_unfit(branch, room) for branch in branches])
            fit = tuple(j for j, unfit in enumerate(marks[i]) if unfit is None)
            if model.form.relative and len(fit) == 1:
                marks[i][fit[0]] = Unscored("the completion has no sibling to be compared with", cure=SIBLINGS)
            elif fit:
                kept.append((i, _Kept(one, fit, tuple(branches[j] for j in fit))))
        found = scored([one for _, one in kept])
        for (i, (_, fit, _)), values in zip(kept, found, strict=True):
            for n, j in enumerate(fit):
                marks[i][j] = _unfit_together(room) if values is None else values[n]
        return marks

    def scored(kept: Sequence[_Kept]) -> Sequence[list[float] | None]:
        if model.form.reads_texts:
            rows = [(one.answered.prompt, [_response(one.answered, j) for j in one.fit]) for one in kept]
            return score(model, rows, window=window, cut=cut, batch=batch)
        trees = []
        for one in kept:
            left = room - max(map(len, one.branches))
            tree = Tree(encode_prompt(model.tokenizer, one.answered.prompt, room=left, cut=cut).ids, one.branches)
            if model.form.kind == "steps":
                texts = [one.answered.texts[j] for j in one.fit]
                tree = with_steps(model.tokenizer, tree, texts, model.form.separator)
            trees.append(tree)
        return tree_scores(model, trees, batch=batch)

    return reward


class _Kept(NamedTuple):
    """A prompt with the numbers of those completions that can be scored, and their ids."""

    answered: Answered
    fit: tuple[int, ...]
    branches: tuple[tuple[int, ...], ...]


def _branch(tokenizer: PreTrainedTokenizerBase, answered: Answered, which: int) -> tuple[int, ...]:
    """Return the ids of a completion: the policy's where this tokenizer reads them as the text, else its own."""
    text, finish = answered.texts[which], answered.finishes[which]
    ids = answered.trees.branches[which] if answered.trees is not None else ()
    if ids and max(ids) < len(tokenizer):
        ended = ids[-1] == tokenizer.eos_token_id
        said = tokenizer.decode(list(ids[:-1] if ended else ids), clean_up_tokenization_spaces=False)
        if said == text and ended == (finish != "length"):
            return ids
    return encode_completion(tokenizer, _response(answered, which))


def _response(answered: Answered, which: int) -> Response:
    text, finish = answered.texts[which], answered.finishes[which]
    return Response(prompt_id=answered.prompt.id, text=text, finish=finish)


def _unfit(branch: Sequence[int], room: int) -> Unscored | None:
    """Return why a completion cannot be scored, None where it can."""
    if not branch:
        return Unscored("the completion is empty and unfinished", cure="let the policy write more tokens")
    if len(branch) > room - LEAST:
        return Unscored(f"the completion is too long for a window of {room} tokens", cure=WIDER)
    return None


def _unfit_together(room: int) -> Unscored:
    return Unscored(f"two completions in one text are too long for a window of {room} tokens", cure=WIDER)
