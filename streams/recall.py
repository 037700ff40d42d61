"""What comes back from the store into memory, and when: visitors when they are met, pending visits also when they are due.

A partition's ledgers (what is pending of a visitor, `streams.pending`) are in the store, with an index of when each is
due, written in the same transaction. Memory holds those that changed since the last checkpoint and as many others as
`pending_cache` allows. Hence

* taking up a partition reads one page of the index, however much is pending;
* a jump of the watermark, as after a night without a worker, is settled page by page;
* an index that is missing, or was left behind by a version that wrote ledgers alone, is made anew, once, before anything
  relies on it.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from streams.decode import Decoded
from streams.due import DueIndex
from streams.errors import StaleOffset, StoreError
from streams.outcomes import OutcomeJoin
from streams.partition import PartitionState
from streams.patience import until_it_answers
from streams.pending import FOREVER_MS, NEVER_MS
from streams.settings import Settings
from streams.store import LogIdentity, Position, Store

# Visitors a page: some milliseconds to read and to settle, which a micro-batch can wait for, and megabytes at most.
PAGE = 2_000


@dataclass(frozen=True)
class _Page:
    """Part of the index, in order: all who are due from where it was asked for to `through_ms`."""

    entries: list[tuple[str, int]]  # visitor, due_ms
    through_ms: int


class Recall:
    """Brings back from the store what a step needs and memory does not hold."""

    def __init__(
        self, settings: Settings, store: Store, say: Callable[[str], None], must_give_up: Callable[[], bool]
    ) -> None:
        self._settings = settings
        self._store = store
        self._index = DueIndex(store)
        self._say = say
        self._must_give_up = must_give_up
        self._page = max(1, min(PAGE, settings.pending_cache // 2))  # what is read ahead is not to crowd itself out

    async def take_up(self, number: int, position: Position, log: LogIdentity) -> PartitionState:
        """The state of a partition at a position, as the store has it. Raises StoreError, also where somebody moves the
        partition meanwhile: then the position has to be read again."""
        epoch, mark = position.epoch, position.mark
        try:
            if not await self._index.is_complete(number, epoch):
                await self._make_index(number, position)
            page = await self._read_page(number, epoch, NEVER_MS, mark)
            _, found = await self._store.known(number, epoch, [], [name for name, _ in page.entries], mark)
        except StaleOffset as error:
            raise StoreError(f"partition {number} moved while it was taken up") from error
        state = PartitionState(number, self._settings, position, log)
        self._told(number, state.join.pending.read_ahead(page.entries, page.through_ms, found))
        return state

    async def meet(self, state: PartitionState, parts: Sequence[Decoded]) -> None:
        """Those who are not in memory, of visitors whose records are in `parts`, all of one partition.

        Raises StaleOffset where the store is not at the state's position.
        """
        visitors = state.unknown(name for part in parts for name in part.visitor_ids())
        ledgers = state.join.pending.unknown(
            [name for part in parts for name in part.visitor_ids()]
            + [outcome.visitor_id for part in parts for _, outcome in part.outcomes]
        )
        if not visitors and not ledgers:
            return
        known, pending = await until_it_answers(
            lambda: self._store.known(state.number, state.position.epoch, visitors, ledgers, state.position.mark),
            self._say,
            self._must_give_up,
        )
        for sentence in state.meet(visitors, known):
            self._say(sentence)
        self._told(state.number, state.join.pending.meet(ledgers, pending))

    async def due(self, state: PartitionState) -> bool:
        """Bring at most a page of those who are due. Whether that is all of them: else settle these, and ask again.

        Raises StaleOffset where the store is not at the state's position.
        """
        pending, watermark_ms = state.join.pending, state.watermark.value_ms
        if pending.through_ms < watermark_ms:
            number, epoch, mark, from_ms = state.number, state.position.epoch, state.position.mark, pending.through_ms
            page = await until_it_answers(
                lambda: self._read_page(number, epoch, from_ms, mark), self._say, self._must_give_up
            )
            asked = pending.unknown(name for name, _ in page.entries)
            _, found = await until_it_answers(
                lambda: self._store.known(number, epoch, [], asked, mark), self._say, self._must_give_up
            )
            self._told(number, pending.read_ahead(page.entries, page.through_ms, found))
        return pending.through_ms >= watermark_ms

    async def _read_page(self, number: int, epoch: int, from_ms: int, mark: str) -> _Page:
        size = self._page
        while True:
            entries = await self._index.page(number, epoch, from_ms, size, mark)
            if len(entries) < size:
                return _Page(entries, FOREVER_MS)
            if entries[-1][1] > from_ms:
                return _Page(entries, entries[-1][1])
            size *= 2  # more than a page in one millisecond

    async def _make_index(self, number: int, position: Position) -> None:
        join = OutcomeJoin(self._settings.tasks, self._settings.session_gap_ms)
        due: dict[str, int] = {}
        async for name, blob in self._store.joins(number, position.epoch):
            due[name] = join.pending.due_of(blob)
            if len(due) % PAGE == 0:
                await asyncio.sleep(0)  # heartbeats go on
        await self._index.make(number, position, due)
        self._say(f"partition {number}: the index of {len(due):,} visitors with pending visits was made anew")

    def _told(self, number: int, sentences: Sequence[str]) -> None:
        for sentence in sentences:
            self._say(f"partition {number}: {sentence}")
