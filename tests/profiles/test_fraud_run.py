"""What labels say of a merchant: counts by when they came, and the run of frauds that no amount explains."""

import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataflow.profiles.fraud_run import LESSONS, RUN_GAP, RUN_LIFE, RUN_OVER
from dataflow.profiles.labels import NEVER
from tests.support.builders import DAY, HOUR, MINUTE, NOON
from tests.support.profile_builders import Profiles, TaughtMerchant, check_windows, gaps, in_place_of, lesson, payment

NO_RUN = {
    "merchant_compromised": 0.0, "run_days": NEVER, "run_frauds": 0.0, "run_genuine": 0.0, "genuine_since": 0.0,
    "days_since_merchant_fraud": NEVER, "days_since_merchant_genuine": NEVER,
}  # fmt: skip


@given(st.lists(st.tuples(gaps, st.booleans(), st.booleans()), max_size=40))
def test_labels_equal_a_recount_at_every_prefix(labels: list[tuple[int, bool, bool]]) -> None:
    merchant, past, at, newest = TaughtMerchant(), list[tuple[float, float]](), NOON, -math.inf
    assert merchant.labels(NOON) == (0.0,) * 6
    for gap, late, fraud in labels:
        at += gap
        came = at - 9 * HOUR * late
        newest = max(newest, came)
        merchant.learn(lesson(came - DAY, came, fraud))
        past.append((came, float(fraud)))
        check_windows(merchant.labels(newest), past, newest)


def recounted(labels: list[tuple[float, bool, bool]], now: float) -> float:
    """The risk by its definition, of labels (day, fraud, explained) that come in the order of their transactions."""
    run: list[tuple[float, bool]] = []
    for day, fraud, explained in labels:
        if fraud and not explained:
            frauds = sum(f for _, f in run)
            since = len(run) - max((n + 1 for n, (_, f) in enumerate(run) if f), default=0)
            between = len(run) - frauds - since
            last = max((d for d, f in run if f), default=-math.inf)
            share = (frauds + 0.5) / (frauds + between + 1)
            if not frauds or (1 - share) ** since < RUN_OVER or day - last > RUN_GAP:
                run = []
            run.append((day, True))
        elif not fraud and run:
            run.append((day, False))
    if not run:
        return 0.0
    frauds = sum(f for _, f in run)
    since = len(run) - max(n + 1 for n, (_, f) in enumerate(run) if f)
    between = len(run) - frauds - since
    alive = (1 - (frauds + 0.5) / (frauds + between + 1)) ** since
    return frauds / (frauds + between + 0.5) * alive * math.exp(-(now - run[0][0]) / RUN_LIFE)


@given(st.lists(st.tuples(st.integers(1, 20), st.booleans(), st.booleans()), max_size=40))
def test_the_chance_of_a_compromise_equals_its_definition_at_every_prefix(steps: list[tuple[int, bool, bool]]) -> None:
    merchant, labels, day = TaughtMerchant(), list[tuple[float, bool, bool]](), NOON / DAY
    for gap, fraud, explained in steps:
        day += gap
        merchant.learn(lesson(day * DAY, (day + 7) * DAY, fraud, explained))
        labels.append((day, fraud, explained))
        risk = merchant.run((day + 1) * DAY)["merchant_compromised"]
        assert risk == pytest.approx(recounted(labels, day + 1), rel=1e-3, abs=1e-9)
        assert 0.0 <= risk <= 1.0


def test_labels_out_of_order_count_on_their_own_side_of_the_run() -> None:
    merchant = TaughtMerchant()
    for day, fraud in ((10, True), (12, True), (11, False), (13, False), (9, False), (14, True)):
        merchant.learn(lesson(NOON + day * DAY, NOON + 20 * DAY, fraud))
    found = merchant.run(NOON + 20 * DAY)
    assert (found["run_frauds"], found["run_genuine"], found["genuine_since"]) == (3.0, 2.0, 0.0)
    days = [found[name] for name in ("run_days", "days_since_merchant_fraud", "days_since_merchant_genuine")]
    assert days == pytest.approx([10, 6, 7], abs=0.01)


def test_a_fraud_that_its_amount_explains_does_not_speak_against_the_merchant() -> None:
    merchant = TaughtMerchant().learn(lesson(explained=True))
    assert merchant.run(NOON + DAY)["merchant_compromised"] == 0.0
    merchant.learn(lesson())
    assert 0.5 < merchant.run(NOON + DAY)["merchant_compromised"] < 1.0


def test_without_labels_nothing_speaks_against_a_merchant() -> None:
    values = Profiles().read(payment(amount=1.0), payment(NOON + 1, amount=900.0)).peek(payment(NOON + 2))
    assert {name: values[name] for name in NO_RUN} == NO_RUN
    found = TaughtMerchant().learn(lesson(fraud=False)).run(NOON + DAY)
    assert found == NO_RUN | {"days_since_merchant_genuine": pytest.approx(1.0, abs=0.01)}


lessons = st.lists(st.tuples(st.integers(0, 60), st.booleans(), st.booleans()), max_size=LESSONS)


@given(lessons, st.randoms(use_true_random=False))
@settings(max_examples=30)
def test_what_lessons_leave_does_not_depend_on_their_order(
    told: list[tuple[int, bool, bool]], chance: random.Random
) -> None:
    taught = [lesson(NOON + day * DAY, None, *others) for day, *others in told]
    shuffled = chance.sample(taught, len(taught))
    assert TaughtMerchant().learn(*taught).state() == TaughtMerchant().learn(*shuffled).state()


@given(lessons, st.data())
@settings(max_examples=50)
def test_a_lesson_that_replaces_another_leaves_what_it_would_have_left_alone(
    told: list[tuple[int, bool, bool]], data: st.DataObject
) -> None:
    taught = [lesson(NOON + day * DAY, None, *others) for day, *others in told]
    corrected = TaughtMerchant().learn(*taught)
    for number in data.draw(st.sets(st.integers(0, len(taught) - 1)) if taught else st.just(set())):
        old = taught[number]
        fraud, explained, later = data.draw(st.tuples(st.booleans(), st.booleans(), st.integers(0, 30)))
        changes: dict[str, Any] = {"fraud": fraud, "explained": explained}
        changes["labelled_at"] = old["labelled_at"] + later * DAY
        corrected.learn(in_place_of(old, **changes))
        taught[number] = old | changes
    assert corrected.state() == TaughtMerchant().learn(*taught).state()


def test_a_lesson_that_was_forgotten_can_still_be_taken_back_from_the_windows_and_the_run_under_way() -> None:
    taught = [lesson(NOON + n * MINUTE, NOON + DAY) for n in range(LESSONS + 10)]
    merchant = TaughtMerchant().learn(*taught, in_place_of(taught[3], fraud=False))
    assert merchant.labels(NOON + DAY)[:2] == (LESSONS + 10, LESSONS + 9)
    found = merchant.run(NOON + DAY)
    assert (found["run_frauds"], found["run_genuine"]) == (LESSONS + 9, 1.0)


def test_reading_what_labels_say_changes_nothing_that_is_kept() -> None:
    merchant, twin = TaughtMerchant(), TaughtMerchant()
    for n in range(5):
        for each in (merchant, twin):
            each.learn(lesson(NOON + n * DAY, name=f"{n}"))
        later = NOON + (n + 9) * DAY
        assert merchant.labels(later) == merchant.labels(later)
        assert merchant.run(later) == merchant.run(later)
        assert merchant.state() == twin.state()
        for at in (NOON + 61 * DAY, NOON + 90 * DAY):
            assert merchant.labels(at) == twin.labels(at)
            assert merchant.run(at) == twin.run(at)


def test_a_merchant_stays_as_small_as_it_was() -> None:
    merchant = TaughtMerchant()
    for n in range(0, 20_000, 1000):
        times = [NOON + (n + k) * MINUTE for k in range(1000)]
        merchant.learn(*(lesson(at, at, k % 3 == 0, k % 2 == 0) for k, at in enumerate(times)))
    profiles = merchant.profiles
    assert profiles.labelled.taken == 1
    of_one = profiles.table.rows.itemsize + profiles.labelled.rows.itemsize
    assert of_one < 1100 + LESSONS * 16
