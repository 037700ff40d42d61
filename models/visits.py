"""What a model sees of a visit, and what identifies a URL.

A `VisitContext` is filled by the sessioniser and read by every model. It promises that nothing in it is later than the
visit itself, so that scores are honest (test, then train). It imports nothing heavy: pure modules use it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import xxhash

RECENT = 10  # earlier visits of the session that a context carries; URL2vec gains from five to ten
ACTIONS = 15  # buckets of event names: sites have a handful of kinds of event, and more only share a bucket
WINDOWS_MS = tuple(days * 86_400_000 for days in (7, 91, 365))  # a week, three months, a year: habits of each
# What `VisitContext.habits` holds: visits, then sessions that have ended, in each window; seconds since the visitor's first
# visit; seconds of silence between the last session and this one, -1 where there was none; events of each kind (action - 1)
# in the middle window. A count fades by e within its window.
HABITS = 2 * len(WINDOWS_MS) + 2 + ACTIONS


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
