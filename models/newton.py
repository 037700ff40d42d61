"""Logistic regression by Newton's method, online: it learns in hundreds of examples what gradient steps learn in tens of
thousands.

The inputs are the dense numbers of a feature row (numbers, cosines, live target counts of the task), standardised by
their running moments, each with two hinges beside it, so that the answer may bend: x, max(x - ½, 0), max(-x - ½, 0). The
curvature A = Σ p (1 - p) x xᵀ is kept whole, with slow forgetting; a chunk of examples moves the weights by
-(A + prior)⁻¹ gradient. That is one step of iteratively reweighted least squares with a Gaussian prior, and its running
form the extended Kalman filter of logistic regression. The order of hundreds of inputs makes A cheap: inputs that have
never varied are left out.

With 35 inputs that vary, on one thread, it learns from some 300,000 examples a second.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from models.compiled import kernel

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]

PRIOR = 30.0  # curvature that damps every step
CAUTION, SETTLED = 300.0, 1_000.0  # what damps the first ones besides, and after how many examples 1/e of that is left
WINDOW = 30_000.0  # examples after which one has lost all but 1/e of its say; 10,000 and 100,000 were .002 worse
_KINK = 0.5  # standard deviations from the mean
_LIMIT = 5.0  # standard deviations beyond which an input says no more
_LEAST_CURVATURE = 0.02  # of an example: what is thought certain must stay open to being wrong
_STILL = 1e-9  # a variance below which an input counts as constant


@kernel
def _expand(raw: F32, active: I32, mean: F64, scale: F64, out: F64) -> None:
    """out (B, 3 K + 1): each active input standardised, its two hinges, and a constant."""
    k = len(active)
    for b in range(raw.shape[0]):
        for j in range(k):
            z = (raw[b, active[j]] - mean[j]) * scale[j]
            z = min(max(z, -_LIMIT), _LIMIT)
            out[b, j] = z
            out[b, k + j] = max(z - _KINK, 0.0)
            out[b, 2 * k + j] = max(-z - _KINK, 0.0)
        out[b, 3 * k] = 1.0


class Newton:
    """One logit from `width` raw inputs. B visits, m examples."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._moments = np.zeros((3, width))  # n, Σ x, Σ x² of each input, over examples learned
        # Of the inputs that vary, in the order x, hinges, hinges, constant:
        self._active: I32 = np.zeros(0, np.int32)
        self._weights = torch.zeros(1, dtype=torch.float64)
        self._curvature = torch.zeros((1, 1), dtype=torch.float64)
        self.refused = 0  # steps not taken, because they were not finite
        self._look()

    def _look(self) -> None:
        """Which inputs vary, and how they are standardised."""
        n = np.maximum(self._moments[0], 1)
        mean = self._moments[1] / n
        variance = self._moments[2] / n - mean**2
        active = np.flatnonzero(variance > _STILL).astype(np.int32)
        if not np.array_equal(active, self._active):
            self._make_room(active)
        self._mean, self._scale = mean[active], 1 / np.sqrt(variance[active])

    def _make_room(self, active: I32) -> None:
        """New inputs vary, or old ones no more: weights keep their meaning."""
        before, after = self._place(self._active), self._place(active)
        weights, curvature = np.zeros(3 * self._width + 1), np.zeros((3 * self._width + 1,) * 2)
        weights[before], curvature[np.ix_(before, before)] = self._weights.numpy(), self._curvature.numpy()
        self._active = active
        self._weights, self._curvature = torch.tensor(weights[after]), torch.tensor(curvature[np.ix_(after, after)])

    def _place(self, active: I32) -> NDArray[np.int64]:
        """Where the active inputs' weights stand among all."""
        k, w = active.astype(np.int64), self._width
        return np.concatenate([k, w + k, 2 * w + k, [3 * w]])

    def _inputs(self, raw: F32) -> torch.Tensor:
        # Torch's memory is aligned: equal inputs give equal bits.
        out = torch.empty((len(raw), len(self._weights)), dtype=torch.float64)
        _expand(raw, self._active, self._mean, self._scale, out.numpy())
        return out

    def score(self, raw: F32) -> F64:
        """(B,) logits of raw inputs (B, width)."""
        out: F64 = (self._inputs(raw) @ self._weights).numpy()
        return out

    def learn(self, raw: F32, label: F32, weight: F32) -> None:
        """One step from m examples: raw (m, width), label 0 or 1, weight."""
        if not len(raw):
            return
        x = raw.astype(np.float64)
        self._moments += np.stack([np.full(self._width, len(x), np.float64), x.sum(axis=0), (x**2).sum(axis=0)])
        self._look()
        z = self._inputs(raw)
        y, w = torch.tensor(label, dtype=torch.float64), torch.tensor(weight, dtype=torch.float64)
        p = torch.sigmoid(z @ self._weights)
        h = (p * (1 - p)).clamp_min_(_LEAST_CURVATURE) * w
        short = z.float()  # single precision is enough for the curvature of one chunk, and twice as fast
        added = ((short * h[:, None].float()).T @ short).double()
        curvature = self._curvature * (1 - 1 / WINDOW) ** len(raw) + added
        factor, failed = torch.linalg.cholesky_ex(curvature + torch.diag(self._damping(len(self._weights))))
        moved = self._weights - torch.cholesky_solve((z.T @ ((p - y) * w))[:, None], factor)[:, 0]
        if int(failed) or not bool(torch.isfinite(moved).all()):
            self.refused += 1
            return
        self._weights, self._curvature = moved, curvature

    def _damping(self, size: int) -> torch.Tensor:
        caution = CAUTION * math.exp(-self._moments[0, 0] / SETTLED)
        damping = torch.full((size,), PRIOR + caution, dtype=torch.float64)
        damping[-1] = 1.0  # the constant is hardly held
        return damping

    def shake(self, factor: float) -> None:
        """Forget so much of what is believed that steps become `factor` times as long: the stream has changed."""
        self._curvature /= factor

    def contributions(self, raw: F32) -> F64:
        """(B, width): what each input, its hinges included, adds to the logit."""
        z = (self._inputs(raw) * self._weights).numpy()
        out = np.zeros((len(raw), self._width))
        k = len(self._active)
        out[:, self._active] = z[:, :k] + z[:, k : 2 * k] + z[:, 2 * k : 3 * k]
        return out

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Arrays from which `load` makes an equal one: of the inputs that vary."""
        return {
            "moments": self._moments,
            "active": self._active,
            "weights": self._weights.numpy(),
            "curvature": self._curvature.numpy(),
            "refused": np.array([self.refused], np.int64),
        }

    def load(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Take over a saved state. Raises ValueError, IndexError or KeyError where it does not fit."""
        active, weights, curvature = state["active"].astype(np.int32), state["weights"], state["curvature"]
        size = 3 * len(active) + 1
        if weights.shape != (size,) or curvature.shape != (size, size) or (active >= self._width).any():
            raise ValueError(f"{len(active)} inputs do not have the weights {weights.shape}, {curvature.shape}")
        self._moments[:] = state["moments"]
        self._active = active
        self._weights = torch.tensor(weights, dtype=torch.float64)
        self._curvature = torch.tensor(curvature, dtype=torch.float64)
        self.refused = int(state["refused"][0])
        self._look()
