"""The opponent: the same steps in Faust as it comes, one event at a time over its own aiokafka driver.

Per visit: decode (msgspec), session state, features, River's prediction, an answer with the fields of ours by
`topic.send`; an outcome teaches River every visit of its session. It is given what a worker must earn: state is a dict
in memory that no crash survives and nothing bounds, sends are acknowledged once at the end, one model instead of three
(no URL2vec, no network), and the URLs that may follow are merely the last ten seen, so that an answer is as large as
ours. The clock runs from the first event to the last acknowledgement. Without answers it only counts events.
"""

import asyncio
import tempfile
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import faust
import msgspec
from river import linear_model, optim

from schemas.records import ModelStamp, NextUrl, ScoredVisit, Source, VisitOutcome, WebVisit
from streams.bench.contestants import Order, Result, given_order, leave

Features = dict[str, float]


@dataclass
class Session:
    """What is kept of a session until its outcome is known."""

    entry: str
    started_ms: int
    last_ms: int
    last_url: str
    visits: int = 0
    pending: list[Features] = field(default_factory=list)
    finished: bool | None = None


class Steps:
    """What is done with each event."""

    def __init__(self, order: Order, answers: Any) -> None:
        self.order = order
        self.answers = answers
        self.sessions: dict[str, Session] = {}
        self.model = linear_model.LogisticRegression(optimizer=optim.AdaGrad(0.1))
        self.recent: deque[str] = deque(maxlen=10)
        self.visits = self.outcomes = self.learned = self.trained_through_ms = 0
        self.began = 0.0
        self.done = asyncio.Event()
        self._visit = msgspec.json.Decoder(WebVisit).decode
        self._outcome = msgspec.json.Decoder(VisitOutcome).decode
        self._encode = msgspec.json.Encoder().encode

    async def take(self, event: Any) -> None:
        """One event of either topic."""
        self.began = self.began or time.monotonic()
        message = event.message
        if message.topic != self.order.visits_topic:
            self._judge(self._outcome(event.value))
            self.outcomes += 1
        else:
            if self.order.answer_bytes:
                await self._answer(event.value, message)
            self.visits += 1
        all_outcomes = self.outcomes == self.order.outcomes or not self.order.answer_bytes
        if self.visits == self.order.visits and all_outcomes:
            self.done.set()

    async def _answer(self, value: bytes, message: Any) -> None:
        visit = self._visit(value)
        session_id = visit.session_id or visit.visitor_id
        session = self.sessions.get(session_id)
        if session is None:
            session = Session(visit.url, visit.timestamp_ms, visit.timestamp_ms, "")
            self.sessions[session_id] = session
        session.visits += 1
        features = self._features(visit, session)
        chance = self.model.predict_proba_one(features)[True]
        session.last_ms, session.last_url = visit.timestamp_ms, visit.url
        answer = ScoredVisit(
            event_id=visit.event_id,
            visitor_id=visit.visitor_id,
            session_id=session_id,
            timestamp_ms=visit.timestamp_ms,
            url=visit.url,
            scored_at_ms=int(time.time() * 1000),
            scores={"finished": chance},
            baseline={"finished": chance},
            next_urls=[NextUrl(url, 0.1) for url in self.recent],
            novelty=0.0,
            model=ModelStamp(step=self.learned, trained_through_ms=self.trained_through_ms),
            source=Source(topic=message.topic, partition=message.partition, offset=message.offset),
        )
        self.recent.append(visit.url)
        await self.answers.send(key=message.key, value=self._encode(answer))
        session.pending.append(features)
        if session.finished is not None:
            self._learn(session, visit.timestamp_ms)

    def _features(self, visit: WebVisit, session: Session) -> Features:
        parts = urlsplit(visit.url)
        features = {
            f"url={visit.url}": 1.0,
            f"host={parts.netloc}": 1.0,
            f"entry={session.entry}": 1.0,
            f"before={session.last_url}": 1.0,
            "position": session.visits / 4,
            "since_previous": (visit.timestamp_ms - session.last_ms) / 60_000,
            "since_start": (visit.timestamp_ms - session.started_ms) / 60_000,
        }
        for name, value in visit.properties.items():
            if isinstance(value, str):
                features[f"{name}={value}"] = 1.0
            else:
                features[name] = float(value)
        return features

    def _judge(self, outcome: VisitOutcome) -> None:
        session_id = outcome.session_id or outcome.visitor_id
        session = self.sessions.get(session_id)
        if session is None:  # the topics are read side by side: its visits are still to come
            session = self.sessions[session_id] = Session("", outcome.timestamp_ms, outcome.timestamp_ms, "")
        session.finished = outcome.value
        self._learn(session, outcome.timestamp_ms)

    def _learn(self, session: Session, timestamp_ms: int) -> None:
        for features in session.pending:
            self.model.learn_one(features, session.finished)
        self.learned += len(session.pending)
        session.pending.clear()
        self.trained_through_ms = max(self.trained_through_ms, timestamp_ms)


async def main(order: Order) -> None:
    """Read all, leave the result."""
    app = faust.App(
        f"stock-{order.visits_topic}",
        broker=f"kafka://{order.kafka}",
        store="memory://",
        datadir=tempfile.mkdtemp(prefix="stock-faust-"),
        autodiscover=False,
        broker_session_timeout=6.0,  # how long the embedded broker holds a joining member back; not measured
        broker_heartbeat_interval=1.0,
        consumer_auto_offset_reset="earliest",
        topic_allow_declare=False,
        topic_disable_leader=True,
        web_enabled=False,
    )
    raw = {"key_type": bytes, "value_type": bytes, "key_serializer": "raw", "value_serializer": "raw"}
    names = [order.visits_topic, order.outcomes_topic] if order.answer_bytes else [order.visits_topic]
    steps = Steps(order, app.topic(order.answers, **raw))

    @app.agent(app.topic(*names, **raw), name="events")  # type: ignore[untyped-decorator]
    async def events(stream: Any) -> None:
        async for event in stream.events():
            await steps.take(event)

    await app.start()
    ended = asyncio.create_task(app.wait_until_stopped())
    finished = asyncio.create_task(steps.done.wait())
    await asyncio.wait([ended, finished], return_when=asyncio.FIRST_COMPLETED)
    if not steps.done.is_set():
        raise RuntimeError(f"the stream ended by itself: {app.crash_reason}")
    await app.producer.flush()
    seconds = time.monotonic() - steps.began
    leave(order, Result(visits=steps.visits, seconds=seconds, learning_share=min(1.0, steps.learned / steps.visits)))
    await app.stop()


if __name__ == "__main__":
    asyncio.run(main(given_order()))
