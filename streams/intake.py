"""What of the fetched record batches is taken in now: all visits, and the outcomes whose time has come.

Decoding, and the meeting of the two topics (`streams.lockstep`), for all partitions of a micro-batch. Runs in the compute
thread, over batches; the transport is only told which partitions need not be fetched for a while.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from faust.types import TP

from streams.decode import Decoded, RecordDecoder
from streams.lockstep import LOOKAHEAD
from streams.partition import PartitionState
from streams.settings import Settings
from streams.transport import RecordBatch


class Fetcher(Protocol):
    """The part of the consumer that is used here."""

    def pause_partitions(self, tps: set[TP]) -> None: ...
    def resume_partitions(self, tps: set[TP]) -> None: ...


@dataclass(slots=True)
class Taken:
    """What a micro-batch is made of."""

    decoded: list[Decoded] = field(default_factory=list)
    done: list[tuple[Any, int]] = field(default_factory=list)  # events that are wholly in it, and their partitions


class Intake:
    """Decodes, and holds outcomes that were read ahead of the visits."""

    def __init__(self, settings: Settings) -> None:
        self._topics = settings.topics
        self._decoder = RecordDecoder(settings)

    def take(
        self, batches: Sequence[tuple[Any, RecordBatch]], states: Mapping[int, PartitionState], now_ms: int
    ) -> Taken:
        """Take in (event, batch) pairs, in the order in which they were fetched. `now_ms`: the wall clock."""
        taken = Taken()
        visits_ms = {number: state.watermark.promised_ms("visits") for number, state in states.items()}
        for event, batch in batches:
            number = batch.tp.partition
            if batch.tp.topic == self._topics.visits:
                part = self._decoder.decode(batch, now_ms)
                taken.decoded.append(part)
                taken.done.append((event, number))
                newest_ms = max((read.visit.timestamp_ms for read in part.visits), default=visits_ms[number])
                visits_ms[number] = max(visits_ms[number], min(newest_ms, now_ms))
            else:
                times = self._decoder.times(batch, now_ms)
                states[number].ahead.hold(event, batch, times, time.monotonic())
        for number, state in states.items():
            for event, batch in state.ahead.take(visits_ms[number], state.visits_end):
                taken.decoded.append(self._decoder.decode(batch, now_ms))
                if event is not None:
                    taken.done.append((event, number))
        return taken

    @staticmethod
    def is_ripe(state: PartitionState) -> bool:
        """Whether outcomes that are held may be taken in, though no visit has come."""
        return state.ahead.is_ripe(state.watermark.promised_ms("visits"), state.visits_end)

    def pace(self, states: Mapping[int, PartitionState], fetcher: Fetcher) -> None:
        """Let no more outcomes be fetched of a partition while enough of them are held."""
        for number, state in states.items():
            if (state.ahead.records >= LOOKAHEAD) != state.enough_ahead:
                state.enough_ahead = not state.enough_ahead
                act = fetcher.pause_partitions if state.enough_ahead else fetcher.resume_partitions
                act({TP(self._topics.outcomes, number)})
