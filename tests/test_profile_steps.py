"""Parts of a batch on their way to the lanes of users and merchants, and to another process, and back."""

import itertools
import pickle
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from dataflow.events.transaction import Transaction
from dataflow.features.catalogue import LAST_LOCATION
from dataflow.profile_steps import Event, ProfileLimits, ProfileSteps, UserPart
from dataflow.profiles.amounts import AmountPrior
from dataflow.profiles.profiles import MERCHANT_LAYOUT, USER_LAYOUT, MerchantProfiles, UserProfiles
from dataflow.state.batches import lane_of
from dataflow.steps import dead_letter
from dataflow.tables.table import new_tables
from tests.support.builders import DAY, HOUR, NOON, label, txn

LANES = 4


class Flow:
    """The steps of the profiles over lanes, as one worker or several run them."""

    def __init__(self, alone: bool, between_processes: bool = False, cap: int = 1000):
        names = [str(lane) for lane in range(LANES)]
        self.steps = ProfileSteps(names, AmountPrior(), ProfileLimits(400.0, cap), dead_letter, alone)
        self.users = [self.steps.users(new_tables(USER_LAYOUT)) for _ in names]
        self.merchants = [self.steps.merchants(new_tables(MERCHANT_LAYOUT)) for _ in names]
        self._between_processes = between_processes

    def read(self, events: Sequence[Event]) -> dict[str, list[Any]]:
        """The features of a batch's transactions, by id."""
        of_users = [self._hop(each) for each in self.steps.key_by_user(list(events))]
        profiled = [(name, self.users[part.lane].take(part)) for name, part in of_users]
        # With several workers each part comes by itself; with one they come together.
        groups = [profiled] if self._alone else [[each] for each in profiled]
        known = []
        for group in groups:
            for each in self.steps.key_by_merchant(group):
                name, part = self._hop(each)
                known.append((name, self.merchants[part.lane].take(part)))
        found: dict[str, list[Any]] = {}
        for group in [known] if self._alone else [[each] for each in known]:
            batch, failed = self.steps.learned(group)
            assert failed == []
            for paid, numbers, last in zip(
                batch.transactions, batch.numbers(), batch.column(LAST_LOCATION), strict=True
            ):
                found[paid.transaction_id or ""] = [*numbers.tolist(), last]
        return found

    @property
    def _alone(self) -> bool:
        return self.steps._at_users._queue is not None

    def _hop(self, keyed: tuple[str, Any]) -> tuple[str, Any]:
        name, part = keyed
        return (name, pickle.loads(pickle.dumps(part))) if self._between_processes else keyed


@pytest.mark.parametrize("between_processes", [False, True])
def test_labels_whose_merchants_lane_gets_no_payment_are_taken_in_by_several_workers(between_processes: bool) -> None:
    """Each part is a batch of its own then, and one may hold nothing but lessons."""
    paid, taught = (
        "Amazon",
        next(name for name in ("a", "b", "c", "d") if lane_of(name, LANES) != lane_of("Amazon", LANES)),
    )
    batches = [
        [txn(merchant=taught, amount=900.0, transaction_id="1", location="US")],
        [label("1", merchant=taught), txn(merchant=paid, at=NOON + DAY + HOUR, transaction_id="2", location="FR")],
        [label("1", merchant=taught, fraud=False, after=2 * DAY)],
        [txn(merchant=taught, at=NOON + 3 * DAY, transaction_id="3")],
    ]
    one, several = Flow(alone=True), Flow(alone=False, between_processes=between_processes)
    for batch in batches:
        expected, found = one.read(batch), several.read(batch)
        assert found.keys() == expected.keys()
        for name in found:
            np.testing.assert_array_equal(found[name][:-1], expected[name][:-1])
            assert found[name][-1] == expected[name][-1]
    rows = several.merchants[lane_of(taught, LANES)]._profiles.table.rows
    assert rows["seen"].max() == 2.0


def fail_on_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the user's step raise on whatever the user "bad" does."""
    find = UserProfiles.find

    def failing(self: UserProfiles, events: Any, places: Any, batch: Sequence[Event]) -> None:
        if any(event.user == "bad" for event in batch):
            msg = "a fault"
            raise ValueError(msg)
        find(self, events, places, batch)

    monkeypatch.setattr(UserProfiles, "find", failing)


@pytest.mark.parametrize(("alone", "between_processes"), [(True, False), (False, False), (False, True)])
def test_a_transaction_that_fails_and_is_the_only_one_of_its_batch_goes_to_the_dead_letters(
    monkeypatch: pytest.MonkeyPatch, alone: bool, between_processes: bool
) -> None:
    fail_on_bad(monkeypatch)
    flow = Flow(alone, between_processes)
    profiled = [(name, flow.users[part.lane].take(part)) for name, part in flow.steps.key_by_user([txn(user="bad")])]
    by_merchant = [flow._hop(each) for each in flow.steps.key_by_merchant(profiled)]
    known = [(name, flow.merchants[part.lane].take(part)) for name, part in by_merchant]
    batch, failed = flow.steps.learned(known)
    assert len(batch) == 0
    assert [(bad.error, bad.step) for bad in failed] == [("ValueError", "update_user_profile")]


@pytest.mark.parametrize("alone", [True, False])
def test_a_batch_of_which_all_failed_does_not_move_the_features_of_those_it_is_joined_with(
    monkeypatch: pytest.MonkeyPatch, alone: bool
) -> None:
    """Bytewax may hand over several parts at once; each step goes on with what did not fail."""
    fail_on_bad(monkeypatch)
    flow = Flow(alone)
    profiled = []
    for user in ("bad", "ann", "bad"):
        for name, part in flow.steps.key_by_user([txn(user=user, amount=77.0)]):
            profiled.append((name, flow.users[part.lane].take(part)))
    known = [(name, flow.merchants[part.lane].take(part)) for name, part in flow.steps.key_by_merchant(profiled)]
    batch, failed = flow.steps.learned(known)
    assert [each.user for each in batch.transactions] == ["ann"]
    assert np.asarray(batch.column("amount")).tolist() == [77.0]
    assert [(bad.error, bad.step) for bad in failed] == [("ValueError", "update_user_profile")] * 2


def names_of_a_lane(count: int) -> list[str]:
    names = (f"name {number}" for number in itertools.count())
    return list(itertools.islice((name for name in names if lane_of(name, LANES) == lane_of("bad", LANES)), count))


def test_those_beside_one_that_fails_do_not_take_each_others_profile_where_there_is_no_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fail_on_bad(monkeypatch)
    flow, users = Flow(alone=True, cap=2), names_of_a_lane(4)
    for _, part in flow.steps.key_by_user([txn(user=user, amount=20.0) for user in [*users, "bad"]]):
        flow.users[part.lane].take(part)
    table = flow.users[lane_of("bad", LANES)]._profiles.table
    assert {user: table.rows["seen"][table.row_of[user]] for user in users} == dict.fromkeys(users, 1.0)


def test_neither_do_merchants(monkeypatch: pytest.MonkeyPatch) -> None:
    find = MerchantProfiles.find

    def failing(self: MerchantProfiles, merchants: Sequence[str]) -> Any:
        if "bad" in merchants:
            msg = "a fault"
            raise ValueError(msg)
        return find(self, merchants)

    monkeypatch.setattr(MerchantProfiles, "find", failing)
    flow, names = Flow(alone=True, cap=2), names_of_a_lane(4)
    payments = [txn(merchant=name, amount=20.0, transaction_id=name) for name in [*names, "bad"]]
    profiled = [(name, flow.users[part.lane].take(part)) for name, part in flow.steps.key_by_user(payments)]
    for _, part in flow.steps.key_by_merchant(profiled):
        flow.merchants[part.lane].take(part)
    table = flow.merchants[lane_of("bad", LANES)]._profiles.table
    assert {name: table.rows["seen"][table.row_of[name]] for name in names} == dict.fromkeys(names, 1.0)


def test_batches_whose_parts_come_back_in_any_order_go_on_in_the_order_in_which_they_came() -> None:
    flow = Flow(alone=True)
    keyed: list[tuple[str, UserPart]] = [
        part for n in range(12) for part in flow.steps.key_by_user([txn(user=f"{n} {u}", offset=n) for u in range(9)])
    ]
    random.Random(1).shuffle(keyed)
    joined = flow.steps._at_users.join(keyed[:-4]) + flow.steps._at_users.join(keyed[-4:])
    assert [batch.events[0].offset for batch in joined if isinstance(batch.events[0], Transaction)] == list(range(12))
