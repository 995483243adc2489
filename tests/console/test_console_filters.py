"""The queue's filters: whichever way the cases are found, they are the same."""

import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from console import queue_filters
from console.store import Batch
from console.view import View
from tests.console.builders import Console, alert

RULES = ("high_amount", "ml_anomaly", "fast", "fas")
FILTERS: dict[str, list[Any]] = {
    "rule": ["high_amount", "fas", "none", "a%"],
    "scenario": ["takeover"],
    "merchant": ["Kiosk"],
    "action": ["block", "review"],
    "at_least": [100.0],
    "at_most": [300.0],
    "score_from": [0.5],
    "search": ["kiosk", "takeover kiosk", "user3"],
}


@pytest.fixture
def console(place: str) -> Iterator[Console]:
    made = Console(place)
    yield made
    made.store.close()


def fill(console: Console) -> None:
    """Alerts of a few users that differ in all that can be filtered; some cases are taken, closed or suppressed."""
    rng = random.Random(7)
    for number in range(120):
        console.come(
            alert(
                f"user{rng.randrange(20)}",
                rules=rng.sample(RULES, rng.randrange(3)),
                scenario=rng.choice([None, "takeover", "testing"]),
                merchant=rng.choice(["Kiosk", "Amazon"]),
                action=rng.choice(["review", "review", "block"]),
                amount=float(rng.randrange(1, 500)),
                score=rng.random(),
                suppressed=number < 20,
            )
        )
    live = console.rows("SELECT number FROM cases WHERE live ORDER BY number")
    for case in live[:9]:
        console.store.take(case, "eve")
    for case in live[:5]:
        console.store.close_case(case, "eve")


def expected(console: Console, view: View) -> list[int]:
    """The cases that a view lets through, found by looking at each alert of each case."""
    states = {"waiting": ("open", "taken"), "mine": ("taken",)}.get(view.state, (view.state,))
    found = []
    for case in console.rows("SELECT number FROM cases ORDER BY last_alert DESC"):
        row = console.store.case(case)
        assert row is not None
        alerts = console.store.alerts_of(case)
        fits = [
            each
            for each in alerts
            if view.merchant in ("", each["merchant"])
            and view.scenario in ("", each["scenario"])
            and view.action in ("", each["action"])
            and (not view.rule or view.rule in each["rules"].split())
            and (view.at_least is None or each["amount"] >= view.at_least)
            and (view.at_most is None or each["amount"] <= view.at_most)
            and (view.score_from is None or each["score"] >= view.score_from)
        ]
        texts = [" ".join(str(value) for value in tuple(each)).lower() for each in alerts]
        searched = not view.search or any(all(word in text for word in view.search.split()) for text in texts)
        if row["state"] in states and fits and searched:
            found.append(case)
    return found


def views() -> Iterator[View]:
    """One filter, and two at a time."""
    single = [{name: value} for name, values in FILTERS.items() for value in values]
    for first, second in itertools.combinations_with_replacement(single, 2):
        if first == second or not first.keys() & second.keys():
            yield View(**{**first, **second})
    for state in ("mine", "closed", "suppressed"):
        yield View(state=state, analyst="eve")
        yield View(state=state, analyst="eve", rule="high_amount", at_most=300.0)


@pytest.mark.slow
@pytest.mark.parametrize("few", [0, 15, queue_filters.FEW], ids=["from-cases", "either", "from-alerts"])
def test_whichever_way_cases_are_found_they_are_those_that_the_filters_name(
    console: Console, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(console)
    monkeypatch.setattr(queue_filters, "FEW", few)
    for view in views():
        page, wanted = console.store.page(view), expected(console, view)
        assert [row["number"] for row in page.rows] == wanted, view
        assert (page.count, page.more) == (len(wanted), False), view
        riskiest = console.store.page(msgspec.structs.replace(view, order="riskiest")).rows
        keys = [(row["score"], row["amount"], row["last_alert"]) for row in riskiest]
        assert (keys, len(keys)) == (sorted(keys, reverse=True), len(wanted)), view


@pytest.mark.parametrize(
    "view",
    [
        View(rule="seldom"),
        View(rule="seldom", action="block"),
        View(scenario="seldom"),
        View(merchant="seldom"),
        View(action="block"),
        View(at_most=1.0),
        View(at_least=1000.0),
        View(score_from=0.99),
        View(search="seldom"),
        View(search="seldom", action="block"),
        View(state="mine", analyst="eve"),
        View(state="closed"),
    ],
    ids=lambda view: " ".join(f"{k}={v}" for k, v in msgspec.to_builtins(view).items() if v != getattr(View(), k)),
)
def test_what_few_alerts_have_is_found_without_a_look_at_all_others(
    tmp_path: Path, view: View, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told by the steps of SQLite's virtual machine, which no other program slows down."""
    monkeypatch.setattr(queue_filters, "FEW", 50)
    console = Console(tmp_path / "console.db")
    console.come(
        alert("bob", rules=["seldom"], scenario="seldom", merchant="seldom", action="block", amount=0.5),
        alert("cid", amount=2000.0, score=0.995),
        alert("dan"),
    )
    console.store.take(console.number("bob"), "eve")
    console.store.take(console.number("dan"), "eve")
    console.store.close_case(console.number("dan"), "eve")
    steps = []
    for _ in range(2):
        console.store.ingest(Batch([alert(f"user{number}") for number in range(2000)]))
        connection: Any = console.store.database.read()
        taken = itertools.count()
        connection.set_progress_handler(lambda taken=taken: next(taken) and None, 10)
        assert console.store.page(view).count == 1
        connection.set_progress_handler(None, 0)
        steps.append(next(taken))
    assert steps[1] < 1.2 * steps[0] + 20, steps
    console.store.close()


def test_rules_of_forgotten_alerts_are_forgotten(place: str) -> None:
    console = Console(place, alerts=2)
    console.come(*(alert("ann", rules=["a", "b", "a"]) for _ in range(5)))
    while console.store.forget():
        pass
    assert console.rows("SELECT number, rule FROM alert_rules ORDER BY number, rule") == [
        (4, "a"), (4, "b"), (5, "a"), (5, "b"),
    ]  # fmt: skip
    console.store.close()
