"""Ordinary payments of any number of users, made fast: 4 µs each.

To the default model and rules they are what the simulation's are: each user pays about three times a day, near home, at
merchants of their own and now and then at another, amounts by user and merchant; one in a hundred is with a stolen
card. So about one in a hundred is an alert, among 10,000 users as among 1,000,000, for event time goes by the more
slowly, the more users there are. Nothing is kept of a user: their habits are hashes of their number. There are as many
merchants for any number of users.
"""

import time
from collections.abc import Iterator
from datetime import UTC, datetime

import msgspec
import numpy as np
from numpy.typing import NDArray

from dataflow.simulation.population import CITIES, DAY, PER_DAY

BEGIN = datetime(2016, 1, 1, tzinfo=UTC).timestamp()  # so long ago that event time is never ahead of the clock
MERCHANTS = 5000
CHUNK = 10_000  # payments made at once
OWN_MERCHANTS = 6  # of each user
ELSEWHERE = 0.1  # of the payments are at another merchant
NEW_DEVICE = 0.006  # are from a device never seen before, as in the simulation
STOLEN = 0.01  # are with a stolen card: from a new device, and of a high amount
HIGH = 410.0  # at least: what the rule `high_amount` finds, whether the user is known yet or not
NEAR = 0.1  # degrees from home, at most
AMOUNT, OF_USERS, OF_MERCHANTS, OF_PAYMENTS = 25.0, 0.3, 0.5, 0.45  # median, and log-spreads

_COUNTRIES = [city.country for city in CITIES]
_LATITUDES = np.array([city.latitude for city in CITIES])
_LONGITUDES = np.array([city.longitude for city in CITIES])
_MESSAGE = (
    '{"transaction_id":"%x","user":"%s","amount":%.2f,"location":"%s","device":"%s","merchant":"merchant-%d",'
    '"txn_type":"purchase","timestamp":"%sZ","latitude":%.4f,"longitude":%.4f}'
)

_ID_AT = len(b'{"transaction_id":"')

Message = tuple[bytes, bytes]
Numbers = NDArray[np.int64]


def stamped(value: bytes, number: int) -> bytes:
    """The payment with another id: the nanosecond of now, and a number that no other has; `stamp` reads the first."""
    return b'{"transaction_id":"%d-%d%s' % (time.time_ns(), number, value[value.index(b'"', _ID_AT) :])


class _Stamped(msgspec.Struct):
    transaction_id: str


_STAMPED = msgspec.json.Decoder(_Stamped)


def stamp(decision: bytes) -> int:
    """When the payment of a decision was `stamped`: nanoseconds since 1970."""
    return int(_STAMPED.decode(decision).transaction_id.split("-")[0])


def _unit(numbers: Numbers, question: int) -> NDArray[np.float64]:
    """A hash of each number and the question, in [0, 1): the finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    x = numbers.astype(np.uint64) * np.uint64(64) + np.uint64(question + 1)
    x *= np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _normal(numbers: Numbers, question: int) -> NDArray[np.float64]:
    """The same, nearly normal: mean 0, spread 1."""
    return 2 * (_unit(numbers, question) + _unit(numbers, question + 1) + _unit(numbers, question + 2)) - 3


class Payments:
    """The payments of so many users, in the order of event time.

    Args:
        users: how many.
        seed: of what is drawn.
        name: what their names begin with.
        after: how many of their payments were made before, elsewhere: event time goes on from there.
    """

    def __init__(self, users: int, seed: int = 1, name: str = "user", after: int = 0):
        self.users = users
        self.made = after
        self._name = name
        self._draw = np.random.default_rng(seed)
        self._at = BEGIN + after * (DAY / PER_DAY / users)

    def everyone(self, rounds: int) -> Iterator[Message]:
        """Each of them pays so many times: all once, then all again."""
        for _ in range(rounds):
            for first in range(0, self.users, CHUNK):
                yield from self._payments(np.arange(first, min(first + CHUNK, self.users)))

    def anyone(self, count: int) -> Iterator[Message]:
        """So many payments of users drawn at random."""
        for first in range(0, count, CHUNK):
            yield from self._payments(self._draw.integers(0, self.users, min(CHUNK, count - first)))

    def _payments(self, users: Numbers) -> Iterator[Message]:
        """One payment of each of these users."""
        count, draw = len(users), self._draw
        times = self._at + np.arange(1, count + 1) * (DAY / PER_DAY / self.users)
        self._at = float(times[-1])
        # Their first merchants see them most.
        favourite = (OWN_MERCHANTS * draw.random(count) ** 2).astype(np.int64)
        own = (_unit(users * OWN_MERCHANTS + favourite, 0) * MERCHANTS).astype(np.int64)
        merchants = np.where(draw.random(count) < ELSEWHERE, draw.integers(0, MERCHANTS, count), own)
        levels = OF_USERS * _normal(users, 10) + OF_MERCHANTS * _normal(merchants, 20)
        amounts = AMOUNT * np.exp(levels + OF_PAYMENTS * draw.standard_normal(count))
        stolen = draw.random(count) < STOLEN
        amounts = np.where(stolen, HIGH + amounts, amounts)
        cities = (_unit(users, 30) * len(CITIES)).astype(np.int64)
        north, east = (NEAR * (2 * draw.random((2, count)) - 1)).tolist()
        latitudes = _LATITUDES[cities] + 0.4 * (_unit(users, 31) - 0.5) + north
        longitudes = _LONGITUDES[cities] + 0.5 * (_unit(users, 32) - 0.5) + east
        names = [f"{self._name}-{user:07}" for user in users.tolist()]
        new = (stolen | (draw.random(count) < NEW_DEVICE)).tolist()
        numbers = range(self.made, self.made + count)
        devices = [
            f"mobile-{number}" if is_new else f"card-{name}"
            for number, is_new, name in zip(numbers, new, names, strict=True)
        ]
        self.made += count
        rows = zip(
            numbers,
            names,
            amounts.tolist(),
            [_COUNTRIES[city] for city in cities.tolist()],
            devices,
            merchants.tolist(),
            np.datetime_as_string((times * 1000).astype("datetime64[ms]")).tolist(),
            latitudes.tolist(),
            longitudes.tolist(),
            strict=True,
        )
        for row in rows:
            yield row[1].encode(), (_MESSAGE % row).encode()
