"""A profile as an operator reads it."""

from pathlib import Path

import pytest

from dataflow.events.parsing import parse
from dataflow.events.transaction import Transaction
from dataflow.profiles.in_words import describe_merchant, describe_user
from dataflow.state.__main__ import main
from tests.support.builders import DAY, HOUR, NOON, iso, label, raw, txn
from tests.support.profile_builders import Profiles


def of_user(profiles: Profiles, name: str) -> list[str]:
    return describe_user(profiles.users._tables, profiles.users.table.row_of[name])


def of_merchant(profiles: Profiles, name: str) -> list[str]:
    return describe_merchant(profiles.merchants._tables, profiles.merchants.table.row_of[name])


def test_a_users_profile_says_what_they_paid_where_and_what_labels_say() -> None:
    profiles = Profiles().read(
        txn(at=NOON, amount=20.0, transaction_id="1", latitude=48.0, longitude=2.0),
        txn(at=NOON + 2 * DAY, amount=30.0, transaction_id="2", location="FR", device="pad", merchant="Bazaar"),
        label("1"),
        label("9", at=NOON + 9 * DAY),
    )
    assert of_user(profiles, "ann") == [
        "2 transactions since 2026-03-02, the newest at 2026-03-04T12:00:00+00:00",
        "usual amount 25.00, the largest so far 30.00",
        "up to then 1 of 30.00 in 24 hours, 2 of 50.00 in 7 days, 2 of 50.00 in 30 days",
        "last seen in FR",
        "known of late: 2 merchants and 2 devices, of which hashes are kept, not names",
        "locations of late: US, FR",
        "the centre of their places is 48.00, 2.00, 0 km from it are usual",
        "labels remembered: 2, of them 2 of frauds, 1 of transactions that have not come",
        "confirmed frauds: 1",
    ]


def test_a_merchants_profile_says_what_was_paid_there_and_of_which_frauds_labels_tell() -> None:
    profiles = Profiles().read(txn(at=NOON, amount=20.0, transaction_id="1"), label("1", after=HOUR))
    assert of_merchant(profiles, "Amazon") == [
        "1 transactions, the newest at 2026-03-02T12:00:00+00:00",
        "usual amount 20.00",
        "up to then 1 of 20.00 in 24 hours, 1 of 20.00 in 7 days, 1 of 20.00 in 30 days",
        "labels that came: 1 in 24 hours, 1 in 7 days, 1 in 30 days; of them of frauds 1 in 24 hours, 1 in 7 days, "
        "1 in 30 days",
        "the last run of frauds that amounts do not explain: 1, from 2026-03-02 to 2026-03-02, 0 genuine ones since",
    ]


def test_more_labels_than_a_block_holds_are_all_counted() -> None:
    profiles = Profiles().read(*(label(str(n), at=NOON + n, fraud=n % 2 == 0) for n in range(20)))
    assert of_user(profiles, "ann")[0] == "no transaction yet"
    assert "labels remembered: 20, of them 10 of frauds" in "\n".join(of_user(profiles, "ann"))


def test_a_time_that_an_offset_moves_out_of_the_calendar_is_shown_all_the_same() -> None:
    value = raw("ann", at=NOON).replace(iso(NOON).encode(), b"0001-01-01T00:00:00+14:00")
    moved = parse(value, b"ann", "transactions", 0, 0, int(NOON * 1000), NOON, DAY)
    assert isinstance(moved, Transaction)
    first, *_ = of_user(Profiles().read(moved), "ann")
    assert first == "1 transactions since 0000-12-31, the newest at 0000-12-31T10:00:00+00:00"


def test_of_nobody_the_command_says_so_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["user", str(tmp_path), "ann"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
