"""Loops over hashed tables: the linear learner (FTRL), live target counts, and the embedding tables of the network.

A level is an attribute with its value, hashed to a positive int32; 0 is an absent one. A table has a power of two of
rows, and a level lives at `level & (rows - 1)`; collisions are the price of bounded memory.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.compiled import kernel

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]

PRIOR_COUNT = 5.0  # examples that the prior weighs in a level's rate
FTRL_ALPHA, FTRL_BETA, FTRL_L2 = 0.1, 1.0, 0.1


@kernel
def _weight(z: float, n: float) -> Any:
    return -z / ((FTRL_BETA + np.sqrt(n)) / FTRL_ALPHA + FTRL_L2)


@kernel
def ftrl_logits(levels: I32, z: F32, n: F32, bias: F32, out: F32) -> None:
    """out (B, T): bias + Σ weight of each level. z, n: (T, rows); bias: (T, 2), its own z and n."""
    mask = z.shape[1] - 1
    for b in range(levels.shape[0]):
        for t in range(z.shape[0]):
            s = _weight(bias[t, 0], bias[t, 1])
            for a in range(levels.shape[1]):
                if levels[b, a] != 0:
                    at = levels[b, a] & mask
                    s += _weight(z[t, at], n[t, at])
            out[b, t] = s


@kernel
def ftrl_learn(levels: I32, task: I32, label: F32, weight: F32, z: F32, n: F32, bias: F32) -> None:
    """FTRL-proximal without L1 (McMahan et al. 2013, algorithm 1), one example after the other."""
    mask = z.shape[1] - 1
    for b in range(levels.shape[0]):
        t = task[b]
        w = _weight(bias[t, 0], bias[t, 1])
        s = w
        for a in range(levels.shape[1]):
            if levels[b, a] != 0:
                at = levels[b, a] & mask
                s += _weight(z[t, at], n[t, at])
        g = 1 / (1 + np.exp(-min(max(s, -30.0), 30.0))) - label[b]
        g *= weight[b]
        sigma = (np.sqrt(bias[t, 1] + g * g) - np.sqrt(bias[t, 1])) / FTRL_ALPHA
        bias[t, 0] += g - sigma * w
        bias[t, 1] += g * g
        for a in range(levels.shape[1]):
            if levels[b, a] != 0:
                at = levels[b, a] & mask
                old = n[t, at]
                sigma = (np.sqrt(old + g * g) - np.sqrt(old)) / FTRL_ALPHA
                z[t, at] += g - sigma * _weight(z[t, at], old)
                n[t, at] = old + g * g


@kernel
def read_counts(levels: I32, positive: F32, seen: F32, totals: F64, out: F32) -> None:
    """out (B, A, T, 2): how far a level's smoothed rate lies from the prior, in logits; and log(1 + n)."""
    mask = positive.shape[1] - 1
    for t in range(positive.shape[0]):
        prior = (totals[t, 0] + 0.5) / (totals[t, 1] + 1.0)
        prior_logit = np.log(prior / (1 - prior))
        for b in range(levels.shape[0]):
            for a in range(levels.shape[1]):
                out[b, a, t, 0] = 0
                out[b, a, t, 1] = 0
                at = levels[b, a] & mask
                if levels[b, a] != 0 and seen[t, at] > 0:
                    rate = (positive[t, at] + PRIOR_COUNT * prior) / (seen[t, at] + PRIOR_COUNT)
                    out[b, a, t, 0] = np.log(rate / (1 - rate)) - prior_logit
                    out[b, a, t, 1] = np.log1p(seen[t, at])


@kernel
def add_counts(levels: I32, task: I32, label: F32, weight: F32, positive: F32, seen: F32, totals: F64) -> None:
    """Count each example's label in all its levels. totals: (T, 2) positives and examples."""
    mask = positive.shape[1] - 1
    for b in range(levels.shape[0]):
        t = task[b]
        totals[t, 0] += weight[b] * label[b]
        totals[t, 1] += weight[b]
        for a in range(levels.shape[1]):
            if levels[b, a] != 0:
                at = levels[b, a] & mask
                positive[t, at] += weight[b] * label[b]
                seen[t, at] += weight[b]


@kernel
def read_rows(levels: I32, table: F32, out: F32) -> None:
    """out (B, A, width): the embedding of each level, zeros for an absent one."""
    mask = table.shape[0] - 1
    for b in range(levels.shape[0]):
        for a in range(levels.shape[1]):
            if levels[b, a] == 0:
                for k in range(table.shape[1]):
                    out[b, a, k] = 0
            else:
                at = levels[b, a] & mask
                for k in range(table.shape[1]):
                    out[b, a, k] = table[at, k]


@kernel
def descend_rows(levels: I32, gradient: F32, table: F32, squares: F32, rate: float) -> None:
    """Row-wise AdaGrad: one learning rate a row, from the sum of its mean squared gradients; example after example."""
    mask, width = table.shape[0] - 1, table.shape[1]
    for b in range(levels.shape[0]):
        for a in range(levels.shape[1]):
            if levels[b, a] == 0:
                continue
            at, square = levels[b, a] & mask, np.float32(0)
            for k in range(width):
                square += gradient[b, a, k] * gradient[b, a, k]
            if square == 0:
                continue
            squares[at] += square / width
            step = np.float32(rate / np.sqrt(squares[at]))
            for k in range(width):
                table[at, k] -= step * gradient[b, a, k]
