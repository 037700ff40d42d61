"""Who competes in `url2vec bench classifier`, and what each is given.

All read the same rows, which our learner made when it scored (live counts and cosines of its vectors included), and learn the
same examples with the same weights at the same moment. One pass, one thread, seeded.

    River      `linear_model.LogisticRegression` with AdaGrad, log-loss: one-hot levels unscaled, numbers a quarter of their
               logarithm; `with counts`: the live target counts too, which River users make with `feature_extraction`.
               Rates, and leaving the last pages out, were chosen on Wikispeedia: it is at its best there.
    forest     `forest.ARFClassifier` of River, learned from a sample of the examples and asked about a sample of the visits
    FTRL       hashed, no L1 (McMahan et al. 2013), of levels and the last pages; `with counts` as above
    LightGBM   trained anew on all examples so far whenever another n have become known; it answers with the last model
               that was finished, and with the rate so far until there is one. All numbers, cosines and counts; levels as
               native categories where there are few, else by how frequent they are. Settings searched on Wikispeedia.
    latent     FTRL and LightGBM with the hidden probabilities of `streams.bench.latent` as additional inputs
"""

import importlib.util
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from river import linear_model, optim, preprocessing

from models.compiled import kernel
from models.features import NUMBERS
from streams.bench.classifier_stream import F32, I32, I64, Recording, Rows, ToLearn
from streams.bench.classifier_trees import Forest, LightGBM
from streams.bench.latent import Factors

INSTALL = "LightGBM is left out: it is not installed, pip install -e '.[bench]'"
_BITS = 18  # log2 of the places of hashed FTRL, as many as ours has
_ALPHA, _BETA, _L2 = 0.1, 1.0, 0.1
_SCALE = 0.25  # logarithms of counts and seconds reach about ten; one-hot attributes are one


class Opponent(Protocol):
    """One method with one setting. B visits, T tasks, m examples."""

    name: str
    setting: str

    def score(self, start: int, rows: Rows) -> F32:
        """(B, T) probabilities of visits [start, start + B) of the stream, NaN where it was not asked."""

    def learn(self, event: ToLearn, rows: Rows) -> None:
        """Learn examples; `rows` (m,) are those of their visits."""


@dataclass
class Played:
    """What an opponent answered, and what it took."""

    probability: F32  # (n, T)
    score_s: float = 0.0  # CPU time of all threads
    learn_s: float = 0.0
    examples: int = 0

    def rates(self) -> tuple[float | None, float | None]:
        """Examples learned and visits scored a second of CPU time; None where it took none of ours."""
        scored = int((~np.isnan(self.probability[:, 0])).sum()) if self.probability.size else 0
        return (
            round(self.examples / self.learn_s, 1) if self.learn_s > 0 else None,
            round(scored / self.score_s, 1) if self.score_s > 0 else None,
        )


def play(recording: Recording, opponent: Opponent) -> Played:
    """Show an opponent the whole stream."""
    played = Played(np.full((recording.visits, len(recording.tasks)), np.nan, np.float32))
    for event in recording.events:
        began = time.process_time()
        if isinstance(event, ToLearn):
            opponent.learn(event, recording.rows[event.visit])
            played.learn_s += time.process_time() - began
            played.examples += len(event.visit)
        else:
            start, stop = event
            played.probability[start:stop] = opponent.score(start, recording.rows[start:stop])
            played.score_s += time.process_time() - began
    return played


# -- River ---------------------------------------------------------------------------------------------------------------


def attributes(rows: Rows, task: I32, with_counts: bool) -> list[dict[int, float]]:
    """Each row as River wants it: levels are 1 under their hash, numbers and counts of its task under negative keys."""
    levels, numbers = rows["levels"].astype(np.int64), rows["numbers"] * np.float32(_SCALE)
    value = [(levels != 0).astype(np.float32), numbers]
    if with_counts:
        counts = rows["counts"][np.arange(len(rows)), :, task].astype(np.float32) * np.array([1, _SCALE], np.float32)
        value.append(counts.reshape(len(rows), -1))
    dense = sum(part.shape[1] for part in value[1:])
    keys = np.concatenate([levels, np.broadcast_to(-1 - np.arange(dense), (len(rows), dense))], axis=1)
    values = np.concatenate(value, axis=1)
    return [
        dict(zip(key[there].tolist(), row[there].tolist(), strict=True))
        for key, row, there in zip(keys, values, values != 0, strict=True)
    ]


_NUMBER_KEYS = range(-NUMBERS, 0)  # of the numbers in `attributes`, which come before the counts


class River:
    """Logistic regression, as a River user would write it well: levels one-hot, numbers through a StandardScaler, and target
    statistics; without them (`with_counts`) numbers are scaled by a constant."""

    def __init__(self, tasks: int, rate: float, with_counts: bool) -> None:
        self.name = "River, standardised, with counts" if with_counts else "River"
        self.setting = f"AdaGrad {rate:g}"
        self._with_counts = with_counts
        self._models: list[Any] = [linear_model.LogisticRegression(optimizer=optim.AdaGrad(rate)) for _ in range(tasks)]
        self._scalers: list[Any] = [preprocessing.StandardScaler() for _ in range(tasks)]

    def _standardised(self, x: dict[int, float], t: int, learn: bool) -> dict[int, float]:
        if not self._with_counts:
            return x
        numbers = {key: x.get(key, 0.0) for key in _NUMBER_KEYS}
        if learn:
            self._scalers[t].learn_one(numbers)
        standardised: dict[int, float] = self._scalers[t].transform_one(numbers)
        return x | standardised

    def score(self, start: int, rows: Rows) -> F32:
        """One after the other."""
        out = np.empty((len(rows), len(self._models)), np.float32)
        for t, model in enumerate(self._models):
            x = attributes(rows, np.full(len(rows), t, np.int32), self._with_counts)
            out[:, t] = [model.predict_proba_one(self._standardised(one, t, learn=False))[True] for one in x]
        return np.nan_to_num(out, nan=0.5)

    def learn(self, event: ToLearn, rows: Rows) -> None:
        """One after the other."""
        x = attributes(rows, event.task, self._with_counts)
        for one, t, y, w in zip(x, event.task.tolist(), event.label.tolist(), event.weight.tolist(), strict=True):
            self._models[t].learn_one(self._standardised(one, t, learn=True), y > 0.5, w)


# -- FTRL ----------------------------------------------------------------------------------------------------------------


@kernel
def _ftrl(at: I64, value: F32, task: I32, label: F32, weight: F32, z: F32, n: F32, learning: bool, out: F32) -> None:
    """Logits of B rows, and, where learning, a step after each (McMahan et al. 2013, algorithm 1). Place 0 is the bias."""
    for b in range(at.shape[0]):
        t, s = task[b], 0.0
        for a in range(at.shape[1]):
            if value[b, a] != 0:
                i = at[b, a]
                s -= value[b, a] * z[t, i] / ((_BETA + np.sqrt(n[t, i])) / _ALPHA + _L2)
        out[b] = s
        if not learning:
            continue
        error = weight[b] * (1 / (1 + np.exp(-min(max(s, -30.0), 30.0))) - label[b])
        for a in range(at.shape[1]):
            if value[b, a] != 0:
                i, g = at[b, a], error * value[b, a]
                w = -z[t, i] / ((_BETA + np.sqrt(n[t, i])) / _ALPHA + _L2)
                z[t, i] += g - (np.sqrt(n[t, i] + g * g) - np.sqrt(n[t, i])) / _ALPHA * w
                n[t, i] += g * g


class Ftrl:
    """Hashed logistic regression; `factors` (n, H) are further inputs of each visit of the stream."""

    setting = f"α {_ALPHA:g}"

    def __init__(self, tasks: int, with_counts: bool, factors: F32 | None = None) -> None:
        self.name = "FTRL, with counts" if with_counts else "FTRL"
        self.name += " and latent factors" if factors is not None else ""
        self._with_counts, self._factors, self._tasks = with_counts, factors, tasks
        self._z: F32 = np.zeros((tasks, 1 << _BITS), np.float32)
        self._n: F32 = np.zeros((tasks, 1 << _BITS), np.float32)
        at, value, task = np.zeros((0, 1), np.int64), np.zeros((0, 1), np.float32), np.zeros(0, np.int32)
        for learning in (False, True):  # compiled before the clock runs
            _ftrl(at, value, task, value[:, 0], value[:, 0], self._z, self._n, learning, value[:, 0])

    def _inputs(self, rows: Rows, task: I32, visit: I64) -> tuple[I64, F32]:
        m, mask = len(rows), (1 << _BITS) - 1
        levels, pages = rows["levels"].astype(np.int64), rows["pages"][:, 1:].astype(np.int64)
        at = [np.zeros((m, 1), np.int64), levels & mask, (pages * 0x9E3779B1 >> 7) & mask]
        value = [np.ones((m, 1), np.float32), levels != 0, pages != 0]
        if self._with_counts:
            counts = rows["counts"][np.arange(m), :, task].astype(np.float32) * np.array([1, _SCALE], np.float32)
            value += [counts.reshape(m, -1), rows["numbers"] * np.float32(_SCALE)]
        if self._factors is not None:
            value.append(self._factors[visit])
        dense = sum(part.shape[1] for part in value[3:])
        at.append(np.broadcast_to(1 + np.arange(dense), (m, dense)))  # shares places with a level in 260,000
        return np.concatenate(at, axis=1), np.concatenate(value, axis=1, dtype=np.float32)

    def score(self, start: int, rows: Rows) -> F32:
        """Of all tasks."""
        out = np.empty((len(rows), self._tasks), np.float32)
        nothing, logit = np.zeros(len(rows), np.float32), np.empty(len(rows), np.float32)
        visit = start + np.arange(len(rows))
        for t in range(self._tasks):
            task = np.full(len(rows), t, np.int32)
            _ftrl(*self._inputs(rows, task, visit), task, nothing, nothing, self._z, self._n, False, logit)
            out[:, t] = 1 / (1 + np.exp(-np.clip(logit, -30, 30)))
        return out

    def learn(self, event: ToLearn, rows: Rows) -> None:
        """One after the other."""
        at, value = self._inputs(rows, event.task, event.visit)
        unused = np.empty(len(rows), np.float32)
        _ftrl(at, value, event.task, event.label, event.weight, self._z, self._n, True, unused)


def latent_factors(recording: Recording, seed: int) -> F32:
    """(n, H) the factors of each visit as they were known when it was scored."""
    machine, parts = Factors(seed=seed), []
    for event in recording.events:
        if not isinstance(event, ToLearn):
            rows = recording.rows[event[0] : event[1]]
            parts.append(machine.read(rows))
            machine.learn(rows)
    return np.concatenate(parts)


GROUPS = ("ours", "river", "ftrl", "lightgbm", "forest", "latent")
DEFAULT = ("ours", "river", "ftrl", "lightgbm")


def opponents(recording: Recording, groups: Sequence[str], seed: int, every: Sequence[int]) -> list[Opponent]:
    """Those of the named groups, untaught."""
    tasks, found = len(recording.tasks), list[Opponent]()
    if "river" in groups:
        found += [River(tasks, rate, with_counts=rate < 0.3) for rate in (0.05, 0.1, 0.3)]
    if "forest" in groups:
        found.append(Forest(tasks, seed))
    if "ftrl" in groups:
        found += [Ftrl(tasks, with_counts=True), Ftrl(tasks, with_counts=False)]
    if "lightgbm" in groups and installed():
        found += [LightGBM(recording, n, seed) for n in every]
    if "latent" in groups:
        factors = latent_factors(recording, seed)
        found.append(Ftrl(tasks, with_counts=True, factors=factors))
        if installed():
            found.append(LightGBM(recording, max(every), seed, factors))
    return found


def installed() -> bool:
    """Whether LightGBM is."""
    return importlib.util.find_spec("lightgbm") is not None
