"""A lesson: what one partition teaches in one learning step, and the delta that is stored and that replicas apply.

It holds the visits as numbers (for URL2vec), names of URLs that a replica may not know yet, and labelled examples (for
the classifiers). Encoding is raw arrays inside msgpack, compressed, behind a checksum: `decode` gives back an equal
lesson, or raises.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from models.envelope import seal, unseal
from models.visits import RECENT, TIMESTAMP, VisitBatch, VisitContext

_LETTERS = b"U2L4"
WHOLE = 65_536  # a weight of 1: an integer on the wire, so that a lesson is the same bits wherever it is learned
UNKNOWN = 0xFFFFFFFF  # what -1 is on the wire
_COLUMNS = 7
_TITLE = 256  # characters of a title that are of use
_PAD: tuple[tuple[int, ...], ...] = tuple((0,) * k for k in range(RECENT + 1))


class CorruptLesson(ValueError):  # noqa: N818 - says what is wrong, as the other corrupt things do
    """The bytes are not a whole lesson; the message says what is wrong with them."""


@dataclass(frozen=True, slots=True)
class Example:
    """A visit whose question was answered: the features are those remembered from when it was scored."""

    task: str
    features: bytes
    label: bool
    weight: float = 1.0  # in (0, 1]: less where answers of this kind come sooner than the others
    # What came after the visit, read by the time its question was answered; -1 where it is not known.
    steps: int = -1  # later visits of the session
    wait_ms: int = -1  # event time to the next of them
    action: int = -1  # which kind of event that was, a bucket from 1; 0 where none followed


@dataclass(frozen=True, slots=True)
class Examples:
    """m examples as a lesson holds them, for who has columns."""

    tasks: list[str]
    features: list[bytes]  # rows of visits; a visit of which several questions were answered is there once
    table: NDArray[np.uint32]  # (m, 7), as `Lesson.examples`

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, some: slice) -> Examples:
        """Some of them, with their rows alone."""
        table = self.table[some].copy()
        rows, table[:, 1] = np.unique(table[:, 1], return_inverse=True)
        return Examples(self.tasks, [self.features[row] for row in rows.tolist()], table)

    @staticmethod
    def of(examples: Sequence[Example]) -> Examples:
        """The same from examples one by one."""
        tasks: dict[str, int] = {}
        rows: dict[bytes, int] = {}
        task = [tasks.setdefault(e.task, len(tasks)) for e in examples]
        row = [rows.setdefault(e.features, len(rows)) for e in examples]
        label, weight = [e.label for e in examples], [e.weight for e in examples]
        later = [(e.steps, e.wait_ms, e.action) for e in examples]
        return Examples.from_columns(list(tasks), list(rows), task, row, label, weight, later)

    @staticmethod
    def from_columns(
        tasks: list[str],
        features: list[bytes],
        task: ArrayLike,
        row: ArrayLike,
        label: ArrayLike,
        weight: ArrayLike,
        later: ArrayLike,
    ) -> Examples:
        """task, row (m,): indices into tasks and features; label, weight (m,); later (m, 3): steps, wait_ms, action. All in the
        meaning of `Example`."""
        table = np.empty((len(np.asarray(task)), _COLUMNS), np.uint32)
        table[:, 0], table[:, 1], table[:, 2] = task, row, label
        table[:, 3] = np.rint(np.asarray(weight, np.float64) * WHOLE)
        after = np.asarray(later, np.int64).reshape(-1, 3)
        table[:, 4:] = np.where(after < 0, UNKNOWN, np.minimum(after, UNKNOWN - 1))
        return Examples(tasks, features, table)


@dataclass(slots=True)
class Steps:
    """Visits as URL2vec reads them. n visits; 0 stands for no URL."""

    url: NDArray[np.uint64]  # (n,)
    recent: NDArray[np.uint64]  # (n, RECENT), newest first
    repeat: NDArray[np.bool_]  # (n,)

    @staticmethod
    def of(visits: Sequence[VisitContext]) -> Steps:
        """Columns of the visits; anything beyond RECENT earlier visits is ignored."""
        batch = VisitBatch.of(visits)
        # Copies: a lesson is kept for longer than the batch's columns, and may have been cut out of them.
        return Steps(batch.url_id.copy(), batch.recent.copy(), batch.repeat | ~batch.teaches)

    @staticmethod
    def from_lists(urls: Sequence[int], recent: Sequence[Sequence[int]], repeat: Sequence[bool] = ()) -> Steps:
        """The same from ids; without `repeat` no visit is one."""
        padded: list[int] = []
        for earlier in recent:
            kept = earlier[:RECENT]
            padded += kept
            padded += _PAD[RECENT - len(kept)]
        return Steps(
            np.array(urls, np.uint64),
            np.array(padded, np.uint64).reshape(len(urls), RECENT),
            np.array(repeat or [False] * len(urls), np.bool_),
        )


class _Wire(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    ids: bytes  # u64, the distinct URLs
    index: bytes  # u32 (n, 1 + RECENT) into ids
    repeat: bytes  # u8 (n,)
    names: dict[int, bytes]
    titles: dict[int, bytes]
    tasks: list[str]
    features: list[bytes]
    examples: bytes  # u32 (m, 7): task, features, label, weight, steps, wait, action
    trained_through_ms: int
    clock_ms: int


@dataclass(slots=True)
class Lesson:
    """What ONE partition teaches in one step. `names` shrinks, when its sender learns it, to those that were news.

    So encode it after learning it: what is stored is then small, and enough for those who apply every lesson.
    """

    steps: Steps
    names: dict[int, str]  # url_id → url
    tasks: list[str]
    features: list[bytes]  # distinct rows
    # (m, 7): index into tasks, index into features, label 0 or 1, weight * WHOLE, and steps, wait_ms, action or UNKNOWN
    examples: NDArray[np.uint32]
    trained_through_ms: int
    titles: dict[int, str] = field(default_factory=dict)  # url_id → title of a visit, of URLs in `names`
    clock_ms: int = 0  # the median event time of the visits, by which older ones are forgotten; 0 where there are none

    @staticmethod
    def of(
        visits: Sequence[VisitContext],
        examples: Sequence[Example] | Examples,
        trained_through_ms: int,
        now_ms: int | None = None,
    ) -> Lesson:
        """A lesson of one partition's visits and of the examples that became known with them; either may be empty.

        `now_ms`, where given, is what no visit's clock is believed to be beyond.
        """
        visits = VisitBatch.of(visits)
        ids = visits.url_id.tolist()
        taught = examples if isinstance(examples, Examples) else Examples.of(examples)
        titles = zip(ids, visits.title, strict=True) if any(visits.title) else ()
        return Lesson(
            Steps.of(visits),
            dict(zip(ids, visits.url, strict=True)),
            taught.tasks,
            taught.features,
            taught.table,
            trained_through_ms,
            {url_id: title[:_TITLE] for url_id, title in titles if title},
            _median(visits.facts[:, TIMESTAMP], now_ms),
        )

    def encode(self) -> bytes:
        """Bytes for the store and for replicas; small once `learn` has dropped the names everybody knows."""
        every = np.concatenate([self.steps.url[:, None], self.steps.recent], axis=1)
        ids, index = np.unique(every, return_inverse=True)
        wire = _Wire(
            ids.tobytes(),
            index.astype(np.uint32).tobytes(),
            self.steps.repeat.tobytes(),
            {k: _bytes(url) for k, url in self.names.items()},
            {k: _bytes(title) for k, title in self.titles.items() if k in self.names},
            self.tasks,
            self.features,
            self.examples.tobytes(),
            self.trained_through_ms,
            self.clock_ms,
        )
        return seal(_LETTERS, wire)

    @staticmethod
    def decode(blob: bytes) -> Lesson:
        """The lesson that was encoded. Raises CorruptLesson on torn or foreign bytes."""
        try:
            wire = unseal(_LETTERS, blob, _Wire)
            repeat = np.frombuffer(wire.repeat, np.uint8).astype(np.bool_)
            index = np.frombuffer(wire.index, np.uint32).reshape(len(repeat), 1 + RECENT)
            every = np.frombuffer(wire.ids, np.uint64)[index]
            examples = np.frombuffer(wire.examples, np.uint32).reshape(-1, _COLUMNS).copy()
            names = {k: _text(url) for k, url in wire.names.items()}
            titles = {k: _text(title) for k, title in wire.titles.items()}
        except (ValueError, IndexError) as error:
            raise CorruptLesson(f"this lesson cannot be read: {error}") from error
        if len(examples) and (
            examples[:, 0].max() >= len(wire.tasks)
            or examples[:, 1].max() >= len(wire.features)
            or examples[:, 2].max() > 1
            or examples[:, 3].max() > WHOLE
        ):
            raise CorruptLesson("an example of this lesson points to a task or a row that is not in it")
        steps = Steps(every[:, 0].copy(), every[:, 1:].copy(), repeat)
        return Lesson(steps, names, wire.tasks, wire.features, examples, wire.trained_through_ms, titles, wire.clock_ms)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _text(blob: bytes) -> str:
    return blob.decode("utf-8", "surrogatepass")


def _median(times_ms: NDArray[np.int64], now_ms: int | None) -> int:
    """Of any length, 0 for none: half of the visits may have a wrong clock before it has."""
    if not len(times_ms):
        return 0
    median = int(np.partition(times_ms, len(times_ms) // 2)[len(times_ms) // 2])
    return max(0, median if now_ms is None else min(median, now_ms))
