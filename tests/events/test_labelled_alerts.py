"""How many alerts are remembered until their label comes."""

import time

from prometheus_client import REGISTRY

from dataflow.events.decision import Decision, Verdict
from dataflow.events.labelled_alerts import ALERTS_KEPT, LabelledAlerts
from tests.support.builders import label, txn


def alert(name: str, *, fraudulent: bool = True) -> Decision:
    return Decision(txn(transaction_id=name), Verdict(fraudulent, [], 0.5, [], [], "r", "m"))


def counted() -> float:
    return REGISTRY.get_sample_value("redflag_labelled_alerts_total", {"label": "fraud"}) or 0.0


def test_an_alert_counts_once_by_its_first_label() -> None:
    labelled, before = LabelledAlerts(), counted()
    labelled.decided([alert("a"), alert("b", fraudulent=False)])
    labelled.told([label("a"), label("a"), label("b"), label("c")])
    assert counted() == before + 1


def test_a_label_that_came_before_its_alert_counts_when_that_is_decided() -> None:
    labelled, before = LabelledAlerts(), counted()
    labelled.told([label("a")])
    assert counted() == before
    labelled.decided([alert("a")])
    assert counted() == before + 1


def test_only_the_newest_alerts_and_labels_are_kept() -> None:
    labelled, before = LabelledAlerts(alerts_kept=2, labels_kept=2), counted()
    labelled.decided([alert(name) for name in "abc"])
    labelled.told([label(name) for name in "abc"])
    assert counted() == before + 2
    labelled.told([label(name) for name in "defg"])
    labelled.decided([alert(name) for name in "defg"])
    assert counted() == before + 4


def test_an_alert_takes_no_longer_once_as_many_as_can_be_are_kept() -> None:
    labelled = LabelledAlerts()
    seconds = []
    for first in range(0, ALERTS_KEPT + 100_000, 100_000):
        alerts = [alert(f"{first + number}") for number in range(10)]
        spent = 0.0
        for ten in range(10_000):
            for number, each in enumerate(alerts):
                each.transaction.transaction_id = f"{first + 10 * ten + number}"
            began = time.process_time()
            labelled.decided(alerts)
            spent += time.process_time() - began
        seconds.append(spent)
    assert seconds[-1] < 8 * min(seconds[:-1])  # one by one it was 70 times
