"""What each feature says, at its edges too; that all are defined, and of the kind that the catalogue says."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflow.events.transaction import UNKNOWN, Transaction
from dataflow.features.batch import FeatureBatch
from dataflow.features.catalogue import FIELDS, MERCHANT_FIELDS, NUMBERS, USER_FIELDS
from dataflow.profiles.amounts import AmountPrior
from dataflow.profiles.labels import NEVER
from dataflow.profiles.names_seen import MERCHANTS, PLACES
from tests.support.builders import DAY, HOUR, MINUTE, NOON, label, txn
from tests.support.profile_builders import Profiles, TaughtMerchant, lesson

NAMES = [field.name for field in FIELDS]


def features_of(batch: FeatureBatch) -> dict[str, Any]:
    """All features of a batch's last transaction, by name; numbers and flags as Python's."""
    return {name: np.asarray(batch.column(name)).tolist()[-1] for name in NAMES}


def after(*past: Transaction, at: float = NOON, **others: Any) -> dict[str, Any]:
    """The features of a transaction after others of the same user."""
    return features_of(Profiles().read(*past, txn(at=at, **others)).batch())


users = st.sampled_from(["US", "FR", UNKNOWN])
transactions = st.builds(
    lambda ago, amount, place, location, device, merchant: txn(
        at=NOON - ago,
        amount=amount,
        location=location,
        device=device,
        merchant=merchant,
        **({} if place is None else {"latitude": place[0], "longitude": place[1]}),
    ),
    st.integers(0, 40 * 86_400),
    st.sampled_from([0.0, 1e-300, 1e15, 1e308]) | st.floats(0, 1000),
    st.none() | st.tuples(st.floats(-90, 90), st.floats(-180, 180)),
    users,
    users,
    st.sampled_from(["Amazon", "Shop"]),
)
priors = st.sampled_from([AmountPrior(), AmountPrior(50.0, 0.6)])


def check_kinds(batch: FeatureBatch) -> None:
    kinds = {"number": float, "text": str, "flag": bool}
    for field in FIELDS:
        column = batch.column(field.name)
        assert len(column) == len(batch)
        for value in np.asarray(column).tolist():
            assert type(value) is kinds[field.kind], field
            assert field.kind == "text" or not math.isnan(value), field


def test_fields_have_names_of_their_own_that_rules_can_say_and_each_is_documented() -> None:
    assert len(set(NAMES)) == len(NAMES)
    assert all(name.isidentifier() and field.doc for name, field in zip(NAMES, FIELDS, strict=True))
    assert FIELDS == USER_FIELDS + MERCHANT_FIELDS


@pytest.mark.slow
@given(st.lists(transactions, max_size=15), transactions, priors)
def test_every_feature_has_the_kind_that_its_field_says_and_is_a_number_where_it_is_one(
    past: list[Transaction], probe: Transaction, prior: AmountPrior
) -> None:
    profiles = Profiles(prior)
    for n, each in enumerate([*past, probe]):
        profiles.read(each, label(each.transaction_id or "", at=each.at, fraud=n % 2 == 0))
    check_kinds(profiles.batch())


ABSURD = (
    "amount_z",
    "amount_z_above",
    "amount_ratio",
    "amount_to_largest",
    "merchant_amount_z",
    "merchant_amount_ratio",
)


@given(st.lists(transactions, max_size=15), transactions)
def test_only_what_is_said_to_be_infinite_is_and_only_with_absurd_amounts_or_without_history(
    past: list[Transaction], probe: Transaction
) -> None:
    for name, value in features_of(Profiles().read(*past, probe).batch()).items():
        if isinstance(value, float) and math.isinf(value):
            assert (name == "seconds_since_last" and not past) or (name in ABSURD and probe.amount > 1e200)


def test_a_features_name_says_whose_it_is_in_the_order_of_the_columns() -> None:
    texts = {field.name for field in FIELDS if field.kind == "text"}
    assert [field.name for field in FIELDS if field.name not in texts] == list(NUMBERS)
    assert not texts & {field.name for field in MERCHANT_FIELDS}


def test_features_of_a_user_without_history() -> None:
    values = after(amount=25.0, latitude=1.0, longitude=2.0)
    texts = {"user": "ann", "merchant": "Amazon", "location": "US", "device": "mobile", "txn_type": "purchase"}
    stated = {"category": UNKNOWN, "ip": UNKNOWN, "last_location": "", "amount": 25.0, "timestamp": NOON} | texts
    stated |= {"seconds_since_last": math.inf, "amount_ratio": 1.0, "amount_to_largest": 1.0}
    stated |= {"merchant_amount_ratio": 1.0, "days_since_fraud": NEVER, "days_since_card_fraud": NEVER}
    stated |= {"run_days": NEVER, "days_since_merchant_fraud": NEVER, "days_since_merchant_genuine": NEVER}
    assert values == dict.fromkeys(NAMES, 0.0) | stated


def test_without_history_an_amount_is_held_against_what_is_known_of_all() -> None:
    values = features_of(Profiles(AmountPrior(50.0, 0.6)).read(txn(amount=110.0)).batch())
    assert values["usual_amount"] == 50.0
    assert values["amount_ratio"] == values["merchant_amount_ratio"] == pytest.approx(2.2)
    assert values["amount_z"] == values["amount_z_above"] == pytest.approx(60 / (30 * math.sqrt(2)))


def test_features_of_a_user_with_a_day_behind_them() -> None:
    past = [txn(at=NOON - hours * HOUR, amount=10.0 * hours) for hours in (30, 10, 2, 0.5)]
    values = after(*past, amount=150.0)
    assert values["txn_per_hour"] == 1
    assert values["amount_per_hour"] == values["mean_amount_hour"] == 5.0
    assert (values["txn_per_day"], values["amount_per_day"], values["mean_amount_day"]) == (3, 125.0, 125 / 3)
    assert (values["txn_per_week"], values["amount_per_week"], values["mean_amount_week"]) == (4, 425.0, 425 / 4)
    assert (values["txn_per_month"], values["amount_per_month"], values["mean_amount_month"]) == (4, 425.0, 425 / 4)
    assert values["seconds_since_last"] == 30 * MINUTE
    assert values["history"] == 4
    assert values["amount_to_largest"] == 0.5
    pace = 4 / 1.25  # a day, over the 30 hours that they have been known
    assert values["burst"] == pytest.approx((3 - pace) / math.sqrt(pace + 1), rel=1e-3)
    assert (values["merchant_per_day"], values["merchant_per_week"], values["merchant_per_month"]) == (3, 4, 4)
    assert values["merchant_mean_amount"] == 425 / 4


def test_a_burst_is_held_against_the_users_own_pace() -> None:
    daily = [txn(at=NOON - day * DAY) for day in range(28, 0, -1)]
    assert abs(after(*daily)["burst"]) < 1
    assert after(*daily, *(txn(at=NOON - n * MINUTE) for n in range(20, 0, -1)))["burst"] > 8


def test_z_above_is_clipped_at_zero() -> None:
    past = [txn(at=NOON - n * HOUR, amount=40.0 + n % 3) for n in range(30, 0, -1)]
    low, high = after(*past, amount=1.0), after(*past, amount=80.0)
    assert low["amount_z"] < 0 == low["amount_z_above"]
    assert high["amount_z_above"] == high["amount_z"] > 3


def test_what_lies_above_the_usual_is_remembered_and_fades() -> None:
    past = [txn(at=NOON - n * HOUR, amount=40.0 + n % 3) for n in range(30, 0, -1)]
    large = txn(amount=4000.0)
    assert after(*past)["unusual_day"] == 0.0
    assert after(*past, large)["unusual_day"] == after(*past, large)["unusual_fortnight"] == 4.0
    values = after(*past, large, at=NOON + DAY)
    assert values["unusual_day"] == pytest.approx(4 * math.exp(-1))
    assert values["unusual_fortnight"] == values["merchant_unusual"] == pytest.approx(4 * math.exp(-1 / 14))


def test_distances_and_speed() -> None:
    berlin, munich = {"latitude": 52.52, "longitude": 13.405}, {"latitude": 48.137, "longitude": 11.575}
    values = after(*(txn(at=NOON - n * DAY, **berlin) for n in (3, 2, 1)), at=NOON - DAY + 2 * HOUR, **munich)
    assert values["km_from_centre"] == values["km_since_last"] == pytest.approx(504, abs=2)
    assert values["speed"] == pytest.approx(252, abs=1)
    assert values["centre_ratio"] == pytest.approx(504 / (10 / 4), rel=0.01)
    values = after(txn(at=NOON - DAY, **berlin))
    assert (values["km_from_centre"], values["centre_ratio"], values["km_since_last"], values["speed"]) == (0.0,) * 4


NEW = [("new_merchant", "merchant", MERCHANTS), ("new_device", "device", PLACES), ("new_location", "location", PLACES)]


@pytest.mark.parametrize(("feature", "field", "limit"), NEW)
def test_new_is_what_a_user_of_whom_others_are_known_has_not_shown_of_late(
    feature: str, field: str, limit: int
) -> None:
    past = [txn(at=NOON - HOUR + n, **{field: f"x{n}"}) for n in range(limit)]
    assert after(**{field: "x0"})[feature] is False
    assert after(*past, **{field: "x0"})[feature] is False
    assert after(*past, **{field: "another"})[feature] is True
    crowded = [*past, txn(at=NOON - 1, **{field: "one more"})]
    assert after(*crowded, **{field: "x0"})[feature] is True
    assert after(*crowded, **{field: "x1"})[feature] is False


@pytest.mark.parametrize(("feature", "field"), [("new_device", "device"), ("new_location", "location")])
def test_unknown_is_never_new_and_does_not_make_others_new(feature: str, field: str) -> None:
    nothing, something = {field: UNKNOWN}, {field: "x"}
    assert after(txn(**something), **nothing)[feature] is False
    assert after(txn(**nothing), **something)[feature] is False
    assert after(txn(**something), *(txn(**nothing) for _ in range(9)), **something)[feature] is False
    assert after(txn(**something), *(txn(**nothing) for _ in range(9)), **{field: "y"})[feature] is True


def test_a_location_changes_only_between_known_ones() -> None:
    def changed(*locations: str) -> bool:
        *past, now = locations
        return bool(after(*(txn(location=each) for each in past), location=now)["location_changed"])

    assert changed("US", "FR")
    assert not changed("US")
    assert not changed("US", "US")
    assert not changed("US", UNKNOWN)
    assert not changed(UNKNOWN, "FR")
    assert not changed("US", UNKNOWN, "US")
    assert changed("US", UNKNOWN, "FR")


def test_without_what_a_history_lacks_no_feature_differs_from_that_of_a_user_without_it() -> None:
    lacking = {"location": UNKNOWN, "device": UNKNOWN, "txn_type": UNKNOWN}
    full = after(*(txn(at=NOON - n * HOUR) for n in (3, 2, 1)))
    bare = after(*(txn(at=NOON - n * HOUR, **lacking) for n in (3, 2, 1)), **lacking)
    assert {name for name in NAMES if full[name] != bare[name]} == {"location", "device", "txn_type", "last_location"}
    assert bare["last_location"] == ""


def test_feedback_shows_on_both_sides() -> None:
    past = [txn(at=NOON - (10 - n) * DAY, transaction_id=f"t{n}") for n in range(4)]
    labels = [label(f"t{n}", at=NOON - (10 - n) * DAY, after=5 * DAY, fraud=n < 2) for n in range(4)]
    values = features_of(Profiles().read(*past, *labels, txn(at=NOON)).batch())
    assert (values["confirmed_frauds"], values["card_frauds"], values["days_since_card_fraud"]) == (2, 0, NEVER)
    assert values["days_since_fraud"] == values["days_since_merchant_fraud"] == pytest.approx(9, abs=0.01)
    assert values["days_since_merchant_genuine"] == pytest.approx(7, abs=0.01)
    assert (values["merchant_labels_week"], values["merchant_labels_month"]) == (4, 4)
    assert [values[f"merchant_frauds_{each}"] for each in ("day", "week", "month")] == [0, 2, 2]
    assert [values[f"merchant_risk_{each}"] for each in ("day", "week", "month")] == [0, 2 / 5, 2 / 5]
    assert (values["run_frauds"], values["run_genuine"], values["genuine_since"]) == (2, 0, 2)
    assert values["run_days"] == pytest.approx(10, abs=0.01)
    assert 0 < values["merchant_compromised"] < 0.1


def test_a_merchant_with_labels_that_left_all_windows_reads_as_one_without_but_for_the_days() -> None:
    merchant = TaughtMerchant().learn(lesson(NOON - 50 * DAY, NOON - 40 * DAY, fraud=False))
    old, new = merchant.features(txn()), TaughtMerchant().features(txn())
    assert set(old) == {field.name for field in MERCHANT_FIELDS}
    assert {name for name in old if old[name] != new[name]} == {"days_since_merchant_genuine"}


def test_a_confirmed_fraud_speaks_of_its_user_and_of_its_merchant_and_of_nobody_else() -> None:
    told = [txn(transaction_id="a"), label("a"), txn(at=NOON + 2 * DAY)]
    profiles = Profiles().read(*told, txn("bob", at=NOON + 2 * DAY), txn(at=NOON + 2 * DAY, merchant="Shop"))
    assert profiles.features("confirmed_frauds") == [0, 1, 0, 1]
    assert profiles.features("merchant_frauds_week") == [0, 1, 1, 0]
