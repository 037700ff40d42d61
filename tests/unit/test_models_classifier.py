"""The learners inside the classifier follow their papers, and what they said stays what they are judged by."""

import math

import numpy as np
import pytest

from models.classifier import Classifier
from models.features import EXPERTS, layout
from models.hashed import FTRL_ALPHA, FTRL_BETA, FTRL_L2, add_counts, ftrl_learn, ftrl_logits, read_counts
from models.settings import ModelSettings

SETTINGS = ModelSettings(table_bits=8, embedding_bits=6, embedding=2, page_embedding=2, hidden=4, sub_net=2, chunk=8)


def rows(seed: int, n: int, tasks: int = 1) -> np.ndarray:
    """Random rows: three levels, two pages, three numbers, sessions of their own."""
    random = np.random.default_rng(seed)
    made = np.zeros(n, layout(tasks))
    made["levels"][:, :3] = random.integers(1, 20, (n, 3)) + np.array([0, 100, 200])
    made["pages"][:, :2] = random.integers(1, 9, (n, 2))
    made["numbers"][:, :3] = random.standard_normal((n, 3))
    made["session"] = random.integers(1, 2**31, n)
    return made


def fates(seed: int, n: int, task: int = 0) -> np.ndarray:
    """task, label, weight 1, and nothing known of what came after."""
    made = np.full((n, 6), -1.0)
    made[:, 0], made[:, 2] = task, 1
    made[:, 1] = np.random.default_rng(seed).random(n) < 0.4
    return made


def taught(seed: int, n: int = 200) -> Classifier:
    classifier = Classifier(SETTINGS, 1)
    for k in range(0, n, 20):
        asked = rows(seed + k, 20)
        classifier.score(asked)
        classifier.learn(asked, fates(seed + k, 20))
    return classifier


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


def test_examples_move_the_answers_towards_their_labels() -> None:
    classifier, asked = Classifier(SETTINGS, 2), np.zeros(1, layout(2))
    asked["levels"][0, 0], asked["pages"][0, 0] = 7, 7
    for _ in range(100):
        classifier.score(asked)
        both = fates(0, 2)
        both[:, 0], both[:, 1] = [0, 1], [1, 0]
        classifier.learn(asked.repeat(2), both)
    one, other = classifier.score(asked)[0][0]
    assert one > 0.8
    assert other < 0.2


def test_every_expert_says_what_it_thinks_into_the_row_and_the_answer_is_their_blend() -> None:
    classifier, asked = taught(0), rows(99, 30)
    probability, baseline = classifier.score(asked)
    said = {name: asked["experts"][:, 0, k].astype(float) for k, name in enumerate(EXPERTS)}
    assert all(np.isfinite(logits).all() and logits.std() > 0 for logits in said.values())
    assert probability[:, 0] == pytest.approx(1 / (1 + np.exp(-said["blend"])), abs=1e-3)
    assert baseline[:, 0] == pytest.approx(1 / (1 + np.exp(-said["baseline"])), abs=1e-3)
    between = np.stack([said[name] for name in EXPERTS if name != "blend"])
    assert (said["blend"] <= between.max(axis=0) + 0.5).all()


def test_scoring_changes_nothing_and_a_restored_classifier_goes_on_to_the_bit() -> None:
    one, other = taught(1), Classifier(SETTINGS, 1)
    before = {name: array.copy() for name, array in one.state().items()}
    one.score(rows(5, 40))
    for name, array in one.state().items():
        assert array.tobytes() == before[name].tobytes(), name
    other.load({name: array.copy() for name, array in before.items()})
    for k in range(5):
        asked, again = rows(50 + k, 24), rows(50 + k, 24)
        assert one.score(asked)[0].tobytes() == other.score(again)[0].tobytes()
        assert asked.tobytes() == again.tobytes()
        one.learn(asked, fates(k, 24))
        other.learn(again, fates(k, 24))
    for name, array in one.state().items():
        assert array.tobytes() == other.state()[name].tobytes(), name


@pytest.mark.parametrize("field", ["numbers", "cosines", "counts", "experts"])
@pytest.mark.parametrize("damage", [np.nan, np.inf, -np.inf])
def test_damaged_rows_leave_every_weight_and_answer_finite(field: str, damage: float) -> None:
    classifier, asked = taught(2), rows(7, 24)
    classifier.score(asked)
    asked[field][3:9] = damage
    classifier.learn(asked, fates(3, 24))
    answers = classifier.score(rows(8, 30))
    assert all(np.isfinite(a).all() for a in answers)
    for name, array in classifier.state().items():
        if array.dtype.kind == "f" and not name.startswith(("race.fates", "memory.ring.chances")):
            assert np.isfinite(array.astype(float)).all(), name


def test_what_two_tasks_are_taught_stays_apart() -> None:
    alone, both = Classifier(SETTINGS, 2), Classifier(SETTINGS, 2)
    for k in range(10):
        asked = rows(k, 16, tasks=2)
        again = asked.copy()
        alone.score(asked)
        both.score(again)
        alone.learn(asked, fates(k, 16, task=0))
        both.learn(again, fates(k, 16, task=0))
        both.learn(again, fates(k + 100, 16, task=1))
    asked = rows(77, 20, tasks=2)
    again = asked.copy()
    alone.score(asked)
    both.score(again)
    for name in ("linear", "newton", "sequence", "memory", "baseline"):  # the networks share their hidden layers
        k = EXPERTS.index(name)
        assert asked["experts"][:, 0, k].tobytes() == again["experts"][:, 0, k].tobytes(), name
        assert asked["experts"][:, 1, k].tobytes() != again["experts"][:, 1, k].tobytes(), name
