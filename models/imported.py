"""Vectors from a file on their way to every replica: some URLs with a direction each, as bytes for the store.

As a lesson, it is raw arrays inside msgpack, compressed, behind a checksum: `decode` gives back what was encoded, or
raises. Directions are fixed point, as the model keeps them, so that the bytes are an eighth of the text they came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.envelope import seal, unseal
from models.neighbours import ONE

F32 = NDArray[np.float32]

_LETTERS = b"U2V1"


class CorruptImport(ValueError):  # noqa: N818 - says what is wrong, as the other corrupt things do
    """The bytes are not whole imported vectors; the message says what is wrong with them."""


class _Wire(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    urls: list[bytes]
    dims: int
    directions: bytes  # i16 (n, dims), little-endian, unit vectors times ONE


@dataclass(slots=True)
class Imported:
    """Distinct URLs (n) and unit vectors (n, dims), in the same order."""

    urls: list[str]
    vectors: F32

    @staticmethod
    def of(urls: Sequence[str], vectors: F32) -> Imported:
        """Those with a direction, scaled to length one. A URL that comes twice has the last one's."""
        # In float64: float32 overflows when numbers beyond 1e19 are squared.
        wide = vectors.astype(np.float64)
        length = np.linalg.norm(wide, axis=1)
        place = {url: k for k, url in enumerate(urls) if length[k] > 0}
        kept = np.fromiter(place.values(), np.int64, len(place))
        return Imported(list(place), (wide[kept] / length[kept, None]).astype(np.float32))

    def encode(self) -> bytes:
        """Bytes for the store and for replicas."""
        fixed = np.rint(self.vectors * np.float32(ONE)).astype("<i2")
        names = [url.encode("utf-8", "surrogatepass") for url in self.urls]
        return seal(_LETTERS, _Wire(names, self.vectors.shape[1], fixed.tobytes()))

    @staticmethod
    def decode(blob: bytes) -> Imported:
        """What was encoded. Raises CorruptImport on torn or foreign bytes."""
        try:
            wire = unseal(_LETTERS, blob, _Wire)
            fixed = np.frombuffer(wire.directions, "<i2").reshape(len(wire.urls), wire.dims)
            urls = [url.decode("utf-8", "surrogatepass") for url in wire.urls]
        except ValueError as error:
            raise CorruptImport(f"these imported vectors cannot be read: {error}") from error
        return Imported(urls, fixed.astype(np.float32) / np.float32(ONE))
