"""Workers killed, stopped, replaced and frozen in mid-stream, and a broker that comes back empty.

Each verdict is the verifier's: nothing lost, order kept, and counters that equal those computed from the input, which are
those of a run that nobody disturbed. Kill points are conditions ("n visits are scored") drawn from the seed.
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis

from deploy.embedded import EmbeddedServers
from streams import topics
from tests.system import (
    BEGIN_MS,
    BOUGHT,
    Counters,
    System,
    expected_counters,
    read_topics,
    settled,
    traffic,
    verify,
)
from tests.verdict import model_of, undone
from tests.waiting import eventually_sync

if TYPE_CHECKING:
    from streams.settings import Topics
    from streams.status import Status

# Little in flight and frequent checkpoints, so that a kill falls between many of both.
SMALL_STEPS = 'max_in_flight = 400\ncheckpoint_interval = "100ms"\nsnapshot_interval = "1s"\n'
SETTINGS = SMALL_STEPS + BOUGHT
VISITS = 8_000


@pytest.fixture
def system(tmp_path: Path, kafka: str, store_url: str, topic_names: "Topics") -> Iterator[System]:
    with System(tmp_path, kafka, store_url, topic_names, SETTINGS) as running:
        yield running


def test_a_worker_killed_in_mid_stream_loses_nothing_and_counts_everything_once(system: System, seed: int) -> None:
    system.publish(traffic(system.names, seed, VISITS))
    draw = random.Random(seed)
    for low, high in ((1, 2_000), (2_500, 4_500)):
        worker = system.start()
        system.until_scored(draw.randrange(low, high))
        worker.kill()
        assert system.status().lag > 0, "the kill came after the work"
    system.start()
    undone(system, 2, 400)


def test_an_orderly_stop_ends_in_time_with_0_and_repeats_nothing(
    tmp_path: Path, embedded_kafka: str, store_url: str, make_topics, seed: int
) -> None:
    names = make_topics(embedded_kafka, 1)
    # A second's work at most is in its hands when it is told to stop, and hardly ever none.
    settings = 'max_in_flight = 3_000\ncheckpoint_interval = "1s"\n' + BOUGHT
    with System(tmp_path, embedded_kafka, store_url, names, settings, partitions=1) as system:
        system.publish(traffic(names, seed, VISITS))
        worker = system.start()
        system.until_scored(1_000)
        assert worker.stop() == 0
        assert system.status().lag > 0, "the stop came after the work"
        assert system.status().workers == []
        # Faust takes the partitions back once more at the end, and would checkpoint too: after the snapshot, which then
        # would hold what the store gives as a lesson again.
        kept = model_of(system)
        with redis.Redis.from_url(system.redis) as store:
            [key] = store.keys("*:snapshot")
            newest = store.lpop(key)
            assert model_of(system) == kept, "the last snapshot holds what the lessons before it teach, and no more"
            store.lpush(key, newest)
        system.start()
        assert undone(system, 0, 3_000).repeated == []


def test_a_frozen_worker_that_wakes_after_its_partitions_moved_changes_nothing(
    tmp_path: Path, embedded_kafka: str, store_url: str, make_topics, seed: int
) -> None:
    names = make_topics(embedded_kafka, 4)
    # A second's work at most is in its hands when it freezes, and hardly ever none.
    settings = 'max_in_flight = 3_000\ncheckpoint_interval = "1s"\n' + BOUGHT
    with System(tmp_path, embedded_kafka, store_url, names, settings) as system:
        system.publish(traffic(names, seed, VISITS))
        zombie = system.start()
        system.until_scored(1_000)
        zombie.child.pause()
        assert system.status().lag > 0, "the worker froze after its work"
        system.start()
        undone(system, 1, 3_000)  # nobody writes any more who could mend what the zombie does
        complete = Counters.of(system.status())
        zombie.child.resume()

        def rejoined() -> bool:
            if Counters.of(system.status()) != complete:
                pytest.fail("the zombie's write was taken: the store went back")
            return owned_by(system) == [2, 2]

        eventually_sync(rejoined, 60, "the zombie is a member again")
        system.publish(traffic(names, seed + 1, 500, begin_ms=BEGIN_MS + 100_000_000))
        undone(system, 2, 3_000)  # what it held when it woke may leave once more


def test_a_broker_that_comes_back_empty_is_recognised_and_what_was_learned_stays(tmp_path: Path, seed: int) -> None:
    from streams.settings import Topics

    # Seldom checkpoints: it is before the answers leave that the log must be recognised, not when they are kept.
    settings = SETTINGS.replace('checkpoint_interval = "100ms"', 'checkpoint_interval = "1s"')
    with EmbeddedServers() as servers:
        names = Topics()
        topics.create(servers.kafka, names.all, 2)
        with System(tmp_path, servers.kafka, servers.redis, names, settings, partitions=2) as system:
            system.publish(traffic(names, seed, 3_000))
            system.start()
            settled(system)
            before = system.status()

            servers.broker.stop()
            servers.broker.start()
            topics.create(servers.kafka, names.all, 2)
            # Longer at once than the log before it: the consumer, which has not met its group again, fetches from the
            # new log at the old one's position.
            system.publish(traffic(names, seed + 1, 8_000))
            new = until_counted(system, before)
            after = system.status()
            assert after.urls >= before.urls
            assert after.model_step > before.model_step
            verdict = verify(system).holds()
            assert len(verdict.scored) == new.visits_scored


def test_a_log_that_ends_before_what_was_read_of_it_is_not_read_again(tmp_path: Path, seed: int) -> None:
    """As after an unclean election: the store is ahead of the broker."""
    from streams.settings import Topics

    with EmbeddedServers() as servers:
        names = Topics()
        topics.create(servers.kafka, names.all, 1)
        with System(tmp_path, servers.kafka, servers.redis, names, SETTINGS, partitions=1) as system:
            system.publish(traffic(names, seed, 500))
            worker = system.start()
            settled(system)
            assert worker.stop() == 0
            before = system.status().visits_scored
            with redis.Redis.from_url(servers.redis) as store:
                [position] = store.keys("*:position")
                store.hincrby(position, "visits", 1_000)
            worker = system.start()
            assert "goes on at the end" in worker.said
            more = traffic(names, seed + 1, 200, begin_ms=BEGIN_MS + 100_000_000)
            sent = list(more)
            system.publish(sent)
            visits = sum(record.topic == names.visits for record in sent)
            eventually_sync(lambda: system.status().lag == 0, 30, "nothing waits")
            counted = system.status().visits_scored - before
            assert 0 < counted <= visits, "the new ones are scored, and the old ones are not counted once more"


def until_counted(system: System, before: "Status") -> Counters:
    """Wait until the status counts what is in the topics now, on top of what it counted `before`; returns the former."""
    inputs = read_topics(system.kafka, [system.names.visits, system.names.outcomes], system.partitions)
    new = expected_counters(inputs[system.names.visits], inputs[system.names.outcomes])
    system.until_counters(added(Counters.of(before), new), 60)
    return new


def added(one: Counters, other: Counters) -> Counters:
    return Counters(*(getattr(one, name) + getattr(other, name) for name in Counters.__dataclass_fields__))


def owned_by(system: System) -> list[int]:
    """How many partitions each living worker owns."""
    return sorted(len(worker.partitions) for worker in system.status().workers)
