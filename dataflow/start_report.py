"""What is in force: said once at the start, in one block of the log, when all of it is known."""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dataflow.process.execution import Execution
from dataflow.settings import Settings

if TYPE_CHECKING:  # the connectors tell this what they know, and are no users of rules, models and recovery
    from dataflow.rules import RuleSet
    from dataflow.scoring.metadata import Metadata, Scorer
    from dataflow.state.recovery import Held

PREFIX = "in force: "  # how each line of the block begins
METRICS_ON = "metrics on "  # what stands before the address
_log = logging.getLogger("redflag.start")

Places = dict[int, tuple[int, int]]
"""Where each partition begins to be read, and where it ends."""


class StartReport:
    """Collects what is in force, and logs it: a line each for brokers, topics, rules, model, recovery and so on.

    What the settings and files say is known from the beginning. The connectors tell the rest while they are built:
    `topics` how many partitions each topic has, `partition` where each of the source's begins. Then `say` logs it all.

    Workers are threads, and each has partitions of its own: each says what it reads, the first of a process the rest.
    """

    def __init__(
        self,
        settings: Settings,
        execution: Execution,
        rules: "Callable[[], RuleSet]",
        model: "Scorer",
        held: "Held | None",
        metrics: str | None,
    ):
        """Takes the rules as a function, and the model itself: what is in force when the block is said counts.

        `held` is the recovery directory, `metrics` where they are served; None where there is none.
        """
        self._settings = settings
        self._execution = execution
        self._rules = rules
        self._model = model
        self._held = held
        self._metrics = metrics
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}
        self._worker = threading.local()
        self._said = False

    def topics(self, counts: Mapping[str, int]) -> None:
        """Each of these topics, which are read or written, has so many partitions."""
        with self._lock:
            self._counts.update(counts)

    def partition(self, topic: str, partition: int, offset: int, end: int) -> None:
        """This worker reads a partition from `offset` on; it now ends at the offset `end`."""
        self._reads().setdefault(topic, {})[partition] = offset, end

    def say(self, counts: Mapping[str, int]) -> None:
        """Logs what this worker reads, and where it is the first of the process, all the rest.

        `counts` is for `topics`.
        """
        self.topics(counts)
        with self._lock:
            first, self._said = not self._said, True
            known = dict(self._counts)
        if first:
            for line in self._settled(known):
                _log.info("%s%s", PREFIX, line)
        for topic, places in self._reads().items():
            _say_reading(topic, known[topic], places)
            self._warn_of_made_up(topic, known[topic], places)

    def _reads(self) -> dict[str, Places]:
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
            _model_line(self._model.metadata, settings.model_file),
            _operating_point_line(self._model, settings.model_file),
            "no recovery: a restart decides nothing twice, but begins at the beginning, with no profiles"
            if held is None
            else self._recovery_line(held),
            "no metrics (METRICS_ADDRESS=off)" if self._metrics is None else METRICS_ON + self._metrics,
        ]
        return [*lines, f"writes {', '.join(written)}"] if written else lines

    def _recovery_line(self, held: "Held") -> str:
        state = "resumed" if held.resumed else "new"
        interval = f"a snapshot every {self._execution.epoch_seconds:g} s"
        files = f"{held.partitions} file{'' if held.partitions == 1 else 's'}"
        return f"recovery in {held.directory}, {state}, {files}, {interval}"

    def _warn_of_made_up(self, topic: str, count: int, places: Places) -> None:
        """A topic that the broker made by itself, as somebody asked for it: so it looks, and so it stays for ever."""
        if topic == self._settings.transactions_topic and count == 1 and places == {0: (0, 0)}:
            _log.warning(
                "topic %r has one partition, and nothing ever stood in it: if its name is misspelt (%s), the broker "
                "may have made it by itself just now; stop, mend the name, and delete the topic",
                topic,
                self._settings.named_by(topic),
            )


def _say_reading(topic: str, count: int, places: Places) -> None:
    begins = ", ".join(f"{number} from {offset} of {end}" for number, (offset, end) in sorted(places.items()))
    fields = {number: {"offset": offset, "end": end} for number, (offset, end) in sorted(places.items())}
    _log.info(
        "%sreads %s, %d of %d partitions: %s",
        PREFIX,
        topic,
        len(places),
        count,
        begins,
        extra={"topic": topic, "partitions": fields},
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


def _operating_point_line(model: "Scorer", path: Path) -> str:
    if model.metadata.operating_point is not None or not model.operating_point.of_forest:
        return f"operating point: {model.operating_point.in_words()}"
    return (
        f"operating point: {path} has none, as it was trained before there were any: the Isolation Forest's own "
        f"threshold, {model.operating_point.alert:.6g}; `python -m training.threshold --model {path}` sets one"
    )
