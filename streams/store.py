"""Redis, by one rule: everything of a Kafka partition lives in one hash slot, with the offsets that produced it.

The rule, and what follows from it
----------------------------------
A checkpoint of a partition is one transaction: sessions, pending examples, counters, what was learned, and the next
offsets of both topics move together or not at all. It is a compare-and-set: the store must still hold the `mark` that the
worker moved from, else `StaleOffset`. So

* after a crash a worker resumes at exactly the records whose effects are not in the state;
* a worker that lost its partition and does not know it yet (a long pause, a cut network) is refused, with no clock and no
  lock service involved;
* a store that lost its last writes (a failover, a second of its log) holds an older step; the worker is refused too,
  reads the state that is there, and reads the records after it again.

What a worker reads of a partition that it owns is compared likewise: a visitor's state counts only where the store is at the
mark of the offsets that the worker goes on from. Else a worker that had lost its partition would read what its successor
wrote, and carry that into a store that forgot the successor and takes the worker for right.

A commit whose answer was lost (the connection broke during EXEC) is asked about before it is tried again: the store
holds the mark of the step that it took.

Keys, all with a time to live, T = `{<visits topic>-<group>:<partition>}`
------------------------------------------------------------------------
url2vec:T:position            hash    step, mark, offsets, identity of the log, summary
url2vec:T:visitors:<e>:<g>    hash    visitor → session state; g counts times to live: a visitor is written to the newest
                                      generation and read from the newest two, so that a visitor who stays away expires with
                                      its whole generation, without a time to live per visitor (Redis 6 and 7 have none)
url2vec:T:joins:<e>           hash    visitor → scored visits whose outcome is not known yet
url2vec:T:due:<e>             zset    each visitor of `joins`, by the event time at which to look at it (streams.due)
url2vec:T:lessons             stream  what the partition taught, one entry a step; other workers and new ones learn it
Imported vectors are the lessons of a partition that no topic has, IMPORTS: replicas follow, stamp and trim them alike.

<e>, the epoch, counts how often the topic was made anew: offsets, sessions and pending examples belong to a log and start
afresh with it; what was learned, and the counters, stay.
"""

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
import redis.exceptions
from redis.exceptions import RedisError, WatchError
from xxhash import xxh3_64_hexdigest

from streams.errors import StaleOffset, StoreError
from streams.redis_client import RedisClient, check, reason
from streams.settings import Settings

log = logging.getLogger("url2vec")

Answer = TypeVar("Answer")

NAMESPACE = "url2vec"
IMPORTS = -1  # the number under which imported vectors stand among partitions

_UNANSWERED = (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError)


class LogIdentity(msgspec.Struct, frozen=True):
    """Which log the offsets belong to: an offset means nothing without it."""

    cluster: str
    visits_topic: str
    outcomes_topic: str


@dataclass(frozen=True)
class Position:
    """Where a partition stands. `step` grows by one a checkpoint; `mark` is empty when the store knows nothing of it."""

    mark: str = ""  # of this step alone, at random: a step's number comes again after a store has lost its last writes
    step: int = 0
    epoch: int = 0
    visits: int = 0  # next offset to read of web-visits
    outcomes: int = 0  # next offset to read of visit-outcomes
    log: LogIdentity | None = None
    last_lesson: int = 0  # the step whose lesson is the newest in the stream
    summary: bytes = b""  # counters, watermark and progressive metrics, as the pipeline encodes them


@dataclass
class Checkpoint:
    """What one step of a partition writes.

    `position` is the new one, `expected` the mark of the position that the store must still hold (None: nothing at all).
    """

    partition: int
    expected: str | None
    position: Position
    visitors: Mapping[str, bytes] = field(default_factory=dict)
    joins: Mapping[str, bytes | None] = field(default_factory=dict)  # None deletes
    due: Mapping[str, int] = field(
        default_factory=dict
    )  # of visitors in `joins` that are new there, or when it changed
    lesson: bytes = b""


@dataclass(frozen=True)
class LessonEntry:
    """One entry of a partition's stream of lessons. `after` is the step of the entry before it."""

    step: int
    after: int
    blob: bytes


class Store:
    """The state in Redis, whatever servers that is. Every method raises StoreError when Redis is away or refuses."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.ttl_ms = settings.visitor_ttl_ms * 2
        self.redis = RedisClient(settings.redis)
        self.client: Any = self.redis.first  # of a Cluster: the node of the address
        self._is_checked = False

    async def close(self) -> None:
        """Close the connections."""
        await self.redis.aclose()

    async def ask(self, key: str, job: Callable[[Any], Awaitable[Answer]], what: str) -> Answer:
        """What `job` gives on the server that holds `key`. Raises StoreError, which begins with `what` failed."""
        try:
            return await self.redis.at(key, job)
        except RedisError as error:
            raise StoreError(f"{what}: {reason(error)}") from error

    def key(self, partition: int | str, *parts: object) -> str:
        """The key of something of a partition, or of the whole group's (`partition` = 'model', 'workers')."""
        tag = f"{{{self.settings.topics.visits}-{self.settings.group}:{partition}}}"
        return ":".join([NAMESPACE, tag, *map(str, parts)])

    def indexed(self, step: int) -> str:
        """What a position says of the step up to which `due` is complete: also by which tasks, for they set the moments."""
        settings = self.settings
        horizons = [(task.name, task.horizon_ms if task.outcomes else 0) for task in settings.tasks]
        return f"{step}:{xxh3_64_hexdigest(repr((settings.session_gap_ms, sorted(horizons))))}"

    async def ping(self) -> None:
        """Raises StoreError when Redis does not answer; the first time it does, ConfigError when it would lose state."""
        try:
            if self._is_checked:
                for server in await self.redis.primaries():
                    await server.ping()
                return
            for sentence in await check(self.redis):
                log.warning("%s", sentence)
            self._is_checked = True
        except RedisError as error:
            raise StoreError(f"Redis does not answer: {reason(error)}") from error

    # -- a partition -------------------------------------------------------------------------------------------------

    async def position(self, partition: int) -> Position:
        """Where the partition stands."""
        key, lessons = self.key(partition, "position"), self.key(partition, "lessons")
        what = f"the position of partition {partition} cannot be read from Redis"
        found = await self.ask(key, lambda client: client.hgetall(key), what)
        if not found:
            last = await self.ask(lessons, lambda client: client.xrevrange(lessons, count=1), what)
            # Lessons outlive a position that somebody deleted: steps go on after them, for a stream's ids only grow.
            lessons_at = _step(last[0][0]) if last else 0
            # Steps begin at the clock, far above any count of steps, so that those of a store that was emptied are
            # higher than those before: who follows the lessons sees them as new.
            return Position(step=max(lessons_at, int(time.time() * 1000)), last_lesson=lessons_at)
        return Position(
            mark=found[b"mark"].decode(),
            step=int(found[b"step"]),
            epoch=int(found[b"epoch"]),
            visits=int(found[b"visits"]),
            outcomes=int(found[b"outcomes"]),
            log=msgspec.json.decode(found[b"log"], type=LogIdentity),
            last_lesson=int(found[b"last_lesson"]),
            summary=found[b"summary"],
        )

    async def joins(self, partition: int, epoch: int) -> AsyncIterator[tuple[str, bytes]]:
        """Every visitor of the partition with scored visits whose outcome is not known yet."""
        key = self.key(partition, "joins", epoch)
        what = f"partition {partition}: pending examples cannot be read from Redis"
        await self.ask(key, lambda client: client.hlen(key), what)  # where it is
        try:
            # On one connection: a cursor says nothing to another server, or to this one after a restart.
            async with (await self.redis.holder(key)).client() as connection:
                async for visitor, blob in connection.hscan_iter(key, count=1_000):
                    yield visitor.decode(), blob
        except RedisError as error:
            raise StoreError(f"{what}: {reason(error)}") from error

    async def visitors(self, partition: int, epoch: int, names: Sequence[str]) -> dict[str, bytes]:
        """State of those of `names` that the store knows, wherever the partition stands."""
        found, _ = await self.known(partition, epoch, names, [])
        return found

    async def known(
        self, partition: int, epoch: int, visitors: Sequence[str], pending: Sequence[str], mark: str | None = None
    ) -> tuple[dict[str, bytes], dict[str, bytes]]:
        """State of `visitors`, and what is pending of those of the other list, as far as the store knows; in one turn.

        Raises StaleOffset where a `mark` is given and the store is at another.
        """
        newest = self._generation()
        states: dict[str, bytes] = {}
        ledgers: dict[str, bytes] = {}
        asked = [
            (self.key(partition, "visitors", epoch, newest - 1), visitors, states),  # the newer generation counts
            (self.key(partition, "visitors", epoch, newest), visitors, states),
            (self.key(partition, "joins", epoch), pending, ledgers),
        ]
        asked = [(key, names, into) for key, names, into in asked if names]

        def read(pipe: Any) -> None:
            for key, names, _ in asked:
                pipe.hmget(key, names)

        answers = await self.read_at(partition, mark, read, f"visitors of partition {partition}")
        for (_, names, into), blobs in zip(asked, answers, strict=True):
            into.update((name, blob) for name, blob in zip(names, blobs, strict=True) if blob is not None)
        return states, ledgers

    async def read_at(self, partition: int, mark: str | None, read: Callable[[Any], None], what: str) -> list[Any]:
        """The answers to the commands that `read` puts into a pipe, all of one moment, at which the store is at `mark`.

        Raises StaleOffset where it is at another; None: wherever it is.
        """
        at = self.key(partition, "position")

        async def job(client: Any) -> list[Any]:
            async with client.pipeline(transaction=True) as pipe:
                pipe.hget(at, "mark")
                read(pipe)
                return list(await pipe.execute())

        held, *answers = await self.ask(at, job, f"{what} cannot be read from Redis")
        if mark is not None and (held or b"").decode() != mark:
            raise StaleOffset(_moved(partition, held))
        return answers

    async def at(self, partition: int, mark: str) -> None:
        """Raises StaleOffset where the store does not hold the mark that a worker would move from."""
        await self.read_at(partition, mark, lambda _: None, f"the position of partition {partition}")

    def _generation(self) -> int:
        return int(time.time() * 1000) // self.settings.visitor_ttl_ms

    async def commit(self, checkpoint: Checkpoint) -> None:
        """Move the partition's state and offsets in one step.

        Raises StaleOffset when the store does not hold `checkpoint.expected`, StoreError when Redis is away: then the
        same checkpoint may be committed again, and is recognised if it had arrived after all.
        """
        partition, to = checkpoint.partition, checkpoint.position
        key = self.key(partition, "position")

        async def job(client: Any) -> None:
            async with client.pipeline(transaction=True) as pipe:
                await pipe.watch(key)
                found = await pipe.hget(key, "mark")
                held = None if found is None else found.decode()
                if held == to.mark:
                    return  # it had arrived: only the answer was lost
                if held != checkpoint.expected:
                    raise StaleOffset(_moved(partition, found))
                pipe.multi()
                self._write(pipe, checkpoint)
                await pipe.execute()

        try:
            await self.redis.at(key, job)
        except WatchError as error:
            # The client says the same of a connection that broke; then nobody knows whether it arrived.
            if isinstance(error.__context__, _UNANSWERED):
                raise StoreError(
                    f"the checkpoint of partition {partition} got no answer from Redis: {reason(error.__context__)}"
                ) from error
            raise StaleOffset(f"partition {partition} moved while its checkpoint was written") from error
        except RedisError as error:
            raise StoreError(
                f"the checkpoint of partition {partition} cannot be written to Redis: {reason(error)}"
            ) from error

    def _write(self, pipe: Any, checkpoint: Checkpoint) -> None:
        partition, to = checkpoint.partition, checkpoint.position
        joins, due = self.key(partition, "joins", to.epoch), self.key(partition, "due", to.epoch)
        keys = {self.key(partition, "position"), joins, due, self.key(partition, "lessons")}
        if checkpoint.visitors:
            key = self.key(partition, "visitors", to.epoch, self._generation())
            pipe.hset(key, mapping=dict(checkpoint.visitors))
            keys.add(key)
        if kept := {name: blob for name, blob in checkpoint.joins.items() if blob is not None}:
            pipe.hset(joins, mapping=kept)
        if gone := [name for name, blob in checkpoint.joins.items() if blob is None]:
            pipe.hdel(joins, *gone)
            pipe.zrem(due, *gone)
        if checkpoint.due:
            pipe.zadd(due, dict(checkpoint.due))
        last_lesson = to.last_lesson
        if checkpoint.lesson:
            entry = {"lesson": checkpoint.lesson, "after": to.last_lesson}
            pipe.xadd(self.key(partition, "lessons"), entry, id=f"{to.step}-0")
            last_lesson = to.step
        assert to.log is not None, "a checkpoint knows its log"
        pipe.hset(
            self.key(partition, "position"),
            mapping={
                "step": to.step,
                "epoch": to.epoch,
                "visits": to.visits,
                "outcomes": to.outcomes,
                "log": msgspec.json.encode(to.log),
                "last_lesson": last_lesson,
                "summary": to.summary,
                "mark": to.mark,
                "indexed": self.indexed(to.step),
            },
        )
        for key in keys:
            pipe.pexpire(key, self.ttl_ms)

    # -- lessons and snapshots ---------------------------------------------------------------------------------------

    async def lessons(self, partition: int, after: int, limit: int = 100) -> list[LessonEntry]:
        """Lessons of a partition after a step, oldest first, at most `limit` of them."""
        key = self.key(partition, "lessons")
        rows = await self.ask(
            key,
            lambda client: client.xrange(key, min=f"({after}-0", count=limit),
            f"the lessons of partition {partition} cannot be read from Redis",
        )
        return [LessonEntry(_step(id_), int(row[b"after"]), row[b"lesson"]) for id_, row in rows]

    async def last_lesson(self, partition: int) -> int:
        """The step of the newest lesson that the partition taught, as the store knows it now; 0 where it knows of none."""
        key = self.key(partition, "position")
        what = f"the position of partition {partition} cannot be read from Redis"
        found = await self.ask(key, lambda client: client.hget(key, "last_lesson"), what)
        return (await self.position(partition)).last_lesson if found is None else int(found)

    async def add_import(self, blob: bytes) -> int:
        """Append imported vectors to those that every replica takes in; returns their number, which only grows."""
        key = self.key(IMPORTS, "lessons")

        async def job(client: Any) -> int:
            while True:
                async with client.pipeline(transaction=True) as pipe:
                    await pipe.watch(key)
                    # By the stream's own account, which outlives the entries that were trimmed.
                    last = _step((await pipe.xinfo_stream(key))["last-generated-id"]) if await pipe.exists(key) else 0
                    number = max(last + 1, int(time.time() * 1000))  # as positions do: also after the stream expired
                    pipe.multi()
                    pipe.xadd(key, {"lesson": blob, "after": last}, id=f"{number}-0")
                    pipe.pexpire(key, self.ttl_ms)
                    try:
                        await pipe.execute()
                    except WatchError as error:
                        if isinstance(error.__context__, _UNANSWERED):
                            raise error.__context__ from error
                        continue  # another import came in between
                    return number

        return await self.ask(key, job, "imported vectors cannot be written to Redis")

    async def trim_lessons(self, through: Mapping[int, int]) -> None:
        """Delete lessons that two snapshots hold: `through` maps a partition to the last step not needed any more."""
        for partition, step in through.items():  # each in a slot of its own
            await self._trim(self.key(partition, "lessons"), step)

    async def _trim(self, key: str, step: int) -> None:
        await self.ask(
            key,
            lambda client: client.xtrim(key, minid=f"{step + 1}-0", approximate=False),
            "lessons cannot be trimmed",
        )

    async def write_snapshot(self, blob: bytes, stamp: Mapping[int, int]) -> None:
        """Keep a snapshot of the model beside the one before it. `stamp` says which step of each partition it holds."""
        key = self.key("model", "snapshot")
        row = msgspec.msgpack.encode((int(time.time() * 1000), dict(stamp), blob))

        async def job(client: Any) -> None:
            async with client.pipeline(transaction=True) as pipe:
                pipe.lpush(key, row)
                pipe.ltrim(key, 0, 1)
                pipe.pexpire(key, self.ttl_ms)
                await pipe.execute()

        await self.ask(key, job, f"the snapshot of {len(blob):,} bytes cannot be written to Redis")

    async def snapshots(self) -> list[tuple[int, dict[int, int], bytes]]:
        """The snapshots that are kept, newest first: (created, epoch ms; step of each partition; bytes)."""
        key = self.key("model", "snapshot")
        rows = await self.ask(key, lambda client: client.lrange(key, 0, -1), "the snapshot cannot be read from Redis")
        found = []
        for number, row in enumerate(rows):
            try:
                found.append(msgspec.msgpack.decode(row, type=tuple[int, dict[int, int], bytes]))
            except msgspec.MsgspecError as error:
                log.warning(
                    "snapshot %d of the model is torn or foreign (%s); the one before it is tried", number, error
                )
        return found

    # -- who works ---------------------------------------------------------------------------------------------------

    async def beat(self, worker: str, report: bytes, alive_for_s: float = 10.0) -> None:
        """Say that a worker lives, with its report; it counts as gone when it says nothing for `alive_for_s`."""
        index, now = self.key("workers", "index"), time.time()

        async def job(client: Any) -> None:
            async with client.pipeline(transaction=False) as pipe:
                pipe.set(self.key("workers", worker), report, px=int(alive_for_s * 1000))
                pipe.zadd(index, {worker: now})
                pipe.zremrangebyscore(index, 0, now - 60)
                pipe.pexpire(index, self.ttl_ms)
                await pipe.execute()

        await self.ask(index, job, "the worker's report cannot be written to Redis")

    async def leave(self, worker: str) -> None:
        """Say that a worker has stopped in order."""
        index = self.key("workers", "index")

        async def job(client: Any) -> None:
            await client.delete(self.key("workers", worker))
            await client.zrem(index, worker)

        await self.ask(index, job, "the worker's report cannot be deleted")

    async def reports(self) -> list[bytes]:
        """Reports of the workers that live."""
        index = self.key("workers", "index")

        async def job(client: Any) -> list[bytes]:
            names: Iterable[bytes] = await client.zrange(index, 0, -1)
            keys = [self.key("workers", name.decode()) for name in names]
            return [blob for blob in await client.mget(keys) if blob is not None] if keys else []

        return await self.ask(index, job, "the workers' reports cannot be read from Redis")


def _moved(partition: int, held: bytes | None) -> str:
    what = "holds nothing" if held is None else "moved on"
    return f"partition {partition}: the store {what} since this worker read from it"


def _step(stream_id: bytes) -> int:
    return int(stream_id.split(b"-", 1)[0])
