"""URL2vec counts what a direct computation counts, forgets without bias, and moves only what was touched."""

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.counts import _bump
from models.lesson import Steps
from models.settings import ModelSettings
from models.url2vec import URL2Vec
from models.visits import RECENT, url_identity
from tests.unit.test_models_lesson import visit

ROOMY = ModelSettings(dims=8, window=3, distance_power=1.0, slots=32, successor_slots=32)
walks = st.lists(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=12), max_size=6)


def collapsed(walk: list[str]) -> list[str]:
    return [url for k, url in enumerate(walk) if k == 0 or url != walk[k - 1]]


def taught(model: URL2Vec, sessions: list[list[str]]) -> URL2Vec:
    for walk in sessions:
        visits = [visit(url, *walk[:k][::-1][:RECENT]) for k, url in enumerate(walk)]
        model.learn(Steps.of(visits), {url_identity(url): url for url in walk})
    return model


def slots(model: URL2Vec, url: list[list[int]], count: np.ndarray, used: np.ndarray) -> dict[tuple[str, str], float]:
    names = model.vocabulary.names
    return {
        (names[row], names[url[row][q]]): float(count[row, q]) for row in range(len(names)) for q in range(used[row])
    }


@settings(deadline=None)
@given(walks)
def test_visits_one_by_one_count_the_pairs_of_whole_sessions(sessions: list[list[str]]) -> None:
    sessions = [collapsed(walk) for walk in sessions]
    model = taught(URL2Vec(ROOMY), sessions)
    pairs: dict[tuple[str, str], float] = defaultdict(float)
    steps: dict[tuple[str, str], float] = defaultdict(float)
    for walk in sessions:
        for a, one in enumerate(walk):
            for b in range(a + 1, min(a + 4, len(walk))):
                if walk[b] != one:
                    pairs[one, walk[b]] += 1 / (b - a)
                    pairs[walk[b], one] += 1 / (b - a)
                if b == a + 1:
                    steps[one, walk[b]] += 1
    assert slots(model, model.slot_url.tolist(), model.slot_count, model.used) == pytest.approx(pairs, rel=1e-5)
    assert slots(model, model.next_url.tolist(), model.next_count, model.next_used) == steps
    mass = dict(zip(model.vocabulary.names, model.mass.tolist(), strict=False))
    for url, weight in mass.items():
        assert weight == pytest.approx(sum(x for (one, _), x in pairs.items() if one == url), rel=1e-5)


def test_a_full_table_keeps_the_heavy_neighbour_and_expected_counts() -> None:
    kept = np.zeros(50)
    rounds = 400
    for seed in range(rounds):
        url, count, used = np.zeros((1, 8), np.int32), np.zeros((1, 8), np.float32), np.zeros(1, np.int32)
        draws = np.array([seed * 1000], np.uint64)
        for k in range(400):  # neighbour 0 comes every other time, 40 others share the rest: 20 early, 20 late
            _bump(0, 0 if k % 2 else 1 + (k // 2) % 20 + 20 * (k >= 200), 1.0, url, count, used, draws)
        assert count.sum() == 400
        np.add.at(kept, url[0], count[0] / rounds)
    assert kept[0] == pytest.approx(200, rel=0.02)
    assert kept[1:21].sum() == pytest.approx(100, rel=0.05)
    assert kept[21:41].sum() == pytest.approx(100, rel=0.05)
    assert kept[1:41].max() < 2 * 5


def test_vectors_are_on_the_sphere_and_rows_that_nothing_touched_keep_their_bits() -> None:
    model = taught(URL2Vec(ROOMY), [list("abcabc"), list("defdef"), list("abdeab")] * 5)
    before = model.vectors.copy()
    taught(model, [list("abab")] * 20)
    norms = np.linalg.norm(model.vectors[: model.vocabulary.count], axis=1)
    assert norms == pytest.approx(model.radius, rel=1e-5)
    untouched = [model.vocabulary.names.index(url) for url in "cdef"]
    assert np.array_equal(before[untouched], model.vectors[untouched])
    assert not np.array_equal(before, model.vectors)


def test_a_first_vector_follows_from_the_url_alone() -> None:
    one, two = URL2Vec(ROOMY), URL2Vec(ModelSettings(dims=8, seed=9))
    taught(one, [["x"], ["y"]])
    taught(two, [["y"]])
    assert np.array_equal(one.vectors[1], two.vectors[0])
    assert not np.array_equal(one.vectors[0], one.vectors[1])


def test_growing_beyond_the_first_rows_loses_nothing() -> None:
    small, large = URL2Vec(ROOMY), URL2Vec(ROOMY)
    large._grow(9000)
    for model in (small, large):
        taught(model, [[f"u{k + n}" for n in range(3)] for k in range(0, 5000, 2)])
    assert small.vocabulary.count == 5001
    for name, array in small.state().items():
        assert np.array_equal(array, large.state()[name]), name


def test_unknown_urls_have_no_successors_and_some_popularity() -> None:
    model = taught(URL2Vec(ROOMY), [list("ab")])
    unknown = np.array([-1], np.int32)
    assert model.successors(unknown, 10)[0].tolist() == [[-1] * 10]
    assert 0 < model.popularity(unknown)[0] < model.popularity(np.array([0], np.int32))[0]
