"""The incremental classifier: several learners of different kinds, and a blend that trusts them by what they got right.

    linear     hashed FTRL over the levels of all attributes and the last pages
    newton     second-order logistic regression over numbers, cosines and live target counts (models.newton)
    sequence   a Markov chain of the sessions with the outcome against one of those without (models.sequence)
    network    torch, on top of the two first; its rival tries another course (models.race)
    memory     the most similar remembered sessions (models.memory)
    baseline   River's answer (models.baseline)

It reads feature rows alone. What each expert says is written into the row when the visit is scored, and stays there until
the label is known: all of them, the blend and the race are judged by what they said then. Tables of levels are hashed:
memory does not grow. Answers are always finite.
"""

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from models.baseline import Baseline
from models.blend import Blend
from models.dense import TASK_WIDTH, dense, of_task
from models.features import CATEGORIES, EXPERTS
from models.hashed import add_counts, ftrl_learn, ftrl_logits, read_counts
from models.memory import Memory
from models.newton import Newton
from models.race import Race
from models.sequence import Sequence
from models.settings import ModelSettings
from models.sparse import sparse, under, unsparse

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
Rows = NDArray[np.void]
_LIMIT = 12.0  # a logit beyond it is a figure of speech
_SEQUENCE_BITS = 16
_MEASURED = ("numbers", "cosines", "counts")
_AT = {name: k for k, name in enumerate(EXPERTS)}


class Classifier:
    """One logit a visit and task. B visits, T tasks."""

    def __init__(self, settings: ModelSettings, tasks: int) -> None:
        self._settings, self._tasks = settings, tasks
        rows = 1 << settings.table_bits
        self._z: F32 = np.zeros((tasks, rows), np.float32)
        self._n: F32 = np.zeros((tasks, rows), np.float32)
        self._bias: F32 = np.zeros((tasks, 2), np.float32)
        self._positive: F32 = np.zeros((tasks, rows), np.float32)
        self._seen: F32 = np.zeros((tasks, rows), np.float32)
        self._totals = np.zeros((tasks, 2))
        self.newton = [Newton(TASK_WIDTH) for _ in range(tasks)]
        self._sequence = Sequence(tasks, _SEQUENCE_BITS)
        self.race = Race(settings, tasks)
        self.memory = Memory(settings, tasks)
        self.baseline = Baseline(settings, tasks)
        self.blend = Blend(tasks)
        self.examples = 0
        self.damaged = 0  # rows not learned from: what was measured in them is not finite

    @property
    def skipped_steps(self) -> int:
        """Steps refused because they were not finite."""
        return self.race.skipped_steps + sum(newton.refused for newton in self.newton)

    def score(self, rows: Rows) -> tuple[F32, F32]:
        """(B, T) probabilities: the blend's and the baseline's. Fills the rows' `counts`, `experts`, `generation`."""
        shape = len(rows), self._tasks
        if not len(rows) or not self._tasks:
            return np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        levels, pages = np.ascontiguousarray(rows["levels"]), np.ascontiguousarray(rows["pages"])
        counts = np.empty((len(rows), CATEGORIES, self._tasks, 2), np.float32)
        read_counts(levels, self._positive, self._seen, self._totals, counts)
        rows["counts"], rows["generation"] = counts, self.race.generation
        raw = dense(rows, self._settings.vectors)
        linear = np.empty(shape, np.float32)
        ftrl_logits(np.concatenate([levels, pages[:, 1:]], axis=1), self._z, self._n, self._bias, linear)
        baseline = self.baseline.score(rows)
        self._say(rows, "linear", linear)
        self._say(rows, "newton", np.stack([n.score(of_task(raw, t)) for t, n in enumerate(self.newton)], axis=1))
        self._say(rows, "sequence", self._sequence.score(pages))
        networks = self.race.score(rows, raw)
        self._say(rows, "network", networks[:, :, 0])
        self._say(rows, "rival", networks[:, :, 1])
        self._say(rows, "memory", self.memory.score(rows) + self.memory.prior)
        self._say(rows, "baseline", baseline)
        self._say(rows, "blend", self.blend.score(rows["experts"]))
        return _chance(rows["experts"][:, :, _AT["blend"]]), _chance(baseline)

    @staticmethod
    def _say(rows: Rows, expert: str, logits: F32 | F64) -> None:
        """An expert's answers; one that is not a number stays none."""
        rows["experts"][:, :, _AT[expert]] = np.clip(logits, -_LIMIT, _LIMIT)

    def learn(self, rows: Rows, fates: F64, boost: float = 1.0) -> None:
        """Learn from m examples. fates (m, 6): task, label 0 or 1, weight, steps, wait_ms, action (`lesson.Example`; -1 where
        not known). `boost` lengthens the networks' steps."""
        sound = np.ones(len(rows), np.bool_)
        for name in _MEASURED:
            sound &= np.isfinite(rows[name]).all(axis=tuple(range(1, rows[name].ndim)))
        self.damaged += int((~sound).sum())
        rows, fates = rows[sound], fates[sound]
        for chunk in _chunks(len(rows), self._settings.chunk):
            self._learn_chunk(rows[chunk], fates[chunk], boost)

    def _learn_chunk(self, rows: Rows, fates: F64, boost: float) -> None:
        task, (label, weight) = fates[:, 0].astype(np.int32), fates[:, 1:3].T.astype(np.float32).copy()
        levels, pages = np.ascontiguousarray(rows["levels"]), np.ascontiguousarray(rows["pages"])
        raw = dense(rows, self._settings.vectors)
        for t, newton in enumerate(self.newton):
            own = task == t
            if own.any():
                newton.learn(of_task(raw[own], t), label[own], weight[own])
                self.blend.learn(rows["experts"][own, t], t, label[own], weight[own])
        self.race.learn(rows, raw, fates, boost)
        ftrl_learn(np.concatenate([levels, pages[:, 1:]], axis=1), task, label, weight, self._z, self._n, self._bias)
        self._sequence.learn(pages, task, label, weight)
        self.memory.learn(rows, task, label, weight)
        self.baseline.learn(rows, task, label, weight)
        add_counts(levels, task, label, weight, self._positive, self._seen, self._totals)
        self.examples += len(rows)

    def shake(self, task: int, factor: float) -> None:
        """The stream has changed: believe less of what was."""
        self.newton[task].shake(factor)
        self.blend.shake(task, factor)

    def _tables(self) -> dict[str, F32]:
        return {
            "z": self._z, "n": self._n, "positive": self._positive, "seen": self._seen
        } | {f"sequence.{name}": table for name, table in self._sequence.tables().items()}  # fmt: skip

    def _parts(self) -> dict[str, Newton | Race | Memory | Baseline | Blend]:
        newtons: dict[str, Newton | Race | Memory | Baseline | Blend] = {
            f"newton{t}.": newton for t, newton in enumerate(self.newton)
        }
        return newtons | {
            "race.": self.race, "memory.": self.memory, "baseline.": self.baseline, "blend.": self.blend
        }  # fmt: skip

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Arrays from which `load` makes an equal classifier."""
        out: dict[str, NDArray[np.generic]] = {
            "bias": self._bias,
            "totals": self._totals,
            "counters": np.array([self.examples, self.damaged], np.int64),
        }
        out |= sparse(self._tables())
        for prefix, part in self._parts().items():
            out |= {prefix + name: array for name, array in part.state().items()}
        return out

    def load(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Take over a saved state. Raises ValueError, IndexError, RuntimeError or KeyError where it does not fit."""
        self._bias[:], self._totals[:] = state["bias"], state["totals"]
        self.examples, self.damaged = (int(x) for x in state["counters"])
        unsparse(self._tables(), state)
        for prefix, part in self._parts().items():
            part.load(under(prefix, state))


def _chance(logits: F32 | F64) -> F32:
    x = np.clip(np.nan_to_num(logits.astype(np.float64)), -_LIMIT, _LIMIT)
    return (1 / (1 + np.exp(-x))).astype(np.float32)


def _chunks(n: int, size: int) -> Iterator[slice]:
    return (slice(k, min(k + size, n)) for k in range(0, n, size))
