from pathlib import Path

import pytest

from dataflow.settings import Settings, UserError


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


def test_two_settings_cannot_name_one_topic() -> None:
    with pytest.raises(UserError, match="'x' is named by more than one"):
        load(ALERTS_TOPIC="x", CLASSIFIED_TOPIC="x")


def test_a_secret_is_in_no_message() -> None:
    with pytest.raises(UserError) as error:
        load(KAFKA_CONFIG_SASL_PASSWORD="hunter2", GENERATOR_RATE="x")
    assert "hunter2" not in str(error.value)
