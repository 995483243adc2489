"""`stateful_map` in lanes: a step whose state is rows of a few large tables.

Its items are what of a batch belongs to a lane of keys, as one object, which hops once; Bytewax knows lanes, not keys.
A lane's rows go to the log when its last flush is two seconds old, and at the end of an epoch, where Bytewax gets a
token in place of the state.
"""

from collections.abc import Callable
from typing import Any

import bytewax.operators as op
from bytewax.dataflow import operator
from bytewax.operators import KeyedStream

from dataflow.process import lifecycle
from dataflow.state.lane import Lane, LanePace, LaneState
from dataflow.state.log import Token
from dataflow.state.store import Store
from dataflow.tables.table import Layout, Tables


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

    def make_counted(tables: Tables) -> LaneState:
        store.holds(step.name, tables)
        return make_state(tables)

    @lifecycle.exit_on_user_error
    def build(token: Token | None) -> Lane:
        return Lane(step, make_counted, token, pace)

    return op.stateful_batch("stateful_batch", up, build)


def step_name(step_id: str) -> str:
    """A step's own id: Bytewax puts the flow's name before it, and the id of the operator that it is in."""
    return step_id.rpartition(".")[2]
