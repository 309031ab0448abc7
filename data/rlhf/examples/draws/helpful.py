"""The quantities of questions that ask for a plan to act on."""

from __future__ import annotations

from random import Random

from draws.amounts import Slots, money
from draws.words import CITIES, CROPS, GOALS, MATTERS, MEALS, NAMES, SUBJECTS


def city_budget(rng: Random) -> Slots:
    """Spending money by day, after a reserve."""
    days, daily, reserve = rng.randint(3, 7), rng.randrange(40, 120, 2), rng.choice((50, 60, 80, 100))
    food = daily // 2
    fares = rng.choice((8, 10, 12))
    return {
        "name": rng.choice(NAMES),
        "city": rng.choice(CITIES),
        "days": days,
        "budget": money((days * daily + reserve) * 100),
        "reserve": reserve,
        "left": money(days * daily * 100),
        "daily": daily,
        "food": food,
        "fares": fares,
        "sights": daily - food - fares,
    }


def textbook_plan(rng: Random) -> Slots:
    """Pages a day on five days a week, with the last week free."""
    pages, weeks = rng.randrange(180, 900), rng.randint(5, 14)
    daily = -(-pages // (5 * (weeks - 1)))
    subject = rng.choice(SUBJECTS)
    return {
        "name": rng.choice(NAMES),
        "subject": subject,
        "a_subject": f"{'an' if subject[0] in 'aeiou' else 'a'} {subject}",
        "pages": pages,
        "weeks": weeks,
        "reading": weeks - 1,
        "daily": daily,
        "slack": 2 * daily,
    }


def party_food(rng: Random) -> Slots:
    """Food for a number of guests, from grams a head."""
    meal, main, side, heads = rng.choice(MEALS)
    guests, per_main, per_side = rng.randrange(8, 61), rng.choice(heads), rng.choice((120, 150, 200))

    def kilos(grams: int) -> str:
        return f"{grams / 1000:.2f}".rstrip("0").rstrip(".") + " kg"

    return {
        "name": rng.choice(NAMES),
        "meal": meal,
        "guests": guests,
        "main_what": main,
        "side_what": side,
        "per_main": per_main,
        "per_side": per_side,
        "per_green": 150,
        "main": kilos(guests * per_main),
        "side": kilos(guests * per_side),
        "green": kilos(guests * 150),
        "dessert": kilos(guests * 120),
        "bread": max(2, -(-guests // 6)),
        "water": guests,
    }


def savings_goal(rng: Random) -> Slots:
    """A price that is saved up in equal parts."""
    months, monthly = rng.randint(4, 18), rng.randrange(40, 260, 5)
    half = months // 2
    return {
        "name": rng.choice(NAMES),
        "goal": rng.choice(GOALS),
        "amount": money(months * monthly * 100),
        "months": months,
        "income": money(rng.randrange(1500, 3600, 100) * 100),
        "monthly": monthly,
        "weekly": -(-monthly * 12 // 52),
        "half": half,
        "checkpoint": money(half * monthly * 100),
    }


def decision_meeting(rng: Random) -> Slots:
    """The minutes of a meeting: opening, one round, debate, closing."""
    people, each, opening, closing = rng.randint(4, 12), rng.choice((2, 3)), 5, rng.choice((5, 10))
    debate = rng.randrange(12, 40)
    debate -= (people * each + debate) % 5
    return {
        "name": rng.choice(NAMES),
        "matter": rng.choice(MATTERS),
        "people": people,
        "minutes": opening + people * each + debate + closing,
        "opening": opening,
        "each": each,
        "round": people * each,
        "debate": debate,
        "closing": closing,
    }


def bed_spacing(rng: Random) -> Slots:
    """Rows and plants of a bed, each with half a step to the edge."""
    crop, row, plant = rng.choice(CROPS)
    length, width = rng.randrange(150, 620, 10), rng.randrange(80, 260, 10)
    rows, per_row = width // row, length // plant
    return {
        "name": rng.choice(NAMES),
        "crop": crop,
        "length": f"{length / 100:.1f}".removesuffix(".0"),
        "width": f"{width / 100:.1f}".removesuffix(".0"),
        "row": row,
        "plant": plant,
        "rows": rows,
        "per_row": per_row,
        "total": rows * per_row,
    }
