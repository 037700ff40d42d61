"""Publishes a log to the topics: a producer that behaves as live traffic would, only faster.

Lives here: `replay`, `parse_speed`, and the pure parts under them (`Pace`, `partition_of`).
Promises:
- A visitor's records all go to the partition that any Kafka client with the default partitioner would choose, in order.
- When a visit with event time t can be read, every outcome that precedes it in the log is in its topic already: records
  go out in slices, a slice's outcomes are acknowledged before its visits are sent, its visits before the next slice.
- Every record is acknowledged by all replicas, at least once. A broker that is away is waited for and said once;
  records whose acknowledgement it took with it are sent again, and their `event_id`s show them as duplicates.
- Records carry the wall clock as Kafka timestamp, not the event time: retention would delete history on arrival.
Does not: read files (`schemas.logs` does), create topics, use idempotent production (the embedded broker has none).
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaConnectionError, KafkaError, KafkaTimeoutError
from aiokafka.partitioner import murmur2

from schemas.logs_lines import LogItem, LogRecord, Unreadable
from streams.errors import BrokerError

Answer = TypeVar("Answer")

# Large enough that the round trips of a slice cost little, small enough that outcomes run ahead of visits by moments.
SLICE_RECORDS = 2_000
# Below the broker's default limit of 1 MiB a batch, with room for its header.
MAX_BATCH_BYTES = 900_000
# Shorter waits than this are slept together; a sleep is not more precise.
LEAST_WAIT_S = 0.01
# How long a request may take before the broker is said to be away; then it may take as long as it likes.
QUIET_S = 3.0
REQUEST_TIMEOUT_MS = 10_000
BACKOFF_S = (0.25, 5.0)


@dataclass(frozen=True, slots=True)
class Replayed:
    """What has been published so far. `skipped` lines could not be read; `seconds` are of the wall clock."""

    published: int = 0
    outcomes: int = 0
    skipped: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class Pace:
    """When a record is due: `speed` seconds of event time pass in each second, counted from the first record."""

    speed: float
    _first_ms: int | None = None
    _started_s: float = 0.0

    def wait_s(self, event_ms: int, now_s: float) -> float:
        """Seconds from `now_s` (monotonic) until the record of `event_ms` is due; 0 or less when it is due already."""
        if self._first_ms is None:
            self._first_ms, self._started_s = event_ms, now_s
        return self._started_s + (event_ms - self._first_ms) / 1000 / self.speed - now_s


def parse_speed(text: str) -> float | None:
    """`max` is None, `real` is 1.0, `10x` is 10.0. Raises ValueError with a sentence."""
    if text == "max":
        return None
    if text == "real":
        return 1.0
    with suppress(ValueError):
        if text.endswith("x") and 0 < (speed := float(text[:-1])) < float("inf"):
            return speed
    raise ValueError(f"{text!r} is no speed: write max, real, or a multiple of real time such as 10x")


@lru_cache(maxsize=65_536)  # murmur2 in Python takes 10 µs, and visitors come back
def partition_of(key: bytes, partitions: int) -> int:
    """The partition that Kafka's default partitioner gives a key."""
    return int((murmur2(key) & 0x7FFFFFFF) % partitions)


def _ignore(_: object) -> None:
    pass


async def replay(
    items: Iterable[LogItem],
    *,
    kafka: str,
    visits_topic: str = "web-visits",
    outcomes_topic: str = "visit-outcomes",
    speed: float | None = None,
    report: Callable[[str], None] = _ignore,
    unreadable: Callable[[Unreadable], None] = _ignore,
    progress: Callable[[Replayed], None] = _ignore,
) -> Replayed:
    """Publish a log, as fast as the broker takes it (`speed` None) or at a multiple of event time.

    `report` is given a sentence when the broker goes away and when it is back; `unreadable` each line that was skipped;
    `progress` the counts after each slice. Raises BrokerError where waiting would not help.
    """
    started_s = time.monotonic()
    published = outcomes = skipped = 0
    pace = None if speed is None else Pace(speed)
    pending: list[LogRecord] = []
    publisher = _Publisher(kafka, report)

    def so_far() -> Replayed:
        return Replayed(published, outcomes, skipped, time.monotonic() - started_s)

    async def flush() -> None:
        nonlocal published, outcomes
        first = [record for record in pending if record.kind == "outcome"]
        then = [record for record in pending if record.kind == "visit"]
        await publisher.publish(outcomes_topic, first)
        outcomes += len(first)
        await publisher.publish(visits_topic, then)
        published += len(then)
        pending.clear()
        progress(so_far())

    try:
        await publisher.start((visits_topic, outcomes_topic))
        for item in items:
            if isinstance(item, Unreadable):
                skipped += 1
                unreadable(item)
                continue
            if pace is not None and pace.wait_s(item.timestamp_ms, time.monotonic()) > LEAST_WAIT_S:
                await flush()
                await asyncio.sleep(pace.wait_s(item.timestamp_ms, time.monotonic()))
            pending.append(item)
            if len(pending) >= SLICE_RECORDS:
                await flush()
        await flush()
    finally:
        await publisher.stop()
    return so_far()


class _Publisher:
    """Sends records to their partitions and waits for the acknowledgement, through outages."""

    def __init__(self, kafka: str, report: Callable[[str], None]) -> None:
        self._kafka = kafka
        self._report = report
        self._producer: Any = None
        self._topics: tuple[str, ...] = ()
        self._partitions = 0
        self._away = False

    async def start(self, topics: tuple[str, ...]) -> None:
        """Connect, waiting as long as it takes. Raises BrokerError for topics that are missing or differ in width."""
        self._topics = topics
        for wait_s in _backoff():
            self._producer = AIOKafkaProducer(
                bootstrap_servers=self._kafka,
                acks="all",
                enable_idempotence=False,
                max_batch_size=MAX_BATCH_BYTES,
                request_timeout_ms=REQUEST_TIMEOUT_MS,
            )
            try:
                await self._patiently(self._producer.start())
                await self._look_at_topics()
            except (KafkaError, OSError, TimeoutError) as error:
                await self.stop()
                self._judge(error)
                await asyncio.sleep(wait_s)
            else:
                self._answered()
                return

    async def stop(self) -> None:
        """Disconnect; nothing is left to send, so that a broker that is away is not waited for."""
        if self._producer is not None:
            with suppress(KafkaError, OSError, TimeoutError):
                await asyncio.wait_for(self._producer.stop(), timeout=QUIET_S)

    async def publish(self, topic: str, records: Sequence[LogRecord]) -> None:
        """Send the records, each partition's in order, and return when all are acknowledged. Raises BrokerError."""
        lanes: dict[int, list[tuple[bytes, bytes]]] = defaultdict(list)
        for record in records:
            key = record.visitor_id.encode()
            lanes[partition_of(key, self._partitions)].append((key, record.value))
        try:
            async with asyncio.TaskGroup() as group:
                for partition, lane in lanes.items():
                    group.create_task(self._publish_lane(topic, partition, lane))
        except BaseExceptionGroup as failures:
            # The first is the cause; the others are lanes that were cancelled for it.
            raise failures.exceptions[0] from None

    async def _publish_lane(self, topic: str, partition: int, records: Sequence[tuple[bytes, bytes]]) -> None:
        at = 0
        while at < len(records):
            for wait_s in _backoff():
                batch = self._producer.create_batch()
                end = at
                # `append` answers None when the batch is full; that record opens the next one.
                while end < len(records) and _appended(batch, *records[end]):
                    end += 1
                assert end > at, f"a record of {len(records[at][1])} bytes does not fit an empty batch"
                batch.close()  # or it would wait for more
                try:
                    await self._patiently(self._acknowledged(batch, topic, partition))
                except (KafkaError, OSError, TimeoutError) as error:
                    self._judge(error)
                    await self._look_at_topics_if_it_answers()
                    await asyncio.sleep(wait_s)
                else:
                    self._answered()
                    break
            at = end

    async def _acknowledged(self, batch: Any, topic: str, partition: int) -> None:
        await (await self._producer.send_batch(batch, topic, partition=partition))

    async def _look_at_topics(self) -> None:
        # Asks for all topics: asking for one by name makes a broker with auto-creation create it, one partition wide.
        cluster = await self._patiently(self._producer.client.fetch_all_metadata())
        widths = {topic: len(cluster.partitions_for_topic(topic) or ()) for topic in self._topics}
        missing = [topic for topic, width in widths.items() if not width]
        if missing:
            raise BrokerError(
                f"Kafka at {self._kafka} has no topic {' and no topic '.join(missing)}: "
                "create what is missing with `url2vec topics --create`"
            )
        if len(set(widths.values())) > 1:
            named = ", ".join(f"{topic} has {width}" for topic, width in widths.items())
            raise BrokerError(f"Partition counts at Kafka {self._kafka} differ ({named}): they have to be the same")
        self._partitions = next(iter(widths.values()))

    async def _look_at_topics_if_it_answers(self) -> None:
        with suppress(KafkaError, OSError, TimeoutError):
            await self._look_at_topics()

    async def _patiently(self, request: Coroutine[Any, Any, Answer]) -> Answer:
        """The answer, however long it takes; says once that it takes long."""
        task = asyncio.ensure_future(request)
        try:
            done, _ = await asyncio.wait({task}, timeout=QUIET_S)
            if not done:
                self._went_away()
            return await task
        finally:
            task.cancel()

    def _judge(self, error: Exception) -> None:
        """Note an outage, which passes; raise BrokerError for what does not."""
        passing = (KafkaConnectionError, KafkaTimeoutError, OSError, TimeoutError)
        if not isinstance(error, passing) and not getattr(error, "retriable", False):
            raise BrokerError(f"Kafka at {self._kafka} refused the records: {error or type(error).__name__}") from error
        self._went_away()

    def _went_away(self) -> None:
        if not self._away:
            self._away = True
            self._report(f"Kafka at {self._kafka} does not answer; waiting, to go on from here when it does.")

    def _answered(self) -> None:
        if self._away:
            self._away = False
            self._report(f"Kafka at {self._kafka} answers again; going on.")


def _appended(batch: Any, key: bytes, value: bytes) -> bool:
    """Whether the record fits; an empty batch takes a record of any size."""
    return batch.append(key=key, value=value, timestamp=None) is not None


def _backoff() -> Iterable[float]:
    """Seconds to wait between attempts, without end."""
    wait_s, most_s = BACKOFF_S
    while True:
        yield wait_s
        wait_s = min(2 * wait_s, most_s)
