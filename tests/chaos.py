"""Chaos: the detection flow, killed in every way we know, against an uninterrupted run of the same transactions.

    python -m tests.chaos --seed 1 --kills 50 --broker-kills 10 --transactions 500000

On an Apache Kafka of its own and with real processes it feeds transactions of 10,000 users, and meanwhile kills the
flow and the broker, freezes the broker, changes the rules, rescales, fills the disk. Then it compares what stands on
the output topics, and in the recovery data, with a run of the same graph in this process that nothing disturbed. It
prints a table and one line of JSON, and exits with 1 unless nothing is lost, doubled or different.

The seed fixes the transactions and the order of the disturbances; where in the flow's work they hit is up to timing.
"""

import argparse
import contextlib
import json
import os
import pickle
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import msgspec
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.testing import TestingSink, TestingSource, run_main
from confluent_kafka import Consumer, KafkaException, Message, Producer, TopicPartition
from rich.console import Console
from rich.table import Table

from dataflow import record, start_report
from dataflow.connectors import kafka_source
from dataflow.detect import build
from dataflow.live_rules import LiveRules
from dataflow.scoring import load_model
from dataflow.settings import Settings
from dataflow.steps import Routed, written
from tests.kafka_server import KafkaServer, KafkaUnavailableError, _free_ports
from tests.reading import read_all

ROOT = Path(__file__).parent.parent
SETTINGS = Settings()
INPUT = SETTINGS.transactions_topic
DECISIONS = (SETTINGS.alerts_topic, SETTINGS.classified_topic)
OUTPUTS = (*DECISIONS, SETTINGS.invalid_topic)
PARTITIONS = 4

STATE_MB = 512  # of the tmpfs for the recovery data
LARGE = 1_200_000  # bytes: what the input topic takes and the outputs, with Kafka's own limit of 1 MB, do not
INPUT_LIMIT = 5_000_000
STUCK_SECONDS = 90.0  # without any progress, while flow and broker run

# Only what the user's own history says, so that every byte of a decision is determined by the input. The shadow rules
# are there to show the state: a decision tells on which side of each of them its user stands.
RULES = """\
[[rule]]
id = "high_amount"
when = "amount > {limit}"
reason = "High amount"
weight = 0.05
mode = "active"

[[rule]]
id = "location_change"
when = "location_changed and seconds_since_last <= 86400"
reason = "Location change from {{last_location}} to {{location}}"
weight = 0.3
mode = "active"

[[rule]]
id = "flagged_merchant"
when = "merchant in ('XYZ_Merchant', 'UnknownShop')"
reason = "Merchant {{merchant}} flagged"
weight = 0.5
mode = "active"

[[rule]]
id = "ml_anomaly"
when = "model_anomaly"
reason = "ML anomaly detection"
weight = 0.0
mode = "active"

[[rule]]
id = "often"
when = "txn_per_day > 12"
reason = "Often"
mode = "shadow"

[[rule]]
id = "much"
when = "amount_per_day > 900"
reason = "Much"
mode = "shadow"

[[rule]]
id = "more_than_usual"
when = "amount > 3 * usual_amount"
reason = "More than usual"
mode = "shadow"

[[rule]]
id = "new_merchant"
when = "new_merchant"
reason = "New merchant"
mode = "shadow"
"""
LIMITS = (400, 150)  # of the rules that take turns

Place = tuple[int, int]  # partition and offset of a transaction
Output = tuple[str, bytes | None, bytes | None, bytes | None]  # topic, key, value; for a rejection its error


@dataclass
class Counts:
    """What one run did and what it found; this is the JSON line."""

    seed: int
    kills: int = 0  # SIGKILLs of a flow's process
    kills_during_start: int = 0
    broker_kills: int = 0
    both_at_once: int = 0
    broker_freezes: int = 0
    broker_away_seconds: float = 0.0
    rescales: int = 0
    rule_changes: int = 0
    graceful_stops: int = 0
    refusals: int = 0  # times the flow stopped because the broker refused a record
    full_disks: int = 0
    read_only_disks: int = 0
    skipped: list[str] = field(default_factory=list)  # what this machine does not let us do
    unexpected_stops: int = 0
    stuck: int = 0
    slowest_stop_seconds: float = 0.0
    transactions: int = 0
    users: int = 0
    alerts: int = 0
    invalid: int = 0
    lost: int = 0
    doubled: int = 0
    different: int = 0
    states: int = 0
    states_different: int = 0
    merchant_totals_different: int = 0
    out_of_order: int = 0  # for information: behind a later transaction of the same user, in the same topic
    seconds: float = 0.0

    def failed(self) -> bool:
        return any(
            (
                self.lost,
                self.doubled,
                self.different,
                self.states_different,
                self.merchant_totals_different,
                self.unexpected_stops,
                self.stuck,
                self.slowest_stop_seconds > 10,
            )
        )


# ------------------------------------------------------------------------------------------------------------- input


def transactions(seed: int, users: int) -> Iterator[tuple[bytes, bytes]]:
    """Endless messages, (key, value): most of them transactions, repeats, late ones and nonsense among them."""
    rng = Random(seed)
    start = datetime(2026, 3, 1, tzinfo=UTC).timestamp()
    encode = msgspec.json.encode
    countries = ("US", "IN", "FR", "BR", "JP")
    last: dict[int, str] = {}
    number = 0
    while True:
        number += 1
        user = rng.randrange(users)
        key = b"u%05d" % user
        kind = rng.random()
        if kind < 0.004:
            yield key, rng.choice((b"not json", b"{}", b'{"user": 7}', b"", b'{"user": "ann", "amount": -1}'))
            continue
        # Ten users' transactions an hour, on the whole; one in fifty comes up to two hours late.
        at = start + number * 3600 * 10 / users - (rng.random() * 7200 if kind > 0.98 else 0.0)
        transaction: dict[str, Any] = {
            "user": key.decode(),
            "amount": round(min(rng.lognormvariate(3.4, 1.0), 5000.0), 2),
            "timestamp": datetime.fromtimestamp(round(at, 3), UTC).isoformat(),
            "location": countries[user % 5] if rng.random() < 0.97 else rng.choice(countries),
            "device": ("mobile", "desktop")[rng.random() < 0.2],
            "merchant": f"shop-{int(200 * rng.random() ** 2)}" if rng.random() < 0.995 else "XYZ_Merchant",
            "txn_type": "purchase",
        }
        if rng.random() < 0.8:
            transaction["transaction_id"] = f"t{seed}-{number}"
            if rng.random() < 0.01 and user in last:
                transaction["transaction_id"] = last[user]
            last[user] = transaction["transaction_id"]
        yield key, encode(transaction)


class Feeder(threading.Thread):
    """Produces what was released, at its own pace; a broker that is away it waits for."""

    def __init__(self, bootstrap: str, seed: int, users: int):
        super().__init__(name="feeder", daemon=True)
        self._messages = transactions(seed, users)
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap,
                "enable.idempotence": True,
                "message.max.bytes": INPUT_LIMIT,
                "message.timeout.ms": 600_000,
                "linger.ms": 5,
                "log_level": 0,
                "on_delivery": self._delivered,
                "delivery.report.only.error": True,
            }
        )
        self._lock = threading.Lock()
        self._released = 0
        self._rate = 1000.0
        self._large = 0
        self._ended = False
        self.fed = 0

    def _delivered(self, error: Any, message: Message) -> None:
        msg = f"the input was not produced: {error}"
        raise AssertionError(msg)

    def release(self, count: int, seconds: float) -> None:
        """Allows so many more transactions, over about that time."""
        with self._lock:
            self._released += count
            self._rate = max(self._released / max(seconds, 0.01), 100.0)

    def release_large(self) -> None:
        """Sends one transaction that is larger than the output topics take."""
        self._large += 1

    def run(self) -> None:
        while True:
            with self._lock:
                count = min(self._released, max(int(self._rate * 0.02), 1))
                self._released -= count
            for _ in range(count):
                self._produce(*next(self._messages))
            while self._large:
                self._large -= 1
                key, value = next(pair for pair in self._messages if b'"amount"' in pair[1] and b"-1" not in pair[1])
                self._produce(key, value[:-1] + b',"note":"' + b"x" * LARGE + b'"}')
            self._producer.poll(0.02)
            if self._ended and not count and not self._large:
                return

    def _produce(self, key: bytes, value: bytes) -> None:
        self.fed += 1
        while True:
            try:
                self._producer.produce(INPUT, key=key, value=value, partition=zlib.crc32(key) % PARTITIONS)
                return
            except BufferError:
                self._producer.poll(0.1)

    def finish(self) -> int:
        """Waits until everything that was released is on the topic; returns how many that are."""
        self._ended = True
        self.join()
        left = self._producer.flush(120)
        assert left == 0, f"{left} transactions were not produced"
        return self.fed


# ------------------------------------------------------------------------------------------------------- supervision


SAID_WHEN_ALL_IS_WELL = (
    f"redflag: {kafka_source.READY}", f"redflag: {start_report.PREFIX}", "redflag: rules ", "%", "worker ",
)  # fmt: skip


@dataclass
class Running:
    """A process of the flow."""

    process: subprocess.Popen[bytes]
    log: Path
    started: float

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def ready(self) -> bool:
        return f"{kafka_source.READY} {INPUT}[" in self.said()

    def reasons(self) -> list[str]:
        """What it said besides what is in force and read, and besides librdkafka's and Bytewax's connecting."""
        return [
            line for line in self.said().splitlines() if line.strip() and not line.startswith(SAID_WHEN_ALL_IS_WELL)
        ]


class Cluster:
    """The flow's processes, each restarted by itself when it ends, as a service manager would."""

    def __init__(self, command: list[str], environ: Mapping[str, str], logs: Path, rng: Random):
        self._command = command
        self._environ = dict(environ)
        self._logs = logs
        self._rng = rng
        self._ports = _free_ports(2)
        self._lock = threading.RLock()
        self._running: dict[int, Running] = {}
        self._held = True
        self._size = 2
        self._starts = 0
        self._excused_until = 0.0
        self.ended: list[tuple[int, Running]] = []  # exit status and process, of those that ended by themselves
        self.unexpected: list[str] = []
        self._closing = False
        self._watch = threading.Thread(target=self._supervise, name="supervisor", daemon=True)
        self._watch.start()

    def _supervise(self) -> None:
        while not self._closing:
            time.sleep(0.05)
            with self._lock:
                if self._held:
                    continue
                for slot in range(self._size):
                    known = self._running.get(slot)
                    if known is not None:
                        code = known.process.poll()
                        if code is None:
                            continue
                        self._note(slot, code, known)
                    self._start(slot)

    def _note(self, slot: int, code: int, known: Running) -> None:
        self.ended.append((code, known))
        if time.monotonic() > self._excused_until:
            self.unexpected.append(f"process {slot} ended with {code}: {' / '.join(known.reasons()[-3:])[:600]}")

    def _start(self, slot: int) -> None:
        self._starts += 1
        log = self._logs / f"flow-{self._starts:04}-{slot}.log"
        addresses = ";".join(f"127.0.0.1:{port}" for port in self._ports)
        options = ["-i", str(slot), "-a", addresses] if self._size > 1 else []
        # Now and then records linger in the producer, so that a kill finds more of them unsent.
        linger = {"KAFKA_CONFIG_LINGER_MS": str(self._rng.choice((1, 1, 300)))}
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", *self._command, *options],
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**linger, **self._environ},
                cwd=ROOT,
                start_new_session=True,
            )
        self._running[slot] = Running(process, log, time.monotonic())

    @property
    def size(self) -> int:
        return self._size

    def excuse(self, seconds: float) -> None:
        """Processes may end by themselves for so long: their peer was killed, the disk is full."""
        self._excused_until = max(self._excused_until, time.monotonic() + seconds)

    def expect_no_stops(self) -> None:
        """From now on, processes that end by themselves are counted."""
        self._excused_until = time.monotonic()

    def ready(self) -> bool:
        with self._lock:
            return len(self._running) == self._size and all(
                running.process.poll() is None and running.ready() for running in self._running.values()
            )

    def kill(self, slots: Iterable[int]) -> tuple[int, int]:
        """SIGKILLs processes; returns how many these were, and how many of them had not started fully."""
        with self._lock:
            killed = starting = 0
            self.excuse(10)
            for slot in slots:
                running = self._running.get(slot)
                if running is not None and running.process.poll() is None:
                    starting += not running.ready()
                    running.process.kill()
                    running.process.wait()
                    killed += 1
                    del self._running[slot]
            return killed, starting

    def hold(self) -> None:
        """Starts nothing any more."""
        with self._lock:
            self._held = True

    def go_on(self, size: int | None = None) -> None:
        """Starts, and restarts, what is missing; `size` processes, if given: then none may run."""
        with self._lock:
            if size is not None:
                assert not self._running, "rescaling needs the flow stopped"
                self._size = size
            self._held = False

    def kill_all(self) -> tuple[int, int]:
        """SIGKILLs all and starts nothing any more."""
        self.hold()
        return self.kill(range(self._size))

    def stop(self) -> tuple[list[int], float]:
        """SIGTERMs all; returns their exit statuses and how long the slowest took. Starts nothing any more."""
        self.hold()
        with self._lock:
            running = list(self._running.values())
            for each in running:
                each.process.terminate()
            began = time.monotonic()
            codes = []
            for each in running:
                try:
                    codes.append(each.process.wait(30))
                except subprocess.TimeoutExpired:
                    each.process.kill()
                    codes.append(each.process.wait())
            self._running.clear()
            return codes, time.monotonic() - began

    def close(self) -> None:
        self._closing = True
        self.kill_all()
        self._watch.join()


# ------------------------------------------------------------------------------------------------------------- chaos


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
        self._model_file = model_file
        self._rules_file = directory / "rules.toml"
        self._limit = LIMITS[0]
        self._write_rules()
        self._state = directory / "state"
        self._state.mkdir()
        self.mounted = _mount(self._state)
        logs = directory / "logs"
        logs.mkdir()
        self.broker = KafkaServer({"message.max.bytes": INPUT_LIMIT})
        try:
            self.broker.start()
            self.broker.create_topics({INPUT: PARTITIONS}, {"max.message.bytes": INPUT_LIMIT})
            # The broker's limit is that of the input here; of the outputs it is Kafka's own.
            self.broker.create_topics(dict.fromkeys(OUTPUTS, PARTITIONS), {"max.message.bytes": 1_048_588})
            self.broker.create_topics(dict.fromkeys((SETTINGS.feedback_topic, SETTINGS.labels_topic), PARTITIONS))
            self.settings = Settings(brokers=self.broker.bootstrap)
            clean = {k: v for k, v in os.environ.items() if not k.startswith(("KAFKA_", "RECOVERY_", "BYTEWAX_"))}
            self.cluster = Cluster(
                list(command),
                {
                    **clean,
                    "KAFKA_BROKERS": self.broker.bootstrap,
                    "METRICS_ADDRESS": "off",  # several of them on one machine
                    "LOG_FORMAT": "text",
                    "LOG_LEVEL": "info",
                    "KAFKA_CONFIG_MESSAGE_MAX_BYTES": str(INPUT_LIMIT),
                    "RULES_FILE": str(self._rules_file),
                    "MODEL_FILE": str(model_file),
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
            _unmount(self._state, self.mounted)
            raise
        self.feeder.start()

    def __enter__(self) -> "Chaos":
        return self

    def __exit__(self, *_: object) -> None:
        self.cluster.close()
        self._asking.close()
        self.broker.close()
        _unmount(self._state, self.mounted)

    # ---- what can be seen

    def written(self) -> int:
        """Records on all output topics; -1 while the broker does not answer."""
        return self._ends(OUTPUTS)

    def _ends(self, topics: Iterable[str]) -> int:
        total = 0
        for topic in topics:
            for partition in range(PARTITIONS):
                try:
                    total += self._asking.get_watermark_offsets(TopicPartition(topic, partition), timeout=5)[1]
                except KafkaException:
                    return -1
        return total

    def wait(self, what: str, condition: Callable[[], bool], seconds: float = STUCK_SECONDS) -> bool:
        """Waits for something that must come; if it does not, the run has failed."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                self.counts.stuck += 1
                self.say(f"STUCK: {what} did not come in {seconds:g} s")
                return False
            time.sleep(0.05)
        return True

    def wait_ready(self) -> bool:
        return self.wait("a start", self.cluster.ready)

    def wait_progress(self) -> bool:
        """Waits until something more was decided; something is fed for that."""
        before = self.written()
        self.feeder.release(20, 0.1)
        return self.wait("a decision", lambda: self.written() > before >= 0 or (before < 0 <= self.written()))

    # ---- what can be done

    def kill(self, change_rules: bool = False, rescale: bool = False) -> None:
        """SIGKILLs the flow, or one of its two processes, at a random instant: starting, resuming, or at work."""
        rng = self.rng
        if rng.random() < 0.45:
            time.sleep(rng.uniform(0.0, 4.0))
        elif self.wait_ready():
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

    def refuse(self) -> None:
        """A record larger than the outputs take: the flow stops with the reason, until the limit is raised."""
        self.wait_ready()
        self.cluster.excuse(1e9)
        already = len(self.cluster.ended)
        self.feeder.release_large()

        def refused() -> list[tuple[int, Running]]:
            return [(code, each) for code, each in self.cluster.ended[already:] if "was not taken" in each.said()]

        self.wait("a refusal, twice", lambda: len(refused()) >= 2)
        for code, each in refused():
            self.counts.refusals += 1
            if code != 2 or len(each.reasons()) != 1:
                self.counts.unexpected_stops += 1
                self.say(f"a refusal ended with {code} and {each.reasons()}")
        for topic in DECISIONS:
            self.broker.configure_topic(topic, {"max.message.bytes": INPUT_LIMIT})
        self.cluster.excuse(0)
        self.wait_ready()
        self.wait_progress()
        self.cluster.expect_no_stops()

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
        _remount(self._state, "ro")
        try:
            self.cluster.excuse(1e9)
            self.cluster.go_on()
            self.wait("the end of a flow that cannot write", lambda: len(self.cluster.ended) > already)
        finally:
            self.cluster.hold()
            _remount(self._state, "rw")
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
        counts.transactions = self.feeder.finish()
        self.say(f"fed {counts.transactions}; waiting for the last decisions")
        self.cluster.go_on()
        self.wait_ready()
        last, since = -1, time.monotonic()
        while last < counts.transactions:
            now = self.written()
            if now > last:
                last, since = now, time.monotonic()
            if time.monotonic() - since > patience:
                counts.stuck += 1
                self.say(f"STUCK: {last} of {counts.transactions} written, and no more for {patience:g} s")
                break
            time.sleep(0.1)
        pause = 1.5
        while True:
            time.sleep(pause)
            self._stop()
            # What a killed execution wrote is all there before the one after it has read as far: it needs 2 s.
            read = states(self._state / "recovery", "read_transactions").values()
            if counts.stuck or sum(max(0, offset) for offset in read) >= counts.transactions:
                break
            if time.monotonic() - since > max(patience, STUCK_SECONDS):
                counts.stuck += 1
                self.say(f"STUCK: {sum(read)} of {counts.transactions} read")
                break
            pause *= 2
            self.cluster.go_on()
            self.wait_ready()
        for line in self.cluster.unexpected:
            counts.unexpected_stops += 1
            self.say(f"UNEXPECTED: {line}")
        self._compare()
        counts.seconds = round(time.monotonic() - self._began, 1)
        return counts

    def _compare(self) -> None:
        counts = self.counts
        self.say("reading back, and deciding all of it again without disturbance")
        given = read_all(self.settings, [INPUT], 300)
        given.sort(key=lambda m: (m.partition(), m.offset()))
        assert len(given) == counts.transactions, (len(given), counts.transactions)
        found = read_all(self.settings, OUTPUTS, 300)
        by_version: dict[str, dict[Place, Output]] = {}
        for number, limit in enumerate(LIMITS):
            rules_file = self._directory / f"reference-{limit}.toml"
            rules_file.write_text(RULES.format(limit=limit))
            store = self._directory / "reference" if number == 0 else None
            version, outputs = decide(given, self._model_file, rules_file, store)
            by_version[version] = outputs
        with (self._directory / "wrong.txt").open("w") as wrong:
            tally(given, found, by_version, counts, lambda line: print(line, file=wrong))
        mine, reference = states(self._state / "recovery"), states(self._directory / "reference")
        users = {key: each for (step, key), each in reference.items() if "user_profile" in step}
        mine_users = {key: each for (step, key), each in mine.items() if "user_profile" in step}
        counts.states = len(users)
        counts.states_different = sum(
            repr(users[key].__reduce__()) != (repr(mine_users[key].__reduce__()) if key in mine_users else "")
            for key in users
        ) + len(mine_users.keys() - users.keys())
        totals, mine_totals = merchant_totals(reference), merchant_totals(mine)
        counts.merchant_totals_different = sum(totals[key] != mine_totals[key] for key in totals.keys() | mine_totals)


def tally(
    given: list[Message],
    found: list[Message],
    by_version: Mapping[str, Mapping[Place, Output]],
    counts: Counts,
    tell: Callable[[str], None] = lambda _line: None,
) -> None:
    """Counts what is lost, doubled and different, and tells of each."""
    times: Counter[Place] = Counter()
    sources = {(m.partition(), m.offset()): m for m in given}
    newest: dict[tuple[str, bytes | None], int] = {}
    anyone = next(iter(by_version.values()))
    for message in found:
        headers = dict(message.headers() or ())
        place = int(headers[record.SOURCE_PARTITION]), int(headers[record.SOURCE_OFFSET])
        times[place] += 1
        if message.topic() == SETTINGS.invalid_topic:
            outputs = anyone
        else:
            version = json.loads(message.value()).get("ruleset_version")
            outputs = by_version.get(version, {})
        counts.alerts += message.topic() == SETTINGS.alerts_topic
        counts.invalid += message.topic() == SETTINGS.invalid_topic
        source = sources.get(place)
        if (
            source is None
            or outputs.get(place) != (message.topic(), message.key(), message.value(), headers.get("error"))
            or message.partition() != source.partition()
            or int(headers[record.SOURCE_TIMESTAMP]) != source.timestamp()[1]
            or headers[record.SOURCE_TOPIC] != INPUT.encode()
        ):
            counts.different += 1
            tell(
                f"different {place} {version if message.topic() != SETTINGS.invalid_topic else ''} "
                f"{message.topic()}[{message.partition()}]@{message.offset()} at {message.timestamp()[1]}: "
                f"{(message.value() or b'')[:1000]!r} instead of {str(outputs.get(place))[:1000]}"
            )
        where = message.topic(), message.key()
        counts.out_of_order += place[1] < newest.get(where, -1)
        newest[where] = max(place[1], newest.get(where, -1))
    for message in found:
        headers = dict(message.headers() or ())
        place = int(headers[record.SOURCE_PARTITION]), int(headers[record.SOURCE_OFFSET])
        if times[place] > 1:
            where = f"{message.topic()}[{message.partition()}]@{message.offset()}"
            tell(f"doubled {place} {where} at {message.timestamp()[1]}")
    for place in sources.keys() - times.keys():
        tell(f"lost {place}")
    counts.lost = sum(place not in times for place in sources)
    counts.doubled = sum(times.values()) - len(times)


def decide(
    given: list[Message], model_file: Path, rules_file: Path, store: Path | None
) -> tuple[str, dict[Place, Output]]:
    """What an uninterrupted run of the graph decides, and which ruleset that was; its state goes to `store`."""
    rules = LiveRules(rules_file, check_every=1e9)
    out: list[Routed] = []
    flow = build(
        TestingSource(given, 1000),
        TestingSource([]),
        TestingSink(out),
        TestingSink(out),
        TestingSink(out),
        load_model(model_file),
        rules,
        SETTINGS,
    )
    recovery = None
    if store is not None:
        store.mkdir()
        init_db_dir(store, 1)
        recovery = RecoveryConfig(store)
    run_main(flow, epoch_interval=timedelta(seconds=1000), recovery_config=recovery)
    return rules.current().version, {
        (record.partition, record.offset): (
            record.topic,
            record.key,
            record.value,
            dict(record.headers or ()).get("error"),
        )
        for record in written(out)
    }


def states(store: Path, of: str = "profile") -> dict[tuple[str, str], Any]:
    """The last state of every key in recovery data, by step, of the steps whose names contain `of`."""
    newest: dict[tuple[str, str], tuple[int, bytes | None]] = {}
    for part in store.glob("part-*.sqlite3"):
        with contextlib.closing(sqlite3.connect(part)) as db:
            for step, key, epoch, state in db.execute("SELECT step_id, state_key, snap_epoch, ser_change FROM snaps"):
                if of in step and epoch >= newest.get((step, key), (-1, None))[0]:
                    newest[step, key] = epoch, state
    return {where: pickle.loads(state) for where, (_, state) in newest.items() if state is not None}


def merchant_totals(all_states: Mapping[tuple[str, str], Any]) -> Counter[str]:
    """How many transactions each merchant's profile has counted in 30 days: these do not depend on their order."""
    end = datetime(2026, 3, 26, tzinfo=UTC).timestamp()
    return Counter(
        {key: int(profile.totals(end)[4]) for (step, key), profile in all_states.items() if "merchant_profile" in step}
    )


# -------------------------------------------------------------------------------------------------------------- mount


def _mount(directory: Path) -> bool:
    """Mounts a tmpfs; False where we are not allowed to."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={STATE_MB}m", "redflag-chaos", str(directory)]
    try:
        return subprocess.run(command, check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def _remount(directory: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(directory)], check=True, capture_output=True)


def _unmount(directory: Path, mounted: bool) -> None:
    if mounted:
        subprocess.run(["umount", "-l", str(directory)], check=False, capture_output=True)


# --------------------------------------------------------------------------------------------------------------- main


def train_model(path: Path) -> Path:
    """A small model on facts of the user only: what merchants add depends on how partitions interleave."""
    command = [sys.executable, "-m", "training.train"]
    options = [
        "--out",
        str(path),
        "--users",
        "300",
        "--days",
        "7",
        "--trees",
        "30",
        "--features",
        "amount,txn_per_hour",
    ]
    known = subprocess.run([*command, "--help"], check=True, capture_output=True, text=True, cwd=ROOT).stdout
    if "--tiers" in known:
        options += ["--tiers", "isolation_forest"]
    subprocess.run([*command, *options], check=True, capture_output=True, cwd=ROOT)
    return path


def run(
    chaos: Chaos,
    *,
    transactions: int,
    kills: int,
    broker_kills: int,
    away: float,
    freezes: int,
    stops: int,
) -> Counts:
    """Every disturbance as often as asked for, in an order that the seed shuffles, with transactions all along."""
    both = broker_kills // 4
    actions: list[Callable[[], None]] = []
    actions += [chaos.kill_both] * both
    actions += [chaos.kill_broker] * (broker_kills - both - (1 if away else 0))
    actions += [lambda: chaos.kill_broker(away)] if away else []
    actions += [chaos.freeze_broker] * freezes
    actions += [chaos.stop] * stops
    actions += [chaos.refuse, chaos.fill_disk, chaos.forbid_writing]
    rounds = max(kills * 2 // 3, 1)  # a round often kills both
    actions += [
        lambda number=number: chaos.kill(change_rules=number % 4 == 1, rescale=number % 4 == 3)  # type: ignore[misc]
        for number in range(rounds)
    ]
    chaos.rng.shuffle(actions)
    chunk = transactions // (len(actions) + 1)
    chaos.feeder.release(transactions - chunk * len(actions), 1.0)
    chaos.cluster.go_on(2)
    number = 0
    while actions or chaos.counts.kills < kills or chaos.counts.broker_kills < broker_kills:
        action = actions.pop(0) if actions else chaos.kill
        number += 1
        if chaos.counts.stuck > 3:
            break
        chaos.feeder.release(chunk if number <= transactions // max(chunk, 1) - 1 else 100, 2.0)
        name = getattr(action, "__name__", "").replace("<lambda>", "kill or away")
        chaos.say(f"{number}: {name}; {chaos.counts.kills} kills, {chaos.counts.broker_kills} of the broker")
        action()
    return chaos.finish()


def table(counts: Counts) -> Table:
    """The counts, to look at."""
    shown = Table(
        title=f"chaos, seed {counts.seed}: {'FAILED' if counts.failed() else 'nothing lost, doubled, different'}"
    )
    shown.add_column("what")
    shown.add_column("count", justify="right")
    for name, value in asdict(counts).items():
        if name != "seed":
            shown.add_row(
                name.replace("_", " "), ", ".join(value) or "nothing" if isinstance(value, list) else str(value)
            )
    return shown


def main() -> int:
    """One run, by its options; 0 if nothing was lost, doubled or different."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--transactions", type=int, default=500_000)
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=50, help="of the flow, at least")
    parser.add_argument("--broker-kills", type=int, default=10, help="at least")
    parser.add_argument("--away", type=float, default=60.0, help="seconds that the broker once is away")
    parser.add_argument("--freezes", type=int, default=4, help="of the broker, with the flow killed meanwhile")
    parser.add_argument("--stops", type=int, default=4, help="of the flow, with SIGTERM")
    parser.add_argument("--mutant", help="one of tests/mutants.py: a flow that is broken on purpose, and must fail")
    parser.add_argument("--keep", type=Path, help="keeps logs and recovery data in this directory")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that broker, flow and mount do not stay behind
    console = Console(stderr=True)
    began = time.monotonic()
    directory = options.keep or Path(tempfile.mkdtemp(prefix="redflag-chaos-"))
    directory.mkdir(parents=True, exist_ok=True)
    command = ("tests.mutants",) if options.mutant else ("dataflow.detect",)
    environ = {"REDFLAG_MUTANT": options.mutant} if options.mutant else {}
    try:
        model = train_model(directory / "model.pkl")
        with Chaos(
            directory,
            model,
            seed=options.seed,
            users=options.users,
            command=command,
            environ=environ,
            say=lambda line: console.print(f"{time.monotonic() - began:6.1f} s  {line}", markup=False, highlight=False),
        ) as chaos:
            counts = run(
                chaos,
                transactions=options.transactions,
                kills=options.kills,
                broker_kills=options.broker_kills,
                away=options.away,
                freezes=options.freezes,
                stops=options.stops,
            )
    except KafkaUnavailableError as error:
        print(f"redflag: chaos needs an Apache Kafka: {error}", file=sys.stderr)
        return 2
    finally:
        if options.keep is None:
            shutil.rmtree(directory, ignore_errors=True)
    Console().print(table(counts))
    print(json.dumps(asdict(counts)))
    return int(counts.failed())


if __name__ == "__main__":
    sys.exit(main())
