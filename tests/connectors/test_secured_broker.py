"""A broker with TLS and passwords: the whole flow on it, and what a wrong setting is told."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
from confluent_kafka import Producer

from dataflow.connectors import kafka_clients
from dataflow.settings import Settings
from tests.process.test_lifecycle import Flow, wait_for
from tests.support.builders import raw
from tests.support.certificates import Authority
from tests.support.kafka_server import SCRAM, SECURED, KafkaServer, Secured
from tests.support.reading import read_all

PASSWORD, WRONG_PASSWORD = "c0rrect-h0rse", "wr0ng-h0rse"
# A program that only asks the broker for a topic; its standard output is how many seconds that took.
ASK = (
    "import time\n"
    "from dataflow.process import lifecycle\n"
    "from dataflow.connectors.kafka_clients import count_partitions\n"
    "from dataflow.settings import Settings, UserError\n"
    "lifecycle.report_mistakes()\n"
    "began = time.monotonic()\n"
    "try:\n"
    "    assert count_partitions(Settings.load(dotenv=None), 'there') == 3\n"
    "except UserError as error:\n"
    "    print(time.monotonic() - began)\n"
    "    lifecycle.fail(error)\n"
    "print(time.monotonic() - began)\n"
)


class Secure(NamedTuple):
    """A broker with a listener of each kind, and the files of certificate authorities: its own and another."""

    broker: KafkaServer
    authority: Path
    other_authority: Path


@pytest.fixture(scope="module")
def secure(apache_kafka: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secure]:
    directory = tmp_path_factory.mktemp("certificates")
    authority, other = Authority(directory, "authority"), Authority(directory, "other")
    # Issued to 127.0.0.1, not to localhost.
    certificate = authority.issue(directory / "broker.pem", "broker.example", "127.0.0.1")
    # Whoever uses TLS without a password shows a certificate of their own.
    mutual = {"listener.name.ssl.ssl.client.auth": "required"}
    mutual |= {"listener.name.ssl.ssl.truststore.type": "PEM"}
    mutual |= {"listener.name.ssl.ssl.truststore.location": str(authority.certificate)}
    with KafkaServer(mutual, secured=Secured(certificate, {"redflag": PASSWORD})) as broker:
        broker.create_topics({"there": 3})
        yield Secure(broker, authority.certificate, other.certificate)


def security(secure: Secure, **changes: str | None) -> dict[str, str]:
    """What a client needs for the broker, as librdkafka names it, with changes: None takes a property away."""
    right: dict[str, str | None] = {
        "security.protocol": "SASL_SSL",
        "ssl.ca.location": str(secure.authority),
        "sasl.mechanism": "PLAIN",
        "sasl.username": "redflag",
        "sasl.password": PASSWORD,
    }
    return {k: v for k, v in (right | {k.replace("_", "."): v for k, v in changes.items()}).items() if v is not None}


def as_environment(config: dict[str, str]) -> dict[str, str]:
    return {"KAFKA_CONFIG_" + name.upper().replace(".", "_"): value for name, value in config.items()}


class Case(NamedTuple):
    listener: str  # or an address
    changes: dict[str, str | None]
    says: tuple[str, ...]


OPEN: dict[str, str | None] = dict.fromkeys(("sasl.mechanism", "sasl.username", "sasl.password"))
PLAINTEXT = OPEN | {"security.protocol": None, "ssl.ca.location": None}
CASES = {
    "wrong password": Case(
        "SASL_SSL", {"sasl.password": WRONG_PASSWORD}, ("refuses this user or password", "KAFKA_CONFIG_SASL_PASSWORD")
    ),
    "wrong password, SCRAM": Case(
        "SASL_SSL",
        {"sasl.password": WRONG_PASSWORD, "sasl.mechanism": SCRAM},
        ("refuses this user or password", "KAFKA_CONFIG_SASL_PASSWORD"),
    ),
    "a mechanism that the broker does not take": Case(
        "SASL_SSL", {"sasl.mechanism": "SCRAM-SHA-256"}, ("not SCRAM-SHA-256", "KAFKA_CONFIG_SASL_MECHANISM")
    ),
    "no mechanism": Case("SASL_SSL", {"sasl.mechanism": None}, ("needs KAFKA_CONFIG_SASL_MECHANISM",)),
    "no user": Case("SASL_SSL", {"sasl.username": None}, ("KAFKA_CONFIG_SASL_USERNAME",)),
    "an unknown authority": Case(
        "SASL_SSL", {"ssl.ca.location": "other"}, ("cannot be verified", "KAFKA_CONFIG_SSL_CA_LOCATION", "other.pem")
    ),
    "only the authorities of the system": Case(
        "SASL_SSL", {"ssl.ca.location": None}, ("cannot be verified", "KAFKA_CONFIG_SSL_CA_LOCATION (unset")
    ),
    "a file of authorities that is not there": Case(
        "SASL_SSL", {"ssl.ca.location": "/nowhere/ca.pem"}, ("see KAFKA_CONFIG_SSL_CA_LOCATION",)
    ),
    "a certificate issued to another name": Case(
        "SASL_SSL by another name", {}, ("cannot be verified", "whether it is issued to the name in KAFKA_BROKERS")
    ),
    "no certificate of the client": Case(
        "SSL", OPEN | {"security.protocol": "SSL"}, ("wants a certificate", "KAFKA_CONFIG_SSL_CERTIFICATE_LOCATION")
    ),
    "neither TLS nor a password": Case(
        "SASL_SSL", PLAINTEXT, ("as if it expected TLS", "KAFKA_CONFIG_SECURITY_PROTOCOL (it is PLAINTEXT)")
    ),
    "a password without TLS": Case(
        "SASL_SSL",
        {"security.protocol": "SASL_PLAINTEXT"},
        ("as if it expected TLS", "KAFKA_CONFIG_SECURITY_PROTOCOL (it is SASL_PLAINTEXT)"),
    ),
    "TLS without a password": Case(
        "SASL_SSL",
        OPEN | {"security.protocol": "SSL"},
        ("expected a user and a password", "KAFKA_CONFIG_SECURITY_PROTOCOL (it is SSL)", "KAFKA_CONFIG_SASL_MECHANISM"),
    ),
    "no password": Case(
        "SASL_PLAINTEXT",
        PLAINTEXT,
        ("expected a user and a password", "KAFKA_CONFIG_SECURITY_PROTOCOL (it is PLAINTEXT)"),
    ),
    "TLS to a port without it": Case(
        "PLAINTEXT", {}, ("does not speak TLS at this port", "KAFKA_CONFIG_SECURITY_PROTOCOL (it is SASL_SSL)")
    ),
    "a password to a port without SASL": Case(
        "PLAINTEXT",
        {"security.protocol": "SASL_PLAINTEXT"},
        ("does not take SASL at this port", "KAFKA_CONFIG_SECURITY_PROTOCOL (it is SASL_PLAINTEXT)"),
    ),
    "a host that is not known": Case("nowhere.invalid:9092", {}, ("has a name that is not known", "KAFKA_BROKERS")),
}


class End(NamedTuple):
    code: int
    said: str
    seconds: float


@pytest.fixture(scope="module")
def ends(secure: Secure) -> dict[str, End]:
    """How `ASK` ends in each case; they run at the same time."""
    addresses = {listener: secure.broker.secured_bootstrap(listener) for listener in SECURED}
    addresses["PLAINTEXT"] = secure.broker.bootstrap
    addresses["SASL_SSL by another name"] = addresses["SASL_SSL"].replace("127.0.0.1", "localhost")

    def end(case: Case) -> End:
        config = security(secure, **case.changes)
        if config.get("ssl.ca.location") == "other":
            config["ssl.ca.location"] = str(secure.other_authority)
        env = {"KAFKA_BROKERS": addresses.get(case.listener, case.listener), **as_environment(config)}
        done = subprocess.run(
            [sys.executable, "-c", ASK],
            env={**os.environ, **env},
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )
        return End(done.returncode, done.stderr, float(done.stdout))

    with ThreadPoolExecutor(max_workers=6) as pool:
        return dict(zip(CASES, pool.map(end, CASES.values()), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_setting_ends_with_one_line_that_names_it_and_without_the_patience_for_a_broker_that_is_away(
    ends: dict[str, End], name: str
) -> None:
    end = ends[name]
    assert end.code == 2, end.said
    assert len(end.said.splitlines()) == 1, end.said
    assert end.said.startswith("redflag: ")
    for part in CASES[name].says:
        assert part in end.said
    assert PASSWORD not in end.said
    assert WRONG_PASSWORD not in end.said
    # Three seconds on an idle machine.
    assert end.seconds < kafka_clients.BROKER_WAIT_SECONDS / 2, end.said


@pytest.mark.parametrize("mechanism", ["PLAIN", SCRAM])
def test_the_whole_flow_runs_over_tls_with_a_password(
    secure: Secure, model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mechanism: str
) -> None:
    topics = {f"{name}_topic": f"{name}-{mechanism}" for name in ("transactions", "alerts", "classified", "invalid")}
    topics["feedback_topic"] = f"feedback-{mechanism}"
    secure.broker.create_topics(dict.fromkeys(topics.values(), 2))
    config = security(secure, sasl_mechanism=mechanism)
    settings = Settings(brokers=secure.broker.secured_bootstrap("SASL_SSL"), kafka_config=config, **topics)
    producer = Producer(settings.librdkafka({}))
    amounts = {f"t{n}": 450.0 if n % 10 == 0 else 25.0 for n in range(100)}
    for number, (name, amount) in enumerate(amounts.items()):
        user = f"u{number}"
        producer.produce(settings.transactions_topic, raw(user, transaction_id=name, amount=amount), user)
    producer.produce(settings.transactions_topic, b"not json", "u0")
    assert producer.flush(20) == 0

    for name, value in as_environment(config).items():
        monkeypatch.setenv(name, value)
    flow = Flow(settings, model_file, tmp_path)
    try:
        flow.start()
        outputs = [settings.alerts_topic, settings.classified_topic, settings.invalid_topic]
        wait_for(lambda: len(read_all(settings, outputs)) > len(amounts))
        assert flow.stop() == 0, flow.said()
    finally:
        flow.process.kill()
        flow.process.wait()
    messages = read_all(settings, outputs)
    assert [m.value() for m in messages if m.topic() == settings.invalid_topic] == [b"not json"]
    decisions = [json.loads(m.value()) for m in messages if m.topic() != settings.invalid_topic]
    assert sorted(d["transaction_id"] for d in decisions) == sorted(amounts)
    high = {d["transaction_id"] for d in decisions if "High amount" in d["reason"]}
    assert high == {name for name, amount in amounts.items() if amount > 400}
    assert PASSWORD not in flow.said()


def test_what_librdkafka_logs_on_request_holds_no_password(secure: Secure) -> None:
    config = security(secure, debug="security,broker,conf")
    env = {**os.environ, "KAFKA_BROKERS": secure.broker.secured_bootstrap("SASL_SSL"), **as_environment(config)}
    done = subprocess.run([sys.executable, "-c", ASK], env=env, capture_output=True, text=True, check=True, timeout=60)
    assert "SASL_SSL" in done.stderr.upper()
    assert PASSWORD not in done.stderr
