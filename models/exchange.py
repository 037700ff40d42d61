"""What replicas of URL2vec tell each other, where one does not learn another's visits itself.

Two kinds of facts, and they travel differently:

* *What adds up*: co-visit weights of pairs, steps, visits. A delta is a sum over some visits, in units of one visit; applying
  it is adding, so the order in which deltas come, and from whom, does not matter.
* *What is derived*: vectors. Sums of vector deltas break with four workers (.51 instead of .55), so rows travel whole, and
  the last to be applied wins: replicas that agree on the counts nearly agree on the rows. A receiver may also be sent none
  and derive its own from the counts: that costs it time instead of the sender bytes.

URLs travel by id, with names that may be news: row numbers mean nothing elsewhere. The encoding is arrays inside msgpack,
compressed, behind a checksum; what was damaged raises `CorruptDelta`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.counts import F32, I16, I32, U64
from models.envelope import seal, unseal
from models.lesson import Steps
from models.visits import RECENT

_LETTERS = b"U2D1"
_WHOLE = 4096.0  # a weight of 1 on the wire: weights are sums of a few small numbers, and compress well as integers


class CorruptDelta(ValueError):  # noqa: N818 - says what is wrong, as the other corrupt things do
    """The bytes are not a whole delta; the message says what is wrong with them."""


class _Wire(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    ids: bytes  # u64 (m,)
    visits: bytes  # u32 (m,)
    pairs: bytes  # u32 (p, 2) into ids
    pair_weight: bytes  # u32 (p,) * _WHOLE
    steps: bytes  # u32 (s, 2) into ids
    step_weight: bytes  # u32 (s,)
    names: dict[int, bytes]
    clock_ms: int
    rows: bytes  # u32 (v,) into ids
    vectors: bytes  # i16 (v, dims)
    dims: int


@dataclass(slots=True)
class Delta:
    """What some visits add (m URLs, p pairs, s steps), and v vectors as their sender has them afterwards."""

    ids: U64  # (m,) distinct
    visits: NDArray[np.uint32]  # (m,)
    pairs: NDArray[np.uint32]  # (p, 2) into ids, each unordered pair once
    pair_weight: F32  # (p,) multiples of 1 / 4096
    steps: NDArray[np.uint32]  # (s, 2) into ids: before, after
    step_weight: NDArray[np.uint32]  # (s,)
    names: Mapping[int, str]
    clock_ms: int  # event time
    rows: NDArray[np.uint32] = field(default_factory=lambda: np.zeros(0, np.uint32))  # (v,) into ids
    vectors: I16 = field(default_factory=lambda: np.zeros((0, 0), np.int16))  # (v, dims) in units of sphere.ONE

    @staticmethod
    def of(steps: Steps, weight: F32, names: Mapping[int, str], clock_ms: int) -> Delta:
        """The sums over these visits, with `weight` (window,) of a pair at each distance."""
        ids, at = np.unique(np.concatenate([steps.url[:, None], steps.recent], axis=1), return_inverse=True)
        at = at.reshape(len(steps.url), 1 + RECENT).astype(np.uint64)
        known = (ids[at] != 0) & ~steps.repeat[:, None]
        url, near = at[:, :1], at[:, 1 : 1 + len(weight)]
        paired = known[:, :1] & known[:, 1 : 1 + len(weight)] & (near != url)
        low, high = np.minimum(url, near)[paired], np.maximum(url, near)[paired]
        x = np.broadcast_to(weight, near.shape)[paired]
        keys, place = np.unique(low << np.uint64(32) | high, return_inverse=True)
        summed = np.round(np.bincount(place, x, len(keys)) * _WHOLE) / _WHOLE
        kept = summed > 0
        stepped = paired[:, 0]
        walked, count = np.unique(
            at[:, 1][stepped] << np.uint64(32) | at[:, 0][stepped], return_counts=True
        )  # before, after
        return Delta(
            ids,
            np.bincount(at[known[:, 0], 0].astype(np.int64), minlength=len(ids)).astype(np.uint32),
            _two(keys[kept]),
            summed[kept].astype(np.float32),
            _two(walked),
            count.astype(np.uint32),
            names,
            clock_ms,
        )

    def with_vectors(self, rows: I32, vectors: I16, known: U64) -> Delta:
        """The same, with the vectors (v, dims) of these rows of a vocabulary whose ids are `known`."""
        wanted = known[rows]
        at = np.searchsorted(self.ids, wanted)
        here = (at < len(self.ids)) & (self.ids[np.minimum(at, len(self.ids) - 1)] == wanted)
        self.rows, self.vectors = at[here].astype(np.uint32), vectors[here]
        return self

    def encode(self) -> bytes:
        """Bytes for the store and for replicas."""
        wire = _Wire(
            self.ids.tobytes(),
            self.visits.tobytes(),
            self.pairs.tobytes(),
            np.round(self.pair_weight * _WHOLE).astype(np.uint32).tobytes(),
            self.steps.tobytes(),
            self.step_weight.tobytes(),
            {k: url.encode("utf-8", "surrogatepass") for k, url in self.names.items()},
            self.clock_ms,
            self.rows.tobytes(),
            self.vectors.tobytes(),
            self.vectors.shape[1],
        )
        return seal(_LETTERS, wire)

    @staticmethod
    def decode(blob: bytes) -> Delta:
        """The delta that was encoded. Raises CorruptDelta on torn or foreign bytes."""
        try:
            wire = unseal(_LETTERS, blob, _Wire)
            ids = np.frombuffer(wire.ids, np.uint64)
            delta = Delta(
                ids,
                np.frombuffer(wire.visits, np.uint32),
                np.frombuffer(wire.pairs, np.uint32).reshape(-1, 2),
                np.frombuffer(wire.pair_weight, np.uint32).astype(np.float32) / np.float32(_WHOLE),
                np.frombuffer(wire.steps, np.uint32).reshape(-1, 2),
                np.frombuffer(wire.step_weight, np.uint32),
                {k: url.decode("utf-8", "surrogatepass") for k, url in wire.names.items()},
                wire.clock_ms,
                np.frombuffer(wire.rows, np.uint32),
                np.frombuffer(wire.vectors, np.int16).reshape(-1, wire.dims)
                if wire.dims
                else np.zeros((0, 0), np.int16),
            )
        except ValueError as error:
            raise CorruptDelta(f"this delta cannot be read: {error}") from error
        delta._check()
        return delta

    def _check(self) -> None:
        m = len(self.ids)
        sizes = ((self.visits, m), (self.pair_weight, len(self.pairs)), (self.step_weight, len(self.steps)))
        pointers = (self.pairs, self.steps, self.rows)
        if any(len(array) != n for array, n in sizes) or len(self.rows) != len(self.vectors):
            raise CorruptDelta("the parts of this delta differ in length")
        if any(len(array) and int(array.max()) >= m for array in pointers):
            raise CorruptDelta("a part of this delta points to a URL that is not in it")


def _two(keys: U64) -> NDArray[np.uint32]:
    return np.stack([keys >> np.uint64(32), keys & np.uint64(0xFFFFFFFF)], axis=1).astype(np.uint32)
