"""How far a replica is behind: found when it looks, told by its worker, and shown by the status and to Prometheus."""

import asyncio

import pytest

from streams.cli_status import behind
from streams.pages import exposition
from streams.replica import MissingLessons, Replica
from streams.status import WorkerReport, gather
from streams.store import Position
from tests.unit.test_replica_order import Diary, Shelf, entry


@pytest.fixture
def shelf() -> Shelf:
    return Shelf([[1_000, 2_000], [1_500]])


@pytest.fixture
def replica(shelf: Shelf) -> Replica:
    started = Replica(shelf, Diary(), None, print)  # type: ignore[arg-type]
    asyncio.run(started.rebuild([0, 1]))
    return started


def told(replica: Replica) -> tuple[int, int]:
    return replica.staleness.event_ms, replica.staleness.lessons


def test_a_new_replica_is_level(replica: Replica) -> None:
    assert told(replica) == (0, 0)


def test_what_was_found_at_the_last_look_counts_the_partition_that_moved_most(shelf: Shelf, replica: Replica) -> None:
    shelf.streams[0] += [entry(3, 2_400), entry(4, 2_500)]
    shelf.streams[1] += [entry(2, 8_500, 1)]
    began = replica.staleness.at
    asyncio.run(replica.follow([0, 1]))
    assert told(replica) == (7_000, 3)
    assert replica.staleness.at > began
    asyncio.run(replica.follow([0, 1]))
    assert told(replica) == (0, 0), "it has learned them since"


def test_what_a_worker_taught_while_a_partition_was_its_own_was_never_missing(shelf: Shelf, replica: Replica) -> None:
    shelf.streams[0] += [entry(3, 900_000), entry(4, 900_001)]
    replica.wrote(0, 3)
    asyncio.run(replica.follow([0, 1]))
    assert told(replica) == (0, 1)


def test_a_look_that_failed_is_no_look(shelf: Shelf, replica: Replica) -> None:
    before = replica.staleness
    shelf.streams[0] = [entry(9, 5_000)]
    with pytest.raises(MissingLessons):
        asyncio.run(replica.follow([0, 1]))
    assert replica.staleness is before


def report(name: str, staleness_ms: int, lessons: int, looked_s: float) -> WorkerReport:
    return WorkerReport(
        id=name, pid=1, host="h", partitions=[], in_flight=0, visits_per_second=0.0, urls=1, model_step=1, idle_s=0.0,
        ready=True, latency_counts=[0] * 10, freshness_counts=[0] * 10, staleness_ms=staleness_ms,
        lessons_behind=lessons, looked_s=looked_s,
    )  # fmt: skip


def test_the_status_and_prometheus_tell_it_of_each_worker() -> None:
    found = gather([Position()], [report("b", 1_500, 4, 0.26), report("a", 0, 0, 31.0)], lag=0)
    assert [(w.id, w.staleness_ms, w.lessons_behind, w.looked_s) for w in found.workers] == [
        ("a", 0, 0, 31.0),
        ("b", 1_500, 4, 0.3),
    ]
    lines = exposition(found).splitlines()
    assert 'url2vec_staleness_ms{worker="b"} 1500' in lines
    assert 'url2vec_lessons_behind{worker="b"} 4' in lines
    assert 'url2vec_looked_seconds{worker="a"} 31.0' in lines
    assert behind(found) == "1,500 ms of event time, 4 lessons at most"
    assert behind(gather([Position()], [], lag=0)) == "–"
