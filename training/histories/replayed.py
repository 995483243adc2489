"""What training, evaluation and the choice of an operating point keep of a replayed history: one row a transaction."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np

from dataflow.features.batch import FeatureBatch
from dataflow.scoring.decision_tree import Bools, Floats, Rows
from dataflow.scoring.metadata import Window
from training.histories.history import Past


class Replayed(NamedTuple):
    """A history as the model sees it: one row a transaction, and what is known of it."""

    rows: Rows  # (n, features)
    fraud: Bools  # (n,)
    labelled: Bools  # (n,), whether `fraud` is known
    times: Floats  # (n,), event times, ascending
    amounts: Floats  # (n,)
    by_rules: Bools  # (n,), alerts of the active rules without the model

    def part(self, which: slice) -> "Replayed":
        """Those of these places."""
        columns: Any = [column[which] for column in self]
        return Replayed(*columns)

    def with_features(self, mine: Sequence[str], wanted: Sequence[str]) -> "Replayed":
        """With other columns of features: some of those that it has."""
        return self._replace(rows=np.ascontiguousarray(self.rows[:, [mine.index(name) for name in wanted]]))

    def window(self, source: str) -> Window:
        """From when to when, and how many."""
        return Window(source=source, first=iso(self.times[0]), last=iso(self.times[-1]), rows=len(self.times))

    def known_by(self, moment: float, delay: float) -> Bools:
        """Of which transactions the label had come by `moment`, so many seconds after its transaction."""
        known: Bools = self.labelled & (self.times + delay <= moment)
        return known


class Keeper:
    """Takes a replayed history batch by batch, and keeps the columns of a model, 4 bytes a value."""

    def __init__(self, features: Sequence[str]):
        self.count = 0  # transactions kept so far
        self._features = features
        self._rows: list[Rows] = [np.empty((0, len(features)), np.float32)]
        self._truth: list[bytes] = []  # a byte a transaction: 1 fraud, 0 genuine, 2 not known
        self._times: list[Floats] = [np.empty(0)]
        self._amounts: list[Floats] = [np.empty(0)]
        self._by_rules: list[Bools] = [np.empty(0, np.bool_)]

    def keep(self, past: Sequence[Past], batch: FeatureBatch, by_rules: Bools) -> None:
        """Keeps a batch, and the alerts of the rules on it, of shape (n,)."""
        self.count += len(past)
        self._rows.append(batch.floats(self._features))
        self._truth.append(bytes(2 if each.fraud is None else each.fraud for each in past))
        self._times.append(np.array(batch.column("timestamp")))  # copies: a view would keep all features of its batch
        self._amounts.append(np.array(batch.column("amount")))
        self._by_rules.append(by_rules)

    def replayed(self) -> Replayed:
        """All that was kept."""
        truth = np.frombuffer(b"".join(self._truth), np.uint8)
        return Replayed(
            np.concatenate(self._rows),
            truth == 1,
            truth < 2,
            np.concatenate(self._times),
            np.concatenate(self._amounts),
            np.concatenate(self._by_rules),
        )


def iso(at: float) -> str:
    """A time as ISO 8601, UTC, to the second."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
