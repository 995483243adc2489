"""The log: one line an event on standard error, as text for people or as JSON for machines.

Programs log with `logging.getLogger("redflag.<part>")`; what a machine may want besides the message goes into `extra`.
No message and no field names a user or holds anything of a card: positions (topic, partition, offset) do.
"""

import json
import logging
import sys
from datetime import UTC, datetime

from dataflow.settings import leniently

NAME = "redflag"  # of the logger above all of Redflag's
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


def set_up() -> None:
    """Logs to standard error from now on, as `LOG_FORMAT` and `LOG_LEVEL` say; to be called first by every program.

    It reads these two by itself, and takes a wrong value for the default: `Settings.load` then says so, in this log.
    What other libraries log is shown from warnings on.
    """
    handler = _StandardError()
    handler.setFormatter(JsonLine() if leniently("LOG_FORMAT", "text") == "json" else TextLine())
    root = logging.getLogger()
    for earlier in [each for each in root.handlers if isinstance(each, _StandardError)]:
        root.removeHandler(earlier)
    root.addHandler(handler)
    logging.getLogger(NAME).setLevel(leniently("LOG_LEVEL", "info").upper())


class TextLine(logging.Formatter):
    """`redflag: ` and the message; of other libraries, their name and theirs."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and below it the traceback, where there is one."""
        name = NAME if record.name.split(".")[0] == NAME else record.name
        line = f"{name}: {_one_line(record)}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonLine(logging.Formatter):
    """One JSON object a line: time (ISO 8601, UTC), level, logger, message, and fields, where there are any."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever the message holds."""
        event: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _one_line(record),
        }
        if fields := {name: value for name, value in record.__dict__.items() if name not in _STANDARD}:
            event["fields"] = fields
        if record.exc_info:
            event["traceback"] = self.formatException(record.exc_info)
        return json.dumps(event, ensure_ascii=False, default=str)


def _one_line(record: logging.LogRecord) -> str:
    return " ".join(record.getMessage().splitlines())


class _StandardError(logging.Handler):
    """Writes to what `sys.stderr` is at that moment, and flushes it: the process may end right after."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(self.format(record), file=sys.stderr, flush=True)
        except Exception:
            self.handleError(record)
