"""Who the simulation is about: places, people with homes and habits, merchants. All derived from (seed, index).

Nobody is stored: whatever is asked about a person or a merchant is a hash of the seed, their index and the question,
so a million people take no more memory than the few thousand that the cache keeps.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from math import exp
from typing import NamedTuple

HOUR = 3600.0
DAY = 86400.0
PEOPLE_KEPT = 32_768  # in the cache, about 600 bytes each
PER_DAY = 3.0  # transactions a person and day, on average; the most active make about 5, the least active 2


class City(NamedTuple):
    """A place where people live: ISO 3166 country, degrees, hours ahead of UTC (daylight saving is left out)."""

    country: str
    latitude: float
    longitude: float
    utc_offset: float
    weight: float


class Category(NamedTuple):
    """A line of business: share of all transactions in percent, median and log-spread of amounts, how one pays."""

    name: str
    share: float
    median: float
    spread: float
    txn_type: str
    online: float  # share of transactions made from a device of the person's own, not with the card


CITIES = (
    City("US", 40.713, -74.006, -5, 9),
    City("US", 34.052, -118.244, -8, 7),
    City("US", 41.878, -87.630, -6, 5),
    City("US", 29.760, -95.370, -6, 4),
    City("US", 47.606, -122.332, -8, 3),
    City("US", 25.762, -80.192, -5, 3),
    City("CA", 43.653, -79.383, -5, 3),
    City("CA", 49.283, -123.121, -8, 2),
    City("MX", 19.433, -99.133, -6, 4),
    City("BR", -23.551, -46.633, -3, 6),
    City("BR", -22.907, -43.173, -3, 4),
    City("GB", 51.507, -0.128, 0, 6),
    City("GB", 53.481, -2.242, 0, 3),
    City("FR", 48.857, 2.352, 1, 6),
    City("FR", 45.764, 4.836, 1, 2),
    City("DE", 52.520, 13.405, 1, 4),
    City("DE", 48.135, 11.582, 1, 3),
    City("ES", 40.417, -3.704, 1, 3),
    City("IT", 45.464, 9.190, 1, 3),
    City("PL", 52.230, 21.012, 1, 2),
    City("NG", 6.524, 3.379, 1, 2),
    City("ZA", -26.204, 28.047, 2, 2),
    City("TR", 41.008, 28.978, 3, 2),
    City("AE", 25.205, 55.271, 4, 2),
    City("IN", 19.076, 72.878, 5.5, 6),
    City("IN", 28.614, 77.209, 5.5, 5),
    City("IN", 12.972, 77.595, 5.5, 4),
    City("TH", 13.756, 100.502, 7, 2),
    City("SG", 1.352, 103.820, 8, 2),
    City("JP", 35.677, 139.650, 9, 6),
    City("JP", 34.694, 135.502, 9, 3),
    City("AU", -33.869, 151.209, 10, 3),
)

CATEGORIES = (
    Category("grocery", 26.0, 27.0, 0.60, "purchase", 0.04),
    Category("restaurant", 14.0, 19.0, 0.55, "purchase", 0.15),
    Category("cafe", 9.5, 6.5, 0.40, "purchase", 0.05),
    Category("fuel", 9.0, 38.0, 0.40, "purchase", 0.0),
    Category("pharmacy", 6.0, 16.0, 0.60, "purchase", 0.05),
    Category("clothing", 6.0, 44.0, 0.60, "purchase", 0.45),
    Category("electronics", 2.5, 85.0, 0.75, "purchase", 0.60),
    Category("online_shop", 11.0, 29.0, 0.75, "purchase", 1.0),
    Category("entertainment", 5.5, 18.0, 0.55, "purchase", 0.70),
    Category("travel", 1.5, 105.0, 0.65, "purchase", 0.85),
    Category("bills", 3.0, 62.0, 0.40, "purchase", 1.0),
    Category("cash", 3.5, 60.0, 0.50, "withdrawal", 0.0),
    Category("money_transfer", 2.0, 60.0, 0.75, "transfer", 1.0),
    Category("cash_deposit", 0.5, 90.0, 0.60, "deposit", 0.0),
)
CATEGORY_INDEX = {category.name: i for i, category in enumerate(CATEGORIES)}

# How active people are at each hour of their own day; scaled below to an average of 1.
_ACTIVITY = (
    *(0.15, 0.07, 0.04, 0.03, 0.04, 0.12, 0.4, 0.9, 1.2, 1.25, 1.35, 1.6),
    *(1.9, 1.6, 1.3, 1.3, 1.5, 1.9, 2.0, 1.7, 1.3, 0.95, 0.6, 0.3),
)
ACTIVITY = tuple(24 * a / sum(_ACTIVITY) for a in _ACTIVITY)
PEAK_ACTIVITY = max(ACTIVITY)

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def mix(key: int, question: int) -> int:
    """A 64-bit hash of two integers: the finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    x = (key + (question + 1) * _GOLDEN) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def unit(key: int, question: int) -> float:
    """The same as a number in [0, 1)."""
    return (mix(key, question) >> 11) * 2.0**-53


def pick(shares: Sequence[float], at: float) -> int:
    """The index whose stretch of the cumulated, ascending `shares` (last 1) holds `at` in [0, 1)."""
    for i, share in enumerate(shares):
        if at < share:
            return i
    return len(shares) - 1


def _cumulated(weights: Sequence[float]) -> tuple[float, ...]:
    total = sum(weights)
    return tuple(w / total for w in accumulate(weights))


CITY_SHARES = _cumulated([city.weight for city in CITIES])
CATEGORY_SHARES = _cumulated([category.share for category in CATEGORIES])

# What one can ask of a person's key. Trips and favourites count on from their own bases.
_CITY, _NORTH, _EAST, _CHRONOTYPE, _TRAVELLER, _TRIP_PHASE, _CARD = range(7)
_DEVICES, _SPEND, _FAVOURITE, _TRIP = 10, 20, 100, 1_000_000

# Share of people, hours by which their day is shifted: ordinary, early, late, working nights.
_CHRONOTYPES = ((0.6, 0.0), (0.75, 2.0), (0.95, -3.0), (1.0, -11.0))
DEVICE_KINDS = ("mobile", "desktop", "tablet")
_TRIP_EVERY = 30 * DAY
_TRANSIT = 22 * HOUR  # nobody pays while on the way, so no honest traveller outpaces an airliner
_TRAVELLERS, _TRIPS = 0.5, 0.2  # share of people that travel at all; how many of their months have a trip


class Person:
    """Someone who pays: home, rhythm, means, devices, favourite merchants, trips."""

    __slots__ = ("_trip", "_trip_phase", "home", "key", "shift", "travels", "user")

    def __init__(self, key: int, index: int):
        self.key = key
        self.user = f"user_{index:06d}"
        city = CITIES[pick(CITY_SHARES, unit(key, _CITY))]
        self.home = City(
            city.country,
            round(city.latitude + (unit(key, _NORTH) - 0.5) * 0.4, 4),
            round(city.longitude + (unit(key, _EAST) - 0.5) * 0.5, 4),
            city.utc_offset,
            city.weight,
        )
        chronotype = unit(key, _CHRONOTYPE)
        self.shift = city.utc_offset + next(hours for share, hours in _CHRONOTYPES if chronotype < share)
        self.travels = unit(key, _TRAVELLER) < _TRAVELLERS
        self._trip_phase = unit(key, _TRIP_PHASE) * _TRIP_EVERY
        self._trip: tuple[int, float, float, City | None] = (-1, 0.0, 0.0, None)

    @property
    def card(self) -> str:
        """The card, as a device: what one pays with in shops."""
        return f"card-{mix(self.key, _CARD) >> 44:05x}"

    def device(self, which: int) -> str:
        """A device of the person's own: 0 the mobile, 1 the desktop, 2 the tablet."""
        return f"{DEVICE_KINDS[which]}-{mix(self.key, _DEVICES + which) >> 44:05x}"

    @property
    def spend(self) -> float:
        """How much the person spends against others: log-normal, about 0.5 to 2."""
        # A sum of three uniform numbers less its mean, doubled, is close enough to a normal one of spread 1.
        normal = 2 * sum(unit(self.key, _SPEND + i) for i in range(3)) - 3
        return exp(0.3 * normal)

    def activity(self, at: float) -> float:
        """How active the person is at that time, against an average of 1; weekends begin two hours later."""
        local = at / HOUR + self.shift
        if int(local / 24 + 3) % 7 >= 5:  # 1970 began on a Thursday: Monday is 0
            local -= 2
        return ACTIVITY[int(local) % 24]

    def where(self, at: float) -> City | None:
        """Where the person is at that time: at home, on a trip, or on the way (None)."""
        if not self.travels:
            return self.home
        month = int((at + self._trip_phase) / _TRIP_EVERY)
        if self._trip[0] != month:
            self._trip = self._plan(month)
        _, begin, end, city = self._trip
        if city is None or at < begin - _TRANSIT or at >= end + _TRANSIT:
            return self.home
        return city if begin <= at < end else None

    def _plan(self, month: int) -> tuple[int, float, float, City | None]:
        fate = unit(self.key, _TRIP + 4 * month)
        city = CITIES[pick(CITY_SHARES, unit(self.key, _TRIP + 4 * month + 1))]
        if fate >= _TRIPS or city.country == self.home.country:
            return month, 0.0, 0.0, None
        begin = month * _TRIP_EVERY - self._trip_phase + (2 + 12 * unit(self.key, _TRIP + 4 * month + 2)) * DAY
        return month, begin, begin + (2 + 10 * unit(self.key, _TRIP + 4 * month + 3)) * DAY, city

    def favourite(self, category: int, which: int) -> float:
        """Which of a category's merchants the person goes to: a number in [0, 1), densest near 0 (the popular)."""
        return unit(self.key, _FAVOURITE + 8 * category + which) ** 2


class SimulatedPopulation:
    """`size` people and the merchants they go to, the same for the same seed."""

    def __init__(self, seed: int, size: int):
        self.size = size
        self._people_key = mix(seed & _MASK, 1)
        self._merchants_key = mix(seed & _MASK, 2)
        self.person = lru_cache(maxsize=PEOPLE_KEPT)(self._derive)
        merchants = min(max(size // 5, 400), 20_000)
        # Merchants are as many in a category as it has business: each sees about as many customers.
        bounds = [0] + [round(share * merchants) for share in CATEGORY_SHARES]
        self._first = bounds
        self.merchants = merchants

    def _derive(self, index: int) -> Person:
        return Person(mix(self._people_key, index), index)

    def draw(self, at: float) -> Person:
        """The person that `at` in [0, 1) falls on; low indices come up to 1.7 times, high ones 0.7 times as often."""
        return self.person(int(self.size * at * (0.6 + 0.4 * at)))

    def merchant(self, category: int, at: float) -> int:
        """The index of the merchant of that category that `at` in [0, 1) falls on."""
        first = self._first[category]
        return first + int((self._first[category + 1] - first) * at)

    def category_of(self, merchant: int) -> int:
        """The index of a merchant's category."""
        return next(c for c in range(len(CATEGORIES)) if merchant < self._first[c + 1])

    def merchant_name(self, category: int, merchant: int) -> str:
        """What a merchant is called in transactions."""
        return f"{CATEGORIES[category].name}_{merchant - self._first[category]:04d}"

    def price_level(self, merchant: int) -> float:
        """How dear a merchant is: 0.7 to 1.4 times what its category is."""
        return 0.7 + 0.7 * unit(self._merchants_key, merchant)
