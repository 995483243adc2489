"""The whole of Redflag on one machine, to look at: broker, generator and detector, with alerts as they come.

`KAFKA_BROKERS`, where it is set, is used instead of the embedded broker.
"""

import argparse
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType

import msgspec
from confluent_kafka import Consumer, TopicPartition
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from dataflow import event_log, lifecycle, record
from dataflow.connectors import kafka_clients, kafka_source
from dataflow.rules import load_rules
from dataflow.settings import Settings, UserError
from dataflow.start_report import METRICS_ON

_log = logging.getLogger("redflag.run")

DRAIN_SECONDS = 60.0  # how long, after the generator has ended, the detector may need for what is left
RATE = "50"  # transactions a second unless GENERATOR_RATE is set: enough that an alert comes every few seconds
LATENCIES_KEPT = 1_000_000


class Alert(msgspec.Struct):
    """What is shown of a decision."""

    fraudulent: bool
    user: str
    amount: float
    merchant: str
    location: str
    timestamp: str
    score: float
    reason: list[str]
    rules: list[str]


class Stack:
    """The child processes, started in order and stopped in the reverse; each logs to a file of its own."""

    def __init__(self, environ: Mapping[str, str], logs: Path):
        self._environ = dict(environ)
        self._logs = logs
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *command: str, **environ: str) -> None:
        """Starts a Python module; in a session of its own, so that Ctrl-C reaches only us and we end it in order."""
        with (self._logs / f"{name}.log").open("wb") as log:
            self._running[name] = subprocess.Popen(
                [sys.executable, "-m", *command],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environ | environ,
                start_new_session=True,
            )

    def ended(self, name: str) -> bool:
        """Whether a child has ended by itself.

        Raises:
            UserError: it failed; with the last line it logged.
        """
        code = self._running[name].poll()
        if code:
            msg = f"the {name} ended with status {code}: {self.last_line(name)}"
            raise UserError(msg)
        return code is not None

    def last_line(self, name: str) -> str:
        """What the last line of a child's log says."""
        return next(reversed(self._messages(name)), "it logged nothing")

    def find(self, name: str, text: str) -> str:
        """What the first line of a child's log says that has `text` in it; "" if none does."""
        return next((message for message in self._messages(name) if text in message), "")

    def wait_for(self, name: str, text: str, seconds: float = 60) -> str:
        """Waits for a line of a child's log that has `text` in it, and returns what it says."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self.ended(name):
            if found := self.find(name, text):
                return found
            time.sleep(0.02)
        msg = f"the {name} did not start within {seconds:g} s: {self.last_line(name)}"
        raise UserError(msg)

    def _messages(self, name: str) -> list[str]:
        """What each whole line of a child's log says, whether it is text or JSON (LOG_FORMAT)."""
        text = (self._logs / f"{name}.log").read_text(errors="replace")
        lines = [line.strip() for line in text.splitlines(keepends=True) if line.endswith("\n") and line.strip()]
        return [msgspec.json.decode(line)["message"] if line.startswith('{"time"') else line for line in lines]

    def stop(self, name: str) -> None:
        """Asks a child to end, and kills it if it has not within 15 s."""
        child = self._running.get(name)
        if child is None:
            return
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(15)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        del self._running[name]

    def stop_all(self) -> None:
        """Stops what runs, the last started first."""
        for name in reversed(list(self._running)):
            self.stop(name)


class Tally:
    """What was generated and decided since the start."""

    def __init__(self, settings: Settings):
        self._settings = settings
        self._consumer: Consumer = kafka_clients.make_consumer(settings)
        topics = (settings.alerts_topic, settings.classified_topic, settings.invalid_topic)
        self._counts = {topic: kafka_clients.count_partitions(settings, topic) for topic in topics}
        self._partitions = kafka_clients.count_partitions(settings, settings.transactions_topic)
        self._starts = self._ends()
        self._consumer.assign(
            [
                TopicPartition(
                    topic, partition, self._consumer.get_watermark_offsets(TopicPartition(topic, partition))[1]
                )
                for topic, count in self._counts.items()
                for partition in range(count)
            ]
        )
        self._decode = msgspec.json.Decoder(Alert).decode
        self.by_topic: Counter[str] = Counter()
        self.by_rule: Counter[str] = Counter()
        self.latencies: list[float] = []  # milliseconds, from the transaction's Kafka timestamp to our reading it
        self.first = self.last = 0.0

    def _ends(self) -> dict[int, int]:
        topic = self._settings.transactions_topic
        return {
            p: self._consumer.get_watermark_offsets(TopicPartition(topic, p), timeout=10)[1]
            for p in range(self._partitions)
        }

    def generated(self) -> int:
        """Transactions on the topic since the start."""
        return sum(self._ends().values()) - sum(self._starts.values())

    def decided(self) -> int:
        """Decisions on them."""
        return self.by_topic.total()

    def take(self, seconds: float) -> list[Alert]:
        """Reads what was decided meanwhile; returns the alerts."""
        alerts = []
        # consume() alone would wait until it has all it may take: the first is awaited, the rest is what is there.
        first = self._consumer.poll(seconds)
        for message in [first, *self._consumer.consume(10_000, 0)] if first is not None else ():
            if message.error() is not None:
                continue
            headers = dict(message.headers() or ())
            if int(headers[record.SOURCE_OFFSET]) < self._starts[int(headers[record.SOURCE_PARTITION])]:
                continue  # it was generated before we started, and is decided only now
            now = time.time()
            self.first = self.first or now
            self.last = now
            if len(self.latencies) < LATENCIES_KEPT:
                self.latencies.append(now * 1000 - int(headers[record.SOURCE_TIMESTAMP]))
            self.by_topic[message.topic()] += 1
            if message.topic() == self._settings.alerts_topic:
                alert = self._decode(message.value())
                alerts.append(alert)
                self.by_rule.update(alert.rules)
        return alerts

    def close(self) -> None:
        """Ends the consumer."""
        self._consumer.close()


def alert_line(alert: Alert) -> Text:
    """One line for an alert; nothing that stands in a transaction is taken for markup or control characters."""
    reasons = " · ".join(alert.reason)
    line = (
        f"{alert.timestamp[11:19]}  {alert.user[:14]:<14} {alert.amount:>9.2f}  {alert.merchant[:18]:<18} "
        f"{alert.location[:4]:<4} {alert.score:.2f}  {reasons}"
    )
    return Text("ALERT  ", style="bold red") + Text(
        "".join(c if c.isprintable() else "�" for c in line), style="default"
    )


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` of the values lie; nan without values."""
    return sorted(values)[min(int(share * len(values)), len(values) - 1)] if values else float("nan")


def summary(tally: Tally, settings: Settings, generated: int) -> Table:
    """The table at the end."""
    table = Table(title="Redflag: summary", title_justify="left", show_header=False)
    table.add_row("transactions generated", str(generated))
    table.add_row("transactions decided", str(tally.decided()))
    table.add_row(f"  to {settings.alerts_topic}", str(tally.by_topic[settings.alerts_topic]))
    table.add_row(f"  to {settings.classified_topic}", str(tally.by_topic[settings.classified_topic]))
    table.add_row(f"  to {settings.invalid_topic}", str(tally.by_topic[settings.invalid_topic]))
    reasons = {rule.id: rule.reason for rule in load_rules(settings.rules_file).rules}
    for rule, count in tally.by_rule.most_common(12):
        table.add_row(f"alerts: {escape(reasons.get(rule, rule))}", str(count))
    seconds = max(tally.last - tally.first, 1e-9)
    table.add_row("rate", f"{tally.decided() / seconds:.1f} decisions/s" if tally.decided() > 1 else "-")
    table.add_row("latency p50", f"{percentile(tally.latencies, 0.5):.1f} ms")
    table.add_row("latency p99", f"{percentile(tally.latencies, 0.99):.1f} ms")
    return table


def run(settings: Settings, duration: float | None, console: Console) -> bool:
    """Runs the stack until the duration is over or Ctrl-C; returns whether all that was generated was decided."""
    own_kafka = "KAFKA_BROKERS" in settings.given
    stopping = False

    def stop(_signum: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    with tempfile.TemporaryDirectory(prefix="redflag-") as scratch:
        stack = Stack(os.environ, Path(scratch))
        tally = None
        try:
            if not own_kafka:
                stack.start("broker", "dataflow.broker")
                # It answers a fetch that finds nothing only when that time is over: then 100 ms would be the latency.
                config = {**settings.kafka_config, "fetch.wait.max.ms": "5"}
                brokers = stack.wait_for("broker", "127.0.0.1:")
                settings = msgspec.structs.replace(settings, brokers=brokers, kafka_config=config)
            tally = Tally(settings)
            environ = {"KAFKA_BROKERS": settings.brokers}
            if "GENERATOR_RATE" not in settings.given:
                environ["GENERATOR_RATE"] = RATE
            if not own_kafka:
                environ["KAFKA_CONFIG_FETCH_WAIT_MAX_MS"] = settings.kafka_config["fetch.wait.max.ms"]
            # The embedded broker forgets everything, so what belongs to it does not outlive it either.
            recovery = {} if own_kafka else {"RECOVERY_DIR": f"{scratch}/recovery", "RECOVERY_INTERVAL": "1"}
            # One that a `make detect` beside us cannot have; and what it says is waited for.
            metrics = {} if "METRICS_ADDRESS" in settings.given else {"METRICS_ADDRESS": "127.0.0.1:0"}
            stack.start("detector", "dataflow.detect", **environ, **recovery, **metrics, LOG_LEVEL="info")
            stack.wait_for("detector", f"{kafka_source.READY} {settings.transactions_topic}[")
            if duration is not None:
                environ["GENERATOR_DURATION"] = str(duration)
            stack.start("generator", "bytewax.run", "dataflow.generate:flow", **environ)
            where = settings.brokers if own_kafka else f"the embedded broker at {settings.brokers}"
            console.print(f"Kafka: {where}. Ctrl-C ends it.", markup=False, highlight=False)
            if served := stack.find("detector", METRICS_ON):
                console.print(f"Metrics: {served.partition(METRICS_ON)[2]}", markup=False, highlight=False)
            _watch(stack, tally, settings, console, lambda: stopping)
            stack.stop("generator")
            generated = tally.generated()
            deadline = time.monotonic() + DRAIN_SECONDS
            while tally.decided() < generated and time.monotonic() < deadline and not stack.ended("detector"):
                for alert in tally.take(0.1):
                    console.print(alert_line(alert), soft_wrap=True)
            stack.stop("detector")
            tally.take(0.5)  # nothing may come any more: what does would be a decision too many
            generated = tally.generated()
            console.print(summary(tally, settings, generated))
            return generated == tally.decided()
        finally:
            if tally is not None:
                tally.close()
            stack.stop_all()


def _watch(stack: Stack, tally: Tally, settings: Settings, console: Console, stopping: Callable[[], bool]) -> None:
    """Shows alerts and a running count until the generator ends or a stop is asked for."""
    shown = time.monotonic()
    with Live(Text("starting ..."), console=console, refresh_per_second=4, transient=True) as live:
        while not stopping() and not stack.ended("generator"):
            if stack.ended("detector"):
                msg = "the detector ended by itself"
                raise UserError(msg)
            for alert in tally.take(0.2):
                console.print(alert_line(alert), soft_wrap=True)
            count = Text(
                f"decided {tally.decided():,}   alerts {tally.by_topic[settings.alerts_topic]:,}   "
                f"invalid {tally.by_topic[settings.invalid_topic]:,}   "
                f"latency p50 {percentile(tally.latencies[-1000:], 0.5):.0f} ms",
                style="bold",
            )
            live.update(count)
            if not console.is_terminal and time.monotonic() - shown > 5:
                shown = time.monotonic()
                console.print(count)


def main() -> None:
    """Runs the stack; exits with 0 if what was generated was decided, 1 if not, 2 on a user's mistake."""
    parser = argparse.ArgumentParser(prog="python -m dataflow.run", description=__doc__)
    parser.add_argument("--duration", type=float, help="seconds to generate for; without it until Ctrl-C")
    arguments = parser.parse_args()
    if arguments.duration is not None and not 0 < arguments.duration < float("inf"):
        parser.error("--duration takes a number of seconds above 0")
    event_log.set_up()
    console = Console(highlight=False)
    try:
        settings = Settings.load()
        lifecycle.warn_of_unknown(settings)
        complete = run(settings, arguments.duration, console)
    except UserError as error:
        lifecycle.complain(error)
        sys.exit(2)
    if not complete:
        _log.error("the summary does not add up: not all that was generated was decided once")
        sys.exit(1)


if __name__ == "__main__":
    main()
