"""The quantities of the parametric questions: each function draws numbers and computes the results.

A family of questions in ``material`` names a function of ``DRAWS`` and uses what it returns as the slots of its texts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random

from draws import accurate, detailed, helpful, structured
from draws.amounts import Slots

DRAWS: Mapping[str, Callable[[Random], Slots]] = {
    draw.__name__: draw
    for draw in (
        detailed.savings_growth,
        detailed.discount_steps,
        detailed.back_planning,
        detailed.paint_needed,
        detailed.binary_steps,
        detailed.weighted_mark,
        helpful.city_budget,
        helpful.textbook_plan,
        helpful.party_food,
        helpful.savings_goal,
        helpful.decision_meeting,
        helpful.bed_spacing,
        accurate.split_bill,
        accurate.unit_conversion,
        accurate.elapsed_time,
        accurate.weekday_shift,
        accurate.recipe_scaling,
        accurate.travel_time,
        accurate.order_by_height,
        accurate.code_output,
        accurate.fence_length,
        structured.pancakes,
        structured.day_visit,
        structured.cheaper_offer,
        structured.countdown,
        structured.number_puzzle,
    )
}
"""The name of each family of questions and what draws its quantities."""
