"""How soon a new worker answers where much is known: `python -m streams.bench.recovery [VISITORS [URLS]]`.

On an embedded broker and store of its own, whose store is given 1,000,000 visitors as in `streams.bench.state` and a model with
200,000 URLs, each visited three times. Then visits are published, a worker is started, and what is timed is from the start of
its process to the first answer that the broker has. Printed beside it: a worker on an empty store, so that what the state costs
is told from what a process, its imports and the group cost.
"""

import asyncio
import random
import sys
import tempfile
import time
import uuid
from pathlib import Path

import numpy as np
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

from deploy.embedded import EmbeddedServers
from deploy.processes import Child
from models.learner import Learner
from models.lesson import Lesson, Steps
from models.visits import RECENT, url_identity
from streams import topics as broker
from streams.app import new_learner
from streams.bench.contestants import Arena, wait
from streams.bench.load import PARTITIONS
from streams.bench.state import KINDS, players
from streams.bench.worker import SETTINGS, started
from streams.partition import PartitionState
from streams.settings import Settings, Topics, resolve
from streams.store import Store

VISITORS, URLS = 1_000_000, 200_000
AT_ONCE = 25_000  # visitors a checkpoint
LESSON = 4_096  # visits
ANSWER_LIMIT_S = 120.0


def taught(settings: Settings, urls: int) -> Learner:
    """A model that knows so many URLs."""
    learner, random_ = new_learner(settings), np.random.default_rng(1)
    names = [f"https://shop.example/{n % 97}/page-{n}" for n in range(urls)]
    ids = np.array([url_identity(name) for name in names], np.uint64)
    order = np.concatenate([random_.permutation(urls) for _ in range(3)])
    for begin in range(0, len(order), LESSON):
        here = order[begin : begin + LESSON]
        recent = np.zeros((len(here), RECENT), np.uint64)
        for back in range(1, 4):
            recent[back:, back - 1] = ids[here[:-back]]
        steps = Steps(ids[here], recent, np.zeros(len(here), np.bool_))
        learner.learn(
            Lesson(steps, {int(ids[n]): names[n] for n in here.tolist()}, [], [], np.zeros((0, 7), np.uint32), begin)
        )
    return learner


async def fill(settings: Settings, visitors: int, urls: int) -> tuple[int, int]:
    """Put visitors and a model into the store; returns the URLs that the model knows, and its snapshot's bytes."""
    store, kinds, draw = Store(settings), players(1, KINDS), random.Random(2)
    try:
        for number in range(PARTITIONS):
            position = await store.position(number)
            assert position.log is not None, "a worker was here"
            state = PartitionState(number, settings, position, position.log)
            for start in range(0, visitors // PARTITIONS, AT_ONCE):
                count = min(AT_ONCE, visitors // PARTITIONS - start)
                names = [str(uuid.UUID(int=draw.getrandbits(128))) for _ in range(count)]
                state.visitors.load(names, {name: kinds[n % KINDS] for n, name in enumerate(names)})
                state.visitors.changed(state.visitors.slots(names))
                made = state.checkpoint(0, 0)
                await store.commit(made)
                state.committed(made)
        learner = taught(settings, urls)
        blob = learner.snapshot()
        await store.write_snapshot(
            blob, {number: (await store.position(number)).last_lesson for number in range(PARTITIONS)}
        )
        return learner.urls, len(blob)
    finally:
        await store.close()


class Round:
    """One group on topics of its own."""

    def __init__(self, arena: Arena, name: str) -> None:
        servers, mark = arena.servers, uuid.uuid4().hex[:6]
        self.arena, self.topics = arena, Topics(*(f"{topic}-{name}-{mark}" for topic in Topics().all))
        broker.create(servers.kafka, self.topics.all, PARTITIONS)
        self.config = arena.folder / f"{name}.toml"
        self.config.write_text(SETTINGS.format(group=f"{name}-{mark}", topics=self.topics, seed=0))
        self.settings = resolve(servers.kafka, servers.redis, str(self.config))
        self.published = 0

    def publish(self) -> None:
        """A visit to each partition."""
        producer = Producer({"bootstrap.servers": self.arena.servers.kafka})
        for number in range(PARTITIONS):
            self.published += 1
            value = (
                f'{{"event_id":"{uuid.uuid4()}","visitor_id":"v{number}","timestamp":{int(time.time() * 1000)},'
                f'"url":"https://shop.example/1/page-{self.published}"}}'
            )
            producer.produce(self.topics.visits, value.encode(), f"v{number}".encode(), number)
        producer.flush(10)

    def first_answer_s(self) -> float:
        """From the start of a worker's process until one more answer is in the topic."""
        consumer = Consumer(
            {"bootstrap.servers": self.arena.servers.kafka, "group.id": "bench", "enable.auto.commit": False}
        )
        ends = broker.end_offsets(self.arena.servers.kafka, [(self.topics.scored, n) for n in range(PARTITIONS)])
        consumer.assign([TopicPartition(topic, n, end or OFFSET_BEGINNING) for (topic, n), end in ends.items()])
        try:
            began = time.monotonic()
            with started(self.arena, self.config, self.topics) as child:
                self._until_answered(consumer, child)
                took_s = time.monotonic() - began
                child.stop()
        finally:
            consumer.close()
        return took_s

    def _until_answered(self, consumer: Consumer, child: Child) -> None:
        def answered() -> bool:
            message = consumer.poll(0.01)
            return message is not None and message.error() is None

        wait(child, answered, self.arena, ANSWER_LIMIT_S)


def main() -> None:
    """Measure and print."""
    given = [int(text) for text in sys.argv[1:3]]
    visitors, urls = (given + [VISITORS, URLS][len(given) :])[:2]
    with tempfile.TemporaryDirectory(prefix="url2vec-bench-") as folder, EmbeddedServers() as servers:
        arena = Arena(servers, Path(folder))
        empty, full = Round(arena, "empty"), Round(arena, "full")
        for each in (empty, full):
            each.publish()
            each.first_answer_s()  # the first after an installation compiles, and a position has to be there
        known, size = asyncio.run(fill(full.settings, visitors, urls))
        sys.stdout.write(f"in the store: {visitors:,} visitors, {known:,} URLs, a snapshot of {size / 1e6:,.0f} MB\n")
        for _ in range(3):
            for name, each in (("empty", empty), ("full", full)):
                each.publish()
                sys.stdout.write(f"first answer of a new worker, {name} store: {each.first_answer_s():.1f} s\n")


if __name__ == "__main__":
    main()
