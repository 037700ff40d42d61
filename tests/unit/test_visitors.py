"""The table of visitors in memory, and what is stored of them: streams/visitors.py."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.records import WebVisit
from streams.sessions import Sessioniser
from streams.visitors import EVENTS, PAGES, VisitorTable, stored_visitor

START_MS, GAP_MS = 1_700_000_000_000, 1_800_000


def visit(visitor: str, n: int, session: str | None = None) -> WebVisit:
    return WebVisit(
        event_id=f"{visitor} {n}", timestamp_ms=START_MS + 1_000 * n, visitor_id=visitor, url=f"https://a.example/{n}",
        session_id=session, event_name=f"kind {n}",
    )  # fmt: skip


def taken_in(*visits: WebVisit) -> VisitorTable:
    table = VisitorTable()
    table.load(dict.fromkeys(v.visitor_id for v in visits), {})
    Sessioniser(GAP_MS).take_in(table, visits, 0)
    return table


def test_only_what_changed_is_to_be_stored_and_once() -> None:
    table = taken_in(visit("a", 1), visit("b", 1))
    assert set(table.dirty()) == {"a", "b"}
    table.stored(100)
    assert table.dirty() == {}
    sessions = Sessioniser(GAP_MS)
    sessions.take_in(table, [visit("b", 1)], 0)  # a producer's retry
    assert table.dirty() == {}
    sessions.take_in(table, [visit("b", 2)], 0)
    assert set(table.dirty()) == {"b"}


def test_those_met_longest_ago_leave_when_the_store_has_them() -> None:
    table = taken_in(*(visit(name, 1) for name in "abcde"))
    table.slots("cab")
    table.slots("a")
    table.stored(3)
    assert [name for name in "abcde" if name in table] == ["a", "b", "c"]
    table.stored(1)
    assert len(table) == 1
    assert "a" in table
    with pytest.raises(KeyError):
        table.slots("b")


def test_a_place_that_is_taken_again_knows_nothing_of_who_was_there() -> None:
    table = taken_in(visit("a", 1, session="mine"))
    table.stored(0)
    table.load(["b"], {})
    assert table.named == {}
    assert table.rows[table.slots("b")]["visits"].tolist() == [0]


def test_thousands_of_visitors_keep_their_rows_when_room_is_made() -> None:
    table = taken_in(*(visit(f"v{n}", n % 7, session="named" if n % 3 else None) for n in range(1_000)))
    for name, blob in table.dirty().items():
        assert stored_visitor(blob).visits == 1
        assert stored_visitor(blob).started_ms == START_MS + 1_000 * (int(name[1:]) % 7)
        assert isinstance(stored_visitor(blob).session_id, str) == (int(name[1:]) % 3 > 0)


def test_what_is_kept_of_a_visitor_is_bounded() -> None:
    busy = taken_in(*(visit("a", n) for n in range(300)))
    assert len(busy.dirty()["a"]) <= 250
    kept = stored_visitor(busy.dirty()["a"])
    assert (len(kept.recent), len(kept.seen) // 4) == (PAGES, EVENTS)
    few = taken_in(*(visit("a", n) for n in range(4)))
    assert len(few.dirty()["a"]) <= 110


@given(st.binary(max_size=120))
def test_bytes_that_are_no_visitor_are_said_and_the_visitor_counts_as_new(blob: bytes) -> None:
    table = VisitorTable()
    said = table.load(["a", "b"], {"b": blob})
    row = table.rows[table.slots("b")]
    if said:
        assert f"{len(blob)} bytes" in said[0]
        assert row["visits"].tolist() == [0]
        with pytest.raises(ValueError, match="is not in a layout this version reads"):
            stored_visitor(blob)


@given(st.integers(0, 3), st.integers(0, 400), st.integers(0, 255))
def test_damaged_records_are_refused_or_are_some_visitor_that_can_go_on(n: int, at: int, byte: int) -> None:
    (whole,) = taken_in(*(visit("a", k, session="s" if n % 2 else None) for k in range(1 + 5 * n))).dirty().values()
    torn = bytearray(whole)
    torn[at % len(torn)] = byte
    for blob in (bytes(torn), whole[: at % len(whole)]):
        table = VisitorTable()
        table.load(["a"], {"a": blob})
        Sessioniser(GAP_MS).take_in(table, [visit("a", 500), visit("a", 501)], 0)
        (again,) = table.dirty().values()
        stored_visitor(again)
