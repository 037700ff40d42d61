"""Outcomes wait for the visits: streams/lockstep.py."""

from dataclasses import dataclass

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from streams.lockstep import NO_TIME_MS, Lockstep


@dataclass(frozen=True)
class Batch:
    records: list[int]


def held(*batches: list[int], since: float = 0.0) -> tuple[Lockstep[Batch], list[int]]:
    """Batches of records with these times, held since `since`, 1.0 later each; records are numbered."""
    lockstep, number = Lockstep[Batch](), 0
    for k, times in enumerate(batches):
        lockstep.hold(
            f"event {k}", Batch(list(range(number, number + len(times)))), np.array(times, np.int64), since + k
        )
        number += len(times)
    return lockstep, [time for times in batches for time in times]


def taken(lockstep: Lockstep[Batch], visits_ms: int, visits_end: float = -1.0) -> list[int]:
    return [record for _, batch in lockstep.take(visits_ms, visits_end) for record in batch.records]


def test_an_outcome_goes_on_when_the_visits_have_come_to_its_time() -> None:
    lockstep, _ = held([10, 20, 30])
    assert lockstep.next_ms == 10
    assert not lockstep.is_ripe(9, -1.0)
    assert taken(lockstep, 9) == []
    assert lockstep.is_ripe(10, -1.0)
    assert taken(lockstep, 20) == [0, 1]
    assert (lockstep.next_ms, lockstep.records) == (30, 1)
    assert taken(lockstep, 30) == [2]
    assert (lockstep.next_ms, lockstep.records) == (None, 0)


def test_the_event_comes_with_the_last_of_its_records() -> None:
    lockstep, _ = held([10, 20], [30])
    assert [event for event, _ in lockstep.take(10, -1.0)] == [None]
    assert [event for event, _ in lockstep.take(30, -1.0)] == ["event 0", "event 1"]


def test_an_end_of_the_visits_frees_what_had_come_before_it_was_asked_and_no_more() -> None:
    lockstep, _ = held([10, 20], [15, 25], since=1.0)
    assert not lockstep.is_ripe(0, 0.9)
    assert taken(lockstep, 0, 1.0) == [0, 1]
    assert taken(lockstep, 0, 1.9) == []
    assert taken(lockstep, 0, 2.0) == [2, 3]


def test_a_clock_that_runs_ahead_holds_nobody_up() -> None:
    lockstep, _ = held([10, 9_000], [20, 30])
    assert taken(lockstep, 20) == [0, 1, 2]
    assert taken(lockstep, 29) == []


def test_what_cannot_be_read_goes_with_its_neighbours() -> None:
    lockstep, _ = held([NO_TIME_MS, 10, NO_TIME_MS], [NO_TIME_MS], [20])
    assert taken(lockstep, 9) == []
    assert taken(lockstep, 10) == [0, 1, 2, 3]
    alone, _ = held([NO_TIME_MS, NO_TIME_MS])
    assert taken(alone, -5) == [0, 1]


@given(
    st.lists(
        st.lists(st.one_of(st.integers(0, 50), st.just(NO_TIME_MS)), min_size=1, max_size=6), min_size=1, max_size=6
    ),
    st.lists(st.integers(0, 60), max_size=8),
)
def test_order_is_kept_nothing_is_lost_and_nothing_waits_or_goes_without_reason(
    batches: list[list[int]], frontiers: list[int]
) -> None:
    lockstep, times = held(*batches)
    gone: list[int] = []
    for visits_ms in sorted(frontiers):
        gone += taken(lockstep, visits_ms)
        assert gone == list(range(len(gone)))
        assert lockstep.records == len(times) - len(gone)
        waiting = [time for time in times[len(gone) :] if time < NO_TIME_MS]
        # None that waits is of a time that the visits have come to.
        assert all(time > visits_ms for time in waiting)
        # The last that went was of such a time, or could not be read.
        assert not gone or times[gone[-1]] <= visits_ms or times[gone[-1]] == NO_TIME_MS
        assert lockstep.next_ms is None or lockstep.next_ms == min(waiting, default=lockstep.next_ms)
    gone += taken(lockstep, 0, visits_end=100.0)
    assert gone == list(range(len(times)))
