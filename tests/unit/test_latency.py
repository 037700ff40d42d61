"""Quantiles of what happened lately, from buckets that add up across workers."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.latency import BUCKETS, GROWTH, WINDOW_S, RecentDurations, quantile_ms

NOW = 1_000_000.0


@given(st.lists(st.floats(1, 1e6), min_size=1, max_size=60), st.sampled_from([0.5, 0.95, 0.99, 1.0]))
def test_a_quantile_is_right_to_a_bucket(durations: list[float], share: float) -> None:
    recent = RecentDurations()
    recent.add(durations, NOW)
    exact = sorted(durations)[math.ceil(share * len(durations)) - 1]
    found = quantile_ms(recent.counts(NOW), share)
    assert found is not None
    assert exact / GROWTH - 0.01 <= found <= exact * GROWTH + 0.01


def test_of_nothing_there_is_no_quantile() -> None:
    assert quantile_ms(RecentDurations().counts(NOW), 0.5) is None


@given(st.lists(st.floats(-1e9, 1e12), max_size=30), st.lists(st.floats(-1e9, 1e12), max_size=30))
def test_workers_add_up(one: list[float], other: list[float]) -> None:
    parts, whole = [RecentDurations(), RecentDurations()], RecentDurations()
    for part, durations in zip(parts, (one, other), strict=True):
        part.add(durations, NOW)
        whole.add(durations, NOW)
    counts = [a + b for a, b in zip(*(part.counts(NOW) for part in parts), strict=True)]
    assert counts == whole.counts(NOW)
    assert len(counts) == BUCKETS
    assert sum(counts) == len(one) + len(other), "every duration is counted, whatever it is"


def test_clocks_that_differ_count_as_no_time() -> None:
    recent = RecentDurations()
    recent.add([-5.0, 0.0, 1.0], NOW)
    assert recent.counts(NOW)[0] == 3


@pytest.mark.parametrize(
    ("later_s", "counted"), [(0, 1), (WINDOW_S, 1), (2 * WINDOW_S - 1, 1), (2 * WINDOW_S, 0), (1e5, 0)]
)
def test_what_is_two_windows_old_is_forgotten(later_s: float, counted: int) -> None:
    recent = RecentDurations()
    recent.add([10.0], NOW)
    assert sum(recent.counts(NOW + later_s)) == counted


def test_a_duration_is_seen_for_at_least_one_window() -> None:
    recent = RecentDurations()
    recent.counts(NOW)  # begins a window
    recent.add([10.0], NOW + WINDOW_S - 1)
    assert sum(recent.counts(NOW + 2 * WINDOW_S - 2)) == 1
    assert sum(recent.counts(NOW + 3 * WINDOW_S)) == 0
