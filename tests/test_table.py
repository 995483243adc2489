"""The facts of a batch by column are those by row."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from dataflow.features import BASIC, FIELDS, NUMBERS, observe_basic, observe_merchant, observe_user
from dataflow.operating_point import MODEL_FIELDS, OperatingPoint
from dataflow.profile import BasicProfile, MerchantProfile, UserProfile
from dataflow.rules import FeatureRows, load_rules
from dataflow.scoring import Columns
from dataflow.table import Table
from dataflow.transaction import Transaction
from training.history import read_history

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


def known(profiles: str) -> Table:
    past: list[Transaction] = [each.transaction for each in islice(read_history(None, users=40, days=20), 1500)]
    users: dict[str, UserProfile] = {}
    basics: dict[str, BasicProfile] = {}
    merchants: dict[str, MerchantProfile] = {}
    lasts, numbers = [], []
    for txn in past:
        if profiles == "basic":
            last, row = observe_basic(txn, basics.setdefault(txn.user, BasicProfile()))
        else:
            payment = observe_user(txn, users.setdefault(txn.user, UserProfile()))
            last = payment.last_location
            row = observe_merchant(payment, merchants.setdefault(txn.merchant, MerchantProfile()))
        lasts.append(last)
        numbers.append(row)
    return Table(past, lasts, numbers)


@pytest.mark.parametrize("profiles", ["basic", "full"])
def test_columns_are_those_of_the_rows(profiles: str) -> None:
    table = known(profiles)
    fields = [field for field in FIELDS if profiles == "full" or field.name in BASIC]
    rows = table.rows()
    for place, field in enumerate(fields):
        column = table.column(field.name)
        assert list(column) == [row[place] for row in rows], field.name
        kinds = {"number": np.float64, "text": str, "flag": np.bool_}
        assert {type(value) for value in column} == {kinds[field.kind]}
    names = [name for name in NUMBERS if profiles == "full" or name in BASIC]
    assert np.array_equal(table.floats(names), Columns(names)(rows))
    assert table.floats(names).flags.c_contiguous


@pytest.mark.parametrize("profiles", ["basic", "full"])
def test_rules_say_of_a_table_what_they_say_of_its_rows(tmp_path: Path, profiles: str) -> None:
    table = known(profiles)
    risks = np.linspace(0, 1, len(table))
    of_model = OperatingPoint(alert=0.5, block=0.8).columns(risks, risks > 0.9)
    assert list(of_model) == [field.name for field in MODEL_FIELDS]
    for name, values in of_model.items():
        table.take(name, values)
    path = tmp_path / "rules.toml"
    text = RULES if profiles == "full" else RULES.replace("txn_per_day", "txn_per_hour").replace("new_device", "amount")
    path.write_text(text)
    rules = load_rules(path)
    found = rules.evaluate(table)
    assert found == rules.evaluate(FeatureRows(table.rows(), of_model))
    part = table.part(range(100, 130))
    assert rules.evaluate(part) == found[100:130]
    assert 0 < sum(result.fraudulent for result in found) < len(found)
    assert all(result.shadow_rules == ["always"] for result in found)


def test_an_empty_batch_has_no_rows() -> None:
    table = Table([], [], [])
    assert (len(table), len(table.column("amount")), table.column("user"), table.rows()) == (0, 0, [], [])
    assert table.floats(["amount", "txn_per_hour"]).shape == (0, 2)
