"""Storage that was formatted once serves another broker with the same settings, as one of its own."""

from pathlib import Path

from tests.support.kafka_storage import OWNER, format_again, remember

CHECKPOINT = Path("__cluster_metadata-0") / "0.checkpoint"


def formatted(data: Path) -> Path:
    """As Kafka's tool leaves it."""
    (data / CHECKPOINT).parent.mkdir(parents=True)
    (data / CHECKPOINT).write_bytes(b"features")
    (data / OWNER).write_text("node.id=1\ndirectory.id=a\nversion=1\ncluster.id=first\n")
    return data


def owner(data: Path) -> dict[str, str]:
    lines = (data / OWNER).read_text().splitlines()
    return dict(line.split("=", 1) for line in lines)


def test_a_second_broker_has_the_same_features_and_an_identity_of_its_own(tmp_path: Path) -> None:
    settings = {"message.max.bytes": 5_000_000, "of": "this test"}
    remember(formatted(tmp_path / "first"), settings)
    identities = []
    for name in ("second", "third"):
        assert format_again(tmp_path / name, settings, 1, name)
        assert (tmp_path / name / CHECKPOINT).read_bytes() == b"features"
        written = owner(tmp_path / name)
        assert (written["cluster.id"], written["node.id"], written["version"]) == (name, "1", "1")
        identities.append(written["directory.id"])
    assert len({*identities, "a"}) == 3


def test_other_settings_are_another_matter(tmp_path: Path) -> None:
    remember(formatted(tmp_path / "first"), {"of": "one"})
    assert not format_again(tmp_path / "second", {"of": "another"}, 1, "second")
    assert not (tmp_path / "second").exists()
