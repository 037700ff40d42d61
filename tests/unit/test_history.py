"""What can be told of a visit when the broker has forgotten part of it, and which of several answers is meant."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from schemas.decoding import encode_scored
from schemas.records import ModelStamp, ScoredVisit, Source
from streams import history
from streams.history import History, find
from streams.settings import Settings
from streams.topics import TopicFacts

BEGIN_MS = 1_700_000_000_000
SETTINGS = Settings(kafka="", redis="")
VISITS, SCORED = (SETTINGS.topics.visits, 0), (SETTINGS.topics.scored, 0)


def visit(event_id: str, at_s: int, visitor_id: str = "v") -> bytes:
    value = {"event_id": event_id, "timestamp": BEGIN_MS + 1000 * at_s, "visitor_id": visitor_id, "url": f"/{event_id}"}
    return msgspec.json.encode(value | {"referrer": "/from"})


def answer(event_id: str, offset: int, flags: tuple[str, ...] = (), scored_at_ms: int = 0) -> bytes:
    return encode_scored(
        ScoredVisit(
            event_id=event_id, visitor_id="v", session_id=f"v@{BEGIN_MS}", timestamp_ms=BEGIN_MS + 1000 * offset,
            url=f"/{event_id}", scored_at_ms=scored_at_ms, scores={}, baseline={}, novelty=0.5,
            model=ModelStamp(step=1, trained_through_ms=2), source=Source(topic=VISITS[0], partition=0, offset=offset),
            flags=flags,
        )
    )  # fmt: skip


def found(
    monkeypatch: pytest.MonkeyPatch, event_id: str, visits: list[bytes], answers: list[bytes], begin: int = 0
) -> History | None:
    """`find` over these two topics, the first `begin` visits of which are gone."""
    held = {VISITS: visits, SCORED: answers}

    class Consumer:
        def __init__(self, **_: Any) -> None: ...
        async def start(self) -> None: ...
        async def stop(self) -> None: ...

    async def records(_: Any, ends: Mapping[tuple[str, int], int]) -> AsyncIterator[Any]:
        for where, end in ends.items():
            for offset, value in enumerate(held[where][:end]):
                if where != VISITS or offset >= begin:
                    yield SimpleNamespace(key=b"v", value=value, headers=[], offset=offset)

    monkeypatch.setattr(history, "AIOKafkaConsumer", Consumer)
    monkeypatch.setattr(history, "_records", records)
    monkeypatch.setattr(history.broker, "describe", lambda _, names: {name: TopicFacts("", 1) for name in names})
    monkeypatch.setattr(history.broker, "end_offsets", lambda _, asked: {where: len(held[where]) for where in asked})
    monkeypatch.setattr(history.broker, "begin_offsets", lambda _, asked: dict.fromkeys(asked, begin))
    return asyncio.run(find(SETTINGS, event_id))


READ = [visit("a", 0), visit("b", 1), b"{", visit("x", 2, "other"), visit("c", 3), visit("d", 4)]


def test_the_session_is_that_of_the_visitor_up_to_the_visit(monkeypatch: pytest.MonkeyPatch) -> None:
    told = found(monkeypatch, "c", READ, [b'not ours: "c"', answer("c", 4)])
    assert told is not None
    assert [v.event_id for v in told.visits] == ["a", "b", "c"]
    assert (told.context.url, told.context.position, told.context.referrer, told.missing) == ("/c", 3, "/from", ())


def test_what_the_broker_has_forgotten_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    told = found(monkeypatch, "c", READ, [answer("c", 4)], begin=1)
    assert told is not None
    assert ([v.event_id for v in told.visits], len(told.missing)) == (["b", "c"], 1)
    assert "nothing older than offset 1" in told.missing[0]


def test_a_visit_that_is_gone_is_told_from_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    told = found(monkeypatch, "c", READ, [answer("c", 4)], begin=5)
    assert told is not None
    assert ([v.event_id for v in told.visits], len(told.missing)) == (["c"], 2)
    assert (told.context.url, told.context.referrer, told.context.position) == ("/c", None, 1)
    assert "the visit itself is gone" in told.missing[1]


def test_of_several_answers_the_first_to_what_was_no_duplicate_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [answer("a", 1, ("duplicate",), 1), answer("a", 0, (), 2), answer("a", 0, (), 3)]
    told = found(monkeypatch, "a", READ, answers)
    assert told is not None
    assert told.answer.scored_at_ms == 2
    assert found(monkeypatch, "nobody", READ, answers) is None
