"""Drifts are found when losses rise, soon and only then, and a restored detector is one that never stopped."""

from __future__ import annotations

import math

import numpy as np
import pytest

from models.drift import BASELINE, BOOST, BOOST_EXAMPLES, CHUNK, FIRST, HISTORY, OURS, Drift

TASKS = (
    (0.67, 1.2),
    (0.02, 1.0),
    (0.95, 1.5),
    (0.67, 0.5),
)  # share of positives, and how far answers differ, in logits


def losses(draw: np.random.Generator, n: int, task: int = 0, flipped: bool = False) -> np.ndarray:
    """Log-losses of calibrated answers; `flipped`: a positive is called a negative from now on."""
    positive, spread = TASKS[task]
    answer = 1 / (1 + np.exp(-draw.normal(math.log(positive / (1 - positive)), spread, n)))
    label = (draw.random(n) < answer) != flipped
    loss: np.ndarray = -np.log(np.where(label, answer, 1 - answer))
    return loss


def drifts(drift: Drift, ours: np.ndarray, baseline: np.ndarray | None = None, task: int = 0) -> list[int]:
    """After how many of the examples, given in batches of one chunk, a drift of ours was said."""
    found = []
    for at in range(0, len(ours), CHUNK):
        some = ours[at : at + CHUNK]
        other = some if baseline is None else baseline[at : at + CHUNK]
        if drift.learn(np.full(len(some), task, np.int32), some, other)[task]:
            found.append(at + len(some))
    return found


def blob(drift: Drift) -> bytes:
    return b"".join(array.tobytes() for _, array in sorted(drift.state().items()))


@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5])
def test_a_stationary_stream_raises_no_alarm_in_two_hundred_thousand_examples(seed: int) -> None:
    draw, drift = np.random.default_rng(seed), Drift(2)
    for task in (0, 1 + seed % 3):
        loss = losses(draw, 200_000, task)
        drift.learn(np.full(len(loss), task % 2, np.int32), loss, loss[::-1])
    assert [drift.counted(task) for task in range(2)] == [(0, 0), (0, 0)]


@pytest.mark.parametrize("seed", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("task", range(len(TASKS)))
def test_a_flip_of_meaning_is_found_within_four_hundred_examples(task: int, seed: int) -> None:
    draw, drift = np.random.default_rng(seed), Drift(1)
    assert drifts(drift, losses(draw, 20_000, task)) == []
    found = drifts(drift, losses(draw, 1_000, task, flipped=True))
    assert found
    assert found[0] <= 400


def test_a_jump_is_seen_by_page_hinkley_and_not_later_than_by_adwin() -> None:
    for seed in range(1, 6):
        draw, drift = np.random.default_rng(seed), Drift(1)
        drifts(drift, losses(draw, 20_000))
        assert drifts(drift, losses(draw, 500) + 0.5)
        assert drift.seen_by(0)[1] == 1


def test_a_loss_that_grows_by_a_seventh_is_found_within_a_few_thousand_examples() -> None:
    for seed in range(6):
        draw, drift = np.random.default_rng(seed), Drift(1)
        assert drifts(drift, losses(draw, 20_000)) == []
        assert drifts(drift, 1.15 * losses(draw, 5_000))


def test_a_small_rise_that_lasts_is_found_by_adwin() -> None:
    draw, drift = np.random.default_rng(2), Drift(1)
    assert drifts(drift, losses(draw, 30_000)) == []
    assert drifts(drift, 1.06 * losses(draw, 30_000))
    assert drift.seen_by(0) == (1, 0)


def test_a_loss_that_falls_is_no_drift() -> None:
    draw, drift = np.random.default_rng(3), Drift(1)
    cold = losses(draw, 60_000) + 0.4 * np.exp(-np.arange(60_000) / 3000)
    assert drifts(drift, cold) == []
    assert drifts(drift, 0.7 * losses(draw, 20_000)) == []
    assert drift.counted(0) == (0, 0)


def test_what_is_normal_after_a_drift_is_learned_anew() -> None:
    draw, drift = np.random.default_rng(4), Drift(1)
    worse = np.concatenate([losses(draw, 20_000), losses(draw, 60_000) + 0.5])
    assert len(drifts(drift, worse)) == 1
    assert len(drifts(drift, losses(draw, 2_000) + 1.5)) == 1


def test_each_side_is_counted_for_itself_and_only_ours_is_said() -> None:
    draw, drift = np.random.default_rng(5), Drift(2)
    same = losses(draw, 20_000)
    assert drifts(drift, same, same, task=1) == []
    assert drifts(drift, same[:1_000], same[:1_000] + 1, task=1) == []
    assert drift.counted(1) == (0, 1)
    assert drift.counted(0) == (0, 0)
    assert drift.since(1, OURS) is None
    assert drift.since(1, BASELINE) is not None
    assert drift.boost(1) == 1


def test_learning_rates_rise_at_a_drift_and_fall_back() -> None:
    draw, drift = np.random.default_rng(6), Drift(1)
    same = losses(draw, 312 * CHUNK)
    drifts(drift, same)
    assert drift.boost(0) == 1
    task = np.zeros(CHUNK, np.int32)
    while not drift.learn(task, same[:CHUNK] + 1, same[:CHUNK])[0]:
        pass
    assert drift.boost(0) == BOOST
    assert drift.since(0) == 0
    drift.learn(np.zeros(1_000, np.int32), same[:1_000], same[:1_000])
    assert drift.since(0) == 1_000
    assert drift.boost(0) == pytest.approx(1 + (BOOST - 1) * math.exp(-1_000 / BOOST_EXAMPLES))


def test_a_loss_that_is_no_number_is_passed_over() -> None:
    draw, drift, clean = np.random.default_rng(7), Drift(1), Drift(1)
    same = losses(draw, 3_000)
    holes = np.insert(same, [5, 70, 700], [np.nan, np.inf, np.nan])
    filled = np.insert(same, [5, 70, 700], [0.5, 0.5, 0.5])
    drift.learn(np.zeros(len(holes), np.int32), holes, filled)
    clean.learn(np.zeros(len(same), np.int32), same, same)
    for name, array in drift.state().items():
        assert np.array_equal(array, clean.state()[name]), name


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_one_restored_at_random_moments_sees_the_same_bit_by_bit(seed: int) -> None:
    draw, live, restored = np.random.default_rng(seed), Drift(3), Drift(3)
    restorations, longest = 0, 0
    for k in range(500):
        m = int(draw.integers(1, 600))
        task = draw.integers(0, 3, m).astype(np.int32)
        level = 1.0 if k < 300 else 2.5 if k < 400 else 1.2
        ours, baseline = level * losses(draw, m), losses(draw, m, 3) + (k > 350) * 0.5
        assert (live.learn(task, ours, baseline) == restored.learn(task, ours, baseline)).all()
        assert blob(live) == blob(restored)
        longest = max(longest, int(live.state()["length"].max()))
        if draw.random() < 0.2:
            again = Drift(3)
            again.load(restored.state())
            restored, restorations = again, restorations + 1
    assert restorations > 50
    assert longest > 2 * HISTORY - 8  # so that both have been made anew from what is left
    assert live.counted(0)[OURS] >= 1
    assert live.counted(0)[BASELINE] >= 1


def test_the_same_is_seen_wherever_batches_end() -> None:
    draw, whole, parts = np.random.default_rng(9), Drift(2), Drift(2)
    task = draw.integers(0, 2, 9_000).astype(np.int32)
    ours = np.concatenate([losses(draw, 6_000), losses(draw, 3_000) + 1])
    whole.learn(task, ours, ours)
    for at in range(0, len(task), 17):
        parts.learn(task[at : at + 17], ours[at : at + 17], ours[at : at + 17])
    assert blob(whole) == blob(parts)
    assert whole.counted(0)[OURS] == 1


def test_what_is_kept_is_bounded() -> None:
    draw, drift = np.random.default_rng(10), Drift(1)
    most = 0
    for _ in range(10):
        loss = losses(draw, 10_000)
        drift.learn(np.zeros(len(loss), np.int32), loss, loss)
        most = max(most, len(drift.state()["history"]))
    assert most <= 2 * 2 * HISTORY


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("length", np.array([[5, 5]])),
        ("length", np.array([[-1, 1]])),
        ("history", np.array([np.nan] * (2 * FIRST))),
        ("pending", np.zeros((2, 2, CHUNK))),
        ("found", np.zeros((1, 2, 3), np.float64)),
        ("examples", np.array([-1])),
    ],
)
def test_a_state_that_does_not_fit_is_refused(name: str, value: np.ndarray) -> None:
    drift = Drift(1)
    loss = losses(np.random.default_rng(1), FIRST * CHUNK)
    drift.learn(np.zeros(len(loss), np.int32), loss, loss)
    with pytest.raises(ValueError, match=r"drift|chunks"):
        Drift(1).load(drift.state() | {name: value})


def test_no_tasks_and_no_examples_are_no_error() -> None:
    nothing = np.zeros(0, np.float32)
    assert Drift(0).learn(np.zeros(0, np.int32), nothing, nothing).shape == (0,)
    assert not Drift(1).learn(np.zeros(0, np.int32), nothing, nothing).any()
