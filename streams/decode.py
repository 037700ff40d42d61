"""Decode: records become visits and outcomes, and what cannot be read becomes a rejection with its reason.

Nothing is dropped and nothing raises: each record of a batch ends in exactly one of the lists of a `Decoded`.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.decoding import BadEvent, Decoder
from schemas.records import VisitOutcome, WebVisit
from streams.emit import Record
from streams.lockstep import NO_TIME_MS
from streams.settings import Settings
from streams.transport import RecordBatch


@dataclass(slots=True)
class ReadVisit:
    """A visit with where and when it was read."""

    offset: int
    arrived_ms: int  # the record's timestamp: when the producer sent it, or the broker took it
    key: bytes | None
    visit: WebVisit


@dataclass(slots=True)
class Decoded:
    """What one record batch held, in offset order."""

    batch: RecordBatch
    visits: list[ReadVisit] = field(default_factory=list)
    outcomes: list[tuple[int, VisitOutcome]] = field(default_factory=list)  # arrived_ms, outcome
    rejected: list[Record] = field(default_factory=list)
    keyless: int = 0

    @property
    def partition(self) -> int:
        """The partition that all of it belongs to."""
        return int(self.batch.tp.partition)

    @property
    def next_offset(self) -> int:
        """The offset after its last record."""
        return int(self.batch.records[-1].offset) + 1

    def visitor_ids(self) -> list[str]:
        """Visitors whose state is needed to score these visits."""
        return [read.visit.visitor_id for read in self.visits]

    def refuse(self, reasons: Mapping[int, str]) -> None:
        """Set aside visits that could be read and cannot be scored (offset → why), as if they could not be read."""
        records = {record.offset: record for record in self.batch.records}
        for read in [read for read in self.visits if read.offset in reasons]:
            self.visits.remove(read)
            self.rejected.append(_rejection(records[read.offset], reasons[read.offset]))
            self.keyless -= read.key is None
            told = read.arrived_ms, outcome_in(read.visit)
            if told in self.outcomes:
                self.outcomes.remove(told)


class RecordDecoder:
    """Decodes record batches of both topics."""

    def __init__(self, settings: Settings) -> None:
        self._topics = settings.topics
        self._decoder = Decoder()
        self._outcome_names = frozenset().union(*(task.outcomes for task in settings.tasks))

    def decode(self, batch: RecordBatch, now_ms: int) -> Decoded:
        """Everything in the batch. `now_ms` is the wall clock, for what claims to come from the future."""
        decoded = Decoded(batch)
        if batch.tp.topic == self._topics.visits:
            self._visits(batch, decoded, now_ms)
        else:
            self._outcomes(batch, decoded, now_ms)
        return decoded

    def times(self, batch: RecordBatch, now_ms: int) -> NDArray[np.int64]:
        """When each outcome of a batch happened (epoch ms), no later than now; `NO_TIME_MS` where it cannot be read."""
        times = np.full(len(batch.records), NO_TIME_MS, np.int64)
        for place, record in enumerate(batch.records):
            with suppress(BadEvent):
                outcome = self._decoder.outcome(record.key, record.value, record.headers, now_ms)
                times[place] = min(outcome.timestamp_ms, now_ms)
        return times

    def _visits(self, batch: RecordBatch, decoded: Decoded, now_ms: int) -> None:
        for record in batch.records:
            try:
                visit = self._decoder.visit(record.key, record.value, record.headers, now_ms)
            except BadEvent as error:
                decoded.rejected.append(_rejection(record, error))
                continue
            if record.key is None:
                decoded.keyless += 1
            decoded.visits.append(ReadVisit(record.offset, record.timestamp, record.key, visit))
            if visit.event_name in self._outcome_names:
                decoded.outcomes.append((record.timestamp, outcome_in(visit)))

    def _outcomes(self, batch: RecordBatch, decoded: Decoded, now_ms: int) -> None:
        for record in batch.records:
            try:
                outcome = self._decoder.outcome(record.key, record.value, record.headers, now_ms)
            except BadEvent as error:
                decoded.rejected.append(_rejection(record, error))
                continue
            decoded.outcomes.append((record.timestamp, outcome))


def outcome_in(visit: WebVisit) -> VisitOutcome:
    """The outcome that a visit is when its event_name is one that a task listens for."""
    return VisitOutcome(
        visitor_id=visit.visitor_id,
        outcome=visit.event_name,
        timestamp_ms=visit.timestamp_ms,
        session_id=visit.session_id,
    )


def _rejection(record: Any, error: BadEvent | str) -> Record:
    headers = [
        ("error", str(error).encode("utf-8", "replace")),
        ("source_topic", record.topic.encode()),
        ("source_partition", str(record.partition).encode()),
        ("source_offset", str(record.offset).encode()),
    ]
    return record.key, record.value, headers
