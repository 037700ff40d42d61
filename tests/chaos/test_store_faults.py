"""A store that is full, read-only, slow, empty, or a second younger than the worker: wait, or go back to what it holds.

A store that is away at the start, killed, or stopped is in `test_absence`; one that lies beyond a Sentinel, and a Cluster,
are here and in `test_redis_cluster` with a worker, and alone in `test_redis_kinds`. The verdict is the verifier's; where
the store lost something, also that every visit is in one lesson: what the model learned is what the store says it did.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis

from tests.proxy import Proxy
from tests.redis_servers import FAILOVER_LIMIT_S, RedisServer, WatchedPair
from tests.system import BEGIN_MS, BOUGHT, System, WorkerProcess, settled, traffic
from tests.taught import taught_once
from tests.verdict import until_as_undisturbed
from tests.waiting import eventually_sync

if TYPE_CHECKING:
    from streams.settings import Topics

DURABLE = ("--appendonly", "yes", "--appendfsync", "everysec", "--save", "", "--maxmemory-policy", "noeviction")
SETTINGS = 'max_in_flight = 400\ncheckpoint_interval = "100ms"\nsnapshot_interval = "1h"\n' + BOUGHT
VISITS = 3_000
PARTITIONS = 2


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "store", *DURABLE) as one:
        yield one


@pytest.fixture
def names(embedded_kafka: str, make_topics: "Callable[..., Topics]") -> "Topics":
    return make_topics(embedded_kafka, PARTITIONS)


@pytest.fixture
def system(tmp_path: Path, embedded_kafka: str, store: RedisServer, names: "Topics") -> Iterator[System]:
    with System(tmp_path, embedded_kafka, store.url, names, SETTINGS, partitions=PARTITIONS) as running:
        yield running


def goes_on(system: System, worker: WorkerProcess, seed: int) -> None:
    """All of it is counted and kept as if nothing had happened, also what comes now; and the worker is the same."""
    settled(system)
    system.publish(traffic(system.names, seed + 1, 300, begin_ms=BEGIN_MS + 100_000_000))
    verdict = settled(system)
    until_as_undisturbed(system)
    taught_once(system, verdict)
    assert worker.child.poll() is None
    assert worker.stop() == 0


def says(worker: WorkerProcess, word: str) -> None:
    eventually_sync(lambda: word in worker.said, 30, f"it says {word}")


# -- it refuses --------------------------------------------------------------------------------------------------------


def test_a_full_store_is_waited_for_and_nothing_is_evicted(system: System, store: RedisServer, seed: int) -> None:
    system.publish(traffic(system.names, seed, VISITS))
    worker = system.start()
    system.until_scored(300)
    client = store.client()
    client.config_set("maxmemory", 1)
    says(worker, "maxmemory")
    assert system.status().lag > 0, "it was full before the end"
    assert client.info("stats")["evicted_keys"] == 0
    client.config_set("maxmemory", 0)
    goes_on(system, worker, seed)


@pytest.mark.long
def test_a_store_that_takes_no_writes_is_waited_for(system: System, store: RedisServer, seed: int) -> None:
    """As a primary that was demoted, whose clients have not heard of it."""
    system.publish(traffic(system.names, seed, VISITS))
    worker = system.start()
    system.until_scored(300)
    client = store.client()
    client.replicaof("127.0.0.1", 1)
    says(worker, "read only")
    client.replicaof("NO", "ONE")
    goes_on(system, worker, seed)


# -- it is slow, or out of reach ---------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_store_that_answers_late_slows_the_stream_and_no_more(system: System, store: RedisServer, seed: int) -> None:
    with Proxy(lambda: store.port) as between:
        system.redis = f"redis://{between.address}/0"
        worker = system.start()
        system.redis = store.url
        between.delay_ms = 200
        system.publish(traffic(system.names, seed, 1_500))
        settled(system)
        assert worker.said == "", "late is not away"
        between.delay_ms = 0
        goes_on(system, worker, seed)


@pytest.mark.long
def test_a_store_whose_connections_are_reset_or_fall_silent_is_found_again(
    system: System, store: RedisServer, seed: int
) -> None:
    system.publish(traffic(system.names, seed, VISITS))
    with Proxy(lambda: store.port) as between:
        system.redis = f"redis://{between.address}/0"
        worker = system.start()
        system.redis = store.url
        for scored in (100, 400, 700):
            system.until_scored(scored)
            between.cut()  # in the middle of a transaction, now and then: its answer is lost, or it is
        between.silence()
        says(worker, "Redis")
        between.pass_on()
        goes_on(system, worker, seed)


# -- it lost something -------------------------------------------------------------------------------------------------


def test_a_store_that_comes_back_empty_is_filled_again_from_the_topics(
    system: System, store: RedisServer, seed: int
) -> None:
    system.publish(traffic(system.names, seed, VISITS))
    worker = system.start()
    system.until_scored(1_000)
    store.kill()
    shutil.rmtree(store.folder)
    store.start()
    goes_on(system, worker, seed)
    assert "the store holds nothing" in worker.said, "of which partitions, is said"


def test_a_store_that_lost_the_last_of_its_log_is_followed_back(system: System, store: RedisServer, seed: int) -> None:
    """As after a loss of power: what was not on the disk yet is gone, and with it steps that the worker had made."""
    system.publish(traffic(system.names, seed, VISITS))
    worker = system.start()
    system.until_scored(400)
    younger = store.folder.with_name("younger")
    with_time_to_copy(store, younger)
    at_copy = system.status().visits_scored
    system.until_scored(at_copy + 400)
    store.kill()
    shutil.rmtree(store.folder)
    younger.rename(store.folder)
    store.start()
    assert system.status().visits_scored < at_copy + 400, "the store went back"
    goes_on(system, worker, seed)
    assert "moved on since" in worker.said or "holds" in worker.said, "and it is said"


def with_time_to_copy(store: RedisServer, to: Path) -> None:
    """A copy of the store's folder as it is at one moment."""
    store.child.pause()
    try:
        shutil.copytree(store.folder, to)
    finally:
        store.child.resume()


@pytest.mark.long
def test_after_a_failover_that_lost_steps_the_worker_goes_on_from_what_the_new_primary_holds(
    tmp_path: Path, embedded_kafka: str, names: "Topics", seed: int
) -> None:
    with (
        WatchedPair(tmp_path / "pair", *DURABLE) as pair,
        System(tmp_path, embedded_kafka, pair.sentinel.url, names, SETTINGS, partitions=PARTITIONS) as system,
    ):
        system.publish(traffic(names, seed, VISITS))
        worker = system.start()
        system.until_scored(400)
        pair.cut_replica()
        reached = system.status().visits_scored
        system.until_scored(reached + 300)
        pair.primary.kill()
        pair.replica.child.resume()
        eventually_sync(
            lambda: pair.replica.client().info("replication")["role"] == "master",
            FAILOVER_LIMIT_S,
            "the replica is the primary",
        )
        system.redis = pair.replica.url  # for the verdict
        goes_on(system, worker, seed)


@pytest.mark.long
def test_a_store_that_is_lost_while_nobody_works_is_filled_again(system: System, store: RedisServer, seed: int) -> None:
    """Kafka's own commits are further; the store decides."""
    system.publish(traffic(system.names, seed, 1_000))
    worker = system.start()
    settled(system)
    assert worker.stop() == 0
    with redis.Redis.from_url(system.redis) as client:
        client.flushall()
    worker = system.start()
    goes_on(system, worker, seed)
