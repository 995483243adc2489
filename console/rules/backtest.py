"""How `python -m training.backtest` is asked to try a copy: on the transactions and labels of the topics."""

import os
import tomllib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from dataflow.events.transaction import DAY
from dataflow.settings import Settings

MODULE: Final = "training.backtest"
COPY: Final = "the-copy.toml"


def arguments(
    settings: Settings, copy: str, folder: Path, now: float, days: float, warm_up_days: float
) -> Sequence[str]:
    """Puts the copy into a folder, and returns the command's arguments.

    What is read is the topic of transactions since so many days before now, and before them as many as are to fill
    the profiles; with the labels of the feedback topic, which come back as feedback when they came.
    """
    since = datetime.fromtimestamp(now - (days + warm_up_days) * DAY, UTC).isoformat()
    feedback = f"kafka:{settings.feedback_topic}"
    return [
        "--rules", str(_beside_its_lists(copy, settings.rules_file, folder)), "--against", str(settings.rules_file),
        "--history", f"kafka:{settings.transactions_topic}@{since}", "--warm-up", f"{warm_up_days:g}d",
        "--feedback", feedback, "--labels", feedback,
    ]  # fmt: skip


def _beside_its_lists(copy: str, original: Path, folder: Path) -> Path:
    """Writes the copy where it finds the lists beside the original: by links, so that no byte of it differs."""
    lists = tomllib.loads(copy).get("lists", {}).values()
    named = [source.get("file") if isinstance(source, dict) else source for source in lists]
    files = [name for name in named if isinstance(name, str) and not Path(name).is_absolute()]
    # As deep as the names of lists go up, so that their links stay in the folder.
    above = max((Path(name).parts.count("..") for name in files), default=0)
    place = folder.joinpath(*["rules"] * (above + 1))
    place.mkdir(parents=True)
    for name in files:
        link = Path(os.path.normpath(place / name))
        if not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to((original.parent / name).resolve())
    (place / COPY).write_text(copy)
    return place / COPY
