"""Rows of numbers packed in bytes, little-endian: what a profile keeps and what a snapshot holds.

Compiled, they are read and written without an object a number; interpreted, by `struct`, all at once. Both do the same
to the last bit. A line a number, as a loop over a tuple would make objects of them after all (.27 µs for six, not .07).
"""

from struct import Struct
from types import FunctionType
from typing import Final

from librt.strings import (
    BytesWriter,
    read_f32_le,
    read_f64_le,
    read_i16_le,
    read_i32_le,
    write_f32_le,
    write_f64_le,
    write_i64_le,
)
from mypy_extensions import i64

Own = tuple[float, float, float, float, float, float, float]
"""A user's seven numbers that are not those of the windows."""
Numbers = tuple[
    float, float, float, float, float, float, float, float, float, float, float, float, float
]  # fmt: skip
"""The thirteen numbers of `dataflow.windows`."""
Four = tuple[float, float, float, float]
Six = tuple[float, float, float, float, float, float]

BasicFacts = tuple[float, float, float, float, float, float, float, float]
UserFacts = tuple[
    float, float, float, float, float, float, float, float, float, float, float, float, float,
    float, float, float, float, float, float, float, float, float, float, float, float, float,
    float, float, float, float, float, float, float, float, float, float, float, float,
]  # fmt: skip
MerchantFacts = tuple[
    float, float, float, float, float, float, float, float, float, float, float, float,
    float, float, float, float, float, float, float, float, float, float,
]  # fmt: skip
"""The numbers and flags (0 or 1) among the facts of `dataflow.features`, in the order of its fields."""

_BASICFACTS, _USERFACTS, _MERCHANTFACTS = Struct("<8d"), Struct("<38d"), Struct("<22d")
_USER, _MERCHANT, _SIX, _FOUR = Struct("<20f"), Struct("<17d"), Struct("<6f"), Struct("<4f")
_PAIR, _FIVE_PAIRS, _SIX_PAIRS = Struct("<2f"), Struct("<10f"), Struct("<12f")
_TWO_DOUBLES = Struct("<2d")


def _probe() -> None:
    """A function to look at."""


NATIVE: Final = not isinstance(_probe, FunctionType)
"""Whether this runs compiled."""


def read_user(b: bytes) -> tuple[Own, Numbers]:
    """Twenty floats of 32 bits."""
    if not NATIVE:
        row = _USER.unpack(b)
        return row[:7], row[7:]
    return (
        (read_f32_le(b, 0), read_f32_le(b, 4), read_f32_le(b, 8), read_f32_le(b, 12),
         read_f32_le(b, 16), read_f32_le(b, 20), read_f32_le(b, 24)),
        (read_f32_le(b, 28), read_f32_le(b, 32), read_f32_le(b, 36), read_f32_le(b, 40), read_f32_le(b, 44),
         read_f32_le(b, 48), read_f32_le(b, 52), read_f32_le(b, 56), read_f32_le(b, 60), read_f32_le(b, 64),
         read_f32_le(b, 68), read_f32_le(b, 72), read_f32_le(b, 76)),
    )  # fmt: skip


def write_user(own: Own, numbers: Numbers) -> bytes:
    """The opposite of `read_user`."""
    if not NATIVE:
        return _USER.pack(*own, *numbers)
    w = BytesWriter()
    a, b, c, d, e, f, g = own
    write_f32_le(w, a)
    write_f32_le(w, b)
    write_f32_le(w, c)
    write_f32_le(w, d)
    write_f32_le(w, e)
    write_f32_le(w, f)
    write_f32_le(w, g)
    h, i, j, k, m, n, o, p, q, r, s, t, u = numbers
    write_f32_le(w, h)
    write_f32_le(w, i)
    write_f32_le(w, j)
    write_f32_le(w, k)
    write_f32_le(w, m)
    write_f32_le(w, n)
    write_f32_le(w, o)
    write_f32_le(w, p)
    write_f32_le(w, q)
    write_f32_le(w, r)
    write_f32_le(w, s)
    write_f32_le(w, t)
    write_f32_le(w, u)
    return w.getvalue()


def read_merchant(b: bytes) -> tuple[Four, Numbers]:
    """Seventeen floats of 64 bits."""
    if not NATIVE:
        row = _MERCHANT.unpack(b)
        return row[:4], row[4:]
    return (
        (read_f64_le(b, 0), read_f64_le(b, 8), read_f64_le(b, 16), read_f64_le(b, 24)),
        (read_f64_le(b, 32), read_f64_le(b, 40), read_f64_le(b, 48), read_f64_le(b, 56), read_f64_le(b, 64),
         read_f64_le(b, 72), read_f64_le(b, 80), read_f64_le(b, 88), read_f64_le(b, 96), read_f64_le(b, 104),
         read_f64_le(b, 112), read_f64_le(b, 120), read_f64_le(b, 128)),
    )  # fmt: skip


def write_merchant(own: Four, numbers: Numbers) -> bytes:
    """The opposite of `read_merchant`."""
    if not NATIVE:
        return _MERCHANT.pack(*own, *numbers)
    w = BytesWriter()
    a, b, c, d = own
    write_f64_le(w, a)
    write_f64_le(w, b)
    write_f64_le(w, c)
    write_f64_le(w, d)
    h, i, j, k, m, n, o, p, q, r, s, t, u = numbers
    write_f64_le(w, h)
    write_f64_le(w, i)
    write_f64_le(w, j)
    write_f64_le(w, k)
    write_f64_le(w, m)
    write_f64_le(w, n)
    write_f64_le(w, o)
    write_f64_le(w, p)
    write_f64_le(w, q)
    write_f64_le(w, r)
    write_f64_le(w, s)
    write_f64_le(w, t)
    write_f64_le(w, u)
    return w.getvalue()


def read_six(b: bytes) -> Six:
    """Six floats of 32 bits."""
    if not NATIVE:
        return _SIX.unpack(b)
    return (
        read_f32_le(b, 0), read_f32_le(b, 4), read_f32_le(b, 8), read_f32_le(b, 12), read_f32_le(b, 16),
        read_f32_le(b, 20),
    )  # fmt: skip


def write_six(a: float, b: float, c: float, d: float, e: float, f: float) -> bytes:
    """The opposite of `read_six`."""
    if not NATIVE:
        return _SIX.pack(a, b, c, d, e, f)
    w = BytesWriter()
    write_f32_le(w, a)
    write_f32_le(w, b)
    write_f32_le(w, c)
    write_f32_le(w, d)
    write_f32_le(w, e)
    write_f32_le(w, f)
    return w.getvalue()


def read_four(b: bytes) -> Four:
    """Four floats of 32 bits."""
    return _FOUR.unpack(b)


def write_four(a: float, b: float, c: float, d: float) -> bytes:
    """The opposite of `read_four`."""
    return _FOUR.pack(a, b, c, d)


def pair(number: float, total: float) -> bytes:
    """Two floats of 32 bits."""
    if not NATIVE:
        return _PAIR.pack(number, total)
    w = BytesWriter()
    write_f32_le(w, number)
    write_f32_le(w, total)
    return w.getvalue()


def payment(amount: float, at: float, merchant: bytes) -> bytes:
    """Two floats of 64 bits, then the bytes as they are."""
    if not NATIVE:
        return _TWO_DOUBLES.pack(amount, at) + merchant
    w = BytesWriter()
    write_f64_le(w, amount)
    write_f64_le(w, at)
    w.write(merchant)
    return w.getvalue()


def sum_of_five(b: bytes) -> tuple[float, float]:
    """The sums of the first and of the second numbers of five pairs, from left to right."""
    if not NATIVE:
        a, r, c, s, d, t, e, u, f, v = _FIVE_PAIRS.unpack(b)
        return a + c + d + e + f, r + s + t + u + v
    return (
        read_f32_le(b, 0) + read_f32_le(b, 8) + read_f32_le(b, 16) + read_f32_le(b, 24) + read_f32_le(b, 32),
        read_f32_le(b, 4) + read_f32_le(b, 12) + read_f32_le(b, 20) + read_f32_le(b, 28) + read_f32_le(b, 36),
    )


def sum_of_six(b: bytes) -> tuple[float, float]:
    """As `sum_of_five`, of six pairs."""
    if not NATIVE:
        a, r, c, s, d, t, e, u, f, v, g, w = _SIX_PAIRS.unpack(b)
        return a + c + d + e + f + g, r + s + t + u + v + w
    return (
        read_f32_le(b, 0) + read_f32_le(b, 8) + read_f32_le(b, 16) + read_f32_le(b, 24) + read_f32_le(b, 32)
        + read_f32_le(b, 40),
        read_f32_le(b, 4) + read_f32_le(b, 12) + read_f32_le(b, 20) + read_f32_le(b, 28) + read_f32_le(b, 36)
        + read_f32_le(b, 44),
    )  # fmt: skip


def word(number: int) -> bytes:
    """An unsigned integer of 32 bits."""
    if not NATIVE:
        return number.to_bytes(4, "little")
    w = BytesWriter()
    write_i64_le(w, number)
    w.truncate(4)
    return w.getvalue()


def long_word(low: int, high: int) -> bytes:
    """One of 48 bits, of its lower 32 and its upper 16."""
    if not NATIVE:
        return (high << 32 | low).to_bytes(6, "little")
    w = BytesWriter()
    write_i64_le(w, high << 32 | low)
    w.truncate(6)
    return w.getvalue()


def write_basic_facts(values: BasicFacts) -> bytes:
    """Eight floats of 64 bits."""
    if not NATIVE:
        return _BASICFACTS.pack(*values)
    w = BytesWriter()
    a, b, c, d, e, f, g, h = values
    write_f64_le(w, a)
    write_f64_le(w, b)
    write_f64_le(w, c)
    write_f64_le(w, d)
    write_f64_le(w, e)
    write_f64_le(w, f)
    write_f64_le(w, g)
    write_f64_le(w, h)
    return w.getvalue()


def write_user_facts(values: UserFacts) -> bytes:
    """Thirty-eight floats of 64 bits."""
    if not NATIVE:
        return _USERFACTS.pack(*values)
    w = BytesWriter()
    (
        a, b, c, d, e, f, g, h, i, j, k, m, n, o, p, q, r, s,
        t, u, v, x, y, z, aa, bb, cc, dd, ee, ff, gg, hh, ii, jj, kk, mm, nn, oo,
    ) = values  # fmt: skip
    write_f64_le(w, a)
    write_f64_le(w, b)
    write_f64_le(w, c)
    write_f64_le(w, d)
    write_f64_le(w, e)
    write_f64_le(w, f)
    write_f64_le(w, g)
    write_f64_le(w, h)
    write_f64_le(w, i)
    write_f64_le(w, j)
    write_f64_le(w, k)
    write_f64_le(w, m)
    write_f64_le(w, n)
    write_f64_le(w, o)
    write_f64_le(w, p)
    write_f64_le(w, q)
    write_f64_le(w, r)
    write_f64_le(w, s)
    write_f64_le(w, t)
    write_f64_le(w, u)
    write_f64_le(w, v)
    write_f64_le(w, x)
    write_f64_le(w, y)
    write_f64_le(w, z)
    write_f64_le(w, aa)
    write_f64_le(w, bb)
    write_f64_le(w, cc)
    write_f64_le(w, dd)
    write_f64_le(w, ee)
    write_f64_le(w, ff)
    write_f64_le(w, gg)
    write_f64_le(w, hh)
    write_f64_le(w, ii)
    write_f64_le(w, jj)
    write_f64_le(w, kk)
    write_f64_le(w, mm)
    write_f64_le(w, nn)
    write_f64_le(w, oo)
    return w.getvalue()


def write_merchant_facts(values: MerchantFacts) -> bytes:
    """Twenty-two floats of 64 bits."""
    if not NATIVE:
        return _MERCHANTFACTS.pack(*values)
    w = BytesWriter()
    a, b, c, d, e, f, g, h, i, j, k, m, n, o, p, q, r, s, t, u, v, x = values
    write_f64_le(w, a)
    write_f64_le(w, b)
    write_f64_le(w, c)
    write_f64_le(w, d)
    write_f64_le(w, e)
    write_f64_le(w, f)
    write_f64_le(w, g)
    write_f64_le(w, h)
    write_f64_le(w, i)
    write_f64_le(w, j)
    write_f64_le(w, k)
    write_f64_le(w, m)
    write_f64_le(w, n)
    write_f64_le(w, o)
    write_f64_le(w, p)
    write_f64_le(w, q)
    write_f64_le(w, r)
    write_f64_le(w, s)
    write_f64_le(w, t)
    write_f64_le(w, u)
    write_f64_le(w, v)
    write_f64_le(w, x)
    return w.getvalue()


def has_word(b: bytes, word: bytes, begin: int, end: int) -> bool:
    """Whether the four bytes are one of those that stand from `begin` to `end`, four by four."""
    if not NATIVE:  # `in` would first try to take the bytes for a number: 0.1 µs
        place = b.find(word, begin, end)
        while place >= 0 and (place - begin) % 4:
            place = b.find(word, place + 1, end)
        return place >= 0
    wanted = read_i32_le(word, 0)
    place64: i64 = begin
    end64: i64 = end
    while place64 < end64:
        if read_i32_le(b, place64) == wanted:
            return True
        place64 += 4
    return False


def has_long_word(b: bytes, word: bytes, begin: int) -> bool:
    """Likewise six bytes, six by six, from `begin` on."""
    if not NATIVE:
        place = b.find(word, begin)
        while place >= 0 and (place - begin) % 6:
            place = b.find(word, place + 1)
        return place >= 0
    low, high = read_i32_le(word, 0), read_i16_le(word, 4)
    place64: i64 = begin
    end64: i64 = len(b)
    while place64 < end64:
        if read_i32_le(b, place64) == low and read_i16_le(b, place64 + 4) == high:
            return True
        place64 += 6
    return False


def number_at(b: bytes, place: int) -> float:
    """One of a row of floats of 64 bits."""
    return read_f64_le(b, 8 * place)
