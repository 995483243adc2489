"""The detector as `docker-compose.yml` starts it, as far as that can be had without Docker, on a real Kafka.

With its environment and command, an unprivileged user, and a file system that is read-only but for volume and /tmp; the
profiles' kernels are those that were compiled into the image, by another user and for any processor of its kind.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from confluent_kafka import Producer

from dataflow.connectors import kafka_source
from dataflow.process import metrics_server
from dataflow.settings import Settings
from dataflow.start_report import METRICS_ON
from tests.chaos.__main__ import train_model
from tests.support.builders import raw
from tests.support.kafka_server import KafkaServer
from tests.support.reading import read_all

ROOT = Path(__file__).parent.parent
OBSERVABILITY = ROOT / "observability"
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
DETECTOR: dict[str, Any] = COMPOSE["services"]["detector"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
READABLE, WARM_UP = "chmod --recursive a+rX .", "python -m dataflow.kernels"
"""What the image's RUN does to what was copied."""


def environment(dockerfile: str) -> dict[str, str]:
    """What the ENV lines of a Dockerfile, or of its beginning, set."""
    lines = re.findall(r"^ENV (.*)$", dockerfile, re.MULTILINE)
    return dict(each.split("=", 1) for line in lines for each in line.split())


BUILD = environment(DOCKERFILE.partition(WARM_UP)[0])
"""The environment in which the kernels are compiled."""
IMAGE = environment(DOCKERFILE)
"""The environment of what runs in the image."""
FROM_CACHE = """
from dataflow import kernels
from dataflow.profiles import compilation, user
kernels.warm_up()
print(compilation.FOLDER, sum(user.observe.stats.cache_hits.values()))
"""

# A root of its own: the system's programs, what is copied into the image, and Python where it is, all read-only.
_CONTAINER = """
set -eu
umask 022  # as when an image is built, whatever this machine's is
root=$1 model=$2 volume=$3 mountpoint=$4 tree=$5 mode=$6
shift 6
mount -t tmpfs -o mode=755 tmpfs "$root"
for each in /usr /bin /sbin /lib /lib64 /etc /proc /dev; do
    if [ -L "$each" ]; then cp -P "$each" "$root$each"
    elif [ -d "$each" ]; then mkdir "$root$each"; mount --rbind "$each" "$root$each"; fi
done
mkdir "$root/tmp" "$root/redflag" "$root$mountpoint"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
while [ "$1" != -- ]; do
    mkdir -p "$root$1"
    mount --bind "$1" "$root$1"
    mount -o remount,bind,ro "$root$1"
    shift
done
shift
for each in dataflow training; do
    mkdir "$root/redflag/$each"
    mount --bind "$tree/$each" "$root/redflag/$each"
    mount -o "remount,bind,$mode" "$root/redflag/$each"
done
cp "$model" "$root/redflag/fraud_model.pkl"
cp "${model%.pkl}.json" "$root/redflag/fraud_model.json"
mount --bind "$volume" "$root$mountpoint"
mount -o "remount,$mode" "$root"
exec chroot "$root" /bin/sh -c 'cd /redflag && exec "$@"' sh "$@"
"""
_PYTHON = [str(Path(sys.prefix)), str(Path(sys.prefix).resolve()), str(Path(sys.base_prefix))]


def unshared() -> list[str]:
    """What gives a process mounts of its own."""
    return ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]


class Container:
    """What compose would start, without Docker."""

    def __init__(self, directory: Path, model: Path, kernels: Path):
        """Builds it in `directory`; `kernels` keeps what was compiled, from one run of the tests to the next."""
        if not shutil.which("setpriv") or subprocess.run([*unshared(), "true"], check=False).returncode:
            pytest.skip("a process cannot be given mounts of its own here")
        (self.mountpoint,) = (volume.split(":")[1] for volume in DETECTOR["volumes"])
        self._root = directory / "root"
        self._root.mkdir()
        self._volume = directory / "volume"
        self._volume.mkdir()
        self._model = model
        self._tree = directory / "tree"
        for copied in re.findall(r"^COPY (\w+) \./\w+$", DOCKERFILE, re.MULTILINE):
            shutil.copytree(ROOT / copied, self._tree / copied, ignore=shutil.ignore_patterns("__pycache__"))
        for path in [self._tree, *self._tree.rglob("*")]:
            path.chmod(0o700 if path.is_dir() else 0o600)  # as in the clone of one whose umask is 077
        self._compile_kernels(kernels)
        self._user = re.findall(r"useradd .*--uid (\d+)", DOCKERFILE)[0] if os.geteuid() == 0 else None
        if self._user is not None:
            os.chown(self._volume, int(self._user), int(self._user))

    def _compile_kernels(self, kept: Path) -> None:
        """As the Dockerfile does, as root and where it can be written to."""
        assert re.search(rf"&& {re.escape(READABLE)} .*&& {WARM_UP} ", DOCKERFILE, re.DOTALL)
        cache = self._tree / "dataflow" / "profiles" / "__pycache__"
        shutil.copytree(kept, cache, dirs_exist_ok=True)
        subprocess.run(
            self._inside("rw", "sh", "-c", f'{READABLE} && exec "$0" "$@"', sys.executable, *WARM_UP.split()[1:]),
            env={"PATH": os.environ["PATH"], **BUILD}, check=True, timeout=300,
        )  # fmt: skip
        shutil.rmtree(kept)
        shutil.copytree(cache, kept)

    def command(self, *command: str) -> list[str]:
        privileges = ["setpriv", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
        if self._user is not None:
            privileges += [f"--reuid={self._user}", f"--regid={self._user}", "--clear-groups"]
        return self._inside("ro", *privileges, *command)

    def _inside(self, mode: str, *command: str) -> list[str]:
        directories = [self._root, self._model, self._volume, self.mountpoint, self._tree]
        script = ["sh", "-c", _CONTAINER, "container", *map(str, directories), mode, *dict.fromkeys(_PYTHON), "--"]
        return [*unshared(), *script, *command]


@contextlib.contextmanager
def as_when_an_image_is_built() -> Iterator[None]:
    """Files that are made can be read by all, unless the program says otherwise."""
    before = os.umask(0o022)
    try:
        yield
    finally:
        os.umask(before)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def test_the_detector_decides_and_serves_metrics_as_compose_starts_it(
    kafka_server: KafkaServer, pytestconfig: pytest.Config, tmp_path: Path
) -> None:
    assert DETECTOR["read_only"]
    assert DETECTOR["tmpfs"] == ["/tmp"]  # noqa: S108
    assert "USER redflag" in DOCKERFILE
    (topics,) = re.findall(r"for topic in ([\w ]+);", COMPOSE["services"]["topics"]["command"][0])
    kafka_server.create_topics(dict.fromkeys(topics.split(), 4))
    with as_when_an_image_is_built():
        model = train_model(tmp_path / "model.pkl")
    container = Container(tmp_path, model, pytestconfig.cache.mkdir("image-kernels"))

    refused = subprocess.run(
        container.command("sh", "-c", "touch /redflag/x || touch /redflag/dataflow/x"),
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert refused.returncode != 0
    assert refused.stderr.count("Read-only file system") == 2, refused.stderr

    folder, hits = subprocess.run(
        container.command(sys.executable, "-c", FROM_CACHE), env={"PATH": os.environ["PATH"], **IMAGE},
        capture_output=True, text=True, check=True, timeout=60,
    ).stdout.split()  # fmt: skip
    assert folder.startswith(IMAGE["XDG_CACHE_HOME"])
    assert hits == "1"

    # The same as in the file, but for what differs here: the broker's address, and a port that is free.
    given = {name: re.sub(r"\$\{\w+:-(.*)\}", r"\1", str(value)) for name, value in DETECTOR["environment"].items()}
    assert given["RECOVERY_DIR"] == container.mountpoint
    assert given["METRICS_ADDRESS"] == "0.0.0.0:3030"
    assert DETECTOR["ports"] == ["127.0.0.1:3030:3030"]
    given |= {"KAFKA_BROKERS": kafka_server.bootstrap, "METRICS_ADDRESS": "0.0.0.0:0", "RECOVERY_INTERVAL": "1"}
    image = {"PATH": os.environ["PATH"], **IMAGE}
    log = tmp_path / "log"
    python, *arguments = DETECTOR["command"]
    assert python == "python"
    with log.open("wb") as out:
        process = subprocess.Popen(
            container.command(sys.executable, *arguments), env=image | given, stdout=out, stderr=out
        )
    try:
        wait_for(lambda: kafka_source.READY in log.read_text(), process, log)
        (port,) = re.findall(rf"{METRICS_ON}http://0\.0\.0\.0:(\d+)/metrics", log.read_text())
        settings = Settings(brokers=kafka_server.bootstrap)
        producer = Producer({"bootstrap.servers": settings.brokers})
        for number in range(20):
            producer.produce(settings.transactions_topic, key=b"ann", value=raw("ann", n=number))
        assert producer.flush(20) == 0
        outputs = [settings.alerts_topic, settings.classified_topic]
        wait_for(lambda: len(read_all(settings, outputs)) == 20, process, log)

        test, *check = DETECTOR["healthcheck"]["test"]
        assert (test, check[0]) == ("CMD", "python")
        healthy = [sys.executable, *(argument.replace(":3030/", f":{port}/") for argument in check[1:])]
        subprocess.run(healthy, check=True, timeout=60)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            metrics = answer.read().decode()
        assert re.search(r"^redflag_records_written_total\{.*\} \d", metrics, re.MULTILINE)
        assert "\nredflag_end_to_end_latency_seconds_count 20.0\n" in metrics
        process.terminate()
        assert process.wait(30) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()
    assert (tmp_path / "volume" / "redflag.json").is_file()
    assert "Traceback" not in log.read_text()


def test_a_detector_that_ends_with_any_status_but_0_is_started_again() -> None:
    assert DETECTOR["restart"] == "on-failure"


def test_everything_that_is_published_is_on_loopback() -> None:
    ports = [port for service in COMPOSE["services"].values() for port in service.get("ports", [])]
    assert len(ports) == 6
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []
    assert len({port.split(":")[1] for port in ports}) == len(ports)


def test_the_detector_is_healthy_when_it_is_ready() -> None:
    assert f"http://127.0.0.1:3030{metrics_server.READY}'" in DETECTOR["healthcheck"]["test"][-1]


def test_prometheus_scrapes_detector_and_console_where_they_serve() -> None:
    config = yaml.safe_load((OBSERVABILITY / "prometheus.yml").read_text())
    jobs = config["scrape_configs"]
    serving = (("detector", "METRICS_ADDRESS"), ("analysts-console", "CONSOLE_METRICS_ADDRESS"))
    for job, (service, setting) in zip(jobs, serving, strict=True):
        (static,) = job["static_configs"]
        port = COMPOSE["services"][service]["environment"][setting].rpartition(":")[2]
        assert static["targets"] == [f"{service}:{port}"]
        assert job.get("metrics_path", "/metrics") == metrics_server.METRICS


def test_the_console_is_healthy_when_it_is_ready_and_reads_the_flows_metrics() -> None:
    console = COMPOSE["services"]["analysts-console"]
    assert f"http://127.0.0.1:3081{metrics_server.READY}'" in console["healthcheck"]["test"][-1]
    assert console["environment"]["CONSOLE_METRICS_ADDRESS"] == "0.0.0.0:3081"
    port = DETECTOR["environment"]["METRICS_ADDRESS"].rpartition(":")[2]
    assert console["environment"]["CONSOLE_FLOW_METRICS"] == f"detector:{port}"
    assert not any("3081" in published for published in console["ports"])  # Prometheus is in the same network


def test_grafana_finds_data_source_and_dashboard_where_they_are_mounted_and_nobody_can_log_in() -> None:
    grafana = COMPOSE["services"]["grafana"]
    mounted = dict(volume.split(":")[:2][::-1] for volume in grafana["volumes"])
    for path in mounted.values():
        assert not path.startswith("./") or (ROOT / path).is_dir(), path
    provisioning = ROOT / mounted["/etc/grafana/provisioning"]
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())["datasources"]
    host, port = source["url"].removeprefix("http://").split(":")
    assert COMPOSE["services"][host]["ports"] == [f"127.0.0.1:{port}:{port}"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "redflag.yml").read_text())["providers"]
    dashboards = provider["options"]["path"]
    home = Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert str(home.parent) == dashboards
    assert (ROOT / mounted[dashboards] / home.name).is_file()
    assert grafana["environment"]["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert grafana["environment"]["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert not any("PASSWORD" in name for name in grafana["environment"])


def test_no_password_stands_in_the_file() -> None:
    for service in COMPOSE["services"].values():
        for name, value in service.get("environment", {}).items():
            assert "PASSWORD" not in name or value == f"${{{name}:-}}", name  # handed on from the environment


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="needs docker-compose")
def test_docker_compose_takes_the_file() -> None:
    found = subprocess.run(
        ["docker-compose", "--file", str(ROOT / "docker-compose.yml"), "config"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert set(yaml.safe_load(found.stdout)["services"]) == set(COMPOSE["services"])
