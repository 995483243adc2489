"""Labels apart from a history: in a CSV, on the generator's topic of labels, or as feedback."""

import csv
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from dataflow.connectors.topic_reader import read_topic
from dataflow.errors import UserError
from dataflow.events.feedback import Feedback, parse_feedback
from dataflow.events.parsing import event_time
from dataflow.settings import Settings
from training.histories.history import TRUTH, History, LabelTime, Past
from training.histories.kafka_history import PREFIX, KafkaHistory


class Label(NamedTuple):
    """What is known of a transaction."""

    fraud: bool
    at: float  # when that came, seconds since 1970 UTC; infinite where it was not asked for


def relabelled(history: History, labels: dict[str, Label]) -> tuple[History, LabelTime]:
    """The history with the truth of the labels alone, and when each came; of what they lack, nothing is known."""

    def rows() -> Iterator[Past]:
        for past in history:
            label = labels.get(past.transaction.transaction_id or "")
            yield Past(past.transaction, None if label is None else label.fraud, past.scenario)

    def label_time(past: Past) -> float | None:
        label = labels.get(past.transaction.transaction_id or "")
        return None if label is None else label.at

    return History(history.source, rows, lambda: history.progress), label_time


def read_labels(path: Path, *, timed: bool) -> dict[str, Label]:
    """The labels of a CSV by transaction_id; of two on one transaction, the last line counts.

    Its columns are transaction_id, fraud (0 or 1, true or false) and, where they are asked to be `timed`, labelled_at.

    Raises:
        UserError: it cannot be read, or a line of it is wrong.
    """
    columns = ["transaction_id", "fraud", *(["labelled_at"] if timed else [])]
    labels = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            missing = [name for name in columns if name not in (rows.fieldnames or ())]
            if missing:
                msg = f"{path} has no column {', '.join(missing)}: it takes {', '.join(columns)}"
                raise UserError(msg)
            for row in rows:
                try:
                    name, *said = (row[column] or "" for column in columns)
                    labels[name] = _label(name, *said)
                except ValueError as error:
                    msg = f"{path}, line {rows.line_num}: {error}: mend or remove that line"
                    raise UserError(msg) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        what = error.strerror if isinstance(error, OSError) else error
        msg = f"cannot read the labels {path}: {what}: name a CSV in UTF-8"
        raise UserError(msg) from None
    return labels


def _label(name: str, fraud: str, labelled_at: str | None = None) -> Label:
    """One line of the file; a ValueError says what is wrong with it."""
    if not name:
        msg = "there is no transaction_id"
        raise ValueError(msg)
    truth = TRUTH.get(fraud.lower())
    if truth is None:
        msg = f"fraud is {fraud[:40]!r}, neither 0 nor 1"
        raise ValueError(msg)
    if labelled_at is None:
        return Label(truth, math.inf)
    try:
        return Label(truth, event_time(labelled_at))
    except (ValueError, OverflowError):
        msg = f"labelled_at {labelled_at[:40]!r} is no ISO 8601 time"
        raise ValueError(msg) from None


class _OnTopic(msgspec.Struct, gc=False):
    """What a message of the topic of labels says; one of feedback says it, too."""

    transaction_id: str
    fraud: bool


def read_truth(where: str, settings: Settings) -> dict[str, bool]:
    """The truth by transaction id, from a CSV or `kafka:TOPIC`; the last one counts.

    What is no label on the feedback topic is passed over, as the flow does.

    Raises:
        UserError: they cannot be read, or one of them is wrong.
    """
    if not where.startswith(PREFIX):
        return {name: label.fraud for name, label in read_labels(Path(where), timed=False).items()}
    if where == f"{PREFIX}{settings.feedback_topic}":
        return read_feedback(settings)
    decode = msgspec.json.Decoder(_OnTopic).decode
    labels = {}
    for message in KafkaHistory(where.removeprefix(PREFIX), settings):
        try:
            label = decode(message.value() or b"")
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            place = f"partition {message.partition()}, offset {message.offset()}"
            msg = f"{where}, {place}: not a label: {' '.join(str(error).split())}"
            raise UserError(msg) from None
        labels[label.transaction_id] = label.fraud
    return labels


def read_feedback(settings: Settings) -> dict[str, bool]:
    """The truth by transaction id, from the feedback topic: the label that came last counts.

    Raises:
        UserError: the topic cannot be read.
    """
    return latest(
        parse_feedback(m.value(), m.key(), m.partition() or 0, m.offset() or 0, m.timestamp()[1])
        for m in read_topic(settings, settings.feedback_topic)
    )


def latest(labels: Iterable[object]) -> dict[str, bool]:
    """Of each transaction id the label that was given last; what is no label is passed over, as the flow does."""
    given: dict[str, Feedback] = {}
    for label in labels:
        if isinstance(label, Feedback):
            before = given.get(label.transaction_id)
            if before is None or label.labelled_at >= before.labelled_at:
                given[label.transaction_id] = label
    return {name: label.fraud for name, label in given.items()}
