"""The batch transport on real brokers: one running consumer per broker, each test with partitions of its own.

Input comes from a client that is not ours; what was committed is asked of the broker, not of the transport.
"""

import asyncio
import functools
import itertools
import json
import sys
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio
from aiokafka.errors import KafkaConnectionError
from confluent_kafka import Consumer, Producer, TopicPartition
from faust.types import TP

from streams import topics
from streams.transport import MAX_POLL_RECORDS, RecordBatch
from tests.member import Member
from tests.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

WIDE = 32  # partitions of the shared topics: a few for each test


class Log:
    """The two input topics, on one broker, and what this test module writes there."""

    def __init__(self, kafka: str, partitions: int = WIDE) -> None:
        self.kafka = kafka
        mark = uuid.uuid4().hex[:8]
        self.names = (f"visits-{mark}", f"outcomes-{mark}")
        self.group = f"group-{mark}"
        topics.create(kafka, self.names, partitions)
        self._producer = Producer({"bootstrap.servers": kafka, "linger.ms": 0})
        self._free = itertools.count()

    def twins(self) -> tuple[TP, TP]:
        """A partition of both topics that no other test uses."""
        number = next(self._free)
        assert number < WIDE, "widen the topics"
        return TP(self.names[0], number), TP(self.names[1], number)

    async def write(self, tp: TP, records: int, size: int = 10) -> None:
        """Append records and wait until the broker has them."""

        def write() -> None:
            failed: list[object] = []
            for _ in range(records):
                self._producer.produce(
                    tp.topic,
                    b"x" * size,
                    partition=tp.partition,
                    on_delivery=lambda error, _: error and failed.append(error),
                )
                self._producer.poll(0)
            assert self._producer.flush(20) == 0
            assert not failed, failed

        await asyncio.to_thread(write)

    async def write_transaction(self, tp: TP, records: int, commit: bool = True) -> None:
        """Append records in a transaction, which ends in a marker: an offset without a record."""

        def write() -> None:
            producer = Producer({"bootstrap.servers": self.kafka, "transactional.id": uuid.uuid4().hex})
            producer.init_transactions(20)
            producer.begin_transaction()
            for _ in range(records):
                producer.produce(tp.topic, b"x", partition=tp.partition)
            producer.flush(20)
            if commit:
                producer.commit_transaction(20)
            else:
                producer.abort_transaction(20)

        await asyncio.to_thread(write)

    async def committed(self, tp: TP) -> int | None:
        """The group's committed offset as the broker tells it, None where there is none."""

        def ask() -> int:
            client = Consumer({"bootstrap.servers": self.kafka, "group.id": self.group})
            try:
                return int(client.committed([TopicPartition(tp.topic, tp.partition)], 10)[0].offset)
            finally:
                client.close()

        offset = await asyncio.to_thread(ask)
        return offset if offset >= 0 else None


@pytest.fixture(scope="module")
def log(kafka: str) -> Log:
    return Log(kafka)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def member(log: Log) -> AsyncIterator[Member]:
    async with Member(log.kafka, log.names, log.group) as running:
        await eventually(lambda: running.assignments, 40, "the first assignment")
        yield running


async def all_of(member: Member, tp: TP, records: int) -> list[RecordBatch]:
    """The partition's batches, once exactly this many records have come."""
    await eventually(lambda: len(member.offsets(tp)) >= records, 20, f"{records} records of {tp}")
    assert len(member.offsets(tp)) == records
    return member.batches(tp)


async def in_parts(log: Log, member: Member, tp: TP, sizes: list[int]) -> list[list[RecordBatch]]:
    """The batches (mostly one) of each of these writes: the next is written when the one before it was delivered."""
    parts = []
    for size in sizes:
        batches, records = len(member.batches(tp)), len(member.offsets(tp))
        await log.write(tp, size)
        parts.append((await all_of(member, tp, records + size))[batches:])
    return parts


# -- batches ---------------------------------------------------------------------------------------------------------


async def test_a_batch_holds_consecutive_records_of_one_partition_in_order(log: Log, member: Member) -> None:
    (one, other), (third, _) = log.twins(), log.twins()
    await asyncio.gather(log.write(one, 5_000), log.write(other, 300), log.write(third, 1))
    for tp, records in ((one, 5_000), (other, 300), (third, 1)):
        batches = await all_of(member, tp, records)
        assert member.offsets(tp) == list(range(records))
        for batch in batches:
            assert 0 < len(batch.records) <= MAX_POLL_RECORDS
            assert {TP(record.topic, record.partition) for record in batch.records} == {tp}
    assert len(member.batches(one)) < 500, "records come in runs, not one by one"
    member.ack_all()


# -- acknowledge and commit ------------------------------------------------------------------------------------------


async def test_a_commit_never_passes_a_batch_that_is_not_acknowledged(log: Log, member: Member) -> None:
    tp, _ = log.twins()
    first, second, third = await in_parts(log, member, tp, [3, 4, 5])
    member.ack(*third)
    await member.consumer.commit()
    assert await log.committed(tp) is None
    member.ack(*first)
    await member.consumer.commit()
    assert await log.committed(tp) == 3
    member.ack(*second)
    await member.consumer.commit()
    assert await log.committed(tp) == 12


async def test_acknowledging_a_batch_twice_counts_once(log: Log, member: Member) -> None:
    tp, _ = log.twins()
    before = member.consumer.in_flight
    first, second = await in_parts(log, member, tp, [2, 2])
    assert member.consumer.in_flight == before + 4
    member.ack(*second)
    member.ack(*second)
    assert member.consumer.in_flight == before + 2
    await member.consumer.commit()
    assert await log.committed(tp) is None
    member.ack(*first)
    assert member.consumer.in_flight == before


# -- seek ------------------------------------------------------------------------------------------------------------


async def test_after_start_from_the_same_records_come_again_and_late_acknowledgements_count_for_nothing(
    log: Log, member: Member
) -> None:
    tp, _ = log.twins()
    first, second = await in_parts(log, member, tp, [5, 5])
    in_flight = member.consumer.in_flight
    await member.consumer.start_from({tp: 3})
    assert not any(member.consumer.is_current(batch) for batch in [*first, *second])
    await eventually(lambda: len(member.offsets(tp)) == 17, what="offsets 3 to 9 once more")
    assert member.offsets(tp)[10:] == [3, 4, 5, 6, 7, 8, 9]
    member.ack(*first, *second)
    assert member.consumer.in_flight == in_flight - 3
    await member.consumer.commit()
    assert await log.committed(tp) is None
    member.ack(*member.batches(tp)[len(first) + len(second) :])
    await member.consumer.commit()
    assert await log.committed(tp) == 10


def delivered_beyond(member: Member, tp: TP, offset: int) -> bool:
    last = member.consumer.last_delivered(tp)
    return last is not None and last > offset


async def test_a_seek_back_while_batches_arrive_loses_no_record_and_doubles_none(log: Log, member: Member) -> None:
    """Seeks race with polls under way: what was polled before the seek must not pass for what comes after it."""
    tp, _ = log.twins()
    writing = asyncio.create_task(log.write(tp, 20_000))
    for turn in range(25):
        target = turn * 100
        reached = functools.partial(delivered_beyond, member, tp, target)
        await eventually(reached, what="records to seek back from")
        await member.consumer.start_from({tp: target})
        await eventually(
            lambda: any(member.consumer.is_current(batch) for batch in member.batches(tp)),
            what="records after the seek",
        )
        current = [batch for batch in member.batches(tp) if member.consumer.is_current(batch)]
        assert current[0].records[0].offset == target
    await writing
    await eventually(lambda: member.consumer.read_position(tp) == 20_000, what="the end")

    def current_offsets() -> list[int]:
        return [r.offset for batch in member.batches(tp) if member.consumer.is_current(batch) for r in batch.records]

    await eventually(lambda: len(current_offsets()) >= 20_000 - 2_400, what="every record after the last seek")
    assert current_offsets() == list(range(2_400, 20_000))
    member.ack_all()


# -- pause, and pressure from behind ---------------------------------------------------------------------------------


async def test_a_paused_partition_gives_nothing_and_then_everything(log: Log, member: Member) -> None:
    (paused, _), (flowing, _) = log.twins(), log.twins()
    await in_parts(log, member, paused, [1])
    member.consumer.pause_partitions({paused})
    await log.write(paused, 10)
    await in_parts(log, member, flowing, [1, 1, 1])
    assert len(member.offsets(paused)) == 1
    member.consumer.resume_partitions({paused})
    await all_of(member, paused, 11)
    member.ack_all()


async def test_nothing_is_delivered_when_every_partition_is_paused_in_the_middle_of_a_poll(
    log: Log, member: Member
) -> None:
    """The driver takes an empty set of partitions for all of them."""
    tp, _ = log.twins()
    await in_parts(log, member, tp, [1])
    everything = member.consumer.assignment()
    member.consumer.pause_partitions(everything)
    await log.write(tp, 10)
    await eventually(lambda: (member.consumer.end_as_of(tp) or (0,))[0] > 1, what="the fetch that brings the records")
    polls = Polls(member)
    await eventually(lambda: polls.ended >= 2, what="two more polls")
    polls.stop()
    assert len(member.offsets(tp)) == 1
    member.consumer.resume_partitions(everything)
    await all_of(member, tp, 11)
    member.ack_all()


class Polls:
    """Counts the polls that end from now on."""

    def __init__(self, member: Member) -> None:
        self.ended = 0
        self._consumer = member.consumer
        self._original = member.consumer._wait_next_records

        async def counted(timeout: float) -> object:  # noqa: ASYNC109
            try:
                return await self._original(timeout)
            finally:
                self.ended += 1

        self._consumer._wait_next_records = counted  # type: ignore[method-assign,assignment]

    def stop(self) -> None:
        del self._consumer._wait_next_records


async def test_fetching_stops_at_the_bound_and_goes_on_below_half_of_it(log: Log, member: Member) -> None:
    tp, _ = log.twins()
    member.ack_all()
    consumer = member.consumer
    assert consumer.in_flight == 0
    before, consumer.max_in_flight = consumer.max_in_flight, 3_000
    try:
        await log.write(tp, 30_000)
        polls = Polls(member)
        await eventually(lambda: consumer.in_flight >= 3_000, what="as much in flight as may be")
        polls.stop()
        polls = Polls(member)
        came = len(member.offsets(tp))
        assert came <= 3_000 + MAX_POLL_RECORDS
        await asyncio.to_thread(topics.cluster_id, log.kafka)  # some time in which it could fetch
        assert polls.ended <= 1, "one poll may have been under way"
        assert len(member.offsets(tp)) == came
        member.ack(member.batches(tp)[0])
        while consumer.in_flight > 1_500:
            assert len(member.offsets(tp)) == came
            member.ack(next(batch for batch in member.batches(tp) if consumer.is_current(batch)))
        await eventually(lambda: len(member.offsets(tp)) > came, what="more after the acknowledgements")
        polls.stop()

        def drained() -> bool:
            assert consumer.in_flight <= 3_000 + MAX_POLL_RECORDS
            member.ack_all()
            return len(member.offsets(tp)) == 30_000

        await eventually(drained, 30, "all records, acknowledged as they come")
        assert member.offsets(tp) == list(range(30_000))
    finally:
        consumer.max_in_flight = before


# -- the end of a log ------------------------------------------------------------------------------------------------


async def test_the_end_is_known_since_when_it_was_asked(log: Log, member: Member) -> None:
    tp, empty = log.twins()
    await in_parts(log, member, tp, [7])
    loop = asyncio.get_running_loop()
    now = loop.time()  # the monotonic clock

    def newer(partition: TP) -> int | None:
        found = member.consumer.end_as_of(partition)
        return found[0] + 1 if found is not None and found[1] > now else None

    assert await eventually(lambda: newer(tp), what="a later fetch") == 7 + 1
    assert await eventually(lambda: newer(empty), what="a fetch of the empty one") == 0 + 1
    assert member.consumer.read_position(tp) == 7
    assert member.consumer.read_position(empty) == 0
    member.ack_all()


class FailingFetches:
    """A connection on which no fetch is answered from now on; everything else is."""

    def __init__(self, member: Member) -> None:
        self.failed = 0
        self._client = member.consumer._thread._ensure_consumer()._client
        send = self._client.send

        async def failing(node_id: int, request: Any, **options: Any) -> Any:
            if type(request).__name__.startswith("FetchRequest"):
                self.failed += 1
                raise KafkaConnectionError("cut by the test")
            return await send(node_id, request, **options)

        self._client.send = failing

    def mend(self) -> None:
        del self._client.send


async def test_an_end_is_not_confirmed_by_a_fetch_that_failed(log: Log, member: Member) -> None:
    """A partition whose broker is away was not read to its end since: its watermark must wait."""
    tp, _ = log.twins()
    await in_parts(log, member, tp, [3])
    fetches = FailingFetches(member)
    cut_at = time.monotonic()
    await eventually(lambda: fetches.failed >= 4, what="fetches that fail")
    end, confirmed_at = member.consumer.end_as_of(tp) or (None, 0.0)
    fetches.mend()
    assert end == 3
    assert confirmed_at < cut_at
    await in_parts(log, member, tp, [1])
    member.ack_all()


@pytest.mark.parametrize("commit", [True, False], ids=["committed", "aborted"])
async def test_transaction_markers_hold_back_neither_the_end_nor_commits(
    log: Log, member: Member, commit: bool
) -> None:
    tp, _ = log.twins()
    await log.write_transaction(tp, 3, commit)  # 0 to 2, marker at 3
    await eventually(lambda: (member.consumer.end_as_of(tp) or (0,))[0] == 4, what="the marker, which comes by itself")
    await log.write(tp, 2)  # 4 and 5
    await log.write_transaction(tp, 1, commit)  # 6, marker at 7: the log ends at 8
    await all_of(member, tp, 6)
    assert member.offsets(tp) == [0, 1, 2, 4, 5, 6]
    await eventually(lambda: member.consumer.read_position(tp) == 8, what="a position past the last marker")
    await eventually(lambda: (member.consumer.end_as_of(tp) or (0,))[0] == 8, what="the end after the last marker")
    assert member.consumer.last_delivered(tp) == 6
    member.ack(*member.batches(tp))
    await member.consumer.commit()
    assert await log.committed(tp) == 7
    await log.write(tp, 1)
    await all_of(member, tp, 7)
    member.ack(*member.batches(tp))
    await member.consumer.commit()
    assert await log.committed(tp) == 9


# -- several members -------------------------------------------------------------------------------------------------


class OtherMember:
    """A second member in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def assignment(self) -> set[TP]:
        """Its next assignment."""
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), 60)
        assert line, "the other member died"
        return {TP(*tp) for tp in json.loads(line)}

    async def leave(self) -> None:
        """Let it leave the group in order."""
        assert self._process.stdin is not None
        if self._process.returncode is None:
            self._process.stdin.close()
            assert await asyncio.wait_for(self._process.wait(), 30) == 0


@asynccontextmanager
async def other_member(log: Log) -> AsyncIterator[OtherMember]:
    command = [sys.executable, "-m", "tests.member", log.kafka, log.group, *log.names]
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        yield OtherMember(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_partitions_come_and_go_in_twins_and_what_was_not_acknowledged_comes_again(kafka: str) -> None:
    log = Log(kafka, partitions=4)
    tps = {TP(topic, number) for topic in log.names for number in range(4)}
    started: list[tuple[set[TP], int]] = []
    acked_through = dict.fromkeys(tps, 0)
    start_at = {TP(log.names[0], 1): 2}
    for tp in tps:
        await log.write(tp, 10)
    member = Member(kafka, log.names, log.group, start_at)

    async def nothing_has_come(assigned: set[TP]) -> None:
        """While the pipeline asks its store: no record may be delivered, wherever Kafka's commits stand."""
        before = len(member.events)
        polls = Polls(member)
        await eventually(lambda: polls.ended >= 3, what="some polls before the start")
        polls.stop()
        started.append((assigned, len(member.events) - before))

    member.before_start = nothing_has_come
    async with member:
        await eventually(lambda: len(member.assignments) == 1, 40, "the first assignment")
        first_generation, assigned = member.assignments[0]
        assert assigned == tps
        await eventually(lambda: len(member.batches()) and sum(len(b.records) for b in member.batches()) == 78)
        assert member.offsets(TP(log.names[0], 1)) == list(range(2, 10)), "begins where it was told"
        half_acked = TP(log.names[0], 0)
        (old_batch,) = member.batches(half_acked)
        acked = [batch for batch in member.batches() if batch.tp != half_acked]
        member.ack(*acked)
        acked_through |= {batch.tp: 10 for batch in acked}
        await member.consumer.commit()

        async with other_member(log) as other:
            theirs = await other.assignment()
            await eventually(lambda: len(member.assignments) == 2, 40, "the assignment beside the other member")
            generation, mine = member.assignments[1]
            assert generation != first_generation
            assert not mine & theirs
            assert mine | theirs == tps
            for share in (mine, theirs):
                visits, outcomes = ({tp.partition for tp in share if tp.topic == name} for name in log.names)
                assert visits == outcomes != set(), "both topics go to the same member"
            assert not any(
                member.consumer.is_current(batch) for batch in member.batches() if batch.generation != generation
            )
            in_flight = member.consumer.in_flight
            member.ack(old_batch)
            assert member.consumer.in_flight == in_flight, "a late acknowledgement counts for nothing"
            await member.consumer.commit()
            assert await log.committed(half_acked) is None
            twice = {tp: 2 * (10 - start_at.get(tp, 0)) for tp in mine}
            await eventually(
                lambda: {tp: len(member.offsets(tp)) for tp in mine} == twice,
                what="ours from where they started, again",
            )
            before = len(member.events)
            member.start_at = acked_through
            await other.leave()

        await eventually(lambda: len(member.assignments) == 3, 40, "the assignment when alone again")
        generation, mine = member.assignments[2]
        assert mine == tps
        await eventually(lambda: len(member.events) > before, what="what was not acknowledged")
        again = [batch for batch in member.batches() if batch.generation == generation]
        assert {batch.tp for batch in again} == {half_acked}, "the others begin after what was acknowledged"
        assert [record.offset for batch in again for record in batch.records] == list(range(10))
        assert all(member.consumer.is_current(batch) for batch in again)
        member.ack(*again)
        await member.consumer.commit()
        assert await log.committed(half_acked) == 10
    assert [came for _, came in started] == [0, 0, 0], "nothing is delivered before start_from"
