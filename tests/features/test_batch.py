"""The features of a batch by column: those of each transaction by itself, whoever reads them."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from dataflow.features.batch import Column, FeatureBatch
from dataflow.features.catalogue import FIELDS, FLAGS, NUMBERS
from dataflow.rules import load_rules
from dataflow.scoring.operating_point import MODEL_FIELDS, OperatingPoint
from tests.rules.builders import evaluate, rows_of
from tests.support.builders import DAY, NOON, txn
from tests.support.profile_builders import Profiles
from training.histories.history import read_history
from training.histories.replay import replay

RULES = """
[lists]
flagged = ["clothing_0021"]
[[rule]]
id = "mixed"
when = "amount > 60 and location_changed or user in ['user_000001'] or txn_per_day > 2 and model_score < 0.5"
reason = "{amount} at {merchant}, {model_score}, last in {last_location}: {new_device}"
[[rule]]
id = "always"
when = "1 > 0"
reason = "Always"
mode = "shadow"
"""


@pytest.fixture
def known() -> FeatureBatch:
    past = islice(read_history(None, users=40, days=20), 1500)
    ((_, batch),) = replay(past, batch=1500)
    return batch


def test_a_column_is_what_its_field_is_called() -> None:
    profiles = Profiles().read(
        txn("ann", at=NOON, location="US", category="food"),
        txn("ann", at=NOON + DAY, location="JP", amount=90.0, ip="10.0.0.1", latitude=35.7, longitude=139.7),
    )
    batch = profiles.batch()
    assert batch.column("user") == ["ann", "ann"]
    assert batch.column("last_location") == ["", "US"]
    assert batch.column("location") == ["US", "JP"]
    assert batch.column("category") == ["food", "unknown"]
    assert batch.column("ip") == ["unknown", "10.0.0.1"]
    assert np.array_equal(batch.column("amount"), [25.0, 90.0])
    assert np.array_equal(batch.column("timestamp"), [NOON, NOON + DAY])
    assert np.array_equal(batch.column("seconds_since_last"), [np.inf, DAY])
    assert np.array_equal(batch.column("history"), [0.0, 1.0])
    assert np.array_equal(batch.column("location_changed"), [False, True])


def test_columns_are_those_of_the_rows(known: FeatureBatch) -> None:
    kinds = {"number": np.float64, "text": str, "flag": np.bool_}
    for field in FIELDS:
        column = known.column(field.name)
        assert len(column) == len(known)
        assert {type(value) for value in column} == {kinds[field.kind]}
    for place, name in enumerate(NUMBERS):
        assert np.array_equal(known.column(name), known.numbers()[:, place]), name
        assert name not in FLAGS or set(known.numbers()[:, place]) <= {0.0, 1.0}
    with np.errstate(over="ignore"):
        assert np.array_equal(known.floats(NUMBERS), known.numbers().astype(np.float32))
    assert known.floats(NUMBERS).flags.c_contiguous
    some = ("history", "amount")
    assert np.array_equal(known.floats(some), np.stack([known.column(name) for name in some], axis=1, dtype=np.float32))


def test_rules_say_of_a_batch_what_they_say_of_its_rows(tmp_path: Path, known: FeatureBatch) -> None:
    risks = np.linspace(0, 1, len(known))
    of_model = OperatingPoint(alert=0.5, block=0.8).columns(risks, risks > 0.9)
    assert list(of_model) == [field.name for field in MODEL_FIELDS]
    known.put(of_model)
    path = tmp_path / "rules.toml"
    path.write_text(RULES)
    rules = load_rules(path)
    found = rules.evaluate(known)
    rows = rows_of(known)
    assert found == evaluate(rules, rows)
    assert found == [result for row in rows for result in evaluate(rules, [row])]
    part = known.part(range(100, 130))
    assert rows_of(part) == rows[100:130]
    assert rules.evaluate(part) == found[100:130]
    assert 0 < sum(result.fraudulent for result in found) < len(found)
    assert all(result.shadow_rules == ["always"] for result in found)


def test_an_empty_batch_has_no_rows() -> None:
    batch = FeatureBatch([], [], np.empty((0, len(NUMBERS))))
    assert (len(batch), len(batch.column("amount")), batch.column("user")) == (0, 0, [])
    assert batch.floats(["amount", "txn_per_hour"]).shape == (0, 2)


def test_a_column_on_demand_is_worked_out_once_it_is_read_also_of_a_part(known: FeatureBatch) -> None:
    worked_out = []

    def anomaly() -> Column:
        worked_out.append(1)
        return np.arange(len(known)) % 7 == 0

    known.put({"model_anomaly": anomaly})
    part = known.part([7, 8, 21]).part([0, 1])
    assert worked_out == []
    assert np.array_equal(part.column("model_anomaly"), [True, False])
    assert known.part([9, 14]).column("model_anomaly").tolist() == [False, True]  # type: ignore[union-attr]
    assert worked_out == [1]
