"""The watermark, against a simulated log of two topics whose every unread record the test can see."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.records import VisitOutcome
from streams.outcomes import OutcomeJoin, Settled, Task
from streams.watermark import MAX_STEPS, NOTHING_YET_MS, Input, Watermark

INPUTS: tuple[Input, Input] = ("visits", "outcomes")


def test_nothing_is_promised_until_both_inputs_have_promised_something() -> None:
    w = Watermark(0)
    w.observe("visits", 1_000, read_at=1.0)
    assert w.value_ms == NOTHING_YET_MS
    w.observe("outcomes", 900, read_at=2.0)
    assert w.value_ms == 900


def test_the_slower_input_decides_and_the_lateness_is_taken_off() -> None:
    w = Watermark(100)
    w.observe("visits", 5_000, read_at=1.0)
    w.observe("outcomes", 3_000, read_at=1.0)
    assert w.value_ms == 2_900
    w.observe("outcomes", 6_000, read_at=2.0)
    assert w.value_ms == 4_900


def test_an_empty_topic_that_is_confirmed_at_its_end_does_not_hold_back() -> None:
    w = Watermark(100)
    w.observe("visits", 5_000, read_at=1.0)
    w.at_end("outcomes", as_of=1.0)
    assert w.value_ms == 4_900


def test_what_is_read_after_the_confirmation_waits_for_the_next_one() -> None:
    w = Watermark(0)
    w.observe("visits", 5_000, read_at=1.0)
    w.observe("visits", 9_000, read_at=3.0)
    w.at_end("outcomes", as_of=2.0)
    assert w.value_ms == 5_000
    w.at_end("outcomes", as_of=1.5)  # an answer that was under way for longer
    assert w.value_ms == 5_000
    w.at_end("outcomes", as_of=3.0)
    assert w.value_ms == 9_000


def test_when_both_are_at_their_end_the_further_one_decides() -> None:
    w = Watermark(0)
    w.observe("visits", 5_000, read_at=1.0)
    w.observe("outcomes", 8_000, read_at=1.0)
    w.at_end("visits", as_of=2.0)
    w.at_end("outcomes", as_of=2.0)
    assert w.value_ms == 8_000


def test_the_end_of_both_topics_while_nothing_was_ever_read_promises_nothing() -> None:
    w = Watermark(0)
    w.at_end("visits", as_of=1.0)
    w.at_end("outcomes", as_of=1.0)
    assert w.value_ms == NOTHING_YET_MS


def test_what_was_read_before_a_restart_counts_as_read_before_any_confirmation_after_it() -> None:
    w = Watermark(0)
    w.observe("visits", 5_000, read_at=1e9)
    w = Watermark.decode(w.encode(), 0)
    w.at_end("outcomes", as_of=1.0)  # the clock of the new process began anew
    assert w.value_ms == 5_000


def test_a_history_that_is_too_long_is_thinned_to_the_safe_side() -> None:
    w = Watermark(0)
    for i in range(10 * MAX_STEPS):
        w.observe("visits", i, read_at=float(i))
    w.at_end("outcomes", as_of=5.0 * MAX_STEPS)
    assert w.value_ms <= 5 * MAX_STEPS
    w.at_end("outcomes", as_of=10.0 * MAX_STEPS - 20)  # what is recent is known exactly
    assert w.value_ms == 10 * MAX_STEPS - 20


@pytest.mark.parametrize("blob", [b"", b"\xc1", b"nonsense", b"\x94\x02\x01\x92\x01\x01\x92\x01\x01", b"\x91\x01"])
def test_a_record_of_unknown_layout_is_refused_with_a_sentence(blob: bytes) -> None:
    with pytest.raises(ValueError, match=r"stored watermark of \d+ bytes is not in a layout"):
        Watermark.decode(blob, 0)


def test_a_negative_lateness_is_refused() -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        Watermark(-1)


# --- a log of two topics ----------------------------------------------------------------------------------------------


@dataclass
class Log:
    """Two topics and their reader. The producer keeps the one promise asked of it: no record is older, by more than the
    lateness, than the newest written before it in either topic.
    """

    lateness_ms: int
    written: dict[Input, list[tuple[int, float]]] = field(default_factory=lambda: {"visits": [], "outcomes": []})
    read: dict[Input, int] = field(default_factory=lambda: {"visits": 0, "outcomes": 0})
    newest_ms: int = 10_000
    clock: float = 0.0

    def produce(self, topic: Input, ahead_ms: int, behind_ms: int) -> None:
        event_ms = self.newest_ms + ahead_ms if ahead_ms else self.newest_ms - min(behind_ms, self.lateness_ms)
        self.newest_ms = max(self.newest_ms, event_ms)
        self.written[topic].append((event_ms, self.clock))

    def unread(self, topic: Input) -> list[tuple[int, float]]:
        return self.written[topic][self.read[topic] :]

    def is_read_to_its_end(self, topic: Input, as_of: float) -> bool:
        return all(produced_at > as_of for _, produced_at in self.unread(topic))

    def oldest_possible_ms(self) -> int:
        """The oldest of what is still to be read, written or not."""
        unread_ms = [event_ms for topic in INPUTS for event_ms, _ in self.unread(topic)]
        return min([*unread_ms, self.newest_ms - self.lateness_ms])


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("produce"), st.sampled_from(INPUTS), st.integers(0, 50), st.integers(0, 40)),
        st.tuples(st.just("read"), st.sampled_from(INPUTS), st.integers(1, 6), st.booleans()),
        st.tuples(st.just("confirm"), st.sampled_from(INPUTS), st.integers(0, 5), st.just(0)),
        st.tuples(st.just("restart"), st.sampled_from(INPUTS), st.just(0), st.just(0)),
    ),
    max_size=60,
)


@settings(derandomize=True, max_examples=500, deadline=None)
@given(st.integers(0, 30), ACTIONS)
def test_no_unread_record_is_ever_behind_the_watermark_and_it_never_falls(
    lateness_ms: int, actions: list[tuple[str, Input, int, int]]
) -> None:
    log, w = Log(lateness_ms), Watermark(lateness_ms)
    restarted_at = 0.0
    for act, topic, amount, detail in actions:
        before_ms = w.value_ms
        log.clock += 1
        if act == "produce":
            log.produce(topic, amount, detail)
        elif act == "read":
            for event_ms, _ in log.unread(topic)[:amount]:
                w.observe(topic, event_ms, read_at=log.clock)
                log.read[topic] += 1
        elif act == "confirm":
            as_of = max(restarted_at, log.clock - amount)  # the answer of the broker took a while
            if log.is_read_to_its_end(topic, as_of):
                w.at_end(topic, as_of)
        else:
            w = Watermark.decode(w.encode(), lateness_ms)
            restarted_at = log.clock
        assert w.value_ms >= before_ms
        assert w.value_ms <= log.oldest_possible_ms()
    for topic in INPUTS:
        for event_ms, _ in log.unread(topic):
            w.observe(topic, event_ms, read_at=log.clock)
    for topic in INPUTS:
        w.at_end(topic, as_of=log.clock)
    if any(log.written.values()):
        newest_ms = max(event_ms for topic in INPUTS for event_ms, _ in log.written[topic])
        assert w.value_ms == newest_ms - lateness_ms, "with everything read, nothing holds back"


@settings(derandomize=True, max_examples=100, deadline=None)
@given(st.data())
def test_a_replay_at_full_speed_settles_nothing_that_an_unread_outcome_contradicts(data: st.DataObject) -> None:
    """Each visit has its outcome ten minutes later, and visits may be read hours of event time ahead of outcomes."""
    hour_ms = 3_600_000
    visits = [i * hour_ms for i in range(20)]
    outcomes = [at_ms + 600_000 for at_ms in visits if data.draw(st.booleans(), label="converts")]
    join = OutcomeJoin([Task("bought", frozenset({"order"}), hour_ms // 2)], hour_ms // 2)
    w, clock = Watermark(0), 0.0
    settled: list[Settled] = []
    unread_visits, unread_outcomes = list(visits), list(outcomes)
    while unread_visits or unread_outcomes:
        clock += 1
        if not unread_outcomes or (unread_visits and data.draw(st.integers(0, 4), label="visits are faster")):
            at_ms = unread_visits.pop(0)
            settled += join.visit("v", "s", str(at_ms), at_ms, b"", {"bought": (0.5, 0.5)}, w.value_ms)
            w.observe("visits", at_ms, clock)
        else:
            at_ms = unread_outcomes.pop(0)
            outcome = VisitOutcome(visitor_id="v", outcome="order", timestamp_ms=at_ms)
            settled += join.outcome("v", outcome, w.value_ms)
            w.observe("outcomes", at_ms, clock)
        if not unread_outcomes:  # the whole log was there from the beginning, so this is its end
            w.at_end("outcomes", clock)
        if not unread_visits:
            w.at_end("visits", clock)
        settled += join.advance(w.value_ms)
    settled += join.advance(100 * hour_ms)
    assert {s.visit_ms for s in settled if s.label} == {at_ms - 600_000 for at_ms in outcomes}
    assert len(settled) == len(visits)
    assert join.counts.joined == len(outcomes)
