"""The command lines of training: a parser whose mistakes end in one line, and values that say what they take.

A duration is written as 12h or 7d everywhere. Each function but `number` is a `type` of argparse.
"""

import argparse
import math
import re
from collections.abc import Callable
from typing import NoReturn

from dataflow.errors import UserError
from dataflow.events.parsing import event_time
from dataflow.events.transaction import DAY


class Parser(argparse.ArgumentParser):
    """A command line; a mistake in it is a `UserError` that says where all its options are told."""

    def error(self, message: str) -> NoReturn:
        """Ends the reading of the command line."""
        msg = f"{message} ({self.prog} --help lists them all)"
        raise UserError(msg)


def delay(text: str) -> float:
    """A time such as 12h or 7d, in seconds."""
    match = re.fullmatch(r"(\d{1,4}(?:\.\d{1,3})?)([hd])", text)
    if match is None:
        msg = f"{text!r} is no time such as 12h or 7d"
        raise argparse.ArgumentTypeError(msg)
    return float(match[1]) * (DAY if match[2] == "d" else 3600.0)


def moment(text: str) -> float:
    """An ISO 8601 time, in seconds since 1970 UTC."""
    try:
        return event_time(text)
    except (ValueError, OverflowError):
        msg = f"{text!r} is no ISO 8601 time"
        raise argparse.ArgumentTypeError(msg) from None


def whole(low: int, high: int) -> Callable[[str], int]:
    """Takes a whole number."""

    def convert(text: str) -> int:
        if not re.fullmatch(r"\d{1,12}", text) or not low <= int(text) <= high:
            msg = f"{text!r} is no whole number from {low} to {high}"
            raise argparse.ArgumentTypeError(msg)
        return int(text)

    return convert


def days(text: str) -> float:
    """A number of days, ten years at most."""
    value = number(text)
    if not 0 < value <= 3_660:
        msg = f"{text!r} is no number of days above 0 and up to 3660"
        raise argparse.ArgumentTypeError(msg)
    return value


def number(text: str) -> float:
    """The number that a text is; NaN for any other."""
    try:
        return float(text)
    except ValueError:
        return math.nan
