"""The outcome join, against a slow model that sees everything at once and knows nothing of watermarks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.records import VisitOutcome
from streams.outcomes import Counts, OutcomeJoin, Settled, Task

GAP_MS = 30
CONTINUES = Task("continues", frozenset(), 0)
BOUGHT = Task("bought", frozenset({"order", "subscription"}), 60)
FINISHED = Task("finished", frozenset({"finished"}), 80, "session")
TASKS = (CONTINUES, BOUGHT, FINISHED)
END_MS = 1_000_000


@dataclass(frozen=True)
class Visit:
    visitor_id: str
    session_id: str
    event_id: str
    timestamp_ms: int


def join(*tasks: Task) -> OutcomeJoin:
    return OutcomeJoin(tasks, GAP_MS)


def visit(
    to: OutcomeJoin,
    at_ms: int,
    event_id: str = "e1",
    session_id: str = "s",
    visitor_id: str = "v",
    watermark_ms: int = 0,
    action: int = -1,
) -> list[Settled]:
    scores = {task.name: (0.25, 0.75) for task in TASKS}
    return to.visit(visitor_id, session_id, event_id, at_ms, b"as it was", scores, watermark_ms, action=action)


def outcome(
    to: OutcomeJoin,
    at_ms: int,
    name: str = "order",
    session_id: str | None = None,
    event_id: str | None = None,
    value: bool = True,
    visitor_id: str = "v",
    watermark_ms: int = 0,
) -> list[Settled]:
    record = VisitOutcome(
        visitor_id=visitor_id, outcome=name, timestamp_ms=at_ms, session_id=session_id, event_id=event_id, value=value
    )
    return to.outcome(visitor_id, record, watermark_ms)


def labels(settled: list[Settled]) -> set[tuple[str, str, bool]]:
    return {(s.event_id, s.task, s.label) for s in settled}


# --- one rule at a time -------------------------------------------------------------------------------------------


def test_an_outcome_within_the_horizon_settles_its_visit_with_what_was_said_at_the_time() -> None:
    j = join(BOUGHT)
    assert visit(j, 100) == []
    known = Settled(
        "bought", True, b"as it was", 0.25, 0.75, 100, 160, "e1", late=False, steps=0, wait_ms=-1, action=-1
    )
    assert outcome(j, 160) == [known]
    assert j.counts == Counts(joined=1)
    assert j.advance(END_MS) == []
    assert j.pending.visitors == 0


@pytest.mark.parametrize("at_ms", [99, 161])
def test_an_outcome_before_the_visit_or_beyond_the_horizon_does_not_answer_it(at_ms: int) -> None:
    j = join(BOUGHT)
    visit(j, 100)
    assert outcome(j, at_ms) == []
    assert labels(j.advance(END_MS)) == {("e1", "bought", False)}
    assert j.counts == Counts(unmatched=1)


def test_silence_is_an_answer_only_once_the_watermark_is_strictly_past_the_deadline() -> None:
    j = join(BOUGHT)
    visit(j, 100)
    assert j.advance(160) == []
    known = Settled(
        "bought", False, b"as it was", 0.25, 0.75, 100, 160, "e1", late=False, steps=0, wait_ms=-1, action=0
    )
    assert j.advance(161) == [known]
    assert j.pending.visitors == 0


def test_a_false_outcome_settles_as_negative_at_once_and_the_first_truth_wins() -> None:
    j = join(BOUGHT)
    visit(j, 100)
    assert labels(outcome(j, 110, value=False)) == {("e1", "bought", False)}
    assert outcome(j, 120) == []
    assert j.counts == Counts(joined=2)


def test_an_outcome_that_comes_before_its_visit_waits_for_it() -> None:
    j = join(BOUGHT)
    assert outcome(j, 110) == []
    assert labels(visit(j, 100)) == {("e1", "bought", True)}
    assert j.counts == Counts(joined=1)


def test_an_early_outcome_whose_visit_never_comes_is_unmatched_once_the_watermark_has_passed_it() -> None:
    j = join(BOUGHT)
    outcome(j, 110)
    j.advance(110)
    assert j.counts == Counts()
    j.advance(111)
    assert j.counts == Counts(unmatched=1)
    assert j.pending.visitors == 0


def test_an_outcome_behind_the_watermark_is_late_when_it_answers_nothing_and_joined_when_it_does() -> None:
    j = join(BOUGHT)
    visit(j, 100)
    outcome(j, 90, watermark_ms=120)
    assert j.counts == Counts(late=1)
    assert labels(outcome(j, 110, watermark_ms=120)) == {("e1", "bought", True)}
    assert j.counts == Counts(late=1, joined=1)


def test_the_same_outcome_twice_is_a_duplicate_even_after_it_was_joined() -> None:
    j = join(BOUGHT)
    visit(j, 100)
    outcome(j, 110)
    outcome(j, 110, watermark_ms=150)
    assert j.counts == Counts(joined=1, duplicate=1)


def test_an_outcome_finds_a_visit_that_was_settled_before_it() -> None:
    j = join(BOUGHT)
    visit(j, 50, "e0")
    visit(j, 100, "e1")
    outcome(j, 105, event_id="e1")
    assert labels(j.advance(111)) == {("e0", "bought", False)}
    assert outcome(j, 130) == []
    assert j.counts == Counts(joined=2)


def test_a_session_or_an_event_that_an_outcome_names_limits_it() -> None:
    j = join(BOUGHT)
    visit(j, 100, "e1", "s1")
    visit(j, 101, "e2", "s2")
    visit(j, 102, "e3", "s2")
    assert labels(outcome(j, 110, session_id="s1")) == {("e1", "bought", True)}
    assert labels(outcome(j, 110, event_id="e3")) == {("e3", "bought", True)}
    assert outcome(j, 110, session_id="s1", event_id="e3") == []
    assert labels(outcome(j, 111)) == {("e2", "bought", True)}


def test_with_session_scope_an_outcome_belongs_to_the_session_in_whose_span_it_falls() -> None:
    j = join(FINISHED)
    visit(j, 100, "e1")
    assert outcome(j, 140, "finished") == []  # more than the gap after the only visit
    assert labels(visit(j, 115, "e2")) == {
        ("e1", "finished", True),
        ("e2", "finished", True),
    }  # which extends the session
    assert j.counts == Counts(joined=1)


def test_a_visit_beyond_the_deadline_does_not_extend_the_session_for_those_before_it() -> None:
    j = join(FINISHED)
    visit(j, 100, "e1")
    outcome(j, 175, "finished")
    assert labels(visit(j, 181, "e2")) == set()
    assert labels(j.advance(END_MS)) == {("e1", "finished", False), ("e2", "finished", False)}


def test_an_outcome_waits_for_an_earlier_one_that_may_still_decide() -> None:
    j = join(FINISHED)
    visit(j, 100, "e1")
    outcome(j, 140, "finished", value=False)
    assert outcome(j, 120, "finished") == []
    assert labels(j.advance(181)) == {("e1", "finished", True)}  # nothing brought 140 into the session
    assert j.counts == Counts(joined=1, unmatched=1)


def test_a_visit_continues_its_session_when_another_one_follows_within_the_gap() -> None:
    j = join(CONTINUES)
    visit(j, 100, "e1")
    assert labels(visit(j, 130, "e2")) == {("e1", "continues", True)}
    assert labels(visit(j, 161, "e3")) == set()
    assert labels(j.advance(161)) == {("e2", "continues", False)}
    assert labels(j.advance(192)) == {("e3", "continues", False)}
    assert j.pending.visitors == 0


def test_of_two_visits_in_one_millisecond_the_one_read_first_is_continued() -> None:
    j = join(CONTINUES)
    visit(j, 100, "e1")
    assert labels(visit(j, 100, "e2")) == {("e1", "continues", True)}
    assert labels(j.advance(END_MS)) == {("e2", "continues", False)}


def test_a_visit_that_comes_late_is_settled_at_once_and_marked() -> None:
    j = join(CONTINUES)
    (settled,) = visit(j, 100, watermark_ms=500)
    assert (settled.label, settled.late) == (False, True)
    assert j.pending.visitors == 0


def test_an_outcome_that_no_task_listens_for_is_counted_and_not_remembered() -> None:
    j = join(BOUGHT)
    outcome(j, 100, "newsletter")
    assert j.counts == Counts(unmatched=1)
    assert j.pending.visitors == 0
    assert j.pending.take_changed() == {}


def test_what_is_dirty_is_what_changed_and_a_visitor_that_is_done_is_deleted() -> None:
    j = join(BOUGHT)
    visit(j, 100)
    (blob,) = j.pending.take_changed().values()
    assert blob is not None
    assert j.pending.take_changed() == {}
    j.advance(161)
    assert j.pending.take_changed() == {"v": None}


def test_pairs_of_a_task_that_is_no_longer_configured_are_dropped_on_loading() -> None:
    before = join(BOUGHT, CONTINUES)
    visit(before, 100)
    after = join(CONTINUES)
    for visitor_id, blob in before.pending.take_changed().items():
        assert blob is not None
        after.pending.load(visitor_id, blob)
    assert labels(after.advance(END_MS)) == {("e1", "continues", False)}


@pytest.mark.parametrize("blob", [b"", b"\x00", b"nonsense", b"\x93\x02\x90\x90", b"\x92\x01\x90"])
def test_a_record_of_unknown_layout_is_refused_with_a_sentence(blob: bytes) -> None:
    with pytest.raises(ValueError, match=r"stored outcomes of .* bytes are not in a layout"):
        join(BOUGHT).pending.load("v", blob)


def test_a_setting_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="share a name"):
        join(BOUGHT, BOUGHT)
    with pytest.raises(ValueError, match="must be positive"):
        join(Task("x", frozenset({"x"}), 0))


def test_a_crawler_is_asked_no_more_than_the_bound_and_costs_no_more_than_that() -> None:
    j = OutcomeJoin([BOUGHT, CONTINUES], GAP_MS, max_asked=3)
    for i in range(50):
        visit(j, 100 + i, f"e{i}")
        outcome(j, 200, event_id="nobody's")
    (blob,) = j.pending.take_changed().values()
    assert blob is not None
    assert len(blob) < 300
    assert j.unasked == 47
    assert labels(j.advance(END_MS)) == {(f"e{i}", "bought", False) for i in range(3)}


def test_a_visit_that_is_not_asked_still_shows_that_the_session_continued() -> None:
    j = OutcomeJoin([CONTINUES], GAP_MS, max_asked=1)
    visit(j, 100, "e1")
    assert labels(visit(j, 110, "e2")) == {("e1", "continues", True)}
    assert labels(visit(j, 120, "e3")) == set()
    assert labels(j.advance(END_MS)) == {("e3", "continues", False)}


# --- what came after the visit --------------------------------------------------------------------------------------


def later(settled: list[Settled]) -> dict[tuple[str, str], tuple[int, int, int]]:
    return {(s.event_id, s.task): (s.steps, s.wait_ms, s.action) for s in settled}


def test_silence_tells_all_visits_of_the_session_up_to_the_deadline_and_no_other() -> None:
    j = join(BOUGHT)
    visit(j, 100, "e1", action=1)
    visit(j, 160, "e3", action=3)
    visit(j, 161, "e4", action=4)
    visit(j, 110, "other", "another session", action=5)
    visit(j, 120, "e2", action=2)
    assert later(j.advance(161)) == {("e1", "bought"): (2, 20, 2)}
    assert later(j.advance(171)) == {("other", "bought"): (0, -1, 0)}
    assert later(j.advance(END_MS)) == {
        ("e2", "bought"): (2, 40, 3),
        ("e3", "bought"): (1, 1, 4),
        ("e4", "bought"): (0, -1, 0),
    }


def test_an_outcome_tells_what_was_read_by_then_and_that_none_follows_only_where_none_can() -> None:
    j = join(BOUGHT)
    visit(j, 100, "e1", action=1)
    visit(j, 125, "e2", action=2)
    assert later(outcome(j, 126, watermark_ms=120)) == {("e1", "bought"): (1, 25, 2), ("e2", "bought"): (0, -1, -1)}
    visit(j, 130, "e3", watermark_ms=120)
    assert later(outcome(j, 131, watermark_ms=160)) == {("e3", "bought"): (0, -1, -1)}, "one may come at 160"
    visit(j, 162, "e4", "s2", watermark_ms=160)
    assert later(outcome(j, 163, watermark_ms=193)) == {("e4", "bought"): (0, -1, 0)}


def test_a_session_of_which_an_outcome_says_no_is_over() -> None:
    j = join(FINISHED, BOUGHT)
    visit(j, 100, "e1")
    assert later(outcome(j, 101, "finished", value=False)) == {("e1", "finished"): (0, -1, 0)}
    assert later(outcome(j, 101, "order", value=False)) == {("e1", "bought"): (0, -1, -1)}


def test_a_visit_that_continues_its_session_is_the_next_one() -> None:
    j = join(CONTINUES)
    visit(j, 100, "e1", action=1)
    assert later(visit(j, 120, "e2", action=2)) == {("e1", "continues"): (1, 20, 2)}
    assert later(j.advance(151)) == {("e2", "continues"): (0, -1, 0)}


def test_a_visit_whose_kind_is_not_known_is_a_next_one_of_unknown_kind() -> None:
    j = join(CONTINUES)
    visit(j, 100, "e1")
    assert later(visit(j, 120, "e2")) == {("e1", "continues"): (1, 20, -1)}


# {"v": [1, [["e1", "s", 100, "x", {"bought": [.25, .75]}, False]], []]} as the version before wrote it
OLD_LEDGER = bytes.fromhex("93019196a26531a17364c4017881a6626f7567687492cb3fd0000000000000cb3fe8000000000000c290")


def test_a_ledger_without_kinds_of_events_is_still_read() -> None:
    j = join(BOUGHT)
    j.pending.load("v", OLD_LEDGER)
    visit(j, 120, "e2", action=2)
    visit(j, 90, "e0", action=3)
    told = j.advance(161)
    assert later(told) == {("e0", "bought"): (2, 10, -1), ("e1", "bought"): (1, 20, 2)}
    assert told[1].features == b"x"


# --- all rules at once, against the slow model ----------------------------------------------------------------------


def in_reach(v: Visit, o: VisitOutcome, visits: list[Visit], task: Task) -> bool:
    """Whether the session of `v`, as its visits up to the deadline of `v` make it, spans the time of `o`."""
    return any(
        u.session_id == v.session_id
        and u.timestamp_ms <= v.timestamp_ms + task.horizon_ms
        and o.timestamp_ms <= u.timestamp_ms + GAP_MS
        for u in visits
    )


def answers(v: Visit, o: VisitOutcome, visits: list[Visit], task: Task) -> bool:
    anywhere = task.scope == "visitor" or o.session_id is not None or o.event_id is not None
    return (
        o.outcome in task.outcomes
        and v.timestamp_ms <= o.timestamp_ms <= v.timestamp_ms + task.horizon_ms
        and o.session_id in (None, v.session_id)
        and o.event_id in (None, v.event_id)
        and (anywhere or in_reach(v, o, visits, task))
    )


def slow_model(all_visits: list[Visit], all_outcomes: list[VisitOutcome]) -> tuple[set[tuple[str, str, bool]], Counts]:
    """Labels and counts with everything in hand: no order between the topics, no watermark, no memory to save."""
    truth: set[tuple[str, str, bool]] = set()
    counts = Counts()
    visits_of: dict[str, list[Visit]] = defaultdict(list)
    outcomes_of: dict[str, list[VisitOutcome]] = defaultdict(list)
    for v in all_visits:
        visits_of[v.visitor_id].append(v)
    for o in all_outcomes:
        outcomes_of[o.visitor_id].append(o)
    for visitor_id, visits in visits_of.items():
        for i, v in enumerate(visits):
            for task in TASKS:
                if task.outcomes:
                    values = [o.value for o in outcomes_of[visitor_id] if answers(v, o, visits, task)]
                    label = values[0] if values else False
                else:
                    label = any(
                        u.session_id == v.session_id
                        and (v.timestamp_ms, i) < (u.timestamp_ms, k)
                        and u.timestamp_ms <= v.timestamp_ms + GAP_MS
                        for k, u in enumerate(visits)
                    )
                truth.add((v.event_id, task.name, label))
    for visitor_id, outcomes in outcomes_of.items():
        for i, o in enumerate(outcomes):
            if o in outcomes[:i]:
                counts.duplicate += 1
            elif any(answers(v, o, visits_of[visitor_id], task) for v in visits_of[visitor_id] for task in TASKS):
                counts.joined += 1
            else:
                counts.unmatched += 1
    return truth, counts


def read_later(v: Visit, visits: list[Visit], until_ms: int) -> tuple[int, int]:
    """How many of `visits`, in the order read, follow `v` in its session, and how long until the first."""
    own = visits.index(v)
    waits = [
        u.timestamp_ms - v.timestamp_ms
        for i, u in enumerate(visits)
        if u.session_id == v.session_id and (v.timestamp_ms, own) < (u.timestamp_ms, i) and u.timestamp_ms <= until_ms
    ]
    return len(waits), min(waits, default=-1)


def promised_later(all_visits: list[Visit], all_outcomes: list[VisitOutcome]) -> dict[tuple[str, str], tuple[int, int]]:
    """What is promised to be known of the pairs that silence settles, or `continues` as true."""
    found = {}
    for v in all_visits:
        visits = [u for u in all_visits if u.visitor_id == v.visitor_id]
        outcomes = [o for o in all_outcomes if o.visitor_id == v.visitor_id]
        for task in (BOUGHT, FINISHED):
            if not any(answers(v, o, visits, task) for o in outcomes):
                found[v.event_id, task.name] = read_later(v, visits, v.timestamp_ms + task.horizon_ms)
        parts = [visits[: i + 1] for i in range(visits.index(v), len(visits))]
        told = [read_later(v, part, v.timestamp_ms + GAP_MS) for part in parts]
        found[v.event_id, "continues"] = next((steps for steps in told if steps[0]), (0, -1))
    return found


TIMES = st.integers(1, 250)
VISITS = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xyy"), TIMES), max_size=12).map(
    lambda rows: [Visit(v, f"{v}-{s}", f"{v}{i}", t) for i, (v, s, t) in enumerate(rows)]
)
OUTCOMES = st.lists(
    st.builds(
        lambda v, name, t, session, event, value: VisitOutcome(
            visitor_id=v,
            outcome=name,
            timestamp_ms=t,
            session_id=session and f"{v}-{session}",
            event_id=None if event is None else f"{v}{event}",
            value=value,
        ),
        st.sampled_from("ab"),
        st.sampled_from(["order", "subscription", "finished", "finished"]),
        TIMES,
        st.sampled_from([None, None, None, "x", "y"]),
        st.sampled_from([None, None, None, *range(6)]),
        st.sampled_from([True, True, False]),
    ),
    max_size=8,
)


def interleaving(
    data: st.DataObject, visits: list[Visit], outcomes: list[VisitOutcome], ahead_ms: int = 0
) -> Iterator[tuple[Visit | VisitOutcome, int]]:
    """Both topics, each in its order, with a watermark that no unread record contradicts (by more than `ahead_ms`)."""
    unread_visits, unread_outcomes, watermark_ms = list(visits), list(outcomes), 0
    while unread_visits or unread_outcomes:
        unread_ms = [v.timestamp_ms for v in unread_visits] + [o.timestamp_ms for o in unread_outcomes]
        oldest_ms = min(unread_ms) + ahead_ms
        watermark_ms = max(watermark_ms, data.draw(st.sampled_from([watermark_ms, oldest_ms, oldest_ms - 7])))
        if not unread_outcomes or (unread_visits and data.draw(st.booleans())):
            yield unread_visits.pop(0), watermark_ms
        else:
            yield unread_outcomes.pop(0), watermark_ms


def take_in(to: OutcomeJoin, record: Visit | VisitOutcome, watermark_ms: int) -> list[Settled]:
    if isinstance(record, VisitOutcome):
        return to.outcome(record.visitor_id, record, watermark_ms)
    return visit(to, record.timestamp_ms, record.event_id, record.session_id, record.visitor_id, watermark_ms)


@settings(derandomize=True, max_examples=400, deadline=None)
@given(VISITS, OUTCOMES, st.data())
def test_any_interleaving_with_crashes_in_the_middle_gives_the_labels_of_the_slow_model(
    visits: list[Visit], outcomes: list[VisitOutcome], data: st.DataObject
) -> None:
    j = join(*TASKS)
    store: dict[str, bytes | None] = {}
    settled: list[Settled] = []
    for record, watermark_ms in interleaving(data, visits, outcomes):
        settled += take_in(j, record, watermark_ms)
        act = data.draw(st.sampled_from(["go on", "go on", "advance", "checkpoint", "crash"]))
        if act == "advance":
            settled += j.advance(watermark_ms)
        if act in ("checkpoint", "crash"):
            store.update(j.pending.take_changed())
        if act == "crash":
            counts = j.counts
            j = join(*TASKS)
            j.counts = counts
            for visitor_id, blob in store.items():
                if blob is not None:
                    j.pending.load(visitor_id, blob)
    settled += j.advance(END_MS)
    truth, counts = slow_model(visits, outcomes)
    assert labels(settled) == truth
    assert len(settled) == len(truth), "a pair was settled more than once"
    told = later(settled)
    for pair, steps in promised_later(visits, outcomes).items():
        assert told[pair][:2] == steps, pair
    assert j.counts == counts
    assert j.pending.visitors == 0
    store.update(j.pending.take_changed())
    assert set(store.values()) <= {None}


@settings(derandomize=True, max_examples=200, deadline=None)
@given(VISITS, OUTCOMES, st.integers(0, 120), st.data())
def test_whatever_is_late_each_pair_is_settled_once_and_each_outcome_counted_once(
    visits: list[Visit], outcomes: list[VisitOutcome], ahead_ms: int, data: st.DataObject
) -> None:
    j = join(*TASKS)
    settled: list[Settled] = []
    for record, watermark_ms in interleaving(data, visits, outcomes, ahead_ms):
        settled += take_in(j, record, watermark_ms)
    settled += j.advance(END_MS)
    assert sorted((s.event_id, s.task) for s in settled) == sorted((v.event_id, t.name) for v in visits for t in TASKS)
    c = j.counts
    assert c.joined + c.late + c.duplicate + c.unmatched == len(outcomes)
    assert j.pending.visitors == 0


@settings(derandomize=True, max_examples=200, deadline=None)
@given(VISITS, OUTCOMES, st.lists(TIMES, max_size=6))
def test_one_big_step_of_the_watermark_says_the_same_in_the_same_order_as_many_small_ones(
    visits: list[Visit], outcomes: list[VisitOutcome], steps_ms: list[int]
) -> None:
    big, small = join(*TASKS), join(*TASKS)
    records: list[Visit | VisitOutcome] = [*visits, *outcomes]
    for record in records:
        assert take_in(big, record, 0) == take_in(small, record, 0)
    in_steps = [s for step_ms in sorted(steps_ms) for s in small.advance(step_ms)] + small.advance(END_MS)
    assert big.advance(END_MS) == in_steps
    assert big.counts == small.counts


@settings(derandomize=True, max_examples=200, deadline=None)
@given(VISITS, OUTCOMES, st.sampled_from([TASKS, (CONTINUES,), (BOUGHT,)]), st.data())
def test_what_is_left_unasked_does_not_depend_on_the_interleaving(
    visits: list[Visit], outcomes: list[VisitOutcome], tasks: tuple[Task, ...], data: st.DataObject
) -> None:
    mixed, in_turn = (OutcomeJoin(tasks, GAP_MS, max_asked=2) for _ in range(2))
    one = [
        s for record, watermark_ms in interleaving(data, visits, outcomes) for s in take_in(mixed, record, watermark_ms)
    ]
    records: list[Visit | VisitOutcome] = [*visits, *outcomes]
    other = [s for record in records for s in take_in(in_turn, record, 0)]
    assert labels(one + mixed.advance(END_MS)) == labels(other + in_turn.advance(END_MS))
    assert (mixed.counts, mixed.unasked) == (in_turn.counts, in_turn.unasked)
