"""The search: what it finds of card numbers for whom, and what it costs."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from console import queue_filters
from console.pages.queue_rows import row_of
from console.store import Batch
from console.view import View
from tests.console.builders import Console, alert

CARD = "4111222233334448"
SPACED = "4111 2222 3333 4448"
MASKED = "411122******4448"


def found(console: Console, view: View) -> set[str]:
    return {row["user"] for row in console.store.page(view).rows}


@pytest.mark.parametrize("few", [0, queue_filters.FEW], ids=["from-cases", "from-alerts"])
def test_a_whole_card_number_is_found_by_those_only_who_may_see_it(
    place: str, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_filters, "FEW", few)
    console = Console(place)
    console.come(
        alert("ann", device=CARD),
        alert("bob", merchant=SPACED),
        alert("cid", reason=f"Card {SPACED} flagged"),
        alert("dan", explanation=[
            {"feature": "device", "value": 1, "usual": None, "effect": 0.4, "text": f"new device {CARD}"}
        ]),
        alert("eve", device="4222111122223331"),
    )  # fmt: skip
    everybody = {"ann", "bob", "cid", "dan"}
    for typed in (CARD, SPACED, SPACED.replace(" ", "-")):
        assert found(console, View(search=typed)) == set(), typed
        assert found(console, View(search=typed, cards=True)) == everybody, typed
    # Nor can it be guessed digit by digit, as words may go on.
    for end in range(7, 16):
        assert found(console, View(search=CARD[:end])) == set()
    for middle in ("2222", "3333", "22 3333"):
        assert found(console, View(search=middle)) == set()
    for typed in ("411122", "4448", MASKED):  # as everybody sees it
        assert found(console, View(search=typed)) == everybody
    assert found(console, View(merchant=SPACED)) == set()
    assert found(console, View(merchant=SPACED, cards=True)) == {"bob"}
    console.store.close()


def test_a_browser_gets_no_card_number_with_a_group(place: str) -> None:
    console = Console(place)
    console.come(alert("ann", device=CARD), alert("bob", device=CARD), alert("cid"))
    view = View(group="device", order="riskiest")
    rows = [row_of(each, view) for each in console.store.page(view).rows]
    assert {row["user"] for row in rows} == {MASKED, "phone-1"}
    assert CARD not in str(rows)
    assert len({row["id"] for row in rows}) == 2
    console.store.close()


def test_a_word_that_many_alerts_have_costs_no_look_at_each_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told by the steps of SQLite's virtual machine, which no other program slows down."""
    monkeypatch.setattr(queue_filters, "FEW", 50)
    console = Console(tmp_path / "console.db")
    console.store.ingest(Batch([alert(f"user{number % 100}") for number in range(5000)]))
    connection: Any = console.store.database.read()
    taken = itertools.count()
    connection.set_progress_handler(lambda: next(taken) and None, 10)
    assert console.store.page(View(search="amount")).count == 100
    connection.set_progress_handler(None, 0)
    steps = 10 * next(taken)
    print(steps)
    assert steps < 15 * 5000, steps
    console.store.close()
