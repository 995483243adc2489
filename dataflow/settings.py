"""Settings of every Redflag program: typed, from the environment and `.env`, in one place.

`python -m dataflow.settings` prints them all, as the table of docs/operations.md.
"""

import difflib
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from dotenv import dotenv_values

from dataflow.errors import UserError

DOTENV = Path(".env")
_KAFKA_PREFIX = "KAFKA_CONFIG_"
_WITH_UNDERSCORES = frozenset({"log_level"})  # the one text property of librdkafka whose name has no dots
_TOPIC_NAME = re.compile(r"[a-zA-Z0-9._-]{1,249}")
_HOST_AND_PORT = re.compile(r"(?:\[[0-9a-fA-F:.]+\]|[^\s:,\[\]]+):(\d{1,5})")


TUTORIAL_RULES = Path(__file__).parent / "rules-tutorial.toml"
"""The tutorial's four checks alone."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that can be set from outside, with its defaults; `TABLE` says what each means, and in which unit."""

    brokers: str = "127.0.0.1:9092"
    given: frozenset[str] = frozenset()  # names of the variables that were set; all others have their defaults
    unknown: tuple[str, ...] = ()  # a line for each variable that looks like a setting and is none
    kafka_config: dict[str, str] = {}
    transactions_topic: str = "transactions"
    alerts_topic: str = "fraud_alerts"
    classified_topic: str = "classified_transactions"
    invalid_topic: str = "invalid_transactions"
    labels_topic: str = "transaction_labels"
    feedback_topic: str = "fraud_feedback"
    rules_file: Path = Path(__file__).parent / "rules.toml"
    rules_check_seconds: float = 1.0
    model_file: Path = Path("fraud_model.pkl")
    # Longer than any feature looks back: what a profile knew by then has faded.
    profile_age_days: float = 400.0
    max_profiles: int = 10_000_000
    recovery_dir: Path = Path("recovery")
    # What came since the last snapshot is decided again after a crash. Bytewax takes whole seconds.
    recovery_interval: int = 5
    recovery_partitions: int = 4
    output_settle_seconds: float = 0.5
    delivery_timeout_seconds: float = 120.0
    stop_timeout_seconds: float = 8.0
    max_batch: int = 500
    max_event_lead_seconds: float = 300.0
    metrics_address: str | None = "127.0.0.1:3030"
    console_address: str = "127.0.0.1:3080"
    console_database: Path = Path("console.db")
    console_users_file: Path | None = None
    console_max_alerts: int = 1_000_000
    console_age_days: float = 90.0
    console_quiet_minutes: float = 60.0
    log_format: str = "text"
    log_level: str = "info"
    generator_rate: float = 2.0
    generator_count: int | None = None
    generator_duration: float | None = None
    generator_seed: int = 42
    generator_population: str = "realistic"
    generator_start: str | None = None
    generator_people: int | None = None
    generator_label_delay: float | None = None
    generator_warm_up: float = 14.0

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None, dotenv: Path | None = DOTENV) -> "Settings":
        """Reads the settings; the environment wins over `.env`.

        Raises:
            UserError: variables have wrong values; a line for each names it and says what it takes.
        """
        environ = os.environ if environ is None else environ
        from_file = _read_dotenv(dotenv)
        values = {**from_file, **environ}
        fields: dict[str, Any] = {}
        mistakes = []
        for setting in TABLE:
            text = values.get(setting.name, "").strip()
            if not text:
                continue  # set but empty is not set: compose files cannot leave a variable out
            try:
                fields[setting.field] = setting.takes.read(text)
            except ValueError:
                mistakes.append(
                    f"{setting.name}={text!r} is wrong: it takes {setting.takes.says}; "
                    "mend it in the environment or in .env"
                )
        loaded = cls(
            given=frozenset(name for name, value in values.items() if value.strip()),
            unknown=_unknown(environ, from_file),
            kafka_config=_kafka_config(values),
            **fields,
        )
        topics = [getattr(loaded, setting.field) for setting in TABLE if setting.takes is TOPIC]
        mistakes += [
            f"topic {topic!r} is named by more than one *_TOPIC setting: give each topic its own name"
            for topic in sorted({topic for topic in topics if topics.count(topic) > 1})
        ]
        if mistakes:
            raise UserError("\n".join(mistakes))
        return loaded

    def librdkafka(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """The librdkafka configuration: our defaults, then the user's `KAFKA_CONFIG_*`, then what we must fix."""
        return {"bootstrap.servers": self.brokers, **self.kafka_config, **own}

    def named_by(self, topic: str) -> str:
        """The setting that names a topic, as in `ALERTS_TOPIC`; "" if none does."""
        names = [s.name for s in TABLE if s.takes is TOPIC and getattr(self, s.field) == topic]
        return names[0] if names else ""


class Kind(NamedTuple):
    """What a setting takes: in words, and as a function of the text that raises a ValueError for anything else."""

    says: str
    read: Callable[[str], Any]


class Setting(NamedTuple):
    """One setting: its variable, its field of `Settings`, what it takes, what it means."""

    name: str
    field: str
    takes: Kind
    meaning: str
    unit: str = ""


def _fits(condition: bool) -> None:
    if not condition:
        raise ValueError


def whole(at_least: int) -> Kind:
    """A whole number."""

    def read(text: str) -> int:
        value = int(text)
        _fits(value >= at_least)
        return value

    return Kind(f"a whole number of at least {at_least}", read)


def number(at_least: float) -> Kind:
    """A finite number."""

    def read(text: str) -> float:
        value = float(text)
        _fits(at_least <= value < math.inf)
        return value

    return Kind(f"a number of at least {at_least:g}", read)


def choice(*allowed: str) -> Kind:
    """One of several words."""

    def read(text: str) -> str:
        _fits(text in allowed)
        return text

    return Kind("one of " + ", ".join(allowed), read)


def _topic(text: str) -> str:
    _fits(_TOPIC_NAME.fullmatch(text) is not None and text not in (".", ".."))
    return text


def host_and_port(text: str) -> tuple[str, int]:
    """Takes `host:port` apart; an IPv6 address stands in brackets.

    Raises:
        ValueError: it is not that.
    """
    found = _HOST_AND_PORT.fullmatch(text)
    if found is None or int(found[1]) > 65535:
        msg = f"{text!r} is not host:port"
        raise ValueError(msg)
    return text[: found.start(1) - 1].strip("[]"), int(found[1])


def _brokers(text: str) -> str:
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        host_and_port(part)
    return ",".join(parts)


def _host_and_port(text: str) -> str:
    host_and_port(text)
    return text


def _address(text: str) -> str | None:
    if text.lower() == "off":
        return None
    host_and_port(text)
    return text


TOPIC = Kind("a topic name: letters, digits, '.', '_', '-', at most 249", _topic)
TEXT = Kind("text", str)
PATH = Kind("a path", Path)

TABLE: Sequence[Setting] = (
    Setting(
        "KAFKA_BROKERS", "brokers", Kind("host:port, several with commas between", _brokers),
        "the brokers to begin with: host:port, several with commas between; an IPv6 address stands in brackets",
    ),
    Setting("TRANSACTIONS_TOPIC", "transactions_topic", TOPIC, "what is to be decided"),
    Setting("ALERTS_TOPIC", "alerts_topic", TOPIC, "decisions that are frauds; as many partitions as the next"),
    Setting("CLASSIFIED_TOPIC", "classified_topic", TOPIC, "all other decisions"),
    Setting("INVALID_TOPIC", "invalid_topic", TOPIC, "what could not be parsed"),
    Setting("LABELS_TOPIC", "labels_topic", TOPIC, "the generator's truth"),
    Setting("FEEDBACK_TOPIC", "feedback_topic", TOPIC, "what analysts found out"),
    Setting("RULES_FILE", "rules_file", PATH, "the rules"),
    Setting(
        "RULES_CHECK_SECONDS", "rules_check_seconds", number(0.05),
        "how long a changed rules file, or operating point of the model, must stand still until it is taken", "s",
    ),
    Setting("MODEL_FILE", "model_file", PATH, "the model; its JSON lies beside it"),
    Setting(
        "PROFILE_AGE_DAYS", "profile_age_days", number(31.0),
        "a profile without an event for so long, by event times, begins anew", "d",
    ),
    Setting(
        "MAX_PROFILES", "max_profiles", whole(1000),
        "of users, and of merchants; beyond it those without an event for longest are forgotten",
    ),
    Setting("RECOVERY_DIR", "recovery_dir", PATH, "where snapshots of the state are kept"),
    Setting("RECOVERY_INTERVAL", "recovery_interval", whole(1), "between snapshots", "s"),
    Setting("RECOVERY_PARTITIONS", "recovery_partitions", whole(1), "files of a new recovery directory"),
    Setting(
        "OUTPUT_SETTLE_SECONDS", "output_settle_seconds", number(0.0),
        "how long the outputs must stand still on resume", "s",
    ),
    Setting(
        "DELIVERY_TIMEOUT_SECONDS", "delivery_timeout_seconds", number(1.0),
        "how long a broker may be away before the flow stops", "s",
    ),
    Setting("STOP_TIMEOUT_SECONDS", "stop_timeout_seconds", number(1.0), "for a graceful stop", "s"),
    Setting("MAX_BATCH", "max_batch", whole(1), "messages a worker takes at once"),
    Setting(
        "MAX_EVENT_LEAD_SECONDS",
        "max_event_lead_seconds",
        number(0.0),
        "by how much an event time may lead the record's, and that the wall clock, and still move a profile's clock",
        "s",
    ),
    Setting(
        "METRICS_ADDRESS", "metrics_address", Kind("host:port, or off", _address),
        "where metrics are served, `off` for nowhere; process 1 of several takes the next port, and so on",
    ),
    Setting(
        "CONSOLE_ADDRESS", "console_address", Kind("host:port", _host_and_port),
        "where the analysts' console listens; beyond this machine only with CONSOLE_USERS_FILE",
    ),
    Setting("CONSOLE_DATABASE", "console_database", PATH, "the console's file of alerts, cases and labels"),
    Setting(
        "CONSOLE_USERS_FILE", "console_users_file", PATH,
        "who may use the console, with hashed passwords (`python -m console.users`); without it all who can reach it",
    ),
    Setting("CONSOLE_MAX_ALERTS", "console_max_alerts", whole(1000), "the newest alerts that the console keeps"),
    Setting("CONSOLE_AGE_DAYS", "console_age_days", number(0.01), "how long it keeps an alert", "d"),
    Setting(
        "CONSOLE_QUIET_MINUTES", "console_quiet_minutes", number(0.0),
        "after a case was closed as genuine, how long this user's alerts open none", "min",
    ),
    Setting(
        "LOG_FORMAT", "log_format", choice("text", "json"), "`json`: each line of the log is an object"
    ),
    Setting(
        "LOG_LEVEL", "log_level", choice("debug", "info", "warning", "error"), "what is logged: this and what is worse"
    ),
    Setting("GENERATOR_RATE", "generator_rate", number(0.001), "transactions generated", "1/s"),
    Setting("GENERATOR_COUNT", "generator_count", whole(0), "transactions until the generator ends"),
    Setting("GENERATOR_DURATION", "generator_duration", number(0.0), "until the generator ends", "s"),
    Setting("GENERATOR_SEED", "generator_seed", whole(0), "the same seed and start give the same transactions"),
    Setting(
        "GENERATOR_POPULATION", "generator_population", choice("realistic", "tutorial"),
        "thousands of people with habits, or three without",
    ),
    Setting("GENERATOR_START", "generator_start", TEXT, "event time of the first transaction, ISO 8601"),
    Setting(
        "GENERATOR_PEOPLE", "generator_people", whole(100),
        "how many people live, each at a natural pace: event time goes as fast as the rate asks of them; "
        "else as many as the rate takes, at the pace of the clock",
    ),
    Setting(
        "GENERATOR_LABEL_DELAY", "generator_label_delay", number(0.0),
        "feedback on each transaction, so long after it, by the clock on the wall; else none", "s",
    ),
    Setting(
        "GENERATOR_WARM_UP", "generator_warm_up", number(0.0),
        "how long GENERATOR_PEOPLE have lived at the start; in `make run` this fills the profiles", "days",
    ),
)  # fmt: skip
"""All settings but `KAFKA_CONFIG_*`."""

# Names that only Redflag's settings begin with. Others are common (MODEL_, OUTPUT_, LOG_): these must be close to one.
_PREFIXES = ("KAFKA_", "RULE_", "RULES_", "RECOVERY_", "GENERATOR_", "DELIVERY_", "METRICS_", "REDFLAG_")
# What Kafka's own scripts read, and what Kubernetes and Docker give a container that has a service called `kafka`.
_OTHERS = re.compile(
    r"KAFKA_(HOME|DEBUG|HEAP_OPTS|OPTS|JMX_\w+|GC_\w+|JVM_\w+|LOG4J_\w+)|\w+_(SERVICE_HOST|SERVICE_PORT\w*|PORT|PORT_\d+_\w+)"
)
_TAKEN_FOR = {"KAFKA_BOOTSTRAP_SERVERS": "KAFKA_BROKERS", "BOOTSTRAP_SERVERS": "KAFKA_BROKERS"}
_REMOVED = frozenset({"PROFILES"})  # settings of earlier releases: whoever still sets one is told
_CLOSE = 0.8  # of difflib's ratio, 1 where names are equal
_CLOSE_ENDS = 0.55  # likewise, of what follows an equal first word


def _unknown(environ: Mapping[str, str], from_file: Mapping[str, str]) -> tuple[str, ...]:
    """A line for each variable that was probably meant to be a setting; never with its value, which may be secret."""
    known = [setting.name for setting in TABLE]
    lines = []
    for name in sorted({*environ, *from_file}):
        if name in known or (name.startswith(_KAFKA_PREFIX) and name != _KAFKA_PREFIX):
            continue
        removed = name in _REMOVED
        meant = None if removed else _TAKEN_FOR.get(name) or _meant(name, known)
        in_file = name in from_file
        ours = name.startswith(_PREFIXES) and not _OTHERS.fullmatch(name)
        # Compose reads `.env` too, and for settings of its own.
        others = name.startswith(("COMPOSE_", "DOCKER_"))
        if (in_file and not others) or ours or removed or meant is not None:
            where = f"{name} in {DOTENV}" if in_file else name
            hint = f", did you mean {meant}?" if meant else "; `python -m dataflow.settings` lists them"
            lines.append(f"{where} is not a setting of Redflag, and does nothing{hint}")
    return tuple(lines)


def _meant(name: str, known: Sequence[str]) -> str | None:
    """The setting that a name is close to; a first word in common alone makes none close."""
    for candidate in difflib.get_close_matches(name, known, 3, _CLOSE):
        first = candidate.partition("_")[0]
        ends = name.removeprefix(first), candidate.removeprefix(first)
        if not name.startswith(first) or difflib.SequenceMatcher(None, *ends).ratio() >= _CLOSE_ENDS:
            return candidate
    return None


def _kafka_config(values: Mapping[str, str]) -> dict[str, str]:
    """`KAFKA_CONFIG_SECURITY_PROTOCOL` as `security.protocol`, and so on."""
    config = {}
    for name, value in sorted(values.items()):
        if name.startswith(_KAFKA_PREFIX) and name != _KAFKA_PREFIX:
            written = name.removeprefix(_KAFKA_PREFIX).lower()
            config[written if written in _WITH_UNDERSCORES else written.replace("_", ".")] = value
    return config


def _read_dotenv(dotenv: Path | None) -> dict[str, str]:
    """The values of `.env` as they stand: a `$` in a password is a `$`.

    Raises:
        UserError: it is there, but cannot be read.
    """
    if dotenv is None or not dotenv.is_file():
        return {}
    try:
        return {name: value or "" for name, value in dotenv_values(dotenv, interpolate=False).items()}
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        msg = f"{dotenv} cannot be read: {reason}; mend that, or remove it"
        raise UserError(msg) from error


def leniently(name: str, default: str, environ: Mapping[str, str] | None = None, dotenv: Path | None = DOTENV) -> str:
    """One setting before all are read, to say how those mistakes are told that `Settings.load` will find."""
    takes = next(setting.takes for setting in TABLE if setting.name == name)
    try:
        text = {**_read_dotenv(dotenv), **(os.environ if environ is None else environ)}.get(name, "").strip()
        return str(takes.read(text)) if text else default
    except (UserError, ValueError):
        return default


def markdown() -> str:
    """The table of all settings, as docs/operations.md has it."""
    defaults = Settings()
    lines = ["| setting | default | |", "| --- | --- | --- |"]
    for setting in TABLE:
        default = getattr(defaults, setting.field)
        if isinstance(default, Path) and default.is_absolute():
            default = default.relative_to(Path(__file__).parent.parent)
        shown = "" if default is None else f"{default:g}" if isinstance(default, float) else str(default)
        unit = f" {setting.unit}" if setting.unit and shown else ""
        lines.append(f"| `{setting.name}` | {shown}{unit} | {setting.meaning} |")
    lines.append(
        "| `KAFKA_CONFIG_<NAME>` | | a property of librdkafka: `KAFKA_CONFIG_SASL_USERNAME` is `sasl.username` |"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown())
