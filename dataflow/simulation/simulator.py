"""What happens: honest transactions of a population, and labelled fraud among them. Pure, seeded, in event-time order.

`history` makes days of it for training, at the rhythm in which people live; `stream` makes an endless one at a set
rate, `life_after` what the people of a history do next. All are the same machine: arrivals at points in time, each by a
person who is awake and not on the way; what follows from one (a second purchase on the same tour, the frauds with a
stolen card) waits in a heap until it is due. Memory is bounded by that heap: a few days of fraud and an hour of
shopping.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from heapq import heappop, heappush
from itertools import dropwhile
from math import inf, log
from random import Random

from dataflow.simulation.fraud_scenarios import COMPROMISED, SCENARIOS, STORIES, Scene, Story
from dataflow.simulation.population import (
    CATEGORY_SHARES,
    DAY,
    DEVICE_KINDS,
    PEAK_ACTIVITY,
    PER_DAY,
    City,
    Person,
    SimulatedPopulation,
    pick,
)
from dataflow.simulation.purchases import SHADY, Simulated, Till, label_to_json, to_json

__all__ = [
    "DEFAULT_START",
    "FRAUD_SHARE",
    "POPULATIONS",
    "SCENARIOS",
    "Simulated",
    "history",
    "label_to_json",
    "life_after",
    "natural_rate",
    "people_for",
    "stream",
    "to_json",
]

POPULATIONS = ("realistic", "tutorial")
DEFAULT_START = datetime(2026, 1, 5, tzinfo=UTC)
FRAUD_SHARE = 0.01  # of all transactions
PEOPLE = (2_000, 500_000)  # least and most people of a stream

TUTORIAL_USERS = ("John", "Peter", "Sam")
TUTORIAL_LOCATIONS = ("US", "IN", "FR", "BR", "JP")
TUTORIAL_MERCHANTS = ("Amazon", "Walmart", "Apple", "Nike", "XYZ_Merchant")
TUTORIAL_TYPES = ("purchase", "transfer", "withdrawal", "deposit")

MINUTE = 60.0

# Shares of honest transactions.
_SHADY_HONEST = 0.0003  # at a merchant of ill repute
_ABROAD_ONLINE = 0.0005  # seemingly from another country (VPN, roaming)
_NEW_DEVICE = 0.006  # from a device never seen before
_EXPLORE = 0.2  # at another merchant than a favourite
_TOUR = 0.18  # first ones of a tour
_TOUR_STOPS = (1, 1, 2, 2)  # payments that follow on a tour
_PER_TOUR = 1 + _TOUR * sum(_TOUR_STOPS) / len(_TOUR_STOPS)  # payments for each that does not follow another

_BREACH_DAYS, _BREACH_SHARE = 20, 0.005  # how long a merchant is compromised, and how many are at any time
_BREACH_VISITS = 0.82  # what such a merchant sees of an average one's visits: neither most nor least popular
_WARM_UP = 3 * DAY  # frauds that began so long before the start are under way when it comes


def natural_rate(people: int) -> float:
    """How many transactions a second so many people make at a natural pace, day and night, on average."""
    return people * PER_DAY / DAY


def people_for(rate: float) -> int:
    """How many people make `rate` transactions a second at a natural pace, within `PEOPLE`."""
    return min(max(round(rate * DAY / PER_DAY), PEOPLE[0]), PEOPLE[1])


def history(
    seed: int, users: int, days: float, start: datetime = DEFAULT_START, population: str = "realistic"
) -> Iterator[Simulated]:
    """The transactions of `users` people over `days`, about 3 a person and day, in event-time order.

    In the tutorial's population there are always three users; they make as many transactions as `users` people would.

    Raises:
        ValueError: an argument is out of range, or there is no such population.
    """
    if users < 1 or days <= 0:
        msg = f"users={users} and days={days} must be positive"
        raise ValueError(msg)
    stamp = _Stamp(start, f"history {population} {seed} {users}")
    if _is_tutorial(population):
        rng = Random(seed)
        times = _poisson(rng, stamp.start, stamp.start + days * DAY, natural_rate(users))
        return (stamp(_tutorial(rng), at) for at in times)
    return _Life(seed, users, stamp).history(days)


def life_after(seed: int, users: int, days: float, end: datetime) -> Iterator[Simulated]:
    """How the life of `history(seed, users, days, start)`, which ended at `end`, goes on, without end.

    The same people, habits and rhythm of day and night; frauds that are under way then go on, too.

    Raises:
        ValueError: an argument is out of range.
    """
    if users < 1 or days < 0:
        msg = f"users={users} must be positive, and days={days} not negative"
        raise ValueError(msg)
    start = end - timedelta(days=days)
    begin = (end if end.tzinfo else end.replace(tzinfo=UTC)).timestamp()
    return dropwhile(lambda txn: txn.at < begin, history(seed, users, inf, start))


def stream(seed: int, rate: float, start: datetime, population: str = "realistic") -> Iterator[Simulated]:
    """Endless transactions, `rate` a second of event time: the i-th lies between start + i / rate and the next.

    People are as many as make the rate at a natural pace (`people_for`). Beyond 500,000 people the pace rises, and
    the frauds' own clock with it. Transaction ids depend on seed, rate and start, so two runs into one topic differ.

    Raises:
        ValueError: the rate is not positive, or there is no such population.
    """
    if rate <= 0:
        msg = f"rate={rate} must be positive"
        raise ValueError(msg)
    stamp = _Stamp(start, f"stream {population} {seed} {rate}")
    if _is_tutorial(population):
        rng = Random(seed)
        return (stamp(_tutorial(rng), at) for at in _paced(rng, stamp.start, rate))
    return _Life(seed, people_for(rate), stamp, rate).stream(rate)


def _is_tutorial(population: str) -> bool:
    if population not in POPULATIONS:
        msg = f"population={population!r} must be one of {', '.join(POPULATIONS)}"
        raise ValueError(msg)
    return population == "tutorial"


def _paced(rng: Random, start: float, rate: float) -> Iterator[float]:
    i = 0
    while True:
        yield start + (i + rng.random()) / rate
        i += 1


def _poisson(rng: Random, start: float, end: float, rate: float) -> Iterator[float]:
    at = start
    while True:
        at -= log(1.0 - rng.random()) / rate
        if at >= end:
            return
        yield at


def _tutorial(rng: Random) -> Simulated:
    return Simulated(
        rng.choice(TUTORIAL_USERS),
        round(rng.uniform(1, 500), 2),
        rng.choice(TUTORIAL_LOCATIONS),
        rng.choice(DEVICE_KINDS),
        rng.choice(TUTORIAL_MERCHANTS),
        rng.choice(TUTORIAL_TYPES),
    )


class _Stamp:
    """Gives a transaction its time and an id; ids come off a generator of their own, so they betray nothing."""

    def __init__(self, start: datetime, purpose: str):
        start = start if start.tzinfo else start.replace(tzinfo=UTC)
        self.start = start.timestamp()
        self._bits = Random(f"{purpose} {start.astimezone(UTC).isoformat()}").getrandbits
        self._second, self._prefix = -1, ""

    def __call__(self, txn: Simulated, at: float) -> Simulated:
        whole_ms = int(at * 1000)
        second, ms = divmod(whole_ms, 1000)
        if second != self._second:
            self._second = second
            self._prefix = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S.")
        txn.at = whole_ms / 1000
        txn.timestamp = f"{self._prefix}{ms:03d}Z"
        txn.transaction_id = f"{self._bits(96):024x}"
        return txn


class _Life:
    """The realistic population at work: who pays what, when, and who defrauds whom.

    `pace` is how many times faster than naturally people of a stream live; delays within a story shrink with it.
    """

    def __init__(self, seed: int, users: int, stamp: _Stamp, rate: float | None = None):
        self.people = SimulatedPopulation(seed, users)
        self.rng = Random(seed)
        self.till = Till(self.people, self.rng)
        self.stamp = stamp
        natural = natural_rate(users)
        self.pace = max(1.0, rate / natural) if rate else 1.0
        self._seed = seed
        self._due: list[tuple[float, int, Simulated]] = []
        self._queued = 0
        self._breaches = max(1, round(_BREACH_SHARE * self.people.merchants))
        self._breach_day, self._breached = -1, frozenset[int]()

        # From shares of transactions to the chances that a story begins at an honest transaction of no tour.
        fraud = FRAUD_SHARE / (1 - FRAUD_SHARE) * _PER_TOUR
        chance = 0.0
        self._starts: list[tuple[float, Story]] = []
        for story in STORIES:
            chance += fraud * story.share / story.size
            self._starts.append((chance, story))
        self._starts_any = chance
        visits = _BREACH_VISITS * self._breaches / self.people.merchants
        self._skimmed = min(0.8, fraud * COMPROMISED.share / COMPROMISED.size / visits)
        self._warm_up(min(natural, rate or natural))

    def history(self, days: float) -> Iterator[Simulated]:
        rng, due, stamp = self.rng, self._due, self.stamp
        end = stamp.start + days * DAY
        first_stops = natural_rate(self.people.size) * (1 - FRAUD_SHARE) / _PER_TOUR
        for at in _poisson(rng, stamp.start, end, first_stops * PEAK_ACTIVITY):
            while due and due[0][0] <= at:
                when, _, txn = heappop(due)
                yield stamp(txn, when)
            person = self.people.draw(rng.random())
            city = self._out_paying(person, at)
            if city is not None:
                yield stamp(self._pay(person, city, at), at)
        while due and due[0][0] < end:
            when, _, txn = heappop(due)
            yield stamp(txn, when)

    def stream(self, rate: float) -> Iterator[Simulated]:
        rng, due, stamp, draw = self.rng, self._due, self.stamp, self.people.draw
        for at in _paced(rng, stamp.start, rate):
            if due and due[0][0] <= at:
                yield stamp(heappop(due)[2], at)
                continue
            city = None
            while city is None:
                person = draw(rng.random())
                city = self._out_paying(person, at)
            yield stamp(self._pay(person, city, at), at)

    def _out_paying(self, person: Person, at: float) -> City | None:
        """Where the person pays at that time, or None: asleep, busy, on the way; thins arrivals to people's rhythm."""
        if self.rng.random() * PEAK_ACTIVITY >= person.activity(at):
            return None
        return person.where(at)

    def _pay(self, person: Person, city: City, at: float) -> Simulated:
        """One honest transaction, and what it sets going."""
        rng, till = self.rng, self.till
        category = pick(CATEGORY_SHARES, rng.random())
        if rng.random() < _EXPLORE:
            merchant = self.people.merchant(category, rng.random() ** 2)
        else:
            # The first favourite half of the time, the second a third, the third the rest.
            habit = rng.random()
            merchant = self.people.merchant(category, person.favourite(category, (habit > 0.5) + (habit > 0.83)))
        txn = till.buy(person, city, category, merchant)
        if rng.random() < _NEW_DEVICE:
            txn.device = till.new_device()
        if rng.random() < _ABROAD_ONLINE:
            till.put(txn, till.abroad(city.country))
        if rng.random() < _SHADY_HONEST:
            txn.merchant = rng.choice(SHADY)

        if rng.random() < _TOUR:
            self._tour(person, city, at)
        if merchant in self._breached_at(at) and rng.random() < self._skimmed:
            self._begin(COMPROMISED, Scene(till, person, city, category, merchant), at)
        fate = rng.random()
        if fate < self._starts_any:
            story = next(story for chance, story in self._starts if fate < chance)
            self._begin(story, Scene(till, person, city, category, merchant), at)
        return txn

    def _tour(self, person: Person, city: City, at: float) -> None:
        rng = self.rng
        for _ in range(rng.choice(_TOUR_STOPS)):
            category = pick(CATEGORY_SHARES, rng.random())
            at += rng.uniform(3, 40) * MINUTE / self.pace
            self._queue(self.till.buy(person, city, category, self.people.merchant(category, rng.random() ** 2)), at)

    def _begin(self, story: Story, scene: Scene, at: float) -> None:
        for delay, txn in story.tell(scene):
            at += delay / self.pace
            txn.fraud = True
            txn.scenario = story.name
            self._queue(txn, at)

    def _queue(self, txn: Simulated, at: float) -> None:
        if at >= self.stamp.start:
            self._queued += 1
            heappush(self._due, (at, self._queued, txn))

    def _warm_up(self, rate: float) -> None:
        """Begins the slow stories of the days before the start, so that fraud is as frequent at once as later."""
        rng = self.rng
        for story in (*STORIES, COMPROMISED):
            if not story.slow:
                continue
            cases = round(_WARM_UP * rate * FRAUD_SHARE * story.share / story.size)
            # In order of time, so that the day's breached merchants are looked up once a day.
            for at in sorted(self.stamp.start - rng.random() * _WARM_UP / self.pace for _ in range(cases)):
                person = self.people.draw(rng.random())
                if story is COMPROMISED:
                    merchant = rng.choice(sorted(self._breached_at(at)))
                    category = self.people.category_of(merchant)
                else:
                    category = pick(CATEGORY_SHARES, rng.random())
                    merchant = self.people.merchant(category, rng.random() ** 2)
                self._begin(story, Scene(self.till, person, person.where(at) or person.home, category, merchant), at)

    def _breached_at(self, at: float) -> frozenset[int]:
        """The merchants that are compromised that day; each is for `_BREACH_DAYS`, and they take turns."""
        day = int(at / DAY)
        if day != self._breach_day:
            self._breach_day = day
            found = set()
            for i in range(self._breaches):
                turn = int(day / _BREACH_DAYS + i / self._breaches)
                rng = Random(f"breach {self._seed} {i} {turn}")
                category = pick(CATEGORY_SHARES, rng.random())
                found.add(self.people.merchant(category, rng.uniform(0.2, 0.6)))
            self._breached = frozenset(found)
        return self._breached
