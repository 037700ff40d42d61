"""Sessions without visitors or times: a table of page sequences, such as the bundled Wikispeedia games.

Tab-separated, first line `session finished target pages`; `pages` are article names in order, separated by `;`.

VISITORS AND TIMES ARE SYNTHETIC. The table has none, so they are made here, by one rule for every session whatever
became of it: one visitor a session; a session starts every 3.75 s of event time on average, in the table's order, from
the start of 2025 on; its pages are 5 to 35 s apart, drawn from a hash of session and position; its one outcome
`finished`, true or false, comes 10 s after its last page. Neither when nor whether an outcome comes tells what it is.
Each visit says `synthetic: true` in its properties, and names the game's target.

At this pace about 500 sessions are within the 30 minutes in which another visit would still belong to them, visits of
some twenty sessions interleave, and 999 of 1,000 outcomes come within 30 minutes of the session's first visit.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

import xxhash

from schemas.decoding import BadEvent, Decoder
from schemas.logs_lines import Line, LogItem, LogRecord, Unreadable, admitted
from schemas.records import VisitOutcome, WebVisit, epoch_ms

START_MS = epoch_ms(datetime(2025, 1, 1, tzinfo=UTC))
SESSION_EVERY_MS = 3_750
PAGE_GAP_MS = (5_000, 35_000)
OUTCOME_AFTER_MS = 10_000
OUTCOME = "finished"

_COLUMNS = ["session", "finished", "target", "pages"]
_WIKI = "https://en.wikipedia.org/wiki/"

# An event of an open session, waiting for its time: (time, the session's place in the table, place in the session, it).
_Pending = tuple[int, int, int, LogRecord]


def looks_like(line: bytes) -> bool:
    """Whether the line is the table's first."""
    return line.split(b"\t") == [name.encode() for name in _COLUMNS]


def read(lines: Iterable[Line | Unreadable], now_ms: int, limit: int | None = None) -> Iterator[LogItem]:
    """Visits and outcomes by event time. After `limit` visits, outcomes of sessions that have begun still follow."""
    decoder = Decoder()
    open_events: list[_Pending] = []
    left = limit
    begun: set[str] = set()  # visitors with a visit out and their outcome still to come

    def due(before_ms: float) -> Iterator[LogRecord]:
        nonlocal left
        while open_events and open_events[0][0] < before_ms:
            record = heapq.heappop(open_events)[-1]
            if record.kind == "visit":
                if left == 0:
                    continue
                left = None if left is None else left - 1
                begun.add(record.visitor_id)
            elif record.visitor_id not in begun:
                continue
            else:
                begun.discard(record.visitor_id)
            yield record

    place = 0
    for line in lines:
        if isinstance(line, Unreadable):
            yield line
            continue
        if looks_like(line.text):
            continue
        starts_ms = START_MS + place * SESSION_EVERY_MS
        # A session starts within its own interval, so that no later line can begin before this one.
        yield from due(starts_ms)
        if left == 0:
            break
        try:
            for event in _session(line, place, starts_ms, decoder, now_ms):
                heapq.heappush(open_events, event)
        except BadEvent as error:
            yield Unreadable(line.number, str(error))
        else:
            place += 1
    yield from due(float("inf"))


def _session(line: Line, place: int, starts_ms: int, decoder: Decoder, now_ms: int) -> list[_Pending]:
    columns = line.text.decode("utf-8", "replace").split("\t")
    if len(columns) != len(_COLUMNS):
        raise BadEvent(f"Expected {len(_COLUMNS)} columns separated by tabs, got {len(columns)}")
    session, finished, target, listed = columns
    if finished not in {"0", "1"}:
        raise BadEvent(f"Expected 0 or 1 as `finished`, got {finished[:40]!r}")
    pages = [page for page in listed.split(";") if page]
    if not (session and target and pages):
        raise BadEvent("Expected a session, a target and at least one page")

    visitor_id = f"session-{session}"
    time_ms = starts_ms + _drawn(session, 0, 0, SESSION_EVERY_MS)
    events: list[_Pending] = []
    for position, page in enumerate(pages, start=1):
        if position > 1:
            time_ms += _drawn(session, position, *PAGE_GAP_MS)
        visit = WebVisit(
            event_id=f"{visitor_id}-{position}",
            timestamp_ms=time_ms,
            visitor_id=visitor_id,
            url=_WIKI + page,
            properties={"target": _WIKI + target, "synthetic": True},
        )
        events.append((time_ms, place, position, admitted(visit, decoder, now_ms)))
    time_ms += OUTCOME_AFTER_MS
    outcome = VisitOutcome(visitor_id=visitor_id, outcome=OUTCOME, timestamp_ms=time_ms, value=finished == "1")
    events.append((time_ms, place, len(pages) + 1, admitted(outcome, decoder, now_ms)))
    return events


def _drawn(session: str, position: int, least: int, below: int) -> int:
    """A number that looks random and is always the same for this place."""
    return least + xxhash.xxh3_64_intdigest(f"{session}/{position}".encode()) % (below - least)
