"""How many waiting records to take at once, and whether to wait for more first.

A micro-batch costs a fixed part (a pass through the model, a round of calls) and a part per record. Small batches
answer sooner; large ones get more done. The rules, for a worker that is free:

1. *Wait little.* A free worker lets the oldest record wait for company for at most `GATHER_SHARE` of the latency
   objective, counted from its arrival: time spent while the worker was busy counts. Records gather by themselves
   under load.
2. *Do not wait for nothing*: not when what waits already fills the largest batch that fits the objective, and not when
   the caller sees nothing more coming.
3. *Take what fits.* The largest batch is the one whose predicted service time is `SERVICE_SHARE` of the objective: the
   record that arrives just after a batch started waits for that one and for its own, and has a little left for
   gathering and delivery. A batch may be at most twice the largest one ever served: no guess goes further than that.
4. *Never so small that the fixed part dominates.* Where the objective is out of reach, batches still spend half of
   their time on records; shrinking further would only fall behind faster.

The service time is learned from the batches themselves: a straight line through (records, seconds), old batches
weighing less, and not at all after one that took more than `SURPRISE` times the prediction, or less than its part.

Pure: the clock is an argument (seconds of any clock that does not run backwards). Back-pressure beyond the batch size
(thinning, pausing) is decided elsewhere.
"""

from __future__ import annotations

import math

GATHER_SHARE = 0.05  # of the objective: 2.5 ms of 50, the cost of a fetch, within which a burst has come in
SERVICE_SHARE = 0.4  # of the objective: two services and the gathering leave a tenth of it for delivery
FORGETTING = 0.9  # weight of a batch against the next one: the last ten or so decide
SURPRISE = 3.0  # times the prediction, or a third of it: another regime, of which old batches say nothing
FIRST_RECORDS = 256  # before anything was measured
LEAST_RECORDS = 16  # even after one absurdly slow batch (a compilation, a pause of the machine)


class MicroBatcher:
    """The arithmetic of one worker. Holds no records."""

    def __init__(self, latency_objective_s: float, max_records: int = 20_000) -> None:
        """`max_records` bounds a batch whatever the clock says, for memory's sake. Raises ValueError unless both are
        positive."""
        if not latency_objective_s > 0 or max_records < 1:
            asked = f"got {latency_objective_s} s and {max_records} records"
            raise ValueError(f"the latency objective and the largest batch must be positive, {asked}")
        self.latency_objective_s = latency_objective_s
        self.max_records = max_records
        self._largest_served = 0
        # Sums over batches, each worth FORGETTING of the one after it: of 1, n, seconds, n², n·seconds.
        self._ones = self._n = self._s = self._nn = self._ns = 0.0

    def wait_s(self, waiting: int, oldest_s: float | None, now_s: float, more_in_sight: bool = True) -> float:
        """For how long a free worker should still wait; 0 is: run now. Infinite when nothing waits.

        `oldest_s` is when the oldest of the `waiting` records arrived. Asked again whenever something arrives.
        """
        if waiting <= 0 or oldest_s is None:
            return math.inf
        if not more_in_sight or waiting >= self.fitting():
            return 0.0
        gather_s = GATHER_SHARE * self.latency_objective_s
        # Not past the moment from which a batch that takes as long as predicted still meets the objective.
        latest_s = oldest_s + min(gather_s, self.latency_objective_s - self.predicted_s(waiting))
        return min(max(0.0, latest_s - now_s), gather_s)

    def take(self, waiting: int) -> int:
        """How many of the waiting records to take now."""
        return min(waiting, self.fitting())

    def served(self, records: int, seconds: float) -> None:
        """A batch of `records` took `seconds`, from taking it to being free again."""
        if records <= 0 or not 0 <= seconds < math.inf:
            return
        self._largest_served = max(self._largest_served, records)
        if not self.predicted_s(records) / SURPRISE <= seconds <= self.predicted_s(records) * SURPRISE:
            self._ones = self._n = self._s = self._nn = self._ns = 0.0
        self._ones = FORGETTING * self._ones + 1
        self._n = FORGETTING * self._n + records
        self._s = FORGETTING * self._s + seconds
        self._nn = FORGETTING * self._nn + records * records
        self._ns = FORGETTING * self._ns + records * seconds

    def predicted_s(self, records: int) -> float:
        """The service time to expect of a batch; 0 before anything was measured."""
        fixed_s, each_s = self._line()
        return fixed_s + each_s * records

    def fitting(self) -> int:
        """The largest batch that rules 3 and 4 allow."""
        if not self._ones:
            return min(FIRST_RECORDS, self.max_records)
        fixed_s, each_s = self._line()
        grown = max(FIRST_RECORDS, 2 * self._largest_served)
        if each_s <= 0:
            return min(grown, self.max_records)
        within_objective = (SERVICE_SHARE * self.latency_objective_s - fixed_s) / each_s
        half_on_records = fixed_s / each_s
        # Compared as floats first: a cost next to nothing makes them larger than an int should be.
        fitting = min(max(within_objective, half_on_records, LEAST_RECORDS), grown, self.max_records)
        return max(1, int(fitting))

    def _line(self) -> tuple[float, float]:
        """(fixed seconds, seconds a record) by weighted least squares, neither negative."""
        if not self._ones:
            return 0.0, 0.0
        mean_n, mean_s = self._n / self._ones, self._s / self._ones
        variance = self._nn / self._ones - mean_n * mean_n
        if variance <= 1e-6 * mean_n * mean_n:
            return (
                0.0,
                mean_s / mean_n,
            )  # all of one size: no telling the parts apart; this way larger ones are not underrated
        each_s = (self._ns / self._ones - mean_n * mean_s) / variance
        each_s = min(max(each_s, 0.0), mean_s / mean_n)
        return max(0.0, mean_s - each_s * mean_n), each_s
