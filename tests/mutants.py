"""The detection flow with a fault put in on purpose, to see that the checks of its guarantee bite.

An entry module as `dataflow.detect` is one, for tests only: REDFLAG_MUTANT names the fault.
"""

import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from bytewax.dataflow import Dataflow

from dataflow import detect, profile, recovery
from dataflow.connectors import already_written, delivery, exactly_once_sink, kafka_source
from dataflow.connectors.offset_set import OffsetSet
from dataflow.settings import Settings


def ignore_what_stands() -> None:
    """What stands in the outputs already is written again."""
    already_written.AlreadyWritten.find = lambda *_: OffsetSet()  # type: ignore[method-assign]


def ignore_delivery_errors() -> None:
    """A record that the broker refuses vanishes without a word, as with Bytewax's own sink."""
    delivery.Delivery._failed = lambda *_: None  # type: ignore[method-assign]
    delivery.RecordDelivery._refused = lambda *_: None  # type: ignore[method-assign]


def leave_out_the_flush() -> None:
    """The snapshot is taken with records still in the producer's queue."""
    delivery.Delivery.flush = delivery.Delivery.check  # type: ignore[method-assign]


def look_only_where_it_writes() -> None:
    """What was written before the outputs grew, in another partition than now, is written again."""
    build = exactly_once_sink.ExactlyOnceSink.build_part
    everywhere = exactly_once_sink._places

    def build_part(self: Any, step_id: str, for_part: str, resume_state: Any) -> Any:
        partition = int(for_part.rpartition("-")[2])

        def own(starts: Mapping[str, list[int]]) -> dict[tuple[str, int], int]:
            return {
                (topic, number): start
                for (topic, number), start in everywhere(starts).items()
                if number == partition % len(starts[topic])
            }

        exactly_once_sink._places = own
        return build(self, step_id, for_part, resume_state)

    exactly_once_sink.ExactlyOnceSink.build_part = build_part  # type: ignore[method-assign]


def ignore_the_topic_id() -> None:
    """What was decided on a topic that is no more is taken for a decision on the one that has its name now."""
    take = already_written.AlreadyWritten._take

    def taken(self: Any, message: Any) -> None:
        self._sources = {
            topic: already_written.SourceTopic("any", source.ends) for topic, source in self._sources.items()
        }
        take(self, message)

    def same(headers: Any) -> Any:
        origin = read(headers)
        return origin._replace(topic_id="any") if origin is not None else None

    read = already_written.read_origin
    already_written.read_origin = same
    already_written.AlreadyWritten._take = taken  # type: ignore[method-assign]


def lose_what_is_too_large() -> None:
    """A record that is too large is left out, and no pointer to it is written."""
    delivery.RecordDelivery._refused = lambda *_: None  # type: ignore[method-assign]


def read_labels_first() -> None:
    """Labels are handed out as soon as they come, as by a source of their own: after a crash before the payments."""
    fetcher = kafka_source._Fetcher

    def at_once(self: Any, number: int) -> list[Any]:
        batch: list[Any] = []
        for place, partition in sorted(self._partitions.items()):  # the topic of the labels stands first
            if place[1] == number:
                batch += [self._next(partition) for _ in range(len(partition.messages))]
        return batch

    fetcher._all_ended = lambda *_: False  # type: ignore[method-assign]
    fetcher._in_step = at_once  # type: ignore[method-assign]


def settle_labels_when_they_come() -> None:
    """A label counts at once, and what it says of an amount that is not known yet is never mended."""
    read_labels_first()
    profile.UserProfile._explain = lambda *_: None  # type: ignore[method-assign]
    profile.WAITING = 0  # type: ignore[misc]


MUTANTS: dict[str, Callable[[], Any]] = {
    "skip_list": ignore_what_stands,
    "delivery_errors": ignore_delivery_errors,
    "flush": leave_out_the_flush,
    "grown_outputs": look_only_where_it_writes,
    "topic_id": ignore_the_topic_id,
    "too_large": lose_what_is_too_large,
    "labels_first": read_labels_first,
    "labels_at_once": settle_labels_when_they_come,
}


def flow() -> Dataflow:
    """The flow with the fault."""
    MUTANTS[os.environ["REDFLAG_MUTANT"]]()
    return detect.flow()


def main() -> None:
    """As `dataflow.detect`."""
    settings = Settings.load()
    recovery.prepare(settings.recovery_dir, settings.recovery_partitions)
    options = ["-r", str(settings.recovery_dir), "-s", str(settings.recovery_interval), "-b", "0", *sys.argv[1:]]
    os.execv(sys.executable, [sys.executable, "-m", "bytewax.run", "tests.mutants:flow", *options])  # noqa: S606


if __name__ == "__main__":
    main()
