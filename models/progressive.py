"""Progressive metrics: every probability is judged once, by the label that came after it.

`Progress` is additive: partitions and workers keep their own and merge them. AUC and calibration come from histograms on
the logit scale, within a few ten-thousandths of the exact ones. numpy only.
"""

from __future__ import annotations

import math
from functools import reduce
from operator import sub

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

_BINS = 2048
_REACH = 8.0  # logits beyond ±8 share the outermost bins
_ECE_BINS = 15  # as Guo et al. 2017, "On Calibration of Modern Neural Networks"
_FLOOR = 1e-7  # probabilities are kept this far from 0 and 1 before a logarithm


class CorruptProgress(ValueError):  # noqa: N818 - says what is wrong, as the other corrupt things do
    """The bytes are not an encoded Progress."""


class _Wire(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    bins: int
    at: bytes  # u16, cells of the flattened histograms that are not empty
    counts: bytes  # u64
    losses: tuple[float, float]


class Progress:
    """One task's record: the model's and the baseline's probabilities against the labels."""

    def __init__(self) -> None:
        self._histogram = np.zeros((2, 2, _BINS), np.int64)  # model or baseline, label, logit
        self._loss = [0.0, 0.0]

    @property
    def n(self) -> int:
        """Examples judged."""
        return int(self._histogram[0].sum())

    def add(self, probability: float, baseline: float, label: bool) -> None:
        """Judge one pair of answers."""
        for who, answer in enumerate((probability, baseline)):
            p = 0.5 if math.isnan(answer) else min(max(answer, _FLOOR), 1 - _FLOOR)
            logit = math.log(p / (1 - p))
            at = int((logit + _REACH) / (2 * _REACH) * _BINS)
            self._histogram[who, int(label), min(max(at, 0), _BINS - 1)] += 1
            self._loss[who] -= math.log(p if label else 1 - p)

    def add_many(self, probability: ArrayLike, baseline: ArrayLike, label: ArrayLike) -> None:
        """Judge n pairs of answers, each (n,): as `add` one by one, in order."""
        truth = np.asarray(label, np.bool_)
        for who, answers in enumerate((probability, baseline)):
            given = np.asarray(answers, np.float64)
            p = np.clip(np.where(np.isnan(given), 0.5, given), _FLOOR, 1 - _FLOOR)
            # Not numpy's logarithm, which may differ in the last bit.
            logit = np.array(list(map(math.log, (p / (1 - p)).tolist())), np.float64)
            at = np.clip(((logit + _REACH) / (2 * _REACH) * _BINS).astype(np.int64), 0, _BINS - 1)
            self._histogram[who] += np.bincount(truth * _BINS + at, minlength=2 * _BINS).reshape(2, _BINS)
            chances = np.where(truth, p, 1 - p).tolist()
            self._loss[who] = reduce(sub, map(math.log, chances), self._loss[who])

    def merge(self, other: Progress) -> None:
        """Add another record of the same task."""
        self._histogram += other._histogram
        self._loss = [a + b for a, b in zip(self._loss, other._loss, strict=True)]

    def auc(self) -> float | None:
        """The model's area under the ROC curve; None until both labels were seen."""
        return self._auc(self._histogram[0])

    def baseline_auc(self) -> float | None:
        """The baseline's."""
        return self._auc(self._histogram[1])

    def logloss(self) -> float | None:
        """The model's mean −ln p of what happened; None before the first example."""
        return self._loss[0] / self.n if self.n else None

    def baseline_logloss(self) -> float | None:
        """The baseline's."""
        return self._loss[1] / self.n if self.n else None

    def ece(self) -> float | None:
        """How far the model's probabilities are from the shares that came true: the expected calibration error, Σ over 15
        equal bins of probability of share of the examples · |mean probability − share of positives|; None before the first."""
        return self._ece(self._histogram[0])

    def baseline_ece(self) -> float | None:
        """The baseline's."""
        return self._ece(self._histogram[1])

    @staticmethod
    def _ece(histogram: NDArray[np.int64]) -> float | None:
        """An answer is taken for the middle of its cell, at most .001 away."""
        n = int(histogram.sum())
        if not n:
            return None
        probability = 1 / (1 + np.exp(-((np.arange(_BINS) + 0.5) / _BINS * 2 - 1) * _REACH))
        over = histogram.sum(axis=0) * probability - histogram[1]  # expected positives beyond those that came
        each = np.bincount((probability * _ECE_BINS).astype(np.int64), over, _ECE_BINS)
        return float(np.abs(each).sum() / n)

    @staticmethod
    def _auc(histogram: NDArray[np.int64]) -> float | None:
        negative, positive = histogram.astype(np.float64)
        pairs = negative.sum() * positive.sum()
        if not pairs:
            return None
        below = np.cumsum(negative) - negative
        return float((positive * (below + negative / 2)).sum() / pairs)

    def encode(self) -> bytes:
        """Bytes for the store; as long as there are distinct answers."""
        flat = self._histogram.reshape(-1)
        at = np.flatnonzero(flat)
        wire = _Wire(
            _BINS, at.astype(np.uint16).tobytes(), flat[at].astype(np.uint64).tobytes(), (self._loss[0], self._loss[1])
        )
        return msgspec.msgpack.encode(wire)

    @staticmethod
    def decode(blob: bytes) -> Progress:
        """The record that was encoded. Raises CorruptProgress."""
        out = Progress()
        try:
            wire = msgspec.msgpack.decode(blob, type=_Wire)
            if wire.bins != _BINS:
                raise CorruptProgress(f"this record has {wire.bins} bins, expected {_BINS}")
            at = np.frombuffer(wire.at, np.uint16)
            out._histogram.reshape(-1)[at] = np.frombuffer(wire.counts, np.uint64).astype(np.int64)
        except (msgspec.MsgspecError, ValueError, IndexError) as error:
            raise CorruptProgress(f"this record of progress cannot be read: {error}") from error
        out._loss = list(wire.losses)
        return out


def log_loss(logit: NDArray[np.float64], label: NDArray[np.float64]) -> NDArray[np.float64]:
    """−ln p of what happened, from logits and labels (n,); NaN where the logit is."""
    with np.errstate(invalid="ignore"):
        loss: NDArray[np.float64] = np.logaddexp(0, np.where(label > 0.5, -logit, logit))
    return loss
