"""What kinds of errors send a message to the dead letters: few names, for metrics, which no message can add to."""

from typing import Final

from dataflow.events.transaction import Rejection

OTHER: Final = "other"
STEP_FAILED: Final = "step failed"
_BEGINNINGS: Final = (
    ("missing", "missing field"),
    ("half a coordinate", "missing field"),
    ("Expected", "wrong type or range"),
    ("Number out of range", "wrong type or range"),
    ("not an ISO 8601 time", "not a time"),
    ("more than a day ahead", "ahead of time"),
    ("before the transaction", "label before its transaction"),
    ("not JSON", "not JSON"),
    ("not valid UTF-8", "not UTF-8"),
    ("nested too deeply", "nested too deeply"),
    ("the message has no value", "no value"),
    ("the value is empty", "no value"),
)
"""How an error of `parsing` or `feedback` begins, and what kind it is."""
KINDS: Final = tuple(dict.fromkeys([*(kind for _, kind in _BEGINNINGS), STEP_FAILED, OTHER]))
"""All there are."""


def error_kind(bad: Rejection) -> str:
    """The kind of a rejection's error, one of `KINDS`; the error itself may say where in the message it is."""
    if bad.step:
        return STEP_FAILED
    for beginning, kind in _BEGINNINGS:
        if bad.error.startswith(beginning):
            return kind
    return OTHER
