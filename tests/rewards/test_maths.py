"""The final answer of a solution: what is found, what counts as equal, and what does not."""

from __future__ import annotations

import sys
import threading
from fractions import Fraction
from typing import Any

import pytest

from tiebreak.records import InputError, Prompt
from tiebreak.rewards.maths import bare, check, equal, final, installed, number


def mark(known: str, said: str, **knobs: Any) -> float | None:
    return equal(Prompt(text="How many?", reference=known), said, {}, **{"library": "never", **knobs})


ACCEPTED = [
    ("1000", "1,000"),
    ("1,000", "1000"),
    ("1000", "$1,000.00"),
    ("10000", r"10{,}000"),
    ("10000", r"10,\!000"),
    ("18", "#### 18"),
    ("18", "16 - 3 = 13\n13 + 5 = 18\n#### 18"),
    ("18", "A: 18"),
    ("18", "A: $18"),
    ("18", "**Answer:** 18"),
    ("18", "Final answer: 18 dollars"),
    ("18", "The answer is 18."),
    ("18", "The answer is $18.00 per day!"),
    ("18", "The final answer is: $\\boxed{18}$."),
    ("18", "Final Answer: The final answer is $18$. I hope it is correct."),
    ("18", "The answer is therefore 18."),
    ("18", r"\boxed{18}"),
    ("18", r"First \boxed{17}, no: \boxed{\text{18 dollars}}"),
    ("18", r"\boxed 18"),
    ("18", r"It is \boxed{18}, although I first had \boxed{1"),
    ("18", "#### Step 2: add up\nThe answer is 18"),
    ("18", "She makes $18 a day."),
    ("18", "So 18 are left over."),
    ("18", "16 - 3 = <<16-3=13>>13 left, and 13 + 5 = <<13+5=18>>18"),
    ("18", "18.000"),
    ("18", "18cm"),
    ("18", "18 cm^2"),
    ("18", r"18\text{ cm}"),
    ("60", "60 km/h"),
    ("90", r"90^\circ"),
    ("50", "50%"),
    (r"50\%", "50"),
    ("50", "50 percent"),
    ("0.5", "1/2"),
    ("1/2", r"\frac{1}{2}"),
    (r"\frac12", "0.5"),
    (r"\dfrac{1}{2}", ".5"),
    ("2.5", "2 1/2"),
    ("2.5", r"2\frac{1}{2}"),
    ("3/4", "It comes to 3/4."),
    ("5000000", "5 million"),
    ("1000000", "1e6"),
    ("-5", "-5"),
    ("-5", "−5"),
    ("-5", "-$5"),
    ("-5", "The change is negative 5."),
    ("5", "It is 10-5."),
    ("5", r"\boxed{x = 5}"),
    ("The answer is 18.", "18"),
    ("It takes 2/2=<<2/2=1>>1 bolt.\n#### 18", "18"),
    ("5:30", "The train comes at 5:30."),
    ("x+1", "x + 1"),
    ("x+1", "So it is $x+1$."),
    (r"\text{Evelyn}", "The answer is Evelyn."),
    ("(1,2)", r"\boxed{(1, 2)}"),
]

REJECTED = [
    ("18", ""),
    ("18", "I do not know."),
    ("18", "eighteen"),
    ("18", "19"),
    ("18", "The answer is 19, not 18."),
    ("18", "The answer is not 18."),
    ("18", r"\boxed{18}, no, \boxed{19}"),
    ("18", r"\boxed{}"),
    ("18", "18 and then 19"),
    ("18", "A: 18-20"),
    ("18", "A: 18 or 19"),
    ("18", "A: 18 dollars and 50 cents"),
    ("1000", "10,00"),
    ("1000", "1.000"),
    ("5", "5 million"),
    ("2", "A: 2x"),
    ("2x", "2"),
    ("2", r"\boxed{2\pi}"),
    ("2", "A: 2 and a half"),
    ("5", r"\boxed{x \ge 5}"),
    ("5", "A: x >= 5"),
    ("5", "The train comes at 5:30."),
    ("1/3", "0.33"),
    ("0.33", "1/3"),
    ("0.5", "50%"),
    ("3", "1/0"),
    ("x=1, y=2", "x=3, y=2"),
    ("x+1", "1"),
    ("(1,2)", "(2,1)"),
    ("18", "9" * 5000),
]


@pytest.mark.parametrize(("known", "said"), ACCEPTED)
def test_what_says_the_same_is_accepted(known: str, said: str) -> None:
    assert mark(known, said) == 1.0


@pytest.mark.parametrize(("known", "said"), REJECTED)
def test_what_says_something_else_is_rejected(known: str, said: str) -> None:
    assert mark(known, said) == 0.0


def test_the_last_number_counts_only_where_no_mark_is_asked_for() -> None:
    assert mark("18", "That makes 18.") == 1.0
    assert mark("18", "That makes 18.", marked=True) == 0.0
    assert mark("18", "The answer is 18.", marked=True) == 1.0


def test_an_unfinished_box_is_no_answer_and_costs_no_time() -> None:
    assert final(r"\boxed{1" * 5000) is None
    assert final(r"\boxed{" * 5000 + "7" + "}" * 5000) == "7"


@pytest.mark.parametrize(
    ("text", "worth"),
    [("1,234.5", Fraction(2469, 2)), ("-1 1/2", Fraction(-3, 2)), ("2 thousand", 2000), ("about 3 apples", 3)],
)
def test_numbers_are_exact(text: str, worth: Fraction) -> None:
    assert number(bare(text)) == worth


def test_the_known_answer_is_a_field_where_one_is_named() -> None:
    prompt = Prompt(text="Q", reference="1", fields={"gold": 18, "several": ["17", 18.0], "none": None})
    for name, worth in (("gold", 1.0), ("several", 1.0), ("none", None), ("missing", None), ("", 0.0)):
        assert equal(prompt, "18", prompt.fields, answer=name, library="never") == worth
    assert equal(Prompt(text="Q"), "18", {}) is None


def test_a_known_answer_that_is_none_is_told() -> None:
    with pytest.raises(InputError, match="several lines and marks none as final"):
        mark("First 3.\nThen 4.", "4")
    with pytest.raises(InputError, match="says nothing"):
        mark(r"\boxed{}", "4")
    prompt = Prompt(text="Q", fields={"gold": {"text": "4"}})
    with pytest.raises(InputError, match="holds a dict"):
        equal(prompt, "4", prompt.fields, answer="gold")


SYMBOLIC = [
    ("x^2+1", r"\boxed{1+x^2}", 1.0),
    ("4", r"\boxed{2\sqrt{4}}", 1.0),
    (r"\frac{\pi}{2}", r"The answer is $\pi/2$.", 1.0),
    (r"\{1,2\}", r"\boxed{\{2,1\}}", 1.0),
    ("[0,1)", r"\boxed{[0, 1)}", 1.0),
    ("(1,2)", r"\boxed{(2,1)}", 0.0),
    ("2x", r"\boxed{2}", 0.0),
    ("x+1", r"\boxed{x+2}", 0.0),
    ("x+1", r"\boxed{\frac{}", 0.0),
    ("3", r"\boxed{9^{9^{9^{9}}}}", 0.0),
    ("3", r"\boxed{__import__('os').getpid()}", 0.0),
    ("3", r"\boxed{" + "x+" * 300 + "1}", 0.0),
]


@pytest.mark.parametrize(("known", "said", "worth"), SYMBOLIC)
def test_formulas_are_compared_by_the_library(known: str, said: str, worth: float) -> None:
    pytest.importorskip("math_verify", reason="math-verify is not installed: pip install 'tiebreak[verify]'")
    assert mark(known, said, library="always") == mark(known, said, library="auto") == worth


def test_the_library_never_changes_what_numbers_say() -> None:
    pytest.importorskip("math_verify", reason="math-verify is not installed: pip install 'tiebreak[verify]'")
    for known, said in ACCEPTED + REJECTED:
        if number(bare(known)) is not None and number(bare(said)) is not None:
            assert mark(known, said, library="always") == mark(known, said)
    assert mark("50%", "0.5", library="always") == 0.0


def test_the_library_works_in_any_thread() -> None:
    pytest.importorskip("math_verify", reason="math-verify is not installed: pip install 'tiebreak[verify]'")
    found: list[float | None] = []
    thread = threading.Thread(target=lambda: found.append(mark("x^2+1", r"\boxed{1+x^2}", library="always")))
    thread.start()
    thread.join()
    assert found == [1.0]


def test_without_the_library_formulas_are_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "math_verify", None)
    assert not installed()
    assert mark("x^2+1", r"\boxed{1+x^2}", library="auto") == 0.0
    assert mark("x^2+1", r"\boxed{x^2 + 1}", library="auto") == 1.0
    check("auto", where="rewards.math")
    with pytest.raises(InputError, match=r"tiebreak\[verify\]"):
        check("always", where="rewards.math")
    with pytest.raises(InputError, match="expected auto, never, always"):
        check("yes", where="rewards.math")
