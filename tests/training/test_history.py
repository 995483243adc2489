"""Histories: in event-time order, by the contract's limits, and a bad one told by its line."""

import gzip
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dataflow.errors import UserError
from dataflow.simulation.simulator import Simulated
from dataflow.simulation.simulator import history as simulate
from tests.support.builders import NOON, iso
from training.histories import history
from training.histories.history import Past, find_label_column, read_history

HEADER = "transaction_id,timestamp,user,merchant,amount"


def csv(folder: Path, *lines: str, header: str = HEADER, name: str = "past.csv") -> Path:
    path = folder / name
    path.write_text("\n".join([header, *lines, ""]))
    return path


def row(number: int, at: float = NOON, user: str = "ann", amount: object = 25) -> str:
    return f"t{number},{iso(at)},{user},Amazon,{amount}"


def ids(path: Path) -> list[str | None]:
    return [past.transaction.transaction_id for past in read_history(path)]


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as refused:
        list(read_history(path))
    text = str(refused.value)
    assert "\n" not in text
    return text


def test_columns_that_a_file_lacks_are_unknown(tmp_path: Path) -> None:
    (past,) = read_history(csv(tmp_path, f"{iso(NOON)},ann,Amazon,25.5", header="timestamp,user,merchant,amount"))
    got = past.transaction
    assert (got.user, got.merchant, got.amount, got.at) == ("ann", "Amazon", 25.5, NOON)
    assert (got.location, got.device, got.txn_type) == ("unknown", "unknown", "unknown")
    assert (got.latitude, got.longitude, got.category, got.ip) == (None, None, None, None)
    assert got.transaction_id == "past.csv-2"
    assert (past.fraud, past.scenario) == (None, "")


def test_every_column_of_the_contract_is_read_and_others_are_left_alone(tmp_path: Path) -> None:
    path = csv(
        tmp_path,
        f"1,0,x,{iso(NOON)},1.5,2.5,10.0.0.1,c1,purchase,mobile,IN,9.99,Nike,bob,id1",
        f"0,3,x,{iso(NOON)},,,,,,,,9.99,Nike,bob,id2",
        header="fraud,scenario,extra,timestamp,latitude,longitude,ip,category,txn_type,device,location,amount,"
        "merchant,user,transaction_id",
    )
    first, second = read_history(path)
    got = first.transaction
    assert (got.latitude, got.longitude, got.ip, got.category) == (1.5, 2.5, "10.0.0.1", "c1")
    assert (got.txn_type, got.device, got.location, got.transaction_id) == ("purchase", "mobile", "IN", "id1")
    assert (first.fraud, first.scenario) == (True, "")
    assert (second.fraud, second.scenario) == (False, "3")
    assert (second.transaction.location, second.transaction.latitude) == ("unknown", None)


def test_times_with_and_without_offset_are_utc(tmp_path: Path) -> None:
    path = csv(
        tmp_path, "a,2026-03-02T12:00:00,u,m,1", "b,2026-03-02 13:00:00+01:00,u,m,1", "c,2026-03-02T12:00Z,u,m,1"
    )
    assert [past.transaction.at for past in read_history(path)] == [NOON] * 3


def test_gzip_and_a_byte_order_mark_and_blank_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "past.csv.gz"
    path.write_bytes(gzip.compress(f"\ufeff{HEADER}\r\n{row(1)}\r\n\r\n{row(2)}\r\n".encode()))
    assert ids(path) == ["t1", "t2"]


def test_parquet_gives_what_the_csv_gives(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "timestamp": pd.to_datetime([NOON, NOON + 1.25, NOON + 2], unit="s", utc=True),
            "user": [7, 8, 9],
            "merchant": ["Amazon", "Nike", "Apple"],
            "amount": [1.1, 2.0, 3e-3],
            "latitude": [1.5, np.nan, np.nan],
            "longitude": [2.5, np.nan, np.nan],
            "category": ["a", None, "c"],
            "fraud": [0, 1, 0],
            "other": [1, 2, 3],
        }
    )
    frame.to_parquet(tmp_path / "past.parquet")
    frame.to_csv(tmp_path / "past.csv", index=False)

    def what(path: Path) -> list[object]:
        return [
            (t.at, t.user, t.merchant, t.amount, t.latitude, t.longitude, t.category, t.location, past.fraud)
            for past in read_history(path)
            for t in [past.transaction]
        ]

    assert what(tmp_path / "past.parquet") == what(tmp_path / "past.csv")
    assert len(what(tmp_path / "past.parquet")) == 3


def test_a_file_out_of_order_is_sorted_and_equal_times_keep_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "CHUNK", 64)
    monkeypatch.setattr(history, "BLOCK", 10)
    random = np.random.default_rng(0)
    times = random.integers(0, 300, 1_000).tolist()
    path = csv(tmp_path, *(row(i, NOON + at) for i, at in enumerate(times)))
    order = sorted(range(1_000), key=lambda i: times[i])
    assert ids(path) == [f"t{i}" for i in order]


def test_a_simulated_history_is_the_same_each_time_and_made_but_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def counted(*arguments: Any) -> Iterator[Simulated]:
        for each in simulate(*arguments):
            made.append(1)
            yield each

    monkeypatch.setattr("training.histories.history.history", counted)
    past = read_history(None, seed=3, users=20, days=5)
    first = list(islice(past, 50))  # the rest is made when it is first asked for
    assert (len(first), len(made)) == (50, 50)
    whole = list(past)
    assert whole[:50] == first
    assert list(past) == whole
    assert len(made) == len(whole) > 200
    assert past.progress == pytest.approx(1, abs=0.1)
    monkeypatch.setattr("training.histories.history.KEPT", 1)
    assert list(read_history(None, seed=3, users=20, days=5)) == whole
    assert len(made) == 2 * len(whole)


def test_a_history_can_be_read_again_and_tells_its_progress(tmp_path: Path) -> None:
    past = read_history(csv(tmp_path, *(row(i, NOON + i) for i in range(20_000))))
    steps = [past.progress for _ in past]
    assert steps == sorted(steps)
    assert 0 < steps[0] < steps[-1] <= 1
    assert past.progress == 1
    assert len(list(past)) == 20_000


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (row(3, amount="many"), ["amount", "float"]),
        (row(3, amount="nan"), ["amount"]),
        (row(3, amount="inf"), ["amount", "finite"]),
        (row(3, amount="-1"), ["amount"]),
        (row(3, amount=""), ["amount", "missing"]),
        (row(3, user=""), ["user"]),
        (row(3, user="u" * 300), ["user", "256"]),
        ("t3,yesterday,ann,Amazon,1", ["timestamp", "yesterday"]),
        ("t3,2026-03-02T12:00:00,ann,Amazon", ["4 cells", "5"]),
    ],
)
def test_a_bad_row_is_told_with_its_line(tmp_path: Path, bad: str, words: list[str]) -> None:
    text = refusal(csv(tmp_path, row(1), row(2), bad, row(4)))
    for word in ["past.csv, line 4", *words]:
        assert word in text


def test_a_label_that_is_neither_0_nor_1_is_told_with_its_line(tmp_path: Path) -> None:
    text = refusal(csv(tmp_path, f"{row(1)},0", f"{row(2)},maybe", header=f"{HEADER},fraud"))
    assert "line 3" in text
    assert "maybe" in text


def labels_of(path: Path, named: str | None = None) -> list[bool | None]:
    """As the commands read them."""
    return [past.fraud for past in read_history(path, label_column=find_label_column(path, named))]


def no_label_column(path: Path, named: str | None = None) -> str:
    with pytest.raises(UserError) as refused:
        find_label_column(path, named)
    text = str(refused.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize(
    "name",
    [
        "is_fraud",
        "isFraud",
        "Class",
        "LABEL",
        "target",
        "fraudulent",
        "is_fraudulent",
        "Fraud",
        "Is Fraud?",
        "TX_FRAUD",
    ],
)
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_column_that_looks_like_labels_is_asked_for_and_read_once_it_is_named(
    tmp_path: Path, name: str, ending: str
) -> None:
    path = csv(tmp_path, f"{row(1)},1", f"{row(2)},0", header=f"{HEADER},{name}")
    if ending == "parquet":
        frame = pd.read_csv(path)
        path = tmp_path / "past.parquet"
        frame.to_parquet(path)
    text = no_label_column(path)
    assert f"{path} has no column fraud, " in text
    assert f"but {name}, which may be labels" in text
    assert f"--label-column {name}," in text
    assert "--label-column none" in text
    assert labels_of(path, name) == [True, False]
    assert labels_of(path, "none") == [None, None]


@pytest.mark.parametrize("others", ["", ",label", ",merchant_class", ",fraud_score,channel"])
def test_nothing_is_asked_where_fraud_is_there_or_no_column_looks_like_it(tmp_path: Path, others: str) -> None:
    known = csv(tmp_path, f"{row(1)},1" + ",x" * others.count(","), header=f"{HEADER},fraud{others}")
    assert labels_of(known) == [True]
    assert labels_of(known, "none") == [None]
    if others != ",label":
        header = HEADER + others
        assert labels_of(csv(tmp_path, row(1) + ",x" * others.count(","), header=header)) == [None]


def test_all_columns_that_look_like_labels_are_named(tmp_path: Path) -> None:
    text = no_label_column(csv(tmp_path, f"{row(1)},1,0", header=f"{HEADER},isFraud,isFlaggedFraud"))
    assert "but isFraud, isFlaggedFraud, which may be labels" in text
    assert "where they are not" in text


def test_labels_may_be_true_and_false_or_empty_in_any_named_column(tmp_path: Path) -> None:
    lines = [f"{row(n)},{truth}" for n, truth in enumerate(["true", "False", "", "1", "0", "1.0"])]
    path = csv(tmp_path, *lines, header=f"{HEADER},verdict")
    assert labels_of(path) == [None] * 6
    assert labels_of(path, "verdict") == [True, False, None, True, False, True]


def test_a_wrong_label_column_is_one_line(tmp_path: Path) -> None:
    path = csv(tmp_path, f"{row(1)},1", f"{row(2)},yes", header=f"{HEADER},verdict")
    assert f"--label-column judgement: {path} has no such column (it has: transaction_id, " in no_label_column(
        path, "judgement"
    )
    assert "is the transaction's amount" in no_label_column(path, "amount")
    with pytest.raises(UserError, match=r"past.csv, line 3: verdict is 'yes', and a label is 0 or 1, true or false"):
        labels_of(path, "verdict")
    twice = csv(tmp_path, f"{row(1)},1,1", header=f"{HEADER},verdict,verdict")
    with pytest.raises(UserError, match="has the column verdict twice"):
        labels_of(twice, "verdict")


def test_half_a_coordinate_is_told_with_its_line(tmp_path: Path) -> None:
    assert "half a coordinate" in refusal(csv(tmp_path, f"{row(1)},1.0,", header=f"{HEADER},latitude,longitude"))


@pytest.mark.parametrize(
    ("header", "word"),
    [("timestamp,user,amount", "merchant"), ("", "timestamp"), (f"{HEADER},amount", "twice")],
)
def test_a_header_that_lacks_or_doubles_a_column_is_refused(tmp_path: Path, header: str, word: str) -> None:
    assert word in refusal(csv(tmp_path, header=header))


def test_files_that_are_not_what_they_are_called_are_refused(tmp_path: Path) -> None:
    whole = gzip.compress("\n".join([HEADER, *(row(i) for i in range(2_000))]).encode())
    for name, content in [
        ("no.csv.gz", b"not gzip"),
        ("cut.csv.gz", whole[: len(whole) // 2]),
        ("latin.csv", HEADER.encode() + b"\nt,2026-03-02T12:00:00,J\xf6rg,m,1\n"),
        ("no.parquet", b"not parquet"),
        ("no.xlsx", b""),
    ]:
        (tmp_path / name).write_bytes(content)
        assert name in refusal(tmp_path / name)
    assert "missing.csv" in refusal(tmp_path / "missing.csv")
    (tmp_path / "folder.csv").mkdir()
    assert "folder.csv" in refusal(tmp_path / "folder.csv")


def test_the_simulated_history_is_in_order_labelled_and_the_same_for_a_seed() -> None:
    def simulate(seed: int) -> list[Past]:
        return list(read_history(None, seed=seed, users=100, days=3, start=datetime(2026, 3, 1, tzinfo=UTC)))

    past = simulate(5)
    times = [each.transaction.at for each in past]
    assert times == sorted(times)
    assert times[0] >= datetime(2026, 3, 1, tzinfo=UTC).timestamp()
    assert all(each.fraud is not None and bool(each.scenario) == each.fraud for each in past)
    assert past == simulate(5)
    assert past != simulate(6)
