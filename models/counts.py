"""The counts of URL2vec: who was visited near whom, who came right after whom, and the loops over them.

A slot table keeps, of each URL, its heaviest neighbours in fixed room. When it is full the smallest slot grows by the
new weight x and changes owner with probability x / (c + x), which keeps expected counts right (the unbiased relative of
space-saving: Ting 2018, "Data Sketches for Disaggregated Subset Sum"). The draw is a hash of a counter in the state.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.compiled import kernel, mix

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I16 = NDArray[np.int16]
I32 = NDArray[np.int32]
U64 = NDArray[np.uint64]
U8 = NDArray[np.uint8]
Mask = NDArray[np.bool_]


@kernel
def bump(u: int, v: int, x: float, url: I32, count: F32, used: U8, draws: U64) -> None:
    """Add weight x for neighbour v to the slots of row u."""
    n, at, neighbours = np.int64(used[u]), -1, url[u]
    for q in range(n):  # no early exit, so that the compiler compares eight at a time
        if neighbours[q] == v:
            at = q
    if at >= 0:
        count[u, at] += x
        return
    if n < url.shape[1]:
        url[u, n] = v
        count[u, n] = x
        used[u] = n + 1
        return
    bits, smallest = count[u].view(np.int32), 0  # positive floats order as their bits do, and integers faster
    least = bits[0]
    for q in range(n):
        least = min(least, bits[q])
    for q in range(n):
        if bits[q] == least:
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
    repeat: Mask,
    weight: F32,
    unit: float,
    url: I32,
    count: F32,
    used: U8,
    mass: F64,
    total: F64,
    draws: U64,
    mark: Mask,
    touched: I32,
) -> int:
    """Pair each visit (row, -1 unknown) with its window of earlier ones, at distance d by unit · weight[d - 1].

    Distances that weigh nothing are passed over. Returns how many rows were touched; `touched` lists them.
    """
    n, reach = 0, min(len(weight), recent.shape[1])
    while reach and weight[reach - 1] == 0:
        reach -= 1
    for k in range(len(row)):
        i = row[k]
        if i < 0 or repeat[k]:
            continue
        for d in range(reach):
            j = recent[k, d]
            if j < 0 or j == i or weight[d] == 0:
                continue
            x = unit * weight[d]
            total[0] += 2 * x
            mass[i] += x
            mass[j] += x
            bump(i, j, x, url, count, used, draws)
            bump(j, i, x, url, count, used, draws)
            if not mark[i]:
                mark[i] = True
                touched[n] = i
                n += 1
            if not mark[j]:
                mark[j] = True
                touched[n] = j
                n += 1
    for t in range(n):
        mark[touched[t]] = False
    return n


@kernel
def add_visits(
    row: I32, recent: I32, repeat: Mask, unit: float, visits: F64, url: I32, count: F32, used: U8, draws: U64
) -> None:
    """Count each visit, and each step from the visit just before, in that direction."""
    for k in range(len(row)):
        if row[k] < 0 or repeat[k]:
            continue
        visits[row[k]] += unit
        if recent[k, 0] >= 0 and recent[k, 0] != row[k]:
            bump(recent[k, 0], row[k], unit, url, count, used, draws)


@kernel
def add_sums(
    one: I32, other: I32, weight: F32, unit: float, url: I32, count: F32, used: U8, mass: F64, total: F64, draws: U64
) -> None:
    """Add summed weights of pairs of rows, in visits, as `add_pairs` would have one by one; pairs with -1 are passed over."""
    for k in range(len(one)):
        i, j, x = one[k], other[k], unit * weight[k]
        if i >= 0 and j >= 0:
            total[0] += 2 * x
            mass[i] += x
            mass[j] += x
            bump(i, j, x, url, count, used, draws)
            bump(j, i, x, url, count, used, draws)


@kernel
def add_steps(before: I32, after: I32, weight: F32, unit: float, url: I32, count: F32, used: U8, draws: U64) -> None:
    """Add summed steps, in visits, as `add_visits` would have one by one; steps from or to -1 are passed over."""
    for k in range(len(before)):
        if before[k] >= 0 and after[k] >= 0:
            bump(before[k], after[k], unit * weight[k], url, count, used, draws)


@kernel
def leave_out(gone: Mask, rows: int, url: I32, count: F32, used: U8) -> None:
    """Take every slot that points to a row in `gone` out of the tables of the first `rows` rows."""
    for i in range(rows):
        kept = 0
        for q in range(np.int64(used[i])):
            if not gone[url[i, q]]:
                url[i, kept], count[i, kept] = url[i, q], count[i, q]
                kept += 1
        for q in range(kept, np.int64(used[i])):
            url[i, q] = 0
            count[i, q] = 0
        used[i] = kept


class Slots:
    """Weighted pointers from each row to others, `width` at most; grown by `reserve`."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.url: I32 = np.zeros((0, width), np.int32)
        self.count: F32 = np.zeros((0, width), np.float32)
        self.used: U8 = np.zeros(0, np.int32)

    def reserve(self, rows: int) -> None:
        """Have room for that many rows."""
        self.url, self.count, self.used = (longer(array, rows) for array in (self.url, self.count, self.used))

    def forget(self, rows: I32, gone: Mask, count: int) -> None:
        """Empty these rows, and every slot of the first `count` rows that points to one of them (`gone`)."""
        self.used[rows] = 0
        leave_out(gone, count, self.url, self.count, self.used)

    def packed(self, rows: int) -> dict[str, NDArray[np.generic]]:
        """Arrays for a snapshot; slots not in use are left out."""
        filled = self._filled(rows)
        return {"url": self.url[:rows][filled], "count": self.count[:rows][filled], "used": self.used[:rows].copy()}

    def unpack(self, state: dict[str, NDArray[np.generic]], rows: int) -> None:
        """Take over what `packed` gave. Raises ValueError where it points beyond the rows."""
        self.reserve(rows)
        self.used[:rows] = state["used"]
        if len(state["url"]) and not 0 <= int(state["url"].min()) <= int(state["url"].max()) < rows:
            raise ValueError("a slot points to a URL that is not in the vocabulary")
        filled = self._filled(rows)
        self.url[:rows][filled], self.count[:rows][filled] = state["url"], state["count"]

    def _filled(self, rows: int) -> Mask:
        filled: Mask = np.arange(self.width) < self.used[:rows, None]
        return filled


def longer(array: NDArray[Any], rows: int) -> NDArray[Any]:
    """The array with room for `rows` rows, zeros behind what it holds; itself where it is long enough."""
    if len(array) >= rows:
        return array
    grown = np.zeros((rows, *array.shape[1:]), array.dtype)
    grown[: len(array)] = array
    return grown


@kernel
def step_share(before: I32, after: I32, url: I32, count: F32, used: U8, seen: F32, total: F32) -> None:
    """Of each step before → after: how often it was seen, and how often anything was seen to follow `before`."""
    for t in range(len(before)):
        seen[t] = 0
        total[t] = 0
        i = before[t]
        if i < 0:
            continue
        for q in range(np.int64(used[i])):
            total[t] += count[i, q]
            if url[i, q] == after[t]:
                seen[t] = count[i, q]
