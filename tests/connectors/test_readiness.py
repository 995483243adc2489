"""What each check of readiness says, and from when on."""

import math
from types import SimpleNamespace
from typing import Any

import pytest

from dataflow.connectors.readiness import ready_checks

FINE = {"silent": 0.5, "lease": 2.0, "waiting": 0.0, "snapshot": 4.0}


def wrong(**seconds: float) -> list[str]:
    """What the checks say, with a snapshot every five seconds."""
    now = FINE | seconds
    watch: Any = SimpleNamespace(seconds_since_answer=lambda: now["silent"])
    ownership: Any = SimpleNamespace(age=lambda: now["lease"])
    sink: Any = SimpleNamespace(waiting_seconds=lambda: now["waiting"])
    snapshots: Any = SimpleNamespace(age=lambda: now["snapshot"])
    return [said for check in ready_checks(watch, ownership, sink, snapshots, 5.0) if (said := check()) is not None]


def test_nothing_is_wrong_where_all_is_fine_also_without_recovery() -> None:
    assert wrong() == []
    assert wrong(snapshot=math.nan) == []


@pytest.mark.parametrize(
    ("what", "limit", "says"),
    [
        ("silent", 10.0, "no broker has answered for 11 s"),
        ("lease", 12.0, "it is not known for 13 s whose the outputs are"),
        ("waiting", 10.0, "a record has not been acknowledged for 11 s"),
        ("snapshot", 25.0, "the last snapshot is 26 s old"),
    ],
)
def test_each_is_patient_for_so_long_and_then_says_what_and_since_when(what: str, limit: float, says: str) -> None:
    assert wrong(**{what: limit}) == []
    assert wrong(**{what: limit + 1}) == [says]
