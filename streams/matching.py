"""Which outcome answers which visit: the rules, and what must be remembered to apply them.

Task `t` asks of visit `v`: within `t.horizon_ms` of `v`, does one of `t.outcomes` happen to this visitor (scope
`visitor`) or in this session (scope `session`)? Outcome `o` of the same visitor *answers* `v` for `t` when all of
these hold:

1. `t` listens for the name of `o`, and `v.timestamp ≤ o.timestamp ≤ v.timestamp + horizon`: both ends count.
2. The limits of `o` hold: where it carries a session_id or an event_id, they are those of `v`.
3. For scope `session`, when `o` carries neither: it falls into the session of `v`, which reaches from its first visit
   to `session_gap_ms` after its last. Only visits up to the deadline of `v` count for that reach. A visit beyond the
   deadline may or may not have been read when the deadline passes; were it to count, the label would depend on it.

Rule 3 is why an answer can be `MAYBE`: a visit of the same session, still to be read, may extend the session over `o`.

The label of `v` for `t` is the value of the *first outcome, in the order of the outcomes' topic*, that answers it;
false when none does. So true and false about the same visit are settled by their order in the topic, and an outcome
must wait while an earlier one is still `MAYBE`. The built-in task, `continues`, has no outcomes: it is true when
another visit of the same session follows, later in event time, or at the same millisecond and read later, and within
the gap.

Pure functions over a `Ledger`, the record of one visitor. They decide; `streams.outcomes` acts, counts and forgets.
"""

from __future__ import annotations

import enum
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Literal

import msgspec


@dataclass(frozen=True)
class Task:
    """One question asked of every visit. `outcomes` empty is the built-in question: does the session continue?"""

    name: str
    outcomes: frozenset[str]
    horizon_ms: int  # of the built-in task the gap of sessions takes its place
    scope: Literal["visitor", "session"] = "visitor"


class Asked(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """One visit, kept until the watermark has passed its last deadline. Where every task is settled only its identity
    is kept, so that later outcomes still find the visit that they belong to.
    """

    event_id: str
    session_id: str
    timestamp_ms: int
    features: bytes  # as they were when the visit was scored; empty once nothing is open
    open: dict[str, tuple[float, float]]  # task still unanswered -> (probability, baseline) given at the time
    late: bool  # was behind the watermark when it came
    action: int = -1  # the kind of event that it was, a bucket from 1; -1 where it was written before this was kept


class Heard(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """One outcome, kept until no visit can be answered by it any more."""

    name: str
    timestamp_ms: int
    session_id: str | None
    event_id: str | None
    value: bool
    late: bool  # was behind the watermark when it came
    joined: bool  # answered at least one visit, and was counted for it
    until_ms: int  # the last moment for which it is needed: its own, or the last deadline of a visit that it may answer

    def same_as(self, other: Heard) -> bool:
        """Whether the two say the same thing, so that one is a duplicate of the other."""
        return (
            self.timestamp_ms == other.timestamp_ms
            and self.name == other.name
            and self.session_id == other.session_id
            and self.event_id == other.event_id
            and self.value == other.value
        )


class Ledger(msgspec.Struct, array_like=True, tag=1, forbid_unknown_fields=True):
    """What is pending and remembered of one visitor. The tag is the version of the layout."""

    visits: list[Asked]  # in event time, equal times in the order read
    outcomes: list[Heard]  # in the order read

    def encode(self) -> bytes:
        return _ENCODER.encode(self)

    @staticmethod
    def decode(blob: bytes) -> Ledger:
        """Reads what `encode` wrote; raises ValueError, with a sentence, on anything else."""
        try:
            return _DECODER.decode(blob)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ValueError(
                f"stored outcomes of {len(blob)} bytes are not in a layout this version reads: {error}"
            ) from error

    def insert(self, visit: Asked) -> int:
        """Puts a visit where its time belongs, and says where that is."""
        at = bisect_right(self.visits, visit.timestamp_ms, key=_TIME)
        self.visits.insert(at, visit)
        return at

    def since(self, first_ms: int) -> int:
        """How many of the visits are not older than `first_ms`."""
        return len(self.visits) - bisect_left(self.visits, first_ms, key=_TIME)

    def drop_before(self, first_ms: int) -> int:
        """Drops the oldest visits, up to one that is not older than `first_ms` or still unanswered. Says how many."""
        count = 0
        for visit in self.visits:
            if visit.open or visit.timestamp_ms >= first_ms:
                break
            count += 1
        del self.visits[:count]
        return count

    def between(self, first_ms: int, last_ms: int) -> Iterator[Asked]:
        """The visits from `first_ms` to `last_ms`, both included, in event time."""
        for at in range(bisect_left(self.visits, first_ms, key=_TIME), len(self.visits)):
            if self.visits[at].timestamp_ms > last_ms:
                return
            yield self.visits[at]

    def before(self, at: int, since_ms: int) -> Asked | None:
        """The visit of the same session that stands last before position `at`, unless it is older than `since_ms`."""
        session_id = self.visits[at].session_id
        for i in range(at - 1, -1, -1):
            if self.visits[i].timestamp_ms < since_ms:
                return None
            if self.visits[i].session_id == session_id:
                return self.visits[i]
        return None

    def after(self, at: int) -> Asked | None:
        """The visit of the same session that stands first after position `at`."""
        session_id = self.visits[at].session_id
        for i in range(at + 1, len(self.visits)):
            if self.visits[i].session_id == session_id:
                return self.visits[i]
        return None

    def later(self, visit: Asked, until_ms: int) -> tuple[int, Asked | None]:
        """How many visits of the same session follow one of these, up to `until_ms`, and the first that does."""
        at = bisect_left(self.visits, visit.timestamp_ms, key=_TIME)
        while self.visits[at] is not visit:
            at += 1
        count, first = 0, None
        for i in range(at + 1, len(self.visits)):
            if self.visits[i].timestamp_ms > until_ms:
                break
            if self.visits[i].session_id == visit.session_id:
                count, first = count + 1, first or self.visits[i]
        return count, first

    def last_ms(self, session_id: str, until_ms: int) -> int:
        """The last visit of a session, of those that came until `until_ms`. The caller knows that there is one."""
        at = bisect_right(self.visits, until_ms, key=_TIME) - 1
        while self.visits[at].session_id != session_id:
            at -= 1
        return self.visits[at].timestamp_ms


_TIME = attrgetter("timestamp_ms")
_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Ledger)


class Answer(enum.Enum):
    NO = "no"
    MAYBE = "maybe"  # a visit still to come can make it a yes
    YES = "yes"


def answer(ledger: Ledger, visit: Asked, task: Task, outcome: Heard, gap_ms: int) -> Answer:
    """Whether `outcome` answers `visit` for `task`, by rules 1 to 3, on what has been read so far."""
    deadline_ms = visit.timestamp_ms + task.horizon_ms
    if outcome.name not in task.outcomes or not visit.timestamp_ms <= outcome.timestamp_ms <= deadline_ms:
        return Answer.NO
    if outcome.session_id is not None and outcome.session_id != visit.session_id:
        return Answer.NO
    if outcome.event_id is not None and outcome.event_id != visit.event_id:
        return Answer.NO
    if task.scope == "visitor" or outcome.session_id is not None or outcome.event_id is not None:
        return Answer.YES
    reach_ms = ledger.last_ms(visit.session_id, deadline_ms) + gap_ms
    return Answer.YES if outcome.timestamp_ms <= reach_ms else Answer.MAYBE


def first_answer(ledger: Ledger, visit: Asked, task: Task, gap_ms: int, final: bool) -> Heard | None:
    """The outcome that decides the label of `visit` for `task`; None while none does.

    With `final` the deadline has passed, so what may still be can no longer be.
    """
    for outcome in ledger.outcomes:
        match answer(ledger, visit, task, outcome, gap_ms):
            case Answer.YES:
                return outcome
            case Answer.MAYBE if not final:
                return None
    return None
