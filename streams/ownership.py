"""Which partitions a worker owns, and where it takes them up: assignment, revocation, and logs that are not what they were.

On assignment a partition stays paused until its position, what is soon due and the model have come from the store;
then the consumer seeks to the store's offsets, whatever Kafka's own commits say. On revocation the micro-batch in hand is
finished and checkpointed; if the store does not answer in time, the state is dropped instead, and the new owner reads
those records again. An offset means nothing without its log: when cluster or topic are not the ones it was written for,
what was learned stays, positions and sessions start anew, and it is said.
"""

import asyncio
import secrets
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import msgspec
from aiokafka.errors import IllegalStateError
from faust.types import TP

from streams import topics as broker
from streams.errors import BrokerError, ConfigError
from streams.partition import PartitionState, Summary
from streams.patience import AWAY, until_it_answers
from streams.pipeline import Pipeline
from streams.replica import MissingLessons
from streams.store import LogIdentity, Position

STEPS_APART = 1_000_000_000  # a second of the clock, in ns


class Ownership:
    """Hands partitions to a pipeline and takes them away again."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._settings = pipeline.settings
        self._taking_up: asyncio.Task[None] | None = None
        self._asked: set[TP] = set()  # what the task is to take up
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ready = asyncio.Event()
        pipeline.reread = self._reread
        pipeline.identify = self._identify_again

    async def identify(self) -> LogIdentity:
        """The log that the two input topics are. Raises BrokerError, ConfigError when topics are missing or uneven."""
        names, kafka = self._settings.topics, self._settings.kafka
        facts = await asyncio.to_thread(broker.describe, kafka, names.all)
        missing = [name for name in names.all if name not in facts]
        if missing:
            raise ConfigError(f"no topic {', '.join(missing)} on {kafka}: create them with `url2vec topics --create`")
        widths = {name: facts[name].partitions for name in names.all}
        if len(set(widths.values())) > 1:
            listed = ", ".join(f"{name} has {width}" for name, width in widths.items())
            raise ConfigError(f"the topics must have one partition count, but {listed}")
        self._pipeline.partitions = range(widths[names.visits])
        cluster = await asyncio.to_thread(broker.cluster_id, kafka)
        return LogIdentity(cluster, facts[names.visits].topic_id, facts[names.outcomes].topic_id)

    async def _identify_again(self) -> LogIdentity:
        """As `identify`, of a pipeline that worked before: topics that are missing now are waited for."""
        try:
            return await self.identify()
        except ConfigError as error:
            raise BrokerError(str(error)) from error

    # -- assignment --------------------------------------------------------------------------------------------------

    async def resume(self, tps: set[TP], generation: int) -> None:
        """Called by the transport after a rebalance. Returns at once: the store may take its time, the group may not."""
        await self._stop_taking_up()
        self._asked = tps
        if tps:
            self._taking_up = asyncio.create_task(self._take_up(tps, generation), name="take-up")
            self._taking_up.add_done_callback(self._taken_up)

    async def _reread(self, tps: set[TP]) -> None:
        # From inside a micro-batch, which holds the lock: it must end before the task can begin. One that waits already, for
        # partitions that turned out to be overtaken a moment before, is put in the same.
        if self._taking_up is not None and not self._taking_up.done():
            tps = tps | self._asked
        await self.resume(tps, self._pipeline.consumer.app.consumer_generation_id)

    def _taken_up(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None and not self.failed.done():
            self.failed.set_exception(error)

    async def _stop_taking_up(self) -> None:
        if self._taking_up is not None and not self._taking_up.done():
            self._taking_up.cancel()
            await asyncio.wait([self._taking_up])

    async def _take_up(self, tps: set[TP], generation: int) -> None:
        pipeline, names = self._pipeline, self._settings.topics
        numbers = sorted({tp.partition for tp in tps})
        uneven = [n for n in numbers if not {TP(names.visits, n), TP(names.outcomes, n)} <= tps]
        assert not uneven, f"partitions {uneven} came without their twin: the assignor does not co-partition"
        async with pipeline.lock:
            connections = pipeline.consumer.connection_changes
            identify = self._identify_again if self.ready.is_set() else self.identify
            log = await until_it_answers(identify, pipeline.say)
            begins = await until_it_answers(lambda: pipeline.consumer.begin_offsets(tps), pipeline.say)
            ends = await until_it_answers(lambda: self._ends(tps), pipeline.say)
            while True:
                states = [
                    await until_it_answers(partial(self._load, number, log, begins, ends), pipeline.say)
                    for number in numbers
                ]
                # After the positions: a lesson that somebody adds from now on moves a position too, and ours is refused.
                await self._catch_up()
                applied = pipeline.replica.applied
                if all(applied.get(state.number, 0) <= state.position.last_lesson for state in states):
                    break  # else a lesson came in between, which the store may forget again together with its position
            if pipeline.consumer.app.consumer_generation_id != generation:
                return  # a newer rebalance has come in between, and with it another call
            pipeline.states.update({state.number: state for state in states})
            try:
                await pipeline.consumer.start_from(
                    {TP(names.visits, s.number): s.visits for s in states}
                    | {TP(names.outcomes, s.number): s.outcomes for s in states}
                )
            except IllegalStateError:
                pipeline.drop(numbers)  # the partitions have just been taken away; the rebalance that did it goes on
                return
            pipeline.identified_at = connections
            self.ready.set()

    async def _catch_up(self) -> None:
        pipeline = self._pipeline
        sound, pipeline.model_is_sound = pipeline.model_is_sound, False  # if this is cancelled, nobody knows
        if not sound:
            await pipeline.mend_model()
            return
        try:
            await until_it_answers(lambda: pipeline.replica.follow(pipeline.followed()), pipeline.say)
            pipeline.model_is_sound = True
        except MissingLessons:
            await pipeline.mend_model()

    async def _ends(self, tps: set[TP]) -> dict[TP, int]:
        asked = [(tp.topic, tp.partition) for tp in tps]
        found = await asyncio.to_thread(broker.end_offsets, self._settings.kafka, asked)
        return {TP(topic, number): end for (topic, number), end in found.items()}

    async def _load(
        self, number: int, log: LogIdentity, begins: Mapping[TP, int], ends: Mapping[TP, int]
    ) -> PartitionState:
        store = self._pipeline.store
        position = self._on_this_log(number, await store.position(number), log)
        position = self._inside(number, position, begins, ends)
        state = await self._pipeline.recall.take_up(number, position, log)
        # By the clock, so that a step has a number of its own though the store lost others after this position: replicas
        # that learned those would take the new ones for them. At random on top, for clocks of several machines differ.
        step = max(position.step, time.time_ns()) + secrets.randbelow(STEPS_APART)
        state.position = replace(state.position, step=step)
        return state

    def _on_this_log(self, number: int, position: Position, log: LogIdentity) -> Position:
        if position.log is None or position.log == log:
            return position
        self._pipeline.say(
            f"partition {number}: the offsets in the store belong to another log "
            f"(cluster {position.log.cluster or '?'}, now {log.cluster or '?'}); positions and sessions start anew, what was "
            "learned is kept"
        )
        summary = Summary.of(position)
        summary.watermark = b""
        return replace(
            position, epoch=position.epoch + 1, visits=0, outcomes=0, summary=msgspec.msgpack.encode(summary)
        )

    def _inside(self, number: int, position: Position, begins: Mapping[TP, int], ends: Mapping[TP, int]) -> Position:
        """Offsets that the log still has. What retention deleted before it was read is gone, and is said; so is a log
        that ends before the offset that was reached: left to itself, the consumer would start from the beginning, and
        every record would be counted once more."""
        names = self._settings.topics
        offsets = {}
        for topic, offset in ((names.visits, position.visits), (names.outcomes, position.outcomes)):
            begin, end = begins[TP(topic, number)], ends[TP(topic, number)]
            if offset < begin and position.mark:
                self._pipeline.say(
                    f"{topic}[{number}]: {begin - offset:,} records were deleted by retention before they were read; "
                    f"going on at offset {begin:,}"
                )
            if offset > end:
                self._pipeline.say(
                    f"{topic}[{number}]: the log ends at offset {end:,}, {offset - end:,} before what was read of it; the "
                    "broker lost those records, their effects are kept, and reading goes on at the end"
                )
            offsets[topic] = min(max(offset, begin), end)
        return replace(position, visits=offsets[names.visits], outcomes=offsets[names.outcomes])

    # -- revocation --------------------------------------------------------------------------------------------------

    async def revoke(self, revoked: set[TP]) -> None:
        """Called by Faust while the rebalance waits: checkpoint what was done, then let go."""
        pipeline = self._pipeline
        pipeline.yielding_since = time.monotonic()
        try:
            await self._stop_taking_up()
            async with pipeline.lock:
                numbers = sorted({tp.partition for tp in revoked} & set(pipeline.states))
                try:
                    await pipeline.checkpoint()
                except AWAY as error:
                    pipeline.say(
                        f"partitions {numbers} leave without a last checkpoint ({error}); their new owner will reprocess "
                        "the records since the one before"
                    )
                    pipeline.model_is_sound = False
                await pipeline.outbox.forget(numbers)
                pipeline.drop(numbers)
        finally:
            pipeline.yielding_since = None
