"""A Faust transport whose unit is the record batch: one Faust message is a run of consecutive records of one partition.

Stock Faust hands an agent one record at a time, at 75 to 100 µs each whatever the agent does. Here a message's value is
the list of records that one poll returned for one partition, so that cost is paid once per batch. Everything else stays
Faust's: consumer groups, rebalance, lifecycle. Registered under the entry-point group `faust.transports` as `batches`,
so a broker URL `batches://host:port` selects it.

What this file promises
-----------------------
* A batch holds records of one partition, in offset order. Gaps between offsets (compaction, transaction markers) are
  normal and never hold a commit back.
* The committed offset of a partition never passes a batch that is not acknowledged, in whatever order acknowledgements
  come (`streams.offsets`). Stock Faust's `_new_offset` can; here it is replaced.
* Where to resume is not Kafka's business: `perform_seek` asks `resume`, a callback, which calls `start_from`. Until it
  has, a partition stays paused and nothing of it is read.
* What was polled before a rebalance or a seek is dropped, and what was polled after it never is: rebalances and seeks
  are counted (epochs), and each poll says after which seek it was made. The group's generation would not do: a poll that
  began before a rebalance can return what was fetched after the seek that ended it.
* At most `max_in_flight` records are read and not yet acknowledged; beyond it nothing is fetched but of the held topic,
  below half of it fetching goes on. Heartbeats come from another thread and do not stop.
* Both inputs are co-partitioned: the range assignor gives partition p of each topic to the same member.

What it does not do: decode, retry, or remember anything across a restart.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.client import ConnectionGroup
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from faust.serializers.schemas import Schema
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, ConsumerMessage

from streams.offsets import DeliveredChunks
from streams.producer import Producer

Resume = Callable[[set[TP], int], Awaitable[None]]

# A batch of this many records is large enough to make the cost per batch small (75 µs / 512) and small enough to learn
# from before the next is scored: a replay at full speed would otherwise be scored by a model that lags thousands of visits.
MAX_POLL_RECORDS = 512
ALONGSIDE_S = 0.05  # how long a poll of the held topic alone may take: soon there may be room for the others


@dataclass(frozen=True, slots=True)
class _Polled:
    """What the consumer thread knew at the moment a poll took its records."""

    positions: Mapping[TP, int]  # the next offsets to read, after these records
    sought: Mapping[TP, int]  # the epochs of the last seeks that had been carried out


class _Unpaused:
    """The partitions that may be read now, as a poll asks for them. Never empty as a truth value: while all are paused,
    the driver would take an empty set for "any"."""

    def __init__(self, consumer: "BatchConsumer") -> None:
        self._consumer = consumer

    def __contains__(self, tp: object) -> bool:
        return tp in (self._consumer._active_partitions or ()) and self._consumer.may_fetch(tp)


class _NotKept(dict[TP, int | None]):
    """Stands where Faust keeps the offset of the last message of a partition, below which it drops messages: after a seek
    back those would be the very ones that were asked for. Order within a partition is `DeliveredChunks`' business."""

    def __getitem__(self, tp: TP) -> None:
        return None

    def __setitem__(self, tp: TP, offset: int | None) -> None:
        """Nothing is kept."""


@dataclass(frozen=True, slots=True)
class RecordBatch:
    """Consecutive records of one partition, as one poll returned them, none of them decoded."""

    tp: TP
    records: Sequence[Any]  # aiokafka records: offset, timestamp (ms), key, value, headers
    generation: int  # of the consumer group, when they were fetched
    token: int  # tells this delivery from one of the same offsets before a seek


class BatchSchema(Schema):  # type: ignore[misc]
    """Gives the agent the batch as it was fetched: `event.value` is a RecordBatch."""

    def compile(
        self,
        app: Any,
        *,
        on_key_decode_error: Any = None,
        on_value_decode_error: Any = None,
        default_propagate: bool = False,
    ) -> Callable[..., Awaitable[Any]]:
        """See faust.serializers.schemas.Schema.compile."""
        create_event = app.create_event

        async def decode(message: Any, *, propagate: bool = default_propagate) -> Any:
            return create_event(None, message.value, None, message)

        return decode


class BatchConsumerThread(driver.AIOKafkaConsumerThread):  # type: ignore[misc]
    """The driver's consumer thread, with a co-partitioning assignor and polls that say how far they have read."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._sought: dict[TP, int] = {}
        self._connections: dict[int, Any] = {}  # node → the connection that its last fetch used
        super().__init__(*args, **kwargs)

    def _create_worker_consumer(self, transport: Any) -> AIOKafkaConsumer:
        conf = self.app.conf
        self._assignor = RangePartitionAssignor
        return AIOKafkaConsumer(
            client_id=conf.broker_client_id,
            group_id=conf.id,
            bootstrap_servers=driver.server_list(transport.url, transport.default_port),
            partition_assignment_strategy=[RangePartitionAssignor],
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_poll_records=MAX_POLL_RECORDS,
            # Waiting for the store is not a reason to leave the group; a worker that is stuck ends itself instead.
            max_poll_interval_ms=86_400_000,
            max_partition_fetch_bytes=conf.consumer_max_fetch_size,
            # An empty answer is how the end of a topic is known to be the end still; until one comes, no visit's horizon
            # can be said to have passed. Ten a second cost nothing, and records never wait for it.
            fetch_max_wait_ms=100,
            request_timeout_ms=int(conf.broker_request_timeout * 1000),
            session_timeout_ms=int(conf.broker_session_timeout * 1000),
            rebalance_timeout_ms=int(conf.broker_rebalance_timeout * 1000),
            heartbeat_interval_ms=int(conf.broker_heartbeat_interval * 1000),
            metadata_max_age_ms=conf.consumer_metadata_max_age_ms,
            connections_max_idle_ms=conf.consumer_connections_max_idle_ms,
            **driver.credentials_to_aiokafka_auth(conf.broker_credentials, conf.ssl_context),
        )

    async def on_start(self) -> None:
        """Start the consumer, and note for each fetch when it was asked and where the log ended then."""
        await super().on_start()
        fetcher = self._ensure_consumer()._fetcher
        fetch, update = fetcher._proc_fetch_request, fetcher._client.force_metadata_update

        def noting_doubt() -> Any:
            # A fetch found no such partition there, or another leader: perhaps the topic is being made anew.
            self.consumer.connection_changes += 1
            return update()

        fetcher._client.force_metadata_update = noting_doubt

        async def noting(assignment: Any, node_id: Any, request: Any) -> Any:
            asked_at = time.monotonic()
            tps = [
                TopicPartition(topic, partition) for topic, partitions in request.topics for partition, *_ in partitions
            ]
            before = {tp: state.timestamp for tp in tps if (state := assignment.state_value(tp)) is not None}
            result = await fetch(assignment, node_id, request)
            # Before anybody can see what this fetch brought: whether it came from where the one before it came from.
            self._note_connection(node_id)
            if assignment.active:
                for tp, answered_ms in before.items():
                    state = assignment.state_value(tp)
                    # The driver stamps a partition when an answer brings its end. One that failed, or came too late to
                    # be used, leaves the end of an earlier fetch, of which nothing is known now.
                    if state is not None and state.timestamp != answered_ms:
                        self.consumer.note_end(TP(tp.topic, tp.partition), state.highwater, asked_at)
                    # The offset is not in the log. The driver would go on at the beginning, and say nothing.
                    if state is not None and not state.has_valid_position:
                        self.consumer.note_lost(TP(tp.topic, tp.partition))
            return result

        fetcher._proc_fetch_request = noting

    def _note_connection(self, node_id: int) -> None:
        connection = self._ensure_consumer()._client._conns.get((node_id, ConnectionGroup.DEFAULT))
        if self._connections.get(node_id) is not connection:
            self._connections[node_id] = connection
            self.consumer.connection_changes += 1

    async def _fetch_records(
        self,
        consumer: AIOKafkaConsumer,
        active_partitions: set[TP],
        timeout: float | None = None,  # noqa: ASYNC109 - the driver's signature
        max_records: int | None = None,
    ) -> Mapping[TP, Sequence[Any]]:
        unpaused = _Unpaused(self.consumer)
        records = await super()._fetch_records(consumer, unpaused, timeout=timeout, max_records=max_records)
        # No await stands between the poll and this line, so the positions are exactly those after these records. They
        # are what lets the end of a partition be recognised when its last offsets hold markers and no records.
        self.consumer.note_poll(_Polled(self._positions(consumer), dict(self._sought)))
        return records  # type: ignore[no-any-return]

    def _positions(self, consumer: AIOKafkaConsumer) -> dict[TP, int]:
        assignment = consumer._subscription.subscription and consumer._subscription.subscription.assignment
        if not assignment:
            return {}
        found = {}
        for tp in assignment.tps:
            state = assignment.state_value(tp)
            if state is not None and state.has_valid_position:
                found[TP(tp.topic, tp.partition)] = state.position
        return found

    async def seek_in(self, epoch: int, tp: TP, offset: int) -> None:
        """Carry a seek out, in this thread, and remember that what is polled from now on belongs to `epoch`."""
        self._ensure_consumer().seek(TopicPartition(tp.topic, tp.partition), offset)
        self._sought[tp] = epoch


class BatchConsumer(driver.Consumer):  # type: ignore[misc]
    """Consumer of record batches. `resume` is set by the pipeline before the app starts."""

    consumer_stopped_errors: ClassVar[tuple[type[BaseException], ...]] = driver.Consumer.consumer_stopped_errors
    max_in_flight: int = 20_000  # records; the worker sets it from its settings
    resume: Resume | None = None
    held_topic: str = ""  # fetched also while there is no room; the pipeline, which holds its batches, bounds them
    # Rises whenever fetches come over another connection than before: a broker that was away may be another, or empty, and
    # whoever keeps offsets asks for the identity of the log again before relying on them.
    connection_changes: int = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._chunks: defaultdict[TP, DeliveredChunks] = defaultdict(DeliveredChunks)
        self._unacked_records: dict[tuple[TP, int], int] = {}
        self._in_flight = 0
        self._room = asyncio.Event()
        self._room.set()
        self._polled = _Polled({}, {})
        self._epochs: defaultdict[TP, int] = defaultdict(int)  # counts what made earlier polls void
        self._read: dict[TP, int] = {}
        self._ends: dict[TP, tuple[int, float]] = {}
        self._lost: set[TP] = set()
        super().__init__(*args, **kwargs)
        self._read_offset = _NotKept()

    def _new_consumer_thread(self) -> BatchConsumerThread:
        return BatchConsumerThread(self, loop=self.loop, beacon=self.beacon)

    # -- fetching ----------------------------------------------------------------------------------------------------

    def is_current(self, batch: RecordBatch) -> bool:
        """False for a batch fetched before a rebalance or a seek: it will be, or was, delivered again."""
        return (batch.tp, batch.token) in self._unacked_records

    @property
    def in_flight(self) -> int:
        """Records delivered and not yet acknowledged."""
        return self._in_flight

    def note_poll(self, polled: _Polled) -> None:
        """Called by the consumer thread after a poll, before its records reach `getmany`."""
        self._polled = polled

    def note_end(self, tp: TP, end: int, asked_at: float) -> None:
        """Called by the consumer thread after a fetch: the log ended at `end` at some moment after `asked_at`."""
        self._ends[tp] = end, asked_at

    def note_lost(self, tp: TP) -> None:
        """Called by the consumer thread after a fetch: the log has not got the offset that was to be read next."""
        self._lost.add(tp)

    @property
    def lost(self) -> set[TP]:
        """Partitions whose next offset is not in the log any more, or not yet; until they are sought again. Known before
        anything that was read from elsewhere instead is delivered."""
        return set(self._lost)

    def end_as_of(self, tp: TP) -> tuple[int, float] | None:
        """Where the log ended (offset), and since when that is known to be so (monotonic seconds); None before a fetch.

        Comes with the fetches, so it costs nothing, and a broker that answers ListOffsets wrongly (the embedded one gives
        the start of the last batch) does not matter.
        """
        return self._ends.get(tp)

    def read_position(self, tp: TP) -> int | None:
        """The next offset to fetch, once every record before it was delivered to the agent; None before the first poll."""
        return self._read.get(tp)

    def last_delivered(self, tp: TP) -> int | None:
        """The last offset handed to the agent since the last seek, None where there was none."""
        return self._chunks[tp].last_delivered

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, ConsumerMessage]]:  # noqa: ASYNC109
        """Poll once; yield one message per partition that had records."""
        if not self._room.is_set():
            if any(self.may_fetch(tp) for tp in self._get_active_partitions()):
                timeout = min(timeout, ALONGSIDE_S)
            elif not await self._wait_for_room(timeout):
                return
        records, _ = await self._wait_next_records(timeout)
        if records is None or self.should_stop or not self.flow_active:
            return  # what was fetched is fetched again after the seek that ends the rebalance
        polled = self._polled
        for tp, batch in records.items():
            if not self.flow_active:
                return
            if batch and self._counts(polled, tp):
                yield TP(tp.topic, tp.partition), self._deliver(TP(tp.topic, tp.partition), batch)
        self._read.update({tp: position for tp, position in polled.positions.items() if self._counts(polled, tp)})

    def may_fetch(self, tp: Any) -> bool:
        """Whether there is room for records of a partition: those of the held topic have room of their own."""
        return self._room.is_set() or tp.topic == self.held_topic

    def _counts(self, polled: _Polled, tp: TP) -> bool:
        """Whether the poll was made after the last seek of this partition, and nothing made it void since."""
        return polled.sought.get(tp) == self._epochs[tp]

    def _deliver(self, tp: TP, records: Sequence[Any]) -> ConsumerMessage:
        generation = self.app.consumer_generation_id
        first, last = records[0], records[-1]
        token = self._chunks[tp].deliver(first.offset, last.offset)
        batch = RecordBatch(tp, records, generation, token)
        self._unacked_records[tp, token] = len(records)
        self._in_flight += len(records)
        if self._in_flight >= self.max_in_flight:
            self._room.clear()
        self.app.monitor.track_tp_end_offset(tp, self.highwater(tp))
        return ConsumerMessage(
            tp.topic, tp.partition, last.offset, last.timestamp / 1000, last.timestamp_type,
            None, None, batch, None, 0, 0, tp, generation_id=generation,
        )  # fmt: skip

    async def _wait_for_room(self, limit_s: float) -> bool:
        if self._room.is_set():
            return True
        try:
            await asyncio.wait_for(self._room.wait(), limit_s)
        except TimeoutError:
            return False
        return True

    async def _wait_next_records(self, timeout: float) -> tuple[Any, Any]:  # noqa: ASYNC109
        # Stock code sleeps a whole second when no partition is active, which is what every partition is while the store
        # is asked where to resume. A tenth keeps the first score early and costs nothing.
        if self.flow_active and not self._get_active_partitions():
            await self.sleep(min(timeout, 0.1))
            return {}, None
        return await super()._wait_next_records(timeout)  # type: ignore[no-any-return]

    # -- acknowledge and commit --------------------------------------------------------------------------------------

    def ack(self, message: ConsumerMessage) -> bool:
        """Mark a batch as done. A batch of an older generation, or from before a seek, counts for nothing."""
        acked: bool = super().ack(message)
        batch: RecordBatch = message.value
        records = self._unacked_records.pop((batch.tp, batch.token), None)
        if records is not None:
            self._chunks[batch.tp].ack(batch.token)
            self._release(records)
        return acked

    def hold(self, batch: RecordBatch) -> None:
        """Count a batch as in flight no longer, though it is not acknowledged: it waits for records still to be fetched."""
        key = batch.tp, batch.token
        if self._unacked_records.get(key):
            self._release(self._unacked_records[key])
            self._unacked_records[key] = 0

    def _release(self, records: int) -> None:
        self._in_flight -= records
        if self._in_flight <= self.max_in_flight // 2:
            self._room.set()

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        return  # batches know the offsets they end at: a gap is nothing to wait for

    def _new_offset(self, tp: TP) -> int | None:
        """The offset to commit: just after the longest run of acknowledged batches, or None when it has not moved."""
        self._acked[tp].clear()
        self._acked_index[tp].clear()
        return self._chunks[tp].committable()

    # -- rebalance and seek ------------------------------------------------------------------------------------------

    def forget(self, tps: Iterable[TP]) -> None:
        """Drop what is known of these partitions' batches; acknowledgements of them will count for nothing.

        Nothing of them is delivered until `start_from`.
        """
        for tp in tps:
            self._epochs[tp] += 1
            self._chunks[tp].forget()
            self._read.pop(tp, None)
            self._ends.pop(tp, None)
            self._lost.discard(tp)
            self._acked.pop(tp, None)
            self._acked_index.pop(tp, None)
            self._committed_offset.pop(tp, None)
            for key in [key for key in self._unacked_records if key[0] == tp]:
                self._release(self._unacked_records.pop(key))

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Lets the pipeline finish (Faust's signal), then forgets."""
        try:
            await super().on_partitions_revoked(revoked)
        finally:
            self.forget(revoked)

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        """Starts from nothing: every offset of the former assignment is void."""
        self.forget(set(self._chunks) | set(assigned))
        await super().on_partitions_assigned(assigned, generation_id)

    async def perform_seek(self) -> None:
        """After a rebalance: nothing flows until `resume` has said from where."""
        assert self.resume is not None, "resume is set before the app starts"
        assigned = self.assignment()
        self.forget(assigned)
        self.pause_partitions(assigned)
        await self.resume(assigned, self.app.consumer_generation_id)

    async def start_from(self, offsets: Mapping[TP, int]) -> None:
        """Seek these partitions and let them flow. Called by the pipeline once it knows their state."""
        for tp, offset in offsets.items():
            self.forget([tp])
            await self._thread.call_thread(self._thread.seek_in, self._epochs[tp], tp, offset)
            self._read[tp] = offset
        self.resume_partitions(offsets)

    async def begin_offsets(self, tps: Iterable[TP]) -> dict[TP, int]:
        """First offsets that these partitions still hold, asked of the broker now. Raises KafkaError."""
        wanted = [TopicPartition(tp.topic, tp.partition) for tp in tps]
        found = await self._thread.call_thread(self._thread._ensure_consumer().beginning_offsets, wanted)
        return {TP(tp.topic, tp.partition): offset for tp, offset in found.items()}

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Faust's own detectors judge single records; the pipeline's watchdog judges progress instead."""


class Transport(driver.Transport):  # type: ignore[misc]
    """`batches://host:port`: the aiokafka driver with record batches as messages."""

    Consumer: ClassVar[type[BatchConsumer]] = BatchConsumer
    Producer: ClassVar[type[Producer]] = Producer
    driver_version = f"batches over {driver.Transport.driver_version}"
