"""Whatever comes and however much, a profile stays small, and what it remembers is the same in every process."""

import hashlib
import random
import subprocess
import sys

import msgspec
import numpy as np
import pytest

from dataflow.profiles import fraud_run, labels, last_hour, merchant, unusual_ids, user
from dataflow.profiles.labels import LABELLED
from dataflow.profiles.profiles import NAMES_KEPT, UserProfiles
from tests.support.builders import DAY, HOUR, MINUTE, NOON, label
from tests.support.profile_builders import Event, Profiles, payment

HOSTILE = ("\x00", "\U0001f480" * 256, "a" * 256, "a,b\n\"'", "ﷺ" * 200, "unknown ", "\u202e")


def taken(users: UserProfiles) -> list[int]:
    """Rows of side tables that are profiles': busy, unusual, labelled, blocks of labels."""
    return [table.taken for table in (users.busy, users.unusual, users.labelled, users.blocks)]


@pytest.mark.slow
def test_a_user_stays_small_whatever_comes_and_however_much() -> None:
    users = UserProfiles()
    most = [0, 1, 1, LABELLED // labels.BLOCK + 1]
    for begin in range(0, 100_000, 1000):
        events: list[Event] = []
        for n in range(begin, begin + 1000):
            name = f"{HOSTILE[n % len(HOSTILE)]}{n}"[-256:]
            each = payment(NOON + 600.0 * n, 10.0 ** (n % 300), name, merchant=name, device=name, location=name)
            events.append(msgspec.structs.replace(each, latitude=n % 90, longitude=n % 180))
            if n % 3 == 0:
                told = {"fraud": n % 2 == 0, "merchant": name}
                events.append(label(name, at=each.at + DAY * (n % 5 == 0), after=0.0, **told))
        users.observe(users.events(events))
        users.sweep_names()
        assert all(number <= limit for number, limit in zip(taken(users)[1:], most[1:], strict=True))
        assert users.busy.taken <= 1
        assert len(users.names) < 2 * NAMES_KEPT
        assert users.nbytes < 300_000  # the side tables' first rows, for all users there are
    assert len(users.table) == 1


def test_an_ordinary_user_takes_about_a_kilobyte_and_labels_take_room_only_where_there_are_any() -> None:
    profiles = Profiles()
    for n in range(500):
        each = payment(
            NOON + n * 7 * HOUR, merchant=f"m{n % 20}", device=f"d{n % 5}", location=f"l{n % 5}", name=f"{n}",
            latitude=48.0 + n % 7 / 100, longitude=11.5,
        )  # fmt: skip
        profiles.read(each)
    assert taken(profiles.users) == [0, 0, 0, 0]
    assert profiles.merchants.labelled.taken == 0
    assert user.DTYPE.itemsize < 1150
    profiles.read(*(label(f"{n}", at=NOON + n * 7 * HOUR) for n in range(0, 500, 50)))
    assert taken(profiles.users) == [0, 0, 1, 2]
    of_labels = profiles.users.labelled.rows.itemsize + 2 * profiles.users.blocks.rows.itemsize
    assert user.DTYPE.itemsize + of_labels < 1150 + 10 * (24 + 8) + 50


def test_rows_have_the_widths_that_the_docs_promise() -> None:
    def widths(*fields: list[object]) -> list[int]:
        return [np.dtype(each).itemsize for each in fields]  # type: ignore[call-overload]

    assert (user.DTYPE.itemsize, merchant.DTYPE.itemsize) == (521, 280)
    assert widths(unusual_ids.UNUSUAL_FIELDS, labels.LABELLED_FIELDS, labels.BLOCK_FIELDS) == [137, 61, 237]
    assert widths(last_hour.BUSY_FIELDS, fraud_run.LABELLED_FIELDS) == [12_301, 2454]


def busy() -> Profiles:
    """Payments late and unusual, at many merchants, with labels before and after them."""
    rng, profiles = random.Random(1), Profiles()
    for n in range(300):
        at = NOON + n * 20 * MINUTE - rng.choice((0, 0, rng.randrange(50_000)))
        place = {"latitude": n % 5, "longitude": n % 7}
        profiles.read(payment(at, rng.lognormvariate(3, 1), f"b{n}", merchant=f"m{n % 9}", **place))
        if n % 4 == 0:
            profiles.read(label(f"b{n}", at=at + DAY * (n % 12 == 0), fraud=n % 8 == 0, merchant=f"m{n % 9}"))
    return profiles


def digest() -> str:
    """Stands for all that is remembered in `busy`."""
    return hashlib.sha256(repr(busy().state()).encode()).hexdigest()


@pytest.mark.slow
def test_what_is_remembered_is_the_same_in_every_process() -> None:
    code = "from tests.profiles.test_bounds import digest; print(digest())"
    found = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ".", "NUMBA_DISABLE_JIT": without_jit},
        ).stdout.strip()
        for seed, without_jit in (("1", "0"), ("2", "0"), ("3", "1"))
    }  # fmt: skip
    assert found == {digest()}
