"""The loops of URL2vec: co-visits into slots, successors into slots, vectors out of slots.

A slot table keeps, of each URL, its heaviest neighbours in fixed room. When it is full the smallest slot grows by the
new weight x and changes owner with probability x / (c + x), which keeps expected counts right (the unbiased relative of
space-saving: Ting 2018, "Data Sketches for Disaggregated Subset Sum"). The draw is a hash of a counter in the state.
"""

import numpy as np
from numpy.typing import NDArray

from models.compiled import kernel, mix

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
U64 = NDArray[np.uint64]


@kernel
def _bump(u: int, v: int, x: float, url: I32, count: F32, used: I32, draws: U64) -> None:
    """Add weight x for neighbour v to the slots of row u."""
    n = used[u]
    for q in range(n):
        if url[u, q] == v:
            count[u, q] += x
            return
    if n < url.shape[1]:
        url[u, n] = v
        count[u, n] = x
        used[u] = n + 1
        return
    smallest = 0
    for q in range(1, n):
        if count[u, q] < count[u, smallest]:
            smallest = q
    grown = count[u, smallest] + np.float32(x)
    draws[0] += np.uint64(1)
    if np.float64(mix(draws[0]) >> np.uint64(11)) * 2.0**-53 * grown < x:
        url[u, smallest] = v
    count[u, smallest] = grown


@kernel
def add_pairs(
    row: I32,
    recent: I32,
    repeat: NDArray[np.bool_],
    weight: F32,
    url: I32,
    count: F32,
    used: I32,
    mass: F64,
    total: F64,
    draws: U64,
    mark: NDArray[np.bool_],
    touched: I32,
) -> int:
    """Pair each visit (row, -1 unknown) with its window of earlier ones. Returns how many rows were touched."""
    n = 0
    for k in range(len(row)):
        i = row[k]
        if i < 0 or repeat[k]:
            continue
        for d in range(min(len(weight), recent.shape[1])):
            j = recent[k, d]
            if j < 0 or j == i:
                continue
            x = weight[d]
            total[0] += 2 * x
            for u, v in ((i, j), (j, i)):
                mass[u] += x
                _bump(u, v, x, url, count, used, draws)
                if not mark[u]:
                    mark[u] = True
                    touched[n] = u
                    n += 1
    for t in range(n):
        mark[touched[t]] = False
    return n


@kernel
def add_successors(
    row: I32, recent: I32, repeat: NDArray[np.bool_], url: I32, count: F32, used: I32, draws: U64
) -> None:
    """Count each step from the visit just before, in that direction."""
    for k in range(len(row)):
        if row[k] >= 0 and recent[k, 0] >= 0 and row[k] != recent[k, 0] and not repeat[k]:
            _bump(recent[k, 0], row[k], 1.0, url, count, used, draws)


@kernel
def gather(rows: I32, url: I32, count: F32, used: I32, log_mass: F64, log_total: float, vectors: F32, out: F32) -> None:
    """out[t] (dims,) = Σ over the slots of rows[t] of max(0, PMI) · c / (c + 1) · the neighbour's vector."""
    for t in range(len(rows)):
        i = rows[t]
        out[t, :] = 0
        for q in range(used[i]):
            c, j = np.float64(count[i, q]), url[i, q]
            pmi = np.log(c) + log_total - log_mass[i] - log_mass[j]
            if pmi > 0:
                x = np.float32(pmi * c / (c + 1))
                for k in range(out.shape[1]):
                    out[t, k] += x * vectors[j, k]


@kernel
def first_vectors(ids: U64, radius: float, out: F32) -> None:
    """A URL's first vector follows from its id alone, so that replicas agree: near-normal numbers, on the sphere."""
    for t in range(len(ids)):
        seed, norm = mix(ids[t]), 0.0
        for k in range(out.shape[1]):
            bits = mix(seed + np.uint64(k))
            x = 0.0
            for part in range(4):  # the sum of four uniforms is close enough to normal, and exact on every machine
                x += np.float64((bits >> np.uint64(16 * part)) & np.uint64(0xFFFF))
            x -= 2 * 65535.0
            out[t, k] = x
            norm += x * x
        scale = radius / np.sqrt(max(norm, 1e-9))
        for k in range(out.shape[1]):
            out[t, k] *= scale


@kernel
def top_successors(row: I32, url: I32, count: F32, used: I32, out: I32, score: F32) -> None:
    """out (n, k): rows most often seen right after row[t], best first, -1 where there are fewer; score: their share."""
    taken = np.zeros(url.shape[1], np.bool_)
    for t in range(len(row)):
        out[t, :] = -1
        score[t, :] = 0
        i = row[t]
        if i < 0:
            continue
        taken[:] = False
        total = np.float32(0)
        for q in range(used[i]):
            total += count[i, q]
        for rank in range(min(out.shape[1], used[i])):
            best = -1
            for q in range(used[i]):
                if not taken[q] and (best < 0 or count[i, q] > count[i, best]):
                    best = q
            taken[best] = True
            out[t, rank] = url[i, best]
            score[t, rank] = count[i, best] / total


@kernel
def step_share(before: I32, after: I32, url: I32, count: F32, used: I32, seen: F32, total: F32) -> None:
    """Of each step before → after: how often it was seen, and how often anything was seen to follow `before`."""
    for t in range(len(before)):
        seen[t] = 0
        total[t] = 0
        i = before[t]
        if i < 0:
            continue
        for q in range(used[i]):
            total[t] += count[i, q]
            if url[i, q] == after[t]:
                seen[t] = count[i, q]
