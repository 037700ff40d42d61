"""The one way loops are compiled here, and the integer mixing that stands where others would draw random numbers.

No fastmath and no parallel loops: the same state and the same lesson must give the same bits on every replica.

Compiled loops are kept on disk, in a folder named after the sources of all of them: numba compiles anew when the file of a
loop has changed, but not when a loop that it calls has, in another file, and would go on with the old one unnoticed.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
import numpy as np
import xxhash
from numpy.typing import NDArray

F = TypeVar("F", bound=Callable[..., Any])
SOURCES = Path(__file__).parent
OTHERS = (SOURCES.parent / "streams",)  # where there are loops too
PREFIX = "kernels-"


def cache_folder(sources: Path, others: Sequence[Path] = ()) -> Path:
    """Where what is compiled from the sources in a folder, and others, as they are now, is kept."""
    state = xxhash.xxh3_64()
    for folder in (sources, *others):
        for file in sorted(folder.glob("*.py")):
            if b"@kernel" in (text := file.read_bytes()):
                state.update(file.name.encode() + text)
    return sources / "__pycache__" / f"{PREFIX}{state.hexdigest()}"


if not numba.config.CACHE_DIR and os.access(SOURCES, os.W_OK):  # else numba looks for a place by itself
    numba.config.CACHE_DIR = str(cache_folder(SOURCES, OTHERS))


def kernel(function: F) -> F:
    """Compile at the first call, cached on disk: two seconds from the cache where a cold start takes fifteen."""
    return cast(F, numba.njit(cache=True)(function))


@kernel
def mix(x: np.uint64) -> np.uint64:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014): every input bit moves every output bit."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def mix_many(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """`mix` of each."""
    out = np.empty_like(x)
    _mix_all(x, out)
    return out


@kernel
def _mix_all(x: NDArray[np.uint64], out: NDArray[np.uint64]) -> None:
    for k in range(len(x)):
        out[k] = mix(x[k])
