"""What is remembered of a user and of a merchant: bounded, in event time, updated once a transaction, after its score.

The state is one short row of floats and a few bytes, so that a snapshot's copy costs about a microsecond.

Lateness: an event older than the newest counts in the windows that it falls in, and moves nothing back; windows are
read as of the newest event. Repetition: a transaction_id among the user's last `RECENT` counts once.
"""

import math
from array import array
from bisect import bisect_right
from hashlib import blake2b
from itertools import repeat
from typing import Any, NamedTuple
from zlib import crc32

from dataflow.transaction import UNKNOWN, Transaction

VERSION = 2
"""Of the state as it is pickled into snapshots; a new layout takes a new number, and old recovery data is refused."""

HOUR, DAY = 3600.0, 86_400.0
NEVER = 365.0
"""Days that a "days since" says at most, and when it never was."""

MAX_PER_HOUR = 1024
"""Event times kept of the last hours; a user with more counts as having this many."""
LATE = HOUR
"""How late an event may be and still find the hour before it complete."""
RECENT = 16
"""Transaction ids (64-bit hashes) that a user's profile remembers, to count repeats once."""
LABELLED = 8
"""Labelled transactions (32-bit hashes, with the verdict) remembered, to count a repeated label once."""
UNUSUAL = 16
"""Transactions of an unusual amount (32-bit hashes) remembered until their labels come."""
MERCHANTS, PLACES = 16, 4
"""Merchants that a profile knows; devices, and locations."""

MEMORY = 150.0
"""Transactions over which mean and spread of amounts reach: older ones fade."""
PRIOR = 3.0
"""Transactions' worth of belief that a user's amounts spread as the population's do."""
CLIP = 3.0
"""Spreads above the mean beyond which an amount moves them no further: a fraud must not become the normal."""
UNUSUAL_Z, UNUSUAL_RATIO = 2.5, 3.0
"""Spreads above the mean, or times the mean, from which a fraud is explained by its amount: by the card, that is,
and not by the merchant."""
MAX_AMOUNT = 1e15
"""Beyond it an amount counts as this: its square must fit a float of 32 bits."""
MIN_KM = 10.0
"""Kilometres that a user without history is thought to move about his centre."""
EARTH_KM = 6371.0


class Population(NamedTuple):
    """What amounts are like among all, learned from the training window; towards it short histories are shrunk."""

    amount: float = 0.0  # mean of the users' mean amounts; 0: not known
    spread: float = 0.75  # typical standard deviation of a user's amounts, in his means


ANYONE = Population()


# Windows in one row of floats: the bucket (of 4 h) of the newest event; the totals; then 6 counts of 4 h and 6 sums,
# 7 of a day and 7, 6 of 5 days and 6. A window so reaches between one bucket less than its name says and all of it.
_BUCKET = 4 * HOUR
_DAYS, _MONTH = 6, 30  # width in buckets of 4 h, of the second and third ring
_WINDOWS = 45


def _advance(row: "array[float]", base: int, now: int) -> None:
    """Empties the buckets that have left the windows by the bucket `now`, and sums up anew what is left."""
    head = int(row[base])
    row[base] = now
    total = base + 1
    start = base + 7
    for size, width in ((6, 1), (7, _DAYS), (6, _MONTH)):
        old, new = head // width, now // width
        if new > old:
            for bucket in range(max(old, new - size) + 1, new + 1):
                slot = start + bucket % size
                row[slot] = row[slot + size] = 0.0
            row[total] = sum(row[start : start + size])
            row[total + 1] = sum(row[start + size : start + 2 * size])
        total += 2
        start += 2 * size


def _count(row: "array[float]", base: int, at: float, count: float, amount: float) -> None:
    """Adds to the buckets that `at` falls in, as far as the windows still reach there."""
    now = int(at // _BUCKET)
    head = int(row[base])
    if now > head:
        _advance(row, base, now)
        head = now
    if now > head - 6:
        slot = base + 7 + now % 6
        row[slot] += count
        row[slot + 6] += amount
        row[base + 1] += count
        row[base + 2] += amount
    day = now // _DAYS
    if day > head // _DAYS - 7:
        slot = base + 19 + day % 7
        row[slot] += count
        row[slot + 7] += amount
        row[base + 3] += count
        row[base + 4] += amount
    month = now // _MONTH
    if month > head // _MONTH - 6:
        slot = base + 33 + month % 6
        row[slot] += count
        row[slot + 6] += amount
        row[base + 5] += count
        row[base + 6] += amount


def _totals(row: "array[float]", base: int, at: float) -> "array[float]":
    """Counts and sums of the three windows at `at`: count and sum of 24 h, of 7 d, of 30 d."""
    now = int(at // _BUCKET)
    if now > row[base]:
        _advance(row, base, now)
    return row[base + 1 : base + 7]


def _typical(row: "array[float]", base: int, population: Population) -> tuple[float, float]:
    """Mean and standard deviation of the next amount, shrunk towards the population; (0, 0) if nothing is known.

    The spread is that of a prediction, so it is wider while history is short.
    """
    n, mean, squares = row[base : base + 3]
    if population.amount > 0.0:
        mean = (population.amount + n * mean) / (1.0 + n)
    spread = population.spread * mean
    return mean, math.sqrt((PRIOR * spread * spread + squares) / (PRIOR + n) * (1.0 + 1.0 / (n + 1.0)))


def _learn_amount(row: "array[float]", base: int, amount: float, mean: float, spread: float) -> None:
    """Welford's update with fading memory; what lies beyond `CLIP` spreads counts as lying there."""
    n, own, squares = row[base : base + 3]
    if mean > 0.0:
        amount = min(amount, mean + CLIP * spread)
    if n >= MEMORY:
        squares *= (MEMORY - 1.0) / MEMORY
        n = MEMORY - 1.0
    n += 1.0
    delta = amount - own
    own += delta / n
    row[base] = n
    row[base + 1] = own
    row[base + 2] = squares + delta * (amount - own)


def kilometres(lat: float, lon: float, to_lat: float, to_lon: float) -> float:
    """Great-circle distance (haversine formula), degrees to kilometres."""
    a, b = math.radians(lat), math.radians(to_lat)
    x = math.sin((b - a) / 2) ** 2 + math.cos(a) * math.cos(b) * math.sin(math.radians(to_lon - lon) / 2) ** 2
    return 2 * EARTH_KM * math.asin(min(1.0, math.sqrt(x)))


def fingerprint(text: str) -> bytes:
    """Four bytes that stand for a name, the same in every process."""
    return crc32(text.encode()).to_bytes(4, "little")


def excess(z: float) -> float:
    """How far an amount lies beyond the usual, in spreads above 2, at most 4."""
    return min(max(z - 2.0, 0.0), 4.0)


# Numbers of a user, after the windows.
_N, _MEAN, _SQUARES = range(_WINDOWS, _WINDOWS + 3)
_FIRST, _SEEN, _LARGEST, _UNUSUAL_DAY, _UNUSUAL_FORTNIGHT = range(_WINDOWS + 3, _WINDOWS + 8)
_FRAUDS, _FRAUD_DAY, _CARD_FRAUDS, _CARD_FRAUD_DAY = range(_WINDOWS + 8, _WINDOWS + 12)
_LAT, _LON, _HOME_LAT, _HOME_LON, _PLACED, _ROAM = range(_WINDOWS + 12, _WINDOWS + 18)
_USER = array("f", repeat(0.0, _WINDOWS + 18))
_USER[_FRAUD_DAY] = _USER[_CARD_FRAUD_DAY] = -1.0


class UserProfile:
    """A user's pace, amounts, places, and what feedback confirmed."""

    __slots__ = (
        "devices", "hour", "labelled", "last_at", "last_location", "locations", "merchants", "recent", "row", "unusual",
    )  # fmt: skip

    def __init__(self) -> None:
        self.last_at = float("-inf")  # event time of the newest transaction
        self.last_location = ""  # its location, as far as it was known
        self.hour = array("d")  # the last hours' event times, ascending, then their amounts in the same order
        self.row = _USER[:]
        # Rows of hashes, oldest first. They are searched as bytes: a match across two is no likelier than a collision.
        self.recent = b""
        self.unusual = b""
        self.labelled = b""
        self.merchants = b""
        self.devices = b""
        self.locations = b""

    def per_hour(self, at: float) -> int:
        """How many of the user's transactions lie in the hour before `at`, itself included: at - 3600 < t <= at."""
        return self.in_hour(at)[0]

    def in_hour(self, at: float) -> tuple[int, float]:
        """Count and sum of amounts over at - 3600 < t <= at; exact up to `MAX_PER_HOUR` and for `LATE`."""
        hour = self.hour
        n = len(hour) >> 1
        if not n or at >= hour[n - 1] + HOUR:  # the common case
            return 0, 0.0
        low, high = bisect_right(hour, at - HOUR, 0, n), bisect_right(hour, at, 0, n)
        return high - low, sum(hour[n + low : n + high])

    def totals(self, at: float) -> "array[float]":
        """Counts and sums over 24 h (in buckets of 4 h), 7 d (of a day) and 30 d (of 5 days)."""
        return _totals(self.row, 0, at)

    def typical(self, population: Population = ANYONE) -> tuple[float, float]:
        """Mean and spread that the next amount is expected to have; (0, 0) where nothing is known."""
        return _typical(self.row, _N, population)

    def surprise(self, amount: float, population: Population = ANYONE) -> tuple[float, float]:
        """The amount in spreads from the expected mean, and in means; (0, 1) where nothing is known."""
        mean, spread = _typical(self.row, _N, population)
        return ((amount - mean) / spread, amount / mean) if spread > 0.0 else (0.0, 1.0)

    def update(self, txn: Transaction, population: Population = ANYONE) -> bool:
        """Takes the transaction in, once it has been scored; False, and nothing happens, if it is a repeat."""
        name = (txn.transaction_id or "").encode()  # parse() gives one to every transaction
        key = blake2b(name, digest_size=8).digest()
        if key in self.recent:
            return False
        self.recent = (self.recent + key)[-8 * RECENT :]
        row = self.row
        at, amount = txn.at, min(txn.amount, MAX_AMOUNT)
        mean, spread = _typical(row, _N, population)
        z, ratio = ((amount - mean) / spread, amount / mean) if spread > 0.0 else (0.0, 1.0)
        if z > UNUSUAL_Z or ratio > UNUSUAL_RATIO:
            self.unusual = (self.unusual + crc32(name).to_bytes(4, "little"))[-4 * UNUSUAL :]
        _count(row, 0, at, 1.0, amount)
        _learn_amount(row, _N, amount, mean, spread)
        row[_LARGEST] = max(row[_LARGEST], amount)
        self._count_hour(at, amount)
        self._remember(txn)
        over = excess(z)
        late = at < self.last_at
        if not row[_SEEN]:
            row[_FIRST] = at / DAY
        if over or row[_UNUSUAL_FORTNIGHT]:
            days = abs(at - self.last_at) / DAY  # infinite before the first: all has faded
            if late:  # this one has faded since, the newer ones have not
                row[_UNUSUAL_DAY] += over * math.exp(-days)
                row[_UNUSUAL_FORTNIGHT] += over * math.exp(-days / 14.0)
            else:
                row[_UNUSUAL_DAY] = row[_UNUSUAL_DAY] * math.exp(-days) + over
                row[_UNUSUAL_FORTNIGHT] = row[_UNUSUAL_FORTNIGHT] * math.exp(-days / 14.0) + over
        row[_SEEN] += 1.0
        if not late:
            self.last_at = at
            if txn.location != UNKNOWN:
                self.last_location = txn.location
        if txn.latitude is not None and txn.longitude is not None:
            self._place(txn.latitude, txn.longitude, late)
        return True

    def learn(self, transaction_id: str, at: float, fraud: bool) -> bool | None:
        """Takes a label in, of the transaction at `at`. Whether its amount explains the fraud; None for a repeat.

        A fraud that its amount explains speaks against the card; one that it does not, against the merchant.
        A label that contradicts an earlier one counts beside it.
        """
        number = crc32(transaction_id.encode())
        key = (number & ~1 | fraud).to_bytes(4, "little")
        if key in self.labelled:
            return None
        self.labelled = (self.labelled + key)[-4 * LABELLED :]
        explained = number.to_bytes(4, "little") in self.unusual
        if fraud:
            row, day = self.row, at / DAY
            row[_FRAUDS] += 1.0
            row[_FRAUD_DAY] = max(row[_FRAUD_DAY], day)
            if explained:
                row[_CARD_FRAUDS] += 1.0
                row[_CARD_FRAUD_DAY] = max(row[_CARD_FRAUD_DAY], day)
        return explained

    def _count_hour(self, at: float, amount: float) -> None:
        hour = self.hour
        n = len(hour) >> 1
        if at >= self.last_at:
            if n and hour[0] <= at - HOUR - LATE:
                gone = bisect_right(hour, at - HOUR - LATE, 0, n)
                del hour[n : n + gone]
                del hour[:gone]
                n -= gone
            hour.insert(n, at)
            hour.append(amount)
        elif at > self.last_at - HOUR - LATE:
            place = bisect_right(hour, at, 0, n)
            hour.insert(n + place, amount)
            hour.insert(place, at)
        else:
            return
        if n >= MAX_PER_HOUR:
            del hour[n + 1]
            del hour[0]

    def _remember(self, txn: Transaction) -> None:
        key = fingerprint(txn.merchant)
        if key not in self.merchants:
            self.merchants = (self.merchants + key)[-4 * MERCHANTS :]
        if txn.device != UNKNOWN:
            key = fingerprint(txn.device)
            if key not in self.devices:
                self.devices = (self.devices + key)[-4 * PLACES :]
        if txn.location != UNKNOWN:
            key = fingerprint(txn.location)
            if key not in self.locations:
                self.locations = (self.locations + key)[-4 * PLACES :]

    def _place(self, lat: float, lon: float, late: bool) -> None:
        row = self.row
        n = row[_PLACED]
        if not n:
            row[_HOME_LAT], row[_HOME_LON] = lat, lon
            km = 0.0
            n = 1.0
        else:
            km = kilometres(row[_HOME_LAT], row[_HOME_LON], lat, lon)
            reach = CLIP * (row[_ROAM] * n + MIN_KM) / (n + 1.0) + MIN_KM
            n = min(n + 1.0, MEMORY)
            step = 1.0 / n
            if km > reach and n > 3.0:  # one far journey does not move the centre far
                step *= reach / km
                km = reach
            east = (lon - row[_HOME_LON] + 180.0) % 360.0 - 180.0
            row[_HOME_LAT] += step * (lat - row[_HOME_LAT])
            row[_HOME_LON] = (row[_HOME_LON] + step * east + 180.0) % 360.0 - 180.0
        row[_ROAM] += (km - row[_ROAM]) / n
        row[_PLACED] = n
        if not late:
            row[_LAT], row[_LON] = lat, lon

    def __deepcopy__(self, memo: Any) -> "UserProfile":
        """A snapshot's copy: two short buffers; the rest cannot change in place."""
        copy = UserProfile.__new__(UserProfile)
        copy.last_at = self.last_at
        copy.last_location = self.last_location
        copy.hour = self.hour[:]
        copy.row = self.row[:]
        copy.recent = self.recent
        copy.unusual = self.unusual
        copy.labelled = self.labelled
        copy.merchants = self.merchants
        copy.devices = self.devices
        copy.locations = self.locations
        return copy

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore_user, (
            VERSION, self.last_at, self.last_location, self.hour.tobytes(), self.row.tobytes(), self.recent,
            self.unusual, self.labelled, self.merchants, self.devices, self.locations,
        )  # fmt: skip

    # Readings that the facts are made of; each is of the time before the transaction.

    def moved(self, lat: float | None, lon: float | None, at: float) -> tuple[float, float, float, float]:
        """Kilometres from the usual centre, those in what is usual, kilometres and km/h since the last; else zeros."""
        row = self.row
        n = row[_PLACED]
        if lat is None or lon is None or not n:
            return 0.0, 0.0, 0.0, 0.0
        km = kilometres(row[_HOME_LAT], row[_HOME_LON], lat, lon)
        hop = kilometres(row[_LAT], row[_LON], lat, lon)
        hours = max(abs(at - self.last_at) / HOUR, 1.0 / 60.0)
        return km, km / ((row[_ROAM] * n + MIN_KM) / (n + 1.0)), hop, hop / hours

    def readings(self, amount: float, at: float, population: Population = ANYONE) -> tuple[float, ...]:
        """What the row says of an amount at a time.

        The amount in spreads above the expected mean and in means ((0, 1) where nothing is known), that mean, and in
        largest amounts so far (1); transactions ever; days known; excess of earlier amounts, fading over a day and
        over a fortnight; frauds and days since; frauds that their amounts explain and days since.
        """
        row = self.row
        mean, spread = _typical(row, _N, population)
        first, seen, largest, in_day, in_fortnight, frauds, fraud_day, card_frauds, card_day = row[_FIRST:_LAT]
        day = at / DAY
        if in_fortnight:
            days = max(at - self.last_at, 0.0) / DAY
            in_day *= math.exp(-days)
            in_fortnight *= math.exp(-days / 14.0)
        return (
            (amount - mean) / spread if spread > 0.0 else 0.0,
            amount / mean if spread > 0.0 else 1.0,
            mean,
            amount / largest if largest > 0.0 else 1.0,
            seen,
            max(day - first, 0.0) if seen else 0.0,
            in_day,
            in_fortnight,
            frauds,
            _since(fraud_day, day) if frauds else NEVER,
            card_frauds,
            _since(card_day, day) if card_frauds else NEVER,
        )


def _since(then: float, day: float) -> float:
    """Days since, 0 to `NEVER`."""
    return min(max(day - then, 0.0), NEVER) if then >= 0.0 else NEVER


def _restore_user(
    version: int, last_at: float, last_location: str, hour: bytes, row: bytes, *sets: bytes
) -> UserProfile:
    _check(version, "user")
    profile = UserProfile()
    profile.last_at = last_at
    profile.last_location = last_location
    profile.hour = array("d", hour)
    profile.row = array("f", row)
    (
        profile.recent, profile.unusual, profile.labelled, profile.merchants, profile.devices, profile.locations,
    ) = sets  # fmt: skip
    return profile


def _check(version: int, whose: str) -> None:
    if version != VERSION:  # recovery.guard() refuses such data before it gets here; this is the last line of defence
        msg = f"{whose} profile of version {version}, but this is version {VERSION}"
        raise ValueError(msg)


# Numbers of a merchant: windows of transactions, windows of labels (count, frauds), then these.
_LABELS = _WINDOWS
_M_N = 2 * _WINDOWS
_M_UNUSUAL = 2 * _WINDOWS + 3
_RUN_FIRST, _RUN_LAST, _RUN_FRAUDS, _RUN_GENUINE, _GENUINE_SINCE, _GENUINE_DAY = range(
    2 * _WINDOWS + 4, 2 * _WINDOWS + 10
)
_MERCHANT = array("f", repeat(0.0, 2 * _WINDOWS + 10))
_MERCHANT[_RUN_FIRST] = _MERCHANT[_RUN_LAST] = _MERCHANT[_GENUINE_DAY] = -1.0

RUN_OVER = 0.02
"""A run of frauds is over when so many genuine ones in a row would be less likely than this, had it gone on."""
RUN_GAP = 14.0
"""Days without a fraud after which the next one starts a run of its own."""
RUN_LIFE = 60.0
"""Days in which the belief that a compromise still lasts fades to 1/e: sooner or later each is found out."""


class Compromise(NamedTuple):
    """The merchant's last run of frauds that no amount explains, and what it says of now."""

    risk: float  # chance that a transaction there is fraudulent now, 0 to 1; reckoned, not fitted
    days: float  # since the run's first fraud
    frauds: float
    genuine: float  # between its frauds
    genuine_since: float  # since its last fraud
    days_since_fraud: float
    days_since_genuine: float


class MerchantProfile:
    """A merchant's pace and amounts, and what feedback says of it.

    What stands here depends on how the partitions interleave: windows and times of labels keep it tolerant of that.
    """

    __slots__ = ("last_at", "row")

    def __init__(self) -> None:
        self.last_at = float("-inf")  # event time of the newest transaction
        self.row = _MERCHANT[:]

    def totals(self, at: float) -> "array[float]":
        """Counts and sums of amounts over 24 h, 7 d and 30 d."""
        return _totals(self.row, 0, at)

    def labels(self, at: float) -> "array[float]":
        """Labels that came, and frauds among them (as sums), over 24 h, 7 d and 30 d."""
        return _totals(self.row, _LABELS, at)

    def surprise(self, amount: float, population: Population = ANYONE) -> tuple[float, float]:
        """The amount in spreads from what is normal here, and in means; (0, 1) where nothing is known."""
        mean, spread = _typical(self.row, _M_N, population)
        return ((amount - mean) / spread, amount / mean) if spread > 0.0 else (0.0, 1.0)

    def fading(self, at: float) -> float:
        """Excess of the amounts here over what is usual for those who paid, fading over a fortnight."""
        unusual = self.row[_M_UNUSUAL]
        return unusual and unusual * math.exp(-max(at - self.last_at, 0.0) / (14.0 * DAY))

    def compromise(self, at: float) -> Compromise:
        """What the last run of unexplained frauds says."""
        frauds, genuine, since = self.row[_RUN_FRAUDS : _GENUINE_SINCE + 1]
        day = at / DAY
        if not frauds:
            return Compromise(0.0, NEVER, 0.0, 0.0, 0.0, NEVER, _since(self.row[_GENUINE_DAY], day))
        age = _since(self.row[_RUN_FIRST], day)
        # Share of frauds (Beta prior), times the chance of the genuine streak had it gone on, times time's.
        risk = frauds / (frauds + genuine + 0.5) * self._alive() * math.exp(-age / RUN_LIFE)
        return Compromise(
            risk,
            age,
            frauds,
            genuine,
            since,
            _since(self.row[_RUN_LAST], day),
            _since(self.row[_GENUINE_DAY], day),
        )

    def update(self, txn: Transaction, z: float, population: Population = ANYONE) -> None:
        """Takes the transaction in, once it has been scored; `z` is the amount in the user's spreads.

        The user's profile says what is a repeat; repeats do not come here.
        """
        row, at, amount = self.row, txn.at, min(txn.amount, MAX_AMOUNT)
        mean, spread = _typical(row, _M_N, population)
        _count(row, 0, at, 1.0, amount)
        _learn_amount(row, _M_N, amount, mean, spread)
        if at >= self.last_at:
            row[_M_UNUSUAL] = row[_M_UNUSUAL] * math.exp(-min((at - self.last_at) / DAY, NEVER) / 14.0) + excess(z)
            self.last_at = at
        else:
            row[_M_UNUSUAL] += excess(z) * math.exp((at - self.last_at) / (14.0 * DAY))

    def learn(self, at: float, labelled_at: float, fraud: bool, explained: bool) -> None:
        """Takes a label in: of a transaction at `at`, `explained` as the user's profile has it."""
        row = self.row
        _count(row, _LABELS, labelled_at, 1.0, float(fraud))
        day = at / DAY
        if not fraud:
            row[_GENUINE_DAY] = max(row[_GENUINE_DAY], day)
            if not row[_RUN_FRAUDS] or day < row[_RUN_FIRST]:
                return
            if day > row[_RUN_LAST]:
                row[_GENUINE_SINCE] += 1.0
            else:
                row[_RUN_GENUINE] += 1.0
            return
        if explained:
            return
        if row[_RUN_FRAUDS] and self._alive() >= RUN_OVER and day - row[_RUN_LAST] <= RUN_GAP:
            row[_RUN_FIRST] = min(row[_RUN_FIRST], day)
            row[_RUN_GENUINE] += row[_GENUINE_SINCE]
        elif day < row[_RUN_FIRST]:
            return  # a late label of a run before this one
        else:
            row[_RUN_FIRST] = day
            row[_RUN_FRAUDS] = row[_RUN_GENUINE] = 0.0
        row[_RUN_FRAUDS] += 1.0
        row[_GENUINE_SINCE] = 0.0
        row[_RUN_LAST] = max(row[_RUN_LAST], day)

    def _alive(self) -> float:
        """Chance of the genuine streak, had the run gone on."""
        frauds, genuine, since = self.row[_RUN_FRAUDS : _GENUINE_SINCE + 1]
        return float((1.0 - (frauds + 0.5) / (frauds + genuine + 1.0)) ** since)

    def __deepcopy__(self, memo: Any) -> "MerchantProfile":
        """A snapshot's copy: one short buffer."""
        copy = MerchantProfile.__new__(MerchantProfile)
        copy.last_at = self.last_at
        copy.row = self.row[:]
        return copy

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore_merchant, (VERSION, self.last_at, self.row.tobytes())


def _restore_merchant(version: int, last_at: float, row: bytes) -> MerchantProfile:
    _check(version, "merchant")
    profile = MerchantProfile()
    profile.last_at = last_at
    profile.row = array("f", row)
    return profile
