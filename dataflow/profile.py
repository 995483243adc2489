"""What is remembered of a user: bounded, in event time, updated once a transaction, after it was scored."""

from array import array
from bisect import bisect_right, insort
from typing import Any

from dataflow.transaction import Transaction

VERSION = 1
"""Of the state as it is pickled into snapshots; a new layout takes a new number, and old recovery data is refused."""

HOUR = 3600.0
MAX_PER_HOUR = 1024
"""Event times kept of the last hour; a user with more counts as having this many."""


class UserProfile:
    """A user's last location and the times of the last hour's transactions.

    A late transaction (older than the newest) counts in the windows that it falls in, and moves nothing back.
    """

    __slots__ = ("last_at", "last_location", "times")

    def __init__(self) -> None:
        self.last_at = float("-inf")  # event time of the newest transaction
        self.last_location = ""
        self.times = array("d")  # event times of the last hour before the newest, ascending

    def per_hour(self, at: float) -> int:
        """How many of the user's transactions lie in the hour before `at`, itself included: at - 3600 < t <= at."""
        times = self.times
        if not times or at >= times[-1] + HOUR:
            return 0
        return bisect_right(times, at) - bisect_right(times, at - HOUR)

    def update(self, txn: Transaction) -> None:
        """Takes the transaction in, once it has been scored."""
        at = txn.at
        times = self.times
        if at >= self.last_at:
            self.last_at = at
            self.last_location = txn.location
            gone = bisect_right(times, at - HOUR)
            if gone:
                del times[:gone]
            times.append(at)
        elif at > self.last_at - HOUR:
            insort(times, at)
        if len(times) > MAX_PER_HOUR:
            del times[0]

    def __deepcopy__(self, memo: Any) -> "UserProfile":
        """A snapshot's copy: one small buffer, where the generic way would walk every attribute (0.5 µs, not 12)."""
        copy = UserProfile.__new__(UserProfile)
        copy.last_at = self.last_at
        copy.last_location = self.last_location
        copy.times = self.times[:]
        return copy

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (VERSION, self.last_at, self.last_location, self.times.tobytes())


def _restore(version: int, last_at: float, last_location: str, times: bytes) -> UserProfile:
    if version != VERSION:  # recovery.guard() refuses such data before it gets here; this is the last line of defence
        msg = f"user profile of version {version}, but this is version {VERSION}"
        raise ValueError(msg)
    profile = UserProfile()
    profile.last_at = last_at
    profile.last_location = last_location
    profile.times = array("d", times)
    return profile
