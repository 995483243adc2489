import inspect
import json
import math
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from dataflow.events.decision import Decision, Verdict, to_json
from dataflow.events.parsing import MAX_DEPTH, event_time, parse
from dataflow.events.transaction import RESERVED, Rejection, Transaction
from tests.support.builders import DAY, NOON, fields, iso, raw

GOOD = raw("ann")


def parsed(value: bytes | None, record_ms: int = int(NOON * 1000)) -> Transaction | Rejection:
    return parse(value, b"ann", "transactions", 3, 17, record_ms)


def changed(**others: object) -> bytes:
    return json.dumps({**fields(), **others}).encode()


def without(name: str) -> bytes:
    return json.dumps({k: v for k, v in fields().items() if k != name}).encode()


def test_a_valid_message_becomes_a_transaction_with_its_origin() -> None:
    txn = parsed(GOOD)
    assert isinstance(txn, Transaction)
    assert (txn.user, txn.amount, txn.at) == ("ann", 25.0, NOON)
    assert (txn.partition, txn.offset, txn.transaction_id) == (3, 17, "transactions-3-17")
    assert txn.body == GOOD


@pytest.mark.parametrize(
    ("value", "field", "error"),
    [
        (None, "", "tombstone"),
        (b"", "", "empty"),
        (b"not json", "", "not JSON"),
        (b"[1, 2]", "", "Expected object"),
        (b'"text"', "", "Expected object"),
        (GOOD[:-1], "", "not JSON"),
        (GOOD + b"x", "", "not JSON"),
        (GOOD.replace(b"ann", b"\xff\xfe"), "", "UTF-8"),
        (GOOD.replace(b"}", b',"note":"\xff"}'), "", "UTF-8"),
        (GOOD.replace(b"}", b',"deep":' + b"[" * 50_000 + b"]" * 50_000 + b"}"), "", "nested"),
        (changed(user=""), "user", "length"),
        (changed(user="x" * 10_000), "user", "length"),
        (changed(user=7), "user", "Expected str"),
        (changed(user=None), "user", "Expected str"),
        (changed(amount="12"), "amount", "Expected float"),
        (changed(amount=-0.01), "amount", ">= 0"),
        (GOOD.replace(b"25.0", b"NaN"), "", "not JSON"),
        (GOOD.replace(b"25.0", b"Infinity"), "", "not JSON"),
        (GOOD.replace(b"25.0", b"1e999"), "amount", "range"),
        (changed(timestamp="yesterday"), "timestamp", "ISO 8601"),
        (changed(timestamp="2026-03-02x12:00:00"), "timestamp", "ISO 8601"),
        (changed(timestamp=1772452800), "timestamp", "Expected str"),
        (changed(timestamp="9999-12-31T23:59:59Z"), "timestamp", "ahead"),
        (changed(timestamp=iso(NOON + DAY + 1)), "timestamp", "ahead"),
        (changed(latitude=1.0), "longitude", "half"),
        (changed(longitude=1.0), "latitude", "half"),
        (changed(latitude=91, longitude=0), "latitude", "<= 90"),
        (changed(latitude=0, longitude=181), "longitude", "<= 180"),
        (changed(transaction_id=5), "transaction_id", "Expected"),
        *((without(name), name, "missing") for name in fields()),
    ],
)
def test_a_bad_message_is_rejected_with_its_field_and_error_and_kept_as_it_was(
    value: bytes | None, field: str, error: str
) -> None:
    rejection = parsed(value)
    assert isinstance(rejection, Rejection)
    assert rejection.field == field
    assert error in rejection.error
    assert rejection.value == value
    assert (rejection.partition, rejection.offset) == (3, 17)


@pytest.mark.parametrize(
    "text", ["2026-03-02T12:00:00Z", "2026-03-02T12:00:00", "2026-03-02 12:00:00+00:00", "2026-03-02T14:00:00+02:00"]
)
def test_iso_8601_times_without_an_offset_are_utc(text: str) -> None:
    txn = parsed(changed(timestamp=text))
    assert isinstance(txn, Transaction)
    assert txn.at == NOON


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ("2026-03-02T12:00:00z", 0.0),
        ("2026-03-02t12:00:00.5z", 0.5),
        ("2026-03-02T24:00:00Z", DAY / 2),
        ("2026-03-02T24:00:00.000+00:00", DAY / 2),
        ("2026-03-02T24:00", DAY / 2),
        ("20260302T240000Z", DAY / 2),
        ("2026-03-02T23:59:60Z", DAY / 2),
        ("2026-03-02T23:59:60", DAY / 2),
        ("2026-03-02 23:59:60.25z", DAY / 2 + 0.25),
        ("2026-03-03T05:29:60+05:30", DAY / 2),
        ("20260302T235960Z", DAY / 2),
        ("2026-02-28T24:00:00Z", -1.5 * DAY),
    ],
)
def test_the_end_of_a_day_a_leap_second_and_a_small_z_are_times(text: str, after: float) -> None:
    assert event_time(text) == NOON + after
    assert isinstance(parsed(changed(timestamp=text)), Transaction)


@pytest.mark.parametrize(
    "text",
    [
        *("2026-03-02T24:00:01Z", "2026-03-02T24:01:00Z", "2026-03-02T24:00:00.1Z", "2026-03-02T25:00:00Z"),
        *("2026-03-02T23:58:60Z", "2026-03-02T12:59:60Z", "2026-03-02T23:59:60+01:00", "2026-03-02T23:59:61Z"),
        *("2026-03-02z", "z", "2026-03-02T12:00:00zz", "9999-12-31T24:00:00Z", "2026-03-02T24:00:00X"),
    ],
)
def test_what_only_looks_like_such_a_time_is_none(text: str) -> None:
    rejection = parsed(changed(timestamp=text))
    assert isinstance(rejection, Rejection)
    assert (rejection.field, rejection.error) == ("timestamp", "not an ISO 8601 time")


# Clocks: what lies ahead is decided, and moves no clock.


def dated(at: float, record: float, now: float, lead: float = 300.0) -> Transaction:
    txn = parse(changed(timestamp=iso(at)), None, "t", 0, 0, int(record * 1000), now, lead)
    assert isinstance(txn, Transaction), txn
    return txn


@pytest.mark.parametrize(
    ("ahead", "record", "counts"),
    [
        (0.0, 0.0, 0.0),
        (-DAY, 0.0, -DAY),
        (300.0, 0.0, 300.0),
        (301.0, 0.0, 0.0),
        (DAY, 0.0, 0.0),
        (200.0, 300.0, 200.0),
        (600.0, 300.0, 600.0),
        (3600.0, 3600.0, 0.0),
        (DAY, DAY, 0.0),
        (10.0, DAY, 10.0),
        (4000.0, -7200.0, -7200.0),
    ],
)
def test_a_transaction_counts_at_its_records_time_where_it_leads_that_too_far(
    ahead: float, record: float, counts: float
) -> None:
    """`record` is how far its time leads the wall clock: that, too, is believed up to the lead only."""
    txn = dated(NOON + ahead, NOON + record, NOON)
    assert txn.at == NOON + counts
    assert txn.ahead_at == (0.0 if counts == ahead else NOON + ahead)
    assert txn.body == changed(timestamp=iso(NOON + ahead))


def test_the_lead_is_a_setting_and_what_lies_ahead_is_counted() -> None:
    def count() -> float:
        return REGISTRY.get_sample_value("redflag_events_ahead_of_time_total", {"kind": "transaction"}) or 0.0

    before = count()
    assert dated(NOON + 3600, NOON, NOON, lead=3600.0).at == NOON + 3600
    assert count() == before
    assert dated(NOON + 1, NOON, NOON, lead=0.0).at == NOON
    assert count() == before + 1


def test_where_the_broker_dates_records_there_is_no_wall_clock_to_hold_them_against() -> None:
    assert dated(NOON + 400 * DAY, NOON + 400 * DAY, math.inf).at == NOON + 400 * DAY


@pytest.mark.parametrize("record_ms", [0, -1])
@pytest.mark.parametrize("now", [0.0, NOON - 2 * DAY, NOON, NOON + DAY, math.inf])
def test_whether_a_message_is_valid_does_not_depend_on_when_it_is_read(record_ms: int, now: float) -> None:
    txn = parse(changed(timestamp=iso(NOON)), None, "t", 0, 0, record_ms, now)
    assert isinstance(txn, Transaction)
    assert txn.at == min(NOON, now)  # a record without a time counts no later than now
    late = parse(changed(timestamp=iso(NOON)), None, "t", 0, 0, int(1000 * (NOON - DAY - 1)), now)
    assert isinstance(late, Rejection)
    assert isinstance(parse(changed(timestamp=iso(NOON + DAY)), None, "t", 0, 0, int(1000 * NOON), now), Transaction)


# Nesting: the same for every message, wherever in a program parsing is called.


def nested(depth: int) -> bytes:
    """A transaction nested `depth` deep, itself included."""
    deep = b"[" * (depth // 2) + b'{"a":' * (depth - 1 - depth // 2)
    return GOOD[:-1] + b',"deep":' + deep + b'"[]"' + b"}" * (depth - 1 - depth // 2) + b"]" * (depth // 2) + b"}"


def from_deep_down(frames: int, call: Callable[[], Any]) -> Any:
    return from_deep_down(frames - 1, call) if frames else call()


def test_a_message_is_nested_too_deeply_beyond_the_limit_and_never_raises() -> None:
    limit = sys.getrecursionlimit()
    for depth in [*range(2, 20), *range(MAX_DEPTH - 3, MAX_DEPTH + 4), *range(limit - 200, limit + 60)]:
        json.loads(nested(depth)) if depth < limit // 2 else None
        result = parsed(nested(depth))
        if depth <= MAX_DEPTH:
            assert isinstance(result, Transaction)
        else:
            assert isinstance(result, Rejection)
            assert (result.error, result.value) == ("nested too deeply", nested(depth))


@pytest.mark.parametrize("depth", [MAX_DEPTH, MAX_DEPTH + 1, 600])
def test_how_deep_in_a_program_parsing_is_called_makes_no_difference(depth: int) -> None:
    here = type(parsed(nested(depth)))
    assert from_deep_down(300, lambda: type(parsed(nested(depth)))) is here


def test_with_no_stack_left_a_message_is_rejected_and_nothing_raises() -> None:
    """As it was at every depth just below the recursion limit: the pass over the original bytes took one frame more."""
    used = len(inspect.stack())
    room = sys.getrecursionlimit() - used - MAX_DEPTH
    outcomes = {type(from_deep_down(frames, lambda: parsed(nested(MAX_DEPTH)))) for frames in range(room - 60, room)}
    assert outcomes == {Transaction, Rejection}


def test_brackets_in_texts_are_not_nesting() -> None:
    assert isinstance(parsed(changed(note="[{" * 500 + '"\\' + "[" * 500)), Transaction)
    assert isinstance(parsed(changed(many=[[]] * 500)), Transaction)


VERDICT = Verdict(False, [], 0.25, [], [], "rules-1", "model-1")


def output(value: bytes) -> bytes:
    txn = parsed(value)
    assert isinstance(txn, Transaction), txn
    verdict = msgspec.structs.replace(VERDICT, transaction_id=txn.transaction_id) if txn.id_is_ours else VERDICT
    return to_json(Decision(txn, verdict))


def no_key_twice(pairs: list[tuple[str, object]]) -> dict[str, object]:
    assert len({k for k, _ in pairs}) == len(pairs), pairs
    return dict(pairs)


def test_with_a_key_twice_what_was_judged_is_what_is_written() -> None:
    value = GOOD.replace(b'"amount":25.0', b'"amount":1,"amount":999.5')
    txn = parsed(value)
    assert isinstance(txn, Transaction)
    assert txn.amount == 999.5
    assert json.loads(output(value), object_pairs_hook=no_key_twice)["amount"] == 999.5


@pytest.mark.parametrize("name", RESERVED)
@pytest.mark.parametrize("spelling", ["plain", "escaped"])
def test_no_input_can_smuggle_in_a_verdict(name: str, spelling: str) -> None:
    key = name if spelling == "plain" else f"\\u{ord(name[0]):04x}{name[1:]}"
    value = GOOD.replace(b"}", b',"' + key.encode() + b'":"smuggled"}')
    assert b"smuggled" not in output(value)
    json.loads(output(value), object_pairs_hook=no_key_twice)


def test_a_value_that_reads_like_a_field_name_is_no_field() -> None:
    value = changed(device="transaction_id")
    assert json.loads(output(value))["transaction_id"] == "transactions-3-17"


def test_other_fields_are_carried_through_to_the_byte() -> None:
    value = GOOD.replace(b"}", b',"exact":1.10,"large":123456789012345678901234567890,"nested":{"a": [1, null]}}')
    for piece in (b'"exact":1.10', b'"large":123456789012345678901234567890', b'"nested":{"a": [1, null]}'):
        assert piece in output(value)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=300)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)
names = st.sampled_from([*fields(), *RESERVED, "transaction_id", "latitude", "longitude", "category", "extra"])


@pytest.mark.slow
@settings(max_examples=1500, deadline=None)
@given(st.dictionaries(names, values, max_size=6), st.sampled_from([0, 1, 2]), st.data())
def test_any_message_is_decided_or_rejected_and_the_next_good_one_is_decided(
    others: dict[str, object], cut: int, data: st.DataObject
) -> None:
    value = json.dumps({**fields(), **others}).encode()
    if cut == 1:
        value = value[: data.draw(st.integers(0, len(value)))]
    elif cut == 2:
        place = data.draw(st.integers(0, len(value)))
        value = value[:place] + data.draw(st.binary(max_size=8)) + value[place:]
    result = parsed(value)
    if isinstance(result, Rejection):
        assert result.value == value
        assert result.error
    else:
        assert math.isfinite(result.amount)
        assert result.amount >= 0
        out = json.loads(output(value), object_pairs_hook=no_key_twice)
        assert out["fraudulent"] is False
        assert out["amount"] == result.amount
        assert out["user"] == result.user
    assert isinstance(parsed(GOOD), Transaction)


@settings(max_examples=1000, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_rejected_unchanged(value: bytes) -> None:
    result = parsed(value)
    assert isinstance(result, Rejection)
    assert result.value == value
