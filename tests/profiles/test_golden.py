"""The kernels against the profiles of before, which were Python objects: what these said of a history of 501 events.

`golden.csv` was written by the code of commit af0bd93, an event a line in the order in which they came: 284
transactions of 12 users at 8 merchants, with the features of each, and 217 labels. Among them are late events and
repeats, ids used twice, dates ahead, journeys over the date line, busy hours of 36 and 21 transactions, labels before
and after their transactions, contradicted, of transactions that never come. Times are whole seconds, no two payments
have the same.
"""

import csv
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pytest

from dataflow.events.feedback import Feedback
from dataflow.features.catalogue import NUMBERS
from dataflow.profiles import columns
from dataflow.profiles.amounts import AmountPrior
from tests.support.builders import txn
from tests.support.profile_builders import Event, Profiles

FILE = Path(__file__).parent / "golden.csv"
with FILE.open(newline="") as file:
    TOLD = frozenset(next(csv.reader(file)))
NAMES = [name for name in NUMBERS if name in TOLD]
"""The features that the profiles of before knew, too."""
PRIOR = AmountPrior(30.0, 1.0)
OUTCOMES = {"waiting": 120, "expired": 74, "evicted": 3, "repeated": 26, "corrected": 17}
SUMS = [name for name in NUMBERS if name.startswith(("amount_per_", "mean_amount_")) or name == "merchant_mean_amount"]
"""Sums of amounts that were float32 or are now, and what is made of them: off by 1e-6 of themselves at most."""
OF_LIBM = (
    "unusual_day", "unusual_fortnight", "km_from_centre", "centre_ratio", "km_since_last", "speed", "merchant_unusual",
    "merchant_compromised",
)  # fmt: skip
"""Made by exp, sin, asin or pow, the last bit of which the machine's libm decides. All others are equal bit by bit."""


class Golden(NamedTuple):
    """The history, and what the profiles of before said of its transactions."""

    events: list[Event]
    last_locations: list[str]
    numbers: dict[str, list[float]]


def event(line: dict[str, str]) -> Event:
    user, merchant, name, at = line["user"], line["merchant"], line["transaction_id"], float(line["at"])
    if line["kind"] == "label":
        return Feedback(name, user, merchant, at, line["fraud"] == "1", float(line["labelled_at"]))
    place = {field: float(line[field]) for field in ("latitude", "longitude") if line[field]}
    made = txn(
        user, at=at, amount=float(line["amount"]), merchant=merchant, transaction_id=name, location=line["location"],
        device=line["device"], **place,
    )  # fmt: skip
    return msgspec.structs.replace(made, ahead_at=float(line["ahead_at"] or 0))


@pytest.fixture(scope="module")
def golden() -> Golden:
    with FILE.open(newline="") as file:
        lines = list(csv.DictReader(file))
    told = [line for line in lines if line["kind"] == "transaction"]
    numbers = {name: [float(line[name]) for line in told] for name in NAMES}
    return Golden([event(line) for line in lines], [line["last_location"] for line in told], numbers)


@pytest.fixture(scope="module")
def now(golden: Golden) -> Profiles:
    return Profiles(PRIOR).read(*golden.events)


def test_the_history_moves_every_feature(golden: Golden) -> None:
    assert len(golden.events) == 501
    assert len(golden.numbers) == 60
    assert all(len(set(values)) > 1 for values in golden.numbers.values())
    assert len(set(golden.last_locations)) == 7


@pytest.mark.parametrize("name", NAMES)
def test_a_feature_is_what_it_was(name: str, golden: Golden, now: Profiles) -> None:
    found, before = now.features(name), golden.numbers[name]
    if name in SUMS:
        np.testing.assert_allclose(found, before, rtol=1e-6)
    elif name in OF_LIBM:
        np.testing.assert_allclose(found, before, rtol=1e-12)
    else:
        np.testing.assert_array_equal(found, before)


def test_last_locations_and_outcomes_of_labels_are_what_they_were(golden: Golden, now: Profiles) -> None:
    assert now.features("last_location") == golden.last_locations
    assert now.outcomes == OUTCOMES


def test_the_history_moves_the_features_that_came_since_too(now: Profiles) -> None:
    """Whatever is read and never updated, or never read, has one value."""
    still = [name for name in NUMBERS if len(np.unique(now.features(name))) == 1]
    assert still == [], "no kernel updates what these are read of"


def test_columns_are_the_features_in_their_order() -> None:
    assert [getattr(columns, name.upper()) for name in NUMBERS] == list(range(columns.FEATURES))
