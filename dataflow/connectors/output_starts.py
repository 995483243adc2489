"""From which offsets on the outputs are read at a start, for what stands there and no snapshot covers.

A part's last snapshot says so. A partition that was added to a source has no snapshot yet; but nothing of it can stand
where another part's snapshot of before begins.
"""

import logging
import os
import threading
from collections.abc import Mapping
from typing import NamedTuple, NotRequired, TypedDict

from dataflow.connectors.already_written import Place
from dataflow.connectors.kafka_clients import TopicIdentity
from dataflow.errors import UserError

ACCEPT_GAP = "REDFLAG_ACCEPT_GAP"

_log = logging.getLogger("redflag.sink")


class OutputState(TypedDict):
    """Of one output: which topic it is, and by partition from which offset on uncovered records may stand."""

    topic_id: str  # "" where the broker has no topic ids
    starts: list[int]


class SinkState(TypedDict):
    """What a part of the exactly-once sink keeps in a snapshot."""

    version: int
    cluster_id: str
    outputs: dict[str, OutputState]
    source_partitions: NotRequired[int]  # how many its source had; snapshots of before November 2026 do not say


class Outputs(NamedTuple):
    """The outputs as they are at a start."""

    counts: Mapping[str, int]  # of each its partitions
    ends: Mapping[Place, int]
    identities: Mapping[str, TopicIdentity]


class OutputStarts:
    """Says for each part of the sink from where to read. Threads may share it."""

    def __init__(self, outputs: Outputs, committed: Mapping[Place, SinkState]):
        """`committed`: the last snapshots of all parts, by the partition of the source; some may be missing."""
        self._outputs = outputs
        self._committed = committed
        self._lock = threading.Lock()
        self._accepted: set[str] = set()

    def of(self, source: Place, output: str, state: SinkState | None) -> list[int]:
        """By partition of an output, for the part of a source's partition and its last snapshot, None without one.

        Raises:
            UserError: it is another topic than the recovery data knows, and that was not accepted.
        """
        beginning = [0] * self._outputs.counts[output]
        if state is None:
            return self._of_added(source, output, beginning)
        known = state["outputs"].get(output)
        if known is None:
            return beginning
        # A partition that was added since has nothing that the snapshot covers.
        starts = [*known["starts"], *beginning[len(known["starts"]) :]]
        differs = self._difference(output, state["cluster_id"], known)
        if not differs:
            return starts
        if os.environ.get(ACCEPT_GAP) != "1":
            msg = (
                f"{differs}: bring back what was there, or start once with --accept-gap, to go on with the profiles; "
                f"{output} is then read from its beginning, and nothing that stands there is written again"
            )
            raise UserError(msg)
        with self._lock:
            if output not in self._accepted:
                self._accepted.add(output)
                _log.warning("%s: accepted; %s is read from its beginning", differs, output)
        return beginning

    def _of_added(self, source: Place, output: str, beginning: list[int]) -> list[int]:
        """For a partition without a snapshot.

        A snapshot of another part counts if the source had not this partition when the flow that took it began: that
        flow wrote nothing of it, and whoever did, with whatever recovery directory, came after it.
        """
        topic, partition = source
        starts = beginning
        for (of, _), state in self._committed.items():
            known = state["outputs"].get(output)
            if of != topic or known is None or state.get("source_partitions", partition + 1) > partition:
                continue
            if not self._difference(output, state["cluster_id"], known):
                covered = [*known["starts"], *beginning[len(known["starts"]) :]]
                starts = [max(pair) for pair in zip(starts, covered, strict=True)]
        return starts

    def _difference(self, output: str, cluster_id: str, known: OutputState) -> str:
        """What about an output is not as the recovery data says; empty if nothing."""
        count, now = self._outputs.counts[output], self._outputs.identities[output]
        if cluster_id and now.cluster_id and cluster_id != now.cluster_id:
            return f"the recovery data was written on cluster {cluster_id}, but this is {now.cluster_id}"
        if known["topic_id"] and now.topic_id and known["topic_id"] != now.topic_id:
            return (
                f"{output} was made anew since the recovery data was written (topic id {known['topic_id']}, now "
                f"{now.topic_id})"
            )
        if len(known["starts"]) > count:
            return f"{output} has {count} partitions, but the recovery data knows {len(known['starts'])}"
        for number, start in enumerate(known["starts"]):
            end = self._outputs.ends[output, number]
            if start > end:
                return (
                    f"{output}[{number}] ends at offset {end}, but the recovery data says that {start} records were "
                    "acknowledged: the topic was made anew or cut"
                )
        return ""
