"""The whole model as bytes: safetensors (arrays, no pickle) behind a magic and a checksum.

`unpack` gives back what `pack` was given, or raises CorruptSnapshot with a sentence; equal arrays pack to equal bytes.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray
from safetensors.numpy import load, save

_MAGIC = b"U2S1"
_ABOUT = "about"


class CorruptSnapshot(ValueError):  # noqa: N818 - says what is wrong, as the other corrupt things do
    """The bytes are not a snapshot that this learner can take; the message says why. Nothing was changed."""


def pack(arrays: Mapping[str, NDArray[np.generic]], about: Mapping[str, Any]) -> bytes:
    """Arrays and a few facts (JSON) about them as bytes."""
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    whole[_ABOUT] = np.frombuffer(json.dumps(about, sort_keys=True).encode(), np.uint8)
    body = save(whole)
    return _MAGIC + xxhash.xxh3_64_digest(body) + body


def unpack(blob: bytes) -> tuple[dict[str, NDArray[np.generic]], dict[str, Any]]:
    """The arrays and the facts. Raises CorruptSnapshot on torn, damaged or foreign bytes."""
    if blob[:4] != _MAGIC:
        raise CorruptSnapshot("these bytes are not a snapshot, or of a version that is not known here")
    if blob[4:12] != xxhash.xxh3_64_digest(blob[12:]):
        raise CorruptSnapshot(
            f"the checksum of this snapshot of {len(blob)} bytes does not match: it is torn or damaged"
        )
    try:
        arrays: dict[str, NDArray[np.generic]] = load(blob[12:])
        about = json.loads(arrays.pop(_ABOUT).tobytes())
    except Exception as error:  # safetensors raises its own type and several of Python's
        raise CorruptSnapshot(f"this snapshot cannot be read: {error}") from error
    if not isinstance(about, dict):
        raise CorruptSnapshot("this snapshot does not say what it holds")
    return arrays, about
