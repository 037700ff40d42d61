"""The loops behind "what next?": probabilities of the candidates (`models.next_candidates`), a step of learning.

One walk serves three readers (propose, judge, learn), so that what is learned is exactly what was proposed. All loops run
in fixed order and nothing is drawn: the same state and the same steps give the same bits.
"""

import numpy as np
from numpy.typing import NDArray

from models.compiled import kernel
from models.counts import F32, F64, I16, I32, Mask
from models.next_candidates import (
    BEST,
    BUCKETS,
    CONTEXTS,
    FEATURES,
    I8,
    NEVER,
    ONE,
    POPULAR,
    SHARED,
    TURNED,
    UNSEEN,
    WEIGHTS,
    Desk,
    Learned,
    Tables,
    describe,
    gather,
    seek,
)

I64 = NDArray[np.int64]
_RATE = 0.2  # AdaGrad's, of the weights
_TURN_RATE = 0.03  # of the matrices: plain gradient steps, since vectors keep moving; .1 is too much, .003 too slow
_MEMORY = 1 - 1e-5  # of AdaGrad's sums: about 100,000 steps, so that rates never die out on an endless stream
_TRIFLE = 1e-4  # errors of probability below this are not worth a gradient
_HALVE = 1e4  # steps of a bucket after which the share of steps to a candidate is halved: it follows the stream
_FADE = 0.7  # of a visit in the session's mean, for each visit after it


@kernel
def _add_turned(vector: I16, turn: F32, q: F32) -> None:
    """q += vector · turn, row after row of the matrix, but eight of them at a time: an eighth of the traffic with q."""
    dims, each = len(vector), np.float32(1 / ONE)
    whole = dims // 8 * 8
    for i in range(0, whole, 8):
        x0, x1 = np.float32(vector[i]) * each, np.float32(vector[i + 1]) * each
        x2, x3 = np.float32(vector[i + 2]) * each, np.float32(vector[i + 3]) * each
        x4, x5 = np.float32(vector[i + 4]) * each, np.float32(vector[i + 5]) * each
        x6, x7 = np.float32(vector[i + 6]) * each, np.float32(vector[i + 7]) * each
        for k in range(dims):
            s = (q[k] + x0 * turn[i, k]) + x1 * turn[i + 1, k]
            s = (s + x2 * turn[i + 2, k]) + x3 * turn[i + 3, k]
            s = (s + x4 * turn[i + 4, k]) + x5 * turn[i + 5, k]
            q[k] = (s + x6 * turn[i + 6, k]) + x7 * turn[i + 7, k]
    for i in range(whole, dims):
        x = np.float32(vector[i]) * each
        for k in range(dims):
            q[k] += x * turn[i, k]


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
                _add_turned(vectors[row], turn[z], q)
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
def _rank_popular(n: int, found: int, known: F32) -> int:
    """The same by popularity."""
    better, own = 0, known[found, POPULAR]
    for j in range(1, n):
        better += known[j, POPULAR] > own or (known[j, POPULAR] == own and j < found)
    return better + 1 if better < BEST else 0


@kernel
def walk(
    contexts: I32,
    order: I64,
    first: Mask,
    actual: I32,
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
    """For each context (rows, newest first, -1 where unknown) of `order`: propose, judge `actual`, learn from it if `teach`.

    proposed, share (n, k): best first, of the first n contexts. rank (≤ q - n, 3), of those after them: of `actual` by the
    blend, by popularity and by Markov, as `_rank`. probability (≤ q - n,): of `actual`. Where `first` is not set, the context
    is the one before.
    """
    n, left, within, bucket, before = 0, 0.0, 0.0, 0, 0
    context, inside = contexts[0], learned.inside[0]
    for s in range(len(order)):
        t = order[s]
        a = actual[t]
        if first[s]:
            context = contexts[t]
            n, left, left_before, earlier = gather(context, tables, popular, unit, d)
            describe(n, left, left_before, earlier, context, tables, unit, total, d)
            bucket = min(BUCKETS - 1, int(np.log2(left + 1)))
            w = d.weight
            for k in range(WEIGHTS):
                w[k] = learned.weight[bucket, k] + learned.weight[SHARED, k]
            scale, scale_never = _seek_by(context, w, learned.turn, tables.vectors, d)
            _softmax(n, scale, scale_never, w, tables.vectors, d)
            inside = learned.inside[bucket]
            within = (inside[0] + 1) / (inside[1] + 2)
        if t < len(proposed):
            if first[s]:
                _choose(n, within, d, proposed[t], share[t])
            else:
                proposed[t], share[t] = proposed[before], share[before]
            before = t
            continue
        found, visit = seek(a, d.table, d.candidate) if a >= 0 else -1, t - len(proposed)
        if len(rank):
            rank[visit, :] = 0
            if found > 0:
                rank[visit, 0] = _rank(n, found, d.p)
                rank[visit, 1] = _rank_popular(n, found, d.known)
                rank[visit, 2] = _rank(n, found, d.follow)
                probability[visit] = within * d.p[found]
            else:
                visits = tables.visits[a] / unit if a >= 0 else 0.0
                probability[visit] = (1 - within) * (visits + UNSEEN) / total
        if teach:
            inside[1] += 1
            if found > 0:
                inside[0] += 1
                _teach(n, found, context, bucket, learned, tables.vectors, d)
            if inside[1] > _HALVE:
                inside *= 0.5
