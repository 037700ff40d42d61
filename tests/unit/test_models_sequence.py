"""Two Markov chains: what they say is what the formula says, by a slow and obvious model."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from models.sequence import Sequence

TRUST = 8.0


def stream(seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Pages, newest first, and labels: sessions with the outcome prefer to go up, the others down."""
    random = np.random.default_rng(seed)
    label = (random.random(n) < 0.4).astype(np.float32)
    pages = np.zeros((n, 4), np.int32)
    pages[:, 3] = random.integers(1, 12, n)
    for k in (2, 1, 0):
        step = np.where(random.random(n) < np.where(label > 0, 0.8, 0.3), 1, -1)
        pages[:, k] = (pages[:, k + 1] - 1 + step) % 11 + 1
    pages[random.random(n) < 0.2, 2:] = 0
    return pages, label


def test_it_says_what_an_obvious_model_says() -> None:
    pages, label = stream(0, 3_000)
    model = Sequence(1, 12)
    model.learn(pages, np.zeros(3_000, np.int32), label, np.ones(3_000, np.float32))
    steps: Counter[tuple[float, int, int]] = Counter()
    seen: Counter[tuple[float, int]] = Counter()
    for row, y in zip(pages.tolist(), label.tolist(), strict=True):
        seen[y, row[0]] += 1
        seen[y, 0] += 1
        if row[1]:
            steps[y, row[1], row[0]] += 1

    def expected(row: list[int]) -> float:
        total = 0.0
        for here, before in itertools.pairwise(row):
            if not here or not before:
                break
            chance = [
                (steps[y, before, here] + TRUST * (seen[y, here] + 0.5) / (seen[y, 0] + 1 + 1000))
                / (seen[y, before] + TRUST)
                for y in (0.0, 1.0)
            ]
            total += math.log(chance[1] / chance[0])
        return min(max(total, -6), 6)

    asked, _ = stream(1, 200)
    assert model.score(asked)[:, 0] == pytest.approx([expected(row) for row in asked.tolist()], abs=1e-3)


def test_paths_tell_the_outcome_where_they_do() -> None:
    pages, label = stream(2, 5_000)
    model = Sequence(1, 12)
    model.learn(pages, np.zeros(5_000, np.int32), label, np.ones(5_000, np.float32))
    asked, truth = stream(3, 2_000)
    said = model.score(asked)[:, 0]
    assert said[truth > 0].mean() > said[truth == 0].mean() + 1


def test_no_page_and_a_first_page_say_nothing() -> None:
    model = Sequence(2, 8)
    pages, label = stream(4, 100)
    model.learn(pages, np.ones(100, np.int32), label, np.ones(100, np.float32))
    assert not model.score(np.array([[0, 0, 0, 0], [5, 0, 0, 0]], np.int32)).any()
    assert not model.score(pages)[:, 0].any(), "the other task was taught nothing"
