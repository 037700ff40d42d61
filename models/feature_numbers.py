"""The numbers of a row that every visit has, in logarithms where they span more than a few, and their names.

Kernels, not numpy: an element's bits then do not depend on where it stands in a batch. Whatever is not finite becomes 0.
"""

import math

from models.compiled import kernel
from models.counts import F32, F64
from models.visits import ACTIONS, HABITS, WINDOWS_MS

_WINDOWS = tuple(f"{window_ms // 86_400_000} days" for window_ms in WINDOWS_MS)
NUMBER_NAMES = (
    "position (log)", "first of the session", "same URL as before", "seconds since previous (log)", "no previous",
    "seconds since start of session (log)", "visits before (log)", "sessions before (log)", "hour, sine", "hour, cosine",
    "weekend", "day of week, sine", "day of week, cosine", "seconds since first visit (log)",
    "seconds between last session and this (log)", "depth of path (log)", "query parameters (log)", "length of URL (log)",
    *(f"{what} in {window} (log)" for what in ("visits", "sessions") for window in _WINDOWS),
    *(f"events of kind {k} in {_WINDOWS[1]} (log)" for k in range(1, ACTIONS + 1)),
    *(f"events of kind {k} in this session (log)" for k in range(1, ACTIONS + 1)),
)  # fmt: skip
NUMBERS_FIXED = len(NUMBER_NAMES)
SHAPE = 3  # depth of path, query parameters, length
_KINDS_AT = HABITS - ACTIONS  # in `VisitContext.habits`
_HABITS_AT = NUMBERS_FIXED - 2 * ACTIONS - 2 * len(WINDOWS_MS)
_TURN = 2 * math.pi
_DAY = 86_400_000.0


@kernel
def _log(x: float) -> float:
    """log(1 + x) of a count or a time; 0 of what is negative or not finite."""
    return math.log1p(min(x, 1e300)) if x > 0 else 0.0


@kernel
def fill_numbers(facts: F64, habits: F64, actions: F64, shape: F64, out: F32) -> None:
    """out (n, ≥ NUMBERS_FIXED).

    facts (n, 7): position, ms since previous (-1: none), ms since start, visits before, sessions before, epoch ms, repeat.
    habits (n, HABITS), actions (n, ACTIONS): as in a VisitContext. shape (n, SHAPE): of the URL.
    """
    windows = _KINDS_AT - 2
    for i in range(len(facts)):
        position, previous, start, visits, sessions, now, repeat = facts[i]
        out[i, 0] = _log(position)
        out[i, 1] = position == 1
        out[i, 2] = repeat
        out[i, 3] = _log(previous / 1000)
        out[i, 4] = previous < 0
        out[i, 5] = _log(start / 1000)
        out[i, 6] = _log(visits)
        out[i, 7] = _log(sessions)
        hour, day = now / _DAY % 1.0, now / _DAY // 1.0 % 7.0
        week = (day + hour) / 7.0
        out[i, 8] = math.sin(_TURN * hour)
        out[i, 9] = math.cos(_TURN * hour)
        out[i, 10] = day == 2.0 or day == 3.0  # the epoch began on a Thursday: a weekend in UTC
        out[i, 11] = math.sin(_TURN * week)
        out[i, 12] = math.cos(_TURN * week)
        out[i, 13] = _log(habits[i, windows])
        out[i, 14] = _log(habits[i, windows + 1])
        for k in range(SHAPE):
            out[i, 15 + k] = _log(shape[i, k])
        for k in range(windows):
            out[i, _HABITS_AT + k] = _log(habits[i, k])
        for k in range(ACTIONS):
            out[i, _HABITS_AT + windows + k] = _log(habits[i, _KINDS_AT + k])
            out[i, _HABITS_AT + windows + ACTIONS + k] = _log(actions[i, k])
