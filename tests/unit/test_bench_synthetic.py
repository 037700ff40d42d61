"""Synthetic streams: the same from the same seed, and each with the reach that it is there for."""

from itertools import pairwise

import numpy as np
import pytest

from streams.bench.synthetic import STREAMS, Stream, hubs, long, short, tabs, topics

SMALL = {"urls": 400, "topics": 10, "visits": 20_000}


def kept(stream: Stream, window: int = 10) -> list[float]:
    """Of the visits d back, d = 1 … window, the share that is in the topic of the visit itself."""
    recent = stream.recent(window)
    now = stream.topic[stream.url]
    return [float((stream.topic[column] == now)[column >= 0].mean()) for column in recent.T]


@pytest.mark.parametrize("name", STREAMS)
def test_the_same_seed_gives_the_same_visits_and_another_seed_others(name: str) -> None:
    one, same, other = (STREAMS[name](**SMALL, seed=seed) for seed in (7, 7, 8))
    assert one.url.tolist() == same.url.tolist()
    assert one.ends.tolist() == same.ends.tolist()
    assert one.topic.tolist() == same.topic.tolist()
    assert one.url[:1000].tolist() != other.url[:1000].tolist()


@pytest.mark.parametrize("name", STREAMS)
def test_it_has_as_many_visits_urls_and_topics_as_asked_and_nothing_follows_itself(name: str) -> None:
    stream = STREAMS[name](**SMALL)
    assert 0.9 * SMALL["visits"] < len(stream.url) < 1.02 * SMALL["visits"]
    assert len(stream.topic) == SMALL["urls"]
    assert len(np.unique(stream.topic)) == SMALL["topics"] + (name == "hubs")
    assert 0 <= stream.url.min() <= stream.url.max() < SMALL["urls"]
    assert stream.ends[-1] == len(stream.url)
    assert all(a != b for walk in stream.sessions for a, b in pairwise(walk))
    assert np.bincount(stream.url).max() < 0.1 * len(stream.url)


def test_recent_visits_are_those_before_in_the_session_newest_first() -> None:
    stream = Stream(np.array([5, 6, 7, 8, 9], np.int32), np.array([3, 5]), np.zeros(10, np.int32))
    assert stream.sessions == [[5, 6, 7], [8, 9]]
    assert stream.recent(2).tolist() == [[-1, -1], [5, -1], [6, 5], [-1, -1], [8, -1]]
    assert stream.recent(9).shape == (5, 9)


def test_a_link_walk_forgets_its_topic() -> None:
    share = kept(short(**SMALL))
    assert 0.5 < share[0] < 0.7
    assert share[0] > 1.4 * share[1] > 1.4 * 1.3 * share[2]
    assert share[9] < 0.2


def test_a_long_session_keeps_its_topic() -> None:
    share = kept(long(**SMALL))
    assert min(share) > 0.35
    assert max(share) - min(share) < 0.05


def test_of_two_tabs_every_other_visit_tells() -> None:
    share = kept(tabs(**SMALL))
    assert max(share[0::2]) < 0.2 < 0.4 < min(share[1::2])


def test_a_shop_with_hubs_drifts() -> None:
    share = kept(hubs(**SMALL))
    assert all(a > b for a, b in pairwise(share[:6]))


def test_topics_are_heavy_and_light() -> None:
    stream = topics(urls=2000, topics=100, visits=50_000)
    weight = np.sort(np.bincount(stream.topic[stream.url], minlength=100))
    assert weight[-1] > 15 * weight[0] > 0


def test_more_topics_than_urls_are_refused() -> None:
    with pytest.raises(ValueError, match="5 URLs cannot stand in 6 topics"):
        long(urls=5, topics=6, visits=10)
