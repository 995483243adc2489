"""What amounts are usual: mean and spread over about the last `MEMORY`, without extremes, and the largest ever.

Short histories are shrunk towards what is known of all (`AmountPrior`), and what lies far above the usual moves the
mean as if it lay at `CLIP` spreads: a fraud must not become the normal.
"""

import math
from typing import Any, Final, NamedTuple

from dataflow.profiles.compilation import compiled, float64

MEMORY: Final = 150.0
"""Transactions over which mean and spread reach: older ones fade."""
PRIOR: Final = 3.0
"""Transactions' worth of belief that amounts spread as they do among all."""
CLIP: Final = 3.0
"""Spreads above the mean beyond which an amount moves mean and spread no further."""
UNUSUAL_Z: Final = 2.5
UNUSUAL_RATIO: Final = 3.0
"""Spreads above the mean, or times the mean, from which a fraud is explained by its amount: by the card, that is, and
not by the merchant."""
MAX_AMOUNT: Final = 1e15
"""Beyond it an amount counts as this: its square must fit a float of 32 bits."""


class AmountPrior(NamedTuple):
    """What amounts are like among all, learned from the training window; towards it short histories are shrunk."""

    amount: float = 0.0  # mean of the users' mean amounts; 0: not known
    spread: float = 0.75  # typical standard deviation of a user's amounts, in their means


def fields(number: str) -> list[tuple[Any, ...]]:
    """The fields of a record: how many there were; their mean; the sum of their squared deviations, fading."""
    return [("seen", number), ("mean", number), ("squares", number)]


LARGEST: Final = [("largest", "f4")]


@compiled
def read(p: Any, prior: Any) -> tuple[float, float]:
    """Mean and standard deviation that the next amount is expected to have; (0, 0) where nothing is known.

    The spread is that of a prediction, so it is wider while history is short.
    """
    mean = float64(p["mean"])
    n = min(float64(p["seen"]), MEMORY)
    if prior.amount > 0.0:
        mean = (prior.amount + n * mean) / (1.0 + n)
    spread = prior.spread * mean
    squares = float64(p["squares"])
    return mean, math.sqrt((PRIOR * spread * spread + squares) / (PRIOR + n) * (1.0 + 1.0 / (n + 1.0)))


@compiled
def compare(amount: float, usual: float, spread: float) -> tuple[float, float]:
    """The amount in spreads from the usual, and in means; (0, 1) where nothing is known."""
    if spread > 0.0:
        return (amount - usual) / spread, amount / usual
    return 0.0, 1.0


@compiled
def update(p: Any, amount: float, usual: float, spread: float) -> None:
    """Takes an amount in: Welford's update with fading memory; `usual` and `spread` as read before it."""
    seen, squares = float64(p["seen"]), float64(p["squares"])
    if usual > 0.0 and amount > usual + CLIP * spread:
        amount = usual + CLIP * spread
    p["seen"] = seen + 1.0
    if seen >= MEMORY:
        squares *= (MEMORY - 1.0) / MEMORY
        seen = MEMORY - 1.0
    mean = float64(p["mean"])
    delta = amount - mean
    mean += delta / (seen + 1.0)
    p["mean"] = mean
    p["squares"] = squares + delta * (amount - mean)


@compiled
def read_largest(p: Any, amount: float) -> float:
    """The amount in the largest so far, 1 without one."""
    largest = float64(p["largest"])
    return amount / largest if largest > 0.0 else 1.0


@compiled
def update_largest(p: Any, amount: float) -> None:
    """Takes an amount in."""
    if amount > float64(p["largest"]):
        p["largest"] = amount
