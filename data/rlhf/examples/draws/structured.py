"""The quantities of questions whose answers differ in order only."""

from __future__ import annotations

import datetime as dt
from random import Random

from draws.amounts import Slots, capital, clock, counted, money
from draws.words import ASIDES, EVENTS, GOODS, MONTHS, NAMES, SIGHTS, WARM, WEEKDAYS


def pancakes(rng: Random) -> Slots:
    """Quantities of a batter for a number of people."""
    people, each = rng.randint(3, 20), rng.choice((55, 60, 65, 70))
    return {
        "name": rng.choice(NAMES),
        "people": people,
        "each": each,
        "flour": f"{people * each:,}",
        "milk": f"{people * each * 2:,}",
        "eggs": people + rng.choice((0, 1)) - people // 4,
        "rest": rng.choice((15, 20, 25, 30, 40)),
        "warm": rng.choice(WARM),
        "aside": rng.choice(ASIDES),
    }


def day_visit(rng: Random) -> Slots:
    """Three appointments and a train; the walk to it has ten minutes in reserve."""
    first, second, third = rng.sample(SIGHTS, 3)
    times = [rng.randrange(low, high, 15) for low, high in ((540, 630), (690, 780), (870, 960), (1050, 1170))]
    walk = rng.randrange(10, 35, 5)
    return {
        "name": rng.choice(NAMES),
        "day": rng.choice(WEEKDAYS),
        "first": first,
        "second": second,
        "third": third,
        **{f"t{number}": clock(time) for number, time in enumerate(times, start=1)},
        "walk": walk,
        "leave": clock(times[-1] - walk - 10),
        "aside": rng.choice(ASIDES),
    }


def cheaper_offer(rng: Random) -> Slots:
    """Paying at once against rates and a fee that come to more."""
    thing, months, monthly = rng.choice(GOODS), rng.choice((6, 8, 10, 12)), rng.randint(25, 75)
    fee = rng.randint(5, 40)
    rates = months * monthly
    gap = fee + rng.randint(3, 50)
    return {
        "name": rng.choice(NAMES),
        "thing": capital(thing),
        "thing_low": thing,
        "a": money((rates + fee - gap) * 100),
        "monthly": monthly,
        "months": months,
        "fee": fee,
        "rates": money(rates * 100),
        "b": money((rates + fee) * 100),
        "gap": gap,
        "aside": rng.choice(ASIDES),
    }


def countdown(rng: Random) -> Slots:
    """Dates before an event; none of them lies before March, so that leap years do not matter."""
    date = dt.date(2025, 5, 20) + dt.timedelta(days=rng.randrange(215))
    w1, w2, days = rng.randint(6, 10), rng.randint(2, 4), rng.randint(2, 6)

    def told(back: int) -> str:
        day = date - dt.timedelta(days=back)
        return f"{day.day} {MONTHS[day.month - 1]}"

    return {
        "name": rng.choice(NAMES),
        "event": rng.choice(EVENTS),
        "date": told(0),
        "w1": w1,
        "w2": w2,
        "w3": counted(days, "day"),
        "d1": told(7 * w1),
        "d2": told(7 * w2),
        "d3": told(days),
        "aside": rng.choice(ASIDES),
    }


def number_puzzle(rng: Random) -> Slots:
    """A number that is multiplied and added to."""
    m, x, p = rng.randint(3, 19), rng.randint(6, 90), rng.randint(4, 80)
    return {
        "name": rng.choice(NAMES),
        "m": m,
        "p": p,
        "r": f"{m * x + p:,}",
        "q": f"{m * x:,}",
        "x": x,
        "aside": rng.choice(ASIDES),
    }
