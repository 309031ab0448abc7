"""What calls cost, and a budget that is never passed, however many calls are in flight."""

from __future__ import annotations

import asyncio
import re
from functools import lru_cache
from importlib import resources
from typing import NamedTuple

from tiebreak.records import InputError

MILLION = 1e6

_SAME_MODEL = re.compile(r"(-\d{4}-\d{2}-\d{2}|-\d{8}|-latest)?")
"""What may follow a name in the table: a snapshot's date, or "latest"."""


class BudgetReached(InputError):
    """The next call could pass the budget, so it was not made; what was answered counts and is kept."""


class Paid(NamedTuple):
    """What was paid for so far; ``usd`` is None where no price is known."""

    calls: int = 0
    usd: float | None = None
    tokens_in: int = 0
    tokens_out: int = 0


class Price(NamedTuple):
    """US dollars per million tokens read and written; ``seen`` is the date of a price from the table."""

    per_in: float
    per_out: float
    seen: str = ""

    def of(self, tokens_in: int | None, tokens_out: int | None) -> float | None:
        """Return the US dollars for these tokens, None where the server counted none."""
        if tokens_in is None and tokens_out is None:
            return None
        return ((tokens_in or 0) * self.per_in + (tokens_out or 0) * self.per_out) / MILLION


class Row(NamedTuple):
    """One price as published: where, of which model, when it was looked at, and where to look again."""

    host: str
    model: str
    price: Price
    page: str


@lru_cache(maxsize=1)
def table() -> tuple[Row, ...]:
    """Return the prices that come with tiebreak: a few well-known models, each with its date."""
    import yaml

    text = (resources.files("tiebreak.endpoint") / "prices.yaml").read_text(encoding="utf-8")
    return tuple(
        Row(row["host"], row["model"], Price(row["in"], row["out"], str(row["seen"])), row["page"])
        for row in yaml.safe_load(text)
    )


def price_of(model: str, host: str = "") -> Price | None:
    """Return the published price of ``model``, None where the table has none.

    The longest name that the model's begins with counts, if only a date or ``latest`` follows: ``gpt-4o-2024-08-06``
    costs what ``gpt-4o`` costs, ``gpt-4o-audio`` is another model. With ``host`` only that provider's prices count, for
    the same weights cost something else elsewhere, and nothing on a machine of one's own.
    """
    found = [
        row
        for row in table()
        if host in ("", row.host)
        and model.startswith(row.model)
        and _SAME_MODEL.fullmatch(model, len(row.model)) is not None
    ]
    return max(found, key=lambda row: len(row.model)).price if found else None


class Budget:
    """A hard cap on US dollars, on calls, or on both.

    A call reserves the most it can cost before it begins and settles what it did cost afterwards. Where the cap has
    room for it only if the calls in flight turn out cheaper, it waits for them; where it has none, the budget is
    reached and every further call is refused. One budget may be shared by several endpoints of one event loop.

    Args:
        usd: US dollars at most.
        calls: paid calls at most.
        already: what was paid before and counts, as the cache's ``paid`` tells.

    Raises:
        InputError: a cap that is not positive.
    """

    def __init__(self, *, usd: float | None = None, calls: int | None = None, already: Paid | None = None) -> None:
        for name, cap in (("usd", usd), ("calls", calls)):
            if cap is not None and not cap > 0:
                raise InputError(f"budget: {name} is {cap}; expected more than 0, or none for no such cap.")
        self.usd, self.calls = usd, calls
        self.spent_calls = already.calls if already else 0
        self.spent_usd = (already.usd or 0.0) if already else 0.0
        self._held_calls, self._held_usd = 0, 0.0
        self._waiting: list[asyncio.Future[None]] = []
        self._reached = ""

    async def hold(self, usd: float) -> Bill:
        """Reserve one call of at most ``usd`` US dollars, once there is room for it.

        Raises:
            BudgetReached: there is none, and nothing in flight could make some.
        """
        while not self._take(usd):
            freed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(freed)
            await freed
        return Bill(self, usd)

    def settle(self, held: float, paid: float, calls: int) -> None:
        """Give back what a call held and book what it cost; one that was turned away costs nothing and is none."""
        self._held_calls -= 1
        self._held_usd = self._held_usd - held if self._held_calls else 0.0
        self.spent_usd += paid
        self.spent_calls += calls
        waiting, self._waiting = self._waiting, []
        for freed in waiting:
            if not freed.done():
                freed.set_result(None)

    def _take(self, usd: float) -> bool:
        if self._reached:
            raise BudgetReached(self._reached)
        total = self.spent_usd + self._held_usd + usd
        fits = self.calls is None or self.spent_calls + self._held_calls < self.calls
        if fits and (self.usd is None or total <= self.usd * (1 + 1e-12)):
            self._held_calls += 1
            self._held_usd += usd
            return True
        if not self._held_calls:
            self._reached = self._said(usd)
            raise BudgetReached(self._reached)
        return False

    def _said(self, usd: float) -> str:
        if self.calls is not None and self.spent_calls >= self.calls:
            what = f"of {self.calls} calls is reached"
        else:
            what = f"of {self.usd:g} US dollars is reached: {self.spent_usd:.4g} are spent, and the next call may cost"
            what += f" up to {usd:.2g}"
        return f"The budget {what}; raise it and run again: what was answered so far is kept and not paid for twice."


class Bill:
    """What one call holds of a budget, and what it turns out to cost: until that is known, all it holds."""

    __slots__ = ("_budget", "_calls", "_held", "_paid")

    def __init__(self, budget: Budget | None, held: float) -> None:
        self._budget, self._held, self._paid, self._calls = budget, held, held, 1

    def known(self, *, paid: bool) -> None:
        """Take in whether the call has to be paid for at all."""
        if not paid:
            self._paid, self._calls = 0.0, 0

    def cost(self, usd: float | None) -> None:
        """Take in what the call cost; None leaves it at the most it can have cost."""
        if usd is not None:
            self._paid = usd

    def settle(self) -> None:
        """Book it."""
        if self._budget is not None:
            self._budget.settle(self._held, self._paid, self._calls)
