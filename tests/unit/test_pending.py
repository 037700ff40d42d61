"""Ledgers that leave memory and come back: as if they had stayed. A dict is the store."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.records import VisitOutcome
from streams.outcomes import OutcomeJoin, Settled
from streams.pending import FOREVER_MS, NEVER_MS
from tests.unit.test_outcomes import (
    BOUGHT,
    END_MS,
    GAP_MS,
    OUTCOMES,
    TASKS,
    TIMES,
    Visit,
    interleaving,
    join,
    labels,
    outcome,
    slow_model,
    take_in,
    visit,
)


class Stored:
    """What the store holds of a partition: ledgers, and the index of when each is due."""

    def __init__(self) -> None:
        self.ledgers: dict[str, bytes] = {}
        self.due: dict[str, int] = {}

    def commit(self, j: OutcomeJoin) -> None:
        for name, blob in j.pending.take_changed().items():
            if blob is None:
                self.ledgers.pop(name, None)
                self.due.pop(name, None)
            else:
                self.ledgers[name] = blob
        self.due |= j.pending.take_moved()
        assert self.due.keys() == self.ledgers.keys()
        assert all(self.due[name] <= j.pending.due_of(blob) for name, blob in self.ledgers.items()), "due unnoticed"

    def meet(self, j: OutcomeJoin, *visitor_ids: str) -> None:
        asked = j.pending.unknown(visitor_ids)
        assert j.pending.meet(asked, {name: self.ledgers[name] for name in asked if name in self.ledgers}) == []

    def page(self, j: OutcomeJoin, size: int) -> None:
        entries = sorted((due, name) for name, due in self.due.items() if due >= j.pending.through_ms)
        taken = [(name, due) for due, name in entries[:size]]
        through_ms = FOREVER_MS if len(entries) < size else taken[-1][1]
        if through_ms == j.pending.through_ms:
            self.page(j, size * 2)
            return
        asked = j.pending.unknown(name for name, _ in taken)
        assert j.pending.read_ahead(taken, through_ms, {name: self.ledgers[name] for name in asked}) == []

    def begin(self) -> OutcomeJoin:
        j = join(*TASKS)
        j.pending.through_ms = NEVER_MS
        return j


VISITORS = "abcdef"
VISITS = st.lists(st.tuples(st.sampled_from(VISITORS), st.sampled_from("xyy"), TIMES), max_size=16).map(
    lambda rows: [Visit(v, f"{v}-{s}", f"{v}{i}", t) for i, (v, s, t) in enumerate(rows)]
)
ACTS = st.sampled_from(["go on", "go on", "advance", "checkpoint", "evict", "evict", "crash"])


@settings(derandomize=True, max_examples=300, deadline=None)
@given(VISITS, OUTCOMES, st.data())
def test_a_join_whose_ledgers_come_and_go_says_the_same_in_the_same_order(
    visits: list[Visit], outcomes: list[VisitOutcome], data: st.DataObject
) -> None:
    """As long as all who are due are brought before the watermark is followed."""
    staying, going, store = join(*TASKS), join(*TASKS), Stored()
    for record, watermark_ms in interleaving(data, visits, outcomes):
        while going.pending.through_ms < watermark_ms:
            store.page(going, data.draw(st.integers(1, 3)))
        store.meet(going, record.visitor_id)
        assert take_in(going, record, watermark_ms) == take_in(staying, record, watermark_ms)
        act = data.draw(ACTS)
        if act == "advance":
            assert going.advance(watermark_ms) == staying.advance(watermark_ms)
        if act in ("checkpoint", "evict", "crash"):
            store.commit(going)
        if act == "evict":
            bound = data.draw(st.integers(0, 3))
            going.pending.evict(bound)
            assert len(going.pending) <= bound
        if act == "crash":
            counts, going = going.counts, store.begin()
            going.counts = counts
        assert going.counts == staying.counts
    at_the_end: list[Settled] = []
    while going.pending.through_ms < END_MS:
        store.page(going, 2)
        at_the_end += going.advance(END_MS)
    at_the_end += going.advance(END_MS)
    assert at_the_end == staying.advance(END_MS)
    assert going.counts == staying.counts
    store.commit(going)
    assert not store.ledgers


@settings(derandomize=True, max_examples=300, deadline=None)
@given(VISITS, OUTCOMES, st.data())
def test_however_late_the_due_are_brought_the_labels_are_those_of_the_slow_model(
    visits: list[Visit], outcomes: list[VisitOutcome], data: st.DataObject
) -> None:
    j, store, settled = join(*TASKS), Stored(), list[Settled]()
    for record, watermark_ms in interleaving(data, visits, outcomes):
        store.meet(j, record.visitor_id)
        settled += take_in(j, record, watermark_ms)
        act = data.draw(ACTS)
        if act == "advance" and j.pending.through_ms < watermark_ms:
            store.page(j, data.draw(st.integers(1, 3)))
            settled += j.advance(watermark_ms)
        if act in ("checkpoint", "evict", "crash"):
            store.commit(j)
        if act == "evict":
            j.pending.evict(data.draw(st.integers(0, 3)))
        if act == "crash":
            counts, j = j.counts, store.begin()
            j.counts = counts
    while j.pending.through_ms < END_MS:
        store.page(j, 2)
        settled += j.advance(END_MS)
    settled += j.advance(END_MS)
    truth, counts = slow_model(visits, outcomes)
    assert labels(settled) == truth
    assert len(settled) == len(truth), "a pair was settled more than once"
    assert j.counts == counts
    assert j.pending.visitors == 0


def test_who_is_due_is_not_passed_over_while_its_ledger_is_in_the_store_alone() -> None:
    j, store = join(BOUGHT), Stored()
    for n in range(5):
        visit(j, 100 + n, f"e{n}", visitor_id=f"v{n}")
    store.commit(j)
    j.pending.evict(2)
    assert (len(j.pending), j.pending.through_ms) == (2, 160)
    assert j.advance(END_MS) == []
    store.page(j, 2)
    assert labels(j.advance(END_MS)) == {("e0", "bought", False)}, "v1 is due when the page ends: others may be too"
    store.page(j, 2)
    store.page(j, 9)
    assert labels(j.advance(END_MS)) == {(f"e{n}", "bought", False) for n in range(1, 5)}
    store.commit(j)
    assert not store.ledgers


def test_what_the_store_does_not_have_does_not_leave() -> None:
    j = join(BOUGHT)
    visit(j, 100)
    with pytest.raises(AssertionError, match="does not have everything"):
        j.pending.evict(0)
    assert j.pending.unknown(["v", "w", "w"]) == ["w"]


def test_a_ledger_that_came_for_a_duplicate_is_due_when_the_index_says_or_tells_it() -> None:
    """Outcomes that answer a visit keep it of interest for longer than the index knew."""
    j, store = join(*TASKS), Stored()
    visit(j, 100)
    outcome(j, 110)
    store.commit(j)
    assert store.due == {"v": 110}
    j.pending.evict(0)
    store.meet(j, "v")
    outcome(j, 110)  # a duplicate: the ledger does not change, the index is mended all the same
    store.commit(j)
    assert store.due == {"v": 130}


def test_moments_that_the_index_has_right_are_not_written_again() -> None:
    j, store = join(BOUGHT), Stored()
    visit(j, 100)
    store.commit(j)
    j.pending.evict(0)
    store.page(j, 10)
    assert j.pending.take_moved() == {}


def test_a_visitor_of_whom_nothing_is_left_is_known_to_have_nothing() -> None:
    j = join(BOUGHT)
    visit(j, 100)
    j.advance(161)
    assert j.pending.unknown(["v"]) == []
    assert (len(j.pending), j.pending.visitors) == (1, 0)


def test_a_ledger_that_cannot_be_read_is_named_and_dropped_and_the_rest_goes_on() -> None:
    j, store = join(BOUGHT), Stored()
    visit(j, 100, "e1", visitor_id="good")
    store.commit(j)
    j = store.begin()
    found = {"bad": b"\xc1", "good": store.ledgers["good"]}
    page = [("bad", j.pending.due_of(b"\xc1")), ("good", 160)]
    assert page[0][1] == 0, "at once, so that it is said"
    [sentence] = j.pending.read_ahead(page, FOREVER_MS, found)
    assert "are dropped" in sentence
    assert labels(j.advance(END_MS)) == {("e1", "bought", False)}
    assert j.pending.take_changed() == {"bad": None, "good": None}
    assert j.pending.take_moved() == {}


def test_visitors_who_come_and_go_for_days_leave_nothing_behind() -> None:
    """One visitor, ever earlier outcomes, in and out of memory: the plan is as long as what it plans."""
    j, store = OutcomeJoin([BOUGHT], GAP_MS), Stored()
    for at_ms in range(20_000, 10_000, -1):
        visit(j, 15_000, f"e{at_ms}", visitor_id="crawler") if at_ms % 5_000 == 0 else outcome(j, at_ms)
        if at_ms % 50 == 0:
            store.commit(j)
            j.pending.evict(0)
            store.meet(j, "v", "crawler")
    assert len(j.pending._heap) < 2_000
