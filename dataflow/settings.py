"""Settings of every Redflag program: typed, from the environment and `.env`, in one place."""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from dotenv import dotenv_values

_KAFKA_PREFIX = "KAFKA_CONFIG_"
_TOPIC_NAME = re.compile(r"[a-zA-Z0-9._-]{1,249}")
T = TypeVar("T")


class UserError(Exception):
    """A mistake the user can mend: the message is one line that says what, where, and what to do."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that can be set from outside; units are in the names or the comments."""

    brokers: str = "127.0.0.1:9092"
    given: frozenset[str] = frozenset()  # names of the variables that were set; all others have their defaults
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
    profiles: str = "full"  # or "basic": a user's last location and hours, no merchants, no feedback
    recovery_dir: Path = Path("recovery")
    # Seconds between snapshots; Bytewax takes whole ones. No decision is made while one is taken, 0.4 s for 5,000
    # active users; what came since the last is decided again after a crash, at 25,000 a second.
    recovery_interval: int = 60
    recovery_partitions: int = 4
    output_settle_seconds: float = 0.5  # how long the tail must stand still on resume (see exactly_once_sink)
    delivery_timeout_seconds: float = 120.0
    stop_timeout_seconds: float = 8.0
    max_batch: int = 500  # messages a partition hands to the flow at once
    # By how much an event time may lead the record's (and that the wall clock) and still move a profile's clock.
    max_event_lead_seconds: float = 300.0
    generator_rate: float = 2.0  # transactions a second
    generator_count: int | None = None
    generator_duration: float | None = None  # seconds
    generator_seed: int = 42
    generator_population: str = "realistic"
    generator_start: str | None = None  # ISO 8601; none means now

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None, dotenv: Path | None = Path(".env")) -> "Settings":
        """Reads the settings; the environment wins over `.env`.

        Raises:
            UserError: a variable has a wrong value; the line names it and what it takes.
        """
        values: dict[str, str] = {}
        if dotenv is not None and dotenv.is_file():
            values.update({k: v for k, v in dotenv_values(dotenv).items() if v is not None})
        values.update(os.environ if environ is None else environ)
        read = _Reader(values)
        base = cls()
        topics = {name: read.topic(name.upper(), getattr(base, name)) for name in _TOPICS}
        if len(set(topics.values())) < len(topics):
            twice = sorted(t for t in set(topics.values()) if list(topics.values()).count(t) > 1)
            msg = f"topic {twice[0]!r} is named by more than one *_TOPIC setting: give each topic its own name"
            raise UserError(msg)
        return cls(
            brokers=read.brokers("KAFKA_BROKERS", base.brokers),
            given=frozenset(name for name, value in values.items() if value.strip()),
            kafka_config=read.kafka_config(),
            rules_file=Path(read.text("RULES_FILE", str(base.rules_file))),
            rules_check_seconds=read.number("RULES_CHECK_SECONDS", base.rules_check_seconds, at_least=0.05),
            model_file=Path(read.text("MODEL_FILE", str(base.model_file))),
            profiles=read.choice("PROFILES", base.profiles, ("full", "basic")),
            recovery_dir=Path(read.text("RECOVERY_DIR", str(base.recovery_dir))),
            recovery_interval=read.integer("RECOVERY_INTERVAL", base.recovery_interval, at_least=1),
            recovery_partitions=read.integer("RECOVERY_PARTITIONS", base.recovery_partitions, at_least=1),
            output_settle_seconds=read.number("OUTPUT_SETTLE_SECONDS", base.output_settle_seconds, at_least=0.0),
            delivery_timeout_seconds=read.number(
                "DELIVERY_TIMEOUT_SECONDS", base.delivery_timeout_seconds, at_least=1.0
            ),
            stop_timeout_seconds=read.number("STOP_TIMEOUT_SECONDS", base.stop_timeout_seconds, at_least=1.0),
            max_batch=read.integer("MAX_BATCH", base.max_batch, at_least=1),
            max_event_lead_seconds=read.number("MAX_EVENT_LEAD_SECONDS", base.max_event_lead_seconds, at_least=0.0),
            generator_rate=read.number("GENERATOR_RATE", base.generator_rate, at_least=0.001),
            generator_count=read.optional("GENERATOR_COUNT", lambda name: read.integer(name, 0, at_least=0)),
            generator_duration=read.optional("GENERATOR_DURATION", lambda name: read.number(name, 0.0, at_least=0.0)),
            generator_seed=read.integer("GENERATOR_SEED", base.generator_seed, at_least=0),
            generator_population=read.choice(
                "GENERATOR_POPULATION", base.generator_population, ("realistic", "tutorial")
            ),
            generator_start=read.optional("GENERATOR_START", lambda name: read.text(name, "")),
            **topics,
        )

    def librdkafka(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """The librdkafka configuration: our defaults, then the user's `KAFKA_CONFIG_*`, then what we must fix."""
        return {"bootstrap.servers": self.brokers, **self.kafka_config, **own}


_TOPICS = (
    "transactions_topic",
    "alerts_topic",
    "classified_topic",
    "invalid_topic",
    "labels_topic",
    "feedback_topic",
)


class _Reader:
    """Reads one typed value at a time and says clearly what is wrong with it."""

    def __init__(self, values: Mapping[str, str]):
        self.values = values

    def text(self, name: str, default: str) -> str:
        return self.values.get(name, "").strip() or default

    def integer(self, name: str, default: int, at_least: int) -> int:
        return self._typed(name, default, int, f"a whole number of at least {at_least}", lambda v: v >= at_least)

    def number(self, name: str, default: float, at_least: float) -> float:
        def fits(value: float) -> bool:
            return at_least <= value < float("inf")

        return self._typed(name, default, float, f"a number of at least {at_least:g}", fits)

    def choice(self, name: str, default: str, allowed: tuple[str, ...]) -> str:
        return self._typed(name, default, str, "one of " + ", ".join(allowed), lambda v: v in allowed)

    def topic(self, name: str, default: str) -> str:
        def fits(value: str) -> bool:
            return _TOPIC_NAME.fullmatch(value) is not None and value not in (".", "..")

        return self._typed(name, default, str, "a topic name: letters, digits, '.', '_', '-', at most 249", fits)

    def brokers(self, name: str, default: str) -> str:
        def fits(value: str) -> bool:
            return all(re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[^\s:,]+):\d{1,5}", part) for part in value.split(","))

        return self._typed(name, default, str, "host:port, several with commas between", fits)

    def optional(self, name: str, read: Callable[[str], T]) -> T | None:
        return read(name) if self.values.get(name, "").strip() else None

    def kafka_config(self) -> dict[str, str]:
        return {
            name.removeprefix(_KAFKA_PREFIX).lower().replace("_", "."): value
            for name, value in sorted(self.values.items())
            if name.startswith(_KAFKA_PREFIX)
        }

    def _typed(self, name: str, default: T, convert: Callable[[str], T], takes: str, fits: Callable[[T], bool]) -> T:
        text = self.values.get(name, "").strip()
        if not text:
            return default
        try:
            value = convert(text)
        except ValueError:
            value = None
        if value is None or not fits(value):
            msg = f"{name}={text!r} is wrong: it takes {takes}; mend it in the environment or in .env"
            raise UserError(msg)
        return value
