"""What next? The ten URLs most likely to be visited next, with probabilities, for each visit.

A first-order Markov chain with popularity behind it is hard to beat, and is the opponent here (`models.ranking`). What it
does not know is where the visitor comes from and what the URLs have to do with each other. So candidates (what followed
the current URL, its neighbours, what followed the URL before, URLs of the session, the most popular: about a hundred,
however many URLs there are) are described by a few numbers each and by their vectors, and a conditional logit, that is a
softmax over the candidates, orders them. Its weights begin as the Markov chain and are learned online, a gradient step
of log p(what came next) a visit, separately for URLs seldom and often left. A product of experts (Hinton 2002) pays far more
here than their mixture: among what followed a page, where one came from decides.

Promises: `propose`, `rank` and `foresee` change nothing; `learn` and `notice` depend on the state, their arguments and the
URLs' counts alone. Not here: whether a visitor leaves; a URL that nobody visited before is never proposed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from models.counts import F32, F64, I32, Mask
from models.next_candidates import BEST, BUCKETS, I8, MARKOV, SHARED, TURNED, WEIGHTS, Learned, Tables, desk
from models.next_kernels import walk
from models.next_order import thin, together

if TYPE_CHECKING:
    from models.url2vec import URL2Vec

State = dict[str, NDArray[np.generic]]
_POPULAR = 16  # URLs that are always candidates; 64 gained nothing. More than ten, for the current one is none
_ELSEWHERE = 1000  # URLs not known yet, that popularity leaves a little for
_YOUNG = 20_000  # steps that all teach
_EVERY = 4  # of later ones, one in so many: a quarter of the time for .003 of hits


class NextUrls:
    """The learned blend. Rows are the vocabulary's, -1 an unknown URL; n visits, RECENT earlier ones, newest first.

    >>> from models.settings import ModelSettings
    >>> from models.url2vec import URL2Vec
    >>> urls = URL2Vec(ModelSettings()).learn_many([["/", "/shoes", "/cart"], ["/", "/hats"], ["/", "/shoes"]])
    >>> model = NextUrls(dims=64)
    >>> model.notice(np.arange(urls.vocabulary.count, dtype=np.int32), urls)
    >>> rows, probability = model.propose(np.array([urls.row("/")], np.int32), np.full((1, 10), -1, np.int32), urls)
    >>> [urls.vocabulary.names[row] for row in rows[0] if row >= 0]
    ['/shoes', '/hats', '/cart']
    """

    def __init__(self, dims: int) -> None:
        self._dims = dims
        weight = np.zeros((BUCKETS + 1, WEIGHTS))
        weight[SHARED, MARKOV] = 1
        # AdaGrad's sums begin at 1, the size of a gradient: the first steps must not be the longest.
        self._learned = Learned(
            weight, np.ones(weight.shape), np.zeros((TURNED, dims, dims), np.float32), np.zeros((BUCKETS, 2))
        )
        self._popular: I32 = np.zeros(0, np.int32)  # rows, most visits first
        self._total = float(_ELSEWHERE)  # visits of all URLs, in those of now
        self.steps = 0  # learned from, or left out of learning by `thin`
        self._desk = desk(dims)

    def propose(self, row: I32, recent: I32, urls: URL2Vec) -> tuple[I32, F32]:
        """After visits of `row` (n,), themselves after `recent` (n, RECENT): the rows (n, 10) most likely to be next, best
        first, and the probability of each; -1 and 0 where there are fewer. Rows may be nameless: leave those out."""
        # The oldest is dropped, so that what is judged at the next visit is what is proposed now.
        contexts = np.concatenate([row[:, None], recent[:, :-1]], axis=1)
        rows, probability = np.empty((len(row), BEST), np.int32), np.empty((len(row), BEST), np.float32)
        self._walk(contexts, row, np.ones(len(row), np.bool_), urls, proposed=rows, share=probability)
        return rows, probability

    def foresee(self, row: I32, recent: I32, wanted: Mask, urls: URL2Vec) -> tuple[I32, F32, I8, F32]:
        """What `propose` and then `rank` return, at less cost: visits of one session ask for the same twice."""
        n = len(row)
        rows, share = np.empty((n, BEST), np.int32), np.empty((n, BEST), np.float32)
        ranks, probability = np.full((n, 3), -1, np.int8), np.zeros(n, np.float32)
        contexts = np.empty((2 * n, recent.shape[1]), np.int32)
        contexts[:n, 0], contexts[:n, 1:], contexts[n:] = row, recent[:, :-1], recent
        asked = np.concatenate([np.ones(n, np.bool_), wanted])
        actual = np.concatenate([row, row])
        self._walk(contexts, actual, asked, urls, proposed=rows, share=share, rank=ranks, probability=probability)
        return rows, share, ranks, probability

    def rank(self, row: I32, recent: I32, wanted: Mask, urls: URL2Vec) -> tuple[I8, F32]:
        """Where `row` (n,) stood in what was proposed after `recent`: (n, 3) by the blend, popularity and Markov, for
        `models.ranking`; and the probability (n,) that the blend gave it, whether proposed or not.

        `wanted` (n,): False for first visits of a session and for repeats; their ranks are -1, their probability 0. A
        repeat is no step: its `recent` does not start with it.
        """
        ranks, probability = np.full((len(row), 3), -1, np.int8), np.zeros(len(row), np.float32)
        self._walk(recent, row, wanted, urls, rank=ranks, probability=probability)
        return ranks, probability

    def learn(self, row: I32, recent: I32, repeat: Mask, urls: URL2Vec) -> None:
        """Learn from steps to `row` (n,; -1 where it is new). Call it before the URLs count these visits: what is to be
        learned is how to foresee them."""
        wanted = (recent[:, 0] >= 0) & (recent[:, 0] != row) & ~repeat
        self.steps = int(thin(wanted, self.steps, _YOUNG, _EVERY))
        self._walk(recent, row, wanted, urls, teach=True)

    def notice(self, rows: I32, urls: URL2Vec) -> None:
        """The URLs' counts of these rows have grown: of visits here, or of another replica's. Call it after that.

        Order by visits changes in no other way, all counts being forgotten at the same rate; so nothing else is looked at.
        """
        seen = np.unique(np.concatenate([self._popular, rows[rows >= 0]]))
        seen = seen[urls.counts.visits[seen] > 0]  # not those that lost their row
        most_first = np.argsort(-urls.counts.visits[seen], kind="stable")
        self._popular = seen[most_first[:_POPULAR]].astype(np.int32)
        known = urls.vocabulary.count
        self._total = float(urls.counts.visits[:known].sum()) / urls.counts.unit + (known + _ELSEWHERE) * 0.1

    def _walk(
        self,
        contexts: I32,
        actual: I32,
        wanted: Mask,
        urls: URL2Vec,
        teach: bool = False,
        proposed: I32 | None = None,
        share: F32 | None = None,
        rank: I8 | None = None,
        probability: F32 | None = None,
    ) -> None:
        """Contexts (q, RECENT) of visits that ask, those who want to know what is next first; see `walk`."""
        counts = urls.counts
        near, after = counts.near, counts.after
        tables = Tables(
            urls.sphere.vectors, near.url, near.count, near.used, after.url, after.count, after.used, counts.mass,
            counts.visits,
        )  # fmt: skip
        contexts = np.ascontiguousarray(contexts)
        order, first = np.flatnonzero(wanted), np.ones(len(contexts), np.bool_)
        if not len(order):
            return
        if not teach:  # which changes what the next one is answered
            together(contexts, order, first)
        walk(
            contexts, order, first, np.ascontiguousarray(actual), teach, tables, self._popular,
            counts.unit, self._total, self._learned, self._desk,
            np.empty((0, BEST), np.int32) if proposed is None else proposed,
            np.empty((0, BEST), np.float32) if share is None else share,
            np.empty((0, 3), np.int8) if rank is None else rank,
            np.empty(0, np.float32) if probability is None else probability,
        )  # fmt: skip

    @property
    def weights(self) -> F64:
        """(BUCKETS + 1, WEIGHTS), what the blend goes by; `models.next_candidates` says which is which."""
        return self._learned.weight.copy()

    def state(self) -> State:
        """Arrays from which `load` makes an equal blend."""
        return self._learned._asdict() | {
            "popular": self._popular,
            "total": np.array([self._total]),
            "steps": np.array([self.steps], np.int64),
        }

    def load(self, state: Mapping[str, NDArray[np.generic]], rows: int) -> None:
        """Take over a saved state, of URLs with that many rows. Raises ValueError or KeyError where it does not fit."""
        for name, mine in self._learned._asdict().items():
            if state[name].shape != mine.shape or not np.isfinite(state[name]).all():
                raise ValueError(f"{name} of the next URLs has the shape {state[name].shape} or is not finite")
        popular = state["popular"].astype(np.int32)
        if len(popular) and not 0 <= int(popular.min()) <= int(popular.max()) < rows:
            raise ValueError("a popular URL is not in the vocabulary")
        total, steps = float(state["total"][0]), int(state["steps"][0])
        if not 0 < total < np.inf or steps < 0:
            raise ValueError(f"{total} visits in all and {steps} steps are no counts")
        for name, mine in self._learned._asdict().items():
            mine[:] = state[name]
        self._popular, self._total, self.steps = popular, total, steps
