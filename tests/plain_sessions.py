"""The rules of `streams.sessions` written plainly, one visit and one object at a time: what the compiled ones are held to.

It also writes what version 0.2 stored of a visitor (tag 2), and reads that and tag 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import pack, unpack

import msgspec
from xxhash import xxh3_64_digest, xxh3_64_intdigest

from models.visits import RECENT, VisitContext, action_of, url_identity
from schemas.records import WebVisit
from streams.traffic import teaches
from streams.urls import Canonicaliser, UrlRules
from tests import plain_habits as habits

REMEMBERED_EVENTS = 16  # a producer's retry comes within a few visits of the original; more would cost 4 bytes each
_HASH_BYTES = 4  # 32 bits, see above
_FIRST_HASH_BYTES = 6  # of the layout with tag 1


class Visitor(msgspec.Struct, frozen=True):
    """All that is kept of a visitor between two visits. Times are event time in epoch milliseconds."""

    session_id: str | int  # the producer's; or the start that names it, `<visitor_id>@<start>`
    started_ms: int  # the earliest visit of the current session
    last_ms: int  # its latest
    position: int  # visits of the current session
    entry: int  # url_id of the first visit read of the current session
    recent: tuple[int, ...]  # url_ids of the current session, newest first, immediate repeats collapsed, ≤ RECENT + 1
    seen: bytes  # the last event ids, 32 bits of hash each, newest first
    visits: int  # ever, this one included
    sessions: int  # ever, the current one included
    habits: bytes = b""  # what `streams.habits` keeps, as of `last_ms`; nothing of a visitor kept before there were any

    def encode(self) -> bytes:
        """The record as the store keeps it."""
        pages = pack(f"<{1 + len(self.recent)}Q", self.entry, *self.recent)
        return _ENCODER.encode(
            _Stored(
                self.session_id, self.started_ms, self.last_ms - self.started_ms, self.position, pages, self.seen,
                self.visits, self.sessions, self.habits,
            )
        )  # fmt: skip

    @staticmethod
    def decode(blob: bytes) -> Visitor:
        """Reads what `encode` wrote, now or with tag 1; raises ValueError, with a sentence, on anything else."""
        try:
            stored = _DECODER.decode(blob)
            return stored.visitor() if isinstance(stored, _Stored) else _from_first(stored)
        except (msgspec.DecodeError, ValueError) as error:
            raise ValueError(
                f"stored visitor of {len(blob)} bytes is not in a layout this version reads: {error}"
            ) from error


class _First(msgspec.Struct, frozen=True, array_like=True, tag=1, forbid_unknown_fields=True):
    """How a visitor was stored before there were habits."""

    session_id: str
    started_ms: int
    last_ms: int
    position: int
    entry: int
    recent: tuple[int, ...]
    seen: bytes  # 48 bits of hash each
    visits: int
    sessions: int


class _Stored(msgspec.Struct, frozen=True, array_like=True, tag=2, forbid_unknown_fields=True):
    """A visitor as a msgpack array. The first element, the tag, is the version of the layout: raise it when a field
    changes meaning. Fields with a default may be added at the end."""

    session_id: str | int
    started_ms: int
    lasted_ms: int
    position: int
    pages: bytes  # u64: entry, then recent
    seen: bytes
    visits: int
    sessions: int
    habits: bytes = b""

    def visitor(self) -> Visitor:
        if len(self.pages) % 8 or not 8 <= len(self.pages) <= 8 * (RECENT + 2):
            raise ValueError(f"{len(self.pages)} bytes of pages")
        if not habits.are_habits(self.habits):
            raise ValueError(f"{len(self.habits)} bytes of habits")
        entry, *recent = unpack(f"<{len(self.pages) // 8}Q", self.pages)
        return Visitor(
            self.session_id, self.started_ms, self.started_ms + self.lasted_ms, self.position, entry, tuple(recent), self.seen,
            self.visits, self.sessions, self.habits,
        )  # fmt: skip


def _from_first(old: _First) -> Visitor:
    seen = b"".join(old.seen[k : k + _HASH_BYTES] for k in range(0, len(old.seen), _FIRST_HASH_BYTES))
    return Visitor(
        old.session_id, old.started_ms, old.last_ms, old.position, old.entry, old.recent, seen, old.visits, old.sessions
    )


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(_Stored | _First)


@dataclass(frozen=True, slots=True)
class SessionStep:
    """What became of one visit."""

    session_id: str
    flags: tuple[str, ...]  # of `new_visitor`, `late`, `duplicate`, in this order
    continues: bool  # another visit of the same session was read before this one
    duplicate: bool  # nothing may be learned from it, or joined to it: its original was there before


class Sessioniser:
    """Applies the rules above; holds nothing of any visitor, so that one serves every partition."""

    def __init__(self, gap_ms: int, urls: UrlRules | None = None) -> None:
        """`gap_ms`: the silence, in event time, after which a visitor's next visit starts a session; `urls`: which URLs are
        one page, and which visits teach. Raises ValueError unless the gap is positive."""
        if gap_ms <= 0:
            raise ValueError(f"the session gap must be positive, got {gap_ms} ms")
        self.gap_ms = gap_ms
        self._rules = urls or UrlRules()
        self._canonical = Canonicaliser(self._rules).canonical

    def visit(
        self, visitor: Visitor | None, event: WebVisit, watermark_ms: int
    ) -> tuple[Visitor, VisitContext, SessionStep]:
        """Takes one visit in: the visitor afterwards, the context to score, and what became of it.

        `visitor` is what was kept of this visitor (None when nothing was); the caller has made sure that it is
        the one of `event.visitor_id`.
        """
        now_ms = event.timestamp_ms
        late = now_ms < watermark_ms
        url = self._canonical(event.url)
        url_id = url_identity(url)
        teaching = teaches(self._rules, url, event.user_agent)
        event_hash = xxh3_64_digest(event.event_id.encode())[:_HASH_BYTES]

        if visitor is not None and _remembers(visitor.seen, event_hash):
            return visitor, *self._duplicate(visitor, event, url, url_id, late)

        continues = visitor is not None and self._in_session(visitor, event)
        kept, last_ms = (visitor.habits, visitor.last_ms) if visitor is not None else (b"", now_ms)
        usual, actions, kept = habits.visit(kept, last_ms, now_ms, not continues, action_of(event.event_name))
        if visitor is not None and continues:
            earlier = visitor.recent
            repeat = teaching and earlier[:1] == (url_id,)
            recent = (url_id, *earlier[:RECENT]) if teaching and not repeat else earlier
            after = Visitor(
                session_id=visitor.session_id,
                started_ms=min(visitor.started_ms, now_ms),
                last_ms=max(visitor.last_ms, now_ms),
                position=visitor.position + 1,
                entry=visitor.entry,
                recent=recent,
                seen=_remember(visitor.seen, event_hash),
                visits=visitor.visits + 1,
                sessions=visitor.sessions,
                habits=kept,
            )
            since_previous_ms = max(0, now_ms - visitor.last_ms)
            sessions_before = visitor.sessions - 1
        else:
            earlier = ()
            repeat = False
            after = Visitor(
                session_id=event.session_id or now_ms,
                started_ms=now_ms,
                last_ms=now_ms,
                position=1,
                entry=url_id,
                recent=(url_id,) if teaching else (),
                seen=_remember(visitor.seen if visitor else b"", event_hash),
                visits=(visitor.visits if visitor else 0) + 1,
                sessions=(visitor.sessions if visitor else 0) + 1,
                habits=kept,
            )
            since_previous_ms = -1
            sessions_before = after.sessions - 1
        session_id = _name(event.visitor_id, after.session_id)

        context = _context(
            event,
            url=url,
            url_id=url_id,
            recent=(earlier[1:] if repeat else earlier)[:RECENT],
            entry=after.entry,
            position=after.position,
            since_previous_ms=since_previous_ms,
            since_start_ms=now_ms - after.started_ms,
            visits_before=after.visits - 1,
            sessions_before=sessions_before,
            repeat=repeat,
            teaches=teaching,
            session_id=session_id,
            usual=usual,
            actions=actions,
        )
        flags = (("new_visitor",) if visitor is None else ()) + (("late",) if late else ())
        return after, context, SessionStep(session_id, flags, continues=after.position > 1, duplicate=False)

    def _in_session(self, visitor: Visitor, event: WebVisit) -> bool:
        if event.session_id:
            return event.session_id == _name(event.visitor_id, visitor.session_id)
        return visitor.started_ms - self.gap_ms <= event.timestamp_ms <= visitor.last_ms + self.gap_ms

    def _duplicate(
        self, visitor: Visitor, event: WebVisit, url: str, url_id: int, late: bool
    ) -> tuple[VisitContext, SessionStep]:
        """As the original looked, as far as what is kept allows; the original may lie some visits, or a session,
        back."""
        now_ms = event.timestamp_ms
        same = self._in_session(visitor, event)
        action = action_of(event.event_name)
        usual, actions, _ = habits.visit(visitor.habits, visitor.last_ms, now_ms, not same, action)
        if same:
            recent = visitor.recent
            position = visitor.position
            session_id, entry = _name(event.visitor_id, visitor.session_id), visitor.entry
            since_start_ms = max(0, now_ms - visitor.started_ms)
            sessions_before = visitor.sessions - 1
        else:
            recent, position, since_start_ms = (), 1, 0
            session_id, entry = event.session_id or f"{event.visitor_id}@{now_ms}", url_id
            sessions_before = max(0, visitor.sessions - 2)
        context = _context(
            event,
            url=url,
            url_id=url_id,
            recent=(recent[1:] if recent and recent[0] == url_id else recent)[:RECENT],
            entry=entry,
            position=position,
            since_previous_ms=-1 if position == 1 else 0,
            since_start_ms=since_start_ms,
            visits_before=visitor.visits - 1,
            sessions_before=sessions_before,
            repeat=True,
            teaches=False,
            session_id=session_id,
            usual=usual,
            actions=actions,
        )
        flags = (("late",) if late else ()) + ("duplicate",)
        return context, SessionStep(session_id, flags, continues=position > 1, duplicate=True)


def _context(
    event: WebVisit,
    *,
    url: str,
    url_id: int,
    recent: tuple[int, ...],
    entry: int,
    position: int,
    since_previous_ms: int,
    since_start_ms: int,
    visits_before: int,
    sessions_before: int,
    repeat: bool,
    teaches: bool,
    session_id: str,
    usual: tuple[float, ...],
    actions: tuple[int, ...],
) -> VisitContext:
    return VisitContext(
        url=url,
        url_id=url_id,
        recent=recent,
        entry=entry,
        position=position,
        timestamp_ms=event.timestamp_ms,
        since_previous_ms=since_previous_ms,
        since_start_ms=since_start_ms,
        visits_before=visits_before,
        sessions_before=sessions_before,
        event_name=event.event_name,
        referrer=event.referrer,
        user_agent=event.user_agent,
        title=event.title,
        properties=event.properties,
        repeat=repeat,
        teaches=teaches,
        session=xxh3_64_intdigest(f"{event.visitor_id}\0{session_id}".encode()),
        habits=usual,
        actions=actions,
    )


def _name(visitor_id: str, session_id: str | int) -> str:
    """A session that the clock started is named after its start."""
    return session_id if isinstance(session_id, str) else f"{visitor_id}@{session_id}"


def _remembers(seen: bytes, event_hash: bytes) -> bool:
    """Whether the hash is one of those in `seen`; a match across the border of two of them is none."""
    at = seen.find(event_hash)
    while at > 0 and at % _HASH_BYTES:
        at = seen.find(event_hash, at + 1)
    return at >= 0


def _remember(seen: bytes, event_hash: bytes) -> bytes:
    return event_hash + seen[: (REMEMBERED_EVENTS - 1) * _HASH_BYTES]
