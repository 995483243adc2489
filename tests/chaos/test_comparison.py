"""What chaos takes from recovery data, which is that by which the flow would begin again; and what it sees in it."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Message

from dataflow.profiles.user import DTYPE
from dataflow.state.lane import Lane
from dataflow.state.parquet import LaneFiles
from dataflow.tables.table import Tables
from tests.chaos.comparison import (
    LIMITS,
    MERCHANTS,
    RULES,
    THRESHOLDS,
    USERS,
    Counts,
    compare_profiles,
    compare_states,
    decide,
    profiles_of,
)
from tests.support.builders import DAY, HOUR, NOON, label, message, raw
from tests.support.profile_builders import USER_REFERENCES, Profiles, payment

# --------------------------------------------------------------------------------- profiles, by what their rows mean


def kept(*users: str) -> list[LaneFiles]:
    """The tables of a lane of users and of one of merchants: each user paid, was robbed, and had it labelled."""
    made = Profiles()
    for user in users:
        where, least, own = {"ann": "US", "bob": "FR"}[user], {"ann": 20.0, "bob": 30.0}[user], f"own-{user}"
        for n in range(12):
            made.read(payment(NOON + n, least + n, f"{user}-{n}", user=user, merchant=own, location=where))
        made.read(payment(NOON + HOUR, 5000.0, f"{user}-big", user=user, merchant="shop-1", location=where))
        made.read(label(f"{user}-big", at=NOON + HOUR, user=user, merchant="shop-1"))
        made.read(label(f"{user}-3", at=NOON + 3, after=2 * DAY, user=user, merchant=own))
    return [LaneFiles(USERS, 0, made.users._tables), LaneFiles(MERCHANTS, 0, made.merchants._tables)]


def compared(found: Iterable[LaneFiles], expected: Iterable[LaneFiles] | None = None) -> tuple[int, int, int]:
    """How many users, merchants of one user, and totals of other merchants are different."""
    counts = Counts(1)
    compare_profiles(profiles_of(found), profiles_of(expected or kept("ann", "bob")), counts)
    found_different = counts.states_different, counts.merchants_different, counts.merchant_totals_different
    assert counts.failed() is any(found_different)
    return found_different


def changed(change: Callable[[Tables, Tables], None]) -> tuple[int, int, int]:
    """What is seen of a change in the tables of users and of merchants."""
    lanes = kept("ann", "bob")
    change(lanes[0].tables, lanes[1].tables)
    return compared(lanes)


def flip(table: Any, row: int, field: str) -> None:
    """Changes the first byte of a field of a row."""
    values = table.rows[field][row : row + 1]
    values.view("u1").reshape(-1)[0] ^= 1


def test_which_rows_and_numbers_of_names_profiles_have_makes_no_difference() -> None:
    one, other = kept("ann", "bob"), kept("bob", "ann")
    assert one[0].tables["profiles"].keys != other[0].tables["profiles"].keys
    assert one[0].tables["names"].keys != other[0].tables["names"].keys
    assert compared(one, other) == (0, 0, 0)


@pytest.mark.parametrize("field", [name for name in DTYPE.names or () if name not in USER_REFERENCES])
def test_a_changed_byte_of_a_users_row_is_seen(field: str) -> None:
    assert changed(lambda users, _: flip(users["profiles"], 0, field)) == (1, 0, 0)


@pytest.mark.parametrize("field", ["busy", "unusual", "labelled", "last_location", "locations"])
def test_a_users_row_that_refers_to_another_is_seen(field: str) -> None:
    def change(users: Tables, _: Tables) -> None:
        table = users["profiles"]
        assert field == "locations" or table.rows[field][0] != table.rows[field][1]
        table.rows[field][0] = table.rows[field][1]

    assert changed(change) == (1, 0, 0)


def test_a_users_row_that_refers_to_none_or_to_one_that_is_not_there_is_seen() -> None:
    for number in (0, 10_000):
        assert changed(lambda users, _, number=number: users["profiles"].rows["labelled"].__setitem__(0, number)) == (
            1,
            0,
            0,
        )


def test_a_user_who_is_missing_and_one_too_many_are_seen() -> None:
    assert compared(kept("ann")) == (1, 1, 1)
    assert compared(kept("ann", "bob"), kept("ann")) == (1, 1, 1)
    assert compared([]) == (2, 2, 1)


def test_a_row_that_was_freed_is_seen() -> None:
    assert changed(lambda users, _: users["profiles"].free(["bob"])) == (1, 0, 0)
    assert changed(lambda _, merchants: merchants["profiles"].free(["own-bob"])) == (0, 1, 0)


@pytest.mark.parametrize("field", ["at", "labelled_at", "id", "merchant", "flags"])
def test_a_changed_label_is_seen(field: str) -> None:
    def change(users: Tables, _: Tables) -> None:
        block = users["labelled"].rows["block"][users["profiles"].rows["labelled"][0]]
        users["blocks"].rows[field][block, 0] += 1

    assert changed(change) == (1, 0, 0)


def test_changed_rows_beside_those_of_the_users_and_merchants_are_seen() -> None:
    def count(users: Tables, _: Tables) -> None:
        users["labelled"].rows["frauds"][users["profiles"].rows["labelled"][0]] += 1

    def busy(users: Tables, _: Tables) -> None:
        users["busy"].rows["amount"][users["profiles"].rows["busy"][0], 0] += 1

    def lesson(_: Tables, merchants: Tables) -> None:
        row = merchants["profiles"].row("own-ann")
        merchants["labelled"].rows["at"][merchants["profiles"].rows["labelled"][row], 0] += 1

    assert changed(count) == changed(busy) == (1, 0, 0)
    assert changed(lesson) == (0, 1, 0)


def test_a_merchants_transaction_that_is_missing_is_seen() -> None:
    def change(_: Tables, merchants: Tables) -> None:
        merchants["profiles"].rows["five_days_n"][merchants["profiles"].row("shop-1")] -= 1

    assert changed(change) == (0, 0, 1)


@pytest.mark.slow
def test_what_is_compared_is_what_was_committed(
    tmp_path: Path, model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In other batches and epochs all is equal; a message less, or a lane that did not write, is seen."""
    rules = tmp_path / "rules.toml"
    rules.write_text(RULES.format(limit=LIMITS[0]))

    def paid(n: int, at: float) -> Message:
        return message(raw(f"u{n % 7}", at=at, merchant=f"own-{n % 7}", device="pos", amount=120.0), offset=n)

    given = [paid(n, NOON + n) for n in range(70)]

    def run(name: str, messages: list[Message], batch_size: int = 1000) -> Path:
        decide(messages, model_file, rules, THRESHOLDS[0], tmp_path / name, batch_size)
        return tmp_path / name

    def seen(mine: Path) -> tuple[int, int, int]:
        counts = Counts(1)
        compare_states(mine, reference, counts)
        assert (counts.states, counts.merchants, counts.cooldowns) == (7, 7, 7)
        return counts.states_different, counts.merchants_different, counts.cooldowns_different

    reference = run("reference", given)
    assert seen(run("small batches", given, 3)) == (0, 0, 0)
    assert seen(run("one less", given[:-1])) == (1, 1, 0)  # it repeats an alert, so it begins no cooldown
    assert seen(run("another time", [paid(0, NOON + 0.5), *given[1:]])) == (1, 0, 1)  # a merchant keeps the newest
    monkeypatch.setattr(Lane, "_flush", lambda _self: None)
    assert seen(run("nothing written", given)) == (7, 7, 7)
