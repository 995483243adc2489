"""What Kafka's own tool makes of an empty directory, made again without a Java process: that takes a second of a core.

The tool writes who the directory belongs to, and the features that the controller begins with. These depend on the
version and on the broker's settings only, so what it wrote once for some settings is good for another broker with them.
"""

import base64
import uuid
from collections.abc import Mapping
from pathlib import Path

OWNER = "meta.properties"
_written: dict[frozenset[tuple[str, str]], dict[Path, bytes]] = {}
"""By settings: the files but for `OWNER`, by their paths in the directory."""


def _key(settings: Mapping[str, object]) -> frozenset[tuple[str, str]]:
    return frozenset((name, str(value)) for name, value in settings.items())


def remember(data: Path, settings: Mapping[str, object]) -> None:
    """Keeps what the tool has just written for these settings."""
    files = [path for path in data.rglob("*") if path.is_file() and path.name != OWNER]
    _written[_key(settings)] = {path.relative_to(data): path.read_bytes() for path in files}


def format_again(data: Path, settings: Mapping[str, object], node: int, cluster: str) -> bool:
    """Writes for a new broker what the tool wrote for another with these settings; False where there was none."""
    if (files := _written.get(_key(settings))) is None:
        return False
    for name, content in files.items():
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_bytes(content)
    directory = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    owner = {"version": 1, "cluster.id": cluster, "node.id": node, "directory.id": directory}
    (data / OWNER).write_text("".join(f"{name}={value}\n" for name, value in owner.items()))
    return True
