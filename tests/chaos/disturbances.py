"""What is done to the flow, its broker, its topics, its rules and its disk; and the end, when all is compared."""

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from itertools import product
from pathlib import Path
from random import Random

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions

from dataflow.connectors.kafka_clients import identify_topics
from dataflow.process.lifecycle import TOPICS_CHANGED
from dataflow.scoring.loading import load_model
from dataflow.scoring.operating_point import OperatingPoint
from dataflow.settings import Settings
from tests.chaos.cluster import Cluster, mount, remount, unmount
from tests.chaos.comparison import (
    LIMITS,
    OUTPUT_LIMIT,
    RULES,
    THRESHOLDS,
    By,
    Counts,
    Output,
    Place,
    compare_states,
    decide,
    in_step,
    states,
    tally,
)
from tests.chaos.input import INPUT, INPUT_LIMIT, LABELS, PARTITIONS, SETTINGS, Feeder
from tests.support.kafka_server import KafkaServer, await_topics
from tests.support.reading import read_all
from training.threshold import write as write_operating_point

DECISIONS = (SETTINGS.alerts_topic, SETTINGS.classified_topic)
OUTPUTS = (*DECISIONS, SETTINGS.invalid_topic)
STUCK_SECONDS = 90.0  # without any progress, while flow and broker run


class StuckError(AssertionError):
    """What must come did not; the message says what, and ends with the last that flow and broker said."""


class Chaos:
    """One run: a broker, a feeder, a cluster, and what is done to them."""

    def __init__(
        self,
        directory: Path,
        model_file: Path,
        *,
        seed: int = 1,
        users: int = 10_000,
        command: Iterable[str] = ("dataflow.detect",),
        environ: Mapping[str, str] | None = None,
        say: Callable[[str], None] = lambda _line: None,
    ):
        self.counts = Counts(seed, users=users)
        self.rng = Random(seed)
        self.say = say
        self._began = time.monotonic()
        self._directory = directory
        self._model_file = directory / "moved-model.pkl"
        for end in (".pkl", ".json"):
            shutil.copy(model_file.with_suffix(end), self._model_file.with_suffix(end))
        self._threshold = THRESHOLDS[0]
        self._write_threshold()
        self._rules_file = directory / "rules.toml"
        self._limit = LIMITS[0]
        self._write_rules()
        self._state = directory / "state"
        self._state.mkdir()
        self.mounted = mount(self._state)
        logs = directory / "logs"
        logs.mkdir()
        self.broker = KafkaServer({"message.max.bytes": INPUT_LIMIT})
        # Fewer outputs than sources: where they grow, most decisions go to other partitions than before.
        self._counts = {INPUT: PARTITIONS, LABELS: PARTITIONS, **dict.fromkeys(DECISIONS, PARTITIONS - 1)}
        self._counts[SETTINGS.invalid_topic] = PARTITIONS - 2
        self._had = {topic: {count} for topic, count in self._counts.items()}
        self._earlier: list[Message] = []  # transactions of the topic before it was made anew
        self._labels_before = 0.0  # ms since 1970: labels up to then belong to these
        try:
            self.broker.start()
            self._create_input()
            # The broker's limit is that of the input here; of the outputs it is Kafka's own.
            outputs = {topic: self._counts[topic] for topic in OUTPUTS}
            self.broker.create_topics(outputs, {"max.message.bytes": OUTPUT_LIMIT})
            self.broker.create_topics({LABELS: PARTITIONS})
            self.settings = Settings(brokers=self.broker.bootstrap)
            clean = {k: v for k, v in os.environ.items() if not k.startswith(("KAFKA_", "RECOVERY_", "BYTEWAX_"))}
            self.cluster = Cluster(
                list(command),
                {
                    **clean,
                    "KAFKA_BROKERS": self.broker.bootstrap,
                    "METRICS_ADDRESS": "off",  # several of them on one machine
                    "LOG_FORMAT": "json",
                    "LOG_LEVEL": "info",
                    "RULES_FILE": str(self._rules_file),
                    "MODEL_FILE": str(self._model_file),
                    "RECOVERY_DIR": str(self._state / "recovery"),
                    "RECOVERY_INTERVAL": "1",
                    **(environ or {}),
                },
                logs,
                self.rng,
            )
            self.feeder = Feeder(self.broker.bootstrap, seed, users)
            self._asking = Consumer({"bootstrap.servers": self.broker.bootstrap, "group.id": "chaos", "log_level": 0})
        except BaseException:
            self.broker.close()
            unmount(self._state, self.mounted)
            raise
        self.feeder.start()

    def __enter__(self) -> "Chaos":
        return self

    def __exit__(self, *_: object) -> None:
        self.cluster.close()
        self._asking.close()
        self.broker.close()
        unmount(self._state, self.mounted)

    # ---- what can be seen

    def written(self) -> int:
        """Records on all output topics; -1 while the broker does not answer."""
        try:
            return sum(self._end(topic, n) for topic in OUTPUTS for n in range(self._counts[topic]))
        except KafkaException:
            return -1

    def _end(self, topic: str, partition: int) -> int:
        return int(self._asking.get_watermark_offsets(TopicPartition(topic, partition), timeout=5)[1])

    def read_to_the_end(self) -> bool:
        """Whether a start would go on from the ends of both topics: then all that was fed is decided."""
        positions: dict[tuple[str, int], int] = {}
        for key, state in states(self._state / "recovery", "read_messages").items():
            for topic, position in state["positions"].items():
                positions[topic, int(key)] = position["offset"]
        return all(
            positions.get((topic, n), 0) >= self._end(topic, n)
            for topic in (INPUT, LABELS)
            for n in range(self._counts[topic])
        )

    def wait(self, what: str, condition: Callable[[], bool], seconds: float = STUCK_SECONDS) -> None:
        """Waits for something that must come.

        Raises:
            StuckError: it does not. Nothing that is done after that would show anything.
        """
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                self.counts.stuck += 1
                msg = f"STUCK: {what} did not come in {seconds:g} s\n{self._last_said()}"
                raise StuckError(msg)
            time.sleep(0.05)

    def _last_said(self) -> str:
        """The last lines of the broker's log and of those of the flow's processes."""
        return f"{self.cluster.last_said()}\nthe broker:\n{self.broker.log_tail(10)}"

    def wait_ready(self) -> None:
        self.wait("a start", self.cluster.ready)

    def wait_progress(self) -> None:
        """Waits until something more was decided; something is fed for that."""
        before = self.written()
        self.feeder.release(20, 0.1)
        self.wait("a decision", lambda: self.written() > before >= 0 or (before < 0 <= self.written()))

    # ---- what can be done

    def kill(self, change_rules: bool = False, rescale: bool = False) -> None:
        """SIGKILLs the flow, or one of its two processes, at a random instant: starting, resuming, or at work."""
        rng = self.rng
        if rng.random() < 0.45:
            time.sleep(rng.uniform(0.0, 4.0))
        else:
            self.wait_ready()
            time.sleep(rng.uniform(0.0, 2.0))
        everything = change_rules or rescale or self.cluster.size == 1 or rng.random() < 0.4
        if everything:
            killed = self.cluster.kill_all()
            if change_rules:
                self._limit = LIMITS[self._limit == LIMITS[0]]
                self._write_rules()
                self.counts.rule_changes += 1
            self.cluster.go_on(3 - self.cluster.size if rescale else None)
            self.counts.rescales += rescale
        else:
            killed = self.cluster.kill([rng.randrange(2)])
        self._killed(killed)

    def _killed(self, killed: tuple[int, int]) -> None:
        self.counts.kills += killed[0]
        self.counts.kills_during_start += killed[1]

    def _write_rules(self) -> None:
        new = self._rules_file.with_suffix(".new")
        new.write_text(RULES.format(limit=self._limit))
        new.replace(self._rules_file)

    def move_threshold(self) -> None:
        """The model's operating point is moved under a flow at work, which takes it up; then it may be killed.

        What was decided by the old one and is in no snapshot is decided again by the new one.
        """
        self.wait_ready()
        self._threshold = THRESHOLDS[self._threshold == THRESHOLDS[0]]
        self._write_threshold()
        self.counts.threshold_changes += 1
        self.feeder.release(1000, 2.0)
        if self.rng.random() < 0.7:
            time.sleep(self.rng.uniform(0.0, 3.0))
            self._killed(self.cluster.kill_all())
            self.cluster.go_on()
            self.wait_ready()
        self.wait_progress()

    def _write_threshold(self) -> None:
        metadata = load_model(self._model_file).metadata
        write_operating_point(self._model_file, metadata, OperatingPoint(alert=self._threshold))

    def stop(self) -> None:
        """SIGTERM: must end with status 0 within 10 s; then goes on, now and then at another scale."""
        self.wait_ready()
        self._stop()
        rescale = self.rng.random() < 0.5
        self.counts.rescales += rescale
        self.cluster.go_on(3 - self.cluster.size if rescale else None)

    def _stop(self) -> None:
        codes, seconds = self.cluster.stop()
        self.counts.graceful_stops += 1
        self.counts.slowest_stop_seconds = max(self.counts.slowest_stop_seconds, round(seconds, 1))
        if any(codes):
            self.counts.unexpected_stops += 1
            self.say(f"SIGTERM ended the flow with {codes}")

    def kill_broker(self, away: float | None = None) -> None:
        """SIGKILLs the broker with the flow at work, which must survive that."""
        self.wait_ready()
        self.wait_progress()
        self.cluster.expect_no_stops()
        time.sleep(self.rng.uniform(0.0, 1.0))
        self.broker.kill()
        self.counts.broker_kills += 1
        seconds = self.rng.uniform(0.1, 4.0) if away is None else away
        self.counts.broker_away_seconds = max(self.counts.broker_away_seconds, round(seconds, 1))
        time.sleep(seconds)
        self.broker.start()
        self.wait_progress()

    def kill_both(self) -> None:
        """SIGKILLs broker and flow together; the flow starts without a broker, or while it recovers."""
        self.wait_ready()
        self.wait_progress()
        time.sleep(self.rng.uniform(0.0, 1.0))
        if self.rng.random() < 0.5:
            self.broker.kill()
            self._killed(self.cluster.kill_all())
        else:
            self._killed(self.cluster.kill_all())
            self.broker.kill()
        self.counts.both_at_once += 1
        self.counts.broker_kills += 1
        self.cluster.go_on()
        self.cluster.excuse(60)
        time.sleep(self.rng.uniform(0.1, 4.0))
        self.broker.start()
        self.wait_ready()
        self.wait_progress()

    def freeze_broker(self) -> None:
        """Stops the broker with records on their way to it, kills the flow, and lets the broker go on beside the new.

        So a record of the killed process reaches the topic while, or after, the new one looks for it.
        """
        self.wait_ready()
        self.feeder.release(3000, 0.05)
        before = self.written()
        self.wait("a decision", lambda: self.written() > before)
        pid = self.broker.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(self.rng.uniform(0.1, 1.0))
            self._killed(self.cluster.kill_all())
            self.cluster.go_on()
            self.cluster.excuse(60)
            time.sleep(self.rng.uniform(1.0, 8.0))
        finally:
            os.kill(pid, signal.SIGCONT)
        self.counts.broker_freezes += 1
        self.wait_ready()
        self.wait_progress()

    def feed_oversize(self) -> None:
        """Messages larger than the outputs take, a transaction and garbage: the flow goes on, and points to them."""
        self.wait_ready()
        self.feeder.release_large(valid=True)
        self.feeder.release_large(valid=False)
        self.counts.oversize += 2
        self.wait_progress()

    def feed_in_transactions(self) -> None:
        """A transactional producer upstream: its markers are nobody's transaction, and what it aborts is none."""
        for commit in (True, self.rng.random() < 0.5, True):
            self.feeder.release_transactional(commit)
            self.counts.kafka_transactions += 1
        if self.rng.random() < 0.5:
            self.kill()
        self.wait_progress()

    def grow_source(self) -> None:
        """More partitions of the topics that are read: the flow notices, ends with a status of its own, and reads all.

        The supervisor starts it again, as it does whatever it ends with.
        """
        self.wait_ready()
        self.cluster.excuse(1e9)
        already = len(self.cluster.ended)
        for topic in (LABELS, INPUT):
            self.grow(topic, 2)
        self.feeder.use_new_partitions(self._counts[INPUT] - PARTITIONS)
        self.feeder.release(500, 1.0)
        self.wait("the end of a flow whose topics have grown", lambda: len(self.cluster.ended) > already)
        codes = [code for code, _ in self.cluster.ended[already:]]
        if TOPICS_CHANGED not in codes:
            self.counts.unexpected_stops += 1
            self.say(f"with more partitions it ended with {codes}")
        self.counts.source_growths += 1
        self.wait_ready()
        self.wait_progress()
        self.cluster.excuse(10)

    def grow_outputs(self) -> None:
        """More partitions of the outputs, between two lives of the flow: what stands in the old ones is found."""
        self.wait_ready()
        self.wait_progress()
        self._killed(self.cluster.kill_all())
        for topic in OUTPUTS if self.rng.random() < 0.5 else DECISIONS:
            self.grow(topic, 1)
        self.counts.output_growths += 1
        self.cluster.go_on()
        if self.rng.random() < 0.5:  # and once more, before there is a snapshot with the new ones
            time.sleep(self.rng.uniform(0.5, 4.0))
            self._killed(self.cluster.kill_all())
            self.cluster.go_on()
        self.wait_ready()
        self.wait_progress()

    def grow(self, topic: str, by: int) -> None:
        """Adds partitions to a topic."""
        self._counts[topic] += by
        self._had[topic].add(self._counts[topic])
        admin = AdminClient({"bootstrap.servers": self.broker.bootstrap, "log_level": 0})
        for future in admin.create_partitions([NewPartitions(topic, self._counts[topic])]).values():
            future.result(timeout=30)
        # By the very client that is asked for ends: it keeps what it knows of a topic for minutes.
        await_topics(lambda name: self._asking.list_topics(name, timeout=5), {topic: self._counts[topic]})

    def make_topic_anew(self) -> None:
        """The topic is deleted and made again: refused, until the gap is accepted; profiles and outputs stay."""
        self.wait_ready()
        self.feeder.pause()
        given = read_all(self.settings, [INPUT], 300)
        self.wait("all decisions", lambda: self.written() >= len(given) + len(self._earlier), 300)
        self.cluster.excuse(1e9)
        while True:
            time.sleep(1.5)
            self._stop()
            if self.read_to_the_end():
                break
            self.cluster.go_on()
            self.wait_ready()
        self._earlier += given
        self._labels_before = time.time() * 1000
        admin = AdminClient({"bootstrap.servers": self.broker.bootstrap, "log_level": 0})
        admin.delete_topics([INPUT])[INPUT].result(timeout=30)
        self.wait("a deleted topic", lambda: INPUT not in admin.list_topics(timeout=5).topics)
        self._create_input()
        self.feeder.go_on()
        self.feeder.release(3000, 0.5)  # so that it may be longer than the old offsets, or shorter
        already = len(self.cluster.ended)
        self.cluster.go_on()
        self.wait("a refusal of the new topic", lambda: len(self.cluster.ended) > already)
        for code, each in self.cluster.ended[already:]:
            if code != 2 or not any("made anew" in reason for reason in each.reasons()):
                self.counts.unexpected_stops += 1
                self.say(f"a topic made anew ended with {code} and {each.reasons()}")
        self._killed(self.cluster.kill_all())
        self.cluster.extra["REDFLAG_ACCEPT_GAP"] = "1"
        self.cluster.go_on()
        self.wait_ready()
        self.wait_progress()
        del self.cluster.extra["REDFLAG_ACCEPT_GAP"]
        self.wait("a snapshot of the new topic", self._knows_the_topic)
        self.counts.topics_made_anew += 1
        self.cluster.excuse(10)

    def _knows_the_topic(self) -> bool:
        """Whether the last snapshots of all partitions are of the topic that now is."""
        now = identify_topics(self.settings, [INPUT])[INPUT].topic_id
        found = states(self._state / "recovery", "read_messages").values()
        return all(state["positions"][INPUT]["topic_id"] == now for state in found if INPUT in state["positions"])

    def _create_input(self) -> None:
        self.broker.create_topics({INPUT: self._counts[INPUT]}, {"max.message.bytes": INPUT_LIMIT})

    def fill_disk(self) -> None:
        """No room under the recovery data: the flow stops, does not start, and goes on once there is room."""
        if not self.mounted:
            self.counts.skipped.append("full disk: no tmpfs can be mounted here")
            return
        self.wait_ready()
        self.cluster.excuse(1e9)
        already = len(self.cluster.ended)
        filler = self._state / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"\0" * 1_000_000)
        with filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"\0" * 512)
        self.feeder.release(2000, 2.0)

        def explained() -> bool:
            return any("bytes are free" in each.said() for _, each in self.cluster.ended[already:])

        self.wait("the end of a flow without room, and its reason", explained)
        if any(code == 0 for code, _ in self.cluster.ended[already:]):
            self.counts.unexpected_stops += 1
        filler.unlink()
        self.counts.full_disks += 1
        self.wait_ready()
        self.wait_progress()
        self.cluster.excuse(1)

    def forbid_writing(self) -> None:
        """The recovery data on what is mounted read-only: the flow does not start, and says so in one line."""
        if not self.mounted:
            self.counts.skipped.append("read-only disk: no tmpfs can be mounted here")
            return
        self._killed(self.cluster.kill_all())
        already = len(self.cluster.ended)
        remount(self._state, "ro")
        try:
            self.cluster.excuse(1e9)
            self.cluster.go_on()
            self.wait("the end of a flow that cannot write", lambda: len(self.cluster.ended) > already)
        finally:
            self.cluster.hold()
            remount(self._state, "rw")
        for code, each in self.cluster.ended[already:]:
            if code != 2 or len(each.reasons()) != 1:
                self.counts.unexpected_stops += 1
                self.say(f"a read-only disk ended with {code} and {each.reasons()}")
        self.counts.read_only_disks += 1
        self.cluster.go_on()
        self.wait_ready()
        self.wait_progress()
        self.cluster.excuse(1)

    # ---- the end

    def finish(self, patience: float = STUCK_SECONDS) -> Counts:
        """Lets the flow decide what is left, stops it, and compares; waits `patience` seconds for one that hangs."""
        counts = self.counts
        self.feeder.finish()
        given = [*self._earlier, *read_all(self.settings, [INPUT], 300)]
        counts.transactions, counts.labels = len(given), self.feeder.labelled
        self.say(f"fed {counts.transactions}; waiting for the last decisions")
        already = len(self.cluster.ended)
        self.cluster.go_on()
        # One that is broken on purpose may refuse to start, each time anew: it is compared nevertheless.
        self.wait("a start", lambda: self.cluster.ready() or len(self.cluster.ended) >= already + 2 * self.cluster.size)
        last, since = -1, time.monotonic()
        while last < counts.transactions:
            now = self.written()
            if now > last:
                last, since = now, time.monotonic()
            if time.monotonic() - since > patience:
                counts.stuck += 1
                self.say(f"STUCK: {last} of {counts.transactions} written, and no more for {patience:g} s")
                self.say(self._last_said())
                break
            time.sleep(0.1)
        pause = 1.5
        while True:
            time.sleep(pause)
            self._stop()
            # What a killed execution wrote is all there before the one after it has read as far: it needs 2 s.
            if counts.stuck or self.read_to_the_end():
                break
            if time.monotonic() - since > max(patience, STUCK_SECONDS):
                counts.stuck += 1
                self.say("STUCK: not all was read")
                self.say(self._last_said())
                break
            pause *= 2
            self.cluster.go_on()
            self.wait_ready()
        for line in self.cluster.unexpected:
            counts.unexpected_stops += 1
            self.say(f"UNEXPECTED: {line}")
        self._compare(given)
        counts.seconds = round(time.monotonic() - self._began, 1)
        return counts

    def _compare(self, given: list[Message]) -> None:
        counts = self.counts
        self.say("reading back, and deciding all of it again without disturbance")
        found = read_all(self.settings, OUTPUTS, 300)
        labels = read_all(self.settings, [LABELS], 300)
        earlier = [label for label in labels if label.timestamp()[1] <= self._labels_before]
        later = [label for label in labels if label.timestamp()[1] > self._labels_before]
        messages = in_step(self._earlier, earlier) + in_step(given[len(self._earlier) :], later)
        references: dict[By, dict[Place, Output]] = {}
        for number, (limit, threshold) in enumerate(product(LIMITS, THRESHOLDS)):
            rules_file = self._directory / f"reference-{limit}.toml"
            rules_file.write_text(RULES.format(limit=limit))
            store = self._directory / "reference" if number == 0 else None
            by, outputs = decide(messages, self._model_file, rules_file, threshold, store)
            references[by] = outputs
        with (self._directory / "wrong.txt").open("w") as wrong:

            def tell(line: str) -> None:
                print(line, file=wrong)

            tally(given, found, references, counts, self._had, tell)
            compare_states(self._state / "recovery", self._directory / "reference", counts, tell)
