"""What the models are for: pages visited together end near each other, and a planted rule is learned."""

import numpy as np
import pytest

from models.learner import Example, Learner, Lesson
from models.progressive import Progress
from models.settings import ModelSettings
from tests.unit.test_models_learner import sessions
from tests.unit.test_models_lesson import visit

SETTINGS = ModelSettings(dims=16, slots=16, table_bits=12, embedding_bits=10, chunk=64)


def test_pages_visited_together_end_nearer_than_others() -> None:
    learner = Learner(SETTINGS, ())
    for seed in range(30):
        learner.learn(Lesson.of([v for walk in sessions(seed, 20) for v in walk], [], 0))
    urls, vectors = learner.vectors()
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-4)
    group = np.array([url.split("/")[-2] for url in urls])
    same, cosine = group[:, None] == group[None, :], vectors @ vectors.T
    other_than_itself = ~np.eye(len(urls), dtype=bool)
    assert len(urls) == 24
    assert cosine[same & other_than_itself].min() > cosine[~same].max()
    assert all(url.split("/")[-2] == "0" for url, _ in learner.nearest("https://shop.example/0/1", 11))


def judged(learner: Learner, rounds: int) -> Progress:
    """Each round is scored, judged, then taught. A visitor buys more often when page and device agree in parity."""
    random, progress = np.random.default_rng(5), Progress()
    for _ in range(rounds):
        pages, devices = random.integers(8, size=64), random.integers(2, size=64)
        label = random.random(64) < np.where(pages % 2 == devices, 0.9, 0.1)
        visits = [
            visit(f"https://shop.example/{p}", properties={"device": f"d{d}", "noise": float(x)})
            for p, d, x in zip(pages, devices, random.standard_normal(64), strict=True)
        ]
        scored = learner.score(visits)
        for k, y in enumerate(label):
            progress.add(float(scored.probability[k, 0]), float(scored.baseline[k, 0]), bool(y))
        examples = [Example("bought", row, bool(y)) for row, y in zip(scored.features, label, strict=True)]
        learner.learn(Lesson.of(visits, examples, 0))
    return progress


def test_the_network_learns_a_rule_that_no_linear_model_can() -> None:
    learner = Learner(SETTINGS, ("bought",))
    judged(learner, 60)
    late = judged(learner, 20)
    assert late.auc() > 0.8  # type: ignore[operator]
    assert late.baseline_auc() < 0.6  # type: ignore[operator]


def test_both_learn_a_plain_rule() -> None:
    learner = Learner(SETTINGS, ("bought",))
    progress = Progress()
    random = np.random.default_rng(6)
    for _ in range(20):
        visits = [visit(f"https://shop.example/{p}") for p in random.integers(8, size=64)]
        label = [int(v.url[-1]) < 4 for v in visits]
        scored = learner.score(visits)
        for k, y in enumerate(label):
            progress.add(float(scored.probability[k, 0]), float(scored.baseline[k, 0]), y)
        examples = [Example("bought", row, y) for row, y in zip(scored.features, label, strict=True)]
        learner.learn(Lesson.of(visits, examples, 0))
    assert progress.auc() > 0.9  # type: ignore[operator]
    assert progress.baseline_auc() > 0.9  # type: ignore[operator]


def test_a_property_that_names_a_known_page_is_compared_with_the_visit() -> None:
    learner = Learner(SETTINGS, ("bought",))
    for seed in range(10):
        learner.learn(Lesson.of([v for walk in sessions(seed, 20) for v in walk], [], 0))
    page = "https://shop.example/{}/1".format
    near, far, none = (visit(page(0), properties={"goal": goal}) for goal in (page(0), page(1), "nowhere"))
    rows = np.frombuffer(b"".join(learner.score([near, far, none]).features), learner.row_layout)
    assert rows["cosines"][0, 2] > 0.9 > rows["cosines"][1, 2]
    assert rows["cosines"][:, 7].tolist() == [1, 1, 0]
