"""A worker that is stuck ends itself; one that waits, for records, the broker or the store, is left alone.

Each fault is one that heartbeats survive: the group keeps the worker, and without a watchdog nobody would ever read its
partitions again.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest

from deploy.embedded import EmbeddedServers
from streams import topics
from streams.settings import Topics
from tests.odd_worker import odd
from tests.system import BEGIN_MS, BOUGHT, System, WorkerProcess, paused, settled, traffic
from tests.verdict import undone
from tests.waiting import eventually_sync

STALL_S = 2.0
SETTINGS = f'stall_limit = "{STALL_S}s"\nmax_in_flight = 400\ncheckpoint_interval = "100ms"\n' + BOUGHT


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[EmbeddedServers]:
    with EmbeddedServers(tmp_path / "data") as started:
        topics.create(started.kafka, Topics().all, 4)
        yield started


@pytest.fixture
def system(tmp_path: Path, servers: EmbeddedServers) -> Iterator[System]:
    with System(tmp_path, servers.kafka, servers.redis, Topics(), SETTINGS) as running:
        yield running


def lives_on(worker: WorkerProcess, seconds: float) -> None:
    """It does not end in that time, which is twice what a stall is given."""
    ends_at = time.monotonic() + seconds
    while time.monotonic() < ends_at:
        assert worker.child.poll() is None, f"it ended with {worker.child.poll()}: {worker.said[-2000:]}"
        Event().wait(0.1)


@pytest.mark.parametrize(
    "fault", ["fetch", *(pytest.param(name, marks=pytest.mark.long) for name in ("loop", "compute"))]
)
def test_a_worker_that_is_stuck_with_lag_ends_itself_and_another_goes_on(
    system: System, tmp_path: Path, seed: int, fault: str
) -> None:
    stuck = system.launch(**odd(fault, tmp_path)).until_ready()
    system.publish(traffic(system.names, seed, 1_000))
    settled(system)
    lives_on(stuck, 2 * STALL_S)  # nothing to do is not a stall
    (tmp_path / "now").touch()
    system.publish(traffic(system.names, seed + 1, 1_000, begin_ms=BEGIN_MS + 100_000_000))
    eventually_sync((tmp_path / "reached").exists, 60, "the fault begins")
    eventually_sync(lambda: stuck.child.poll() is not None, 60, "the worker ends by itself")
    assert stuck.child.poll() == 1
    [sentence] = [line for line in stuck.said.splitlines() if "stalled" in line]
    assert "Traceback" not in stuck.said
    assert "nothing has moved" in sentence
    system.launch()
    undone(system, 1, 400)


def test_a_worker_whose_broker_or_store_is_away_for_longer_than_a_stall_is_left_alone(
    system: System, servers: EmbeddedServers, seed: int
) -> None:
    worker = system.start()
    system.publish(traffic(system.names, seed, 3_000))
    system.until_scored(200)
    with paused(servers.broker.child):
        lives_on(worker, 2 * STALL_S)
    system.until_scored(system.status().visits_scored + 1)
    with paused(servers.store.child):
        lives_on(worker, 2 * STALL_S)
    # Who is frozen keeps the watchdog itself waiting, and a look that comes late says nothing; this one refuses at once.
    servers.store.stop()
    system.publish(traffic(system.names, seed + 1, 500, begin_ms=BEGIN_MS + 100_000_000))
    lives_on(worker, 2 * STALL_S)
    servers.store.start()
    undone(system, 0, 400)
    assert worker.stop() == 0
