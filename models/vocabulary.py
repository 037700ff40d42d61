"""URL ↔ row. A row number is for ever; URLs beyond `capacity` are refused and counted (nothing is evicted yet).

The lookup table (open addressing, half empty) is derived from the list of ids, so a snapshot carries only the list.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from models.compiled import kernel, mix

U64 = NDArray[np.uint64]
I32 = NDArray[np.int32]


@kernel
def _find(ids: U64, key: U64, row: I32, out: I32) -> None:
    mask = np.uint64(len(key) - 1)
    for k in range(len(ids)):
        out[k] = -1
        if ids[k] == 0:
            continue
        at = mix(ids[k]) & mask
        while row[at] >= 0:
            if key[at] == ids[k]:
                out[k] = row[at]
                break
            at = (at + np.uint64(1)) & mask


@kernel
def _admit(ids: U64, key: U64, row: I32, listed: U64, count: int, capacity: int, out: I32) -> int:
    """Find each id, or append it while there is room. Returns the new count; refused ids and 0 get row -1."""
    mask = np.uint64(len(key) - 1)
    for k in range(len(ids)):
        out[k] = -1
        if ids[k] == 0:
            continue
        at = mix(ids[k]) & mask
        while row[at] >= 0 and key[at] != ids[k]:
            at = (at + np.uint64(1)) & mask
        if row[at] >= 0:
            out[k] = row[at]
        elif count < capacity:
            key[at], row[at], listed[count], out[k] = ids[k], count, ids[k], count
            count += 1
    return count


class Vocabulary:
    """Which row a URL has, and what it is called. A row may be nameless for a while: its name comes with a lesson."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.count = 0
        self.refused = 0  # visits of URLs that found no room; who admits counts them
        self.names: list[str] = []
        self._listed: U64 = np.zeros(1024, np.uint64)
        self._rebuild(2048)

    def _rebuild(self, size: int) -> None:
        self._key: U64 = np.zeros(size, np.uint64)
        self._row: I32 = np.full(size, -1, np.int32)
        known = self._listed[: self.count]
        _admit(known, self._key, self._row, known.copy(), 0, self.count, np.zeros(self.count, np.int32))

    @property
    def ids(self) -> U64:
        return self._listed[: self.count]

    def find(self, ids: U64) -> I32:
        """Rows of any array of ids, in its shape; -1 where unknown."""
        out = np.empty(ids.size, np.int32)
        _find(np.ascontiguousarray(ids).reshape(-1), self._key, self._row, out)
        return out.reshape(ids.shape)

    def admit(self, ids: U64) -> I32:
        """Rows of ids, those unknown appended in order of appearance; -1 where there was no room, or the id is 0."""
        flat = np.ascontiguousarray(ids).reshape(-1)
        room = min(self.capacity, self.count + len(flat))
        while len(self._listed) < room:
            self._listed = np.concatenate([self._listed, np.zeros_like(self._listed)])
        while len(self._key) < 2 * room:
            self._rebuild(2 * len(self._key))
        out = np.empty(len(flat), np.int32)
        self.count = int(_admit(flat, self._key, self._row, self._listed, self.count, self.capacity, out))
        self.names += [""] * (self.count - len(self.names))
        return out.reshape(ids.shape)

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
        text = [name.encode("utf-8", "surrogatepass") for name in self.names]
        return {
            "ids": self.ids.copy(),
            "names": np.frombuffer(b"".join(text), np.uint8),
            "lengths": np.array([len(t) for t in text], np.int32),
            "refused": np.array([self.refused], np.int64),
        }

    def load(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Take over a saved state. Raises ValueError where it contradicts itself or does not fit."""
        ids, lengths, text = state["ids"].astype(np.uint64), state["lengths"].tolist(), state["names"].tobytes()
        if len(ids) > self.capacity or len(lengths) != len(ids) or sum(lengths) != len(text):
            raise ValueError(f"a vocabulary of {len(ids)} URLs does not fit a capacity of {self.capacity}, or is torn")
        ends = np.cumsum(lengths, dtype=np.int64).tolist()
        self.names = [
            text[end - n : end].decode("utf-8", "surrogatepass") for end, n in zip(ends, lengths, strict=True)
        ]
        self.count, self.refused = len(ids), int(state["refused"][0])
        size = 1024
        while size < len(ids):
            size *= 2
        self._listed = np.zeros(size, np.uint64)
        self._listed[: len(ids)] = ids
        self._rebuild(2 * size)
