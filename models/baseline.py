"""River's answer to the same question, as a River user would write it well; one model a task.

    (numbers | StandardScaler) + (levels, one-hot, not scaled) + (target statistics of each level)
        | LogisticRegression(optimizer=AdaGrad(0.05))

It always runs, on the same examples as the network, so that an operator sees when the network is not worth its keep. It
does not see URL vectors: they are ours. River itself takes 40 µs a visit for this, so its arithmetic is done here by one
loop over arrays; a test holds it to River's own answers over a long stream. Keys are hashed: memory is bounded.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from models.compiled import kernel
from models.features import CATEGORIES, NUMBERS
from models.settings import ModelSettings

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
Rows = NDArray[np.void]

EPSILON = 1e-8  # River's AdaGrad
INTERCEPT_RATE = 0.01  # and its LogisticRegression
COUNT_SCALE = 0.25  # of log(1 + n) of a target statistic; its logit is taken as it is
_DENSE = NUMBERS + 2 * CATEGORIES


@kernel
def _dense(numbers: F32, counts: F32, mean: F64, spread: F64, out: F64) -> None:
    """out (NUMBERS + 2 CATEGORIES,): numbers as River's StandardScaler hands them on, and target statistics."""
    n = len(numbers)
    for k in range(n):
        out[k] = (numbers[k] - mean[k]) / spread[k] if spread[k] > 0 else 0.0
    for a in range(counts.shape[0]):
        out[n + 2 * a] = counts[a, 0]
        out[n + 2 * a + 1] = counts[a, 1] * COUNT_SCALE


@kernel
def _logit(levels: I32, dense: F64, weight: F64, dense_weight: F64, intercept: float) -> float:
    s, mask = intercept, len(weight) - 1
    for a in range(len(levels)):
        if levels[a] != 0:
            s += weight[levels[a] & mask]
    for k in range(len(dense)):
        s += dense_weight[k] * dense[k]
    return s


@kernel
def _score(
    levels: I32, numbers: F32, counts: F32, weight: F64, dense_weight: F64, intercept: F64, mean: F64, variance: F64,
    out: F64,
) -> None:  # fmt: skip
    x = np.empty(dense_weight.shape[1])
    for t in range(weight.shape[0]):
        spread = np.sqrt(variance[t])
        for b in range(levels.shape[0]):
            _dense(numbers[b], counts[b, :, t], mean[t], spread, x)
            out[b, t] = _logit(levels[b], x, weight[t], dense_weight[t], intercept[t])


@kernel
def _learn(
    levels: I32, numbers: F32, counts: F32, task: I32, label: F32, example_weight: F32, rate: float, weight: F64,
    square: F64, dense_weight: F64, dense_square: F64, intercept: F64, seen: F64, mean: F64, variance: F64,
) -> None:  # fmt: skip
    """One example after the other: the scaler learns, then the regression."""
    x, mask, spread = np.empty(dense_weight.shape[1]), weight.shape[1] - 1, np.empty(mean.shape[1])
    for b in range(levels.shape[0]):
        t = task[b]
        seen[t] += 1
        n = seen[t]
        for k in range(numbers.shape[1]):  # Welford, as River's scaler does it
            before = mean[t, k]
            after = before + (numbers[b, k] - before) / n
            mean[t, k] = after
            variance[t, k] += ((numbers[b, k] - before) * (numbers[b, k] - after) - variance[t, k]) / n
        for k in range(len(spread)):
            spread[k] = np.sqrt(variance[t, k])
        _dense(numbers[b], counts[b, :, t], mean[t], spread, x)
        s = min(max(_logit(levels[b], x, weight[t], dense_weight[t], intercept[t]), -700.0), 700.0)
        g = (1 / (1 + np.exp(-s)) - (1.0 if label[b] > 0.5 else 0.0)) * example_weight[b]
        intercept[t] -= INTERCEPT_RATE * g
        for a in range(levels.shape[1]):
            if levels[b, a] != 0:
                at = levels[b, a] & mask
                square[t, at] += g * g
                weight[t, at] -= rate / np.sqrt(square[t, at] + EPSILON) * g
        for k in range(len(x)):
            slope = g * x[k]
            dense_square[t, k] += slope * slope
            dense_weight[t, k] -= rate / np.sqrt(dense_square[t, k] + EPSILON) * slope


class Baseline:
    """T models. Rows are feature rows; B visits."""

    def __init__(self, settings: ModelSettings, tasks: int) -> None:
        rows = 1 << settings.table_bits
        self._rate, self._tasks = settings.baseline_rate, tasks
        self._weight: F64 = np.zeros((tasks, rows))
        self._square: F64 = np.zeros((tasks, rows))
        self._dense_weight: F64 = np.zeros((tasks, _DENSE))
        self._dense_square: F64 = np.zeros((tasks, _DENSE))
        self._intercept: F64 = np.zeros(tasks)
        self._seen: F64 = np.zeros(tasks)
        self._mean: F64 = np.zeros((tasks, NUMBERS))
        self._variance: F64 = np.zeros((tasks, NUMBERS))

    def score(self, rows: Rows) -> F64:
        """(B, T) logits; the rows' target statistics must be filled."""
        out = np.zeros((len(rows), self._tasks))
        _score(
            *_columns(rows), self._weight, self._dense_weight, self._intercept, self._mean, self._variance, out
        )  # fmt: skip
        return np.nan_to_num(out)

    def learn(self, rows: Rows, task: I32, label: F32, weight: F32) -> None:
        """Learn m examples, one after the other."""
        _learn(
            *_columns(rows), task.astype(np.int32), label, weight, self._rate, self._weight, self._square,
            self._dense_weight, self._dense_square, self._intercept, self._seen, self._mean, self._variance,
        )  # fmt: skip

    def contributions(self, row: Rows) -> list[tuple[F64, F64, F64]]:
        """What each input of one row adds to the logit, for each task: levels (A,), numbers, target statistics (A, 2)."""
        (levels,), (numbers,), (counts,) = _columns(row)
        out = []
        for t in range(self._tasks):
            x = np.empty(_DENSE)
            _dense(numbers, np.ascontiguousarray(counts[:, t]), self._mean[t], np.sqrt(self._variance[t]), x)
            dense = x * self._dense_weight[t]
            known = np.where(levels != 0, self._weight[t, levels & (self._weight.shape[1] - 1)], 0)
            out.append((known, dense[:NUMBERS], dense[NUMBERS:].reshape(CATEGORIES, 2)))
        return out

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Arrays from which `load` makes equal models; of the hashed tables what is not zero."""
        at = np.flatnonzero(self._square)
        return self._small() | {
            "at": at.astype(np.int32),
            "weight": self._weight.reshape(-1)[at],
            "square": self._square.reshape(-1)[at],
        }

    def _small(self) -> dict[str, NDArray[np.generic]]:
        return {
            "dense_weight": self._dense_weight, "dense_square": self._dense_square, "intercept": self._intercept,
            "seen": self._seen, "mean": self._mean, "variance": self._variance,
        }  # fmt: skip

    def load(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Take over a saved state. Raises ValueError, IndexError or KeyError where it does not fit."""
        at = state["at"].astype(np.int64)
        for name, table in (("weight", self._weight), ("square", self._square)):
            flat = table.reshape(-1)
            flat[:] = 0
            flat[at] = state[name]
        for name, mine in self._small().items():
            mine[:] = state[name]


def _columns(rows: Rows) -> tuple[I32, F32, F32]:
    """levels (B, A), numbers (B, N), counts (B, A, T, 2) of feature rows."""
    rows = np.atleast_1d(rows)
    return (
        np.ascontiguousarray(rows["levels"]),
        np.ascontiguousarray(rows["numbers"]),
        np.ascontiguousarray(rows["counts"].astype(np.float32)),
    )
