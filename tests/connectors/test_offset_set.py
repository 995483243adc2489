"""A set of offsets: it holds what a plain set would, in a small part of the memory."""

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataflow.connectors.offset_set import OffsetSet

# Around the edges of the bitmaps, where a mistake would be, and anywhere.
OFFSETS = st.one_of(st.integers(0, 40), st.integers(8180, 8200), st.integers(16_370, 16_390), st.integers(0, 2**62))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), OFFSETS),
        st.tuples(st.just("add_many"), st.integers(0, 10)),
        st.tuples(st.just("drop_below"), OFFSETS),
    ),
    max_size=8,
)


@settings(max_examples=60, deadline=None)
@given(STEPS, st.lists(OFFSETS, max_size=10))
def test_it_holds_what_a_plain_set_holds(steps: list[tuple[str, int]], others: list[int]) -> None:
    found, wanted = OffsetSet(), set[int]()
    asked = set(others)
    for step, offset in steps:
        asked |= {offset, offset - 1 if offset else 0, offset + 1}
        match step:
            case "add":
                found.add(offset)
                wanted.add(offset)
            case "add_many":
                for each in range(offset, offset + 8200):
                    found.add(each)
                wanted.update(range(offset, offset + 8200))
            case "drop_below":
                found.drop_below(offset)
                wanted = {each for each in wanted if each >= offset}
        assert len(found) == len(wanted)
        assert bool(found) == bool(wanted)
        assert {each for each in asked if each in found} == asked & wanted


@pytest.mark.parametrize(
    ("step", "most"),
    [(1, 5_000), (7, 910_000)],
    ids=["a million that follow each other", "a million, each seventh of seven million"],
)
def test_a_million_offsets_take_next_to_no_memory(step: int, most: int) -> None:
    found = OffsetSet()
    for offset in range(500, 500 + step * 1_000_000, step):
        found.add(offset)
    assert len(found) == 1_000_000
    # Pickled, it is as large as what it holds: a plain set has 60 bytes for each.
    assert len(pickle.dumps(found)) < most
