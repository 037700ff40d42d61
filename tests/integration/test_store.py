"""The store by its one rule: a partition's state and its offsets move together, by compare-and-set, or not at all."""

import asyncio
import dataclasses
import socket
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from deploy.embedded import EmbeddedStore
from streams import store as store_module
from streams.due import DueIndex
from streams.errors import StaleOffset, StoreError
from streams.settings import Settings
from streams.store import Checkpoint, LogIdentity, Position, Store
from tests.waiting import eventually

LOG = LogIdentity("cluster", "visits-id", "outcomes-id")
TTL_MS = 3_600_000


def settings_for(url: str) -> Settings:
    return Settings(kafka="", redis=url, group="shop", visitor_ttl_ms=TTL_MS)


@pytest.fixture
async def open_store(store_url: str) -> AsyncIterator[Callable[[], Store]]:
    """Opens stores on the emptied Valkey: each call is another worker."""
    opened: list[Store] = []

    def open_one() -> Store:
        opened.append(Store(settings_for(store_url)))
        return opened[-1]

    yield open_one
    for one in opened:
        await one.close()


@pytest.fixture
def store(open_store: Callable[[], Store]) -> Store:
    return open_store()


def step_after(position: Position, records: int = 1, **changes: Any) -> Checkpoint:
    """The checkpoint that a worker at `position` makes after some records."""
    to = dataclasses.replace(
        position,
        mark=uuid.uuid4().hex,
        step=position.step + 1,
        visits=position.visits + records,
        log=LOG,
        summary=b"summary",
    )
    return Checkpoint(2, position.mark or None, to, **changes)


def after(checkpoint: Checkpoint) -> Position:
    """Where the worker stands once this is committed."""
    to = checkpoint.position
    return dataclasses.replace(to, last_lesson=to.step) if checkpoint.lesson else to


async def content(store: Store) -> dict[bytes, object]:
    """Everything in the store, for comparison."""
    found: dict[bytes, object] = {}
    async for key in store.client.scan_iter():
        kind = await store.client.type(key)
        if kind == b"hash":
            found[key] = await store.client.hgetall(key)
        elif kind == b"stream":
            found[key] = await store.client.xrange(key)
        elif kind == b"zset":
            found[key] = await store.client.zrange(key, 0, -1, withscores=True)
        else:
            found[key] = kind
    return found


def unknown(position: Position) -> bool:
    """Whether the store knows nothing: only where steps would begin is given."""
    return dataclasses.replace(position, step=0) == Position()


# -- a checkpoint ----------------------------------------------------------------------------------------------------


async def test_what_is_committed_comes_back(store: Store) -> None:
    assert unknown(await store.position(2))
    checkpoint = step_after(
        Position(epoch=3, outcomes=7),
        visitors={"anna": b"a", "bert": b"\x00\xff"},
        joins={"anna": b"pending", "carl": None},
        due={"anna": 1_700_000_000_001},
        lesson=b"lesson",
    )
    await store.commit(checkpoint)
    assert await store.position(2) == after(checkpoint)
    assert await store.visitors(2, 3, ["anna", "nobody", "bert"]) == {"anna": b"a", "bert": b"\x00\xff"}
    assert [entry async for entry in store.joins(2, 3)] == [("anna", b"pending")]
    assert await store.known(2, 3, ["bert", "x"], ["x", "anna"]) == ({"bert": b"\x00\xff"}, {"anna": b"pending"})
    assert await DueIndex(store).page(2, 3, 0, 10) == [("anna", 1_700_000_000_001)]
    assert await DueIndex(store).page(2, 4, 0, 10) == []
    assert await store.visitors(2, 4, ["anna"]) == {}, "another epoch is another log"
    assert [entry async for entry in store.joins(2, 4)] == []
    assert unknown(await store.position(1)), "another partition"


async def test_a_join_that_is_settled_is_deleted(store: Store) -> None:
    first = step_after(Position(), joins={"anna": b"1", "bert": b"2"}, due={"anna": 5, "bert": 5})
    await store.commit(first)
    await store.commit(step_after(after(first), joins={"anna": None, "bert": b"3"}, due={"bert": 6}))
    assert [entry async for entry in store.joins(2, 0)] == [("bert", b"3")]
    assert await DueIndex(store).page(2, 0, 0, 10) == [("bert", 6)]


async def test_the_index_is_read_in_order_from_a_moment_on(store: Store) -> None:
    due = {f"v{n}": 100 - n // 2 for n in range(20)}
    await store.commit(step_after(Position(), joins=dict.fromkeys(due, b"j"), due=due))
    index = DueIndex(store)
    assert await index.page(2, 0, -(2**63), 3) == [("v18", 91), ("v19", 91), ("v16", 92)]
    assert await index.page(2, 0, 99, 10) == [("v2", 99), ("v3", 99), ("v0", 100), ("v1", 100)]
    assert await index.is_complete(2, 0)
    assert await index.is_complete(2, 1), "of another epoch, where nothing is pending"
    await store.client.zrem(store.key(2, "due", 0), "v7")
    assert not await index.is_complete(2, 0)


async def test_a_worker_that_lost_its_partition_is_refused_and_nothing_is_written(
    open_store: Callable[[], Store],
) -> None:
    zombie, owner = open_store(), open_store()
    first = step_after(Position())
    await zombie.commit(first)
    taken_over = step_after(await owner.position(2), records=5, visitors={"anna": b"new"})
    await owner.commit(taken_over)
    await owner.commit(step_after(after(taken_over), lesson=b"l"))
    before = await content(owner)
    late = step_after(after(first), visitors={"anna": b"old"}, joins={"anna": b"old"}, due={"anna": 1}, lesson=b"old")
    with pytest.raises(StaleOffset, match="partition 2: the store moved on since this worker read from it"):
        await zombie.commit(late)
    assert await content(owner) == before


@pytest.mark.parametrize("workers", [2, 5])
async def test_of_workers_that_race_from_one_step_exactly_one_wins(
    open_store: Callable[[], Store], workers: int
) -> None:
    stores = [open_store() for _ in range(workers)]
    position = Position()
    for _ in range(20):
        steps = [step_after(position, visitors={"anna": str(n).encode()}) for n in range(workers)]
        verdicts = await asyncio.gather(
            *(one.commit(step) for one, step in zip(stores, steps, strict=True)), return_exceptions=True
        )
        assert all(verdict is None or isinstance(verdict, StaleOffset) for verdict in verdicts), verdicts
        (winner,) = [n for n, verdict in enumerate(verdicts) if verdict is None]
        assert await stores[0].visitors(2, 0, ["anna"]) == {"anna": str(winner).encode()}
        position = after(steps[winner])


class CutAfterExec:
    """Stands between a client and Redis, and cuts the connection once EXEC has reached Redis and before its answer."""

    def __init__(self, to_port: int) -> None:
        self._to_port = to_port
        self.armed = False
        self.cuts = 0

    async def start(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def stop(self) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_redis, to_redis = await asyncio.open_connection("127.0.0.1", self._to_port)
        executing = asyncio.Event()

        async def requests() -> None:
            while data := await reader.read(65_536):
                if self.armed and b"EXEC\r\n" in data:
                    executing.set()
                to_redis.write(data)
            to_redis.close()

        async def answers() -> None:
            while data := await from_redis.read(65_536):
                if executing.is_set():  # the answer shows that Redis has done it
                    self.armed = False
                    self.cuts += 1
                    break
                writer.write(data)
            writer.close()
            to_redis.close()

        await asyncio.gather(requests(), answers(), return_exceptions=True)


async def test_a_commit_whose_answer_was_lost_is_recognised_and_not_done_twice(
    open_store: Callable[[], Store], store_url: str
) -> None:
    cut = CutAfterExec(int(store_url.rsplit(":", 1)[1].split("/")[0]))
    port = await cut.start()
    worker, witness = Store(settings_for(f"redis://127.0.0.1:{port}/0")), open_store()
    try:
        first = step_after(Position(), visitors={"anna": b"1"}, lesson=b"one")
        await worker.commit(first)
        cut.armed = True
        second = step_after(after(first), visitors={"anna": b"2"}, lesson=b"two")
        with pytest.raises(StoreError, match="the checkpoint of partition 2 got no answer from Redis"):
            await worker.commit(second)
        assert cut.cuts == 1
        assert await witness.position(2) == after(second), "it had arrived"
        before = await content(witness)
        await worker.commit(second)
        assert await content(witness) == before, "recognised"
        with pytest.raises(StaleOffset):
            await witness.commit(step_after(after(first), visitors={"anna": b"other"}))
        assert await content(witness) == before, "another worker's step of the same number is not ours"
        await worker.commit(step_after(after(second)))
        assert (await witness.position(2)).step == 3
    finally:
        await worker.close()
        cut.stop()


async def test_an_emptied_store_refuses_the_old_worker_and_takes_a_new_one(open_store: Callable[[], Store]) -> None:
    old, new = open_store(), open_store()
    first = step_after(Position())
    await old.commit(first)
    second = step_after(after(first), lesson=b"l")
    await old.commit(second)
    await old.client.flushall()
    with pytest.raises(StaleOffset, match="the store holds nothing since this worker read from it"):
        await old.commit(step_after(after(second)))
    assert await content(new) == {}
    found = await new.position(2)
    assert unknown(found)
    assert found.step > after(second).step, "whoever followed the lessons sees the new ones as new"
    await new.commit(step_after(found, records=9))
    assert (await old.position(2)).visits == 9


async def test_a_step_of_the_same_number_from_another_life_of_the_store_is_not_the_one_that_was_read(
    open_store: Callable[[], Store],
) -> None:
    """The store lost its last writes, and another worker made steps of the same numbers since."""
    old, new = open_store(), open_store()
    first = step_after(Position())
    await old.commit(first)
    lost = step_after(after(first))
    await new.commit(step_after(after(first), records=5))
    with pytest.raises(StaleOffset):
        await old.commit(step_after(after(lost), visitors={"anna": b"of a history that is gone"}))
    assert await new.visitors(2, 0, ["anna"]) == {}


async def test_steps_go_on_after_lessons_whose_position_was_deleted(store: Store) -> None:
    checkpoint = step_after(dataclasses.replace(Position(), step=41), lesson=b"l")
    await store.commit(checkpoint)
    await store.client.delete(store.key(2, "position"))
    found = await store.position(2)
    assert (found.mark, found.last_lesson) == ("", 42)
    assert found.step >= 42
    following = step_after(found, lesson=b"m")
    await store.commit(following)
    assert [(entry.step, entry.after) for entry in await store.lessons(2, 0)] == [
        (42, 0),
        (following.position.step, 42),
    ]


# -- visitors --------------------------------------------------------------------------------------------------------


class Clock:
    """Stands for the module `time` in the store: it advances when told."""

    def __init__(self, now_s: float) -> None:
        self.now_s = now_s

    def time(self) -> float:
        return self.now_s


async def test_a_visitor_is_read_for_one_more_generation_and_then_gone(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(10 * TTL_MS / 1000)
    monkeypatch.setattr(store_module, "time", clock)
    first = step_after(Position(), visitors={"anna": b"1", "bert": b"1"})
    await store.commit(first)
    clock.now_s += TTL_MS / 1000
    assert await store.visitors(2, 0, ["anna", "bert"]) == {"anna": b"1", "bert": b"1"}
    await store.commit(step_after(after(first), visitors={"anna": b"2"}))
    assert await store.visitors(2, 0, ["anna", "bert"]) == {"anna": b"2", "bert": b"1"}, "the newer one counts"
    clock.now_s += TTL_MS / 1000
    assert await store.visitors(2, 0, ["anna", "bert"]) == {"anna": b"2"}, "bert stayed away"
    clock.now_s += TTL_MS / 1000
    assert await store.visitors(2, 0, ["anna", "bert"]) == {}


async def test_many_visitors_at_once(store: Store) -> None:
    states = {f"visitor-{n}-é": n.to_bytes(4, "big") for n in range(20_000)}
    await store.commit(step_after(Position(), visitors=states, joins=dict(states)))
    assert await store.visitors(2, 0, [*states, "nobody"]) == states
    assert await store.visitors(2, 0, []) == {}
    assert {name: blob async for name, blob in store.joins(2, 0)} == states


@pytest.mark.parametrize("visitor_id", ["", "\x00", "a:{b}", "\u202e", "😀" * 100])
async def test_any_visitor_id_keeps_its_state(store: Store, visitor_id: str) -> None:
    await store.commit(step_after(Position(), visitors={visitor_id: b"v"}, joins={visitor_id: b"j"}))
    assert await store.visitors(2, 0, [visitor_id]) == {visitor_id: b"v"}
    assert [entry async for entry in store.joins(2, 0)] == [(visitor_id, b"j")]


# -- lessons and snapshots -------------------------------------------------------------------------------------------


async def test_lessons_are_a_chain_in_order_that_can_be_read_in_parts_and_trimmed(store: Store) -> None:
    position = Position()
    for step in range(1, 13):
        checkpoint = step_after(position, lesson=f"{step}".encode() if step % 2 == 0 else b"")
        await store.commit(checkpoint)
        position = after(checkpoint)
    assert (await store.position(2)).last_lesson == 12
    everything = await store.lessons(2, 0)
    assert [(entry.step, entry.after, entry.blob) for entry in everything] == [
        (2, 0, b"2"), (4, 2, b"4"), (6, 4, b"6"), (8, 6, b"8"), (10, 8, b"10"), (12, 10, b"12"),
    ]  # fmt: skip
    assert [entry.step for entry in await store.lessons(2, 4, limit=2)] == [6, 8]
    assert await store.lessons(2, 12) == []
    await store.trim_lessons({2: 6, 3: 100})
    assert await store.lessons(2, 0) == everything[3:]
    assert everything[3].after == 6, "a reader from step 0 sees that lessons are missing"


async def test_two_snapshots_are_kept_and_a_torn_one_is_passed_over(store: Store) -> None:
    for n in range(3):
        await store.write_snapshot(f"model-{n}".encode(), {0: n, 5: 10 + n})
    found = await store.snapshots()
    assert [(stamp, blob) for _, stamp, blob in found] == [({0: 2, 5: 12}, b"model-2"), ({0: 1, 5: 11}, b"model-1")]
    key = store.key("model", "snapshot")
    newest = await store.client.lindex(key, 0)
    for torn in (newest[:-3], b"", b"\xff\x00", b"\x93\x01\x80"):
        await store.client.lset(key, 0, torn)
        assert [blob for _, _, blob in await store.snapshots()] == [b"model-1"]


# -- what lies where -------------------------------------------------------------------------------------------------


async def test_every_key_has_a_time_to_live_and_a_partition_has_one_hash_tag(store: Store) -> None:
    checkpoint = step_after(Position(), visitors={"a": b"1"}, joins={"a": b"1", "b": None}, due={"a": 1}, lesson=b"l")
    await store.commit(checkpoint)
    await store.write_snapshot(b"model", {2: 1})
    await store.beat("worker-1", b"report")
    assert await store.reports() == [b"report"]
    keys = [key.decode() async for key in store.client.scan_iter()]
    of_partition = [key for key in keys if key.startswith("url2vec:{web-visits-shop:2}:")]
    assert len(of_partition) == 5, "position, visitors, joins, due, lessons"
    assert len(keys) == 8, "and snapshot, index of workers, one report"
    for key in keys:
        left_ms = await store.client.pttl(key)
        assert 0 < left_ms <= 2 * TTL_MS, key
    await store.leave("worker-1")
    assert await store.reports() == []


async def test_a_worker_that_says_nothing_is_gone(store: Store) -> None:
    await store.beat("quick", b"1", alive_for_s=0.001)
    await store.beat("slow", b"2")

    async def gone() -> bool:
        return await store.reports() == [b"2"]

    await eventually(gone, what="the report has expired")


# -- Redis away ------------------------------------------------------------------------------------------------------


def calls(store: Store) -> dict[str, Callable[[], Any]]:
    async def joins() -> list[object]:
        return [entry async for entry in store.joins(0, 0)]

    return {
        "ping": store.ping,
        "position": lambda: store.position(0),
        "joins": joins,
        "visitors": lambda: store.visitors(0, 0, ["a"]),
        "due": lambda: DueIndex(store).page(0, 0, 0, 1),
        "complete": lambda: DueIndex(store).is_complete(0, 0),
        "make": lambda: DueIndex(store).make(0, Position(), {"a": 1}),
        "commit": lambda: store.commit(step_after(Position())),
        "lessons": lambda: store.lessons(0, 0),
        "add_import": lambda: store.add_import(b"i"),
        "trim_lessons": lambda: store.trim_lessons({0: 1}),
        "write_snapshot": lambda: store.write_snapshot(b"m", {}),
        "snapshots": store.snapshots,
        "beat": lambda: store.beat("w", b"r"),
        "leave": lambda: store.leave("w"),
        "reports": store.reports,
    }


async def all_say(store: Store, what: str) -> None:
    for name, call in calls(store).items():
        with pytest.raises(StoreError) as raised:
            await call()
        sentence = str(raised.value)
        assert what in sentence.lower(), f"{name}: {sentence}"
        assert "secret" not in sentence, name
        assert "\n" not in sentence, name


async def test_a_store_that_goes_away_is_one_sentence_without_the_password_and_comes_back(tmp_path: Path) -> None:
    server = EmbeddedStore(tmp_path)
    server.start()
    try:
        with redis.Redis(port=server.port) as admin:
            admin.execute_command("ACL", "SETUSER", "worker", "on", ">secret", "~*", "&*", "+@all")
        store = Store(settings_for(f"redis://worker:secret@127.0.0.1:{server.port}/0"))
        wrong = Store(settings_for(f"redis://worker:secret-not@127.0.0.1:{server.port}/0"))
        first = step_after(Position(), visitors={"anna": b"1"})
        await store.commit(first)
        await all_say(wrong, "invalid username-password")
        await wrong.close()
        server.stop()
        with pytest.raises(StoreError, match="closed"):  # the connection that was open
            await store.ping()
        await all_say(store, "connection refused")
        server.start()
        with redis.Redis(port=server.port) as admin:  # users live in memory, state on disk
            admin.execute_command("ACL", "SETUSER", "worker", "on", ">secret", "~*", "&*", "+@all")
        assert await store.position(2) == after(first)
        await store.commit(step_after(after(first)))
        await store.close()
    finally:
        server.stop()


async def test_a_store_that_takes_no_writes_is_a_store_error_and_nothing_is_written_in_part(
    open_store: Callable[[], Store], tmp_path: Path
) -> None:
    server = EmbeddedStore(tmp_path)
    server.start()
    store = Store(settings_for(server.redis))
    try:
        first = step_after(Position(), visitors={"anna": b"1"})
        await store.commit(first)
        before = await content(store)
        await store.client.config_set("maxmemory", "1")
        with pytest.raises(StoreError, match="maxmemory"):
            await store.commit(step_after(after(first), visitors={"anna": b"2"}, lesson=b"l"))
        await store.client.config_set("maxmemory", "0")
        assert await content(store) == before
        await store.commit(step_after(after(first)))
    finally:
        await store.close()
        server.stop()


async def test_nobody_on_the_port_is_a_store_error() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    store = Store(settings_for(f"redis://:secret@127.0.0.1:{port}/0"))
    await all_say(store, "connection refused")
    await store.close()


# -- commits, crashes, zombies ---------------------------------------------------------------------------------------

VISITORS = 3
# Mostly reading and committing, so that there is something to spoil.
kinds = ["read", "commit", "read", "commit", "lost answer", "crash", "empty"]
moves = st.lists(st.tuples(st.sampled_from(kinds), st.integers(0, 1), st.integers(1, 3)), max_size=40)


class ModelWorker:
    """Counts records per visitor, as the pipeline keeps sessions: record n of the log is visitor n % VISITORS's."""

    def __init__(self, url: str) -> None:
        self.store = Store(settings_for(url))
        self.loaded = False

    async def load(self) -> None:
        self.position = await self.store.position(2)
        self.read_through = self.position.visits
        names = [str(n) for n in range(VISITORS)]
        found = await self.store.visitors(2, 0, names)
        self.counts = {name: int(found.get(name, b"0")) for name in names}
        self.dirty: set[str] = set()
        self.unsaid: Checkpoint | None = None
        self.loaded = True

    def read(self, records: int) -> None:
        for offset in range(self.read_through, self.read_through + records):
            name = str(offset % VISITORS)
            self.counts[name] += 1
            self.dirty.add(name)
        self.read_through += records

    def checkpoint(self) -> Checkpoint:
        changed = {name: str(self.counts[name]).encode() for name in self.dirty}
        pending = {name: blob if int(blob) % 2 else None for name, blob in changed.items()}
        lesson = b"%d" % (self.read_through - self.position.visits)
        return step_after(
            self.position, self.read_through - self.position.visits, visitors=changed, joins=pending, lesson=lesson,
            due={name: int(blob) for name, blob in pending.items() if blob is not None},
        )  # fmt: skip


async def check_against_the_log(store: Store) -> None:
    """The state is that of exactly the records before the position."""
    position = await store.position(2)
    expected = [len(range(n, position.visits, VISITORS)) for n in range(VISITORS)]
    found = await store.visitors(2, 0, [str(n) for n in range(VISITORS)])
    assert [int(found.get(str(n), b"0")) for n in range(VISITORS)] == expected
    pending = {name: int(blob) async for name, blob in store.joins(2, 0)}
    assert pending == {str(n): count for n, count in enumerate(expected) if count % 2}
    assert dict(await DueIndex(store).page(2, 0, 0, 10)) == pending
    taught = await store.lessons(2, 0, limit=1_000)
    assert sum(int(entry.blob) for entry in taught) == position.visits
    assert [entry.after for entry in taught] == [0, *(entry.step for entry in taught)][: len(taught)]


async def interleave(url: str, script: list[tuple[str, int, int]]) -> None:
    workers = [ModelWorker(url) for _ in range(2)]
    witness = Store(settings_for(url))
    await witness.client.flushall()
    try:
        for move, who, records in script:
            worker = workers[who]
            if move == "empty":
                await witness.client.flushall()
            elif move == "crash":
                await worker.store.close()
                workers[who] = ModelWorker(url)
            elif not worker.loaded:
                await worker.load()
            elif move == "read" and worker.unsaid is None:
                worker.read(records)
            else:
                checkpoint = worker.unsaid or worker.checkpoint()
                try:
                    await worker.store.commit(checkpoint)
                except StaleOffset:
                    worker.loaded = False
                    continue
                if move == "lost answer":
                    worker.unsaid = checkpoint  # it does not know that it arrived: it will commit the same again
                    continue
                worker.position, worker.dirty, worker.unsaid = after(checkpoint), set(), None
            await check_against_the_log(witness)
        await check_against_the_log(witness)
    finally:
        for worker in workers:
            await worker.store.close()
        await witness.close()


@given(script=moves)
@hypothesis_settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_workers_do_the_state_is_that_of_the_records_before_the_position(
    store_url: str, script: list[tuple[str, int, int]]
) -> None:
    asyncio.run(interleave(store_url, script))
