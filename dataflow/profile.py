"""What is remembered of a user and of a merchant: bounded, in event time, updated once a transaction, after its score.

Numbers stand packed in bytes, which nothing changes in place: all of them are read or written in 0.2 µs, and a
snapshot's copy shares them.

Lateness: an event older than the newest counts in the windows that it falls in, and moves nothing back; windows are
read as of the newest event. Repetition: a transaction whose id, amount, merchant and event time are those of one among
the user's last `RECENT` counts once; the id alone makes no repeat.

Feedback: what labels leave in a profile is a function of the transactions that came and of the last label of each, not
of the order in which the two were read. So a label that comes before its transaction waits for it, one that is
contradicted is taken back, and merchants sum labels up in the order of their transactions. This is exact as far as a
profile remembers: the last `RECENT` ids, the last `UNUSUAL` unusual amounts and the `LABELLED` labels of the newest
transactions of a user, the `LESSONS` of the newest transactions of a merchant.
"""

import math
from array import array
from binascii import crc_hqx
from bisect import bisect_right
from struct import Struct
from sys import intern
from typing import Any, Final, NamedTuple
from zlib import crc32

from dataflow import packed, windows
from dataflow.enriched import Lesson, Replaced
from dataflow.feedback import LABELS, Feedback
from dataflow.packed import Four, Numbers, Own, Six
from dataflow.transaction import UNKNOWN, Transaction
from dataflow.windows import BUCKET, NO_PAST

VERSION: Final = 3
"""Of the state as it is pickled into snapshots; a new layout takes a new number, and old recovery data is refused."""

HOUR: Final = 3600.0
DAY: Final = 86_400.0
NEVER: Final = 365.0
"""Days that a "days since" says at most, and when it never was."""

MAX_PER_HOUR: Final = 1024
"""Event times kept of the last hours; a user with more counts as having this many."""
LATE: Final = 3600.0
"""How late an event may be and still find the hour before it complete."""
RECENT: Final = 16
"""Transactions that a user's profile remembers, to count repeats once: 48-bit checksums of their ids, and of 32 bits of
all that makes them the same."""
LABELLED: Final = 64
"""Labels that a user's profile remembers, those of the newest transactions: a repeated one counts once, a contradicted
one is taken back, and one whose transaction has not come yet waits. One that is waiting when it is forgotten counts
from then on."""
LABEL_WAIT: Final = 30 * DAY
"""Seconds by which the user's newest label may be younger than one that still waits; older ones count from then on."""
UNUSUAL: Final = 32
"""Transactions of an unusual amount (32-bit checksums) remembered until their labels come."""
MERCHANTS: Final = 16
PLACES: Final = 4
"""Merchants that a profile knows; devices, and locations."""

MEMORY: Final = 150.0
"""Transactions over which mean and spread of amounts reach: older ones fade."""
PRIOR: Final = 3.0
"""Transactions' worth of belief that a user's amounts spread as the population's do."""
CLIP: Final = 3.0
"""Spreads above the mean beyond which an amount moves them no further: a fraud must not become the normal."""
UNUSUAL_Z: Final = 2.5
UNUSUAL_RATIO: Final = 3.0
"""Spreads above the mean, or times the mean, from which a fraud is explained by its amount: by the card, that is,
and not by the merchant."""
MAX_AMOUNT: Final = 1e15
"""Beyond it an amount counts as this: its square must fit a float of 32 bits."""
MIN_KM: Final = 10.0
"""Kilometres that a user without history is thought to move about his centre."""
EARTH_KM: Final = 6371.0


class Population(NamedTuple):
    """What amounts are like among all, learned from the training window; towards it short histories are shrunk."""

    amount: float = 0.0  # mean of the users' mean amounts; 0: not known
    spread: float = 0.75  # typical standard deviation of a user's amounts, in his means


ANYONE: Final = Population()


def expect(seen: float, mean: float, squares: float, population: Population) -> tuple[float, float]:
    """Mean and standard deviation of the next amount, shrunk towards the population; (0, 0) if nothing is known.

    `squares` is the sum of squared deviations of the last `seen` amounts, `MEMORY` at most. The spread is that of a
    prediction, so it is wider while history is short.
    """
    n = seen if seen < MEMORY else MEMORY
    usual, spread = population
    if usual > 0.0:
        mean = (usual + n * mean) / (1.0 + n)
    spread *= mean
    return mean, math.sqrt((PRIOR * spread * spread + squares) / (PRIOR + n) * (1.0 + 1.0 / (n + 1.0)))


def _learn_amount(
    seen: float, mean: float, squares: float, amount: float, usual: float, spread: float
) -> tuple[float, float]:
    """Mean and squares after Welford's update with fading memory; what lies beyond `CLIP` spreads counts as there."""
    if usual > 0.0 and amount > usual + CLIP * spread:
        amount = usual + CLIP * spread
    if seen >= MEMORY:
        squares *= (MEMORY - 1.0) / MEMORY
        seen = MEMORY - 1.0
    delta = amount - mean
    mean += delta / (seen + 1.0)
    return mean, squares + delta * (amount - mean)


_RADIAN: Final = math.pi / 180.0


def kilometres(lat: float, lon: float, to_lat: float, to_lon: float) -> float:
    """Great-circle distance (haversine formula), degrees to kilometres."""
    a, b = lat * _RADIAN, to_lat * _RADIAN
    across, along = math.sin((b - a) / 2), math.sin((to_lon - lon) * _RADIAN / 2)
    x = across * across + math.cos(a) * math.cos(b) * (along * along)
    return 2 * EARTH_KM * math.asin(math.sqrt(x) if x < 1.0 else 1.0)


Paid = tuple[float, float, str, str, str, str, bool, float, float, str, float]
"""What profiles read of a transaction, once: each field takes 0.03 µs.

Event time as it counts, amount, location, merchant, device, id; whether it has coordinates, and these; user; event time
as its timestamp says.
"""


def paid(txn: Transaction) -> Paid:
    """What profiles read of it; parse() gives every transaction an id."""
    latitude, longitude = txn.latitude, txn.longitude
    placed = latitude is not None and longitude is not None
    lat, lon = (latitude, longitude) if latitude is not None and longitude is not None else (0.0, 0.0)
    at = txn.at
    return (
        at, txn.amount, txn.location, txn.merchant, txn.device, txn.transaction_id or "", placed, lat, lon,
        txn.user, txn.ahead_at or at,
    )  # fmt: skip


Identity = tuple[bytes, bytes, bool, bool]
"""A transaction's checksums, of its id and of all that makes it the same; whether it is a repeat; whether its id was
used before for another."""


def identify(
    known: bytes, begin: int, payments: bytes, transaction_id: str, amount: float, merchant: bytes, dated: float
) -> Identity:
    """What a transaction is among the recent ones, whose ids stand in `known` from `begin` on.

    `merchant` is the fingerprint of its name, `dated` the event time as its timestamp says.
    """
    name = transaction_id.encode()
    number = crc32(name)
    key = packed.long_word(number, crc_hqx(name, 0))
    payment = packed.word(crc32(packed.payment(amount, dated, merchant), number))
    if not packed.has_long_word(known, key, begin):
        return key, payment, False, False
    repeat = packed.has_word(payments, payment, 0, len(payments))
    return key, payment, repeat, not repeat


def _key_of(data: bytes) -> bytes:
    """Six bytes that stand for others, the same in every process."""
    return packed.long_word(crc32(data), crc_hqx(data, 0))


def fingerprint(text: str) -> bytes:
    """Four bytes that stand for a name, the same in every process."""
    mark = _fingerprints.get(text)
    if mark is None:
        mark = packed.word(crc32(text.encode()))
        if len(_fingerprints) >= FINGERPRINTS:
            _fingerprints.clear()
        _fingerprints[text] = mark
    return mark


FINGERPRINTS: Final = 16_384
"""Names whose checksums are kept at hand: to look one up takes 0.05 µs, to make it 0.3."""
_fingerprints: Final[dict[str, bytes]] = {}


def excess(z: float) -> float:
    """How far an amount lies beyond the usual, in spreads above 2, at most 4."""
    return 0.0 if z <= 2.0 else z - 2.0 if z < 6.0 else 4.0


def _since(then: float, day: float) -> float:
    """Days since, 0 to `NEVER`."""
    return min(max(day - then, 0.0), NEVER) if then >= 0.0 else NEVER


# A user's numbers: transactions ever; mean and squares of amounts; the largest; the day of the first; excess of the
# amounts, fading over a day and over a fortnight; then those of the windows.
_NEW_USER: Final = packed.write_user((0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0), windows.EMPTY)
_NO_FRAUDS: Four = (0.0, NEVER, 0.0, NEVER)
_NO_FRAUDS_YET: Final = packed.write_four(0.0, -1.0, 0.0, -1.0)


# Where a user's merchants, devices, locations and recent ids stand; as one, they take 123 bytes less.
TO_DEVICES: Final = 64  # 4 * MERCHANTS
TO_LOCATIONS: Final = 80  # + 4 * PLACES
TO_RECENT: Final = 96  # + 4 * PLACES
_NOBODY: Final = bytes(TO_RECENT)
NONE: Final = bytes(4)
"""The last of a row of names that is still empty."""


Marks = tuple[bytes, bytes, bytes]
Met = tuple[bool, bool, bool]
UserLook = tuple[Own, Numbers, bytes, float, float, Marks, Met, float, Identity]
MerchantLook = tuple[Four, Numbers, bytes, float, float]
"""What is read of a profile for one transaction, once for its facts and for its update: reading twice took 4 µs more.

Its own numbers; those of the windows and the past buckets, both moved on to the transaction's time; mean and spread
that its amount is expected to have; of a user the checksums of merchant, device and location, whether each is known,
the distance from the centre of the user's places, km, and what the transaction is among the recent ones.
"""
Lessons = tuple[Lesson, ...]
NO_LESSONS: Lessons = ()

# A user's label: when its transaction took place, when it came, six bytes that stand for the transaction_id, flags.
_LABEL = Struct("<2d6sBx")
LABEL_BYTES: Final = 24
LABEL_KEY: Final = 16  # where the key stands in it
FRAUD: Final = 1
EXPLAINED: Final = 2  # the transaction is known to be of an unusual amount
WAITING: Final = 4  # the transaction has not come, and the label counts nowhere yet

WAITED: Final = LABELS.labels("waiting")
EXPIRED: Final = LABELS.labels("expired")
EVICTED: Final = LABELS.labels("evicted")
REPEATED: Final = LABELS.labels("repeated")
CORRECTED: Final = LABELS.labels("corrected")


def _find_label(labels: bytes, key: bytes) -> int:
    """Where the label with that key begins, -1 if there is none."""
    place = labels.find(key, LABEL_KEY)
    while place >= 0 and place % LABEL_BYTES != LABEL_KEY:
        place = labels.find(key, place + 1)
    return place - LABEL_KEY if place >= 0 else -1


def _meet(known: bytes, marks: Marks, met: Met, device: str, location: str) -> bytes:
    """The merchants, devices and locations that are known, with the transaction's."""
    merchants, devices, locations = known[:TO_DEVICES], known[TO_DEVICES:TO_LOCATIONS], known[TO_LOCATIONS:TO_RECENT]
    if not met[0]:
        merchants = merchants[4:] + marks[0]
    if not met[1] and device != UNKNOWN:
        devices = devices[4:] + marks[1]
    if not met[2] and location != UNKNOWN:
        locations = locations[4:] + marks[2]
    return merchants + devices + locations


class BasicProfile:
    """A user's last location and the times and amounts of his last hours: what the tutorial's four checks need."""

    __slots__ = ("hour", "known", "last_at", "last_location", "payments", "spent")

    def __init__(self) -> None:
        self.last_at = -math.inf  # event time of the newest transaction
        self.last_location = ""  # its location, as far as it was known
        # The last hours' event times, ascending, then their amounts in the same order; None while there is but one,
        # the newest, whose amount is then `spent`. Else that is the sum of all of them, -1 where it must be made anew.
        self.hour: array[float] | None = None
        self.spent = 0.0
        self.known = b""  # checksums of the recent ids, oldest first
        self.payments = b""  # of all that makes these transactions the same, in the same order

    def per_hour(self, at: float) -> int:
        """How many of the user's transactions lie in the hour before `at`, itself included: at - 3600 < t <= at."""
        return self.in_hour(at)[0]

    def in_hour(self, at: float) -> tuple[int, float]:
        """Count and sum of amounts over at - 3600 < t <= at; exact up to `MAX_PER_HOUR` and for `LATE`."""
        hour = self.hour
        if hour is None:
            return (1, self.spent) if at - HOUR < self.last_at <= at else (0, 0.0)
        n = len(hour) >> 1
        low = bisect_right(hour, at - HOUR, 0, n)
        high = n if at >= self.last_at else bisect_right(hour, at, 0, n)
        if high - low == n and self.spent >= 0.0:  # hundreds of times: kept, and not summed
            return n, self.spent
        return high - low, sum(hour[n + low : n + high], 0.0)

    def update(self, txn: Transaction) -> bool:
        """Takes the transaction in, once it has been scored; False, and nothing happens, if it is a repeat."""
        identity = identify(
            self.known,
            0,
            self.payments,
            txn.transaction_id or "",
            txn.amount,
            fingerprint(txn.merchant),
            txn.ahead_at or txn.at,
        )
        return self.take_basic(txn.at, txn.amount, txn.location, identity)

    def take_basic(self, at: float, amount: float, location: str, identity: Identity) -> bool:
        """As `update` of a basic profile (a full one has its ids elsewhere), with what it reads of the transaction."""
        key, payment, repeat, _ = identity
        if repeat:
            return False
        self.known = (self.known + key)[-6 * RECENT :]
        self.payments = (self.payments + payment)[-4 * RECENT :]
        self._take(at, amount if amount < MAX_AMOUNT else MAX_AMOUNT, location, at < self.last_at)
        return True

    def _take(self, at: float, amount: float, location: str, late: bool) -> None:
        """Takes in when and where the transaction was, and how much in its hour."""
        if at - HOUR - LATE >= self.last_at:
            self.hour = None
            self.spent = amount
        else:
            self._count_hour(at, amount, late)
        if not late:
            self.last_at = at
            if location not in (UNKNOWN, self.last_location):
                self.last_location = intern(location)  # one for all who are there: 51 bytes less for each

    def _count_hour(self, at: float, amount: float, late: bool) -> None:
        """Puts an event in its place among those of the last hours, unless it lies before them."""
        hour = self.hour
        if hour is None:
            hour = self.hour = array("d", (self.last_at, self.spent))
        n = len(hour) >> 1
        if not late:
            if hour[0] <= at - HOUR - LATE:
                gone = bisect_right(hour, at - HOUR - LATE, 0, n)
                del hour[n : n + gone]
                del hour[:gone]
                n -= gone
                self.spent = -1.0
            elif self.spent >= 0.0:
                self.spent += amount
            hour.insert(n, at)
            hour.append(amount)
        elif at > self.last_at - HOUR - LATE:
            place = bisect_right(hour, at, 0, n)
            hour.insert(n + place, amount)
            hour.insert(place, at)
            self.spent = -1.0
        else:
            return
        if n >= MAX_PER_HOUR:
            del hour[n + 1]
            del hour[0]
            self.spent = -1.0

    def __deepcopy__(self, memo: Any) -> "BasicProfile":
        """A snapshot's copy: all but the hour's times is shared, as nothing changes it in place."""
        copy = BasicProfile.__new__(BasicProfile)
        copy.last_at = self.last_at
        copy.last_location = self.last_location
        copy.hour = self.hour and self.hour[:]
        copy.spent = self.spent
        copy.known = self.known
        copy.payments = self.payments
        return copy

    def __reduce__(self) -> tuple[Any, ...]:
        hour = self.hour and self.hour.tobytes()
        return _restore_basic, (VERSION, self.last_at, self.last_location, hour, self.spent, self.known, self.payments)


def _restore_basic(
    version: int, last_at: float, last_location: str, hour: bytes | None, spent: float, known: bytes, payments: bytes
) -> BasicProfile:
    _check(version, "user")
    profile = BasicProfile()
    profile.last_at = last_at
    profile.last_location = intern(last_location)
    profile.hour = array("d", hour) if hour else None
    profile.spent = spent
    profile.known = known
    profile.payments = payments
    return profile


class UserProfile(BasicProfile):
    """A user's pace, amounts, places, and what feedback confirmed."""

    __slots__ = (
        "first_waiting", "frauds", "frauds_before", "label_merchants", "labels", "past", "place", "row", "unusual",
    )  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        self.row = _NEW_USER
        self.past = NO_PAST
        self.place = b""  # empty without coordinates
        self.frauds = b""  # empty without a fraud
        # Rows of checksums, oldest first. The last two are searched as bytes: a match across two of them is no likelier
        # than a collision.
        self.known = _NOBODY  # merchants, devices and locations, zeros where there is none yet; then the recent ids
        self.unusual = b""
        # Labels in the order of their transactions, and the merchants that they name. Frauds among those that were
        # forgotten: as `frauds`, which counts them in.
        self.labels = b""
        self.label_merchants: tuple[str, ...] = ()
        self.frauds_before = b""
        self.first_waiting = math.inf  # event time of the oldest transaction whose label waits

    def look(self, seen: Paid, population: Population = ANYONE) -> UserLook:
        """What facts and update need of the profile; changes nothing."""
        at, amount, location, merchant, device, transaction_id, placed, lat, lon, _, dated = seen
        own, numbers, past = self.read(at)
        usual, spread = expect(own[0], own[1], own[2], population)
        km = self.from_centre(lat, lon) if placed else 0.0
        marks = fingerprint(merchant), fingerprint(device), fingerprint(location)
        known = self.known
        met = (
            packed.has_word(known, marks[0], 0, TO_DEVICES),
            packed.has_word(known, marks[1], TO_DEVICES, TO_LOCATIONS),
            packed.has_word(known, marks[2], TO_LOCATIONS, TO_RECENT),
        )
        identity = identify(known, TO_RECENT, self.payments, transaction_id, amount, marks[0], dated)
        return own, numbers, past, usual, spread, marks, met, km, identity

    def read(self, at: float) -> tuple[Own, Numbers, bytes]:
        """The user's own numbers, those of the windows, moved on to `at`, and the past buckets.

        Transactions ever; mean and squares of amounts; the largest; the day of the first; excess of the amounts as of
        the newest, fading over a day and over a fortnight.
        """
        own, numbers = packed.read_user(self.row)
        past = self.past
        bucket = at // BUCKET
        if bucket > numbers[0]:
            numbers, past = windows.roll(numbers, past, bucket)
        return own, numbers, past

    def totals(self, at: float) -> tuple[float, ...]:
        """Counts and sums over 24 h (in buckets of 4 h), 7 d (of a day) and 30 d (of 5 days)."""
        return self.read(at)[1][1:7]

    def typical(self, population: Population = ANYONE) -> tuple[float, float]:
        """Mean and spread that the next amount is expected to have; (0, 0) where nothing is known."""
        own, _ = packed.read_user(self.row)
        return expect(own[0], own[1], own[2], population)

    def surprise(self, amount: float, population: Population = ANYONE) -> tuple[float, float]:
        """The amount in spreads from the expected mean, and in means; (0, 1) where nothing is known."""
        mean, spread = self.typical(population)
        return ((amount - mean) / spread, amount / mean) if spread > 0.0 else (0.0, 1.0)

    def from_centre(self, lat: float, lon: float) -> float:
        """Kilometres from the centre of the user's places, 0 without one."""
        if not self.place:
            return 0.0
        _, _, home_lat, home_lon, _, _ = packed.read_six(self.place)
        return kilometres(home_lat, home_lon, lat, lon)

    def moved(self, lat: float, lon: float, at: float, km: float) -> tuple[float, float, float]:
        """`km` from the usual centre in what is usual; kilometres and km/h since the last; else zeros."""
        if not self.place:
            return 0.0, 0.0, 0.0
        last_lat, last_lon, _, _, n, roam = packed.read_six(self.place)
        hop = kilometres(last_lat, last_lon, lat, lon)
        hours = max(abs(at - self.last_at) / HOUR, 1.0 / 60.0)
        return km / ((roam * n + MIN_KM) / (n + 1.0)), hop, hop / hours

    def confirmed(self, at: float) -> tuple[float, float, float, float]:
        """Frauds by feedback, days since the newest took place; both for those that their amounts explain."""
        if not self.frauds:
            return _NO_FRAUDS
        frauds, day, card_frauds, card_day = packed.read_four(self.frauds)
        now = at / DAY
        return frauds, _since(day, now), card_frauds, _since(card_day, now) if card_frauds else NEVER

    def update(self, txn: Transaction, population: Population = ANYONE) -> bool:
        """Takes the transaction in, once it has been scored; False, and nothing happens, if it is a repeat."""
        seen = paid(txn)
        return self.take_in(seen, self.look(seen, population)) is not None

    def take_in(self, this: Paid, look: UserLook) -> Lessons | None:
        """As `update`; `look` was made for this very transaction, and nothing has changed since.

        What the labels teach that waited for it; None for a repeat.
        """
        at, amount, location, _, device, _, placed, lat, lon, user, _ = this
        own, numbers, past, usual, spread, marks, met, km, identity = look
        key, payment, repeat, _ = identity
        if repeat:
            return None
        known = self.known
        last_at = self.last_at
        amount = amount if amount < MAX_AMOUNT else MAX_AMOUNT
        late = at < last_at

        seen, mean, squares, largest, first, in_day, in_fortnight = own
        over = 0.0
        unusual = False
        if spread > 0.0:
            z = (amount - usual) / spread
            unusual = z > UNUSUAL_Z or amount / usual > UNUSUAL_RATIO
            if unusual:
                self.unusual = (self.unusual + key[:4])[-4 * UNUSUAL :]
            over = excess(z)
        mean, squares = _learn_amount(seen, mean, squares, amount, usual, spread)
        if over or in_fortnight:
            days = abs(at - last_at) / DAY  # infinite before the first: all has faded
            by_day, by_fortnight = math.exp(-days), math.exp(-days / 14.0)
            if late:  # this one has faded since, the newer ones have not
                in_day += over * by_day
                in_fortnight += over * by_fortnight
            else:
                in_day = in_day * by_day + over
                in_fortnight = in_fortnight * by_fortnight + over
        numbers, self.past = windows.count(numbers, past, at // BUCKET, amount)
        if not seen:
            first = at / DAY
        largest = amount if amount > largest else largest
        self.row = packed.write_user((seen + 1.0, mean, squares, largest, first, in_day, in_fortnight), numbers)

        self._take(at, amount, location, late)
        if placed:
            self._move(lat, lon, km, late)
        names = known[:TO_RECENT] if met[0] and met[1] and met[2] else _meet(known, marks, met, device, location)
        self.known = names + (known[TO_RECENT:] + key)[-6 * RECENT :]
        self.payments = (self.payments + payment)[-4 * RECENT :]
        if not self.labels or not (unusual or self.first_waiting < math.inf):
            return NO_LESSONS
        lessons: list[Lesson] = []
        if unusual:
            self._explain(user, key, lessons)
        if self.first_waiting < math.inf:
            self._settle(user, key, -math.inf, lessons)
        return tuple(lessons)

    def learn(self, label: Feedback) -> Lessons:
        """Takes a label in; what it teaches merchants, and what labels do that have waited for too long.

        A fraud with an amount that was unusual for the user when it was scored speaks against the card; one without,
        against the merchant. A label waits, and counts nowhere, while its transaction has not come: neither is the id
        among the recent ones, nor does its time lie at or before the user's newest. It counts as soon as either holds.
        Should a transaction come later than others of its time, and after its label counted as one of no unusual
        amount, then this is mended.

        Of two labels of one transaction the one with the later `labelled_at` counts, and where these are equal the
        one that came last; the merchant and the time of the transaction stay those of the first. A label that says
        the same as what counts is a repeat, and changes nothing.
        """
        lessons: list[Lesson] = []
        user = label.user
        if self.first_waiting < math.inf:
            self._settle(user, b"", label.labelled_at - LABEL_WAIT, lessons)
        key = _key_of(label.transaction_id.encode())
        place = _find_label(self.labels, key)
        if place < 0:
            self._remember(label, key, lessons)
            return tuple(lessons)
        at, labelled_at, _, flags = _LABEL.unpack_from(self.labels, place)
        fraud = flags & FRAUD != 0
        if label.fraud == fraud or label.labelled_at < labelled_at:
            REPEATED.inc()
            return tuple(lessons)
        CORRECTED.inc()
        flags ^= FRAUD
        self._write_label(place, _LABEL.pack(at, label.labelled_at, key, flags))
        if not flags & WAITING:
            self._count_frauds()
            replaced = Replaced(labelled_at, fraud, flags & EXPLAINED != 0)
            lessons.append(self._lesson(user, place, replaced))
        return tuple(lessons)

    def _remember(self, label: Feedback, key: bytes, lessons: list[Lesson]) -> None:
        """Takes in the first label of a transaction; the one of the oldest is forgotten where there are too many."""
        at = label.at
        flags = FRAUD if label.fraud else 0
        if packed.has_word(self.unusual, key[:4], 0, len(self.unusual)):
            flags |= EXPLAINED
        if at > self.last_at and not packed.has_long_word(self.known, key, TO_RECENT):
            flags |= WAITING
            WAITED.inc()
            self.first_waiting = min(at, self.first_waiting)
        labels = self.labels
        place = len(labels)
        while place:
            other_at, _, other, _ = _LABEL.unpack_from(labels, place - LABEL_BYTES)
            if (other_at, other) < (at, key):
                break
            place -= LABEL_BYTES
        self.labels = labels[:place] + _LABEL.pack(at, label.labelled_at, key, flags) + labels[place:]
        number = place // LABEL_BYTES
        merchants = self.label_merchants
        self.label_merchants = (*merchants[:number], intern(label.merchant), *merchants[number:])
        if not flags & WAITING:
            lessons.append(self._lesson(label.user, place, None))
            if flags & FRAUD:
                self._count_frauds()
        if len(self.labels) > LABELLED * LABEL_BYTES:
            self._forget(label.user, lessons)

    def _forget(self, user: str, lessons: list[Lesson]) -> None:
        """Forgets the label of the oldest transaction; what it counts stays."""
        at, _, _, flags = _LABEL.unpack_from(self.labels, 0)
        if flags & WAITING:
            EVICTED.inc()
            self._apply(user, 0, lessons)
        counted: int = _LABEL.unpack_from(self.labels, 0)[3]
        if counted & FRAUD:
            frauds, newest, card_frauds, card_newest = packed.read_four(self.frauds_before or _NO_FRAUDS_YET)
            day = at / DAY
            if counted & EXPLAINED:
                card_frauds, card_newest = card_frauds + 1.0, max(card_newest, day)
            self.frauds_before = packed.write_four(frauds + 1.0, max(newest, day), card_frauds, card_newest)
        self.labels = self.labels[LABEL_BYTES:]
        self.label_merchants = self.label_merchants[1:]
        if flags & WAITING:
            self._count_frauds()
            self._find_first_waiting()

    def _settle(self, user: str, key: bytes, labelled_before: float, lessons: list[Lesson]) -> None:
        """Lets labels count that need wait no longer.

        That of the transaction with this key, which has come; those of transactions that the user's newest has
        overtaken; and those that came before `labelled_before`.
        """
        last_at = self.last_at
        for place in range(0, len(self.labels), LABEL_BYTES):
            at, labelled_at, its, flags = _LABEL.unpack_from(self.labels, place)
            if not flags & WAITING:
                continue
            if its == key:
                self._apply(user, place, lessons)
            elif at <= last_at or labelled_at < labelled_before:
                EXPIRED.inc()
                self._apply(user, place, lessons)
        self._count_frauds()
        self._find_first_waiting()

    def _apply(self, user: str, place: int, lessons: list[Lesson]) -> None:
        """Lets a label count that waited."""
        at, labelled_at, key, flags = _LABEL.unpack_from(self.labels, place)
        flags &= ~WAITING
        if packed.has_word(self.unusual, key[:4], 0, len(self.unusual)):
            flags |= EXPLAINED
        self._write_label(place, _LABEL.pack(at, labelled_at, key, flags))
        lessons.append(self._lesson(user, place, None))

    def _explain(self, user: str, key: bytes, lessons: list[Lesson]) -> None:
        """Mends the label that counts already of a transaction that came only now, and is of an unusual amount."""
        place = _find_label(self.labels, key)
        if place < 0:
            return
        at, labelled_at, _, flags = _LABEL.unpack_from(self.labels, place)
        if flags & (EXPLAINED | WAITING):
            return
        self._write_label(place, _LABEL.pack(at, labelled_at, key, flags | EXPLAINED))
        if flags & FRAUD:
            self._count_frauds()
            lessons.append(self._lesson(user, place, Replaced(labelled_at, True, False)))

    def _write_label(self, place: int, label: bytes) -> None:
        self.labels = self.labels[:place] + label + self.labels[place + LABEL_BYTES :]

    def _lesson(self, user: str, place: int, before: Replaced | None) -> Lesson:
        """What the label at that place teaches the merchant that it names."""
        at, labelled_at, key, flags = _LABEL.unpack_from(self.labels, place)
        merchant = self.label_merchants[place // LABEL_BYTES]
        key = _key_of(key + user.encode())
        return Lesson(merchant, key, at, labelled_at, flags & FRAUD != 0, flags & EXPLAINED != 0, before)

    def _count_frauds(self) -> None:
        """Counts the frauds anew, those that were forgotten and those that are remembered."""
        frauds, newest, card_frauds, card_newest = packed.read_four(self.frauds_before or _NO_FRAUDS_YET)
        for place in range(0, len(self.labels), LABEL_BYTES):
            at, _, _, flags = _LABEL.unpack_from(self.labels, place)
            if flags & (FRAUD | WAITING) == FRAUD:
                day = at / DAY
                frauds, newest = frauds + 1.0, max(newest, day)
                if flags & EXPLAINED:
                    card_frauds, card_newest = card_frauds + 1.0, max(card_newest, day)
        self.frauds = packed.write_four(frauds, newest, card_frauds, card_newest) if frauds else b""

    def _find_first_waiting(self) -> None:
        self.first_waiting = math.inf
        for place in range(0, len(self.labels), LABEL_BYTES):
            at, _, _, flags = _LABEL.unpack_from(self.labels, place)
            if flags & WAITING:  # labels stand in the order of their transactions
                self.first_waiting = at
                return

    def _move(self, lat: float, lon: float, km: float, late: bool) -> None:
        """Moves the centre of the user's places towards the coordinates, which lie `km` from it."""
        if not self.place:
            self.place = packed.write_six(lat, lon, lat, lon, 1.0, 0.0)
            return
        last_lat, last_lon, home_lat, home_lon, n, roam = packed.read_six(self.place)
        reach = CLIP * (roam * n + MIN_KM) / (n + 1.0) + MIN_KM
        n = n + 1.0 if n < MEMORY else MEMORY
        step = 1.0 / n
        if km > reach and n > 3.0:  # one far journey does not move the centre far
            step *= reach / km
            km = reach
        east = (lon - home_lon + 180.0) % 360.0 - 180.0
        home_lat += step * (lat - home_lat)
        home_lon = (home_lon + step * east + 180.0) % 360.0 - 180.0
        roam += (km - roam) / n
        if late:
            self.place = packed.write_six(last_lat, last_lon, home_lat, home_lon, n, roam)
        else:
            self.place = packed.write_six(lat, lon, home_lat, home_lon, n, roam)

    def __deepcopy__(self, memo: Any) -> "UserProfile":
        """A snapshot's copy: all but the hour's times is shared, as nothing changes it in place."""
        copy = UserProfile.__new__(UserProfile)
        copy.last_at = self.last_at
        copy.last_location = self.last_location
        copy.hour = self.hour and self.hour[:]
        copy.spent = self.spent
        copy.row = self.row
        copy.past = self.past
        copy.place = self.place
        copy.frauds = self.frauds
        copy.known = self.known
        copy.payments = self.payments
        copy.unusual = self.unusual
        copy.labels = self.labels
        copy.label_merchants = self.label_merchants
        copy.frauds_before = self.frauds_before
        copy.first_waiting = self.first_waiting
        return copy

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore_user, (
            VERSION, self.last_at, self.last_location, self.hour and self.hour.tobytes(), self.spent, self.row,
            _if_any(self.past), self.label_merchants, self.first_waiting,
            self.place, self.frauds, self.known, self.payments, self.unusual, self.labels, self.frauds_before,
        )  # fmt: skip


def _if_any(past: bytes) -> bytes:
    """Past buckets as they are pickled: nothing where there is nothing, which is often, and 128 bytes less."""
    return b"" if past == NO_PAST else past


def _restore_user(
    version: int, last_at: float, last_location: str, hour: bytes | None, spent: float, row: bytes, past: bytes,
    label_merchants: tuple[str, ...], first_waiting: float, *others: bytes,
) -> UserProfile:  # fmt: skip
    _check(version, "user")
    profile = UserProfile()
    profile.last_at = last_at
    profile.last_location = intern(last_location)
    profile.hour = array("d", hour) if hour else None
    profile.spent = spent
    profile.row = row
    profile.past = past or NO_PAST
    profile.label_merchants = tuple([intern(merchant) for merchant in label_merchants])
    profile.first_waiting = first_waiting
    (
        profile.place, profile.frauds, profile.known, profile.payments, profile.unusual, profile.labels,
        profile.frauds_before,
    ) = others  # fmt: skip
    return profile


def _check(version: int, whose: str) -> None:
    if version != VERSION:  # recovery.guard() refuses such data before it gets here; this is the last line of defence
        msg = f"{whose} profile of version {version}, but this is version {VERSION}"
        raise ValueError(msg)


# A merchant's numbers: transactions ever; mean and squares of amounts; excess of what its payers paid, fading; then
# those of the windows. Of 64 bits, as floats of 32 count to 16.7 million, and a large merchant has more in 30 days.
_NEW_MERCHANT: Final = packed.write_merchant((0.0, 0.0, 0.0, 0.0), windows.EMPTY)
# Labels: of the last run of frauds the day of the first and of the last, how many, genuine ones between, and since;
# the day of the newest genuine one; then the numbers of windows that count labels, and frauds as amounts.
_LABELS = Struct("<6d13f")
Run = Six
_NO_RUN: Run = (-1.0, -1.0, 0.0, 0.0, 0.0, -1.0)
_NO_LABELS: Final = _LABELS.pack(*_NO_RUN, *windows.EMPTY)
_RUN = Struct("<6d")
# A lesson: when the transaction took place, six bytes that stand for it, whether it was a fraud.
_LESSON = Struct("<d6s?x")
LESSON_BYTES: Final = 16
LESSONS: Final = 128
"""Lessons that a merchant remembers, those of the newest transactions, to sum them up in the order of these and to take
one back. Frauds that their amounts explain are not among them, as they say nothing of the merchant."""


def _numbers(row: tuple[float, ...]) -> Numbers:
    """The windows' numbers of a row of labels."""
    _, _, _, _, _, _, a, b, c, d, e, f, g, h, i, j, k, m, n = row
    return a, b, c, d, e, f, g, h, i, j, k, m, n


RUN_OVER: Final = 0.02
"""A run of frauds is over when so many genuine ones in a row would be less likely than this, had it gone on."""
RUN_GAP: Final = 14.0
"""Days without a fraud after which the next one starts a run of its own."""
RUN_LIFE: Final = 60.0
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


_NO_LABELS_READ: Six = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
NO_COMPROMISE = Compromise(0.0, NEVER, 0.0, 0.0, 0.0, NEVER, NEVER)


def _alive(frauds: float, genuine: float, since: float) -> float:
    """Chance of a genuine streak so long, had the run of frauds gone on."""
    return float((1.0 - (frauds + 0.5) / (frauds + genuine + 1.0)) ** since)


class MerchantProfile:
    """A merchant's pace and amounts, and what feedback says of it.

    What stands here of payments depends on how the partitions interleave: windows keep it tolerant of that. What
    stands here of labels does not, as far as its `LESSONS` reach.
    """

    __slots__ = (
        "labels_bucket", "labels_past", "labels_read", "labels_row", "last_at", "lessons", "past", "row", "run_before",
    )  # fmt: skip

    def __init__(self) -> None:
        self.last_at = -math.inf  # event time of the newest transaction
        self.row = _NEW_MERCHANT
        self.past = NO_PAST
        self.labels_row = b""  # empty without a label
        self.labels_past = NO_PAST
        self.lessons = b""  # in the order of their transactions
        self.run_before = b""  # what was forgotten of them left of the run; empty while none was
        # What `labels` said last, and in which bucket it was asked: no state, it saves moving the windows on.
        self.labels_bucket = -math.inf
        self.labels_read: Six = _NO_LABELS_READ

    def look(self, at: float, population: Population = ANYONE) -> MerchantLook:
        """What facts and update need of the profile for a transaction at `at`; changes nothing."""
        own, numbers, past = self.read(at)
        usual, spread = expect(own[0], own[1], own[2], population)
        return own, numbers, past, usual, spread

    def read(self, at: float) -> tuple[Four, Numbers, bytes]:
        """The merchant's own numbers, those of the windows, moved on to `at`, and the past buckets.

        Transactions ever; mean and squares of amounts; excess of what payers paid, as of the newest.
        """
        own, numbers = packed.read_merchant(self.row)
        past = self.past
        bucket = at // BUCKET
        if bucket > numbers[0]:
            numbers, past = windows.roll(numbers, past, bucket)
        return own, numbers, past

    def totals(self, at: float) -> tuple[float, ...]:
        """Counts and sums of amounts over 24 h, 7 d and 30 d."""
        return self.read(at)[1][1:7]

    def labels(self, at: float) -> Six:
        """Labels that came, and frauds among them (as sums), over 24 h, 7 d and 30 d."""
        if not self.labels_row:
            return _NO_LABELS_READ
        bucket = at // BUCKET
        if bucket != self.labels_bucket:
            numbers = _numbers(_LABELS.unpack(self.labels_row))
            if bucket > numbers[0]:
                numbers, _ = windows.roll(numbers, self.labels_past, bucket)
            _, n24, s24, n7, s7, n30, s30, _, _, _, _, _, _ = numbers
            self.labels_bucket, self.labels_read = bucket, (n24, s24, n7, s7, n30, s30)
        return self.labels_read

    def surprise(self, amount: float, population: Population = ANYONE) -> tuple[float, float]:
        """The amount in spreads from what is normal here, and in means; (0, 1) where nothing is known."""
        own, _ = packed.read_merchant(self.row)
        mean, spread = expect(own[0], own[1], own[2], population)
        return ((amount - mean) / spread, amount / mean) if spread > 0.0 else (0.0, 1.0)

    def compromise(self, at: float) -> Compromise:
        """What the last run of unexplained frauds says."""
        if not self.labels_row:
            return NO_COMPROMISE
        first, last, frauds, genuine, since, genuine_day = _LABELS.unpack(self.labels_row)[:6]
        day = at / DAY
        if not frauds:
            return Compromise(0.0, NEVER, 0.0, 0.0, 0.0, NEVER, _since(genuine_day, day))
        age = _since(first, day)
        # Share of frauds (Beta prior), times the chance of the genuine streak had it gone on, times time's.
        risk = frauds / (frauds + genuine + 0.5) * _alive(frauds, genuine, since) * math.exp(-age / RUN_LIFE)
        return Compromise(risk, age, frauds, genuine, since, _since(last, day), _since(genuine_day, day))

    def update(self, txn: Transaction, z: float, population: Population = ANYONE) -> None:
        """Takes the transaction in, once it has been scored; `z` is the amount in the user's spreads.

        The user's profile says what is a repeat; repeats do not come here.
        """
        self.take_in(txn.at, txn.amount, z, self.look(txn.at, population))

    def take_in(self, at: float, amount: float, z: float, look: MerchantLook) -> None:
        """As `update`; `look` as of `UserProfile.take_in`."""
        last_at = self.last_at
        amount = amount if amount < MAX_AMOUNT else MAX_AMOUNT
        own, numbers, past, usual, spread = look
        seen, mean, squares, unusual = own
        mean, squares = _learn_amount(seen, mean, squares, amount, usual, spread)
        if at >= last_at:
            if unusual:
                unusual *= math.exp((last_at - at) / (14.0 * DAY))
            if z > 2.0:
                unusual += excess(z)
            self.last_at = at
        elif z > 2.0:
            unusual += excess(z) * math.exp((at - last_at) / (14.0 * DAY))
        numbers, self.past = windows.count(numbers, past, at // BUCKET, amount)
        self.row = packed.write_merchant((seen + 1.0, mean, squares, unusual), numbers)

    def learn(self, lesson: Lesson) -> None:
        """Takes a lesson in, and takes back what it replaces.

        What is taken back of the windows is exact as long as they reach there. Of the run of frauds it is exact while
        the transaction is among the newest `LESSONS`; one that is older leaves the counts of the run that was under
        way then, but not its first and last day, nor does it bring back a run that was given up because of it.
        """
        row = _LABELS.unpack(self.labels_row or _NO_LABELS)
        numbers, past = _numbers(row), self.labels_past
        before, fraud = lesson.before, lesson.fraud
        bucket = lesson.labelled_at // BUCKET
        spoke = False
        if before is None:
            numbers, past = windows.count(numbers, past, bucket, 1.0 if fraud else 0.0)
        else:
            spoke = not (before.fraud and before.explained)
            counted = before.labelled_at // BUCKET
            if before.fraud != fraud or counted != bucket:
                numbers, past = windows.take_back(numbers, past, counted, 1.0 if before.fraud else 0.0)
                numbers, past = windows.count(numbers, past, bucket, 1.0 if fraud else 0.0)
        a, b, c, d, e, f = row[:6]
        run = self._learn_run((a, b, c, d, e, f), lesson, spoke, not (fraud and lesson.explained))
        self.labels_past = past
        self.labels_row = _LABELS.pack(*run, *numbers)
        self.labels_bucket = -math.inf

    def _learn_run(self, run: Run, lesson: Lesson, spoke: bool, speaks: bool) -> Run:
        """The run after a lesson, which `spoke` of the merchant before, and `speaks` of it now."""
        at, key, lessons = lesson.at, lesson.key, self.lessons
        newest = not lessons
        if lessons:
            last_at, last, _ = _LESSON.unpack_from(lessons, len(lessons) - LESSON_BYTES)
            newest = (last_at, last) < (at, key)
        if speaks and newest and not spoke:
            lessons += _LESSON.pack(at, key, lesson.fraud)
            run = _run(run, at / DAY, lesson.fraud)
        elif spoke or speaks:
            rows = [row for row in _LESSON.iter_unpack(lessons) if row[0] != at or row[1] != key]
            if spoke and lesson.before is not None and LESSON_BYTES * len(rows) == len(lessons):
                self.run_before = _RUN.pack(*_run_without(self._forgotten(), at / DAY, lesson.before.fraud))
            if speaks:
                rows.append((at, key, lesson.fraud))
                rows.sort()
            lessons = b"".join([_LESSON.pack(*row) for row in rows])
            run = self._forgotten()
            for its_at, _, its_fraud in rows:
                run = _run(run, its_at / DAY, its_fraud)
        if len(lessons) > LESSONS * LESSON_BYTES:
            its_at, _, its_fraud = _LESSON.unpack_from(lessons, 0)
            self.run_before = _RUN.pack(*_run(self._forgotten(), its_at / DAY, its_fraud))
            lessons = lessons[LESSON_BYTES:]
        self.lessons = lessons
        return run

    def _forgotten(self) -> Run:
        """The run as the lessons left it that were forgotten."""
        if not self.run_before:
            return _NO_RUN
        a, b, c, d, e, f = _RUN.unpack(self.run_before)
        return a, b, c, d, e, f

    def __deepcopy__(self, memo: Any) -> "MerchantProfile":
        """A snapshot's copy: all is shared, as nothing changes it in place."""
        copy = MerchantProfile.__new__(MerchantProfile)
        copy.last_at = self.last_at
        copy.row = self.row
        copy.past = self.past
        copy.labels_row = self.labels_row
        copy.labels_past = self.labels_past
        copy.lessons = self.lessons
        copy.run_before = self.run_before
        copy.labels_bucket = -math.inf
        copy.labels_read = _NO_LABELS_READ
        return copy

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore_merchant, (
            VERSION, self.last_at, self.row, _if_any(self.past), self.labels_row, _if_any(self.labels_past),
            self.lessons, self.run_before,
        )  # fmt: skip


def _run(run: Run, day: float, fraud: bool) -> Run:
    """The last run of unexplained frauds, after one more that is genuine or not explained, of that day."""
    first, last, frauds, genuine, since, genuine_day = run
    if not fraud:
        if frauds and day >= first:
            if day > last:
                since += 1.0
            else:
                genuine += 1.0
        return first, last, frauds, genuine, since, max(genuine_day, day)
    if frauds and _alive(frauds, genuine, since) >= RUN_OVER and day - last <= RUN_GAP:
        return min(first, day), max(last, day), frauds + 1.0, genuine + since, 0.0, genuine_day
    if day < first:
        return run  # a late label of a run before this one
    return day, max(last, day), 1.0, 0.0, 0.0, genuine_day


def _run_without(run: Run, day: float, fraud: bool) -> Run:
    """The run without a label of that day that is summed up in it: its counts, as far as they can be told apart."""
    first, last, frauds, genuine, since, genuine_day = run
    if not frauds or day < first:
        return run
    if fraud:
        if day > last:
            return run
        return (first, last, frauds - 1.0, genuine, since, genuine_day) if frauds > 1.0 else (*_NO_RUN[:5], genuine_day)
    if day > last:
        return first, last, frauds, genuine, max(since - 1.0, 0.0), genuine_day
    return first, last, frauds, max(genuine - 1.0, 0.0), since, genuine_day


def _restore_merchant(
    version: int, last_at: float, row: bytes, past: bytes, labels_row: bytes, labels_past: bytes, lessons: bytes,
    run_before: bytes,
) -> MerchantProfile:  # fmt: skip
    _check(version, "merchant")
    profile = MerchantProfile()
    profile.last_at = last_at
    profile.row = row
    profile.past = past or NO_PAST
    profile.labels_row = labels_row
    profile.labels_past = labels_past or NO_PAST
    profile.lessons = lessons
    profile.run_before = run_before
    return profile
