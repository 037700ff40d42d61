"""Outcomes wait until the visits have come to their time: the two topics of a partition are read in event time.

Live, an outcome is read after the visits that it is about. In a backlog it need not be: outcomes are few, a fetch brings the
purchases of a whole day before the first of that day's visits is scored. Taken in at once, they would tell of a visit what
became of it before the visits after it in the same session are scored, and positive answers would teach hours of event time
before negative ones. So what is read ahead is held here, as if it had not been read: its offset does not move.

The rules:

1. *An outcome goes on when the visits have been read to its time*, or when visits were confirmed read to their end, as of a
   moment after the outcome had come: whatever visits were written before it have then been read.
2. *Order is kept*, and an outcome is believed to be as old as the oldest that is known to stand behind it: one whose clock
   runs ahead holds nobody up for longer than until the next one comes.
3. *Enough is held to know that*: `LOOKAHEAD` records; then no more are fetched, until there is room.

Pure: the clock is an argument.
"""

from collections import deque
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

LOOKAHEAD = 1_024  # records held of a partition, beyond which no more are fetched
NO_TIME_MS = 2**63 - 1  # of a record that cannot be read: it goes with its neighbours


class Batch(Protocol):
    """What is held: a dataclass with records in order."""

    @property
    def records(self) -> Any: ...


B = TypeVar("B", bound=Batch)


@dataclass
class _Part(Generic[B]):
    event: Any  # to be acknowledged with the last of its records
    batch: B
    times: NDArray[np.int64]  # rule 2: never falling
    held_since: float


class Lockstep(Generic[B]):
    """The outcomes of one partition that were read ahead of its visits."""

    def __init__(self) -> None:
        self._parts: deque[_Part[B]] = deque()
        self.records = 0

    def hold(self, event: Any, batch: B, times: NDArray[np.int64], now_s: float) -> None:
        """Take a batch in, with the event time of each record (`NO_TIME_MS` where there is none)."""
        believed = np.minimum.accumulate(times[::-1])[::-1]
        known = believed[believed < NO_TIME_MS]
        if len(known):
            for part in reversed(self._parts):
                if part.times[-1] <= known[0]:
                    break
                np.minimum(part.times, known[0], out=part.times)
        last = known[-1] if len(known) else self._parts[-1].times[-1] if self._parts else -NO_TIME_MS
        self._parts.append(_Part(event, batch, np.minimum(believed, last), now_s))
        self.records += len(times)

    @property
    def next_ms(self) -> int | None:
        """Nothing older than this is held, lateness aside; None where nothing is held."""
        return int(self._parts[0].times[0]) if self._parts else None

    def is_ripe(self, visits_ms: int, visits_end: float) -> bool:
        """Whether `take` would give anything."""
        return bool(self._parts) and self._ready(self._parts[0], visits_ms, visits_end) > 0

    def take(self, visits_ms: int, visits_end: float) -> list[tuple[Any, B]]:
        """What may go on, in order; with the event where all of its batch has. Visits have been read to `visits_ms`, and their
        end was last confirmed as of `visits_end`."""
        taken: list[tuple[Any, B]] = []
        while self._parts:
            part = self._parts[0]
            count = self._ready(part, visits_ms, visits_end)
            if not count:
                break
            records = part.batch.records
            whole = count == len(records)
            taken.append((part.event if whole else None, replace(part.batch, records=records[:count])))  # type: ignore[type-var]
            self.records -= count
            if not whole:
                part.batch, part.times = replace(part.batch, records=records[count:]), part.times[count:]  # type: ignore[type-var]
                break
            self._parts.popleft()
        return taken

    @staticmethod
    def _ready(part: _Part[B], visits_ms: int, visits_end: float) -> int:
        if part.held_since <= visits_end:
            return len(part.times)
        return int(np.searchsorted(part.times, visits_ms, side="right"))
