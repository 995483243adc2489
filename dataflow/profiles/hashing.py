"""Numbers that stand for texts, the same in every process: of 64 bits for ids, of 32 for names."""

from collections.abc import Sequence
from itertools import repeat
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dataflow.profiles.compilation import compiled, quiet

CACHED: Final = 65_536
"""Names whose hashes are kept at hand: to look one up takes 0.04 µs, to make it 0.2."""

_SEED: Final = -0x340D631B7BDDDCDB  # FNV-1a's offset basis, as a signed number
_PRIME: Final = 0x100000001B3  # its prime
_MIX: Final = -0x40A7B892E31B1A47  # of splitmix64's last step


@compiled
def _hash(codes: Any, ends: Any, hashes: Any) -> None:
    """FNV-1a over the code points of each text; `ends` says where each ends."""
    begin = 0
    for i in range(len(ends)):
        h = np.int64(_SEED)
        for k in range(begin, ends[i]):
            h = (h ^ np.int64(codes[k])) * np.int64(_PRIME)
        h = (h ^ (h >> np.int64(30))) * np.int64(_MIX)
        hashes[i] = h ^ (h >> np.int64(27))
        begin = ends[i]


def hash_texts(texts: Sequence[str]) -> NDArray[np.int64]:
    """A hash of 64 bits of each text; all in one pass takes 0.1 µs each."""
    codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)
    ends = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)))
    hashes = np.empty(len(texts), np.int64)
    with quiet():
        _hash(codes, ends, hashes)
    return hashes


class NameHashes:
    """Hashes of 32 bits by name, never 0; 0 for the names that stand for none."""

    def __init__(self, *nobody: str):
        self._nobody = dict.fromkeys(nobody, 0)
        self._hash_of = self._nobody.copy()

    def of(self, names: Sequence[str]) -> NDArray[np.uint32]:
        """The hash of each name."""
        hashes = np.fromiter(map(self._hash_of.get, names, repeat(-1)), np.int64, len(names))
        absent = (hashes < 0).nonzero()[0].tolist()
        if absent:
            new = [names[place] for place in absent]
            made = hash_texts(new) & 0xFFFFFFFF
            made[made == 0] = 1
            hashes[absent] = made
            if len(self._hash_of) + len(new) > CACHED:
                self._hash_of = self._nobody.copy()
            self._hash_of.update(zip(new, made.tolist(), strict=True))
        return hashes.astype(np.uint32)


def payment_words(
    ids: NDArray[np.int64], amounts: NDArray[np.float64], dated: NDArray[np.float64], merchants: NDArray[np.uint32]
) -> NDArray[np.int64]:
    """What makes a transaction the same as another, as `recent_ids` keeps it: 40 bits of the id, 24 of all.

    `dated` is the event time as the timestamp says.
    """
    h = ids.copy()
    for part in (amounts.view(np.int64), dated.view(np.int64), merchants.astype(np.int64)):
        h = (h ^ part) * np.int64(_MIX)
        h ^= h >> 29
    return (ids & ~0xFFFFFF) | (h & 0xFFFFFF)
