"""How a label is parsed: a label or a rejection, whatever comes."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from dataflow.events.feedback import Feedback, parse_feedback
from dataflow.events.transaction import Rejection
from tests.support.builders import DAY, NOON, iso

settings.register_profile("busy machine", deadline=None)
settings.load_profile("busy machine")

LABEL: dict[str, Any] = {
    "transaction_id": "t1",
    "user": "ann",
    "merchant": "Amazon",
    "timestamp": iso(NOON),
    "fraud": True,
    "labelled_at": iso(NOON + DAY),
    "analyst": "kim",
}
TEXTS = ("transaction_id", "user", "merchant")


def parsed(
    value: bytes | None, record_ms: int = int(1000 * (NOON + DAY)), now: float = NOON + DAY
) -> Feedback | Rejection:
    return parse_feedback(value, b"ann", 3, 7, record_ms, now)


def label(**changed: Any) -> bytes:
    return json.dumps({name: value for name, value in (LABEL | changed).items() if value is not ...}).encode()


def test_a_label_is_parsed() -> None:
    assert parsed(label()) == Feedback("t1", "ann", "Amazon", NOON, True, NOON + DAY)


@pytest.mark.parametrize(
    "changed",
    [
        {"analyst": ...},
        {"analyst": None},
        {"comment": {"deep": [1]}},
        {"timestamp": "2026-03-02T12:00:00Z"},
        {"timestamp": "2026-03-02T12:00:00"},
        {"timestamp": "2026-03-02 13:00:00+01:00"},
    ],
)
def test_what_is_optional_or_said_otherwise_changes_nothing(changed: dict[str, Any]) -> None:
    assert parsed(label(**changed)) == parsed(label())


def test_a_label_at_the_moment_of_its_transaction_is_taken() -> None:
    assert isinstance(parsed(label(labelled_at=iso(NOON), fraud=False)), Feedback)


@pytest.mark.parametrize(
    ("changed", "field", "error"),
    [({name: ...}, name, "missing") for name in LABEL if name != "analyst"]
    + [({name: value}, name, "Expected str") for name in TEXTS for value in (None, 7, "", "x" * 257, ["a"])]
    + [({"fraud": value}, "fraud", "Expected bool") for value in (None, 1, "true", "")]
    + [({"analyst": value}, "analyst", "Expected str") for value in (7, "", "x" * 257)]
    + [
        ({name: value}, name, "ISO 8601")
        for name in ("timestamp", "labelled_at")
        for value in ("", "yesterday", "1772452800", "2026-02-30T12:00:00", "2026-03-02X12:00:00")
    ]
    + [({name: 1772452800}, name, "Expected str") for name in ("timestamp", "labelled_at")]
    + [
        ({"labelled_at": iso(NOON - 1)}, "labelled_at", "before the transaction"),
        ({"labelled_at": iso(NOON + 2 * DAY + 1)}, "labelled_at", "a day ahead"),
        ({"timestamp": iso(NOON + 3 * DAY), "labelled_at": iso(NOON + 3 * DAY)}, "timestamp", "a day ahead"),
    ],
)
def test_a_bad_field_is_named_and_the_message_kept(changed: dict[str, Any], field: str, error: str) -> None:
    value = label(**changed)
    rejection = parsed(value)
    assert isinstance(rejection, Rejection)
    assert rejection.field == field
    assert error in rejection.error
    assert (rejection.value, rejection.key, rejection.partition, rejection.offset) == (value, b"ann", 3, 7)


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (None, "tombstone"),
        (b"", "empty"),
        (b"{", "not JSON"),
        (b"[]", "Expected object"),
        (b"null", "Expected object"),
        (b"\xff", "not JSON"),
        (label().replace(b"ann", b"\xff"), "not valid UTF-8"),
        (label(user="\ud800"), "not JSON"),
        (b'{"a":' * 5000, "nested too deeply"),
        (label(comment=json.loads("[" * 300 + "]" * 300)), "nested too deeply"),
    ],
)
def test_what_is_no_object_is_rejected_without_a_field(value: bytes | None, error: str) -> None:
    rejection = parsed(value)
    assert isinstance(rejection, Rejection)
    assert (rejection.field, rejection.value) == ("", value)
    assert error in rejection.error


def test_times_are_held_against_the_records_own_whenever_it_is_read() -> None:
    fresh, stale = int(1000 * NOON), int(1000 * (NOON - DAY - 1))
    for now in (0.0, NOON, NOON + 9 * DAY):
        assert isinstance(parsed(label(), fresh, now), Feedback)
        assert isinstance(parsed(label(), stale, now), Rejection)
        assert isinstance(parsed(label(), 0, now), Feedback)


def test_a_label_dated_ahead_counts_at_its_records_time_and_is_counted() -> None:
    def count() -> float:
        return REGISTRY.get_sample_value("redflag_events_ahead_of_time_total", {"kind": "feedback"}) or 0.0

    before, later = count(), iso(NOON + 2 * DAY)
    assert parsed(label(labelled_at=later)) == Feedback("t1", "ann", "Amazon", NOON, True, NOON + DAY)
    both = parsed(label(timestamp=later, labelled_at=later))
    assert both == Feedback("t1", "ann", "Amazon", NOON + DAY, True, NOON + DAY)
    wrong_record = parsed(label(labelled_at=later), int(1000 * (NOON + 2 * DAY)))
    assert wrong_record == Feedback("t1", "ann", "Amazon", NOON, True, NOON + DAY)
    assert count() == before + 3
    assert parsed(label(labelled_at=iso(NOON + DAY + 300))) == Feedback(
        "t1", "ann", "Amazon", NOON, True, NOON + DAY + 300
    )
    assert count() == before + 3


@pytest.mark.slow
@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_no_bytes_raise(value: bytes) -> None:
    assert isinstance(parsed(value), Rejection)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=300),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(list(LABEL)), JSON, max_size=3))
def test_whatever_a_field_holds_comes_out_as_text_that_can_be_stored_or_is_rejected(changed: dict[str, Any]) -> None:
    found = parsed(label(**changed))
    if isinstance(found, Feedback):
        assert NOON - 1e12 < found.at <= found.labelled_at
        for name in TEXTS:
            assert 1 <= len(getattr(found, name).encode()) <= 4 * 256
    else:
        assert found.error
