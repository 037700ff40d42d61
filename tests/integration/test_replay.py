"""Logs published to real brokers, read back with a client that is not ours."""

import asyncio
import json
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from confluent_kafka import Consumer, TopicPartition

from schemas.logs import LogFile, LogItem, LogRecord, Unreadable
from streams import topics
from streams.errors import BrokerError
from streams.replay import SLICE_RECORDS, Replayed, replay
from tests.servers import RealKafka

if TYPE_CHECKING:
    from streams.settings import Topics

NOW_MS = 1_790_000_000_000
PARTITIONS = 4
READ_LIMIT_S = 30.0


def sessions(path: Path, count: int) -> LogFile:
    rows = [
        f"{n}\t{n % 2}\tTarget\t" + ";".join(f"Page_{n * k % 50}" for k in range(1, 2 + n % 7)) for n in range(count)
    ]
    path.write_text("\n".join(["session\tfinished\ttarget\tpages", *rows, "damaged"]))
    return LogFile(path, now_ms=NOW_MS)


def published(log: LogFile, kind: str) -> list[LogRecord]:
    return [item for item in log if isinstance(item, LogRecord) and item.kind == kind]


def ends_of(kafka: str, topic: str) -> dict[int, int]:
    found = topics.end_offsets(kafka, [(topic, partition) for partition in range(PARTITIONS)])
    return {partition: end for (_, partition), end in found.items()}


def read_back(kafka: str, topic: str, sent_at_ms: list[int] | None = None) -> dict[int, list[tuple[str, bytes]]]:
    """Partition to its records (key and value), all that are there now; adds their times to `sent_at_ms`."""
    ends = ends_of(kafka, topic)
    found: dict[int, list[tuple[str, bytes]]] = {partition: [] for partition in ends}
    consumer = Consumer({"bootstrap.servers": kafka, "group.id": uuid.uuid4().hex, "enable.auto.commit": False})
    deadline = time.monotonic() + READ_LIMIT_S
    consumer.assign([TopicPartition(topic, partition, 0) for partition in ends])
    try:
        while any(len(found[partition]) < end for partition, end in ends.items()):
            assert time.monotonic() < deadline, f"{topic} ends at {ends}, of which {sum(map(len, found.values()))} came"
            messages = consumer.consume(1000, timeout=0.2)
            for message in messages:
                partition, key, value = message.partition(), message.key(), message.value()
                assert message.error() is None
                assert partition is not None
                assert key is not None
                assert value is not None
                found[partition].append((key.decode(), value))
                if sent_at_ms is not None:
                    sent_at_ms.append(message.timestamp()[1])
    finally:
        consumer.close()
    return found


def by_visitor(partitions: dict[int, list[tuple[str, bytes]]]) -> dict[str, list[bytes]]:
    found: dict[str, list[bytes]] = defaultdict(list)
    for records in partitions.values():
        for key, value in records:
            found[key].append(value)
    return found


def expected(records: list[LogRecord]) -> dict[str, list[bytes]]:
    found: dict[str, list[bytes]] = defaultdict(list)
    for record in records:
        found[record.visitor_id].append(record.value)
    return found


async def publish(log: Iterator[LogItem] | LogFile, kafka: str, names: "Topics", **options: object) -> Replayed:
    return await replay(
        log,
        kafka=kafka,
        visits_topic=names.visits,
        outcomes_topic=names.outcomes,
        **options,  # type: ignore[arg-type]
    )


async def test_every_record_arrives_once_in_order_where_its_visitor_belongs(
    kafka: str, topic_names: "Topics", tmp_path: Path
) -> None:
    log = sessions(tmp_path / "log", 1500)
    skipped: list[Unreadable] = []
    done = await publish(log, kafka, topic_names, unreadable=skipped.append)
    visits, outcomes = published(log, "visit"), published(log, "outcome")
    assert len(visits) > SLICE_RECORDS
    assert (done.published, done.outcomes, done.skipped) == (len(visits), len(outcomes), 1)
    assert [problem.line_number for problem in skipped] == [1502]

    found_visits = await asyncio.to_thread(read_back, kafka, topic_names.visits)
    found_outcomes = await asyncio.to_thread(read_back, kafka, topic_names.outcomes)
    assert by_visitor(found_visits) == expected(visits)
    assert by_visitor(found_outcomes) == expected(outcomes)
    for partition in range(PARTITIONS):
        in_both = {key for key, _ in found_visits[partition]}, {key for key, _ in found_outcomes[partition]}
        assert in_both[0] == in_both[1]
        times = [json.loads(value)["timestamp"] for _, value in found_visits[partition]]
        assert times == sorted(times)


async def test_records_larger_than_a_batch_together_are_split_and_none_is_lost(
    embedded_kafka: str, make_topics: "Callable[..., Topics]"
) -> None:
    names = make_topics(embedded_kafka, PARTITIONS)
    log = [LogRecord("visit", f"v{n % 3}", n, b"%d:" % n + b"x" * 300_000) for n in range(12)]
    log.append(LogRecord("visit", "v0", 99, b"y" * 950_000))  # larger than a batch alone
    await publish(iter(log), embedded_kafka, names)
    assert by_visitor(await asyncio.to_thread(read_back, embedded_kafka, names.visits)) == expected(log)


async def test_outcomes_are_in_their_topic_before_a_later_visit_is(
    embedded_kafka: str, make_topics: "Callable[..., Topics]"
) -> None:
    names = make_topics(embedded_kafka, PARTITIONS)
    seen: list[tuple[int, int]] = []

    def log() -> Iterator[LogItem]:
        for n in range(3 * SLICE_RECORDS):
            # Each slice's records are asked for only when everything before them has been acknowledged.
            if n % SLICE_RECORDS == 0:
                counts = [sum(ends_of(embedded_kafka, name).values()) for name in (names.visits, names.outcomes)]
                seen.append((counts[0], counts[1]))
            yield LogRecord("outcome" if n % 4 == 3 else "visit", f"v{n % 97}", n, b"%d" % n)

    await publish(log(), embedded_kafka, names)
    quarter = SLICE_RECORDS // 4
    assert seen == [(n * 3 * quarter, n * quarter) for n in range(3)]


async def test_outcomes_are_acknowledged_before_visits_of_their_slice_are_sent(
    embedded_kafka: str, make_topics: "Callable[..., Topics]"
) -> None:
    names = make_topics(embedded_kafka, PARTITIONS)
    log = [LogRecord("outcome" if n % 2 else "visit", f"v{n % 97}", n, b"%d" % n) for n in range(SLICE_RECORDS)]
    before_ms = time.time_ns() // 1_000_000
    await publish(iter(log), embedded_kafka, names)
    visits_ms: list[int] = []
    outcomes_ms: list[int] = []
    await asyncio.to_thread(read_back, embedded_kafka, names.visits, visits_ms)
    await asyncio.to_thread(read_back, embedded_kafka, names.outcomes, outcomes_ms)
    assert max(outcomes_ms) <= min(visits_ms)
    assert before_ms <= min(outcomes_ms)  # Kafka's timestamp is the clock, not the event time


async def test_event_time_sets_the_pace(embedded_kafka: str, make_topics: "Callable[..., Topics]") -> None:
    names = make_topics(embedded_kafka, PARTITIONS)
    log = [LogRecord("visit", "v", n * 1000, b"x") for n in range(11)]
    progress: list[Replayed] = []
    done = await publish(iter(log), embedded_kafka, names, speed=20.0, progress=progress.append)
    assert done.seconds >= 10 / 20  # ten seconds of event time
    assert [each.published for each in progress][-1] == 11
    assert len(progress) >= 10  # each went out when it was due, not all at the end


async def test_missing_topics_are_answered_with_the_command_that_creates_them(embedded_kafka: str) -> None:
    name = f"missing-{uuid.uuid4().hex[:8]}"
    with pytest.raises(BrokerError, match=rf"no topic {name}.*url2vec topics --create"):
        await replay(iter([]), kafka=embedded_kafka, visits_topic=name)
    assert not await asyncio.to_thread(topics.describe, embedded_kafka, [name])  # and looking did not create it


async def test_topics_of_different_width_are_refused(embedded_kafka: str) -> None:
    wide, narrow = f"wide-{uuid.uuid4().hex[:8]}", f"narrow-{uuid.uuid4().hex[:8]}"
    await asyncio.to_thread(topics.create, embedded_kafka, [wide], 3)
    await asyncio.to_thread(topics.create, embedded_kafka, [narrow], 2)
    with pytest.raises(BrokerError, match="differ"):
        await replay(iter([]), kafka=embedded_kafka, visits_topic=wide, outcomes_topic=narrow)


async def test_a_broker_that_is_not_there_yet_is_waited_for_and_said_once(
    kafka_libs: None, tmp_path: Path, make_topics: "Callable[..., Topics]"
) -> None:
    log = sessions(tmp_path / "log", 20)
    said: list[str] = []
    away = asyncio.Event()

    def report(text: str) -> None:
        said.append(text)
        away.set()

    with RealKafka(tmp_path / "kafka") as broker:
        names = make_topics(broker.kafka, PARTITIONS)
        broker.stop()
        task = asyncio.create_task(publish(log, broker.kafka, names, report=report))
        await asyncio.wait_for(away.wait(), READ_LIMIT_S)
        await asyncio.to_thread(broker.start)
        done = await asyncio.wait_for(task, READ_LIMIT_S)
    assert done.published == len(published(log, "visit"))
    assert [("does not answer" in text, "answers again" in text) for text in said] == [(True, False), (False, True)]


async def test_a_broker_that_goes_away_in_the_middle_costs_no_record(
    kafka_libs: None, tmp_path: Path, make_topics: "Callable[..., Topics]"
) -> None:
    log = sessions(tmp_path / "log", 4000)
    said: list[str] = []
    away = asyncio.Event()
    with RealKafka(tmp_path / "kafka") as broker:
        names = make_topics(broker.kafka, PARTITIONS)

        def log_with_an_accident() -> Iterator[LogItem]:
            for place, item in enumerate(log):
                if place == 3 * SLICE_RECORDS:
                    broker.kill()
                yield item

        def report(text: str) -> None:
            said.append(text)
            away.set()

        task = asyncio.create_task(publish(log_with_an_accident(), broker.kafka, names, report=report))
        await asyncio.wait_for(away.wait(), READ_LIMIT_S)
        await asyncio.to_thread(broker.start)
        done = await asyncio.wait_for(task, 120)
        found = by_visitor(await asyncio.to_thread(read_back, broker.kafka, names.visits))
    wanted = expected(published(log, "visit"))
    assert done.published == sum(map(len, wanted.values()))
    assert {visitor: list(dict.fromkeys(values)) for visitor, values in found.items()} == wanted
    assert [("does not answer" in text, "answers again" in text) for text in said] == [(True, False), (False, True)]
