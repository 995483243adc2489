"""What forgetting costs: it is done on the thread that writes, so alerts wait meanwhile."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from console import store
from console.store import Batch
from tests.console.builders import Console, alert


def test_a_look_for_what_is_to_be_forgotten_is_none_at_all_alerts(tmp_path: Path) -> None:
    """Told by the steps of SQLite's virtual machine, which no other program slows down."""
    console = Console(tmp_path / "console.db")
    writer: Any = console.store.database
    steps = []
    for _ in range(2):
        console.store.ingest(Batch([alert(f"user{number}") for number in range(2000)]))
        taken = itertools.count()
        writer._connection.set_progress_handler(lambda taken=taken: next(taken) and None, 10)
        assert console.store.forget() == 0
        writer._connection.set_progress_handler(None, 0)
        steps.append(next(taken))
    assert steps[1] < 1.2 * steps[0] + 20, steps
    console.store.close()


def test_alerts_are_forgotten_a_piece_at_a_time(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "FORGOTTEN_AT_ONCE", 3)
    console = Console(place, alerts=2)
    console.come(*(alert(f"user{number}") for number in range(10)))
    assert [console.store.forget() for _ in range(4)] == [3, 3, 2, 0]
    assert console.rows("SELECT number FROM alerts ORDER BY number") == [9, 10]
    console.store.close()
