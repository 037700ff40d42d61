"""The blend follows the experts that were right of late, keeps weights readable, and is calibrated."""

import numpy as np
import pytest

from models.blend import ASKED, PRIOR, Blend
from models.features import EXPERTS

AT = {name: k for k, name in enumerate(EXPERTS)}


def experts(seed: int, n: int, good: str, slope: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits of which one expert's are the truth, times `slope`, and the others' noise; labels."""
    random = np.random.default_rng(seed)
    said = random.standard_normal((n, len(EXPERTS))).astype(np.float32)
    truth = 2 * random.standard_normal(n)
    said[:, AT[good]] = truth * slope
    return said, (random.random(n) < 1 / (1 + np.exp(-truth))).astype(np.float32)


def taught(blend: Blend, said: np.ndarray, label: np.ndarray) -> None:
    for k in range(0, len(said), 100):
        blend.learn(said[k : k + 100], 0, label[k : k + 100], np.ones(len(said[k : k + 100]), np.float32))


@pytest.mark.parametrize("good", ["linear", "sequence", "network", "memory", "baseline"])
def test_whoever_is_right_gets_the_say(good: str) -> None:
    blend = Blend(1)
    taught(blend, *experts(1, 20_000, good))
    weights = blend.weights(0)
    assert weights[good] > 0.85
    assert all(0 <= weight < 0.1 for name, weight in weights.items() if name != good)
    assert set(weights) == set(EXPERTS) - {"blend"}


def test_it_changes_its_mind_when_another_becomes_right() -> None:
    blend = Blend(1)
    taught(blend, *experts(2, 20_000, "network"))
    taught(blend, *experts(3, 30_000, "linear"))
    assert blend.weights(0)["linear"] > blend.weights(0)["network"] + 0.5


def test_after_a_shake_it_does_so_sooner() -> None:
    steady, shaken = Blend(1), Blend(1)
    for blend in (steady, shaken):
        taught(blend, *experts(2, 20_000, "network"))
    shaken.shake(0, 10.0)
    for blend in (steady, shaken):
        taught(blend, *experts(3, 2_000, "linear"))
    assert shaken.weights(0)["linear"] > steady.weights(0)["linear"] + 0.1


def test_an_overconfident_expert_is_calibrated() -> None:
    blend = Blend(1)
    taught(blend, *experts(4, 30_000, "network", slope=3.0))
    said, label = experts(5, 20_000, "network", slope=3.0)
    p = 1 / (1 + np.exp(-blend.score(said[:, None])[:, 0]))
    for low in np.arange(0, 1, 0.1):
        these = (p >= low) & (p < low + 0.1)
        assert abs(p[these].mean() - label[these].mean()) < 0.04


def test_an_expert_that_says_nothing_is_given_newtons_answer() -> None:
    blend, said = Blend(1), np.full((1, 1, len(EXPERTS)), np.nan, np.float32)
    said[0, 0, AT["newton"]] = 2.0
    assert blend.score(said)[0, 0] == pytest.approx(2.0 * sum(PRIOR.values()))


def test_the_blends_own_column_is_not_read() -> None:
    blend, (said, _) = Blend(1), experts(6, 50, "network")
    other = said.copy()
    other[:, AT["blend"]] = 9
    assert blend.score(said[:, None]).tobytes() == blend.score(other[:, None]).tobytes()
    assert len(EXPERTS) - 1 == ASKED


def test_restored_it_goes_on_to_the_bit() -> None:
    one, other = Blend(1), Blend(1)
    taught(one, *experts(7, 1_000, "linear"))
    other.load({name: array.copy() for name, array in one.state().items()})
    for blend in (one, other):
        taught(blend, *experts(8, 1_000, "memory"))
    assert one.state()["weights"].tobytes() == other.state()["weights"].tobytes()


def test_a_rival_that_rests_is_given_the_networks_answer() -> None:
    blend, said = Blend(1), np.zeros((1, 1, len(EXPERTS)), np.float32)
    said[0, 0, AT["network"]], said[0, 0, AT["rival"]] = 2.0, np.nan
    assert blend.score(said)[0, 0] == pytest.approx(2.0 * (PRIOR["network"] + PRIOR["rival"]))
