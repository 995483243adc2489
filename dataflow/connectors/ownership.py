"""One flow writes the outputs: a lease on them, which a second flow finds held.

The lease is kept where every flow on these outputs looks and no topic has to be made: as the metadata of two committed
offsets of a consumer group that nobody joins. That of the alerts topic says who owns the outputs; only a flow that
starts writes it. That of the classified topic is the owner's beat, a number that moves every `BEAT_SECONDS`. They are
apart because a broker has no compare-and-set for offsets: a beat that was under way while its sender was cut off, and
arrives late, displaces no new owner.

A flow that finds another owner watches the beat. If it moves, the flow is refused; if it has not moved for
`LEASE_SECONDS`, the flow takes over. An owner hands nothing to its producer from `HELD_SECONDS` after its last beat on,
until it has seen that the outputs are still its own: so one that was cut off is silent before another begins. No clock
is compared with another machine's, and none is the wall clock.
"""

import atexit
import logging
import os
import platform
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple, TypeVar

import msgspec
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from dataflow.connectors.kafka_clients import BROKER_WAIT_SECONDS, make_consumer, partition_counts, retry
from dataflow.errors import UserError
from dataflow.metrics import LEASE_AGE
from dataflow.process import lifecycle
from dataflow.settings import Settings
from dataflow.state.recovery import FlowIdentity

BEAT_SECONDS = 2.0
HELD_SECONDS = 12.0  # a beat allows to write for so long: a broker that dies is replaced in less
LEASE_SECONDS = 20.0  # the difference is for what was handed to the producer at the last moment
CONFIRM_SECONDS = 0.5  # from taking the outputs to looking whether somebody else took them at the same moment
TAKEOVER_SECONDS = 3.0  # the same where an owner was cut off: one that comes back now sees that, and ends
LOOK_SECONDS = 0.25  # between looks at another's beat
LOOK_COUNTS = 1.0  # at most so much of the time between two answers counts as time in which it did not move
ANSWER_SECONDS = 2.0  # how long the broker may take to answer a question
LEAVE_SECONDS = 1.0  # how long giving the outputs back may delay the end

BEYOND_ANY_END = 2**53 - 1  # the offset committed: nobody reads here, and nothing shall look as if it lagged
DIRECTORY_SHOWN = 300  # characters: a broker takes 4,096 bytes of metadata
DENIED = (KafkaError.GROUP_AUTHORIZATION_FAILED, KafkaError.TOPIC_AUTHORIZATION_FAILED)

# Linux's monotonic clock stands still while the machine sleeps, and the flow would not see that it was cut off.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

_log = logging.getLogger("redflag.owner")

T = TypeVar("T")


class Owner(msgspec.Struct, frozen=True):
    """Who writes the outputs."""

    run: str  # of one start; random
    flow: str  # as in FlowIdentity
    place: str  # as in FlowIdentity
    directory: str  # of its recovery data; "" without
    host: str
    pid: int
    since: str  # for people
    beat_topic: str

    def __str__(self) -> str:
        directory = f"recovery directory {self.directory}" if self.directory else "without a recovery directory"
        return f"process {self.pid} on {self.host}, {directory}, since {self.since}"


class Beat(msgspec.Struct, frozen=True):
    """A sign of life of an owner."""

    run: str
    number: int
    left: bool = False  # it has ended gracefully: nobody needs to wait


class Lease(NamedTuple):
    """What the group says."""

    owner: Owner | None
    beat: Beat | None  # the last, whose ever it is

    def owners_beat(self) -> Beat | None:
        """The last beat, if it is the owner's."""
        return self.beat if self.owner is not None and self.beat and self.beat.run == self.owner.run else None

    def free(self) -> bool:
        """Whether nobody owns the outputs."""
        beat = self.owners_beat()
        return self.owner is None or (beat is not None and beat.left)


def own_outputs(settings: Settings, identity: FlowIdentity) -> "Ownership":
    """Makes this flow the only one that writes its outputs, until the process ends.

    Returns:
        The ownership: a sink asks `held` before it hands records to its producer.

    Raises:
        UserError: another flow writes them; the consumer group may not be used; no broker answers.
    """
    partition_counts(settings, [settings.alerts_topic, settings.classified_topic])
    ownership = Ownership(settings, identity)
    LEASE_AGE.set_function(ownership.age)
    if identity.process == 0:
        ownership.claim()
        ownership.keep()
        atexit.register(ownership.leave_if_stopped)
    else:
        lifecycle.when_running(ownership.follow)
    return ownership


class Ownership:
    """This process's part in owning the outputs: process 0 of a cluster keeps the lease, the others watch it."""

    def __init__(self, settings: Settings, identity: FlowIdentity):
        self._settings = settings
        self._outputs = settings.alerts_topic
        self._group = f"redflag-owner-{settings.alerts_topic}"
        self._me = Owner(
            run=os.urandom(16).hex(),
            flow=identity.flow,
            place=identity.place,
            directory=identity.directory[:DIRECTORY_SHOWN],
            host=platform.node(),
            pid=os.getpid(),
            since=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
            beat_topic=settings.classified_topic,
        )
        # Without a coordinator the client keeps a commit for as long as a session, then gives it up.
        limit_ms = int(HELD_SECONDS * 500)
        own = {"group.id": self._group, "session.timeout.ms": limit_ms, "socket.timeout.ms": limit_ms}
        self._consumer = make_consumer(settings, own)
        self._asked = 0.0  # when the last question was put
        self._beats = 0
        self._known = now()  # the last time at which the outputs were known to be ours
        self._held_until = 0.0
        self._confirmed = False
        self._silenced = False
        self._seen: Lease | None = None  # what a follower saw last, and when
        self._seen_at = 0.0
        self._leaving = threading.Event()
        self._thread: threading.Thread | None = None

    def held(self) -> bool:
        """Whether this flow may write now. To be asked once a batch: it compares two numbers, and asks nobody.

        Raises:
            UserError: it has not been known for `DELIVERY_TIMEOUT_SECONDS`.
        """
        at = now()
        if at < self._held_until:
            return True
        limit = max(self._settings.delivery_timeout_seconds, HELD_SECONDS)
        if at - self._known > limit:
            msg = (
                f"cannot see for {limit:g} s whether {self._outputs} still belongs to this flow (consumer group "
                f"{self._group}): is the broker up? What is not decided yet is decided after the restart"
            )
            raise UserError(msg)
        return False

    def age(self) -> float:
        """Seconds since the outputs were last known to be this flow's."""
        return now() - self._known

    def claim(self) -> None:
        """Takes the outputs; returns when this flow may begin, though it may write only once `keep` has looked again.

        That is at once where nobody owns them, or an earlier run of this flow does: this process holds the very lock
        file that the earlier one held, so that one is dead.

        Raises:
            UserError: another flow writes them, or the consumer group may not be used.
        """
        self._ask_patiently()  # the first answer may take seconds, until there is a coordinator of the group
        found = self._ask_patiently()
        if not self._vacant(found):
            found = self._outwait(found)
        retry(f"cannot take {self._outputs}", lambda: self._commit(self._outputs, self._me), BROKER_WAIT_SECONDS)
        # One who took them at the same moment, and as fast, has done so before `keep` looks again.
        if not self._vacant(found) or now() - self._asked > CONFIRM_SECONDS:
            self._await_silence(found)
        self._known = now()

    def _outwait(self, found: Lease) -> Lease:
        """Waits until another's outputs may be taken; what stood there then.

        Raises:
            UserError: their owner is alive.
        """
        still = _Still((found.owner, found.owners_beat()))
        said = False
        while still.seconds < LEASE_SECONDS:
            if still.seconds > 2 * BEAT_SECONDS and not said:  # one that runs has shown it by now
                said = True
                _log.warning(
                    "%s was last written by another flow, which did not say that it ended (%s): waiting %g s for a "
                    "sign of it",
                    self._outputs,
                    found.owner,
                    LEASE_SECONDS,
                )
            self._pause()
            found = self._ask_patiently()
            if self._vacant(found):
                break
            if still.moved((found.owner, found.owners_beat())):
                raise self._refusal(found.owner)
        return found

    def _await_silence(self, found: Lease) -> None:
        """Waits until an owner that was cut off, and comes back at this very moment, has seen that it is displaced.

        Raises:
            UserError: another flow took the outputs at the same moment.
        """
        still = _Still(found.beat)
        needed = TAKEOVER_SECONDS
        while still.seconds < needed:
            self._pause()
            found = self._ask_patiently()
            if found.owner is not None and found.owner.run != self._me.run:
                raise self._refusal(found.owner)
            if still.moved(found.beat):
                needed = HELD_SECONDS

    def _vacant(self, found: Lease) -> bool:
        """Whether nobody can write the outputs now."""
        owner, me = found.owner, self._me
        return found.free() or (
            owner is not None and me.place != "" and (owner.flow, owner.place) == (me.flow, me.place)
        )

    def _pause(self) -> None:
        time.sleep(LOOK_SECONDS)
        if lifecycle.stopping():
            msg = "stopped while waiting for the outputs"
            raise UserError(msg)

    def keep(self) -> None:
        """Keeps the outputs, on a thread of its own; ends the process with one line if another flow has them."""
        self._start(self._renew)

    def follow(self) -> None:
        """Watches, on a thread of its own, that process 0 of this cluster keeps the outputs.

        To be called once the processes of the cluster have found each other: process 0 owns the outputs before that.
        """
        self._known = self._seen_at = now()
        self._start(self._look_after)

    def leave_if_stopped(self) -> None:
        """Gives the outputs back at the end of a graceful stop; after a failure, another process may still write."""
        if lifecycle.stopping():
            self.leave()

    def leave(self) -> None:
        """Gives the outputs back, so that the next flow takes them at once; what has no broker now just ends."""
        self._held_until = 0.0
        self._leaving.set()
        if self._thread is not None:
            self._thread.join(LEAVE_SECONDS)

    def _start(self, look: Callable[[], None]) -> None:
        def run() -> None:
            while not self._leaving.wait(BEAT_SECONDS if self._confirmed else CONFIRM_SECONDS):
                self._attempt(look)
            self._attempt(lambda: self._beat(left=True))

        self._thread = threading.Thread(target=run, name="redflag-owner", daemon=True)
        self._thread.start()

    def _attempt(self, look: Callable[[], None]) -> None:
        """A broker that is away ends nothing here: it is asked again, and `held` knows for how long it may be away."""
        try:
            look()
        except UserError as error:
            lifecycle.fail(error)
        except KafkaException as error:
            if self._confirmed and not self._silenced and not self._leaving.is_set() and now() >= self._held_until:
                self._silenced = True
                # The watch over the broker tells the operator that it is away; this is what it means here.
                _log.debug(
                    "nothing is written until it is seen that %s still belongs to this flow (%s)",
                    self._outputs,
                    error.args[0].str(),
                )

    def _renew(self) -> None:
        began = now()
        self._beat()
        owner = self._ask().owner
        if owner is None:  # somebody deleted the group
            self._commit(self._outputs, self._me)
        elif owner.run == self._me.run:
            self._known_at(began)
        else:
            raise self._displaced(owner) if self._confirmed else self._refusal(owner)

    def _look_after(self) -> None:
        began = now()
        found = self._ask()
        if found.owner is None or found.owners_beat() is None or found.free():
            return
        if found.owner.flow != self._me.flow:
            raise self._displaced(found.owner)
        if found != self._seen:  # the beat has moved since the last look, nobody here knows when
            self._known_at(self._seen_at)
        self._seen, self._seen_at = found, began

    def _known_at(self, at: float) -> None:
        self._known, self._held_until, self._confirmed = at, at + HELD_SECONDS, True
        if self._silenced and now() < self._held_until:
            self._silenced = False
            _log.debug("%s still belongs to this flow: writing goes on", self._outputs)

    def _beat(self, *, left: bool = False) -> None:
        self._beats += 1
        self._commit(self._me.beat_topic, Beat(self._me.run, self._beats, left))

    def _commit(self, topic: str, says: Owner | Beat) -> None:
        place = TopicPartition(topic, 0, BEYOND_ANY_END, metadata=msgspec.json.encode(says).decode())
        try:
            self._consumer.commit(offsets=[place], asynchronous=False)
        except KafkaException as error:
            self._raise_if_denied(error.args[0])
            raise

    def _ask_patiently(self) -> Lease:
        found: Lease = retry(f"cannot see who writes {self._outputs}", self._ask, BROKER_WAIT_SECONDS)
        return found

    def _ask(self) -> Lease:
        """What the group says now.

        Raises:
            KafkaException: no answer.
            UserError: it may not be asked, or no flow wrote what it says.
        """
        self._asked = now()
        mine = self._me.beat_topic
        says = self._read(self._outputs, mine)
        owner = self._decode(says[self._outputs], Owner)
        if owner is not None and owner.beat_topic != mine:  # another flow, which shares the alerts topic only
            says = self._read(owner.beat_topic)
        return Lease(owner, self._decode(says[owner.beat_topic if owner is not None else mine], Beat))

    def _read(self, *topics: str) -> dict[str, str]:
        while (event := self._consumer.poll(0)) is not None:  # what the client met when it looked for the coordinator
            self._raise_if_denied(event.error())
        found = self._consumer.committed([TopicPartition(topic, 0) for topic in topics], timeout=ANSWER_SECONDS)
        for each in found:
            if each.error is not None:
                self._raise_if_denied(each.error)
                raise KafkaException(each.error)
        return {each.topic: each.metadata or "" for each in found}

    def _decode(self, text: str, kind: type[T]) -> T | None:
        try:
            return msgspec.json.decode(text, type=kind) if text else None
        except msgspec.DecodeError as error:
            msg = (
                f"consumer group {self._group} holds {text[:80]!r}, which no flow of this version wrote: see who uses "
                "that name, or delete the group while no flow runs"
            )
            raise UserError(msg) from error

    def _raise_if_denied(self, error: KafkaError) -> None:
        if error.code() in DENIED:
            msg = (
                f"not allowed to use consumer group {self._group} on {self._settings.brokers} ({error.str()}): this "
                f"user needs READ on that group and on the topics {self._outputs} and {self._me.beat_topic}; it tells "
                "a second flow on the same outputs"
            )
            raise UserError(msg)

    def _refusal(self, owner: Owner | None) -> UserError:
        return UserError(
            f"{self._outputs} is written by another flow: {owner}; only one may write it: stop that one first, or give "
            "this one output topics of its own"
        )

    def _displaced(self, owner: Owner) -> UserError:
        return UserError(
            f"another flow has taken over {self._outputs} ({owner}): this one was cut off for {self.age():.0f} s, and "
            "ends here; see that only one of them is started"
        )


class _Still:
    """How long a reading has not changed, in time in which the broker answered."""

    def __init__(self, reading: object):
        self.seconds = 0.0
        self._reading = reading
        self._answered = now()

    def moved(self, reading: object) -> bool:
        """Takes the next reading; whether it differs from the last."""
        at = now()
        moved = reading != self._reading
        self.seconds = 0.0 if moved else self.seconds + min(at - self._answered, LOOK_COUNTS)
        self._reading, self._answered = reading, at
        return moved


def now() -> float:
    """Seconds on a clock that never goes back, and goes on while the machine sleeps."""
    return time.clock_gettime(_CLOCK)
