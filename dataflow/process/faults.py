"""What becomes of a transaction that makes a step raise: it goes to the dead letters, and the flow goes on.

A fault of the program that concerns every transaction is another matter: then so many fail in a row that the flow
ends, with one line.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

from dataflow.errors import UserError
from dataflow.events.transaction import Rejection
from dataflow.metrics import FAILED

V = TypeVar("V")
W = TypeVar("W")

IN_A_ROW: Final = 100
"""Failures of one step without a success between them that end the flow."""
LOG_SECONDS: Final = 60.0
"""Between two lines about failures of one step."""

log = logging.getLogger("redflag.faults")


class Guard:
    """Watches over one step.

    The threads of several workers may use it: a count that is off by one does no harm.

    Args:
        step: its id.
        dead_letter: what becomes of a value that the step raises on, given the error's type and the step.
    """

    __slots__ = ("_dead_letter", "_said", "in_a_row", "step")

    def __init__(self, step: str, dead_letter: Callable[[Any, str, str], Rejection | None]):
        self.step = step
        self.in_a_row = 0  # failures since the last success; a step sets it to 0
        self._dead_letter = dead_letter
        self._said = -math.inf

    def failed(self, value: Any, error: Exception) -> Rejection | None:
        """What goes to the dead letters for a value that made the step raise; None for one that has no message.

        Raises:
            UserError: so many failed in a row that it is a fault of the program; of a step that raises that itself.
        """
        if isinstance(error, UserError):
            raise error
        kind = type(error).__name__
        FAILED.labels(self.step, kind).inc()
        self.in_a_row += 1
        letter = self._dead_letter(value, kind, self.step)
        where = f"{letter.topic}[{letter.partition}]@{letter.offset}" if letter is not None else "a label"
        if self.in_a_row >= IN_A_ROW:
            msg = (
                f"the step {self.step} has failed {IN_A_ROW} times in a row, the last time with {kind} at {where}: a "
                "fault of the program, and the flow stops; nothing is lost: start a version without the fault, then "
                "send back what stands in the dead letters"
            )
            raise UserError(msg) from error
        now = time.monotonic()
        if now - self._said >= LOG_SECONDS:
            self._said = now
            # Without the error's text: it may hold what stands in the transaction.
            becomes = "goes to the dead letters" if letter is not None else "is left out"
            log.error("the step %s failed with %s at %s: that %s", self.step, kind, where, becomes)
        return letter

    def each(self, values: Sequence[V], do: Callable[[list[V]], list[W]]) -> tuple[list[W], list[Rejection]]:
        """What `do` makes of a batch, and the rejections of the values in it that it raises on.

        Where it raises, it is tried on each value by itself, and then on all that are sound, at once: so what it makes
        of these is what it would have made without the others. `do` must change nothing outside.
        """
        try:
            made = do(list(values))
        except Exception:
            sound, bad = [], []
            for value in values:
                try:
                    do([value])
                    sound.append(value)
                    self.in_a_row = 0
                except Exception as error:
                    letter = self.failed(value, error)
                    if letter is not None:
                        bad.append(letter)
            return do(sound), bad
        self.in_a_row = 0
        return made, []
