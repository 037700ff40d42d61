"""Redis as operators run it, for tests: servers with settings of one's own, a Cluster, a primary with its Sentinel, TLS.

Every server is the embedded Valkey program, or the one that URL2VEC_TEST_REDIS names, on 127.0.0.1, with its data in a
folder of the test, and dies with the run.
"""

import asyncio
import os
import shutil
import ssl
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis

from deploy import ports
from deploy.embedded import _store_answers, _store_program
from deploy.processes import Child
from tests.waiting import eventually_sync

OTHER = "URL2VEC_TEST_REDIS"  # the variable that names another program: a redis-server or valkey-server
ATTEMPTS = 5  # a free port may be lost before the server binds it
START_LIMIT_S = 20.0
FAILOVER_LIMIT_S = 60.0  # seconds where nothing else runs
NODE_TIMEOUT_MS = 4_000  # a busy machine that stands still for two seconds is no failure
# A Sentinel looks every 10 s and believes a change after 8; and where its clock jumps, as it does on a busy machine, it
# does nothing for 30 s.
DEBUGGED = (("INFO-PERIOD", 200), ("PUBLISH-PERIOD", 200), ("TILT-TRIGGER", 60_000), ("TILT-PERIOD", 1_000))


def default_program() -> str:
    """The server that the tests run on."""
    return os.environ.get(OTHER) or _store_program()


class RedisServer:
    """One server. `options` are further options of its command line; `program` another server's."""

    def __init__(self, folder: Path, *options: str, program: str | None = None, port: int = 0) -> None:
        self.folder = folder
        self.options = options
        self.port = port
        self._asked = port
        self._program = program or default_program()
        self._child: Child | None = None

    @property
    def url(self) -> str:
        """`redis://host:port/0`."""
        return f"redis://{ports.HOST}:{self.port}/0"

    @property
    def child(self) -> Child:
        """The process. Only while it is started."""
        assert self._child is not None, "not started"
        return self._child

    def client(self) -> Any:
        """A client of this server alone. Any: the library types each answer as decoded or not."""
        return redis.Redis(port=self.port, socket_timeout=5)

    def command(self) -> list[str]:
        """The command line on `self.port`."""
        command = [self._program, "--port", str(self.port), "--bind", ports.HOST, "--dir", str(self.folder)]
        return [*command, "--repl-diskless-sync-delay", "0", *self.options]

    def start(self) -> Self:
        """Start, the second time on the port and with the data of the first. Returns when it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for _ in range(ATTEMPTS):
            self.port = self.port or ports.any_free()
            child = Child("Redis", self.command(), log=self.folder / "redis.log")
            deadline = time.monotonic() + START_LIMIT_S
            while child.poll() is None:
                if self.answers(child.pid):
                    self._child = child
                    return self
                assert time.monotonic() < deadline, f"no answer: {self.folder / 'redis.log'}"
                child.wait(0.02)
            obituary = child.obituary()
            child.kill()
            if self._asked or "in use" not in obituary.lower():
                break
            self.port = 0
        raise AssertionError(f"{self._program} {obituary}")

    def answers(self, pid: int) -> bool:
        """Whether the server on the port is the process that was started."""
        return _store_answers(self.port, pid)

    def kill(self) -> None:
        """SIGKILL; the data stays as it is."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    stop = kill  # nothing of a test is worth an orderly stop

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


class ClusterNode(RedisServer):
    """A node that has met nobody yet."""

    def __init__(self, folder: Path, *options: str) -> None:
        super().__init__(folder, *options)
        self.bus_port = ports.any_free()

    def command(self) -> list[str]:
        cluster = [
            "--cluster-enabled",
            "yes",
            "--cluster-config-file",
            "nodes.conf",
            "--cluster-node-timeout",
            str(NODE_TIMEOUT_MS),
        ]
        cluster += ["--cluster-port", str(self.bus_port)]
        return [*super().command(), *cluster]


class RedisCluster:
    """Three primaries with a third of the slots each, and `replicas` of the first one."""

    def __init__(self, folder: Path, replicas: int = 0, *options: str) -> None:
        self.primaries = [ClusterNode(folder / f"primary-{n}", *options) for n in range(3)]
        self.replicas = [ClusterNode(folder / f"replica-{n}", *options) for n in range(replicas)]

    @property
    def nodes(self) -> Sequence[ClusterNode]:
        """All of them."""
        return [*self.primaries, *self.replicas]

    @property
    def url(self) -> str:
        """The address of the first node, as of any single server."""
        return self.primaries[0].url

    def __enter__(self) -> Self:
        try:
            for node in self.nodes:
                node.start()
            first, *others = self.nodes
            for node in others:
                first.client().execute_command("CLUSTER", "MEET", ports.HOST, node.port, node.bus_port)
            bounds = [0, 5461, 10923, 16384]
            for node, start, end in zip(self.primaries, bounds, bounds[1:], strict=False):
                node.client().execute_command("CLUSTER", "ADDSLOTSRANGE", start, end - 1)
            eventually_sync(lambda: all(self._knows_all(node) for node in self.nodes), what="the nodes know each other")
            for replica in self.replicas:
                replica.client().execute_command("CLUSTER", "REPLICATE", self.id(self.primaries[0]))
            eventually_sync(self._is_whole, what="the Cluster is whole")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Kill them all."""
        for node in self.nodes:
            node.kill()

    def id(self, node: RedisServer) -> str:
        """The name by which the nodes know each other."""
        found: bytes = node.client().execute_command("CLUSTER", "MYID")
        return found.decode()

    def holder(self, key: str) -> ClusterNode:
        """The primary that holds a key, as the nodes see it."""
        slot = self.nodes[1].client().execute_command("CLUSTER", "KEYSLOT", key)
        for row in self.nodes[1].client().execute_command("CLUSTER", "SLOTS"):
            if row[0] <= slot <= row[1]:
                return next(node for node in self.nodes if node.port == row[2][1])
        raise AssertionError(f"nobody serves slot {slot}")

    def has_failed_over(self) -> bool:
        """Whether the living primaries serve again, with the replica in the place of the first."""
        living = self.primaries[1:]
        ports_of = [{row[2][1] for row in node.client().execute_command("CLUSTER", "SLOTS")} for node in living]
        whole = all(_cluster_info(node)["cluster_state"] == "ok" for node in [*living, *self.replicas])
        return whole and all(self.replicas[0].port in found for found in ports_of)

    def move(self, key: str, to: ClusterNode) -> None:
        """Move the slot of a key, with the keys in it, as `redis-cli --cluster reshard` does."""
        old = self.holder(key)
        slot = old.client().execute_command("CLUSTER", "KEYSLOT", key)
        to.client().execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", self.id(old))
        old.client().execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", self.id(to))
        for name in old.client().execute_command("CLUSTER", "GETKEYSINSLOT", slot, 1000):
            old.client().execute_command("MIGRATE", ports.HOST, to.port, name, 0, 5000)
        for node in [to, old, *(one for one in self.primaries if one not in (to, old))]:
            node.client().execute_command("CLUSTER", "SETSLOT", slot, "NODE", self.id(to))

    def _knows_all(self, node: ClusterNode) -> bool:
        return int(_cluster_info(node)["cluster_known_nodes"]) == len(self.nodes)

    def _is_whole(self) -> bool:
        whole = all(_cluster_info(node)["cluster_state"] == "ok" for node in self.nodes)
        return whole and all(
            node.client().info("replication").get("master_link_status") == "up" for node in self.replicas
        )


def _cluster_info(node: RedisServer) -> dict[str, str]:
    """Decoded already, by the library."""
    found: dict[str, str] = node.client().execute_command("CLUSTER INFO")
    return found


class SentinelServer(RedisServer):
    """One Sentinel, whose word is enough, over `primary` by the name `service`. Its configuration is `folder`'s own."""

    def __init__(self, folder: Path, primary: RedisServer, service: str = "shop", lines: Sequence[str] = ()) -> None:
        super().__init__(folder)
        self._primary = primary
        self.service = service
        self._lines = lines

    @property
    def url(self) -> str:
        """The address of what it watches."""
        return f"redis+sentinel://{ports.HOST}:{self.port}/{self.service}"

    def command(self) -> list[str]:
        conf = self.folder / "sentinel.conf"
        name = self.service
        lines = [f"port {self.port}", f"bind {ports.HOST}", f"dir {self.folder}"]
        lines += [f"sentinel monitor {name} {ports.HOST} {self._primary.port} 1"]
        lines += [f"sentinel down-after-milliseconds {name} 1500", f"sentinel failover-timeout {name} 2000"]
        conf.write_text("\n".join([*lines, *self._lines]) + "\n")
        return [self._program, str(conf), "--sentinel"]


class WatchedPair:
    """A primary, its replica, and a Sentinel."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.primary = RedisServer(folder / "primary", *options)
        self.replica = RedisServer(folder / "replica", *options)
        self.sentinel = SentinelServer(folder / "sentinel", self.primary)

    def __enter__(self) -> Self:
        try:
            self.primary.start()
            self.replica.start()
            self.replica.client().replicaof(ports.HOST, self.primary.port)
            self.sentinel.start()
            with suppress(redis.ResponseError):  # Redis 6.2 knows none of these, and takes its time
                for what, ms in DEBUGGED:
                    self.sentinel.client().execute_command("SENTINEL", "DEBUG", what, ms)
            eventually_sync(self._is_whole, what="the replica follows and the Sentinel knows it")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Kill all three."""
        for server in (self.sentinel, self.primary, self.replica):
            server.kill()

    def has_caught_up(self) -> bool:
        """Whether the replica has all that the primary has."""
        wanted: int = self.primary.client().info("replication")["master_repl_offset"]
        found: int = self.replica.client().info("replication")["slave_repl_offset"]
        return found >= wanted

    def cut_replica(self) -> None:
        """From now on the replica hears nothing of the primary, nor finds anything in its sockets when it goes on."""
        self.replica.child.pause()
        self.primary.client().client_kill_filter(_type="replica")

    def _is_whole(self) -> bool:
        knows = self.sentinel.client().sentinel_slaves(self.sentinel.service)
        linked = self.replica.client().info("replication")["master_link_status"] == "up"
        return bool(linked and knows and "slave" in knows[0]["flags"] and "down" not in str(knows[0]["flags"]))


class TlsFront:
    """TLS before a server that has none compiled in: what arrives is decrypted and handed on. Its certificate, for
    127.0.0.1 alone, is its own authority; it is in the file `ca`. Needs the program openssl."""

    def __init__(self, folder: Path, to_port: int) -> None:
        self._to_port = to_port
        self.ca = folder / "ca.pem"
        self._key = folder / "key.pem"
        self._writers: list[asyncio.StreamWriter] = []
        self.port = 0

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._certify)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.ca, self._key)
        self._server = await asyncio.start_server(self._serve, ports.HOST, 0, ssl=context)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for writer in self._writers:
            writer.close()
        await self._server.wait_closed()

    def _certify(self) -> None:
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        command += ["-days", "1", "-subj", "/CN=a private authority", "-addext", f"subjectAltName=IP:{ports.HOST}"]
        command += ["-keyout", str(self._key), "-out", str(self.ca)]
        subprocess.run(command, check=True, capture_output=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_redis, to_redis = await asyncio.open_connection(ports.HOST, self._to_port)
        self._writers += [writer, to_redis]
        await asyncio.gather(_hand_on(reader, to_redis), _hand_on(from_redis, writer), return_exceptions=True)


async def _hand_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
    writer.close()


def has_openssl() -> bool:
    """Whether certificates can be made here."""
    return shutil.which("openssl") is not None
