"""The network by hand is the network in torch: the same answers, the same gradients."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.features import CATEGORIES, PAGES
from models.network import Inputs, Lessons, Network, later_of
from models.settings import ModelSettings

SETTINGS = ModelSettings(embedding=3, sub_net=2, page_embedding=5, hidden=7, chunk=32)
WIDTH, TASKS, M = 6, 2, 40


def given(seed: int) -> tuple[Inputs, Lessons]:
    random = np.random.default_rng(seed)
    absent = random.random((M, PAGES)) < 0.4
    absent[:3] = True  # visits without any page
    f = np.float32
    pages = random.standard_normal((M, PAGES, SETTINGS.page_embedding)).astype(f)
    pages[absent] = 0
    inputs = Inputs(
        random.standard_normal((M, CATEGORIES, SETTINGS.embedding)).astype(f), pages, absent,
        random.standard_normal((M, WIDTH)).astype(f), random.standard_normal((M, TASKS, 2)).astype(f),
    )  # fmt: skip
    later = later_of(random.integers(-1, 5, M).astype(float), random.integers(-1, 90_000, M).astype(float))
    lessons = Lessons(
        random.integers(0, TASKS, M), (random.random(M) < 0.5).astype(f), random.random(M).astype(f), later,
        random.integers(-1, 16, M),
    )  # fmt: skip
    return inputs, lessons


def network(settings: ModelSettings = SETTINGS, seed: int = 0) -> Network:
    """With no weight at zero, so that every gradient is something."""
    made = Network(settings, TASKS, WIDTH, seed)
    state = made.state()
    noise = np.random.default_rng(seed).standard_normal(len(state["theta"])).astype(np.float32) * 0.3
    made.load(state | {"theta": state["theta"] + noise, "mean": state["mean"] + noise})
    return made


def test_answers_are_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, _ = given(1)
    by_hand = network().score(inputs)
    monkeypatch.setattr(Network, "_by_hand", lambda *_: False)
    assert by_hand == pytest.approx(network().score(inputs), abs=1e-4)
    assert by_hand.std() > 0.5


def test_gradients_are_those_of_autograd() -> None:
    inputs, lessons = given(2)
    inputs.absent[:3, 0] = False  # without any page torch looks at all of them alike, which changes no answer
    made = network()
    mine, theirs = made._gradients_by_hand(inputs, lessons, 0.0), made._gradients(inputs, lessons, 0.0)
    assert mine[0] == pytest.approx(theirs[0], rel=1e-5)
    for a, b in zip(mine[1:], theirs[1:], strict=True):
        assert np.asarray(a) == pytest.approx(np.asarray(b), abs=2e-4)
    shapes = made._views(mine[1])
    assert all(np.abs(layer).max() > 1e-3 for layer in shapes), "each layer has a gradient"


@pytest.mark.parametrize(
    "change",
    [
        {"sequence": "mean"}, {"sequence": "last"}, {"sequence": "conv"}, {"sequence": "gru"}, {"sequence": "reverse"},
        {"sub_nets": False}, {"optimiser": "sgd"}, {"optimiser": "muon"}, {"slope_penalty": 0.1}, {},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("auxiliary", [0.0, 0.3])
def test_every_form_learns_and_goes_on_after_a_restart(change: dict[str, object], auxiliary: float) -> None:
    settings = replace(SETTINGS, **change)
    inputs, lessons = given(3)
    one = Network(settings, TASKS, WIDTH, 0)

    def loss(of: Network) -> float:
        said = of.score(inputs)[np.arange(M), lessons.task]
        return float((np.logaddexp(0, np.where(lessons.label > 0.5, -said, said)) * lessons.weight).mean())

    before = loss(one)
    for _ in range(150):
        assert one.learn(inputs, lessons, 5e-3, auxiliary) is not None
    assert loss(one) < before * 0.8
    other = Network(settings, TASKS, WIDTH, 1)
    other.load(one.state())
    for made in (one, other):
        made.learn(inputs, lessons, 5e-3, auxiliary)
    assert one.score(inputs).tobytes() == other.score(inputs).tobytes()


def test_what_is_not_finite_is_refused_and_changes_nothing() -> None:
    inputs, lessons = given(4)
    made = network()
    before = made.state()
    inputs.numbers[5, 2] = np.nan
    assert made.learn(inputs, lessons, 1e-3, 0.0) is None
    assert made.learn(inputs, lessons, 1e-3, 0.3) is None
    assert all(made.state()[name].tobytes() == array.tobytes() for name, array in before.items())


def test_seeds_make_networks() -> None:
    one, same, other = (Network(SETTINGS, TASKS, WIDTH, seed).state()["theta"] for seed in (1, 1, 2))
    assert one.tobytes() == same.tobytes() != other.tobytes()
    assert torch.equal(torch.tensor(one)[-1:], torch.tensor(same)[-1:])
