"""The profiles against plain recounts of everything that came before, at every prefix."""

import copy
import math
import pickle
import random
import subprocess
import sys
from collections.abc import Iterable
from struct import Struct
from typing import Any

import msgspec
import numpy as np
import pytest
from dataflow.enriched import Replaced
from dataflow.profile import (
    CLIP,
    EARTH_KM,
    LABEL_BYTES,
    LABEL_WAIT,
    LABELLED,
    LATE,
    LESSON_BYTES,
    LESSONS,
    MAX_AMOUNT,
    MAX_PER_HOUR,
    MEMORY,
    NEVER,
    RECENT,
    RUN_GAP,
    RUN_LIFE,
    RUN_OVER,
    BasicProfile,
    MerchantProfile,
    Population,
    UserProfile,
    excess,
    fingerprint,
    kilometres,
    paid,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from dataflow.transaction import Transaction
from tests.builders import DAY, HOUR, MINUTE, NOON, label, lesson
from tests.builders import txn as parsed

settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")

SINGLE = 1e-6  # what sums in floats of 32 bits may be off by, relatively, when hundreds are added up
TYPICAL = parsed()
_names = iter(range(10**9))


def txn(at: float = NOON, amount: float = 25.0, name: str | None = None, **others: Any) -> Transaction:
    """A transaction with a name of its own; without a detour over JSON, as these tests make very many."""
    name = name or f"n{next(_names)}"
    return msgspec.structs.replace(TYPICAL, at=at, amount=amount, transaction_id=name, **others)


def fed(events: Iterable[Transaction]) -> UserProfile:
    profile = UserProfile()
    for each in events:
        profile.update(each)
    return profile


def size(profile: UserProfile | MerchantProfile) -> int:
    """Bytes in memory of the object and of what it holds, as if it shared nothing."""
    kinds = type(profile).__mro__[:-1]
    names = {name for kind in kinds for name in getattr(kind, "__slots__", None) or kind.__mypyc_attrs__}
    held = (getattr(profile, name) for name in names)
    return sys.getsizeof(profile) + sum(sys.getsizeof(each) for each in held if each is not None)


# Gaps in whole seconds, so that the edges of windows and buckets are hit, not just passed near.
gaps = st.sampled_from([0, 0, 1, 59, 1800, 3599, 3600, 3601, 7199, 7200, 7201]) | st.integers(0, 40 * 86_400)
amounts = st.floats(0, 5000).map(lambda amount: round(amount, 2))


@st.composite
def streams(draw: st.DrawFn, latest: float = LATE) -> list[Transaction]:
    """Transactions of one user, some of them late by up to `latest` seconds."""
    at, events = NOON + draw(st.integers(0, 6 * 86_400)), []
    for gap, late, amount in draw(st.lists(st.tuples(gaps, st.integers(0, int(latest)), amounts), max_size=40)):
        at += gap
        events.append(txn(at - late * draw(st.sampled_from([0, 0, 1])), amount))
    return events


@given(streams())
def test_the_hour_equals_a_recount_at_every_prefix_late_events_included(events: list[Transaction]) -> None:
    profile = UserProfile()
    for number, each in enumerate(events):
        before = [past.amount for past in events[:number] if each.at - HOUR < past.at <= each.at]
        assert profile.per_hour(each.at) == len(before)
        assert profile.in_hour(each.at) == (len(before), pytest.approx(sum(before), rel=1e-12))
        profile.update(each)


def test_the_hour_is_open_at_its_beginning_and_closed_at_its_end() -> None:
    profile = fed([txn(NOON), txn(NOON + 10)])
    assert [profile.per_hour(NOON + s) for s in (-1, 0, 9, 10, 3599, 3600, 3609, 3610)] == [0, 1, 1, 2, 2, 1, 1, 0]


def test_an_event_later_than_that_still_counts_in_the_hour_of_one_that_is_less_late() -> None:
    profile = fed([txn(NOON), txn(NOON - 90 * MINUTE), txn(NOON - 2 * HOUR)])
    assert profile.per_hour(NOON - 45 * MINUTE) == 1


@pytest.mark.parametrize("seed", range(3))
def test_the_hour_of_a_busy_user_is_exact_up_to_its_limit_and_counts_as_the_limit_beyond(seed: int) -> None:
    rng, profile, past = random.Random(seed), UserProfile(), list[Transaction]()
    at = NOON
    for number in range(4000):
        at += 1.0 if 1500 < number < 3000 else 9.0
        each = txn(at - rng.choice((0, 0, 0, rng.randrange(3600))), rng.uniform(0, 100))
        if number % 7 == 0:
            hour = [p.amount for p in past[-3700:] if each.at - HOUR < p.at <= each.at]
            count, total = profile.in_hour(each.at)
            if number < 1700:  # all of the last two hours fit
                assert (count, total) == (len(hour), pytest.approx(sum(hour)))
            else:
                assert count <= min(len(hour), MAX_PER_HOUR)
        profile.update(each)
        past.append(each)
    assert profile.hour is not None
    assert len(profile.hour) <= 2 * MAX_PER_HOUR
    last = fed(txn(NOON + n, 1.0) for n in range(3000))
    assert last.in_hour(NOON + 3000) == (MAX_PER_HOUR, MAX_PER_HOUR)


def check_windows(found: Any, past: list[tuple[float, float]], newest: float) -> None:
    """Counts and sums of 24 h, 7 d, 30 d against (time, amount) of all that came."""
    for i, (width, buckets) in enumerate(((4 * HOUR, 6), (DAY, 7), (5 * DAY, 6))):
        live = [amount for at, amount in past if at // width > newest // width - buckets]
        assert found[2 * i] == len(live)
        assert found[2 * i + 1] == pytest.approx(sum(live), rel=SINGLE, abs=1e-4)
        whole, least = newest - buckets * width, newest - (buckets - 1) * width  # what the facts' docs promise
        assert sum(at > least for at, _ in past) <= found[2 * i] <= sum(at > whole for at, _ in past)


@given(streams(latest=35 * DAY))
def test_windows_equal_a_recount_at_every_prefix_however_late_events_are(events: list[Transaction]) -> None:
    user, merchant = UserProfile(), MerchantProfile()
    past: list[tuple[float, float]] = []
    newest = -math.inf
    for each in events:
        newest = max(newest, each.at)
        check_windows(user.totals(each.at), past, newest)
        check_windows(merchant.totals(each.at), past, newest)
        user.update(each)
        merchant.update(each, 0.0)
        past.append((each.at, each.amount))
        assert user.last_at == merchant.last_at == newest


@pytest.mark.parametrize("buckets_late", range(0, 190, 7))
@pytest.mark.parametrize("first", [0, 1, 17])
def test_an_event_counts_in_its_own_bucket_however_late_it_is(buckets_late: int, first: int) -> None:
    newest = NOON + first * 4 * HOUR
    for buckets in range(buckets_late, buckets_late + 7):
        late = newest - buckets * 4 * HOUR
        profile = fed([txn(newest, 1.0), txn(late, 2.0)])
        for now in (newest, newest + 4 * HOUR, newest + 3 * DAY, newest + 20 * DAY):
            check_windows(profile.totals(now), [(newest, 1.0), (late, 2.0)], now)


def test_no_rounding_error_outlives_its_bucket() -> None:
    profile = fed([txn(NOON, 1e15), *(txn(NOON + n * HOUR, 0.01) for n in range(1, 60 * 24))])
    count, total = profile.totals(NOON + 60 * 24 * HOUR)[:2]
    assert total == pytest.approx(0.01 * count, rel=SINGLE)


def test_a_merchant_counts_beyond_what_32_bits_can() -> None:
    merchant = MerchantProfile()
    merchant.update(txn(NOON, 10.0), 0.0)
    own, numbers, _ = merchant.read(NOON)
    merchant.row = Struct("<17d").pack(*own, numbers[0], *(2.0**26 for _ in numbers[1:]))  # 67 million
    merchant.update(txn(NOON, 10.0), 0.0)
    assert merchant.totals(NOON) == (2.0**26 + 1, 2.0**26 + 10) * 3


steady = st.lists(st.floats(30, 50), min_size=1, max_size=60)  # no amount is clipped: 50 < 30 + 3 * 0.5 * 30


@given(steady, st.sampled_from([0.0, 40.0]))
def test_mean_and_spread_equal_numpy_at_every_prefix(paid: list[float], usual: float) -> None:
    profile, merchant, population = UserProfile(), MerchantProfile(), Population(usual, 0.5)
    for n in range(len(paid)):
        mean = np.mean(paid[:n]) if n else 0.0
        if usual:
            mean = (usual + n * mean) / (n + 1)
        variance = (3 * (0.5 * mean) ** 2 + (n * np.var(paid[:n]) if n else 0.0)) / (3 + n) * (1 + 1 / (n + 1))
        assert profile.typical(population) == pytest.approx((mean, math.sqrt(variance)), rel=1e-4)
        if variance:
            surprise = pytest.approx(((paid[n] - mean) / math.sqrt(variance), paid[n] / mean), rel=1e-3, abs=1e-4)
            assert profile.surprise(paid[n], population) == surprise
            assert merchant.surprise(paid[n], population) == surprise
        else:
            assert profile.surprise(paid[n], population) == merchant.surprise(paid[n], population) == (0.0, 1.0)
        profile.update(txn(NOON + n * MINUTE, paid[n]), population)
        merchant.update(txn(NOON + n * MINUTE, paid[n]), 0.0, population)


@pytest.mark.parametrize("spreads", [CLIP + 1, 1e9])
def test_an_extreme_amount_moves_the_mean_no_further_than_its_clip(spreads: float) -> None:
    profile = fed(txn(NOON + n, 40.0 + n % 3) for n in range(50))
    mean, spread = profile.typical()
    profile.update(txn(NOON + 60, mean + spreads * spread))
    assert profile.typical()[0] == pytest.approx(mean + CLIP * spread / 51, rel=1e-5)


def test_beyond_its_memory_a_mean_forgets_as_much_as_it_learns() -> None:
    profile = fed(txn(NOON + n, 40.0) for n in range(int(2 * MEMORY)))
    profile.update(txn(NOON + 1000, 41.0))
    assert profile.typical()[0] == pytest.approx(40.0 + 1.0 / MEMORY, abs=1e-5)


def test_mean_and_spread_follow_a_user_whose_ways_change() -> None:
    profile = fed(txn(NOON + n, amount) for n, amount in enumerate([40.0] * 500 + [80.0] * int(5 * MEMORY)))
    mean, spread = profile.typical()
    assert mean == pytest.approx(80.0, rel=0.02)
    assert spread < 0.15 * mean


@given(streams(latest=3 * DAY))
@settings(max_examples=50)
def test_excess_fades_as_the_sum_of_what_each_amount_left(events: list[Transaction]) -> None:
    profile, left, newest = UserProfile(), list[tuple[float, float]](), -math.inf
    for each in events:
        z, _ = profile.surprise(each.amount)
        profile.update(each)
        left.append((each.at, excess(z)))
        newest = max(newest, each.at)
        day, fortnight = profile.read(newest)[0][5:7]
        assert day == pytest.approx(sum(e * math.exp((t - newest) / DAY) for t, e in left), rel=1e-4, abs=1e-6)
        expected = sum(e * math.exp((t - newest) / (14 * DAY)) for t, e in left)
        assert fortnight == pytest.approx(expected, rel=1e-4, abs=1e-6)


# Places.

latitudes, longitudes = st.floats(-90, 90), st.floats(-180, 180)


@given(latitudes, longitudes, latitudes, longitudes)
@example(90.0, 0.0, -90.0, 0.0)
@example(0.0, -180.0, 0.0, 180.0)
@example(0.0, 0.0, 0.0, 180.0)
def test_kilometres_equal_the_angle_between_vectors(a: float, b: float, c: float, d: float) -> None:
    def on_sphere(lat: float, lon: float) -> Any:
        lat, lon = np.radians(lat), np.radians(lon)
        return np.array([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)])

    x, y = on_sphere(a, b), on_sphere(c, d)
    angle = math.atan2(np.linalg.norm(np.cross(x, y)), float(x @ y))
    assert kilometres(a, b, c, d) == pytest.approx(EARTH_KM * angle, rel=1e-6, abs=1e-3)
    assert 0.0 <= kilometres(a, b, c, d) <= math.pi * EARTH_KM + 1e-6


def moved(profile: UserProfile, lat: float, lon: float, at: float) -> tuple[float, float, float, float]:
    """Kilometres from the usual centre, those in what is usual, kilometres and km/h since the last."""
    km = profile.from_centre(lat, lon)
    return km, *profile.moved(lat, lon, at, km)


def at_place(lat: float, lon: float, at: float = NOON) -> Transaction:
    return txn(at, latitude=lat, longitude=lon)


@given(st.lists(st.tuples(st.floats(48.05, 48.1), st.floats(11.5, 11.6)), min_size=1, max_size=30))
def test_the_centre_of_a_city_is_the_mean_of_its_places(places: list[tuple[float, float]]) -> None:
    profile = UserProfile()
    for n, (lat, lon) in enumerate(places):
        if n:
            north, east = np.mean(places[:n], axis=0)
            km, _, hop, speed = moved(profile, lat, lon, NOON + n * HOUR)
            assert km == pytest.approx(kilometres(float(north), float(east), lat, lon), abs=0.01)
            assert hop == pytest.approx(kilometres(*places[n - 1], lat, lon), abs=0.01)
            assert speed == pytest.approx(hop)
        else:
            assert moved(profile, lat, lon, NOON) == (0.0, 0.0, 0.0, 0.0)
        profile.update(at_place(lat, lon, NOON + n * HOUR))


def test_across_the_date_line_is_near() -> None:
    profile = UserProfile()
    for n in range(40):
        lon = 179.95 if n % 2 else -179.95
        if n:
            assert moved(profile, -18.0, lon, NOON + n * HOUR)[0] < 12
        profile.update(at_place(-18.0, lon, NOON + n * HOUR))


def test_one_far_journey_does_not_move_the_centre_far() -> None:
    profile = fed(at_place(48.0, 11.5, NOON + n * HOUR) for n in range(20))
    km, ratio, hop, speed = moved(profile, -33.9, 151.2, NOON + 20 * HOUR)
    assert km == hop == pytest.approx(16_300, rel=0.01)
    assert speed == pytest.approx(hop)
    assert ratio > 1000
    profile.update(at_place(-33.9, 151.2, NOON + 20 * HOUR))
    assert moved(profile, 48.0, 11.5, NOON + 40 * HOUR)[0] < 5


def test_within_a_minute_speed_is_reckoned_over_a_minute() -> None:
    _, _, hop, speed = moved(fed([at_place(48.0, 11.5)]), 49.0, 11.5, NOON + 1)
    assert speed == pytest.approx(60 * hop)


@given(st.lists(st.tuples(latitudes, longitudes, st.booleans()), max_size=30))
@example([(90.0, 0.0, False), (-90.0, 180.0, False), (90.0, -180.0, True), (-90.0, 0.0, False)] * 5)
def test_wherever_a_user_goes_distances_are_finite_and_the_centre_stays_on_earth(
    places: list[tuple[float, float, bool]],
) -> None:
    profile = UserProfile()
    for n, (lat, lon, late) in enumerate(places):
        found = moved(profile, lat, lon, NOON + n)
        assert all(math.isfinite(each) and each >= 0.0 for each in found)
        profile.update(at_place(lat, lon, NOON + n - 5.0 * late))
        _, _, north, east, _, roam = np.frombuffer(profile.place, "<f4")
        assert -90 <= north <= 90
        assert -180 <= east <= 180
        assert roam >= 0


# Repeats, lateness, labels.


@given(streams(latest=DAY), st.data())
def test_a_repeat_changes_nothing_whatever_else_it_says(events: list[Transaction], data: st.DataObject) -> None:
    profile = fed(events)
    for each in events[-RECENT:]:
        before = pickle.dumps(profile)
        place = data.draw(st.sampled_from(["US", "IN"]))
        assert not profile.update(msgspec.structs.replace(each, location=place, device="another", txn_type="refund"))
        assert pickle.dumps(profile) == before


@pytest.mark.parametrize("other", [{"at": NOON + 1}, {"amount": 25.01}, {"merchant": "another"}])
@pytest.mark.parametrize("kind", [UserProfile, BasicProfile])
def test_an_id_with_another_amount_merchant_or_time_is_no_repeat(kind: Any, other: dict[str, Any]) -> None:
    profile = kind()
    assert profile.update(txn(name="a"))
    assert profile.update(txn(**{"name": "a", **other}))
    assert not profile.update(txn(name="a"))
    assert not profile.update(txn(**{"name": "a", **other}))
    assert profile.per_hour(NOON + 1) == 2


def test_a_repeat_dated_ahead_is_one_though_it_counts_at_another_time() -> None:
    profile = fed([msgspec.structs.replace(txn(NOON, name="a"), ahead_at=NOON + DAY)])
    assert not profile.update(msgspec.structs.replace(txn(NOON + MINUTE, name="a"), ahead_at=NOON + DAY))
    assert profile.update(msgspec.structs.replace(txn(NOON + MINUTE, name="a"), ahead_at=NOON + DAY + 1))


def test_a_repeat_after_more_than_are_remembered_counts_again() -> None:
    profile = fed([txn(name="first"), *(txn(NOON + n) for n in range(RECENT))])
    assert profile.update(txn(name="first"))


def test_names_that_differ_in_one_byte_are_not_repeats() -> None:
    profile = UserProfile()
    for n in range(2000):
        assert profile.update(txn(NOON + n, name=f"a{n:04}"))
        assert profile.update(txn(NOON + n, name=f"b{n:04}"))


def test_names_of_one_crc_are_not_repeats() -> None:
    assert fingerprint("plumless") == fingerprint("buckeroo")
    assert fed([txn(name="plumless")]).update(txn(name="buckeroo"))


def test_a_late_event_counts_and_moves_nothing_back() -> None:
    profile = fed([txn(NOON, location="US", latitude=48.0, longitude=11.5)])
    profile.update(txn(NOON - 10 * MINUTE, location="FR", latitude=40.0, longitude=0.0))
    assert (profile.last_at, profile.last_location) == (NOON, "US")
    assert moved(profile, 48.0, 11.5, NOON + HOUR)[2] == pytest.approx(0.0, abs=1e-3)
    assert profile.per_hour(NOON) == profile.totals(NOON)[0] == 2


def test_a_label_counts_once_however_often_it_is_sent() -> None:
    profile = fed(txn(NOON + n, name=f"t{n}") for n in range(LABELLED))
    labels = [label(f"t{n}", at=NOON + n) for n in range(LABELLED)]
    assert all(len(profile.learn(each)) == 1 for each in labels)
    before = pickle.dumps(profile)
    assert not any(profile.learn(each) for each in labels)
    assert pickle.dumps(profile) == before
    assert profile.confirmed(NOON)[0] == LABELLED


def test_what_labels_counted_stays_when_there_are_more_than_are_remembered() -> None:
    profile = fed(txn(NOON + n * HOUR, name=f"t{n}") for n in range(3 * LABELLED))
    order = list(range(3 * LABELLED))
    random.Random(1).shuffle(order)
    for n in order:
        profile.learn(label(f"t{n}", at=NOON + n * HOUR, fraud=n % 3 > 0))
    frauds, since, *_ = profile.confirmed(NOON + (3 * LABELLED - 1) * HOUR + DAY)
    assert (frauds, since) == (2 * LABELLED, pytest.approx(1.0, abs=0.01))
    assert len(profile.labels) == LABELLED * LABEL_BYTES


def test_a_contradiction_replaces_the_label() -> None:
    profile = fed([txn(NOON, name="a"), txn(NOON + DAY, name="b")])
    profile.learn(label("a"))
    profile.learn(label("b", at=NOON + DAY))
    (taught,) = profile.learn(label("b", at=NOON + DAY, after=3 * DAY, fraud=False))
    assert (taught.fraud, taught.labelled_at) == (False, NOON + 4 * DAY)
    assert taught.before == Replaced(NOON + 2 * DAY, fraud=True, explained=False)
    assert profile.confirmed(NOON + 2 * DAY) == (1.0, pytest.approx(2.0, abs=0.01), 0.0, NEVER)
    profile.learn(label("a", after=2 * DAY, fraud=False))
    assert profile.confirmed(NOON + 2 * DAY) == (0.0, NEVER, 0.0, NEVER)
    profile.learn(label("a", after=3 * DAY))
    assert profile.confirmed(NOON + 2 * DAY)[0] == 1.0


def test_a_label_older_than_the_one_that_counts_changes_nothing() -> None:
    profile = fed([txn(NOON, name="a")])
    profile.learn(label("a", after=DAY))
    profile.learn(label("a", after=2 * DAY, fraud=False))
    before = pickle.dumps(profile)
    assert profile.learn(label("a", after=DAY)) == ()
    assert pickle.dumps(profile) == before


def test_a_contradiction_speaks_of_the_merchant_and_time_of_the_first_label() -> None:
    profile = fed([txn(NOON, name="a")])
    profile.learn(label("a", merchant="A"))
    (taught,) = profile.learn(label("a", at=NOON - DAY, after=9 * DAY, merchant="B", fraud=False))
    assert (taught.merchant, taught.at) == ("A", NOON)


# Labels that come before their transactions.


def counted(outcome: str) -> float:
    return REGISTRY.get_sample_value("redflag_labels_total", {"outcome": outcome}) or 0.0


def take_in(profile: UserProfile, each: Transaction) -> Any:
    seen = paid(each)
    return profile.take_in(seen, profile.look(seen))


def test_a_label_waits_for_its_transaction_and_is_explained_by_the_profile_before_it() -> None:
    waited = counted("waiting")
    profile = fed(txn(NOON + n * HOUR, 20.0 + n % 5) for n in range(20))
    assert profile.learn(label("large", at=NOON + DAY)) == ()
    assert counted("waiting") == waited + 1
    assert profile.confirmed(NOON + DAY)[0] == 0.0
    assert take_in(profile, txn(NOON + 21 * HOUR)) == ()  # another one
    (taught,) = take_in(profile, txn(NOON + DAY, 500.0, "large"))
    assert (taught.merchant, taught.at, taught.fraud, taught.explained) == ("Amazon", NOON + DAY, True, True)
    assert profile.confirmed(NOON + DAY) == (1.0, 0.0, 1.0, 0.0)
    assert take_in(profile, txn(NOON + DAY, 500.0, "large")) is None
    assert profile.learn(label("large", at=NOON + DAY)) == ()


def test_a_label_whose_transaction_is_overtaken_counts_without_it_and_is_mended_should_it_come_late() -> None:
    expired = counted("expired")
    profile = fed(txn(NOON + n * HOUR, 20.0 + n % 5) for n in range(20))
    profile.learn(label("large", at=NOON + DAY))
    (taught,) = take_in(profile, txn(NOON + DAY, 20.0))
    assert (taught.explained, taught.before) == (False, None)
    assert counted("expired") == expired + 1
    (mended,) = take_in(profile, txn(NOON + 23 * HOUR, 500.0, "large"))
    assert (mended.explained, mended.before) == (True, Replaced(NOON + 2 * DAY, fraud=True, explained=False))
    assert profile.confirmed(NOON + DAY)[2] == 1.0


def test_a_label_that_waits_for_longer_than_the_limit_counts_without_its_transaction() -> None:
    profile = fed([txn()])
    assert profile.learn(label("a", at=NOON + DAY)) == ()
    assert profile.learn(label("b", at=NOON + 2 * DAY, after=LABEL_WAIT)) == ()  # a day short of it
    (taught,) = profile.learn(label("c", at=NOON + 3 * DAY, after=LABEL_WAIT))
    assert taught.at == NOON + DAY
    assert profile.confirmed(NOON)[0] == 1.0


def test_of_more_labels_than_may_wait_the_first_counts_without_its_transaction() -> None:
    evicted, profile = counted("evicted"), fed([txn()])
    for n in range(LABELLED):
        assert profile.learn(label(f"t{n}", at=NOON + DAY + n)) == ()
    (taught,) = profile.learn(label("one more", at=NOON + 2 * DAY))
    assert taught.at == NOON + DAY
    assert counted("evicted") == evicted + 1
    assert profile.confirmed(NOON)[0] == 1.0
    assert len(profile.labels) == LABELLED * LABEL_BYTES


def test_a_correction_of_a_label_that_waits_replaces_it_before_it_counts() -> None:
    profile = fed([txn()])
    profile.learn(label("a", at=NOON + DAY))
    assert profile.learn(label("a", at=NOON + DAY, after=2 * DAY, fraud=False)) == ()
    (taught,) = take_in(profile, txn(NOON + DAY, name="a"))
    assert (taught.fraud, taught.before) == (False, None)
    assert profile.confirmed(NOON + DAY)[0] == 0.0


@given(st.lists(st.tuples(st.integers(0, 400), st.booleans()), max_size=30))
def test_frauds_equal_a_recount_in_whatever_order_labels_come(labels: list[tuple[int, bool]]) -> None:
    profile = fed([txn(NOON + 400 * DAY)])
    for n, (day, fraud) in enumerate(labels):
        profile.learn(label(f"label {n}", at=NOON + day * DAY, fraud=fraud))
    days = [day for day, fraud in labels if fraud]
    count, since, *_ = profile.confirmed(NOON + 400 * DAY)
    assert count == len(days)
    assert since == pytest.approx(min(400 - max(days), NEVER) if days else NEVER, abs=0.01)


def test_a_fraud_that_its_amount_explains_is_the_cards_and_others_are_the_merchants() -> None:
    profile = fed(txn(NOON + n * HOUR, 20.0 + n % 5, f"ordinary {n}") for n in range(20))
    profile.update(txn(NOON + DAY, 500.0, "large"))
    taught = profile.learn(label("large", at=NOON + DAY)) + profile.learn(label("ordinary 3", at=NOON + 3 * HOUR))
    assert [each.explained for each in taught] == [True, False]
    frauds, since, card_frauds, card_since = profile.confirmed(NOON + 3 * DAY)
    assert (frauds, card_frauds) == (2.0, 1.0)
    assert since == card_since == pytest.approx(2.0, abs=0.01)


# Bounds, copies, versions.

HOSTILE = ("\x00", "\U0001f480" * 256, "a" * 256, "a,b\n\"'", "ﷺ" * 200, "unknown ", "\u202e")


def test_a_user_stays_small_whatever_comes_and_however_much() -> None:
    profile = UserProfile()
    for n in range(100_000):
        name = f"{HOSTILE[n % len(HOSTILE)]}{n}"[-256:]
        each = txn(NOON + 600.0 * n, 10.0 ** (n % 300), name, merchant=name, device=name, location=name)
        profile.update(msgspec.structs.replace(each, latitude=n % 90, longitude=n % 180))
        if n % 3 == 0:
            profile.learn(label(name, at=each.at + DAY * (n % 5 == 0), fraud=n % 2 == 0, merchant=name))
        if n % 1000 == 999:
            assert size(profile) <= 1500 + LABELLED * (LABEL_BYTES + 8) + sys.getsizeof(profile.hour) + sys.getsizeof(
                profile.last_location
            )
            assert sys.getsizeof(profile.hour) < 600
    assert len(pickle.dumps(profile)) < 1200 + 4 * 256 + LABELLED * (LABEL_BYTES + 4 * 256)


def test_a_user_with_a_thousand_transactions_an_hour_stays_within_the_hours_limit() -> None:
    profile = fed(txn(NOON + n / 10) for n in range(100_000))
    assert size(profile) < 1500 + 1.2 * 16 * MAX_PER_HOUR


def test_an_ordinary_user_takes_about_a_kilobyte_and_labels_take_room_only_where_there_are_any() -> None:
    profile, merchant, labelled = UserProfile(), MerchantProfile(), UserProfile()
    for n in range(500):
        each = at_place(48.0 + n % 7 / 100, 11.5, NOON + n * 7 * HOUR)
        each = msgspec.structs.replace(each, merchant=f"m{n % 20}", device=f"d{n % 5}", location=f"l{n % 5}")
        profile.update(each)
        merchant.update(each, 0.0)
        labelled.update(each)
        if n % 50 == 0:
            for taught in labelled.learn(label(each.transaction_id or "", at=each.at)):
                merchant.learn(taught)
    assert size(profile) < 1150
    assert size(labelled) < 1150 + 10 * (LABEL_BYTES + 8) + 50
    assert size(merchant) < 1000 + 10 * LESSON_BYTES + 50


def test_a_merchant_stays_as_small_as_it_was() -> None:
    merchant = MerchantProfile()
    for n in range(20_000):
        merchant.update(txn(NOON + n * MINUTE, 1e308), 1e308)
        merchant.learn(lesson(NOON + n * MINUTE, NOON + n * MINUTE, n % 3 == 0, n % 2 == 0))
    assert size(merchant) < 1100 + LESSONS * LESSON_BYTES


def busy() -> tuple[UserProfile, MerchantProfile]:
    rng, user, merchant = random.Random(1), UserProfile(), MerchantProfile()
    for n in range(300):
        at = NOON + n * 20 * MINUTE - rng.choice((0, 0, rng.randrange(50_000)))
        each = txn(at, rng.lognormvariate(3, 1), f"b{n}", merchant=f"m{n % 9}", latitude=n % 5, longitude=n % 7)
        user.update(each)
        merchant.update(each, rng.gauss(0, 3))
        if n % 4 == 0:
            early = DAY * (n % 12 == 0)
            for taught in user.learn(label(f"b{n}", at=at + early, fraud=n % 8 == 0)):
                merchant.learn(taught)
    return user, merchant


def state(profile: UserProfile | MerchantProfile) -> Any:
    return profile.__reduce__()


@pytest.mark.parametrize("change", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_copies_are_equal_go_on_alike_and_are_apart(change: Any) -> None:
    for original, fresh in zip(busy(), (UserProfile(), MerchantProfile()), strict=True):
        for profile in (original, fresh):
            twin = change(profile)
            assert state(twin) == state(profile)
            before = state(profile)
            more = [txn(NOON + n * 1000.0, 30.0, f"more {n}", latitude=1.0, longitude=1.0) for n in range(200)]
            others = (0.0,) if isinstance(profile, MerchantProfile) else ()
            for each in more:
                twin.update(each, *others)
            taught = lesson(NOON, NOON, name="taught")
            if isinstance(twin, UserProfile):
                twin.learn(label("more 1"))
                twin.learn(label("to come", at=NOON + 99 * DAY))
            else:
                twin.learn(taught)
            assert state(profile) == before
            for each in more:
                profile.update(each, *others)  # type: ignore[call-arg]
            if isinstance(profile, UserProfile):
                profile.learn(label("more 1"))
                profile.learn(label("to come", at=NOON + 99 * DAY))
            else:
                profile.learn(taught)
            assert state(profile) == state(twin)


@pytest.mark.parametrize("kind", [UserProfile, MerchantProfile])
def test_state_of_another_version_is_refused(kind: Any) -> None:
    restore, (version, *held) = state(kind())
    assert state(restore(version, *held)) == state(kind())
    with pytest.raises(ValueError, match=f"version {version + 1}, but this is version {version}"):
        restore(version + 1, *held)


def test_what_is_remembered_of_names_is_the_same_in_every_process() -> None:
    assert fingerprint("123456789") == 0xCBF43926.to_bytes(4, "little")  # the check value of CRC-32
    code = "import pickle, sys; from tests.test_profile import busy;sys.stdout.write(pickle.dumps(busy()).hex())"
    found = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": "."},
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert found == {pickle.dumps(busy()).hex()}


@pytest.mark.parametrize("amount", [0.0, 5e-324, 1e-30, MAX_AMOUNT, 1e300, 1.7e308])
def test_no_amount_breaks_a_profile(amount: float) -> None:
    user, merchant = UserProfile(), MerchantProfile()
    for n in range(400):
        user.update(txn(NOON + n * HOUR, amount))
        merchant.update(txn(NOON + n * HOUR, amount), 0.0)
    for profile in (user, merchant):
        assert all(math.isfinite(each) for each in profile.read(NOON)[0])
        assert all(math.isfinite(each) for each in profile.totals(NOON))
    user.update(txn(NOON + 401 * HOUR, 10.0))
    assert math.isfinite(user.typical()[1])


@pytest.mark.parametrize("at", [-62_135_596_800.0, -1.0, 0.0, 253_402_300_799.0])
def test_no_time_that_a_datetime_can_hold_breaks_a_profile(at: float) -> None:
    user, merchant = UserProfile(), MerchantProfile()
    assert user.totals(at) == merchant.totals(at) == (0.0,) * 6
    assert user.update(txn(at))
    merchant.update(txn(at), 0.0)
    assert user.totals(at) == merchant.totals(at) == (1.0, 25.0) * 3
    assert user.per_hour(at) == 1


# Merchants and feedback.


@given(st.lists(st.tuples(gaps, st.booleans(), st.booleans()), max_size=40))
def test_labels_equal_a_recount_at_every_prefix(labels: list[tuple[int, bool, bool]]) -> None:
    merchant, past, at, newest = MerchantProfile(), list[tuple[float, float]](), NOON, -math.inf
    assert merchant.labels(NOON) == (0.0,) * 6
    for gap, late, fraud in labels:
        at += gap
        came = at - 9 * HOUR * late
        newest = max(newest, came)
        merchant.learn(lesson(came - DAY, came, fraud))
        past.append((came, float(fraud)))
        check_windows(merchant.labels(newest), past, newest)


def recounted(labels: list[tuple[float, bool, bool]], now: float) -> float:
    """The risk by its definition, of labels (day, fraud, explained) that come in the order of their transactions."""
    run: list[tuple[float, bool]] = []
    for day, fraud, explained in labels:
        if fraud and not explained:
            frauds = sum(f for _, f in run)
            since = len(run) - max((n + 1 for n, (_, f) in enumerate(run) if f), default=0)
            between = len(run) - frauds - since
            last = max((d for d, f in run if f), default=-math.inf)
            share = (frauds + 0.5) / (frauds + between + 1)
            if not frauds or (1 - share) ** since < RUN_OVER or day - last > RUN_GAP:
                run = []
            run.append((day, True))
        elif not fraud and run:
            run.append((day, False))
    if not run:
        return 0.0
    frauds = sum(f for _, f in run)
    since = len(run) - max(n + 1 for n, (_, f) in enumerate(run) if f)
    between = len(run) - frauds - since
    alive = (1 - (frauds + 0.5) / (frauds + between + 1)) ** since
    return frauds / (frauds + between + 0.5) * alive * math.exp(-(now - run[0][0]) / RUN_LIFE)


@given(st.lists(st.tuples(st.integers(1, 20), st.booleans(), st.booleans()), max_size=40))
def test_the_chance_of_a_compromise_equals_its_definition_at_every_prefix(steps: list[tuple[int, bool, bool]]) -> None:
    merchant, labels, day = MerchantProfile(), list[tuple[float, bool, bool]](), NOON / DAY
    for gap, fraud, explained in steps:
        day += gap
        merchant.learn(lesson(day * DAY, (day + 7) * DAY, fraud, explained))
        labels.append((day, fraud, explained))
        found = merchant.compromise((day + 1) * DAY)
        assert found.risk == pytest.approx(recounted(labels, day + 1), rel=1e-3, abs=1e-9)
        assert 0.0 <= found.risk <= 1.0


def test_labels_out_of_order_count_on_their_own_side_of_the_run() -> None:
    merchant = MerchantProfile()
    for day, fraud in ((10, True), (12, True), (11, False), (13, False), (9, False), (14, True)):
        merchant.learn(lesson(NOON + day * DAY, NOON + 20 * DAY, fraud))
    found = merchant.compromise(NOON + 20 * DAY)
    assert (found.frauds, found.genuine, found.genuine_since) == (3.0, 2.0, 0.0)
    assert (found.days, found.days_since_fraud, found.days_since_genuine) == pytest.approx((10, 6, 7), abs=0.01)


def test_a_fraud_that_its_amount_explains_does_not_speak_against_the_merchant() -> None:
    merchant = MerchantProfile()
    merchant.learn(lesson(explained=True))
    assert merchant.compromise(NOON + DAY).risk == 0.0
    merchant.learn(lesson())
    assert 0.5 < merchant.compromise(NOON + DAY).risk < 1.0


def test_without_labels_nothing_speaks_against_a_merchant() -> None:
    merchant = MerchantProfile()
    merchant.update(txn(), 9.0)
    assert merchant.compromise(NOON) == (0.0, NEVER, 0.0, 0.0, 0.0, NEVER, NEVER)
    merchant.learn(lesson(fraud=False))
    assert merchant.compromise(NOON + DAY) == (0.0, NEVER, 0.0, 0.0, 0.0, NEVER, pytest.approx(1.0, abs=0.01))


def read(merchant: MerchantProfile) -> Any:
    """All that a merchant's labels say, a while later."""
    return merchant.labels(NOON + 90 * DAY), merchant.compromise(NOON + 90 * DAY), merchant.labels(NOON + 61 * DAY)


lessons = st.lists(st.tuples(st.integers(0, 60), st.booleans(), st.booleans()), max_size=LESSONS)


@given(lessons, st.randoms(use_true_random=False))
@settings(max_examples=30)
def test_what_lessons_leave_does_not_depend_on_their_order(
    given_lessons: list[tuple[int, bool, bool]], chance: random.Random
) -> None:
    taught = [lesson(NOON + day * DAY, None, *others) for day, *others in given_lessons]
    shuffled = chance.sample(taught, len(taught))
    one, other = MerchantProfile(), MerchantProfile()
    for each in taught:
        one.learn(each)
    for each in shuffled:
        other.learn(each)
    assert state(one) == state(other)


@given(lessons, st.data())
@settings(max_examples=50)
def test_a_lesson_that_replaces_another_leaves_what_it_would_have_left_alone(
    given_lessons: list[tuple[int, bool, bool]], data: st.DataObject
) -> None:
    taught = [lesson(NOON + day * DAY, None, *others) for day, *others in given_lessons]
    corrected, plain = MerchantProfile(), MerchantProfile()
    for each in taught:
        corrected.learn(each)
    for number in data.draw(st.sets(st.integers(0, len(taught) - 1)) if taught else st.just(set())):
        old = taught[number]
        fraud, explained, later = data.draw(st.tuples(st.booleans(), st.booleans(), st.integers(0, 30)))
        before = Replaced(old.labelled_at, old.fraud, old.explained)
        new = msgspec.structs.replace(old, fraud=fraud, explained=explained, labelled_at=old.labelled_at + later * DAY)
        corrected.learn(msgspec.structs.replace(new, before=before))
        taught[number] = new
    for each in taught:
        plain.learn(each)
    assert state(corrected) == state(plain)


def test_a_lesson_that_was_forgotten_can_still_be_taken_back_from_the_windows_and_the_run_under_way() -> None:
    merchant = MerchantProfile()
    taught = [lesson(NOON + n * MINUTE, NOON + DAY) for n in range(LESSONS + 10)]
    for each in taught:
        merchant.learn(each)
    before = Replaced(NOON + DAY, fraud=True, explained=False)
    merchant.learn(msgspec.structs.replace(taught[3], fraud=False, before=before))
    assert merchant.labels(NOON + DAY)[:2] == (LESSONS + 10, LESSONS + 9)
    found = merchant.compromise(NOON + DAY)
    assert (found.frauds, found.genuine) == (LESSONS + 9, 1.0)


def test_reading_what_labels_say_changes_nothing_that_is_kept() -> None:
    merchant, twin = MerchantProfile(), MerchantProfile()
    for n in range(5):
        for each in (merchant, twin):
            each.learn(lesson(NOON + n * DAY, name=f"{n}"))
        assert merchant.labels(NOON + (n + 9) * DAY) == merchant.labels(NOON + (n + 9) * DAY)
        assert state(merchant) == state(twin)
        assert read(merchant) == read(twin)
