"""The learners inside the classifier follow their papers, and River's state survives as it was."""

import math

import numpy as np
import pytest
from river import linear_model, optim

from models.baseline import Baseline
from models.classifier import Classifier
from models.features import layout
from models.hashed import FTRL_ALPHA, FTRL_BETA, FTRL_L2, add_counts, ftrl_learn, ftrl_logits, read_counts
from models.settings import ModelSettings

SETTINGS = ModelSettings(table_bits=8, embedding_bits=6, embedding=2, page_embedding=2, hidden=4, chunk=8)


def rows(seed: int, n: int) -> np.ndarray:
    """Random rows of one task: three levels, two pages, three numbers."""
    random = np.random.default_rng(seed)
    made = np.zeros(n, layout(1))
    made["levels"][:, :3] = random.integers(1, 20, (n, 3)) + np.array([0, 100, 200])
    made["pages"][:, :2] = random.integers(1, 9, (n, 2))
    made["numbers"][:, :3] = random.standard_normal((n, 3))
    return made


def labels(seed: int, n: int) -> np.ndarray:
    return (np.random.default_rng(seed).random(n) < 0.4).astype(np.float32)


def test_ftrl_follows_its_paper() -> None:
    levels, y = np.array([[1, 5, 0], [1, 6, 0], [2, 5, 9], [1, 5, 0]], np.int32), np.array([1, 0, 1, 1], np.float32)
    z, n, bias = np.zeros((1, 16), np.float32), np.zeros((1, 16), np.float32), np.zeros((1, 2), np.float32)
    ftrl_learn(levels, np.zeros(4, np.int32), y, np.ones(4, np.float32), z, n, bias)
    plain: dict[object, tuple[float, float]] = {}

    def weight(key: object) -> float:
        zi, ni = plain.get(key, (0.0, 0.0))
        return -zi / ((FTRL_BETA + math.sqrt(ni)) / FTRL_ALPHA + FTRL_L2)

    for active, label in zip([["b", 1, 5], ["b", 1, 6], ["b", 2, 5, 9], ["b", 1, 5]], y, strict=True):
        g = 1 / (1 + math.exp(-sum(weight(key) for key in active))) - label
        for key in active:
            zi, ni = plain.get(key, (0.0, 0.0))
            sigma = (math.sqrt(ni + g * g) - math.sqrt(ni)) / FTRL_ALPHA
            plain[key] = (zi + g - sigma * weight(key), ni + g * g)
    out = np.empty((1, 1), np.float32)
    ftrl_logits(np.array([[2, 5, 0]], np.int32), z, n, bias, out)
    assert out[0, 0] == pytest.approx(weight("b") + weight(2) + weight(5), rel=1e-5)
    assert out[0, 0] != 0


def test_counts_are_smoothed_rates_against_the_prior() -> None:
    positive, seen, totals = np.zeros((1, 16), np.float32), np.zeros((1, 16), np.float32), np.zeros((1, 2))
    levels, y = np.array([[3]] * 8 + [[4]] * 4, np.int32), np.array([1] * 6 + [0] * 6, np.float32)
    add_counts(levels, np.zeros(12, np.int32), y, np.ones(12, np.float32), positive, seen, totals)
    out = np.empty((3, 1, 1, 2), np.float32)
    read_counts(np.array([[3], [9], [0]], np.int32), positive, seen, totals, out)
    prior = 6.5 / 13
    rate = (6 + 5 * prior) / (8 + 5)
    assert out[0, 0, 0].tolist() == pytest.approx([math.log(rate / (1 - rate)), math.log(9)])
    assert out[1:].any() == False  # noqa: E712 - an array's any, of unseen and absent levels


def test_a_step_that_is_not_finite_is_skipped_and_counted() -> None:
    classifier = Classifier(SETTINGS, 1)
    for seed in range(10):
        classifier.learn(rows(seed, 8), np.zeros(8, np.int32), labels(seed, 8))
    broken = classifier.state()
    broken["network.theta"] = np.full_like(broken["network.theta"], np.nan)
    classifier.load(broken)
    classifier.learn(rows(2, 24), np.zeros(24, np.int32), labels(2, 24))
    assert classifier.skipped_steps == 3
    state = classifier.state()
    for name, array in state.items():
        assert name == "network.theta" or np.isfinite(array).all(), name
    answers = classifier.score(rows(3, 9))[:, 0]  # the linear learner's, where the network has none
    assert np.isfinite(answers).all()
    assert len(set(answers.tolist())) > 1


def test_examples_move_the_answers_towards_their_labels() -> None:
    classifier, asked = Classifier(SETTINGS, 2), np.zeros(1, layout(2))
    asked["levels"][0, 0], asked["pages"][0, 0] = 7, 7
    for _ in range(100):
        classifier.learn(asked.repeat(2), np.array([0, 1], np.int32), np.array([1, 0], np.float32))
    one, other = classifier.score(asked)[0]
    assert one > 0.8
    assert other < 0.2


def test_the_baseline_is_river() -> None:
    baseline, taught, y = Baseline(SETTINGS, 1), rows(3, 200), labels(3, 200)
    river = linear_model.LogisticRegression(optimizer=optim.AdaGrad(SETTINGS.baseline_rate))
    plain = [
        {int(v) & 255: 1.0 for v in row["levels"] if v}
        | {-1 - k: float(x) / 4 for k, x in enumerate(row["numbers"]) if x}
        for row in taught
    ]
    for x, label in zip(plain, y, strict=True):
        river.learn_one(x, bool(label))
    baseline.learn(taught, np.zeros(200, np.int32), y)
    expected = [river.predict_proba_one(x)[True] for x in plain]
    assert baseline.score(taught)[:, 0] == pytest.approx(expected, abs=1e-6)
    again = Baseline(SETTINGS, 1)
    again.load(baseline.state())
    assert np.array_equal(again.score(taught), baseline.score(taught))
