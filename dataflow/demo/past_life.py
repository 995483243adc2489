"""Fills the detector's profiles before the first live transaction: weeks of people's life, through the flow itself.

Written as if it had been there all the time: each record, transaction or feedback, is dated when it took place.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import NamedTuple

from dataflow.connectors.delivery import Delivery
from dataflow.demo.tally import Tally
from dataflow.errors import UserError
from dataflow.events.transaction import DAY
from dataflow.generate import KeyedBytes, feedback_on
from dataflow.settings import Settings
from dataflow.simulation.simulator import Simulated, history, natural_rate, to_json

UNDECIDED = 8_000
"""Transactions that may wait for a decision: the embedded broker keeps 5 MB a partition, some 25,000 decisions."""
STEP = 500
"""Records between two looks at what was decided."""
PATIENCE_SECONDS = 60.0
"""How long the detector may decide nothing."""


class Life(NamedTuple):
    """What people did before the live part: `simulation.life_after` goes on with it."""

    seed: int
    people: int
    days: float
    end: datetime  # event time at which the live part begins
    label_delay: float | None  # seconds of event time after which feedback comes; None for no feedback

    @property
    def expected(self) -> int:
        """About how many transactions it holds."""
        return round(natural_rate(self.people) * self.days * DAY)

    def transactions(self) -> Iterator[Simulated]:
        """In event-time order."""
        return history(self.seed, self.people, self.days, self.end - timedelta(days=self.days))


class Dated(NamedTuple):
    """A message as it was produced at `at`, seconds since 1970."""

    at: float
    topic: str
    message: KeyedBytes


def messages(life: Life, settings: Settings) -> Iterator[Dated]:
    """Transactions, and the feedback that came before the last of them, in the order of their times."""
    unlabelled: deque[Simulated] = deque()
    for txn in life.transactions():
        if life.label_delay is not None:
            while unlabelled and (at := unlabelled[0].at + life.label_delay) <= txn.at:
                yield Dated(at, settings.feedback_topic, feedback_on(unlabelled.popleft(), at))
            unlabelled.append(txn)
        yield Dated(txn.at, settings.transactions_topic, (txn.user.encode(), to_json(txn)))


def warm_up(
    life: Life, settings: Settings, tally: Tally, going_on: Callable[[], bool], show: Callable[[int], None]
) -> int:
    """Produces a life, as fast as the detector decides it; returns how many transactions that were.

    `going_on` says between two steps whether to go on, and `show` hears how many were decided. When it returns, all
    that was produced is decided.

    Raises:
        UserError: the broker does not take the records, or the detector decides nothing for `PATIENCE_SECONDS`.
    """
    delivery = Delivery(settings)
    produced = 0

    def await_decisions(undecided: int) -> None:
        heard, warmed = time.monotonic(), tally.warmed
        while produced - tally.warmed > undecided and going_on():
            tally.take(0.05)
            if tally.warmed > warmed:
                heard, warmed = time.monotonic(), tally.warmed
            elif time.monotonic() - heard > PATIENCE_SECONDS:
                msg = (
                    f"the detector has decided {tally.warmed:,} of {produced:,} transactions, and no other for "
                    f"{PATIENCE_SECONDS:g} s: its log says why"
                )
                raise UserError(msg)
            show(tally.warmed)

    for number, dated in enumerate(messages(life, settings), 1):
        key, value = dated.message
        delivery.produce(dated.topic, key=key, value=value, timestamp=int(dated.at * 1000))
        produced += dated.topic == settings.transactions_topic
        if number % STEP == 0:
            delivery.poll()
            tally.take(0)
            show(tally.warmed)
            await_decisions(UNDECIDED)
            if not going_on():
                break
    delivery.flush()
    await_decisions(0)
    return produced
