"""What every contestant reads: the bundled Wikispeedia games, in topics that nobody has read before.

Promises: the same first N visits, in the same order, with the outcomes of their sessions, each time; nothing in it is
random. The broker holds all of it before anybody starts, so that the clock measures reading and never waiting.
"""

import asyncio
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import deploy
from schemas.logs import LogFile, LogRecord
from streams import topics as broker
from streams.replay import replay
from streams.settings import Topics

VISITS = Path(deploy.__file__).parent / "data" / "wikispeedia" / "sessions.tsv.gz"
PARTITIONS = 4
ALL_VISITS = 357_379  # in that file


@dataclass(frozen=True)
class Load:
    """Topics that hold this many records."""

    topics: Topics
    visits: int
    outcomes: int


def read(visits: int) -> list[LogRecord]:
    """The first `visits` visits of the bundled log and the outcomes of their sessions."""
    log = LogFile(VISITS, "sessions", now_ms=int(time.time() * 1000), limit=visits)
    return [item for item in log if isinstance(item, LogRecord)]


def publish(kafka: str, records: list[LogRecord]) -> Load:
    """Topics made for these records alone, filled. Raises BrokerError."""
    mark = uuid.uuid4().hex[:8]
    topics = Topics(*(f"bench-{mark}-{name}" for name in Topics().all))
    broker.create(kafka, topics.all, PARTITIONS)
    done = asyncio.run(replay(records, kafka=kafka, visits_topic=topics.visits, outcomes_topic=topics.outcomes))
    return Load(topics, done.published, done.outcomes)
