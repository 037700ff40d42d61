"""A log through the pipeline's own steps, in one process: the stream that all classifiers of a benchmark are given.

The steps are the worker's (`streams.scoring.Steps` over a `PartitionState`), in the worker's order: a micro-batch is scored,
then learned, then the watermark moves to its newest event, then answers are settled. So a label is known here when it
would be known there: with the outcome, or once the watermark has passed the deadline. What came of each visit is kept
(`Recording`), and whoever competes is shown the same events in the same order: rows to score, and examples to learn.

One partition and no store: visitors, questions and rows all stay in memory, about a kilobyte a visit. The feature rows are
those that our learner made when it scored: the live counts in them had learned nothing later, and nobody else's can
be fresher.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import xxhash
from faust.types import TP
from numpy.typing import NDArray

from models.learner import Learner, Scored
from models.lesson import UNKNOWN, WHOLE, Lesson
from models.settings import ModelSettings
from models.visits import POSITION, TIMESTAMP, VisitContext
from schemas.logs_lines import LogItem, LogRecord
from streams.decode import Decoded, RecordDecoder
from streams.outcomes import Task
from streams.partition import PartitionState
from streams.scoring import Answers, Steps
from streams.session_steps import DUPLICATE
from streams.settings import Settings
from streams.store import LogIdentity, Position
from streams.transport import RecordBatch
from streams.watermark import Input

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
Rows = NDArray[np.void]

SAMPLED_CONTEXTS = 16_384  # visits kept as they were read, to time the making of features on


@dataclass(frozen=True, slots=True)
class ToScore:
    """A micro-batch: visits [start, start + len(rows)) of the stream, with what our model answered."""

    start: int
    rows: Rows
    position: I32  # (n,) in the session, from 1
    timestamp_ms: I64  # (n,)
    probability: F32  # (n, T)
    baseline: F32  # (n, T)
    contexts: Sequence[VisitContext] = ()

    @property
    def stop(self) -> int:
        """The visit after the last."""
        return self.start + len(self.rows)


@dataclass(frozen=True, slots=True)
class ToLearn:
    """Examples that became known: which visits, for which task, and what is known of what came after. m examples."""

    visit: I64  # (m,) places in the stream
    task: I32
    label: F32
    weight: F32
    steps: I32  # later visits of the session; here and below -1 where it is not known
    wait_ms: I64
    action: I32
    clock_ms: int  # the newest event time that had been read


Event = ToScore | ToLearn


class NoVisits(ValueError):  # noqa: N818 - says what is the matter
    """There is nothing in a log to measure with."""


class _Watched(Learner):
    """A learner that remembers what it was taught until it is asked, and how long it took."""

    def __init__(self, settings: ModelSettings, tasks: Sequence[str]) -> None:
        super().__init__(settings, tasks)
        self.taught: list[Lesson] = []
        self.score_s = self.learn_s = 0.0  # CPU time of this thread

    def score(self, visits: Sequence[VisitContext]) -> Scored:
        began = time.thread_time()
        scored = super().score(visits)
        self.score_s += time.thread_time() - began
        return scored

    def learn(self, lesson: Lesson) -> None:
        if len(lesson.examples):
            self.taught.append(lesson)
        began = time.thread_time()
        super().learn(lesson)
        self.learn_s += time.thread_time() - began


class _Unkept(PartitionState):
    """A partition whose lessons nobody will ask for."""

    def taught(self, lesson: Lesson) -> None:
        """Nothing: there is no checkpoint."""


@dataclass(frozen=True, slots=True)
class _Record:
    """What the decoder wants of a record of Kafka."""

    topic: str
    offset: int
    key: bytes
    value: bytes
    timestamp: int
    partition: int = 0
    headers: tuple[()] = ()


@dataclass
class Stream:
    """A log on its way through the steps; iterate it once."""

    items: Iterable[LogItem]
    tasks: Sequence[Task]
    model: ModelSettings
    batch: int = 256  # records of the log in a micro-batch
    settings: Settings = field(init=False)
    learner: _Watched = field(init=False)
    skipped: int = 0  # lines that could not be read

    def __post_init__(self) -> None:
        # Nobody would bring back a visitor that was let go of: none is.
        self.settings = replace(Settings(kafka="", redis="", tasks=tuple(self.tasks)), visitor_cache=2**62)
        self.learner = _Watched(self.model, [task.name for task in self.tasks])
        self._state = _Unkept(0, self.settings, Position(), LogIdentity("a log", "visits", "outcomes"), [])
        self._steps = Steps(self.settings, self.learner)
        self._decoder = RecordDecoder(self.settings)
        self._now_ms = int(time.time() * 1000)
        self._outcome_names = frozenset[str]().union(*(task.outcomes for task in self.tasks))
        # Rows that were asked, by task: their places, the oldest first. Two rows with the same bytes are two visits
        # that were asked the same in all respects, and answered the same.
        self._asked: list[dict[int, list[int]]] = [{} for _ in self.tasks]

    @property
    def watermark_ms(self) -> int:
        """How far the stream has come."""
        return self._state.watermark.value_ms

    def is_open(self, task: int) -> bool:
        """Whether there are visits whose label for a task is not known yet."""
        return bool(self._asked[task])

    def __iter__(self) -> Iterator[Event]:
        source, offset, seen, newest_ms = iter(self.items), 0, 0, 0
        while items := list(islice(source, self.batch)):
            records = [item for item in items if isinstance(item, LogRecord)]
            self.skipped += len(items) - len(records)
            decoded = self._decoded(records, offset)
            offset += len(records)
            self._meet(decoded)
            answers = self._steps.score(decoded, {0: self._state})
            if answers.scored is not None:
                scored = self._scored(answers, answers.scored, seen)
                seen = scored.stop
                yield scored
            self._steps.learn(decoded, answers, {0: self._state})
            newest_ms = max([newest_ms, *(record.timestamp_ms for record in records)])
            both: tuple[Input, Input] = ("visits", "outcomes")
            for name in both:  # the log holds both in one order: what is not in it yet is in neither topic
                self._state.watermark.observe(name, min(newest_ms, self._now_ms), 0.0)
            self._steps.settle([self._state])
            for lesson in self.learner.taught:
                yield self._learned(lesson, newest_ms)
            self.learner.taught.clear()

    def _decoded(self, records: Sequence[LogRecord], offset: int) -> list[Decoded]:
        topics = {"visit": self.settings.topics.visits, "outcome": self.settings.topics.outcomes}
        out = []
        for kind, topic in topics.items():
            found: list[Any] = [
                _Record(
                    topic, offset + k, record.visitor_id.encode("utf-8", "surrogatepass"), record.value, self._now_ms
                )
                for k, record in enumerate(records)
                if record.kind == kind
            ]
            if found:
                out.append(self._decoder.decode(RecordBatch(TP(topic, 0), found, 1, 0), self._now_ms))
        return out

    def _meet(self, decoded: Sequence[Decoded]) -> None:
        for part in decoded:
            asked = self._state.unknown(part.visitor_ids())
            if asked:
                self._state.meet(asked, {})

    def _scored(self, answers: Answers, scored: Scored, start: int) -> ToScore:
        contexts = answers.contexts
        became = [bits for part in answers.parts for bits in part.sessions.became]
        for k, (event_name, bits) in enumerate(zip(contexts.event_name, became, strict=True)):
            if bits & DUPLICATE:
                continue
            key = xxhash.xxh3_128_intdigest(scored.features[k])
            for t, task in enumerate(self.tasks):
                if event_name not in task.outcomes:
                    self._asked[t].setdefault(key, []).append(start + k)
        return ToScore(
            start,
            np.frombuffer(b"".join(scored.features), self.learner.row_layout),
            contexts.facts[:, POSITION].astype(np.int32),
            contexts.facts[:, TIMESTAMP].copy(),
            scored.probability,
            scored.baseline,
            contexts,
        )

    def _learned(self, lesson: Lesson, newest_ms: int) -> ToLearn:
        examples = lesson.examples.astype(np.int64)
        task = np.array([self.learner.tasks.index(name) for name in lesson.tasks], np.int32)[examples[:, 0]]
        keys = [xxhash.xxh3_128_intdigest(row) for row in lesson.features]
        visit = [self._place(t, keys[f]) for t, f in zip(task.tolist(), examples[:, 1].tolist(), strict=True)]
        later = np.full((len(examples), 3), -1, np.int64)
        known = examples[:, 4:7]
        later[:, : known.shape[1]] = np.where(known == UNKNOWN, -1, known)
        return ToLearn(
            np.array(visit, np.int64),
            task,
            examples[:, 2].astype(np.float32),
            (examples[:, 3] / WHOLE).astype(np.float32),
            later[:, 0].astype(np.int32),
            later[:, 1],
            later[:, 2].astype(np.int32),
            newest_ms,
        )

    def _place(self, task: int, key: int) -> int:
        places = self._asked[task][key]
        place = places.pop(0)
        if not places:
            del self._asked[task][key]
        return place


@dataclass(frozen=True)
class Recording:
    """All that happened to a stream. n visits, T tasks."""

    tasks: tuple[str, ...]
    events: tuple[tuple[int, int] | ToLearn, ...]  # (start, stop) of visits to score, or examples to learn
    rows: Rows  # (n,)
    position: I32  # (n,)
    timestamp_ms: I64  # (n,)
    probability: F32  # (n, T)
    baseline: F32  # (n, T)
    label: F32  # (n, T): NaN where no question was asked, or it was still open when the log ended
    contexts: tuple[VisitContext, ...]  # of some of the last visits
    score_s: float  # CPU time of the whole learner
    learn_s: float

    @property
    def visits(self) -> int:
        """How many were scored."""
        return len(self.rows)

    @property
    def examples(self) -> int:
        """How many were learned."""
        return sum(len(event.visit) for event in self.events if isinstance(event, ToLearn))

    @staticmethod
    def of(stream: Stream) -> "Recording":
        """Play the stream to its end. Raises NoVisits where there is no visit in it."""
        events: list[tuple[int, int] | ToLearn] = []
        scored: list[ToScore] = []
        contexts: list[VisitContext] = []
        for event in stream:
            if isinstance(event, ToLearn):
                events.append(event)
                continue
            events.append((event.start, event.stop))
            contexts = [*contexts, *event.contexts][-SAMPLED_CONTEXTS:] if event.contexts else contexts
            scored.append(replace(event, contexts=()))
        if not scored:
            raise NoVisits("there is no visit in this log")
        timestamp_ms = np.concatenate([part.timestamp_ms for part in scored])
        label = np.full((len(timestamp_ms), len(stream.tasks)), np.nan, np.float32)
        for known in events:
            if isinstance(known, ToLearn):
                label[known.visit, known.task] = known.label
        for t, task in enumerate(stream.tasks):
            if stream.is_open(t):
                # Of visits that were not waited for to the end only those would be known that had their outcome soon.
                horizon_ms = task.horizon_ms if task.outcomes else stream.settings.session_gap_ms
                label[timestamp_ms + horizon_ms >= stream.watermark_ms, t] = np.nan
        return Recording(
            tuple(task.name for task in stream.tasks),
            tuple(events),
            np.concatenate([part.rows for part in scored]),
            np.concatenate([part.position for part in scored]),
            timestamp_ms,
            np.concatenate([part.probability for part in scored]),
            np.concatenate([part.baseline for part in scored]),
            label,
            tuple(contexts),
            stream.learner.score_s,
            stream.learner.learn_s,
        )
