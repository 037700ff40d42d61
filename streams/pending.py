"""Which visitors' ledgers are in memory, which are in the store alone, and who must be looked at when.

A horizon of 30 days is paid for in the store, not in the worker: a ledger that the store has may leave memory, and comes
back when its visitor does, or when the watermark comes to its deadline. The rules:

1. *A visitor is known, or is asked for.* `unknown` names those of whom the store must be asked before a record of theirs
   is taken in; the store's answer, also that there is nothing, makes them known until they leave memory again.
2. *Nobody outside memory is due before `through_ms`.* The store keeps an index of when each ledger is due; it is read in
   pages, from `through_ms` on, and each page moves `through_ms` to where the next one begins. A visitor who leaves memory
   moves it back to where that visitor is due. The watermark is followed to `through_ms` and no further.
3. *What the store does not have stays*, whatever the bound: ledgers that changed, and new moments at which to look, since
   the last checkpoint.

Pure: it is told what the store holds, and says what the store must be told."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set

from streams.matching import Ledger

NEVER_MS = -(2**63)  # before any watermark
FOREVER_MS = 2**63  # after any watermark

_STALE_ENTRIES = 1_000  # in the heap, beside as many as there are live ones, before it is made anew


class Pending:
    """The ledgers of one partition that are in memory, in the order in which their visitors were last met."""

    def __init__(self, tasks: Set[str], first_due: Callable[[Ledger], int | None]) -> None:
        """`tasks`: the names of those that are configured; `first_due`: when to look at a ledger, None where all is done."""
        self._tasks = tasks
        self._first_due = first_due
        self.through_ms = FOREVER_MS  # rule 2; who has a store begins with `NEVER_MS`, or a first page
        self.visitors = 0  # whose ledgers are in memory
        self._ledgers: OrderedDict[str, Ledger | None] = OrderedDict()  # None: known to have nothing pending
        self._changed: set[str] = set()
        self._moved: set[str] = set()  # due at another moment than the index says, as far as is known
        # When to look at a visitor next: one live entry each; an entry that `_due` does not name is stale, and is
        # skipped. Each visitor with a ledger in memory has one.
        self._due: dict[str, int] = {}
        self._heap: list[tuple[int, str]] = []

    def __len__(self) -> int:
        return len(self._ledgers)

    # -- one visitor -------------------------------------------------------------------------------------------------

    def __getitem__(self, visitor_id: str) -> Ledger:
        """The ledger of a visitor who has one in memory."""
        ledger = self._ledgers[visitor_id]
        assert ledger is not None, "who is due has a ledger"
        return ledger

    def open(self, visitor_id: str) -> Ledger:
        """The ledger of a visitor, an empty one where nothing is pending. The caller puts something into it."""
        ledger = self._ledgers.get(visitor_id)
        if ledger is None:
            ledger = self._ledgers[visitor_id] = Ledger([], [])
            self.visitors += 1
        self._ledgers.move_to_end(visitor_id)
        return ledger

    def change(self, visitor_id: str) -> None:
        """Note that the store has an older ledger of this visitor, or none."""
        self._changed.add(visitor_id)

    def plan(self, visitor_id: str, due_ms: int) -> None:
        """Look at a visitor at `due_ms`, or when it was planned if that is earlier."""
        if due_ms < self._due.get(visitor_id, due_ms + 1):
            self._due[visitor_id] = due_ms
            self._moved.add(visitor_id)
            heapq.heappush(self._heap, (due_ms, visitor_id))
            if len(self._heap) > 2 * len(self._due) + _STALE_ENTRIES:
                self._heap = [(due, name) for name, due in self._due.items()]
                heapq.heapify(self._heap)

    def unplan(self, visitor_id: str) -> None:
        """Forget when to look at a visitor; the caller looks now, and plans again."""
        self._due.pop(visitor_id, None)

    def plan_again(self, visitor_id: str) -> None:
        """After a look at an unplanned visitor: the ledger says when the next one is, or goes if nothing is left in it."""
        due_ms = self._first_due(self[visitor_id])
        if due_ms is not None:
            self.plan(visitor_id, due_ms)
            return
        self._ledgers[visitor_id] = None
        self._ledgers.move_to_end(visitor_id, last=False)  # to know that there is nothing is worth least
        self._moved.discard(visitor_id)
        self.visitors -= 1

    def due_before(self, watermark_ms: int) -> Iterator[str]:
        """Visitors who are due, each unplanned as it is named."""
        while self._heap and self._heap[0][0] < watermark_ms:
            due_ms, visitor_id = heapq.heappop(self._heap)
            if self._due.get(visitor_id) == due_ms:
                del self._due[visitor_id]
                yield visitor_id

    # -- between memory and store ------------------------------------------------------------------------------------

    def unknown(self, visitor_ids: Iterable[str]) -> list[str]:
        """Those of whom the store must be asked."""
        return [name for name in dict.fromkeys(visitor_ids) if name not in self._ledgers]

    def meet(self, asked: Iterable[str], found: Mapping[str, bytes]) -> list[str]:
        """Take in what the store holds of visitors of whom it was `asked`; of those not `found` it holds nothing.

        Returns a sentence for each ledger that cannot be read: it is dropped, its questions are never settled.
        """
        unreadable = []
        for visitor_id in asked:
            try:
                if visitor_id in found:
                    self.load(visitor_id, found[visitor_id])
                else:
                    self._ledgers[visitor_id] = None
            except ValueError as error:
                self._ledgers[visitor_id] = None
                self._changed.add(visitor_id)  # so that the store drops it too
                unreadable.append(f"{error}; the visits that were pending are dropped")
        return unreadable

    def load(self, visitor_id: str, blob: bytes) -> None:
        """Take one ledger back. Pairs of a task that is no longer configured are dropped, unsettled.

        Raises ValueError where the ledger is of an unknown layout.
        """
        ledger = Ledger.decode(blob)
        for visit in ledger.visits:
            for name in visit.open.keys() - self._tasks:
                del visit.open[name]
        due_ms = self._first_due(ledger)
        if due_ms is None:
            raise ValueError("a stored ledger is empty")
        self._ledgers[visitor_id] = ledger
        self.visitors += 1
        self.plan(visitor_id, due_ms)

    def read_ahead(self, page: Sequence[tuple[str, int]], through_ms: int, found: Mapping[str, bytes]) -> list[str]:
        """Take in a page of the index: all visitors who are due from `self.through_ms` to `through_ms`, and when, and the
        ledgers of those who were `unknown`. Returns as `meet`."""
        said = self.meet(self.unknown(name for name, _ in page), found)
        for visitor_id, indexed_ms in page:
            if self._due.get(visitor_id) == indexed_ms:
                self._moved.discard(visitor_id)  # the index has it right
        self.through_ms = through_ms
        return said

    def due_of(self, blob: bytes) -> int:
        """When a stored ledger is due, for an index made anew; at once where it cannot be read, which is said then."""
        try:
            return self._first_due(Ledger.decode(blob)) or 0
        except ValueError:
            return 0

    def take_changed(self) -> dict[str, bytes | None]:
        """The ledgers that changed since the last call, encoded; None where nothing is left of a visitor."""
        changed, self._changed = self._changed, set()
        found = {name: self._ledgers[name] for name in sorted(changed)}
        return {name: None if ledger is None else ledger.encode() for name, ledger in found.items()}

    def take_moved(self) -> dict[str, int]:
        """When visitors are due for whom that is new since the last call."""
        moved, self._moved = self._moved, set()
        return {name: self._due[name] for name in sorted(moved)}

    def evict(self, bound: int) -> None:
        """Let those go who were met longest ago, beyond `bound`. Right after a checkpoint: the store has it all."""
        assert not self._changed | self._moved, "the store does not have everything yet"
        while len(self._ledgers) > bound:
            visitor_id, ledger = self._ledgers.popitem(last=False)
            if ledger is not None:
                self.visitors -= 1
                self.through_ms = min(self.through_ms, self._due.pop(visitor_id))
