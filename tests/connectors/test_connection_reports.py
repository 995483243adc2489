"""What librdkafka says, word for word, and what is made of it."""

import pytest

from dataflow.connectors.connection_reports import MISTAKE_SECONDS, ConnectionReports
from dataflow.settings import Settings

ERROR, WARNING, INFO, DEBUG = 40, 30, 20, 10
REFUSED = "Connect to ipv4#127.0.0.1:9092 failed: Connection refused (after 0ms in state CONNECT)"
WRONG_PASSWORD = (
    "SASL authentication error: Authentication failed: Invalid username or password (after 301ms in state AUTH_REQ)"
)
CLOSED_AT_ONCE = "Disconnected: connection closed by peer: receive 0 after POLLIN (after 1ms in state APIVERSION_QUERY)"
CLOSED_LATER = "Disconnected: connection closed by peer: receive 0 after POLLIN (after 1ms in state UP)"


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


def report(reports: ConnectionReports, text: str, broker: str = "kafka:9092", level: int = ERROR) -> None:
    where = f"{broker}/bootstrap"
    reports.log(level, "%s [%s] %s", "FAIL", "rdkafka#producer-1", f"[thrd:{where}]: {where}: {text}")


def reports_of(clock: Clock, **config: str) -> ConnectionReports:
    return ConnectionReports(Settings(kafka_config={k.replace("_", "."): v for k, v in config.items()}), clock)


@pytest.mark.parametrize(
    ("protocol", "text", "what", "see"),
    [
        ("SASL_SSL", WRONG_PASSWORD, "refuses this user or password", "KAFKA_CONFIG_SASL_PASSWORD"),
        (
            "SASL_SSL",
            "SASL SCRAM-SHA-256 mechanism handshake failed: Broker: Unsupported SASL mechanism: broker's supported "
            "mechanisms: PLAIN,SCRAM-SHA-512 (after 301ms in state AUTH_HANDSHAKE)",
            "takes PLAIN,SCRAM-SHA-512, not SCRAM-SHA-256",
            "KAFKA_CONFIG_SASL_MECHANISM",
        ),
        (
            "SASL_SSL",
            "SSL handshake failed: error:0A000086:SSL routines::certificate verify failed: broker certificate could "
            "not be verified (after 5ms in state SSL_HANDSHAKE)",
            "shows a certificate that cannot be verified",
            "KAFKA_CONFIG_SSL_CA_LOCATION",
        ),
        (
            "SSL",
            "Receive failed: error:0A000412:SSL routines::ssl/tls alert bad certificate: SSL alert number 42 "
            "(after 10ms in state APIVERSION_QUERY)",
            "wants a certificate of the client",
            "KAFKA_CONFIG_SSL_CERTIFICATE_LOCATION",
        ),
        (
            "SSL",
            "SSL handshake failed: error:0A00010B:SSL routines::wrong version number "
            "(after 0ms in state SSL_HANDSHAKE)",
            "does not speak TLS at this port",
            "KAFKA_CONFIG_SECURITY_PROTOCOL (it is SSL)",
        ),
        ("plaintext", CLOSED_AT_ONCE, "as if it expected TLS", "KAFKA_CONFIG_SECURITY_PROTOCOL (it is PLAINTEXT)"),
        (
            "SSL",
            "Send failed: error:80000020:system library::Broken pipe: tls_retry_write_records failure "
            "(after 9ms in state UP)",
            "as if it expected a user and a password",
            "KAFKA_CONFIG_SASL_MECHANISM",
        ),
        ("SSL", CLOSED_LATER, "as if it expected a user and a password", "KAFKA_CONFIG_SECURITY_PROTOCOL (it is SSL)"),
        (
            "plaintext",
            "Failed to resolve 'kafka:9092': Name or service not known (after 2ms in state CONNECT)",
            "has a name that is not known",
            "KAFKA_BROKERS",
        ),
    ],
)
def test_a_wrong_setting_is_named_once_it_has_stood_for_two_seconds(
    clock: Clock, protocol: str, text: str, what: str, see: str
) -> None:
    reports = reports_of(clock, security_protocol=protocol)
    report(reports, text)
    assert reports.lasting_mistake() is None
    clock.now += MISTAKE_SECONDS
    line = reports.lasting_mistake()
    assert line is not None
    assert line.startswith("the broker at kafka:9092 ")
    assert what in line
    assert see in line


@pytest.mark.parametrize(
    "text",
    [
        REFUSED,
        "Failed to resolve 'kafka:9092': Temporary failure in name resolution (after 2ms in state CONNECT)",
        "Connection setup timed out in state CONNECT (after 30028ms in state CONNECT)",
    ],
)
def test_what_waiting_may_mend_is_no_mistake_however_long_it_lasts(clock: Clock, text: str) -> None:
    reports = reports_of(clock)
    report(reports, text)
    clock.now += 1000
    assert reports.lasting_mistake() is None
    assert reports.reason() == text.partition(" (after")[0]


def test_a_broker_that_restarts_in_between_begins_the_two_seconds_anew(clock: Clock) -> None:
    reports = reports_of(clock)
    report(reports, CLOSED_AT_ONCE)
    clock.now += MISTAKE_SECONDS
    report(reports, REFUSED)
    assert reports.lasting_mistake() is None
    report(reports, CLOSED_AT_ONCE)
    assert reports.lasting_mistake() is None
    clock.now += MISTAKE_SECONDS / 2
    report(reports, CLOSED_AT_ONCE)
    clock.now += MISTAKE_SECONDS / 2
    assert reports.lasting_mistake() is not None


def test_a_mistake_that_shows_in_two_ways_by_turns_lasts_all_the_same(clock: Clock) -> None:
    reports = reports_of(clock)
    for text in (CLOSED_AT_ONCE, CLOSED_LATER, CLOSED_AT_ONCE):
        report(reports, text)
        assert reports.suspects_a_mistake()
        assert reports.lasting_mistake() is None
        clock.now += MISTAKE_SECONDS / 3
    assert "as if it expected TLS" in str(reports.lasting_mistake())


def test_an_answer_ends_what_was_reported_and_a_connection_lost_later_says_nothing_of_settings(clock: Clock) -> None:
    reports = reports_of(clock)
    report(reports, CLOSED_LATER)
    reports.answered()
    assert reports.reason() is None
    report(reports, CLOSED_LATER)
    clock.now += MISTAKE_SECONDS
    assert reports.lasting_mistake() is None
    assert reports.reason() == "closed the connection"


def test_of_several_brokers_the_one_that_a_setting_can_mend_is_named(clock: Clock) -> None:
    reports = reports_of(clock, security_protocol="SASL_SSL")
    report(reports, REFUSED, "[::1]:1")
    report(reports, WRONG_PASSWORD, "[::1]:2")
    clock.now += MISTAKE_SECONDS
    assert "refuses this user" in str(reports.reason())
    assert "the broker at [::1]:2 refuses" in str(reports.lasting_mistake())


@pytest.mark.parametrize(
    ("config", "shown"),
    [({}, []), ({"log_level": "4"}, [ERROR, WARNING]), ({"debug": "broker"}, [ERROR, WARNING, INFO, DEBUG])],
)
def test_librdkafkas_own_lines_are_shown_as_far_as_the_user_asked(
    config: dict[str, str], shown: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    reports = ConnectionReports(Settings(kafka_config=config))
    for level in (ERROR, WARNING, INFO, DEBUG):
        report(reports, f"number {level} (after 1ms in state UP)", level=level)
    lines = capsys.readouterr().err.splitlines()
    assert [int(line.split("number ")[1].split()[0]) for line in lines] == shown
