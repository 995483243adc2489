"""Settings of every Redflag program: typed, from the environment and `.env`, in one place.

`python -m dataflow.settings` prints them all, as the table of docs/operations.md.
"""

import difflib
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, get_args, get_origin

import msgspec
from dotenv import dotenv_values
from msgspec import Meta

from dataflow.errors import UserError, in_words, without_none

DOTENV = Path(".env")
_KAFKA_PREFIX = "KAFKA_CONFIG_"
_WITH_UNDERSCORES = frozenset({"log_level"})  # the one text property of librdkafka whose name has no dots
_PORT = r"(?:[0-9]{1,4}|[0-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"  # 0 to 65535
_HOST_AND_PORT = rf"(?:\[[0-9a-fA-F:.]+\]|[^\s:,\[\]]+):{_PORT}"
_NETWORK = r"[0-9a-fA-F:.]+(?:/[0-9]{1,3})?"
_TOPIC_NAME = r"(?!\.{1,2}\Z)[a-zA-Z0-9._-]{1,249}"

Brokers = Annotated[
    str,
    Meta(pattern=rf"\A{_HOST_AND_PORT}(?:,{_HOST_AND_PORT})*\Z", description="host:port, several with commas between"),
]
HostAndPort = Annotated[str, Meta(pattern=rf"\A{_HOST_AND_PORT}\Z", description="host:port")]
Address = Annotated[str, Meta(pattern=rf"\A{_HOST_AND_PORT}\Z", description="host:port, or off")]
Networks = Annotated[
    str,
    Meta(
        pattern=rf"\A{_NETWORK}(?:,{_NETWORK})*\Z",
        description="addresses or networks, as 10.0.0.7 or 10.0.0.0/24, several with commas between",
    ),
]
HeaderName = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9-]{1,64}\Z", description="a header's name, as X-Forwarded-User")]
Topic = Annotated[
    str,
    Meta(pattern=rf"\A{_TOPIC_NAME}\Z", description="a topic name: letters, digits, '.', '_', '-', at most 249"),
]
File = Annotated[Path, Meta(description="a path")]
FileOrServer = Annotated[str, Meta(description="a path, or postgresql://user@host/database")]

TUTORIAL_RULES = Path(__file__).parent / "rules-tutorial.toml"
"""The tutorial's four checks alone."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that can be set from outside, with its type and default; `TABLE` says what each means, in which unit.

    What a setting takes is what msgspec checks: its type here.
    """

    given: frozenset[str] = frozenset()  # names of the variables that were set; all others have their defaults
    unknown: tuple[str, ...] = ()  # a line for each variable that looks like a setting and is none
    kafka_config: dict[str, str] = {}
    brokers: Brokers = "127.0.0.1:9092"
    transactions_topic: Topic = "transactions"
    alerts_topic: Topic = "fraud_alerts"
    classified_topic: Topic = "classified_transactions"
    invalid_topic: Topic = "invalid_transactions"
    labels_topic: Topic = "transaction_labels"
    feedback_topic: Topic = "fraud_feedback"
    rules_file: File = Path(__file__).parent / "rules.toml"
    rules_check_seconds: Annotated[float, Meta(ge=0.05)] = 1.0
    model_file: File = Path("fraud_model.pkl")
    # Longer than any feature looks back: what a profile knew by then has faded.
    profile_age_days: Annotated[float, Meta(ge=31)] = 400.0
    max_profiles: Annotated[int, Meta(ge=1000)] = 10_000_000
    recovery_dir: File = Path("recovery")
    # What came since the last snapshot is decided again after a crash. Bytewax takes whole seconds.
    recovery_interval: Annotated[int, Meta(ge=1)] = 5
    # Bytewax commits each file three times an epoch, with a sync each, and meanwhile decides nothing.
    recovery_partitions: Annotated[int, Meta(ge=1)] = 1
    output_settle_seconds: Annotated[float, Meta(ge=0)] = 0.5
    delivery_timeout_seconds: Annotated[float, Meta(ge=1)] = 120.0
    stop_timeout_seconds: Annotated[float, Meta(ge=1)] = 8.0
    # Batches are so large under a backlog only. A transaction in one of 2,000 takes .8 of the CPU of one in a batch of
    # 500, and the whole batch 50 to 80 ms.
    max_batch: Annotated[int, Meta(ge=1)] = 2000
    max_event_lead_seconds: Annotated[float, Meta(ge=0)] = 300.0
    metrics_address: Address | None = "127.0.0.1:3030"
    console_address: HostAndPort = "127.0.0.1:3080"
    console_database: FileOrServer = "console.db"
    console_users_file: File | None = None
    console_proxy_addresses: Networks | None = None
    console_proxy_header: HeaderName = "X-Forwarded-User"
    console_metrics_address: Address | None = "127.0.0.1:3081"
    console_flow_metrics: Brokers = "127.0.0.1:3030"
    console_max_alerts: Annotated[int, Meta(ge=1000)] = 1_000_000
    console_age_days: Annotated[float, Meta(ge=0.01)] = 90.0
    console_quiet_minutes: Annotated[float, Meta(ge=0)] = 60.0
    log_format: Literal["text", "json"] = "text"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    generator_rate: Annotated[float, Meta(ge=0.001)] = 2.0
    generator_count: Annotated[int, Meta(ge=0)] | None = None
    generator_duration: Annotated[float, Meta(ge=0)] | None = None
    generator_seed: Annotated[int, Meta(ge=0)] = 42
    generator_population: Literal["realistic", "tutorial"] = "realistic"
    generator_start: str | None = None
    generator_people: Annotated[int, Meta(ge=100)] | None = None
    generator_label_delay: Annotated[float, Meta(ge=0)] | None = None
    generator_warm_up: Annotated[float, Meta(ge=0)] = 14.0

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
                fields[setting.field] = _read(setting.field, text)
            except ValueError:  # also msgspec's ValidationError
                mistakes.append(
                    f"{setting.name}={text!r} is wrong: it takes {in_words(_TYPES[setting.field])}; "
                    "mend it in the environment or in .env"
                )
        loaded = cls(
            given=frozenset(name for name, value in values.items() if value.strip()),
            unknown=_unknown(environ, from_file),
            kafka_config=_kafka_config(values),
            **fields,
        )
        topics = [getattr(loaded, field) for field in _TOPICS]
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
        names = [s.name for s in TABLE if s.field in _TOPICS and getattr(self, s.field) == topic]
        return names[0] if names else ""


_TYPES: Final = {field.name: field.type for field in msgspec.structs.fields(Settings)}
_TOPICS: Final = [name for name, kind in _TYPES.items() if kind == Topic]


def _read(field: str, text: str) -> Any:
    """The value of a setting.

    Raises:
        ValueError: it is not what the setting takes.
    """
    kind = without_none(_TYPES[field])
    plain = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    value: Any = text
    if kind == Address and text.lower() == "off":
        return None
    if kind in (Brokers, Networks):
        value = ",".join(part.strip() for part in text.split(","))
    elif plain is int or plain is float:
        value = plain(text)  # not msgspec's own reading of numbers in texts, which takes no `.5`
        if not math.isfinite(value):
            raise ValueError(text)
    return msgspec.convert(value, kind, dec_hook=_path)


def _path(kind: type, value: Any) -> Any:
    """Makes a path of a text, which msgspec leaves to us."""
    return kind(value)


def host_and_port(text: str) -> tuple[str, int]:
    """Takes `host:port`, as the settings have it, apart; an IPv6 address stands in brackets."""
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


class Setting(NamedTuple):
    """One setting: its variable, its field of `Settings`, what it means."""

    name: str
    field: str
    meaning: str
    unit: str = ""


TABLE: Sequence[Setting] = (
    Setting(
        "KAFKA_BROKERS", "brokers",
        "the brokers to begin with: host:port, several with commas between; an IPv6 address stands in brackets",
    ),
    Setting("TRANSACTIONS_TOPIC", "transactions_topic", "what is to be decided"),
    Setting("ALERTS_TOPIC", "alerts_topic", "decisions that are frauds; as many partitions as the next"),
    Setting("CLASSIFIED_TOPIC", "classified_topic", "all other decisions"),
    Setting("INVALID_TOPIC", "invalid_topic", "what could not be parsed"),
    Setting("LABELS_TOPIC", "labels_topic", "the generator's truth"),
    Setting("FEEDBACK_TOPIC", "feedback_topic", "what analysts found out"),
    Setting("RULES_FILE", "rules_file", "the rules"),
    Setting(
        "RULES_CHECK_SECONDS", "rules_check_seconds",
        "how long a changed rules file, or operating point of the model, must stand still until it is taken", "s",
    ),
    Setting("MODEL_FILE", "model_file", "the model; its JSON lies beside it"),
    Setting(
        "PROFILE_AGE_DAYS", "profile_age_days",
        "a profile without an event for so long, by event times, begins anew", "d",
    ),
    Setting(
        "MAX_PROFILES", "max_profiles",
        "of users, and of merchants; beyond it those without an event for longest are forgotten",
    ),
    Setting("RECOVERY_DIR", "recovery_dir", "where snapshots of the state are kept"),
    Setting("RECOVERY_INTERVAL", "recovery_interval", "between snapshots", "s"),
    Setting("RECOVERY_PARTITIONS", "recovery_partitions", "files of a new recovery directory"),
    Setting(
        "OUTPUT_SETTLE_SECONDS", "output_settle_seconds",
        "how long the outputs must stand still on resume", "s",
    ),
    Setting(
        "DELIVERY_TIMEOUT_SECONDS", "delivery_timeout_seconds",
        "how long a broker may be away before the flow stops", "s",
    ),
    Setting("STOP_TIMEOUT_SECONDS", "stop_timeout_seconds", "for a graceful stop", "s"),
    Setting("MAX_BATCH", "max_batch", "messages a worker takes at once"),
    Setting(
        "MAX_EVENT_LEAD_SECONDS",
        "max_event_lead_seconds",
        "by how much an event time may lead the record's, and that the wall clock, and still move a profile's clock",
        "s",
    ),
    Setting(
        "METRICS_ADDRESS", "metrics_address",
        "where metrics are served, `off` for nowhere; process 1 of several takes the next port, and so on",
    ),
    Setting(
        "CONSOLE_ADDRESS", "console_address",
        "where the analysts' console listens; beyond this machine only with CONSOLE_USERS_FILE",
    ),
    Setting(
        "CONSOLE_DATABASE", "console_database",
        "the console's alerts, cases and labels: an SQLite file, or a PostgreSQL database as "
        "postgresql://user@host/database",
    ),
    Setting(
        "CONSOLE_USERS_FILE", "console_users_file",
        "who may use the console, with hashed passwords (`python -m console.users`); without it all who can reach it",
    ),
    Setting(
        "CONSOLE_PROXY_ADDRESSES", "console_proxy_addresses",
        "from where a reverse proxy comes that says who users are, in place of passwords; CONSOLE_USERS_FILE has roles",
    ),
    Setting("CONSOLE_PROXY_HEADER", "console_proxy_header", "the header in which that proxy names the user"),
    Setting(
        "CONSOLE_METRICS_ADDRESS", "console_metrics_address",
        "where the console serves its metrics, `/ready` and `/live`, `off` for nowhere",
    ),
    Setting(
        "CONSOLE_FLOW_METRICS", "console_flow_metrics",
        "where the console's overview reads the flow's metrics: the METRICS_ADDRESS of each process",
    ),
    Setting("CONSOLE_MAX_ALERTS", "console_max_alerts", "the newest alerts that the console keeps"),
    Setting("CONSOLE_AGE_DAYS", "console_age_days", "how long it keeps an alert", "d"),
    Setting(
        "CONSOLE_QUIET_MINUTES", "console_quiet_minutes",
        "after a case was closed as genuine, how long this user's alerts open none", "min",
    ),
    Setting(
        "LOG_FORMAT", "log_format", "`json`: each line of the log is an object"
    ),
    Setting(
        "LOG_LEVEL", "log_level", "what is logged: this and what is worse"
    ),
    Setting("GENERATOR_RATE", "generator_rate", "transactions generated", "1/s"),
    Setting("GENERATOR_COUNT", "generator_count", "transactions until the generator ends"),
    Setting("GENERATOR_DURATION", "generator_duration", "until the generator ends", "s"),
    Setting("GENERATOR_SEED", "generator_seed", "the same seed and start give the same transactions"),
    Setting(
        "GENERATOR_POPULATION", "generator_population",
        "thousands of people with habits, or three without",
    ),
    Setting("GENERATOR_START", "generator_start", "event time of the first transaction, ISO 8601"),
    Setting(
        "GENERATOR_PEOPLE", "generator_people",
        "how many people live, each at a natural pace: event time goes as fast as the rate asks of them; "
        "else as many as the rate takes, at the pace of the clock",
    ),
    Setting(
        "GENERATOR_LABEL_DELAY", "generator_label_delay",
        "feedback on each transaction, so long after it, by the clock on the wall; else none", "s",
    ),
    Setting(
        "GENERATOR_WARM_UP", "generator_warm_up",
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
    field = next(setting.field for setting in TABLE if setting.name == name)
    try:
        text = {**_read_dotenv(dotenv), **(os.environ if environ is None else environ)}.get(name, "").strip()
        return str(_read(field, text)) if text else default
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
