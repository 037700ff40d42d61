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
from functools import partial
from typing import Any, TypeVar

from faust.types import TP

from models.learner import Learner
from streams.batching import MicroBatcher
from streams.decode import Decoded
from streams.emit import Outbox
from streams.errors import BrokerError, ModelFailed, StaleOffset
from streams.intake import Intake
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

RIPENING_S = 0.05  # how often to ask, while no visit comes, whether held outcomes may go on
READ_AGAIN = "what was computed since is dropped and the partition is read again from the store"
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
        self._intake = Intake(settings)
        self._batcher = MicroBatcher(settings.latency_objective_ms / 1000, MAX_POLL_RECORDS)
        self._waiting: deque[tuple[Any, RecordBatch, float]] = deque()  # event, batch, when it came
        self._records_waiting = 0
        self._outcomes: list[tuple[Any, RecordBatch]] = []  # event, batch: these pass by the visits that wait
        self._something = asyncio.Event()
        self._stopping = False
        self._to_ack: list[tuple[Any, int]] = []  # event, partition
        self._overtaken: list[PartitionState] = []  # moved without this worker; dropped, and to be read again
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
        if batch.tp.topic == self.settings.topics.outcomes:
            self.consumer.hold(batch)
            self._outcomes.append((event, batch))
        else:
            self._waiting.append((event, batch, time.monotonic()))
            self._records_waiting += len(batch.records)
        self._something.set()

    async def run(self) -> None:
        """Turn micro-batches until `stop`. Raises what cannot be waited out."""
        while not self._stopping:
            taken = await self._gather()
            async with self.lock:
                try:
                    if self.consumer.lost:
                        await self._find_place()
                    current = [(event, batch) for event, batch in taken if self._is_mine(batch)]
                    # Before any answer leaves: one about a record that is read again later would come out of order.
                    if (current or self._any_ripe()) and await self._on_their_log():
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
            if self._outcomes or self._any_ripe():
                return self._take(0)
            if now >= self._checkpoint_due:
                return []  # also without partitions: a spare worker keeps its model fresh, to take over at once
            until_due_s = max(0.005, self._checkpoint_due - now)
            ripening_s = RIPENING_S if any(state.ahead.records for state in self.states.values()) else pause_s
            self._something.clear()
            try:
                await asyncio.wait_for(self._something.wait(), min(until_due_s, pause_s, ripening_s))
            except TimeoutError:
                continue
        return []

    def _any_ripe(self) -> bool:
        """Whether outcomes that were held may be taken in, as far as the ends of the topics tell."""
        holding = [state for state in self.states.values() if state.ahead.records]
        for state in holding:
            self._look_at_ends(state)
        return any(self._intake.is_ripe(state) for state in holding)

    def _take(self, most: int) -> list[tuple[Any, RecordBatch]]:
        taken, self._outcomes = self._outcomes, []
        records = 0
        while self._waiting and most and (not records or records + len(self._waiting[0][1].records) <= most):
            event, batch, _ = self._waiting.popleft()
            records += len(batch.records)
            taken.append((event, batch))
        self._records_waiting -= records
        return taken

    # -- decode, meet, score, emit, learn ----------------------------------------------------------------------------

    async def _micro_batch(self, taken: Sequence[tuple[Any, RecordBatch]]) -> None:
        began = time.monotonic()
        now_ms = int(time.time() * 1000)
        intake = await self.in_compute_thread(self._intake.take, taken, self.states, now_ms)
        self._intake.pace(self.states, self.consumer)
        for number in {part.partition for part in intake.decoded}:
            state, parts = self.states[number], [part for part in intake.decoded if part.partition == number]
            await self._read_for(state, self.recall.meet(state, parts), None)
        decoded = [part for part in intake.decoded if part.partition in self.states]
        answers = await self._scored(decoded)
        self._emit(decoded, answers)
        await self._learned(self.steps.learn, decoded, answers, self.states)
        self._read(decoded, now_ms, began)
        await self._settle(list(self.states.values()), all_answers=False)
        self._to_ack += [(event, number) for event, number in intake.done if number in self.states]
        records = sum(len(part.batch.records) for part in decoded)
        self._batcher.served(records, time.monotonic() - began)
        self.visits_done += len(answers.contexts)
        self.progressed_at = time.monotonic()
        await self._reread_overtaken()

    async def _scored(self, decoded: Sequence[Decoded]) -> Answers:
        """Answers to all that can be answered. Raises ModelFailed where the model as the store has it fails too."""
        try:
            answers = await self.in_compute_thread(self.steps.score, decoded, self.states)
        except ModelFailed as error:
            await self._restore_model(f"{error}")
            answers = await self.in_compute_thread(self.steps.score, decoded, self.states)
        if answers.refused:
            self.say(f"{len(answers.refused):,} visits are rejected and the rest goes on: {answers.refused[0]}")
        return answers

    async def _learned(self, step: Callable[..., None], *arguments: object) -> None:
        """Take learning steps; one in which the model fails is taken in halves, by the model as it was before."""
        work = partial(step, *arguments)
        while True:
            try:
                return await self.in_compute_thread(work)
            except ModelFailed as error:
                await self._restore_model(f"{error}")
                if left_out := self.steps.halve(error):
                    self.say(left_out)
                work = partial(self.steps.teach)

    async def _restore_model(self, why: str) -> None:
        """The store's model, with what the owned partitions taught since their last checkpoint: sessions, offsets and
        answers stay as they are, for nothing of them is in the model."""
        self.say(f"{why}; it is rebuilt from the last good snapshot and the lessons since")
        self.model_is_sound = False
        await self.mend_model()

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
            if state.ahead.next_ms is not None:
                state.watermark.observe("outcomes", state.ahead.next_ms, read_at)  # none of those to come is older
            self._unlearned += [arrived for arrived, _ in part.outcomes] or [read.arrived_ms for read in part.visits]

    # -- checkpoint --------------------------------------------------------------------------------------------------

    async def checkpoint(self) -> None:
        """Put all that changed into the store, then acknowledge. Partitions that the store refuses are dropped and reread."""
        if not await self._on_their_log():
            return
        complete = await self._settle(list(self.states.values()), all_answers=True)
        states = list(self.states.values())
        await self._delivered(states)
        moved = [state for state in states if state.moved]
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
                    self._is_overtaken(state)
            self.progressed_at = time.monotonic()
        pause_s = self.settings.checkpoint_interval_ms / 1000 if complete else 0.0
        self._checkpoint_due = time.monotonic() + pause_s
        await self._acknowledge()
        if not await self._reread_overtaken() and self.yielding_since is None:
            await self._share([state for state in states if state not in moved])

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
            self.say(f"{error}; {READ_AGAIN}")
            return False
        return True

    async def _read_for(self, state: PartitionState, reading: Awaitable[Result], otherwise: Result) -> Result:
        """What is read from the store for a partition; `otherwise` where that is overtaken, and hence dropped."""
        try:
            return await reading
        except StaleOffset as error:
            self.say(f"{error}; {READ_AGAIN}")
            self._is_overtaken(state)
            return otherwise

    def _is_overtaken(self, state: PartitionState) -> None:
        """The store is elsewhere than this partition's state: somebody else moved it, or the store lost its last writes."""
        self.drop([state.number])
        self.model_is_sound = False
        self._overtaken.append(state)

    async def _reread_overtaken(self) -> bool:
        """Read partitions again that turned out to be overtaken; whether there were any.

        Answers that have not left are not sent: who moved the partition gave them, or they will be given again.
        """
        overtaken, self._overtaken = self._overtaken, []
        await self.outbox.forget([state.number for state in overtaken])
        if overtaken and self.yielding_since is None:
            await self._reread(overtaken)
        return bool(overtaken)

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
                    if source == "visits":
                        state.visits_end = end[1]
        state.read_through(Offsets(read["visits"], read["outcomes"]))

    async def _settle(self, states: Sequence[PartitionState], all_answers: bool) -> bool:
        """Learn from visits whose answer is known: those whose horizon has just passed, together with those answered since.

        Positive answers alone wait for negative ones to be mixed with, until the checkpoint (`all_answers`) at the latest.
        Where more is due than should be in memory at once, says so by False; the next call goes on with it.
        """
        complete = True
        for state in states:
            self._look_at_ends(state)
            complete &= await self._read_for(state, self.recall.due(state), True)
        states = [state for state in states if state.number in self.states]
        due = [state for state in states if state.horizons_passed() or (all_answers and state.settled)]
        if due:
            await self._learned(self.steps.settle, due)
        if all_answers:
            self._note(self.freshness, self._unlearned)
            self._unlearned.clear()
        return complete

    async def _acknowledge(self) -> None:
        for event, _ in self._to_ack:
            event.message.ack(self.consumer)
        self._to_ack.clear()

    async def _reread(self, states: Sequence[PartitionState]) -> None:
        """These partitions moved without this worker: forget them, mend the model, and start again from the store."""
        topics = self.settings.topics
        tps = {TP(topic, state.number) for state in states for topic in (topics.visits, topics.outcomes)}
        self.consumer.pause_partitions(tps)
        self.consumer.forget(tps)
        await self.reread(tps)

    async def _find_place(self) -> None:
        """The log has not got the next offset: retention was faster, or the broker lost its end. Keep what was done, and
        take the partitions up again, which asks where the log begins and ends, and says what is gone."""
        await self.checkpoint()
        lost = [state for number, state in self.states.items() if number in {tp.partition for tp in self.consumer.lost}]
        self.drop([state.number for state in lost])
        if lost and self.yielding_since is None:
            await self._reread(lost)

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
        self.steps.forget(numbers)
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
        held = any(state.ahead.records for state in self.states.values())
        return bool(self.states) and not (self._waiting or self._outcomes or held)

    def must_give_up(self) -> bool:
        """Whether to stop waiting for the store, because a rebalance has waited for this worker long enough."""
        return self.yielding_since is not None and time.monotonic() - self.yielding_since > 3.0

    # -- one model among many workers --------------------------------------------------------------------------------

    async def _share(self, idle: Sequence[PartitionState] = ()) -> None:
        """Learn what other workers' partitions taught; keep a snapshot now and then. Absent stores are no reason to wait.

        `idle`: partitions of which nothing was to be written, so that no commit has asked whether the store still knows
        the position they are at.
        """
        now = time.monotonic()
        if now < self._follow_due:
            return
        self._follow_due = now + 1.0
        try:
            for state in idle:
                await self._read_for(state, self.store.at(state.number, state.position.mark), None)
            if await self._reread_overtaken():
                return
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
        """Write one where this worker is the one to do it (it owns the lowest partition) and something was learned.

        Every worker looks first whether its model is sound: a weight that is no number would spread with the snapshot.
        """
        self._snapshot_due = time.monotonic() + self.settings.snapshot_interval_ms / 1000
        step = self.replica.learner.step
        if damage := await self.in_compute_thread(self.replica.learner.damage):
            await self._restore_model(f"the model is damaged: {damage}")
        elif min(self.partitions, default=-1) in self.states and step != self._snapshot_step and self.model_is_sound:
            await self.replica.write_snapshot()
            self._snapshot_step = step

    async def mend_model(self) -> None:
        """Build the model again from what is in the store, and what the partitions held here taught since."""
        await until_it_answers(self._rebuild, self.say, self.must_give_up)
        await self.in_compute_thread(self.steps.learn_again, list(self.states.values()))
        self.model_is_sound = True

    async def _rebuild(self) -> None:
        """Takes as long as there are lessons, under the lock; a rebalance that has to wait for that throws the worker out."""
        rebuilding = asyncio.ensure_future(self.replica.rebuild(self.partitions))
        try:
            while not (await asyncio.wait([rebuilding], timeout=0.5))[0]:
                if self.must_give_up():
                    raise BrokerError("the group forms anew before the model is built from the store")
            rebuilding.result()
        finally:
            rebuilding.cancel()

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
