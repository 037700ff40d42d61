"""After `warm_up` no visit and no example has to wait for a compiler."""

import sys

import numpy as np
import pytest

from models.learner import Learner
from models.lesson import Example, Lesson
from models.settings import ModelSettings
from tests.unit.test_models_lesson import visit

SETTINGS = ModelSettings(dims=16, slots=16, capacity=5_000, table_bits=10, embedding_bits=8)


def compiled() -> dict[str, int]:
    """How many forms of each loop there are."""
    return {
        f"{name}.{loop}": len(found.signatures)
        for name, module in list(sys.modules.items())
        if name.startswith("models.")
        for loop, found in vars(module).items()
        if hasattr(found, "signatures")
    }


@pytest.mark.parametrize("tasks", [("bought",), ("bought", "returned", "continues")])
def test_nothing_is_compiled_after_the_warm_up(tasks: tuple[str, ...]) -> None:
    learner, random = Learner(SETTINGS, tasks), np.random.default_rng(3)
    learner.warm_up()
    before = compiled()
    assert len(before) > 40
    for n in (1, 2, 300, 700, 1, 40):
        visits = [
            visit(f"https://shop.example/{random.integers(50)}", properties={"to": "https://shop.example/1", "x": 1.5})
            for _ in range(n)
        ]
        scored = learner.score(visits)
        examples = [
            Example(task, row, bool(random.random() < 0.5), 0.5, int(random.integers(-1, 4)), 900, 1)
            for row in scored.features
            for task in tasks
        ]
        learner.learn(Lesson.decode(Lesson.of(visits, examples, 1).encode()))
        learner.learn(Lesson.of([], examples[:1], 1))
    learner.restore(learner.snapshot())
    learner.score(visits)
    learner.nearest(visits[0].url, 3)
    late = {name: count for name, count in compiled().items() if count != before.get(name)}
    assert not late, "compiled only when a visit came"
