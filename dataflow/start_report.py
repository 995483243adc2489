"""What is in force: said once at the start, in one block of the log, when all of it is known."""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataflow.settings import Settings

if TYPE_CHECKING:  # the connectors tell this what they know, and are no users of rules, models and recovery
    from dataflow.recovery import Held
    from dataflow.rules import RuleSet
    from dataflow.scoring import Metadata

PREFIX = "in force: "  # how each line of the block begins
METRICS_ON = "metrics on "  # what stands before the address
_log = logging.getLogger("redflag.start")


class StartReport:
    """Collects what is in force, and logs it: a line each for brokers, topics, rules, model, profiles and so on.

    What the settings and files say is known from the beginning. The connectors tell the rest while they are built:
    `topic` how many partitions each topic has, `partition` where each of the source's begins. Then `say` logs it all.

    Workers are threads, and each has partitions of its own: each says what it reads, the first of a process the rest.
    """

    def __init__(
        self,
        settings: Settings,
        rules: "Callable[[], RuleSet]",
        model: "Metadata",
        held: "Held | None",
        metrics: str | None,
    ):
        """Takes the rules as a function: those that are in force when the block is said.

        `held` is the recovery directory, `metrics` the address; None where there is none.
        """
        self._settings = settings
        self._rules = rules
        self._model = model
        self._held = held
        self._metrics = metrics
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}
        self._worker = threading.local()
        self._said = False

    def topic(self, topic: str, partitions: int) -> None:
        """A topic that is read or written has so many partitions."""
        with self._lock:
            self._counts[topic] = partitions

    def partition(self, topic: str, partition: int, offset: int | None, end: int | None) -> None:
        """This worker reads a partition from `offset` on; None where it begins at the beginning.

        `end` is the offset at which the partition ends now, None where that is not known.
        """
        self._reads().setdefault(topic, {})[partition] = offset, end

    def say(self) -> None:
        """Logs what this worker reads; the first of the process to come also all the rest. Each worker says it once."""
        with self._lock:
            first, self._said = not self._said, True
            counts = dict(self._counts)
        if first:
            for line in self._settled(counts):
                _log.info("%s%s", PREFIX, line)
        for topic, partitions in self._reads().items():
            _say_reading(topic, counts.get(topic), partitions)
            self._warn_of_made_up(topic, counts.get(topic), partitions)
        self._worker.reads = {}

    def _reads(self) -> dict[str, dict[int, tuple[int | None, int | None]]]:
        if not hasattr(self._worker, "reads"):
            self._worker.reads = {}
        return self._worker.reads  # type: ignore[no-any-return]

    def _settled(self, counts: Mapping[str, int]) -> list[str]:
        settings, held = self._settings, self._held
        outputs = (settings.alerts_topic, settings.classified_topic, settings.invalid_topic)
        written = [f"{topic} ({counts[topic]} partitions)" for topic in outputs if topic in counts]
        lines = [
            f"brokers {settings.brokers}",
            _rules_line(self._rules(), settings.rules_file),
            _model_line(self._model, settings.model_file),
            f"profiles {settings.profiles}",
            "no recovery: a restart decides nothing twice, but begins at the beginning, with no profiles"
            if held is None
            else _recovery_line(held),
            "no metrics (METRICS_ADDRESS=off)" if self._metrics is None else METRICS_ON + self._metrics,
        ]
        return [*lines, f"writes {', '.join(written)}"] if written else lines

    def _warn_of_made_up(self, topic: str, count: int | None, partitions: Mapping[int, tuple[Any, int | None]]) -> None:
        """A topic that the broker made by itself, as somebody asked for it: so it looks, and so it stays for ever."""
        if topic == self._settings.transactions_topic and count == 1 and partitions.get(0) in ((None, 0), (0, 0)):
            _log.warning(
                "topic %r has one partition, and nothing ever stood in it: if its name is misspelt (%s), the broker "
                "may have made it by itself just now; stop, mend the name, and delete the topic",
                topic,
                self._settings.named_by(topic),
            )


def _say_reading(topic: str, count: int | None, partitions: Mapping[int, tuple[int | None, int | None]]) -> None:
    places = []
    for number, (offset, end) in sorted(partitions.items()):
        begins = "the beginning" if offset is None else str(offset)
        places.append(f"{number} from {begins}" + (f" of {end}" if end is not None else ""))
    share = f"{len(partitions)} of {count} partitions" if count is not None else f"{len(partitions)} partitions"
    _log.info(
        "%sreads %s, %s: %s",
        PREFIX,
        topic,
        share,
        ", ".join(places),
        extra={
            "topic": topic,
            "partitions": {
                number: {"offset": offset, "end": end} for number, (offset, end) in sorted(partitions.items())
            },
        },
    )


def _rules_line(rules: "RuleSet", path: Path) -> str:
    modes = Counter(rule.effect for rule in rules.rules)
    by_mode = ", ".join(f"{count} {mode}" for mode, count in sorted(modes.items())) or "none"
    return f"rules {rules.version} from {path}: {by_mode}"


def _model_line(model: "Metadata", path: Path) -> str:
    window = model.window
    return (
        f"model {model.fingerprint[:12]} from {path}: {', '.join(model.tiers)}; trained {model.created_at} on "
        f"{window.rows} transactions of {window.source}, {window.first} to {window.last}"
    )


def _recovery_line(held: "Held") -> str:
    interval = "Bytewax's interval" if held.interval is None else f"{held.interval:g} s"
    state = "resumed" if held.resumed else "new"
    return f"recovery in {held.directory}, {state}, {held.partitions} files, a snapshot every {interval}"
