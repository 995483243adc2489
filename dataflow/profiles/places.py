"""Where the user is usually, and how far they roam: the centre of their coordinates, fading, and their last ones."""

import math
from typing import Any, Final

from dataflow.profiles.compilation import compiled, float64

EARTH_KM: Final = 6371.0
MIN_KM: Final = 10.0
"""Kilometres that a user without history is thought to move about their centre."""
MEMORY: Final = 150.0
"""Transactions over which centre and roaming reach."""
CLIP: Final = 3.0
"""Usual distances beyond which a journey moves the centre no further."""
SHORTEST_HOURS: Final = 1.0 / 60.0
"""What two transactions are apart at least where a speed is reckoned."""
RADIAN: Final = math.pi / 180.0

FIELDS: Final = [
    (name, "f4") for name in ("latitude", "longitude", "home_latitude", "home_longitude", "placed", "roam")
]
"""Degrees; `placed` transactions with coordinates, up to `MEMORY`; mean kilometres from the centre."""


@compiled
def kilometres(latitude: float, longitude: float, to_latitude: float, to_longitude: float) -> float:
    """Great-circle distance (haversine formula), degrees to kilometres."""
    a, b = latitude * RADIAN, to_latitude * RADIAN
    across, along = math.sin((b - a) / 2), math.sin((to_longitude - longitude) * RADIAN / 2)
    x = across * across + math.cos(a) * math.cos(b) * (along * along)
    return 2 * EARTH_KM * math.asin(math.sqrt(min(x, 1.0)))


@compiled
def read(p: Any, latitude: float, longitude: float, hours: float) -> tuple[float, float, float, float]:
    """Kilometres from the centre; in what is usual; kilometres from the last place; km/h that this takes.

    Zeros where the user has no place yet. `hours` since the user's newest transaction.
    """
    placed = float64(p["placed"])
    if placed == 0.0:
        return 0.0, 0.0, 0.0, 0.0
    km = kilometres(float64(p["home_latitude"]), float64(p["home_longitude"]), latitude, longitude)
    hop = kilometres(float64(p["latitude"]), float64(p["longitude"]), latitude, longitude)
    usual = (float64(p["roam"]) * placed + MIN_KM) / (placed + 1.0)
    return km, km / usual, hop, hop / max(hours, SHORTEST_HOURS)


@compiled
def update(p: Any, latitude: float, longitude: float, km: float, late: bool) -> None:
    """Moves the centre towards coordinates that lie `km` from it; late ones are not the last place."""
    placed, roam = float64(p["placed"]), float64(p["roam"])
    if placed == 0.0 or not late:
        p["latitude"], p["longitude"] = latitude, longitude
    if placed == 0.0:
        p["home_latitude"], p["home_longitude"], p["placed"] = latitude, longitude, 1.0
        return
    home_latitude, home_longitude = float64(p["home_latitude"]), float64(p["home_longitude"])
    reach = CLIP * (roam * placed + MIN_KM) / (placed + 1.0) + MIN_KM
    placed = placed + 1.0 if placed < MEMORY else MEMORY
    step = 1.0 / placed
    if km > reach and placed > 3.0:  # one far journey does not move the centre far
        step *= reach / km
        km = reach
    east = (longitude - home_longitude + 180.0) % 360.0 - 180.0
    p["home_latitude"] = home_latitude + step * (latitude - home_latitude)
    p["home_longitude"] = (home_longitude + step * east + 180.0) % 360.0 - 180.0
    p["roam"] = roam + (km - roam) / placed
    p["placed"] = placed
