"""Rules that make an overall of ratings, and the verdict that follows: exact values, vetoes, margins and symmetry."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tiebreak.judge.overall import RULES, Decision, Ratings, check_margin, decide, rule_of, source_of
from tiebreak.judge.rubric import shipped
from tiebreak.judge.scheme import Aspect, Scheme, parse_scheme
from tiebreak.records import InputError

SHIPPED = {name: parse_scheme(text, where=name) for name, text in shipped("[scheme]\n").items()}
NAMES = [row.name for row in RULES]


def scheme(*names: str, high: int = 5, weights: dict[str, float] | None = None, **vetoes: float) -> Scheme:
    """Aspects from 1 to ``high``; a name that ends in a question mark may be n/a."""
    aspects = tuple(
        Aspect(name.rstrip("?"), 1, high, name.endswith("?"), "What?", {1: "no", high: "yes"}) for name in names
    )
    weights = {aspect.name: 1.0 for aspect in aspects} if weights is None else weights
    return Scheme(aspects, "", "", "mean", weights, vetoes)


def decided(rule: str, of: Scheme, ratings: Ratings, margin: float = 0.0, **knobs: object) -> Decision:
    return decide(of, rule_of(rule, of, where="own"), ratings, margin=margin, **knobs)  # type: ignore[arg-type]


AB = scheme("a", "b", "c")
RATED = {"a": (4, 2), "b": (3, 5), "c": (5, 1)}


@pytest.mark.parametrize(
    ("rule", "of", "ratings", "overall", "strength"),
    [
        ("mean", AB, RATED, (4.0, 8 / 3), (4 / 3) / 4),
        ("mean", AB, {**RATED, "b": (None, 5)}, (4.5, 1.5), 3 / 4),
        ("fine_grained", AB, RATED, (4.0, 8 / 3), (4 / 3) / 4),
        ("fine_grained", AB, {**RATED, "b": (None, 5)}, (4.5, 8 / 3), (4.5 - 8 / 3) / 4),
        ("weighted_sum", scheme("a", "b", weights={"a": 2.0, "b": -0.5}), {"a": (4, 2), "b": (4, 4)}, (6, 2), 4 / 10),
        ("weighted_sum", scheme("a", "b", weights={"a": 2, "b": 1}), {"a": (4, 2), "b": (None, 4)}, (8, 4), 4 / 8),
        ("weighted_mean", scheme("a", "b", weights={"a": 3, "b": -1}), {"a": (4, 2), "b": (4, 4)}, (2, 0.5), 1.5 / 4),
        ("weighted_mean", scheme("a", "b", weights={"a": 3, "b": 1}), {"a": (None, 2), "b": (4, 3)}, (4, 3), 1 / 4),
        ("lexicographic", AB, {"a": (3, 3), "b": (2, 4), "c": (5, 1)}, (2, 4), 2 / 4),
        ("lexicographic", AB, {"a": (None, 3), "b": (4, 4), "c": (5, 1)}, (5, 1), 1.0),
    ],
)
def test_a_rule_is_its_formula(
    rule: str, of: Scheme, ratings: Ratings, overall: tuple[float, float], strength: float
) -> None:
    found = decided(rule, of, ratings)
    assert found.overall == pytest.approx(overall, abs=1e-12)
    assert found.strength == pytest.approx(strength, abs=1e-12)
    assert (found.verdict, found.winner) == ("slot", int(overall[0] < overall[1]))


def test_every_rule_has_its_formula_tested() -> None:
    marks = next(mark for mark in test_a_rule_is_its_formula.pytestmark if mark.name == "parametrize")  # type: ignore[attr-defined]
    assert {case[0] for case in marks.args[1]} == set(NAMES)


def test_helpsteer_makes_one_number_as_published() -> None:
    of = SHIPPED["helpsteer"]
    ratings = {"helpfulness": (4, 3), "correctness": (4, 3), "coherence": (4, 4), "complexity": (2, 2)}
    found = decided("weighted_sum", of, {**ratings, "verbosity": (1, 4)})
    first = 0.65 * 4 + 0.8 * 4 + 0.45 * 4 + 0.55 * 2 - 0.4 * 1
    second = 0.65 * 3 + 0.8 * 3 + 0.45 * 4 + 0.55 * 2 - 0.4 * 4
    assert found.overall == pytest.approx((first, second))
    assert found.strength == pytest.approx((first - second) / (4 * (0.65 + 0.8 + 0.45 + 0.55 + 0.4)))


def test_what_does_not_apply_is_left_out_and_is_no_zero() -> None:
    of = SHIPPED["ultrafeedback"]
    ratings = {"instruction_following": (4, 4), "honesty": (None, 1), "truthfulness": (4, 4), "helpfulness": (4, 4)}
    assert decided("fine_grained", of, ratings).overall == (4.0, 3.25)
    assert decided("mean", of, ratings).overall == (4.0, 4.0)
    assert decided("mean", of, ratings).verdict == "tie"


@pytest.mark.parametrize("rule", [name for name in NAMES if name != "lexicographic"])
def test_the_order_of_the_aspects_changes_nothing(rule: str) -> None:
    weights = {"a": 0.1, "b": 0.7, "c": -0.3, "d": 1.3}
    ratings = {"a": (4.1, 2.3), "b": (3.7, 4.9), "c": (1.2, 4.4), "d": (2.6, None)}
    found = {
        decided(rule, scheme(*order, weights=weights), {name: ratings[name] for name in order})
        for order in itertools.permutations(weights)
    }
    assert len(found) == 1


def test_equal_means_of_different_terms_tie_exactly() -> None:
    ratings = {"a": (4.1, 4.3), "b": (4.2, 4.2), "c": (4.3, 4.1)}
    assert decided("mean", AB, ratings)[:3] == ("tie", None, 0.0)


@pytest.mark.parametrize(
    ("margin", "verdict"), [(0.0, "slot"), (0.2, "slot"), (0.3, "slot"), (0.31, "tie"), (5.0, "tie")]
)
def test_less_than_the_margin_is_a_tie_and_the_margin_itself_is_not(margin: float, verdict: str) -> None:
    found = decided("mean", scheme("a"), {"a": (3.4, 3.1)}, margin)
    assert found.verdict == verdict
    assert found.strength == pytest.approx(0.3 / 4)


def test_lexicographic_passes_over_what_is_within_the_margin() -> None:
    ratings = {"a": (4, 3), "b": (1, 3), "c": (5, 1)}
    assert decided("lexicographic", AB, ratings).winner == 0
    assert decided("lexicographic", AB, ratings, 2.0)[:4] == ("slot", 1, 0.5, (1, 3))
    assert decided("lexicographic", AB, ratings, 4.0)[:4] == ("slot", 0, 1.0, (5, 1))
    assert decided("lexicographic", AB, {name: (3, 3) for name in "abc"}).verdict == "tie"


def test_lexicographic_decides_nothing_behind_an_aspect_that_was_lost() -> None:
    assert decided("lexicographic", AB, {"b": (1, 3), "c": (5, 1)}, lost=["a"]).verdict == "invalid"
    assert decided("lexicographic", AB, {"a": (1, 3), "c": (5, 1)}, lost=["b"]).winner == 1


CARE = scheme("care", "wit", "form", care=3)


@pytest.mark.parametrize("rule", NAMES)
@pytest.mark.parametrize(
    ("care", "verdict", "winner", "vetoed"),
    [
        ((2, 3), "slot", 1, (True, False)),
        ((3, 1), "slot", 0, (False, True)),
        ((2, 1), "both_bad", None, (True, True)),
        ((2.999, 3.0), "slot", 1, (True, False)),
    ],
)
def test_a_veto_holds_whatever_the_rest_says(
    rule: str, care: tuple[float, float], verdict: str, winner: int | None, vetoed: tuple[bool, bool]
) -> None:
    for rest in ((5, 1), (1, 5), (3, 3)):
        found = decided(rule, CARE, {"care": care, "wit": rest, "form": rest})
        assert (found.verdict, found.winner, found.vetoed) == (verdict, winner, vetoed)
        assert found.strength == (None if winner is None else 1.0)


def test_at_the_bound_of_a_veto_the_rest_decides() -> None:
    found = decided("mean", CARE, {"care": (3, 5), "wit": (5, 1), "form": (5, 1)})
    assert (found.winner, found.vetoed) == (0, (False, False))


def test_a_lost_rating_that_could_veto_is_invalid() -> None:
    found = decided("mean", CARE, {"wit": (5, 1), "form": (5, 1)}, lost=["care"])
    assert (found.verdict, found.why) == ("invalid", "no rating of care, which can veto")


@pytest.mark.parametrize(("most", "verdict"), [(0, "invalid"), (1, "invalid"), (2, "slot"), (3, "slot")])
def test_a_verdict_bears_so_many_lost_aspects(most: int, verdict: str) -> None:
    found = decided("mean", AB, {"c": (5, 1)}, lost=["b", "a"], most_missing=most)
    assert found.verdict == verdict
    assert found.why == ("no rating of a, b" if verdict == "invalid" else "")


@pytest.mark.parametrize("rule", NAMES)
def test_ratings_that_say_nothing_decide_nothing(rule: str) -> None:
    found = decided(rule, AB, {"a": (None, 3), "b": (None, 4), "c": (None, None)})
    assert (found.verdict, found.winner, found.overall) == ("invalid", None, None)


Draw = tuple[Scheme, str, Ratings, float, list[str]]


@st.composite
def drawn(draw: st.DrawFn) -> Draw:
    """A shipped scheme, a rule that fits it, ratings, a margin, and aspects that were lost."""
    of = draw(st.sampled_from(list(SHIPPED.values())))
    of = of._replace(weights=of.weights or {aspect.name: float(i + 1) for i, aspect in enumerate(of.aspects)})
    lost = draw(st.lists(st.sampled_from([aspect.name for aspect in of.aspects]), max_size=2, unique=True))

    def rating(aspect: Aspect) -> st.SearchStrategy[float | None]:
        some = st.integers(aspect.low, aspect.high) | st.floats(aspect.low, aspect.high)
        return some | st.none() if aspect.optional else some

    ratings = {a.name: (draw(rating(a)), draw(rating(a))) for a in of.aspects if a.name not in lost}
    return of, draw(st.sampled_from(NAMES)), ratings, draw(st.floats(0, 3)), lost


@given(drawn())
def test_swapping_the_answers_swaps_all(made: Draw) -> None:
    of, rule, ratings, margin, lost = made
    here = decided(rule, of, ratings, margin, lost=lost)
    there = decided(rule, of, {name: (b, a) for name, (a, b) in ratings.items()}, margin, lost=lost)
    assert (there.verdict, there.strength, there.why) == (here.verdict, here.strength, here.why)
    assert there.winner == (None if here.winner is None else 1 - here.winner)
    assert there.overall == (None if here.overall is None else here.overall[::-1])
    assert there.vetoed == here.vetoed[::-1]
    assert here.strength is None or 0.0 <= here.strength <= 1.0


@pytest.mark.parametrize("rule", NAMES)
def test_best_against_worst_has_strength_one(rule: str) -> None:
    weights = {"a": 0.1, "b": 0.7, "c": 0.3}
    found = decided(rule, scheme(*"abc", weights=weights), {name: (1, 5) for name in "abc"})
    assert found.strength == pytest.approx(1.0)
    assert found.winner == 1


@pytest.mark.parametrize(
    ("rule", "of", "said"),
    [
        ("meen", AB, "Did you mean 'mean'"),
        ("weighted_mean", scheme("a", "b", weights={"a": 1}), "b has no weight; write a line like b: 1"),
        ("weighted_sum", scheme("a", "b", weights={"a": 0, "b": 0}), "weights are 0"),
        ("mean", AB._replace(aspects=(*AB.aspects, *scheme("d", high=9).aspects)), "different scales"),
        ("fine_grained", AB._replace(aspects=(*AB.aspects, *scheme("d", high=9).aspects)), "different scales"),
    ],
)
def test_a_rule_that_cannot_work_is_refused_at_the_door(rule: str, of: Scheme, said: str) -> None:
    with pytest.raises(InputError, match=said):
        rule_of(rule, of, where="own.txt")


def test_a_rule_of_ones_own_is_a_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rules.py").write_text(
        "from tiebreak.judge.overall import Overall\n"
        "def worst(scheme, ratings, margin):\n"
        "    first, second = (min(pair[side] for pair in ratings.values()) for side in (0, 1))\n"
        "    return Overall((first, second), 4)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert decided("my_rules:worst", AB, RATED)[:4] == ("slot", 0, 0.5, (3, 1))
    rule = rule_of("my_rules:worst", AB, where="own.txt")
    assert source_of("my_rules:worst", rule).startswith("def worst")
    assert source_of("mean", rule_of("mean", AB, where="own.txt")) == ""


@pytest.mark.parametrize("margin", [-0.1, math.nan, math.inf])
def test_a_margin_that_is_no_size_is_refused(margin: float) -> None:
    with pytest.raises(InputError, match="margin is"):
        check_margin(margin)
