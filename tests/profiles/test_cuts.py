"""Into which batches events are cut changes nothing: not what is said of them, nor what is remembered."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataflow.events.parsing import parse
from dataflow.events.transaction import Transaction
from dataflow.profiles import columns
from dataflow.profiles.amounts import AmountPrior
from dataflow.profiles.profiles import AGE_DAYS
from dataflow.simulation.simulator import DEFAULT_START, history, to_json
from tests.support.builders import DAY, HOUR, NOON, label
from tests.support.profile_builders import Event, Profiles, awkward, payment

PRIOR = AmountPrior(30.0, 1.0)


def check_alike(one: Profiles, other: Profiles) -> None:
    """Compares all that was said and all that is remembered."""
    np.testing.assert_array_equal(one.batch().numbers(), other.batch().numbers())
    assert one.features("last_location") == other.features("last_location")
    assert one.counts() == other.counts()
    assert str(one.lessons()) == str(other.lessons())  # NaN is unlike itself, but not its text
    assert one.outcomes == other.outcomes
    assert one.users.begun_anew == other.users.begun_anew
    assert one.merchants.begun_anew == other.merchants.begun_anew
    assert one.state() == other.state()


ages = st.sampled_from([0.05, 1.0, 4.0, AGE_DAYS])
spans = st.sampled_from([3 * HOUR, 5 * DAY, 60 * DAY])


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 5), spans, ages, st.lists(st.integers(0, 200), max_size=6))
def test_one_by_one_all_at_once_and_cut_anywhere_all_is_alike(
    seed: int, users: int, span: float, age_days: float, cuts: list[int]
) -> None:
    events = awkward(seed, 80, users, span)
    whole = Profiles(PRIOR, age_days).read_together(events)
    check_alike(Profiles(PRIOR, age_days).read(*events), whole)
    check_alike(Profiles(PRIOR, age_days).read_cut(events, cuts), whole)


@pytest.mark.parametrize(("users", "span"), [(2, 20 * DAY), (40, 60 * DAY), (1, 3 * HOUR)])
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 4))])
def test_long_awkward_histories_are_alike_and_reach_all_that_labels_can_do(seed: int, users: int, span: float) -> None:
    events = awkward(seed, 600, users, span)
    cuts = np.random.default_rng(seed).integers(0, len(events), 9).tolist()
    one_by_one, cut = Profiles(PRIOR, 15.0).read(*events), Profiles(PRIOR, 15.0).read_cut(events, cuts)
    check_alike(one_by_one, cut)
    assert all(cut.outcomes[name] for name in ("waiting", "repeated", "corrected"))
    assert cut.merchants.begun_anew > 0


@pytest.mark.slow
@pytest.mark.parametrize("delay", [7 * DAY, HOUR, 0.0])
def test_a_simulated_history_is_alike_with_labels_so_late(delay: float) -> None:
    comes: list[tuple[float, int, Event]] = []
    for number, each in enumerate(history(5, 60, 20, DEFAULT_START)):
        paid = parse(to_json(each), each.user.encode(), "transactions", 0, number, 0)
        assert isinstance(paid, Transaction)
        told = label(
            each.transaction_id, at=paid.at, after=delay, user=each.user, merchant=each.merchant, fraud=each.fraud
        )
        comes += [(paid.at, number, paid), (told.labelled_at, number, told)]
    events = [event for _, _, event in sorted(comes, key=lambda each: each[:2])]
    one_by_one = Profiles(PRIOR).read(*events)
    check_alike(one_by_one, Profiles(PRIOR).read_cut(events, range(777, len(events), 777)))
    assert max(one_by_one.features("confirmed_frauds")) > 0
    assert max(one_by_one.features("merchant_compromised")) > 0


# ------------------------------------------------------------------------------------------------------------- the cap


def since_evicted(profiles: Profiles, batches: Sequence[list[Event]]) -> list[tuple[str, list[Event], list[int], bool]]:
    """Reads batches; of each stay of a user: their events, the places of their transactions, whether it goes on."""
    stays: dict[str, tuple[list[Event], list[int]]] = {}
    ended, number = [], 0
    for batch in batches:
        profiles.read_together(batch)
        for event in batch:
            events, places = stays.setdefault(event.user, ([], []))
            events.append(event)
            if isinstance(event, Transaction):
                places.append(number)
                number += 1
        for user in stays.keys() - profiles.users.table.row_of.keys():
            ended.append((user, *stays.pop(user), False))
    return ended + [(user, *stay, True) for user, stay in stays.items()]


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 12), st.lists(st.integers(0, 120), max_size=12))
def test_whoever_is_evicted_begins_anew_and_nobody_else_is_touched(seed: int, cap: int, cuts: list[int]) -> None:
    events = awkward(seed, 60, 20, 5 * DAY)
    places = sorted({0, len(events), *(min(cut, len(events)) for cut in cuts)})
    batches = [events[begin:end] for begin, end in pairwise(places)]
    profiles = Profiles(PRIOR, cap=cap)
    stays = since_evicted(profiles, batches)
    # The keys of a batch all find room; those beyond the cap go when others come.
    assert len(profiles.users.table) <= max(cap, *(len({event.user for event in batch}) for batch in batches))
    assert len(profiles.merchants.table) <= max(cap, *(len(batch) for batch in batches))
    assert profiles.users.table.evicted == sum(not goes_on for *_, goes_on in stays)
    found = profiles.batch().numbers()[:, : columns.USER_FEATURES]
    for user, its, numbers, goes_on in stays:
        alone = Profiles(PRIOR).read(*its)
        np.testing.assert_array_equal(found[numbers], alone.batch().numbers()[:, : columns.USER_FEATURES])
        assert not goes_on or profiles.user(user) == alone.user(user)


def test_labels_evict_nobody_whose_transaction_is_in_the_same_batch() -> None:
    profiles = Profiles(cap=4).read(*(payment(NOON + n * DAY, user=f"old {n}") for n in range(4)))
    labels = [label("never", user="bob"), label("never", user="cat")]
    profiles.read_together([payment(NOON + 9 * DAY, user="ann", name="a"), *labels])
    assert profiles.user("cat")["seen"] == np.float32(0).tobytes()
    assert profiles.user("ann")["seen"] == np.float32(1).tobytes()


def test_users_of_one_batch_beyond_the_cap_all_find_room() -> None:
    users = defaultdict(list)
    for n in range(60):
        users[f"user {n % 20}"].append(payment(NOON + n, user=f"user {n % 20}"))
    profiles = Profiles(cap=5).read_together([each for paid in users.values() for each in paid])
    assert len(profiles.users.table) == 20
    assert sorted(set(profiles.features("history"))) == [0, 1, 2]
