"""Vectors follow from counts: the same on a device as on the CPU, on the sphere, and spread over it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.counts import I32, Slots
from models.settings import ModelSettings
from models.sphere import ALPHA, ONE, Sphere, first_vectors, gather
from models.url2vec import URL2Vec
from tests.unit.test_models_url2vec import NOW, SMALL, planted

CPU = torch.device("cpu")


def recomputed_gram(sphere: Sphere) -> np.ndarray:
    unit = sphere.vectors.astype(np.float64) / ONE
    return unit.T @ unit


def entered(ids: list[int], dims: int = 8) -> tuple[Sphere, I32]:
    sphere, rows = Sphere(dims, 0.1, CPU), np.arange(len(ids), dtype=np.int32)
    sphere.reserve(len(ids) + 3)
    sphere.enter(rows, np.array(ids, np.uint64))
    return sphere, rows


def test_a_derived_row_is_the_formula() -> None:
    """Three rows; the first was seen with the second often and with the third as little as chance has it."""
    sphere, _ = entered([11, 12, 13])
    slots, mass, unit = Slots(4), np.array([9.0, 8.5, 500.0]), 2.0
    slots.reserve(3)
    slots.url[0, :2], slots.count[0, :2], slots.used[0] = [1, 2], [8.0, 1.0], 2
    sphere.log_mass[:3] = np.log(mass)
    log_z = np.log((mass**ALPHA).sum())
    out = np.empty((1, 8), np.float32)
    rows = np.zeros(1, np.int32)
    gather(rows, slots.url, slots.count, slots.used, sphere.log_mass, log_z, unit, sphere.vectors, out)
    pmi = np.log(8.0 * (mass**ALPHA).sum() / (mass[0] * mass[1] ** ALPHA))
    assert np.log(1.0 * (mass**ALPHA).sum() / (mass[0] * mass[2] ** ALPHA)) < 0 < pmi
    assert out[0] == pytest.approx(pmi**0.5 * 8 / (8 + unit) * sphere.vectors[1], rel=1e-5)


def test_a_device_does_the_same_sums() -> None:
    model = URL2Vec(SMALL).learn_many(planted(1, 400), NOW)
    sphere, rows = model.sphere, np.flatnonzero(model.counts.mass).astype(np.int32)
    log_z = float(np.log(model.state()["sphere.z"][0]))
    here = sphere._sums(rows, model.counts.near, log_z, model.counts.unit)
    there = sphere._sums_there(rows, model.counts.near, log_z, model.counts.unit)
    assert len(rows) == 200
    assert here.norm() > 100 * ONE
    # The copy on the device is of the same integers; only the order of the sums differs.
    assert (here - there).abs().max() < 1e-5 * here.abs().max()
    # What changed since the copy was made is in it.
    some = rows[::3]
    sphere.place(some, -sphere.unit(some))
    changed = sphere._sums(rows, model.counts.near, log_z, model.counts.unit)
    assert (changed - here).norm() > 0.1 * here.norm()
    assert (
        changed - sphere._sums_there(rows, model.counts.near, log_z, model.counts.unit)
    ).abs().max() < 1e-5 * here.abs().max()


def test_whitening_keeps_the_vectors_spread() -> None:
    """Ten topics in eight dimensions; without it all would turn to the first few eigenvectors."""
    dims = 8
    model = URL2Vec(ModelSettings(dims=dims, slots=32, device="cpu")).learn_many(planted(2, 3000), NOW)
    spread = np.linalg.eigvalsh(model.state()["sphere.gram"])
    assert spread[-1] / spread[0] < 3
    assert spread.sum() == pytest.approx(model.vocabulary.live, rel=1e-3)


@given(st.lists(st.integers(1, 2**64 - 1), min_size=1, max_size=20, unique=True))
@settings(deadline=None)
def test_a_first_vector_follows_from_the_id_alone_and_is_on_the_sphere(ids: list[int]) -> None:
    together, alone = np.empty((len(ids), 64), np.int16), np.empty((1, 64), np.int16)
    first_vectors(np.array(ids, np.uint64), together)
    for k, one in enumerate(ids):
        first_vectors(np.array([one], np.uint64), alone)
        assert np.array_equal(together[k], alone[0])
    assert np.linalg.norm(together / ONE, axis=1) == pytest.approx(np.ones(len(ids)), abs=1e-3)


def test_first_vectors_of_many_urls_point_everywhere() -> None:
    vectors = np.empty((20_000, 16), np.int16)
    first_vectors(np.arange(1, 20_001, dtype=np.uint64), vectors)  # even of ids that resemble each other
    unit = vectors / ONE
    assert np.abs(unit.mean(axis=0)).max() < 0.01
    assert np.abs(unit.T @ unit / 20_000 - np.eye(16) / 16).max() < 0.003


def test_another_seed_gives_the_same_first_vectors_in_other_rows() -> None:
    one, two = URL2Vec(ModelSettings(dims=8)), URL2Vec(ModelSettings(dims=8, seed=9))
    one.learn_many([["x"], ["y"]])
    two.learn_many([["y"]])
    assert (one.row("y"), two.row("y")) == (1, 0)
    assert np.array_equal(one.vector("y"), two.vector("y"))
    assert not np.array_equal(one.vector("x"), one.vector("y"))


def test_rows_that_come_move_and_go_keep_the_gram_matrix_right() -> None:
    random = np.random.default_rng(3)
    sphere, rows = entered(list(range(1, 41)))
    for _ in range(300):
        some = np.sort(random.choice(rows, 7, replace=False))
        unit = random.normal(size=(7, 8)).astype(np.float32)
        sphere.place(some, unit / np.linalg.norm(unit, axis=1, keepdims=True))
        sphere.leave(some[:2])
        sphere.enter(some[:2], random.integers(1, 2**63, 2).astype(np.uint64))
    assert sphere.state(40)["gram"] == pytest.approx(recomputed_gram(sphere), abs=1e-4)
    sphere.leave(rows)
    assert not sphere.vectors.any()
    assert np.abs(sphere.state(40)["gram"]).max() < 1e-4


def test_the_sums_that_are_kept_up_do_not_drift() -> None:
    model = URL2Vec(ModelSettings(dims=8, slots=8, successor_slots=8, capacity=150, device="cpu"))
    for k in range(100):
        model.learn_many(planted(k, 30), NOW + k * 20_000_000, batch=64)
    state = model.state()
    assert model.removed > 100
    assert state["sphere.gram"] == pytest.approx(recomputed_gram(model.sphere), abs=1e-3)
    assert state["sphere.z"][0] == pytest.approx(
        np.exp(ALPHA * state["sphere.log_mass"].astype(np.float64)).sum(), rel=1e-6
    )
    assert state["total"][0] == pytest.approx(state["mass"].sum(), rel=1e-9)


def test_a_row_is_due_once_its_mass_has_grown_by_the_share() -> None:
    sphere, rows = entered([1, 2, 3])
    slots, mass = Slots(4), np.array([100.0, 100.0, 100.0])
    slots.reserve(6)
    assert sphere.due(rows, mass).tolist() == [0, 1, 2]  # never derived
    sphere.refresh(rows, slots, mass, 1.0, 3, np.zeros((3, 8), np.float32))
    assert sphere.due(rows, mass).tolist() == []
    mass[:] = [111.0, 111.2, 250.0]  # a tenth of 111.1 is new
    assert sphere.due(rows, mass).tolist() == [1, 2]
    sphere.rescale(0.5)
    assert sphere.due(rows, mass / 2).tolist() == [1, 2]


def test_a_row_about_which_nothing_is_known_stays_where_it_is() -> None:
    sphere, rows = entered([5, 6])
    slots = Slots(4)
    slots.reserve(2)
    before = sphere.vectors.copy()
    sphere.refresh(rows, slots, np.array([3.0, 4.0]), 1.0, 2, np.zeros((2, 8), np.float32))
    assert np.array_equal(before, sphere.vectors)
    assert np.isfinite(sphere.state(2)["whitener"]).all()
