"""Labels in a file of their own: read in one way by backtest and evaluation."""

import math
from pathlib import Path
from typing import Any

import pytest

from dataflow.errors import UserError
from dataflow.settings import Settings
from tests.support.builders import DAY, NOON, iso
from training.histories.labels import Label, read_labels, read_truth


@pytest.fixture
def file(tmp_path: Path) -> Any:
    def write(text: str | bytes) -> Path:
        path = tmp_path / "labels.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_a_label_says_whether_it_was_fraud_and_where_asked_when_that_came(file: Any) -> None:
    path = file(f"labelled_at,fraud,transaction_id\n{iso(NOON)},1,a\n{iso(NOON + DAY)},0,b\n")
    assert read_labels(path, timed=True) == {"a": Label(True, NOON), "b": Label(False, NOON + DAY)}
    assert read_labels(path, timed=False) == {"a": Label(True, math.inf), "b": Label(False, math.inf)}


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_truth_is_written_as_in_a_history_and_the_last_line_counts(file: Any, mark: str) -> None:
    path = file(mark + "transaction_id,fraud\na,TRUE\nb,false\nc,1\nd,0.0\na,0\n")
    assert read_truth(str(path), Settings()) == {"a": False, "b": False, "c": True, "d": False}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("transaction_id\na\n", "has no column fraud: it takes transaction_id, fraud"),
        ("", "has no column transaction_id, fraud: it takes transaction_id, fraud"),
        ("transaction_id,fraud\na,1\nb,maybe\n", "line 3: fraud is 'maybe', neither 0 nor 1: mend or remove that line"),
        ("transaction_id,fraud\na,\n", "line 2: fraud is '', neither 0 nor 1"),
        ("transaction_id,fraud\na\n", "line 2: fraud is '', neither 0 nor 1"),
        ("transaction_id,fraud\n,1\n", "line 2: there is no transaction_id"),
        (b"transaction_id,fraud\n\xff,1\n", "cannot read the labels"),
    ],
)
def test_what_is_no_label_is_told_with_its_line(file: Any, text: str | bytes, says: str) -> None:
    path = file(text)
    with pytest.raises(UserError) as refused:
        read_truth(str(path), Settings())
    assert says in str(refused.value)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_without_times_is_refused_where_they_are_asked(file: Any) -> None:
    path = file("transaction_id,fraud\na,1\n")
    with pytest.raises(UserError, match="no column labelled_at: it takes transaction_id, fraud, labelled_at"):
        read_labels(path, timed=True)
