"""What a recipe writes under rewards, read into terms: one reward each, with how it enters the total."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from tiebreak.records import InputError, Prompt
from tiebreak.registry import Row, nearest
from tiebreak.rewards import maths, verify
from tiebreak.rewards.table import BATCHED, REWARDS, Answered, Marks, Reward, Unscored

if TYPE_CHECKING:
    from tiebreak.models.load import Loaded

ENTERS = ("weight", "clip", "normalise", "as", "gate")
"""What every term may carry beside the knobs of its reward."""
NORMALISE = ("none", "whiten", "running", "group")
ROLES = ("sum", "product", "gate")
_NO_ANSWER = "name the field that holds the known answer with answer, or take prompts that have one"


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A weight that goes in a line from ``start`` to ``end`` over the first ``over`` (a share) of the run."""

    start: float
    end: float
    over: float = 1.0

    def at(self, done: float) -> float:
        """Return the weight when the share ``done`` of the run is over."""
        return self.start + (self.end - self.start) * min(1.0, done / self.over)


class Gate(NamedTuple):
    """Where a term is below ``least``, the total is ``otherwise``."""

    least: float
    otherwise: float


@dataclass(frozen=True, kw_only=True)
class Term:
    """One reward and how it enters the total: clipped, then normalised, then as its role says.

    ``weight`` belongs to the role ``sum``, ``gate`` to the role ``gate``. ``label`` names the term among the others.
    """

    name: str
    label: str
    score: Reward
    weight: float | Schedule = 1.0
    clip: tuple[float, float] | None = None
    normalise: str = "none"
    role: str = "sum"
    gate: Gate | None = None


class _Written(NamedTuple):
    """A term as written: its row, its settled knobs, which of them were given, and how it enters."""

    row: Row
    knobs: dict[str, Any]
    given: Mapping[str, Any]
    enters: Mapping[str, Any]
    where: str


def read_terms(written: Any, *, where: str, model: Callable[[str], Loaded], seed: int) -> list[Term]:
    """Return the terms that a recipe writes, ready to score.

    ``written`` is a name, ``{name: {knobs}}``, ``{name: value}`` for the first knob, or a list of those. ``model``
    loads the reward model of a name; ``seed`` is the run's, for a reward whose seed the recipe does not give. Addresses
    are taken as they are: what stands for an environment variable has to be expanded before.

    Raises:
        InputError: whatever :func:`check_terms` refuses, or what loading a model refuses.
    """
    return [replace(term, score=_reward(one, model, seed)) for one, term in _drafts(written, where)]


def check_terms(written: Any, *, where: str) -> None:
    """Refuse what :func:`read_terms` would, but load no model and ask nobody.

    Raises:
        InputError: not a name with its knobs; an unknown reward, knob or value; nothing that is added up.
    """
    _drafts(written, where)


def _drafts(written: Any, where: str) -> list[tuple[_Written, Term]]:
    """Return what is written and the terms it makes, all but their rewards."""
    every = list(written) if isinstance(written, Sequence) and not isinstance(written, str) else [written]
    if not every:
        raise InputError(f"{where} names no reward; there are {', '.join(row.name for row in REWARDS)}.")
    found: list[tuple[_Written, Term]] = []
    for one in (_settled(each, where) for each in every):
        found.append((one, _enter(one, {term.label for _, term in found})))
    if all(term.role != "sum" for _, term in found):
        raise InputError(f"{where} has nothing to add up, only what multiplies or gates it; give one term as: sum.")
    return found


def _reward(one: _Written, model: Callable[[str], Loaded], seed: int) -> Reward:
    """Make the reward of a term."""
    knobs = dict(one.knobs)
    if "seed" in knobs and "seed" not in one.given:
        knobs["seed"] = seed
    if one.row.name == "model":
        knobs["model"] = model(knobs["model"])
    target = one.row.load()
    reward: Reward = target(**knobs) if one.row.name in BATCHED else _each(target, one.row, knobs)
    return reward


def _unread(answered: Sequence[Answered]) -> Marks:
    """Score nothing: what stands in for a reward while a recipe is only checked."""
    return [[None] * len(one.texts) for one in answered]


def _settled(written: Any, where: str) -> _Written:
    name: Any = written
    value: Any = {}
    if isinstance(written, Mapping) and len(written) == 1:
        name, value = next(iter(written.items()))
    if not isinstance(name, str):
        raise InputError(
            f"{where}: a reward is written as {written!r}; expected a name or one name with its knobs, or a list of "
            "those."
        )
    row = REWARDS[name]
    here = f"{where}.{_word(name)}"
    if not isinstance(value, Mapping):
        first = next(iter(_knobs(row, {}, here)), None)
        if value is not None and first is None:
            raise InputError(f"{where}: {name!r} has no knobs; write it as {name} alone.")
        value = {} if value is None else {first: value}
    enters = {key: value[key] for key in value if key in ENTERS}
    given = {key: value[key] for key in value if key not in ENTERS}
    defaults = _knobs(row, given, here)
    for knob, setting in given.items():
        if knob not in defaults:
            raise InputError(
                f"{here} has no knob {knob!r}; it has {', '.join([*defaults, *ENTERS])}."
                f"{nearest(str(knob), [*defaults, *ENTERS])}"
            )
        if expected := _misfit(defaults[knob], setting, nothing=knob == "key_env" or row.knobs is None):
            raise InputError(f"{here}.{knob} is {setting!r}; expected {expected}.")
    knobs = {**defaults, **given}
    if missing := [knob for knob, setting in knobs.items() if setting is inspect.Parameter.empty]:
        raise InputError(f"{here}: {name!r} needs the knob {missing[0]!r}; give it a value here or a default.")
    one = _Written(row, knobs, given, enters, here)
    _check(one)
    return one


def _word(name: str) -> str:
    """Return what a term is called in messages and tables: a function's own name without its module."""
    return name.rpartition(":")[2]


def _knobs(row: Row, given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the knobs of a row with their defaults; for a judge those of the judge that ``by`` names, too."""
    if row.knobs is None:
        return _keywords(row, where)
    knobs = dict(row.knobs)
    if row.name == "judge_against":
        from tiebreak.judge.table import JUDGES

        knobs |= JUDGES[str(given.get("by", knobs["by"]))].settle({}, where=where)
    return knobs


def _keywords(row: Row, where: str) -> dict[str, Any]:
    """Return the knobs of a user's function, what it takes behind prompt, completion and fields, empty if required."""
    function = row.load()
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    if inspect.isclass(function) or inspect.iscoroutinefunction(function) or not parameters:
        raise InputError(
            f"{where}: {row.name!r} is no plain function; expected one of prompt, completion and fields that gives a "
            "number."
        )
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(places) < 3 and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
        raise InputError(
            f"{where}: {row.name!r} takes {len(places)} arguments; a reward is a function of prompt, completion and "
            "fields, in this order, whose further arguments are its knobs."
        )
    knobs = [*places[3:], *(p for p in parameters if p.kind is p.KEYWORD_ONLY)]
    for knob in knobs:
        if knob.name in ENTERS:
            raise InputError(f"{where}: {row.name!r} has an argument {knob.name!r}, a word of the recipe; rename it.")
    return {knob.name: knob.default for knob in knobs}


def _misfit(default: Any, value: Any, *, nothing: bool) -> str:
    """Return what a knob with this default takes where ``value`` is something else; ``nothing`` says None will do."""
    kinds: dict[type, tuple[str, type | tuple[type, ...]]] = {
        bool: ("true or false", bool),
        int: ("a whole number", int),
        float: ("a number", (int, float)),
        str: ("text", str),
        dict: ("keys with values", Mapping),
    }
    if type(default) not in kinds or (value is None and nothing):
        return ""
    words, kind = kinds[type(default)]
    fits = isinstance(value, kind) and (isinstance(default, bool) or not isinstance(value, bool))
    return "" if fits else words


def _check(one: _Written) -> None:
    """Refuse knobs that a shipped reward cannot work with."""
    name, knobs, where = one.row.name, one.knobs, one.where
    if name == "model":
        if not knobs["model"]:
            raise InputError(f"{where} names no model; write the stage or folder of a reward model as model.")
        if knobs["cut"] not in ("start", "end") or min(knobs["window"], knobs["batch"]) < 1:
            raise InputError(f"{where}: expected cut: start or end, and a window and a batch of 1 or more.")
    elif name == "math":
        maths.check(knobs["library"], where=where)
    elif name not in BATCHED:
        verify.check(name, knobs, where=where)
    elif "${" not in str(knobs.get("endpoint", "")):  # an address that is not known yet is checked when it is
        one.row.load()(**knobs)
    if knobs.get("concurrency", 1) < 1:
        raise InputError(f"{where}: concurrency is {knobs['concurrency']}; expected 1 or more.")


def _each(function: Callable[..., Any], row: Row, knobs: Mapping[str, Any]) -> Reward:
    """Make a reward of a function that scores one completion; what it raises is that completion's reason for None."""
    lacks: Unscored | None = None
    if row.knobs is not None and "answer" in knobs:
        what = f"has no known answer in the field {knobs['answer']!r}" if knobs["answer"] else "has no reference"
        lacks = Unscored(f"the prompt {what}", cure=_NO_ANSWER)

    def one(prompt: Prompt, text: str) -> Any:
        try:
            value = function(prompt, text, prompt.fields, **knobs)
        except Exception as error:
            return Unscored(type(error).__name__, str(error), "mend the function or the data it reads")
        return lacks if value is None else value

    def score(answered: Sequence[Answered]) -> Marks:
        return [[one(each.prompt, text) for text in each.texts] for each in answered]

    return score


def _enter(one: _Written, taken: set[str]) -> Term:
    """Return the term as it enters the total, under a label that is not ``taken``."""
    enters, where = one.enters, one.where
    normalise = enters.get("normalise", "none")
    if normalise not in NORMALISE:
        near = nearest(str(normalise), NORMALISE)
        raise InputError(f"{where}.normalise is {normalise!r}; expected {', '.join(NORMALISE)}.{near}")
    role = enters.get("as", "gate" if "gate" in enters else "sum")
    if role not in ROLES or (role == "gate") != ("gate" in enters):
        raise InputError(
            f"{where}: as is {role!r}{' beside a gate' if 'gate' in enters else ''}; expected sum, product, or gate "
            "with gate: {least: a number, otherwise: a number}."
        )
    if "weight" in enters and role != "sum":
        raise InputError(f"{where} has a weight and enters as {role}; only what is added up has one.")
    label, count = _word(one.row.name), 1
    while label in taken:
        count += 1
        label = f"{_word(one.row.name)}-{count}"
    return Term(
        name=one.row.name,
        label=label,
        score=_unread,
        weight=_weight(enters.get("weight", 1.0), where),
        clip=_clip(enters.get("clip"), where),
        normalise=normalise,
        role=role,
        gate=_gate(enters["gate"], where) if role == "gate" else None,
    )


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise InputError(f"{where} is {value!r}; expected a number.")
    return float(value)


def _finite(value: Any, where: str) -> float:
    number = _number(value, where)
    if math.isinf(number):
        raise InputError(f"{where} is {value!r}; expected a finite number.")
    return number


def _weight(value: Any, where: str) -> float | Schedule:
    if not isinstance(value, Mapping):
        return _finite(value, f"{where}.weight")
    if not {"from", "to"} <= set(value) <= {"from", "to", "over"}:
        raise InputError(
            f"{where}.weight is {dict(value)!r}; expected a number, or {{from: a, to: b, over: share of the run}}."
        )
    start, end = (_finite(value[key], f"{where}.weight.{key}") for key in ("from", "to"))
    over = _number(value.get("over", 1.0), f"{where}.weight.over")
    if not 0 < over <= 1:
        raise InputError(f"{where}.weight.over is {over:g}; expected a share of the run, above 0 and up to 1.")
    return Schedule(start=start, end=end, over=over)


def _clip(value: Any, where: str) -> tuple[float, float] | None:
    if value is None:
        return None
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise InputError(f"{where}.clip is {value!r}; expected [low, high].")
    low, high = (_number(bound, f"{where}.clip") for bound in value)
    if low > high:
        raise InputError(f"{where}.clip is {value!r}; expected the lower bound first.")
    return low, high


def _gate(value: Any, where: str) -> Gate:
    if not isinstance(value, Mapping) or set(value) != {"least", "otherwise"}:
        raise InputError(f"{where}.gate is {value!r}; expected {{least: a number, otherwise: a number}}.")
    return Gate(*(_finite(value[key], f"{where}.gate.{key}") for key in ("least", "otherwise")))
