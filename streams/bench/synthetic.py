"""Synthetic sessions whose truth is known: which topic each URL belongs to, and how far back a visit still tells of it.

Real logs differ in their reach. In an encyclopaedia the page just before says nearly all; in a shop the tenth page back
says as much; whoever reads in two tabs is told by the visit before last. One stream for each, all from a seed: the same
arguments give the same visits on every machine with the same numpy.

Not here: who learns from them, and how vectors are judged.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
_NEAR_ZIPF = (
    0.8  # popularity of rank r is 1 / (r + 10) ** this: heads and tails, as real URLs have, no page above a few %
)


@dataclass(frozen=True)
class Stream:
    """Visits in order, session after session; within a session no URL follows itself."""

    url: I32  # (visits,), below `urls`
    ends: I64  # (sessions,): session s is url[ends[s - 1] : ends[s]]
    topic: I32  # (urls,): the truth

    @property
    def sessions(self) -> list[list[int]]:
        """The same visits as lists, for those who want them so."""
        return [part.tolist() for part in np.split(self.url, self.ends[:-1])]

    def recent(self, window: int) -> I32:
        """(visits, window): the visits before each in its session, newest first, -1 where there are none."""
        n = len(self.url)
        starts = np.concatenate([[0], self.ends[:-1]])
        place = np.arange(n) - np.repeat(starts, np.diff(self.ends, prepend=0))
        out = np.full((n, window), -1, np.int32)
        for d in range(1, min(window, n - 1) + 1):
            out[d:, d - 1] = np.where(place[d:] >= d, self.url[:-d], -1)
        return out


class _Site:
    """URLs in topics, each URL with a popularity inside its topic. `spread` > 0 makes heavy and light topics."""

    def __init__(self, random: np.random.Generator, urls: int, topics: int, spread: float = 0.0) -> None:
        if not 1 <= topics <= urls:
            raise ValueError(f"{urls} URLs cannot stand in {topics} topics")
        self.random = random
        share = 1.0 / np.arange(1, topics + 1) ** spread
        self.share = share / share.sum()  # (topics,), of the sessions and of the URLs
        size = np.maximum(1, np.floor(self.share * urls)).astype(np.int64)
        while size.sum() != urls:  # a URL more or less where there are most
            size[np.argmax(size)] += 1 if size.sum() < urls else -1
        self.topic = random.permutation(np.repeat(np.arange(topics, dtype=np.int32), size))
        self._members = np.argsort(self.topic, kind="stable").astype(np.int32)
        self._first = np.concatenate([[0], np.cumsum(size)])
        # One cumulative weight runs through all topics, so that a draw inside any topic is one binary search.
        rank = np.arange(urls) - np.repeat(self._first[:-1], size)
        self._cumulative = np.concatenate([[0.0], np.cumsum(1.0 / (rank + 10.0) ** _NEAR_ZIPF)])

    def draw(self, topic: NDArray[np.integer]) -> I32:
        """A URL of each of these topics, by popularity."""
        low, high = self._cumulative[self._first[topic]], self._cumulative[self._first[topic + 1]]
        place = (
            np.searchsorted(self._cumulative, low + self.random.random(topic.shape) * (high - low), side="right") - 1
        )
        chosen: I32 = self._members[np.clip(place, self._first[topic], self._first[topic + 1] - 1)]
        return chosen

    def anywhere(self, n: int) -> I32:
        """A URL of any topic, by popularity."""
        return self.draw(self.topics(n))

    def topics(self, n: int) -> I32:
        """A topic for each of n sessions."""
        return self.random.choice(len(self.share), n, p=self.share).astype(np.int32)

    def lengths(self, visits: int, mean: float) -> I64:
        """Lengths of sessions, geometric from 2 on, that add up to `visits` or one session more than that."""
        n = max(1, int(visits / mean * 1.2) + 100)
        length = 1 + self.random.geometric(1 / max(mean - 1, 1.0), n)
        return length[: int(np.searchsorted(np.cumsum(length), visits)) + 1]

    def stream(self, url: I32, length: I64) -> Stream:
        """Collapse what follows itself: a reload teaches nothing."""
        session = np.repeat(np.arange(len(length)), length)
        kept = np.ones(len(url), np.bool_)
        kept[1:] = (url[1:] != url[:-1]) | (session[1:] != session[:-1])
        return Stream(url[kept], np.cumsum(np.bincount(session[kept], minlength=len(length))), self.topic)


def short(urls: int = 4000, topics: int = 40, visits: int = 300_000, seed: int = 0, stay: float = 0.6) -> Stream:
    """A walk along links, as in an encyclopaedia: a link stays in the topic with probability `stay`.

    After d links that is about stay ** d: the visit before says much, the fifth before next to nothing.
    """
    site = _Site(np.random.default_rng([seed, 1]), urls, topics)
    random, links = site.random, 20
    home = np.repeat(site.topic[:, None], links, axis=1)
    anywhere = site.topics(urls * links).reshape(urls, links)
    link = site.draw(np.where(random.random((urls, links)) < stay, home, anywhere))  # (urls, links)
    length = site.lengths(visits, 6)
    starts = np.cumsum(length) - length
    url = np.empty(int(length.sum()), np.int32)
    here = site.anywhere(len(length))
    for step in range(int(length.max())):
        alive = length > step
        url[starts[alive] + step] = here[alive]
        here = link[here, random.integers(links, size=len(here))]
    return site.stream(url, length)


def long(urls: int = 4000, topics: int = 40, visits: int = 300_000, seed: int = 0, noise: float = 0.4) -> Stream:
    """A session keeps its topic, as in a shop; `noise` of its visits are from anywhere. Distance 10 tells as much as 1."""
    site = _Site(np.random.default_rng([seed, 2]), urls, topics)
    length = site.lengths(visits, 14)
    topic = np.repeat(site.topics(len(length)), length)
    stray = site.random.random(len(topic)) < noise
    return site.stream(np.where(stray, site.anywhere(len(topic)), site.draw(topic)), length)


def tabs(urls: int = 4000, topics: int = 40, visits: int = 300_000, seed: int = 0, noise: float = 0.3) -> Stream:
    """Two topics in turn, as in two tabs: the visit before last tells much, the last one nothing."""
    site = _Site(np.random.default_rng([seed, 3]), urls, topics)
    length = site.lengths(visits, 12)
    starts = np.cumsum(length) - length
    turn = (np.arange(int(length.sum())) - np.repeat(starts, length)) % 2
    topic = np.where(
        turn == 0, np.repeat(site.topics(len(length)), length), np.repeat(site.topics(len(length)), length)
    )
    stray = site.random.random(len(topic)) < noise
    return site.stream(np.where(stray, site.anywhere(len(topic)), site.draw(topic)), length)


def hubs(urls: int = 4000, topics: int = 40, visits: int = 300_000, seed: int = 0, hub: float = 0.5) -> Stream:
    """A shop in which about every second page is one of twenty hubs (home, basket, search), told apart from no topic.

    A session changes its topic now and then, so that its reach is middling; the hubs are a topic of their own, the last.
    """
    site = _Site(np.random.default_rng([seed, 4]), urls - 20, topics)
    length = site.lengths(visits, 16)
    n = int(length.sum())
    change = site.random.random(n) < 0.12
    change[np.cumsum(length) - length] = True
    topic = site.topics(int(change.sum()))[np.cumsum(change) - 1]
    url = np.where(site.random.random(n) < hub, site.random.integers(urls - 20, urls, n), site.draw(topic)).astype(
        np.int32
    )
    site.topic = np.concatenate([site.topic, np.full(20, topics, np.int32)])
    return site.stream(url, length)


def topics(
    urls: int = 200_000, topics: int = 500, visits: int = 2_000_000, seed: int = 0, noise: float = 0.1
) -> Stream:
    """Many topics, heavy and light: the heaviest has some hundred times the visits of the lightest. For speed, and size."""
    site = _Site(np.random.default_rng([seed, 5]), urls, topics, spread=0.75)
    length = site.lengths(visits, 8)
    topic = np.repeat(site.topics(len(length)), length)
    stray = site.random.random(len(topic)) < noise
    return site.stream(np.where(stray, site.anywhere(len(topic)), site.draw(topic)), length)


STREAMS: dict[str, Callable[..., Stream]] = {"short": short, "long": long, "tabs": tabs, "hubs": hubs, "topics": topics}
