"""Latency and freshness over the last minute, small enough to travel in every heartbeat and to be added across workers."""

import math
from collections.abc import Iterable, Sequence

GROWTH = 1.1  # each bucket is a tenth wider than the one before: a quantile is right to 5 %
BUCKETS = 160  # up to 1.1^160 ms, 50 minutes
WINDOW_S = 30.0
_LOG_GROWTH = math.log(GROWTH)


class RecentDurations:
    """Histogram of durations over the last 30 to 60 seconds; time is an argument."""

    def __init__(self) -> None:
        self._now = [0] * BUCKETS
        self._before = [0] * BUCKETS
        self._turned_at = 0.0

    def add(self, durations_ms: Iterable[float], now: float) -> None:
        """Count durations in milliseconds. `now`: monotonic seconds. Negative ones (clocks differ) count as 0."""
        self._turn(now)
        for duration_ms in durations_ms:
            bucket = int(math.log(duration_ms) / _LOG_GROWTH) if duration_ms > 1 else 0
            self._now[min(bucket, BUCKETS - 1)] += 1

    def counts(self, now: float) -> list[int]:
        """Counts a bucket, over the last one to two windows."""
        self._turn(now)
        return [a + b for a, b in zip(self._now, self._before, strict=True)]

    def _turn(self, now: float) -> None:
        if now - self._turned_at < WINDOW_S:
            return
        self._before = self._now if now - self._turned_at < 2 * WINDOW_S else [0] * BUCKETS
        self._now = [0] * BUCKETS
        self._turned_at = now


def quantile_ms(counts: Sequence[int], share: float) -> float | None:
    """The duration that `share` of the counted ones did not exceed, None when there are none."""
    total = sum(counts)
    if not total:
        return None
    below = 0
    for bucket, count in enumerate(counts):
        below += count
        if below >= share * total:
            return round(float(GROWTH ** (bucket + 0.5)), 2)
    return None
