"""The facts that rules and model may read: one documented schema, and the functions that make them.

Training replays history through these very functions, so training and serving cannot drift apart. Facts come in two
parts, as the flow has two lanes: what the user's profile knows, then what the merchant's adds. The merchant's depend
on how partitions interleave; the user's do not.

From step to step they go as bytes, the numbers and flags among them as floats of 64 bits: as 66 objects a transaction
they took 3 µs more. The texts are the transaction's own, but for the last location. `dataflow.table` has the columns of
a batch, `row` the facts of one transaction as a row.
"""

from collections.abc import Callable, Sequence
from math import exp, sqrt
from operator import attrgetter, itemgetter
from struct import Struct
from typing import Final, Literal, NamedTuple

from dataflow import packed
from dataflow.enriched import Payment
from dataflow.packed import BasicFacts, MerchantFacts, UserFacts
from dataflow.profile import (
    ANYONE,
    DAY,
    HOUR,
    NO_COMPROMISE,
    NONE,
    TO_LOCATIONS,
    TO_RECENT,
    BasicProfile,
    MerchantLook,
    MerchantProfile,
    Paid,
    Population,
    UserLook,
    UserProfile,
    fingerprint,
    identify,
    paid,
)
from dataflow.transaction import UNKNOWN, Transaction

Facts = tuple[float | str | bool, ...]
"""The facts of one transaction as a row, in the order of `FIELDS`, or of its first ones."""


class Field(NamedTuple):
    """One fact: its name in rules and models, its kind, what it means."""

    name: str
    kind: Literal["number", "text", "flag"]
    doc: str


USER_FIELDS: tuple[Field, ...] = (
    Field("amount", "number", "the transaction's amount, in its own currency"),
    Field("user", "text", "who pays"),
    Field("merchant", "text", "who is paid"),
    Field("location", "text", "where: an ISO 3166 alpha-2 country code where the producer has one"),
    Field("device", "text", "with which device"),
    Field("txn_type", "text", "purchase, transfer, withdrawal, deposit, ..."),
    Field("category", "text", "the merchant's line of business, 'unknown' without one"),
    Field("ip", "text", "the network address, 'unknown' without one"),
    Field("timestamp", "number", "event time as it counts, seconds since 1970 UTC"),
    Field("txn_per_hour", "number", "the user's earlier transactions in the hour before this one"),
    Field("last_location", "text", "location of the user's newest earlier transaction, '' without one"),
    Field("location_changed", "flag", "there is an earlier transaction, and it was elsewhere; both places are known"),
    Field("seconds_since_last", "number", "between this and the user's newest earlier one, infinite without one"),
    Field("amount_per_hour", "number", "sum of the user's amounts in the hour before this one"),
    Field("ahead_of_time", "flag", "dated further ahead than MAX_EVENT_LEAD_SECONDS: counts at its record's time"),
    Field("reused_id", "flag", "the user's recent transactions have another amount, merchant or time under this id"),
    Field("txn_per_day", "number", "the user's earlier transactions in 24 h (20 to 24 h: buckets of 4 h)"),
    Field("amount_per_day", "number", "sum of their amounts"),
    Field("txn_per_week", "number", "the user's earlier transactions in 7 d (6 to 7: buckets of a day)"),
    Field("amount_per_week", "number", "sum of their amounts"),
    Field("txn_per_month", "number", "the user's earlier transactions in 30 d (25 to 30: buckets of 5 d)"),
    Field("amount_per_month", "number", "sum of their amounts"),
    Field("mean_amount_hour", "number", "mean of the user's amounts in the hour before, 0 without any"),
    Field("mean_amount_day", "number", "likewise in 24 h"),
    Field("mean_amount_week", "number", "likewise in 7 d"),
    Field("mean_amount_month", "number", "likewise in 30 d"),
    Field("amount_z", "number", "spreads by which the amount exceeds the user's mean; both without it, shrunk"),
    Field("amount_z_above", "number", "the same where it is above 0, else 0"),
    Field("amount_ratio", "number", "the amount in the user's means, 1 without history"),
    Field("amount_to_largest", "number", "the amount in the user's largest so far, 1 without history"),
    Field("usual_amount", "number", "the user's mean amount, shrunk and without extremes"),
    Field("history", "number", "the user's earlier transactions, all of them"),
    Field("burst", "number", "how far the last 24 h exceed the user's own daily pace, in its Poisson spreads"),
    Field("unusual_day", "number", "how far the user's earlier amounts exceeded the usual, fading over a day"),
    Field("unusual_fortnight", "number", "the same, fading over 14 days"),
    Field("km_from_centre", "number", "from the centre of the user's places, km; 0 where not known"),
    Field("centre_ratio", "number", "the same in the user's usual distance from it"),
    Field("km_since_last", "number", "from the user's newest earlier transaction, km; 0 where not known"),
    Field("speed", "number", "km/h that this takes, at least a minute; 0 where not known"),
    Field("new_merchant", "flag", "the user has paid others, but not this merchant, of late"),
    Field("new_device", "flag", "the user's devices are known, and this is none of them"),
    Field("new_location", "flag", "the user's locations are known, and this is none of them"),
    Field("confirmed_frauds", "number", "of the user, by feedback"),
    Field("days_since_fraud", "number", "since the newest of them took place, 365 without one"),
    Field("card_frauds", "number", "those among them with an amount unusual for the user: the card, not the merchant"),
    Field("days_since_card_fraud", "number", "since the newest of these, 365 without one"),
)

MERCHANT_FIELDS: tuple[Field, ...] = (
    Field("merchant_per_day", "number", "the merchant's earlier transactions in 24 h"),
    Field("merchant_per_week", "number", "in 7 d"),
    Field("merchant_per_month", "number", "in 30 d"),
    Field("merchant_mean_amount", "number", "mean of its amounts in 30 d, 0 without any"),
    Field("merchant_amount_z", "number", "spreads by which the amount exceeds what is normal at the merchant"),
    Field("merchant_amount_ratio", "number", "the amount in the merchant's means"),
    Field("merchant_unusual", "number", "how far earlier amounts there exceeded what its payers are used to, fading"),
    Field("merchant_labels_week", "number", "labels of its transactions that came in 7 d"),
    Field("merchant_labels_month", "number", "in 30 d"),
    Field("merchant_frauds_day", "number", "frauds confirmed there in 24 h"),
    Field("merchant_frauds_week", "number", "in 7 d"),
    Field("merchant_frauds_month", "number", "in 30 d"),
    Field("merchant_risk_day", "number", "frauds in labels that came in 24 h, (f + 0) / (n + 1)"),
    Field("merchant_risk_week", "number", "likewise in 7 d"),
    Field("merchant_risk_month", "number", "likewise in 30 d"),
    Field("merchant_compromised", "number", "chance that its run of unexplained frauds goes on, 0 to 1"),
    Field("run_days", "number", "since the first fraud of that run took place, 365 without one"),
    Field("run_frauds", "number", "frauds in it"),
    Field("run_genuine", "number", "genuine ones between them"),
    Field("genuine_since", "number", "genuine ones since its last fraud"),
    Field("days_since_merchant_fraud", "number", "since that last fraud took place, 365 without one"),
    Field("days_since_merchant_genuine", "number", "since the newest genuine one, 365 without one"),
)

FIELDS = USER_FIELDS + MERCHANT_FIELDS

BASIC = frozenset(field.name for field in USER_FIELDS[:16])
"""The facts that basic profiles give, `amount` to `reused_id`."""
NUMBERS: tuple[str, ...] = tuple(field.name for field in FIELDS if field.kind != "text")
"""The facts that are no texts, in the order in which they are packed: those of basic profiles, users, merchants."""
FLAGS = frozenset(field.name for field in FIELDS if field.kind == "flag")
_AMOUNT_Z: Final = NUMBERS.index("amount_z")


def observe_basic(txn: Transaction, profile: BasicProfile) -> tuple[str, bytes]:
    """The facts that are `BASIC`, as of before the transaction; the profile takes it in.

    The last location, and the numbers, packed.
    """
    at, amount, location, ahead_at = txn.at, txn.amount, txn.location, txn.ahead_at
    mark = fingerprint(txn.merchant)
    identity = identify(profile.known, 0, profile.payments, txn.transaction_id or "", amount, mark, ahead_at or at)
    last_location = profile.last_location
    numbers = packed.write_basic_facts(_basic_facts(at, amount, location, ahead_at != 0.0, identity[3], profile))
    profile.take_basic(at, amount, location, identity)
    return last_location, numbers


def observe_user(txn: Transaction, profile: UserProfile, population: Population = ANYONE) -> Payment:
    """The facts of the user as he was before the transaction, which the profile then takes in, unless it is a repeat.

    With them comes what labels that waited for the transaction teach now.
    """
    seen = paid(txn)
    look = profile.look(seen, population)
    last_location = profile.last_location
    numbers = packed.write_user_facts(_user_facts(seen, profile, look))
    lessons = profile.take_in(seen, look)
    return Payment(txn, last_location, numbers, lessons is not None, lessons or ())


def observe_merchant(payment: Payment, profile: MerchantProfile, population: Population = ANYONE) -> bytes:
    """All facts: the user's, and those of the merchant before the transaction, which it takes in where it counts."""
    txn, known = payment.transaction, payment.numbers
    at, amount = txn.at, txn.amount
    look = profile.look(at, population)
    numbers = known + packed.write_merchant_facts(_merchant_facts(at, amount, profile, look))
    if payment.counts:
        profile.take_in(at, amount, packed.number_at(known, _AMOUNT_Z), look)
    return numbers


def _user_facts(this: Paid, profile: UserProfile, look: UserLook) -> UserFacts:
    at, amount, location, _, device, _, placed, lat, lon, _, dated = this
    last_at = profile.last_at
    own, numbers, _, usual, spread, _, met, km, identity = look
    _, _, n1, changed, seconds, s1, ahead, reused = _basic_facts(
        at, amount, location, dated != at, identity[3], profile
    )
    seen, _, _, largest, first, unusual_day, unusual_fortnight = own
    _, n24, s24, n7, s7, n30, s30, _, _, _, _, _, _ = numbers
    z, ratio = ((amount - usual) / spread, amount / usual) if spread > 0.0 else (0.0, 1.0)
    if unusual_fortnight and at > last_at:
        days = (at - last_at) / DAY
        unusual_day *= exp(-days)
        unusual_fortnight *= exp(-days / 14.0)
    age = at / DAY - first if seen else 0.0
    pace = n30 if age < 1.0 else n30 / age if age < 30.0 else n30 / 30.0  # a day
    centre = hop = speed = 0.0
    if placed:
        centre, hop, speed = profile.moved(lat, lon, at, km)
    frauds, days_since_fraud, card_frauds, days_since_card_fraud = profile.confirmed(at)
    known = profile.known
    new_device = device != UNKNOWN and not met[1] and known[TO_LOCATIONS - 4 : TO_LOCATIONS] != NONE
    new_location = location != UNKNOWN and not met[2] and known[TO_RECENT - 4 : TO_RECENT] != NONE
    return (
        amount,
        at,
        n1,
        changed,
        seconds,
        s1,
        ahead,
        reused,
        n24,
        s24,
        n7,
        s7,
        n30,
        s30,
        s1 / n1 if n1 else 0.0,
        s24 / n24 if n24 else 0.0,
        s7 / n7 if n7 else 0.0,
        s30 / n30 if n30 else 0.0,
        z,
        z if z > 0.0 else 0.0,
        ratio,
        amount / largest if largest > 0.0 else 1.0,
        usual,
        seen,
        (n24 - pace) / sqrt(pace + 1.0),
        unusual_day,
        unusual_fortnight,
        km,
        centre,
        hop,
        speed,
        1.0 if seen > 0.0 and not met[0] else 0.0,
        1.0 if new_device else 0.0,
        1.0 if new_location else 0.0,
        frauds,
        days_since_fraud,
        card_frauds,
        days_since_card_fraud,
    )


def _basic_facts(
    at: float, amount: float, location: str, ahead: bool, reused: bool, profile: BasicProfile
) -> BasicFacts:
    last_at, last = profile.last_at, profile.last_location
    count, amounts = profile.in_hour(at) if at < last_at + HOUR else (0, 0.0)
    changed = last != location and last != "" and location != UNKNOWN  # noqa: PLR1714 (a tuple made for each)
    return (
        amount,
        at,
        float(count),
        1.0 if changed else 0.0,
        abs(at - last_at),
        amounts,
        1.0 if ahead else 0.0,
        1.0 if reused else 0.0,
    )


def _merchant_facts(at: float, amount: float, profile: MerchantProfile, look: MerchantLook) -> MerchantFacts:
    own, numbers, _, usual, spread = look
    unusual = own[3]
    _, n24, _, n7, _, n30, s30, _, _, _, _, _, _ = numbers
    if unusual and at > profile.last_at:
        unusual *= exp((profile.last_at - at) / (14.0 * DAY))
    labels1 = frauds1 = labels7 = frauds7 = labels30 = frauds30 = 0.0
    compromise = NO_COMPROMISE
    if profile.labels_row:
        labels1, frauds1, labels7, frauds7, labels30, frauds30 = profile.labels(at)
        compromise = profile.compromise(at)
    risk, run_days, run_frauds, run_genuine, genuine_since, since_fraud, since_genuine = compromise
    return (
        n24,
        n7,
        n30,
        s30 / n30 if n30 else 0.0,
        (amount - usual) / spread if spread > 0.0 else 0.0,
        amount / usual if spread > 0.0 else 1.0,
        unusual,
        labels7,
        labels30,
        frauds1,
        frauds7,
        frauds30,
        frauds1 / (labels1 + 1.0),
        frauds7 / (labels7 + 1.0),
        frauds30 / (labels30 + 1.0),
        risk,
        run_days,
        run_frauds,
        run_genuine,
        genuine_since,
        since_fraud,
        since_genuine,
    )


class _Layout:
    """How packed numbers and texts become a row of some fields."""

    def __init__(self, fields: Sequence[Field]):
        numbers = [field.name for field in fields if field.kind != "text"]
        texts = [*TEXTS, LAST_LOCATION]
        self.unpack = Struct(f"<{len(numbers)}d").unpack
        self.flags = [numbers.index(field.name) for field in fields if field.kind == "flag"]
        flags = [numbers[place] for place in self.flags]
        # Numbers first, then the texts, then the flags anew, as what they are.
        order = numbers + texts + flags
        self.order = itemgetter(*[len(order) - 1 - order[::-1].index(field.name) for field in fields])

    def row(self, txn: Transaction, last_location: str, numbers: bytes) -> Facts:
        values = self.unpack(numbers)
        flags = [values[place] != 0.0 for place in self.flags]
        texts = [read(txn) for read in TEXTS.values()]
        facts: Facts = self.order((*values, *texts, last_location, *flags))
        return facts


LAST_LOCATION: Final = "last_location"
"""The one text that is not the transaction's own."""
TEXTS: dict[str, Callable[[Transaction], str]] = {
    **{name: attrgetter(name) for name in ("user", "merchant", "location", "device", "txn_type")},
    "category": lambda txn: txn.category or UNKNOWN,
    "ip": lambda txn: txn.ip or UNKNOWN,
}
"""The other texts among the facts, and what reads each."""

_LAYOUTS: dict[int, _Layout] = {
    8 * sum(field.kind != "text" for field in fields): _Layout(fields)
    for fields in (USER_FIELDS[:16], USER_FIELDS, FIELDS)
}


def row(txn: Transaction, last_location: str, numbers: bytes) -> Facts:
    """What `observe_basic`, `observe_user` or `observe_merchant` gave, as a row in the order of `FIELDS`."""
    return _LAYOUTS[len(numbers)].row(txn, last_location, numbers)


def user_facts(txn: Transaction, profile: UserProfile, population: Population = ANYONE) -> Facts:
    """The facts of a transaction and of its user as he was before it, in the order of `USER_FIELDS`."""
    seen = paid(txn)
    numbers = packed.write_user_facts(_user_facts(seen, profile, profile.look(seen, population)))
    return row(txn, profile.last_location, numbers)


def merchant_facts(txn: Transaction, profile: MerchantProfile, population: Population = ANYONE) -> Facts:
    """The facts of its merchant as it was before the transaction, in the order of `MERCHANT_FIELDS`."""
    return _merchant_facts(txn.at, txn.amount, profile, profile.look(txn.at, population))


def facts(
    txn: Transaction, user: UserProfile, merchant: MerchantProfile | None = None, population: Population = ANYONE
) -> Facts:
    """All facts of a transaction, in the order of `FIELDS`; a merchant never seen is a new one."""
    return user_facts(txn, user, population) + merchant_facts(txn, merchant or MerchantProfile(), population)
