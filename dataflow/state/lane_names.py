"""Names for lanes, such that Bytewax puts lane i on worker i modulo the number of workers.

Bytewax 0.21 sends a key to the worker whose index is the key's hash modulo the number of workers; the hash is Rust's
SipHash-1-3 of the key's bytes and a byte 0xff, with a key of zeros (https://www.aumasson.jp/siphash/siphash.pdf). With
plain names, three lanes of eight could lie on one worker of two.
"""

from typing import Final

_MASK: Final = (1 << 64) - 1
_EVEN_OVER: Final = 840
"""Names are right for every number of workers that divides it: 1 to 8, and 10, 12, 14, 15, 20, ..."""


def route_hash(key: str) -> int:
    """The hash by which Bytewax finds the worker of a key."""
    data = key.encode() + b"\xff"
    v0, v1, v2, v3 = 0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573

    def mix(v0: int, v1: int, v2: int, v3: int) -> tuple[int, int, int, int]:
        v0 = (v0 + v1) & _MASK
        v1 = _rotated(v1, 13) ^ v0
        v0 = _rotated(v0, 32)
        v2 = (v2 + v3) & _MASK
        v3 = _rotated(v3, 16) ^ v2
        v0 = (v0 + v3) & _MASK
        v3 = _rotated(v3, 21) ^ v0
        v2 = (v2 + v1) & _MASK
        v1 = _rotated(v1, 17) ^ v2
        return v0, v1, _rotated(v2, 32), v3

    whole = len(data) - len(data) % 8
    words = [int.from_bytes(data[at : at + 8], "little") for at in range(0, whole, 8)]
    words.append((len(data) & 0xFF) << 56 | int.from_bytes(data[whole:], "little"))
    for word in words:
        v0, v1, v2, v3 = mix(v0, v1, v2, v3 ^ word)
        v0 ^= word
    v2 ^= 0xFF
    for _ in range(3):
        v0, v1, v2, v3 = mix(v0, v1, v2, v3)
    return v0 ^ v1 ^ v2 ^ v3


def lane_names(lanes: int) -> list[str]:
    """The key of each lane: `007.315` is lane 7. It takes about 5 ms a lane."""
    names = []
    for lane in range(lanes):
        tried = 0
        while route_hash(f"{lane:03}.{tried}") % _EVEN_OVER != lane % _EVEN_OVER:
            tried += 1
        names.append(f"{lane:03}.{tried}")
    return names


def _rotated(value: int, bits: int) -> int:
    return (value << bits | value >> (64 - bits)) & _MASK
