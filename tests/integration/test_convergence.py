"""Several workers, one model: they end near the quality of one worker, and replicas that drained are the same model.

Walks of Wikispeedia in their order go through a worker's own steps and the real store, without a broker: two workers with
two partitions each, or one with all four. After each MICRO_BATCHES a worker checkpoints, and then learns what the others
taught. The figures are logged; `python -m pytest tests/integration/test_convergence.py --log-cli-level=INFO` shows them.
"""

import gzip
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from faust.types import TP

from models.learner import Learner
from models.progressive import Progress
from models.ranking import Ranking
from models.visits import VisitContext
from schemas.logs import LogFile
from schemas.logs_lines import LogRecord
from streams.app import new_learner
from streams.bench.embedding_judge import class_at
from streams.bench.load import VISITS
from streams.decode import Decoded, RecordDecoder
from streams.outcomes import Task
from streams.partition import PartitionState
from streams.replay import partition_of
from streams.replica import Replica
from streams.scoring import Steps
from streams.settings import Settings
from streams.store import LogIdentity, Store
from streams.transport import RecordBatch

PARTITIONS = 4
RECORDS = 20_000
BATCH, MICRO_BATCHES = 125, 4  # records in a micro-batch, and how many between two exchanges: every 500
FINISHED = Task("finished", frozenset({"finished"}), 30 * 60_000, "visitor")
LOG = LogIdentity("walks", "visits", "outcomes")
ASKED = 500  # visits of the end, to compare answers

# How near two workers end to one; docs/replicas.md has what was measured.
AUC_WITHIN, HITS_WITHIN, CLASSES_WITHIN, LOGITS_WITHIN = 0.01, 0.005, 0.015, 0.15

log = logging.getLogger(__name__)


@dataclass
class Member:
    """A worker without a broker: its model, and the partitions that it owns; none, where it only follows."""

    settings: Settings
    store: Store
    owned: tuple[int, ...]
    learns: bool = True
    states: dict[int, PartitionState] = field(default_factory=dict)
    newest_ms: int = 0

    def __post_init__(self) -> None:
        self.learner = new_learner(self.settings)
        self.replica = Replica(self.store, self.learner, None, pytest.fail)
        self.steps = Steps(self.settings, self.learner, self.learns)
        self.decoder = RecordDecoder(self.settings)
        self.contexts: list[VisitContext] = []

    async def start(self) -> "Member":
        await self.replica.rebuild(range(PARTITIONS))
        for number in self.owned:
            self.states[number] = PartitionState(number, self.settings, await self.store.position(number), LOG, [])
        return self

    def micro_batch(self, records: Sequence[LogRecord], offset: int) -> None:
        """Score, then learn, what of these records is in its partitions."""
        self.newest_ms = max([self.newest_ms, *(record.timestamp_ms for record in records)])
        decoded = list(self._decoded(records, offset))
        for part in decoded:
            state = self.states[part.partition]
            state.meet(state.unknown(part.visitor_ids()), {})
        answers = self.steps.score(decoded, self.states)
        self.contexts += list(answers.contexts)
        self.steps.learn(decoded, answers, self.states)
        for state in self.states.values():
            state.watermark.observe("visits", self.newest_ms, 0.0)
            state.watermark.observe("outcomes", self.newest_ms, 0.0)
        self.steps.settle(list(self.states.values()))

    def _decoded(self, records: Sequence[LogRecord], offset: int) -> Iterator[Decoded]:
        topics = {"visit": self.settings.topics.visits, "outcome": self.settings.topics.outcomes}
        for number in self.owned:
            for kind, topic in topics.items():
                found: list[Any] = []
                for k, record in enumerate(records):
                    key = record.visitor_id.encode()
                    if record.kind == kind and partition_of(key, PARTITIONS) == number:
                        found.append(
                            SimpleNamespace(
                                topic=topic,
                                partition=number,
                                offset=offset + k,
                                key=key,
                                value=record.value,
                                timestamp=record.timestamp_ms,
                                headers=(),
                            )
                        )
                if found:
                    yield self.decoder.decode(RecordBatch(TP(topic, number), found, 1, 0), self.newest_ms)

    async def checkpoint(self) -> None:
        for number, state in self.states.items():
            if state.moved:
                part = state.checkpoint(self.learner.step, self.learner.urls)
                await self.store.commit(part)
                state.committed(part)
                if part.lesson and self.learns:
                    self.replica.wrote(number, part.position.step)

    async def follow(self) -> None:
        await self.replica.follow([p for p in range(PARTITIONS) if p not in self.owned or not self.learns])


@dataclass
class Quality:
    """What came of a group, and its members."""

    members: list[Member]
    seen: Counter[str]

    @property
    def auc(self) -> float:
        progress = Progress()
        for state in self._states():
            progress.merge(state.progress[FINISHED.name])
        return progress.auc() or 0.0

    @property
    def hits(self) -> float:
        ranking = Ranking()
        for state in self._states():
            ranking.merge(state.ranking)
        return ranking.hits() or 0.0

    def _states(self) -> list[PartitionState]:
        return [state for member in self.members for state in member.states.values()]

    def class_at_10(self, learner: Learner) -> float:
        """Share of a URL's ten nearest that are of its class, among URLs visited five times or more."""
        urls, vectors = learner.vectors()
        classes = categories()
        judged = [r for r, url in enumerate(urls) if self.seen[url] >= 5 and page(url) in classes]
        names = sorted({classes[page(urls[r])] for r in judged})
        return class_at(vectors[judged], np.array([names.index(classes[page(urls[r])]) for r in judged], np.int32))


def page(url: str) -> str:
    return url.rsplit("/", 1)[-1]


def categories() -> dict[str, str]:
    found: dict[str, str] = {}
    with gzip.open(VISITS.parent / "categories.tsv.gz", "rt", encoding="utf-8") as lines:
        next(lines)
        for line in lines:
            article, name = line.rstrip("\n").split("\t")
            found.setdefault(article, name.split(".")[1])
    return found


async def walk(members: Sequence[Member], most: int = RECORDS) -> Quality:
    """Let the members take the walks together."""
    group = [await member.start() for member in members]
    now_ms = int(time.time() * 1000)
    source = (item for item in LogFile(VISITS, now_ms=now_ms, limit=most) if isinstance(item, LogRecord))
    offset, turn = 0, 0
    while records := list(islice(source, BATCH)):
        for member in group:
            if member.owned:
                member.micro_batch(records, offset)
        offset, turn = offset + len(records), turn + 1
        if turn % MICRO_BATCHES == 0:
            await exchange(group)
    await exchange(group)
    return Quality(group, Counter(c.url for member in group for c in member.contexts))


async def exchange(group: Sequence[Member]) -> None:
    for member in group:
        await member.checkpoint()
    for member in group:
        await member.follow()


def distance(one: Learner, other: Learner, asked: Sequence[VisitContext]) -> float:
    """Mean distance of logits."""
    chances = [learner.score(asked).probability[:, 0] for learner in (one, other)]
    p, q = (np.log(each / (1 - each)) for each in chances)
    return float(np.abs(p - q).mean())


@pytest.fixture
async def store(store_url: str, seed: int) -> AsyncIterator[Store]:
    settings = Settings(kafka="", redis=store_url, tasks=(FINISHED,), dims=32, seed=seed % 1_000, device="cpu")
    opened = Store(settings)
    yield opened
    await opened.close()


async def test_two_workers_end_near_one_and_drained_replicas_are_one_model(store: Store) -> None:
    settings = store.settings
    one = await walk([Member(settings, store, tuple(range(PARTITIONS)))])
    await store.client.flushall()
    two = await walk([Member(settings, store, owned) for owned in ((0, 2), (1, 3), ())])  # the third only follows
    alone = one.members[0].learner
    first, second, follower = (member.learner for member in two.members)
    new = (await Member(settings, store, ()).start()).learner
    asked = one.members[0].contexts[-ASKED:]
    replicas = (first, second, follower)
    classes = [one.class_at_10(alone), *(two.class_at_10(each) for each in replicas)]
    away = [distance(alone, each, asked) for each in replicas]
    apart = distance(first, second, asked)
    log.info("%d visits; one worker, then two:", one.seen.total())
    log.info("AUC %.4f %.4f, next URL among ten %.4f %.4f", one.auc, two.auc, one.hits, two.hits)
    log.info("class@10 of the one worker, of each of the two, of the follower: %.4f %.4f %.4f %.4f", *classes)
    log.info("distance of logits from the one worker's: %.4f %.4f %.4f; of the two: %.4f", *away, apart)
    assert follower.snapshot() == new.snapshot(), "the same lessons in the same order are the same model"
    assert abs(one.auc - two.auc) <= AUC_WITHIN
    assert abs(one.hits - two.hits) <= HITS_WITHIN
    assert max(abs(each - classes[0]) for each in classes) <= CLASSES_WITHIN
    assert max(apart, *away) <= LOGITS_WITHIN


async def test_a_scorer_teaches_all_that_it_read_and_is_the_model_of_those_that_follow(store: Store) -> None:
    settings = store.settings
    scorer, worker = Member(settings, store, (0, 2), learns=False), Member(settings, store, (1, 3))
    follower = Member(settings, store, ())
    group = await walk([scorer, worker, follower], 3_000)
    assert scorer.learner.snapshot() == follower.learner.snapshot(), "it learned from the store alone, each lesson once"
    assert worker.learner.urls == scorer.learner.urls > 0
    counters = [state.counters for member in group.members for state in member.states.values()]
    assert sum(each.visits_learned for each in counters) == group.seen.total()
    assert scorer.states[0].counters.examples_learned > 0
    assert scorer.learner.examples == worker.learner.examples == sum(each.examples_learned for each in counters)


async def test_between_two_looks_at_the_store_a_scorer_learns_nothing(store: Store) -> None:
    scorer = await Member(store.settings, store, tuple(range(PARTITIONS)), learns=False).start()
    before = scorer.learner.snapshot()
    source = (item for item in LogFile(VISITS, now_ms=int(time.time() * 1000), limit=BATCH))
    scorer.micro_batch([item for item in source if isinstance(item, LogRecord)], 0)
    await scorer.checkpoint()
    assert scorer.learner.snapshot() == before
    await scorer.follow()
    assert scorer.learner.snapshot() != before
