"""Members of the group that come and go, in order or at the wrong moment: while records flow, while others take up their
partitions, while they compute for longer than the group waits for a sign of life.

An orderly change costs nothing at all: no answer is given twice. That is what tells a member that left with its work
checkpointed from one that was thrown out.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from typing import TYPE_CHECKING

import pytest

from streams.settings import Topics, resolve
from tests.odd_worker import odd
from tests.system import BOUGHT, System, traffic
from tests.verdict import undone
from tests.waiting import eventually_sync

if TYPE_CHECKING:
    MakeTopics = Callable[..., Topics]

SETTINGS = 'max_in_flight = 400\ncheckpoint_interval = "100ms"\nsnapshot_interval = "1s"\n' + BOUGHT
LOAD = 300.0  # records a second
SESSION_S = 6.0  # of the workers that `System` starts
BLOCK_S = 2 * SESSION_S


@pytest.fixture
def system(tmp_path: Path, embedded_kafka: str, store_url: str, make_topics: "MakeTopics") -> Iterator[System]:
    with System(tmp_path, embedded_kafka, store_url, make_topics(embedded_kafka, 4), SETTINGS) as running:
        yield running


def owned(system: System) -> dict[int, list[int]]:
    """Partitions of each living worker, by its process."""
    return {worker.pid: worker.partitions for worker in system.status().workers}


def shared(system: System, workers: int) -> bool:
    """Whether all partitions belong to so many workers, each to one, none without."""
    found = owned(system)
    everything = sorted(p for partitions in found.values() for p in partitions)
    return everything == list(range(system.partitions)) and len(found) == workers and all(found.values())


def until_shared(system: System, workers: int) -> None:
    eventually_sync(lambda: shared(system, workers), 120, f"{workers} workers share the partitions", poll_s=0.2)


def test_workers_that_come_and_go_in_order_under_load_cost_nothing(system: System, seed: int) -> None:
    first = system.start()
    with system.load(traffic(system.names, seed, 40_000), LOAD):
        second = system.launch()
        until_shared(system, 2)
        third = system.launch()
        until_shared(system, 3)
        system.until_scored(system.status().visits_scored + 300)
        assert [second.stop(), third.stop()] == [0, 0]
        until_shared(system, 1)
        system.until_scored(system.status().visits_scored + 300)
    assert undone(system, 0, 0).repeated == []
    assert first.stop() == 0


def test_members_that_come_and_go_while_a_worker_takes_up_its_partitions_do_not_keep_it_from_it(
    system: System, tmp_path: Path, seed: int
) -> None:
    """The worker is held where it builds its model from the store; meanwhile the group forms anew twice."""
    system.publish(traffic(system.names, seed, 1_000))
    (tmp_path / "now").touch()
    worker = system.launch(**odd("held", tmp_path))
    eventually_sync((tmp_path / "reached").exists, 90, "the worker takes its partitions up")
    for _ in range(2):
        (tmp_path / "reached").unlink()
        with another_member(system) as assigned:
            eventually_sync(assigned, 60, "the other member gets partitions")
            # Held again: of the generation in which it has half of them.
            eventually_sync((tmp_path / "reached").exists, 60, "the worker takes up what is left")
        assert not worker.ready
    (tmp_path / "now").unlink()
    until_shared(system, 1)
    undone(system, 0, 0)
    assert worker.stop() == 0, "one process from the beginning to the end"


@contextmanager
def another_member(system: System) -> Iterator[Callable[[], bool]]:
    """Joins the group and takes partitions without doing anything with them; leaves it in order at the end of the block.
    Gives whether it has some."""
    group = resolve(system.kafka, system.redis, str(system.config)).group
    command = [sys.executable, "-m", "tests.member", system.kafka, group, system.names.visits, system.names.outcomes]
    out = system.folder / "member.out"
    with out.open("wb") as file, Popen(command, stdin=PIPE, stdout=file, stderr=DEVNULL) as member:
        try:
            yield lambda: any(json.loads(line) for line in out.read_text().splitlines())
        finally:
            assert member.stdin is not None
            member.stdin.close()
            try:
                member.wait(60)
            finally:
                member.kill()


@pytest.mark.parametrize("broker", ["embedded_kafka", pytest.param("real_kafka", marks=pytest.mark.long)])
def test_a_worker_that_computes_for_longer_than_the_session_timeout_stays_a_member(
    request: pytest.FixtureRequest, tmp_path: Path, store_url: str, make_topics: "MakeTopics", seed: int, broker: str
) -> None:
    kafka: str = request.getfixturevalue(broker)
    with System(tmp_path, kafka, store_url, make_topics(kafka, 4), SETTINGS) as system:
        slow, rival = system.launch(**odd(f"slow:{BLOCK_S}", tmp_path)), system.launch()
        until_shared(system, 2)
        before = owned(system)
        (tmp_path / "now").touch()
        system.publish(traffic(system.names, seed, 2_000))
        eventually_sync((tmp_path / "reached").exists, 30, "a long learning step began")

        def is_over() -> bool:
            if owned(system) != before:
                pytest.fail(f"the group took the worker for dead: {owned(system)} instead of {before}")
            return (tmp_path / "over").exists()

        eventually_sync(is_over, BLOCK_S + 60, "the learning step is over", poll_s=0.2)
        assert undone(system, 0, 0).repeated == []
        assert owned(system) == before
        assert [slow.stop(), rival.stop()] == [0, 0]
