"""Profiles of users and merchants as rows of tables, read and updated by compiled kernels.

A statistic is a file of its own: its fields (a piece of a dtype), its read, its update. `user` and `merchant` sum them
up and hold the kernels, `profiles` the tables and what turns transactions and labels into records. With
NUMBA_DISABLE_JIT=1 the same code runs as Python.

Bytes of a user, packed:

| field | of | bytes |
| --- | --- | --- |
| last_at, active_day, first_day | event times | 8 + 4 + 4 |
| seen, mean, squares, largest | amounts | 16 |
| excess_day, excess_fortnight | excess | 8 |
| bucket, 19 x (count u2, sum f4) | windows | 4 + 114 |
| 8 x (time f8, amount f4), start, n, busy | last_hour | 96 + 2 + 4 |
| last_location | number of a name | 4 |
| 16 merchants, 4 devices, 4 locations | names_seen | 96 |
| 16 words of 64 bits, next | recent_ids | 128 + 1 |
| last place, centre, placed, roam | places | 24 |
| unusual, labelled | rows of side tables | 4 + 4 |
| **a row** | | **521** |
| key: text 64, number 32, dict 40, list 8 | table | 144 |
| **a user** | | **665** |

Measured among 1,000,000 users, with the table's room to grow: 716 (`python -m benchmarks.profiles`).

Beside that, where there is need: 137 for one with an amount that was unusual (`unusual_ids`), 61 and 237 for each 8
labels (`labels`), 12,301 for one with more than 8 transactions in two hours (`last_hour`), which are given back. A
merchant takes 280, and with labels 2,454 more.

What differs from the profiles of before, which kept totals beside the buckets: sums of amounts and means by window are
off by 1e-6 of themselves at most, in both, as are those of an hour by 6e-8, as its amounts are float32 now. All other
features are equal to the last bit. Labels of transactions of the same microsecond at one merchant are summed up in the
order of other hashes than before. A user's bucket counts to 65,535.
"""

from typing import Final

VERSION: Final = 4
"""Of what profiles mean: with a new number, old recovery data is refused. Whose rows differ is refused without it."""
