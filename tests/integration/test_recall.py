"""Pending visits in the store and not in the worker: bounded memory, and each pair settled once all the same."""

import random
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from schemas.records import VisitOutcome, WebVisit
from streams.decode import Decoded, ReadVisit
from streams.due import DueIndex
from streams.errors import StaleOffset, StoreError
from streams.outcomes import Settled, Task
from streams.partition import Offsets, PartitionState
from streams.recall import Recall
from streams.settings import Settings
from streams.store import LogIdentity, Store
from tests.system import BEGIN_MS, BOUGHT, MINUTE_MS, System, settled, traffic, visit

if TYPE_CHECKING:
    from streams.settings import Topics

LOG = LogIdentity("cluster", "visits-id", "outcomes-id")
HORIZON_MS = 1_000
CACHE, PAGE = 20, 10


def settings_for(url: str, **changes: Any) -> Settings:
    task = Task("bought", frozenset({"order"}), changes.pop("horizon_ms", HORIZON_MS))
    return Settings(
        kafka="",
        redis=url,
        tasks=(task,),
        allowed_lateness_ms=0,
        session_gap_ms=HORIZON_MS,
        pending_cache=CACHE,
        **changes,
    )


class Worker:
    """The steps of a pipeline that concern what is pending, on one partition: records in, settled pairs out."""

    def __init__(self, settings: Settings) -> None:
        self.store, self.said, self.settled = Store(settings), list[str](), list[Settled]()
        self.recall = Recall(settings, self.store, self.said.append, lambda: False)
        self.most = 0  # ledgers in memory after a checkpoint
        self.offset = 0

    async def begin(self) -> PartitionState:
        self.state = await self.recall.take_up(0, await self.store.position(0), LOG)
        return self.state

    async def read(self, *records: WebVisit | VisitOutcome) -> None:
        visits = [ReadVisit(0, 0, None, record) for record in records if isinstance(record, WebVisit)]
        outcomes = [(0, record) for record in records if isinstance(record, VisitOutcome)]
        await self.recall.meet(self.state, [Decoded(None, visits, outcomes)])  # type: ignore[arg-type]
        join, watermark_ms = self.state.join, self.state.watermark.value_ms
        chances = {"bought": (0.5, 0.5)}
        for record in records:
            if isinstance(record, WebVisit):
                self.settled += join.visit(
                    record.visitor_id, "s", record.event_id, record.timestamp_ms, b"f" * 400, chances, watermark_ms
                )  # fmt: skip
            else:
                self.settled += join.outcome(record.visitor_id, record, watermark_ms)
        self.offset += len(records)
        self.state.read_through(Offsets(self.offset, 0))

    async def settle(self, watermark_ms: int) -> None:
        """Follow the watermark, page by page, each checkpointed: as the pipeline does."""
        for source in ("visits", "outcomes"):
            self.state.watermark.observe(source, watermark_ms, 0.0)  # type: ignore[arg-type]
        complete = False
        while not complete:
            complete = await self.recall.due(self.state)
            assert self.state.horizons_passed() or complete, "more is due, and nobody would look"
            self.settled += self.state.join.advance(self.state.watermark.value_ms)
            await self.checkpoint()

    async def checkpoint(self) -> None:
        made = self.state.checkpoint(0, 0)
        await self.store.commit(made)
        self.state.committed(made)
        self.most = max(self.most, len(self.state.join.pending))


Begin = Callable[..., Worker]


@pytest.fixture
async def worker(store_url: str) -> AsyncIterator[Begin]:
    made: list[Worker] = []

    def make(**changes: Any) -> Worker:
        made.append(Worker(settings_for(store_url, **changes)))
        return made[-1]

    yield make
    for one in made:
        await one.store.close()


def seen(visitor_id: str, at_ms: int, event_id: str = "") -> WebVisit:
    name = event_id or f"{visitor_id}-{at_ms}"
    return WebVisit(event_id=name, timestamp_ms=at_ms, visitor_id=visitor_id, url="https://a.example/")


def ordered(visitor_id: str, at_ms: int) -> VisitOutcome:
    return VisitOutcome(visitor_id=visitor_id, outcome="order", timestamp_ms=at_ms)


async def stored(store: Store) -> tuple[dict[bytes, bytes], dict[bytes, float]]:
    ledgers = await store.client.hgetall(store.key(0, "joins", 0))
    index = dict(await store.client.zrange(store.key(0, "due", 0), 0, -1, withscores=True))
    assert ledgers.keys() == index.keys()
    return ledgers, index


async def test_memory_is_bounded_and_everything_is_settled_once_whatever_comes_and_goes(
    worker: Begin, seed: int
) -> None:
    draw = random.Random(seed)
    one, truth = worker(), dict[str, bool]()
    await one.begin()
    for round_ in range(30):
        now_ms = 10_000 + 100 * round_
        visitors = [f"v{draw.randrange(400)}" for _ in range(30)]
        await one.read(*(seen(name, now_ms + n, f"{name}@{now_ms + n}") for n, name in enumerate(visitors)))
        truth |= {f"{name}@{now_ms + n}": False for n, name in enumerate(visitors)}
        for buyer in draw.sample(sorted({event.split("@")[0] for event in truth}), 3):
            await one.read(ordered(buyer, now_ms + 50))
            for event in truth:
                name, at = event.split("@")
                truth[event] |= name == buyer and int(at) <= now_ms + 50 <= int(at) + HORIZON_MS
        await one.settle(now_ms)
        assert len(one.state.join.pending) <= CACHE
        if draw.random() < 0.2:
            gone, one = one, worker()
            one.settled, one.most, one.offset = gone.settled, gone.most, gone.offset
            await one.begin()
            one.state.join.counts = gone.state.join.counts
    ledgers, _ = await stored(one.store)
    assert len(ledgers) > 5 * CACHE, "far more was pending than fits"
    await one.settle(100_000)
    assert {pair.event_id: pair.label for pair in one.settled} == truth
    assert len(one.settled) == len(truth)
    assert one.most <= CACHE
    assert await stored(one.store) == ({}, {})
    assert one.said == []


async def test_taking_up_a_partition_reads_a_page_however_much_is_pending(worker: Begin) -> None:
    first = worker()
    await first.begin()
    await first.read(*(seen(f"v{n}", 10_000 + n) for n in range(3_000)))
    await first.checkpoint()
    second = worker()
    state = await second.begin()
    assert state.join.pending.visitors == PAGE
    assert state.join.pending.through_ms == 10_009 + HORIZON_MS
    assert second.said == []
    await second.settle(100_000)
    assert sorted(pair.event_id for pair in second.settled) == sorted(f"v{n}-{10_000 + n}" for n in range(3_000))
    assert [pair.visit_ms for pair in second.settled] == sorted(pair.visit_ms for pair in second.settled)


async def test_more_who_are_due_in_one_millisecond_than_a_page_holds_are_all_settled(worker: Begin) -> None:
    one = worker()
    await one.begin()
    await one.read(*(seen(f"v{n}", 10_000) for n in range(5 * PAGE)))
    await one.checkpoint()
    await one.settle(100_000)
    assert len(one.settled) == 5 * PAGE


async def test_a_visitor_who_left_memory_comes_back_with_its_visit_and_with_its_outcome(worker: Begin) -> None:
    one = worker()
    await one.begin()
    await one.read(seen("v", 10_000))
    await one.checkpoint()
    await one.read(*(seen(f"other{n}", 10_000 + n) for n in range(CACHE)))
    await one.checkpoint()
    assert one.state.join.pending.unknown(["v"]) == ["v"]
    await one.read(ordered("v", 10_500))
    assert [(pair.event_id, pair.label) for pair in one.settled] == [("v-10000", True)]
    await one.checkpoint()
    await one.read(*(seen(f"another{n}", 10_000 + n) for n in range(CACHE)))
    await one.checkpoint()
    await one.read(seen("v", 10_400))
    assert [(pair.event_id, pair.label) for pair in one.settled[1:]] == [("v-10400", True)], (
        "the outcome was remembered"
    )


# -- an index that is missing ----------------------------------------------------------------------------------------


async def make_old(store: Store) -> None:
    """As the version before left it: ledgers, and no index."""
    await store.client.delete(store.key(0, "due", 0))
    await store.client.hdel(store.key(0, "position"), "indexed")


async def test_what_a_version_without_the_index_wrote_is_indexed_once(worker: Begin) -> None:
    before = worker()
    await before.begin()
    await before.read(*(seen(f"v{n}", 10_000 + n) for n in range(200)))
    await before.checkpoint()
    _, index = await stored(before.store)
    await make_old(before.store)
    first, second = worker(), worker()
    await first.begin()
    assert first.said == ["partition 0: the index of 200 visitors with pending visits was made anew"]
    assert await stored(first.store) == (await first.store.client.hgetall(first.store.key(0, "joins", 0)), index)
    assert 0 < await first.store.client.pttl(first.store.key(0, "due", 0)) <= first.store.ttl_ms
    await second.begin()
    assert second.said == []
    await second.settle(100_000)
    assert len(second.settled) == 200


async def test_a_commit_of_a_version_without_the_index_is_noticed_though_there_is_one(worker: Begin) -> None:
    """A rolling upgrade: it has been upgraded, downgraded, and upgraded again."""
    one = worker()
    await one.begin()
    await one.read(seen("a", 10_000), seen("b", 10_001))
    await one.checkpoint()
    key = one.store.key(0, "position")
    indexed = await one.store.client.hget(key, "indexed")
    await one.read(seen("a", 10_002))
    made = one.state.checkpoint(0, 0)
    await one.store.commit(made)
    await one.store.client.hset(key, "indexed", indexed)  # the version before leaves it as it was
    await one.store.client.hdel(one.store.key(0, "joins", 0), "b")  # and settles, and leaves the index as it was too
    again = worker()
    await again.begin()
    assert len(again.said) == 1
    assert set((await stored(again.store))[0]) == {b"a"}


async def test_other_horizons_make_another_index(worker: Begin) -> None:
    one = worker()
    await one.begin()
    await one.read(*(seen(f"v{n}", 10_000 + n) for n in range(3 * PAGE)))
    await one.checkpoint()
    shorter = worker(horizon_ms=100)
    await shorter.begin()
    await shorter.settle(10_500)
    assert len(shorter.settled) == 3 * PAGE, "due by the horizon of today"


async def test_an_index_is_not_made_for_a_partition_that_somebody_else_moves(worker: Begin) -> None:
    one, other = worker(), worker()
    await one.begin()
    await one.read(seen("a", 10_000))
    await one.checkpoint()
    old = await one.store.position(0)
    await other.begin()
    await other.read(seen("b", 10_000))
    await other.checkpoint()
    before = await stored(other.store)
    with pytest.raises(StaleOffset):
        await DueIndex(one.store).make(0, old, {"a": 1})
    assert await stored(other.store) == before
    await make_old(one.store)
    with pytest.raises(StoreError, match="partition 0 moved while it was taken up"):
        await one.recall.take_up(0, old, LOG)


async def test_a_ledger_that_cannot_be_read_is_said_once_and_the_rest_is_settled(worker: Begin) -> None:
    one = worker()
    await one.begin()
    await one.read(seen("a", 10_000), seen("b", 10_000))
    await one.checkpoint()
    await one.store.client.hset(one.store.key(0, "joins", 0), "a", b"\xc1 torn")
    again = worker()
    await again.begin()
    [sentence] = again.said
    assert sentence.startswith("partition 0: stored outcomes of 6 bytes are not in a layout this version reads")
    await again.settle(100_000)
    assert [pair.event_id for pair in again.settled] == ["b-10000"]
    assert await stored(again.store) == ({}, {})


async def test_what_a_pending_visit_costs_in_the_store(worker: Begin) -> None:
    """The row of features, and little more: 60 bytes of ledger, and an entry of the index a visitor."""
    one = worker()
    await one.begin()
    visitors = 1_000
    await one.read(*(seen(f"visitor-{n:016}", 1_700_000_000_000 + n) for n in range(visitors)))
    await one.checkpoint()
    ledgers, _ = await stored(one.store)
    session_and_event = len("s") + len("visitor-0000000000000000-1700000000000")
    encoded = sum(map(len, ledgers.values())) / visitors
    assert encoded < 400 + session_and_event + 60
    held = await one.store.client.memory_usage(one.store.key(0, "due", 0), samples=0)
    assert held / visitors < 160


# -- with a worker ---------------------------------------------------------------------------------------------------


@pytest.fixture
def system(
    tmp_path: Path, embedded_kafka: str, store_url: str, make_topics: "Callable[..., Topics]"
) -> Iterator[System]:
    names = make_topics(embedded_kafka, 2)
    settings = 'pending_cache = 100\ncheckpoint_interval = "100ms"\nmax_in_flight = 1_000\n' + BOUGHT
    with System(tmp_path, embedded_kafka, store_url, names, settings, partitions=2) as running:
        yield running


def test_a_worker_with_little_room_counts_what_one_with_enough_would(system: System, seed: int) -> None:
    """Killed in the middle; and at the end all that is pending is due at once, in many pages."""
    system.publish(traffic(system.names, seed, 4_000, visitors=2_000))
    first = system.start()
    system.until_scored(1_500)
    first.kill()
    late = BEGIN_MS + 2_000 * 4_000 + 600 * MINUTE_MS
    clocks = [visit(system.names.visits, f"clock{n}", f"clock{n}", late, "https://a.example/") for n in range(8)]
    system.publish(clocks)
    system.start()
    settled(system)
