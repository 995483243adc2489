"""A running flow's own metrics, as benchmarks read them: of profiles, and of each snapshot's pause."""

import time
import urllib.request
from collections.abc import Callable, Iterable

from confluent_kafka import Producer
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.payments import Message
from benchmarks.stage import Job, paced

USERS = ("step", "update_user_profile")
LOOK_SECONDS = 1.0  # seldom enough to cost nothing; there are snapshots every 5 s
BURST_SECONDS = 0.01  # payments are sent so often, which is as even as the flow's batches are

Values = dict[tuple[str, tuple[tuple[str, str], ...]], float]
"""A value by its name and labels."""


class FlowMetrics:
    """What a flow says on its metrics address: `values` by name and labels."""

    def __init__(self, port: int):
        self._address = f"http://127.0.0.1:{port}/metrics"

    def __call__(self) -> Values:
        with urllib.request.urlopen(self._address, timeout=30) as answer:  # noqa: S310 - http, as it says above
            families = text_string_to_metric_families(answer.read().decode())
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in families
            for sample in family.samples
        }

    def bytes_of_a_user(self) -> float:
        """Bytes of a user's row, with what else their step keeps in rows."""
        values = self()
        return values["redflag_profile_bytes", (USERS,)] / values["redflag_profiles", (USERS,)]


class Pauses:
    """How long each snapshot held a worker up: what the sum of the flow's metric grew by from one look to the next.

    Looks come more often than snapshots, so each is seen by itself; where one look finds two, each counts as their sum,
    which is no less than the longer.

    Attributes:
        taken: the pauses since this was made, in seconds.
    """

    def __init__(self, metrics: Callable[[], Values]):
        self._metrics = metrics
        self.taken: list[float] = []
        self._count, self._sum = self._read()

    def look(self) -> None:
        """Takes in what came since the last look."""
        count, total = self._read()
        self.taken += [total - self._sum] * int(count - self._count)
        self._count, self._sum = count, total

    def send(self, job: Job, payments: Iterable[Message], rate: int) -> None:
        """Sends payments evenly, so many a second, and looks at the pauses meanwhile."""
        producer = Producer(
            {"bootstrap.servers": job.bootstrap, "linger.ms": 1, "acks": "all", "enable.idempotence": True}
        )
        looked = time.monotonic()
        for key, value in paced(payments, rate, slack=BURST_SECONDS):
            if time.monotonic() - looked > LOOK_SECONDS:
                self.look()
                looked = time.monotonic()
            producer.produce(job.source, value, key)
            producer.poll(0)
        producer.flush(60)
        self.look()

    def _read(self) -> tuple[float, float]:
        values = self._metrics()
        return values["redflag_snapshot_pause_seconds_count", ()], values["redflag_snapshot_pause_seconds_sum", ()]
