"""The answer that is given: the experts' logits, weighted by how well they did of late, and calibrated.

A logistic regression of each task over the logits that stood in the rows when the visits were scored, by Newton steps
with forgetting: it follows recent log-loss, and because it fits probabilities, its answers are calibrated. Weights are
never negative, so that they can be read: an expert's weight is its share of the say. A rival that rests is given the
network's answer, any other expert that said nothing that of Newton's learner, which always has one.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from models.compiled import kernel
from models.features import EXPERTS

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

# Before anything is known: the simple learners, which are quick, have as much say as the others together.
PRIOR = {
    "linear": 0.25, "newton": 0.25, "sequence": 0.0, "network": 0.125, "rival": 0.125, "memory": 0.0, "baseline": 0.25,
}  # fmt: skip
assert set(PRIOR) | {"blend"} == set(EXPERTS)
NEWTON, NETWORK, RIVAL = (EXPERTS.index(name) for name in ("newton", "network", "rival"))
ASKED = len(PRIOR)  # experts that are weighted: all but the blend itself
_STRENGTH = 800.0  # of the prior weights, in curvature
_WINDOW = 10_000.0  # examples after which one has lost all but 1/e of its say
_LEAST_CURVATURE = 0.02
_SWEEPS = 30
_LIMIT = 12.0  # of a logit, should a stored one be damaged


@kernel
def _descend(curvature: F64, gradient: F64, theta: F64, moved: F64) -> None:
    """The least of gradient·d + ½ d·curvature·d, d = moved - theta, with no weight but the constant below zero; by
    coordinates, which for so few of them is exact soon enough."""
    for _ in range(_SWEEPS):
        for k in range(len(theta)):
            slope = gradient[k]
            for j in range(len(theta)):
                slope += curvature[k, j] * (moved[j] - theta[j])
            moved[k] -= slope / curvature[k, k]
            if k < ASKED:
                moved[k] = max(moved[k], 0.0)


class Blend:
    """T blends of E experts. B visits."""

    def __init__(self, tasks: int) -> None:
        prior = [PRIOR[name] for name in EXPERTS[:ASKED]]
        self._prior = np.array([*prior, 0.0])
        self._weights: F64 = np.tile(self._prior, (tasks, 1))
        self._curvature: F64 = np.zeros((tasks, ASKED + 1, ASKED + 1))

    def score(self, experts: F32) -> F64:
        """(B, T) logits of what the experts said (B, T, E); the blend's own column is not read."""
        out: F64 = (_filled(experts) * self._weights).sum(axis=2)
        return out

    def learn(self, experts: F32, task: int, label: F32, weight: F32) -> None:
        """One step from m examples of one task: experts (m, E)."""
        z = _filled(experts)
        theta = self._weights[task]
        p = 1 / (1 + np.exp(-np.clip(z @ theta, -30, 30)))
        h = np.maximum(p * (1 - p), _LEAST_CURVATURE) * weight
        curvature = self._curvature[task] * (1 - 1 / _WINDOW) ** len(z) + (z * h[:, None]).T @ z
        gradient = z.T @ ((p - label) * weight)
        moved = theta.copy()
        _descend(curvature + _STRENGTH * np.eye(len(theta)), gradient, theta, moved)
        if np.isfinite(moved).all():
            self._weights[task], self._curvature[task] = moved, curvature

    def weights(self, task: int) -> dict[str, float]:
        """The say of each expert."""
        return dict(zip(EXPERTS, self._weights[task, :ASKED].tolist(), strict=False))

    def shake(self, task: int, factor: float) -> None:
        """Make the next steps `factor` times as long: the stream has changed."""
        self._curvature[task] /= factor

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Arrays from which `load` makes an equal blend."""
        return {"weights": self._weights, "curvature": self._curvature}

    def load(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Take over a saved state. Raises ValueError or KeyError where it does not fit."""
        self._weights[:], self._curvature[:] = state["weights"], state["curvature"]


def _filled(experts: F32) -> F64:
    """(…, E + 1): the weighted experts and a constant, nothing missing."""
    asked = np.clip(experts[..., :ASKED].astype(np.float64), -_LIMIT, _LIMIT)
    asked[..., RIVAL] = np.where(np.isnan(asked[..., RIVAL]), asked[..., NETWORK], asked[..., RIVAL])
    asked = np.where(np.isnan(asked), asked[..., NEWTON : NEWTON + 1], asked)
    return np.concatenate([np.nan_to_num(asked), np.ones((*asked.shape[:-1], 1))], axis=-1)
