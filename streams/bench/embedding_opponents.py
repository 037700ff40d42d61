"""Who competes in `url2vec bench embedding`, and what each is spared.

    URL2vec       one pass, learning from micro-batches as a worker does. Timed: `learn` alone.
    gensim        Word2Vec, skip-gram with negative sampling (Mikolov et al. 2013), C inside. Before its clock starts it is
                  told the vocabulary and all counts, which a stream does not tell. On each prefix it is trained anew, so
                  that its learning rate falls to nothing at the end of each.
    PPMI and SVD  offline: all counts, then scipy's truncated SVD (Levy, Goldberg, Dagan 2015). Trained anew as well.
    popularity    the ten most visited are everybody's neighbours: what no vector at all gives
    random        vectors drawn at random

gensim's and SVD's settings were searched on Wikispeedia; the window is, on each stream and in hindsight, the better of those
listed. URL2vec has its defaults everywhere.

RiverText 0.0.2 (incremental word2vec: Kaji, Kobayashi 2017), the nearest of kin, cannot be installed beside this project: it
needs names that River had in 0.16 and has no more. In an environment of its own it came to .45 on Wikispeedia at 24,000 to
35,000 visits a second (window 2; 32 and 256 sessions a batch; sessions of fewer than five pages it passes over).
"""

import gc
import importlib.util
import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from models.lesson import Steps
from models.settings import ModelSettings
from models.url2vec import URL2Vec
from streams.bench.embedding_corpus import Corpus
from streams.bench.embedding_judge import F32, I64, Vectors, Watch

INSTALL = "is left out: it is not installed, pip install -e '.[bench]'"
DIMS = 64


@dataclass
class Cost:
    """What learning `visits` took, and what is kept afterwards."""

    visits: int
    cpu_s: float = 0.0
    wall_s: float = 0.0
    urls: int = 0
    held_bytes: int = 0  # vectors, counts, index
    name_bytes: int = 0  # the URLs as text

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add the time of what is done inside; CPU time is that of all threads."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.cpu_s += time.process_time() - cpu
        self.wall_s += time.perf_counter() - wall


class Contestant(Protocol):
    """One method with one setting."""

    name: str
    setting: str
    window: int  # visits back, where on a long stream it is to be the one that another did best with; else 0
    rounds: bool  # whether it is timed in every round; else in the first alone

    def learn(self, corpus: Corpus, watch: Watch) -> Cost:
        """Learn the whole stream from nothing and show `watch` the vectors on the way; the cost of the whole stream."""


class Ours:
    """URL2vec, from visits alone, or `named`: from what the URLs are called as well, as in the pipeline. With a device other
    than the CPU, CPU time says little."""

    rounds, window = True, 0

    def __init__(self, name: str, settings: ModelSettings, batch: int, named: bool = False) -> None:
        self.name, self.setting, self._settings, self._batch, self._named = name, "", settings, batch, named

    def learn(self, corpus: Corpus, watch: Watch) -> Cost:
        """One pass. A micro-batch ends early where vectors are looked at."""
        steps, cost = corpus.steps, Cost(corpus.visits)
        model, done = self.warm(), 0
        urls, first = np.unique(corpus.stream.url, return_index=True)
        gc.collect()
        for percent in sorted({*watch.at, *watch.published, 100}):
            until = corpus.visits_in(percent)
            lessons: list[tuple[Steps, dict[int, str]]] = []
            for a in range(done, until, self._batch):
                b = min(a + self._batch, until)
                fresh = urls[(first >= a) & (first < b) & self._named]
                names = {int(corpus.ids[url]): corpus.names[url] for url in fresh}
                lessons.append((Steps(steps.url[a:b], steps.recent[a:b], steps.repeat[a:b]), names))
            with cost.timed():
                for lesson, names in lessons:
                    model.learn(lesson, names)
            watch.judge(percent, lambda urls: _known(model, corpus.ids[urls]))
            watch.publish(percent, lambda urls: _known(model, corpus.ids[urls]))
            done = until
        rows = model.vocabulary.find(corpus.ids)
        cost.urls = int((rows >= 0).sum())
        cost.held_bytes = allocated(model)
        cost.name_bytes = _text_bytes([corpus.names[k] for k in np.flatnonzero(rows >= 0)])
        return cost

    def warm(self) -> URL2Vec:
        """A model that knows nothing, whose loops are compiled."""
        torch.set_num_threads(1)
        ids = np.arange(1, 301, dtype=np.uint64)
        recent = np.stack([np.roll(ids, d) for d in range(1, 11)], axis=1)
        other = URL2Vec(self._settings)
        for _ in range(3):
            other.learn(Steps(ids, recent, np.zeros(len(ids), np.bool_)), {})
        return URL2Vec(self._settings)


def _known(model: URL2Vec, ids: NDArray[np.uint64]) -> F32:
    rows = model.vocabulary.find(ids)
    vectors: F32 = model.sphere.unit(np.maximum(rows, 0))
    vectors[rows < 0] = 0
    return vectors


def allocated(model: object) -> int:
    """Bytes of all arrays and tensors below an object of ours: what is reserved, in use or not."""
    found: dict[int, int] = {}

    def look(thing: object) -> None:
        if isinstance(thing, np.ndarray):
            while isinstance(thing.base, np.ndarray):
                thing = thing.base
            found[id(thing)] = thing.nbytes
        elif isinstance(thing, torch.Tensor):
            found[thing.data_ptr()] = thing.untyped_storage().nbytes()
        elif type(thing).__module__.startswith("models."):
            for value in vars(thing).values():
                look(value)

    look(model)
    return sum(found.values())


class Gensim:
    """gensim's Word2Vec with one worker thread; its CPU time is that of this thread, without the one that feeds it."""

    def __init__(self, epochs: int, window: int, alpha: float, whole: bool, seed: int) -> None:
        self.name = "gensim, one pass" if epochs == 1 else f"gensim, {epochs} passes"
        self.setting, self.window = f"window {window}", window
        self.rounds = epochs == 1
        self._epochs, self._alpha = epochs, alpha
        self._settings: dict[str, Any] = {
            "vector_size": DIMS, "window": window, "shrink_windows": not whole, "sg": 1, "hs": 0, "negative": 5, "sample": 0,
            "ns_exponent": 0.75, "min_count": 1, "workers": 1, "seed": seed, "alpha": alpha, "min_alpha": 1e-4,
        }  # fmt: skip

    def learn(self, corpus: Corpus, watch: Watch) -> Cost:
        """Anew on each prefix; the last time on everything, which is what is timed."""
        for percent in watch.at:
            if percent < 100:
                model = self._model(corpus, percent)
                self._train(model, corpus, (percent,), Cost(0))
                watch.judge(percent, _vectors_of(model, corpus))
        cost = Cost(corpus.visits)
        model = self._model(corpus, 100)
        gc.collect()
        stops = watch.published if self._epochs == 1 else ()
        self._train(model, corpus, (*[p for p in stops if p < 100], 100), cost, watch)
        watch.judge(100, _vectors_of(model, corpus))
        index, keys = model.wv.key_to_index, model.wv.index_to_key
        cost.urls = len(keys)
        cost.held_bytes = sum(
            array.nbytes for array in (model.wv.vectors, model.syn1neg, model.cum_table, *model.wv.expandos.values())
        )
        cost.held_bytes += sys.getsizeof(index) + sys.getsizeof(keys) + sum(map(sys.getsizeof, index.values()))
        cost.name_bytes = _text_bytes(keys)
        return cost

    def _model(self, corpus: Corpus, percent: int) -> Any:
        from gensim.models import Word2Vec

        logging.getLogger("gensim").setLevel(logging.ERROR)
        model = Word2Vec(**self._settings)
        model.build_vocab(corpus.sentences[: corpus.sessions_in(percent)])
        return model

    def _train(
        self, model: Any, corpus: Corpus, stops: tuple[int, ...], cost: Cost, watch: Watch | None = None
    ) -> None:
        """One pass may stop on the way to be looked at: the learning rate falls as if it had not."""
        loop, ended = model._worker_loop, threading.Event()

        def timed_loop(*arguments: Any) -> None:
            started = time.thread_time()
            loop(*arguments)
            cost.cpu_s += time.thread_time() - started
            ended.set()

        model._worker_loop = timed_loop
        done, last = 0, corpus.visits_in(stops[-1])
        rate = self._alpha
        for percent in stops:
            until = corpus.sessions_in(percent)
            part = corpus.sentences[done:until]
            lower = self._alpha + (1e-4 - self._alpha) * corpus.visits_in(percent) / last
            started = time.perf_counter()
            model.train(part, total_words=sum(map(len, part)), epochs=self._epochs, start_alpha=rate, end_alpha=lower)
            cost.wall_s += time.perf_counter() - started
            ended.wait()  # `train` does not: it goes by what the thread has said
            ended.clear()
            if watch is not None:
                watch.publish(percent, _vectors_of(model, corpus))
            done, rate = until, lower


def _vectors_of(model: Any, corpus: Corpus) -> Vectors:
    def vectors(urls: I64) -> F32:
        found: F32 = model.wv[[corpus.names[url] for url in urls]]
        return found

    return vectors


class Factors:
    """Positive PMI of co-visits, weighing 1 / d ** fall at distance d, and its truncated SVD; rows are U · S.

    Contexts are not smoothed: on Wikispeedia .555, with the power of .75 that word2vec has .541; U alone .545.
    """

    name, window, rounds = "offline PPMI + SVD", 0, False

    def __init__(self, window: int, fall: float, seed: int) -> None:
        self.setting = f"window {window}, {'1/d²' if fall else 'flat'}"
        self._weight = 1 / np.arange(1, window + 1) ** fall
        self._seed = seed

    def learn(self, corpus: Corpus, watch: Watch) -> Cost:
        """Anew on each prefix."""
        cost = Cost(corpus.visits)
        for percent in sorted({*watch.at, 100}):
            cost = Cost(corpus.visits_in(percent))
            vectors = self._factors(corpus, percent, cost)
            watch.judge(percent, vectors.__getitem__)
        return cost

    def _factors(self, corpus: Corpus, percent: int, cost: Cost) -> F32:
        from scipy.sparse import coo_array, csr_array
        from scipy.sparse.linalg import svds

        n = len(corpus.names)
        url = corpus.stream.url[: cost.visits]
        recent = corpus.stream.recent(len(self._weight))[: cost.visits]
        gc.collect()
        with cost.timed():
            keep = (recent >= 0) & (recent != url[:, None])
            one, other = np.broadcast_to(url[:, None], recent.shape)[keep], recent[keep]
            weight = np.broadcast_to(self._weight, recent.shape)[keep]
            half = csr_array(coo_array((weight, (one, other)), shape=(n, n)))
            counts = coo_array(half + half.T)
            row, column, mass = counts.row, counts.col, np.asarray(counts.sum(axis=1))
            pmi = np.log(counts.data * mass.sum() / (mass[row] * mass[column]))
            ppmi = csr_array((pmi[pmi > 0], (row[pmi > 0], column[pmi > 0])), shape=(n, n))
            start = np.random.default_rng(self._seed).normal(size=n)
            left, strength, _ = svds(ppmi, min(DIMS, n - 2), v0=start, tol=1e-2)
            vectors: F32 = (left * strength).astype(np.float32)
        cost.urls = int((corpus.seen(percent) > 0).sum())
        cost.held_bytes = vectors.nbytes + counts.nnz * 12  # a count and its column
        cost.name_bytes = _text_bytes([corpus.names[k] for k in np.flatnonzero(corpus.seen(percent) > 0)])
        return vectors


class Popular:
    """The ten most visited are nearest to everybody."""

    name, setting, window, rounds = "popularity", "", 0, False

    def learn(self, corpus: Corpus, watch: Watch) -> Cost:
        """Nothing is learned but counts."""
        for percent in watch.at:
            watch.judge_popularity(percent)
        return Cost(0)


class Random:
    """Nothing is known: the share of its class that a URL meets by chance."""

    name, setting, window, rounds = "random", "", 0, False

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def learn(self, corpus: Corpus, watch: Watch) -> Cost:
        """Nothing at all."""
        vectors = np.random.default_rng(self._seed).normal(size=(len(corpus.names), DIMS)).astype(np.float32)
        for percent in watch.at:
            watch.judge(percent, lambda urls: vectors[urls])
        return Cost(0)


def opponents(seed: int) -> tuple[list[list[Contestant]], list[str]]:
    """Each opponent's settings to choose from, the floors last; and a sentence for each that cannot run here."""
    found: list[list[Contestant]] = []
    missing: list[str] = []
    if importlib.util.find_spec("gensim"):
        # Wikispeedia, 5 negative samples (10 gave a hundredth more at half the speed). One pass, window 2: rate .1 .439,
        # .2 .461, with whole windows .467, .3 .377; window 10: .05 .388, .1 .422. Ten: .1 .489, .05 .503, .03 .512.
        found.append([Gensim(1, 2, 0.2, True, seed), Gensim(1, 10, 0.1, False, seed)])
        found.append([Gensim(10, 2, 0.03, False, seed), Gensim(10, 10, 0.025, False, seed)])
    else:
        missing.append(f"gensim {INSTALL}")
    if importlib.util.find_spec("scipy"):
        found.append([Factors(2, 2, seed), Factors(5, 2, seed), Factors(10, 0, seed)])
    else:
        missing.append(f"PPMI and SVD {INSTALL.replace('it is not', 'scipy is not')}")
    return [*found, [Popular()], [Random(seed)]], missing


def _text_bytes(names: list[str]) -> int:
    return sum(map(sys.getsizeof, names))
