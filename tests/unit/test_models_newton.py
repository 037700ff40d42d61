"""Newton's method, online, ends where a batch solver ends, and learns far faster than gradient steps."""

import numpy as np
import pytest

from models.newton import PRIOR, Newton


def stream(seed: int, n: int, width: int = 6) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    x = (random.standard_normal((n, width)) * np.arange(1, width + 1) + 2).astype(np.float32)
    x[:, width - 1] = 3.0  # never varies
    z = (x - x.mean(axis=0)) / np.maximum(x.std(axis=0), 1e-9)
    logit = 1.2 * z[:, 0] - 0.8 * z[:, 1] + np.abs(z[:, 2]) - 0.5
    return x, (random.random(n) < 1 / (1 + np.exp(-logit))).astype(np.float32)


def batch_solution(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Maximum a posteriori by iterated Newton steps over everything at once, on the same inputs."""
    z = (x[:, :-1] - x[:, :-1].mean(axis=0)) / x[:, :-1].std(axis=0)
    z = np.clip(z.astype(np.float64), -5, 5)
    z = np.concatenate([z, np.maximum(z - 0.5, 0), np.maximum(-z - 0.5, 0), np.ones((len(z), 1))], axis=1)
    prior, theta = np.diag([PRIOR] * (z.shape[1] - 1) + [1.0]), np.zeros(z.shape[1])
    for _ in range(20):
        p = 1 / (1 + np.exp(-z @ theta))
        theta -= np.linalg.solve(prior + (z * (p * (1 - p))[:, None]).T @ z, z.T @ (p - y) + prior @ theta)
    return z @ theta


def test_it_comes_to_where_a_batch_solver_comes() -> None:
    x, y = stream(0, 8_000)
    model = Newton(x.shape[1])
    for k in range(0, len(x), 100):
        model.learn(x[k : k + 100], y[k : k + 100], np.ones(100, np.float32))
    expected = batch_solution(x, y)
    assert np.corrcoef(model.score(x), expected)[0, 1] > 0.995
    assert np.polyfit(expected, model.score(x), 1)[0] > 0.8, "no more careful than it has to be"


def test_answers_bend_where_the_truth_does() -> None:
    x, y = stream(1, 8_000)
    model = Newton(x.shape[1])
    for k in range(0, len(x), 100):
        model.learn(x[k : k + 100], y[k : k + 100], np.ones(100, np.float32))
    at = np.tile(x.mean(axis=0), (3, 1)).astype(np.float32)
    at[:, 2] += x[:, 2].std() * np.array([-2, 0, 2], np.float32)
    low, middle, high = model.score(at)
    assert low > middle + 1
    assert high > middle + 1


def test_a_weight_of_two_is_the_example_twice() -> None:
    x, y = stream(2, 200)
    one, other = Newton(x.shape[1]), Newton(x.shape[1])
    for model in (one, other):  # equal moments first, for a weight is none in them
        model.learn(x, y, np.ones(200, np.float32))
    doubled = np.concatenate([np.full(100, 2, np.float32), np.zeros(100, np.float32)])
    one.learn(x, y, doubled)
    twice = np.concatenate([x[:100], x[:100]])
    other.learn(twice, np.concatenate([y[:100], y[:100]]), np.ones(200, np.float32))
    assert one.score(x) == pytest.approx(other.score(x), abs=0.2)


def test_contributions_and_the_constant_are_the_logit() -> None:
    x, y = stream(3, 2_000)
    model = Newton(x.shape[1])
    model.learn(x, y, np.ones(len(x), np.float32))
    parts = model.contributions(x[:20])
    rest = model.score(x[:20]) - parts.sum(axis=1)
    assert rest == pytest.approx(np.full(20, rest[0]))
    assert (parts[:, -1] == 0).all(), "an input that never varies adds nothing"


def test_a_shaken_model_follows_a_change_faster() -> None:
    x, y = stream(4, 6_000)
    steady, shaken = Newton(x.shape[1]), Newton(x.shape[1])
    for model in (steady, shaken):
        for k in range(0, len(x), 100):
            model.learn(x[k : k + 100], y[k : k + 100], np.ones(100, np.float32))
    shaken.shake(8.0)
    for model in (steady, shaken):
        for k in range(0, 1_000, 100):
            model.learn(x[k : k + 100], 1 - y[k : k + 100], np.ones(100, np.float32))
    truth = 1 - y[:3_000]
    losses = [
        np.logaddexp(0, np.where(truth > 0.5, -m.score(x[:3_000]), m.score(x[:3_000]))).mean() for m in (steady, shaken)
    ]
    assert losses[1] < losses[0] - 0.05


def test_nothing_is_learned_from_a_step_that_breaks() -> None:
    x, y = stream(5, 300)
    model = Newton(x.shape[1])
    model.learn(x, y, np.ones(300, np.float32))
    before = model.score(x)
    model.learn(x, y, np.full(300, np.nan, np.float32))
    assert model.refused == 1
    assert model.score(x).tobytes() == before.tobytes()


def test_restored_it_goes_on_to_the_bit() -> None:
    x, y = stream(6, 900)
    one, other = Newton(x.shape[1]), Newton(x.shape[1])
    one.learn(x[:300], y[:300], np.ones(300, np.float32))
    other.load({name: array.copy() for name, array in one.state().items()})
    for model in (one, other):
        model.learn(x[300:600], y[300:600], np.ones(300, np.float32))
    assert one.score(x).tobytes() == other.score(x).tobytes()
