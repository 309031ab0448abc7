"""Preference losses as switches: score map x link x target x weight, plus auxiliary terms.

Each switch is a table of pure functions over one small structure. A method is a row of ``presets`` that names its
switches; a new method is one function, or none, and one row there. A user's own function stands in for any of them as
``my_module:my_function``. The scalars of a function are its keyword arguments, so a method has those of its switches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from torch import Tensor

from tiebreak.records import InputError
from tiebreak.registry import UnknownKnob, nearest
from tiebreak.train.objectives.alone import ALONE
from tiebreak.train.objectives.links import LINKS
from tiebreak.train.objectives.lists import LISTS
from tiebreak.train.objectives.part import Part, choose
from tiebreak.train.objectives.scores import COMPARES, OFFSETS, SCORES
from tiebreak.train.objectives.seen import NOTHING, Alone, Compared, Listed, Outcome, Seen, Whole
from tiebreak.train.objectives.targets import TARGETS
from tiebreak.train.objectives.terms import TERMS, first_of
from tiebreak.train.objectives.trial import trial
from tiebreak.train.objectives.weights import WEIGHTS

__all__ = ["Outcome", "Seen", "Whole", "check", "kind_of", "objective", "parts_of", "settled"]

Kind = Literal["pairs", "alone", "list", "written"]

FIXED: Mapping[str, Any] = {
    "score": "",
    "compare": "difference",
    "offset": "",
    "link": "",
    "target": "hard",
    "weight": "",
    "beta": 1.0,
    "nll": 0.0,
}
"""The knobs every objective has, with their defaults: the switches, the scale, and the likelihood of the first side."""

ALL_LINKS: Mapping[str, Part] = {**LINKS, **ALONE, **LISTS}
SWITCHES: Mapping[str, tuple[str, Mapping[str, Part]]] = {
    "score": ("score map", SCORES),
    "compare": ("comparison", COMPARES),
    "offset": ("offset", OFFSETS),
    "link": ("link", ALL_LINKS),
    "target": ("target", TARGETS),
    "weight": ("weight", WEIGHTS),
}


def kind_of(link: str) -> Kind:
    """Return the shape of row that ``link`` takes; a user's own takes pairs."""
    if not link:
        return "written"
    return "alone" if link in ALONE else "list" if link in LISTS else "pairs"


def parts_of(knobs: Mapping[str, Any]) -> dict[str, Part]:
    """Return the functions that ``knobs`` switch on, terms by their names.

    Raises:
        InputError: a switch that is set to something it does not have.
    """
    whole = {**FIXED, **knobs}
    used = [name for name in SWITCHES if whole[name]] if whole["score"] or whole["link"] else ["target"]
    found = {name: choose(*SWITCHES[name], whole[name]) for name in used}
    if kind_of(whole["link"]) in ("alone", "list"):
        found = {name: part for name, part in found.items() if name in ("score", "link")}
    return found | {name: term for name, term in TERMS.items() if whole.get(name)}


def of_pairs(knobs: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``knobs`` without the target where the link takes no pairs: a head's row has one, whatever its link."""
    alone = kind_of(str(knobs.get("link", ""))) in ("alone", "list")
    return {name: value for name, value in knobs.items() if not (alone and name == "target")}


def needs_of(knobs: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the fields that the rows of an objective need to have."""
    return tuple(dict.fromkeys(need for part in parts_of(knobs).values() for need in part.needs))


def settled(given: Mapping[str, Any], *, where: str = "The objective") -> dict[str, Any]:
    """Return all knobs of the objective that ``given`` describes, with the defaults of the functions it names.

    ``where`` opens what is said of a mistake.

    Raises:
        InputError: an unknown switch or knob, with the nearest name, or switches that leave nothing to learn.
    """
    parts = parts_of(given)
    scalars = {name: value for part in parts.values() for name, value in part.knobs.items()}
    shape = {"outputs": 1} if given.get("score") == "head" else {}
    known = {**FIXED, **scalars, **dict.fromkeys(TERMS, 0.0), **shape}
    for name in given:
        if name not in known:
            raise UnknownKnob(name, f"{where} has no knob {name!r}; it has {', '.join(known)}.{nearest(name, known)}")
    whole = {**FIXED, **scalars, **shape, **given}
    for name, value in whole.items():
        if value is None:
            raise InputError(f"{where} has no {name}, and there is no default that fits all; set {name}.")
    check(**whole)
    return whole


def check(*, score: str = "", link: str = "", **rest: Any) -> None:
    """Refuse switches that do not exist, that leave nothing to learn, or that do not go together.

    Raises:
        InputError: what is wrong, in one sentence.
    """
    parts = parts_of({"score": score, "link": link, **rest})
    terms = [name for name in parts if name in TERMS]
    if bool(score) != bool(link):
        there, missing = ("score map", "link") if score else ("link", "score map")
        raise InputError(f"The objective has a {there} and no {missing}; name both.")
    if not score and not terms:
        raise InputError("The objective has neither a score map nor an nll weight, so there is nothing to learn.")
    for name in terms:
        of_head = "scores" in parts[name].reads
        if (score == "head") != of_head:
            reads = "a reward head" if of_head else "log-probabilities, which a reward head has not"
            raise InputError(f"The term {name} reads {reads}, so {name} has to be 0 where score is {score or 'empty'}.")
    for name, part in parts.items():
        if part.scores and score not in part.scores:
            raise InputError(f"{name}: {rest.get(name, link)} goes with score: {' or '.join(part.scores)} only.")
    idle = [name for name in ("compare", "offset", "target", "weight") if rest.get(name, FIXED[name]) != FIXED[name]]
    if idle and kind_of(link) in ("alone", "list"):
        raise InputError(f"The link {link} compares no pairs, so {idle[0]} has no effect; leave it out.")
    if "offset" in parts and parts["link"].sides:
        raise InputError(f"The link {link} looks at each side by itself, so an offset has no effect; leave offset out.")
    knobs = {"score": score, "link": link, **rest}
    if score and not any(isinstance(value, str) and ":" in value for value in knobs.values()):
        wide = rest.get("compare") == "skew" or link == "squared"
        objective(trial(head=score == "head", columns=2 if wide else 1), **knobs)  # a scalar out of range shows here


def objective(
    seen: Seen,
    *,
    score: str = "",
    compare: str = "difference",
    offset: str = "",
    link: str = "",
    target: str = "hard",
    weight: str = "",
    beta: float = 1.0,
    **scalars: Any,
) -> Outcome:
    """Return the weighted loss of pairs, lists or rows that stand alone + weighted auxiliary terms.

    Args:
        seen: the batch.
        score: the score map; empty leaves all but the terms out.
        compare: how two branches' scores are compared.
        offset: what is added to the comparison; empty adds nothing.
        link: turns what was compared into a loss; which link it is decides the shape of the rows.
        target: with which probability the chosen side should win.
        weight: how much a pair counts besides its row; empty counts it once.
        beta: scale of the score.
        scalars: those of the functions named, and the weights of auxiliary terms such as ``nll``.
    """
    names = {"score": score, "compare": compare, "offset": offset, "link": link, "target": target, "weight": weight}
    parts = parts_of({**names, **scalars})
    loss, metrics, kept = seen.weight.new_zeros(()), dict[str, Tensor](), dict[str, Tensor]()
    if score:
        values = beta * parts["score"](seen, knobs=scalars)
        made = _MADE[kind_of(link)](seen, values, parts, beta, scalars)
        losses = parts["link"](made, knobs=scalars)
        counted = _weights(seen, made, parts, scalars)
        loss = loss + (counted * losses).sum() / (_total(seen, made) if seen.whole is None else seen.whole.weight)
        metrics |= _metrics(seen, made)
        for part, given in ((parts["link"], made), (parts.get("target"), seen)):
            kept |= part.kept(given, knobs=scalars) if part is not None else {}
    for name, term in _terms(parts):
        value = term(seen, knobs=scalars)
        loss = loss + scalars[name] * value
        metrics[name] = value.detach()
    return Outcome(loss, metrics, kept or NOTHING)


def _terms(parts: Mapping[str, Part]) -> Iterator[tuple[str, Part]]:
    return ((name, part) for name, part in parts.items() if name in TERMS)


def _compared(
    seen: Seen, values: Tensor, parts: Mapping[str, Part], beta: float, scalars: Mapping[str, Any]
) -> Compared:
    assert seen.chosen is not None
    assert seen.rejected is not None
    chosen, rejected = values[seen.chosen], values[seen.rejected]
    z = parts["compare"](chosen, rejected, knobs=scalars)
    if "offset" in parts:
        z = z + parts["offset"](seen, knobs=scalars)
    return Compared(z, chosen, rejected, parts["target"](seen, knobs=scalars), beta, seen)


_MADE: Mapping[str, Any] = {
    "pairs": _compared,
    "alone": lambda seen, values, parts, beta, scalars: Alone(values[seen.alone], beta, seen),
    "list": lambda seen, values, parts, beta, scalars: Listed(values, beta, seen),
}
"""What a link of each kind is handed."""


def _weights(seen: Seen, made: Any, parts: Mapping[str, Part], scalars: Mapping[str, Any]) -> Tensor:
    """Return how much each loss of the link counts: its row's weight, shared among the row's pairs."""
    if isinstance(made, Alone):
        return seen.weight[seen.alone]
    if isinstance(made, Listed):
        return seen.weight[first_of(seen)]
    assert seen.chosen is not None
    counted = seen.weight[seen.chosen]
    if seen.share is not None:
        counted = counted * seen.share
    return counted * parts["weight"](seen, knobs=scalars).detach() if "weight" in parts else counted


def _total(seen: Seen, made: Any) -> Tensor:
    """Return the weight of all rows of a batch that is computed at once."""
    if isinstance(made, Compared) and seen.share is None:
        return seen.weight[seen.chosen].sum()
    return seen.weight[seen.alone].sum() if isinstance(made, Alone) else seen.weight[first_of(seen)].sum()


def _metrics(seen: Seen, made: Any) -> dict[str, Tensor]:
    if isinstance(made, Compared):
        found = _pair_metrics(made)
        if seen.logps is not None:
            assert seen.chosen is not None
            assert seen.rejected is not None
            found["logps/chosen"] = seen.logps.detach()[seen.chosen].mean()
            found["logps/rejected"] = seen.logps.detach()[seen.rejected].mean()
        return found
    if isinstance(made, Alone) and made.values.ndim == 1 and seen.label is not None:
        good, values = seen.label > 0.5, made.values.detach()
        sides = {"rewards/chosen": values[good], "rewards/rejected": values[~good]}
        return {name: side.mean() for name, side in sides.items() if len(side)}
    return {}


def _pair_metrics(made: Compared) -> dict[str, Tensor]:
    chosen, rejected = made.chosen.detach(), made.rejected.detach()
    gap = made.z.detach() if chosen.ndim > 1 else chosen - rejected
    sides = {} if chosen.ndim > 1 else {"rewards/chosen": chosen.mean(), "rewards/rejected": rejected.mean()}
    right = ((gap > 0).to(gap.dtype) + (gap == 0).to(gap.dtype) / 2).mean()
    return sides | {"rewards/margins": gap.mean(), "rewards/accuracies": right}
