"""The incremental classifier: hashed FTRL, live target counts and a small network, learning as examples arrive.

It reads feature rows alone, so what it is taught is what was known when the visit was scored. Tables of levels are
hashed: memory does not grow. A network step whose loss is not finite is skipped and counted; answers are always in
[0, 1].
"""

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from models.features import CATEGORIES, COSINES, NUMBERS
from models.hashed import add_counts, descend_rows, ftrl_learn, ftrl_logits, read_counts, read_rows
from models.network import Network
from models.settings import ModelSettings

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
Rows = NDArray[np.void]
_LIMIT = 5.0  # standard deviations beyond which an input says no more


class Classifier:
    """One logit a visit and task. B visits, T tasks."""

    def __init__(self, settings: ModelSettings, tasks: int) -> None:
        self._settings, self._tasks = settings, tasks
        rows, embeddings = 1 << settings.table_bits, 1 << settings.embedding_bits
        self._z: F32 = np.zeros((tasks, rows), np.float32)
        self._n: F32 = np.zeros((tasks, rows), np.float32)
        self._bias: F32 = np.zeros((tasks, 2), np.float32)
        self._positive: F32 = np.zeros((tasks, rows), np.float32)
        self._seen: F32 = np.zeros((tasks, rows), np.float32)
        self._totals = np.zeros((tasks, 2))
        self._levels: F32 = np.zeros((embeddings, settings.embedding), np.float32)  # zero: an unseen level says nothing
        self._level_squares: F32 = np.zeros(embeddings, np.float32)
        self._pages: F32 = np.zeros((embeddings, settings.page_embedding), np.float32)
        self._page_squares: F32 = np.zeros(embeddings, np.float32)
        self._width = NUMBERS + COSINES + CATEGORIES * tasks * 2
        self._moments = np.zeros((3, self._width))  # n, Σ x, Σ x² of each input, over examples learned
        self._network = Network(settings, tasks, self._width + tasks)
        self.examples = 0
        self.skipped_steps = 0  # network steps refused because their loss was not finite

    def fill_counts(self, rows: Rows) -> None:
        """Write the live target counts, as they are now, into new feature rows."""
        counts = np.empty((len(rows), CATEGORIES, self._tasks, 2), np.float32)
        read_counts(np.ascontiguousarray(rows["levels"]), self._positive, self._seen, self._totals, counts)
        rows["counts"] = counts

    def _inputs(self, rows: Rows) -> tuple[I32, I32, F32, F32]:
        """levels (B, A), pages (B, P), standardised numbers (B, width + T), FTRL's logits (B, T)."""
        levels, pages = np.ascontiguousarray(rows["levels"]), np.ascontiguousarray(rows["pages"])
        linear = np.empty((len(rows), self._tasks), np.float32)
        ftrl_logits(np.concatenate([levels, pages[:, 1:]], axis=1), self._z, self._n, self._bias, linear)
        n = np.maximum(self._moments[0], 1)
        mean = self._moments[1] / n
        spread = np.sqrt(np.maximum(self._moments[2] / n - mean**2, 1e-6))
        x = np.clip((self._raw(rows) - mean) / spread, -_LIMIT, _LIMIT).astype(np.float32)
        return levels, pages, np.concatenate([x, np.clip(linear, -_LIMIT, _LIMIT)], axis=1), linear

    def _raw(self, rows: Rows) -> F32:
        flat = rows["counts"].reshape(len(rows), CATEGORIES * self._tasks * 2)
        raw = np.concatenate([rows["numbers"], rows["cosines"], flat], axis=1, dtype=np.float32)
        return np.clip(np.nan_to_num(raw), -1e4, 1e4)  # logarithms all: a larger one could only be damage

    def _embed(self, levels: I32, pages: I32) -> tuple[F32, F32]:
        a = np.empty((*levels.shape, self._settings.embedding), np.float32)
        p = np.empty((*pages.shape, self._settings.page_embedding), np.float32)
        read_rows(levels, self._levels, a)
        read_rows(pages, self._pages, p)
        return a, p

    def score(self, rows: Rows) -> F32:
        """(B, T) probabilities."""
        if not len(rows) or not self._tasks:
            return np.zeros((len(rows), self._tasks), np.float32)
        levels, pages, x, linear = self._inputs(rows)
        a, p = self._embed(levels, pages)
        logits = self._network.score(a, p, pages == 0, x, linear).astype(np.float64)
        logits = np.where(np.isfinite(logits), logits, linear)  # a broken network leaves the linear learner's answer
        return (1 / (1 + np.exp(-np.clip(logits, -30, 30)))).astype(np.float32)

    def learn(self, rows: Rows, task: NDArray[np.int32], label: F32, weight: F32 | None = None) -> None:
        """Learn from m examples: their rows, index of the task, label 0 or 1, and weight (1 where none is given)."""
        weight = np.ones(len(rows), np.float32) if weight is None else weight
        for chunk in _chunks(len(rows), self._settings.chunk):
            self._learn_chunk(rows[chunk], task[chunk], label[chunk], weight[chunk])

    def _learn_chunk(self, rows: Rows, task: NDArray[np.int32], label: F32, weight: F32) -> None:
        raw = self._raw(rows).astype(np.float64)
        self._moments += np.stack([np.full(self._width, len(rows)), raw.sum(axis=0), (raw**2).sum(axis=0)])
        levels, pages, x, linear = self._inputs(rows)
        a, p = self._embed(levels, pages)
        gradients = self._network.learn(a, p, pages == 0, x, linear, task.astype(np.int64), label, weight)
        if gradients is None:
            self.skipped_steps += 1
        else:
            rate = self._settings.table_rate
            descend_rows(levels, gradients[0], self._levels, self._level_squares, rate)
            descend_rows(pages, gradients[1], self._pages, self._page_squares, rate)
        ftrl_learn(np.concatenate([levels, pages[:, 1:]], axis=1), task, label, weight, self._z, self._n, self._bias)
        add_counts(levels, task, label, weight, self._positive, self._seen, self._totals)
        self.examples += len(rows)

    def _tables(self) -> dict[str, NDArray[np.generic]]:
        return {
            "z": self._z,
            "n": self._n,
            "positive": self._positive,
            "seen": self._seen,
            "levels": self._levels,
            "level_squares": self._level_squares,
            "pages": self._pages,
            "page_squares": self._page_squares,
        }

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Arrays from which `load` makes an equal classifier. Of the hashed tables only what is not zero."""
        out: dict[str, NDArray[np.generic]] = {
            "bias": self._bias,
            "totals": self._totals,
            "moments": self._moments,
            "counters": np.array([self.examples, self.skipped_steps], np.int64),
        }
        for name, table in self._tables().items():
            at = np.flatnonzero(table)
            out[f"{name}.at"], out[f"{name}.values"] = at.astype(np.int32), table.reshape(-1)[at]
        return out | {f"network.{key}": value for key, value in self._network.state().items()}

    def load(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Take over a saved state. Raises ValueError, IndexError, RuntimeError or KeyError where it does not fit."""
        self._bias[:], self._totals[:], self._moments[:] = state["bias"], state["totals"], state["moments"]
        self.examples, self.skipped_steps = (int(x) for x in state["counters"])
        for name, table in self._tables().items():
            flat = table.reshape(-1)
            flat[:] = 0
            flat[state[f"{name}.at"].astype(np.int64)] = state[f"{name}.values"]
        prefix = "network."
        self._network.load({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})


def _chunks(n: int, size: int) -> Iterator[slice]:
    return (slice(k, min(k + size, n)) for k in range(0, n, size))
