"""Counts and sums over 24 h, 7 d and 30 d of event time, in buckets of 4 h, of a day and of 5 days.

A window reaches back between one bucket less than its name says and all of it: it is the bucket under way and the 5
(of 7 d: 6) before it. Buckets stand newest first. An event older than the newest counts in the buckets of its time, as
far as the windows reach back; windows are read as of the newest event.

Sums of users are float32 by bucket, so a window's sum is off by 1e-6 of it at most; counts are exact up to `most`.
"""

from typing import Any, Final

from dataflow.profiles.compilation import compiled, float64, int64

BUCKET: Final = 14_400.0
"""Seconds of the narrowest bucket; an event at t falls in number t // BUCKET."""
DAY_BUCKETS: Final = 6
FIVE_DAY_BUCKETS: Final = 30
"""Widths in buckets of 4 h."""
BEFORE_ALL: Final = -5_000_000
"""The newest bucket of what is empty: the year 1 begins in bucket -4,314,863."""
BLANK: Final = {"bucket": BEFORE_ALL}


def fields(counts: str, sums: str) -> list[tuple[Any, ...]]:
    """The fields of a record, with the types of the counts and of the sums."""
    return [
        ("bucket", "i4"),
        ("hours_n", counts, 6), ("hours_sum", sums, 6),
        ("days_n", counts, 7), ("days_sum", sums, 7),
        ("five_days_n", counts, 6), ("five_days_sum", sums, 6),
    ]  # fmt: skip


@compiled
def _total(counts: Any, sums: Any, later: int) -> tuple[float, float]:
    """Count and sum of what is still in the window `later` buckets after the newest."""
    count, total = 0, 0.0
    for i in range(len(counts) - later):
        count += int64(counts[i])
        total += float64(sums[i])
    return float64(count), total


@compiled
def totals(p: Any, bucket: int) -> tuple[float, float, float, float, float, float]:
    """Count and sum of 24 h, of 7 d and of 30 d, as of a bucket; as of the newest where that is later."""
    newest = int64(p["bucket"])
    now = max(bucket, newest)
    n24, s24 = _total(p["hours_n"], p["hours_sum"], now - newest)
    n7, s7 = _total(p["days_n"], p["days_sum"], now // DAY_BUCKETS - newest // DAY_BUCKETS)
    n30, s30 = _total(p["five_days_n"], p["five_days_sum"], now // FIVE_DAY_BUCKETS - newest // FIVE_DAY_BUCKETS)
    return n24, s24, n7, s7, n30, s30


@compiled
def _shift(counts: Any, sums: Any, later: int) -> None:
    """Moves buckets back by so many, and leaves empty ones in front."""
    for i in range(len(counts) - 1, -1, -1):
        if i >= later:
            counts[i] = counts[i - later]
            sums[i] = sums[i - later]
        else:
            counts[i] = 0
            sums[i] = 0.0


@compiled
def _add(counts: Any, sums: Any, age: int, number: int, amount: float, most: int) -> None:
    """Adds to the bucket of that age, if the window reaches there; nothing is taken back from an empty one."""
    if age < len(counts) and int64(counts[age]) + number >= 0:
        counts[age] = min(int64(counts[age]) + number, most)
        sums[age] = float64(sums[age]) + amount


@compiled
def update(p: Any, bucket: int, number: int, amount: float, most: int) -> None:
    """Adds a number (1 to count, -1 to take back) and an amount to a bucket; a bucket counts to `most`."""
    newest = int64(p["bucket"])
    if bucket > newest:
        _shift(p["hours_n"], p["hours_sum"], bucket - newest)
        if bucket // DAY_BUCKETS > newest // DAY_BUCKETS:
            _shift(p["days_n"], p["days_sum"], bucket // DAY_BUCKETS - newest // DAY_BUCKETS)
        if bucket // FIVE_DAY_BUCKETS > newest // FIVE_DAY_BUCKETS:
            _shift(p["five_days_n"], p["five_days_sum"], bucket // FIVE_DAY_BUCKETS - newest // FIVE_DAY_BUCKETS)
        p["bucket"] = newest = bucket
    _add(p["hours_n"], p["hours_sum"], newest - bucket, number, amount, most)
    days = newest // DAY_BUCKETS - bucket // DAY_BUCKETS
    _add(p["days_n"], p["days_sum"], days, number, amount, most)
    five_days = newest // FIVE_DAY_BUCKETS - bucket // FIVE_DAY_BUCKETS
    _add(p["five_days_n"], p["five_days_sum"], five_days, number, amount, most)
