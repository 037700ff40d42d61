"""The one object the pipeline knows: scores visits, then learns from them and from the outcomes that became known.

Promises: `score` changes nothing; `learn` depends on the model's state and the lesson alone, so that a restored
snapshot and the lessons after it give the same bits; neither raises on any visit that could be decoded. Not
thread-safe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

import numpy as np
import torch
from numpy.typing import NDArray

from models.classifier import Classifier
from models.counts import F32, F64, I32, Mask
from models.drift import BOOST, Drift
from models.features import EXPERTS, Features, layout_mark, parse
from models.insight import Drifts, Insight, Racing
from models.lesson import UNKNOWN, WHOLE, CorruptLesson, Example, Examples, Lesson, Steps
from models.memory_kernels import ENOUGH
from models.next_url import NextUrls
from models.novelty import UNKNOWN as UNKNOWN_URL
from models.novelty import Novelty, Surprise
from models.progressive import log_loss
from models.scored import Met, Scored
from models.settings import ModelSettings
from models.snapshot import CorruptSnapshot, pack, unpack
from models.sparse import under
from models.url2vec import URL2Vec
from models.visits import VisitBatch, VisitContext, url_identity

__all__ = ["CorruptLesson", "CorruptSnapshot", "Example", "Examples", "Learner", "Lesson", "Scored"]

WARM_VISITS = 4 * ENOUGH  # enough sessions of each answer for the memory to vote
_BLEND, _BASELINE = EXPERTS.index("blend"), EXPERTS.index("baseline")


class Learner:
    """URL2vec, the classifier and the baseline, of one fixed list of tasks."""

    def __init__(self, settings: ModelSettings, tasks: Sequence[str]) -> None:
        torch.set_num_threads(settings.threads)
        self.settings, self.tasks = settings, tuple(tasks)
        self._index = {task: t for t, task in enumerate(self.tasks)}
        self.step = 0  # learning steps taken
        self.trained_through_ms = 0  # event time of the newest thing it learned from
        self.foreign_examples = 0  # not learned from: of a task or a row layout that is not known here
        self._features = Features(settings, len(self.tasks))
        self._urls, self._next, self._novelty, self._classifier, self._drift = self._untaught()
        self._met: Met | None = None  # what was scored last, as long as nothing was learned from visits since

    def _untaught(self) -> tuple[URL2Vec, NextUrls, Novelty, Classifier, Drift]:
        s, tasks = self.settings, len(self.tasks)
        return URL2Vec(s), NextUrls(s.dims), Novelty(), Classifier(s, tasks), Drift(tasks)

    @property
    def features(self) -> Features:
        """Makes the rows."""
        return self._features

    @property
    def classifier(self) -> Classifier:
        """Answers the questions."""
        return self._classifier

    @property
    def row_layout(self) -> np.dtype[np.void]:
        """How the bytes of a feature row are to be read."""
        return self._features.layout

    @property
    def examples(self) -> int:
        """Examples learned from."""
        return self._classifier.examples

    @property
    def skipped_steps(self) -> int:
        """Network steps refused because their loss was not finite."""
        return self._classifier.skipped_steps

    @property
    def refused_urls(self) -> int:
        """Visits of URLs for which the vocabulary had no room."""
        return self._urls.vocabulary.refused

    @property
    def urls(self) -> int:
        """URLs in the vocabulary."""
        return self._urls.vocabulary.live

    def score(self, visits: Sequence[VisitContext]) -> Scored:
        """Answer for visits of any partitions; all from the model as it is now."""
        batch, urls = VisitBatch.of(visits), self._urls
        steps = Steps.of(batch)
        found, recent = urls.vocabulary.find(steps.url), urls.vocabulary.find(steps.recent)
        rows = self._features.rows(batch, steps, urls, (found, recent))
        probability, baseline = self._classifier.score(rows)
        stepped = (steps.recent[:, 0] != 0) & ~steps.repeat
        next_rows, next_share, ranks, foreseen = self._next.foresee(found, recent, stepped, urls)
        unknown = np.flatnonzero(found < 0).tolist()
        names = dict(zip(steps.url[unknown].tolist(), [batch.url[k] for k in unknown], strict=True))
        surprise = self._novelty.surprise(steps, found, recent, foreseen, urls, names)
        self._met = Met(steps, found, recent, surprise)
        return Scored(
            rows.view(np.dtype((np.void, rows.dtype.itemsize))).tolist(),
            probability,
            baseline,
            next_rows,
            next_share,
            urls.vocabulary.names,
            self._novelty.calibrated(surprise.bits),
            (found < 0) & (batch.teaches | batch.repeat),
            ranks,
        )

    def learn(self, lesson: Lesson) -> None:
        """Take one step. Drops from `lesson.names` what was known here already: what is left is what replicas need."""
        if len(lesson.steps.url):
            self._learn_visits(lesson)
        if len(lesson.examples):
            self._learn_examples(lesson)
        self.step += 1
        self.trained_through_ms = max(self.trained_through_ms, lesson.trained_through_ms)

    def _learn_visits(self, lesson: Lesson) -> None:
        urls, steps = self._urls, lesson.steps
        taken = self._novelty.sample(steps)
        found, recent, surprise = self._look_at(lesson, taken)
        self._next.learn(found, recent, steps.repeat, urls)
        lesson.names = urls.learn(steps, lesson.names, lesson.clock_ms, lesson.titles)
        self._next.notice(urls.vocabulary.find(steps.url), urls)
        self._novelty.learn(steps, surprise, taken, lesson.names)

    def _look_at(self, lesson: Lesson, taken: Mask) -> tuple[I32, I32, Surprise]:
        """Rows of the visits and of those before them, and how much the visits `taken` surprise."""
        urls, steps = self._urls, lesson.steps
        # The model is about to change, and what was found when it scored will be true no longer.
        met, self._met = self._met, None
        if met is not None and (again := met.of(steps)) is not None:
            unknown = steps.url[again.surprise.kind == UNKNOWN_URL].tolist()
            if lesson.names.keys() >= set(unknown):  # else what they are called was known then, and is not now
                return again.found, again.recent, again.surprise
        found, recent = urls.vocabulary.find(steps.url), urls.vocabulary.find(steps.recent)
        _, foreseen = self._next.rank(found, recent, (steps.recent[:, 0] != 0) & ~steps.repeat & taken, urls)
        return found, recent, self._novelty.surprise(steps, found, recent, foreseen, urls, lesson.names)

    def warm_start(self, urls: Sequence[str], vectors: F32) -> int:
        """Take over vectors (n, dims) from elsewhere, as `URL2Vec.warm_start`; returns how many. Raises ValueError."""
        self.step += 1
        self._met = None
        return self._urls.warm_start(urls, vectors)

    def _learn_examples(self, lesson: Lesson) -> None:
        parsed, fits = parse(lesson.features, len(self.tasks))
        task = np.array([self._index.get(name, -1) for name in lesson.tasks], np.int32)[lesson.examples[:, 0]]
        known = (task >= 0) & fits[lesson.examples[:, 1]]
        self.foreign_examples += int((~known).sum())
        place = np.cumsum(fits) - 1  # of a blob among those parsed
        rows = parsed[place[lesson.examples[known, 1]]]
        fates = np.where(lesson.examples == UNKNOWN, -1.0, lesson.examples.astype(np.float64))[known, 1:]
        fates[:, 0], fates[:, 2] = task[known], fates[:, 2] / WHOLE
        self._classifier.learn(rows, fates, self._heed(rows, fates))

    def _heed(self, rows: NDArray[np.void], fates: F64) -> float:
        """Watch the losses of what was answered; where ours has risen, believe less of what was, and learn faster."""
        task = fates[:, 0].astype(np.int32)
        said = rows["experts"][np.arange(len(rows)), task].astype(np.float64)
        losses = [log_loss(said[:, who], fates[:, 1]) for who in (_BLEND, _BASELINE)]
        for t in np.flatnonzero(self._drift.learn(task, *losses)).tolist():
            self._classifier.shake(t, BOOST)
        return max((self._drift.boost(t) for t in range(len(self.tasks))), default=1.0)

    def insight(self) -> Insight:
        """What it can say of itself beyond its scores."""
        classifier, course = self._classifier, self._classifier.race.course
        return Insight(
            drift={
                task: Drifts(*self._drift.counted(t), self._drift.since(t), round(self._drift.boost(t), 3))
                for t, task in enumerate(self.tasks)
            },
            experts={task: classifier.blend.weights(t) for t, task in enumerate(self.tasks)},
            racing={"": Racing(course["learning_rate"], int(course["replay"]), course["auxiliary"])},
            memory=int(classifier.memory.remembered.sum()),
        )

    def snapshot(self) -> bytes:
        """The whole model as bytes, for `restore`."""
        counters = {"step": self.step, "through": self.trained_through_ms, "foreign": self.foreign_examples}
        return pack(self._arrays(), self._identity() | counters)

    def _arrays(self) -> dict[str, NDArray[np.generic]]:
        parts = {
            "urls": self._urls.state(), "next": self._next.state(), "classifier": self._classifier.state(),
            "novelty": self._novelty.state(), "drift": self._drift.state(),
        }  # fmt: skip
        return {f"{part}.{name}": array for part, state in parts.items() for name, array in state.items()}

    def damage(self) -> str:
        """Which of its numbers are none; empty where all are sound."""
        return _damage(self._arrays())

    def _identity(self) -> dict[str, object]:
        """What two models must share to exchange snapshots."""
        facts = asdict(self.settings)
        names = (
            "dims",
            "slots",
            "successor_slots",
            "window",
            "part_bits",
            "table_bits",
            "embedding_bits",
            "embedding",
            "page_embedding",
            "hidden",
            "sub_net",
            "sub_nets",
            "sequence",
            "optimiser",
        )
        return {name: facts[name] for name in names} | {
            "tasks": list(self.tasks),
            "layout": layout_mark(len(self.tasks)),
        }

    def restore(self, blob: bytes) -> None:
        """Become the model of a snapshot. Raises CorruptSnapshot, and stays as it was, when that cannot be."""
        arrays, about = unpack(blob)
        for name, mine in self._identity().items():
            if about.get(name) != mine:
                raise CorruptSnapshot(f"this snapshot has {name} = {about.get(name)!r}, this model {mine!r}")
        if damage := _damage(arrays):
            raise CorruptSnapshot(f"in this snapshot {damage}")
        urls, following, novelty, classifier, drift = self._untaught()
        try:
            urls.load(under("urls.", arrays))
            following.load(under("next.", arrays), urls.vocabulary.count)
            novelty.load(under("novelty.", arrays))
            classifier.load(under("classifier.", arrays))
            drift.load(under("drift.", arrays))
            step, through, foreign = int(about["step"]), int(about["through"]), int(about["foreign"])
        except (ValueError, KeyError, IndexError, RuntimeError, TypeError) as error:
            raise CorruptSnapshot(f"this snapshot does not fit this model: {error}") from error
        self._urls, self._next, self._novelty, self._met = urls, following, novelty, None
        self._classifier, self._drift = classifier, drift
        self.step, self.trained_through_ms, self.foreign_examples = step, through, foreign

    def knows(self, url: str) -> bool:
        """Whether the vocabulary has this URL."""
        return url in self._urls

    def nearest(self, url: str, k: int) -> list[tuple[str, float]]:
        """The k most similar URLs with their cosine, best first; empty for an unknown URL."""
        return self._urls.most_similar(url, k=k) if url in self._urls else []

    def composed(self, url: str) -> list[str]:
        """From which known parts the vector of an unseen URL is composed, the most trusted first; [] where none is known."""
        return self._urls.compose(url)[1]

    def most_similar(self, positive: Sequence[str], negative: Sequence[str], k: int) -> list[tuple[str, float]]:
        """As `URL2Vec.most_similar`: unseen URLs are composed. Raises KeyError where nothing is known of one."""
        return self._urls.most_similar(positive, negative, k)

    def vectors(self) -> tuple[list[str], F32]:
        """URLs with a name, and their vectors (urls, dims) of length one, in the same order."""
        names = self._urls.vocabulary.names
        named = [r for r in range(self._urls.vocabulary.count) if names[r]]
        return [names[r] for r in named], self._urls.sphere.unit(np.array(named, np.int32))

    def warm_up(self) -> None:
        """Compile every kernel and take a torch step on throwaway state, so that the first visit is not slow."""
        other = Learner(replace(self.settings, capacity=64, table_bits=8, embedding_bits=8), self.tasks or ("warm",))
        visits = [_visit(k) for k in range(WARM_VISITS)]
        for _ in range(2):
            scored = other.score(visits)
            examples = [Example(task, row, k % 2 == 0) for k, row in enumerate(scored.features) for task in other.tasks]
            other.learn(Lesson.decode(Lesson.of(visits, examples, 1).encode()))
        other.score(visits[:1])
        other.restore(other.snapshot())
        other.nearest(visits[0].url, 1)


def _damage(arrays: Mapping[str, NDArray[np.generic]]) -> str:
    """A sentence about the first array with a NaN or +inf in it. -inf is the logarithm of a mass that is not there yet."""
    for name, array in arrays.items():
        if array.dtype.kind == "f" and array.size and not float(np.max(array)) < np.inf:  # NaN is less than nothing
            numbers = array.astype(np.float64)
            wrong = int((np.isnan(numbers) | np.isposinf(numbers)).sum())
            return f"{wrong:,} of {array.size:,} numbers in {name} are not finite"
    return ""


def _visit(k: int) -> VisitContext:
    urls = [f"https://warm.example/{n}" for n in range(4)]
    ids, session, k = [url_identity(url) for url in urls], k + 1, k % 4
    return VisitContext(
        url=urls[k], url_id=ids[k], session=session, recent=tuple(ids[:k][::-1]), entry=ids[0], position=k + 1, timestamp_ms=k,
        since_previous_ms=k - 1, since_start_ms=k, visits_before=k, sessions_before=0, event_name="page_view",
        referrer=None, user_agent=None, title=None, properties={"to": urls[0], "n": k}, repeat=False,
    )  # fmt: skip
