"""Topics that change while the flow runs: partitions that were added, and topics that were made anew."""

import logging
from collections.abc import Mapping

from dataflow.connectors.kafka_clients import TopicIdentity
from dataflow.errors import UserError
from dataflow.metrics import PARTITIONS_ADDED
from dataflow.process import lifecycle
from dataflow.settings import Settings

log = logging.getLogger("redflag.source")


class TopicChanges:
    """Compares what the broker says of the topics with what the flow began with.

    Added partitions of a source end the flow gracefully, with a status of its own: Bytewax reads those alone that were
    there at its start, so a supervisor must start it anew. A topic made anew ends it with one line, as the next start
    would refuse it.

    """

    def __init__(self, settings: Settings):
        self._settings = settings
        self._counts: Mapping[str, int] = {}
        self._identities: dict[str, TopicIdentity] = {}
        self._ended = False

    def began(self, counts: Mapping[str, int]) -> None:
        """The flow begins to read topics that have so many partitions."""
        self._counts = dict(counts)

    def counted(self, found: Mapping[str, int]) -> None:
        """The partitions that each topic has now."""
        grown = []
        for topic, began in self._counts.items():
            added = found.get(topic, 0) - began
            if added > 0:
                PARTITIONS_ADDED.labels(topic).set(added)
                grown.append(f"{topic} had {began} and has {found[topic]}")
        if grown and not self._ended:
            self._ended = True
            log.warning(
                "partitions were added (%s): the flow ends with status %d, to be started again with all of them",
                ", ".join(grown),
                lifecycle.TOPICS_CHANGED,
            )
            lifecycle.end_with(lifecycle.TOPICS_CHANGED, self._settings.stop_timeout_seconds)

    def identified(self, found: Mapping[str, TopicIdentity]) -> None:
        """Which topics these are now.

        Raises:
            UserError: one is not what it was.
        """
        for topic, now in found.items():
            began = self._identities.setdefault(topic, now)
            if began != now:
                msg = (
                    f"topic {topic!r} was made anew while the flow ran (cluster and topic id were {began.cluster_id}, "
                    f"{began.topic_id}, and are {now.cluster_id}, {now.topic_id}): start with "
                    "python -m dataflow.detect --accept-gap, which keeps profiles, or bring the old one back"
                )
                raise UserError(msg)
