"""What conditions compute with: functions of whole columns, and how each acts on what is not a number.

A column is an array of numbers (float64) or flags (bool), or a list of texts, with a value a row. Where a condition
holds constants alone, the functions take and give single values, which stand for every row.
"""

import math
import operator
from collections.abc import Callable
from itertools import repeat
from typing import Any, Literal, NamedTuple
from unicodedata import normalize

import numpy as np

from dataflow.rules.text_form import caseless

Kind = Literal["number", "text", "flag"]


def divide(a: Any, b: Any) -> Any:
    """The quotient; not a number where the divisor is zero."""
    return np.where(b == 0, math.nan, np.divide(a, b))[()]  # which makes a single value of an array without rows


def smaller(a: Any, b: Any) -> Any:
    """The smaller; the first where one of them is not a number."""
    return np.where(b < a, b, a)[()]


def larger(a: Any, b: Any) -> Any:
    """The larger; the first where one of them is not a number."""
    return np.where(b > a, b, a)[()]


def hour(timestamp: Any) -> Any:
    """Hour of the day, 0 to 23, UTC."""
    return timestamp % 86_400.0 // 3600.0


def weekday(timestamp: Any) -> Any:
    """Day of the week, 0 = Monday to 6, UTC; 1970-01-01 was a Thursday."""
    return (timestamp // 86_400.0 + 3.0) % 7.0


def is_in(values: Any, entries: set[Any] | frozenset[Any]) -> Any:
    """Whether each value is one of the entries; one that is not a number never is."""
    if isinstance(values, np.ndarray):
        values = values.tolist()
    if isinstance(values, list):
        if entries.isdisjoint(values):
            return False  # quick to tell, and mostly so
        return np.fromiter(map(entries.__contains__, values), np.bool_, len(values))
    return values in entries


def by_row(function: Callable[..., Any], gives: Kind) -> Callable[..., Any]:
    """The function of columns that computes `function` for each row by itself."""
    dtype = np.float64 if gives == "number" else np.bool_

    def compute(*values: Any) -> Any:
        lengths = [len(value) for value in values if isinstance(value, list | np.ndarray)]
        if not lengths:
            return function(*values)
        results = map(function, *map(_each_row, values))
        return list(results) if gives == "text" else np.fromiter(results, dtype, lengths[0])

    return compute


def _each_row(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    return value if isinstance(value, list) else repeat(value)


def _log1p(value: float) -> float:
    # Not NumPy's: the last digit of that depends on the processor, and a verdict must not.
    return math.log1p(value) if value > -1 else math.nan


def _lower(text: str) -> str:
    return normalize("NFC", text.lower())  # which may have to be composed again


class Function(NamedTuple):
    """A function that a condition may call."""

    compute: Callable[..., Any]
    takes: tuple[Kind, ...]
    gives: Kind
    doc: str
    by_row: bool = False  # it takes as long for each row as others for many


def _each(function: Callable[..., Any], takes: tuple[Kind, ...], gives: Kind, doc: str) -> Function:
    return Function(by_row(function, gives), takes, gives, doc, by_row=True)


FUNCTIONS: dict[str, Function] = {
    "abs": Function(abs, ("number",), "number", "the value without its sign"),
    "min": Function(smaller, ("number", "number"), "number", "the smaller"),
    "max": Function(larger, ("number", "number"), "number", "the larger"),
    "log1p": _each(_log1p, ("number",), "number", "natural logarithm of 1 + value"),
    "hour": Function(hour, ("number",), "number", "hour of the day of a timestamp, 0 to 23, UTC"),
    "weekday": Function(weekday, ("number",), "number", "day of the week of a timestamp, 0 = Monday to 6, UTC"),
    "length": _each(len, ("text",), "number", "how many characters"),
    "lower": _each(_lower, ("text",), "text", "in lower case"),
    "startswith": _each(str.startswith, ("text", "text"), "flag", "the first begins with the second"),
    "endswith": _each(str.endswith, ("text", "text"), "flag", "the first ends with the second"),
    "contains": _each(str.__contains__, ("text", "text"), "flag", "the second stands in the first"),
}
"""By the name that a condition calls it by."""

NAMESPACE: dict[str, Any] = {
    "__builtins__": {},
    "divide": divide,
    "negate": np.logical_not,
    "is_in": is_in,
    "caseless": by_row(caseless, "text"),
    **{f"text_{name}": by_row(getattr(operator, name), "flag") for name in ("lt", "le", "gt", "ge", "eq", "ne")},
    **{f"fn_{name}": function.compute for name, function in FUNCTIONS.items()},
}
"""The globals that compiled conditions run with."""
