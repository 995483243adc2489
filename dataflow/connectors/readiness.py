"""What keeps a flow from deciding: a silent broker, no right to write, no acknowledgements, no snapshots."""

from typing import Final

from dataflow.connectors.broker_watch import BrokerWatch
from dataflow.connectors.exactly_once_sink import ExactlyOnceSink
from dataflow.connectors.ownership import HELD_SECONDS, Ownership
from dataflow.process.health import Check
from dataflow.state.snapshot_times import SnapshotTimes

SILENT_SECONDS: Final = 10.0
"""The broker may be silent, and a record not acknowledged, for so long: to elect another leader takes less."""
STALE_EPOCHS: Final = 3
"""A snapshot is stale once so many more should have been committed since, ..."""
STALE_SECONDS: Final = 10.0
"""... and so long: one whose disk is slow for a moment is not."""


def ready_checks(
    watch: BrokerWatch, ownership: Ownership, sink: ExactlyOnceSink, snapshots: SnapshotTimes, epoch_seconds: float
) -> list[Check]:
    """The checks for `Health`; each says in a few words what is wrong, None if nothing is.

    `epoch_seconds`: between two snapshots.
    """

    def reads() -> str | None:
        silent = watch.seconds_since_answer()
        return f"no broker has answered for {silent:.0f} s" if silent > SILENT_SECONDS else None

    def may_write() -> str | None:
        age = ownership.age()
        return f"it is not known for {age:.0f} s whose the outputs are" if age > HELD_SECONDS else None

    def writes() -> str | None:
        waiting = sink.waiting_seconds()
        return f"a record has not been acknowledged for {waiting:.0f} s" if waiting > SILENT_SECONDS else None

    def snapshots_fresh() -> str | None:
        age = snapshots.age()  # NaN, which is never greater, without recovery
        return f"the last snapshot is {age:.0f} s old" if age > STALE_EPOCHS * epoch_seconds + STALE_SECONDS else None

    return [reads, may_write, writes, snapshots_fresh]
