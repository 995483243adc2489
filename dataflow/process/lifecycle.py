"""How a flow ends: gracefully on SIGTERM or Ctrl-C, and in one line, not a traceback, on a user's mistake."""

import atexit
import functools
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import NoReturn, ParamSpec, TypeVar

from dataflow.errors import UserError
from dataflow.process import event_log
from dataflow.settings import Settings

P = ParamSpec("P")
R = TypeVar("R")

_log = logging.getLogger("redflag.lifecycle")
_stopping = threading.Event()
_alone = threading.Event()  # set in a process that no other waits for
_failing = threading.RLock()  # held by the thread that ends the process with a user's mistake
_reporting = threading.Event()  # set in a process that is a flow and nothing else, so not in tests


def stopping() -> bool:
    """Whether a stop was asked for: the sources end, what they handed out is decided and flushed."""
    return _stopping.is_set()


def wait_for_stop(seconds: float) -> None:
    """Sleeps, but not longer than until a stop is asked for."""
    _stopping.wait(seconds)


def end_if_stopping() -> None:
    """Ends this process, where a stop was asked for and no other process waits for it.

    To be called by what looks through the outputs at a start, which can take longer than a stop may. What other worker
    threads have decided by then, the next start finds.
    """
    if _stopping.is_set() and _alone.is_set():
        _log.info("stopped while it still looked for what stands on the outputs: nothing is lost by that")
        os._exit(_exit_status[-1])


_when_running: list[Callable[[], None]] = []


def when_running(call: Callable[[], None]) -> None:
    """Registers what is to be called once all processes of the cluster have found each other."""
    _when_running.append(call)


def cluster_stands() -> None:
    """To be called by what Bytewax calls only then."""
    while _when_running:
        _when_running.pop()()


def report_mistakes() -> None:
    """From now on a user's mistake ends this process with one line of the log; also one raised deep in a worker."""
    event_log.set_up()
    sys.excepthook = _report
    _reporting.set()


def warn_of_unknown(settings: Settings) -> None:
    """Logs a line for each variable that looks like a setting and is none; to be called once by each program."""
    for line in settings.unknown:
        _log.warning("%s", line)


def exit_on_user_error(method: Callable[P, R]) -> Callable[P, R]:
    """For what Bytewax's workers call: an exception there comes out as a panic of many lines, with ours behind them."""

    @functools.wraps(method)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(*args, **kwargs)
        except UserError as error:
            if _reporting.is_set():
                fail(error)
            raise

    return guarded


def stop_gracefully(stop_timeout_seconds: float, alone: bool = False) -> None:
    """From now on SIGTERM and Ctrl-C stop the flow gracefully; `alone`: it is all in this process.

    A stop ends the sources; Bytewax then finishes what is in hand, takes the last snapshot and returns. What is not
    done after `stop_timeout_seconds` (the broker is away, or another process of the cluster does not stop) is given
    up: nothing is lost by that, it is decided after the restart. A second signal ends the process at once.
    """

    def give_up() -> None:
        _log.error(
            "not finished %g s after the signal: exiting now; what is not decided yet is decided after the restart",
            stop_timeout_seconds,
        )
        os._exit(1)

    def listen() -> None:
        while True:
            (signum,) = os.read(listening, 1)
            if _stopping.is_set():
                os._exit(128 + signum)
            _stopping.set()
            timer = threading.Timer(stop_timeout_seconds, give_up)
            timer.daemon = True
            timer.start()

    if alone:
        _alone.set()
    # Python runs a handler in the main thread, between bytecodes: not while that waits for a broker inside a client.
    # The number of the signal is written to the pipe at once, and a thread of its own reads it.
    listening, told = os.pipe()
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, _heard)
    signal.signal(signal.SIGINT, _heard)
    threading.Thread(target=listen, name="redflag-signals", daemon=True).start()


def _heard(signum: int, frame: FrameType | None) -> None:
    """What is to be done is done by the thread that listens."""


def tune_gc() -> None:
    """Lets the garbage collector run seldom, once model and rules are loaded.

    Next to nothing in the flow forms cycles, but the collector walks every profile and every transaction in hand: at
    Python's defaults that is 10 % of the CPU time of a transaction (54 against 49 µs, medians of three).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def complain(error: UserError) -> None:
    """Logs a user's mistake; where it is several, each in a line of its own."""
    for line in str(error).splitlines():
        _log.error("%s", line)


def fail(error: UserError) -> NoReturn:
    """Ends the process with the one line of a user's mistake and exit status 2.

    At once: the interpreter's own way out would wait for worker threads that may be stuck in a poll. Several threads
    may meet the same mistake at the same moment: the first speaks, the others wait here until the process is gone.
    """
    _failing.acquire()  # never let go of
    sys.stdout.flush()
    complain(error)
    os._exit(2)


def _report(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """Logs a user's mistake as one line, wherever in the chain of causes it stands; anything else in full."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            fail(cause)
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, Exception):
        _log.critical("ended by an error of the program: %s", kind.__name__, exc_info=(kind, error, traceback))
    else:  # Ctrl-C
        sys.__excepthook__(kind, error, traceback)


TOPICS_CHANGED = 3
"""The exit status that says to a supervisor: the topics have changed, start me anew."""

_exit_status = [0]  # the last is that of a graceful stop


def end_with(status: int, stop_timeout_seconds: float) -> None:
    """Stops the flow gracefully, and ends the process with that status, at the latest after the timeout."""
    _exit_status.append(status)
    atexit.register(os._exit, status)
    _stopping.set()
    timer = threading.Timer(stop_timeout_seconds, os._exit, (status,))
    timer.daemon = True
    timer.start()
