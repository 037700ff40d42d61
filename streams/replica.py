"""The model as the store has it: the newest snapshot that is whole, then every lesson after it.

Each worker holds a full replica. What a partition taught is in its stream of lessons, written in the same transaction as
the offset; so a replica that restores a snapshot and learns what came after it has taken in each record exactly once. The
same steps make a new worker, repair one whose lessons were refused, and let a command look at the live vectors. Between
checkpoints a worker also learns what other workers' partitions taught.

Vectors that somebody imported are one more stream of lessons, IMPORTS: after a snapshot they come first, so that what
the stream taught since moves them, not they it.

Each partition's lessons are learned in their own order, and those of several partitions by the event time of the visits in
them: the order in which the workers that taught them learned, near enough. Partition after partition would be another one,
and what learns from examples depends on it: the newest of one partition, then the oldest of the next, is a stream whose
clock jumps back (docs/replicas.md says what that costs).
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

from models.imported import CorruptImport, Imported
from models.learner import CorruptSnapshot, Learner
from models.lesson import CorruptLesson, Lesson
from streams.errors import ModelFailed
from streams.isolation import is_memory, reason
from streams.partition import lessons_of
from streams.store import IMPORTS, LessonEntry, Store

IMPORTS_A_TURN = 8  # entries of some thousand URLs: a large import must not hold up the visits that wait for a worker
AHEAD = 1_024  # decoded entries held at once, of all partitions; some tens of kB each under full load
AHEAD_LEAST, AHEAD_MOST = 16, 100  # of one partition: fewer would be a round trip for little, more a pause for visits
BESIDE = 2  # entries on each side with which the median is taken: so many clocks that are wrong in a row move nothing


class MissingLessons(Exception):  # noqa: N818 - a reason to rebuild, not a fault
    """The model is not the one of the store. Lessons that it lacks were trimmed, so that only a snapshot has them; or it
    holds one that the store lost with its last writes."""


class LessonFailed(MissingLessons):
    """The model failed in a lesson: it must be built again without it."""


@dataclass(frozen=True)
class Ahead:
    """An entry that was read and decoded and waits for its turn."""

    entry: LessonEntry
    lessons: list[Lesson]
    at_ms: int  # the event time it was learned at
    unusable: str = ""  # why it has no lessons


class Reading:
    """One partition's stream while it is merged with others: the entries read ahead, and where the next ones begin."""

    def __init__(self, partition: int, after: int, at_ms: int) -> None:
        self.partition = partition
        self.after = after  # the newest step that was read
        self.ended = False
        self.ahead: deque[Ahead] = deque()
        self._at_ms = at_ms
        self._taken: deque[float] = deque([-math.inf] * BESIDE, BESIDE)

    def put(self, entries: Sequence[LessonEntry], limit: int) -> None:
        """Take in what the store gave when it was asked for `limit` entries; decodes them, so not for the event loop."""
        self.ended = len(entries) < limit
        for entry in entries:
            lessons, unusable = list[Lesson](), ""
            try:
                lessons = lessons_of(entry.blob)
            except CorruptLesson as error:
                unusable = str(error)
            self._at_ms = taught_at_ms(lessons, self._at_ms)
            self.ahead.append(Ahead(entry, lessons, self._at_ms, unusable))
            self.after = entry.step

    def take(self) -> Ahead:
        """The next entry."""
        ahead = self.ahead.popleft()
        self._taken.append(ahead.at_ms)
        return ahead

    @property
    def wants_more(self) -> bool:
        """Whether to know when the next entry is due takes entries that were not read yet."""
        return not self.ended and len(self.ahead) <= BESIDE

    def due_ms(self) -> float:
        """When the next entry was learned: the median of its event time and those beside it; its own where times only grow.

        The median, for one visit whose clock is years ahead would otherwise hold its partition back until all others are
        done, and everything behind it would be learned out of time.
        """
        beside = [self.ahead[k].at_ms if k < len(self.ahead) else math.inf for k in range(1 + BESIDE)]
        return sorted([*self._taken, *beside])[BESIDE]


def taught_at_ms(lessons: Sequence[Lesson], before_ms: int) -> int:
    """The event time at which a checkpoint's lessons were learned, where those before it were at `before_ms`.

    The clock of its visits. Examples are of visits as old as the horizon of their task, so where there are no visits the
    time is that of the entry before; where nothing was before, that of the newest example is all there is.
    """
    clocks = [lesson.clock_ms for lesson in lessons if lesson.clock_ms]
    if clocks:
        return max(clocks)
    return before_ms or max((lesson.trained_through_ms for lesson in lessons), default=0)


@dataclass(frozen=True)
class Staleness:
    """How far a model was behind the streams of other workers when it last looked; it has learned that since."""

    event_ms: int = 0  # the most that the event time of a partition's lessons had moved on since the look before
    lessons: int = 0  # that were in the streams and not in the model
    at: float = field(default_factory=time.monotonic)  # when it looked


class Replica:
    """A learner, and how far it has learned each partition: `applied` maps a partition to its newest lesson's step."""

    def __init__(self, store: Store, learner: Learner, executor: Executor | None, say: Callable[[str], None]) -> None:
        self.learner = learner
        self.applied: dict[int, int] = {}
        self.taught_at_ms: dict[
            int, int
        ] = {}  # event time of the newest entry learned of a partition, since it is known
        self.snapshot_through: dict[int, int] = {}  # what the newest snapshot holds
        self.staleness = Staleness()
        self._store = store
        self._executor = executor
        self._say = say
        self._blank: bytes | None = None
        self._left_out: set[tuple[int, int]] = set()  # partition and step of lessons in which the model failed

    async def rebuild(self, partitions: Sequence[int]) -> None:
        """Start from the newest whole snapshot (or from nothing) and learn all that came after. Raises StoreError."""
        while True:
            try:
                return await self._rebuild(partitions)
            except LessonFailed:
                continue  # from the beginning, and without it: what it did to the model before it failed must go

    async def _rebuild(self, partitions: Sequence[int]) -> None:
        loop = asyncio.get_running_loop()
        if self._blank is None:
            self._blank = await loop.run_in_executor(self._executor, self.learner.snapshot)
        self.applied, self.taught_at_ms = {}, {}
        for number, (_, stamp, blob) in enumerate(await self._store.snapshots()):
            try:
                await loop.run_in_executor(self._executor, self.learner.restore, blob)
            except CorruptSnapshot as error:
                self._say(f"snapshot {number} of the model is unusable ({error}); the one before it is tried")
                continue
            kept = await self._kept_of(stamp, partitions)
            if kept is None:
                self._say(
                    f"snapshot {number} of the model holds lessons that the store lost; the one before it is tried"
                )
                continue
            self.applied, self.snapshot_through = kept, dict(kept)
            break
        else:
            self.snapshot_through = {}
            await loop.run_in_executor(self._executor, self.learner.restore, self._blank)
        newest = {partition: await self._store.last_lesson(partition) for partition in partitions}
        while await self._import_some(from_snapshot=True):
            pass
        await self._learn_after(partitions, from_snapshot=True)
        for partition, step in newest.items():
            if self.applied.get(partition, 0) < step:
                self._say(self._without(partition, step))
                self.applied[partition] = step
        self.staleness = Staleness()  # nothing was answered by the model before, as it is none that this one follows

    async def follow(self, partitions: Sequence[int]) -> None:
        """Learn what the partitions taught since, and some of what was imported. Raises MissingLessons, StoreError."""
        await self._import_some(from_snapshot=False)
        before, at = dict(self.taught_at_ms), time.monotonic()
        lessons = await self._learn_after(partitions, from_snapshot=False)
        for partition in partitions:
            newest = await self._store.last_lesson(partition)
            if self.applied.get(partition, 0) > newest:
                raise MissingLessons(self._lost(partition))
            if self.applied.get(partition, 0) < newest:  # it came in between, or nothing of it is left
                lessons += await self._learn_after([partition], from_snapshot=False)
            if self.applied.get(partition, 0) < newest:
                raise MissingLessons(f"{_name(partition)}: lessons up to step {newest} are gone")
        moved = [now_ms - before.get(p, now_ms) for p, now_ms in self.taught_at_ms.items()]
        self.staleness = Staleness(max([0, *moved]), lessons, at)

    def wrote(self, partition: int, step: int) -> None:
        """This worker has put a lesson into the stream that it learned itself: it is not to be learned again."""
        self.applied[partition] = step
        self.taught_at_ms.pop(partition, None)  # of a time when another worker owned it

    async def _learn_after(self, partitions: Sequence[int], from_snapshot: bool) -> int:
        """Learn the rest of these partitions' streams, merged by event time; at equal times the lowest partition first.

        So the same streams after the same snapshot give the same bits. Returns how many lessons there were.
        """
        loop, learned = asyncio.get_running_loop(), 0
        limit = min(AHEAD_MOST, max(AHEAD_LEAST, AHEAD // max(1, len(partitions))))
        readings = [Reading(p, self.applied.get(p, 0), self.taught_at_ms.get(p, 0)) for p in sorted(partitions)]
        while readings:
            for reading in readings:
                while reading.wants_more:
                    entries = await self._store.lessons(reading.partition, reading.after, limit)
                    if entries:
                        await loop.run_in_executor(self._executor, reading.put, entries, limit)
                    else:
                        reading.ended = True
            readings = [reading for reading in readings if reading.ahead]
            if readings:
                first = min(readings, key=lambda reading: (reading.due_ms(), reading.partition))
                ahead = first.take()
                await self._learn(first.partition, ahead, from_snapshot)
                learned += len(ahead.lessons)
        return learned

    async def _learn(self, partition: int, ahead: Ahead, from_snapshot: bool) -> None:
        entry = ahead.entry
        self._expect(partition, entry, from_snapshot)
        if ahead.unusable:
            self._say(
                f"partition {partition}: the lesson of step {entry.step} is unusable ({ahead.unusable}) and is left out"
            )
        if (partition, entry.step) not in self._left_out:
            try:
                await asyncio.get_running_loop().run_in_executor(self._executor, self._teach, ahead.lessons)
            except Exception as error:  # whatever a library raises; and of the model nobody knows how far it came
                if is_memory(error):
                    raise ModelFailed(f"there is no memory to learn what is in the store ({reason(error)})") from error
                self._left_out.add((partition, entry.step))
                what = f"{_name(partition)}: the lesson of step {entry.step} makes the model fail ({reason(error)})"
                self._say(f"{what}; it is left out and the model is built again without it")
                raise LessonFailed(what) from error
        self.applied[partition], self.taught_at_ms[partition] = entry.step, ahead.at_ms

    def _teach(self, lessons: Sequence[Lesson]) -> None:
        for lesson in lessons:
            self.learner.learn(lesson)

    async def _kept_of(self, stamp: Mapping[int, int], partitions: Sequence[int]) -> dict[int, int] | None:
        """From where to go on after a snapshot; None where it holds a lesson that the store lost.

        Each entry names the one before it, so a lesson that was learned is either passed over or named. Where the store
        knows nothing of a partition any more (it expired, or its node was emptied), what was learned of it stays, and
        its entries begin anew.
        """
        kept = dict(stamp)
        for partition in set(partitions) & stamp.keys():
            newest = await self._store.last_lesson(partition)
            if newest == 0:
                kept[partition] = 0
            elif newest < stamp[partition]:
                return None
            else:
                following = await self._store.lessons(partition, stamp[partition], 1)
                if any(0 < entry.after < stamp[partition] for entry in following):
                    return None
        return kept

    def _expect(self, partition: int, entry: LessonEntry, from_snapshot: bool) -> None:
        """Notice where this entry does not follow the one learned last: lessons are missing, or it is not the store's.

        Raises MissingLessons where a model that is built again may be right.
        """
        if entry.after < self.applied.get(partition, 0) and not from_snapshot and partition != IMPORTS:
            raise MissingLessons(self._lost(partition))
        if entry.after > self.applied.get(partition, 0):
            if not from_snapshot:
                raise MissingLessons(f"{_name(partition)}: lessons up to step {entry.after} are gone")
            self._say(self._without(partition, entry.after))

    @staticmethod
    def _lost(partition: int) -> str:
        return f"{_name(partition)}: the store lost lessons that this model has learned"

    def _without(self, partition: int, step: int) -> str:
        return (
            f"{_name(partition)}: lessons between steps {self.applied.get(partition, 0)} and {step} "
            "are in no snapshot and no stream any more; the model goes on without them"
        )

    async def _import_some(self, from_snapshot: bool) -> bool:
        """Take in the next imported vectors, at most so many entries. Returns whether there were any."""
        loop = asyncio.get_running_loop()
        entries = await self._store.lessons(IMPORTS, self.applied.get(IMPORTS, 0), IMPORTS_A_TURN)
        for entry in entries:
            self._expect(IMPORTS, entry, from_snapshot)
            await loop.run_in_executor(self._executor, self._import, entry)
            self.applied[IMPORTS] = entry.step
        return bool(entries)

    def _import(self, entry: LessonEntry) -> None:
        try:
            imported = Imported.decode(entry.blob)
            self.learner.warm_start(imported.urls, imported.vectors)
        except CorruptImport as error:
            self._say(f"imported vectors, entry {entry.step}: unusable ({error}) and left out")
        except ValueError as error:  # other dimensions: the settings were changed since
            self._say(f"imported vectors, entry {entry.step}: they do not fit this model ({error}) and are left out")

    async def write_snapshot(self) -> None:
        """Keep the model as it is now; call only when everything it learned is in the store. Raises StoreError."""
        stamp = dict(self.applied)
        blob = await asyncio.get_running_loop().run_in_executor(self._executor, self.learner.snapshot)
        await self._store.write_snapshot(blob, stamp)
        # The snapshot before this one stays as a fallback, so what it lacks must stay too.
        await self._store.trim_lessons({p: step for p, step in self.snapshot_through.items() if p in stamp})
        self.snapshot_through = stamp


def _name(partition: int) -> str:
    return "imported vectors" if partition == IMPORTS else f"partition {partition}"
