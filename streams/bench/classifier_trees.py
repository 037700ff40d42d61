"""Trees as opponents in `url2vec bench classifier`: LightGBM trained anew again and again, and River's adaptive forest.

Settings were searched on Wikispeedia. What decided is how little LightGBM may believe: visits of a session share their
label, and larger leaves or more rounds learn sessions by heart.
"""

import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from river import forest

from streams.bench.classifier_stream import F32, I64, Recording, Rows, ToLearn

_FEW = 255  # distinct levels that LightGBM takes as categories
_FOREST_SAMPLE = 10  # one example and one visit of so many
_TREES = {
    "objective": "binary", "num_leaves": 7, "learning_rate": 0.05, "min_data_in_leaf": 300, "feature_fraction": 0.5,
    "bagging_fraction": 0.8, "bagging_freq": 1, "lambda_l2": 1.0, "max_bin": 127, "cat_smooth": 20.0, "num_threads": 1,
    "deterministic": True, "force_row_wise": True, "verbosity": -1,
}  # fmt: skip
_ROUNDS, _PATIENCE = 300, 20
_HELD_OUT = 6  # the newest of so many examples tell when to stop


class Forest:
    """River's adaptive random forest on a sample: it is a hundred times slower than the others."""

    name, setting = "River, adaptive forest", f"10 trees, 1 visit of {_FOREST_SAMPLE}"

    def __init__(self, tasks: int, seed: int) -> None:
        self._models: list[Any] = [forest.ARFClassifier(n_models=10, seed=seed) for _ in range(tasks)]

    @staticmethod
    def _numbers(rows: Rows, task: int) -> list[dict[int, float]]:
        return [dict(enumerate(row)) for row in np.nan_to_num(numbers_of(rows, task)).astype(np.float64).tolist()]

    def score(self, start: int, rows: Rows) -> F32:
        """Of one visit in so many."""
        out = np.full((len(rows), len(self._models)), np.nan, np.float32)
        chosen = np.flatnonzero((start + np.arange(len(rows))) % _FOREST_SAMPLE == 0)
        for t, model in enumerate(self._models):
            for k, x in zip(chosen.tolist(), self._numbers(rows[chosen], t), strict=True):
                out[k, t] = model.predict_proba_one(x).get(True, 0.5)
        return out

    def learn(self, event: ToLearn, rows: Rows) -> None:
        """From one example in so many."""
        for t, model in enumerate(self._models):
            chosen = (event.task == t) & (event.visit % _FOREST_SAMPLE == 1)
            for x, y in zip(self._numbers(rows[chosen], t), event.label[chosen].tolist(), strict=True):
                model.learn_one(x, y > 0.5)


@dataclass
class _Trees:
    """A finished model, and how it reads levels."""

    booster: Any
    columns: list[tuple[bool, I64, NDArray[np.float32]]]  # as categories?, known levels in order, what each becomes

    def matrix(self, rows: Rows, task: int, factors: F32 | None) -> F32:
        """(B, columns) numbers first, then levels."""
        parts: list[NDArray[Any]] = [numbers_of(rows, task)]
        if factors is not None:
            parts.append(factors)
        levels = rows["levels"].astype(np.int64)
        for a, (_, known, becomes) in enumerate(self.columns):
            place = np.minimum(np.searchsorted(known, levels[:, a]), len(known) - 1)
            parts.append(np.where(known[place] == levels[:, a], becomes[place], np.nan)[:, None])
        return np.concatenate(parts, axis=1, dtype=np.float32)


def numbers_of(rows: Rows, task: int) -> F32:
    """(B, columns) all numbers of the rows: as they are, cosines, and the live counts of one task."""
    counts = rows["counts"][:, :, task].reshape(len(rows), 2 * rows["counts"].shape[1])  # none is a number of rows too
    return np.concatenate([rows["numbers"], rows["cosines"], counts], axis=1, dtype=np.float32)


class LightGBM:
    """Boosted trees, trained anew every `every` examples of a task."""

    def __init__(self, recording: Recording, every: int, seed: int, factors: F32 | None = None) -> None:
        self._lightgbm = importlib.import_module("lightgbm")
        self.name = "LightGBM" + (" with latent factors" if factors is not None else "")
        self.setting = f"anew every {every:,}"
        self._recording, self._every, self._factors = recording, every, factors
        self._parameters = _TREES | {"seed": seed}
        tasks = len(recording.tasks)
        self._examples: list[list[tuple[I64, F32, F32]]] = [[] for _ in range(tasks)]
        self._known, self._due = [0] * tasks, [every] * tasks
        self._rate = [[1.0, 2.0] for _ in range(tasks)]
        self._trees: list[_Trees | None] = [None] * tasks
        self.trainings = 0

    def score(self, start: int, rows: Rows) -> F32:
        """With the last model of each task."""
        out = np.empty((len(rows), len(self._trees)), np.float32)
        factors = None if self._factors is None else self._factors[start : start + len(rows)]
        for t, trees in enumerate(self._trees):
            out[:, t] = (
                self._rate[t][0] / self._rate[t][1]
                if trees is None
                else trees.booster.predict(trees.matrix(rows, t, factors), num_threads=1)
            )
        return out

    def learn(self, event: ToLearn, rows: Rows) -> None:
        """Keep the examples; train where enough have come."""
        for t in range(len(self._trees)):
            mine = event.task == t
            self._examples[t].append((event.visit[mine], event.label[mine], event.weight[mine]))
            self._known[t] += int(mine.sum())
            self._rate[t][0] += float((event.weight * event.label)[mine].sum())
            self._rate[t][1] += float(event.weight[mine].sum())
            if self._known[t] >= self._due[t]:
                self._due[t] += self._every
                self._train(t)

    def _train(self, task: int) -> None:
        parts = self._examples[task]
        visit = np.concatenate([part[0] for part in parts])
        label, weight = np.concatenate([part[1] for part in parts]), np.concatenate([part[2] for part in parts])
        rows = self._recording.rows[visit]
        levels = rows["levels"].astype(np.int64)
        columns = []
        for a in range(levels.shape[1]):
            known, count = np.unique(levels[:, a], return_counts=True)
            few = 1 < len(known) <= _FEW
            becomes = np.arange(len(known)) if few else np.log1p(count)
            columns.append((few, known, becomes.astype(np.float32)))
        trees = _Trees(None, columns)
        x = trees.matrix(rows, task, None if self._factors is None else self._factors[visit])
        first = x.shape[1] - len(columns)
        categories = [first + a for a, (few, _, _) in enumerate(columns) if few]
        cut = len(label) - len(label) // _HELD_OUT
        old, new = (
            self._lightgbm.Dataset(x[part], label[part], weight=weight[part], categorical_feature=categories)
            for part in (slice(0, cut), slice(cut, None))
        )
        stop = self._lightgbm.early_stopping(_PATIENCE, verbose=False)
        trees.booster = self._lightgbm.train(self._parameters, old, _ROUNDS, valid_sets=[new], callbacks=[stop])
        self._trees[task] = trees
        self.trainings += 1
