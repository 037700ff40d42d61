"""Latent binary factors of a session, learned online: a small restricted Boltzmann machine, trained by CD-1.

Visible is, in hashed places, which of the last pages and which levels of attributes a visit has; hidden are a few binary
factors whose probabilities may say in one number what many pages say together (Hinton 2002, "Training products of experts
by minimizing contrastive divergence"). It learns without labels, so from every visit, right after its factors were read
off. Tried in the benchmark alone, as additional inputs of its opponents: `url2vec bench classifier --only latent`.
"""

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
Rows = NDArray[np.void]

_USUAL_RATE = np.float32(0.01)
_RARE = np.float32(1e-5)
_PUSH = np.float32(0.5)
_WEIGHT = 10.0  # visits that a batch counts as
_SELDOM = np.float32(0.2)  # share of the visits that a factor is on for


class Factors:
    """A Bernoulli machine of V = 2 ** bits visible and H hidden units."""

    def __init__(self, hidden: int = 32, bits: int = 12, rate: float = 0.2, decay: float = 1e-4, seed: int = 0) -> None:
        self._random = np.random.default_rng(seed)
        self._mask, self._rate, self._decay = (1 << bits) - 1, np.float32(rate), np.float32(decay)
        self._weight: F32 = (self._random.standard_normal((1 << bits, hidden)) * 0.05).astype(np.float32)
        self._hidden_bias: F32 = np.zeros(hidden, np.float32)
        self._usual: F32 = np.zeros(1 << bits, np.float32)  # recent means, of visible and hidden
        self._often: F32 = np.full(hidden, _SELDOM, np.float32)

    def _places(self, rows: Rows) -> NDArray[np.int64]:
        """(B, P + A) where what a visit has stands; −1 where it has nothing. Pages as a set, whatever their order."""
        pages, levels = rows["pages"].astype(np.int64), rows["levels"].astype(np.int64)
        mixed = np.concatenate([pages * 0x9E3779B1 + 1, levels * 0x85EBCA77 + 2], axis=1) >> 7
        present = np.concatenate([pages != 0, levels != 0], axis=1)
        return np.where(present, mixed & self._mask, -1)

    def _visible(self, rows: Rows) -> F32:
        places = self._places(rows)
        visible = np.zeros((len(rows), self._mask + 1), np.float32)
        at, column = np.nonzero(places >= 0)
        visible[at, places[at, column]] = 1
        return visible

    def _hidden(self, visible: F32) -> F32:
        return _sigmoid((visible - self._usual) @ self._weight + self._hidden_bias)

    def read(self, rows: Rows) -> F32:
        """(B, H) how probable each factor is, given what the visit has. Changes nothing."""
        return self._hidden(self._visible(rows))

    def learn(self, rows: Rows) -> None:
        """One step of contrastive divergence on these visits together."""
        visible = self._visible(rows)
        # Places count by how they differ from usual (Montavon, Müller 2012): else what all visits have drowns the rest.
        self._usual += _USUAL_RATE * (visible.mean(axis=0) - self._usual)
        hidden = self._hidden(visible)
        self._often += _USUAL_RATE * (hidden.mean(axis=0) - self._often)
        sampled = (self._random.random(hidden.shape, np.float32) < hidden).astype(np.float32)
        usual = np.log(
            (self._usual + _RARE) / (1 - self._usual + _RARE)
        )  # the bias that a place of its own would learn
        again = _sigmoid((sampled - self._often) @ self._weight.T + usual)
        answered = self._hidden(again)
        # Summed over the visits, and weighed as so many of them: a mean would hardly move the places of rare pages.
        step = self._rate * np.float32(_WEIGHT / max(len(rows), 1))
        up = (visible - self._usual).T @ (hidden - self._often) - (again - self._usual).T @ (answered - self._often)
        self._weight += step * up - self._rate * self._decay * self._weight
        # Held where a factor is seldom on: else all would say the same, that there is a visit.
        self._hidden_bias += _PUSH * (_SELDOM - hidden.mean(axis=0))


def _sigmoid(x: NDArray[Any]) -> F32:
    return cast(F32, (1 / (1 + np.exp(-np.clip(x, -30, 30)))).astype(np.float32))
