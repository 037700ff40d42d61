"""A running system for tests, and the verifier that judges it from outside.

`System` starts workers as an operator would (`python -m streams.cli worker`), on topics and in a group of the test's own,
kills, pauses and restarts them, publishes, and asks for the status. `verify` reads the four topics completely with a
client that is not ours and says what was lost, answered twice, answered out of order or to the wrong partition. What the
counters must be is computed here a second time, from the input alone and in the plainest way: `expected_counters`.

Nothing here reads a log of a worker to reach a verdict; logs are only shown when one does not start.
"""

import asyncio
import json
import os
import random
import subprocess
import sys
import uuid
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any, Self

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Message, Producer, TopicPartition

from deploy.processes import Child
from streams.settings import Topics, resolve
from streams.status import Status, read_status
from streams.store import Store
from tests.waiting import eventually_sync

READY_LIMIT_S = 90.0  # 6 s on an idle machine; the first start after an installation compiles kernels
READ_LIMIT_S = 60.0
STOP_LIMIT_S = 10.0  # what an orderly stop may take
BEGIN_MS = 1_700_000_000_000
MINUTE_MS = 60_000
GAP_MS = 30 * MINUTE_MS
REMEMBERED_EVENTS = 16

Headers = list[tuple[str, bytes]]
Source = tuple[str, int, int]  # topic, partition, offset


# -- what is sent ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sent:
    """A record to publish. `visitor` decides the partition; the key is separate, for it may be missing."""

    topic: str
    visitor: str
    value: bytes | None
    key: bytes | None = None
    headers: Headers = field(default_factory=list)

    def partition(self, count: int) -> int:
        """Where the producer puts it: a visitor's records of both topics go to one partition number."""
        return zlib.crc32(self.visitor.encode()) % count


@dataclass(frozen=True)
class Taken:
    """A record as another client reads it."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Headers

    @property
    def source(self) -> Source:
        return self.topic, self.partition, self.offset


def visit(topic: str, visitor: str, event_id: str, at_ms: int, url: str, **more: Any) -> Sent:
    """A plain WebVisit with its key."""
    value = {"event_id": event_id, "timestamp": at_ms, "visitor_id": visitor, "url": url, **more}
    return Sent(topic, visitor, json.dumps(value).encode(), visitor.encode())


def outcome(topic: str, visitor: str, name: str, at_ms: int, **more: Any) -> Sent:
    """A plain VisitOutcome with its key."""
    value = {"visitor_id": visitor, "outcome": name, "timestamp": at_ms, **more}
    return Sent(topic, visitor, json.dumps(value).encode(), visitor.encode())


def traffic(names: Topics, seed: int, visits: int, visitors: int = 200, begin_ms: int = BEGIN_MS) -> list[Sent]:
    """Visits in event time, two seconds apart, with everything that counters count: 2 % producer's retries, 1 % that
    cannot be read, and an outcome `bought` after one visit in ten, one outcome in twenty sent twice."""
    draw = random.Random(seed)
    mark = f"{seed}-{begin_ms}"
    found: list[tuple[int, Sent]] = []
    for number in range(visits):
        at_ms = begin_ms + 2_000 * number
        visitor = f"v{draw.randrange(visitors)}"
        if draw.random() < 0.01:
            found.append((at_ms, Sent(names.visits, visitor, b"{", visitor.encode())))
            continue
        url = f"https://shop.example/p/{int(draw.paretovariate(0.7)) % 400}"
        record = visit(names.visits, visitor, f"{mark}-{number}", at_ms, url, properties={"price": draw.randrange(90)})
        found += [(at_ms, record)] * (2 if draw.random() < 0.02 else 1)
        if draw.random() < 0.1:
            bought_ms = at_ms + draw.randrange(1, 20 * MINUTE_MS)
            bought = outcome(names.outcomes, visitor, "bought", bought_ms)
            found += [(bought_ms, bought)] * (2 if draw.random() < 0.05 else 1)
    found.sort(key=lambda entry: entry[0])
    return [record for _, record in found]


BOUGHT = """\
allowed_lateness = "1h"
[tasks.bought]
outcomes = ["bought"]
horizon = "30m"
"""
LATENESS_MS = 60 * MINUTE_MS


# -- what runs -------------------------------------------------------------------------------------------------------


class WorkerProcess:
    """One worker of the group as a process."""

    def __init__(
        self,
        folder: Path,
        name: str,
        config: Path,
        addresses: Sequence[str],
        program: str = "streams.cli",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.out, self.err = folder / f"{name}.out", folder / f"{name}.err"
        command = [sys.executable, "-m", program, "worker", "--json", "--config", str(config), *addresses]
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.child = Child(name, command, stdout=out, stderr=err, environment=environment)

    @property
    def ready(self) -> bool:
        """Whether it said that it is; fails where it has ended instead."""
        if self.child.poll() is not None:
            raise WorkerEndedError(f"{self.child.name} ended with {self.child.poll()}: {self.err.read_text()[-2000:]}")
        return self.out.read_bytes().endswith(b"\n")

    def until_ready(self, limit_s: float = READY_LIMIT_S) -> Self:
        eventually_sync(lambda: self.ready, limit_s, f"{self.child.name} is ready")
        return self

    def kill(self) -> None:
        """SIGKILL."""
        self.child.kill()

    def stop(self) -> int:
        """SIGTERM; the exit code, negative when it did not end in time and was killed."""
        return self.child.stop(STOP_LIMIT_S)

    @property
    def said(self) -> str:
        """Its standard error, for those who ask what an operator reads."""
        return self.err.read_text()


class WorkerEndedError(Exception):
    """A worker ended that was to become ready."""


@dataclass
class Answered:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def sentences(self) -> list[str]:
        """Lines on standard error."""
        return [line for line in self.err.splitlines() if line.strip()]


def command(
    *arguments: str, limit_s: float = 60.0, cwd: Path | None = None, environment: Mapping[str, str] | None = None
) -> Answered:
    """Run `url2vec …` to its end, with `environment` added to that of the tests."""
    done = subprocess.run(
        [sys.executable, "-m", "streams.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=limit_s,
        cwd=cwd,
        env={**os.environ, **(environment or {})},
    )
    return Answered(done.returncode, done.stdout, done.stderr)


class System:
    """Workers of one group on given servers. Use it as a context: nothing outlives it."""

    program = "streams.cli"  # what workers run; a test may put something at fault around it

    def __init__(
        self, folder: Path, kafka: str, redis: str, names: Topics, settings: str = "", partitions: int = 4
    ) -> None:
        self.folder, self.kafka, self.redis, self.names, self.partitions = folder, kafka, redis, names, partitions
        self.workers: list[WorkerProcess] = []
        self.config = folder / "url2vec.toml"
        self.config.write_text(
            f'group = "group-{uuid.uuid4().hex[:8]}"\n{settings}\n[topics]\nvisits = "{names.visits}"\n'
            f'outcomes = "{names.outcomes}"\nscored = "{names.scored}"\nrejected = "{names.rejected}"\n'
        )

    @property
    def addresses(self) -> list[str]:
        return ["--kafka", self.kafka, "--redis", self.redis]

    def launch(
        self, *options: str, program: str | None = None, environment: Mapping[str, str] | None = None
    ) -> WorkerProcess:
        """Start a worker; does not wait. `program` is this one's, where it is not that of all."""
        name = f"worker-{len(self.workers)}"
        addresses = [*self.addresses, "--session-timeout", "6s", *options]
        worker = WorkerProcess(self.folder, name, self.config, addresses, program or self.program, environment)
        self.workers.append(worker)
        return worker

    def start(self, *options: str) -> WorkerProcess:
        """Start a worker and wait until it is ready to score."""
        return self.launch(*options).until_ready()

    def publish(
        self, records: Iterable[Sent], slice_records: int = 300, goes_on: Callable[[], bool] = lambda: True
    ) -> None:
        """Publish in this order, acknowledged slice by slice, so that neither topic runs far ahead of the other.

        After each slice it is asked whether it `goes_on`; who sets a pace waits there.
        """
        producer = Producer({"bootstrap.servers": self.kafka, "linger.ms": 5, "message.max.bytes": 1_048_576})
        failed: list[KafkaError] = []

        def delivered(error: KafkaError | None, _: Message) -> None:
            if error is not None:
                failed.append(error)

        for number, record in enumerate(records, 1):
            producer.produce(
                record.topic, record.value, record.key, record.partition(self.partitions),
                on_delivery=delivered, headers=list(record.headers),
            )  # fmt: skip
            if number % slice_records == 0:
                producer.flush(READ_LIMIT_S)
                if not goes_on():
                    break
        assert producer.flush(READ_LIMIT_S) == 0, "the broker did not take everything"
        assert not failed, failed[0]

    def command(self, name: str, *arguments: str) -> Answered:
        """`url2vec NAME --json` on this system."""
        return command(name, "--json", "--config", str(self.config), *self.addresses, *arguments)

    def status(self) -> Status:
        """As `url2vec status`, without a process of its own."""
        settings = resolve(self.kafka, self.redis, str(self.config))

        async def read() -> Status:
            store = Store(settings)
            try:
                return await read_status(settings, store)
            finally:
                await store.close()

        return asyncio.run(read())

    @contextmanager
    def load(self, records: Iterable[Sent], a_second: float) -> Iterator[None]:
        """Publish from another thread at that rate, until the block ends or nothing is left; what is there then is the
        input. Fails where the broker did not take it."""
        enough = Event()
        slice_records = max(1, round(a_second / 10))
        with ThreadPoolExecutor(1) as pool:
            publishing = pool.submit(self.publish, records, slice_records, lambda: not enough.wait(0.1))
            try:
                yield
            finally:
                enough.set()
            publishing.result()

    def until_scored(self, count: int, limit_s: float = 60.0) -> None:
        """Wait until `count` visits are scored and checkpointed."""
        eventually_sync(lambda: self.status().visits_scored >= count, limit_s, f"{count} visits are scored")

    def until_counters(self, wanted: "Counters", limit_s: float = 60.0) -> None:
        """Wait until nothing waits and the counters are the wanted ones."""

        def reached() -> bool:
            found = self.status()
            assert found.lag == 0, f"{found.lag} records wait; {Counters.of(found)}"
            assert Counters.of(found) == wanted, f"{Counters.of(found)} instead of {wanted}"
            return True

        eventually_sync(reached, limit_s, "the counters are those of the input", poll_s=0.2)

    def stop(self) -> None:
        """All workers, at once where they do not end by themselves."""
        for worker in self.workers:
            worker.child.resume()
            worker.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self.workers:
            worker.child.resume()
            worker.kill()


# -- the verifier ----------------------------------------------------------------------------------------------------


def read_topics(kafka: str, topics: Sequence[str], partitions: int) -> dict[str, list[Taken]]:
    """Every record of the topics, in offset order per partition, read to the end with librdkafka."""
    consumer = Consumer(
        {
            "bootstrap.servers": kafka,
            "group.id": uuid.uuid4().hex,
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "isolation.level": "read_uncommitted",
        }
    )
    found: dict[str, list[Taken]] = {topic: [] for topic in topics}
    open_partitions = {(topic, number) for topic in topics for number in range(partitions)}
    consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for topic, number in open_partitions])

    def at_end() -> bool:
        for message in consumer.consume(2_000, timeout=0.2):
            error, topic, partition = message.error(), message.topic() or "", message.partition() or 0
            if error is not None:
                assert error.code() == KafkaError._PARTITION_EOF, error
                open_partitions.discard((topic, partition))
                continue
            headers = [(name, value) for name, value in message.headers() or []]
            found[topic].append(Taken(topic, partition, message.offset(), message.key(), message.value(), headers))
        return not open_partitions

    try:
        eventually_sync(at_end, READ_LIMIT_S, f"{topics} are read to their ends")
    finally:
        consumer.close()
    for records in found.values():
        records.sort(key=lambda record: (record.partition, record.offset))
    return found


@dataclass(frozen=True)
class Counters:
    """What the status must count, whatever happened to the workers."""

    visits_scored: int
    duplicates: int
    rejected: int
    examples_learned: int
    outcomes_joined: int
    outcomes_duplicate: int

    @staticmethod
    def of(status: Status) -> "Counters":
        return Counters(*(getattr(status, name) for name in Counters.__dataclass_fields__))


@dataclass
class Verdict:
    """What the topics say. `lost`, `strays`, `misplaced` and `disordered` must be empty."""

    visits: list[Taken]
    outcomes: list[Taken]
    scored: dict[Source, dict[str, Any]]  # first answers
    rejected: dict[Source, Taken]
    answers: list[Taken]  # all records of scored-visits
    lost: list[Source] = field(default_factory=list)
    repeated: list[Source] = field(default_factory=list)  # one entry for each answer beyond the first
    strays: list[Source] = field(default_factory=list)  # answers to what was never asked, or scored and rejected both
    misplaced: list[Source] = field(default_factory=list)  # in another partition than their source
    disordered: list[str] = field(default_factory=list)

    def holds(self) -> Self:
        """Assert what holds whatever happens: nothing lost, nothing invented, in order, in place."""
        assert not self.lost, f"lost {len(self.lost)}: {self.lost[:5]}"
        assert not self.strays, f"{len(self.strays)} answers without a question: {self.strays[:5]}"
        assert not self.misplaced, f"{len(self.misplaced)} in another partition: {self.misplaced[:5]}"
        assert not self.disordered, f"order not kept: {self.disordered[:5]}"
        return self


def verify(system: System) -> Verdict:
    """Read everything and judge it."""
    names = system.names
    topics = read_topics(system.kafka, names.all, system.partitions)
    verdict = Verdict(topics[names.visits], topics[names.outcomes], {}, {}, topics[names.scored])
    last_offset: dict[tuple[int, str], int] = {}
    for record in topics[names.scored]:
        answer = json.loads(record.value or b"")
        where = answer["source"]
        source = (where["topic"], where["partition"], where["offset"])
        if source[1] != record.partition:
            verdict.misplaced.append(source)
        if source in verdict.scored:
            verdict.repeated.append(source)
            continue
        verdict.scored[source] = answer
        visitor = record.partition, answer["visitor_id"]
        if last_offset.get(visitor, -1) > source[2]:
            verdict.disordered.append(f"{visitor}: {source[2]} after {last_offset[visitor]}")
        last_offset[visitor] = source[2]
    for record in topics[names.rejected]:
        about = dict(record.headers)
        source = (
            about["source_topic"].decode(),
            int(about["source_partition"]),
            int(about["source_offset"]),
        )
        if source[1] != record.partition:
            verdict.misplaced.append(source)
        if source in verdict.rejected:
            verdict.repeated.append(source)
        verdict.rejected.setdefault(source, record)
    asked = {record.source for record in verdict.visits}
    verdict.lost = sorted(asked - verdict.scored.keys() - verdict.rejected.keys())
    known = asked | {record.source for record in verdict.outcomes}
    verdict.strays = sorted(
        (verdict.scored.keys() - asked)
        | (verdict.rejected.keys() - known)
        | (verdict.scored.keys() & verdict.rejected.keys())
    )
    return verdict


def _readable(records: Iterable[Taken]) -> Iterator[tuple[Taken, dict[str, Any]]]:
    for record in records:
        try:
            yield record, json.loads(record.value or b"")
        except ValueError:
            continue


def expected_counters(
    visits: Sequence[Taken],
    outcomes: Sequence[Taken],
    horizon_ms: int = 30 * MINUTE_MS,
    lateness_ms: int = LATENESS_MS,
) -> Counters:
    """What `traffic` must be counted as with the settings `BOUGHT`, from the records in the topics alone."""
    newest_ms: dict[int, int] = defaultdict(int)
    asked: dict[tuple[int, str], list[int]] = defaultdict(list)
    remembered: dict[tuple[int, str], list[str]] = defaultdict(list)
    scored = repeated = joined = told_twice = examples = 0
    for record, value in _readable(visits):
        scored += 1
        visitor = record.partition, value["visitor_id"]
        newest_ms[record.partition] = max(newest_ms[record.partition], value["timestamp"])
        if value["event_id"] in remembered[visitor][-REMEMBERED_EVENTS:]:
            repeated += 1
            continue
        remembered[visitor].append(value["event_id"])
        asked[visitor].append(value["timestamp"])
    answers: dict[tuple[int, str], set[int]] = defaultdict(set)
    for record, value in _readable(outcomes):
        visitor, at_ms = (record.partition, value["visitor_id"]), value["timestamp"]
        newest_ms[record.partition] = max(newest_ms[record.partition], at_ms)
        if at_ms in answers[visitor]:
            told_twice += 1
            continue
        answers[visitor].add(at_ms)
        joined += any(asked_ms <= at_ms <= asked_ms + horizon_ms for asked_ms in asked[visitor])
    for visitor, times in asked.items():
        watermark_ms = newest_ms[visitor[0]] - lateness_ms
        for asked_ms in times:
            answered = any(asked_ms <= at_ms <= asked_ms + horizon_ms for at_ms in answers[visitor])
            examples += answered or asked_ms + horizon_ms < watermark_ms
    return Counters(
        visits_scored=scored,
        duplicates=repeated,
        rejected=len(visits) + len(outcomes) - scored - sum(1 for _ in _readable(outcomes)),
        examples_learned=examples,
        outcomes_joined=joined,
        outcomes_duplicate=told_twice,
    )


def settled(system: System, limit_s: float = 60.0) -> Verdict:
    """Wait until the counters are exactly those of the input, then judge the topics and hold them to what must hold."""
    inputs = read_topics(system.kafka, [system.names.visits, system.names.outcomes], system.partitions)
    wanted = expected_counters(inputs[system.names.visits], inputs[system.names.outcomes])
    system.until_counters(wanted, limit_s)
    verdict = verify(system).holds()
    assert len(verdict.scored) == wanted.visits_scored
    assert len(verdict.rejected) == wanted.rejected
    assert Counters.of(system.status()) == wanted, "the counters went on"
    return verdict


@contextmanager
def paused(child: Child) -> Iterator[None]:
    """SIGSTOP for the time of the block."""
    child.pause()
    try:
        yield
    finally:
        child.resume()
