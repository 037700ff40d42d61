"""A model that raises, has no memory, or turns to NaN: whoever is to blame is named, all others are answered, once.

The workers are real but for their learner, which fails on command (`tests.faulty`). The verdict: what was rejected, and
why; the counters, as if the rejected visits had been unreadable; each visitor's own count of visits, which shows a batch
that was applied to the sessions twice; and the lessons in the store, of which there is one a visit.
"""

import random
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from models.snapshot import unpack
from streams.store import Store
from tests.faulty import BREAKS, HOPELESS, NO_LESSON, NO_ROOM, NO_SCORE, TO_NAN
from tests.system import (
    BEGIN_MS,
    BOUGHT,
    Counters,
    Sent,
    System,
    Taken,
    Verdict,
    expected_counters,
    read_topics,
    traffic,
    verify,
    visit,
)
from tests.taught import taught_once
from tests.verdict import from_store
from tests.waiting import eventually_sync

if TYPE_CHECKING:
    from streams.settings import Settings, Topics

# Lessons stay in their streams for as long as no snapshot is written.
SETTINGS = 'max_in_flight = 2_000\ncheckpoint_interval = "200ms"\nsnapshot_interval = "1h"\n' + BOUGHT
VISITS = 3_000
PARTITIONS = 2


class FaultySystem(System):
    program = "tests.faulty"


@pytest.fixture
def system(tmp_path: Path, embedded_kafka: str, store_url: str, make_topics) -> Iterator[System]:
    names = make_topics(embedded_kafka, PARTITIONS)
    with FaultySystem(tmp_path, embedded_kafka, store_url, names, SETTINGS, partitions=PARTITIONS) as running:
        yield running


def with_faults(names: "Topics", seed: int, faults: Mapping[str, int], visits: int = VISITS) -> list[Sent]:
    """Traffic, with visits of these URLs in between. Some have no key; of those to be rejected, some are outcomes too."""
    sent = traffic(names, seed, visits)
    draw = random.Random(seed)
    for url in (url for url, count in faults.items() for _ in range(count)):
        at = draw.randrange(len(sent) // 4, len(sent))
        who, number = f"v{draw.randrange(200)}", draw.getrandbits(40)
        more = {"event_name": "bought"} if url == NO_SCORE and number % 2 else {}
        record = visit(names.visits, who, f"fault-{number}", BEGIN_MS + 2_000 * at, url, **more)
        sent.insert(at, record if number % 3 else replace(record, key=None))
    return sent


def is_visit_of(url: str, record: Taken) -> bool:
    return url.encode() in (record.value or b"")


def settled_but_for(system: System, url: str | None, reason: str = "") -> Verdict:
    """Wait until all is counted as it must be where visits of this URL could not be read, and judge it."""
    names = system.names
    inputs = read_topics(system.kafka, [names.visits, names.outcomes], PARTITIONS)
    told = [
        replace(record, value=b"{") if url and is_visit_of(url, record) else record for record in inputs[names.visits]
    ]
    wanted = expected_counters(told, inputs[names.outcomes])
    system.until_counters(wanted)
    verdict = verify(system).holds()
    assert len(verdict.scored) == wanted.visits_scored
    assert len(verdict.rejected) == wanted.rejected
    blamed = {record.source for record in verdict.visits if url and is_visit_of(url, record)}
    assert not blamed & verdict.scored.keys()
    for source in blamed:
        assert reason in dict(verdict.rejected[source].headers)["error"].decode()
        original = next(record for record in verdict.visits if record.source == source)
        assert verdict.rejected[source].value == original.value, "with its bytes untouched"
    assert Counters.of(system.status()) == wanted, "the counters went on"
    return verdict


def test_each_of_these_faults_in_one_stream(system: System, seed: int) -> None:
    """What the tests below look at one by one, for runs that have not the time."""
    system.publish(with_faults(system.names, seed, {NO_SCORE: 4, NO_ROOM: 2, NO_LESSON: 1, BREAKS: 1}))
    worker = system.start()
    verdict = settled_but_for(system, NO_SCORE, "a number that nobody foresaw")
    taught_once(system, verdict, unlearned=1)
    assert verdict.repeated == []
    assert worker.stop() == 0


@pytest.mark.long
def test_a_visit_that_alone_makes_the_model_raise_is_rejected_with_the_reason(system: System, seed: int) -> None:
    system.publish(with_faults(system.names, seed, {NO_SCORE: 7}))
    worker = system.start()
    verdict = settled_but_for(system, NO_SCORE, "a number that nobody foresaw")
    assert len({source for source in verdict.rejected if source not in verdict.scored}) > 7, "other poison too"
    taught_once(system, verdict)
    assert verdict.repeated == [], "nobody was answered twice for it"
    assert worker.stop() == 0


@pytest.mark.long
def test_a_batch_that_is_too_much_for_the_memory_is_answered_in_parts(system: System, seed: int) -> None:
    system.publish(with_faults(system.names, seed, {NO_ROOM: 3}))
    worker = system.start()
    verdict = settled_but_for(system, None)
    taught_once(system, verdict)
    assert verdict.repeated == []
    assert worker.stop() == 0


@pytest.mark.long
def test_a_visit_that_makes_learning_fail_is_answered_and_left_out_of_the_lessons(system: System, seed: int) -> None:
    system.publish(with_faults(system.names, seed, {NO_LESSON: 2}, visits=1_500))
    worker = system.start()
    verdict = settled_but_for(system, None)
    taught_once(system, verdict, unlearned=2)
    assert verdict.repeated == []
    assert worker.stop() == 0


@pytest.mark.long
def test_a_lesson_that_no_model_can_learn_stops_neither_others_nor_new_workers(system: System, seed: int) -> None:
    """A scorer learns nothing itself: what its visits teach is in the store before anybody has tried it."""
    system.publish(with_faults(system.names, seed, {NO_LESSON: 2}, visits=1_500))
    scorer = system.start("--no-learn")
    settled_but_for(system, None)
    assert scorer.stop() == 0
    worker = system.start()
    system.publish(traffic(system.names, seed + 1, 500, begin_ms=BEGIN_MS + 100_000_000))
    settled_but_for(system, None)
    assert worker.stop() == 0


@pytest.mark.long
def test_a_model_that_breaks_is_made_anew_from_the_store_and_nobody_is_blamed(system: System, seed: int) -> None:
    system.publish(with_faults(system.names, seed, {BREAKS: 1}))
    worker = system.start()
    verdict = settled_but_for(system, None)
    taught_once(system, verdict)
    assert verdict.repeated == []
    assert worker.stop() == 0


@pytest.mark.long
def test_a_model_that_breaks_as_the_store_has_it_ends_the_worker_and_nothing_is_rejected(
    system: System, seed: int
) -> None:
    system.publish(with_faults(system.names, seed, {HOPELESS: 1}, visits=1_000))
    worker = system.start()
    eventually_sync(lambda: worker.child.poll() is not None, 60, "the worker ends")
    assert worker.child.poll() == 1
    assert "every visit" in worker.said.splitlines()[-1]
    verdict = verify(system)
    assert not verdict.scored.keys() & verdict.rejected.keys()
    blamed = [dict(record.headers)["error"] for record in verdict.rejected.values()]
    assert not [error for error in blamed if b"model" in error]
    system.program = "streams.cli"  # mended: another version, another machine
    system.start()
    taught_once(system, settled_but_for(system, None))


def snapshots(system: System) -> list[bytes]:
    async def read(_: "Settings", store: Store) -> list[bytes]:
        return [blob for _, _, blob in await store.snapshots()]

    return from_store(system, read)


def test_weights_that_turn_to_nan_never_reach_the_store(system: System, seed: int) -> None:
    system.config.write_text(system.config.read_text().replace('snapshot_interval = "1h"', 'snapshot_interval = "1s"'))
    system.publish(with_faults(system.names, seed, {TO_NAN: 1}))
    worker = system.start()
    settled_but_for(system, None)
    kept = Counter[bytes]()

    def kept_three() -> bool:
        """New snapshots appear only while something is learned."""
        system.publish(traffic(system.names, seed + len(kept), 40, begin_ms=BEGIN_MS + 10_000_000 * (len(kept) + 1)))
        kept.update(snapshots(system))
        return len(kept) >= 3

    eventually_sync(kept_three, 60, "three snapshots are written", poll_s=0.5)
    for blob in kept:
        arrays, _ = unpack(blob)
        damaged = [n for n, a in arrays.items() if a.dtype.kind == "f" and np.isnan(a).any()]
        assert not damaged, f"not a number: {damaged}"
    assert "not finite" in worker.said, "the model did turn to NaN, and went back"
    settled_but_for(system, None)
    assert worker.stop() == 0
