"""Steps of the dense network, on one flat vector: Adam, and what was compared with it.

`adam`: Kingma, Ba 2015, with corrected moments. `sgd`: momentum .9. `muon`: momentum of each matrix made orthogonal by a
Newton-Schulz iteration (Jordan et al. 2024), a second-order step in disguise; vectors go by Adam.
"""

from collections.abc import Mapping
from math import prod
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

Way = Literal["adam", "sgd", "muon"]
_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8
_SGD = 20.0  # plain steps need to be so much longer than Adam's
_MUON = 5.0


class Optimiser:
    """Moves `theta` in place."""

    def __init__(self, way: Way, theta: torch.Tensor, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._way, self._theta = way, theta
        self._first = torch.zeros_like(theta, requires_grad=False)
        self._second = torch.zeros_like(theta, requires_grad=False)
        self.updates = 0
        ends = np.cumsum([prod(shape) for shape in shapes.values()]).tolist()
        self._matrices = [
            (end - prod(shape), end, shape)
            for end, shape in zip(ends, shapes.values(), strict=True)
            if len(shape) == 2 and min(shape) > 1
        ]

    @torch.no_grad()
    def step(self, gradient: torch.Tensor, rate: float) -> None:
        """One step down the gradient of the mean loss."""
        self.updates += 1
        self._first.mul_(_BETA1).add_(gradient, alpha=1 - _BETA1)
        if self._way == "sgd":
            self._theta.add_(self._first, alpha=-rate * _SGD)
            return
        self._second.mul_(_BETA2).addcmul_(gradient, gradient, value=1 - _BETA2)
        spread = (self._second / (1 - _BETA2**self.updates)).sqrt_().add_(_EPSILON)
        move = self._first / spread / (1 - _BETA1**self.updates)
        if self._way == "muon":
            for begin, end, shape in self._matrices:
                turned = _orthogonal(self._first[begin:end].view(shape))
                move[begin:end] = (_MUON * turned * (max(shape) ** 0.5 / min(shape) ** 0.5 / 8)).reshape(-1)
        self._theta.add_(move, alpha=-rate)

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Arrays from which `load` goes on."""
        return {
            "first": self._first.cpu().numpy().copy(),
            "second": self._second.cpu().numpy().copy(),
            "updates": np.array([self.updates], np.int64),
        }

    def load(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Take over a saved state. Raises RuntimeError or KeyError where it does not fit."""
        self._first.copy_(torch.tensor(state["first"]))
        self._second.copy_(torch.tensor(state["second"]))
        self.updates = int(state["updates"][0])


def _orthogonal(m: torch.Tensor) -> torch.Tensor:
    """The nearest orthogonal matrix, roughly: five quintic Newton-Schulz iterations."""
    x: torch.Tensor = m / (m.norm() + 1e-9)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if tall else x
