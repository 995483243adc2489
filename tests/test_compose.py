"""The detector as `docker-compose.yml` starts it, as far as that can be had without Docker, on a real Kafka.

With its environment and command, in a `tests.support.compose_container.Container`; and what else the file says.
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

import pytest
import yaml
from confluent_kafka import Producer

from dataflow.connectors import kafka_source
from dataflow.process import metrics_server
from dataflow.settings import Settings
from dataflow.start_report import METRICS_ON
from tests.chaos.__main__ import train_model
from tests.support.builders import raw
from tests.support.compose_container import (
    COMPOSE,
    DOCKERFILE,
    IMAGE,
    ROOT,
    SERVICES,
    Container,
    as_when_an_image_is_built,
    environment_of,
)  # fmt: skip
from tests.support.kafka_server import KafkaServer
from tests.support.reading import read_all

OBSERVABILITY = ROOT / "observability"
DETECTOR = SERVICES["detector"]
CONSOLE = "analysts-console"
FROM_CACHE = """
from dataflow import kernels
from dataflow.profiles import compilation, user
kernels.warm_up()
print(compilation.FOLDER, sum(user.observe.stats.cache_hits.values()))
"""
PROMOTE = """
import os, time
from pathlib import Path
from console.rules.rules_file import RulesFile
from console.store import Store
file = RulesFile(Path(os.environ["RULES_FILE"]), Store(os.environ["CONSOLE_DATABASE"]).database, 1.0, time.time)
seen = file.notice()
version = file.write(seen.content + b"# edited\\n", seen.digest, "promote", "eve", "to see")
print(file.examine(version.content)[0].version, flush=True)
os._exit(0)  # the database's thread goes on
"""


def run(container: Container, service: str, *command: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Runs a command as a service's."""
    environ = {"PATH": os.environ["PATH"], **IMAGE, **environ}
    command = tuple(container.command(service, *command))
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=60)


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

    refused = run(container, "detector", "sh", "-c", "touch /redflag/x || touch /redflag/dataflow/x || touch /rules/x")
    assert refused.returncode != 0
    assert refused.stderr.count("Read-only file system") == 3, refused.stderr

    folder, hits = run(container, "detector", sys.executable, "-c", FROM_CACHE).stdout.split()
    assert folder.startswith(IMAGE["XDG_CACHE_HOME"])
    assert hits == "1"

    placed = run(container, "rules", sys.executable, *SERVICES["rules"]["command"][1:])
    assert placed.returncode == 0, placed.stderr
    assert "/rules/rules.toml is new from dataflow/rules.toml" in placed.stdout

    # The same as in the file, but for what differs here: the broker's address, and a port that is free.
    given = environment_of("detector")
    assert given["RECOVERY_DIR"] == "/recovery"
    assert given["METRICS_ADDRESS"] == "0.0.0.0:3030"
    assert DETECTOR["ports"] == ["127.0.0.1:3030:3030"]
    given |= {"KAFKA_BROKERS": kafka_server.bootstrap, "METRICS_ADDRESS": "0.0.0.0:0", "RECOVERY_INTERVAL": "1"}
    image = {"PATH": os.environ["PATH"], **IMAGE}
    log = tmp_path / "log"
    python, *arguments = DETECTOR["command"]
    assert python == "python"
    with log.open("wb") as out:
        process = subprocess.Popen(
            container.command("detector", sys.executable, *arguments), env=image | given, stdout=out, stderr=out
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

        # What the console writes, the running detector takes up.
        promoted = run(container, CONSOLE, sys.executable, "-c", PROMOTE, **environment_of(CONSOLE))
        assert promoted.returncode == 0, promoted.stderr
        wait_for(lambda: f"rules {promoted.stdout.strip()} from /rules/rules.toml" in log.read_text(), process, log)
        process.terminate()
        assert process.wait(30) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()
    assert (container.volumes / "recovery" / "redflag.json").is_file()
    assert "Traceback" not in log.read_text()


def test_console_and_detector_share_the_rules_which_an_image_brings_first() -> None:
    first = {"rules": {"condition": "service_completed_successfully"}}
    for service, mounted in (("rules", "rules:/rules"), ("detector", "rules:/rules:ro"), (CONSOLE, "rules:/rules")):
        assert mounted in SERVICES[service]["volumes"]
        if service != "rules":
            assert SERVICES[service]["environment"]["RULES_FILE"] == "/rules/rules.toml"
            assert first.items() <= SERVICES[service]["depends_on"].items()
    assert SERVICES["rules"]["restart"] == "no"  # else one that fails is started for ever, and `up` waits


def test_the_user_of_the_image_owns_where_volumes_are_mounted() -> None:
    (made,) = re.findall(r"install --directory --owner=redflag --mode=0700 (.*)$", DOCKERFILE, re.MULTILINE)
    ours = [service for service in SERVICES.values() if service["image"] == SERVICES["detector"]["image"]]
    mountpoints = {volume.split(":")[1] for service in ours for volume in service.get("volumes", [])}
    assert mountpoints == set(made.split())


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
