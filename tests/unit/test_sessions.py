"""Sessions: one rule at a time, then what must hold for any stream of visits."""

from __future__ import annotations

import math
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_64_digest

from models.visits import ACTIONS, HABITS, RECENT, VisitContext, action_of, url_identity
from schemas.records import WebVisit
from streams.sessions import REMEMBERED_EVENTS, Sessioniser, SessionStep
from streams.urls import UrlRules, canonical
from streams.visitor_layouts import Visitor
from streams.visitors import VisitorTable, stored_visitor

GAP_MS = 1_800_000
MINUTE_MS = 60_000
START_MS = 1_700_000_000_000


def visit(event_id: str, minute: float, url: str = "https://a/", session_id: str | None = None) -> WebVisit:
    timestamp_ms = START_MS + round(minute * MINUTE_MS)
    return WebVisit(event_id=event_id, timestamp_ms=timestamp_ms, visitor_id="v", url=url, session_id=session_id)


def encoded(visitor: Visitor) -> bytes:
    table = VisitorTable()
    table.put("v", visitor)
    return table.encoded(table.slots("v"))[0]


def run(*visits: WebVisit, watermark_ms: int = 0) -> tuple[Visitor | None, list[VisitContext], list[SessionStep]]:
    visitor: Visitor | None = None
    contexts, steps = [], []
    for event in visits:
        visitor, context, step = Sessioniser(GAP_MS).visit(visitor, event, watermark_ms)
        contexts.append(context)
        steps.append(step)
    return visitor, contexts, steps


def test_the_first_visit_of_a_visitor_starts_a_session_named_after_its_time() -> None:
    visitor, (context,), (step,) = run(visit("e1", 0, " https://a/#top"))
    assert step == SessionStep(f"v@{START_MS}", ("new_visitor",), continues=False, duplicate=False)
    assert (context.url, context.url_id, context.entry) == ("https://a/", url_identity("https://a/"), context.url_id)
    assert (context.position, context.recent, context.repeat) == (1, (), False)
    assert (context.since_previous_ms, context.since_start_ms) == (-1, 0)
    assert (context.visits_before, context.sessions_before) == (0, 0)
    assert visitor is not None
    assert visitor.visits == visitor.sessions == 1


def test_a_visit_exactly_the_gap_later_continues_the_session_and_a_millisecond_more_starts_one() -> None:
    _, contexts, steps = run(visit("e1", 0, "https://a/"), visit("e2", 30, "https://b/"), visit("e3", 60.001))
    assert [s.continues for s in steps] == [False, True, False]
    assert (contexts[1].position, contexts[1].since_previous_ms, contexts[1].since_start_ms) == (2, GAP_MS, GAP_MS)
    assert contexts[1].recent == (url_identity("https://a/"),)
    assert (contexts[2].position, contexts[2].recent) == (1, ())
    assert (contexts[2].visits_before, contexts[2].sessions_before) == (2, 1)


def test_a_producers_session_id_decides_alone() -> None:
    _, _, steps = run(
        visit("e1", 0, session_id="s"), visit("e2", 600, session_id="s"), visit("e3", 600, session_id="t")
    )
    assert [(s.session_id, s.continues) for s in steps] == [("s", False), ("s", True), ("t", False)]


def test_a_visit_without_an_id_joins_the_session_that_a_producer_named() -> None:
    _, _, steps = run(visit("e1", 0, session_id="s"), visit("e2", 1), visit("e3", 32))
    assert [s.session_id for s in steps] == ["s", "s", f"v@{START_MS + 32 * MINUTE_MS}"]


def test_a_visit_out_of_order_stays_in_the_session_without_moving_its_last_moment_back() -> None:
    visitor, contexts, steps = run(visit("e1", 10), visit("e2", 5, "https://b/"), visit("e3", 40))
    assert [s.session_id for s in steps] == [f"v@{START_MS + 10 * MINUTE_MS}"] * 3
    assert (contexts[1].since_previous_ms, contexts[1].since_start_ms, contexts[1].position) == (0, 0, 2)
    assert contexts[2].since_previous_ms == 30 * MINUTE_MS
    assert contexts[2].since_start_ms == 35 * MINUTE_MS
    assert visitor is not None
    assert visitor.last_ms == START_MS + 40 * MINUTE_MS


def test_a_gap_into_the_past_starts_a_session_too_and_a_date_in_the_future_costs_one_split() -> None:
    _, _, steps = run(visit("e1", 100), visit("e2", 69), visit("e3", 1_500), visit("e4", 70), visit("e5", 71))
    assert [s.continues for s in steps] == [False, False, False, False, True]


def test_immediate_repeats_are_collapsed_and_a_repeat_does_not_list_itself() -> None:
    a, b = url_identity("https://a/"), url_identity("https://b/")
    _, contexts, _ = run(
        visit("1", 0), visit("2", 1), visit("3", 2, "https://b/"), visit("4", 3, "https://b/#x"), visit("5", 4)
    )
    assert [c.repeat for c in contexts] == [False, True, False, True, False]
    assert [c.recent for c in contexts] == [(), (), (a,), (a,), (b, a)]


def test_a_context_carries_as_many_recent_urls_as_promised_even_on_a_repeat() -> None:
    visits = [visit(str(i), i, f"https://a/{i}") for i in range(20)]
    _, contexts, _ = run(*visits, visit("again", 20, "https://a/19"))
    expected = tuple(url_identity(f"https://a/{i}") for i in range(18, 18 - RECENT, -1))
    assert contexts[-2].recent == contexts[-1].recent == expected


def test_a_duplicate_changes_nothing_and_is_flagged() -> None:
    before, _, _ = run(visit("e1", 0), visit("e2", 1, "https://b/"))
    after, (*_, original, context), (*_, step) = run(
        visit("e1", 0), visit("e2", 1, "https://b/"), visit("e2", 1, "https://b/"), watermark_ms=START_MS + 1
    )
    assert after == before
    assert step == SessionStep(f"v@{START_MS}", ("duplicate",), continues=True, duplicate=True)
    assert context.repeat
    assert (context.url, context.position, context.recent) == (original.url, original.position, original.recent)
    assert (context.visits_before, context.sessions_before) == (original.visits_before, original.sessions_before)


def test_a_duplicate_of_an_earlier_session_does_not_pretend_to_continue_this_one() -> None:
    _, contexts, steps = run(visit("e1", 0), visit("e2", 100), visit("e1", 0))
    assert (steps[-1].session_id, steps[-1].continues, steps[-1].duplicate) == (f"v@{START_MS}", False, True)
    assert (contexts[-1].position, contexts[-1].recent, contexts[-1].since_previous_ms) == (1, (), -1)


def test_an_event_is_remembered_over_the_promised_number_of_visits_and_across_sessions() -> None:
    others = [visit(f"o{i}", 100 * i) for i in range(1, REMEMBERED_EVENTS)]
    _, _, steps = run(visit("e1", 0), *others, visit("e1", 0))
    assert steps[-1].duplicate
    _, _, steps = run(visit("e1", 0), *others, visit("one more", 1), visit("e1", 0))
    assert not steps[-1].duplicate


def test_a_visit_behind_the_watermark_is_late_and_otherwise_like_any_other() -> None:
    _, _, (on, behind) = run(visit("e1", 1), visit("e2", 0.5), watermark_ms=START_MS + MINUTE_MS)
    assert (on.flags, behind.flags) == (("new_visitor",), ("late",))
    assert behind.continues


@pytest.mark.parametrize(
    "blob", [b"", b"\xc1", b"nonsense", b"\x92\x01\x02", b"\x9a\x03\xa1s\x01\x01\x01\x01\x91\x01\xc4\x00\x01\x01"]
)
def test_a_record_of_unknown_layout_is_refused_with_a_sentence(blob: bytes) -> None:
    with pytest.raises(ValueError, match=r"stored visitor of \d+ bytes is not in a layout"):
        stored_visitor(blob)


def test_a_visitor_stored_before_there_were_habits_is_read_and_goes_on() -> None:
    a, b = url_identity("https://a/"), url_identity("https://b/")
    seen = xxh3_64_digest(b"e2")[:6] + xxh3_64_digest(b"e1")[:6]
    blob = msgspec.msgpack.encode((1, "s", START_MS, START_MS + MINUTE_MS, 2, a, [b, a], seen, 7, 3))
    stored = stored_visitor(blob)
    assert (stored.session_id, stored.recent, stored.visits, stored.habits) == ("s", (b, a), 7, b"")
    again, _, step = Sessioniser(GAP_MS).visit(stored, visit("e1", 0), 0)
    assert step.duplicate
    assert again == stored
    after, context, step = Sessioniser(GAP_MS).visit(stored, visit("e3", 2), 0)
    assert (step.session_id, context.position, context.visits_before) == ("s", 3, 7)
    assert stored_visitor(encoded(after)) == after


@pytest.mark.parametrize("session_id", [None, "sixteen letter s"])
def test_a_visitor_takes_at_most_250_bytes_whatever_it_does(session_id: str | None) -> None:
    visitor: Visitor | None = None
    for k in range(2_000):
        event = msgspec.structs.replace(
            visit(f"e{k}", 29 * k, f"https://a/{k}", session_id), visitor_id="f" * 36, event_name=f"kind {k % 40}"
        )
        visitor, _, _ = Sessioniser(GAP_MS).visit(visitor, event, 0)
        assert len(encoded(visitor)) <= 250
    assert visitor is not None
    assert len(encoded(visitor)) > 180  # it was full: the test is about something


def test_a_context_holds_what_happened_before_the_visit_and_not_the_visit() -> None:
    view, cart = action_of("view") - 1, action_of("cart") - 1
    events = [
        msgspec.structs.replace(visit(f"e{k}", k, f"https://a/{k}"), event_name=name)
        for k, name in enumerate(["view", "view", "cart", "view"])
    ]
    _, contexts, _ = run(*events, visit("next day", 1_440))
    assert [(c.actions[view], c.actions[cart]) for c in contexts] == [(0, 0), (1, 0), (2, 0), (2, 1), (0, 0)]
    visits_in_a_week, sessions_in_a_week = [c.habits[0] for c in contexts], [c.habits[3] for c in contexts]
    assert visits_in_a_week[:4] == pytest.approx([0, 1, 2, 3], rel=1e-3)
    assert visits_in_a_week[4] == pytest.approx(4 * math.exp(-1 / 7), rel=2e-3)
    assert sessions_in_a_week == pytest.approx([0, 0, 0, 0, math.exp(-1 / 7)], rel=2e-3)
    assert len({c.session for c in contexts[:4]}) == 1
    assert contexts[4].session != contexts[0].session


def test_a_session_has_one_identity_and_two_visitors_never_share_one() -> None:
    sessions = Sessioniser(GAP_MS)
    mine = sessions.visit(None, visit("1", 0, session_id="s"), 0)[1].session
    other = sessions.visit(None, msgspec.structs.replace(visit("1", 0, session_id="s"), visitor_id="w"), 0)[1].session
    assert 0 < mine < 2**64
    assert mine != other


def test_a_gap_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        Sessioniser(0)


VISITS = st.lists(
    st.builds(
        visit,
        event_id=st.integers(0, 40).map(str),
        minute=st.integers(0, 200),
        url=st.sampled_from(["https://a/", "https://b/", "https://c/"]),
        session_id=st.sampled_from([None, None, None, "s", "t"]),
    ),
    max_size=40,
)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(VISITS)
def test_whatever_comes_the_store_gives_back_what_it_was_given_and_contexts_are_sane(visits: list[WebVisit]) -> None:
    visitor: Visitor | None = None
    fresh = 0
    last_of: dict[str, int] = {}
    for event in visits:
        before = visitor
        visitor, context, step = Sessioniser(GAP_MS).visit(visitor, event, 0)
        assert stored_visitor(encoded(visitor)) == visitor
        assert len(encoded(visitor)) <= 250
        assert len(context.recent) <= RECENT
        assert all(a != b for a, b in pairwise(context.recent))
        assert context.repeat or not context.recent or context.recent[0] != context.url_id or step.duplicate
        assert context.since_previous_ms >= -1
        assert (len(context.habits), len(context.actions)) == (HABITS, ACTIONS)
        assert all(math.isfinite(x) and x >= -1 for x in context.habits)
        assert context.since_start_ms >= 0
        assert step.continues == (context.position > 1)
        assert event.session_id in (None, step.session_id)
        if step.duplicate:
            assert visitor == before
            continue
        fresh += 1
        assert (context.visits_before, visitor.visits) == (fresh - 1, fresh)
        assert context.sessions_before == visitor.sessions - 1
        if event.session_id is None and step.continues:
            assert event.timestamp_ms <= last_of[step.session_id] + GAP_MS
        last_of[step.session_id] = max(last_of.get(step.session_id, 0), event.timestamp_ms)


@settings(derandomize=True, max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 500), min_size=1, max_size=30))
def test_in_order_a_session_starts_exactly_where_the_silence_is_longer_than_the_gap(minutes: list[int]) -> None:
    minutes.sort()
    _, _, steps = run(*(visit(f"e{i}", minute) for i, minute in enumerate(minutes)))
    silences = [later - earlier for earlier, later in pairwise(minutes)]
    assert [not step.continues for step in steps] == [True, *(silence > 30 for silence in silences)]


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.text())
def test_the_canonical_form_of_a_url_is_its_own_canonical_form(url: str) -> None:
    assert canonical(canonical(url)) == canonical(url)


PAGES = ("https://a/logo.png", "https://a/x", "https://a/site.css", "http://A/x?utm_source=mail", "https://a/y")


def test_static_files_belong_to_their_session_but_stand_between_no_two_pages() -> None:
    visitor, contexts, steps = run(*(visit(f"e{k}", k, url) for k, url in enumerate(PAGES)))
    x = url_identity("https://a/x")
    assert [context.teaches for context in contexts] == [False, True, False, True, True]
    assert [context.position for context in contexts] == [1, 2, 3, 4, 5]
    assert [context.recent for context in contexts] == [(), (), (x,), (), (x,)]
    assert [context.repeat for context in contexts] == [
        False,
        False,
        False,
        True,
        False,
    ]  # the same page, written otherwise
    assert all(step.continues for step in steps[1:])
    assert visitor is not None
    assert visitor.recent == (url_identity("https://a/y"), x)


def test_rules_may_let_static_files_teach() -> None:
    sessions = Sessioniser(GAP_MS, UrlRules(static="learn"))
    visitor, first, _ = sessions.visit(None, visit("e1", 0, PAGES[0]), 0)
    _, second, _ = sessions.visit(visitor, visit("e2", 1, PAGES[1]), 0)
    assert (first.teaches, second.recent) == (True, (url_identity(PAGES[0]),))
