"""How well the next URL was foreseen, judged progressively: proposed first, seen after, learned from last.

`Ranking` is additive, as `models.progressive`: partitions and workers keep their own and merge them. Beside the model's
ranks stand those of two opponents that were asked the same question at the same moment: the most popular URLs, and a
first-order Markov chain that backs off to them.
"""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

BEST = 10  # ranks beyond this count as not found, for proposals are no longer
WHO = ("model", "popularity", "markov")
_NO_RANK = -1  # nothing was asked: a first visit, a repeat


class CorruptRanking(ValueError):  # noqa: N818 - says what is wrong, as the other corrupt things do
    """The bytes are not an encoded Ranking."""


class _Wire(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    best: int
    counts: bytes  # u64 (WHO, 1 + BEST)


class Ranking:
    """How often the URL that came next stood at each rank of ten, for the model and its opponents.

    The histogram is all that is kept: every measure here is a sum over it, so merging is exact.

    >>> ranking = Ranking()
    >>> ranking.add(np.array([[1, 3, 2], [0, 0, 1], [-1, -1, -1]]))
    >>> ranking.n, ranking.hits("model"), ranking.reciprocal_rank("markov")
    (2, 0.5, 0.75)
    """

    def __init__(self) -> None:
        self._counts = np.zeros((len(WHO), 1 + BEST), np.int64)  # by rank; 0: not among the ten

    @property
    def n(self) -> int:
        """Steps judged."""
        return int(self._counts[0].sum())

    def add(self, ranks: NDArray[np.integer]) -> None:
        """Judge steps. ranks (steps, 3), a column each of WHO: 1 for the first, 0 for beyond BEST, -1 where not asked."""
        asked = ranks[(ranks != _NO_RANK).all(axis=1)].astype(np.int64)
        for who in range(len(WHO)):
            self._counts[who] += np.bincount(asked[:, who], minlength=1 + BEST)

    def merge(self, other: Ranking) -> None:
        """Add another record."""
        self._counts += other._counts

    def hits(self, who: str = "model") -> float | None:
        """Share of steps whose URL was among the ten proposed (hit-rate@10); None before the first step."""
        return float(self._of(who)[1:].sum() / self.n) if self.n else None

    def reciprocal_rank(self, who: str = "model") -> float | None:
        """Mean of 1 / rank, 0 where it was not among the ten (MRR truncated at 10); None before the first step."""
        return float((self._of(who)[1:] / np.arange(1, 1 + BEST)).sum() / self.n) if self.n else None

    def _of(self, who: str) -> NDArray[np.int64]:
        row: NDArray[np.int64] = self._counts[WHO.index(who)]
        return row

    def encode(self) -> bytes:
        """Bytes for the store, 270 of them."""
        return msgspec.msgpack.encode(_Wire(BEST, self._counts.astype(np.uint64).tobytes()))

    @staticmethod
    def decode(blob: bytes) -> Ranking:
        """The record that was encoded. Raises CorruptRanking."""
        out = Ranking()
        try:
            wire = msgspec.msgpack.decode(blob, type=_Wire)
            if wire.best != BEST:
                raise CorruptRanking(f"this record ranks {wire.best} URLs, expected {BEST}")
            out._counts[:] = np.frombuffer(wire.counts, np.uint64).astype(np.int64).reshape(out._counts.shape)
        except (msgspec.MsgspecError, ValueError) as error:
            raise CorruptRanking(f"this record of ranks cannot be read: {error}") from error
        if len({int(row.sum()) for row in out._counts}) > 1 or (out._counts < 0).any():
            raise CorruptRanking("this record of ranks does not add up")
        return out
