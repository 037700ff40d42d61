"""What earlier versions stored is read by this one: fixtures under tests/fixtures, each made by its version (see there)."""

import json
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import redis

from models.insight import Insight
from models.learner import Learner
from models.lesson import UNKNOWN, Lesson
from models.visits import url_identity
from schemas.decoding import Decoder
from schemas.records import ScoredVisit, WebVisit
from streams.matching import Ledger
from streams.partition import Counters, PartitionState, Summary, lessons_of
from streams.recall import Recall
from streams.replica import Replica
from streams.sessions import Sessioniser
from streams.store import LogIdentity, Store
from tests.fixtures import load, read
from tests.fixtures.write import BEGIN_MS, LOG, MINUTE_MS, MODEL, TASKS, settings_for
from tests.fixtures.write import visit as visit_of

WITH_MODEL = ["0.2", "0.3"]
VERSIONS = ["0.1", *WITH_MODEL]  # of 0.1 the partition alone: its lessons and snapshots are of another model
LAYOUT_OF_VISITORS = {"0.1": 1, "0.2": 2, "0.3": 3}


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def stored(store_url: str) -> AsyncIterator[Store]:
    one = Store(settings_for(store_url))
    yield one
    await one.close()


def put(version: str, store: Store) -> None:
    with redis.Redis.from_url(store.settings.redis) as client:
        load(version, client, store)


async def take_up(store: Store, said: list[str]) -> PartitionState:
    recall = Recall(store.settings, store, said.append, lambda: False)
    return await recall.take_up(0, await store.position(0), LOG)


async def test_a_position_is_taken_up_where_it_was(stored: Store, version: str) -> None:
    put(version, stored)
    position = await stored.position(0)
    assert (position.visits, position.outcomes, position.epoch) == (9, 4, 0)
    assert position.log == LogIdentity("cluster", "visits-id", "outcomes-id")
    summary, state = Summary.of(position), await take_up(stored, [])
    assert summary.counters == Counters(visits_scored=8, visits_learned=7, rejected=1, duplicates=1, examples_learned=4)
    assert (summary.outcomes.joined, summary.outcomes.unmatched, summary.outcomes.late) == (1, 1, 1)
    assert state.watermark.value_ms == BEGIN_MS + 67 * MINUTE_MS
    balance = state.balance["bought"]
    assert (balance.asked, balance.positive, balance.negative, balance.expired) == (7, 3, 1, 1)
    assert state.progress["bought"].n == 4
    Insight.decode(summary.insight)


async def test_visitors_go_on_where_they_were(stored: Store, version: str) -> None:
    put(version, stored)
    said: list[str] = []
    state = await take_up(stored, said)
    names = ["anna", "bert", "cleo", "dora", "nobody"]
    found = await stored.visitors(0, 0, names)
    layouts = {blob[0] if blob[0] < 0x80 else msgspec.msgpack.decode(blob)[0] for blob in found.values()}
    assert layouts == {LAYOUT_OF_VISITORS[version]}
    said += state.meet(names, found)
    assert said == [] if version in WITH_MODEL else len(said) == 1, "before 0.2 there was no index of what is due"
    anna, cleo = state.visitors.get("anna"), state.visitors.get("cleo")
    assert (anna.session_id, anna.position, anna.visits, anna.sessions) == ("named", 1, 3, 2)
    assert (cleo.started_ms, cleo.last_ms) == (BEGIN_MS + 65 * MINUTE_MS, BEGIN_MS + 66 * MINUTE_MS)
    assert cleo.recent == (url_identity("https://shop.example/shoes"), url_identity("https://shop.example/home"))
    assert state.visitors.get("nobody").visits == 0
    again = msgspec.convert(visit_of(6, "cleo", 66, "shoes"), type=WebVisit)
    _, _, step = Sessioniser(1_800_000).visit(cleo, again, 0)
    assert step.duplicate, "the events that were seen are remembered"


async def test_pending_visits_are_settled_and_outcomes_remembered(stored: Store, version: str) -> None:
    put(version, stored)
    ledgers = {name: Ledger.decode(blob) async for name, blob in stored.joins(0, 0)}
    assert sorted(ledgers) == ["anna", "cleo", "dora"]
    assert [visit.event_id for visit in ledgers["cleo"].visits] == ["e5", "e6"]
    assert [outcome.name for outcome in ledgers["anna"].outcomes] == ["order"]
    state = await take_up(stored, [])
    settled = state.join.advance(BEGIN_MS + 1_000 * MINUTE_MS)
    assert [(pair.event_id, pair.label) for pair in settled] == [("e5", False), ("e6", False), ("e7", False)]
    assert all(pair.features for pair in settled)
    assert state.join.counts.unmatched == 2


@pytest.mark.parametrize("version", WITH_MODEL)
async def test_lessons_are_learned(stored: Store, version: str) -> None:
    put(version, stored)
    entries = await stored.lessons(0, 0)
    assert len(entries) == 2
    assert entries[1].after == entries[0].step
    lessons: list[Lesson] = [lesson for entry in entries for lesson in lessons_of(entry.blob)]
    visited = [url for lesson in lessons for url in lesson.steps.url.tolist()]
    pages = ["home", "home", "shoes", "cart", "home", "shoes", "cart"]
    assert visited == [url_identity(f"https://shop.example/{page}") for page in pages]
    examples = [row for lesson in lessons for row in lesson.examples.tolist()]
    assert [row[2] for row in examples] == [1, 1, 1, 0]
    assert all(0 < row[3] < UNKNOWN for row in examples)
    learner = Learner(MODEL, [task.name for task in TASKS])
    for lesson in lessons:
        learner.learn(lesson)
    assert learner.examples == 4


@pytest.mark.parametrize("version", WITH_MODEL)
async def test_a_snapshot_and_the_lessons_after_it_are_the_model(stored: Store, version: str) -> None:
    put(version, stored)
    said: list[str] = []
    learner = Learner(MODEL, [task.name for task in TASKS])
    replica = Replica(stored, learner, None, said.append)
    await replica.rebuild([0])
    assert said == []
    assert learner.urls == 3
    assert learner.examples == 4
    state = await take_up(stored, said)
    visit = msgspec.convert(visit_of(99, "eve", 70, "shoes"), type=WebVisit)
    _, context, _ = Sessioniser(1_800_000).visit(None, visit, state.watermark.value_ms)
    [expected] = read(version, "about")["eve"]
    assert learner.score([context]).probability[0, 0] == pytest.approx(expected, abs=1e-4)


def test_records_of_all_topics_are_read(version: str) -> None:
    by_topic: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in read(version, "records"):
        by_topic[record["topic"]].append(record)
    assert {topic: len(records) for topic, records in by_topic.items()} == {
        "web-visits": 9, "visit-outcomes": 4, "scored-visits": 8, "rejected-visits": 1,
    }  # fmt: skip
    decoder = Decoder()
    outcomes = [
        decoder.outcome(record["key"].encode(), record["value"].encode(), [], BEGIN_MS * 2)
        for record in by_topic["visit-outcomes"]
    ]
    assert [outcome.visitor_id for outcome in outcomes] == ["anna", "cleo", "nobody", "anna"]
    scored = [msgspec.json.decode(record["value"], type=ScoredVisit) for record in by_topic["scored-visits"]]
    assert [answer.event_id for answer in scored] == ["e1", "e2", "e3", "e3", "e4", "e5", "e6", "e7"]
    assert [answer.source.offset for answer in scored] == [0, 1, 2, 3, 4, 6, 7, 8]
    assert "duplicate" in scored[3].flags
    [rejected] = by_topic["rejected-visits"]
    assert rejected["value"] == "{not json"
    assert rejected["headers"]["source_offset"] == "5"
    assert json.loads(by_topic["web-visits"][0]["value"])["properties"] == {"price": 1.5, "colour": "red"}
