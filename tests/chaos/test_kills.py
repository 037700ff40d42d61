"""Workers killed at random while others work: nothing lost, little repeated, and the state of a run that nobody disturbed.

The short versions run in CI; `make chaos` runs the long ones, which also log their figures. Which worker is killed and when
is drawn from the seed; the load goes on meanwhile, so that a kill always comes in the middle of something.
"""

import logging
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import pytest
import redis

from streams.cli_worker import worker
from streams.settings import Topics, resolve
from streams.store import Store
from tests.system import (
    BEGIN_MS,
    BOUGHT,
    Sent,
    System,
    WorkerProcess,
    outcome,
    traffic,
    verify,
    visit,
)
from tests.verdict import Tail, answers_of, model_of, undone, until_as_undisturbed
from tests.waiting import eventually_sync

if TYPE_CHECKING:
    from collections.abc import Callable

    MakeTopics = Callable[..., Topics]

log = logging.getLogger(__name__)


def long(*values: float) -> Any:
    """Parameters for `make chaos` alone."""
    return pytest.param(*values, marks=[pytest.mark.long, pytest.mark.timeout(3_600)])


IN_FLIGHT = 400
# Little in flight and frequent checkpoints and snapshots, so that a kill falls between many of each.
SETTINGS = f'max_in_flight = {IN_FLIGHT}\ncheckpoint_interval = "100ms"\nsnapshot_interval = "1s"\n' + BOUGHT
LOAD = 300.0  # records a second: below what one worker on one busy core can do
TAKEOVER_S = 10.0  # from a kill to the first answer of another worker, on a machine that does nothing else
STEADY_S = 30.0  # after the last kill of a storm, on a machine that does nothing else


@pytest.fixture
def system(tmp_path: Path, embedded_kafka: str, store_url: str, make_topics: "MakeTopics") -> Iterator[System]:
    with System(tmp_path, embedded_kafka, store_url, make_topics(embedded_kafka, 4), SETTINGS) as running:
        yield running


def steady(system: System, workers: int) -> bool:
    """Whether so many workers share the partitions, and next to nothing waits."""
    found = system.status()
    shared = sorted(p for worker in found.workers for p in worker.partitions) == list(range(system.partitions))
    assert shared, f"partitions {[worker.partitions for worker in found.workers]}"
    assert len(found.workers) == workers
    assert found.lag < IN_FLIGHT, f"{found.lag} records wait"
    return True


@pytest.mark.parametrize(("kills", "storm_s"), [(3, 5.0), long(30, 0.0), long(0, 60.0)])
def test_workers_killed_at_random_and_in_a_storm_leave_the_state_of_a_run_that_nobody_disturbed(
    system: System, seed: int, kills: int, storm_s: float
) -> None:
    """`kills` of a worker that works, each after some visits more were scored; then for `storm_s` one of the two every 0.1
    to 1 s, whatever it does, so that none becomes ready: and both are soon at work again."""
    draw, pause = random.Random(seed), Event()
    pair = [system.launch(), system.launch()]
    eventually_sync(lambda: steady(system, 2), 120, "two workers share the partitions", poll_s=0.2)
    began = time.monotonic()
    with system.load(traffic(system.names, seed, 3_000 * (kills + 5) + int(LOAD * storm_s)), LOAD):
        for _ in range(kills):
            system.until_scored(system.status().visits_scored + draw.randrange(1, 600), 120)
            kill_and_start(system, pair, draw.choice([number for number in range(2) if pair[number].ready]))
        ended = time.monotonic() + storm_s
        in_storm = 0
        while time.monotonic() < ended:
            kill_and_start(system, pair, draw.randrange(2))
            in_storm += 1
            pause.wait(draw.uniform(0.1, 1.0))
        last = time.monotonic()
        eventually_sync(lambda: steady(system, 2), 4 * STEADY_S, "steady again", poll_s=0.2)
        steady_s = time.monotonic() - last
    verdict = undone(system, kills + in_storm, IN_FLIGHT, 120)
    log.info(
        "%d kills in %.0f s, %d of them in a storm of %.0f s: %d visits, 0 lost, %d repeated, state as undisturbed; steady "
        "%.1f s after the last",
        kills + in_storm, last - began, in_storm, storm_s, len(verdict.scored), len(verdict.repeated), steady_s,
    )  # fmt: skip


def kill_and_start(system: System, pair: list[WorkerProcess], number: int) -> None:
    """As a supervisor would: another in its place at once."""
    pair[number].kill()
    pair[number] = system.launch()


@pytest.mark.timeout(600)
@pytest.mark.long
def test_another_worker_answers_soon_after_a_kill(
    tmp_path: Path, kafka: str, store_url: str, make_topics: "MakeTopics", seed: int
) -> None:
    """The time from a kill to the first answer, by the worker that is left, in a partition of the one that is gone; with the
    settings that a worker has when nobody says otherwise. Logged; the limit only says that something is wrong."""
    draw, took = random.Random(seed), list[float]()
    with (
        System(tmp_path, kafka, store_url, make_topics(kafka, 4), BOUGHT) as system,
        Tail(kafka, system.names.scored, 4) as answers,
    ):
        default = ("--session-timeout", default_session_timeout())
        pair = [system.launch(*default), system.launch(*default)]
        eventually_sync(lambda: steady(system, 2), 120, "two workers share the partitions", poll_s=0.2)
        with system.load(traffic(system.names, seed, 60_000), LOAD):
            for _ in range(5):
                system.until_scored(system.status().visits_scored + draw.randrange(1, 900), 60)
                gone = draw.randrange(2)
                its = {w.pid: w.partitions for w in system.status().workers}[pair[gone].child.pid]
                at_ms = time.time() * 1000
                pair[gone].kill()
                took.append((first_answer_ms(answers, its, at_ms) - at_ms) / 1000)
                pair[gone] = system.launch(*default)
                eventually_sync(lambda: steady(system, 2), 120, "two workers share the partitions", poll_s=0.2)
        undone(system, len(took), 20_000)
    log.info("first answer of another worker after a kill: %s s", ", ".join(f"{s:.1f}" for s in took))
    assert max(took) < 3 * TAKEOVER_S


def default_session_timeout() -> str:
    """As `url2vec worker` has it; the tests' own workers have another."""
    [found] = [option.default for option in worker.params if option.name == "session_timeout"]
    return str(found)


def first_answer_ms(answers: Tail, partitions: Sequence[int], after_ms: float) -> float:
    """When the first of these partitions' visits was scored after that moment."""
    found = eventually_sync(
        lambda: [a["scored_at"] for p, a in answers.more() if p in partitions and a["scored_at"] > after_ms + 1],
        3 * TAKEOVER_S,
        "another worker answers",
    )
    return float(min(found))


# -- bit for bit -----------------------------------------------------------------------------------------------------


def slices(names: Topics, seed: int, count: int, size: int = 200) -> list[list[Sent]]:
    """Records of one topic at a time, so few that one fetch brings them all: visits, then the outcomes of some of them."""
    draw = random.Random(seed)
    found: list[list[Sent]] = []
    for number in range(count):
        visits, outcomes = [], []
        for k in range(size):
            at_ms, visitor = BEGIN_MS + 2_000 * (number * size + k), f"v{draw.randrange(40)}"
            url = f"https://shop.example/p/{int(draw.paretovariate(0.7)) % 60}"
            visits.append(visit(names.visits, visitor, f"{number}-{k}", at_ms, url, properties={"price": k % 9}))
            # Not of the last: an outcome later than all visits waits until they are known to have ended (streams.lockstep).
            if draw.random() < 0.3 and k < size - 1:
                told = {"value": draw.random() < 0.5}
                outcomes.append(outcome(names.outcomes, visitor, "bought", at_ms + 1_000, **told))
        found += [visits, outcomes]
    return found


def without_newest_snapshot(system: System) -> None:
    """Let who comes next learn from the lessons what that one holds, which may be all that was taught."""
    settings = resolve(system.kafka, system.redis, str(system.config))
    with redis.Redis.from_url(system.redis) as client:
        assert client.lpop(Store(settings).key("model", "snapshot")) is not None, "there was none"


@pytest.mark.parametrize("kills", [1, long(10)])
def test_where_batches_end_alike_a_killed_workers_model_and_answers_are_the_same_bits(
    tmp_path: Path, embedded_kafka: str, store_url: str, make_topics: "MakeTopics", seed: int, kills: int
) -> None:
    """Two groups read the same topic, slice by slice; the worker of one is killed once it has answered, and not yet
    checkpointed, some slices."""
    draw = random.Random(seed)
    names, beside = make_topics(embedded_kafka, 1), make_topics(embedded_kafka, 1)
    aside = Topics(names.visits, names.outcomes, beside.scored, beside.rejected)
    # No horizon passes, so a slice of visits is one step, and a slice of outcomes another, whenever the watermark moves.
    settings = SETTINGS.replace('horizon = "30m"', 'horizon = "30d"')
    seldom = settings.replace('checkpoint_interval = "100ms"', 'checkpoint_interval = "1s"')
    for name in ("calm", "killed"):
        (tmp_path / name).mkdir()
    with (
        System(tmp_path / "calm", embedded_kafka, store_url, aside, settings, partitions=1) as calm,
        System(tmp_path / "killed", embedded_kafka, store_url, names, seldom, partitions=1) as killed,
        Tail(embedded_kafka, names.scored, 1) as answers,
    ):
        calm.launch()
        member = killed.launch()
        parts = slices(names, seed, 3 + kills)
        kill_at = set(draw.sample(range(2, len(parts), 2), kills))
        for number, part in enumerate(parts):
            calm.publish(part, slice_records=len(part) + 1)
            if number in kill_at:
                eventually_sync(answers.more, 60, "the slice is answered")
                member.kill()
                without_newest_snapshot(killed)
                member = killed.launch()
            for system in (calm, killed):
                eventually_sync(lambda s=system: s.status().lag == 0, 90, "the slice is checkpointed")
            answers.more()
        for system in (calm, killed):
            until_as_undisturbed(system)
        undisturbed, survived = verify(calm).holds(), verify(killed).holds()
        log.info("%d kills in the middle of slices, %d answers repeated", kills, len(survived.repeated))
        assert undisturbed.repeated == []
        assert survived.repeated, "every kill came after the checkpoint"
        mine, theirs = answers_of(survived), answers_of(undisturbed)
        assert mine.keys() == theirs.keys()
        differing = [source for source in theirs if mine[source] != theirs[source]]
        assert not differing, f"{len(differing)} answers differ, the first to {differing[0]}"
        assert model_of(killed) == model_of(calm)
