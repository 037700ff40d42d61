"""Has what the stream means changed? Two detectors on progressive losses, and what the learner does about it.

Each task has the losses of two answers, ours and the baseline's. Each is averaged over `CHUNK` examples and watched by
River's ADWIN (Bifet and Gavaldà 2007), which compares the two halves of a window at every cut, and by its Page-Hinkley test
(Page 1954), which adds up what is above the mean. Both are fed in units of the standard deviation of the first `FIRST`
chunks, so that a task whose loss is .02 needs no other thresholds than one whose loss is .6.

A drift is a *rise*. A loss that falls (a cold start, a lesson learned) only begins a new comparison. After either, both
detectors forget, and the next `FIRST` chunks say what is normal now.

On a drift of our loss, learning rates rise (`boost`) and fall back over some thousand examples.

The detectors keep no state that can be saved. So the chunks since the last new beginning are what is kept, at most
2 · `HISTORY`; at that number detectors are made anew from the last `HISTORY`, here and in whoever was restored, so that both
see the same, bit by bit.

How soon, how often (tests/unit/test_models_drift.py): losses of calibrated answers that do not change raise no false alarm
in two million examples (in 24 million when this was chosen), for tasks of which one visit in 50, two in three or 19 in 20
are positive; where labels change their meaning that is found within 400 examples; a loss that grows by 15 % in half of
the cases within 2,000, where both labels are common. Where one is rare, such a rise drowns in chance and is not found.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from river.drift import ADWIN, PageHinkley

from models.counts import F32, F64, I32, Mask

I64 = NDArray[np.int64]
State = dict[str, NDArray[np.generic]]

CHUNK = 64  # examples: the mean of so many losses is no longer far from normally distributed
HISTORY = 256  # chunks
FIRST = 24  # chunks, 1,536 examples, that say what is normal; the standard deviation is then known to a seventh
BOOST = 4.0  # of learning rates, at once after a drift
BOOST_EXAMPLES = 2_000.0  # after which 1/e of it is left
_WORST = 20.0  # a loss is not believed to be more: one example must not be a drift
_SIDES = 2
OURS, BASELINE = 0, 1
_SMALLEST = 1e-6  # standard deviation
_ADWIN_DELTA = 1e-3  # finds a rise by 6 % in eight streams of eight, 1e-5 in three; neither raised a false alarm
_PH_DELTA = 0.5  # standard deviations by which a chunk may be above the mean without counting
_PH_THRESHOLD = 25.0  # standard deviations, added up over chunks


@dataclass
class _Detectors:
    """Of one loss, since its last beginning."""

    scale: float
    adwin: ADWIN
    page_hinkley: PageHinkley

    def feed(self, chunk: float) -> tuple[bool, bool]:
        """Which of the two, ADWIN and Page-Hinkley, see a change at this chunk."""
        self.adwin.update(chunk / self.scale)
        self.page_hinkley.update(chunk / self.scale)
        return self.adwin.drift_detected, self.page_hinkley.drift_detected


def _detectors(history: F64) -> _Detectors:
    """Detectors that have read these chunks, from their beginning; what they saw in them is forgotten."""
    scale = max(float(history[:FIRST].std(ddof=1)), _SMALLEST)
    made = _Detectors(
        scale,
        ADWIN(delta=_ADWIN_DELTA, clock=1),
        PageHinkley(min_instances=FIRST, delta=_PH_DELTA, threshold=_PH_THRESHOLD, alpha=1.0, mode="up"),
    )
    for chunk in history.tolist():
        made.feed(chunk)
    return made


class Drift:
    """Watches T tasks, our loss and the baseline's of each.

    >>> drift, task = Drift(1), np.zeros(6400, np.int32)
    >>> low = np.random.default_rng(1).exponential(0.4, 6400)
    >>> bool(drift.learn(task, low, low).any()), drift.boost(0)
    (False, 1.0)
    >>> bool(drift.learn(task[:1280], low[:1280] + 1, low[:1280])[0]), drift.counted(0), round(drift.boost(0), 1)
    (True, (1, 0), 2.6)
    """

    def __init__(self, tasks: int) -> None:
        self._pending: F64 = np.zeros((tasks, _SIDES, CHUNK))  # losses of the chunk that is not full
        self._history: F64 = np.zeros((tasks, _SIDES, 2 * HISTORY))  # means of chunks since the last beginning
        self._length: I64 = np.zeros((tasks, _SIDES), np.int64)
        self._found: I64 = np.zeros((tasks, _SIDES, 3), np.int64)  # drifts; those seen by ADWIN; by Page-Hinkley
        self._examples: I64 = np.zeros(tasks, np.int64)
        self._last: I64 = np.full((tasks, _SIDES), -1, np.int64)  # example of the last drift
        self._made: dict[tuple[int, int], _Detectors] = {}  # follow from the history

    def learn(self, task: I32, loss_model: F32 | F64, loss_baseline: F32 | F64) -> Mask:
        """Read examples (m,) in order: their task, and the loss of each answer when it was given; a loss that is not finite
        is passed over. Returns (T,) which tasks' loss of ours has just drifted upwards."""
        drifted = np.zeros(len(self._examples), np.bool_)
        losses = np.stack([loss_model, loss_baseline], axis=1).astype(np.float64)
        sound = np.isfinite(losses).all(axis=1) & (task >= 0) & (task < len(drifted))
        for t in np.unique(task[sound]).tolist():
            mine = np.clip(losses[sound & (task == t)], 0.0, _WORST)
            while len(mine):
                filled = int(self._examples[t] % CHUNK)
                some, mine = mine[: CHUNK - filled], mine[CHUNK - filled :]
                self._pending[t, :, filled : filled + len(some)] = some.T
                self._examples[t] += len(some)
                if filled + len(some) == CHUNK:
                    rose = [self._chunk(t, side, float(self._pending[t, side].mean())) for side in range(_SIDES)]
                    drifted[t] |= rose[OURS]
        return drifted

    def _chunk(self, t: int, side: int, mean: float) -> bool:
        """Take in one chunk; whether it shows a rise."""
        n, history = int(self._length[t, side]), self._history[t, side]
        history[n] = mean
        n += 1
        self._length[t, side] = n
        made = self._made.get((t, side))
        if made is None:
            if n >= FIRST:
                self._made[t, side] = _detectors(history[:n])
            return False
        adwin, page_hinkley = made.feed(mean)
        if adwin or page_hinkley:
            rise = page_hinkley or _rose(history[:n])
            self._length[t, side] = 0
            del self._made[t, side]
            if rise:
                self._found[t, side] += (1, int(adwin), int(page_hinkley))
                self._last[t, side] = self._examples[t]
            return rise
        if n == 2 * HISTORY:
            history[:HISTORY] = history[HISTORY:].copy()
            self._length[t, side] = HISTORY
            self._made[t, side] = _detectors(history[:HISTORY])
        return False

    def boost(self, task: int) -> float:
        """What learning rates of a task are to be multiplied by: 1, and up to BOOST after a drift of our loss."""
        since = self.since(task)
        return 1.0 if since is None else 1.0 + (BOOST - 1.0) * math.exp(-since / BOOST_EXAMPLES)

    def since(self, task: int, side: int = OURS) -> int | None:
        """Examples of the task since the last drift of a loss; None where there was none."""
        last = int(self._last[task, side])
        return None if last < 0 else int(self._examples[task]) - last

    def counted(self, task: int) -> tuple[int, int]:
        """Drifts of our loss, and of the baseline's."""
        return int(self._found[task, OURS, 0]), int(self._found[task, BASELINE, 0])

    def seen_by(self, task: int, side: int = OURS) -> tuple[int, int]:
        """Of them those that ADWIN saw first, and those that Page-Hinkley did; both may have."""
        return int(self._found[task, side, 1]), int(self._found[task, side, 2])

    def state(self) -> State:
        """Arrays from which `load` makes one that sees the same from now on."""
        held = np.arange(2 * HISTORY) < self._length[..., None]
        return {
            "pending": self._pending.copy(), "history": self._history[held], "length": self._length.copy(),
            "found": self._found.copy(), "examples": self._examples.copy(), "last": self._last.copy(),
        }  # fmt: skip

    def load(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Take over a saved state. Raises ValueError or KeyError where it does not fit; then do not use this."""
        mine = {
            "pending": self._pending, "length": self._length, "found": self._found, "examples": self._examples,
            "last": self._last,
        }  # fmt: skip
        for name, array in mine.items():
            if state[name].shape != array.shape or state[name].dtype != array.dtype:
                raise ValueError(f"{name} of drift has the shape {state[name].shape}, expected {array.shape}")
        length, history = state["length"].astype(np.int64), state["history"].astype(np.float64)
        if length.min(initial=0) < 0 or length.max(initial=0) >= 2 * HISTORY or length.sum() != len(history):
            raise ValueError(f"{len(history)} chunks of losses are not as many as are said to be there")
        if not (np.isfinite(history).all() and np.isfinite(state["pending"].astype(np.float64)).all()):
            raise ValueError("a loss in the history of drift is not finite")
        if state["examples"].astype(np.int64).min(initial=0) < 0:
            raise ValueError("a task of drift has a negative number of examples")
        for name, array in mine.items():
            array[...] = state[name]
        self._history[...] = 0
        self._history[np.arange(2 * HISTORY) < self._length[..., None]] = history
        self._made = {
            (t, side): _detectors(self._history[t, side, : length[t, side]])
            for t, side in np.argwhere(length >= FIRST).tolist()
        }


def _rose(history: F64) -> bool:
    """Whether the newest chunks are above those before, at the cut that tells the two apart best."""
    n = len(history)
    cut = np.arange(1, n)
    below, total = np.cumsum(history)[:-1], float(history.sum())
    gap = (total - below) / (n - cut) - below / cut
    best = int(np.argmax(np.abs(gap) * np.sqrt(cut * (n - cut))))
    return bool(gap[best] > 0)
