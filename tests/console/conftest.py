"""What tests of the console share: a browser for each file, and a console's topics."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dataflow.settings import Settings
from tests.conftest import Broker, MakeTopic
from tests.console.postgres_server import PostgresServer
from tests.console.running import open_browser


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    made = PostgresServer()
    yield made
    made.close()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.slow)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new database, once of each kind, as `CONSOLE_DATABASE` names it."""
    if request.param == "sqlite":
        return str(tmp_path / "console.db")
    server: PostgresServer = request.getfixturevalue("postgres_server")
    return server.make_place()


@pytest.fixture(scope="module")
def opened() -> Iterator[Any]:
    with open_browser() as browser:
        yield browser


@pytest.fixture
def browser(opened: Any) -> Any:
    """The browser as if new: no page, no cookie, nothing in its log."""
    opened.get("about:blank")
    opened.delete_all_cookies()
    opened.get_log("browser")
    return opened


@pytest.fixture
def settings(broker: Broker, topics: MakeTopic) -> Settings:
    return Settings(
        brokers=broker.bootstrap,
        alerts_topic=topics("alerts"),
        feedback_topic=topics("feedback"),
        classified_topic=topics("classified"),
    )
