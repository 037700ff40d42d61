"""Imported vectors serve at once, in whatever basis they come, and give way to what the stream teaches."""

import numpy as np
import pytest

from models.alignment import turned
from models.settings import ModelSettings
from models.url2vec import URL2Vec
from tests.unit.test_models_exchange import same_topic, sessions

SETTINGS = ModelSettings(dims=16)


def taught(seed: int, n: int) -> URL2Vec:
    return URL2Vec(SETTINGS).learn_many(sessions(seed, n))


def exported(model: URL2Vec) -> tuple[list[str], np.ndarray]:
    urls = [url for url in model.vocabulary.names if url]
    return urls, np.array([model.vector(url) for url in urls])


def rotation(seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((16, 16)))[0].astype(np.float32)


def test_a_model_that_knows_nothing_becomes_the_imported_one() -> None:
    old = taught(1, 2_000)
    urls, vectors = exported(old)
    new = URL2Vec(SETTINGS)
    assert new.warm_start(urls, vectors * 7) == len(urls)
    assert np.abs(np.array([new.vector(url) for url in urls]) - vectors).max() < 2e-4
    assert same_topic(new) == pytest.approx(same_topic(old), abs=0.01)
    assert same_topic(old) > 0.9


def test_an_import_in_another_basis_is_turned_onto_what_was_learned_and_fades() -> None:
    urls, vectors = exported(taught(1, 2_000))
    alone, warm = taught(2, 60), taught(2, 60)
    warm.warm_start(urls, vectors @ rotation(3))
    assert same_topic(warm) > same_topic(alone) + 0.2
    for model in (alone, warm):
        model.learn_many(sessions(4, 4_000))
    assert same_topic(warm) > 0.9


def test_pages_known_here_and_pages_imported_from_another_basis_end_in_one_space() -> None:
    urls, vectors = exported(taught(1, 2_000))
    # Half of the pages are so well known here that the import hardly moves them; of the others nothing is known.
    known = [[url for url in walk if int(url.rsplit("/", 1)[1]) < 10] for walk in sessions(2, 20_000)]
    model = URL2Vec(SETTINGS).learn_many(known)
    model.warm_start(urls, vectors @ rotation(3))
    for topic in range(12):
        near = [url for url, _ in model.most_similar(f"/{topic}/1", k=15)]
        assert sum(url.split("/")[1] == str(topic) for url in near) >= 13
        assert any(int(url.split("/")[2]) >= 10 for url in near), "no imported page is near to a known one"


def test_vectors_are_turned_by_the_pairs_and_left_alone_where_these_are_too_few() -> None:
    mine = np.random.default_rng(7).standard_normal((40, 16)).astype(np.float32)
    turn = rotation(8)
    assert turned(mine @ turn, mine[:30], mine[:30] @ turn, np.ones(30)) == pytest.approx(mine, abs=1e-4)
    assert np.array_equal(turned(mine @ turn, mine[:15], mine[:15] @ turn, np.ones(15)), mine @ turn)


def test_what_the_stream_teaches_wins_over_a_wrong_import() -> None:
    urls = [f"/{topic}/{page}" for topic in range(12) for page in range(20)]
    wrong = np.random.default_rng(5).standard_normal((len(urls), 16)).astype(np.float32)
    model = URL2Vec(SETTINGS)
    model.warm_start(urls, wrong)
    assert same_topic(model) < 0.2
    model.learn_many(sessions(6, 6_000))
    assert same_topic(model) > 0.9


def test_vectors_that_cannot_be_used_are_left_out_or_refused() -> None:
    model = URL2Vec(ModelSettings(dims=4, capacity=3))
    vectors = np.array(
        [[0, 0, 0, 0], [np.nan, 1, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], np.float32
    )
    assert model.warm_start(list("abcdef"), vectors) == 3
    assert [url in model for url in "abcdef"] == [False, False, True, True, True, False]
    with pytest.raises(ValueError, match=r"\(6, 4\), got \(6, 3\)"):
        model.warm_start(list("abcdef"), vectors[:, :3])
    assert model.warm_start([], np.zeros((0, 4), np.float32)) == 0
