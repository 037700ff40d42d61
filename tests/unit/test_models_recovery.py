"""When the meaning of visits flips in mid-stream, answers recover, sooner where drifts are heeded; a frozen copy does not."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from models.learner import Learner
from models.lesson import Example, Lesson
from models.settings import ModelSettings
from models.visits import VisitContext
from tests.unit.test_models_lesson import visit

ROUNDS, FLIP, N = 280, 130, 64


@dataclass
class Run:
    """Log-loss of each round, of a learner that goes on and of its copy frozen at the flip."""

    live: list[float] = field(default_factory=list)
    frozen: list[float] = field(default_factory=list)
    drifts: int = 0


def round_of(random: np.random.Generator, flipped: bool) -> tuple[list[VisitContext], np.ndarray]:
    """Pages, devices and prices, and who bought."""
    pages, devices, prices = random.integers(40, size=N), random.integers(4, size=N), random.standard_normal(N)
    logit = np.where(pages % 2 == 0, 1.5, -1.5) + prices + np.where(devices == 0, 1, -0.3)
    bought = random.random(N) < 1 / (1 + np.exp(logit if flipped else -logit))
    made = [
        visit(f"https://shop.example/{p}", properties={"device": f"d{d}", "price": float(np.exp(x))})
        for p, d, x in zip(pages, devices, prices, strict=True)
    ]
    return made, bought


def loss(learner: Learner, visits: list[VisitContext], bought: np.ndarray) -> tuple[float, list[bytes]]:
    scored = learner.score(visits)
    p = np.clip(scored.probability[:, 0], 1e-6, 1 - 1e-6)
    return float(-np.mean(np.where(bought, np.log(p), np.log(1 - p)))), scored.features


def run(heeds: bool, monkeypatch: pytest.MonkeyPatch) -> Run:
    settings = ModelSettings(dims=16, slots=16, table_bits=12, embedding_bits=10)
    live, frozen, found = Learner(settings, ("bought",)), Learner(settings, ("bought",)), Run()
    if not heeds:
        monkeypatch.setattr(live, "_heed", lambda *_: 1.0)
    random = np.random.default_rng(5)
    for k in range(ROUNDS):
        visits, bought = round_of(random, flipped=k >= FLIP)
        if k == FLIP:
            frozen.restore(live.snapshot())
        if k >= FLIP:
            found.frozen.append(loss(frozen, visits, bought)[0])
        now, features = loss(live, visits, bought)
        found.live.append(now)
        examples = [Example("bought", row, bool(y)) for row, y in zip(features, bought, strict=True)]
        live.learn(Lesson.of(visits, examples, 0))
    found.drifts = live.insight().drift["bought"].model
    return found


def test_a_flip_of_meaning_is_noticed_and_recovered_from(monkeypatch: pytest.MonkeyPatch) -> None:
    heeding = run(True, monkeypatch)
    before = np.mean(heeding.live[FLIP - 30 : FLIP])
    at_the_end = np.mean(heeding.live[-30:])
    assert heeding.drifts >= 1
    assert np.mean(heeding.live[FLIP : FLIP + 3]) > before + 0.5, "the flip is felt"
    assert at_the_end < before + 0.06
    assert np.mean(heeding.frozen[-30:]) > before + 0.5, "a frozen copy does not recover"
    deaf = run(False, monkeypatch)
    soon = slice(FLIP + 20, FLIP + 80)
    assert deaf.drifts == 0
    assert np.mean(heeding.live[soon]) < np.mean(deaf.live[soon]) - 0.02, "heeding a drift pays"
