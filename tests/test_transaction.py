import json
import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataflow.decision import Decision, Verdict, to_json
from dataflow.parsing import parse
from dataflow.transaction import RESERVED, Rejection, Transaction
from tests.builders import DAY, NOON, fields, iso, raw

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


def test_a_time_exactly_a_day_ahead_is_taken_and_a_record_without_a_time_is_held_against_the_clock() -> None:
    assert isinstance(parsed(changed(timestamp=iso(NOON + DAY))), Transaction)
    value = changed(timestamp=iso(NOON))
    assert isinstance(parse(value, None, "t", 0, 0, 0, clock=lambda: NOON), Transaction)
    assert isinstance(parse(value, None, "t", 0, 0, 0, clock=lambda: NOON - 2 * DAY), Rejection)


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
