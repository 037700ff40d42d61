"""What a model sees of a visit, and what identifies a URL.

A `VisitContext` is one visit, a `VisitBatch` the columns of many; the sessioniser fills them and every model reads them.
They promise that nothing in them is later than the visit itself, so that scores are honest (test, then train). They import
nothing heavy: pure modules use them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from itertools import chain
from typing import Any, overload

import numpy as np
import xxhash
from numpy.typing import NDArray

RECENT = 10  # earlier visits of the session that a context carries; URL2vec gains from five to ten
ACTIONS = 15  # buckets of event names: sites have a handful of kinds of event, and more only share a bucket
WINDOWS_MS = tuple(days * 86_400_000 for days in (7, 91, 365))  # a week, three months, a year: habits of each
# What `VisitContext.habits` holds: visits, then sessions that have ended, in each window; seconds since the visitor's first
# visit; seconds of silence between the last session and this one, -1 where there was none; events of each kind (action - 1)
# in the middle window. A count fades by e within its window.
HABITS = 2 * len(WINDOWS_MS) + 2 + ACTIONS
NO_HABITS = (0.0,) * (HABITS - 1 - ACTIONS) + (-1.0,) + (0.0,) * ACTIONS  # of a visitor never seen before
NO_ACTIONS = (0,) * ACTIONS


def url_identity(url: str) -> int:
    """THE identity of a URL everywhere: xxh3 of its UTF-8, unsigned 64 bit. Lone surrogates are no error."""
    return int(xxhash.xxh3_64_intdigest(url.encode("utf-8", "surrogatepass")))


@lru_cache(4096)
def action_of(event_name: str) -> int:
    """The bucket of a kind of event, from 1 to ACTIONS."""
    return int(xxhash.xxh3_64_intdigest(event_name.encode("utf-8", "surrogatepass")) % ACTIONS) + 1


@dataclass(frozen=True, slots=True)
class VisitContext:
    """One visit as a model sees it at the moment it is scored: nothing in it is later than the visit."""

    url: str
    url_id: int
    recent: tuple[int, ...]  # url_ids of earlier visits, newest first, immediate repeats collapsed, at most RECENT
    entry: int  # url_id of the session's first visit
    position: int  # 1 for the first visit of the session
    timestamp_ms: int
    since_previous_ms: int  # -1 where there is none in the session
    since_start_ms: int
    visits_before: int  # of this visitor, before this one
    sessions_before: int
    event_name: str
    referrer: str | None
    user_agent: str | None
    title: str | None
    properties: Mapping[str, str | int | float | bool]
    repeat: bool  # the same URL as the visit just before it, or a duplicate; then `recent` does not start with it
    teaches: bool = True  # False where URL2vec is to learn nothing from it, whatever its URL
    session: int = 0  # identity of the session, 64 bit
    habits: tuple[float, ...] = ()  # HABITS numbers, of what this visitor did before this visit; () where not known
    actions: tuple[int, ...] = ()  # ACTIONS counts up to 15, of this session before this visit; () where not known


# Columns of `VisitBatch.facts`.
POSITION, SINCE_PREVIOUS, SINCE_START, VISITS_BEFORE, SESSIONS_BEFORE, TIMESTAMP, REPEAT = range(7)
FACTS = 7


@dataclass(frozen=True, slots=True, eq=False)
class VisitBatch(Sequence[VisitContext]):
    """n visits as columns, in the meaning of `VisitContext`; as a sequence it gives those."""

    url: Sequence[str]
    url_id: NDArray[np.uint64]  # (n,)
    recent: NDArray[np.uint64]  # (n, RECENT), 0 where there is none
    entry: NDArray[np.uint64]  # (n,)
    facts: NDArray[np.int64]  # (n, FACTS), columns as above
    event_name: Sequence[str]
    referrer: Sequence[str | None]
    user_agent: Sequence[str | None]
    title: Sequence[str | None]
    properties: Sequence[Mapping[str, str | int | float | bool]]
    teaches: NDArray[np.bool_]  # (n,)
    session: NDArray[np.uint64]  # (n,)
    habits: NDArray[np.float64]  # (n, HABITS)
    actions: NDArray[np.float64]  # (n, ACTIONS)

    @staticmethod
    def of(visits: Iterable[VisitContext]) -> VisitBatch:
        """The columns of some visits; themselves where they are columns already."""
        if isinstance(visits, VisitBatch):
            return visits
        rows = list(visits)
        recent = np.zeros((len(rows), RECENT), np.uint64)
        for k, visit in enumerate(rows):
            recent[k, : len(visit.recent[:RECENT])] = visit.recent[:RECENT]
        facts = [
            (
                v.position, v.since_previous_ms, v.since_start_ms, v.visits_before, v.sessions_before, v.timestamp_ms, v.repeat
            )
            for v in rows
        ]  # fmt: skip
        return VisitBatch(
            [v.url for v in rows],
            np.array([v.url_id for v in rows], np.uint64),
            recent,
            np.array([v.entry for v in rows], np.uint64),
            np.array(facts, np.int64).reshape(len(rows), FACTS),
            [v.event_name for v in rows],
            [v.referrer for v in rows],
            [v.user_agent for v in rows],
            [v.title for v in rows],
            [v.properties for v in rows],
            np.array([v.teaches for v in rows], np.bool_),
            np.array([v.session for v in rows], np.uint64),
            _matrix([v.habits if len(v.habits) == HABITS else NO_HABITS for v in rows], HABITS),
            _matrix([v.actions if len(v.actions) == ACTIONS else NO_ACTIONS for v in rows], ACTIONS),
        )

    @staticmethod
    def joined(parts: Sequence[VisitBatch]) -> VisitBatch:
        """One after the other."""
        if len(parts) == 1:
            return parts[0]
        columns: dict[str, Any] = {}
        for field in fields(VisitBatch):
            column = [getattr(part, field.name) for part in parts]
            is_array = isinstance(column[0], np.ndarray)
            columns[field.name] = np.concatenate(column) if is_array else list(chain.from_iterable(column))
        return VisitBatch(**columns)

    @property
    def repeat(self) -> NDArray[np.bool_]:
        """(n,) as in a context."""
        return self.facts[:, REPEAT].astype(np.bool_)

    def __len__(self) -> int:
        return len(self.url)

    @overload
    def __getitem__(self, at: int) -> VisitContext: ...
    @overload
    def __getitem__(self, at: slice) -> VisitBatch: ...
    def __getitem__(self, at: int | slice) -> VisitContext | VisitBatch:
        if isinstance(at, slice):
            return VisitBatch(*(getattr(self, field.name)[at] for field in fields(self)))
        position, previous, start, visits, sessions, now_ms, repeat = self.facts[at].tolist()
        return VisitContext(
            url=self.url[at], url_id=int(self.url_id[at]), recent=tuple(i for i in self.recent[at].tolist() if i),
            entry=int(self.entry[at]), position=position, timestamp_ms=now_ms, since_previous_ms=previous,
            since_start_ms=start, visits_before=visits, sessions_before=sessions, event_name=self.event_name[at],
            referrer=self.referrer[at], user_agent=self.user_agent[at], title=self.title[at],
            properties=self.properties[at], repeat=bool(repeat), teaches=bool(self.teaches[at]), session=int(self.session[at]),
            habits=tuple(self.habits[at].tolist()), actions=tuple(int(n) for n in self.actions[at].tolist()),
        )  # fmt: skip

    def take(self, places: NDArray[np.intp]) -> VisitBatch:
        """Those at `places`, in that order."""
        chosen, columns = places.tolist(), dict[str, Any]()
        if len(chosen) == len(self) and chosen == list(range(len(self))):
            return self
        for field in fields(self):
            column = getattr(self, field.name)
            columns[field.name] = column[places] if isinstance(column, np.ndarray) else [column[k] for k in chosen]
        return VisitBatch(**columns)


def _matrix(rows: Sequence[Sequence[float]], columns: int) -> NDArray[np.float64]:
    return np.array(rows, np.float64).reshape(len(rows), columns)
