"""The places at which a crash differs from one elsewhere: a test kills the process at each of them.

In a flow nobody sets the hook, and passing a point costs the time of a comparison.
"""

from collections.abc import Callable
from enum import IntEnum, auto


class Point(IntEnum):
    """Numbered, so that a test can run through all of them."""

    BEFORE_APPEND = auto()
    """Rows have changed in memory, nothing is written."""
    AFTER_APPEND = auto()
    """A chunk is written, not synced; no token names it."""
    NEW_LOG_FILE = auto()
    """A log file was made, and holds nothing."""
    BEFORE_SYNC = auto()
    """The thread that syncs is about to."""
    AFTER_SYNC = auto()
    """A chunk is on disk; its token is not in Bytewax's rows."""
    SNAPSHOT_TAKEN = auto()
    """Bytewax has the token, and has not pickled it."""
    TOKEN_PICKLED = auto()
    """The token is pickled, the row not yet written; rows of other lanes may be."""
    FIRST_BATCH_OF_EPOCH = auto()
    """The epoch before is committed on all workers."""
    COMPACTION_ASKED = auto()
    """The helper was told to make an image."""
    IMAGE_WRITTEN = auto()
    """The helper has written the image aside, and not synced it."""
    IMAGE_SYNCED = auto()
    """The image is on disk under its temporary name."""
    IMAGE_RENAMED = auto()
    """Both images are there, the old and the new."""
    OLD_IMAGE_REMOVED = auto()
    """Only the new image is there; the flow does not know of it yet."""
    COMPACTION_KNOWN = auto()
    """The flow goes on from the new image."""
    LOG_FILE_REMOVED = auto()
    """A log file that no chain needs was removed while the flow runs."""
    CLEANING = auto()
    """A file that no chain needs was removed at the start."""
    LANE_RESUMED = auto()
    """A lane was read from its image and chunks."""


hook: Callable[[Point], None] | None = None
"""What a test wants to happen at each point."""


def reached(point: Point) -> None:
    """Says that the process has come to a point."""
    if hook is not None:
        hook(point)
