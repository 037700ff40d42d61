"""Micro-batch arithmetic, on a simulated worker and any schedule of arrivals."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.batching import FIRST_RECORDS, GATHER_SHARE, LEAST_RECORDS, MicroBatcher

OBJECTIVE_S = 0.05


def served(*batches: tuple[int, float], objective_s: float = OBJECTIVE_S) -> MicroBatcher:
    batcher = MicroBatcher(objective_s)
    for records, seconds in batches:
        batcher.served(records, seconds)
    return batcher


def test_with_nothing_waiting_there_is_no_hurry() -> None:
    assert MicroBatcher(OBJECTIVE_S).wait_s(0, None, 1.0) == math.inf


def test_a_free_worker_waits_a_small_share_of_the_objective_for_company_and_then_runs() -> None:
    batcher = MicroBatcher(OBJECTIVE_S)
    assert batcher.wait_s(1, 1.0, 1.0) == pytest.approx(GATHER_SHARE * OBJECTIVE_S)
    assert batcher.wait_s(1, 1.0, 1.0 + GATHER_SHARE * OBJECTIVE_S) == 0.0
    assert batcher.wait_s(1, 1.0, 2.0) == 0.0


def test_it_does_not_wait_when_nothing_more_is_in_sight_or_the_batch_is_full() -> None:
    batcher = MicroBatcher(OBJECTIVE_S)
    assert batcher.wait_s(1, 1.0, 1.0, more_in_sight=False) == 0.0
    assert batcher.wait_s(FIRST_RECORDS, 1.0, 1.0) == 0.0


def test_it_does_not_wait_when_the_service_alone_takes_all_the_time_there_is() -> None:
    assert served((100, 0.2), (200, 0.25)).wait_s(1, 1.0, 1.0) == 0.0


def test_batches_grow_with_fast_service_but_never_beyond_twice_what_was_served() -> None:
    batcher = MicroBatcher(OBJECTIVE_S)
    sizes = []
    for _ in range(12):
        records = batcher.take(10**6)
        sizes.append(records)
        batcher.served(records, 0.002 + 10e-6 * records)
    assert all(later >= earlier - 1 for earlier, later in pairwise(sizes))  # one less is rounding
    assert all(later <= 2 * earlier for earlier, later in pairwise(sizes))
    assert sizes[-1] == pytest.approx((0.4 * OBJECTIVE_S - 0.002) / 10e-6, rel=0.05)


def test_batches_shrink_when_service_turns_slow_and_recover_when_it_turns_fast_again() -> None:
    batcher = served(*[(1000, 0.01)] * 20)
    assert batcher.take(10**6) > 1000
    for each_s, fitting in ((1e-3, 20), (1e-5, 2000), (1e-4, 200)):
        for _ in range(8):
            records = batcher.take(10**6)
            batcher.served(records, each_s * records)
        assert batcher.take(10**6) == pytest.approx(fitting, rel=0.05)


def test_an_objective_out_of_reach_does_not_make_batches_so_small_that_the_fixed_cost_dominates() -> None:
    batcher = MicroBatcher(OBJECTIVE_S)
    for records in [100, 200, 400, 800] * 5:
        batcher.served(records, 0.1 + 1e-4 * records)
    assert batcher.take(10**6) == pytest.approx(1000, rel=0.05)


def test_one_absurd_measurement_leaves_batches_of_some_size() -> None:
    assert served((1, 30.0)).take(1000) >= LEAST_RECORDS
    assert served((1, 0.0), (10**9, 0.0)).take(10**12) <= 20_000
    assert served((5, math.nan), (5, -1.0), (0, 1.0)).take(1000) == FIRST_RECORDS


def test_settings_that_make_no_sense_are_refused() -> None:
    for objective_s, records in ((0.0, 10), (-1.0, 10), (math.nan, 10), (1.0, 0)):
        with pytest.raises(ValueError, match="must be positive"):
            MicroBatcher(objective_s, records)


ARRIVALS = st.lists(st.tuples(st.floats(0, 0.2), st.integers(1, 500)), min_size=1, max_size=30)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(ARRIVALS, st.floats(0, 0.08), st.floats(0, 1e-3), st.booleans())
def test_no_schedule_of_arrivals_makes_a_record_wait_long_while_the_worker_is_free(
    gaps: list[tuple[float, int]], fixed_s: float, each_s: float, sees_ahead: bool
) -> None:
    """Simulates one worker. `free` adds up for how long it was free while the oldest record waited."""
    arrivals: list[float] = []
    clock = 0.0
    for gap_s, records in gaps:
        clock += gap_s
        arrivals += [clock] * records
    batcher = MicroBatcher(OBJECTIVE_S)
    now_s, done = 0.0, 0
    while done < len(arrivals):
        if arrivals[done] > now_s:
            now_s = arrivals[done]
        oldest_s, free_s = arrivals[done], 0.0
        while True:
            arrived = sum(at <= now_s for at in arrivals[done:])
            more = not sees_ahead or done + arrived < len(arrivals)
            wait_s = batcher.wait_s(arrived, oldest_s, now_s, more)
            if wait_s <= 0:
                break
            assert more, "it waits for nothing"
            assert arrived < batcher.fitting(), "it waits with a full batch"
            coming_s = arrivals[done + arrived] if done + arrived < len(arrivals) else math.inf
            # Woken by an arrival or by the time; a timer never fires early by less than a clock can tell.
            step_s = max(min(wait_s, coming_s - now_s), 1e-9)
            now_s, free_s = now_s + step_s, free_s + step_s
        assert free_s <= GATHER_SHARE * OBJECTIVE_S + 1e-6
        if free_s > 0:
            assert now_s - oldest_s <= GATHER_SHARE * OBJECTIVE_S + 1e-6, (
                "it waited though the record had waited before"
            )
        taken = batcher.take(arrived)
        assert 1 <= taken <= arrived
        service_s = fixed_s + each_s * taken
        batcher.served(taken, service_s)
        now_s += service_s
        done += taken
