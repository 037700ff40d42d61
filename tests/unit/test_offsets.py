"""The accounting of acknowledgements, driven through any order of deliveries, crashes and rebalances."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from streams.offsets import DeliveredChunks


def test_nothing_is_committable_before_the_first_chunk_is_acknowledged() -> None:
    chunks = DeliveredChunks()
    first, second = chunks.deliver(5, 9), chunks.deliver(12, 19)
    assert chunks.ack(second)
    assert not chunks.ack(second), "it is acknowledged already, though it waits for the first"
    assert chunks.committable() is None
    assert chunks.in_flight == 1
    assert chunks.ack(first)
    assert chunks.committable() == 20
    assert chunks.in_flight == 0
    assert chunks.last_delivered == 19


def test_an_acknowledgement_from_before_a_seek_does_not_count_for_the_same_offsets_after_it() -> None:
    chunks = DeliveredChunks()
    old = chunks.deliver(0, 9)
    chunks.forget()
    assert chunks.last_delivered is None
    new = chunks.deliver(0, 9)
    assert not chunks.ack(old)
    assert chunks.committable() is None
    assert chunks.ack(new)
    assert chunks.committable() == 10


def test_a_second_acknowledgement_and_one_of_nothing_count_for_nothing() -> None:
    chunks = DeliveredChunks()
    first, second = chunks.deliver(0, 9), chunks.deliver(10, 19)
    assert chunks.ack(first)
    assert not chunks.ack(first)
    assert not chunks.ack(second + 1)
    assert chunks.ack(second)
    assert not chunks.ack(second)
    assert chunks.in_flight == 0


def test_chunks_that_do_not_follow_each_other_are_refused() -> None:
    chunks = DeliveredChunks()
    with pytest.raises(ValueError, match="is empty"):
        chunks.deliver(3, 2)
    chunks.deliver(0, 9)
    with pytest.raises(ValueError, match="forget comes first"):
        chunks.deliver(9, 12)
    chunks.forget()
    chunks.deliver(0, 9)


class OnePartition(RuleBasedStateMachine):
    """A log, a consumer that reads it in chunks, and a broker that keeps the committed offset across crashes."""

    tokens = Bundle("tokens")

    def __init__(self) -> None:
        super().__init__()
        self.chunks = DeliveredChunks()
        self.position = 0  # next offset to read
        self.committed = 0  # what the broker holds
        self.finished: set[int] = set()  # offsets whose chunk was acknowledged, ever
        self.current: dict[int, tuple[int, int]] = {}  # token -> its offsets, of this generation, unacknowledged
        self.existing: set[int] = set()  # offsets at which the log holds a record
        self.end = 0

    @rule(target=tokens, missing=st.integers(0, 3), records=st.integers(1, 5), missing_inside=st.integers(0, 2))
    def deliver(self, missing: int, records: int, missing_inside: int) -> int:
        if self.position < self.end:  # delivered before a crash: the log is what it is, its chunks may be cut anew
            first = min(o for o in self.existing if o >= self.position)
            last = max(o for o in self.existing if first <= o < first + records)
        else:
            first = self.end + missing
            last = first + records - 1 + missing_inside
            self.existing |= {*range(first, first + records - 1), last}
        token = self.chunks.deliver(first, last)
        self.current[token] = (first, last)
        self.position = last + 1
        self.end = max(self.end, self.position)
        return token

    @rule(token=consumes(tokens))
    def acknowledge_one(self, token: int) -> None:
        self.acknowledge(token)

    def acknowledge(self, token: int) -> None:
        current = token in self.current
        assert self.chunks.ack(token) == current
        if current:
            first, last = self.current.pop(token)
            self.finished |= {o for o in self.existing if first <= o <= last}

    @rule()
    def commit(self) -> None:
        offset = self.chunks.committable()
        if offset is not None:
            assert offset >= self.committed
            self.committed = offset

    @rule()
    def crash_or_rebalance_and_read_again_from_the_committed_offset(self) -> None:
        self.chunks.forget()  # tokens stay in the bundle: work of before is still under way and will be acknowledged
        self.current.clear()
        self.position = self.committed

    @rule()
    @precondition(lambda self: self.current)
    def acknowledge_everything(self) -> None:
        for token in sorted(self.current, reverse=True):
            self.acknowledge(token)
        assert self.chunks.committable() == self.position
        assert self.chunks.in_flight == 0

    @invariant()
    def what_is_committed_is_finished(self) -> None:
        committable = self.chunks.committable()
        assert {o for o in self.existing if o < max(self.committed, committable or 0)} <= self.finished
        if committable is not None:
            assert all(committable <= first for first, _ in self.current.values())

    @invariant()
    def the_count_in_flight_is_right(self) -> None:
        assert self.chunks.in_flight == len(self.current)


TestOnePartition = OnePartition.TestCase
TestOnePartition.settings = settings(derandomize=True, max_examples=150, stateful_step_count=30, deadline=None)
