"""Each statistic against NumPy, at every prefix of random sequences."""

import math
from typing import Any

import numpy as np
import pytest

from dataflow.profiles import amounts, excess, last_hour, names_seen, places, recent_ids, unusual_ids, user, windows
from dataflow.profiles.amounts import AmountPrior
from dataflow.profiles.profiles import UserProfiles
from tests.support.builders import DAY, HOUR, NOON


@pytest.fixture
def users() -> UserProfiles:
    profiles = UserProfiles()
    for table in (profiles.busy, profiles.unusual, profiles.labelled, profiles.blocks):
        for _ in range(2):
            table.make_room()
    return profiles


@pytest.fixture
def p(users: UserProfiles) -> Any:
    row = users.table.rows_of(["ann"])[0]
    return users.table.rows[row]


SEEDS = pytest.mark.parametrize("seed", range(5))


@SEEDS
def test_windows_count_what_a_recount_counts(p: Any, seed: int) -> None:
    random = np.random.default_rng(seed)
    at = NOON + np.cumsum(random.choice([0.0, 600.0, HOUR, 5 * HOUR, 3 * DAY, 20 * DAY], 120))
    at -= random.choice([0.0, HOUR, 2 * DAY, 9 * DAY], 120, p=[0.7, 0.1, 0.1, 0.1])
    paid = np.round(random.lognormal(3, 1, 120), 2)
    buckets = (at // windows.BUCKET).astype(int)
    for n in range(120):
        windows.update(p, buckets[n], 1, paid[n], user.MOST)
        now = buckets[: n + 1].max() + int(random.integers(0, 3) * 7)
        totals = windows.totals(p, now)
        for window, (width, size) in enumerate(((1, 6), (6, 7), (30, 6))):
            inside = now // width - buckets[: n + 1] // width < size
            assert totals[2 * window] == inside.sum()
            assert totals[2 * window + 1] == pytest.approx(paid[: n + 1][inside].sum(), rel=1e-6)


def test_a_bucket_counts_to_its_limit_and_takes_nothing_back_from_nothing(p: Any) -> None:
    windows.update(p, 100, 1, 1.0, 2)
    windows.update(p, 100, 1, 1.0, 2)
    windows.update(p, 100, 1, 1.0, 2)
    assert windows.totals(p, 100)[0] == 2
    windows.update(p, 99, -1, -1.0, 2)
    assert windows.totals(p, 100)[:2] == (2, 3)


@SEEDS
def test_the_last_hour_is_what_a_recount_counts_for_all_that_is_not_too_late(
    users: UserProfiles, p: Any, seed: int
) -> None:
    random = np.random.default_rng(seed)
    at = NOON + np.cumsum(random.choice([0.0, 5.0, 60.0, 1800.0, 3 * HOUR], 400, p=[0.1, 0.5, 0.3, 0.08, 0.02]))
    at -= random.choice([0.0, 100.0, 3599.0, 7000.0], 400, p=[0.7, 0.1, 0.1, 0.1])
    paid = np.round(random.lognormal(3, 1, 400), 2)
    last_at, busy = -math.inf, 0
    for n in range(400):
        last_hour.update(p, users.busy.rows, at[n], paid[n], last_at)
        last_at = max(last_at, at[n])
        busy += int(p["busy"]) > 0
        for asked in (last_at, last_at - 3599.0, last_at + 1000.0, last_at + HOUR):
            inside = (at[: n + 1] > asked - HOUR) & (at[: n + 1] <= asked)
            count, total = last_hour.read(p, users.busy.rows, asked)
            assert count == inside.sum()
            assert total == pytest.approx(paid[: n + 1][inside].sum(), rel=1e-7)
    assert busy > 0
    last_hour.update(p, users.busy.rows, last_at + DAY, 1.0, last_at)
    assert users.busy.taken == 0


@SEEDS
def test_mean_and_spread_are_those_of_all_amounts_while_none_has_faded(p: Any, seed: int) -> None:
    random = np.random.default_rng(seed)
    paid = random.uniform(40.0, 60.0, 150)
    for n in range(150):
        usual, spread = amounts.read(p, AmountPrior(0.0, 0.0))
        if n > 1:
            assert usual == pytest.approx(paid[:n].mean(), rel=1e-6)
            squares = ((paid[:n] - paid[:n].mean()) ** 2).sum()
            assert spread == pytest.approx(math.sqrt(squares / (3 + n) * (1 + 1 / (n + 1))), rel=1e-5)
        amounts.update(p, paid[n], 0.0, 0.0)  # nothing usual: nothing is clipped
        amounts.update_largest(p, paid[n])
        assert amounts.read_largest(p, 120.0) == pytest.approx(120.0 / paid[: n + 1].max(), rel=1e-6)


def test_a_short_history_is_shrunk_and_an_extreme_amount_moves_the_mean_as_three_spreads_do(p: Any) -> None:
    prior = AmountPrior(100.0, 0.5)
    assert amounts.read(p, prior) == (100.0, math.sqrt(50.0 * 50.0 * 2.0))
    amounts.update(p, 1e9, 100.0, 50.0)
    assert p["mean"] == 250.0
    assert amounts.read(p, prior)[0] == 175.0


@SEEDS
def test_excess_fades_from_when_it_was(p: Any, seed: int) -> None:
    random = np.random.default_rng(seed)
    at = NOON + np.cumsum(random.choice([0.0, HOUR, DAY], 60)) - random.choice([0.0, 2 * DAY], 60, p=[0.8, 0.2])
    z = random.uniform(0, 8, 60)
    over = np.clip(z - 2, 0, 4)
    last_at = -math.inf
    for n in range(60):
        assert excess.excess(z[n]) == over[n]
        excess.update(p, over[n], at[n], last_at)
        last_at = max(last_at, at[n])
        ago = (last_at + HOUR - at[: n + 1]) / DAY
        day, fortnight = excess.read(p, last_at + HOUR, last_at)
        assert day == pytest.approx((over[: n + 1] * np.exp(-ago)).sum(), rel=1e-5)
        assert fortnight == pytest.approx((over[: n + 1] * np.exp(-ago / 14)).sum(), rel=1e-5)


def wrapped(longitude: float) -> float:
    return (longitude + 180.0) % 360.0 - 180.0


@SEEDS
def test_places_have_the_mean_of_near_ones_for_a_centre(p: Any, seed: int) -> None:
    random = np.random.default_rng(seed)
    latitude, longitude = random.normal(50.0, 0.02, 40), random.normal(180.01, 0.02, 40)
    for n in range(40):
        km, _, hop, speed = places.read(p, latitude[n], wrapped(longitude[n]), 2.0)
        if n:
            a, b = np.radians([latitude[n - 1], latitude[n]])
            x = np.sin((b - a) / 2) ** 2
            x += np.cos(a) * np.cos(b) * np.sin(np.radians(longitude[n] - longitude[n - 1]) / 2) ** 2
            assert hop == pytest.approx(2 * 6371.0 * np.arcsin(np.sqrt(x)), abs=0.01)
            assert speed == hop / 2.0
        places.update(p, latitude[n], wrapped(longitude[n]), km, False)
        assert p["home_latitude"] == pytest.approx(latitude[: n + 1].mean(), abs=1e-4)
        assert p["home_longitude"] == pytest.approx(wrapped(longitude[: n + 1].mean()), abs=1e-3)
    places.update(p, 0.0, 0.0, 6000.0, True)
    assert (p["latitude"], p["longitude"]) == (np.float32(latitude[-1]), np.float32(wrapped(longitude[-1])))


@SEEDS
def test_names_are_known_while_they_are_among_the_last_new_ones(p: Any, seed: int) -> None:
    kept: list[int] = []
    for name in np.random.default_rng(seed).integers(1, 30, 200).tolist():
        assert names_seen.read(p["merchants"], name) == (name in kept)
        if name not in kept:
            names_seen.update(p["merchants"], name)
            kept = [*kept, name][-names_seen.MERCHANTS :]
        assert names_seen.any_known(p["merchants"])
        assert not names_seen.any_known(p["devices"])


@SEEDS
def test_a_transaction_is_a_repeat_or_has_a_used_id_while_it_is_among_the_last(p: Any, seed: int) -> None:
    random = np.random.default_rng(seed)
    kept: list[tuple[int, int]] = []
    for _ in range(300):
        this = (int(random.integers(1, 25)), int(random.integers(1, 3)))
        word = this[0] << recent_ids.PAYMENT_BITS | this[1]
        used = this[0] in [each[0] for each in kept]
        wanted = recent_ids.REPEAT if this in kept else recent_ids.REUSED if used else recent_ids.NEW
        assert recent_ids.read(p, word) == wanted
        assert recent_ids.has_id(p, word) == used
        if wanted != recent_ids.REPEAT:
            recent_ids.update(p, word)
            kept = [*kept, this][-recent_ids.RECENT :]


@SEEDS
def test_unusual_ids_are_known_while_they_are_among_the_last(users: UserProfiles, p: Any, seed: int) -> None:
    kept: list[int] = []
    for name in np.random.default_rng(seed).integers(1, 90, 300).tolist():
        assert unusual_ids.read(p, users.unusual.rows, name) == (name in kept)
        unusual_ids.update(p, users.unusual.rows, name)
        kept = [*kept, name][-unusual_ids.UNUSUAL :]
    unusual_ids.release(p, users.unusual.rows)
    assert users.unusual.taken == 0
