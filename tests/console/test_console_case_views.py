"""What a case draws: places on a map, and what its alert shares with others as a graph."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from confluent_kafka import Producer

from console.pages.alert_graph import CASES, nodes_and_links
from console.pages.places_map import frame_around, places_of
from console.records import Payment, decode_decision, payment_of
from dataflow.connectors.embedded_broker import EmbeddedBroker
from dataflow.settings import Settings
from tests.console.builders import Console, alert, alert_json
from tests.console.running import ROOT, RunningConsole, await_that, open_browser, run_console
from tests.support.builders import NOON, fields

EVIL = "<img src=x onerror=window.hacked=1>"
NEW_YORK, PARIS, TOKYO = (40.71, -74.01), (48.85, 2.35), (35.68, 139.69)


def payment(place: tuple[float, float] | None, at: float = NOON, name: str = "p") -> Payment:
    latitude, longitude = place or (None, None)
    return Payment(at, 10.0, "Amazon", "US", "phone", 0.1, False, name, latitude, longitude)


def test_payments_are_gathered_by_place_and_those_without_one_left_out() -> None:
    paid = [payment(PARIS, NOON + 2), payment(NEW_YORK), payment(None), payment((40.72, -74.02), NOON + 3, "mine")]
    places = places_of(paid, "mine")
    assert [(each.latitude, each.longitude, len(each.payments), each.chosen) for each in places] == [
        (40.72, -74.02, 2, True), (*PARIS, 1, False)
    ]  # fmt: skip


def test_marks_that_would_lie_over_each_other_are_one_place() -> None:
    boston = (42.36, -71.06)
    assert len(places_of([payment(NEW_YORK), payment(boston)], "")) == 2
    assert len(places_of([payment(NEW_YORK), payment(boston), payment(TOKYO)], "")) == 2
    assert places_of([payment(None)], "") == []


@pytest.mark.parametrize(("latitude", "longitude"), [(91, 0), (0, -181), (None, 5), (1e300, 0)])
def test_a_place_that_is_none_on_earth_is_left_out(latitude: float | None, longitude: float) -> None:
    decision = decode_decision(alert_json(latitude=latitude, longitude=longitude))
    found = payment_of(decision, NOON)
    assert (found.latitude, found.longitude) == (None, None)


@pytest.mark.parametrize("spots", [[PARIS], [NEW_YORK, TOKYO], [(90, 180)], [(-90, -180), (90, 180)], [(-89, 0)]])
def test_all_places_are_on_the_map_and_the_map_is_on_the_earth(spots: list[tuple[float, float]]) -> None:
    frame = frame_around(spots)
    assert frame.width == 2 * frame.height
    assert frame.left >= -180
    assert frame.left + frame.width <= 180
    assert frame.top >= -90
    assert frame.top + frame.height <= 90
    for latitude, longitude in spots:
        assert frame.left <= longitude <= frame.left + frame.width
        assert frame.top <= -latitude <= frame.top + frame.height


def rings() -> list[list[tuple[float, float]]]:
    """The land that is shipped: rings of longitude and latitude."""
    path = re.search(r' d="([^"]+)"', (ROOT / "console/pages/static/land.svg").read_text())
    assert path is not None
    found = []
    for ring in path[1].split("M")[1:]:
        numbers = [int(each) for each in re.findall(r"-?\d+", ring)]
        x = y = 0
        points = []
        for dx, dy in zip(numbers[::2], numbers[1::2], strict=True):
            x, y = x + dx, y + dy
            points.append((x / 10, -y / 10))
        found.append(points)
    return found


@pytest.mark.parametrize(
    ("latitude", "longitude", "land"),
    [
        (48.9, 2.4, True), (40.9, -76.0, True), (-25, 135, True), (0, 20, True), (65, 100, True), (36.3, 138.5, True),
        (-80, 0, True), (0, -30, False), (30, -45, False), (-20, 80, False), (30, 160, False), (45, -35, False),
    ],
)  # fmt: skip
def test_the_land_lies_where_it_does(latitude: float, longitude: float, land: bool) -> None:
    inside = False
    for ring in rings():
        for (x1, y1), (x2, y2) in zip(ring, [*ring[1:], ring[0]], strict=True):
            if (y1 > latitude) != (y2 > latitude) and longitude < x1 + (latitude - y1) * (x2 - x1) / (y2 - y1):
                inside = not inside
    assert inside is land


def test_the_graph_links_what_is_shared_and_is_bounded(tmp_path: Path) -> None:
    held = Console(tmp_path / "console.db")
    held.come(alert("ann", merchant=EVIL), alert("bob"), *(alert(f"u{n}", ip=None) for n in range(15)))
    held.store.label([2], "fraud", "eve")
    ann = held.store.alert(1)
    assert ann is not None
    nodes, links = nodes_and_links(ann, held.store.siblings(ann))
    by_id = {each["id"]: each for each in nodes}
    assert {each["source"] for each in links if each["target"] == "case 2"} == {"device", "ip"}
    assert {each["source"] for each in links if each["target"] == "case 17"} == {"device"}
    assert "merchant" not in by_id  # nobody else's alert has it
    assert by_id["case 2"]["category"] == 3  # labelled fraud
    assert len([name for name in by_id if name.startswith("case ")]) == CASES
    assert "case 2" in by_id  # that shares most, old as it is
    held.store.close()


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningConsole]:
    broker = EmbeddedBroker()
    settings = Settings(brokers=broker.address)
    with run_console(settings, tmp_path_factory.mktemp("console")) as running:
        producer = Producer({"bootstrap.servers": broker.address, "log_level": 0})

        def send(topic: str, value: bytes) -> None:
            producer.produce(topic, key=b"k", value=value)
            assert producer.flush(30) == 0

        for number, (latitude, longitude) in enumerate((NEW_YORK, NEW_YORK, PARIS)):
            paid = fields("ann", NOON - 9000 + number, transaction_id=f"p{number}", fraudulent=False, score=0.1)
            send(settings.classified_topic, msgspec.json.encode(paid | {"latitude": latitude, "longitude": longitude}))
        for user, more in (
            ("ann", {"latitude": TOKYO[0], "longitude": TOKYO[1], "location": "JP", "merchant": EVIL}),
            ("bob", {"ip": "10.9.9.9"}),
            (EVIL, {"device": "tablet", "merchant": EVIL}),
        ):
            send(settings.alerts_topic, alert_json(user, **more))
        yield running
    broker.close()


@pytest.mark.slow
def test_a_case_draws_a_map_and_a_graph_whose_names_stay_text(console: RunningConsole) -> None:
    with open_browser() as browser:

        def text() -> str:
            return str(browser.find_element("tag name", "body").text)

        browser.get(f"{console.url}case/1")
        await_that(lambda: "Where they paid" in text() and "case 2: bob" in text())
        for said in (  # payments are read by another thread than alerts
            "US (about 40.7° N, 74.0° W): 2 payments",
            "JP (about 35.7° N, 139.7° E): 1 payment, with the one of this alert",
        ):
            await_that(lambda s=said: s in text())  # type: ignore[misc]
        drawn = browser.execute_script(
            "const land = document.querySelector('.map .land').getBBox();"
            "return [[land.width, land.height], [...document.querySelectorAll('.map .place')].map(c => "
            "[c.getAttribute('cx'), c.getAttribute('cy'), c.classList.contains('chosen')]),"
            "document.querySelectorAll('.map .way').length]"
        )
        (width, height), places, ways = drawn
        assert width > 3500  # the land was had from the console itself
        assert height > 1600
        assert places == [["-74.01", "-40.71", False], ["2.35", "-48.85", False], ["139.69", "-35.68", True]]
        assert ways == 2
        graph = browser.find_element("css selector", ".graph svg").text
        assert "device phone-1" in graph
        assert "case 3: <img src=x on…" in graph
        time.sleep(0.5)
        assert browser.execute_script("return window.hacked") is None
        assert browser.execute_script("return document.querySelectorAll('img[src=x]').length") == 0
        assert [each for each in browser.get_log("browser") if each["level"] == "SEVERE"] == []
        labels = browser.find_elements("css selector", ".graph svg text")
        next(each for each in labels if each.text == "case 2: bob").click()
        await_that(lambda: browser.current_url.endswith("/case/2"))
        await_that(lambda: "No payment says where." in text())
