"""What tests share that run the detection flow as a process: its topics and its environment."""

import os
from pathlib import Path

from dataflow.settings import Settings
from tests.conftest import Broker, MakeTopic
from tests.support.kafka_server import KafkaServer

TOPICS = ("transactions", "alerts", "classified", "invalid", "feedback")


def topics_of_its_own(broker: Broker, topics: MakeTopic) -> Settings:
    """On a broker that others use, too."""
    return Settings(brokers=broker.bootstrap, **{f"{name}_topic": topics(name) for name in TOPICS})


def topics_by_default(server: KafkaServer) -> Settings:
    """On a broker of the test's own: the topics have the names that they have by default, and two partitions."""
    settings = Settings(brokers=server.bootstrap)
    server.create_topics({getattr(settings, f"{name}_topic"): 2 for name in TOPICS})
    return settings


def environ_of(settings: Settings, model_file: Path, directory: Path, interval: str = "1") -> dict[str, str]:
    """The environment of a flow on these topics, which keeps its snapshots in `directory`."""
    topics = {f"{name.upper()}_TOPIC": getattr(settings, f"{name}_topic") for name in TOPICS}
    return {
        **os.environ,
        **topics,
        "KAFKA_BROKERS": settings.brokers,
        "MODEL_FILE": str(model_file),
        "RECOVERY_DIR": str(directory / "recovery"),
        "RECOVERY_INTERVAL": interval,
    }
