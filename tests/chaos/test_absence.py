"""Servers that are away, slow to come back, or set up wrongly: wait and go on alone, or say why not in one sentence.

What passes is waited out, with nothing lost and every counter exact; what waiting does not mend ends the command with 1 and
one sentence on standard error, and wrong usage with 2.
"""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from deploy.embedded import EmbeddedServers
from streams import topics
from streams.settings import Topics
from tests.system import BEGIN_MS, BOUGHT, Answered, System, WorkerProcess, command, paused, settled, traffic
from tests.waiting import eventually_sync

if TYPE_CHECKING:
    MakeTopics = Callable[..., Topics]

SETTINGS = 'max_in_flight = 400\ncheckpoint_interval = "100ms"\n' + BOUGHT
VISITS = 6_000


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[EmbeddedServers]:
    """A broker and a store that this test may break; the data outlives a restart of the store."""
    with EmbeddedServers(tmp_path / "data") as started:
        topics.create(started.kafka, Topics().all, 4)
        yield started


@pytest.fixture
def system(tmp_path: Path, servers: EmbeddedServers) -> Iterator[System]:
    with System(tmp_path, servers.kafka, servers.redis, Topics(), SETTINGS) as running:
        yield running


def test_a_worker_waits_for_a_store_and_a_broker_that_are_away_at_its_start(
    system: System, servers: EmbeddedServers, seed: int
) -> None:
    servers.store.stop()
    worker = system.launch()
    eventually_sync(lambda: "Redis" in worker.said, 30, "it says that it waits for the store")
    assert len(sentences(worker)) == 1
    servers.broker.stop()
    servers.store.start()
    eventually_sync(lambda: "Kafka" in worker.said, 30, "it says that it waits for the broker")
    assert not worker.ready
    assert len(sentences(worker)) == 3, "waits for Redis, Redis is back, waits for Kafka"
    servers.broker.start()
    topics.create(servers.kafka, Topics().all, 4)
    worker.until_ready()
    system.publish(traffic(system.names, seed, 500))
    settled(system)
    assert worker.stop() == 0


def test_a_store_that_is_killed_or_stopped_in_mid_stream_costs_nothing(
    system: System, servers: EmbeddedServers, seed: int
) -> None:
    system.publish(traffic(system.names, seed, VISITS))
    worker = system.start()
    system.until_scored(500)
    servers.store.child.kill()
    eventually_sync(lambda: "Redis" in worker.said, 30, "it says that the store is away")
    servers.store.stop()
    servers.store.start()
    system.until_scored(2_000)
    servers.store.stop()
    servers.store.start()
    assert system.status().lag > 0, "the store left after the work"
    assert settled(system).repeated == [], "nothing is read twice: the worker kept what it held"
    assert worker.child.poll() is None
    assert worker.stop() == 0


def test_a_worker_told_to_stop_while_its_store_is_away_ends_in_time_and_loses_nothing(
    system: System, servers: EmbeddedServers, seed: int
) -> None:
    system.publish(traffic(system.names, seed, VISITS))
    worker = system.start()
    system.until_scored(500)
    servers.store.stop()
    eventually_sync(lambda: "Redis" in worker.said, 30, "it says that the store is away")
    assert worker.stop() == 0, "in time: a negative code would be the kill"
    servers.store.start()
    system.start()
    settled(system)


def test_a_broker_that_is_paused_in_mid_stream_is_waited_for(
    system: System, servers: EmbeddedServers, seed: int
) -> None:
    system.publish(traffic(system.names, seed, VISITS))
    worker = system.start()
    system.until_scored(1_000)
    with paused(servers.broker.child):
        # The store tells how far the worker got: nothing moves any more, long enough for requests to fail.
        unmoved_for(system, seconds=5)
    settled(system)
    system.publish(traffic(system.names, seed + 1, 500, begin_ms=BEGIN_MS + 100_000_000))
    settled(system)
    assert worker.stop() == 0


def unmoved_for(system: System, seconds: float) -> None:
    """Wait until the positions in the store have not changed for so long."""
    import time

    import redis

    since, last = time.monotonic(), None
    with redis.Redis.from_url(system.redis) as store:

        def unmoved() -> bool:
            nonlocal since, last
            steps = [store.hget(key, "step") for key in sorted(store.keys("*:position"))]
            if steps != last:
                since, last = time.monotonic(), steps
            return time.monotonic() - since > seconds

        eventually_sync(unmoved, seconds + 20, "the worker stands still", poll_s=0.1)


def sentences(worker: WorkerProcess) -> list[str]:
    return [line for line in worker.said.splitlines() if line.strip()]


# -- what waiting does not mend --------------------------------------------------------------------------------------


def refused(answer: Answered, *words: str) -> None:
    """It ended with 1 and one sentence that has these words."""
    assert answer.code == 1, answer
    assert answer.out == ""
    assert len(answer.sentences) == 1, answer.err
    assert "Traceback" not in answer.err
    assert "unexpected" not in answer.err, "a sentence that nobody wrote"
    for word in words:
        assert word in answer.err


NOBODY = ("--kafka", "127.0.0.1:1", "--redis", "redis://127.0.0.1:1/0")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("session_gap = [", ("url2vec.toml", "is wrong")),
        ("sesion_gap = '30m'", ("url2vec.toml", "sesion_gap")),
        ("session_gap = 'soon'", ("soon", "duration")),
        ("[tasks.bought]\noutcomes = []", ("bought", "outcome")),
        ("[tasks.bought]\noutcomes = ['x']\nscope = 'page'", ("scope",)),
        ("[topics]\nvisits = 'a'\nscored = 'a'", ("same name",)),
    ],
)
def test_a_wrong_settings_file_is_named_in_one_sentence(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    path = tmp_path / "url2vec.toml"
    path.write_text(text)
    refused(command("worker", "--config", str(path), *NOBODY), *words)


def test_a_missing_settings_file_is_named(tmp_path: Path) -> None:
    path = str(tmp_path / "nowhere.toml")
    refused(command("worker", "--config", path, *NOBODY), path, "does not exist")
    refused(command("up", "--config", path, "--kafka-port", "0", "--redis-port", "0", "--web-port", "0"), path)


def test_a_missing_address_says_where_to_give_it(tmp_path: Path) -> None:
    refused(command("worker", cwd=tmp_path), "--kafka", "URL2VEC_KAFKA")
    refused(command("worker", "--kafka", "a:1", cwd=tmp_path), "--redis", "URL2VEC_REDIS")
    refused(command("worker", "--kafka", "nonsense", "--redis", "a:1", cwd=tmp_path), "nonsense")


def test_missing_topics_are_named_with_the_command_that_creates_them(
    tmp_path: Path, embedded_kafka: str, store_url: str
) -> None:
    with System(tmp_path, embedded_kafka, store_url, Topics("a-1", "b-1", "c-1", "d-1")) as system:
        refused(system.command("worker"), "a-1", "url2vec topics --create")
        refused(system.command("status"), "a-1", "url2vec topics --create")
        refused(system.command("wait", "--timeout", "5s"), "a-1")


def test_topics_of_uneven_width_are_refused(
    tmp_path: Path, embedded_kafka: str, store_url: str, make_topics: "MakeTopics"
) -> None:
    wide, narrow = make_topics(embedded_kafka, 4), make_topics(embedded_kafka, 2)
    names = Topics(wide.visits, narrow.outcomes, wide.scored, wide.rejected)
    with System(tmp_path, embedded_kafka, store_url, names) as system:
        refused(system.command("worker"), wide.visits, narrow.outcomes, "partition")
        listed = command("topics", "--config", str(system.config), "--kafka", embedded_kafka)
        assert listed.code == 1
        assert narrow.outcomes in listed.err


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        free = {"--kafka-port": "0", "--redis-port": "0", "--web-port": "0"}
        for flag in free:
            arguments = [word for pair in (free | {flag: port}).items() for word in pair]
            refused(command("up", *arguments, cwd=tmp_path), port, flag)


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("worker", "--nonsense"),
        ("worker", "--web-port", "much"),
        ("up", "--workers", "0"),
        ("replay",),
        ("nearest",),
        ("export", "x", "--format", "parquet"),
        ("tail", "--limit", "0"),
    ],
)
def test_wrong_usage_ends_with_2(arguments: tuple[str, ...]) -> None:
    answer = command(*arguments)
    assert answer.code == 2
    assert answer.out == ""
    assert "Traceback" not in answer.err
