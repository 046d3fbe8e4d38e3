"""Random numbers by index instead of by turn: (seed, user, day, step, purpose) -> bits.

A counter-based generator (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011): any number can be had
without those before it. So results do not depend on how users are cut into batches, and two policies that are compared
meet the same luck at the same (user, day, step): common random numbers. The hash is splitmix64's finaliser (Steele,
Lea & Flood, 2014) over a key per user and day and a counter per draw.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from sidera.sim.portable import Floats, normal_quantile

Bits = NDArray[np.uint64]

GOLDEN = 0x9E3779B97F4A7C15
MASK = 2**64 - 1


class Purpose(IntEnum):
    """Which draw of a step; candidates of a request take CANDIDATE, CANDIDATE + 1, ..."""

    CLICK = 0
    SATISFACTION = 1
    WATCH = 2
    SKIP = 3
    LIKE = 4
    FOLLOW = 5
    COMMENT = 6
    FORWARD = 7
    DISLIKE = 8
    EXIT = 9
    RETURN = 10
    SESSION = 11
    OFFSET = 12
    UNIFORM_ITEM = 13
    POLICY = 14
    SEARCH = 15
    SEARCH_WHIM = 16
    SEARCH_SUBTOPIC = 17
    SEARCH_FORM = 18
    UNIFORM_SLOT = 64  # and the following, one per slot of the slate
    CANDIDATE = 256
    SEARCH_TOPIC = 4608  # and the following, one per topic


def mix(x: Bits) -> Bits:
    """splitmix64's finaliser: a bijection of 64-bit words whose output looks random."""
    x = x ^ (x >> np.uint64(30))
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return x


def keys(seed: int, stream: str, ids: NDArray[np.integer]) -> Bits:
    """One key for each id; streams (users, items, ...) of one seed have nothing in common."""
    salt = int.from_bytes(stream.encode().ljust(8)[:8], "little")
    start = mix(mix(np.array([seed & MASK], dtype=np.uint64)) ^ np.uint64(salt))
    return mix(start ^ mix(ids.astype(np.uint64) + np.uint64(1)))


def sub_keys(parents: Bits, index: int) -> Bits:
    """Keys of the ``index``-th child of each key: a user's day."""
    return mix(parents + np.uint64((index + 1) * GOLDEN & MASK))


def bits(parents: Bits, counter: int) -> Bits:
    """(B,) 64 random bits for each key at one counter."""
    return mix(parents + np.uint64((counter * GOLDEN + GOLDEN) & MASK))


def bits_table(parents: Bits, counter: int, count: int) -> Bits:
    """(B, count): counters ``counter``, ``counter + 1``, ..."""
    steps = [((counter + position) * GOLDEN + GOLDEN) & MASK for position in range(count)]
    return mix(parents[:, None] + np.array(steps, dtype=np.uint64))


def uniform(words: Bits) -> Floats:
    """Inside (0, 1), from the upper 23 bits; neither end is reached."""
    return ((words >> np.uint64(41)).astype(np.float32) + np.float32(0.5)) * np.float32(2**-23)


def low_uniform(words: Bits) -> Floats:
    """A second number from the same words: bits 18 to 40."""
    return (((words >> np.uint64(18)) & np.uint64(0x7FFFFF)).astype(np.float32) + np.float32(0.5)) * np.float32(2**-23)


def normal(words: Bits) -> Floats:
    return normal_quantile(uniform(words))


def below(words: Bits, limit: int | NDArray[np.integer]) -> NDArray[np.int64]:
    """Whole numbers 0 .. limit - 1 from the upper 32 bits; limits up to 2**31, bias below limit / 2**32."""
    return (((words >> np.uint64(32)) * np.asarray(limit).astype(np.uint64)) >> np.uint64(32)).astype(np.int64)
