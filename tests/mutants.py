"""The detection flow with a fault put in on purpose, to see that the checks of its guarantee bite.

An entry module as `dataflow.detect` is one, for tests only: REDFLAG_MUTANT names the fault.
"""

import os
import sys
from collections.abc import Callable
from typing import Any

from bytewax.dataflow import Dataflow

from dataflow import detect, recovery
from dataflow.connectors import delivery, exactly_once_sink
from dataflow.settings import Settings


def ignore_the_skip_list() -> None:
    """What stands in the outputs already is written again."""
    read_tail = exactly_once_sink._read_tail
    exactly_once_sink._read_tail = lambda *where: (set(), read_tail(*where)[1])


def ignore_delivery_errors() -> None:
    """A record that the broker refuses vanishes without a word, as with Bytewax's own sink."""
    delivery.Delivery._failed = lambda *_: None  # type: ignore[method-assign]


def leave_out_the_flush() -> None:
    """The snapshot is taken with records still in the producer's queue."""
    delivery.Delivery.flush = delivery.Delivery.check  # type: ignore[method-assign]


MUTANTS: dict[str, Callable[[], Any]] = {
    "skip_list": ignore_the_skip_list,
    "delivery_errors": ignore_delivery_errors,
    "flush": leave_out_the_flush,
}


def flow() -> Dataflow:
    """The flow with the fault."""
    MUTANTS[os.environ["REDFLAG_MUTANT"]]()
    return detect.flow()


def main() -> None:
    """As `dataflow.detect`."""
    settings = Settings.load()
    recovery.prepare(settings.recovery_dir, settings.recovery_partitions)
    options = ["-r", str(settings.recovery_dir), "-s", str(settings.recovery_interval), "-b", "0", *sys.argv[1:]]
    os.execv(sys.executable, [sys.executable, "-m", "bytewax.run", "tests.mutants:flow", *options])  # noqa: S606


if __name__ == "__main__":
    main()
