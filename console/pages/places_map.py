"""Places of payments on a map: an SVG whose land comes with the console, so no tiles and nothing from elsewhere."""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from nicegui import ui
from nicegui.elements.mixins.text_element import TextElement

from console.pages.frame import STATIC, text
from console.records import Payment
from console.shown_text import moment, money

NARROWEST: Final = 40.0
"""Degrees of longitude that the map shows at least: the land is no finer. It is half as high as it is wide."""
MARGIN: Final = 1.3
APART: Final = 0.045
"""Parts of the map's width: payments that are nearer than that to each other are of one place, as their marks would be
over each other."""


class Place(NamedTuple):
    """Where payments were made."""

    latitude: float  # degrees
    longitude: float
    payments: tuple[Payment, ...]  # the newest last
    chosen: bool  # the payment that the page is about was made here


Spot = tuple[float, float]
"""Latitude and longitude, in degrees."""


class Frame(NamedTuple):
    """The part of the world that is shown, in degrees; `top` counts downwards from the equator, as SVG does."""

    left: float
    top: float
    width: float
    height: float


def places_of(payments: Iterable[Payment], chosen: str) -> list[Place]:
    """The places of payments that say theirs, in the order in which they were first paid at.

    A place lies where its first payment was made, and where the chosen one was, if that is one of its.
    """
    located = [each for each in payments if each.latitude is not None and each.longitude is not None]
    located.sort(key=lambda each: (each.transaction_id != chosen, each.at))  # the chosen one is the first of its place
    frame = frame_around([_spot(each) for each in located])
    gathered: list[tuple[Spot, list[Payment]]] = []
    for each in located:
        here = _spot(each)
        for spot, found in gathered:
            if math.dist(spot, here) < APART * frame.width:
                found.append(each)
                break
        else:
            gathered.append((here, [each]))
    places = [
        Place(
            *spot,
            tuple(sorted(found, key=lambda each: each.at)),
            any(each.transaction_id == chosen for each in found),
        )
        for spot, found in gathered
    ]
    return sorted(places, key=lambda place: place.payments[0].at)


def _spot(payment: Payment) -> Spot:
    return payment.latitude or 0.0, payment.longitude or 0.0


def frame_around(spots: Sequence[Spot]) -> Frame:
    """What of the world to show: all of these with a margin, twice as wide as high, never beyond the poles."""
    latitudes, longitudes = [each[0] for each in spots] or [0.0], [each[1] for each in spots] or [0.0]
    width = max(
        NARROWEST,
        (max(longitudes) - min(longitudes)) * MARGIN,
        (max(latitudes) - min(latitudes)) * MARGIN * 2,
    )
    width = min(width, 360.0)
    height = width / 2
    left = (max(longitudes) + min(longitudes) - width) / 2
    top = -(max(latitudes) + min(latitudes)) / 2 - height / 2
    return Frame(min(max(left, -180.0), 180.0 - width), min(max(top, -90.0), 90.0 - height), width, height)


def show_map(places: Sequence[Place]) -> None:
    """Draws the map, with a number for each place, and says below which is which."""
    frame = frame_around([_spot(each) for place in places for each in place.payments])
    unit = frame.width / 100  # a hundredth of the map's width, whatever part of the world it shows
    with _svg("svg", "map", viewBox=" ".join(f"{each:.3f}" for each in frame), **{"aria-hidden": "true"}):
        _svg("use", "land", href=f"{STATIC}/land.svg#land", transform="scale(.1)")
        for degree in range(-180, 181, 30):
            _svg("line", "grid", x1=degree, x2=degree, y1=-90, y2=90, **{"stroke-width": unit / 8})
            _svg("line", "grid", x1=-180, x2=180, y1=degree / 2, y2=degree / 2, **{"stroke-width": unit / 8})
        for one, other in _ways(places):
            _svg(
                "line", "way", x1=one.longitude, y1=-one.latitude, x2=other.longitude, y2=-other.latitude,
                **{"stroke-width": unit / 2},
            )  # fmt: skip
        for number, place in enumerate(places, 1):
            kind = "place chosen" if place.chosen else "place"
            _svg("circle", kind, cx=place.longitude, cy=-place.latitude, r=2.2 * unit)
            _text(str(number), place.longitude, -place.latitude, 3 * unit)
    with ui.element("ol").classes("places"):
        for place in places:
            last = place.payments[-1]
            count = f"{len(place.payments)} payments" if len(place.payments) > 1 else "1 payment"
            here = ", with the one of this alert" if place.chosen else ""
            where = f"{_degrees(place.latitude, 'N', 'S')}, {_degrees(place.longitude, 'E', 'W')}"
            said = f"{last.location} (about {where}): {count}{here}; last {moment(last.at)}, {money(last.amount)}"
            with ui.element("li"):
                text(said, "fraud" if place.chosen else "")


def _ways(places: Sequence[Place]) -> set[tuple[Place, Place]]:
    """From where to where they went, one payment after the other."""
    stops = sorted(((each.at, place) for place in places for each in place.payments), key=lambda stop: stop[0])
    return {(one, other) for (_, one), (_, other) in itertools.pairwise(stops) if one is not other}


def _degrees(value: float, positive: str, negative: str) -> str:
    return f"{abs(value):.1f}° {positive if value >= 0 else negative}"


def _svg(tag: str, classes: str, **attributes: object) -> ui.element:
    made = ui.element(tag).classes(classes)
    made.props.update({name: str(value) for name, value in attributes.items()})
    return made


def _text(number: str, x: float, y: float, size: float) -> None:
    made = TextElement(tag="text", text=number).classes("place-number")
    made.props.update({"x": str(x), "y": str(y + size * 0.36), "font-size": f"{size:.3f}", "text-anchor": "middle"})
