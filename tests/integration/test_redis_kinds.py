"""The store on Redis as operators run it: what is refused at the start, Sentinel, a user of few rights, TLS."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import NoPermissionError, ResponseError

from streams.due import DueIndex
from streams.errors import ConfigError, StaleOffset, StoreError
from streams.redis_client import read_address
from streams.store import IMPORTS, Checkpoint, Position, Store
from tests.integration.test_store import after, calls, settings_for, step_after, unknown
from tests.redis_servers import FAILOVER_LIMIT_S, RedisServer, TlsFront, WatchedPair, has_openssl
from tests.waiting import eventually

DOCS = Path(__file__).parents[2] / "docs" / "redis.md"
DURABLE = ("--appendonly", "yes", "--save", "")


# -- addresses -------------------------------------------------------------------------------------------------------


def test_addresses_are_read() -> None:
    one = read_address("redis://anna:p%40ss@shop:6380/3")
    assert (one.kind, one.hosts) == ("", (("shop", 6380),))
    assert one.options == {"username": "anna", "password": "p@ss", "db": 3}
    assert read_address("redis://[::1]:7000").hosts == (("::1", 7000),)
    cluster = read_address("rediss+cluster://:pw@a,b:7001?ssl_ca_certs=/ca.pem")
    assert (cluster.kind, cluster.hosts) == ("cluster", (("a", 6379), ("b", 7001)))
    assert cluster.options["ssl_ca_certs"] == "/ca.pem"
    sentinel = read_address("redis+sentinel://a,b:26380/shop/2")
    assert (sentinel.kind, sentinel.service) == ("sentinel", "shop")
    assert sentinel.hosts == (("a", 26379), ("b", 26380))
    assert sentinel.options == {"db": 2}


@pytest.mark.parametrize(
    "url",
    [
        "redis://a:secret@",
        "redis://:secret@a,b",
        "redis://:secret@a:port",
        "redis+sentinel://:secret@a:1",
        "redis+ring://:secret@a",
        "kafka://:secret@a",
        "redis+cluster://:secret@a:1,:2",
        "redis://:secret@a:70000",
    ],
)
def test_an_address_that_is_none_is_one_sentence_without_the_password(url: str) -> None:
    with pytest.raises(ConfigError, match="the Redis address is not redis://host:port/db") as raised:
        read_address(url)
    assert "secret" not in str(raised.value)


# -- what is refused at the start ------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A server that keeps what it is told to keep."""
    with RedisServer(tmp_path / "server", *DURABLE) as one:
        yield one


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-lru", "volatile-ttl", "allkeys-random"])
async def test_a_policy_that_would_evict_state_is_refused_with_the_reason(server: RedisServer, policy: str) -> None:
    admin = server.client()
    admin.config_set("maxmemory-policy", policy)
    store = Store(settings_for(server.url))
    try:
        await store.ping()  # without a limit of memory nothing is evicted
        admin.config_set("maxmemory", "100mb")
        await store.ping()  # checked once, at the start
        for rights in (["+@all"], ["+@all", "-config"], ["+@all", "-info"]):
            admin.acl_setuser("default", enabled=True, commands=rights)
            fresh = Store(settings_for(server.url))
            with pytest.raises(ConfigError, match=f"would evict state .*maxmemory-policy {policy}.*noeviction"):
                await fresh.ping()
            await fresh.close()
            admin.acl_setuser("default", enabled=True, commands=["+@all"])
        admin.config_set("maxmemory-policy", "noeviction")
        fresh = Store(settings_for(server.url))
        await fresh.ping()
        await fresh.close()
    finally:
        await store.close()


async def said_at_the_start(url: str, caplog: pytest.LogCaptureFixture) -> list[str]:
    caplog.clear()
    store = Store(settings_for(url))
    with caplog.at_level(logging.WARNING, logger="url2vec"):
        await store.ping()
        await store.ping()
    await store.close()
    return [record.message for record in caplog.records]


async def test_what_a_restart_would_lose_is_said_once(server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    admin = server.client()
    assert await said_at_the_start(server.url, caplog) == []
    admin.config_set("appendonly", "no")
    for rights in (["+@all"], ["+@all", "-info"], ["+@all", "-config"]):
        admin.acl_setuser("default", enabled=True, commands=rights)
        (sentence,) = await said_at_the_start(server.url, caplog)
        assert "keeps nothing on disk" in sentence
        assert ("CONFIG GET is not allowed" in sentence) == (rights[-1] == "-config")
        admin.acl_setuser("default", enabled=True, commands=["+@all"])
    admin.config_set("save", "3600 1")
    assert await said_at_the_start(server.url, caplog) == []


async def test_where_nothing_may_be_asked_that_is_said_once(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.client().acl_setuser("default", enabled=True, commands=["+@all", "-info", "-config"])
    (sentence,) = await said_at_the_start(server.url, caplog)
    assert "could not be checked" in sentence


async def test_a_redis_that_is_too_old_is_refused() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        info = b"redis_version:6.0.16\r\nmaxmemory:0\r\nmaxmemory_policy:noeviction\r\naof_enabled:1\r\n"
        while line := await reader.readline():
            parts = [(await reader.readline(), await reader.readline())[1] for _ in range(int(line[1:]))]
            command = parts[0].strip().upper()
            said = {
                b"INFO": b"$%d\r\n%s\r\n" % (len(info), info),
                b"CONFIG": b"-ERR unknown command\r\n",
                b"EXEC": b"*1\r\n+PONG\r\n",
            }
            writer.write(said.get(command, b"+PONG\r\n"))
        writer.close()

    old = await asyncio.start_server(answer, "127.0.0.1", 0)
    store = Store(settings_for(f"redis://127.0.0.1:{old.sockets[0].getsockname()[1]}/0"))
    with pytest.raises(ConfigError, match=r"Redis 6\.0\.16 is older than 6\.2"):
        await store.ping()
    await store.close()
    old.close()
    await old.wait_closed()


async def test_pending_visits_are_read_in_one_go_or_not_at_all(server: RedisServer) -> None:
    """A cursor says nothing to a server that was started anew, nor to another: what it gives then has holes."""
    store = Store(settings_for(server.url))
    await store.commit(step_after(Position(), joins={f"visitor-{n}": b"j" for n in range(5_000)}))
    seen = 0

    async def read() -> None:
        nonlocal seen
        async for _ in store.joins(2, 0):
            seen += 1
            if seen == 1:
                server.client().client_kill_filter(_type="normal")
                for _ in range(2):  # of others of this worker, one may meet a dead connection, the next has a new one
                    with suppress(StoreError):
                        await store.position(2)

    with pytest.raises(StoreError, match="pending examples cannot be read"):
        await read()
    assert 0 < seen < 5_000
    seen = 1  # and again from the start
    await read()
    assert seen == 5_001
    await store.close()


# -- all of the store, on whatever it runs ------------------------------------------------------------------------------


def of(partition: int, checkpoint: Checkpoint) -> Checkpoint:
    checkpoint.partition = partition
    return checkpoint


async def everything_works(store: Store, partitions: range) -> None:
    """Each method of the store, on partitions wherever they are. The store is empty before."""
    for number in partitions:
        first = of(
            number,
            step_after(
                Position(),
                visitors={"anna": b"1"},
                joins={"anna": b"j", "bert": b"k", "carl": None},
                due={"anna": 5, "bert": 6},
                lesson=b"l1",
            ),
        )
        assert unknown(await store.position(number))
        await store.commit(first)
        await store.commit(first)  # recognised
        second = of(number, step_after(after(first), visitors={"anna": b"2"}, joins={"bert": None}, lesson=b"l2"))
        await store.commit(second)
        with pytest.raises(StaleOffset):
            await store.commit(of(number, step_after(after(first), visitors={"anna": b"old"})))
        assert await store.position(number) == after(second)
        assert await store.known(number, 0, ["anna"], ["anna", "bert"]) == ({"anna": b"2"}, {"anna": b"j"})
        assert [entry async for entry in store.joins(number, 0)] == [("anna", b"j")]
        assert await DueIndex(store).page(number, 0, 0, 10) == [("anna", 5)]
        assert await DueIndex(store).is_complete(number, 0)
        await DueIndex(store).make(number, after(second), {"anna": 7})
        assert await DueIndex(store).page(number, 0, 0, 10) == [("anna", 7)]
        assert [entry.blob for entry in await store.lessons(number, 0)] == [b"l1", b"l2"]
    await store.trim_lessons(dict.fromkeys(partitions, 1))
    assert [[entry.step for entry in await store.lessons(number, 0)] for number in partitions] == [[2]] * len(
        partitions
    )
    one, two = await store.add_import(b"i1"), await store.add_import(b"i2")
    assert [(entry.step, entry.after) for entry in await store.lessons(IMPORTS, 0)] == [(one, 0), (two, one)]
    await store.write_snapshot(b"model", {0: 1})
    assert [blob for _, _, blob in await store.snapshots()] == [b"model"]
    await store.beat("worker-1", b"r1")
    await store.beat("worker-2", b"r2")
    assert sorted(await store.reports()) == [b"r1", b"r2"]
    await store.leave("worker-1")
    assert await store.reports() == [b"r2"]
    await store.ping()


async def starts_and_works(store: Store, partitions: range) -> None:
    await store.ping()
    await everything_works(store, partitions)


# -- Sentinel --------------------------------------------------------------------------------------------------------


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[WatchedPair]:
    """A primary, a replica and a Sentinel of this test's own."""
    with WatchedPair(tmp_path, *DURABLE) as servers:
        yield servers


async def test_all_of_the_store_works_by_sentinel(pair: WatchedPair) -> None:
    store = Store(settings_for(pair.sentinel.url))
    try:
        await everything_works(store, range(2))
        assert pair.primary.client().dbsize() > 0
    finally:
        await store.close()


async def test_after_a_failover_writes_resume_and_a_state_that_went_back_is_refused(pair: WatchedPair) -> None:
    """The replica lacks the last commit: replication does not wait, so a failover loses what was on its way."""
    worker, other = Store(settings_for(pair.sentinel.url)), Store(settings_for(pair.sentinel.url))
    try:
        first = step_after(Position(), visitors={"anna": b"1"})
        await worker.commit(first)
        assert await other.position(2) == after(first)
        await eventually(pair.has_caught_up, what="the replica has the first commit")
        pair.cut_replica()
        lost = step_after(after(first), visitors={"anna": b"lost"}, lesson=b"lost")
        await worker.commit(lost)
        assert await other.position(2) == after(lost)
        pair.primary.kill()
        with pytest.raises(StoreError):
            await worker.position(2)
        pair.replica.child.resume()

        async def answered() -> Position:
            try:
                return await other.position(2)
            except StoreError as error:
                raise AssertionError(str(error)) from None

        assert await eventually(answered, FAILOVER_LIMIT_S, what="the replica is primary") == after(first), (
            "what it had"
        )

        async def refused() -> bool:
            try:
                await worker.commit(step_after(after(lost), visitors={"anna": b"of a history that is gone"}))
            except StaleOffset:
                return True
            except StoreError as error:
                raise AssertionError(str(error)) from None
            pytest.fail("it was taken")

        await eventually(refused, what="the worker's step is refused")
        assert await other.visitors(2, 0, ["anna"]) == {"anna": b"1"}
        again = step_after(after(first), visitors={"anna": b"2"})

        async def committed() -> bool:
            try:
                await worker.commit(again)
            except StoreError as error:
                raise AssertionError(str(error)) from None
            return True

        await eventually(committed, FAILOVER_LIMIT_S, what="writes resume")
        assert await other.position(2) == after(again)
    finally:
        await worker.close()
        await other.close()


def asked_for_failover(pair: WatchedPair) -> bool:
    try:
        pair.sentinel.client().execute_command("SENTINEL", "FAILOVER", pair.sentinel.service)
    except ResponseError as error:
        raise AssertionError(str(error)) from None
    return True


async def test_a_primary_that_was_demoted_is_left_for_the_new_one(pair: WatchedPair) -> None:
    """It lives and answers READONLY, as after a failover by an operator."""
    store = Store(settings_for(pair.sentinel.url))
    try:
        first = step_after(Position(), visitors={"anna": b"1"})
        await store.commit(first)
        await eventually(pair.has_caught_up, what="the replica has it")
        await eventually(lambda: asked_for_failover(pair), what="the Sentinel takes the replica for a good one")
        await eventually(
            lambda: pair.primary.client().info("replication")["role"] == "slave",
            FAILOVER_LIMIT_S,
            what="the primary is a replica now",
        )
        second = step_after(after(first), visitors={"anna": b"2"})

        async def committed() -> bool:
            try:
                await store.commit(second)
            except StoreError as error:
                raise AssertionError(str(error)) from None
            return True

        await eventually(committed, FAILOVER_LIMIT_S, what="writes resume")
        assert pair.replica.client().hget(store.key(2, "position"), "mark") == second.position.mark.encode()
    finally:
        await store.close()


async def test_a_service_that_no_sentinel_knows_is_one_sentence(pair: WatchedPair) -> None:
    store = Store(settings_for(pair.sentinel.url.replace("redis+sentinel://", "redis+sentinel://:secret@") + "x"))
    with pytest.raises(StoreError, match="No master found for 'shopx'") as raised:
        await store.ping()
    await store.close()
    assert "secret" not in str(raised.value)
    assert "\n" not in str(raised.value)


# -- a user of few rights --------------------------------------------------------------------------------------------


def documented_user() -> list[str]:
    """The ACL command of docs/redis.md, as its words."""
    (line,) = [line for line in DOCS.read_text().splitlines() if line.startswith("ACL SETUSER url2vec ")]
    return line.replace("PASSWORD", "secret").replace("web-visits-url2vec", "web-visits-shop").split()


RIGHTS = [
    word for word in documented_user() if word.startswith("+") and word != "+cluster|slots"
]  # that one on a Cluster


def as_user(url: str) -> str:
    return url.replace("://", "://url2vec:secret@")


async def test_the_documented_user_can_do_all_of_it_and_nothing_else(server: RedisServer) -> None:
    server.client().execute_command(*documented_user())
    store = Store(settings_for(as_user(server.url)))
    try:
        await everything_works(store, range(2))
        for command in (
            ["FLUSHALL"],
            ["KEYS", "*"],
            ["CONFIG", "SET", "save", ""],
            ["GET", "another"],
            ["EVAL", "", 0],
        ):
            with pytest.raises(NoPermissionError):
                await store.client.execute_command(*command)
    finally:
        await store.close()


def take_away(admin: Any, right: str) -> None:
    try:
        admin.execute_command("ACL", "SETUSER", "url2vec", right.replace("+", "-"))
    except ResponseError:  # Redis 6.2 gives subcommands, and takes commands alone
        admin.execute_command("ACL", "SETUSER", "url2vec", right.replace("+", "-").partition("|")[0])


@pytest.mark.parametrize("right", RIGHTS)
async def test_no_documented_right_is_idle_and_without_it_there_is_one_sentence(
    server: RedisServer, right: str, caplog: pytest.LogCaptureFixture
) -> None:
    admin = server.client()
    admin.execute_command(*documented_user())
    take_away(admin, right)
    if right in {"+info", "+config|get"}:
        assert len(await said_at_the_start(as_user(server.url), caplog)) == 0, "one stands for the other"
        take_away(admin, "+info")
        take_away(admin, "+config|get")
        (sentence,) = await said_at_the_start(as_user(server.url), caplog)
        assert "could not be checked" in sentence
        return
    url = as_user(server.url)
    store = Store(settings_for(url.removesuffix("0") + "1" if right == "+select" else url))
    try:
        with pytest.raises(StoreError, match="permissions to run") as raised:
            await starts_and_works(store, range(1))
        assert "secret" not in str(raised.value)
        assert "\n" not in str(raised.value)
    finally:
        await store.close()


# -- TLS -------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not has_openssl(), reason="no openssl to make certificates")
async def test_tls_with_a_private_authority_works_and_without_it_is_one_sentence(
    server: RedisServer, tmp_path: Path
) -> None:
    server.client().execute_command(*documented_user())
    async with TlsFront(tmp_path, server.port) as front:
        secure = f"rediss://url2vec:secret@127.0.0.1:{front.port}/0"
        store = Store(settings_for(f"{secure}?ssl_ca_certs={front.ca}"))
        strangers = [
            Store(settings_for(secure)),  # the authority is not known
            Store(settings_for(f"{secure.replace('127.0.0.1', 'localhost')}?ssl_ca_certs={front.ca}")),  # another name
        ]
        try:
            await starts_and_works(store, range(2))
            for stranger in strangers:
                for name, call in calls(stranger).items():
                    with pytest.raises(StoreError, match="certificate is not accepted") as raised:
                        await call()
                    assert "secret" not in str(raised.value), name
                    assert "\n" not in str(raised.value), name
        finally:
            for one in (store, *strangers):
                await one.close()
