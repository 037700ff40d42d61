"""The compiled rules of sessions against the same rules written plainly, one visit at a time (tests.plain_sessions)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.visits import VisitContext
from schemas.records import WebVisit
from streams.session_steps import from_half, to_half
from streams.sessions import Sessioniser
from streams.urls import UrlRules
from streams.visitor_layouts import Visitor
from streams.visitors import VisitorTable, stored_visitor
from tests import plain_sessions as plain

START_MS, GAP_MS = 1_700_000_000_000, 1_800_000
HOURS = 3_600_000

visits = st.lists(
    st.builds(
        dict,
        visitor=st.sampled_from("abc"),
        event=st.integers(0, 60),
        later_ms=st.sampled_from([0, 1, 1_000, 60_000, GAP_MS, GAP_MS + 1, 90 * HOURS, -5 * HOURS, -1_000]),
        page=st.sampled_from(["/", "/1", "/2", "/3", "/4", "/style.css", "/1#top"]),
        session=st.sampled_from([None, None, None, "", "s", "t", "clock", "é" * 40]),
        kind=st.sampled_from([f"kind {k}" for k in range(12)]),
        agent=st.sampled_from([None, "Mozilla/5.0", "somebot/1"]),
    ),
    max_size=60,
)


def events(drawn: list[dict[str, Any]]) -> list[WebVisit]:
    made, now_ms, starts = [], START_MS, dict[str, int]()
    for one in drawn:
        now_ms = max(0, now_ms + one["later_ms"])
        visitor = one["visitor"]
        start_ms = starts.setdefault(visitor, now_ms)
        session = f"{visitor}@{start_ms}" if one["session"] == "clock" else one["session"]
        made.append(
            WebVisit(
                event_id=f"event {one['event']}", timestamp_ms=now_ms, visitor_id=visitor, session_id=session,
                url=f"https://a.example{one['page']}", event_name=one["kind"], user_agent=one["agent"],
            )
        )  # fmt: skip
    return made


def same_context(one: VisitContext, other: VisitContext) -> None:
    for name in VisitContext.__slots__:
        mine, theirs = getattr(one, name), getattr(other, name)
        assert mine == (pytest.approx(theirs, rel=1e-12, abs=1e-12) if name == "habits" else theirs), name


def same_visitor(one: Visitor, other: plain.Visitor) -> None:
    for name in Visitor.__struct_fields__:
        assert getattr(one, name) == getattr(other, name), name


@settings(max_examples=150)
@given(visits, st.integers(1, 7), st.booleans())
def test_batches_of_any_size_say_what_the_plain_rules_say(drawn: list[dict[str, Any]], size: int, skip: bool) -> None:
    rules = UrlRules(bots="skip" if skip else "learn", static="learn" if skip else "skip")
    mine, theirs, table = Sessioniser(GAP_MS, rules), plain.Sessioniser(GAP_MS, rules), VisitorTable()
    kept: dict[str, plain.Visitor] = {}
    made = events(drawn)
    table.load("abc", {})
    for begin in range(0, len(made), size):
        some = made[begin : begin + size]
        done = mine.take_in(table, some, START_MS)
        for k, event in enumerate(some):
            kept[event.visitor_id], context, step = theirs.visit(kept.get(event.visitor_id), event, START_MS)
            same_context(done.contexts[k], context)
            found = done.step(k)
            assert (found.session_id, found.flags, found.continues, found.duplicate) == (
                step.session_id, step.flags, step.continues, step.duplicate,
            )  # fmt: skip
        # What the store would give back goes on in its place.
        stored = {name: blob for name, blob in table.dirty().items() if name in kept}
        table = VisitorTable()
        assert table.load("abc", {name: visitor.encode() for name, visitor in kept.items()} | stored) == []
        for name, blob in stored.items():
            same_visitor(stored_visitor(blob), kept[name])


@given(visits, visits)
def test_what_is_undone_never_was(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> None:
    sessions, table = Sessioniser(GAP_MS), VisitorTable()
    table.load("abc", {})
    sessions.take_in(table, events(first), START_MS)
    slots = table.slots("abc")
    before, named, dirty = table.encoded(slots), dict(table.named), table.dirty()
    for _ in range(2):
        sessions.take_in(table, events(second), START_MS).undo()
        assert (table.encoded(slots), table.named, table.dirty()) == (before, named, dirty)


def test_every_half_float_is_read_and_written_as_numpy_does(seed: int) -> None:
    every = np.arange(0x7C00, dtype=np.uint16)
    assert [from_half(bits) for bits in every.tolist()] == every.view(np.float16).tolist()
    assert [to_half(x) for x in every.view(np.float16).tolist()] == every.tolist()
    random = np.random.default_rng(seed)
    drawn = random.random(20_000) * np.exp(random.uniform(-20, 7.6, 20_000))
    assert [to_half(x) for x in drawn.tolist()] == drawn.astype(np.float16).view(np.uint16).tolist()
    between = (every[:-1].view(np.float16).astype(np.float64) + every[1:].view(np.float16)) / 2  # ties
    assert [to_half(x) for x in between.tolist()] == between.astype(np.float16).view(np.uint16).tolist()
    assert to_half(0.0) == to_half(-1.0) == to_half(float("nan")) == 0
