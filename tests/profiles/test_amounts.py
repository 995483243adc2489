"""What amounts are usual for a user and at a merchant, and how far they exceeded that: by the features."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataflow.events.transaction import Transaction
from dataflow.profiles.amounts import CLIP, MAX_AMOUNT, MEMORY, AmountPrior
from dataflow.profiles.excess import excess
from tests.support.builders import DAY, HOUR, MINUTE, NOON
from tests.support.profile_builders import Profiles, payment, streams


def spent(*paid: float) -> Profiles:
    """A user who spent so much, a second apart."""
    return Profiles().read_together([payment(NOON + n, amount) for n, amount in enumerate(paid)])


def usual(profiles: Profiles) -> tuple[float, float]:
    """Mean and spread that the user's next amount is expected to have."""
    values = profiles.peek(payment(NOON + DAY, 1000.0))
    mean: float = values["usual_amount"]
    return mean, (1000.0 - mean) / values["amount_z"]


steady = st.lists(st.floats(30, 50), min_size=1, max_size=60)  # no amount is clipped: 50 < 30 + 3 * 0.5 * 30


@given(steady, st.sampled_from([0.0, 40.0]))
def test_mean_and_spread_equal_numpy_at_every_prefix(paid: list[float], prior: float) -> None:
    profiles = Profiles(AmountPrior(prior, 0.5))
    profiles.read_together([payment(NOON + n * MINUTE, amount) for n, amount in enumerate(paid)])
    features = {
        name: profiles.features(name)
        for name in ("usual_amount", "amount_z", "amount_ratio", "merchant_amount_z", "merchant_amount_ratio")
    }
    for n in range(len(paid)):
        mean = np.mean(paid[:n]) if n else 0.0
        if prior:
            mean = (prior + n * mean) / (n + 1)
        variance = (3 * (0.5 * mean) ** 2 + (n * np.var(paid[:n]) if n else 0.0)) / (3 + n) * (1 + 1 / (n + 1))
        assert features["usual_amount"][n] == pytest.approx(mean, rel=1e-4)
        surprise = ((paid[n] - mean) / math.sqrt(variance), paid[n] / mean) if variance else (0.0, 1.0)
        for whose in ("", "merchant_"):
            found = features[f"{whose}amount_z"][n], features[f"{whose}amount_ratio"][n]
            assert found == (pytest.approx(surprise, rel=1e-3, abs=1e-4) if variance else surprise)


@pytest.mark.parametrize("spreads", [CLIP + 1, 1e9])
def test_an_extreme_amount_moves_the_mean_no_further_than_its_clip(spreads: float) -> None:
    profiles = spent(*(40.0 + n % 3 for n in range(50)))
    mean, spread = usual(profiles)
    profiles.read(payment(NOON + 60, mean + spreads * spread))
    assert usual(profiles)[0] == pytest.approx(mean + CLIP * spread / 51, rel=1e-5)


def test_beyond_its_memory_a_mean_forgets_as_much_as_it_learns() -> None:
    profiles = spent(*[40.0] * int(2 * MEMORY)).read(payment(NOON + 1000, 41.0))
    assert usual(profiles)[0] == pytest.approx(40.0 + 1.0 / MEMORY, abs=1e-5)


def test_mean_and_spread_follow_a_user_whose_ways_change() -> None:
    mean, spread = usual(spent(*[40.0] * 500, *[80.0] * int(5 * MEMORY)))
    assert mean == pytest.approx(80.0, rel=0.02)
    assert spread < 0.15 * mean


@given(streams(latest=3 * DAY))
@settings(max_examples=50)
def test_what_exceeded_the_usual_fades_as_the_sum_of_what_each_amount_left(events: list[Transaction]) -> None:
    profiles = Profiles().read_together(events)
    z, in_day = profiles.features("amount_z"), profiles.features("unusual_day")
    in_fortnight, at_merchant = profiles.features("unusual_fortnight"), profiles.features("merchant_unusual")
    left, newest = list[tuple[float, float]](), -math.inf
    for n, each in enumerate(events):
        now = max(newest, each.at)
        assert in_day[n] == pytest.approx(sum(e * math.exp((t - now) / DAY) for t, e in left), rel=1e-4, abs=1e-6)
        expected = sum(e * math.exp((t - now) / (14 * DAY)) for t, e in left)
        assert in_fortnight[n] == pytest.approx(expected, rel=1e-4, abs=1e-6)
        assert at_merchant[n] == pytest.approx(expected, rel=1e-4, abs=1e-6)
        left.append((each.at, excess(z[n])))
        newest = now


@pytest.mark.parametrize("amount", [0.0, 5e-324, 1e-30, MAX_AMOUNT, 1e300, 1.7e308])
def test_no_amount_breaks_a_profile(amount: float) -> None:
    profiles = Profiles().read_together([payment(NOON + n * HOUR, amount) for n in range(400)])
    for table in (profiles.users.table, profiles.merchants.table):
        row = table.rows[0]
        assert all(np.isfinite(row[field]).all() for field in row.dtype.names)
    values = profiles.read(payment(NOON + 401 * HOUR, 10.0)).peek(payment(NOON + 402 * HOUR))
    assert all(math.isfinite(value) for name, value in values.items() if name != "last_location")


@pytest.mark.parametrize("at", [-62_135_596_800.0, -1.0, 0.0, 253_402_300_799.0])
def test_no_time_that_a_datetime_can_hold_breaks_a_profile(at: float) -> None:
    profiles = Profiles().read(payment(at), payment(at))
    windows = [
        name for name in profiles.last_features() if name.endswith(("per_hour", "per_day", "per_week", "per_month"))
    ]
    assert [profiles.features(name)[0] for name in windows] == [0.0] * 11
    assert [profiles.last(name) for name in windows] == [25.0 if "amount" in name else 1.0 for name in windows]
