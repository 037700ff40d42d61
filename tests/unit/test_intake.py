"""What of the fetched batches is taken in now: streams/intake.py, with the decoder and the state of real partitions."""

import json
from dataclasses import dataclass, field
from typing import Any

from faust.types import TP

from streams.decode import Decoded
from streams.intake import Intake
from streams.lockstep import LOOKAHEAD
from streams.outcomes import Task
from streams.partition import PartitionState
from streams.settings import Settings
from streams.store import LogIdentity, Position
from streams.transport import RecordBatch

SETTINGS = Settings(kafka="", redis="", tasks=(Task("bought", frozenset({"order"}), 600_000),))
VISITS, OUTCOMES = SETTINGS.topics.visits, SETTINGS.topics.outcomes
NOW_MS = 1_800_000_000_000
DAY_MS = NOW_MS - 86_400_000


@dataclass
class Record:
    topic: str
    offset: int
    value: bytes
    partition: int = 0
    key: bytes = b"v"
    timestamp: int = NOW_MS
    headers: list[tuple[str, bytes]] = field(default_factory=list)


def batch(topic: str, first: int, times: list[int | None], partition: int = 0) -> RecordBatch:
    """Records from offset `first` on, at these seconds of the day; None cannot be read."""
    records = []
    for offset, at in enumerate(times, first):
        value: dict[str, Any] = {"visitor_id": "v", "timestamp": DAY_MS + 1000 * (at or 0)}
        value |= {"event_id": f"e{offset}", "url": "https://a.example/"} if topic == VISITS else {"outcome": "order"}
        records.append(Record(topic, offset, b"{" if at is None else json.dumps(value).encode(), partition))
    return RecordBatch(TP(topic, partition), records, 1, first)


class Worker:
    def __init__(self) -> None:
        self.intake = Intake(SETTINGS)
        log = LogIdentity("cluster", "a", "b")
        self.states = {n: PartitionState(n, SETTINGS, Position(), log, []) for n in (0, 1)}
        self.paused: set[TP] = set()
        self.done: list[tuple[Any, int]] = []

    def take(self, *batches: RecordBatch) -> list[Decoded]:
        taken = self.intake.take([(f"{b.tp.topic} {b.token}", b) for b in batches], self.states, NOW_MS)
        self.intake.pace(self.states, self)
        self.done += taken.done
        for part in taken.decoded:
            for read in part.visits:
                self.states[part.partition].watermark.observe("visits", read.visit.timestamp_ms, 0.0)
        return taken.decoded

    def pause_partitions(self, tps: set[TP]) -> None:
        self.paused |= tps

    def resume_partitions(self, tps: set[TP]) -> None:
        self.paused -= tps


def seconds(decoded: list[Decoded]) -> list[int]:
    return [(outcome.timestamp_ms - DAY_MS) // 1000 for part in decoded for _, outcome in part.outcomes]


def test_a_days_outcomes_are_taken_in_as_its_visits_are_read() -> None:
    worker = Worker()
    assert worker.take(batch(OUTCOMES, 0, [100, 200, None, 300])) == []
    first = worker.take(batch(VISITS, 0, [50, 150]))
    assert seconds(first) == [100]
    assert [part.next_offset for part in first] == [2, 1]
    second = worker.take(batch(VISITS, 2, [250]))
    assert seconds(second) == [200]
    assert worker.done == [(f"{VISITS} 0", 0), (f"{VISITS} 2", 0)]
    third = worker.take(batch(VISITS, 3, [300]))
    assert seconds(third) == [300]
    assert [len(part.rejected) for part in third] == [0, 1]
    assert worker.done[-1] == (f"{OUTCOMES} 0", 0)


def test_outcomes_that_come_after_their_visits_are_taken_in_at_once() -> None:
    worker = Worker()
    worker.take(batch(VISITS, 0, [50, 150]))
    assert seconds(worker.take(batch(OUTCOMES, 0, [60, 140]))) == [60, 140]


def test_the_last_outcome_of_a_silent_partition_goes_on_when_the_visits_are_known_to_have_ended() -> None:
    worker = Worker()
    worker.take(batch(VISITS, 0, [50]))
    worker.take(batch(OUTCOMES, 0, [60]))
    state = worker.states[0]
    assert not worker.intake.is_ripe(state)
    state.visits_end = float("inf")
    assert worker.intake.is_ripe(state)
    assert seconds(worker.take()) == [60]


def test_partitions_do_not_wait_for_each_other() -> None:
    worker = Worker()
    worker.take(batch(OUTCOMES, 0, [100]), batch(OUTCOMES, 0, [100], partition=1))
    decoded = worker.take(batch(VISITS, 0, [100], partition=1))
    assert [part.partition for part in decoded] == [1, 1]


def test_no_more_outcomes_are_fetched_while_enough_are_held() -> None:
    worker = Worker()
    worker.take(batch(OUTCOMES, 0, [100 + n for n in range(LOOKAHEAD - 1)]))
    assert not worker.paused
    worker.take(batch(OUTCOMES, LOOKAHEAD, [5_000]))
    assert worker.paused == {TP(OUTCOMES, 0)}
    worker.take(batch(VISITS, 0, [100]))
    assert not worker.paused
