"""Scenario 17: a million new URLs an hour, and a few that stay. The vocabulary keeps within its cap and keeps the few.

Two visits in five are of pages that stay, by Zipf's law; two are of URLs that nobody has seen before, one in five comes back to
one of those. Half of the pages that stay come when the vocabulary has long been full. So most of what arrives is never seen
again, and what pays to remember is a hundredth of it. The clock of the visits runs as fast as a million new URLs an hour have
it; how long the test takes is the machine's affair.
"""

import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from models.learner import Learner
from models.lesson import Lesson
from models.settings import ModelSettings
from models.visits import RECENT, VisitContext, url_identity
from tests.unit.test_models_lesson import visit

log = logging.getLogger(__name__)

NEW_AN_HOUR = 1_000_000
BATCH, SESSION = 512, 8  # visits of a learning step, and of a session
PAGES = 1_000  # that stay
RETURNS = 2_000  # to that many of the newest URLs somebody comes back
BEGIN_MS = 1_700_000_000_000


@dataclass
class Site:
    """Visits of a site whose URLs come and go."""

    random: np.random.Generator
    late: int  # before so many new URLs have come, half of the pages that stay are not there
    born: int = 0  # URLs that came and went
    visited: Counter[str] = field(default_factory=Counter)  # of the pages that stay

    def batches(self, new: int) -> Iterator[list[VisitContext]]:
        """Until so many new URLs have come."""
        weights = 1 / np.arange(1, PAGES + 1)
        pages = self._endlessly(lambda: self.random.choice(PAGES, 100_000, p=weights / weights.sum()))
        kinds = self._endlessly(lambda: self.random.choice(5, 100_000))
        ages = self._endlessly(lambda: self.random.zipf(1.2, 100_000) % RETURNS)
        while self.born < new:
            made: list[VisitContext] = []
            while len(made) < BATCH:
                earlier: tuple[str, ...] = ()
                for _ in range(SESSION):
                    url = self._url(next(kinds), pages, ages)
                    at_ms = BEGIN_MS + self.born * 3_600_000 // NEW_AN_HOUR
                    if not earlier or url != earlier[0]:
                        made.append(visit(url, *earlier, timestamp_ms=at_ms))
                        earlier = (url, *earlier)[:RECENT]
            yield made

    def _url(self, kind: int, pages: Iterator[int], ages: Iterator[int]) -> str:
        if kind < 2:
            number = next(pages)
            page = f"https://shop.example/page/{number - number % 2 if self.born < self.late else number}"
            self.visited[page] += 1
            return page
        if kind < 4 or not self.born:
            self.born += 1
            return f"https://shop.example/offer/{self.born}"
        return f"https://shop.example/offer/{max(1, self.born - next(ages))}"

    @staticmethod
    def _endlessly(draw: Callable[[], NDArray[np.int64]]) -> Iterator[int]:
        return (int(x) for _ in itertools.count() for x in draw())


def churn(new: int, capacity: int, seed: int) -> None:
    """Let so many new URLs pass by a learner of that capacity."""
    learner = Learner(ModelSettings(dims=16, slots=16, capacity=capacity, table_bits=12, embedding_bits=10), ())
    site, me = Site(np.random.default_rng(seed), late=new // 3), psutil.Process()
    steady, sizes, resident = 0, list[int](), list[int]()
    asked = known = 0
    for made in site.batches(new):
        scored = learner.score(made)
        learner.learn(Lesson.of(made, [], made[-1].timestamp_ms))
        assert learner.urls <= capacity
        if site.born > new // 2:
            stays = np.array(["/page/" in context.url for context in made])
            asked, known = asked + stays.sum(), known + (stays & ~scored.new_url).sum()
        if site.born > new // 2 + steady * new // 10:
            steady += 1
            sizes.append(len(learner.snapshot()))
            resident.append(me.memory_info().rss)
    log.info(
        f"seed {seed}: {site.born:,} new URLs; of {asked:,} visits to pages that stay {known / asked:.4f} were known"
    )
    log.info(f"snapshots of {min(sizes):,} to {max(sizes):,} bytes, resident {resident[0]:,}, later {resident[-1]:,}")
    assert site.born > 5 * capacity, "else nothing had to go"
    assert learner.urls > capacity // 2, "and nothing goes without need"
    hot = [url_identity(page) for page, times in site.visited.items() if times >= 20]
    assert len(hot) > PAGES // 5
    assert (learner._urls.vocabulary.find(np.array(hot, np.uint64)) >= 0).mean() > 0.99
    assert known / asked > 0.95
    assert len(sizes) >= 5
    assert max(sizes) < 1.05 * min(sizes)
    assert resident[-1] < resident[0] + 32 * 1024 * 1024


def test_urls_come_and_go_and_those_that_stay_are_kept(seed: int) -> None:
    churn(new=60_000, capacity=8_192, seed=seed)


@pytest.mark.long
@pytest.mark.timeout(1_800)
def test_a_million_urls_come_and_go_and_those_that_stay_are_kept(seed: int) -> None:
    churn(new=NEW_AN_HOUR, capacity=65_536, seed=seed)
