"""Numbers as a reader wants them: rates in percent, intervals, counts, durations and names of models.

A share and its unit are held together by a no-break space, so that a line never ends between them.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip

Estimate = Mapping[str, Any]
"""A measured value as the artefacts hold it: ``value``, ``low``, ``high`` and ``n``; each but the first may be None."""


def count(value: Any) -> str:
    """Return a whole number with thousands separated by commas, or a dash for nothing."""
    if value is None:
        return "–"
    if isinstance(value, float) and not value.is_integer():
        return number(value)
    return f"{int(value):,}"


def number(value: Any, digits: int = 4) -> str:
    """Return a number with ``digits`` significant digits, without an exponent where one can read it."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or (value.is_integer() and abs(value) < 1e15):
        return f"{int(value):,}".replace("-", "−")
    text = f"{value:,.{digits}g}" if abs(value) >= 1e-4 else f"{value:.1e}"
    if abs(value) >= 10**digits:
        text = f"{value:,.0f}"
    return text.replace("-", "−")


def fixed(value: Any, digits: int) -> str:
    """Return a number with ``digits`` decimals, so that a column of them lines up."""
    return "–" if value is None else f"{value:,.{digits}f}".replace("-", "−")


def tied(text: str) -> str:
    """Keep each percent sign on the line of its number."""
    return text.replace(" %", "\u00a0%")


def percent(value: Any, digits: int = 1, *, unit: str = "%") -> str:
    """Return a share as percent, one decimal unless told."""
    if value is None:
        return "–"
    return f"{100 * value:.{digits}f}\u00a0{unit}".replace("-", "−")


def places(row: Estimate) -> int:
    """Return how many decimals of a percentage say something: one near the ends or in a narrow interval, else none."""
    value, low, high = row.get("value"), row.get("low"), row.get("high")
    if value is None:
        return 0
    narrow = low is not None and high is not None and high - low < 0.03
    return 1 if narrow or not 0.02 <= abs(value) <= 0.98 else 0


def interval(row: Estimate, digits: int = 1, *, unit: str = "%") -> str:
    """Return ``78 to 85 %``, or a dash where no interval was measured."""
    if row.get("low") is None or row.get("high") is None:
        return "–"
    low = f"{100 * row['low']:.{digits}f}".replace("-", "−")
    return f"{low} to {percent(row['high'], digits, unit=unit)}"


def duration(seconds: Any) -> str:
    """Return seconds as a person says them: ``0.8 s``, ``44 s``, ``4 min 4 s``, ``2 h 5 min``."""
    if seconds is None:
        return "–"
    if seconds < 9.95:
        return f"{seconds:.1f}\u00a0s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}\u00a0s"
    if whole < 3600:
        return f"{whole // 60}\u00a0min {whole % 60}\u00a0s"
    return f"{whole // 3600}\u00a0h {whole % 3600 // 60}\u00a0min"


def money(price: Any) -> str:
    """Return US dollars, or nothing where nothing was paid."""
    if not price:
        return ""
    return f"${price:,.2f}" if price >= 0.01 else f"${price:.4f}"


def date(stamp: Any) -> str:
    """Return ``21 November 2026`` of an ISO time, or nothing where it cannot be read."""
    try:
        day = datetime.fromisoformat(str(stamp))
    except ValueError:
        return ""
    return f"{day.day} {MONTHS[day.month - 1]} {day.year}"


def join(parts: list[str]) -> str:
    """Return ``a, b and c``."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""


def plural(amount: Any, one: str, many: str = "") -> str:
    """Return the count with its noun."""
    return f"{count(amount)} {one if amount == 1 else many or one + 's'}"


def few(amount: int) -> str:
    """Return a small count as a word, as a sentence begins with it."""
    small = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    return small[amount] if amount < len(small) else count(amount)


def model(name: str) -> str:
    """Return how a sentence names a side of a comparison."""
    known = {"reference": "the reference", "policy": "the policy", "sft": "the SFT model"}
    return known.get(name, f"the model {name}")


def short(name: str) -> str:
    """Return how a table or an axis names a side or a stage."""
    return {"reference": "Reference", "policy": "Policy", "sft": "SFT", "reward": "Reward model"}.get(name, name)


def capital(text: str) -> str:
    """Return the text with its first letter large."""
    return text[:1].upper() + text[1:]
