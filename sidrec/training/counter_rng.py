"""Counter-based random numbers: stateless shuffles and draws."""

import hashlib

import numpy as np
from jaxtyping import Float64, Int64, UInt64

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_NUM_ROUNDS = 6
_KEY_MASK = (1 << 64) - 1


def key_of(*parts: int | str) -> int:
    """Return a 64-bit key for a tuple such as ``(seed, epoch, "search")``.

    >>> key_of(1, 23) == key_of(12, 3)
    False
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def hash_counters(counters: Int64[np.ndarray, " n"], *, key: int) -> UInt64[np.ndarray, " n"]:
    """Return 64 well-mixed bits for each counter.

    Source:
        Finalizer of SplitMix64 (Steele, Lea, Flood 2014), twice, with the key between.
    """
    return _mix(_mix(counters.astype(np.uint64) + _GOLDEN) ^ np.uint64(key & _KEY_MASK))


def uniform(counters: Int64[np.ndarray, " n"], *, key: int) -> Float64[np.ndarray, " n"]:
    """Return one number in [0, 1) for each counter, from the upper 53 bits of its hash."""
    return (hash_counters(counters, key=key) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permute(positions: Int64[np.ndarray, " n"], *, size: int, key: int) -> Int64[np.ndarray, " n"]:
    """Return where a pseudo-random permutation of ``range(size)`` sends each position.

    Nothing of length ``size`` is built: a Feistel network permutes the smallest range of ``4**h``
    numbers that holds ``size``, and a result outside is sent through it again until it is inside.

    Args:
        positions: Numbers in ``[0, size)``, in any order.
        size: Length of the permuted range.
        key: Chooses the permutation.

    Raises:
        ValueError: If a position lies outside the range.

    Source:
        Luby, Rackoff 1988 (Feistel network); Black, Rogaway 2002 (cycle walking).
    """
    if positions.size and not (positions.min() >= 0 and positions.max() < size):
        raise ValueError(f"positions must lie in [0, {size}), got {positions.min()}…")
    half_bits = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    found = _feistel(positions.astype(np.uint64), half_bits, key)
    outside = np.flatnonzero(found >= size)
    while outside.size:
        found[outside] = _feistel(found[outside], half_bits, key)
        outside = outside[found[outside] >= size]
    return found.astype(np.int64)


def _feistel(
    numbers: UInt64[np.ndarray, " n"], half_bits: int, key: int
) -> UInt64[np.ndarray, " n"]:
    shift, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = numbers >> shift, numbers & mask
    for turn in range(_NUM_ROUNDS):
        round_key = np.uint64(key_of(key, turn))
        left, right = right, left ^ (_mix(right ^ round_key) & mask)
    return (left << shift) | right


def _mix(bits: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    bits = (bits ^ (bits >> np.uint64(30))) * _MIX_1
    bits = (bits ^ (bits >> np.uint64(27))) * _MIX_2
    mixed: UInt64[np.ndarray, " n"] = bits ^ (bits >> np.uint64(31))
    return mixed
