"""Emit: what was scored and what was rejected goes out as whole record batches, in order, delivery awaited.

Promises: the records of a partition are produced in the order they were put here, one batch at a time, so that a retry
cannot overtake; `flushed` returns only when everything put before has been acknowledged by the broker. A broker that is
away is waited for, which is said once, and the same records are sent again: an answer whose acknowledgement was lost is
there twice, with the same `source`. Nothing is kept across a restart: unacknowledged answers are scored again.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from aiokafka.errors import KafkaError, MessageSizeTooLargeError

from streams.patience import waits

Record = tuple[bytes | None, bytes | None, list[tuple[str, bytes]]]  # key, value, headers

# What remains of a rejected value that is too large for the broker together with its headers.
CUT_BYTES = 900_000
CUT_HEADER = "cut_from_bytes"
RETRY_FIRST_S, RETRY_MOST_S = 0.1, 2.0


class BatchProducer(Protocol):
    """The part of `streams.transport.Producer` that is used here."""

    def pack(self, records: Iterable[Record]) -> list[Any]:
        """Record batches, closed and ready to send."""

    async def send(self, batch: Any, topic: str, partition: int) -> None:
        """Send one and wait for its acknowledgement."""


class Outbox:
    """Queues of outgoing records, one a partition, each drained in order by a task of its own."""

    def __init__(self, producer: BatchProducer, say: Callable[[str], None]) -> None:
        self._producer = producer
        self._say = say
        self._queues: dict[int, deque[tuple[str, list[Record], Callable[[], None] | None]]] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}

    def put(
        self, partition: int, topic: str, records: list[Record], delivered: Callable[[], None] | None = None
    ) -> None:
        """Queue records for a partition of a topic; `delivered` is called once all of them are acknowledged."""
        if not records:
            return
        self._queues.setdefault(partition, deque()).append((topic, records, delivered))
        task = self._tasks.get(partition)
        if task is None or task.done():
            self._tasks[partition] = asyncio.create_task(self._drain(partition), name=f"outbox-{partition}")

    async def flushed(self, partitions: Iterable[int]) -> None:
        """Wait until all that was put for these partitions is acknowledged."""
        tasks = [self._tasks[partition] for partition in partitions if partition in self._tasks]
        if tasks:
            await asyncio.wait(tasks)
            for task in tasks:
                if not task.cancelled():
                    task.result()  # a mistake of ours must not pass for a delivery

    async def forget(self, partitions: Iterable[int]) -> None:
        """Drop what is still queued for partitions that are somebody else's now."""
        for partition in partitions:
            self._queues.pop(partition, None)
            task = self._tasks.pop(partition, None)
            if task is not None:
                task.cancel()
                await asyncio.wait([task])

    async def _drain(self, partition: int) -> None:
        queue = self._queues[partition]
        while queue:
            topic, records, delivered = queue[0]
            await self._send(topic, partition, records)
            queue.popleft()
            if delivered is not None:
                delivered()

    async def _send(self, topic: str, partition: int, records: list[Record]) -> None:
        try:
            for batch in self._producer.pack(records):
                await self._deliver(batch, topic, partition)
        except MessageSizeTooLargeError:
            # What the broker takes is its own setting. Halves until it fits, then that one record is cut. Of what was
            # sent before the one that did not fit, some is sent again, in order: as after a crash.
            if len(records) > 1:
                half = len(records) // 2
                await self._send(topic, partition, records[:half])
                await self._send(topic, partition, records[half:])
                return
            cut = _cut(records[0])
            self._say(f"{topic}[{partition}]: a record is larger than the broker takes; what goes out is cut")
            await self._send(topic, partition, [cut])

    async def _deliver(self, batch: Any, topic: str, partition: int) -> None:
        pause_s, waiting = RETRY_FIRST_S, object()
        try:
            while True:
                try:
                    await self._producer.send(batch, topic, partition)
                except MessageSizeTooLargeError:
                    raise
                except KafkaError as error:
                    if waiting not in waits:
                        self._say(f"{topic}[{partition}] does not take records ({error!r}); trying again until it does")
                    waits.add(waiting)
                    await asyncio.sleep(pause_s)
                    pause_s = min(pause_s * 2, RETRY_MOST_S)
                    continue
                if waiting in waits:
                    self._say(f"{topic}[{partition}] takes records again")
                return
        finally:
            waits.discard(waiting)


def _cut(record: Record) -> Record:
    """Half of its value, or what is below the usual bound; a key that is large itself is left out. Raises
    MessageSizeTooLargeError where nothing is left to cut."""
    key, value, headers = record
    if not value and key is None:
        raise MessageSizeTooLargeError("the broker takes not even a record without key and value")
    if not any(name == CUT_HEADER for name, _ in headers):
        headers = [*headers, (CUT_HEADER, str(len(key or b"") + len(value or b"")).encode())]
    kept_key = key if value and len(key or b"") < CUT_BYTES // 10 else None
    return kept_key, (value or b"")[: min(CUT_BYTES, len(value or b"") // 2)], headers
