"""What goes out: in order whatever fails, and known to be acknowledged before anybody relies on it."""

import asyncio
import re
from collections.abc import Iterable

import pytest
from aiokafka.errors import KafkaConnectionError, MessageSizeTooLargeError

from streams import emit
from streams.emit import CUT_BYTES, Outbox, Record
from tests.waiting import eventually

TOPIC = "scored"


def record(name: str, size: int = 0) -> Record:
    return name.encode(), b"x" * size, []


def names(records: Iterable[Record]) -> list[str]:
    return [(key or b"").decode() for key, _, _ in records]


class Broker:
    """Takes every batch; a batch is two records, so that most of what is put becomes several."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, int, list[Record]]] = []

    def pack(self, records: Iterable[Record]) -> list[list[Record]]:
        everything = list(records)
        return [everything[i : i + 2] for i in range(0, len(everything), 2)]

    async def send(self, batch: list[Record], topic: str, partition: int) -> None:
        self.taken.append((topic, partition, batch))

    def names(self, partition: int) -> list[str]:
        return [name for _, number, batch in self.taken if number == partition for name in names(batch)]


class BlockingProducer(Broker):
    """Acknowledges nothing until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Event()
        self.waiting = 0

    async def send(self, batch: list[Record], topic: str, partition: int) -> None:
        self.waiting += 1
        await self.go.wait()
        self.waiting -= 1
        await super().send(batch, topic, partition)


class FailingProducer(Broker):
    """Refuses the first `failures` sendings of each batch; with `took_it`, the batch arrived and only the answer was lost."""

    def __init__(self, failures: int, took_it: bool = False, error: type[Exception] = KafkaConnectionError) -> None:
        super().__init__()
        self.failures = failures
        self.took_it = took_it
        self.error = error
        self.tries: dict[str, int] = {}

    async def send(self, batch: list[Record], topic: str, partition: int) -> None:
        first = names(batch)[0]
        self.tries[first] = self.tries.get(first, 0) + 1
        if self.tries[first] <= self.failures:
            if self.took_it:
                await super().send(batch, topic, partition)
            raise self.error
        await super().send(batch, topic, partition)


class ChokingProducer(Broker):
    """Refuses batches that hold more bytes than it takes."""

    def __init__(self, most_bytes: int = CUT_BYTES + 1_000) -> None:
        super().__init__()
        self.most_bytes = most_bytes

    async def send(self, batch: list[Record], topic: str, partition: int) -> None:
        if sum(len(key or b"") + len(value or b"") for key, value, _ in batch) > self.most_bytes:
            raise MessageSizeTooLargeError
        await super().send(batch, topic, partition)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emit, "RETRY_FIRST_S", 0.001)
    monkeypatch.setattr(emit, "RETRY_MOST_S", 0.002)


@pytest.mark.parametrize("took_it", [False, True], ids=["refused", "answer-lost"])
async def test_a_retry_does_not_overtake(took_it: bool) -> None:
    producer, said = FailingProducer(failures=2, took_it=took_it), []
    outbox = Outbox(producer, said.append)
    for start in range(0, 12, 3):
        outbox.put(0, TOPIC, [record(str(n)) for n in range(start, start + 3)])
    await asyncio.wait_for(outbox.flushed([0]), 5)
    once = list(dict.fromkeys(producer.names(0)))
    assert once == [str(n) for n in range(12)]
    assert len(producer.names(0)) == (36 if took_it else 12)


async def test_an_outage_is_said_once_and_its_end_too() -> None:
    said: list[str] = []
    outbox = Outbox(FailingProducer(failures=5), said.append)
    outbox.put(3, TOPIC, [record("a")])
    await asyncio.wait_for(outbox.flushed([3]), 5)
    away, back = said
    assert re.match(r"scored\[3\] does not take records .*trying again until it does", away)
    assert back == "scored[3] takes records again"


async def test_flushed_waits_for_the_acknowledgement_of_everything_put_before() -> None:
    producer = BlockingProducer()
    outbox = Outbox(producer, print)
    delivered: list[str] = []
    outbox.put(0, TOPIC, [record("a")], lambda: delivered.append("a"))
    outbox.put(1, TOPIC, [record("b")], lambda: delivered.append("b"))
    flushed = asyncio.create_task(outbox.flushed([0, 1]))
    await eventually(lambda: producer.waiting == 2, what="both partitions sending")
    assert not flushed.done()
    assert delivered == []
    await outbox.flushed([2])  # of a partition of which nothing was put
    producer.go.set()
    await asyncio.wait_for(flushed, 5)
    assert sorted(delivered) == ["a", "b"]


async def test_one_batch_of_a_partition_is_under_way_at_a_time() -> None:
    producer = BlockingProducer()
    outbox = Outbox(producer, print)
    outbox.put(0, TOPIC, [record(str(n)) for n in range(6)])
    outbox.put(0, "rejected", [record("6")])
    await eventually(lambda: producer.waiting == 1, what="the first batch")
    producer.go.set()
    await asyncio.wait_for(outbox.flushed([0]), 5)
    assert producer.names(0) == [str(n) for n in range(7)]
    assert [topic for topic, _, _ in producer.taken] == [TOPIC, TOPIC, TOPIC, "rejected"]


async def test_what_is_forgotten_is_not_sent_and_the_partition_may_come_back() -> None:
    producer = BlockingProducer()
    outbox = Outbox(producer, print)
    outbox.put(0, TOPIC, [record("old")])
    outbox.put(1, TOPIC, [record("other")])
    await eventually(lambda: producer.waiting == 2, what="both under way")
    await asyncio.wait_for(outbox.forget([0, 7]), 5)
    await asyncio.wait_for(outbox.flushed([0]), 5)
    producer.go.set()
    outbox.put(0, TOPIC, [record("new")])
    await asyncio.wait_for(outbox.flushed([0, 1]), 5)
    assert producer.names(0) == ["new"]
    assert producer.names(1) == ["other"]


async def test_records_that_are_too_large_are_cut_and_say_so() -> None:
    producer, said = ChokingProducer(), []
    outbox = Outbox(producer, said.append)
    outbox.put(0, TOPIC, [record("small", 10), record("large", 3_000_000), record("after", 10)])
    await asyncio.wait_for(outbox.flushed([0]), 5)
    assert producer.names(0) == ["small", "large", "after"]
    small, large, after = (item for _, _, batch in producer.taken for item in batch)
    assert (small, after) == (record("small", 10), record("after", 10))
    assert large == (b"large", b"x" * CUT_BYTES, [("cut_from_bytes", b"3000005")])
    assert len(said) == 1


async def test_a_broker_that_takes_less_than_we_pack_gets_smaller_batches_and_loses_nothing() -> None:
    producer, said = ChokingProducer(most_bytes=120), []
    outbox = Outbox(producer, said.append)
    outbox.put(0, TOPIC, [record(str(n), 100) for n in range(5)])
    await asyncio.wait_for(outbox.flushed([0]), 5)
    assert producer.names(0) == [str(n) for n in range(5)]
    assert said == [], "nothing was cut"
    outbox.put(0, TOPIC, [record("large", 1_000)])
    await asyncio.wait_for(outbox.flushed([0]), 5)
    assert producer.taken[-1][2] == [(b"large", b"x" * 62, [("cut_from_bytes", b"1005")])]


async def test_a_key_that_is_too_large_is_left_out() -> None:
    producer = ChokingProducer()
    outbox = Outbox(producer, print)
    outbox.put(0, TOPIC, [(b"k" * 2_000_000, None, [])])
    await asyncio.wait_for(outbox.flushed([0]), 5)
    ((_, _, batch),) = producer.taken
    assert batch == [(None, b"", [("cut_from_bytes", b"2000000")])]


async def test_a_mistake_of_ours_does_not_pass_for_a_delivery() -> None:
    outbox = Outbox(FailingProducer(failures=1, error=TypeError), print)
    outbox.put(0, TOPIC, [record("a")])
    with pytest.raises(TypeError):
        await asyncio.wait_for(outbox.flushed([0]), 5)


async def test_nothing_is_queued_for_no_records() -> None:
    producer = Broker()
    outbox = Outbox(producer, print)
    outbox.put(0, TOPIC, [])
    await outbox.flushed([0])
    assert producer.taken == []
