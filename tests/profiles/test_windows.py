"""Counts and sums of 24 h, 7 d and 30 d of users and merchants, against recounts at every prefix."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given

from dataflow.events.transaction import Transaction
from dataflow.profiles import windows
from tests.support.builders import DAY, HOUR, NOON
from tests.support.profile_builders import Profiles, check_windows, payment, streams

USER = ("txn_per_day", "amount_per_day", "txn_per_week", "amount_per_week", "txn_per_month", "amount_per_month")
MERCHANT = ("merchant_per_day", "merchant_per_week", "merchant_per_month", "merchant_mean_amount")


def read(values: dict[str, Any], names: Sequence[str]) -> list[float]:
    return [values[name] for name in names]


@pytest.mark.slow
@given(streams(latest=35 * DAY))
def test_they_equal_a_recount_at_every_prefix_however_late_events_are(events: list[Transaction]) -> None:
    profiles = Profiles().read_together(events)
    features = {name: profiles.features(name) for name in (*USER, *MERCHANT)}
    past: list[tuple[float, float]] = []
    newest = -math.inf
    for number, each in enumerate(events):
        newest = max(newest, each.at)
        check_windows([features[name][number] for name in USER], past, newest)
        counts, mean = [features[name][number] for name in MERCHANT[:3]], features["merchant_mean_amount"][number]
        assert counts == [features[name][number] for name in USER[::2]]
        assert mean * counts[2] == pytest.approx(features["amount_per_month"][number], rel=1e-6, abs=1e-4)
        past.append((each.at, each.amount))
    if events:
        user, merchant = profiles.users.table.rows[0], profiles.merchants.table.rows[0]
        assert user["last_at"] == merchant["last_at"] == newest
        check_windows(windows.totals(merchant, int(newest // windows.BUCKET)), past, newest)


@pytest.mark.parametrize("buckets_late", range(0, 190, 7))
@pytest.mark.parametrize("first", [0, 1, 17])
def test_an_event_counts_in_its_own_bucket_however_late_it_is(buckets_late: int, first: int) -> None:
    newest = NOON + first * 4 * HOUR
    for buckets in range(buckets_late, buckets_late + 7):
        late = newest - buckets * 4 * HOUR
        profiles = Profiles().read_together([payment(newest, 1.0), payment(late, 2.0)])
        for now in (newest, newest + 4 * HOUR, newest + 3 * DAY, newest + 20 * DAY):
            bucket = int(now // windows.BUCKET)
            for table in (profiles.users.table, profiles.merchants.table):
                check_windows(windows.totals(table.rows[0], bucket), [(newest, 1.0), (late, 2.0)], now)


def test_no_rounding_error_outlives_its_bucket() -> None:
    profiles = Profiles().read_together(
        [payment(NOON, 1e15), *(payment(NOON + n * HOUR, 0.01) for n in range(1, 60 * 24))]
    )
    values = profiles.peek(payment(NOON + 60 * 24 * HOUR))
    assert values["amount_per_day"] == pytest.approx(0.01 * values["txn_per_day"], rel=1e-6)
    assert values["merchant_mean_amount"] == pytest.approx(0.01, rel=1e-6)


def test_a_merchant_counts_beyond_what_floats_of_32_bits_can() -> None:
    profiles = Profiles().read(payment(NOON, 10.0))
    row = profiles.merchants.table.rows[0]
    for name in ("hours", "days", "five_days"):
        row[f"{name}_n"][0] = row[f"{name}_sum"][0] = 2**26  # 67 million
    row["seen"] = 2**26
    profiles.read(payment(NOON, 10.0))
    assert windows.totals(row, int(NOON // windows.BUCKET)) == (2.0**26 + 1, 2.0**26 + 10) * 3
    assert row["seen"] == 2**26 + 1
    assert profiles.last("merchant_per_day") == 2**26


def test_sums_of_absurd_amounts_stay_numbers_and_so_do_means() -> None:
    values = Profiles().read_together([payment(NOON + n, 1e308) for n in range(3)]).peek(payment(NOON + 3))
    for name in ("mean_amount_hour", "mean_amount_day", "mean_amount_week", "merchant_mean_amount"):
        assert values[name] == pytest.approx(1e15)
