"""How far earlier amounts went beyond the usual, fading: over a day and over a fortnight (users), or that alone.

An amount's excess is what it lies beyond 2 spreads above the mean, at most 4. Values are as of the newest event; an
older one counts as what would be left of it by then.
"""

import math
from typing import Any, Final

from dataflow.profiles.compilation import compiled, float64

DAY: Final = 86_400.0
FORTNIGHT: Final = 14.0
"""Days in which an excess fades to 1/e."""

FIELDS: Final = [("excess_day", "f4"), ("excess_fortnight", "f4")]


@compiled
def excess(z: float) -> float:
    """What an amount of so many spreads above the mean has beyond 2, at most 4."""
    return min(max(z - 2.0, 0.0), 4.0)


@compiled
def read(p: Any, at: float, last_at: float) -> tuple[float, float]:
    """What is left at `at` of a day's and of a fortnight's; `last_at` is the user's newest event."""
    day, fortnight = float64(p["excess_day"]), float64(p["excess_fortnight"])
    if fortnight > 0.0 and at > last_at:
        days = (at - last_at) / DAY
        return day * math.exp(-days), fortnight * math.exp(-days / FORTNIGHT)
    return day, fortnight


@compiled
def update(p: Any, over: float, at: float, last_at: float) -> None:
    """Takes in the excess of an amount; `last_at` as it was before."""
    day, fortnight = float64(p["excess_day"]), float64(p["excess_fortnight"])
    if over == 0.0 and fortnight == 0.0:
        return
    days = abs(at - last_at) / DAY  # infinite before the first: all has faded
    by_day, by_fortnight = math.exp(-days), math.exp(-days / FORTNIGHT)
    if at < last_at:  # this one has faded since, the newer ones have not
        p["excess_day"] = day + over * by_day
        p["excess_fortnight"] = fortnight + over * by_fortnight
    else:
        p["excess_day"] = day * by_day + over
        p["excess_fortnight"] = fortnight * by_fortnight + over


MERCHANT_FIELDS: Final = [("excess", "f8")]


@compiled
def read_merchant(p: Any, at: float, last_at: float) -> float:
    """What is left at `at` of a fortnight's; `last_at` is the merchant's newest event."""
    left = float64(p["excess"])
    if left > 0.0 and at > last_at:
        left *= math.exp((last_at - at) / (FORTNIGHT * DAY))
    return left


@compiled
def update_merchant(p: Any, over: float, at: float, last_at: float) -> None:
    """Takes in the excess of what a user paid, in that user's spreads."""
    if at >= last_at:
        p["excess"] = read_merchant(p, at, last_at) + over
    elif over > 0.0:
        p["excess"] = float64(p["excess"]) + over * math.exp((at - last_at) / (FORTNIGHT * DAY))
