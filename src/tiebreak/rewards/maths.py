r"""Final answers in mathematics: find what a solution says in the end, and whether it equals what is known.

Numbers are compared exactly, as fractions, by code of this file alone: "1,000", "$1000.00" and "1000 dollars" are one
number. What is no number is compared as text, then, where the library math-verify is installed, as mathematics.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import re
import threading
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from tiebreak.records import InputError, Prompt
from tiebreak.rewards.verify import known

LIBRARY = ("auto", "never", "always")
PATIENCE = 5
"""Seconds the library may think about one pair of answers."""
LONGEST = 300
"""Characters of an answer the library is asked about: more is no answer but a text."""

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
_PLAIN = rf"(?:{_DIGITS}(?:\.\d+)?|\.\d+)(?:e[-+]?\d{{1,3}}(?!\d|\.\d))?"
_FRAC = r"\\frac\{-?\d+\}\{\d+\}"
_VALUE = rf"(?:{_DIGITS}\s*{_FRAC}|{_FRAC}|{_DIGITS}\s+\d+/\d+|{_PLAIN}(?:\s*/\s*{_DIGITS}(?!\d|\.\d))?)"
_TIMES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_MANY = rf"(?:\s+(?:{'|'.join(_TIMES)})s?\b)?"
_MONEY = r"(?:US\$|[$€£¥])?"
_NUMBER = re.compile(
    rf"(?<![\w.)}}\]])(?P<sign>[-+]?){_MONEY}(?P<more>[-+]?)(?P<value>{_VALUE})(?P<many>{_MANY})", re.IGNORECASE
)
_CLOCK = r"\d+(?::\d+)+"
_LAST = re.compile(rf"{_CLOCK}|{_NUMBER.pattern}", re.IGNORECASE)
_UNIT = re.compile(
    r"\s*(?:%|°|\^\{?\\circ\}?)?\s*(?:(?:[mgshlL]|[A-Za-z]{2,})(?:\^\{?[23]\}?|[²³])?(?:\s*/\s*[A-Za-z]+)?)?"
)
_NO_UNIT = re.compile(
    r"\b(?:pi|sqrt|sin|cos|tan|log|ln|exp|infinity|minus|not|half|halves|and\s+an?)\b|[<>≤≥≠]|\\(?:[lg]eq?|neq?)\b",
    re.IGNORECASE,
)
_HEAVY = re.compile(r"\^\s*\{?[^{}]*\^|\^\s*\{?-?\d{4,}|\d{4,}\s*!|!\s*!")
_NAMES = re.compile(r"\\text\w*\{[^{}]*\}|\\[A-Za-z]+|\b(?:or|and|pi|sqrt|sin|cos|tan|log|ln|exp|[A-Za-z])\b")
_HASHES = re.compile(r"####[ \t]*(\S.*)")
_MARKS = (
    re.compile(r"^[ \t>*_#]*(?:(?i:(?:the\s+)?(?:final\s+)?answer)[ \t*_]*[:=]|A:)[\s*_]*(\S.*)$", re.MULTILINE),
    re.compile(r"(?i:\banswer\s+is)[\s:=*_]*(\S.*?)(?=[.!?]*[*_]*\s*$|[.!?]+\s)", re.MULTILINE),
)


def equal(
    prompt: Prompt,
    completion: str,
    fields: Mapping[str, Any],
    *,
    answer: str = "",
    marked: bool = False,
    library: str = "auto",
) -> float | None:
    r"""Return 1 where the final answer of the completion equals a known one, else 0; None where none is known.

    The final answer is the last ``\boxed{...}``; else the last ``#### n``; else what follows the last ``A:``,
    ``Answer:`` or "answer is"; else, unless ``marked``, the last number (for a known answer that is no number: the last
    ``$...$``, or the only line). The known answer may be a solution that marks its own in these ways. Currency, percent
    signs, units and thousands' commas are set aside, fractions are exact and nothing is rounded: 0.33 is not 1/3.

    ``library`` says whether answers that are no numbers are also compared by math-verify: ``auto`` where it is
    installed, ``always``, ``never``. Recipes that must score alike on every machine say one of the last two.

    Raises:
        InputError: a known answer that says nothing, or one of several lines that marks none as final.
    """
    solutions = known(prompt, fields, answer)
    return max((_equal(prompt, completion, one, marked, library) for one in solutions), default=None)


def _equal(prompt: Prompt, completion: str, solution: str, marked: bool, library: str) -> float:
    wanted = _wanted(prompt, solution)
    target = number(wanted)
    found = final(completion)
    if found is None and not marked:
        found = _unmarked(completion, numeric=target is not None or bool(re.fullmatch(_CLOCK, wanted)))
    said = bare(found or "")
    if not said:
        return 0.0
    value = number(said)
    if target is not None and value is not None:
        return float(value == target)
    if _squeezed(said) == _squeezed(wanted):
        return 1.0
    return float((library == "always" or (library == "auto" and installed())) and _same(wanted, said))


def _wanted(prompt: Prompt, solution: str) -> str:
    found = final(solution)
    if found is None and "\n" in solution.strip():
        raise InputError(
            f"The known answer of prompt {prompt.id} has several lines and marks none as final; give the bare answer, "
            "or end the solution with a line like '#### 18'."
        )
    wanted = bare(solution if found is None else found)
    if not wanted:
        raise InputError(f"The known answer {solution!r} of prompt {prompt.id} says nothing; mend or drop it.")
    return wanted


def final(text: str) -> str | None:
    """Return the final answer that ``text`` marks as such, None where it marks none.

    A line ``#### ...`` is one where a number or a single word follows: elsewhere four hashes are a heading.
    """
    if (boxed := _boxed(text)) is not None:
        return boxed
    for found in reversed(_HASHES.findall(text)):
        said = bare(found)
        value = _NUMBER.match(said)
        if not re.search(r"\s", said) or (value and _UNIT.fullmatch(said, value.end())):
            return str(found)
    after = [(found.start(1), found[1]) for pattern in _MARKS for found in pattern.finditer(text)]
    return max(after)[1] if after else None


def _boxed(text: str) -> str | None:
    r"""Return the content of the last ``\boxed{...}`` that is closed, with the braces inside it; None without one."""
    boxes: list[tuple[int, str]] = []
    open_at: list[tuple[bool, int]] = []
    for found in re.finditer(r"\\f?boxed\s*\{|\\boxed\s+([^\s{}$]+)|\\[{}]|[{}]", text):
        if found[1]:
            boxes.append((found.start(), found[1]))
        elif found[0] == "}" and open_at:
            is_box, start = open_at.pop()
            if is_box:
                boxes.append((start, text[start : found.start()]))
        elif found[0].endswith("{") and found[0] != "\\{":
            open_at.append((found[0] != "{", found.end()))
    return max(boxes)[1] if boxes else None


def _unmarked(text: str, *, numeric: bool) -> str | None:
    """Return what an unmarked solution ends with: the last number, or the last formula, or all of one line."""
    text = re.sub(r"<<[^<>]*(?:>>|$)", "", text)  # GSM8K's calculator notes repeat numbers inside a sum
    formula = "\n" not in text.strip() and not re.search(r"[A-Za-z]{2,}", _NAMES.sub(" ", _plain(text)))
    if formula or number(bare(text)) is not None:
        return text
    if numeric:
        numbers = [found[0] for found in _LAST.finditer(_plain(text))]
        return numbers[-1] if numbers else None
    formulas = re.findall(r"\$\$(.+?)\$\$|\$([^$\n]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", text, re.DOTALL)
    lines = text.strip().splitlines()
    return "".join(formulas[-1]) if formulas else lines[0] if len(lines) == 1 else None


def bare(text: str) -> str:
    """Return an answer without what does not change it: maths delimiters, spacing, bold, a final stop, ``x =``."""
    text = _plain(text).strip()
    for _ in range(3):
        text = text.strip(" \t\n*_`").rstrip(".,;:").strip()
        text = re.sub(r"^\$([^$]*)\$$|^\\\((.*)\\\)$|^\\\[(.*)\\\]$", r"\1\2\3", text, flags=re.DOTALL)
        text = re.sub(r"^\\(?:text|textbf|mathrm|mathbf)\{([^{}]*)\}$", r"\1", text)
    return re.sub(r"^[A-Za-z]\w?\s*=\s*(?=[^=]+$)", "", text)


def _plain(text: str) -> str:
    """Return ``text`` with one way of writing for minus, fractions, dollars, percent and spaces inside numbers."""
    text = text.replace("\u2212", "-").replace("\\$", "$").replace("\\%", "%").replace("{,}", ",")
    text = re.sub(r",?\\[!,](?=\d{3})", ",", text)
    text = re.sub(r"\\[!,;: ]|\\left|\\right|~", " ", text)
    text = re.sub(r"(?<![\w)])\*\*(?=\S)([^*\n]+)\*\*(?!\w)", r"\1", text)
    text = re.sub(r"\bnegative\s+(?=\$?\d)", "-", text, flags=re.IGNORECASE)
    text = re.sub(r"\\[dt]frac", r"\\frac", text)
    return re.sub(r"\\frac\s*(\d)\s*(\d)(?!\d)", r"\\frac{\1}{\2}", text)


def number(text: str) -> Fraction | None:
    r"""Return the number that a :func:`bare` answer is, None where it is none or more than one.

    It may have a sign, a currency, a percent sign, a unit or a word like "million", be a fraction or mixed, and stand
    after the last equals sign or as the only number among words. ``2x``, ``2\pi`` and "3 or 4" are no numbers.
    """
    text = re.sub(r"\\(?:text|mathrm)\{([^{}]*)\}", r" \1", text).strip()
    if "=" in text and re.search(r"[;,](?!\d{3})|\b(?:and|or)\b", text):
        return None  # several equations
    tail = text.rpartition("=")[2].strip()
    if _NO_UNIT.search(text) or re.fullmatch(_CLOCK, tail):
        return None
    found = _NUMBER.match(tail)
    if found and _UNIT.fullmatch(tail, found.end()):
        return _worth(found)
    every = list(_LAST.finditer(tail))
    prose = re.search(r"[A-Za-z]{2,}", tail) and not re.search(r"[\\^_+*{}\[\]]|\b[b-zB-HJ-Z]\b|\d[A-Za-z]\b", tail)
    return _worth(every[0]) if prose and len(every) == 1 and every[0]["value"] else None


def _worth(found: re.Match[str]) -> Fraction | None:
    r"""Return the value of a number as written: ``-$1,000.5``, ``2 1/2``, ``3\frac{1}{2}``, ``5 million``."""
    sign = (-1, 1)[(found["sign"] + found["more"]).count("-") % 2 == 0]
    text = re.sub(r"\\frac\{(-?\d+)\}\{(\d+)\}", r" \1/\2", found["value"]).replace(",", "").strip()
    try:
        parts = [_fraction(part) for part in re.split(r"(?<=\d)\s+(?=-?\d+/)", text)]
    except (ValueError, ZeroDivisionError):  # more digits than Python reads, or a fraction over 0
        return None
    many = found["many"].strip().lower().rstrip("s")
    return sign * sum(parts, Fraction(0)) * _TIMES.get(many, 1)


def _fraction(text: str) -> Fraction:
    above, _, below = text.partition("/")
    return Fraction(above.strip()) / Fraction(below.strip() or 1)


def _squeezed(text: str) -> str:
    text = re.sub(r"\s+|\\text\w*\{([^{}]*)\}", r"\1", text)
    return text.casefold() if re.search(r"[A-Za-z]{3,}", text) else text


def installed() -> bool:
    """Whether math-verify can be imported."""
    return importlib.util.find_spec("math_verify") is not None


def check(library: str, *, where: str) -> None:
    """Refuse a setting that is none, and ``always`` where the library is not installed."""
    if library not in LIBRARY:
        raise InputError(f"{where}: library is {library!r}; expected {', '.join(LIBRARY)}.")
    if library == "always" and not installed():
        raise InputError(
            f"{where}: library: always needs math-verify, which is not installed; pip install 'tiebreak[verify]', or "
            "set library: never."
        )


def _same(wanted: str, said: str) -> bool:
    """Ask math-verify whether two formulas are equal; prose and what would take for ever are not equal.

    Its time limit is an alarm signal, which only the main thread of a POSIX system can set; elsewhere it runs without.
    """
    for text in (wanted, said):
        if len(text) > LONGEST or _HEAVY.search(text) or re.search(r"[A-Za-z]{2,}", _NAMES.sub(" ", text)):
            return False
    library = importlib.import_module("math_verify")
    log = logging.getLogger("math_verify")
    if log.level == logging.NOTSET:  # a formula it cannot read is an ordinary wrong answer
        log.setLevel(logging.CRITICAL)
    limited = os.name == "posix" and threading.current_thread() is threading.main_thread()
    seconds = PATIENCE if limited else None
    gold, guess = (library.parse(f"${text}$", parsing_timeout=seconds) for text in (wanted, said))
    return bool(library.verify(gold, guess, timeout_seconds=seconds))
