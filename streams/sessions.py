"""Which session a visit belongs to, and what a model may know of the visitor when it scores the visit.

The rules:

1. *A producer's `session_id` decides alone.* A visit that carries one belongs to that session, whatever the clock says:
   another id than the current one starts a session, the same id continues it after any silence.
2. *Otherwise event time decides.* A visit without an id belongs to the visitor's current session when it falls within
   `gap_ms` of it: not later than its last visit + gap, not earlier than its first visit - gap, both inclusive. Outside
   that, in either direction, a session starts, named `<visitor_id>@<timestamp_ms of the visit that started it>`.
3. *Reading order is the order of a session.* A visit that arrives out of order, but inside the gap, takes the next
   position; the session's last moment never moves back (its first moment may), and no time handed to a model is ever
   negative. Within a partition, reading order is the order in which the producer wrote.
4. *A visitor is in one session at a time.* The last session to start is the current one. A visit dated a day ahead
   therefore costs a split and no more: the next honest visit starts a session again.
5. *A duplicate changes nothing.* A visit whose event_id is among the visitor's last `REMEMBERED_EVENTS` leaves the
   visitor as it was. It is still scored (a consumer gets an answer for each record), with a context that looks like
   the original's and with `repeat` set, and it is flagged.
6. *Late is not lost.* A visit behind the watermark is flagged `late`, and is otherwise a visit like any other.

7. *Some visits teach nothing* about URLs (static files, bots, by the rules in `streams.urls`): they belong to their session
   like any other, but the visits after them do not see their URL.

8. *What is known was known before.* Habits and actions (`streams.habits`) in a context are as they stood before the visit.

What is kept of a visitor is bounded, whatever the visitor does (`streams.visitors`). Event ids are remembered by 32 bits of
their hash: two different ids among 16 are taken for one about once in 270 million visits, and then one visit is answered but
not learned from.

Pure: no clock, no I/O. The rules are carried out by `streams.session_steps`, over the rows of a `VisitorTable`; here is what
surrounds them, and a way back: `Sessionised.undo`. Two ugly corners, known and accepted: two devices that alternate explicit
session ids start a session at each switch, and a late visit that falls between two past sessions starts one of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from models.visits import ACTIONS, FACTS, HABITS, RECENT, VisitBatch, VisitContext, action_of, url_identity
from schemas.records import WebVisit
from streams.session_steps import DUPLICATE, FURTHER, LATE, NAMED, NEW, take_in
from streams.traffic import is_bot, is_static
from streams.urls import Canonicaliser, UrlRules
from streams.visitor_layouts import Visitor
from streams.visitors import EVENTS, Rows, Slots, VisitorTable, name_hash

REMEMBERED_EVENTS = EVENTS
_PAGES = 65_536  # URLs as they came of which is remembered what page they are
_LONGEST = 512  # characters of one that is


@dataclass(frozen=True, slots=True)
class SessionStep:
    """What became of one visit."""

    session_id: str
    flags: tuple[str, ...]  # of `new_visitor`, `late`, `duplicate`, in this order
    continues: bool  # another visit of the same session was read before this one
    duplicate: bool  # nothing may be learned from it, or joined to it: its original was there before


# The flags of an answer, by what became of the visit.
FLAGS: tuple[tuple[str, ...], ...] = tuple(
    (("new_visitor",) if bits & NEW else ())
    + (("late",) if bits & LATE else ())
    + (("duplicate",) if bits & DUPLICATE else ())
    for bits in range(32)
)


@dataclass(slots=True)
class Sessionised:
    """n visits of one partition that were taken in."""

    contexts: VisitBatch
    session_ids: list[str]
    became: list[int]  # bits of `streams.session_steps`
    undo: Callable[[], None]  # puts the visitors back as they were; only before anything else changes them

    def step(self, at: int) -> SessionStep:
        """What became of one of them."""
        bits = self.became[at]
        return SessionStep(self.session_ids[at], FLAGS[bits], bool(bits & FURTHER), bool(bits & DUPLICATE))


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
        self._pages: dict[str, tuple[str, int, bool]] = {}

    def take_in(self, table: VisitorTable, visits: Sequence[WebVisit], watermark_ms: int) -> Sessionised:
        """Take visits in, in this order. The caller has made sure that all their visitors were loaded."""
        n = len(visits)
        visitors = [visit.visitor_id for visit in visits]
        slots = table.slots(visitors)
        pages = [self._pages.get(visit.url) or self._page(visit.url) for visit in visits]
        url_id = np.array([page[1] for page in pages], np.uint64)
        teaches = np.array([page[2] for page in pages], np.bool_)
        if self._rules.bots == "skip":
            teaches &= [not is_bot(visit.user_agent) for visit in visits]
        named, clock = _names(visits)
        facts, recent = np.empty((n, FACTS), np.int64), np.empty((n, RECENT), np.uint64)
        usual, actions = np.empty((n, HABITS)), np.empty((n, ACTIONS))
        entry, start, became = np.empty(n, np.uint64), np.empty(n, np.int64), np.empty(n, np.uint8)
        undo = _undo(table, slots)
        take_in(
            table.rows, slots, self.gap_ms, np.array([visit.timestamp_ms for visit in visits], np.int64),
            watermark_ms, url_id, teaches,
            np.array([xxh3_64_intdigest(visit.event_id.encode()) >> 32 for visit in visits], np.uint32), named, clock,
            np.array([action_of(visit.event_name) for visit in visits], np.int64), facts, recent, entry, usual, actions, start,
            became,
        )  # fmt: skip
        table.changed(slots[became & DUPLICATE == 0])
        bits = became.tolist()
        session_ids = _session_ids(table, visits, visitors, slots, start, bits)
        session = [
            xxh3_64_intdigest(f"{visitor}\0{name}".encode())
            for visitor, name in zip(visitors, session_ids, strict=True)
        ]
        contexts = VisitBatch(
            [page[0] for page in pages], url_id, recent, entry, facts, [visit.event_name for visit in visits],
            [visit.referrer for visit in visits], [visit.user_agent for visit in visits], [visit.title for visit in visits],
            [visit.properties for visit in visits], teaches & (became & DUPLICATE == 0), np.array(session, np.uint64), usual,
            actions,
        )  # fmt: skip
        return Sessionised(contexts, session_ids, bits, undo)

    def visit(
        self, visitor: Visitor | None, event: WebVisit, watermark_ms: int
    ) -> tuple[Visitor, VisitContext, SessionStep]:
        """One visit, for who has no table: the visitor afterwards, the context, and what became of it."""
        table, name = VisitorTable(), event.visitor_id
        if visitor is None:
            table.load([name], {})
        else:
            table.put(name, visitor)
        done = self.take_in(table, [event], watermark_ms)
        return table.get(name), done.contexts[0], done.step(0)

    def _page(self, raw: str) -> tuple[str, int, bool]:
        url = self._canonical(raw)
        page = url, url_identity(url), not (self._rules.static == "skip" and is_static(url))
        if len(raw) <= _LONGEST:
            if len(self._pages) >= _PAGES:
                self._pages.clear()
            self._pages[raw] = page
        return page


def _names(visits: Sequence[WebVisit]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Hashes of the session ids that producers gave, and the start in those that read like the clock's own."""
    named, clock = np.zeros(len(visits), np.uint64), np.full(len(visits), -1, np.int64)
    for k, visit in enumerate(visits):
        if session_id := visit.session_id:
            named[k] = name_hash(session_id)
            start = session_id.removeprefix(f"{visit.visitor_id}@")
            if (
                start != session_id
                and start.isascii()
                and start.isdigit()
                and len(start) < 19
                and str(int(start)) == start
            ):
                clock[k] = int(start)
    return named, clock


def _session_ids(
    table: VisitorTable, visits: Sequence[WebVisit], visitors: Sequence[str], slots: Slots, start: NDArray[np.int64],
    became: Sequence[int],
) -> list[str]:  # fmt: skip
    """The name of the session of each visit; the table is told of those that producers gave."""
    clock = zip(visitors, start.tolist(), strict=True)
    if not table.named and not any(bits & NAMED for bits in became):
        return [f"{visitor}@{start_ms}" for visitor, start_ms in clock]
    names = []
    for visit, slot, bits, (visitor, start_ms) in zip(visits, slots.tolist(), became, clock, strict=True):
        if not bits & NAMED:
            names.append(f"{visitor}@{start_ms}")
            if not bits & DUPLICATE:
                table.named.pop(slot, None)
        elif bits & DUPLICATE:
            names.append(visit.session_id or table.named[slot])
        else:
            if visit.session_id:
                table.named[slot] = visit.session_id
            names.append(table.named[slot])
    return names


def _undo(table: VisitorTable, slots: Slots) -> Callable[[], None]:
    places = np.unique(slots)
    rows: Rows = table.rows[places].copy()
    named: dict[int, Any] = {slot: table.named.get(slot) for slot in places.tolist()} if table.named else {}
    dirty = table.are_dirty(places)

    def back() -> None:
        table.rows[places] = rows
        for slot in places.tolist():
            table.named.pop(slot, None)
            if name := named.get(slot):
                table.named[slot] = name
        table.changed(places, dirty)

    return back
