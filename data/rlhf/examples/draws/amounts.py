"""How amounts, times and durations are written in the parametric questions.

Money is computed in whole cents and decimals in whole hundredths, so that no text depends on floating point.
"""

from __future__ import annotations

Slots = dict[str, object]


def money(cents: int) -> str:
    """Return an amount of euros: 1,250 or 12.60, without decimals where they are nought."""
    return f"{cents // 100:,}" if cents % 100 == 0 else f"{cents / 100:,.2f}"


def decimal(hundredths: int) -> str:
    """Return a number given in hundredths without needless noughts: 2.5, 0.05, 14."""
    return f"{hundredths / 100:.2f}".rstrip("0").rstrip(".")


def clock(minutes: int) -> str:
    """Return minutes after midnight as a time of day."""
    return f"{minutes // 60}:{minutes % 60:02d}"


def counted(number: int, thing: str) -> str:
    """Return the number with its thing: 1 hour, 2 hours."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def lasting(minutes: int) -> str:
    """Return a duration in hours and minutes, without a part that is nought."""
    parts = [counted(minutes // 60, "hour"), counted(minutes % 60, "minute")]
    return " and ".join(part for part in parts if not part.startswith("0 "))


def capital(text: str) -> str:
    """Return the text with a capital letter in front."""
    return text[0].upper() + text[1:]
