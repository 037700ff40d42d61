"""A broker that goes, freezes, or is there and says nothing; a log that lost its beginning, or was made anew, or has gaps.

Real Kafka, on which all of this can be had: `delete_records` is what retention does, and a topic that is deleted and made
again keeps its name. The embedded broker, which comes back empty, is in `test_crash`.
"""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis
from aiokafka import AIOKafkaProducer
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from deploy import ports
from streams import topics
from streams.settings import Topics
from tests.proxy import Proxy
from tests.servers import RealKafka
from tests.system import (
    BEGIN_MS,
    BOUGHT,
    Counters,
    System,
    WorkerProcess,
    expected_counters,
    paused,
    read_topics,
    settled,
    traffic,
    verify,
)
from tests.waiting import eventually_sync

if TYPE_CHECKING:
    from streams.status import Status

SETTINGS = 'max_in_flight = 400\ncheckpoint_interval = "100ms"\n' + BOUGHT
VISITS = 4_000
PARTITIONS = 2
LATER_MS = 100_000_000


class ProxiedKafka(RealKafka):
    """A node with a second listener, to which clients only come through a proxy: what is said to them is its address."""

    def __init__(self, folder: Path, *settings: str) -> None:
        super().__init__(folder, settings)
        self.hidden_port = ports.any_free()
        self.proxy = Proxy(lambda: self.hidden_port)

    def _format(self, jars: Path, attempt: int) -> None:
        super()._format(jars, attempt)
        with self._properties.open("a") as lines:
            text = self._properties.read_text()
            for name in ("listeners", "advertised.listeners", "listener.security.protocol.map"):
                value = next(line for line in text.splitlines() if line.startswith(name + "=")).partition("=")[2]
                more = {
                    "listeners": f"PROXIED://{ports.HOST}:{self.hidden_port}",
                    "advertised.listeners": f"PROXIED://{self.proxy.address}",
                    "listener.security.protocol.map": "PROXIED:PLAINTEXT",
                }[name]
                lines.write(f"{name}={value},{more}\n")


@pytest.fixture(scope="module")
def broker(kafka_libs: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxiedKafka]:
    """One node for this file; each test leaves it answering."""
    node = ProxiedKafka(tmp_path_factory.mktemp("kafka"))
    with node.proxy, node:
        yield node


@pytest.fixture
def names(broker: ProxiedKafka, make_topics: "Callable[..., Topics]") -> Topics:
    return make_topics(broker.kafka, PARTITIONS)


@pytest.fixture
def system(tmp_path: Path, broker: ProxiedKafka, store_url: str, names: Topics) -> Iterator[System]:
    with System(tmp_path, broker.kafka, store_url, names, SETTINGS, partitions=PARTITIONS) as running:
        yield running


def behind_proxy(system: System, broker: ProxiedKafka) -> WorkerProcess:
    """A worker that knows the broker by the proxy's address alone; the verifier goes another way."""
    direct, system.kafka = system.kafka, broker.proxy.address
    try:
        return system.start()
    finally:
        system.kafka = direct


def more(system: System, seed: int, visits: int, after: int = 1) -> None:
    """Traffic of a later day."""
    system.publish(traffic(system.names, seed + after, visits, begin_ms=BEGIN_MS + after * LATER_MS))


# -- 7: stopped, killed, frozen, cut, half-open -----------------------------------------------------------------------


@pytest.mark.parametrize("how", ["kill", pytest.param("stop", marks=pytest.mark.long)])
def test_a_broker_that_restarts_in_mid_stream_is_waited_for(
    system: System, broker: ProxiedKafka, seed: int, how: str
) -> None:
    system.publish(traffic(system.names, seed, VISITS))
    worker = system.start()
    system.until_scored(500)
    try:
        getattr(broker, how)()
    finally:
        broker.start()
    assert system.status().lag > 0, "the broker left after the work"
    settled(system)
    more(system, seed, 300)
    settled(system)
    assert worker.child.poll() is None, "it went on alone"
    assert worker.stop() == 0


@pytest.mark.parametrize("seconds", [8, pytest.param(60, marks=pytest.mark.long)])
def test_a_broker_that_is_frozen_for_longer_than_the_session_timeout_is_waited_for(
    system: System, broker: ProxiedKafka, seed: int, seconds: int
) -> None:
    system.publish(traffic(system.names, seed, VISITS))
    worker = system.start()  # its session times out after 6 s
    system.until_scored(500)
    with paused(broker.child):
        unmoved(system, seconds)
    settled(system)
    more(system, seed, 300)
    settled(system)
    assert worker.child.poll() is None
    assert worker.stop() == 0


def unmoved(system: System, seconds: float) -> None:
    """Wait until no position in the store has moved for so long."""
    import time

    since, last = time.monotonic(), None
    with redis.Redis.from_url(system.redis) as store:

        def stands_still() -> bool:
            nonlocal since, last
            found = [store.hget(key, "step") for key in sorted(store.keys("*:position"))]
            if found != last:
                since, last = time.monotonic(), found
            return time.monotonic() - since > seconds

        eventually_sync(stands_still, seconds + 60, "the worker stands still", poll_s=0.1)


@pytest.mark.long
def test_connections_that_are_reset_again_and_again_cost_nothing_but_time(
    system: System, broker: ProxiedKafka, seed: int
) -> None:
    system.publish(traffic(system.names, seed, VISITS))
    worker = behind_proxy(system, broker)
    for scored in (200, 1_000, 2_000):
        system.until_scored(scored)
        broker.proxy.cut()
    settled(system)
    assert worker.child.poll() is None
    assert worker.stop() == 0


@pytest.mark.long
@pytest.mark.parametrize("seconds", [8, 60])
def test_a_connection_that_is_half_open_is_given_up_and_another_one_found(
    system: System, broker: ProxiedKafka, seed: int, seconds: int
) -> None:
    """Nothing is closed and nothing comes: only a time limit of the worker's own notices it. Others work meanwhile."""
    system.publish(traffic(system.names, seed, VISITS))
    worker = behind_proxy(system, broker)
    system.until_scored(500)
    broker.proxy.silence()
    try:
        unmoved(system, seconds)
        assert system.status().lag > 0, "it fell silent before the end"
        broker.proxy.cut()  # as a router does at last; nobody told the worker
    finally:
        broker.proxy.pass_on()
    settled(system)
    assert worker.child.poll() is None
    assert worker.stop() == 0


@pytest.mark.long
def test_a_broker_that_nobody_reaches_is_waited_for(system: System, broker: ProxiedKafka, seed: int) -> None:
    system.publish(traffic(system.names, seed, VISITS))
    worker = behind_proxy(system, broker)
    system.until_scored(500)
    broker.proxy.refuse()
    try:
        unmoved(system, 3)
        assert system.status().lag > 0, "it was cut off before the end"
    finally:
        broker.proxy.pass_on()
    settled(system)
    assert worker.stop() == 0


# -- 8: retention deleted the offset to resume from --------------------------------------------------------------------


def delete_before(system: System, offsets: dict[tuple[str, int], int]) -> None:
    """What retention does: the log begins here now."""
    admin = AdminClient({"bootstrap.servers": system.kafka})
    asked = [TopicPartition(topic, number, offset) for (topic, number), offset in offsets.items()]
    for answer in admin.delete_records(asked).values():
        answer.result(30)


@pytest.mark.long
def test_records_that_retention_deleted_unread_are_counted_aloud_and_the_rest_is_read(
    system: System, seed: int
) -> None:
    """While the worker was away."""
    names = system.names
    system.publish(traffic(names, seed, 1_000))
    worker = system.start()
    settled(system)
    assert worker.stop() == 0
    before = Counters.of(system.status())
    reached = topics.end_offsets(system.kafka, [(names.visits, n) for n in range(PARTITIONS)])
    more(system, seed, 800)
    ends = topics.end_offsets(system.kafka, list(reached))
    gone = {where: (ends[where] - reached[where]) // 2 for where in reached}
    delete_before(system, {where: reached[where] + gone[where] for where in reached})
    worker = system.start()
    # The outcomes of what is gone are there: they count as what they are, and teach nothing.
    eventually_sync(lambda: system.status().lag == 0, 60, "nothing waits")
    left = read_topics(system.kafka, [names.visits], PARTITIONS)[names.visits]
    unread = [record for record in left if record.offset >= reached[names.visits, record.partition]]
    readable = sum(record.value != b"{" for record in unread)
    eventually_sync(
        lambda: system.status().visits_scored == before.visits_scored + readable, 30, "what is left is scored, once"
    )
    for (topic, number), count in gone.items():
        [said] = [line for line in worker.said.splitlines() if f"{topic}[{number}]" in line]
        assert f"{count:,} records were deleted by retention" in said
    verdict = verify(system)
    assert not verdict.lost
    assert verdict.repeated == []
    assert worker.stop() == 0


def test_a_log_whose_next_offset_is_deleted_under_a_working_consumer_is_gone_on_with_and_said(
    system: System, seed: int
) -> None:
    """It would be silently idle, or silently at the wrong place: nobody restarts, so nobody asks where the log begins."""
    names = system.names
    system.publish(traffic(names, seed, 500))
    worker = system.start()
    settled(system)
    with paused(worker.child):
        reached = topics.end_offsets(system.kafka, [(names.visits, n) for n in range(PARTITIONS)])
        more(system, seed, 400)
        ends = topics.end_offsets(system.kafka, list(reached))
        delete_before(system, {where: ends[where] - 20 for where in reached})
    eventually_sync(lambda: system.status().lag == 0, 60, "nothing waits")
    verdict = verify(system)
    assert not verdict.lost, "all that is left is answered"
    assert verdict.repeated == []
    assert system.status().visits_scored == len(verdict.scored)
    answered = verdict.scored.keys() | verdict.rejected.keys()
    for topic, number in reached:
        # A fetch that was under way when the worker froze brought the first of them.
        gone = [n for n in range(reached[topic, number], ends[topic, number]) if (topic, number, n) not in answered]
        assert gone
        [said] = [line for line in worker.said.splitlines() if f"{topic}[{number}]" in line]
        assert f"{len(gone):,} records were deleted by retention" in said
    assert worker.child.poll() is None
    assert worker.stop() == 0


# -- 8b: the same name, another log ------------------------------------------------------------------------------------


def until_counted(system: System, before: "Status") -> Counters:
    """Wait until the status counts what the topics hold now on top of `before`; returns the former."""
    inputs = read_topics(system.kafka, [system.names.visits, system.names.outcomes], system.partitions)
    new = expected_counters(inputs[system.names.visits], inputs[system.names.outcomes])
    old = Counters.of(before)
    system.until_counters(Counters(*(getattr(old, n) + getattr(new, n) for n in Counters.__dataclass_fields__)))
    return new


@pytest.mark.parametrize("worker_is", ["there", pytest.param("away", marks=pytest.mark.long)])
def test_a_topic_that_is_deleted_and_made_anew_is_another_log(system: System, seed: int, worker_is: str) -> None:
    names = system.names
    system.publish(traffic(names, seed, 1_500))
    worker = system.start()
    settled(system)
    before = system.status()
    if worker_is == "away":
        assert worker.stop() == 0
    topics.delete(system.kafka, names.all)
    eventually_sync(lambda: not topics.describe(system.kafka, names.all), 30, "the topics are gone")
    topics.create(system.kafka, names.all, PARTITIONS)
    more(system, seed, 2_500)  # longer than the one before it: an old offset would be inside
    if worker_is == "away":
        worker = system.start()
    new = until_counted(system, before)
    after = system.status()
    assert after.urls >= before.urls
    assert after.model_step > before.model_step, "what was learned is kept"
    verdict = verify(system).holds()
    assert len(verdict.scored) == new.visits_scored
    assert "another log" in worker.said
    assert worker.stop() == 0


# -- 9: offsets that are missing ---------------------------------------------------------------------------------------


def test_gaps_of_transactions_and_compaction_hold_back_neither_commits_nor_lag(
    system: System, broker: ProxiedKafka, seed: int
) -> None:
    """Markers, aborted records and whole stretches of the log are missing, at the end too."""
    names = system.names

    async def publish() -> None:
        plain = AIOKafkaProducer(bootstrap_servers=system.kafka)
        sure = AIOKafkaProducer(bootstrap_servers=system.kafka, transactional_id=f"t-{names.visits}")
        await plain.start()
        await sure.start()
        try:
            sent = traffic(names, seed, 600)
            for begin in range(0, len(sent), 60):
                number = begin // 60
                chunk = sent[begin : begin + 60]
                if number % 3 == 0:
                    async with sure.transaction():
                        for record in chunk:
                            await sure.send(record.topic, record.value, record.key, record.partition(PARTITIONS))
                else:
                    for record in chunk:
                        await plain.send(record.topic, record.value, record.key, record.partition(PARTITIONS))
                    await plain.flush()
            async with sure.transaction():
                for topic in (names.visits, names.outcomes):
                    for number in range(PARTITIONS):
                        record = replace(sent[0], topic=topic)
                        await sure.send(topic, b"{", record.key, number)
        finally:
            await plain.stop()
            await sure.stop()

    asyncio.run(publish())
    worker = system.start()
    settled(system)
    assert worker.stop() == 0
    ends = topics.end_offsets(system.kafka, [(topic, n) for topic in names.all[:2] for n in range(PARTITIONS)])
    with redis.Redis.from_url(system.redis) as store:
        for key in store.keys("*:position"):
            number = int(key.decode().partition("}")[0].rpartition(":")[2])
            kept = [int(store.hget(key, name) or 0) for name in ("visits", "outcomes")]
            assert kept == [ends[names.visits, number], ends[names.outcomes, number]], "past the last marker"
