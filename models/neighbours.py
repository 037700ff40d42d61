"""The k nearest rows by cosine: an exact scan of the fixed-point vectors, which is fast enough to need no index.

Vectors are unit vectors times ONE as int16, so a cosine is an integer dot product: the compiler turns it into the
multiply-and-add of pairs that every x86 since 2000 and every 64-bit ARM has, and a scan is bound by memory alone. At
64 dimensions a million rows take 4.4 ms on one core (measured, with the k kept on the way; float32 and BLAS: 20 ms).

Why no graph and no inverted index. Rows move all the time (a tenth of the touched ones a lesson), are evicted and used
again; an index would have to follow, and be right about it. Measured at a million learned vectors, one core, recall of
the ten nearest: HNSW (usearch, hnswlib) answers in 0.2 ms with .96 to .97, and .91 to .92 once a fiftieth of the rows
has moved, asked half with those; it takes two to three minutes to build, 0.3 to 0.6 ms a moved row, and 400 to 500
bytes a row. faiss' inverted lists answer in 0.3 ms and lose nothing, for half a minute of training, 14 µs a moved row
and a copy of all vectors. Here nothing is built, kept or moved, and the answer is exact. Eight bits a number would halve
the scan and lose half of the ten nearest: in a dense topic they differ by less than a step of 1/127.

Promises: rows that are not live (free ones, and those nobody co-visited) are never returned; equal cosines come in the order
of rows; the answer depends on the arguments alone.
"""

import numpy as np
from numpy.typing import NDArray

from models.compiled import kernel

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I16 = NDArray[np.int16]
I32 = NDArray[np.int32]
Live = F64 | NDArray[np.bool_]  # above 0 where a row may be returned

ONE = 32767  # fixed point: what a component of 1 is stored as
NOWHERE = np.float32(-2)  # the cosine beside row -1, where there were fewer than k rows; below every real one
_BLOCK = 256  # rows scanned for all queries before the next ones: 32 kB at 64 dimensions stay in the first cache


@kernel
def _scan(vectors: I16, live: Live, query: I16, but: I32, rows: I32, score: I32, kept: I32) -> None:
    """Fill rows, score (m, k), best first. A sum of products of two unit vectors is within ±2^30: int32 is enough."""
    k, dims = rows.shape[1], vectors.shape[1]
    for begin in range(0, len(vectors), _BLOCK):
        for m in range(len(query)):
            asked = query[m]
            for r in range(begin, min(begin + _BLOCK, len(vectors))):
                row = vectors[r]
                s = np.int32(0)
                for d in range(dims):  # every operand cast, for numba adds two int32 as int64, which is half as fast
                    s = np.int32(s + np.int32(np.int32(row[d]) * np.int32(asked[d])))
                full = kept[m] == k
                # Asked only of the few rows that would be kept: whether they are live. `<=`: of two equal rows the lower stays.
                if (full and s <= score[m, k - 1]) or live[r] <= 0 or _among(r, but[m]):
                    continue
                at = k - 1 if full else kept[m]
                while at > 0 and score[m, at - 1] < s:
                    score[m, at], rows[m, at] = score[m, at - 1], rows[m, at - 1]
                    at -= 1
                score[m, at], rows[m, at] = s, r
                if not full:
                    kept[m] += 1


@kernel
def _among(r: int, these: I32) -> bool:
    for t in these:  # noqa: SIM110 - numba compiles loops
        if t == r:
            return True
    return False


def nearest_rows(vectors: I16, live: Live, queries: F32, k: int, but: I32 | None = None) -> tuple[I32, F32]:
    """Rows (m, k) with the highest cosine to each of queries (m, dims), best first, and those cosines (m, k).

    `vectors` (rows, dims) holds unit vectors times ONE; `live` (rows,), a mask or the rows' mass, is 0 where a row is free.
    Queries need no length of one. `but` (m, any) lists rows to leave out of each answer, -1 for none. Where there are fewer
    rows than k, and for a query without direction (all zero, or not finite), the rest is -1 and NOWHERE.

    >>> east, north = [ONE, 0], [0, ONE]
    >>> nearest_rows(np.array([east, north, east], np.int16), np.ones(3), np.array([[2, 0.2]], np.float32), 2)[0]
    array([[0, 2]], dtype=int32)
    """
    if queries.ndim != 2 or queries.shape[1] != vectors.shape[1]:
        raise ValueError(f"queries of shape {queries.shape} for vectors of {vectors.shape[1]} dimensions")
    m, k = len(queries), min(k, len(vectors))
    rows, score = np.full((m, k), -1, np.int32), np.zeros((m, k), np.int32)
    if k < 1:
        return rows, np.zeros((m, k), np.float32)
    length = np.linalg.norm(queries.astype(np.float64), axis=1)
    sound = np.isfinite(length) & (length > 0)
    asked = np.rint(queries[sound] / length[sound, None] * ONE).astype(np.int16)
    left_out = np.full((m, 1), -1, np.int32) if but is None else but.astype(np.int32)
    found, scored = rows[sound], score[sound]
    kept = np.zeros(len(asked), np.int32)
    _scan(vectors, live, asked, np.ascontiguousarray(left_out[sound]), found, scored, kept)
    rows[sound], score[sound] = found, scored
    cosine = (score / np.float64(ONE * ONE)).astype(np.float32)
    return rows, np.where(rows >= 0, np.clip(cosine, -1, 1), NOWHERE).astype(np.float32)
