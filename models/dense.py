"""The dense part of a feature row: numbers, cosines between URL vectors, live target counts; and their standardisation."""

import numpy as np
from numpy.typing import NDArray

from models.compiled import kernel
from models.features import CATEGORIES, COSINES, NUMBERS

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
U16 = NDArray[np.uint16]
Rows = NDArray[np.void]
_HALVES: F32 = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)  # numpy takes thrice as long
_HALVES = np.clip(np.nan_to_num(_HALVES, posinf=0.0, neginf=0.0), -1e4, 1e4)  # damage
LIMIT = 5.0  # standard deviations beyond which an input says no more
_PLAIN = NUMBERS + COSINES
TASK_WIDTH = _PLAIN + 2 * CATEGORIES  # of one task alone


def dense_width(tasks: int) -> int:
    """Columns of `dense`."""
    return _PLAIN + CATEGORIES * tasks * 2


def dense(rows: Rows, vectors: bool = True) -> F32:
    """(B, width): numbers, cosines (nothing without `vectors`), counts of every task. Damage becomes zeros."""
    out = np.empty((len(rows), dense_width(rows.dtype["counts"].shape[1])), np.float32)
    halves = [np.ascontiguousarray(rows[name]).view(np.uint16).reshape(len(rows), -1) for name in ("cosines", "counts")]
    _join(np.ascontiguousarray(rows["numbers"]), halves[0], halves[1], _HALVES, vectors, out)
    return out


@kernel
def _join(numbers: F32, cosines: U16, counts: U16, halves: F32, vectors: bool, out: F32) -> None:
    for b in range(out.shape[0]):
        for k in range(numbers.shape[1]):
            out[b, k] = _tame(numbers[b, k])
        at = numbers.shape[1]
        for k in range(cosines.shape[1]):
            out[b, at + k] = halves[cosines[b, k]] if vectors else np.float32(0)
        at += cosines.shape[1]
        for k in range(counts.shape[1]):
            out[b, at + k] = halves[counts[b, k]]


@kernel
def _tame(x: np.float32) -> np.float32:
    """Logarithms all: one beyond 10,000 could only be damage, and what is no number counts as zero."""
    if not np.isfinite(x):
        return np.float32(0)
    return min(max(x, np.float32(-1e4)), np.float32(1e4))


def of_task(raw: F32, task: int) -> F32:
    """(B, TASK_WIDTH): what of `dense` is one task's own business."""
    tasks = (raw.shape[1] - _PLAIN) // (2 * CATEGORIES)
    if tasks == 1:
        return raw
    counts = raw[:, _PLAIN:].reshape(len(raw), CATEGORIES, tasks, 2)[:, :, task].reshape(len(raw), -1)
    return np.concatenate([raw[:, :_PLAIN], counts], axis=1)


class Standardiser:
    """Running mean and spread of `width` inputs, over examples learned."""

    def __init__(self, width: int) -> None:
        self.moments: F64 = np.zeros((3, width))  # n, Σ x, Σ x²
        self._look()

    def _look(self) -> None:
        n = np.maximum(self.moments[0], 1)
        mean = self.moments[1] / n
        self._mean = mean.astype(np.float32)
        self._scale = (1 / np.sqrt(np.maximum(self.moments[2] / n - mean**2, 1e-6))).astype(np.float32)

    def learn(self, raw: F32) -> None:
        """Take in m examples, raw (m, width)."""
        x = raw.astype(np.float64)
        self.moments += np.stack([np.full(x.shape[1], len(x), np.float64), x.sum(axis=0), (x**2).sum(axis=0)])
        self._look()

    def standardised(self, raw: F32) -> F32:
        """(B, width), within ±LIMIT."""
        out = np.empty_like(raw)
        _standardise(raw, self._mean, self._scale, out)
        return out

    def load(self, moments: NDArray[np.generic]) -> None:
        """Take over saved moments. Raises ValueError where they do not fit."""
        self.moments[:] = moments
        self._look()


@kernel
def _standardise(raw: F32, mean: F32, scale: F32, out: F32) -> None:
    for b in range(raw.shape[0]):
        for k in range(raw.shape[1]):
            z = (raw[b, k] - mean[k]) * scale[k]
            out[b, k] = min(max(z, np.float32(-LIMIT)), np.float32(LIMIT))
