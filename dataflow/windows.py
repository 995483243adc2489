"""Counts and sums of amounts over 24 h, 7 d and 30 d of event time, in buckets of 4 h, of a day and of 5 days.

A window reaches back between one bucket less than its name says and all of it. Its totals are kept, and summed up
anew whenever a bucket leaves it, so that no rounding error outlives a bucket.

Thirteen numbers change with every transaction: the newest bucket of 4 h (days and 5 days follow from it); count and
sum of 24 h, of 7 d, of 30 d; count and sum of the bucket under way, of 4 h, of a day, of 5 days. The buckets before
those stand apart as 32 floats of 32 bits, newest first, count and sum alternating: 5 of 4 h, 6 of a day, 5 of 5 days.
"""

from struct import Struct
from typing import Final

from dataflow.packed import Numbers, pair, sum_of_five, sum_of_six

BUCKET: Final = 14_400.0
"""Seconds of the narrowest bucket; an event at t falls in number t // BUCKET."""
_DAY: Final = 6.0  # widths in buckets of 4 h
_FIVE_DAYS: Final = 30.0

EMPTY: Numbers = (-5e6, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
"""Before all of event time: the year 1 begins in bucket -4,314,863."""

_PAST = Struct("<32f")
NO_PAST: Final = _PAST.pack(*(0.0,) * 32)
"""Past buckets that are all empty; where they are, it is this very object."""


def roll(numbers: Numbers, past: bytes, bucket: float) -> tuple[Numbers, bytes]:
    """Moves the windows on to a later bucket: (the thirteen numbers, the past)."""
    newest, _, _, n7, s7, n30, s30, n4h, s4h, n1d, s1d, n5d, s5d = numbers
    # In each row of buckets, as bytes: those that nothing fell in, then the one that was under way, then the others
    # as far as they fit. The one under way is now empty, so the past is all that there is to sum.
    hours = (NO_PAST[: 8 * int(bucket - newest) - 8] + pair(n4h, s4h) + past[:40])[:40]
    n24, s24 = sum_of_five(hours)
    days = int(bucket // _DAY - newest // _DAY)
    if not days:
        past = hours + past[40:]
    else:
        row = (NO_PAST[: 8 * days - 8] + pair(n1d, s1d) + past[40:88])[:48]
        n7, s7 = sum_of_six(row)
        n1d = s1d = 0.0
        fives = int(bucket // _FIVE_DAYS - newest // _FIVE_DAYS)
        if not fives:
            past = hours + row + past[88:]
        else:
            month = (NO_PAST[: 8 * fives - 8] + pair(n5d, s5d) + past[88:])[:40]
            n30, s30 = sum_of_five(month)
            n5d = s5d = 0.0
            past = hours + row + month
    if n30 == n5d and past == NO_PAST:
        past = NO_PAST  # shared by all who have none: 161 bytes less
    return (bucket, n24, s24, n7, s7, n30, s30, 0.0, 0.0, n1d, s1d, n5d, s5d), past


def count(numbers: Numbers, past: bytes, bucket: float, amount: float) -> tuple[Numbers, bytes]:
    """Counts one amount in a bucket, as far as the windows still reach there: (the thirteen numbers, the past)."""
    if bucket > numbers[0]:
        numbers, past = roll(numbers, past, bucket)
    newest, n24, s24, n7, s7, n30, s30, n4h, s4h, n1d, s1d, n5d, s5d = numbers
    if bucket == newest:
        return (
            newest, n24 + 1.0, s24 + amount, n7 + 1.0, s7 + amount, n30 + 1.0, s30 + amount,
            n4h + 1.0, s4h + amount, n1d + 1.0, s1d + amount, n5d + 1.0, s5d + amount,
        ), past  # fmt: skip
    return _add(numbers, past, bucket, 1.0, amount)


def take_back(numbers: Numbers, past: bytes, bucket: float, amount: float) -> tuple[Numbers, bytes]:
    """Takes back what `count` counted in a bucket, as far as the windows still reach there; exact for whole numbers."""
    if bucket > numbers[0]:
        return numbers, past
    return _add(numbers, past, bucket, -1.0, -amount)


def _add(numbers: Numbers, past: bytes, bucket: float, number: float, amount: float) -> tuple[Numbers, bytes]:
    """Adds to a bucket that is not later than the newest."""
    newest = numbers[0]
    now = list(numbers)
    old = list(_PAST.unpack(past))
    for window, (width, size, start) in enumerate(((1.0, 6, 0), (_DAY, 7, 10), (_FIVE_DAYS, 6, 22))):
        age = int(newest // width - bucket // width)
        if age < size:
            row, place = (old, start + 2 * age - 2) if age else (now, 7 + 2 * window)
            row[place] += number
            row[place + 1] += amount
            now[1 + 2 * window] += number
            now[2 + 2 * window] += amount
    a, b, c, d, e, f, g, h, i, j, k, m, n = now
    return (a, b, c, d, e, f, g, h, i, j, k, m, n), _PAST.pack(*old)
