"""What a visitor usually does, in a few bytes: decayed counts over a week, three months and a year, in event time.

A count fades by exp(-elapsed / window) and grows by one with each visit, so that it needs no list of what it counts
(Cohen & Strauss 2006, "Maintaining time-decaying stream aggregates"). All of a visitor's counts are as of one moment, the
last one of its current session, which the visitor's record holds anyway.

The layout of the bytes, little endian:

    first visit, u32 seconds since 1970
    silence before this session, u8: 8 * log2(1 + seconds) rounded, at least 1; 0 where it is the visitor's first
    visits in each window, then sessions that have ended in each, 6 half floats
    then for each of at most KINDS kinds of event, 3 bytes: the kind's bucket (upper four bits) and how often it came in this
    session (lower four, at most 15); its decayed count over three months, a half float

A half float counts one by one up to 2,048 and stays there: more would be the same habit. Of a visitor with more than KINDS
kinds of event the rarest is forgotten.

A visit dated before the last one neither fades nor sharpens anything. The arithmetic is in `streams.session_steps`.
"""

import struct
from collections.abc import Sequence

# The first three are compiled into loops (@kernel) of others, which are compiled anew when this file changes.
KINDS = 7  # 3 bytes each
OFTEN = 15  # events of one kind in a session: more are counted as so many
MOST = 2_048.0  # one more is no other half float
_HEAD = struct.Struct("<IB6H")
_KIND = struct.Struct("<BH")
LONGEST = _HEAD.size + KINDS * _KIND.size


def are_habits(blob: bytes) -> bool:
    """Whether these bytes have a length that habits may have; none at all stands for what was never kept."""
    return not blob or (_HEAD.size <= len(blob) <= LONGEST and (len(blob) - _HEAD.size) % _KIND.size == 0)


def read(blob: bytes) -> tuple[int, int, list[int], list[int], list[int]]:
    """First visit (s), silence, six decayed counts, kinds, their counts: half floats as their bits."""
    first_s, silence, *decayed = _HEAD.unpack_from(blob)
    kinds = list(_KIND.iter_unpack(blob[_HEAD.size :]))
    return first_s, silence, decayed, [kind for kind, _ in kinds], [weight for _, weight in kinds]


def write(first_s: int, silence: int, decayed: Sequence[int], kinds: Sequence[int], weights: Sequence[int]) -> bytes:
    """The bytes that `read` reads."""
    each = (_KIND.pack(kind, weight) for kind, weight in zip(kinds, weights, strict=True))
    return _HEAD.pack(first_s, silence, *decayed) + b"".join(each)
