"""What was derived from a value once, kept for the next time: a bounded memory whose answers do not depend on it.

Deriving (hashing, cutting up a URL, reading a user agent) costs a microsecond to hundreds of them, and the values of a
stream come back. When the memory is full it starts afresh: cheaper than keeping an order, and what is in use is soon there
again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

import numpy as np
import xxhash
from numpy.typing import NDArray

K = TypeVar("K", int, str)
Key = int | str | bytes
ENTRIES = 65_536
LONGEST = 512  # characters of a text that is kept itself; of a longer one a hash is


class Remembered(Generic[K]):
    """Rows of numbers that follow from keys, here url_ids or texts."""

    def __init__(self, derive: Callable[[str], Sequence[float]], columns: int, entries: int = ENTRIES) -> None:
        """`derive` makes a row of `columns` numbers from a source, and depends on it alone."""
        self._derive, self._entries = derive, entries
        self._at: dict[Key, int] = {}
        self._rows = np.zeros((0, columns))

    def rows(self, keys: Sequence[K], sources: Iterable[str]) -> NDArray[np.float64]:
        """(n, columns): the row of each key, derived from its source where it is not remembered.

        Equal keys have equal sources. Beyond a batch with more different keys than fit, no more than `entries` are held.
        """
        return self._found(keys, sources)

    def of_texts(self, texts: Sequence[str | None]) -> NDArray[np.float64]:
        """(n, columns), or (1, columns) where all are the same: the rows of texts, None as "", each its own source."""
        if not any(texts):
            return self._found([""], [""])
        sources = [text or "" for text in texts]
        places = list(map(self._at.get, sources))
        if None in places:  # not met before, or long: no text is the key of a longer one, for that is bytes
            return self._found(list(map(short, sources)), sources)
        found: NDArray[np.float64] = self._rows[np.array(places, np.intp)]
        return found

    def _found(self, keys: Sequence[Key], sources: Iterable[str]) -> NDArray[np.float64]:
        places = list(map(self._at.get, keys))
        if None in places:
            self._take_in(keys, list(sources), places)
            places = list(map(self._at.get, keys))
        found: NDArray[np.float64] = self._rows[np.array(places, np.intp)]
        return found

    def _take_in(self, keys: Sequence[Key], sources: Sequence[str], places: Sequence[int | None]) -> None:
        missing = {k: s for k, s, place in zip(keys, sources, places, strict=True) if place is None}
        if len(self._at) + len(missing) > self._entries:
            self._at.clear()
            missing = dict(zip(keys, sources, strict=True))
        at, end = len(self._at), len(self._at) + len(missing)
        if end > len(self._rows) or len(self._rows) > 2 * max(end, self._entries):
            grown = np.zeros((max(end, min(2 * end, self._entries)), self._rows.shape[1]))
            grown[:at] = self._rows[:at]
            self._rows = grown
        self._rows[at:end] = [self._derive(source) for source in missing.values()]
        self._at.update(zip(missing, range(at, end), strict=True))


def short(text: str) -> str | bytes:
    """The text as a key, or the hash that stands for a long one."""
    if len(text) <= LONGEST:
        return text
    return bytes(xxhash.xxh3_128_digest(text.encode("utf-8", "surrogatepass")))
