"""What probabilities are worth: AUC, log-loss and calibration, of a whole stream, its last half, and by position.

All exact and progressive: each answer was given before its label was known, and is judged once. `p` are probabilities, `y`
labels 0 or 1, both (n,). A number that does not exist (no visits, labels of one kind only) is None.
"""

import msgspec
import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]

BINS = 15  # of the calibration error, equally wide
POSITIONS = {"1": (1, 1), "2": (2, 2), "3": (3, 3), "4-6": (4, 6), "7+": (7, 2**31 - 1)}  # of a visit in its session
_FLOOR = 1e-7  # probabilities are kept this far from 0 and 1 before a logarithm


class Judged(msgspec.Struct, frozen=True, kw_only=True):
    """How good answers were."""

    visits: int
    positive: float | None = None  # share of them
    auc: float | None = None
    log_loss: float | None = None
    ece: float | None = None


class Halves(msgspec.Struct, frozen=True, kw_only=True):
    """Over the whole stream, and over its last half: after the cold start."""

    whole: Judged
    last_half: Judged


def auc(p: F32 | F64, y: F32 | F64) -> float | None:
    """The share of pairs of a positive and a negative that are in the right order; equal answers count half."""
    positive = int((y > 0.5).sum())
    pairs = positive * (len(y) - positive)
    if not pairs:
        return None
    _, place, count = np.unique(p, return_inverse=True, return_counts=True)
    rank = np.cumsum(count) - (count - 1) / 2  # the mean rank of each distinct answer, from 1
    return float((rank[place][y > 0.5].sum() - positive * (positive + 1) / 2) / pairs)


def log_loss(p: F32 | F64, y: F32 | F64) -> float | None:
    """Mean −ln of the probability given to what happened."""
    if not len(y):
        return None
    p = np.clip(p.astype(np.float64), _FLOOR, 1 - _FLOOR)
    return float(-np.where(y > 0.5, np.log(p), np.log1p(-p)).mean())


def ece(p: F32 | F64, y: F32 | F64) -> float | None:
    """Mean distance between what was said and what happened, over bins of what was said, weighed by their visits."""
    if not len(y):
        return None
    which = np.minimum((p.astype(np.float64) * BINS).astype(np.int64), BINS - 1)
    gap = np.bincount(which, weights=p.astype(np.float64) - y, minlength=BINS)
    return float(np.abs(gap).sum() / len(y))


def judge(p: F32 | F64, y: F32 | F64) -> Judged:
    """All of it over the visits that have a label and got an answer."""
    known = ~np.isnan(y) & ~np.isnan(p)
    p, y = p[known], y[known]
    return Judged(
        visits=len(y),
        positive=_short(float(y.mean()) if len(y) else None),
        auc=_short(auc(p, y)),
        log_loss=_short(log_loss(p, y)),
        ece=_short(ece(p, y)),
    )


def halves(p: F32 | F64, y: F32 | F64, first: NDArray[np.bool_], among: NDArray[np.bool_] | None = None) -> Halves:
    """`first` (n,) marks the first half of the stream; `among` the visits that are asked about, all by default."""
    among = np.ones(len(y), np.bool_) if among is None else among
    return Halves(whole=judge(p[among], y[among]), last_half=judge(p[among & ~first], y[among & ~first]))


def first_half(y: F32 | F64) -> NDArray[np.bool_]:
    """(n,) which visits come before the middle of those that have a label: one split for all who are judged."""
    known = ~np.isnan(y)
    first: NDArray[np.bool_] = np.cumsum(known) <= int(known.sum()) // 2
    return first


def by_position(p: F32 | F64, y: F32 | F64, position: I32, first: NDArray[np.bool_]) -> dict[str, Halves]:
    """The same for the first visits of sessions, the second ones, …"""
    return {
        name: halves(p, y, first, (position >= low) & (position <= high)) for name, (low, high) in POSITIONS.items()
    }


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 5)
