"""What is kept of visitors between two visits: a row each, in one array, and how a row is stored.

A `VisitorTable` holds the visitors of a partition that are in memory: their rows, which of them changed since the last
checkpoint, and when each was last met. A row is 250 bytes here, and in the store what of it is in use, 100 to 250:

    tag 3, u8; pages, events, kinds: how many of each follow, u8; bit 7 of `kinds`: a producer named the session, of `pages`:
    the session's first page is not the oldest of those that follow
    started, i64, epoch ms; then, as integers of variable length (LEB128): how long it lasted, ms; position; visits; sessions;
    where the clock named the session, how much later than `started` its name says, ms
    entry, u64, where bit 7 says so; pages, u64 each, newest first; events, u32 each, newest first
    where kinds is not 0, habits: first visit, u32 seconds; silence before the session, u8; six half floats; then for each kind
    of event its bucket and its count in the session, u8, and a half float (`streams.habits`)
    the producer's session id, UTF-8, to the end

Layouts with the tags 1 and 2, of earlier versions, are read. What cannot be read is a ValueError, with a sentence.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from models.compiled import kernel
from models.visits import RECENT
from streams.habits import KINDS
from streams.visitor_layouts import Visitor, earlier_layout

PAGES = RECENT + 1
EVENTS = (
    16  # ids remembered: a producer's retry comes within a few visits of the original; more would cost 4 bytes each
)
ROW = np.dtype(
    [
        ("started_ms", "<i8"),  # the earliest visit of the current session
        ("last_ms", "<i8"),  # its latest
        ("named_ms", "<i8"),  # the start that names it, where the clock does
        ("named", "<u8"),  # hash of the producer's session id; 0 where the clock names the session
        ("entry", "<u8"),  # url_id of the first visit read of the current session
        ("pages", "<u8", (PAGES,)),  # url_ids of the current session, newest first, immediate repeats collapsed
        ("position", "<u4"),  # visits of the current session
        ("visits", "<u4"),  # ever
        ("sessions", "<u4"),  # ever, the current one included
        ("first_s", "<u4"),  # first visit, seconds since 1970
        ("events", "<u4", (EVENTS,)),  # the last event ids, 32 bits of hash each, newest first
        ("decayed", "<u2", (6,)),  # half floats: visits, then sessions that have ended, in each window
        ("weights", "<u2", (KINDS,)),  # half floats: decayed counts of kinds of event
        ("kinds", "u1", (KINDS,)),  # bucket, upper four bits; how often in this session, lower four
        ("page_count", "u1"),
        ("event_count", "u1"),
        ("kind_count", "u1"),  # 0: habits were never kept
        ("silence", "u1"),  # before this session: 8 * log2(1 + seconds) rounded, at least 1; 0 in the visitor's first
    ]
)
Rows = NDArray[np.void]
Slots = NDArray[np.intp]
U8 = NDArray[np.uint8]
TAG = 3
_LONGEST = 4 + 8 + 5 * 10 + 8 * (1 + PAGES) + 4 * EVENTS + 17 + 3 * KINDS  # bytes, without the producer's session id
_FLAG = 0x80


def name_hash(session_id: str) -> int:
    """What a row knows of a producer's session id; never 0."""
    return xxh3_64_intdigest(session_id.encode("utf-8", "surrogatepass")) or 1


@kernel
def _put(value: Any, size: int, out: U8, at: int) -> int:
    """Little endian; returns where the next begins."""
    rest = np.uint64(value)
    for k in range(size):
        out[at + k] = np.uint8(rest & np.uint64(0xFF))
        rest >>= np.uint64(8)
    return at + size


@kernel
def _put_short(value: Any, out: U8, at: int) -> int:
    rest = np.uint64(value)
    while rest >= np.uint64(0x80):
        out[at] = np.uint8((rest & np.uint64(0x7F)) | np.uint64(0x80))
        rest >>= np.uint64(7)
        at += 1
    out[at] = np.uint8(rest)
    return at + 1


@kernel
def _pack(rows: Rows, slots: Slots, names: U8, name_ends: Slots, out: U8, ends: Slots) -> None:
    """Write the rows at `slots` one after the other. names: all producers' session ids, joined; each ends at `name_ends`."""
    at, name_at = 0, 0
    for k in range(len(slots)):
        row = rows[slots[k]]
        pages, events, kinds = row.page_count, row.event_count, row.kind_count
        apart = pages == 0 or row.pages[pages - 1] != row.entry
        out[at] = TAG
        out[at + 1] = pages | (_FLAG if apart else 0)
        out[at + 2] = events
        out[at + 3] = kinds | (_FLAG if row.named != 0 else 0)
        at = _put(row.started_ms, 8, out, at + 4)
        at = _put_short(row.last_ms - row.started_ms, out, at)
        at = _put_short(row.position, out, at)
        at = _put_short(row.visits, out, at)
        at = _put_short(row.sessions, out, at)
        if row.named == 0:
            at = _put_short(row.named_ms - row.started_ms, out, at)
        if apart:
            at = _put(row.entry, 8, out, at)
        for i in range(pages):
            at = _put(row.pages[i], 8, out, at)
        for i in range(events):
            at = _put(row.events[i], 4, out, at)
        if kinds:
            at = _put(row.first_s, 4, out, at)
            out[at] = row.silence
            at += 1
            for i in range(6):
                at = _put(row.decayed[i], 2, out, at)
            for i in range(kinds):
                out[at] = row.kinds[i]
                at = _put(row.weights[i], 2, out, at + 1)
        while name_at < name_ends[k]:
            out[at] = names[name_at]
            at, name_at = at + 1, name_at + 1
        ends[k] = at


@kernel
def _get(blob: U8, at: int, size: int) -> np.uint64:
    value = np.uint64(0)
    for k in range(size):
        value |= np.uint64(blob[at + k]) << np.uint64(8 * k)
    return value


@kernel
def _unpack(blob: U8, begin: int, end: int, row: Any) -> int:
    """Read one stored row; where its producer's session id begins, or -1 where the bytes are none."""
    if end - begin < 12 or blob[begin] != TAG:
        return -1
    pages, events, kinds = blob[begin + 1], blob[begin + 2], blob[begin + 3]
    apart, named = pages >= _FLAG, kinds >= _FLAG
    pages, kinds = pages & (_FLAG - 1), kinds & (_FLAG - 1)
    if pages > PAGES or events > EVENTS or kinds > KINDS or (pages == 0 and not apart):
        return -1
    row.started_ms = np.int64(_get(blob, begin + 4, 8))
    at = begin + 12
    row.named_ms = row.started_ms
    for field in range(4 if named else 5):
        value, shift = np.uint64(0), np.uint64(0)
        while True:
            if at >= end or shift > np.uint64(63):
                return -1
            byte = blob[at]
            value |= np.uint64(byte & 0x7F) << shift
            shift += np.uint64(7)
            at += 1
            if byte < 0x80:
                break
        if field == 0:
            row.last_ms = row.started_ms + np.int64(value)
        elif field == 1:
            row.position = np.uint32(value)
        elif field == 2:
            row.visits = np.uint32(value)
        elif field == 3:
            row.sessions = np.uint32(value)
        else:
            row.named_ms = row.started_ms + np.int64(value)
    needed = 8 * (pages + apart) + 4 * events + (17 + 3 * kinds if kinds else 0)
    if at + needed > end or (not named and at + needed != end) or (named and at + needed == end):
        return -1
    if apart:
        row.entry = _get(blob, at, 8)
        at += 8
    for i in range(PAGES):
        row.pages[i] = np.uint64(0)
    for i in range(pages):
        row.pages[i] = _get(blob, at, 8)
        at += 8
    if not apart:
        row.entry = row.pages[pages - 1]
    for i in range(EVENTS):
        row.events[i] = 0
    for i in range(events):
        row.events[i] = np.uint32(_get(blob, at, 4))
        at += 4
    row.first_s, row.silence = 0, 0
    for i in range(6):
        row.decayed[i] = 0
    for i in range(KINDS):
        row.kinds[i], row.weights[i] = 0, 0
    if kinds:
        row.first_s = np.uint32(_get(blob, at, 4))
        row.silence = blob[at + 4]
        at += 5
        for i in range(6):
            row.decayed[i] = np.uint16(_get(blob, at, 2))
            at += 2
        for i in range(kinds):
            row.kinds[i], row.weights[i] = blob[at], np.uint16(_get(blob, at + 1, 2))
            at += 3
    row.page_count, row.event_count, row.kind_count = pages, events, kinds
    row.named = np.uint64(named)
    return at


@kernel
def _unpack_all(blob: U8, begins: Slots, ends: Slots, rows: Rows, slots: Slots, names: Slots) -> None:
    for k in range(len(begins)):
        names[k] = _unpack(blob, begins[k], ends[k], rows[slots[k]])


class VisitorTable:
    """Visitors of one partition in memory. m visitors in a call."""

    def __init__(self) -> None:
        self.rows: Rows = np.zeros(64, ROW)
        self.named: dict[int, str] = {}  # slot → the producer's id of the current session
        self._slots: dict[str, int] = {}
        self._visitors: list[str] = [""] * len(self.rows)  # by slot
        self._free = list(range(len(self.rows)))[::-1]
        self._met = np.zeros(len(self.rows), np.int64)  # the turn in which each was last met; 0: a free slot
        self._dirty = np.zeros(len(self.rows), np.bool_)
        self._turn = 0

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, visitor_id: str) -> bool:
        return visitor_id in self._slots

    def load(self, asked: Iterable[str], found: Mapping[str, bytes]) -> list[str]:
        """Take in what the store knows of visitors; of those not `found` it knows nothing. Returns a sentence for each that
        cannot be read, which counts as new."""
        names = list(asked)
        slots = self._take_slots(names)
        stored = [k for k, name in enumerate(names) if name in found]
        self.rows[np.delete(slots, stored)] = np.zeros(1, ROW)
        blobs = [found[names[k]] for k in stored]
        ends = np.cumsum([len(blob) for blob in blobs], dtype=np.intp)
        begins = np.concatenate([[0], ends[:-1]]).astype(np.intp)[: len(ends)]
        name_at = np.empty(len(blobs), np.intp)
        whole = b"".join(blobs)
        _unpack_all(np.frombuffer(whole, np.uint8), begins, ends, self.rows, slots[stored], name_at)
        unreadable: list[str] = []
        for blob, k, begin, at, end in zip(
            blobs, stored, begins.tolist(), name_at.tolist(), ends.tolist(), strict=True
        ):
            slot = int(slots[k])
            try:
                if at < 0:
                    session_id = earlier_layout(blob, self.rows[slot : slot + 1])
                else:
                    session_id = whole[at:end].decode("utf-8", "surrogatepass")
                if session_id:
                    self.rows["named"][slot] = name_hash(session_id)
                    self.named[slot] = session_id
            except ValueError as error:
                self.rows[slot] = np.zeros(1, ROW)[0]
                unreadable.append(
                    f"stored visitor of {end - begin} bytes is not in a layout this version reads: {error}"
                )
        return unreadable

    def put(self, visitor_id: str, visitor: Visitor) -> None:
        """Take in one visitor, as if the store had it."""
        (slot,) = self._take_slots([visitor_id]).tolist()
        if session_id := visitor.fill(self.rows[slot : slot + 1]):
            self.rows["named"][slot], self.named[slot] = name_hash(session_id), session_id

    def get(self, visitor_id: str) -> Visitor:
        """One visitor. Raises KeyError for one who was not loaded."""
        slot = self._slots[visitor_id]
        return Visitor.of(self.rows[slot : slot + 1], self.named.get(slot, ""))

    def slots(self, visitor_ids: Sequence[str]) -> Slots:
        """(m,) Where the rows of visitors are, who are now met. Raises KeyError for one who was not loaded."""
        self._turn += 1
        found = np.fromiter(map(self._slots.__getitem__, visitor_ids), np.intp, len(visitor_ids))
        self._met[found] = self._turn
        return found

    def changed(self, slots: Slots, so: NDArray[np.bool_] | bool = True) -> None:
        """Note that the store has older rows of these, or none; or `so`."""
        self._dirty[slots] = so

    def are_dirty(self, slots: Slots) -> NDArray[np.bool_]:
        """(m,) Which of these changed since the last checkpoint."""
        return self._dirty[slots]

    def dirty(self) -> dict[str, bytes]:
        """Visitors whose row the store does not have, and what it is to have."""
        slots = np.flatnonzero(self._dirty)
        return dict(zip(map(self._visitors.__getitem__, slots.tolist()), self.encoded(slots), strict=True))

    def encoded(self, slots: Slots) -> list[bytes]:
        """(m,) Rows as the store keeps them."""
        names = [
            self.named[slot].encode("utf-8", "surrogatepass") if slot in self.named else b"" for slot in slots.tolist()
        ]
        name_ends = np.cumsum([len(name) for name in names], dtype=np.intp)
        joined = np.frombuffer(b"".join(names), np.uint8)
        out, ends = np.empty(len(slots) * _LONGEST + len(joined), np.uint8), np.empty(len(slots), np.intp)
        _pack(self.rows, slots, joined, name_ends, out, ends)
        whole, borders = out.tobytes(), [0, *ends.tolist()]
        return [whole[begin:end] for begin, end in pairwise(borders)]

    def stored(self, bound: int) -> None:
        """The store has all rows: forget that they changed, and let those go who were met longest ago, beyond `bound`."""
        self._dirty[:] = False
        beyond = len(self._slots) - bound
        if beyond <= 0:
            return
        held = np.flatnonzero(self._met)
        for slot in held[np.argpartition(self._met[held], beyond - 1)[:beyond]].tolist():
            del self._slots[self._visitors[slot]]
            self._visitors[slot] = ""
            self.named.pop(slot, None)
            self._met[slot] = 0
            self._free.append(slot)

    def _take_slots(self, visitor_ids: Sequence[str]) -> Slots:
        while len(self._free) < len(visitor_ids):
            self._grow()
        slots = []
        for visitor_id in visitor_ids:
            slot = self._slots.get(visitor_id)
            if slot is None:
                slot = self._slots[visitor_id] = self._free.pop()
                self._visitors[slot] = visitor_id
            self.named.pop(slot, None)
            slots.append(slot)
        found = np.array(slots, np.intp)
        self._met[found] = max(1, self._turn)
        self._dirty[found] = False
        return found

    def _grow(self) -> None:
        before = len(self.rows)
        self.rows, self._met, self._dirty = (
            np.concatenate([array, np.zeros(before, array.dtype)]) for array in (self.rows, self._met, self._dirty)
        )
        self._visitors += [""] * before
        self._free = list(range(2 * before - 1, before - 1, -1)) + self._free


def stored_visitor(blob: bytes) -> Visitor:
    """A visitor as the store keeps it, for who has no table. Raises ValueError, with a sentence, where it is none."""
    table = VisitorTable()
    if unreadable := table.load(["?"], {"?": blob}):
        raise ValueError(unreadable[0])
    return table.get("?")
