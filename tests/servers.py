"""Real servers for tests: what starts, breaks, pauses and restarts them.

`RealKafka` is Apache Kafka 4.1 from its jars: one KRaft node that is broker and controller, on two free ports, with its
data in a folder, so that it comes back on the same address with the same topics. The embedded broker and store are
`deploy.embedded`'s own. Every server dies with the test run, however that ends.
"""

import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from deploy import ports
from deploy.kafka.fetch import fetch
from deploy.processes import Child
from streams import topics
from streams.errors import BrokerError

START_LIMIT_S = 90.0  # 4 s on two idle cores; CI machines are neither
FORMAT_LIMIT_S = 60.0
STOP_LIMIT_S = 20.0
ATTEMPTS = 3


class KafkaServer(Protocol):
    """What a test may ask of either broker: its address."""

    @property
    def kafka(self) -> str:
        """`host:port`."""


SETTINGS = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{host}:{controller}
listeners=PLAINTEXT://{host}:{port},CONTROLLER://{host}:{controller}
advertised.listeners=PLAINTEXT://{host}:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={data}
auto.create.topics.enable=false
group.initial.rebalance.delay.ms=0
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
num.network.threads=2
num.io.threads=4
log.cleaner.dedupe.buffer.size=4194304
"""
# The JVM of a test: small, and in two seconds at work rather than in two minutes at its best.
JVM = ("-Xmx512m", "-Xms128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto")
QUIET = "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"


class RealKafka:
    """One Apache Kafka node with its data in `folder`. `settings` are further lines of its server.properties.

    Raises ConfigError where java or the jars are missing, BrokerError where it does not start.
    """

    def __init__(self, folder: Path, settings: Sequence[str] = ()) -> None:
        self._folder = folder
        self._settings = list(settings)
        self._child: Child | None = None
        self.port = 0

    @property
    def kafka(self) -> str:
        """`host:port` for clients; the same after a restart."""
        return f"{ports.HOST}:{self.port}"

    @property
    def child(self) -> Child:
        """The process. Only while it is started."""
        assert self._child is not None, "not started"
        return self._child

    def start(self) -> Self:
        """Start, the second time with the data and on the port of the first. Returns when it answers."""
        jars = fetch()
        deadline = time.monotonic() + START_LIMIT_S
        for attempt in range(ATTEMPTS):
            first = self.port == 0
            if first:
                self._format(jars, attempt)
            self._child = Child("Kafka", self._java(jars, "kafka.Kafka", self._properties), log=self._log)
            while self._child.poll() is None:
                if self._answers():
                    return self
                if time.monotonic() > deadline:
                    self.kill()
                    raise BrokerError(
                        f"Kafka did not answer on port {self.port} within {START_LIMIT_S:g} s: {self._log}"
                    )
                self._child.wait(0.1)
            if not first or "Address already in use" not in self._log.read_text(errors="replace"):
                break
            self.port = 0  # the race for a free port was lost
        obituary = self.child.obituary(6)
        self._child = None
        raise BrokerError(f"Kafka {obituary}")

    def stop(self) -> None:
        """An orderly stop; the data stays."""
        if self._child is not None:
            self._child.stop(STOP_LIMIT_S)
            self._child = None

    def kill(self) -> None:
        """SIGKILL; the data stays as it was at that moment."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def restart(self) -> Self:
        """Stop in order and start again: same port, same topics."""
        self.stop()
        return self.start()

    def pause(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        self.child.pause()

    def resume(self) -> None:
        """SIGCONT."""
        self.child.resume()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def _log(self) -> Path:
        return self._folder / "kafka.log"

    @property
    def _properties(self) -> Path:
        return self._folder / "server.properties"

    def _format(self, jars: Path, attempt: int) -> None:
        data = self._folder / f"data-{attempt}"
        self.port, controller = ports.any_free(), ports.any_free()
        text = SETTINGS.format(host=ports.HOST, port=self.port, controller=controller, data=data)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._properties.write_text(text + "\n".join(self._settings) + "\n")
        cluster = f"test-{os.urandom(8).hex()}"
        command = self._java(jars, "kafka.tools.StorageTool", "format", "-t", cluster, "-c", self._properties)
        tool = Child("Kafka's storage tool", command, log=self._log)
        if tool.wait(FORMAT_LIMIT_S) != 0:
            tool.kill()
            raise BrokerError(f"{tool.name} {tool.obituary(6)}")

    def _java(self, jars: Path, *arguments: str | Path) -> list[str]:
        return ["java", *JVM, QUIET, "-cp", f"{jars}/*", *map(str, arguments)]

    def _answers(self) -> bool:
        try:
            socket.create_connection((ports.HOST, self.port), 1.0).close()
            return topics.cluster_id(self.kafka, limit_s=5.0).startswith("test-")
        except (OSError, BrokerError):
            return False
