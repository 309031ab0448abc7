"""PAL's heads on the features of a frozen model, one reward for each user, and the folder that any head is saved in.

A user likes what lies near a point of their own, which is a mixture of few
points that all users share, so that ten votes are enough to know a user who was not there before.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tiebreak.models.encode import Cut, encode_tree
from tiebreak.models.features import (
    FeedForward,
    LinearHead,
    Standard,
    activation_of,
    features,
    prompt_features,
    weights_mark,
)
from tiebreak.models.gated import Gated
from tiebreak.models.load import Loaded, start_reward
from tiebreak.models.score import room_of
from tiebreak.records import InputError, Prompt, Response
from tiebreak.registry import nearest

CONFIG, WEIGHTS = "feature_head.json", "feature_head.safetensors"
MIXES = ("f(Pw)", "f(P)w", "Pw")
"""How PAL-A makes a user's ideal point of prototypes P, weights w and projector f."""


class Users(nn.Module):  # type: ignore[misc]
    """The users a head knows, each with a point of the simplex over k prototypes: softmax of a row of ``weight``.

    All of them are there before anything is learned: a row that came later would be in no optimizer.
    """

    def __init__(self, names: Sequence[str], prototypes: int) -> None:
        super().__init__()
        if prototypes < 1 or not names:
            raise InputError(f"PAL has {prototypes} prototypes and {len(names)} users; it needs one or more of each.")
        if len(set(names)) < len(names):
            raise InputError("PAL was given the same user twice; name each of them once.")
        self.names = tuple(names)
        self.weight = nn.Parameter(torch.randn(len(names), prototypes))

    def codes(self, names: Sequence[str]) -> Tensor:
        """Return the numbers of ``names``, (B,).

        Raises:
            InputError: one of them is not known, who would otherwise be somebody with random tastes.
        """
        at = {name: i for i, name in enumerate(self.names)}
        for name in names:
            if name not in at:
                raise InputError(
                    f"The head does not know the user {name!r}, only {len(at)} others such as {self.names[0]!r}; give "
                    f"some of their votes to fit_user first.{nearest(name, at)}"
                )
        return torch.tensor([at[name] for name in names], dtype=torch.long)

    def shares(self, codes: Tensor) -> Tensor:
        """Return the weights of users, (B, k): none below 0, and 1 in sum."""
        return torch.softmax(self.weight[codes], dim=1)

    def join(self, name: str, weight: Tensor) -> None:
        """Add a user with the row ``weight`` (k,)."""
        if name in self.names:
            raise InputError(f"The head knows a user {name!r} already; give the new one another name.")
        self.weight = nn.Parameter(torch.cat([self.weight.detach(), weight.detach()[None]]))
        self.names = (*self.names, name)


class Projector(nn.Module):  # type: ignore[misc]
    """PAL's f: a network with hidden layers as wide as the space it maps to, added to its input where asked."""

    def __init__(self, width: int, space: int, *, layers: int, activation: str, residual: bool) -> None:
        super().__init__()
        if residual and width != space:
            raise InputError(f"A residual projector needs a space as wide as the features ({width}), not {space}.")
        self.residual = residual
        sizes = [width, *[space] * layers]
        inside = [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), activation_of(activation))]
        self.body = nn.Sequential(*inside, nn.Linear(sizes[-1], space))

    def forward(self, values: Tensor) -> Tensor:
        """Return (..., space) of (..., width)."""
        found: Tensor = self.body(values)
        return values + found if self.residual else found


class IdealPoint(nn.Module):  # type: ignore[misc]
    """PAL-A: a completion is worth -||f(e) - a_u|| to user u, whose ideal point is a_u = f(P w_u).

    The difference of two scores is ||f(e_l) - a_u|| - ||f(e_w) - a_u||: the loser's distance less the winner's.
    Prototypes P are k points and w_u = softmax(W_u) (Chen et al. 2024, arXiv 2406.08469, model A). As in the released
    code f has two hidden layers, and P are points among the features, unit vectors to begin with.

    Args:
        width: of the features.
        users: all that vote in the training.
        prototypes: k.
        space: width of the space of preferences; 0: that of the features, and f is residual then.
        layers: hidden layers of f.
        activation: of f.
        mix: one of :data:`MIXES`: f of the mixture, the mixture of f, or the mixture itself.
        seed: draws all weights.
    """

    kind = "pal_a"
    faster: Mapping[str, float] = {"users": 50.0, "prototypes": 50.0}

    def __init__(
        self,
        width: int,
        users: Sequence[str],
        *,
        prototypes: int = 2,
        space: int = 0,
        layers: int = 2,
        activation: str = "relu",
        mix: str = "f(Pw)",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if mix not in MIXES:
            raise InputError(f"There is no mix {mix!r}; there are {', '.join(MIXES)}.")
        self.mix = mix
        self.settings: dict[str, Any] = {
            **{"width": width, "prototypes": prototypes, "space": space, "layers": layers},
            **{"activation": activation, "mix": mix},
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.standard = Standard(width)
            self.project = Projector(
                width, space or width, layers=layers, activation=activation, residual=space in (0, width)
            )
            drawn = torch.randn(prototypes, (space or width) if mix == "Pw" else width)
            self.prototypes = nn.Parameter(drawn / drawn.norm(dim=1, keepdim=True))
            self.users = Users(users, prototypes)

    def calibrate(self, values: Tensor, prompts: Tensor | None = None) -> None:
        """Take mean and spread of the features."""
        self.standard.fit(values)

    def points(self, users: Tensor) -> Tensor:
        """Return the ideal points of users, (B, space)."""
        shares = self.users.shares(users)
        if self.mix == "f(Pw)":
            found: Tensor = self.project(shares @ self.prototypes)
            return found
        return shares @ (self.project(self.prototypes) if self.mix == "f(P)w" else self.prototypes)

    def forward(self, values: Tensor, users: Tensor | None = None, prompts: Tensor | None = None) -> Tensor:
        """Return what completions are worth to their users, (B,), at most 0."""
        away = self.project(self.standard(values)) - self.points(_told(users))
        return -torch.linalg.vector_norm(away, dim=1)


class IdealMixture(nn.Module):  # type: ignore[misc]
    """PAL-B: a completion is worth scale * cos(f(e), a_u(x)) to user u, whose ideal point depends on the prompt x.

    a_u(x) = sum_k w_uk g_k(x) with k projectors g on the prompt's features; the scale is learned, from 1/0.07 up to 100
    at most (Chen et al. 2024, arXiv 2406.08469, model B; the released code has GELU and no residual).

    Args: those of :class:`IdealPoint`; ``space`` of 0 is the width of the features.
    """

    kind = "pal_b"
    faster: Mapping[str, float] = {"users": 50.0, "log_scale": 1000.0}

    def __init__(
        self,
        width: int,
        users: Sequence[str],
        *,
        prototypes: int = 2,
        space: int = 0,
        layers: int = 2,
        activation: str = "gelu",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {
            **{"width": width, "prototypes": prototypes, "space": space, "layers": layers},
            "activation": activation,
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.standard, self.asked = Standard(width), Standard(width)
            made = [
                Projector(width, space or width, layers=layers, activation=activation, residual=False)
                for _ in range(1 + prototypes)
            ]
            self.project, self.prototypes = made[0], nn.ModuleList(made[1:])
            self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
            self.users = Users(users, prototypes)

    def calibrate(self, values: Tensor, prompts: Tensor | None = None) -> None:
        """Take mean and spread of the features of completions and of prompts."""
        self.standard.fit(values)
        self.asked.fit(_told(prompts, "the prompts' features"))

    def points(self, users: Tensor, prompts: Tensor) -> Tensor:
        """Return the ideal points of users for prompts, (B, space)."""
        known = self.asked(prompts)
        each = torch.stack([g(known) for g in self.prototypes], dim=1)
        return (self.users.shares(users)[:, :, None] * each).sum(1)

    def forward(self, values: Tensor, users: Tensor | None = None, prompts: Tensor | None = None) -> Tensor:
        """Return what completions are worth to their users behind their prompts, (B,), within the scale."""
        points = self.points(_told(users), _told(prompts, "the prompts' features"))
        near = torch.cosine_similarity(self.project(self.standard(values)), points, dim=1)
        return self.log_scale.exp().clamp_max(100.0) * near


Head = LinearHead | FeedForward | IdealPoint | IdealMixture | Gated
_HEADS = (LinearHead, FeedForward, IdealPoint, IdealMixture, Gated)
KINDS: Mapping[str, type[Head]] = {kind.kind: kind for kind in _HEADS}


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """The frozen model below a head: folder or hub name, how texts were encoded, and a hash of its weights.

    ``where`` may be a folder inside the head's own. ``seed`` drew the layers that an encoder's head has before its last
    one, which features depend on.
    """

    where: str
    mark: str
    seed: int = 0
    window: int = 1024
    cut: Cut = "start"


class Reader(NamedTuple):
    """A head on its backbone, ready to score texts."""

    head: Head
    loaded: Loaded
    backbone: Backbone

    def scores(
        self, rows: Sequence[tuple[Prompt, Sequence[Response]]], *, user: str = "", cache: Path | None = None
    ) -> list[list[Any] | None]:
        """Return the score of every response of every row (a list of k, of more than one output), as ``user`` likes.

        A row with a completion too long for the window has None. ``cache`` keeps the features.

        Raises:
            InputError: the head is one for users, and this one is not known.
        """
        room = room_of(self.loaded, self.backbone.window)
        trees = [encode_tree(self.loaded.tokenizer, p, r, window=room, cut=self.backbone.cut)[0] for p, r in rows]
        known = [tree for tree in trees if tree is not None]
        if not known:
            return [None] * len(rows)
        sizes = torch.tensor([len(tree.branches) for tree in known])
        users = self.head.users.codes([user]).expand(int(sizes.sum())) if hasattr(self.head, "users") else None
        asked = None
        if isinstance(self.head, IdealMixture | Gated):
            asked = prompt_features(self.loaded.model, known, cache=cache).each.repeat_interleave(sizes, dim=0)
        with torch.no_grad():
            found = self.head(features(self.loaded.model, known, cache=cache).each, users, asked)
        parts = iter(part.tolist() for part in found.split(sizes.tolist()))
        return [None if tree is None else next(parts) for tree in trees]


def save_head(head: Head, folder: Path, *, backbone: Backbone | None = None, names: Sequence[str] = ()) -> None:
    """Write ``feature_head.json`` and ``feature_head.safetensors`` in one move.

    Args:
        head: a trained head.
        folder: is replaced where it exists.
        backbone: the model whose features it reads; None where features come from elsewhere.
        names: what the features are called then.
    """
    partial, old = (folder.with_name(f".{folder.name}.{what}") for what in ("partial", "old"))
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    told: dict[str, Any] = {"kind": head.kind, "settings": head.settings, "features": list(names)}
    told["users"] = list(head.users.names) if isinstance(head, IdealPoint | IdealMixture) else []
    told["backbone"] = None if backbone is None else asdict(backbone)
    (partial / CONFIG).write_text(json.dumps(told, indent=2), encoding="utf-8")
    save_file({name: value.contiguous() for name, value in head.state_dict().items()}, partial / WEIGHTS)
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(partial, folder)
    shutil.rmtree(old, ignore_errors=True)


def load_head(folder: str | Path) -> Head:
    """Load a head that :func:`save_head` wrote, without its backbone: it scores features.

    Raises:
        InputError: the folder is not one of a head, or cannot be read.
    """
    return _read(Path(folder))[0]


def load_ideal(folder: str | Path, *, backbone: str | None = None, device: str = "cpu") -> Reader:
    """Load a head with the backbone it names, or the one at ``backbone`` if that has moved.

    Raises:
        InputError: as for :func:`load_head`, or the backbone is missing or not the one whose features it learned on.
    """
    where = Path(folder)
    head, below = _read(where)
    if below is None:
        raise InputError(f"The head {where} reads features that no model here computes; use load_head, and pass them.")
    inside = where / below.where
    found = backbone or (str(inside) if inside.exists() else below.where)
    loaded = start_reward(found, seed=below.seed, device=device)
    if weights_mark(loaded.model) != below.mark:
        raise InputError(f"The head {where} learned on another backbone than {found}; pass that one as backbone.")
    return Reader(head, loaded, below)


def _read(folder: Path) -> tuple[Head, Backbone | None]:
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder} is not a head: it has no {CONFIG}; pass a folder that save_head wrote.")
    try:
        told = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        users = {"users": told["users"]} if told["users"] else {}
        head = KINDS[told["kind"]](**told["settings"], **users)
        head.load_state_dict(load_file(folder / WEIGHTS))
        return head.eval(), None if told["backbone"] is None else Backbone(**told["backbone"])
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise InputError(f"The head {folder} cannot be read: {type(error).__name__}: {error}.") from error


def _told(given: Tensor | None, what: str = "whose preference it is") -> Tensor:
    if given is None:
        raise InputError(f"PAL has to be told {what}; every row needs it.")
    return given
