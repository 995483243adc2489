"""A case: everything that helps to decide it."""

from typing import Any, Final

from nicegui import ui

from console.database import Row
from console.pages.alert_graph import show_shared
from console.pages.case_tools import CaseTools
from console.pages.frame import Desk, frame, heading, part, text
from console.pages.places_map import places_of, show_map
from console.pages.time_line import show_time_line
from console.records import Decided, Payment, decode_decision, payment_of
from console.shown_text import moment, money, record, shown, value

SECONDS: Final = 0.5
LISTED: Final = 50
"""Alerts of a case that are listed."""


class CasePage:
    """One browser's view of a case."""

    def __init__(self, desk: Desk, number: int):
        self._desk = desk
        self._number = number
        self._chosen: int | None = None  # the alert that is shown; None: the one of the highest score
        self._state: Any = None
        self._cards_seen: set[int] = set()  # alerts of which the audit trail says so
        with frame(desk, f"Case {number}") as session:
            self._session = session
            self._head = ui.element("div")
            # By itself, and never built anew: a screen reader says then what has changed.
            self._said = ui.label().classes("plain soft case-state").props("role=status")
            self._tools = CaseTools(desk, number, session, self._look)
            self._body = ui.element("div").classes("parts")
            self._look()
        ui.timer(SECONDS, self._look)

    def _look(self) -> None:
        """Builds it anew where something of the case has changed."""
        if not self._session.may("look"):
            return
        store = self._desk.store
        case, alerts = store.case(self._number), store.alerts_of(self._number, LISTED)
        if case is None or not alerts:
            self._head.clear()
            with self._head:
                heading(1, f"Case {self._number} is not kept (any more)")
            return
        audit = store.audit_of(self._number)
        if self._chosen is None:  # an alert that comes later must not take its place while somebody reads and labels it
            self._chosen = case["top_alert"]
        self._alert = store.alert(self._chosen) or alerts[0]
        labels = [each["label"] for each in alerts]
        state = (*case, len(audit), self._alert["number"], self._alert["label"], *labels)
        if state == self._state:
            return
        self._state = state
        self._show(case, alerts, audit)

    def _show(self, case: Row, alerts: list[Row], audit: list[Row]) -> None:
        alert, decision = self._alert, decode_decision(self._alert["raw"])
        self._head.clear()
        with self._head:
            heading(1, f"Case {case['number']}: {case['user']}")
            said = {
                "open": "nobody has it", "taken": f"{case['analyst']} has it",
                "closed": f"closed by {case['analyst']}: {case['outcome']}", "suppressed": "suppressed",
            }[case["state"]]  # fmt: skip
        self._said.set_text(
            shown(f"{said}; {case['alerts']} alert{'' if case['alerts'] == 1 else 's'}, {money(case['amount'])} in all")
        )
        self._tools.show(alert, case["analyst"] or "")
        self._body.clear()
        with self._body:
            self._decision(alert, decision)
            self._why(decision)
            with ui.element("div").classes("stack"):
                self._usual(decision)
                self._places(self._last_payments(alerts))
            with part("Their last transactions"):
                show_time_line(self._last_payments(alerts))
            self._alerts(alerts)
            self._shared(alert)
            self._audit(audit)
            with part("Record"):
                ui.label(record(alert["raw"], self._may_see_cards(alert))).classes("record plain")

    def _may_see_cards(self, alert: Row) -> bool:
        """Whether card numbers stay whole; where there are some, the audit trail says first that they were seen."""
        if not self._session.may("cards"):
            return False
        number = alert["number"]
        if number not in self._cards_seen and record(alert["raw"]) != record(alert["raw"], cards=True):
            self._cards_seen.add(number)
            self._desk.store.note_cards_seen(self._number, number, self._session.analyst)
        return True

    def _decision(self, alert: Row, decision: Decided) -> None:
        cards = self._may_see_cards(alert)
        with part("This alert"), ui.element("div").classes("facts"):
            label = alert["label"] and f"{alert['label']}, by {alert['labelled_by']}"
            for name, found in (
                ("asks for", decision.action), ("score", f"{decision.score:.3f}"),
                ("model's own", decision.model_score is not None and f"{decision.model_score:.3f}"),
                ("alerts from", decision.alert_threshold is not None and f"{decision.alert_threshold:.3f}"),
                ("amount", money(decision.amount)), ("merchant", decision.merchant), ("kind", decision.txn_type),
                ("category", decision.category), ("location", decision.location), ("device", decision.device),
                ("address", decision.ip), ("scenario", decision.scenario), ("time (UTC)", moment(alert["at"])),
                ("decided (UTC)", moment(alert["decided"])), ("label", label or "none"),
                ("rules", ", ".join(decision.rules)), ("rules in shadow", ", ".join(decision.shadow_rules)),
                ("rules' version", decision.ruleset_version), ("model's version", decision.model_version),
                ("transaction", decision.transaction_id),
            ):  # fmt: skip
                if found:
                    ui.label(name).classes("soft")
                    text(found, str(alert["label"]) if name == "label" else "", cards)

    def _why(self, decision: Decided) -> None:
        with part("Why, and what drove the score"):
            for reason in decision.reason:
                text(reason)
            strongest = max((each.effect for each in decision.explanation), default=0.0)
            for each in decision.explanation:
                with ui.element("div").style("margin-top: .5rem"):
                    factor = (
                        ""
                        if each.fraud_factor is None
                        else f"; such values: {each.fraud_factor:g} times as often fraud"
                    )
                    text(each.text)
                    lower = f"{each.effect:.3f}" if each.effect >= 0.0005 else "less than 0.001"
                    text(f"without it the score would be {lower} lower{factor}", "soft")
                    share = each.effect / strongest if strongest > 0 else 0.0
                    with ui.element("div").classes("track").props('aria-hidden="true"'):
                        ui.element("div").style(f"width: {max(share, 0.0):.0%}")

    def _usual(self, decision: Decided) -> None:
        compared = [each for each in decision.explanation if each.usual is not None]
        if not compared:
            return
        with part("This payment beside the usual"), ui.element("div").classes("facts three"):
            for title in ("", "this payment", "usual"):
                ui.label(title).classes("soft")
            for each in compared:
                text(each.feature.replace("_", " "), "soft")
                text(value(each.value))
                text(value(each.usual))

    def _last_payments(self, alerts: list[Row]) -> list[Payment]:
        """The user's last payments, those that raised alerts among them, the newest last."""
        past = self._desk.payments.of_user(self._alert["user"])
        raised = [payment_of(decode_decision(each["raw"]), each["at"]) for each in alerts]
        return sorted([*past, *raised], key=lambda each: each.at)[-30:]

    def _places(self, payments: list[Payment]) -> None:
        """Where they paid: on a map, and in words."""
        shown_one = payment_of(decode_decision(self._alert["raw"]), self._alert["at"])
        others = [each for each in payments if each.transaction_id != shown_one.transaction_id]
        places = places_of([*others, shown_one], shown_one.transaction_id)
        with part("Where they paid"):
            if places:
                show_map(places)
            else:
                ui.label("No payment says where.").classes("soft")

    def _alerts(self, alerts: list[Row]) -> None:
        with part("Alerts of this case"):
            for each in alerts:

                def choose(_: Any, number: int = each["number"]) -> None:
                    self._chosen = number
                    self._look()
                    # The button was built anew, and the one that was clicked has no page any more.
                    self._head.client.run_javascript(f"document.getElementById('alert-{number}')?.focus()")

                marked = "> " if each["number"] == self._alert["number"] else ""
                label = f", {each['label']}" if each["label"] else ""
                said = f"{marked}{moment(each['at'])}  {money(each['amount'])}  score {each['score']:.3f}{label}"
                made = ui.button(said, on_click=choose).props("flat dense no-caps align=left").classes("w-full")
                made.props(f"id=alert-{each['number']} aria-current={'true' if marked else 'false'}")

    def _shared(self, alert: Row) -> None:
        with part("Other users' alerts that share something"):
            show_shared(alert, self._desk.store.siblings(alert))

    def _audit(self, audit: list[Row]) -> None:
        with part("What was done"):
            if not audit:
                ui.label("Nothing yet.").classes("soft")
            for each in audit[:LISTED]:
                detail = f": {each['detail']}" if each["detail"] else ""
                about = f" (alert {each['alert']})" if each["alert"] is not None else ""
                text(f"{moment(each['at'])} {each['who']}: {each['what']}{about}{detail}", "audit")
