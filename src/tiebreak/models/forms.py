"""What the outputs of a reward head mean: the form, kept as head.json beside the weights, and scores made of outputs.

A model folder is plain transformers' own; it says how many numbers a head gives and not what they are. A folder
without head.json has the form ``scalar``: one number, the score.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import cached_file

from tiebreak.models.chat import plain
from tiebreak.models.forest import Forest, Tree
from tiebreak.records import InputError
from tiebreak.registry import nearest

FILE = "head.json"
STEP = ("wrong", "right")
"""The labels of a token classifier of steps: 0 and the score are their logits."""
Kind = Literal["scalar", "attributes", "skew", "steps", "pairwise", "gap"]
FIELDS: Mapping[str, tuple[str, ...]] = {
    "scalar": (),
    "attributes": ("names", "weights"),
    "skew": ("tau",),
    "steps": ("aggregate", "separator"),
    "pairwise": (),
    "gap": (),
}
"""What each kind has to say besides its name."""

AGGREGATES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "min": lambda s: torch.sigmoid(s.min()),
    "product": lambda s: logsigmoid(s).sum().exp(),
    "last": lambda s: torch.sigmoid(s[-1]),
    "mean": lambda s: torch.sigmoid(s).mean(),
    "geometric_mean": lambda s: logsigmoid(s).mean().exp(),
    "max": lambda s: torch.sigmoid(s.max()),
    "mean_logit": lambda s: torch.sigmoid(s.mean()),
}
"""Of the logits of an answer's steps one number from 0 to 1: the choice changes which of two answers is better.

``product`` is P(all steps are right) where they are independent, and punishes many steps; ``mean_logit`` is the
probability at the mean logit (Kim et al. 2024, RewardMATH, arXiv 2410.01729). Mean odds are left out: one sure step
outweighs all others.
"""


@dataclass(frozen=True, kw_only=True)
class Form:
    """What the columns of a head are.

    ``scalar``: the score. ``attributes``: a mark for each of ``names``; the score is their sum weighted by ``weights``,
    where what is not wanted has a weight below 0. ``skew``: an embedding in blocks of two; how much one answer beats
    another is their skew product over ``tau`` (Zhang et al. 2024, arXiv 2410.02197). ``steps``: one logit at the end of
    each step, P(it is right) = sigmoid; the score is their ``aggregate``, a name of :data:`AGGREGATES`, and a step ends
    behind each ``separator``. ``pairwise``: the logit that the first of two answers in one text is the better one.
    ``gap``: how much an answer beats the draft in the prompt. The last two read texts of
    :mod:`tiebreak.data.drafts`.
    """

    kind: Kind = "scalar"
    names: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    tau: float = 1.0
    aggregate: str = "min"
    separator: str = "\n"

    def __post_init__(self) -> None:
        if self.kind not in FIELDS:
            raise InputError(
                f"There is no kind of head {self.kind!r}; there are {', '.join(FIELDS)}.{nearest(self.kind, FIELDS)}"
            )
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "weights", tuple(map(float, self.weights)))
        if self.kind == "attributes" and not len(self.names) == len(set(self.names)) == len(self.weights) > 0:
            raise InputError(
                f"A head of attributes has the names {list(self.names)} and {len(self.weights)} weights; expected "
                "different names, and a weight for each."
            )
        if not all(map(math.isfinite, self.weights)):
            raise InputError(f"A head of attributes has the weights {list(self.weights)}; expected finite numbers.")
        if not 0 < self.tau < math.inf:
            raise InputError(f"A skew head has tau {self.tau}; expected a number above 0, such as 0.1.")
        if self.aggregate not in AGGREGATES:
            raise InputError(
                f"There is no aggregate {self.aggregate!r} of steps; there are {', '.join(AGGREGATES)}."
                f"{nearest(self.aggregate, AGGREGATES)}"
            )
        if not self.separator:
            raise InputError('A head of steps has an empty separator; give what ends a step, such as "\\n".')

    @property
    def relative(self) -> bool:
        """Whether an answer has a score only beside others of its prompt."""
        return self.kind in ("skew", "pairwise", "gap")

    @property
    def reads_texts(self) -> bool:
        """Whether two answers are put into one text to compare them."""
        return self.kind in ("pairwise", "gap")

    def check(self, columns: int, what: str) -> None:
        """Refuse a head whose number of ``columns`` is not what the form needs.

        Raises:
            InputError: with ``what`` it is about, what was expected and the cure.
        """
        if self.kind == "skew":
            fits, expected = columns >= 2 and columns % 2 == 0, "an even number"
        elif self.kind == "attributes":
            fits, expected = columns == len(self.names), f"{len(self.names)}, one for each of {', '.join(self.names)}"
        else:
            fits, expected = columns == 1, "1"
        if not fits:
            raise InputError(
                f"{what} has {columns} outputs, and a head of the kind {self.kind} has {expected}; set outputs to that."
            )


SCALAR = Form()


def form_from(row: Mapping[str, Any], where: str) -> Form:
    """Return the form that ``row``, the content of a head.json, describes; ``where`` says in messages whose it is.

    Raises:
        InputError: an unknown kind, or a key that is missing or not one of the kind.
    """
    kind = str(row.get("kind"))
    if kind not in FIELDS:
        has = f"has the kind {kind!r}" if "kind" in row else "has no key kind"
        raise InputError(f"{where} {has}; expected one of {', '.join(FIELDS)}.{nearest(kind, FIELDS)}")
    known = ("kind", *FIELDS[kind])
    for name in known:
        if name not in row:
            raise InputError(f"{where} is of the kind {kind} and has no key {name!r}; it needs {', '.join(known)}.")
    for name in row:
        if name not in known:
            raise InputError(f"{where} has the key {name!r}; a head of the kind {kind} has {', '.join(known)}.")
    try:
        return Form(**row)
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{where} cannot be read: {error}; expected what a training wrote.") from error


def read_form(path: Path) -> Form:
    """Return the form in the file ``path``.

    Raises:
        InputError: it is no JSON object, or not a form.
    """
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}; expected JSON, as a training wrote it.") from error
    if not isinstance(row, dict):
        raise InputError(f"{path} holds no JSON object; expected one with the key kind.")
    return form_from(row, str(path))


def write_form(folder: Path, form: Form) -> None:
    """Write ``form`` as head.json into ``folder`` in one move; a ``scalar`` one has no file, as elsewhere."""
    path = folder / FILE
    if form.kind == "scalar":
        path.unlink(missing_ok=True)
        return
    row = {"kind": form.kind, **{name: getattr(form, name) for name in FIELDS[form.kind]}}
    partial = path.with_name(f".{FILE}.partial")
    partial.write_text(json.dumps(row, indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)


def form_of(config: PreTrainedConfig, where: str | Path, *, revision: str | None = None) -> Form | None:
    """Return the form of the reward model at ``where``, None where its ``config`` is no reward model's.

    A sequence classifier with one label is one without a word; any other classifier has a head.json that says so.

    Raises:
        InputError: a head.json that cannot be read or does not fit the head.
    """
    if not _is_classifier(config):
        return None
    path = Path(where) / FILE
    if not Path(where).is_dir():
        try:
            found = cached_file(str(where), FILE, revision=revision, _raise_exceptions_for_missing_entries=False)
        except OSError as error:
            raise InputError(f"The {FILE} of {where} cannot be looked up: {str(error).splitlines()[0]}") from error
        path = Path(found or path)
    if not path.is_file():
        return SCALAR if config.num_labels == 1 and not by_token(config) else None
    form = read_form(path)
    pair = form.kind == "steps" and by_token(config) and config.num_labels == len(STEP)
    form.check(1 if pair else config.num_labels, f"The model {where}")
    return form


def assert_same_head(config: PreTrainedConfig, where: str | Path, own: Form, labels: int, form: Form | None) -> None:
    """Refuse to start from a classifier whose head would be thrown away, its form or width not being what is asked for.

    Raises:
        InputError: with both heads and the cure.
    """
    has = 1 if own.kind == "steps" else config.num_labels
    other = form is not None and (own.kind == "steps") != (form.kind == "steps")
    if _is_classifier(config) and (has != labels or other):
        kinds = (f" of the kind {own.kind}", f" of the kind {form.kind}") if form is not None and other else ("", "")
        raise InputError(
            f"The model {where} has a head with {has} output{'s' * (has != 1)}{kinds[0]}, and {labels}{kinds[1]} "
            f"{'is' if labels == 1 else 'are'} asked for; start from the model it was made of, or set outputs to {has}."
        )


def by_token(config: PreTrainedConfig) -> bool:
    """Whether ``config`` is that of a token classifier."""
    return any(kind.endswith("ForTokenClassification") for kind in config.architectures or [])


def _is_classifier(config: PreTrainedConfig) -> bool:
    kinds = getattr(config, "architectures", None) or []
    return by_token(config) or any(kind.endswith("ForSequenceClassification") for kind in kinds)


def reward_of(form: Form, values: Tensor, forest: Forest) -> Tensor:
    """Return one score for each branch, (B,), of what a head gave.

    A ``skew`` head knows no score, only how answers compare. Branch i then has the mean over all n branches j of its
    tree, itself included, of s(i, j) / tau: so for two siblings the difference of scores is s(i, j) / tau exactly,
    which is the logit that i is better, and where preferences are a Bradley-Terry model's the differences of any number
    of siblings are that model's too. A branch alone in its tree has 0.

    Args:
        form: what the values are.
        values: (B,) or (B, k) at the branches' ends; of ``steps`` (M,) at the learned tokens, which end steps.
        forest: the branches.

    Raises:
        InputError: a branch without a step.
    """
    if form.kind == "attributes":
        weights = torch.tensor(form.weights, dtype=values.dtype, device=values.device)
        return values.reshape(len(values), -1) @ weights
    if form.kind == "skew":
        return torch.cat([tournament(skew(of_tree) / form.tau) for of_tree in _by_tree(values, forest)])
    if form.kind == "steps":
        counts = forest.lengths.tolist()
        if not all(counts):
            raise InputError("An answer has no step, so its steps have no aggregate; give it text or drop it.")
        return torch.stack([AGGREGATES[form.aggregate](steps) for steps in values.double().split(counts)])
    return values


def ratings_of(form: Form, ratings: Mapping[str, float | None]) -> tuple[float, ...]:
    """Return an answer's ``ratings`` by name in the order of a head of attributes, NaN where one is missing.

    Raises:
        InputError: an attribute that the head does not have.
    """
    for name in ratings:
        if name not in form.names:
            raise InputError(
                f"An answer is rated for {name!r}, and attribute_weights names {', '.join(form.names)}; give it a "
                f"weight, 0 to leave it out of the score.{nearest(name, form.names)}"
            )
    found = (ratings.get(name) for name in form.names)
    return tuple(math.nan if rating is None else float(rating) for rating in found)


def skew(embeddings: Tensor) -> Tensor:
    """Return s(i, j) = sum over blocks of v_i[0] v_j[1] - v_i[1] v_j[0], (n, n), of ``embeddings`` (n, 2k).

    s(j, i) is -s(i, j) to the last bit.
    """
    above = embeddings[:, 0::2] @ embeddings[:, 1::2].T
    return above - above.T


def tournament(logits: Tensor) -> Tensor:
    """Return the mean of each row of ``logits`` (n, n), where [i, j] is the logit that i is better and [i, i] is 0."""
    return logits.mean(1)


def _by_tree(values: Tensor, forest: Forest) -> Sequence[Tensor]:
    parts: Sequence[Tensor] = values.split([len(span.branches) for span in forest.spans])
    return parts


def step_ends(text: str, separator: str = "\n") -> tuple[int, ...]:
    """Return where the steps of ``text`` end, as places behind their last character.

    A step ends before a separator, or where the text does. There has to be something before a separator to be a step.
    """
    ends: list[int] = []
    start = 0
    for part in text.split(separator):
        if part.strip():
            ends.append(start + len(part))
        start += len(part) + len(separator)
    return tuple(ends) or (len(text),)


def step_marks(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], text: str, ends: Sequence[int], *, separator: str = "\n"
) -> tuple[bool, ...] | None:
    """Say of each token of an answer whether a step is read at it, for :attr:`Tree.taught`.

    A step is read where it is known to be over: at the token that holds the last character of the separator behind it,
    whatever else the token holds, so that an answer's ids are the same with and without marks. The last step is read at
    the answer's last token, EOS where it ended. Training and scoring both mark steps here.

    Args:
        tokenizer: that of ``ids``.
        ids: the answer.
        text: what ``ids`` say.
        ends: places behind the last characters of the steps, in order.
        separator: what stands behind a step.

    Returns:
        The marks, or None where two steps end within one token, or an end is no place of the text: such a row has to be
        dropped whole, for its labels would belong to other steps.
    """
    places = _places(tokenizer, ids, text.removesuffix(tokenizer.eos_token), ends, separator)
    if places is None or any(later <= earlier for earlier, later in pairwise(places)):
        return None
    return tuple(place in set(places) for place in range(len(ids)))


def _places(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], text: str, ends: Sequence[int], separator: str
) -> list[int] | None:
    """Return the token that each of ``ends`` is read at, None where one is no place of ``text``."""
    said = list(ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids)
    exact = tokenizer.decode(said, clean_up_tokenization_spaces=False) == text
    find = _decoded if exact else _encoded
    places: list[int] = []
    for end in ends:
        if not 0 <= end <= len(text):
            return None
        over = end + len(separator) * text.startswith(separator, end)
        last = not text[over:].strip() or not said
        places.append(len(ids) - 1 if last else find(tokenizer, said, text[:over], places[-1] if places else 0))
    return places


def _decoded(tokenizer: PreTrainedTokenizerBase, said: list[int], head: str, start: int) -> int:
    """Return the first token at or behind ``start`` up to which the ids say all of ``head``."""
    low, high = start, len(said) - 1
    while low < high:
        middle = (low + high) // 2
        so_far = tokenizer.decode(said[: middle + 1], clean_up_tokenization_spaces=False)
        low, high = (low, middle) if so_far.startswith(head) else (middle + 1, high)
    return low


def _encoded(tokenizer: PreTrainedTokenizerBase, said: list[int], head: str, _start: int) -> int:
    """Return the token that ends ``head`` where ids do not decode to the text: the first that ``head`` alone has not.

    Lower-cased or respaced text cannot be found again by decoding.
    """
    alone = plain(tokenizer, head)
    same = next((i for i, (one, other) in enumerate(zip(alone, said, strict=False)) if one != other), len(alone))
    return max(0, min(same, len(alone) - 1, len(said) - 1))


def with_steps(tokenizer: PreTrainedTokenizerBase, tree: Tree, texts: Sequence[str], separator: str) -> Tree:
    """Mark in ``tree`` where the steps of its branches, which say ``texts``, end.

    Steps that end within one token are read as one.
    """
    taught = []
    for ids, text in zip(tree.branches, texts, strict=True):
        said = text.removesuffix(tokenizer.eos_token)
        places = set(_places(tokenizer, ids, said, step_ends(said, separator), separator) or ())
        taught.append(tuple(place in places for place in range(len(ids))))
    return tree._replace(taught=tuple(taught))
