"""One flow writes the outputs: a second is refused, one that was cut off ends, a crash locks nobody out for long."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from dataflow.connectors import delivery, exactly_once_sink, ownership
from dataflow.connectors.ownership import Ownership
from dataflow.errors import UserError
from dataflow.events.output_record import Record
from dataflow.process import lifecycle
from dataflow.settings import Settings
from dataflow.state.recovery import FlowIdentity
from tests.conftest import Broker
from tests.process.test_lifecycle import Flow, wait_for
from tests.support.builders import raw
from tests.support.kafka_server import KafkaServer
from tests.support.reading import read_all

TOPICS = ("transactions", "alerts", "classified", "invalid", "feedback")


# In this process, with a lease of two seconds.


@pytest.fixture
def settings(broker: Broker, topics: Callable[..., str]) -> Settings:
    return Settings(brokers=broker.bootstrap, alerts_topic=topics("alerts"), classified_topic=topics("classified"))


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {
        "BEAT_SECONDS": 0.1,
        "HELD_SECONDS": 1.0,
        "LEASE_SECONDS": 2.0,
        "CONFIRM_SECONDS": 0.1,
        "TAKEOVER_SECONDS": 0.2,
        "LOOK_SECONDS": 0.02,
    }.items():
        monkeypatch.setattr(ownership, name, seconds)


@pytest.fixture(autouse=True)
def ended(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What `lifecycle.fail` was given: in a flow it ends the process, here the thread."""
    lines: list[str] = []

    def fail(error: UserError) -> NoReturn:
        lines.append(str(error))
        raise SystemExit

    monkeypatch.setattr(lifecycle, "fail", fail)
    return lines


class Owners:
    """Flows that own or want to own the outputs; whatever a test leaves running is stopped."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.made: list[Ownership] = []

    def make(self, flow: str, *, place: str = "", process: int = 0, settings: Settings | None = None) -> Ownership:
        one = Ownership(settings or self.settings, FlowIdentity(flow, place, f"/data/{flow}", process, None))
        self.made.append(one)
        return one

    def running(self, flow: str, **others: Any) -> Ownership:
        one = self.make(flow, **others)
        one.claim()
        one.keep()
        wait_for(one.held)
        return one

    def freeze(self, one: Ownership) -> None:
        """As SIGSTOP does: from now on it sends nothing, and does not say that it ends."""
        one._leaving.set()
        one._attempt = lambda _look: None  # type: ignore[method-assign]
        assert one._thread is not None
        one._thread.join()


@pytest.fixture
def owners(settings: Settings, brief: None) -> Iterator[Owners]:
    made = Owners(settings)
    yield made
    for one in made.made:
        one.leave()


def test_a_second_flow_is_refused_and_the_first_named(owners: Owners) -> None:
    first = owners.running("first")
    with pytest.raises(
        UserError, match=rf"written by another flow: process {os.getpid()} on \S+, .* /data/first, since"
    ):
        owners.make("second").claim()
    wait_for(first.held)


def test_one_that_shares_only_the_alerts_topic_is_refused_too(owners: Owners, topics: Callable[..., str]) -> None:
    owners.running("first")
    other = msgspec.structs.replace(owners.settings, classified_topic=topics("other"))
    with pytest.raises(UserError, match="written by another flow"):
        owners.make("second", settings=other).claim()


def test_nothing_may_be_written_before_it_is_confirmed_that_nobody_else_took_the_outputs(owners: Owners) -> None:
    first = owners.make("first")
    first.claim()
    assert not first.held()
    first.keep()
    wait_for(first.held)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # as `ended` has it
def test_of_flows_that_start_at_the_same_moment_exactly_one_stays(owners: Owners, ended: list[str]) -> None:
    for _ in range(3):
        ended.clear()
        together = threading.Barrier(3)
        candidates = [owners.make(f"flow-{n}") for n in range(3)]
        refused: list[UserError] = []

        def start(one: Ownership, together: threading.Barrier = together, refused: list[Any] = refused) -> None:
            together.wait()
            try:
                one.claim()
                one.keep()
            except UserError as error:
                refused.append(error)

        threads = [threading.Thread(target=start, args=(one,)) for one in candidates]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wait_for(lambda refused=refused: len(ended) + len(refused) == 2)

        def keeping(candidates: list[Ownership] = candidates) -> list[Ownership]:
            return [one for one in candidates if one._thread is not None and one._thread.is_alive()]

        wait_for(lambda keeping=keeping: len(keeping()) == 1)
        (left,) = keeping()
        wait_for(left.held)
        assert [one for one in candidates if one.held()] == [left]
        assert all("written by another flow" in line for line in ended)
        left.leave()


def test_after_a_graceful_end_the_next_begins_at_once(owners: Owners, caplog: pytest.LogCaptureFixture) -> None:
    owners.running("first").leave()
    owners.make("second").claim()
    assert caplog.messages == []


def test_a_flow_that_holds_its_predecessors_lock_file_does_not_wait_for_it(
    owners: Owners, monkeypatch: pytest.MonkeyPatch
) -> None:
    owners.freeze(owners.running("flow", place="here"))
    monkeypatch.setattr(ownership, "LEASE_SECONDS", 1000.0)
    owners.make("flow", place="here").claim()


@pytest.mark.parametrize("place", ["elsewhere", ""])
def test_a_copy_of_the_recovery_directory_is_another_flow(owners: Owners, place: str) -> None:
    owners.running("flow", place=place and "here")
    with pytest.raises(UserError, match="written by another flow"):
        owners.make("flow", place=place).claim()


def test_one_that_was_cut_off_is_silent_before_another_begins_and_ends_when_it_comes_back(
    owners: Owners, ended: list[str]
) -> None:
    first = owners.running("first")
    owners.freeze(first)
    second = owners.make("second")
    claimed = threading.Thread(target=second.claim)
    claimed.start()
    wait_for(lambda: not first.held())
    assert second._ask().owner != second._me
    claimed.join()
    second.keep()
    wait_for(second.held)
    # What it sent while it was cut off, and arrives now, changes nothing.
    first._beat()
    assert second._ask().owner == second._me
    second._renew()
    with pytest.raises(UserError, match=r"another flow has taken over .*/data/second.* cut off for"):
        first._renew()
    assert ended == []


def test_one_that_comes_back_while_another_takes_over_is_waited_for(owners: Owners) -> None:
    first = owners.running("first")
    owners.freeze(first)
    second = owners.make("second")
    found = second._outwait(second._ask())
    first._beat()
    began = time.monotonic()
    second._commit(owners.settings.alerts_topic, second._me)
    second._await_silence(found)
    assert time.monotonic() - began >= ownership.HELD_SECONDS


def test_time_in_which_the_broker_does_not_answer_is_no_sign_that_the_owner_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]
    monkeypatch.setattr(ownership, "now", lambda: clock[0])
    still = ownership._Still("beat 1")
    clock[0] = 100.0
    assert not still.moved("beat 1")
    assert still.seconds == ownership.LOOK_COUNTS
    clock[0] = 100.5
    assert not still.moved("beat 1")
    assert still.seconds == ownership.LOOK_COUNTS + 0.5
    assert still.moved("beat 2")
    assert still.seconds == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # as `ended` has it
def test_the_other_processes_of_a_cluster_write_only_while_its_first_keeps_the_outputs(
    owners: Owners, ended: list[str]
) -> None:
    first = owners.running("cluster", place="here")
    other = owners.make("cluster", process=1)
    other.follow()
    wait_for(other.held)
    time.sleep(2 * ownership.HELD_SECONDS)
    wait_for(other.held)
    owners.freeze(first)
    wait_for(lambda: not other.held())
    owners.running("second")
    wait_for(lambda: len(ended) == 1)
    assert "another flow has taken over" in ended[0]


def test_a_group_that_was_deleted_is_written_again(owners: Owners) -> None:
    first = owners.running("first")
    first._consumer.commit(offsets=[TopicPartition(owners.settings.alerts_topic, 0, 0)], asynchronous=False)
    wait_for(lambda: owners.make("looker")._ask().owner == first._me)
    wait_for(first.held)


def test_what_no_flow_wrote_is_refused_with_a_line(owners: Owners) -> None:
    first = owners.make("first")
    strange = TopicPartition(owners.settings.alerts_topic, 0, 0, metadata="a reader's own note")
    first._consumer.commit(offsets=[strange], asynchronous=False)
    with pytest.raises(UserError, match=r"a reader's own note.*which no flow of this version wrote"):
        first.claim()


def test_not_knowing_for_longer_than_a_broker_may_be_away_ends_the_flow(
    owners: Owners, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = owners.make("first")
    at = ownership.now()
    monkeypatch.setattr(ownership, "now", lambda: at + owners.settings.delivery_timeout_seconds - 1)
    assert not first.held()
    monkeypatch.setattr(ownership, "now", lambda: at + owners.settings.delivery_timeout_seconds + 1)
    with pytest.raises(UserError, match=r"cannot see for 120 s whether .* still belongs to this flow"):
        first.held()


def test_a_sink_hands_nothing_over_until_it_may_write(settings: Settings, topics: Callable[..., str]) -> None:
    source = topics("transactions")
    allowed = threading.Event()
    sink = exactly_once_sink.ExactlyOnceSink(
        msgspec.structs.replace(settings, output_settle_seconds=0.1),
        {source: (settings.alerts_topic,)},
        may_write=allowed.is_set,
    )
    part = sink.build_part("write", sink.list_parts()[0], None)
    record = Record(settings.alerts_topic, b"k", b"v", source, 0, 0, 1_000)
    writing = threading.Thread(target=part.write_batch, args=([[record]],))
    writing.start()
    time.sleep(0.3)
    assert writing.is_alive()
    assert read_all(settings, [settings.alerts_topic]) == []
    allowed.set()
    writing.join()
    part.snapshot()
    assert [m.value() for m in read_all(settings, [settings.alerts_topic])] == [b"v"]


def test_a_record_that_was_refused_is_reported_while_the_sink_waits(settings: Settings) -> None:
    waiting = delivery.Delivery(settings, may_write=lambda: False)
    waiting._failure = UserError("a record was not taken")
    with pytest.raises(UserError, match="a record was not taken"):
        waiting.await_permission()


# Processes, with the lease as it is.


class Candidate(Flow):
    """A flow that may be refused."""

    def begin(self, recovery: Path | None = None) -> None:
        """Starts it, with a recovery directory of its own or that one, and does not wait for it."""
        if recovery is not None:
            self.environ["RECOVERY_DIR"] = str(recovery)
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "dataflow.detect"], env=self.environ, stderr=log, stdout=log
            )

    @property
    def recovery(self) -> Path:
        return Path(self.environ["RECOVERY_DIR"])

    def refused(self) -> str:
        """Waits for it to end with status 2 and one line, and returns that."""
        assert self.process.wait(60) == 2, self.said()
        (line,) = self.said().splitlines()
        return line


MakeFlow = Callable[..., Candidate]


@pytest.fixture
def flows(model_file: Path, tmp_path: Path) -> Iterator[MakeFlow]:
    made: list[Candidate] = []

    def make(settings: Settings) -> Candidate:
        directory = tmp_path / f"flow-{len(made)}"
        directory.mkdir()
        made.append(Candidate(settings, model_file, directory))
        return made[-1]

    yield make
    for flow in made:
        if hasattr(flow, "process"):
            flow.process.kill()
            flow.process.wait()


@pytest.fixture
def outputs(broker: Broker, topics: Callable[..., str]) -> Callable[[], Settings]:
    return lambda: Settings(brokers=broker.bootstrap, **{f"{name}_topic": topics(name) for name in TOPICS})


def test_a_second_flow_and_a_copy_are_refused_and_nothing_is_written_twice(
    flows: MakeFlow, outputs: Callable[[], Settings]
) -> None:
    settings = outputs()
    first, second, copy = flows(settings), flows(settings), flows(settings)
    first.start()
    first.give(49)
    wait_for(lambda: len(first.decided()) == 49)
    shutil.copytree(first.recovery, copy.recovery)
    second.begin()
    copy.begin()
    for refused in (second.refused(), copy.refused()):
        assert f"{settings.alerts_topic} is written by another flow: process {first.process.pid} on " in refused
        assert f"recovery directory {first.recovery}, since " in refused
    assert first.stop() == 0, first.said()
    assert set(first.decided().values()) == {1}
    # It said that it ended: nobody waits.
    second.start()
    first.give(1)
    wait_for(lambda: len(first.decided()) == 50)
    second.process.kill()
    second.process.wait()
    second.start()
    assert "waiting" not in second.said()
    second.stop()
    assert set(first.decided().values()) == {1}


@pytest.fixture(scope="module")
def server() -> Iterator[KafkaServer]:
    """A broker to freeze and kill, which knows access control lists."""
    properties = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "allow.everyone.if.no.acl.found": "true",
    }
    with KafkaServer(properties) as server:
        yield server


def outputs_on(server: KafkaServer) -> Settings:
    names = {f"{name}_topic": f"{name}-{uuid.uuid4().hex[:8]}" for name in TOPICS}
    server.create_topics(dict.fromkeys(names.values(), 2))
    return Settings(brokers=server.bootstrap, **names)


@pytest.mark.usefixtures("apache_kafka")
def test_a_killed_or_frozen_flow_is_replaced_and_the_frozen_one_writes_nothing_when_it_comes_back(
    flows: MakeFlow, server: KafkaServer
) -> None:
    killed, frozen = flows(outputs_on(server)), flows(outputs_on(server))
    replacements = [flows(killed.settings), flows(frozen.settings)]
    pairs = list(zip((killed, frozen), replacements, strict=True))
    # It has asked for more, and is frozen before the answer: that waits for it in its socket.
    frozen.environ["KAFKA_CONFIG_FETCH_WAIT_MAX_MS"] = "500"
    at_hand = Producer({"bootstrap.servers": server.bootstrap})
    at_hand.list_topics(frozen.settings.transactions_topic)
    for flow in (killed, frozen):
        flow.begin()
        flow.give(500)
    for flow in (killed, frozen):
        wait_for(lambda flow=flow: len(flow.decided()) == 500)
    killed.process.kill()
    frozen.process.send_signal(signal.SIGSTOP)
    for partition in range(2):
        at_hand.produce(frozen.settings.transactions_topic, key=b"ann", value=raw("ann"), partition=partition)
    assert at_hand.flush(20) == 0
    for flow, replacement in pairs:
        flow.give(500)
        replacement.begin()
    for flow, replacement in pairs:
        wait_for(lambda flow=flow: len(flow.decided()) >= 1000)
        assert f"did not say that it ended (process {flow.process.pid} on " in replacement.said()
    # It can decide what is in its socket, and cannot ask whose the outputs are.
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)
    frozen.process.send_signal(signal.SIGCONT)
    time.sleep(2)
    os.kill(server.pid, signal.SIGCONT)
    assert frozen.process.wait(60) == 2, frozen.said()
    last = frozen.said().splitlines()[-1]
    assert f"another flow has taken over {frozen.settings.alerts_topic} (process {replacements[1].process.pid}" in last
    for flow, replacement in pairs:
        assert replacement.stop() == 0, replacement.said()
        assert set(flow.decided().values()) == {1}
    assert len(frozen.decided()) == 1002


@pytest.mark.usefixtures("apache_kafka")
def test_a_broker_that_is_away_for_as_long_as_the_lease_ends_nothing(flows: MakeFlow, server: KafkaServer) -> None:
    flow = flows(outputs_on(server))
    flow.start()
    flow.give(5000)
    wait_for(lambda: len(flow.decided()) > 0)
    server.kill()
    time.sleep(ownership.LEASE_SECONDS)
    assert flow.process.poll() is None, flow.said()
    server.start()
    flow.give(100)
    wait_for(lambda: len(flow.decided()) == 5100)
    assert flow.stop() == 0, flow.said()
    assert set(flow.decided().values()) == {1}


@pytest.mark.usefixtures("apache_kafka")
@pytest.mark.parametrize("granted", [None, AclOperation.DESCRIBE])
def test_a_missing_right_is_one_line_that_names_it(server: KafkaServer, granted: AclOperation | None) -> None:
    settings = outputs_on(server)
    group = f"redflag-owner-{settings.alerts_topic}"
    # What somebody may, nobody else may.
    given = [("User:nobody", AclOperation.READ)] + ([("User:ANONYMOUS", granted)] if granted else [])
    lists = [
        AclBinding(
            ResourceType.GROUP, group, ResourcePatternType.LITERAL, user, "*", operation, AclPermissionType.ALLOW
        )
        for user, operation in given
    ]
    admin = AdminClient({"bootstrap.servers": server.bootstrap, "log_level": 0})
    for future in admin.create_acls(lists).values():
        future.result(30)
    of_group = AclBindingFilter(
        ResourceType.GROUP, group, ResourcePatternType.LITERAL, None, None, AclOperation.ANY, AclPermissionType.ANY
    )
    wait_for(lambda: len(admin.describe_acls(of_group).result(30)) == len(lists))
    with pytest.raises(UserError, match=rf"not allowed to use consumer group {group} .*: this user needs READ on that"):
        Ownership(settings, FlowIdentity("flow", "", "", 0, None)).claim()
