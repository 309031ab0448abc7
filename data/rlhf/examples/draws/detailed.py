"""The quantities of questions whose answer is worked out step by step."""

from __future__ import annotations

from random import Random

from draws.amounts import Slots, capital, clock, decimal, lasting, money
from draws.words import GOODS, NAMES, OVEN_DISHES


def savings_growth(rng: Random) -> Slots:
    """Compound interest, rounded half up to the cent once a year."""
    start, rate, years = rng.randrange(500, 20_010, 10), rng.randint(2, 6), rng.choice((3, 4))
    balance, steps = start * 100, []
    for year in range(1, years + 1):
        interest = (balance * rate + 50) // 100
        steps.append(f"In year {year}, {money(balance)} euros earn {money(interest)} euros, which makes ")
        balance += interest
        steps[-1] += f"{money(balance)}."
    plain = start * rate * years
    gain = balance - start * 100
    return {
        "name": rng.choice(NAMES),
        "start": money(start * 100),
        "rate": rate,
        "years": years,
        "factor": f"1.0{rate}",
        "steps": " ".join(steps),
        "end": money(balance),
        "gain": money(gain),
        "simple": money(start * 100 + plain),
        "simple_gain": money(plain),
        "extra": money(gain - plain),
    }


def discount_steps(rng: Random) -> Slots:
    """A reduction by a multiple of 5 %, built from tenths and half a tenth."""
    thing, price, off = rng.choice(GOODS), rng.randrange(40, 400, 2), rng.choice((15, 20, 25, 30, 35, 40, 45, 60, 70))
    tenth, half, tens = money(price * 10), money(price * 5), off // 10
    times = {2: "Twice", 3: "Three times", 4: "Four times", 6: "Six times", 7: "Seven times"}.get(tens, "")
    build = f"Half of that, {half}, is 5 %, and 10 % and 5 % together make 15 %."
    if tens > 1:
        build = f"{times} that is {tens}0 %, or {money(price * 10 * tens)}"
        build += f", and half of {tenth}, so {half}, is another 5 %." if off % 10 else "."
    return {
        "name": rng.choice(NAMES),
        "thing": capital(thing),
        "thing_low": thing,
        "price": price,
        "off": off,
        "rest": 100 - off,
        "tenth": tenth,
        "build": build,
        "cut": money(price * off),
        "end": money(price * (100 - off)),
    }


def back_planning(rng: Random) -> Slots:
    """A timetable that is worked out from the time of the meal backwards."""
    dish, end = rng.choice(OVEN_DISHES), rng.randrange(18 * 60, 21 * 60, 5)
    cook, prep, rest = rng.randrange(50, 100, 5), rng.randrange(20, 50, 5), rng.choice((10, 15, 20))
    out = end - rest
    into = out - cook
    return {
        "name": rng.choice(NAMES),
        "dish": capital(dish),
        "dish_low": dish,
        "end": clock(end),
        "cook": cook,
        "prep": prep,
        "rest": rest,
        "out": clock(out),
        "into": clock(into),
        "heat": clock(into - 15),
        "begin": clock(into - prep),
        "total": lasting(cook + prep + rest),
    }


def paint_needed(rng: Random) -> Slots:
    """Litres of paint for two coats on four walls, less a door and windows."""
    length, width, height = rng.randrange(300, 720, 10), rng.randrange(250, 520, 10), rng.choice((240, 250, 260, 280))
    windows, holes = rng.choice((("a window", 350), ("two windows", 500)))
    around = 2 * (length + width)
    walls = around * height // 100
    area = walls - holes
    return {
        "name": rng.choice(NAMES),
        "length": decimal(length),
        "width": decimal(width),
        "height": decimal(height),
        "windows": windows,
        "around": decimal(around),
        "walls": decimal(walls),
        "holes": decimal(holes),
        "area": decimal(area),
        "coats": decimal(2 * area),
        "litres": f"{2 * area / 1000:.3f}".rstrip("0").rstrip("."),
        "buy": -(-2 * area // 1000),
    }


def binary_steps(rng: Random) -> Slots:
    """Repeated halving of a number."""
    number = rng.randrange(20, 2000)
    steps, left = [], number
    while left:
        steps.append(f"{left} / 2 = {left // 2}, remainder {left % 2}.")
        left //= 2
    bits = f"{number:b}"
    powers = [str(1 << place) for place in range(len(bits) - 1, -1, -1) if number >> place & 1]
    return {
        "name": rng.choice(NAMES),
        "number": number,
        "steps": " ".join(steps),
        "bits": bits,
        "powers": " + ".join(powers),
    }


def weighted_mark(rng: Random) -> Slots:
    """A weighted mean of three scores that differs from the plain one."""
    weights = rng.choice(
        ((50, 30, 20), (60, 25, 15), (40, 35, 25), (55, 30, 15), (50, 35, 15), (60, 30, 10), (45, 35, 20))
    )
    while True:
        scores = [rng.randint(45, 98) for _ in range(3)]
        parts = [score * weight for score, weight in zip(scores, weights, strict=True)]
        if sum(scores) % 3 == 0 and sum(parts) * 3 != sum(scores) * 100:
            break
    slots: Slots = {"name": rng.choice(NAMES), "mark": decimal(sum(parts)), "plain": sum(scores) // 3}
    for key, score, weight, part in zip("abc", scores, weights, parts, strict=True):
        slots |= {key: score, f"w{key}": weight, f"p{key}": decimal(part)}
    return slots
