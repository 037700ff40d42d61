"""What the topics still hold of one visit: the answer that went out, and the visits of its visitor up to it.

Reads the topics as they are, from their oldest records, without a consumer group; changes nothing. Where the broker has
deleted what is older than its retention, that is said, and the rest is told from the answers alone.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition

from models.visits import VisitContext
from schemas.decoding import BadEvent, Decoder
from schemas.records import ScoredVisit, WebVisit
from streams import topics as broker
from streams.errors import ConfigError
from streams.sessions import Sessioniser
from streams.settings import Settings
from streams.visitor_layouts import Visitor

POLL_MS = 500


@dataclass(frozen=True)
class History:
    """An answer and what led to it."""

    answer: ScoredVisit
    context: VisitContext  # as the worker saw the visit, or as near to it as the topics allow
    visits: tuple[WebVisit, ...]  # of the session, oldest first, this one last
    missing: tuple[str, ...]  # sentences: what could not be read any more


async def find(settings: Settings, event_id: str) -> History | None:
    """The history of the visit with that event_id; None where no answer to it is on `scored-visits`. Raises BrokerError.

    Of several answers (a producer's retries, a crash) the first one to a visit that was no duplicate.
    """
    consumer = AIOKafkaConsumer(
        bootstrap_servers=settings.kafka, enable_auto_commit=False, auto_offset_reset="earliest"
    )
    await consumer.start()
    try:
        answer = await _answer(settings, consumer, event_id)
        return None if answer is None else await _history(settings, consumer, answer)
    finally:
        await consumer.stop()


async def _answer(settings: Settings, consumer: AIOKafkaConsumer, event_id: str) -> ScoredVisit | None:
    topic = settings.topics.scored
    facts = await asyncio.to_thread(broker.describe, settings.kafka, [topic])
    if topic not in facts:
        raise ConfigError(f"no topic {topic} on {settings.kafka}: `url2vec topics` lists what is there")
    ends = await _ends(settings, [(topic, number) for number in range(facts[topic].partitions)])
    wanted, decoder = msgspec.json.encode(event_id), msgspec.json.Decoder(ScoredVisit)
    duplicate = None
    async for record in _records(consumer, ends):
        if wanted not in (record.value or b""):
            continue
        try:
            found = decoder.decode(record.value)
        except (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError):
            continue  # written by somebody else
        if found.event_id != event_id:
            continue
        if "duplicate" not in found.flags:
            return found
        duplicate = duplicate or found
    return duplicate


async def _history(settings: Settings, consumer: AIOKafkaConsumer, answer: ScoredVisit) -> History:
    where = (answer.source.topic, answer.source.partition)
    ends = await _ends(settings, [where])
    begins = await asyncio.to_thread(broker.begin_offsets, settings.kafka, [where])
    through = {where: min(ends[where], answer.source.offset + 1)}
    decoder, now_ms, visits = Decoder(), int(time.time() * 1000), []
    async for record in _records(consumer, through):
        try:
            visit = decoder.visit(record.key, record.value, record.headers, now_ms)
        except BadEvent:
            continue
        if visit.visitor_id == answer.visitor_id:
            visits.append(visit)
    missing = []
    if begins[where]:
        missing.append(
            f"{where[0]}[{where[1]}] holds nothing older than offset {begins[where]} any more: earlier visits of this "
            "visitor may be gone, and then the score now is that of a younger session"
        )
    if not visits or visits[-1].event_id != answer.event_id:
        missing.append(
            f"the visit itself is gone from {where[0]}[{where[1]}]: its referrer, user agent and properties are unknown"
        )
        visits.append(_from_answer(answer))
    return _told(settings, answer, visits, tuple(missing))


def _told(settings: Settings, answer: ScoredVisit, visits: Iterable[WebVisit], missing: tuple[str, ...]) -> History:
    """Take the visitor's visits in again, as the worker did, one after the other."""
    sessions = Sessioniser(settings.session_gap_ms, settings.urls)
    visitor: Visitor | None = None
    context: VisitContext | None = None
    of_session: dict[str, list[WebVisit]] = {}
    session_id = ""
    for visit in visits:
        visitor, context, step = sessions.visit(visitor, visit, 0)
        session_id = step.session_id
        if not step.duplicate:
            of_session.setdefault(session_id, []).append(visit)
    assert context is not None, "there is at least the visit itself"
    return History(answer, context, tuple(of_session.get(session_id, ())), missing)


def _from_answer(answer: ScoredVisit) -> WebVisit:
    return WebVisit(
        event_id=answer.event_id,
        timestamp_ms=answer.timestamp_ms,
        visitor_id=answer.visitor_id,
        url=answer.url,
        session_id=answer.session_id,
    )


async def _ends(settings: Settings, partitions: list[tuple[str, int]]) -> dict[tuple[str, int], int]:
    return await asyncio.to_thread(broker.end_offsets, settings.kafka, partitions)


async def _records(consumer: AIOKafkaConsumer, ends: Mapping[tuple[str, int], int]) -> AsyncIterator[Any]:
    """All records of these partitions below these offsets; a partition's in order."""
    left = {TopicPartition(*where): end for where, end in ends.items() if end > 0}
    if not left:
        return
    consumer.assign(list(left))
    await consumer.seek_to_beginning(*left)
    while left:
        for where, records in (await consumer.getmany(*left, timeout_ms=POLL_MS)).items():
            for record in records:
                if record.offset < left[where]:
                    yield record
        for where in [where for where, end in left.items() if await consumer.position(where) >= end]:
            del left[where]
