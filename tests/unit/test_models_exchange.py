"""Replicas that exchange what they counted know what one that saw every visit knows."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.exchange import CorruptDelta, Delta
from models.lesson import Steps
from models.settings import ModelSettings
from models.url2vec import URL2Vec
from models.visits import RECENT, url_identity

WEIGHTS = (1.0, 0.5, 0.25)
SETTINGS = ModelSettings(dims=16, slots=64, successor_slots=64, distance_weights=WEIGHTS, window=3)
walks = st.lists(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=9), max_size=6)
TOPICS, PAGES = 12, 20


def steps_of(walks: list[list[str]]) -> tuple[Steps, dict[int, str]]:
    urls, recent = [], []
    for walk in walks:
        for k, url in enumerate(walk):
            urls.append(url_identity(url))
            recent.append([url_identity(earlier) for earlier in walk[:k][::-1][:RECENT]])
    return Steps.from_lists(urls, recent), {url_identity(url): url for walk in walks for url in walk}


def counted(model: URL2Vec) -> tuple[dict[tuple[str, str], float], dict[tuple[str, str], float], dict[str, float]]:
    names, n = model.vocabulary.names, model.vocabulary.count
    near, after = (
        {(names[r], names[slots.url[r, q]]): float(slots.count[r, q]) for r in range(n) for q in range(slots.used[r])}
        for slots in (model.counts.near, model.counts.after)
    )
    return near, after, dict(zip(names, model.counts.visits[:n].tolist(), strict=False))


@settings(deadline=None, max_examples=50)
@given(walks)
def test_applying_a_delta_counts_what_learning_the_visits_counts(sessions: list[list[str]]) -> None:
    steps, names = steps_of(sessions)
    learned, told = URL2Vec(SETTINGS), URL2Vec(SETTINGS)
    learned.learn(steps, names)
    told.apply(Delta.decode(Delta.of(steps, np.array(WEIGHTS, np.float32), names, 0).encode()))
    for mine, theirs in zip(counted(learned), counted(told), strict=True):
        assert theirs == pytest.approx(mine, rel=1e-5)
    assert told.counts.mass.sum() == pytest.approx(learned.counts.mass.sum())


def test_sums_come_in_any_order() -> None:
    parts = [Delta.of(*steps_and(sessions(seed, 30)), 0) for seed in range(4)]
    one, other = URL2Vec(SETTINGS), URL2Vec(SETTINGS)
    for part in parts:
        one.apply(part)
    for part in reversed(parts):
        other.apply(part)
    for mine, theirs in zip(counted(one), counted(other), strict=True):
        assert theirs == pytest.approx(mine, rel=1e-5)


def steps_and(walks: list[list[str]]) -> tuple[Steps, np.ndarray, dict[int, str]]:
    steps, names = steps_of(walks)
    return steps, np.array(WEIGHTS, np.float32), names


def sessions(seed: int, n: int) -> list[list[str]]:
    """Each session stays in one of the topics but for a visit in ten."""
    random = np.random.default_rng(seed)
    return [
        [
            f"/{topic if random.random() > 0.1 else random.integers(TOPICS)}/{random.integers(PAGES)}"
            for _ in range(random.integers(3, 8))
        ]
        for topic in random.integers(TOPICS, size=n)
    ]


def same_topic(model: URL2Vec) -> float:
    """Share of the ten nearest URLs that are of the same topic."""
    rows = np.flatnonzero(model.vocabulary.ids)
    unit = model.sphere.unit(rows)
    topic = np.array([model.vocabulary.names[row].split("/")[1] for row in rows])
    near = np.argsort(-(unit @ unit.T) + 9 * np.eye(len(rows)), axis=1)[:, :10]
    return float((topic[near] == topic[:, None]).mean())


@pytest.mark.parametrize("with_rows", [False, True], ids=["sums alone", "sums and rows"])
@pytest.mark.parametrize("replicas", [1, 2, 4, 8])
def test_replicas_that_share_the_stream_end_as_good_as_one_that_saw_it_all(replicas: int, with_rows: bool) -> None:
    settings = replace(SETTINGS, slots=16)  # fewer than a URL has neighbours: full tables are merged
    alone = URL2Vec(settings)
    group = [URL2Vec(settings) for _ in range(replicas)]
    for epoch in range(25):
        everything = sessions(epoch, 64)
        alone.learn(*steps_of(everything))
        deltas = []
        for k, model in enumerate(group):
            steps, names = steps_of(everything[k::replicas])
            model.learn(steps, names)
            delta = Delta.of(steps, np.array(WEIGHTS, np.float32), names, 0)
            if with_rows:
                delta = delta.with_vectors(model.moved, model.sphere.vectors[model.moved], model.vocabulary.ids)
            deltas.append(Delta.decode(delta.encode()))
        for k, model in enumerate(group):
            for other, delta in enumerate(deltas):
                if other != k:
                    model.apply(delta)
    reached = [same_topic(model) for model in group]
    assert same_topic(alone) > 0.9
    assert min(reached) > same_topic(alone) - 0.03
    assert len({len(model.vocabulary.ids) for model in group}) == 1


def test_a_damaged_delta_is_refused() -> None:
    steps, names = steps_of([list("abc")])
    blob = Delta.of(steps, np.array(WEIGHTS, np.float32), names, 5).encode()
    for wrong in (b"", blob[:-1], b"U2L3" + blob[4:], blob[:20] + b"\0" + blob[21:]):
        with pytest.raises(CorruptDelta):
            Delta.decode(wrong)
    delta = Delta.of(steps, np.array(WEIGHTS, np.float32), names, 5)
    delta.pairs = delta.pairs + np.uint32(99)
    with pytest.raises(CorruptDelta, match="points to a URL"):
        Delta.decode(delta.encode())
