"""What is fed: transactions of thousands of users, labels of some of them, nonsense, and how it reaches the topics."""

import contextlib
import threading
import time
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from random import Random
from typing import Any

import msgspec
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from dataflow.settings import Settings

SETTINGS = Settings()
INPUT, LABELS = SETTINGS.transactions_topic, SETTINGS.feedback_topic
PARTITIONS = 4
"""Of each topic at the start, and those over which the ordinary users are spread for good."""

LARGE = 1_200_000  # bytes: what the input topic takes and the outputs, with Kafka's own limit of 1 MB, do not
INPUT_LIMIT = 5_000_000
START = datetime(2026, 3, 1, tzinfo=UTC).timestamp()
STEP_SECONDS = 0.4
"""Between two steps of a labelled user's story: so a label stands on its topic well before the payment after it."""
STORY_EVERY = 60
"""Of so many transactions of ordinary users, one starts a story."""

_encode = msgspec.json.encode
Event = tuple[str, bytes, bytes]  # topic, key, value


def iso(at: float) -> str:
    return datetime.fromtimestamp(round(at, 3), UTC).isoformat()


def transactions(seed: int, users: int) -> Iterator[tuple[bytes, bytes]]:
    """Endless messages, (key, value): most of them transactions, repeats, late ones and nonsense among them."""
    rng = Random(seed)
    countries = ("US", "IN", "FR", "BR", "JP")
    last: dict[int, tuple[str, dict[str, Any]]] = {}
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
        at = START + number * 3600 * 10 / users - (rng.random() * 7200 if kind > 0.98 else 0.0)
        transaction: dict[str, Any] = {
            "user": key.decode(),
            "amount": round(min(rng.lognormvariate(3.4, 1.0), 5000.0), 2),
            "timestamp": iso(at),
            "location": countries[user % 5] if rng.random() < 0.97 else rng.choice(countries),
            "device": ("mobile", "desktop")[rng.random() < 0.2],
            "merchant": f"shop-{int(200 * rng.random() ** 2)}" if rng.random() < 0.995 else "XYZ_Merchant",
            "txn_type": "purchase",
        }
        if rng.random() < 0.8:
            transaction["transaction_id"] = f"t{seed}-{number}"
            again = rng.random()
            if again < 0.01 and user in last:
                # The same id: as a repeat of that transaction, or on another one.
                name, whole = last[user]
                transaction = dict(whole) if again < 0.005 else transaction | {"transaction_id": name}
            last[user] = transaction["transaction_id"], dict(transaction)
        yield key, _encode(transaction)


def story(number: int, rng: Random) -> Iterator[list[Event]]:
    """A user who pays, is robbed, and whose fraud is labelled: in steps, each to be on its topics before the next.

    User and merchant have nobody else, so that all of their state is determined by the input. Some payments repeat an
    alert within its cooldown; some labels come twice, or are corrected.
    """
    user, merchant = f"s{number:05}", f"own-{number:05}"
    at = START + 40 * 86_400.0 + number * 60.0
    count = 0

    def pay(amount: float) -> Event:
        nonlocal count, at
        count += 1
        at += rng.uniform(60.0, 1800.0)
        payment = {
            "user": user, "amount": amount, "timestamp": iso(at), "location": "US", "device": "pos",
            "merchant": merchant, "txn_type": "purchase", "transaction_id": f"{user}-{count}",
        }  # fmt: skip
        paid[count] = payment
        return INPUT, user.encode(), _encode(payment)

    def label(which: int, fraud: bool) -> Event:
        payment = paid[which]
        found = {name: payment[name] for name in ("transaction_id", "user", "merchant", "timestamp")}
        return LABELS, user.encode(), _encode({**found, "fraud": fraud, "labelled_at": iso(at + 3600.0)})

    paid: dict[int, dict[str, Any]] = {}
    yield [pay(round(rng.uniform(20.0, 60.0), 2)) for _ in range(rng.randint(3, 6))]
    # The large one is to be labelled a fraud; the payment right behind it comes before the label.
    large, *_ = events = [pay(2000.0), pay(30.0), pay(120.0)]
    which = count - 2
    del large
    yield events
    labels = [label(which, True)]
    if rng.random() < 0.3:
        labels.append(label(which, True))  # sent twice
    if rng.random() < 0.3:
        labels.append(label(1, False))
    yield labels
    yield [pay(25.0), pay(125.0)]
    if rng.random() < 0.3:
        yield [label(which, False)]  # it was the user after all
        yield [pay(35.0)]


REST_SECONDS = 300.0  # what was released is on its topics by then, unless the broker hangs


class Feeder(threading.Thread):
    """Produces what was released, at its own pace; a broker that is away it waits for."""

    def __init__(self, bootstrap: str, seed: int, users: int):
        super().__init__(name="feeder", daemon=True)
        self._address = bootstrap
        self._messages = transactions(seed, users)
        self._others = transactions(seed + 1_000_000, users)  # of the transactional producer, and of new partitions
        self._rng = Random(seed)
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
        self._large: list[bool] = []
        self._in_transactions: list[bool] = []
        self._added = 0
        self._stories: list[Iterator[list[Event]]] = []
        self._told = 0
        self._next_step = time.monotonic()
        self._paused = False
        self._idle = threading.Event()
        self._ended = False
        self.fed = 0
        self.labelled = 0
        self.aborted = 0

    def _delivered(self, error: Any, message: Message) -> None:
        msg = f"the input was not produced: {error}"
        raise AssertionError(msg)

    def release(self, count: int, seconds: float) -> None:
        """Allows so many more transactions, over about that time."""
        with self._lock:
            self._released += count
            self._rate = max(self._released / max(seconds, 0.01), 100.0)

    def release_large(self, valid: bool = True) -> None:
        """Sends one message that is larger than the output topics take: a transaction, or garbage."""
        self._large.append(valid)

    def release_transactional(self, commit: bool) -> None:
        """Sends some transactions in one of Kafka's, and commits or aborts that."""
        self._in_transactions.append(commit)

    def use_new_partitions(self, added: int) -> None:
        """From now on, new users pay on so many partitions beyond the first."""
        while len(self._producer.list_topics(INPUT, timeout=30).topics[INPUT].partitions) < PARTITIONS + added:
            time.sleep(0.05)  # until its own client knows them
        self._added = added

    def pause(self) -> None:
        """Returns once all that was released, and every story that was begun, is on its topics; sends nothing more."""
        self._idle.clear()
        self._paused = True
        assert self._idle.wait(REST_SECONDS), f"the feeder was not done in {REST_SECONDS:g} s: is the broker up?"
        assert self._producer.flush(120) == 0

    def go_on(self) -> None:
        """The opposite of `pause`."""
        self._paused = False

    def run(self) -> None:
        while True:
            with self._lock:
                count = min(self._released, max(int(self._rate * 0.02), 1))
                self._released -= count
            for _ in range(count):
                self._send(INPUT, *next(self._messages))
                if self.fed % STORY_EVERY == 0:
                    self._stories.append(story(self._told, Random(f"{self._told}")))
                    self._told += 1
                if self._added and self.fed % 50 == 0:
                    self._send_to_new_partition()
            self._send_large()
            while self._in_transactions:
                self._send_in_transaction(self._in_transactions.pop())
            self._go_on_with_stories()
            self._producer.poll(0.02)
            done = not (count or self._released or self._large or self._stories or self._in_transactions)
            if done and self._paused:
                self._idle.set()
            if done and self._ended:
                return

    def _go_on_with_stories(self) -> None:
        if not self._stories or time.monotonic() < self._next_step:
            return
        # All that was sent before is on its topics, whatever becomes of the broker: only then the next step.
        while self._producer.flush(1.0):
            pass
        time.sleep(0.05)
        left = []
        for each in self._stories:
            for event in next(each, ()):
                self._send(*event)
                left.append(each) if each not in left else None
        self._stories = left
        self._next_step = time.monotonic() + STEP_SECONDS

    def _send_large(self) -> None:
        while self._large:
            valid = self._large.pop()
            key, value = next(pair for pair in self._messages if b'"amount"' in pair[1] and b"-1" not in pair[1])
            self._send(INPUT, key, value[:-1] + b',"note":"' + b"x" * LARGE + b'"}' if valid else b"?" * LARGE)

    def _send_to_new_partition(self) -> None:
        key, value = next(self._others)
        # Of this growth: one of an earlier one would move to another partition, and order holds within one only.
        user = b"n%d-" % self._added + key[1:]
        partition = PARTITIONS + zlib.crc32(user) % self._added
        self._send(INPUT, user, value.replace(b'"' + key + b'"', b'"' + user + b'"'), partition)

    def _send(self, topic: str, key: bytes, value: bytes, partition: int | None = None) -> None:
        if topic == INPUT:
            self.fed += 1
        else:
            self.labelled += 1
        place = zlib.crc32(key) % PARTITIONS if partition is None else partition
        while True:
            try:
                self._producer.produce(topic, key=key, value=value, partition=place)
                return
            except BufferError:
                self._producer.poll(0.1)
            except KafkaException as error:  # its client does not know the partition, or the topic made anew, yet
                if error.args[0].code() not in (KafkaError._UNKNOWN_PARTITION, KafkaError._UNKNOWN_TOPIC):
                    raise
                time.sleep(0.1)

    def _send_in_transaction(self, commit: bool) -> None:
        """Twenty transactions of users of its own, each of whom is in one partition."""
        events = [next(self._others) for _ in range(20)]
        for _ in range(20):
            producer = Producer(
                {"bootstrap.servers": self._address, "transactional.id": "feeder", "log_level": 0, "linger.ms": 5}
            )
            try:
                producer.init_transactions(60)
                producer.begin_transaction()
                for key, value in events:
                    user = b"x" + key[1:]
                    place = zlib.crc32(user) % PARTITIONS
                    producer.produce(INPUT, value.replace(b'"' + key + b'"', b'"' + user + b'"'), user, place)
                producer.flush(30)
                if commit:
                    self._commit(producer)
                    self.fed += len(events)
                else:
                    producer.abort_transaction(30)
                    self.aborted += len(events)
                return
            except KafkaException:  # the broker went away: whatever is open is aborted by the next one's start
                with contextlib.suppress(KafkaException):
                    producer.abort_transaction(5)
                time.sleep(0.5)

    def _commit(self, producer: Producer) -> None:
        while True:
            try:
                producer.commit_transaction(30)
                return
            except KafkaException as error:
                reason: KafkaError = error.args[0]
                if not reason.retriable():  # else it may have been committed: it is asked for again until that is known
                    raise

    def finish(self) -> int:
        """Waits until everything that was released is on the topics; returns how many transactions that are."""
        self._ended = True
        self.join(REST_SECONDS)
        assert not self.is_alive(), f"the feeder was not done in {REST_SECONDS:g} s: is the broker up?"
        left = self._producer.flush(120)
        assert left == 0, f"{left} messages were not produced"
        return self.fed
