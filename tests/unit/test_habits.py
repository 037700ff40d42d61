"""Habits: decayed counts in a few bytes, against sums over every visit. Of the plain rules, to which the compiled ones are held
(test_session_steps.py)."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.visits import ACTIONS, HABITS, WINDOWS_MS
from tests import plain_habits as habits

START_MS = 1_700_000_000_000
HOUR_MS = 3_600_000


def walk(visits: list[tuple[int, bool, int]]) -> tuple[bytes, list[tuple[float, ...]], list[tuple[int, ...]]]:
    """Takes in visits (time, starts a session, action), in order of time."""
    kept, last_ms = b"", 0
    usual, actions = [], []
    for now_ms, new, action in visits:
        before, in_session, kept = habits.visit(kept, last_ms, now_ms, new, action)
        usual.append(before)
        actions.append(in_session)
        last_ms = now_ms
    return kept, usual, actions


VISITS = st.lists(
    st.tuples(st.integers(0, 400 * 24), st.booleans(), st.integers(1, habits.KINDS)), min_size=1, max_size=30
).map(lambda rows: [(START_MS + h * HOUR_MS, new or k == 0, a) for k, (h, new, a) in enumerate(sorted(rows))])


@settings(derandomize=True, max_examples=200, deadline=None)
@given(VISITS)
def test_counts_are_those_of_a_sum_over_all_earlier_visits(visits: list[tuple[int, bool, int]]) -> None:
    _, usual, actions = walk(visits)
    now_ms, new, _ = visits[-1]
    earlier = visits[:-1]
    starts = [k for k, (_, starts_session, _) in enumerate(visits) if starts_session]
    ended = [visits[k - 1][0] for k in starts[1:]]  # the last visit of each session before the current one
    for w, window_ms in enumerate(WINDOWS_MS):
        seen = sum(math.exp(-(now_ms - t) / window_ms) for t, _, _ in earlier)
        sessions = sum(math.exp(-(now_ms - t) / window_ms) for t in ended)
        assert usual[-1][w] == pytest.approx(seen, rel=0.02, abs=1e-3)
        assert usual[-1][len(WINDOWS_MS) + w] == pytest.approx(sessions, rel=0.02, abs=1e-3)
    for action in range(1, ACTIONS + 1):
        of_kind = sum(math.exp(-(now_ms - t) / WINDOWS_MS[1]) for t, _, a in earlier if a == action)
        assert usual[-1][HABITS - ACTIONS + action - 1] == pytest.approx(of_kind, rel=0.02, abs=1e-3)
        in_session = [a for _, _, a in visits[starts[-1] : -1]]
        assert actions[-1][action - 1] == min(in_session.count(action), habits.OFTEN) * (not new)


def test_a_visitor_that_was_never_seen_has_no_habits() -> None:
    kept, (usual,), (actions,) = walk([(START_MS, True, 3)])
    assert usual == habits.NEW
    assert not any(actions)
    assert habits.are_habits(kept)


def test_the_first_visit_and_the_silence_before_a_session_are_known() -> None:
    _, usual, _ = walk([(START_MS, True, 1), (START_MS + HOUR_MS, True, 1), (START_MS + 2 * HOUR_MS, False, 1)])
    first_s, silence_s = zip(*(u[6:8] for u in usual), strict=True)
    assert first_s == (0, 3_600, 7_200)
    assert silence_s[0] == -1
    assert silence_s[1:] == pytest.approx([3_600, 3_600], rel=0.05)


def test_of_too_many_kinds_the_rarest_is_forgotten_and_the_bytes_do_not_grow() -> None:
    often = [(START_MS + k, k == 0, 1 + k % (habits.KINDS - 1)) for k in range(50)]
    kept, _, _ = walk([*often, (START_MS + 60, False, 14), (START_MS + 61, False, 15)])
    assert len(kept) == habits.LONGEST
    usual, _, _ = habits.visit(kept, START_MS + 61, START_MS + 62, False, 1)
    kinds = usual[HABITS - ACTIONS :]
    assert kinds[13] == 0
    assert kinds[14] == pytest.approx(1)
    assert all(x > 5 for x in kinds[: habits.KINDS - 1])


def test_counts_stay_finite_over_a_million_visits_at_once_and_over_a_thousand_years() -> None:
    kept = b""
    for _ in range(5_000):
        usual, actions, kept = habits.visit(kept, START_MS, START_MS, False, 2)
    assert (usual[0], actions[1]) == (2_048, habits.OFTEN)
    usual, _, kept = habits.visit(kept, START_MS, START_MS + 1_000 * 365 * 86_400_000, True, 2)
    assert usual[0] == 0
    assert all(map(math.isfinite, usual))


def test_a_visit_dated_before_the_last_one_fades_nothing() -> None:
    kept, _, _ = walk([(START_MS, True, 1), (START_MS + HOUR_MS, False, 1)])
    usual, _, _ = habits.visit(kept, START_MS + HOUR_MS, START_MS - HOUR_MS, False, 1)
    assert usual[:3] == pytest.approx([2, 2, 2], rel=0.01)
    assert usual[6] == 0


@pytest.mark.parametrize(
    ("length", "fits"),
    [(0, True), (1, False), (16, False), (17, True), (18, False), (20, True), (38, True), (41, False)],
)
def test_bytes_of_another_length_are_no_habits(length: int, fits: bool) -> None:
    assert habits.are_habits(bytes(length)) is fits
