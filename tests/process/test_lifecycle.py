"""How a flow ends: SIGTERM, a second signal, a broker that is away meanwhile, a user's mistake."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confluent_kafka import Producer

from dataflow.connectors import kafka_source
from dataflow.detect import FLOW, WRITE_OUTPUTS
from dataflow.events import output_record as record
from dataflow.settings import Settings
from dataflow.state.committed import committed_states
from tests.conftest import Broker
from tests.support.builders import raw
from tests.support.detection import environ_of, topics_by_default, topics_of_its_own
from tests.support.kafka_server import KafkaServer
from tests.support.reading import read_all


class Flow:
    """The detection flow as a process."""

    def __init__(self, settings: Settings, model_file: Path, directory: Path):
        self.settings = settings
        self._log = directory / "flow.log"
        self.environ = environ_of(settings, model_file, directory)
        self.process: subprocess.Popen[bytes]

    def start(self, wait: bool = True) -> None:
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "dataflow.detect"], env=self.environ, stderr=log, stdout=log
            )
        if wait:
            wait_for(lambda: f"{kafka_source.READY} {self.settings.transactions_topic}[" in self.said())

    def said(self) -> str:
        return self._log.read_text(errors="replace")

    def stop(self, seconds: float = 60) -> int:
        self.process.terminate()
        return self.process.wait(seconds)

    def decided(self) -> Counter[bytes]:
        messages = read_all(self.settings, [self.settings.alerts_topic, self.settings.classified_topic])
        return Counter(
            dict(m.headers())[record.SOURCE_PARTITION] + b"@" + dict(m.headers())[record.SOURCE_OFFSET]
            for m in messages
        )

    def give(self, count: int) -> None:
        producer = Producer({"bootstrap.servers": self.settings.brokers})
        for number in range(count):
            user = f"u{number % 50}"
            producer.produce(self.settings.transactions_topic, key=user.encode(), value=raw(user))
            producer.poll(0)
        assert producer.flush(20) == 0


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture
def flow(broker: Broker, topics: Callable[..., str], model_file: Path, tmp_path: Path) -> Iterator[Flow]:
    made = Flow(topics_of_its_own(broker, topics), model_file, tmp_path)
    made.start()
    yield made
    made.process.kill()
    made.process.wait()


@pytest.fixture
def own_broker(kafka_server: KafkaServer, model_file: Path, tmp_path: Path) -> Iterator[tuple[KafkaServer, Flow]]:
    """A flow on a broker of its own, to freeze and kill; it sends by full batches, as long as nobody asks it to flush.

    So some of its last decisions stay unsent, however fast it is, and however late its broker is frozen.
    """
    made = Flow(topics_by_default(kafka_server), model_file, tmp_path)
    made.environ |= {"KAFKA_CONFIG_LINGER_MS": "60000", "RECOVERY_INTERVAL": "600"}
    made.start()
    yield kafka_server, made
    made.process.kill()
    made.process.wait()


def test_sigterm_in_the_midst_of_work_ends_with_0_and_loses_and_doubles_nothing(flow: Flow) -> None:
    flow.give(20_000)
    wait_for(lambda: len(flow.decided()) > 0)
    assert flow.stop() == 0, flow.said()
    assert "Traceback" not in flow.said()
    flow.start()
    wait_for(lambda: len(flow.decided()) >= 20_000)
    assert flow.stop() == 0, flow.said()
    assert set(flow.decided().values()) == {1}


def test_a_stop_while_it_looks_for_what_stands_on_the_outputs_ends_with_0_at_once(flow: Flow) -> None:
    """That may take minutes where millions stand there; a stop that waited for it would be given up after 8 s."""
    flow.give(1000)
    wait_for(lambda: len(flow.decided()) >= 1000)
    flow.process.kill()
    flow.process.wait()
    flow.environ["OUTPUT_SETTLE_SECONDS"] = "60"
    lock = Path(flow.environ["RECOVERY_DIR"]) / "lock.0"
    for pause in (0.5, 1, 2, 4, 8, 16):  # it says nothing of when it begins to look
        flow.start(wait=False)
        wait_for(lambda: lock.read_text().split() == [str(flow.process.pid), "running"])
        time.sleep(pause)
        assert flow.stop() == 0, flow.said()
        if "still looked for what stands on the outputs" in flow.said():
            break
    else:
        pytest.fail(f"it did not look, or not for 60 s: {flow.said()}")
    del flow.environ["OUTPUT_SETTLE_SECONDS"]
    flow.start()
    flow.give(1000)
    wait_for(lambda: len(flow.decided()) >= 2000)
    assert flow.stop() == 0, flow.said()
    assert set(flow.decided().values()) == {1}


def test_what_a_flow_gives_its_sink_of_its_last_run_are_the_snapshots_of_all_parts(flow: Flow) -> None:
    flow.give(1000)
    wait_for(lambda: len(flow.decided()) >= 1000)
    assert flow.stop() == 0, flow.said()
    recovery = Path(flow.environ["RECOVERY_DIR"])
    states = committed_states(recovery, f"{FLOW}.{WRITE_OUTPUTS}")
    topic = flow.settings.transactions_topic
    assert {key for key in states if key.startswith(topic)} == {record.source_key(topic, number) for number in range(4)}
    assert {state["source_partitions"] for state in states.values()} == {4}
    starts = [state["outputs"][output]["starts"] for state in states.values() for output in state["outputs"]]
    assert max(map(sum, starts)) > 0


def test_an_idle_flow_ends_at_once(flow: Flow) -> None:
    began = time.monotonic()
    assert flow.stop() == 0, flow.said()
    assert time.monotonic() - began < 6  # it gives up after 8 s


def test_ctrl_c_is_a_graceful_stop_too(flow: Flow) -> None:
    flow.process.send_signal(signal.SIGINT)
    assert flow.process.wait(60) == 0, flow.said()


def test_in_json_every_line_is_an_object_and_says_what_is_in_force_and_nothing_of_users(flow: Flow) -> None:
    flow.give(200)
    wait_for(lambda: len(flow.decided()) >= 200)
    assert flow.stop() == 0, flow.said()
    assert "new, 1 file, a snapshot every 1 s" in flow.said()
    flow.environ["LOG_FORMAT"] = "json"
    flow.start()
    assert flow.stop() == 0, flow.said()
    events = [json.loads(line) for line in flow.said().splitlines() if not line.startswith("%")]
    messages = [event["message"] for event in events if event["logger"].startswith("redflag.")]
    for beginning in ("brokers", "rules", "model", "recovery", "no metrics", "writes", "reads"):
        assert any(message.startswith(f"in force: {beginning}") for message in messages), beginning
    assert any("resumed, 1 file, a snapshot every 1 s" in message for message in messages)
    topic = flow.settings.transactions_topic
    (reads,) = [e["fields"] for e in events if e["message"].startswith(f"in force: reads {topic}, 4 of 4 partitions")]
    assert sum(place["end"] for place in reads["partitions"].values()) == 200
    assert all(place["offset"] == place["end"] or not place["end"] for place in reads["partitions"].values())
    assert not re.search(r"\bu\d+\b|XYZ_Merchant|amount", flow.said())


def freeze_at_work(server: KafkaServer, flow: Flow) -> int:
    """Stops the broker when some decisions stand on it and others are still to be sent; returns its process id."""
    flow.give(20_000)
    wait_for(lambda: len(flow.decided()) > 0)
    pid = server.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    time.sleep(0.5)
    return pid


def test_a_stop_with_the_broker_away_gives_up_within_10_s_and_all_is_decided_after_the_restart(
    own_broker: tuple[KafkaServer, Flow],
) -> None:
    server, flow = own_broker
    pid = freeze_at_work(server, flow)
    code = flow.stop()
    os.kill(pid, signal.SIGCONT)
    assert code == 1
    assert "not finished 8 s after the signal" in flow.said()
    flow.environ |= {"KAFKA_CONFIG_LINGER_MS": "1", "RECOVERY_INTERVAL": "1"}
    flow.start()
    wait_for(lambda: len(flow.decided()) >= 20_000)
    assert flow.stop() == 0, flow.said()
    assert set(flow.decided().values()) == {1}


def test_a_second_signal_ends_it_at_once(own_broker: tuple[KafkaServer, Flow]) -> None:
    server, flow = own_broker
    pid = freeze_at_work(server, flow)
    flow.process.terminate()
    time.sleep(1.0)
    assert flow.process.poll() is None
    began = time.monotonic()
    assert flow.stop() == 128 + signal.SIGTERM
    assert time.monotonic() - began < 4  # by itself it would go on for 7 s
    os.kill(pid, signal.SIGCONT)


def test_a_mistake_ends_the_process_with_one_line_and_status_2_even_in_a_worker() -> None:
    code = (
        "import threading\n"
        "from dataflow.process import lifecycle\n"
        "from dataflow.settings import UserError\n"
        "lifecycle.report_mistakes()\n"
        "@lifecycle.exit_on_user_error\n"
        "def worker(): raise UserError('the disk is full: make room')\n"
        "thread = threading.Thread(target=worker); thread.start(); thread.join(); print('went on')"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=30)
    assert (found.returncode, found.stdout, found.stderr) == (2, "", "redflag: the disk is full: make room\n")


def test_a_mistake_that_many_workers_meet_at_once_is_said_in_one_line() -> None:
    code = (
        "import threading, time\n"
        "from dataflow.process import lifecycle\n"
        "from dataflow.settings import UserError\n"
        "lifecycle.report_mistakes()\n"
        "complain = lifecycle.complain\n"
        # As on a busy machine: the process does not end in the very moment in which the line is written.
        "lifecycle.complain = lambda error: (complain(error), time.sleep(0.5))\n"
        "together = threading.Barrier(4)\n"
        "def worker(): together.wait(); lifecycle.fail(UserError('the disk is full: make room'))\n"
        "threads = [threading.Thread(target=worker) for _ in range(4)]\n"
        "[thread.start() for thread in threads]; [thread.join() for thread in threads]"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=30)
    assert (found.returncode, found.stderr) == (2, "redflag: the disk is full: make room\n")
