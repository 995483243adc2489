"""One line an event, as text or as JSON, and nothing of users or cards in it."""

import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime

import pytest

from dataflow.errors import UserError
from dataflow.process import event_log, lifecycle


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    event_log.set_up()


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> logging.Logger:
    monkeypatch.setenv("LOG_FORMAT", "json")
    event_log.set_up()
    return logging.getLogger("redflag.test")


def test_as_text_a_line_is_redflag_and_the_message(capsys: pytest.CaptureFixture[str]) -> None:
    event_log.set_up()
    logging.getLogger("redflag.test").info("rules %s\nfrom %s", "v1", "file")
    logging.getLogger("other.library").warning("careful")
    logging.getLogger("other.library").info("not shown")
    assert capsys.readouterr().err == "redflag: rules v1 from file\nother.library: careful\n"


def test_as_json_every_line_is_an_object_with_what_happened_and_its_fields(
    log: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    log.warning('two\nlines and "quotes"', extra={"topic": "transactions", "partition": 3})
    try:
        int("no")
    except ValueError:
        log.exception("failed")
    first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert datetime.fromisoformat(first.pop("time")).utcoffset() is not None
    assert first == {
        "level": "warning",
        "logger": "redflag.test",
        "message": 'two lines and "quotes"',
        "fields": {"topic": "transactions", "partition": 3},
    }
    assert second["message"] == "failed"
    assert second["traceback"].splitlines()[-1].startswith("ValueError: ")


def test_setting_up_twice_logs_once(log: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    event_log.set_up()
    log.info("once")
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_what_is_milder_than_the_level_is_not_logged(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOG_LEVEL", "warning")
    event_log.set_up()
    logging.getLogger("redflag.test").info("mild")
    logging.getLogger("redflag.test").warning("grave")
    assert capsys.readouterr().err == "redflag: grave\n"


def test_several_mistakes_have_a_line_each(log: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    lifecycle.complain(UserError("first\nsecond"))
    assert [json.loads(line)["message"] for line in capsys.readouterr().err.splitlines()] == ["first", "second"]


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_wrong_setting_of_the_log_is_told_in_the_log(form: str) -> None:
    """And the one that is right counts, though the settings as a whole cannot be read."""
    environ = {**os.environ, "LOG_FORMAT": form, "LOG_LEVEL": "loud", "MAX_BATCH": "none"}
    command = [sys.executable, "-m", "dataflow.detect"]
    found = subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=60)
    assert found.returncode == 2
    lines = io.StringIO(found.stderr).readlines()
    messages = [json.loads(line)["message"] if form == "json" else line.removeprefix("redflag: ") for line in lines]
    assert len(messages) == 2
    assert messages[0].startswith("MAX_BATCH='none' is wrong: it takes a whole number")
    assert messages[1].startswith("LOG_LEVEL='loud' is wrong: it takes one of debug, info, warning, error")
