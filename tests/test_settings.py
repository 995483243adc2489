from pathlib import Path

import pytest
from confluent_kafka import Producer

from dataflow.errors import UserError
from dataflow.settings import TABLE, Settings, markdown


def load(**environ: str) -> Settings:
    return Settings.load(environ, dotenv=None)


def test_without_anything_set_the_defaults_stand() -> None:
    assert load() == Settings()


def test_settings_are_typed_and_say_what_was_given() -> None:
    settings = load(KAFKA_BROKERS="a:1,[::1]:2", GENERATOR_RATE="2.5", GENERATOR_COUNT="7", RECOVERY_INTERVAL="3")
    assert (settings.brokers, settings.generator_rate, settings.generator_count) == ("a:1,[::1]:2", 2.5, 7)
    assert settings.recovery_interval == 3
    assert load(MAX_EVENT_LEAD_SECONDS="90").max_event_lead_seconds == 90.0
    assert "KAFKA_BROKERS" in settings.given
    assert "RULES_FILE" not in settings.given


def test_kafka_config_becomes_librdkafka_properties_and_what_we_fix_wins() -> None:
    settings = load(KAFKA_CONFIG_SECURITY_PROTOCOL="SASL_SSL", KAFKA_CONFIG_ACKS="0")
    config = settings.librdkafka({"acks": "all"})
    assert config["security.protocol"] == "SASL_SSL"
    assert config["acks"] == "all"


def test_the_environment_wins_over_the_env_file(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("GENERATOR_RATE=5\nGENERATOR_SEED=9\n")
    settings = Settings.load({"GENERATOR_RATE": "6"}, dotenv=dotenv)
    assert (settings.generator_rate, settings.generator_seed) == (6.0, 9)


@pytest.mark.parametrize(
    ("name", "value", "takes"),
    [
        ("KAFKA_BROKERS", "localhost", "host:port"),
        ("GENERATOR_RATE", "fast", "a number"),
        ("GENERATOR_RATE", "0", "at least 0.001"),
        ("GENERATOR_RATE", "nan", "a number"),
        ("GENERATOR_RATE", "inf", "a number"),
        ("RECOVERY_INTERVAL", "0", "whole number of at least 1"),
        ("MAX_EVENT_LEAD_SECONDS", "-1", "a number of at least 0"),
        ("RECOVERY_INTERVAL", "1.5", "whole number"),
        ("GENERATOR_POPULATION", "martians", "realistic, tutorial"),
        ("ALERTS_TOPIC", "no spaces allowed", "topic name"),
    ],
)
def test_a_wrong_value_is_one_line_with_its_name_and_what_it_takes(name: str, value: str, takes: str) -> None:
    with pytest.raises(UserError) as error:
        load(**{name: value})
    assert name in str(error.value)
    assert takes in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("text", "number"), [(".5", 0.5), ("5.", 5.0), ("+5", 5.0), ("1e1", 10.0), (" 2 ", 2.0)])
def test_a_number_may_be_written_as_python_reads_one(text: str, number: float) -> None:
    assert load(GENERATOR_RATE=text).generator_rate == number


@pytest.mark.parametrize("brokers", ["a:0", "a:65535", "[::1]:2,b:00080"])
def test_a_port_is_any_up_to_65535(brokers: str) -> None:
    assert load(KAFKA_BROKERS=brokers).brokers == brokers


@pytest.mark.parametrize("brokers", ["a:65536", "a:70000", "a:100000", "a:1,", ",a:1", "a b:1", "a:1\nb:2", "a:٣"])
def test_anything_else_is_no_brokers_address(brokers: str) -> None:
    with pytest.raises(UserError, match=r"KAFKA_BROKERS=.* it takes host:port, several with commas between"):
        load(KAFKA_BROKERS=brokers)


def test_blanks_around_the_commas_between_brokers_are_dropped() -> None:
    assert load(KAFKA_BROKERS="a:1, b:2 ,c:3").brokers == "a:1,b:2,c:3"


@pytest.mark.parametrize("topic", [".", "..", "a/b", "ä", "a" * 250])
def test_what_kafka_takes_for_no_topic_is_none_here(topic: str) -> None:
    with pytest.raises(UserError, match=r"ALERTS_TOPIC=.* it takes a topic name"):
        load(ALERTS_TOPIC=topic)


def test_two_settings_cannot_name_one_topic() -> None:
    with pytest.raises(UserError, match="'x' is named by more than one"):
        load(ALERTS_TOPIC="x", CLASSIFIED_TOPIC="x")


def test_a_secret_is_in_no_message() -> None:
    with pytest.raises(UserError) as error:
        load(KAFKA_CONFIG_SASL_PASSWORD="hunter2", GENERATOR_RATE="x")
    assert "hunter2" not in str(error.value)


def test_all_mistakes_are_told_at_once_a_line_each() -> None:
    with pytest.raises(UserError) as error:
        load(MAX_BATCH="none", KAFKA_BROKERS="nonsense", ALERTS_TOPIC="x", INVALID_TOPIC="x")
    lines = str(error.value).splitlines()
    assert [line.split("=")[0] for line in lines[:2]] == ["KAFKA_BROKERS", "MAX_BATCH"]
    assert len(lines) == 3
    assert "'x' is named by more than one" in lines[2]


def test_every_setting_is_in_the_table_once_and_takes_its_default() -> None:
    fields = set(Settings.__struct_fields__) - {"given", "unknown", "kafka_config"}
    assert sorted(setting.field for setting in TABLE) == sorted(fields)
    defaults = {
        setting.name: str(value) for setting in TABLE if (value := getattr(Settings(), setting.field)) is not None
    }
    loaded = load(**defaults)
    assert [getattr(loaded, s.field) for s in TABLE] == [getattr(Settings(), s.field) for s in TABLE]


def test_the_table_names_every_setting_with_its_default_and_unit() -> None:
    lines = markdown().splitlines()
    assert len(lines) == 2 + len(TABLE) + 1
    assert any(line.startswith("| `RECOVERY_INTERVAL` | 5 s | ") for line in lines)
    assert any(line.startswith("| `RULES_FILE` | dataflow/rules.toml | ") for line in lines)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("RULE_FILE", "RULES_FILE"),
        ("RECOVERY_INTERVALL", "RECOVERY_INTERVAL"),
        ("KAFKA_BROKER", "KAFKA_BROKERS"),
        ("KAFKA_BOOTSTRAP_SERVERS", "KAFKA_BROKERS"),
        ("MODEL_FILES", "MODEL_FILE"),
        ("RECOVERY_DIRECTORY", "RECOVERY_DIR"),
        ("LOGLEVEL", "LOG_LEVEL"),
    ],
)
def test_a_misspelt_setting_is_told_with_what_was_meant_and_without_its_value(name: str, meant: str) -> None:
    settings = load(**{name: "hunter2"})
    (line,) = settings.unknown
    assert line == f"{name} is not a setting of Redflag, and does nothing, did you mean {meant}?"


def test_a_setting_of_an_earlier_release_is_told_too(tmp_path: Path) -> None:
    (line,) = load(PROFILES="basic").unknown
    assert line == "PROFILES is not a setting of Redflag, and does nothing; `python -m dataflow.settings` lists them"
    (tmp_path / ".env").write_text("PROFILES=full\n")
    (line,) = Settings.load({}, dotenv=tmp_path / ".env").unknown
    assert line.startswith("PROFILES in .env is not a setting of Redflag, and does nothing")


def test_what_begins_as_only_our_settings_do_is_told_too() -> None:
    (line,) = load(GENERATOR_BURSTS="2").unknown
    assert line.startswith("GENERATOR_BURSTS is not a setting of Redflag")
    assert "python -m dataflow.settings" in line


@pytest.mark.parametrize(
    "name",
    [
        "PATH", "HOME", "MODEL", "LOG_DIR", "MAX_JOBS", "KAFKA_HOME", "KAFKA_HEAP_OPTS", "KAFKA_SERVICE_HOST",
        "KAFKA_PORT_9092_TCP_ADDR", "KAFKA_CONFIG_SASL_USERNAME", "BYTEWAX_ADDRESSES", "RULES_FILE",
    ],
)  # fmt: skip
def test_what_others_set_in_the_environment_is_left_alone(name: str) -> None:
    assert load(**{name: "x"}).unknown == ()


def test_everything_unknown_in_the_env_file_is_told(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("COLOUR=red\nGENERATOR_SEED=9\nRULE_FILE=x\nCOMPOSE_PROJECT_NAME=redflag\n")
    colour, rule = Settings.load({"OTHER": "1"}, dotenv=dotenv).unknown
    assert colour.startswith("COLOUR in .env is not a setting of Redflag")
    assert rule.startswith("RULE_FILE in .env is not a setting")
    assert rule.endswith("did you mean RULES_FILE?")


def test_a_password_with_dollars_is_taken_as_it_is_from_the_env_file(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("KAFKA_CONFIG_SASL_PASSWORD=a$HOME${PATH}$$b\n")
    settings = Settings.load({"HOME": "/root"}, dotenv=dotenv)
    assert settings.kafka_config["sasl.password"] == "a$HOME${PATH}$$b"


def test_an_env_file_that_is_no_text_is_one_line(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_bytes(b"A=\xff\xfe\n")
    with pytest.raises(UserError, match=r"\.env cannot be read: it is not UTF-8"):
        Settings.load({}, dotenv=dotenv)


def test_every_property_of_librdkafka_can_be_set_also_one_with_an_underscore() -> None:
    config = load(KAFKA_CONFIG_LOG_LEVEL="7", KAFKA_CONFIG_SOCKET_KEEPALIVE_ENABLE="true").kafka_config
    assert config == {"log_level": "7", "socket.keepalive.enable": "true"}
    Producer(config)  # librdkafka knows both


@pytest.mark.parametrize(
    ("given", "address"),
    [("0.0.0.0:3030", "0.0.0.0:3030"), ("[::1]:0", "[::1]:0"), ("off", None), ("OFF", None), ("", "127.0.0.1:3030")],
)
def test_the_metrics_address_is_host_and_port_or_off(given: str, address: str | None) -> None:
    assert load(METRICS_ADDRESS=given).metrics_address == address


@pytest.mark.parametrize("wrong", ["3030", "localhost", "127.0.0.1:99999", "::1:3030", "no"])
def test_anything_else_is_no_metrics_address(wrong: str) -> None:
    with pytest.raises(UserError, match=r"METRICS_ADDRESS=.* it takes host:port, or off"):
        load(METRICS_ADDRESS=wrong)


def test_the_setting_that_names_a_topic_is_known() -> None:
    settings = load(ALERTS_TOPIC="frauds")
    assert settings.named_by("frauds") == "ALERTS_TOPIC"
    assert settings.named_by("fraud_alerts") == ""
