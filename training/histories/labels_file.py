"""Labels in a file of their own: which transactions were frauds, and when that became known."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from dataflow.errors import UserError
from dataflow.events.parsing import event_time
from training.histories.history import History, LabelTime, Past

LABEL_COLUMNS = ("transaction_id", "fraud", "labelled_at")


class Label(NamedTuple):
    """What a labels file says of a transaction."""

    fraud: bool
    at: float  # when it came, seconds since 1970 UTC


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


def read_labels(path: Path) -> dict[str, Label]:
    """The labels of a CSV (transaction_id, fraud, labelled_at) by transaction_id; of two, the last line counts.

    Raises:
        UserError: it cannot be read, or a line of it is wrong.
    """
    labels = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = [name for name in LABEL_COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                msg = f"{path}: the column {missing[0]!r} is missing: it takes {', '.join(LABEL_COLUMNS)}"
                raise UserError(msg)
            for row in reader:
                where = f"{path}, line {reader.line_num}"
                name, fraud, labelled_at = (row[column] or "" for column in LABEL_COLUMNS)
                if not name:
                    msg = f"{where}: there is no transaction_id: mend or remove that line"
                    raise UserError(msg)
                if fraud not in ("0", "1"):
                    msg = f"{where}: fraud is {fraud[:40]!r}, neither 0 nor 1: mend or remove that line"
                    raise UserError(msg)
                try:
                    labels[name] = Label(fraud == "1", event_time(labelled_at))
                except (ValueError, OverflowError):
                    msg = f"{where}: labelled_at {labelled_at[:40]!r} is no ISO 8601 time: mend or remove that line"
                    raise UserError(msg) from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        msg = f"{path}: cannot be read as a CSV in UTF-8 ({error})"
        raise UserError(msg) from None
    return labels
