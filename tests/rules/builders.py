"""Rules, and transactions to try them on."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dataflow.features import FIELDS, Facts, facts
from dataflow.operating_point import MODEL_FIELDS
from dataflow.profile import UserProfile
from dataflow.rules import ALL_FIELDS, FeatureRows, RuleResult, RuleSet
from tests.builders import txn


def row(**values: Any) -> Facts:
    """The fields of an ordinary transaction of a user without history, but for the values given."""
    of_model = (False, 0.1, False, 0.5, False, math.inf)
    known = dict(zip((f.name for f in ALL_FIELDS), (*facts(txn(), UserProfile()), *of_model), strict=True))
    assert values.keys() <= known.keys()
    return tuple((known | values).values())


def batch(rows: Sequence[Facts]) -> FeatureRows:
    """Rows of all fields, the model's too, as rules read them."""
    of_model = {
        field.name: np.array([row[len(FIELDS) + place] for row in rows], bool if field.kind == "flag" else float)
        for place, field in enumerate(MODEL_FIELDS)
    }
    return FeatureRows([row[: len(FIELDS)] for row in rows], of_model)


def evaluate(rules: RuleSet, rows: Sequence[Facts]) -> list[RuleResult]:
    """What the rules say of rows of all fields."""
    return rules.evaluate(batch(rows))


def rule(name: str = "r", when: str = "amount > 400", reason: str = "High", **others: Any) -> str:
    """A rule as it stands in a file."""
    more = "".join(f"{key} = {value!r}\n" for key, value in others.items())
    return f"[[rule]]\nid = '{name}'\nwhen = '''{when}'''\nreason = '''{reason}'''\n{more}"
