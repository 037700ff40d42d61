"""Everything on this machine: embedded broker and store, topics, and workers as processes of their own, supervised.

Promises: `start` returns once every worker is ready to score; a worker or a server that dies is started again, and that is
said; `stop` ends workers first (they checkpoint), then broker and store. While it runs, the other commands of this user
find its addresses in a file; the file is gone when it stops.
"""

import os
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from deploy import ports
from deploy.embedded import EmbeddedServers
from deploy.processes import Child
from streams import topics
from streams.errors import BrokerError, ConfigError
from streams.settings import Running, Settings, resolve, runtime_folder

READY_LIMIT_S = 120.0  # the first start after an installation compiles kernels
WORKER_STOP_S = 10.0
# The embedded broker holds a joining member back for half the session timeout; six seconds is the least it takes.
SESSION_TIMEOUT = "6s"
DIES_YOUNG_S = 10.0


@dataclass
class WorkerProcess:
    """One worker: where its page is, and since when its present life lasts."""

    number: int
    web_port: int
    child: Child | None = None
    born: float = 0.0
    deaths: int = 0


@dataclass
class Local:
    """Embedded servers and workers. Ports 0 pick free ones; without `data_dir` the state ends with it."""

    workers: int = 1
    kafka_port: int = 0
    redis_port: int = 0
    web_port: int = 0
    data_dir: Path | None = None
    config: str | None = None
    partitions: int = 4
    say: Callable[[str], None] = field(default=lambda sentence: None)

    def start(self) -> "Local":
        """Start everything; leaves nothing running where it fails. Raises ConfigError, BrokerError, StoreError."""
        web_port = ports.choose(self.web_port, "--web-port")
        self.servers = EmbeddedServers(self.data_dir, self.kafka_port, self.redis_port).start()
        try:
            self.settings: Settings = resolve(self.servers.kafka, self.servers.redis, self.config)
            topics.create(self.settings.kafka, self.settings.topics.all, self.partitions)
            self.web = f"http://127.0.0.1:{web_port}"
            self._processes = [
                WorkerProcess(number, web_port if number == 0 else ports.any_free()) for number in range(self.workers)
            ]
            for process in self._processes:
                self._launch(process)
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        self._announce()
        return self

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [process.child.pid for process in self._processes if process.child is not None]

    def supervise(self, stop: threading.Event) -> None:
        """Until `stop` is set: start again what died, and say so. Raises ConfigError when a worker cannot live."""
        while not stop.wait(0.2):
            self._mend_servers()
            for process in self._processes:
                if process.child is not None and process.child.poll() is not None and not stop.is_set():
                    self._revive(process)

    def stop(self) -> None:
        """Workers checkpoint and end, then broker and store."""
        with suppress(OSError):
            (runtime_folder() / "up.json").unlink()
        children = [p.child for p in getattr(self, "_processes", []) if p.child is not None]
        enders = [threading.Thread(target=child.stop, args=(WORKER_STOP_S,)) for child in children]
        for ender in enders:
            ender.start()
        for ender in enders:
            ender.join()
        self.servers.stop()

    def __enter__(self) -> "Local":
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.stop()

    # ----------------------------------------------------------------------------------------------------------------

    def _launch(self, process: WorkerProcess) -> None:
        command = [sys.executable, "-m", "streams.cli", "worker", "--kafka", self.servers.kafka, "--redis"]
        command += [self.servers.redis, "--web-port", str(process.web_port), "--session-timeout", SESSION_TIMEOUT]
        if self.config is not None:
            command += ["--config", self.config]
        log = self.servers.data_dir / f"worker-{process.number}.log"
        process.child = Child(f"worker {process.number}", command, log=log)
        process.born = time.monotonic()

    def _revive(self, process: WorkerProcess) -> None:
        assert process.child is not None, "only what lived can die"
        obituary, lived_s = process.child.obituary(), time.monotonic() - process.born
        process.deaths = process.deaths + 1 if lived_s < DIES_YOUNG_S else 1
        if process.deaths > 5:
            raise ConfigError(f"worker {process.number} dies as soon as it starts; it {obituary}")
        self.say(f"worker {process.number} (process {process.child.pid}) {obituary}; starting it again")
        self._launch(process)
        self._announce()

    def _mend_servers(self) -> None:
        for death in self.servers.poll():
            self.say(f"{death}; starting it again")
        if self.servers.broker.poll() is not None:
            self.servers.broker.stop()
            self.servers.broker.start()
            topics.create(self.settings.kafka, self.settings.topics.all, self.partitions)
            self.say("the broker is back, empty: its topics live in memory; what was learned is in the store")
        if self.servers.store.poll() is not None:
            self.servers.store.stop()
            self.servers.store.start()
            self.say("the store is back with its data")

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_LIMIT_S
        for process in self._processes:
            while not self._is_ready(process.web_port):
                assert process.child is not None, "it was launched"
                if process.child.poll() is not None:
                    raise ConfigError(f"worker {process.number} did not start; it {process.child.obituary()}")
                if time.monotonic() > deadline:
                    raise BrokerError(
                        f"worker {process.number} was not ready after {READY_LIMIT_S:g} s; see {process.child.log}"
                    )
                time.sleep(0.1)

    def _is_ready(self, port: int) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    def _announce(self) -> None:
        folder = runtime_folder()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        config = str(Path(self.config).absolute()) if self.config else None
        running = Running(os.getpid(), self.servers.kafka, self.servers.redis, self.web, config)
        partial = folder / f"up.{os.getpid()}.part"
        partial.write_bytes(msgspec.json.encode(running))
        partial.replace(folder / "up.json")
