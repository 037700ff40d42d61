"""A store that has lost its last writes leaves nothing of them behind: not in a worker's memory, not in a model.

What `test_state_model` found or might have, one step at a time. `lost` puts the store back to what it held; a Redis that
does so is one with `appendfsync everysec` whose machine died, or one that failed over.
"""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from faust.types import TP

from streams.errors import StaleOffset
from streams.partition import Summary
from streams.store import Store
from tests.integration.test_state_model import what_is_stored
from tests.one_partition import BEGIN_MS, OUTCOMES, VISITS, Topics, Worker, settings_for, visit

Stored = dict[bytes, bytes]


@pytest.fixture
def topics() -> Topics:
    made = Topics()
    for n in range(6):
        made.write(VISITS, visit("v", BEGIN_MS + n * 1_000, f"e{n}"))
    return made


@pytest.fixture
async def new(store_url: str, topics: Topics) -> AsyncIterator[Callable[[], Worker]]:
    workers: list[Worker] = []

    def start() -> Worker:
        workers.append(Worker(settings_for(store_url, "lost"), topics))
        return workers[-1]

    yield start
    for worker in workers:
        await worker.die()


async def held(store: Store) -> Stored:
    return {key: await store.client.dump(key) for key in await store.client.keys("*")}


async def lost(store: Store, before: Stored) -> None:
    await store.client.flushall()
    for key, dumped in before.items():
        await store.client.restore(key, 0, dumped)


async def read(worker: Worker, visits: int) -> None:
    worker.fetch(VISITS, visits)
    await worker.work()


async def share(worker: Worker) -> None:
    worker.pipeline._follow_due = 0.0
    await worker.checkpoint()
    worker.pipeline._follow_due = float("inf")


async def in_store(store: Store) -> int:
    """How many visits a new model would learn."""
    visits: int = (await what_is_stored(store))["taught"][0]
    return visits


async def test_who_takes_up_forgets_what_the_store_has_lost(new: Callable[[], Worker]) -> None:
    one, other = new(), new()
    await one.take_up(1)
    before = await held(one.store)
    for worker in (one, other):
        await read(worker, 2)
        await worker.checkpoint()
        await one.let_go()
        if worker is one:
            await other.take_up(2)
            await other.let_go()
            await lost(one.store, before)
            await other.take_up(3)
    assert other.register.visits == await in_store(other.store) == 2


@pytest.mark.parametrize("another_came", [False, True])
async def test_who_follows_forgets_what_the_store_has_lost(new: Callable[[], Worker], another_came: bool) -> None:
    owner, follower = new(), new()
    await follower.take_up(1)
    await follower.let_go()
    await owner.take_up(2)
    await read(owner, 2)
    await owner.checkpoint()
    before = await held(owner.store)
    await read(owner, 3)
    await owner.checkpoint()
    await share(follower)
    assert follower.register.visits == 5
    await lost(owner.store, before)
    if another_came:
        await read(owner, 1)
        await owner.checkpoint()  # refused, and read again
        await read(owner, 1)
        await owner.checkpoint()
    await share(follower)
    assert follower.register.visits == await in_store(owner.store) == (3 if another_came else 2)


async def test_an_owner_with_nothing_to_write_notices(new: Callable[[], Worker], topics: Topics) -> None:
    owner = new()
    await owner.take_up(1)
    await read(owner, 2)
    await owner.checkpoint()
    before = await held(owner.store)
    await read(owner, 4)
    await owner.checkpoint()
    await lost(owner.store, before)
    await share(owner)
    assert owner.pipeline.states[0].visits == 2, "it reads them again"
    assert owner.register.visits == 2
    await owner.drain()
    assert list(dict.fromkeys(topics.answered)) == [0, 1, 2, 3, 4, 5]
    assert owner.register.visits == await in_store(owner.store) == 6


async def test_what_a_successor_wrote_does_not_come_back_with_a_zombie(new: Callable[[], Worker]) -> None:
    """The zombie meets a visitor in the state of its successor, and the store then goes back to where the zombie stands."""
    zombie, successor = new(), new()
    await zombie.take_up(1)
    before = await held(zombie.store)
    await successor.take_up(2)
    await read(successor, 3)
    await successor.checkpoint()
    await read(zombie, 3)
    await lost(zombie.store, before)
    await zombie.checkpoint()
    await zombie.drain()
    counters = Summary.of(await zombie.store.position(0)).counters
    assert (counters.visits_scored, counters.duplicates) == (6, 0)


async def test_what_is_read_of_an_owned_partition_is_of_its_position(new: Callable[[], Worker]) -> None:
    one = new()
    await one.take_up(1)
    await read(one, 2)
    await one.checkpoint()
    mark = (await one.store.position(0)).mark
    assert (await one.store.known(0, 0, ["v"], [], mark))[0].keys() == {"v"}
    with pytest.raises(StaleOffset, match="the store moved on"):
        await one.store.known(0, 0, ["v"], [], "another")
    await one.store.client.flushall()
    with pytest.raises(StaleOffset, match="the store holds nothing"):
        await one.store.at(0, mark)
    await one.store.at(0, "")


async def test_a_model_that_is_built_again_keeps_what_was_taught_since_the_checkpoint(
    new: Callable[[], Worker],
) -> None:
    """As where another partition of the same worker was refused, and the next batch was faster than the repair."""
    worker = new()
    await worker.take_up(1)
    await read(worker, 2)
    await worker.checkpoint()
    await read(worker, 3)
    await worker.pipeline.mend_model()
    assert worker.register.visits == 5
    await worker.checkpoint()
    assert worker.register.visits == await in_store(worker.store) == 5


async def test_partitions_overtaken_one_after_the_other_are_all_read_again(
    new: Callable[[], Worker], topics: Topics
) -> None:
    worker = new()
    await worker.take_up(1)
    worker.pipeline.drop([0])
    second = {TP(VISITS.topic, 1), TP(OUTCOMES.topic, 1)}
    topics.read.update({tp: [] for tp in second})
    async with worker.pipeline.lock:
        await worker.ownership._reread({VISITS, OUTCOMES})
        await asyncio.sleep(0)
        await worker.ownership._reread(second)
    await worker.settle_down()
    assert set(worker.pipeline.states) == {0, 1}


async def test_a_follower_whose_lessons_were_trimmed_notices_though_none_comes_after_them(
    new: Callable[[], Worker],
) -> None:
    owner, follower = new(), new()
    await follower.take_up(1)
    await follower.let_go()
    await owner.take_up(2)
    await read(owner, 2)
    await owner.checkpoint()
    await owner.pipeline.replica.write_snapshot()
    await owner.store.trim_lessons(owner.pipeline.replica.applied)
    await share(follower)
    assert follower.register.visits == 2


async def test_a_snapshot_that_holds_a_lost_lesson_is_not_used(new: Callable[[], Worker]) -> None:
    """As where a Cluster keeps it on another node than the partition that went back."""
    owner, later = new(), new()
    await owner.take_up(1)
    await read(owner, 2)
    await owner.checkpoint()
    before = await held(owner.store)
    await read(owner, 2)
    await owner.checkpoint()
    await owner.pipeline.replica.write_snapshot()
    snapshot = await held(owner.store)
    key = owner.store.key("model", "snapshot").encode()
    await lost(owner.store, before | {key: snapshot[key]})
    await later.take_up(2)
    assert later.register.visits == 2
    assert any("holds lessons that the store lost" in sentence for sentence in later.said)


async def test_a_lesson_that_comes_and_goes_while_a_partition_is_taken_up_is_forgotten(
    new: Callable[[], Worker],
) -> None:
    one, late = new(), new()
    await one.take_up(1)
    before = await held(one.store)
    await read(one, 2)
    catch_up = late.ownership._catch_up

    async def meanwhile() -> None:
        late.ownership._catch_up = catch_up  # type: ignore[method-assign]
        await one.checkpoint()  # after `late` has read the position, before it reads the lessons
        await catch_up()
        await lost(one.store, before)

    late.ownership._catch_up = meanwhile  # type: ignore[method-assign]
    await late.take_up(2)
    assert late.register.visits == 0
    await late.drain()
    assert late.register.visits == await in_store(late.store) == 6
