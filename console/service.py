"""How the flow serves, for the overview: lag, latency, versions, and whether as many alerts come as were promised."""

import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from console.database import Connection
from console.flow_metrics import FlowFigures, FlowMetrics
from console.records import decode_decision
from dataflow.events.transaction import DAY

NEWEST: Final = 2_000
"""Alerts that the figures are of, and none older than a day by event time."""
SHORTEST: Final = 3600.0
"""Seconds of event time that alerts must span until it is said how many a day they are."""


class Interval(msgspec.Struct, frozen=True):
    """An estimate, with the interval in which it is thought to lie."""

    value: float
    low: float
    high: float


class _Expected(msgspec.Struct, frozen=True):
    alerts_a_day: Interval


class _OperatingPoint(msgspec.Struct, frozen=True):
    alert: float
    measured_on: str = ""
    expected: _Expected | None = None


class _Model(msgspec.Struct, frozen=True):
    fingerprint: str
    operating_point: _OperatingPoint | None = None


class Promise(NamedTuple):
    """What the JSON beside the model says of its operating point."""

    missing: str  # why there is none, in a few words
    version: str = ""  # of the model that it is of
    threshold: float = math.nan
    alerts_a_day: Interval | None = None
    measured_on: str = ""


class Newest(NamedTuple):
    """What the newest alerts say."""

    alerts: int
    a_day: float | None  # alerts a day, by event time; None where they span too little
    stored_after: tuple[float, float]  # p50 and p99, s: from a decision's record to the console's database
    decided_after: tuple[float, float]  # likewise, from the event's time to the decision's record
    ruleset_versions: list[str]  # in service at those alerts, the newest first
    model_versions: list[str]
    threshold: float | None  # from which the model raised the newest


class Figures(NamedTuple):
    """All of it."""

    flow: FlowFigures
    promise: Promise
    newest: Newest
    behind: int  # messages that the console has yet to store


class Service:
    """Reads all of it anew whenever it is asked."""

    def __init__(self, flow: FlowMetrics, model_file: Path, behind: Callable[[], int]):
        """`behind`: how many messages the console has yet to store."""
        self._flow = flow
        self._model_json = model_file.with_suffix(".json")
        self._behind = behind
        self._lock = threading.Lock()
        self._read: tuple[tuple[int, int], Promise] | None = None

    def figures(self, connection: Connection) -> Figures:
        """All that is known now; takes as long as the flow takes to answer."""
        return Figures(self._flow.figures(), self._promise(), newest_of(connection), self._behind())

    def _promise(self) -> Promise:
        """What the file says, read again where it has changed."""
        with self._lock:
            try:
                status = self._model_json.stat()
                stamp = (status.st_mtime_ns, status.st_size)
                if self._read is None or self._read[0] != stamp:
                    self._read = stamp, promise_of(self._model_json.read_bytes())
            except OSError as error:
                return Promise(f"{self._model_json} cannot be read ({error.strerror})")
            return self._read[1]


def promise_of(raw: bytes) -> Promise:
    """What a model's JSON promises."""
    try:
        model = msgspec.json.decode(raw, type=_Model)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Promise("the JSON beside MODEL_FILE is not that of a model")
    point = model.operating_point
    if point is None or point.expected is None:
        return Promise("the model promises nothing")
    return Promise("", model.fingerprint[:12], point.alert, point.expected.alerts_a_day, point.measured_on)


def newest_of(connection: Connection) -> Newest:
    """What the newest alerts say."""
    rows = connection.execute(
        "SELECT arrived, decided, at FROM alerts ORDER BY number DESC LIMIT ?", [NEWEST]
    ).fetchall()
    last = max((row["at"] for row in rows), default=0.0)
    times = sorted(row["at"] for row in rows if row["at"] > last - DAY)
    whole_day = len(times) < len(rows)  # older ones are there, so the day is full
    span = DAY if whole_day else (times[-1] - times[0] if times else 0.0)
    raws = connection.execute("SELECT raw FROM alerts ORDER BY number DESC LIMIT 200").fetchall()
    decisions = [decode_decision(row["raw"]) for row in raws]
    return Newest(
        len(times),
        len(times) / span * DAY if span >= SHORTEST else None,
        percentiles([row["arrived"] - row["decided"] for row in rows]),
        percentiles([row["decided"] - row["at"] for row in rows]),
        list(dict.fromkeys(each.ruleset_version for each in decisions if each.ruleset_version)),
        list(dict.fromkeys(each.model_version for each in decisions if each.model_version)),
        decisions[0].alert_threshold if decisions else None,
    )


def percentiles(values: list[float]) -> tuple[float, float]:
    """The values that half and 99 of 100 of these do not exceed; NaN without one."""
    if not values:
        return math.nan, math.nan
    ordered = sorted(values)
    return ordered[(len(ordered) - 1) // 2], ordered[math.ceil(0.99 * len(ordered)) - 1]
