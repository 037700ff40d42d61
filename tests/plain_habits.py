"""The arithmetic of `streams.habits` written plainly: what the compiled one is held to, bit by bit."""

import struct
from math import exp, log2

from models.visits import ACTIONS, WINDOWS_MS

KINDS = 7  # 3 bytes each
OFTEN = 15  # events of one kind in a session: more are counted as so many
_HEAD = struct.Struct("<IB6e")
_KIND = struct.Struct("<Be")
_ALL = struct.Struct("<IB6eBe")  # of a visitor with one kind of event
LONGEST = _HEAD.size + KINDS * _KIND.size
_WEEK_MS, _QUARTER_MS, _YEAR_MS = WINDOWS_MS
_NO_ACTIONS = (0,) * ACTIONS
_MOST = 2_048.0  # one more is no other half float
NEW = (0.0,) * 6 + (0.0, -1.0) + (0.0,) * ACTIONS  # of a visitor never seen before


def are_habits(blob: bytes) -> bool:
    """Whether these bytes have a length that `after` could have written; none at all stands for what was never kept."""
    return not blob or (_HEAD.size <= len(blob) <= LONGEST and (len(blob) - _HEAD.size) % _KIND.size == 0)


def visit(
    habits: bytes, last_ms: int, now_ms: int, new_session: bool, action: int
) -> tuple[tuple[float, ...], tuple[int, ...], bytes]:
    """`VisitContext.habits` and `.actions` as they were before a visit at `now_ms`, and what to keep after it.

    `habits` were kept at `last_ms`; `action` is the bucket of the visit's kind of event.
    """
    if not habits:
        first_s = max(0, min(now_ms // 1000, 0xFFFFFFFF))
        return NEW, _NO_ACTIONS, _ALL.pack(first_s, 0, 1, 1, 1, 0, 0, 0, action << 4 | 1, 1)
    first_s, silence, a, b, c, d, e, f = _HEAD.unpack_from(habits)
    elapsed_ms = max(0, now_ms - last_ms)
    if new_session:
        silence = max(1, min(255, round(8 * log2(1 + elapsed_ms / 1000))))
        d, e, f = d + 1, e + 1, f + 1  # the session that has ended counts
    week, quarter, year = exp(-elapsed_ms / _WEEK_MS), exp(-elapsed_ms / _QUARTER_MS), exp(-elapsed_ms / _YEAR_MS)
    a, b, c, d, e, f = a * week, b * quarter, c * year, d * week, e * quarter, f * year
    kinds, actions = [0.0] * ACTIONS, [0] * ACTIONS
    others: list[tuple[float, int]] = []
    mine, weight = action << 4 | 1, 1.0
    for kind, old in _KIND.iter_unpack(habits[_HEAD.size :]):
        times, count = 0 if new_session else kind & 15, old * quarter
        at = (kind >> 4) - 1
        kinds[at], actions[at] = count, times
        if at == action - 1:
            mine, weight = action << 4 | min(times + 1, OFTEN), count + 1
        else:
            others.append((count, kind & 0xF0 | times))
    if len(others) == KINDS:
        others.remove(min(others))
    silence_s = 2.0 ** (silence / 8) - 1 if silence else -1.0
    kept = _ALL.pack(
        first_s, silence, min(a + 1, _MOST), min(b + 1, _MOST), min(c + 1, _MOST), d, e, f, mine, min(weight, _MOST)
    )
    for count, kind in others:
        kept += _KIND.pack(kind, count)
    return (a, b, c, d, e, f, max(0.0, now_ms / 1000 - first_s), silence_s, *kinds), tuple(actions), kept
