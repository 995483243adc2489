"""What a user did in the hour before: against recounts at every prefix, at its edges, up to its limit."""

import random

import pytest
from hypothesis import given

from dataflow.events.transaction import Transaction
from dataflow.profiles.last_hour import BUSY_FIELDS, MAX_PER_HOUR, RING
from dataflow.profiles.user import DTYPE
from tests.support.builders import DAY, HOUR, MINUTE, NOON
from tests.support.profile_builders import Profiles, payment, streams

SINGLE = 1e-7
"""What a sum of amounts may be off by, relatively: amounts are kept as float32."""


@given(streams())
def test_it_equals_a_recount_at_every_prefix_late_events_included(events: list[Transaction]) -> None:
    profiles = Profiles().read_together(events)
    for number, each in enumerate(events):
        before = [past.amount for past in events[:number] if each.at - HOUR < past.at <= each.at]
        assert profiles.features("txn_per_hour")[number] == len(before)
        assert profiles.features("amount_per_hour")[number] == pytest.approx(sum(before), rel=SINGLE)


def test_it_is_open_at_its_beginning_and_closed_at_its_end() -> None:
    profiles = Profiles().read(payment(NOON), payment(NOON + 10))
    seconds = (-1, 0, 9, 10, 3599, 3600, 3609, 3610)
    counts = [profiles.peek(payment(NOON + s))["txn_per_hour"] for s in seconds]
    assert counts == [0, 1, 1, 2, 2, 1, 1, 0]


def test_an_event_later_than_an_hour_still_counts_in_the_hour_of_one_that_is_less_late() -> None:
    profiles = Profiles().read(payment(NOON), payment(NOON - 90 * MINUTE), payment(NOON - 2 * HOUR))
    assert profiles.peek(payment(NOON - 45 * MINUTE))["txn_per_hour"] == 1


@pytest.mark.parametrize("seed", range(3))
def test_of_a_busy_user_it_is_exact_up_to_the_limit_and_counts_as_the_limit_beyond(seed: int) -> None:
    rng, past = random.Random(seed), list[Transaction]()
    at = NOON
    for number in range(4000):
        at += 1.0 if 1500 < number < 3000 else 9.0
        past.append(payment(at - rng.choice((0, 0, 0, rng.randrange(3600))), rng.uniform(0, 100)))
    profiles = Profiles().read_cut(past, [1000, 1700, 2500])
    counts, totals = profiles.features("txn_per_hour"), profiles.features("amount_per_hour")
    for number in range(0, 4000, 7):
        now = past[number].at
        hour = [p.amount for p in past[max(0, number - 3700) : number] if now - HOUR < p.at <= now]
        if number < 1700:  # all of the last two hours fit
            assert (counts[number], totals[number]) == (len(hour), pytest.approx(sum(hour)))
        else:
            assert counts[number] <= min(len(hour), MAX_PER_HOUR)
    assert max(counts) > 900
    assert profiles.users.busy.taken == 1


def test_beyond_the_limit_the_newest_count() -> None:
    profiles = Profiles().read_together([payment(NOON + n, float(n >= 3000 - MAX_PER_HOUR)) for n in range(3000)])
    values = profiles.peek(payment(NOON + 3000))
    assert (values["txn_per_hour"], values["amount_per_hour"]) == (MAX_PER_HOUR, MAX_PER_HOUR)


def test_late_ones_of_a_user_beyond_the_limit_push_out_older_ones_only() -> None:
    events = [payment(NOON + n) for n in range(1500)]
    events += [payment(NOON + 1499 - n * 3) for n in range(0, 400, 3)]
    events += [payment(NOON + 300 + n) for n in range(0, 60, 10)]  # older than all that are kept
    events += [payment(NOON + 1500 + HOUR * hours) for hours in (0.5, 1.0, 2.0, 5.0)]
    profiles = Profiles().read_cut(events, [700])
    expected, kept = [], list[float]()
    for at in (each.at for each in events):
        expected.append(sum(at - HOUR < other <= at for other in kept))
        kept = sorted([*kept, at])[-MAX_PER_HOUR:]
    assert profiles.features("txn_per_hour") == expected
    assert max(expected) == MAX_PER_HOUR
    assert profiles.users.busy.taken == 0


def test_what_a_busy_user_takes_is_bounded_and_given_back() -> None:
    profiles = Profiles()
    for begin in range(0, 100_000, 10_000):
        profiles.users.observe(profiles.users.events([payment(NOON + n / 10) for n in range(begin, begin + 10_000)]))
        assert profiles.users.busy.taken == 1
    long_ring = sum(12 * MAX_PER_HOUR if len(field) > 2 else 4 for field in BUSY_FIELDS[:-1])
    assert DTYPE.itemsize + long_ring < 1500 + 1.2 * 16 * MAX_PER_HOUR
    profiles.read(payment(NOON + DAY))
    assert profiles.users.busy.taken == 0


def test_a_long_ring_is_given_back_as_soon_as_half_a_short_one_is_enough() -> None:
    profiles = Profiles().read_together([payment(NOON + n) for n in range(20)])
    assert profiles.users.busy.taken == 1
    late = payment(NOON + 2 * HOUR + 19 - RING // 2 - 1)  # 5 of them still lie in the two hours before it
    assert Profiles().read(*profiles.events, late).users.busy.taken == 1
    profiles.read(payment(NOON + 2 * HOUR + 19 - RING // 2))
    assert profiles.users.busy.taken == 0
    assert profiles.peek(payment(NOON + HOUR + 18.5))["txn_per_hour"] == 1
