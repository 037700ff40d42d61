"""Replicas and what was imported: all take it in, once, in order, before what the stream taught since; none twice."""

import asyncio
import dataclasses
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest

from models.imported import Imported
from models.learner import CorruptSnapshot, Example, Learner, Lesson
from models.settings import ModelSettings
from models.visits import VisitContext
from streams import replica as replica_module
from streams.replica import IMPORTS_A_TURN, MissingLessons, Replica
from streams.settings import Settings
from streams.store import IMPORTS, Checkpoint, LogIdentity, Position, Store
from tests.unit.test_models_lesson import visit
from tests.waiting import eventually

DIMS = 2
SMALL = ModelSettings(dims=8, slots=4, successor_slots=3, table_bits=10, embedding_bits=8, chunk=16)
PARTITIONS = 4


class Diary:
    """A learner that only writes down what it is given."""

    def __init__(self) -> None:
        self.entries: list[str] = []

    def learn(self, lesson: Lesson) -> None:
        self.entries.append(f"lesson {lesson.trained_through_ms}")

    def warm_start(self, urls: Sequence[str], vectors: Any) -> int:
        if vectors.shape[1] != DIMS:
            raise ValueError(f"{vectors.shape[1]} dimensions, this model has {DIMS}")
        self.entries += [f"import {url}" for url in urls]
        return len(urls)

    def snapshot(self) -> bytes:
        return json.dumps(self.entries).encode()

    def restore(self, blob: bytes) -> None:
        if blob == b"torn":
            raise CorruptSnapshot("torn")
        self.entries = json.loads(blob)


@dataclasses.dataclass
class Told:
    """A replica with its diary, and what it said."""

    replica: Replica
    said: list[str]

    @property
    def entries(self) -> list[str]:
        return self.replica.learner.entries  # type: ignore[attr-defined,no-any-return]


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[Store]:
    opened = Store(Settings(kafka="", redis=store_url, group="shop", visitor_ttl_ms=3_600_000))
    yield opened
    await opened.close()


@pytest.fixture
def worker(store: Store) -> Callable[[], Told]:
    def start() -> Told:
        said: list[str] = []
        return Told(Replica(store, Diary(), None, said.append), said)  # type: ignore[arg-type]

    return start


def vectors_of(*urls: str, dims: int = DIMS) -> bytes:
    return Imported.of(urls, np.ones((len(urls), dims), np.float32)).encode()


async def teach(store: Store, number: int) -> None:
    """A checkpoint of partition 0 with a lesson that is called by a number."""
    await commit(store, 0, [Lesson.of([], [], number)])


async def commit(store: Store, partition: int, lessons: Sequence[Lesson]) -> None:
    """A checkpoint of a partition with these lessons."""
    position = await store.position(partition)
    to = dataclasses.replace(position, mark=uuid.uuid4().hex, step=position.step + 1, log=LogIdentity("c", "v", "o"))
    blob = msgspec.msgpack.encode([lesson.encode() for lesson in lessons])
    await store.commit(Checkpoint(partition, position.mark or None, to, lesson=blob))


def walks(random: np.random.Generator, at_ms: int, count: int) -> list[VisitContext]:
    """Visits at about that time, each after another of its half of the site."""
    out = []
    for _ in range(count):
        half = int(random.integers(2))
        url, before = (f"https://shop.example/{half}/{random.integers(12)}" for _ in range(2))
        out.append(visit(url, before, timestamp_ms=at_ms, properties={"half": half}))
    return out


async def taught_interleaved(store: Store, learner: Learner, rounds: int, seed: int) -> None:
    """As a worker that owns all partitions: in each round all are scored, then all teach visits, then all examples.

    What decides the outcome drifts: it is one half of the site at first and the other at the end.
    """
    random = np.random.default_rng(seed)
    for turn in range(rounds):
        at_ms = 1_700_000_000_000 + 60_000 * turn
        visits = [walks(random, at_ms + p, 12) for p in range(PARTITIONS)]
        rows = [learner.score(each).features for each in visits]
        lessons: list[list[Lesson]] = [[Lesson.of(each, [], at_ms)] for each in visits]
        for p, each in enumerate(visits):
            chance = [0.1 + 0.8 * abs(turn / rounds - (v.properties["half"] == 1)) for v in each]
            bought = [Example("bought", r, bool(random.random() < c)) for r, c in zip(rows[p], chance, strict=True)]
            lessons[p].append(Lesson.of([], bought, at_ms - 30_000))
        for stage in range(2):
            for p in range(PARTITIONS):
                learner.learn(lessons[p][stage])
        for p in range(PARTITIONS):
            await commit(store, p, lessons[p])


def logits(learner: Learner, seed: int) -> Any:
    probability = learner.score(walks(np.random.default_rng(seed), 1_700_100_000_000, 200)).probability[:, 0]
    return np.log(probability / (1 - probability))


async def test_a_rebuilt_model_answers_as_the_one_that_learned_the_partitions_together(store: Store, seed: int) -> None:
    worker = Learner(SMALL, ["bought"])
    await taught_interleaved(store, worker, 40, seed)
    rebuilt, again, in_runs = (Learner(SMALL, ["bought"]) for _ in range(3))
    for learner in (rebuilt, again):
        await Replica(store, learner, None, pytest.fail).rebuild(range(PARTITIONS))
    for partition in range(PARTITIONS):
        await Replica(store, in_runs, None, pytest.fail).follow([partition])
    assert rebuilt.snapshot() == again.snapshot(), "the same streams give the same bits"
    own, asked = logits(worker, seed + 1), (rebuilt, in_runs)
    merged, sequential = (float(np.abs(logits(each, seed + 1) - own).mean()) for each in asked)
    said = f"mean distance of logits: {merged:.4f} merged by event time, {sequential:.4f} partition after partition"
    assert merged < sequential / 4, said


async def test_a_replica_that_was_away_for_long_learns_as_a_new_one(store: Store, seed: int) -> None:
    worker, sleeper, new = (Learner(SMALL, ["bought"]) for _ in range(3))
    away = Replica(store, sleeper, None, pytest.fail)
    await away.rebuild(range(PARTITIONS))
    await taught_interleaved(store, worker, 10, seed)
    await away.follow(range(PARTITIONS))
    await Replica(store, new, None, pytest.fail).rebuild(range(PARTITIONS))
    assert sleeper.snapshot() == new.snapshot()


async def test_a_running_worker_takes_in_what_is_imported_and_a_new_one_too(
    store: Store, worker: Callable[[], Told]
) -> None:
    running = worker()
    await running.replica.rebuild([0])
    await store.add_import(vectors_of("a", "b"))
    await running.replica.follow([0])
    assert running.entries == ["import a", "import b"]
    await store.add_import(vectors_of("c"))
    await running.replica.follow([])
    await running.replica.follow([])
    assert running.entries == ["import a", "import b", "import c"], "each once, whoever owns the partitions"
    new = worker()
    await new.replica.rebuild([0])
    assert new.entries == running.entries


async def test_without_a_snapshot_imports_come_before_the_lessons(store: Store, worker: Callable[[], Told]) -> None:
    await teach(store, 1)
    await store.add_import(vectors_of("a"))
    new = worker()
    await new.replica.rebuild([0])
    assert new.entries == ["import a", "lesson 1"]


async def test_a_snapshot_says_how_far_it_has_imported(store: Store, worker: Callable[[], Told]) -> None:
    running = worker()
    await running.replica.rebuild([0])
    await store.add_import(vectors_of("a"))
    await running.replica.follow([0])
    await running.replica.write_snapshot()
    await store.add_import(vectors_of("b"))
    await teach(store, 1)
    new = worker()
    await new.replica.rebuild([0])
    assert new.entries == ["import a", "import b", "lesson 1"]
    assert new.said == []


async def test_what_two_snapshots_hold_is_trimmed_and_a_torn_snapshot_loses_nothing(
    store: Store, worker: Callable[[], Told]
) -> None:
    running = worker()
    await running.replica.rebuild([0])
    for url in "abc":
        await store.add_import(vectors_of(url))
        await running.replica.follow([0])
        await running.replica.write_snapshot()
        assert len(await store.lessons(IMPORTS, 0)) == 1, "what the older one holds is gone, the rest is not"
    blobs = [blob for _, _, blob in await store.snapshots()]
    assert blobs[0] == running.replica.learner.snapshot()
    rows = await store.client.lrange(store.key("model", "snapshot"), 0, -1)
    created, stamp, _ = msgspec.msgpack.decode(rows[0], strict=False)
    await store.client.lset(store.key("model", "snapshot"), 0, msgspec.msgpack.encode((created, stamp, b"torn")))
    new = worker()
    await new.replica.rebuild([0])
    assert new.entries == ["import a", "import b", "import c"]
    assert len(new.said) == 1
    assert "snapshot 0" in new.said[0]


async def test_a_worker_that_slept_through_a_trimmed_import_is_told_to_rebuild(
    store: Store, worker: Callable[[], Told]
) -> None:
    sleeper, running = worker(), worker()
    for each in (sleeper, running):
        await each.replica.rebuild([0])
    for url in "abc":
        await store.add_import(vectors_of(url))
        await running.replica.follow([0])
        await running.replica.write_snapshot()
    with pytest.raises(MissingLessons, match="imported vectors"):
        await sleeper.replica.follow([0])
    await sleeper.replica.rebuild([0])
    assert sleeper.entries == running.entries


async def test_numbers_grow_though_everything_was_trimmed_or_the_store_was_emptied(
    store: Store, worker: Callable[[], Told]
) -> None:
    running = worker()
    await running.replica.rebuild([0])
    numbers = [await store.add_import(vectors_of("a"))]
    await store.trim_lessons({IMPORTS: numbers[-1]})
    assert await store.lessons(IMPORTS, 0) == []
    numbers.append(await store.add_import(vectors_of("b")))
    (entry,) = await store.lessons(IMPORTS, 0)
    assert entry.after == numbers[0], "whoever has not seen the trimmed one learns that it is missing"
    await store.client.flushall()
    await eventually(lambda: time.time() * 1000 >= numbers[-1] + 1, 5, "a later millisecond")
    numbers.append(await store.add_import(vectors_of("c")))
    (entry,) = await store.lessons(IMPORTS, numbers[1])
    assert entry.after == 0
    assert numbers == sorted(set(numbers))


async def test_imports_at_the_same_time_form_one_chain(store: Store) -> None:
    numbers = await asyncio.gather(*(store.add_import(vectors_of(str(n))) for n in range(12)))
    chain = await store.lessons(IMPORTS, 0)
    assert [entry.step for entry in chain] == sorted(numbers)
    assert [entry.after for entry in chain] == [0, *sorted(numbers)[:-1]]


async def test_a_large_import_is_taken_in_over_several_turns_and_at_once_by_a_new_worker(
    store: Store, worker: Callable[[], Told], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_module, "IMPORTS_A_TURN", 2)
    assert IMPORTS_A_TURN > 2
    running = worker()
    await running.replica.rebuild([0])
    for url in "abcde":
        await store.add_import(vectors_of(url))
    taken = []
    for _ in range(4):
        await running.replica.follow([0])
        taken.append(len(running.entries))
    assert taken == [2, 4, 5, 5]
    new = worker()
    await new.replica.rebuild([0])
    assert new.entries == running.entries


async def test_an_import_that_is_torn_or_of_other_dimensions_is_said_and_left_out(
    store: Store, worker: Callable[[], Told]
) -> None:
    for blob in (b"U2V1 no", vectors_of("wide", dims=3), vectors_of("a")):
        await store.add_import(blob)
    new = worker()
    await new.replica.rebuild([0])
    assert new.entries == ["import a"]
    assert [("checksum" in line, "3 dimensions" in line) for line in new.said] == [(True, False), (False, True)]


async def test_imports_have_a_time_to_live_and_a_slot_of_their_own(store: Store) -> None:
    assert (await store.position(0)) != Position(), "a step at least"
    await store.add_import(vectors_of("a"))
    (key,) = [key.decode() async for key in store.client.scan_iter()]
    assert key == "url2vec:{web-visits-shop:-1}:lessons"
    assert 0 < await store.client.pttl(key) <= 7_200_000
