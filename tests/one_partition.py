"""A worker without Kafka: the real pipeline, ownership and store client on one partition, over topics that are lists.

The model is a register of what it was taught, so that a test can read from the store what any new worker would learn. The
broker acknowledges nothing before somebody waits for it, and the store loses answers when told to.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
from faust.types import TP

from models.insight import Insight
from models.learner import Scored
from models.lesson import Lesson
from models.visits import VisitContext
from schemas.records import WebVisit
from streams.emit import Record
from streams.errors import StoreError
from streams.outcomes import Task
from streams.ownership import Ownership
from streams.pipeline import Pipeline
from streams.sessions import Sessioniser
from streams.settings import Settings
from streams.store import Checkpoint, LogIdentity, Store
from streams.transport import RecordBatch
from streams.visitor_layouts import Visitor

VISITS, OUTCOMES = TP("web-visits", 0), TP("visit-outcomes", 0)
LOG = LogIdentity("cluster", "visits-id", "outcomes-id")
BEGIN_MS, GAP_MS, LATENESS_MS = 1_700_000_000_000, 30_000, 20_000
# Outcomes of one task come in one topic: were they in both, which of a true and a false one is first would depend on who
# read what when.
TASKS = (
    Task("bought", frozenset({"order"}), 60_000),
    Task("kept", frozenset({"bookmark"}), 45_000, "session"),
    Task("continues", frozenset(), GAP_MS, "session"),
)


def settings_for(url: str, group: str) -> Settings:
    """Caches so small that visitors and ledgers come and go all the time."""
    return Settings(
        kafka="", redis=url, group=group, tasks=TASKS, session_gap_ms=GAP_MS, allowed_lateness_ms=LATENESS_MS,
        visitor_cache=3, pending_cache=4,
    )  # fmt: skip


def visit(who: str, at_ms: int, event: str, event_name: str = "page_view") -> dict[str, Any]:
    return {
        "event_id": event, "timestamp": at_ms, "visitor_id": who, "url": f"https://a.example/{at_ms % 5}", "title": event,
        "event_name": event_name,
    }  # fmt: skip


def outcome(who: str, at_ms: int, value: bool) -> dict[str, Any]:
    return {"visitor_id": who, "outcome": "order", "timestamp": at_ms, "value": value}


@dataclass
class Entry:
    """A record as the transport hands it over."""

    topic: str
    offset: int
    value: bytes
    partition: int = 0
    key: bytes | None = b"k"
    timestamp: int = BEGIN_MS
    headers: list[tuple[str, bytes]] = field(default_factory=list)


class Register:
    """In the place of a model: remembers what it was taught. A row of features is the title, which names the visit."""

    def __init__(self) -> None:
        self.step, self.urls, self.trained_through_ms = 0, 0, 0
        self.visits, self.taught = 0, list[tuple[str, str, int]]()  # event, task, label

    def score(self, contexts: Sequence[VisitContext]) -> Scored:
        chances = np.full((len(contexts), len(TASKS)), 0.5, np.float32)
        nothing = np.zeros(len(contexts), np.float32)
        return Scored(
            [(context.title or "").encode() for context in contexts], chances, chances,
            np.full((len(contexts), 10), -1, np.int32), np.zeros((len(contexts), 10), np.float32), [], nothing, nothing > 0,
            np.zeros((len(contexts), 3), np.int8),
        )  # fmt: skip

    def learn(self, lesson: Lesson) -> None:
        self.step += 1
        self.visits += len(lesson.steps.url)
        for task, row, label, *_ in lesson.examples.tolist():
            self.taught.append((lesson.features[row].decode(), lesson.tasks[task], label))

    def damage(self) -> str:
        return ""

    def insight(self) -> Insight:
        return Insight()

    def snapshot(self) -> bytes:
        return msgspec.msgpack.encode((self.visits, self.taught))

    def restore(self, blob: bytes) -> None:
        self.visits, self.taught = msgspec.msgpack.decode(blob, type=tuple[int, list[tuple[str, str, int]]])


class Topics:
    """The two topics that are read and the two that are written, and what state is right after so many visits."""

    def __init__(self, judged: bool = True) -> None:
        """`judged` False: nobody asks what is right; a copy of it all a visit is too much for thousands of visitors."""
        self._judged = judged
        self.read: dict[TP, list[Entry]] = {VISITS: [], OUTCOMES: []}
        self.answered: list[int] = []  # offsets of visits, in the order of their answers
        self.scores: list[dict[str, float]] = []  # of each of them
        self.needless: list[int] = []  # those of before what was the worker's last checkpoint
        self.rejected = Counter[tuple[str, int]]()
        self.unreadable: dict[TP, list[int]] = {VISITS: [], OUTCOMES: []}
        self.right: list[tuple[dict[str, Visitor], int]] = [({}, 0)]  # sessions and duplicates after n records
        self._sessions = Sessioniser(GAP_MS)

    def write(self, tp: TP, value: Mapping[str, Any] | None) -> None:
        entries = self.read[tp]
        entries.append(Entry(tp.topic, len(entries), json.dumps(value).encode() if value else b"{not json"))
        if value is None:
            self.unreadable[tp].append(len(entries) - 1)
        if tp == VISITS and self._judged:
            known, duplicates = self.right[-1]
            if value is not None:
                event = msgspec.json.decode(entries[-1].value, type=WebVisit)
                visitor, _, step = self._sessions.visit(known.get(event.visitor_id), event, 0)
                known, duplicates = known | {event.visitor_id: visitor}, duplicates + step.duplicate
            self.right.append((known, duplicates))

    def write_again(self) -> None:
        """The last visit once more, as a producer does that was not answered."""
        if self.read[VISITS] and len(self.read[VISITS]) - 1 not in self.unreadable[VISITS]:
            self.write(VISITS, json.loads(self.read[VISITS][-1].value))

    def pack(self, records: Iterable[Record]) -> list[list[Record]]:
        return [list(records)]

    def take(self, topic: str, records: list[Record]) -> None:
        for _, value, headers in records:
            if topic == "scored-visits":
                scored = json.loads(value or b"")
                self.answered.append(scored["source"]["offset"])
                self.scores.append(scored["scores"])
            else:
                named = dict(headers)
                self.rejected[named["source_topic"].decode(), int(named["source_offset"])] += 1


class Producer:
    """A broker that acknowledges nothing before somebody waits for it: what is not waited for goes down with a worker."""

    def __init__(self, topics: Topics, reached: Callable[[], int]) -> None:
        """`reached`: the offset of the worker's last checkpoint."""
        self._topics, self._reached = topics, reached
        self.pack = topics.pack
        self.awaited = asyncio.Event()

    async def send(self, batch: list[Record], topic: str, partition: int) -> None:
        await self.awaited.wait()
        before = len(self._topics.answered)
        self._topics.take(topic, batch)
        self._topics.needless += [n for n in self._topics.answered[before:] if n < self._reached()]


class Consumer:
    """The part of `BatchConsumer` that the pipeline uses, over lists."""

    connection_changes = 0

    def __init__(self, topics: Topics) -> None:
        self.app = SimpleNamespace(consumer_generation_id=0)
        self._log = topics.read
        self._next: dict[TP, int] = {}
        self._ends: dict[TP, tuple[int, float]] = {}
        self._last: dict[TP, int] = {}
        self._current: set[tuple[TP, int]] = set()
        self._tokens = 0

    def fetch(self, tp: TP, most: int) -> RecordBatch | None:
        if tp not in self._next:
            return None
        begin = self._next[tp]
        records = self._log[tp][begin : begin + most]
        self._ends[tp] = len(self._log[tp]), time.monotonic()
        if not records:
            return None
        self._tokens += 1
        self._next[tp], self._last[tp] = begin + len(records), begin + len(records) - 1
        self._current.add((tp, self._tokens))
        return RecordBatch(tp, records, self.app.consumer_generation_id, self._tokens)

    def is_current(self, batch: RecordBatch) -> bool:
        return (batch.tp, batch.token) in self._current

    def read_position(self, tp: TP) -> int | None:
        return self._next.get(tp)

    def end_as_of(self, tp: TP) -> tuple[int, float] | None:
        return self._ends.get(tp)

    def last_delivered(self, tp: TP) -> int | None:
        return self._last.get(tp)

    def pause_partitions(self, tps: Iterable[TP]) -> None:
        pass

    def hold(self, batch: RecordBatch) -> None:
        pass

    def resume_partitions(self, tps: Iterable[TP]) -> None:
        pass

    def forget(self, tps: Iterable[TP]) -> None:
        for tp in tps:
            self._current = {known for known in self._current if known[0] != tp}
            for each in (self._next, self._ends, self._last):
                each.pop(tp, None)

    async def begin_offsets(self, tps: Iterable[TP]) -> dict[TP, int]:
        return dict.fromkeys(tps, 0)

    async def start_from(self, offsets: Mapping[TP, int]) -> None:
        self.forget(offsets)
        self._next.update(offsets)


class FlakyStore(Store):
    """Loses answers when told, and tells `meanwhile` before the commit is tried again."""

    lose: str = ""  # "before" or "after" the commit has arrived
    meanwhile: Callable[[], Awaitable[None]] | None = None
    commits = 0

    async def commit(self, checkpoint: Checkpoint) -> None:
        lost, self.lose = self.lose, ""
        if lost != "before":
            await super().commit(checkpoint)
            self.commits += 1
        if lost:
            if self.meanwhile is not None:
                await self.meanwhile()
            raise StoreError("its answer was lost")


class OwnershipOfLists(Ownership):
    """Knows the log without asking a broker."""

    async def identify(self) -> LogIdentity:
        self._pipeline.partitions = range(1)
        return LOG

    async def _ends(self, tps: set[TP]) -> dict[TP, int]:
        return {tp: len(self._pipeline.consumer._log[tp]) for tp in tps}


class Worker:
    """One process: pipeline, ownership, a connection to the store."""

    def __init__(self, settings: Settings, topics: Topics, learner: Any = None, learns: bool = True) -> None:
        self.store, self.said = FlakyStore(settings), list[str]()
        self.register = learner or Register()
        self.pipeline = Pipeline(settings, self.store, self.register, self.said.append, learns)
        self.consumer = Consumer(topics)
        self.producer = Producer(topics, lambda: self.pipeline.states[0].position.visits if self.owns else 0)
        self.pipeline.attach(self.consumer, self.producer)  # type: ignore[arg-type]
        self.pipeline._follow_due = float("inf")  # by a rule, not by the clock
        self.ownership = OwnershipOfLists(self.pipeline)
        self.inbox: list[tuple[Any, RecordBatch]] = []
        flushed = self.pipeline.outbox.flushed

        async def wait(partitions: Iterable[int]) -> None:
            self.producer.awaited.set()
            await flushed(partitions)
            self.producer.awaited.clear()

        self.pipeline.outbox.flushed = wait  # type: ignore[method-assign]

    @property
    def owns(self) -> bool:
        """Whether it believes so."""
        return 0 in self.pipeline.states

    def is_at(self, mark: str) -> bool:
        """Whether it owns the partition, at this step, and learned nothing since."""
        state = self.pipeline.states.get(0)
        return state is not None and state.position.mark == mark and not state.moved

    async def settle_down(self) -> None:
        """Until a take-up that is under way has ended."""
        if self.ownership._taking_up is not None:
            await self.ownership._taking_up

    async def take_up(self, generation: int) -> None:
        self.consumer.app.consumer_generation_id = generation
        await self.ownership.resume({VISITS, OUTCOMES}, generation)
        await self.settle_down()

    async def let_go(self) -> None:
        await self.ownership.revoke({VISITS, OUTCOMES})
        self.consumer.forget([VISITS, OUTCOMES])

    def fetch(self, tp: TP, most: int) -> None:
        batch = self.consumer.fetch(tp, most)
        if batch is not None:
            self.inbox.append((SimpleNamespace(value=batch, message=SimpleNamespace(ack=lambda _: None)), batch))

    async def work(self) -> None:
        """A turn of `Pipeline.run`, with all that was fetched."""
        async with self.pipeline.lock:
            current = [(event, batch) for event, batch in self.inbox if self.pipeline._is_mine(batch)]
            self.inbox.clear()
            if current or self.pipeline._any_ripe():
                await self.pipeline._micro_batch(current)
        await self.settle_down()

    async def checkpoint(self) -> None:
        async with self.pipeline.lock:
            await self.pipeline.checkpoint()
        await self.settle_down()

    async def drain(self) -> None:
        """Until all that is written is read and settled, and in the store."""
        # With so little room, what is due when the clock jumps is settled a few visits a checkpoint.
        for _ in range(100 + 5 * sum(map(len, self.consumer._log.values()))):
            for tp in (VISITS, OUTCOMES):
                self.fetch(tp, 7)
            await self.work()
            await self.checkpoint()
            state = self.pipeline.states[0]
            ends = [len(self.consumer._log[tp]) for tp in (VISITS, OUTCOMES)]
            if [state.visits, state.outcomes] == ends and state.join.pending.through_ms >= state.watermark.value_ms:
                return
        raise AssertionError("it does not come to an end")

    async def die(self) -> None:
        self.inbox.clear()
        await self.ownership._stop_taking_up()
        await self.pipeline.outbox.forget([0])
        self.pipeline.compute.shutdown()
        await self.store.close()
