"""Transactions that come again, late, or under an id that was used."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflow.events.transaction import Transaction
from dataflow.profiles.recent_ids import RECENT
from tests.support.builders import DAY, HOUR, MINUTE, NOON
from tests.support.profile_builders import Profiles, payment, streams


@pytest.mark.slow
@given(streams(latest=DAY), st.data())
def test_a_repeat_changes_nothing_whatever_else_it_says(events: list[Transaction], data: st.DataObject) -> None:
    profiles = Profiles().read_together(events)
    before = profiles.state()
    for each in events[-RECENT:]:
        place = data.draw(st.sampled_from(["US", "IN"]))
        profiles.read(msgspec.structs.replace(each, location=place, device="another", txn_type="refund"))
        assert not profiles.counts()[-1]
    assert profiles.state() == before


@pytest.mark.parametrize("other", [{"at": NOON + 1}, {"amount": 25.01}, {"merchant": "another"}])
def test_an_id_with_another_amount_merchant_or_time_is_no_repeat(other: dict[str, Any]) -> None:
    one, two = payment(name="a"), payment(**{"name": "a", **other})
    profiles = Profiles().read(one, two, one, two)
    assert profiles.counts() == [True, True, False, False]
    assert profiles.features("reused_id") == [False, True, False, False]
    assert profiles.peek(payment(NOON + 1))["txn_per_hour"] == 2


def test_a_repeat_dated_ahead_is_one_though_it_counts_at_another_time() -> None:
    ahead = [(NOON, NOON + DAY), (NOON + MINUTE, NOON + DAY), (NOON + MINUTE, NOON + DAY + 1)]
    events = [msgspec.structs.replace(payment(at, name="a"), ahead_at=ahead_at) for at, ahead_at in ahead]
    profiles = Profiles().read(*events)
    assert profiles.counts() == [True, False, True]
    assert profiles.features("ahead_of_time") == [True] * 3


def test_a_repeat_after_more_than_are_remembered_counts_again() -> None:
    first, others = payment(), [payment(NOON + n) for n in range(RECENT)]
    assert Profiles().read(first, *others[1:], first).counts() == [True] * RECENT + [False]
    assert Profiles().read(first, *others, first).counts() == [True] * (RECENT + 2)


def test_names_that_differ_in_one_byte_are_not_repeats() -> None:
    events = [payment(NOON + n, name=f"{letter}{n:04}") for n in range(2000) for letter in "ab"]
    profiles = Profiles().read_together(events)
    assert all(profiles.counts())
    assert not any(profiles.features("reused_id"))


def test_names_of_one_crc_are_not_repeats() -> None:
    """As the profiles of before compared checksums."""
    assert Profiles().read(payment(name="plumless"), payment(name="buckeroo")).counts() == [True, True]


def test_a_late_event_counts_and_moves_nothing_back() -> None:
    profiles = Profiles().read(
        payment(NOON, location="US", latitude=48.0, longitude=11.5),
        payment(NOON - 10 * MINUTE, location="FR", latitude=40.0, longitude=0.0),
    )
    values = profiles.peek(payment(NOON + HOUR - 1, latitude=48.0, longitude=11.5))
    assert (values["seconds_since_last"], values["last_location"]) == (HOUR - 1, "US")
    assert values["km_since_last"] == pytest.approx(0.0, abs=1e-3)
    values = profiles.peek(payment(NOON))
    assert values["txn_per_hour"] == values["txn_per_day"] == 2


def test_sixty_payments_under_one_id_all_count() -> None:
    profiles = Profiles().read(*(payment(NOON + n, 900.0, "same") for n in range(60)))
    assert profiles.features("txn_per_hour") == list(range(60))
    assert profiles.features("reused_id") == [False] + [True] * 59
    assert profiles.last("merchant_per_day") == 59.0


def test_a_payment_that_is_sent_again_counts_once_and_is_no_reuse() -> None:
    each = payment(name="same")
    profiles = Profiles().read(each, msgspec.structs.replace(each, offset=10**6), payment(NOON + 1))
    assert profiles.features("txn_per_hour") == [0.0, 1.0, 1.0]
    assert profiles.features("merchant_per_day") == [0.0, 1.0, 1.0]
    assert profiles.features("reused_id") == [False, False, False]


def test_the_same_id_of_two_users_is_no_reuse() -> None:
    profiles = Profiles().read(payment(name="same"), payment(name="same", user="bob"))
    assert profiles.features("reused_id") == [False, False]
    assert profiles.counts() == [True, True]
