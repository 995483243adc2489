"""What the console keeps: alerts once, in bounds, in cases that one analyst works."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from console import figures, queue_view
from console.cases import ConflictError
from console.database import Connection
from console.postgres_connection import Postgres
from console.sqlite_database import Sqlite
from console.store import Batch, Store
from console.view import View
from dataflow.errors import UserError
from dataflow.events.feedback import Feedback, parse_feedback
from tests.console.builders import Console, alert
from tests.support.builders import NOON


@pytest.fixture
def console(place: str) -> Iterator[Console]:
    made = Console(place)
    yield made
    made.store.close()


def shown(console: Console, **view: object) -> list[str]:
    return [row["user"] for row in console.store.page(View(**view)).rows]  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------- once, bounded


def test_an_alert_that_is_read_twice_is_kept_once(console: Console) -> None:
    console.store.ingest(Batch([alert(offset=7)], next_offsets={("alerts", 0): ("topic-1", 8)}))
    assert console.store.ingest(Batch([alert(offset=7), alert(offset=8)])) == 1
    assert console.rows("SELECT offset FROM alerts") == [7, 8]
    assert console.store.offsets() == {("alerts", 0): ("topic-1", 8)}


def test_records_and_offsets_are_stored_together_or_not_at_all(console: Console) -> None:
    bad = Feedback("t", "ann", "shop", NOON, True, NOON)
    with pytest.raises(AttributeError):  # what fails on the way is the fault of a program: nothing of it stays
        console.store.ingest(
            Batch([alert()], [bad, None], next_offsets={("alerts", 0): ("topic-1", 8)})  # type: ignore[list-item]
        )
    assert console.rows("SELECT count(*) FROM alerts") == [0]
    assert console.store.offsets() == {}
    console.come(alert())  # and the writer lives on
    assert console.rows("SELECT count(*) FROM alerts") == [1]


def test_the_oldest_alerts_are_forgotten_beyond_the_limit_and_their_cases_with_them(place: str) -> None:
    console = Console(place, alerts=3)
    console.come(*(alert(f"user{n}") for n in range(5)), alert("user2", score=0.1))
    assert console.store.forget() == 3
    assert console.store.forget() == 0
    assert console.rows("SELECT user FROM alerts ORDER BY number") == ["user3", "user4", "user2"]
    assert sorted(console.rows("SELECT user FROM cases")) == ["user2", "user3", "user4"]
    # The alert that stood for the case is gone: its newest does now.
    assert set(shown(console)) == {"user2", "user3", "user4"}
    assert shown(console, search="user0") == []
    assert console.rows("SELECT count(*) FROM alert_text") == [3]
    console.store.close()


def test_alerts_are_forgotten_by_age_and_numbers_are_never_given_twice(place: str) -> None:
    console = Console(place, days=1)
    console.come(alert("old"))
    console.clock.now += 86_500
    assert console.store.forget() == 1
    console.come(alert("new"))
    assert console.rows("SELECT number, user FROM alerts") == [(2, "new")]
    console.store.close()


def test_what_is_stored_is_there_after_a_restart_and_two_consoles_share_no_database(place: str) -> None:
    console = Console(place)
    console.come(alert("ann"))
    with pytest.raises(UserError, match="another console has it open"):
        Store(place)
    first = console.store.database.id
    console.store.close()
    again = Console(place)
    assert shown(again) == ["ann"]
    assert again.store.database.id == first
    again.store.close()


def test_a_file_of_another_program_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "console.db").write_text("no database at all " * 100)
    with pytest.raises(UserError, match="cannot be used"):
        Store(tmp_path / "console.db")
    with pytest.raises(UserError, match="No such file"):
        Store(tmp_path / "missing" / "console.db")


def test_what_analysts_do_is_on_the_disk_at_once_and_what_topics_would_tell_again_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    console = Console(tmp_path / "console.db")
    database, seen = console.store.database, []
    transact = database._transact

    def noting(change: Callable[[Connection], Any], lasting: bool) -> Any:
        def noted(connection: Connection) -> Any:
            seen.append(connection.execute("PRAGMA synchronous").fetchone()[0])
            return change(connection)

        return transact(noted, lasting)

    monkeypatch.setattr(database, "_transact", noting)
    console.come(alert())
    console.store.take(1, "eve")
    console.store.label_case(1, "fraud", "eve")
    console.come(alert(offset=1))
    console.store.close()
    normal, full = 1, 2  # https://sqlite.org/pragma.html#pragma_synchronous
    assert seen == [normal, full, full, normal]


def test_others_cannot_read_the_file(tmp_path: Path) -> None:
    Store(tmp_path / "console.db").close()
    assert (tmp_path / "console.db").stat().st_mode & 0o077 == 0


# ------------------------------------------------------------------------------------------------------------- cases


def test_alerts_of_one_user_are_one_case_with_the_highest_score_and_the_strictest_action(console: Console) -> None:
    console.come(alert("ann", score=0.5), alert("bob"), alert("ann", score=0.9, action="block", amount=10.0))
    console.come(alert("ann", score=0.7))
    (row,) = [row for row in console.store.page(View()).rows if row["user"] == "ann"]
    assert (row["alerts"], row["score"], row["action"], row["amount"]) == (3, 0.9, "block", 835.0)


def test_a_closed_case_is_followed_by_a_new_one(console: Console) -> None:
    console.come(alert("ann"))
    first = console.number("ann")
    console.store.label_case(first, "fraud", "eve")
    assert console.store.close_case(first, "eve") == "fraud"
    console.come(alert("ann"))
    assert console.number("ann") != first
    assert shown(console) == ["ann"]
    assert shown(console, state="closed") == ["ann"]


def test_after_a_case_closed_as_genuine_alerts_open_none_for_an_hour(console: Console) -> None:
    console.come(alert("ann"))
    case = console.number("ann")
    console.store.label_case(case, "genuine", "eve")
    console.store.close_case(case, "eve")
    console.come(alert("ann"))
    assert (console.number("ann"), shown(console)) == (case, [])
    assert console.rows("SELECT alerts, suppressed FROM cases") == [(2, 1)]
    console.clock.now += 3600
    console.come(alert("ann"))
    assert shown(console) == ["ann"]


def test_what_the_flow_suppressed_joins_a_case_and_opens_none(console: Console) -> None:
    console.come(alert("ann"), alert("ann", suppressed=True), alert("bob", suppressed=True))
    assert shown(console) == ["ann"]
    assert shown(console, state="suppressed") == ["bob"]
    console.store.take(console.number("bob"), "eve")  # whoever takes it brings it back
    assert set(shown(console)) == {"ann", "bob"}


@pytest.mark.parametrize(("kind", "name"), [("device", "phone-1"), ("merchant", "Amazon"), ("ip", "10.0.0.7")])
def test_an_analyst_suppresses_what_alerts_share_for_a_time(console: Console, kind: str, name: str) -> None:
    console.come(alert("ann"))
    console.store.suppress(kind, name, 600.0, "eve", console.number("ann"))  # type: ignore[arg-type]
    console.come(alert("bob"), alert("cid", device="else", merchant="else", ip="10.9.9.9"))
    assert set(shown(console)) == {"ann", "cid"}
    console.clock.now += 600
    console.come(alert("dan"))
    assert "dan" in shown(console)


def test_of_two_analysts_who_take_a_case_at_once_one_gets_it(console: Console) -> None:
    for turn in range(20):
        console.come(alert(f"user{turn}"))
        case = console.number(f"user{turn}")

        def take(analyst: str, case: int = case) -> str:
            try:
                console.store.take(case, analyst)
            except ConflictError as error:
                return str(error)
            return "taken"

        with ThreadPoolExecutor(8) as pool:
            said = list(pool.map(take, [f"analyst{n}" for n in range(8)]))
        (winner,) = [n for n, each in enumerate(said) if each == "taken"]
        assert set(said) == {"taken", f"analyst{winner} has case {case}."}
        assert [each["what"] for each in console.store.audit_of(case)] == ["took"]


def test_only_who_has_a_case_hands_it_over_labels_and_closes_it(console: Console) -> None:
    console.come(alert("ann"))
    case = console.number("ann")
    console.store.take(case, "eve")
    for act in (
        lambda: console.store.hand_over(case, "mel", "mel"),
        lambda: console.store.close_case(case, "mel"),
        lambda: console.store.label_case(case, "fraud", "mel"),
    ):
        with pytest.raises(ConflictError, match="eve has case"):
            act()
    assert console.rows("SELECT count(*) FROM outbox") == [0]
    console.store.hand_over(case, "eve", "mel")
    console.store.label_case(case, "fraud", "mel")
    console.store.hand_over(case, "mel", "")
    assert console.rows("SELECT state, analyst FROM cases") == [("open", None)]
    trail = [(each["who"], each["what"], each["detail"]) for each in reversed(console.store.audit_of(case))]
    assert trail == [
        ("eve", "took", ""), ("eve", "handed over", "mel"), ("mel", "fraud", ""), ("mel", "gave back", "")
    ]  # fmt: skip


def test_who_is_away_keeps_no_case_that_another_takes_over_or_opens_again(console: Console) -> None:
    console.come(alert("ann"))
    case = console.number("ann")
    console.store.take(case, "eve")
    console.store.take_over(case, "mel", "eve")
    with pytest.raises(ConflictError, match="mel has case"):  # of two who take it over from eve one gets it
        console.store.take_over(case, "zoe", "eve")
    console.store.label_case(case, "genuine", "mel")
    console.store.close_case(case, "mel")
    console.store.take_over(case, "eve", "mel")
    console.store.label_case(case, "fraud", "eve")
    assert console.rows("SELECT state, analyst, live, closed, outcome FROM cases") == [("taken", "eve", 1, None, None)]
    assert shown(console) == ["ann"]
    trail = [(each["who"], each["detail"]) for each in console.store.audit_of(case) if each["what"] == "took over"]
    assert trail == [("eve", "from mel"), ("mel", "from eve")]
    console.come(alert("bob"))
    with pytest.raises(ConflictError, match="Nobody has case"):
        console.store.take_over(console.number("bob"), "mel", "")


def test_a_suppression_is_listed_until_it_ends_or_is_lifted(console: Console) -> None:
    console.come(alert("ann"))
    case, until = console.number("ann"), console.clock.now + 600.0
    console.store.suppress("merchant", "shop", 600.0, "eve", case)
    console.store.suppress("device", "phone-1", 60.0, "eve", case)
    assert [each["kind"] for each in console.store.suppressions()] == ["device", "merchant"]
    console.clock.now += 60
    assert [tuple(each) for each in console.store.suppressions()] == [("merchant", "shop", until, "eve")]
    console.store.lift("merchant", "shop", "mel")
    console.store.lift("merchant", "shop", "mel")  # clicked twice
    assert console.store.suppressions() == []
    assert console.rows("SELECT who, detail FROM audit WHERE what = 'lifted suppression'") == [("mel", "merchant shop")]
    console.come(alert("bob", merchant="shop"))
    assert "bob" in shown(console)


# ------------------------------------------------------------------------------------------------------------ labels


def test_a_label_that_is_clicked_twice_is_told_once_and_a_correction_is_told_later(console: Console) -> None:
    console.come(alert("ann", transaction_id="t1", amount=10.0))
    number = console.rows("SELECT number FROM alerts")[0]
    assert console.store.label([number], "fraud", "eve") == 1
    assert console.store.label([number], "fraud", "eve") == 0
    assert console.store.label([number], "genuine", "eve", "they called back") == 1  # by the same clock
    sent = [parse_feedback(value, b"", 0, 0, 0) for value in console.rows("SELECT value FROM outbox ORDER BY number")]
    assert [each.fraud for each in sent if isinstance(each, Feedback)] == [True, False]
    assert sent[1].labelled_at > sent[0].labelled_at  # type: ignore[union-attr]
    value = json.loads(console.rows("SELECT value FROM outbox")[0])
    assert (value["transaction_id"], value["user"], value["merchant"], value["analyst"]) == (
        "t1",
        "ann",
        "Amazon",
        "eve",
    )
    assert console.rows("SELECT key FROM outbox")[0] == b"ann"


def test_a_label_is_never_dated_before_its_transaction(console: Console) -> None:
    console.come(alert("ann", at=NOON + 50_000))  # ahead of the console's clock
    console.store.label_case(console.number("ann"), "fraud", "eve")
    assert isinstance(parse_feedback(console.rows("SELECT value FROM outbox")[0], b"", 0, 0, 0), Feedback)


def test_unsure_stays_in_the_console(console: Console) -> None:
    console.come(alert("ann"))
    console.store.label_case(console.number("ann"), "unsure", "eve")
    assert console.rows("SELECT label FROM alerts") == ["unsure"]
    assert console.rows("SELECT count(*) FROM outbox") == [0]


def test_labels_of_the_topic_count_whether_they_come_before_or_after_the_alert(console: Console) -> None:
    early = Feedback("t1", "ann", "Amazon", NOON, True, NOON + 5)
    console.store.ingest(Batch(feedback=[early]))
    console.come(alert("ann", transaction_id="t1"), alert("bob", transaction_id="t2"))
    console.store.ingest(Batch(feedback=[Feedback("t2", "bob", "Amazon", NOON, False, NOON + 5)]))
    console.store.ingest(Batch(feedback=[Feedback("t2", "bob", "Amazon", NOON, True, NOON + 4)]))  # an older one
    assert console.rows("SELECT label FROM alerts ORDER BY number") == ["fraud", "genuine"]
    assert console.rows("SELECT count(*) FROM early_labels") == [0]


def test_the_label_of_another_users_transaction_of_that_id_is_not_taken(console: Console) -> None:
    console.come(alert("ann", transaction_id="t1"))
    console.store.ingest(Batch(feedback=[Feedback("t1", "bob", "Amazon", NOON, True, NOON + 5)]))
    assert console.rows("SELECT label FROM alerts") == [None]


def test_precision_follows_labels_and_their_corrections(console: Console) -> None:
    console.come(alert("ann", amount=100.0), alert("bob", amount=30.0), alert("cid", rules=["other"]))
    console.store.label_case(console.number("ann"), "fraud", "eve")
    console.store.label_case(console.number("bob"), "fraud", "eve")
    console.store.label_case(console.number("bob"), "genuine", "eve")
    everything, first, second = figures.precisions(console.store.database.read())
    assert (everything.alerts, everything.fraud, everything.genuine) == (3, 1, 1)
    assert (first.rule, first.alerts, first.share, first.fraud_money) == ("high_amount", 2, 0.5, 100.0)
    assert (second.rule, second.share) == ("other", None)


# ------------------------------------------------------------------------------------------------------------- queue


def test_the_queue_is_newest_or_riskiest_first(console: Console) -> None:
    console.come(alert("ann", score=0.5), alert("bob", score=0.9), alert("cid", score=0.7))
    assert shown(console, order="newest") == ["cid", "bob", "ann"]
    assert shown(console, order="riskiest") == ["bob", "cid", "ann"]


@pytest.mark.parametrize(
    "view",
    [
        {"rule": "impossible_travel"},
        {"scenario": "account takeover"},
        {"merchant": "Kiosk 24"},
        {"action": "block"},
        {"at_least": 500.0},
        {"score_from": 0.95},
        {"search": "kiosk"},
        {"search": "travel imposs"},
        {"search": "10.1.2.3"},
        {"search": "bob"},
        {"state": "mine", "analyst": "eve"},
    ],
    ids=str,
)
def test_filters_and_search_leave_what_they_name(console: Console, view: dict[str, object]) -> None:
    bob = alert(
        "bob", rules=["impossible_travel", "x"], reason="Impossible travel: 8037 km", scenario="account takeover",
        merchant="Kiosk 24", action="block", amount=900.0, score=0.99, ip="10.1.2.3",
    )  # fmt: skip
    console.come(alert("ann"), bob, alert("cid"))
    console.store.take(console.number("bob"), "eve")
    assert shown(console, **view) == ["bob"]


@pytest.mark.parametrize("typed", ['"', "a OR b*", "user:ann", "NEAR(", "'; DROP TABLE alerts; --", "* ^ -", "NOT ann"])
def test_what_is_typed_into_the_search_is_never_an_operator(console: Console, typed: str) -> None:
    console.come(alert("ann"))
    assert len(shown(console, search=typed)) <= 1


def test_words_of_a_search_are_quoted() -> None:
    assert Sqlite().text_query("NOT ann") == '"NOT"* "ann"*'
    assert Postgres().text_query("NOT d'Ann_x") == "'not':* & 'd':* & 'ann':* & 'x':*"


def test_beyond_what_is_shown_cases_are_counted(console: Console) -> None:
    console.store.ingest(Batch([alert(f"user{n}", score=n / 1000) for n in range(250)]))
    page = console.store.page(View(order="riskiest"))
    assert (len(page.rows), page.count) == (queue_view.SHOWN, 250)
    assert page.rows[0]["user"] == "user249"


def test_cases_are_grouped_by_what_their_alerts_share(console: Console) -> None:
    console.come(alert("ann", device="d1"), alert("bob", device="d1", score=0.95), alert("cid", device="d2"))
    first, second = console.store.page(View(group="device", order="riskiest")).rows
    assert (first["name"], first["cases"], first["users"], first["score"]) == ("d1", 2, 2, 0.95)
    assert second["name"] == "d2"
    cases = queue_view.cases_of_group(console.store.database.read(), "device", "d1")
    assert cases == [console.number("bob"), console.number("ann")]


def test_other_users_alerts_that_share_something_are_found(console: Console) -> None:
    console.come(alert("ann", device="d1", ip="10.0.0.1"), alert("bob", device="d1", ip="10.0.0.2", merchant="Kiosk"))
    (row,) = console.store.alerts_of(console.number("ann"))
    assert {pivot: [each["user"] for each in rows] for pivot, rows in console.store.siblings(row).items()} == {
        "device": ["bob"]
    }


def test_the_queue_says_why_in_the_words_of_the_explanation(console: Console) -> None:
    console.come(alert("ann"), alert("bob", explanation=[], reason="New device"))
    page = console.store.page(View())
    assert {row["user"]: row["why"] for row in page.rows} == {
        "ann": ["amount 412.50 is 6.1 times this user's usual 67.80"],
        "bob": ["New device"],
    }
    assert [row["user"] for row in console.store.page(View(search="times usual")).rows] == ["ann"]
