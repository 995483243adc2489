"""What feedback teaches does not depend on the order in which transactions and labels are read."""

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataflow.events.feedback import Feedback
from dataflow.events.transaction import Transaction
from tests.support.builders import DAY, HOUR, MINUTE, NOON, label, txn
from tests.support.profile_builders import Event, Profiles

# Events: transactions in the order of their partition, labels in the order of theirs.

gaps = st.sampled_from([0.0, 1.0, MINUTE, HOUR, DAY, 20 * DAY])
amounts = st.sampled_from([20.0, 21.0, 24.0, 500.0, 2000.0])


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Transaction], list[Feedback]]:
    """Payments of two users at two merchants, late ones, repeats and reused ids among them, and their labels.

    Labels come twice, contradict each other, name merchants and times that are wrong, and transactions that never come.
    """
    txns: list[Transaction] = []
    at = NOON
    for number in range(draw(st.integers(1, 12))):
        at += draw(gaps)
        late = draw(st.sampled_from([0.0, 0.0, 0.0, MINUTE, DAY]))
        name = draw(st.sampled_from([f"t{number}"] * 4 + [f"t{max(number - 1, 0)}", "t0"]))
        merchant = draw(st.sampled_from(["Amazon", "Shop"]))
        user = draw(st.sampled_from(["ann", "bob"]))
        txns.append(
            txn(user, at=at - late, amount=draw(amounts), transaction_id=name, merchant=merchant, offset=number)
        )
    txns += draw(st.lists(st.sampled_from(txns), max_size=2))  # repeats
    labels = []
    for _ in range(draw(st.integers(0, 12))):
        about = draw(st.sampled_from(txns))
        wrong = draw(st.sampled_from([0.0] * 6 + [-DAY, MINUTE, 40 * DAY]))
        labels.append(
            label(
                draw(st.sampled_from([about.transaction_id or ""] * 5 + ["never"])),
                user=about.user,
                merchant=draw(st.sampled_from([about.merchant] * 5 + ["Elsewhere"])),
                at=about.at + wrong,
                after=draw(st.sampled_from([0.0, DAY, 7 * DAY, 45 * DAY])),
                fraud=draw(st.booleans()),
            )
        )
    return txns, labels


def interleaved(txns: list[Transaction], labels: list[Feedback], chance: random.Random) -> list[Event]:
    """Both in one order: each kind stays in its own, and of each user alike."""
    turns = [True] * len(txns) + [False] * len(labels)
    chance.shuffle(turns)
    ours, theirs = iter(txns), iter(labels)
    return [next(ours) if turn else next(theirs) for turn in turns]


@pytest.mark.slow
@given(histories(), st.randoms(use_true_random=False))
@settings(max_examples=150)
def test_the_state_is_the_same_wherever_labels_come_among_transactions(
    events: tuple[list[Transaction], list[Feedback]], chance: random.Random
) -> None:
    txns, labels = events
    expected = Profiles().read(*txns, *labels).state()
    assert Profiles().read(*labels, *txns).state() == expected
    assert Profiles().read(*interleaved(txns, labels, chance)).state() == expected


def habits(user: str) -> list[Transaction]:
    """A month of ordinary payments, each at a merchant of its own."""
    return [
        txn(user, at=NOON - day * DAY, amount=20.0 + day % 5, merchant=f"{user}'s {day}", transaction_id=f"{user}{day}")
        for day in range(30, 0, -1)
    ]


ORDERS: dict[str, Callable[[list[Any], list[Any]], list[Any]]] = {
    "labels after": lambda txns, labels: txns + labels,
    "labels before": lambda txns, labels: labels + txns,
}


@pytest.mark.parametrize("order", ORDERS)
def test_twenty_frauds_that_their_amounts_explain_say_nothing_of_the_merchant(order: str) -> None:
    """As after a crash between two snapshots, when the short feedback topic is read first."""
    users = [f"user {n}" for n in range(20)]
    frauds = [txn(user, at=NOON + n * MINUTE, amount=900.0, transaction_id="x") for n, user in enumerate(users)]
    labels = [label("x", user=each.user, at=each.at, after=HOUR) for each in frauds]
    profiles = Profiles().read(*(each for user in users for each in habits(user)))
    profiles.read(*ORDERS[order](frauds, labels))
    profiles.read(*(txn(user, at=NOON + 2 * HOUR, amount=20.0) for user in users))
    assert profiles.features("card_frauds")[-20:] == [1.0] * 20
    assert profiles.last("merchant_compromised") == 0.0
    assert profiles.last("merchant_frauds_day") == 20.0


@pytest.mark.parametrize("order", ORDERS)
def test_a_correction_undoes_what_the_label_taught_the_merchant(order: str) -> None:
    payments = [txn("ann", at=NOON + n * DAY, transaction_id=f"t{n}") for n in range(5)]
    labels = [label(f"t{n}", at=NOON + n * DAY, after=6 * HOUR, fraud=True) for n in range(5)]
    corrections = [label(f"t{n}", at=NOON + n * DAY, after=12 * HOUR, fraud=False) for n in range(5)]
    profiles = Profiles().read(*ORDERS[order](payments, labels + corrections))
    values = profiles.peek(txn(at=NOON + 5 * DAY))
    assert (values["merchant_labels_week"], values["merchant_frauds_week"]) == (5.0, 0.0)
    assert values["merchant_compromised"] == 0.0
    assert values["confirmed_frauds"] == 0.0


def test_a_payment_does_not_see_its_own_label_and_the_next_one_does() -> None:
    for read in (Profiles.read, lambda profiles, *events: profiles.read_together(events)):
        profiles = Profiles()
        read(profiles, label("a", at=NOON), txn(at=NOON, transaction_id="a"), txn(at=NOON + MINUTE))
        assert profiles.features("confirmed_frauds") == [0.0, 1.0]
        assert profiles.features("merchant_frauds_day") == [0.0, 1.0]


def test_lessons_follow_the_payment_that_brings_them_each_to_the_merchant_that_its_label_names() -> None:
    events = [label("a", at=NOON, merchant="Shop"), txn(at=NOON, transaction_id="a"), txn(at=NOON + 1)]
    for profiles in (Profiles().read(*events), Profiles().read_together(events)):
        (taught,) = profiles.lessons()
        assert (taught["merchant"], taught["event"]) == ("Shop", 1)
        assert profiles.peek(txn(at=NOON + MINUTE))["merchant_frauds_day"] == 0.0
        assert profiles.peek(txn(at=NOON + MINUTE, merchant="Shop"))["merchant_frauds_day"] == 1.0


def test_a_label_that_waits_teaches_nobody() -> None:
    profiles = Profiles().read(label("a", at=NOON, merchant="Shop"))
    assert profiles.lessons() == []
    assert len(profiles.merchants.table) == 0


@pytest.mark.parametrize("order", ORDERS)
def test_the_label_of_a_reused_id_speaks_of_all_its_payments_and_one_unusual_amount_explains_it(order: str) -> None:
    payments = [txn(at=NOON + n, amount=amount, transaction_id="same") for n, amount in enumerate((20.0, 900.0, 21.0))]
    profiles = Profiles().read(*habits("ann"), *ORDERS[order](payments, [label("same", at=NOON)]))
    values = profiles.peek(txn(at=NOON + 3))
    assert (values["confirmed_frauds"], values["card_frauds"]) == (1.0, 1.0)
