"""The simulation: same seed same transactions, natural habits, labelled fraud, and nothing of the truth told."""

import hashlib
import json
import math
import re
import subprocess
import sys
import time
import tracemalloc
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from statistics import mean, median

import pytest

from dataflow.events.parsing import parse
from dataflow.events.transaction import Transaction
from dataflow.simulation import population
from dataflow.simulation import simulator as simulation
from dataflow.simulation.population import CITIES, DAY, HOUR, SimulatedPopulation
from dataflow.simulation.simulator import (
    POPULATIONS,
    SCENARIOS,
    Simulated,
    history,
    label_to_json,
    life_after,
    people_for,
    stream,
    to_json,
)

pytestmark = pytest.mark.slow

MONDAY = datetime(2026, 1, 5, tzinfo=UTC)
FIELDS = ["transaction_id", "user", "amount", "location", "device", "merchant", "txn_type", "timestamp"]
PLACE = ["latitude", "longitude", "category"]
UTC_OFFSET = {city.country: city.utc_offset for city in CITIES}


@pytest.fixture(scope="module")
def month() -> list[Simulated]:
    return list(history(seed=7, users=2000, days=30))


def honest(txns: list[Simulated]) -> list[Simulated]:
    return [txn for txn in txns if not txn.fraud]


def by_scenario(txns: list[Simulated], scenario: str) -> list[Simulated]:
    return [txn for txn in txns if txn.scenario == scenario]


def by_user(txns: list[Simulated]) -> dict[str, list[Simulated]]:
    users = defaultdict(list)
    for txn in txns:
        users[txn.user].append(txn)
    return users


def first(count: int, seed: int = 7, rate: float = 2.0, start: datetime = MONDAY, **more: str) -> list[Simulated]:
    return list(islice(stream(seed, rate, start, **more), count))


def wire(txns: list[Simulated]) -> bytes:
    return b"\n".join(part for txn in txns for part in (to_json(txn), label_to_json(txn)))


def share_above(txns: list[Simulated], amount: float) -> float:
    return mean(txn.amount > amount for txn in txns)


def kilometres(a: Simulated, b: Simulated) -> float:
    """Haversine."""
    lat_a, lat_b = math.radians(a.latitude), math.radians(b.latitude)
    half = math.sin((lat_a - lat_b) / 2) ** 2
    half += math.cos(lat_a) * math.cos(lat_b) * math.sin(math.radians(a.longitude - b.longitude) / 2) ** 2
    return 2 * 6371 * math.asin(math.sqrt(half))


# Determinism.


@pytest.mark.parametrize("kind", POPULATIONS)
def test_the_same_seed_gives_the_same_bytes(kind: str) -> None:
    assert wire(first(3000, population=kind)) == wire(first(3000, population=kind))
    once, again = (wire(list(history(3, users=100, days=3, population=kind))) for _ in range(2))
    assert once == again


def test_another_process_gives_the_same_bytes() -> None:
    code = (
        "import sys, hashlib; from datetime import *; from itertools import islice\n"
        "from dataflow.simulation.simulator import *\n"
        "txns = islice(stream(7, 2.0, datetime(2026, 1, 5, tzinfo=UTC)), 500)\n"
        "print(hashlib.sha256(b'\\n'.join(p for t in txns for p in (to_json(t), label_to_json(t)))).hexdigest())"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.strip() == hashlib.sha256(wire(first(500))).hexdigest()


@pytest.mark.parametrize("kind", POPULATIONS)
def test_another_seed_gives_other_transactions(kind: str) -> None:
    def told(seed: int) -> list[tuple[str, float, str]]:
        return [(txn.user, txn.amount, txn.merchant) for txn in first(200, seed=seed, population=kind)]

    assert told(1) != told(2)


@pytest.mark.parametrize("kind", POPULATIONS)
def test_a_later_run_with_the_same_seed_takes_other_ids(kind: str) -> None:
    runs = [first(500, start=MONDAY + timedelta(seconds=s), population=kind) for s in (0, 1)]
    ids = [{txn.transaction_id for txn in run} for run in runs]
    assert len(ids[0]) == 500
    assert ids[0].isdisjoint(ids[1])


def test_a_start_without_offset_means_utc() -> None:
    assert wire(first(50, start=datetime(2026, 1, 5))) == wire(first(50))  # noqa: DTZ001


# Time and pace.


def test_history_is_in_event_time_order_and_within_its_days(month: list[Simulated]) -> None:
    times = [txn.at for txn in month]
    assert times == sorted(times)
    assert times[0] >= MONDAY.timestamp()
    assert times[-1] < MONDAY.timestamp() + 30 * DAY


def test_people_make_about_one_to_five_transactions_a_day(month: list[Simulated]) -> None:
    per_day = sorted(len(txns) / 30 for txns in by_user(month).values())
    assert len(per_day) == 2000
    assert mean(per_day) == pytest.approx(3, rel=0.03)
    assert per_day[20] > 1
    assert per_day[-200] < 5


def test_people_sleep_at_night_in_their_own_time_zone(month: list[Simulated]) -> None:
    for country in ("FR", "JP", "BR"):
        at_home = [txn for txn in honest(month) if txn.location == country]
        hours = Counter(int(txn.at / HOUR + UTC_OFFSET[country]) % 24 for txn in at_home)
        total = hours.total()
        assert sum(hours[h] for h in range(2, 6)) / total < 0.08
        assert sum(hours[h] for h in range(16, 20)) / total > 0.22


@pytest.mark.parametrize("kind", POPULATIONS)
@pytest.mark.parametrize("rate", [0.01, 2.0, 3000.0])
def test_a_stream_keeps_its_rate_exactly(kind: str, rate: float) -> None:
    for i, txn in enumerate(first(2000, rate=rate, population=kind)):
        since = txn.at - MONDAY.timestamp()
        assert i / rate - 0.002 <= since <= (i + 1) / rate + 0.002  # timestamps have milliseconds


def test_as_many_people_as_the_rate_needs() -> None:
    assert people_for(2.0) == 57_600
    assert people_for(0.001) == 2_000
    assert people_for(30_000.0) == 500_000


@pytest.mark.parametrize("rate", [0.05, 2.0, 5000.0])
def test_a_stream_has_its_share_of_fraud_from_the_beginning(rate: float) -> None:
    txns = first(20_000, rate=rate)
    assert 0.006 < mean(txn.fraud for txn in txns) < 0.015


def test_a_stream_slower_than_its_people_does_not_begin_with_the_frauds_of_a_fast_one() -> None:
    assert mean(txn.fraud for txn in first(1000, rate=0.005)) < 0.03


def test_every_scenario_comes_up_in_a_stream() -> None:
    assert {txn.scenario for txn in first(30_000, rate=1000.0)} == {"none", *SCENARIOS}


def test_timestamps_are_the_event_time_in_utc_with_milliseconds() -> None:
    for txn in first(100):
        assert re.fullmatch(r"2026-01-05T00:\d\d:\d\d\.\d{3}Z", txn.timestamp)
        assert datetime.fromisoformat(txn.timestamp).timestamp() == txn.at


# The truth, and who is told of it.


def test_about_one_percent_is_fraud_and_every_scenario_has_its_part(month: list[Simulated]) -> None:
    assert 0.008 < mean(txn.fraud for txn in month) < 0.012
    counts = Counter(txn.scenario for txn in month if txn.fraud)
    assert set(counts) == set(SCENARIOS)
    assert len(SCENARIOS) == 6
    for scenario in SCENARIOS:
        assert 0.05 < counts[scenario] / counts.total() < 0.35, scenario


def test_fraud_has_a_scenario_and_the_rest_has_none(month: list[Simulated]) -> None:
    assert all(txn.fraud == (txn.scenario != "none") for txn in month)


def test_the_json_has_the_fields_of_the_contract_and_no_others(month: list[Simulated]) -> None:
    for txn in [*month[:500], *(txn for txn in month if txn.fraud)]:
        told = json.loads(to_json(txn))
        assert list(told) == FIELDS + PLACE
        assert told == {name: getattr(txn, name) for name in told}


def test_the_json_is_the_same_whatever_the_truth_is(month: list[Simulated]) -> None:
    txn = next(txn for txn in month if txn.fraud)
    told = to_json(txn)
    txn.fraud, txn.scenario, true = False, "none", txn.scenario
    assert to_json(txn) == told
    txn.fraud, txn.scenario = True, true


def test_a_label_says_the_truth_and_whom_it_is_about(month: list[Simulated]) -> None:
    txn = by_scenario(month, "card_testing")[0]
    assert json.loads(label_to_json(txn)) == {
        "transaction_id": txn.transaction_id,
        "fraud": True,
        "scenario": "card_testing",
    }


def test_ids_are_unique_and_betray_nothing(month: list[Simulated]) -> None:
    ids = [txn.transaction_id for txn in month]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[0-9a-f]{24}", identity) for identity in ids)
    fraudulent = [int(txn.transaction_id[:8], 16) / 2**32 for txn in month if txn.fraud]
    assert mean(fraudulent) == pytest.approx(0.5, abs=5 * 0.289 / math.sqrt(len(fraudulent)))


def test_users_devices_and_merchants_of_frauds_are_named_like_all_others(month: list[Simulated]) -> None:
    named = r"user_\d{6} (card|mobile|desktop|tablet)-[0-9a-f]{5} ([a-z_]+_\d{4}|XYZ_Merchant|UnknownShop)"
    for txn in month:
        assert re.fullmatch(named, f"{txn.user} {txn.device} {txn.merchant}")
        assert f"{txn.amount:.2f}" == f"{round(txn.amount, 6):.2f}"
        assert round(txn.amount, 2) == txn.amount
        assert round(txn.latitude, 4) == txn.latitude


@pytest.mark.parametrize("kind", POPULATIONS)
def test_the_flow_takes_every_simulated_transaction(kind: str) -> None:
    for txn in first(2000, rate=1000.0, population=kind):
        parsed = parse(to_json(txn), txn.user.encode(), "transactions", 0, 0, int(txn.at * 1000))
        assert isinstance(parsed, Transaction)
        assert parsed.at == txn.at
        assert parsed.transaction_id == txn.transaction_id
        assert parsed.body == to_json(txn)  # the fast way: nothing to mend


# Habits of honest people.


def test_honest_amounts_are_small_with_a_long_tail(month: list[Simulated]) -> None:
    txns = honest(month)
    assert mean(5 <= txn.amount <= 150 for txn in txns) > 0.9
    assert 0.0005 < share_above(txns, 400) < 0.005
    assert min(txn.amount for txn in txns) >= 0.5


def test_honest_people_seldom_change_country_within_an_hour(month: list[Simulated]) -> None:
    changes = 0
    for txns in by_user(honest(month)).values():
        changes += sum(a.location != b.location and b.at - a.at < HOUR for a, b in pairwise(txns))
    assert 0 < changes < 0.001 * len(month)


def test_honest_people_seldom_outpace_an_airliner(month: list[Simulated]) -> None:
    fast = 0
    for txns in by_user(honest(month)).values():
        fast += sum(kilometres(a, b) > 50 + 900 * (b.at - a.at) / HOUR for a, b in pairwise(txns))
    assert fast < 0.003 * len(month)


def test_some_honest_people_travel(month: list[Simulated]) -> None:
    abroad = sum(len({txn.location for txn in txns}) > 1 for txns in by_user(honest(month)).values())
    assert 0.05 < abroad / 2000 < 0.3


def test_people_have_favourite_merchants_and_their_own_devices(month: list[Simulated]) -> None:
    at_favourites, on_own = [], []
    for txns in by_user(honest(month)).values():
        if len(txns) >= 60:
            groceries = Counter(txn.merchant for txn in txns if txn.category == "grocery")
            at_favourites.append(sum(n for _, n in groceries.most_common(3)) / max(1, groceries.total()))
            on_own.append(sum(n for _, n in Counter(txn.device for txn in txns).most_common(4)) / len(txns))
    assert mean(at_favourites) > 0.6
    assert mean(on_own) > 0.97


def test_a_person_is_the_same_whoever_was_asked_before() -> None:
    ahead, behind = SimulatedPopulation(5, 1_000_000), SimulatedPopulation(5, 1_000_000)
    for index in (3, 999_999, 3):
        behind.person(index)
    at = MONDAY.timestamp()
    for index in (999_999, 3):
        a, b = ahead.person(index), behind.person(index)
        assert (a.user, a.home, a.card, a.device(1), a.spend) == (b.user, b.home, b.card, b.device(1), b.spend)
        assert [a.where(at + day * DAY) for day in range(90)] == [
            b.where(at + day * DAY) for day in reversed(range(90))
        ][::-1]
    assert SimulatedPopulation(6, 1_000_000).person(3).home != ahead.person(3).home


def test_nobody_pays_while_on_the_way() -> None:
    people = SimulatedPopulation(5, 500)
    for index in range(500):
        places = [people.person(index).where(MONDAY.timestamp() + hour * HOUR) for hour in range(24 * 60)]
        for a, b in pairwise(places):
            assert a is None or b is None or a.country == b.country


# Stories of fraud.


def test_frauds_are_easy_and_hard(month: list[Simulated]) -> None:
    frauds = [txn for txn in month if txn.fraud]
    assert 0.02 < share_above(frauds, 400) < 0.15
    assert 20 < median(txn.amount for txn in frauds) < 120


def test_impossible_travel_pays_abroad_within_an_hour_of_the_person_paying_here(month: list[Simulated]) -> None:
    last: dict[str, Simulated] = {}
    begun: set[str] = set()
    cases = 0
    for txn in month:
        if txn.scenario == "impossible_travel" and txn.user not in begun:
            begun.add(txn.user)
            cases += 1
            before = last[txn.user]
            assert txn.at - before.at < HOUR
            assert txn.device.startswith("card-")
            assert before.location != txn.location
            assert kilometres(before, txn) > 100
        if not txn.fraud and txn.user not in begun:
            last[txn.user] = txn
    assert cases > 20


def test_card_testing_tries_tiny_amounts_at_one_shop_and_then_takes_more(month: list[Simulated]) -> None:
    cases = [txns for txns in by_user(by_scenario(month, "card_testing")).values() if 4 <= len(txns) <= 9]
    assert len(cases) > 20
    for txns in cases:
        if txns[-1].at - txns[0].at > 3 * HOUR or txns[0].at < MONDAY.timestamp() + DAY:
            continue
        tiny = [txn for txn in txns if txn.amount < 5]
        assert len(tiny) >= 3
        assert len({txn.merchant for txn in tiny}) == 1
        assert len({txn.device for txn in txns}) == 1
    assert median(max(txn.amount for txn in txns) for txns in cases) > 50


def test_frauds_keep_their_own_time_among_few_people() -> None:
    tried = by_user(by_scenario(list(history(7, users=20, days=200)), "card_testing"))
    gaps = [b.at - a.at for txns in tried.values() for a, b in pairwise(txns)]
    assert len(gaps) > 10
    assert 15 < median(gaps) < 180  # while the 20 of them make a transaction in 24 minutes


def test_a_takeover_comes_from_a_device_that_the_person_does_not_own(month: list[Simulated]) -> None:
    people = SimulatedPopulation(7, 2000)
    taken = by_scenario(month, "account_takeover")
    for txn in taken:
        person = people.person(int(txn.user.removeprefix("user_")))
        assert txn.device not in (person.card, *(person.device(i) for i in range(3)))
    assert mean(txn.txn_type == "transfer" for txn in taken) > 0.5


def test_a_spending_burst_is_many_purchases_in_little_time_from_the_own_device(month: list[Simulated]) -> None:
    people = SimulatedPopulation(7, 2000)
    bursts = by_user(by_scenario(month, "spending_burst"))
    for user, txns in bursts.items():
        person = people.person(int(user.removeprefix("user_")))
        assert {txn.device for txn in txns} <= {person.card, person.device(0)}
    assert mean(len(txns) for txns in bursts.values()) >= 5
    gaps = [b.at - a.at for txns in bursts.values() for a, b in pairwise(txns)]
    assert median(gaps) < 15 * 60


def test_stolen_cards_spend_more_than_their_owners(month: list[Simulated]) -> None:
    stolen = by_scenario(month, "stolen_card")
    assert median(txn.amount for txn in stolen) > 2 * median(txn.amount for txn in honest(month))
    assert 0.4 < mean(txn.device.startswith("card-") for txn in stolen) < 0.7


def test_a_compromised_merchant_defrauds_cards_that_were_used_there_within_a_window(month: list[Simulated]) -> None:
    skimmed = by_scenario(month, "compromised_merchant")
    visits: dict[tuple[str, str], float] = {}
    known = []
    for txn in month:
        if txn.scenario == "compromised_merchant" and txn.at > MONDAY.timestamp() + 10 * DAY:
            known.append((txn.user, txn.merchant) in visits)
        elif not txn.fraud:
            visits[txn.user, txn.merchant] = txn.at
    assert len(known) > 50
    assert mean(known) > 0.97

    at_merchant = defaultdict(list)
    for txn in skimmed:
        at_merchant[txn.merchant].append(txn.at)
    assert len(at_merchant) < 12
    for times in at_merchant.values():
        assert max(times) - min(times) < 30 * DAY


def test_nothing_but_feedback_tells_of_a_compromised_merchant(month: list[Simulated]) -> None:
    skimmed, others = by_scenario(month, "compromised_merchant"), honest(month)
    assert share_above(skimmed, 400) < 0.02
    assert median(txn.amount for txn in skimmed) < 2 * median(txn.amount for txn in others)
    # Where they happen, fraud is frequent enough for feedback to show, and honest business goes on.
    merchants = {txn.merchant for txn in skimmed}
    there = [txn.fraud for txn in month if txn.merchant in merchants]
    assert 0.05 < mean(there) < 0.6


# The tutorial's population.


def test_the_tutorial_draws_evenly_from_its_lists() -> None:
    txns = first(6000, population="tutorial")
    for field, values in {
        "user": ["John", "Peter", "Sam"],
        "location": ["US", "IN", "FR", "BR", "JP"],
        "device": ["mobile", "desktop", "tablet"],
        "merchant": ["Amazon", "Walmart", "Apple", "Nike", "XYZ_Merchant"],
        "txn_type": ["purchase", "transfer", "withdrawal", "deposit"],
    }.items():
        counts = Counter(getattr(txn, field) for txn in txns)
        assert set(counts) == set(values)
        assert min(counts.values()) > 0.85 * 6000 / len(values)


def test_tutorial_amounts_are_uniform_from_1_to_500_with_two_decimals() -> None:
    amounts = [txn.amount for txn in first(6000, population="tutorial")]
    assert 1 <= min(amounts) < 5
    assert 495 < max(amounts) <= 500
    assert mean(amounts) == pytest.approx(250.5, abs=10)
    assert mean(amount > 400 for amount in amounts) == pytest.approx(0.2, abs=0.02)
    assert all(round(amount, 2) == amount for amount in amounts)


def test_the_tutorial_knows_no_fraud_and_no_coordinates() -> None:
    for txn in first(500, population="tutorial"):
        assert (txn.fraud, txn.scenario) == (False, "none")
        assert list(json.loads(to_json(txn))) == FIELDS


def test_a_tutorial_history_has_the_volume_of_its_users() -> None:
    txns = list(history(1, users=500, days=10, population="tutorial"))
    assert len(txns) == pytest.approx(15_000, rel=0.05)
    assert {txn.user for txn in txns} == {"John", "Peter", "Sam"}


# Limits.


def test_memory_does_not_grow_with_what_was_simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(population, "PEOPLE_KEPT", 1000)
    txns = stream(7, 0.7, MONDAY)  # 20,160 people
    for _ in islice(txns, 8000):  # more than three hours: the first tours are over
        pass
    tracemalloc.start()
    try:
        for _ in islice(txns, 20_000):
            pass
        grown = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert grown < 1_000_000  # all of them would take 10 MB


def test_what_waits_to_happen_is_bounded_at_any_rate() -> None:
    for rate in (1000.0, 30_000.0):
        life = simulation._Life(7, people_for(rate), simulation._Stamp(MONDAY, ""), rate)
        waiting = len(life._due)
        for _ in islice(life.stream(rate), 50_000):
            pass
        assert len(life._due) < max(2 * waiting, 20_000)


def test_it_is_fast_enough_to_load_a_broker() -> None:
    txns = stream(7, 30_000.0, MONDAY)
    next(txns)
    begin = time.process_time()
    for txn in islice(txns, 20_000):
        to_json(txn)
    assert 20_000 / (time.process_time() - begin) > 10_000  # 40,000 on the machine it was written on


@pytest.mark.parametrize(("users", "days"), [(0, 1), (10, 0), (10, -1)])
def test_a_history_of_nothing_is_refused(users: int, days: float) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        history(1, users, days)


def test_a_rate_that_is_not_positive_is_refused() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        stream(1, 0.0, MONDAY)


def test_an_unknown_population_is_refused() -> None:
    with pytest.raises(ValueError, match="realistic, tutorial"):
        stream(1, 1.0, MONDAY, population="martian")
    with pytest.raises(ValueError, match="realistic, tutorial"):
        history(1, 10, 1, population="martian")


# The life of the people of a history, gone on with.


@pytest.fixture(scope="module")
def past_and_life() -> tuple[list[Simulated], list[Simulated]]:
    past = list(history(7, 500, 14, MONDAY - timedelta(days=14)))
    return past, list(islice(life_after(7, 500, 14, MONDAY), 3000))


def test_the_people_of_a_history_go_on_with_their_cards_and_favourites(
    past_and_life: tuple[list[Simulated], list[Simulated]],
) -> None:
    past, life = map(honest, past_and_life)
    habits = {(txn.user, txn.merchant) for txn in past}
    cards = {(txn.user, txn.device) for txn in past}
    of_others = [(other.user, txn.merchant) for txn, other in pairwise(life)]
    known = mean((txn.user, txn.merchant) in habits for txn in life)
    assert known > 2.5 * mean(pair in habits for pair in of_others)
    by_card = [(txn.user, txn.device) in cards for txn in life if txn.device.startswith("card-")]
    assert mean(by_card) > 0.97


def test_their_life_goes_on_at_their_natural_pace(past_and_life: tuple[list[Simulated], list[Simulated]]) -> None:
    past, life = past_and_life
    first_day = [txn for txn in life if txn.at < MONDAY.timestamp() + DAY]
    assert len(first_day) == pytest.approx(len(past) / 14, rel=0.15)
    gaps = [b.at - a.at for txns in by_user(life).values() for a, b in pairwise(txns) if not (a.fraud or b.fraud)]
    before = [b.at - a.at for txns in by_user(past).values() for a, b in pairwise(txns) if not (a.fraud or b.fraud)]
    assert median(gaps) == pytest.approx(median(before), rel=0.5)


def test_a_life_goes_on_exactly_where_its_history_ends(
    past_and_life: tuple[list[Simulated], list[Simulated]],
) -> None:
    past, life = past_and_life
    longer = list(islice(history(7, 500, 30, MONDAY - timedelta(days=14)), len(past) + len(life)))
    assert past + life == longer
    cases = {(txn.user, txn.device) for txn in past if txn.fraud}
    assert any(txn.fraud and (txn.user, txn.device) in cases for txn in life)  # frauds under way go on


def test_a_life_is_a_function_of_seed_people_and_start() -> None:
    def life(seed: int = 7, people: int = 500, start: datetime = MONDAY) -> list[Simulated]:
        return list(islice(life_after(seed, people, 0, start), 50))

    assert life() == life()
    assert len({life()[0].transaction_id, life(8)[0].transaction_id, life(people=501)[0].transaction_id}) == 3


def test_nobody_cannot_live() -> None:
    with pytest.raises(ValueError, match="users=0 must be positive"):
        life_after(7, 0, 14, MONDAY)
