"""Turns visits that were scored, and outcomes that come later, into training examples. One `OutcomeJoin` a partition.

`streams.matching` says which outcome answers which visit; here is when that is said, counted and forgotten:

1. *A pair of visit and task is settled exactly once.* First truth wins: a settled label never changes. Its features
   and scores are those of the moment when the visit was scored, whatever was learned since.
2. *Positive, or negative by an outcome whose value is false: at once*, when the outcome that decides has been read
   (or, for `continues`, the visit that follows). *Negative by silence: when the watermark has passed the deadline*,
   strictly: `watermark_ms > deadline_ms`. A watermark of w promises that nothing older than w is still to be read, so
   a record dated exactly w may come; it is late when its timestamp is < w.
3. *An outcome may come before its visit.* It is remembered until the watermark passes it, and longer, until the last
   deadline of the visits that it answered or may answer: by then its duplicates have come.
4. *Each outcome ends as exactly one of* `duplicate` (the same visitor, name, timestamp, session_id, event_id and
   value as one that is remembered), `joined` (answered a visit, whether or not it was the one to settle it), `late`
   (came behind the watermark and answered nothing) *or* `unmatched` (came in time and answered nothing). Joined and
   duplicate are counted as soon as they are seen, the others when the outcome is forgotten.
5. *A late visit is asked like any other*, and negative at once where its deadline has passed. Its `Settled.late` says
   that an outcome for it may have been forgotten: count it, but think before learning from it.
6. *Duplicates of visits are not handed in*: the sessioniser recognises them.

Promise: as long as nothing is late, the set of (visit, task, label) and the counts depend on what each topic holds
and on the order within each, never on how the two were interleaved, on when the watermark moved or `advance` was
called, or on which ledgers left memory, and came back from the store, in between. One
exception: where outcomes of one task, some true and some false, come on both topics, the label is that of the one that was read
first.

What came after a visit (`Settled.steps`, `wait_ms`, `action`) is said as far as it had been read when the pair was
settled, of visits up to the deadline. So, nothing being late: where silence settled it, or `continues` is true, it
depends on the visits topic alone. Where an outcome settled it, it depends also on how far the visits had been read by
then and, of `action` 0 or -1, on where the watermark stood: on the interleaving. Never on a ledger's way through the
store. Visits that were not asked (below) are not among them.

Memory: a visitor's ledger vanishes when the watermark has passed everything in it, and may leave memory for the store
before (`streams.pending`). A visitor with `max_asked` visits within the longest horizon (a crawler) is asked no more
until they have passed: its visits are counted in `unasked`, still show that the session of the one before continued,
and otherwise leave no trace. Not bounded here: the outcomes of one visitor within one horizon."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from schemas.records import VisitOutcome
from streams.matching import Answer, Asked, Heard, Ledger, Task, answer, first_answer
from streams.pending import NEVER_MS, Pending

__all__ = ["Counts", "OutcomeJoin", "Settled", "Task"]

# A visitor's record is written whole whenever it changed: 1,000 visits of 250 bytes, twice a second, is what one
# crawler may cost. People make fewer visits than that within any horizon.
MAX_ASKED = 1_000


class Settled(msgspec.Struct, frozen=True):  # a struct because it is made quickly, for it is made of every pair
    """The label of one visit for one task, with what was known and said when the visit was scored."""

    task: str
    label: bool
    features: bytes
    probability: float
    baseline: float
    visit_ms: int  # event time of the visit
    known_ms: int  # event time of what decided: the outcome, the visit that followed, or the deadline
    event_id: str
    late: bool  # the visit came behind the watermark
    # What came after the visit, up to its deadline, as far as it had been read: see above for what is promised of it.
    steps: int = -1  # later visits of its session
    wait_ms: int = -1  # event time to the next of them; -1 where there is none
    action: int = (
        -1
    )  # what kind of event that one is; 0: none follows for certain; -1: one may, or its kind is not known


class Counts(msgspec.Struct):
    """How many outcomes ended how. Additive; each outcome is in one of them, in the end."""

    joined: int = 0
    late: int = 0
    duplicate: int = 0
    unmatched: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.joined + other.joined,
            self.late + other.late,
            self.duplicate + other.duplicate,
            self.unmatched + other.unmatched,
        )


class OutcomeJoin:
    """Joins the outcomes of one partition to its visits, by the rules above.

    Every call takes the watermark of the partition; one that goes back is ignored, and one that is beyond what is known
    of the ledgers outside memory (`pending.through_ms`) is followed only that far. Every call returns what it settled, in an
    order that depends on nothing but the input. `counts` may be set, to go on from those in the store.
    """

    def __init__(self, tasks: Sequence[Task], session_gap_ms: int, max_asked: int = MAX_ASKED) -> None:
        """Raises ValueError where two tasks share a name, or a horizon or the gap is not positive."""
        if len({task.name for task in tasks}) != len(tasks):
            raise ValueError(f"two tasks share a name: {', '.join(task.name for task in tasks)}")
        if session_gap_ms <= 0 or any(task.horizon_ms <= 0 for task in tasks if task.outcomes):
            raise ValueError("the session gap and every horizon must be positive")
        self.counts = Counts()
        self.unasked = 0  # visits of visitors who had `max_asked` pending; since the start of this process
        self._max_asked = max_asked
        self._gap_ms = session_gap_ms
        self._horizon_ms = {task.name: task.horizon_ms if task.outcomes else session_gap_ms for task in tasks}
        self._silence_ms = {name: min(horizon_ms, session_gap_ms) for name, horizon_ms in self._horizon_ms.items()}
        self._awaiting = [task for task in tasks if task.outcomes]
        self._of_sessions = {task.name for task in self._awaiting if task.scope == "session"}
        self._following = [task.name for task in tasks if not task.outcomes]
        self._names = frozenset[str]().union(*(task.outcomes for task in tasks))
        # A visit is kept this long though all is settled, so that later outcomes are `joined` and reaches are known.
        self._keep_ms = max(self._horizon_ms.values()) if self._awaiting else 0
        self._shortest_ms = min([*self._horizon_ms.values(), self._keep_ms])
        self._watermark_ms = NEVER_MS
        self.pending = Pending(self._horizon_ms.keys(), self._first_due)

    def visit(
        self,
        visitor_id: str,
        session_id: str,
        event_id: str,
        timestamp_ms: int,
        features: bytes,
        scores: Mapping[str, tuple[float, float]],
        watermark_ms: int,
        action: int = -1,
    ) -> list[Settled]:
        """Asks every task in `scores` (task -> probability, baseline) of a visit that was just scored.

        `action` is the kind of event that the visit is, a bucket from 1: what `Settled.action` says of the visit before.
        """
        settled = self.advance(watermark_ms)
        ledger = self.pending.open(visitor_id)
        ledger.drop_before(self._watermark_ms - self._keep_ms)
        visit = Asked(
            event_id=event_id,
            session_id=session_id,
            timestamp_ms=timestamp_ms,
            features=features,
            open={name: scores[name] for name in self._horizon_ms if name in scores},
            late=timestamp_ms < self._watermark_ms,
            action=action,
        )
        is_full = self._is_full(ledger, timestamp_ms)
        if is_full:
            visit.open = {}
        at = ledger.insert(visit)
        if self._following:
            settled += self._follow(ledger, at)
        if is_full:
            del ledger.visits[at]
            self.unasked += 1
            self.pending.change(visitor_id)
            return settled
        if ledger.outcomes:
            for asked in self._reached(ledger, at):
                settled += self._ask(ledger, asked, ledger.outcomes)
        self._look_at(visitor_id, self._due_of(visit), settled)
        return settled

    def outcome(self, visitor_id: str, outcome: VisitOutcome, watermark_ms: int) -> list[Settled]:
        """Takes in one outcome, of either topic."""
        settled = self.advance(watermark_ms)
        heard = Heard(
            name=outcome.outcome,
            timestamp_ms=outcome.timestamp_ms,
            session_id=outcome.session_id,
            event_id=outcome.event_id,
            value=outcome.value,
            late=outcome.timestamp_ms < self._watermark_ms,
            joined=False,
            until_ms=outcome.timestamp_ms,
        )
        if heard.name not in self._names:
            self._forget(heard)  # nobody will ever ask: not worth remembering
            return settled
        ledger = self.pending.open(visitor_id)
        if any(heard.same_as(other) for other in ledger.outcomes):
            self.counts.duplicate += 1
            return settled
        ledger.outcomes.append(heard)
        for asked in ledger.between(heard.timestamp_ms - self._keep_ms, heard.timestamp_ms):
            settled += self._ask(ledger, asked, [heard])
        self._look_at(visitor_id, heard.timestamp_ms, settled)
        return settled

    def advance(self, watermark_ms: int) -> list[Settled]:
        """Settles as negative what passed its deadline, and forgets what can match nothing any more."""
        watermark_ms = min(watermark_ms, self.pending.through_ms)
        if watermark_ms <= self._watermark_ms:
            return []
        self._watermark_ms = watermark_ms
        found: list[tuple[int, str, int, Settled]] = []
        for visitor_id in self.pending.due_before(watermark_ms):
            for i, settled in enumerate(self._tend(visitor_id)):
                found.append((settled.known_ms, visitor_id, i, settled))
        # In event time, so that one big step says the same as many small ones.
        found.sort(key=lambda entry: entry[:3])
        return [settled for *_, settled in found]

    def has_expired(self, settled: Settled) -> bool:
        """Whether a label came by silence. Said of the pair alone, so that it does not depend on when it was settled."""
        return not settled.label and settled.known_ms == settled.visit_ms + self._horizon_ms[settled.task]

    def _is_full(self, ledger: Ledger, timestamp_ms: int) -> bool:
        """Whether a visit of this time is one too many. Counts only what is there whatever the watermark has passed."""
        if len(ledger.visits) < self._max_asked:
            return False
        if self._awaiting:
            return ledger.since(timestamp_ms - self._keep_ms) >= self._max_asked
        since_ms = timestamp_ms - self._gap_ms
        return sum(bool(v.open) for v in ledger.visits if v.timestamp_ms >= since_ms) >= self._max_asked

    def _follow(self, ledger: Ledger, at: int) -> list[Settled]:
        """Settles `continues` of the visit at `at` and of the one before it. No other needs a look: where the next
        visit of a session is not within the gap, none is."""
        visit = ledger.visits[at]
        settled: list[Settled] = []
        earlier = ledger.before(at, visit.timestamp_ms - self._gap_ms)
        later = ledger.after(at)
        for name in self._following:
            if earlier is not None:
                settled += self._settle(ledger, earlier, name, True, visit.timestamp_ms)
            if later is not None and later.timestamp_ms <= visit.timestamp_ms + self._gap_ms:
                settled += self._settle(ledger, visit, name, True, later.timestamp_ms)
        return settled

    def _reached(self, ledger: Ledger, at: int) -> list[Asked]:
        """The visits that remembered outcomes may answer now that the one at `at` has come: it, and those before it in
        its session when it extends the session over an outcome. Outcomes up to the gap after the previous visit
        of the session were within reach before."""
        visit = ledger.visits[at]
        previous = ledger.before(at, NEVER_MS)
        if previous is None or not any(
            previous.timestamp_ms < o.timestamp_ms - self._gap_ms <= visit.timestamp_ms for o in ledger.outcomes
        ):
            return [visit]
        return [v for v in ledger.visits[: at + 1] if v.session_id == visit.session_id]

    def _ask(self, ledger: Ledger, visit: Asked, outcomes: Sequence[Heard]) -> list[Settled]:
        """Looks whether `outcomes` answer `visit`: counts those that do, and settles what is open."""
        settled: list[Settled] = []
        for task in self._awaiting:
            deadline_ms = visit.timestamp_ms + task.horizon_ms
            if deadline_ms < self._watermark_ms:
                continue  # the question is closed: whatever comes now came late
            answered = False
            for outcome in outcomes:
                match answer(ledger, visit, task, outcome, self._gap_ms):
                    case Answer.NO:
                        continue
                    case Answer.YES:
                        answered = True
                        self.counts.joined += not outcome.joined
                        outcome.joined = True
                outcome.until_ms = max(outcome.until_ms, deadline_ms)
            if answered and task.name in visit.open:
                first = first_answer(ledger, visit, task, self._gap_ms, final=False)
                if first is not None:
                    settled += self._settle(ledger, visit, task.name, first.value, first.timestamp_ms)
        return settled

    def _settle(self, ledger: Ledger, visit: Asked, task: str, label: bool, known_ms: int) -> list[Settled]:
        scores = visit.open.pop(task, None)
        if scores is None:
            return []  # first truth wins
        steps, following = ledger.later(visit, visit.timestamp_ms + self._horizon_ms[task])
        # Who has been silent for the gap has ended the session, unless its producer names sessions that go on after it.
        ended = visit.timestamp_ms + self._silence_ms[task] < self._watermark_ms
        ended |= not label and task in self._of_sessions  # "not in this session" is said when it is over
        settled = Settled(
            task=task,
            label=label,
            features=visit.features,
            probability=scores[0],
            baseline=scores[1],
            visit_ms=visit.timestamp_ms,
            known_ms=known_ms,
            event_id=visit.event_id,
            late=visit.late,
            steps=steps,
            wait_ms=-1 if following is None else following.timestamp_ms - visit.timestamp_ms,
            action=following.action if following is not None else 0 if ended else -1,
        )
        if not visit.open:
            visit.features = b""
        return [settled]

    def _tend(self, visitor_id: str) -> list[Settled]:
        """Settles, drops and forgets what the watermark has passed of one visitor, and plans the next look."""
        ledger = self.pending[visitor_id]
        settled: list[Settled] = []
        for visit in ledger.visits:
            if visit.timestamp_ms + self._shortest_ms >= self._watermark_ms:
                break
            for task in self._awaiting:
                deadline_ms = visit.timestamp_ms + task.horizon_ms
                if task.name in visit.open and deadline_ms < self._watermark_ms:
                    # An outcome that had to wait for an earlier one, which can no longer answer, has its say now.
                    first = first_answer(ledger, visit, task, self._gap_ms, final=True)
                    label = first is not None and first.value
                    settled += self._settle(ledger, visit, task.name, label, deadline_ms)
            for name in self._following:
                if name in visit.open and visit.timestamp_ms + self._gap_ms < self._watermark_ms:
                    settled += self._settle(ledger, visit, name, False, visit.timestamp_ms + self._gap_ms)
        # Only now: a visit that is dropped may have been what extended a session for another.
        dropped = ledger.drop_before(self._watermark_ms - self._keep_ms)
        remembered = [o for o in ledger.outcomes if o.until_ms >= self._watermark_ms]
        for outcome in ledger.outcomes:
            if outcome.until_ms < self._watermark_ms:
                self._forget(outcome)
        if settled or dropped or len(remembered) < len(ledger.outcomes):
            self.pending.change(visitor_id)
        ledger.outcomes = remembered
        self.pending.plan_again(visitor_id)
        return settled

    def _forget(self, outcome: Heard) -> None:
        if not outcome.joined:
            if outcome.late:
                self.counts.late += 1
            else:
                self.counts.unmatched += 1

    def _look_at(self, visitor_id: str, due_ms: int, settled: list[Settled]) -> None:
        """After a record came in: look at its visitor when the watermark passes `due_ms`, or now if it has."""
        self.pending.change(visitor_id)
        if due_ms < self._watermark_ms:
            self.pending.unplan(visitor_id)
            settled += self._tend(visitor_id)
        else:
            self.pending.plan(visitor_id, due_ms)

    def _first_due(self, ledger: Ledger) -> int | None:
        """When to look at a ledger next; None when nothing is left in it."""
        due_ms = min((outcome.until_ms for outcome in ledger.outcomes), default=None)
        for visit in ledger.visits:
            if due_ms is not None and visit.timestamp_ms + self._shortest_ms > due_ms:
                break  # in event time: no later one can be due before
            due_ms = self._due_of(visit) if due_ms is None else min(due_ms, self._due_of(visit))
        return due_ms

    def _due_of(self, visit: Asked) -> int:
        """The first deadline of a visit that is still of interest."""
        if not visit.open:
            return visit.timestamp_ms + self._keep_ms
        horizons = [self._horizon_ms[name] for name in visit.open]  # a generator is slow, and this runs once a visit
        return visit.timestamp_ms + (horizons[0] if len(horizons) == 1 else min(horizons))
