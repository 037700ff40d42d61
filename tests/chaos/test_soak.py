"""Half an hour at half of what the machine can do: memory, descriptors and checkpoints stay as they are.

`URL2VEC_SOAK_MINUTES` shortens it. The figures are logged: `make chaos ARGS="-k soak --log-cli-level=INFO"`.
"""

import logging
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, pairwise
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

import psutil
import pytest
import redis

from streams.settings import Topics
from tests.system import BEGIN_MS, BOUGHT, Sent, System, traffic
from tests.waiting import eventually_sync

if TYPE_CHECKING:
    MakeTopics = Callable[..., Topics]

log = logging.getLogger(__name__)

MINUTES = float(os.environ.get("URL2VEC_SOAK_MINUTES", "30"))
BURST = 20_000  # records at full speed, to know what half of it is
CHUNK = 5_000  # visits of traffic made at a time, each as long in event time as its visits take
LOOK_S = 5.0
GROWTH_AN_HOUR = 0.05  # of the resident memory: a worker that grows by this doubles in a day, and is leaking
GRAIN_MB = 20.0  # what an allocator may take or give back at any time
SPARE_DESCRIPTORS = 4  # connections that somebody opens for a question


@dataclass(frozen=True)
class Look:
    """What is to be seen of a worker and its store at one moment."""

    at_s: float
    rss_mb: float
    descriptors: int
    checkpoints: int  # of all partitions, since the store knows them
    store_mb: float
    lag: int


def endless(names: Topics, seed: int) -> Iterator[Sent]:
    """Traffic without an end, in event time."""
    for number in count():
        yield from traffic(names, seed + number, CHUNK, begin_ms=BEGIN_MS + number * CHUNK * 2_000)


def look(system: System, process: psutil.Process) -> Look:
    with redis.Redis.from_url(system.redis) as store:
        steps = sum(int(store.hget(key, "step") or 0) for key in store.scan_iter("*:position"))
        used_mb = store.info("memory")["used_memory"] / 1e6
    return Look(
        time.monotonic(), process.memory_info().rss / 1e6, process.num_fds(), steps, used_mb, system.status().lag
    )


def slope_an_hour(looks: Sequence[Look], what: Callable[[Look], float]) -> float:
    """By least squares, per hour."""
    return 3_600 * statistics.linear_regression([one.at_s for one in looks], [what(one) for one in looks]).slope


@pytest.mark.long
@pytest.mark.timeout(MINUTES * 60 + 900)
def test_a_soak_at_half_load_leaves_memory_descriptors_and_checkpoints_as_they_are(
    tmp_path: Path, embedded_kafka: str, store_url: str, make_topics: "MakeTopics", seed: int
) -> None:
    with System(tmp_path, embedded_kafka, store_url, make_topics(embedded_kafka, 4), BOUGHT) as system:
        worker = system.start()
        records, began = endless(system.names, seed), time.monotonic()
        system.publish(record for _, record in zip(range(BURST), records, strict=False))
        eventually_sync(lambda: system.status().lag == 0, 300, "the burst is done")
        rate = BURST / (time.monotonic() - began) / 2
        process, looks, pause = psutil.Process(worker.child.pid), list[Look](), Event()
        ends_at = time.monotonic() + 60 * MINUTES
        with system.load(records, rate):
            while time.monotonic() < ends_at:
                pause.wait(LOOK_S)
                looks.append(look(system, process))
        eventually_sync(lambda: system.status().lag == 0, 60, "nothing waits")
        assert worker.stop() == 0
    late = looks[len(looks) // 3 :]  # before that caches fill and allocators find their size
    rss, store = slope_an_hour(late, lambda one: one.rss_mb), slope_an_hour(late, lambda one: one.store_mb)
    descriptors = [one.descriptors for one in late]
    paces = [
        (b.checkpoints - a.checkpoints) / (b.at_s - a.at_s) for a, b in pairwise(late)
    ]  # fmt: skip
    slow, usual = statistics.quantiles(paces, n=20)[0], statistics.median(paces)
    log.info(
        "%.0f min at %.0f records/s: RSS %.0f MB, %+.1f MB an hour; store %.0f MB, %+.1f MB an hour; descriptors %d to %d; "
        "checkpoints %.1f a second (1 of 20 looks below %.1f); lag at most %d",
        MINUTES, rate, late[-1].rss_mb, rss, late[-1].store_mb, store, min(descriptors), max(descriptors), usual, slow,
        max(one.lag for one in late),
    )  # fmt: skip
    assert max(descriptors) <= late[0].descriptors + SPARE_DESCRIPTORS
    assert slow > usual / 2, "checkpoints come less and less often, or in bursts"
    hours = (late[-1].at_s - late[0].at_s) / 3_600
    allowed_mb = max(GROWTH_AN_HOUR * late[0].rss_mb * hours, GRAIN_MB)
    assert rss * hours < allowed_mb, f"memory grew by {rss * hours:.1f} MB in {60 * hours:.0f} min"
