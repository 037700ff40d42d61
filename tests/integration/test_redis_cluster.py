"""The store on a Cluster of three nodes: slots that move, a primary that dies, and workers that race meanwhile."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from streams.errors import ConfigError, StaleOffset, StoreError
from streams.settings import Topics
from streams.store import Position, Store
from tests.integration.test_redis_kinds import (
    DURABLE,
    as_user,
    documented_user,
    everything_works,
    of,
    starts_and_works,
)
from tests.integration.test_store import after, settings_for, step_after
from tests.redis_servers import FAILOVER_LIMIT_S, RedisCluster
from tests.system import BOUGHT, System, settled, traffic
from tests.waiting import eventually, eventually_sync

PARTITIONS = range(12)  # by their hashes on all three nodes


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    """Three primaries, and one replica of the first."""
    with RedisCluster(tmp_path_factory.mktemp("cluster"), 1, *DURABLE) as servers:
        yield servers


@pytest.fixture
async def on_cluster(cluster: RedisCluster) -> AsyncIterator[Store]:
    """A store on the emptied Cluster, whose address is that of one node and says nothing of the others."""
    for node in cluster.primaries:
        node.client().flushall()
    store = Store(settings_for(cluster.url))
    yield store
    await store.close()


async def test_all_of_the_store_works_on_a_cluster_known_by_one_node(on_cluster: Store, cluster: RedisCluster) -> None:
    await everything_works(on_cluster, PARTITIONS)
    held = [{key for key in node.client().scan_iter() if b":position" in key} for node in cluster.primaries]
    assert sum(map(len, held)) == len(PARTITIONS)
    assert all(held), f"every node has its part: {[len(part) for part in held]}"


async def test_the_documented_user_can_do_all_of_it_on_a_cluster(cluster: RedisCluster, on_cluster: Store) -> None:
    for node in cluster.nodes:
        node.client().execute_command(*documented_user())
    store = Store(settings_for(as_user(cluster.url)))
    try:
        await starts_and_works(store, PARTITIONS)
        for node in cluster.nodes:
            node.client().execute_command("ACL", "SETUSER", "url2vec", "-cluster|slots")
        denied = Store(settings_for(as_user(cluster.url)))
        with pytest.raises(StoreError, match=r"permissions to run the 'cluster\|slots' command"):
            await denied.ping()
        await denied.close()
    finally:
        await store.close()


async def test_a_cluster_is_recognised_at_the_start_and_every_node_of_it_is_judged(cluster: RedisCluster) -> None:
    admin = cluster.primaries[2].client()
    for url in (cluster.url, cluster.url.replace("redis://", "redis+cluster://").removesuffix("/0")):
        store = Store(settings_for(url))
        await store.ping()
        assert store.redis.is_cluster
        assert len(await store.redis.primaries()) == 3
        admin.config_set("maxmemory-policy", "volatile-lru")
        admin.config_set("maxmemory", "100mb")
        fresh = Store(settings_for(url))
        with pytest.raises(ConfigError, match="would evict state"):
            await fresh.ping()
        admin.config_set("maxmemory", "0")
        admin.config_set("maxmemory-policy", "noeviction")
        await store.close()
        await fresh.close()


async def test_of_workers_that_race_on_a_cluster_exactly_one_wins(cluster: RedisCluster, on_cluster: Store) -> None:
    stores = [on_cluster, Store(settings_for(cluster.url)), Store(settings_for(cluster.primaries[1].url))]
    try:
        for number in range(6):
            position = Position()
            for _ in range(10):
                steps = [of(number, step_after(position, visitors={"anna": b"%d" % n})) for n in range(len(stores))]
                verdicts = await asyncio.gather(
                    *(one.commit(step) for one, step in zip(stores, steps, strict=True)), return_exceptions=True
                )
                assert all(verdict is None or isinstance(verdict, StaleOffset) for verdict in verdicts), verdicts
                (winner,) = [n for n, verdict in enumerate(verdicts) if verdict is None]
                assert await on_cluster.visitors(number, 0, ["anna"]) == {"anna": b"%d" % winner}
                position = after(steps[winner])
    finally:
        for one in stores[1:]:
            await one.close()


async def test_a_slot_that_moved_is_followed_and_the_compare_and_set_goes_with_it(
    cluster: RedisCluster, on_cluster: Store
) -> None:
    zombie, number = Store(settings_for(cluster.url)), 3
    key = on_cluster.key(number, "position")
    try:
        first = of(number, step_after(Position(), visitors={"anna": b"1"}, joins={"anna": b"j"}, due={"anna": 1}))
        await zombie.commit(first)
        await on_cluster.position(number)
        old = cluster.holder(key)
        cluster.move(key, next(node for node in cluster.primaries if node is not old))
        assert cluster.holder(key) is not old
        second = of(number, step_after(after(first), visitors={"anna": b"2"}))
        await on_cluster.commit(second)
        assert await on_cluster.position(number) == after(second)
        with pytest.raises(StaleOffset, match="moved on"):
            await zombie.commit(of(number, step_after(after(first), visitors={"anna": b"old"})))
        cluster.move(key, old)
        assert [entry async for entry in zombie.joins(number, 0)] == [("anna", b"j")]
        assert await zombie.visitors(number, 0, ["anna"]) == {"anna": b"2"}
        await on_cluster.commit(of(number, step_after(after(second))))
    finally:
        await zombie.close()


async def test_while_a_slot_moves_nothing_is_taken_for_absent_and_nothing_is_written_in_part(
    cluster: RedisCluster, on_cluster: Store
) -> None:
    number = 4
    key = on_cluster.key(number, "position")
    first = of(number, step_after(Position(), visitors={"anna": b"1"}, lesson=b"l"))
    await on_cluster.commit(first)
    second = of(number, step_after(after(first), visitors={"anna": b"2"}, joins={"anna": b"j"}, due={"anna": 1}))
    old = cluster.holder(key)
    to = next(node for node in cluster.primaries if node is not old)
    slot = old.client().execute_command("CLUSTER", "KEYSLOT", key)
    to.client().execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", cluster.id(old))
    old.client().execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", cluster.id(to))
    with pytest.raises(StoreError, match="being moved to another node"):
        await on_cluster.commit(second)  # keys that do not exist yet would be the other node's
    assert await on_cluster.position(number) == after(first)
    old.client().execute_command("MIGRATE", "127.0.0.1", to.port, key, 0, 5000)
    with pytest.raises(StoreError, match="being moved to another node"):
        await on_cluster.position(number)
    with pytest.raises(StoreError, match="being moved to another node"):
        await on_cluster.commit(second)
    cluster.move(key, to)
    assert await on_cluster.position(number) == after(first)
    assert await on_cluster.visitors(number, 0, ["anna"]) == {"anna": b"1"}
    await on_cluster.commit(second)
    assert await on_cluster.visitors(number, 0, ["anna"]) == {"anna": b"2"}
    cluster.move(key, old)


async def test_a_primary_of_the_cluster_dies_and_its_replica_goes_on(cluster: RedisCluster, on_cluster: Store) -> None:
    """The last test of this Cluster: it is another one afterwards. The node that dies is the one of the address."""
    dies = cluster.primaries[0]
    number = next(n for n in PARTITIONS if cluster.holder(on_cluster.key(n, "position")) is dies)
    await on_cluster.ping()  # as a worker does: now the other nodes are known
    first = of(number, step_after(Position(), visitors={"anna": b"1"}))
    await on_cluster.commit(first)
    await eventually(
        lambda: (
            cluster.replicas[0].client().info("replication")["slave_repl_offset"]
            >= dies.client().info("replication")["master_repl_offset"]
        ),
        what="the replica has it",
    )
    dies.kill()
    second = of(number, step_after(after(first), visitors={"anna": b"2"}))

    async def committed() -> bool:
        try:
            await on_cluster.commit(second)
        except StoreError as error:
            raise AssertionError(str(error)) from None
        return True

    await eventually(committed, FAILOVER_LIMIT_S, what="the replica took over")
    assert await on_cluster.position(number) == after(second)
    with pytest.raises(StaleOffset):
        await on_cluster.commit(of(number, step_after(after(first), visitors={"anna": b"old"})))


def test_a_worker_on_a_cluster_outlives_a_primary_and_every_counter_is_right(
    tmp_path: Path, embedded_kafka: str, make_topics: Callable[..., Topics], seed: int
) -> None:
    settings = 'max_in_flight = 400\ncheckpoint_interval = "100ms"\n' + BOUGHT
    with RedisCluster(tmp_path / "cluster", 1, *DURABLE) as servers:
        url = servers.primaries[1].url
        with System(tmp_path, embedded_kafka, url, make_topics(embedded_kafka, 8), settings, partitions=8) as system:
            worker = system.start()
            system.publish(traffic(system.names, seed, 3_000))
            system.until_scored(300)
            servers.primaries[0].kill()
            eventually_sync(
                servers.has_failed_over, FAILOVER_LIMIT_S, what="the others take the replica for the primary"
            )
            settled(system)
            assert worker.child.poll() is None
            assert worker.stop() == 0
