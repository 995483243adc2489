"""The detector as `docker-compose.yml` starts it, as far as that can be had without Docker, on a real Kafka.

With its environment and command, an unprivileged user, and a file system that is read-only but for volume and /tmp.
"""

import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from confluent_kafka import Producer

from dataflow.connectors import kafka_source
from dataflow.settings import Settings
from dataflow.start_report import METRICS_ON
from tests.builders import raw
from tests.chaos.__main__ import train_model
from tests.kafka_server import KafkaServer
from tests.reading import read_all

ROOT = Path(__file__).parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
DETECTOR: dict[str, Any] = COMPOSE["services"]["detector"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()

# A root of its own: the system's programs, what is copied into the image, and Python where it is, all read-only.
_CONTAINER = """
set -eu
root=$1 model=$2 volume=$3 mountpoint=$4 tree=$5
shift 5
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
    mount -o remount,bind,ro "$root/redflag/$each"
done
cp "$model" "$root/redflag/fraud_model.pkl"
cp "${model%.pkl}.json" "$root/redflag/fraud_model.json"
mount --bind "$volume" "$root$mountpoint"
mount -o remount,ro "$root"
exec chroot "$root" /bin/sh -c 'cd /redflag && exec "$@"' sh "$@"
"""
_PYTHON = [str(Path(sys.prefix)), str(Path(sys.prefix).resolve()), str(Path(sys.base_prefix))]


def unshared() -> list[str]:
    """What gives a process mounts of its own."""
    return ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]


class Container:
    """What compose would start, without Docker."""

    def __init__(self, directory: Path, model: Path):
        if not shutil.which("setpriv") or subprocess.run([*unshared(), "true"], check=False).returncode:
            pytest.skip("a process cannot be given mounts of its own here")
        (self.mountpoint,) = (volume.split(":")[1] for volume in DETECTOR["volumes"])
        self._root = directory / "root"
        self._root.mkdir()
        self._volume = directory / "volume"
        self._volume.mkdir()
        self._model = model
        self._user = re.findall(r"useradd .*--uid (\d+)", DOCKERFILE)[0] if os.geteuid() == 0 else None
        if self._user is not None:
            os.chown(self._volume, int(self._user), int(self._user))

    def command(self, *command: str) -> list[str]:
        privileges = ["setpriv", "--no-new-privs", "--bounding-set=-all", "--inh-caps=-all"]
        if self._user is not None:
            privileges += [f"--reuid={self._user}", f"--regid={self._user}", "--clear-groups"]
        directories = [self._root, self._model, self._volume, self.mountpoint, ROOT]
        script = ["sh", "-c", _CONTAINER, "container", *map(str, directories), *dict.fromkeys(_PYTHON), "--"]
        return [*unshared(), *script, *privileges, *command]


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def test_the_detector_decides_and_serves_metrics_as_compose_starts_it(
    kafka_server: KafkaServer, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    assert DETECTOR["read_only"]
    assert DETECTOR["tmpfs"] == ["/tmp"]  # noqa: S108
    assert "USER redflag" in DOCKERFILE
    (topics,) = re.findall(r"for topic in ([\w ]+);", COMPOSE["services"]["topics"]["command"][0])
    kafka_server.create_topics(dict.fromkeys(topics.split(), 4))
    container = Container(tmp_path, train_model(tmp_path / "model.pkl"))

    refused = subprocess.run(
        container.command("sh", "-c", "touch /redflag/x || touch /redflag/dataflow/x"),
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert refused.returncode != 0
    assert refused.stderr.count("Read-only file system") == 2, refused.stderr

    # The same as in the file, but for what differs here: the broker's address, and a port that is free.
    given = {name: re.sub(r"\$\{\w+:-(.*)\}", r"\1", str(value)) for name, value in DETECTOR["environment"].items()}
    assert given["RECOVERY_DIR"] == container.mountpoint
    assert given["METRICS_ADDRESS"] == "0.0.0.0:3030"
    assert DETECTOR["ports"] == ["127.0.0.1:3030:3030"]
    given |= {"KAFKA_BROKERS": kafka_server.bootstrap, "METRICS_ADDRESS": "0.0.0.0:0", "RECOVERY_INTERVAL": "1"}
    image = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}
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
        process.terminate()
        assert process.wait(30) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()
    assert (tmp_path / "volume" / "redflag.json").is_file()
    assert "Traceback" not in log.read_text()


def test_a_detector_that_ends_with_any_status_but_0_is_started_again() -> None:
    assert DETECTOR["restart"] == "on-failure"
