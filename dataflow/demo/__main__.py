"""The whole of Redflag on one machine, to look at: broker, generator, detector and console, with alerts as they come.

`KAFKA_BROKERS`, where it is set, is used instead of the embedded broker.
"""

import argparse
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import NamedTuple
from urllib.parse import urlsplit

import msgspec
from rich.console import Console
from rich.live import Live
from rich.text import Text

from dataflow.connectors import kafka_source
from dataflow.demo.figures import Figures
from dataflow.demo.past_life import Life, warm_up
from dataflow.demo.screen import alert_line, live_line, summary
from dataflow.demo.tally import Tally
from dataflow.errors import UserError
from dataflow.events.transaction import DAY
from dataflow.generate import early_start, longest, speed_of, start_of
from dataflow.process import event_log, lifecycle
from dataflow.process.child_processes import ChildProcesses
from dataflow.settings import TUTORIAL_RULES, Settings
from dataflow.start_report import METRICS_ON

_log = logging.getLogger("redflag.run")

DRAIN_SECONDS = 60.0  # how long, after the generator has ended, the detector may need for what is left
TRUTH_SECONDS = 3.0  # then, how long the truth: it is written with the transactions, but for those of others
RATE = 50.0  # transactions a second unless GENERATOR_RATE is set: enough that an alert comes every few seconds
PEOPLE = 2_000  # unless GENERATOR_PEOPLE is set: their two weeks are decided in seconds, and fill every profile
LABEL_DELAY = 10.0  # seconds unless GENERATOR_LABEL_DELAY is set
PAST_LABEL_DELAY = 7 * DAY  # of the warm-up, in event time: what models are trained with unless told otherwise
CONSOLE_AT = "the console is at "  # how the line begins in which the console says where
SHOWN_EVERY = 5.0  # seconds between two lines of progress where there is no terminal


class Result(NamedTuple):
    """What a run came to."""

    complete: bool  # all that was generated was decided once, in the warm-up and live
    figures: Figures  # of the live transactions
    start_seconds: float  # until the first of them could come


class _Stop:
    """Whether the user wants it to end."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def _ask(self, _signum: int, _frame: FrameType | None) -> None:
        self.asked = True


def with_defaults(settings: Settings, duration: float | None) -> Settings:
    """The settings of a run, where they differ from those of its parts: pace, people, labels; model and rules.

    Raises:
        UserError: a setting is wrong.
    """
    given = settings.given
    own: dict[str, object] = {"generator_duration": duration}
    if "GENERATOR_RATE" not in given:
        own["generator_rate"] = RATE
    if settings.generator_population == "tutorial":
        # Three users without habits, who have no past that could matter, and no fraud among them.
        own["generator_warm_up"] = 0.0
        if "MODEL_FILE" not in given:
            own["model_file"] = settings.model_file.with_stem(f"{settings.model_file.stem}_tutorial")
        if "RULES_FILE" not in given:
            own["rules_file"] = TUTORIAL_RULES
        return msgspec.structs.replace(settings, **own)
    if "GENERATOR_PEOPLE" not in given:
        own["generator_people"] = PEOPLE
    if "GENERATOR_LABEL_DELAY" not in given:
        own["generator_label_delay"] = LABEL_DELAY
    settings = msgspec.structs.replace(settings, **own)
    speed = speed_of(settings.generator_rate, settings.generator_people)
    if duration is None and speed > 1:
        duration = longest(speed)
    start = start_of(settings) or early_start(datetime.now(UTC), speed, float("inf") if duration is None else duration)
    return msgspec.structs.replace(settings, generator_duration=duration, generator_start=start.isoformat())


def past_of(settings: Settings) -> Life | None:
    """The life that fills the profiles; None where that is switched off."""
    if not settings.generator_warm_up or settings.generator_people is None or settings.generator_start is None:
        return None
    return Life(
        seed=settings.generator_seed,
        people=settings.generator_people,
        days=settings.generator_warm_up,
        end=datetime.fromisoformat(settings.generator_start),
        label_delay=None if settings.generator_label_delay is None else PAST_LABEL_DELAY,
    )


def train_tutorial_model(settings: Settings, console: Console) -> None:
    """Trains the model of the tutorial's population where it is not there yet.

    Raises:
        UserError: that failed.
    """
    if settings.generator_population != "tutorial" or "MODEL_FILE" in settings.given or settings.model_file.exists():
        return
    out = str(settings.model_file)
    console.print(f"Training a model on the tutorial's population: {out}", markup=False, highlight=False)
    command = [sys.executable, "-m", "training.train", "--population", "tutorial", "--out", out]
    trained = subprocess.run(command, capture_output=True, text=True, check=False)
    if trained.returncode:
        last = next(reversed(trained.stderr.strip().splitlines()), "it said nothing")
        msg = f"no model of the tutorial's population: {last.removeprefix('redflag: ')}"
        raise UserError(msg)


def run(settings: Settings, duration: float | None, console: Console, environ: Mapping[str, str]) -> Result:
    """Runs the stack until the duration is over or Ctrl-C."""
    began = time.monotonic()
    own_kafka = "KAFKA_BROKERS" in settings.given
    settings = with_defaults(settings, duration)
    train_tutorial_model(settings, console)
    stop = _Stop()
    with tempfile.TemporaryDirectory(prefix="redflag-") as scratch:
        stack = ChildProcesses(environ, Path(scratch))
        tally = None
        try:
            if not own_kafka:
                stack.start("broker", "dataflow.connectors.embedded_broker")
                # It answers a fetch that finds nothing only when that time is over: then 100 ms would be the latency.
                config = {**settings.kafka_config, "fetch.wait.max.ms": "5"}
                brokers = stack.wait_for("broker", "127.0.0.1:")
                settings = msgspec.structs.replace(settings, brokers=brokers, kafka_config=config)
            tally = Tally(settings)
            _start_detector(stack, settings, own_kafka, scratch)
            served = stack.find("detector", METRICS_ON)
            metrics_at = served.partition(METRICS_ON)[2].strip() if served else None
            _start_console(stack, settings, own_kafka, scratch, urlsplit(metrics_at).netloc if metrics_at else None)
            where = settings.brokers if own_kafka else f"the embedded broker at {settings.brokers}"
            console.print(f"Kafka: {where}. Ctrl-C ends it.", markup=False, highlight=False)
            if metrics_at:
                console.print(f"Metrics: {metrics_at}", markup=False, highlight=False)
            past = past_of(settings)
            if past is not None:
                _warm_up(past, stack, tally, settings, console, lambda: stop.asked)
            served = stack.wait_for("console", CONSOLE_AT)
            console.print(f"Alerts to work on: {served.partition(CONSOLE_AT)[2]}", markup=False, highlight=False)
            tally.go_live()
            start_seconds = time.monotonic() - began
            if not stop.asked:
                _start_generator(stack, settings, own_kafka)
                _watch(stack, tally, settings, console, lambda: stop.asked)
                stack.stop("generator")
            generated = tally.generated()
            _await(lambda: tally.decided() >= generated, DRAIN_SECONDS, stack, tally, console)
            _await(tally.judged, TRUTH_SECONDS, stack, tally, console)
            stack.stop("detector")
            tally.take(0.5)  # nothing may come any more: what does would be a decision too many
            generated = tally.generated()
            console.print(summary(tally, settings, generated))
            complete = generated == tally.decided() and tally.to_warm() == tally.warmed and not tally.refused_labels
            return Result(complete, tally.figures, start_seconds)
        finally:
            if tally is not None:
                tally.close()
            stack.stop_all()


def _common(settings: Settings, own_kafka: bool) -> dict[str, str]:
    environ = {"KAFKA_BROKERS": settings.brokers}
    if not own_kafka:
        environ["KAFKA_CONFIG_FETCH_WAIT_MAX_MS"] = settings.kafka_config["fetch.wait.max.ms"]
    return environ


def _start_detector(stack: ChildProcesses, settings: Settings, own_kafka: bool, scratch: str) -> None:
    environ = _common(settings, own_kafka)
    environ |= {"MODEL_FILE": str(settings.model_file), "RULES_FILE": str(settings.rules_file), "LOG_LEVEL": "info"}
    if not own_kafka:
        # The embedded broker forgets everything, so what belongs to it does not outlive it either.
        environ |= {"RECOVERY_DIR": f"{scratch}/recovery", "RECOVERY_INTERVAL": "10"}
    if "METRICS_ADDRESS" not in settings.given:
        environ["METRICS_ADDRESS"] = "127.0.0.1:0"  # one that a `make detect` beside us cannot have; it says which
    stack.start("detector", "dataflow.detect", **environ)
    stack.wait_for("detector", f"{kafka_source.READY} {settings.transactions_topic}[")


def _start_console(
    stack: ChildProcesses, settings: Settings, own_kafka: bool, scratch: str, flow_metrics: str | None
) -> None:
    """Starts the analysts' console, which is ready by the time that the profiles are filled.

    `flow_metrics`: host:port where the detector serves its metrics, if it does.
    """
    environ = _common(settings, own_kafka) | {"LOG_LEVEL": "info"}
    if "CONSOLE_ADDRESS" not in settings.given:
        environ["CONSOLE_ADDRESS"] = "127.0.0.1:0"  # one that a `make console` beside us cannot have; it says which
    if "CONSOLE_DATABASE" not in settings.given:
        environ["CONSOLE_DATABASE"] = f"{scratch}/console.db"
    if "CONSOLE_METRICS_ADDRESS" not in settings.given:
        environ["CONSOLE_METRICS_ADDRESS"] = "127.0.0.1:0"
    if "CONSOLE_FLOW_METRICS" not in settings.given and flow_metrics is not None:
        environ["CONSOLE_FLOW_METRICS"] = flow_metrics
    environ["MODEL_FILE"] = str(settings.model_file)
    stack.start("console", "console", **environ)


def _start_generator(stack: ChildProcesses, settings: Settings, own_kafka: bool) -> None:
    values = {
        "GENERATOR_RATE": settings.generator_rate,
        "GENERATOR_DURATION": settings.generator_duration,
        "GENERATOR_PEOPLE": settings.generator_people,
        "GENERATOR_WARM_UP": settings.generator_warm_up,
        "GENERATOR_START": settings.generator_start,
        "GENERATOR_LABEL_DELAY": settings.generator_label_delay,
    }
    wishes = {name: str(value) for name, value in values.items() if value is not None}
    stack.start("generator", "bytewax.run", "dataflow.generate:flow", **_common(settings, own_kafka), **wishes)


def _warm_up(
    past: Life,
    stack: ChildProcesses,
    tally: Tally,
    settings: Settings,
    console: Console,
    stopping: Callable[[], bool],
) -> None:
    """Fills the profiles, shows how far it is, and says in one line what it was."""
    began = time.monotonic()

    def going_on() -> bool:
        _must_run(stack)
        return not stopping()

    with _progress(console) as show:
        count = warm_up(
            past,
            settings,
            tally,
            going_on,
            lambda decided: show(
                Text(f"filling profiles: {decided:,} of about {past.expected:,} transactions", style="bold")
            ),
        )
    console.print(
        f"Profiles of {past.people:,} people filled with {past.days:g} days of their life: {count:,} transactions in "
        f"{time.monotonic() - began:.0f} s",
        markup=False,
        highlight=False,
    )


def _watch(
    stack: ChildProcesses, tally: Tally, settings: Settings, console: Console, stopping: Callable[[], bool]
) -> None:
    """Shows alerts and a running count until the generator ends or a stop is asked for."""
    with _progress(console) as show:
        while not stopping() and not stack.ended("generator"):
            _must_run(stack)
            for alert in tally.take(0.2):
                console.print(alert_line(alert), soft_wrap=True)
            show(live_line(tally, settings))


def _await(is_done: Callable[[], bool], seconds: float, stack: ChildProcesses, tally: Tally, console: Console) -> None:
    """Reads what the detector still decides, for so long at most."""
    deadline = time.monotonic() + seconds
    while not is_done() and time.monotonic() < deadline and not stack.ended("detector"):
        for alert in tally.take(0.1):
            console.print(alert_line(alert), soft_wrap=True)


def _must_run(stack: ChildProcesses) -> None:
    if stack.ended("detector"):
        msg = "the detector ended by itself"
        raise UserError(msg)


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[Text], None]]:
    """A line that changes in place on a terminal; elsewhere one is printed every `SHOWN_EVERY` seconds."""
    shown = time.monotonic()
    with Live(Text("starting ..."), console=console, refresh_per_second=4, transient=True) as live:

        def show(line: Text) -> None:
            nonlocal shown
            live.update(line)
            if not console.is_terminal and time.monotonic() - shown > SHOWN_EVERY:
                shown = time.monotonic()
                console.print(line, soft_wrap=True)

        yield show


def main() -> None:
    """Runs the stack; exits with 0 if what was generated was decided, 1 if not, 2 on a user's mistake."""
    parser = argparse.ArgumentParser(prog="python -m dataflow.demo", description=__doc__)
    parser.add_argument("--duration", type=float, help="seconds to generate for; without it until Ctrl-C")
    arguments = parser.parse_args()
    if arguments.duration is not None and not 0 < arguments.duration < float("inf"):
        parser.error("--duration takes a number of seconds above 0")
    event_log.set_up()
    console = Console(highlight=False)
    try:
        settings = Settings.load()
        lifecycle.warn_of_unknown(settings)
        result = run(settings, arguments.duration, console, os.environ)
    except UserError as error:
        lifecycle.complain(error)
        sys.exit(2)
    if not result.complete:
        _log.error("the summary does not add up: not all that was generated was decided once")
        sys.exit(1)


if __name__ == "__main__":
    main()
