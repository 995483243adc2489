"""Which merchants, devices and locations a user is known to use: the last few new ones of each.

Merchants and devices are 32-bit hashes of their names, locations numbers in the table's dictionary of names; 0 stands
for a device or location that is not known, which is never remembered, and for an empty place.
"""

from typing import Any, Final

from dataflow.profiles.compilation import compiled

MERCHANTS: Final = 16
PLACES: Final = 4
"""Devices, and locations."""

FIELDS: Final = [("merchants", "u4", MERCHANTS), ("devices", "u4", PLACES), ("locations", "u4", PLACES)]


@compiled
def read(names: Any, name: int) -> bool:
    """Whether the name is known."""
    for known in names:  # noqa: SIM110 (Numba compiles no any())
        if known == name:
            return True
    return False


@compiled
def any_known(names: Any) -> bool:
    """Whether any name is known; the newest stands last."""
    return bool(names[-1] != 0)


@compiled
def update(names: Any, name: int) -> None:
    """Takes in a name that is not known yet; the oldest goes."""
    for i in range(len(names) - 1):
        names[i] = names[i + 1]
    names[-1] = name
