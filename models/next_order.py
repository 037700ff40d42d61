"""Which steps "what next?" walks (`models.next_kernels`), and in which order: of those to learn a share, and each context once.

The visits of a session follow each other in a batch, and where one asks what is next, the other asks how well that was
foreseen: on the bundled log two contexts of five have been met in the same batch before.
"""

import numpy as np
from numpy.typing import NDArray

from models.compiled import kernel, mix
from models.counts import I32, Mask

I64 = NDArray[np.int64]


@kernel
def thin(wanted: Mask, taken: int, young: int, every: int) -> int:
    """Of the wanted steps, counted on from `taken`, keep the first `young` and then one in `every`, chosen by a hash of the
    count: every k-th would fall into step with sessions. Returns the count after them."""
    for t in range(len(wanted)):
        if wanted[t]:
            taken += 1
            wanted[t] = taken <= young or mix(np.uint64(taken)) % np.uint64(every) == 0
    return taken


@kernel
def _same(one: I32, other: I32) -> bool:
    same = True
    for z in range(len(one)):
        same = same and one[z] == other[z]
    return same


@kernel
def together(contexts: I32, order: I64, first: Mask) -> None:
    """Put those of `order` that have the same context behind the first of them; first (≥ q,): whether a place of the order has
    another context than the one before it. Later ones of the same context stay in their order."""
    q, places = len(order), 16
    while places < 2 * q:
        places *= 2
    table, following, last = np.full(places, -1, np.int64), np.full(q, -1, np.int64), np.empty(q, np.int64)
    leads = np.empty(q, np.bool_)
    for s in range(q):
        context, h = contexts[order[s]], np.uint64(0)
        for z in range(len(context)):
            h = h * np.uint64(0x9E3779B97F4A7C15) + np.uint64(context[z] + 2)
        at = np.int64(mix(h) & np.uint64(places - 1))
        while table[at] >= 0 and not _same(contexts[order[table[at]]], context):
            at = (at + 1) & (places - 1)
        leads[s], last[s] = table[at] < 0, s
        if leads[s]:
            table[at] = s
        else:
            following[last[table[at]]] = s
            last[table[at]] = s
    asked, filled = order.copy(), 0
    for s in range(q):
        if leads[s]:
            then = np.int64(s)
            while then >= 0:
                order[filled], first[filled] = asked[then], then == s
                filled += 1
                then = following[then]
