"""What one worker holds of one partition between two checkpoints, and how that becomes a checkpoint.

Everything here is either in the store, with the offsets that produced it, or a cache of it. A `PartitionState` is used by
one thread at a time: the pipeline hands it to the compute thread and takes it back. Visitors are read when first met and
kept in a bounded cache, and so are their pending visits; those that changed since the last checkpoint stay whatever the
bound, for the store does not have them yet.
"""

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import msgspec

from models.lesson import CorruptLesson, Lesson
from models.progressive import Progress
from models.ranking import Ranking
from streams.balance import Balance
from streams.lockstep import Lockstep
from streams.outcomes import Counts, OutcomeJoin, Settled
from streams.settings import Settings
from streams.store import Checkpoint, LogIdentity, Position
from streams.visitors import VisitorTable
from streams.watermark import Watermark


class Counters(msgspec.Struct):
    """What happened to the partition's records, each source record counted once, across restarts and workers."""

    visits_scored: int = 0
    visits_learned: int = 0
    visits_thinned: int = 0  # scored, and URL2vec was not given them: the machine was too slow
    rejected: int = 0
    duplicates: int = 0
    keyless: int = 0  # accepted without a key, because the value names the visitor
    examples_learned: int = 0  # settled pairs of visit and task

    def add(self, other: "Counters") -> None:
        """Take another partition's counts in."""
        for name in self.__struct_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


class Summary(msgspec.Struct):
    """The part of a partition's state that is small and always written whole."""

    counters: Counters = msgspec.field(default_factory=Counters)
    outcomes: Counts = msgspec.field(default_factory=Counts)
    watermark: bytes = b""
    progress: dict[str, bytes] = msgspec.field(default_factory=dict)  # task → models.progressive.Progress
    ranking: bytes = b""  # of the next URLs, models.ranking.Ranking
    balance: dict[str, Balance] = msgspec.field(default_factory=dict)  # task → what became of its questions
    model_step: int = 0
    urls: int = 0  # that the model knew
    insight: bytes = b""  # what the model said of itself, a models.insight.Insight

    @staticmethod
    def of(position: Position) -> "Summary":
        """What stands in a position; an empty one where the store knows nothing."""
        return msgspec.msgpack.decode(position.summary, type=Summary) if position.summary else Summary()


@dataclass(frozen=True)
class Offsets:
    """Next offsets to read."""

    visits: int
    outcomes: int


class PartitionState:
    """State of one partition in memory. Offsets are those whose effects are in it."""

    def __init__(
        self,
        number: int,
        settings: Settings,
        position: Position,
        log: LogIdentity,
        joins: Iterable[tuple[str, bytes]] = (),
    ) -> None:
        """`joins`: what is pending, where it is known at once; else `join.pending` is told as it comes from the store."""
        self.number = number
        self.position = replace(position, log=log)
        self.settings = settings
        summary = Summary.of(position)
        self.counters = summary.counters
        self.watermark = (
            Watermark.decode(summary.watermark, settings.allowed_lateness_ms)
            if summary.watermark
            else Watermark(settings.allowed_lateness_ms)
        )
        self.progress = {
            task.name: Progress.decode(summary.progress[task.name]) if task.name in summary.progress else Progress()
            for task in settings.tasks
        }
        self.ranking = Ranking.decode(summary.ranking) if summary.ranking else Ranking()
        self.balance = {task.name: summary.balance.get(task.name, Balance()) for task in settings.tasks}
        self.join = OutcomeJoin(settings.tasks, settings.session_gap_ms)
        self.join.counts = summary.outcomes
        for visitor_id, blob in joins:
            self.join.pending.load(visitor_id, blob)
        self.visits, self.outcomes = position.visits, position.outcomes
        self.ahead = Lockstep[Any]()  # outcomes that were read ahead of the visits: as if they had not been read
        self.enough_ahead = False  # so that no more are fetched
        self.visits_end = -inf  # as of when the visits were last confirmed read to their end, monotonic seconds
        self.settled: list[Settled] = []  # answered, not learned yet
        self.visitors = VisitorTable()
        self._lessons: list[bytes] = []
        self._moved = False
        self._settled_through_ms: int | None = None

    # -- visitors ----------------------------------------------------------------------------------------------------

    def unknown(self, visitor_ids: Iterable[str]) -> list[str]:
        """Those whose state must be read from the store before they can be scored."""
        return [name for name in dict.fromkeys(visitor_ids) if name not in self.visitors]

    def meet(self, asked: Sequence[str], found: Mapping[str, bytes]) -> list[str]:
        """Take in what the store knows of the visitors `asked` for; those it does not know are new.

        Returns a sentence for each whose state cannot be read: the visitor counts as new, the stream goes on.
        """
        said = self.visitors.load(asked, found)
        return [f"partition {self.number}: {sentence}; the visitor counts as new" for sentence in said]

    # -- what the steps report ---------------------------------------------------------------------------------------

    def taught(self, lesson: Lesson) -> None:
        """Keep a lesson that the model has learned, for the checkpoint."""
        self._lessons.append(lesson.encode())
        self._moved = True

    def taught_since(self) -> list[Lesson]:
        """The lessons since the last checkpoint, in their order."""
        return [Lesson.decode(blob) for blob in self._lessons]

    def read_through(self, offsets: Offsets) -> None:
        """All records before these offsets are in the state."""
        if (offsets.visits, offsets.outcomes) != (self.visits, self.outcomes):
            self.visits, self.outcomes = offsets.visits, offsets.outcomes
            self._moved = True

    def horizons_passed(self) -> bool:
        """Whether the watermark has moved since this was last asked, or has more to pass: then negative answers may have
        come."""
        through_ms = min(self.watermark.value_ms, self.join.pending.through_ms)
        moved = through_ms != self._settled_through_ms
        self._settled_through_ms = through_ms
        return moved

    @property
    def moved(self) -> bool:
        """Whether there is anything that the store does not have."""
        return self._moved

    # -- checkpoint --------------------------------------------------------------------------------------------------

    def checkpoint(self, model_step: int, urls: int, insight: bytes = b"") -> Checkpoint:
        """All that changed since the last one. `committed` must be called once the store has it."""
        summary = Summary(
            counters=self.counters,
            outcomes=self.join.counts,
            watermark=self.watermark.encode(),
            progress={name: progress.encode() for name, progress in self.progress.items()},
            ranking=self.ranking.encode(),
            balance=self.balance,
            model_step=model_step,
            urls=urls,
            insight=insight,
        )
        return Checkpoint(
            partition=self.number,
            expected=self.position.mark or None,
            position=replace(
                self.position,
                mark=secrets.token_hex(8),
                step=self.position.step + 1,
                visits=self.visits,
                outcomes=self.outcomes,
                summary=msgspec.msgpack.encode(summary),
            ),
            visitors=self.visitors.dirty(),
            joins=self.join.pending.take_changed(),
            due=self.join.pending.take_moved(),
            lesson=msgspec.msgpack.encode(self._lessons) if self._lessons else b"",
        )

    def committed(self, checkpoint: Checkpoint) -> None:
        """The store has it: forget what was dirty, and let go of visitors and their pending visits beyond the bounds."""
        taught = bool(checkpoint.lesson)
        self.position = replace(
            checkpoint.position,
            last_lesson=checkpoint.position.step if taught else checkpoint.position.last_lesson,
        )
        self._lessons.clear()
        self._moved = False
        self.visitors.stored(self.settings.visitor_cache)
        self.join.pending.evict(self.settings.pending_cache)


def lessons_of(blob: bytes) -> list[Lesson]:
    """The lessons of one checkpoint, in the order in which they were learned. Raises CorruptLesson."""
    try:
        parts = msgspec.msgpack.decode(blob, type=list[bytes])
    except msgspec.MsgspecError as error:
        raise CorruptLesson(f"a checkpoint's lessons do not decode: {error}") from error
    return [Lesson.decode(part) for part in parts]
