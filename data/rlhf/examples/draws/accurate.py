"""The quantities of questions with one right result, and of one wrong step carried through: the slots ``bad_...``."""

from __future__ import annotations

from random import Random

from draws.amounts import Slots, clock, counted, decimal, money
from draws.words import DISHES, NAMES, STUFF, TOWNS, WEEKDAYS


def split_bill(rng: Random) -> Slots:
    """A bill with a tip, divided without a remainder; the slip is made in adding the tip."""
    while True:
        people, bill, tip = rng.randint(3, 9), rng.randrange(40, 400), rng.choice((5, 10, 15, 20))
        total = bill * (100 + tip)
        if total % people == 0:
            break
    slip = rng.choice((-200, -100, 100, 200))
    return {
        "name": rng.choice(NAMES),
        "people": people,
        "bill": bill,
        "tip": tip,
        "extra": money(bill * tip),
        "total": money(total),
        "share": money(total // people),
        "bad_total": money(total + slip * people),
        "bad_share": money(total // people + slip),
    }


def unit_conversion(rng: Random) -> Slots:
    """Portions of a larger amount; the slip takes a hundred for a thousand."""
    big, big_one, small, stuff = rng.choice(STUFF)
    portion = rng.choice((20, 25, 40, 50, 75, 100, 125, 150, 200, 250, 300))
    while True:
        amount = rng.randint(2, 90)
        if amount * 100 % portion == 0 and amount * 100 > portion:
            break
    return {
        "name": rng.choice(NAMES),
        "amount": amount,
        "big": big,
        "big_one": big_one,
        "small": small,
        "stuff": stuff,
        "portion": portion,
        "converted": f"{amount * 1000:,}",
        "bad_converted": f"{amount * 100:,}",
        "count": f"{amount * 1000 // portion:,}",
        "bad_count": f"{amount * 100 // portion:,}",
    }


def elapsed_time(rng: Random) -> Slots:
    """A duration that crosses a full hour; the slip loses that hour."""
    start_hour, past_hour = rng.randint(6, 15), rng.randint(5, 55)
    hours, to_full = rng.randint(1, 6), 60 - past_hour
    past = rng.randint(1, 59 - to_full)
    start = start_hour * 60 + past_hour
    end = start + hours * 60 + to_full + past
    return {
        "name": rng.choice(NAMES),
        "town": rng.choice(TOWNS),
        "start": clock(start),
        "hours": counted(hours, "hour"),
        "minutes": counted(to_full + past, "minute"),
        "mid": clock(start + hours * 60),
        "to_full": to_full,
        "past": past,
        "end": clock(end),
        "bad_end": clock(end - 60),
    }


def weekday_shift(rng: Random) -> Slots:
    """A weekday some weeks and days ahead; the slip is a day too many or too few."""
    day, weeks, rest = rng.randrange(7), rng.randint(2, 140), rng.randint(1, 6)
    slip = rng.choice((-1, 1))
    return {
        "name": rng.choice(NAMES),
        "day": WEEKDAYS[day],
        "days": weeks * 7 + rest,
        "weeks": weeks,
        "weeks_text": counted(weeks, "week"),
        "full": weeks * 7,
        "rest": rest,
        "rest_text": counted(rest, "day"),
        "end": WEEKDAYS[(day + rest) % 7],
        "bad_end": WEEKDAYS[(day + rest + slip) % 7],
    }


def recipe_scaling(rng: Random) -> Slots:
    """An ingredient for another number of people; the slip counts one person too many or too few."""
    dish, ingredient = rng.choice(DISHES)
    base, each = rng.choice((2, 4, 6, 8)), rng.randrange(25, 130, 5)
    people = rng.choice([number for number in range(3, 31) if number != base])
    return {
        "name": rng.choice(NAMES),
        "dish": dish,
        "flour": ingredient,
        "base": base,
        "grams": base * each,
        "people": people,
        "each": each,
        "need": f"{people * each:,}",
        "bad_need": f"{(people + rng.choice((-1, 1))) * each:,}",
    }


def travel_time(rng: Random) -> Slots:
    """A journey in hours and minutes; the slip reads hundredths of an hour as minutes."""
    while True:
        hours, hundredths = rng.randint(1, 7), rng.choice((5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55))
        speed = rng.randrange(40, 130, 5)
        if speed * hundredths % 100 == 0:
            break
    return {
        "name": rng.choice(NAMES),
        "distance": speed * hours + speed * hundredths // 100,
        "speed": speed,
        "quotient": decimal(100 * hours + hundredths),
        "fraction": decimal(hundredths),
        "hours": counted(hours, "hour"),
        "minutes": hundredths * 60 // 100,
        "bad_minutes": hundredths,
    }


def order_by_height(rng: Random) -> Slots:
    """Four people by height; the slip gives one of them the wrong sign."""
    a, b, c, d = rng.sample(NAMES, 4)
    while True:
        x, y, z = rng.randint(2, 15), rng.randint(2, 15), rng.randint(3, 25)
        right, bad = z - y, rng.choice((z + y, y - z))
        if len({x, 0, right}) == len({x, 0, bad}) == 3:
            orders = [sorted({a: x, b: 0, d: at}.items(), key=lambda item: -item[1]) for at in (right, bad)]
            (first, second), (bad_first, bad_second) = ([name for name, _ in order[:2]] for order in orders)
            if (first, second) != (bad_first, bad_second):
                break
    return {
        **{"a": a, "b": b, "c": c, "d": d, "x": x, "y": y, "z": z},
        **{"first": first, "second": second, "bad_first": bad_first, "bad_second": bad_second},
        "d_at": f"{right:+d}",
        "bad_d_at": f"{bad:+d}",
    }


def code_output(rng: Random) -> Slots:
    """The sum of a Python range; the slip includes its end."""
    low, step, count = rng.randint(1, 40), rng.randint(2, 12), rng.randint(3, 6)
    numbers = list(range(low, low + step * count, step))
    high = low + step * count
    return {
        "low": low,
        "high": high,
        "step": step,
        "shown": ", ".join(map(str, numbers)),
        "total": sum(numbers),
        "bad_total": sum(numbers) + high,
    }


def fence_length(rng: Random) -> Slots:
    """What the fence around a rectangle costs; the slip is made in adding the sides."""
    width, gap, price = rng.randint(8, 60), rng.randint(2, 4), rng.randint(12, 45)
    length = width + rng.randint(3, 40)
    around, slip = 2 * (length + width), rng.choice((-10, 10))
    return {
        "name": rng.choice(NAMES),
        "length": length,
        "width": width,
        "gap": gap,
        "price": price,
        "around": around,
        "bad_around": around + slip,
        "net": around - gap,
        "bad_net": around + slip - gap,
        "cost": f"{(around - gap) * price:,}",
        "bad_cost": f"{(around + slip - gap) * price:,}",
    }
