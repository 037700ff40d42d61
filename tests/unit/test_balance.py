"""Positives weigh less while the negatives of their time are still on their way, and nothing else is touched."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from streams.balance import Balance


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_weight_is_a_share(asked: int, positive: int, negative: int, expired: int) -> None:
    balance = Balance(asked + positive + negative, positive, negative, min(expired, negative))
    assert 0 < balance.weight(True) <= 1
    assert balance.weight(False) == 1


def test_before_any_horizon_has_passed_a_positive_says_next_to_nothing() -> None:
    assert Balance(asked=1_000, positive=500).weight(True) < 0.01


def test_once_the_open_questions_are_few_a_positive_says_all() -> None:
    assert Balance(asked=100_000, positive=60_000, negative=39_000, expired=39_000).weight(True) > 0.97


def test_where_negatives_are_as_quick_as_positives_nothing_is_corrected() -> None:
    assert Balance(asked=10_000, positive=3_000, negative=1_500, expired=0).weight(True) > 0.99


def test_in_a_steady_stream_learned_positives_keep_the_true_ratio_to_negatives() -> None:
    """A third of the visits ends well at once; the others expire 100 visits later."""
    balance, learned = Balance(), [0.0, 0.0]
    for n in range(20_000):
        balance.asked += 1
        if n % 3 == 0:
            balance.settle(np.array([True]), np.array([False]))
            learned[1] += balance.weight(True)
        if n >= 100 and (n - 100) % 3:
            balance.settle(np.array([False]), np.array([True]))
            learned[0] += balance.weight(False)
        if n == 300:
            assert 0.2 < learned[1] / learned[0] < 0.8  # unweighted it would be 0.75
    assert abs(learned[1] / learned[0] - 0.5) < 0.02
