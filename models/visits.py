"""What a model sees of a visit, and what identifies a URL.

A `VisitContext` is filled by the sessioniser and read by every model. It promises that nothing in it is later than the
visit itself, so that scores are honest (test, then train). It imports nothing heavy: pure modules use it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import xxhash

RECENT = 10  # earlier visits of the session that a context carries; URL2vec gains from five to ten


def url_identity(url: str) -> int:
    """THE identity of a URL everywhere: xxh3 of its UTF-8, unsigned 64 bit. Lone surrogates are no error."""
    return int(xxhash.xxh3_64_intdigest(url.encode("utf-8", "surrogatepass")))


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
