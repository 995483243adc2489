"""A replayed history has the features that the flow would have had, and labels come in when they come."""

import numpy as np
import pytest

from dataflow.features.batch import FeatureBatch
from tests.support.builders import HOUR, NOON, txn
from tests.support.profile_builders import Profiles
from training.histories.history import LabelTime, Past, after
from training.histories.replay import replay


def whole(past: list[Past], label_time: LabelTime | None = None) -> FeatureBatch:
    """A history's features, all in one batch."""
    ((replayed, batch),) = replay(past, label_time=label_time, batch=len(past))
    assert replayed == past
    assert batch.transactions == [each.transaction for each in past]
    return batch


def test_replay_gives_the_features_of_the_profiles_as_they_were_before() -> None:
    days = [txn(user=user, at=NOON + i * HOUR / 3, amount=i) for i in range(20) for user in ("ann", "bob")]
    found = whole([Past(each, None, "") for each in days])
    one_by_one = Profiles().read(*days).batch()
    assert np.array_equal(found.numbers(), one_by_one.numbers())
    assert found.column("last_location") == one_by_one.column("last_location")
    assert np.array_equal(found.column("history"), np.repeat(np.arange(20.0), 2))


@pytest.mark.parametrize("size", [1, 7, 47])
def test_into_which_batches_a_history_is_cut_changes_nothing(size: int) -> None:
    past = [Past(txn(user=f"u{i % 3}", at=NOON + i * HOUR), i % 5 == 0, "") for i in range(48)]
    expected = whole(past, after(10 * HOUR))
    parts = list(replay(past, label_time=after(10 * HOUR), batch=size))
    assert [each for part, _ in parts for each in part] == past
    assert np.array_equal(np.concatenate([batch.numbers() for _, batch in parts]), expected.numbers())
    assert [text for _, batch in parts for text in batch.column("last_location")] == expected.column("last_location")


def test_a_label_counts_from_its_time_on_and_not_before() -> None:
    """The leak test: what is found out later moves nothing that came before."""
    past = [Past(txn(user=f"u{i % 3}", at=NOON + i * HOUR), False, "") for i in range(48)]
    planted = [Past(each.transaction, i == 5, "") for i, each in enumerate(past)]
    without = whole(past, after(10 * HOUR)).numbers()
    with_fraud = whole(planted, after(10 * HOUR)).numbers()
    assert np.array_equal(without[:15], with_fraud[:15])  # the label of the sixth comes with the sixteenth
    assert not np.array_equal(without[15], with_fraud[15])
    never = whole(planted, lambda _past: None)
    assert np.array_equal(never.numbers(), whole(past).numbers())


def test_a_history_of_nothing_has_no_batch() -> None:
    assert list(replay([])) == []
