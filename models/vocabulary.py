"""URL ↔ row, in bounded room on an endless stream.

A URL gets a row when it is first visited; once the vocabulary is half full, only at its `admit_after`-th visit, counted
in a small sketch (eight bytes a row of the capacity), so that of a crawler's million URLs that nobody visits twice two in a
hundred get a row (as in TinyLFU: Einziger, Friedman, Manes 2017). Rows are given back by `remove`, and the lowest free one
is used first, so which row a URL gets depends on what is in the vocabulary and not on how that came about.

Promises: a row in use belongs to one URL; `find` and `admit` agree; never more than `capacity` rows. Who removes a row also
removes what points to it.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from models.compiled import kernel, mix
from models.counts import I32, U64, longer

U8 = NDArray[np.uint8]


@kernel
def _place(wanted: np.uint64, ids: U64, table: I32) -> np.uint64:
    """Where in the table (open addressing) the id is, or the free place where it would go."""
    mask = np.uint64(len(table) - 1)
    at = mix(wanted) & mask
    while table[at] >= 0 and ids[table[at]] != wanted:
        at = (at + np.uint64(1)) & mask
    return at


@kernel
def _find(wanted: U64, ids: U64, table: I32, out: I32) -> None:
    for k in range(len(wanted)):
        out[k] = table[_place(wanted[k], ids, table)] if wanted[k] != 0 else -1


@kernel
def _enter(rows: I32, ids: U64, table: I32) -> None:
    for row in rows:
        table[_place(ids[row], ids, table)] = row


@kernel
def _seen_before(wanted: np.uint64, sketch: U8) -> int:
    """How often the sketch has counted the id, this time included: never too few, seldom too many."""
    mask, h = np.uint64(sketch.shape[1] - 1), mix(wanted)
    a, b = h & mask, (h >> np.uint64(32)) & mask
    least = min(sketch[0, a], sketch[1, b])
    if least < 255:
        if sketch[0, a] == least:
            sketch[0, a] += 1
        if sketch[1, b] == least:
            sketch[1, b] += 1
    return int(least) + 1


@kernel
def _admit(
    wanted: U64, free: I32, enough: int, after: int, ids: U64, table: I32, sketch: U8, out: I32
) -> tuple[int, int]:
    """Find each id, or give it the next of the `free` rows. Returns how many were given, and ids put into the sketch.

    While more than `enough` rows are free, at the first visit; then after that many.
    """
    given, counted = 0, 0
    for k in range(len(wanted)):
        out[k] = -1
        if wanted[k] == 0:
            continue
        at = _place(wanted[k], ids, table)
        if table[at] >= 0:
            out[k] = table[at]
            continue
        if len(free) - given <= enough and after > 1:
            counted += 1
            if _seen_before(wanted[k], sketch) < after:
                continue
        if given < len(free):
            row = free[given]
            given += 1
            ids[row], table[at], out[k] = wanted[k], row, row
    return given, counted


class Vocabulary:
    """Which row a URL has, and what it is called. A row may be nameless for a while: its name comes with a lesson."""

    def __init__(self, capacity: int, admit_after: int = 1) -> None:
        self.capacity, self._after = capacity, admit_after
        self.count = 0  # rows in use, or used before and free now: those below are all there are
        self.refused = 0  # visits of URLs that got no row
        self._ids: U64 = np.zeros(min(1024, capacity), np.uint64)  # 0 is a free row
        self.names = [""] * len(self._ids)
        self._freed: I32 = np.zeros(0, np.int32)  # free rows below count, ascending
        self._sketch: U8 = np.zeros((2, _power_of_two(4 * max(256, capacity))), np.uint8)
        self._counted = 0  # ids put into the sketch since it was last halved
        self._table: I32 = np.zeros(0, np.int32)
        self._index()

    @property
    def ids(self) -> U64:
        """(count,) the id of each row, 0 where it is free."""
        return self._ids[: self.count]

    @property
    def live(self) -> int:
        """URLs that have a row."""
        return self.count - len(self._freed)

    def _index(self) -> None:
        """The lookup table follows from the ids; at most half of it is in use."""
        self._table = np.full(_power_of_two(max(2048, 2 * len(self._ids))), -1, np.int32)
        _enter(np.flatnonzero(self.ids).astype(np.int32), self._ids, self._table)

    def find(self, ids: U64) -> I32:
        """Rows of any array of ids, in its shape; -1 where unknown."""
        out = np.empty(ids.size, np.int32)
        _find(np.ascontiguousarray(ids).reshape(-1), self._ids, self._table, out)
        return out.reshape(ids.shape)

    def admit(self, ids: U64, at_once: bool = False) -> tuple[I32, I32]:
        """Rows of the ids (n,) of visits, one by one; -1 where a URL got none, or the id is 0. And the rows that are new.

        `at_once`: as long as there is any room.
        """
        room = min(self.capacity, self.count + len(ids))
        if room > len(self._ids):
            self._ids = longer(self._ids, min(self.capacity, max(room, 2 * len(self._ids))))
            self.names += [""] * (len(self._ids) - len(self.names))
            self._index()
        free = np.concatenate([self._freed, np.arange(self.count, room, dtype=np.int32)])
        # Rows beyond `room` are free too: the vocabulary is half full when half its capacity is.
        enough = self.capacity // 2 - (self.capacity - room)
        out = np.empty(len(ids), np.int32)
        after = 1 if at_once else self._after
        given, counted = _admit(ids, free, enough, after, self._ids, self._table, self._sketch, out)
        if given:
            self.count = max(self.count, int(free[:given].max()) + 1)
            self._freed = self._freed[min(given, len(self._freed)) :]
        self._halve_when_full(counted)
        self.refused += int(((out < 0) & (ids != 0)).sum())
        return out, free[:given]

    def _halve_when_full(self, counted: int) -> None:
        """What was seen once long ago is not what was seen once today."""
        self._counted += counted
        if self._counted > self._sketch.shape[1] // 4:  # fuller, it would take one in five for seen before
            self._sketch >>= 1
            self._counted = 0

    def remove(self, rows: I32) -> None:
        """Give rows back; whoever asks for them next is another URL."""
        self._ids[rows] = 0
        for row in rows.tolist():
            self.names[row] = ""
        self._freed = np.union1d(self._freed, rows).astype(np.int32)
        self._index()

    def name(self, names: Mapping[int, str]) -> dict[int, str]:
        """Give names to rows that have none. Returns those that were news."""
        if not names:
            return {}
        news: dict[int, str] = {}
        rows = self.find(np.fromiter(names, np.uint64, len(names)))
        for row, (url_id, url) in zip(rows.tolist(), names.items(), strict=True):
            if row >= 0 and not self.names[row]:
                self.names[row] = url
                if url:
                    news[url_id] = url
        return news

    def state(self) -> dict[str, NDArray[np.generic]]:
        text = [name.encode("utf-8", "surrogatepass") for name in self.names[: self.count]]
        return {
            "ids": self.ids.copy(),
            "names": np.frombuffer(b"".join(text), np.uint8),
            "lengths": np.array([len(t) for t in text], np.int32),
            "sketch": self._sketch,
            "counters": np.array([self.refused, self._counted], np.int64),
        }

    def load(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Take over a saved state. Raises ValueError where it contradicts itself or does not fit."""
        ids, lengths, text = state["ids"].astype(np.uint64), state["lengths"].tolist(), state["names"].tobytes()
        if len(ids) > self.capacity or len(lengths) != len(ids) or sum(lengths) != len(text):
            raise ValueError(f"a vocabulary of {len(ids)} URLs does not fit a capacity of {self.capacity}, or is torn")
        known = ids[ids != 0]
        if len(np.unique(known)) != len(known):
            raise ValueError("a URL has two rows in this vocabulary")
        ends = np.cumsum(lengths, dtype=np.int64).tolist()
        self.names = [
            text[end - n : end].decode("utf-8", "surrogatepass") for end, n in zip(ends, lengths, strict=True)
        ]
        self.count = len(ids)
        self.refused, self._counted = (int(x) for x in state["counters"])
        self._ids = longer(ids, min(1024, self.capacity))
        self.names += [""] * (len(self._ids) - len(self.names))
        self._freed = np.flatnonzero(ids == 0).astype(np.int32)
        self._sketch[:] = state["sketch"]
        self._index()


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()
