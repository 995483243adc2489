"""What travels between steps with lanes: what of a batch belongs to one lane, as one object."""

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

Reduced = tuple[Callable[..., Any], tuple[Any, ...]]


class EncodedOnce(ABC):
    """What goes to another process as one object.

    Timely asks twice for what it sends, for the length and for the bytes: it is encoded once.
    """

    __slots__ = ("_reduced",)

    def __init__(self) -> None:
        self._reduced: Reduced | None = None

    @abstractmethod
    def encoded(self) -> Reduced:
        """A function at the top of a module, and what it takes to make the same in another process."""

    def __reduce__(self) -> Reduced:
        reduced, self._reduced = self._reduced, None  # it is not asked for a third time, so it need not be kept
        if reduced is None:
            reduced = self._reduced = self.encoded()
        return reduced


def lane_of(key: str, lanes: int) -> int:
    """The lane of a key; the same in each execution, so it is part of what recovery data is."""
    return zlib.crc32(key.encode("utf-8", "surrogatepass")) % lanes
