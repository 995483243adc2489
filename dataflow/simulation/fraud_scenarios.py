"""How frauds go: six stories, from what any rule sees to what only feedback tells.

A story is told by a plot, a generator of payments; whatever chance decides comes from the till's generator.
"""

from collections.abc import Callable, Iterator
from math import exp, log
from random import Random
from typing import NamedTuple

from dataflow.simulation.population import City, Person
from dataflow.simulation.purchases import SHADY, Simulated, Till

MINUTE = 60.0
_SHADY_STOLEN = 0.05  # share of stolen-card payments at a merchant of ill repute


class Scene(NamedTuple):
    """Where a fraud begins: with this person, there, at that merchant."""

    till: Till
    person: Person
    city: City
    category: int
    merchant: int


Plot = Iterator[tuple[float, Simulated]]


class Story(NamedTuple):
    """A kind of fraud: `share` of all fraudulent transactions, mean `size` of one case, and the plot.

    The plot yields transactions, each with its delay in seconds after the one before. Slow ones take a day or more.
    """

    name: str
    share: float
    size: float
    slow: bool
    tell: Callable[[Scene], Plot]


def _minutes(rng: Random, median: float, spread: float) -> float:
    return MINUTE * median * exp(rng.gauss(0.0, spread))


def _stolen_card(scene: Scene) -> Plot:
    """Half of the thieves have the card itself and shop in its town, half have its number and shop from anywhere."""
    till, person, city, *_ = scene
    rng = till.rng
    at_hand = rng.random() < 0.5
    device = person.card if at_hand else till.new_device()
    place = city if at_hand or rng.random() < 0.5 else till.abroad(city.country)
    goods = ("electronics", "clothing", "fuel", "cash") if at_hand else ("electronics", "online_shop", "clothing")
    for i in range(rng.randint(2, 5)):
        txn = till.buy(person, city, *till.shop(*goods), times=rng.uniform(1.0, 3.0))
        txn.device = device
        till.put(txn, place)
        if rng.random() < _SHADY_STOLEN:
            txn.merchant = rng.choice(SHADY)
        yield _minutes(rng, 35.0 if i else 240.0, 1.0), txn


def _card_testing(scene: Scene) -> Plot:
    """A handful of tiny payments at one web shop show which number still works; then it is used."""
    till, person, city, *_ = scene
    rng = till.rng
    device = till.new_device()
    place = city if rng.random() < 0.4 else till.abroad(city.country)
    category, merchant = till.shop("online_shop", "entertainment")
    tries = rng.randint(3, 7)
    for i in range(tries):
        txn = till.buy(person, city, category, merchant)
        txn.amount = round(rng.uniform(0.5, 4.5), 2)
        txn.device = device
        till.put(txn, place)
        yield _minutes(rng, 0.6 if i else 180.0, 0.7), txn
    for _ in range(rng.randint(1, 2)):
        txn = till.buy(person, city, *till.shop("electronics", "online_shop"), times=rng.uniform(1.5, 5.0))
        txn.device = device
        till.put(txn, place)
        yield _minutes(rng, 12.0, 0.8), txn


def _account_takeover(scene: Scene) -> Plot:
    """Someone logs in from a new device, mostly behind an address of the same country, and sends the money away."""
    till, person, city, *_ = scene
    rng = till.rng
    device = till.new_device()
    place = city if rng.random() < 0.65 else till.abroad(city.country)
    for i in range(rng.randint(2, 4)):
        txn = till.buy(person, city, *till.shop("money_transfer", "money_transfer", "electronics"))
        txn.amount = round(txn.amount * rng.uniform(1.0, 4.0), 2)
        txn.device = device
        till.put(txn, place)
        yield _minutes(rng, 20.0 if i else 360.0, 0.9), txn


def _impossible_travel(scene: Scene) -> Plot:
    """A copy of the card pays in another country, minutes after the person paid here."""
    till, person, city, *_ = scene
    rng = till.rng
    place = till.abroad(city.country)
    for i in range(rng.randint(1, 3)):
        txn = till.buy(person, place, *till.shop("clothing", "restaurant", "electronics", "cash", "grocery"))
        txn.device = person.card
        yield (rng.uniform(8, 50) * MINUTE if i else exp(rng.uniform(log(60), log(3000)))), txn


def _compromised_merchant(scene: Scene) -> Plot:
    """The skimmed card pays again at that merchant, as ordinarily as its owner: only feedback tells."""
    till, person, city, category, merchant = scene
    rng = till.rng
    for _ in range(rng.randint(1, 2)):
        txn = till.buy(person, city, category, merchant, times=rng.uniform(0.9, 1.4))
        yield _minutes(rng, 900.0, 0.8), txn


def _spending_burst(scene: Scene) -> Plot:
    """The phone is in other hands for an hour: own device, own town, one purchase after the other."""
    till, person, city, *_ = scene
    rng = till.rng
    device = person.card if rng.random() < 0.4 else person.device(0)
    for i in range(rng.randint(5, 10)):
        txn = till.buy(person, city, *till.shop("clothing", "online_shop", "electronics", "entertainment", "grocery"))
        txn.amount = round(txn.amount * rng.uniform(0.8, 1.8), 2)
        txn.device = device
        yield _minutes(rng, 7.0 if i else 20.0, 0.6), txn


# Stories that can begin at any honest transaction, and the one that begins at a breached merchant only.
STORIES = (
    Story("stolen_card", 0.22, 3.5, True, _stolen_card),
    Story("card_testing", 0.18, 6.5, True, _card_testing),
    Story("account_takeover", 0.14, 3.0, True, _account_takeover),
    Story("impossible_travel", 0.10, 2.0, False, _impossible_travel),
    Story("spending_burst", 0.16, 7.5, False, _spending_burst),
)
COMPROMISED = Story("compromised_merchant", 0.20, 1.5, True, _compromised_merchant)
SCENARIOS = (*(story.name for story in STORIES), COMPROMISED.name)
