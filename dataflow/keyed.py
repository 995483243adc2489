"""A stateful step that costs little: Bytewax's own `stateful_map`, without the layers between it and the engine."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar, cast

import bytewax.operators as op
from bytewax.dataflow import operator
from bytewax.operators import KeyedStream, StatefulBatchLogic

from dataflow.faults import Guard
from dataflow.keyed_state import KeyedState
from dataflow.transaction import Rejection

S = TypeVar("S")
V = TypeVar("V")
W = TypeVar("W")

StatefulBatchLogic.register(KeyedState)  # a compiled class cannot inherit from an interpreted one


@operator
def stateful_map(
    step_id: str, up: KeyedStream[V], mapper: Callable[[S | None, V], tuple[S | None, W]], guard: Guard | None = None
) -> KeyedStream[W | Rejection]:
    """As `bytewax.operators.stateful_map`: the mapper takes the key's state and a value, and gives both anew.

    With a `guard`, a value on which the mapper raises becomes a `Rejection`, and the state stays what it was.

    Bytewax's has three objects a key and six calls of Python a value between the engine and the mapper; this has one
    and two, compiled.
    """
    builder = cast(Callable[[S | None], StatefulBatchLogic[V, W | Rejection, S]], partial(KeyedState, mapper, guard))
    return op.stateful_batch("stateful_batch", up, builder)
