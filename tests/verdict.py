"""Whether the state in the store is that of a run that nobody disturbed: exactly, and of the model bit for bit.

`kept` reads what the store holds of every partition: visitors, ledgers of pending visits and remembered outcomes, counters,
how many examples were judged, offsets. `undisturbed` computes the same from the input topics alone, with the product's
steps in one go: no broker, no store, no checkpoint, no batches but one, and a model that knows nothing. The two must be
equal whatever happened, and however the topics were read: nothing here depends on where a batch ended.

What a model learned does depend on that. Where batches end at the same records in two runs (one partition, and each slice
checkpointed before the next is published), the models that new replicas build from the two stores must be the same bits,
and so must all answers: `model_of`, `answers_of`.
"""

import asyncio
import hashlib
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Self, TypeVar

import msgspec
import numpy as np
from confluent_kafka import OFFSET_BEGINNING, Consumer, TopicPartition
from faust.types import TP

from models.learner import Learner, Lesson, Scored
from models.progressive import Progress
from models.visits import VisitContext
from streams.app import new_learner
from streams.decode import RecordDecoder
from streams.matching import Ledger
from streams.partition import Offsets, PartitionState, Summary
from streams.replica import Replica
from streams.scoring import Steps
from streams.settings import Settings, resolve
from streams.store import Checkpoint, LogIdentity, Position, Store
from streams.transport import RecordBatch
from streams.visitor_layouts import Visitor
from streams.visitors import stored_visitor
from streams.watermark import Watermark
from tests.system import Source, System, Taken, Verdict, read_topics, settled
from tests.waiting import eventually_sync

Answer = TypeVar("Answer")

POLL_RECORDS = 512  # what one poll may bring when there was room for one record more
STATE_LIMIT_S = 30.0  # the last confirmations that topics are at their ends, and the checkpoint after them


# -- the state of a partition ----------------------------------------------------------------------------------------


@dataclass
class Kept:
    """What must be equal, of one partition. Everything is by name, so that a difference can be named."""

    visitors: dict[str, Visitor]
    pending: dict[str, Any]  # visitor → visits that wait for an answer or may still be joined, outcomes remembered
    counts: dict[str, Any]

    def differences(self, wanted: "Kept") -> list[str]:
        """In which entries the two differ, a few of each kind."""
        found = []
        for part in ("visitors", "pending", "counts"):
            mine, theirs = getattr(self, part), getattr(wanted, part)
            differing = [name for name in sorted(mine.keys() | theirs.keys()) if mine.get(name) != theirs.get(name)]
            found += [
                f"{part} {name}: {mine.get(name)!r} instead of {theirs.get(name)!r}"[:600] for name in differing[:2]
            ]
            if len(differing) > 2:
                found.append(f"and {len(differing) - 2} more {part}")
        return found


def _pending(ledgers: Mapping[str, bytes]) -> dict[str, Any]:
    """Ledgers without what the model said: features and probabilities are as good as the model was by then."""
    found = {}
    for name, blob in ledgers.items():
        ledger = Ledger.decode(blob)
        visits = [
            (v.event_id, v.session_id, v.timestamp_ms, sorted(v.open), bool(v.features), v.late, v.action)
            for v in ledger.visits
        ]
        found[name] = visits, [msgspec.structs.astuple(outcome) for outcome in ledger.outcomes]
    return found


def _counts(summary: Summary, visits: int, outcomes: int, lateness_ms: int) -> dict[str, Any]:
    found: dict[str, Any] = {"next visit": visits, "next outcome": outcomes}
    counters = msgspec.structs.asdict(summary.counters)
    # The two say how busy the machine was; their sum is what is left when retries are taken out.
    found["learned or thinned"] = counters.pop("visits_learned") + counters.pop("visits_thinned")
    found |= counters | {f"outcomes {name}": n for name, n in msgspec.structs.asdict(summary.outcomes).items()}
    found |= {
        f"{task} {name}": n for task, b in summary.balance.items() for name, n in msgspec.structs.asdict(b).items()
    }
    found |= {f"{task} judged": Progress.decode(blob).n for task, blob in summary.progress.items()}
    if summary.watermark:
        found["watermark"] = Watermark.decode(summary.watermark, lateness_ms).value_ms
    return found


# -- as the store has it ---------------------------------------------------------------------------------------------


def from_store(system: System, read: Callable[[Settings, Store], Awaitable[Answer]]) -> Answer:
    """What `read` gives, with the settings of the system and a store of its own."""
    settings = resolve(system.kafka, system.redis, str(system.config))

    async def run() -> Answer:
        store = Store(settings)
        try:
            return await read(settings, store)
        finally:
            await store.close()

    return asyncio.run(run())


def kept(system: System, newest_ms: Mapping[int, int]) -> dict[int, Kept]:
    """The state of every partition that the store knows, as whoever takes it up finds it.

    A watermark that moved and settled nothing is not worth a checkpoint. So each is first brought to where reading both
    topics to their ends brings it, `newest_ms`; were there anything left to learn from by that, this would fail.
    """

    async def read(settings: Settings, store: Store) -> dict[int, Kept]:
        found = {}
        for number in range(system.partitions):
            position = await store.position(number)
            if position.log is None:
                continue
            visitors: dict[str, Visitor] = {}
            newest = store._generation()
            for generation in (newest - 1, newest):
                key = store.key(number, "visitors", position.epoch, generation)
                rows = await store.ask(key, lambda client, key=key: client.hgetall(key), "visitors")
                visitors |= {name.decode(): stored_visitor(blob) for name, blob in rows.items()}
            ledgers = {name: blob async for name, blob in store.joins(number, position.epoch)}
            state = PartitionState(number, settings, position, position.log, ledgers.items())
            learner = Mute()
            written = _at_the_end(state, Steps(settings, learner), newest_ms[number])  # type: ignore[arg-type]
            assert not learner.taught, f"partition {number}: {learner.taught['examples']} examples wait to be learned"
            found[number] = _kept(settings, visitors, ledgers, written)
        return found

    return from_store(system, read)


def _at_the_end(state: PartitionState, steps: Steps, newest_ms: int) -> Checkpoint:
    state.watermark.observe("visits", newest_ms, 0.0)
    state.watermark.observe("outcomes", newest_ms, 0.0)
    steps.settle([state])
    return state.checkpoint(0, 0)


def _kept(
    settings: Settings, visitors: dict[str, Visitor], before: Mapping[str, bytes | None], written: Checkpoint
) -> Kept:
    left = {name: blob for name, blob in {**before, **written.joins}.items() if blob is not None}
    summary = Summary.of(written.position)
    counts = _counts(summary, written.position.visits, written.position.outcomes, settings.allowed_lateness_ms)
    return Kept(visitors, _pending(left), counts)


# -- as it must be ---------------------------------------------------------------------------------------------------


@dataclass
class Mute:
    """A model that has nothing to say and learns nothing; it counts what it was taught."""

    step: int = 0
    trained_through_ms: int = 0
    taught: Counter[str] = field(default_factory=Counter)

    def score(self, visits: Sequence[VisitContext]) -> Scored:
        n = len(visits)
        half = np.full((n, 1), 0.5, np.float32)
        nothing = np.zeros(n, np.float32)
        none, share = np.full((n, 10), -1, np.int32), np.zeros((n, 10), np.float32)
        return Scored([b"row"] * n, half, half, none, share, [], nothing, nothing > 0, np.zeros((n, 3), np.int8))

    def learn(self, lesson: Lesson) -> None:
        if len(lesson.examples):
            self.taught["examples"] += len(lesson.examples)


def undisturbed(
    settings: Settings, visits: Sequence[Taken], outcomes: Sequence[Taken], partitions: int
) -> tuple[dict[int, Kept], dict[int, int]]:
    """The state after these records, none of which came late, and the newest event time, of each partition that has any."""
    assert len(settings.tasks) == 1, "the mute model answers one question"
    found, newest_ms = {}, {}
    for number in range(partitions):
        mine = [[r for r in records if r.partition == number] for records in (visits, outcomes)]
        if any(mine):
            found[number], newest_ms[number] = _in_one_go(settings, number, *mine)
    return found, newest_ms


def _in_one_go(settings: Settings, number: int, visits: Sequence[Taken], outcomes: Sequence[Taken]) -> tuple[Kept, int]:
    learner = Mute()
    steps = Steps(settings, learner)  # type: ignore[arg-type]
    decoder = RecordDecoder(settings)
    state = PartitionState(number, settings, Position(), LogIdentity("", "", ""))
    now_ms = int(time.time() * 1000)
    newest_ms = 0
    for records in (visits, outcomes):
        if not records:
            continue
        decoded = decoder.decode(_batch(records), now_ms)
        state.meet(state.unknown(decoded.visitor_ids()), {})
        answers = steps.score([decoded], {number: state})
        steps.learn([decoded], answers, {number: state})
        times = [read.visit.timestamp_ms for read in decoded.visits] + [o.timestamp_ms for _, o in decoded.outcomes]
        newest_ms = max([newest_ms, *times])
    state.read_through(Offsets(_end(visits), _end(outcomes)))
    written = _at_the_end(state, steps, newest_ms)
    learned = Summary.of(written.position).counters.examples_learned
    assert learner.taught["examples"] == learned, "each example is taught once"
    visitors = {name: stored_visitor(blob) for name, blob in written.visitors.items()}
    return _kept(settings, visitors, {}, written), newest_ms


def _batch(records: Sequence[Taken]) -> RecordBatch:
    read = [
        SimpleNamespace(
            topic=r.topic, partition=r.partition, offset=r.offset, timestamp=0, key=r.key, value=r.value, headers=r.headers
        )
        for r in records
    ]  # fmt: skip
    return RecordBatch(TP(records[0].topic, records[0].partition), read, 0, 0)


def _end(records: Sequence[Taken]) -> int:
    return records[-1].offset + 1 if records else 0


# -- the verdict -----------------------------------------------------------------------------------------------------


def until_as_undisturbed(system: System, limit_s: float = STATE_LIMIT_S) -> None:
    """Wait until the store holds what a run that nobody disturbed would have left there; names what differs where not."""
    names = system.names
    inputs = read_topics(system.kafka, [names.visits, names.outcomes], system.partitions)
    settings = resolve(system.kafka, system.redis, str(system.config))
    wanted, newest_ms = undisturbed(settings, inputs[names.visits], inputs[names.outcomes], system.partitions)

    def equal() -> bool:
        found = kept(system, newest_ms)
        assert found.keys() == wanted.keys(), f"partitions {sorted(found)} instead of {sorted(wanted)}"
        differences = [f"partition {p}, {said}" for p in wanted for said in found[p].differences(wanted[p])]
        assert not differences, "; ".join(differences[:6])
        return True

    eventually_sync(equal, limit_s, "the state is that of a run that nobody disturbed", poll_s=0.5)


def undone(system: System, crashes: int, max_in_flight: int, limit_s: float = 60.0) -> Verdict:
    """Nothing lost, order kept, counters and state as undisturbed, and no more repeated than `crashes` may repeat.

    What a crash repeats was answered and not checkpointed: at most what one worker had in flight.
    """
    verdict = settled(system, limit_s)
    until_as_undisturbed(system)
    most = crashes * (max_in_flight + POLL_RECORDS)
    assert len(verdict.repeated) <= most, f"{len(verdict.repeated)} answers repeated after {crashes} crashes"
    return verdict


# -- bit for bit -----------------------------------------------------------------------------------------------------


def model_of(system: System) -> tuple[int, str]:
    """Steps taken, and a digest of all its bits, of the model that a new replica builds from the store."""

    async def read(settings: Settings, store: Store) -> tuple[int, str]:
        said: list[str] = []
        learner: Learner = new_learner(settings)
        await Replica(store, learner, None, said.append).rebuild(range(system.partitions))
        assert not said, said
        return learner.step, hashlib.sha256(learner.snapshot()).hexdigest()

    return from_store(system, read)


def answers_of(verdict: Verdict) -> dict[Source, dict[str, Any]]:
    """Every first answer without the moment at which it was given."""
    return {
        source: {name: value for name, value in answer.items() if name != "scored_at"}
        for source, answer in verdict.scored.items()
    }


class Tail:
    """Follows a topic from its beginning, for those who wait for what comes next."""

    def __init__(self, kafka: str, topic: str, partitions: int) -> None:
        self._consumer = Consumer({"bootstrap.servers": kafka, "group.id": "tail", "enable.auto.commit": False})
        self._consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in range(partitions)])

    def more(self) -> list[tuple[int, dict[str, Any]]]:
        """What came since the last call: partitions and answers."""
        found = []
        while messages := self._consumer.consume(2_000, timeout=0.05):
            for message in messages:
                assert message.error() is None, message.error()
                found.append((message.partition() or 0, json.loads(message.value() or b"")))
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._consumer.close()
