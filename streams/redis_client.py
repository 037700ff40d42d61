"""The servers behind one Redis address: one, a group watched by Sentinels, or a Cluster; and whether they may be trusted.

    redis://host:port/db                                  one server, or any node of a Cluster
    redis+cluster://host:port[,host:port…]                nodes of a Cluster
    redis+sentinel://host:port[,host:port…]/service[/db]  Sentinels, and the name of what they watch
    rediss…://                                            the same by TLS

All of a partition is in one hash slot, so whatever kind it is, a job is done on the one server that holds its key, by a
plain client: the compare-and-set is WATCH, MULTI, EXEC on one connection, one code path for all three. (The transactions
that redis-py 8.1 has for a Cluster run each command in a thread and a loop of its own, and where they try again after a
broken connection, what was watched is not watched any more.)

A MOVED answer says that the server did nothing, so the job is done again where it says. Any other error is raised and the
map of the slots is read again before the next job: who waits for Redis waits for a failover in the same way.
A plain address turns out to be of a Cluster by what the server says in `check`, or else by its first MOVED.
"""

import asyncio
import os
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import redis.asyncio
import redis.exceptions
from redis.asyncio.connection import AbstractConnection, Connection, ConnectionPool, SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.connection import HiredisRespSerializer
from redis.crc import key_slot
from redis.exceptions import AskError, MovedError, NoPermissionError, RedisError, ResponseError, TryAgainError

from streams.errors import ConfigError

Answer = TypeVar("Answer")
Address = tuple[str, int]

OLDEST = (6, 2)  # the oldest that is still in distributions, and that XTRIM MINID needs
REDIRECTS = 4  # a slot that moves is followed once or twice; more is a Cluster that does not agree with itself

FORM = "redis://host:port/db, redis+cluster://host:port or redis+sentinel://host:port/service (rediss… for TLS)"


@dataclass(frozen=True)
class RedisAddress:
    """An address, read. `options` are redis-py's own: credentials, db, TLS."""

    kind: str  # "", "cluster" or "sentinel"
    hosts: tuple[Address, ...]
    service: str
    options: dict[str, Any]


def read_address(url: str) -> RedisAddress:
    """Raises ConfigError, which names the form and nothing of the URL: it may hold a password."""
    try:
        parts = urlsplit(url)
        base, _, kind = parts.scheme.partition("+")
        if parts.scheme == "unix":
            return RedisAddress("", (), "", dict(parse_url(url)))
        credentials, at, names = parts.netloc.rpartition("@")
        path = parts.path.removeprefix("/")
        hosts = tuple(_host(name, 26379 if kind == "sentinel" else 6379) for name in names.split(","))
        service, _, db = path.partition("/") if kind == "sentinel" else ("", "", path)
        if base not in {"redis", "rediss"} or kind not in {"", "cluster", "sentinel"}:
            raise ValueError
        if (kind == "sentinel") != bool(service) or (not kind and len(hosts) > 1):
            raise ValueError
        options = dict(parse_url(f"{base}://{credentials}{at}host/{db}?{parts.query}"))
    except ValueError:
        raise ConfigError(f"the Redis address is not {FORM}") from None
    del options["host"]
    return RedisAddress(kind, hosts, unquote(service), options)


def _host(text: str, port: int) -> Address:
    if text.startswith("["):  # IPv6
        name, _, rest = text[1:].partition("]")
        digits = rest.removeprefix(":")
    else:
        name, _, digits = text.partition(":")
    if not name or not 0 < int(digits or port) < 65536:
        raise ValueError
    return unquote(name), int(digits or port)


def _settings() -> dict[str, Any]:
    return {
        "socket_timeout": 10,
        "socket_connect_timeout": 3,
        "health_check_interval": 15,
        "max_connections": 64,
        # Tried once: whoever can wait says so and waits (streams.patience); a hidden retry would only be silence.
        "retry": Retry(NoBackoff(), 0),
    }


class RedisClient:
    """Clients of the servers behind an address. Raises RedisError as redis-py does."""

    def __init__(self, url: str) -> None:
        self._address = address = read_address(url)
        self.is_cluster = self._is_stale = address.kind == "cluster"
        self._slots: list[tuple[int, int, Address]] = []  # first, last, who holds them
        self._known = dict.fromkeys(address.hosts)  # whom to ask for the map, in this order
        self._nodes: dict[Address, redis.asyncio.Redis] = {}
        self._sentinels: list[redis.asyncio.Redis] = []
        self._reading = asyncio.Lock()
        # Any: the library types each answer as decoded or not, and ours never are.
        self.first: Any = self._watched() if address.kind == "sentinel" else self._node(*address.hosts[:1])

    async def at(self, key: str, job: Callable[[Any], Awaitable[Answer]]) -> Answer:
        """What `job` gives on the server that holds `key`. It is done again where that server did nothing (MOVED)."""
        redirects = 0
        while True:
            client = await self.holder(key)
            try:
                return await job(client)
            except MovedError as error:
                self._moved(error, client)
                redirects += 1
                if redirects > REDIRECTS:
                    self._is_stale = True
                    raise
            except RedisError:
                self._is_stale = self.is_cluster
                raise

    async def holder(self, key: str) -> Any:
        """The server that holds `key`, as far as is known."""
        if self._is_stale:
            await self._read_map()
        if not self._slots:
            return self.first
        slot = key_slot(key.encode())
        for first, last, address in self._slots:
            if first <= slot <= last:
                return self._node(address)
        raise redis.exceptions.ClusterDownError(f"no node of the Cluster serves slot {slot}")

    async def primaries(self) -> list[Any]:
        """Every server that is written to."""
        if self._is_stale:
            await self._read_map()
        return [self._node(address) for address in dict.fromkeys(address for *_, address in self._slots)] or [
            self.first
        ]

    async def aclose(self) -> None:
        """Close the connections."""
        for client in {id(client): client for client in [self.first, *self._nodes.values(), *self._sentinels]}.values():
            await client.aclose()

    # -- a Cluster ---------------------------------------------------------------------------------------------------

    def is_of_a_cluster(self) -> None:
        """The server says so of itself: the map is read before the next job."""
        self.is_cluster = self._is_stale = True

    def _moved(self, error: MovedError, client: Any) -> None:
        host = error.host or client.connection_pool.connection_kwargs["host"]
        self.is_cluster = True
        self._is_stale = self._is_stale or not self._slots
        self._slots.insert(0, (error.slot_id, error.slot_id, (host, error.port)))  # until the map is read anew

    async def _read_map(self) -> None:
        async with self._reading:
            if not self._is_stale:
                return  # somebody else did, meanwhile
            failed: RedisError = redis.exceptions.ClusterDownError("no node of the Cluster is known by host and port")
            for address in list(self._known):
                try:
                    # Not CLUSTER SHARDS, which Redis 6.2 does not have.
                    rows = await self._node(address).execute_command("CLUSTER SLOTS")
                except RedisError as error:
                    failed = error
                    self._known[address] = self._known.pop(address)  # asked last next time: silence costs seconds
                    continue
                if not rows:  # it has not met the others yet, or has forgotten them
                    failed = redis.exceptions.ClusterDownError("a node of the Cluster knows of no slots")
                    continue
                nodes = [[_addressed(node, address) for node in row[2:]] for row in rows]
                self._slots = [(int(row[0]), int(row[1]), of[0]) for row, of in zip(rows, nodes, strict=True)]
                everybody = dict.fromkeys([*(one for of in nodes for one in of), *self._address.hosts, address])
                del everybody[address]
                # Another one is asked next: this one may be cut off from the others and not know what it does not know.
                self._known = {**everybody, address: None}
                self._is_stale = False
                for gone in [one for one in self._nodes if one not in self._known]:
                    await self._nodes.pop(gone).aclose()
                return
            raise failed

    def _node(self, address: Address | None = None) -> Any:
        """The client of a node; without an address that of a socket file."""
        if address is None:
            return redis.asyncio.Redis.from_pool(_pool({**self._address.options, **_settings()}))
        if address not in self._nodes:
            options = {**self._address.options, **_settings(), "host": address[0], "port": address[1]}
            self._nodes[address] = redis.asyncio.Redis.from_pool(_pool(options))
        return self._nodes[address]

    # -- Sentinel ----------------------------------------------------------------------------------------------------

    def _watched(self) -> Any:
        options = {**self._address.options, **_settings()}
        secure = options.pop("connection_class", None) is SSLConnection
        tls = {name: value for name, value in options.items() if name.startswith("ssl_")} | {"ssl": secure}
        # Sentinels have users of their own. One that is silent may not hold up the rest.
        asking = {name: options.pop(f"sentinel_{name}", None) for name in ("username", "password")}
        asking |= {"socket_timeout": 1, "socket_connect_timeout": 1, "retry": Retry(NoBackoff(), 0), **tls}
        sentinel: Any = Sentinel(list(self._address.hosts), sentinel_kwargs=asking)  # type: ignore[no-untyped-call]
        self._sentinels = list(sentinel.sentinels)
        return sentinel.master_for(self._address.service, **options, ssl=secure)


class _Packing(AbstractConnection):
    """Has hiredis write commands, as the synchronous client does: a checkpoint's costs a third of the time."""

    def pack_command(self, *args: Any) -> list[bytes]:
        packed: list[bytes] = HiredisRespSerializer().pack(*args)
        return packed


@cache
def _packing(connection: type[AbstractConnection]) -> type[AbstractConnection]:
    return type(f"Packing{connection.__name__}", (_Packing, connection), {})


def _pool(options: dict[str, Any]) -> ConnectionPool:
    return ConnectionPool(**{**options, "connection_class": _packing(options.get("connection_class", Connection))})


def _addressed(node: Any, asked: Address) -> Address:
    """The address of a node in CLUSTER SLOTS; one that does not know its own name is where it was asked."""
    return (_text(node[0] or asked[0]), int(node[1]))


# -- whether the servers may be trusted ----------------------------------------------------------------------------------


async def check(client: RedisClient) -> list[str]:
    """What an operator should know of the servers, a sentence each. Raises ConfigError where they would lose state."""
    found: list[str] = []
    servers = await client.primaries()
    for server in servers:
        await _transacts(server)
    facts = [await _facts(server) for server in servers]
    if facts[0].get("cluster_enabled") == "1" and not client.is_cluster:
        client.is_of_a_cluster()
        facts = [await _facts(server) for server in await client.primaries()]
    for one in facts:
        found += [sentence for sentence in _judge(one) if sentence not in found]
    return found


async def _transacts(server: Any) -> None:
    """Where MULTI is denied the rest of a checkpoint would still be done, command by command, before EXEC fails."""
    try:
        async with server.pipeline(transaction=True) as pipe:
            pipe.ping()
            await pipe.execute()
    except ResponseError as error:
        if "without multi" in str(error).lower():
            raise NoPermissionError("its user has no permissions to run the 'multi' command") from error
        raise


async def _facts(server: Any) -> dict[str, str]:
    """What INFO says, and CONFIG GET; whatever of the two the user may run (managed servers have no CONFIG)."""
    facts: dict[str, str] = {}
    try:
        facts.update((name, str(value)) for name, value in (await server.info()).items())
        facts["maxmemory-policy"] = facts["maxmemory_policy"]
    except (ResponseError, KeyError):
        pass
    for name in ("maxmemory", "maxmemory-policy", "appendonly", "save"):
        try:
            answer = await server.config_get(name)
        except ResponseError:
            break
        facts.update((_text(key), _text(value)) for key, value in answer.items())
    return facts


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _judge(facts: dict[str, str]) -> list[str]:
    version = facts.get("redis_version", "")
    if version and tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        raise ConfigError(f"Redis {version} is older than 6.2, the oldest that url2vec works with")
    policy = facts.get("maxmemory-policy")
    if policy is None:
        return [
            "whether Redis evicts keys and keeps them on disk could not be checked, for its user may run neither INFO nor "
            "CONFIG GET; with another maxmemory-policy than noeviction it would lose state"
        ]
    if facts.get("maxmemory", "0") != "0" and policy != "noeviction":
        raise ConfigError(
            f"Redis would evict state when its memory is full (maxmemory-policy {policy}; all keys have a time to live): "
            "set maxmemory-policy to noeviction, by which writes wait and nothing is lost"
        )
    aof = facts.get("appendonly") == "yes" or facts.get("aof_enabled") == "1"
    if not aof and not facts.get("save"):
        known = "" if "save" in facts else ", or only snapshots (CONFIG GET is not allowed)"
        return [
            f"Redis keeps nothing on disk (appendonly no, no save{known}): its restart loses sessions, pending examples, "
            "counters, positions and all that was learned"
        ]
    return []


def reason(error: RedisError) -> str:
    """What Redis or the connection said, without anything of the URL (which may hold a password)."""
    system = error.__context__
    if isinstance(system, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted ({system.verify_message})"
    if isinstance(system, ssl.SSLError):  # its number is none of the system's
        return f"TLS failed ({str(system.reason or 'no reason given').replace('_', ' ').lower()})"
    if isinstance(system, OSError) and system.errno:  # the client's own words are "Error 111 connecting to ..."
        return os.strerror(system.errno) if system.errno > 0 else str(system.strerror)
    if isinstance(error, AskError | TryAgainError):  # its own words are a slot and an address
        return "the slot of the partition is being moved to another node of the Cluster"
    return str(error).split(" connecting to ")[0].strip() or type(error).__name__
