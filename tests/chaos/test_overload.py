"""Producers far ahead of the worker, and four visits in five for one partition: what is in flight stays within its bound,
nothing is dropped, the other partitions are not starved, and afterwards answers come at once again.

Scores and learning wait alike; nothing is thinned yet.
"""

import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from streams.settings import Topics
from tests.system import BEGIN_MS, BOUGHT, Sent, System, Verdict, settled, verify, visit
from tests.waiting import eventually_sync

if TYPE_CHECKING:
    MakeTopics = Callable[..., Topics]

IN_FLIGHT, ONE_POLL = 2_000, 512
SETTINGS = f"max_in_flight = {IN_FLIGHT}\n" + BOUGHT
GROWTH_MB = 150.0  # vectors, sessions and pending visits of a new site; a backlog held in memory would be more
SOON_S = 10.0


@pytest.fixture
def system(tmp_path: Path, embedded_kafka: str, store_url: str, make_topics: "MakeTopics") -> Iterator[System]:
    with System(tmp_path, embedded_kafka, store_url, make_topics(embedded_kafka, 4), SETTINGS) as running:
        yield running


def crowd(names: Topics, seed: int, count: int) -> list[Sent]:
    """Visits, four in five of visitors of one partition; those of the others are published last."""
    draw, found = random.Random(seed), dict[bool, list[Sent]]({True: [], False: []})
    for number in range(count):
        hot = draw.random() < 0.8
        who = next(name for name in (f"v{draw.randrange(2_000)}" for _ in range(1_000)) if is_hot(name) == hot)
        url = f"https://shop.example/p/{int(draw.paretovariate(0.7)) % 400}"
        found[hot].append(visit(names.visits, who, f"{seed}-{number}", BEGIN_MS + 100 * number, url))
    return found[True] + found[False]


def is_hot(visitor: str) -> bool:
    return Sent("", visitor, b"").partition(4) == 0


def scored_at(verdict: Verdict, hot: bool) -> list[int]:
    return [answer["scored_at"] for (_, partition, _), answer in verdict.scored.items() if (partition == 0) == hot]


@pytest.mark.parametrize("count", [15_000, pytest.param(300_000, marks=[pytest.mark.long, pytest.mark.timeout(1_200)])])
def test_a_crowd_at_one_partition_costs_memory_and_the_others_nothing(system: System, seed: int, count: int) -> None:
    system.publish(crowd(system.names, seed, count))
    worker = system.start()
    process = psutil.Process(worker.child.pid)
    before_mb, in_flight, resident_mb = process.memory_info().rss / 1e6, [0], [0.0]

    def drained() -> bool:
        found = system.status()
        in_flight.append(max((each.in_flight for each in found.workers), default=0))
        resident_mb.append(process.memory_info().rss / 1e6)
        return found.lag == 0 and found.visits_scored >= count

    eventually_sync(drained, 60 + count / 500, "everything is scored", poll_s=0.1)
    assert max(in_flight) > ONE_POLL, "there was no crowd"
    assert max(in_flight) <= IN_FLIGHT + ONE_POLL
    assert max(resident_mb) - before_mb < GROWTH_MB
    settled(system)
    verdict = verify(system).holds()
    assert verdict.repeated == []
    assert len(verdict.scored) == count
    assert max(scored_at(verdict, hot=False)) < max(scored_at(verdict, hot=True)), (
        "the others had to wait for the crowd"
    )

    began_ms = time.time() * 1000
    late = [
        visit(system.names.visits, f"late {n}", f"late {n}", BEGIN_MS + 10**9 + n, "https://a.example/")
        for n in range(50)
    ]
    system.publish(late)
    system.until_scored(count + len(late))
    answers = [json.loads(taken.value or b"") for taken in verify(system).holds().answers[-200:]]
    waited = [answer["scored_at"] - began_ms for answer in answers if answer["visitor_id"].startswith("late")]
    assert waited
    assert max(waited) < 1_000 * SOON_S
