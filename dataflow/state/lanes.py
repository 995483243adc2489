"""`stateful_map_items` in lanes: a step that is keyed as Bytewax's own, and whose state is rows of a few large tables.

Inside, the items of a batch are divided by lane and hop once, as one object a lane; Bytewax knows lanes, not keys. A
lane's rows go to the log when its last flush is half a second old, and at the end of an epoch, where Bytewax gets a
token in place of the state.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import bytewax.operators as op
from bytewax.dataflow import operator
from bytewax.operators import KeyedStream

from dataflow.process import lifecycle
from dataflow.process.faults import Guard
from dataflow.state.batches import PICKLED, Codec, Divider
from dataflow.state.lane import Lane, LanePace, LaneState
from dataflow.state.log import Token
from dataflow.state.mapped_tables import LaneMapper, Limits, MappedTables, guarded
from dataflow.state.store import Store
from dataflow.tables.table import Layout, Tables

V = TypeVar("V")
W = TypeVar("W")


@operator
def stateful_map(
    step_id: str,
    up: KeyedStream[Any],
    make_state: Callable[[Tables], LaneState],
    layout: Layout,
    store: Store,
    pace: LanePace = LanePace(),  # noqa: B008
) -> KeyedStream[Any]:
    """A step whose items are batches of lanes already: keyed by the lane's name, with its number as `lane`.

    Args:
        step_id: a recovery key.
        up: batches, by the name of their lane (`Store.names`).
        make_state: what is kept of a lane.
        layout: of its tables.
        store: where they are kept.
        pace: how often lanes write.

    Raises:
        UserError: the store holds rows of another layout for this step.
    """
    step = store.step(step_name(step_id), layout)

    @lifecycle.exit_on_user_error
    def build(token: Token | None) -> Lane:
        return Lane(step, make_state, token, pace)

    return op.stateful_batch("stateful_batch", up, build)


@operator
def stateful_map_items(
    step_id: str,
    up: KeyedStream[V],
    mapper: LaneMapper,
    layout: Layout,
    store: Store,
    limits: Limits | None = None,
    guard: Guard | None = None,
    codec: Codec = PICKLED,
    in_order: bool = False,
    pace: LanePace = LanePace(),  # noqa: B008
) -> KeyedStream[W]:
    """As `bytewax.operators.stateful_map`: the mapper finds each key's state as the item before left it.

    Args:
        step_id: a recovery key: one that was released stays as it is.
        up: items by key.
        mapper: reads and writes the rows of a lane's items; see `LaneMapper`.
        layout: of the rows.
        store: where they are kept.
        limits: what is forgotten; without them, nothing is.
        guard: without one, what the mapper raises ends the flow.
        codec: how values go to another process.
        in_order: of one worker alone: items come out in the order in which they came in. With several workers the
            items of each key do, whatever this says.
        pace: how often lanes write.

    Raises:
        UserError: the store holds rows of another layout for this step.
    """
    divider = Divider(store.names, codec, in_order)
    safe = guarded(mapper, guard) if guard is not None else mapper
    name = step_name(step_id)

    def make_state(tables: Tables) -> MappedTables:
        return MappedTables(name, layout, tables, safe, limits)

    by_lane = op.flat_map_batch("divide_by_lane", up, divider.divide)
    # (name of the lane, LaneBatch)
    mapped = stateful_map(name, by_lane, make_state, layout, store, pace)
    # (name of the lane, LaneBatch)
    return op.flat_map_batch("join_lanes", mapped, divider.join)


def step_name(step_id: str) -> str:
    """A step's own id: Bytewax puts the flow's name before it, and the id of the operator that it is in."""
    return step_id.rpartition(".")[2]
