"""Sample order and random streams as pure functions of (seed, epoch, position): nothing to store, nothing to replay."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

_ORDER = 0x6F72646572  # sets the keys of the order apart from all other streams
_NUM_ROUNDS = 8


def stream_key(*parts: int) -> int:
    """A 63-bit key that is different (up to chance) for every different tuple of integers.

    Each part counts modulo 2^64; (1,) and (1, 0) give different keys.
    """
    words = [len(parts)]
    for part in parts:
        words += [part & 0xFFFFFFFF, (part >> 32) & 0xFFFFFFFF]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)


def sample_at(seed: int, position: ArrayLike, num_samples: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which sample stands at a position of the endless stream.

    Each epoch is another permutation of all samples. It is a Feistel network over the smallest fitting even number
    of bits, applied until the result is a sample ("cycle walking"), so that 1 or 10^9 samples cost no memory.

    Args:
        seed: of the run.
        position: global sample positions from 0, any shape.
        num_samples: in the data set.
    Returns:
        epoch and sample, both int64 of ``position``'s shape.
    """
    position = np.asarray(position, dtype=np.int64)
    epoch, place = np.divmod(position, num_samples)
    sample = np.empty_like(place)
    for one in np.unique(epoch):
        here = epoch == one
        sample[here] = _permute(place[here], stream_key(seed, _ORDER, int(one)), num_samples)
    return epoch, sample


def _permute(place: NDArray[np.int64], key: int, num_samples: int) -> NDArray[np.int64]:
    half_bits = max(1, ((num_samples - 1).bit_length() + 1) // 2)
    round_keys = np.random.SeedSequence(key).generate_state(_NUM_ROUNDS, np.uint64).astype(np.uint64)
    value = place.astype(np.uint64)
    outside = np.ones(value.shape, dtype=bool)
    while outside.any():
        value[outside] = _feistel(value[outside], round_keys, half_bits)
        outside = value >= np.uint64(num_samples)
    return value.astype(np.int64)


def _feistel(value: NDArray[np.uint64], round_keys: NDArray[np.uint64], half_bits: int) -> NDArray[np.uint64]:
    """A bijection of [0, 2^(2 half_bits))."""
    mask = np.uint64((1 << half_bits) - 1)
    left, right = value >> np.uint64(half_bits), value & mask
    for key in round_keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << np.uint64(half_bits)) | right


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Finaliser of splitmix64 (Steele, Lea, Flood 2014): every input bit reaches every output bit."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
