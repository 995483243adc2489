"""A real Apache Kafka on loopback, for tests, chaos and benchmarks: one broker in KRaft mode, with all its data in a
temporary directory.

    with KafkaServer() as kafka:
        kafka.create_topics({"transactions": 4})
        ...                      # clients connect to kafka.bootstrap
        kafka.kill()             # SIGKILL
        kafka.start()            # the same data on the same port

With `secured`, it has listeners with TLS, with passwords, and with both, beside the plain one.

Java maps the classes that a start needs from an archive, made once beside the jars: without it a start takes twice the
CPU time.

It needs Java 17 or later (Kafka 4 runs on nothing older) and, the first time, Maven and a way to Maven Central.
By hand: `python -m tests.support.kafka_server`.
"""

import argparse
import contextlib
import fcntl
import functools
import hashlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic, ResourceType

from tests.support.kafka_storage import format_again, remember

POM = Path(__file__).with_name("kafka-pom.xml")
JAVA_NEEDED = 17
FETCH_TIMEOUT_S = 600
START_TIMEOUT_S = 60
NODE = 1
ARCHIVE_TIMEOUT_S = 120

# Holds a pipe whose other end only the test process has: when that process is gone, however it went, the pipe ends,
# and the guard kills the broker it was last told of and removes the data. (PR_SET_PDEATHSIG would be shorter, but
# fires when the *thread* that started the broker ends.)
_GUARD = 'pid=; while read -r line; do pid=$line; done; [ -z "$pid" ] || { kill -9 "$pid"; sleep 0.5; }; rm -rf -- "$1"'

IN_SERVICE = (
    "-server", "-Xms1G", "-Xmx1G", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20", "-XX:InitiatingHeapOccupancyPercent=35",
    "-XX:+ExplicitGCInvokesConcurrent",
)  # fmt: skip
"""What `kafka-server-start.sh` and `kafka-run-class.sh` of Kafka 4 run the broker with.

Compiled in full it takes two thirds of the CPU once it is warm. And with the small heap of tests, collected by one
thread, it stands still for 10 to 20 ms each 1.5 s at 1,000 transactions a second, which is 1 % of them.
"""

_LOG4J = """\
status = warn
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d %p %m (%c)%n
rootLogger.level = info
rootLogger.appenderRef.out.ref = out
# Hundreds of lines of settings at each start.
logger.config.name = org.apache.kafka.common.config.AbstractConfig
logger.config.level = warn
"""


class KafkaUnavailableError(Exception):
    """Apache Kafka cannot be had on this machine; the message is one line that says what is missing."""


class KafkaServerError(Exception):
    """Apache Kafka is there but did not do as told; the message ends with the last lines of its log."""


SECURED = ("SSL", "SASL_PLAINTEXT", "SASL_SSL")  # security protocols, each with a listener of its own
SCRAM = "SCRAM-SHA-512"


@dataclass(frozen=True)
class Secured:
    """What the listeners of `SECURED` need."""

    certificate: Path  # private key and certificate of the broker, PEM, in one file
    passwords: Mapping[str, str]  # user: password, for PLAIN and for SCRAM-SHA-512


def kafka_version() -> str:
    """The version that `kafka-pom.xml` pins."""
    found = re.search(r"<kafka\.version>([^<]+)<", POM.read_text())
    if not found:
        msg = f"{POM.name} names no kafka.version"
        raise KafkaServerError(msg)
    return found[1]


@functools.cache
def java() -> str:
    """The Java to run: that of JAVA_HOME, else the first on PATH.

    Raises:
        KafkaUnavailableError: there is none, or it is older than Kafka 4 takes.
    """
    home = os.environ.get("JAVA_HOME")
    found = shutil.which("java", path=f"{home}/bin") if home else shutil.which("java")
    if found is None:
        where = f"JAVA_HOME={home} has no bin/java" if home else "there is no java on PATH"
        msg = f"Apache Kafka {kafka_version()} needs Java {JAVA_NEEDED} or later, and {where}: install a JRE"
        raise KafkaUnavailableError(msg)
    said = subprocess.run([found, "-version"], capture_output=True, text=True, check=False, timeout=60)
    version = re.search(r'version "(?:1\.)?(\d+)', said.stderr + said.stdout)
    if version is None or int(version[1]) < JAVA_NEEDED:
        what = f"is Java {version[1]}" if version else f"does not tell its version (exit code {said.returncode})"
        msg = f"Apache Kafka {kafka_version()} needs Java {JAVA_NEEDED} or later, and {found} {what}"
        raise KafkaUnavailableError(msg)
    return found


def cache_dir() -> Path:
    """Where what Maven makes is kept between runs, outside the tree.

    Raises:
        KafkaUnavailableError: no such place is known.
    """
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        msg = "there is no home directory to keep Apache Kafka's jars in: set XDG_CACHE_HOME"
        raise KafkaUnavailableError(msg) from None
    return cache / "redflag"


def jars_dir() -> Path:
    """Where the broker's jars are kept: one directory for each version of `kafka-pom.xml`.

    Raises:
        KafkaUnavailableError: no such place is known.
    """
    return cache_dir() / f"kafka-{kafka_version()}-{hashlib.sha256(POM.read_bytes()).hexdigest()[:8]}"


def check_available() -> bool:
    """Looks whether Apache Kafka can be run here, without fetching anything.

    Returns:
        Whether its jars are already in the cache; if not, the first start fetches them.

    Raises:
        KafkaUnavailableError: Java is missing or too old, or neither jars nor Maven are there.
    """
    java()
    if jars_dir().is_dir():
        return True
    if shutil.which("mvn") is None:
        msg = f"the jars of Apache Kafka {kafka_version()} are fetched with Maven, and there is no mvn on PATH"
        raise KafkaUnavailableError(msg)
    return False


def fetch_jars() -> Path:
    """The directory of the broker's jars, fetched with Maven if it is not there yet.

    Raises:
        KafkaUnavailableError: something is missing, or Maven failed; the message has its last lines.
    """
    if check_available():
        return jars_dir()
    goal = ["org.apache.maven.plugins:maven-dependency-plugin:copy-dependencies", "-DincludeScope=runtime"]
    fetching = f"fetch Apache Kafka {kafka_version()}"
    return run_maven(POM, jars_dir(), fetching, lambda into: [*goal, f"-DoutputDirectory={into}"])


def run_maven(pom: Path, directory: Path, doing: str, goals: Callable[[Path], list[str]]) -> Path:
    """The directory that Maven fills once; `goals` says with which goals and options it fills the one it is given.

    Processes that come at the same time run it once: one holds the lock, the others wait. The directory takes its
    name only when it is complete.

    Raises:
        KafkaUnavailableError: Maven failed, or there is no place; `doing` is what the line says it could not do.
    """
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        lock = Path(f"{directory}.lock").open("w")  # noqa: SIM115, the with below closes it
    except OSError as err:
        msg = f"Apache Kafka's jars cannot be kept in {directory.parent} ({err.strerror}): set XDG_CACHE_HOME"
        raise KafkaUnavailableError(msg) from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if directory.is_dir():
            return directory
        # A run that was killed has left its directory; nobody else can be at work while we hold the lock.
        for left in directory.parent.glob(f"{directory.name}.part-*"):
            shutil.rmtree(left)
        part = Path(tempfile.mkdtemp(prefix=f"{directory.name}.part-", dir=directory.parent))
        try:
            # --strict-checksums: a jar that does not match its published checksum is an error, not a warning.
            command = ["mvn", "--batch-mode", "--quiet", "--strict-checksums", "--file", str(pom), *goals(part)]
            try:
                done = subprocess.run(
                    command, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                    text=True, timeout=FETCH_TIMEOUT_S,
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                msg = f"Maven did not {doing} within {FETCH_TIMEOUT_S} s"
                raise KafkaUnavailableError(msg) from None
            if done.returncode:
                said = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
                first = next((line for line in said.splitlines() if "ERROR" in line), said.strip())
                first = first.removeprefix("[ERROR] ").partition(" -> [Help")[0]
                msg = f"Maven could not {doing}: {first}"
                raise KafkaUnavailableError(msg)
            part.chmod(0o755)
            part.rename(directory)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return directory


@functools.cache
def class_archive(jars: Path) -> Path | None:
    """The archive of Kafka's classes for this Java and these jars, made by the first who asks: it takes 15 s.

    None where it cannot be kept: then Java reads the classes from the jars. A Java that it does not fit does that, too.
    """
    said = subprocess.run([java(), "-version"], capture_output=True, check=True, timeout=60).stderr
    archive = jars.with_name(f"{jars.name}-{hashlib.sha256(said).hexdigest()[:8]}.jsa")
    if archive.exists():
        return archive
    if not os.access(archive.parent, os.W_OK):
        return None
    with Path(f"{archive}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not archive.exists():
            part = Path(f"{archive}.part")
            part.unlink(missing_ok=True)  # of one that was killed as it wrote it
            with KafkaServer(archive_to=part) as server:
                server.stop(ARCHIVE_TIMEOUT_S)  # Java writes it as it ends
                if not part.exists():
                    print(f"{java()} made no archive of Kafka's classes:\n{server.log_tail(3)}", file=sys.stderr)
                    return None
            part.rename(archive)
    return archive


class KafkaServer:
    """One Apache Kafka broker (and controller), a process of its own on 127.0.0.1.

    `start()`, `kill()`, `stop()` and `restart()` may follow each other in any order: data and port stay the same
    until `close()`, which leaving the context calls. The broker ends, and its directory goes, with this process,
    even if this process is killed.

    Args:
        properties: broker settings that replace the ones here or Kafka's defaults, as in `{"message.max.bytes": 2000}`.
        heap: of the Java process, as `-Xmx` takes it; not of a `lasting` one.
        parent: where the temporary directory is made; by default where the system makes them.
        secured: with it there are listeners with TLS and passwords too; see `secured_bootstrap`.
        lasting: with the JVM's options that Kafka's own start script gives a broker in service, for measurements.
        archive_to: where Java writes an archive of the classes when it ends (`class_archive`), rather than use one.
    """

    def __init__(
        self,
        properties: Mapping[str, object] | None = None,
        *,
        heap: str = "384m",
        parent: Path | None = None,
        secured: Secured | None = None,
        lasting: bool = False,
        archive_to: Path | None = None,
    ) -> None:
        self.properties = dict(properties or {})
        self.heap = heap
        self.port = 0
        self._lasting = lasting
        self._secured = secured
        self._archive_to = archive_to
        self._secured_ports: dict[str, int] = {}
        self._cluster_id = f"redflag-{uuid.uuid4().hex[:14]}"
        self._parent = parent
        self._dir: Path | None = None
        self._guard: subprocess.Popen[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.RLock()  # chaos kills from one thread while another asks for the state

    @property
    def bootstrap(self) -> str:
        """What clients take as `bootstrap.servers`; known from the first start on."""
        if not self.port:
            msg = "this Kafka has not been started yet: it has no address"
            raise KafkaServerError(msg)
        return f"127.0.0.1:{self.port}"

    def secured_bootstrap(self, protocol: str) -> str:
        """The address of the listener with this security protocol, one of `SECURED`."""
        return f"127.0.0.1:{self._secured_ports[protocol]}"

    @property
    def pid(self) -> int | None:
        """The process id of the running broker; None while there is none."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    @property
    def directory(self) -> Path:
        """Holds the data (`data/`), `server.properties` and the log; gone after `close()`."""
        if self._dir is None:
            msg = "this Kafka has not been started yet, or was closed: it has no directory"
            raise KafkaServerError(msg)
        return self._dir

    @property
    def log_file(self) -> Path:
        """Everything the broker has said, over all its starts."""
        return self.directory / "kafka.log"

    def start(self) -> Self:
        """Starts the broker and returns once it answers; does nothing if it runs.

        Raises:
            KafkaUnavailableError: see `fetch_jars`.
            KafkaServerError: it ended or did not answer within 60 s; the message has the last lines of its log.
        """
        with self._lock:
            if self.pid is not None:
                return self
            jars = fetch_jars()
            if self._dir is not None:
                self._run(jars)
                return self
            # The ports are free when looked at, and may be taken by the time Kafka binds them: then others will do.
            for attempt in range(3):
                try:
                    self._prepare(jars)
                    self._run(jars)
                except BaseException as err:
                    self.close()
                    if attempt < 2 and isinstance(err, KafkaServerError) and "Address already in use" in str(err):
                        continue
                    raise
                break
            return self

    def kill(self) -> None:
        """SIGKILL: what the broker had not yet written is gone, clients see their connections break."""
        self._end(signal.SIGKILL)

    def stop(self, timeout_s: float = 15) -> None:
        """SIGTERM: a controlled shutdown; SIGKILL if that takes longer."""
        self._end(signal.SIGTERM, timeout_s)

    def restart(self) -> Self:
        """Starts again with the same data on the same port; stops the broker first if it runs."""
        self.stop()
        return self.start()

    def close(self) -> None:
        """Ends the broker at once and removes its data; a start after that begins anew."""
        with self._lock:
            self.kill()
            if self._guard is not None:
                self._guard.kill()
                self._guard.communicate()
            if self._dir is not None:
                shutil.rmtree(self._dir, ignore_errors=True)
            self._guard = self._dir = self._process = None
            self.port = 0

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def create_topics(self, topics: Mapping[str, int], config: Mapping[str, object] | None = None) -> None:
        """Makes topics, {name: partitions}, all with `config`, and waits until every partition has a leader."""
        create_topics(self.bootstrap, topics, config)

    def configure_topic(self, topic: str, config: Mapping[str, object]) -> None:
        """Changes settings of a topic that is there, as in `{"max.message.bytes": 2000}`."""
        entries = [
            ConfigEntry(name, str(value), incremental_operation=AlterConfigOpType.SET) for name, value in config.items()
        ]
        resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries)
        admin = _admin(self.bootstrap)  # its futures live no longer than it
        for future in admin.incremental_alter_configs([resource]).values():
            future.result(timeout=30)

    def log_tail(self, lines: int = 30) -> str:
        """The last lines of the log."""
        if self._dir is None or not self.log_file.exists():
            return ""
        return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-lines:])

    def _prepare(self, jars: Path) -> None:
        """Makes the directory with settings and formatted storage, and the guard over it."""
        self._dir = Path(tempfile.mkdtemp(prefix="redflag-kafka-", dir=self._parent))
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "redflag-kafka-guard", str(self._dir)],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            text=True, bufsize=1, start_new_session=True,
        )  # fmt: skip
        self.port, controller_port, *secured_ports = free_ports(2 + (len(SECURED) if self._secured else 0))
        self._secured_ports = dict(zip(SECURED, secured_ports, strict=False))
        listeners = {"PLAINTEXT": self.port, **self._secured_ports}
        advertised = ",".join(f"{name}://127.0.0.1:{port}" for name, port in listeners.items())
        settings = {
            "process.roles": "broker,controller",
            "node.id": NODE,
            "controller.quorum.voters": f"{NODE}@127.0.0.1:{controller_port}",
            "listeners": f"{advertised},CONTROLLER://127.0.0.1:{controller_port}",
            "advertised.listeners": advertised,
            "controller.listener.names": "CONTROLLER",
            "listener.security.protocol.map": ",".join(["CONTROLLER:PLAINTEXT", *(f"{n}:{n}" for n in listeners)]),
            "log.dirs": self._dir / "data",
            # One broker has one replica of everything; few partitions of the internal topics start faster.
            "offsets.topic.replication.factor": 1,
            "offsets.topic.num.partitions": 4,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "transaction.state.log.num.partitions": 4,
            "share.coordinator.state.topic.replication.factor": 1,
            "share.coordinator.state.topic.min.isr": 1,
            "share.coordinator.state.topic.num.partitions": 4,
            # A consumer group of one has nobody to wait for.
            "group.initial.rebalance.delay.ms": 0,
            # After SIGKILL the controller takes the new process for a double until the session of the old one is
            # over: at Kafka's 9 s, a restart takes 12 s.
            "broker.session.timeout.ms": 2000,
            "broker.heartbeat.interval.ms": 250,
            # Tests write transactions of long ago; Kafka would delete what is older than a week.
            "log.retention.ms": -1,
            # The cleaner takes its 128 MB at the start, from a heap that is small here.
            "log.cleaner.dedupe.buffer.size": 4 * 1024 * 1024,
        }
        scram: list[str] = []
        if self._secured is not None:
            settings |= _security(self._secured)
            for user, password in self._secured.passwords.items():
                scram += ["--add-scram", f"{SCRAM}=[name={user},password={password}]"]
        settings |= self.properties
        config = self._dir / "server.properties"
        config.touch(mode=0o600)
        config.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        (self._dir / "log4j2.properties").write_text(_LOG4J)
        data = self._dir / "data"
        if self._secured is not None:  # users stand in the storage, too
            self._format(jars, config, scram)
        elif not format_again(data, self.properties, NODE, self._cluster_id):
            self._format(jars, config, [])
            remember(data, self.properties)

    def _format(self, jars: Path, config: Path, scram: list[str]) -> None:
        done = subprocess.run(
            self._java(jars, "kafka.tools.StorageTool", "format", "-c", str(config), "-t", self._cluster_id, *scram),
            cwd=self._dir, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=START_TIMEOUT_S,
        )  # fmt: skip
        if done.returncode:
            said = "\n".join(done.stdout.splitlines()[-30:])
            msg = f"Apache Kafka could not format its storage:\n{said}"
            raise KafkaServerError(msg)

    def _java(self, jars: Path, *arguments: str) -> list[str]:
        if self._lasting:
            options = ["-Xshare:auto", *IN_SERVICE]
        else:  # C1 only: half the CPU time of a start, which two cores feel
            options = ["-Xshare:auto", "-XX:+UseSerialGC", f"-Xmx{self.heap}", "-XX:TieredStopAtLevel=1"]
        options += ["-Djava.awt.headless=true", f"-Dlog4j2.configurationFile={self.directory / 'log4j2.properties'}"]
        if self._archive_to is None:
            archive = class_archive(jars)
            options += [f"-XX:SharedArchiveFile={archive}"] if archive else []
        elif "kafka.Kafka" in arguments:
            options += [f"-XX:ArchiveClassesAtExit={self._archive_to}"]
        return [java(), *options, "-cp", f"{jars}/*", *arguments]

    def _run(self, jars: Path) -> None:
        command = self._java(jars, "kafka.Kafka", str(self.directory / "server.properties"))
        with self.log_file.open("ab") as log:
            # A session of its own: Ctrl-C in the terminal is for the tests, who end the broker when they are done.
            self._process = subprocess.Popen(
                command, cwd=self.directory, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        self._tell_guard(str(self._process.pid))
        try:
            self._wait_until_ready()
        except BaseException:
            self.kill()
            raise

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self.pid is None:
                code = self._process.returncode if self._process else None
                msg = f"Apache Kafka ended while it started (exit code {code}); its log ends:\n{self.log_tail()}"
                raise KafkaServerError(msg)
            if _answers(self.port):
                with contextlib.suppress(KafkaException):
                    # The id tells our broker from another that was quicker to take the port.
                    metadata = _admin(self.bootstrap).list_topics(timeout=1)
                    if metadata.brokers and metadata.cluster_id == self._cluster_id:
                        return
            time.sleep(0.05)
        msg = f"Apache Kafka did not answer within {START_TIMEOUT_S} s; its log ends:\n{self.log_tail()}"
        raise KafkaServerError(msg)

    def _end(self, number: signal.Signals, timeout_s: float = 15) -> None:
        with self._lock:
            if self._process is None or self._process.returncode is not None:
                return
            self._process.send_signal(number)
            try:
                self._process.wait(timeout=timeout_s)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            # From here on the id may become another process's.
            self._tell_guard("")

    def _tell_guard(self, pid: str) -> None:
        if self._guard is not None and self._guard.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._guard.stdin.write(f"{pid}\n")


def _security(secured: Secured) -> dict[str, object]:
    """The broker's settings for TLS and passwords."""
    modules = "org.apache.kafka.common.security"
    users = " ".join(f'user_{user}="{password}"' for user, password in secured.passwords.items())
    plain = f"{modules}.plain.PlainLoginModule required {users};"
    scram = f"{modules}.scram.ScramLoginModule required;"
    settings: dict[str, object] = {
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": secured.certificate,
        "sasl.enabled.mechanisms": f"PLAIN,{SCRAM}",
    }
    for listener in ("sasl_plaintext", "sasl_ssl"):
        settings[f"listener.name.{listener}.plain.sasl.jaas.config"] = plain
        settings[f"listener.name.{listener}.{SCRAM.lower()}.sasl.jaas.config"] = scram
    return settings


def create_topics(bootstrap: str, topics: Mapping[str, int], config: Mapping[str, object] | None = None) -> None:
    """Makes topics, {name: partitions}, on any Kafka, and waits until every partition has a leader.

    Raises:
        KafkaException: the broker refused, for instance because the topic is there.
        TimeoutError: a partition had no leader after 30 s.
    """
    admin = _admin(bootstrap)
    wanted = [
        NewTopic(name, count, config={k: str(v) for k, v in (config or {}).items()}) for name, count in topics.items()
    ]
    for future in admin.create_topics(wanted, operation_timeout=30).values():
        future.result(timeout=40)
    await_topics(lambda name: admin.list_topics(name, timeout=5), topics)


def await_topics(ask: Callable[[str], object], topics: Mapping[str, int], timeout_s: float = 30) -> None:
    """Asks again until every partition of every topic is there and has a leader."""
    deadline = time.monotonic() + timeout_s
    for name, count in topics.items():
        while True:
            metadata = ask(name)
            found = metadata.topics[name]  # type: ignore[attr-defined]
            if found.error is None and sum(p.leader >= 0 for p in found.partitions.values()) >= count:
                break
            if time.monotonic() > deadline:
                there = len(found.partitions)
                msg = f"topic {name} has {there} of {count} partitions after {timeout_s:g} s: {found.error}"
                raise TimeoutError(msg)
            time.sleep(0.05)


def _admin(bootstrap: str) -> AdminClient:
    # Silent: a broker that was just killed is nothing to report.
    return AdminClient({"bootstrap.servers": bootstrap, "log_level": 0})


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, from below those that the system gives to outgoing connections.

    Else, while a broker is down, a client that looks for it could be given its port and keep it from coming back.
    """
    low, high = 20_000, 32_000
    with contextlib.suppress(OSError, ValueError):
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
        if first > 12_000:
            low, high = max(10_000, first - 12_000), first
    candidates: Iterator[int] = iter(random.sample(range(low, high), min(high - low, 1000)))
    found: list[int] = []
    for port in candidates:
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    msg = f"no {count} free ports between {low} and {high} on 127.0.0.1"
    raise KafkaServerError(msg)


def main() -> None:
    """Runs a broker until Ctrl-C or SIGTERM; the first line on standard output is its address."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.kafka_server", description=__doc__.splitlines()[0])
    parser.add_argument("--fetch", action="store_true", help="only fetch the jars, and print where they are")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a broker setting")
    arguments = parser.parse_args()
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _signum, _frame: ended.set())
    try:
        if arguments.fetch:
            print(fetch_jars())
            return
        with KafkaServer(dict(pair.split("=", 1) for pair in arguments.set)) as kafka:
            print(kafka.bootstrap, flush=True)
            print(f"Apache Kafka {kafka_version()}, pid {kafka.pid}, log {kafka.log_file}", file=sys.stderr, flush=True)
            ended.wait()
    except KafkaUnavailableError as err:
        sys.exit(str(err))


if __name__ == "__main__":
    main()
