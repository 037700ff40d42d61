"""The flow: from record batches to scores, lessons and checkpoints. Read it downwards, as a visit passes through.

    put        the agent hands over a record batch                                   (streams.transport fetched it)
    gather     batches of all owned partitions wait until a micro-batch is worth it  (streams.batching)
    decode     records become visits and outcomes, or rejections                     (streams.decode)
    meet       visitors not in memory are read from the store                        (streams.recall)
    score      sessions, one forward pass, answers                                   (streams.scoring, models)
    emit       answers and rejections leave as record batches                        (streams.emit)
    learn      outcomes join visits; what is settled and what was visited teaches    (streams.outcomes, models)
    checkpoint outputs acknowledged, then state and offsets in one transaction, then the batches are acknowledged

Decode, score and learn run in one compute thread; the event loop only moves bytes, so the group's heartbeats and the
broker's acknowledgements go on while a model computes. One micro-batch is in that thread at a time, and a lock keeps
assignment and revocation between micro-batches: state is never changed from two sides.

Which partitions are owned, and where they start, is `streams.ownership`.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from faust.types import TP

from models.learner import Learner
from streams.batching import MicroBatcher
from streams.decode import Decoded, RecordDecoder
from streams.emit import Outbox
from streams.errors import BrokerError, StaleOffset
from streams.latency import RecentDurations
from streams.partition import Offsets, PartitionState
from streams.patience import AWAY, until_it_answers
from streams.producer import Producer
from streams.recall import Recall
from streams.replica import MissingLessons, Replica
from streams.scoring import Answers, Steps
from streams.settings import Settings
from streams.store import Checkpoint, LogIdentity, Store
from streams.transport import MAX_POLL_RECORDS, BatchConsumer, RecordBatch
from streams.watermark import Input

Result = TypeVar("Result")

ENDS_STALE_S = 5.0  # fetches answer ten times a second; a consumer that has none for this long is stuck, not idle


class Pipeline:
    """The steps of one worker and the state between them."""

    def __init__(
        self, settings: Settings, store: Store, learner: Learner, say: Callable[[str], None], learns: bool = True
    ) -> None:
        self.settings = settings
        self.learns = learns  # False: what its own partitions teach is learned from their streams, as that of others is
        self.store = store
        self.say = say
        self.states: dict[int, PartitionState] = {}
        self.lock = asyncio.Lock()
        self.compute = ThreadPoolExecutor(1, thread_name_prefix="compute")
        self.replica = Replica(store, learner, self.compute, say)
        self.steps = Steps(settings, learner, learns)
        self.recall = Recall(settings, store, say, self.must_give_up)
        self.partitions: Sequence[int] = ()  # all of the topic's, owned or not
        self.model_is_sound = False  # False when the model holds lessons that the store does not
        self.yielding_since: float | None = None  # when a rebalance began to wait for this worker
        self.latency, self.freshness = RecentDurations(), RecentDurations()
        self.identified_at = -1  # the transport's count of connections when the log was last identified
        self.progressed_at = time.monotonic()
        self.visits_done = 0
        # Set by streams.ownership, which knows logs and partitions; the flow only asks.
        self.identify: Callable[[], Awaitable[LogIdentity]]  # which log the input topics are; raises BrokerError
        self.reread: Callable[[set[TP]], Awaitable[None]]  # bring these partitions back from the store
        self._decoder = RecordDecoder(settings)
        self._batcher = MicroBatcher(settings.latency_objective_ms / 1000, MAX_POLL_RECORDS)
        self._waiting: deque[tuple[Any, RecordBatch, float]] = deque()  # event, batch, when it came
        self._records_waiting = 0
        self._something = asyncio.Event()
        self._stopping = False
        self._to_ack: list[tuple[Any, int]] = []  # event, partition
        self._processed: dict[TP, int] = {}
        self._checkpoint_due = 0.0
        self._snapshot_due = time.monotonic() + settings.snapshot_interval_ms / 1000
        self._snapshot_step = 0
        self._follow_due = 0.0
        self._unlearned: list[int] = []  # when the records came whose answers wait for the next learning step

    def attach(self, consumer: BatchConsumer, producer: Producer) -> None:
        """The transport's two ends, once the app has started them."""
        self.consumer = consumer
        self.outbox = Outbox(producer, self.say)

    async def in_compute_thread(self, work: Callable[..., Result], *arguments: object) -> Result:
        """Run pure computation off the event loop, after whatever is already being computed."""
        return await asyncio.get_running_loop().run_in_executor(self.compute, work, *arguments)

    # -- put and gather ----------------------------------------------------------------------------------------------

    def put(self, event: Any) -> None:
        """Take a record batch from the agent. What is in flight is bounded by the transport, not here."""
        batch: RecordBatch = event.value
        self._waiting.append((event, batch, time.monotonic()))
        self._records_waiting += len(batch.records)
        self._something.set()

    async def run(self) -> None:
        """Turn micro-batches until `stop`. Raises what cannot be waited out."""
        while not self._stopping:
            taken = await self._gather()
            async with self.lock:
                try:
                    current = [(event, batch) for event, batch in taken if self._is_mine(batch)]
                    # Before any answer leaves: one about a record that is read again later would come out of order.
                    if current and await self._on_their_log():
                        await self._micro_batch(current)
                    if time.monotonic() >= self._checkpoint_due:
                        await self.checkpoint()
                except AWAY as error:
                    if self.yielding_since is None:
                        raise
                    # Perhaps half-way, so nothing of it may be kept: whoever gets the partitions starts from the store.
                    self.say(
                        f"{error}; given up, for others wait: records since the last checkpoint will be read again"
                    )
                    self.drop(list(self.states))
                    self.model_is_sound = False

    def _is_mine(self, batch: RecordBatch) -> bool:
        return batch.tp.partition in self.states and self.consumer.is_current(batch)

    async def _gather(self) -> list[tuple[Any, RecordBatch]]:
        while not self._stopping:
            now = time.monotonic()
            oldest = self._waiting[0][2] if self._waiting else None
            pause_s = self._batcher.wait_s(self._records_waiting, oldest, now)
            if self._waiting and pause_s <= 0:
                return self._take(self._batcher.take(self._records_waiting))
            if now >= self._checkpoint_due:
                return []  # also without partitions: a spare worker keeps its model fresh, to take over at once
            until_due_s = max(0.005, self._checkpoint_due - now)
            self._something.clear()
            try:
                await asyncio.wait_for(self._something.wait(), min(until_due_s, pause_s))
            except TimeoutError:
                continue
        return []

    def _take(self, most: int) -> list[tuple[Any, RecordBatch]]:
        taken: list[tuple[Any, RecordBatch]] = []
        records = 0
        while self._waiting and (not taken or records + len(self._waiting[0][1].records) <= most):
            event, batch, _ = self._waiting.popleft()
            records += len(batch.records)
            taken.append((event, batch))
        self._records_waiting -= records
        return taken

    # -- decode, meet, score, emit, learn ----------------------------------------------------------------------------

    async def _micro_batch(self, taken: Sequence[tuple[Any, RecordBatch]]) -> None:
        began = time.monotonic()
        batches = [batch for _, batch in taken]
        now_ms = int(time.time() * 1000)
        decoded = await self.in_compute_thread(lambda: [self._decoder.decode(batch, now_ms) for batch in batches])
        for number in {part.partition for part in decoded}:
            await self.recall.meet(self.states[number], [part for part in decoded if part.partition == number])
        answers = await self.in_compute_thread(self.steps.score, decoded, self.states)
        self._emit(decoded, answers)
        await self.in_compute_thread(self.steps.learn, decoded, answers, self.states)
        self._read(decoded, now_ms, began)
        await self._settle(list(self.states.values()), all_answers=False)
        for event, batch in taken:
            self._to_ack.append((event, batch.tp.partition))
        records = sum(len(batch.records) for batch in batches)
        self._batcher.served(records, time.monotonic() - began)
        self.visits_done += len(answers.prepared)
        self.progressed_at = time.monotonic()

    def _emit(self, decoded: Sequence[Decoded], answers: Answers) -> None:
        arrivals: dict[int, list[int]] = {}
        for part in decoded:
            arrivals.setdefault(part.partition, []).extend(read.arrived_ms for read in part.visits)
            self.outbox.put(part.partition, self.settings.topics.rejected, part.rejected)
        for number, records in answers.records.items():

            def delivered(arrived: list[int] = arrivals[number]) -> None:
                self._note(self.latency, arrived)

            self.outbox.put(number, self.settings.topics.scored, records, delivered)

    def _note(self, durations: RecentDurations, arrived_ms: Sequence[int]) -> None:
        now_ms = time.time() * 1000
        # A record's timestamp may be the event's own, of years ago: that is no latency of ours.
        durations.add((now_ms - at for at in arrived_ms if now_ms - at < 3_600_000), time.monotonic())

    def _read(self, decoded: Sequence[Decoded], now_ms: int, read_at: float) -> None:
        visits_topic = self.settings.topics.visits
        for part in decoded:
            state, tp = self.states[part.partition], part.batch.tp
            self._processed[tp] = part.batch.records[-1].offset
            if tp.topic == visits_topic:
                state.read_through(Offsets(part.next_offset, state.outcomes))
                times = [read.visit.timestamp_ms for read in part.visits]
                source: Input = "visits"
            else:
                state.read_through(Offsets(state.visits, part.next_offset))
                times = [outcome.timestamp_ms for _, outcome in part.outcomes]
                source = "outcomes"
            if times:
                # A visit may claim to be from the future; it must not drag the watermark there for everybody else.
                state.watermark.observe(source, min(max(times), now_ms), read_at)
            self._unlearned += [arrived for arrived, _ in part.outcomes] or [read.arrived_ms for read in part.visits]

    # -- checkpoint --------------------------------------------------------------------------------------------------

    async def checkpoint(self) -> None:
        """Put all that changed into the store, then acknowledge. Partitions that the store refuses are dropped and reread."""
        if not await self._on_their_log():
            return
        states = list(self.states.values())
        complete = await self._settle(states, all_answers=True)
        await self._delivered(states)
        moved = [state for state in states if state.moved]
        refused: list[PartitionState] = []
        if moved:
            written = await self.in_compute_thread(self._written, moved)
            # The first alone: where the store is away, one partition waits and says so, not each of them.
            first = await self._commit(written[0])
            verdicts = [first, *await asyncio.gather(*(self._commit(part) for part in written[1:]))]
            for state, part, stored in zip(moved, written, verdicts, strict=True):
                if stored:
                    state.committed(part)
                    if part.lesson and self.learns:
                        self.replica.wrote(state.number, part.position.step)
                else:
                    refused.append(state)
            self.progressed_at = time.monotonic()
        pause_s = self.settings.checkpoint_interval_ms / 1000 if complete else 0.0
        self._checkpoint_due = time.monotonic() + pause_s
        await self._acknowledge({state.number for state in refused})
        if refused:
            self.drop([state.number for state in refused])
            self.model_is_sound = False
        if self.yielding_since is None:
            await (self._reread(refused) if refused else self._share())

    def _written(self, moved: Sequence[PartitionState]) -> list[Checkpoint]:
        learner = self.replica.learner
        insight = learner.insight().encode()
        return [state.checkpoint(learner.step, learner.urls, insight) for state in moved]

    async def _delivered(self, states: Sequence[PartitionState]) -> None:
        flushed = asyncio.ensure_future(self.outbox.flushed([state.number for state in states]))
        while not (await asyncio.wait([flushed], timeout=0.5))[0]:
            if self.must_give_up():
                flushed.cancel()
                raise BrokerError("Kafka does not acknowledge the answers")
        flushed.result()

    async def _commit(self, part: Checkpoint) -> bool:
        try:
            await until_it_answers(lambda: self.store.commit(part), self.say, self.must_give_up)
        except StaleOffset as error:
            self.say(f"{error}; what was computed since is dropped and the partition is read again from the store")
            return False
        return True

    def _look_at_ends(self, state: PartitionState) -> None:
        """Tell the watermark which topics have been read to their end, and step over trailing markers."""
        topics = self.settings.topics
        inputs: tuple[tuple[Input, str, int], ...] = (
            ("visits", topics.visits, state.visits),
            ("outcomes", topics.outcomes, state.outcomes),
        )
        read: dict[str, int] = {}
        for source, topic, offset in inputs:
            tp = TP(topic, state.number)
            read[source] = offset
            position, end = self.consumer.read_position(tp), self.consumer.end_as_of(tp)
            all_processed = self.consumer.last_delivered(tp) in {None, self._processed.get(tp)}
            if position is not None and all_processed:
                read[source] = max(offset, position)
                if end is not None and position >= end[0]:
                    state.watermark.at_end(source, end[1])
        state.read_through(Offsets(read["visits"], read["outcomes"]))

    async def _settle(self, states: Sequence[PartitionState], all_answers: bool) -> bool:
        """Learn from visits whose answer is known: those whose horizon has just passed, together with those answered since.

        Positive answers alone wait for negative ones to be mixed with, until the checkpoint (`all_answers`) at the latest.
        Where more is due than should be in memory at once, says so by False; the next call goes on with it.
        """
        complete = True
        for state in states:
            self._look_at_ends(state)
            complete &= await self.recall.due(state)
        due = [state for state in states if state.horizons_passed() or (all_answers and state.settled)]
        if due:
            await self.in_compute_thread(self.steps.settle, due)
        if all_answers:
            self._note(self.freshness, self._unlearned)
            self._unlearned.clear()
        return complete

    async def _acknowledge(self, refused: set[int]) -> None:
        for event, number in self._to_ack:
            if number not in refused:
                event.message.ack(self.consumer)
        self._to_ack.clear()

    async def _reread(self, refused: Sequence[PartitionState]) -> None:
        """These partitions moved without this worker: forget them, mend the model, and start again from the store."""
        topics = self.settings.topics
        tps = {TP(topic, state.number) for state in refused for topic in (topics.visits, topics.outcomes)}
        self.consumer.pause_partitions(tps)
        self.consumer.forget(tps)
        await self.reread(tps)

    async def _on_their_log(self) -> bool:
        """Whether what was fetched came from the log that the offsets belong to; asked after each new connection.

        A broker that comes back empty, and fills again past the offset that was reached before, would otherwise go
        unnoticed until the group forms anew, and its records would be counted under the old log and then once more.
        Where it did not, all partitions are dropped, and read again from the store's idea of that other log.
        """
        changes, states = self.consumer.connection_changes, list(self.states.values())
        if changes == self.identified_at or not states:
            return True
        log = await until_it_answers(self.identify, self.say, self.must_give_up)
        if all(state.position.log == log for state in states):
            self.identified_at = changes
            return True
        self.say("the broker came back with another log; what was read of it since is dropped and read again")
        self.drop([state.number for state in states])
        self.model_is_sound = False
        if self.yielding_since is None:
            await self._reread(states)
        return False

    def drop(self, numbers: Sequence[int]) -> None:
        """Forget the state of partitions in memory, and what of them waits to be acknowledged."""
        topics = self.settings.topics
        self._to_ack = [(event, number) for event, number in self._to_ack if number not in numbers]
        for number in numbers:
            self.states.pop(number, None)
            for topic in (topics.visits, topics.outcomes):
                self._processed.pop(TP(topic, number), None)

    def caught_up(self) -> bool:
        """Whether everything that is known to be in the owned partitions has been processed, as of the last seconds."""
        topics, now = self.settings.topics, time.monotonic()
        for number in self.states:
            for tp in (TP(topics.visits, number), TP(topics.outcomes, number)):
                end, position = self.consumer.end_as_of(tp), self.consumer.read_position(tp)
                if end is None or position is None or position < end[0] or now - end[1] > ENDS_STALE_S:
                    return False
        return bool(self.states) and not self._waiting

    def must_give_up(self) -> bool:
        """Whether to stop waiting for the store, because a rebalance has waited for this worker long enough."""
        return self.yielding_since is not None and time.monotonic() - self.yielding_since > 3.0

    # -- one model among many workers --------------------------------------------------------------------------------

    async def _share(self) -> None:
        """Learn what other workers' partitions taught; keep a snapshot now and then. Absent stores are no reason to wait."""
        now = time.monotonic()
        if now < self._follow_due:
            return
        self._follow_due = now + 1.0
        try:
            if not self.states and not self.model_is_sound:
                await self.mend_model()
            # Also where no partition is another's: imported vectors come this way.
            await self.replica.follow(self.followed())
            if now >= self._snapshot_due:
                await self.snapshot()
        except MissingLessons:
            await self.mend_model()
        except AWAY as error:
            self.say(f"{error}; the model is shared again when it answers")

    def followed(self) -> list[int]:
        """Partitions whose lessons come from their streams: all that this worker does not learn as it reads."""
        return [number for number in self.partitions if number not in self.states or not self.learns]

    async def snapshot(self) -> None:
        """Write one where this worker is the one to do it (it owns the lowest partition) and something was learned."""
        self._snapshot_due = time.monotonic() + self.settings.snapshot_interval_ms / 1000
        step = self.replica.learner.step
        if min(self.partitions, default=-1) in self.states and step != self._snapshot_step and self.model_is_sound:
            await self.replica.write_snapshot()
            self._snapshot_step = step

    async def mend_model(self) -> None:
        """Build the model again from what is in the store."""
        await until_it_answers(lambda: self.replica.rebuild(self.partitions), self.say, self.must_give_up)
        self.model_is_sound = True

    # -- the end -----------------------------------------------------------------------------------------------------

    async def stop(self) -> None:
        """Finish the micro-batch in hand, checkpoint and acknowledge; nothing is taken in after this."""
        self._stopping = True
        # Before the lock: whoever holds it may be waiting for a store that is away, and now has three seconds left.
        self.yielding_since = self.yielding_since or time.monotonic()
        self._something.set()
        async with self.lock:
            try:
                await asyncio.wait_for(self.checkpoint(), 6)
                await asyncio.wait_for(self.snapshot(), 3)
            except AWAY as error:
                self.say(f"stopped without a last checkpoint ({error}); records since the one before are read again")
        with suppress(*AWAY):  # Kafka's own commits only serve whoever watches the lag there
            await asyncio.wait_for(self.consumer.commit(), 2)
