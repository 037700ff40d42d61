"""Counts that last on an endless stream: who was visited near whom, what came next, how often, and when last.

* *Forgetting.* A visit at event time t weighs 2^(t / half-life), so that older ones matter less without being touched. When
  a visit's weight has grown beyond 2^16 everything is divided by that, which is exact in binary floating point.
* *Time* is the visits' own, and never goes back. It moves by a sixtieth of a half-life a lesson at most, so that one clock
  that is wrong by years does not make everything forgotten.

Promises: what is added depends on the arguments and the state alone. Which URL a row stands for, and its vector, are others'
business; rows are given and taken from outside.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from models.counts import (
    F32,
    F64,
    I32,
    U64,
    Mask,
    Slots,
    add_pairs,
    add_steps,
    add_sums,
    add_visits,
    longer,
    step_share,
)
from models.exchange import Delta
from models.settings import ModelSettings

LARGEST_UNIT = 2.0**16
_CLOCK_STEP = 1 / 60  # of a half-life, a lesson
_SWEEPS = 16  # in a time to live, URLs that have outlived it are looked for this often


class Counts:
    """Of n rows, which grow by `reserve`. Weights are in `unit`s: what one visit adds now."""

    def __init__(self, settings: ModelSettings) -> None:
        self._half_life_ms, self._time_to_live_ms = settings.half_life_ms, settings.time_to_live_ms
        self.near = Slots(settings.slots)  # visited near each other, either way
        self.after = Slots(settings.successor_slots)  # came right after
        self.mass: F64 = np.zeros(0)  # Σ of the weights of a row's pairs; float64, for small weights meet large sums
        self.visits: F64 = np.zeros(0)
        self.last_min: I32 = np.zeros(0, np.int32)  # event time of the last visit, in minutes
        self.unit = 1.0
        self.total: F64 = np.zeros(1)  # Σ of all masses
        self._draws: U64 = np.array([settings.seed], np.uint64)
        self.clock_ms, self._origin_ms, self._swept_ms = 0, 0, 0
        self._mark: Mask = np.zeros(0, np.bool_)

    def reserve(self, rows: int) -> None:
        """Have room for that many rows."""
        self.near.reserve(rows)
        self.after.reserve(rows)
        self.mass, self.visits = longer(self.mass, rows), longer(self.visits, rows)
        self.last_min, self._mark = longer(self.last_min, rows), longer(self._mark, rows)

    # -- adding ------------------------------------------------------------------------------------------------------

    def count(self, row: I32, recent: I32, repeat: Mask, weight: F32) -> I32:
        """Add visits (n,) and what they have to do with those before them (n, window). Returns the rows touched."""
        touched = np.empty(min(len(self.mass), 2 * recent.size), np.int32)
        n = add_pairs(
            row, recent, repeat, weight, self.unit, self.near.url, self.near.count, self.near.used, self.mass,
            self.total, self._draws, self._mark, touched,
        )  # fmt: skip
        add_visits(
            row, recent, repeat, self.unit, self.visits, self.after.url, self.after.count, self.after.used, self._draws
        )
        self.saw(row[row >= 0])
        return touched[:n]

    def add(self, row: I32, delta: Delta) -> I32:
        """Add what another replica counted; `row` (m,) are its URLs, -1 for those that have none here. Returns the rows
        touched."""
        visited = (row >= 0) & (delta.visits > 0)
        self.visits[row[visited]] += self.unit * delta.visits[visited]
        self.saw(row[visited])
        one, other = row[delta.pairs[:, 0]], row[delta.pairs[:, 1]]
        add_sums(
            one, other, delta.pair_weight, self.unit, self.near.url, self.near.count, self.near.used, self.mass,
            self.total, self._draws,
        )  # fmt: skip
        add_steps(
            row[delta.steps[:, 0]], row[delta.steps[:, 1]], delta.step_weight.astype(np.float32), self.unit,
            self.after.url, self.after.count, self.after.used, self._draws,
        )  # fmt: skip
        paired = (one >= 0) & (other >= 0)
        return np.unique(np.concatenate([one[paired], other[paired]])).astype(np.int32)

    def saw(self, rows: I32) -> None:
        """These rows are of use now."""
        self.last_min[rows] = self.clock_ms // 60_000

    # -- time --------------------------------------------------------------------------------------------------------

    def advance(self, clock_ms: int) -> float:
        """Move the clock towards `clock_ms`. Returns by what everything was multiplied on the way, mostly 1."""
        if clock_ms <= self.clock_ms:
            return 1.0
        if not self.clock_ms:
            self.clock_ms = self._origin_ms = self._swept_ms = clock_ms
            self.last_min[:] = clock_ms // 60_000  # of what was learned without a clock
        self.clock_ms = min(clock_ms, self.clock_ms + max(1, int(_CLOCK_STEP * self._half_life_ms)))
        self.unit = float(2.0 ** ((self.clock_ms - self._origin_ms) / self._half_life_ms))
        if self.unit < LARGEST_UNIT:
            return 1.0
        factor = 1 / LARGEST_UNIT
        for counts in (self.near.count, self.after.count, self.mass, self.visits, self.total):
            np.multiply(counts, factor, out=counts)
        self._origin_ms += round(np.log2(LARGEST_UNIT) * self._half_life_ms)
        self.unit *= factor
        return factor

    def expired(self, in_use: Mask) -> I32:
        """Rows (of those `in_use`) that have not been visited for the time to live; none, most of the time."""
        if self.clock_ms - self._swept_ms < self._time_to_live_ms / _SWEEPS:
            return np.zeros(0, np.int32)
        self._swept_ms = self.clock_ms
        oldest_min = (self.clock_ms - self._time_to_live_ms) // 60_000
        return np.flatnonzero(in_use & (self.last_min[: len(in_use)] < oldest_min)).astype(np.int32)

    def coldest(self, in_use: Mask, most: int) -> I32:
        """That many rows of the fewest visits, of those the ones not seen for longest; ascending."""
        rows = np.flatnonzero(in_use)
        coldest_first = np.lexsort((self.last_min[rows], self.visits[rows]))
        return np.sort(rows[coldest_first[:most]]).astype(np.int32)

    def forget(self, rows: I32, count: int) -> None:
        """Empty these rows, and every slot of the first `count` rows that points to one of them."""
        gone = np.zeros(len(self.mass), np.bool_)
        gone[rows] = True
        for slots in (self.near, self.after):
            slots.forget(rows, gone, count)
        self.total -= self.mass[rows].sum()
        self.mass[rows], self.visits[rows], self.last_min[rows] = 0, 0, 0

    # -- reading -----------------------------------------------------------------------------------------------------

    def times(self, rows: I32) -> F64:
        """(n,) how often each row was visited, in visits of now."""
        times: F64 = self.visits[rows] / self.unit
        return times

    def steps_seen(self, before: I32, after: I32) -> tuple[F32, F32]:
        """How often each step before → after was seen, and how often any step from `before`; in visits of now."""
        seen, total = np.empty(len(before), np.float32), np.empty(len(before), np.float32)
        step_share(before, after, self.after.url, self.after.count, self.after.used, seen, total)
        return seen / np.float32(self.unit), total / np.float32(self.unit)

    def state(self, rows: int) -> dict[str, NDArray[np.generic]]:
        """Arrays from which `load` makes equal counts; unused slots are left out."""
        own: dict[str, NDArray[np.generic]] = {
            "mass": self.mass[:rows],
            "visits": self.visits[:rows],
            "last": self.last_min[:rows],
            "total": self.total,
            "draws": self._draws,
            "times": np.array([self.clock_ms, self._origin_ms, self._swept_ms], np.int64),
            "unit": np.array([self.unit]),
        }
        parts = {"near": self.near.packed(rows), "after": self.after.packed(rows)}
        return own | {f"{part}.{key}": value for part, state in parts.items() for key, value in state.items()}

    def load(self, state: Mapping[str, NDArray[np.generic]], rows: int) -> None:
        """Take over saved counts of that many rows. Raises ValueError or KeyError where they do not fit."""
        self.reserve(rows)
        for name, slots in (("near.", self.near), ("after.", self.after)):
            slots.unpack({k.removeprefix(name): v for k, v in state.items() if k.startswith(name)}, rows)
        self.mass[:rows], self.visits[:rows], self.last_min[:rows] = state["mass"], state["visits"], state["last"]
        self.total[:], self._draws[:] = state["total"], state["draws"]
        self.clock_ms, self._origin_ms, self._swept_ms = (int(x) for x in state["times"])
        self.unit = float(state["unit"][0])
