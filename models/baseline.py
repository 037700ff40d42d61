"""River's answer to the same question: logistic regression with AdaGrad over the plain attributes, one model a task.

It always runs, on the same examples as the network, so that an operator sees when the network is not worth its keep.
Keys are hashed, so memory is bounded. Its state goes in and out as arrays, in River's own order, because the order of
a sum is part of its bits.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from river import linear_model, optim, utils

from models.settings import ModelSettings

_NUMBER_SCALE = 0.25  # logarithms of counts and seconds reach about ten; one-hot attributes are one
_ABSENT = -(2**31)  # the key of an attribute that the visit does not have


class Baseline:
    """T River models. Rows are feature rows; B visits."""

    def __init__(self, settings: ModelSettings, tasks: int) -> None:
        self._mask = (1 << settings.table_bits) - 1
        self._models: list[Any] = [
            linear_model.LogisticRegression(optimizer=optim.AdaGrad(settings.baseline_rate)) for _ in range(tasks)
        ]

    def _attributes(self, rows: NDArray[np.void]) -> list[dict[int, float]]:
        """Each row as River wants it: levels are 1 under their hash, numbers stand under negative keys."""
        out = []
        hashed = np.where(rows["levels"] != 0, rows["levels"] & self._mask, _ABSENT).tolist()
        for keys, numbers in zip(hashed, (rows["numbers"] * np.float32(_NUMBER_SCALE)).tolist(), strict=True):
            x = dict.fromkeys(keys, 1.0)
            x.pop(_ABSENT, None)
            for k, number in enumerate(numbers):
                if number:
                    x[-1 - k] = number
            out.append(x)
        return out

    def score(self, rows: NDArray[np.void]) -> NDArray[np.float32]:
        """(B, T) probabilities."""
        out = np.empty((len(rows), len(self._models)), np.float32)
        for b, x in enumerate(self._attributes(rows)):
            for t, model in enumerate(self._models):
                p = model.predict_proba_one(x)[True]
                out[b, t] = p if math.isfinite(p) else 0.5
        return out.clip(0, 1)

    def learn(
        self,
        rows: NDArray[np.void],
        task: NDArray[np.int32],
        label: NDArray[np.float32],
        weight: NDArray[np.float32] | None = None,
    ) -> None:
        """Learn m examples, one after the other."""
        weights = [1.0] * len(rows) if weight is None else weight.tolist()
        for x, t, y, w in zip(self._attributes(rows), task.tolist(), label.tolist(), weights, strict=True):
            self._models[t].learn_one(x, y > 0.5, w)

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Arrays from which `load` makes equal models."""
        out: dict[str, NDArray[np.generic]] = {}
        for t, model in enumerate(self._models):
            weights, squares = model.weights, model.optimizer.g2
            out[f"{t}.weight_at"] = np.fromiter(weights.keys(), np.int32, len(weights))
            out[f"{t}.weight"] = np.fromiter(weights.values(), np.float64, len(weights))
            out[f"{t}.square_at"] = np.fromiter(squares.keys(), np.int32, len(squares))
            out[f"{t}.square"] = np.fromiter(squares.values(), np.float64, len(squares))
            out[f"{t}.intercept"] = np.array([model.intercept, model.optimizer.n_iterations], np.float64)
        return out

    def load(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Take over a saved state. Raises ValueError or KeyError where it does not fit."""
        for t, model in enumerate(self._models):
            weights = zip(state[f"{t}.weight_at"].tolist(), state[f"{t}.weight"].tolist(), strict=True)
            squares = zip(state[f"{t}.square_at"].tolist(), state[f"{t}.square"].tolist(), strict=True)
            model._weights = utils.VectorDict(dict(weights))
            model.optimizer.g2.clear()
            model.optimizer.g2.update(squares)
            model.intercept = float(state[f"{t}.intercept"][0])
            model.optimizer.n_iterations = int(state[f"{t}.intercept"][1])
