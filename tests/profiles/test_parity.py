"""The kernels against the profiles of before, event by event: every feature, with labels in any order."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from dataflow.profile import ANYONE, MerchantProfile, Population, UserProfile
from hypothesis import given, settings
from hypothesis import strategies as st

from dataflow.features import FIELDS, NUMBERS, observe_merchant, observe_user
from dataflow.feedback import LABELS, Feedback
from dataflow.profiles import columns
from dataflow.profiles.amounts import AmountPrior
from dataflow.profiles.labels import OUTCOMES
from dataflow.profiles.profiles import MerchantProfiles, UserProfiles, in_order
from dataflow.profiles.user import TRANSACTION
from dataflow.transaction import Transaction
from tests.builders import DAY, HOUR, NOON, txn
from training.history import after, read_history
from training.history import replay as replay_before
from training.replay import replay

SUMS = [
    place
    for place, name in enumerate(NUMBERS)
    if name.startswith(("amount_per_", "mean_amount_")) or name == "merchant_mean_amount"
]
"""Columns that are sums of float32, or made of some: off by 1e-6 at most."""
EXACT = [place for place in range(len(NUMBERS)) if place not in SUMS]

Event = Transaction | Feedback


def before(events: Sequence[Event], population: Population = ANYONE) -> tuple[np.ndarray, list[str], dict[str, float]]:
    """Features, last locations and outcomes of labels, by the profiles of before."""
    users: dict[str, UserProfile] = {}
    merchants: dict[str, MerchantProfile] = {}
    was = {outcome: LABELS.labels(outcome)._value.get() for outcome in OUTCOMES}
    features, locations = [], []
    for event in events:
        user = users.setdefault(event.user, UserProfile())
        if isinstance(event, Feedback):
            lessons = user.learn(event)
        else:
            payment = observe_user(event, user, population)
            merchant = merchants.setdefault(event.merchant, MerchantProfile())
            features.append(np.frombuffer(observe_merchant(payment, merchant, population)))
            locations.append(payment.last_location)
            lessons = payment.lessons
        for lesson in lessons:
            merchants.setdefault(lesson.merchant, MerchantProfile()).learn(lesson)
    outcomes = {outcome: LABELS.labels(outcome)._value.get() - was[outcome] for outcome in OUTCOMES}
    return np.array(features).reshape(-1, len(NUMBERS)), locations, outcomes


def now(
    events: Sequence[Event], cuts: Sequence[int], prior: AmountPrior
) -> tuple[np.ndarray, list[str], dict[str, int], UserProfiles]:
    """Likewise by the kernels, in batches cut at these places."""
    users, merchants = UserProfiles(prior), MerchantProfiles(prior)
    features, locations = [np.empty((0, columns.FEATURES))], []
    for begin, end in pairwise([0, *cuts, len(events)]):
        batch = events[begin:end]
        records = users.events(batch)
        made, lessons = users.observe(records)
        payments = records[records["kind"] == TRANSACTION]
        names = [event.merchant for event in batch if isinstance(event, Transaction)]
        rows = merchants.table.rows_of(names + users.texts(lessons["merchant"]))
        items = in_order(rows[: len(names)], rows[len(names) :], lessons["after"])
        merchants.observe(items, payments, lessons, made)
        features.append(made)
        locations += users.texts(payments["last_location"])
    return np.concatenate(features), locations, users.outcomes, users


def check_equal(old: np.ndarray, new: np.ndarray) -> None:
    for place in EXACT:
        np.testing.assert_array_equal(new[:, place], old[:, place], NUMBERS[place])
    for place in SUMS:
        np.testing.assert_allclose(new[:, place], old[:, place], 1e-6, 1e-9, err_msg=NUMBERS[place])


def test_columns_are_the_features_in_their_order() -> None:
    assert [getattr(columns, name.upper()) for name in NUMBERS] == list(range(columns.FEATURES))


@pytest.mark.parametrize("delay", [7 * DAY, HOUR, 0.0])
def test_every_feature_of_a_simulated_history_is_as_before_with_labels_so_late(delay: float) -> None:
    history = list(read_history(None, users=120, days=20, seed=5))
    population = Population(50.0, 0.6)
    old = [row for _, row in replay_before(history, population, after(delay))]
    parts = list(replay(history, AmountPrior(*population), after(delay), batch=777))
    new = np.concatenate([part.features for part in parts])
    assert [past for part in parts for past in part.past] == history
    fields = [field.name for field in FIELDS]
    check_equal(np.array([[row[fields.index(name)] for name in NUMBERS] for row in old], np.float64), new)
    assert [location for part in parts for location in part.last_locations] == [
        row[fields.index("last_location")] for row in old
    ]
    assert new[:, columns.CONFIRMED_FRAUDS].max() > 0
    assert new[:, columns.MERCHANT_COMPROMISED].max() > 0


def awkward(seed: int, n: int, users: int, span: float) -> list[Event]:
    """Transactions, late, repeated or under a used id; labels before and after them, sent again, changed."""
    random = np.random.default_rng(seed)
    events: list[tuple[float, Event]] = []
    for number in range(n):
        at = NOON + float(np.round(random.uniform(0, span), 6))
        place = (
            {}
            if random.random() < 0.3
            else {"latitude": random.uniform(-90, 90), "longitude": random.uniform(-180, 180)}
        )
        payment = txn(
            f"user {random.integers(users)}",
            at=at,
            amount=float(np.round(random.lognormal(3, 1.5), 2)),
            location=str(random.choice(["US", "FR", "unknown", "IN", "DE", "NO"])),
            device=str(random.choice(["phone", "unknown", "till"])),
            merchant=f"shop {random.integers(25)}",
            transaction_id=f"id {number if random.random() < 0.95 else random.integers(number + 1)}",
            **place,
        )
        came = at + (random.uniform(0, 4 * HOUR) if random.random() < 0.2 else 0.0)
        events.append((came, payment))
        if random.random() < 0.05:
            events.append((came + random.uniform(0, HOUR), payment))
        for _ in range(random.integers(0, 4)):
            told = at + float(random.choice([0.0, DAY, random.uniform(0, 40 * DAY)]))
            name = payment.transaction_id or ""
            labelled = Feedback(name, payment.user, payment.merchant, at, bool(random.random() < 0.4), told)
            events.append((came + random.normal(0, DAY), labelled))
    return [event for _, event in sorted(events, key=lambda each: each[0])]


@pytest.mark.parametrize(("users", "span"), [(2, 20 * DAY), (40, 60 * DAY), (1, 3 * HOUR)])
@pytest.mark.parametrize("seed", range(4))
def test_every_feature_and_outcome_is_as_before_with_labels_in_awkward_orders(
    seed: int, users: int, span: float
) -> None:
    events = awkward(seed, 600, users, span)
    cuts = sorted(np.random.default_rng(seed).integers(0, len(events), 9).tolist())
    old, old_locations, old_outcomes = before(events, Population(30.0, 1.0))
    new, new_locations, outcomes, _ = now(events, cuts, AmountPrior(30.0, 1.0))
    check_equal(old, new)
    assert new_locations == old_locations
    assert outcomes == old_outcomes
    assert all(outcomes[name] for name in ("waiting", "repeated", "corrected"))


def test_a_label_counts_once_however_often_it_is_sent_beyond_a_block_of_labels_too() -> None:
    payments = [txn(at=NOON + n * HOUR, transaction_id=f"{n}", merchant="Shop") for n in range(60)]
    told = [Feedback(f"{n}", "ann", "Shop", NOON + n * HOUR, True, NOON + 5 * DAY) for n in range(60)]
    events = [*payments, *told, *told, *reversed(told), txn(at=NOON + 6 * DAY, merchant="Shop")]
    new, _, outcomes, users = now(events, [100], AmountPrior())
    assert new[-1, columns.CONFIRMED_FRAUDS] == 60
    assert outcomes["repeated"] == 120
    assert users.blocks.taken == 8


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.integers(0, 200), max_size=4))
def test_into_which_batches_events_are_cut_changes_nothing(seed: int, cuts: list[int]) -> None:
    events = awkward(seed, 80, 2, 5 * DAY)
    whole = now(events, [], AmountPrior())
    cut = now(events, sorted(min(place, len(events)) for place in cuts), AmountPrior())
    np.testing.assert_array_equal(whole[0], cut[0])
    assert whole[1:3] == cut[1:3]


def test_more_than_a_ring_holds_in_an_hour_is_counted_to_the_limit_as_before() -> None:
    events = [txn(at=NOON + n, amount=float(n % 7)) for n in range(1500)]
    events += [txn(at=NOON + 1499 - n * 3) for n in range(0, 400, 3)]  # late ones among them
    events += [txn(at=NOON + 1500 + HOUR * k) for k in (0.5, 1.0, 2.0, 5.0)]
    new, _, _, users = now(events, [700], AmountPrior())
    check_equal(before(events)[0], new)
    assert new[:, columns.TXN_PER_HOUR].max() == 1024
    assert users.busy.taken == 0
