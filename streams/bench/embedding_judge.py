"""How vectors are judged: class@10, the share of a URL's ten nearest that are of its class, and drift.

Judged are the URLs that have a class and were seen five times or more by then; the nearest, by cosine, are looked for among
them. A judged URL that the model does not know scores nothing and is nobody's neighbour. Of very many judged URLs a
sample is asked for its neighbours, but all of them may be those.

Drift is the mean cosine of a row with itself one publish (5 % of the stream) before, of the URLs judged at the earlier one, and
after no alignment: 1 is a row that stays, so that whoever keeps vectors, or learns on top of them, need not start anew.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from streams.bench.embedding_corpus import Corpus

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
Vectors = Callable[[I64], F32]  # URLs (n,) -> (n, dims) of any length, zero where unknown

JUDGED_AT = (10, 25, 50, 100)  # per cent of the stream
DRIFT_AT = (10, 30, 100)
PUBLISH = 5
PUBLISHED_AT = tuple(sorted({p - back for p in DRIFT_AT for back in (0, PUBLISH)}))
SEEN = 5  # visits
ASKED = 2_000  # of the judged URLs, where there are more than twice as many: the error of a share is then below .01
_BLOCK = 256  # asked at a time, to bound the memory


def judged(corpus: Corpus, percent: int) -> I64:
    """URLs with a class, seen often enough by then."""
    return np.flatnonzero((corpus.stream.topic >= 0) & (corpus.seen(percent) >= SEEN))


def unit(vectors: F32) -> F32:
    """The same at length 1; zero stays zero."""
    scaled: F32 = (vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)).astype(np.float32)
    return scaled


def class_at(vectors: F32, classes: I32, k: int = 10, asked: I64 | None = None) -> float:
    """Share of the k nearest of each row that have its class; of the rows `asked`, or of all."""
    k = min(k, len(vectors) - 1)
    if k < 1:
        return float("nan")
    rows, found = torch.from_numpy(unit(vectors)), torch.from_numpy(classes)
    known = rows.abs().sum(dim=1) > 0
    wanted = torch.arange(len(rows)) if asked is None else torch.from_numpy(asked)
    same = 0.0
    wanted_known = wanted[known[wanted]]
    for start in range(0, len(wanted_known), _BLOCK):
        block = wanted_known[start : start + _BLOCK]
        cosine = rows[block] @ rows.T
        cosine[:, ~known] = -2
        cosine[torch.arange(len(block)), block] = -3  # itself
        best, near = cosine.topk(k, dim=1)
        same += float(((found[near] == found[block, None]) & (best >= -1.5)).sum())
    return same / (k * len(wanted))


def popularity_at(seen: I64, classes: I32, k: int = 10) -> float:
    """What class_at would be if the k most visited were everybody's nearest."""
    k = min(k, len(classes) - 1)
    if k < 1:
        return float("nan")
    most = np.argsort(-seen, kind="stable")[: k + 1]
    same = sum(int((classes[most[most != url][:k]] == classes[url]).sum()) for url in range(len(classes)))
    return same / (k * len(classes))


def drift(before: F32, after: F32) -> float:
    """Mean cosine of each row with itself; of rows that are known both times."""
    cosine = (unit(before) * unit(after)).sum(axis=1)
    known = (np.abs(before).sum(axis=1) > 0) & (np.abs(after).sum(axis=1) > 0)
    return float(cosine[known].mean()) if known.any() else float("nan")


class Watch:
    """Looks at one contestant's vectors where it is told to, and keeps what it saw."""

    def __init__(self, corpus: Corpus, at: Sequence[int] = (), published: Sequence[int] = (), seed: int = 0) -> None:
        self.at, self.published = tuple(at), tuple(published)
        self.class_at: dict[int, float] = {}
        self.drift: dict[int, float] = {}
        self._corpus, self._seed = corpus, seed
        self._before: dict[int, tuple[I64, F32]] = {}

    def judge(self, percent: int, vectors: Vectors) -> None:
        """class@10 after so many per cent of the stream."""
        if percent not in self.at:
            return
        urls = judged(self._corpus, percent)
        asked: I64 = np.arange(len(urls))
        if len(urls) > 2 * ASKED:  # the same ones for all contestants
            asked = np.sort(np.random.default_rng([self._seed, percent]).choice(len(urls), ASKED, replace=False))
        self.class_at[percent] = class_at(vectors(urls), self._corpus.stream.topic[urls], asked=asked)

    def judge_popularity(self, percent: int) -> None:
        """The same where the most visited are everybody's neighbours."""
        urls = judged(self._corpus, percent)
        self.class_at[percent] = popularity_at(self._corpus.seen(percent)[urls], self._corpus.stream.topic[urls])

    def publish(self, percent: int, vectors: Vectors) -> None:
        """Drift since the publish before, where that was looked at."""
        if percent not in self.published:
            return
        if percent - PUBLISH in self._before:
            urls, before = self._before.pop(percent - PUBLISH)
            if len(urls):
                self.drift[percent] = drift(before, vectors(urls))
        urls = judged(self._corpus, percent)
        self._before = {percent: (urls, vectors(urls).copy())}
