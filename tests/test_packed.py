"""Packed numbers: what is written is what is read, and names are looked for where they stand."""

import random
from struct import Struct

import pytest

from dataflow import packed, profile
from dataflow.profile import FINGERPRINTS, fingerprint


def test_rows_are_little_endian_floats_and_come_back() -> None:
    own = (1.0, -2.5, 3e30, 0.0, 5.0, 6.0, 7.0)
    numbers = tuple(float(n) for n in range(13))
    row = packed.write_user(own, numbers)  # type: ignore[arg-type]
    assert row == Struct("<20f").pack(*own, *numbers)
    assert packed.read_user(row) == (Struct("<7f").unpack(row[:28]), numbers)
    merchant = packed.write_merchant(own[:4], numbers)  # type: ignore[arg-type]
    assert merchant == Struct("<17d").pack(*own[:4], *numbers)
    assert packed.read_merchant(merchant) == (own[:4], numbers)
    assert packed.number_at(merchant, 2) == 3e30
    six = packed.write_six(1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    assert six == Struct("<6f").pack(1, 2, 3, 4, 5, 6)
    assert packed.read_six(six) == (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
    assert packed.pair(1.0, 2.0) == Struct("<2f").pack(1, 2)
    assert packed.payment(1.5, 2.5, b"name") == Struct("<2d").pack(1.5, 2.5) + b"name"


@pytest.mark.parametrize(("write", "count"), [(packed.write_basic_facts, 8), (packed.write_user_facts, 38),
                                              (packed.write_merchant_facts, 22)])  # fmt: skip
def test_facts_are_floats_of_64_bits_in_their_order(write, count: int) -> None:  # type: ignore[no-untyped-def]
    values = tuple(n + 0.1 for n in range(count))
    assert write(values) == Struct(f"<{count}d").pack(*values)


def test_sums_go_from_left_to_right() -> None:
    draw = random.Random(1)
    for _ in range(100):
        values = [draw.choice([1e8, 0.1, 3.0]) for _ in range(12)]
        row = Struct("<12f").pack(*values)
        seen = Struct("<12f").unpack(row)
        counts, totals = 0.0, 0.0
        for place in range(0, 12, 2):
            if place == 10:
                assert packed.sum_of_five(row[:40]) == (counts, totals)
            counts, totals = counts + seen[place], totals + seen[place + 1]
        assert packed.sum_of_six(row) == (counts, totals)


@pytest.mark.parametrize("number", [0, 1, 2**31, 2**32 - 1])
def test_words_are_unsigned_and_little_endian(number: int) -> None:
    assert packed.word(number) == number.to_bytes(4, "little")
    for high in (0, 2**16 - 1):
        assert packed.long_word(number, high) == (high << 32 | number).to_bytes(6, "little")


def test_a_word_is_found_in_its_range_and_not_across_two() -> None:
    words = [bytes([n, n + 1, n + 2, n + 3]) for n in range(0, 40, 4)]
    row = b"".join(words)
    for place, word in enumerate(words):
        assert packed.has_word(row, word, 0, 40)
        assert packed.has_word(row, word, 16, 40) == (place >= 4)
        assert packed.has_word(row, word, 0, 16) == (place < 4)
    assert not packed.has_word(row, row[2:6], 0, 40)
    assert not packed.has_word(row[:16], words[4], 0, 16)


def test_a_long_word_is_found_from_its_place_on_and_not_across_two() -> None:
    row = bytes(range(48))
    assert packed.has_long_word(row, row[6:12], 0)
    assert not packed.has_long_word(row, row[6:12], 12)
    assert packed.has_long_word(row, row[42:48], 0)
    assert not packed.has_long_word(row, row[3:9], 0)
    assert not packed.has_long_word(b"", row[:6], 0)


def test_checksums_at_hand_are_bounded_and_stay_the_same() -> None:
    first = fingerprint("Amazon")
    for n in range(FINGERPRINTS + 10):
        fingerprint(f"shop {n}")
    assert len(profile._fingerprints) <= FINGERPRINTS
    assert fingerprint("Amazon") == first
