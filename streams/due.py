"""The index of pending visits in the store: which visitor's ledger is due when, so that none needs to be in memory.

A sorted set beside the hash of ledgers, in the same slot and written in the same transaction (`Store.commit`), so the
compare-and-set covers it. It is complete where the position says so: its field `indexed` names the step of the last
commit that wrote ledgers with their index, and the tasks by which moments were computed. A version that wrote ledgers
alone moves the step and leaves that field behind; so it is seen, whichever version came last, and the index is made anew.
Every method raises StoreError when Redis is away or refuses.
"""

from collections.abc import Mapping
from typing import Any

from redis.exceptions import RedisError, WatchError

from streams.errors import StaleOffset, StoreError
from streams.redis_client import reason
from streams.store import Position, Store

_ENTRIES_A_COMMAND = 5_000


class DueIndex:
    """Reads the index, and makes it anew where it is missing."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def is_complete(self, partition: int, epoch: int) -> bool:
        """Whether each stored ledger of a partition is in the index, by the tasks of today."""
        store = self._store
        at = store.key(partition, "position")

        async def job(client: Any) -> Any:
            async with client.pipeline(transaction=True) as pipe:
                pipe.hlen(store.key(partition, "joins", epoch))
                pipe.zcard(store.key(partition, "due", epoch))
                pipe.hmget(at, "step", "indexed")
                return await pipe.execute()

        what = f"the index of partition {partition} cannot be read from Redis"
        ledgers, entries, (step, indexed) = await store.ask(at, job, what)
        written = step is not None and indexed is not None and indexed.decode() == store.indexed(int(step))
        return ledgers == entries and (written or not ledgers)

    async def page(
        self, partition: int, epoch: int, from_ms: int, limit: int, mark: str | None = None
    ) -> list[tuple[str, int]]:
        """The visitors who are due first of those due at `from_ms` or later, and when; at most `limit` of them.

        Raises StaleOffset where a `mark` is given and the store is at another.
        """
        key = self._store.key(partition, "due", epoch)

        def read(pipe: Any) -> None:
            pipe.zrangebyscore(key, from_ms, "+inf", start=0, num=limit, withscores=True)

        (rows,) = await self._store.read_at(partition, mark, read, f"the index of partition {partition}")
        return [(name.decode(), int(due_ms)) for name, due_ms in rows]

    async def make(self, partition: int, position: Position, due: Mapping[str, int]) -> None:
        """Put `due` in the place of the index. Raises StaleOffset when the partition is not at `position` any more."""
        store = self._store
        at, key = store.key(partition, "position"), store.key(partition, "due", position.epoch)

        async def job(client: Any) -> None:
            async with client.pipeline(transaction=True) as pipe:
                await pipe.watch(at)
                held = await pipe.hget(at, "mark")
                if (held.decode() if held is not None else "") != position.mark:
                    raise StaleOffset(f"partition {partition} moved while its index was made")
                pipe.multi()
                pipe.delete(key)
                entries = list(due.items())
                for start in range(0, len(entries), _ENTRIES_A_COMMAND):
                    pipe.zadd(key, dict(entries[start : start + _ENTRIES_A_COMMAND]))
                pipe.pexpire(key, store.ttl_ms)
                if position.mark:
                    pipe.hset(at, "indexed", store.indexed(position.step))
                await pipe.execute()

        try:
            await store.redis.at(at, job)
        except WatchError as error:
            raise StaleOffset(f"partition {partition} moved while its index was made") from error
        except RedisError as error:
            raise StoreError(
                f"the index of partition {partition} cannot be written to Redis: {reason(error)}"
            ) from error
