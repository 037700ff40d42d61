"""How far the event time of a partition has come, when two topics tell it and either may be slow, or silent.

The watermark is a promise about what is *still to be read*: nothing older than it. Labels rest on it: a visit without
an outcome is a negative example once the watermark has passed its horizon, and not before, however fast a backlog is
read.

The rules:

1. *An input promises by what was read of it.* Producers write roughly in event time: no record is more than
   `allowed_lateness_ms` older than the newest written before it, in either topic. So once an event of time t has been
   read from an input, nothing older than t - lateness is left in it.
2. *An input that was confirmed read to its end, as of a moment, promises by what the other had read by then.*
   Whatever is still to come in it is written after that moment, hence after everything that the other input had read
   by it, and is not older than that, lateness aside. What the other reads later waits for the next confirmation. An
   empty topic is only that case; one that is merely slow to be read is not at its end, and holds everything back.
3. *The watermark is the lower of the two promises, less the lateness, and never goes back.* Until both inputs have
   promised something it is `NOTHING_YET_MS`, older than any event.

The wall clock does not move it: where no visits come, nothing is settled, and a replay gives the same labels as the
day itself. A producer whose clock runs ahead would drag it along; the caller clamps event times to their arrival to
bound that.

`read_at` and `as_of` are times of one clock that does not run backwards; they are only compared with each other, and
do not outlive the process: what was read before a restart counts as read before any confirmation after it. The caller
takes `as_of` *before* asking the broker where the end is.

Pure; bounded: the history of one input is thinned, which can hold the watermark back for one confirmation, never push
it.
"""

from __future__ import annotations

from collections import deque
from typing import Literal

import msgspec

Input = Literal["visits", "outcomes"]

NOTHING_YET_MS = -(2**63)
MAX_STEPS = 256  # raises of one frontier between two confirmations; half are dropped beyond it


class _Stored(msgspec.Struct, array_like=True, tag=1, forbid_unknown_fields=True):
    """The tag is the version of the layout."""

    value_ms: int
    visits: tuple[int, int]  # newest event read, promise by confirmation
    outcomes: tuple[int, int]


_DECODER = msgspec.msgpack.Decoder(_Stored)


class _Frontier:
    """One input: the newest event time read of it, when it came to that, and what a confirmation promised for it."""

    def __init__(self, read_ms: int = NOTHING_YET_MS, confirmed_ms: int = NOTHING_YET_MS) -> None:
        self.read_ms = read_ms
        self.confirmed_ms = confirmed_ms
        self._steps: deque[tuple[float, int]] = deque()  # (when, newest event time then), both rising
        self._settled_ms = read_ms  # the newest event time read before the first step

    def read(self, event_ms: int, read_at: float) -> None:
        if event_ms <= self.read_ms:
            return
        self.read_ms = event_ms
        self._steps.append((read_at, event_ms))
        if len(self._steps) > MAX_STEPS:
            # To forget a step is to claim that its events were read later than they were: slower, and never wrong.
            # The older a step, the more often it was at risk, so what is recent is known best.
            self._steps = deque(list(self._steps)[::-2][::-1])  # the newest stays

    def read_by(self, as_of: float) -> int:
        """The newest event time read until `as_of`, included. `as_of` never falls: what it covers is forgotten."""
        while self._steps and self._steps[0][0] <= as_of:
            self._settled_ms = self._steps.popleft()[1]
        return self._settled_ms

    @property
    def promise_ms(self) -> int:
        return max(self.read_ms, self.confirmed_ms)


class Watermark:
    """The watermark of one partition, from its two inputs."""

    def __init__(self, allowed_lateness_ms: int) -> None:
        """Raises ValueError where the lateness is negative."""
        if allowed_lateness_ms < 0:
            raise ValueError(f"the allowed lateness must not be negative, got {allowed_lateness_ms} ms")
        self.allowed_lateness_ms = allowed_lateness_ms
        self._value_ms = NOTHING_YET_MS
        self._inputs: dict[Input, _Frontier] = {"visits": _Frontier(), "outcomes": _Frontier()}

    @property
    def value_ms(self) -> int:
        """Nothing older than this is still to be read, lateness allowed for. Never falls."""
        return self._value_ms

    def promised_ms(self, source: Input) -> int:
        """Nothing older than this is left in one input, lateness aside."""
        return self._inputs[source].promise_ms

    def observe(self, source: Input, event_ms: int, read_at: float) -> None:
        """An event of this time was read from `source` at `read_at`: once a record, or once a batch with its newest."""
        self._inputs[source].read(event_ms, read_at)
        self._raise()

    def at_end(self, source: Input, as_of: float) -> None:
        """All that `source` held at `as_of` has been read."""
        other: Input = "outcomes" if source == "visits" else "visits"
        frontier = self._inputs[source]
        frontier.confirmed_ms = max(frontier.confirmed_ms, self._inputs[other].read_by(as_of))
        self._raise()

    def _raise(self) -> None:
        lowest_ms = min(frontier.promise_ms for frontier in self._inputs.values())
        if lowest_ms != NOTHING_YET_MS:
            self._value_ms = max(self._value_ms, lowest_ms - self.allowed_lateness_ms)

    def encode(self) -> bytes:
        """What must survive a restart."""
        visits, outcomes = self._inputs["visits"], self._inputs["outcomes"]
        return msgspec.msgpack.encode(
            _Stored(self._value_ms, (visits.read_ms, visits.confirmed_ms), (outcomes.read_ms, outcomes.confirmed_ms))
        )

    @staticmethod
    def decode(blob: bytes, allowed_lateness_ms: int) -> Watermark:
        """Reads what `encode` wrote; raises ValueError, with a sentence, on anything else."""
        try:
            stored = _DECODER.decode(blob)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ValueError(
                f"stored watermark of {len(blob)} bytes is not in a layout this version reads: {error}"
            ) from error
        watermark = Watermark(allowed_lateness_ms)
        watermark._value_ms = stored.value_ms
        watermark._inputs = {"visits": _Frontier(*stored.visits), "outcomes": _Frontier(*stored.outcomes)}
        return watermark
