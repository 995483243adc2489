"""Rules, and transactions to try them on."""

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from dataflow.features.batch import FeatureBatch
from dataflow.features.catalogue import FIELDS, NUMBERS
from dataflow.rules import ALL_FIELDS, RuleResult, RuleSet
from dataflow.scoring.operating_point import MODEL_FIELDS
from tests.support.builders import txn
from tests.support.profile_builders import Profiles

Row = tuple[Any, ...]
"""The values of all fields, the model's too, in the order of `ALL_FIELDS`."""

OF_MODEL = dict(zip((field.name for field in MODEL_FIELDS), (False, 0.1, False, 0.5, False, math.inf), strict=True))


def row(**values: Any) -> Row:
    """The fields of an ordinary transaction of a user without history, but for the values given."""
    known = _ordinary()
    assert values.keys() <= known.keys()
    return tuple((known | values).values())


@cache
def _ordinary() -> dict[str, Any]:
    batch = Profiles().read(txn()).batch()
    return {field.name: np.asarray(batch.column(field.name)).tolist()[0] for field in FIELDS} | OF_MODEL


def rows_of(batch: FeatureBatch) -> list[Row]:
    """The rows of a batch that has the model's columns, too."""
    return list(zip(*(np.asarray(batch.column(field.name)).tolist() for field in ALL_FIELDS), strict=True))


def batch(rows: Sequence[Row]) -> FeatureBatch:
    """Rows as a batch that rules read."""
    values = {field.name: [row[place] for row in rows] for place, field in enumerate(ALL_FIELDS)}
    numbers = np.array([values[name] for name in NUMBERS], np.float64).T
    made = FeatureBatch([txn() for _ in rows], values["last_location"], numbers)
    made.put({field.name: values[field.name] for field in FIELDS if field.kind == "text"})
    kinds = {"number": np.float64, "flag": np.bool_}
    made.put({field.name: np.array(values[field.name], kinds[field.kind]) for field in MODEL_FIELDS})
    return made


def evaluate(rules: RuleSet, rows: Sequence[Row]) -> list[RuleResult]:
    """What the rules say of rows of all fields."""
    return rules.evaluate(batch(rows))


def rule(name: str = "r", when: str = "amount > 400", reason: str = "High", **others: Any) -> str:
    """A rule as it stands in a file."""
    more = "".join(f"{key} = {value!r}\n" for key, value in others.items())
    return f"[[rule]]\nid = '{name}'\nwhen = '''{when}'''\nreason = '''{reason}'''\n{more}"
