"""What a stateful step keeps of one key: its state, and the function that takes the next value in."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

from mypy_extensions import mypyc_attr

from dataflow.faults import Guard


@mypyc_attr(acyclic=True)  # compiled, it is nothing for the collector to walk: a million users have a million of them
class KeyedState:
    """One key's state, behind the methods that Bytewax asks of a `StatefulBatchLogic`."""

    __slots__ = ("guard", "mapper", "state")

    def __init__(self, mapper: Callable[[Any, Any], tuple[Any, Any]], guard: Guard | None, state: Any):
        self.mapper = mapper
        self.guard = guard
        self.state = state

    def on_batch(self, values: list[Any]) -> tuple[list[Any], bool]:
        """Takes the values in, in their order; what came of each, and whether nothing is to be kept of the key.

        With a guard, a value on which the mapper fails becomes a rejection, and the state is what it was before.
        """
        mapper, guard = self.mapper, self.guard
        state: Any = self.state
        out: list[Any] = []
        for value in values:
            if guard is None:
                state, made = mapper(state, value)
            else:
                before = _copy(state)
                try:
                    state, made = mapper(state, value)
                    guard.in_a_row = 0
                except Exception as error:
                    state, made = before, guard.failed(value, error)
            out.append(made)
        self.state = state
        return out, state is None

    def on_notify(self) -> tuple[list[Any], bool]:
        """Never due."""
        return [], False

    def on_eof(self) -> tuple[list[Any], bool]:
        """The state stays: the next execution goes on from it."""
        return [], False

    def notify_at(self) -> None:
        """No time is asked for."""
        return

    def snapshot(self) -> Any:
        """A copy that later values do not change."""
        return _copy(self.state)


def _copy(state: Any) -> Any:
    """A deep copy, without the looking up of `deepcopy` where a class has its own: one is made for each transaction."""
    own = getattr(state, "__deepcopy__", None)
    return deepcopy(state) if own is None else own({})
