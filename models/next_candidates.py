"""Candidates of a step, and what is known of each: the first half of "what next?" (`models.next_kernels` has the second).

Candidates are what followed the current URL, its neighbours, what followed the URL before, URLs of the session, and the
most popular: about eighty, however many URLs there are. Each is described by the numbers listed here, whose weights are
learned. All loops run in fixed order and nothing is drawn.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.compiled import kernel
from models.counts import F32, F64, I16, I32, U8

I8 = NDArray[np.int8]

ONE = 32767.0  # of a coordinate of the core's vectors, which are of length one in fixed point
BEST = 10  # ranks beyond this are not told apart
ROOM = 256  # candidates of a step at most; an encyclopaedia has 80 on average
_ENOUGH = 64  # candidates after which neighbours are only looked up: as many hits as with all of them, a fifth faster
_SKIPS = 8  # URLs that followed the one before, likewise; the first ones are those that followed early, so often
_TABLE = 1024  # places to find a candidate by its row: a power of two, four times ROOM, so that chains stay short

# Weights are learned apart for each bucket of log2(how often the current URL was left): a rare URL leans on vectors and
# popularity, a frequent one on its counts. To each bucket's weights come those shared by all, which learn sooner: hits
# .6352 instead of .6339 on Wikispeedia; with the shared ones alone .6350, but a shop's fall from .6720 to .6578.
BUCKETS = 12
SHARED = BUCKETS

# What is known of a candidate, one number each.
MARKOV = 0  # log of its share among what followed the current URL, smoothed towards popularity
POPULAR = 1  # log of its popularity
SKIP = 2  # log lift among what followed the URL before
BESIDE = 3  # log lift among the neighbours of the current URL, in either direction
BESIDE_BEFORE = 4  # and of the URL before
COUNT = 5  # log(1 + how often it followed)
RARELY = 6  # 1 / (1 + how often it followed)
NEVER = 7  # it never followed; the next two say how much more the others count then
NEVER_BESIDE = 8
NEVER_POPULAR = 9
LATE_POPULAR = 10  # popularity by how deep in the session it is: people go to hubs first
BACK = 11  # it is the URL before the current one: people go back, or never do
BACK_TWO = 12
BACK_MORE = 13  # it was visited earlier in the session
FEATURES = 14

# Vectors by which the next URL is sought: of the current URL, the one before, the one before that, and the session's mean;
# each has a weight per bucket, then there is one for the current URL and candidates that never followed it.
CONTEXTS = 4
TURNED = 3  # of those, how many are also turned by a learned matrix, which tells "after" from "beside"
WEIGHTS = FEATURES + CONTEXTS + 1

_SMOOTH = 2.0  # visits that popularity weighs against what followed the current URL; measured, flat from 1 to 4
_LIFT = 5.0  # and against what followed the URL before, and against its neighbours
_BESIDE = 50.0  # a neighbour's share of the mass is trusted as if it came from that many visits
UNSEEN = 0.1  # visits added to every URL's, so that no popularity is zero


class Tables(NamedTuple):
    """What URL2vec counted and derived, by row."""

    vectors: I16  # (rows, dims)
    near_url: I32  # (rows, slots)
    near_count: F32
    near_used: U8  # (rows,)
    after_url: I32
    after_count: F32
    after_used: U8
    mass: F64
    visits: F64


class Learned(NamedTuple):
    """What the blend learned."""

    weight: F64  # (BUCKETS + 1, WEIGHTS), the last row shared
    square: F64  # (BUCKETS + 1, WEIGHTS), AdaGrad's sums
    turn: F32  # (TURNED, dims, dims)
    inside: F64  # (BUCKETS, 2): steps to a candidate, steps


class Desk(NamedTuple):
    """Room to work in: of a walk, not of the state."""

    table: I32
    candidate: I32
    known: F32  # (ROOM, FEATURES)
    follow: F64  # (ROOM,) how Markov alone would order them
    p: F64  # (ROOM,)
    query: F32  # (2, dims), for candidates that followed before, and that never did
    fixed: I16  # (2, dims)
    mean: F32
    rest: F32  # (2, dims)
    gradient: F64
    weight: F64  # (WEIGHTS,) of the step at hand


def desk(dims: int) -> Desk:
    """An empty desk."""
    return Desk(
        np.empty(_TABLE, np.int32), np.empty(ROOM, np.int32), np.empty((ROOM, FEATURES), np.float32),
        np.empty(ROOM), np.empty(ROOM), np.empty((2, dims), np.float32), np.empty((2, dims), np.int16),
        np.empty(dims, np.float32), np.empty((2, dims), np.float32), np.empty(WEIGHTS), np.empty(WEIGHTS),
    )  # fmt: skip


@kernel
def seek(row: int, table: I32, candidate: I32) -> int:
    """Where a row stands among the candidates; where not, the free place of the table as −1 − place."""
    at = (row * 40503 >> 4) & (_TABLE - 1)
    while table[at] >= 0:
        if candidate[table[at]] == row:
            return int(table[at])
        at = (at + 1) & (_TABLE - 1)
    return -1 - at


@kernel
def _place(row: int, n: int, table: I32, candidate: I32, known: F32) -> tuple[int, int]:
    """Where a row stands, itself appended where it is new and there is room (else −1); and how many there are then."""
    at = seek(row, table, candidate)
    if at >= 0:
        return at, n
    if n == ROOM:
        return -1, n
    table[-1 - at] = n
    candidate[n] = row
    known[n, :] = 0
    return n, n + 1


@kernel
def gather(context: I32, t: Tables, popular: I32, unit: float, d: Desk) -> tuple[int, float, float, int]:
    """Collect candidates with their raw counts. Returns how many, how often the current URL and the one before were left,
    and how many earlier visits there are. Place 0 is the current URL itself, no candidate: a repeat is no step."""
    table, candidate, known = d.table, d.candidate, d.known
    table[:] = -1
    here, before = context[0], context[1] if len(context) > 1 else -1
    _, n = _place(here, 0, table, candidate, known)  # where it is unknown, -1, which no row is
    left, left_before, earlier = 0.0, 0.0, 0
    if here >= 0:
        for q in range(np.int64(t.after_used[here])):
            x = t.after_count[here, q] / unit
            left += x
            at, n = _place(t.after_url[here, q], n, table, candidate, known)
            if at > 0:
                known[at, COUNT] = x
    for z in range(1, len(context)):
        if context[z] >= 0:
            earlier += 1
            at, n = _place(context[z], n, table, candidate, known)
            if at > 0:
                known[at, min(BACK + z - 1, BACK_MORE)] = 1
    for q in range(len(popular)):
        if t.visits[popular[q]] > 0:
            _, n = _place(popular[q], n, table, candidate, known)
    if here >= 0 and t.mass[here] > 0:
        for q in range(np.int64(t.near_used[here])):
            if n < _ENOUGH:
                at, n = _place(t.near_url[here, q], n, table, candidate, known)
            else:
                at = seek(t.near_url[here, q], table, candidate)
            if at > 0:
                known[at, BESIDE] = t.near_count[here, q] / t.mass[here]
    if before >= 0:
        for q in range(np.int64(t.after_used[before])):
            x = t.after_count[before, q] / unit
            left_before += x
            if q < _SKIPS:
                at, n = _place(t.after_url[before, q], n, table, candidate, known)
            else:
                at = seek(t.after_url[before, q], table, candidate)
            if at > 0:
                known[at, SKIP] = x
        # Neighbours of the URL before are looked up, not added: fewer candidates, and as many hits.
        if t.mass[before] > 0:
            for q in range(np.int64(t.near_used[before])):
                at = seek(t.near_url[before, q], table, candidate)
                if at > 0:
                    known[at, BESIDE_BEFORE] = t.near_count[before, q] / t.mass[before]
    return n, left, left_before, earlier


@kernel
def _lift(share: float, popularity: float) -> float:
    """log of a share of neighbours over popularity, smoothed towards 0."""
    return float(np.log(np.float32((share * _BESIDE / popularity + _LIFT) / (_BESIDE + _LIFT))))


@kernel
def describe(
    n: int, left: float, left_before: float, earlier: int, context: I32, t: Tables, unit: float, total: float, d: Desk
) -> None:
    """Turn raw counts into what is known of each candidate; only the few that are not zero cost a logarithm."""
    here, before = context[0] >= 0, len(context) > 1 and context[1] >= 0
    no_step, no_skip = np.log(_SMOOTH / (left + _SMOOTH)), np.log(_LIFT / (left_before + _LIFT))
    no_lift = _lift(0.0, 1.0)
    for j in range(1, n):  # likewise on its own
        d.p[j] = t.visits[d.candidate[j]]
    for j in range(1, n):
        f = d.known[j]
        popularity = (d.p[j] / unit + UNSEEN) / total
        x = np.float64(f[COUNT])
        log_popularity = np.log(np.float32(popularity))
        d.follow[j] = x + _SMOOTH * popularity
        f[POPULAR] = log_popularity
        f[LATE_POPULAR] = log_popularity * earlier * 0.1
        f[RARELY] = 1 / (1 + x)
        if before:
            skip = np.float64(f[SKIP])
            f[SKIP] = np.log(np.float32((skip / popularity + _LIFT) / (left_before + _LIFT))) if skip > 0 else no_skip
            beside = np.float64(f[BESIDE_BEFORE])
            f[BESIDE_BEFORE] = _lift(beside, popularity) if beside > 0 else no_lift
        if here:
            beside = np.float64(f[BESIDE])
            f[BESIDE] = _lift(beside, popularity) if beside > 0 else no_lift
        if x > 0:
            f[MARKOV] = np.log(np.float32(d.follow[j] / (left + _SMOOTH)))
            f[COUNT] = np.log(np.float32(1 + x))
        else:
            f[MARKOV] = log_popularity + no_step
            f[NEVER] = 1
            f[NEVER_BESIDE] = f[BESIDE]
            f[NEVER_POPULAR] = f[POPULAR]
