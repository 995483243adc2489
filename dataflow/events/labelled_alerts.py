"""Which alerts turned out to be frauds: counted as labels come, so that precision is a quotient of two counters."""

import threading
from collections.abc import Iterable
from itertools import islice
from typing import Any, Final

from dataflow.events.decision import Decision
from dataflow.events.feedback import Feedback
from dataflow.metrics import FEEDBACK, LABELLED_ALERTS

ALERTS_KEPT: Final = 200_000
"""Alerts without a label that are remembered at most, the newest; 20 MB. A label of an older one is not counted."""
LABELS_KEPT: Final = 10_000
"""Labels that are kept for an alert which is still on its way: both may come in one batch."""
FORGOTTEN_AT_ONCE: Final = 16
"""The share that is forgotten at once: a dictionary looks for its oldest entry among all that were removed before it,
so one by one an alert took 70 µs once 200,000 were kept."""

_Key = int
"""Of user and transaction id: texts of many alerts would take more."""

_RECEIVED = {fraud: FEEDBACK.labels("fraud" if fraud else "genuine") for fraud in (True, False)}
_OF_ALERTS = {fraud: LABELLED_ALERTS.labels("fraud" if fraud else "genuine") for fraud in (True, False)}


class LabelledAlerts:
    """Remembers alerts until a label of theirs comes, and counts them by it; what comes after the first is left out.

    It knows the alerts of this process since its start. The workers of a process share one.
    """

    def __init__(self, alerts_kept: int = ALERTS_KEPT, labels_kept: int = LABELS_KEPT):
        self._alerts_kept = alerts_kept
        self._labels_kept = labels_kept
        self._alerts: dict[_Key, None] = {}  # the oldest first
        self._labels: dict[_Key, bool] = {}  # whether it was fraud; the oldest first
        self._lock = threading.Lock()

    def decided(self, decisions: Iterable[Decision]) -> None:
        """Takes a batch of decisions in; .03 µs each, and 1 µs an alert."""
        alerts = [each.transaction for each in decisions if each.verdict.fraudulent]
        if not alerts:
            return
        with self._lock:
            for txn in alerts:
                key = hash((txn.user, txn.transaction_id))
                fraud = self._labels.pop(key, None)
                if fraud is None:
                    self._alerts[key] = None
                else:
                    _OF_ALERTS[fraud].inc()
            _forget_oldest(self._alerts, self._alerts_kept)

    def told(self, labels: Iterable[Feedback]) -> None:
        """Takes the labels of a batch in."""
        with self._lock:
            for label in labels:
                _RECEIVED[label.fraud].inc()
                key = hash((label.user, label.transaction_id))
                if key in self._alerts:
                    del self._alerts[key]
                    _OF_ALERTS[label.fraud].inc()
                else:
                    self._labels.setdefault(key, label.fraud)
            _forget_oldest(self._labels, self._labels_kept)


def _forget_oldest(kept: dict[_Key, Any], most: int) -> None:
    beyond = len(kept) - most
    if beyond > 0:
        for key in list(islice(kept, max(beyond, most // FORGOTTEN_AT_ONCE))):
            del kept[key]
