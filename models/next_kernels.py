"""The loops behind "what next?": candidates of a step, what is known of each, their probabilities, a step of learning.

One walk serves three readers (propose, judge, learn), so that what is learned is exactly what was proposed. All loops run
in fixed order and nothing is drawn: the same state and the same steps give the same bits.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.compiled import kernel, mix

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I8 = NDArray[np.int8]
I16 = NDArray[np.int16]
I32 = NDArray[np.int32]
U8 = NDArray[np.uint8]
Mask = NDArray[np.bool_]

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
_FADE = 0.7  # of a visit in the session's mean, for each visit after it

_SMOOTH = 2.0  # visits that popularity weighs against what followed the current URL; measured, flat from 1 to 4
_LIFT = 5.0  # and against what followed the URL before, and against its neighbours
_BESIDE = 50.0  # a neighbour's share of the mass is trusted as if it came from that many visits
_UNSEEN = 0.1  # visits added to every URL's, so that no popularity is zero
_RATE = 0.2  # AdaGrad's, of the weights
_TURN_RATE = 0.03  # of the matrices: plain gradient steps, since vectors keep moving; .1 is too much, .003 too slow
_MEMORY = 1 - 1e-5  # of AdaGrad's sums: about 100,000 steps, so that rates never die out on an endless stream
_TRIFLE = 1e-4  # errors of probability below this are not worth a gradient
_HALVE = 1e4  # steps of a bucket after which the share of steps to a candidate is halved: it follows the stream


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
def _seek(row: int, table: I32, candidate: I32) -> int:
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
    at = _seek(row, table, candidate)
    if at >= 0:
        return at, n
    if n == ROOM:
        return -1, n
    table[-1 - at] = n
    candidate[n] = row
    known[n, :] = 0
    return n, n + 1


@kernel
def _gather(context: I32, t: Tables, popular: I32, unit: float, d: Desk) -> tuple[int, float, float, int]:
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
                at = _seek(t.near_url[here, q], table, candidate)
            if at > 0:
                known[at, BESIDE] = t.near_count[here, q] / t.mass[here]
    if before >= 0:
        for q in range(np.int64(t.after_used[before])):
            x = t.after_count[before, q] / unit
            left_before += x
            if q < _SKIPS:
                at, n = _place(t.after_url[before, q], n, table, candidate, known)
            else:
                at = _seek(t.after_url[before, q], table, candidate)
            if at > 0:
                known[at, SKIP] = x
        # Neighbours of the URL before are looked up, not added: fewer candidates, and as many hits.
        if t.mass[before] > 0:
            for q in range(np.int64(t.near_used[before])):
                at = _seek(t.near_url[before, q], table, candidate)
                if at > 0:
                    known[at, BESIDE_BEFORE] = t.near_count[before, q] / t.mass[before]
    return n, left, left_before, earlier


@kernel
def _lift(share: float, popularity: float) -> float:
    """log of a share of neighbours over popularity, smoothed towards 0."""
    return float(np.log(np.float32((share * _BESIDE / popularity + _LIFT) / (_BESIDE + _LIFT))))


@kernel
def _describe(
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
        popularity = (d.p[j] / unit + _UNSEEN) / total
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


@kernel
def _seek_by(context: I32, w: F64, turn: F32, vectors: I16, d: Desk) -> tuple[float, float]:
    """Make the two queries, in fixed point; returns what their dot products with a vector are to be multiplied by."""
    dims, each = vectors.shape[1], np.float32(1 / ONE)
    q, mean = d.query[0], d.mean
    q[:] = 0
    mean[:] = 0
    fade = np.float32(1)
    for z in range(len(context)):
        row = context[z]
        if row >= 0:
            for k in range(dims):
                mean[k] += fade * np.float32(vectors[row, k])
            if z < CONTEXTS - 1:
                x = np.float32(w[FEATURES + z]) * each
                for k in range(dims):
                    q[k] += x * np.float32(vectors[row, k])
            if z < TURNED:
                for i in range(dims):
                    x = np.float32(vectors[row, i]) * each
                    for k in range(dims):
                        q[k] += x * turn[z, i, k]
        fade *= np.float32(_FADE)
    length = np.float32(0)
    for k in range(dims):
        length += mean[k] * mean[k]
    scale = np.float32(1) / np.sqrt(length) if length > 0 else np.float32(0)
    x = np.float32(w[WEIGHTS - 2])
    for k in range(dims):
        mean[k] *= scale
        q[k] += x * mean[k]
        d.query[1, k] = q[k]
    if context[0] >= 0:
        x = np.float32(w[WEIGHTS - 1]) * each
        for k in range(dims):
            d.query[1, k] += x * np.float32(vectors[context[0], k])
    return _fix(d.query[0], d.fixed[0]), _fix(d.query[1], d.fixed[1])


@kernel
def _fix(query: F32, out: I16) -> float:
    """Write a query in fixed point, of length one; returns what makes a dot product of two such that of the query."""
    length = np.float32(0)
    for k in range(len(query)):
        length += query[k] * query[k]
    length = np.sqrt(length)
    if not length > 1e-12:
        out[:] = 0
        return 0.0
    scale = np.float32(ONE) / length
    for k in range(len(query)):
        out[k] = np.int16(np.rint(query[k] * scale))
    return float(length) / (ONE * ONE)


@kernel
def _dot(vector: I16, query: I16) -> int:
    """Integers may be summed in any order, so this is vectorised, and exact. Of two of length one: about 2**30 at most."""
    s = np.int32(0)
    for k in range(len(query)):
        s = np.int32(s + np.int32(np.int32(vector[k]) * np.int32(query[k])))
    return int(s)


@kernel
def _softmax(n: int, scale: float, scale_never: float, w: F64, vectors: I16, d: Desk) -> None:
    """p[1:n]: probabilities of the candidates, given that it is one of them."""
    for j in range(1, n):  # on its own: a processor then fetches many vectors at once (at 1M URLs half the time)
        v = vectors[d.candidate[j]]
        d.p[j] = scale_never * _dot(v, d.fixed[1]) if d.known[j, NEVER] > 0 else scale * _dot(v, d.fixed[0])
    best = -np.inf
    for j in range(1, n):
        f = d.known[j]
        s, other = d.p[j], 0.0
        for k in range(0, FEATURES, 2):  # two sums, which a processor adds side by side
            s += w[k] * f[k]
            other += w[k + 1] * f[k + 1]
        s += other
        d.p[j] = s
        best = max(best, s)
    z = 0.0
    for j in range(1, n):
        d.p[j] = np.exp(np.float32(d.p[j] - best))
        z += d.p[j]
    for j in range(1, n):
        d.p[j] /= z


@kernel
def _teach(n: int, found: int, context: I32, bucket: int, learned: Learned, vectors: I16, d: Desk) -> None:
    """One step up the gradient of log p[found]: AdaGrad for the weights (Duchi, Hazan, Singer 2011)."""
    dims, each, gradient = vectors.shape[1], np.float32(1 / ONE), d.gradient
    gradient[:] = 0
    d.rest[:] = 0
    for j in range(1, n):
        error = d.p[j] - (1.0 if j == found else 0.0)
        if abs(error) < _TRIFLE:
            continue
        for k in range(FEATURES):
            gradient[k] += error * d.known[j, k]
        x, row = np.float32(error) * each, d.candidate[j]
        rest = d.rest[1 if d.known[j, NEVER] > 0 else 0]
        for k in range(dims):
            rest[k] += x * np.float32(vectors[row, k])
    here = context[0]
    for k in range(dims):
        if here >= 0:
            gradient[WEIGHTS - 1] += d.rest[1, k] * np.float32(vectors[here, k]) * each
        d.rest[0, k] += d.rest[1, k]
        gradient[WEIGHTS - 2] += d.rest[0, k] * d.mean[k]
    for z in range(min(CONTEXTS - 1, len(context))):
        row = context[z]
        if row < 0:
            continue
        x = np.float32(0)
        for k in range(dims):
            x += d.rest[0, k] * np.float32(vectors[row, k])
        gradient[FEATURES + z] = x * each
        if z < TURNED:
            for i in range(dims):
                x = np.float32(vectors[row, i]) * each * np.float32(_TURN_RATE)
                for k in range(dims):
                    learned.turn[z, i, k] -= x * d.rest[0, k]
    for row in (bucket, SHARED):
        w, square = learned.weight[row], learned.square[row]
        for k in range(WEIGHTS):
            square[k] = _MEMORY * square[k] + gradient[k] * gradient[k]
            w[k] -= _RATE * gradient[k] / np.sqrt(square[k])


@kernel
def _choose(n: int, within: float, d: Desk, row: I32, share: F32) -> None:
    """The best candidates in order, by insertion; equal ones in the order in which they were found."""
    row[:] = -1
    share[:] = 0
    room = len(row)
    for j in range(1, n):
        x = np.float32(within * d.p[j])
        if x <= share[room - 1]:
            continue
        at = room - 1
        while at > 0 and share[at - 1] < x:
            share[at] = share[at - 1]
            row[at] = row[at - 1]
            at -= 1
        share[at] = x
        row[at] = d.candidate[j]


@kernel
def _rank(n: int, found: int, score: F64) -> int:
    """1 for the best; 0 beyond BEST. Ties go to those found before it, for it must not gain from them."""
    better = 0
    for j in range(1, n):
        better += score[j] > score[found] or (score[j] == score[found] and j < found)
    return better + 1 if better < BEST else 0


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
def walk(
    contexts: I32,
    actual: I32,
    wanted: Mask,
    teach: bool,
    tables: Tables,
    popular: I32,
    unit: float,
    total: float,
    learned: Learned,
    d: Desk,
    proposed: I32,
    share: F32,
    rank: I8,
    probability: F32,
) -> None:
    """For each wanted context (rows, newest first, -1 where unknown): propose, judge `actual`, learn from it if `teach`.

    proposed, share (n, k): best first. rank (n, 3): of `actual` by the blend, by popularity and by Markov, as `_rank`;
    -1 where not wanted. probability (n,): of `actual`. Of length 0 where they are not asked for.
    """
    for t in range(len(contexts)):
        if len(proposed):
            proposed[t, :] = -1
            share[t, :] = 0
        if len(rank):
            rank[t, :] = -1
            probability[t] = 0
        if not wanted[t]:
            continue
        context, a = contexts[t], actual[t]
        n, left, left_before, earlier = _gather(context, tables, popular, unit, d)
        _describe(n, left, left_before, earlier, context, tables, unit, total, d)
        bucket = min(BUCKETS - 1, int(np.log2(left + 1)))
        w = d.weight
        for k in range(WEIGHTS):
            w[k] = learned.weight[bucket, k] + learned.weight[SHARED, k]
        scale, scale_never = _seek_by(context, w, learned.turn, tables.vectors, d)
        _softmax(n, scale, scale_never, w, tables.vectors, d)
        inside = learned.inside[bucket]
        within = (inside[0] + 1) / (inside[1] + 2)
        found = _seek(a, d.table, d.candidate) if a >= 0 else -1
        if len(proposed):
            _choose(n, within, d, proposed[t], share[t])
        if len(rank):
            rank[t, :] = 0
            if found > 0:
                rank[t, 0] = _rank(n, found, d.p)
                rank[t, 2] = _rank(n, found, d.follow)
                probability[t] = within * d.p[found]
                for j in range(1, n):
                    d.follow[j] = d.known[j, POPULAR]
                rank[t, 1] = _rank(n, found, d.follow)
            else:
                visits = tables.visits[a] / unit if a >= 0 else 0.0
                probability[t] = (1 - within) * (visits + _UNSEEN) / total
        if teach:
            inside[1] += 1
            if found > 0:
                inside[0] += 1
                _teach(n, found, context, bucket, learned, tables.vectors, d)
            if inside[1] > _HALVE:
                inside *= 0.5
