"""Our run: one `url2vec worker` with the task `finished`, everything learned, timed by what it has checkpointed.

The clock starts when the worker says that it is ready, with the topics already full, and stops when the store's positions
have reached the ends of both topics: a position moves only together with everything that the records before it have
led to (answers acknowledged by the broker, sessions, joined outcomes, lessons), so that at the end every visit is scored,
learned and checkpointed. What is checkpointed before the clock starts is not counted. Starting the process, joining
the group and compiling kernels are not measured, as they are not for the opponents. The positions are asked for every
50 ms, which is how exact the end is.
"""

import asyncio
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kafka import KafkaConsumer, TopicPartition

from deploy.local import READY_LIMIT_S, SESSION_TIMEOUT
from deploy.processes import Child
from streams import topics as broker
from streams.bench.contestants import RUN_LIMIT_S, Arena, Result, wait
from streams.bench.load import PARTITIONS, Load
from streams.errors import BrokerError
from streams.partition import Summary
from streams.settings import Settings, Topics, resolve
from streams.store import Store

POLL_S = 0.05
SEED = 0
SAMPLE_RECORDS = 200
SETTINGS = """\
group = "{group}"

[topics]
visits = "{topics.visits}"
outcomes = "{topics.outcomes}"
scored = "{topics.scored}"
rejected = "{topics.rejected}"

[tasks.finished]
outcomes = ["finished"]
horizon = "30m"
scope = "session"

[model]
seed = {seed}
"""


def run(arena: Arena, given: Load) -> Result:
    """One run of the worker. Raises BrokerError where it does not come to its end."""
    config = arena.folder / f"{given.topics.visits}.toml"
    config.write_text(SETTINGS.format(group=given.topics.visits, topics=given.topics, seed=SEED))
    settings = resolve(arena.servers.kafka, arena.servers.redis, str(config))
    with started(arena, config, given.topics) as child:
        result = asyncio.run(_timed(settings, given, child))
        child.stop()
    result.answer_bytes = _mean_answer(arena.servers.kafka, given.topics.scored)
    return result


@contextmanager
def started(arena: Arena, config: Path, topics: Topics) -> Iterator[Child]:
    """A worker that is ready."""
    command = [sys.executable, "-m", "streams.cli", "worker", "--json", "--kafka", arena.servers.kafka, "--redis"]
    command += [arena.servers.redis, "--config", str(config), "--session-timeout", SESSION_TIMEOUT]
    log = arena.log(topics.visits)
    child = Child("the worker", command, log=log, environment=arena.environment)
    try:
        wait(child, lambda: b'{"ready":true' in log.read_bytes(), arena, READY_LIMIT_S)
        yield child
    finally:
        child.kill()


async def _timed(settings: Settings, given: Load, child: Child) -> Result:
    store = Store(settings)
    try:
        began = time.monotonic()
        before, _ = await _scored_and_learned(store)
        while await _read(store) < (given.visits, given.outcomes):
            if child.poll() is not None:
                raise BrokerError(f"{child.name} {child.obituary()}")
            if time.monotonic() - began > RUN_LIMIT_S:
                raise BrokerError(f"{child.name} was not done after {RUN_LIMIT_S:g} s: {child.last_words()}")
            await asyncio.sleep(POLL_S)
        seconds = time.monotonic() - began
        scored, learned = await _scored_and_learned(store)
    finally:
        await store.close()
    if scored != given.visits:
        raise BrokerError(f"the worker scored {scored:,} of {given.visits:,} visits: this measures nothing")
    return Result(visits=scored - before, seconds=seconds, learning_share=learned / scored)


async def _read(store: Store) -> tuple[int, int]:
    positions = [await store.position(number) for number in range(PARTITIONS)]
    return sum(p.visits for p in positions), sum(p.outcomes for p in positions)


async def _scored_and_learned(store: Store) -> tuple[int, int]:
    counters = [Summary.of(await store.position(number)).counters for number in range(PARTITIONS)]
    return sum(c.visits_scored for c in counters), sum(c.visits_learned for c in counters)


def _mean_answer(kafka: str, topic: str) -> int:
    """Bytes of a value, from the middle of a partition: the first answers name no URLs that may follow."""
    where = TopicPartition(topic, 0)
    end = broker.end_offsets(kafka, [(topic, 0)])[topic, 0]
    consumer = KafkaConsumer(bootstrap_servers=kafka, group_id=None, enable_auto_commit=False)
    try:
        consumer.assign([where])
        consumer.seek(where, end // 2)
        records = consumer.poll(timeout_ms=5_000, max_records=SAMPLE_RECORDS).get(where, [])
    finally:
        consumer.close(autocommit=False)
    return sum(len(record.value) for record in records) // len(records) if records else 0
