"""What profiles report as changed is all that changed: a log of it restores the tables as they are."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataflow.events.transaction import Transaction
from dataflow.profiles.profiles import MERCHANT_LAYOUT, NAMES_KEPT, USER_LAYOUT, MerchantProfiles, UserProfiles
from dataflow.tables.table import Tables, new_tables
from tests.support.builders import DAY, NOON, label
from tests.support.profile_builders import Event, Profiles, awkward, payment


class Log:
    """The changes that profiles report, put into tables of another lane."""

    def __init__(self, profiles: Profiles):
        self._profiles = profiles
        self.users, self.merchants = new_tables(USER_LAYOUT), new_tables(MERCHANT_LAYOUT)

    def write(self) -> None:
        """Takes what has changed since the last time."""
        for tables, profiles in ((self.users, self._profiles.users), (self.merchants, self._profiles.merchants)):
            for table, changes in zip(tables.values(), profiles.changes(), strict=True):
                table.put_keys(changes.changed, changes.keys)
                table.put_rows(changes.numbers, changes.rows)

    def restored(self) -> Profiles:
        """Profiles of what was written."""
        for tables in (self.users, self.merchants):
            for table in tables.values():
                table.loaded()
        restored = Profiles()
        restored.users = UserProfiles(tables=self.users)
        restored.merchants = MerchantProfiles(tables=self.merchants)
        return restored


def check_same(one: Tables, other: Tables) -> None:
    for name, table in one.items():
        assert other[name].keys == table.keys, name
        assert other[name].used == table.used, name
        assert other[name].rows[: table.used].tobytes() == table.rows[: table.used].tobytes(), name


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32), st.sampled_from([1, 3, 20]), st.sampled_from([4, 10**6]), st.sampled_from([1.0, 400.0]),
    st.sampled_from([3600.0, 5 * DAY, 60 * DAY]), st.lists(st.integers(0, 200), max_size=8),
)  # fmt: skip
def test_a_log_of_what_changed_restores_every_table_byte_by_byte(
    seed: int, users: int, cap: int, age_days: float, span: float, cuts: list[int]
) -> None:
    profiles = Profiles(age_days=age_days, cap=cap)
    log = Log(profiles)
    events = awkward(seed, 80, users, span)
    places = sorted({0, len(events), *(min(cut, len(events)) for cut in cuts)})
    for begin, end in pairwise(places):
        profiles.read_together(events[begin:end])
        log.write()
    check_same(profiles.users._tables, log.users)
    check_same(profiles.merchants._tables, log.merchants)
    assert log.restored().state() == profiles.state()


def busy_and_labelled() -> list[Event]:
    paid = [payment(NOON + n, 1.0 if n < 19 else 900.0, f"{n}") for n in range(30)]
    return [*paid, *(label(f"{n}", at=NOON + n, fraud=n % 2 == 0) for n in range(30))]


def test_restored_profiles_go_on_as_those_that_went_on() -> None:
    profiles = Profiles().read_together(busy_and_labelled())
    log = Log(profiles)
    log.write()
    restored = log.restored()
    more = [*awkward(1, 60, 3, 5 * DAY), *(payment(NOON + n * 60) for n in range(40))]
    np.testing.assert_array_equal(
        restored.read_cut(more, [20]).batch().numbers(), profiles.read(*more).batch().numbers()[30:]
    )
    assert restored.state() == profiles.state()


def test_profiles_that_are_freed_leave_nothing_in_the_log() -> None:
    profiles = Profiles(age_days=100.0).read_together(busy_and_labelled())
    log = Log(profiles)
    log.write()
    assert profiles.users.free_idle((NOON + 300 * DAY) / DAY) == 1
    assert profiles.merchants.free_idle((NOON + 300 * DAY) / DAY) == 1
    log.write()
    restored = log.restored()
    assert restored.state() == ({}, {})
    assert [table.taken for table in restored.users._side_tables] == [0, 0, 0, 0]
    assert restored.merchants.labelled.taken == 0


def test_names_that_were_given_back_are_given_back_in_the_log() -> None:
    profiles = Profiles()
    log = Log(profiles)
    for begin in range(0, 3 * NAMES_KEPT, 100):
        profiles.read_together([payment(NOON + n, location=f"place {n}") for n in range(begin, begin + 100)])
        profiles.users.sweep_names()
        log.write()
    assert len(profiles.users.names) < 2 * NAMES_KEPT < profiles.users.names._table.used + 1
    check_same(profiles.users._tables, log.users)
    assert log.restored().state() == profiles.state()


def test_a_batch_that_repeats_all_changes_no_row_but_those_of_its_keys() -> None:
    events = [each for each in busy_and_labelled() if isinstance(each, Transaction)][-10:]
    profiles = Profiles().read_together(events)
    profiles.users.changes()
    profiles.read_together(events)
    written = [len(changes.numbers) for changes in profiles.users.changes()]
    assert written == [1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("table", [name for name in USER_LAYOUT.tables if name not in ("profiles", "names")])
def test_rows_of_side_tables_begin_with_their_chain_and_their_mark(table: str) -> None:
    assert (USER_LAYOUT.tables[table].names or ())[:2] == ("next", "written")
