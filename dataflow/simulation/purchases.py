"""A simulated payment: what is told of it, the truth about it, and how a person comes to make one."""

from math import exp
from random import Random

import msgspec

from dataflow.simulation.population import (
    CATEGORIES,
    CATEGORY_INDEX,
    CITIES,
    CITY_SHARES,
    DEVICE_KINDS,
    City,
    Person,
    SimulatedPopulation,
    pick,
)

SHADY = ("XYZ_Merchant", "UnknownShop")  # on the merchant list that stands in the rules out of the box


class Simulated(msgspec.Struct, gc=False):
    """A transaction as plain fields, and the truth about it, which `to_json` leaves out.

    Degrees, the amount in units of currency; `at` is the timestamp (ISO 8601, UTC, milliseconds) as epoch seconds.
    Coordinates and category are None in the tutorial's population.
    """

    user: str
    amount: float
    location: str
    device: str
    merchant: str
    txn_type: str
    latitude: float | None = None
    longitude: float | None = None
    category: str | None = None
    fraud: bool = False
    scenario: str = "none"
    transaction_id: str = ""
    timestamp: str = ""
    at: float = 0.0


class _Public(msgspec.Struct, gc=False, omit_defaults=True):
    """What is told of a transaction, in the order of its JSON. The truth has no field here."""

    transaction_id: str
    user: str
    amount: float
    location: str
    device: str
    merchant: str
    txn_type: str
    timestamp: str
    latitude: float | None = None
    longitude: float | None = None
    category: str | None = None


class Truth(msgspec.Struct, gc=False):
    """What the generator knows of a transaction, as it stands on the topic of labels."""

    transaction_id: str
    fraud: bool
    scenario: str


_encode = msgspec.json.Encoder().encode


def to_json(txn: Simulated) -> bytes:
    """The transaction as its producer would send it: without the truth."""
    return _encode(
        _Public(
            txn.transaction_id,
            txn.user,
            txn.amount,
            txn.location,
            txn.device,
            txn.merchant,
            txn.txn_type,
            txn.timestamp,
            txn.latitude,
            txn.longitude,
            txn.category,
        )
    )


def label_to_json(txn: Simulated) -> bytes:
    """The truth about a transaction: its id, whether it is fraud, and the scenario ("none" if not)."""
    return _encode(Truth(txn.transaction_id, txn.fraud, txn.scenario))


class Till:
    """Where payments are made: draws what chance decides in them from one seeded generator."""

    def __init__(self, population: SimulatedPopulation, rng: Random):
        self.population = population
        self.rng = rng

    def buy(self, person: Person, city: City, category: int, merchant: int, times: float = 1.0) -> Simulated:
        """A transaction as the person would make it, of `times` the usual amount."""
        rng = self.rng
        name, _, median, spread, txn_type, online, *_ = CATEGORIES[category]
        amount = times * median * exp(rng.gauss(0.0, spread)) * person.spend * self.population.price_level(merchant)
        if txn_type == "withdrawal":
            amount = max(20.0, 10.0 * round(amount / 10))
        device = person.card
        if rng.random() < online:
            # Mostly the mobile, often the desktop, seldom the tablet.
            device = person.device(min(2, int(4 * rng.random() ** 2)))
        return Simulated(
            person.user,
            max(0.5, round(amount, 2)),
            city.country,
            device,
            self.population.merchant_name(category, merchant),
            txn_type,
            # The sum of two uniform numbers: within 11 km, nearer ones more often.
            round(city.latitude + 0.1 * (rng.random() + rng.random() - 1), 4),
            round(city.longitude + 0.1 * (rng.random() + rng.random() - 1), 4),
            name,
        )

    def put(self, txn: Simulated, city: City) -> None:
        """Moves a transaction to a city."""
        txn.location = city.country
        txn.latitude = round(city.latitude + 0.2 * (self.rng.random() - 0.5), 4)
        txn.longitude = round(city.longitude + 0.2 * (self.rng.random() - 0.5), 4)

    def abroad(self, country: str) -> City:
        """A city in another country."""
        while True:
            city = CITIES[pick(CITY_SHARES, self.rng.random())]
            if city.country != country:
                return city

    def new_device(self) -> str:
        """A device that nobody has used yet, named like all others."""
        return f"{self.rng.choice(DEVICE_KINDS)}-{self.rng.getrandbits(20):05x}"

    def shop(self, *categories: str) -> tuple[int, int]:
        """A category out of the given ones and one of its merchants."""
        category = CATEGORY_INDEX[self.rng.choice(categories)]
        return category, self.population.merchant(category, self.rng.random() ** 2)
