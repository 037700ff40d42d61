"""The model as the store has it: the newest snapshot that is whole, then every lesson after it.

Each worker holds a full replica. What a partition taught is in its stream of lessons, written in the same transaction as
the offset; so a replica that restores a snapshot and learns what came after it has taken in each record exactly once. The
same steps make a new worker, repair one whose lessons were refused, and let a command look at the live vectors. Between
checkpoints a worker also learns what other workers' partitions taught.

Vectors that somebody imported are one more stream of lessons, IMPORTS: after a snapshot they come first, so that what
the stream taught since moves them, not they it.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor

from models.imported import CorruptImport, Imported
from models.learner import CorruptSnapshot, Learner
from models.lesson import CorruptLesson
from streams.partition import lessons_of
from streams.store import IMPORTS, LessonEntry, Store

IMPORTS_A_TURN = 8  # entries of some thousand URLs: a large import must not hold up the visits that wait for a worker


class MissingLessons(Exception):  # noqa: N818 - a reason to rebuild, not a fault
    """Lessons between what the replica holds and what the stream still has were trimmed: only a snapshot has them."""


class Replica:
    """A learner, and how far it has learned each partition: `applied` maps a partition to its newest lesson's step."""

    def __init__(self, store: Store, learner: Learner, executor: Executor | None, say: Callable[[str], None]) -> None:
        self.learner = learner
        self.applied: dict[int, int] = {}
        self.snapshot_through: dict[int, int] = {}  # what the newest snapshot holds
        self._store = store
        self._executor = executor
        self._say = say
        self._blank: bytes | None = None

    async def rebuild(self, partitions: Sequence[int]) -> None:
        """Start from the newest whole snapshot (or from nothing) and learn all that came after. Raises StoreError."""
        loop = asyncio.get_running_loop()
        if self._blank is None:
            self._blank = await loop.run_in_executor(self._executor, self.learner.snapshot)
        self.applied = {}
        for number, (_, stamp, blob) in enumerate(await self._store.snapshots()):
            try:
                await loop.run_in_executor(self._executor, self.learner.restore, blob)
            except CorruptSnapshot as error:
                self._say(f"snapshot {number} of the model is unusable ({error}); the one before it is tried")
                continue
            self.applied, self.snapshot_through = dict(stamp), dict(stamp)
            break
        else:
            await loop.run_in_executor(self._executor, self.learner.restore, self._blank)
        await self._learn_after([IMPORTS, *partitions], from_snapshot=True)

    async def follow(self, partitions: Sequence[int]) -> None:
        """Learn what the partitions taught since, and some of what was imported. Raises MissingLessons, StoreError."""
        await self._learn_some(IMPORTS, IMPORTS_A_TURN, from_snapshot=False)
        await self._learn_after(partitions, from_snapshot=False)

    async def _learn_after(self, partitions: Iterable[int], from_snapshot: bool) -> None:
        for partition in partitions:
            most = IMPORTS_A_TURN if partition == IMPORTS else 100
            while await self._learn_some(partition, most, from_snapshot):
                pass

    async def _learn_some(self, partition: int, most: int, from_snapshot: bool) -> bool:
        """Learn the next entries of a stream, at most so many. Returns whether there were any."""
        loop = asyncio.get_running_loop()
        entries = await self._store.lessons(partition, self.applied.get(partition, 0), most)
        for entry in entries:
            if entry.after > self.applied.get(partition, 0):
                if not from_snapshot:
                    raise MissingLessons(f"{_name(partition)}: lessons up to step {entry.after} are gone")
                self._say(
                    f"{_name(partition)}: lessons between steps {self.applied.get(partition, 0)} and {entry.after} "
                    "are in no snapshot and no stream any more; the model goes on without them"
                )
            learn = self._import if partition == IMPORTS else self._learn
            await loop.run_in_executor(self._executor, learn, partition, entry)
            self.applied[partition] = entry.step
        return bool(entries)

    def _learn(self, partition: int, entry: LessonEntry) -> None:
        try:
            for lesson in lessons_of(entry.blob):
                self.learner.learn(lesson)
        except CorruptLesson as error:
            self._say(f"partition {partition}: the lesson of step {entry.step} is unusable ({error}) and is left out")

    def _import(self, _: int, entry: LessonEntry) -> None:
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
