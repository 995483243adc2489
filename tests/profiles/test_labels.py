"""What feedback says of a user: labels that come again, contradict, wait for their transactions, are forgotten."""

import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflow.profiles.labels import LABEL_WAIT, LABELLED, NEVER
from tests.support.builders import DAY, HOUR, NOON, label
from tests.support.profile_builders import Event, Profiles, payment


def confirmed(profiles: Profiles, at: float) -> list[float]:
    """Frauds of the user, days since the newest, both for the card's, as a payment then would be told."""
    values = profiles.peek(payment(at))
    return [values[name] for name in ("confirmed_frauds", "days_since_fraud", "card_frauds", "days_since_card_fraud")]


def taught_by(profiles: Profiles, *events: Event) -> list[dict[str, Any]]:
    """What these events teach merchants."""
    before = len(profiles.lessons())
    return profiles.read(*events).lessons()[before:]


def ordinary() -> Profiles:
    """A user who paid twenty times between 20 and 24."""
    return Profiles().read(*(payment(NOON + n * HOUR, 20.0 + n % 5, f"ordinary {n}") for n in range(20)))


def test_a_label_counts_once_however_often_it_is_sent() -> None:
    profiles = Profiles().read(*(payment(NOON + n, name=f"t{n}") for n in range(LABELLED)))
    labels = [label(f"t{n}", at=NOON + n) for n in range(LABELLED)]
    assert all(len(taught_by(profiles, each)) == 1 for each in labels)
    before = profiles.state()
    assert taught_by(profiles, *labels, *reversed(labels)) == []
    assert profiles.state() == before
    assert confirmed(profiles, NOON)[0] == LABELLED
    assert profiles.outcomes["repeated"] == 2 * LABELLED


def test_what_labels_counted_stays_when_there_are_more_than_are_remembered() -> None:
    profiles = Profiles().read_together([payment(NOON + n * HOUR, name=f"t{n}") for n in range(3 * LABELLED)])
    order = list(range(3 * LABELLED))
    random.Random(1).shuffle(order)
    profiles.read(*(label(f"t{n}", at=NOON + n * HOUR, fraud=n % 3 > 0) for n in order))
    frauds, since, *_ = confirmed(profiles, NOON + (3 * LABELLED - 1) * HOUR + DAY)
    assert (frauds, since) == (2 * LABELLED, pytest.approx(1.0, abs=0.01))
    assert len(profiles.user("ann")["labels"]) == LABELLED


def test_a_contradiction_replaces_the_label() -> None:
    profiles = Profiles().read(payment(name="a"), payment(NOON + DAY, name="b"), label("a"), label("b", at=NOON + DAY))
    (taught,) = taught_by(profiles, label("b", at=NOON + DAY, after=3 * DAY, fraud=False))
    assert (taught["fraud"], taught["labelled_at"]) == (False, NOON + 4 * DAY)
    assert (taught["before"], taught["before_fraud"], taught["before_explained"]) == (NOON + 2 * DAY, True, False)
    assert confirmed(profiles, NOON + 2 * DAY) == [1.0, pytest.approx(2.0, abs=0.01), 0.0, NEVER]
    profiles.read(label("a", after=2 * DAY, fraud=False))
    assert confirmed(profiles, NOON + 2 * DAY) == [0.0, NEVER, 0.0, NEVER]
    profiles.read(label("a", after=3 * DAY))
    assert confirmed(profiles, NOON + 2 * DAY)[0] == 1.0
    assert profiles.outcomes["corrected"] == 3


def test_a_label_older_than_the_one_that_counts_changes_nothing() -> None:
    profiles = Profiles().read(payment(name="a"), label("a", after=DAY), label("a", after=2 * DAY, fraud=False))
    before = profiles.state()
    assert taught_by(profiles, label("a", after=DAY)) == []
    assert profiles.state() == before


def test_a_contradiction_speaks_of_the_merchant_and_time_of_the_first_label() -> None:
    profiles = Profiles().read(payment(name="a"), label("a", merchant="A"))
    (taught,) = taught_by(profiles, label("a", at=NOON - DAY, after=9 * DAY, merchant="B", fraud=False))
    assert (taught["merchant"], taught["at"]) == ("A", NOON)


@pytest.mark.slow
@given(st.lists(st.tuples(st.integers(0, 400), st.booleans()), max_size=30))
def test_frauds_equal_a_recount_in_whatever_order_labels_come(labels: list[tuple[int, bool]]) -> None:
    profiles = Profiles().read(payment(NOON + 400 * DAY))
    profiles.read(*(label(f"label {n}", at=NOON + day * DAY, fraud=fraud) for n, (day, fraud) in enumerate(labels)))
    days = [day for day, fraud in labels if fraud]
    count, since, *_ = confirmed(profiles, NOON + 400 * DAY)
    assert count == len(days)
    assert since == pytest.approx(min(400 - max(days), NEVER) if days else NEVER, abs=0.01)


def test_a_fraud_that_its_amount_explains_is_the_cards_and_others_are_the_merchants() -> None:
    profiles = ordinary().read(payment(NOON + DAY, 500.0, "large"))
    taught = taught_by(profiles, label("large", at=NOON + DAY), label("ordinary 3", at=NOON + 3 * HOUR))
    assert [each["explained"] for each in taught] == [True, False]
    frauds, since, card_frauds, card_since = confirmed(profiles, NOON + 3 * DAY)
    assert (frauds, card_frauds) == (2.0, 1.0)
    assert since == card_since == pytest.approx(2.0, abs=0.01)


# ------------------------------------------------------------------------ labels that come before their transactions


def test_a_label_waits_for_its_transaction_and_is_explained_by_the_profile_before_it() -> None:
    profiles, waiting = ordinary(), label("large", at=NOON + DAY)
    large = payment(NOON + DAY, 500.0, "large")
    assert taught_by(profiles, waiting) == []
    assert profiles.outcomes["waiting"] == 1
    assert confirmed(profiles, NOON + DAY)[0] == 0.0
    assert taught_by(profiles, payment(NOON + 21 * HOUR)) == []  # another one
    (taught,) = taught_by(profiles, large)
    assert (taught["merchant"], taught["at"]) == ("Amazon", NOON + DAY)
    assert (taught["fraud"], taught["explained"]) == (True, True)
    assert confirmed(profiles, NOON + DAY) == [1.0, 0.0, 1.0, 0.0]
    assert taught_by(profiles, large) == []
    assert not profiles.counts()[-1]
    assert taught_by(profiles, waiting) == []


def test_a_label_whose_transaction_is_overtaken_counts_without_it_and_is_mended_should_it_come_late() -> None:
    profiles = ordinary().read(label("large", at=NOON + DAY))
    (taught,) = taught_by(profiles, payment(NOON + DAY, 20.0))
    assert (taught["explained"], math.isnan(taught["before"])) == (False, True)
    assert profiles.outcomes["expired"] == 1
    (mended,) = taught_by(profiles, payment(NOON + 23 * HOUR, 500.0, "large"))
    assert (mended["explained"], mended["before"]) == (True, NOON + 2 * DAY)
    assert (mended["before_fraud"], mended["before_explained"]) == (True, False)
    assert confirmed(profiles, NOON + DAY)[2] == 1.0


def test_a_label_that_waits_for_longer_than_the_limit_counts_without_its_transaction() -> None:
    profiles = Profiles().read(payment())
    assert taught_by(profiles, label("a", at=NOON + DAY)) == []
    assert taught_by(profiles, label("b", at=NOON + 2 * DAY, after=LABEL_WAIT)) == []  # a day short of it
    (taught,) = taught_by(profiles, label("c", at=NOON + 3 * DAY, after=LABEL_WAIT))
    assert taught["at"] == NOON + DAY
    assert confirmed(profiles, NOON)[0] == 1.0


def test_of_more_labels_than_may_wait_the_first_counts_without_its_transaction() -> None:
    profiles = Profiles().read(payment())
    assert taught_by(profiles, *(label(f"t{n}", at=NOON + DAY + n) for n in range(LABELLED))) == []
    (taught,) = taught_by(profiles, label("one more", at=NOON + 2 * DAY))
    assert taught["at"] == NOON + DAY
    assert profiles.outcomes["evicted"] == 1
    assert confirmed(profiles, NOON)[0] == 1.0
    assert len(profiles.user("ann")["labels"]) == LABELLED


def test_a_correction_of_a_label_that_waits_replaces_it_before_it_counts() -> None:
    profiles = Profiles().read(payment(), label("a", at=NOON + DAY))
    assert taught_by(profiles, label("a", at=NOON + DAY, after=2 * DAY, fraud=False)) == []
    (taught,) = taught_by(profiles, payment(NOON + DAY, name="a"))
    assert (taught["fraud"], math.isnan(taught["before"])) == (False, True)
    assert confirmed(profiles, NOON + DAY)[0] == 0.0


def test_a_label_counts_once_beyond_a_block_of_labels_too() -> None:
    events: list[Event] = [payment(NOON + n * HOUR, name=f"{n}") for n in range(60)]
    told = [label(f"{n}", at=NOON + n * HOUR, after=5 * DAY) for n in range(60)]
    profiles = Profiles().read_cut([*events, *told, *told, *reversed(told)], [100])
    assert confirmed(profiles, NOON + 6 * DAY)[0] == 60
    assert profiles.outcomes["repeated"] == 120
    assert profiles.users.blocks.taken == 8
