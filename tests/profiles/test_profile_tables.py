"""Rows that grow, are freed and used again; the age limit and the cap; names by number; hashes."""

from itertools import pairwise

import numpy as np
import pytest

from dataflow.events.feedback import Feedback
from dataflow.events.transaction import UNKNOWN
from dataflow.profiles import columns
from dataflow.profiles.compilation import quiet
from dataflow.profiles.hashing import NameHashes, hash_texts, payment_word
from dataflow.profiles.labels import NEVER
from dataflow.profiles.profiles import NAMES_KEPT, UserProfiles
from dataflow.profiles.table import Names
from tests.support.builders import DAY, NOON, label, txn
from tests.support.profile_builders import Profiles


def seen(profiles: UserProfiles, *events: object) -> np.ndarray:
    return profiles.observe(profiles.events(list(events)))[0]  # type: ignore[arg-type]


def test_a_key_keeps_its_row_while_the_table_grows() -> None:
    users = UserProfiles()
    first = users.table.rows_of(["ann", "bob", "ann"])
    assert first.tolist() == [0, 1, 0]
    users.table.rows_of([f"user {n}" for n in range(1000)])
    assert users.table.rows_of(["bob", "ann"]).tolist() == [1, 0]
    assert len(users.table) == 1002


def test_a_freed_row_is_used_again_and_blank_with_all_that_it_had_in_side_tables_given_back() -> None:
    users = UserProfiles()
    payments = [txn(at=NOON + n, amount=1.0 if n < 19 else 900.0, transaction_id=f"{n}") for n in range(20)]
    labels = [Feedback(f"{n}", "ann", "Amazon", NOON + n, True, NOON + DAY) for n in range(20)]
    seen(users, *payments, *labels)
    assert (users.busy.taken, users.unusual.taken, users.labelled.taken, users.blocks.taken) == (1, 1, 1, 3)
    users.table.free(users.table.rows_of(["ann"]))
    assert (users.busy.taken, users.unusual.taken, users.labelled.taken, users.blocks.taken) == (0, 0, 0, 0)
    assert len(users.table) == 0
    assert users.table.rows_of(["bob"]).tolist() == [0]
    assert users.table.rows[0] == users.table.blank[0]


def test_a_profile_idle_for_longer_than_its_age_begins_anew_whether_it_was_freed_or_not() -> None:
    outcomes = []
    for free in (False, True):
        users = UserProfiles(age_days=100.0)
        seen(users, txn(at=NOON), txn(user="bob", at=NOON + 99 * DAY))
        if free:
            assert users.free_idle((NOON + 101.5 * DAY) / DAY) == 1
        features = seen(users, txn(at=NOON + 102 * DAY), txn(user="bob", at=NOON + 102 * DAY))
        outcomes.append(features)
        assert features[:, columns.HISTORY].tolist() == [0.0, 1.0]
        assert users.begun_anew == (0 if free else 1)
    of_users = [features[:, : columns.USER_FEATURES] for features in outcomes]
    np.testing.assert_array_equal(*of_users)


def test_an_event_at_the_very_age_still_finds_its_profile_and_a_label_counts_as_an_event() -> None:
    users = UserProfiles(age_days=100.0)
    label = Feedback("1", "ann", "Amazon", NOON, False, NOON + 60 * DAY)
    features = seen(users, txn(at=NOON), label, txn(at=NOON + 160 * DAY))
    assert features[-1, columns.HISTORY] == 1.0
    features = seen(users, txn(at=NOON + 260.1 * DAY))
    assert features[-1, columns.HISTORY] == 0.0


def test_a_merchant_idle_for_longer_than_its_age_begins_anew_with_its_labels() -> None:
    profiles = Profiles(age_days=100.0).read(txn("ann", at=NOON, transaction_id="a"), label("a", after=0.0))
    profiles.read(*(txn(user, at=at) for user, at in (("bob", NOON + 50 * DAY), ("cat", NOON + 151 * DAY))))
    assert profiles.features("days_since_merchant_fraud") == [NEVER, 50.0, NEVER]
    assert profiles.merchants.table.rows["seen"][profiles.merchants.table.row_of["Amazon"]] == 1
    assert profiles.merchants.labelled.taken == 0
    assert profiles.merchants.begun_anew == 1


def test_beyond_the_cap_the_ones_idle_for_longest_are_evicted_and_counted() -> None:
    users = UserProfiles(cap=100)
    for n in range(250):
        seen(users, txn(user=f"user {n}", at=NOON + n * 60), txn(user="regular", at=NOON + n * 60))
        assert len(users.table) <= 100
    assert users.table.evicted == 251 - len(users.table)
    assert "regular" in users.table.row_of
    assert "user 249" in users.table.row_of
    assert "user 100" not in users.table.row_of
    assert len(users.table.keys) < 130  # rows that were ever used


def test_who_goes_beyond_the_cap_does_not_depend_on_the_order_of_rows() -> None:
    users = UserProfiles(cap=3)
    seen(users, txn(user="ann", at=NOON + 5 * DAY), txn(user="bob", at=NOON), txn(user="cat", at=NOON + 3 * DAY))
    users.table.rows_of(["dan"])
    assert sorted(users.table.row_of) == ["ann", "cat", "dan"]


def test_keys_of_one_batch_are_not_evicted_by_it() -> None:
    users = UserProfiles(cap=10)
    seen(users, *[txn(user=f"user {n}", at=NOON + n * DAY) for n in range(10)])
    rows = users.table.rows_of(["user 0", "new"])  # user 0 is the one idle for longest
    assert rows[0] == 0
    assert users.table.keys[rows[0]] == "user 0"
    assert "user 1" not in users.table.row_of
    users = UserProfiles(cap=10)
    rows = users.table.rows_of([f"user {n}" for n in range(50)])
    assert sorted(rows.tolist()) == list(range(50))


def test_rows_of_a_table_are_each_of_one_key() -> None:
    users = UserProfiles(cap=40)
    random = np.random.default_rng(1)
    for n in range(200):
        seen(users, *[txn(user=f"user {k}", at=NOON + n * 60) for k in random.integers(0, 90, 7)])
        rows = sorted(users.table.row_of.values())
        assert all(a < b for a, b in pairwise(rows))
        assert all(users.table.keys[row] == key for key, row in users.table.row_of.items())


def test_names_that_no_profile_holds_give_their_number_back() -> None:
    names = Names(UNKNOWN)
    numbers = names.numbers_of(["US", UNKNOWN, "FR", "US", "IN"])
    assert numbers.tolist() == [1, 0, 2, 1, 3]
    names.keep([np.array([1, 3])])
    assert len(names) == 2
    assert names.numbers_of(["IN", "DE", "US"]).tolist() == [3, 2, 1]
    assert [names.texts[number] for number in (0, 1, 2, 3)] == ["", "US", "DE", "IN"]


def test_invented_locations_do_not_pile_up_and_those_of_profiles_stay() -> None:
    users = UserProfiles()
    last = ""
    for n in range(3 * NAMES_KEPT):
        records = users.events([txn(location=f"place {n}", at=NOON + n)])
        users.observe(records)
        assert users.texts(records["last_location"]) == [last]
        last = f"place {n}"
        users.sweep_names()
    assert len(users.names) <= 2 * NAMES_KEPT


def test_hashes_are_the_same_in_every_process_and_tell_texts_apart() -> None:
    assert hash_texts(["", "a", "tx-1", "é\ud800"]).tolist() == [
        hash_texts([text])[0] for text in ("", "a", "tx-1", "é\ud800")
    ]
    assert hash_texts(["", "a", "tx-1"]).tolist() == [3820175728244312737, 1931405689030546322, 6514433139699658238]
    many = hash_texts([f"tx-{n}" for n in range(100_000)])
    assert len(np.unique(many)) == 100_000
    assert abs(np.mean(many >> 40 & 1) - 0.5) < 0.01
    names = NameHashes(UNKNOWN)
    assert names.of([UNKNOWN, "a", UNKNOWN, "a"]).tolist()[0::2] == [0, 0]
    assert names.of(["a"])[0] == hash_texts(["a"])[0] & 0xFFFFFFFF


@pytest.mark.parametrize("other", ["id", "amount", "time", "merchant"])
def test_what_makes_a_payment_another_changes_its_word(other: str) -> None:
    bits = {"id": hash_texts(["x"])[0], "amount": np.int64(5), "time": np.int64(NOON), "merchant": np.uint32(7)}
    changed = bits | {other: bits[other] + 1}
    with quiet():
        one, two = payment_word(*bits.values()), payment_word(*changed.values())
    assert one != two
    assert (one >> 24 == two >> 24) or other == "id"
    assert one & ~0xFFFFFF == bits["id"] & ~0xFFFFFF
