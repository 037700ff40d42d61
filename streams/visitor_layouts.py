"""A visitor for people and tests, and the layouts in which earlier versions stored one."""

from __future__ import annotations

from struct import pack, unpack
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from models.visits import RECENT
from streams import habits

if TYPE_CHECKING:
    from streams.visitors import Rows

_HASH_BYTES = 4  # of an event id that are remembered
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
    habits: bytes = b""  # in the layout of `streams.habits`; nothing of a visitor kept before there were any

    def fill(self, row: Rows) -> str:
        """Put all of it into a row (1,), but the producer's session id, which is returned; "" where there is none."""
        row[0] = np.zeros(1, row.dtype)[0]
        seen = [int.from_bytes(self.seen[k : k + _HASH_BYTES], "big") for k in range(0, len(self.seen), _HASH_BYTES)]
        for name, value in (
            ("started_ms", self.started_ms), ("last_ms", self.last_ms), ("entry", self.entry), ("position", self.position),
            ("visits", self.visits), ("sessions", self.sessions), ("page_count", len(self.recent)), ("event_count", len(seen)),
        ):  # fmt: skip
            row[name] = value
        row["pages"][0, : len(self.recent)] = np.array(self.recent, np.uint64)
        row["events"][0, : len(seen)] = np.array(seen, np.uint32)
        row["named_ms"] = self.session_id if isinstance(self.session_id, int) else self.started_ms
        if self.habits:
            first_s, silence, decayed, kinds, weights = habits.read(self.habits)
            row["first_s"], row["silence"], row["kind_count"] = first_s, silence, len(kinds)
            row["decayed"][0] = decayed
            row["kinds"][0, : len(kinds)], row["weights"][0, : len(kinds)] = kinds, weights
        return self.session_id if isinstance(self.session_id, str) else ""

    @staticmethod
    def of(row: Rows, session_id: str) -> Visitor:
        """The visitor of a row (1,)."""
        pages, events, kinds = (int(row[f"{what}_count"][0]) for what in ("page", "event", "kind"))
        kept = b""
        if kinds:
            kept = habits.write(
                int(row["first_s"][0]), int(row["silence"][0]), row["decayed"][0].tolist(), row["kinds"][0, :kinds].tolist(),
                row["weights"][0, :kinds].tolist(),
            )  # fmt: skip
        started_ms, last_ms, position, entry, visits, sessions, named_ms = (
            int(row[name][0])
            for name in ("started_ms", "last_ms", "position", "entry", "visits", "sessions", "named_ms")
        )
        return Visitor(
            session_id or named_ms, started_ms, last_ms, position, entry, tuple(row["pages"][0, :pages].tolist()),
            pack(f">{events}I", *row["events"][0, :events].tolist()), visits, sessions, kept,
        )  # fmt: skip


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


class _Second(msgspec.Struct, frozen=True, array_like=True, tag=2, forbid_unknown_fields=True):
    """How one was stored as long as rows were objects."""

    session_id: str | int
    started_ms: int
    lasted_ms: int
    position: int
    pages: bytes  # u64: entry, then recent
    seen: bytes
    visits: int
    sessions: int
    habits: bytes = b""


_DECODER = msgspec.msgpack.Decoder(_First | _Second)


def earlier_layout(blob: bytes, row: Rows) -> str:
    """Fill a row (1,) from a visitor stored by an earlier version; returns the producer's session id, "" where there is none.

    Raises ValueError where it is none.
    """
    try:
        stored = _DECODER.decode(blob)
        return (_of_second(stored) if isinstance(stored, _Second) else _of_first(stored)).fill(row)
    except (msgspec.DecodeError, OverflowError) as error:
        raise ValueError(str(error)) from error


def _of_first(old: _First) -> Visitor:
    seen = b"".join(old.seen[k : k + _HASH_BYTES] for k in range(0, len(old.seen), _FIRST_HASH_BYTES))
    return Visitor(
        old.session_id, old.started_ms, old.last_ms, old.position, old.entry, old.recent, seen, old.visits, old.sessions
    )


def _of_second(old: _Second) -> Visitor:
    if len(old.pages) % 8 or not 8 <= len(old.pages) <= 8 * (RECENT + 2):
        raise ValueError(f"{len(old.pages)} bytes of pages")
    if not habits.are_habits(old.habits):
        raise ValueError(f"{len(old.habits)} bytes of habits")
    entry, *recent = unpack(f"<{len(old.pages) // 8}Q", old.pages)
    return Visitor(
        old.session_id, old.started_ms, old.started_ms + old.lasted_ms, old.position, entry, tuple(recent), old.seen,
        old.visits, old.sessions, old.habits,
    )  # fmt: skip
