"""Outcomes that come early, late, twice or for nobody while workers die in between, and clocks that are wrong.

`test_contract` counts each fate of an outcome by hand, by one worker that nobody disturbs. Here a worker is killed after
every record, so that whatever joins an outcome to its visit must have been in the store; and time itself misbehaves: a
visitor's clock is a day ahead, the worker's jumps by hours and back.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.jumping import jump
from tests.system import BEGIN_MS, BOUGHT, MINUTE_MS, Sent, System, outcome, settled, traffic, verify, visit
from tests.taught import labels_in_lessons
from tests.verdict import until_as_undisturbed
from tests.waiting import eventually_sync

if TYPE_CHECKING:
    from streams.settings import Topics

# A minute's lateness, and lessons that stay in their stream.
TASK = (
    'checkpoint_interval = "100ms"\nsnapshot_interval = "1h"\n[tasks.bought]\noutcomes = ["bought"]\nhorizon = "30m"\n'
)
DAY_MS, HOUR_S = 86_400_000, 3_600


@pytest.fixture
def names(embedded_kafka: str, make_topics: "Callable[..., Topics]") -> "Topics":
    return make_topics(embedded_kafka, 1)


@pytest.fixture
def system(tmp_path: Path, embedded_kafka: str, store_url: str, names: "Topics") -> Iterator[System]:
    with System(tmp_path, embedded_kafka, store_url, names, TASK, partitions=1) as running:
        yield running


def counted(system: System, **wanted: int) -> None:
    """Wait until the status counts what is given."""

    def reached() -> bool:
        found = system.status()
        assert {name: getattr(found, name) for name in wanted} == wanted
        return True

    eventually_sync(reached, 30, f"the status counts {wanted}", poll_s=0.1)


def fates(names: "Topics") -> list[tuple[list[Sent], dict[str, int]]]:
    """Records, and what they change in the counters once they are read after those before them."""

    def saw(who: str, minute: float, **more: Any) -> Sent:
        return visit(
            names.visits, who, f"{who}-{minute}", BEGIN_MS + round(minute * MINUTE_MS), "https://a.example/", **more
        )

    def told(who: str, minute: float, **more: Any) -> Sent:
        return outcome(names.outcomes, who, "bought", BEGIN_MS + round(minute * MINUTE_MS), **more)

    scored, learned = {"visits_scored": 1}, {"examples_learned": 1}
    joined = {"outcomes_joined": 1}
    return [
        ([told("early", 2)], {}),
        ([saw("early", 1.5)], scored | joined | learned),
        ([saw("usual", 3)], scored),
        ([saw("not", 3.5)], scored),
        ([saw("silent", 4)], scored),
        ([told("usual", 8)], joined | learned),
        ([told("usual", 8)], {"outcomes_duplicate": 1}),
        ([told("not", 9, value=False)], joined | learned),
        ([told("nobody", 10)], {}),
        ([saw("clock", 120)], scored | learned | {"outcomes_unmatched": 1}),  # silent's half hour is over, nobody came
        # Of an hour that is settled, as is seen when the stream goes on at the latest.
        ([told("silent", 20), saw("clock", 121)], scored | {"outcomes_late": 1}),
    ]


@pytest.mark.parametrize("records_a_worker", [4, pytest.param(1, marks=pytest.mark.long)])
def test_an_outcome_meets_its_visit_though_the_worker_died_between_them(system: System, records_a_worker: int) -> None:
    counts = dict.fromkeys(
        ("visits_scored", "examples_learned", "outcomes_joined", "outcomes_duplicate", "outcomes_unmatched",
         "outcomes_late"), 0,
    )  # fmt: skip
    steps = fates(system.names)
    for begin in range(0, len(steps), records_a_worker):
        worker = system.start()
        for records, changes in steps[begin : begin + records_a_worker]:
            system.publish(records)
            for name, more in changes.items():
                counts[name] += more
            counted(system, lag=0, **counts)
        worker.kill()
    assert verify(system).holds().repeated == [], "each was checkpointed before the kill"


def test_a_visitor_whose_clock_is_a_day_ahead_takes_nobody_elses_time_away(system: System) -> None:
    """Were its visit believed, every half hour would be over, and outcomes of honest visitors would be late."""
    names, now_ms = system.names, int(time.time() * 1000)
    worker = system.start()
    system.publish([visit(names.visits, "honest", "h1", now_ms - 5 * MINUTE_MS, "https://a.example/")])
    counted(system, lag=0, visits_scored=1)
    system.publish([visit(names.visits, "ahead", "a1", now_ms + DAY_MS - 5 * MINUTE_MS, "https://a.example/")])
    system.publish([visit(names.visits, "further", "f1", now_ms + 2 * DAY_MS, "https://a.example/")])
    counted(system, lag=0, visits_scored=2, rejected=1, examples_learned=0)
    worker.kill()
    worker = system.start()
    system.publish([visit(names.visits, "clock", "c1", now_ms - 4 * MINUTE_MS, "https://a.example/")])
    counted(system, lag=0, visits_scored=3)  # and with it whatever is over by now is settled
    system.publish([outcome(names.outcomes, "honest", "bought", now_ms - 4 * MINUTE_MS)])
    counted(system, lag=0, outcomes_joined=1, outcomes_late=0, examples_learned=1)
    system.publish([outcome(names.outcomes, "ahead", "bought", now_ms + DAY_MS - 4 * MINUTE_MS)])
    counted(system, lag=0, outcomes_joined=2, outcomes_late=0, examples_learned=2)
    assert labels_in_lessons(system) == [1, 1], "an hour that was taken for over would have taught a no"
    assert worker.stop() == 0


def test_a_clock_that_jumps_by_hours_and_back_changes_no_count_and_stops_nothing(
    tmp_path: Path, embedded_kafka: str, store_url: str, names: "Topics", seed: int
) -> None:
    """Waiting is measured by a clock that cannot jump, and event time by the events."""
    settings = 'max_in_flight = 400\ncheckpoint_interval = "100ms"\n' + BOUGHT
    with System(tmp_path, embedded_kafka, store_url, names, settings, partitions=1) as system:
        begin_ms = int(time.time() * 1000) - 6 * HOUR_S * 1000
        system.publish(traffic(names, seed, 3_000, begin_ms=begin_ms))
        worker = system.launch(program="tests.jumping", environment={"URL2VEC_TEST_FOLDER": str(tmp_path)})
        worker.until_ready()
        for scored, hours in ((300, -6), (1_200, 6), (2_000, -12)):
            system.until_scored(scored)
            assert system.status().lag > 0, "it jumped before the end"
            jump(tmp_path, hours * HOUR_S)
        system.until_scored(2_900)
        jump(tmp_path, 0)
        system.publish(traffic(names, seed + 1, 200, begin_ms=begin_ms + 3 * HOUR_S * 1000))
        settled(system)
        until_as_undisturbed(system)
        assert worker.stop() == 0
