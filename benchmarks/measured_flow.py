"""A flow under measure: what it was sent, what it has decided, and how many of its decisions are alerts."""

import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from benchmarks.flow_metrics import FlowMetrics
from benchmarks.payments import Message
from benchmarks.stage import Counter, Job, cpu_seconds, produce
from tests.support.kafka_server import KafkaServer, free_ports

INTERVAL = 5  # seconds between snapshots, the default
MOST_ALERTS = 0.05


class TooManyAlerts(RuntimeError):
    """What was measured is not what ordinary payments cost."""


def check_alerts(step: str, alerts: int, decided: int) -> float:
    """The share of alerts among the decisions of a step.

    Raises:
        TooManyAlerts: it is above `MOST_ALERTS`.
    """
    share = alerts / decided
    if share > MOST_ALERTS:
        msg = (
            f"{step}: {share:.0%} of {decided:,} decisions are alerts, more than {MOST_ALERTS:.0%}, so that this would "
            "measure explanations: name a model of the default simulation (--model), or mend benchmarks.payments"
        )
        raise TooManyAlerts(msg)
    return share


class Flow:
    """The flow under measure: what it was sent, and what it has decided.

    Args:
        kafka: the broker.
        name: of its topics and directory.
        model: its model file.
        scratch: for its files.
    """

    def __init__(self, kafka: KafkaServer, name: str, model: Path, scratch: Path):
        (port,) = free_ports(1)
        environment = {
            "MODEL_FILE": str(model), "RECOVERY_INTERVAL": str(INTERVAL), "STOP_TIMEOUT_SECONDS": "600",
            "METRICS_ADDRESS": f"127.0.0.1:{port}",
        }  # fmt: skip
        self.job = Job(kafka.bootstrap, name, scratch, environment)
        self.metrics = FlowMetrics(port)
        self.sent = 0
        self._alerts = Counter(kafka.bootstrap, [topic for topic in self.job.topics if topic.endswith("-alerts")])
        self._told = (0, 0)  # alerts and decisions when the share was last taken

    @property
    def pid(self) -> int:
        return self.job.processes[-1].pid

    def start(self) -> None:
        self.job.start(sys.executable, "-m", "dataflow.detect")

    def stop(self) -> float:
        """Seconds that a graceful stop takes."""
        begun = time.monotonic()
        process = self.job.processes.pop()
        process.send_signal(signal.SIGTERM)
        if process.wait(600):
            msg = f"the flow ended with {process.returncode}: {self.job.log_tail()}"
            raise RuntimeError(msg)
        return time.monotonic() - begun

    def send(self, payments: Iterable[Message], count: int) -> None:
        """Sends so many payments."""
        produce(self.job.bootstrap, self.job.source, payments)
        self.sent += count

    def wait(self, seconds: float = 3600) -> None:
        """Until all that was sent is decided."""
        deadline = time.monotonic() + seconds
        while (decided := self.job.count()) < self.sent:
            self.job.check()
            if time.monotonic() > deadline:
                msg = f"{decided} of {self.sent} decided in {seconds:g} s: {self.job.log_tail()}"
                raise RuntimeError(msg)
            time.sleep(0.02)

    def freeze(self, payments: Iterable[Message], count: int) -> None:
        """Sends payments while the flow is frozen, and leaves it so."""
        self.job.processes[-1].send_signal(signal.SIGSTOP)
        self.send(payments, count)

    def thaw(self) -> tuple[float, float]:
        """Lets a frozen flow go on; seconds and CPU-seconds that it takes until all that was sent is decided."""
        process = self.job.processes[-1]
        spent, begun = cpu_seconds([process]), time.monotonic()
        process.send_signal(signal.SIGCONT)
        self.wait()
        return time.monotonic() - begun, cpu_seconds([process]) - spent

    def frozen(self, payments: Iterable[Message], count: int) -> tuple[float, float]:
        """Sends payments while the flow is frozen; seconds and CPU-seconds that it then takes for all of them."""
        self.freeze(payments, count)
        return self.thaw()

    def alert_share(self, step: str) -> float:
        """Of the decisions since it was last asked for; see `check_alerts`."""
        alerts, decided = self._alerts(), self.job.count()
        before_alerts, before_decided = self._told
        self._told = alerts, decided
        return check_alerts(step, alerts - before_alerts, decided - before_decided)
