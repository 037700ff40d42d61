"""URL2vec: a vector for each URL, learned in one pass while the stream flows.

URLs are words, a visitor's session is a sentence. Where word2vec walks over the corpus several times with gradient steps,
this counts co-visits in bounded room (`models.counts`) and derives vectors from the counts as they change
(`models.sphere`, which has the equations): counts are the state, vectors follow from them, and rows that nothing touched
keep their bits.

The counts forget (`models.forgetting`), and room is bounded: URLs not seen for `time_to_live` lose their row; so do, when
rows run out, those with the fewest visits, a sixteenth of the capacity at a time. What pointed to them is taken out in one
pass over the tables.

Promises: `learn` depends on state and lesson alone; the readers change nothing.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from models.alignment import turned
from models.composition import PARTS, Composer, named_parts, parts, remembered_parts, table
from models.counts import F32, F64, I16, I32, U64, Mask, longer
from models.exchange import Delta
from models.forgetting import Counts
from models.lesson import Steps
from models.neighbours import nearest_rows
from models.reach import Reach
from models.settings import ModelSettings
from models.sphere import ONE, Sphere
from models.visits import RECENT, url_identity
from models.vocabulary import Vocabulary

State = dict[str, NDArray[np.generic]]
PRIOR_VISITS = 100.0  # for which an imported vector stands: after seven visits it and what was counted weigh the same
_PARTS_VISITS = 3.0  # for which the parts of a URL's name stand, at the sure trust of 1
_RARE = (
    40  # visits beyond which they are not asked. Rare pages of a synthetic shop .64 -> .74, Wikispeedia .560 -> .567
)
_AT_ONCE = 16  # a share of the capacity is evicted at a time: taking out what points there costs a pass over the tables


class URL2Vec:
    """Vectors, neighbours and successors of URLs. Rows, everywhere, are the vocabulary's; -1 is an unknown URL.

    The pipeline calls `learn`. On its own it is an estimator in River's manner:

    >>> shop = [["/shoes", "/shoes/red", "/shoes/blue"], ["/hats", "/hats/blue", "/hats/red"]]
    >>> model = URL2Vec(ModelSettings(dims=8)).learn_many(shop * 20)
    >>> model.vector("/shoes").shape
    (8,)
    >>> [url for url, cosine in model.most_similar("/shoes/red", k=2)]
    ['/shoes', '/shoes/blue']
    >>> "/gloves" in model
    False
    """

    def __init__(self, settings: ModelSettings) -> None:
        self._settings = settings
        self.vocabulary = Vocabulary(settings.capacity, settings.admit_after)
        self.counts = Counts(settings)
        device = settings.device if settings.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        self.sphere = Sphere(settings.dims, settings.refresh, torch.device(device))
        self.removed = 0  # URLs that lost their row
        self.moved: I32 = np.zeros(0, np.int32)  # rows whose vectors the last step derived anew
        self.reach = Reach(settings.window)
        self._fixed: F32 = np.array(settings.distance_weights, np.float32)
        self.composer = Composer(settings.dims, settings.part_bits)
        self._parts: I32 = np.zeros((0, PARTS), np.int32)  # where in the composer a row's parts are
        self.prior: Mask = np.zeros(0, np.bool_)  # rows that began with an imported vector
        self._reserve(min(1024, settings.capacity))

    def _reserve(self, rows: int) -> None:
        held = len(self.prior)
        if rows <= held:
            return
        rows = min(self._settings.capacity, max(rows, held * 3 // 2))
        self.counts.reserve(rows)
        self.sphere.reserve(rows)
        self.prior, self._parts = longer(self.prior, rows), longer(self._parts, rows)
        self._parts[held:] = -1

    # -- learning ----------------------------------------------------------------------------------------------------

    def learn(
        self, steps: Steps, names: Mapping[int, str], clock_ms: int = 0, titles: Mapping[int, str] | None = None
    ) -> dict[int, str]:
        """Learn the pairs and steps of some visits, at event time `clock_ms` (0: no time passes).

        `names` says what the URLs are called, `titles` what their pages are. Returns the names that were news here.
        """
        self._advance(clock_ms)
        if not len(steps.url):
            return self._name(names, titles)
        row = self._rows_of(np.where(steps.repeat, np.uint64(0), steps.url))
        recent = self.vocabulary.find(steps.recent)
        self._refresh(self.counts.count(row, recent, steps.repeat, self._weights(row, recent, steps.repeat)))
        return self._name(names, titles)

    def _weights(self, row: I32, recent: I32, repeat: Mask) -> F32:
        """What pairs at each distance weigh, as the stream has taught up to these visits."""
        if len(self._fixed):
            return self._fixed
        self.reach.observe(row, recent, repeat, self.sphere.vectors, ONE, self.counts.mass)
        return self.reach.weight

    def apply(self, delta: Delta) -> None:
        """Take over what another replica counted. Vectors that came with it are taken as they are; others follow from the
        sums, as always."""
        self._advance(delta.clock_ms)
        # As often as it was visited, for that is what admission asks; more often changes nothing.
        self._rows_of(np.repeat(delta.ids, np.minimum(delta.visits, self._settings.admit_after)))
        row = self.vocabulary.find(delta.ids)
        touched = self.counts.add(row, delta)
        if len(delta.rows):
            given = row[delta.rows]
            taken = (given >= 0) & (self.counts.mass[given] > 0)
            self._place(given[taken], delta.vectors[taken].astype(np.float32) / np.float32(ONE), derived=True)
        self._refresh(touched)
        self._name(delta.names)

    def _name(self, names: Mapping[int, str], titles: Mapping[int, str] | None = None) -> dict[int, str]:
        """Name rows that had no name; from now on unseen URLs may be composed from their parts. Returns what was news."""
        news = self.vocabulary.name(names)
        if news:
            rows, titles = self.vocabulary.find(np.fromiter(news, np.uint64, len(news))), titles or {}
            every = [
                parts(url, title) if (title := titles.get(url_id)) else remembered_parts(url)
                for url_id, url in news.items()
            ]
            self._parts[rows] = self.composer.enter(table(every))
            self.composer.replace(self._parts[rows], np.zeros_like(self.sphere.vectors[rows]), self._derived(rows))
        return news

    def _derived(self, rows: I32) -> I16:
        """Vectors that say something; zeros for those that only follow from an id."""
        taught = np.isfinite(self.sphere.log_mass[rows]) | self.prior[rows]
        return np.where(taught[:, None], self.sphere.vectors[rows], np.int16(0))

    def _refresh(self, touched: I32) -> None:
        counts = self.counts
        due = self.sphere.due(touched, counts.mass)
        old = self._derived(due)
        self.sphere.refresh(due, counts.near, counts.mass, counts.unit, self.vocabulary.live, self._pull(due, old))
        self.composer.replace(self._parts[due], old, self.sphere.vectors[due])
        self.moved = due

    def _pull(self, rows: I32, own: I16) -> F32:
        """(n, dims) What is known of rows besides their counts, as against a length of 1 of what the counts say: the parts of
        a rare URL (as if they had been seen _PARTS_VISITS times), and an imported vector (PRIOR_VISITS times)."""
        seen = self.counts.times(rows)
        pull = np.zeros((len(rows), self._settings.dims), np.float32)
        rare = np.flatnonzero((seen < _RARE) & (self._parts[rows, 0] >= 0))
        if len(rare):
            composed, trust = self.composer.compose(self.composer.parts_at(self._parts[rows[rare]]), own[rare])
            pull[rare] = composed * (_PARTS_VISITS * trust / np.maximum(seen[rare], 0.5))[:, None].astype(np.float32)
        prior = np.flatnonzero(self.prior[rows])
        if len(prior):
            share = (PRIOR_VISITS / np.maximum(seen[prior], 0.5)).astype(np.float32)[:, None]
            pull[prior] += share * self.sphere.unit(rows[prior])
        return pull

    def _rows_of(self, ids: U64) -> I32:
        """Rows of visits; those of URLs that are new are taken into use."""
        self._make_room(ids)
        row, fresh = self.vocabulary.admit(ids)
        self._enter(fresh)
        return row

    def warm_start(self, urls: Sequence[str], vectors: F32) -> int:
        """Take over vectors (n, dims) from elsewhere as a prior, which fades as a URL's own visits grow; returns how many.

        Vectors are turned onto those that were learned here, where both sides know enough URLs. URLs that find no room are
        left out. Raises ValueError where the dimensions differ.
        """
        if vectors.ndim != 2 or vectors.shape != (len(urls), self._settings.dims):
            raise ValueError(f"expected vectors of shape {(len(urls), self._settings.dims)}, got {vectors.shape}")
        length = np.linalg.norm(vectors, axis=1)
        sound = np.isfinite(length) & (length > 0)
        ids = np.where(sound, np.array([url_identity(url) for url in urls], np.uint64).reshape(len(urls)), np.uint64(0))
        row, fresh = self.vocabulary.admit(ids, at_once=True)
        self._enter(fresh)
        self.counts.saw(fresh)
        known = row >= 0
        row, unit = row[known], (vectors[known] / length[known, None]).astype(np.float32)
        mine, seen = self.sphere.unit(row), self.counts.times(row)
        taught = seen >= 1
        unit = turned(unit, mine[taught], unit[taught], np.log1p(seen[taught]))
        share = (PRIOR_VISITS / (PRIOR_VISITS + seen)).astype(np.float32)[:, None]
        mixed = share * unit + (1 - share) * mine
        self._place(row, mixed / np.maximum(np.linalg.norm(mixed, axis=1, keepdims=True), 1e-6), derived=False)
        self._name({int(i): url for i, url, here in zip(ids, urls, known, strict=True) if here})
        return len(row)

    def _place(self, rows: I32, unit: F32, derived: bool) -> None:
        """Put rows where somebody else says they belong: `derived` from the counts as they are, or as a prior."""
        old = self._derived(rows)
        if derived:
            self.sphere.weighed(rows, self.counts.mass)
        else:
            self.prior[rows] = True
        self.sphere.place(rows, unit)
        self.composer.replace(self._parts[rows], old, self.sphere.vectors[rows])

    def _enter(self, fresh: I32) -> None:
        """Take new rows into use."""
        if len(fresh):
            self._reserve(self.vocabulary.count)
            self.sphere.enter(fresh, self.vocabulary.ids[fresh])

    # -- time and room -----------------------------------------------------------------------------------------------

    def _advance(self, clock_ms: int) -> None:
        factor = self.counts.advance(clock_ms)
        if factor != 1:
            self.sphere.rescale(factor)
        self._remove(self.counts.expired(self.vocabulary.ids != 0))

    def _make_room(self, ids: U64) -> None:
        v, most = self.vocabulary, max(1, self._settings.capacity // _AT_ONCE)
        if v.live + len(ids) <= v.capacity:
            return
        unknown = len(np.unique(ids[(v.find(ids) < 0) & (ids != 0)]))
        if v.live + min(unknown, most) > v.capacity:
            self._remove(self.counts.coldest(v.ids != 0, most))

    def _remove(self, rows: I32) -> None:
        if not len(rows):
            return
        nowhere = np.zeros((len(rows), self._settings.dims), np.int16)
        self.composer.replace(self._parts[rows], self._derived(rows), nowhere)
        self.composer.leave(self._parts[rows])
        self.counts.forget(rows, self.vocabulary.count)
        self.sphere.leave(rows)
        self._parts[rows], self.prior[rows] = -1, False
        self.vocabulary.remove(rows)
        self.removed += len(rows)

    # -- reading -----------------------------------------------------------------------------------------------------

    def popularity(self, rows: I32) -> F64:
        """Share of the visits that a URL has, as if a thousand more URLs were known that nobody visited yet."""
        visits = np.where(rows >= 0, self.counts.visits[np.maximum(rows, 0)], 0.0)
        everything = float(self.counts.visits.sum()) + self.counts.unit * (self.vocabulary.live + 1000)
        share: F64 = (visits + self.counts.unit) / everything
        return share

    # -- as an estimator ---------------------------------------------------------------------------------------------

    def learn_one(self, session: Sequence[str], clock_ms: int = 0) -> "URL2Vec":
        """Learn one session: URLs in the order of their visits."""
        return self.learn_many([session], clock_ms)

    def learn_many(self, sessions: Iterable[Sequence[str]], clock_ms: int = 0, batch: int = 1024) -> "URL2Vec":
        """Learn sessions in micro-batches of about `batch` visits. Immediate repeats of a URL count once."""
        urls: list[int] = []
        recent: list[tuple[int, ...]] = []
        names: dict[int, str] = {}
        for session in sessions:
            earlier: tuple[int, ...] = ()
            for url in session:
                url_id = url_identity(url)
                if earlier and earlier[0] == url_id:
                    continue
                names[url_id] = url
                urls.append(url_id)
                recent.append(earlier)
                earlier = (url_id, *earlier[: RECENT - 1])
            if len(urls) >= batch:
                self.learn(Steps.from_lists(urls, recent), names, clock_ms)
                urls, recent, names = [], [], {}
        if urls:
            self.learn(Steps.from_lists(urls, recent), names, clock_ms)
        return self

    def row(self, url: str) -> int:
        """The URL's row, -1 where it is unknown."""
        return int(self.vocabulary.find(np.array([url_identity(url)], np.uint64))[0])

    def compose(self, url: str, title: str = "") -> tuple[F32, list[str]]:
        """(dims,) where an unseen URL may stand, of length one, and the parts that say so; zeros where nothing is known."""
        ids, named = table([parts(url, title)]), named_parts(url, title)
        return self.composer.compose(ids)[0][0], [named[at] for at in self.composer.used(ids)[0]]

    def __contains__(self, url: str) -> bool:
        return self.row(url) >= 0

    def vector(self, url: str) -> F32:
        """(dims,) the URL's unit vector; an unseen one is composed from its parts. Raises KeyError where none is known."""
        row = self.row(url)
        unit: F32 = self.sphere.unit(np.array([row]))[0] if row >= 0 else self.compose(url)[0]
        if not unit.any():
            raise KeyError(url)
        return unit

    def most_similar(
        self, positive: str | Sequence[str], negative: Sequence[str] = (), k: int = 10
    ) -> list[tuple[str, float]]:
        """The k URLs nearest, by cosine, to the sum of some and the difference of others; these left out.

        As gensim's: `most_similar(["/hats/red", "/shoes"], ["/hats"])` asks what is to shoes as red hats are to hats.
        Raises KeyError where a URL is unknown.
        """
        positive = [positive] if isinstance(positive, str) else positive
        wanted = sum((self.vector(url) for url in positive), np.zeros(self._settings.dims, np.float32))
        wanted = wanted - sum((self.vector(url) for url in negative), np.zeros(self._settings.dims, np.float32))
        return self.nearest_to(wanted, k, but=[self.row(url) for url in (*positive, *negative)])

    def nearest_to(self, vector: F32, k: int, but: Sequence[int] = ()) -> list[tuple[str, float]]:
        """The k URLs nearest to a vector (dims,), best first, with their cosine; of those that were visited with others."""
        n, names = self.vocabulary.count, self.vocabulary.names
        known = (self.counts.mass[:n] > 0) | self.prior[:n]
        # Some rows may be nameless for a while: a few more are asked for than are shown.
        rows, cosine = nearest_rows(
            self.sphere.vectors[:n], known, vector[None], k + 16, np.array([list(but) or [-1]], np.int32)
        )
        found = [
            (names[r], c) for r, c in zip(rows[0].tolist(), cosine[0].tolist(), strict=True) if r >= 0 and names[r]
        ]
        return found[:k]

    # -- snapshots ---------------------------------------------------------------------------------------------------

    def state(self) -> State:
        """Arrays from which `load` makes an equal model; unused slots are left out."""
        n = self.vocabulary.count
        own: State = {"prior": self.prior[:n], "parts": self._parts[:n], "removed": np.array([self.removed], np.int64)}
        parts = {
            "vocabulary": self.vocabulary.state(), "sphere": self.sphere.state(n), "reach": self.reach.state(),
            "composer": self.composer.state(),
        }  # fmt: skip
        named = {f"{part}.{key}": value for part, state in parts.items() for key, value in state.items()}
        return own | self.counts.state(n) | named

    def load(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Take over a saved state, into a model that knows nothing yet. Raises ValueError or KeyError where it does not fit;
        then this model is unusable."""

        def under(part: str) -> State:
            return {k.removeprefix(part): v for k, v in state.items() if k.startswith(part)}

        self.vocabulary.load(under("vocabulary."))
        n = self.vocabulary.count
        self._reserve(n)
        self.counts.load(state, n)
        self.sphere.load(under("sphere."), n)
        self.reach.load(under("reach."))
        self.composer.load(under("composer."))
        self.prior[:n], self._parts[:n] = state["prior"], state["parts"]
        if n and not -1 <= int(self._parts[:n].min()) <= int(self._parts[:n].max()) < 1 << self._settings.part_bits:
            raise ValueError("a URL has a part that is not in the table of parts")
        self.removed = int(state["removed"][0])
