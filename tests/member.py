"""A consumer of the transport and nothing else: a Faust app whose agent keeps every batch and acknowledges none.

In a test: `async with Member(kafka, topics, group) as member`. As a second member of the group, in a process of its own
(Faust is at home once a process): `python -m tests.member KAFKA GROUP VISITS OUTCOMES`; it prints its assignment, one
JSON line per rebalance, and leaves the group in order when its standard input ends.
"""

import asyncio
import json
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Self

import faust
from faust.types import TP
from yarl import URL

from streams.producer import Producer
from streams.transport import BatchConsumer, BatchSchema, RecordBatch

SESSION_TIMEOUT_S = 6.0  # the least a real Kafka allows; the embedded broker holds a joining member for half of it


class Member:
    """One member of a group. `start_at` says where a partition begins when it is assigned; without it, at 0."""

    def __init__(
        self, kafka: str, topics: tuple[str, str], group: str, start_at: Mapping[TP, int] | None = None
    ) -> None:
        self.kafka = kafka
        self.topics = topics
        self.group = group
        self.start_at = dict(start_at or {})
        self.events: list[Any] = []
        self.assignments: list[tuple[int, set[TP]]] = []  # generation, partitions
        self._starting: asyncio.Task[None] | None = None
        self.before_start: Callable[[set[TP]], Awaitable[None]] | None = None

    async def __aenter__(self) -> Self:
        app = self.app = faust.App(
            self.group,
            broker=[URL(f"batches://{self.kafka}")],
            store="memory://",
            datadir=tempfile.mkdtemp(prefix="url2vec-test-"),
            version=1,
            autodiscover=False,
            broker_session_timeout=SESSION_TIMEOUT_S,
            broker_heartbeat_interval=0.5,
            broker_rebalance_timeout=30.0,
            broker_commit_interval=3600.0,  # the tests commit when they mean to
            consumer_max_fetch_size=1024 * 1024,
            producer_max_batch_size=Producer.MAX_BATCH_BYTES,
            stream_buffer_maxsize=100_000,
            stream_wait_empty=False,
            topic_allow_declare=False,
            topic_disable_leader=True,
            web_enabled=False,
        )
        inputs = app.topic(*self.topics, schema=BatchSchema(), key_type=None, value_type=None)

        @app.agent(inputs, name="keep")  # type: ignore[untyped-decorator]
        async def keep(stream: Any) -> None:
            async for event in stream.noack().events():
                self.events.append(event)

        self.consumer: BatchConsumer = app.consumer
        self.consumer.resume = self._resume
        await app.start()
        return self

    async def _resume(self, tps: set[TP], generation: int) -> None:
        # Like the pipeline: return at once, start the partitions later. A newer assignment supersedes an older one.
        if self._starting is not None:
            self._starting.cancel()
        self._starting = asyncio.create_task(self._start(tps, generation))

    async def _start(self, tps: set[TP], generation: int) -> None:
        if self.before_start is not None:
            await self.before_start(tps)
        await self.consumer.start_from({tp: self.start_at.get(tp, 0) for tp in tps})
        self.assignments.append((generation, set(tps)))

    async def __aexit__(self, *_: object) -> None:
        await asyncio.wait_for(self.app.stop(), 20)

    def batches(self, *tps: TP) -> list[RecordBatch]:
        """Batches delivered so far of these partitions (of all without), in the order of delivery."""
        return [event.value for event in list(self.events) if not tps or event.value.tp in tps]

    def offsets(self, tp: TP) -> list[int]:
        """Offsets delivered of a partition, in the order of delivery."""
        return [record.offset for batch in self.batches(tp) for record in batch.records]

    def ack(self, *batches: RecordBatch) -> None:
        """Acknowledge as the pipeline does."""
        for event in list(self.events):
            if any(event.value is batch for batch in batches):
                event.message.ack(self.consumer)

    def ack_all(self) -> None:
        """Acknowledge everything delivered so far."""
        for event in list(self.events):
            event.message.ack(self.consumer)


async def _main(kafka: str, group: str, visits: str, outcomes: str) -> None:
    member = Member(kafka, (visits, outcomes), group)

    async def announce(tps: set[TP]) -> None:
        sys.stdout.write(json.dumps(sorted(tps)) + "\n")
        sys.stdout.flush()

    member.before_start = announce
    async with member:
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
