"""Where a user usually is, and how far and how fast they go: by the features."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dataflow.events.transaction import Transaction
from dataflow.profiles.places import CLIP, EARTH_KM, MIN_KM, kilometres
from tests.support.builders import HOUR, NOON
from tests.support.profile_builders import Profiles, payment

latitudes, longitudes = st.floats(-90, 90), st.floats(-180, 180)
FEATURES = ("km_from_centre", "centre_ratio", "km_since_last", "speed")


@given(latitudes, longitudes, latitudes, longitudes)
@example(90.0, 0.0, -90.0, 0.0)
@example(0.0, -180.0, 0.0, 180.0)
@example(0.0, 0.0, 0.0, 180.0)
def test_kilometres_equal_the_angle_between_vectors(a: float, b: float, c: float, d: float) -> None:
    def on_sphere(latitude: float, longitude: float) -> Any:
        north, east = np.radians(latitude), np.radians(longitude)
        return np.array([np.cos(north) * np.cos(east), np.cos(north) * np.sin(east), np.sin(north)])

    x, y = on_sphere(a, b), on_sphere(c, d)
    angle = math.atan2(np.linalg.norm(np.cross(x, y)), float(x @ y))
    assert kilometres(a, b, c, d) == pytest.approx(EARTH_KM * angle, rel=1e-6, abs=1e-3)
    assert 0.0 <= kilometres(a, b, c, d) <= math.pi * EARTH_KM + 1e-6


def at_place(latitude: float, longitude: float, at: float = NOON) -> Transaction:
    return payment(at, latitude=latitude, longitude=longitude)


def moved(profiles: Profiles, latitude: float, longitude: float, at: float) -> list[float]:
    """What the features say of a payment there."""
    values = profiles.peek(at_place(latitude, longitude, at))
    return [values[name] for name in FEATURES]


@given(st.lists(st.tuples(st.floats(48.05, 48.1), st.floats(11.5, 11.6)), min_size=1, max_size=30))
def test_the_centre_of_a_city_is_the_mean_of_its_places(places: list[tuple[float, float]]) -> None:
    profiles = Profiles().read_together([at_place(*place, NOON + n * HOUR) for n, place in enumerate(places)])
    found = [profiles.features(name) for name in FEATURES]
    assert [values[0] for values in found] == [0.0] * 4
    for n in range(1, len(places)):
        north, east = np.mean(places[:n], axis=0)
        km, _, hop, speed = [values[n] for values in found]
        assert km == pytest.approx(kilometres(float(north), float(east), *places[n]), abs=0.01)
        assert hop == pytest.approx(kilometres(*places[n - 1], *places[n]), abs=0.01)
        assert speed == pytest.approx(hop)


def test_across_the_date_line_is_near() -> None:
    profiles = Profiles().read(*(at_place(-18.0, 179.95 if n % 2 else -179.95, NOON + n * HOUR) for n in range(40)))
    assert max(profiles.features("km_from_centre")) < 12


def test_one_far_journey_does_not_move_the_centre_far() -> None:
    profiles = Profiles().read(*(at_place(48.0, 11.5, NOON + n * HOUR) for n in range(20)))
    km, ratio, hop, speed = moved(profiles, -33.9, 151.2, NOON + 20 * HOUR)
    assert km == hop == pytest.approx(16_300, rel=0.01)
    assert speed == pytest.approx(hop)
    assert ratio > 1000
    profiles.read(at_place(-33.9, 151.2, NOON + 20 * HOUR))
    assert moved(profiles, 48.0, 11.5, NOON + 40 * HOUR)[0] < 5


@pytest.mark.parametrize("km", [8.0, 15.0, 1000.0])
def test_a_journey_moves_the_centre_as_one_within_reach_does(km: float) -> None:
    """Within three usual distances and what a user without history roams."""
    profiles = Profiles().read(*(at_place(48.0, 11.5, NOON + n * HOUR) for n in range(20)))
    reach = CLIP * MIN_KM / 21 + MIN_KM
    profiles.read(at_place(48.0 + km / (EARTH_KM * math.pi / 180), 11.5, NOON + 20 * HOUR))
    assert moved(profiles, 48.0, 11.5, NOON + 40 * HOUR)[0] == pytest.approx(min(km, reach) / 21, abs=0.002)


def test_within_a_minute_speed_is_reckoned_over_a_minute() -> None:
    _, _, hop, speed = moved(Profiles().read(at_place(48.0, 11.5)), 49.0, 11.5, NOON + 1)
    assert speed == pytest.approx(60 * hop)


@given(st.lists(st.tuples(latitudes, longitudes, st.booleans()), max_size=30))
@example([(90.0, 0.0, False), (-90.0, 180.0, False), (90.0, -180.0, True), (-90.0, 0.0, False)] * 5)
def test_wherever_a_user_goes_distances_are_finite_and_the_centre_stays_on_earth(
    places: list[tuple[float, float, bool]],
) -> None:
    profiles = Profiles()
    for n, (latitude, longitude, late) in enumerate(places):
        profiles.read(at_place(latitude, longitude, NOON + n - 5.0 * late))
        row = profiles.users.table.rows[0]
        assert -90 <= row["home_latitude"] <= 90
        assert -180 <= row["home_longitude"] <= 180
        assert row["roam"] >= 0
    for name in FEATURES:
        assert all(math.isfinite(value) and value >= 0.0 for value in profiles.features(name))


def test_a_payment_without_coordinates_moves_nothing_and_says_nothing() -> None:
    profiles = Profiles().read(at_place(48.0, 11.5))
    before = profiles.user("ann")
    profiles.read(payment(NOON + HOUR))
    assert [profiles.last(name) for name in FEATURES] == [0.0] * 4
    after = profiles.user("ann")
    assert all(after[name] == before[name] for name in ("latitude", "longitude", "home_latitude", "placed", "roam"))
