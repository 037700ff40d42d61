"""How far back a visit still says what this one is about, learned from the stream.

URL2vec pairs a visit with the visits before it, and a pair at distance d weighs w[d]. No fixed w serves all sites: an
encyclopaedia wants the last visit or two, a shop ten, a visitor with two tabs every other one. So the stream chooses:

1. s[d] = the mean cosine of a visit and the visit d before it, less the mean cosine of visits that have nothing to do
   with each other. Both are taken before the model learns from the visit: they tell what it could foretell.
2. w = what each distance adds to the others: the best linear prediction of a visit's vector from those before it, that
   is the Yule-Walker equations of an autoregressive process (Yule 1927, Walker 1931) on s, with w >= 0. Where visits are
   a walk along links, the second last visit is related only through the last one and adds next to nothing. Where a
   session keeps its topic, ten noisy witnesses are better than one, and all weigh the same.
3. What weighs less than `cut` costs more time than it gives and is left out, so that the window is no longer than useful.

Weights in proportion to s itself, best if pairs were independent, are too flat: same category among the ten nearest,
Wikispeedia, .528, by prediction .553. The fixed weights that suit Wikispeedia best give .05 on two noisy tabs
(streams/bench/synthetic.py), prediction .94.

Promises: what is learned depends on the state and the visits alone; the state is a few kB; at first every visit is
looked at, soon one in eight. Not here: counting, vectors.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from models.compiled import kernel, mix

Bools = NDArray[np.bool_]
F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
U64 = NDArray[np.uint64]

_OTHERS = 512  # rows of earlier visits to compare with: so many that few are of the same session
_DRAWS = 4  # comparisons with them a visit
_MEMORY = 4096  # observed visits: a changed site is followed in 30,000 visits; half as fast was no better at anything
_DENSE = 32_768  # so many first visits are all observed, at 8 % of the time: wrong weights stay in counts
_STRIDE = 8  # thereafter one visit in so many, at 3 %
_FALLS = np.array([0.0, 0.5, 1.0])  # a signal is first taken for 1 / d ** one of these, until it is known in detail
_SURPRISE = 0.5  # how far, as a share of its size, a signal may be from such a shape before it needs proof
_CHANCE = 1 / 64  # variance of a cosine by chance: what the first few cosines show of it may be much less
_TIMID = 0.25  # of their weight, at first, for pairs counted before anything is known of the reach …
_BOLD_AFTER = 4096  # … rising to all of it within so many visits: a link walk of 25k visits .53 instead of .46
_RIDGE = 0.02  # keeps the equations solvable where all distances say the very same
_SWEEPS = 40  # of projected Gauss-Seidel over ten unknowns: some microseconds


@kernel
def _compare(
    row: I32, recent: I32, repeat: Bools, vectors: NDArray[np.generic], one: float, mass: F64,
    stride: int, others: I32, counter: U64, sums: F64,
) -> int:  # fmt: skip
    """Add cosines, their squares and their number to sums (1 + window, 3), [0] for strangers. Returns visits observed."""
    window, dims, scale, n = len(sums) - 1, vectors.shape[1], 1.0 / (one * one), 0
    for k in range(len(row)):
        counter[0] += np.uint64(1)
        bits = mix(counter[0])
        i = row[k]
        if bits % np.uint64(stride) != 0 or i < 0 or repeat[k] or mass[i] <= 0:
            continue
        n += 1
        for d in range(window + _DRAWS):
            if d < window:
                j, to = recent[k, d], d + 1
            else:
                j, to = others[mix(bits + np.uint64(d)) % np.uint64(_OTHERS)], 0
            # The same page makes no pair, and a row without mass has no say yet.
            if j < 0 or j == i or j >= len(mass) or mass[j] <= 0:
                continue
            dot = vectors[i, 0] * vectors[j, 0]  # of 16-bit integers: exact in 64 bits, so in any order, so fast
            for c in range(1, dims):
                dot += vectors[i, c] * vectors[j, c]
            cosine = np.float64(dot) * scale
            sums[to, 0] += cosine
            sums[to, 1] += cosine * cosine
            sums[to, 2] += 1
        others[mix(bits) % np.uint64(_OTHERS)] = i
    return n


@kernel
def _measure(sums: F64, shapes: F64, signal: F64) -> float:
    """Write the cosines beyond those of strangers, shrunk to a shape (an empirical Bayes estimate). Returns the most there is.

    Shapes (m, window) compete by their likelihood. The size of the signal is what the likely ones fit, or, where the
    stream has another shape altogether, what its squares have beyond what chance would leave there, if that is more.
    """
    window, m = len(signal), len(shapes)
    mean, error = np.zeros(1 + window), np.zeros(1 + window)
    for d in range(1 + window):
        n = max(sums[d, 2], 1.0)
        mean[d] = sums[d, 0] / n
        spread = max(sums[d, 1] - n * mean[d] * mean[d], 0.0)
        error[d] = (spread + 16 * _CHANCE) / (n + 16) / n
    fit, likely = np.zeros(m), np.zeros(m)
    for a in range(m):
        along, power = 0.0, 0.0
        for d in range(window):
            doubt = error[1 + d] + error[0]
            along += shapes[a, d] * (mean[1 + d] - mean[0]) / doubt
            power += shapes[a, d] * shapes[a, d] / doubt
        fit[a] = max(along, 0.0) / power
        likely[a] = fit[a] * fit[a] * power / 2
    likely = np.exp(likely - likely.max())
    likely /= likely.sum()
    shape, size, beyond, power = np.zeros(window), 1e-6, 0.0, 0.0
    for a in range(m):
        shape += likely[a] * shapes[a]
        size += likely[a] * fit[a]
    for d in range(window):
        plain, doubt = mean[1 + d] - mean[0], error[1 + d] + error[0]
        beyond += plain * plain / doubt - 1
        power += shape[d] * shape[d] / doubt
    size = max(size, np.sqrt(max(beyond, 0.0) / power))
    most = max(1 - mean[0], 0.05)
    for d in range(window):
        trust = 1 / (1 + (error[1 + d] + error[0]) / (_SURPRISE * size) ** 2)
        value = trust * (mean[1 + d] - mean[0]) + (1 - trust) * size * shape[d]
        signal[d] = min(max(value, 0.0), most)
    return float(most)


@kernel
def _predict(signal: F64, whole: float, out: F64) -> None:
    """Solve G w = signal for w >= 0, where G[d, e] = signal[|d - e|] and `whole` on the diagonal.

    Nothing in G is negative, so no w exceeds signal / whole: it cannot run away, whatever was measured.
    """
    n = len(signal)
    out[:] = signal / (whole + signal.sum())  # nearly the answer already where all say the same
    for _ in range(_SWEEPS):
        for d in range(n):
            rest = signal[d]
            for e in range(n):
                if e != d:
                    rest -= signal[abs(d - e) - 1] * out[e]
            out[d] = max(0.0, rest / whole)


class Reach:
    """Weights of the distances 1 … longest."""

    def __init__(self, longest: int, cut: float = 0.1) -> None:
        if longest < 1 or not 0 <= cut < 1:
            raise ValueError(f"a window of {longest} distances, cut at {cut} of the largest weight, is none")
        self._cut = cut
        self._shapes: F64 = 1.0 / np.arange(1, longest + 1) ** _FALLS[:, None]  # (m, longest)
        self._sums: F64 = np.zeros((1 + longest, 3))  # as _compare has it, each visit worth less the older it is
        self._others: I32 = np.full(_OTHERS, -1, np.int32)
        self._counter: U64 = np.zeros(2, np.uint64)  # visits seen; and before the last lesson
        self.signal: F64 = np.zeros(longest)  # cosine beyond that of strangers
        self.weight: F32 = np.zeros(
            longest, np.float32
        )  # of a pair at distance d: [d - 1]; at most 1; 0 = make no pair
        self.window = longest  # the distances beyond have weight 0
        self._weigh()

    def observe(
        self, row: I32, recent: I32, repeat: Bools, vectors: NDArray[np.generic], one: float, mass: F64
    ) -> None:
        """Look at visits (n,) and their recent rows (n, at least longest) before they are learned; renew the weights.

        Vectors have length `one`, whatever their type; -1 is an unknown row, and rows of mass 0 are left out.
        """
        if recent.shape[1] < len(self.weight):
            raise ValueError(f"{len(self.weight)} earlier visits are needed of each visit, got {recent.shape[1]}")
        stride = 1 if self._counter[0] < _DENSE else _STRIDE
        fresh = np.zeros_like(self._sums)
        self._counter[1] = self._counter[0]
        n = _compare(row, recent, repeat, vectors, one, mass, stride, self._others, self._counter, fresh)
        self._sums *= max(0.0, 1 - n / _MEMORY)
        self._sums += fresh
        self._weigh()

    def _weigh(self) -> None:
        weight = np.empty(len(self.weight))
        most = _measure(self._sums, self._shapes, self.signal)
        _predict(self.signal, most * (1 + _RIDGE), weight)
        top = float(weight.max())
        # Where visits of a session lie further apart than strangers do, nothing is known but what is so elsewhere.
        weight = weight / top if top > 0 else self._shapes.mean(axis=0)
        weight[weight < self._cut] = 0
        self.window = int(np.flatnonzero(weight)[-1]) + 1
        known = min(1.0, float(self._counter[1]) / _BOLD_AFTER)
        self.weight = (weight * (_TIMID + (1 - _TIMID) * known)).astype(np.float32)

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Arrays from which `load` makes an equal one."""
        return {"sums": self._sums, "others": self._others, "counter": self._counter}

    def load(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Take over a saved state. Raises ValueError or KeyError where it does not fit."""
        for name, mine in (("sums", self._sums), ("others", self._others), ("counter", self._counter)):
            if state[name].shape != mine.shape:
                raise ValueError(f"{name} of the reach: expected shape {mine.shape}, got {state[name].shape}")
            mine[...] = state[name]
        self._weigh()
