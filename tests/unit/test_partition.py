"""A partition's state becomes a checkpoint, and the checkpoint becomes that state again."""

import msgspec
import pytest

from models.lesson import CorruptLesson, Lesson
from schemas.records import WebVisit
from streams.partition import Counters, Offsets, PartitionState, Summary, lessons_of
from streams.sessions import Sessioniser
from streams.settings import Settings
from streams.store import LogIdentity, Position

LOG = LogIdentity("cluster", "visits", "outcomes")
SETTINGS = Settings(kafka="", redis="", visitor_cache=100, pending_cache=30)


NOTHING = Position()


def state(position: Position = NOTHING, joins: list[tuple[str, bytes]] | None = None) -> PartitionState:
    return PartitionState(0, SETTINGS, position, LOG, joins or [])


def seen(of: PartitionState, visitor_id: str) -> None:
    """One visit of a visitor, as the scoring step takes it in."""
    of.meet(of.unknown([visitor_id]), {})
    visit = WebVisit(event_id="e", timestamp_ms=1_000, visitor_id=visitor_id, url="https://a.example/")
    Sessioniser(SETTINGS.session_gap_ms).take_in(of.visitors, [visit], 0)


def test_a_checkpoint_moves_from_what_the_store_holds() -> None:
    fresh = state()
    assert fresh.checkpoint(0, 0).expected is None
    known = state(Position(mark="m", step=41, log=LOG))
    made = known.checkpoint(0, 0)
    assert (made.expected, made.position.step) == ("m", 42)
    assert made.position.mark not in {"", "m"}


def test_counters_watermark_and_offsets_come_back() -> None:
    first = state()
    first.counters.visits_scored = 7
    first.watermark.observe("visits", 5_000_000, 1.0)
    first.watermark.observe("outcomes", 6_000_000, 1.0)
    first.read_through(Offsets(visits=11, outcomes=3))
    made = first.checkpoint(model_step=9, urls=2)
    again = state(made.position)
    assert again.counters == Counters(visits_scored=7)
    assert again.watermark.value_ms == first.watermark.value_ms
    assert (again.visits, again.outcomes) == (11, 3)
    assert Summary.of(made.position).model_step == 9


def test_only_what_changed_is_written_and_nothing_twice() -> None:
    here = state()
    seen(here, "a")
    made = here.checkpoint(0, 0)
    assert list(made.visitors) == ["a"]
    here.committed(made)
    assert not here.checkpoint(0, 0).visitors


def test_visitors_beyond_the_bound_leave_memory_once_the_store_has_them() -> None:
    here = state()
    for n in range(250):
        seen(here, f"v{n}")
    assert not here.unknown(["v0"]), "what the store does not have stays, whatever the bound"
    here.committed(here.checkpoint(0, 0))
    assert here.unknown(["v0"]) == ["v0"]
    assert not here.unknown(["v249"])


def pending(of: PartitionState, visitor_id: str, at_ms: int = 1_000) -> None:
    of.join.visit(visitor_id, "s", f"e-{visitor_id}", at_ms, b"f", {"continues": (0.5, 0.5)}, 0)


def test_pending_visits_beyond_the_bound_leave_memory_once_the_store_has_them_and_when_they_are_due() -> None:
    here = state()
    for n in range(250):
        pending(here, f"v{n}", 1_000 + n)
    assert len(here.join.pending) == 250, "what the store does not have stays, whatever the bound"
    made = here.checkpoint(0, 0)
    assert made.due == {name: 1_000 + int(name[1:]) + SETTINGS.session_gap_ms for name in made.joins}
    here.committed(made)
    assert len(here.join.pending) == 30
    again = here.checkpoint(0, 0)
    assert (again.joins, again.due) == ({}, {})


def test_horizons_pass_again_when_more_of_those_who_are_due_are_in_memory() -> None:
    here = state()
    here.watermark.observe("visits", 9_000_000, 1.0)
    here.watermark.observe("outcomes", 9_000_000, 1.0)
    here.join.pending.through_ms = 5_000
    assert here.horizons_passed()
    assert not here.horizons_passed()
    here.join.pending.through_ms = 6_000
    assert here.horizons_passed()


def test_an_unreadable_visitor_counts_as_new_and_is_named() -> None:
    here = state()
    [sentence] = here.meet(["a"], {"a": b"\xc1 not msgpack"})
    assert "counts as new" in sentence
    assert here.visitors.get("a").visits == 0


def test_the_step_of_the_newest_lesson_is_kept_for_the_next_entry() -> None:
    here = state()
    here.taught(Lesson.of([], [], 5))
    made = here.checkpoint(0, 0)
    here.committed(made)
    assert here.position.last_lesson == made.position.step
    silent = here.checkpoint(0, 0)
    here.committed(silent)
    assert here.position.last_lesson == made.position.step, "a step without a lesson leaves no entry to follow"


def test_a_checkpoints_lessons_come_back_in_order_or_not_at_all() -> None:
    blob = msgspec.msgpack.encode([Lesson.of([], [], through).encode() for through in (1, 2, 3)])
    assert [lesson.trained_through_ms for lesson in lessons_of(blob)] == [1, 2, 3]
    with pytest.raises(CorruptLesson):
        lessons_of(blob[:-3])
