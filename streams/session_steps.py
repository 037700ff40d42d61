"""The rules of `streams.sessions` and of `streams.habits`, applied to many visits in one go: the compiled part.

Visits are taken in the order given; the rows of their visitors change as they go. Half floats are kept as their bits, rounded
as IEEE 754 says, so that a row read back from the store goes on exactly as one that never left memory.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.compiled import kernel
from models.visits import RECENT, WINDOWS_MS
from streams.habits import KINDS, MOST, OFTEN
from streams.visitors import EVENTS, PAGES, Rows, Slots

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]
U32 = NDArray[np.uint32]
Mask = NDArray[np.bool_]

_WEEK_MS, _QUARTER_MS, _YEAR_MS = (float(window_ms) for window_ms in WINDOWS_MS)
NEW, LATE, DUPLICATE, FURTHER, NAMED = 1, 2, 4, 8, 16  # bits of what became of a visit


@kernel
def to_half(x: float) -> int:
    """Bits of the half float nearest to x, 0 ≤ x < 65504; ties to even."""
    if not x > 0.0:
        return 0
    if x < 6.103515625e-05:
        return int(np.rint(x * 16_777_216.0))  # subnormal, or just the least normal one
    mantissa, exponent = math.frexp(x)
    # A mantissa that rounds up to 2 carries into the exponent, as it should.
    return ((exponent + 14) << 10) + int(np.rint((2.0 * mantissa - 1.0) * 1024.0))


@kernel
def from_half(bits: int) -> float:
    """The number that the bits of a half float stand for."""
    exponent, mantissa = int(bits) >> 10, int(bits) & 1023
    if exponent == 0:
        return mantissa / 16_777_216.0
    return math.ldexp(1.0 + mantissa / 1024.0, exponent - 15)


@kernel
def _habits(
    row: Any, elapsed_ms: float, now_ms: int, new: bool, action: int, keep: bool, usual: F64, actions: F64
) -> None:
    """As `streams.habits.visit`; what is kept changes only where `keep` says so."""
    usual[:] = 0.0
    actions[:] = 0.0
    if row.kind_count == 0:
        usual[7] = -1.0
        if keep:
            row.first_s = np.uint32(max(0, min(now_ms // 1000, 0xFFFFFFFF)))
            row.silence, row.kind_count = 0, 1
            for k in range(6):
                row.decayed[k] = 15 << 10 if k < 3 else 0  # one visit, no session that has ended
            row.kinds[0], row.weights[0] = action << 4 | 1, 15 << 10
        return
    silence = int(row.silence)
    if new:
        silence = int(max(1.0, min(255.0, np.rint(8.0 * math.log2(1.0 + elapsed_ms / 1000.0)))))
    week, quarter = math.exp(-elapsed_ms / _WEEK_MS), math.exp(-elapsed_ms / _QUARTER_MS)
    year = math.exp(-elapsed_ms / _YEAR_MS)
    for k in range(6):
        count = from_half(row.decayed[k])
        if new and k >= 3:
            count += 1.0  # the session that has ended counts
        usual[k] = count * (week if k % 3 == 0 else quarter if k % 3 == 1 else year)
    usual[6] = max(0.0, now_ms / 1000.0 - np.float64(row.first_s))
    usual[7] = 2.0 ** (silence / 8.0) - 1.0 if silence else -1.0
    mine, weight, others = action << 4 | 1, 1.0, 0
    rarest, rarest_count, rarest_kind = -1, 0.0, 0
    kind_of, count_of = np.empty(KINDS, np.int64), np.empty(KINDS, np.float64)
    for k in range(row.kind_count):
        kind = int(row.kinds[k])
        times, count = 0 if new else kind & 15, from_half(row.weights[k]) * quarter
        at = (kind >> 4) - 1
        usual[8 + at], actions[at] = count, times
        if at == action - 1:
            mine, weight = action << 4 | min(times + 1, OFTEN), count + 1.0
            continue
        kind = kind & 0xF0 | times
        if rarest < 0 or count < rarest_count or (count == rarest_count and kind < rarest_kind):
            rarest, rarest_count, rarest_kind = others, count, kind
        kind_of[others], count_of[others] = kind, count
        others += 1
    if not keep:
        return
    row.silence = np.uint8(silence)
    for k in range(6):
        row.decayed[k] = to_half(min(usual[k] + 1.0, MOST) if k < 3 else usual[k])
    row.kinds[0], row.weights[0] = mine, to_half(min(weight, MOST))
    n = 1
    for k in range(others):
        if others == KINDS and k == rarest:
            continue
        row.kinds[n], row.weights[n] = kind_of[k], to_half(count_of[k])
        n += 1
    row.kind_count = n


@kernel
def take_in(
    rows: Rows, slots: Slots, gap_ms: int, now: I64, watermark_ms: int, url: U64, teaches: Mask, event: U32, named: U64,
    clock: I64, action: I64, facts: I64, recent: U64, entry: U64, usual: F64, actions: F64, start: I64,
    became: NDArray[np.uint8],
) -> None:  # fmt: skip
    """n visits, of the visitors at `slots`.

    named: hash of the session id that the producer gave, 0 for none; clock: the start in it where it reads like one that the
    clock gave, else -1. start: of the session of a visit, where the clock names it. became: bits, as above.
    Out: facts (n, FACTS), recent (n, RECENT), entry (n,), usual (n, HABITS), actions (n, ACTIONS).
    """
    for k in range(len(slots)):
        row = rows[slots[k]]
        known = row.visits > 0
        now_ms, flags = now[k], 0
        if now_ms < watermark_ms:
            flags |= LATE
        duplicate = False
        for i in range(row.event_count):
            duplicate |= row.events[i] == event[k]
        same = False
        if known:
            if named[k] != 0:
                same = named[k] == row.named if row.named != 0 else clock[k] == row.named_ms and clock[k] >= 0
            else:
                same = row.started_ms - gap_ms <= now_ms <= row.last_ms + gap_ms
        elapsed_ms = np.float64(max(0, now_ms - row.last_ms)) if known else 0.0
        _habits(row, elapsed_ms, now_ms, not same, action[k], not duplicate, usual[k], actions[k])
        pages = row.page_count if same else 0
        again = pages > 0 and row.pages[0] == url[k]
        if duplicate:
            # As the original looked, as far as what is kept allows; it may lie some visits, or a session, back.
            flags |= DUPLICATE
            position = np.int64(row.position) if same else 1
            facts[k, 0] = position
            facts[k, 1] = -1 if position == 1 else 0
            facts[k, 2] = max(0, now_ms - row.started_ms) if same else 0
            facts[k, 3] = np.int64(row.visits) - 1
            facts[k, 4] = np.int64(row.sessions) - 1 if same else max(0, np.int64(row.sessions) - 2)  # type: ignore[assignment]
            facts[k, 6] = 1
            entry[k] = row.entry if same else url[k]
            start[k] = row.named_ms if same else now_ms
            if row.named != 0 if same else named[k] != 0:
                flags |= NAMED
            first = 1 if again else 0
            for i in range(RECENT):
                recent[k, i] = row.pages[first + i] if first + i < pages else np.uint64(0)
            if position > 1:
                flags |= FURTHER
        else:
            if not known:
                flags |= NEW
            repeat = teaches[k] and again
            first = 1 if repeat else 0
            for i in range(RECENT):
                recent[k, i] = row.pages[first + i] if first + i < pages else np.uint64(0)
            facts[k, 6] = repeat
            facts[k, 3] = row.visits
            if same:
                facts[k, 1] = max(0, now_ms - row.last_ms)
                if now_ms < row.started_ms:
                    row.started_ms = now_ms
                if now_ms > row.last_ms:
                    row.last_ms = now_ms
                row.position += 1
            else:
                facts[k, 1] = -1
                row.started_ms, row.last_ms, row.named_ms, row.named = now_ms, now_ms, now_ms, named[k]
                row.position, row.entry, row.page_count = 1, url[k], 0
                row.sessions += 1
                for i in range(PAGES):
                    row.pages[i] = np.uint64(0)
            row.visits += 1
            facts[k, 0] = row.position
            facts[k, 2] = now_ms - row.started_ms
            facts[k, 4] = np.int64(row.sessions) - 1
            if teaches[k] and not repeat:
                row.page_count = min(PAGES, row.page_count + 1)
                for i in range(row.page_count - 1, 0, -1):
                    row.pages[i] = row.pages[i - 1]
                row.pages[0] = url[k]
            row.event_count = min(EVENTS, row.event_count + 1)
            for i in range(row.event_count - 1, 0, -1):
                row.events[i] = row.events[i - 1]
            row.events[0] = event[k]
            entry[k], start[k] = row.entry, row.named_ms
            if row.named != 0:
                flags |= NAMED
            if row.position > 1:
                flags |= FURTHER
        facts[k, 5] = now_ms
        became[k] = flags
