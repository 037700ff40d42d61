"""What the embeddings are compared on: the bundled games and synthetic sessions, as arrays made beforehand.

Every contestant gets the same visits in the same order, without what follows itself, and the same prefixes of them: a
prefix ends with a session. Whatever form a contestant wants them in (micro-batches, lists of words) is made before its clock
starts, and made once.
"""

import gzip
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.lesson import Steps
from models.visits import RECENT, url_identity
from streams.bench.load import VISITS
from streams.bench.synthetic import STREAMS, Stream

I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]
WIKISPEEDIA = "wikispeedia"
# (URLs, topics, visits) of the synthetic ones; `--quick` takes a tenth of the URLs and visits, and a fifth of the topics.
_SIZES = {"topics": (80_000, 200, 800_000)}  # as large as ten passes leave time for
_SIZE = (4_000, 40, 300_000)


@dataclass(frozen=True)
class Corpus:
    """A stream, and what its URLs are called."""

    name: str
    stream: Stream  # topic: the class that vectors are judged by, -1 where a URL has none
    names: list[str]  # (urls,)

    @property
    def visits(self) -> int:
        """How many there are."""
        return len(self.stream.url)

    def sessions_in(self, percent: int) -> int:
        """How many sessions it takes to have so many per cent of the visits."""
        return int(np.searchsorted(self.stream.ends, percent / 100 * self.visits)) + 1 if percent < 100 else self._all

    def visits_in(self, percent: int) -> int:
        """How many visits those sessions have."""
        return int(self.stream.ends[self.sessions_in(percent) - 1])

    def seen(self, percent: int) -> I64:
        """(urls,) how often each URL was visited by then."""
        return np.bincount(self.stream.url[: self.visits_in(percent)], minlength=len(self.names))

    @property
    def _all(self) -> int:
        return len(self.stream.ends)

    @cached_property
    def ids(self) -> U64:
        """(urls,) identities, as the pipeline has them."""
        return np.array([url_identity(name) for name in self.names], np.uint64)

    @cached_property
    def steps(self) -> Steps:
        """All visits, as URL2vec reads them."""
        recent = self.stream.recent(RECENT)
        known = np.where(recent >= 0, self.ids[recent], np.uint64(0))
        return Steps(self.ids[self.stream.url], known, np.zeros(self.visits, np.bool_))

    @cached_property
    def sentences(self) -> list[list[str]]:
        """All sessions, as word2vec reads them."""
        return [[self.names[url] for url in session] for session in self.stream.sessions]


def corpus(name: str, quick: bool, seed: int) -> Corpus:
    """The stream of that name; the bundled games have no seed."""
    if name == WIKISPEEDIA:
        return wikispeedia(VISITS, 0.1 if quick else 1.0)
    urls, topics, visits = _SIZES.get(name, _SIZE)
    if quick:
        urls, topics, visits = urls // 10, topics // 5, visits // 10
    stream = STREAMS[name](urls=urls, topics=topics, visits=visits, seed=seed)
    return Corpus(name, stream, [f"https://{name}.example/{url}" for url in range(urls)])


def wikispeedia(path: Path, share: float = 1.0) -> Corpus:
    """The first sessions of a table of games, with the categories beside it (class: second part of the first category)."""
    sessions = [line.split("\t")[3].split(";") for line in _lines(path)]
    sessions = sessions[: max(1, round(share * len(sessions)))]
    index: dict[str, int] = {}
    url: list[int] = []
    ends: list[int] = []
    for pages in sessions:
        url += [index.setdefault(page, len(index)) for k, page in enumerate(pages) if not k or page != pages[k - 1]]
        ends.append(len(url))
    category: dict[str, str] = {}
    for line in _lines(path.parent / "categories.tsv.gz"):
        page, name = line.split("\t")
        category.setdefault(page, name.split(".")[1])
    classes = {name: k for k, name in enumerate(sorted(set(category.values())))}
    topic = [classes[category[page]] if page in category else -1 for page in index]
    stream = Stream(np.array(url, np.int32), np.array(ends, np.int64), np.array(topic, np.int32))
    return Corpus(WIKISPEEDIA, stream, list(index))


def _lines(path: Path) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return file.read().splitlines()[1:]
