"""Loops of the memory of labelled sessions: embedding a session, the triplet step, and the vote of what is remembered.

A session's vector is the normalised sum of one row for each of its pages and levels; a level or page lives at its hash
& (rows - 1), as in `models.hashed`. Frequent rows weigh little in the sum (Arora, Liang, Ma 2017, "a simple but
tough-to-beat baseline"), so that what all sessions share does not make them alike. Remembered sessions stand in two
rings a task, one a label: `side` is the label.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.compiled import kernel, mix
from models.features import FIXED, PAGES

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
U32 = NDArray[np.uint32]

WIDTH = 16  # numbers of a vector; 32 ranked no better on Wikispeedia, 8 worse
_URL, _STEP = PAGES + FIXED.index("url"), PAGES + FIXED.index("step")  # what names the URL of the moment
ITEMS = 64  # pages and levels of a row at most
LANES = 16  # partial sums of the vote: the order of a sum is part of its bits, and one chain of additions is slow

COMMON = 0.01  # share of the examples at which a level weighs half
EVERYWHERE = 0.3  # share from which it is left out: it tells no two sessions apart, and would weigh .03 at most
MARGIN = 0.6
RATE = 0.3  # of row-wise AdaGrad
FIRST_SQUARE = 1e-3  # so that the first step of a row is no leap
FADE = 0.9995  # of a row's squared gradients a step: on an endless stream the steps must not end
BOUND = 8.0  # of a number in the table: a row's length can only grow, and is not to grow for ever
CANDIDATES = 8  # remembered sessions of each label among which the nearest one is looked for
TRIPLETS = 2  # an example; one ranks .01 worse at two thirds of the cost, three no better
LEFT_OUT = 256  # of 1024 anchors go without their URL of the moment: so their company learns where it leads
TEMPER = 0.6  # neighbours do not vote independently: taken at their word they claim too much (log-loss .53 for .50)
TEACH_EVERY = 2  # examples; to be taught by all of them would cost as much as everything else in the classifier
ENOUGH = 16  # sessions of each label from which there is something to say
HALVE_AFTER = float(1 << 20)  # examples after which the counts of levels are halved: old ones are forgotten
PRIOR_FADE = 1 - 1e-4  # of the label's rate, an example


@kernel
def first_rows(table: F32) -> None:
    """Fill an untaught table: numbers between -1/16 and 1/16 that depend on their place alone."""
    for r in range(table.shape[0]):
        for d in range(table.shape[1]):
            h = mix(np.uint64(r * table.shape[1] + d))
            table[r, d] = (np.float32(h >> np.uint64(40)) / np.float32(1 << 23) - np.float32(1)) / np.float32(16)


@kernel
def _add_rows(table: F32, at: I64, share: F32, n: int, out: F32) -> None:
    """out += Σ share · row, one after the other, but four of them at a time: a quarter of the traffic with out."""
    for i in range(0, n // 4 * 4, 4):
        r0, r1, r2, r3 = at[i], at[i + 1], at[i + 2], at[i + 3]
        s0, s1, s2, s3 = share[i], share[i + 1], share[i + 2], share[i + 3]
        for d in range(WIDTH):
            s = (out[d] + s0 * table[r0, d]) + s1 * table[r1, d]
            out[d] = (s + s2 * table[r2, d]) + s3 * table[r3, d]
    for i in range(n // 4 * 4, n):
        for d in range(WIDTH):
            out[d] += share[i] * table[at[i], d]


@kernel
def _embed(
    pages: I32, levels: I32, without_url: bool, table: F32, seen: F32, examples: float, out: F32, at: I64, share: F32
) -> Any:
    """out (WIDTH,): the session's vector, zeros where nothing is known. Returns how many rows it is made of, and the
    length of their sum; at, share: which rows, and what each weighs."""
    mask, n, of_all = table.shape[0] - 1, 0, np.float32(1 / max(examples, 1.0))
    out[:] = 0
    for k in range(len(pages) + len(levels)):
        x = pages[k] if k < len(pages) else levels[k - len(pages)]
        if x == 0 or (without_url and k in (0, _URL, _STEP)):
            continue
        r = x & mask
        often = seen[r] * of_all
        if often > EVERYWHERE:
            continue
        at[n], share[n] = r, np.float32(COMMON) / (np.float32(COMMON) + often)
        n += 1
    _add_rows(table, at, share, n, out)
    square = np.float32(0)
    for d in range(WIDTH):
        square += out[d] * out[d]
    if square < 1e-12:
        out[:] = 0
        return 0, np.float32(0)
    length = np.float32(np.sqrt(square))
    for d in range(WIDTH):
        out[d] /= length
    return n, length


@kernel
def embed(pages: I32, levels: I32, table: F32, seen: F32, examples: float, out: F32) -> None:
    """out (B, WIDTH): vectors of the sessions in B rows."""
    at, share = np.empty(ITEMS, np.int64), np.empty(ITEMS, np.float32)
    for b in range(len(pages)):
        _embed(pages[b], levels[b], False, table, seen, examples, out[b], at, share)


@kernel
def _descend(
    vector: F32, length: float, n: int, at: I64, share: F32, gradient: F32, table: F32, squares: F32, scratch: F32
) -> None:
    """Move the rows of a session against the gradient at its vector, back through the normalisation. AdaGrad a row: one
    that is seldom met takes large steps."""
    along, square = np.float32(0), np.float32(0)
    for d in range(WIDTH):
        along += gradient[d] * vector[d]
    for d in range(WIDTH):
        scratch[d] = (gradient[d] - along * vector[d]) / length
        square += scratch[d] * scratch[d]
    if not 0 < square < 1e30:
        return
    for i in range(n):
        r = at[i]
        squares[r] = max(squares[r], FIRST_SQUARE) * FADE + share[i] * share[i] * square / WIDTH
        step = np.float32(RATE * share[i] / np.sqrt(squares[r]))
        for d in range(WIDTH):
            table[r, d] = min(max(table[r, d] - step * scratch[d], -BOUND), BOUND)


@kernel
def _nearest_of_some(h: np.uint64, vector: F32, session: np.uint32, vectors: F32, sessions: U32, filled: int) -> Any:
    """Among some entries of a ring, the nearest one of another session; -1 where there is none. And the next h."""
    best, best_similarity = np.int64(-1), np.float32(-2)
    for _ in range(CANDIDATES):
        h = mix(h)
        j = np.int64(h % np.uint64(filled))
        if sessions[j] == session and session != 0:
            continue
        similarity = np.float32(0)
        for d in range(WIDTH):
            similarity += vector[d] * vectors[j, d]
        if similarity > best_similarity:
            best, best_similarity = j, similarity
    return best, h


@kernel
def learn(
    pages: I32, levels: I32, session: U32, label: F32, weight: F32, chance: F32, table: F32, squares: F32, seen: F32,
    totals: F64, clock: I64, count: I64, vectors: F32, sessions: U32, visits: I32, born: I64, chances: F32,
    kept_pages: I32, kept_levels: I32,
) -> None:  # fmt: skip
    """Examples of one task, one after the other: train the rows by triplets, then remember. In place.

    totals (3,): faded weight of positives, of all, and examples counted in `seen`; clock (1,): examples so far; count
    (2,): sessions ever put into each ring; the rest is a ring a label, (2, M, …).
    """
    room, mask = vectors.shape[1], table.shape[0] - 1
    v, p, n, g = (np.empty(WIDTH, np.float32), np.empty(WIDTH, np.float32),
                  np.empty(WIDTH, np.float32), np.empty(WIDTH, np.float32))  # fmt: skip
    scratch = np.empty(WIDTH, np.float32)
    at_v, at_p, at_n = np.empty(ITEMS, np.int64), np.empty(ITEMS, np.int64), np.empty(ITEMS, np.int64)
    w_v, w_p, w_n = np.empty(ITEMS, np.float32), np.empty(ITEMS, np.float32), np.empty(ITEMS, np.float32)
    for b in range(len(pages)):
        if not 0 < weight[b] < 1e6:
            continue
        y, now = (1 if label[b] > 0.5 else 0), clock[0]
        clock[0] += 1
        h = mix(np.uint64(now))
        totals[0] = totals[0] * PRIOR_FADE + weight[b] * y
        totals[1] = totals[1] * PRIOR_FADE + weight[b]
        totals[2] += 1
        for k in range(pages.shape[1]):
            if pages[b, k] != 0:
                seen[pages[b, k] & mask] += 1
        for k in range(levels.shape[1]):
            if levels[b, k] != 0:
                seen[levels[b, k] & mask] += 1
        if totals[2] >= HALVE_AFTER:
            totals[2] *= 0.5
            for r in range(len(seen)):
                seen[r] *= np.float32(0.5)
        same, other = min(count[y], room), min(count[1 - y], room)
        teaches = now % TEACH_EVERY == 0
        for _ in range(TRIPLETS if teaches and min(same, other) >= ENOUGH else 0):
            h = mix(h)
            bare = bool((h & np.uint64(1023)) < np.uint64(LEFT_OUT))
            rows, length = _embed(pages[b], levels[b], bare, table, seen, totals[2], v, at_v, w_v)
            if rows == 0:
                continue
            jp, h = _nearest_of_some(h, v, session[b], vectors[y], sessions[y], same)
            jn, h = _nearest_of_some(h, v, session[b], vectors[1 - y], sessions[1 - y], other)
            if jp < 0 or jn < 0:
                continue
            rows_p, length_p = _embed(
                kept_pages[y, jp], kept_levels[y, jp], False, table, seen, totals[2], p, at_p, w_p
            )
            rows_n, length_n = _embed(
                kept_pages[1 - y, jn], kept_levels[1 - y, jn], False, table, seen, totals[2], n, at_n, w_n
            )
            vectors[y, jp], vectors[1 - y, jn] = p, n
            short = np.float32(MARGIN)
            for d in range(WIDTH):
                short += v[d] * (n[d] - p[d])
            if rows_p == 0 or rows_n == 0 or short <= 0:
                continue
            for d in range(WIDTH):
                g[d] = weight[b] * (n[d] - p[d])
            _descend(v, length, rows, at_v, w_v, g, table, squares, scratch)
            for d in range(WIDTH):
                g[d] = -weight[b] * v[d]
            _descend(p, length_p, rows_p, at_p, w_p, g, table, squares, scratch)
            for d in range(WIDTH):
                g[d] = weight[b] * v[d]
            _descend(n, length_n, rows_n, at_n, w_n, g, table, squares, scratch)
        for side in range(2):  # the rows have moved: one of each ring after the other gets its vector anew
            if teaches and count[side] > 0:
                j = now // TEACH_EVERY % min(count[side], room)
                _embed(
                    kept_pages[side, j],
                    kept_levels[side, j],
                    False,
                    table,
                    seen,
                    totals[2],
                    vectors[side, j],
                    at_p,
                    w_p,
                )
        # A session has one place in a ring. Which of its visits stands there: each as likely as any other.
        slot = np.int64(-1)
        for j in range(room):
            slot = max(slot, np.int64(j if sessions[y, j] == session[b] and visits[y, j] > 0 else -1))
        if slot >= 0 and session[b] != 0:
            visits[y, slot] = min(visits[y, slot] + 1, 1 << 20)
            if mix(h) % np.uint64(visits[y, slot]) != 0:
                continue
        else:
            slot = count[y] % room
            count[y] += 1
            visits[y, slot] = 1
        _embed(pages[b], levels[b], False, table, seen, totals[2], vectors[y, slot], at_p, w_p)
        kept_pages[y, slot], kept_levels[y, slot] = pages[b], levels[b]
        sessions[y, slot], born[y, slot], chances[y, slot] = session[b], now, chance[b]


@kernel
def vote(asked: F32, session: U32, columns: F32, sessions: U32, filled: I64, out: F32) -> None:
    """out (B,): log of how much nearer the remembered positives lie than the negatives, each kind by its own number.

    columns (2, WIDTH, M): the rings' vectors, places side by side, so that loops over places need no gathering. An entry
    votes with its cosine to the eighth, and with nothing where it is of the same session. One vote of a perfect likeness
    is added to either side.
    """
    room = columns.shape[2]
    near, lanes, mass = np.empty(room, np.float32), np.empty(LANES, np.float32), np.empty(2, np.float64)
    half = 0.5 * (filled[0] + filled[1])
    for b in range(len(asked)):
        known = session[b] != 0
        for side in range(2):
            near[:] = 0
            for d in range(0, WIDTH, 4):
                x0, x1, x2, x3 = asked[b, d], asked[b, d + 1], asked[b, d + 2], asked[b, d + 3]
                c0, c1, c2, c3 = (columns[side, d], columns[side, d + 1],
                                  columns[side, d + 2], columns[side, d + 3])  # fmt: skip
                for m in range(room):
                    near[m] += (x0 * c0[m] + x1 * c1[m]) + (x2 * c2[m] + x3 * c3[m])
            for m in range(room):
                s = max(near[m], np.float32(0))
                s = np.float32(0) if known and sessions[side, m] == session[b] else s
                s *= s
                s *= s
                near[m] = s * s
            lanes[:] = 0
            for m in range(0, room, LANES):
                for k in range(LANES):
                    lanes[k] += near[m + k]
            mass[side] = 0
            for k in range(LANES):
                mass[side] += lanes[k]
        out[b] = TEMPER * np.log((mass[1] / filled[1] + 1 / half) / (mass[0] / filled[0] + 1 / half))
