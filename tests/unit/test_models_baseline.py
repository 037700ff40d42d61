"""The baseline's loop is River's own arithmetic, over a long stream."""

import numpy as np
import pytest
from river import linear_model, optim, preprocessing

from models.baseline import COUNT_SCALE, Baseline
from models.features import layout
from models.settings import ModelSettings

SETTINGS = ModelSettings(table_bits=8)


def stream(seed: int, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows with levels, numbers and target statistics, their labels and weights."""
    random = np.random.default_rng(seed)
    made = np.zeros(n, layout(1))
    made["levels"][:, :4] = random.integers(1, 30, (n, 4)) + np.array([0, 300, 600, 900])
    made["levels"][random.random(n) < 0.3, 2] = 0
    made["numbers"][:, :5] = random.standard_normal((n, 5)) * [1, 5, 0.1, 0, 2] + [0, 3, 1, 4, -2]
    made["counts"][:, :4, 0] = random.standard_normal((n, 4, 2))
    signal = made["numbers"][:, 0] + (made["levels"][:, 0] % 3 - 1) + made["counts"][:, 0, 0, 0]
    label = (random.random(n) < 1 / (1 + np.exp(-signal))).astype(np.float32)
    return made, label, random.choice(np.array([1.0, 0.5, 0.25], np.float32), n)


def test_the_baseline_is_river_to_the_last_digits_over_a_long_stream() -> None:
    made, label, weight = stream(3, 20_000)
    baseline = Baseline(SETTINGS, 1)
    scaler = preprocessing.StandardScaler()
    river = linear_model.LogisticRegression(optimizer=optim.AdaGrad(SETTINGS.baseline_rate))

    def attributes(row: np.void) -> dict[object, float]:
        numbers = scaler.transform_one({("n", k): float(x) for k, x in enumerate(row["numbers"])})
        levels = {int(v) & 255: 1.0 for v in row["levels"] if v}
        counts = {
            ("c", a, k): float(x) * (COUNT_SCALE if k else 1)
            for a, pair in enumerate(row["counts"][:, 0])
            for k, x in enumerate(pair)
        }
        return numbers | levels | counts

    for k in range(0, len(made), 500):
        if k % 5_000 == 0:
            asked = made[k : k + 50]
            expected = [river.predict_proba_one(attributes(row))[True] for row in asked]
            assert 1 / (1 + np.exp(-baseline.score(asked)[:, 0])) == pytest.approx(expected, abs=1e-9)
        for row, y, w in zip(made[k : k + 500], label[k : k + 500], weight[k : k + 500], strict=True):
            scaler.learn_one({("n", j): float(x) for j, x in enumerate(row["numbers"])})
            river.learn_one(attributes(row), bool(y), float(w))
        baseline.learn(made[k : k + 500], np.zeros(500, np.int32), label[k : k + 500], weight[k : k + 500])
    expected = [river.predict_proba_one(attributes(row))[True] for row in made[:200]]
    assert 1 / (1 + np.exp(-baseline.score(made[:200])[:, 0])) == pytest.approx(expected, abs=1e-9)
    assert np.std(expected) > 0.1, "something was learned"


def test_contributions_add_up_to_the_logit() -> None:
    made, label, weight = stream(4, 2_000)
    baseline = Baseline(SETTINGS, 1)
    baseline.learn(made, np.zeros(2_000, np.int32), label, weight)
    [(levels, numbers, counts)] = baseline.contributions(made[7])
    intercept = baseline.state()["intercept"][0]
    assert levels.sum() + numbers.sum() + counts.sum() + intercept == pytest.approx(baseline.score(made[7:8])[0, 0])
    assert (levels[made[7]["levels"] == 0] == 0).all()


def test_a_restored_baseline_is_equal() -> None:
    made, label, weight = stream(5, 1_000)
    one, other = Baseline(SETTINGS, 1), Baseline(SETTINGS, 1)
    one.learn(made, np.zeros(1_000, np.int32), label, weight)
    other.load(one.state())
    assert one.score(made).tobytes() == other.score(made).tobytes()
