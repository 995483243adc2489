"""The conditions of a ruleset, evaluated over the columns of a batch: only what some row may still meet is computed."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dataflow.features.batch import Column
from dataflow.features.catalogue import NUMBERS
from dataflow.rules.fields import Batch
from dataflow.rules.functions import NAMESPACE
from dataflow.rules.language import Condition
from dataflow.rules.lists import Pause
from dataflow.rules.text_form import comparable

STEP_CHARACTERS = 8_000
"""Of code that are compiled at once, unless a single condition's is longer.

Python's compiler lets no other thread run meanwhile: a running flow stands still for about 1 ms per 2,000 characters.
"""
SCREENED_ROWS = 64
"""Batches of up to so many rows are screened: in a larger one nearly every condition's bounds are met by some row."""
SCREENED_BOUNDS = 3
"""Of each condition."""

Places = NDArray[np.intp]

_NOWHERE: Places = np.empty(0, np.intp)
_AS_EVER = nullcontext()


class Conditions:
    """The conditions of a ruleset, compiled."""

    def __init__(self, conditions: Sequence[Condition], lists: Mapping[str, AbstractSet[str]], pause: Pause):
        """Compiles the conditions, with a `pause` after each step."""
        self._compiled = _compile(conditions, lists, pause)
        self._screen = _Screen(conditions)
        self._computing = {n for n, each in enumerate(conditions) if any(part.computes for part in each.parts)}

    def where(self, batch: Batch) -> list[tuple[int, list[int]]]:
        """Of each condition that some row meets, its number and these rows, in their order; never raises."""
        count = len(batch)
        if not count:
            return []
        numbers = self._screen.possible(batch.numbers()) if count <= SCREENED_ROWS else range(len(self._compiled))
        columns = _Columns(batch.column)
        met = []
        # What is divided by zero is not a number, and no reason for a warning. To say so takes 2 µs.
        with _AS_EVER if self._computing.isdisjoint(numbers) else np.errstate(all="ignore"):
            for number in numbers:
                places = self._compiled[number].where(columns, count)
                if len(places):
                    met.append((number, places.tolist()))
        return met


class _Columns(dict[str, Column]):
    """Columns by field, each made when it is first read; texts in the form in which they are compared."""

    def __init__(self, read: Callable[[str], Column]):
        super().__init__()
        self._read = read

    def __missing__(self, name: str) -> Column:
        column = self._read(name)
        if isinstance(column, list):
            column = comparable(column)
        self[name] = column
        return column

    def at(self, places: Places) -> "_Columns":
        """Some rows of each column."""

        def read(name: str) -> Column:
            column = self._read(name)
            return [column[place] for place in places.tolist()] if isinstance(column, list) else column[places]

        return _Columns(read)


_Test = Callable[[_Columns], Any]
"""Gives a flag for each row, or one for all."""


class _Compiled(NamedTuple):
    """A condition: what must hold, at once for all rows, and then row by row."""

    at_once: tuple[_Test, ...]
    by_row: tuple[_Test, ...]

    def where(self, columns: _Columns, count: int) -> Places:
        """The rows that meet the condition, of so many."""
        if not self.at_once:
            return _all_hold(self.by_row, columns, count)
        places = _all_hold(self.at_once, columns, count)
        if not self.by_row or not len(places):
            return places
        return places[_all_hold(self.by_row, columns.at(places), len(places))]


def _all_hold(tests: tuple[_Test, ...], columns: _Columns, count: int) -> Places:
    """The rows for which all tests hold; once there are none, no further test is run."""
    held: Any = None
    for test in tests:
        found = test(columns)
        if found is False:
            return _NOWHERE
        held = found if held is None else held & found
        if not np.count_nonzero(held):
            return _NOWHERE
    return held.nonzero()[0] if isinstance(held, np.ndarray) else np.arange(count)


class _Screen:
    """Tells at little cost which conditions no row of a small batch can meet, by some bounds of each.

    All bounds of all conditions are compared at once. Without this, a lone transaction would take 1 µs for each rule.
    """

    def __init__(self, conditions: Sequence[Condition]):
        place_of = {name: place for place, name in enumerate(NUMBERS)}
        bounds = [[bound for bound in each.bounds if bound.field in place_of] for each in conditions]
        self._open = [number for number, each in enumerate(bounds) if not each]
        self._bounded = [number for number, each in enumerate(bounds) if each]
        # As many of each, of shape (bounds, conditions); where there are fewer, the first again.
        table = [[each[n] if n < len(each) else each[0] for each in bounds if each] for n in range(SCREENED_BOUNDS)]
        self._places = np.array([[place_of[bound.field] for bound in row] for row in table], np.intp)
        # -x of what must be at most x, so that all must be at least something; with one more axis, of the rows.
        self._signs = np.array([[[-1.0 if bound.at_most else 1.0] for bound in row] for row in table])
        self._limits = np.array([[[bound.limit] for bound in row] for row in table]) * self._signs

    def possible(self, numbers: NDArray[np.float64]) -> list[int]:
        """Which conditions some row may meet, by number; `numbers` is of shape (rows, features)."""
        if not self._bounded:
            return self._open
        met = numbers.T.take(self._places, axis=0) * self._signs >= self._limits
        by_condition, _ = (met[0] & met[1] & met[2]).nonzero()
        return self._open + [self._bounded[each] for each in set(by_condition.tolist())]


def _compile(conditions: Sequence[Condition], lists: Mapping[str, AbstractSet[str]], pause: Pause) -> list[_Compiled]:
    namespace = {**NAMESPACE, **{f"l_{name}": entries for name, entries in lists.items()}}
    compiled: list[_Compiled] = []
    for sources in _steps(map(_source, conditions)):
        compiled += _compile_step(sources, namespace)
        pause()
    return compiled


def _source(condition: Condition) -> str:
    """The tests of a condition, at once and by row, as the source of a pair of tuples."""
    at_once, by_row = (
        "".join(f"lambda columns: {part.source}, " for part in condition.parts if part.by_row == kind)
        for kind in (False, True)
    )
    return f"(({at_once}), ({by_row}))"


def _steps(sources: Iterable[str]) -> Iterator[list[str]]:
    """As many sources together as are compiled at once."""
    step: list[str] = []
    characters = 0
    for source in sources:
        if step and characters + len(source) > STEP_CHARACTERS:
            yield step
            step, characters = [], 0
        step.append(source)
        characters += len(source)
    if step:
        yield step


def _compile_step(sources: list[str], namespace: dict[str, Any]) -> list[_Compiled]:
    # The source is our own: names of fields, lists and functions that we know, and constants in Python's own notation.
    code = compile(f"[{', '.join(sources)}]", "<rules>", "eval")
    return [_Compiled(*tests) for tests in eval(code, namespace)]  # noqa: S307
