"""Fixtures that all tests share: real servers, topics of one's own, a clean store, one seed.

Servers start when the first test asks for them and serve the whole run; what belongs to one test is the names of its
topics and a flushed store. A test that breaks a server starts one of its own (`tests.servers`, `deploy.embedded`).
"""

import logging
import os
import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import hypothesis
import pytest
import redis

from deploy.embedded import EmbeddedServers
from deploy.kafka import fetch
from streams import topics
from streams.errors import ConfigError
from tests.redis_servers import OTHER, RedisServer
from tests.servers import RealKafka

if TYPE_CHECKING:
    from streams.settings import Topics

# Before any test imports torch or numba: tests share their machine with servers, and one thread is deterministic.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

IN_CI = os.environ.get("CI", "").lower() in {"1", "true", "yes"}
SEED = int(os.environ.get("URL2VEC_TEST_SEED", "20260101"))
PARTITIONS = 4

# A deadline would measure the machine. In CI the same examples every time; elsewhere new ones, printed when they fail.
hypothesis.settings.register_profile("dev", deadline=None, print_blob=True)
hypothesis.settings.register_profile("ci", deadline=None, print_blob=True, derandomize=True)
hypothesis.settings.load_profile("ci" if IN_CI else "dev")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="also the tests that take minutes (`make chaos`)")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "partitions(n): how many partitions `topic_names` creates")
    config.addinivalue_line("markers", "long: takes minutes; runs with --long alone")
    # So that --log-cli-level=INFO shows the figures of a test, and not each connection of a client.
    logging.getLogger("kafka").setLevel(logging.WARNING)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--long"):
        return
    left_out = pytest.mark.skip(reason="takes minutes: `make chaos`, or --long")
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(left_out)


def pytest_report_header(config: pytest.Config) -> list[str]:
    kafka = fetch.missing()
    return [
        f"seed of the randomised tests: {SEED} (set URL2VEC_TEST_SEED for another)",
        f"real Kafka: {'available' if kafka is None else kafka}",
    ]


@pytest.fixture(scope="session", autouse=True)
def _nothing_from_outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Hide the addresses, settings and the running `url2vec up` of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        for name in ("URL2VEC_KAFKA", "URL2VEC_REDIS", "URL2VEC_CONFIG"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(scope="session")
def seed() -> int:
    """The seed for everything that a test draws at random; the header of the run shows it."""
    return SEED


@pytest.fixture(scope="session")
def embedded_servers(_nothing_from_outside: None) -> Iterator[EmbeddedServers]:
    """Tansu and Valkey, started once; a test that kills one starts its own instead."""
    with EmbeddedServers() as servers:
        yield servers


@pytest.fixture(scope="session")
def embedded_kafka(embedded_servers: EmbeddedServers) -> str:
    """`host:port` of a Tansu."""
    return embedded_servers.kafka


@pytest.fixture(scope="session")
def kafka_libs() -> None:
    """The jars of a real Kafka. Skips the test where they cannot be had; in CI that is a failure."""
    try:
        fetch.fetch()
    except ConfigError as error:
        if IN_CI:
            pytest.fail(f"no real Kafka in CI: {error}", pytrace=False)
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def real_kafka(kafka_libs: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`host:port` of an Apache Kafka; skipped where java or its jars are missing."""
    with RealKafka(tmp_path_factory.mktemp("kafka")) as server:
        yield server.kafka


@pytest.fixture(scope="session", params=["tansu", "kafka"])
def kafka(request: pytest.FixtureRequest) -> str:
    """`host:port` of a broker: the test runs once on each kind."""
    address: str = request.getfixturevalue({"tansu": "embedded_kafka", "kafka": "real_kafka"}[request.param])
    return address


@pytest.fixture(scope="session")
def redis_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`redis://127.0.0.1:port/0` of a Valkey, with whatever other tests left in it; see `store_url`."""
    if OTHER in os.environ:
        with RedisServer(tmp_path_factory.mktemp("redis"), "--appendonly", "yes", "--save", "") as server:
            yield server.url
    else:
        servers: EmbeddedServers = request.getfixturevalue("embedded_servers")
        yield servers.redis


@pytest.fixture
def store_url(redis_server: str) -> str:
    """The URL of the store, emptied for this test."""
    with redis.Redis.from_url(redis_server) as client:
        client.flushall()
    return redis_server


@pytest.fixture
def make_topics() -> "Callable[..., Topics]":
    """`make_topics(kafka, partitions=4)` creates the four topics under names of this test's own."""
    from streams.settings import Topics

    def make(address: str, partitions: int = PARTITIONS) -> Topics:
        mark = uuid.uuid4().hex[:8]
        names = Topics(*(f"{name}-{mark}" for name in Topics().all))
        topics.create(address, names.all, partitions)
        return names

    return make


@pytest.fixture
def topic_names(request: pytest.FixtureRequest, kafka: str, make_topics: "Callable[..., Topics]") -> "Topics":
    """The four topics, created on `kafka` with 4 partitions (or as `@pytest.mark.partitions(n)` says)."""
    mark = request.node.get_closest_marker("partitions")
    return make_topics(kafka, mark.args[0] if mark else PARTITIONS)
