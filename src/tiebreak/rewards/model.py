"""A reward model as a reward, and how it is centred on reference answers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from tiebreak.models.attention import forest_mode
from tiebreak.models.encode import LEAST, Cut, encode_completion, encode_prompt
from tiebreak.models.forest import Tree, plant
from tiebreak.models.heads import Centred, centre, centre_bias, final_norm, hidden_last, is_encoder
from tiebreak.models.load import Loaded
from tiebreak.models.score import room_of, tree_scores
from tiebreak.records import InputError, Response
from tiebreak.rewards.table import Answered, Marks, Reward, Unscored

PAIRS = 4096
"""Pairs that say which moves of the head disturb differences: enough for a width of thousands, and bounded memory."""


def centre_on(loaded: Loaded, references: Sequence[Tree], pairs: Sequence[Tree], *, batch: int = 32) -> Centred:
    """Centre the model so that ``references`` average 0, moving the differences of ``pairs`` least.

    An encoder's head has a bias, which takes the shift exactly. Of more than :data:`PAIRS` pairs, that many are taken
    at equal steps.

    Raises:
        InputError: there is no reference answer to centre on.
    """
    if not references:
        raise InputError("There is no reference answer to centre the reward model on; import prompts with references.")
    some = pairs[:: max(1, -(-len(pairs) // PAIRS))]
    if is_encoder(loaded.model):
        marks, values = (_flat(loaded, trees, batch) for trees in (references, some))
        return centre_bias(loaded.model, marks, values[0::2] - values[1::2])
    with torch.no_grad(), forest_mode(loaded.model):
        norm = final_norm(loaded.model, plant(references[:1]).to(loaded.model.device))
        states = _states(loaded, references, batch)
        both = _states(loaded, some, batch).view(len(some), 2, states.shape[1])
    return centre(loaded.model, states, both[:, 0] - both[:, 1], norm=norm)


def _states(loaded: Loaded, trees: Sequence[Tree], batch: int) -> torch.Tensor:
    parts = [
        hidden_last(loaded.model, plant(trees[start : start + batch]).to(loaded.model.device))
        for start in range(0, len(trees), batch)
    ]
    return torch.cat(parts) if parts else torch.zeros(0, loaded.model.score.in_features)


def _flat(loaded: Loaded, trees: Sequence[Tree], batch: int) -> torch.Tensor:
    return torch.tensor([value for values in tree_scores(loaded, trees, batch=batch) for value in values])


def make(model: Loaded, *, window: int = 1024, cut: Cut = "start", batch: int = 32) -> Reward:
    """Make the reward that is the score of a loaded reward model.

    The prompt is encoded as in training the reward model. Where it reads the policy's ids of a completion as the very
    text, those ids are scored, which is exactly what was sampled; else the text is encoded anew. A completion that is
    empty and unfinished, or leaves no room for a prompt in ``window``, has no score; its siblings have theirs.
    """
    room = room_of(model, window)

    def reward(answered: Sequence[Answered]) -> Marks:
        trees: list[Tree] = []
        places: list[list[tuple[int, int]]] = []
        marks: list[list[float | Unscored | None]] = []
        for i, one in enumerate(answered):
            branches = [_branch(model.tokenizer, one, j) for j in range(len(one.texts))]
            marks.append([_unfit(branch, room) for branch in branches])
            fit = [j for j, unfit in enumerate(marks[i]) if unfit is None]
            if fit:
                left = room - max(len(branches[j]) for j in fit)
                trunk = encode_prompt(model.tokenizer, one.prompt, room=left, cut=cut).ids
                trees.append(Tree(trunk, tuple(branches[j] for j in fit)))
                places.append([(i, j) for j in fit])
        for answers, values in zip(places, tree_scores(model, trees, batch=batch), strict=True):
            for (i, j), value in zip(answers, values, strict=True):
                marks[i][j] = value
        return marks

    return reward


def _branch(tokenizer: PreTrainedTokenizerBase, answered: Answered, which: int) -> tuple[int, ...]:
    """Return the ids of a completion: the policy's where this tokenizer reads them as the text, else its own."""
    text, finish = answered.texts[which], answered.finishes[which]
    ids = answered.trees.branches[which] if answered.trees is not None else ()
    if ids and max(ids) < len(tokenizer):
        ended = ids[-1] == tokenizer.eos_token_id
        said = tokenizer.decode(list(ids[:-1] if ended else ids), clean_up_tokenization_spaces=False)
        if said == text and ended == (finish != "length"):
            return ids
    return encode_completion(tokenizer, Response(prompt_id=answered.prompt.id, text=text, finish=finish))


def _unfit(branch: Sequence[int], room: int) -> Unscored | None:
    """Return why a completion cannot be scored, None where it can."""
    if not branch:
        return Unscored("the completion is empty and unfinished", cure="let the policy write more tokens")
    if len(branch) > room - LEAST:
        return Unscored(f"the completion is too long for a window of {room} tokens", cure="raise window or sample less")
    return None
